//! The data plane: sockets, flows, bytes. One process for all computers, `den gate --run RUN`.
//!
//! ```text
//! RUN/gate.sock ─► control ─► Gate ─► Link (one a computer: policy, names, journal, limits)
//!                                       │ accept
//! inside: listeners in RUN/gate.netns ──┘──► flow: decide, peek, record, dial ──► relay ──► upstream
//!         datagrams at port 53 ───────────► query: bucket, answer
//! ```
//!
//! Invariants:
//! - One thread is in the gate's namespace ([`inside`]), and only it; all others dial from the host's.
//! - Which listener accepted says which computer it is.
//! - A flow is in its link's list from before it is dialled until its close is written.
//! - The gate goes on with what it was told last while `serve` is away. A dead gate refuses: the
//!   kernel answers by the rules that it has left ([`rules`]).

mod control;
mod cut;
mod dial;
mod flow;
mod gather;
mod inside;
mod journal;
mod limits;
mod link;
mod metered;
mod peer;
mod query;
mod relay;
mod rules;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use den_sys::SysError;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::dns::Resolver;
use crate::policy::PrivateTarget;
use crate::wire::{House, Status};

use self::inside::Inside;
pub use self::journal::Journal;
use self::link::Link;

/// Capabilities that stay: transparent sockets, sockets of a device, port 53.
const CAPABILITIES: [u32; 3] = [10 /* NET_BIND_SERVICE */, 12 /* NET_ADMIN */, 13 /* NET_RAW */];
/// Threads that carry bytes, at most.
const WORKERS_MAX: usize = 8;
/// Connections to RUN/gate.sock that wait.
const CONTROL_BACKLOG: i32 = 16;
/// Between two looks at what is not told by an event: day totals to be written, packets that the
/// kernel has dropped.
const SWEEP: Duration = Duration::from_secs(5);
/// How long flows have for their last record when the gate ends.
const END_GRACE: Duration = Duration::from_millis(500);

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The run folder.
    pub run: PathBuf,
}

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// There is one.
    #[error("another gate holds {}", path.display())]
    Running {
        /// The lock.
        path: PathBuf,
    },
    /// The gate's namespace is not there, or not to be entered.
    #[error("the gate's network namespace at {}", path.display())]
    Namespace {
        /// Where the launcher holds it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The packet rules were not loaded.
    #[error("the packet rules of the gate's namespace: {said}")]
    Rules {
        /// What nft says.
        said: String,
    },
    /// A call that the kernel refuses.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A file that cannot be made.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl GateError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Running { .. } => Some("one gate serves all computers of a run folder"),
            Self::Namespace { .. } => Some("the launcher makes it: den serve starts both"),
            Self::Rules { .. } => Some("install nftables; `den doctor` says what the kernel lacks"),
            Self::Sys(_) | Self::File { .. } => None,
        }
    }
}

/// What holds for all computers, in the form in which it is used.
struct Rest {
    told: House,
    key: [u8; 32],
    resolver: Resolver,
}

impl Rest {
    fn private(&self) -> &[PrivateTarget] {
        &self.told.private
    }
}

/// All links, by what they are asked for.
#[derive(Default)]
struct Links {
    by_index: HashMap<u32, Arc<Link>>,
    by_id: HashMap<String, Arc<Link>>,
}

/// What all tasks share.
struct Gate {
    inside: Inside,
    program: String,
    rest: RwLock<Option<Arc<Rest>>>,
    links: RwLock<Links>,
    /// What links carried that are gone.
    gone: Mutex<Status>,
    flows: AtomicU64,
    pipes: relay::Pipes,
    exit: tokio::sync::Notify,
}

