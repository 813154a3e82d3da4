//! Whole trees into a place and out again, with everything that a disk can hold.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use den_backup::{
    About, Base, Credentials, Layer, Listing, Manifest, Of, Place, Repository, Source, Writer, prune, remove, verify,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

static GO_ON: AtomicBool = AtomicBool::new(false);

fn place(root: &Path) -> Place {
    Place::new(root.to_str().expect("a path"), &Credentials::default()).expect("a place")
}

fn about() -> About {
    About { den: "test".to_owned(), schema: 1, filesystem: "here".to_owned(), secrets: true }
}

fn state(number: u64) -> Of {
    Of::State { computer: "cmp_x".to_owned(), number }
}

/// Bytes that no compressor makes smaller.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut all);
    all
}

/// Backs trees up as the states 0, 1, … of a computer, each the base of the next.
fn back_up(to: &Path, trees: &[&Path]) -> Manifest {
    let spool = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::begin(place(to), spool.path(), about(), &(), &GO_ON).expect("begun");
    let mut base: Option<Base> = None;
    for (number, root) in trees.iter().enumerate() {
        let source = Source { root, transactions: None, skip: &|_| false };
        base = Some(writer.tree(state(number as u64), None, &source, base).expect("a tree"));
    }
    let database = spool.path().join("db");
    fs::write(&database, noise(99, 3 << 20)).expect("a file");
    let database = writer.blob(&database).expect("a blob");
    writer.finish(database, Vec::new()).expect("a backup")
}

/// Lays the states out, one on top of the other, in `root`; calls `each` after each.
fn lay(from: &Path, id: &str, root: &Path, count: u64, mut each: impl FnMut(u64)) {
    let repository = Repository::open(place(from)).expect("a place");
    let found = Repository::find(repository.place(), Some(id)).expect("a backup");
    let manifest = Repository::manifest(repository.place(), &found).expect("a manifest");
    let spool = tempfile::tempdir().expect("a folder");
    let layer = Layer { repository: &repository, skip_broken: false, progress: &(), stop: &GO_ON };
    let mut before: Option<Listing> = None;
    for number in 0..count {
        let tree = manifest.tree(&state(number)).expect("a tree");
        let listing = Listing::fetch(&repository, tree, spool.path()).expect("a listing");
        assert_eq!(layer.lay(root, before.as_ref(), &listing).expect("laid"), [""; 0]);
        each(number);
        before = Some(listing);
    }
}

/// All that can be said of a tree but its inodes: hard links by their first name.
fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    fn look(root: &Path, path: &Path, seen: &mut BTreeMap<u64, PathBuf>, all: &mut BTreeMap<PathBuf, String>) {
        let facts = fs::symlink_metadata(path).expect("facts");
        let name = path.strip_prefix(root).expect("below").to_owned();
        let mut names = vec![0; 64 << 10];
        let length = rustix::fs::llistxattr(path, &mut names[..]).expect("attributes");
        let mut attributes: Vec<_> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        attributes.sort_unstable();
        let attributes: Vec<_> = attributes
            .into_iter()
            .map(|name| {
                let mut value = vec![0; 64 << 10];
                let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).expect("a value");
                (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
            })
            .collect();
        let first = seen.entry(facts.ino()).or_insert_with(|| name.clone()).clone();
        let content = match facts.file_type() {
            kind if kind.is_file() => blake3::hash(&fs::read(path).expect("bytes")).to_string(),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(path).expect("a target")),
            _ => String::new(),
        };
        let size = if facts.is_dir() { 0 } else { facts.len() };
        let links = if facts.is_dir() { 0 } else { facts.nlink() };
        let said = format!(
            "{:o} {}:{} {} {}.{:09} {size} {links} {first:?} {attributes:?} {content}",
            facts.mode(),
            facts.uid(),
            facts.gid(),
            facts.rdev(),
            facts.mtime(),
            facts.mtime_nsec()
        );
        all.insert(name, said);
        if facts.is_dir() {
            for entry in fs::read_dir(path).expect("a folder") {
                look(root, &entry.expect("an entry").path(), seen, all);
            }
        }
    }
    // The first name of a file is the first in order, whatever the folder's order is.
    let mut all = BTreeMap::new();
    look(root, root, &mut BTreeMap::new(), &mut all);
    all.into_iter().collect()
}

