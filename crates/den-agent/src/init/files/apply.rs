//! Many changes at once: all of them, or none.
//!
//! ```text
//! op + data ─► /.den-merge-<step>/<n>    put aside: files with all their attributes, links, pipes
//! end       ─► every path is held against what was expected of it; the reserve is given back
//!           ─► renames, removals, directories, attributes, in the order in which they came
//!           ─► /.den-merge-<step> is gone
//! ```
//!
//! Invariants:
//! - Until the last path was checked, a failure (a full disk, a path that changed, a host that went
//!   away) leaves everything as it was. What can fail for want of room is done before: bytes are put
//!   aside, files of a lower layer whose attributes change are copied up, and a reserve is held.
//! - No link is followed and no mount is crossed on the way to a path.
//! - Each path changes in one call: whoever reads it sees the old or the new.
//!
//! A failure after that is told as `HalfDone`; the host has kept the state from before.

use std::collections::{HashMap, HashSet};
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use den_wire::FrameKind;
use den_wire::agent::{
    APPLY_MESSAGE_BYTES_MAX, APPLY_OPS_MAX, Apply, ApplyAction, ApplyOp, Dress, Expected, Failure, FailureKind,
};
use den_wire::frame::blocking::read_frame_into;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::super::conn::Blocking;
use super::super::failure::{Outcome, at, bad, failure, from_errno, text};
use super::write::{set_owner_and_mode, write_sparse};
use super::{edit, kind, tree};

/// How much is read ahead, so that small files cost no call for each frame, in bytes.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// What is held while bytes are put aside, for the small things that the commit needs room for.
const RESERVE_BYTES: usize = 1 << 20;

/// How often a resolution is tried that a rename inside disturbed.
const RESOLVE_TRIES: u32 = 16;

const NANOS: i64 = 1_000_000_000;

/// Applies what the connection sends.
pub fn apply(conn: &mut Blocking, request: &Apply) -> Outcome<()> {
    if request.ops > APPLY_OPS_MAX {
        return Err(bad(format!("{} changes at once; at most {APPLY_OPS_MAX}", request.ops)));
    }
    let root = request.root.as_ref().map_or(&b"/"[..], |root| &root[..]);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = Tree { root: rustix::fs::open(root, flags, Mode::empty()).map_err(at(root))?, last: None };
    let mut aside = Aside::make(tree, root, request.step)?;
    aside.receive(conn, request.ops)?;
    aside.check()?;
    aside.link()?;
    aside.commit()
}

/// The tree that is changed. Paths in it are absolute, and so are those in failures.
struct Tree {
    root: OwnedFd,
    /// The directory that was opened last.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Tree {
    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let below = match path.strip_prefix(b"/").unwrap_or(path) {
            b"" => b".",
            below => below,
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        for _ in 0..RESOLVE_TRIES {
            match rustix::fs::openat2(&self.root, below, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The directory above a path.
    fn above(&mut self, path: &[u8]) -> rustix::io::Result<Rc<OwnedFd>> {
        let above = parent(path);
        if let Some((known, dir)) = &self.last
            && known == above
        {
            return Ok(dir.clone());
        }
        let dir = Rc::new(self.open(above, OFlags::PATH | OFlags::DIRECTORY)?);
        self.last = Some((above.to_vec(), dir.clone()));
        Ok(dir)
    }

    /// What is exactly at a path. One with a mount over it is refused with `EXDEV`.
    fn stat(&self, path: &[u8]) -> rustix::io::Result<Stat> {
        rustix::fs::fstat(self.open(path, OFlags::PATH | OFlags::NOFOLLOW)?)
    }
}

/// The path above, `/` for those in it.
fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|&b| b == b'/') {
        Some(0) | None => b"/",
        Some(slash) => &path[..slash],
    }
}

fn name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(path, |slash| &path[slash + 1..])
}

