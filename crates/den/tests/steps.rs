//! Steps: commands with their streams, codes, users, signals; their output, read from any byte.

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use den_testkit::{House, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");

/// How long something may take that is done at once on a machine at rest.
const LONG: Duration = Duration::from_secs(60);

fn steps(house: &House, name: &str) -> Vec<Value> {
    house.api().get(&format!("/v1/computers/{name}/steps?limit=1000&order=asc")).expect(200).json()["items"]
        .as_array()
        .expect("items")
        .clone()
}

fn raw(house: &House, name: &str, step: u64, query: &str) -> Vec<u8> {
    let path = format!("/v1/computers/{name}/steps/{step}/output?{query}");
    house.api().request("GET", &path, &[("accept", "application/octet-stream")], b"").expect(200).body
}

/// Starts a detached step; its number.
fn detached(house: &House, name: &str, script: &str) -> u64 {
    let reply = house
        .api()
        .post(&format!("/v1/computers/{name}/steps"), &json!({"argv": ["bash", "-c", script], "detach": true}))
        .expect(202);
    reply.json()["number"].as_u64().expect("a number")
}

fn ended(house: &House, name: &str, step: u64) -> Value {
    let mut view = Value::Null;
    eventually(LONG, "the step ends", || {
        view = house.api().get(&format!("/v1/computers/{name}/steps/{step}")).expect(200).json();
        view["status"] == "ended"
    });
    view
}

#[test]
fn codes_and_streams_come_back_as_they_are() {
    let house = House::open(DEN);
    house.new_computer("web");
    let check = |script: &str, code: i32, stdout: &str, stderr: &str| {
        let ran = house.sh("web", script);
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (code, stdout, stderr), "{script}");
    };
    check("true", 0, "", "");
    check("false", 1, "", "");
    check("exit 42", 42, "", "");
    check("exit 255", 255, "", "");
    check("echo out; echo err >&2; exit 3", 3, "out\n", "err\n");
    check("printf 'no end of line'", 0, "no end of line", "");
    check("kill -TERM $$", 143, "", "");
    check("kill -KILL $$", 137, "", "");
    check("exit 137", 137, "", "");
    check("cat", 0, "", "");
    check("umask; ulimit -c", 0, "0022\n0\n", "");
    // A signal is told from a code, though the shell's number is the same.
    let ends: Vec<_> = steps(&house, "web").iter().map(|step| step["end"].clone()).collect();
    assert_eq!(ends[7]["how"], "signaled", "{ends:?}");
    assert_eq!(ends[7]["signal"], 9);
    assert_eq!(ends[8]["how"], "exited");
    assert_eq!((&ends[7]["exit_code"], &ends[8]["exit_code"]), (&json!(137), &json!(137)));
}

#[test]
fn what_cannot_be_started_says_what_a_shell_would() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo data > /root/data; mkdir /root/dir; printf '#!/no/such/interpreter\n' > /root/bad; chmod 755 /root/bad; printf 'echo plain\n' > /root/plain; chmod 755 /root/plain").ok();
    let check = |command: &str, code: i32, words: &str| {
        house.den(&["exec", "web", "--", command]).refused(code, words);
    };
    check("no-such-command", 127, "command not found");
    check("/no/such/file", 127, "No such file or directory");
    check("/root/data", 126, "Permission denied");
    check("/root/dir", 126, "Is a directory");
    house.den(&["exec", "web", "--", "/root/bad"]).refused(127, "cannot execute: required file not found");
    assert_eq!(house.den(&["exec", "web", "--", "/root/plain"]).ok(), "plain");
    let step = &steps(&house, "web")[1];
    assert_eq!(step["end"]["how"], "not_started", "{step}");
    let api = house.api();
    let path = "/v1/computers/web/steps";
    api.post(path, &json!({"argv": ["true"], "cwd": "/no/such"})).refusal(400, "no_such_cwd");
    api.post(path, &json!({"argv": ["true"], "cwd": "/root/data"})).refusal(400, "no_such_cwd");
    api.post(path, &json!({"argv": ["true"], "user": "nobody-here"})).refusal(400, "no_such_user");
    for argv in [json!([]), json!([""]), json!(["", "x"])] {
        let error = api.post(path, &json!({ "argv": argv })).refusal(400, "bad_request");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("den exec")), "{error}");
    }
    house.den(&["exec", "web", "--", ""]).refused(1, "the command is an empty word\nhint: ");
    api.post(path, &json!({"argv": ["a\u{0}b"]})).refusal(400, "bad_request");
    api.post(path, &json!({"argv": ["true"], "stdin": "no base64!"})).refusal(400, "bad_request");
    house.den(&["exec", "web", "--cwd", "/no/such", "--", "true"]).refused(1, "/no/such");
    house.den(&["exec", "web", "--user", "nobody-here", "--", "true"]).refused(1, "nobody-here");
}

