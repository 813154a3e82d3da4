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
use den_wire::launcher::{Create, Reply, Request, Usage};
use tokio::sync::watch;

use crate::launcher::{Connection, LauncherProgram, watch_end};
use crate::{Link, LinkError};

/// Directories of every computer that lie on its disk itself, under `vol/`, and not on the overlay:
/// engines in there mount overlays of their own, whose writable part cannot lie on another one.
const VOLUMES: [(&str, &str); 3] =
    [("docker", "/var/lib/docker"), ("containerd", "/var/lib/containerd"), ("containers", "/var/lib/containers")];

/// How long an agent may take from its start to its first answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is tried to remove a cgroup that a process has just left.
const CGROUP_TRIES: u32 = 40;
/// Idle connections to the launcher that are kept.
const CONNECTIONS_KEPT: usize = 8;
/// How often a launcher is asked for its computers at the start.
const INTRODUCE_ATTEMPTS_MAX: u32 = 10;
/// Before it is asked again: this, then twice this, and so on.
const INTRODUCE_PAUSE: Duration = Duration::from_millis(10);

/// Where things lie, and how many husks are kept.
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
pub struct Machines(Arc<Inner>);

struct Inner {
    run: PathBuf,
    program: LauncherProgram,
    idle: Mutex<Vec<Connection>>,
    pool: AtomicU32,
    starting: tokio::sync::Mutex<()>,
    started_before: AtomicBool,
    /// The launcher was told to go: no other is started for whoever still asks.
    ended: AtomicBool,
    on_restart: OnceLock<Box<dyn Fn() + Send + Sync>>,
    boots: [AtomicU64; 2],
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
}

/// One running computer.
#[derive(Clone)]
pub struct Machine(Arc<MachineInner>);

struct MachineInner {
    id: ComputerId,
    pid: u32,
    net_link: u64,
    pidfd: OwnedFd,
    link: Link,
    end: watch::Receiver<bool>,
    machines: Machines,
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
        }));
        let mut attempt = 1;
        let found = loop {
            let found = match machines.introduce().await {
                Ok(found) => machines.set_pool(config.pool).await.map(|()| found),
                Err(error) => Err(error),
            };
            match found {
                // A launcher that is being killed takes connections until it is gone.
                Err(MachineError::Sys(error)) if attempt < INTRODUCE_ATTEMPTS_MAX => {
                    tracing::warn!(%error, "the launcher was lost while it was asked for its computers");
                    tokio::time::sleep(INTRODUCE_PAUSE * attempt).await;
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
        let connection = self.reach().await?;
        connection.send(&Request::Hello { version: den_wire::VERSION }).await?;
        let mut found = Vec::new();
        loop {
            match connection.receive().await? {
                (Reply::Hello { .. }, _) => {}
                (Reply::Running { id, pid, link }, Some(pidfd)) => match id.parse() {
                    Ok(id) => found.push(self.machine(id, pid, link, pidfd)?),
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
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let request = Request::Create(Create {
            id: plan.id.to_string(),
            hostname: plan.hostname.to_owned(),
            layers: plan.layers.iter().map(|path| text(path)).collect(),
            disk: text(plan.disk),
            limits: wire_limits(&plan.limits),
            agent: text(&self.0.program.agent),
            run: text(&self.home(plan.id)),
            volumes: VOLUMES.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect(),
        });
        let answer = match self.ask(&request).await {
            // The launcher died of it or beneath it. Its successor may have adopted the computer:
            // ended first, then tried once more.
            Err(MachineError::Sys(error)) => {
                tracing::warn!(%error, computer = %plan.id, "the launcher was lost while a computer booted");
                self.kill(plan.id).await?;
                self.ask(&request).await?
            }
            other => other?,
        };
        let (Reply::Created { pid, link, pooled }, Some(pidfd)) = answer else {
            return Err(MachineError::Answer { wanted: "Created" });
        };
        self.0.boots[usize::from(pooled)].fetch_add(1, Ordering::Relaxed);
        let machine = self.machine(plan.id, pid, link, pidfd)?;
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

    /// How many boots found a husk ready, and how many did not, since this daemon began.
    pub fn boots(&self) -> (u64, u64) {
        let [cold, pooled] = &self.0.boots;
        (pooled.load(Ordering::Relaxed), cold.load(Ordering::Relaxed))
    }

    /// How many husks are ready.
    pub async fn husks(&self) -> Result<u32, MachineError> {
        let connection = self.reach().await?;
        connection.send(&Request::Hello { version: den_wire::VERSION }).await?;
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
        let socket = self.0.run.join("launcher.sock");
        if let Ok(connection) = Connection::open(&socket) {
            connection.send(&Request::Exit).await?;
            match connection.receive().await? {
                (Reply::Done, _) => {}
                (Reply::Failed { stage, errno }, _) => return Err(MachineError::Refused { stage, errno }),
                _ => return Err(MachineError::Answer { wanted: "Done" }),
            }
        }
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

    fn home(&self, id: ComputerId) -> PathBuf {
        self.0.run.join("computers").join(id.to_string())
    }

    fn machine(&self, id: ComputerId, pid: u32, net_link: u64, pidfd: OwnedFd) -> Result<Machine, MachineError> {
        let (sender, end) = watch::channel(false);
        watch_end(&pidfd, sender)?;
        let link = Link::new(self.home(id).join("agent.sock"));
        Ok(Machine(Arc::new(MachineInner { id, pid, net_link, pidfd, link, end, machines: self.clone() })))
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
        Ok(connection)
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.0.idle.lock().expect("no panic while it is held");
        if idle.len() < CONNECTIONS_KEPT {
            idle.push(connection);
        }
    }

    /// One request, one answer. `Sys` errors mean that the launcher was lost.
    async fn ask(&self, request: &Request) -> Result<(Reply, Option<OwnedFd>), MachineError> {
        let mut connection = self.reach().await?;
        if connection.send(request).await.is_err() {
            // An idle one of a launcher that has ended.
            self.0.idle.lock().expect("no panic while it is held").clear();
            connection = self.reach().await?;
            connection.send(request).await?;
        }
        let answer = match connection.receive().await {
            Ok(answer) => answer,
            Err(error) => {
                self.0.idle.lock().expect("no panic while it is held").clear();
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

    /// PID 1 of it, as the host counts.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Its network link: `l<n>` in the gate's namespace, with the index 1000 + n. 0 if it was booted by
    /// a launcher that is too old to say.
    pub fn net_link(&self) -> u64 {
        self.0.net_link
    }

    /// To its agent.
    pub fn link(&self) -> &Link {
        &self.0.link
    }

    /// Returns when PID 1 is gone, and so every process in it.
    pub async fn died(&self) {
        let mut end = self.0.end.clone();
        // The sender is dropped only after it has said so.
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
            clone::kill(&self.0.pidfd)?;
        }
        self.0.machines.kill(self.0.id).await
    }
}

fn wire_limits(limits: &Limits) -> den_wire::launcher::Limits {
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