fn set_time(path: &Path, s: i64, ns: i64) {
    let time = Timespec { tv_sec: s, tv_nsec: ns as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect("an attribute");
}

/// Everything that a disk can hold.
fn furnish(root: &Path) {
    fs::create_dir_all(root.join("etc/deep/er")).expect("folders");
    fs::write(root.join("etc/small"), "small").expect("a file");
    fs::write(root.join("etc/empty"), "").expect("a file");
    fs::write(root.join("etc/middle"), noise(1, 100_000)).expect("a file");
    fs::write(root.join("large"), noise(2, 9 << 20)).expect("a file");
    let sparse = fs::File::create(root.join("sparse")).expect("a file");
    sparse.set_len(1 << 30).expect("a length");
    sparse.write_all_at(b"in the middle", 512 << 20).expect("bytes");
    fs::hard_link(root.join("large"), root.join("etc/deep/also large")).expect("a link");
    fs::hard_link(root.join("etc/small"), root.join("zz")).expect("a link");
    symlink("/nowhere/at all", root.join("link")).expect("a link");
    fs::write(root.join(OsStr::from_bytes(b"no \xff utf-8\n")), "x").expect("a file");
    let make = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).expect("a node");
    };
    make("etc/whiteout", FileType::CharacterDevice, 0);
    make("device", FileType::BlockDevice, rustix::fs::makedev(7, 300));
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    set(&root.join("etc/deep"), "trusted.overlay.opaque", b"y");
    set(&root.join("link"), "trusted.overlay.redirect", b"/a\0b");
    set(&root.join("etc/small"), "user.note", b"");
    set(&root.join("etc/middle"), "user.long", &noise(3, 3000));
    // cap_net_raw+ep: capabilities(7).
    set(
        &root.join("etc/middle"),
        "security.capability",
        &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    // An ACL: version 2; owner rwx, user 1000 r, group r, mask r, others nothing: acl(5).
    let acl: Vec<u8> = [(1_u16, 7_u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        .iter()
        .fold(2_u32.to_le_bytes().to_vec(), |mut all, (tag, may, id)| {
            all.extend(tag.to_le_bytes());
            all.extend(may.to_le_bytes());
            all.extend(id.to_le_bytes());
            all
        });
    set(&root.join("etc/empty"), "system.posix_acl_access", &acl);
    for (name, uid, gid) in [("large", 4_000_000_000, 17), ("link", 1000, 1001), ("fifo", 65_534, 4_294_967_294)] {
        std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid)).expect("an owner");
    }
    fs::set_permissions(root.join("etc/empty"), fs::Permissions::from_mode(0o6755)).expect("a mode");
    fs::set_permissions(root.join("etc/deep"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    for (number, name) in ["zz", "link", "fifo", "etc/whiteout", "etc/deep", "etc", ""].iter().enumerate() {
        set_time(&root.join(name), 1_600_000_000 + number as i64, 123_456_789);
    }
    set_time(&root.join("socket"), -5, 999_999_999);
}

/// What happens to a disk between two of its states.
fn change(root: &Path) {
    let large = fs::OpenOptions::new().write(true).open(root.join("large")).expect("the file");
    large.write_all_at(b"changed", 5 << 20).expect("bytes");
    fs::OpenOptions::new().write(true).open(root.join("sparse")).expect("the file").set_len(100 << 20).expect("cut");
    fs::remove_file(root.join("etc/small")).expect("removed");
    fs::write(root.join("etc/small"), "another file now").expect("a file");
    fs::remove_dir_all(root.join("etc/deep/er")).expect("removed");
    fs::write(root.join("etc/deep/er"), "a file in a folder's place").expect("a file");
    fs::remove_file(root.join("fifo")).expect("removed");
    fs::create_dir_all(root.join("fifo/in")).expect("a folder");
    fs::remove_file(root.join("link")).expect("removed");
    symlink("elsewhere", root.join("link")).expect("a link");
    fs::write(root.join("etc/middle"), noise(7, 60_000)).expect("a file");
    fs::remove_file(root.join("etc/whiteout")).expect("removed");
    rustix::fs::lremovexattr(root.join("etc/deep"), "trusted.overlay.opaque").expect("removed");
    fs::set_permissions(root.join("etc/empty"), fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::hard_link(root.join("etc/middle"), root.join("a new name")).expect("a link");
    set_time(root, 1, 1);
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg("--sparse=always").arg(from).arg(to).status();
    assert!(status.expect("cp").success());
}

/// The packs and other objects of a place, and their bytes.
fn objects(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let facts = entry.metadata().expect("facts");
            match facts.is_dir() {
                true => left.push(entry.path()),
                false => drop(all.insert(entry.path(), facts.len())),
            }
        }
    }
    all
}

#[test]
fn everything_that_a_disk_can_hold_comes_back_and_states_lie_on_one_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second, to] = ["first", "second", "to"].map(|name| folder.path().join(name));
    fs::create_dir(&first).expect("a folder");
    furnish(&first);
    copy(&first, &second);
    change(&second);
    let manifest = back_up(&to, &[&first, &second, &first]);
    assert!(manifest.took.stored_bytes < 20 << 20, "{:?}", manifest.took);
    assert_eq!(objects(&to.join("tmp")).len(), 0);

    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    let pictures = [picture(&first), picture(&second), picture(&first)];
    lay(&to, &manifest.id, &out, 3, |number| {
        let laid = picture(&out);
        for (name, said) in &pictures[number as usize] {
            assert_eq!(laid.get(name), Some(said), "{name:?} of state {number}");
        }
        assert_eq!(laid.len(), pictures[number as usize].len());
        let sparse = fs::metadata(out.join("sparse")).expect("facts");
        assert!(sparse.blocks() * 512 < 1 << 20, "holes stay holes: {}", sparse.blocks());
    });
    let found = verify(place(&to), &(), &GO_ON).expect("read");
    assert_eq!((found.backups, found.lost), (1, vec![]));
}

