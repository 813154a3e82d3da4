//! The builder: the launcher's second process, which makes husks and takes away what is left of
//! computers that have ended.
//!
//! ```text
//! launcher ──order──► builder       cgroup, helper, husk, link; or: link and cgroup away
//!    │     ◄──news───    │          beside `built`: pidfd, the husk's socket, its user namespace, /dev
//!    │                   └─clones siblings: helper and husk are children of the launcher
//!    └── boots, ends, answers: never waits for the kernel's locks
//! ```
//!
//! Network devices are made and unmade under a lock of the whole host, and so are cgroups; both may take
//! tens of milliseconds. A create that finds a parked husk shall not stand behind that.
//!
//! Invariants:
//! - Orders are answered one by one, in order; at most [`AHEAD`] are on their way, so neither side can
//!   fill the other's socket.
//! - The builder holds nothing that the launcher does not know of: what it was at when it died is the
//!   first order of the next one, as an [`Order::Unmake`].
//! - It ends with the launcher, and the next launcher waits for that: both hold `RUN/builder.lock`.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use den_sys::cgroup::Cgroups;
use den_sys::clone::{self, Cloned};
use den_sys::mount::Detached;
use den_sys::seccomp::Filters;
use den_sys::{SysError, creds, failpoint, socket};
use den_wire::launcher::pool_cgroup_name;

use super::cell::{self, Parts};
use super::husk;
use super::net::{GateNet, Links};

/// Orders on their way at once. More than one, so that the builder need not wait for the launcher.
const AHEAD: usize = 4;
/// A builder that dies younger than this is not followed by another before this has passed.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long a cgroup may stay busy after its last process has ended: so often, with such a pause.
const CGROUP_TRIES: u32 = 100;
const CGROUP_PAUSE: Duration = Duration::from_millis(2);
/// The longest message either way, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What the launcher wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(super) enum Order {
    /// A husk.
    #[n(0)]
    Build {
        /// Names its cgroup and link.
        #[n(0)]
        sequence: u64,
        /// Its slot of host ids.
        #[n(1)]
        slot: u32,
        /// First of these ids.
        #[n(2)]
        base: u32,
        /// Its cgroup lies below that of this pool; 0: of none.
        #[n(3)]
        pool: u64,
    },
    /// No trace of what had this number.
    #[n(1)]
    Unmake {
        /// Names its cgroup and link.
        #[n(0)]
        sequence: u64,
        /// The slot that is free afterwards.
        #[n(1)]
        slot: Option<u32>,
        /// Its cgroup lies below that of this pool; 0: of none.
        #[n(2)]
        pool: u64,
    },
    /// No trace of a pool that nothing is in.
    #[n(2)]
    UnmakePool(#[n(0)] u64),
}

/// What the builder answers.
#[derive(minicbor::Encode, minicbor::Decode)]
enum Answer {
    /// A husk prepares itself; four descriptors beside it.
    #[n(0)]
    Built(#[n(0)] i32),
    /// The host refused; nothing is left.
    #[n(1)]
    Failed {
        #[n(0)]
        about: String,
        #[n(1)]
        errno: i32,
    },
    /// It is gone.
    #[n(2)]
    Unmade,
}

/// What has become of an order.
pub(super) enum News {
    /// There is a husk, which prepares itself.
    Built {
        /// The cell's.
        sequence: u64,
        /// The cell's.
        slot: u32,
        /// The cell's.
        pool: u64,
        /// Its first process.
        pid: i32,
        /// The same.
        pidfd: OwnedFd,
        /// What makes it a computer.
        parts: Parts,
    },
    /// There is none, and nothing of it is left; the slot is free.
    Failed {
        /// The cell's.
        slot: u32,
        /// The cell's.
        pool: u64,
        /// Why.
        error: SysError,
    },
    /// The slot, if there was one, is free.
    Unmade {
        /// The cell's.
        slot: Option<u32>,
    },
    /// The builder has died; it is replaced.
    Died,
}

/// What a builder works with. It belongs to the launcher, of which the builder is a copy.
pub(super) struct Tools {
    /// Where cgroups are made.
    pub cgroups: Cgroups,
    /// Where links end.
    pub net: GateNet,
    /// What a computer may not call.
    pub filters: Filters,
    /// Held by launcher and builder: free once both are gone.
    pub lock: fs::File,
}

impl Tools {
    /// Takes the lock of this RUN, once the builder of an earlier launcher is gone.
    pub(super) fn lock(run: &Path) -> Result<fs::File, SysError> {
        let path = run.join("builder.lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| SysError::io("open", &path, &error))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(SysError::rustix("flock", path.display()))?;
        Ok(file)
    }
}

/// The launcher's side: the orders that are not answered yet, whichever builder gets them.
pub(super) struct Builder {
    connection: Option<OwnedFd>,
    born: Option<Instant>,
    queue: VecDeque<Order>,
    sent: VecDeque<Order>,
}

impl Builder {
    /// One that is started when the first order comes.
    pub(super) fn new() -> Self {
        Self { connection: None, born: None, queue: VecDeque::new(), sent: VecDeque::new() }
    }

