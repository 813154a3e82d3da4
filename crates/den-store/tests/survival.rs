//! What an acknowledged fact survives, and which files are refused.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

use common::{computer, id, step};
use den_store::{
    Durability::{Power, Process},
    Store, StoreError,
};

const CHILD_DIR: &str = "DEN_STORE_TEST_DIR";

/// Writes as fast as it can and says on stdout what was acknowledged.
#[tokio::test]
#[ignore = "the child of a_killed_process_loses_nothing_that_was_acknowledged"]
async fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = Store::open(Path::new(&dir)).unwrap();
    let first = store.last_step_number(id(1)).await.unwrap();
    if first == 0 {
        store.insert_computer(&computer(1, "web"), None, Power).await.unwrap();
    }
    let mut stdout = std::io::stdout();
    let mut queued = std::collections::VecDeque::new();
    for number in first + 1.. {
        let durability = if number % 16 == 0 { Power } else { Process };
        queued.push_back((number, store.insert_step(id(1), &step(number), durability)));
        if queued.len() > 8 {
            let (number, write) = queued.pop_front().unwrap();
            write.await.unwrap();
            writeln!(stdout, "acknowledged {number}").unwrap();
        }
    }
}

/// Runs the child until it has acknowledged `count` more and kills it. Returns the last it told of.
fn write_and_kill(dir: &Path, count: usize) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = 0;
    let mut seen = 0;
    // Lines still in the pipe after the kill were acknowledged too.
    while let Some(Ok(line)) = lines.next() {
        if let Some((_, number)) = line.split_once("acknowledged ") {
            last = number.parse().unwrap();
            seen += 1;
            if seen == count {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    assert!(seen >= count, "the child ended by itself after {seen}");
    last
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=6 {
        let last = write_and_kill(dir.path(), 500 * round);
        let store = Store::open(dir.path()).unwrap();
        let found = store.last_step_number(id(1)).await.unwrap();
        assert!(found >= last, "round {round}: acknowledged {last}, found {found}");
        assert_eq!(store.running_steps(id(1)).await.unwrap().len() as u64, found, "round {round}: none is missing");
        store.check().await.unwrap();
    }
}

#[tokio::test]
async fn a_torn_log_loses_its_tail_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    write_and_kill(dir.path(), 300);
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let (database, log) = (read("den.db"), read("den.db-wal"));
    let mut before = u64::MAX;
    // Cut at ever shorter lengths, in frames and across them, with rubbish after the cut.
    for cut in [0, 1, 23, 24, 4096, 4120, 10_000, 50_001, 200_000] {
        let torn = tempfile::tempdir().unwrap();
        fs::write(torn.path().join("den.db"), &database).unwrap();
        let mut bytes = log[..log.len() - cut].to_vec();
        bytes.extend(std::iter::repeat_n(0xa5, cut / 2));
        fs::write(torn.path().join("den.db-wal"), bytes).unwrap();
        let store = Store::open(torn.path()).unwrap();
        store.check().await.unwrap();
        let last = store.last_step_number(id(1)).await.unwrap();
        assert!(last <= before, "cut {cut}");
        assert_eq!(store.running_steps(id(1)).await.unwrap().len() as u64, last, "cut {cut}");
        before = last;
        store.insert_step(id(1), &step(last + 1), Power).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_open_is_refused_with_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    match Store::open(dir.path()).map(drop) {
        Err(error @ StoreError::Locked { pid, .. }) => {
            assert_eq!((error.code(), pid), ("store_locked", Some(std::process::id())));
        }
        other => panic!("{other:?}"),
    }
    let clone = store.clone();
    drop(store);
    assert!(Store::open(dir.path()).is_err(), "a clone still has it");
    drop(clone);
    Store::open(dir.path()).unwrap();
}

/// Opens a changed copy of a store and expects `code`, and that no byte of it was written.
async fn refused(code: &str, change: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert_computer(&computer(1, "web"), None, Power).await.unwrap();
    drop(store);
    let path = dir.path().join("den.db");
    change(&path);
    let wal = dir.path().join("den.db-wal");
    let bytes = || (fs::read(&path).unwrap(), fs::read(&wal).unwrap_or_default());
    let before = bytes();
    match Store::open(dir.path()).map(drop) {
        Err(error) => assert_eq!(error.code(), code, "{error}"),
        Ok(()) => panic!("wanted {code}"),
    }
    assert!(before == bytes(), "{code}: it was written to");
}

fn sql(path: &Path, text: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(text).unwrap();
}

#[tokio::test]
async fn what_is_no_store_of_ours_is_refused_untouched() {
    refused("store_newer", |path| sql(path, "PRAGMA user_version = 99")).await;
    refused("store_foreign", |path| sql(path, "PRAGMA application_id = 7")).await;
    refused("store_corrupt", |path| sql(path, "PRAGMA user_version = 0")).await;
    refused("store_corrupt", |path| fs::write(path, "x".repeat(8192)).unwrap()).await;
    refused("store_corrupt", |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[100..200].fill(0xff);
        fs::write(path, bytes).unwrap();
    })
    .await;
    // Left by a newer Den that was killed: its log is not copied into the database.
    refused("store_newer", |path| {
        let other = tempfile::tempdir().unwrap();
        let there = other.path().join("den.db");
        fs::copy(path, &there).unwrap();
        let connection = rusqlite::Connection::open(&there).unwrap();
        connection.execute_batch("PRAGMA journal_mode = wal; PRAGMA user_version = 99").unwrap();
        fs::copy(&there, path).unwrap();
        fs::copy(other.path().join("den.db-wal"), path.with_extension("db-wal")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn damage_met_later_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for number in 1..200 {
        store.insert_computer(&computer(number, &format!("c{number}")), None, Process).await.unwrap();
    }
    drop(store);
    let path = dir.path().join("den.db");
    let mut bytes = fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    bytes[(pages - 3) * 4096..].fill(0xee);
    fs::write(&path, bytes).unwrap();
    assert_eq!(Store::open(dir.path()).map(drop).unwrap_err().code(), "store_corrupt");
}

/// What a store looks like when its process is killed.
async fn left() -> tempfile::TempDir {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap();
    store.insert_computer(&computer(1, "web"), None, Power).await.unwrap();
    for name in ["den.db", "den.db-wal", "den.db.lock"] {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

#[tokio::test]
async fn a_log_that_is_gone_or_no_log_is_refused() {
    let code = |dir: &Path| Store::open(dir).map(drop).map_err(|error| error.code());
    let dir = left().await;
    assert_eq!(code(dir.path()), Ok(()), "left as it is by a kill");
    let wal = dir.path().join("den.db-wal");
    assert!(!wal.exists(), "closed, it has no log");
    assert_eq!(code(dir.path()), Ok(()));

    let dir = left().await;
    fs::remove_file(dir.path().join("den.db-wal")).unwrap();
    assert_eq!(code(dir.path()), Err("store_corrupt"));
    assert_eq!(code(dir.path()), Err("store_corrupt"), "the second time, too");

    // Somebody looked into it with another program, which copied the log.
    let dir = left().await;
    sql(&dir.path().join("den.db"), "PRAGMA wal_checkpoint(TRUNCATE)");
    assert!(!dir.path().join("den.db-wal").exists());
    assert_eq!(code(dir.path()), Ok(()));

    let dir = left().await;
    fs::write(dir.path().join("den.db-wal"), "").unwrap();
    assert_eq!(code(dir.path()), Err("store_corrupt"));

    let dir = left().await;
    let wal = dir.path().join("den.db-wal");
    let mut bytes = fs::read(&wal).unwrap();
    bytes[3..60].fill(0x5a);
    fs::write(&wal, &bytes).unwrap();
    assert_eq!(code(dir.path()), Err("store_corrupt"));
    assert!(fs::read(&wal).unwrap() == bytes, "it was written to");
}

#[tokio::test]
async fn a_store_that_is_gone_is_not_made_anew_where_it_knew_something() {
    for change in [|path: &Path| fs::remove_file(path).unwrap(), |path: &Path| fs::write(path, "").unwrap()] {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        Store::open_again(dir.path()).map(drop).unwrap();
        let path = dir.path().join("den.db");
        change(&path);
        let there = path.exists();
        assert_eq!(Store::open_again(dir.path()).map(drop).unwrap_err().code(), "store_missing");
        assert_eq!((path.exists(), path.metadata().map_or(0, |facts| facts.len())), (there, 0));
        Store::open(dir.path()).map(drop).unwrap();
    }
}

/// Bytes of the log's head, and of each frame (fileformat2.html, "The Write-Ahead Log").
const LOG_HEAD: u64 = 32;
const FRAME: u64 = 24 + 4096;

/// Where in the log the next frame goes: behind those that have its salt.
fn end_of(log: &fs::File) -> u64 {
    let salt = |at: u64| {
        let mut salt = [0; 8];
        log.read_exact_at(&mut salt, at).ok().map(|()| salt)
    };
    let own = salt(16);
    let mut frames = (LOG_HEAD..).step_by(FRAME as usize);
    frames.find(|at| salt(at + 8) != own).unwrap()
}

/// Whether the kernel has all of these bytes in memory.
fn in_memory(file: &fs::File, from: u64, bytes: u64) -> bool {
    let mut byte = [0];
    (from..from + bytes).step_by(4096).all(|at| {
        let parts = &mut [rustix::io::IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(file, parts, at, rustix::io::ReadWriteFlags::NOWAIT).is_ok()
    })
}

/// Frames are no whole blocks: a commit would wait for the disk to read each block that it writes over.
#[tokio::test(flavor = "multi_thread")]
async fn what_of_the_log_is_written_over_next_is_in_memory() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap(); // Memory is the disk of a tmpfs.
    let store = Store::open(dir.path()).unwrap();
    store.insert_computer(&computer(1, "web"), None, Power).await.unwrap();
    let log = fs::File::open(dir.path().join("den.db-wal")).unwrap();
    // A look has the kernel read what is looked at, and no more.
    rustix::fs::fadvise(&log, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut number = 0;
    let mut write = async || {
        number += 1;
        store.insert_step(id(1), &step(number), Process).await.unwrap();
        (end_of(&log), log.metadata().unwrap().len())
    };
    // Until it has begun anew, and there is much to write over.
    while !matches!(write().await, (end, len) if end + (4 << 20) < len) {}

    log.sync_all().unwrap();
    rustix::fs::fadvise(&log, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let (begin, len) = (end_of(&log), log.metadata().unwrap().len());
    assert!(!in_memory(&log, begin + (1 << 20), 1 << 20), "nothing was given up: there is nothing to see here");
    let end = loop {
        let (end, _) = write().await;
        // What was asked for before it was given up is written over by now, and read for that.
        if end > begin + (2 << 20) {
            break end;
        }
        assert!(end >= begin && end + (1 << 20) < len, "it began anew: {begin} {end} {len}");
    };
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(in_memory(&log, end, 64 << 10), "the log is not read ahead at {end} of {len}");
}
