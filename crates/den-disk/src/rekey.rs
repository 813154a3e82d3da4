//! What a fork must not share with its parent, made new on its disk. The table is docs/FORKS.md.
//!
//! ```text
//! live/data  ┌ etc/hostname, etc/hosts, etc/machine-id, var/lib/dbus/machine-id   identity
//!            ├ etc/ssh/ssh_host_*, etc/dropbear/*_host_key                         keys of servers
//!            ├ var/lib/…/random-seed                                               seeds
//!            └ var/lib/…/credential.secret, secret_key, duid, *.leases             removed: made at need
//! live/vol   └ docker/engine-id                                                    removed: made at need
//! ```
//!
//! The disk was written by someone else's root: every path is resolved with `live/data` as its root, so
//! that no link leads out of it; what is written is a new file, never what a link points at.
//!
//! Not here: what has no place on the disk (address, link, tokens: `gate`, `machine`; boot id: the agent).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use den_sys::SysError;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::keys::{self, Kind};
use crate::{DiskError, Identity, open_dir};

/// Seeds that services keep from one boot to the next.
const SEEDS: [(&str, &str); 3] =
    [("var/lib/systemd", "random-seed"), ("var/lib/urandom", "random-seed"), ("var/lib", "random-seed")];
const SEED_BYTES_MIN: usize = 512;
const SEED_BYTES_MAX: usize = 4096;

/// Secrets and ids that their owner makes anew when they are missing.
const FORGOTTEN: [(&str, &str); 8] = [
    ("var/lib/systemd", "credential.secret"),
    ("var/lib/NetworkManager", "secret_key"),
    ("var/lib/dhcpcd", "duid"),
    ("var/lib/dhcpcd", "secret"),
    ("etc", "dhcpcd.duid"),
    ("etc", "dhcpcd.secret"),
    ("etc/iscsi", "initiatorname.iscsi"),
    ("etc/nvme", "hostid"),
];

/// Folders of leases; those in them are for another machine.
const LEASES: [&str; 4] = ["var/lib/dhcp", "var/lib/dhclient", "var/lib/NetworkManager", "var/lib/dhcpcd"];

/// The largest file that is read here.
const READ_BYTES_MAX: usize = 1 << 20;
/// So many entries of a folder are looked at.
const ENTRIES_MAX: usize = 4096;

/// Makes the disk of a fork its own.
pub(crate) fn fork(live: BorrowedFd<'_>, identity: &Identity<'_>, layers: &[PathBuf]) -> Result<(), DiskError> {
    let data = Tree::below(live, c"data")?;
    identify(&data, identity)?;
    let layers: Vec<Tree> = layers.iter().map(|layer| Ok(Tree(open_dir(layer)?))).collect::<Result<_, SysError>>()?;
    renew_ssh(&data, &layers, identity)?;
    if let Some(dropbear) = data.folder("etc/dropbear")? {
        // Made anew by `dropbear -R`.
        for name in names(&dropbear, |name| name.starts_with(b"dropbear_") && name.ends_with(b"_host_key"))? {
            remove(&dropbear, &name)?;
        }
    }
    for (folder, name) in SEEDS {
        renew_seed(&data, folder, name)?;
    }
    for (folder, name) in FORGOTTEN {
        if let Some(folder) = data.folder(folder)? {
            remove(&folder, &c_name(name))?;
        }
    }
    for folder in LEASES {
        let Some(folder) = data.folder(folder)? else { continue };
        for name in names(&folder, |name| name.ends_with(b".lease") || name.ends_with(b".leases"))? {
            remove(&folder, &name)?;
        }
    }
    let volumes = Tree::below(live, c"vol")?;
    if let Some(docker) = volumes.folder("docker")? {
        remove(&docker, c"engine-id")?;
        // What dockerd was called with before 24.0.
        remove(&docker, c"key.json")?;
    }
    if let Some(docker) = data.folder("etc/docker")? {
        remove(&docker, c"key.json")?;
    }
    Ok(())
}

