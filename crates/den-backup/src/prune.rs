//! Letting go of old backups, and of packs that none needs any more.
//!
//! ```text
//! manifests go ─► new index of what stays ─► old indexes go ─► packs go       cut off anywhere: less is gone
//! ```
//!
//! A pack goes once no chunk of it is needed; what is needed of one keeps it whole, and so does a chunk of it that
//! is broken in a pack that stays. Where a backup that stays, or a pack that it needs, is not there or cannot be
//! read, no pack goes: what is needed is not known.

use std::collections::HashSet;

use den_sys::failpoint;

use crate::{
    BackupError, Found, Place, Repository,
    chunk::Hash,
    index::{self, INDEXES, Index, Marks, PACKS, hash_in, mark_name},
    lease::Lease,
};

/// What went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Ids of backups.
    pub backups: Vec<String>,
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why no pack went, where one could have.
    pub held: Option<String>,
}

/// Lets go of all but the newest `keep` backups, and of what none needs.
///
/// Errors: `Locked`; what the place says. What went until then is gone. A backup that stays and is broken is none,
/// and told of in `held`.
pub fn prune(place: Place, keep: usize) -> Result<Pruned, BackupError> {
    remove_some(place, |all| {
        let gone = all.len().saturating_sub(keep);
        Ok(all.drain(..gone).collect())
    })
}

/// Lets go of one backup, and of what no other needs.
///
/// Errors: as [`prune`]; `NoBackup`.
pub fn remove(place: Place, id: &str) -> Result<Pruned, BackupError> {
    let found = Repository::find(&place, Some(id))?;
    remove_some(place, |all| {
        all.retain(|other| *other != found);
        Ok(vec![found])
    })
}

fn remove_some(
    place: Place,
    choose: impl FnOnce(&mut Vec<Found>) -> Result<Vec<Found>, BackupError>,
) -> Result<Pruned, BackupError> {
    let mut lease = Lease::take(&place)?;
    let removed = Repository::backups(&place).and_then(|mut all| {
        let gone = choose(&mut all)?;
        sweep(&place, &mut lease, &gone, &all)
    });
    lease.give_back(&place);
    removed
}

fn sweep(place: &Place, lease: &mut Lease, gone: &[Found], kept: &[Found]) -> Result<Pruned, BackupError> {
    // All that stays has to be known before anything goes.
    let mut needed: HashSet<Hash> = HashSet::new();
    let mut held = None;
    for found in kept {
        match found.read(place) {
            Ok(manifest) => needed.extend(manifest.packs),
            Err(error @ BackupError::Broken { .. }) => held = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        lease.renew(place)?;
    }
    for found in gone {
        place.delete(&found.object())?;
        failpoint::hit("backup.removed");
    }
    let mut pruned = Pruned { backups: gone.iter().map(|found| found.id.clone()).collect(), ..Pruned::default() };
    if held.is_some() {
        return Ok(Pruned { held, ..pruned });
    }
    let marks = Marks::read(place)?;
    if let Err(pack) = spare(place, &marks, &mut needed, lease)? {
        let held = Some(format!("what marks chunks of the pack {pack} as broken cannot be read: den backup verify"));
        return Ok(Pruned { held, ..pruned });
    }
    let (kept, packs): (Vec<_>, Vec<_>) =
        place.list(PACKS)?.into_iter().partition(|object| hash_in(&object.name).is_some_and(|it| needed.contains(&it)));
    let there: HashSet<Hash> = kept.iter().filter_map(|object| hash_in(&object.name)).collect();
    // Its chunks may be in another one by now.
    if let Some(pack) = needed.iter().find(|pack| !there.contains(pack)) {
        let held = Some(format!("the pack {pack} is gone, and what it had may be in any other: den backup verify"));
        return Ok(Pruned { held, ..pruned });
    }
    if packs.is_empty() {
        return Ok(pruned);
    }
    let old = place.list(INDEXES)?;
    let index = Index::load_of(place, marks.clone(), |pack| needed.contains(&pack), &mut || lease.renew(place))?;
    let bytes = index::write(&index.listings())?;
    let name = format!("{INDEXES}/{}", Hash::of(&bytes));
    place.put(&name, bytes.into())?;
    failpoint::hit("backup.reindexed");
    for object in old.iter().filter(|object| object.name != name) {
        place.delete(&object.name)?;
    }
    failpoint::hit("backup.forgotten");
    for object in packs {
        lease.renew(place)?;
        place.delete(&object.name)?;
        pruned.packs += 1;
        pruned.bytes += object.bytes;
        failpoint::hit("backup.swept");
    }
    for pack in marks.packs().filter(|pack| !needed.contains(pack)) {
        place.delete(&mark_name(pack))?;
    }
    Ok(pruned)
}

/// What is broken in a pack that is needed, and whole in another one, makes that one needed too. The pack whose
/// broken chunks are not known otherwise.
fn spare(
    place: &Place,
    marks: &Marks,
    needed: &mut HashSet<Hash>,
    lease: &mut Lease,
) -> Result<Result<(), Hash>, BackupError> {
    let marked: Vec<Hash> = marks.packs().filter(|pack| needed.contains(pack)).collect();
    if marked.is_empty() {
        return Ok(Ok(()));
    }
    let index = Index::load_of(place, marks.clone(), |_| true, &mut || lease.renew(place))?;
    for pack in marked {
        let Some(broken) = marks.chunks(pack) else { return Ok(Err(pack)) };
        let whole = broken.iter().filter(|hash| !index.doubtful.contains(hash));
        let packs = whole.filter_map(|hash| index.packs[index.chunks.get(hash)?.pack as usize]);
        needed.extend(packs);
    }
    Ok(Ok(()))
}
