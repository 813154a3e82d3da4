//! A place for computers to talk to: a network namespace beside the host, and a small server in it.
//!
//! ```text
//! computer ─► gate ─► host ── veth 192.0.2.<4n+1>/30 ─ 192.0.2.<4n+2> ── server      what is measured
//! this program ─────► host ── the same link ─────────────────────────── server      without the gate
//! this program ─────► 127.0.0.1 ─────────────────────────────────────── server      loopback
//! computer ─► gate ─► an address of the host's own, opened by --private ─ server      the same way, through the gate
//! ```
//!
//! Addresses of 192.0.2.0/24 are nobody's (RFC 5737) and not under the gate's floor; the host's own
//! are, so a server on the host itself is reached only where the operator has opened its address. Dropping it takes
//! all of it away.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::{Command, Stdio},
    thread::JoinHandle,
};

use anyhow::{Context as _, ensure};

/// The server's buffer, in bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// What the server does on each of its ports.
#[derive(Debug, Clone, Copy)]
enum Service {
    /// Takes a length (8 bytes, little endian) and sends as many.
    Send,
    /// Sends one byte and closes.
    Greet,
    /// Sends back what it takes, byte by byte as it comes.
    Echo,
}

/// The services of one address.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Takes a length (8 bytes, little endian) and sends as many bytes.
    pub send: SocketAddr,
    /// Sends one byte and closes.
    pub greet: SocketAddr,
    /// Sends back what it takes.
    pub echo: SocketAddr,
}

/// The namespace, its link and the servers.
pub struct Upstream {
    name: String,
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
    /// The server in the namespace.
    pub outside: Ports,
    /// The same server on the host's loopback.
    pub loopback: Ports,
    /// What sends, at an address of the host's own that computers are let to.
    pub opened: Option<SocketAddr>,
}

impl Upstream {
    /// Makes it, with `opened` as an address of the host's own. Errors: not root, no `ip`, or the link's name or an
    /// address is taken.
    pub fn open(opened: Option<SocketAddrV4>) -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "the net_* measures make a network namespace: run them as root");
        let number = std::process::id();
        let name = format!("den-bench-{number}");
        let link = format!("denb{}", number % 1_000_000);
        let block = (number % 64) as u8 * 4;
        let (ours, theirs) = (Ipv4Addr::new(192, 0, 2, block + 1), Ipv4Addr::new(192, 0, 2, block + 2));
        ip(&["netns", "add", &name])?;
        let nowhere = Ports { send: ([0; 4], 0).into(), greet: ([0; 4], 0).into(), echo: ([0; 4], 0).into() };
        // From here on dropping it takes the namespace away, and the link with it.
        let mut upstream = Self {
            name,
            listeners: Vec::new(),
            threads: Vec::new(),
            outside: nowhere,
            loopback: nowhere,
            opened: None,
        };
        let name = upstream.name.clone();
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        ip(&["addr", "add", &format!("{ours}/30"), "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        ip(&["-n", &name, "addr", "add", &format!("{theirs}/30"), "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        let namespace = File::open(format!("/run/netns/{name}"))?;
        // A thread of its own changes its namespace for good; the sockets that it makes stay in there.
        let outside = std::thread::spawn(move || -> anyhow::Result<_> {
            den_sys::clone::enter_network(namespace.as_fd())?;
            listen(theirs)
        });
        let outside = outside.join().expect("no panic")?;
        upstream.outside = upstream.serve(outside)?;
        upstream.loopback = upstream.serve(listen(Ipv4Addr::LOCALHOST)?)?;
        if let Some(at) = opened {
            ip(&["addr", "add", &format!("{}/32", at.ip()), "dev", &link])?;
            let listener = TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))?;
            upstream.add(listener, Service::Send)?;
            upstream.opened = Some(at.into());
        }
        Ok(upstream)
    }

    fn serve(&mut self, listeners: [TcpListener; 3]) -> anyhow::Result<Ports> {
        let at = |number: usize| listeners[number].local_addr();
        let ports = Ports { send: at(0)?, greet: at(1)?, echo: at(2)? };
        for (listener, service) in listeners.into_iter().zip([Service::Send, Service::Greet, Service::Echo]) {
            self.add(listener, service)?;
        }
        Ok(ports)
    }

    fn add(&mut self, listener: TcpListener, service: Service) -> anyhow::Result<()> {
        self.listeners.push(listener.try_clone()?);
        self.threads.push(std::thread::spawn(move || accept(&listener, service)));
        Ok(())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Wakes its thread, which then ends.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("warning: the namespace {} is left behind: {error:#}", self.name);
        }
    }
}

fn listen(address: Ipv4Addr) -> anyhow::Result<[TcpListener; 3]> {
    let listen = || TcpListener::bind((address, 0)).with_context(|| format!("cannot listen on {address}"));
    Ok([listen()?, listen()?, listen()?])
}

fn accept(listener: &TcpListener, service: Service) {
    while let Ok((stream, _)) = listener.accept() {
        let _ = stream.set_nodelay(true);
        match service {
            Service::Greet => {
                let _ = (&stream).write_all(b"!");
            }
            Service::Send => {
                std::thread::spawn(move || send(stream));
            }
            Service::Echo => {
                std::thread::spawn(move || echo(stream));
            }
        }
    }
}

/// A client that goes away early is its own business: what it counts will not add up.
fn send(mut stream: TcpStream) {
    let mut length = [0; 8];
    if stream.read_exact(&mut length).is_err() {
        return;
    }
    let block = vec![0x5a; BLOCK_BYTES];
    let mut left = u64::from_le_bytes(length);
    while left > 0 {
        let now = left.min(BLOCK_BYTES as u64) as usize;
        if stream.write_all(&block[..now]).is_err() {
            return;
        }
        left -= now as u64;
    }
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read(&mut length);
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(got @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..got]).is_err() {
            return;
        }
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output().context("cannot start `ip`")?;
    ensure!(output.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
