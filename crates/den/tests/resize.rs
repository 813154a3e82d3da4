//! Another size for a computer that is there: through the CLI and the API, with a real daemon.

use std::time::Duration;

use den_sys::cgroup::{Cgroups, instance_of};
use den_testkit::{House, Reply, at_each_point, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
/// What is seen by then has happened.
const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

const POINTS: [&str; 5] = ["resize.begun", "resize.part", "resize.held", "resize.row", "resize.done"];

fn patch(house: &House, name: &str, body: &Value) -> Reply {
    let headers = [("content-type", "application/json")];
    house.api().request("PATCH", &format!("/v1/computers/{name}"), &headers, body.to_string().as_bytes())
}

/// CPUs, memory, disk and processes of a computer, as it is shown.
fn size(house: &House, name: &str) -> Value {
    let view = house.json(&["info", name]);
    json!([view["cpus"], view["memory"], view["disk"], view["pids"]])
}

/// What the kernel holds the only computer that runs to: thousandths of a CPU, bytes of memory. Husks are held to
/// nothing.
fn held_to(house: &House) -> (u32, u64) {
    let cgroups = Cgroups::look(&instance_of(house.run_dir())).expect("cgroups");
    let held = |name: String| Some((cgroups.cpu_limit(&name)?, cgroups.memory_limit(&name)?));
    let all: Vec<_> = cgroups.list().into_iter().filter_map(held).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}

fn new(house: &House, name: &str) {
    house.den(&["new", name, "--cpus", "1", "--memory", "512MiB", "--disk", "64MiB", "--pids", "100"]).ok();
}

/// Whether that many MiB can be written to the disk.
fn writes(house: &House, name: &str, mib: u32) -> bool {
    let script = format!("head -c {mib}M /dev/urandom > /root/large && sync; code=$?; rm -f /root/large; exit $code");
    house.sh(name, &script).code == 0
}

#[test]
fn a_running_computer_gets_another_size_and_nothing_in_it_ends() {
    let house = House::open(DEN);
    new(&house, "web");
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
    assert_eq!(held_to(&house), (1000, 512 * MIB));
    assert!(!writes(&house, "web", 100), "the disk is held to its limit");

    let said = house.den(&["resize", "web", "--cpus", "0.5", "--memory", "256M", "--disk", "256M", "--pids", "60"]);
    assert_eq!(said.ok(), "cpus 0.5, memory 256MiB, disk 256MiB, processes 60");
    assert_eq!(size(&house, "web"), json!([0.5, 256 * MIB, 256 * MIB, 60]));
    assert_eq!(held_to(&house), (500, 256 * MIB));
    assert!(writes(&house, "web", 100), "the disk has room");
    assert_eq!(house.sh("web", "for i in $(seq 80); do sleep 3 & done; wait").code, 2, "no more processes than 60");
    eventually(LONG, "it sleeps on", || house.sh("web", "pgrep -cfx 'sleep 3000'").stdout == "1\n");

    // What is not named stays.
    house.den(&["resize", "web", "--memory", "1G"]).ok();
    assert_eq!(size(&house, "web"), json!([0.5, 1024 * MIB, 256 * MIB, 60]));
    assert_eq!(held_to(&house), (500, 1024 * MIB));
    assert_eq!(house.den(&["resize", "web"]).ok(), "cpus 0.5, memory 1GiB, disk 256MiB, processes 60");
    assert_eq!(house.sh("web", "head -c 600M /dev/zero | tail | wc -c").ok(), (600 * MIB).to_string());

    // A fork has it, and another daemon knows it.
    house.den(&["fork", "web", "child"]).ok();
    assert_eq!(size(&house, "child"), json!([0.5, 1024 * MIB, 256 * MIB, 60]));
    house.den(&["rm", "child", "--now"]).ok();
    let mut house = house;
    house.kill_serve();
    house.start();
    assert_eq!(size(&house, "web"), json!([0.5, 1024 * MIB, 256 * MIB, 60]));
    assert_eq!(held_to(&house), (500, 1024 * MIB));
    let events = house.den(&["events", "--kind", "resized", "--json"]).ok();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!((&events[1]["who"], &events[1]["detail"]["after"]["memory"]), (&json!("api"), &json!(1024 * MIB)));
}

#[test]
fn memory_becomes_less_where_what_is_beyond_can_be_taken_and_else_not_at_all() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--memory", "512MiB", "--disk", "1GiB"]).ok();
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
    // Files that were read and written fill it; they are let go.
    house.sh("web", "head -c 350M /dev/urandom > /root/large; sync; cat /root/large | wc -c").ok();
    house.den(&["resize", "web", "--memory", "128M"]).ok();
    assert_eq!(held_to(&house).1, 128 * MIB);
    // What only lies in memory stays there, and what it is in goes on.
    house.den(&["resize", "web", "--memory", "512M"]).ok();
    house.sh("web", "head -c 200M /dev/zero > /dev/shm/held").ok();
    let has_swap = std::fs::read_to_string("/proc/swaps").is_ok_and(|table| table.lines().count() > 1);
    if !has_swap {
        let error = patch(&house, "web", &json!({"memory": "128M", "cpus": 0.5, "idle": "10m"}));
        let error = error.refusal(409, "memory_in_use");
        assert!(error["message"].as_str().is_some_and(|text| text.contains("128 MiB")), "{error}");
        assert_eq!(size(&house, "web")[1], json!(512 * MIB));
        assert_eq!(house.json(&["info", "web"])["idle"], Value::Null);
        assert_eq!(held_to(&house).1, 512 * MIB);
    }
    house.sh("web", "rm /dev/shm/held").ok();
    // In its sleep too, and it sleeps on.
    house.den(&["pause", "web"]).ok();
    house.den(&["resize", "web", "--memory", "64M"]).ok();
    let view = house.json(&["info", "web"]);
    assert_eq!((&view["state"], &view["memory"]), (&json!("paused"), &json!(64 * MIB)));
    assert_eq!(held_to(&house).1, 64 * MIB);
    assert_eq!(house.sh("web", "pgrep -cfx 'sleep 3000'").ok(), "1");
    let usage = &house.json(&["info", "web"])["usage"];
    assert_eq!(usage["oom_kills"], 0, "{usage}");
}

