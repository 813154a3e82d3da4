//! Memory on the disk: `den pause --to-disk`, and what goes on from there. `cargo xtask test` fetches the CRIU that
//! this needs; without it these tests fail.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use den_testkit::{House, Options, at_each_point_with, eventually};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const CRIU: &str = "/var/cache/den/criu/criu";
const LONG: Duration = Duration::from_secs(60);
/// What would go on has gone on by then.
const A_WHILE: Duration = Duration::from_millis(500);

fn options() -> Options {
    assert!(std::path::Path::new(CRIU).is_file(), "no {CRIU}: `cargo xtask test` fetches it");
    Options { args: vec!["--criu".to_owned(), CRIU.to_owned()], ..Options::default() }
}

fn state(house: &House, name: &str) -> String {
    house.json(&["info", name])["state"].as_str().expect("a state").to_owned()
}

fn on_disk(house: &House, name: &str) -> bool {
    house.json(&["info", name])["memory_state"]["on_disk"].as_bool().unwrap_or(false)
}

/// A program that counts in its memory alone, and says so.
fn counter(house: &House, name: &str) -> String {
    let script = "import time,os\nkept = bytearray(20 << 20)\nn = 0\nwhile True:\n    n += 1\n    print(n, os.getpid(), flush=True)\n    time.sleep(0.02)";
    house.den(&["exec", name, "-d", "--", "python3", "-c", script]).ok()
}

/// What it has said.
fn said(house: &House, name: &str, step: &str) -> Vec<(u64, u64)> {
    let text = house.den(&["log", name, step]).ok();
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).expect("a number");
    text.lines().map(|line| line.split(' ')).map(|mut words| (number(words.next()), number(words.next()))).collect()
}

/// It counts on, in the same process, and not a line is missing or there twice.
fn counts_on(house: &House, name: &str, step: &str, from: usize) {
    eventually(LONG, "it counts", || said(house, name, step).len() > from + 5);
    let lines = said(house, name, step);
    let pid = lines[0].1;
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(*line, (at as u64 + 1, pid));
    }
}

#[test]
fn memory_goes_to_the_disk_and_comes_back() {
    let mut house = House::with(DEN, options());
    house.new_computer("web");
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    let before =
        house.sh("web", "cat /proc/sys/kernel/random/boot_id; echo kept > /run/kept; echo kept > /root/kept").ok();
    house.den(&["pause", "web", "--to-disk"]).ok();
    assert_eq!(state(&house, "web"), "paused");
    assert!(on_disk(&house, "web"));
    let stood = said(&house, "web", &step).len();
    let folders = std::fs::read_dir(house.run_dir().join("computers")).expect("RUN").count();
    assert_eq!(folders, 0, "something of it still runs");
    house.den(&["pause", "web", "--to-disk"]).ok();

    // Over a daemon and a launcher that are new.
    house.kill_launcher();
    house.restart();
    assert_eq!(state(&house, "web"), "paused");
    assert!(on_disk(&house, "web"));
    assert_eq!(said(&house, "web", &step).len(), stood);

    // A request wakes it.
    let after = house.sh("web", "cat /proc/sys/kernel/random/boot_id; cat /run/kept /root/kept").ok();
    assert_eq!(after, format!("{before}\nkept\nkept"));
    assert_eq!(state(&house, "web"), "running");
    assert!(!on_disk(&house, "web"));
    counts_on(&house, "web", &step, stood);

    // It can be stopped like any other: it has its cgroups again.
    house.den(&["pause", "web"]).ok();
    let mut stood = said(&house, "web", &step).len();
    eventually(LONG, "the output stands", || {
        std::thread::sleep(A_WHILE);
        let now = said(&house, "web", &step).len();
        std::mem::replace(&mut stood, now) == now
    });
    house.den(&["resume", "web"]).ok();
    counts_on(&house, "web", &step, stood);
    assert_eq!(house.sh("web", "grep ^0:: /proc/self/cgroup").ok(), "0::/");

    // And once more, by hand.
    house.den(&["pause", "web", "--to-disk"]).ok();
    let stood = said(&house, "web", &step).len();
    // The daemon has connections to this one still.
    house.kill_launcher();
    house.den(&["resume", "web"]).ok();
    counts_on(&house, "web", &step, stood);

    // Over an orderly end of the whole house, which leaves nothing running.
    house.den(&["pause", "web", "--to-disk"]).ok();
    let stood = said(&house, "web", &step).len();
    house.den(&["shutdown"]).ok();
    house.wait_serve_dead();
    house.start();
    assert!(on_disk(&house, "web"));
    house.den(&["resume", "web"]).ok();
    counts_on(&house, "web", &step, stood);
}

