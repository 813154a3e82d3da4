//! Services: commands that a computer keeps running, over all that happens to it and to the daemon.

use std::{
    io::Read as _,
    process::{Child, Stdio},
    time::Duration,
};

use den_testkit::{House, Reply, at_each_point, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);
/// Serves TCP on port 8000, and says so.
const SERVER: &str = "echo serving; exec python3 -m http.server 8000";

fn house() -> House {
    let house = House::open(DEN);
    house.new_computer("web");
    house
}

fn add(house: &House, computer: &str, service: Value) -> Reply {
    house.api().post(&format!("/v1/computers/{computer}/services"), &service)
}

fn service(house: &House, computer: &str, name: &str) -> Value {
    house.api().get(&format!("/v1/computers/{computer}/services/{name}")).expect(200).json()
}

fn state(house: &House, computer: &str, name: &str) -> String {
    service(house, computer, name)["state"].as_str().expect("a state").to_owned()
}

fn comes_to(house: &House, computer: &str, name: &str, wanted: &str) {
    eventually(LONG, &format!("`{name}` of `{computer}` is {wanted}"), || state(house, computer, name) == wanted);
}

fn restarts(house: &House, name: &str) -> u64 {
    service(house, "web", name)["restarts"].as_u64().expect("a number")
}

/// The starts of a service, each a step.
fn starts(house: &House, computer: &str, name: &str) -> Vec<Value> {
    let steps = house.api().get(&format!("/v1/computers/{computer}/steps?limit=1000")).expect(200).json();
    let who = format!("service:{name}");
    steps["items"].as_array().expect("items").iter().filter(|step| step["who"] == who.as_str()).cloned().collect()
}

/// How many processes inside have exactly this command line.
fn processes(house: &House, computer: &str, line: &str) -> usize {
    let ran = house.sh(computer, &format!("pgrep -fx '{line}' | wc -l"));
    ran.ok().trim().parse().expect("a number")
}

#[test]
fn a_service_runs_whenever_its_computer_does() {
    let house = house();
    let said = house.den(&["service", "add", "web", "app", "--run", SERVER, "--ready", "port:8000", "--wait"]).ok();
    assert_eq!(said, "app: ready");
    let get = |computer: &str| house.sh(computer, "curl -fsS -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/");
    assert_eq!(get("web").ok(), "200");
    let first = starts(&house, "web", "app");
    assert_eq!((first.len(), &first[0]["kind"], &first[0]["status"]), (1, &json!("service"), &json!("running")));
    let view = service(&house, "web", "app");
    assert_eq!((&view["step"], &view["restarts"], &view["wanted"]), (&first[0]["number"], &json!(0), &json!(true)));

    // The state after another step is kept while the service goes on.
    house.sh("web", "echo mine > /root/file").ok();
    house.den(&["snap", "web", "good"]).ok();
    house.sh("web", "rm /root/file").ok();

    house.den(&["stop", "web"]).ok();
    assert_eq!(state(&house, "web", "app"), "stopped");
    assert_eq!(service(&house, "web", "app")["wanted"], true);
    house.den(&["start", "web"]).ok();
    comes_to(&house, "web", "app", "ready");
    assert_eq!(get("web").ok(), "200");
    assert_eq!((starts(&house, "web", "app").len(), restarts(&house, "app")), (2, 0));

    house.den(&["restore", "web@good"]).ok();
    comes_to(&house, "web", "app", "ready");
    assert_eq!(house.sh("web", "cat /root/file").ok(), "mine");
    assert_eq!(get("web").ok(), "200");

    // A fork has services of its own.
    house.den(&["fork", "web", "try"]).ok();
    comes_to(&house, "try", "app", "ready");
    assert_eq!(get("try").ok(), "200");
    assert_eq!(starts(&house, "try", "app").len(), 1);
    house.den(&["service", "rm", "try", "app"]).ok();
    assert!(get("try").code != 0, "nothing of it listens any more");
    assert_eq!(house.json(&["service", "ls", "try"]), json!([]));
    assert_eq!(state(&house, "web", "app"), "ready");
    assert_eq!(starts(&house, "try", "app").len(), 1, "its step stays");
}

