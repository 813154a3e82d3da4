//! Shared volumes, and what hostile computers leave in them. Needs root.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use den_disk::{DiskConfig, DiskError, Disks, StorageChoice, Tree, TreeEntry, TreeError, TreeKind, TreeOwner};
use den_model::{Bytes, VolumeId};

fn id(n: u128) -> VolumeId {
    VolumeId::from_uuid(uuid::Uuid::from_u128(n))
}

const NOBODY: TreeOwner = TreeOwner { uid: None, gid: None, mode: None };

/// Disks in a folder of their own, unmounted at the end.
struct Place(Option<Disks>, tempfile::TempDir);

impl Place {
    fn new(storage: StorageChoice) -> Self {
        let data = tempfile::Builder::new().prefix("den-volumes-test.").tempdir().unwrap();
        let config = DiskConfig { data: data.path().to_owned(), storage, size: Some(Bytes::gib(1)) };
        Self(Some(Disks::open(&config).unwrap()), data)
    }

    fn disks(&self) -> &Disks {
        self.0.as_ref().unwrap()
    }

    /// A folder with a file, beside all volumes.
    fn secret(&self) -> PathBuf {
        let secret = self.1.path().join("secret");
        fs::create_dir(&secret).unwrap();
        fs::write(secret.join("file"), "untouched").unwrap();
        secret
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = self.1.path().join("computers/.gone");
        for _ in 0..1000 {
            if fs::read_dir(&gone).unwrap().count() == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let closed = self.0.take().unwrap().close();
        if !std::thread::panicking() {
            closed.unwrap();
        }
    }
}

fn write(tree: &Tree, path: &str, bytes: &[u8]) -> Result<TreeEntry, TreeError> {
    let mut writing = tree.write(path, NOBODY, true)?;
    writing.write(bytes)?;
    writing.finish()
}

fn read(tree: &Tree, path: &str) -> Result<Vec<u8>, TreeError> {
    let mut bytes = Vec::new();
    tree.read(path)?.1.read_to_end(&mut bytes).unwrap();
    Ok(bytes)
}

fn life(storage: StorageChoice) {
    let place = Place::new(storage);
    let disks = place.disks();
    disks.make_volume(id(1), Bytes::mib(32)).unwrap();
    disks.make_volume(id(2), Bytes::mib(32)).unwrap();
    assert!(matches!(disks.make_volume(id(1), Bytes::mib(32)), Err(DiskError::VolumeExists(_))));
    assert_eq!(disks.list().unwrap(), []);
    let mut all = disks.list_volumes().unwrap();
    all.sort();
    assert_eq!(all, [id(1), id(2)]);
    assert_eq!(fs::metadata(disks.volume(id(1))).unwrap().mode() & 0o7777, 0o777);

    let tree = disks.open_volume(id(1)).unwrap();
    let written = write(&tree, "/a", b"one").unwrap();
    assert_eq!(
        (written.kind, written.size, written.uid, written.gid, written.mode),
        (TreeKind::File, 3, 1000, 1000, 0o644)
    );
    let mut writing = tree.write("/a", NOBODY, true).unwrap();
    writing.write(b"half of it").unwrap();
    drop(writing);
    assert_eq!(read(&tree, "/a").unwrap(), b"one");
    assert!(matches!(tree.write("/a", NOBODY, false), Err(TreeError::Exists)));
    // It got there while the other one was written.
    let late = tree.write("/late", NOBODY, false).unwrap();
    write(&tree, "/late", b"first").unwrap();
    assert_eq!(late.finish(), Err(TreeError::Exists));
    let owner = TreeOwner { uid: Some(3), gid: Some(4), mode: Some(0o751) };
    let made = tree.make_folder("/x/y/z", owner, true).unwrap();
    assert_eq!((made.uid, made.gid, made.mode, made.path.as_slice()), (3, 4, 0o751, &b"/x/y/z"[..]));
    let names: Vec<_> = tree.list("/", 9).unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(names, [&b"/a"[..], b"/late", b"/x", b"/x/y", b"/x/y/z"]);

    // A store that knows of none would have them swept.
    assert!(Disks::were_in(place.1.path()));
    disks.remove_volume(id(1)).unwrap();
    disks.remove_volume(id(1)).unwrap();
    assert_eq!(disks.list_volumes().unwrap(), [id(2)]);
    assert!(matches!(disks.open_volume(id(1)), Err(TreeError::NotFound)));
    // A file of a volume is no file of Den's: it names no group of anybody's disk.
    let other = disks.open_volume(id(2)).unwrap();
    write(&other, "/group", b"281474976710657").unwrap();
    drop((tree, other));
    disks.remove_volume(id(2)).unwrap();
}

#[test]
fn a_volume_lives_and_goes_on_btrfs() {
    life(StorageChoice::Auto);
}

#[test]
fn a_volume_lives_and_goes_on_plain_directories() {
    life(StorageChoice::Plain);
}

#[test]
fn a_volume_holds_what_it_may_and_can_be_emptied() {
    let place = Place::new(StorageChoice::Auto);
    let disks = place.disks();
    disks.make_volume(id(1), Bytes::mib(32)).unwrap();
    let tree = disks.open_volume(id(1)).unwrap();
    write(&tree, "/small", b"stays").unwrap();
    let mut full = None;
    for n in 0..16 {
        match write(&tree, &format!("/{n}"), &vec![7; 8 << 20]) {
            Ok(_) => {}
            Err(error) => {
                full = Some((n, error));
                break;
            }
        }
    }
    let (n, error) = full.expect("128 MiB went into a volume of 32 MiB");
    assert_eq!(error, TreeError::Full);
    assert_eq!(tree.stat(&format!("/{n}")), Err(TreeError::NotFound));
    assert!(disks.volume_usage(id(1)).is_some());
    assert_eq!(read(&tree, "/small").unwrap(), b"stays");
    for n in 0..n {
        tree.remove(&format!("/{n}")).unwrap();
    }
    disks.commit().unwrap();
    write(&tree, "/again", b"there is room").unwrap();
    drop(tree);
    disks.remove_volume(id(1)).unwrap();
}

#[test]
fn no_link_leads_out_of_a_volume() {
    let place = Place::new(StorageChoice::Auto);
    let disks = place.disks();
    disks.make_volume(id(1), Bytes::mib(64)).unwrap();
    let inside = disks.volume(id(1));
    let secret = place.secret();
    fs::create_dir_all(inside.join("deep/er")).unwrap();
    fs::write(inside.join("deep/file"), "inside").unwrap();
    let absolute = secret.to_str().unwrap();
    let own = format!("/proc/{}/root{absolute}", std::process::id());
    let links = [
        ("absolute", absolute.to_owned()),
        ("above", format!("../../..{}", "/secret")),
        ("far", format!("{}{}", "../".repeat(40), &absolute[1..])),
        ("magic", own),
        ("root", "/".to_owned()),
        ("self", "/proc/self/cwd".to_owned()),
        ("neighbour", "..".to_owned()),
        ("deep/er/up", "../../../../..".to_owned()),
    ];
    for (name, target) in &links {
        symlink(target, inside.join(name)).unwrap();
    }
    symlink("../file", inside.join("deep/er/within")).unwrap();
    symlink("loop", inside.join("loop")).unwrap();
    let tree = disks.open_volume(id(1)).unwrap();
    for (name, target) in &links {
        // A link itself is looked at and removed; what it leads to is out of reach.
        let found = tree.stat(name).unwrap();
        assert_eq!((found.kind, found.target.as_deref()), (TreeKind::Link, Some(target.as_bytes())), "{name}");
        let refused = |error: TreeError| assert_eq!(error, TreeError::Outside, "{name}");
        refused(tree.list(name, 3).unwrap_err());
        refused(tree.read(name).map(drop).unwrap_err());
        refused(tree.change(name, TreeOwner { mode: Some(0o777), ..NOBODY }).unwrap_err());
        for below in ["file", "new", "file/x"] {
            let path = format!("{name}/{below}");
            refused(tree.stat(&path).unwrap_err());
            refused(tree.read(&path).map(drop).unwrap_err());
            refused(write(&tree, &path, b"overwritten").unwrap_err());
            refused(tree.make_folder(&path, NOBODY, false).unwrap_err());
            refused(tree.make_folder(&path, NOBODY, true).unwrap_err());
            refused(tree.remove(&path).unwrap_err());
        }
    }
    assert!(matches!(tree.read("loop"), Err(TreeError::BadPath(_))));
    assert_eq!(read(&tree, "deep/er/within").unwrap(), b"inside");
    for path in ["..", "../secret/file", "deep/../../secret", "deep/er/../file", "a\0b"] {
        assert!(matches!(tree.stat(path), Err(TreeError::BadPath(_))), "{path:?}");
    }
    // Written over, a link is gone, and what it led to is as it was.
    write(&tree, "absolute", b"a file of its own").unwrap();
    assert!(inside.join("absolute").symlink_metadata().unwrap().is_file());
    // Nor does the removal of a tree follow any.
    for (name, _) in &links[..7] {
        let _ = fs::rename(inside.join(name), inside.join("deep").join(name));
    }
    symlink(&secret, inside.join("deep/er/secret")).unwrap();
    tree.remove("deep").unwrap();
    assert_eq!(fs::read_to_string(secret.join("file")).unwrap(), "untouched");
    assert_eq!(fs::metadata(secret.join("file")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 1);
    drop(tree);
    disks.remove_volume(id(1)).unwrap();
}

#[test]
fn a_folder_that_becomes_a_link_meanwhile_leads_nowhere_else() {
    let place = Place::new(StorageChoice::Auto);
    let disks = place.disks();
    disks.make_volume(id(1), Bytes::mib(64)).unwrap();
    let inside = disks.volume(id(1));
    let secret = place.secret();
    fs::create_dir(inside.join("folder")).unwrap();
    fs::write(inside.join("folder/file"), "inside").unwrap();
    symlink(&secret, inside.join("link")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    inside.join("folder"),
                    rustix::fs::CWD,
                    inside.join("link"),
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        let tree = disks.open_volume(id(1)).unwrap();
        for n in 0..200 {
            if let Ok(bytes) = read(&tree, "folder/file") {
                assert_eq!(bytes, b"inside");
            }
            let _ = write(&tree, &format!("folder/{}", n % 3), b"x");
            let _ = tree.make_folder("folder/made", NOBODY, true);
            let _ = tree.list("/", 5).map(|found| {
                assert!(found.iter().all(|entry| !entry.path.ends_with(b"link/file") || entry.kind == TreeKind::File));
            });
            let _ = tree.remove("folder/made");
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut left: Vec<_> = fs::read_dir(&secret).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file"]);
    assert_eq!(fs::read_to_string(secret.join("file")).unwrap(), "untouched");
    disks.remove_volume(id(1)).unwrap();
}

#[test]
fn what_is_no_file_is_not_opened() {
    let place = Place::new(StorageChoice::Auto);
    let disks = place.disks();
    disks.make_volume(id(1), Bytes::mib(64)).unwrap();
    let inside = disks.volume(id(1));
    let pipe = inside.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o666), 0)
        .unwrap();
    let socket = std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap();
    let tree = disks.open_volume(id(1)).unwrap();
    for name in ["pipe", "socket"] {
        // A pipe would wait for who writes to it.
        assert_eq!(tree.stat(name).unwrap().kind, TreeKind::Other);
        assert_eq!(tree.read(name).map(drop), Err(TreeError::NotAFile));
        assert_eq!(write(&tree, name, b"x").map(drop), Err(TreeError::NotAFile));
        assert_eq!(tree.change(name, TreeOwner { mode: Some(0o600), ..NOBODY }).unwrap().mode, 0o600);
        tree.remove(name).unwrap();
    }
    drop((tree, socket));
    disks.remove_volume(id(1)).unwrap();
}

/// Folders in each other, deeper than paths are long.
fn nest(at: &Path, depth: usize) {
    let mut folder = rustix::fs::open(at, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&folder, "d", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        rustix::fs::openat(&folder, "f", rustix::fs::OFlags::CREATE, rustix::fs::Mode::empty()).unwrap();
        folder = rustix::fs::openat(&folder, "d", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    }
}

#[test]
fn a_tree_is_removed_however_deep_it_is() {
    let place = Place::new(StorageChoice::Auto);
    let disks = place.disks();
    disks.make_volume(id(1), Bytes::mib(256)).unwrap();
    let inside = disks.volume(id(1));
    fs::create_dir(inside.join("top")).unwrap();
    nest(&inside.join("top"), 5000);
    for n in 0..6000 {
        fs::write(inside.join(format!("top/{n}")), "").unwrap();
    }
    let tree = disks.open_volume(id(1)).unwrap();
    assert!(matches!(tree.list("/", 1000), Err(TreeError::TooMuch { .. })));
    assert_eq!(tree.list("/top", 1).unwrap().len(), 6002);
    tree.remove("top").unwrap();
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
    drop(tree);
    disks.remove_volume(id(1)).unwrap();
}