/// Copies of memory that are on the disk for forks.
fn copies(house: &House) -> usize {
    std::fs::read_dir(house.data().join("computers/.copies")).map_or(0, Iterator::count)
}

#[test]
fn what_runs_goes_on_in_forks_too() {
    let house = House::with(DEN, options());
    house.new_computer("web");
    let run = "n=0; while true; do n=$((n+1)); echo $n > /run/beat; sleep 0.05; done";
    house.den(&["service", "add", "web", "beat", "--run", run, "--restart", "always"]).ok();
    // Two ends of a connection, and an open file that has no name any more.
    let talk = "import os, socket, time, tempfile\nheld = tempfile.TemporaryFile(dir='/root')\nheld.write(b'kept')\n\
        a, b = socket.socketpair()\ndoor = socket.create_server(('127.0.0.1', 7000))\n\
        one = socket.create_connection(('127.0.0.1', 7000)); two, _ = door.accept()\nn = 0\nwhile True:\n    n += 1\n    \
        one.sendall(b'x'); a.sendall(two.recv(1)); b.recv(1); held.seek(0)\n    \
        open('/run/new', 'w').write(f'{n} {held.read()}')\n    \
        os.rename('/run/new', '/run/talk'); time.sleep(0.02)";
    house.den(&["exec", "web", "-d", "--", "python3", "-c", talk]).ok();
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    house.sh("web", "echo before > /root/file; echo before > /run/file").ok();
    assert_eq!(house.json(&["info", "web"])["memory_state"]["memory_fork"], true);
    let stood = said(&house, "web", &step).len();

    assert_eq!(house.den(&["fork", "web", "try", "--memory", "--count", "2"]).ok(), "try-1\ntry-2");
    assert_eq!(copies(&house), 0, "a copy is left");
    house.sh("web", "echo after > /root/file").ok();
    let beat = |name: &str| house.sh(name, "cat /run/beat").ok().parse::<u64>().unwrap_or_default();
    let talked = |name: &str| house.sh(name, "cat /run/talk").ok();
    for name in ["web", "try-1", "try-2"] {
        counts_on(&house, name, &step, stood);
        assert_eq!(said(&house, name, &step)[0], said(&house, "web", &step)[0], "the same output before");
        assert_eq!(
            house.sh(name, "hostname; cat /etc/hostname; cat /run/file").ok(),
            format!("{name}\n{name}\nbefore")
        );
        assert_eq!(house.sh(name, "cat /root/file").ok(), if name == "web" { "after" } else { "before" });
        let services = house.json(&["service", "ls", name]);
        let beats = services[0].clone();
        assert_eq!((beats["state"].as_str(), beats["restarts"].as_u64()), (Some("running"), Some(0)), "{beats}");
        assert_eq!(house.sh(name, "pgrep -c -f 'run/bea[t]'").ok(), "1", "it runs once");
        let was = (beat(name), talked(name));
        eventually(LONG, "it beats and talks", || beat(name) > was.0 && talked(name) != was.1);
        assert!(talked(name).ends_with("b'kept'"), "{}", talked(name));
    }
    // They are computers like any other: what runs can be ended, forked again, stopped and started.
    house.den(&["rm", "web", "--now"]).ok();
    // A command of another user takes from the agent what CRIU has to read of it.
    house.den(&["exec", "try-1", "--user", "1000", "--", "true"]).ok();
    house.den(&["fork", "try-1", "deep", "--memory"]).ok();
    counts_on(&house, "deep", &step, said(&house, "deep", &step).len());
    house.sh("try-1", "pkill -f '[b]ytearray'").ok();
    eventually(LONG, "it has ended", || house.sh("try-1", "pgrep -c python3").stdout.trim() == "1");
    counts_on(&house, "deep", &step, said(&house, "deep", &step).len());
    house.den(&["stop", "try-2"]).ok();
    house.den(&["start", "try-2"]).ok();
    assert_eq!(house.sh("try-2", "cat /root/file; pgrep -c python3 || true").ok(), "before\n0");
    assert_eq!(house.json(&["info", "deep"])["parent"]["name"], "try-1");
}