#[test]
fn a_service_that_ends_is_started_again_as_it_says() {
    let house = house();
    add(&house, "web", json!({"name": "crash", "run": ["sh", "-c", "echo up; exit 3"]})).expect(201);
    eventually(LONG, "it was started again and again", || restarts(&house, "crash") >= 3);
    comes_to(&house, "web", "crash", "backing_off");
    let view = service(&house, "web", "crash");
    assert_eq!(view["last_end"]["exit_code"], 3);
    assert_eq!(view["reason"], "it ended with 3");
    let seen = starts(&house, "web", "crash");
    assert!(seen.len() as u64 > view["restarts"].as_u64().unwrap(), "{seen:?}");
    for step in &seen[..seen.len() - 1] {
        assert_eq!((&step["end"]["exit_code"], &step["output_bytes"]), (&json!(3), &json!(3)));
    }
    let stopped = house.api().post("/v1/computers/web/services/crash/stop", &json!({})).expect(200).json();
    assert_eq!((&stopped["state"], &stopped["wanted"]), (&json!("stopped"), &json!(false)));
    let count = starts(&house, "web", "crash").len();

    // The third time goes well.
    let thrice = "n=$(cat /n 2>/dev/null || echo 0); echo $((n+1)) > /n; [ $n -ge 2 ]";
    let run = json!(["sh", "-c", thrice]);
    add(&house, "web", json!({"name": "thrice", "run": run, "restart": "on-failure"})).expect(201);
    comes_to(&house, "web", "thrice", "stopped");
    let view = service(&house, "web", "thrice");
    assert_eq!((&view["restarts"], &view["last_end"]["exit_code"]), (&json!(2), &json!(0)));

    add(&house, "web", json!({"name": "bad", "run": ["sh", "-c", "kill -9 $$"], "restart": "no"})).expect(201);
    comes_to(&house, "web", "bad", "failed");
    assert_eq!(service(&house, "web", "bad")["reason"], "signal 9 ended it");
    add(&house, "web", json!({"name": "good", "run": ["true"], "restart": "no"})).expect(201);
    comes_to(&house, "web", "good", "stopped");
    add(&house, "web", json!({"name": "none", "run": ["no-such-command"], "restart": "no"})).expect(201);
    comes_to(&house, "web", "none", "failed");
    let end = service(&house, "web", "none")["last_end"].clone();
    assert_eq!((&end["how"], &end["exit_code"]), (&json!("not_started"), &json!(127)));
    add(&house, "web", json!({"name": "who", "run": ["true"], "restart": "no", "user": "nobody-here"})).expect(201);
    comes_to(&house, "web", "who", "failed");
    for (name, count) in [("thrice", 3), ("bad", 1), ("good", 1), ("none", 1), ("who", 1)] {
        assert_eq!(starts(&house, "web", name).len(), count, "{name}");
    }
    // What is stopped stays so when the computer starts; what was done begins anew.
    house.den(&["stop", "web"]).ok();
    house.den(&["start", "web"]).ok();
    eventually(LONG, "it ran once more", || starts(&house, "web", "good").len() == 2);
    assert_eq!(starts(&house, "web", "crash").len(), count);
    house.api().post("/v1/computers/web/services/crash/start", &json!({})).expect(200);
    eventually(LONG, "it is started as one that was never started", || starts(&house, "web", "crash").len() > count);
    assert_eq!(service(&house, "web", "crash")["wanted"], true);
}

