//! What a computer may reach: set, refused, kept, in force; and what the gate wrote down.

use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use den_testkit::{House, Internet, Options, Site, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
/// What is seen by then has happened.
const SOON: Duration = Duration::from_secs(10);

fn house_with(args: &[&str]) -> House {
    House::with(DEN, Options { args: args.iter().map(|word| (*word).to_owned()).collect(), ..Options::default() })
}

fn patch(house: &House, name: &str, change: &Value) -> den_testkit::Reply {
    let path = format!("/v1/computers/{name}/net");
    house.api().request("PATCH", &path, &[("content-type", "application/json")], change.to_string().as_bytes())
}

/// Asks for a flow to an address inside, and says how that ended.
fn connect(house: &House, name: &str, address: &str, port: u16) -> String {
    let script = format!(
        "import socket\n\
         try:\n s = socket.create_connection(('{address}', {port}), timeout=5); s.settimeout(5)\n \
         s.sendall(b'GET / HTTP/1.1\\r\\nHost: good.test\\r\\nConnection: close\\r\\n\\r\\n')\n print(s.recv(12).decode())\n\
         except OSError as error: print(type(error).__name__)\n"
    );
    house.den(&["exec", name, "--", "python3", "-c", &script]).ok()
}

fn records(house: &House, name: &str) -> Vec<Value> {
    let out = house.den(&["net", "log", name, "-n", "0", "--json"]).ok();
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn denied_flows(house: &House, name: &str) -> usize {
    records(house, name).iter().filter(|r| r["kind"] == "open" && r["verdict"] == "deny").count()
}

fn gate_pid(house: &House) -> i32 {
    let text = std::fs::read_to_string(house.run_dir().join("gate.pid")).expect("gate.pid");
    text.trim().parse().expect("a pid")
}

#[test]
fn a_policy_is_shown_changed_and_kept() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    let view = house.json(&["net", "web"]);
    assert_eq!((&view["posture"], &view["gate"]), (&json!("open"), &json!("up")), "{view}");
    assert_eq!(view["limits"]["flows"], 512);
    assert!(view["status"]["flows"].is_u64(), "{view}");
    assert_eq!(house.json(&["info", "web"])["net"], "open");

    house.den(&["net", "web", "guarded"]).ok();
    house.den(&["net", "web", "allow", "a.example.com", "tcp://db.example.com:5432", "vm:db:5432"]).ok();
    house.den(&["net", "web", "deny", "bad.a.example.com"]).ok();
    house.den(&["net", "web", "forget", "tcp://db.example.com:5432"]).ok();
    let view = house.json(&["net", "web", "limit", "flows=7,bits=1g"]);
    let expect = |view: &Value| {
        assert_eq!(view["posture"], "guarded", "{view}");
        assert_eq!(view["allow"], json!(["a.example.com", "vm:db:5432"]));
        assert_eq!(view["deny"], json!(["bad.a.example.com"]));
        assert_eq!((&view["limits"]["flows"], &view["limits"]["bits_per_s"]), (&json!(7), &json!(1_000_000_000)));
        assert_eq!(view["limits"]["dns_per_s"], 50);
        let changes = view["changes"].as_array().expect("a list");
        assert_eq!(changes.len(), 5, "{view}");
        assert_eq!((&changes[0]["who"], &changes[0]["rules"]), (&json!("api"), &json!(3)));
    };
    expect(&view);
    // What changes nothing is no change.
    expect(&house.json(&["net", "web", "guarded"]));

    let gate = gate_pid(&house);
    house.restart();
    expect(&house.json(&["net", "web"]));
    assert_eq!(gate_pid(&house), gate, "the gate goes on while serve is away");
    house.den(&["stop", "web"]).ok();
    let view = house.json(&["net", "web"]);
    expect(&view);
    assert!(view["status"].is_null(), "{view}");
    house.den(&["start", "web"]).ok();
    expect(&house.json(&["net", "web"]));
    let eyes = house.den(&["net", "web"]).ok();
    assert!(eyes.contains("guarded: what the rules allow") && eyes.contains("7 flows"), "{eyes}");
}

#[test]
fn what_is_refused_leaves_the_old_policy() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.den(&["net", "web", "guarded"]).ok();
    house.den(&["net", "web", "allow", "a.example.com"]).ok();
    let before = house.json(&["net", "web"]);
    let allow = |rule: &str| json!({ "allow_add": ["good.example.com", rule], "posture": "open" });
    for (change, status, code) in [
        (allow("api..com"), 400, "bad_rule"),
        (allow("a.example.com:0"), 400, "bad_rule"),
        (allow("a.example.com:70000"), 400, "bad_rule"),
        (allow("GET a.example.com/**"), 400, "unsupported_rule"),
        (allow("udp://a.example.com:53"), 400, "unsupported_rule"),
        (allow("*"), 400, "wide_rule"),
        (allow("*.com"), 400, "wide_rule"),
        (allow("*.github.io"), 400, "wide_rule"),
        (allow("10.0.0.0/8"), 400, "floor_rule"),
        (allow("127.0.0.1:80"), 400, "floor_rule"),
        (json!({ "posture": "shut" }), 400, "bad_posture"),
        (json!({ "remove": ["never.example.com"], "posture": "open" }), 404, "no_such_rule"),
        (json!({ "open": true }), 400, "bad_request"),
        (json!({ "limits": { "flows": -1 } }), 400, "bad_request"),
    ] {
        let error = patch(&house, "web", &change).refusal(status, code);
        assert!(error["hint"].is_string(), "{change}: {error}");
        assert_eq!(house.json(&["net", "web"]), before, "{change}");
    }
    patch(&house, "none", &json!({})).refusal(404, "computer_not_found");
    house.den(&["net", "web", "allow", "*.github.io"]).refused(1, "--force");
    let forced = house.json(&["net", "web", "allow", "*.github.io", "--force"]);
    assert_eq!(forced["allow"], json!(["a.example.com", "*.github.io"]));
    // A rule that was taken by force is no reason to refuse the next change.
    house.den(&["net", "web", "allow", "b.example.com"]).ok();
    for words in [&["net", "web", "shut"][..], &["net", "web", "allow"], &["net", "web", "limit", "speed=1"]] {
        house.den(words).refused(2, "hint: ");
    }
    house.den(&["net", "web", "limit", "flows=x"]).refused(2, "flows=x");
    house.den(&["net", "web", "--follow"]).refused(2, "den net log");
}

