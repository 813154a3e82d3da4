//! What an operator sees: events, metrics, readiness, usage, the table, the unit.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    time::Duration,
};

use den_testkit::{Api, House, Options, eventually};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);

fn events(house: &House, query: &str) -> Vec<Value> {
    let page = house.api().get(&format!("/v1/events?limit=1000&{query}")).expect(200).json();
    page["events"].as_array().expect("events").clone()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect()
}

/// Waits until an event comes that `fits`.
fn wait_for(house: &House, query: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    eventually(LONG, what, || {
        found = events(house, query).into_iter().find(|event| fits(event));
        found.is_some()
    });
    found.expect("it was found")
}

#[test]
fn a_computers_life_is_told_with_who_and_why() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--memory", "1GiB"]).ok();
    house.den(&["stop", "web"]).ok();
    house.den(&["start", "web"]).ok();
    house.den(&["snap", "web", "good"]).ok();
    house.den(&["fork", "web", "child"]).ok();
    house.sh("web", "echo later > /later").ok();
    house.den(&["restore", "web@good"]).ok();
    house.den(&["net", "web", "sealed"]).ok();
    house.den(&["rm", "child"]).ok();
    wait_for(&house, "kind=removed", "the removal is told", |event| event["name"] == "child");
    let all = events(&house, "");
    assert_eq!(all[0]["kind"], "daemon_started");
    let of_web: Vec<_> = all.iter().filter(|event| event["name"] == "web").cloned().collect();
    assert_eq!(kinds(&of_web), ["created", "stopped", "started", "restored", "policy_changed"]);
    assert!(of_web.iter().all(|event| event["who"] == "api"), "{of_web:?}");
    assert_eq!(of_web[0]["detail"]["image"], "base");
    // By name or id, and when it is gone.
    let forked = &events(&house, "computer=child")[0];
    assert_eq!((forked["kind"].as_str(), forked["detail"]["parent_name"].as_str()), (Some("forked"), Some("web")));
    let id = forked["computer"].as_str().expect("its id");
    assert_eq!(kinds(&events(&house, &format!("computer={id}"))), ["forked", "removed"]);
    assert_eq!(kinds(&events(&house, "kind=stopped,started")), ["stopped", "started"]);
    // Commands are no events.
    assert_eq!(all.len(), events(&house, "").len());
    let line = house.den(&["events", "web", "--kind", "restored"]).ok();
    assert!(line.contains("restored") && line.contains("web") && line.lines().count() == 1, "{line}");
    house.den(&["events", "web", "--kind", "exploded"]).refused(1, "exploded");
    house.den(&["events", "nobody"]).refused(1, "no computer `nobody`");
    house.close();
}

#[test]
fn pages_follow_each_other_and_outlive_the_daemon() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    wait_for(&house, "kind=created", "it is told", |_| true);
    house.restart();
    wait_for(&house, "last=1", "the next daemon tells", |event| event["kind"] == "daemon_started");
    let all: Vec<u64> = events(&house, "").iter().map(|event| event["number"].as_u64().expect("a number")).collect();
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
    let api = house.api();
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let page = api.get(&format!("/v1/events?limit=2&after={after}")).expect(200).json();
        let events = page["events"].as_array().expect("events").clone();
        assert_eq!(page["lost"], false);
        if events.is_empty() {
            break;
        }
        seen.extend(events.iter().map(|event| event["number"].as_u64().expect("a number")));
        after = page["next"].as_u64().expect("a number");
    }
    assert_eq!(seen, all);
    let last = events(&house, "last=2");
    assert_eq!(
        last.iter().map(|event| event["number"].as_u64()).collect::<Vec<_>>(),
        all[all.len() - 2..].iter().map(|n| Some(*n)).collect::<Vec<_>>()
    );
    api.get("/v1/events?limit=0").refusal(400, "bad_request");
    api.get("/v1/events?last=1001").refusal(400, "bad_request");
    api.get("/v1/events?kind=created,nonsense").refusal(400, "bad_request");
    house.close();
}

