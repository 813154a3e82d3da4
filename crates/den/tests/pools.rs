//! Pools: what computers share, through the CLI and the API, with a real daemon.

use std::{
    thread,
    time::{Duration, Instant},
};

use den_sys::cgroup::{Cgroups, instance_of};
use den_testkit::{House, Options, at_each_point, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
/// What is seen by then has happened.
const LONG: Duration = Duration::from_secs(60);
/// How long CPU use is measured.
const MEASURED: Duration = Duration::from_secs(3);

const CREATE: [&str; 5] = ["create.reserved", "create.row", "create.disk", "create.booted", "create.state"];
const STOP: [&str; 3] = ["stop.state", "stop.killed", "stop.done"];
const START: [&str; 3] = ["start.state", "start.booted", "start.done"];
const FORK: [&str; 4] = ["fork.reserved", "fork.row", "fork.booted", "fork.state"];
const SMALL: [&str; 4] = ["--memory", "64M", "--disk", "64M"];

/// Makes a small computer in a pool; `more` after it.
fn new(house: &House, name: &str, pool: &str, more: &[&str]) -> den_testkit::Ran {
    house.den(&[&["new", name, "--pool", pool], &SMALL[..], more].concat())
}

fn pool(house: &House, name: &str) -> Value {
    house.json(&["pool", "info", name])
}

/// What is taken of a pool.
fn used(house: &House, name: &str, what: &str) -> u64 {
    pool(house, name)["used"][what].as_u64().unwrap_or_else(|| panic!("no `{what}`"))
}

fn computers_of(house: &House, name: &str) -> Vec<String> {
    let all = house.json(&["ls"]);
    let of_it = |item: &&Value| item["pool"] == name;
    all.as_array()
        .expect("a list")
        .iter()
        .filter(of_it)
        .map(|it| it["name"].as_str().expect("a name").to_owned())
        .collect()
}

fn cgroups(house: &House) -> Cgroups {
    Cgroups::look(&instance_of(house.run_dir())).expect("cgroups")
}

fn cpu_us(house: &House, name: &str) -> u64 {
    house.json(&["info", name])["usage"]["cpu_us"].as_u64().expect("cpu_us")
}

/// CPUs that each of these uses on average.
fn cpus_used(house: &House, names: &[&str]) -> Vec<f64> {
    let look = || names.iter().map(|name| cpu_us(house, name)).collect::<Vec<_>>();
    let (began, before) = (Instant::now(), look());
    thread::sleep(MEASURED);
    let after = look();
    let time = began.elapsed().as_micros() as f64;
    before.iter().zip(after).map(|(before, after)| (after - before) as f64 / time).collect()
}

/// How many of `count` creates at once are done; all others are refused as `pool_full`.
fn creates_at_once(house: &House, count: usize, prefix: &str, body: &Value) -> usize {
    thread::scope(|scope| {
        let asked: Vec<_> = (0..count)
            .map(|number| {
                let mut body = body.clone();
                body["name"] = json!(format!("{prefix}-{number}"));
                scope.spawn(move || {
                    let reply = house.api().post("/v1/computers", &body);
                    match reply.status {
                        201 => true,
                        _ => {
                            let refusal = reply.refusal(409, "pool_full");
                            assert!(
                                refusal["hint"].as_str().is_some_and(|hint| hint.contains("den pool set")),
                                "{refusal}"
                            );
                            false
                        }
                    }
                })
            })
            .collect();
        asked.into_iter().map(|asked| asked.join().expect("a thread")).filter(|made| *made).count()
    })
}

#[test]
fn a_hundred_at_once_never_pass_a_pool() {
    let house = House::open(DEN);
    house.den(&["pool", "new", "ten", "--computers", "10"]).ok();
    house.den(&["pool", "new", "five", "--disk", "5G"]).ok();
    let small = json!({ "pool": "ten", "memory": "64M", "disk": "64M" });
    assert_eq!(creates_at_once(&house, 100, "ten", &small), 10);
    assert_eq!(computers_of(&house, "ten").len(), 10);
    assert_eq!(used(&house, "ten", "computers"), 10);
    let one_gib = json!({ "pool": "five", "memory": "64M", "disk": "1G" });
    assert_eq!(creates_at_once(&house, 100, "five", &one_gib), 5);
    assert_eq!((used(&house, "five", "disk"), computers_of(&house, "five").len()), (5 << 30, 5));
    new(&house, "more", "ten", &[])
        .refused(1, "the pool `ten` is full: 1 computer wanted, 0 computers left of 10 computers");
    // Told once, however many were refused.
    eventually(LONG, "that they are full is told", || {
        let told = house.den(&["events", "--kind", "limit_reached", "--json"]).ok();
        let pools: Vec<_> = told
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|event| event["detail"]["pool"].as_str().unwrap_or_default().to_owned())
            .collect();
        pools == ["ten", "five"]
    });
    // The default has no limits, and none of this concerned it.
    house.den(&["new", "free"]).ok();
    assert_eq!(used(&house, "default", "computers"), 1);
    house.close();
}