/// Lets a state that came from another computer be this one's; its own are left as they were.
pub(crate) fn restore(live: BorrowedFd<'_>, identity: &Identity<'_>) -> Result<(), DiskError> {
    let data = Tree::below(live, c"data")?;
    let Some(etc) = data.folder("etc")? else { return Ok(()) };
    let is = read(&etc, c"machine-id", 64)?;
    // Changed by hand or made by systemd, it is still this computer's; 32 zeros are nobody's.
    match is {
        Some(is) if is.trim_ascii().len() == 32 => Ok(()),
        _ => identify(&data, identity),
    }
}

/// Gives a computer another hostname; all else stays.
pub(crate) fn rename(live: BorrowedFd<'_>, identity: &Identity<'_>) -> Result<(), DiskError> {
    call(&Tree::below(live, c"data")?, identity)
}

/// Writes what the computer is called.
fn call(data: &Tree, identity: &Identity<'_>) -> Result<(), DiskError> {
    if let Some(etc) = data.folder("etc")? {
        let before = read(&etc, c"hostname", 256)?;
        let hosts = read(&etc, c"hosts", READ_BYTES_MAX)?;
        let hosts = hosts.map_or_else(|| identity.hosts_file().into_bytes(), |text| rename_in(&text, before, identity));
        put(&etc, c"hostname", identity.hostname_file().as_bytes(), 0o644)?;
        put(&etc, c"hosts", &hosts, 0o644)?;
    }
    Ok(())
}

/// Writes who the computer is.
fn identify(data: &Tree, identity: &Identity<'_>) -> Result<(), DiskError> {
    let machine_id = identity.machine_id_file();
    call(data, identity)?;
    if let Some(etc) = data.folder("etc")? {
        put(&etc, c"machine-id", machine_id.as_bytes(), 0o444)?;
    }
    if let Some(dbus) = data.folder("var/lib/dbus")?
        && kind(&dbus, c"machine-id")? == Some(FileType::RegularFile)
    {
        put(&dbus, c"machine-id", machine_id.as_bytes(), 0o444)?;
    }
    Ok(())
}

/// The hosts file with the name that the computer had replaced by the one that it has. What else was
/// written there stays.
fn rename_in(hosts: &[u8], before: Option<Vec<u8>>, identity: &Identity<'_>) -> Vec<u8> {
    let before = before.unwrap_or_default();
    let before = before.trim_ascii();
    let name = identity.hostname.as_bytes();
    let mut out = Vec::with_capacity(hosts.len() + 64);
    let mut named = false;
    for line in hosts.split_inclusive(|byte| *byte == b'\n') {
        let (entry, comment) = line.split_at(line.iter().position(|byte| *byte == b'#').unwrap_or(line.len()));
        for (number, word) in entry.split_inclusive(u8::is_ascii_whitespace).enumerate() {
            let bare = word.trim_ascii_end();
            // The first word is an address.
            if number > 0 && !bare.is_empty() && bare == before {
                out.extend_from_slice(name);
                out.extend_from_slice(&word[bare.len()..]);
                named = true;
            } else {
                named |= number > 0 && bare == name;
                out.extend_from_slice(word);
            }
        }
        out.extend_from_slice(comment);
    }
    if !named {
        if out.last().is_some_and(|last| *last != b'\n') {
            out.push(b'\n');
        }
        out.extend_from_slice(format!("127.0.1.1\t{}\n", identity.hostname).as_bytes());
    }
    out
}

