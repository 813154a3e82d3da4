//! What a difference means: packages, users, services, repositories.
//!
//! ```text
//! two views ─► each area: name → fact, on both sides ─► compared ─► added · changed · removed
//! changed paths ─► Touched: an area nothing of which changed is not read
//! ```
//!
//! Invariants:
//! - What is parsed was written by a computer: no bytes make it panic, each file and each count has a
//!   limit, and what cannot be understood is left out of the meaning; it still is in the list of files.
//! - A secret (a password's digest, a file that may hold keys) is compared and never shown.
//!
//! Deliberately absent: listening ports, which control knows of running computers.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use den_api::{ChangeKind, EntryKind, FactChange};

use crate::view::{View, show};

mod accounts;
mod dpkg;
mod environment;
mod git;
mod index;
mod modules;
mod services;
mod touched;

#[cfg(test)]
mod tests;

use touched::Touched;

/// The changes that are told at most.
const FACTS_MAX: usize = 10_000;
/// The facts that one side of an area has at most.
const FACTS_SIDE_MAX: usize = 200_000;
/// The characters of a name or a value that are shown.
const SHOWN_CHARS_MAX: usize = 200;
/// The largest file of settings that is read, in bytes.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// What differs between `a` and `b` beyond their files, by area and name. `paths` are those that differ,
/// where that is known: areas that they do not touch are not looked at. Without them, virtual
/// environments and repositories are looked for in the usual places.
pub fn facts(a: &View, b: &View, paths: Option<&[PathBuf]>) -> Vec<FactChange> {
    let touched = Touched::new(paths);
    let pair = Pair { a, b, touched: &touched };
    let mut changes = Vec::new();
    for area in [
        dpkg::changes,
        modules::pip,
        modules::npm,
        accounts::users,
        accounts::groups,
        services::services,
        services::cron,
        environment::changes,
        git::changes,
    ] {
        area(&pair, &mut changes);
    }
    changes.sort();
    changes.dedup();
    changes.truncate(FACTS_MAX);
    changes
}

/// Two states and what differs between them.
struct Pair<'a> {
    a: &'a View,
    b: &'a View,
    touched: &'a Touched,
}

impl Pair<'_> {
    fn views(&self) -> [&View; 2] {
        [self.a, self.b]
    }

    /// Whether anything at, above or below `path` differs, or there where links lead from it.
    fn touches(&self, path: impl AsRef<Path>) -> bool {
        let path = path.as_ref();
        self.touched.by(path)
            || (self.touched.is_known()
                && self.views().iter().any(|view| match view.follow(path) {
                    Ok(real) => real != path && self.touched.by(&real),
                    Err(_) => false,
                }))
    }

    fn touches_any(&self, paths: &[&str]) -> bool {
        paths.iter().any(|path| self.touches(path))
    }
}

/// One fact of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    /// What is shown of it.
    shown: Option<String>,
    /// What else must be equal: a digest of what is not shown.
    hidden: Option<[u8; 32]>,
    /// Files that it is about.
    files: Vec<String>,
}

impl Fact {
    fn new(text: impl AsRef<str>) -> Self {
        Self { shown: Some(cut(text.as_ref())), hidden: None, files: Vec::new() }
    }

    fn unseen(bytes: &[u8]) -> Self {
        Self { shown: None, hidden: Some(*blake3::hash(bytes).as_bytes()), files: Vec::new() }
    }

    fn and_unseen(self, bytes: &[u8]) -> Self {
        Self { hidden: Some(*blake3::hash(bytes).as_bytes()), ..self }
    }
}

/// The facts of one side.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts(BTreeMap<String, Fact>);

impl Facts {
    /// Says that `name` is so. A second fact of a name goes beside the first.
    fn put(&mut self, name: &str, fact: Fact) {
        if self.0.len() >= FACTS_SIDE_MAX {
            return;
        }
        match self.0.entry(name.to_owned()) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(fact);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let before = entry.get_mut();
                if *before == fact {
                    return;
                }
                before.shown = match (before.shown.take(), fact.shown) {
                    (Some(one), Some(other)) => Some(cut(&format!("{one}, {other}"))),
                    (one, other) => one.or(other),
                };
                let both = [before.hidden.unwrap_or_default(), fact.hidden.unwrap_or_default()].concat();
                before.hidden = Some(*blake3::hash(&both).as_bytes());
            }
        }
    }
}

/// Adds what differs. `unseen` says what is shown where only what is not shown differs.
fn compare(area: &str, a: &Facts, b: &Facts, unseen: Option<&str>, changes: &mut Vec<FactChange>) {
    let names: BTreeSet<&String> = a.0.keys().chain(b.0.keys()).collect();
    for name in names {
        if changes.len() >= FACTS_MAX * 2 {
            return;
        }
        let (before, after) = (a.0.get(name), b.0.get(name));
        let kind = match (before, after) {
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Removed,
            (before, after) if before != after => ChangeKind::Changed,
            _ => continue,
        };
        let shown = |fact: Option<&Fact>| fact.and_then(|fact| fact.shown.clone());
        let files = |fact: Option<&Fact>| fact.map_or_else(Vec::new, |fact| fact.files.clone());
        let (files_before, files_after) = (files(before), files(after));
        let (before, mut after) = (shown(before), shown(after));
        if let (ChangeKind::Changed, true, Some(unseen)) = (kind, before == after, unseen) {
            after = Some(after.map_or_else(|| unseen.to_owned(), |after| format!("{after}; {unseen}")));
        }
        let (area, name) = (area.to_owned(), cut(name));
        changes.push(FactChange { area, name, kind, before, after, files_before, files_after });
    }
}

/// The bytes of the regular file at `path`, links followed; nothing where there is none or it is too large.
fn bytes(view: &View, path: &Path, max: u64) -> Option<Vec<u8>> {
    let read = view.follow(path).and_then(|real| view.read_limited(&real, max));
    match read {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            if error.code() != "path_not_found" {
                tracing::debug!(%error, "left out of the meaning of a difference");
            }
            None
        }
    }
}

/// The names in the directory at `path`, links followed; none where there is none.
fn names(view: &View, path: &Path) -> Vec<(PathBuf, EntryKind)> {
    let Ok(real) = view.follow(path) else { return Vec::new() };
    let entries = view.entries(&real).unwrap_or_default();
    entries.into_iter().map(|(name, kind)| (path.join(name), kind)).collect()
}

/// The last component, as text.
fn last(path: &Path) -> String {
    show(path.file_name().unwrap_or_default().as_bytes())
}

fn whole(path: &Path) -> String {
    show(path.as_os_str().as_bytes())
}

fn cut(text: &str) -> String {
    let mut shown: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX + 1).collect();
    if shown.chars().count() > SHOWN_CHARS_MAX {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// Lines without what follows `#` at their beginning and without empty ones.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}
