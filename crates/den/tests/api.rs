//! The HTTP face as a client without a library sees it.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

use den_testkit::{Api, House, eventually};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket, client::IntoClientRequest as _};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const STEPS: &str = "/v1/computers/web/steps";

fn house() -> House {
    let house = House::open(DEN);
    house.new_computer("web");
    house
}

#[test]
fn without_the_token_nothing_is_told() {
    let house = House::open(DEN);
    let api = house.api();
    let stranger = Api { token: String::new(), ..api.clone() };
    assert_eq!(stranger.get("/healthz").expect(200).text().trim(), "ok");
    let ready = stranger.get("/readyz").expect(200).json();
    assert_eq!(ready["ready"], true, "{ready}");
    for path in ["/v1/version", "/v1/computers", "/v1/images", "/v1/computers/web/steps/1/output", "/v1/nowhere"] {
        stranger.get(path).refusal(401, "unauthorized");
    }
    let wrong = Api { token: format!("{}x", api.token), ..api.clone() };
    wrong.get("/v1/version").refusal(401, "unauthorized");
    stranger.post("/v1/shutdown", &json!({})).refusal(401, "unauthorized");
    api.request("GET", "/v1/version", &[("authorization", &format!("Basic {}", api.token))], b"")
        .refusal(401, "unauthorized");
    // A name that a page elsewhere had resolved to loopback is no name of ours.
    let reply = api.request("GET", "/v1/version", &[("host", "evil.example:80")], b"");
    assert!([400, 403, 421].contains(&reply.status), "{}", reply.status);
    let version = api.get("/v1/version").expect(200).json();
    assert_eq!(version["api"], 1);
    assert_eq!(version["data"], house.data().to_string_lossy().as_ref());
    use std::os::unix::fs::PermissionsExt as _;
    for name in ["client.json", "token"] {
        let mode = std::fs::metadata(house.data().join(name)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
}

#[test]
fn what_is_no_request_gets_our_error_body() {
    let house = house();
    let api = house.api();
    let json_type = [("content-type", "application/json")];
    api.get("/v1/nowhere").refusal(404, "not_found");
    api.request("PATCH", "/v1/computers", &json_type, b"{}").refusal(405, "method_not_allowed");
    api.request("POST", "/v1/computers", &json_type, b"{\"name\":").refusal(400, "bad_request");
    api.request("POST", "/v1/computers", &json_type, &vec![b' '; 3 << 20]).refusal(400, "bad_request");
    api.get("/v1/computers?limit=0").refusal(400, "bad_request");
    api.get("/v1/computers?limit=many").refusal(400, "bad_request");
    api.get("/v1/computers?after=nonsense").refusal(400, "bad_request");
    api.get("/v1/computers?state=nonsense").refusal(400, "bad_request");
    api.get(&format!("{STEPS}/x")).refusal(400, "bad_request");
    api.get(&format!("{STEPS}/99999")).refusal(404, "step_not_found");
    api.get(&format!("{STEPS}/1/output?from=-1")).refusal(400, "bad_request");
    let error = api.get("/v1/computers/nobody").refusal(404, "computer_not_found");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("nobody")), "{error}");
    assert!(error["hint"].as_str().is_some_and(|h| !h.is_empty()), "{error}");
}

#[test]
fn a_create_with_a_key_is_done_once() {
    let house = House::open(DEN);
    let api = house.api();
    let create = |key: &str, body: Value| {
        api.request(
            "POST",
            "/v1/computers",
            &[("content-type", "application/json"), ("idempotency-key", key)],
            body.to_string().as_bytes(),
        )
    };
    let first = create("k1", json!({"name": "web"})).expect(201).json();
    let again = create("k1", json!({"name": "web"}));
    assert!([200, 201].contains(&again.status), "{}", again.text());
    assert_eq!(again.json()["id"], first["id"]);
    create("k1", json!({"name": "other"})).refusal(422, "idempotency_mismatch");
    // At the same time: one computer, and all are told of it.
    let ids: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(|| create("k2", json!({})).json()["id"].clone())).collect();
        asking.into_iter().map(|thread| thread.join().expect("an id")).collect()
    });
    assert!(ids[0].is_string() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(house.disks().len(), 2);
    // A refused one may be tried again with the same key.
    create("k3", json!({"image": "no-such"})).refusal(404, "image_not_found");
}