#[test]
fn a_create_says_what_the_computer_may_reach() {
    let house = house_with(&["--net", "guarded", "--net-limit", "flows=9", "--private", "10.1.2.3:5432"]);
    house.new_computer("web");
    let view = house.json(&["net", "web"]);
    assert_eq!((&view["posture"], &view["limits"]["flows"]), (&json!("guarded"), &json!(9)), "{view}");
    assert_eq!(view["private"], json!(["10.1.2.3:5432"]));
    let words = ["new", "db", "--net", "open", "--deny", "bad.example.com", "--net-limit", "new=3"];
    house.den(&[&words[..], &["--allow", "10.1.2.3:5432"]].concat()).ok();
    let view = house.json(&["net", "db"]);
    assert_eq!((&view["posture"], &view["limits"]["flows"]), (&json!("open"), &json!(9)), "{view}");
    assert_eq!((&view["limits"]["new_per_s"], &view["deny"]), (&json!(3), &json!(["bad.example.com"])));
    assert_eq!(view["allow"], json!(["10.1.2.3:5432"]));
    for (words, said) in [
        (&["--net", "shut"][..], "shut"),
        (&["--allow", "*"], "--force"),
        (&["--allow", "10.1.2.3:5433"], "--private"),
        (&["--deny", "a..b"], "a..b"),
    ] {
        house.den(&[&["new", "x"], words].concat()).refused(1, said);
    }
    assert_eq!(house.json(&["ls"]).as_array().map(Vec::len), Some(2), "nothing of a refused create stays");
}

