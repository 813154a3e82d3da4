//! The real agent as PID 1 of a pid and mount namespace of its own, and the host's side of the protocol.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use den_wire::agent::{End, Exec, Failure, FileStat, Reply, Request};
use den_wire::frame::blocking::{read_frame, write_frame, write_message};
use den_wire::frame::message_bytes;
use den_wire::log::{EndRecord, RECORD_HEAD_BYTES, RecordHead, Stream};
use den_wire::{FrameKind, WireError};
use minicbor::bytes::ByteVec;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// Longer than anything here takes: a test that hangs fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Inside {
    pub dir: tempfile::TempDir,
    child: Child,
}

impl Inside {
    pub fn start() -> Self {
        Self::start_under("")
    }

    /// Starts with shell words run first, such as a limit.
    pub fn start_under(before: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("den-agent-").tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("agent.sock")).expect("a socket");
        let script = format!(
            "exec 3<&0 0<>/dev/null 1>/dev/null; {before}
             exec unshare --pid --mount --fork --kill-child=KILL --mount-proc \"$0\" init"
        );
        let agent = std::env::var("DEN_AGENT").unwrap_or_else(|_| env!("CARGO_BIN_EXE_den-agent").to_owned());
        let child = Command::new("/bin/sh")
            .args(["-c", &script, &agent])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .expect("sh");
        Self { dir, child }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> ByteVec {
        bytes(self.path(name))
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("agent.sock")).expect("the agent listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends a request and returns the first reply.
    pub fn ask(&self, request: &Request) -> Reply {
        let mut stream = self.connect();
        write_message(&mut stream, request).expect("sent");
        reply(&mut stream)
    }

    pub fn failure(&self, request: &Request) -> Failure {
        match self.ask(request) {
            Reply::Failed(failure) => failure,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn log_path(&self, step: u64) -> PathBuf {
        self.path(&format!("{step}.log"))
    }

    /// Starts a step; the first reply is not read.
    pub fn begin(&self, exec: Exec) -> UnixStream {
        let log = std::fs::File::create(self.log_path(exec.step)).expect("a log");
        let stream = self.connect();
        let bytes = message_bytes(&Request::Exec(exec));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [log.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = rustix::net::sendmsg(&stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty());
        let sent = sent.expect("sent");
        (&stream).write_all(&bytes[sent..]).expect("sent");
        stream
    }

    /// Runs a step to its end.
    pub fn run(&self, exec: Exec) -> Ran {
        let step = exec.step;
        let mut stream = self.begin(exec);
        let end = ended(&mut stream);
        Ran { end, log: read_log(&self.log_path(step)) }
    }

    pub fn sh(&self, step: u64, script: &str) -> Ran {
        self.run(sh(step, script))
    }

    pub fn pid(&self) -> u32 {
        let unshare = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).expect("children");
        children.trim().parse().expect("one child")
    }

    /// Waits for the agent's own end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("ended")
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("ended or not").is_some()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // `unshare` ends with its child, but for the instant before it has said so to the kernel.
        let unshare = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap_or_default();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in children.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

pub struct Ran {
    pub end: End,
    pub log: Log,
}

impl Ran {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.log.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.log.stderr).into_owned()
    }
}

#[derive(Default)]
pub struct Log {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub end: Option<EndRecord>,
    /// Bytes of output that are not there.
    pub cut: u64,
    /// Bytes of output.
    pub output: u64,
}

pub fn read_log(path: &Path) -> Log {
    let file = std::fs::File::open(path).expect("the log");
    let mut log = Log::default();
    let mut position = 0;
    loop {
        let mut head = [0; RECORD_HEAD_BYTES];
        if file.read_exact_at(&mut head, position).is_err() {
            return log;
        }
        let head = RecordHead::parse(&head).unwrap_or_else(|| panic!("no head at {position}"));
        let mut payload = vec![0; head.length as usize];
        file.read_exact_at(&mut payload, position + RECORD_HEAD_BYTES as u64).expect("a payload");
        position += head.record_bytes();
        match head.stream {
            Stream::Cut => {
                position = u64::from_le_bytes(payload.try_into().expect("8 bytes"));
                continue;
            }
            Stream::End => {
                log.end = EndRecord::parse(&payload.try_into().expect("5 bytes"));
                continue;
            }
            Stream::Stdout => log.stdout.extend(&payload),
            Stream::Stderr => log.stderr.extend(&payload),
            Stream::Pty => log.pty.extend(&payload),
        }
        log.cut += head.offset - log.output;
        log.output = head.offset + u64::from(head.length);
    }
}

pub fn bytes(path: impl AsRef<Path>) -> ByteVec {
    ByteVec::from(std::os::unix::ffi::OsStrExt::as_bytes(path.as_ref().as_os_str()).to_vec())
}

pub fn argv(words: &[&str]) -> Vec<ByteVec> {
    words.iter().map(|word| ByteVec::from(word.as_bytes().to_vec())).collect()
}

pub fn command(step: u64, words: &[&str]) -> Exec {
    Exec { step, argv: argv(words), ..Exec::default() }
}

pub fn sh(step: u64, script: &str) -> Exec {
    command(step, &["/bin/sh", "-c", script])
}

pub fn reply(stream: &mut UnixStream) -> Reply {
    read_frame(stream).expect("a frame").message().expect("a reply")
}

/// Reads until `Ended`; no reply may follow.
pub fn ended(stream: &mut UnixStream) -> End {
    loop {
        match reply(stream) {
            Reply::Started { .. } | Reply::Progress { .. } => {}
            Reply::Ended { end, .. } => {
                assert!(matches!(read_frame(stream), Err(WireError::Closed)));
                return end;
            }
            other => panic!("not a step's: {other:?}"),
        }
    }
}

pub fn data(stream: &mut UnixStream, payload: &[u8]) -> io::Result<()> {
    write_frame(stream, FrameKind::Data, payload)
}

/// Ends the data; an agent that has refused already is told nothing, and its answer is still to be read.
pub fn end(stream: &mut UnixStream) {
    match write_frame(stream, FrameKind::End, &[]) {
        // It has gone, with what was sent read or not.
        Err(error) if ![io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&error.kind()) => {
            panic!("{error}")
        }
        _ => {}
    }
}

/// Data until its end, or the failure that came instead.
pub fn collect(stream: &mut UnixStream) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    loop {
        let frame = read_frame(stream).expect("a frame");
        match frame.kind {
            FrameKind::Data => all.extend(frame.payload),
            FrameKind::End => return Ok(all),
            FrameKind::Message => match frame.message().expect("a reply") {
                Reply::Failed(failure) => return Err(failure),
                other => panic!("not data: {other:?}"),
            },
        }
    }
}

pub fn stat(reply: Reply) -> FileStat {
    match reply {
        Reply::Stat(stat) => stat,
        other => panic!("no attributes: {other:?}"),
    }
}

/// Tries until it is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
