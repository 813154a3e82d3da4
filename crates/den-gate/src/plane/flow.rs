//! One flow, from the listener to its last record.
//!
//! ```text
//! limits ─► name ─► decide ─► (peek ─► decide) ─► addresses ─► record open ─► list ─► dial ─► relay ─► record close
//!                     └────────────┴── deny: record, and RST (plain HTTP in guarded: 403) ──┴── RST
//! ```

use std::borrow::Cow;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, Shutdown, recv};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::decide::{NameOrigin, Outcome, Peek, Why, decide, is_virtual};
use crate::http::{self, DialRefused, Event};
use crate::peek::{PEEK_BYTES_MAX, Peeked, peek};
use crate::policy::Posture;
use crate::record::{Kind, Protocol, Record};

use super::cut::Cut;
use super::dial::{self, Refused};
use super::link::{Link, Live, Looked, Slot};
use super::metered::Metered;
use super::relay::{Side, relay};
use super::{Gate, Rest, peer, query};

/// For the first bytes.
const PEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// For the request that is refused, and for its sender to have read the refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Where plain HTTP is expected.
const HTTP_PORT: u16 = 80;

/// Where a flow leads.
enum Upstream {
    Addresses(Vec<SocketAddr>),
    Computer(Arc<Link>),
    /// Dialled when the first request may pass.
    Inspected,
}

/// What is connected.
enum Connected {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Serves a flow to its end.
pub(super) async fn serve(gate: Arc<Gate>, link: Arc<Link>, client: TcpStream, slot: Slot) {
    let _slot = slot;
    let (Ok(SocketAddr::V4(target)), Some(rest)) = (client.local_addr(), gate.rest()) else {
        return reset(&client);
    };
    let number = gate.next_flow();
    let begun = Instant::now();
    let mut live = name(&link, target);
    let mut generation = link.generation();
    let mut told = link.told();
    if link.day_is_over() {
        link.limited("bytes_per_day", 1);
        return deny(&link, &live, number, client, &Why::LimitDay.into()).await;
    }
    let (upstream, record) = 'decided: {
        let mut decision = decide(&told.policy, &live.flow(), rest.private());
        if decision.obligations.dns {
            return query::stream(&link, &rest, client).await;
        }
        if decision.verdict == Outcome::Allow && decision.obligations.peek != Peek::No {
            let Ok(looked) = look(&client).await else { return reset(&client) };
            // Several names may have been answered with one address; the one that is said counts.
            if live.origin == NameOrigin::Pinned
                && let Looked::At(peeked) = &looked
                && let Some(said) = peeked.name()
                && link.names.is_pinned(*target.ip(), said)
            {
                live.name = Some(said.clone());
            }
            live.looked = looked;
            // It may have changed meanwhile.
            generation = link.generation();
            told = link.told();
            decision = decide(&told.policy, &live.flow(), rest.private());
        }
        let rule = decision.rule.map(ToString::to_string);
        if decision.verdict != Outcome::Allow {
            break 'decided (Err(Refused { why: decision.why, rule }), None);
        }
        let obligations = decision.obligations;
        let asked = SocketAddr::V4(target);
        let upstream = if let Some(name) = obligations.computer {
            let peer = gate.links().by_id.values().find(|link| link.told().name == name).cloned();
            peer.map(Upstream::Computer).ok_or_else(|| Why::NoComputer.into())
        } else if obligations.inspect_http {
            Ok(Upstream::Inspected)
        } else {
            let by_name = live.name.as_ref().filter(|_| obligations.resolve);
            dial::addresses(&rest, &told.policy, by_name, asked).await.map(Upstream::Addresses)
        };
        live.inspected = obligations.inspect_http;
        (upstream, Some((decision.why, rule)))
    };
    let (upstream, (why, rule)) = match (upstream, record) {
        (Ok(upstream), Some(record)) => (upstream, record),
        (Err(refused), _) => return deny(&link, &live, number, client, &refused).await,
        (Ok(_), None) => return reset(&client),
    };
    let first = match &upstream {
        Upstream::Addresses(addresses) => addresses.first().copied(),
        Upstream::Computer(_) | Upstream::Inspected => None,
    };
    let opened = link.write(&Record {
        verdict: Some(Outcome::Allow),
        why: Some(why.as_str().into()),
        rule: rule.map(Cow::Owned),
        protocol: protocol(&live.looked),
        dialled: first,
        ..live.record(Kind::Open, number)
    });
    if opened.is_err() {
        link.count(Outcome::Deny);
        return reset(&client);
    }
    link.count(Outcome::Allow);
    let live = Arc::new(live);
    let listed = link.list(number, &live, &rest);
    let said = OnceLock::new();
    let (why, dialled) = match upstream {
        Upstream::Inspected => (inspect(&link, &live, &rest, number, client).await, live.dialled()),
        upstream => {
            let connected = |address| link.connected(&live, address, generation, &rest);
            let why = carry(&gate, &link, &live, upstream, client, &said, &connected).await;
            (why, live.dialled())
        }
    };
    drop(listed);
    let looked = match said.into_inner() {
        Some(peeked) => &Looked::At(peeked),
        None => &live.looked,
    };
    let mut record = live.record(Kind::Close, number);
    if record.name.is_none()
        && let Looked::At(peeked) = looked
    {
        record.name = peeked.name().map(|name| Cow::Borrowed(name.as_str()));
    }
    let _ = link.write(&Record {
        why: Some(why.into()),
        protocol: protocol(looked),
        dialled,
        up_bytes: Some(live.up.load(Ordering::Relaxed)),
        down_bytes: Some(live.down.load(Ordering::Relaxed)),
        ms: Some(begun.elapsed().as_millis() as u64),
        ..record
    });
}

