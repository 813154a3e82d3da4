//! Which paths of two states may differ, found at a cost that grows with what changed.
//!
//! ```text
//! inodes written since the common ancestor ──► their names ─┐
//! (or both uppers walked side by side)                      ├─► paths that may differ
//! directory in both: the same inode? the same layers below? ┘
//!    no ──► everything below it that is in either upper, or in either view
//! ```
//!
//! An upper holds a path at the same place as the view does. What an upper does *not* hold comes from the layers,
//! and the same name need not mean the same place there: a directory may be opaque (nothing from the layers) or
//! redirected (it was renamed). So each directory has a [`Layers`]: where in the layers it goes on. Two
//! directories with the same one differ at most in what the uppers hold; else the views are compared.
//!
//! Invariants:
//! - Every path that differs is found; not every path that is found differs.
//! - An inode that was not written since the ancestor is the same in both states, and has the same names.
//! - Whoever adds, removes or renames an entry writes the directory. So whiteouts need no attention of their own.
//!
//! Deliberately absent: what the difference is (`diff`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use den_api::EntryKind;
use den_sys::btrfs;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use crate::error::shown;
use crate::view::{DEPTH_MAX, ENTRIES_MAX};
use crate::volumes::volume_of;
use crate::{HistoryError, State};

/// More paths than these are not looked at.
const PATHS_MAX: usize = 1_000_000;

/// All names of paths that are looked at, together.
const PATHS_BYTES_MAX: usize = 256 << 20;

/// With more written inodes than these, walking both uppers is cheaper than asking for the names of each.
const NAMES_ASKED_MAX: usize = 50_000;

/// How much of a path goes into one system call: the kernel takes 4,095 bytes.
const PIECE_BYTES_MAX: usize = 4_000;

/// The paths of the views of `a` and `b` that may differ, in order.
///
/// `since` is the generation that the state both come from had when it was kept; without, both uppers are walked.
pub fn changed_paths(a: &State, b: &State, since: Option<u64>) -> Result<Vec<PathBuf>, HistoryError> {
    Ok(all(a, b, since)?.paths.into_iter().collect())
}

/// All that may differ.
fn all<'a>(a: &'a State, b: &'a State, since: Option<u64>) -> Result<Candidates<'a>, HistoryError> {
    let found = candidates(a, b, since, &Only::default())?;
    match found.truncated {
        true => Err(HistoryError::TooMany { path: "/".into(), what: "changed paths", max: PATHS_MAX as u64 }),
        false => Ok(found),
    }
}

/// What may differ, and which volumes do.
pub(crate) struct Changed {
    pub paths: Vec<PathBuf>,
    pub volumes: Vec<String>,
}

/// As [`changed_paths`], with the volumes that differ.
pub(crate) fn changed_and_volumes(a: &State, b: &State, since: Option<u64>) -> Result<Changed, HistoryError> {
    let found = all(a, b, since)?;
    let volumes = match found.volumes {
        Some(volumes) => volumes,
        None => crate::volumes::differing(a, b)?,
    };
    Ok(Changed { paths: found.paths.into_iter().collect(), volumes: volumes.into_iter().collect() })
}

/// What may differ.
pub(crate) struct Candidates<'a> {
    pub paths: BTreeSet<PathBuf>,
    /// Whether there are more, or some that lie too deep.
    pub truncated: bool,
    /// Volumes that were written to; none where that is not known.
    pub volumes: Option<BTreeSet<String>>,
    pub a: Side<'a>,
    pub b: Side<'a>,
}