/// What was received, and the folder in which it lies until it is moved to its place.
struct Aside {
    tree: Tree,
    dir: OwnedFd,
    /// The folder's name in the root, and the path by which it is removed.
    name: Vec<u8>,
    path: Vec<u8>,
    ops: Vec<ApplyOp>,
    /// Paths that an operation puts a file at, with the operation.
    put: HashMap<Vec<u8>, usize>,
    reserve: Option<OwnedFd>,
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = edit::remove(&self.path, true);
    }
}

impl Aside {
    fn make(tree: Tree, root: &[u8], step: u64) -> Outcome<Self> {
        let name = format!(".den-merge-{step}").into_bytes();
        let path = [root, b"/", &name[..]].concat();
        match edit::remove(&path, true) {
            Err(failure) if failure.kind != FailureKind::NotFound => return Err(failure),
            _ => {}
        }
        rustix::fs::mkdirat(&tree.root, &name[..], Mode::RWXU).map_err(at(&path))?;
        let dir = match tree::open_dir(tree.root.as_fd(), &name) {
            Ok(dir) => dir,
            Err(errno) => {
                let _ = rustix::fs::unlinkat(&tree.root, &name[..], AtFlags::REMOVEDIR);
                return Err(from_errno(errno, &path));
            }
        };
        let mut aside = Self { tree, dir, name, path, ops: Vec::new(), put: HashMap::new(), reserve: None };
        aside.hold_reserve().map_err(at(&aside.path))?;
        Ok(aside)
    }

    fn hold_reserve(&mut self) -> rustix::io::Result<()> {
        let reserve = self.new_file(b"reserve")?;
        // Not zeros, which some file systems keep in no room.
        let mut position = 0;
        write_sparse(reserve.as_fd(), &vec![0xa5; RESERVE_BYTES], &mut position)?;
        self.reserve = Some(reserve);
        Ok(())
    }

