//! A disk made from a state of another one.
//!
//! ```text
//! parent's snapshots/<n> ─snapshot─► live ─limit, re-key─► steps ─► ─snapshot─► snapshots/0 settled ─► may run
//!                                                                                          └─► written out: whole
//! ```
//!
//! State 0 of a fork is taken after it was re-keyed: it is what the fork was made with, so a fork that did
//! nothing does not differ from it, and to restore it brings back none of the parent's secrets.
//!
//! Invariants:
//! - Nothing that a fork inherits runs before it is re-keyed.
//! - State 0 comes last: a fork without it is half made, and is made again or removed. So the transaction that is waited
//!   for has all of it.
//!
//! Not here: who may fork, names, lineage (`control`).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use den_model::{Bytes, ComputerId};
use den_sys::{SysError, btrfs, failpoint};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::{Disk, DiskError, Disks, Identity, Settled, Storage, copy, open_dir, rekey};

impl Disks {
    /// As [`Disks::fork_over`], for an image that has no keys in it.
    pub fn fork(
        &self,
        from: ComputerId,
        number: u64,
        to: ComputerId,
        limit: Bytes,
        identity: &Identity<'_>,
    ) -> Result<Disk, DiskError> {
        self.fork_over(from, number, to, limit, identity, &[])
    }

    /// Makes the disk of `to` from the state `number` of `from`, held to `limit`, with `identity` and keys
    /// of its own: docs/FORKS.md. Keys that lie in one of the image's `layers` (top first) get others in
    /// their place.
    ///
    /// Errors: `Exists`, `NoSnapshot`; what the file system refuses. Nothing is left of it then.
    pub fn fork_over(
        &self,
        from: ComputerId,
        number: u64,
        to: ComputerId,
        limit: Bytes,
        identity: &Identity<'_>,
        layers: &[PathBuf],
    ) -> Result<Disk, DiskError> {
        self.begin_fork(from, number, to, limit, identity, layers)?.finish().inspect_err(|_| {
            let _ = self.remove(to);
        })
    }

    /// As [`Disks::fork_over`], and returns when it may be run: its state 0 is settled, and still being written
    /// out. What fails from then on leaves the rest of the disk.
    pub fn begin_fork(
        &self,
        from: ComputerId,
        number: u64,
        to: ComputerId,
        limit: Bytes,
        identity: &Identity<'_>,
        layers: &[PathBuf],
    ) -> Result<Forked, DiskError> {
        let source = self.open_state(from, number)?;
        let home = self.make_home(to)?;
        let make = || {
            let disk = self.disk(to);
            match self.0.storage {
                Storage::Btrfs => btrfs::snapshot(source.as_fd(), open_dir(&home)?.as_fd(), "live", false)?,
                Storage::Plain => copy::tree(&self.snapshot_path(from, number), &disk.live)?,
            }
            failpoint::hit("fork.live");
            let live = open_dir(&disk.live)?;
            self.limit(live.as_fd(), limit)?;
            clear_work(live.as_fd())?;
            rekey::fork(live.as_fd(), identity, layers)?;
            failpoint::hit("fork.rekeyed");
            self.make_steps(&home, &disk)?;
            let zero = self.begin_snapshot(to, 0)?;
            failpoint::hit("fork.zero");
            Ok(Forked { disk, zero })
        };
        make().inspect_err(|_| {
            let _ = self.remove(to);
        })
    }
}

/// The disk of a fork, whose state 0 is being written out.
#[must_use = "it may still fail"]
pub struct Forked {
    disk: Disk,
    zero: Settled,
}

impl Forked {
    /// Waits until it is whole.
    pub fn finish(self) -> Result<Disk, DiskError> {
        self.zero.finish().map(|_| self.disk)
    }
}

/// Takes away the sign by which an overlay refuses a disk that another mount left in the middle of
/// something: the state is whole as it is.
pub(crate) fn clear_work(live: BorrowedFd<'_>) -> Result<(), SysError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(work) = rustix::fs::openat(live, "work", flags, Mode::empty()) else { return Ok(()) };
    let Ok(work) = rustix::fs::openat(&work, "work", flags, Mode::empty()) else { return Ok(()) };
    for name in ["incompat/volatile", "incompat"] {
        match rustix::fs::unlinkat(&work, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Err(errno) => return Err(SysError::new("rmdir", name, errno.raw_os_error())),
        }
    }
    Ok(())
}
