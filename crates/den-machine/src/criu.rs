//! Memory on a disk: writing down what runs of a computer, and reading it back, by CRIU.
//!
//! ```text
//! Link::rest ─► dump ─ frozen ─► post-dump: `commit`, which keeps the folder ─► processes end (or go on)
//! revive     Reserve ─► den-agent revive ─► criu restore ─ pre-resume ─► Taken: the launcher has it ─► goes on
//!            └─► wake: a new socket for the agent
//! ```
//!
//! Invariants:
//! - Until `commit` has said yes, the computer goes on as it was, whatever fails or dies. It is woken once CRIU has
//!   let go of it, never before.
//! - What is read back goes on only once the launcher carries it; what fails before that is ended.
//! - The images hold no host descriptor and no host path but the agent's.
//!
//! Not here: where the folder lies, and which state that is (`control`); what is inside is looked at by [`scan`].

mod images;
mod scan;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use den_sys::{SysError, clone, socket};
use den_wire::agent::REST_SOCKET;
use den_wire::launcher::{Reply, Request, Revive, shared_name};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::SocketType;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

use crate::launcher::Connection;
use crate::machines::{ATTEMPT_PAUSE, ATTEMPTS_MAX, VOLUMES, wire_limits};
use crate::{BootPlan, Link, LinkError, Machine, MachineError, Machines, Shared};

/// The oldest that can write down a TCP socket on Linux 6.16 and newer.
const VERSION_LEAST: (u32, u32) = (4, 2);
/// How long writing or reading may take: 100 MB take 0.3 s where the disk keeps up.
const TIME_MAX: Duration = Duration::from_secs(600);
/// How long a hook may take to say what it is.
const HOOK_WAIT: Duration = Duration::from_secs(10);
/// How long a computer that goes on may take to listen.
const WAKE_MAX: Duration = Duration::from_secs(20);
/// How long one that may rest or not may take to say that it does not.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// How long CRIU may take to end once it is told no.
const END_MAX: Duration = Duration::from_secs(60);
/// Between two tries to reach it.
const WAKE_PAUSE: Duration = Duration::from_millis(2);
/// What a hook says, in bytes.
const HOOK_BYTES_MAX: usize = 64;
/// What is kept of CRIU's own words, in bytes.
const WORDS_BYTES_MAX: usize = 400;
/// Where CRIU's files lie in the folder, which is root's alone.
const IMAGES: &str = "images";
/// Where the agent is seen inside.
const AGENT: &str = "/dev/.den/agent";

/// CRIU on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    /// The program.
    pub program: PathBuf,
    /// What it says it is.
    pub version: String,
}

/// Why memory was not written, or not read back.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// It cannot be done with what is inside.
    #[error("{0}")]
    Unsupported(String),
    /// CRIU says no.
    #[error("criu {what}: {said}")]
    Refused {
        /// `dump` or `restore`.
        what: &'static str,
        /// Its last error.
        said: String,
    },
    /// Not the launcher, nor the kernel.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The agent.
    #[error("the agent does not let go of the host, or not take it up again")]
    Agent(#[from] LinkError),
    /// A file or a process.
    #[error("{about}")]
    Io {
        /// What was being done.
        about: String,
        /// Why it could not.
        source: io::Error,
    },
}

impl CriuError {
    /// Why it cannot be done with what is inside, in words; else what failed.
    pub fn refusal(self) -> Result<String, Self> {
        match self {
            Self::Unsupported(why) => Ok(why),
            Self::Refused { said, .. } => Ok(format!("CRIU says: {said}")),
            failed => Err(failed),
        }
    }
}

impl From<SysError> for CriuError {
    fn from(error: SysError) -> Self {
        Self::Machine(error.into())
    }
}

fn about(what: impl Into<String>) -> impl FnOnce(io::Error) -> CriuError {
    let about = what.into();
    move |source| CriuError::Io { about, source }
}

/// What is to be written where.
#[derive(Debug, Clone, Copy)]
pub struct Dump<'a> {
    /// By what.
    pub criu: &'a Criu,
    /// Into this empty folder.
    pub folder: &'a Path,
    /// Whether the computer goes on afterwards.
    pub goes_on: bool,
    /// Folders that it shares with others.
    pub shared: &'a [Shared],
}

