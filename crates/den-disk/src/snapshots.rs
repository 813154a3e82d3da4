//! States of a disk that are kept.
//!
//! ```text
//! btrfs   preflush: live ─snapshot─► .flush ─destroy─► (again while much waits)
//!         snapshot: live ─snapshot, read-only─► settled ─► written out: <n>
//!                   whoever calls has it frozen ──────┘
//! plain   snapshot: live ─copy─► .<n>.making ─rename─► <n>
//! ```
//!
//! Not here: when one is taken, and which are dropped (`control`).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use den_model::{Bytes, ComputerId};
use den_sys::{SysError, btrfs, failpoint};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::{DiskError, Disks, Identity, Storage, copy, furnish, make, open_dir};

/// The folder of a computer's states.
pub(crate) const FOLDER: &str = "snapshots";
/// A snapshot that is taken for its side effect.
const FLUSH: &str = ".flush";

/// More than this is flushed ahead: a snapshot writes what waits while the computer stands.
const WAITING_BYTES_MAX: u64 = 1 << 20;
/// A flush that took longer is followed by another one: a writer goes on.
const FLUSH_SLOW: Duration = Duration::from_millis(30);
const FLUSH_ROUNDS_MAX: u32 = 4;
/// Between two looks at whether bytes were freed.
const RECLAIM_PAUSE: Duration = Duration::from_millis(50);

/// A state whose content is settled.
#[must_use = "it may still fail"]
pub struct Settled {
    disks: Disks,
    id: ComputerId,
    number: u64,
    rest: Option<btrfs::Snapshot>,
}

impl Settled {
    /// Waits until the state is on the disk; returns the generation that it has (0 on plain directories).
    ///
    /// Errors: `SnapshotExists`; what the file system refuses. Nothing is left of it then.
    pub fn finish(self) -> Result<u64, DiskError> {
        let Self { disks, id, number, rest } = self;
        let Some(rest) = rest else { return Ok(0) };
        rest.finish().map_err(|error| refused(error, id, number))?;
        failpoint::hit("snapshot.taken");
        Ok(btrfs::generation(disks.open_state(id, number)?.as_fd())?)
    }
}

fn refused(error: SysError, id: ComputerId, number: u64) -> DiskError {
    match Errno::from_raw_os_error(error.errno) {
        Errno::EXIST => DiskError::SnapshotExists { id, number },
        _ => error.into(),
    }
}

impl Disks {
    /// Writes out what waits of `id`'s disk, so that the snapshot which follows is short. A writer that
    /// goes on is followed for a few rounds. Nothing on plain directories.
    pub fn preflush(&self, id: ComputerId) -> Result<(), DiskError> {
        if self.0.storage != Storage::Btrfs {
            return Ok(());
        }
        let dirt = self.dirt(id)?;
        let folder = self.snapshots_folder(id)?;
        for _ in 0..FLUSH_ROUNDS_MAX {
            let began = Instant::now();
            // A crash may have left one.
            let _ = btrfs::destroy_subvolume(folder.as_fd(), FLUSH);
            btrfs::snapshot(dirt.live(), folder.as_fd(), FLUSH, true)?;
            btrfs::destroy_subvolume(folder.as_fd(), FLUSH)?;
            if began.elapsed() <= FLUSH_SLOW && dirt.waiting_bytes() <= WAITING_BYTES_MAX {
                break;
            }
        }
        Ok(())
    }

    /// Writes out what waits of `id`'s disk alone: a snapshot does that, and its transaction is on the disk when
    /// this returns.
    pub(crate) fn flush_once(&self, id: ComputerId) -> Result<(), DiskError> {
        let (live, folder) = (open_dir(&self.disk(id).live)?, self.snapshots_folder(id)?);
        // A crash may have left one.
        let _ = btrfs::destroy_subvolume(folder.as_fd(), FLUSH);
        btrfs::snapshot(live.as_fd(), folder.as_fd(), FLUSH, true)?;
        Ok(btrfs::destroy_subvolume(folder.as_fd(), FLUSH)?)
    }

    /// Keeps the state of `id`'s disk as `number`; returns the generation that it has (0 on plain
    /// directories). What runs on the disk goes on meanwhile: who wants one moment freezes it.
    ///
    /// Errors: `SnapshotExists`; what the file system refuses. Nothing is left of it then.
    pub fn snapshot(&self, id: ComputerId, number: u64) -> Result<u64, DiskError> {
        self.begin_snapshot(id, number)?.finish()
    }

    /// As [`Disks::snapshot`], and returns when the state is settled: what is done to the disk from then on is
    /// not in it. It is there once it is finished.
    pub fn begin_snapshot(&self, id: ComputerId, number: u64) -> Result<Settled, DiskError> {
        let home = self.home(id);
        let folder = self.snapshots_folder(id)?;
        let live = home.join("live");
        let rest = match self.0.storage {
            Storage::Btrfs => {
                let (live, home) = (open_dir(&live)?, open_dir(&home)?);
                let begun = btrfs::begin_snapshot(live, folder, &number.to_string(), true, home.as_fd());
                Some(begun.map_err(|error| refused(error, id, number))?)
            }
            Storage::Plain => {
                self.copy_state(&live, id, number)?;
                None
            }
        };
        Ok(Settled { disks: self.clone(), id, number, rest })
    }

