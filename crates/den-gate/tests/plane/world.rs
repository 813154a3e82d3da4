//! Namespaces with a gate between them; all of it goes with the value.

use std::cell::RefCell;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use den_gate::policy::Policy;
use den_gate::wire::{Attach, House, Reply, Request, Status};
use rustix::net::{AddressFamily, SocketType};

/// The upstream's address: echo at 7007 and 7008, a sink at 7009, HTTP at 8080, DNS at 53.
pub const UPSTREAM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 18);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 17);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Held by whoever has 198.51.100.16/28 on this host, in any process; of the kind that the testkit's
/// `internet` takes. With two worlds at once, flows of one would go to the other's upstream.
const BLOCK_LOCK: &str = "/run/lock/den-test-net/1";

pub struct World {
    tag: String,
    computers: usize,
    run: tempfile::TempDir,
    gate: Option<Child>,
    control: RefCell<Option<BufReader<UnixStream>>>,
    // Let go after `drop`, in this order.
    _block: fs::File,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// With so many computers, none of them attached. None: this needs root.
    pub fn new(computers: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all("/run/lock/den-test-net").expect("a folder for locks");
        let block = fs::File::create(BLOCK_LOCK).expect("a lock file");
        rustix::fs::flock(&block, rustix::fs::FlockOperation::LockExclusive).expect("locked");
        let run = tempfile::Builder::new().prefix("den-gate-").tempdir().expect("a folder");
        let tag = format!("dt{}", std::process::id());
        let mut world =
            Self { tag, computers, run, gate: None, control: RefCell::default(), _block: block, _turn: turn };
        world.build();
        world.start();
        Some(world)
    }

