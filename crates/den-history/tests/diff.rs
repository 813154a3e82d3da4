//! Differences of real states: snapshots of uppers of a real overlay on a loop-mounted btrfs. Needs root.
//!
//! The judge is naive: it reads both views whole and compares every path.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use den_api::{ChangeKind, ChangePart, EntryKind};
use den_history::{DiffOptions, Difference, Meta, State, View, changed_paths, diff};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// A btrfs of its own with layers, computers and their kept states.
struct World {
    dir: tempfile::TempDir,
    layers: Vec<PathBuf>,
    mounted: Vec<PathBuf>,
    number: u64,
}

fn run(program: &str, args: &[&OsStr]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl World {
    fn new(gib: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("den-diff-").tempdir().unwrap();
        let (image, fs) = (dir.path().join("image"), dir.path().join("fs"));
        std::fs::File::create(&image).unwrap().set_len(gib << 30).unwrap();
        std::fs::create_dir(&fs).unwrap();
        run("mkfs.btrfs", &[OsStr::new("-q"), image.as_os_str()]);
        // Another test may take the free loop device first.
        let mount = || Command::new("mount").args(["-o", "loop,noatime"]).args([&image, &fs]).output().unwrap();
        let mut mounted = mount();
        for _ in 0..20 {
            if !mounted.status.success() {
                std::thread::sleep(Duration::from_millis(50));
                mounted = mount();
            }
        }
        assert!(mounted.status.success(), "mount: {}", String::from_utf8_lossy(&mounted.stderr));
        let mut world = Self { dir, layers: Vec::new(), mounted: vec![fs], number: 0 };
        for name in ["top", "bottom"] {
            let layer = world.path(&format!("layers/{name}"));
            std::fs::create_dir_all(&layer).unwrap();
            world.layers.push(layer);
        }
        world
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("fs").join(below)
    }

    /// A new computer, its root mounted as a computer's is: its subvolume and its root.
    fn computer(&mut self, from: Option<&Kept>) -> (PathBuf, PathBuf) {
        self.number += 1;
        let name = format!("c{}", self.number);
        let live = self.path(&name);
        let into = std::fs::File::open(self.path("")).unwrap();
        match from {
            Some(kept) => {
                let source = std::fs::File::open(&kept.path).unwrap();
                den_sys::btrfs::snapshot(source.as_fd(), into.as_fd(), &name, false).unwrap();
            }
            None => {
                den_sys::btrfs::create_subvolume(into.as_fd(), &name).unwrap();
                std::fs::create_dir(live.join("data")).unwrap();
                std::fs::create_dir(live.join("work")).unwrap();
            }
        }
        let root = self.dir.path().join(format!("root{}", self.number));
        std::fs::create_dir(&root).unwrap();
        let lower: Vec<String> = self.layers.iter().map(|layer| layer.display().to_string()).collect();
        let options = format!(
            "redirect_dir=on,metacopy=off,index=off,noatime,lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            live.join("data").display(),
            live.join("work").display()
        );
        run("mount", &["-t", "overlay", "overlay", "-o", &options, root.to_str().unwrap()].map(OsStr::new));
        self.mounted.push(root.clone());
        (live, root)
    }

    fn keep(&mut self, live: &Path) -> Kept {
        self.number += 1;
        let name = format!("kept{}", self.number);
        let into = std::fs::File::open(self.path("")).unwrap();
        let source = std::fs::File::open(live).unwrap();
        den_sys::btrfs::snapshot(source.as_fd(), into.as_fd(), &name, true).unwrap();
        let path = self.path(&name);
        let generation = den_sys::btrfs::generation(std::fs::File::open(&path).unwrap().as_fd()).unwrap();
        Kept { state: State::open(&path, &self.layers).unwrap(), path, generation }
    }

    fn unmount_root(&mut self, root: &Path) {
        run("umount", &[root.as_os_str()]);
        self.mounted.retain(|mounted| mounted != root);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for mounted in self.mounted.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(mounted).status();
        }
    }
}

struct Kept {
    path: PathBuf,
    generation: u64,
    state: State,
}

/// All there is to an entry, but for its times.
#[derive(Debug, PartialEq)]
struct Whole {
    file_type: u32,
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    target: Option<Vec<u8>>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: Vec<u8>,
}