#[test]
fn a_key_is_known_after_a_restart() {
    let mut house = House::open(DEN);
    let create = |house: &House, key: &str, body: Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        house.api().request("POST", "/v1/computers", &headers, body.to_string().as_bytes()).json()["id"].clone()
    };
    let id = create(&house, "kept", json!({}));
    // What it made has the one place there is, and the name.
    house.den(&["pool", "new", "one", "--computers", "1"]).ok();
    let only = json!({ "name": "only", "pool": "one" });
    let alone = create(&house, "alone", only.clone());
    house.restart();
    assert_eq!(create(&house, "kept", json!({})), id);
    assert_eq!(create(&house, "alone", only), alone);
    assert_eq!(house.disks().len(), 2);
}

#[test]
fn a_list_of_computers_is_paged() {
    let house = House::open(DEN);
    let api = house.api();
    let made: Vec<String> = (0..7).map(|n| format!("c{n}")).collect();
    for name in &made {
        api.post(
            "/v1/computers",
            &json!({"name": name, "memory": "128MiB", "labels": {"even": (name.as_bytes()[1] % 2 == 0).to_string()}}),
        )
        .expect(201);
    }
    let all = |query: &str| {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("/v1/computers?limit=2{query}{after}")).expect(200).json();
            let items = page["items"].as_array().expect("items").clone();
            assert!(items.len() <= 2);
            seen.extend(items.iter().map(|item| item["name"].as_str().expect("a name").to_owned()));
            let Some(next) = page["next"].as_str() else { return seen };
            after = format!("&after={next}");
        }
    };
    assert_eq!(all(""), made);
    assert_eq!(all("&label=even=true"), ["c0", "c2", "c4", "c6"]);
}

#[test]
fn events_carry_output_and_go_on_where_they_broke_off() {
    let house = house();
    let api = house.api();
    let body =
        json!({"argv": ["sh", "-c", "echo out; sleep 0.2; echo err >&2; sleep 0.2; echo more; exit 3"]}).to_string();
    let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
    let stream = api.open("POST", STEPS, &headers, body.as_bytes()).expect("a stream");
    assert!(stream.header("content-type").is_some_and(|v| v.starts_with("text/event-stream")));
    let events = stream.events(|event| event == "end");
    let names: Vec<&str> = events.iter().map(|(event, _, _)| event.as_str()).collect();
    assert_eq!(names, ["started", "stdout", "stderr", "stdout", "end"], "{events:?}");
    let data = |at: usize| -> Value { serde_json::from_str(&events[at].2).expect("JSON") };
    assert_eq!(data(1), json!({"offset": 0, "data": "b3V0Cg=="}));
    assert_eq!(data(2), json!({"offset": 4, "data": "ZXJyCg=="}));
    assert_eq!(data(4)["end"]["exit_code"], 3);
    assert_eq!(events[1].1, "4", "the id is the offset after the event");
    let rest = api
        .open("GET", &format!("{STEPS}/1/output"), &[("accept", "text/event-stream"), ("last-event-id", "4")], b"")
        .expect("a stream")
        .events(|event| event == "end");
    let rest: Vec<(&str, &str)> =
        rest.iter().filter(|(e, _, _)| e.starts_with("std")).map(|(e, i, _)| (e.as_str(), i.as_str())).collect();
    assert_eq!(rest, [("stderr", "8"), ("stdout", "13")]);
}

