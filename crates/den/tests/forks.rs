//! Forks and restores: what they have, what they leave alone, and what a kill at any point leaves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use den_testkit::{House, Internet, Options, Reply, Site, at_each_point, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);

const FORK: [&str; 13] = [
    "fork.reserved",
    "fork.row",
    "fork.row:3",
    "fork.live:2",
    "fork.rekeyed",
    "fork.rekeyed:3",
    "fork.zero:2",
    "fork.disk",
    "fork.disk:3",
    "fork.booted",
    "fork.booted:2",
    "fork.booted:3",
    "fork.state",
];
const RESTORE: [&str; 8] = [
    "restore.row",
    "restore.copied",
    "restore.prepared",
    "restore.killed",
    "restore.away",
    "restore.there",
    "restore.swapped",
    "restore.booted",
];

fn computers(house: &House) -> Vec<Value> {
    house.api().get("/v1/computers?limit=1000").expect(200).json()["items"].as_array().expect("items").clone()
}

fn names(house: &House) -> Vec<String> {
    computers(house).iter().map(|computer| computer["name"].as_str().expect("a name").to_owned()).collect()
}

fn fork(house: &House, of: &str, body: &Value) -> Reply {
    house.api().post(&format!("/v1/computers/{of}/fork"), body)
}

fn restore(house: &House, name: &str, state: &str) -> Reply {
    house.api().post(&format!("/v1/computers/{name}/restore"), &json!({ "state": state }))
}

fn snap(house: &House, name: &str, label: &str) -> Value {
    house.api().post(&format!("/v1/computers/{name}/snapshots"), &json!({ "label": label })).expect(200).json()
}

fn snapshots(house: &House, name: &str) -> Vec<Value> {
    house.api().get(&format!("/v1/computers/{name}/snapshots")).expect(200).json()["items"]
        .as_array()
        .expect("items")
        .clone()
}

fn refused(reply: Reply, status: u16, code: &str) -> String {
    let body = reply.expect(status).json();
    assert_eq!(body["error"]["code"], code, "{body}");
    body["error"]["message"].as_str().expect("a message").to_owned()
}