#[test]
fn a_daemon_that_is_told_nonsense_of_the_network_does_not_start() {
    let folder = tempfile::tempdir().expect("a folder");
    for (flag, value) in [
        ("--net", "shut"),
        ("--private", "10.1.2.3"),
        ("--private", "example.com:80"),
        ("--resolver", "nobody"),
        ("--net-limit", "speed=1"),
    ] {
        let output = std::process::Command::new(DEN)
            .args(["serve", "--listen", "127.0.0.1:0", flag, value, "--data"])
            .arg(folder.path().join("data"))
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {said}");
        assert!(said.contains(value) || said.contains("speed"), "{flag} {value}: {said}");
    }
}

#[test]
fn a_check_says_what_would_happen() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--net", "guarded", "--allow", "a.example.com", "--deny", "bad.a.example.com"]).ok();
    let check =
        |target: &str| house.api().post("/v1/computers/web/net/check", &json!({ "target": target })).expect(200).json();
    let allowed = check("A.example.com");
    assert_eq!((&allowed["verdict"], &allowed["rule"]), (&json!("allow"), &json!("a.example.com")), "{allowed}");
    assert_eq!(allowed["target"], "a.example.com:443");
    assert_eq!(check("b.example.com:443")["why"], "no_rule");
    assert_eq!(check("192.0.2.7:443")["why"], "ip_literal");
    assert_eq!(check("169.254.169.254:80")["why"], "floor");
    for target in ["", "a.example.com:0", "a b", "a.example.com:70000", "::1"] {
        let error = house.api().post("/v1/computers/web/net/check", &json!({ "target": target }));
        error.refusal(400, "bad_target");
    }
    assert!(house.den(&["net", "web", "check", "a.example.com"]).ok().starts_with("allow"));
    assert_eq!(house.den(&["net", "web", "check", "b.example.com"]).code, 1);
    assert!(records(&house, "web").iter().all(|record| record["kind"] == "gate"), "a check leaves no record");
}

#[test]
fn records_are_read_in_pages_filtered_and_followed() {
    let house = House::open(DEN);
    house.new_computer("web");
    for port in [81, 82, 83] {
        assert_eq!(connect(&house, "web", "10.9.9.9", port), "ConnectionResetError");
    }
    eventually(SOON, "three records", || denied_flows(&house, "web") == 3);
    let all = records(&house, "web");
    assert!(all.iter().all(|record| record["trust"] == "host"), "{all:?}");
    let get = |query: &str| house.api().get(&format!("/v1/computers/web/net/log?{query}")).expect(200).json();
    let mut cursor = String::new();
    let mut paged = Vec::new();
    loop {
        let page = get(&format!("limit=1{cursor}"));
        let records = page["records"].as_array().expect("a list").clone();
        if records.is_empty() {
            break;
        }
        assert_eq!((records.len(), &page["lost"]), (1, &json!(false)));
        paged.extend(records);
        cursor = format!("&cursor={}", page["next"].as_str().expect("a place"));
    }
    assert_eq!(paged, all);
    let denied = get("denied=true&kind=open");
    assert_eq!(denied["records"].as_array().map(Vec::len), Some(3));
    assert_eq!(get("last=1")["records"][0]["target"], "10.9.9.9:83");
    assert_eq!(get("cursor=999:0")["lost"], true);
    for (query, code) in
        [("cursor=x", "bad_request"), ("limit=0", "bad_request"), ("kind=x", "bad_request"), ("what=1", "bad_request")]
    {
        house.api().get(&format!("/v1/computers/web/net/log?{query}")).refusal(400, code);
    }

    let path = format!("/v1/computers/web/net/log?kind=open{cursor}");
    let stream = house.api().open("GET", &path, &[("accept", "text/event-stream")], b"").expect("a stream");
    assert_eq!(stream.status, 200);
    let follower = std::thread::spawn(move || {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines
            .find_map(|line| line.strip_prefix("data: ").map(|data| serde_json::from_str::<Value>(data).expect("JSON")))
    });
    connect(&house, "web", "10.9.9.9", 84);
    let seen = follower.join().expect("no panic").expect("an event");
    assert_eq!((&seen["target"], &seen["why"]), (&json!("10.9.9.9:84"), &json!("floor")));
    let line = house.den(&["net", "web", "log", "--denied", "-n", "1"]).ok();
    assert!(line.contains("deny") && line.contains("10.9.9.9:84") && line.contains("floor"), "{line}");
}

