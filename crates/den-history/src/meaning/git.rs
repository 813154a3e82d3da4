//! Repositories of git: where they stand, and which files are not as they were last added.
//!
//! ```text
//! changed path ─► the nearest directory above with a .git ─► HEAD ─► ref, packed-refs ─► commit
//!                                                        └► index ─► files whose size, time or bytes differ
//! ```
//!
//! Of a repository whose head, index or work tree differs between the two states all files are held against the
//! index, as `git status` would: by size and time first, so that few are read. In one with more than
//! [`FILES_MAX`] of them only those that differ between the states, or whose entries do. Files that git does not
//! know are left to the list of files: which of them it ignores is not parsed here.
//!
//! One that is elsewhere in the second state, and stands as it did, has moved.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use den_api::{ChangeKind, EntryKind, FactChange};
use sha1::{Digest, Sha1};

use super::index::{self, Entry};
use super::{Fact, Facts, Pair, SETTINGS_BYTES_MAX, bytes, compare, whole};
use crate::view::{Meta, View, show};

/// The repositories that are told.
const REPOSITORIES_MAX: usize = 200;
/// The largest index or list of refs that is read, in bytes.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// The files of a repository that are held against its index.
const FILES_MAX: usize = 20_000;
/// The bytes of a repository that are hashed, where sizes and times do not decide.
const HASHED_BYTES_MAX: u64 = 64 << 20;
/// The files that are named in the sentence.
const NAMED_MAX: usize = 5;
/// The files that are listed.
const LISTED_MAX: usize = 1_000;
/// Where repositories are looked for when it is not known what changed.
const USUAL: [&str; 12] =
    ["/root", "/home", "/srv", "/opt", "/workspace", "/work", "/app", "/src", "/repo", "/code", "/usr/src", "/var/www"];
/// How deep below those.
const USUAL_DEPTH_MAX: usize = 4;
/// The directories that are looked through for it.
const USUAL_DIRECTORIES_MAX: usize = 20_000;

pub(super) fn changes(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    let roots = if pair.touched.is_known() { roots_of_changes(pair) } else { usual_roots(pair) };
    let (mut a, mut b) = (Facts::default(), Facts::default());
    for root in roots {
        let sides = pair.views().map(|view| Repository::open(view, &root));
        let files = files_to_look_at(pair, &root, [&sides[0], &sides[1]]);
        for (repository, (view, facts)) in sides.iter().zip([(pair.a, &mut a), (pair.b, &mut b)]) {
            if let Some(repository) = repository {
                facts.put(&whole(&root), repository.fact(view, &root, &files));
            }
        }
    }
    moved(&mut a, &mut b, changes);
    compare("git", &a, &b, Some("those files differ"), changes);
}

/// Takes out and tells those that are in one place before and in another after, and nowhere else.
fn moved(a: &mut Facts, b: &mut Facts, changes: &mut Vec<FactChange>) {
    let gone: Vec<String> = a.0.keys().filter(|name| !b.0.contains_key(*name)).cloned().collect();
    let mut came: HashMap<(Option<String>, Vec<String>), Vec<String>> = HashMap::new();
    let key = |fact: &Fact| (fact.shown.clone(), fact.files.clone());
    for (name, fact) in b.0.iter().filter(|(name, _)| !a.0.contains_key(*name)) {
        came.entry(key(fact)).or_default().push(name.clone());
    }
    let mut left: HashMap<(Option<String>, Vec<String>), Vec<String>> = HashMap::new();
    for name in gone {
        if let Some(fact) = a.0.get(&name) {
            left.entry(key(fact)).or_default().push(name);
        }
    }
    for (stands, from) in left {
        // Of copies nobody knows which is which, but by their names.
        let Some(to) = came.get(&stands).filter(|to| to.len() == from.len()) else { continue };
        for old in from {
            let same_name = |new: &&String| Path::new(new).file_name() == Path::new(&old).file_name();
            let new = match to.as_slice() {
                [only] => only,
                many => match many.iter().filter(same_name).collect::<Vec<_>>()[..] {
                    [only] => only,
                    _ => continue,
                },
            };
            let (Some(before), Some(after)) = (a.0.remove(&old), b.0.remove(new)) else { continue };
            let sentence = before.shown.map_or_else(|| old.clone(), |shown| format!("{old}: {shown}"));
            changes.push(FactChange {
                area: "git".to_owned(),
                name: super::cut(new),
                kind: ChangeKind::Renamed,
                before: Some(super::cut(&sentence)),
                after: after.shown,
                files_before: before.files,
                files_after: after.files,
            });
        }
    }
}

