//! Much at once, and clients that hang or vanish: what it costs the daemon and the agent inside.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use den_testkit::http::Stream;
use den_testkit::{House, eventually};
use serde_json::{Value, json};

use super::{DEN, ask, create, exec, python};

/// What the output of one command may add to the memory of a process, in KiB.
const GROWTH_KIB_MAX: u64 = 48 << 10;

#[test]
fn python_many_at_once_newest() {
    python("2.63.0", &["test_streams.py"]);
}

#[test]
fn python_a_file_of_4_gib() {
    python("2.63.0", &["test_large.py"]);
}

/// The most memory of its own that a process ever had, in KiB.
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number")
}

/// PID 1 of the only computer, as the host sees it.
fn agent(house: &House) -> i32 {
    let computers = house.run_dir().join("computers");
    let one = std::fs::read_dir(computers).expect("computers").next().expect("one").expect("a folder");
    let text = std::fs::read_to_string(one.path().join("init")).expect("its first process");
    text.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a pid")
}

/// Begins a command of a shell and returns its stream, of which nothing is read yet.
fn begin(house: &House, id: &str, script: &str, tag: &str) -> Stream {
    let process = json!({ "cmd": "/bin/sh", "args": ["-c", script] });
    open(house, id, "process.Process/Start", &json!({ "process": process, "stdin": false, "tag": tag }))
}

fn open(house: &House, id: &str, call: &str, message: &Value) -> Stream {
    let (_, view) = ask(house, "GET", &format!("/sandboxes/{id}"), &Value::Null);
    let token = view["envdAccessToken"].as_str().expect("a token");
    let headers = [
        ("e2b-sandbox-id", id),
        ("e2b-sandbox-port", "49983"),
        ("x-access-token", token),
        ("content-type", "application/connect+json"),
    ];
    let message = message.to_string();
    let length = u32::try_from(message.len()).expect("it is short");
    let body = [&[0][..], &length.to_be_bytes(), message.as_bytes()].concat();
    let stream = house.api().open("POST", &format!("/{call}"), &headers, &body).expect("an answer");
    assert_eq!(stream.status, 200);
    stream
}

/// Reads a stream to its end: how many bytes its command said on standard output, and its last message.
fn drain(stream: &mut Stream) -> (u64, Value) {
    let (mut said, mut last, mut message) = (0, Value::Null, Vec::new());
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).expect("a message");
        message.resize(u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize, 0);
        stream.read_exact(&mut message).expect("all of it");
        // By its length alone: reading a gigabyte of JSON is not what this is about.
        let coded =
            message.strip_prefix(br#"{"event":{"data":{"stdout":""#).and_then(|rest| rest.strip_suffix(br#""}}}"#));
        match coded {
            Some(coded) => {
                let filling = coded.iter().rev().take_while(|byte| **byte == b'=').count();
                said += (coded.len() / 4 * 3 - filling) as u64;
            }
            None if head[0] == 2 => return (said, last),
            None => last = serde_json::from_slice(&message).expect("JSON"),
        }
    }
}

/// What the daemon and the agent have had at most, each with its pid.
struct Memory([(i32, u64); 2]);

impl Memory {
    fn has_hardly_grown(&self) {
        for (pid, before) in self.0 {
            let grown = peak_kib(pid) - before;
            assert!(grown < GROWTH_KIB_MAX, "process {pid}: {grown} KiB more");
        }
    }
}

/// A sandbox that has run a command, so that what is kept ready for all commands is there.
fn measured() -> (House, String, Memory) {
    let house = House::open(DEN);
    let id = create(&house, 3600);
    let processes = [house.serve_pid().expect("a serve runs"), agent(&house)];
    assert_eq!(drain(&mut begin(&house, &id, "head -c 10000000 /dev/zero", "t")).0, 10_000_000);
    (house, id, Memory(processes.map(|pid| (pid, peak_kib(pid)))))
}

#[test]
fn a_gigabyte_of_output_passes_with_constant_memory() {
    let (house, id, memory) = measured();
    let (said, last) = drain(&mut begin(&house, &id, "head -c 1000000000 /dev/zero", "t"));
    assert_eq!((said, &last["event"]["end"]["status"]), (1_000_000_000, &json!("exit status 0")), "{last}");
    memory.has_hardly_grown();
    house.close();
}

#[test]
fn clients_that_do_not_read_cost_little_and_hold_nobody_up() {
    let (house, id, memory) = measured();
    let serve = house.serve_pid().expect("a serve runs");
    let connections = descriptors(serve);
    let script = |number: u32| format!("head -c 50000000 /dev/zero; touch /tmp/done-{number}");
    let mut hung: Vec<Stream> = (0..10).map(|number| begin(&house, &id, &script(number), "t")).collect();
    let done = || exec(&house, &id, "ls /tmp").ok().matches("done-").count() == hung.len();
    eventually(Duration::from_secs(60), "all of them end, though nobody reads", done);
    memory.has_hardly_grown();
    // One reads at last, and has all of it; the others vanish.
    let mut one = hung.swap_remove(3);
    drop(hung);
    assert_eq!(drain(&mut one).0, 50_000_000);
    let gone = || descriptors(serve) < connections + 10;
    eventually(Duration::from_secs(30), "their connections are let go", gone);
    house.close();
}

/// How many descriptors a process has.
fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).expect("a process").count()
}

#[test]
fn a_process_outlives_the_client_that_began_it() {
    let house = House::open(DEN);
    let id = create(&house, 3600);
    let script = "touch /tmp/begun; while ! test -e /tmp/go; do sleep 0.02; done; echo went on";
    drop(begin(&house, &id, script, "left"));
    let begun = || exec(&house, &id, "test -e /tmp/begun").code == 0;
    eventually(Duration::from_secs(30), "it has begun", begun);
    let mut again = open(&house, &id, "process.Process/Connect", &json!({ "process": { "tag": "left" } }));
    exec(&house, &id, "touch /tmp/go").ok();
    let (said, last) = drain(&mut again);
    assert_eq!((said, &last["event"]["end"]["status"]), (8, &json!("exit status 0")), "{last}");
    house.close();
}
