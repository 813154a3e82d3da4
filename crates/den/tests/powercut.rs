//! The power goes while a daemon is at work; what it had answered is there when the power is back.
//!
//! ```text
//! RecordingDisk ─ DATA ─ den serve ◄── makers, commands, files, states, forks: each notes what was answered
//!      │ cut, cut, cut …                                                         │
//!      └► the disk as it was then ─► den serve ─► all that was answered by then ◄┘
//! ```
//!
//! `DEN_CASES` says how many cuts there are of each kind (4), `DEN_SEED` which.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use den_testkit::{Api, Cut, Dice, FileSystem, House, Options, RecordingDisk, eventually, store_copy};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);
/// Of the disk under DATA.
const DISK_BYTES: u64 = 6 << 30;
/// Between two cuts so many answers come at most.
const ANSWERS_MAX: usize = 80;

/// What was answered.
#[derive(Debug, Clone, Default)]
struct Answered {
    computers: BTreeMap<String, Life>,
    /// Commands in `web`: number, code, output.
    steps: Vec<(u64, i32, String)>,
    /// How many of those were answered before something was asked for that is answered when it is safe.
    steps_sure: usize,
    /// Files in `box`.
    files: BTreeMap<String, Vec<u8>>,
    /// States of `box`: the label, and what is in /root/mark there.
    states: BTreeMap<String, String>,
    /// Forks of `box`: the name, and what is in /root/mark there.
    forks: BTreeMap<String, String>,
    /// What /root/mark of `tried` has after the restore that was answered last, while no other is asked for.
    restored: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Made,
    /// Its removal was asked for.
    Going,
    Gone,
}

/// Where the steps' safety stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Steps {
    /// Safe when answered.
    Sure,
    /// Safe a moment later.
    Soon,
}

struct Load {
    answered: Mutex<Answered>,
    answers: AtomicUsize,
    over: AtomicBool,
}

impl Load {
    fn note(&self, note: impl FnOnce(&mut Answered)) {
        note(&mut self.answered.lock().expect("no panic"));
        self.answers.fetch_add(1, Ordering::SeqCst);
    }

    fn computer(&self, name: &str, life: Life) {
        self.note(|answered| {
            answered.computers.insert(name.to_owned(), life);
        });
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }
}