/// The work trees that hold the changed paths.
fn roots_of_changes(pair: &Pair<'_>) -> BTreeSet<PathBuf> {
    let mut roots = BTreeSet::new();
    // By directory: the work tree that it is in.
    let mut known: HashMap<&Path, Option<&Path>> = HashMap::new();
    for path in pair.touched.paths() {
        let mut above = Vec::new();
        let mut found = None;
        for directory in path.ancestors() {
            if let Some(root) = known.get(directory) {
                found = *root;
                break;
            }
            above.push(directory);
            let git = directory.join(".git");
            if pair.views().iter().any(|view| matches!(view.lstat(&git), Ok(Some(_)))) {
                found = Some(directory);
                break;
            }
        }
        above.into_iter().for_each(|directory| _ = known.insert(directory, found));
        roots.extend(found.map(Path::to_owned));
        if roots.len() >= REPOSITORIES_MAX {
            break;
        }
    }
    roots
}

fn usual_roots(pair: &Pair<'_>) -> BTreeSet<PathBuf> {
    let mut roots = BTreeSet::new();
    for view in pair.views() {
        let mut left = USUAL_DIRECTORIES_MAX;
        let mut todo: Vec<(PathBuf, usize)> = USUAL.iter().map(|path| (PathBuf::from(path), 0)).collect();
        while let Some((directory, depth)) = todo.pop() {
            left -= 1;
            if left == 0 || roots.len() >= REPOSITORIES_MAX {
                break;
            }
            for (name, kind) in view.entries(&directory).unwrap_or_default() {
                if name == ".git" {
                    roots.insert(directory.clone());
                } else if kind == EntryKind::Directory && depth < USUAL_DEPTH_MAX && name != "node_modules" {
                    todo.push((directory.join(name), depth + 1));
                }
            }
        }
    }
    roots
}

/// The paths in the work tree that may stand differently against the indexes of the two sides.
fn files_to_look_at(pair: &Pair<'_>, root: &Path, sides: [&Option<Repository>; 2]) -> BTreeSet<Vec<u8>> {
    let none: &[Entry] = &[];
    let [a, b] = sides.map(|side| side.as_ref().and_then(|repository| repository.index.as_deref()).unwrap_or(none));
    let mut files: BTreeSet<Vec<u8>> = BTreeSet::new();
    if !pair.touched.is_known() || a.len().max(b.len()) <= FILES_MAX {
        files.extend(a.iter().take(FILES_MAX).chain(b.iter().take(FILES_MAX)).map(|entry| entry.path.clone()));
        return files;
    }
    let (old, new) = (by_path(a), by_path(b));
    let differs = |entry: &&Entry, other: &ByPath<'_>| other.get(entry.path.as_slice()) != Some(entry);
    files.extend(a.iter().filter(|entry| differs(entry, &new)).take(FILES_MAX).map(|entry| entry.path.clone()));
    files.extend(b.iter().filter(|entry| differs(entry, &old)).take(FILES_MAX).map(|entry| entry.path.clone()));
    let paths = pair.touched.paths();
    let from = paths.partition_point(|path| path.as_path() < root);
    for path in paths[from..].iter().take_while(|path| path.starts_with(root)) {
        if files.len() >= FILES_MAX * 2 {
            break;
        }
        let Ok(relative) = path.strip_prefix(root) else { continue };
        if relative.starts_with(".git") || relative.as_os_str().is_empty() {
            continue;
        }
        let relative = relative.as_os_str().as_bytes();
        if old.contains_key(relative) || new.contains_key(relative) {
            files.insert(relative.to_owned());
        }
        // A directory that is on one side only takes all below it along.
        let is_directory =
            |view: &View| matches!(view.lstat(path), Ok(Some(meta)) if meta.kind == EntryKind::Directory);
        if is_directory(pair.a) != is_directory(pair.b) {
            let below = [relative, b"/"].concat();
            for entries in [a, b] {
                let from = entries.partition_point(|entry| entry.path < below);
                let inside = entries[from..].iter().take_while(|entry| entry.path.starts_with(&below));
                files.extend(inside.take(FILES_MAX).map(|entry| entry.path.clone()));
            }
        }
    }
    files
}

