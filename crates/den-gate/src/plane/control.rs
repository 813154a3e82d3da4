//! RUN/gate.sock: what `serve` says. One JSON object a line, one answer to each, in order.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use den_sys::SysError;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::dns::Resolver;
use crate::rule::COMPUTERS;
use crate::wire::{Attach, House, LINE_BYTES_MAX, Reply, Request, STATUSES_MAX, Status, Statuses, VERSION};

use super::link::Link;
use super::{Gate, Rest};

/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// While the old listener of a device is being closed.
const LISTEN_PAUSE: Duration = Duration::from_millis(2);
const LISTEN_TRIES: u32 = 100;
/// So that the last answer is on its way before the process ends.
const EXIT_DELAY: Duration = Duration::from_millis(5);

/// Takes connections until the gate ends.
pub(super) async fn serve(gate: Arc<Gate>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move {
                    if let Err(error) = converse(&gate, stream).await {
                        tracing::debug!(%error, "a connection to the gate's socket broke");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the gate's socket was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(gate: &Arc<Gate>, stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut read).take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line).await?;
        if length == 0 {
            return Ok(());
        }
        let request = match serde_json::from_slice::<Request>(&line) {
            _ if length > LINE_BYTES_MAX => Err(format!("a line is longer than {LINE_BYTES_MAX} bytes")),
            Ok(request) => Ok(request),
            Err(error) => Err(error.to_string()),
        };
        let broken = length > LINE_BYTES_MAX;
        let ends = matches!(request, Ok(Request::Exit));
        let reply = match request {
            Ok(request) => obey(gate, request).await,
            Err(message) => Reply::Failed { code: "bad_request".to_owned(), message },
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        if ends {
            tokio::time::sleep(EXIT_DELAY).await;
            gate.exit.notify_one();
        }
        if broken {
            return Ok(());
        }
    }
}

async fn obey(gate: &Arc<Gate>, request: Request) -> Reply {
    let done = match request {
        Request::Hello { .. } => {
            let (pid, program) = (std::process::id(), gate.program.clone());
            return Reply::Hello { version: VERSION, pid, program };
        }
        Request::House(told) => house(gate, told),
        Request::Attach(told) => attach(gate, *told).await,
        Request::Detach { id } => {
            detach(gate, &id);
            Ok(())
        }
        Request::Policy { id, policy } => match (link(gate, &id), gate.rest()) {
            (Some(link), Some(rest)) => {
                link.tell_policy(policy, &rest);
                Ok(())
            }
            _ => Err(unknown(&id)),
        },
        Request::Status { id } => match link(gate, &id) {
            Some(link) => return Reply::Status(link.status()),
            None => Err(unknown(&id)),
        },
        Request::Statuses { after } => return Reply::Statuses(statuses(gate, after.as_deref())),
        Request::Exit => Ok(()),
    };
    match done {
        Ok(()) => Reply::Done,
        Err((code, message)) => Reply::Failed { code: code.to_owned(), message },
    }
}

type Failure = (&'static str, String);

fn unknown(id: &str) -> Failure {
    ("no_link", format!("`{id}` is not attached"))
}

fn link(gate: &Gate, id: &str) -> Option<Arc<Link>> {
    gate.links().by_id.get(id).cloned()
}

fn house(gate: &Gate, told: House) -> Result<(), Failure> {
    let key = key(&told.key).ok_or(("bad_key", "`key` is not 64 hexadecimal digits".to_owned()))?;
    let old = gate.rest();
    if old.as_ref().is_some_and(|old| old.told == told) {
        return Ok(());
    }
    let resolver = Resolver::new(&told.resolvers).or_else(|error| {
        // Names then fail one by one, and each says so; addresses still work.
        tracing::warn!(%error, "names cannot be resolved");
        Resolver::new(&[IpAddr::V4(Ipv4Addr::LOCALHOST)])
    });
    let resolver = resolver.map_err(|error| ("no_resolver", error.to_string()))?;
    let rest = Arc::new(Rest { told, key, resolver });
    *gate.rest.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&rest));
    for link in gate.links().by_id.values() {
        link.decide_again(&rest);
    }
    Ok(())
}

async fn attach(gate: &Arc<Gate>, told: Attach) -> Result<(), Failure> {
    let rest = gate.rest().ok_or_else(|| ("no_house", "the house was not told yet".to_owned()))?;
    if let Some(link) = link(gate, &told.id) {
        let before = link.told();
        if (before.link, &before.folder) == (told.link, &told.folder) {
            link.tell(told, &rest);
            return Ok(());
        }
        detach(gate, &told.id);
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| ("attach_failed", format!("{what}: {error}"));
    let device = format!("l{}", told.link);
    // A number is given once: who has it still has lost its link.
    let stale = gate.links().by_index.values().find(|link| link.told().link == told.link).map(|link| link.id.clone());
    if let Some(stale) = stale {
        detach(gate, &stale);
    }
    let listener = listen(gate, &device).await.map_err(|error| failed(&device, &error))?;
    let listener = TcpListener::from_std(listener.into()).map_err(|error| failed(&device, &error))?;
    let folder = told.folder.display().to_string();
    let link = Arc::new(Link::open(told, rest.key).map_err(|error| failed(&folder, &error))?);
    {
        let mut links = gate.links_mut();
        links.by_index.insert(link.index, Arc::clone(&link));
        links.by_id.insert(link.id.clone(), Arc::clone(&link));
    }
    link.accept(gate, listener);
    Ok(())
}

/// A listener that is let go is closed by its task, a moment later.
async fn listen(gate: &Gate, device: &str) -> Result<OwnedFd, SysError> {
    let mut tries = 0;
    loop {
        match gate.inside.listen(device.to_owned()).await {
            Err(error) if error.errno == libc::EADDRINUSE && tries < LISTEN_TRIES => {
                tries += 1;
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
            other => return other,
        }
    }
}

fn detach(gate: &Gate, id: &str) {
    let link = {
        let mut links = gate.links_mut();
        let link = links.by_id.remove(id);
        if let Some(link) = &link
            && links.by_index.get(&link.index).is_some_and(|other| Arc::ptr_eq(other, link))
        {
            links.by_index.remove(&link.index);
        }
        link
    };
    if let Some(link) = link {
        link.close("detached");
        // What others have open to it would go on if it was only made to stand still.
        let host = format!("{}.{COMPUTERS}", link.told().name);
        let others: Vec<Arc<Link>> = gate.links().by_id.values().cloned().collect();
        for other in others {
            other.cut_to(&host, "detached");
        }
        link.save_day();
        // What is open of it is closing, and its day is over.
        let carried = Status { flows: 0, day_bytes: 0, ..link.status() };
        gate.gone.lock().unwrap_or_else(PoisonError::into_inner).add(&carried);
    }
}

fn statuses(gate: &Gate, after: Option<&str>) -> Statuses {
    let mut links: Vec<(String, Status)> =
        gate.links().by_id.iter().map(|(id, link)| (id.clone(), link.status())).collect();
    let mut all = *gate.gone.lock().unwrap_or_else(PoisonError::into_inner);
    for (_, status) in &links {
        all.add(status);
    }
    links.retain(|(id, _)| after.is_none_or(|after| id.as_str() > after));
    links.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let more = links.len() > STATUSES_MAX;
    links.truncate(STATUSES_MAX);
    Statuses { all, links, more }
}

/// 64 hexadecimal digits.
fn key(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}