/// Names of what lies beside the states of a computer, and of the states.
fn on_disk(house: &House, id: &str) -> BTreeSet<String> {
    let home = house.data().join("computers").join(id);
    let read = |dir: &std::path::Path| -> Vec<String> {
        std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let mut found: BTreeSet<String> = read(&home).into_iter().collect();
    found.remove("snapshots");
    found.extend(read(&home.join("snapshots")).into_iter().map(|name| format!("snapshots/{name}")));
    found
}

/// What is listed has a disk and the other way round, each state has a row and the other way round,
/// and each computer can be run.
fn consistent(house: &House, when: &str) {
    let listed: BTreeSet<String> =
        computers(house).iter().map(|computer| computer["id"].as_str().expect("an id").to_owned()).collect();
    eventually(LONG, &format!("{when}: disks are those of the list"), || {
        house.disks().into_iter().collect::<BTreeSet<_>>() == listed
    });
    for computer in computers(house) {
        let (name, id) = (computer["name"].as_str().expect("a name"), computer["id"].as_str().expect("an id"));
        let state = computer["state"].as_str().expect("a state").to_owned();
        assert!(["running", "stopped", "failed"].contains(&state.as_str()), "{when}: `{name}` is {state}");
        if state != "running" {
            house.den(&["start", name]).ok();
        }
        assert_eq!(house.sh(name, "hostname").ok(), name, "{when}");
        eventually(LONG, &format!("{when}: states of `{name}` and their rows agree"), || {
            let rows: BTreeSet<u64> =
                snapshots(house, name).iter().map(|state| state["number"].as_u64().expect("a number")).collect();
            let found = on_disk(house, id);
            let dirs: BTreeSet<u64> =
                found.iter().filter_map(|name| name.strip_prefix("snapshots/")?.parse().ok()).collect();
            let strange = found.iter().any(|name| name.contains(".new") || name.contains("/."));
            rows == dirs && !strange
        });
    }
}

#[test]
fn a_fork_begins_as_its_parent_was_and_both_go_on_alone() {
    let house = House::open(DEN);
    let body = json!({
        "name": "web", "memory": "1GiB", "pids": 300, "env": {"A": "parent", "B": "parent"},
        "labels": {"team": "x", "role": "y"}, "net": {"posture": "guarded", "allow": ["example.com"]}
    });
    house.api().post("/v1/computers", &body).expect(201);
    house.sh("web", "echo parent > /root/file; sleep 3000 >/dev/null 2>&1 & echo $! > /root/pid").ok();
    let made = fork(&house, "web", &json!({"name": "try", "env": {"B": "fork"}, "labels": {"role": "z"}}));
    let made = made.expect(201).json();
    let (child, parent) = (&made["items"][0], house.json(&["info", "web"]));
    assert_eq!(made["items"].as_array().expect("items").len(), 1);
    for field in ["image", "image_digest", "cpus", "memory", "disk", "pids", "entrypoint", "net"] {
        assert_eq!(child[field], parent[field], "{field}");
    }
    assert_eq!(child["state"], "running");
    assert_eq!(child["env"], json!({"A": "parent", "B": "fork"}));
    assert_eq!(child["labels"], json!({"team": "x", "role": "z"}));
    assert_eq!(child["last_step"], 0);
    assert_eq!((&child["parent"]["id"], &child["parent"]["name"]), (&parent["id"], &json!("web")));
    assert_eq!(child["parent"]["step"], 1);
    let policy = |name: &str| house.api().get(&format!("/v1/computers/{name}/net")).expect(200).json();
    assert_eq!(policy("try")["allow"], policy("web")["allow"]);
    let first = &snapshots(&house, "try")[0];
    assert_eq!((&first["number"], &first["step"], &first["kind"]), (&json!(0), &json!(0), &json!("made")));

    // The disk came along, the processes did not, and it is someone else.
    assert_eq!(house.sh("try", "cat /root/file; hostname; echo $A $B").ok(), "parent\ntry\nparent fork");
    assert_eq!(house.sh("try", "pgrep -fx 'sleep 3000' | wc -l").ok(), "0");
    assert_eq!(house.sh("web", "kill -0 $(cat /root/pid) && echo on").ok(), "on");
    assert_ne!(house.sh("try", "cat /etc/machine-id").ok(), house.sh("web", "cat /etc/machine-id").ok());

    house.sh("web", "echo later > /root/file; touch /root/only-web").ok();
    house.sh("try", "echo other > /root/file; touch /root/only-try").ok();
    assert_eq!(house.sh("web", "cat /root/file; ls /root/only-*").ok(), "later\n/root/only-web");
    assert_eq!(house.sh("try", "cat /root/file; ls /root/only-*").ok(), "other\n/root/only-try");

    // A fork of a fork, of an earlier state, and of a computer that is stopped.
    fork(&house, "try", &json!({"name": "again"})).expect(201);
    assert_eq!(house.sh("again", "cat /root/file").ok(), "other");
    fork(&house, "web", &json!({"name": "early", "state": "1"})).expect(201);
    assert_eq!(house.sh("early", "cat /root/file; ls /root/only-* 2>/dev/null | wc -l").ok(), "parent\n0");
    house.den(&["stop", "web"]).ok();
    fork(&house, "web", &json!({"name": "still"})).expect(201);
    assert_eq!(house.sh("still", "cat /root/file").ok(), "later");
    assert_eq!(house.json(&["info", "web"])["state"], "stopped");

    // The parent goes; its forks are whole.
    house.den(&["rm", "web"]).ok();
    for (name, text) in [("try", "other"), ("again", "other"), ("early", "parent"), ("still", "later")] {
        assert_eq!(house.sh(name, "cat /root/file").ok(), text, "{name}");
        house.den(&["stop", name]).ok();
        house.den(&["start", name]).ok();
        assert_eq!(house.sh(name, "cat /root/file").ok(), text, "{name}, started again");
    }
    assert_eq!(house.json(&["info", "try"])["parent"]["name"], "web");
    consistent(&house, "after all that");
}

#[test]
fn many_forks_are_made_or_none() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo here > /root/file").ok();
    let since = Instant::now();
    let made = fork(&house, "web", &json!({"name": "try", "count": 20})).expect(201).json();
    eprintln!("20 forks: {:?}", since.elapsed());
    let made: Vec<&str> =
        made["items"].as_array().expect("items").iter().map(|item| item["name"].as_str().expect("a name")).collect();
    assert_eq!(made, (1..=20).map(|n| format!("try-{n}")).collect::<Vec<_>>());
    let ids: BTreeSet<String> = made.iter().map(|name| house.sh(name, "cat /etc/machine-id").ok()).collect();
    assert_eq!(ids.len(), 20);
    assert_eq!(house.sh("try-17", "cat /root/file").ok(), "here");

    let before = names(&house);
    // The third of these is taken.
    house.den(&["rm", "try-1"]).ok();
    house.den(&["rm", "try-2"]).ok();
    let message = refused(fork(&house, "web", &json!({"name": "try", "count": 3})), 409, "name_taken");
    assert!(message.contains("try-3"), "{message}");
    assert_eq!(names(&house).len(), before.len() - 2);
    refused(fork(&house, "web", &json!({"name": "web"})), 409, "name_taken");
    refused(fork(&house, "web", &json!({"count": 0})), 400, "bad_request");
    refused(fork(&house, "web", &json!({"count": 101})), 400, "bad_request");
    refused(fork(&house, "web", &json!({"name": "No"})), 400, "bad_name");
    refused(fork(&house, "web", &json!({"labels": {"": "x"}})), 400, "bad_request");
    refused(fork(&house, "web", &json!({"env": {"a=b": "x"}})), 400, "bad_request");
    refused(fork(&house, "nobody", &json!({})), 404, "computer_not_found");
    let message = refused(fork(&house, "web", &json!({"state": "no-such"})), 404, "state_not_found");
    assert!(message.contains("no-such"), "{message}");
    refused(fork(&house, "web", &json!({"state": "a/b"})), 400, "bad_state");
    assert_eq!(names(&house).len(), before.len() - 2, "what was refused has made nothing");
    assert_eq!(fork(&house, "web", &json!({"count": 2})).expect(201).json()["items"].as_array().expect("two").len(), 2);

    // Together with a removal: all of them or none, and nothing half made.
    for round in 0..5 {
        house.new_computer("base");
        house.sh("base", "echo x > /root/x").ok();
        let api = house.api();
        let reply = std::thread::scope(|scope| {
            let forking = scope.spawn(|| fork(&house, "base", &json!({"name": format!("r{round}"), "count": 4})));
            std::thread::sleep(Duration::from_millis(5 * round));
            api.delete("/v1/computers/base").expect(204);
            forking.join().expect("a reply")
        });
        let there = names(&house).iter().filter(|name| name.starts_with(&format!("r{round}-"))).count();
        match reply.status {
            201 => assert_eq!(there, 4),
            404 => assert_eq!(there, 0),
            _ => panic!("round {round}: {}", reply.json()),
        }
        if there > 0 {
            assert_eq!(house.sh(&format!("r{round}-4"), "cat /root/x").ok(), "x");
        }
    }
    consistent(&house, "after removals");
    house.restart();
    consistent(&house, "after a restart");
}

