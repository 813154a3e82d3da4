//! Which step changed what: the changes of one step, the steps that changed a path, and blame.
//!
//! ```text
//! now ─► .9 ─► .8 ─► (.7 dropped) ─► .6 ─► … ─► 0       kept states, each with the step before it
//!         the newest two between which a path differs ─► the step of the newer one
//! ```
//!
//! Invariants:
//! - States are compared themselves. Lists of changes (`changes/<step>.jsonl`) are asked where a state
//!   in between is not kept any more, and for directories.
//! - States that a restore went back from are no part of it: the walk follows each state's parent.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use den_api::{BlameLine, BlameView, ChangeCount, ChangeKind, EntryKind, FileChange, Page, StepChanges, StepView};
use den_history::{Meta, View};
use den_model::{Snapshot, StateName, StateRef, Step, StepKind};
use den_store::Order;

use super::{
    Resolved, changes_file, list_changes,
    look::{inside, looking, place, still_there},
};
use crate::{
    Error,
    control::{Control, Inner, blocking, page_limit},
    handle::Handle,
    limits::CHANGES_MAX,
};

/// The longest line of a list of changes, in bytes; a path can be 4 KiB, each byte of it four.
const LINE_BYTES_MAX: usize = 128 << 10;
/// Steps that one request for those of a path looks through.
const STEPS_LOOKED_MAX: usize = 10_000;
/// The largest file of which lines are told, in bytes.
const LINES_BYTES_MAX: u64 = 8 << 20;
/// Lines of a blame.
const LINES_MAX: usize = 10_000;
/// Text in the command of a step that is looked for, in bytes.
const GREP_BYTES_MAX: usize = 4096;

/// Which steps of a computer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepsMatching {
    /// Beyond this one.
    pub after: Option<u64>,
    /// How many at most.
    pub limit: Option<usize>,
    /// In which order.
    pub order: Order,
    /// Only those with this text in their command.
    pub grep: Option<String>,
    /// Only those that changed this path or something below it.
    pub path: Option<String>,
}

impl Control {
    /// A page of the steps that a filter lets through. One that ends early says where to go on.
    pub async fn steps_matching(&self, computer: &str, which: StepsMatching) -> Result<Page<StepView>, Error> {
        let StepsMatching { mut after, limit, order, grep, path } = which;
        let handle = self.0.registry.find_any(computer)?;
        let limit = page_limit(limit)?;
        if grep.as_ref().is_some_and(|text| text.len() > GREP_BYTES_MAX) {
            return Err(Error::bad_request(format!("`grep` has more than {GREP_BYTES_MAX} bytes")));
        }
        let path = path.map(|path| inside(path.as_bytes())).transpose()?.map(shown);
        let (mut items, mut looked) = (Vec::new(), 0);
        handle.steps.recorded().await;
        loop {
            let rows = match &grep {
                Some(text) => self.0.store.steps_grep(handle.id, text.clone(), after, limit, order).await?,
                None => self.0.store.steps(handle.id, after, limit, order).await?,
            };
            let full = rows.len() == limit;
            looked += rows.len();
            after = rows.last().map(|row| row.number).or(after);
            let rows = match &path {
                None => rows,
                Some(path) => {
                    let (dir, path) = (changes_dir(&self.0, &handle)?, path.clone());
                    blocking(move || rows.into_iter().filter(|row| touched(&dir, row, &path)).collect()).await?
                }
            };
            for row in rows {
                if items.len() == limit {
                    break;
                }
                // What is taken last is where the next page begins.
                after = Some(row.number);
                items.push(match handle.steps.get(row.number).filter(|_| row.end.is_none()) {
                    Some(live) => StepView::from(&live.present()),
                    None => StepView::from(&row),
                });
            }
            if !full {
                return Ok(Page { items, next: None });
            }
            if items.len() == limit || looked >= STEPS_LOOKED_MAX {
                return Ok(Page { items, next: after.map(|number| number.to_string()) });
            }
        }
    }

