//! States that are settled before they are written out. Needs root.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use den_disk::StorageChoice;

use crate::common::{IDENTITY, LIMIT, Place, id};

/// How often a state is taken of a disk that is written to without a pause.
const ROUNDS: u64 = 150;
/// Records that the log grows to before it begins again.
const LOG_RECORDS: u64 = 500;

/// What one writer has done so far, in the order in which it does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Done {
    renamed: u64,
    logged: u64,
    overwritten: u64,
}

/// Writes a number to three places over and over, as programs do. Between two of its calls it stands still while
/// someone has the lock, as a frozen process does.
fn write_on(data: &Path, done: &Mutex<Done>, end: &AtomicBool) {
    let (new, place, log) = (data.join("new"), data.join("place"), data.join("log"));
    let numbered = OpenOptions::new().create(true).truncate(false).write(true).open(data.join("numbered")).unwrap();
    let step = |act: &mut dyn FnMut(&mut Done)| act(&mut done.lock().unwrap_or_else(PoisonError::into_inner));
    let mut number = 0_u64;
    while !end.load(Ordering::Relaxed) {
        number += 1;
        step(&mut |_| fs::write(&new, number.to_string()).unwrap());
        step(&mut |done| {
            fs::rename(&new, &place).unwrap();
            done.renamed = number;
        });
        step(&mut |done| {
            if number.is_multiple_of(LOG_RECORDS) {
                File::create(&log).unwrap();
            }
            let mut log = OpenOptions::new().create(true).append(true).open(&log).unwrap();
            log.write_all(&number.to_le_bytes()).unwrap();
            done.logged = number;
        });
        step(&mut |done| {
            numbered.write_all_at(&number.to_le_bytes(), number % 64 * 4096).unwrap();
            done.overwritten = number;
        });
    }
}

/// What a disk says that was done on it.
fn read(data: &Path) -> Done {
    let number = |bytes: &[u8]| bytes.last_chunk().map_or(0, |last| u64::from_le_bytes(*last));
    let text = fs::read_to_string(data.join("place")).unwrap_or_default();
    let numbered = fs::read(data.join("numbered")).unwrap_or_default();
    Done {
        renamed: text.parse().unwrap_or(0),
        logged: number(&fs::read(data.join("log")).unwrap_or_default()),
        overwritten: numbered.chunks(4096).map(|page| number(&page[..8])).max().unwrap_or(0),
    }
}

#[test]
fn what_is_done_once_a_state_is_settled_is_not_in_it_and_shows() {
    let place = Place::new(StorageChoice::Auto);
    for n in [1, 2] {
        place.create(id(n), LIMIT, &IDENTITY).unwrap();
    }
    let (data, done, end) = (place.live(1).join("data"), Mutex::new(Done::default()), AtomicBool::new(false));
    let dirt = place.dirt(id(1)).unwrap();
    let disks = &*place;
    std::thread::scope(|scope| {
        // However this ends, the threads do.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(&end);
        scope.spawn(|| write_on(&data, &done, &end));
        // Commits of others, at any moment of ours.
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                fs::write(disks.disk(id(2)).live.join("data/x"), "x").unwrap();
                disks.preflush(id(2)).unwrap();
            }
        });
        for round in 1..=ROUNDS {
            let stopped = done.lock().unwrap();
            let was = *stopped;
            let settled = disks.begin_snapshot(id(1), round).unwrap();
            let mark = dirt.mark().unwrap();
            assert!(!dirt.changed(&mark).unwrap(), "round {round}: nothing was done since");
            drop(stopped);
            // The smallest change there is shows at once and for ever, though the state is not written out.
            let changed = || dirt.changed(&mark).unwrap();
            if round % 2 == 0 {
                fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700 + (round as u32 % 7)))
                    .unwrap();
                assert!(changed(), "round {round}: a change was not seen");
            }
            assert_eq!(settled.finish().unwrap(), mark.generation, "round {round}");
            if round % 2 == 0 {
                assert!(changed(), "round {round}: a change is not seen any more");
            }
            assert_eq!(read(&disks.snapshot_path(id(1), round).join("data")), was, "round {round}");
            disks.drop_snapshot(id(1), round).unwrap();
        }
    });
}

#[test]
fn a_state_that_cannot_be_taken_says_so_at_either_end() {
    let place = Place::new(StorageChoice::Auto);
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    place.begin_snapshot(id(1), 1).unwrap().finish().unwrap();
    let again = place.begin_snapshot(id(1), 1).and_then(|settled| settled.finish());
    assert!(matches!(again, Err(den_disk::DiskError::SnapshotExists { number: 1, .. })), "{again:?}");
    assert!(place.begin_snapshot(id(9), 1).is_err());
    assert_eq!(place.snapshots(id(1)).unwrap(), [1]);
    // One that nobody waits for is there all the same.
    drop(place.begin_snapshot(id(1), 2).unwrap());
    while place.snapshots(id(1)).unwrap() != [1, 2] {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
