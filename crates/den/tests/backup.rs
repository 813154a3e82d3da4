//! Backups: made while computers run, incremental, cut off, broken, by the clock, in S3; and houses made of them.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use den_testkit::{House, Options, Ran, eventually, images};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
/// What is seen by then has happened.
const LONG: Duration = Duration::from_secs(120);
/// Further programs in the small image.
const PROGRAMS: [&str; 9] = ["ln", "mkdir", "mkfifo", "mknod", "rm", "chmod", "chown", "touch", "dd"];

/// A house with a small image of its own, and the folder that its store lies in.
fn house(args: &[&str]) -> (House, tempfile::TempDir) {
    let folder = tempfile::Builder::new().prefix("den-backup-").tempdir().expect("a folder");
    let root = folder.path().join("root");
    images::small_root(&root);
    for program in PROGRAMS {
        let from = Path::new("/bin").join(program);
        fs::copy(fs::canonicalize(&from).expect("the host has it"), root.join("bin").join(program)).expect("a copy");
        let list = Command::new("ldd").arg(&from).output().expect("ldd");
        for word in String::from_utf8_lossy(&list.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
            let to = root.join(&word[1..]);
            fs::create_dir_all(to.parent().expect("a parent")).expect("a folder");
            fs::copy(fs::canonicalize(word).expect("the host has it"), to).expect("a copy");
        }
    }
    let options = Options {
        images: Some(folder.path().join("store")),
        trash_for: Some("24h".to_owned()),
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        ..Options::default()
    };
    let house = House::with(DEN, options);
    house.den(&["image", "import", text(&root), "base"]).ok();
    (house, folder)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn id(house: &House, name: &str) -> String {
    house.json(&["info", name])["id"].as_str().expect("an id").to_owned()
}

/// Makes a backup; what is said of it at the end.
fn back_up(house: &House, to: &str, words: &[&str]) -> Value {
    let mut all = vec!["backup", to, "--json"];
    all.extend(words);
    last(&house.den(&all).ok())
}

fn last(lines: &str) -> Value {
    let line = lines.lines().last().expect("a line");
    let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(event["type"], "done", "{event}");
    event["backup"].clone()
}

/// Ends the daemon and takes its house away, data and images, as if the host were another one.
fn lose(house: &mut House, store: &tempfile::TempDir) {
    house.den(&["shutdown"]).ok();
    house.wait_serve_dead();
    fs::remove_dir_all(house.data()).expect("the data goes");
    fs::remove_dir_all(store.path().join("store")).expect("the images go");
}

fn restore(house: &House, store: &tempfile::TempDir, from: &str, words: &[&str]) -> Ran {
    let images = store.path().join("store");
    let mut all = vec!["restore-backup", from, "--images", text(&images)];
    all.extend(words);
    house.den(&all)
}

/// All that can be said of a tree but its inodes.
fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut links: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let facts = fs::symlink_metadata(&path).expect("facts");
        let name = path.strip_prefix(root).expect("below").to_owned();
        let mut names = vec![0; 64 << 10];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).expect("attributes");
        let mut attributes: Vec<_> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        attributes.sort_unstable();
        let values: Vec<_> = attributes
            .iter()
            .map(|name| {
                let mut value = vec![0; 64 << 10];
                let length = rustix::fs::lgetxattr(&path, OsStr::from_bytes(name), &mut value[..]).expect("a value");
                value.truncate(length);
                value
            })
            .collect();
        let kind = facts.file_type();
        let content = match kind {
            kind if kind.is_file() => blake3::hash(&fs::read(&path).expect("bytes")).to_string(),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).expect("a target")),
            _ => String::new(),
        };
        let size = if kind.is_dir() { 0 } else { facts.len() };
        let (mode, uid, gid, device) = (facts.mode(), facts.uid(), facts.gid(), facts.rdev());
        let time = (facts.mtime(), facts.mtime_nsec());
        all.insert(
            name.clone(),
            format!("{mode:o} {uid}:{gid} {device} {time:?} {size} {attributes:?} {values:?} {content}"),
        );
        if kind.is_dir() {
            left.extend(fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if facts.nlink() > 1 {
            links.entry(facts.ino()).or_default().push(name);
        }
    }
    for mut names in links.into_values() {
        names.sort();
        for name in &names {
            all.entry(name.clone()).or_default().push_str(&format!(" {names:?}"));
        }
    }
    all
}