impl Gate {
    fn rest(&self) -> Option<Arc<Rest>> {
        self.rest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn links(&self) -> std::sync::RwLockReadGuard<'_, Links> {
        self.links.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn links_mut(&self) -> std::sync::RwLockWriteGuard<'_, Links> {
        self.links.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_flow(&self) -> u64 {
        self.flows.fetch_add(1, Ordering::Relaxed)
    }
}

/// Runs the gate until it is told to end.
pub fn run(settings: &Settings) -> Result<(), GateError> {
    let file = |name: &str| settings.run.join(name);
    // It outlives who starts it. One that leads a process group already (by hand) is none of theirs.
    let _ = rustix::process::setsid();
    let _lock = lock(&file("gate.lock"))?;
    write(&file("gate.pid"), &format!("{}\n", std::process::id()))?;
    raise_descriptors();
    let program = program();
    let (inside, datagrams) = Inside::enter(&file("gate.netns"))?;
    let socket = file("gate.sock");
    let listener = den_sys::socket::listen(&socket, rustix::net::SocketType::STREAM, CONTROL_BACKLOG)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| GateError::File { path, source }
    };
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).map_err(failed(&socket))?;
    // Before there are other threads: they inherit what is left.
    den_sys::creds::keep_only(&CAPABILITIES)?;
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, WORKERS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("gate")
        .enable_all()
        .build()
        .map_err(failed(Path::new("the runtime")))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let gate = Arc::new(Gate {
        inside,
        program,
        rest: RwLock::default(),
        links: RwLock::default(),
        gone: Mutex::default(),
        // Numbers of an earlier gate do not come again, and stay exact in JSON.
        flows: AtomicU64::new(now << 20),
        pipes: relay::Pipes::default(),
        exit: tokio::sync::Notify::new(),
    });
    let outcome = runtime.block_on(async {
        let listener: std::os::unix::net::UnixListener = listener.into();
        let listener =
            listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)).map_err(failed(&socket))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed(Path::new("SIGTERM")))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed(Path::new("SIGINT")))?;
        tokio::spawn(query::serve(Arc::clone(&gate), datagrams));
        tokio::spawn(control::serve(Arc::clone(&gate), listener));
        let sweeper = Arc::clone(&gate);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                sweep(&sweeper).await;
            }
        });
        tracing::info!(pid = std::process::id(), workers, "the gate is up");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = gate.exit.notified() => {}
        }
        end(&gate).await;
        Ok(())
    });
    runtime.shutdown_background();
    let _ = fs::remove_file(&socket);
    let _ = fs::remove_file(file("gate.pid"));
    outcome
}

/// Ends all flows, and waits a little for their records.
async fn end(gate: &Gate) {
    let links: Vec<_> = std::mem::take(&mut *gate.links_mut()).by_id.into_values().collect();
    for link in &links {
        link.close("gate_ended");
    }
    let until = tokio::time::Instant::now() + END_GRACE;
    while links.iter().any(|link| link.flows() > 0) && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for link in &links {
        link.save_day();
    }
}

async fn sweep(gate: &Gate) {
    let links: Vec<_> = gate.links().by_id.values().cloned().collect();
    if links.is_empty() {
        return;
    }
    for link in &links {
        link.save_day();
        link.flush_limits();
    }
    for dropped in gate.inside.dropped_packets().await {
        let Some(link) = links.iter().find(|link| link.index == dropped.index) else { continue };
        match dropped.why {
            "packets" | "dns_packets" => link.limited(dropped.why, dropped.count),
            why => link.dropped(why, dropped.count),
        }
    }
}

fn lock(path: &Path) -> Result<File, GateError> {
    let failed = |source| GateError::File { path: path.to_owned(), source };
    let file = File::options().create(true).append(true).open(path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(GateError::Running { path: path.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn write(path: &Path, text: &str) -> Result<(), GateError> {
    fs::write(path, text).map_err(|source| GateError::File { path: path.to_owned(), source })
}

/// A flow takes two descriptors; the usual 1,024 are few.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on descriptors stays where it is");
    }
}

/// What tells this program from another one, without reading it.
fn program() -> String {
    let path = Path::new("/proc/self/exe");
    match rustix::fs::stat(path) {
        Ok(stat) => format!("{}:{}:{}:{}", stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime),
        Err(_) => "unknown".to_owned(),
    }
}
