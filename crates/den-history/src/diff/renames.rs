//! What was removed here and added there, and is one thing that moved.
//!
//! ```text
//! removed ─┐ 1. the same inode of the upper, the same directory of the layers
//!          ├─ 2. what is below directories that moved, by its name there
//! added   ─┘ 3. files with the same bytes      4. directories most of whose entries moved to one place, then 2. again
//! ```
//!
//! Invariant: every removed and every added path is used once at most; a pair is of one kind.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::hash::Hash;
use std::path::{Path, PathBuf};

use den_api::{ChangeKind, EntryKind};

use super::{Budget, RawChange, differing, hash};
use crate::HistoryError;
use crate::changed::{Identity, Side};
use crate::same::Place;
use crate::view::Meta;

/// Replaces removals and additions that belong together by renames. Keeps the order by path.
pub(super) fn pair(
    changes: Vec<RawChange>,
    a: &mut Side<'_>,
    b: &mut Side<'_>,
    budget: &mut Budget,
) -> Result<Vec<RawChange>, HistoryError> {
    let mut pairing = Pairing::default();
    for change in &changes {
        match (change.kind, &change.before, &change.after) {
            (ChangeKind::Removed, Some(meta), _) => pairing.removed.insert(change.path.clone(), meta.clone()),
            (ChangeKind::Added, _, Some(meta)) => pairing.added.insert(change.path.clone(), meta.clone()),
            _ => None,
        };
    }
    if pairing.removed.is_empty() || pairing.added.is_empty() {
        return Ok(changes);
    }
    pairing.by_identity(a, b)?;
    pairing.below_moved();
    pairing.by_bytes(a, b, budget)?;
    pairing.by_entries();
    pairing.below_moved();

    let mut kept = Vec::with_capacity(changes.len());
    for mut change in changes {
        match change.kind {
            ChangeKind::Removed if !pairing.removed.contains_key(&change.path) => continue,
            ChangeKind::Added => {
                if let (Some((from, before)), Some(after)) = (pairing.moved.remove(&change.path), &change.after) {
                    let old = Place::of(&a.state.view, &from, &before);
                    change.parts = differing(old, Place::of(&b.state.view, &change.path, after), budget)?;
                    change.kind = ChangeKind::Renamed;
                    (change.from, change.before) = (Some(from), Some(before));
                }
            }
            _ => {}
        }
        kept.push(change);
    }
    Ok(kept)
}

/// Paths by what they are known by, in order.
type Keyed<K> = Vec<(K, PathBuf)>;

#[derive(Default)]
struct Pairing {
    /// Not yet paired.
    removed: BTreeMap<PathBuf, Meta>,
    /// Not yet paired.
    added: BTreeMap<PathBuf, Meta>,
    /// By the new path: the old one.
    moved: HashMap<PathBuf, (PathBuf, Meta)>,
    /// Directories that moved, old and new, whose entries are still to be looked at.
    directories: Vec<(PathBuf, PathBuf)>,
}

impl Pairing {
    /// Pairs the two, if both are still there and of one kind.
    fn join(&mut self, old: &Path, new: &Path) -> bool {
        let (Some(before), Some(after)) = (self.removed.get(old), self.added.get(new)) else { return false };
        if before.file_type != after.file_type {
            return false;
        }
        let is_directory = before.kind == EntryKind::Directory;
        if let Some(before) = self.removed.remove(old) {
            self.added.remove(new);
            self.moved.insert(new.to_owned(), (old.to_owned(), before));
        }
        if is_directory {
            self.directories.push((old.to_owned(), new.to_owned()));
        }
        true
    }

    fn by_identity(&mut self, a: &mut Side<'_>, b: &mut Side<'_>) -> Result<(), HistoryError> {
        fn known(
            paths: &BTreeMap<PathBuf, Meta>,
            side: &mut Side<'_>,
        ) -> Result<(Keyed<Identity>, Keyed<Identity>), HistoryError> {
            let (mut inodes, mut layers) = (Vec::new(), Vec::new());
            for (path, meta) in paths {
                for identity in side.identities(path, meta.kind == EntryKind::Directory)? {
                    match identity {
                        Identity::Inode(..) => inodes.push((identity, path.clone())),
                        Identity::Lower(_) => layers.push((identity, path.clone())),
                    }
                }
            }
            Ok((inodes, layers))
        }
        let (old_inodes, old_layers) = known(&self.removed, a)?;
        let (new_inodes, new_layers) = known(&self.added, b)?;
        self.join_by(old_inodes, new_inodes);
        self.join_by(old_layers, new_layers);
        Ok(())
    }