    /// Takes an order.
    pub(super) fn order(&mut self, order: Order) {
        self.queue.push_back(order);
    }

    /// Husks that are ordered and not there yet.
    pub(super) fn husks(&self) -> u32 {
        self.queue.iter().chain(&self.sent).filter(|order| matches!(order, Order::Build { .. })).count() as u32
    }

    /// Those of them that are for a pool.
    pub(super) fn husks_of(&self, pool: u64) -> u32 {
        let of_it = |order: &&Order| matches!(order, Order::Build { pool: its, .. } if *its == pool);
        self.queue.iter().chain(&self.sent).filter(of_it).count() as u32
    }

    /// Whether all orders are answered.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty()
    }

    /// Sends what may be on its way, to a new builder if there is none. `watch` gets its socket.
    /// Returns when this is to be called again, if not by an event.
    pub(super) fn tend(
        &mut self,
        tools: &Tools,
        watch: impl FnOnce(&OwnedFd) -> Result<(), SysError>,
    ) -> Option<Duration> {
        if self.queue.is_empty() || self.sent.len() >= AHEAD {
            return None;
        }
        if self.connection.is_none() {
            let age = self.born.map(|born| born.elapsed());
            if let Some(age) = age.filter(|age| *age < RESTART_AFTER) {
                return Some(RESTART_AFTER - age);
            }
            let first = self.born.is_none();
            self.born = Some(Instant::now());
            match start(tools, first).and_then(|ours| watch(&ours).map(|()| ours)) {
                Ok(ours) => self.connection = Some(ours),
                Err(error) => {
                    eprintln!("warning: the builder could not be started: {error}");
                    return Some(RESTART_AFTER);
                }
            }
        }
        let connection = self.connection.as_ref()?;
        while self.sent.len() < AHEAD
            && let Some(order) = self.queue.front()
        {
            let bytes = minicbor::to_vec(order).expect("a Vec takes everything");
            if socket::send(connection, &bytes, &[]).is_err() {
                // It has died, which is the socket's next event.
                return None;
            }
            self.sent.extend(self.queue.pop_front());
        }
        None
    }

    /// The next news; `None` until the socket says that there are more.
    pub(super) fn news(&mut self) -> Option<News> {
        let connection = self.connection.as_ref()?;
        let (mut message, mut fds) = ([0_u8; MESSAGE_BYTES_MAX], Vec::new());
        match socket::receive(connection, &mut message, &mut fds) {
            Err(error) if error.errno == rustix::io::Errno::AGAIN.raw_os_error() => None,
            Ok(length) if length > 0 => {
                let answer = minicbor::decode(&message[..length]).ok();
                let news = answer.zip(self.sent.front()).and_then(|(answer, order)| understand(*order, answer, fds));
                if news.is_some() {
                    self.sent.pop_front();
                    return news;
                }
                // Descriptors are missing: this process has too many open.
                self.bury();
                Some(News::Died)
            }
            _ => {
                self.bury();
                Some(News::Died)
            }
        }
    }

