//! An internet of a test's own: a network namespace with an authoritative DNS server, web sites,
//! raw TCP services and a witness that sees every packet.
//!
//! ```text
//! host (Den dials from here)                 namespace of the test's internet
//!   dn<block> 198.51.100.<16b+1>/28 ══veth══ up0  .2 dns   .3 good  .4 echo  .5 evil
//!   route 10.77.<b>.0/28  ────────────────►       .6 cdn   .7 mirror .8 wild  10.77.<b>.1 private
//!                                                 every address: HTTP 80 8080 · TLS 443 8443 · raw TCP
//! ```
//!
//! Invariants:
//! - The namespace lives by threads of the test's own process: however that ends, the kernel takes
//!   the namespace, and with it the veth pair, the addresses and the routes.
//! - Each internet has a /28 of 198.51.100.0/24 of its own (a lock in `/run/lock/den-test-net`), so
//!   tests run side by side.
//! - The witness reads what arrives on the link before anything else does, so "no byte arrived" is
//!   said of packets, not of what a server chose to log.
//!
//! Deliberately absent: anything of Den.

mod dns;
mod sites;
mod witness;

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use fs_err as fs;

pub use dns::Query;
pub use sites::Request;
pub use witness::Packet;

/// Where the locks of the blocks lie.
const LOCKS: &str = "/run/lock/den-test-net";
/// Blocks of 198.51.100.0/24: /28 each.
const BLOCKS: u8 = 16;
/// How often a service looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);

/// Addresses in an internet, each with its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The name server.
    Dns = 2,
    /// `good.test`: what rules allow.
    Good = 3,
    /// `echo.test`: answers with the request it got.
    Echo = 4,
    /// `evil.test` and all below it: where nothing may arrive.
    Evil = 5,
    /// `cdn.test` and `front.test`: two names on one address.
    Cdn = 6,
    /// `mirror.test`, and one of the answers for `rebind.test`.
    Mirror = 7,
    /// All below `wild.test`.
    Wild = 8,
    /// `gone.test`: an address that nobody has.
    Gone = 14,
}

/// What was seen, by all services.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    queries: Mutex<Vec<Query>>,
    requests: Mutex<Vec<Request>>,
    packets: Mutex<Vec<Packet>>,
    /// Bytes that `/stream` has sent.
    streamed: AtomicU64,
    /// Raw bytes by connection: (where, what came).
    raw: Mutex<Vec<(Ipv4Addr, u16, Vec<u8>)>>,
}

/// What all threads of an internet share.
#[derive(Debug)]
pub(crate) struct Shared {
    block: u8,
    stop: AtomicBool,
    seen: Seen,
    zone: Mutex<dns::Zone>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn at(&self, site: Site) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.block * 16 + site as u8)
    }
}

/// Locks a mutex whether or not a thread has panicked with it: the test fails by itself then.
pub(crate) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An internet of a test's own.
pub struct Internet {
    shared: Arc<Shared>,
    holder: Option<JoinHandle<()>>,
    link: String,
    _block: File,
}