/// New host keys where there were any: on the disk, or in a layer where nothing on the disk hides them.
fn renew_ssh(data: &Tree, layers: &[Tree], identity: &Identity<'_>) -> Result<(), DiskError> {
    const FOLDER: &str = "etc/ssh";
    let is_key = |name: &[u8]| name.starts_with(b"ssh_host_");
    let mut kinds = Vec::new();
    let upper = data.folder(FOLDER)?;
    let mut hidden = Vec::new();
    let mut stale = Vec::new();
    if let Some(upper) = &upper {
        for name in names(upper, is_key)? {
            // A whiteout: someone removed it.
            match kind(upper, &name)? {
                Some(FileType::CharacterDevice) => hidden.push(name),
                Some(FileType::Directory) | None => {}
                Some(_) => {
                    kinds.extend(Kind::of(name.to_bytes()));
                    stale.push(name);
                }
            }
        }
    }
    let opaque = ["etc", FOLDER].iter().any(|path| data.folder(path).ok().flatten().is_some_and(is_opaque));
    let seen = if opaque { &[] } else { layers };
    for layer in seen {
        let Some(folder) = layer.folder(FOLDER)? else { continue };
        for name in names(&folder, is_key)? {
            if hidden.contains(&name) || stale.contains(&name) {
                continue;
            }
            match kind(&folder, &name)? {
                Some(FileType::RegularFile | FileType::Symlink) => {
                    kinds.extend(Kind::of(name.to_bytes()));
                    stale.push(name);
                }
                Some(FileType::CharacterDevice) => hidden.push(name),
                _ => {}
            }
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    let folder = match upper {
        Some(folder) => folder,
        None => data.make_folder(&["etc", "ssh"])?,
    };
    for name in &stale {
        remove(&folder, name)?;
    }
    kinds.sort_unstable();
    kinds.dedup();
    // An RSA key takes a fifth of a second to make; a server that has another one needs none.
    if kinds.len() > 1 {
        kinds.retain(|kind| *kind != Kind::Rsa);
    }
    for kind in kinds {
        let pair = keys::make(kind, identity.hostname)?;
        let name = kind.file_name();
        put(&folder, &c_name(name), pair.private.as_bytes(), 0o600)?;
        put(&folder, &c_name(&format!("{name}.pub")), pair.public.as_bytes(), 0o644)?;
    }
    // One of a layer that got no successor is covered, or it would show again.
    for name in stale {
        if kind(&folder, &name)?.is_none() && seen.iter().any(|layer| layer.shows(FOLDER, &name)) {
            cover(&folder, &name)?;
        }
    }
    Ok(())
}

fn renew_seed(data: &Tree, folder: &str, name: &str) -> Result<(), DiskError> {
    let Some(folder) = data.folder(folder)? else { return Ok(()) };
    let name = c_name(name);
    let Some(seed) = read(&folder, &name, SEED_BYTES_MAX)? else { return Ok(()) };
    let mut fresh = vec![0_u8; seed.len().clamp(SEED_BYTES_MIN, SEED_BYTES_MAX)];
    keys::random(&mut fresh)?;
    put(&folder, &name, &fresh, 0o600)
}

/// A directory that paths begin at and do not leave.
struct Tree(OwnedFd);

impl Tree {
    fn below(live: BorrowedFd<'_>, name: &CStr) -> Result<Self, SysError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(live, name, flags, Mode::empty())
            .map(Self)
            .map_err(SysError::rustix("open", name.to_string_lossy()))
    }

    /// Opens the folder `path`; links are followed inside of the tree. `None` where there is none, or
    /// something else.
    fn folder(&self, path: &str) -> Result<Option<OwnedFd>, SysError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        // A rename beside it may make it give up: nothing runs here, so that happens once at most.
        for _ in 0..4 {
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), within) {
                Ok(folder) => return Ok(Some(folder)),
                Err(Errno::AGAIN) => {}
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => return Ok(None),
                Err(errno) => return Err(SysError::new("openat2", path, errno.raw_os_error())),
            }
        }
        Err(SysError::new("openat2", path, Errno::AGAIN.raw_os_error()))
    }

    /// Makes these folders, one in the other. What is in the way of one is an error.
    fn make_folder(&self, path: &[&str]) -> Result<OwnedFd, SysError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut folder = rustix::io::fcntl_dupfd_cloexec(&self.0, 0).map_err(SysError::rustix("fcntl(DUPFD)", ""))?;
        for name in path {
            match rustix::fs::mkdirat(&folder, *name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SysError::new("mkdir", name, errno.raw_os_error())),
            }
            folder =
                rustix::fs::openat(&folder, *name, flags, Mode::empty()).map_err(SysError::rustix("open", name))?;
        }
        Ok(folder)
    }

    fn shows(&self, folder: &str, name: &CStr) -> bool {
        let kind = self.folder(folder).ok().flatten().and_then(|folder| kind(&folder, name).ok().flatten());
        kind.is_some_and(|kind| kind != FileType::CharacterDevice)
    }
}

