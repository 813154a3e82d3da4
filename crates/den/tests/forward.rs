//! `den ports` and `den forward`: servers inside, clients on the host, and how connections end.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use den_testkit::{House, eventually};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process};
use serde_json::Value;

const DEN: &str = env!("CARGO_BIN_EXE_den");

/// How long something may take that is done at once on a machine at rest.
const LONG: Duration = Duration::from_secs(60);

/// Serves each connection on a thread: what is asked to its end, then an answer made of it.
const SERVER: &str = r#"
import hashlib, os, socket, struct, sys, threading, time
def read_all(c):
    h, n = hashlib.sha256(), 0
    while True:
        b = c.recv(1 << 18)
        if not b: return h.hexdigest(), n
        h.update(b); n += len(b)
def sum_up(c):
    digest, count = read_all(c)
    c.sendall(f"{count} {digest}".encode())
def pour(c):
    h, block = hashlib.sha256(), os.urandom(1 << 20)
    for i in range(64):
        b = struct.pack("<I", i) + block[4:]
        h.update(b); c.sendall(b)
    c.shutdown(socket.SHUT_WR)
    c.recv(1)
    open("/root/poured", "w").write(h.hexdigest())
def first(c):
    c.sendall(b"hello"); c.shutdown(socket.SHUT_WR)
    open("/root/first", "w").write(str(read_all(c)[1]))
def reset(c):
    c.recv(4); c.sendall(b"some")
    time.sleep(0.3)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
def hold(c):
    try: c.recv(1); open("/root/held", "w").write("ended")
    except ConnectionResetError: open("/root/held", "w").write("reset")
def echo(c):
    while (b := c.recv(65536)): c.sendall(b)
