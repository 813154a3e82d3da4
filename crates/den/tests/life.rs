//! Sleeping and waking, being cut off and taken back; and what a killed daemon leaves of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use den_testkit::{House, Internet, Options, Site, at_each_point, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);
/// What would go on has gone on by then.
const A_WHILE: Duration = Duration::from_millis(400);

const PAUSE: [&str; 2] = ["pause.state", "pause.frozen"];
const RESUME: [&str; 2] = ["resume.state", "resume.thawed"];
const UNPLUG: [&str; 2] = ["unplug.cut", "unplug.row"];
const REPLUG: [&str; 1] = ["replug.row"];

/// Counts in a file and in its output, and stays.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /root/count; sleep 0.01; done";

fn state(house: &House, name: &str) -> String {
    house.json(&["info", name])["state"].as_str().expect("a state").to_owned()
}

fn counted(house: &House, name: &str, step: &str) -> usize {
    house.den(&["log", name, step]).stdout.lines().count()
}

/// A step that counts, once it does.
fn counter(house: &House, name: &str) -> String {
    let step = house.den(&["exec", name, "-d", "--", "bash", "-c", COUNTER]).ok();
    eventually(LONG, "it counts", || counted(house, name, &step) > 3);
    step
}

/// The counter stands: two looks see the same. What was written before is read by both.
fn stands(house: &House, name: &str, step: &str) -> usize {
    let mut before = counted(house, name, step);
    eventually(LONG, "the output stands", || {
        std::thread::sleep(A_WHILE);
        let now = counted(house, name, step);
        std::mem::replace(&mut before, now) == now
    });
    before
}

fn goes_on(house: &House, name: &str, step: &str) {
    let before = counted(house, name, step);
    eventually(LONG, "it counts on", || counted(house, name, step) > before);
}

/// No line is missing or there twice.
fn whole(house: &House, name: &str, step: &str) {
    let output = house.den(&["log", name, step]).stdout;
    let expected: String = (1..=output.lines().count()).map(|n| format!("{n}\n")).collect();
    assert_eq!(output, expected);
}

fn events(house: &House, name: &str, kind: &str) -> Vec<Value> {
    let path = format!("/v1/events?computer={name}&kind={kind}&limit=1000");
    house.api().get(&path).expect(200).json()["events"].as_array().expect("events").clone()
}

fn count_events(house: &House, name: &str, kind: &str, wanted: usize) {
    eventually(LONG, &format!("{wanted} `{kind}`"), || events(house, name, kind).len() >= wanted);
    assert_eq!(events(house, name, kind).len(), wanted, "{kind}");
}

fn patch(house: &House, name: &str, change: &Value) -> den_testkit::Reply {
    let path = format!("/v1/computers/{name}");
    house.api().request("PATCH", &path, &[("content-type", "application/json")], change.to_string().as_bytes())
}

#[test]
fn a_paused_computer_stands_still_and_goes_on_exactly() {
    let house = House::open(DEN);
    house.new_computer("web");
    let step = counter(&house, "web");
    house.den(&["pause", "web"]).ok();
    assert_eq!(state(&house, "web"), "paused");
    let stood = stands(&house, "web", &step);
    // Reading, looking and listing wake nobody.
    house.den(&["cat", "web@now:/root/count"]).ok();
    house.den(&["diff", "web@0", "web"]).ok();
    house.den(&["log", "web"]).ok();
    house.den(&["net", "web"]).ok();
    assert_eq!((state(&house, "web").as_str(), counted(&house, "web", &step)), ("paused", stood));
    house.den(&["pause", "web"]).refused(1, "paused");
    house.den(&["start", "web"]).refused(1, "den resume web");
    house.den(&["resume", "web"]).ok();
    assert_eq!(state(&house, "web"), "running");
    goes_on(&house, "web", &step);
    whole(&house, "web", &step);
    house.den(&["resume", "web"]).refused(1, "running");
    count_events(&house, "web", "paused", 1);
    count_events(&house, "web", "resumed", 1);
    count_events(&house, "web", "woken", 0);
    assert!(house.json(&["info", "web"])["capabilities"].as_array().expect("a list").contains(&json!("pause")));
    house.den(&["pause", "web", "--to-disk"]).refused(1, "CRIU");
    house.den(&["pause", "nobody"]).refused(1, "no computer");
}