#[test]
fn forks_are_made_all_or_none_and_stay_in_their_parents_pool() {
    let house = House::open(DEN);
    house.den(&["pool", "new", "team", "--computers", "4"]).ok();
    house.den(&["pool", "new", "lab"]).ok();
    new(&house, "web", "team", &[]).ok();
    house
        .den(&["fork", "web", "try", "--count", "4"])
        .refused(1, "4 computers wanted, 3 computers left of 4 computers");
    assert_eq!((computers_of(&house, "team"), used(&house, "team", "computers")), (vec!["web".to_owned()], 1));
    house.den(&["fork", "web", "lost", "--pool", "nowhere"]).refused(1, "there is no pool `nowhere`");
    house.den(&["fork", "web", "try", "--count", "3"]).ok();
    assert_eq!(computers_of(&house, "team").len(), 4);
    house.den(&["fork", "web", "last"]).refused(1, "the pool `team` is full");
    house.den(&["fork", "web", "other", "--pool", "lab"]).ok();
    assert_eq!(computers_of(&house, "lab"), ["other"]);
    house.sh("other", "true").ok();
    // What is refused for another reason takes nothing.
    house.den(&["rm", "--now", "try-1", "try-2"]).ok();
    house.den(&["fork", "web", "try", "--count", "2"]).ok();
    house.den(&["rm", "--now", "try-1", "try-3"]).ok();
    house.den(&["fork", "web", "try", "--count", "2"]).refused(1, "the name `try-2` is taken");
    assert_eq!(used(&house, "team", "computers"), 2);
    house.close();
}

