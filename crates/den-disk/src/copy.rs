//! A tree copied as it is, for disks that lie on plain directories.
//!
//! Owners, modes, times, every attribute (`trusted.overlay.*` too), hard links, devices and holes come
//! along; bytes are shared where the file system can (FICLONE). What vanishes while it is copied is
//! left out, as it would be a moment later.
//!
//! Invariants:
//! - Every step is taken from an open directory, and no link is followed: the tree was written by someone
//!   else's root.
//! - What is reported as copied is on the disk.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use den_sys::SysError;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::{DiskError, open_dir};

/// The deepest tree that is copied. A directory of each side is open per level.
const DEPTH_MAX: usize = 200;
/// The kernel's limits on names of attributes and on one of them.
const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
const XATTR_BYTES_MAX: usize = 64 << 10;
/// What is copied at once where nothing is shared.
const CHUNK_BYTES: usize = 1 << 20;

/// Copies the directory `from` to `to`, which must not be there. What a failure leaves is the caller's
/// to remove.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<(), DiskError> {
    let source = open_dir(from)?;
    let stat = rustix::fs::fstat(&source).map_err(SysError::rustix("stat", from.display()))?;
    rustix::fs::mkdir(to, Mode::from_raw_mode(0o700)).map_err(SysError::rustix("mkdir", to.display()))?;
    let target = open_dir(to)?;
    let mut copy = Copy { root: to.to_owned(), links: HashMap::new(), path: PathBuf::new(), buffer: Vec::new() };
    copy.directory(source.as_fd(), target.as_fd(), &stat, 0)?;
    rustix::fs::syncfs(&target).map_err(SysError::rustix("syncfs", to.display()))?;
    Ok(())
}

