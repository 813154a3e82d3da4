//! What becomes of each path, looked at by itself; and of what was renamed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use den_api::{ChangeKind, ConflictView, EntryKind, SkippedView};

use super::lines::{self, Brought, NotMerged};
use super::names;
use super::three::{At, Compared, Parts, Side, Three, Xattrs, is_device, is_socket};
use super::{Chosen, Source, Wins};
use crate::changed::Identity;
use crate::diff::{Budget, differing};
use crate::error::shown;
use crate::same::Place;
use crate::view::{Meta, Stamp};
use crate::{HistoryError, State};

/// All merged contents together, in bytes.
const MERGED_BYTES_MAX: usize = 256 << 20;

/// Changes that do not come, of those that are told.
const SKIPPED_MAX: usize = 1000;

/// Among more new files of one size no renamed one is looked for by its bytes.
const ALIKE_MAX: usize = 64;

/// What a path is in the merged tree. One of which nothing is said is what it is in ours.
#[derive(Debug, Clone)]
pub(super) enum Merged {
    /// Not there.
    Absent,
    /// This.
    Made(Box<Made>),
}

/// An entry of the merged tree, in full.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// Of which kind, with target and device; of this, nothing else is taken.
    pub like: Rc<Meta>,
    /// Where the bytes of a file come from. `Ours` of the same path: they are there.
    pub source: Source,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: Xattrs,
    /// When it was changed; as it comes, without.
    pub mtime: Option<Stamp>,
    /// Where it is in ours, where that is another path.
    pub from: Option<PathBuf>,
}

/// A merge that is being decided.
pub(super) struct Merge<'a> {
    pub three: Three<'a>,
    pub chosen: Chosen,
    /// What theirs was made as, where that is later than base.
    made_as: Option<&'a State>,
    pub decided: BTreeMap<PathBuf, Merged>,
    pub conflicts: BTreeMap<PathBuf, ConflictView>,
    /// What does not come.
    pub skipped: Vec<SkippedView>,
    merged_bytes: usize,
}

impl<'a> Merge<'a> {
    pub fn new(three: Three<'a>, chosen: Chosen, made_as: Option<&'a State>) -> Self {
        let (decided, conflicts) = (BTreeMap::new(), BTreeMap::new());
        Self { three, chosen, made_as, decided, conflicts, skipped: Vec::new(), merged_bytes: 0 }
    }

    /// Writes a conflict down.
    pub fn conflict(
        &mut self,
        path: &Path,
        why: &str,
        message: String,
        [base, ours, theirs]: [&Path; 3],
        text: Option<String>,
    ) -> Result<(), HistoryError> {
        let mut view = |at: At<'_>| self.three.get(at).map(|meta| meta.map(|meta| meta.view()));
        let conflict = ConflictView {
            path: shown(path),
            why: why.to_owned(),
            message,
            base: view((Side::Base, base))?,
            ours: view((Side::Ours, ours))?,
            theirs: view((Side::Theirs, theirs))?,
            text,
        };
        self.decided.remove(path);
        self.conflicts.insert(path.to_owned(), conflict);
        Ok(())
    }

    /// Whether what theirs has done to `path` is looked at.
    fn takes(&mut self, path: &Path) -> Result<bool, HistoryError> {
        if names::is_own(path) {
            return Ok(false);
        }
        if !self.chosen.takes(path) {
            // A directory that is new, and that something below needs.
            return Ok(self.chosen.leads(path) && self.three.get((Side::Base, path))?.is_none());
        }
        // A socket means nothing without the process that listens.
        let base = self.three.get((Side::Base, path))?;
        let theirs = self.three.get((Side::Theirs, path))?;
        Ok(!theirs.is_some_and(|meta| is_socket(&meta)) || base.is_some_and(|meta| is_socket(&meta)))
    }