#[test]
fn a_paused_computer_keeps_its_memory_and_a_stopped_one_gives_it_back() {
    let house = House::with(DEN, Options { trash_for: Some("1h".to_owned()), ..Options::default() });
    house.den(&["pool", "new", "team", "--memory", "128M", "--computers", "3", "--disk", "192M"]).ok();
    new(&house, "a", "team", &[]).ok();
    new(&house, "b", "team", &[]).ok();
    house.den(&["pause", "a"]).ok();
    new(&house, "c", "team", &[]).refused(1, "64 MiB of memory wanted, 0 B of memory left of 128 MiB of memory");
    house.den(&["resume", "a"]).ok();
    house.den(&["unplug", "a"]).ok();
    new(&house, "c", "team", &[]).refused(1, "of memory wanted");
    house.den(&["replug", "a"]).ok();
    house.den(&["stop", "a"]).ok();
    assert_eq!(used(&house, "team", "memory"), 64 << 20);
    new(&house, "c", "team", &[]).ok();
    house.den(&["start", "a"]).refused(1, "the pool `team` is full");
    assert_eq!(house.json(&["info", "a"])["state"], "stopped");
    // One in the trash counts for its disk.
    house.den(&["rm", "c"]).ok();
    assert_eq!((used(&house, "team", "computers"), used(&house, "team", "disk")), (2, 192 << 20));
    new(&house, "d", "team", &[]).refused(1, "of disk wanted");
    house.den(&["start", "a"]).ok();
    // It comes back, and stays stopped where there is no room for it to run.
    house.den(&["undo", "c"]).ok();
    assert_eq!(house.json(&["info", "c"])["state"], "stopped");
    assert_eq!((used(&house, "team", "computers"), used(&house, "team", "memory")), (3, 128 << 20));
    // One that ends by itself gives its memory back too.
    let id = house.json(&["info", "a"])["id"].as_str().expect("an id").to_owned();
    let record = std::fs::read_to_string(house.run_dir().join("computers").join(id).join("init")).expect("its record");
    let first = record.split(' ').next().and_then(|pid| pid.parse().ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(first.expect("a pid"), rustix::process::Signal::KILL).expect("it runs");
    eventually(LONG, "its memory is given back", || used(&house, "team", "memory") == 64 << 20);
    house.den(&["start", "c"]).ok();
    // A pool with computers in it stays, those in the trash with them.
    house.den(&["rm", "a", "b", "c"]).ok();
    house.den(&["pool", "rm", "team"]).refused(1, "has 3 computers in it, 3 of them in the trash");
    house.den(&["trash", "empty"]).ok();
    house.den(&["pool", "rm", "team"]).ok();
    house.den(&["pool", "info", "team"]).refused(1, "there is no pool `team`");
    house.close();
}

#[test]
fn computers_of_a_pool_share_its_cpu_and_one_alone_has_all_of_it() {
    let house = House::open(DEN);
    house.den(&["pool", "new", "half", "--cpus", "0.5"]).ok();
    for name in ["one", "two"] {
        new(&house, name, "half", &["--cpus", "1"]).ok();
        house.den(&["exec", "-d", name, "--", "sh", "-c", "while :; do :; done"]).ok();
    }
    let both = cpus_used(&house, &["one", "two"]);
    let sum: f64 = both.iter().sum();
    assert!(sum < 0.65, "together {both:?}");
    assert!(both.iter().all(|each| *each > sum / 4.0), "not shared: {both:?}");
    house.den(&["pause", "two"]).ok();
    let alone = cpus_used(&house, &["one"])[0];
    assert!(alone < 0.65 && alone > sum * 0.6, "alone {alone}, both {both:?}");
    // Another limit holds at once, for what runs.
    house.den(&["pool", "set", "half", "--cpus", "0.2"]).ok();
    let less = cpus_used(&house, &["one"])[0];
    assert!(less < 0.35, "{less} of 0.2");
    assert_eq!(cgroups(&house).cpu_limit("p1"), Some(200));
    house.den(&["pool", "set", "half", "--cpus", "none"]).ok();
    assert_eq!(cgroups(&house).cpu_limit("p1"), None);
    let all = cpus_used(&house, &["one"])[0];
    assert!(all > less * 1.3, "{all} where it had {less}");
    house.close();
}

/// How many computers of the pool `team` are so.
fn in_team(house: &House, is: impl Fn(&Cgroups, &str) -> bool) -> usize {
    let cgroups = cgroups(house);
    cgroups.list_in("p1").iter().filter(|name| is(&cgroups, &format!("p1/{name}"))).count()
}

/// That number just after the computer `calm` was at work.
fn beside_calm(house: &House, count: impl Fn(&House) -> usize) -> usize {
    house.sh("calm", "true").ok();
    count(house)
}

#[test]
fn who_keeps_processors_busy_goes_after_who_does_not() {
    let mut house = House::open(DEN);
    house.den(&["pool", "new", "team"]).ok();
    for name in ["busy", "calm"] {
        new(&house, name, "team", &["--cpus", "1"]).ok();
    }
    // Cgroups that weigh neither what a computer of one CPU does, nor what one of one and a half does.
    let behind =
        |house: &House| in_team(house, |cgroups, cell| !cgroups.weighs(cell, 1000) && !cgroups.weighs(cell, 1500));
    let yielding = |house: &House| in_team(house, Cgroups::yields);
    assert_eq!((behind(&house), yielding(&house)), (0, 0));
    // All of them together, beside the daemon and what else the host does.
    assert!(cgroups(&house).weighs("", 200));
    let spin = "while [ ! -e /root/enough ]; do :; done";
    house.den(&["exec", "-d", "busy", "--", "sh", "-c", spin]).ok();
    eventually(LONG, "one goes after others", || behind(&house) == 1);
    // Nobody is held up by it: it has its share of what is there, whoever else takes one.
    thread::sleep(MEASURED);
    assert_eq!(yielding(&house), 0);
    eventually(LONG, "it yields to it", || beside_calm(&house, yielding) == 1);
    assert_eq!(behind(&house), 1);
    eventually(LONG, "it stops, and it does not", || yielding(&house) == 0);
    assert_eq!(behind(&house), 1);
    // Those that compute all day are even.
    house.den(&["exec", "-d", "calm", "--", "sh", "-c", spin]).ok();
    eventually(LONG, "both compute", || behind(&house) == 2 && yielding(&house) == 0);
    thread::sleep(MEASURED);
    assert_eq!((behind(&house), yielding(&house)), (2, 0));
    house.sh("calm", "touch /root/enough").ok();
    eventually(LONG, "one of them has enough", || behind(&house) == 1);
    eventually(LONG, "the other yields to it", || beside_calm(&house, yielding) == 1);
    // The launcher writes the whole weight with other limits, which brings it to the front for a moment only.
    house.den(&["resize", "busy", "--cpus", "1.5"]).ok();
    eventually(LONG, "it goes after others again", || behind(&house) == 1);
    // One that a daemon left behind is known to the next.
    eventually(LONG, "it yields again", || beside_calm(&house, yielding) == 1);
    house.kill_serve();
    assert_eq!((behind(&house), yielding(&house)), (1, 1));
    house.start();
    eventually(LONG, "the next daemon has it yield to nobody", || yielding(&house) == 0);
    house.sh("busy", "touch /root/enough").ok();
    eventually(LONG, "it is in its turn again", || behind(&house) == 0);
    house.close();
}

#[test]
fn who_keeps_the_kernel_busy_leaves_a_processor_to_those_at_work() {
    let mut house = House::open(DEN);
    let all = cgroups(&house).processors().expect("processors that can be divided");
    if all.parse::<u32>().is_ok() {
        return; // There is one.
    }
    house.den(&["pool", "new", "team"]).ok();
    for name in ["busy", "other"] {
        new(&house, name, "team", &[]).ok();
    }
    new(&house, "calm", "default", &[]).ok();
    let held = |house: &House| {
        let cgroups = cgroups(house);
        in_team(house, Cgroups::is_held) + cgroups.list().iter().filter(|name| cgroups.is_held(name)).count()
    };
    let copy = "while [ ! -e /root/enough ]; do dd if=/dev/zero of=/dev/null bs=1M count=1000 2>/dev/null; done";
    house.den(&["exec", "-d", "busy", "--", "sh", "-c", copy]).ok();
    house.den(&["exec", "-d", "other", "--", "sh", "-c", copy]).ok();
    // Nobody else is at work: all processors are theirs.
    thread::sleep(MEASURED);
    assert_eq!(held(&house), 0);
    eventually(LONG, "they leave one to it", || beside_calm(&house, held) == 2);
    // What they see is what they have.
    let count = house.sh("busy", "nproc; grep -c ^processor /proc/cpuinfo").ok();
    assert_eq!(count, house.sh("calm", "nproc; grep -c ^processor /proc/cpuinfo").ok());
    eventually(LONG, "it stops, and they have it back", || held(&house) == 0);
    eventually(LONG, "it goes on, and they leave it", || beside_calm(&house, held) == 2);
    house.sh("other", "touch /root/enough").ok();
    eventually(LONG, "one has enough", || beside_calm(&house, held) == 1);
    house.kill_serve();
    assert_eq!(held(&house), 1);
    house.start();
    eventually(LONG, "the next daemon gives all back", || held(&house) == 0);
    house.sh("busy", "touch /root/enough").ok();
    house.close();
}

#[test]
fn limits_below_what_is_taken_are_refused_and_say_how_much_is() {
    let house = House::open(DEN);
    house.den(&["pool", "new", "team"]).ok();
    house.den(&["pool", "new", "team"]).refused(1, "there is a pool `team` already");
    house.den(&["pool", "new", "Team"]).refused(1, "has `T` in it");
    house.den(&["pool", "new", "other", "--cpus", "lots"]).refused(1, "`cpus`: `lots` is no number of CPUs");
    house.den(&["pool", "set", "team"]).refused(2, "give at least one of");
    house.den(&["pool", "rm", "default"]).refused(1, "cannot be removed");
    house.den(&["new", "web", "--pool", "nowhere"]).refused(1, "there is no pool `nowhere`");
    new(&house, "a", "team", &[]).ok();
    new(&house, "b", "team", &[]).ok();
    house.den(&["pool", "rm", "team"]).refused(1, "the pool `team` has 2 computers in it");
    for (limit, value, words) in [
        ("--computers", "1", "1 computer is too little for the pool `team`: 2 computers is taken"),
        ("--memory", "100M", "100 MiB of memory is too little for the pool `team`: 128 MiB of memory is taken"),
        ("--disk", "100M", "100 MiB of disk is too little for the pool `team`: 128 MiB of disk is taken"),
    ] {
        house.den(&["pool", "set", "team", limit, value]).refused(1, words);
    }
    assert_eq!(pool(&house, "team").get("computers"), None);
    house.den(&["pool", "set", "team", "--computers", "2", "--memory", "128M", "--disk", "128M"]).ok();
    new(&house, "c", "team", &[]).refused(1, "is full");
    house.den(&["pool", "set", "team", "--computers", "none", "--memory", "1G", "--disk", "none"]).ok();
    assert_eq!((pool(&house, "team")["memory"].as_u64(), pool(&house, "team").get("disk")), (Some(1 << 30), None));
    new(&house, "c", "team", &[]).ok();
    let list = house.den(&["pool", "ls"]).ok();
    assert!(list.lines().any(|line| line.starts_with("team ") && line.contains("192MiB of 1GiB")), "{list}");
    assert!(house.den(&["ls"]).ok().contains("POOL"));
    let metrics = house.api().get("/metrics").expect(200).text().to_owned();
    for line in ["den_pool_computers{pool=\"team\"} 3", "den_pool_memory_limit_bytes{pool=\"team\"} 1073741824"] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }
    house.close();
}