#[test]
fn binary_frames_carry_the_same() {
    let house = house();
    let body = json!({"argv": ["sh", "-c", "echo out; echo err >&2"]}).to_string();
    let headers = [("content-type", "application/json"), ("accept", "application/vnd.den.output")];
    let mut stream = house.api().open("POST", STEPS, &headers, body.as_bytes()).expect("a stream");
    assert_eq!(stream.header("content-type"), Some("application/vnd.den.output"));
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("bytes");
    let mut rest = bytes.as_slice();
    let mut frames = Vec::new();
    while rest.len() >= 16 {
        let length = u32::from_le_bytes(rest[4..8].try_into().expect("4 bytes")) as usize;
        let offset = u64::from_le_bytes(rest[8..16].try_into().expect("8 bytes"));
        frames.push((rest[0], offset, rest[16..16 + length].to_vec()));
        rest = &rest[16 + length..];
    }
    assert!(rest.is_empty(), "whole frames only");
    assert_eq!((frames[0].0, frames.last().map(|f| f.0)), (6, Some(5)));
    assert!(
        frames.iter().any(|f| f.0 == 1 && f.2 == b"out\n") && frames.iter().any(|f| f.0 == 2 && f.2 == b"err\n"),
        "{frames:?}"
    );
    let end: Value = serde_json::from_slice(&frames.last().expect("a frame").2).expect("JSON");
    assert_eq!(end["end"]["exit_code"], 0);
}

/// A WebSocket to `path`.
fn socket(api: &Api, path: &str) -> WebSocket<TcpStream> {
    let mut request = format!("ws://{}{path}", api.addr).into_client_request().expect("a request");
    request.headers_mut().insert("authorization", format!("Bearer {}", api.token).parse().expect("a header"));
    let tcp = TcpStream::connect(api.addr).expect("a connection");
    tcp.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    tungstenite::client(request, tcp).expect("a WebSocket").0
}

/// Reads frames until `stop`: all that was output, and the view at the end if it came.
fn read_until(socket: &mut WebSocket<TcpStream>, mut stop: impl FnMut(&[u8]) -> bool) -> (Vec<u8>, Option<Value>) {
    let mut output = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Binary(frame)) => match frame[0] {
                1..=3 => output.extend_from_slice(&frame[16..]),
                5 => return (output, Some(serde_json::from_slice(&frame[16..]).expect("JSON"))),
                7 => panic!("{}", String::from_utf8_lossy(&frame[16..])),
                _ => {}
            },
            Ok(Message::Close(_)) => return (output, None),
            Ok(_) => {}
            Err(error) => panic!("{error}; so far {}", String::from_utf8_lossy(&output)),
        }
        if stop(&output) {
            return (output, None);
        }
    }
}

