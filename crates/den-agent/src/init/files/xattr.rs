//! Extended attributes of files and directories.

use std::os::fd::AsFd;

use den_wire::agent::{ATTRIBUTES_PATHS_MAX, Attributes, DressXattr};
use minicbor::bytes::ByteVec;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::super::failure::{Outcome, bad};

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

/// The most bytes of names and values of one answer: the rest of it fits into a frame too.
const ANSWER_BYTES_MAX: usize = 512 << 10;

/// Those of each path whose names begin with `prefix`, links followed; nothing is opened. None of what is not there, or
/// cannot be looked at, and none from where on the answer would be longer than [`ANSWER_BYTES_MAX`].
pub fn of_paths(paths: &[ByteVec], prefix: &[u8]) -> Outcome<Vec<Vec<DressXattr>>> {
    if paths.len() > ATTRIBUTES_PATHS_MAX {
        return Err(bad("too many paths at once"));
    }
    let (mut names, mut value) = (vec![0; BYTES_MAX], vec![0; BYTES_MAX]);
    let mut room = ANSWER_BYTES_MAX;
    let mut of = |path: &ByteVec| {
        let mut found = Vec::new();
        let Ok(length) = rustix::fs::listxattr(&path[..], &mut names[..]) else { return found };
        let names = names[..length].split(|&b| b == 0);
        for name in names.filter(|name| name.starts_with(prefix) && travels(name)) {
            let Ok(length) = rustix::fs::getxattr(&path[..], name, &mut value[..]) else { continue };
            match room.checked_sub(name.len() + length) {
                Some(left) => room = left,
                None => {
                    room = 0;
                    break;
                }
            }
            found.push(DressXattr { name: name.to_vec().into(), value: Some(value[..length].to_vec().into()) });
        }
        found
    };
    Ok(paths.iter().map(&mut of).collect())
}

/// Puts attributes in the place of all whose names begin alike.
pub fn replace(file: impl AsFd, attributes: &Attributes) -> rustix::io::Result<()> {
    for (name, _) in list(&file)?.iter().filter(|(name, _)| name.starts_with(&attributes.prefix)) {
        if !attributes.set.iter().any(|one| one.name[..] == name[..]) {
            rustix::fs::fremovexattr(&file, &name[..])?;
        }
    }
    for DressXattr { name, value } in attributes.set.iter().filter(|one| one.name.starts_with(&attributes.prefix)) {
        rustix::fs::fsetxattr(&file, &name[..], value.as_deref().map_or(&[], |v| &v[..]), XattrFlags::empty())?;
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

    #[test]
    fn an_answer_has_an_end() {
        let dir = tempfile::tempdir_in(std::env::current_dir().expect("a directory")).expect("a directory");
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).expect("a file");
        set(&file, &[(b"user.e2b.a".to_vec(), vec![b'x'; 3000]), (b"user.b".to_vec(), vec![b'y'; 10])]).expect("set");
        let path = ByteVec::from(path.into_os_string().into_encoded_bytes());
        let missing = ByteVec::from(b"/no/such/file".to_vec());
        let found = of_paths(&[missing, path.clone()], b"user.e2b.").expect("found");
        assert_eq!((found[0].len(), found[1].len()), (0, 1), "those with the prefix alone");
        assert_eq!(found[1][0].value.as_ref().map(|value| value.len()), Some(3000));
        let found = of_paths(&vec![path; ATTRIBUTES_PATHS_MAX], b"user.e2b.").expect("found");
        let bytes: usize = found.iter().flatten().map(|one| one.name.len() + 3000).sum();
        assert!(bytes <= ANSWER_BYTES_MAX && bytes > ANSWER_BYTES_MAX - 4000, "{bytes}");
        assert!(found.last().is_some_and(Vec::is_empty));
    }
}