#[test]
fn a_restore_takes_the_disk_back_and_can_be_taken_back() {
    let house = House::open(DEN);
    house.new_computer("web");
    let before = house.json(&["info", "web"]);
    house.sh("web", "echo old > /root/file; mkdir -p /srv/a; echo 1 > /srv/a/one").ok();
    let kept = snap(&house, "web", "clean");
    house.sh("web", "echo new > /root/file; rm -r /srv/a; echo 2 > /srv/two").ok();
    house.den(&["exec", "web", "-d", "--", "sh", "-c", "while :; do echo x >> /root/busy; sleep 0.01; done"]).ok();
    let since = Instant::now();
    let view = restore(&house, "web", "clean").expect(200).json();
    eprintln!("restore: {:?}", since.elapsed());
    assert_eq!(view["to"]["number"], kept["number"], "{view}");
    assert_eq!((&view["before"]["kind"], &view["computer"]["state"]), (&json!("restore"), &json!("running")));
    assert_eq!((&view["sent"], &view["sent_more"]), (&json!([]), &json!(0)));
    let after = house.json(&["info", "web"]);
    for field in ["id", "name", "net", "address", "created_at", "env", "labels"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let look =
        "cat /root/file; ls /root/busy /srv/two 2>/dev/null | wc -l; cat /srv/a/one; hostname; pgrep sleep | wc -l";
    assert_eq!(house.sh("web", look).ok(), "old\n0\n1\nweb\n0");
    // The step that ran has ended, and the restore is one.
    let steps = house.api().get("/v1/computers/web/steps").expect(200).json();
    let steps = steps["items"].as_array().expect("items");
    let number = view["step"].as_u64().expect("a number") as usize;
    assert_eq!((&steps[number - 1]["kind"], &steps[number - 1]["end"]["exit_code"]), (&json!("restore"), &json!(0)));
    assert_eq!(steps[number - 1]["snapshot"], kept["number"]);
    assert_eq!((&steps[2]["status"], &steps[2]["end"]["how"]), (&json!("ended"), &json!("lost")));

    // Taken back, and once more.
    let before = format!(".{}", view["before"]["number"]);
    let view = restore(&house, "web", &before).expect(200).json();
    assert_eq!(
        house.sh("web", "cat /root/file /srv/two; ls /srv; test -s /root/busy && echo busy").ok(),
        "new\n2\ntwo\nbusy"
    );
    restore(&house, "web", &format!(".{}", view["before"]["number"])).expect(200);
    assert_eq!(house.sh("web", look).ok(), "old\n0\n1\nweb\n0");

    // As it was made, and stopped it stays stopped.
    house.den(&["stop", "web"]).ok();
    let view = restore(&house, "web", "0").expect(200).json();
    assert_eq!(view["computer"]["state"], "stopped");
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "ls /root /srv | grep -c -e file -e one").stdout, "0\n");
    assert_eq!(house.sh("web", "hostname; cat /etc/hostname").ok(), "web\nweb");

    refused(restore(&house, "web", "now"), 400, "bad_state");
    refused(restore(&house, "web", "never"), 404, "state_not_found");
    refused(restore(&house, "web", "../x"), 400, "bad_state");
    refused(restore(&house, "nobody", "1"), 404, "computer_not_found");
    assert_eq!(house.sh("web", "echo alive").ok(), "alive");
    consistent(&house, "after restores");
}

