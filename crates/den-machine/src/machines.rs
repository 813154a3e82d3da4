//! Booting, finding and ending computers.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use den_model::{ComputerId, Limits};
use den_sys::{SysError, cgroup, clone};
use den_wire::launcher::{Create, MOUNT_POINT, PoolCaps, Reply, Request, Usage, cgroup_name};
use rustix::io::Errno;
use tokio::sync::watch;

use crate::launcher::{Connection, LauncherProgram, watch_end};
use crate::{Link, LinkError};

/// Directories of every computer that lie on its disk itself, under `vol/`, and not on the overlay:
/// engines in there mount overlays of their own, whose writable part cannot lie on another one.
pub(crate) const VOLUMES: [(&str, &str); 3] =
    [("docker", "/var/lib/docker"), ("containerd", "/var/lib/containerd"), ("containers", "/var/lib/containers")];

/// What a launcher refuses that it does not know.
const UNKNOWN: &str = "request unknown";
/// Names no cgroup.
const NO_CGROUP: &str = "asleep";
/// How long an agent may take from its start to its first answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is tried to remove a cgroup that a process has just left.
const CGROUP_TRIES: u32 = 40;
/// Idle connections to the launcher that are kept.
const CONNECTIONS_KEPT: usize = 8;
/// How often a launcher is asked that is lost meanwhile: one that is being killed takes connections until it is gone.
pub(crate) const ATTEMPTS_MAX: u32 = 10;
/// Before it is asked again: this, then twice this, and so on.
pub(crate) const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);

/// Where things lie, and how many husks are kept.
#[derive(Debug, Clone)]
pub struct MachinesConfig {
    /// RUN.
    pub run: PathBuf,
    /// DATA: the agent is kept in it.
    pub data: PathBuf,
    /// Where image layers lie.
    pub images: PathBuf,
    /// Husks that are kept ready.
    pub pool: u32,
    /// The agent's program.
    pub agent: &'static [u8],
}

/// Why a computer did not boot, or the launcher did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// No launcher could be kept running.
    #[error("the launcher ended: {message}")]
    LauncherEnded {
        /// What it said last.
        message: String,
    },
    /// The launcher refused.
    #[error("{stage}: {}", std::io::Error::from_raw_os_error(*errno))]
    Refused {
        /// Which call or stage.
        stage: String,
        /// The kernel's error number; 0 where there is none.
        errno: i32,
    },
    /// What the computer has at the path of a shared folder is in the way.
    #[error("a shared volume cannot be mounted at `{path}`: {}", in_the_way(*errno))]
    MountPoint {
        /// Where.
        path: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// The launcher is of an older Den, which shares nothing.
    #[error("the launcher that runs is of an older Den, which mounts no shared volumes")]
    SharesNothing,
    /// The agent did not answer.
    #[error("the agent of {id} did not answer")]
    Agent {
        /// Of which computer.
        id: ComputerId,
        /// Why.
        source: LinkError,
    },
    /// Another answer than the request has.
    #[error("the launcher gave another answer than `{wanted}`")]
    Answer {
        /// What was wanted.
        wanted: &'static str,
    },
}

/// All running computers of one RUN.
#[derive(Clone)]
pub struct Machines(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) run: PathBuf,
    pub(crate) program: LauncherProgram,
    idle: Mutex<Vec<Connection>>,
    pool: AtomicU32,
    starting: tokio::sync::Mutex<()>,
    started_before: AtomicBool,
    /// The launcher was told to go: no other is started for whoever still asks.
    ended: AtomicBool,
    on_restart: OnceLock<Box<dyn Fn() + Send + Sync>>,
    boots: [AtomicU64; 2],
    /// What all pools are held to, for the next launcher.
    pools: Mutex<Vec<PoolCaps>>,
}

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct BootPlan<'a> {
    /// The computer.
    pub id: ComputerId,
    /// Its hostname.
    pub hostname: &'a str,
    /// The image's layers, top first.
    pub layers: &'a [PathBuf],
    /// Its `live/`.
    pub disk: &'a Path,
    /// What it may use.
    pub limits: Limits,
    /// The number of its pool; 0: none of its own.
    pub pool: u64,
    /// Where its disk is counted, below a sysfs; its programs see this as the size of their disk.
    pub counter: Option<&'a str>,
    /// Folders that it shares with others.
    pub shared: &'a [Shared],
}

