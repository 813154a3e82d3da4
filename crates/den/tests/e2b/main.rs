//! E2B's own SDKs against a real daemon: several versions of both languages, from their registries. `cargo xtask e2b`
//! installs them into `target/e2b`; a test whose SDK is missing says so and fails.
//!
//! Beside them what no SDK shows: that a crash leaves whole sandboxes or none, and that no input is answered by a 500.

mod code;
mod desktop;
mod fuzz;
mod names;
mod streams;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use den_testkit::{House, Options, Ran, at_each_point, at_each_point_with, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const CRIU: &str = "/var/cache/den/criu/criu";

/// Where the SDKs are.
fn sdk(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/e2b").join(name);
    assert!(root.is_dir(), "{} is missing: `cargo xtask e2b` installs it", root.display());
    root.canonicalize().expect("a path")
}

fn key(house: &House) -> String {
    house.den(&["e2b", "key"]).ok()
}

fn command(house: &House, program: &Path) -> Command {
    let mut command = Command::new(program);
    let url = format!("http://{}", house.api().addr);
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b"))
        .env("DEN", DEN)
        .env("DEN_DATA", house.data())
        .env("E2B_API_KEY", key(house))
        .env("E2B_API_URL", &url)
        .env("E2B_SANDBOX_URL", &url)
        .env("E2B_VOLUME_API_URL", &url)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn ran(command: &mut Command) {
    let output = command.output().expect("a program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(!text(&output.stdout).trim().is_empty(), "it says what it has run");
}

fn python(version: &str, files: &[&str]) {
    python_in(House::open(DEN), version, files);
}

fn python_in(house: House, version: &str, files: &[&str]) {
    let program = sdk(&format!("py-{version}")).join("bin/python");
    let words = ["-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider"];
    ran(command(&house, &program).args(words).args(files));
    house.close();
}

fn javascript(version: &str, file: &str) {
    javascript_in(House::open(DEN), version, file);
}

fn javascript_in(house: House, version: &str, file: &str) {
    let root = sdk(&format!("js-{version}"));
    ran(command(&house, Path::new("node")).env("DEN_E2B_SDK", root).args(["--test", file]));
    house.close();
}

#[test]
fn python_newest() {
    python("2.63.0", &["test_sandbox.py", "test_life.py", "test_more.py"]);
}

#[test]
fn python_2_50() {
    python("2.50.0", &["test_sandbox.py"]);
}

#[test]
fn python_2_45() {
    python("2.45.0", &["test_sandbox.py"]);
}

#[test]
fn javascript_newest() {
    javascript("2.51.0", "sandbox.mjs");
}

#[test]
fn javascript_2_50() {
    javascript("2.50.0", "sandbox.mjs");
}

#[test]
fn javascript_2_45() {
    javascript("2.45.0", "sandbox.mjs");
}

#[test]
fn volumes_python_newest() {
    python("2.63.0", &["test_volume.py"]);
}

#[test]
fn volumes_javascript_newest() {
    javascript("2.51.0", "volume.mjs");
}

#[test]
fn javascript_binary_codec() {
    let house = House::open(DEN);
    let root = sdk("binary-js-2.51.0");
    ran(command(&house, Path::new("node")).env("DEN_E2B_SDK", root).args(["--test", "binary.mjs"]));
    house.close();
}

#[test]
fn templates_python_newest() {
    python("2.63.0", &["test_template.py"]);
}

#[test]
fn templates_python_2_50() {
    python("2.50.0", &["test_template.py"]);
}

#[test]
fn templates_python_2_45() {
    python("2.45.0", &["test_template.py"]);
}

#[test]
fn templates_javascript_newest() {
    javascript("2.51.0", "template.mjs");
}

#[test]
fn templates_javascript_2_50() {
    javascript("2.50.0", "template.mjs");
}

#[test]
fn templates_javascript_2_45() {
    javascript("2.45.0", "template.mjs");
}

/// A house that can copy what runs.
fn with_criu() -> House {
    House::with(DEN, criu())
}

fn criu() -> Options {
    assert!(Path::new(CRIU).is_file(), "no {CRIU}: `cargo xtask test` fetches it");
    Options { args: vec!["--criu".to_owned(), CRIU.to_owned()], ..Options::default() }
}

#[test]
fn forks_python_newest() {
    python_in(with_criu(), "2.63.0", &["test_fork.py"]);
}

#[test]
fn forks_python_2_50() {
    python_in(with_criu(), "2.50.0", &["test_fork.py"]);
}

#[test]
fn forks_javascript_newest() {
    javascript_in(with_criu(), "2.51.0", "fork.mjs");
}

/// A request of the control plane: status and body.
fn ask(house: &House, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let key = key(house);
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let reply = house.api().request(method, path, &[("x-api-key", &key)], text.as_bytes());
    let body = if reply.body.is_empty() { Value::Null } else { reply.json() };
    (reply.status, body)
}

fn create(house: &House, timeout: u32) -> String {
    let (status, body) = ask(house, "POST", "/v2/sandboxes", &json!({ "templateID": "base", "timeout": timeout }));
    assert_eq!(status, 201, "{body}");
    body["sandboxID"].as_str().expect("an id").to_owned()
}

fn ids(house: &House) -> Vec<String> {
    let (status, body) = ask(house, "GET", "/v2/sandboxes", &Value::Null);
    assert_eq!(status, 200, "{body}");
    let items = body.as_array().expect("a list").iter();
    let mut ids: Vec<String> = items.map(|one| one["sandboxID"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    ids
}

fn computers(house: &House) -> Vec<String> {
    let listed = house.json(&["ls"]);
    let items = listed.as_array().or_else(|| listed["items"].as_array()).expect("a list").iter();
    let mut names: Vec<String> = items.map(|one| one["name"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

fn exec(house: &House, id: &str, script: &str) -> Ran {
    house.den(&["exec", id, "--", "sh", "-c", script])
}

#[test]
fn javascript_the_command_line_works() {
    let house = House::open(DEN);
    let id = create(&house, 600);
    let program = sdk("cli-2.19.0").join("node_modules/.bin/e2b");
    let said = |words: &[&str]| {
        let ran = command(&house, &program).args(words).env("HOME", house.scratch()).output().expect("a program");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(ran.status.success(), "{words:?}: {}\n{}", text(&ran.stdout), text(&ran.stderr));
        text(&ran.stdout)
    };
    let listed = |words: &[&str], field: &str, wanted: &str| {
        let all: Value = serde_json::from_str(&said(words)).expect("JSON");
        assert!(all.as_array().expect("a list").iter().any(|one| one[field] == wanted), "{words:?}: {all}");
    };
    listed(&["sandbox", "list", "--format", "json"], "sandboxId", &id);
    assert!(said(&["sandbox", "info", &id]).contains("State: running"));
    assert_eq!(said(&["sandbox", "exec", &id, "whoami"]), "user");
    assert!(said(&["sandbox", "logs", &id, "--format", "json"]).contains("whoami"));
    assert!(said(&["sandbox", "logs", &id]).contains("whoami"));
    listed(&["template", "list", "--format", "json"], "buildStatus", "ready");
    assert!(said(&["sandbox", "pause", &id]).contains("paused"));
    listed(&["sandbox", "list", "--state", "paused", "--format", "json"], "sandboxId", &id);
    assert!(said(&["sandbox", "resume", &id]).contains("resumed"));
    assert!(said(&["sandbox", "kill", &id]).contains("killed"));
    assert_eq!(ids(&house), Vec::<String>::new());
    said(&["sandbox", "kill", &id]); // It says on standard error that there is none.
    house.close();
}

#[test]
fn sandboxes_outlive_the_daemon() {
    let mut house = House::open(DEN);
    let (kept, short, paused) = (create(&house, 600), create(&house, 600), create(&house, 600));
    exec(&house, &kept, "echo x > /root/kept").ok();
    assert_eq!(ask(&house, "POST", &format!("/sandboxes/{paused}/pause"), &json!({})).0, 204);
    let (_, before) = ask(&house, "GET", &format!("/sandboxes/{kept}"), &Value::Null);
    assert_eq!(ask(&house, "POST", &format!("/sandboxes/{short}/timeout"), &json!({ "timeout": 1 })).0, 204);
    house.kill_serve();
    house.start();
    let (status, after) = ask(&house, "GET", &format!("/sandboxes/{kept}"), &Value::Null);
    assert_eq!((status, &after), (200, &before), "its token, its end and all else are as they were");
    assert_eq!(exec(&house, &kept, "cat /root/kept").ok(), "x");
    let (_, view) = ask(&house, "GET", &format!("/sandboxes/{paused}"), &Value::Null);
    assert_eq!(view["state"], "paused");
    eventually(Duration::from_secs(20), "its time is up", || !ids(&house).contains(&short));
    eventually(Duration::from_secs(20), "its computer goes with it", || !computers(&house).contains(&short));
    assert_eq!(ask(&house, "POST", &format!("/v2/sandboxes/{paused}/connect"), &json!({ "timeout": 60 })).0, 201);
    house.close();
}

#[test]
fn a_crash_leaves_whole_sandboxes_or_none() {
    let key_before = std::cell::RefCell::new(String::new());
    at_each_point(
        DEN,
        &["e2b.create.computer", "e2b.create.fact", "e2b.pause.computer", "e2b.kill.computer"],
        |house| *key_before.borrow_mut() = key(house),
        |house| {
            for id in ids(house) {
                assert_eq!(ask(house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
            }
            create(house, 600);
        },
        |house| {
            let id = ids(house).pop().expect("one");
            // Each breaks off at another point; the answers never come.
            let key = key(house);
            let headers = [("x-api-key", key.as_str())];
            for (method, path) in [
                ("POST", "/v2/sandboxes".to_owned()),
                ("POST", format!("/sandboxes/{id}/pause")),
                ("DELETE", format!("/sandboxes/{id}")),
            ] {
                if house.api().open(method, &path, &headers, b"").is_err() {
                    return;
                }
            }
        },
        |house, when, _| {
            assert_eq!(key(house), *key_before.borrow(), "{when}: the key stays");
            assert_eq!(ids(house), computers(house), "{when}: a sandbox is a computer, and the other way round");
            for id in ids(house) {
                let (status, view) = ask(house, "GET", &format!("/sandboxes/{id}"), &Value::Null);
                assert_eq!(status, 200, "{when}");
                let (status, _) = ask(house, "POST", &format!("/v2/sandboxes/{id}/connect"), &json!({ "timeout": 60 }));
                assert!(matches!(status, 200 | 201), "{when}: {view}");
                assert_eq!(exec(house, &id, "echo here").ok(), "here", "{when}");
            }
        },
    );
}

#[test]
fn a_crash_while_a_fork_goes_on_leaves_whole_sandboxes_or_none() {
    at_each_point_with(
        DEN,
        &criu(),
        &["copy.dumped", "fork.state", "revive.goes_on", "e2b.create.computer", "e2b.create.fact"],
        |_| {},
        |house| {
            for id in ids(house) {
                assert_eq!(ask(house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
            }
            let id = create(house, 600);
            house.den(&["exec", &id, "-d", "--", "sleep", "1000"]).ok();
        },
        |house| {
            let (id, key) = (ids(house).pop().expect("one"), key(house));
            let path = format!("/sandboxes/{id}/fork");
            let answer = house.api().open("POST", &path, &[("x-api-key", key.as_str())], b"{}");
            assert!(answer.is_err(), "it broke off");
        },
        |house, when, _| {
            assert_eq!(ids(house), computers(house), "{when}: a sandbox is a computer, and the other way round");
            for id in ids(house) {
                let (status, _) = ask(house, "POST", &format!("/v2/sandboxes/{id}/connect"), &json!({ "timeout": 60 }));
                assert!(matches!(status, 200 | 201), "{when}");
                assert_eq!(exec(house, &id, "pgrep -c sleep").ok(), "1", "{when}: what ran goes on");
            }
        },
    );
}

#[test]
fn what_only_looks_like_a_sandbox_outlives_the_daemon() {
    let mut house = House::open(DEN);
    let id = create(&house, 600);
    exec(&house, &id, "echo x > /root/kept").ok();
    house.den(&["fork", &id, "copy"]).ok();
    house.den(&["new", "mine", "--label", "e2b=sandbox"]).ok();
    let (before, all) = (ids(&house), computers(&house));
    assert_eq!((before.len(), all.len()), (1, 3));
    for _ in 0..2 {
        house.kill_serve();
        house.start();
        assert_eq!((ids(&house), computers(&house)), (before.clone(), all.clone()));
        assert_eq!(exec(&house, "copy", "cat /root/kept").ok(), "x");
    }
    // The same after its parent is gone.
    assert_eq!(ask(&house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
    house.kill_serve();
    house.start();
    assert_eq!(computers(&house), ["copy", "mine"]);
    house.close();
}

#[test]
fn the_trash_keeps_a_sandbox_whose_time_is_up() {
    let mut house = House::with(DEN, Options { trash_for: Some("24h".to_owned()), ..Options::default() });
    for restarted in [false, true] {
        let id = create(&house, 600);
        exec(&house, &id, "echo x > /root/kept").ok();
        assert_eq!(ask(&house, "POST", &format!("/sandboxes/{id}/timeout"), &json!({ "timeout": 6 })).0, 204);
        house.den(&["rm", &id]).ok();
        eventually(Duration::from_secs(20), "it is not listed", || !ids(&house).contains(&id));
        assert_eq!(ask(&house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 404);
        // Its time passes while it lies there.
        std::thread::sleep(Duration::from_secs(7));
        if restarted {
            house.kill_serve();
            house.start();
        }
        house.den(&["undo", &id]).ok();
        eventually(Duration::from_secs(20), "it is found again", || ids(&house).contains(&id));
        let running = || ask(&house, "GET", &format!("/sandboxes/{id}"), &Value::Null).1["state"] == "running";
        eventually(Duration::from_secs(20), "it runs as its computer does", running);
        let connected = ask(&house, "POST", &format!("/v2/sandboxes/{id}/connect"), &json!({ "timeout": 600 }));
        assert_eq!(connected.0, 200, "{}", connected.1);
        assert_eq!(exec(&house, &id, "cat /root/kept").ok(), "x");
        house.kill_serve();
        house.start();
        assert!(ids(&house).contains(&id), "it is a sandbox as before");
    }
    house.close();
}

#[test]
fn what_others_do_to_its_computer_is_seen() {
    let house = House::open(DEN);
    let id = create(&house, 600);
    let state = || ask(&house, "GET", &format!("/sandboxes/{id}"), &Value::Null).1["state"].clone();
    house.den(&["stop", &id]).ok();
    eventually(Duration::from_secs(20), "it is paused", || state() == "paused");
    house.den(&["start", &id]).ok();
    eventually(Duration::from_secs(20), "it runs again", || state() == "running");
    house.den(&["pause", &id]).ok();
    eventually(Duration::from_secs(20), "it is paused", || state() == "paused");
    let (status, _) = ask(&house, "POST", &format!("/v2/sandboxes/{id}/connect"), &json!({ "timeout": 60 }));
    assert_eq!((status, state()), (201, json!("running")));
    house.close();
}

#[test]
fn one_that_sleeps_runs_and_can_be_paused() {
    let house = House::open(DEN);
    let id = create(&house, 600);
    let state = || ask(&house, "GET", &format!("/sandboxes/{id}"), &Value::Null).1["state"].clone();
    house.den(&["idle", &id, "1s"]).ok();
    let asleep = || house.den(&["ls", "--json"]).ok().contains(r#""asleep":true"#);
    eventually(Duration::from_secs(60), "it sleeps", asleep);
    // Longer than the next look at it.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(state(), "running", "a request wakes it");
    assert_eq!(ask(&house, "POST", &format!("/sandboxes/{id}/pause"), &json!({})).0, 204);
    assert_eq!(state(), "paused");
    let (status, _) = ask(&house, "POST", &format!("/v2/sandboxes/{id}/connect"), &json!({ "timeout": 60 }));
    assert_eq!((status, state()), (201, json!("running")));
    house.close();
}

#[test]
fn evidence_outlives_its_time() {
    let house = House::open(DEN);
    let id = create(&house, 600);
    exec(&house, &id, "echo x > /root/kept").ok();
    assert_eq!(ask(&house, "POST", &format!("/sandboxes/{id}/timeout"), &json!({ "timeout": 4 })).0, 204);
    house.den(&["unplug", &id]).ok();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((computers(&house).len(), ids(&house).len()), (1, 1), "it is there");
    let connect = || ask(&house, "POST", &format!("/v2/sandboxes/{id}/connect"), &json!({ "timeout": 60 })).0;
    assert!((400..500).contains(&connect()), "it stays cut off");
    house.den(&["replug", &id]).ok();
    // One that runs on has no time left but what a look at it gives, or a connect.
    assert!(matches!(connect(), 200 | 201));
    assert_eq!(exec(&house, &id, "cat /root/kept").ok(), "x");
    house.close();
}

#[test]
fn one_key_is_one_sandbox() {
    let house = House::open(DEN);
    let (key, api) = (key(&house), house.api());
    let headers = [("x-api-key", key.as_str()), ("idempotency-key", "once")];
    let made = || api.request("POST", "/v2/sandboxes", &headers, br#"{"templateID":"base","timeout":600}"#);
    let replies: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..6).map(|_| scope.spawn(made)).collect();
        all.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    for reply in &replies {
        assert_eq!((reply.status, &reply.json()), (201, &replies[0].json()), "{}", reply.text());
    }
    assert_eq!(computers(&house).len(), 1);
    house.close();
}

/// What a crash at each of these points leaves of a snapshot that takes the place of another, in which something `runs`.
fn crashes_of_a_snapshot(options: &Options, points: &[&str], runs: bool) {
    let take =
        |house: &House, id: &str| ask(house, "POST", &format!("/sandboxes/{id}/snapshots"), &json!({"name": "x"}));
    at_each_point_with(
        DEN,
        options,
        points,
        |house| {
            let id = create(house, 3600);
            if runs {
                house.den(&["exec", &id, "-d", "--", "sleep", "1000"]).ok();
            }
            assert_eq!(take(house, &id).0, 201);
        },
        |house| {
            let id = ids(house).pop().expect("one");
            let (status, _) = ask(house, "POST", &format!("/v2/sandboxes/{id}/connect"), &json!({ "timeout": 3600 }));
            assert!(matches!(status, 200 | 201));
        },
        |house| {
            let (id, key) = (ids(house).pop().expect("one"), key(house));
            let path = format!("/sandboxes/{id}/snapshots");
            let answer = house.api().open("POST", &path, &[("x-api-key", key.as_str())], br#"{"name":"x"}"#);
            assert!(answer.is_err(), "it broke off");
        },
        |house, when, _| {
            let (status, list) = ask(house, "GET", "/snapshots", &Value::Null);
            assert_eq!((status, list.as_array().map(Vec::len)), (200, Some(1)), "{when}");
            assert_eq!(
                (ids(house).len(), computers(house).len()),
                (1, 2),
                "{when}: a sandbox and what holds the snapshot"
            );
            let new = json!({ "templateID": "x", "timeout": 60, "allow_internet_access": false });
            let (status, body) = ask(house, "POST", "/v2/sandboxes", &new);
            assert_eq!(status, 201, "{when}: {body}");
            let id = body["sandboxID"].as_str().expect("an id");
            assert_eq!(house.json(&["net", id])["posture"], "sealed", "{when}: its own policy, not its parent's");
            if runs {
                assert_eq!(exec(house, id, "pgrep -c sleep").ok(), "1", "{when}: what ran goes on");
            }
            assert_eq!(ask(house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
        },
    );
}

#[test]
fn a_crash_leaves_no_disk_of_a_snapshot() {
    crashes_of_a_snapshot(&Options::default(), &["e2b.create.computer", "e2b.snapshot.fact"], false);
}

#[test]
fn a_crash_leaves_no_memory_of_a_snapshot() {
    let points = ["copy.dumped", "fork.state", "e2b.create.computer", "e2b.snapshot.fact"];
    crashes_of_a_snapshot(&criu(), &points, true);
}

/// Begins a build of one command, by hand: the paths of its template and of itself.
fn begin_build(house: &House, name: &str, run: &str) -> (String, String) {
    let (status, made) = ask(house, "POST", "/v3/templates", &json!({ "name": name }));
    assert_eq!(status, 202, "{made}");
    let id = |key: &str| made[key].as_str().expect("an id").to_owned();
    let path = format!("/templates/{}/builds/{}", id("templateID"), id("buildID"));
    let plan = json!({ "fromImage": "base", "steps": [{ "type": "RUN", "args": [run] }] });
    assert_eq!(ask(house, "POST", &format!("/v2{path}"), &plan).0, 202);
    assert_eq!(ask(house, "POST", &format!("/v2{path}"), &plan).0, 400, "it is begun once");
    (format!("/templates/{}", id("templateID")), path)
}

fn build_status(house: &House, path: &str) -> Value {
    let (status, view) = ask(house, "GET", &format!("{path}/status"), &Value::Null);
    assert_eq!(status, 200, "{view}");
    view
}

#[test]
fn a_build_ends_with_the_daemon_and_a_template_does_not() {
    let mut house = House::open(DEN);
    let (_, path) = begin_build(&house, "whole", "echo x > ~/kept");
    eventually(Duration::from_secs(60), "it is built", || build_status(&house, &path)["status"] == "ready");
    for told in [false, true] {
        let (template, path) = begin_build(&house, "broken", "echo it goes on; sleep 600");
        let goes_on = || build_status(&house, &path)["logEntries"].to_string().contains("it goes on\"");
        eventually(Duration::from_secs(60), "it goes on", goes_on);
        assert_eq!(computers(&house).len(), 2);
        assert_eq!(ask(&house, "DELETE", &template, &Value::Null).0, 409, "while it goes on");
        if told {
            let pid = house.serve_pid().expect("a serve runs").to_string();
            assert!(Command::new("kill").arg(pid).status().expect("kill").success());
            house.wait_serve_dead();
        } else {
            house.kill_serve();
        }
        house.start();
        let status = build_status(&house, &path);
        assert_eq!(status["status"], "error", "{status}");
        assert!(status["reason"]["message"].as_str().is_some_and(|why| why.contains("started again")), "{status}");
        assert_eq!(computers(&house).len(), 1, "its builder is gone");
    }
    let (status, sandbox) = ask(&house, "POST", "/v2/sandboxes", &json!({ "templateID": "whole", "timeout": 60 }));
    assert_eq!(status, 201, "{sandbox}");
    let id = sandbox["sandboxID"].as_str().expect("an id");
    assert_eq!(exec(&house, id, "cat /home/user/kept").ok(), "x");
    assert_eq!(ask(&house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
    // Without its computer it is no template until it is built again.
    house.den(&["rm", &computers(&house)[0]]).ok();
    let create = || ask(&house, "POST", "/v2/sandboxes", &json!({ "templateID": "whole", "timeout": 60 })).0;
    assert_eq!(create(), 404);
    let (_, path) = begin_build(&house, "whole", "echo x > ~/kept");
    eventually(Duration::from_secs(60), "it is built", || build_status(&house, &path)["status"] == "ready");
    assert_eq!(create(), 201);
    for id in ids(&house) {
        assert_eq!(ask(&house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
    }
    for name in ["whole", "broken"] {
        assert_eq!(ask(&house, "DELETE", &format!("/templates/{name}"), &Value::Null).0, 204);
        assert_eq!(ask(&house, "GET", &format!("/templates/{name}"), &Value::Null).0, 404);
    }
    assert_eq!(computers(&house), Vec::<String>::new());
    house.close();
}

#[test]
fn a_crash_leaves_no_computer_of_a_build() {
    at_each_point(
        DEN,
        &["e2b.build.builder", "e2b.build.kept", "e2b.build.fact"],
        |_| {},
        |house| {
            // What the point before has left.
            let (status, _) = ask(house, "DELETE", "/templates/x", &Value::Null);
            assert!(matches!(status, 204 | 404), "{status}");
            assert_eq!(computers(house), Vec::<String>::new());
        },
        |house| {
            let (status, made) = ask(house, "POST", "/v3/templates", &json!({ "name": "x" }));
            assert_eq!(status, 202, "{made}");
            let id = |name: &str| made[name].as_str().expect("an id").to_owned();
            let path = format!("/v2/templates/{}/builds/{}", id("templateID"), id("buildID"));
            let plan = json!({ "fromImage": "base", "steps": [{ "type": "RUN", "args": ["echo x > ~/kept"] }] });
            // Whether it is answered before the daemon dies is a matter of luck.
            drop(house.api().open("POST", &path, &[("x-api-key", &key(house))], plan.to_string().as_bytes()));
        },
        |house, when, _| {
            let (status, view) = ask(house, "GET", "/templates/x", &Value::Null);
            assert_eq!(status, 200, "{when}");
            let is_ready = view["buildStatus"] == "ready";
            assert_eq!(is_ready, !when.starts_with("e2b.build.builder"), "{when}: {view}");
            assert_eq!(computers(house).len(), usize::from(is_ready), "{when}");
            let (status, body) = ask(house, "POST", "/v2/sandboxes", &json!({ "templateID": "x", "timeout": 60 }));
            assert_eq!(status, if is_ready { 201 } else { 404 }, "{when}: {body}");
            if let Some(id) = body["sandboxID"].as_str() {
                assert_eq!(exec(house, id, "cat /home/user/kept").ok(), "x", "{when}");
                assert_eq!(ask(house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
            }
        },
    );
}

#[test]
fn what_a_process_does_not_read_waits_up_to_a_limit() {
    let house = House::open(DEN);
    let id = create(&house, 600);
    let (_, view) = ask(&house, "GET", &format!("/sandboxes/{id}"), &Value::Null);
    let token = view["envdAccessToken"].as_str().expect("a token").to_owned();
    let headers = |kind| {
        let (id, token) = (id.as_str(), token.as_str());
        [("e2b-sandbox-id", id), ("e2b-sandbox-port", "49983"), ("x-access-token", token), ("content-type", kind)]
    };
    let message = json!({ "process": { "cmd": "sleep", "args": ["1000"] }, "stdin": true, "tag": "t" }).to_string();
    let length = u32::try_from(message.len()).expect("it is short");
    let start = [&[0][..], &length.to_be_bytes(), message.as_bytes()].concat();
    let api = house.api();
    let started = api.open("POST", "/process.Process/Start", &headers("application/connect+json"), &start);
    let started = started.expect("it has begun");
    assert_eq!(started.status, 200);
    let text = "A".repeat(4 << 20);
    let input = json!({ "process": { "tag": "t" }, "input": { "stdin": text } }).to_string();
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        for _ in 0..12 {
            let (tell, api, input, headers) = (tell.clone(), &api, &input, headers("application/json"));
            scope.spawn(move || {
                let answer = api.open("POST", "/process.Process/SendInput", &headers, input.as_bytes());
                drop(tell.send(answer.map(|answer| answer.status)));
            });
        }
        // The rest waits for as long as the sandbox runs.
        for _ in 0..4 {
            let answer = told.recv_timeout(Duration::from_secs(60)).expect("an answer");
            assert_eq!(answer.expect("a status"), 429);
        }
        assert_eq!(ask(&house, "DELETE", &format!("/sandboxes/{id}"), &Value::Null).0, 204);
        let rest: Vec<_> = told.iter().take(8).collect();
        assert!(rest.iter().all(|answer| !matches!(answer, Ok(200 | 429))), "{rest:?}");
    });
    house.close();
}

#[test]
fn no_input_is_answered_by_a_500() {
    let house = House::open(DEN);
    let id = create(&house, 600);
    let (key, api) = (key(&house), house.api());
    let check = |method: &str, path: &str, body: &[u8], headers: &[(&str, &str)]| {
        let reply = api.request(method, path, headers, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert!(
            reply.status < 500 || reply.status == 501,
            "{method} {path} {shown}: {} {}",
            reply.status,
            reply.text()
        );
        reply
    };
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\"x\"",
        b"{\"timeout\":-1,\"count\":-1,\"duration\":-1}",
        b"{\"timeout\":9223372036854775807,\"count\":9223372036854775807,\"duration\":99999}",
        b"{\"templateID\":\"\\u0000\",\"timeout\":\"x\",\"metadata\":{\"a\":1},\"network\":7,\"name\":\"::\"}",
        b"\xff\xfe",
    ];
    let with_key = [("x-api-key", key.as_str())];
    for path in ["timeout", "refreshes", "pause", "resume", "connect", "fork", "snapshots", "nothing"] {
        for body in bodies {
            for id in [id.as_str(), "inone", "%00", "..", "%ff"] {
                // What is sound may be done; then it is undone.
                if (path == "pause" || path == "fork" || path == "snapshots") && body.len() < 6 && id.starts_with('i') {
                    continue;
                }
                check("POST", &format!("/sandboxes/{id}/{path}"), body, &with_key);
            }
        }
    }
    let id = create(&house, 600);
    for body in &bodies[1..] {
        check("POST", "/sandboxes", body, &with_key);
        check("POST", "/v2/sandboxes", body, &with_key);
        check("PUT", &format!("/sandboxes/{id}/network"), body, &with_key);
        check("POST", "/v3/templates", body, &with_key);
        check("POST", "/templates/tags", body, &with_key);
        check("DELETE", "/templates/tags", body, &with_key);
        check("PATCH", "/v2/templates/base", body, &with_key);
        check("POST", "/v2/templates/base/builds/none", body, &with_key);
        check("PUT", "/templates/t1/uploads/none?until=x&signature=%00", body, &[]);
    }
    for path in ["files/none", "files/%00", "builds/none/status?logsOffset=x", "builds/%ff/logs?cursor=x"] {
        check("GET", &format!("/templates/base/{path}"), b"", &with_key);
    }
    for path in [
        "/v2/sandboxes?limit=x",
        "/v2/sandboxes?nextToken=%ff%00",
        "/v2/sandboxes?metadata=%zz%",
        "/v2/sandboxes?startedAfter=9999999999999",
        "/v2/sandboxes?template=%00",
        "/sandboxes/metrics",
        "/snapshots?limit=0",
        "/templates/%00",
        "/templates/aliases/a%2Fb%3Ac",
        "/volumes",
        "/secrets",
        "/nodes",
    ] {
        check("GET", path, b"", &with_key);
    }
    assert_eq!(check("GET", "/v2/sandboxes", b"", &[]).status, 401);
    let (_, view) = ask(&house, "GET", &format!("/sandboxes/{id}"), &Value::Null);
    let token = view["envdAccessToken"].as_str().expect("a token").to_owned();
    let data = [("e2b-sandbox-id", id.as_str()), ("e2b-sandbox-port", "49983"), ("x-access-token", token.as_str())];
    let calls = [
        "process.Process/Start",
        "process.Process/Connect",
        "process.Process/List",
        "process.Process/SendInput",
        "process.Process/StreamInput",
        "process.Process/SendSignal",
        "process.Process/Update",
        "process.Process/CloseStdin",
        "process.Process/None",
        "filesystem.Filesystem/Stat",
        "filesystem.Filesystem/ListDir",
        "filesystem.Filesystem/MakeDir",
        "filesystem.Filesystem/Move",
        "filesystem.Filesystem/WatchDir",
        "filesystem.Filesystem/CreateWatcher",
        "filesystem.Filesystem/GetWatcherEvents",
        "none.None/None",
    ];
    let messages: [&[u8]; 9] = [
        b"",
        b"\x0a\x02\x08\x01\x12\x02\x0a\x00",
        b"\x00\x00\x00\x00\x03\x0a\xff\xff",
        b"{",
        b"{}",
        b"{\"process\":{\"pid\":1},\"input\":{\"stdin\":\"%\"},\"signal\":7,\"path\":\"\\u0000\",\"watcherId\":\"x\"}",
        b"{\"process\":{\"cmd\":\"\",\"args\":[\"\\u0000\"]},\"source\":\"/no\",\"destination\":\"\",\"path\":\"/no\"}",
        b"\x00\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x03{}",
    ];
    for call in calls {
        for kind in
            ["application/json", "application/connect+json", "application/proto", "application/connect+proto", ""]
        {
            for message in messages {
                let headers = [&data[..], &[("content-type", kind)]].concat();
                check("POST", &format!("/{call}"), message, &headers);
            }
        }
    }
    for path in [
        "/files",
        "/files?path=%00",
        "/files?path=/no",
        "/files?path=/",
        "/files/compose",
        "/envs",
        "/metrics",
        "/none",
    ] {
        check("GET", path, b"", &data);
        for kind in ["application/octet-stream", "multipart/form-data", "multipart/form-data; boundary=x", "text/x"] {
            let headers = [&data[..], &[("content-type", kind)]].concat();
            check("POST", path, b"--x\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n", &headers);
        }
    }
    let without = [("e2b-sandbox-id", id.as_str()), ("e2b-sandbox-port", "49983")];
    assert_eq!(check("GET", "/envs", b"", &without).status, 401);
    assert_eq!(check("GET", "/files?path=/etc/passwd", b"", &without).status, 401);
    assert_eq!(check("GET", "/health", b"", &without[..1]).status, 400);
    house.close();
}