#[test]
fn what_comes_during_a_restore_is_told_so_or_waits() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo old > /root/file").ok();
    snap(&house, "web", "clean");
    for _ in 0..5 {
        house.sh("web", "echo new > /root/file").ok();
        let statuses = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut statuses = Vec::new();
                for _ in 0..30 {
                    let reply = house.api().post("/v1/computers/web/steps", &json!({"argv": ["true"]}));
                    statuses.push((reply.status, reply.json()["error"]["code"].as_str().unwrap_or("-").to_owned()));
                }
                statuses
            });
            restore(&house, "web", "clean").expect(200);
            asking.join().expect("statuses")
        });
        for (status, code) in statuses {
            assert!(
                status == 200 || ["wrong_state", "agent_lost", "computer_stopped"].contains(&code.as_str()),
                "{status} {code}"
            );
        }
        assert_eq!(house.sh("web", "cat /root/file").ok(), "old");
    }
    // Two at once are one after the other; a fork meanwhile has one state or the other.
    std::thread::scope(|scope| {
        let one = scope.spawn(|| restore(&house, "web", "clean").status);
        let two = scope.spawn(|| restore(&house, "web", "0").status);
        let forked = scope.spawn(|| fork(&house, "web", &json!({"name": "try"})).status);
        assert_eq!((one.join().expect("one"), two.join().expect("two")), (200, 200));
        assert_eq!(forked.join().expect("forked"), 201);
    });
    let seen = house.sh("try", "cat /root/file 2>/dev/null || echo none").ok();
    assert!(["old", "none"].contains(&seen.as_str()), "{seen}");
    consistent(&house, "after restores at once");
}

fn house_with(args: &[&str]) -> House {
    House::with(DEN, Options { args: args.iter().map(|word| (*word).to_owned()).collect(), ..Options::default() })
}