#[test]
fn followers_miss_nothing_and_get_nothing_twice_while_much_happens() {
    const CHANGES: usize = 150;
    const LATE: usize = 3;
    const LAST: &str = "events.example";
    let house = House::open(DEN);
    house.new_computer("web");
    let api = house.api();
    // Reads to the change that comes last.
    let follow = |api: &Api, query: &str| -> Vec<u64> {
        let stream = api.open("GET", &format!("/v1/events?follow=true&{query}"), &[], b"").expect("a stream");
        assert_eq!(stream.status, 200);
        let mut numbers = Vec::new();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while reader.read_line(&mut line).expect("a line") > 0 {
            if let Some(text) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(text).expect("an event");
                numbers.push(event["number"].as_u64().expect("a number"));
                if event["kind"] == "policy_changed" && event["detail"]["allow"] == 1 && event["detail"]["deny"] == 1 {
                    return numbers;
                }
            }
            line.clear();
        }
        panic!("the stream ended at {:?}", numbers.last());
    };
    let change = |body: Value| {
        let headers = [("content-type", "application/json")];
        api.request("PATCH", "/v1/computers/web/net", &headers, body.to_string().as_bytes()).expect(200);
    };
    let all = std::thread::scope(|scope| {
        let early = scope.spawn(|| follow(&api, "after=0"));
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let change = &change;
        let writer = scope.spawn(move || {
            for n in 0..CHANGES {
                // Whoever begins in the middle has begun before the last change.
                if (n + 1) % (CHANGES / LATE) == 0 {
                    may_go_on.recv().expect("a word");
                }
                change(json!({ "posture": if n % 2 == 0 { "sealed" } else { "open" } }));
            }
            change(json!({ "allow_add": [LAST], "deny_add": ["no.example"] }));
        });
        // Begun in the middle, from the beginning and from where they stand.
        let late: Vec<_> = (0..LATE)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(100));
                let after = events(&house, "last=1")[0]["number"].as_u64().expect("a number");
                let follow = &follow;
                let api = &api;
                go_on.send(()).expect("the writer");
                let whole = scope.spawn(move || follow(api, ""));
                (after, whole, scope.spawn(move || follow(api, &format!("after={after}"))))
            })
            .collect();
        writer.join().expect("the writer");
        let early = early.join().expect("the first follower");
        for (after, whole, rest) in late {
            assert_eq!(whole.join().expect("a follower"), early);
            assert_eq!(rest.join().expect("a follower"), early[after as usize..]);
        }
        early
    });
    assert_eq!(all, (1..=*all.last().expect("some")).collect::<Vec<_>>());
    let of_web = events(&house, "computer=web&kind=policy_changed");
    assert_eq!(of_web.len(), CHANGES + 1);
    // From a number on: exactly the rest.
    let middle = all[all.len() / 2];
    assert_eq!(follow(&api, &format!("after={middle}")), all[all.len() / 2 + 1..]);
    house.close();
}

#[test]
fn the_cli_follows_over_a_restart_of_the_daemon() {
    let mut house = House::open(DEN);
    let mut client = house
        .command(&["events", "--follow", "--json", "--lines", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("den events");
    let lines = BufReader::new(client.stdout.take().expect("its output")).lines();
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
    assert_eq!(events.next().expect("an event")["kind"], "daemon_started");
    house.new_computer("web");
    assert_eq!(events.next().expect("an event")["kind"], "created");
    house.restart();
    assert_eq!(events.next().expect("an event")["kind"], "daemon_started");
    house.den(&["rm", "web"]).ok();
    let removed = events.next().expect("an event");
    assert_eq!((removed["kind"].as_str(), removed["number"].as_u64()), (Some("removed"), Some(4)));
    client.kill().expect("SIGKILL");
    client.wait().expect("its end");
    house.close();
}

#[test]
fn limits_that_are_reached_are_events() {
    let house = House::open(DEN);
    house.den(&["new", "small", "--memory", "96MiB", "--pids", "40"]).ok();
    // More processes than it may have.
    house.sh("small", "for i in $(seq 80); do sleep 2 & done 2>/dev/null; true");
    let pids = |event: &Value| event["kind"] == "limit_reached" && event["detail"]["what"] == "pids";
    let event = wait_for(&house, "computer=small", "the limit on processes is told", pids);
    assert!(event["detail"]["times"].as_u64().is_some_and(|times| times > 0), "{event}");
    // More memory than it may have: the kernel ends the command. There may be no room for its process yet.
    eventually(LONG, "an end for want of memory is told", || {
        house.sh("small", "head -c 300000000 /dev/zero | tail -c 290000000 | wc -c");
        !events(&house, "computer=small&kind=oom").is_empty()
    });
    let event = &events(&house, "computer=small&kind=oom")[0];
    assert!(event["detail"]["processes"].as_u64().is_some_and(|processes| processes > 0), "{event}");
    // More output than is kept.
    let request = json!({ "argv": ["sh", "-c", "head -c 12000000 /dev/zero"], "keep_bytes": 4 << 20 });
    house.api().post("/v1/computers/small/steps", &request);
    let cut = |event: &Value| event["detail"]["what"] == "output";
    let event = wait_for(&house, "computer=small&kind=limit_reached", "cut output is told", cut);
    assert!(event["detail"]["kept_bytes"].as_u64().is_some_and(|bytes| bytes < 8 << 20), "{event}");
    house.close();
}

/// The value of a sample, by its whole name.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Panics unless each line is one of the text format, each sample follows its family, and no series comes twice.
fn check_format(text: &str) {
    let mut families = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and kind");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(families.insert(name.to_owned()), "a family comes twice: {line}");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.split_once(' ').is_some_and(|(_, help)| help.ends_with('.')), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(name.starts_with(&family), "{line} is none of {family}");
            assert!(series.insert(name.to_owned()), "a series comes twice: {line}");
        }
    }
    assert!(text.ends_with('\n') && families.len() > 20, "{} families", families.len());
}

