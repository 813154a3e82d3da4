//! The command line: texts, codes, JSON, and what it says where no daemon runs.

use std::process::Command;

use den_testkit::House;
use serde_json::Value;

const DEN: &str = env!("CARGO_BIN_EXE_den");

/// Without a daemon and without any environment that names one.
fn alone(args: &[&str]) -> (i32, String, String) {
    let folder = tempfile::Builder::new().prefix("den-cli-").tempdir().expect("a folder");
    let output = Command::new(DEN)
        .args(args)
        .env_clear()
        .env("HOME", folder.path())
        .env("DEN_DATA", folder.path().join("none"))
        .output()
        .expect("the CLI starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("a code"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn without_a_daemon_it_says_how_to_get_one() {
    for args in [
        &["ls"][..],
        &["new", "web"],
        &["exec", "web", "--", "true"],
        &["info", "web"],
        &["image", "ls"],
        &["shutdown"],
        &["bench"],
    ] {
        let (code, stdout, stderr) = alone(args);
        assert_eq!((code, stdout.as_str()), (1, ""), "{args:?}: {stderr}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains("hint: ") && stderr.contains("den serve"),
            "{args:?}: {stderr}"
        );
        assert!(!stderr.contains('\u{1b}'), "no colour: {stderr:?}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [
        &["nonsense"][..],
        &["exec"],
        &["exec", "web"],
        &["rm"],
        &["cp", "x"],
        &["new", "a", "b"],
        &["bench", "nonsense"],
        &["ls", "--nonsense"],
    ] {
        let (code, _, stderr) = alone(args);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(!stderr.is_empty());
    }
}

#[test]
fn help_is_short_and_whole() {
    let (code, help, _) = alone(&["--help"]);
    assert_eq!(code, 0);
    for word in [
        "serve", "new", "ls", "info", "rm", "exec", "sh", "cp", "log", "attach", "net", "stop", "start", "pause",
        "resume", "unplug", "replug", "service", "trash", "undo", "events", "top", "image", "doctor", "bench", "snap",
        "snaps", "fork", "resize", "pool", "backup", "e2b", "diff", "merge", "restore", "explore", "blame", "cat",
        "tree", "grep", "stat",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(word)), "`{word}` in {help}");
        let (code, text, stderr) = alone(&[word, "--help"]);
        assert_eq!(code, 0, "{word}: {stderr}");
        assert!(text.lines().count() <= 70, "{word}: {} lines", text.lines().count());
    }
    assert!(help.lines().count() <= 70, "{} lines", help.lines().count());
    for shell in ["bash", "zsh", "fish"] {
        let (code, text, _) = alone(&["completions", shell]);
        assert!(code == 0 && text.contains("den") && text.contains("exec"), "{shell}");
    }
    let (code, version, _) = alone(&["--version"]);
    assert!(code == 0 && version.starts_with("den "), "{version}");
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let folder = tempfile::Builder::new().prefix("den-cli-").tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    let config = folder.path().join("den.toml");
    std::fs::write(&config, "lisen = \"127.0.0.1:0\"\n").expect("a file");
    let path = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let check = |args: &[&str], words: &str| {
        let mut all = vec!["serve"];
        all.extend(args);
        let (code, stdout, stderr) = alone(&all);
        assert!(code == 1 || code == 2, "{args:?}: {code}: {stdout}{stderr}");
        assert!(stderr.contains("error:") && stderr.contains(words), "{args:?}: wanted `{words}` in {stderr}");
    };
    let data = path(&folder.path().join("data"));
    let run = path(&folder.path().join("run"));
    check(&["--data", &path(&file), "--run", &run], "file");
    check(&["--data", &data, "--run", &run, "--listen", "nonsense"], "nonsense");
    check(&["--data", &data, "--run", &run, "--config", &path(&config)], "listen");
    check(&["--data", &data, "--run", &run, "--config", "/no/such/file"], "/no/such/file");
    check(&["--data", &data, "--run", &run, "--disk-size", "10ZB"], "10ZB");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    check(&["--data", &data, "--run", &run, "--listen", &address], &address);
    let left = den_testkit::leftovers(&folder.path().join("run"), &folder.path().join("data"));
    assert!(
        left.iter().all(|line| !line.starts_with("mount") && !line.starts_with("loop") && !line.starts_with("process")),
        "{left:?}"
    );
}

