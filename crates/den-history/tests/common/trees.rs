//! Small trees in memory, changes to them, and the merge as a model has it: no inodes, no overlays, no
//! order of operations, only what is at each path.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub what: What,
    pub mode: u32,
    pub uid: u32,
    pub note: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    File(Vec<u8>),
    Directory,
    Link(Vec<u8>),
    Fifo,
}

pub type Tree = BTreeMap<PathBuf, Node>;

/// One change: which, where, and how.
pub type Change = (u8, u8, u8);

/// How many kinds of changes there are.
pub const CHANGES: u8 = 14;

const NAMES: [&str; 3] = ["a", "b", "c"];

fn path(index: u8) -> PathBuf {
    let n = usize::from(index) % 39;
    match n {
        0..3 => PathBuf::from(format!("/{}", NAMES[n])),
        3..12 => PathBuf::from(format!("/{}/{}", NAMES[(n - 3) / 3], NAMES[(n - 3) % 3])),
        _ => {
            let n = n - 12;
            PathBuf::from(format!("/{}/{}/{}", NAMES[n / 9], NAMES[n / 3 % 3], NAMES[n % 3]))
        }
    }
}

fn lines(seed: u8) -> Vec<u8> {
    (0..12).map(|line| format!("line {line} of {}\n", seed % 3)).collect::<String>().into_bytes()
}

fn node(what: What) -> Node {
    let mode = if what == What::Directory { 0o755 } else { 0o644 };
    let mode = if matches!(what, What::Link(_)) { 0o777 } else { mode };
    Node { what, mode, uid: 0, note: None }
}

fn has_place(tree: &Tree, path: &Path) -> bool {
    let parent = path.parent().expect("below the root");
    parent == Path::new("/") || tree.get(parent).is_some_and(|node| node.what == What::Directory)
}

fn remove(tree: &mut Tree, path: &Path) {
    tree.retain(|other, _| !other.starts_with(path));
}

/// Does one change, if it can be done.
pub fn apply_change(tree: &mut Tree, (kind, at, how): Change) {
    let path = path(at);
    if !has_place(tree, &path) {
        return;
    }
    let is_directory = tree.get(&path).is_some_and(|node| node.what == What::Directory);
    match kind % CHANGES {
        0 | 1 if !is_directory => drop(tree.insert(path, node(What::File(lines(how))))),
        2 | 3 => {
            if let Some(Node { what: What::File(bytes), .. }) = tree.get_mut(&path) {
                let mut all: Vec<String> = String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect();
                let line = usize::from(how) % (all.len() + 1);
                match all.get_mut(line) {
                    Some(line) => line.push_str(&format!(" edit {}", how / 12)),
                    None => all.push(format!("added {how}")),
                }
                *bytes = (all.join("\n") + "\n").into_bytes();
            }
        }
        4 | 5 => drop(tree.entry(path).or_insert_with(|| node(What::Directory))),
        6 => remove(tree, &path),
        7 => {
            if let Some(node) = tree.get_mut(&path)
                && !matches!(node.what, What::Link(_))
            {
                node.mode = [0o600, 0o750, 0o4755, 0o1777][usize::from(how) % 4];
            }
        }
        8 => {
            if let Some(node) = tree.get_mut(&path) {
                node.uid = u32::from(how) % 3;
            }
        }
        9 => {
            if let Some(node) = tree.get_mut(&path)
                && matches!(node.what, What::File(_) | What::Directory)
            {
                node.note = (how % 4 != 0).then(|| vec![how % 4]);
            }
        }
        10 => {
            remove(tree, &path);
            tree.insert(path, node(What::Link(format!("to {}", how % 3).into_bytes())));
        }
        11 => {
            let to = self::path(how);
            let moves = tree.contains_key(&path) && !tree.contains_key(&to) && !to.starts_with(&path);
            if moves && has_place(tree, &to) {
                let moved: Vec<_> = tree.iter().filter(|(other, _)| other.starts_with(&path)).collect();
                let moved: Vec<_> = moved.into_iter().map(|(from, node)| (from.clone(), node.clone())).collect();
                remove(tree, &path);
                for (from, node) in moved {
                    let below = from.strip_prefix(&path).expect("below");
                    tree.insert(if below == Path::new("") { to.clone() } else { to.join(below) }, node);
                }
            }
        }
        12 => {
            remove(tree, &path);
            tree.insert(path, node(if how % 2 == 0 { What::Fifo } else { What::Directory }));
        }
        13 if !is_directory => drop(tree.insert(path, node(What::File(vec![0, how % 3])))),
        _ => {}
    }
}