    /// What a step changed.
    ///
    /// Errors: `step_not_found`, `step_running`; `state_not_found` where it was not kept.
    pub async fn step_changes(&self, computer: &str, number: u64) -> Result<StepChanges, Error> {
        let handle = self.0.registry.find_any(computer)?;
        let missing = || Error::step_not_found(handle.name(), number);
        handle.steps.recorded().await;
        if handle.steps.get(number).is_some() {
            return Err(Error::new("step_running", 409, format!("step {number} of `{}` has not ended", handle.name()))
                .hint("what it changed is known once it has")
                .retryable());
        }
        let mut step = self.0.store.get_step(handle.id, number).await?.ok_or_else(missing)?;
        if step.snapshot.is_none() || step.changes.is_none() {
            // What it changed may just be being kept.
            handle.history.settled().await;
            step = self.0.store.get_step(handle.id, number).await?.ok_or_else(missing)?;
        }
        let dir = changes_dir(&self.0, &handle)?;
        if let Some(files) = blocking(move || read_changes(&dir, number)).await?? {
            let count = step.changes.map_or_else(|| count_of(&files), count_view);
            let truncated = count.added + count.changed + count.removed > files.len() as u64;
            return Ok(StepChanges { count, files, truncated });
        }
        let unknown = || {
            let message = format!("what step {number} of `{}` changed is not kept", handle.name());
            Error::new("state_not_found", 404, message)
                .hint(format!("`den snaps {}` lists the states that are kept", handle.name()))
        };
        let rows = handle.history.rows();
        let row = |number: u64| rows.iter().find(|row| row.number == number);
        let after = step.snapshot.ok_or_else(unknown)?;
        let before = match row(after) {
            // Taken back: from the state that was kept for it.
            _ if step.kind == StepKind::Restore => {
                rows.iter().rev().find(|row| row.went_to == Some(after) && row.step < number).map(|row| row.number)
            }
            Some(row) if row.step == number => Some(row.parent.unwrap_or(0)),
            // The state is an older one: the step changed nothing.
            _ => return Ok(StepChanges { count: ChangeCount::default(), files: Vec::new(), truncated: false }),
        };
        let gone = |number: u64| row(number).map_or(number != 0, |row| row.dropped);
        let before = before.filter(|&before| !gone(before) && !gone(after)).ok_or_else(unknown)?;
        let _place = place().await?;
        let (count, files, truncated) = list_changes(&self.0, &handle, number, before, after).await?;
        Ok(StepChanges { count, files, truncated })
    }

    /// The step that changed a path last, and with `lines` that of each line of a text file.
    ///
    /// Errors: `no_such_path`, `not_text`, `too_large`.
    pub async fn blame(&self, computer: &str, path: &[u8], lines: bool) -> Result<BlameView, Error> {
        let path = inside(path)?;
        let now = self.resolve(&StateRef { computer: computer.to_owned(), state: StateName::Now }).await?;
        let mut points = Vec::new();
        for (number, step, dropped) in line(&now.handle.history.rows(), now.number) {
            let state = if dropped { None } else { Some(self.kept(&now.handle, number).await?) };
            points.push(Point { step, made: number == 0, state });
        }
        let dir = changes_dir(&self.0, &now.handle)?;
        looking(move || {
            let blame = if lines { by_line(&points, &path, &dir) } else { by_step(&points, &path, &dir) };
            still_there(&[&now])?;
            blame
        })
        .await
    }

    /// A kept state by its number, held.
    async fn kept(&self, handle: &Handle, number: u64) -> Result<Resolved, Error> {
        self.resolve(&StateRef { computer: handle.id.to_string(), state: StateName::Snapshot(number) }).await
    }
}

/// A state on the way from now back to how the computer was made.
struct Point<T> {
    /// The last step before it.
    step: u64,
    /// It is as it was made.
    made: bool,
    /// None: it is not kept any more.
    state: Option<T>,
}

/// The states from `number` back to the first, by their parents: number, last step, whether it was dropped.
fn line(rows: &[Snapshot], number: u64) -> Vec<(u64, u64, bool)> {
    let by_number: HashMap<u64, &Snapshot> = rows.iter().map(|row| (row.number, row)).collect();
    let mut line = Vec::new();
    let mut next = Some(number);
    while let Some(number) = next {
        let row = by_number.get(&number);
        line.push(row.map_or((number, 0, number > 0), |row| (number, row.step, row.dropped)));
        // Parents are older, so that this ends whatever the rows say. What was made from an image began as
        // its state 0, whether that was ever laid down or not.
        let parent = row.and_then(|row| row.parent).unwrap_or(0);
        next = (number > 0).then_some(parent).filter(|parent| *parent < number);
    }
    line
}