#[test]
fn a_fork_has_the_memory_of_one_that_sleeps_and_leaves_it_asleep() {
    let house = House::with(DEN, options());
    house.new_computer("web");
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    house.den(&["pause", "web", "--to-disk"]).ok();
    let stood = said(&house, "web", &step).len();
    house.den(&["fork", "web", "try", "--memory"]).ok();
    counts_on(&house, "try", &step, stood);
    assert!(on_disk(&house, "web") && said(&house, "web", &step).len() == stood);
    house.den(&["resume", "web"]).ok();
    counts_on(&house, "web", &step, stood);
    // Paused in memory.
    house.den(&["pause", "web"]).ok();
    house.den(&["fork", "web", "other", "--memory"]).ok();
    assert_eq!(state(&house, "web"), "paused");
    let stood = said(&house, "other", &step).len();
    counts_on(&house, "other", &step, stood);
    house.den(&["stop", "other"]).ok();
    house.den(&["fork", "other", "none", "--memory"]).refused(1, "nothing runs that a fork could go on with");
    // What ran at another state is not known, and a pool that is full is said before anything stands still.
    house.den(&["fork", "web@0", "old", "--memory"]).refused(1, "what ran at a state");
    house.den(&["pool", "new", "small", "--computers", "1"]).ok();
    house.den(&["new", "--pool", "small"]).ok();
    house.den(&["fork", "web", "late", "--memory", "--pool", "small"]).refused(1, "the pool `small` is full");
    assert_eq!(copies(&house), 0, "a copy is left");
}

#[test]
fn a_daemon_killed_at_each_point_of_a_fork_with_memory_leaves_the_fork_whole_or_away() {
    let points = [
        "copy.shown",
        "copy.rests",
        "copy.dumped",
        "copy.there",
        "fork.reserved",
        "fork.row",
        "fork.disk",
        "fork.state",
        "revive.begun",
        "revive.goes_on",
    ];
    let there = |house: &House| house.den(&["ls", "-q"]).ok().lines().any(|name| name == "try");
    at_each_point_with(
        DEN,
        &options(),
        &points,
        |house| {
            house.new_computer("web");
            assert_eq!(counter(house, "web"), "1");
        },
        |house| {
            if there(house) {
                house.den(&["rm", "try", "--now"]).ok();
            }
            counts_on(house, "web", "1", 0);
        },
        |house| drop(house.den(&["fork", "web", "try", "--memory"])),
        |house, when, _| {
            assert_eq!((state(house, "web"), copies(house)), ("running".to_owned(), 0), "{when}");
            counts_on(house, "web", "1", said(house, "web", "1").len());
            if there(house) {
                if state(house, "try") == "paused" {
                    house.den(&["resume", "try"]).ok();
                }
                counts_on(house, "try", "1", said(house, "try", "1").len());
            }
        },
    );
}

