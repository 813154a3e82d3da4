//! Computers: made, listed, stopped, started, removed; their names and limits; bad input.

use std::collections::BTreeSet;
use std::time::Duration;

use den_testkit::{House, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");

/// The entries of a list, with or without a page around them.
fn items(list: &Value) -> Vec<Value> {
    list.as_array().or_else(|| list["items"].as_array()).unwrap_or_else(|| panic!("no list: {list}")).clone()
}

fn names(list: &Value) -> BTreeSet<String> {
    items(list).iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_new_computer_runs_and_is_listed() {
    let house = House::open(DEN);
    assert_eq!(house.den(&["new", "web"]).ok(), "web", "the name alone is printed");
    assert_eq!(names(&house.json(&["ls"])), BTreeSet::from(["web".to_owned()]));
    let info = house.json(&["info", "web"]);
    assert_eq!(info["state"], "running");
    assert_eq!(info["image"], "base");
    assert_eq!(info["tier"], "container");
    assert!(info["id"].as_str().is_some_and(|id| id.starts_with("cmp_")), "{info}");
    assert!(info["usage"]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{info}");
    assert!(info["usage"]["pids"].as_u64().is_some_and(|pids| pids >= 1), "{info}");
    assert_eq!(house.sh("web", "id -u; hostname").ok(), "0\nweb");
}

#[test]
fn a_name_is_made_up_where_none_is_given() {
    let house = House::open(DEN);
    let first = house.den(&["new"]).ok();
    let second = house.den(&["new"]).ok();
    assert_ne!(first, second);
    for name in [&first, &second] {
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
        assert_eq!(house.sh(name, "hostname").ok(), *name);
    }
}

#[test]
fn an_id_and_a_prefix_of_it_mean_the_computer() {
    let house = House::open(DEN);
    house.new_computer("web");
    let id = house.json(&["info", "web"])["id"].as_str().expect("an id").to_owned();
    for word in [id.as_str(), &id[..id.len() - 4]] {
        assert_eq!(house.json(&["info", word])["name"], "web", "{word}");
        assert_eq!(house.sh(word, "hostname").ok(), "web", "{word}");
    }
}

#[test]
fn a_stopped_computer_keeps_its_disk_and_starts_again() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo kept > /root/file; echo gone > /run/file; echo gone > /dev/shm/file").ok();
    let machine_id = house.sh("web", "cat /etc/machine-id").ok();
    house.den(&["stop", "web"]).ok();
    assert_eq!(house.json(&["info", "web"])["state"], "stopped");
    house.den(&["exec", "web", "--", "true"]).refused(1, "den start web");
    house.api().post("/v1/computers/web/steps", &json!({"argv": ["true"]})).refusal(409, "computer_stopped");
    house.den(&["start", "web"]).ok();
    assert_eq!(house.json(&["info", "web"])["state"], "running");
    assert_eq!(house.sh("web", "cat /root/file; ls /run/file /dev/shm/file 2>&1 | grep -c 'No such'").ok(), "kept\n2");
    assert_eq!(house.sh("web", "cat /etc/machine-id").ok(), machine_id);
    // The numbers of steps go on.
    let last = house.json(&["info", "web"])["last_step"].as_u64().expect("a number");
    assert!(last >= 4, "{last}");
}

#[test]
fn stopping_lets_processes_end_by_themselves() {
    let house = House::open(DEN);
    house.new_computer("web");
    let script = "trap 'echo clean > /root/ended; exit 0' TERM; echo ready > /root/ready; while :; do sleep 0.1; done";
    house.den(&["exec", "web", "-d", "--", "sh", "-c", script]).ok();
    eventually(Duration::from_secs(30), "the service is ready", || house.sh("web", "test -e /root/ready").code == 0);
    house.den(&["stop", "web", "--grace", "20s"]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /root/ended").ok(), "clean");
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_after_the_grace() {
    let house = House::open(DEN);
    house.new_computer("web");
    house
        .den(&[
            "exec",
            "web",
            "-d",
            "--",
            "sh",
            "-c",
            "trap '' TERM; echo ready > /root/ready; while :; do sleep 1; done",
        ])
        .ok();
    eventually(Duration::from_secs(30), "the service is ready", || house.sh("web", "test -e /root/ready").code == 0);
    house.den(&["stop", "web", "--grace", "300ms"]).ok();
    assert_eq!(house.json(&["info", "web"])["state"], "stopped");
    let step = house.json(&["log", "web"]);
    let step = items(&step).into_iter().find(|step| step["argv"][0] == "sh").expect("the step");
    assert_eq!(step["status"], "ended", "{step}");
}

#[test]
fn a_removed_computer_leaves_nothing_and_its_name_is_free() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo old > /root/file").ok();
    house.den(&["exec", "web", "-d", "--", "sleep", "1000"]).ok();
    assert_eq!(house.disks().len(), 1);
    house.den(&["rm", "web"]).ok();
    house.api().get("/v1/computers/web").refusal(404, "computer_not_found");
    eventually(Duration::from_secs(30), "the disk is gone", || house.disks().is_empty());
    house.new_computer("web");
    house.sh("web", "test -e /root/file").refused(1, "");
    // A stopped one goes as well.
    house.den(&["stop", "web"]).ok();
    house.den(&["rm", "web"]).ok();
    assert!(items(&house.json(&["ls"])).is_empty());
}

#[test]
fn limits_labels_and_environment_are_kept_and_shown() {
    let house = House::open(DEN);
    house
        .den(&[
            "new",
            "web",
            "--cpus",
            "0.5",
            "--memory",
            "256MiB",
            "--disk",
            "1GiB",
            "--pids",
            "64",
            "--env",
            "A=1",
            "--env",
            "B=two words",
            "--label",
            "team=red",
            "--label",
            "n=1",
        ])
        .ok();
    house.den(&["new", "db", "--label", "team=blue", "--memory", "256MiB"]).ok();
    let info = house.json(&["info", "web"]);
    assert_eq!(info["memory"], 256 << 20, "{info}");
    assert_eq!(info["disk"], 1_u64 << 30);
    assert_eq!(info["pids"], 64);
    assert_eq!(info["cpus"].as_f64(), Some(0.5));
    assert_eq!(info["env"], json!({"A": "1", "B": "two words"}));
    assert_eq!(house.sh("web", "echo $A/$B").ok(), "1/two words");
    let only = |query: &str| names(&house.api().get(&format!("/v1/computers?{query}")).expect(200).json());
    assert_eq!(only("label=team=red"), BTreeSet::from(["web".to_owned()]));
    assert_eq!(only("label=team=red&label=n=2"), BTreeSet::new());
    house.den(&["stop", "db"]).ok();
    assert_eq!(only("state=stopped"), BTreeSet::from(["db".to_owned()]));
    assert_eq!(only("state=running"), BTreeSet::from(["web".to_owned()]));
}

#[test]
fn bad_input_is_one_clear_error_and_leaves_nothing() {
    let house = House::open(DEN);
    let api = house.api();
    house.new_computer("taken");
    let check = |body: Value, status: u16, code: &str, words: &str| {
        let error = api.post("/v1/computers", &body).refusal(status, code);
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "{body}: wanted `{words}` in `{message}`");
    };
    check(json!({"name": "taken"}), 409, "name_taken", "taken");
    for name in ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", "../x", &"a".repeat(64)] {
        check(json!({ "name": name }), 400, "bad_name", "");
    }
    for size in ["0", "-1", "10ZB", "lots", "", "1e400GiB", "99999999999999999999"] {
        check(json!({ "memory": size }), 400, "bad_size", "memory");
        check(json!({ "disk": size }), 400, "bad_size", "disk");
    }
    for cpus in ["0", "-1", "many", "", "1e9", "NaN"] {
        check(json!({ "cpus": cpus }), 400, "bad_size", "cpus");
    }
    check(json!({"pids": 0}), 400, "bad_size", "pids");
    check(json!({"pids": -1}), 400, "bad_request", "-1");
    check(json!({"image": "no-such-image"}), 404, "image_not_found", "no-such-image");
    check(json!({"tier": "vm"}), 501, "unsupported", "");
    check(json!({"tier": "balloon"}), 400, "bad_request", "balloon");
    check(json!({"memroy": "1GiB"}), 400, "bad_request", "memroy");
    check(json!({"env": {"": "x"}}), 400, "bad_request", "env");
    check(json!({"env": {"A=B": "x"}}), 400, "bad_request", "env");
    check(json!([]), 400, "bad_request", "");
    let error = api.post("/v1/computers", &json!({"image": "no-such-image"})).refusal(404, "image_not_found");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("den image")), "{error}");
    for path in [
        "/v1/computers/nobody",
        "/v1/computers/nobody/steps",
        "/v1/computers/nobody/files?path=/etc/hosts",
        "/v1/computers/cmp_zzzzzz",
    ] {
        api.get(path).refusal(404, "computer_not_found");
    }
    assert_eq!(names(&house.json(&["ls"])), BTreeSet::from(["taken".to_owned()]));
    assert_eq!(house.disks().len(), 1, "refused creates leave no disk");
    assert_eq!(house.sh("taken", "echo well").ok(), "well");
}