/// Pictures of a computer's disk, its states, its output and its records.
fn pictures(house: &House, id: &str) -> BTreeMap<String, BTreeMap<PathBuf, String>> {
    let home = house.data().join("computers").join(id);
    let mut all = BTreeMap::new();
    for part in ["live", "steps", "changes"] {
        if home.join(part).exists() {
            all.insert(part.to_owned(), picture(&home.join(part)));
        }
    }
    for entry in fs::read_dir(home.join("snapshots")).expect("states").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        if !name.starts_with('.') {
            all.insert(format!("state {name}"), picture(&entry.path()));
        }
    }
    all
}

fn same(then: &BTreeMap<String, BTreeMap<PathBuf, String>>, now: &BTreeMap<String, BTreeMap<PathBuf, String>>) {
    assert_eq!(then.keys().collect::<Vec<_>>(), now.keys().collect::<Vec<_>>());
    for (part, picture) in then {
        for (path, said) in picture {
            assert_eq!(now[part].get(path), Some(said), "{} in {part}", path.display());
        }
        assert_eq!(picture.len(), now[part].len(), "{part}");
    }
}

/// Fills a disk with what it can hold, from inside and from the host.
fn furnish(house: &House, name: &str) {
    house
        .sh(
            name,
            "mkdir -p /srv/a/b; echo small > /srv/small; ln /srv/small /srv/a/linked; ln -s /nowhere /srv/link; \
             mkfifo /srv/fifo; rm /bin/ls; echo changed > /bin/env; dd if=/dev/urandom of=/srv/large bs=1M count=6; \
             dd if=/dev/zero of=/srv/sparse bs=1 count=1 seek=300000000; chmod 4755 /srv/large; chown 12:34 /srv/small; \
             touch -d @1234567890.123456789 /srv/a/b; echo x > /srv/$(printf 'no\\377utf')",
        )
        .ok();
    let srv = house.data().join("computers").join(id(house, name)).join("live/data/srv");
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(srv.join(path), name, value, rustix::fs::XattrFlags::empty()).expect("an attribute");
    };
    set("small", "user.note", b"\0\xff");
    set("a", "user.folder", b"x");
}