    /// Says that what theirs did to a path does not come, where somebody may expect it to: what each computer has
    /// of its own. What a fork was given anew when it was made is no change of anybody.
    fn skip(&mut self, path: &Path) -> Result<(), HistoryError> {
        if !self.chosen.takes(path) || !names::is_told(path) {
            return Ok(());
        }
        let theirs = self.three.state(Side::Theirs);
        let before = self.made_as.unwrap_or_else(|| self.three.state(Side::Base));
        let kind = match (before.view.lstat(path)?, theirs.view.lstat(path)?) {
            (None, None) => return Ok(()),
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Removed,
            (Some(old), Some(new)) => {
                let (old, new) = (Place::of(&before.view, path, &old), Place::of(&theirs.view, path, &new));
                match differing(old, new, &mut Budget::default())?.is_empty() {
                    true => return Ok(()),
                    false => ChangeKind::Changed,
                }
            }
        };
        if self.skipped.len() < SKIPPED_MAX && self.three.compare(Side::Ours, Side::Theirs, path)? != Compared::Same {
            let message = "each computer has its own: what the fork did to it stays there".to_owned();
            self.skipped.push(SkippedView { path: shown(path), kind, message });
        }
        Ok(())
    }

    /// Decides one path that may differ between base and theirs.
    pub fn decide(&mut self, path: &Path) -> Result<(), HistoryError> {
        if !self.takes(path)? {
            return self.skip(path);
        }
        let came = self.three.compare(Side::Base, Side::Theirs, path)?;
        if came == Compared::Same {
            return Ok(());
        }
        if self.three.compare(Side::Base, Side::Ours, path)? == Compared::Same {
            let parts = if let Compared::Differ(parts) = came { Some(parts) } else { None };
            return self.take_theirs(path, parts);
        }
        let between = self.three.compare(Side::Ours, Side::Theirs, path)?;
        if between == Compared::Same {
            return Ok(());
        }
        match self.chosen.side(path) {
            Some(Wins::Ours) => return Ok(()),
            Some(Wins::Theirs) => {
                let parts = if let Compared::Differ(parts) = between { Some(parts) } else { None };
                return self.take_theirs(path, parts);
            }
            None => {}
        }
        let [_, ours, theirs] = self.metas(path, path, path)?;
        let all = [path, path, path];
        match (&ours, &theirs) {
            (Some(_), None) => {
                let message = format!("`{}` was removed in theirs and changed in ours", shown(path));
                self.conflict(path, "delete", message, all, None)
            }
            (None, Some(_)) => {
                let message = format!("`{}` was changed in theirs and removed in ours", shown(path));
                self.conflict(path, "delete", message, all, None)
            }
            (Some(ours), Some(theirs)) if ours.file_type != theirs.file_type => {
                let message =
                    format!("`{}` has become {} in ours and {} in theirs", shown(path), kind(ours), kind(theirs));
                self.conflict(path, "kind", message, all, None)
            }
            _ => self.combine(path, all, None),
        }
    }

    fn metas(&mut self, base: &Path, ours: &Path, theirs: &Path) -> Result<[Option<Rc<Meta>>; 3], HistoryError> {
        Ok([
            self.three.get((Side::Base, base))?,
            self.three.get((Side::Ours, ours))?,
            self.three.get((Side::Theirs, theirs))?,
        ])
    }

    /// Decides that `path` will be as in theirs. `parts` is what differs of it from ours, where both are of
    /// one kind.
    pub fn take_theirs(&mut self, path: &Path, parts: Option<Parts>) -> Result<(), HistoryError> {
        let [base, ours, theirs] = self.metas(path, path, path)?;
        let Some(theirs) = theirs else {
            self.decided.insert(path.to_owned(), Merged::Absent);
            return Ok(());
        };
        if is_device(&theirs) && ours.as_ref().is_none_or(|o| (o.file_type, o.rdev) != (theirs.file_type, theirs.rdev))
        {
            let message = format!("`{}` is a device, which cannot be made inside a computer", shown(path));
            return self.conflict(path, "inside", message, [path, path, path], None);
        }
        let has_xattrs = matches!(theirs.kind, EntryKind::File | EntryKind::Directory);
        let is_there = ours.as_ref().is_some_and(|ours| ours.file_type == theirs.file_type);
        let (source, mtime) = match theirs.kind {
            EntryKind::File if is_there && parts.is_some_and(|parts| !parts.content) => {
                (Source::Ours(path.to_owned()), carried_time(base.as_deref(), ours.as_deref(), &theirs))
            }
            EntryKind::File => (Source::Theirs(path.to_owned()), Some(theirs.mtime)),
            EntryKind::Directory if is_there => (Source::None, carried_time(base.as_deref(), ours.as_deref(), &theirs)),
            _ => (Source::None, Some(theirs.mtime)),
        };
        let made = Made {
            source,
            mode: theirs.mode,
            uid: theirs.uid,
            gid: theirs.gid,
            xattrs: if has_xattrs { self.three.xattrs((Side::Theirs, path))? } else { Xattrs::new() },
            mtime,
            from: None,
            like: theirs,
        };
        self.decided.insert(path.to_owned(), Merged::Made(Box::new(made)));
        Ok(())
    }