#[test]
fn the_second_reads_and_stores_what_is_new_and_old_ones_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tree, to) = (folder.path().join("tree"), folder.path().join("to"));
    fs::create_dir(&tree).expect("a folder");
    furnish(&tree);
    // So that times alone tell.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let first = back_up(&to, &[&tree]);
    let same = back_up(&to, &[&tree]);
    assert_eq!(same.took.files_read, 0, "{:?}", same.took);
    assert!(same.took.stored_bytes < 1 << 16, "{:?}", same.took);
    let large = fs::OpenOptions::new().write(true).open(tree.join("large")).expect("the file");
    large.write_all_at(b"changed", 5 << 20).expect("bytes");
    let third = back_up(&to, &[&tree]);
    assert_eq!(third.took.files_read, 1, "{:?}", third.took);
    assert!(third.took.new_bytes < 6 << 20, "of a file that changed, the chunks around: {:?}", third.took);
    assert!(first.took.stored_bytes > third.took.stored_bytes);

    // The same size and the same times: a clock that was set back does not hide a change.
    let path = tree.join("etc/middle");
    let before = fs::metadata(&path).expect("facts");
    fs::write(&path, noise(8, 100_000)).expect("a file");
    set_time(&path, before.mtime(), before.mtime_nsec());
    let fourth = back_up(&to, &[&tree]);
    assert!(fourth.took.new_bytes >= 100_000, "{:?}", fourth.took);

    let kept = [third.id.clone(), fourth.id.clone()];
    let pruned = prune(place(&to), 2).expect("pruned");
    assert_eq!(pruned.backups, [first.id.clone(), same.id.clone()]);
    let ids = |to: &Path| -> Vec<String> {
        Repository::backups(&place(to)).expect("a list").into_iter().map(|found| found.id).collect()
    };
    assert_eq!(ids(&to), kept);
    assert_eq!(verify(place(&to), &(), &GO_ON).expect("read").lost, vec![]);
    let pruned = remove(place(&to), &third.id).expect("removed");
    assert!(pruned.packs > 0, "what only the third had is gone");
    assert_eq!(remove(place(&to), &third.id).expect_err("gone").code(), "backup_not_found");
    assert_eq!(verify(place(&to), &(), &GO_ON).expect("read").lost, vec![]);
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    lay(&to, &fourth.id, &out, 1, |_| assert_eq!(picture(&out), picture(&tree)));
}

