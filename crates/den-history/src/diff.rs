//! How two states differ, path by path.
//!
//! ```text
//! paths that may differ ──► compared in both views ──► added · changed · removed ──► moved ones paired ──► told
//!                            kind, mode, owner, target,                              renames.rs        lines, hashes,
//!                            attributes, bytes                                                         unified diffs
//! ```
//!
//! Invariants:
//! - A path is told if and only if its kind, mode, owner, target, device, extended attributes or bytes differ.
//!   Times alone, and a copy of a layer's file in the upper, are no difference.
//! - Each path is told once; what moved is told at its new place, with the old one as `from`. What is below a
//!   directory that moved is told too, each by itself.
//! - Reading is bounded: bytes hashed and read as text by budgets, texts by theirs.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use den_api::{ChangeCount, ChangeKind, ChangePart, EntryKind, FileChange};

use crate::changed::{Only, candidates};
use crate::same::{Place, same_bytes, spend};
use crate::text::{TEXT_BYTES_MAX, is_text, line_counts, unified_between};
use crate::view::{Meta, View, show};
use crate::{HistoryError, Phase, Progress, State, volumes};

mod renames;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes that are hashed for one difference: for renames, and of binary files.
const HASH_BYTES_MAX: u64 = 1 << 30;

/// Bytes that are read as text for one difference.
const TEXT_INPUT_BYTES_MAX: u64 = 128 << 20;

/// Bytes of unified diffs in one difference.
const TEXT_OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// Bytes compared in one difference; beyond, files of the same size and time of change are taken as equal.
const COMPARED_BYTES_MAX: u64 = 256 << 30;

/// What of a difference is wanted.
#[derive(Debug, Clone)]
pub struct DiffOptions {
    /// Only these paths (absolute) and what is below them; all, where there are none.
    pub paths: Vec<PathBuf>,
    /// With unified diffs of text files.
    pub text: bool,
    /// How many paths are told.
    pub limit: usize,
    /// Whether what moved is told as one.
    pub renames: bool,
    /// Where it is told how far it is.
    pub progress: Progress,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self { paths: Vec::new(), text: false, limit: 10_000, renames: true, progress: Progress::default() }
    }
}

/// How two states differ.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    /// By path, up to the limit.
    pub files: Vec<FileChange>,
    /// Of all paths.
    pub count: ChangeCount,
    /// Whether `files` has not all of `raw`, or there is more than `raw` has (see `complete`).
    pub truncated: bool,
    /// Whether `raw` has all that differs. It has not where that is more than a million paths, or some lie
    /// deeper than a state may be.
    pub complete: bool,
    /// By path, all of them.
    pub raw: Vec<RawChange>,
    /// Places beside the trees that differ too, and are not compared: `/var/lib/docker`.
    pub volumes: Vec<String>,
}

/// One path that differs, exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawChange {
    /// Absolute; in the second state, or in the first if it is removed.
    pub path: PathBuf,
    /// How it differs.
    pub kind: ChangeKind,
    /// In the first state, if it is renamed.
    pub from: Option<PathBuf>,
    /// What of it differs, where it is in both; not in order of anything.
    pub parts: Vec<ChangePart>,
    /// In the first state.
    pub before: Option<Meta>,
    /// In the second state.
    pub after: Option<Meta>,
}

impl RawChange {
    fn old_path(&self) -> &Path {
        self.from.as_deref().unwrap_or(&self.path)
    }
}

/// How `b` differs from `a`.
///
/// `since` is the generation that the state both come from had when it was kept (not its generation now: a
/// snapshot of a snapshot moves that); with it the cost grows with what was written since, without it with what
/// both computers have written ever.
///
/// ```no_run
/// # use std::path::{Path, PathBuf};
/// # use den_history::{diff, DiffOptions, State};
/// # fn main() -> Result<(), den_history::HistoryError> {
/// let layers = [PathBuf::from("/images/base/top"), PathBuf::from("/images/base/bottom")];
/// let before = State::open(Path::new("/computers/c/snapshots/3"), &layers)?;
/// let after = State::open(Path::new("/computers/c/snapshots/4"), &layers)?;
/// for change in diff(&before, &after, Some(1234), &DiffOptions::default())?.files {
///     println!("{:?} {}", change.kind, change.path);
/// }
/// # Ok(())
/// # }
/// ```
pub fn diff(a: &State, b: &State, since: Option<u64>, options: &DiffOptions) -> Result<Difference, HistoryError> {
    let progress = &options.progress;
    progress.begin(Phase::Finding, 0);
    let mut found = candidates(a, b, since, &Only::of(&options.paths)?)?;
    let mut budget = Budget::default();
    let mut raw = Vec::new();
    progress.begin(Phase::Comparing, found.paths.len());
    for path in std::mem::take(&mut found.paths) {
        progress.step();
        let (before, after) = (a.view.lstat(&path)?, b.view.lstat(&path)?);
        let (kind, parts) = match (&before, &after) {
            (None, None) => continue,
            (None, Some(_)) => (ChangeKind::Added, Vec::new()),
            (Some(_), None) => (ChangeKind::Removed, Vec::new()),
            (Some(old), Some(new)) => {
                let parts = differing(Place::of(&a.view, &path, old), Place::of(&b.view, &path, new), &mut budget)?;
                if parts.is_empty() {
                    continue;
                }
                (ChangeKind::Changed, parts)
            }
        };
        raw.push(RawChange { path, kind, from: None, parts, before, after });
    }
    if options.renames {
        raw = renames::pair(raw, &mut found.a, &mut found.b, &mut budget)?;
    }
    let mut count = ChangeCount::default();
    for change in &raw {
        *match change.kind {
            ChangeKind::Added => &mut count.added,
            ChangeKind::Removed => &mut count.removed,
            ChangeKind::Changed | ChangeKind::Renamed => &mut count.changed,
        } += 1;
    }
    let told = raw.len().min(options.limit);
    progress.begin(Phase::Describing, told);
    let mut files = Vec::with_capacity(told);
    for change in &raw[..told] {
        progress.step();
        files.push(tell(a, b, change, options.text, &mut budget)?);
    }
    let truncated = found.truncated || files.len() < raw.len();
    let volumes = match found.volumes {
        _ if !options.paths.is_empty() => Vec::new(),
        Some(volumes) => volumes.into_iter().collect(),
        None => volumes::differing(a, b)?.into_iter().collect(),
    };
    Ok(Difference { files, count, truncated, complete: !found.truncated, raw, volumes })
}