#[test]
fn a_service_is_followed_over_a_killed_daemon_and_never_runs_twice() {
    let mut house = house();
    let run = "echo $$ >> /starts; echo up; python3 -m http.server 8000 >/dev/null 2>&1 & exec sleep 1717";
    let app = json!({"name": "app", "run": ["sh", "-c", run], "ready": "port:8000"});
    add(&house, "web", app).expect(201);
    let once = json!({"name": "once", "run": ["sh", "-c", "echo x >> /once"], "restart": "no"});
    add(&house, "web", once).expect(201);
    comes_to(&house, "web", "app", "ready");
    comes_to(&house, "web", "once", "stopped");
    let before = service(&house, "web", "app");
    // What it was ready by may be gone later.
    house.sh("web", "pkill -f '[h]ttp.server'").ok();
    for _ in 0..3 {
        house.restart();
    }
    let after = service(&house, "web", "app");
    assert_eq!((&after["step"], &after["state"]), (&before["step"], &json!("ready")));
    assert_eq!(processes(&house, "web", "sleep 1717"), 1);
    assert_eq!(house.sh("web", "wc -l < /starts; wc -l < /once").ok(), "1\n1");
    assert_eq!(state(&house, "web", "once"), "stopped");
    // The one that watches now sees it end.
    house.sh("web", "pkill -fx 'sleep 1717'").ok();
    eventually(LONG, "it is started again", || starts(&house, "web", "app").len() == 2);
    comes_to(&house, "web", "app", "ready");
    assert_eq!((processes(&house, "web", "sleep 1717"), restarts(&house, "app")), (1, 1));
    // It ends while no daemon is there.
    house.sh("web", "(sleep 0.3; pkill -fx 'sleep 1717') >/dev/null 2>&1 &").ok();
    house.kill_serve();
    std::thread::sleep(Duration::from_secs(1));
    house.start();
    eventually(LONG, "it is started again", || starts(&house, "web", "app").len() == 3);
    comes_to(&house, "web", "app", "ready");
    assert_eq!((processes(&house, "web", "sleep 1717"), restarts(&house, "app")), (1, 2));
    // The host's restart is one of its computer.
    house.den(&["stop", "web"]).ok();
    house.restart();
    assert_eq!(state(&house, "web", "app"), "stopped");
    house.den(&["start", "web"]).ok();
    comes_to(&house, "web", "app", "ready");
    assert_eq!(restarts(&house, "app"), 0);
}

#[test]
fn a_kill_at_each_point_of_a_service() {
    let run = json!(["sh", "-c", "exec sleep 1718"]);
    let begin = |house: &House| house.new_computer("web");
    let there = |house: &House| house.api().get("/v1/computers/web/services/app").status == 200;
    at_each_point(
        DEN,
        &["service.added", "service.starts", "exec.row", "exec.log", "exec.sent", "exec.started"],
        begin,
        |house| {
            if there(house) {
                house.den(&["service", "rm", "web", "app"]).ok();
            }
        },
        |house| {
            // The daemon dies before or after its answer.
            let body = json!({"name": "app", "run": run}).to_string();
            let _ = house.api().open("POST", "/v1/computers/web/services", &[], body.as_bytes());
        },
        |house, when, _| {
            assert!(there(house), "{when}: it was recorded");
            comes_to(house, "web", "app", "running");
            assert_eq!(processes(house, "web", "sleep 1718"), 1, "{when}");
        },
    );
    at_each_point(
        DEN,
        &["service.unwanted", "service.ended", "service.removed"],
        begin,
        |house| {
            if there(house) {
                house.den(&["service", "rm", "web", "app"]).ok();
            }
            add(house, "web", json!({"name": "app", "run": run})).expect(201);
            comes_to(house, "web", "app", "running");
        },
        |house| {
            for (method, path) in [("POST", "/restart"), ("POST", "/stop"), ("DELETE", "")] {
                let _ = house.api().open(method, &format!("/v1/computers/web/services/app{path}"), &[], b"");
            }
        },
        |house, when, _| {
            let wanted = there(house) && service(house, "web", "app")["wanted"] == true;
            eventually(LONG, &format!("{when}: as many run as are wanted"), || {
                processes(house, "web", "sleep 1718") == usize::from(wanted)
            });
            let shown = if wanted { "running" } else { "stopped" };
            assert!(!there(house) || state(house, "web", "app") == shown, "{when}");
        },
    );
}