#[test]
fn a_disk_becomes_no_smaller_than_what_is_on_it() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--disk", "512MiB"]).ok();
    house.sh("web", "head -c 200M /dev/urandom > /root/large; sync").ok();
    let error = patch(&house, "web", &json!({"disk": "128MiB"})).refusal(409, "disk_in_use");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("more than 128 MiB"), "{message}");
    assert_eq!(size(&house, "web")[2], json!(512 * MIB));
    house.den(&["resize", "web", "--disk", "300M"]).ok();
    assert!(!writes(&house, "web", 150), "held to 300 MiB");
    // Put back, it is another subvolume, counted together with what it was.
    house.den(&["snap", "web", "first"]).ok();
    house.den(&["restore", "web@first"]).ok();
    house.den(&["resize", "web", "--disk", "600M"]).ok();
    assert!(writes(&house, "web", 200), "it has room for 400 MiB more");
    house.den(&["stop", "web"]).ok();
    house.den(&["resize", "web", "--disk", "1G", "--memory", "300M"]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(held_to(&house).1, 300 * MIB);
    assert!(writes(&house, "web", 500), "it has room for 800 MiB more");
}

#[test]
fn a_size_that_makes_no_sense_or_comes_at_the_wrong_time_is_refused() {
    let house = House::open(DEN);
    new(&house, "web");
    let before = size(&house, "web");
    for (body, code, field) in [
        (json!({"memory": "1M"}), "bad_size", "`memory`"),
        (json!({"disk": "1K"}), "bad_size", "`disk`"),
        (json!({"cpus": 0}), "bad_size", "`cpus`"),
        (json!({"pids": 3}), "bad_size", "`pids`"),
        (json!({"memory": "much"}), "bad_size", "`memory`"),
        (json!({"memory": "1G", "idle": "soon"}), "bad_idle", "`idle`"),
    ] {
        let error = patch(&house, "web", &body).refusal(400, code);
        assert!(error["message"].as_str().is_some_and(|text| text.contains(field)), "{body}: {error}");
    }
    patch(&house, "nobody", &json!({"memory": "1G"})).refusal(404, "computer_not_found");
    house.den(&["unplug", "web"]).ok();
    patch(&house, "web", &json!({"memory": "1G"})).refusal(409, "unplugged");
    house.den(&["replug", "web"]).ok();
    assert_eq!(size(&house, "web"), before);
    assert_eq!(house.json(&["undo", "web", "--list"]), json!([]), "nothing was done");
}

#[test]
fn a_resize_is_taken_back_and_that_too() {
    let house = House::open(DEN);
    new(&house, "web");
    let before = size(&house, "web");
    house.den(&["resize", "web", "--cpus", "2", "--disk", "256M"]).ok();
    let after = size(&house, "web");
    let text = house.json(&["undo", "web", "--list"])[0]["text"].clone();
    assert_eq!(text, "size of web: cpus 2 disk 256 MiB, was cpus 1 disk 64 MiB");
    let done = house.json(&["undo", "web"]);
    assert_eq!(size(&house, "web"), before);
    assert_eq!(held_to(&house).0, 1000);
    assert!(!writes(&house, "web", 100), "the disk is held to what it was");
    house.den(&["undo", "--number", &done["redo"].to_string()]).ok();
    assert_eq!(size(&house, "web"), after);
    assert!(writes(&house, "web", 100), "it has room again");
    // What has changed since is not taken back blindly.
    let first = house.json(&["undo", "web", "--list"])[0]["number"].to_string();
    house.den(&["resize", "web", "--cpus", "3"]).ok();
    house.den(&["undo", "--number", &first]).refused(1, "changed again since");
    house.den(&["undo", "web"]).ok();
    assert_eq!(size(&house, "web"), after);
}

#[test]
fn a_kill_at_each_point_of_a_resize_leaves_the_old_size_or_the_new_one() {
    at_each_point(
        DEN,
        &POINTS,
        |house| new(house, "web"),
        |house| {
            house.den(&["resize", "web", "--cpus", "1", "--memory", "512M", "--disk", "64M"]).ok();
        },
        |house| {
            let body = json!({"cpus": 2, "memory": "256M", "disk": "256M"}).to_string();
            let headers = [("content-type", "application/json")];
            let reply = house.api().open("PATCH", "/v1/computers/web", &headers, body.as_bytes());
            assert!(reply.is_err(), "it was answered");
        },
        |house, when, _| {
            eventually(LONG, &format!("{when}: it runs"), || house.sh("web", "true").code == 0);
            let is_new = match size(house, "web") {
                size if size == json!([1.0, 512 * MIB, 64 * MIB, 100]) => false,
                size if size == json!([2.0, 256 * MIB, 256 * MIB, 100]) => true,
                size => panic!("{when}: {size}"),
            };
            let held = if is_new { (2000, 256 * MIB) } else { (1000, 512 * MIB) };
            assert_eq!(held_to(house), held, "{when}");
            assert_eq!(writes(house, "web", 100), is_new, "{when}");
            let point = when.split(',').next();
            let expected = matches!(point, Some("resize.row" | "resize.done"));
            assert_eq!(is_new, expected, "{when}");
        },
    );
}