/// Two kept states that follow each other, with the steps from the older (without) to the newer, newest first.
struct Gap<'a, T> {
    older: &'a T,
    older_made: bool,
    steps: Vec<u64>,
}

/// Splits a line into its newest kept state and the gaps behind it.
fn gaps<T>(points: &[Point<T>]) -> Option<(&T, Vec<Gap<'_, T>>)> {
    let mut kept = points.iter().enumerate().filter_map(|(at, point)| Some((at, point.state.as_ref()?)));
    let (mut newer, newest) = kept.next()?;
    let mut gaps = Vec::new();
    for (older, state) in kept {
        let mut steps: Vec<u64> = points[newer..older].iter().map(|point| point.step).collect();
        steps.dedup();
        gaps.push(Gap { older: state, older_made: points[older].made, steps });
        newer = older;
    }
    Some((newest, gaps))
}

impl<T> Gap<'_, T> {
    /// The step that changed a path between the two states, and whether that is sure.
    fn step(&self, dir: &Path, path: &str) -> (Option<u64>, bool) {
        if let [step] = self.steps[..] {
            return (Some(step), true);
        }
        let mut found = self.steps.iter().filter(|&&step| matches!(listed(dir, step, path), Ok(true)));
        match (found.next(), found.next()) {
            (Some(&step), None) => (Some(step), true),
            (Some(&step), Some(_)) => (Some(step), false),
            (None, _) => (self.steps.first().copied(), false),
        }
    }
}

fn nothing_kept() -> Error {
    Error::internal("the present state of a computer is not among those that are kept")
}

fn nothing_there(path: &Path) -> Error {
    Error::new("no_such_path", 404, format!("there is nothing at `{}` in any state that is kept", path.display()))
        .hint("`den ls NAME PATH` lists what is there")
}

fn by_step(points: &[Point<Resolved>], path: &Path, dir: &Path) -> Result<BlameView, Error> {
    let (newest, gaps) = gaps(points).ok_or_else(nothing_kept)?;
    let mut newer = newest.open()?.view;
    // What is gone has the path that it is asked for by.
    let path = &newer.follow_parent(path).unwrap_or_else(|_| path.to_owned());
    let name = shown(path.to_owned());
    let view = |step, truncated| Ok(BlameView { path: name.clone(), step, lines: Vec::new(), truncated });
    let mut there = newer.lstat(path)?;
    if there.as_ref().is_some_and(|meta| meta.kind == EntryKind::Directory) {
        return of_directory(points, &name, dir, view);
    }
    let mut last_made = points.len() == 1 && points[0].made;
    for gap in gaps {
        let older = gap.older.open()?.view;
        let before = older.lstat(path)?;
        if !same(&newer, there.as_ref(), &older, before.as_ref(), path)? {
            let (step, sure) = gap.step(dir, &name);
            return view(step, !sure);
        }
        (newer, there, last_made) = (older, before, gap.older_made);
    }
    if there.is_none() { Err(nothing_there(path)) } else { view(None, !last_made) }
}

/// Of a directory it is the step that changed something in it, and the lists of changes say that.
fn of_directory<T>(
    points: &[Point<Resolved>],
    path: &str,
    dir: &Path,
    view: impl Fn(Option<u64>, bool) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut unknown = false;
    for point in points.iter().filter(|point| !point.made) {
        match listed(dir, point.step, path) {
            Ok(true) => return view(Some(point.step), unknown),
            Ok(false) => {}
            Err(_) => unknown = true,
        }
    }
    view(None, unknown)
}