#[test]
fn a_service_is_ready_when_its_check_holds() {
    let house = house();
    let check = "exec:test -f /tmp/go || { echo no /tmp/go yet; exit 5; }";
    let run = ["sh", "-c", "echo first; echo second; exec sleep 1719"];
    add(&house, "web", json!({"name": "app", "run": run, "ready": check})).expect(201);
    comes_to(&house, "web", "app", "starting");
    eventually(LONG, "it runs", || processes(&house, "web", "sleep 1719") == 1);
    assert_eq!(state(&house, "web", "app"), "starting");
    house.sh("web", "touch /tmp/go").ok();
    comes_to(&house, "web", "app", "ready");
    assert_eq!(starts(&house, "web", "app").len(), 1, "a check is no step");
    house.sh("web", "rm /tmp/go").ok();

    // One that is not ready in time is ended, and started again.
    let late = json!({"name": "late", "run": run, "ready": check, "ready_within_ms": 300});
    add(&house, "web", late).expect(201);
    eventually(LONG, "it is started again", || restarts(&house, "late") >= 1);
    comes_to(&house, "web", "late", "backing_off");
    let reason = service(&house, "web", "late")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("not ready within 300ms") && reason.contains("no /tmp/go yet"), "{reason}");
    assert_eq!(service(&house, "web", "late")["last_end"]["how"], "signaled");
    house.den(&["service", "rm", "web", "late"]).ok();

    let words =
        ["service", "add", "web", "shut", "--ready", "port:81", "--ready-within", "200ms", "--restart", "no", "--wait"];
    let ran = house.den(&[&words[..], &["--", "sh", "-c", "echo one; echo two >&2; exec sleep 1720"]].concat());
    assert_eq!((ran.code, ran.stdout.starts_with("shut: failed, not ready within 200ms")), (1, true), "{}", ran.stdout);
    // Two pipes: what came first is not known.
    assert!(["one\ntwo\n", "two\none\n"].iter().any(|lines| ran.stderr.starts_with(lines)), "{}", ran.stderr);
    assert_eq!(processes(&house, "web", "sleep 1720"), 0);
    let ran = house.den(&["service", "add", "web", "gone", "--run", "echo bye; exit 4", "--wait"]);
    assert_eq!((ran.code, ran.stderr.starts_with("bye\n")), (1, true), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(house.den(&["service", "start", "web", "app", "--wait"]).ok(), "app: ready");
    assert_eq!(starts(&house, "web", "app").len(), 1, "what runs goes on");
}

#[test]
fn a_service_is_ended_with_all_that_it_began() {
    let house = house();
    // One in a group of its own, one in a session of its own, and the rest deaf to SIGTERM.
    let run = "set -m; sleep 1721 & set +m; setsid -f sleep 1722; trap '' TERM; sleep 1723; sleep 1724";
    add(&house, "web", json!({"name": "app", "run": ["bash", "-c", run]})).expect(201);
    eventually(LONG, "all of it runs", || {
        [1721, 1722, 1723].iter().all(|n| processes(&house, "web", &format!("sleep {n}")) == 1)
    });
    let restarted = house.api().post("/v1/computers/web/services/app/restart", &json!({})).expect(200).json();
    assert_eq!(restarted["restarts"], 0);
    eventually(LONG, "it is there again, once", || {
        [1721, 1723].iter().all(|n| processes(&house, "web", &format!("sleep {n}")) == 1)
    });
    assert_eq!(starts(&house, "web", "app").len(), 2);
    house.den(&["service", "stop", "web"]).ok();
    for n in [1721, 1723, 1724] {
        assert_eq!(processes(&house, "web", &format!("sleep {n}")), 0, "{n}");
    }
    assert_eq!(processes(&house, "web", "sleep 1722"), 2, "what left its session is its own");
    house.den(&["service", "stop", "web", "app"]).ok();
    assert_eq!(state(&house, "web", "app"), "stopped");
}