#[test]
fn a_changed_byte_is_found_and_what_is_lost_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tree, to) = (folder.path().join("tree"), folder.path().join("to"));
    fs::create_dir(&tree).expect("a folder");
    fs::write(tree.join("one"), noise(1, 400_000)).expect("a file");
    fs::write(tree.join("two"), noise(2, 400_000)).expect("a file");
    let manifest = back_up(&to, &[&tree]);
    let pack = objects(&to.join("packs")).into_iter().max_by_key(|(_, bytes)| *bytes).expect("a pack").0;
    // The first chunk of the first file.
    let file = fs::OpenOptions::new().read(true).write(true).open(&pack).expect("the pack");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], 1000).expect("a byte");

    let found = verify(place(&to), &(), &GO_ON).expect("read");
    let lost: Vec<_> = found.lost.iter().map(|lost| lost.what.as_str()).collect();
    assert_eq!(lost, ["one in state 0 of cmp_x"]);

    let repository = Repository::open(place(&to)).expect("a place");
    let tree_of = manifest.tree(&state(0)).expect("a tree");
    let listing = Listing::fetch(&repository, tree_of, folder.path()).expect("a listing");
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    let mut layer = Layer { repository: &repository, skip_broken: false, progress: &(), stop: &GO_ON };
    let error = layer.lay(&out, None, &listing).expect_err("broken");
    assert_eq!(error.code(), "backup_broken");
    assert!(error.to_string().contains("one in state 0 of cmp_x"), "{error}");
    fs::remove_dir_all(&out).expect("removed");
    fs::create_dir(&out).expect("a folder");
    layer.skip_broken = true;
    assert_eq!(layer.lay(&out, None, &listing).expect("laid"), ["one"]);
    assert!(!out.join("one").exists(), "what is lost is not there");
    assert_eq!(fs::read(out.join("two")).expect("bytes"), noise(2, 400_000));

    // Without its index a pack says what it has.
    let index = objects(&to.join("index")).into_keys().next().expect("an index");
    fs::write(&index, "nothing").expect("a file");
    let repository = Repository::open(place(&to)).expect("a place");
    assert!(Listing::fetch(&repository, tree_of, folder.path()).is_ok());
    // A listing that is lost is a tree that is.
    let listings = objects(&to.join("packs")).into_iter().min_by_key(|(_, bytes)| *bytes).expect("a pack").0;
    fs::write(&listings, "nothing").expect("a file");
    let error = Listing::fetch(&repository, tree_of, folder.path()).err().expect("broken");
    assert!(error.to_string().starts_with("state 0 of cmp_x is lost"), "{error}");
}

