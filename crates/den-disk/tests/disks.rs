//! Disks on a real loop-mounted btrfs and on plain directories. Needs root.

use std::path::Path;

use den_disk::{DiskConfig, DiskError, Disks, Identity, Storage, StorageChoice};
use den_model::{Bytes, ComputerId};

fn id(n: u128) -> ComputerId {
    ComputerId::from_uuid(uuid::Uuid::from_u128(n))
}

const IDENTITY: Identity<'static> = Identity { hostname: "web", machine_id: [0xab; 16] };

fn config(data: &Path, storage: StorageChoice) -> DiskConfig {
    DiskConfig { data: data.to_owned(), storage, size: Some(Bytes::gib(1)) }
}

/// Waits until removed disks are gone.
fn settled(data: &Path) {
    for _ in 0..500 {
        if std::fs::read_dir(data.join("computers/.gone")).unwrap().count() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("a removed disk is still there");
}

fn life(storage: StorageChoice, expected: Storage) {
    let data = tempfile::tempdir().unwrap();
    let disks = Disks::open(&config(data.path(), storage)).unwrap();
    assert_eq!(disks.storage(), expected);
    let disk = disks.create(id(1), Bytes::mib(32), &IDENTITY).unwrap();
    assert!(disks.exists(id(1)));
    assert_eq!(std::fs::read_to_string(disk.live.join("data/etc/hostname")).unwrap(), "web\n");
    assert!(matches!(disks.create(id(1), Bytes::mib(32), &IDENTITY), Err(DiskError::Exists(_))));
    assert_eq!(disks.list().unwrap(), [id(1)]);

    let big = vec![7_u8; 1 << 20];
    let file = disk.live.join("data/big");
    let mut written = Ok(());
    for _ in 0..64 {
        use std::io::Write;
        written = std::fs::OpenOptions::new().create(true).append(true).open(&file).and_then(|mut f| {
            f.write_all(&big)?;
            f.sync_all()
        });
        if written.is_err() {
            break;
        }
    }
    if expected == Storage::Btrfs {
        assert!(written.is_err(), "64 MiB went into a disk of 32 MiB");
        assert!(disks.usage(id(1)).unwrap() > Bytes::mib(16));
    }
    // A second owner of the same folder finds everything, as after a crash.
    let again = Disks::open(&config(data.path(), storage)).unwrap();
    assert!(again.exists(id(1)));
    drop(again);
    disks.remove(id(1)).unwrap();
    disks.remove(id(1)).unwrap();
    assert!(!disks.exists(id(1)));
    settled(data.path());
    disks.close().unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&*data.path().to_string_lossy()), "still mounted");
}

#[test]
fn a_disk_lives_and_goes_on_btrfs() {
    life(StorageChoice::Auto, Storage::Btrfs);
}

#[test]
fn a_disk_lives_and_goes_on_plain_directories() {
    life(StorageChoice::Plain, Storage::Plain);
}