#[test]
fn of_many_who_want_one_name_exactly_one_gets_it() {
    let house = House::open(DEN);
    let api = house.api();
    let replies: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..8).map(|_| scope.spawn(|| api.post("/v1/computers", &json!({"name": "one"})))).collect();
        asking.into_iter().map(|thread| thread.join().expect("a reply")).collect()
    });
    assert_eq!(replies.iter().filter(|reply| reply.status == 201).count(), 1);
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        reply.refusal(409, "name_taken");
    }
    assert_eq!(house.disks().len(), 1);
    assert_eq!(house.sh("one", "hostname").ok(), "one");
}

#[test]
fn thirty_at_once_all_run_and_differ() {
    let house = House::open(DEN);
    let api = house.api();
    let seen: BTreeSet<String> = std::thread::scope(|scope| {
        let making: Vec<_> = (0..30)
            .map(|number| {
                let api = &api;
                scope.spawn(move || {
                    let name = format!("c{number}");
                    api.post("/v1/computers", &json!({"name": name, "memory": "256MiB"})).expect(201);
                    let command = json!({"argv": ["sh", "-c", "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id | head -1"]});
                    let reply = api.post(&format!("/v1/computers/{name}/steps"), &command).expect(200);
                    let out = reply.json()["stdout"].as_str().expect("text").to_owned();
                    assert!(out.starts_with(&format!("{name}\n")), "{out}");
                    out
                })
            })
            .collect();
        making.into_iter().map(|thread| thread.join().expect("a computer")).collect()
    });
    assert_eq!(seen.len(), 30, "each has a name and a machine id of its own");
    house.den(&["rm", "--all"]).ok();
    assert!(items(&house.json(&["ls"])).is_empty());
    eventually(Duration::from_secs(60), "the disks are gone", || house.disks().is_empty());
}

#[test]
fn without_btrfs_a_plain_folder_does() {
    let house = House::with(
        DEN,
        den_testkit::Options { args: ["--storage", "plain"].map(str::to_owned).into(), ..Default::default() },
    );
    house.new_computer("web");
    assert_eq!(house.api().get("/v1/version").expect(200).json()["storage"], "plain");
    assert_eq!(house.sh("web", "echo hello > /root/file; cat /root/file; df / | tail -1 | wc -l").ok(), "hello\n1");
    house.den(&["stop", "web"]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /root/file").ok(), "hello");
    house.den(&["rm", "web"]).ok();
    eventually(Duration::from_secs(30), "the disk is gone", || house.disks().is_empty());
}