fn number_from(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn file(computer: &str, path: &str) -> String {
    format!("/v1/computers/{computer}/files?path={path}")
}

/// Makes computers, and removes every other one.
fn make(load: &Load, api: &Api) {
    for number in 0.. {
        let name = format!("c{number}");
        api.post("/v1/computers", &json!({ "name": name, "memory": "128MiB" })).expect(201);
        load.computer(&name, Life::Made);
        if number % 2 == 0 {
            load.computer(&name, Life::Going);
            api.delete(&format!("/v1/computers/{name}")).expect(204);
            load.computer(&name, Life::Gone);
        }
        if number > 12 || !load.goes_on() {
            return;
        }
    }
}

/// Runs commands that write and say something.
fn command(load: &Load, api: &Api) {
    for number in 0.. {
        if !load.goes_on() {
            return;
        }
        let script = format!("echo {number} > /root/n{}; echo said {number}; exit {}", number % 7, number % 3);
        let step = api.post("/v1/computers/web/steps", &json!({ "argv": ["sh", "-c", script] })).expect(200).json();
        let step = step["step"]["number"].as_u64().expect("a number");
        load.note(|answered| answered.steps.push((step, number % 3, format!("said {number}\n"))));
    }
}

/// Writes files, and keeps states and makes forks in between.
fn write(load: &Load, api: &Api, mut dice: Dice) {
    for number in 0.. {
        if !load.goes_on() {
            return;
        }
        let mark = format!("mark {number}");
        api.put(&file("box", "/root/mark"), mark.as_bytes()).expect(200);
        match number % 4 {
            0 => {
                let label = format!("s{number}");
                api.post("/v1/computers/box/snapshots", &json!({ "label": label })).expect(200);
                load.note(|answered| drop(answered.states.insert(label, mark)));
            }
            1 if number < 20 => {
                let name = format!("f{number}");
                api.post("/v1/computers/box/fork", &json!({ "name": name })).expect(201);
                load.note(|answered| drop(answered.forks.insert(name, mark)));
            }
            _ => {
                let path = format!("/root/file{number}");
                let length = [1, 5000, 300_000][dice.below(3)] + dice.below(1000);
                let bytes: Vec<u8> = (0..length).map(|_| dice.roll() as u8).collect();
                let before = load.answered.lock().expect("no panic").steps.len();
                api.put(&file("box", &path), &bytes).expect(200);
                load.note(|answered| {
                    answered.files.insert(path, bytes);
                    answered.steps_sure = before;
                });
            }
        }
    }
}

/// Takes a computer back and forth.
fn restore(load: &Load, api: &Api) {
    for number in 0.. {
        if !load.goes_on() {
            return;
        }
        let label = ["one", "two"][number % 2];
        load.note(|answered| answered.restored = None);
        api.post("/v1/computers/tried/restore", &json!({ "state": label })).expect(200);
        load.note(|answered| answered.restored = Some(label.to_owned()));
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// A run under load on such a disk; what it held at each of some moments, and what had been answered by then.
fn cuts(file_system: FileSystem, args: &[&str], seed: u64, count: usize) -> Vec<(Answered, Cut)> {
    let disk = RecordingDisk::new(DISK_BYTES, file_system);
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let house = House::with(DEN, Options { data: Some(disk.path().join("data")), args, ..Options::default() });
    let api = house.api();
    for name in ["web", "box", "tried"] {
        house.new_computer(name);
    }
    for label in ["one", "two"] {
        api.put(&file("tried", "/root/mark"), label.as_bytes()).expect(200);
        api.post("/v1/computers/tried/snapshots", &json!({ "label": label })).expect(200);
    }
    let mut dice = Dice(seed);
    let mut cuts = Vec::new();
    let load = Load { answered: Mutex::default(), answers: AtomicUsize::new(0), over: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        let (load, api, of_files) = (&load, &api, Dice(dice.roll()));
        scope.spawn(move || make(load, api));
        let threads = [
            scope.spawn(move || command(load, api)),
            scope.spawn(move || write(load, api, of_files)),
            scope.spawn(move || restore(load, api)),
        ];
        for _ in 0..count {
            let wanted = load.answers.load(Ordering::SeqCst) + 1 + dice.below(ANSWERS_MAX);
            // One that has ended panicked: that is said when the scope ends.
            while load.answers.load(Ordering::SeqCst) < wanted && !threads.iter().any(|thread| thread.is_finished()) {
                std::thread::sleep(Duration::from_micros(200 + dice.below(3000) as u64));
            }
            // In this order: what is answered in between may be there or not.
            let answered = load.answered.lock().expect("no panic").clone();
            cuts.push((answered, disk.cut(dice.roll())));
        }
        load.over.store(true, Ordering::SeqCst);
    });
    house.close();
    cuts
}

/// A machine that comes back is another boot of the kernel, by which Den knows that nothing runs. This machine
/// is not, so what was written down as this boot is made another one. The log of the store stays beside it.
fn another_boot(store: &Path) {
    use rusqlite::config::DbConfig;
    let store = rusqlite::Connection::open(store).expect("the store");
    store.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).expect("the log stays");
    store.execute("UPDATE computers SET boot_id = 'the one before'", []).expect("the rows");
}

/// What was answered is there after the cut, whole.
fn check(answered: &Answered, cut: Cut, args: &[&str], steps: Steps) {
    let disk = RecordingDisk::after(cut);
    another_boot(&disk.path().join("data/den.db"));
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let house = House::with(DEN, Options { data: Some(disk.path().join("data")), args, ..Options::default() });
    let api = house.api();
    let listed = api.get("/v1/computers?limit=1000").expect(200).json()["items"].as_array().expect("items").clone();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let names: BTreeSet<String> = listed.iter().map(|computer| text(&computer["name"])).collect();
    for (name, life) in &answered.computers {
        match life {
            Life::Made => assert!(names.contains(name), "`{name}` was made and is gone: {names:?}"),
            Life::Gone => assert!(!names.contains(name), "`{name}` was removed and is there"),
            Life::Going => {}
        }
    }
    for name in ["web", "box", "tried"].into_iter().chain(answered.forks.keys().map(String::as_str)) {
        assert!(names.contains(name), "`{name}` is gone: {names:?}");
    }
    let ids: BTreeSet<String> = listed.iter().map(|computer| text(&computer["id"])).collect();
    eventually(LONG, "disks are those of the list", || house.disks().into_iter().collect::<BTreeSet<_>>() == ids);
    let copy = store_copy(&house.data());
    let integrity: String = rusqlite::Connection::open(copy.path().join("den.db"))
        .and_then(|store| store.query_row("PRAGMA integrity_check", [], |row| row.get(0)))
        .expect("the store");
    assert_eq!(integrity, "ok");

    let sure = match steps {
        Steps::Sure => answered.steps.len(),
        Steps::Soon => answered.steps_sure,
    };
    for (number, code, output) in &answered.steps[..sure] {
        let step = api.get(&format!("/v1/computers/web/steps/{number}")).expect(200).json();
        assert_eq!(step["end"]["exit_code"], *code, "{step}");
        let path = format!("/v1/computers/web/steps/{number}/output");
        let said = api.request("GET", &path, &[("accept", "application/octet-stream")], b"").expect(200).text();
        match steps {
            Steps::Sure => assert_eq!(said, *output, "step {number}"),
            Steps::Soon => assert!(output.starts_with(&said), "step {number} said {said:?}"),
        }
    }
    for (label, mark) in &answered.states {
        let found = api.get(&format!("/v1/computers/box/states/{label}/file?path=/root/mark"));
        assert_eq!((found.status, found.text()), (200, mark.clone()), "the state {label}");
    }
    for name in names.iter().filter(|name| ["web", "box", "tried"].contains(&name.as_str()) || name.starts_with('f')) {
        let state = api.get(&format!("/v1/computers/{name}")).expect(200).json();
        assert!(["stopped", "failed"].contains(&text(&state["state"]).as_str()), "{state}");
        api.post(&format!("/v1/computers/{name}/start"), &json!({})).expect(200);
        assert_eq!(house.sh(name, "hostname").ok(), *name);
    }
    for (path, bytes) in &answered.files {
        let found = api.get(&file("box", path));
        assert_eq!(found.status, 200, "{path}: {}", found.text());
        assert!(found.body == *bytes, "{path} has {} bytes of {}", found.body.len(), bytes.len());
    }
    for (name, mark) in &answered.forks {
        assert_eq!(api.get(&file(name, "/root/mark")).expect(200).text(), *mark, "the fork {name}");
    }
    let mark = api.get(&file("tried", "/root/mark")).expect(200).text();
    match &answered.restored {
        Some(label) => assert_eq!(mark, *label, "what the last restore brought"),
        None => assert!(["one", "two"].contains(&mark.as_str()), "half a restore: {mark:?}"),
    }
    // It takes work as before.
    house.new_computer("new");
    house.sh("new", "echo yes > /root/yes").ok();
    house.close();
}

fn many_cuts(file_system: FileSystem, args: &[&str], steps: Steps) {
    let seed = number_from("DEN_SEED", 5) as u64;
    let count = number_from("DEN_CASES", 4);
    for (number, (answered, cut)) in cuts(file_system, args, seed, count).into_iter().enumerate() {
        let Answered { computers, steps: commands, files, states, forks, .. } = &answered;
        eprintln!(
            "--- {file_system:?} {args:?}, cut {number}: {} computers, {} steps, {} files, {} states and {} forks \
             were answered; of what was not flushed {} sectors are there and {} not",
            computers.len(),
            commands.len(),
            files.len(),
            states.len(),
            forks.len(),
            cut.kept,
            cut.lost
        );
        check(&answered, cut, args, steps);
    }
}

#[test]
fn what_was_answered_survives_the_end_of_power_on_an_image_file() {
    many_cuts(FileSystem::Ext4, &[], Steps::Soon);
}

#[test]
fn what_was_answered_survives_the_end_of_power_on_btrfs() {
    many_cuts(FileSystem::Btrfs, &[], Steps::Soon);
}

#[test]
fn steps_that_are_synced_survive_the_end_of_power_too() {
    many_cuts(FileSystem::Ext4, &["--sync-steps"], Steps::Sure);
}

/// The power goes while a data folder is made: nothing was answered, and the next start makes it.
#[test]
fn a_first_start_that_is_cut_off_is_followed_by_another() {
    let disk = RecordingDisk::new(DISK_BYTES, FileSystem::Ext4);
    let mut dice = Dice(number_from("DEN_SEED", 5) as u64);
    let started = AtomicBool::new(false);
    let data = disk.path().join("data");
    let mut cuts = Vec::new();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| {
            let house = House::with(DEN, Options { data: Some(data.clone()), ..Options::default() });
            started.store(true, Ordering::SeqCst);
            house.close();
        });
        while !started.load(Ordering::SeqCst) && !starting.is_finished() {
            std::thread::sleep(Duration::from_millis(1 + dice.below(8) as u64));
            cuts.push(disk.cut(dice.roll()));
        }
    });
    drop(disk);
    // Of the many some, from all over.
    let wanted = number_from("DEN_CASES", 4).max(1);
    let every = (cuts.len() / wanted).max(1);
    for cut in cuts.into_iter().step_by(every) {
        let disk = RecordingDisk::after(cut);
        let data = disk.path().join("data");
        eprintln!(
            "--- left: {:?}",
            fs::read_dir(&data).map(|found| found.flatten().map(|e| e.file_name()).collect::<Vec<_>>())
        );
        let house = House::with(DEN, Options { data: Some(data), ..Options::default() });
        house.new_computer("web");
        house.close();
    }
}