    /// Pairs what has the same key: those that have kept their name first, the others in order.
    fn join_by<K: Eq + Hash>(&mut self, old: Keyed<K>, new: Keyed<K>) {
        let mut named: HashMap<(&K, Option<&OsStr>), Vec<&Path>> = HashMap::new();
        for (key, path) in old.iter().rev() {
            named.entry((key, path.file_name())).or_default().push(path);
        }
        for (key, path) in &new {
            if let Some(old) = named.get_mut(&(key, path.file_name())).and_then(Vec::pop) {
                self.join(old, path);
            }
        }
        let mut any: HashMap<&K, Vec<&Path>> = HashMap::new();
        for (key, path) in old.iter().rev().filter(|(_, path)| self.removed.contains_key(path)) {
            any.entry(key).or_default().push(path);
        }
        for (key, path) in &new {
            if self.added.contains_key(path)
                && let Some(old) = any.get_mut(key).and_then(Vec::pop)
            {
                self.join(old, path);
            }
        }
    }

    /// Pairs what has the same name below directories that moved.
    fn below_moved(&mut self) {
        let mut children: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
        for path in self.removed.keys() {
            if let Some(parent) = path.parent() {
                children.entry(parent.to_owned()).or_default().push(path.clone());
            }
        }
        while let Some((old, new)) = self.directories.pop() {
            for child in children.remove(&old).unwrap_or_default() {
                if let Some(name) = child.file_name() {
                    self.join(&child, &new.join(name));
                }
            }
        }
    }

    fn by_bytes(&mut self, a: &Side<'_>, b: &Side<'_>, budget: &mut Budget) -> Result<(), HistoryError> {
        fn sizes(paths: &BTreeMap<PathBuf, Meta>) -> BTreeMap<u64, Vec<PathBuf>> {
            let mut sizes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
            for (path, meta) in paths.iter().filter(|(_, meta)| meta.kind == EntryKind::File && meta.size > 0) {
                sizes.entry(meta.size).or_default().push(path.clone());
            }
            sizes
        }
        let mut hashed = |side: &Side<'_>, size, paths: Vec<PathBuf>| -> Result<Keyed<blake3::Hash>, HistoryError> {
            let mut hashed = Vec::with_capacity(paths.len());
            for path in paths {
                if let Some(hash) = hash(&side.state.view, &path, size, budget)? {
                    hashed.push((hash, path));
                }
            }
            Ok(hashed)
        };
        let mut new_sizes = sizes(&self.added);
        for (size, old) in sizes(&self.removed) {
            if let Some(new) = new_sizes.remove(&size) {
                let (old, new) = (hashed(a, size, old)?, hashed(b, size, new)?);
                self.join_by(old, new);
            }
        }
        Ok(())
    }

    /// Pairs directories of which at least half of the entries moved to one other, under their names.
    fn by_entries(&mut self) {
        let mut entries: HashMap<PathBuf, usize> = HashMap::new();
        for path in self.removed.keys().chain(self.moved.values().map(|(old, _)| old)) {
            if let Some(parent) = path.parent() {
                *entries.entry(parent.to_owned()).or_default() += 1;
            }
        }
        let mut votes: BTreeMap<(PathBuf, PathBuf), usize> = BTreeMap::new();
        let voted = |old: &Path, new: &Path| match old.file_name() == new.file_name() {
            true => Some((old.parent()?.to_owned(), new.parent()?.to_owned())),
            false => None,
        };
        for (new, (old, _)) in &self.moved {
            if let Some(pair) = voted(old, new) {
                *votes.entry(pair).or_default() += 1;
            }
        }
        // From below: a directory that moved is an entry that moved.
        let mut depths: Vec<usize> = self.removed.keys().map(|path| path.components().count()).collect();
        depths.sort_unstable();
        depths.dedup();
        for depth in depths.into_iter().rev() {
            let here: Vec<(PathBuf, PathBuf)> = votes
                .iter()
                .filter(|((old, _), count)| {
                    old.components().count() == depth && **count * 2 >= entries.get(old).copied().unwrap_or(0)
                })
                .map(|(pair, _)| pair.clone())
                .collect();
            for (old, new) in here {
                if self.join(&old, &new)
                    && let Some(pair) = voted(&old, &new)
                {
                    *votes.entry(pair).or_default() += 1;
                }
            }
        }
    }
}