pub(crate) fn candidates<'a>(
    a: &'a State,
    b: &'a State,
    since: Option<u64>,
    only: &Only,
) -> Result<Candidates<'a>, HistoryError> {
    let mut written = None;
    if let Some(since) = since {
        match (seeds(a, since), seeds(b, since)) {
            (Ok(a), Ok(b)) => written = Some((a, b)),
            (Err(error), _) | (_, Err(error)) => tracing::info!("walking both states whole: {error}"),
        }
    }
    let mut search = Search {
        a: Side::open(a)?,
        b: Side::open(b)?,
        only,
        walk: Walk::Whole,
        written: HashSet::new(),
        found: BTreeSet::new(),
        paired: HashSet::new(),
        opened: HashSet::new(),
        spread: HashSet::new(),
        truncated: false,
        bytes: 0,
        tasks: Vec::new(),
    };
    let mut volumes = None;
    match written {
        None => search.tasks.push(Task::Visit("/".into())),
        Some((a, b)) => {
            search.written = a.inodes.union(&b.inodes).copied().collect();
            match (a.names, b.names) {
                (Some(a), Some(b)) => {
                    volumes = Some(a.volumes.into_iter().chain(b.volumes).collect());
                    search.walk = Walk::Named;
                    for (path, is_directory) in a.paths.into_iter().chain(b.paths) {
                        match is_directory {
                            true => search.tasks.push(Task::Visit(path)),
                            false => search.add(path),
                        }
                    }
                }
                _ => {
                    search.walk = Walk::Written;
                    search.tasks.push(Task::Visit("/".into()));
                }
            }
        }
    }
    while let Some(task) = search.tasks.pop() {
        if search.found.len() > PATHS_MAX || search.bytes > PATHS_BYTES_MAX {
            search.truncated = true;
            break;
        }
        search.run(task)?;
    }
    Ok(Candidates { paths: search.found, truncated: search.truncated, volumes, a: search.a, b: search.b })
}

/// Only these paths and what is below them; all, where there are none.
#[derive(Debug, Default)]
pub(crate) struct Only(Vec<PathBuf>);

impl Only {
    pub(crate) fn of(paths: &[PathBuf]) -> Result<Self, HistoryError> {
        let clean = |path: &PathBuf| {
            let bad = |why| HistoryError::BadPath { path: shown(path), why };
            let mut clean = PathBuf::from("/");
            for part in path.components() {
                match part {
                    Component::RootDir | Component::CurDir => {}
                    Component::Normal(name) => clean.push(name),
                    Component::ParentDir | Component::Prefix(_) => return Err(bad("it has `..` in it")),
                }
            }
            if path.has_root() { Ok(clean) } else { Err(bad("it is not absolute")) }
        };
        Ok(Self(paths.iter().map(clean).collect::<Result<_, _>>()?))
    }

    fn holds(&self, path: &Path) -> bool {
        self.0.is_empty() || self.0.iter().any(|only| path.starts_with(only))
    }

    /// Whether there may be something to find below `path`.
    fn leads(&self, path: &Path) -> bool {
        self.0.is_empty() || self.0.iter().any(|only| path.starts_with(only) || only.starts_with(path))
    }
}

/// What one state has written since the ancestor.
struct Seeds {
    inodes: HashSet<u64>,
    /// Their names; none where they are too many to ask.
    names: Option<Names>,
}

#[derive(Default)]
struct Names {
    /// Every one in the tree, and whether it is a directory.
    paths: Vec<(PathBuf, bool)>,
    /// The volumes that the others lie in.
    volumes: BTreeSet<String>,
}

fn seeds(state: &State, since: u64) -> Result<Seeds, HistoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&state.root, flags, Mode::empty())
        .map_err(|errno| HistoryError::call("open", &state.root)(errno))?;
    let written = btrfs::changed_inodes(root.as_fd(), since)?;
    let inodes = written.iter().map(|written| written.inode).collect();
    if written.len() > NAMES_ASKED_MAX {
        return Ok(Seeds { inodes, names: None });
    }
    let mut names = Names::default();
    for inode in &written {
        let is_directory = FileType::from_raw_mode(inode.mode) == FileType::Directory;
        for path in btrfs::paths_of(root.as_fd(), inode.inode)? {
            if let Ok(inside) = path.strip_prefix("data") {
                names.paths.push((Path::new("/").join(inside), is_directory));
            } else if let Some(volume) = volume_of(&path) {
                names.volumes.insert(volume);
            }
        }
    }
    Ok(Seeds { inodes, names: Some(names) })
}

