//! A connection to the launcher, and how one is started.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use den_sys::{SysError, socket};
use den_wire::launcher::{PACKET_BYTES_MAX, Reply, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::MachineError;

/// How long a launcher may take from its start to its first answer.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take: a kill waits for the kernel to write back what was mounted.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection; requests on it are answered in order.
pub(crate) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    pub(crate) fn open(path: &Path) -> Result<Self, SysError> {
        let fd = socket::connect_packet(path)?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(SysError::rustix("ioctl(FIONBIO)", ""))?;
        watched(fd).map(Self).map_err(|error| SysError::io("epoll_ctl", path, &error))
    }

    pub(crate) async fn send(&self, request: &Request) -> Result<(), SysError> {
        let bytes = minicbor::to_vec(request).expect("a Vec takes everything");
        self.0
            .async_io(Interest::WRITABLE, |fd| socket::send(fd, &bytes, &[]).map_err(|error| error.to_io()))
            .await
            .map(drop)
            .map_err(|error| SysError::io("send", Path::new("launcher.sock"), &error))
    }

    /// The next answer and the descriptor beside it.
    pub(crate) async fn receive(&self) -> Result<(Reply, Option<OwnedFd>), SysError> {
        let mut fds = Vec::new();
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let received = tokio::time::timeout(
            ANSWER_TIMEOUT,
            self.0.async_io(Interest::READABLE, |fd| {
                socket::receive(fd, &mut packet, &mut fds).map_err(|error| error.to_io())
            }),
        )
        .await;
        let lost = |errno: i32| SysError::new("receive", "launcher.sock", errno);
        let length = match received {
            Err(_) => return Err(lost(rustix::io::Errno::TIMEDOUT.raw_os_error())),
            Ok(Err(error)) => return Err(lost(error.raw_os_error().unwrap_or(0))),
            Ok(Ok(0)) => return Err(lost(rustix::io::Errno::CONNRESET.raw_os_error())),
            Ok(Ok(length)) => length,
        };
        let reply = minicbor::decode(&packet[..length])
            .map_err(|_| SysError::new("decode", "launcher.sock", rustix::io::Errno::PROTO.raw_os_error()))?;
        Ok((reply, fds.pop()))
    }
}

/// What a launcher is started with.
pub(crate) struct LauncherProgram {
    pub agent: PathBuf,
    pub run: PathBuf,
    pub keep: Vec<PathBuf>,
}

impl LauncherProgram {
    /// Starts one and waits until it can be connected to. `first` says whether it inherits the fail
    /// points of this process: the second one of a test shall not die of them again.
    pub(crate) async fn start(&self, first: bool) -> Result<(), MachineError> {
        let log_path = self.run.join("launcher.log");
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|error| SysError::io("open", &log_path, &error))?;
        let mut command = Command::new(&self.agent);
        command.arg("launcher").arg("--run").arg(&self.run);
        for path in &self.keep {
            command.arg("--keep").arg(path);
        }
        if !first {
            command.env_remove("DEN_FAILPOINT");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
        let mut child = command.spawn().map_err(|error| SysError::io("run", &self.agent, &error))?;
        let (sender, mut ended) = tokio::sync::oneshot::channel();
        // It outlives us as a rule; where it does not, someone has to collect it.
        std::thread::Builder::new()
            .name("den-launcher-wait".into())
            .stack_size(64 << 10)
            .spawn(move || {
                let _ = sender.send(child.wait());
            })
            .map_err(|error| SysError::io("thread", Path::new("den-launcher-wait"), &error))?;
        let socket = self.run.join("launcher.sock");
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        loop {
            if Connection::open(&socket).is_ok() {
                return Ok(());
            }
            match ended.try_recv() {
                // Code 3: another one was faster.
                Ok(Ok(status)) if status.code() != Some(3) => {
                    return Err(MachineError::LauncherEnded { message: last_line(&log_path) });
                }
                _ if tokio::time::Instant::now() > deadline => {
                    return Err(MachineError::LauncherEnded { message: "it does not answer".to_owned() });
                }
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").trim_start_matches("error: ").to_owned()
}

/// Has `ended` called when the process behind this pidfd is gone: used by [`crate::Machine::died`].
pub(crate) fn watch_end(pidfd: &OwnedFd, ended: impl FnOnce() + Send + 'static) -> Result<(), SysError> {
    let copy = pidfd.as_fd().try_clone_to_owned().map_err(|error| SysError::io("dup", Path::new("pidfd"), &error))?;
    let readable = watched(copy).map_err(|error| SysError::io("epoll_ctl", Path::new("pidfd"), &error))?;
    tokio::spawn(async move {
        // Readable once the process has ended; an error means that nothing can be learned any more.
        let _ = readable.readable().await;
        ended();
    });
    Ok(())
}

/// Registers a descriptor with the runtime, which owns it from here on.
#[expect(deprecated, reason = "its successor is unsafe, and an OwnedFd has the stable number that it asks for")]
fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