fn whole(view: &View) -> BTreeMap<PathBuf, Whole> {
    fn look(view: &View, path: PathBuf, found: &mut BTreeMap<PathBuf, Whole>) {
        let meta = view.lstat(&path).unwrap().unwrap();
        if meta.kind == EntryKind::Directory {
            for (name, _) in view.entries(&path).unwrap() {
                look(view, path.join(name), found);
            }
        }
        let bytes = match meta.kind {
            EntryKind::File => view.read_limited(&path, 1 << 30).unwrap(),
            _ => Vec::new(),
        };
        let Meta { file_type, mode, uid, gid, rdev, target, .. } = meta;
        let attributes = view.xattrs(&path).unwrap();
        found.insert(path, Whole { file_type, mode, owner: (uid, gid), rdev, target, attributes, bytes });
    }
    let mut found = BTreeMap::new();
    look(view, "/".into(), &mut found);
    found
}

type Told = BTreeMap<PathBuf, (ChangeKind, BTreeSet<ChangePart>)>;

fn naive(a: &View, b: &View) -> Told {
    let (a, b) = (whole(a), whole(b));
    let mut told = Told::new();
    for path in a.keys().chain(b.keys()) {
        let change = match (a.get(path), b.get(path)) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(old), Some(new)) => (ChangeKind::Changed, parts(old, new)),
            (Some(_), None) => (ChangeKind::Removed, BTreeSet::new()),
            _ => (ChangeKind::Added, BTreeSet::new()),
        };
        told.insert(path.clone(), change);
    }
    told
}

fn parts(old: &Whole, new: &Whole) -> BTreeSet<ChangePart> {
    if (old.file_type, old.rdev) != (new.file_type, new.rdev) {
        return [ChangePart::Kind].into();
    }
    let all = [
        (old.bytes != new.bytes, ChangePart::Content),
        (old.mode != new.mode, ChangePart::Mode),
        (old.owner != new.owner, ChangePart::Owner),
        (old.attributes != new.attributes, ChangePart::Xattr),
        (old.target != new.target, ChangePart::Target),
    ];
    all.into_iter().filter(|(differs, _)| *differs).map(|(_, part)| part).collect()
}

fn told(difference: &Difference) -> Told {
    let set = |parts: &[ChangePart]| parts.iter().copied().collect();
    difference.raw.iter().map(|change| (change.path.clone(), (change.kind, set(&change.parts)))).collect()
}

fn plain() -> DiffOptions {
    DiffOptions { limit: usize::MAX, renames: false, ..DiffOptions::default() }
}

/// Compares with the naive judge, and what is told of renames with what is told without them.
fn judge(a: &State, b: &State, since: Option<u64>) -> Result<(), TestCaseError> {
    let expected = naive(&a.view, &b.view);
    let plain = diff(a, b, since, &plain()).unwrap();
    prop_assert_eq!(&told(&plain), &expected, "since {:?}", since);
    let found: BTreeSet<PathBuf> = changed_paths(a, b, since).unwrap().into_iter().collect();
    prop_assert!(expected.keys().all(|path| found.contains(path)));

    let renamed = diff(a, b, since, &DiffOptions { text: true, ..DiffOptions::default() }).unwrap();
    prop_assert!(renamed.complete && !renamed.truncated && renamed.files.len() == renamed.raw.len());
    let (before, after) = (whole(&a.view), whole(&b.view));
    let mut apart = Told::new();
    for change in &renamed.raw {
        if let Some(from) = &change.from {
            prop_assert_eq!(change.kind, ChangeKind::Renamed);
            let found: BTreeSet<_> = change.parts.iter().copied().collect();
            prop_assert_eq!(found, parts(&before[from], &after[&change.path]));
            prop_assert_eq!(before[from].file_type, after[&change.path].file_type);
            prop_assert!(apart.insert(from.clone(), (ChangeKind::Removed, BTreeSet::new())).is_none());
            prop_assert!(apart.insert(change.path.clone(), (ChangeKind::Added, BTreeSet::new())).is_none());
        } else {
            let change = (change.path.clone(), (change.kind, change.parts.iter().copied().collect()));
            prop_assert!(apart.insert(change.0, change.1).is_none());
        }
    }
    prop_assert_eq!(apart, expected);
    for (file, raw) in renamed.files.iter().zip(&renamed.raw) {
        let Some(text) = &file.text else { continue };
        let from = raw.from.as_ref().unwrap_or(&raw.path);
        let old = before.get(from).map_or(b"".as_slice(), |old| &old.bytes);
        let new = after.get(&raw.path).map_or(b"".as_slice(), |new| &new.bytes);
        if !text.is_empty() {
            let patch = diffy::Patch::from_bytes(text.as_bytes()).unwrap();
            prop_assert_eq!(diffy::apply_bytes(old, &patch).unwrap(), new);
        }
    }
    Ok(())
}