    /// Brings together what both have made of one entry, part by part. Its paths in the three may differ;
    /// `path` is where it will be.
    fn combine(&mut self, path: &Path, at: [&Path; 3], from: Option<PathBuf>) -> Result<(), HistoryError> {
        let [base, ours, theirs] = self.metas(at[0], at[1], at[2])?;
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return Ok(()) };
        // What was of another kind says nothing about this one.
        let base = base.filter(|base| base.file_type == ours.file_type);
        let mut against: Vec<&str> = Vec::new();
        let b = base.as_deref();
        let mut number = |b: Option<u32>, o: u32, t: u32, what: &'static str| match three_way(b.as_ref(), &o, &t) {
            Some(Wins::Ours) => o,
            Some(Wins::Theirs) => t,
            None => {
                against.push(what);
                o
            }
        };
        let mode = match ours.kind {
            EntryKind::Symlink => ours.mode,
            _ => number(b.map(|b| b.mode), ours.mode, theirs.mode, "mode"),
        };
        let uid = number(b.map(|b| b.uid), ours.uid, theirs.uid, "owner");
        let gid = number(b.map(|b| b.gid), ours.gid, theirs.gid, "group");
        let mut xattrs = Xattrs::new();
        if matches!(ours.kind, EntryKind::File | EntryKind::Directory) {
            let of_base = match b {
                Some(_) => self.three.xattrs((Side::Base, at[0]))?,
                None => Xattrs::new(),
            };
            let (of_ours, of_theirs) =
                (self.three.xattrs((Side::Ours, at[1]))?, self.three.xattrs((Side::Theirs, at[2]))?);
            for name in of_ours.keys().chain(of_theirs.keys().filter(|name| !of_ours.contains_key(*name))) {
                let (b, o, t) = (of_base.get(name), of_ours.get(name), of_theirs.get(name));
                let taken = match three_way(Some(&b), &o, &t) {
                    Some(Wins::Ours) => o,
                    Some(Wins::Theirs) => t,
                    None => {
                        against.push("extended attributes");
                        None
                    }
                };
                if let Some(value) = taken {
                    xattrs.insert(name.clone(), value.clone());
                }
            }
        }
        let mut mtime = None;
        let (source, like) = match ours.kind {
            EntryKind::File => match self.content(path, at, b)? {
                Ok(source) => {
                    match &source {
                        Source::Ours(_) if from.is_some() => mtime = Some(ours.mtime),
                        Source::Theirs(_) => mtime = Some(theirs.mtime),
                        _ => {}
                    }
                    (source, ours.clone())
                }
                Err(not) => {
                    let message = format!("`{}`: {}", shown(path), not.message);
                    return self.conflict(path, not.why, message, at, not.text);
                }
            },
            EntryKind::Symlink => match three_way(b.map(|b| &b.target), &ours.target, &theirs.target) {
                Some(Wins::Ours) => (Source::None, ours.clone()),
                Some(Wins::Theirs) => {
                    mtime = Some(theirs.mtime);
                    (Source::None, theirs.clone())
                }
                None => {
                    let message = format!("`{}` points elsewhere in ours and elsewhere again in theirs", shown(path));
                    return self.conflict(path, "content", message, at, None);
                }
            },
            EntryKind::Special if is_device(&ours) && ours.rdev != theirs.rdev => {
                let message = format!("`{}` is another device in ours and in theirs", shown(path));
                return self.conflict(path, "inside", message, at, None);
            }
            _ => (Source::None, ours.clone()),
        };
        if !against.is_empty() {
            against.dedup();
            let message = format!("`{}`: both have changed its {}", shown(path), against.join(" and "));
            return self.conflict(path, "metadata", message, at, None);
        }
        let made = Made { like, source, mode, uid, gid, xattrs, mtime, from };
        self.decided.insert(path.to_owned(), Merged::Made(Box::new(made)));
        Ok(())
    }

    /// Brings the bytes of two files together.
    fn content(
        &mut self,
        path: &Path,
        [at_base, at_ours, at_theirs]: [&Path; 3],
        base: Option<&Meta>,
    ) -> Result<Result<Source, NotMerged>, HistoryError> {
        let (b, o, t) = ((Side::Base, at_base), (Side::Ours, at_ours), (Side::Theirs, at_theirs));
        let mut same = |a: At<'_>, b: At<'_>| match self.three.compare_at(a, b)? {
            Compared::Same => Ok::<_, HistoryError>(true),
            Compared::Differ(parts) => Ok(!parts.content),
            Compared::Other => Ok(false),
        };
        if same(o, t)? || base.is_some() && same(b, t)? {
            return Ok(Ok(Source::Ours(at_ours.to_owned())));
        }
        if base.is_some() && same(b, o)? {
            return Ok(Ok(Source::Theirs(at_theirs.to_owned())));
        }
        let how = names::how(path);
        let large = || NotMerged {
            why: "content",
            message: "both have changed it, and it is too large to merge what is in it".to_owned(),
            text: None,
        };
        let base_bytes = if base.is_some() { self.three.bytes(b)? } else { Some(Vec::new()) };
        let (Some(base), Some(ours), Some(theirs)) = (base_bytes, self.three.bytes(o)?, self.three.bytes(t)?) else {
            return Ok(match lines::together(how, b"", b"\0", b"\0") {
                // Of what is not looked into the size says nothing.
                Ok(Brought::Ours) => Ok(Source::Ours(at_ours.to_owned())),
                Err(not) if not.why != "content" => Err(not),
                _ => Err(large()),
            });
        };
        Ok(match lines::together(how, &base, &ours, &theirs) {
            Ok(Brought::Ours) => Ok(Source::Ours(at_ours.to_owned())),
            // What theirs has changed is there already.
            Ok(Brought::Together(bytes)) if bytes == ours => Ok(Source::Ours(at_ours.to_owned())),
            Ok(Brought::Together(bytes)) => {
                self.merged_bytes += bytes.len();
                if self.merged_bytes > MERGED_BYTES_MAX { Err(large()) } else { Ok(Source::Bytes(bytes)) }
            }
            Err(not) => Err(not),
        })
    }

    /// Looks at what one side has removed and the other changed: where it was renamed, the change follows.
    /// `candidates` may differ between base and theirs.
    pub fn follow_renames(&mut self, candidates: &[PathBuf]) -> Result<(), HistoryError> {
        let broken: Vec<PathBuf> = self
            .conflicts
            .iter()
            .filter(|(_, conflict)| conflict.why == "delete")
            .map(|(path, _)| path.clone())
            .collect();
        let mut added = HashMap::new();
        let mut followed = HashSet::new();
        for path in broken {
            let [base, ours, theirs] = self.metas(&path, &path, &path)?;
            let is_file = |meta: &Option<Rc<Meta>>| meta.as_ref().is_some_and(|meta| meta.kind == EntryKind::File);
            if !is_file(&base) {
                continue;
            }
            let renamer = match (&ours, &theirs) {
                (None, Some(_)) if is_file(&theirs) => Side::Ours,
                (Some(_), None) if is_file(&ours) => Side::Theirs,
                _ => continue,
            };
            if let Entry::Vacant(entry) = added.entry(renamer) {
                let found = match renamer {
                    Side::Ours => {
                        let changed = self.three.changed_in_ours()?;
                        self.added(Side::Ours, &changed)?
                    }
                    _ => self.added(Side::Theirs, candidates)?,
                };
                entry.insert(found);
            }
            let Some(there) = self.renamed_to(&path, renamer, &added[&renamer])? else { continue };
            let other = if renamer == Side::Ours { Side::Theirs } else { Side::Ours };
            // One that another was renamed to already, or that stands for itself.
            let is_taken = !followed.insert(there.clone()) || self.conflicts.contains_key(&there);
            if is_taken || self.three.get((other, &there))?.is_some() {
                continue;
            }
            self.conflicts.remove(&path);
            match renamer {
                Side::Ours => self.combine(&there, [&path, &there, &path], None)?,
                _ => {
                    self.decided.insert(path.clone(), Merged::Absent);
                    self.combine(&there, [&path, &path, &there], Some(path.clone()))?;
                }
            }
        }
        Ok(())
    }

    /// Files that are new in one side.
    fn added(&mut self, side: Side, candidates: &[PathBuf]) -> Result<Added, HistoryError> {
        let mut added = Added::default();
        for path in candidates {
            if names::is_own(path) || side == Side::Theirs && !self.chosen.takes(path) {
                continue;
            }
            let Some(meta) = self.three.get((side, path))? else { continue };
            if meta.kind != EntryKind::File || self.three.get((Side::Base, path))?.is_some() {
                continue;
            }
            if let Some(identity) = self.three.identity((side, path))? {
                added.by_identity.entry(identity).or_insert_with(|| path.clone());
            }
            added.by_size.entry(meta.size).or_default().push(path.clone());
        }
        Ok(added)
    }

    /// Where the file that base has at `path` is in a side that has it there no more: the same inode, else the
    /// same bytes, if that leaves no doubt.
    fn renamed_to(&mut self, path: &Path, side: Side, added: &Added) -> Result<Option<PathBuf>, HistoryError> {
        if let Some(identity) = self.three.identity((Side::Base, path))?
            && let Some(new) = added.by_identity.get(&identity)
        {
            return Ok(Some(new.clone()));
        }
        let Some(size) = self.three.get((Side::Base, path))?.map(|meta| meta.size) else { return Ok(None) };
        let alike = added.by_size.get(&size).map_or(&[][..], Vec::as_slice);
        if size == 0 || alike.len() > ALIKE_MAX {
            return Ok(None);
        }
        let mut same = Vec::new();
        for new in alike {
            if self.three.same_bytes((Side::Base, path), (side, new))? {
                same.push(new);
            }
        }
        let name: Option<&OsStr> = path.file_name();
        let named: Vec<_> = same.iter().filter(|new| new.file_name() == name).collect();
        Ok(match (&same[..], &named[..]) {
            ([only], _) => Some((*only).clone()),
            (_, [only]) => Some((**only).clone()),
            _ => None,
        })
    }
}

/// Files that are new in a side, by what a rename is known by.
#[derive(Default)]
struct Added {
    by_identity: HashMap<Identity, PathBuf>,
    by_size: HashMap<u64, Vec<PathBuf>>,
}

/// What to carry over when theirs has done something else than to write.
fn carried_time(base: Option<&Meta>, ours: Option<&Meta>, theirs: &Meta) -> Option<Stamp> {
    let (base, ours) = (base?.mtime, ours?.mtime);
    (base == ours && theirs.mtime != base).then_some(theirs.mtime)
}

/// Who changed a value; `None` where both did, each in its own way.
fn three_way<T: PartialEq>(base: Option<&T>, ours: &T, theirs: &T) -> Option<Wins> {
    if ours == theirs || base == Some(theirs) {
        Some(Wins::Ours)
    } else if base == Some(ours) {
        Some(Wins::Theirs)
    } else {
        None
    }
}

pub(super) fn kind(meta: &Meta) -> &'static str {
    match meta.kind {
        EntryKind::File => "a file",
        EntryKind::Directory => "a directory",
        EntryKind::Symlink => "a link",
        EntryKind::Special => "a pipe, socket or device",
    }
}