#[test]
fn a_restore_says_what_it_does_not_take_back() {
    let internet = Internet::new();
    let house = house_with(&["--resolver", &internet.at(Site::Dns).to_string()]);
    house.new_computer("web");
    let get = |script: &str| {
        let script = format!(
            "import socket, time\ns = socket.create_connection(('good.test', 80))\n\
             s.sendall(b'GET / HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n')\nprint(s.recv(12).decode(), flush=True)\n{script}"
        );
        house.command(&["exec", "web", "--", "python3", "-c", &script]).stdout(std::process::Stdio::piped()).spawn()
    };
    let before = get("s.close()").expect("a client").wait_with_output().expect("its end");
    assert_eq!(before.stdout, b"HTTP/1.1 200\n");
    eventually(LONG, "its end is written down", || {
        house.den(&["net", "log", "web", "-n", "0", "--json"]).ok().contains("\"close\"")
    });
    snap(&house, "web", "clean");
    let after = get("s.close()").expect("a client").wait_with_output().expect("its end");
    assert_eq!(after.stdout, b"HTTP/1.1 200\n");
    // One that is open still when the computer is taken back.
    let mut open = get("time.sleep(3000)").expect("a client");
    eventually(LONG, "it is open", || house.json(&["net", "web"])["status"]["flows"] == 1);
    eventually(LONG, "it has sent", || internet.requests_at(Site::Good).len() >= 3);
    let view = restore(&house, "web", "clean").expect(200).json();
    let _ = open.wait();
    let sent = view["sent"].as_array().expect("a list");
    assert_eq!(sent.len(), 2, "{view}");
    for flow in sent {
        assert_eq!(flow["to"], "good.test:80", "{view}");
        assert!(flow["bytes"].as_u64() > Some(20), "{view}");
        assert!(flow["at"].as_i64() > view["to"]["created_at"].as_i64(), "{view}");
    }
    // It can be reached again, by the same policy.
    let again = get("s.close()").expect("a client").wait_with_output().expect("its end");
    assert_eq!(again.stdout, b"HTTP/1.1 200\n");
}

#[test]
fn plain_directories_fork_and_restore_as_well() {
    let mut house = house_with(&["--storage", "plain"]);
    house.new_computer("web");
    house.sh("web", "echo old > /root/file; ln /root/file /root/twin; chown 7:8 /root/file").ok();
    snap(&house, "web", "clean");
    house.sh("web", "echo new > /root/file").ok();
    fork(&house, "web", &json!({"name": "try", "count": 2})).expect(201);
    assert_eq!(house.sh("try-2", "cat /root/twin; stat -c %u:%g:%h /root/file; hostname").ok(), "new\n7:8:2\ntry-2");
    let view = restore(&house, "web", "clean").expect(200).json();
    assert_eq!(house.sh("web", "cat /root/twin; stat -c %u:%g:%h /root/file").ok(), "old\n7:8:2");
    restore(&house, "web", &format!(".{}", view["before"]["number"])).expect(200);
    assert_eq!(house.sh("web", "cat /root/file").ok(), "new");
    house.den(&["rm", "web"]).ok();
    house.restart();
    assert_eq!(house.sh("try-1", "cat /root/file").ok(), "new");
    consistent(&house, "plain");
}

#[test]
fn what_was_taken_back_goes_on_from_there_after_a_restart() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo 1 > /root/file").ok();
    house.sh("web", "echo 2 > /root/file").ok();
    house.sh("web", "echo 3 > /root/file").ok();
    restore(&house, "web", "1").expect(200);
    house.restart();
    house.sh("web", "echo 5 > /root/file").ok();
    let file = |name: &str, state: &str| {
        fork(&house, name, &json!({"name": "look", "state": state})).expect(201);
        let text = house.sh("look", "cat /root/file").ok();
        house.den(&["rm", "look"]).ok();
        text
    };
    for (state, text) in [("1", "1"), ("2", "2"), ("3", "3"), ("4", "1"), ("5", "5"), ("now", "5")] {
        assert_eq!(file("web", state), text, "after step {state}");
    }
    consistent(&house, "after all");
}

/// Whatever point a daemon dies at, what is left is consistent, and can be removed.
fn each_point(points: &[&str], prepare: impl Fn(&House), act: impl Fn(&House), check: impl Fn(&House, &str)) {
    at_each_point(
        DEN,
        points,
        |_| {},
        prepare,
        act,
        |house, when, _| {
            check(house, when);
            consistent(house, when);
            for name in names(house) {
                house.den(&["rm", &name]).ok();
            }
        },
    );
}

fn post(house: &House, path: &str, body: &Value) -> bool {
    let json = [("content-type", "application/json")];
    house.api().open("POST", path, &json, body.to_string().as_bytes()).is_ok()
}

