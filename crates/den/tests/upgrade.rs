//! A newer daemon takes over what an older one left; an older one leaves alone what a newer one wrote.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use den_testkit::{House, OLD_AGENTS, Options, eventually, old_agent};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);
/// Words that are in the agent's program, and do nothing unless something is wrong.
const WORDS: &[u8] = b"the next launcher removes it";
const OTHER_WORDS: &[u8] = b"the next launcher REMOVES it";

/// This program with another agent in it: one that its hash tells from ours, as a release before had.
fn older() -> Vec<u8> {
    let mut program = fs::read(DEN).expect("den");
    let places: Vec<_> =
        (0..program.len() - WORDS.len()).filter(|&place| program[place..].starts_with(WORDS)).collect();
    assert!(!places.is_empty(), "the agent no longer says `{}`", String::from_utf8_lossy(WORDS));
    for place in places {
        program[place..place + WORDS.len()].copy_from_slice(OTHER_WORDS);
    }
    program
}

/// Puts a program in its place as an upgrade does: the one that runs goes on.
fn put(path: &Path, program: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, program).expect("the program");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::rename(&new, path).expect("in its place");
}

/// The agents that a house has kept.
fn agents(house: &House) -> Vec<String> {
    let kept = fs::read_dir(house.data().join("agent")).expect("DATA/agent");
    let mut names: Vec<_> =
        kept.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn a_newer_daemon_takes_over_computers_with_older_agents() {
    let folder = tempfile::Builder::new().prefix("den-upgrade-").tempdir().expect("a folder");
    let program = folder.path().join("den");
    put(&program, &older());
    let mut house = House::with(program.to_str().expect("text"), Options::default());
    house.new_computer("web");
    house.sh("web", "echo kept > /kept").ok();
    house.den(&["exec", "web", "-d", "--", "sh", "-c", "while :; do date +%s%N >> /ticks; sleep 0.05; done"]).ok();
    let before = agents(&house);
    assert_eq!(before.len(), 1);

    put(&program, &fs::read(DEN).expect("den"));
    house.restart();
    let after = agents(&house);
    assert!(after.len() == 2 && after.contains(&before[0]), "{before:?} {after:?}");
    // The computer and its command go on, under the agent that it was booted with.
    let info = house.json(&["info", "web"]);
    assert_eq!(info["state"], "running");
    assert_eq!(house.den(&["log", "web", "2", "--json"]).code, 0);
    let ticks = || house.sh("web", "wc -l < /ticks").ok().parse::<u64>().expect("a number");
    let seen = ticks();
    eventually(LONG, "the command goes on", || ticks() > seen);
    assert_eq!(house.sh("web", "cat /kept").ok(), "kept");
    house.den(&["snap", "web", "good"]).ok();
    house.den(&["fork", "web", "child"]).ok();
    assert_eq!(house.sh("child", "cat /kept").ok(), "kept");
    house.den(&["restore", "web@good"]).ok();
    // Booted anew, it has the newer one.
    house.den(&["stop", "web"]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /kept").ok(), "kept");
    house.close();
}

/// This program with an agent of an older commit in the place of its own, as a release of then had it. `house` has
/// kept its own one.
fn with_agent(house: &House, old: &Path) -> Vec<u8> {
    let own = fs::read(house.data().join("agent").join(&agents(house)[0]).join("den-agent")).expect("the agent");
    let mut old = fs::read(old).expect("an old agent");
    assert!(old.len() <= own.len(), "the old agent has {} bytes, and its place {}", old.len(), own.len());
    // What follows a program in its file is nothing to the kernel.
    old.resize(own.len(), 0);
    let mut program = fs::read(DEN).expect("den");
    let head = &own[..4096];
    let place = (0..program.len() - own.len()).find(|&at| program[at..].starts_with(head)).expect("it is in den");
    assert!(program[place..][..own.len()] == own, "the agent lies in one piece");
    program[place..][..own.len()].copy_from_slice(&old);
    program
}

/// What a computer is asked for: it is done, or the agent is too old for it and says so. Says which.
fn done_or_too_old(house: &House, method: &str, path: &str, body: &Value) -> bool {
    let json = [("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let reply = house.api().request(method, path, if body.is_empty() { &[] } else { &json }, body.as_bytes());
    match reply.status {
        200..=299 => true,
        501 => {
            let error = reply.refusal(501, "unsupported");
            assert!(error["message"].as_str().is_some_and(|text| text.contains("too old")), "{error}");
            assert!(error["hint"].is_string(), "{error}");
            false
        }
        status => panic!("{method} {path}: {status}: {}", reply.text()),
    }
}

#[test]
fn computers_with_agents_of_older_commits_do_all_or_say_why_not() {
    for (what, commit) in OLD_AGENTS {
        eprintln!("--- {what}");
        let old = old_agent(commit).unwrap_or_else(|why| panic!("{why}"));
        let folder = tempfile::Builder::new().prefix("den-upgrade-").tempdir().expect("a folder");
        let program = folder.path().join("den");
        let own = House::open(DEN);
        put(&program, &with_agent(&own, &old));
        own.close();

        let mut house = House::with(program.to_str().expect("text"), Options::default());
        let kept = fs::read(house.data().join("agent").join(&agents(&house)[0]).join("den-agent")).expect("the agent");
        assert!(kept.starts_with(&fs::read(&old).expect("an old agent")), "computers boot with the old agent");
        house.new_computer("web");
        house.sh("web", "echo kept > /kept; mkdir /srv/app; echo one > /srv/app/a").ok();
        house.den(&["exec", "web", "-d", "--", "sh", "-c", "while :; do date +%s%N >> /ticks; sleep 0.05; done"]).ok();
        let (launcher, before) = (house.launcher(), agents(&house));

        put(&program, &fs::read(DEN).expect("den"));
        house.restart();
        assert_eq!(house.json(&["info", "web"])["state"], "running", "{what}");
        assert!(agents(&house).contains(&before[0]), "{what}: it keeps the agent that it runs");
        let ticks = || house.sh("web", "wc -l < /ticks").ok().parse::<u64>().expect("a number");
        let seen = ticks();
        eventually(LONG, "the command goes on", || ticks() > seen);

        // Files, both ways.
        let file = |path: &str| format!("/v1/computers/web/files?path={path}");
        house.api().put(&file("/root/new"), b"new").expect(200);
        assert_eq!(house.api().get(&file("/root/new")).expect(200).text(), "new", "{what}");
        house.api().get("/v1/computers/web/files/list?path=/srv").expect(200);
        house.api().get("/v1/computers/web/tar?path=/srv").expect(200);
        assert!(done_or_too_old(&house, "POST", "/v1/computers/web/files", &json!({"op": "mkdir", "path": "/srv/b"})));
        // States, forks and what is between them.
        house.den(&["snap", "web", "good"]).ok();
        house.den(&["fork", "web", "child"]).ok();
        house.sh("child", "echo two > /srv/app/a").ok();
        house.api().get("/v1/diff?a=web@good&b=child").expect(200);
        if done_or_too_old(&house, "POST", "/v1/computers/web/merge", &json!({ "from": "child" })) {
            assert_eq!(house.sh("web", "cat /srv/app/a").ok(), "two", "{what}");
        }
        // It stands still and goes on.
        for (stop, go) in [("pause", "resume"), ("unplug", "replug")] {
            for verb in [stop, go] {
                assert!(done_or_too_old(&house, "POST", &format!("/v1/computers/web/{verb}"), &json!({})), "{what}");
            }
            eventually(LONG, "the command goes on", || house.sh("web", "true").code == 0);
            let seen = ticks();
            eventually(LONG, "the command goes on", || ticks() > seen);
        }
        // A service, and the network.
        let service = json!({ "name": "web", "run": ["sleep", "3000"] });
        if done_or_too_old(&house, "POST", "/v1/computers/web/services", &service) {
            eventually(LONG, "the service runs", || house.sh("web", "pgrep -fx 'sleep 3000'").code == 0);
        }
        assert!(done_or_too_old(&house, "PATCH", "/v1/computers/web/net", &json!({ "posture": "guarded" })), "{what}");
        // A new one beside it, of the launcher that runs.
        house.new_computer("db");
        assert_eq!(house.sh("db", "hostname").ok(), "db");
        // Taken back, it has the newer agent.
        house.den(&["restore", "web@good"]).ok();
        assert_eq!(house.sh("web", "cat /kept /srv/app/a").ok(), "kept\none", "{what}");
        eprintln!("the launcher {}", if house.launcher() == launcher { "stayed" } else { "was replaced" });
        house.close();
    }
}

/// What is in the files of a store but the index that its readers share. A log without anything in it is none.
fn store(house: &House) -> BTreeMap<String, Vec<u8>> {
    let names = ["den.db", "den.db-wal"].into_iter();
    let files = names.filter_map(|name| Some((name.to_owned(), fs::read(house.data().join(name)).ok()?)));
    files.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

/// The schema of a store, which is changed then.
fn version(house: &House, change: &str) -> i64 {
    let connection = rusqlite::Connection::open(house.data().join("den.db")).expect("the store");
    let known = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a number");
    connection.execute_batch(change).expect("it is written");
    known
}

#[test]
fn an_older_daemon_leaves_a_newer_ones_data_alone() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
    house.kill_serve();
    let known = version(&house, "PRAGMA user_version = 99");
    let before = store(&house);
    let launcher = house.launcher();
    house.try_start().expect_err("it is refused");
    let log = house.log();
    assert!(log.contains(&format!("has schema 99; this Den knows schemas up to {known}")), "{log}");
    assert!(log.contains("hint: use the newer Den"), "{log}");
    assert!(store(&house) == before, "something was written");
    assert_eq!(house.launcher(), launcher, "what runs goes on");
    version(&house, &format!("PRAGMA user_version = {known}"));
    house.start();
    assert_eq!(house.json(&["info", "web"])["state"], "running");
    assert_eq!(house.sh("web", "pgrep -c sleep").ok(), "1");
    house.close();
}