    fn build(&self) {
        let (gate, upstream, outside) = (self.space("g"), self.space("u"), format!("{}h", self.tag));
        for space in [&gate, &upstream] {
            self.ip(&["netns", "add", space]);
            self.ip(&["-n", space, "link", "set", "lo", "up"]);
        }
        self.ip(&["-n", &gate, "addr", "add", "169.254.1.1/32", "dev", "lo"]);
        for name in ["all", "default"] {
            self.within(&gate, move || {
                fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0").expect("rp_filter");
            });
        }
        for number in 0..self.computers {
            let (space, link) = (self.computer(number), format!("l{}", number + 1));
            let index = (1001 + number).to_string();
            self.ip(&["netns", "add", &space]);
            let peer = ["type", "veth", "peer", "name", "eth0", "address", "02:00:00:00:00:02", "netns", &space];
            let here = ["-n", &gate, "link", "add", &link, "index", &index, "address", "02:00:00:00:00:01"];
            self.ip(&[&here[..], &peer[..]].concat());
            self.ip(&["-n", &gate, "link", "set", &link, "up"]);
            let neighbour = ["lladdr", "02:00:00:00:00:02", "dev", &link, "nud", "permanent"];
            self.ip(&[&["-n", &gate, "neigh", "add", "10.0.0.2"][..], &neighbour[..]].concat());
            self.ip(&["-n", &space, "link", "set", "lo", "up"]);
            self.ip(&["-n", &space, "link", "set", "eth0", "up"]);
            self.ip(&["-n", &space, "addr", "add", "10.0.0.2/32", "dev", "eth0"]);
            self.ip(&["-n", &space, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink"]);
        }
        self.ip(&["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &upstream]);
        self.ip(&["addr", "add", &format!("{HOST}/28"), "dev", &outside]);
        self.ip(&["link", "set", &outside, "up"]);
        self.ip(&["-n", &upstream, "addr", "add", &format!("{UPSTREAM}/28"), "dev", "eth0"]);
        self.ip(&["-n", &upstream, "link", "set", "eth0", "up"]);
        self.within(&upstream, serve);
        std::os::unix::fs::symlink(format!("/run/netns/{gate}"), self.run.path().join("gate.netns")).expect("a link");
    }

    /// Starts the gate and tells it the house.
    pub fn start(&mut self) {
        let mut gate = Command::new(std::env::current_exe().expect("this program"))
            .args(["gate_process", "--exact", "--ignored", "--nocapture"])
            .env("DEN_TEST_GATE_RUN", self.run.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("the gate starts");
        let socket = self.run.path().join("gate.sock");
        let until = Instant::now() + Duration::from_secs(10);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < until && matches!(gate.try_wait(), Ok(None)) => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Err(error) => panic!("no gate: {error}"),
            }
        };
        self.gate = Some(gate);
        *self.control.borrow_mut() = Some(BufReader::new(stream));
        assert!(matches!(self.ask(&Request::Hello { version: 1 }), Reply::Hello { .. }));
        self.house(&[]);
    }

    /// Tells the gate the house, with these private targets.
    pub fn house(&self, private: &[&str]) {
        let private = private.iter().map(|target| target.parse().expect("a target")).collect();
        let house = House { private, resolvers: vec![UPSTREAM.into()], key: "ab".repeat(32) };
        assert_eq!(self.ask(&Request::House(house)), Reply::Done);
    }

    pub fn kill(&mut self) {
        let mut gate = self.gate.take().expect("a gate");
        gate.kill().expect("killed");
        gate.wait().expect("ended");
    }

    /// SIGTERM; whether it ended well.
    pub fn end(&mut self) -> bool {
        let mut gate = self.gate.take().expect("a gate");
        let pid = rustix::process::Pid::from_child(&gate);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told");
        gate.wait().expect("ended").success() && !self.run.path().join("gate.sock").exists()
    }

    /// An agent that speaks as one does, and whose every port is an echo.
    pub fn agent(&self) {
        let listener = std::os::unix::net::UnixListener::bind(self.run.path().join("agent.sock")).expect("a socket");
        listener.set_nonblocking(true).expect("set");
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let frame = den_wire::read_frame(&mut stream).await.expect("a frame");
                        let request: den_wire::agent::Request = frame.message().expect("a request");
                        assert!(matches!(request, den_wire::agent::Request::Dial { port: 5432 }));
                        den_wire::write_message(&mut stream, &den_wire::agent::Reply::Done).await.expect("told");
                        let (mut read, mut write) = stream.split();
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    });
                }
            });
        });
    }

    fn ask(&self, request: &Request) -> Reply {
        let mut control = self.control.borrow_mut();
        let control = control.as_mut().expect("connected");
        let mut line = serde_json::to_string(request).expect("a line");
        line.push('\n');
        control.get_mut().write_all(line.as_bytes()).expect("sent");
        line.clear();
        control.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    pub fn attach(&self, number: usize, policy: Policy) {
        let attach = Attach {
            id: self.id(number),
            name: format!("c{number}"),
            link: number as u64 + 1,
            folder: self.folder(number),
            agent: self.run.path().join("agent.sock"),
            policy,
        };
        assert_eq!(self.ask(&Request::Attach(Box::new(attach))), Reply::Done);
    }

    pub fn detach(&self, number: usize) {
        assert_eq!(self.ask(&Request::Detach { id: self.id(number) }), Reply::Done);
    }

    pub fn policy(&self, number: usize, policy: Policy) {
        assert_eq!(self.ask(&Request::Policy { id: self.id(number), policy }), Reply::Done);
    }

    pub fn status(&self, number: usize) -> Status {
        match self.ask(&Request::Status { id: self.id(number) }) {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// All records, once what is on its way has been written.
    pub fn records(&self, number: usize) -> String {
        std::thread::sleep(Duration::from_millis(100));
        fs::read_to_string(self.folder(number).join("flows-1.jsonl")).expect("records")
    }

    pub fn counter(&self, name: &str) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.space("g"), "nft", "list", "counter", "ip", "den_gate", name])
            .output()
            .expect("nft runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn folder(&self, number: usize) -> PathBuf {
        self.run.path().join(format!("net-{number}"))
    }

    fn id(&self, number: usize) -> String {
        format!("cmp_{number}")
    }

    fn space(&self, name: &str) -> String {
        format!("{}{name}", self.tag)
    }

    pub fn computer(&self, number: usize) -> String {
        self.space(&number.to_string())
    }

    pub fn host(&self) -> Ipv4Addr {
        HOST
    }

    /// Runs something in a computer's namespace.
    pub fn inside<T: Send + 'static>(&self, number: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.within(&self.computer(number), work)
    }

    /// Runs something in the upstream's namespace.
    pub fn upstream<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.within(&self.space("u"), work)
    }

    fn within<T: Send + 'static>(&self, space: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let space = format!("/run/netns/{space}");
        let thread = std::thread::spawn(move || {
            let namespace = fs::File::open(&space).expect("a namespace");
            den_sys::clone::enter_network(namespace.as_fd()).expect("entered");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub fn ip(&self, words: &[&str]) {
        let status = Command::new("ip").args(words).status().expect("iproute2");
        assert!(status.success(), "ip {words:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut gate) = self.gate.take() {
            let _ = gate.kill();
            let _ = gate.wait();
        }
        let spaces = (0..self.computers).map(|number| self.computer(number)).chain([self.space("g"), self.space("u")]);
        for space in spaces {
            let _ = Command::new("ip").args(["netns", "del", &space]).status();
        }
        // A listener of the upstream keeps its namespace, and so the other end.
        let _ = Command::new("ip").args(["link", "del", &format!("{}h", self.tag)]).status();
    }
}

/// A connection that does not wait long.
pub fn dial(target: SocketAddrV4) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::V4(target), Duration::from_secs(2))
}

