//! Whether a disk has changed since a mark: exact, and without a walk.
//!
//! ```text
//! a change ─► rsv_data ─► rsv_meta_prealloc ─► rsv_meta_pertrans ─► generation     time ──►
//!             the bytes    the inode            until the commit      ever after
//!                  └─► a few bytes, kept in the leaf ─► ctransid ─────►─┘
//!   read in this order: what has left one place while it was read has come to a later one
//! ```
//!
//! The kernel reserves quota for every change before it makes it, and holds it until the change is
//! committed, when the generation of the subvolume's root moves. But for a file of a few bytes, which is kept in its
//! leaf: once those are written out (by a sync of anybody on the file system), nothing is reserved for them, and the
//! commit may be some time away. Then the transaction of the last inode is newer than the generation. So: nothing
//! reserved, no inode of a newer transaction and the old generation is nothing changed. Touches, modes, writes by memory map, attributes, renames and removals
//! all show. Without simple quotas a commit is asked for, and the generation alone is read.
//!
//! Not here: what has changed (`history`).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use den_model::ComputerId;
use den_sys::btrfs;

use crate::{DiskError, Disks, Storage, open_dir};

/// A moment of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The generation that its subvolume had.
    pub generation: u64,
    /// What was reserved then: bytes of files, metadata not yet in the trees, metadata in them.
    waiting: [u64; 3],
}

impl Mark {
    /// The moment at which a snapshot of this generation was taken: nothing waited.
    pub fn of_snapshot(generation: u64) -> Self {
        Self { generation, waiting: [0; 3] }
    }
}

/// What a check needs, open. It belongs to the `live` that was there when it was opened: a restore
/// makes another one.
#[derive(Debug)]
pub struct Dirt {
    live: OwnedFd,
    reserved: Option<Reserved>,
}

/// Files below /sys/fs/btrfs that say what waits to be committed.
#[derive(Debug)]
struct Reserved {
    data: File,
    prealloc: File,
    pertrans: File,
}

impl Reserved {
    fn open(qgroups: &Path, subvolume: u64) -> Option<Self> {
        let folder = qgroups.join(format!("0_{subvolume}"));
        let open = |name: &str| File::open(folder.join(name)).ok();
        Some(Self {
            data: open("rsv_data")?,
            prealloc: open("rsv_meta_prealloc")?,
            pertrans: open("rsv_meta_pertrans")?,
        })
    }
}

/// What cannot be known, which never equals what is.
const UNKNOWN: u64 = u64::MAX - 1;

/// What cannot be read counts as changed.
fn number(file: &File) -> u64 {
    let mut text = [0_u8; 32];
    let read = file.read_at(&mut text, 0).unwrap_or(0);
    std::str::from_utf8(&text[..read]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX)
}

impl Dirt {
    /// What the disk is now. Once what waits at this moment is committed, that counts as a change.
    ///
    /// A snapshot moves the generation: to the snapshot's own, which serves as the mark too.
    pub fn mark(&self) -> Result<Mark, DiskError> {
        let waiting = self.waiting();
        let (generation, updated) = self.transactions()?;
        // What waits already (a page, an inode, a leaf) takes further changes without a further reservation:
        // then no look tells what comes after.
        let known = waiting == [0; 3] && updated <= generation;
        let waiting = if known { waiting } else { [UNKNOWN; 3] };
        Ok(Mark { generation, waiting })
    }

    /// Whether anything was changed since `mark`.
    pub fn changed(&self, mark: &Mark) -> Result<bool, DiskError> {
        // A new subvolume has the generation of the transaction that makes it, before that is committed and
        // after: what is changed in between shows in that nothing waits any more.
        if self.waiting() != mark.waiting {
            return Ok(true);
        }
        let (generation, updated) = self.transactions()?;
        Ok(generation != mark.generation || updated > mark.generation)
    }

    /// What is reserved, in the order in which it moves on.
    fn waiting(&self) -> [u64; 3] {
        match &self.reserved {
            Some(Reserved { data, prealloc, pertrans }) => [data, prealloc, pertrans].map(number),
            None => [0; 3],
        }
    }

    /// Bytes of files that wait to be written; 0 where they are not counted.
    pub fn waiting_bytes(&self) -> u64 {
        self.reserved.as_ref().map_or(0, |reserved| number(&reserved.data))
    }

    pub(crate) fn live(&self) -> std::os::fd::BorrowedFd<'_> {
        self.live.as_fd()
    }

    fn transactions(&self) -> Result<(u64, u64), DiskError> {
        if self.reserved.is_none() {
            btrfs::wait_sync(self.live.as_fd(), btrfs::start_sync(self.live.as_fd())?)?;
        }
        Ok(btrfs::transactions(self.live.as_fd())?)
    }
}

impl Disks {
    /// Opens what it takes to see whether `id`'s disk changes.
    ///
    /// Errors: `Unsupported` on plain directories.
    pub fn dirt(&self, id: ComputerId) -> Result<Dirt, DiskError> {
        self.dirt_of(&self.disk(id).live)
    }

    pub(crate) fn dirt_of(&self, subvolume: &Path) -> Result<Dirt, DiskError> {
        if self.0.storage != Storage::Btrfs {
            return Err(DiskError::Unsupported { what: "seeing whether a disk has changed" });
        }
        let live = open_dir(subvolume)?;
        let reserved = match &self.0.qgroups {
            Some(qgroups) => Reserved::open(qgroups, btrfs::subvolume_id(live.as_fd())?),
            None => None,
        };
        Ok(Dirt { live, reserved })
    }
}