/// How much may still be read.
pub(crate) struct Budget {
    hash: u64,
    compared: u64,
    text_input: u64,
    text_output: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            hash: HASH_BYTES_MAX,
            compared: COMPARED_BYTES_MAX,
            text_input: TEXT_INPUT_BYTES_MAX,
            text_output: TEXT_OUTPUT_BYTES_MAX,
        }
    }
}

/// What differs between an entry of the first state and one of the second.
pub(crate) fn differing(old: Place<'_>, new: Place<'_>, budget: &mut Budget) -> Result<Vec<ChangePart>, HistoryError> {
    let (before, after) = (old.meta, new.meta);
    if before.file_type != after.file_type || (before.kind == EntryKind::Special && before.rdev != after.rdev) {
        return Ok(vec![ChangePart::Kind]);
    }
    let mut parts = Vec::new();
    if before.kind == EntryKind::File && !same_bytes(old, new, &mut budget.compared)? {
        parts.push(ChangePart::Content);
    }
    // Links have no mode of their own: all are 0777.
    if before.mode != after.mode {
        parts.push(ChangePart::Mode);
    }
    if (before.uid, before.gid) != (after.uid, after.gid) {
        parts.push(ChangePart::Owner);
    }
    if old.view.xattrs(old.path)? != new.view.xattrs(new.path)? {
        parts.push(ChangePart::Xattr);
    }
    if before.target != after.target {
        parts.push(ChangePart::Target);
    }
    Ok(parts)
}

/// blake3 of the file at `path`; nothing where the budget does not reach.
fn hash(view: &View, path: &Path, size: u64, budget: &mut Budget) -> Result<Option<blake3::Hash>, HistoryError> {
    if !spend(&mut budget.hash, size) {
        return Ok(None);
    }
    let file = view.open_file(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; (size as usize).clamp(1, CHUNK_BYTES)];
    let mut at = 0;
    while at < size {
        let length = file.read_at(&mut chunk, at).map_err(HistoryError::io("reading", path))?;
        if length == 0 {
            break;
        }
        hasher.update(&chunk[..length]);
        at += length as u64;
    }
    Ok(Some(hasher.finalize()))
}

/// A change as it travels.
fn tell(a: &State, b: &State, change: &RawChange, text: bool, budget: &mut Budget) -> Result<FileChange, HistoryError> {
    let name = |path: &Path| show(path.as_os_str().as_bytes());
    let mut told = FileChange {
        path: name(&change.path),
        kind: change.kind,
        from: change.from.as_deref().map(name),
        parts: change.parts.clone(),
        before: change.before.as_ref().map(Meta::view),
        after: change.after.as_ref().map(Meta::view),
        hash_before: None,
        hash_after: None,
        lines_added: None,
        lines_removed: None,
        text: None,
    };
    let file = |meta: &Option<Meta>| meta.as_ref().filter(|meta| meta.kind == EntryKind::File).map(|meta| meta.size);
    let (old, new) = (file(&change.before), file(&change.after));
    let differs = change.parts.contains(&ChangePart::Content);
    let is_whole = matches!(change.kind, ChangeKind::Added | ChangeKind::Removed) && (old.is_some() || new.is_some());
    if !differs && !is_whole {
        return Ok(told);
    }
    let (old_size, new_size) = (old.unwrap_or(0), new.unwrap_or(0));
    let is_small = old_size <= TEXT_BYTES_MAX && new_size <= TEXT_BYTES_MAX;
    if is_small && spend(&mut budget.text_input, old_size + new_size) {
        let read = |state: &State, path: &Path, is_there: Option<u64>| match is_there {
            Some(_) => state.view.read_limited(path, TEXT_BYTES_MAX),
            None => Ok(Vec::new()),
        };
        let before = read(a, change.old_path(), old)?;
        let after = read(b, &change.path, new)?;
        if is_text(&before) && is_text(&after) {
            let (added, removed) = line_counts(&before, &after);
            (told.lines_added, told.lines_removed) = (Some(added), Some(removed));
            if text && budget.text_output > 0 {
                let (from, to) = (change.old_path().as_os_str().as_bytes(), change.path.as_os_str().as_bytes());
                let shown = unified_between(&before, &after, old.map(|_| from), new.map(|_| to));
                if spend(&mut budget.text_output, shown.len() as u64) {
                    told.text = Some(shown);
                }
            }
        } else if differs {
            told.hash_before = Some(blake3::hash(&before).to_hex().to_string());
            told.hash_after = Some(blake3::hash(&after).to_hex().to_string());
        }
    } else if differs {
        let hex = |hash: Option<blake3::Hash>| hash.map(|hash| hash.to_hex().to_string());
        told.hash_before = hex(hash(&a.view, change.old_path(), old_size, budget)?);
        told.hash_after = hex(hash(&b.view, &change.path, new_size, budget)?);
    }
    Ok(told)
}