impl Internet {
    /// Makes it: about 20 ms. Needs root.
    pub fn new() -> Self {
        let (block, lock) = take_block();
        let shared = Arc::new(Shared {
            block,
            stop: AtomicBool::new(false),
            seen: Seen::default(),
            zone: Mutex::new(dns::Zone::default()),
        });
        let link = format!("dn{}-{block}", std::process::id());
        let (to_main, from_holder) = mpsc::channel::<rustix::process::Pid>();
        let (to_holder, from_main) = mpsc::channel::<()>();
        let holder = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("internet".to_owned())
                .spawn(move || {
                    // A thread may leave its process's network namespace alone.
                    den_sys::clone::unshare(den_sys::clone::Unshare::Network).expect("a network namespace");
                    to_main.send(rustix::thread::gettid()).expect("the test waits");
                    if from_main.recv().is_err() {
                        return;
                    }
                    let services = inside(&shared);
                    to_main.send(rustix::thread::gettid()).expect("the test waits");
                    for service in services {
                        let _ = service.join();
                    }
                })
                .expect("a thread")
        };
        let namespace = from_holder.recv().expect("the namespace");
        let host = Ipv4Addr::new(198, 51, 100, block * 16 + 1);
        ip(&format!(
            "link add {link} type veth peer name up0 netns {namespace}\n\
             address add {host}/28 dev {link}\n\
             link set {link} up\n\
             route add 10.77.{block}.0/28 dev {link}\n\
             route add 100.64.77.{}/28 dev {link}\n",
            block * 16,
            namespace = namespace.as_raw_nonzero(),
        ));
        to_holder.send(()).expect("the namespace's thread");
        from_holder.recv().expect("the services");
        let internet = Self { shared, holder: Some(holder), link, _block: lock };
        internet.usual_names();
        internet
    }

    fn usual_names(&self) {
        for (name, site) in [
            ("good.test", Site::Good),
            ("echo.test", Site::Echo),
            ("evil.test", Site::Evil),
            ("*.evil.test", Site::Evil),
            ("cdn.test", Site::Cdn),
            ("front.test", Site::Cdn),
            ("mirror.test", Site::Mirror),
            ("*.wild.test", Site::Wild),
            ("gone.test", Site::Gone),
        ] {
            self.point(name, &[self.at(site).into()]);
        }
    }

    /// A site's address.
    pub fn at(&self, site: Site) -> Ipv4Addr {
        self.shared.at(site)
    }

    /// The host's end of the link: an address of the host's own.
    pub fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.shared.block * 16 + 1)
    }

    /// An address of 10.0.0.0/8 that the host can reach and a computer must not.
    pub fn private(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.shared.block, 1)
    }

    /// One of 100.64.0.0/10, likewise.
    pub fn carrier_grade(&self) -> Ipv4Addr {
        Ipv4Addr::new(100, 64, 77, self.shared.block * 16 + 1)
    }

    /// From now on the name (or `*.parent`) has these addresses.
    pub fn point(&self, name: &str, to: &[IpAddr]) {
        self.alternate(name, &[to]);
    }

    /// From now on each query for the name gets the next of these answers, round and round.
    pub fn alternate(&self, name: &str, answers: &[&[IpAddr]]) {
        hold(&self.shared.zone).set(name, answers);
    }

    /// The queries that came, all names in small letters.
    pub fn queries(&self) -> Vec<Query> {
        hold(&self.shared.seen.queries).clone()
    }

    /// The requests that web sites got, in the clear or by TLS.
    pub fn requests(&self) -> Vec<Request> {
        hold(&self.shared.seen.requests).clone()
    }

    /// The requests that one site got.
    pub fn requests_at(&self, site: Site) -> Vec<Request> {
        let at = self.at(site);
        self.requests().into_iter().filter(|request| request.at == at).collect()
    }

    /// The packets that arrived for an address.
    pub fn packets_to(&self, address: Ipv4Addr) -> Vec<Packet> {
        hold(&self.shared.seen.packets).iter().filter(|packet| packet.to == IpAddr::V4(address)).cloned().collect()
    }

    /// All packets that arrived but those that the host's own neighbour discovery and multicast make.
    pub fn packets(&self) -> Vec<Packet> {
        hold(&self.shared.seen.packets).clone()
    }

    /// Bytes that `/stream` has sent so far, all clients together.
    pub fn streamed(&self) -> u64 {
        self.shared.seen.streamed.load(Ordering::Relaxed)
    }

    /// Whether the canary was in any DNS query, in any packet, or in what `evil.test` was told.
    /// The case of letters does not matter: names travel in any.
    pub fn leaked(&self, canary: &str) -> bool {
        self.where_leaked(canary).is_some()
    }

    /// Where the canary arrived, as text; looks at DNS queries wherever they went, and at everything
    /// that came for `evil.test`'s or the private addresses.
    pub fn where_leaked(&self, canary: &str) -> Option<String> {
        let canary = canary.to_ascii_lowercase();
        let has = |bytes: &[u8]| {
            bytes.len() >= canary.len()
                && bytes.windows(canary.len()).any(|window| window.eq_ignore_ascii_case(canary.as_bytes()))
        };
        let bad = |to: IpAddr| {
            [self.at(Site::Evil), self.private(), self.carrier_grade()].into_iter().any(|bad| to == IpAddr::V4(bad))
        };
        if let Some(query) = self.queries().iter().find(|query| query.name.contains(&canary)) {
            return Some(format!("DNS query {} {}", query.name, query.kind));
        }
        if let Some((to, port, _)) =
            hold(&self.shared.seen.raw).iter().find(|(to, _, bytes)| bad((*to).into()) && has(bytes))
        {
            return Some(format!("TCP to {to}:{port}"));
        }
        if let Some(request) = self.requests().iter().find(|request| bad(request.at.into()) && has(&request.bytes)) {
            return Some(format!("a request to {}:{}", request.at, request.port));
        }
        hold(&self.shared.seen.packets)
            .iter()
            .find(|packet| bad(packet.to) && has(&packet.bytes))
            .map(|packet| format!("a packet of protocol {} to {}", packet.protocol, packet.to))
    }

    /// Whether bytes came by plain TCP to a site's port.
    pub fn raw_at(&self, site: Site, port: u16) -> Vec<Vec<u8>> {
        let at = self.at(site);
        let seen = hold(&self.shared.seen.raw);
        seen.iter()
            .filter(|(to, to_port, _)| *to == at && *to_port == port)
            .map(|(_, _, bytes)| bytes.clone())
            .collect()
    }
}

