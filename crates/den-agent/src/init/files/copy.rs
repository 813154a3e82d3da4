//! Moving where the kernel cannot rename: a copy with all its attributes, put in place at once.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use den_wire::DATA_CHUNK_BYTES;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::failure::{Outcome, at, from_errno};
use super::tree::{Visit, Walk, open_dir, walk};
use super::write::{open_parent, split, temporary_name, write_sparse};
use super::{edit, kind, xattr};

/// Copies `from` over `to`, which is what it was until all is copied.
pub fn copy_over(from: &[u8], to: &[u8]) -> Outcome<()> {
    let (from_parent, from_name) = split(from)?;
    let from_parent = open_parent(from_parent, false)?;
    let stat = rustix::fs::statat(&from_parent, from_name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(from))?;
    let (to_parent, to_name) = split(to)?;
    let to_dir = open_parent(to_parent, false)?;
    if is_below(&to_dir, &stat).map_err(at(to))? {
        return Err(from_errno(Errno::INVAL, to));
    }
    let temporary = temporary_name();
    let temporary_path = [to_parent, b"/", &temporary[..]].concat();
    let done = copy(&from_parent, from_name, &stat, &to_dir, &temporary, from)
        .and_then(|()| rustix::fs::renameat(&to_dir, &temporary[..], &to_dir, to_name).map_err(at(to)));
    if done.is_err() {
        let _ = edit::remove(&temporary_path, true);
    }
    done
}

/// Whether a directory is `top` or lies below it.
fn is_below(dir: &OwnedFd, top: &Stat) -> rustix::io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    let mut here = rustix::fs::fstat(&dir)?;
    loop {
        if (here.st_dev, here.st_ino) == (top.st_dev, top.st_ino) {
            return Ok(true);
        }
        dir = rustix::fs::openat(&dir, c"..", flags, Mode::empty())?;
        let above = rustix::fs::fstat(&dir)?;
        if (above.st_dev, above.st_ino) == (here.st_dev, here.st_ino) {
            return Ok(false);
        }
        here = above;
    }
}

fn copy(from_dir: &OwnedFd, name: &[u8], stat: &Stat, to_dir: &OwnedFd, to_name: &[u8], about: &[u8]) -> Outcome<()> {
    if kind(stat) != FileType::Directory {
        return copy_one(from_dir.as_fd(), name, stat, to_dir.as_fd(), to_name).map_err(at(about));
    }
    let root = open_dir(from_dir.as_fd(), name).map_err(at(about))?;
    let again = open_dir(from_dir.as_fd(), name).map_err(at(about))?;
    let mut made = vec![make_dir(to_dir.as_fd(), to_name).map_err(at(about))?];
    let top = open_dir(to_dir.as_fd(), to_name).map_err(at(about))?;
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    walk(root, about, |visit| {
        let (entry, entering) = match &visit {
            Visit::Enter(entry) => (*entry, true),
            Visit::Leave(entry) => (*entry, false),
        };
        let failed = |errno| from_errno(errno, &[about, b"/", entry.path].concat());
        let Some(to) = made.last() else { return Ok(Walk::Past) };
        let is_dir = kind(entry.stat) == FileType::Directory;
        if is_dir && entering {
            made.push(make_dir(to.as_fd(), entry.name).map_err(failed)?);
            return Ok(Walk::Into);
        }
        if is_dir {
            let from = open_dir(entry.dir, entry.name).map_err(failed)?;
            dress(&from, to, entry.stat).map_err(failed)?;
            made.pop();
            return Ok(Walk::Past);
        }
        if entry.stat.st_nlink > 1 {
            let inode = (entry.stat.st_dev, entry.stat.st_ino);
            if let Some(first) = links.get(&inode) {
                rustix::fs::linkat(&top, &first[..], to, entry.name, AtFlags::empty()).map_err(failed)?;
                return Ok(Walk::Past);
            }
            links.insert(inode, entry.path.to_vec());
        }
        copy_one(entry.dir, entry.name, entry.stat, to.as_fd(), entry.name).map_err(failed)?;
        Ok(Walk::Past)
    })?;
    dress(&again, &top, stat).map_err(at(about))
}

fn make_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
    open_dir(dir, name)
}

/// Gives a copy its owner, mode, extended attributes and times, in an order in which none undoes another.
fn dress(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    xattr::set(to, &xattr::list(from)?)?;
    rustix::fs::futimens(to, &times(stat))
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Copies what is no directory.
fn copy_one(
    from_dir: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    to_dir: BorrowedFd<'_>,
    to_name: &[u8],
) -> rustix::io::Result<()> {
    match kind(stat) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let from = rustix::fs::openat(from_dir, name, flags, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let to = rustix::fs::openat(to_dir, to_name, flags, Mode::RUSR | Mode::WUSR)?;
            copy_bytes(&from, &to)?;
            return dress(&from, &to, stat);
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from_dir, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to_dir, to_name)?;
        }
        file_type => {
            rustix::fs::mknodat(to_dir, to_name, file_type, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
        }
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to_dir, to_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(to_dir, to_name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// Copies data, not holes.
fn copy_bytes(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut buffer = vec![0; DATA_CHUNK_BYTES];
    let mut position = 0;
    loop {
        match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(data) => position = data,
            // No data from here on.
            Err(Errno::NXIO) => break,
            // A file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
        match rustix::io::pread(from, &mut buffer[..], position) {
            Ok(0) => break,
            Ok(read) => write_sparse(to.as_fd(), &buffer[..read], &mut position)?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::ftruncate(to, rustix::fs::fstat(from)?.st_size as u64)
}