type ByPath<'a> = HashMap<&'a [u8], &'a Entry>;

fn by_path(entries: &[Entry]) -> ByPath<'_> {
    entries.iter().map(|entry| (entry.path.as_slice(), entry)).collect()
}

struct Repository {
    stands: String,
    index: Option<Vec<Entry>>,
}

impl Repository {
    fn open(view: &View, root: &Path) -> Option<Self> {
        let git = git_directory(view, root)?;
        // A second work tree has its own HEAD and index, and the refs of the first.
        let common = match bytes(view, &git.join("commondir"), SETTINGS_BYTES_MAX) {
            Some(text) => view.follow(&git.join(OsStr::from_bytes(text.trim_ascii()))).ok()?,
            None => git.clone(),
        };
        let head = parse_head(&bytes(view, &git.join("HEAD"), SETTINGS_BYTES_MAX)?)?;
        let stands = match head {
            Head::Detached(commit) => format!("detached at {}", short(&commit)),
            Head::Branch(name) => {
                let loose = bytes(view, &common.join(OsStr::from_bytes(&name)), SETTINGS_BYTES_MAX);
                let commit = loose
                    .as_deref()
                    .and_then(|text| object_name(text.trim_ascii()))
                    .or_else(|| packed_ref(&bytes(view, &common.join("packed-refs"), TABLE_BYTES_MAX)?, &name));
                let branch = show(name.strip_prefix(b"refs/heads/").unwrap_or(&name));
                match commit {
                    Some(commit) => format!("{branch} at {}", short(&commit)),
                    None => format!("{branch} without commits"),
                }
            }
        };
        let config = bytes(view, &common.join("config"), SETTINGS_BYTES_MAX).unwrap_or_default();
        let index = bytes(view, &git.join("index"), TABLE_BYTES_MAX)
            .and_then(|bytes| index::parse(&bytes, if is_sha256(&config) { 32 } else { 20 }));
        Some(Self { stands, index })
    }

    /// Where it stands, and which of `files` are not as in the index.
    fn fact(&self, view: &View, root: &Path, files: &BTreeSet<Vec<u8>>) -> Fact {
        let entries = by_path(self.index.as_deref().unwrap_or_default());
        let mut dirty: Vec<String> = Vec::new();
        let mut digest = blake3::Hasher::new();
        let mut hashed = 0;
        for path in files {
            let Some(entry) = entries.get(path.as_slice()) else { continue };
            let full = root.join(OsStr::from_bytes(path));
            let meta = view.lstat(&full).ok().flatten();
            if is_dirty(view, &full, entry, meta.as_ref(), &mut hashed) {
                dirty.push(show(path));
                digest.update(path);
                let seen = meta.map(|meta| (meta.size, meta.mtime, meta.mode));
                digest.update(format!("{seen:?}").as_bytes());
            }
        }
        let mut text = self.stands.clone();
        if !dirty.is_empty() {
            text += "; not as added: ";
            text += &dirty[..dirty.len().min(NAMED_MAX)].join(", ");
            if dirty.len() > NAMED_MAX {
                text += &format!(" and {} more", dirty.len() - NAMED_MAX);
            }
        }
        dirty.truncate(LISTED_MAX);
        Fact { files: dirty, ..Fact::new(text).and_unseen(digest.finalize().as_bytes()) }
    }
}

