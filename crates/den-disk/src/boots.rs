//! Whether anybody but a boot has written to a disk.
//!
//! ```text
//! made ─► boot (mount points, `work`) ─► Furnished: how many entries, the newest change ─► … ─► state: the same?
//! kept ─► boot (`work`, notes) ─► … ─► state: was anything else written since the generation of the other?
//! ```
//!
//! A boot writes, and what it wrote waits for the next commit: until then the counters of [`crate::Dirt`] cannot
//! tell it from what comes after. A commit would, at the price of milliseconds for everyone who boots. So the state
//! that the first step makes is held against what is known of the disk before it.
//!
//! Invariants:
//! - What cannot be told is a change: a state too many is a nuisance, one too few is a loss.
//! - Times of change are not set by whoever is inside, so everything that is done to a file or a directory shows.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use den_model::ComputerId;
use den_sys::btrfs;
use rustix::fs::FileType;

use crate::{DiskError, Disks, Storage, open_dir};

/// A new disk has some twenty entries; one with more than these was not new.
const ENTRIES_MAX: usize = 256;
/// More inodes than these are written by no boot.
const INODES_MAX: usize = 256;
/// The notes that an overlay makes of a directory when it is looked at.
const NOTES: [&str; 6] = [
    "trusted.overlay.impure",
    "trusted.overlay.origin",
    "trusted.overlay.uuid",
    "user.overlay.impure",
    "user.overlay.origin",
    "user.overlay.uuid",
];
/// XATTR_LIST_MAX and XATTR_SIZE_MAX, in bytes.
const ATTRIBUTES_BYTES_MAX: usize = 64 << 10;
/// Since this release two changes of a file that was looked at between them never have one time.
const FINE_TIMES: (u32, u32) = (6, 13);
/// What an older kernel may give one time to.
const TICK_MAX: Duration = Duration::from_millis(12);

/// What a new disk held before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Furnished {
    entries: usize,
    /// Seconds and nanoseconds.
    newest: (i64, i64),
}

impl Disks {
    /// Looks at what `id`'s disk holds, which nobody but its making and its boot has written to. None where nothing
    /// follows from that.
    pub fn furnished(&self, id: ComputerId) -> Result<Option<Furnished>, DiskError> {
        let Some(found) = look(&self.disk(id).live)? else { return Ok(None) };
        let newest = Duration::new(found.newest.0.max(0) as u64, found.newest.1.max(0) as u32);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Else what comes next may have the very time of what was there.
        Ok((has_fine_times() || now.saturating_sub(newest) > TICK_MAX).then_some(found))
    }

    /// Whether the state `number` of `id` is what was there before the first step.
    pub fn is_furnished(&self, id: ComputerId, number: u64, before: &Furnished) -> Result<bool, DiskError> {
        Ok(look(&self.snapshot_path(id, number))?.is_some_and(|found| found == *before))
    }

    /// Whether nothing was written to `id`'s disk between the states `before` and `number` but what a boot leaves: in
    /// `work`, and the notes of the overlay on directories.
    pub fn is_only_booted(&self, id: ComputerId, before: u64, number: u64) -> Result<bool, DiskError> {
        if self.0.storage != Storage::Btrfs {
            return Ok(false);
        }
        let generation = self.snapshot_generation(id, before)?;
        let (old, new) = (self.snapshot_path(id, before), self.snapshot_path(id, number));
        let state = self.open_state(id, number)?;
        let written = btrfs::changed_inodes(state.as_fd(), generation)?;
        if written.len() > INODES_MAX {
            return Ok(false);
        }
        for inode in written {
            let is_directory = FileType::from_raw_mode(inode.mode) == FileType::Directory;
            let paths = btrfs::paths_of(state.as_fd(), inode.inode)?;
            let same = |path: &PathBuf| {
                path.starts_with("work") || is_directory && is_noted_only(&old.join(path), &new.join(path))
            };
            if paths.is_empty() || !paths.iter().all(same) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether two states of a directory differ in notes of the overlay at most. What was put into it or moved is an
/// inode that was written itself; what was removed shows in the size, which counts the names.
fn is_noted_only(old: &Path, new: &Path) -> bool {
    let seen = |path: &Path| {
        let meta = std::fs::symlink_metadata(path).ok()?;
        let times = (meta.mtime(), meta.mtime_nsec());
        Some((meta.ino(), meta.mode(), meta.uid(), meta.gid(), meta.size(), times, attributes(path)?))
    };
    seen(old).is_some_and(|old| seen(new) == Some(old))
}

/// All attributes but those that an overlay notes by itself when a directory is looked at; nothing where they cannot
/// be read.
fn attributes(path: &Path) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; ATTRIBUTES_BYTES_MAX];
    let length = rustix::fs::llistxattr(path, &mut names[..]).ok()?;
    let mut found = Vec::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if NOTES.iter().any(|note| note.as_bytes() == name) {
            continue;
        }
        let mut value = vec![0; ATTRIBUTES_BYTES_MAX];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort_unstable();
    Some(found)
}

/// Counts what is in a disk, but in `work`. Nothing where there is too much of it.
fn look(disk: &Path) -> Result<Option<Furnished>, DiskError> {
    let mut found = Furnished { entries: 0, newest: (0, 0) };
    open_dir(disk)?;
    let mut folders: Vec<PathBuf> = vec![disk.join("data"), disk.join("vol")];
    let mut seen = |meta: &std::fs::Metadata| {
        found.entries += 1;
        found.newest = found.newest.max((meta.ctime(), meta.ctime_nsec()));
        found.entries <= ENTRIES_MAX
    };
    seen(&fs_err::symlink_metadata(disk)?);
    for folder in &folders {
        seen(&fs_err::symlink_metadata(folder)?);
    }
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?; // Of a link itself.
            if !seen(&meta) {
                return Ok(None);
            }
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(Some(found))
}

fn has_fine_times() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= FINE_TIMES
}
