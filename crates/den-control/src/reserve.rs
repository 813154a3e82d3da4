//! Room on the disk of DATA that is kept for the day when there is none.
//!
//! ```text
//! there is room   DATA/reserve takes RESERVE_BYTES of it
//! it is short     computers are not made any more; before one is stopped or removed, and before a start, the
//!                 reserve is let go: rows are written in its place
//! there is room   it is taken again
//! ```
//!
//! Without it a full disk could not be emptied: that something is removed has to be written down first.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::{
    Error,
    limits::{RESERVE_BYTES, ROOM_BYTES_MIN},
};

const FILE: &str = "reserve";
/// Of `st_blocks`: stat(2).
const BLOCK_BYTES: u64 = 512;
/// The reserve is taken where this many times as much is free.
const SHARE: u64 = 4;

/// The reserve of one data folder.
pub(crate) struct Reserve {
    data: PathBuf,
    btrfs: bool,
}

impl Reserve {
    /// Lets go of the reserve where room is short, so that the start has it.
    pub(crate) fn open(data: &Path) -> Self {
        let reserve = Self { data: data.to_owned(), btrfs: den_sys::btrfs::is_btrfs(data) };
        reserve.need();
        reserve
    }

    /// Bytes that computers may still take.
    fn free(&self) -> io::Result<u64> {
        let facts = statvfs(&self.data)?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    /// Bytes that Den may: with what is left to root. Btrfs counts there what only its own trees may take.
    fn free_to_den(&self) -> io::Result<u64> {
        let facts = statvfs(&self.data)?;
        let blocks = if self.btrfs { facts.f_bavail } else { facts.f_bfree };
        Ok(blocks.saturating_mul(facts.f_frsize))
    }

    /// Makes room for some rows, where there is none.
    pub(crate) fn need(&self) {
        if self.free_to_den().is_ok_and(|free| free < ROOM_BYTES_MIN.0) {
            self.let_go();
        }
    }

    fn let_go(&self) {
        let path = self.data.join(FILE);
        let Ok(file) = File::options().write(true).open(&path) else { return };
        // A copy-on-write file system gives room back when it has written that down.
        let gone = match file.metadata() {
            Ok(facts) if facts.len() == 0 => return,
            _ => file.set_len(0).and_then(|()| rustix::fs::syncfs(&file).map_err(io::Error::from)),
        };
        match gone {
            Ok(()) => {
                tracing::warn!(path = %path.display(), "the disk is full: the reserve is let go, remove something")
            }
            Err(error) => tracing::error!(%error, path = %path.display(), "the reserve cannot be let go"),
        }
    }

    /// Takes the reserve where it is not there and there is much room.
    pub(crate) fn take(&self) {
        let taken = || -> io::Result<()> {
            let file = File::options().write(true).create(true).truncate(false).open(self.data.join(FILE))?;
            // One that was copied may have its length and hold nothing.
            if file.metadata()?.blocks() * BLOCK_BYTES < RESERVE_BYTES.0 && self.free()? > SHARE * RESERVE_BYTES.0 {
                fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES.0)?;
            }
            Ok(())
        };
        if let Err(error) = taken() {
            tracing::debug!(%error, "no room is kept for a full disk");
        }
    }

    /// Whether there is room for something new.
    ///
    /// Errors: `host_full`.
    pub(crate) fn room(&self) -> Result<(), Error> {
        match self.free() {
            Ok(free) if free < ROOM_BYTES_MIN.0 => {
                let message =
                    format!("{} has {} KiB free; what is left is for removing", self.data.display(), free / 1024);
                Err(Error::new("host_full", 507, message)
                    .hint("make room on the disk of the data folder: `den trash empty`, `den rm`"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_once_and_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path());
        let length = || dir.path().join(FILE).metadata().map_or(0, |facts| facts.len());
        reserve.need();
        assert_eq!(length(), 0);
        if reserve.free().unwrap() < 2 * SHARE * RESERVE_BYTES.0 {
            return; // This host is full itself.
        }
        // As a copy without its bytes is.
        File::create(dir.path().join(FILE)).unwrap().set_len(RESERVE_BYTES.0).unwrap();
        reserve.take();
        reserve.take();
        assert_eq!(length(), RESERVE_BYTES.0);
        assert!(dir.path().join(FILE).metadata().unwrap().blocks() * BLOCK_BYTES >= RESERVE_BYTES.0);
        reserve.need();
        assert_eq!(length(), RESERVE_BYTES.0, "there is room");
        reserve.room().unwrap();
        reserve.let_go();
        assert_eq!(length(), 0);
    }
}
