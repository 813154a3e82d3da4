//! When the content of a snapshot is settled: long before the call that takes it returns.
//!
//! ```text
//! call      flush ─► transaction stands ─► root copied ─► name entered ─► next one may begin ─► written out ─► returns
//! watcher     looks for the name · · · · · · · · · · · · · · · · ·│joins a transaction │settled
//!           └───────────── about half of the time ─────────────────────────────────────┘
//! ```
//!
//! A commit of btrfs first lets nobody change anything, copies the root, enters the name of the snapshot, and
//! then lets the next transaction begin while it writes this one out. The name is found in the tree once the
//! root was copied; a change made elsewhere then waits for the next transaction, so it returns when that has
//! begun. What is written to the source from then on is not in the snapshot, and shows as a change of it: its
//! generation and what it had reserved are those of the commit.
//!
//! Not earlier: what is reserved while the transaction stands is let go by it, though it is used by the next
//! one, and the change could not be seen (see `den-disk`, `dirty`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::{DIR_ITEM, Search, snapshot, u16_at, vol_args};
use crate::SysError;

/// Between two looks for the name, at least, and this part of the time that it has taken so far: a look takes
/// some microseconds, and where much is under way many look.
const PAUSE: Duration = Duration::from_micros(80);
const PAUSE_PART: u32 = 10;
/// What stands before the name in an entry: key, transaction, two lengths, a type. btrfs_tree.h.
const ENTRY_HEAD: usize = 30;
/// More than the entries of one hash take.
const LOOK_WORDS: usize = 4096 / 8;

/// A snapshot whose content is settled. It has its name once [`Snapshot::finish`] returns.
#[derive(Debug)]
#[must_use = "it may still fail"]
pub struct Snapshot {
    /// None: it is finished.
    rest: Option<JoinHandle<Result<(), SysError>>>,
}

impl Snapshot {
    /// Waits until it is on the disk.
    pub fn finish(self) -> Result<(), SysError> {
        self.rest.map_or(Ok(()), join)
    }
}

/// Begins a snapshot as [`snapshot`] takes it, and returns when nothing that is done to `source` any more
/// will be in it. `beside` is a directory of the same file system that is none of the two; its time of
/// change moves.
pub fn begin_snapshot(
    source: OwnedFd,
    into: OwnedFd,
    name: &str,
    read_only: bool,
    beside: BorrowedFd<'_>,
) -> Result<Snapshot, SysError> {
    vol_args(name)?;
    let mut entry = Entry::new(into.as_fd(), name)?;
    let watched = into.try_clone().map_err(|error| SysError::io("dup", std::path::Path::new(name), &error))?;
    let owned = name.to_owned();
    let work = std::thread::Builder::new()
        .name("den-snapshot".into())
        .stack_size(128 << 10)
        .spawn(move || snapshot(source.as_fd(), into.as_fd(), &owned, read_only))
        .map_err(|error| SysError::io("spawn a thread for", std::path::Path::new(name), &error))?;
    let began = Instant::now();
    while !work.is_finished() {
        match entry.is_there(watched.as_fd()) {
            Ok(false) => std::thread::sleep(PAUSE.max(began.elapsed() / PAUSE_PART)),
            Ok(true) if next_transaction(beside).is_ok() => return Ok(Snapshot { rest: Some(work) }),
            // It cannot be known before the end.
            _ => break,
        }
    }
    join(work).map(|()| Snapshot { rest: None })
}

fn join(work: JoinHandle<Result<(), SysError>>) -> Result<(), SysError> {
    work.join().unwrap_or_else(|_| Err(SysError::new("ioctl(BTRFS_SNAP_CREATE_V2)", "its thread", libc::EIO)))
}

/// Changes something, which waits while a transaction stands.
fn next_transaction(beside: BorrowedFd<'_>) -> Result<(), SysError> {
    let time = |nanoseconds: i64| Timespec { tv_sec: 0, tv_nsec: nanoseconds as _ };
    let times = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
    rustix::fs::futimens(beside, &times).map_err(SysError::rustix("futimens", "a directory beside a snapshot"))
}

/// An entry of a directory, looked for in the tree: the directory itself is locked while a snapshot is made.
struct Entry<'a> {
    name: &'a [u8],
    search: Box<Search<LOOK_WORDS>>,
}

impl<'a> Entry<'a> {
    fn new(directory: BorrowedFd<'_>, name: &'a str) -> Result<Self, SysError> {
        let inode = rustix::fs::fstat(directory).map_err(SysError::rustix("stat", name))?.st_ino;
        let key = (inode, DIR_ITEM, u64::from(name_hash(name.as_bytes())));
        Ok(Self { name: name.as_bytes(), search: Search::new(key, key, 0) })
    }

    fn is_there(&mut self, directory: BorrowedFd<'_>) -> Result<bool, SysError> {
        let (name, mut found) = (self.name, false);
        self.search.run(directory, |_, item| {
            // Names of the same hash follow each other.
            let mut rest = item;
            while let (Some(data), Some(length)) = (u16_at(rest, 25), u16_at(rest, 27)) {
                let (data, length) = (usize::from(data), usize::from(length));
                found |= rest.get(ENTRY_HEAD..ENTRY_HEAD + length) == Some(name);
                let Some(next) = rest.get(ENTRY_HEAD + length + data..) else { break };
                rest = next;
            }
        })?;
        Ok(found)
    }
}

/// CRC-32C as btrfs begins it, which is where a directory has its name.
fn name_hash(name: &[u8]) -> u32 {
    name.iter().fold(!1, |hash, &byte| {
        (0..8).fold(hash ^ u32::from(byte), |hash, _| (hash >> 1) ^ (0x82f6_3b78 & (hash & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::name_hash;

    #[test]
    fn names_have_the_hash_that_the_kernel_gives_them() {
        // As `btrfs inspect-internal dump-tree` shows them: "default" is in every root tree.
        assert_eq!(name_hash(b"default"), 2378154706);
    }
}
