//! The three states side by side: what is at a path, and whether two of them hold the same.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use den_api::EntryKind;
use rustix::fs::FileType;

use super::lines;
use crate::changed::{self, Identity};
use crate::same::{Place, same_bytes};
use crate::view::Meta;
use crate::{HistoryError, State, changed_paths};

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Base,
    Ours,
    Theirs,
}

/// Extended attributes by name.
pub(super) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What of two entries of one kind differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// Bytes, target, or device.
    pub content: bool,
    pub mode: bool,
    pub owner: bool,
    pub xattrs: bool,
}

impl Parts {
    fn any(self) -> bool {
        self.content || self.mode || self.owner || self.xattrs
    }
}

/// How two entries compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    Same,
    Differ(Parts),
    /// One is missing, or they are of different kinds.
    Other,
}

/// A path in one of the states.
pub(super) type At<'a> = (Side, &'a Path);

/// The three states.
pub(super) struct Three<'a> {
    base: &'a State,
    ours: &'a State,
    theirs: &'a State,
    since: Option<u64>,
    /// Whether change times in ours are those of the running computer.
    pub ctimes: bool,
    metas: HashMap<(Side, PathBuf), Option<Rc<Meta>>>,
    compared: HashMap<(Side, Side, PathBuf), Compared>,
    changed_in_ours: Option<Rc<Vec<PathBuf>>>,
    identifiers: HashMap<Side, changed::Side<'a>>,
}

impl<'a> Three<'a> {
    pub fn new(base: &'a State, ours: &'a State, theirs: &'a State, since: Option<u64>) -> Result<Self, HistoryError> {
        // A kept state is a snapshot, where there are any, and else a copy, with change times of its own.
        let inode = rustix::fs::stat(&ours.root).map_err(|errno| HistoryError::call("stat", &ours.root)(errno))?.st_ino;
        Ok(Self {
            base,
            ours,
            theirs,
            since,
            ctimes: den_sys::btrfs::is_btrfs(&ours.root) && inode == SUBVOLUME_INODE,
            metas: HashMap::new(),
            compared: HashMap::new(),
            changed_in_ours: None,
            identifiers: HashMap::new(),
        })
    }

