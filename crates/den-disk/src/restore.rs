//! Putting a disk back to a state that was kept.
//!
//! ```text
//! prepare   snapshots/<n> ──► live.new              nothing is lost yet: abandoned, it was never there
//! commit    live ─rename─► snapshots/<before>       ┐ cut off here: settled forwards
//!           live.new ─rename─► live                 ┘
//!           snapshots/<before> becomes read-only      cut off before: settled too
//! ```
//!
//! A state of a computer's own history is put back as it was, byte for byte. Nothing may run on the disk
//! from before the commit until after it.

use std::os::fd::AsFd;

use den_model::{Bytes, ComputerId};
use den_sys::{btrfs, failpoint};

use crate::snapshots::FOLDER;
use crate::{DiskError, Disks, Identity, Storage, copy, fork, open_dir, rekey};

const NEW: &str = "live.new";
const RENAMING: &str = "renaming";

impl Disks {
    /// Makes what `id`'s disk shall be, from its state `number`, beside what it is.
    ///
    /// A state that has another machine's id (it came from elsewhere) gets `identity`.
    pub fn restore_prepare(
        &self,
        id: ComputerId,
        number: u64,
        limit: Bytes,
        identity: &Identity<'_>,
    ) -> Result<(), DiskError> {
        let source = self.open_state(id, number)?;
        let path = self.home(id);
        let home = open_dir(&path)?;
        self.drop_part(home.as_fd(), NEW)?;
        let make = || {
            match self.0.storage {
                Storage::Btrfs => btrfs::snapshot(source.as_fd(), home.as_fd(), NEW, false)?,
                Storage::Plain => copy::tree(&self.snapshot_path(id, number), &path.join(NEW))?,
            }
            failpoint::hit("restore.copied");
            let new = open_dir(&path.join(NEW))?;
            self.limit(new.as_fd(), limit)?;
            self.join_group(id, new.as_fd(), limit)?;
            fork::clear_work(new.as_fd())?;
            rekey::restore(new.as_fd(), identity)?;
            Ok(())
        };
        make().inspect_err(|_| self.restore_abandon(id))
    }

    /// Puts what was prepared in place of what is there, which becomes the state `before`. Cut off at any
    /// point, [`Disks::settle`] ends it.
    ///
    /// Errors: `SnapshotExists`; then nothing was changed.
    pub fn restore_commit(&self, id: ComputerId, before: u64) -> Result<(), DiskError> {
        self.snapshots_folder(id)?;
        let (home, place) = (self.home(id), self.snapshot_path(id, before));
        // A rename would put it in place of an empty directory.
        if place.exists() {
            return Err(DiskError::SnapshotExists { id, number: before });
        }
        // Without it there would be nothing to put in place.
        fs_err::metadata(home.join(NEW))?;
        fs_err::rename(home.join("live"), &place)?;
        failpoint::hit("restore.away");
        fs_err::rename(home.join(NEW), home.join("live"))?;
        failpoint::hit("restore.there");
        if self.0.storage == Storage::Btrfs {
            // Not earlier: a read-only directory takes no new name.
            btrfs::set_read_only(open_dir(&place)?.as_fd(), true)?;
        }
        Ok(())
    }

    /// Has the disk of `id`, which nothing runs on, call its computer by another name. Until [`Disks::renamed`] it is
    /// one that is being renamed.
    pub fn rename(&self, id: ComputerId, identity: &Identity<'_>) -> Result<(), DiskError> {
        fs_err::write(self.home(id).join(RENAMING), identity.hostname)?;
        rekey::rename(open_dir(&self.disk(id).live)?.as_fd(), identity)?;
        failpoint::hit("rename.done");
        Ok(())
    }

    /// Whether `id` was given another name, and nobody said that it is the one.
    pub fn is_being_renamed(&self, id: ComputerId) -> bool {
        self.home(id).join(RENAMING).exists()
    }

    /// The name of `id` is written down elsewhere too.
    pub fn renamed(&self, id: ComputerId) {
        if let Err(error) = std::fs::remove_file(self.home(id).join(RENAMING)) {
            tracing::debug!(computer = %id, %error, "it is named once more at the next start");
        }
    }

    /// Lets go of what was prepared. None is no error.
    pub fn restore_abandon(&self, id: ComputerId) {
        let dropped = open_dir(&self.home(id)).map_err(DiskError::from).and_then(|home| {
            let whole = self.disk(id).live.exists();
            if whole { self.drop_part(home.as_fd(), NEW) } else { Ok(()) }
        });
        if let Err(error) = dropped {
            tracing::warn!(computer = %id, %error, "what a restore had prepared is left until the next start");
        }
    }

    /// Ends what a crash cut off: a restore that had begun to change the disk is done, one that had not is
    /// forgotten, and so are states that were being made. To be called while nothing else is done to `id`.
    pub fn settle(&self, id: ComputerId) -> Result<(), DiskError> {
        let path = self.home(id);
        let home = open_dir(&path)?;
        if path.join(NEW).exists() {
            if path.join("live").exists() {
                self.drop_part(home.as_fd(), NEW)?;
            } else {
                fs_err::rename(path.join(NEW), path.join("live"))?;
            }
        }
        let Ok(folder) = open_dir(&path.join(FOLDER)) else { return Ok(()) };
        for entry in fs_err::read_dir(path.join(FOLDER))? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with('.') {
                self.drop_part(folder.as_fd(), name)?;
            } else if self.0.storage == Storage::Btrfs {
                let state = open_dir(&path.join(FOLDER).join(name))?;
                if !btrfs::is_read_only(state.as_fd())? {
                    btrfs::set_read_only(state.as_fd(), true)?;
                }
            }
        }
        Ok(())
    }
}