/// What is known of images beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What the computer takes for the id of its boot.
    pub boot_id: String,
    /// The agent's program.
    pub agent: PathBuf,
}

impl Criu {
    /// Finds it: the one that is named, `DATA/criu/criu`, or the one in `PATH`. Runs it once.
    ///
    /// Errors: why there is none, in words.
    pub fn find(named: Option<&Path>, data: &Path) -> Result<Self, String> {
        let kept = data.join("criu/criu");
        let program = match named {
            Some(named) => named.to_owned(),
            None if kept.is_file() => kept,
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let found = std::env::split_paths(&path).map(|folder| folder.join("criu")).find(|file| file.is_file());
                found.ok_or("there is no CRIU 4.2 or newer")?
            }
        };
        let said = std::process::Command::new(&program).arg("--version").stdin(Stdio::null()).output();
        let said = said.map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let version =
            text.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or("unknown").trim().to_owned();
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
        if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < VERSION_LEAST {
            return Err(format!("{} is CRIU {version}; 4.2 or newer is needed", program.display()));
        }
        Ok(Self { program, version })
    }
}

impl Kept {
    const FILE: &'static str = "den";

    fn write(&self, folder: &Path) -> Result<(), CriuError> {
        let text = format!("{}\n{}\n", self.boot_id, self.agent.display());
        let path = folder.join(Self::FILE);
        fs::write(&path, text).map_err(about(format!("writing {}", path.display())))
    }

    fn read(folder: &Path) -> Result<Self, CriuError> {
        let path = folder.join(Self::FILE);
        let text = fs::read_to_string(&path).map_err(about(format!("reading {}", path.display())))?;
        let mut lines = text.lines();
        let (boot_id, agent) = lines.next().zip(lines.next()).unwrap_or_default();
        Ok(Self { boot_id: boot_id.to_owned(), agent: agent.into() })
    }
}

impl Machine {
    /// Whether all that runs inside can be written down; says what cannot, and whose it is.
    ///
    /// `shared` are the folders that it shares with others.
    ///
    /// Errors: `Unsupported`.
    pub fn may_be_written(&self, shared: &[Shared]) -> Result<(), CriuError> {
        scan::scan(self.pid(), shared).map_err(CriuError::Unsupported)
    }

    /// Whether there is nothing in its memory that a boot would not bring back: no process beside the agent, no file
    /// in /run and /dev/shm but those of a boot. What cannot be looked at counts as something.
    pub fn runs_nothing(&self) -> bool {
        scan::is_empty(self.pid())
    }

    /// Writes down what runs. `commit` is awaited while all of it stands still and all is written: with `true`
    /// the memory counts, with `false` the computer goes on. Its agent has to rest: see [`Link::rest`].
    ///
    /// Errors: `Unsupported`, `Refused` and others; the computer goes on then.
    pub async fn dump(&self, dump: Dump<'_>, commit: impl Future<Output = bool> + Send) -> Result<(), CriuError> {
        let Dump { criu, folder, goes_on, shared } = dump;
        let pid = self.pid();
        self.kept(pid)?.write(folder)?;
        let images = folder.join(IMAGES);
        fs::create_dir(&images).map_err(about(format!("making {}", images.display())))?;
        let socket = self.hook_path();
        let hooks = Hooks::open(&socket)?;
        let mut command = Command::new(&criu.program);
        command.args(["dump", "-v2", "-o", "dump.log", "-t", &pid.to_string(), "--images-dir"]).arg(&images);
        command.args(["--tcp-established", "--file-locks", "--manage-cgroups=ignore", "--empty-ns", "net"]);
        command.args(["--network-lock", "skip"]);
        let outer = [("/dev", "dev"), (AGENT, "agent"), ("/sys/fs/cgroup", "cgroup")];
        for (path, name) in outer.into_iter().chain(VOLUMES.map(|(name, path)| (path, name))) {
            command.arg("--external").arg(format!("mnt[{path}]:{name}"));
        }
        for (number, Shared { path, .. }) in shared.iter().enumerate() {
            command.arg("--external").arg(format!("mnt[{path}]:{}", shared_name(number)));
        }
        if goes_on {
            command.arg("--leave-running");
        }
        command.arg("--action-script").arg(self.hook_file(folder, &socket)?);
        let mut child = spawn(&mut command, &criu.program)?;
        let mut committed = false;
        let ended = async {
            let mut commit = Some(commit);
            loop {
                let hook = match hooks.next(&mut child).await? {
                    Next::Ended(status) => return Ok(status),
                    Next::Hook(hook) => hook,
                };
                let yes = match commit.take() {
                    Some(commit) if hook.action == "post-dump" => commit.await,
                    other => {
                        commit = other;
                        false
                    }
                };
                if yes && !goes_on {
                    self.disembody();
                }
                committed |= yes;
                hook.answer(yes).await;
            }
        };
        let ended: Result<_, CriuError> = ended.await;
        if ended.is_err() {
            hooks.refuse(&mut child).await;
        }
        if committed && !goes_on {
            // CRIU has ended them; whatever came in its way, they have to be gone.
            self.machines().kill(self.id()).await?;
            return Ok(());
        }
        let status = ended?;
        match status.success() && committed {
            true => Ok(()),
            false => Err(CriuError::Refused { what: "dump", said: last_error(&images.join("dump.log"), &status) }),
        }
    }