#[test]
fn a_kill_at_each_point_of_fork() {
    each_point(
        &FORK,
        |house| {
            house.new_computer("web");
            house.sh("web", "echo here > /root/file").ok();
            house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
        },
        |house| {
            assert!(!post(house, "/v1/computers/web/fork", &json!({"name": "try", "count": 3})), "it was answered");
        },
        |house, when| {
            let there = names(house).iter().filter(|name| name.starts_with("try-")).count();
            assert!([0, 3].contains(&there), "{when}: {there} forks");
            if house.json(&["info", "web"])["state"] == "running" {
                assert_eq!(house.sh("web", "pgrep -fx 'sleep 3000' | wc -l").ok(), "1", "{when}: the parent goes on");
            }
            if there == 0 {
                fork(house, "web", &json!({"name": "try", "count": 3})).expect(201);
            }
            for name in ["try-1", "try-2", "try-3"] {
                if house.json(&["info", name])["state"] != "running" {
                    house.den(&["start", name]).ok();
                }
                assert_eq!(house.sh(name, "cat /root/file").ok(), "here", "{when}");
            }
        },
    );
}

#[test]
fn a_kill_at_each_point_of_restore() {
    each_point(
        &RESTORE,
        |house| {
            house.new_computer("web");
            house.sh("web", "echo old > /root/file; touch /root/only-old").ok();
            snap(house, "web", "clean");
            house.sh("web", "echo new > /root/file; rm /root/only-old; touch /root/only-new").ok();
            house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
        },
        |house| {
            assert!(!post(house, "/v1/computers/web/restore", &json!({"state": "clean"})), "it was answered");
        },
        |house, when| {
            if house.json(&["info", "web"])["state"] != "running" {
                house.den(&["start", "web"]).ok();
            }
            let seen = house.sh("web", "cat /root/file; ls /root/only-*").ok();
            let (old, new) = ("old\n/root/only-old", "new\n/root/only-new");
            assert!([old, new].contains(&seen.as_str()), "{when}: {seen}");
            let steps = house.api().get("/v1/computers/web/steps").expect(200).json();
            let steps = steps["items"].as_array().expect("items");
            let done = steps.iter().find(|step| step["kind"] == "restore");
            let done = done.is_some_and(|step| step["end"]["exit_code"] == 0);
            assert_eq!(done, seen == old, "{when}: the log says what is: {steps:?}");
            if seen == old {
                let states = snapshots(house, "web");
                let before = states.iter().rfind(|state| state["kind"] == "restore").expect("the state before");
                restore(house, "web", &format!(".{}", before["number"])).expect(200);
                assert_eq!(house.sh("web", "cat /root/file; ls /root/only-*").ok(), new, "{when}: taken back");
            }
            restore(house, "web", "clean").expect(200);
            assert_eq!(house.sh("web", "cat /root/file; ls /root/only-*").ok(), old, "{when}: again");
        },
    );
}

#[test]
fn a_restore_that_cannot_boot_can_be_taken_back() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo old > /root/file").ok();
    let number = snap(&house, "web", "broken")["number"].as_u64().expect("a number");
    house.sh("web", "echo new > /root/file").ok();
    // A state that no computer can begin with: there is a file where /proc has to be.
    let id = house.json(&["info", "web"])["id"].as_str().expect("an id").to_owned();
    let state = house.data().join("computers").join(&id).join(format!("snapshots/{number}"));
    let folder = std::fs::File::open(&state).expect("the state");
    den_sys::btrfs::set_read_only(std::os::fd::AsFd::as_fd(&folder), false).expect("writable");
    std::fs::write(state.join("data/proc"), "").expect("a file");
    den_sys::btrfs::set_read_only(std::os::fd::AsFd::as_fd(&folder), true).expect("read-only");
    let reply = restore(&house, "web", "broken");
    assert!(reply.status >= 500, "{}", reply.text());
    let info = house.json(&["info", "web"]);
    assert_eq!(info["state"], "failed", "{info}");
    let states = snapshots(&house, "web");
    let before = states.iter().rfind(|state| state["kind"] == "restore").expect("the state before is kept");
    house.den(&["restore", &format!("web@.{}", before["number"])]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /root/file").ok(), "new");
    house.den(&["snaps", "rm", "web@broken"]).ok();
    consistent(&house, "at the end");
}