/// What happens to a tree: which operation, and what picks the paths.
type Operation = (u8, u16, u16, u8);

/// Every path below `root`, without following links.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.symlink_metadata().unwrap().is_dir() {
                waiting.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

fn remove(path: &Path) {
    let _ = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        _ => std::fs::remove_file(path),
    };
}

/// Does one; what cannot be done is left.
fn perform(root: &Path, &(what, one, two, three): &Operation) {
    let all = paths(root);
    let existing = |n: u16| all.get(usize::from(n) % all.len().max(1)).cloned().unwrap_or_else(|| root.to_owned());
    let is_directory = |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let directory = |n: u16| {
        let path = existing(n);
        if is_directory(&path) { path } else { path.parent().unwrap().to_owned() }
    };
    // Few names, so that paths meet; one of them is no UTF-8.
    let name = |n: u8| match n % 6 {
        5 => OsStr::from_bytes(b"n\xff").to_owned(),
        n => format!("n{n}").into(),
    };
    let old = existing(one);
    let new = directory(two).join(name(three));
    let small = |n: u16| format!("line\n{}\n{}\n", n % 5, n % 3);
    if old == root && matches!(what % 20, 5..=9 | 16 | 18) {
        return;
    }
    let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.is_file());
    let done = match what % 20 {
        0 if !is_directory(&new) => {
            std::fs::remove_file(&new).or(Ok(())).and_then(|()| std::fs::write(&new, small(one)))
        }
        1 | 2 => std::fs::create_dir(&new),
        3 => symlink(format!("t{}", one % 3), &new),
        4 if is_file(&old) => std::fs::hard_link(&old, &new),
        // Renames over whatever is there, of anything to anywhere.
        5..=8 if !new.starts_with(&old) && !old.starts_with(&new) => {
            remove(&new);
            std::fs::rename(&old, &new)
        }
        9 => {
            remove(&old);
            Ok(())
        }
        10 if is_file(&old) => std::fs::write(&old, small(two)),
        11 if is_file(&old) => std::fs::OpenOptions::new()
            .append(true)
            .open(&old)
            .and_then(|mut file| std::io::Write::write_all(&mut file, small(three.into()).as_bytes())),
        12 if !old.is_symlink() => {
            std::fs::set_permissions(&old, PermissionsExt::from_mode(0o700 | u32::from(three % 64)))
        }
        13 if !old.is_symlink() => chown(&old, Some(u32::from(two % 3)), Some(u32::from(three % 3))),
        14 if !old.is_symlink() => {
            let attribute = if three % 2 == 0 { "user.one" } else { "user.overlay.opaque" };
            rustix::fs::setxattr(&old, attribute, b"y", rustix::fs::XattrFlags::empty()).map_err(Into::into)
        }
        // A copy in the upper that differs in nothing, and a directory that is new under its old name.
        15 if is_file(&old) => std::fs::File::options().append(true).open(&old).map(drop),
        16 if is_directory(&old) => {
            remove(&old);
            std::fs::create_dir(&old)
        }
        17 if is_file(&old) => std::fs::File::options().write(true).open(&old).and_then(|file| {
            file.set_times(
                std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::from_secs(two.into())),
            )
        }),
        // Two change places.
        18 => {
            let other = existing(two);
            if other.starts_with(&old) || old.starts_with(&other) {
                return;
            }
            let aside = root.join("aside");
            std::fs::rename(&old, &aside)
                .and_then(|()| std::fs::rename(&other, &old))
                .and_then(|()| std::fs::rename(&aside, &other))
        }
        19 => {
            rustix::fs::mknodat(rustix::fs::CWD, &new, rustix::fs::FileType::Fifo, 0o600.into(), 0).map_err(Into::into)
        }
        _ => Ok(()),
    };
    let _ = done;
}