#[test]
fn what_comes_for_a_paused_computer_wakes_it() {
    let house = House::open(DEN);
    house.new_computer("web");
    let step = counter(&house, "web");
    let file = house.scratch().join("file");
    std::fs::write(&file, "hello").expect("a file");
    let file = file.to_str().expect("a path");
    let requests: [&[&str]; 5] = [
        &["exec", "web", "--", "true"],
        &["cp", file, "web:/root/in"],
        &["cp", "web:/root/in", file],
        &["ports", "web"],
        &["merge", "side"],
    ];
    house.den(&["fork", "web", "side"]).ok();
    house.sh("side", "echo new > /root/new").ok();
    for (count, request) in requests.iter().enumerate() {
        house.den(&["pause", "web"]).ok();
        house.den(request).ok();
        assert_eq!(state(&house, "web"), "running", "{request:?}");
        count_events(&house, "web", "woken", count + 1);
    }
    goes_on(&house, "web", &step);
    // Who may not ask wakes nobody, and neither does what makes no sense.
    house.den(&["pause", "web"]).ok();
    let mut stranger = house.api();
    stranger.token = "no".to_owned();
    stranger.get("/v1/computers/web/files?path=/root/in").expect(401);
    house.api().post("/v1/computers/web/steps", &json!({"argv": []})).refusal(400, "bad_request");
    assert_eq!(state(&house, "web"), "paused");
    // A signal reaches a step that stands still.
    house.api().post(&format!("/v1/computers/web/steps/{step}/signal"), &json!({"signal": "KILL"})).expect(204);
    assert_eq!(house.den(&["attach", "web", &step]).code, 137);
}

#[test]
fn a_thousand_requests_wake_a_computer_once() {
    const REQUESTS: usize = 1000;
    let house = House::open(DEN);
    house.den(&["new", "web", "--idle", "1h:stop"]).ok();
    for round in 1..=2 {
        house.den(&["pause", "web"]).ok();
        let barrier = Barrier::new(REQUESTS);
        std::thread::scope(|scope| {
            for _ in 0..REQUESTS {
                let (api, barrier) = (house.api(), &barrier);
                let ask = move || {
                    barrier.wait();
                    api.get("/v1/computers/web/files/stat?path=/etc/passwd").expect(200);
                };
                std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, ask).expect("a thread");
            }
        });
        assert_eq!(state(&house, "web"), "running");
        count_events(&house, "web", "woken", round);
    }
}

#[test]
fn a_computer_that_nobody_uses_sleeps_and_wakes_on_request() {
    let house = House::open(DEN);
    let step = house.den(&["new", "web", "--idle", "1s"]).ok();
    assert_eq!(step, "web");
    eventually(LONG, "it sleeps", || state(&house, "web") == "paused");
    let info = house.json(&["info", "web"]);
    assert_eq!((&info["idle"], &info["asleep"]), (&json!("1s"), &json!(true)), "{info}");
    assert_eq!(house.sh("web", "hostname").ok(), "web");
    count_events(&house, "web", "woken", 1);
    // A step, and what uses the CPU without one, keep it awake.
    house.sh("web", "sleep 3; test -e /proc/self").ok();
    count_events(&house, "web", "woken", 1);
    house.sh("web", "setsid sh -c 'while :; do :; done' > /dev/null 2>&1 & echo $! > /root/busy").ok();
    let paused = events(&house, "web", "paused").len();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((state(&house, "web").as_str(), events(&house, "web", "paused").len()), ("running", paused));
    house.sh("web", "kill $(cat /root/busy)").ok();
    eventually(LONG, "it sleeps again", || state(&house, "web") == "paused");
    // Stopped instead: a request boots it, and one that somebody has stopped stays so.
    assert_eq!(house.den(&["idle", "web", "1s:stop"]).ok(), "1s:stop");
    house.sh("web", "echo kept > /root/kept").ok();
    eventually(LONG, "it is stopped", || state(&house, "web") == "stopped");
    assert_eq!(house.json(&["info", "web"])["asleep"], true);
    assert_eq!(house.sh("web", "cat /root/kept").ok(), "kept");
    assert_eq!(house.den(&["idle", "web", "off"]).ok(), "off");
    house.den(&["stop", "web"]).ok();
    house.sh("web", "true").refused(1, "den start web");
    house.den(&["start", "web"]).ok();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(state(&house, "web"), "running");
}