#[test]
fn metrics_are_prometheus_and_move_with_what_happens() {
    let house = House::open(DEN);
    let api = house.api();
    let stranger = Api { token: String::new(), ..api.clone() };
    stranger.get("/metrics").refusal(401, "unauthorized");
    let before = api.get("/metrics").expect(200);
    assert_eq!(before.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let before = before.text();
    check_format(&before);
    house.new_computer("web");
    house.sh("web", "echo x > /x").ok();
    house.sh("web", "exit 3");
    let text = api.get("/metrics").expect(200).text();
    check_format(&text);
    let rise = |name: &str| sample(&text, name).unwrap_or(-1.0) - sample(&before, name).unwrap_or(0.0);
    assert_eq!(rise("den_computers{state=\"running\"}"), 1.0);
    assert_eq!(rise("den_operation_seconds_count{operation=\"create\"}"), 1.0);
    assert_eq!(rise("den_operation_seconds_count{operation=\"exec\"}"), 2.0);
    assert_eq!(rise("den_steps_started_total{kind=\"exec\"}"), 2.0);
    assert_eq!(rise("den_steps_ended_total{result=\"ok\"}"), 1.0);
    assert_eq!(rise("den_steps_ended_total{result=\"failed\"}"), 1.0);
    assert_eq!(rise("den_boots_total{husk=\"ready\"}") + rise("den_boots_total{husk=\"missed\"}"), 1.0);
    assert_eq!(rise("den_events_total{kind=\"created\"}"), 1.0);
    assert!(rise("den_store_commit_seconds_count") > 0.0 && rise("den_store_batch_size_sum") > 0.0);
    for name in [
        "den_gate_up",
        "den_launcher_up",
        "den_disk_free_bytes{place=\"data\"}",
        "den_process_resident_bytes{process=\"serve\"}",
        "den_process_open_fds{process=\"gate\"}",
        "den_gate_links",
    ] {
        assert!(sample(&text, name).is_some_and(|value| value > 0.0), "{name}: {text}");
    }
    // However many computers there are, the series are the same.
    assert!(!text.contains("web") && !text.contains("cmp_"), "{text}");
    let series = |text: &str| text.lines().filter(|line| !line.contains("status=")).count();
    assert_eq!(series(&before), series(&text));
    house.close();
}

#[test]
fn metrics_of_each_computer_and_without_a_token_where_the_operator_said_so() {
    let args = ["--metrics-open", "--metrics-per-computer"].map(str::to_owned).to_vec();
    let house = House::with(DEN, Options { args, ..Options::default() });
    house.new_computer("web");
    house.sh("web", "true").ok();
    let stranger = Api { token: String::new(), ..house.api() };
    let text = stranger.get("/metrics").expect(200).text();
    check_format(&text);
    let steps = text.lines().find(|line| line.starts_with("den_computer_steps_total{")).expect("a sample");
    assert!(steps.contains("name=\"web\"") && steps.ends_with(" 1"), "{steps}");
    stranger.get("/v1/usage").refusal(401, "unauthorized");
    house.close();
}

#[test]
fn readiness_names_the_part_that_does_not_answer() {
    let house = House::open(DEN);
    house.new_computer("web");
    let (api, launcher) = (house.api(), house.launcher());
    let stranger = Api { token: String::new(), ..api.clone() };
    eventually(LONG, "all is well", || api.get("/readyz").status == 200);
    let well = api.get("/readyz").expect(200).json();
    let names: Vec<_> = well["checks"].as_array().expect("checks").iter().map(|check| check["name"].clone()).collect();
    assert_eq!(names, ["daemon", "store", "launcher", "gate", "disk"]);
    kill_process(launcher, Signal::STOP).expect("SIGSTOP");
    let (told, untold) = (api.get("/readyz"), stranger.get("/readyz"));
    kill_process(launcher, Signal::CONT).expect("SIGCONT");
    let of = |ready: &Value, name: &str| {
        ready["checks"]
            .as_array()
            .expect("checks")
            .iter()
            .find(|check| check["name"] == name)
            .cloned()
            .expect("a check")
    };
    let told = told.expect(503).json();
    assert_eq!((&told["ready"], &of(&told, "store")["ok"]), (&json!(false), &json!(true)), "{told}");
    let check = of(&told, "launcher");
    assert!(check["ok"] == false && check["error"].as_str().is_some_and(|text| text.contains("launcher")), "{check}");
    assert!(check["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{check}");
    // A stranger is told which, and not why.
    let check = of(&untold.expect(503).json(), "launcher");
    assert_eq!(check, json!({ "name": "launcher", "ok": false }));
    assert_eq!(stranger.get("/healthz").expect(200).text(), "ok");
    eventually(LONG, "all is well again", || api.get("/readyz").status == 200);
    house.close();
}

#[test]
fn usage_is_of_all_computers_and_top_has_their_rates() {
    let house = House::open(DEN);
    for name in ["busy", "calm", "still"] {
        house.new_computer(name);
    }
    house.den(&["stop", "still"]).ok();
    house.den(&["exec", "busy", "-d", "--", "sh", "-c", "while :; do :; done"]).ok();
    let usage = house.api().get("/v1/usage").expect(200).json();
    let names: Vec<_> = usage["items"].as_array().expect("items").iter().map(|item| item["name"].clone()).collect();
    assert_eq!(names, ["busy", "calm", "still"]);
    let busy = &usage["items"][0];
    assert!(busy["memory_bytes"].as_u64() > Some(0) && busy["pids"].as_u64() > Some(1), "{busy}");
    assert_eq!((busy["steps"].as_u64(), busy["steps_running"].as_u64()), (Some(1), Some(1)), "{busy}");
    assert!(busy["net"].is_object() && usage["items"][2]["net"].is_null(), "{usage}");
    assert!(usage["host"]["memory_total"].as_u64() > usage["host"]["memory_available"].as_u64(), "{usage}");
    let top = house.json(&["top", "--once"]);
    assert_eq!(top["items"][0]["name"], "busy", "{top}");
    assert!(top["items"][0]["cpu_percent"].as_f64().is_some_and(|percent| percent > 5.0), "{top}");
    assert_eq!(top["items"].as_array().map(Vec::len), Some(2));
    let text = house.den(&["top", "--all", "--sort", "name"]).ok();
    let first: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap_or_default()).skip(1).collect();
    assert_eq!(first, ["NAME", "busy", "calm", "still"]);
    house.den(&["top", "--interval", "1ms"]).refused(2, "100ms");
    house.close();
}

#[test]
fn the_log_is_json_where_it_was_asked_for() {
    let args = ["--log-format", "json"].map(str::to_owned).to_vec();
    let house = House::with(DEN, Options { args, ..Options::default() });
    house.new_computer("web");
    let log = house.log();
    let objects: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let created = objects.iter().find(|object| object["fields"]["message"] == "a computer runs");
    assert!(created.is_some_and(|object| object["fields"]["name"] == "web" && object["level"] == "INFO"), "{log}");
    house.close();
}

#[test]
fn install_puts_program_and_unit_in_their_places_and_uninstall_takes_them_away() {
    let folder = tempfile::Builder::new().prefix("den-install-").tempdir().expect("a folder");
    let text = |path: &str| folder.path().join(path).to_str().expect("text").to_owned();
    let (prefix, units, data) = (text("usr"), text("units"), text("data"));
    let run = |words: &[&str]| {
        let output = std::process::Command::new(DEN).args(["--data", &data]).args(words).output().expect("den");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let printed = run(&["install", "--prefix", &prefix, "--print", "--", "--net", "guarded"]);
    assert!(!folder.path().join("usr").exists(), "printing does nothing");
    let place = ["--prefix", &prefix, "--units", &units];
    for _ in 0..2 {
        run(&[&["install"], &place[..], &["--", "--net", "guarded"]].concat());
    }
    let unit = std::fs::read_to_string(folder.path().join("units/den.service")).expect("the unit");
    assert_eq!(printed.replace(&data, "DATA"), unit.replace(&data, "DATA"));
    assert!(unit.contains(&format!("\nExecStart={prefix}/bin/den serve --data {data} --net guarded\n")), "{unit}");
    assert!(unit.contains("\nKillMode=process\n") && unit.contains("\nDelegate=yes\n"), "{unit}");
    let program = folder.path().join("usr/bin/den");
    assert_eq!(std::fs::metadata(&program).expect("the program").permissions().mode() & 0o7777, 0o755);
    let version = std::process::Command::new(&program).arg("--version").output().expect("den");
    assert!(version.stdout.starts_with(b"den "), "{version:?}");
    let removed = run(&[&["uninstall"], &place[..]].concat());
    assert!(removed.contains("den.service") && removed.contains("kept"), "{removed}");
    assert!(!program.exists() && !folder.path().join("units/den.service").exists());
    run(&[&["uninstall"], &place[..]].concat());
}

#[test]
fn what_is_installed_is_not_taken_away_from_under_computers() {
    let house = House::open(DEN);
    house.new_computer("web");
    let prefix = house.scratch();
    let words = ["uninstall", "--prefix", prefix.to_str().expect("text"), "--units", prefix.to_str().expect("text")];
    let found = house.command(&words).env("DEN_RUN", house.run_dir()).output().expect("den");
    assert!(!found.status.success(), "{found:?}");
    assert!(String::from_utf8_lossy(&found.stderr).contains("den shutdown"), "{found:?}");
    house.close();
}

/// The unit takes capabilities away; a house does all it does without them, and tells its supervisor that it is up.
#[test]
fn a_daemon_under_the_unit_is_whole() {
    let unit = std::process::Command::new(DEN).args(["install", "--print"]).output().expect("den");
    let unit = String::from_utf8(unit.stdout).expect("text");
    let dropped = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=~")).expect("the line");
    let dropped: Vec<_> =
        dropped.split(' ').map(|name| format!("-{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    let folder = tempfile::Builder::new().prefix("den-unit-").tempdir().expect("a folder");
    let wrapper = folder.path().join("den");
    let script = format!("#!/bin/sh\nexec setpriv --bounding-set {} {DEN} \"$@\"\n", dropped.join(","));
    std::fs::write(&wrapper, script).expect("the wrapper");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let socket = folder.path().join("notify");
    let notified = std::os::unix::net::UnixDatagram::bind(&socket).expect("a socket");
    notified.set_read_timeout(Some(LONG)).expect("a limit");
    let env = vec![("NOTIFY_SOCKET".to_owned(), socket.to_str().expect("text").to_owned())];
    let house = House::with(wrapper.to_str().expect("text"), Options { env, ..Options::default() });
    let mut told = [0; 64];
    let length = notified.recv(&mut told).expect("a message");
    assert_eq!(&told[..length], b"READY=1");
    house.new_computer("web");
    house.den(&["snap", "web", "one"]).ok();
    assert_eq!(house.sh("web", "id -u; mount -t tmpfs none /mnt && echo mounted").ok(), "0\nmounted");
    house.den(&["fork", "web", "child"]).ok();
    house.den(&["restore", "web@one"]).ok();
    eventually(LONG, "all is well", || house.api().get("/readyz").status == 200);
    house.close();
}
