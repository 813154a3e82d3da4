//! From what was decided to what the agent does.
//!
//! ```text
//! removals, the deepest first ─ directories, files, links, by path ─ hard links ─ attributes, times
//! ```
//!
//! Invariants:
//! - A file whose bytes stay is not written: only its attributes are set, and its hard links stay.
//! - Names that are one file in theirs are one in the merged tree; names that ours gave to a file go with it
//!   when its bytes change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use den_api::{ChangeKind, ChangePart, EntryKind, FileChange, MetaView};
use den_wire::agent::{ApplyAction, ApplyOp, Dress, DressXattr, Expected};
use minicbor::bytes::ByteVec;
use rustix::fs::FileType;

use super::decide::{Made, Merge, Merged};
use super::three::{Compared, Side, Xattrs};
use super::{Op, Plan, Source};
use crate::error::shown;
use crate::same::spend;
use crate::text::{TEXT_BYTES_MAX, is_text, line_counts};
use crate::view::{Meta, Stamp, show};
use crate::{HistoryError, Phase, Progress};

/// Bytes of files that are read to count the lines that come and go.
const COUNTED_BYTES_MAX: u64 = 128 << 20;

/// Writes the plan.
pub(super) fn plan(mut merge: Merge<'_>, candidates: &[PathBuf], progress: &Progress) -> Result<Plan, HistoryError> {
    let links = hard_links(&mut merge, candidates)?;
    let decided = std::mem::take(&mut merge.decided);
    let mut writer = Writer {
        merge,
        plan: Plan::default(),
        removals: Vec::new(),
        links: Vec::new(),
        dressed: BTreeMap::new(),
        counted: COUNTED_BYTES_MAX,
    };
    progress.begin(Phase::Describing, decided.len());
    for (path, merged) in &decided {
        progress.step();
        match merged {
            Merged::Absent => writer.remove(path)?,
            Merged::Made(made) => writer.make(path, made, links.get(path).map(PathBuf::as_path))?,
        }
    }
    for (path, to) in links.iter().filter(|(path, _)| !decided.contains_key(*path)) {
        writer.link_again(path, to)?;
    }
    writer.finish(&decided)
}

struct Writer<'a> {
    merge: Merge<'a>,
    plan: Plan,
    removals: Vec<Op>,
    links: Vec<Op>,
    /// Attributes of what stays, by path.
    dressed: BTreeMap<PathBuf, (Expected, Dress)>,
    /// Bytes that may still be read to count lines.
    counted: u64,
}

