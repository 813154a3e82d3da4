//! Three-way merges: what came to `theirs` since `base`, brought into `ours`.
//!
//! ```text
//! paths that differ base ↔ theirs ──► decide  by path: only theirs changed it? both the same? both?
//!                                     ├ both ─► kind, content (`lines`, `records`), each attribute
//!                                     ▼
//!                                   renames: what was changed here and moved there moves
//!                                     ▼
//!                                   settle  is every path still in a directory?
//!                                     ▼
//!                                   ops     what the agent does to ours, with what it expects to find
//! ```
//!
//! What conflicts: both changed a path, each in its own way, and not in ways that go together (`content`,
//! `metadata`, `kind`, `package_database`, `lock_file`); one removed what the other changed, or a directory
//! into which the other put something (`delete`); a device, which cannot be made inside (`inside`).
//! A time alone is no change. Volumes are not part of a state.
//!
//! `MergeOptions::ours` and `theirs` say which side wins where *both* have changed a path or something below
//! it; the nearest of the named paths counts. What only one side has changed comes or stays in any case.
//!
//! Invariants:
//! - The cost grows with what theirs has changed, not with the disk; files are compared in pieces, and merged
//!   only up to a limit.
//! - A plan with conflicts is not to be applied; one without, applied to ours, gives the merged tree.
//! - What a fork is given as its own (host name, keys, seeds) is never merged.

mod decide;
mod lines;
mod names;
mod ops;
mod records;
mod settle;
mod three;

use std::fs::File;
use std::path::{Path, PathBuf};

use den_api::{ChangeCount, ConflictView, FileChange, SkippedView};
use den_wire::agent::ApplyOp;

use crate::changed::changed_and_volumes;
use crate::view::checked;
use crate::{HistoryError, Phase, Progress, State};

/// What of theirs comes, and who wins.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// Only these and what is below them, with the directories that they need; everything where there are
    /// none.
    pub paths: Vec<PathBuf>,
    /// Where both have changed one of these or something below it, ours stays.
    pub ours: Vec<PathBuf>,
    /// Where both have changed one of these or something below it, theirs comes.
    pub theirs: Vec<PathBuf>,
    /// Where it is told how far it is.
    pub progress: Progress,
}

/// What a merge is.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is to be done to ours, in order. Not to be done where there are conflicts.
    pub ops: Vec<Op>,
    /// What stands against it, by path.
    pub conflicts: Vec<ConflictView>,
    /// What it changes in ours, by path.
    pub files: Vec<FileChange>,
    /// How many paths.
    pub count: ChangeCount,
    /// What theirs has changed and does not come, by path.
    pub skipped: Vec<SkippedView>,
    /// Places beside the tree that were written to in theirs: nothing of them comes.
    pub volumes: Vec<String>,
}

/// One operation, and where the bytes of its file are.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// For the agent.
    pub op: ApplyOp,
    /// What the file holds that it puts there; `None` of any other operation.
    pub source: Source,
}

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// There are none.
    None,
    /// A file of ours.
    Ours(PathBuf),
    /// A file of theirs.
    Theirs(PathBuf),
    /// Merged.
    Bytes(Vec<u8>),
}

/// What a [`Source`] gives.
#[derive(Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What is in this file.
    File(File),
}

impl Source {
    /// Opens it. Nothing, for an operation that puts no file.
    pub fn open(&self, ours: &State, theirs: &State) -> Result<Content, HistoryError> {
        Ok(match self {
            Self::None => Content::Bytes(Vec::new()),
            Self::Ours(path) => Content::File(ours.view.open_file(path)?),
            Self::Theirs(path) => Content::File(theirs.view.open_file(path)?),
            Self::Bytes(bytes) => Content::Bytes(bytes.clone()),
        })
    }
}