    fn new_file(&self, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)
    }

    fn receive(&mut self, conn: &mut Blocking, ops: u64) -> Outcome<()> {
        let mut from = BufReader::with_capacity(READ_AHEAD_BYTES, conn);
        let mut payload = Vec::new();
        let mut message_bytes = 0;
        let gone = |_| failure(FailureKind::Other, "connection", None);
        loop {
            match read_frame_into(&mut from, &mut payload).map_err(gone)? {
                FrameKind::End if self.ops.len() as u64 == ops => return Ok(()),
                FrameKind::Message if (self.ops.len() as u64) < ops => {}
                _ => return Err(bad("a frame where none belongs")),
            }
            message_bytes += payload.len() as u64;
            if message_bytes > APPLY_MESSAGE_BYTES_MAX {
                return Err(bad(format!("changes of more than {APPLY_MESSAGE_BYTES_MAX} bytes")));
            }
            let op: ApplyOp = minicbor::decode(&payload).map_err(|error| match error.is_unknown_variant() {
                true => failure(FailureKind::Unsupported, "a change", None),
                false => bad("a change"),
            })?;
            check_path(&op.path)?;
            let index = self.ops.len();
            let aside = index.to_string().into_bytes();
            let failed = |errno| from_errno(errno, &op.path);
            match &op.action {
                ApplyAction::File(dress) => {
                    let file = self.new_file(&aside).map_err(failed)?;
                    let mut position = 0;
                    loop {
                        match read_frame_into(&mut from, &mut payload).map_err(gone)? {
                            FrameKind::Data => {
                                write_sparse(file.as_fd(), &payload, &mut position).map_err(failed)?;
                            }
                            FrameKind::End => break,
                            FrameKind::Message => return Err(bad("a frame that is no data")),
                        }
                    }
                    rustix::fs::ftruncate(&file, position).map_err(failed)?;
                    set(&file, dress).map_err(failed)?;
                    self.put.insert(op.path.to_vec(), index);
                }
                ApplyAction::Symlink { target, dress } => {
                    rustix::fs::symlinkat(&target[..], &self.dir, &aside[..]).map_err(failed)?;
                    set_named(&self.dir, &aside, dress, FileType::Symlink).map_err(failed)?;
                }
                ApplyAction::Fifo(dress) => {
                    let mode = Mode::RUSR | Mode::WUSR;
                    rustix::fs::mknodat(&self.dir, &aside[..], FileType::Fifo, mode, 0).map_err(failed)?;
                    set_named(&self.dir, &aside, dress, FileType::Fifo).map_err(failed)?;
                }
                ApplyAction::Link { to } => {
                    check_path(to)?;
                    // A file that is there is given its new name once it was checked: that changes its
                    // time of change.
                    if let Some(first) = self.put.get(&to[..]) {
                        let first = first.to_string();
                        rustix::fs::linkat(&self.dir, &*first, &self.dir, &aside[..], AtFlags::empty())
                            .map_err(failed)?;
                    }
                }
                ApplyAction::Dress(dress) => self.try_dress(dress, &aside).map_err(failed)?,
                ApplyAction::Directory(dress) => self.try_dress(dress, &aside).map_err(failed)?,
                ApplyAction::Remove => {}
            }
            self.ops.push(op);
        }
    }

    /// Sets attributes on a file that goes away, for what the kernel refuses of them.
    fn try_dress(&self, dress: &Dress, aside: &[u8]) -> rustix::io::Result<()> {
        if dress.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(Errno::INVAL);
        }
        if dress.uid.is_none() && dress.gid.is_none() && dress.xattrs.is_empty() {
            return Ok(());
        }
        let dress = Dress {
            // What is removed is not on it, and default access lists are of directories only.
            xattrs: dress
                .xattrs
                .iter()
                .filter(|xattr| xattr.value.is_some() && &xattr.name[..] != b"system.posix_acl_default")
                .cloned()
                .collect(),
            ..dress.clone()
        };
        let file = self.new_file(aside)?;
        let done = set(&file, &dress);
        let _ = rustix::fs::unlinkat(&self.dir, aside, AtFlags::empty());
        done
    }

    /// Holds every path against what was expected of it. Files whose attributes will change are
    /// copied up from a lower layer first, since that takes room.
    fn check(&mut self) -> Outcome<()> {
        let mut removed: HashSet<&[u8]> = HashSet::new();
        let mut made: HashSet<&[u8]> = HashSet::new();
        for op in &self.ops {
            let path = &op.path[..];
            let meanwhile = || failure(FailureKind::ChangedMeanwhile, text(path), None);
            let failed = |errno| from_errno(errno, path);
            let there = match self.tree.stat(path) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                Err(errno) => return Err(failed(errno)),
            };
            // What will not be there any more when it is this one's turn.
            let gone = there.is_none() || removed.contains(path);
            match (&op.expect, &there) {
                (Some(expected), Some(stat)) if !gone && is_as(expected, stat) => {}
                (None, _) if gone && !matches!(op.action, ApplyAction::Remove | ApplyAction::Dress(_)) => {}
                // It is what an earlier operation makes of it.
                (None, _) if made.contains(path) && matches!(op.action, ApplyAction::Dress(_)) => {}
                _ => return Err(meanwhile()),
            }
            let above = parent(path);
            let has_place = made.contains(above)
                || !removed.contains(above) && self.tree.open(above, OFlags::PATH | OFlags::DIRECTORY).is_ok();
            if !has_place {
                return Err(meanwhile());
            }
            match &op.action {
                ApplyAction::Remove => {
                    if there.as_ref().is_some_and(|stat| kind(stat) == FileType::Directory) {
                        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                        let dir = self.tree.open(path, flags).map_err(failed)?;
                        for name in tree::names(dir.as_fd()).map_err(failed)? {
                            let below = [path, b"/", &name].concat();
                            if !removed.contains(&below[..]) {
                                return Err(failure(FailureKind::ChangedMeanwhile, text(&below), None));
                            }
                        }
                    }
                    made.remove(path);
                    removed.insert(path);
                }
                ApplyAction::Directory(_) if gone => {
                    removed.remove(path);
                    made.insert(path);
                }
                ApplyAction::Directory(_) => return Err(meanwhile()),
                ApplyAction::Dress(_) => {
                    if there.as_ref().is_some_and(|stat| !gone && kind(stat) == FileType::RegularFile) {
                        // Opening for writing copies up and changes nothing else. One that runs was
                        // copied up when it was written, or cannot be until it ends.
                        match self.tree.open(path, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK) {
                            Ok(_) | Err(Errno::TXTBSY) => {}
                            Err(errno) => return Err(failed(errno)),
                        }
                    }
                }
                _ => {
                    let is_dir = there.as_ref().is_some_and(|stat| kind(stat) == FileType::Directory);
                    if is_dir && !gone {
                        return Err(meanwhile());
                    }
                    removed.remove(path);
                }
            }
        }
        Ok(())
    }

    /// Puts new names of files that are there aside.
    fn link(&mut self) -> Outcome<()> {
        for (index, op) in self.ops.iter().enumerate() {
            if let ApplyAction::Link { to } = &op.action
                && !self.put.contains_key(&to[..])
            {
                let dir = self.tree.above(to).map_err(at(to))?;
                let aside = index.to_string();
                rustix::fs::linkat(&dir, name(to), &self.dir, &*aside, AtFlags::empty()).map_err(at(to))?;
            }
        }
        Ok(())
    }

    fn commit(mut self) -> Outcome<()> {
        // What its room is for begins now.
        self.reserve = None;
        rustix::fs::unlinkat(&self.dir, "reserve", AtFlags::empty()).map_err(at(&self.path))?;
        let ops = std::mem::take(&mut self.ops);
        // Times of directories last: what happens in them changes them.
        let mut times = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if let Err(errno) = self.commit_one(index, op, &mut times) {
                return Err(match index {
                    0 => from_errno(errno, &op.path),
                    _ => half_done(errno, &op.path),
                });
            }
        }
        // The folder goes before the times, since it lies in a directory too.
        let _ = rustix::fs::unlinkat(&self.tree.root, &self.name[..], AtFlags::REMOVEDIR);
        for (path, mtime) in times.iter().rev() {
            let set = self.tree.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW);
            set.and_then(|dir| rustix::fs::futimens(&dir, &modified(*mtime)))
                .map_err(|errno| half_done(errno, path))?;
        }
        Ok(())
    }

    fn commit_one<'a>(
        &mut self,
        index: usize,
        op: &'a ApplyOp,
        times: &mut Vec<(&'a [u8], i64)>,
    ) -> rustix::io::Result<()> {
        let path = &op.path[..];
        let dir = self.tree.above(path)?;
        match &op.action {
            ApplyAction::File(_) | ApplyAction::Symlink { .. } | ApplyAction::Fifo(_) | ApplyAction::Link { .. } => {
                let aside = index.to_string();
                rustix::fs::renameat(&self.dir, &*aside, &dir, name(path))?;
                // Between two names of one file rename(2) does nothing.
                if matches!(op.action, ApplyAction::Link { .. }) {
                    let _ = rustix::fs::unlinkat(&self.dir, &*aside, AtFlags::empty());
                }
                Ok(())
            }
            ApplyAction::Remove => {
                self.tree.last = None;
                match rustix::fs::unlinkat(&dir, name(path), AtFlags::empty()) {
                    Err(Errno::ISDIR) => rustix::fs::unlinkat(&dir, name(path), AtFlags::REMOVEDIR),
                    other => other,
                }
            }
            ApplyAction::Directory(dress) => {
                rustix::fs::mkdirat(&dir, name(path), Mode::RWXU)?;
                let made = tree::open_dir(dir.as_fd(), name(path))?;
                times.extend(dress.mtime_ns.map(|mtime| (path, mtime)));
                set(&made, &Dress { mtime_ns: None, ..dress.clone() })
            }
            ApplyAction::Dress(dress) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let file_type = kind(&self.tree.stat(path)?);
                match file_type {
                    FileType::Directory => {
                        let there = self.tree.open(path, flags | OFlags::DIRECTORY)?;
                        times.extend(dress.mtime_ns.map(|mtime| (path, mtime)));
                        set(&there, &Dress { mtime_ns: None, ..dress.clone() })
                    }
                    FileType::RegularFile => set(&self.tree.open(path, flags)?, dress),
                    other => set_named(&dir, name(path), dress, other),
                }
            }
        }
    }
}