    /// Has an agent take up its work of which it is not known whether it rests: as [`Machine::wake`] if it does; else
    /// it is given the logs that it let go of.
    pub async fn come_back(&self, logs: impl Fn(u64) -> Option<fs::File>) -> Result<(), CriuError> {
        let Ok(Ok(hello)) = tokio::time::timeout(HELLO_MAX, self.link().hello()).await else {
            return self.wake(None, logs).await;
        };
        let given = async {
            for step in hello.running {
                let Some(log) = logs(step) else { continue };
                match self.link().relog(step, log.as_fd()).await {
                    // It has its log, or has ended.
                    Ok(()) | Err(LinkError::Failed(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        tokio::time::timeout(WAKE_MAX, given).await.unwrap_or(Err(LinkError::Silent(WAKE_MAX).into()))
    }

    /// Has an agent that rests take up its work: it listens again, its programs see their share, `logs` gives the
    /// steps that run their logs. `calls` is what [`Link::rest`] gave.
    pub async fn wake(&self, calls: Option<OwnedFd>, logs: impl Fn(u64) -> Option<fs::File>) -> Result<(), CriuError> {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.pid()));
        let namespace = fs::File::open(&path).map_err(about(format!("opening {}", path.display())))?;
        let woken = async {
            let stream = loop {
                let namespace = namespace.try_clone().map_err(about("a descriptor"))?;
                match reach(namespace, self.pid()).await? {
                    Some(stream) => break stream,
                    None => tokio::time::sleep(WAKE_PAUSE).await,
                }
            };
            let listener = socket::listen(self.link().path(), SocketType::STREAM, 1024)?;
            Link::wake(stream, listener.as_fd()).await?;
            drop(listener);
            for step in self.link().hello().await?.running {
                if let Some(log) = logs(step) {
                    self.link().relog(step, log.as_fd()).await?;
                }
            }
            self.link().calls(calls.as_ref().map(AsFd::as_fd)).await?;
            Ok(())
        };
        match tokio::time::timeout(WAKE_MAX, woken).await {
            Ok(woken) => woken,
            Err(_) => Err(LinkError::Silent(WAKE_MAX).into()),
        }
    }

    /// What is kept beside the images.
    fn kept(&self, pid: u32) -> Result<Kept, CriuError> {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).map_err(about("reading its mounts"))?;
        let root = table.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let root = fields.nth(3)?;
            (fields.next()? == AGENT).then(|| root.to_owned())
        });
        let hash = root.as_deref().and_then(|root| root.strip_suffix("/den-agent")?.rsplit('/').next());
        let agents = self.machines().0.program.agent.parent().and_then(Path::parent);
        let agent = hash.zip(agents).map(|(hash, agents)| agents.join(hash).join("den-agent"));
        let agent = agent.filter(|agent| agent.is_file()).ok_or_else(|| {
            CriuError::Unsupported("it was booted by an older Den: stop it and start it once".to_owned())
        })?;
        Ok(Kept { boot_id: boot_id(pid)?, agent })
    }