/// The daemon dies at each of `points` of `word`: the computer runs or is paused, and counts on either way.
fn each_point(points: &[&str], before: &[&str], words: &[&str]) {
    let awake = |house: &House| {
        if state(house, "web") == "paused" {
            house.den(&["resume", "web"]).ok();
        }
    };
    at_each_point_with(
        DEN,
        &options(),
        points,
        |house| {
            house.new_computer("web");
            assert_eq!(counter(house, "web"), "1");
        },
        |house| {
            awake(house);
            counts_on(house, "web", "1", 0);
            if !before.is_empty() {
                house.den(before).ok();
            }
        },
        |house| drop(house.den(words)),
        |house, when, _| {
            let found = state(house, "web");
            assert!(["running", "paused"].contains(&found.as_str()), "{when}: {found}");
            let stood = said(house, "web", "1").len();
            awake(house);
            counts_on(house, "web", "1", stood);
        },
    );
}

#[test]
fn a_daemon_killed_at_each_point_of_writing_memory_leaves_it_running_or_on_the_disk() {
    let points = [
        "hibernate.shown",
        "hibernate.rests",
        "hibernate.written",
        "hibernate.kept",
        "hibernate.ended",
        "hibernate.row",
    ];
    each_point(&points, &[], &["pause", "web", "--to-disk"]);
}

#[test]
fn a_daemon_killed_at_each_point_of_reading_memory_leaves_it_running_or_on_the_disk() {
    each_point(&["revive.begun", "revive.goes_on"], &["pause", "web", "--to-disk"], &["resume", "web"]);
}

