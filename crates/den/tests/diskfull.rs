//! The disk of the data folder is full: what is asked for is done or refused with a reason, nothing that is there is
//! harmed, what is removed gives its room back, and a daemon starts.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use den_testkit::{FileSystem, House, Options, RecordingDisk, eventually, store_copy};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);
/// Of the disk under DATA.
const DISK_BYTES: u64 = 1 << 30;
/// What the computer holds that is removed.
const VICTIM_MIB: u64 = 64;

/// Takes all room that is left in a folder.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = File::create(&path).expect("a file");
    for size in [1 << 20, 64 << 10, 4 << 10, 512] {
        // Not zeros, which a file system may leave out.
        let piece: Vec<u8> = (0..size).map(|at: usize| (at * 31 % 251) as u8).collect();
        while file.write_all(&piece).is_ok() {}
        // What was put off takes its room now, or has none.
        let _ = file.sync_all();
    }
    path
}

fn code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

fn integrity(house: &House) -> String {
    let copy = store_copy(&house.data());
    rusqlite::Connection::open(copy.path().join("den.db"))
        .and_then(|store| store.query_row("PRAGMA integrity_check", [], |row| row.get(0)))
        .expect("the store")
}

/// What gives room back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Removing,
    /// The host alone can: writes to the image file have failed, so that it is mounted anew.
    Host,
}

/// Fills `full`, a folder below DATA, and looks at what a daemon does then.
fn on_a_full_disk(file_system: FileSystem, args: &[&str], room: Room, full: impl Fn(&House) -> PathBuf) {
    let disk = RecordingDisk::new(DISK_BYTES, file_system);
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let mut house = House::with(DEN, Options { data: Some(disk.path().join("data")), args, ..Options::default() });
    for name in ["keeper", "victim"] {
        house.new_computer(name);
    }
    house.sh("keeper", "echo kept > /root/kept; sync").ok();
    house.sh("victim", &format!("head -c {VICTIM_MIB}M /dev/urandom > /root/big; sync")).ok();
    let filler = fill(&full(&house));

    // Nothing new, and it says why.
    let mut refused = 0;
    for number in 0..6 {
        let reply = house.api().post("/v1/computers", &json!({ "name": format!("n{number}"), "memory": "128MiB" }));
        match reply.status {
            201 => {}
            507 => {
                refused += 1;
                let body = reply.json();
                assert_eq!(code(&body), "host_full", "{body}");
                assert!(body["error"]["hint"].is_string(), "{body}");
            }
            status => panic!("{status}: {}", reply.text()),
        }
    }
    assert!(refused > 0, "six computers are made on a full disk");
    // What runs goes on, or says why not.
    let step = house.api().post("/v1/computers/keeper/steps", &json!({ "argv": ["cat", "/root/kept"] }));
    assert!([200, 507].contains(&step.status), "{}: {}", step.status, step.text());
    let put = house.api().put("/v1/computers/keeper/files?path=/root/much", &vec![7; 8 << 20]);
    assert!([200, 507].contains(&put.status), "{}: {}", put.status, put.text());
    let snap = house.api().post("/v1/computers/keeper/snapshots", &json!({ "label": "full" }));
    // With an image file that cannot grow it is an I/O error.
    let said = [200, 507].contains(&snap.status) || room == Room::Host && code(&snap.json()) == "storage_failed";
    assert!(said, "{}: {}", snap.status, snap.text());
    assert_eq!(house.api().get("/v1/computers/keeper/files?path=/root/kept").expect(200).text(), "kept\n");

    // A daemon that is killed comes back.
    house.restart();
    if room == Room::Host && house.api().get("/v1/computers/keeper").expect(200).json()["state"] != "running" {
        // Something was to be written out meanwhile, and the disks turned read-only.
        eprintln!("the disks turned read-only");
    } else {
        assert_eq!(house.api().get("/v1/computers/keeper/files?path=/root/kept").expect(200).text(), "kept\n");
    }
    assert_eq!(integrity(&house), "ok");

    // Room is made by removing.
    for computer in house.api().get("/v1/computers").expect(200).json()["items"].as_array().expect("items") {
        let name = computer["name"].as_str().expect("a name");
        if name != "keeper" {
            house.api().delete(&format!("/v1/computers/{name}")).expect(204);
        }
    }
    if room == Room::Host {
        fs::remove_file(&filler).expect("it is there");
        house.den(&["shutdown"]).ok();
        house.wait_serve_dead();
        house.start();
        house.den(&["start", "keeper"]).ok();
    }
    eventually(LONG, "its disk is gone", || house.disks().len() == 1);
    eventually(LONG, "there is room for another", || {
        let reply = house.api().post("/v1/computers", &json!({ "name": "after", "memory": "128MiB" }));
        assert!([201, 507].contains(&reply.status), "{}", reply.text());
        reply.status == 201
    });
    assert_eq!(house.sh("after", "hostname").ok(), "after");
    assert_eq!(house.sh("keeper", "cat /root/kept").ok(), "kept");

    if room == Room::Removing {
        fs::remove_file(&filler).expect("it is there");
    }
    house.den(&["stop", "keeper"]).ok();
    house.den(&["start", "keeper"]).ok();
    assert_eq!(house.sh("keeper", "cat /root/kept; sync").ok(), "kept");
    house.den(&["snap", "keeper", "good"]).ok();
    house.restart();
    assert_eq!(integrity(&house), "ok");
    house.close();
}