impl Writer<'_> {
    fn ours(&mut self, path: &Path) -> Result<Option<Rc<Meta>>, HistoryError> {
        self.merge.three.get((Side::Ours, path))
    }

    fn expected(&self, meta: &Meta) -> Expected {
        let timed = meta.kind != EntryKind::Directory;
        Expected {
            mode: meta.file_type | meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            size: timed.then_some(meta.size),
            mtime_ns: timed.then(|| nanos(meta.mtime)),
            ctime_ns: (timed && self.merge.three.ctimes).then(|| nanos(meta.ctime)),
        }
    }

    fn remove(&mut self, path: &Path) -> Result<(), HistoryError> {
        let Some(ours) = self.ours(path)? else { return Ok(()) };
        self.remove_op(path, &ours);
        self.plan.count.removed += 1;
        let mut removed = change(path, ChangeKind::Removed, Some(&ours), None);
        if ours.kind == EntryKind::File {
            self.count_lines(&mut removed, Some((path, ours.size)), &Source::None, 0)?;
        }
        self.plan.files.push(removed);
        Ok(())
    }

    /// Counts the lines that come to a file of ours and go from it, where both are text, as a diff does.
    fn count_lines(
        &mut self,
        told: &mut FileChange,
        before: Option<(&Path, u64)>,
        source: &Source,
        size: u64,
    ) -> Result<(), HistoryError> {
        let old_size = before.map_or(0, |(_, size)| size);
        if old_size > TEXT_BYTES_MAX || size > TEXT_BYTES_MAX || !spend(&mut self.counted, old_size + size) {
            return Ok(());
        }
        let three = &self.merge.three;
        let read = |side, path: &Path| three.state(side).view.read_limited(path, TEXT_BYTES_MAX);
        let old = before.map_or(Ok(Vec::new()), |(path, _)| read(Side::Ours, path))?;
        let new = match source {
            Source::None => Vec::new(),
            Source::Bytes(bytes) => bytes.clone(),
            Source::Ours(path) => read(Side::Ours, path)?,
            Source::Theirs(path) => read(Side::Theirs, path)?,
        };
        if is_text(&old) && is_text(&new) {
            let (added, removed) = line_counts(&old, &new);
            (told.lines_added, told.lines_removed) = (Some(added), Some(removed));
        }
        Ok(())
    }

    fn remove_op(&mut self, path: &Path, ours: &Meta) {
        let expect = Some(self.expected(ours));
        self.removals.push(op(path, expect, ApplyAction::Remove, Source::None));
    }

    fn make(&mut self, path: &Path, made: &Made, link: Option<&Path>) -> Result<(), HistoryError> {
        let ours = self.ours(path)?;
        let same_kind = ours.as_ref().filter(|ours| ours.file_type == made.like.file_type);
        let stays = same_kind.is_some_and(|ours| match made.like.kind {
            EntryKind::File => made.source == Source::Ours(path.to_owned()) && link.is_none(),
            EntryKind::Symlink => ours.target == made.like.target,
            _ => true,
        });
        if let Some(ours) = same_kind
            && stays
        {
            return self.dress(path, made, &ours.clone());
        }
        let is_directory = |meta: &Meta| meta.kind == EntryKind::Directory;
        let expect = match &ours {
            Some(ours) if is_directory(ours) || is_directory(&made.like) => {
                self.remove_op(path, ours);
                None
            }
            Some(ours) => Some(self.expected(ours)),
            None => None,
        };
        let dress = Dress {
            uid: Some(made.uid),
            gid: Some(made.gid),
            mode: (made.like.kind != EntryKind::Symlink).then_some(made.mode),
            xattrs: made.xattrs.iter().map(|(name, value)| xattr(name, Some(value))).collect(),
            mtime_ns: made.mtime.map(nanos),
        };
        let (action, source) = match (link, FileType::from_raw_mode(made.like.file_type)) {
            (Some(to), _) => (ApplyAction::Link { to: bytes(to) }, Source::None),
            (None, FileType::RegularFile) => (ApplyAction::File(dress), made.source.clone()),
            (None, FileType::Directory) => (ApplyAction::Directory(dress), Source::None),
            (None, FileType::Symlink) => {
                let target = ByteVec::from(made.like.target.clone().unwrap_or_default());
                (ApplyAction::Symlink { target, dress }, Source::None)
            }
            (None, FileType::Fifo) => (ApplyAction::Fifo(dress), Source::None),
            // Devices are conflicts, and sockets are never taken.
            _ => return Ok(()),
        };
        let is_link = link.is_some();
        let op = op(path, expect, action, source);
        if is_link {
            self.links.push(op)
        } else {
            self.plan.ops.push(op)
        }

        let mut parts = Vec::new();
        if let Some(ours) = &ours {
            if ours.file_type != made.like.file_type {
                parts.push(ChangePart::Kind);
            } else {
                parts.push(if made.like.kind == EntryKind::Symlink { ChangePart::Target } else { ChangePart::Content });
                parts.extend(attribute_parts(ours, made, &self.xattrs_of_ours(path, ours)?));
            }
        }
        self.changed(path, made, ours.as_deref(), parts)
    }

    fn xattrs_of_ours(&self, path: &Path, ours: &Meta) -> Result<Xattrs, HistoryError> {
        match ours.kind {
            EntryKind::File | EntryKind::Directory => self.merge.three.xattrs((Side::Ours, path)),
            _ => Ok(Xattrs::new()),
        }
    }

    fn dress(&mut self, path: &Path, made: &Made, ours: &Meta) -> Result<(), HistoryError> {
        let there = self.xattrs_of_ours(path, ours)?;
        let set = made.xattrs.iter().filter(|(name, value)| there.get(*name) != Some(value));
        let mut xattrs: Vec<_> = set.map(|(name, value)| xattr(name, Some(value))).collect();
        xattrs.extend(there.keys().filter(|name| !made.xattrs.contains_key(*name)).map(|name| xattr(name, None)));
        let owner = (made.uid, made.gid) != (ours.uid, ours.gid);
        let mode = made.mode != ours.mode && ours.kind != EntryKind::Symlink;
        let parts: Vec<_> = attribute_parts(ours, made, &there).collect();
        if owner && ours.kind == EntryKind::File {
            // With its owner a file loses its capabilities.
            xattrs = made
                .xattrs
                .iter()
                .map(|(name, value)| xattr(name, Some(value)))
                .chain(there.keys().filter(|name| !made.xattrs.contains_key(*name)).map(|name| xattr(name, None)))
                .collect();
        }
        let dress = Dress {
            uid: owner.then_some(made.uid),
            gid: owner.then_some(made.gid),
            // Changing the owner takes set-id bits away.
            mode: (mode || owner && ours.kind != EntryKind::Symlink).then_some(made.mode),
            xattrs,
            mtime_ns: made.mtime.filter(|&mtime| mtime != ours.mtime).map(nanos),
        };
        if dress == Dress::default() {
            return Ok(());
        }
        let expected = self.expected(ours);
        self.dressed.insert(path.to_owned(), (expected, dress));
        if parts.is_empty() { Ok(()) } else { self.changed(path, made, Some(ours), parts) }
    }

    fn changed(
        &mut self,
        path: &Path,
        made: &Made,
        ours: Option<&Meta>,
        parts: Vec<ChangePart>,
    ) -> Result<(), HistoryError> {
        let size = match &made.source {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::Ours(path) => self.ours(path)?.map_or(0, |meta| meta.size),
            Source::Theirs(path) => self.merge.three.get((Side::Theirs, path))?.map_or(0, |meta| meta.size),
            Source::None => made.like.size,
        };
        let after = MetaView {
            mode: made.mode,
            uid: made.uid,
            gid: made.gid,
            size: if made.like.kind == EntryKind::File { size } else { 0 },
            mtime: made.mtime.map_or(made.like.mtime_us, Stamp::micros),
            ..made.like.view()
        };
        let kind = match (ours, &made.from) {
            (_, Some(_)) => ChangeKind::Renamed,
            (Some(_), None) => ChangeKind::Changed,
            (None, None) => ChangeKind::Added,
        };
        match kind {
            ChangeKind::Added => self.plan.count.added += 1,
            _ => self.plan.count.changed += 1,
        }
        let from = made.from.as_deref().map(shown);
        let differs = kind != ChangeKind::Changed
            || parts.iter().any(|part| matches!(part, ChangePart::Content | ChangePart::Kind));
        let mut told = FileChange { from, parts, ..change(path, kind, ours, Some(after)) };
        if made.like.kind == EntryKind::File && differs {
            // One that moves is held against what it was where it was.
            let at = made.from.as_deref().unwrap_or(path);
            let before = self.ours(at)?.filter(|meta| meta.kind == EntryKind::File).map(|meta| (at, meta.size));
            self.count_lines(&mut told, before, &made.source, size)?;
            if told.kind == ChangeKind::Renamed && (told.lines_added, told.lines_removed) == (Some(0), Some(0)) {
                (told.lines_added, told.lines_removed) = (None, None);
            }
        }
        self.plan.files.push(told);
        Ok(())
    }

    /// A name that ours gave to a file, which goes where the file has gone.
    fn link_again(&mut self, path: &Path, to: &Path) -> Result<(), HistoryError> {
        let Some(ours) = self.ours(path)? else { return Ok(()) };
        let expect = Some(self.expected(&ours));
        self.links.push(op(path, expect, ApplyAction::Link { to: bytes(to) }, Source::None));
        self.plan.count.changed += 1;
        let parts = vec![ChangePart::Content];
        self.plan.files.push(FileChange { parts, ..change(path, ChangeKind::Changed, Some(&ours), None) });
        Ok(())
    }

    fn finish(mut self, decided: &BTreeMap<PathBuf, Merged>) -> Result<Plan, HistoryError> {
        self.carry_times(decided)?;
        let made = std::mem::take(&mut self.plan.ops);
        self.removals.reverse();
        let dressed = std::mem::take(&mut self.dressed)
            .into_iter()
            .map(|(path, (expected, dress))| op(&path, Some(expected), ApplyAction::Dress(dress), Source::None));
        let before = std::mem::take(&mut self.removals).into_iter().chain(made).chain(std::mem::take(&mut self.links));
        self.plan.ops = before.chain(dressed).collect();
        // A rename is one change.
        let moved: HashSet<String> = self.plan.files.iter().filter_map(|file| file.from.clone()).collect();
        let all = self.plan.files.len();
        self.plan.files.retain(|file| file.kind != ChangeKind::Removed || !moved.contains(&file.path));
        self.plan.count.removed -= (all - self.plan.files.len()) as u64;
        self.plan.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.plan.skipped = std::mem::take(&mut self.merge.skipped);
        self.plan.conflicts = std::mem::take(&mut self.merge.conflicts).into_values().collect();
        Ok(self.plan)
    }

    /// Directories in which something happens are as old as in theirs, if nothing but theirs changed them.
    fn carry_times(&mut self, decided: &BTreeMap<PathBuf, Merged>) -> Result<(), HistoryError> {
        let touched: HashSet<PathBuf> = decided.keys().filter_map(|path| path.parent()).map(Path::to_owned).collect();
        for dir in touched {
            if decided.contains_key(&dir) || dir == Path::new("/") {
                continue;
            }
            let three = &mut self.merge.three;
            let metas =
                [three.get((Side::Base, &dir))?, three.get((Side::Ours, &dir))?, three.get((Side::Theirs, &dir))?];
            let [Some(base), Some(ours), Some(theirs)] = metas else { continue };
            let all_directories = [&base, &ours, &theirs].iter().all(|meta| meta.kind == EntryKind::Directory);
            if all_directories && base.mtime == ours.mtime {
                let dress = Dress { mtime_ns: Some(nanos(theirs.mtime)), ..Dress::default() };
                self.dressed.insert(dir, (self.expected(&ours), dress));
            }
        }
        Ok(())
    }
}