    /// Copies `source` to the state `number` of `id`.
    pub(crate) fn copy_state(&self, source: &Path, id: ComputerId, number: u64) -> Result<(), DiskError> {
        let place = self.snapshot_path(id, number);
        if place.exists() {
            return Err(DiskError::SnapshotExists { id, number });
        }
        let making = place.with_file_name(format!(".{number}.making"));
        if making.exists() {
            fs_err::remove_dir_all(&making)?;
        }
        let copied = copy::tree(source, &making).and_then(|()| {
            failpoint::hit("snapshot.copied");
            fs_err::rename(&making, &place).map_err(DiskError::from)
        });
        copied.inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&making);
        })
    }

    /// The generation of the state `number` of `id`: all that is in it was written by this transaction
    /// or an earlier one. 0 on plain directories.
    pub fn snapshot_generation(&self, id: ComputerId, number: u64) -> Result<u64, DiskError> {
        let place = self.snapshot_path(id, number);
        let directory = self.open_state(id, number)?;
        if self.0.storage != Storage::Btrfs {
            return Ok(0);
        }
        let generation = btrfs::generation(directory.as_fd())?;
        // One that was `live` until now may have something to commit.
        if self.dirt_of(&place)?.changed(&crate::Mark::of_snapshot(generation))? {
            btrfs::wait_sync(directory.as_fd(), btrfs::start_sync(directory.as_fd())?)?;
        }
        Ok(btrfs::generation(directory.as_fd())?)
    }

    /// Where the state `number` of `id` lies, whether it is there or not.
    pub fn snapshot_path(&self, id: ComputerId, number: u64) -> PathBuf {
        self.home(id).join(FOLDER).join(number.to_string())
    }

    /// The states of `id` that are kept, in order.
    pub fn snapshots(&self, id: ComputerId) -> Result<Vec<u64>, DiskError> {
        let mut numbers = Vec::new();
        match std::fs::read_dir(self.home(id).join(FOLDER)) {
            Ok(entries) => {
                numbers.extend(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(SysError::io("open", &self.home(id).join(FOLDER), &error).into()),
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Lets go of the state `number` of `id`. None is no error.
    pub fn drop_snapshot(&self, id: ComputerId, number: u64) -> Result<(), DiskError> {
        match self.0.storage {
            Storage::Btrfs => {
                let Ok(folder) = open_dir(&self.home(id).join(FOLDER)) else { return Ok(()) };
                match btrfs::destroy_subvolume(folder.as_fd(), &number.to_string()) {
                    Err(error) if error.errno != Errno::NOENT.raw_os_error() => Err(error.into()),
                    _ => Ok(()),
                }
            }
            Storage::Plain => self.discard(&Path::new(&id.to_string()).join(FOLDER).join(number.to_string())),
        }
    }

    /// Has the bytes freed of snapshots that were dropped, until `id` uses no more than `below`, or for `limit`.
    pub fn reclaim(&self, id: ComputerId, below: Bytes, limit: Duration) -> Result<(), DiskError> {
        let Storage::Btrfs = self.0.storage else { return Ok(()) };
        let until = Instant::now() + limit;
        while self.usage(id).is_some_and(|used| used > below) && Instant::now() < until {
            // A commit wakes the cleaner, and what that frees counts with the next one.
            btrfs::start_sync(self.0.root_fd.as_fd())?;
            std::thread::sleep(RECLAIM_PAUSE);
        }
        Ok(())
    }

    /// Makes state 0 of a computer that was made from an image: what its disk held at first. One that is
    /// there stays.
    ///
    /// Returns 0: what came after was not made from this subvolume, so everything in it counts as written
    /// later.
    pub fn zero(&self, id: ComputerId, limit: Bytes, identity: &Identity<'_>) -> Result<u64, DiskError> {
        let folder = self.snapshots_folder(id)?;
        let place = self.snapshot_path(id, 0);
        if place.exists() {
            return Ok(0);
        }
        let making = place.with_file_name(".0.making");
        self.drop_part(folder.as_fd(), ".0.making")?;
        match self.0.storage {
            Storage::Btrfs => {
                btrfs::create_subvolume(folder.as_fd(), ".0.making")?;
                self.limit(open_dir(&making)?.as_fd(), limit)?;
            }
            Storage::Plain => make(&making)?,
        }
        furnish(open_dir(&making)?.as_fd(), identity)?;
        // As the first boot makes them, where an image has none: no step did that.
        for name in ["var", "var/lib", "var/lib/docker", "var/lib/containerd", "var/lib/containers"] {
            make(&making.join("data").join(name))?;
        }
        for name in ["vol/containerd", "vol/containers"] {
            make(&making.join(name))?;
        }
        fs_err::rename(&making, &place)?;
        if self.0.storage == Storage::Btrfs {
            // Not earlier: a read-only directory takes no new name.
            btrfs::set_read_only(open_dir(&place)?.as_fd(), true)?;
        }
        Ok(0)
    }

    /// Opens the state `number` of `id`.
    pub(crate) fn open_state(&self, id: ComputerId, number: u64) -> Result<OwnedFd, DiskError> {
        open_dir(&self.snapshot_path(id, number)).map_err(|error| match Errno::from_raw_os_error(error.errno) {
            Errno::NOENT => DiskError::NoSnapshot { id, number },
            _ => error.into(),
        })
    }

    /// Opens the folder of `id`'s states, and makes it.
    pub(crate) fn snapshots_folder(&self, id: ComputerId) -> Result<OwnedFd, DiskError> {
        let path = self.home(id).join(FOLDER);
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(SysError::new("mkdir", path.display(), errno.raw_os_error()).into()),
        }
        Ok(open_dir(&path)?)
    }

    /// Removes `name` from `directory`, subvolume or not. None is no error.
    pub(crate) fn drop_part(&self, directory: std::os::fd::BorrowedFd<'_>, name: &str) -> Result<(), DiskError> {
        match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(SysError::new("stat", name, errno.raw_os_error()).into()),
        }
        if self.0.storage == Storage::Btrfs && btrfs::destroy_subvolume(directory, name).is_ok() {
            return Ok(());
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&directory))).join(name);
        fs_err::remove_dir_all(path)?;
        Ok(())
    }
}
