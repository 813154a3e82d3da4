//! Shared volumes: folders of their own, which several computers mount.
//!
//! Their files belong to whom computers see, unshifted, as those of computers' own disks do. What lies in one was
//! written by computers: nothing here reads it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use den_model::{Bytes, VolumeId};
use den_sys::{SysError, btrfs};
use rustix::fs::Mode;

use crate::{DiskError, Disks, Storage, group, make, open_dir};

/// In the root of all disks.
pub(crate) const FOLDER: &str = ".volumes";
/// What a backup reads of a volume begins so.
const BACKUP: &str = ".backup-";
/// What a computer's every user may do in a new one: it is there to be shared.
const MODE: u32 = 0o777;

impl Disks {
    /// The folder that is mounted, which may not be there.
    pub fn volume(&self, id: VolumeId) -> PathBuf {
        self.0.root.join(relative(id))
    }

    /// Makes an empty volume, held to `limit` where disks are.
    ///
    /// Errors: `VolumeExists`; what the file system refuses. Nothing is left of it then.
    pub fn make_volume(&self, id: VolumeId, limit: Bytes) -> Result<(), DiskError> {
        let path = self.volume(id);
        if path.exists() {
            return Err(DiskError::VolumeExists(id));
        }
        let made = || {
            match self.0.storage {
                Storage::Btrfs => {
                    btrfs::create_subvolume(open_dir(&self.0.root.join(FOLDER))?.as_fd(), &id.to_string())?;
                }
                Storage::Plain => make(&path)?,
            }
            let folder = open_dir(&path)?;
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(MODE))
                .map_err(SysError::rustix("chmod", path.display()))?;
            self.limit(folder.as_fd(), limit)
        };
        made().inspect_err(|_| {
            let _ = self.remove_volume(id);
        })
    }

    /// Removes a volume: out of sight at once, its bytes later. None is no error.
    pub fn remove_volume(&self, id: VolumeId) -> Result<(), DiskError> {
        self.discard(&relative(id))
    }

    /// All volumes that have a folder.
    pub fn list_volumes(&self) -> Result<Vec<VolumeId>, DiskError> {
        let mut ids = Vec::new();
        let entries = match std::fs::read_dir(self.0.root.join(FOLDER)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Bytes in a volume, where the storage counts them.
    pub fn volume_usage(&self, id: VolumeId) -> Option<Bytes> {
        let folder = open_dir(&self.volume(id)).ok()?;
        let subvolume = btrfs::subvolume_id(folder.as_fd()).ok()?;
        group::bytes_of(self.0.qgroups.as_ref()?, &format!("0_{subvolume}"))
    }

    /// Holds a volume to another limit, where it is held to one.
    pub fn limit_volume(&self, id: VolumeId, limit: Bytes) -> Result<(), DiskError> {
        self.limit(open_dir(&self.volume(id))?.as_fd(), limit)
    }

    /// Fixes a volume as it is, for a backup to read: where that is. Plain directories are read as they are while they
    /// change.
    pub fn begin_volume_backup(&self, id: VolumeId) -> Result<PathBuf, DiskError> {
        let path = self.volume(id);
        if self.0.storage == Storage::Plain {
            return Ok(path);
        }
        self.end_volume_backup(id);
        let name = format!("{BACKUP}{id}");
        let folder = open_dir(&self.0.root.join(FOLDER))?;
        btrfs::snapshot(open_dir(&path)?.as_fd(), folder.as_fd(), &name, true)?;
        Ok(self.0.root.join(FOLDER).join(name))
    }

    /// Lets go of what [`Disks::begin_volume_backup`] made. None is no error.
    pub fn end_volume_backup(&self, id: VolumeId) {
        if self.0.storage == Storage::Btrfs {
            crate::destroy(&self.0.root.join(FOLDER).join(format!("{BACKUP}{id}")));
        }
    }

    /// Drops what a crash left of a backup.
    pub(crate) fn sweep_volume_backups(&self) {
        for entry in std::fs::read_dir(self.0.root.join(FOLDER)).into_iter().flatten().flatten() {
            if self.0.storage == Storage::Btrfs && entry.file_name().to_string_lossy().starts_with(BACKUP) {
                crate::destroy(&entry.path());
            }
        }
    }

    /// Whether what was put out of sight under this name was a volume.
    pub(crate) fn was_volume(gone: &Path) -> bool {
        gone.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FOLDER))
    }
}

/// Relative to the root of all disks.
fn relative(id: VolumeId) -> PathBuf {
    Path::new(FOLDER).join(id.to_string())
}