/// Which paths become names of which other's file.
fn hard_links(merge: &mut Merge<'_>, candidates: &[PathBuf]) -> Result<BTreeMap<PathBuf, PathBuf>, HistoryError> {
    let mut links = BTreeMap::new();
    // Names of one file in theirs. All of them are candidates, since a new name changes the inode.
    let mut groups: BTreeMap<(u64, u64), Vec<&PathBuf>> = BTreeMap::new();
    for path in candidates {
        if let Some(meta) = merge.three.get((Side::Theirs, path))?
            && meta.kind == EntryKind::File
            && meta.nlink > 1
        {
            groups.entry((meta.dev, meta.ino)).or_default().push(path);
        }
    }
    for group in groups.values().filter(|group| group.len() > 1) {
        let mut leader: Option<(&PathBuf, bool)> = None;
        for &path in group {
            let in_base = merge.three.get((Side::Base, path))?.is_some();
            let there = match merge.decided.get(path) {
                Some(merged) => matches!(merged, Merged::Made(_)),
                None => merge.three.get((Side::Ours, path))?.is_some_and(|meta| meta.kind == EntryKind::File),
            };
            if there && (leader.is_none() || in_base && leader.is_some_and(|(_, in_base)| !in_base)) {
                leader = Some((path, in_base));
            }
        }
        let Some((leader, _)) = leader else { continue };
        for &path in group.iter().filter(|&&path| path != leader) {
            if follows(merge, leader, path)? {
                links.insert(path.clone(), leader.clone());
            }
        }
    }
    ours_names(merge, &mut links)?;
    Ok(links)
}

