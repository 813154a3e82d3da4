//! One backup, from the first snapshot to the manifest. All of it blocks.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use den_backup::{About, BackupError, Base, Computer, Manifest, Of, Place, Source, Writer};
use den_disk::Disks;
use den_model::{ComputerId, ComputerSpec, VolumeId};
use den_store::{CopyRow, StoreCopy};
use den_sys::failpoint;

use super::{Order, Told, of};
use crate::{Error, control::Inner, errors::chain};

/// The copy of the database, while it is needed.
const DATABASE: &str = ".backup.db";
/// What of the data folder itself is backed up as other things, or belongs to this host alone.
const HOUSE_SKIPPED: [&str; 10] =
    ["images", "computers", "agent", "criu", "disk.btrfs", "client.json", "e2b.json", "lost+found", "tmp", "reserve"];
/// What of a computer's folder is backed up as other trees, belongs to this host alone, or is memory.
const HOME_SKIPPED: [&str; 8] =
    ["live", "live.new", "snapshots", "steps", "group", "memory", "memory.new", "memory.used"];
/// Tokens in facts of translations, by their kind: those of E2B's sandboxes.
const SECRET_FACTS: [(&str, &[&str]); 1] = [("e2b.sandbox", &["token", "traffic_token"])];
/// What of the image store is no name and no manifest.
const IMAGES_KEPT: [&[u8]; 2] = [b"names", b"manifests"];
/// Images come and go: how often their list is read again when one went while it was read.
const ROUNDS_MAX: u32 = 4;

/// Ends what a backup has begun on the disks, however it ends.
struct Begun<'a> {
    disks: &'a Disks,
    /// Where each disk is fixed, and what tells whether it has changed since; none where it has not since the last
    /// backup.
    fixed: HashMap<ComputerId, Option<(PathBuf, Option<String>)>>,
    /// Where each shared volume is fixed.
    volumes: HashMap<VolumeId, PathBuf>,
    database: PathBuf,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        for &id in self.fixed.keys() {
            let _ = self.disks.end_backup(id); // The next start drops it too.
        }
        for &id in self.volumes.keys() {
            self.disks.end_volume_backup(id);
        }
        remove_database(&self.database);
    }
}

fn remove_database(path: &Path) {
    for end in ["", "-journal", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        let _ = std::fs::remove_file(PathBuf::from(name)); // It is as a rule not there.
    }
}

