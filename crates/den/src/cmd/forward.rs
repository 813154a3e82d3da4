//! `forward`: ports of this host that lead to ports inside a computer.
//!
//! ```text
//! client ─► LOCAL on this host ─► the daemon, upgraded ─► agent ─► REMOTE inside, loopback or not
//! ```
//!
//! All ports are taken before any is told of. A connection that finds nobody inside is reset, and why
//! is said once until one succeeds again.

use std::{
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::Args;
use den_api::Client;
use den_model::State;
use rustix::process::{Resource, Rlimit};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, mpsc},
};

use crate::{
    find::Global,
    report::{Outcome, Trouble, chain},
    show,
};

/// Descriptors of one connection: from the client, to the daemon.
const DESCRIPTORS: u64 = 2;
/// Descriptors that are kept for the rest.
const DESCRIPTORS_KEPT: u64 = 64;
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: u64 = 16_384;
/// Connections that wait to be taken.
const BACKLOG: u32 = 4096;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
#[command(after_help = "Example: den forward web 8080  |  den forward web 8080:80 5432  |  den forward web 0:80\n\
                        Until Ctrl-C. `den ports` shows what listens inside.")]
pub struct ForwardArgs {
    /// Name or id
    name: String,
    /// Of this host, then inside; 0 takes a free one of this host
    #[arg(required = true, value_name = "PORT[:PORT]", value_parser = pair)]
    ports: Vec<Pair>,
    /// Address of this host to listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", value_parser = address)]
    address: IpAddr,
}

/// A port of this host, and the one inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    local: u16,
    remote: u16,
}

/// A forward, as `--json` shows it.
#[derive(Debug, Serialize)]
struct View<'a> {
    address: IpAddr,
    port: u16,
    computer: &'a str,
    remote_port: u16,
}

/// Reads `8080` or `8080:80`.
fn pair(text: &str) -> Result<Pair, String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse::<u16>().ok()).flatten();
        number.ok_or_else(|| format!("`{text}` is no port: wanted a number from 1 to 65535"))
    };
    let (local, remote) = match text.split_once(':') {
        Some((local, remote)) => (number(local)?, number(remote)?),
        None => (number(text)?, number(text)?),
    };
    if remote == 0 {
        return Err("the port inside is 0; `0:8080` takes a free port of this host for 8080 inside".to_owned());
    }
    Ok(Pair { local, remote })
}

/// Reads an IP address, or `localhost`.
fn address(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    text.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| "wanted an IP address".to_owned())
}

/// Forwards until a signal comes or the computer is removed.
pub async fn run(global: &Global, args: ForwardArgs) -> Outcome {
    let client = global.client()?;
    let computer = client.computer(&args.name).await?;
    if computer.state != State::Running {
        return Err(Trouble::new(format_args!("`{}` is {}, and so has no ports", computer.name, computer.state))
            .hint(format_args!("start it with `den start {}`", computer.name)));
    }
    let mut ends = Ends::listen().map_err(|error| Trouble::io("cannot listen for signals", &error))?;
    let places = Arc::new(Semaphore::new(places()));
    let mut listeners = Vec::new();
    for pair in &args.ports {
        listeners.push((listen(args.address, pair.local)?, pair.remote));
    }
    for (listener, remote) in &listeners {
        let local = listener.local_addr().map_err(|error| Trouble::io("a listening socket", &error))?;
        if global.json {
            show::json_line(&View {
                address: local.ip(),
                port: local.port(),
                computer: &computer.name,
                remote_port: *remote,
            })?;
        } else {
            show::line(&format!("{local} -> {}:{remote}", computer.name))?;
        }
    }
    if !args.address.is_loopback() {
        eprintln!("hint: whoever reaches {} reaches these ports; there is no token on them", args.address);
    }
    // By id: a computer of the same name that is made later is another one.
    let id = computer.id.to_string();
    let (over, mut is_over) = mpsc::channel(1);
    for (listener, remote) in listeners {
        let notes = Arc::new(Notes { what: format!("{}:{remote}", computer.name), last: Mutex::default() });
        let forward = Forward { client: client.clone(), id: id.clone(), remote, notes, over: over.clone() };
        tokio::spawn(accept(listener, forward, Arc::clone(&places)));
    }
    tokio::select! {
        () = ends.next() => Ok(0),
        Some(trouble) = is_over.recv() => Err(trouble),
    }
}

