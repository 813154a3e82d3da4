//! States of disks: taken, seen to change, forked, restored, removed. Needs root.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::common::{CHILD, IDENTITY, LIMIT, Place, id, listing, settled, sh};
use den_disk::{DiskError, Storage, StorageChoice};
use den_sys::btrfs;

fn on_both(test: impl Fn(&Place)) {
    for storage in [StorageChoice::Auto, StorageChoice::Plain] {
        let place = Place::new(storage);
        place.create(id(1), LIMIT, &IDENTITY).unwrap();
        test(&place);
    }
}

/// Something of every kind.
const EVERYTHING: &str = r#"
    mkdir -p data/a/b data/empty; echo one > data/a/one; ln data/a/one data/a/b/two; ln -s ../one data/a/b/link
    ln -s /nowhere data/dangling; mknod data/whiteout c 0 0; mkfifo data/pipe; echo x > data/mode; chmod 4751 data/mode
    chown 1000:33 data/a/one; truncate -s 9M data/sparse; printf end >> data/sparse
    attr user.note hello data/a/one; attr trusted.overlay.opaque y data/a/b
    attr trusted.overlay.redirect /x data/empty; attr trusted.mark z data/dangling
    cp /bin/true data/capable; setcap cap_net_raw+ep data/capable 2>/dev/null || true
    touch -d '2001-02-03 04:05:06.789' data/mode data/a/b; mkdir -p work/work
"#;

#[test]
fn a_state_stays_as_it_was() {
    on_both(|place| {
        let live = place.live(1);
        sh(&live, EVERYTHING);
        let before = listing(&live);
        place.snapshot(id(1), 1).unwrap();
        let kept = place.snapshot_path(id(1), 1);
        assert_eq!(listing(&kept), before);
        sh(&live, "rm -r data/a; echo more >> data/mode");
        assert_eq!(listing(&kept), before);
        assert!(matches!(place.snapshot(id(1), 1), Err(DiskError::SnapshotExists { number: 1, .. })));
        assert_eq!(listing(&kept), before);
        place.snapshot(id(1), 12).unwrap();
        assert_eq!(place.snapshots(id(1)).unwrap(), [1, 12]);
        place.drop_snapshot(id(1), 1).unwrap();
        place.drop_snapshot(id(1), 1).unwrap();
        assert_eq!(place.snapshots(id(1)).unwrap(), [12]);
        assert!(place.snapshot(id(9), 1).is_err());
        if place.storage() == Storage::Btrfs {
            assert!(fs::write(place.snapshot_path(id(1), 12).join("data/x"), "").is_err());
        }
        assert!(fs::metadata(place.snapshot_path(id(1), 12).join("data/sparse")).unwrap().blocks() < 64);
    });
}

#[test]
fn every_change_is_seen_and_no_reading() {
    let place = Place::new(StorageChoice::Auto);
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    let data = place.live(1).join("data");
    sh(&data, "echo text > file; mkdir dir; echo other > dir/other; ln -s file link; chmod 644 file");
    let dirt = place.dirt(id(1)).unwrap();
    let mut number = 0;
    let mut kept = || {
        number += 1;
        let generation = place.snapshot(id(1), number).unwrap();
        let mark = dirt.mark().unwrap();
        assert_eq!(mark.generation, generation, "a snapshot's generation is its source's");
        assert!(!dirt.changed(&mark).unwrap());
        mark
    };
    let map = "import mmap,os;f=os.open('file',2);m=mmap.mmap(f,5);m[0:1]=b'T'";
    for change in [
        "touch file",
        "chmod 600 file",
        "chown 5 file",
        "echo more >> file",
        "printf X | dd of=file bs=1 conv=notrunc status=none",
        &format!("python3 -c \"{map}\""),
        "rm dir/other",
        "attr user.a b file",
        "mv file elif",
        "ln elif again",
        "ln -s x y",
        "mkdir new",
        "mkfifo pipe",
        "truncate -s 0 elif",
        "rmdir new",
    ] {
        let mark = kept();
        sh(&data, change);
        assert!(dirt.changed(&mark).unwrap(), "{change}");
        // Once more when the kernel has written it.
        sh(&data, "sync -f .");
        assert!(dirt.changed(&mark).unwrap(), "{change}, written");
    }
    sh(&data, "echo text > file; mkdir dir2");
    let mark = kept();
    let reading = "cat file; ls -lR .; stat file; grep -r x . || :; attrs; find . -name nothing; sync -f .";
    for look in [reading, "true", reading] {
        sh(&data, look);
        assert!(!dirt.changed(&mark).unwrap(), "{look}");
    }
    // Changes of others do not show.
    place.create(id(2), LIMIT, &IDENTITY).unwrap();
    fs::write(place.live(2).join("data/x"), "x").unwrap();
    assert!(!dirt.changed(&mark).unwrap());

    let began = std::time::Instant::now();
    for _ in 0..1000 {
        assert!(!dirt.changed(&mark).unwrap());
    }
    println!("one check: {:?}", began.elapsed() / 1000);
}