#[test]
fn an_idle_time_is_kept_inherited_and_checked() {
    let mut house = House::open(DEN);
    house.den(&["new", "web", "--idle", "600s"]).ok();
    house.den(&["fork", "web", "side"]).ok();
    house.restart();
    for name in ["web", "side"] {
        assert_eq!(house.den(&["idle", name]).ok(), "10m", "{name}");
    }
    for bad in ["", "soon", "10m:nap", "0", "400d"] {
        patch(&house, "web", &json!({ "idle": bad })).refusal(400, "bad_idle");
        let create = json!({ "idle": bad });
        house.api().post("/v1/computers", &create).refusal(400, "bad_idle");
    }
    patch(&house, "web", &json!({ "memory": 1 })).refusal(400, "bad_size");
    assert_eq!(house.den(&["idle", "web"]).ok(), "10m");
    assert_eq!(house.json(&["ls"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn a_paused_computer_is_stopped_removed_kept_forked_and_restored() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "echo one > /root/text").ok();
    house.den(&["snap", "web", "first"]).ok();
    house.sh("web", "echo two > /root/text").ok();
    let step = counter(&house, "web");
    house.den(&["pause", "web"]).ok();
    let stood = stands(&house, "web", &step);
    // Kept and forked as it stands.
    house.den(&["snap", "web", "standing"]).ok();
    house.den(&["fork", "web", "side"]).ok();
    assert_eq!(house.sh("side", "cat /root/text").ok(), "two");
    assert_eq!((state(&house, "web").as_str(), stands(&house, "web", &step)), ("paused", stood));
    // Its processes end; it boots on the other disk.
    house.den(&["restore", "web@first"]).ok();
    assert_eq!(state(&house, "web"), "running");
    assert_eq!(house.sh("web", "cat /root/text; pgrep -c bash").stdout.lines().next(), Some("one"));
    house.den(&["pause", "web"]).ok();
    house.den(&["stop", "web"]).ok();
    assert_eq!(state(&house, "web"), "stopped");
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "cat /root/text").ok(), "one");
    for name in ["web", "side"] {
        house.den(&["pause", name]).ok();
        house.den(&["rm", name]).ok();
    }
    house.new_computer("last");
    house.den(&["pause", "last"]).ok();
    // The house is closed with one that stands still.
}

#[test]
fn a_stop_asks_the_processes_of_a_paused_computer_to_end() {
    let house = House::open(DEN);
    house.new_computer("web");
    let script = "trap 'echo asked > /root/asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let step = house.den(&["exec", "web", "-d", "--", "bash", "-c", script]).ok();
    eventually(LONG, "it is ready", || house.den(&["log", "web", &step]).stdout.contains("ready"));
    house.den(&["pause", "web"]).ok();
    house.den(&["stop", "web"]).ok();
    assert_eq!(house.den(&["cat", "web@now:/root/asked"]).ok(), "asked");
}

/// A `den forward` that runs; ended when dropped.
struct Forward(Child, std::net::SocketAddr);

