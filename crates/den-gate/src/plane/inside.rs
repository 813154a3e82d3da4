//! The one thread that is in the gate's network namespace. It sets the namespace up, and makes
//! listeners when asked; sockets stay in the namespace that they were made in, whoever uses them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use den_sys::netlink::{Batch, Netlink};
use den_sys::transparent::{self, Keepalive};
use den_sys::{SysError, clone, creds};
use tokio::sync::oneshot;

use super::{CAPABILITIES, GateError, rules};

/// Connections of a link that wait to be accepted, and as many half-open ones: a burst of new flows
/// that the default limits let through (200) fits.
pub(super) const BACKLOG: i32 = 256;
/// How a quiet connection is looked after, on both sides of the gate.
pub(super) const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(15), count: 4 };
/// The address that every computer has.
const COMPUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LOOPBACK: u32 = 1;
/// Where the rule for marked packets stands among the others.
const RULE_PRIORITY: u32 = 100;
/// How long the launcher may take to make the namespace.
const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(3);

/// To the thread. It ends with this value.
pub(super) struct Inside(mpsc::Sender<Order>);

enum Order {
    Listen { device: String, answer: oneshot::Sender<Result<OwnedFd, SysError>> },
    Dropped { answer: oneshot::Sender<Vec<Dropped>> },
}

/// Packets that went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Index of the interface that they came by.
    pub index: u32,
    /// Why, as in [`rules::COUNTING`].
    pub why: &'static str,
    pub count: u64,
}

