//! States that are kept by themselves: after which steps, for how long, and what a crash leaves of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use den_testkit::{House, Options, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);

fn house(args: &[&str]) -> House {
    House::with(DEN, Options { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..Options::default() })
}

fn states(house: &House, name: &str) -> Vec<Value> {
    let list = house.api().get(&format!("/v1/computers/{name}/snapshots")).expect(200).json();
    list["items"].as_array().expect("items").clone()
}

fn step(house: &House, name: &str, number: u64) -> Value {
    house.api().get(&format!("/v1/computers/{name}/steps/{number}")).expect(200).json()
}

/// A step once it is known which state follows it: nobody waits for that to be written.
fn looked_at(house: &House, name: &str, number: u64) -> Value {
    eventually(LONG, "a state follows the step", || !step(house, name, number)["snapshot"].is_null());
    step(house, name, number)
}

fn snap(house: &House, name: &str, body: &Value) -> Value {
    house.api().post(&format!("/v1/computers/{name}/snapshots"), body).expect(200).json()
}

fn id(house: &House, name: &str) -> String {
    let view = house.api().get(&format!("/v1/computers/{name}")).expect(200).json();
    view["id"].as_str().expect("an id").to_owned()
}

/// The numbers of the folders of states, and of anything else that is there.
fn folders(house: &House, name: &str) -> BTreeSet<String> {
    let path = house.data().join("computers").join(id(house, name)).join("snapshots");
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Each state has its folder and each folder its state.
fn whole(house: &House, name: &str, when: &str) {
    eventually(LONG, &format!("{when}: folders are those of the list"), || {
        let listed: BTreeSet<_> = states(house, name).iter().map(|state| state["number"].to_string()).collect();
        folders(house, name) == listed
    });
}

/// What a file holds in a state.
fn read(house: &House, name: &str, number: u64, path: &str) -> Option<String> {
    let file = house.data().join("computers").join(id(house, name)).join(format!("snapshots/{number}/data"));
    std::fs::read_to_string(file.join(path)).ok()
}

fn counts(step: &Value) -> [u64; 3] {
    ["added", "changed", "removed"].map(|part| step["changes"][part].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn a_step_that_changed_something_is_followed_by_a_state_and_others_are_not() {
    let house = house(&[]);
    house.new_computer("web");
    house.sh("web", "touch /begin").ok();
    assert_eq!(looked_at(&house, "web", 1)["snapshot"], 1);
    house.sh("web", "cat /etc/os-release > /dev/null; ls -lR /usr/bin > /dev/null").ok();
    let reading = looked_at(&house, "web", 2);
    assert_eq!((&reading["snapshot"], counts(&reading)), (&json!(1), [0, 0, 0]), "{reading}");
    house.sh("web", "echo one > /a; mkdir /d").ok();
    house.sh("web", "cat /a; ls /d").ok();
    house.sh("web", "echo two > /a; rm -r /d").ok();
    house.sh("web", "true").ok();
    let kept = states(&house, "web");
    let kept: Vec<_> = kept.iter().filter(|state| state["kind"] == "auto").collect();
    assert_eq!(kept.iter().map(|state| state["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3, 5], "{kept:?}");
    assert!(kept.iter().all(|state| state["torn"].is_null() && state["frozen_us"].as_u64() > Some(0)), "{kept:?}");
    let numbers: Vec<_> = (3..=6).map(|number| looked_at(&house, "web", number)["snapshot"].as_u64()).collect();
    assert_eq!(numbers, [Some(2), Some(2), Some(3), Some(3)]);
    assert_eq!(read(&house, "web", 2, "a").as_deref(), Some("one\n"));
    assert_eq!(read(&house, "web", 3, "a").as_deref(), Some("two\n"));
    for (number, expected) in [(3, [2, 0, 0]), (4, [0, 0, 0]), (5, [0, 1, 1]), (6, [0, 0, 0])] {
        eventually(LONG, "it is known what the step changed", || !step(&house, "web", number)["changes"].is_null());
        let seen = step(&house, "web", number);
        assert_eq!(counts(&seen), expected, "{seen}");
    }
    // Touching, modes, attributes and links are changes; so is what comes through the file interface.
    let mut last = 3;
    for script in ["touch /a", "chmod 600 /a", "ln /a /b", "ln -s /a /c", "mv /c /e", "rm /e", "mkfifo /f"] {
        house.sh("web", script).ok();
        last += 1;
        let number = house.json(&["info", "web"])["last_step"].as_u64().expect("a step");
        assert_eq!(looked_at(&house, "web", number)["snapshot"], last, "{script}");
    }
    house.api().put("/v1/computers/web/files?path=/put", b"bytes").expect(200);
    eventually(LONG, "the write is followed by a state", || {
        states(&house, "web").last().is_some_and(|state| state["number"] == last + 1)
    });
    whole(&house, "web", "at the end");
}

#[test]
fn a_boot_is_no_change() {
    let house = house(&[]);
    // What a boot writes waits to be committed: it must not count as what the first step did.
    for round in 0..5 {
        let name = format!("new-{round}");
        house.new_computer(&name);
        house.sh(&name, "cat /etc/os-release > /dev/null").ok();
        let seen = looked_at(&house, &name, 1);
        assert_eq!((&seen["snapshot"], counts(&seen)), (&json!(0), [0, 0, 0]), "{seen}");
        assert_eq!(states(&house, &name), Vec::<Value>::new(), "{name}");
        house.sh(&name, "true").ok();
        assert_eq!(looked_at(&house, &name, 2)["snapshot"], 0);
    }
    // The least change counts, of what was there and of what was not.
    for (round, script) in
        ["touch /etc/hostname", "chmod 600 /etc/hosts", "rm /etc/mtab", "touch /x", "ln /etc/hosts /h"]
            .into_iter()
            .enumerate()
    {
        let name = format!("new-{round}");
        house.sh(&name, script).ok();
        assert_eq!(looked_at(&house, &name, 3)["snapshot"], 1, "{script}");
    }
    house.new_computer("web");
    house.sh("web", "touch -m -d @1 /etc/hostname").ok();
    assert_eq!(looked_at(&house, "web", 1)["snapshot"], 1, "a time is a change");
    // A fork, one that was taken back, and one that was stopped have booted too.
    house.den(&["fork", "web", "try"]).ok();
    house.sh("try", "true").ok();
    assert_eq!(looked_at(&house, "try", 1)["snapshot"], 0);
    house.sh("try", "touch /y").ok();
    assert_eq!(looked_at(&house, "try", 2)["snapshot"], 1);
    house.den(&["restore", "web@0"]).ok();
    house.sh("web", "true").ok();
    let last = house.json(&["info", "web"])["last_step"].as_u64().expect("a step");
    assert_eq!(looked_at(&house, "web", last)["snapshot"], 0);
    house.den(&["stop", "try"]).ok();
    house.den(&["start", "try"]).ok();
    house.sh("try", "true").ok();
    assert_eq!(looked_at(&house, "try", 3)["snapshot"], 1);
    for name in ["web", "try", "new-0", "new-4"] {
        whole(&house, name, "at the end");
    }
}

#[test]
fn with_sync_the_agent_writes_out_what_is_mounted_inside() {
    let house = house(&[]);
    house.new_computer("web");
    house.sh("web", "mkdir /m && mount -t tmpfs none /m; echo kept > /root/kept; echo lost > /m/lost").ok();
    let state = snap(&house, "web", &json!({"label": "written", "sync": true}));
    assert_eq!((&state["label"], &state["torn"]), (&json!("written"), &Value::Null), "{state}");
    assert_eq!(read(&house, "web", 1, "root/kept").as_deref(), Some("kept\n"));
    assert!(!house.log().contains("not written out by its agent"), "{}", house.log());
    assert_eq!(house.sh("web", "echo on > /root/on; cat /root/on").ok(), "on", "it goes on");
}

#[test]
fn a_state_gets_a_name_and_keeps_it() {
    let house = house(&[]);
    house.new_computer("web");
    let snaps = "/v1/computers/web/snapshots";
    house.sh("web", "echo one > /a").ok();
    let first = snap(&house, "web", &json!({"label": "first"}));
    assert_eq!((&first["number"], &first["kind"], &first["step"]), (&json!(1), &json!("named"), &json!(1)), "{first}");
    // The same disk again, under another name: another state.
    let again = snap(&house, "web", &json!({"label": "again", "sync": true}));
    assert_eq!(again["number"], 2, "{again}");
    house.api().post(snaps, &json!({"label": "first"})).refusal(409, "label_taken");
    for label in ["now", "12", "Upper", "-a", "a_b", ""] {
        house.api().post(snaps, &json!({"label": label})).refusal(400, "bad_state");
    }
    house.api().post("/v1/computers/nobody/snapshots", &json!({})).refusal(404, "computer_not_found");
    house.api().delete(&format!("{snaps}/now")).refusal(400, "bad_state");
    house.api().delete(&format!("{snaps}/0")).refusal(400, "bad_state");
    for none in ["77", "nothing", ".9"] {
        let refusal = house.api().delete(&format!("{snaps}/{none}")).refusal(404, "state_not_found");
        let message = refusal["message"].as_str().expect("a message");
        assert!(message.contains("first, again, and now"), "{message}");
    }
    house.api().delete(&format!("{snaps}/first")).expect(204);
    whole(&house, "web", "after one went");
    // Its name is free again, its number is not.
    house.sh("web", "echo two > /a").ok();
    house.api().delete(&format!("{snaps}/2")).expect(204);
    let next = snap(&house, "web", &json!({"label": "first"}));
    assert_eq!(next["number"], 4, "{next}");
    // A computer that does not run has states too.
    house.den(&["stop", "web"]).ok();
    let stopped = snap(&house, "web", &json!({"label": "stopped"}));
    assert_eq!((&stopped["frozen_us"], &stopped["torn"]), (&json!(0), &Value::Null), "{stopped}");
    let before = states(&house, "web");
    whole(&house, "web", "before the restart");
    let mut house = house;
    house.restart();
    assert_eq!(states(&house, "web"), before, "a restart forgets nothing");
    whole(&house, "web", "after the restart");
}

#[test]
fn old_states_go_and_named_ones_stay() {
    let house = house(&["--keep-states", "3"]);
    house.new_computer("web");
    house.sh("web", "echo 0 > /a").ok();
    snap(&house, "web", &json!({"label": "stays"}));
    for number in 1..=8 {
        house.sh("web", &format!("echo {number} > /a")).ok();
    }
    // The three newest, and of the older ones the newest of this hour (and of the one before, if it just began).
    eventually(LONG, "old states are let go", || {
        let numbers: Vec<_> = states(&house, "web").iter().map(|state| state["number"].as_u64().unwrap()).collect();
        let auto: Vec<_> = numbers.iter().filter(|&&number| number > 1).collect();
        numbers.contains(&1) && auto.ends_with(&[&7, &8, &9]) && auto.len() <= 5
    });
    whole(&house, "web", "after they went");
    assert!(house.log().contains("old states are let go"), "{}", house.log());
    assert_eq!(read(&house, "web", 1, "a").as_deref(), Some("0\n"));
}

#[test]
fn steps_that_run_at_once_all_have_a_state() {
    let house = house(&[]);
    house.new_computer("web");
    let numbers: Vec<u64> = (0..12)
        .map(|number| {
            let argv = json!(["sh", "-c", format!("sleep 0.{}; echo {number} > /f{number}", number % 4)]);
            let reply = house.api().post("/v1/computers/web/steps", &json!({"argv": argv, "detach": true}));
            reply.expect(202).json()["number"].as_u64().expect("a number")
        })
        .collect();
    for (file, number) in numbers.iter().enumerate() {
        let state = looked_at(&house, "web", *number)["snapshot"].as_u64().expect("a number");
        assert_eq!(read(&house, "web", state, &format!("f{file}")), Some(format!("{file}\n")), "state {state}");
    }
    whole(&house, "web", "at the end");
}

/// What is frozen, by the files of the kernel.
fn frozen(house: &House) -> Vec<String> {
    let hierarchies = den_sys::cgroup::Hierarchies::find().expect("hierarchies");
    let Some(unified) = hierarchies.unified else { return Vec::new() };
    let instance = unified.join(den_sys::cgroup::instance_of(house.run_dir()));
    let entries = std::fs::read_dir(&instance).into_iter().flatten().flatten();
    let is = |path: &Path| std::fs::read_to_string(path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1");
    entries.filter(|entry| is(&entry.path())).map(|entry| entry.path().display().to_string()).collect()
}

#[test]
fn a_daemon_that_is_killed_while_it_keeps_a_state_leaves_all_of_it_or_nothing() {
    let mut house = house(&[]);
    house.new_computer("web");
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
    for (round, point) in ["snapshot.frozen", "snapshot.taken", "snapshot.row"].into_iter().enumerate() {
        eprintln!("--- {point}");
        house.kill_serve();
        house.set_env(&[("DEN_FAILPOINT", point)]);
        house.start();
        let file = format!("r{round}");
        let argv = json!(["sh", "-c", format!("echo {round} > /{file}")]);
        // The answer may be lost with the daemon.
        let body = json!({"argv": argv}).to_string();
        let _ = house.api().open(
            "POST",
            "/v1/computers/web/steps",
            &[("content-type", "application/json")],
            body.as_bytes(),
        );
        house.wait_serve_dead();
        eventually(LONG, &format!("{point}: nothing is left frozen where no daemon is"), || frozen(&house).is_empty());
        house.set_env(&[]);
        house.start();
        let number = house.json(&["info", "web"])["last_step"].as_u64().expect("a step");
        let state = looked_at(&house, "web", number)["snapshot"].as_u64().expect("a number");
        assert_eq!(read(&house, "web", state, &file), Some(format!("{round}\n")), "{point}");
        whole(&house, "web", point);
        assert_eq!(house.sh("web", "pgrep -fx 'sleep 3000' | wc -l").ok(), "1", "{point}: the others go on");
    }
}

#[test]
fn a_disk_that_is_full_loses_its_oldest_states_and_goes_on() {
    let house = house(&[]);
    house.den(&["new", "web", "--memory", "1GiB", "--pids", "512", "--disk", "64MiB"]).ok();
    snap(&house, "web", &json!({"label": "clean"}));
    // Each writes a third of the disk anew: what the states hold is more than the disk is.
    for round in 0..8 {
        house.sh("web", &format!("rm -f /big; head -c 20M /dev/urandom > /big; echo {round} > /round"));
    }
    eventually(LONG, "states went to make room", || house.log().contains("the disk fills"));
    eventually(LONG, "there is room again", || house.sh("web", "rm -f /big; echo ok > /small && sync").code == 0);
    assert_eq!(house.sh("web", "cat /small").ok(), "ok");
    assert!(states(&house, "web").iter().any(|state| state["label"] == "clean"), "what has a name stays");
    whole(&house, "web", "at the end");
}

#[test]
fn a_computer_is_removed_while_a_state_of_it_is_kept() {
    let house = house(&[]);
    for round in 0..6 {
        house.new_computer("web");
        let argv = json!(["sh", "-c", "head -c 3M /dev/urandom > /a; for i in $(seq 200); do echo $i > /f$i; done"]);
        house.api().post("/v1/computers/web/steps", &json!({"argv": argv})).expect(200);
        std::thread::sleep(Duration::from_millis(round * 2));
        house.den(&["rm", "web"]).ok();
    }
    assert_eq!(house.disks(), Vec::<String>::new());
}

#[test]
fn on_plain_directories_states_are_kept_where_they_are_asked_for() {
    let house = house(&["--storage", "plain"]);
    house.new_computer("web");
    house.sh("web", "echo one > /a; ln /a /b; mknod /n c 1 3; rm /etc/motd; chown 7:8 /a").ok();
    assert_eq!(states(&house, "web"), Vec::<Value>::new());
    let first = snap(&house, "web", &json!({"label": "first"}));
    assert_eq!(first["number"], 1, "{first}");
    house.sh("web", "echo two > /a").ok();
    assert_eq!(read(&house, "web", 1, "a").as_deref(), Some("one\n"));
    assert_eq!(step(&house, "web", 2)["snapshot"], Value::Null);
    // Every command of history answers.
    for (words, says) in [
        (&["snaps", "web"][..], "web@first"),
        (&["diff", "web@first"], "~ /a"),
        (&["diff", "web@first", "web", "--text"], "+two"),
        (&["cat", "web@first", "/a"], "one"),
        (&["ls", "web@first", "/"], "a"),
        (&["grep", "web@first", "one", "/a"], "one"),
        (&["log", "web"], "echo two > /a"),
        (&["fork", "web@first", "try"], "try"),
        (&["exec", "try", "--", "sh", "-c", "rm /b && echo three > /a && cat /a"], "three"),
        (&["diff", "try"], "~ /a"),
    ] {
        let said = house.den(words).ok();
        assert!(said.contains(says), "{words:?}: {said}");
    }
    // Nothing was kept after the steps, so nobody knows which one it was.
    let blamed = house.den(&["blame", "web", "/a"]);
    assert!(blamed.code == 0 || blamed.stderr.contains("hint"), "{blamed:?}");
    house.den(&["merge", "try", "--theirs", "/a", "--theirs", "/b"]).ok();
    assert_eq!(house.sh("web", "cat /a; ls /b 2>&1").stdout.lines().next(), Some("three"));
    house.den(&["restore", "web@first"]).ok();
    assert_eq!(house.sh("web", "cat /b").ok(), "one");
    house.den(&["snaps", "rm", "web@first"]).ok();
    house.den(&["restore", "web@first"]).refused(1, "first");
    whole(&house, "web", "at the end");
}