fn by_line(points: &[Point<Resolved>], path: &Path, dir: &Path) -> Result<BlameView, Error> {
    let (newest, gaps) = gaps(points).ok_or_else(nothing_kept)?;
    let mut truncated = false;
    let mut newer = newest.open()?.view;
    // Links are followed, and what is there now must be a text.
    let path = &newer.follow(path)?;
    let name = shown(path.to_owned());
    let mut bytes = read_text(&newer, path)?.ok_or_else(|| {
        Error::new("not_text", 400, format!("`{name}` is no text"))
            .hint("leave `lines` out to see the step that changed it")
    })?;
    let mut there = newer.lstat(path)?;
    // The newest first; turned round at the end.
    let mut versions: Vec<(Option<u64>, Vec<u8>)> = Vec::new();
    let mut last_made = points.len() == 1 && points[0].made;
    for gap in gaps {
        let older = gap.older.open()?.view;
        let before = older.lstat(path)?;
        if !same(&newer, there.as_ref(), &older, before.as_ref(), path)? {
            let (step, sure) = gap.step(dir, &name);
            truncated |= !sure;
            let text = if before.is_some() { read_text(&older, path).ok().flatten() } else { None };
            versions.push((step, std::mem::replace(&mut bytes, text.unwrap_or_default())));
        }
        (newer, there, last_made) = (older, before, gap.older_made);
    }
    versions.push((None, bytes));
    truncated |= !last_made;
    versions.reverse();
    let step = versions.last().and_then(|(step, _)| *step);
    let mut lines: Vec<BlameLine> = den_history::blame_lines(&versions)
        .into_iter()
        .map(|line| BlameLine { step: line.step, text: line.text })
        .collect();
    truncated |= lines.len() > LINES_MAX;
    lines.truncate(LINES_MAX);
    Ok(BlameView { path: name, step, lines, truncated })
}

/// A file's bytes; none where it is no text.
fn read_text(view: &View, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let (meta, file) = den_history::read(view, path)?;
    if meta.size > LINES_BYTES_MAX {
        return Err(Error::new(
            "too_large",
            413,
            format!("`{}` has more than {LINES_BYTES_MAX} bytes", path.display()),
        )
        .hint("leave `lines` out to see the step that changed it"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.size).unwrap_or(0));
    let read = file.take(LINES_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|error| Error::internal(format!("`{}` cannot be read", path.display())).because(error))?;
    Ok((!bytes.contains(&0)).then_some(bytes))
}

/// Whether a path is the same in two states. Times alone make no difference.
fn same(one: &View, meta: Option<&Meta>, two: &View, other: Option<&Meta>, path: &Path) -> Result<bool, Error> {
    let (Some(a), Some(b)) = (meta, other) else { return Ok(meta.is_none() == other.is_none()) };
    // The same inode, and nothing was done to it.
    if a.ino == b.ino && a.ctime == b.ctime && a.size == b.size && a.mode == b.mode {
        return Ok(true);
    }
    let shape = |meta: &Meta| (meta.kind, meta.mode, meta.uid, meta.gid, meta.rdev);
    if shape(a) != shape(b) || a.target != b.target {
        return Ok(false);
    }
    if one.xattrs(path)? != two.xattrs(path)? {
        return Ok(false);
    }
    if a.kind != EntryKind::File {
        return Ok(true);
    }
    if a.size != b.size {
        return Ok(false);
    }
    let (one, two) = (one.open_file(path)?, two.open_file(path)?);
    same_bytes(one, two).map_err(|error| Error::internal(format!("`{}` cannot be read", path.display())).because(error))
}

fn same_bytes(one: File, two: File) -> io::Result<bool> {
    let (mut one, mut two) = (BufReader::with_capacity(64 << 10, one), BufReader::with_capacity(64 << 10, two));
    loop {
        let (a, b) = (one.fill_buf()?, two.fill_buf()?);
        let count = a.len().min(b.len());
        if count == 0 {
            return Ok(a.len() == b.len());
        }
        if a[..count] != b[..count] {
            return Ok(false);
        }
        one.consume(count);
        two.consume(count);
    }
}

/// Where the lists of changes of a computer lie.
fn changes_dir(inner: &Inner, handle: &Handle) -> Result<PathBuf, Error> {
    let mut path = changes_file(inner, handle, 0)?;
    path.pop();
    Ok(path)
}

/// The list of changes of a step; none where there is no such list.
fn read_changes(dir: &Path, step: u64) -> Result<Option<Vec<FileChange>>, Error> {
    let file = match fs_err::File::open(dir.join(format!("{step}.jsonl"))) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::internal("a list of changes cannot be read").because(error)),
    };
    let mut reader = BufReader::new(file);
    let (mut changes, mut line) = (Vec::new(), Vec::new());
    while changes.len() < CHANGES_MAX {
        line.clear();
        let count = (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line);
        if count.map_err(|error| Error::internal("a list of changes cannot be read").because(error))? == 0 {
            break;
        }
        // A line that a crash cut is the last.
        let Ok(change) = serde_json::from_slice(&line) else { break };
        changes.push(change);
    }
    Ok(Some(changes))
}