fn operations(most: usize) -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(any::<Operation>(), 0..most)
}

#[test]
fn differences_are_those_of_a_naive_comparison() {
    // The same cases each time; with DEN_CASES so many others.
    let (cases, rng_seed) = match std::env::var("DEN_CASES").ok().and_then(|cases| cases.parse().ok()) {
        Some(cases) => (cases, RngSeed::Random),
        None => (40, RngSeed::Fixed(4)),
    };
    let config = Config { cases, rng_seed, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let strategy = (operations(12), operations(25), operations(15), operations(12), operations(12));
    runner
        .run(&strategy, |(bottom, top, before, ours, theirs)| {
            let mut world = World::new(1);
            for (layer, operations) in [(1, &bottom), (0, &top)] {
                operations.iter().for_each(|operation| perform(&world.layers[layer], operation));
            }
            let (live, root) = world.computer(None);
            let made = world.keep(&live);
            before.iter().for_each(|operation| perform(&root, operation));
            let base = world.keep(&live);
            let (fork, fork_root) = world.computer(Some(&base));
            ours.iter().for_each(|operation| perform(&root, operation));
            theirs.iter().for_each(|operation| perform(&fork_root, operation));
            let (ours, theirs) = (world.keep(&live), world.keep(&fork));
            for since in [Some(base.generation), Some(made.generation), None] {
                judge(&base.state, &ours.state, since)?;
                judge(&ours.state, &theirs.state, since)?;
            }
            judge(&made.state, &theirs.state, Some(made.generation))?;
            judge(&theirs.state, &made.state, None)
        })
        .unwrap();
}

/// What this thread has computed so far: other work on the machine does not count.
fn computed() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn kinds(difference: &Difference) -> Vec<(String, ChangeKind, Option<String>)> {
    difference.files.iter().map(|file| (file.path.clone(), file.kind, file.from.clone())).collect()
}

#[test]
fn a_renamed_directory_of_the_image_is_told_as_renamed() {
    let mut world = World::new(1);
    for file in ["lib/a", "lib/deep/b", "lib/empty"] {
        let path = world.layers[1].join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, if file == "lib/empty" { "" } else { file }).unwrap();
    }
    symlink("a", world.layers[1].join("lib/link")).unwrap();
    let (live, root) = world.computer(None);
    let made = world.keep(&live);
    std::fs::rename(root.join("lib"), root.join("moved")).unwrap();
    std::fs::write(root.join("moved/a"), "changed").unwrap();
    std::fs::write(root.join("moved/new"), "new").unwrap();
    let now = world.keep(&live);
    for since in [Some(made.generation), None] {
        let found = diff(&made.state, &now.state, since, &DiffOptions::default()).unwrap();
        let renamed = |name: &str| (format!("/moved{name}"), ChangeKind::Renamed, Some(format!("/lib{name}")));
        let mut expected: Vec<_> = ["", "/a", "/deep", "/deep/b", "/empty", "/link"].map(renamed).into();
        expected.push(("/moved/new".into(), ChangeKind::Added, None));
        assert_eq!(kinds(&found), expected);
        assert_eq!((found.count.added, found.count.changed, found.count.removed), (1, 6, 0));
        assert_eq!(found.files[1].parts, [ChangePart::Content]);
        let only = DiffOptions { paths: vec!["/moved/deep/".into()], limit: 1, ..DiffOptions::default() };
        let found = diff(&made.state, &now.state, since, &only).unwrap();
        assert_eq!((found.raw.len(), found.files.len(), found.truncated), (2, 1, true));
    }
    let climbing = DiffOptions { paths: vec!["/moved/../etc".into()], ..DiffOptions::default() };
    assert_eq!(diff(&made.state, &now.state, None, &climbing).unwrap_err().code(), "bad_path");
}