#[test]
fn where_as_whom_and_with_what_environment() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--env", "A=computer", "--env", "B=computer"]).ok();
    assert_eq!(house.den(&["exec", "web", "--cwd", "/usr/share", "--", "pwd"]).ok(), "/usr/share");
    assert_eq!(
        house.den(&["exec", "web", "--env", "A=request", "--", "sh", "-c", "echo $A $B"]).ok(),
        "request computer"
    );
    let as_user = |user: &str, script: &str| house.den(&["exec", "web", "--user", user, "--", "sh", "-c", script]).ok();
    assert_eq!(as_user("user", "id -un; echo $HOME $USER; pwd; sudo id -u"), "user\n/home/user user\n/home/user\n0");
    assert_eq!(as_user("1000", "id -un"), "user");
    assert_eq!(as_user("user:games", "id -gn"), "games");
    assert_eq!(as_user("4321:8765", "id -u; id -g"), "4321\n8765");
    assert_eq!(
        house.sh("web", "echo $HOME $USER $PATH; locale | grep LANG=").ok().lines().next().expect("a line"),
        "/root root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
    assert_eq!(house.sh("web", "echo $LANG").ok(), "C.UTF-8");
}

#[test]
fn input_is_binary_and_ends() {
    let house = House::open(DEN);
    house.new_computer("web");
    let bytes: Vec<u8> = (0..6_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let file = house.scratch().join("in");
    std::fs::write(&file, &bytes).expect("a file");
    let mut child = house
        .command(&["exec", "-i", "web", "--", "cat"])
        .stdin(std::fs::File::open(&file).expect("the file"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("den exec");
    let mut got = Vec::new();
    child.stdout.take().expect("its output").read_to_end(&mut got).expect("bytes");
    assert!(child.wait().expect("its end").success());
    assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    assert_eq!(house.den_with(&["exec", "-i", "web", "--", "wc", "-c"], b"").ok(), "0");
    // A command that does not read does not wait.
    assert_eq!(house.den_with(&["exec", "-i", "web", "--", "echo", "done"], &bytes).ok(), "done");
    let reply =
        house.api().post("/v1/computers/web/steps", &json!({"argv": ["cat"], "stdin": "aGVsbG8AIQ=="})).expect(200);
    assert_eq!(reply.json()["stdout"], "hello\u{0}!");
    // The shell reads commands from what is no terminal.
    assert_eq!(house.den_with(&["sh", "web"], b"echo $((6*7))\nexit 3\n").refused(3, "").stdout, "42\n");
}

#[test]
fn output_of_all_bytes_on_both_streams_stays_as_it_is() {
    let house = House::open(DEN);
    house.new_computer("web");
    let script = "import os,sys\nb=bytes(range(256))*300\nos.write(1,b)\nos.write(2,b[::-1])";
    let output = house.command(&["exec", "web", "--", "python3", "-c", script]).output().expect("den exec");
    let bytes: Vec<u8> = (0..300).flat_map(|_| 0..=255_u8).collect();
    let turned: Vec<u8> = bytes.iter().rev().copied().collect();
    assert!(output.stdout == bytes && output.stderr == turned);
    assert!(raw(&house, "web", 1, "stream=stdout") == bytes);
    assert!(raw(&house, "web", 1, "stream=stderr") == turned);
    let reply = house.api().post("/v1/computers/web/steps", &json!({"argv": ["printf", "\\377"]})).expect(200).json();
    assert_eq!((&reply["stdout"], &reply["stdout_base64"]), (&json!(""), &json!("/w==")));
}

#[test]
fn a_timeout_ends_the_whole_group() {
    let house = House::open(DEN);
    house.new_computer("web");
    let script = "sleep 4000 & sleep 4000 & echo started; wait";
    let ran = house.den(&["exec", "web", "--timeout", "500ms", "--", "bash", "-c", script]);
    assert_eq!((ran.code, ran.stdout.as_str()), (124, "started\n"), "{}", ran.stderr);
    assert_eq!(steps(&house, "web")[0]["end"]["how"], "timed_out");
    eventually(LONG, "the group is gone", || house.sh("web", "pgrep -fx 'sleep 4000'").code == 1);
    // One that shuts its ears is ended all the same.
    let ran = house.den(&[
        "exec",
        "web",
        "--timeout",
        "300ms",
        "--",
        "bash",
        "-c",
        "trap '' TERM; while :; do sleep 0.1; done",
    ]);
    assert_eq!(ran.code, 124);
}

#[test]
fn signals_reach_the_group() {
    let house = House::open(DEN);
    house.new_computer("web");
    let step = detached(
        &house,
        "web",
        "trap 'echo got USR1' USR1; trap 'echo got INT; exit 9' INT; echo ready; while :; do sleep 0.05; done",
    );
    eventually(LONG, "it is ready", || raw(&house, "web", step, "").starts_with(b"ready"));
    let signal = |signal: &str| {
        house.api().post(&format!("/v1/computers/web/steps/{step}/signal"), &json!({ "signal": signal }))
    };
    signal("NOPE").refusal(400, "bad_request");
    signal("USR1").expect(204);
    eventually(LONG, "USR1 came", || raw(&house, "web", step, "stream=stdout").ends_with(b"got USR1\n"));
    signal("SIGINT").expect(204);
    assert_eq!(ended(&house, "web", step)["end"]["exit_code"], 9);
    signal("INT").refusal(409, "step_ended");
    house.api().post("/v1/computers/web/steps/999/signal", &json!({"signal": "INT"})).refusal(404, "step_not_found");
    let step = detached(&house, "web", "sleep 1000");
    house.api().post(&format!("/v1/computers/web/steps/{step}/signal"), &json!({"signal": "9"})).expect(204);
    assert_eq!(ended(&house, "web", step)["end"]["signal"], 9);
}

#[test]
fn several_run_at_once() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "mkfifo /root/a /root/b").ok();
    // Each waits for the other: one after the other they would hang.
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| house.sh("web", "timeout 50 cat /root/a; echo second > /root/b"));
        let second = scope.spawn(|| house.sh("web", "echo first > /root/a; timeout 50 cat /root/b"));
        (first.join().expect("a run"), second.join().expect("a run"))
    });
    assert_eq!((first.ok().as_str(), second.ok().as_str()), ("first", "second"));
    let outputs: Vec<String> = std::thread::scope(|scope| {
        let house = &house;
        let running: Vec<_> = (0..40)
            .map(|n| scope.spawn(move || house.sh("web", &format!("echo {n}; sleep 0.2; echo {n}")).ok()))
            .collect();
        running.into_iter().map(|thread| thread.join().expect("a run")).collect()
    });
    for (number, output) in outputs.iter().enumerate() {
        assert_eq!(*output, format!("{number}\n{number}"));
    }
}

