//! A house made from a backup, in an empty data folder, while no daemon runs.
//!
//! ```text
//! marker ─► database, aside ─► images ─► each computer, its parent first: states, disk, output, records
//!        ─► shared volumes ─► keys ─► database in its place ─► marker goes
//! ```
//!
//! Invariants:
//! - Nothing that is there is touched but what an earlier restore that was cut off has left.
//! - One restore at a time works in a folder: it is locked from before it is looked at until all is done.
//! - Without the last step there is no house: a daemon refuses the folder.
//! - Each chunk is held against its hash. What is lost ends the restore, or is named and left out.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use den_backup::{BackupError, Credentials, Layer, Listing, Manifest, Of, Place, Progress, Repository, Tree};
use den_disk::{DiskConfig, DiskError, Disks, StorageChoice};
use den_image::ImageStore;
use den_model::{Bytes, ComputerId, ComputerSpec, Parent, Volume};
use den_store::{CopyRow, StoreCopy};
use den_sys::{SysError, failpoint};
use serde::Serialize;

use super::of;
use crate::{Error, control::now};

/// There while a restore is under way.
const MARKER: &str = "restore-under-way";
/// The database, until all else is there.
const DATABASE: &str = ".restored.db";
/// Where the keys are laid out.
const HOUSE: &str = ".restored";
/// Why restored computers are stopped.
const REASON: &str = "it was restored from a backup";

/// What to make a house from, and where.
pub struct RestoreBackup {
    /// The place.
    pub from: String,
    /// Which backup; the newest without.
    pub id: Option<String>,
    /// What opens the place.
    pub credentials: Credentials,
    /// The data folder to be.
    pub data: PathBuf,
    /// The image store; it may have images already.
    pub images: PathBuf,
    /// Where disks shall lie.
    pub storage: StorageChoice,
    /// Size of the btrfs image, if one is made.
    pub disk_size: Option<Bytes>,
    /// Leave out what is lost, and name it.
    pub skip_broken: bool,
}

/// A house that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredBackup {
    /// The backup.
    pub id: String,
    /// When it was made: microseconds since the epoch.
    pub at: i64,
    /// The host that it was made on.
    pub host: String,
    /// Computers that are there.
    pub computers: usize,
    /// Their states.
    pub states: usize,
    /// Whether the house has its keys and tokens.
    pub secrets: bool,
    /// What is lost.
    pub lost: Vec<String>,
}

/// Refuses a folder in which a restore was cut off.
pub(crate) fn refuse_half(data: &Path) -> Result<(), Error> {
    match data.join(MARKER).exists() {
        true => Err(Error::new("restore_unfinished", 409, format!("a restore into {} was cut off", data.display()))
            .hint("the same `den restore-backup` again does it anew")),
        false => Ok(()),
    }
}

/// Makes a house. Blocks.
///
/// Errors: `data_not_empty`, `restore_running`, `store_newer`; `backup_broken` naming what is lost; what place and
/// disks say.
pub fn restore_backup(
    request: RestoreBackup,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<RestoredBackup, Error> {
    let place = Place::new(&request.from, &request.credentials).map_err(of)?;
    empty(&request.data)?;
    let found = Repository::find(&place, request.id.as_deref()).map_err(of)?;
    let manifest = Repository::manifest(&place, &found).map_err(of)?;
    let known = den_store::schema_known();
    if manifest.schema > known {
        let text = format!("the backup's database has schema {}, and this den knows {known}", manifest.schema);
        return Err(Error::new("store_newer", 409, text).hint("take a newer den"));
    }
    let repository = Repository::open(place).map_err(of)?;
    let _locked = begin(&request)?;
    failpoint::hit("unbackup.begun");
    let config = DiskConfig { data: request.data.clone(), storage: request.storage, size: request.disk_size };
    let disks = Disks::open(&config)?;
    let layer = Layer { repository: &repository, skip_broken: request.skip_broken, progress, stop };
    let mut restore = Restore { request: &request, manifest: &manifest, layer, disks: &disks, lost: Vec::new() };
    let restored = restore.all();
    let lost = restore.lost;
    let closed = disks.close();
    let (computers, states) = restored?;
    closed?;
    Ok(RestoredBackup {
        id: manifest.id.clone(),
        at: manifest.at,
        host: manifest.host.clone(),
        computers,
        states,
        secrets: manifest.secrets,
        lost,
    })
}

fn wrong(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |error| DiskError::from(SysError::io("restore to", &path, &error)).into()
}

/// Makes sure that nothing is in the folder but what a restore that was cut off has left.
fn empty(data: &Path) -> Result<(), Error> {
    if data.join(MARKER).exists() {
        return Ok(());
    }
    let entries = match fs::read_dir(data) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(wrong(data)(error)),
    };
    // A disk of its own has the one, an image store that was made before the other.
    let known = ["lost+found", "images"];
    match entries.flatten().find(|entry| !known.iter().any(|name| entry.file_name() == *name)) {
        None => Ok(()),
        Some(entry) => {
            let (name, data) = (entry.file_name(), data.display());
            let text = format!("{data} is not empty: `{}` is in it", name.display());
            Err(Error::new("data_not_empty", 409, text)
                .hint("restore into a new folder with --data, or move this one away"))
        }
    }
}