/// Plans the merge of `theirs` into `ours`, which both come from `base`. `since` is the generation that
/// `base` had when it was kept; without it more is looked at.
pub fn plan(
    base: &State,
    ours: &State,
    theirs: &State,
    since: Option<u64>,
    options: &MergeOptions,
) -> Result<Plan, HistoryError> {
    plan_of_fork(base, ours, theirs, None, since, options)
}

/// As [`plan`], where `theirs` is of a fork that was made as `made_as`: what was made anew for it then is no change.
pub fn plan_of_fork(
    base: &State,
    ours: &State,
    theirs: &State,
    made_as: Option<&State>,
    since: Option<u64>,
    options: &MergeOptions,
) -> Result<Plan, HistoryError> {
    let chosen = Chosen::of(options)?;
    let progress = &options.progress;
    progress.begin(Phase::Finding, 0);
    let found = changed_and_volumes(base, theirs, since)?;
    let candidates = found.paths;
    let mut merge = decide::Merge::new(three::Three::new(base, ours, theirs, since)?, chosen, made_as);
    progress.begin(Phase::Deciding, candidates.len());
    for path in &candidates {
        progress.step();
        merge.decide(path)?;
    }
    merge.follow_renames(&candidates)?;
    merge.settle()?;
    let whole = options.paths.is_empty();
    let volumes = if whole { found.volumes } else { Vec::new() };
    Ok(Plan { volumes, ..ops::plan(merge, &candidates, progress)? })
}

/// Which of two wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wins {
    Ours,
    Theirs,
}

/// The options, checked.
#[derive(Debug)]
struct Chosen {
    paths: Vec<PathBuf>,
    sides: Vec<(PathBuf, Wins)>,
}

impl Chosen {
    fn of(options: &MergeOptions) -> Result<Self, HistoryError> {
        let clean = |paths: &[PathBuf]| paths.iter().map(|path| checked(path)).collect::<Result<Vec<_>, _>>();
        let (ours, theirs) = (clean(&options.ours)?, clean(&options.theirs)?);
        if let Some(both) = ours.iter().find(|path| theirs.contains(path)) {
            let why = "it is to be taken from ours and from theirs";
            return Err(HistoryError::BadPath { path: crate::error::shown(both), why });
        }
        let ours = ours.into_iter().map(|path| (path, Wins::Ours));
        let mut sides: Vec<_> = ours.chain(theirs.into_iter().map(|path| (path, Wins::Theirs))).collect();
        // The nearest first.
        sides.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        Ok(Self { paths: clean(&options.paths)?, sides })
    }

    /// Who wins where both have changed `path`.
    fn side(&self, path: &Path) -> Option<Wins> {
        self.sides.iter().find(|(above, _)| path.starts_with(above)).map(|&(_, wins)| wins)
    }

    /// Whether what theirs did to `path` comes.
    fn takes(&self, path: &Path) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|above| path.starts_with(above))
    }

    /// Whether `path` lies above something that comes.
    fn leads(&self, path: &Path) -> bool {
        self.paths.iter().any(|below| below.starts_with(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_path_decides() {
        let options = MergeOptions {
            paths: vec!["/a/".into()],
            ours: vec!["/a".into(), "/a/b/c".into()],
            theirs: vec!["/a/b".into()],
            ..MergeOptions::default()
        };
        let chosen = Chosen::of(&options).expect("options");
        let side = |path: &str| chosen.side(Path::new(path));
        assert_eq!(side("/a/x"), Some(Wins::Ours));
        assert_eq!(side("/a/b/x"), Some(Wins::Theirs));
        assert_eq!(side("/a/b/c"), Some(Wins::Ours));
        assert_eq!(side("/ab"), None);
        assert!(chosen.takes(Path::new("/a/b")) && !chosen.takes(Path::new("/ab")) && chosen.leads(Path::new("/")));
        let both = MergeOptions { ours: vec!["/a".into()], theirs: vec!["/a/".into()], ..MergeOptions::default() };
        assert_eq!(Chosen::of(&both).expect_err("refused").code(), "bad_path");
    }
}