impl Default for Internet {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The link first: streams that are in the middle of something end by it as well.
        let _ = Command::new("ip").args(["link", "delete", &self.link]).stderr(Stdio::null()).status();
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

/// What happens in the namespace: addresses, then services.
fn inside(shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let block = shared.block;
    let mut lines = String::from("link set lo up\n");
    for site in [Site::Dns, Site::Good, Site::Echo, Site::Evil, Site::Cdn, Site::Mirror, Site::Wild] {
        lines.push_str(&format!("address add {}/28 dev up0\n", shared.at(site)));
    }
    lines.push_str(&format!("address add 10.77.{block}.1/28 dev up0\n"));
    lines.push_str(&format!("address add 100.64.77.{}/28 dev up0\n", block * 16 + 1));
    lines.push_str(&format!("link set up0 up\nroute add default via 198.51.100.{}\n", block * 16 + 1));
    ip(&lines);
    let mut services = vec![witness::start(shared)];
    services.extend(dns::start(shared));
    services.extend(sites::start(shared));
    services
}

/// Runs a batch of `ip`, in the caller's namespace.
fn ip(lines: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`ip` (package iproute2)");
    child.stdin.take().expect("its input").write_all(lines.as_bytes()).expect("its input");
    let out = child.wait_with_output().expect("its end");
    assert!(out.status.success(), "ip: {}\n{lines}", String::from_utf8_lossy(&out.stderr));
}

/// A block that no other test has, and its lock.
fn take_block() -> (u8, File) {
    fs::create_dir_all(LOCKS).expect("a folder for locks");
    for _ in 0..600 {
        for block in (0..BLOCKS).rev() {
            let (file, _) = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(format!("{LOCKS}/{block}"))
                .expect("a lock file")
                .into_parts();
            let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            if rustix::fs::flock(&file, exclusive).is_ok() && is_free(block) {
                return (block, file);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("all blocks of 198.51.100.0/24 are taken");
}

/// Whether the host has no route into the block: someone may use it without our lock.
fn is_free(block: u8) -> bool {
    let prefix = format!("198.51.100.{}/28", block * 16);
    let out = Command::new("ip").args(["-4", "route", "show", "to", "root", &prefix]).output().expect("ip route");
    out.stdout.is_empty()
}