#[test]
fn a_house_comes_back_byte_for_byte_with_states_log_trash_services_and_policies() {
    let (mut house, store) = house(&[]);
    let to = store.path().join("to");
    let to = text(&to);
    house.new_computer("web");
    furnish(&house, "web");
    house.den(&["snap", "web", "first"]).ok();
    house.sh("web", "echo second > /srv/small; rm /srv/fifo; mkdir /srv/fifo; echo y >> /srv/large").ok();
    house.den(&["fork", "web@first", "copy"]).ok();
    house.sh("copy", "echo of the fork > /srv/own").ok();
    house.den(&["net", "web", "guarded"]).ok();
    house.den(&["service", "add", "web", "beat", "--run", "sleep 1000"]).ok();
    house.new_computer("gone");
    house.sh("gone", "echo kept > /srv-file").ok();
    house.den(&["rm", "gone"]).ok();
    house.new_computer("busy");
    let busy = "i=0; while :; do i=$((i+1)); echo $i > /n; echo $i; sleep 0.05; done";
    house.den(&["exec", "busy", "-d", "--", "sh", "-c", busy]).ok();
    house.den(&["stop", "web", "copy"]).ok();

    let first = back_up(&house, to, &[]);
    assert_eq!(first["computers"], 4, "{first}");
    assert_eq!(first["left_out"], Value::Null);
    assert!(first["new_bytes"].as_u64() > Some(6 << 20), "{first}");
    // What did not change is not read again: two stopped disks, the states, the layer.
    let second = back_up(&house, to, &[]);
    assert!(second["trees_unchanged"].as_u64() > Some(5), "{second}");
    assert!(second["read_bytes"].as_u64() < Some(2 << 20), "{second}");
    house.den(&["start", "copy"]).ok();
    house.sh("copy", "echo more > /srv/own").ok();
    house.den(&["stop", "copy"]).ok();
    let third = back_up(&house, to, &["--keep", "2"]);
    assert_eq!(third["removed"], json!([first["id"]]), "{third}");
    assert!(third["new_bytes"].as_u64() < Some(2 << 20), "{third}");

    let (web, copy) = (id(&house, "web"), id(&house, "copy"));
    let then = [pictures(&house, &web), pictures(&house, &copy)];
    let of_states = |house: &House| {
        let snaps = house.json(&["snaps", "web"]);
        let diff = house.den(&["diff", "web@first", "web@2"]).ok();
        let fork = house.den(&["diff", "web@first", "copy"]).ok();
        (
            snaps,
            diff,
            fork,
            house.den(&["log", "web"]).ok().lines().count(),
            house.json(&["net", "web"])["posture"].clone(),
        )
    };
    let states = of_states(&house);
    let token = fs::read(house.data().join("token")).expect("a token");
    let key = fs::read(house.data().join("net.key")).expect("a key");

    lose(&mut house, &store);
    let told = restore(&house, &store, to, &["--json"]).ok();
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((&told["computers"], &told["lost"]), (&json!(4), &json!([])), "{told}");
    assert_eq!(fs::read(house.data().join("token")).expect("a token"), token);
    assert_eq!(fs::read(house.data().join("net.key")).expect("a key"), key);
    house.start();
    same(&then[0], &pictures(&house, &web));
    same(&then[1], &pictures(&house, &copy));
    let mut now = of_states(&house);
    let then = states;
    // Generations are of this disk, and shown nowhere.
    assert_eq!(now.0, then.0);
    now.0 = then.0.clone();
    assert_eq!(now, then);
    for name in ["web", "copy", "busy"] {
        assert_eq!(house.json(&["info", name])["state"], "stopped", "{name}");
    }
    assert_eq!(house.json(&["trash"])[0]["name"], "gone");
    assert_eq!(house.json(&["service", "ls", "web"])[0]["name"], "beat");
    house.den(&["undo", "gone"]).ok();
    assert_eq!(house.sh("gone", "cat /srv-file").ok(), "kept");
    house.den(&["start", "busy"]).ok();
    let number: u64 = house.sh("busy", "cat /n").ok().parse().expect("a number that is whole");
    assert!(number > 0);
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /srv/small /srv/a/linked").ok(), "second\nsecond");
    house.den(&["restore", "web@first"]).ok();
    assert_eq!(house.sh("web", "cat /srv/small").ok(), "small");
    // And backed up from here: nothing but what is new is stored.
    let fourth = back_up(&house, to, &[]);
    assert!(fourth["new_bytes"].as_u64() < Some(4 << 20), "{fourth}");
    assert_eq!(house.den(&["backup", "verify", to, "--json"]).code, 0);
}

#[test]
fn shared_volumes_come_back_with_what_is_in_them() {
    let (mut house, store) = house(&[]);
    let to = store.path().join("to");
    let to = text(&to);
    house.den(&["volume", "new", "shared", "--size", "64MiB"]).ok();
    house.den(&["volume", "new", "empty"]).ok();
    house.den(&["new", "web", "--volume", "shared:/mnt/shared"]).ok();
    let fill = "mkdir -p a/b; dd if=/dev/urandom of=a/large bs=1M count=5; echo x > a/b/x; ln a/b/x linked; \
                ln -s /nowhere link; mkfifo pipe; chown 12:34 linked; chmod 4711 a/b; chmod 1770 .; \
                touch -d @1234567890.123456789 a";
    house.sh("web", &format!("cd /mnt/shared; {fill}")).ok();
    let volume = |house: &House, name: &str| house.json(&["volume", "info", name]);
    let folder = |house: &House, name: &str| {
        house.data().join("computers/.volumes").join(volume(house, name)["id"].as_str().expect("an id"))
    };
    let first = back_up(&house, to, &[]);
    assert!(first["new_bytes"].as_u64() > Some(5 << 20), "{first}");
    house.sh("web", "echo more > /mnt/shared/more").ok();
    let second = back_up(&house, to, &[]);
    assert!(second["new_bytes"].as_u64() < Some(2 << 20), "{second}");
    assert!(second["read_bytes"].as_u64() < Some(4 << 20), "{second}");
    house.den(&["stop", "web"]).ok();
    let then = (picture(&folder(&house, "shared")), volume(&house, "shared"), volume(&house, "empty"));
    lose(&mut house, &store);
    let told: Value = serde_json::from_str(&restore(&house, &store, to, &["--json"]).ok()).expect("JSON");
    assert_eq!(told["lost"], json!([]), "{told}");
    house.start();
    let now = (picture(&folder(&house, "shared")), volume(&house, "shared"), volume(&house, "empty"));
    assert_eq!(now.0, then.0);
    for (now, then) in [(&now.1, &then.1), (&now.2, &then.2)] {
        for field in ["id", "name", "size", "computers", "created_at"] {
            assert_eq!(now[field], then[field], "{field}");
        }
    }
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /mnt/shared/more /mnt/shared/linked").ok(), "more\nx");
    // It is held to its limit here too.
    assert_ne!(house.sh("web", "dd if=/dev/zero of=/mnt/shared/huge bs=1M count=80").code, 0);
}

