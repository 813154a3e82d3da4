//! Walking a tree with descriptors, without recursion.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::super::failure::{Outcome, from_errno};
use super::kind;

/// What a walk comes by.
pub enum Visit<'a> {
    /// An entry, before what is in it.
    Enter(&'a Entry<'a>),
    /// A directory that was descended into, after all that is in it.
    Leave(&'a Entry<'a>),
}

/// One entry of a tree.
pub struct Entry<'a> {
    /// The directory that holds it.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a [u8],
    /// Its path from the tree's root.
    pub path: &'a [u8],
    /// Its attributes, a link's own.
    pub stat: &'a Stat,
    /// How deep it lies: 1 in the root.
    pub depth: u32,
}

/// Whether a directory is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Into it, if it is a directory.
    Into,
    /// Past it.
    Past,
}

struct Level {
    dir: OwnedFd,
    names: std::vec::IntoIter<Vec<u8>>,
    /// Of the directory itself.
    stat: Option<Stat>,
    path_len: usize,
}

/// Opens a directory that is no link.
pub fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// The names in a directory, sorted.
pub fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Visits everything below `root`, each directory before what is in it and again after. What
/// vanishes meanwhile is passed over. `prefix` is put before the paths in failures.
pub fn walk(root: OwnedFd, prefix: &[u8], mut visit: impl FnMut(Visit<'_>) -> Outcome<Walk>) -> Outcome<()> {
    let mut path = Vec::new();
    let failed = |errno: Errno, path: &[u8]| from_errno(errno, &[prefix, b"/", path].concat());
    let list = names(root.as_fd()).map_err(|errno| from_errno(errno, prefix))?;
    let mut levels = vec![Level { dir: root, names: list.into_iter(), stat: None, path_len: 0 }];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_len);
        let Some(name) = level.names.next() else {
            let Some(Level { stat: Some(stat), .. }) = levels.pop() else { return Ok(()) };
            let Some(parent) = levels.last() else { return Ok(()) };
            let start = parent.path_len + usize::from(parent.path_len > 0);
            let name = path[start..].to_vec();
            let depth = levels.len() as u32;
            visit(Visit::Leave(&Entry { dir: parent.dir.as_fd(), name: &name, path: &path, stat: &stat, depth }))?;
            continue;
        };
        if level.path_len > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let stat = match rustix::fs::statat(&level.dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failed(errno, &path)),
        };
        let depth = levels.len() as u32;
        let level = &levels[levels.len() - 1];
        let entry = Entry { dir: level.dir.as_fd(), name: &name, path: &path, stat: &stat, depth };
        if visit(Visit::Enter(&entry))? == Walk::Into && kind(&stat) == FileType::Directory {
            let dir = match open_dir(level.dir.as_fd(), &name) {
                Ok(dir) => dir,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(failed(errno, &path)),
            };
            let list = match names(dir.as_fd()) {
                Ok(list) => list,
                Err(Errno::NOENT) => Vec::new(),
                Err(errno) => return Err(failed(errno, &path)),
            };
            let path_len = path.len();
            levels.push(Level { dir, names: list.into_iter(), stat: Some(stat), path_len });
        }
    }
    Ok(())
}