/// Where a directory goes on in the layers.
#[derive(Debug, PartialEq, Eq)]
struct Layers {
    how: How,
    /// In the layers.
    path: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// By its own name, as all directories above it.
    Named,
    /// It or one above it was renamed.
    Redirected,
    /// Nowhere.
    Opaque,
}

/// What says that two paths are one thing that moved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Identity {
    /// Inode, and when it was made.
    Inode(u64, i64, u32),
    /// A directory of the layers.
    Lower(Vec<u8>),
}

/// One of the two states.
pub(crate) struct Side<'a> {
    pub state: &'a State,
    upper: OwnedFd,
    layers: HashMap<PathBuf, Rc<Layers>>,
}

impl<'a> Side<'a> {
    pub(crate) fn open(state: &'a State) -> Result<Self, HistoryError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let upper = rustix::fs::open(&state.upper, flags, Mode::empty())
            .map_err(|errno| HistoryError::call("open", &state.upper)(errno))?;
        Ok(Self { state, upper, layers: HashMap::new() })
    }

    /// What the upper has at `path`, opened with `flags`; nothing where it has nothing or something else.
    fn open_upper(&self, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>, HistoryError> {
        let bytes = path.as_os_str().as_bytes();
        let mut rest = bytes.strip_prefix(b"/").unwrap_or(bytes);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = |at: BorrowedFd<'_>, name: &[u8], flags: OFlags| {
            let name = if name.is_empty() { b"." } else { name };
            rustix::fs::openat2(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
        };
        let mut at: Option<OwnedFd> = None;
        let opened = loop {
            let from = at.as_ref().map_or(self.upper.as_fd(), AsFd::as_fd);
            if rest.len() <= PIECE_BYTES_MAX {
                break open(from, rest, flags);
            }
            let Some(cut) = rest[..PIECE_BYTES_MAX].iter().rposition(|&byte| byte == b'/') else { return Ok(None) };
            match open(from, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY) {
                Ok(next) => at = Some(next),
                Err(errno) => break Err(errno),
            }
            rest = &rest[cut + 1..];
        };
        match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(HistoryError::call("openat2", path)(errno)),
        }
    }

    /// The names that the upper has in the directory `path`, with inode and type.
    fn upper_names(&self, path: &Path) -> Result<BTreeMap<OsString, Entry>, HistoryError> {
        let mut names = BTreeMap::new();
        let Some(fd) = self.open_upper(path, OFlags::RDONLY | OFlags::DIRECTORY)? else { return Ok(names) };
        let failed = |errno| HistoryError::call("getdents", path)(errno);
        let mut dir = rustix::fs::Dir::new(fd).map_err(failed)?;
        while let Some(entry) = dir.read() {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if names.len() == ENTRIES_MAX {
                let max = ENTRIES_MAX as u64;
                return Err(HistoryError::TooMany { path: shown(path), what: "entries", max });
            }
            let kind = match entry.file_type() {
                // Only old file systems do not say.
                FileType::Unknown => FileType::Directory,
                kind => kind,
            };
            names.insert(name.to_owned(), Entry { inode: entry.ino(), is_directory: kind == FileType::Directory });
        }
        Ok(names)
    }

    /// Where the directory `path` goes on in the layers.
    fn layers(&mut self, path: &Path) -> Result<Rc<Layers>, HistoryError> {
        let mut missing = Vec::new();
        let mut at = Some(path);
        let mut known = loop {
            let Some(here) = at else { break Rc::new(Layers { how: How::Named, path: Vec::new() }) };
            if let Some(layers) = self.layers.get(here) {
                break layers.clone();
            }
            missing.push(here);
            at = here.parent();
        };
        for here in missing.into_iter().rev() {
            if let Some(name) = here.file_name() {
                known = Rc::new(self.layers_of(here, name.as_bytes(), &known)?);
            }
            self.layers.insert(here.to_owned(), known.clone());
        }
        Ok(known)
    }

