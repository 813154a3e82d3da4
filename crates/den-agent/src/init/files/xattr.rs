//! Extended attributes of files and directories.

use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// How much of names or of one value is taken, in bytes: the kernel has no more (xattr(7)).
const BYTES_MAX: usize = 64 << 10;

/// A name and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Those that mean something elsewhere too: `user.*`, capabilities and access lists. None where the
/// file system has none.
pub fn list(file: impl AsFd) -> rustix::io::Result<Vec<Xattr>> {
    let length = match rustix::fs::flistxattr_query(&file) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Ok(length) => length,
        Err(errno) => return Err(errno),
    };
    // Room for what is added meanwhile.
    let mut names = vec![0_u8; (length + 1024).min(BYTES_MAX)];
    let length = rustix::fs::flistxattr(&file, &mut names[..])?;
    let mut list = Vec::new();
    for name in names[..length].split(|&b| b == 0).filter(|name| travels(name)) {
        let mut value = vec![0_u8; BYTES_MAX];
        match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
            Ok(length) => list.push((name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(list)
}

/// Sets them. What belongs to another host's policy (`security.selinux`, `trusted.*`) is left out.
pub fn set(file: impl AsFd, list: &[Xattr]) -> rustix::io::Result<()> {
    for (name, value) in list.iter().filter(|(name, _)| travels(name)) {
        rustix::fs::fsetxattr(&file, &name[..], value, XattrFlags::empty())?;
    }
    Ok(())
}

fn travels(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_set_and_listed() {
        let dir = std::env::current_dir().expect("a directory");
        let file = tempfile::tempfile_in(dir).expect("a file");
        let wanted: Vec<Xattr> = vec![(b"user.a".to_vec(), b"1\n\0".to_vec()), (b"user.b".to_vec(), Vec::new())];
        set(&file, &wanted).expect("set");
        let mut there = list(&file).expect("listed");
        there.sort();
        assert_eq!(there, wanted);
    }
}