/// Takes a port of this host.
fn listen(address: IpAddr, port: u16) -> Result<TcpListener, Trouble> {
    let wanted = SocketAddr::new(address, port);
    let bound = || {
        let socket = match address {
            IpAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            IpAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }?;
        // What an earlier forward left in TIME_WAIT is no reason to wait.
        socket.set_reuseaddr(true)?;
        socket.bind(wanted)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Trouble::new(format_args!("{wanted} is taken by another program of this host"))
            .hint(format_args!("take another port, or any that is free: `den forward NAME 0:{port}`")),
        io::ErrorKind::AddrNotAvailable => Trouble::new(format_args!("{address} is no address of this host"))
            .hint("`--address 127.0.0.1` is; `ip addr` shows the others"),
        io::ErrorKind::PermissionDenied => Trouble::new(format_args!("{wanted} is not for this user to take"))
            .hint("take a port from 1024 on, or become root (sudo)"),
        _ => Trouble::io(wanted, &error),
    })
}

/// Takes as many descriptors as this process may; how many connections they are enough for.
fn places() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let descriptors = if raised.is_ok() { limit.maximum } else { limit.current }.unwrap_or(1 << 20);
    (descriptors.saturating_sub(DESCRIPTORS_KEPT) / DESCRIPTORS).clamp(1, CONNECTIONS_MAX) as usize
}

/// Where the connections of one port go.
#[derive(Clone)]
struct Forward {
    client: Client,
    id: String,
    remote: u16,
    notes: Arc<Notes>,
    /// Says that there is nothing to forward to any more.
    over: mpsc::Sender<Trouble>,
}

async fn accept(listener: TcpListener, forward: Forward, places: Arc<Semaphore>) {
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let forward = forward.clone();
                tokio::spawn(async move {
                    forward.carry(stream).await;
                    drop(place);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                forward.notes.say(&format!("a connection was not taken: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Forward {
    async fn carry(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        match self.client.dial(&self.id, self.remote).await {
            Ok(inside) => {
                self.notes.all_well();
                den_relay::relay(inside.stream, stream, &inside.ahead, pending()).await;
            }
            Err(error) => {
                let _ = stream.set_zero_linger();
                drop(stream);
                match error.code() {
                    Some("computer_not_found" | "unauthorized") => drop(self.over.try_send(error.into())),
                    _ => self.notes.say(&chain(&error)),
                }
            }
        }
    }
}

/// What is said of one port while it is forwarded: each trouble once, until all is well again.
struct Notes {
    what: String,
    last: Mutex<Option<String>>,
}

impl Notes {
    fn say(&self, text: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(text) {
            eprintln!("{}: {text}", self.what);
            *last = Some(text.to_owned());
        }
    }

    fn all_well(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The signals that end a forward; it has then done what was asked.
struct Ends([tokio::signal::unix::Signal; 3]);

impl Ends {
    fn listen() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_hosts_then_the_one_inside() {
        let check = |text, local, remote| assert_eq!(pair(text), Ok(Pair { local, remote }), "{text}");
        check("8080", 8080, 8080);
        check("8080:80", 8080, 80);
        check("0:80", 0, 80);
        check("1:65535", 1, 65535);
        for bad in ["", "0", "70000", "a:b", "80:0", "80:", ":80", "1:2:3", "-1", "+80", "80 ", "0x50", "80:65536"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(address("::1"), Ok("::1".parse().unwrap()));
        assert_eq!(address("[::1]"), Ok("::1".parse().unwrap()));
        assert_eq!(address("localhost"), Ok("127.0.0.1".parse().unwrap()));
        assert!(address("web").is_err());
    }
}
