//! What a backup reads of disks, and what a restore of one makes of them.
//!
//! ```text
//! backup    live ─snapshot, read-only─► snapshots/.backup ─read─► dropped
//! restore   live (new, or a snapshot of the parent's state) ─laid─► snapshots/0 ─laid─► snapshots/3 ─laid─► live
//! ```
//!
//! Restored states lie in `live` one after the other, so that they share what they shared, and `live` is charged
//! for what it wrote, as it was.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use den_model::{Bytes, ComputerId};
use den_sys::btrfs;

use crate::snapshots::FOLDER;
use crate::{Disk, DiskError, Disks, Mark, Storage, copy, make, open_dir};

/// A snapshot that a backup reads. [`Disks::settle`] drops what a crash left of it.
const BACKUP: &str = ".backup";
/// Tells one file system from another.
const FILESYSTEM: &str = ".filesystem";

impl Disks {
    /// What tells this file system from every other: drawn once, and kept on it.
    pub fn filesystem(&self) -> Result<String, DiskError> {
        let path = self.0.root.join(FILESYSTEM);
        if let Ok(text) = std::fs::read_to_string(&path)
            && !text.is_empty()
        {
            return Ok(text);
        }
        let mut bytes = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("the library has no random bytes"))?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let making = path.with_extension("making");
        fs_err::write(&making, &text)?;
        fs_err::rename(making, path)?;
        Ok(text)
    }

    /// Fixes the disk of `id` as it is, for a backup to read: where that is, and what tells whether `live` has
    /// changed since. Plain directories are read as they are while they change.
    pub fn begin_backup(&self, id: ComputerId) -> Result<(PathBuf, Option<String>), DiskError> {
        let live = open_dir(&self.disk(id).live)?;
        if self.0.storage == Storage::Plain {
            return Ok((self.disk(id).live, None));
        }
        let folder = self.snapshots_folder(id)?;
        self.drop_part(folder.as_fd(), BACKUP)?;
        btrfs::snapshot(live.as_fd(), folder.as_fd(), BACKUP, true)?;
        let path = self.home(id).join(FOLDER).join(BACKUP);
        let generation = btrfs::generation(open_dir(&path)?.as_fd())?;
        Ok((path, Some(format!("{}:{generation}", btrfs::subvolume_id(live.as_fd())?))))
    }

    /// Whether `live` is as it was when [`Disks::begin_backup`] gave this stamp.
    pub fn unchanged_since(&self, id: ComputerId, stamp: &str) -> bool {
        let same = || {
            let (subvolume, generation) = stamp.split_once(':')?;
            let live = open_dir(&self.disk(id).live).ok()?;
            let is_same = btrfs::subvolume_id(live.as_fd()).ok()? == subvolume.parse::<u64>().ok()?;
            let changed = self.dirt(id).ok()?.changed(&Mark::of_snapshot(generation.parse().ok()?)).ok()?;
            Some(is_same && !changed)
        };
        self.0.storage == Storage::Btrfs && same().unwrap_or(false)
    }

    /// Lets go of what [`Disks::begin_backup`] made. None is no error.
    pub fn end_backup(&self, id: ComputerId) -> Result<(), DiskError> {
        match open_dir(&self.home(id).join(FOLDER)) {
            Ok(folder) if self.0.storage == Storage::Btrfs => self.drop_part(folder.as_fd(), BACKUP),
            _ => Ok(()),
        }
    }

    /// What tells a kept state, which never changes, from any that was or will be in its place. None where there
    /// is no such state.
    pub fn state_stamp(&self, id: ComputerId, number: u64) -> Option<String> {
        let state = self.open_state(id, number).ok()?;
        match self.0.storage {
            Storage::Btrfs => {
                let generation = btrfs::generation(state.as_fd()).ok()?;
                Some(format!("{}:{generation}", btrfs::subvolume_id(state.as_fd()).ok()?))
            }
            Storage::Plain => {
                let facts = std::fs::metadata(self.snapshot_path(id, number)).ok()?;
                Some(format!("{}:{}.{}", facts.ino(), facts.ctime(), facts.ctime_nsec()))
            }
        }
    }

    /// The transaction that changed each inode of this snapshot last, where the storage tells.
    pub fn transactions(&self, snapshot: &Path) -> Result<Option<Vec<(u64, u64)>>, DiskError> {
        match self.0.storage {
            Storage::Btrfs => Ok(Some(btrfs::inode_transactions(open_dir(snapshot)?.as_fd())?)),
            Storage::Plain => Ok(None),
        }
    }

    /// The folder of `id`, with all that is kept of it.
    pub fn folder(&self, id: ComputerId) -> PathBuf {
        self.home(id)
    }

    /// Makes an empty disk for `id`, or one that begins as a state of another's, to be laid out.
    ///
    /// Errors: `Exists`, `NoSnapshot`; what the file system refuses.
    pub fn begin_relay(&self, id: ComputerId, from: Option<(ComputerId, u64)>) -> Result<PathBuf, DiskError> {
        let home = self.make_home(id)?;
        let live = self.disk(id).live;
        match (self.0.storage, from) {
            (Storage::Btrfs, None) => btrfs::create_subvolume(open_dir(&home)?.as_fd(), "live")?,
            (Storage::Btrfs, Some((from, number))) => {
                let state = self.open_state(from, number)?;
                btrfs::snapshot(state.as_fd(), open_dir(&home)?.as_fd(), "live", false)?;
            }
            (Storage::Plain, None) => make(&live)?,
            (Storage::Plain, Some((from, number))) => copy::tree(&self.snapshot_path(from, number), &live)?,
        }
        Ok(live)
    }

    /// The disk of `id` was laid out: it is held to `limit` from here on.
    pub fn end_relay(&self, id: ComputerId, limit: Bytes) -> Result<Disk, DiskError> {
        let disk = self.disk(id);
        self.limit(open_dir(&disk.live)?.as_fd(), limit)?;
        self.make_steps(&self.home(id), &disk)?;
        Ok(disk)
    }
}
