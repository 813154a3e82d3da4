//! The daemon and the launcher are killed, at any moment and at each named one; the next start leaves
//! a consistent house, and nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use den_testkit::{House, at_each_point, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);

const CREATE: [&str; 5] = ["create.reserved", "create.row", "create.disk", "create.booted", "create.state"];
const EXEC: [&str; 6] = ["exec.row", "exec.log", "exec.sent", "exec.started", "exec.told", "exec.ended"];
const STOP: [&str; 4] = ["stop.state", "stop.asked", "stop.killed", "stop.done"];
const START: [&str; 3] = ["start.state", "start.booted", "start.done"];
const REMOVE: [&str; 4] = ["remove.state", "remove.killed", "remove.disk", "remove.row"];

fn computers(house: &House) -> Vec<Value> {
    house.api().get("/v1/computers?limit=1000").expect(200).json()["items"].as_array().expect("items").clone()
}

/// What is listed has a disk, what has a disk is listed, and each thing listed works or can be made
/// to: run, stopped, started, removed.
fn consistent(house: &House, when: &str) {
    let listed: BTreeSet<String> =
        computers(house).iter().map(|computer| computer["id"].as_str().expect("an id").to_owned()).collect();
    eventually(LONG, &format!("{when}: disks are those of the list"), || {
        house.disks().into_iter().collect::<BTreeSet<_>>() == listed
    });
    for computer in computers(house) {
        let name = computer["name"].as_str().expect("a name");
        let state = computer["state"].as_str().expect("a state").to_owned();
        assert!(["running", "stopped", "failed"].contains(&state.as_str()), "{when}: `{name}` is {state}");
        if state != "running" {
            house.den(&["start", name]).ok();
        }
        assert_eq!(house.sh(name, "hostname").ok(), name, "{when}");
        let steps = house.api().get(&format!("/v1/computers/{name}/steps?limit=1000")).expect(200).json();
        for step in steps["items"].as_array().expect("items") {
            assert!(step["status"] == "ended" || step["argv"][0] == "sleep", "{when}: {step}");
        }
    }
}