fn half_done(errno: Errno, path: &[u8]) -> Failure {
    failure(FailureKind::HalfDone, text(path), Some(errno.raw_os_error()))
}

/// Absolute, and made of names only.
fn check_path(path: &[u8]) -> Outcome<()> {
    let Some(below) = path.strip_prefix(b"/") else { return Err(bad(text(path))) };
    let names = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    let is_root = below.is_empty();
    if is_root || below.split(|&b| b == b'/').all(names) { Ok(()) } else { Err(bad(text(path))) }
}

fn is_as(expected: &Expected, stat: &Stat) -> bool {
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(NANOS).saturating_add(nanos);
    expected.mode == stat.st_mode
        && (expected.uid, expected.gid) == (stat.st_uid, stat.st_gid)
        && expected.size.is_none_or(|size| size == stat.st_size as u64)
        && expected.mtime_ns.is_none_or(|mtime| mtime == nanos(stat.st_mtime, stat.st_mtime_nsec as i64))
        && expected.ctime_ns.is_none_or(|ctime| ctime == nanos(stat.st_ctime, stat.st_ctime_nsec as i64))
}

/// Gives a file or directory what is asked. The owner first, with which the kernel takes set-id bits
/// and capabilities away; then the mode; capabilities with the other extended attributes; the time last.
fn set(file: &OwnedFd, dress: &Dress) -> rustix::io::Result<()> {
    set_owner_and_mode(file, Some((dress.uid, dress.gid)), dress.mode)?;
    for xattr in &dress.xattrs {
        match &xattr.value {
            Some(value) => rustix::fs::fsetxattr(file, &xattr.name[..], value, XattrFlags::empty())?,
            None => match rustix::fs::fremovexattr(file, &xattr.name[..]) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno),
            },
        }
    }
    match dress.mtime_ns {
        Some(mtime) => rustix::fs::futimens(file, &modified(mtime)),
        None => Ok(()),
    }
}