#[test]
fn computers_of_no_pool_are_where_they_were_and_limits_of_the_default_hold_for_them() {
    let house = House::open(DEN);
    house.new_computer("web");
    let own = |house: &House| cgroups(house).list().into_iter().filter(|name| name.starts_with('c')).count();
    assert!(own(&house) >= 1);
    assert_eq!(cgroups(&house).list().iter().filter(|name| name.starts_with('p')).count(), 0);
    assert_eq!(cgroups(&house).cpu_limit(""), None);
    house.den(&["pool", "set", "default", "--cpus", "0.5", "--computers", "2"]).ok();
    assert_eq!(cgroups(&house).cpu_limit(""), Some(500));
    house.den(&["exec", "-d", "web", "--", "sh", "-c", "while :; do :; done"]).ok();
    let used = cpus_used(&house, &["web"])[0];
    assert!(used < 0.65, "{used} of 0.5");
    house.new_computer("db");
    house.den(&["new", "more"]).refused(1, "the pool `default` is full");
    // A pool beside it has its own: what holds for the house is the sum, and nothing where one has no limit.
    house.den(&["pool", "new", "team", "--cpus", "1"]).ok();
    assert_eq!(cgroups(&house).cpu_limit(""), Some(1500));
    house.den(&["pool", "set", "team", "--cpus", "none"]).ok();
    assert_eq!(cgroups(&house).cpu_limit(""), None);
    house.den(&["pool", "rm", "team"]).ok();
    assert_eq!(cgroups(&house).cpu_limit(""), Some(500));
    house.den(&["pool", "set", "default", "--cpus", "none", "--computers", "none"]).ok();
    assert_eq!(cgroups(&house).cpu_limit(""), None);
    house.close();
}

