//! Another limit for a disk that is there.
//!
//! ```text
//! begin  `resizing` is there ─► resize: live, and the group ─► … the row … ─► end: the file is gone
//! ```
//!
//! A start that finds the file sets what the row says.

use std::{io, os::fd::AsFd, path::PathBuf};

use den_model::{Bytes, ComputerId};
use den_sys::{SysError, btrfs};

use crate::{DiskError, Disks, Storage, backing::Limit, open_dir};

const FILE: &str = "resizing";

impl Disks {
    /// Holds the disk of `id` to another limit, where it is held to one. What is kept of it counts.
    pub fn resize(&self, id: ComputerId, limit: Bytes) -> Result<(), DiskError> {
        if self.0.limit != Limit::Held {
            return Ok(());
        }
        let live = open_dir(&self.disk(id).live)?;
        self.limit(live.as_fd(), limit)?;
        self.limit_group(id, live.as_fd(), limit)
    }

    /// Bytes that `id` uses at this moment, with what waits to be written; `None` where nobody counts them.
    pub fn used_now(&self, id: ComputerId) -> Result<Option<Bytes>, DiskError> {
        if self.0.storage != Storage::Btrfs {
            return Ok(None);
        }
        // What was written is counted when it is committed.
        let live = open_dir(&self.disk(id).live)?;
        btrfs::wait_sync(live.as_fd(), btrfs::start_sync(live.as_fd())?)?;
        let waiting = self.dirt(id)?.waiting_bytes();
        Ok(self.usage(id).map(|used| Bytes(used.0.saturating_add(waiting))))
    }

    /// From here until [`Disks::end_resize`] the limits of `id` are in doubt.
    pub fn begin_resize(&self, id: ComputerId) -> Result<(), DiskError> {
        let path = self.resizing(id);
        std::fs::write(&path, "").map_err(|error| SysError::io("write", &path, &error).into())
    }

    /// The limits of `id` are what its row says.
    pub fn end_resize(&self, id: ComputerId) -> Result<(), DiskError> {
        let path = self.resizing(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SysError::io("unlink", &path, &error).into()),
            _ => Ok(()),
        }
    }

    /// Whether a resize of `id` was cut off.
    pub fn is_resizing(&self, id: ComputerId) -> bool {
        self.resizing(id).exists()
    }

    fn resizing(&self, id: ComputerId) -> PathBuf {
        self.home(id).join(FILE)
    }
}