def listen(port, serve):
    l = socket.create_server(("127.0.0.1", port), backlog=4096)
    def one(c):
        with c: serve(c)
    def loop():
        while True: threading.Thread(target=one, args=(l.accept()[0],), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
threading.stack_size(1 << 16)
for port, serve in [(7001, sum_up), (7002, pour), (7003, first), (7004, reset), (7005, hold), (7006, echo)]:
    listen(port, serve)
print("ready", flush=True)
time.sleep(100000)
"#;

/// A computer `web` with [`SERVER`] in it.
fn house() -> House {
    let house = House::open(DEN);
    house.den(&["new", "web", "--memory", "1GiB", "--pids", "4096"]).ok();
    serve(&house, "7006");
    house
}

fn serve(house: &House, port: &str) {
    let file = house.scratch().join("server.py");
    std::fs::write(&file, SERVER).expect("a file");
    house.den(&["cp", file.to_str().expect("a path"), "web:/root/server.py"]).ok();
    house.den(&["exec", "-d", "web", "--", "python3", "/root/server.py"]).ok();
    eventually(LONG, "the servers listen", || house.den(&["ports", "web"]).stdout.contains(port));
}

/// A `den forward` that runs; ended when dropped.
struct Forward {
    child: Child,
    at: Vec<SocketAddr>,
}

impl Forward {
    fn start(house: &House, ports: &[&str]) -> Self {
        let words = [&["forward", "web"], ports].concat();
        let mut child =
            house.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("den forward");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let at = ports
            .iter()
            .map(|_| {
                let line = lines.next().expect("a line").expect("a line");
                line.split(" -> ").next().expect("an address").parse().unwrap_or_else(|e| panic!("{e}: {line}"))
            })
            .collect();
        Self { child, at }
    }

    fn connect(&self, which: usize) -> TcpStream {
        let stream = TcpStream::connect(self.at[which]).expect("the forwarded port");
        stream.set_read_timeout(Some(LONG)).expect("a timeout");
        stream.set_write_timeout(Some(LONG)).expect("a timeout");
        stream
    }

    /// Ends it as Ctrl-C does; its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("SIGINT");
        let mut said = String::new();
        self.child.stderr.take().expect("its errors").read_to_string(&mut said).expect("text");
        (self.child.wait().expect("its end").code(), said)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("all of it");
    bytes
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sha256(house: &House, bytes: &[u8]) -> String {
    let file = house.scratch().join("noise");
    std::fs::write(&file, bytes).expect("a file");
    let output = std::process::Command::new("sha256sum").arg(&file).output().expect("sha256sum");
    String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a sum").to_owned()
}

#[test]
fn what_listens_is_listed_with_who_holds_it() {
    let house = House::open(DEN);
    house.new_computer("web");
    assert_eq!(house.den(&["ports", "web"]).ok(), "nothing listens");
    assert_eq!(house.json(&["ports", "web"]), Value::Array(Vec::new()));
    let script = r#"
import socket, time
a = socket.create_server(("127.0.0.1", 8001))
b = socket.create_server(("::1", 8002), family=socket.AF_INET6)
c = socket.create_server(("", 8003))
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.bind(("127.0.0.1", 8004))
e = socket.create_connection(("127.0.0.1", 8001))
print("ready", flush=True)
time.sleep(100000)
"#;
    house.den(&["exec", "-d", "web", "--user", "user", "--", "python3", "-c", script]).ok();
    eventually(LONG, "it listens", || house.den(&["ports", "web"]).stdout.contains("8004"));
    let ports = house.json(&["ports", "web"]);
    let seen: Vec<_> = ports
        .as_array()
        .expect("a list")
        .iter()
        .map(|port| {
            assert_eq!(port["uid"], 1000, "{port}");
            assert_eq!(port["command"], "python3", "{port}");
            assert_eq!((&port["argv"][0], &port["argv"][1]), (&"python3".into(), &"-c".into()), "{port}");
            assert!(port["pid"].as_u64().is_some_and(|pid| pid > 1), "{port}");
            let text = |key: &str| port[key].as_str().expect("text").to_owned();
            (port["port"].as_u64().expect("a port"), text("protocol"), text("address"))
        })
        .collect();
    let wanted =
        [(8001, "tcp", "127.0.0.1"), (8002, "tcp", "::1"), (8003, "tcp", "0.0.0.0"), (8004, "udp", "127.0.0.1")];
    let wanted: Vec<_> = wanted.iter().map(|(p, proto, addr)| (*p, (*proto).to_owned(), (*addr).to_owned())).collect();
    assert_eq!(seen, wanted);
    let table = house.den(&["ports", "web"]).ok();
    assert!(table.lines().any(|line| line.starts_with("8002") && line.contains("python3 -c")), "{table}");
    house.den(&["ports", "nobody"]).refused(1, "there is no computer `nobody`");
    house.den(&["stop", "web"]).ok();
    house.den(&["ports", "web"]).refused(1, "`web` is stopped");
}

#[test]
fn a_request_reaches_a_loopback_only_server_and_ctrl_c_ends_it() {
    let house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "mkdir /root/www && echo from inside > /root/www/file").ok();
    let server = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/root/www", "8000"];
    house.den(&[&["exec", "-d", "web", "--"], &server[..]].concat()).ok();
    let v6 = "import socket\nl = socket.create_server(('::1', 8100), family=socket.AF_INET6)\nwhile True:\n c = l.accept()[0]; c.sendall(b'six'); c.close()";
    house.den(&["exec", "-d", "web", "--", "python3", "-c", v6]).ok();
    eventually(LONG, "both listen", || {
        let ports = house.den(&["ports", "web"]).stdout;
        ports.contains("8000") && ports.contains("8100")
    });
    let forward = Forward::start(&house, &["0:8000", "0:8100"]);
    for _ in 0..3 {
        let mut stream = forward.connect(0);
        stream.write_all(b"GET /file HTTP/1.0\r\n\r\n").expect("a request");
        let answer = String::from_utf8(read_all(&mut stream)).expect("text");
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("from inside\n"), "{answer}");
    }
    assert_eq!(read_all(&mut forward.connect(1)), b"six");
    assert_eq!(forward.end(), (Some(0), String::new()));
    let json = house.command(&["forward", "web", "0:8000", "--json"]).stdout(Stdio::piped()).spawn();
    let mut json = json.expect("den forward");
    let mut line = String::new();
    BufReader::new(json.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let view: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(
        (&view["address"], &view["computer"], &view["remote_port"]),
        (&"127.0.0.1".into(), &"web".into(), &8000.into())
    );
    assert!(view["port"].as_u64().is_some_and(|port| port > 0), "{view}");
    kill_process(Pid::from_child(&json), Signal::TERM).expect("SIGTERM");
    assert_eq!(json.wait().expect("its end").code(), Some(0));
}

#[test]
fn each_direction_ends_by_itself() {
    let house = house();
    let forward = Forward::start(&house, &["0:7001", "0:7003"]);
    let mut stream = forward.connect(0);
    stream.write_all(b"question").expect("sent");
    stream.shutdown(Shutdown::Write).expect("half closed");
    let answer = String::from_utf8(read_all(&mut stream)).expect("text");
    assert_eq!(answer, format!("8 {}", sha256(&house, b"question")));

    let mut stream = forward.connect(1);
    assert_eq!(read_all(&mut stream), b"hello");
    std::thread::sleep(Duration::from_millis(200));
    stream.write_all(&noise(300_000)).expect("sent after the other side had ended");
    drop(stream);
    eventually(LONG, "all of it came", || house.sh("web", "cat /root/first").stdout == "300000");
}

#[test]
fn much_goes_through_whole_both_ways() {
    let house = house();
    let forward = Forward::start(&house, &["0:7001", "0:7002", "0:7006"]);
    let bytes = noise(64 << 20);
    let mut stream = forward.connect(0);
    stream.write_all(&bytes).expect("64 MiB");
    stream.shutdown(Shutdown::Write).expect("half closed");
    let answer = String::from_utf8(read_all(&mut stream)).expect("text");
    assert_eq!(answer, format!("{} {}", bytes.len(), sha256(&house, &bytes)));

    let mut stream = forward.connect(1);
    let poured = read_all(&mut stream);
    drop(stream);
    assert_eq!(poured.len(), 64 << 20);
    let mut sum = String::new();
    eventually(LONG, "its sum", || {
        sum = house.sh("web", "cat /root/poured").stdout;
        sum.len() == 64
    });
    assert_eq!(sum, sha256(&house, &poured));

    // Both ways at once.
    let mut stream = forward.connect(2);
    let mut back = stream.try_clone().expect("a second descriptor");
    let echoed = std::thread::scope(|scope| {
        let reading = scope.spawn(move || read_all(&mut back));
        stream.write_all(&bytes[..16 << 20]).expect("16 MiB");
        stream.shutdown(Shutdown::Write).expect("half closed");
        reading.join().expect("a thread")
    });
    assert!(echoed == bytes[..16 << 20], "{} bytes", echoed.len());
}

#[test]
fn a_thousand_connections_at_once() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("descriptors");
    let house = house();
    let forward = Forward::start(&house, &["0:7006"]);
    let mut streams: Vec<TcpStream> = (0..1000).map(|_| forward.connect(0)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("{number:04}").as_bytes()).expect("sent");
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap_or_else(|e| panic!("connection {number}: {e}"));
        assert_eq!(back, *format!("{number:04}").as_bytes());
    }
    // The daemon and the computer go on with other things meanwhile.
    assert_eq!(house.sh("web", "echo here").ok(), "here");
    for (number, stream) in streams.iter_mut().enumerate().rev() {
        stream.write_all(b"again").expect("sent");
        stream.shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(read_all(stream), b"again", "connection {number}");
    }
    let (code, said) = forward.end();
    assert_eq!((code, said.as_str()), (Some(0), ""));
}