#[test]
fn a_launcher_and_a_daemon_that_are_killed_leave_pools_as_they_were() {
    let mut house = House::open(DEN);
    house.den(&["pool", "new", "team", "--cpus", "0.5", "--memory", "128M"]).ok();
    new(&house, "a", "team", &["--cpus", "2"]).ok();
    new(&house, "b", "team", &[]).ok();
    house.kill_launcher();
    house.sh("a", "true").ok();
    assert!(cpu_us(&house, "a") > 0, "the next launcher knows where it is");
    house.den(&["pause", "a"]).ok();
    house.den(&["pause", "b"]).ok();
    house.kill_serve();
    house.kill_launcher();
    house.start();
    assert_eq!(house.json(&["info", "a"])["state"], "paused");
    house.den(&["resume", "a"]).ok();
    house.den(&["resume", "b"]).ok();
    house.sh("a", "echo on").ok();
    assert!(cpu_us(&house, "a") > 0);
    assert_eq!((used(&house, "team", "memory"), cgroups(&house).cpu_limit("p1")), (128 << 20, Some(500)));
    new(&house, "c", "team", &[]).refused(1, "is full");
    // What one may use by itself is known still: on cgroup v1 it is held to the lesser of this and its pool's.
    house.den(&["pool", "set", "team", "--cpus", "none"]).ok();
    let cells: Vec<_> = cgroups(&house).list_in("p1").into_iter().collect();
    let limits: Vec<_> = cells.iter().filter_map(|name| cgroups(&house).cpu_limit(&format!("p1/{name}"))).collect();
    assert!(limits.contains(&2000), "{cells:?} {limits:?}");
    house.den(&["rm", "--now", "a", "b"]).ok();
    house.den(&["pool", "rm", "team"]).ok();
    eventually(LONG, "its cgroup is gone", || !cgroups(&house).list().iter().any(|name| name == "p1"));
    house.close();
}