#[test]
fn what_cannot_be_written_goes_on() {
    let house = House::with(DEN, options());
    house.new_computer("web");
    let step = counter(&house, "web");
    house.den(&["exec", "web", "-d", "--", "unshare", "--user", "--map-root-user", "sleep", "600"]).ok();
    eventually(LONG, "it has a namespace", || {
        house.json(&["info", "web"])["memory_state"]["hibernate"] == serde_json::json!(false)
    });
    let said_of_it = house.json(&["info", "web"])["memory_state"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(said_of_it.contains("sleep") && said_of_it.contains("namespace of its own"), "{said_of_it}");
    house.den(&["pause", "web", "--to-disk"]).refused(1, "namespace of its own");
    assert_eq!(state(&house, "web"), "running");
    counts_on(&house, "web", &step, 0);
    house.den(&["fork", "web", "side", "--memory"]).refused(1, "namespace of its own");
    assert_eq!((state(&house, "web"), copies(&house)), ("running".to_owned(), 0));
    counts_on(&house, "web", &step, said(&house, "web", &step).len());
    house.den(&["snap", "web", "x", "--memory"]).refused(1, "with its memory");
    // A file that shows the share: what serves it is no part of what is written down.
    house.new_computer("top");
    house.den(&["exec", "top", "-d", "--", "sh", "-c", "exec sleep 600 < /proc/meminfo"]).ok();
    eventually(LONG, "it has it open", || {
        let memory = house.json(&["info", "top"])["memory_state"].take();
        memory["reason"].as_str().is_some_and(|why| why.contains("`sleep`") && why.contains("has /proc/meminfo open"))
    });
    house.den(&["pause", "top", "--to-disk"]).refused(1, "has /proc/meminfo open");
    assert_eq!(state(&house, "top"), "running");
}

#[test]
fn files_in_proc_show_the_share_after_memory_comes_back() {
    let house = House::with(DEN, options());
    house.den(&["new", "web", "--cpus", "1", "--memory", "512m"]).ok();
    let seen = |name: &str| {
        house.sh(name, "awk '/^MemTotal/ {print $2}' /proc/meminfo; grep -c ^processor /proc/cpuinfo").ok()
    };
    // As soon as it is back, while its agent still lays those files.
    for _ in 0..5 {
        house.den(&["pause", "web", "--to-disk"]).ok();
        house.den(&["resume", "web"]).ok();
    }
    assert_eq!(seen("web"), "524288\n1");
    house.den(&["resize", "web", "--memory", "768m"]).ok();
    assert_eq!(seen("web"), "786432\n1");
    house.den(&["fork", "web", "try", "--memory"]).ok();
    assert_eq!((seen("try"), seen("web")), ("786432\n1".to_owned(), "786432\n1".to_owned()));
}

#[test]
fn a_stop_and_a_removal_take_the_memory_along() {
    let house = House::with(DEN, options());
    house.new_computer("web");
    house.sh("web", "echo kept > /root/kept").ok();
    house.den(&["pause", "web", "--to-disk"]).ok();
    house.den(&["stop", "web"]).ok();
    let memory = house.data().join("computers").join(&house.disks()[0]).join("memory");
    assert!(!memory.exists());
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /root/kept").ok(), "kept");
    house.den(&["pause", "web", "--to-disk"]).ok();
    assert!(memory.exists());
    house.den(&["rm", "web"]).ok();
    assert!(!memory.exists());
}

#[test]
fn a_restore_that_is_refused_keeps_the_memory() {
    let house = House::with(DEN, options());
    house.den(&["pool", "new", "small", "--memory", "512M"]).ok();
    let small = ["--pool", "small", "--memory", "512M"];
    house.den(&[&["new", "web"], &small[..]].concat()).ok();
    house.sh("web", "echo kept > /root/kept").ok();
    house.den(&["snap", "web", "good"]).ok();
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    house.den(&["pause", "web", "--to-disk"]).ok();
    let stood = said(&house, "web", &step).len();
    // What its memory gave back is another's now.
    house.den(&[&["new", "other"], &small[..]].concat()).ok();
    house.den(&["restore", "web@good"]).refused(1, "the pool `small` is full");
    assert!(on_disk(&house, "web") && state(&house, "web") == "paused");
    house.den(&["resume", "web"]).refused(1, "the pool `small` is full");
    house.den(&["rm", "other", "--now"]).ok();
    house.den(&["resume", "web"]).ok();
    counts_on(&house, "web", &step, stood);
    // And one that is not.
    house.den(&["pause", "web", "--to-disk"]).ok();
    house.den(&["restore", "web@good"]).ok();
    assert!(!on_disk(&house, "web"));
    assert_eq!(house.sh("web", "cat /root/kept; pgrep -c python3 || true").ok(), "kept\n0");
}

#[test]
fn nobody_inside_is_heard_while_the_agent_rests() {
    let mut house = House::with(DEN, options());
    house.new_computer("web");
    let script = r#"
import socket, time
while True:
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(5)
    try:
        door.connect("\0den-agent-rests")
        print("told", door.recv(4096), flush=True)
    except OSError as error:
        # Nobody is there, or has gone just then; but who listens does not keep it waiting.
        if isinstance(error, TimeoutError): print("waited", flush=True)
    time.sleep(0.02)
"#;
    let step = house.den(&["exec", "web", "-d", "--", "python3", "-c", script]).ok();
    house.kill_serve();
    house.set_env(&[("DEN_FAILPOINT", "hibernate.rests")]);
    house.start();
    drop(house.den(&["pause", "web", "--to-disk"]));
    house.wait_serve_dead();
    // It rests, and what runs inside does not.
    std::thread::sleep(A_WHILE);
    house.set_env(&[]);
    house.start();
    let told = || house.den(&["log", "web", &step]).ok();
    eventually(LONG, "it came to the door", || told().contains("only the host asks"));
    let told = told();
    for line in told.lines() {
        assert!(line == "told b''" || line.contains("only the host asks"), "{told}");
    }
    assert_eq!(house.sh("web", "echo awake").ok(), "awake");
}

#[test]
fn a_connection_that_says_nothing_keeps_no_memory_from_the_disk() {
    let house = House::with(DEN, options());
    house.new_computer("web");
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    let agent = house.run_dir().join("computers").join(&house.disks()[0]).join("agent.sock");
    let silent = UnixStream::connect(agent).expect("the agent listens");
    house.den(&["pause", "web", "--to-disk"]).ok();
    drop(silent);
    let stood = said(&house, "web", &step).len();
    house.den(&["resume", "web"]).ok();
    counts_on(&house, "web", &step, stood);
}

#[test]
fn an_agent_that_cannot_rest_goes_on() {
    let house = House::with(DEN, options());
    house.new_computer("web");
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    let squat = "import socket, time; door = socket.socket(socket.AF_UNIX); door.bind('\\0den-agent-rests'); \
        print('bound', flush=True); time.sleep(1000)";
    let squatter = house.den(&["exec", "web", "-d", "--", "python3", "-c", squat]).ok();
    eventually(LONG, "it is bound", || house.den(&["log", "web", &squatter]).stdout.contains("bound"));
    house.den(&["pause", "web", "--to-disk"]).refused(1, "den-agent-rests");
    assert_eq!(state(&house, "web"), "running");
    let stood = said(&house, "web", &step).len();
    counts_on(&house, "web", &step, stood);
}

#[test]
fn a_computer_is_not_woken_before_criu_has_let_go_of_it() {
    let folder = tempfile::Builder::new().prefix("den-test-criu-").tempdir().expect("a folder");
    let (program, go) = (folder.path().join("criu"), folder.path().join("go"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = dump ] || exec {CRIU} \"$@\"\n\
         for _ in $(seq 600); do [ -e {} ] && exit 1; sleep 0.1; done\n",
        go.display()
    );
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let args = vec!["--criu".to_owned(), program.display().to_string()];
    let house = House::with(DEN, Options { args, ..options() });
    house.new_computer("web");
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    let hook = house.run_dir().join("computers").join(&house.disks()[0]).join("hook");
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| house.den(&["pause", "web", "--to-disk"]));
        // What it says is no hook's word, and it all fails.
        eventually(LONG, "hooks are heard", || {
            UnixStream::connect(&hook).is_ok_and(|mut hook| hook.write_all(b"\xff\n").is_ok())
        });
        std::thread::sleep(A_WHILE);
        assert!(!pause.is_finished(), "it goes on while CRIU has it");
        std::fs::write(&go, "").expect("a file");
        pause.join().expect("an answer").refused(1, "it goes on");
    });
    assert_eq!(state(&house, "web"), "running");
    let stood = said(&house, "web", &step).len();
    counts_on(&house, "web", &step, stood);
}

/// As systemd has them on nearly every host; those of a test's host may be anything.
#[test]
fn memory_comes_back_and_is_forked_on_a_host_whose_mounts_are_shared() {
    let folder = tempfile::tempdir().expect("a folder");
    let shared = folder.path().join("den");
    let script = format!(
        "#!/bin/sh\ncase $1 in serve) set -- unshare --mount --propagation shared {DEN} \"$@\" ;; *) set -- {DEN} \"$@\" ;; esac\nexec \"$@\"\n"
    );
    std::fs::write(&shared, script).expect("a script");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let house = House::with(shared.to_str().expect("text"), options());
    house.new_computer("web");
    let step = counter(&house, "web");
    counts_on(&house, "web", &step, 0);
    assert_eq!(house.sh("web", "grep -c master: /proc/self/mountinfo").stdout, "0\n", "it is nobody's peer");
    house.den(&["pause", "web", "--to-disk"]).ok();
    let stood = said(&house, "web", &step).len();
    house.den(&["fork", "web", "try", "--memory"]).ok();
    counts_on(&house, "try", &step, stood);
    house.den(&["resume", "web"]).ok();
    counts_on(&house, "web", &step, stood);
}
