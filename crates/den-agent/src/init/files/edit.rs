//! Making, moving, removing, and setting attributes.

use std::os::fd::AsFd;

use den_wire::agent::FailureKind;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::super::failure::{Outcome, at, bad, failure, from_errno, text};
use super::super::users::Users;
use super::tree::{Entry, Visit, Walk, open_dir, walk};
use super::write::{open_parent, set_owner_and_mode, split};
use super::{copy, kind};

/// The permission bits of a new directory.
const DIR_MODE_DEFAULT: u32 = 0o755;

/// Makes a directory; with `parents` also those above it, and then one that exists is no error.
pub fn make_dir(path: &[u8], mode: Option<u32>, parents: bool, owner: Option<&str>) -> Outcome<()> {
    let owner = owner.map(|owner| Users::read().owner_of_new(owner)).transpose()?;
    let mode = check_mode(mode.unwrap_or(DIR_MODE_DEFAULT))?;
    if path.is_empty() {
        return Err(from_errno(Errno::NOENT, path));
    }
    let make = |path: &[u8], mode: u32| match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Ok(()) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(at(path))?;
            // mkdir leaves set-group-ID to the directory above; fchmod is exact.
            let exact = (mode & 0o7000 != 0).then_some(mode);
            set_owner_and_mode(&dir, owner, exact).map_err(at(path))
        }
        Err(Errno::EXIST) if parents && is_dir(path) => Ok(()),
        Err(Errno::EXIST) if parents => Err(failure(FailureKind::NotADirectory, text(path), None)),
        Err(errno) => Err(at(path)(errno)),
    };
    if !parents {
        return make(path, mode);
    }
    let ends = path.iter().enumerate().filter(|&(at, &b)| b == b'/' && at > 0).map(|(at, _)| at);
    for end in ends {
        if !is_dir(&path[..end]) {
            make(&path[..end], DIR_MODE_DEFAULT)?;
        }
    }
    match path.ends_with(b"/") {
        true => Ok(()),
        false => make(path, mode),
    }
}

fn is_dir(path: &[u8]) -> bool {
    rustix::fs::statat(CWD, path, AtFlags::empty()).is_ok_and(|stat| kind(&stat) == FileType::Directory)
}

fn check_mode(mode: u32) -> Outcome<u32> {
    if mode <= 0o7777 { Ok(mode) } else { Err(bad("permission bits beyond 0o7777")) }
}

/// Moves. Where the kernel cannot rename (another file system; a directory of an overlay's lower
/// layer), it is copied beside its place, put there in one rename, and removed where it was.
pub fn rename(from: &[u8], to: &[u8]) -> Outcome<()> {
    match rustix::fs::renameat(CWD, from, CWD, to) {
        Ok(()) => Ok(()),
        Err(Errno::XDEV) => {
            copy::copy_over(from, to)?;
            remove(from, true)
        }
        // Either may be what is missing.
        Err(Errno::NOENT) if rustix::fs::statat(CWD, from, AtFlags::SYMLINK_NOFOLLOW).is_ok() => {
            Err(from_errno(Errno::NOENT, to))
        }
        Err(errno @ (Errno::NOENT | Errno::INVAL | Errno::BUSY)) => Err(from_errno(errno, from)),
        Err(errno) => Err(from_errno(errno, to)),
    }
}

/// Removes; a link itself and not what it points to.
pub fn remove(path: &[u8], recursive: bool) -> Outcome<()> {
    let (parent, name) = split(path)?;
    let parent = open_parent(parent, false)?;
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(path))?;
    if kind(&stat) != FileType::Directory {
        return rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(at(path));
    }
    if recursive {
        let root = open_dir(parent.as_fd(), name).map_err(at(path))?;
        let failed = |errno, entry: &Entry<'_>| from_errno(errno, &[path, b"/", entry.path].concat());
        let gone = |done: rustix::io::Result<()>| if done == Err(Errno::NOENT) { Ok(()) } else { done };
        walk(root, path, |visit| {
            match visit {
                Visit::Enter(entry) if kind(entry.stat) == FileType::Directory => return Ok(Walk::Into),
                Visit::Enter(entry) => gone(rustix::fs::unlinkat(entry.dir, entry.name, AtFlags::empty()))
                    .map_err(|errno| failed(errno, entry))?,
                Visit::Leave(entry) => gone(rustix::fs::unlinkat(entry.dir, entry.name, AtFlags::REMOVEDIR))
                    .map_err(|errno| failed(errno, entry))?,
            }
            Ok(Walk::Past)
        })?;
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(at(path))
}

/// Sets permission bits. A link at the path is followed, links below are passed over.
pub fn chmod(path: &[u8], mode: u32, recursive: bool) -> Outcome<()> {
    let mode = Mode::from_raw_mode(check_mode(mode)?);
    rustix::fs::chmodat(CWD, path, mode, AtFlags::empty()).map_err(at(path))?;
    if !recursive || !is_dir(path) {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(at(path))?;
    walk(root, path, |visit| {
        let Visit::Enter(entry) = visit else { return Ok(Walk::Past) };
        let done = match kind(entry.stat) {
            FileType::Symlink => Ok(()),
            FileType::RegularFile | FileType::Directory => {
                // By descriptor: the name may be a link by now.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                rustix::fs::openat(entry.dir, entry.name, flags, Mode::empty())
                    .and_then(|file| rustix::fs::fchmod(&file, mode))
            }
            _ => rustix::fs::chmodat(entry.dir, entry.name, mode, AtFlags::empty()),
        };
        match done {
            Ok(()) | Err(Errno::NOENT | Errno::LOOP) => Ok(Walk::Into),
            Err(errno) => Err(from_errno(errno, &[path, b"/", entry.path].concat())),
        }
    })
}

/// Sets the owner, of links themselves too.
pub fn chown(path: &[u8], owner: &str, recursive: bool) -> Outcome<()> {
    let (uid, gid) = Users::read().owner(owner)?;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(at(path))?;
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map_err(at(path))?;
    if !recursive || kind(&stat) != FileType::Directory {
        return Ok(());
    }
    let root = open_dir(CWD, path).map_err(at(path))?;
    walk(root, path, |visit| {
        let Visit::Enter(entry) = visit else { return Ok(Walk::Past) };
        match rustix::fs::chownat(entry.dir, entry.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(Errno::NOENT) => Ok(Walk::Into),
            Err(errno) => Err(from_errno(errno, &[path, b"/", entry.path].concat())),
        }
    })
}