/// Where a backup can be cut off, and a restore.
const BACKUP: [&str; 10] = [
    "backup.lease",
    "backup.fixed",
    "backup.database",
    "backup.tree:1",
    "backup.tree:4",
    "backup.pack",
    "backup.settled",
    "backup.index",
    "backup.manifest",
    "backup.removed",
];
const RESTORE: [&str; 6] =
    ["unbackup.begun", "unbackup.images", "unbackup.computer", "unbackup.volume", "unbackup.laid", "unbackup.database"];

#[test]
fn cut_off_anywhere_former_backups_are_whole_and_the_next_goes_on() {
    let (mut house, store) = house(&[]);
    let to = store.path().join("to");
    let to = text(&to);
    house.new_computer("web");
    house.sh("web", "dd if=/dev/urandom of=/large bs=1M count=20").ok();
    house.den(&["volume", "new", "shared"]).ok();
    back_up(&house, to, &[]);
    for point in BACKUP {
        eprintln!("--- {point}");
        house.sh("web", "dd if=/dev/urandom of=/new bs=1M count=1; echo x >> /log").ok();
        house.kill_serve();
        house.set_env(&[("DEN_FAILPOINT", point)]);
        house.start();
        assert_ne!(house.den(&["backup", to, "--keep", "1"]).code, 0, "{point}");
        house.wait_serve_dead();
        house.set_env(&[]);
        house.start();
        let found = house.json(&["backup", "verify", to]);
        assert_eq!(found["lost"], json!([]), "{point}");
        assert!(found["backups"].as_u64() >= Some(1), "{point}: {found}");
        back_up(&house, to, &["--keep", "1"]);
        assert_eq!(house.json(&["backup", "ls", to]).as_array().expect("a list").len(), 1, "{point}");
        let snapshots = house.data().join("computers").join(id(&house, "web")).join("snapshots");
        assert!(!snapshots.join(".backup").exists(), "{point}");
        let volumes = fs::read_dir(house.data().join("computers/.volumes")).expect("volumes");
        assert_eq!(volumes.count(), 1, "{point}");
    }
    let web = id(&house, "web");
    house.den(&["stop", "web"]).ok();
    back_up(&house, to, &[]);
    let then = pictures(&house, &web);
    lose(&mut house, &store);
    for point in RESTORE {
        eprintln!("--- {point}");
        let images = store.path().join("store");
        let mut command = house.command(&["restore-backup", to, "--images", text(&images)]);
        assert!(!command.env("DEN_FAILPOINT", point).status().expect("it starts").success(), "{point}");
        if point != "unbackup.begun" {
            let refused = house.try_start().expect_err("a daemon refuses half a house");
            assert!(refused.contains("ended at its start"), "{refused}");
            assert!(house.log().contains("restore_unfinished"), "{}", house.log());
        }
    }
    restore(&house, &store, to, &[]).ok();
    house.start();
    same(&then, &pictures(&house, &web));
}