/// Whether a step changed a path or something below it, as far as its list says.
fn touched(dir: &Path, step: &Step, path: &str) -> bool {
    step.changes.is_none_or(|count| count.added + count.changed + count.removed > 0)
        && listed(dir, step.number, path).unwrap_or(false)
}

/// Whether the list of a step has a path, something below it, or something above it that moved.
/// Errors: there is no list.
fn listed(dir: &Path, step: u64, path: &str) -> Result<bool, Error> {
    let changes = read_changes(dir, step)?
        .ok_or_else(|| Error::internal(format!("there is no list of what step {step} changed")))?;
    Ok(changes.iter().any(|change| {
        // What is in a directory that came or went is in the list itself; what moved with one is not.
        let whole = change.kind == ChangeKind::Renamed;
        [Some(change.path.as_str()), change.from.as_deref()]
            .into_iter()
            .flatten()
            .any(|changed| below(changed, path) || (whole && below(path, changed)))
    }))
}

/// Whether `path` is `above` or below it.
fn below(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A path as lists of changes have it.
fn shown(path: PathBuf) -> String {
    den_history::show(OsStr::as_bytes(path.as_os_str()))
}

fn count_of(changes: &[FileChange]) -> ChangeCount {
    let mut count = ChangeCount::default();
    for change in changes {
        match change.kind {
            ChangeKind::Added => count.added += 1,
            ChangeKind::Changed | ChangeKind::Renamed => count.changed += 1,
            ChangeKind::Removed => count.removed += 1,
        }
    }
    count
}

fn count_view(count: den_model::ChangeCount) -> ChangeCount {
    ChangeCount { added: count.added, changed: count.changed, removed: count.removed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u64, step: u64, parent: Option<u64>) -> Snapshot {
        Snapshot {
            number,
            step,
            label: None,
            kind: den_model::SnapshotKind::Auto,
            created_at: 0,
            frozen_us: 0,
            torn: false,
            generation: 1,
            parent,
            went_to: None,
            dropped: false,
        }
    }

    #[test]
    fn the_line_leaves_out_what_a_restore_went_back_from() {
        let rows = [row(0, 0, None), row(1, 1, Some(0)), row(2, 2, Some(1)), row(3, 2, Some(2)), row(4, 4, Some(1))];
        let numbers = |from| line(&rows, from).iter().map(|state| state.0).collect::<Vec<_>>();
        assert_eq!(numbers(4), [4, 1, 0]);
        assert_eq!(numbers(3), [3, 2, 1, 0]);
        assert_eq!(line(&[row(2, 2, None)], 2), [(2, 2, false), (0, 0, false)]);
        let circle = [row(1, 1, Some(2)), row(2, 2, Some(1))];
        assert_eq!(line(&circle, 2).len(), 2);
    }

    #[test]
    fn steps_of_dropped_states_stand_in_one_gap() {
        let point = |step, kept: bool, made| Point { step, made, state: kept.then_some(()) };
        let points = [point(9, true, false), point(8, false, false), point(7, true, false), point(0, true, true)];
        let (_, gaps) = gaps(&points).unwrap();
        assert_eq!(gaps.iter().map(|gap| gap.steps.clone()).collect::<Vec<_>>(), [vec![9, 8], vec![7]]);
        assert!(gaps[1].older_made);
    }

    #[test]
    fn lists_are_read_and_matched() {
        let dir = tempfile::tempdir().unwrap();
        let line = |path: &str, kind: &str| format!("{{\"path\":\"{path}\",\"kind\":\"{kind}\"}}\n");
        let text = [line("/etc/passwd", "changed"), line("/srv/app", "renamed"), "{\"pa".to_owned()].concat();
        std::fs::write(dir.path().join("3.jsonl"), text).unwrap();
        assert_eq!(read_changes(dir.path(), 3).unwrap().unwrap().len(), 2);
        assert!(read_changes(dir.path(), 4).unwrap().is_none());
        let has = |path| listed(dir.path(), 3, path).unwrap();
        assert!(has("/etc/passwd") && has("/etc") && has("/") && has("/srv/app") && has("/srv/app/main.rs"));
        assert!(!has("/etc/pass") && !has("/etc/passwd/x") && !has("/srv/application"));
    }

    #[test]
    fn below_is_by_components() {
        assert!(below("/a/b", "/a") && below("/a", "/a") && below("/a", "/"));
        assert!(!below("/ab", "/a") && !below("/", "/a"));
    }
}