impl Inside {
    /// Starts the thread in the namespace that is held at `at`. Returns it with the socket for DNS
    /// once everything is set up.
    pub(super) fn enter(at: &Path) -> Result<(Self, OwnedFd), GateError> {
        let (orders, work) = mpsc::channel();
        let (ready, set_up) = mpsc::channel();
        let at = at.to_owned();
        let thread = move || match enter(&at) {
            Ok(datagrams) => {
                if ready.send(Ok(datagrams)).is_ok() {
                    serve(&work);
                }
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        std::thread::Builder::new()
            .name("inside".to_owned())
            .spawn(thread)
            .map_err(|source| GateError::File { path: PathBuf::from("a thread"), source })?;
        let datagrams = set_up.recv().map_err(|_| GateError::File {
            path: PathBuf::from("the thread inside"),
            source: io::ErrorKind::BrokenPipe.into(),
        })??;
        Ok((Self(orders), datagrams))
    }

    /// A listener for what comes by this interface.
    pub(super) async fn listen(&self, device: String) -> Result<OwnedFd, SysError> {
        let (answer, answered) = oneshot::channel();
        let gone = || SysError::new("listen", "the thread inside has ended", rustix::io::Errno::PIPE.raw_os_error());
        self.0.send(Order::Listen { device, answer }).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Packets that went nowhere since the last call.
    pub(super) async fn dropped_packets(&self) -> Vec<Dropped> {
        let (answer, answered) = oneshot::channel();
        match self.0.send(Order::Dropped { answer }) {
            Ok(()) => answered.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }
}

fn enter(at: &Path) -> Result<OwnedFd, GateError> {
    let until = Instant::now() + NAMESPACE_TIMEOUT;
    loop {
        let entered = File::open(at).and_then(|held| clone::enter_network(held.as_fd()).map_err(|e| e.to_io()));
        match entered {
            Ok(()) => break,
            // Not there yet, or not mounted yet.
            Err(error)
                if Instant::now() < until && matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(source) => return Err(GateError::Namespace { path: at.to_owned(), source }),
        }
    }
    set_up()?;
    creds::keep_only(&CAPABILITIES)?;
    Ok(transparent::datagrams(rules::DNS_PORT)?)
}

/// Each time and whatever an earlier gate left.
fn set_up() -> Result<(), GateError> {
    for (name, value) in rules::SETTINGS {
        let path = Path::new("/proc/sys/net").join(name);
        fs::write(&path, value).map_err(|source| GateError::File { path, source })?;
    }
    let netlink = Netlink::open()?;
    for batch in
        [Batch::new().veth_here(rules::BACK), Batch::new().rule_for_mark(rules::MARK, rules::TABLE, RULE_PRIORITY)]
    {
        match netlink.run(batch) {
            Err(error) if error.errno == libc::EEXIST => {}
            other => other?,
        }
    }
    netlink.run(Batch::new().all_local(rules::TABLE, LOOPBACK).route_to(rules::BACK[0].1, COMPUTER))?;
    load(&rules::ruleset())
}

fn load(ruleset: &str) -> Result<(), GateError> {
    let refused = |said: String| GateError::Rules { said };
    let mut nft = nft(&["-f", "-"]).stdin(Stdio::piped()).spawn().map_err(|error| refused(format!("nft: {error}")))?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(ruleset.as_bytes()).map_err(|error| refused(format!("nft: {error}")))?;
    }
    let output = nft.wait_with_output().map_err(|error| refused(format!("nft: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// In this thread's namespace, as everything that it starts.
fn nft(arguments: &[&str]) -> Command {
    let mut command = Command::new("nft");
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn serve(work: &mpsc::Receiver<Order>) {
    let packets = Arc::new(Mutex::new(Packets::default()));
    while let Ok(order) = work.recv() {
        match order {
            Order::Listen { device, answer } => {
                let made = transparent::listener(&device, rules::LISTEN_PORT, BACKLOG, &KEEPALIVE);
                let _ = answer.send(made);
            }
            Order::Dropped { answer } => {
                // On a thread of its own, which is in the same namespace: nobody who wants a
                // listener waits for nft.
                let packets = Arc::clone(&packets);
                let count = move || {
                    let _ = answer.send(packets.lock().unwrap_or_else(PoisonError::into_inner).dropped());
                };
                if let Err(error) = std::thread::Builder::new().name("packets".to_owned()).spawn(count) {
                    tracing::warn!(%error, "dropped packets were not counted");
                }
            }
        }
    }
}

/// What was counted last.
#[derive(Default)]
struct Packets {
    /// By interface.
    received: HashMap<String, u64>,
    /// By set and interface.
    dropped: HashMap<(&'static str, String), u64>,
}

impl Packets {
    /// nft is only asked when some link has sent anything since the last time.
    fn dropped(&mut self) -> Vec<Dropped> {
        let Ok(text) = fs::read_to_string("/proc/thread-self/net/dev") else { return Vec::new() };
        let mut busy = false;
        let mut received = HashMap::new();
        for (name, line) in text.lines().filter_map(|line| line.split_once(':')) {
            let name = name.trim();
            let Some(count) = line.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()) else { continue };
            busy |= self.received.get(name).copied().unwrap_or(0) != count && name.starts_with('l') && name != "lo";
            received.insert(name.to_owned(), count);
        }
        self.received = received;
        if !busy {
            return Vec::new();
        }
        let listed = nft(&["list", "sets", "table", "ip", "den_gate"]).output();
        let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let mut news = Vec::new();
        for (set, why, name, count) in counted(&text) {
            let before = self.dropped.insert((set, name.to_owned()), count).unwrap_or(0);
            // An element that was quiet for a while has gone, and begins anew.
            let more = count.checked_sub(before).unwrap_or(count);
            // `if_nametoindex` would ask the kernel for what the name says.
            let index = name.strip_prefix('l').and_then(|number| number.parse::<u32>().ok());
            if let Some(index) = index.filter(|_| more > 0) {
                news.push(Dropped { index: super::link::INDEX_FIRST + index, why, count: more });
            }
        }
        news
    }
}

/// Set, reason, interface and packets of `set rate { … "l7" limit rate over … packets counter packets
/// 12 bytes 480 expires …`.
fn counted(listing: &str) -> impl Iterator<Item = (&'static str, &'static str, &str, u64)> {
    listing.split("\tset ").skip(1).flat_map(|text| {
        let known = rules::COUNTING.into_iter().find(|(set, _)| text.split_ascii_whitespace().next() == Some(set));
        let elements = text.split_once("elements = {").map_or("", |(_, rest)| rest);
        elements.split(',').filter_map(move |element| {
            let (set, why) = known?;
            let name = element.split('"').nth(1)?;
            let count = element.split_once("counter packets ")?.1.split_ascii_whitespace().next()?;
            Some((set, why, name, count.parse().ok()?))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn packets_that_went_nowhere_are_read_from_the_listing() {
        let listing = "table ip den_gate {\n\tset rate {\n\t\ttypeof iif\n\t\tsize 65535\n\t\tflags dynamic,timeout\n\
            \t\ttimeout 1m\n\t\telements = { \"l1\" limit rate over 20000/second burst 5000 packets counter packets 0 \
            bytes 0 expires 55s844ms,\n\t\t\t     \"l22\" limit rate over 20000/second burst 5000 packets counter \
            packets 17 bytes 680 expires 57s976ms }\n\t}\n\tset forged {\n\t\ttypeof iif\n\t}\n\tset queries {\n\
            \t\telements = { \"l1\" limit rate over 2000/second burst 2000 packets expires 1s }\n\t}\n\tset stray {\n\
            \t\telements = { \"l3\" counter packets 5 bytes 430 expires 59s964ms }\n\t}\n}\n";
        let expected = [("rate", "packets", "l1", 0), ("rate", "packets", "l22", 17), ("stray", "no_flow", "l3", 5)];
        assert_eq!(counted(listing).collect::<Vec<_>>(), expected);
        assert_eq!(counted("").count(), 0);
    }
}