/// The same for what cannot be opened. Links and pipes have no attributes of `user.*`.
fn set_named(dir: &OwnedFd, name: &[u8], dress: &Dress, file_type: FileType) -> rustix::io::Result<()> {
    if dress.uid.is_some() || dress.gid.is_some() {
        let (uid, gid) = (dress.uid.map(Uid::from_raw), dress.gid.map(Gid::from_raw));
        rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Some(mode) = dress.mode
        && file_type != FileType::Symlink
    {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    match dress.mtime_ns {
        Some(mtime) => rustix::fs::utimensat(dir, name, &modified(mtime), AtFlags::SYMLINK_NOFOLLOW),
        None => Ok(()),
    }
}

fn modified(nanos: i64) -> Timestamps {
    let time = Timespec { tv_sec: nanos.div_euclid(NANOS), tv_nsec: nanos.rem_euclid(NANOS) as _ };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ }, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_absolute_and_of_names() {
        for good in [&b"/"[..], b"/a", b"/a/b", b"/...", b"/a b/\xff"] {
            assert_eq!(check_path(good), Ok(()), "{good:?}");
        }
        for bad in [&b""[..], b"a", b"//a", b"/a/", b"/a/..", b"/./a", b"/a\0"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_has_a_name_and_a_place() {
        assert_eq!((parent(b"/a"), name(b"/a")), (&b"/"[..], &b"a"[..]));
        assert_eq!((parent(b"/a/b"), name(b"/a/b")), (&b"/a"[..], &b"b"[..]));
    }
}