/// Made, marked, changed and committed in one transaction: its generation never moves.
#[test]
fn a_change_of_a_new_disk_is_seen() {
    let place = Place::new(StorageChoice::Auto);
    for n in 1..10 {
        place.create(id(n), LIMIT, &IDENTITY).unwrap();
        let dirt = place.dirt(id(n)).unwrap();
        let mark = dirt.mark().unwrap();
        sh(&place.live(n), "echo x >> data/etc/hosts; sync -f .");
        assert!(dirt.changed(&mark).unwrap());
        // And what is written once more where something waits already.
        for change in ["echo y >> data/etc/hosts", "echo z >> data/etc/hosts", "chmod 600 data/etc/hosts"] {
            let mark = dirt.mark().unwrap();
            sh(&place.live(n), change);
            assert!(dirt.changed(&mark).unwrap(), "{change}");
        }
    }
    place.create(id(20), LIMIT, &IDENTITY).unwrap();
    let dirt = place.dirt(id(20)).unwrap();
    let mark = dirt.mark().unwrap();
    sh(&place.live(20), "echo x >> data/etc/hosts");
    assert!(dirt.changed(&mark).unwrap());
}

/// A few bytes are kept in the leaf of their inode: once they are written out nothing is reserved for them, and the
/// commit is some time away.
#[test]
fn a_few_bytes_that_are_written_out_and_not_committed_are_seen() {
    let place = Place::new(StorageChoice::Auto);
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    let live = place.live(1);
    let range = "import ctypes,os;f=os.open('data/file',2);z=ctypes.c_int64(0);\
                 assert ctypes.CDLL(None).sync_file_range(f,z,z,7)==0";
    let dirt = place.dirt(id(1)).unwrap();
    for (number, out) in [&format!("python3 -c \"{range}\""), "sync data/file", "sync -d data/file"].iter().enumerate()
    {
        sh(&live, "echo text > data/file; sync -f .");
        let generation = place.snapshot(id(1), number as u64 + 1).unwrap();
        let mark = dirt.mark().unwrap();
        assert_eq!(mark.generation, generation);
        sh(&live, &format!("echo more >> data/file; {out}"));
        assert!(dirt.changed(&mark).unwrap(), "{out}");
        // What comes after such a moment is seen too.
        let mark = dirt.mark().unwrap();
        sh(&live, &format!("echo more >> data/file; {out}"));
        assert!(dirt.changed(&mark).unwrap(), "{out}, again");
    }
}

#[test]
fn what_waits_is_flushed_ahead() {
    let place = Place::new(StorageChoice::Auto);
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    let dirt = place.dirt(id(1)).unwrap();
    fs::write(place.live(1).join("data/big"), vec![1_u8; 8 << 20]).unwrap();
    assert!(dirt.waiting_bytes() >= 8 << 20);
    place.preflush(id(1)).unwrap();
    assert!(dirt.waiting_bytes() < 1 << 20);
    assert_eq!(place.snapshots(id(1)).unwrap(), [0_u64; 0]);
    assert_eq!(fs::read_dir(place.live(1).with_file_name("snapshots")).unwrap().count(), 0);
}