/// Whether a file is not what its entry says, as git would find; `hashed` counts the bytes read for it.
fn is_dirty(view: &View, path: &Path, entry: &Entry, meta: Option<&Meta>, hashed: &mut u64) -> bool {
    const LINK: u32 = 0o120_000;
    const FILE: u32 = 0o100_000;
    if entry.conflict {
        return true;
    }
    let kind = entry.mode & 0o170_000;
    if entry.skipped || !matches!(kind, LINK | FILE) {
        // Another repository, or a directory that is not checked out.
        return false;
    }
    let Some(meta) = meta else { return true };
    let same_kind = match meta.kind {
        EntryKind::File => kind == FILE && (entry.mode & 0o100 != 0) == (meta.mode & 0o100 != 0),
        EntryKind::Symlink => kind == LINK,
        _ => false,
    };
    if !same_kind {
        return true;
    }
    let same_size = entry.size == meta.size as u32;
    let same_time =
        entry.mtime_sec == meta.mtime.sec as u32 && (entry.mtime_nsec == 0 || entry.mtime_nsec == meta.mtime.nsec);
    if same_size && same_time {
        return false;
    }
    // A size of 0 says that git was not sure.
    if (!same_size && entry.size != 0) || entry.object.len() != 20 {
        return true;
    }
    *hashed += meta.size;
    if *hashed > HASHED_BYTES_MAX {
        return true;
    }
    let content = match &meta.target {
        Some(target) => Ok(target.clone()),
        None => view.read_limited(path, HASHED_BYTES_MAX),
    };
    let Ok(content) = content else { return true };
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()).as_bytes());
    hash.update(&content);
    hash.finalize()[..] != entry.object[..]
}

/// Where `.git` of a work tree is, or what it points to.
fn git_directory(view: &View, root: &Path) -> Option<PathBuf> {
    let git = view.follow(&root.join(".git")).ok()?;
    match view.lstat(&git).ok()??.kind {
        EntryKind::Directory => Some(git),
        EntryKind::File => {
            let text = view.read_limited(&git, SETTINGS_BYTES_MAX).ok()?;
            let target = text.strip_prefix(b"gitdir:")?.trim_ascii();
            view.follow(&root.join(OsStr::from_bytes(target))).ok()
        }
        _ => None,
    }
}

/// What HEAD says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// The full name of a ref.
    Branch(Vec<u8>),
    /// A commit.
    Detached(String),
}

pub(super) fn parse_head(text: &[u8]) -> Option<Head> {
    let text = text.trim_ascii();
    match text.strip_prefix(b"ref:") {
        Some(name) => {
            let name = name.trim_ascii();
            let plain = name.split(|&b| b == b'/').all(|part| !part.is_empty() && part != b"." && part != b"..");
            (name.starts_with(b"refs/") && plain && name.len() <= 1_024).then(|| Head::Branch(name.to_owned()))
        }
        None => object_name(text).map(Head::Detached),
    }
}

/// The commit of a ref in packed-refs: lines of `<commit> <ref>`.
pub(super) fn packed_ref(table: &[u8], name: &[u8]) -> Option<String> {
    table.split(|&b| b == b'\n').find_map(|line| {
        let (commit, rest) = line.split_at_checked(line.iter().position(|&b| b == b' ')?)?;
        (rest[1..].trim_ascii_end() == name).then(|| object_name(commit)).flatten()
    })
}

fn object_name(text: &[u8]) -> Option<String> {
    let is_name = matches!(text.len(), 40 | 64) && text.iter().all(u8::is_ascii_hexdigit);
    is_name.then(|| String::from_utf8_lossy(text).to_ascii_lowercase())
}

fn short(commit: &str) -> &str {
    &commit[..12]
}

fn is_sha256(config: &[u8]) -> bool {
    super::lines(config).any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with(b"objectformat") && line.ends_with(b"sha256")
    })
}
