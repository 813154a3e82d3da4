//! Shared volumes: made, looked at, removed.
//!
//! ```text
//! make     name is free ─► folder, committed ─► row (flushed) ─► known
//! remove   going: nobody new mounts it ─► nobody mounts it ─► row's end (flushed) ─► folder out of sight
//! ```
//!
//! Invariants:
//! - A row has its folder. A folder without a row, which is what a crash leaves, is swept by the next start.
//! - Whoever is to mount one is in the registry first and asks [`Volumes::stay`] then; whoever removes one says that
//!   it is going first and looks into the registry then. So no computer is left with one that is gone.
//!
//! Not here: mounting one into a computer.

mod content;

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use den_api::{CreateVolume, VolumeList, VolumeView};
use den_model::{Bytes, EventKind, Limits, Volume, VolumeId, VolumeMount, VolumeName};
use den_store::Durability;
use den_sys::failpoint;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use content::{VolumeReader, VolumeWriter};

use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    errors::{self, chain},
    limits::{KEEP_WAIT, VOLUME_BYTES_DEFAULT, VOLUME_TRANSFERS_MAX, VOLUMES_MAX},
};

/// All shared volumes of a house.
pub(crate) struct Volumes {
    known: Mutex<BTreeMap<VolumeId, Entry>>,
    /// One is made or removed at a time.
    changing: tokio::sync::Mutex<()>,
    /// Places for who reads and writes what lies in them.
    places: Arc<Semaphore>,
    /// What has something of them open.
    work: TaskTracker,
    ending: CancellationToken,
}

struct Entry {
    volume: Volume,
    /// It is being removed.
    going: bool,
}

impl Volumes {
    pub(crate) fn new(volumes: Vec<Volume>) -> Self {
        let entries = volumes.into_iter().map(|volume| (volume.id, Entry { volume, going: false }));
        Self {
            known: Mutex::new(entries.collect()),
            changing: tokio::sync::Mutex::new(()),
            places: Arc::new(Semaphore::new(VOLUME_TRANSFERS_MAX)),
            work: TaskTracker::new(),
            ending: CancellationToken::new(),
        }
    }

    /// Has go of them whoever reads or writes, so that the disks can be let go of.
    pub(crate) async fn close(&self) {
        self.ending.cancel();
        self.work.close();
        let _ = tokio::time::timeout(KEEP_WAIT, self.work.wait()).await;
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume of this name or id.
    ///
    /// Errors: `volume_not_found`.
    pub(crate) fn find(&self, text: &str) -> Result<Volume, Error> {
        let known = self.known();
        let found = match text.parse::<VolumeId>() {
            Ok(id) => known.get(&id),
            Err(_) => known.values().find(|entry| entry.volume.name.as_str() == text),
        };
        found.map(|entry| entry.volume.clone()).ok_or_else(|| Error::volume_not_found(text))
    }

    /// Whether a computer that is in the registry may mount these: they stay for as long as it is there.
    ///
    /// Errors: `volume_not_found` where one is gone or going.
    pub(crate) fn stay(&self, mounts: &[VolumeMount]) -> Result<(), Error> {
        let known = self.known();
        let gone = mounts.iter().find(|mount| known.get(&mount.volume).is_none_or(|entry| entry.going));
        gone.map_or(Ok(()), |mount| Err(Error::volume_not_found(mount.name.as_str())))
    }

    fn going(&self, id: VolumeId, going: bool) {
        if let Some(entry) = self.known().get_mut(&id) {
            entry.going = going;
        }
    }
}

fn volume_name(text: &str) -> Result<VolumeName, Error> {
    VolumeName::from_str(text).map_err(|error| {
        Error::new("bad_name", 400, format!("`name`: {error}"))
            .hint("a shared volume's name is 1 to 128 of a-z, A-Z, 0-9, `-` and `_`")
    })
}

impl Inner {
    /// The names of the computers that mount a volume, those in the trash included.
    fn mounted_by(&self, id: VolumeId) -> Vec<String> {
        let mounts = |spec: &den_model::ComputerSpec| spec.volumes.iter().any(|mount| mount.volume == id);
        let all = self.registry.all().into_iter();
        all.filter(|handle| mounts(&handle.spec())).map(|handle| handle.name().to_string()).collect()
    }

    fn volume_view(&self, volume: Volume) -> VolumeView {
        let Volume { id, name, limit, created_at } = volume;
        VolumeView {
            id: id.to_string(),
            name: name.to_string(),
            size: limit.0,
            used: self.disks().ok().and_then(|disks| disks.volume_usage(id)).map(|used| used.0),
            computers: self.mounted_by(id),
            created_at,
        }
    }
}

impl Control {
    /// All shared volumes, the oldest first.
    pub fn volumes(&self) -> VolumeList {
        let volumes: Vec<_> = self.0.volumes.known().values().map(|entry| entry.volume.clone()).collect();
        VolumeList { items: volumes.into_iter().map(|volume| self.0.volume_view(volume)).collect() }
    }

    /// One shared volume, by its name or id.
    ///
    /// Errors: `volume_not_found`.
    pub fn volume(&self, text: &str) -> Result<VolumeView, Error> {
        Ok(self.0.volume_view(self.0.volumes.find(text)?))
    }