    fn layers_of(&self, path: &Path, name: &[u8], parent: &Layers) -> Result<Layers, HistoryError> {
        let below = |how| Layers { how, path: [&parent.path, b"/".as_slice(), name].concat() };
        let plain = || {
            if parent.how == How::Opaque { Layers { how: How::Opaque, path: Vec::new() } } else { below(parent.how) }
        };
        let Some(fd) = self.open_upper(path, OFlags::RDONLY | OFlags::DIRECTORY)? else { return Ok(plain()) };
        // A computer inside a computer has the marks of its overlay under `user.`. One that a user has set without
        // meaning makes two directories look different that are not: slower, never wrong.
        for space in ["trusted", "user"] {
            if mark(fd.as_fd(), &format!("{space}.overlay.opaque"), path)?.is_some_and(|value| value == b"y") {
                return Ok(Layers { how: How::Opaque, path: Vec::new() });
            }
            match mark(fd.as_fd(), &format!("{space}.overlay.redirect"), path)? {
                Some(value) if value.starts_with(b"/") => return Ok(Layers { how: How::Redirected, path: value }),
                Some(value) => {
                    let path = [&parent.path, b"/".as_slice(), &value].concat();
                    return Ok(Layers { how: How::Redirected, path });
                }
                None => {}
            }
        }
        Ok(plain())
    }

    /// By which the entry at `path` would be known if it were elsewhere, the surest first.
    pub(crate) fn identities(&mut self, path: &Path, is_directory: bool) -> Result<Vec<Identity>, HistoryError> {
        let mut found = Vec::new();
        if let Some(fd) = self.open_upper(path, OFlags::PATH)? {
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statx(&fd, "", flags, StatxFlags::INO | StatxFlags::BTIME)
                .map_err(|errno| HistoryError::call("statx", path)(errno))?;
            if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
                found.push(Identity::Inode(stat.stx_ino, stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
            }
        }
        if is_directory {
            let layers = self.layers(path)?;
            if layers.how != How::Opaque {
                found.push(Identity::Lower(layers.path.clone()));
            }
        }
        Ok(found)
    }
}

/// A mark of the overlay on a directory.
fn mark(fd: BorrowedFd<'_>, name: &str, path: &Path) -> Result<Option<Vec<u8>>, HistoryError> {
    let mut value = [0_u8; 4096];
    match rustix::fs::fgetxattr(fd, name, &mut value[..]) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        // Longer than any path: the kernel takes it for none.
        Err(Errno::RANGE) => Ok(None),
        Err(errno) => Err(HistoryError::call("fgetxattr", path)(errno)),
    }
}

/// An entry of an upper.
#[derive(Clone, Copy)]
struct Entry {
    inode: u64,
    is_directory: bool,
}

/// How the uppers are searched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// Each written inode has been named: what is not written is passed over.
    Named,
    /// All directories are walked, and inodes that are not written passed over.
    Written,
    /// Nothing is known.
    Whole,
}

enum Task {
    /// Looks at an entry that may differ, and below it as far as needed.
    Visit(PathBuf),
    /// Compares a directory of both views by name, and all below.
    Open(PathBuf),
    /// Adds all below a directory that is only in one.
    Below(Which, PathBuf),
}

#[derive(Clone, Copy)]
enum Which {
    A,
    B,
}

struct Search<'a, 'o> {
    a: Side<'a>,
    b: Side<'a>,
    only: &'o Only,
    walk: Walk,
    written: HashSet<u64>,
    found: BTreeSet<PathBuf>,
    paired: HashSet<PathBuf>,
    opened: HashSet<PathBuf>,
    spread: HashSet<PathBuf>,
    truncated: bool,
    /// Of all names found and yet to be looked at.
    bytes: usize,
    tasks: Vec<Task>,
}

impl Search<'_, '_> {
    fn add(&mut self, path: PathBuf) {
        if self.only.holds(&path) {
            self.bytes += path.as_os_str().len();
            self.found.insert(path);
        }
    }

    /// Puts `task` aside unless its path is not wanted or lies too deep.
    fn later(&mut self, task: Task) {
        let (Task::Visit(path) | Task::Open(path) | Task::Below(_, path)) = &task;
        if !self.only.leads(path) {
            return;
        }
        match path.components().count() > DEPTH_MAX {
            true => self.truncated = true,
            false => {
                self.bytes += path.as_os_str().len();
                self.tasks.push(task);
            }
        }
    }