    /// Lets go of a builder. What it was at is taken away by the next one before anything else.
    fn bury(&mut self) {
        self.connection = None;
        while let Some(order) = self.sent.pop_back() {
            self.queue.push_front(match order {
                Order::Build { sequence, slot, pool, .. } => Order::Unmake { sequence, slot: Some(slot), pool },
                unmake => unmake,
            });
        }
    }
}

fn understand(order: Order, answer: Answer, fds: Vec<OwnedFd>) -> Option<News> {
    match (order, answer) {
        (Order::Build { sequence, slot, pool, .. }, Answer::Built(pid)) => {
            let [pidfd, socket, namespace, dev] = fds.try_into().ok()?;
            let parts = Parts { socket, namespace, dev: Detached::from_fd(dev) };
            Some(News::Built { sequence, slot, pool, pid, pidfd, parts })
        }
        (Order::Build { slot, pool, .. }, Answer::Failed { about, errno }) => {
            Some(News::Failed { slot, pool, error: SysError::new("husk", about, errno) })
        }
        (Order::Unmake { slot, .. }, Answer::Unmade) => Some(News::Unmade { slot }),
        (Order::UnmakePool(_), Answer::Unmade) => Some(News::Unmade { slot: None }),
        _ => None,
    }
}

/// Copies this process into a builder; returns the launcher's end of their socket.
fn start(tools: &Tools, first: bool) -> Result<OwnedFd, SysError> {
    let (ours, theirs) = socket::packet_pair()?;
    match clone::clone(0)? {
        Cloned::Parent(_) => {
            rustix::io::ioctl_fionbio(&ours, true).map_err(SysError::rustix("ioctl(FIONBIO)", "builder"))?;
            Ok(ours)
        }
        Cloned::Child => {
            creds::die_with_parent();
            let mut keep = tools.cgroups.descriptors();
            keep.extend([tools.net.descriptor(), tools.lock.as_fd(), theirs.as_fd()]);
            // All else is the launcher's: a copy of a husk's socket would keep that husk alive.
            clone::close_others(&keep);
            std::mem::forget(ours);
            if !first {
                failpoint::disarm();
            }
            match serve(tools, &theirs) {
                Ok(()) => clone::exit_now(0),
                Err(error) => {
                    eprintln!("error: the builder: {error}");
                    clone::exit_now(1)
                }
            }
        }
    }
}

/// The builder's life: until the launcher closes its end.
fn serve(tools: &Tools, connection: &OwnedFd) -> Result<(), SysError> {
    let links = tools.net.links()?;
    let mut message = [0_u8; MESSAGE_BYTES_MAX];
    loop {
        let length = socket::receive(connection, &mut message, &mut Vec::new())?;
        if length == 0 {
            return Ok(());
        }
        let order = minicbor::decode(&message[..length]).map_err(|_| SysError::new("order", "malformed", 0))?;
        let answer = |answer: &Answer, fds: &[_]| {
            let bytes = minicbor::to_vec(answer).expect("a Vec takes everything");
            socket::send(connection, &bytes, fds)
        };
        match order {
            Order::Build { sequence, base, pool, .. } => match build(tools, &links, sequence, base, pool) {
                Ok((husk, pidfd)) => {
                    let Parts { socket, namespace, dev } = &husk.parts;
                    let fds = [pidfd.as_fd(), socket.as_fd(), namespace.as_fd(), dev.as_fd()];
                    answer(&Answer::Built(husk.pid), &fds)?;
                }
                Err(error) => {
                    unmake(tools, &links, sequence, pool);
                    let mut about = format!("{} {}", error.call, error.about);
                    about.truncate(about.floor_char_boundary(MESSAGE_BYTES_MAX / 2));
                    answer(&Answer::Failed { about, errno: error.errno }, &[])?;
                }
            },
            Order::Unmake { sequence, pool, .. } => {
                failpoint::hit("builder.unmake");
                unmake(tools, &links, sequence, pool);
                answer(&Answer::Unmade, &[])?;
            }
            Order::UnmakePool(pool) => {
                failpoint::hit("builder.unmake_pool");
                remove_cgroup(&tools.cgroups, &pool_cgroup_name(pool));
                answer(&Answer::Unmade, &[])?;
            }
        }
    }
}

fn build(
    tools: &Tools,
    links: &Links,
    sequence: u64,
    base: u32,
    pool: u64,
) -> Result<(husk::Started, OwnedFd), SysError> {
    let cgroup = cell::cgroup_name(pool, sequence);
    if pool != 0 {
        tools.cgroups.create_parent(&pool_cgroup_name(pool))?;
        failpoint::hit("builder.pool");
    }
    tools.cgroups.create(&cgroup, base)?;
    failpoint::hit("builder.cgroup");
    let husk = husk::start(base, &tools.cgroups.door(&cgroup)?, &tools.filters)?;
    failpoint::hit("builder.cloned");
    let pidfd = clone::pidfd(husk.pid)?;
    links.connect(sequence, husk.pid)?;
    clone::raise_limits(husk.pid);
    // The host's OOM killer shall take something inside before PID 1. Refused without
    // CAP_SYS_RESOURCE; the agent gives its children the usual score again.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", husk.pid), "-900");
    husk::go(&husk.parts.socket)?;
    failpoint::hit("builder.husk");
    Ok((husk, pidfd))
}

/// Takes away what is left of a cell, and ends what still lives in it.
fn unmake(tools: &Tools, links: &Links, sequence: u64, pool: u64) {
    if let Err(error) = links.disconnect(sequence) {
        eprintln!("warning: {error}");
    }
    remove_cgroup(&tools.cgroups, &cell::cgroup_name(pool, sequence));
}

/// Removes a cgroup; processes in it are killed.
pub(super) fn remove_cgroup(cgroups: &Cgroups, name: &str) {
    for _ in 0..CGROUP_TRIES {
        match cgroups.remove(name) {
            Ok(()) => return,
            Err(error) if error.errno == rustix::io::Errno::BUSY.raw_os_error() => {
                cgroups.kill(name);
                std::thread::sleep(CGROUP_PAUSE);
            }
            Err(error) => {
                eprintln!("warning: {error}");
                return;
            }
        }
    }
    eprintln!("warning: cgroup {name} stays busy; the next launcher removes it");
}