    /// What CRIU runs on its way: a file, for it takes no words for a program.
    fn hook_file(&self, folder: &Path, socket: &Path) -> Result<PathBuf, CriuError> {
        let path = folder.join("hook");
        let agent = &self.machines().0.program.agent;
        fs::write(&path, format!("#!{} hook\n{}\n", agent.display(), socket.display()))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)))
            .map_err(about(format!("writing {}", path.display())))?;
        Ok(path)
    }

    fn hook_path(&self) -> PathBuf {
        self.machines().home(self.id()).join("hook")
    }
}

/// What the computer takes for the id of its boot. It may be anything that it wrote there.
fn boot_id(pid: u32) -> Result<String, CriuError> {
    let root = fs::File::open(format!("/proc/{pid}/root")).map_err(about("opening its root"))?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let mut bytes = [0; 64];
    let read = rustix::fs::openat2(&root, "dev/.den/boot_id", flags, Mode::empty(), resolve)
        .and_then(|file| rustix::io::read(&file, &mut bytes))
        .unwrap_or(0);
    let text = std::str::from_utf8(&bytes[..read]).unwrap_or_default().trim_end();
    let is_id = text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_id.then(|| text.to_owned()).ok_or_else(|| CriuError::Unsupported("its boot id is gone".to_owned()))
}

/// A connection to where an agent rests, whose process is `pid`; `None` while it is not there. Anybody inside may
/// listen in its place, and is told nothing.
async fn reach(namespace: fs::File, pid: u32) -> Result<Option<OwnedFd>, CriuError> {
    // A thread of its own: it comes back from that network namespace to nowhere.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("den-wake".into())
        .stack_size(64 << 10)
        .spawn(move || {
            let reached =
                clone::enter_network(namespace.as_fd()).and_then(|()| match socket::connect_abstract(REST_SOCKET) {
                    Ok(stream) => {
                        let peer = rustix::net::sockopt::socket_peercred(&stream);
                        Ok(peer.is_ok_and(|peer| peer.pid.as_raw_nonzero().get() as u32 == pid).then_some(stream))
                    }
                    // EAGAIN: others have come there before.
                    Err(error)
                        if [Errno::CONNREFUSED, Errno::AGAIN].map(Errno::raw_os_error).contains(&error.errno) =>
                    {
                        Ok(None)
                    }
                    Err(error) => Err(error),
                });
            let _ = sender.send(reached);
        })
        .map_err(about("a thread"))?;
    let reached = receiver.await.map_err(|_| CriuError::Unsupported("a thread ended".to_owned()))?;
    Ok(reached?)
}

impl Machines {
    /// Reads back a computer whose memory lies in `folder`, as `machine`, which runs when this returns; its agent
    /// rests still: see [`Machine::wake`]. Before anything goes on, the folder is `used`. On an error nothing of it
    /// runs, and the folder is as it was.
    pub async fn revive(
        &self,
        machine: &Machine,
        plan: &BootPlan<'_>,
        criu: &Criu,
        folder: &Path,
        used: &Path,
    ) -> Result<(), CriuError> {
        let revived = self.revive_as(machine, plan, criu, folder, used).await;
        if revived.is_err() {
            machine.disembody();
            self.kill(plan.id).await?;
            if used.is_dir() && !folder.exists() {
                fs::rename(used, folder).map_err(about(format!("renaming {}", used.display())))?;
            }
        }
        revived
    }

