//! The limit of a disk that was restored.
//!
//! ```text
//! 1/<first live>  limit ┬ 0/<first live>     now a kept state; it is charged for what it wrote
//!                       ├ 0/<second live>    the same
//!                       └ 0/<live>
//! ```
//!
//! A subvolume is charged for what it wrote as long as anything holds it. Before the first restore `live`
//! has written all of a computer's bytes, and its own limit is the computer's. Each restore makes another
//! `live` that has written nothing: all of them together are held to the limit, by a group.
//!
//! A computer that is full can be restored all the same: a quarter of its limit is always left to it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use den_model::{Bytes, ComputerId};
use den_sys::btrfs;

use crate::backing::Limit;
use crate::snapshots::FOLDER;
use crate::{DiskError, Disks, open_dir};

const FILE: &str = "group";
/// What is left to a restored computer, whatever its states hold: its limit divided by this.
const SHARE: u64 = 4;

impl Disks {
    /// Counts `new`, which shall be the disk of `id`, together with what it was before.
    pub(crate) fn join_group(&self, id: ComputerId, new: BorrowedFd<'_>, limit: Bytes) -> Result<(), DiskError> {
        if self.0.limit != Limit::Held {
            return Ok(());
        }
        let home = self.home(id);
        let live = btrfs::subvolume_id(open_dir(&self.disk(id).live)?.as_fd())?;
        let group = match read(&home) {
            Some(group) => group,
            None => {
                let group = btrfs::group_number(live);
                fs_err::write(home.join(".group"), group.to_string())?;
                fs_err::rename(home.join(".group"), home.join(FILE))?;
                group
            }
        };
        btrfs::set_group(new, group, true)?;
        for member in [live, btrfs::subvolume_id(new)?] {
            btrfs::set_member(new, member, group, true)?;
        }
        self.limit_group(id, new, limit)
    }

    /// Holds what `id`'s disk was and is, together, to `limit`, where it was restored.
    pub(crate) fn limit_group(&self, id: ComputerId, any: BorrowedFd<'_>, limit: Bytes) -> Result<(), DiskError> {
        let Some(group) = read(&self.home(id)) else { return Ok(()) };
        let used = self.group_usage(id).map_or(0, |used| used.0);
        btrfs::limit_subvolume(any, group, limit.0.max(used.saturating_add(limit.0 / SHARE)))?;
        Ok(())
    }

    /// What all that was `id`'s disk has written and something still holds; `None` before its first restore.
    pub(crate) fn group_usage(&self, id: ComputerId) -> Option<Bytes> {
        bytes_of(self.0.qgroups.as_ref()?, &self.group_name(id)?)
    }

    /// The kernel's name of the group; `None` before the first restore.
    pub(crate) fn group_name(&self, id: ComputerId) -> Option<String> {
        let group = read(&self.home(id))?;
        Some(format!("{}_{}", group >> 48, group & ((1 << 48) - 1)))
    }
}

/// What the kernel has counted for one of its groups.
pub(crate) fn bytes_of(qgroups: &Path, name: &str) -> Option<Bytes> {
    std::fs::read_to_string(qgroups.join(name).join("exclusive")).ok()?.trim().parse().ok().map(Bytes)
}

/// Removes the group of the computer whose folder `home` is, while its subvolumes are still there. One
/// that has a member which is nowhere any more stays: it takes some bytes.
pub(crate) fn dissolve(home: &Path) {
    let (Some(group), Ok(directory)) = (read(home), open_dir(home)) else { return };
    for folder in [home.to_owned(), home.join(FOLDER)] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(part) = open_dir(&entry.path())
                && let Ok(subvolume) = btrfs::subvolume_id(part.as_fd())
            {
                let _ = btrfs::set_member(directory.as_fd(), subvolume, group, false);
            }
        }
    }
    let _ = btrfs::set_group(directory.as_fd(), group, false);
}

fn read(home: &Path) -> Option<u64> {
    std::fs::read_to_string(home.join(FILE)).ok()?.parse().ok()
}