/// A flow of which only the address is known, and what the gate knows of that.
fn name(link: &Link, target: SocketAddrV4) -> Live {
    let (name, origin) = if is_virtual(*target.ip()) {
        (link.names.name_of(*target.ip()), NameOrigin::Virtual)
    } else {
        (link.names.pinned(*target.ip()), NameOrigin::Pinned)
    };
    let origin = if name.is_some() { origin } else { NameOrigin::None };
    Live {
        target,
        name,
        origin,
        looked: Looked::Not,
        inspected: false,
        dialled: Mutex::default(),
        cut: Cut::default(),
        up: AtomicU64::new(0),
        down: AtomicU64::new(0),
    }
}

/// The first bytes, which stay in the socket. An error: the computer has gone.
async fn look(client: &TcpStream) -> io::Result<Looked> {
    let peeking = async {
        let mut buffer = vec![0; PEEK_BYTES_MAX];
        let mut known = 0;
        loop {
            let ready = client.ready(Interest::READABLE).await?;
            // What was seen before is no news: the socket waits for more than that.
            let more = client.try_io(Interest::READABLE, || {
                let (length, _) = recv(client, &mut buffer[..], RecvFlags::PEEK)?;
                if length > known { Ok(length) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            match more {
                Ok(length) => {
                    known = length;
                    match peek(&buffer[..length]) {
                        Peeked::More => {}
                        peeked => return Ok(Looked::At(peeked)),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if ready.is_read_closed() {
                        return Ok(if known == 0 { Looked::Nobody } else { Looked::At(Peeked::Other) });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    };
    tokio::time::timeout(PEEK_TIMEOUT, peeking).await.unwrap_or(Ok(Looked::Nobody))
}

/// Dials, says where to, and carries bytes; returns how it ended.
async fn carry(
    gate: &Gate,
    link: &Link,
    live: &Live,
    upstream: Upstream,
    client: TcpStream,
    said: &OnceLock<Peeked>,
    told: &(dyn Fn(SocketAddr) + Sync),
) -> &'static str {
    let connecting = async {
        match &upstream {
            Upstream::Addresses(addresses) => {
                dial::connect(addresses).await.map(|(stream, address)| Connected::Tcp(stream, address))
            }
            Upstream::Computer(peer) => {
                let agent = peer.told().agent.clone();
                let dialled = peer::dial(&agent, live.target.port()).await;
                // It may have been cut off while it was asked.
                dialled.and_then(
                    |stream| if peer.is_closed() { Err(Why::NoComputer) } else { Ok(Connected::Unix(stream)) },
                )
            }
            Upstream::Inspected => Err(Why::DialFailed),
        }
    };
    let connected = tokio::select! {
        biased;
        why = live.cut.fired() => Err(why),
        connected = connecting => connected.map_err(Why::as_str),
    };
    let connected = match connected {
        Ok(connected) => connected,
        Err(why) => {
            reset(&client);
            return why;
        }
    };
    let side = match &connected {
        Connected::Tcp(stream, address) => {
            told(*address);
            Side::Tcp(stream)
        }
        Connected::Unix(stream) => Side::Unix(stream),
    };
    // From here on all but a whole flow ends as a reset, also where the gate is killed.
    let sides = [Side::Tcp(&client), side];
    sides.iter().for_each(|side| side.reset_on_close(true));
    let why = relay(link, live, &gate.pipes, sides[0], sides[1], said).await;
    if why == "done" {
        sides.iter().for_each(|side| side.reset_on_close(false));
    }
    why
}

/// Has each request of a plain HTTP connection looked at; says how it ended.
async fn inspect(link: &Arc<Link>, live: &Arc<Live>, rest: &Arc<Rest>, number: u64, client: TcpStream) -> &'static str {
    let Some(name) = &live.name else {
        reset(&client);
        return Why::UnknownName.as_str();
    };
    // The stream goes to hyper; this one is to reset the connection by.
    let Ok(handle) = rustix::io::fcntl_dupfd_cloexec(&client, 3) else {
        reset(&client);
        return "no_descriptor";
    };
    let dial = || {
        let (link, live, rest) = (Arc::clone(link), Arc::clone(live), Arc::clone(rest));
        async move {
            let by_name = live.name.as_ref().filter(|_| is_virtual(*live.target.ip()));
            let generation = link.generation();
            let told = link.told();
            let found = dial::addresses(&rest, &told.policy, by_name, SocketAddr::V4(live.target)).await;
            match found {
                Ok(addresses) => match dial::connect(&addresses).await {
                    Ok((stream, address)) => {
                        link.connected(&live, address, generation, &rest);
                        Ok(stream)
                    }
                    Err(Why::DialTimeout) => Err(io::Error::from(io::ErrorKind::TimedOut)),
                    Err(_) => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                },
                Err(Refused { why: Why::NoAddress, .. }) => Err(io::Error::from(io::ErrorKind::NotFound)),
                Err(Refused { why, .. }) => {
                    let (code, message) = (why.as_str(), why.message().to_owned());
                    let hint = why.hint().unwrap_or_default().to_owned();
                    Err(io::Error::other(DialRefused { code, message, hint }))
                }
            }
        }
    };
    let observe = |event: Event<'_>| {
        let mut detail = format!("{} {}", event.method, event.path);
        if let Some(status) = event.status {
            detail.push_str(&format!(" {status}"));
        }
        let _ = link.write(&Record {
            verdict: Some(event.verdict),
            why: Some(event.why.into()),
            protocol: Some(Protocol::Http),
            detail: Some(detail.into()),
            ..live.record(Kind::Http, number)
        });
    };
    let metered = Metered::new(client, Arc::clone(link), Arc::clone(live));
    let serving = http::serve(metered, name, live.target.port(), dial, &observe);
    let linger = |wait| _ = rustix::net::sockopt::set_socket_linger(&handle, wait);
    // As a flow whose bytes nobody reads.
    linger(Some(Duration::ZERO));
    tokio::select! {
        biased;
        why = live.cut.fired() => why,
        _ = serving => {
            linger(None);
            "done"
        }
    }
}

/// Writes down that a flow is refused, and refuses it.
async fn deny(link: &Link, live: &Live, number: u64, client: TcpStream, refused: &Refused) {
    link.count(Outcome::Deny);
    let _ = link.write(&Record {
        verdict: Some(Outcome::Deny),
        why: Some(refused.why.as_str().into()),
        rule: refused.rule.as_deref().map(Cow::Borrowed),
        protocol: protocol(&live.looked),
        ..live.record(Kind::Open, number)
    });
    let expected = live.looked == Looked::Not && live.target.port() == HTTP_PORT;
    let spoken = matches!(&live.looked, Looked::At(Peeked::Http { .. }));
    if link.told().policy.posture == Posture::Guarded && (expected || spoken) {
        let said = tokio::time::timeout(REFUSAL_TIMEOUT, say(&client, live, refused.why, spoken)).await;
        if matches!(said, Ok(Ok(true))) {
            return;
        }
    }
    reset(&client);
}

/// Tells a plain HTTP client why; false: it is none.
async fn say(client: &TcpStream, live: &Live, why: Why, spoken: bool) -> io::Result<bool> {
    if !spoken && !matches!(look(client).await?, Looked::At(Peeked::Http { .. })) {
        return Ok(false);
    }
    let place =
        live.name.as_ref().map_or_else(|| live.target.to_string(), |name| format!("{name}:{}", live.target.port()));
    let message = format!("{place} was not reached: {}", why.message());
    let mut answer = http::refusal(why.as_str(), &message, why.hint().unwrap_or_default());
    if why == Why::HostMismatch {
        const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden";
        if answer.starts_with(FORBIDDEN) {
            answer.splice(..FORBIDDEN.len(), *b"HTTP/1.1 421 Misdirected Request");
        }
    }
    // The request is taken off first: closing a socket with unread bytes is a reset, which would
    // overtake the answer.
    let mut sink = [0; 4096];
    while client.try_read(&mut sink).is_ok_and(|length| length > 0) {}
    let mut left = &answer[..];
    while !left.is_empty() {
        client.writable().await?;
        match client.try_write(left) {
            Ok(written) => left = &left[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    rustix::net::shutdown(client, Shutdown::Write)?;
    loop {
        client.readable().await?;
        match client.try_read(&mut sink) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It has read what it wanted and closed.
            Err(_) => return Ok(true),
        }
    }
}

fn protocol(looked: &Looked) -> Option<Protocol> {
    match looked {
        Looked::Not | Looked::Nobody => None,
        Looked::At(Peeked::Tls { .. }) => Some(Protocol::Tls),
        Looked::At(Peeked::Http { .. }) => Some(Protocol::Http),
        Looked::At(_) => Some(Protocol::Tcp),
    }
}

/// Closing it is a reset.
fn reset(client: &TcpStream) {
    let _ = client.set_zero_linger();
}