/// A tree made by changes.
pub fn grown(from: &Tree, changes: &[Change]) -> Tree {
    let mut tree = from.clone();
    changes.iter().for_each(|&change| apply_change(&mut tree, change));
    tree
}

/// Conflicts by path: why.
pub type Conflicts = BTreeMap<PathBuf, &'static str>;

enum Verdict {
    Is(Option<Node>),
    Not(&'static str),
}

fn three<T: PartialEq + Clone>(base: Option<&T>, ours: &T, theirs: &T) -> Option<T> {
    match () {
        () if ours == theirs || base == Some(theirs) => Some(ours.clone()),
        () if base == Some(ours) => Some(theirs.clone()),
        () => None,
    }
}

fn same_kind(a: &What, b: &What) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

fn together(base: Option<&Node>, ours: &Node, theirs: &Node) -> Verdict {
    if !same_kind(&ours.what, &theirs.what) {
        return Verdict::Not("kind");
    }
    let base = base.filter(|base| same_kind(&base.what, &ours.what));
    let what = match three(base.map(|base| &base.what), &ours.what, &theirs.what) {
        Some(what) => what,
        None => match (base.map(|base| &base.what), &ours.what, &theirs.what) {
            (Some(What::File(b)), What::File(o), What::File(t)) if ![b, o, t].iter().any(|x| x.contains(&0)) => {
                match diffy::merge_bytes(b, o, t) {
                    Ok(merged) => What::File(merged),
                    Err(_) => return Verdict::Not("content"),
                }
            }
            _ => return Verdict::Not("content"),
        },
    };
    let mode = three(base.map(|base| &base.mode), &ours.mode, &theirs.mode);
    let uid = three(base.map(|base| &base.uid), &ours.uid, &theirs.uid);
    let no_note = None;
    let note = three(Some(base.map_or(&no_note, |base| &base.note)), &ours.note, &theirs.note);
    match (mode, uid, note) {
        (Some(mode), Some(uid), Some(note)) => Verdict::Is(Some(Node { what, mode, uid, note })),
        _ => Verdict::Not("metadata"),
    }
}

fn decide(base: Option<&Node>, ours: Option<&Node>, theirs: Option<&Node>) -> Verdict {
    match (ours, theirs) {
        _ if base == theirs || ours == theirs => Verdict::Is(ours.cloned()),
        _ if base == ours => Verdict::Is(theirs.cloned()),
        (Some(ours), Some(theirs)) => together(base, ours, theirs),
        _ => Verdict::Not("delete"),
    }
}

fn file(tree: &Tree, path: &Path) -> Option<Vec<u8>> {
    match tree.get(path) {
        Some(Node { what: What::File(bytes), .. }) => Some(bytes.clone()),
        _ => None,
    }
}

/// Where the file that `base` has at `path` is in `side`, by its bytes.
fn renamed(base: &Tree, side: &Tree, path: &Path) -> Option<PathBuf> {
    let bytes = file(base, path).filter(|bytes| !bytes.is_empty())?;
    let same: Vec<_> =
        side.keys().filter(|new| !base.contains_key(*new) && file(side, new).as_ref() == Some(&bytes)).collect();
    let named: Vec<_> = same.iter().filter(|new| new.file_name() == path.file_name()).collect();
    match (&same[..], &named[..]) {
        ([only], _) => Some((*only).clone()),
        (_, [only]) => Some((**only).clone()),
        _ => None,
    }
}

/// The merge, or what stands against it.
pub fn merge(base: &Tree, ours: &Tree, theirs: &Tree) -> Result<Tree, Conflicts> {
    let all: BTreeSet<&PathBuf> = base.keys().chain(ours.keys()).chain(theirs.keys()).collect();
    let mut merged = Tree::new();
    let mut conflicts = Conflicts::new();
    for &path in &all {
        match decide(base.get(path), ours.get(path), theirs.get(path)) {
            Verdict::Is(Some(node)) => drop(merged.insert(path.clone(), node)),
            Verdict::Is(None) => {}
            Verdict::Not(why) => drop(conflicts.insert(path.clone(), why)),
        }
    }
    // What was renamed on one side and changed on the other.
    let mut followed = BTreeSet::new();
    let mut left = BTreeSet::new();
    for path in conflicts.iter().filter(|(_, why)| **why == "delete").map(|(path, _)| path.clone()).collect::<Vec<_>>()
    {
        let renamer_is_ours = !ours.contains_key(&path);
        let (renamer, other) = if renamer_is_ours { (ours, theirs) } else { (theirs, ours) };
        if file(base, &path).is_none() || file(other, &path).is_none() {
            continue;
        }
        let Some(there) = renamed(base, renamer, &path) else { continue };
        if !followed.insert(there.clone()) || conflicts.contains_key(&there) || other.contains_key(&there) {
            continue;
        }
        conflicts.remove(&path);
        left.insert(path.clone());
        let (o, t) = if renamer_is_ours { (&there, &path) } else { (&path, &there) };
        match together(base.get(&path), &ours[o], &theirs[t]) {
            Verdict::Is(Some(node)) => drop(merged.insert(there, node)),
            Verdict::Is(None) => {}
            Verdict::Not(why) => {
                merged.remove(&there);
                conflicts.insert(there, why);
            }
        }
    }
    // Every entry needs a directory; what came is in one on the side that it came from.
    for (one, other) in [(ours, theirs), (theirs, ours)] {
        for (path, node) in one {
            if base.get(path) == Some(node) || left.contains(path) {
                continue;
            }
            for above in path.ancestors().skip(1).filter(|above| *above != Path::new("/")) {
                let Some(was) = base.get(above) else { continue };
                match other.get(above) {
                    Some(node) if node.what == What::Directory => {}
                    Some(_) if was.what == What::Directory => {
                        conflicts.entry(above.to_owned()).or_insert("kind");
                    }
                    None if !base.contains_key(path) && path.parent() == Some(above) => {
                        let is_clash = above.ancestors().any(|up| {
                            other.get(up).is_some_and(|node| node.what != What::Directory)
                                && base.get(up).is_some_and(|node| node.what == What::Directory)
                        });
                        if !is_clash {
                            conflicts.entry(path.clone()).or_insert("delete");
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    // What is below a conflict is part of it.
    let paths: Vec<PathBuf> = conflicts.keys().cloned().collect();
    conflicts.retain(|path, _| !paths.iter().any(|other| other != path && path.starts_with(other)));
    if conflicts.is_empty() { Ok(merged) } else { Err(conflicts) }
}

fn at(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").expect("absolute"))
}

/// Writes a tree into an empty directory.
pub fn write(root: &Path, tree: &Tree) {
    for (path, node) in tree {
        let here = at(root, path);
        match &node.what {
            What::File(bytes) => std::fs::write(&here, bytes).expect("written"),
            What::Directory => std::fs::create_dir(&here).expect("made"),
            What::Link(target) => symlink(std::ffi::OsStr::from_bytes(target), &here).expect("linked"),
            What::Fifo => {
                rustix::fs::mknodat(CWD, &here, FileType::Fifo, Mode::RUSR, 0).expect("made");
            }
        }
        std::os::unix::fs::lchown(&here, Some(node.uid), Some(0)).expect("an owner");
        if !matches!(node.what, What::Link(_)) {
            std::fs::set_permissions(&here, std::fs::Permissions::from_mode(node.mode)).expect("a mode");
        }
        if let Some(note) = &node.note {
            rustix::fs::setxattr(&here, "user.note", note, XattrFlags::empty()).expect("an attribute");
        }
    }
    // The owner of the root says nothing.
    chown(root, Some(0), Some(0)).expect("an owner");
}

/// Reads a tree from a directory.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory") {
            let here = entry.expect("an entry").path();
            let meta = std::fs::symlink_metadata(&here).expect("attributes");
            let what = match meta.file_type() {
                kind if kind.is_dir() => What::Directory,
                kind if kind.is_symlink() => {
                    What::Link(std::fs::read_link(&here).expect("a link").as_os_str().as_bytes().to_vec())
                }
                kind if kind.is_file() => What::File(std::fs::read(&here).expect("read")),
                _ => What::Fifo,
            };
            let mut note = [0; 16];
            let note = match what {
                What::File(_) | What::Directory => {
                    rustix::fs::getxattr(&here, "user.note", &mut note[..]).ok().map(|length| note[..length].to_vec())
                }
                _ => None,
            };
            if what == What::Directory {
                todo.push(here.clone());
            }
            let path = Path::new("/").join(here.strip_prefix(root).expect("below"));
            tree.insert(path, Node { what, mode: meta.mode() & 0o7777, uid: meta.uid(), note });
        }
    }
    tree
}
