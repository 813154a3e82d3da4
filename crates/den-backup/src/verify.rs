//! Reading everything that backups need, and holding it against its hashes.
//!
//! ```text
//! every pack ─► chunks that are not what they were ─► marked, under the lease ─► every listing ─► what is lost
//!                                                       └ the next backup stores them again, if they are still there
//! ```
//!
//! A pack that is whole again loses its mark.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Serialize;

use crate::{
    BackupError, Place, Progress, Repository,
    chunk::{self, Hash},
    index::{Entry, Index, Marks, PACKS, entries_of, hash_in, readable},
    lease::Lease,
    tree::{Item, Reader},
};

/// Lost things that are named, of each backup.
const LOST_MAX: usize = 1000;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Backups that were read.
    pub backups: u64,
    /// Packs that were read.
    pub packs: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Chunks that are what they were.
    pub chunks: u64,
    /// What is lost, and of which backup.
    pub lost: Vec<Lost>,
    /// Why that could not be marked, so that the next backup does not store it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmarked: Option<String>,
}

/// Something that a backup cannot give back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// The backup.
    pub backup: String,
    /// What.
    pub what: String,
}

/// Reads every pack, marks what is broken of them, then reads every listing of every backup.
///
/// Errors: what the place says. What is lost is no error but found.
pub fn verify(place: Place, progress: &dyn Progress, stop: &AtomicBool) -> Result<Verified, BackupError> {
    let mut found = Verified::default();
    let backups = Repository::backups(&place)?;
    let mut repository = Repository::open(place)?;
    let place = repository.place();
    let mut listed: HashMap<Hash, Vec<Entry>> =
        repository.index.listings().into_iter().map(|listing| (listing.pack, listing.entries)).collect();
    let mut marks = Marks::default();
    let mut whole: HashSet<Hash> = HashSet::new();
    progress.begins("packs");
    for object in place.list(PACKS)? {
        if stop.load(Ordering::Relaxed) {
            return Err(BackupError::Stopped);
        }
        let Some(pack) = hash_in(&object.name) else { continue };
        let bytes = match place.get(&object.name) {
            Ok(None) => continue, // It was let go of.
            got => readable(got)?.unwrap_or_default(),
        };
        progress.read(bytes.len() as u64);
        found.packs += 1;
        found.bytes += bytes.len() as u64;
        // What it says itself, and what an index says of it.
        let mut entries = entries_of(&bytes).unwrap_or_default();
        entries.extend(listed.remove(&pack).unwrap_or_default());
        entries.sort_unstable();
        entries.dedup();
        let (mut sound, mut broken) = (HashSet::new(), HashSet::new());
        for entry in entries {
            let at = entry.at as usize;
            let stored = bytes.get(at..at.saturating_add(entry.stored as usize));
            match stored.is_some_and(|stored| chunk::unpack(entry.hash, stored, entry.raw as usize).is_ok()) {
                true => sound.insert(entry.hash),
                false => broken.insert(entry.hash),
            };
        }
        broken.retain(|hash| !sound.contains(hash));
        marks.set(pack, broken);
        whole.extend(sound);
    }
    if marks != repository.index.marks {
        found.unmarked = mark(place, &marks).err().map(|error| error.to_string());
        // What is whole elsewhere is read there from here on.
        let index = Index::load_of(place, marks, |_| true, &mut || Ok(()))?;
        repository.index = index;
    }
    let place = repository.place();
    // One that an index has elsewhere is read from there.
    whole.retain(|hash| repository.index.chunks.contains_key(hash));
    found.chunks = whole.len() as u64;
    // What is lost of a listing that many backups share is looked for once.
    let mut known: HashMap<Vec<Hash>, Vec<String>> = HashMap::new();
    for backup in backups {
        progress.begins(&format!("the backup {}", backup.id));
        let mut lose = |what: String| {
            if found.lost.len() < LOST_MAX {
                found.lost.push(Lost { backup: backup.id.clone(), what });
            }
        };
        let manifest = match backup.read(place) {
            Ok(manifest) => manifest,
            Err(BackupError::Broken { .. }) => {
                lose("all of it: its list has changed since it was written".to_owned());
                continue;
            }
            Err(error) => return Err(error),
        };
        if manifest.database.chunks.iter().any(|hash| !whole.contains(hash)) {
            lose("the database, and so all of it".to_owned());
        }
        for tree in &manifest.trees {
            if stop.load(Ordering::Relaxed) {
                return Err(BackupError::Stopped);
            }
            let lost = match known.get(&tree.chunks) {
                Some(lost) => lost.clone(),
                None => {
                    let lost = lost_of(&repository, tree, &whole)?;
                    known.insert(tree.chunks.clone(), lost.clone());
                    lost
                }
            };
            lost.into_iter().for_each(|path| match path.as_str() {
                "" => lose(tree.of.to_string()),
                path => lose(format!("{path} in {}", tree.of)),
            });
        }
        found.backups += 1;
    }
    Ok(found)
}

/// Writes down what is broken. No backup is made meanwhile, so the next one knows.
fn mark(place: &Place, marks: &Marks) -> Result<(), BackupError> {
    let lease = Lease::take(place)?;
    let written = Marks::read(place).and_then(|old| marks.write(place, &old));
    lease.give_back(place);
    written
}

/// Paths of a tree that are lost; the empty one for the whole.
fn lost_of(repository: &Repository, tree: &crate::Tree, whole: &HashSet<Hash>) -> Result<Vec<String>, BackupError> {
    if tree.chunks.iter().any(|hash| !whole.contains(hash)) {
        return Ok(vec![String::new()]);
    }
    let mut reader = Reader::new(repository.read(&tree.chunks), tree.of.to_string());
    let mut path: Vec<String> = Vec::new();
    let mut lost = Vec::new();
    loop {
        match reader.next() {
            Ok(None) => return Ok(lost),
            Ok(Some(Item::Enter(node))) => path.push(String::from_utf8_lossy(&node.name).into_owned()),
            Ok(Some(Item::Leave)) => drop(path.pop()),
            Ok(Some(Item::Node(node))) => {
                if node.content.pieces().iter().any(|piece| !whole.contains(&piece.hash)) && lost.len() < LOST_MAX {
                    let mut full = path.iter().skip(1).cloned().collect::<Vec<_>>();
                    full.push(String::from_utf8_lossy(&node.name).into_owned());
                    lost.push(full.join("/"));
                }
            }
            Err(BackupError::Broken { .. }) => return Ok(vec![String::new()]),
            Err(error) => return Err(error),
        }
    }
}