    fn run(&mut self, task: Task) -> Result<(), HistoryError> {
        match task {
            Task::Visit(path) => {
                let is_directory = |side: &Side<'_>| -> Result<bool, HistoryError> {
                    Ok(side.state.view.lstat(&path)?.is_some_and(|meta| meta.kind == EntryKind::Directory))
                };
                let (a, b) = (is_directory(&self.a)?, is_directory(&self.b)?);
                self.add(path.clone());
                self.descend(path, a, b)
            }
            Task::Open(path) => self.open(path),
            Task::Below(which, path) => self.below(which, &path),
        }
    }

    fn descend(&mut self, path: PathBuf, a: bool, b: bool) -> Result<(), HistoryError> {
        match (a, b) {
            (true, true) => return self.pair(path),
            (true, false) => self.later(Task::Below(Which::A, path)),
            (false, true) => self.later(Task::Below(Which::B, path)),
            (false, false) => {}
        }
        Ok(())
    }

    /// A directory in both views.
    fn pair(&mut self, path: PathBuf) -> Result<(), HistoryError> {
        if !self.paired.insert(path.clone()) {
            return Ok(());
        }
        if self.a.layers(&path)? != self.b.layers(&path)? {
            self.later(Task::Open(path));
            return Ok(());
        }
        let mut theirs = self.b.upper_names(&path)?;
        let mut both: Vec<(OsString, Option<Entry>, Option<Entry>)> = Vec::new();
        for (name, a) in self.a.upper_names(&path)? {
            let b = theirs.remove(&name);
            both.push((name, Some(a), b));
        }
        both.extend(theirs.into_iter().map(|(name, b)| (name, None, Some(b))));
        for (name, a, b) in both {
            let (Some(a), Some(b)) = (a, b) else {
                self.later(Task::Visit(path.join(name)));
                continue;
            };
            if a.inode == b.inode {
                let passed = match self.walk {
                    // One that is written has been named, and is looked at by its name.
                    Walk::Named => true,
                    Walk::Written => !a.is_directory && !self.written.contains(&a.inode),
                    Walk::Whole => false,
                };
                if passed {
                    continue;
                }
            }
            match a.is_directory || b.is_directory {
                true => self.later(Task::Visit(path.join(name))),
                false => self.add(path.join(name)),
            }
        }
        Ok(())
    }

    /// A directory in both views whose layers are not the same.
    fn open(&mut self, path: PathBuf) -> Result<(), HistoryError> {
        if !self.opened.insert(path.clone()) {
            return Ok(());
        }
        let mut theirs: BTreeMap<_, _> = self.b.state.view.entries(&path)?.into_iter().collect();
        let mut both: Vec<(OsString, bool, bool)> = Vec::new();
        let is_directory = |kind: EntryKind| kind == EntryKind::Directory;
        for (name, kind) in self.a.state.view.entries(&path)? {
            let b = theirs.remove(&name).is_some_and(is_directory);
            both.push((name, is_directory(kind), b));
        }
        both.extend(theirs.into_iter().map(|(name, kind)| (name, false, is_directory(kind))));
        for (name, a, b) in both {
            let child = path.join(name);
            self.add(child.clone());
            match (a, b) {
                (true, true) => self.later(Task::Open(child)),
                (true, false) => self.later(Task::Below(Which::A, child)),
                (false, true) => self.later(Task::Below(Which::B, child)),
                (false, false) => {}
            }
        }
        Ok(())
    }

    fn below(&mut self, which: Which, path: &Path) -> Result<(), HistoryError> {
        // It is a directory in one view only, so the path alone says in which.
        if !self.spread.insert(path.to_owned()) {
            return Ok(());
        }
        let side = match which {
            Which::A => &self.a,
            Which::B => &self.b,
        };
        for (name, kind) in side.state.view.entries(path)? {
            let child = path.join(name);
            self.add(child.clone());
            if kind == EntryKind::Directory {
                self.later(Task::Below(which, child));
            }
        }
        Ok(())
    }
}