#[test]
fn what_was_written_since_is_named() {
    let place = Place::new(StorageChoice::Auto);
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    let data = place.live(1).join("data");
    sh(&data, "mkdir many; cd many; seq 2000 | xargs -n 100 touch; mkdir -p deep/er; echo 1 > deep/er/file");
    let since = place.snapshot(id(1), 1).unwrap();
    sh(&data, "echo 2 > many/deep/er/file; ln many/deep/er/file linked; chmod 700 many/7; rm many/8; mkdir made");
    place.snapshot(id(1), 2).unwrap();
    let state = fs::File::open(place.snapshot_path(id(1), 2)).unwrap();
    let changed = btrfs::changed_inodes(state.as_fd(), since).unwrap();
    let mut paths: Vec<String> = changed
        .iter()
        .flat_map(|changed| btrfs::paths_of(state.as_fd(), changed.inode).unwrap())
        .map(|path| path.display().to_string())
        .collect();
    paths.sort();
    assert_eq!(paths, ["data", "data/linked", "data/made", "data/many", "data/many/7", "data/many/deep/er/file"]);
    let made = changed
        .iter()
        .find(|changed| btrfs::paths_of(state.as_fd(), changed.inode).unwrap() == [Path::new("data/made")]);
    assert_eq!(made.unwrap().mode & 0o170000, 0o040000);
    assert!(btrfs::changed_inodes(state.as_fd(), 0).unwrap().len() > 2000);
    assert!(btrfs::paths_of(state.as_fd(), 1 << 40).unwrap().is_empty());
    assert_eq!(btrfs::paths_of(state.as_fd(), 256).unwrap(), [Path::new("")]);

    // More names than one answer holds, of both kinds that the kernel keeps.
    let name = "n".repeat(200);
    for number in 0..300 {
        fs::hard_link(data.join("linked"), data.join(format!("many/{name}{number}"))).unwrap();
    }
    place.snapshot(id(1), 3).unwrap();
    let state = fs::File::open(place.snapshot_path(id(1), 3)).unwrap();
    let inode = fs::metadata(data.join("linked")).unwrap().ino();
    let paths = btrfs::paths_of(state.as_fd(), inode).unwrap();
    assert_eq!(paths.len(), 302);
    for path in paths {
        assert_eq!(fs::metadata(place.snapshot_path(id(1), 3).join(&path)).unwrap().ino(), inode, "{path:?}");
    }
}

#[test]
fn a_fork_and_its_parent_do_not_see_each_other() {
    on_both(|place| {
        let parent = place.live(1);
        sh(&parent, EVERYTHING);
        sh(&parent, "(cd work; mkdir -p work/incompat/volatile); echo secret > vol/docker/engine-id");
        place.snapshot(id(1), 4).unwrap();
        sh(&parent, "echo later > data/later");
        assert!(matches!(place.fork(id(1), 5, id(2), LIMIT, &CHILD), Err(DiskError::NoSnapshot { number: 5, .. })));
        assert!(!place.exists(id(2)) && place.list().unwrap() == [id(1)]);
        let disk = place.fork(id(1), 4, id(2), LIMIT, &CHILD).unwrap();
        assert!(place.exists(id(2)));
        assert!(matches!(place.fork(id(1), 4, id(2), LIMIT, &CHILD), Err(DiskError::Exists(_))));
        assert!(place.exists(id(2)));
        assert_eq!(place.snapshots(id(2)).unwrap(), [0]);
        assert_eq!(listing(&disk.live), listing(&place.snapshot_path(id(2), 0)));
        assert!(!disk.live.join("data/later").exists());
        assert!(!disk.live.join("work").join("work/incompat").exists());
        assert!(!disk.live.join("vol/docker/engine-id").exists());
        assert_eq!(fs::read_to_string(disk.live.join("data/etc/hostname")).unwrap(), "kid\n");
        let elsewhere = listing(&parent);
        sh(&disk.live, "echo mine > data/a/one; rm data/mode");
        assert_eq!(listing(&parent), elsewhere);
        // A chain: each goes on when those above are gone.
        for n in 2..8 {
            place.snapshot(id(n), 1).unwrap();
            place.fork(id(n), 1, id(n + 1), LIMIT, &CHILD).unwrap();
        }
        for n in 1..8 {
            place.remove(id(n)).unwrap();
        }
        settled(place.data.path());
        assert_eq!(fs::read_to_string(place.live(8).join("data/a/one")).unwrap(), "mine\n");
        if place.storage() == Storage::Btrfs {
            let big = fs::write(place.live(8).join("data/big"), vec![3_u8; 100 << 20])
                .and_then(|()| fs::File::open(place.live(8).join("data/big"))?.sync_all());
            assert!(big.is_err(), "100 MiB went into a fork of 64 MiB");
            assert!(place.usage(id(8)).unwrap() > den_model::Bytes::mib(16));
        }
    });
}

