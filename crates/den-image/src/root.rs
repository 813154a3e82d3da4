//! The folder of one layer, in which every path of the layer stays.
//!
//! ```text
//! lib/x.so ─► parent `lib` ─ openat2(IN_ROOT) ─► /usr/lib of the layer, a descriptor ─► openat(…, "x.so", NOFOLLOW)
//! ```
//!
//! Links in a parent are followed as if the layer's folder were `/`, since with merged /usr honest
//! layers need it. Links in the last part are never followed.
//!
//! Invariant: every call that makes something takes a descriptor beneath the root and a name
//! without a slash. Source: openat2(2), Linux 5.6.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat, unlinkat},
    io::Errno,
};

use crate::{ImageError, error::At as _, limits::PATH_BYTES_MAX, tape::show};

/// A path in a layer, split into its folder and its name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LayerPath {
    /// Without slashes at its ends; empty for the root.
    pub parent: Vec<u8>,
    /// The last part; empty for the root itself.
    pub name: Vec<u8>,
}

impl LayerPath {
    /// Takes `./a/b/`, `/a/b` and `a//b` alike.
    ///
    /// Errors: `..` anywhere, a zero byte, or too long.
    pub fn parse(raw: &[u8]) -> Result<Self, ImageError> {
        let refuse = |why: &str| Err(ImageError::BadLayer(format!("the path `{}` {why}", show(raw))));
        if raw.len() > PATH_BYTES_MAX {
            return refuse("has more than 4,095 bytes");
        }
        let mut parent = Vec::with_capacity(raw.len());
        let mut name: &[u8] = b"";
        for part in raw.split(|&b| b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return refuse("climbs with `..`"),
                _ if part.contains(&0) => return refuse("has a zero byte in it"),
                _ if part.len() > 255 => return refuse("has a part of more than 255 bytes"),
                _ => {}
            }
            if !name.is_empty() {
                if !parent.is_empty() {
                    parent.push(b'/');
                }
                parent.extend_from_slice(name);
            }
            name = part;
        }
        Ok(Self { parent, name: name.to_vec() })
    }
}

/// An open root, with the parent that was opened last.
pub(crate) struct Root {
    dir: OwnedFd,
    path: PathBuf,
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Root {
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty()).at("cannot open", path)?;
        Ok(Self { dir, path: path.to_owned(), last: None })
    }

    /// Where the root is on the host, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something changed that the parent opened last may have been reached through.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Opens the folder `parent`, making what is missing of it.
    pub fn parent(&mut self, parent: &[u8]) -> Result<BorrowedFd<'_>, ImageError> {
        if parent.is_empty() {
            return Ok(self.dir.as_fd());
        }
        if !matches!(&self.last, Some((last, _)) if last == parent) {
            let fd = match self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    self.make(parent)?;
                    self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY)
                }
                other => other,
            };
            self.last = Some((parent.to_vec(), fd.map_err(|errno| self.explain(errno, parent))?));
        }
        let (_, fd) = self.last.as_ref().expect("set above");
        Ok(fd.as_fd())
    }

    /// Opens something that is there already, with links in it followed beneath the root.
    pub fn resolve(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        // A rename anywhere on the host while `..` in a link is resolved gives EAGAIN: openat2(2).
        for _ in 0..128 {
            match openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// `mkdir -p`, each part beneath the root.
    fn make(&self, path: &[u8]) -> Result<(), ImageError> {
        let mut end = 0;
        while end < path.len() {
            let start = if end == 0 { 0 } else { end + 1 };
            end = path[start..].iter().position(|&b| b == b'/').map_or(path.len(), |at| start + at);
            let above = self
                .resolve(&path[..start.saturating_sub(1)], OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|errno| self.explain(errno, path))?;
            match mkdirat(&above, OsStr::from_bytes(&path[start..end]), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.explain(errno, path)),
            }
        }
        Ok(())
    }

    /// Why a path did not lead where the layer said. Links and files in the way are the layer's fault.
    pub fn explain(&self, errno: Errno, path: &[u8]) -> ImageError {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG => {
                ImageError::BadLayer(format!("`{}` leads through something that is no folder in it", show(path)))
            }
            _ => ImageError::Storage {
                call: "cannot write",
                path: self.path.join(OsStr::from_bytes(path)),
                source: errno.into(),
            },
        }
    }
}

/// Removes `name` in `parent`, with all that is in it. What is not there is no error.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let name = OsStr::from_bytes(name);
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            remove_tree(fd.as_fd(), child)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// What `name` in `parent` is, without following it.
pub(crate) fn kind_of(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match statat(parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_its_folder_and_its_name() {
        let check = |raw: &str, parent: &str, name: &str| {
            let path = LayerPath::parse(raw.as_bytes()).unwrap();
            assert_eq!((path.parent.as_slice(), path.name.as_slice()), (parent.as_bytes(), name.as_bytes()), "{raw}");
        };
        check("a", "", "a");
        check("./a/b/", "a", "b");
        check("/a//b/./c", "a/b", "c");
        check("./", "", "");
        check("a/.../b", "a/...", "b");
    }

    #[test]
    fn a_path_does_not_climb() {
        for raw in [&b"../a"[..], b"a/..", b"a/../b", b"..", b"/../../etc", b"a\0b", &[b'x'; 300], &[b'/'; 5000]] {
            assert!(LayerPath::parse(raw).is_err(), "{}", show(raw));
        }
    }
}