pub(super) fn run(inner: &Arc<Inner>, order: &Order, told: &Told) -> Result<Manifest, Error> {
    let place: Place = order.place(inner)?;
    let disks = inner.disks()?;
    let about = About {
        den: env!("CARGO_PKG_VERSION").to_owned(),
        schema: den_store::schema_known(),
        filesystem: disks.filesystem()?,
        secrets: !order.without_secrets,
    };
    let mut writer = Writer::begin(place, &inner.data, about, told, &inner.backups.stop).map_err(of)?;
    let database = inner.data.join(DATABASE);
    let mut begun = Begun { disks: &disks, fixed: HashMap::new(), volumes: HashMap::new(), database };
    remove_database(&begun.database);
    // First all disks, at once, then the database: it is never older than they are.
    for id in disks.list()? {
        if disks.exists(id) {
            fix(&mut begun, &writer, id)?;
        }
    }
    for id in disks.list_volumes()? {
        fix_volume(&mut begun, id)?;
    }
    failpoint::hit("backup.fixed");
    let copy = inner.store.copy_to(&begun.database)?;
    if order.without_secrets {
        copy.redraw(&SECRET_FACTS)?;
    }
    failpoint::hit("backup.database");

    let mut computers = Vec::new();
    for row in copy.computers()? {
        match computer(&mut writer, &mut begun, &copy, &row) {
            Ok(Some(view)) => computers.push(view),
            Ok(None) => leave_out(&mut writer, &copy, &row)?,
            Err(error) => match begun.disks.exists(row.id) {
                true => return Err(error),
                // Removed for good while it was read.
                false => leave_out(&mut writer, &copy, &row)?,
            },
        }
        let _ = disks.end_backup(row.id);
    }
    for volume in copy.volumes()? {
        if !begun.volumes.contains_key(&volume.id) {
            // Made since.
            fix_volume(&mut begun, volume.id)?;
        }
        if !shared_volume(&mut writer, &begun, volume.id)? {
            copy.leave_out_volume(volume.id)?;
        }
        disks.end_volume_backup(volume.id);
    }
    images(&mut writer, inner.images.root())?;
    let skip = |name: &[u8]| {
        HOUSE_SKIPPED.iter().any(|skipped| skipped.as_bytes() == name)
            || name.starts_with(b".")
            || name.starts_with(b"den.db")
            // Files in the data folder itself are the house's keys.
            || (order.without_secrets && inner.data.join(os(name)).is_file())
    };
    let source = Source { root: &inner.data, transactions: None, skip: &skip };
    writer.tree(Of::House, None, &source, None).map_err(of)?;
    copy.close()?;
    let database = writer.blob(&begun.database).map_err(of)?;
    writer.finish(database, computers).map_err(of)
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

/// Fixes a disk as it is, unless it is as the last backup has it.
fn fix(begun: &mut Begun<'_>, writer: &Writer<'_>, id: ComputerId) -> Result<(), Error> {
    let live = Of::Live { computer: id.to_string() };
    let last = writer.last().and_then(|last| last.tree(&live)).and_then(|tree| tree.stamp.as_deref());
    let fixed = match last.is_some_and(|stamp| begun.disks.unchanged_since(id, stamp)) {
        true => None,
        false => match begun.disks.begin_backup(id) {
            Ok(fixed) => Some(fixed),
            Err(_) if !begun.disks.exists(id) => return Ok(()),
            Err(error) => return Err(error.into()),
        },
    };
    begun.fixed.insert(id, fixed);
    Ok(())
}

/// Fixes a shared volume as it is; one that was removed since is none.
fn fix_volume(begun: &mut Begun<'_>, id: VolumeId) -> Result<(), Error> {
    match begun.disks.begin_volume_backup(id) {
        Ok(path) => drop(begun.volumes.insert(id, path)),
        Err(_) if !begun.disks.volume(id).exists() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Puts a shared volume in. False where it was removed meanwhile.
fn shared_volume(writer: &mut Writer<'_>, begun: &Begun<'_>, id: VolumeId) -> Result<bool, Error> {
    let Some(path) = begun.volumes.get(&id) else { return Ok(false) };
    let tree = Of::Volume { volume: id.to_string() };
    let read = read_tree(writer, begun.disks, &tree, None, path, None);
    if path.exists() {
        return read.map(|_| true);
    }
    // A plain directory: what was read may be anything.
    writer.forget(|of| *of == tree);
    Ok(false)
}

/// A computer that is not whole, or gone, is in neither the trees nor the database of the backup.
fn leave_out(writer: &mut Writer<'_>, copy: &StoreCopy, row: &CopyRow) -> Result<(), Error> {
    let id = row.id.to_string();
    writer.forget(|of| match of {
        Of::Live { computer } | Of::State { computer, .. } | Of::Steps { computer } | Of::Home { computer } => {
            *computer == id
        }
        _ => false,
    });
    copy.leave_out(row.id)?;
    Ok(())
}

/// Puts a computer in, with its states. None where it is not made yet, or is being removed.
fn computer(
    writer: &mut Writer<'_>,
    begun: &mut Begun<'_>,
    copy: &StoreCopy,
    row: &CopyRow,
) -> Result<Option<Computer>, Error> {
    let (id, computer) = (row.id, row.id.to_string());
    let disks = begun.disks;
    if matches!(row.state.as_str(), "creating" | "removing") || !disks.exists(id) {
        return Ok(None);
    }
    let spec: ComputerSpec = serde_json::from_str(&row.spec)
        .map_err(|error| Error::new("store_corrupt", 500, format!("the spec of {id}")).because(error))?;
    // Each is the base of the next, for little changes from one to the other.
    let mut base: Option<Base> = None;
    let mut before: Option<Of> = None;
    let mut states = 0;
    for (number, _) in copy.states(id)? {
        let of_state = Of::State { computer: computer.clone(), number };
        let Some(stamp) = disks.state_stamp(id, number) else {
            copy.drop_state(id, number)?;
            continue;
        };
        if writer.unchanged(&of_state, &stamp) {
            (base, before) = (None, Some(of_state));
            states += 1;
            continue;
        }
        let on = match (base.take(), &before) {
            (None, Some(before)) => writer.base(before).map_err(of)?,
            (base, _) => base,
        };
        let path = disks.snapshot_path(id, number);
        let read = read_tree(writer, disks, &of_state, Some(stamp.clone()), &path, on);
        // Let go of while it was read: then what was read may be anything.
        if disks.state_stamp(id, number).as_ref() != Some(&stamp) {
            writer.forget(|of| *of == of_state);
            copy.drop_state(id, number)?;
            if let Err(error) = read {
                tracing::debug!(computer = %id, number, error = chain(&error), "a state went while it was read");
            }
            (base, before) = (None, None);
            continue;
        }
        (base, before) = (Some(read?), Some(of_state));
        states += 1;
    }
    if !begun.fixed.contains_key(&id) {
        // Made since.
        fix(begun, writer, id)?;
    }
    let live = Of::Live { computer: computer.clone() };
    let fixed = match begun.fixed.get(&id) {
        Some(Some((path, stamp))) => Some((path.clone(), stamp.clone())),
        Some(None) => {
            let last = writer.last().and_then(|last| last.tree(&live)).and_then(|tree| tree.stamp.clone());
            match last.is_some_and(|stamp| writer.unchanged(&live, &stamp)) {
                true => None,
                // What it needs is gone from the place.
                false => Some(disks.begin_backup(id)?),
            }
        }
        None => return Ok(None),
    };
    if let Some((path, stamp)) = fixed {
        let on = match (base.take(), &before) {
            (None, Some(before)) => writer.base(before).map_err(of)?,
            (base, _) => base,
        };
        read_tree(writer, disks, &live, stamp, &path, on)?;
    }
    let steps = disks.disk(id).steps;
    plain_tree(writer, Of::Steps { computer: computer.clone() }, &steps, &|_| false)?;
    let skip = |name: &[u8]| HOME_SKIPPED.iter().any(|skipped| skipped.as_bytes() == name) || name.starts_with(b".");
    plain_tree(writer, Of::Home { computer: computer.clone() }, &disks.folder(id), &skip)?;
    // Removed for good meanwhile: what was read may be anything.
    if !disks.exists(id) {
        return Ok(None);
    }
    Ok(Some(Computer { id: computer, name: row.name.clone(), states, disk_bytes: spec.limits.disk.0 }))
}

fn read_tree(
    writer: &mut Writer<'_>,
    disks: &Disks,
    tree: &Of,
    stamp: Option<String>,
    path: &Path,
    base: Option<Base>,
) -> Result<Base, Error> {
    let transactions = disks.transactions(path)?;
    let source = Source { root: path, transactions, skip: &|_| false };
    writer.tree(tree.clone(), stamp, &source, base).map_err(of)
}

/// A tree that is read as it is while it changes: it only grows.
fn plain_tree(
    writer: &mut Writer<'_>,
    tree: Of,
    root: &Path,
    skip: &(dyn Fn(&[u8]) -> bool + Sync),
) -> Result<(), Error> {
    writer.tree(tree, None, &Source { root, transactions: None, skip }, None).map(drop).map_err(of)
}

/// Names and manifests first, then all layers there are: each manifest finds its own.
fn images(writer: &mut Writer<'_>, root: &Path) -> Result<(), Error> {
    for _ in 0..ROUNDS_MAX {
        writer.forget(|of| matches!(of, Of::Images | Of::Layer { .. }));
        plain_tree(writer, Of::Images, root, &|name| !IMAGES_KEPT.contains(&name))?;
        let layers = root.join("layers");
        let entries = std::fs::read_dir(&layers)
            .map_err(|error| Error::new("storage_failed", 500, layers.display().to_string()).because(error))?;
        let mut whole = true;
        for entry in entries.flatten() {
            let Ok(digest) = entry.file_name().into_string() else { continue };
            let layer = Of::Layer { digest: digest.clone() };
            // Named by its content: it never changes.
            if writer.unchanged(&layer, &digest) {
                continue;
            }
            let source = Source { root: &entry.path(), transactions: None, skip: &|_| false };
            match writer.tree(layer.clone(), Some(digest), &source, None) {
                Ok(_) if entry.path().is_dir() => {}
                Ok(_) | Err(BackupError::Vanished(_)) => {
                    writer.forget(|of| *of == layer);
                    whole = false;
                }
                Err(error) => match entry.path().is_dir() {
                    true => return Err(of(error)),
                    false => whole = false,
                },
            }
        }
        if whole {
            return Ok(());
        }
    }
    Err(Error::new("backup_vanished", 500, "images were removed again and again while they were read").retryable())
}