    pub fn state(&self, side: Side) -> &'a State {
        match side {
            Side::Base => self.base,
            Side::Ours => self.ours,
            Side::Theirs => self.theirs,
        }
    }

    /// What is at exactly this path.
    pub fn get(&mut self, (side, path): At<'_>) -> Result<Option<Rc<Meta>>, HistoryError> {
        let key = (side, path.to_owned());
        if let Some(known) = self.metas.get(&key) {
            return Ok(known.clone());
        }
        let meta = self.state(side).view.lstat(path)?.map(Rc::new);
        self.metas.insert(key, meta.clone());
        Ok(meta)
    }

    /// Paths that may differ between base and ours.
    pub fn changed_in_ours(&mut self) -> Result<Rc<Vec<PathBuf>>, HistoryError> {
        if let Some(known) = &self.changed_in_ours {
            return Ok(known.clone());
        }
        let paths = Rc::new(changed_paths(self.base, self.ours, self.since)?);
        self.changed_in_ours = Some(paths.clone());
        Ok(paths)
    }

    /// What stays the same when a file is renamed and written to.
    pub fn identity(&mut self, (side, path): At<'_>) -> Result<Option<Identity>, HistoryError> {
        if !self.identifiers.contains_key(&side) {
            self.identifiers.insert(side, changed::Side::open(self.state(side))?);
        }
        match self.identifiers.get_mut(&side) {
            Some(identifier) => Ok(identifier.identities(path, false)?.into_iter().next()),
            None => Ok(None),
        }
    }

    /// The attributes that mean something elsewhere too: `user.*`, capabilities and access lists.
    pub fn xattrs(&self, (side, path): At<'_>) -> Result<Xattrs, HistoryError> {
        let mut all = self.state(side).view.xattrs(path)?;
        all.retain(|name, _| {
            name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability"
        });
        Ok(all)
    }

    /// Compares what is at one path in two states.
    pub fn compare(&mut self, a: Side, b: Side, path: &Path) -> Result<Compared, HistoryError> {
        let key = (a, b, path.to_owned());
        if let Some(&known) = self.compared.get(&key) {
            return Ok(known);
        }
        let compared = self.compare_at((a, path), (b, path))?;
        self.compared.insert(key, compared);
        Ok(compared)
    }

    /// Compares what is at two paths.
    pub fn compare_at(&mut self, a: At<'_>, b: At<'_>) -> Result<Compared, HistoryError> {
        let (meta_a, meta_b) = match (self.get(a)?, self.get(b)?) {
            (None, None) => return Ok(Compared::Same),
            (Some(a), Some(b)) if a.file_type == b.file_type => (a, b),
            _ => return Ok(Compared::Other),
        };
        let content = match meta_a.kind {
            EntryKind::File => !self.same_bytes(a, b)?,
            EntryKind::Symlink => meta_a.target != meta_b.target,
            EntryKind::Special => is_device(&meta_a) && meta_a.rdev != meta_b.rdev,
            EntryKind::Directory => false,
        };
        let has_xattrs = matches!(meta_a.kind, EntryKind::File | EntryKind::Directory);
        let parts = Parts {
            content,
            // A link's mode means nothing.
            mode: meta_a.mode != meta_b.mode && meta_a.kind != EntryKind::Symlink,
            owner: (meta_a.uid, meta_a.gid) != (meta_b.uid, meta_b.gid),
            xattrs: has_xattrs && self.xattrs(a)? != self.xattrs(b)?,
        };
        Ok(if parts.any() { Compared::Differ(parts) } else { Compared::Same })
    }

    /// Whether two files hold the same bytes.
    pub fn same_bytes(&mut self, a: At<'_>, b: At<'_>) -> Result<bool, HistoryError> {
        let (Some(meta_a), Some(meta_b)) = (self.get(a)?, self.get(b)?) else { return Ok(false) };
        let (view_a, view_b) = (&self.state(a.0).view, &self.state(b.0).view);
        same_bytes(Place::of(view_a, a.1, &meta_a), Place::of(view_b, b.1, &meta_b), &mut { u64::MAX })
    }

    /// The bytes of a file that is to be merged by what is in it; `None` if it is too large.
    pub fn bytes(&mut self, at: At<'_>) -> Result<Option<Vec<u8>>, HistoryError> {
        match self.get(at)? {
            None => Ok(Some(Vec::new())),
            Some(meta) if meta.size > lines::BYTES_MAX => Ok(None),
            Some(_) => self.state(at.0).view.read_limited(at.1, lines::BYTES_MAX).map(Some),
        }
    }

    /// Everything below a directory, each before what is in it.
    pub fn below(&self, (side, top): At<'_>) -> Result<Vec<PathBuf>, HistoryError> {
        let mut found = Vec::new();
        let mut todo = vec![top.to_owned()];
        while let Some(dir) = todo.pop() {
            for (name, kind) in self.state(side).view.entries(&dir)? {
                if found.len() == BELOW_MAX {
                    let path = crate::error::shown(top);
                    return Err(HistoryError::TooMany { path, what: "entries", max: BELOW_MAX as u64 });
                }
                let path = dir.join(name);
                if kind == EntryKind::Directory {
                    todo.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// The inode number of the root of a subvolume (BTRFS_FIRST_FREE_OBJECTID).
const SUBVOLUME_INODE: u64 = 256;

/// The most entries below one directory that is taken or left as a whole.
const BELOW_MAX: usize = 1_000_000;

pub(super) fn is_device(meta: &Meta) -> bool {
    matches!(FileType::from_raw_mode(meta.file_type), FileType::BlockDevice | FileType::CharacterDevice)
}

pub(super) fn is_socket(meta: &Meta) -> bool {
    FileType::from_raw_mode(meta.file_type) == FileType::Socket
}