/// A connection from this port.
pub fn dial_from(port: u16, target: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::from(([0, 0, 0, 0], port)))?;
    rustix::net::connect(&socket, &SocketAddr::V4(target))?;
    Ok(socket.into())
}

/// The address that `server` answers for a name; else the answer's code.
pub fn resolve(server: Ipv4Addr, name: &str) -> Result<Ipv4Addr, u8> {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    socket.connect((server, 53)).expect("connected");
    socket.send(&question(name)).expect("sent");
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).expect("an answer");
    let last = length.saturating_sub(4);
    match answer[3] & 15 {
        0 if answer[7] > 0 => Ok(Ipv4Addr::from_octets(answer[last..length].try_into().expect("4 bytes"))),
        code => Err(code),
    }
}

/// A query for a name's address.
pub fn question(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// The upstream's servers, for as long as this process lives.
fn serve() {
    for (port, talk) in [
        (7007, echo as fn(TcpStream)),
        (7008, echo),
        (7009, sink),
        (7010, source),
        (7011, short),
        (8080, http),
        (25, sink),
    ] {
        let listener = TcpListener::bind((UPSTREAM, port)).expect("a port");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = stream.set_nodelay(true);
                std::thread::spawn(move || talk(stream));
            }
        });
    }
    let socket = UdpSocket::bind((UPSTREAM, 53)).expect("a port");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let name = buffer[12..length].iter().position(|byte| *byte == 0).unwrap_or(0);
            let question = &buffer[12..12 + name + 5];
            let is_a = question[name + 1..name + 3] == [0, 1];
            let mut answer = vec![buffer[0], buffer[1], 0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0];
            answer.extend(question);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(UPSTREAM.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

fn echo(stream: TcpStream) {
    let (mut read, mut write) = (&stream, &stream);
    let _ = io::copy(&mut read, &mut write);
}

fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

fn source(mut stream: TcpStream) {
    let block = vec![7; 1 << 20];
    while stream.write_all(&block).is_ok() {}
}

fn short(mut stream: TcpStream) {
    let _ = stream.write_all(b"bye");
}

fn http(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|length| length > 0) {
        head.push(byte[0]);
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
}