/// A folder of the host in a computer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The folder.
    pub folder: PathBuf,
    /// Where it is seen inside: absolute, without `.` and `..`.
    pub path: String,
}

/// One running computer.
#[derive(Clone)]
pub struct Machine(Arc<MachineInner>);

struct MachineInner {
    id: ComputerId,
    /// None while its memory is on a disk.
    body: Mutex<Option<Body>>,
    link: Link,
    /// Whether it has ended. While its memory is on a disk it has not.
    end: watch::Sender<bool>,
    machines: Machines,
}

/// What runs of a computer.
struct Body {
    pid: u32,
    net_link: u64,
    cgroup: String,
    pidfd: OwnedFd,
}

impl Machines {
    /// Finds the launcher of this RUN or starts one, and returns the computers that it carries.
    pub async fn connect(config: MachinesConfig) -> Result<(Self, Vec<Machine>), MachineError> {
        let computers = config.run.join("computers");
        fs::create_dir_all(&computers).map_err(|error| SysError::io("mkdir", &computers, &error))?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&config.run, private).map_err(|error| SysError::io("chmod", &config.run, &error))?;
        let agent = keep_agent(&config.data, config.agent)?;
        let program = LauncherProgram { agent, run: config.run.clone(), keep: vec![config.data, config.images] };
        let machines = Self(Arc::new(Inner {
            run: config.run,
            program,
            idle: Mutex::new(Vec::new()),
            pool: AtomicU32::new(config.pool),
            starting: tokio::sync::Mutex::new(()),
            started_before: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            on_restart: OnceLock::new(),
            boots: Default::default(),
            pools: Mutex::default(),
        }));
        let mut attempt = 1;
        let found = loop {
            let found = match machines.introduce().await {
                Ok(found) => machines.set_pool(config.pool).await.map(|()| found),
                Err(error) => Err(error),
            };
            match found {
                Err(MachineError::Sys(error)) if attempt < ATTEMPTS_MAX => {
                    tracing::warn!(%error, "the launcher was lost while it was asked for its computers");
                    tokio::time::sleep(ATTEMPT_PAUSE * attempt).await;
                    attempt += 1;
                }
                found => break found?,
            }
        };
        Ok((machines, found))
    }

    /// Has `told` called whenever a launcher was started in place of one that was lost. The first one asked for holds.
    pub fn on_restart(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_restart.set(Box::new(told));
    }

    /// The computers that the launcher carries.
    async fn introduce(&self) -> Result<Vec<Machine>, MachineError> {
        let connection = self.sent(&Request::Hello { version: den_wire::VERSION }).await?;
        let mut found = Vec::new();
        loop {
            match connection.receive().await? {
                (Reply::Hello { .. }, _) => {}
                (Reply::Running { id, pid, link, pool }, Some(pidfd)) => match id.parse() {
                    Ok(id) => found.push(self.machine(id, pid, link, pool, pidfd)?),
                    Err(error) => tracing::warn!(%error, "the launcher carries something that is no computer"),
                },
                (Reply::Done, _) => break,
                _ => return Err(MachineError::Answer { wanted: "Running" }),
            }
        }
        self.keep(connection);
        Ok(found)
    }

    /// Boots a computer: when this returns, its agent has answered. On an error nothing is left.
    pub async fn boot(&self, plan: &BootPlan<'_>) -> Result<Machine, MachineError> {
        self.boot_with(plan, |_| {}).await
    }

    /// As [`Machines::boot`]; `begun` is called with the computer as soon as it has processes and a
    /// link, while its agent is still waited for.
    pub async fn boot_with(&self, plan: &BootPlan<'_>, begun: impl FnOnce(&Machine)) -> Result<Machine, MachineError> {
        let create = self.create_of(plan);
        let request = match plan.shared {
            [] => Request::Create(create),
            _ => Request::CreateSharing(create),
        };
        let answer = match self.ask(&request).await.map_err(of_shared) {
            // The launcher died of it or beneath it. Its successor may have adopted the computer:
            // ended first, then tried once more.
            Err(MachineError::Sys(error)) => {
                tracing::warn!(%error, computer = %plan.id, "the launcher was lost while a computer booted");
                self.kill(plan.id).await?;
                self.ask(&request).await.map_err(of_shared)?
            }
            other => other?,
        };
        let (Reply::Created { pid, link, pooled, pool }, Some(pidfd)) = answer else {
            return Err(MachineError::Answer { wanted: "Created" });
        };
        self.0.boots[usize::from(pooled)].fetch_add(1, Ordering::Relaxed);
        let machine = self.machine(plan.id, pid, link, pool, pidfd)?;
        begun(&machine);
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(HELLO_TIMEOUT, machine.link().hello()) => greeted,
            () = machine.died() => Ok(Err(LinkError::Wire(den_wire::WireError::Closed))),
        };
        match greeted {
            Ok(Ok(_)) => Ok(machine),
            Ok(Err(source)) => {
                self.kill(plan.id).await?;
                Err(MachineError::Agent { id: plan.id, source })
            }
            Err(_) => {
                self.kill(plan.id).await?;
                let source = LinkError::Wire(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
                Err(MachineError::Agent { id: plan.id, source })
            }
        }
    }

    /// What the launcher is told of a computer to boot.
    pub(crate) fn create_of(&self, plan: &BootPlan<'_>) -> Create {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Create {
            id: plan.id.to_string(),
            hostname: plan.hostname.to_owned(),
            layers: plan.layers.iter().map(|path| text(path)).collect(),
            disk: text(plan.disk),
            limits: wire_limits(&plan.limits),
            agent: text(&self.0.program.agent),
            run: text(&self.home(plan.id)),
            volumes: VOLUMES.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect(),
            pool: plan.pool,
            counter: plan.counter.map(str::to_owned).unwrap_or_default(),
            shared: plan.shared.iter().map(|shared| (text(&shared.folder), shared.path.clone())).collect(),
        }
    }

    /// What a computer uses now.
    pub async fn usage(&self, id: ComputerId) -> Result<Usage, MachineError> {
        match self.ask(&Request::Usage { id: id.to_string() }).await? {
            (Reply::Usage(usage), _) => Ok(usage),
            _ => Err(MachineError::Answer { wanted: "Usage" }),
        }
    }

    /// Holds a running computer to other limits.
    pub async fn set_limits(&self, id: ComputerId, limits: &Limits) -> Result<(), MachineError> {
        self.done(&Request::SetLimits { id: id.to_string(), limits: wire_limits(limits) }).await
    }

    /// How many husks are kept ready from now on.
    pub async fn set_pool(&self, target: u32) -> Result<(), MachineError> {
        self.0.pool.store(target, Ordering::Relaxed);
        self.done(&Request::Pool { target }).await
    }

    /// Holds the computers of each pool to these together: all pools there are, the house as 0. Pools that are left
    /// out go with what was made for them.
    ///
    /// Errors: what the kernel refuses; `Refused` by a launcher of before there were pools, where there is one.
    pub async fn set_pools(&self, pools: Vec<PoolCaps>) -> Result<(), MachineError> {
        let none = pools.iter().all(|caps| *caps == PoolCaps::default());
        *self.0.pools.lock().expect("no panic while it is held") = pools.clone();
        match self.done(&Request::Pools { pools }).await {
            // It is too old to know of pools, and there are none.
            Err(MachineError::Refused { errno: 0, .. }) if none => Ok(()),
            done => done,
        }
    }

    /// How many boots found a husk ready, and how many did not, since this daemon began.
    pub fn boots(&self) -> (u64, u64) {
        let [cold, pooled] = &self.0.boots;
        (pooled.load(Ordering::Relaxed), cold.load(Ordering::Relaxed))
    }

    /// How many husks are ready. Takes the same however many computers run, but of a launcher that is too old.
    pub async fn husks(&self) -> Result<u32, MachineError> {
        match self.ask(&Request::Husks).await {
            Ok((Reply::Hello { husks, .. }, _)) => Ok(husks),
            Ok(_) => Err(MachineError::Answer { wanted: "Hello" }),
            Err(MachineError::Refused { .. }) => self.husks_of_old().await,
            Err(error) => Err(error),
        }
    }

    async fn husks_of_old(&self) -> Result<u32, MachineError> {
        let connection = self.sent(&Request::Hello { version: den_wire::VERSION }).await?;
        let mut ready = 0;
        loop {
            match connection.receive().await? {
                (Reply::Hello { husks, .. }, _) => ready = husks,
                (Reply::Done, _) => break,
                _ => {}
            }
        }
        self.keep(connection);
        Ok(ready)
    }

    /// Ends a computer at once; when this returns, its processes are gone, and its cgroup and link are
    /// going. One that does not run is no error.
    pub async fn kill(&self, id: ComputerId) -> Result<(), MachineError> {
        let request = Request::Kill { id: id.to_string() };
        for _ in 0..200 {
            match self.done(&request).await {
                // Between two phases of its boot; it is ending.
                Err(MachineError::Refused { errno, .. }) if errno == rustix::io::Errno::AGAIN.raw_os_error() => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(MachineError::Sys(error)) => {
                    tracing::warn!(%error, computer = %id, "the launcher was lost while a computer ended");
                }
                other => return other,
            }
        }
        self.done(&request).await
    }

    /// Ends the launcher with its husks and lets go of the gate's namespace.
    ///
    /// Errors: `Refused` while computers run.
    pub async fn exit(&self) -> Result<(), MachineError> {
        {
            // Nobody is starting one just now.
            let _one_at_a_time = self.0.starting.lock().await;
            self.0.ended.store(true, Ordering::Release);
        }
        let ended = self.end_launcher().await;
        if ended.is_err() {
            self.0.ended.store(false, Ordering::Release);
        }
        ended
    }

    async fn end_launcher(&self) -> Result<(), MachineError> {
        self.dismiss().await?;
        // The launcher's own view of mounts has no cgroups in it any more.
        let instance = cgroup::instance_of(&self.0.run);
        for _ in 0..CGROUP_TRIES {
            if cgroup::Cgroups::remove_instance(&instance).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let namespace = self.0.run.join("gate.netns");
        let _ = den_sys::mount::unmount(&namespace, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_file(&namespace);
        // Here and not in the launcher: in its mount namespace there is no cgroup filesystem.
        let _ = den_sys::cgroup::Cgroups::remove_instance(&den_sys::cgroup::instance_of(&self.0.run));
        Ok(())
    }

    /// Ends the launcher with its husks and what they hold of mounts; the gate's namespace stays for the next one.
    ///
    /// Errors: `Refused` while computers run.
    pub async fn dismiss(&self) -> Result<(), MachineError> {
        let socket = self.0.run.join("launcher.sock");
        if let Ok(connection) = Connection::open(&socket) {
            connection.send(&Request::Exit).await?;
            match connection.receive().await? {
                (Reply::Done, _) => {}
                (Reply::Failed { stage, errno }, _) => return Err(MachineError::Refused { stage, errno }),
                _ => return Err(MachineError::Answer { wanted: "Done" }),
            }
        }
        Ok(())
    }

    pub(crate) fn home(&self, id: ComputerId) -> PathBuf {
        self.0.run.join("computers").join(id.to_string())
    }

    fn machine(
        &self,
        id: ComputerId,
        pid: u32,
        net_link: u64,
        pool: u64,
        pidfd: OwnedFd,
    ) -> Result<Machine, MachineError> {
        let machine = self.asleep(id);
        machine.embody(pid, net_link, pool, pidfd)?;
        Ok(machine)
    }

    /// A computer whose memory is on a disk: nothing of it runs, and it has not ended.
    pub fn asleep(&self, id: ComputerId) -> Machine {
        let link = Link::new(self.home(id).join("agent.sock"));
        let (end, _) = watch::channel(false);
        Machine(Arc::new(MachineInner { id, body: Mutex::new(None), link, end, machines: self.clone() }))
    }

    /// A connection to the launcher, which is started if there is none.
    async fn reach(&self) -> Result<Connection, MachineError> {
        if let Some(connection) = self.0.idle.lock().expect("no panic while it is held").pop() {
            return Ok(connection);
        }
        let socket = self.0.run.join("launcher.sock");
        if let Ok(connection) = Connection::open(&socket) {
            return Ok(connection);
        }
        let _one_at_a_time = self.0.starting.lock().await;
        if self.0.ended.load(Ordering::Acquire) {
            let errno = rustix::io::Errno::SHUTDOWN.raw_os_error();
            return Err(SysError::new("connect", "launcher.sock", errno).into());
        }
        if let Ok(connection) = Connection::open(&socket) {
            return Ok(connection);
        }
        let first = !self.0.started_before.swap(true, Ordering::Relaxed);
        self.0.program.start(first).await?;
        if let Some(told) = self.0.on_restart.get() {
            told();
        }
        let connection = Connection::open(&socket)?;
        let target = self.0.pool.load(Ordering::Relaxed);
        connection.send(&Request::Pool { target }).await?;
        connection.receive().await?;
        let pools = self.0.pools.lock().expect("no panic while it is held").clone();
        if !pools.is_empty() {
            connection.send(&Request::Pools { pools }).await?;
            if let (Reply::Failed { stage, errno }, _) = connection.receive().await? {
                tracing::error!(stage, errno, "pools are not held to what they have");
            }
        }
        Ok(connection)
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.0.idle.lock().expect("no panic while it is held");
        if idle.len() < CONNECTIONS_KEPT {
            idle.push(connection);
        }
    }

    /// A connection to the launcher, to which this has been sent.
    pub(crate) async fn sent(&self, request: &Request) -> Result<Connection, MachineError> {
        let connection = self.reach().await?;
        if connection.send(request).await.is_ok() {
            return Ok(connection);
        }
        // An idle one of a launcher that has ended.
        self.lost();
        let connection = self.reach().await?;
        connection.send(request).await?;
        Ok(connection)
    }

    /// What was connected to the launcher is so no more.
    pub(crate) fn lost(&self) {
        self.0.idle.lock().expect("no panic while it is held").clear();
    }

    /// One request, one answer. `Sys` errors mean that the launcher was lost.
    async fn ask(&self, request: &Request) -> Result<(Reply, Option<OwnedFd>), MachineError> {
        let connection = self.sent(request).await?;
        let answer = match connection.receive().await {
            Ok(answer) => answer,
            Err(error) => {
                self.lost();
                return Err(error.into());
            }
        };
        self.keep(connection);
        match answer {
            (Reply::Failed { stage, errno }, _) => Err(MachineError::Refused { stage, errno }),
            other => Ok(other),
        }
    }

    async fn done(&self, request: &Request) -> Result<(), MachineError> {
        match self.ask(request).await? {
            (Reply::Done, _) => Ok(()),
            _ => Err(MachineError::Answer { wanted: "Done" }),
        }
    }
}

impl Machine {
    /// Whose it is.
    pub fn id(&self) -> ComputerId {
        self.0.id
    }

    pub(crate) fn machines(&self) -> &Machines {
        &self.0.machines
    }

    fn of_body<T>(&self, look: impl FnOnce(&Body) -> T) -> Option<T> {
        self.0.body.lock().expect("no panic while it is held").as_ref().map(look)
    }

    /// It runs as these processes from now on.
    pub(crate) fn embody(&self, pid: u32, net_link: u64, pool: u64, pidfd: OwnedFd) -> Result<(), MachineError> {
        let machine = Arc::downgrade(&self.0);
        watch_end(&pidfd, move || {
            // Unless its memory was written down meanwhile.
            if let Some(machine) = machine.upgrade()
                && machine.body.lock().expect("no panic while it is held").as_ref().is_some_and(|body| body.pid == pid)
            {
                machine.end.send_replace(true);
            }
        })?;
        let body = Body { pid, net_link, cgroup: cgroup_name(pool, net_link), pidfd };
        *self.0.body.lock().expect("no panic while it is held") = Some(body);
        Ok(())
    }

    /// What still runs of it does not count any more: its memory is on a disk.
    pub(crate) fn disembody(&self) {
        self.0.body.lock().expect("no panic while it is held").take();
    }

    /// Whether its memory is on a disk and nothing of it runs.
    pub fn is_on_disk(&self) -> bool {
        self.0.body.lock().expect("no panic while it is held").is_none()
    }

    /// PID 1 of it, as the host counts; 0 while its memory is on a disk.
    pub fn pid(&self) -> u32 {
        self.of_body(|body| body.pid).unwrap_or(0)
    }

    /// Its cgroup, below that of the house. While its memory is on a disk it has none, and this names none.
    pub fn cgroup(&self) -> String {
        self.of_body(|body| body.cgroup.clone()).unwrap_or_else(|| NO_CGROUP.to_owned())
    }

    /// Its network link: `l<n>` in the gate's namespace, with the index 1000 + n. 0 if it was booted by
    /// a launcher that is too old to say.
    pub fn net_link(&self) -> u64 {
        self.of_body(|body| body.net_link).unwrap_or(0)
    }

    /// To its agent.
    pub fn link(&self) -> &Link {
        &self.0.link
    }

    /// Returns when PID 1 is gone, and so every process in it.
    pub async fn died(&self) {
        let mut end = self.0.end.subscribe();
        // The sender is ours.
        let _ = end.wait_for(|ended| *ended).await;
    }

    /// Whether PID 1 is gone.
    pub fn is_dead(&self) -> bool {
        *self.0.end.borrow()
    }

    /// Ends it at once; see [`Machines::kill`]. The signal goes without the launcher, which may be
    /// making a husk just now.
    pub async fn kill(&self) -> Result<(), MachineError> {
        if !self.is_dead() {
            match self.of_body(|body| clone::kill(&body.pidfd)) {
                Some(killed) => killed?,
                // It ends as it is.
                None => _ = self.0.end.send_replace(true),
            }
        }
        self.0.machines.kill(self.0.id).await
    }
}

/// What keeps a folder from being mounted, in words.
fn in_the_way(errno: i32) -> String {
    match Errno::from_raw_os_error(errno) {
        Errno::NOTDIR => "a file is in the way".to_owned(),
        Errno::LOOP => "a link is in the way".to_owned(),
        Errno::XDEV => "something else is mounted there".to_owned(),
        errno => std::io::Error::from(errno).to_string(),
    }
}

/// What a refusal says of shared folders, where it says something.
fn of_shared(error: MachineError) -> MachineError {
    match error {
        MachineError::Refused { stage, errno } => match stage.strip_prefix(&format!("launch {MOUNT_POINT} ")) {
            Some(path) => MachineError::MountPoint { path: path.to_owned(), errno },
            None if stage == UNKNOWN => MachineError::SharesNothing,
            None => MachineError::Refused { stage, errno },
        },
        other => other,
    }
}

pub(crate) fn wire_limits(limits: &Limits) -> den_wire::launcher::Limits {
    den_wire::launcher::Limits { cpu_milli: limits.cpus.0, memory_bytes: limits.memory.0, pids: limits.pids }
}

/// Writes the agent to `DATA/agent/<hash>/den-agent` unless it is there: computers keep the one
/// they were started with, whatever comes after it.
fn keep_agent(data: &Path, program: &[u8]) -> Result<PathBuf, SysError> {
    let hash = blake3::hash(program).to_hex();
    let folder = data.join("agent").join(&hash.as_str()[..16]);
    let path = folder.join("den-agent");
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == program.len() as u64) {
        return Ok(path);
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| SysError::io("write", &path, &error)
    };
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let half = folder.join(format!("den-agent.{}", std::process::id()));
    fs::write(&half, program).map_err(io(&half))?;
    fs::set_permissions(&half, fs::Permissions::from_mode(0o555)).map_err(io(&half))?;
    fs::rename(&half, &path).map_err(io(&path))?;
    Ok(path)
}
