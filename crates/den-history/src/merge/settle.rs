//! Makes a tree of what was decided path by path: every entry needs a directory to be in.
//!
//! ```text
//! from the top     an entry whose directory is gone in ours, or is no directory any more
//! from the bottom  a directory that goes, or gives way, while something stays in it
//! ```
//!
//! Both are conflicts, unless one side was chosen for the path; then the tree is made to fit.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use den_api::EntryKind;

use super::Wins;
use super::decide::{Merge, Merged, kind};
use super::names;
use super::three::{Compared, Side};
use crate::HistoryError;
use crate::error::shown;

/// What is at a path of the merged tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Absent,
    Directory,
    Other,
}

impl Merge<'_> {
    /// Settles all that was decided.
    pub fn settle(&mut self) -> Result<(), HistoryError> {
        let broken: Vec<PathBuf> = self.conflicts.keys().cloned().collect();
        for path in &broken {
            self.look_above(path)?;
        }
        let made: Vec<PathBuf> = self.decided.keys().cloned().collect();
        for path in &made {
            if let Some(Merged::Made(_)) = self.decided.get(path) {
                self.place(path)?;
            }
        }
        // Directories of ours that are to go, and what was added while placing.
        let decided: Vec<PathBuf> = self.decided.keys().rev().cloned().collect();
        let mut stays = HashSet::new();
        for path in &decided {
            self.empty(path, &mut stays)?;
        }
        // What is below a conflict is part of it.
        let all: Vec<PathBuf> = self.conflicts.keys().cloned().collect();
        for path in &all {
            if self.conflicts.contains_key(path) {
                self.forget(path, false);
            }
        }
        Ok(())
    }

    fn presence(&mut self, path: &Path) -> Result<Presence, HistoryError> {
        let kind = match self.decided.get(path) {
            Some(Merged::Absent) => return Ok(Presence::Absent),
            Some(Merged::Made(made)) => made.like.kind,
            None => match self.three.get((Side::Ours, path))? {
                Some(meta) => meta.kind,
                None => return Ok(Presence::Absent),
            },
        };
        Ok(if kind == EntryKind::Directory { Presence::Directory } else { Presence::Other })
    }

    /// A conflict below something that is no directory any more is about that.
    fn look_above(&mut self, path: &Path) -> Result<(), HistoryError> {
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        for dir in above {
            if self.conflicts.contains_key(dir) {
                break;
            }
            if self.presence(dir)? == Presence::Other {
                return self.clash(dir);
            }
        }
        Ok(())
    }

    /// Sees to it that an entry that comes has directories above it.
    fn place(&mut self, path: &Path) -> Result<(), HistoryError> {
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        for dir in above {
            if self.conflicts.contains_key(dir) {
                return Ok(());
            }
            match self.presence(dir)? {
                Presence::Directory => {}
                Presence::Absent => match self.chosen.side(path) {
                    Some(Wins::Theirs) => self.take_theirs(dir, None)?,
                    Some(Wins::Ours) => {
                        self.decided.remove(path);
                        return Ok(());
                    }
                    None => {
                        let message = format!(
                            "`{}` came in theirs, and the directory `{}` was removed in ours",
                            shown(path),
                            shown(dir)
                        );
                        return self.conflict(path, "delete", message, [path; 3], None);
                    }
                },
                Presence::Other => return self.clash(dir),
            }
        }
        Ok(())
    }

    /// A directory in one side is something else in the other, and both have changed it or what is below.
    fn clash(&mut self, path: &Path) -> Result<(), HistoryError> {
        match self.chosen.side(path) {
            Some(Wins::Ours) => self.forget(path, true),
            Some(Wins::Theirs) => {
                self.forget(path, true);
                self.take_theirs(path, None)?;
                let mut all = Vec::new();
                for side in [Side::Ours, Side::Theirs] {
                    if self.three.get((side, path))?.is_some_and(|meta| meta.kind == EntryKind::Directory) {
                        all.extend(self.three.below((side, path))?);
                    }
                }
                for below in all {
                    if self.three.compare(Side::Ours, Side::Theirs, &below)? != Compared::Same {
                        self.take_theirs(&below, None)?;
                    }
                }
            }
            None => {
                self.forget(path, false);
                let mut what = |side| -> Result<&'static str, HistoryError> {
                    Ok(self.three.get((side, path))?.map_or("nothing", |meta| kind(&meta)))
                };
                let message = format!(
                    "`{}` is {} in ours and {} in theirs, and something below it has changed",
                    shown(path),
                    what(Side::Ours)?,
                    what(Side::Theirs)?
                );
                self.conflict(path, "kind", message, [path; 3], None)?;
            }
        }
        Ok(())
    }

    /// Drops what was decided and found about everything below a path, and about the path itself.
    fn forget(&mut self, path: &Path, itself: bool) {
        let gone = |other: &PathBuf| other.starts_with(path) && (itself || other != path);
        self.decided.retain(|other, _| !gone(other));
        self.conflicts.retain(|other, _| !gone(other));
    }

    /// Sees to it that a directory of ours that is to go, or to give way, is empty by then. `stays` has those
    /// that turned out to stay.
    fn empty(&mut self, path: &Path, stays: &mut HashSet<PathBuf>) -> Result<(), HistoryError> {
        let gives_way = match self.decided.get(path) {
            Some(Merged::Absent) => false,
            Some(Merged::Made(made)) if made.like.kind != EntryKind::Directory => true,
            _ => return Ok(()),
        };
        if self.three.get((Side::Ours, path))?.is_none_or(|meta| meta.kind != EntryKind::Directory) {
            return Ok(());
        }
        let mut kept = false;
        let mut blockers = Vec::new();
        for (name, _) in self.three.state(Side::Ours).view.entries(path)? {
            let child = path.join(name);
            if self.conflicts.contains_key(&child) || stays.contains(&child) {
                kept = true;
                continue;
            }
            if self.presence(&child)? == Presence::Absent {
                continue;
            }
            if names::is_own(&child) || self.chosen.side(&child) == Some(Wins::Ours) {
                kept = true;
            } else {
                blockers.push(child);
            }
        }
        if gives_way {
            if kept || !blockers.is_empty() {
                self.clash(path)?;
            }
            return Ok(());
        }
        for child in blockers {
            if self.chosen.side(&child) == Some(Wins::Theirs) {
                self.remove_whole(&child)?;
                continue;
            }
            kept = true;
            let message =
                format!("`{}` came in ours, and the directory `{}` was removed in theirs", shown(&child), shown(path));
            self.conflict(&child, "delete", message, [&child; 3], None)?;
        }
        if kept {
            self.decided.remove(path);
            stays.insert(path.to_owned());
        }
        Ok(())
    }

    /// Removes an entry of ours with all that is in it.
    fn remove_whole(&mut self, path: &Path) -> Result<(), HistoryError> {
        if self.three.get((Side::Ours, path))?.is_some_and(|meta| meta.kind == EntryKind::Directory) {
            for below in self.three.below((Side::Ours, path))? {
                self.decided.insert(below, Merged::Absent);
            }
        }
        self.decided.insert(path.to_owned(), Merged::Absent);
        Ok(())
    }
}