/// Whether a pool of three holds what is there: exactly as many more as are left get in.
fn adds_up(house: &House, when: &str) {
    let there = computers_of(house, "team");
    assert_eq!(used(house, "team", "computers"), there.len() as u64, "{when}");
    let runs = |name: &&String| house.json(&["info", name])["state"] == "running";
    let running = there.iter().filter(runs).count() as u64;
    assert_eq!(
        (used(house, "team", "running"), used(house, "team", "memory")),
        (running, running * (64 << 20)),
        "{when}"
    );
    for number in there.len()..3 {
        new(house, &format!("fill-{number}"), "team", &[]).ok();
    }
    new(house, "beyond", "team", &[]).refused(1, "the pool `team` is full");
    for name in computers_of(house, "team").iter().filter(|name| name.starts_with("fill-")) {
        house.den(&["rm", "--now", name]).ok();
    }
}

#[test]
fn a_daemon_killed_at_each_point_loses_and_leaks_nothing_of_a_pool() {
    let begin = |house: &House| {
        house.den(&["pool", "new", "team", "--computers", "3", "--memory", "192M"]).ok();
        new(house, "web", "team", &[]).ok();
    };
    let calm = |house: &House| {
        let others = computers_of(house, "team").into_iter().filter(|name| name != "web");
        others.for_each(|name| _ = house.den(&["rm", "--now", &name]).ok());
    };
    let check = |house: &House, when: &str, _| adds_up(house, when);
    at_each_point(DEN, &CREATE, begin, calm, |house| _ = new(house, "new", "team", &[]), check);
    at_each_point(DEN, &FORK, begin, calm, |house| _ = house.den(&["fork", "web", "try", "--count", "2"]), check);
}

#[test]
fn a_daemon_killed_at_each_point_of_a_stop_or_start_holds_what_runs() {
    let begin = |house: &House| {
        house.den(&["pool", "new", "team", "--computers", "3", "--memory", "192M"]).ok();
        new(house, "web", "team", &[]).ok();
    };
    let check = |house: &House, when: &str, _| adds_up(house, when);
    let started = |house: &House| _ = house.den(&["start", "web"]);
    at_each_point(DEN, &STOP, begin, started, |house| _ = house.den(&["stop", "web"]), check);
    let stopped = |house: &House| _ = house.den(&["stop", "web"]);
    at_each_point(DEN, &START, begin, stopped, started, check);
}

#[test]
fn a_daemon_killed_at_each_point_of_a_change_leaves_the_old_limits_or_the_new() {
    let begin = |house: &House| {
        house.den(&["pool", "new", "team", "--computers", "2"]).ok();
        new(house, "web", "team", &[]).ok();
    };
    let before = |house: &House| _ = house.den(&["pool", "set", "team", "--computers", "2", "--cpus", "1"]).ok();
    at_each_point(
        DEN,
        &["pool.tightened", "pool.set", "pool.row", "pool.closed", "pool.gone"],
        begin,
        |house| {
            before(house);
            house.den(&["pool", "new", "empty", "--cpus", "1"]);
        },
        |house| {
            house.den(&["pool", "set", "team", "--computers", "1", "--cpus", "0.5"]);
            house.den(&["pool", "new", "fresh"]);
            house.den(&["pool", "rm", "empty"]);
        },
        |house, when, _| {
            let team = pool(house, "team");
            let found = (team["computers"].as_u64(), team["cpus"].as_f64());
            let expected = if when.starts_with("pool.tightened") { (Some(2), Some(1.0)) } else { (Some(1), Some(0.5)) };
            assert_eq!(found, expected, "{when}");
            let fresh = house.den(&["pool", "info", "fresh"]).code == 0;
            let late = when.starts_with("pool.row") || when.starts_with("pool.closed") || when.starts_with("pool.gone");
            assert_eq!(fresh, late, "{when}");
            assert_eq!(house.den(&["pool", "info", "empty"]).code != 0, when.starts_with("pool.gone"), "{when}");
            let held = cgroups(house).cpu_limit("p1");
            assert_eq!(held, found.1.map(|cpus| (cpus * 1000.0) as u32), "{when}");
            house.den(&["pool", "rm", "fresh"]);
            house.sh("web", "true").ok();
        },
    );
}