#[test]
fn a_restore_gives_back_the_same_bytes() {
    on_both(|place| {
        let live = place.live(1);
        sh(&live, EVERYTHING);
        sh(&live, "echo own-name > data/etc/hostname");
        place.snapshot(id(1), 1).unwrap();
        let then = listing(&live);
        sh(&live, "rm -r data/a; echo more >> data/mode; echo new > data/new");
        let now = listing(&live);
        assert!(matches!(
            place.restore_prepare(id(1), 7, LIMIT, &IDENTITY),
            Err(DiskError::NoSnapshot { number: 7, .. })
        ));
        place.restore_prepare(id(1), 1, LIMIT, &IDENTITY).unwrap();
        place.restore_abandon(id(1));
        assert!(!live.with_file_name("live.new").exists());
        assert!(place.restore_commit(id(1), 2).is_err(), "nothing was prepared");
        assert_eq!(listing(&live), now);

        place.restore_prepare(id(1), 1, LIMIT, &IDENTITY).unwrap();
        place.restore_prepare(id(1), 1, LIMIT, &IDENTITY).unwrap();
        assert!(matches!(place.restore_commit(id(1), 1), Err(DiskError::SnapshotExists { number: 1, .. })));
        place.restore_commit(id(1), 2).unwrap();
        assert_eq!(listing(&live), then);
        assert_eq!(listing(&place.snapshot_path(id(1), 2)), now);
        assert_eq!(place.snapshots(id(1)).unwrap(), [1, 2]);

        // And back: what was is a state like any other.
        place.restore_prepare(id(1), 2, LIMIT, &IDENTITY).unwrap();
        place.restore_commit(id(1), 3).unwrap();
        assert_eq!(listing(&live), now);
        if place.storage() == Storage::Btrfs {
            let generation = place.snapshot_generation(id(1), 2).unwrap();
            place.snapshot(id(1), 4).unwrap();
            let state = fs::File::open(place.snapshot_path(id(1), 4)).unwrap();
            let changed = btrfs::changed_inodes(state.as_fd(), generation).unwrap();
            assert!(changed.iter().all(|changed| changed.inode == 256), "{changed:?}");
            assert!(fs::write(place.snapshot_path(id(1), 3).join("data/x"), "").is_err());
        }
    });
}