#[test]
fn what_goes_on_in_the_background_does_not_hold_a_step() {
    let house = House::open(DEN);
    house.new_computer("web");
    let start = Instant::now();
    assert_eq!(house.sh("web", "sleep 3000 & echo started").ok(), "started");
    assert!(start.elapsed() < LONG);
    assert_eq!(house.sh("web", "pgrep -fx 'sleep 3000' | wc -l").ok(), "1", "it goes on");
    house.sh("web", "setsid sh -c 'sleep 0.3; echo survived > /root/file' > /dev/null 2>&1 &").ok();
    eventually(LONG, "the service wrote", || house.sh("web", "cat /root/file").stdout == "survived\n");
    // Orphans are reaped.
    house.sh("web", "for i in 1 2 3 4 5; do (sh -c 'sleep 0.05' &) ; done").ok();
    eventually(LONG, "no zombie", || house.sh("web", "ps -eo stat= | grep -c Z").stdout == "0\n");
}

#[test]
fn a_detached_step_is_found_again() {
    let house = House::open(DEN);
    house.new_computer("web");
    let number = house
        .den(&["exec", "web", "-d", "--", "bash", "-c", "for i in $(seq 30); do echo $i; sleep 0.05; done; exit 5"])
        .ok();
    let expected: String = (1..=30).map(|n| format!("{n}\n")).collect();
    let ran = house.den(&["attach", "web", &number]);
    assert_eq!((ran.code, ran.stdout), (5, expected.clone()));
    let ran = house.den(&["attach", "web", &number, "--from", "4"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (5, &expected[4..]));
    let ran = house.den(&["log", "web", &number]);
    assert_eq!(ran.ok(), expected.trim_end());
    let log = house.den(&["log", "web"]).ok();
    assert_eq!(log.lines().filter(|line| line.contains("bash -c")).count(), 1, "{log}");
    house.den(&["attach", "web", "77"]).refused(1, "77");
}

#[test]
fn output_is_read_from_any_byte_by_any_number() {
    let house = House::open(DEN);
    house.new_computer("web");
    let expected: Vec<u8> = (1..=150_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let step = detached(&house, "web", "seq 1 60000; sleep 0.5; seq 60001 150000");
    std::thread::scope(|scope| {
        for reader in 0..12_usize {
            let (house, expected) = (&house, &expected);
            scope.spawn(move || {
                let from = reader * 70_001;
                let got = raw(house, "web", step, &format!("from={from}&follow=true"));
                assert!(got == expected[from..], "from {from}: {} of {} bytes", got.len(), expected.len() - from);
            });
        }
    });
    let view = ended(&house, "web", step);
    assert_eq!(view["output_bytes"], expected.len());
    for from in [0, 1, 4095, 4096, 65_535, 65_536, expected.len() - 1, expected.len(), expected.len() + 1000] {
        let got = raw(&house, "web", step, &format!("from={from}"));
        assert!(got == expected[from.min(expected.len())..], "from {from}: {} bytes", got.len());
    }
}

#[test]
fn a_reader_that_does_not_read_stalls_nobody() {
    let house = House::open(DEN);
    house.new_computer("web");
    let api = house.api();
    let step = detached(&house, "web", "head -c 96M /dev/zero; echo done > /root/done");
    let path = format!("/v1/computers/web/steps/{step}/output?follow=true");
    let mut slow = api.open("GET", &path, &[("accept", "application/octet-stream")], b"").expect("a stream");
    let dead = api.open("GET", &path, &[("accept", "text/event-stream")], b"").expect("a stream");
    let mut first = [0; 100];
    slow.read_exact(&mut first).expect("the first bytes");
    drop(dead);
    let view = ended(&house, "web", step);
    assert_eq!(view["output_bytes"], 96 << 20);
    house.sh("web", "cat /root/done").ok();
    // Nothing was lost for it meanwhile.
    let rest = std::io::copy(&mut slow, &mut std::io::sink()).expect("the rest");
    assert_eq!(rest + 100, 96 << 20);
}

#[test]
fn a_client_that_is_killed_ends_nothing() {
    let house = House::open(DEN);
    house.new_computer("web");
    let mut client = house
        .command(&[
            "exec",
            "web",
            "--",
            "bash",
            "-c",
            "for i in $(seq 40); do echo $i; sleep 0.05; done; echo end > /root/end",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("den exec");
    let mut first = [0; 2];
    client.stdout.as_mut().expect("its output").read_exact(&mut first).expect("the first line");
    client.kill().expect("SIGKILL");
    client.wait().expect("its end");
    assert_eq!(ended(&house, "web", 1)["end"]["exit_code"], 0);
    assert_eq!(house.sh("web", "cat /root/end").ok(), "end");
    assert_eq!(raw(&house, "web", 1, ""), (1..=40).flat_map(|n| format!("{n}\n").into_bytes()).collect::<Vec<_>>());
}

#[test]
fn what_is_over_the_limit_is_cut_and_said() {
    let house = House::open(DEN);
    house.new_computer("web");
    let script = "seq 1 4000000";
    let total: u64 = (1..=4_000_000_u64).map(|n| n.to_string().len() as u64 + 1).sum();
    let reply = house
        .api()
        .post("/v1/computers/web/steps", &json!({"argv": ["sh", "-c", script], "keep_bytes": 9 << 20}))
        .expect(200)
        .json();
    assert_eq!(reply["truncated"], true);
    assert_eq!(reply["step"]["output_bytes"], total);
    let path = "/v1/computers/web/steps/1/output";
    let events = house
        .api()
        .open("GET", path, &[("accept", "text/event-stream")], b"")
        .expect("a stream")
        .events(|event| event == "end" || event == "error");
    let (mut at, mut cut, mut data) = (0, 0, 0_u64);
    for (event, _, text) in &events {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{event}: {e}: {text}"));
        match event.as_str() {
            "stdout" => {
                assert_eq!(value["offset"], at, "without a gap");
                let base64 = value["data"].as_str().expect("data");
                let bytes = (base64.len() / 4 * 3 - base64.bytes().rev().take_while(|b| *b == b'=').count()) as u64;
                at += bytes;
                data += bytes;
            }
            "cut" => {
                assert_eq!(value["offset"], at, "without a gap");
                let bytes = value["bytes"].as_u64().expect("bytes");
                at += bytes;
                cut += bytes;
            }
            _ => {}
        }
    }
    assert_eq!((at, cut + data), (total, total), "what is cut is counted");
    assert!(cut > 0 && data <= 14 << 20, "cut {cut}, kept {data}");
    let kept = raw(&house, "web", 1, "");
    assert!(kept.ends_with(b"3999999\n4000000\n"), "the end is kept");
}

#[test]
fn a_short_limit_does_not_break_a_long_command() {
    let house = House::open(DEN);
    house.new_computer("web");
    let ran =
        house.den(&["exec", "web", "--keep", "4MiB", "--", "sh", "-c", "head -c 50M /dev/zero; echo end >&2; exit 4"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert_eq!(ended(&house, "web", 1)["output_bytes"], (50 << 20) + 4);
    house
        .api()
        .post("/v1/computers/web/steps", &json!({"argv": ["true"], "keep_bytes": 1}))
        .refusal(400, "bad_request");
}

#[test]
fn output_of_a_stopped_computer_is_still_there() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo kept").ok();
    let running = detached(&house, "web", "echo begun; sleep 1000");
    eventually(LONG, "it began", || raw(&house, "web", running, "") == b"begun\n");
    house.den(&["stop", "web", "--grace", "1s"]).ok();
    assert_eq!(house.den(&["log", "web", "1"]).ok(), "kept");
    let view = ended(&house, "web", running);
    assert!(["signaled", "lost", "exited"].contains(&view["end"]["how"].as_str().expect("how")), "{view}");
    assert_eq!(raw(&house, "web", running, "follow=true"), b"begun\n");
}

#[test]
fn a_list_of_steps_is_paged_both_ways() {
    let house = House::open(DEN);
    house.new_computer("web");
    for number in 1..=7 {
        house.sh("web", &format!("exit {number}")).refused(number, "");
    }
    for (order, expected) in [("asc", [1, 2, 3, 4, 5, 6, 7]), ("desc", [7, 6, 5, 4, 3, 2, 1])] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page =
                house.api().get(&format!("/v1/computers/web/steps?limit=3&order={order}{after}")).expect(200).json();
            seen.extend(
                page["items"]
                    .as_array()
                    .expect("items")
                    .iter()
                    .map(|step| step["end"]["exit_code"].as_i64().expect("a code")),
            );
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(seen, expected, "{order}");
    }
    house.api().get("/v1/computers/web/steps/8").refusal(404, "step_not_found");
}