/// Locks the folder for as long as what is returned is open, marks it, and takes away what an earlier restore left.
///
/// Errors: `data_not_empty`, `restore_running`.
fn begin(request: &RestoreBackup) -> Result<fs::File, Error> {
    let data = &request.data;
    if !data.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(wrong(data))?;
    }
    let locked = fs::File::open(data).map_err(wrong(data))?;
    match rustix::fs::flock(&locked, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = format!("another restore into {} is under way", data.display());
            return Err(Error::new("restore_running", 409, text).hint("wait until that one is done").retryable());
        }
        Err(errno) => return Err(wrong(data)(errno.into())),
    }
    // One that had it until now may have made a house.
    empty(data)?;
    fs::set_permissions(data, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(wrong(data))?;
    let marker = data.join(MARKER);
    let again = marker.exists();
    fs::write(&marker, "den restore-backup\n").map_err(wrong(&marker))?;
    locked.sync_all().map_err(wrong(data))?;
    if again {
        let config = DiskConfig { data: data.clone(), storage: request.storage, size: request.disk_size };
        let disks = Disks::open(&config)?;
        for id in disks.list()? {
            disks.remove(id)?;
        }
        for id in disks.list_volumes()? {
            disks.remove_volume(id)?;
        }
        disks.close()?;
        for entry in fs::read_dir(data).map_err(wrong(data))?.flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            if ["lost+found", "images", "computers", "disk.btrfs", MARKER].iter().any(|kept| name == *kept) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(wrong(&path))?;
        }
    }
    Ok(locked)
}

struct Restore<'a> {
    request: &'a RestoreBackup,
    manifest: &'a Manifest,
    layer: Layer<'a>,
    disks: &'a Disks,
    lost: Vec<String>,
}