struct Copy {
    root: PathBuf,
    /// Where the first name of a file with several of them was copied to.
    links: HashMap<u64, PathBuf>,
    /// Where the copy is at, for messages and links.
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Copy {
    fn error(&self, call: &'static str) -> impl FnOnce(Errno) -> DiskError + use<> {
        let about = self.root.join(&self.path);
        move |errno| SysError::new(call, about.display(), errno.raw_os_error()).into()
    }

    /// Copies what is in `source`, then what is to be said of itself.
    fn directory(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        stat: &Stat,
        depth: usize,
    ) -> Result<(), DiskError> {
        if depth > DEPTH_MAX {
            return Err(DiskError::TooDeep { path: self.root.join(&self.path), limit: DEPTH_MAX });
        }
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(source).map_err(self.error("readdir"))? {
            let name = entry.map_err(self.error("readdir"))?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        for name in names {
            self.path.push(as_path(&name));
            self.entry(source, target, &name, depth)?;
            self.path.pop();
        }
        self.attributes(&in_proc(source, None), &in_proc(target, None))?;
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        rustix::fs::fchown(target, owner.0, owner.1).map_err(self.error("chown"))?;
        rustix::fs::fchmod(target, mode_of(stat)).map_err(self.error("chmod"))?;
        rustix::fs::futimens(target, &times_of(stat)).map_err(self.error("utimens"))
    }

    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> Result<(), DiskError> {
        let stat = match rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.error("stat")(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                return rustix::fs::linkat(rustix::fs::CWD, first, target, name, AtFlags::empty())
                    .map_err(self.error("link"));
            }
            self.links.insert(stat.st_ino, self.root.join(&self.path));
        }
        let beneath = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match kind {
            FileType::Directory => {
                let flags = beneath | OFlags::RDONLY | OFlags::DIRECTORY;
                let inner = match rustix::fs::openat(source, name, flags, Mode::empty()) {
                    Ok(inner) => inner,
                    Err(Errno::NOENT) => return Ok(()),
                    Err(errno) => return Err(self.error("open")(errno)),
                };
                rustix::fs::mkdirat(target, name, Mode::from_raw_mode(0o700)).map_err(self.error("mkdir"))?;
                let outer = rustix::fs::openat(target, name, flags, Mode::empty()).map_err(self.error("open"))?;
                return self.directory(inner.as_fd(), outer.as_fd(), &stat, depth + 1);
            }
            FileType::RegularFile => {
                let flags = beneath | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
                let from = match rustix::fs::openat(source, name, flags, Mode::empty()) {
                    Ok(from) => from,
                    Err(Errno::NOENT) => {
                        self.links.remove(&stat.st_ino);
                        return Ok(());
                    }
                    Err(errno) => return Err(self.error("open")(errno)),
                };
                let flags = beneath | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let to = rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600))
                    .map_err(self.error("create"))?;
                self.contents(&from, &to)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new()).map_err(self.error("readlink"))?;
                rustix::fs::symlinkat(&link, target, name).map_err(self.error("symlink"))?;
            }
            _ => {
                rustix::fs::mknodat(target, name, kind, Mode::empty(), stat.st_rdev).map_err(self.error("mknod"))?;
            }
        }
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        rustix::fs::chownat(target, name, owner.0, owner.1, nofollow).map_err(self.error("chown"))?;
        if kind != FileType::Symlink {
            // The name is ours alone and no link, as it has just been made.
            rustix::fs::chmodat(target, name, mode_of(&stat), AtFlags::empty()).map_err(self.error("chmod"))?;
        }
        // After the owner: a change of it takes capabilities away.
        self.attributes(&in_proc(source, Some(name)), &in_proc(target, Some(name)))?;
        rustix::fs::utimensat(target, name, &times_of(&stat), nofollow).map_err(self.error("utimens"))
    }

    /// Shares the bytes, or copies them without the holes.
    fn contents(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), DiskError> {
        if rustix::fs::ioctl_ficlone(to, from).is_ok() {
            return Ok(());
        }
        let size = rustix::fs::fstat(from).map_err(self.error("stat"))?.st_size as u64;
        rustix::fs::ftruncate(to, size).map_err(self.error("truncate"))?;
        let mut at = 0;
        while at < size {
            // A file system that knows no holes has data up to the end.
            let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let hole = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(size).min(size);
            at = data;
            while at < hole {
                self.buffer.resize(CHUNK_BYTES, 0);
                let want = (hole - at).min(CHUNK_BYTES as u64) as usize;
                let read = rustix::io::pread(from, &mut self.buffer[..want], at).map_err(self.error("read"))?;
                if read == 0 {
                    return Ok(());
                }
                let mut done = 0;
                while done < read {
                    done += rustix::io::pwrite(to, &self.buffer[done..read], at + done as u64)
                        .map_err(self.error("write"))?;
                }
                at += read as u64;
            }
            if hole == data {
                break;
            }
        }
        Ok(())
    }

    /// Both paths end in a name that is not followed.
    fn attributes(&mut self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut list = vec![0_u8; 1024];
        let length = loop {
            match rustix::fs::llistxattr(from, &mut list[..]) {
                Ok(length) => break length,
                Err(Errno::RANGE) if list.len() < XATTR_LIST_BYTES_MAX => list.resize(XATTR_LIST_BYTES_MAX, 0),
                Err(Errno::NOTSUP | Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(self.error("listxattr")(errno)),
            }
        };
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = CString::new(name).expect("split at NUL");
            self.buffer.resize(CHUNK_BYTES.max(XATTR_BYTES_MAX), 0);
            let length = match rustix::fs::lgetxattr(from, &name, &mut self.buffer[..XATTR_BYTES_MAX]) {
                Ok(length) => length,
                Err(Errno::NODATA | Errno::NOENT) => continue,
                Err(errno) => return Err(self.error("getxattr")(errno)),
            };
            rustix::fs::lsetxattr(to, &name, &self.buffer[..length], rustix::fs::XattrFlags::empty())
                .map_err(self.error("setxattr"))?;
        }
        Ok(())
    }
}

/// A path by which an open directory, or what has a name in it, is reached.
fn in_proc(directory: BorrowedFd<'_>, name: Option<&CStr>) -> PathBuf {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    match name {
        Some(name) => path.join(as_path(name)),
        // Past the link that /proc shows.
        None => path.join("."),
    }
}

fn as_path(name: &CStr) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

fn mode_of(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times_of(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