#[test]
fn foreign_and_newer_places_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().join("to");
    assert_eq!(Repository::open(place(&to)).err().expect("empty").code(), "backup_empty");
    fs::create_dir(&to).expect("a folder");
    fs::write(to.join("mine"), "x").expect("a file");
    let begin = || Writer::begin(place(&to), folder.path(), about(), &(), &GO_ON).err().expect("refused").code();
    assert_eq!(begin(), "backup_foreign");
    fs::write(to.join("den-backup.json"), r#"{"format":2,"id":"x"}"#).expect("a file");
    assert_eq!(begin(), "backup_newer");
    assert_eq!(objects(&to).len(), 2);
}

/// Changes a byte of a file.
fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], at).expect("a byte");
}

fn largest(folder: &Path) -> PathBuf {
    objects(folder).into_iter().max_by_key(|(_, bytes)| *bytes).expect("a file").0
}

#[test]
fn a_place_that_was_damaged_is_whole_again_after_verify_and_a_new_backup() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tree, to) = (folder.path().join("tree"), folder.path().join("to"));
    fs::create_dir(&tree).expect("a folder");
    fs::write(tree.join("one"), noise(1, 400_000)).expect("a file");
    fs::write(tree.join("two"), noise(2, 400_000)).expect("a file");
    let first = back_up(&to, &[&tree]);
    flip(&largest(&to.join("packs")), 1000);
    let found = verify(place(&to), &(), &GO_ON).expect("read");
    assert_eq!((found.lost.len(), found.unmarked), (1, None));
    assert_eq!(objects(&to.join("broken")).len(), 1);
    // What is not damaged can be had from the pack meanwhile.
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    let repository = Repository::open(place(&to)).expect("a place");
    let listing =
        Listing::fetch(&repository, first.tree(&state(0)).expect("a tree"), folder.path()).expect("a listing");
    let layer = Layer { repository: &repository, skip_broken: true, progress: &(), stop: &GO_ON };
    assert_eq!(layer.lay(&out, None, &listing).expect("laid"), ["one"]);
    fs::remove_dir_all(&out).expect("removed");

    let second = back_up(&to, &[&tree]);
    assert!(second.took.new_bytes >= 400_000 && second.took.new_bytes < 700_000, "{:?}", second.took);
    let lost = || verify(place(&to), &(), &GO_ON).expect("read").lost;
    assert_eq!(lost(), vec![], "the first is whole again too");
    fs::create_dir(&out).expect("a folder");
    lay(&to, &first.id, &out, 1, |_| assert_eq!(picture(&out), picture(&tree)));
    let third = back_up(&to, &[&tree]);
    assert!(third.took.new_bytes < 100_000, "it is stored again once: {:?}", third.took);
    // What the second stored is what the first needs.
    remove(place(&to), &second.id).expect("removed");
    remove(place(&to), &third.id).expect("removed");
    assert_eq!(lost(), vec![]);

    // A pack that is gone, and one whose bytes come again under its own name.
    fs::remove_file(largest(&to.join("packs"))).expect("removed");
    assert_ne!(lost(), vec![]);
    let fifth = back_up(&to, &[&tree]);
    assert_eq!(lost(), vec![]);
    // What the first needs is in a pack that it does not name.
    let pruned = remove(place(&to), &fifth.id).expect("removed");
    assert!(pruned.packs == 0 && pruned.held.is_some_and(|why| why.contains("is gone")));
    assert_eq!(lost(), vec![]);
    let other = folder.path().join("other");
    back_up(&other, &[&tree]);
    let pack = largest(&other.join("packs"));
    let whole = fs::read(&pack).expect("bytes");
    for at in (0..whole.len() as u64).step_by(4096) {
        flip(&pack, at);
    }
    assert_ne!(verify(place(&other), &(), &GO_ON).expect("read").lost, vec![]);
    back_up(&other, &[&tree]);
    assert_eq!(verify(place(&other), &(), &GO_ON).expect("read").lost, vec![]);
    assert_eq!(fs::read(&pack).expect("bytes"), whole);
    assert_eq!(objects(&other.join("broken")).len(), 0);
}