fn ends_with(text: &'static str) -> impl FnMut(&[u8]) -> bool {
    move |output| output.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_terminal_is_one() {
    let house = house();
    let mut ws = socket(&house.api(), "/v1/computers/web/exec");
    let first = json!({"argv": ["bash", "--norc", "-i"], "env": {"PS1": "> "}, "pty": {"rows": 33, "cols": 77}, "stream_stdin": true});
    ws.send(Message::text(first.to_string())).expect("sent");
    let type_in =
        |ws: &mut WebSocket<TcpStream>, text: &str| ws.send(Message::binary(text.as_bytes().to_vec())).expect("sent");
    type_in(&mut ws, "stty size; tty; echo $TERM; echo mark''1\n");
    let (output, _) = read_until(&mut ws, ends_with("mark1"));
    let text = String::from_utf8_lossy(&output).into_owned();
    assert!(text.contains("33 77") && text.contains("/dev/pts/") && text.contains("xterm-256color"), "{text}");
    ws.send(Message::text(json!({"type": "resize", "rows": 10, "cols": 20}).to_string())).expect("sent");
    type_in(&mut ws, "stty size; echo mark''2\n");
    let (output, _) = read_until(&mut ws, ends_with("mark2"));
    assert!(String::from_utf8_lossy(&output).contains("10 20"), "{}", String::from_utf8_lossy(&output));
    // Ctrl-C is a signal to what is in front, not to the shell.
    type_in(&mut ws, "sleep 1000\n");
    std::thread::sleep(Duration::from_millis(500));
    type_in(&mut ws, "\u{3}");
    type_in(&mut ws, "echo after''wards; exit 4\n");
    let (output, end) = read_until(&mut ws, |_| false);
    assert!(String::from_utf8_lossy(&output).contains("afterwards"), "{}", String::from_utf8_lossy(&output));
    assert_eq!(end.expect("the end")["end"]["exit_code"], 4);
}

#[test]
fn input_streams_in_and_a_second_client_may_attach() {
    let house = house();
    let api = house.api();
    let mut ws = socket(&api, "/v1/computers/web/exec");
    ws.send(Message::text(json!({"argv": ["cat"], "stream_stdin": true}).to_string())).expect("sent");
    ws.send(Message::binary(b"first\n".to_vec())).expect("sent");
    read_until(&mut ws, ends_with("first\n"));
    let mut other = socket(&api, &format!("{STEPS}/1/attach?from=2"));
    let (output, _) = read_until(&mut other, ends_with("rst\n"));
    assert_eq!(output, b"rst\n");
    other.send(Message::binary(b"second\n".to_vec())).expect("sent");
    let (output, _) = read_until(&mut ws, ends_with("second\n"));
    assert_eq!(output, b"second\n");
    other.send(Message::text(json!({"type": "signal", "signal": "TERM"}).to_string())).expect("sent");
    let (_, end) = read_until(&mut ws, |_| false);
    assert_eq!(end.expect("the end")["end"]["signal"], 15);
    // Ended input ends a command that waits for it.
    let mut ws = socket(&api, "/v1/computers/web/exec");
    ws.send(Message::text(json!({"argv": ["wc", "-c"], "stream_stdin": true}).to_string())).expect("sent");
    ws.send(Message::binary(vec![7; 100_000])).expect("sent");
    ws.send(Message::binary(Vec::new())).expect("sent");
    let (output, end) = read_until(&mut ws, |_| false);
    assert_eq!((output.as_slice(), &end.expect("the end")["end"]["exit_code"]), (b"100000\n".as_slice(), &json!(0)));
}

#[test]
fn a_socket_that_is_cut_does_not_end_its_command() {
    let house = house();
    let mut ws = socket(&house.api(), "/v1/computers/web/exec");
    ws.send(Message::text(json!({"argv": ["sh", "-c", "echo begun; sleep 1; echo ended"]}).to_string())).expect("sent");
    read_until(&mut ws, ends_with("begun\n"));
    drop(ws);
    eventually(Duration::from_secs(60), "it ends by itself", || {
        house.api().get(&format!("{STEPS}/1")).expect(200).json()["end"]["exit_code"] == 0
    });
    assert_eq!(house.den(&["log", "web", "1"]).ok(), "begun\nended");
}

#[test]
fn nonsense_on_a_socket_is_refused() {
    let house = house();
    let mut ws = socket(&house.api(), "/v1/computers/web/exec");
    ws.send(Message::text("nonsense")).expect("sent");
    let mut refused = false;
    while let Ok(message) = ws.read() {
        match message {
            Message::Binary(frame) if frame[0] == 7 => {
                let error: Value = serde_json::from_slice(&frame[16..]).expect("JSON");
                assert_eq!(error["error"]["code"], "bad_request", "{error}");
                refused = true;
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    assert!(refused, "an error frame came");
    assert_eq!(house.sh("web", "echo well").ok(), "well");
}

#[test]
fn the_openapi_that_is_served_is_the_one_in_the_repository() {
    let house = House::open(DEN);
    let served = house.api().get("/v1/openapi.json").expect(200).json();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("openapi.json")).expect("JSON");
    assert_eq!(served, kept, "run `DEN_UPDATE=1 cargo test -p den-server` where the change is meant");
    let paths = served["paths"].as_object().expect("paths");
    for path in ["/v1/computers", "/v1/images/pull", "/v1/shutdown", "/v1/version"] {
        assert!(paths.contains_key(path), "{path} is not in {:?}", paths.keys());
    }
}