    /// The folder of a shared volume. What lies in it was made by computers: nothing of it is to be trusted.
    ///
    /// Errors: `volume_not_found`; `shutting_down`.
    pub fn volume_dir(&self, id: VolumeId) -> Result<PathBuf, Error> {
        self.0.volumes.find(&id.to_string())?;
        Ok(self.0.disks()?.volume(id))
    }

    /// Makes a shared volume, and returns once it is safe from the end of power.
    ///
    /// Errors: `bad_name`, `bad_size`; `volume_exists`; `too_many`; `host_full`. Nothing is left of it then.
    pub async fn make_volume(&self, request: CreateVolume, who: &Who) -> Result<VolumeView, Error> {
        self.0.open_for_work()?;
        let name = volume_name(&request.name)?;
        let limit = match &request.size {
            None => VOLUME_BYTES_DEFAULT,
            Some(text) => text.0.parse::<Bytes>().map_err(|error| Error::bad_size("size", &error))?,
        };
        if limit < Limits::DISK_MIN {
            return Err(Error::size_below("size", limit, Limits::DISK_MIN));
        }
        self.0.reserve.room()?;
        let (inner, who) = (Arc::clone(&self.0), who.0.clone());
        self.whatever_becomes_of_the_caller(async move {
            let _one_at_a_time = inner.volumes.changing.lock().await;
            {
                let known = inner.volumes.known();
                if known.values().any(|entry| entry.volume.name == name) {
                    return Err(Error::volume_exists(&name));
                }
                if known.len() >= VOLUMES_MAX {
                    return Err(errors::too_many("shared volumes", VOLUMES_MAX));
                }
            }
            let volume = Volume { id: VolumeId::from_uuid(Uuid::now_v7()), name, limit, created_at: now() };
            let (disks, id) = (inner.disks()?, volume.id);
            blocking(move || disks.make_volume(id, limit).and_then(|()| disks.commit())).await??;
            failpoint::hit("volume.folder");
            if let Err(error) = inner.store.insert_volume(volume.clone(), Durability::Power).await {
                inner.disks()?.remove_volume(id)?;
                return Err(error.into());
            }
            failpoint::hit("volume.row");
            inner.volumes.known().insert(id, Entry { volume: volume.clone(), going: false });
            tracing::info!(volume = %id, name = %volume.name, who, "a shared volume was made");
            let detail = json!({ "volume": id.to_string(), "name": volume.name.to_string() });
            inner.events.tell(EventKind::VolumeMade, None, Some(&who), detail);
            Ok(inner.volume_view(volume))
        })
        .await
    }

    /// Removes a shared volume with all that is in it, and returns once that is safe from the end of power.
    ///
    /// Errors: `volume_not_found`; `volume_in_use` while a computer mounts it, one in the trash included.
    pub async fn remove_volume(&self, text: &str, who: &Who) -> Result<(), Error> {
        self.0.open_for_work()?;
        let (inner, who, text) = (Arc::clone(&self.0), who.0.clone(), text.to_owned());
        self.whatever_becomes_of_the_caller(async move {
            let _one_at_a_time = inner.volumes.changing.lock().await;
            let Volume { id, name, .. } = inner.volumes.find(&text)?;
            inner.volumes.going(id, true);
            let computers = inner.mounted_by(id);
            if !computers.is_empty() {
                inner.volumes.going(id, false);
                return Err(Error::volume_in_use(&name, &computers));
            }
            let deleted = inner.store.delete_volume(id, Durability::Power).await;
            if let Err(error) = deleted {
                inner.volumes.going(id, false);
                return Err(error.into());
            }
            failpoint::hit("volume.gone");
            inner.volumes.known().remove(&id);
            if let Err(error) = inner.disks()?.remove_volume(id) {
                tracing::error!(volume = %id, error = chain(&error), "the folder of a removed volume is left");
            }
            tracing::info!(volume = %id, %name, who, "a shared volume is gone");
            let detail = json!({ "volume": id.to_string(), "name": name.to_string() });
            inner.events.tell(EventKind::VolumeRemoved, None, Some(&who), detail);
            Ok(())
        })
        .await
    }

    /// Does it whether its caller stays or not.
    async fn whatever_becomes_of_the_caller<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.0.tasks.spawn(work).await.map_err(|error| Error::internal("a task panicked").because(error))?
    }
}

/// Removes folders that no row knows of, and tells of rows that have none.
pub(crate) async fn sweep(inner: &Arc<Inner>) -> Result<(), Error> {
    let disks = inner.disks()?;
    let folders = blocking(move || disks.list_volumes()).await??;
    for id in &folders {
        if !inner.volumes.known().contains_key(id) {
            tracing::warn!(volume = %id, "the folder of a shared volume without a row is removed");
            inner.disks()?.remove_volume(*id)?;
        }
    }
    for (id, entry) in inner.volumes.known().iter().filter(|(id, _)| !folders.contains(id)) {
        tracing::error!(volume = %id, name = %entry.volume.name, "the folder of a shared volume is gone");
    }
    Ok(())
}