#[test]
fn texts_have_lines_and_binaries_hashes() {
    let mut world = World::new(1);
    std::fs::write(world.layers[0].join("text"), "one\ntwo\n").unwrap();
    std::fs::write(world.layers[0].join("binary"), [0, 1, 2]).unwrap();
    let (live, root) = world.computer(None);
    let made = world.keep(&live);
    std::fs::write(root.join("text"), "one\nthree\n").unwrap();
    std::fs::write(root.join("binary"), [0, 1, 3]).unwrap();
    std::fs::write(root.join("fresh"), "x\n").unwrap();
    // Holes are passed over, however long.
    std::fs::File::create(root.join("hole")).unwrap().set_len(1 << 40).unwrap();
    let now = world.keep(&live);
    std::fs::set_permissions(root.join("hole"), PermissionsExt::from_mode(0o600)).unwrap();
    let later = world.keep(&live);

    let options = DiffOptions { text: true, ..DiffOptions::default() };
    let found = diff(&made.state, &now.state, Some(made.generation), &options).unwrap();
    let file = |path: &str| found.files.iter().find(|file| file.path == path).unwrap();
    assert_eq!(file("/text").text.as_deref(), Some("--- a/text\n+++ b/text\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"));
    assert_eq!((file("/text").lines_added, file("/text").lines_removed), (Some(1), Some(1)));
    assert_eq!(file("/fresh").text.as_deref(), Some("--- /dev/null\n+++ b/fresh\n@@ -0,0 +1 @@\n+x\n"));
    assert_eq!(file("/binary").hash_after, Some(blake3::hash(&[0, 1, 3]).to_hex().to_string()));
    let begin = Instant::now();
    let found = diff(&now.state, &later.state, Some(now.generation), &options).unwrap();
    assert_eq!(found.files.len(), 1);
    assert_eq!(found.files[0].parts, [ChangePart::Mode]);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn deep_trees_and_many_names_end() {
    let mut world = World::new(1);
    let (live, root) = world.computer(None);
    std::fs::write(root.join("linked"), "x").unwrap();
    let base = world.keep(&live);
    let mut at = rustix::fs::open(&root, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
    for _ in 0..2_100 {
        let name = "0123456789012345678901234567890123456789";
        rustix::fs::mkdirat(&at, name, 0o755.into()).unwrap();
        at = rustix::fs::openat(&at, name, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
    }
    for n in 0..1_000 {
        std::fs::hard_link(root.join("linked"), root.join(format!("a-rather-long-name-of-a-link-{n}"))).unwrap();
    }
    std::fs::write(root.join("linked"), "y").unwrap();
    let linked = world.keep(&live);
    std::fs::write(root.join("linked"), "z").unwrap();
    let now = world.keep(&live);
    let found = diff(&base.state, &linked.state, Some(base.generation), &DiffOptions::default()).unwrap();
    assert!(found.truncated && !found.complete);
    assert!(found.count.added > 2_900, "{:?}", found.count);
    assert_eq!(found.count.changed, 1);
    // Each name of a file whose bytes change is told.
    let found = diff(&linked.state, &now.state, Some(linked.generation), &DiffOptions::default()).unwrap();
    assert_eq!((found.count.changed, found.complete), (1_001, true));
}

#[test]
fn a_difference_costs_what_changed() {
    let mut world = World::new(4);
    let (live, root) = world.computer(None);
    world.unmount_root(&root);
    let root = live.join("data");
    for directory in 0..200 {
        let directory = root.join(format!("d{directory}"));
        std::fs::create_dir(&directory).unwrap();
        for file in 0..1_000 {
            std::fs::write(directory.join(format!("f{file}")), format!("{file}\nsome\nlines\n")).unwrap();
        }
    }
    let base = world.keep(&live);
    for n in 0..1_000 {
        std::fs::write(root.join(format!("d{}/f{n}", n % 200)), format!("{n}\nother\nlines\n")).unwrap();
    }
    let now = world.keep(&live);
    let options = DiffOptions { text: true, ..DiffOptions::default() };
    let mut times = Vec::new();
    for _ in 0..5 {
        let (base_state, now_state) =
            (State::open(&base.path, &world.layers).unwrap(), State::open(&now.path, &world.layers).unwrap());
        let (begin, busy) = (Instant::now(), computed());
        let found = diff(&base_state, &now_state, Some(base.generation), &options).unwrap();
        times.push((computed() - busy, begin.elapsed()));
        assert_eq!(found.files.len(), 1_000);
    }
    times.sort();
    eprintln!("1,000 changed among 200,000 (computing, waiting too): {times:?}");
    // A build without optimisation is some times slower.
    assert!(times[0].0 < Duration::from_millis(1_500), "{times:?}");
}