#[test]
fn a_change_holds_for_flows_that_are_open() {
    let internet = Internet::new();
    let house = house_with(&["--resolver", &internet.at(Site::Dns).to_string()]);
    house.new_computer("web");
    let good = internet.at(Site::Good).to_string();
    assert_eq!(connect(&house, "web", "good.test", 80), "HTTP/1.1 200");
    assert_eq!(connect(&house, "web", &good, 80), "HTTP/1.1 200");
    let script = format!(
        "import socket, time\ns = socket.create_connection(('{good}', 80))\nprint('open', flush=True)\n\
         try: s.recv(1); print('closed')\nexcept OSError as error: print(type(error).__name__)\n"
    );
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| house.den(&["exec", "web", "--", "python3", "-c", &script]).ok());
        eventually(SOON, "the flow is open", || house.json(&["net", "web"])["status"]["flows"] == 1);
        house.den(&["net", "web", "sealed"]).ok();
        let begun = Instant::now();
        assert_eq!(waits.join().expect("no panic"), "open\nConnectionResetError");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    });
    assert_eq!(connect(&house, "web", &good, 80), "ConnectionResetError");
    house.den(&["net", "web", "open"]).ok();
    assert_eq!(connect(&house, "web", &good, 80), "HTTP/1.1 200");
}

#[test]
fn what_a_killed_gate_cuts_off_does_not_look_like_an_end() {
    let internet = Internet::new();
    let house = house_with(&["--resolver", &internet.at(Site::Dns).to_string()]);
    house.new_computer("web");
    let script = format!(
        "import socket\ns = socket.create_connection(('{}', 80))\n\
         s.sendall(b'GET /stream HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n')\n\
         try:\n while s.recv(65536): pass\n print('an end')\nexcept OSError as error: print(type(error).__name__)\n",
        internet.at(Site::Good)
    );
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| house.den(&["exec", "web", "--", "python3", "-c", &script]).ok());
        eventually(SOON, "the stream runs", || internet.streamed() > 100_000);
        let gate = rustix::process::Pid::from_raw(gate_pid(&house)).expect("a pid");
        rustix::process::kill_process(gate, rustix::process::Signal::KILL).expect("SIGKILL to the gate");
        assert_eq!(reads.join().expect("no panic"), "ConnectionResetError");
    });
    house.close();
}

#[test]
fn a_gate_that_is_killed_comes_back_and_nothing_leaves_meanwhile() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    let first = gate_pid(&house);
    let kill = |pid| {
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("SIGKILL to the gate");
    };
    kill(first);
    eventually(SOON, "another gate", || {
        house.json(&["net", "web"])["gate"] == "up" && std::fs::read_to_string(house.run_dir().join("gate.pid")).is_ok()
    });
    let second = gate_pid(&house);
    assert_ne!(first, second);
    assert_eq!(connect(&house, "web", "10.9.9.9", 80), "ConnectionResetError");
    eventually(SOON, "its record", || denied_flows(&house, "web") == 1);
    // Without a keeper there is no new one: closed, and at once.
    house.kill_serve();
    kill(second);
    house.start();
    assert_ne!(gate_pid(&house), second);
    assert_eq!(house.json(&["net", "web"])["gate"], "up");
    house.new_computer("db");
    for name in ["web", "db"] {
        assert_eq!(connect(&house, name, "10.9.9.9", 80), "ConnectionResetError", "{name}");
        eventually(SOON, "a record", || denied_flows(&house, name) > 0);
    }
    // One that ended while nobody looked is let go.
    house.den(&["rm", "web"]).ok();
    house.sh("db", "true").ok();
}