#[test]
fn a_full_btrfs_harms_nothing() {
    on_a_full_disk(FileSystem::Btrfs, &[], Room::Removing, House::data);
}

#[test]
fn a_full_folder_harms_nothing() {
    on_a_full_disk(FileSystem::Ext4, &["--storage", "plain"], Room::Removing, House::data);
}

#[test]
fn a_full_image_file_harms_nothing() {
    on_a_full_disk(FileSystem::Ext4, &["--disk-size", "640MiB"], Room::Removing, |house| {
        house.data().join("computers")
    });
}

#[test]
fn a_full_disk_under_an_image_file_harms_nothing() {
    on_a_full_disk(FileSystem::Ext4, &[], Room::Host, House::data);
}

/// A full disk below the image file makes writes fail that the disks need; from then on they are read-only.
#[test]
fn disks_that_turned_read_only_come_back_with_the_next_daemon() {
    let disk = RecordingDisk::new(DISK_BYTES, FileSystem::Ext4);
    let mut house = House::with(DEN, Options { data: Some(disk.path().join("data")), ..Options::default() });
    for name in ["keeper", "paused"] {
        house.new_computer(name);
        house.sh(name, "echo kept > /root/kept; sync").ok();
    }
    house.den(&["pause", "paused"]).ok();
    let filler = fill(&house.data());
    let probe = house.data().join("computers/probe");
    // A flush may be given up only once each block that waits was refused, on a busy host after a minute.
    eventually(LONG * 4, "the disks are read-only", || {
        let written = File::create(&probe).and_then(|mut file| {
            file.write_all(&vec![7; 1 << 20])?;
            file.sync_all()
        });
        written.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
    });
    let said = house.den(&["snap", "keeper", "full"]);
    assert!(said.code == 1 && said.stderr.contains("make room"), "{}", said.stderr);
    let said = house.den(&["exec", "keeper", "--", "true"]);
    assert!(said.code > 0 && said.stderr.contains("make room"), "{}", said.stderr);
    fs::remove_file(&filler).expect("it is there");
    // Killed, not shut down: what ran still stands on the mount.
    house.restart();
    assert_eq!(integrity(&house), "ok");
    for name in ["keeper", "paused"] {
        house.den(&["start", name]).ok();
        assert_eq!(house.sh(name, "cat /root/kept && echo more > /root/more && sync").ok(), "kept");
    }
    house.new_computer("after");
    house.sh("after", "curl -s -m 5 http://192.0.2.1/ || true").ok();
    house.close();
}