#[test]
fn a_restore_that_is_cut_off_is_old_or_new() {
    on_both(|place| {
        let live = place.live(1);
        let new = live.with_file_name("live.new");
        fs::write(live.join("data/is"), "old").unwrap();
        place.snapshot(id(1), 1).unwrap();
        fs::write(live.join("data/is"), "new").unwrap();
        place.settle(id(1)).unwrap();
        let is = || fs::read_to_string(live.join("data/is")).unwrap();

        // Prepared, nothing renamed.
        place.restore_prepare(id(1), 1, LIMIT, &IDENTITY).unwrap();
        place.settle(id(1)).unwrap();
        assert_eq!((is(), new.exists(), place.snapshots(id(1)).unwrap()), ("new".into(), false, vec![1]));

        // The first rename.
        place.restore_prepare(id(1), 1, LIMIT, &IDENTITY).unwrap();
        fs::rename(&live, place.snapshot_path(id(1), 2)).unwrap();
        place.restore_abandon(id(1));
        assert!(new.exists(), "the only disk is not let go of");
        place.settle(id(1)).unwrap();
        assert_eq!((is(), new.exists(), place.snapshots(id(1)).unwrap()), ("old".into(), false, vec![1, 2]));
        assert_eq!(fs::read_to_string(place.snapshot_path(id(1), 2).join("data/is")).unwrap(), "new");
        if place.storage() == Storage::Btrfs {
            assert!(fs::write(place.snapshot_path(id(1), 2).join("data/is"), "").is_err());
        }

        // Both renames.
        place.restore_prepare(id(1), 2, LIMIT, &IDENTITY).unwrap();
        fs::rename(&live, place.snapshot_path(id(1), 3)).unwrap();
        fs::rename(&new, &live).unwrap();
        place.settle(id(1)).unwrap();
        assert_eq!((is(), place.snapshots(id(1)).unwrap()), ("new".into(), vec![1, 2, 3]));

        // States that were being made.
        let folder = place.snapshot_path(id(1), 1).parent().unwrap().to_owned();
        match place.storage() {
            Storage::Btrfs => {
                let (live, folder) = (fs::File::open(&live).unwrap(), fs::File::open(&folder).unwrap());
                btrfs::snapshot(live.as_fd(), folder.as_fd(), ".flush", true).unwrap();
                btrfs::create_subvolume(folder.as_fd(), ".0.making").unwrap();
            }
            Storage::Plain => drop(sh(&folder, "mkdir -p .9.making/data; echo x > .9.making/data/x")),
        }
        place.settle(id(1)).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    });
}

#[test]
fn state_zero_is_what_a_disk_was_at_first() {
    on_both(|place| {
        // Without what the first boot makes, which state 0 has as well.
        let kept = |at: &Path| {
            let script = "find . -path ./data/var -prune -o -path './vol/container*' -prune -o -path ./vol -printf '%p\\n' -o -printf '%p %y %m %U:%G %l\\n' | sort
                cat data/etc/h* data/etc/machine-id; readlink data/etc/mtab";
            sh(at, script)
        };
        let first = kept(&place.live(1));
        fs::write(place.live(1).join("data/later"), "x").unwrap();
        assert_eq!(place.zero(id(1), LIMIT, &IDENTITY).unwrap(), 0);
        assert_eq!(place.zero(id(1), LIMIT, &IDENTITY).unwrap(), 0);
        assert_eq!(kept(&place.snapshot_path(id(1), 0)), first);
        assert_eq!(place.snapshots(id(1)).unwrap(), [0]);
        let fork = place.fork(id(1), 0, id(2), LIMIT, &CHILD).unwrap();
        assert_eq!(fs::metadata(fork.live.join("data")).unwrap().permissions().mode() & 0o777, 0o755);
    });
}

#[test]
fn a_disk_goes_with_all_its_states() {
    on_both(|place| {
        sh(&place.live(1), EVERYTHING);
        let count = if place.storage() == Storage::Btrfs { 60 } else { 5 };
        for number in 1..=count {
            fs::write(place.live(1).join("data/n"), number.to_string()).unwrap();
            place.snapshot(id(1), number).unwrap();
        }
        place.restore_prepare(id(1), 3, LIMIT, &IDENTITY).unwrap();
        place.fork(id(1), 2, id(2), LIMIT, &CHILD).unwrap();
        place.drop_snapshot(id(1), 4).unwrap();
        place.remove(id(1)).unwrap();
        assert_eq!(place.list().unwrap(), [id(2)]);
        settled(place.data.path());
        // Half made, as after a crash: nothing but a live and a state.
        fs::remove_dir(place.disk(2).steps).unwrap_or_default();
        place.remove(id(2)).unwrap();
        settled(place.data.path());
        assert!(place.list().unwrap().is_empty());
        if place.storage() == Storage::Btrfs {
            let left = sh(place.data.path(), "btrfs subvolume list computers | grep -v DELETED || :");
            assert_eq!(left, "", "subvolumes without an owner");
        }
    });
}