/// Whether `path` becomes a name of what will be at `leader`; in theirs they are one file.
fn follows(merge: &mut Merge<'_>, leader: &Path, path: &Path) -> Result<bool, HistoryError> {
    let Some(Merged::Made(made)) = merge.decided.get(path) else { return Ok(false) };
    if made.source == Source::Ours(path.to_owned()) {
        return Ok(false);
    }
    let same = match (merge.decided.get(leader), &made.source) {
        (Some(Merged::Made(first)), source) => match (&first.source, source) {
            (Source::Theirs(_), Source::Theirs(_)) => true,
            (Source::Bytes(a), Source::Bytes(b)) => a == b,
            _ => false,
        },
        (None, Source::Theirs(_)) => merge.three.compare(Side::Ours, Side::Theirs, leader)? == Compared::Same,
        _ => false,
    };
    // A new name of a file that ours has changed is a name of the changed file.
    let is_new = merge.three.get((Side::Base, path))?.is_none() && merge.three.get((Side::Ours, path))?.is_none();
    Ok(same || is_new && merge.chosen.side(path).is_none())
}

/// Names that ours gave to files whose bytes change now.
fn ours_names(merge: &mut Merge<'_>, links: &mut BTreeMap<PathBuf, PathBuf>) -> Result<(), HistoryError> {
    let mut written: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let paths: Vec<PathBuf> = merge.decided.keys().cloned().collect();
    for path in paths {
        let Some(Merged::Made(made)) = merge.decided.get(&path) else { continue };
        if !matches!(made.source, Source::Theirs(_) | Source::Bytes(_)) || links.contains_key(&path) {
            continue;
        }
        if let Some(ours) = merge.three.get((Side::Ours, &path))?
            && ours.kind == EntryKind::File
            && ours.nlink > 1
        {
            written.insert((ours.dev, ours.ino), path);
        }
    }
    if written.is_empty() {
        return Ok(());
    }
    for path in merge.three.changed_in_ours()?.iter() {
        if merge.decided.contains_key(path) || merge.conflicts.contains_key(path) {
            continue;
        }
        let Some(ours) = merge.three.get((Side::Ours, path))? else { continue };
        let Some(first) = written.get(&(ours.dev, ours.ino)) else { continue };
        let base = merge.three.get((Side::Base, path))?;
        let base_first = merge.three.get((Side::Base, first))?;
        let was_linked = base.zip(base_first).is_some_and(|(a, b)| (a.dev, a.ino) == (b.dev, b.ino));
        if !was_linked {
            links.insert(path.clone(), first.clone());
        }
    }
    Ok(())
}