    async fn revive_as(
        &self,
        machine: &Machine,
        plan: &BootPlan<'_>,
        criu: &Criu,
        folder: &Path,
        used: &Path,
    ) -> Result<(), CriuError> {
        let kept = Kept::read(folder)?;
        let (connection, reply) = self.reserve(plan).await?;
        let (link, base, ids) = match reply {
            Reply::Reserved { link, base, ids } => (link, base, ids),
            Reply::Failed { stage, errno } => return Err(MachineError::Refused { stage, errno }.into()),
            _ => return Err(MachineError::Answer { wanted: "Reserved" }.into()),
        };
        // A launcher that begins takes away whatever homes it does not know.
        let home = self.home(plan.id);
        fs::create_dir_all(&home).map_err(about(format!("making {}", home.display())))?;
        images::fit(&folder.join(IMAGES), base, ids, plan.hostname)
            .map_err(about(format!("editing {}", folder.display())))?;
        let socket = machine.hook_path();
        let hooks = Hooks::open(&socket)?;
        let mut create = self.create_of(plan);
        create.agent = kept.agent.display().to_string();
        let text = |path: &Path| path.display().to_string();
        let request = Revive {
            create,
            run: text(&self.0.run),
            link,
            base,
            ids,
            images: text(&folder.join(IMAGES)),
            criu: text(&criu.program),
            hook: text(&socket),
            boot_id: kept.boot_id + "\n",
        };
        let program = &self.0.program.agent;
        let mut command = Command::new(program);
        command.arg("revive");
        let errors = folder.join("revive.log");
        let log = fs::File::create(&errors).map_err(about(format!("making {}", errors.display())))?;
        // What it has read back by then is ended by the launcher.
        let mut child = spawn(command.stdin(Stdio::piped()).stderr(log).kill_on_drop(true), program)?;
        if let Some(mut input) = child.stdin.take() {
            let bytes = minicbor::to_vec(&request).expect("a Vec takes everything");
            input.write_all(&bytes).await.map_err(about("telling what to read back"))?;
        }
        let mut taken = false;
        let status = loop {
            let hook = match hooks.next(&mut child).await? {
                Next::Ended(status) => break status,
                Next::Hook(hook) => hook,
            };
            let yes = match hook.action == "pre-resume" && !taken {
                true => {
                    self.take(&connection, machine, plan, &hook).await?;
                    let renamed = fs::rename(folder, used).and_then(|()| match used.parent() {
                        Some(parent) => fs::File::open(parent)?.sync_all(),
                        None => Ok(()),
                    });
                    renamed.map_err(about(format!("renaming {}", folder.display())))?;
                    true
                }
                false => false,
            };
            taken |= yes;
            hook.answer(yes).await;
        };
        if status.success() && taken {
            return Ok(());
        }
        let folder = if taken { used } else { folder };
        let log = folder.join(IMAGES).join("restore.log");
        let log = if log.exists() { log } else { folder.join("revive.log") };
        Err(CriuError::Refused { what: "restore", said: last_error(&log, &status) })
    }

    /// Asks for a place. The connection is of its own: what is reserved is let go when it ends.
    async fn reserve(&self, plan: &BootPlan<'_>) -> Result<(Connection, Reply), MachineError> {
        let request = Request::Reserve { id: plan.id.to_string(), pool: plan.pool };
        let mut attempt = 1;
        loop {
            let asked = async {
                let connection = self.sent(&request).await?;
                let (reply, _) = connection.receive().await?;
                Ok((connection, reply))
            };
            match asked.await {
                // What that one had reserved is gone with it.
                Err(MachineError::Sys(error)) if attempt < ATTEMPTS_MAX => {
                    tracing::warn!(%error, computer = %plan.id, "the launcher was lost while it was asked for a place");
                    self.lost();
                    tokio::time::sleep(ATTEMPT_PAUSE * attempt).await;
                    attempt += 1;
                }
                asked => return asked,
            }
        }
    }

    /// The launcher carries it from here on.
    async fn take(
        &self,
        connection: &Connection,
        machine: &Machine,
        plan: &BootPlan<'_>,
        hook: &Hook,
    ) -> Result<(), CriuError> {
        let cpu_milli = wire_limits(&plan.limits).cpu_milli;
        connection.send(&Request::Taken { id: plan.id.to_string(), pid: hook.pid, cpu_milli }).await?;
        match connection.receive().await? {
            (Reply::Created { pid, link, pool, .. }, Some(pidfd)) => {
                machine.embody(pid, link, pool, pidfd)?;
                Ok(())
            }
            (Reply::Failed { stage, errno }, _) => Err(MachineError::Refused { stage, errno }.into()),
            _ => Err(MachineError::Answer { wanted: "Created" }.into()),
        }
    }
}