#[test]
fn a_restore_does_not_double_the_disk() {
    let place = Place::new(StorageChoice::Auto);
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    let live = place.live(1);
    let write = |name: &str, mebibytes: usize| {
        let path = live.join("data").join(name);
        let written = fs::write(&path, vec![5_u8; mebibytes << 20]);
        written.and_then(|()| fs::File::open(&path)?.sync_all()).inspect_err(|_| fs::remove_file(&path).unwrap())
    };
    let uuid = sh(place.data.path(), "findmnt -no UUID computers");
    let groups = || {
        let entries = fs::read_dir(format!("/sys/fs/btrfs/{}/qgroups", uuid.trim())).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("1_")).count()
    };
    assert_eq!(groups(), 0);
    place.snapshot(id(1), 1).unwrap();
    write("one", 40).unwrap();
    assert!(write("two", 40).is_err());
    place.restore_prepare(id(1), 1, LIMIT, &IDENTITY).unwrap();
    place.restore_commit(id(1), 2).unwrap();
    assert!(place.usage(id(1)).unwrap() >= den_model::Bytes::mib(40), "{:?}", place.usage(id(1)));
    assert!(write("two", 40).is_err(), "80 MiB are kept of a disk of 64 MiB");
    write("three", 12).unwrap();
    // There is always something left to it.
    place.restore_prepare(id(1), 1, LIMIT, &IDENTITY).unwrap();
    place.restore_commit(id(1), 3).unwrap();
    write("four", 8).unwrap();
    // What is let go of is free again.
    for number in [2, 3] {
        place.drop_snapshot(id(1), number).unwrap();
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while place.usage(id(1)).unwrap() > den_model::Bytes::mib(16) {
        assert!(std::time::Instant::now() < end, "{:?}", place.usage(id(1)));
        sh(place.data.path(), "btrfs subvolume sync computers || sync -f computers");
    }
    write("five", 40).unwrap();
    assert_eq!(groups(), 1);
    place.remove(id(1)).unwrap();
    settled(place.data.path());
    assert_eq!(groups(), 0);
}

#[test]
fn what_a_boot_writes_is_told_from_what_comes_after() {
    let place = Place::new(StorageChoice::Auto);
    if place.storage() != Storage::Btrfs {
        eprintln!("no btrfs here: there is nothing to tell apart");
        return;
    }
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    let live = place.live(1);
    let before = place.furnished(id(1)).unwrap().expect("it is new");
    place.snapshot(id(1), 1).unwrap();
    assert!(place.is_furnished(id(1), 1, &before).unwrap());
    // What an overlay does when it is mounted and looked at.
    fs::create_dir_all(live.join("work").join("work").join("x")).unwrap();
    rustix::fs::lsetxattr(live.join("data/etc"), "trusted.overlay.origin", b"x", rustix::fs::XattrFlags::empty())
        .unwrap();
    place.snapshot(id(1), 2).unwrap();
    assert!(place.is_only_booted(id(1), 1, 2).unwrap());
    let changes: [&dyn Fn(); 6] = [
        &|| fs::write(live.join("data/a"), "").unwrap(),
        &|| drop(sh(&live, "touch -d @1 data/etc/hosts")),
        &|| drop(sh(&live, "chmod 700 data/etc")),
        &|| drop(sh(&live, "at=$(stat -c @%.9Y data/etc); rm data/etc/mtab; touch -d $at data/etc")),
        &|| drop(sh(&live, "mv data/a data/b")),
        &|| rustix::fs::lsetxattr(live.join("data"), "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap(),
    ];
    for (number, change) in (3..).zip(changes) {
        change();
        place.snapshot(id(1), number).unwrap();
        assert!(!place.is_only_booted(id(1), number - 1, number).unwrap(), "change {number}");
        assert!(!place.is_furnished(id(1), number, &before).unwrap(), "change {number}");
    }
}
