//! How much room the place of all disks has, and getting back at once what was let go.

use std::os::fd::AsFd;

use den_model::Bytes;
use den_sys::{SysError, btrfs};

use crate::{DiskError, Disks, Storage};

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All there is.
    pub total: Bytes,
    /// What is free.
    pub free: Bytes,
}

impl Disks {
    /// The room where all disks lie.
    pub fn room(&self) -> Result<Room, DiskError> {
        let stat =
            rustix::fs::fstatvfs(&self.0.root_fd).map_err(SysError::rustix("fstatvfs", self.0.root.display()))?;
        Ok(Room {
            total: Bytes(stat.f_blocks.saturating_mul(stat.f_frsize)),
            free: Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)),
        })
    }

    /// Has the bytes freed now of what was removed: the kernel's cleaner sleeps for half a minute if nobody asks.
    pub fn hurry(&self) -> Result<(), DiskError> {
        if self.0.storage == Storage::Btrfs {
            btrfs::start_sync(self.0.root_fd.as_fd())?;
        }
        Ok(())
    }
}