fn attribute_parts(ours: &Meta, made: &Made, there: &Xattrs) -> impl Iterator<Item = ChangePart> + use<> {
    let mode = made.mode != ours.mode && ours.kind != EntryKind::Symlink;
    let owner = (made.uid, made.gid) != (ours.uid, ours.gid);
    let parts = [(mode, ChangePart::Mode), (owner, ChangePart::Owner), (made.xattrs != *there, ChangePart::Xattr)];
    parts.into_iter().filter(|(differs, _)| *differs).map(|(_, part)| part)
}

fn change(path: &Path, kind: ChangeKind, before: Option<&Meta>, after: Option<MetaView>) -> FileChange {
    FileChange {
        path: show(path.as_os_str().as_bytes()),
        kind,
        from: None,
        parts: Vec::new(),
        before: before.map(Meta::view),
        after,
        hash_before: None,
        hash_after: None,
        lines_added: None,
        lines_removed: None,
        text: None,
    }
}

fn op(path: &Path, expect: Option<Expected>, action: ApplyAction, source: Source) -> Op {
    Op { op: ApplyOp { path: bytes(path), expect, action }, source }
}

fn bytes(path: &Path) -> ByteVec {
    ByteVec::from(path.as_os_str().as_bytes().to_vec())
}

fn xattr(name: &[u8], value: Option<&Vec<u8>>) -> DressXattr {
    DressXattr { name: ByteVec::from(name.to_vec()), value: value.map(|value| ByteVec::from(value.clone())) }
}

fn nanos(stamp: Stamp) -> i64 {
    stamp.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(stamp.nsec))
}