#[test]
fn json_is_one_value_with_the_fields_of_the_api() {
    let house = House::open(DEN);
    assert_eq!(house.den(&["ls"]).ok().lines().count(), 1, "an empty list says so in one line");
    let made = house.json(&["new", "web"]);
    assert_eq!(made["name"], "web");
    let api = house.api().get("/v1/computers/web?memory=true").expect(200).json();
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&house.json(&["info", "web"])), keys(&api));
    house.sh("web", "echo hello").ok();
    for words in [&["ls"][..], &["log", "web"], &["image", "ls"], &["image", "info", "base"], &["doctor"]] {
        let mut all = words.to_vec();
        all.push("--json");
        let ran = house.den(&all);
        for line in ran.stdout.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{words:?}: {e}: {line}"));
        }
        assert!(!ran.stdout.is_empty(), "{words:?}: {}", ran.stderr);
    }
    let plain = house.den(&["ls"]).ok();
    assert!(plain.contains("web") && plain.contains("running") && !plain.contains('\u{1b}'), "{plain}");
}

#[test]
fn refusals_say_what_to_do() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.den(&["new", "web"]).refused(1, "web");
    house.den(&["new", "UPPER"]).refused(1, "UPPER");
    house.den(&["new", "x", "--image", "no-such"]).refused(1, "hint: ");
    house.den(&["new", "x", "--memory", "10ZB"]).refused(1, "10ZB");
    house.den(&["new", "x", "--memory", "-1"]).refused(1, "-1");
    house.den(&["new", "x", "--vm"]).refused(1, "VM");
    house.den(&["info", "nobody"]).refused(1, "nobody");
    house.den(&["rm", "nobody"]).refused(1, "nobody");
    house.den(&["rm", "--force", "nobody"]).ok();
    house.den(&["exec", "nobody", "--", "true"]).refused(1, "nobody");
    house.den(&["stop", "nobody"]).refused(1, "nobody");
    house.den(&["log", "nobody"]).refused(1, "nobody");
    // A command of the user's may end with any code; ours is told from it by the words.
    house.den(&["exec", "web", "--", "sh", "-c", "exit 1"]).refused(1, "");
    // Removing several goes on after a refusal, and says it.
    house.new_computer("db");
    house.den(&["rm", "web", "nobody", "db"]).refused(1, "nobody");
    assert_eq!(house.den(&["ls", "--quiet"]).stdout.trim(), "");
}

#[test]
fn a_pipe_that_closes_is_no_error() {
    let house = House::open(DEN);
    house.new_computer("web");
    let script = format!("DEN_DATA={} {DEN} exec web -- seq 1 1000000 | head -n 1", house.data().display());
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
    assert_eq!(
        (String::from_utf8_lossy(&output.stdout).as_ref(), String::from_utf8_lossy(&output.stderr).as_ref()),
        ("1\n", "")
    );
}

#[test]
fn the_bench_prints_what_it_promises() {
    let house = House::open(DEN);
    let report = house.json(&["bench", "create", "exec", "remove", "--runs", "3"]);
    let names: Vec<&str> = report["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|row| row["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["create", "remove", "exec"]);
    for row in report["results"].as_array().expect("results") {
        assert_eq!(row["n"], 3, "{row}");
        assert!(row["min"].as_f64().is_some_and(|min| min > 0.0 && min <= row["p50"].as_f64().unwrap_or(0.0)), "{row}");
        assert!(row["p50"].as_f64() <= row["p99"].as_f64(), "{row}");
        assert!(row["rival"].is_null());
    }
    for field in ["cores", "memory_mib", "kernel", "storage", "page_cache"] {
        assert!(!report["machine"][field].is_null(), "{field}: {}", report["machine"]);
    }
    assert_eq!(house.den(&["ls", "--quiet"]).stdout.trim(), "", "it removes what it made");
}

#[test]
fn the_doctor_looks_at_this_host() {
    let (code, stdout, stderr) = alone(&["doctor"]);
    assert!(code == 0 || code == 1, "{stderr}");
    for word in ["kernel", "cgroup", "btrfs"] {
        assert!(stdout.to_lowercase().contains(word), "`{word}` in {stdout}");
    }
}