#[test]
fn a_command_goes_on_while_the_daemon_is_killed_and_started_again() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    let expected: String = (1..=60).map(|n| format!("line {n}\n")).collect();
    let client = house
        .command(&["exec", "web", "--", "bash", "-c", "for i in $(seq 60); do echo line $i; sleep 0.05; done; exit 6"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("den exec");
    let log = |house: &House| house.den(&["log", "web", "1"]).stdout;
    eventually(LONG, "it has begun", || log(&house).lines().count() >= 5);
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
    house.kill_serve();
    std::thread::sleep(Duration::from_millis(400));
    house.start();
    let ran = house.den(&["attach", "web", "1"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (6, expected.as_str()), "the whole output is there");
    // The client that was reading lost nothing and saw nothing twice.
    let output = client.wait_with_output().expect("its end");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(house.sh("web", "pgrep -fx 'sleep 3000' | wc -l").ok(), "1", "the service went on");
    // What ended while nobody was there is known, too.
    let step = house.den(&["exec", "web", "-d", "--", "sh", "-c", "sleep 0.3; echo late; exit 7"]).ok();
    house.kill_serve();
    std::thread::sleep(Duration::from_secs(1));
    house.start();
    let ran = house.den(&["attach", "web", &step]);
    assert_eq!((ran.code, ran.stdout.as_str()), (7, "late\n"));
    assert_eq!(computers(&house)[0]["state"], "running");
}

#[test]
fn many_kills_in_a_row_harm_nothing() {
    let mut house = House::open(DEN);
    for name in ["a", "b", "c"] {
        house.new_computer(name);
    }
    house.den(&["stop", "c"]).ok();
    let machine_id = house.sh("a", "cat /etc/machine-id").ok();
    let counter = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    let step = house.den(&["exec", "a", "-d", "--", "bash", "-c", counter]).ok();
    for _ in 0..5 {
        house.restart();
    }
    let states: Vec<_> = computers(&house).iter().map(|c| (c["name"].clone(), c["state"].clone())).collect();
    assert_eq!(
        states,
        [(json!("a"), json!("running")), (json!("b"), json!("running")), (json!("c"), json!("stopped"))]
    );
    assert_eq!(house.sh("a", "cat /etc/machine-id").ok(), machine_id);
    house.api().post(&format!("/v1/computers/a/steps/{step}/signal"), &json!({"signal": "KILL"})).expect(204);
    let output = house.den(&["attach", "a", &step]).stdout;
    let expected: String = (1..=output.lines().count()).map(|n| format!("{n}\n")).collect();
    assert_eq!(output, expected, "no line is missing or there twice");
}

#[test]
fn a_create_that_was_answered_is_there_whatever_happens_next() {
    let mut house = House::open(DEN);
    for round in 0..4 {
        let api = house.api();
        let answered = std::thread::scope(|scope| {
            let creating = scope.spawn(move || {
                let mut answered = Vec::new();
                for number in 0..1000 {
                    let name = format!("r{round}n{number}");
                    let body = json!({"name": name, "memory": "128MiB"}).to_string();
                    let json = [("content-type", "application/json")];
                    match api.open("POST", "/v1/computers", &json, body.as_bytes()) {
                        Ok(stream) if stream.status == 201 => answered.push(name),
                        _ => break,
                    }
                }
                answered
            });
            std::thread::sleep(Duration::from_millis(150 + 70 * round));
            house.kill_serve();
            creating.join().expect("names")
        });
        house.start();
        let there: BTreeSet<String> =
            computers(&house).iter().map(|c| c["name"].as_str().expect("a name").to_owned()).collect();
        for name in answered {
            assert!(there.contains(&name), "`{name}` was answered and is gone");
        }
        consistent(&house, &format!("round {round}"));
        house.den(&["rm", "--all"]).ok();
    }
}

/// Whatever point a daemon dies at, what is left is consistent, and a bystander goes on.
fn each_point(points: &[&str], prepare: impl Fn(&House), act: impl Fn(&House), check: impl Fn(&House, &str)) {
    let begin = |house: &House| {
        house.new_computer("bystander");
        house.den(&["exec", "bystander", "-d", "--", "sleep", "3000"]).ok();
    };
    at_each_point(DEN, points, begin, prepare, act, |house, when, launcher| {
        check(house, when);
        consistent(house, when);
        if !launcher {
            assert_eq!(house.sh("bystander", "pgrep -fx 'sleep 3000' | wc -l").ok(), "1", "{when}: others go on");
        }
        let rest: Vec<String> = computers(house)
            .iter()
            .map(|c| c["name"].as_str().expect("a name").to_owned())
            .filter(|name| name != "bystander")
            .collect();
        for name in rest {
            house.den(&["rm", &name]).ok();
        }
    });
}

#[test]
fn a_kill_at_each_point_of_create() {
    let create = |house: &House| {
        // Nobody answers it: the daemon dies on the way.
        let reply =
            house.api().open("POST", "/v1/computers", &[("content-type", "application/json")], br#"{"name":"web"}"#);
        assert!(reply.is_err(), "the create was answered");
    };
    each_point(
        &CREATE,
        |_| {},
        create,
        |house, when| {
            // There whole or not at all; and asked again it is there.
            let there = house.api().get("/v1/computers/web").status;
            assert!([200, 404].contains(&there), "{when}");
            if there == 404 {
                house.new_computer("web");
            }
        },
    );
}

#[test]
fn a_kill_at_each_point_of_exec() {
    each_point(
        &EXEC,
        |house| house.new_computer("web"),
        |house| {
            let body = json!({"argv": ["sh", "-c", "echo ran; echo ran >> /root/ran"]}).to_string();
            let _ = house
                .api()
                .open("POST", "/v1/computers/web/steps", &[("content-type", "application/json")], body.as_bytes())
                .map(|mut stream| std::io::copy(&mut stream, &mut std::io::sink()));
        },
        |house, when| {
            let view = |house: &House| house.api().get("/v1/computers/web/steps/1");
            if view(house).status == 404 {
                // Not even written down: then it did not run.
                assert_eq!(house.json(&["info", "web"])["state"] == "running", house.sh("web", "true").code == 0);
                return;
            }
            eventually(LONG, &format!("{when}: the step is ended"), || view(house).json()["status"] == "ended");
            let end = view(house).json()["end"].clone();
            if house.json(&["info", "web"])["state"] != "running" {
                house.den(&["start", "web"]).ok();
            }
            let ran = house.sh("web", "cat /root/ran").stdout;
            let output = house.den(&["log", "web", "1"]).stdout;
            match end["how"].as_str().expect("how") {
                "exited" => assert_eq!((ran.as_str(), output.as_str()), ("ran\n", "ran\n"), "{when}"),
                "lost" | "not_started" | "signaled" => {
                    assert!(ran.len() <= 4 && output.len() <= 4, "{when}: {ran}{output}")
                }
                how => panic!("{when}: it ended {how}"),
            }
        },
    );
}

#[test]
fn an_end_that_was_told_stays_the_same_when_the_daemon_dies_before_its_row() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    let mut answers = 0;
    for (number, script) in ["true", "echo out; exit 7", "kill -9 $$"].iter().enumerate() {
        house.kill_serve();
        house.set_env(&[("DEN_FAILPOINT", "exec.told")]);
        house.start();
        let body = json!({"argv": ["sh", "-c", script]}).to_string();
        let json = [("content-type", "application/json")];
        let stream = house.api().open("POST", "/v1/computers/web/steps", &json, body.as_bytes());
        let mut text = String::new();
        let read = stream.and_then(|mut stream| stream.read_to_string(&mut text));
        house.wait_serve_dead();
        house.set_env(&[]);
        house.start();
        let after = house.api().get(&format!("/v1/computers/web/steps/{}", number + 1)).expect(200).json();
        assert_eq!(after["status"], "ended", "{after}");
        // On another thread the daemon may have died first.
        if let (Ok(_), Ok(told)) = (read, serde_json::from_str::<Value>(&text)) {
            answers += 1;
            for field in ["number", "argv", "who", "started_at", "status", "ended_at", "end", "output_bytes"] {
                assert_eq!(told["step"][field], after[field], "{field} of `{script}`");
            }
        }
    }
    assert!(answers > 0, "nobody was told before the daemon died");
    house.close();
}

#[test]
fn a_kill_at_each_point_of_remove() {
    each_point(
        &REMOVE,
        |house| {
            house.new_computer("web");
            house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
        },
        |house| {
            let _ = house.api().open("DELETE", "/v1/computers/web", &[], b"");
        },
        |house, when| {
            // It was asked for and written down, so it is done.
            eventually(LONG, &format!("{when}: it is gone"), || house.api().get("/v1/computers/web").status == 404);
            assert_eq!(computers(house).len(), 1, "{when}");
            house.new_computer("web");
        },
    );
}

#[test]
fn a_kill_at_each_point_of_stop() {
    each_point(
        &STOP,
        |house| {
            house.new_computer("web");
            house.sh("web", "echo kept > /root/file").ok();
        },
        |house| {
            let _ = house.api().open("POST", "/v1/computers/web/stop", &[], b"");
        },
        |house, when| {
            if house.json(&["info", "web"])["state"] != "running" {
                house.den(&["start", "web"]).ok();
            }
            assert_eq!(house.sh("web", "cat /root/file").ok(), "kept", "{when}");
        },
    );
}

#[test]
fn a_kill_at_each_point_of_start() {
    each_point(
        &START,
        |house| {
            house.new_computer("web");
            house.sh("web", "echo kept > /root/file").ok();
            house.den(&["stop", "web"]).ok();
        },
        |house| {
            let _ = house.api().open("POST", "/v1/computers/web/start", &[], b"");
        },
        |house, when| {
            if house.json(&["info", "web"])["state"] != "running" {
                house.den(&["start", "web"]).ok();
            }
            assert_eq!(house.sh("web", "cat /root/file").ok(), "kept", "{when}");
        },
    );
}

#[test]
fn a_launcher_or_builder_that_dies_at_any_of_its_points_is_followed_by_another() {
    // With a number: not the first time, but in the middle of work.
    for point in [
        "builder.cgroup",
        "builder.cgroup:11",
        "builder.cloned",
        "builder.cloned:11",
        "builder.husk:11",
        "builder.unmake:2",
        "launcher.husk:2",
        "launcher.husk:11",
        "launcher.taken",
        "launcher.record",
        "launcher.kill",
        "launcher.reaped",
        "launcher.reaped:2",
    ] {
        eprintln!("--- {point}");
        let env = vec![("DEN_FAILPOINT".to_owned(), point.to_owned())];
        let house = House::with(DEN, den_testkit::Options { env, ..Default::default() });
        let mut launchers = BTreeSet::from([house.launcher().as_raw_nonzero()]);
        for round in 0..4 {
            for number in 0..3 {
                let body = json!({"name": format!("r{round}n{number}"), "memory": "128MiB"});
                eventually(LONG, &format!("{point}: a computer is made"), || {
                    [201, 409].contains(&house.api().post("/v1/computers", &body).status)
                });
                launchers.insert(house.launcher().as_raw_nonzero());
            }
            consistent(&house, point);
            for number in 0..3 {
                let path = format!("/v1/computers/r{round}n{number}");
                eventually(LONG, &format!("{point}: it is removed"), || {
                    [204, 404].contains(&house.api().delete(&path).status)
                });
            }
            launchers.insert(house.launcher().as_raw_nonzero());
        }
        if point.starts_with("builder.") {
            // The launcher has made itself another builder and goes on.
            let log = std::fs::read_to_string(house.run_dir().join("launcher.log")).expect("launcher.log");
            assert!(log.contains("the builder died") && launchers.len() == 1, "{point}: {launchers:?}\n{log}");
            house.close();
            continue;
        }
        // The first husk is made while the daemon starts: then the first launcher was not seen.
        if point.contains(':') || ["launcher.taken", "launcher.record", "launcher.kill"].contains(&point) {
            assert!(launchers.len() > 1 || point == "launcher.husk:2", "{point}: no launcher died");
        }
        house.close();
    }
}

#[test]
fn a_launcher_that_dies_takes_nothing_for_long() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo kept > /root/file").ok();
    let old = house.launcher();
    house.kill_launcher();
    // With the daemon alive: a new launcher comes, and computers can be made.
    eventually(LONG, "computers can be made again", || {
        house.api().post("/v1/computers", &json!({"name": "db"})).status == 201
    });
    assert_ne!(house.launcher(), old);
    assert_eq!(house.sh("db", "hostname").ok(), "db");
    house.restart();
    consistent(&house, "after the launcher's death");
    assert_eq!(house.sh("web", "cat /root/file").ok(), "kept");
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused() {
    let house = House::open(DEN);
    let data = house.data();
    let ran = house.den(&[
        "serve",
        "--data",
        data.to_str().expect("text"),
        "--run",
        "/tmp/den-run-second",
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("error:"), "{ran:?}");
    house.new_computer("web");
    assert!(!std::path::Path::new("/tmp/den-run-second/launcher.sock").exists());
    let _ = std::fs::remove_dir_all("/tmp/den-run-second");
}

#[test]
fn a_shutdown_stops_all_and_the_next_start_finds_them_stopped() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo kept > /root/file").ok();
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
    house.den(&["shutdown"]).ok();
    house.wait_serve_dead();
    let left = den_testkit::leftovers(house.run_dir(), &house.data());
    let since = Instant::now();
    while !den_testkit::leftovers(house.run_dir(), &house.data()).is_empty() {
        assert!(since.elapsed() < Duration::from_secs(15), "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    house.start();
    assert_eq!(computers(&house)[0]["state"], "stopped");
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /root/file").ok(), "kept");
    let steps = house.api().get("/v1/computers/web/steps").expect(200).json();
    assert!(steps["items"].as_array().expect("items").iter().all(|step| step["status"] == "ended"), "{steps}");
}

/// The files of a store, as they are after a kill of its daemon. A log without anything in it is none.
fn store_files(house: &House) -> BTreeMap<&'static str, Vec<u8>> {
    let read = |name| {
        Some((name, std::fs::read(house.data().join(name)).ok().filter(|file| !file.is_empty() || name == "den.db")?))
    };
    ["den.db", "den.db-wal", "den.db.lock"].into_iter().filter_map(read).collect()
}

/// Puts files of a store in the place of those that are there.
fn put_store(house: &House, files: &BTreeMap<&'static str, Vec<u8>>) {
    for name in ["den.db", "den.db-wal", "den.db-shm", "den.db.lock"] {
        let _ = std::fs::remove_file(house.data().join(name));
    }
    for (name, bytes) in files {
        std::fs::write(house.data().join(name), bytes).expect("a file of the store");
    }
}

#[test]
fn a_store_that_is_damaged_stops_the_start_and_nothing_is_touched() {
    let mut house = House::open(DEN);
    for name in ["web", "db"] {
        house.new_computer(name);
    }
    for number in 0..40 {
        house.sh("web", &format!("echo {number} > /root/file")).ok();
    }
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
    // Most of it in the database, the last of it in the log.
    house.kill_serve();
    let store = rusqlite::Connection::open(house.data().join("den.db")).expect("the store");
    store.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("it is copied");
    drop(store);
    house.start();
    house.sh("web", "echo 40 > /root/file").ok();
    house.kill_serve();
    let whole = store_files(&house);
    let sizes: Vec<_> = whole.iter().map(|(name, bytes)| (name, bytes.len())).collect();
    assert!(whole["den.db"].len() >= 10 * 4096 && whole["den.db-wal"].len() > 4096, "nothing to damage: {sizes:?}");
    let disks = house.disks();
    let launcher = house.launcher();
    let seen = house.log().len();

    type Damage = fn(&mut BTreeMap<&'static str, Vec<u8>>);
    let damages: [(&str, &str, Damage); 9] = [
        ("zero length", "store_missing", |files| {
            files.insert("den.db", Vec::new());
            files.remove("den.db-wal");
            files.remove("den.db.lock");
        }),
        ("gone with its log", "store_missing", |files| files.clear()),
        ("gone", "store_missing", |files| drop(files.remove("den.db"))),
        ("cut in half", "store_corrupt", |files| {
            let file = files.get_mut("den.db").expect("it is there");
            file.truncate(file.len() / 2 + 100);
            files.remove("den.db-wal");
            files.remove("den.db.lock");
        }),
        ("rubbish in its pages", "store_corrupt", |files| {
            let file = files.get_mut("den.db").expect("it is there");
            for page in (2..file.len() / 4096).step_by(3) {
                file[page * 4096..][..4096].fill(0xa5);
            }
            files.remove("den.db-wal");
            files.remove("den.db.lock");
        }),
        ("zeros in its pages", "store_corrupt", |files| {
            let file = files.get_mut("den.db").expect("it is there");
            for page in (1..file.len() / 4096).step_by(2) {
                file[page * 4096..][..4096].fill(0);
            }
            files.remove("den.db-wal");
            files.remove("den.db.lock");
        }),
        ("no database", "store_corrupt", |files| {
            files.insert("den.db", b"these are the notes of somebody else\n".repeat(400));
        }),
        ("without its log", "store_corrupt", |files| drop(files.remove("den.db-wal"))),
        ("a log that is none", "store_corrupt", |files| {
            files.get_mut("den.db-wal").expect("it is there")[..64].fill(0x77);
        }),
    ];
    for (what, code, damage) in damages {
        let mut files = whole.clone();
        damage(&mut files);
        put_store(&house, &files);
        let before = house.log().len();
        house.try_start().expect_err(what);
        let said = house.log()[before..].to_owned();
        assert!(said.contains(&format!("({code})")) && said.contains("hint: "), "{what}: {said}");
        let mut after = store_files(&house);
        after.remove("den.db.lock");
        files.remove("den.db.lock");
        assert!(after == files, "{what}: the store was written to");
        assert_eq!(house.disks(), disks, "{what}");
        assert_eq!(house.launcher(), launcher, "{what}: what runs goes on");
    }
    assert!(house.log().len() > seen);

    // Another program's database.
    put_store(&house, &BTreeMap::new());
    let other = rusqlite::Connection::open(house.data().join("den.db")).expect("a database");
    other.execute_batch("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')").expect("a table");
    drop(other);
    let before = house.log().len();
    house.try_start().expect_err("another program's");
    assert!(house.log()[before..].contains("(store_foreign)"), "{}", &house.log()[before..]);

    // With its own files back it goes on where it was.
    put_store(&house, &whole);
    house.start();
    assert_eq!(house.sh("web", "cat /root/file; pgrep -c sleep").ok(), "40\n1");
    assert_eq!(house.disks(), disks);
    house.close();
}

#[test]
fn a_store_that_another_process_holds_stops_the_start() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    house.kill_serve();
    let lock =
        std::fs::File::options().read(true).write(true).open(house.data().join("den.db.lock")).expect("the lock");
    lock.lock().expect("nobody has it");
    house.try_start().expect_err("it is held");
    let log = house.log();
    assert!(log.contains("(store_locked)") && log.contains("hint: another `den serve` uses this data folder"), "{log}");
    drop(lock);
    house.start();
    assert_eq!(house.json(&["info", "web"])["state"], "running");
    house.close();
}
