//! Watching a tree.
//!
//! ```text
//! new directory ─► watch ─► scan: what was made in it before the watch is reported from the scan,
//!                                 and the event for what was made in between is not reported twice
//! move          ─► two events with one cookie; a half that stays alone is a removal or a creation
//! ```
//!
//! A host that does not read stops this thread; the kernel's queue then overflows, which is said.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;

use den_sys::inotify::{Event, Inotify, ReadFlags, WatchFlags};
use den_wire::agent::{Change, ChangeKind, Failure, FailureKind, Reply};
use minicbor::bytes::ByteVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType};
use rustix::io::Errno;

use super::super::conn::Blocking;
use super::super::failure::{Outcome, at, failure, from_errno};
use super::kind;
use super::tree::names;

/// How long the second half of a move is waited for, in nanoseconds.
const MOVE_WAIT_NANOS: i64 = 5_000_000;

/// Reports until either side closes, or until what is watched is gone.
pub fn watch(conn: &mut Blocking, path: &[u8], recursive: bool, plain: bool) -> Outcome<()> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty()).map_err(at(path))?;
    let inotify = Inotify::new().map_err(|error| limit(error.errno, "inotify instances", path))?;
    let mut watching = Watching {
        inotify,
        root: path.to_vec(),
        recursive: recursive && kind(&stat) == FileType::Directory,
        plain,
        paths: HashMap::new(),
        scanned: HashSet::new(),
        moved_from: None,
        changes: Vec::new(),
        ended: false,
    };
    watching.add(Vec::new(), Scan::Known)?;
    if conn.reply(&Reply::Done).is_err() {
        return Ok(());
    }
    while !watching.ended {
        let wait = Timespec { tv_sec: 0, tv_nsec: MOVE_WAIT_NANOS as _ };
        let wait = watching.moved_from.is_some().then_some(&wait);
        let (mut events, mut closed) = (false, false);
        {
            let mut fds = [
                PollFd::new(&watching.inotify, PollFlags::IN),
                PollFd::from_borrowed_fd(conn.as_fd(), PollFlags::IN | PollFlags::RDHUP),
            ];
            match poll(&mut fds, wait) {
                Ok(0) => {}
                Ok(_) => {
                    events = !fds[0].revents().is_empty();
                    closed = !fds[1].revents().is_empty();
                }
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(from_errno(errno, path)),
            }
        }
        // A host sends nothing to a watch; whatever it does ends it.
        if closed {
            return Ok(());
        }
        if events {
            for event in watching.inotify.read().map_err(|error| limit(error.errno, "inotify", path))? {
                watching.take(event)?;
            }
        } else {
            watching.settle();
        }
        for change in std::mem::take(&mut watching.changes) {
            if conn.reply(&Reply::Changed(change)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn limit(errno: i32, subject: &str, path: &[u8]) -> Failure {
    match Errno::from_raw_os_error(errno) {
        Errno::NOSPC | Errno::MFILE => failure(FailureKind::NoSpace, subject, Some(errno)),
        errno => from_errno(errno, path),
    }
}

/// Whether what a directory holds is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// It was there before the watch.
    Known,
    /// It was made while nobody watched.
    News,
}

struct Watching {
    inotify: Inotify,
    root: Vec<u8>,
    recursive: bool,
    /// See `Request::Watch`.
    plain: bool,
    /// Of each watch, relative to the root.
    paths: HashMap<i32, Vec<u8>>,
    /// Reported from a scan while an event for it may still be in the queue.
    scanned: HashSet<Vec<u8>>,
    /// The first half of a move: cookie, path, whether it is a directory.
    moved_from: Option<(u32, Vec<u8>, bool)>,
    changes: Vec<Change>,
    ended: bool,
}

impl Watching {
    fn full(&self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() { self.root.clone() } else { [&self.root, &b"/"[..], path].concat() }
    }

    /// Watches a directory (at the root also a file) and all below it. What vanishes is passed over.
    fn add(&mut self, path: Vec<u8>, scan: Scan) -> Outcome<()> {
        let mut queue = vec![path];
        while let Some(path) = queue.pop() {
            let full = self.full(&path);
            let mut flags = WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MODIFY
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::ATTRIB;
            if !self.plain {
                flags |= WatchFlags::CLOSE_WRITE;
            }
            if path.is_empty() {
                flags |= WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            } else {
                flags |= WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW | WatchFlags::EXCL_UNLINK;
            }
            match self.inotify.add(&full, flags) {
                Ok(watch) => drop(self.paths.insert(watch, path.clone())),
                Err(error) if !path.is_empty() && matches!(error.errno, libc::ENOENT | libc::ENOTDIR) => continue,
                Err(error) => return Err(limit(error.errno, "inotify watches", &full)),
            }
            if !self.recursive {
                continue;
            }
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let Ok(dir) = rustix::fs::open(&full[..], flags, rustix::fs::Mode::empty()) else { continue };
            for name in names(dir.as_fd()).unwrap_or_default() {
                let Ok(stat) = rustix::fs::statat(&dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) else { continue };
                let below = join(&path, &name);
                if scan == Scan::News {
                    self.change(ChangeKind::Created, below.clone());
                    self.scanned.insert(below.clone());
                }
                if kind(&stat) == FileType::Directory {
                    queue.push(below);
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, kind: ChangeKind, path: Vec<u8>) {
        let change = Change { kind, path: ByteVec::from(path), from: None };
        // The same of one batch is said once: a write is many events.
        let repeats = !self.plain && matches!(kind, ChangeKind::Written | ChangeKind::Attributes);
        if !(repeats && self.changes.contains(&change)) {
            self.changes.push(change);
        }
    }

    /// The queue is empty: half a move stays half, and no event for what was scanned is left.
    fn settle(&mut self) {
        self.scanned.clear();
        if let Some((_, path, is_dir)) = self.moved_from.take() {
            if is_dir {
                self.forget(&path);
            }
            match self.plain {
                true => {
                    let (path, from) = (ByteVec::from(Vec::new()), Some(ByteVec::from(path)));
                    self.changes.push(Change { kind: ChangeKind::Moved, path, from });
                }
                false => self.change(ChangeKind::Removed, path),
            }
        }
    }

    /// Ends the watches of a directory that was moved out, and of all below it.
    fn forget(&mut self, path: &[u8]) {
        let inotify = &self.inotify;
        self.paths.retain(|&watch, there| {
            let out = is_at_or_below(there, path);
            if out {
                inotify.remove(watch);
            }
            !out
        });
    }

    fn take(&mut self, event: Event) -> Outcome<()> {
        let flags = event.flags;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.change(ChangeKind::Overflow, Vec::new());
            return Ok(());
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.paths.remove(&event.watch);
            return Ok(());
        }
        let Some(base) = self.paths.get(&event.watch) else { return Ok(()) };
        let is_dir = flags.contains(ReadFlags::ISDIR);
        let Some(name) = &event.name else {
            if base.is_empty() {
                if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
                    self.change(ChangeKind::Removed, Vec::new());
                    self.ended = true;
                } else if flags.contains(ReadFlags::ATTRIB) {
                    self.change(ChangeKind::Attributes, Vec::new());
                } else if flags.intersects(ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE) {
                    self.change(ChangeKind::Written, Vec::new());
                }
            }
            return Ok(());
        };
        let path = join(base, name);
        // Any other event between the halves of a move shows that the second does not come.
        if !flags.contains(ReadFlags::MOVED_TO) || self.moved_from.as_ref().is_some_and(|half| half.0 != event.cookie) {
            let scanned = std::mem::take(&mut self.scanned);
            self.settle();
            self.scanned = scanned;
        }
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.moved_from = Some((event.cookie, path, is_dir));
        } else if flags.contains(ReadFlags::MOVED_TO) {
            match self.moved_from.take() {
                Some((_, from, _)) => {
                    if is_dir {
                        for there in self.paths.values_mut().filter(|there| is_at_or_below(there, &from)) {
                            *there = [&path[..], &there[from.len()..]].concat();
                        }
                    }
                    let from = Some(ByteVec::from(from));
                    self.changes.push(Change { kind: ChangeKind::Moved, path: ByteVec::from(path), from });
                }
                None => self.created(path, is_dir)?,
            }
        } else if flags.contains(ReadFlags::CREATE) {
            self.created(path, is_dir)?;
        } else if flags.contains(ReadFlags::DELETE) {
            self.scanned.remove(&path);
            self.change(ChangeKind::Removed, path);
        } else if flags.intersects(ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE) {
            self.change(ChangeKind::Written, path);
        } else if flags.contains(ReadFlags::ATTRIB) {
            self.change(ChangeKind::Attributes, path);
        }
        Ok(())
    }

    fn created(&mut self, path: Vec<u8>, is_dir: bool) -> Outcome<()> {
        if !self.scanned.remove(&path) {
            self.change(ChangeKind::Created, path.clone());
        } else if is_dir {
            // Watched and scanned already.
            return Ok(());
        }
        if is_dir && self.recursive { self.add(path, Scan::News) } else { Ok(()) }
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn is_at_or_below(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}