impl Restore<'_> {
    fn all(&mut self) -> Result<(usize, usize), Error> {
        let data = &self.request.data;
        let database = data.join(DATABASE);
        self.layer.progress.begins("the database");
        let mut file = fs::File::create(&database).map_err(wrong(&database))?;
        let mut chunks = self.layer.repository.read(&self.manifest.database.chunks);
        std::io::copy(&mut chunks, &mut file).map_err(|error| {
            let why = error.to_string();
            of(BackupError::Broken { what: format!("the database, and so all of {}", self.manifest.id), why })
        })?;
        drop(file);
        fs::set_permissions(&database, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(wrong(&database))?;
        let copy = StoreCopy::open(&database)?;
        self.images()?;
        failpoint::hit("unbackup.images");
        let (mut computers, mut states) = (0, 0);
        // The oldest first: a parent is older than its forks. Each with the generations of its states.
        let mut laid: HashMap<ComputerId, HashMap<u64, u64>> = HashMap::new();
        for row in copy.computers()? {
            match self.computer(&copy, &row, &laid)? {
                Some(own) => {
                    (computers, states) = (computers + 1, states + own.len());
                    laid.insert(row.id, own);
                }
                None => {
                    self.lost.push(format!("the computer {} ({})", row.name, row.id));
                    self.disks.remove(row.id)?;
                    copy.leave_out(row.id)?;
                }
            }
            failpoint::hit("unbackup.computer");
        }
        for volume in copy.volumes()? {
            self.volume(&volume)?;
            failpoint::hit("unbackup.volume");
        }
        self.house()?;
        copy.all_stopped(REASON, now())?;
        copy.close()?;
        failpoint::hit("unbackup.laid");
        let sync = |path: &Path| fs::File::open(path).and_then(|file| file.sync_all()).map_err(wrong(path));
        rustix::fs::syncfs(fs::File::open(data).map_err(wrong(data))?.as_fd())
            .map_err(|errno| wrong(data)(errno.into()))?;
        sync(&database)?;
        let place = data.join(den_store::FILE);
        fs::rename(&database, &place).map_err(wrong(&place))?;
        sync(data)?;
        failpoint::hit("unbackup.database");
        let marker = data.join(MARKER);
        fs::remove_file(&marker).map_err(wrong(&marker))?;
        sync(data)?;
        Ok((computers, states))
    }

    /// The listing of a tree; none where it is lost and that is to be passed over.
    fn listing(&mut self, tree: &Tree) -> Result<Option<Listing>, Error> {
        match Listing::fetch(self.layer.repository, tree, &self.request.data) {
            Ok(listing) => Ok(Some(listing)),
            Err(BackupError::Broken { what, why }) if self.request.skip_broken => {
                tracing::warn!(what, why, "a tree is lost");
                self.lost.push(what);
                Ok(None)
            }
            Err(error) => Err(of(error)),
        }
    }

    fn lay(&mut self, root: &Path, old: Option<&Listing>, new: &Listing, what: &Of) -> Result<(), Error> {
        let lost = self.layer.lay(root, old, new).map_err(of)?;
        self.lost.extend(lost.into_iter().map(|path| format!("{path} in {what}")));
        Ok(())
    }

    /// Lays out a tree that lies on no other; says whether it could be had.
    fn tree(&mut self, what: &Of, root: &Path) -> Result<bool, Error> {
        let Some(tree) = self.manifest.tree(what) else { return Ok(false) };
        let Some(listing) = self.listing(tree)? else { return Ok(false) };
        self.lay(root, None, &listing, what)?;
        Ok(true)
    }

    /// Images: layers that are not there, then manifests, then names.
    fn images(&mut self) -> Result<(), Error> {
        let store = ImageStore::open(&self.request.images)?;
        let root = store.root();
        let job = root.join("tmp").join(format!("restore-{}", std::process::id()));
        let _ = fs::remove_dir_all(&job); // It is as a rule not there.
        fs::create_dir(&job).map_err(wrong(&job))?;
        // Other daemons that share the store leave a job alone whose lock is held.
        let lock = fs::File::open(&job).map_err(wrong(&job))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|errno| wrong(&job)(errno.into()))?;
        for tree in &self.manifest.trees {
            let Of::Layer { digest } = &tree.of else { continue };
            let place = root.join("layers").join(digest);
            if digest.contains('/') || place.exists() {
                continue;
            }
            let laying = job.join(digest);
            fs::create_dir(&laying).map_err(wrong(&laying))?;
            let before = self.lost.len();
            // A layer without one of its files is another layer.
            if self.tree(&tree.of, &laying)? && self.lost.len() == before {
                fs::rename(&laying, &place).map_err(wrong(&place))?;
            }
        }
        let laying = job.join("images");
        fs::create_dir(&laying).map_err(wrong(&laying))?;
        self.tree(&Of::Images, &laying)?;
        for part in ["manifests", "names"] {
            let Ok(entries) = fs::read_dir(laying.join(part)) else { continue };
            for entry in entries.flatten() {
                let place = root.join(part).join(entry.file_name());
                // What the store has by this name stays.
                if !place.exists() {
                    fs::rename(entry.path(), &place).map_err(wrong(&place))?;
                }
            }
        }
        fs::remove_dir_all(&job).map_err(wrong(&job))
    }

    /// Lays out a computer; the generations of its states. None where its disk is lost.
    fn computer(
        &mut self,
        copy: &StoreCopy,
        row: &CopyRow,
        laid: &HashMap<ComputerId, HashMap<u64, u64>>,
    ) -> Result<Option<HashMap<u64, u64>>, Error> {
        let (id, computer) = (row.id, row.id.to_string());
        let broken = |what: &str| Error::new("store_corrupt", 500, format!("the {what} of {id} in the backup"));
        let spec: ComputerSpec = serde_json::from_str(&row.spec).map_err(|error| broken("spec").because(error))?;
        let parent: Option<Parent> = match &row.parent {
            Some(text) => Some(serde_json::from_str(text).map_err(|error| broken("parent").because(error))?),
            None => None,
        };
        // On the parent's state, so that they share as they did.
        let mut below: Option<Listing> = None;
        let mut from = None;
        let origin = parent.as_ref().and_then(|parent| {
            let generation = *laid.get(&parent.id)?.get(&parent.snapshot)?;
            Some((parent.id, parent.snapshot, generation))
        });
        if let Some((parent, number, _)) = origin {
            let state = Of::State { computer: parent.to_string(), number };
            if let Some(tree) = self.manifest.tree(&state) {
                below = self.listing(tree)?;
                from = below.is_some().then_some((parent, number));
            }
        }
        let live = self.disks.begin_relay(id, from)?;
        let mut own = HashMap::new();
        for (number, generation) in copy.states(id)? {
            let what = Of::State { computer: computer.clone(), number };
            let listing = match self.manifest.tree(&what) {
                Some(tree) => self.listing(tree)?,
                None => {
                    self.lost.push(what.to_string());
                    None
                }
            };
            let Some(listing) = listing else {
                copy.drop_state(id, number)?;
                continue;
            };
            self.lay(&live, below.as_ref(), &listing, &what)?;
            let here = self.disks.snapshot(id, number)?;
            // Of what a fork began as, its parent's is said: what was changed to make it a computer of its own counts.
            let here = match number {
                0 => origin.filter(|_| from.is_some()).map_or(0, |(_, _, generation)| generation),
                _ if generation == 0 => 0,
                _ => here,
            };
            copy.set_generation(id, number, here)?;
            own.insert(number, here);
            below = Some(listing);
        }
        let what = Of::Live { computer: computer.clone() };
        let listing = match self.manifest.tree(&what) {
            Some(tree) => self.listing(tree)?,
            None => None,
        };
        match listing {
            Some(listing) => self.lay(&live, below.as_ref(), &listing, &what)?,
            // The newest state is the most that there is of it.
            None if !own.is_empty() => {}
            None => return Ok(None),
        }
        let disk = self.disks.end_relay(id, spec.limits.disk)?;
        self.tree(&Of::Steps { computer: computer.clone() }, &disk.steps)?;
        let home = self.disks.folder(id);
        let aside = home.join(".home");
        fs::create_dir(&aside).map_err(wrong(&aside))?;
        self.tree(&Of::Home { computer }, &aside)?;
        move_all(&aside, &home)?;
        Ok(Some(own))
    }

    /// Lays out a shared volume. One that is lost is empty: computers that mount it start all the same.
    fn volume(&mut self, volume: &Volume) -> Result<(), Error> {
        // Held to its limit once it is laid out.
        self.disks.make_volume(volume.id, Bytes(u64::MAX))?;
        let what = Of::Volume { volume: volume.id.to_string() };
        if !self.tree(&what, &self.disks.volume(volume.id))? {
            self.lost.push(format!("all of the shared volume {} ({})", volume.name, volume.id));
        }
        Ok(self.disks.limit_volume(volume.id, volume.limit)?)
    }

    /// What lies in the data folder itself: keys, and what goes on.
    fn house(&mut self) -> Result<(), Error> {
        let aside = self.request.data.join(HOUSE);
        fs::create_dir(&aside).map_err(wrong(&aside))?;
        self.tree(&Of::House, &aside)?;
        move_all(&aside, &self.request.data)
    }
}