fn spawn(command: &mut Command, program: &Path) -> Result<Child, CriuError> {
    command.stdout(Stdio::null()).current_dir("/");
    command.spawn().map_err(about(format!("running {}", program.display())))
}

/// Where CRIU's hooks come in.
struct Hooks(UnixListener, PathBuf);

/// One that waits for an answer.
struct Hook {
    action: String,
    pid: u32,
    stream: UnixStream,
}

enum Next {
    Hook(Hook),
    Ended(std::process::ExitStatus),
}

impl Hooks {
    fn open(path: &Path) -> Result<Self, CriuError> {
        let listener = socket::listen(path, SocketType::STREAM, 8)?;
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true).map_err(about("a socket"))?;
        Ok(Self(UnixListener::from_std(listener).map_err(about("a socket"))?, path.to_owned()))
    }

    /// The next hook, or the end of the program.
    async fn next(&self, child: &mut Child) -> Result<Next, CriuError> {
        let next = async {
            tokio::select! {
                biased;
                accepted = self.0.accept() => {
                    let (stream, _) = accepted.map_err(about("a hook"))?;
                    Ok(Next::Hook(Hook::read(stream).await?))
                }
                status = child.wait() => Ok(Next::Ended(status.map_err(about("waiting for criu"))?)),
            }
        };
        match tokio::time::timeout(TIME_MAX, next).await {
            Ok(next) => next,
            Err(_) => Err(about("criu")(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Says no to all that comes until the program has ended: CRIU lets a computer go on then. It is not killed, which
    /// would leave its own code in the processes.
    async fn refuse(&self, child: &mut Child) {
        let refused = async {
            loop {
                match self.next(child).await {
                    Ok(Next::Ended(_)) => return,
                    Ok(Next::Hook(hook)) => hook.answer(false).await,
                    Err(_) => tokio::time::sleep(WAKE_PAUSE).await,
                }
            }
        };
        if tokio::time::timeout(END_MAX, refused).await.is_err() {
            tracing::error!(limit = ?END_MAX, "criu does not end, though it was told no");
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.1);
    }
}

impl Hook {
    async fn read(stream: UnixStream) -> Result<Self, CriuError> {
        let mut stream = BufReader::with_capacity(HOOK_BYTES_MAX, stream);
        let mut line = String::new();
        let read = tokio::time::timeout(HOOK_WAIT, stream.read_line(&mut line)).await;
        read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(about("hearing a hook"))?;
        let (action, pid) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        let (action, pid) = (action.to_owned(), pid.parse().unwrap_or(0));
        Ok(Self { action, pid, stream: stream.into_inner() })
    }

    async fn answer(mut self, yes: bool) {
        let _ = self.stream.write_all(if yes { b"y" } else { b"n" }).await;
    }
}

/// The last error in a log of CRIU's, or how it ended.
fn last_error(log: &Path, status: &std::process::ExitStatus) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let is_summary = |line: &&str| line.contains("Dumping FAILED") || line.contains("Restoring FAILED");
    let said = text.lines().rev().filter(|line| line.contains("Error") || line.starts_with("error:"));
    let said: Vec<&str> = said.filter(|line| !is_summary(line)).collect();
    // The first one is the cause, and those after it follow from it; one about itself is none.
    let cause = said.iter().rev().find(|line| !line.contains("RLIMIT_NOFILE")).or(said.first());
    match cause {
        Some(line) => {
            let words = line.strip_prefix("error: ").unwrap_or(line);
            // `(00.041501) Error (criu/mount.c:3141): mnt: …`
            let words = match words.split_once("Error (").and_then(|(_, rest)| rest.split_once("): ")) {
                Some((_, words)) => words,
                None => words,
            };
            words.chars().take(WORDS_BYTES_MAX).collect()
        }
        None => format!("it ended with {status}"),
    }
}