fn lines_of(child: Child, count: usize) -> (Child, String) {
    let mut child = child;
    let mut seen = String::new();
    let mut byte = [0];
    let output = child.stdout.as_mut().expect("its output");
    while seen.lines().count() < count || !seen.ends_with('\n') {
        assert!(output.read(&mut byte).expect("output") > 0, "it ended after: {seen}");
        seen.push(char::from(byte[0]));
    }
    (child, seen)
}

#[test]
fn the_output_of_a_service_is_read_over_its_starts() {
    let house = house();
    // Waits to be told before it ends.
    let run = "n=$(cat /n 2>/dev/null || echo 0); echo start $n; echo $((n+1)) > /n; until [ -f /end$n ]; do sleep 0.05; done";
    add(&house, "web", json!({"name": "app", "run": ["sh", "-c", run]})).expect(201);
    let follower = house.command(&["service", "logs", "web", "-f"]).stdout(Stdio::piped()).spawn().expect("den");
    let (follower, seen) = lines_of(follower, 1);
    assert_eq!(seen, "start 0\n");
    house.sh("web", "touch /end0").ok();
    let (follower, seen) = lines_of(follower, 1);
    assert_eq!(seen, "start 1\n");
    house.den(&["service", "stop", "web"]).ok();
    let output = follower.wait_with_output().expect("its end");
    assert_eq!((output.status.code(), output.stdout), (Some(0), Vec::new()), "it ends when no start follows");
    assert_eq!(house.den(&["service", "logs", "web", "app"]).ok(), "start 1");
    let first = starts(&house, "web", "app")[0]["number"].to_string();
    assert_eq!(house.den(&["service", "logs", "web", "app", "--step", &first]).ok(), "start 0");
    house.sh("web", "true").ok();
    let other = house.json(&["log", "web"]).as_array().unwrap().last().unwrap()["number"].to_string();
    house.den(&["service", "logs", "web", "app", "--step", &other]).refused(1, "no start of `app`");

    // Of much output the newest is kept.
    let much = json!({"name": "much", "run": ["sh", "-c", "seq 2000000; exec sleep 1725"], "keep_bytes": 4 << 20});
    add(&house, "web", much).expect(201);
    let last = || house.den(&["service", "logs", "web", "much", "--tail", "2"]).ok();
    eventually(LONG, "all is printed", || last() == "1999999\n2000000");
    let all = house.den(&["service", "logs", "web", "much"]);
    assert!(all.stdout.starts_with("1\n2\n") && all.stdout.len() < 6 << 20, "{}", all.stdout.len());
    assert!(all.stderr.contains("bytes of output"), "{}", all.stderr);
}