#[test]
fn a_break_on_either_side_is_a_break_on_the_other() {
    let house = house();
    let forward = Forward::start(&house, &["0:7004", "0:7005"]);
    let mut stream = forward.connect(0);
    stream.write_all(b"ping").expect("sent");
    let mut some = [0; 4];
    stream.read_exact(&mut some).expect("what came before");
    assert_eq!(&some, b"some");
    assert_eq!(stream.read(&mut some).expect_err("a reset").kind(), ErrorKind::ConnectionReset);

    let stream = forward.connect(1);
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("SO_LINGER");
    // It is connected inside before it breaks.
    std::thread::sleep(Duration::from_millis(500));
    drop(stream);
    eventually(LONG, "it was told", || house.sh("web", "cat /root/held").stdout == "reset");
}

#[test]
fn nobody_there_closes_at_once_and_is_said_once() {
    let house = House::open(DEN);
    house.new_computer("web");
    let forward = Forward::start(&house, &["0:4321"]);
    for _ in 0..3 {
        let since = Instant::now();
        let mut stream = forward.connect(0);
        assert_eq!(stream.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        assert!(since.elapsed() < LONG);
    }
    let (code, said) = forward.end();
    assert_eq!(code, Some(0));
    assert_eq!(said.matches("nothing listens on port 4321 in `web`").count(), 1, "{said}");

    let api = house.api();
    let upgrade = [("connection", "upgrade"), ("upgrade", "den-tcp")];
    let refused = |path: &str, status: u16, code: &str| {
        let reply = api.request("GET", &format!("/v1/computers/{path}"), &upgrade, b"");
        let error = reply.refusal(status, code);
        assert!(code == "bad_request" || error["hint"].is_string(), "{error}");
    };
    refused("web/ports/4321/connect", 502, "port_refused");
    refused("web/ports/0/connect", 400, "bad_request");
    refused("web/ports/70000/connect", 400, "bad_request");
    refused("web/ports/http/connect", 400, "bad_request");
    refused("nobody/ports/80/connect", 404, "computer_not_found");
    api.get("/v1/computers/web/ports/4321/connect").refusal(426, "upgrade_required");
    house.den(&["stop", "web"]).ok();
    refused("web/ports/4321/connect", 409, "computer_stopped");
}

#[test]
fn words_that_make_no_sense_are_refused_before_anything_is_taken() {
    let house = House::open(DEN);
    house.new_computer("web");
    let check = |ports: &[&str], code: i32, words: &str| {
        house.den(&[&["forward", "web"], ports].concat()).refused(code, words);
    };
    check(&[], 2, "PORT[:PORT]");
    check(&["0"], 2, "`0:8080` takes a free port");
    check(&["70000"], 2, "`70000` is no port");
    check(&["a:b"], 2, "`a` is no port");
    check(&["80:"], 2, "`` is no port");
    check(&["1:2:3"], 2, "`2:3` is no port");
    check(&["0:80", "--address", "nowhere"], 2, "wanted an IP address");
    check(&["0:80", "--address", "198.51.100.7"], 1, "198.51.100.7 is no address of this host");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let ran = house.den(&["forward", "web", "0:80", &format!("{port}:80")]);
    assert_eq!(ran.stdout, "", "nothing is told of before all is taken");
    ran.refused(1, &format!("127.0.0.1:{port} is taken"));
    house.den(&["forward", "nobody", "0:80"]).refused(1, "there is no computer `nobody`");
    house.den(&["stop", "web"]).ok();
    house.den(&["forward", "web", "0:80"]).refused(1, "`web` is stopped");
}

#[test]
fn a_stop_in_the_middle_closes_connections_and_a_removal_ends_the_forward() {
    let house = house();
    let mut forward = Forward::start(&house, &["0:7006"]);
    let mut open: Vec<TcpStream> = (0..20).map(|_| forward.connect(0)).collect();
    for stream in &mut open {
        stream.write_all(b"x").expect("sent");
        stream.read_exact(&mut [0]).expect("echoed");
    }
    house.den(&["stop", "web", "--grace", "1s"]).ok();
    for stream in &mut open {
        // Its server was ended (FIN), or the computer was first (a reset).
        match stream.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    eventually(LONG, "what is sent is refused", || open[0].write_all(b"x").is_err());
    assert!(forward.connect(0).read(&mut [0]).is_err(), "nobody runs");
    // The same forward goes on once it runs again.
    house.den(&["start", "web"]).ok();
    serve(&house, "7006");
    let mut stream = forward.connect(0);
    stream.write_all(b"y").expect("sent");
    stream.read_exact(&mut [0]).expect("echoed");
    house.den(&["rm", "web"]).ok();
    let _ = forward.connect(0).read(&mut [0]);
    let mut said = String::new();
    forward.child.stderr.take().expect("its errors").read_to_string(&mut said).expect("text");
    assert_eq!(forward.child.wait().expect("its end").code(), Some(1), "{said}");
    assert!(said.contains("there is no computer"), "{said}");
}
