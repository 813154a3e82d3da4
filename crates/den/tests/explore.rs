//! Explorations over the API: what they tell, what they leave where nobody listens any more or the daemon dies.

use std::io::Read;
use std::time::Duration;

use den_testkit::{House, at_each_point, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);
const EXPLORE: &str = "/v1/computers/web/explore";
const EVENTS: [(&str, &str); 2] = [("content-type", "application/json"), ("accept", "text/event-stream")];

fn house() -> House {
    let house = House::open(DEN);
    house.new_computer("web");
    house
}

fn names(house: &House) -> Vec<String> {
    let list = house.api().get("/v1/computers?limit=1000").expect(200).json();
    list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|one| one["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Marks of explorations that go on.
fn marks(house: &House) -> usize {
    std::fs::read_dir(house.data().join("explore")).map_or(0, Iterator::count)
}

fn nothing_left(house: &House, when: &str) {
    eventually(LONG, &format!("{when}: no fork is left"), || names(house) == ["web"] && marks(house) == 0);
    eventually(LONG, &format!("{when}: nor its disk"), || house.disks().len() == 1);
}

#[test]
fn an_exploration_tells_what_happens_and_keeps_the_best() {
    let house = house();
    let body = json!({"count": 3, "run": "echo $DEN_FORK > /root/tried; echo words", "score": "cat /root/tried"});
    let stream = house.api().open("POST", EXPLORE, &EVENTS, body.to_string().as_bytes()).expect("a stream");
    let events = stream.events(|_| false);
    let told: Vec<&str> = events.iter().map(|(name, ..)| name.as_str()).collect();
    let count = |name: &str| told.iter().filter(|told| **told == name).count();
    assert_eq!((told.first(), told.last()), (Some(&"forked"), Some(&"end")), "{told:?}");
    assert_eq!([count("forked"), count("ran"), count("tried"), count("end")], [1, 3, 3, 1], "{told:?}");
    let end: Value = serde_json::from_str(&events.last().expect("the end").2).expect("JSON");
    let best = end["best"].as_str().expect("a best one").to_owned();
    assert!(best.ends_with("-3"), "{end}");
    let forks = end["forks"].as_array().expect("forks");
    let scores: Vec<_> = forks.iter().map(|fork| fork["score"].as_f64()).collect();
    assert_eq!(scores, [Some(3.0), Some(2.0), Some(1.0)]);
    assert_eq!((&forks[0]["kept"], &forks[0]["last_line"]), (&json!(true), &json!("words")));
    assert_eq!(names(&house), ["web".to_owned(), best.clone()], "when it says that it is over, it is");
    assert_eq!(house.sh(&best, "cat /root/tried").ok(), "3");

    // As one value, merged.
    let body = json!({"count": 2, "run": "echo $DEN_FORK > /root/tried; test $DEN_FORK = 1", "merge": true});
    let view = house.api().post(EXPLORE, &body).expect(200).json();
    assert!(view["merge"]["step"].is_u64() && view["merge"]["conflicts"] == json!([]), "{view}");
    assert_eq!(house.sh("web", "cat /root/tried").ok(), "1");
    assert_eq!(names(&house), ["web".to_owned(), best.clone()]);
    house.den(&["rm", &best, "--now"]).ok();
    assert_eq!(marks(&house), 0);

    for (body, code) in [
        (json!({"run": " "}), "bad_request"),
        (json!({"run": "true", "count": 0}), "bad_request"),
        (json!({"run": "true", "count": 101}), "bad_request"),
        (json!({"run": "true", "state": "99"}), "state_not_found"),
        (json!({"run": "true", "keep": "some"}), "bad_request"),
        (json!({"run": "true", "user": "nobody-there"}), "no_such_user"),
    ] {
        let reply = house.api().post(EXPLORE, &body);
        assert_eq!(reply.json()["error"]["code"], code, "{body}: {}", reply.text());
    }
    house.api().post("/v1/computers/nobody/explore", &json!({"run": "true"})).refusal(404, "computer_not_found");
    eventually(LONG, "what was refused leaves nothing", || marks(&house) == 0);
}

#[test]
fn who_hangs_up_ends_it_and_leaves_nothing() {
    let house = house();
    let body = json!({"count": 4, "run": "sleep 600"}).to_string();
    // Before the forks run, while they do, and as one value.
    let stream = house.api().open("POST", EXPLORE, &EVENTS, body.as_bytes()).expect("a stream");
    drop(stream);
    nothing_left(&house, "at once");
    let stream = house.api().open("POST", EXPLORE, &EVENTS, body.as_bytes()).expect("a stream");
    let events = stream.events(|name| name == "forked");
    assert_eq!(events.len(), 1);
    nothing_left(&house, "while they run");
    let api = house.api();
    let mut socket = std::net::TcpStream::connect(api.addr).expect("a connection");
    let head = format!(
        "POST {EXPLORE} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        api.addr,
        api.token,
        body.len()
    );
    std::io::Write::write_all(&mut socket, head.as_bytes()).expect("sent");
    eventually(LONG, "its forks run", || names(&house).len() == 5);
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    assert!(socket.read(&mut [0; 16]).is_err(), "it is not over");
    drop(socket);
    nothing_left(&house, "as one value");
}

#[test]
fn a_daemon_killed_at_each_point_of_an_exploration_leaves_nothing() {
    let points = ["explore.mark", "fork.booted:2", "explore.forked", "explore.explored", "explore.kept"];
    at_each_point(
        DEN,
        &points,
        |_| {},
        |house| house.new_computer("web"),
        |house| {
            let body = json!({"count": 3, "run": "echo $DEN_FORK > /root/tried", "score": "cat /root/tried"});
            let json = [("content-type", "application/json")];
            let asked = house.api().open("POST", EXPLORE, &json, body.to_string().as_bytes());
            assert!(asked.is_err(), "it was answered");
        },
        |house, when, _| {
            // Who stays was written down before the last point.
            let kept = if when.contains("explore.kept") { 2 } else { 1 };
            eventually(LONG, &format!("{when}: no fork is left"), || names(house).len() == kept && marks(house) == 0);
            eventually(LONG, &format!("{when}: nor its disk"), || house.disks().len() == kept);
            for name in names(house) {
                house.den(&["rm", &name, "--now"]).ok();
            }
        },
    );
}