/// Whether the overlay shows nothing of what lies below this directory.
fn is_opaque(folder: OwnedFd) -> bool {
    let mut value = [0_u8; 4];
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| matches!(rustix::fs::fgetxattr(&folder, *name, &mut value), Ok(1) if value[0] == b'y'))
}

/// Names in `folder` that are wanted.
fn names(folder: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<CString>, SysError> {
    let mut found = Vec::new();
    let entries = Dir::read_from(folder).map_err(SysError::rustix("readdir", ""))?;
    for entry in entries.take(ENTRIES_MAX) {
        let entry = entry.map_err(SysError::rustix("readdir", ""))?;
        if wanted(entry.file_name().to_bytes()) {
            found.push(entry.file_name().to_owned());
        }
    }
    Ok(found)
}

fn kind(folder: &OwnedFd, name: &CStr) -> Result<Option<FileType>, SysError> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(SysError::new("stat", name.to_string_lossy(), errno.raw_os_error())),
    }
}

/// Reads a file; `None` where it is none or larger than `max`.
fn read(folder: &OwnedFd, name: &CStr, max: usize) -> Result<Option<Vec<u8>>, SysError> {
    if kind(folder, name)? != Some(FileType::RegularFile) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty())
        .map_err(SysError::rustix("open", name.to_string_lossy()))?;
    let mut bytes = Vec::new();
    use std::io::Read;
    std::fs::File::from(file)
        .take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| SysError::io("read", Path::new(&*name.to_string_lossy()), &error))?;
    Ok((bytes.len() <= max).then_some(bytes))
}

/// Removes a name; a directory is left. None is no error.
fn remove(folder: &OwnedFd, name: &CStr) -> Result<(), SysError> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
        Err(errno) => Err(SysError::new("unlink", name.to_string_lossy(), errno.raw_os_error())),
    }
}

/// Writes a file of root's in place of what has the name; a directory is left.
fn put(folder: &OwnedFd, name: &CStr, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    if kind(folder, name)? == Some(FileType::Directory) {
        return Ok(());
    }
    remove(folder, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(mode))
        .map_err(SysError::rustix("create", name.to_string_lossy()))?;
    // The mask of this process is not for files of a computer.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(SysError::rustix("chmod", name.to_string_lossy()))?;
    use std::io::Write;
    std::fs::File::from(file)
        .write_all(bytes)
        .map_err(|error| SysError::io("write", Path::new(&*name.to_string_lossy()), &error))?;
    Ok(())
}

/// Hides what a layer has by this name.
fn cover(folder: &OwnedFd, name: &CStr) -> Result<(), SysError> {
    rustix::fs::mknodat(folder.as_fd(), name, FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(SysError::rustix("mknod", name.to_string_lossy()))
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("a constant without NUL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_keeps_what_its_owner_wrote() {
        let identity = Identity { hostname: "kid", machine_id: [0; 16] };
        let renamed =
            |text: &str| String::from_utf8(rename_in(text.as_bytes(), Some(b"dad\n".to_vec()), &identity)).unwrap();
        assert_eq!(
            renamed("127.0.0.1\tlocalhost\n127.0.1.1\tdad\n10.0.0.9 db dad # of dad\n"),
            "127.0.0.1\tlocalhost\n127.0.1.1\tkid\n10.0.0.9 db kid # of dad\n"
        );
        assert_eq!(renamed("10.0.0.9 daddy"), "10.0.0.9 daddy\n127.0.1.1\tkid\n");
        assert_eq!(renamed(""), "127.0.1.1\tkid\n");
    }
}