#[test]
fn what_is_broken_locked_full_or_wrong_is_said_and_nothing_is_touched() {
    let (mut house, store) = house(&[]);
    let to = store.path().join("to");
    house.new_computer("web");
    house.sh("web", "dd if=/dev/urandom of=/one bs=1M count=1; dd if=/dev/urandom of=/two bs=1M count=1").ok();
    house.den(&["stop", "web"]).ok();
    let made = back_up(&house, text(&to), &["--without-secrets"]);
    let refused = |to: &str, word: &str| drop(house.den(&["backup", to]).refused(1, word));
    refused(&format!("{}/here", text(&house.data())), "it lies in the folder that is to be backed up");
    house.den(&["backup", ""]).refused(2, "is empty");
    refused("ftp://x/y", "only folders and s3:// are known");
    let mine = store.path().join("mine");
    fs::create_dir(&mine).expect("a folder");
    fs::write(mine.join("file"), "x").expect("a file");
    refused(text(&mine), "no backups of Den's");
    // A file system that is full: 1 MiB.
    let full = store.path().join("full");
    fs::create_dir(&full).expect("a folder");
    let mount =
        |words: &[&str]| assert!(Command::new(words[0]).args(&words[1..]).status().expect("it starts").success());
    mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", text(&full)]);
    let ran = house.den(&["backup", text(&full)]);
    mount(&["umount", text(&full)]);
    ran.refused(1, "has no room for");
    // A list that is broken: the next is made all the same, and nothing goes.
    let list = fs::read_dir(to.join("backups")).expect("lists").next().expect("one").expect("it").path();
    let whole = fs::read(&list).expect("bytes");
    fs::write(&list, "nothing").expect("a file");
    back_up(&house, text(&to), &["--without-secrets", "--keep", "2"]);
    fs::write(&list, whole).expect("a file");
    // Another daemon that was silent for a minute.
    let holder =
        json!({"lease": "x", "host": "elsewhere", "boot": "b", "pid": 1, "begun": 1, "at_s": 99_999_999_999_u64});
    fs::write(to.join("lease.json"), holder.to_string()).expect("a lease");
    refused(text(&to), "is being written by process 1 of elsewhere");
    fs::remove_file(to.join("lease.json")).expect("removed");
    // Events are written behind the answer.
    let told = |kind: &str| house.den(&["events", "--kind", kind, "--json"]).ok().lines().count();
    eventually(LONG, "each failure is told of", || told("backup_failed") == 3);
    eventually(LONG, "what was made is told of", || told("backup_done") == 2);
    let done = house.den(&["events", "--kind", "backup_done", "--json"]).ok();
    assert!(done.contains("\"prune\"") && done.contains("backup_broken"), "{done}");
    let metrics = house.api().get("/metrics").expect(200).text();
    assert!(metrics.contains("den_backups_failed_total 3") && metrics.contains("den_backup_last_good_age_seconds"));

    // A restore wants an empty folder.
    let ran = restore(&house, &store, text(&to), &[]);
    ran.refused(1, "data_not_empty");
    restore(&house, &store, text(&mine), &["--data", "/nowhere/den"]).refused(1, "backup_foreign");
    restore(&house, &store, text(&to), &["1970", "--data", "/nowhere/den"]).refused(1, "backup_not_found");

    // A changed byte.
    let mut packs: Vec<PathBuf> = Vec::new();
    for folder in fs::read_dir(to.join("packs")).expect("packs").flatten() {
        packs.extend(fs::read_dir(folder.path()).expect("packs").flatten().map(|entry| entry.path()));
    }
    let largest = packs.iter().max_by_key(|path| fs::metadata(path).expect("facts").len()).expect("a pack");
    let file = fs::OpenOptions::new().read(true).write(true).open(largest).expect("the pack");
    let mut bytes = vec![0; 600_000];
    file.read_exact_at(&mut bytes, 0).expect("bytes");
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    file.write_all_at(&bytes, 0).expect("bytes");
    let ran = house.den(&["backup", "verify", text(&to)]).refused(1, "backup_broken");
    assert!(ran.stdout.contains("one in "), "{}", ran.stdout);
    lose(&mut house, &store);
    let ran = restore(&house, &store, text(&to), &[]).refused(1, "is lost");
    assert!(ran.stderr.contains("one in ") && ran.stderr.contains("--skip-broken"), "{}", ran.stderr);
    let told = restore(&house, &store, text(&to), &["--skip-broken"]).ok();
    assert!(told.contains("lost: ") && told.contains("one in "), "{told}");
    assert!(!house.data().join("token").exists(), "secrets were left out");
    house.start();
    assert_eq!(house.json(&["info", "web"])["state"], "stopped");
    assert_eq!(made["computers"], 1);
}