impl Forward {
    fn start(house: &House, name: &str, port: &str) -> Self {
        let mut child = house.command(&["forward", name, port]).stdout(Stdio::piped()).spawn().expect("den forward");
        let line = BufReader::new(child.stdout.take().expect("its output")).lines().next();
        let line = line.expect("a line").expect("a line");
        let at = line.split(" -> ").next().expect("an address").parse().unwrap_or_else(|e| panic!("{e}: {line}"));
        Self(child, at)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_unplugged_computer_is_cut_off_and_stays_as_it_was() {
    let internet = Internet::new();
    let args = vec!["--resolver".to_owned(), internet.at(Site::Dns).to_string()];
    let house = House::with(DEN, Options { args, ..Options::default() });
    house.new_computer("web");
    let step = counter(&house, "web");
    house.den(&["exec", "web", "-d", "--", "sh", "-c", "while :; do :; done"]).ok();
    let good = internet.at(Site::Good).to_string();
    let flow = format!(
        "import socket\ns = socket.create_connection(('{good}', 80))\nprint('open', flush=True)\n\
         try: s.recv(1); print('closed')\nexcept OSError as error: print(type(error).__name__)\n"
    );
    let flow = house.den(&["exec", "web", "-d", "--", "python3", "-c", &flow]).ok();
    let echo = "import socket\nl = socket.create_server(('127.0.0.1', 7006))\n\
                while True:\n c = l.accept()[0]\n while b := c.recv(99): c.sendall(b)\n";
    house.den(&["exec", "web", "-d", "--", "python3", "-c", echo]).ok();
    eventually(LONG, "it listens", || house.den(&["ports", "web"]).stdout.contains("7006"));
    eventually(LONG, "the flow is open", || house.json(&["net", "web"])["status"]["flows"] == 1);
    let forward = Forward::start(&house, "web", "7006");
    let mut connection = TcpStream::connect(forward.1).expect("the forwarded port");
    connection.set_read_timeout(Some(LONG)).expect("a timeout");
    let mut echoed = [0; 4];
    connection.write_all(b"ping").expect("sent");
    connection.read_exact(&mut echoed).expect("an answer");

    let begun = Instant::now();
    house.api().post("/v1/computers/web/unplug", &json!({})).expect(200);
    eprintln!("unplugged in {:?}", begun.elapsed());
    assert_eq!(state(&house, "web"), "unplugged");
    // The connection has ended; its bytes went nowhere.
    let ended = connection.read(&mut echoed);
    assert!(matches!(ended, Ok(0)) || ended.is_err(), "{ended:?}");
    let stood = stands(&house, "web", &step);
    // Nothing gets in, and nothing changes it.
    let refused: [&[&str]; 12] = [
        &["exec", "web", "--", "true"],
        &["cp", "web:/etc/passwd", "-"],
        &["ports", "web"],
        &["start", "web"],
        &["stop", "web"],
        &["pause", "web"],
        &["resume", "web"],
        &["restore", "web@0"],
        &["net", "web", "open"],
        &["idle", "web", "1h"],
        &["snaps", "rm", "web@0"],
        &["sh", "web"],
    ];
    for words in refused {
        house.den(words).refused(1, "unplugged");
    }
    let late = TcpStream::connect(forward.1).map(|mut late| {
        late.set_read_timeout(Some(LONG)).expect("a timeout");
        late.read(&mut [0; 4]).map_or(0, |count| count)
    });
    assert!(matches!(late, Ok(0) | Err(_)), "{late:?}");
    // The evidence is there to be read, and to be forked.
    house.den(&["log", "web"]).ok();
    whole(&house, "web", &step);
    assert!(house.den(&["cat", "web@now:/root/count"]).ok().parse::<u64>().is_ok());
    house.den(&["diff", "web@0", "web"]).ok();
    let records = house.den(&["net", "log", "web", "-n", "0", "--json"]).ok();
    assert!(records.contains("detached"), "the flow was ended: {records}");
    house.den(&["fork", "web", "side"]).ok();
    assert_eq!(house.sh("side", "hostname").ok(), "side");
    assert_eq!((state(&house, "web").as_str(), stands(&house, "web", &step)), ("unplugged", stood));
    house.den(&["unplug", "web"]).ok();

    house.den(&["replug", "web"]).ok();
    assert_eq!(state(&house, "web"), "running");
    goes_on(&house, "web", &step);
    whole(&house, "web", &step);
    eventually(LONG, "the program saw its flow end", || {
        house.den(&["log", "web", &flow]).stdout == "open\nConnectionResetError\n"
    });
    let ask = format!("import socket; s = socket.create_connection(('{good}', 80), timeout=9); print('there')");
    assert_eq!(house.den(&["exec", "web", "--", "python3", "-c", &ask]).ok(), "there");
    house.den(&["replug", "web"]).refused(1, "running");
    count_events(&house, "web", "unplugged", 1);
    count_events(&house, "web", "replugged", 1);
}

#[test]
fn all_are_unplugged_whatever_they_do() {
    let house = House::open(DEN);
    for name in ["runs", "paused", "stopped", "stops"] {
        house.new_computer(name);
    }
    let step = counter(&house, "runs");
    house.den(&["pause", "paused"]).ok();
    house.den(&["stop", "stopped"]).ok();
    let resists = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let stubborn = house.den(&["exec", "stops", "-d", "--", "bash", "-c", resists]).ok();
    eventually(LONG, "it is ready", || house.den(&["log", "stops", &stubborn]).stdout.contains("ready"));
    let mut stopping =
        house.command(&["stop", "stops", "-t", "300s"]).stderr(Stdio::piped()).spawn().expect("den stop");
    eventually(LONG, "it is being stopped", || state(&house, "stops") == "stopping");
    let cut = house.den(&["unplug", "--all"]).ok();
    assert_eq!(cut.lines().count(), 4, "{cut}");
    let mut said = String::new();
    stopping.stderr.take().expect("its errors").read_to_string(&mut said).expect("text");
    assert!(said.contains("unplugged") && !stopping.wait().expect("its end").success(), "{said}");
    for name in ["runs", "paused", "stopped", "stops"] {
        assert_eq!(state(&house, name), "unplugged", "{name}");
    }
    stands(&house, "runs", &step);
    house.den(&["rm", "stopped"]).ok();
    house.den(&["replug", "--all"]).ok();
    for (name, wanted) in [("runs", "running"), ("paused", "paused"), ("stops", "stopped")] {
        assert_eq!(state(&house, name), wanted, "{name}");
    }
    goes_on(&house, "runs", &step);
    // One that is cut off is removed as it stands, and another is closed with the house.
    house.den(&["unplug", "runs"]).ok();
    house.den(&["rm", "runs"]).ok();
    house.den(&["unplug", "paused"]).ok();
}

#[test]
fn what_stands_still_does_so_while_no_daemon_is_there() {
    let mut house = House::open(DEN);
    for launcher in [false, true] {
        for (verb, wanted, back) in [("pause", "paused", "resume"), ("unplug", "unplugged", "replug")] {
            house.new_computer("web");
            let step = counter(&house, "web");
            house.den(&[verb, "web"]).ok();
            let stood = stands(&house, "web", &step);
            house.kill_serve();
            if launcher {
                house.kill_launcher();
            }
            std::thread::sleep(A_WHILE);
            house.start();
            assert_eq!((state(&house, "web").as_str(), stands(&house, "web", &step)), (wanted, stood), "{launcher}");
            house.den(&[back, "web"]).ok();
            goes_on(&house, "web", &step);
            whole(&house, "web", &step);
            // The step was taken up and not lost.
            let path = format!("/v1/computers/web/steps/{step}");
            assert_eq!(house.api().get(&path).expect(200).json()["status"], "running");
            house.den(&["rm", "web"]).ok();
        }
    }
}

/// Runs `act` against a daemon that dies at each point; what is left is one of `wanted`, stands or goes on as that
/// says, and can be brought to run.
fn each_point(points: &[&str], before: &[&str], act: &str, wanted: &[&str]) {
    let path = format!("/v1/computers/web/{act}");
    let prepare = |house: &House| {
        house.den(&["rm", "web", "-f"]).ok();
        house.new_computer("web");
        counter(house, "web");
        for verb in before {
            house.den(&[verb, "web"]).ok();
        }
    };
    let act = |house: &House| {
        let api = house.api();
        let _ = api.open("POST", &path, &[("content-type", "application/json")], b"{}");
    };
    at_each_point(
        DEN,
        points,
        |_| {},
        prepare,
        act,
        |house, when, _| {
            let found = state(house, "web");
            assert!(wanted.contains(&found.as_str()), "{when}: {found}");
            match found.as_str() {
                "running" => goes_on(house, "web", "1"),
                "paused" => {
                    stands(house, "web", "1");
                    house.den(&["resume", "web"]).ok();
                }
                _ => {
                    stands(house, "web", "1");
                    house.den(&["replug", "web"]).ok();
                }
            }
            goes_on(house, "web", "1");
            whole(house, "web", "1");
            assert_eq!(house.sh("web", "hostname").ok(), "web", "{when}");
        },
    );
}

#[test]
fn a_daemon_killed_at_each_point_of_a_pause_leaves_it_running_or_paused() {
    each_point(&PAUSE, &[], "pause", &["paused"]);
    each_point(&RESUME, &["pause"], "resume", &["running"]);
}

#[test]
fn a_daemon_killed_at_each_point_of_an_unplug_leaves_it_as_it_was_or_cut_off() {
    each_point(&UNPLUG[..1], &[], "unplug", &["running"]);
    each_point(&UNPLUG[1..], &[], "unplug", &["unplugged"]);
    each_point(&REPLUG, &["unplug"], "replug", &["running"]);
}