#[test]
fn services_that_cannot_be_are_refused() {
    let house = house();
    add(&house, "web", json!({"name": "app", "run": ["sleep", "1726"]})).expect(201);
    let refused = |body: Value, status: u16, code: &str, words: &str| {
        let error = add(&house, "web", body.clone()).refusal(status, code);
        assert!(error["message"].as_str().unwrap().contains(words), "{body}: {error}");
    };
    let with = |field: &str, value: Value| {
        let mut body = json!({"name": "x", "run": ["true"]});
        body[field] = value;
        body
    };
    refused(json!({"name": "app", "run": ["true"]}), 409, "service_exists", "`app`");
    refused(with("name", json!("A b")), 400, "bad_name", "`name`");
    refused(with("run", json!([])), 400, "bad_request", "`run`");
    house.den(&["service", "add", "web", "empty", "--run", " "]).refused(1, "`run`");
    refused(with("run", json!(["a\0b"])), 400, "bad_request", "zero byte");
    refused(with("restart", json!("sometimes")), 400, "bad_request", "`sometimes`");
    refused(with("ready", json!("port:0")), 400, "bad_request", "`ready`");
    refused(with("ready", json!("http://x")), 400, "bad_request", "`ready`");
    refused(with("ready_within_ms", json!(0)), 400, "bad_request", "`ready_within_ms`");
    refused(with("env", json!({"A=B": "c"})), 400, "bad_request", "`env`");
    refused(with("keep_bytes", json!(1)), 400, "bad_request", "`keep_bytes`");
    refused(with("when", json!("now")), 400, "bad_request", "when");
    let error = house.api().get("/v1/computers/web/services/db").refusal(404, "service_not_found");
    assert!(error["message"].as_str().unwrap().contains("there is app"), "{error}");
    house.api().get("/v1/computers/nobody/services").refusal(404, "computer_not_found");
    for path in ["start", "stop", "restart"] {
        let reply = house.api().post(&format!("/v1/computers/web/services/db/{path}"), &json!({}));
        reply.refusal(404, "service_not_found");
    }
    house.api().get("/v1/computers/web/services/app?wait_ms=99999999").refusal(400, "bad_request");
    assert_eq!(house.json(&["service", "ls", "web"]).as_array().unwrap().len(), 1, "nothing of them is left");

    // On one that does not run they are recorded, up to the limit.
    house.den(&["stop", "web"]).ok();
    house.api().post("/v1/computers/web/services/app/restart", &json!({})).refusal(409, "computer_stopped");
    for n in 1..64 {
        let added = add(&house, "web", json!({"name": format!("s{n}"), "run": ["true"]})).expect(201).json();
        assert_eq!(added["state"], "stopped");
    }
    refused(json!({"name": "s64", "run": ["true"]}), 503, "too_many", "64");
}

#[test]
fn the_log_of_a_computer_is_not_flooded_by_a_service() {
    let house = house();
    house.sh("web", "echo mine > /root/file").ok();
    add(&house, "web", json!({"name": "crash", "run": ["sh", "-c", "exit 3"]})).expect(201);
    eventually(LONG, "it was started again and again", || restarts(&house, "crash") >= 3);
    house.den(&["service", "stop", "web", "crash"]).ok();
    house.sh("web", "true").ok();
    let count = starts(&house, "web", "crash").len();
    let text = house.den(&["log", "web"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[1].contains("service:crash") && lines[1].contains(&format!("{count} starts")), "{text}");
    assert_eq!(house.json(&["log", "web"]).as_array().unwrap().len(), count + 2, "each is there");
}

#[test]
fn supervision_stands_still_with_a_paused_computer() {
    let house = house();
    add(&house, "web", json!({"name": "crash", "run": ["sh", "-c", "sleep 0.1; exit 3"]})).expect(201);
    add(&house, "web", json!({"name": "app", "run": ["sleep", "1727"]})).expect(201);
    eventually(LONG, "it was started again", || restarts(&house, "crash") >= 1);
    house.den(&["pause", "web"]).ok();
    // A start that was under way stands still with it; none is begun.
    let before = restarts(&house, "crash");
    std::thread::sleep(Duration::from_secs(2));
    assert!(restarts(&house, "crash") <= before + 1, "{before}");
    let stood = restarts(&house, "crash");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(restarts(&house, "crash"), stood);
    assert_eq!(house.api().get("/v1/computers/web").expect(200).json()["state"], "paused");
    assert_eq!(state(&house, "web", "app"), "running");
    house.den(&["resume", "web"]).ok();
    eventually(LONG, "it goes on", || restarts(&house, "crash") > stood);
    // To stop one is a reason to wake.
    house.den(&["pause", "web"]).ok();
    house.den(&["service", "stop", "web", "app"]).ok();
    assert_eq!(processes(&house, "web", "sleep 1727"), 0);
}