/// What is answered when a computer is made is its row: the flush of another row takes along that it runs, and its
/// disk is in no transaction yet.
#[test]
fn a_computer_whose_disk_was_not_written_out_has_a_new_one() {
    // Disks are written out some seconds later: on a busy machine all may be before the cut.
    assert!((0..5).any(made_again), "all disks were written out before the cut, five times");
}

/// Whether a disk was made again after such a cut.
fn made_again(seed: u64) -> bool {
    let disk = RecordingDisk::new(DISK_BYTES, FileSystem::Ext4);
    let house = House::with(DEN, Options { data: Some(disk.path().join("data")), ..Options::default() });
    // The last one's row is flushed, and with it what the others' rows say by then.
    let names = ["one", "two", "three"];
    for name in names {
        house.new_computer(name);
    }
    let cut = disk.cut(seed);
    house.close();
    drop(disk);

    let disk = RecordingDisk::after(cut);
    another_boot(&disk.path().join("data/den.db"));
    let house = House::with(DEN, Options { data: Some(disk.path().join("data")), ..Options::default() });
    let known = |name: &str| house.api().get(&format!("/v1/computers/{name}")).expect(200).json();
    let known = names.map(known);
    for name in names {
        house.den(&["start", name]).ok();
        assert_eq!(house.sh(name, "hostname").ok().trim(), name);
    }
    house.close();
    known.iter().any(|one| one["reason"].as_str().unwrap_or_default().contains("has a new one"))
}