/// Moves all that is in a folder to another one, and removes it.
fn move_all(from: &Path, to: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(from).map_err(wrong(from))? {
        let entry = entry.map_err(wrong(from))?;
        let place = to.join(entry.file_name());
        fs::rename(entry.path(), &place).map_err(wrong(&place))?;
    }
    fs::remove_dir(from).map_err(wrong(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_restore_at_a_time_and_none_into_what_another_made() {
        let folder = tempfile::tempdir().unwrap();
        let request = RestoreBackup {
            from: "/nowhere".to_owned(),
            id: None,
            credentials: Credentials::default(),
            data: folder.path().join("den"),
            images: folder.path().join("images"),
            storage: StorageChoice::Plain,
            disk_size: None,
            skip_broken: false,
        };
        let first = begin(&request).unwrap();
        // As that of another process: locks belong to what was opened.
        assert_eq!(begin(&request).unwrap_err().code, "restore_running");
        fs::write(request.data.join(den_store::FILE), "rows").unwrap();
        fs::remove_file(request.data.join(MARKER)).unwrap();
        drop(first);
        assert_eq!(begin(&request).unwrap_err().code, "data_not_empty");
        assert_eq!(fs::read(request.data.join(den_store::FILE)).unwrap(), b"rows");
        // Half a house is made anew.
        fs::write(request.data.join(MARKER), "").unwrap();
        begin(&request).unwrap();
        assert!(!request.data.join(den_store::FILE).exists());
    }
}