#[test]
fn the_clock_makes_them_and_keeps_so_many() {
    let folder = tempfile::Builder::new().prefix("den-backup-").tempdir().expect("a folder");
    let to = folder.path().join("to");
    let (mut house, _store) =
        house(&["--backup", text(&to), "--backup-every", "60s", "--backup-keep", "1", "--backup-without-secrets"]);
    let made = |house: &House| house.den(&["events", "--kind", "backup_done", "--json"]).ok().lines().count();
    eventually(LONG, "the first is made", || made(&house) == 1);
    let first = house.json(&["backup", "ls", text(&to)])[0]["id"].clone();
    // A daemon that starts again knows when the last one was.
    house.restart();
    house.new_computer("web");
    let metrics = || house.api().get("/metrics").expect(200).text();
    eventually(LONG, "the age is known", || metrics().contains("den_backup_last_good_age_seconds"));
    eventually(LONG, "the next is made", || made(&house) == 2);
    let all = house.json(&["backup", "ls", text(&to)]);
    assert_eq!(all.as_array().expect("a list").len(), 1);
    assert!(all[0]["id"] != first && all[0]["computers"][0]["name"] == "web", "{all}");
}

/// A server that speaks S3, installed by pip, in a folder of its own.
struct Bucket {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Bucket {
    fn open() -> Self {
        let folder = tempfile::Builder::new().prefix("den-s3-").tempdir().expect("a folder");
        let venv = folder.path().join("venv");
        let run = |program: &Path, words: &[&str]| {
            let ran = Command::new(program).args(words).output().expect("it starts");
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        };
        run(Path::new("python3"), &["-m", "venv", text(&venv)]);
        run(&venv.join("bin/pip"), &["install", "--quiet", "moto[server,s3]"]);
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it").port();
        let child = Command::new(venv.join("bin/moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a server");
        let bucket = Self { child, url: format!("http://127.0.0.1:{port}"), _folder: folder };
        let address = format!("127.0.0.1:{port}");
        eventually(LONG, "the server listens", || std::net::TcpStream::connect(&address).is_ok());
        let make =
            format!("import urllib.request as u; u.urlopen(u.Request('{}/den-test', method='PUT')).read()", bucket.url);
        run(Path::new("python3"), &["-c", &make]);
        bucket
    }

    fn env(&self) -> [(String, String); 4] {
        [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", self.url.as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_bucket_of_s3_holds_them_as_a_folder_does() {
    let bucket = Bucket::open();
    let (mut house, store) = house(&[]);
    house.new_computer("web");
    house.sh("web", "dd if=/dev/urandom of=/large bs=1M count=20; echo one > /file").ok();
    let to = "s3://den-test/some/where";
    let den = |house: &House, words: &[&str]| {
        let ran = house.command(words).envs(bucket.env()).output().expect("it starts");
        let (out, err) =
            (String::from_utf8_lossy(&ran.stdout).into_owned(), String::from_utf8_lossy(&ran.stderr).into_owned());
        assert!(ran.status.success(), "{out}{err}");
        out
    };
    let first = last(&den(&house, &["backup", to, "--json"]));
    house.sh("web", "echo two > /file").ok();
    house.den(&["stop", "web"]).ok();
    let second = last(&den(&house, &["backup", to, "--keep", "1", "--json"]));
    assert_eq!(second["removed"], json!([first["id"]]), "{second}");
    assert!(second["stored_bytes"].as_u64() < Some(2 << 20), "{second}");
    let found: Value = serde_json::from_str(&den(&house, &["backup", "verify", to, "--json"])).expect("JSON");
    assert_eq!((&found["backups"], &found["lost"]), (&json!(1), &json!([])));
    // Credentials in a file that others can read are refused; without any, or a bucket that is not there, it is said.
    let file = house.scratch().join("credentials");
    let lines: String = bucket.env().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    fs::write(&file, lines).expect("a file");
    house.den(&["backup", to, "--credentials", text(&file)]).refused(1, "chmod 600");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    house.den(&["backup", to, "--credentials", text(&file)]).ok();
    house.den(&["backup", "s3://not-there/x", "--credentials", text(&file)]).refused(1, "s3://not-there/x does not");

    let web = id(&house, "web");
    let then = pictures(&house, &web);
    lose(&mut house, &store);
    let images = store.path().join("store");
    den(&house, &["restore-backup", to, "--images", text(&images)]);
    house.start();
    same(&then, &pictures(&house, &web));
}