#[test]
fn a_lost_index_loses_nothing_and_a_broken_list_of_a_backup_keeps_packs() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tree, to) = (folder.path().join("tree"), folder.path().join("to"));
    fs::create_dir(&tree).expect("a folder");
    fs::write(tree.join("one"), noise(1, 400_000)).expect("a file");
    let first = back_up(&to, &[&tree]);
    fs::write(tree.join("one"), noise(2, 400_000)).expect("a file");
    let second = back_up(&to, &[&tree]);
    fs::remove_dir_all(to.join("index")).expect("removed");
    assert_eq!(verify(place(&to), &(), &GO_ON).expect("read").lost, vec![]);
    let third = back_up(&to, &[&tree]);
    assert!(third.took.new_bytes < 100_000, "{:?}", third.took);

    let packs = || objects(&to.join("packs")).len();
    let before = packs();
    let list = objects(&to.join("backups")).into_keys().find(|path| path.to_string_lossy().contains(&second.id));
    let list = list.expect("its list");
    let whole = fs::read(&list).expect("bytes");
    fs::write(&list, "nothing").expect("a file");
    let pruned = prune(place(&to), 2).expect("pruned");
    assert_eq!(pruned.backups, [first.id]);
    assert!(pruned.held.is_some_and(|why| why.contains(&second.id)) && pruned.packs == 0);
    assert_eq!(packs(), before);
    fs::write(&list, whole).expect("a file");
    assert_eq!(verify(place(&to), &(), &GO_ON).expect("read").lost, vec![]);
    let pruned = prune(place(&to), 1).expect("pruned");
    assert!(pruned.held.is_none() && pruned.packs > 0, "{pruned:?}");
    assert_eq!(verify(place(&to), &(), &GO_ON).expect("read").lost, vec![]);
}

#[test]
fn a_linked_file_deeper_than_any_path_comes_back() {
    use rustix::fs::{OFlags, linkat, mkdirat, openat};
    let folder = tempfile::tempdir().expect("a folder");
    let (tree, to) = (folder.path().join("tree"), folder.path().join("to"));
    fs::create_dir(&tree).expect("a folder");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&tree, flags, Mode::empty()).expect("the tree");
    let name = "a".repeat(250);
    let mut deep = openat(&root, ".", flags, Mode::empty()).expect("the tree");
    for _ in 0..20 {
        mkdirat(&deep, &name, Mode::from_raw_mode(0o755)).expect("a folder");
        deep = openat(&deep, &name, flags, Mode::empty()).expect("the folder");
    }
    let made = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = openat(&deep, "first", made, Mode::from_raw_mode(0o644)).expect("a file");
    rustix::io::write(&file, b"deep").expect("bytes");
    linkat(&deep, "first", &deep, "second", AtFlags::empty()).expect("a link");
    linkat(&deep, "first", &root, "shallow", AtFlags::empty()).expect("a link");
    fs::create_dir(tree.join("b")).expect("a folder");
    fs::write(tree.join("b/one"), "linked").expect("a file");
    fs::hard_link(tree.join("b/one"), tree.join("c")).expect("a link");

    let manifest = back_up(&to, &[&tree]);
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    lay(&to, &manifest.id, &out, 1, |_| {
        assert_eq!(fs::read(out.join("shallow")).expect("bytes"), b"deep");
        let inode = |name: &str| fs::metadata(out.join(name)).expect("facts").ino();
        assert_eq!(inode("b/one"), inode("c"), "links that can be are links");
        let mut deep = rustix::fs::open(&out, flags, Mode::empty()).expect("it");
        for _ in 0..20 {
            deep = openat(&deep, &name, flags, Mode::empty()).expect("the folder");
        }
        for name in ["first", "second"] {
            let file = openat(&deep, name, OFlags::RDONLY, Mode::empty()).expect("the file");
            let mut bytes = [0; 8];
            let read = rustix::io::read(&file, &mut bytes).expect("bytes");
            assert_eq!(&bytes[..read], b"deep");
        }
    });
}
