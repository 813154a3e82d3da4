//! Starting a step.
//!
//! ```text
//! request ─ user ─ environment ─ candidates in PATH ─ pipes or terminal ─ spawn ─► `output::pump`
//!                                                                           └ refused ─► what bash says
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use den_sys::pty::Pty;
use den_sys::spawn::{Spawn, SpawnError, Stage, Terminal};
use den_wire::agent::{End, Exec, FailureKind, Reply};
use den_wire::log::{EndRecord, RECORD_HEAD_BYTES, Stream};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::conn::Conn;
use super::failure::{Outcome, at, bad, failure, from_errno, from_io, words};
use super::log::LogWriter;
use super::output::{Source, Until, pump};
use super::step::{InputSide, Stdin, attend};
use super::users::{User, Users};
use super::{Agent, Beside};

/// `PATH` of a command whose environment has none.
const PATH_DEFAULT: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `TERM` of a command on a terminal that has no other.
const TERM_DEFAULT: &str = "xterm-256color";

/// Permission bits that files made by commands lack.
const UMASK: u32 = 0o022;

/// Runs scripts without `#!`, as execvp(3) does.
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// Starts a step and attends the connection until either ends.
pub async fn exec(agent: &Rc<Agent>, mut conn: Conn, request: Exec, log: Beside) {
    let keep = request.keep_bytes;
    let Some(log) = log else {
        return conn.answer(&Reply::Failed(bad("no descriptor for the log"))).await;
    };
    match start(agent, &request) {
        Ok(started) => {
            let ended = agent.children.end_of(started.pid);
            let step = agent.steps.add(request.step, started.pid, started.input);
            let timeout = request.timeout_ms.map(Duration::from_millis);
            let patience = request.patience_ms.map(Duration::from_millis);
            let log = LogWriter::new(log, keep);
            let until = Until { timeout, whole: request.whole };
            drop(request);
            tokio::task::spawn_local(pump(agent.clone(), step.clone(), log, started.sources, ended, until));
            attend(&step, conn, Stdin::Owned, patience).await;
        }
        Err(Refusal::Failed(failure)) => conn.answer(&Reply::Failed(failure)).await,
        Err(Refusal::NotStarted { code, message }) => {
            let mut log = LogWriter::new(log, keep);
            let mut record = [&[0; RECORD_HEAD_BYTES][..], message.as_bytes(), b"\n"].concat();
            log.record(Stream::Stderr, &mut record);
            log.end(EndRecord::NotStarted(code));
            let (log_bytes, output_bytes) = (log.log_bytes(), log.output_bytes());
            let end = End::NotStarted { code, message };
            conn.answer(&Reply::Ended { end, log_bytes, output_bytes }).await;
        }
    }
}

struct Started {
    pid: u32,
    input: Option<InputSide>,
    sources: [Option<Source>; 2],
}

/// Why a step does not run.
enum Refusal {
    /// The request was not carried out: there is no step.
    Failed(den_wire::agent::Failure),
    /// The step has ended before it began.
    NotStarted { code: i32, message: String },
}

impl From<den_wire::agent::Failure> for Refusal {
    fn from(failure: den_wire::agent::Failure) -> Self {
        Self::Failed(failure)
    }
}

fn start(agent: &Agent, request: &Exec) -> Result<Started, Refusal> {
    if agent.steps.get(request.step).is_some() {
        return Err(failure(FailureKind::Exists, format!("step {}", request.step), None).into());
    }
    let name = request.argv.first().ok_or_else(|| bad("no command"))?;
    let user = Users::read().user(request.user.as_deref().unwrap_or("0"))?;
    let mut argv = request.argv.iter().map(|arg| c_string(arg)).collect::<Outcome<Vec<_>>>()?;
    let (env, path) = environment(request, &user)?;
    let cwd = match &request.cwd {
        Some(cwd) => c_string(cwd)?,
        None if std::path::Path::new(as_os(&user.home)).is_dir() => c_string(&user.home)?,
        None => c"/".to_owned(),
    };
    let mut programs = candidates(name, &path)?;

    let (theirs, input, sources) = stdio(request, &user)?;
    let start = |programs: &[CString], argv: &[CString]| {
        Spawn {
            programs,
            argv,
            env: &env,
            cwd: &cwd,
            uid: user.uid,
            gid: user.gid,
            groups: &user.groups,
            stdio: theirs.borrow(),
            terminal: if request.pty.is_some() { Terminal::Stdin } else { Terminal::Absent },
            oom_score_adj: agent.oom_protected.then_some(c"0"),
            descriptors: Some(agent.descriptors),
            umask: UMASK,
        }
        .start()
    };
    let mut started = start(&programs, &argv);
    if let Err(SpawnError { stage: Stage::Exec, errno: libc::ENOEXEC, program }) = started
        && !is_binary(&inside(&cwd, &programs[program]))
    {
        let script = programs[program].clone();
        argv.splice(..1, [SHELL.to_owned(), script]);
        programs = vec![SHELL.to_owned()];
        started = start(&programs, &argv);
    }
    match started {
        Ok(pid) => Ok(Started { pid, input, sources }),
        Err(error) => Err(explain(error, name, &cwd, &programs)),
    }
}

fn c_string(bytes: &[u8]) -> Outcome<CString> {
    CString::new(bytes).map_err(|_| bad("a NUL byte in a command, a directory or an environment"))
}

fn as_os(path: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(path)
}

/// The environment, and the `PATH` in it.
fn environment(request: &Exec, user: &User) -> Outcome<(Vec<CString>, Vec<u8>)> {
    let term = request.pty.as_ref().map(|pty| pty.term.as_deref().unwrap_or(TERM_DEFAULT));
    let own: [(&[u8], Option<&[u8]>); 6] = [
        (b"PATH", Some(PATH_DEFAULT)),
        (b"HOME", Some(&user.home)),
        (b"USER", Some(user.name.as_bytes())),
        (b"LOGNAME", Some(user.name.as_bytes())),
        (b"SHELL", Some(&user.shell)),
        (b"TERM", term.map(str::as_bytes)),
    ];
    let mut lines: Vec<Vec<u8>> = Vec::with_capacity(own.len() + request.env.len());
    for (key, value) in own {
        if let Some(value) = value {
            lines.push([key, b"=", value].concat());
        }
    }
    let key = |line: &[u8]| line.iter().position(|&b| b == b'=').filter(|&at| at > 0);
    for line in &request.env {
        let Some(end) = key(line) else { return Err(bad("an environment entry without `=` or without a name")) };
        match lines.iter_mut().find(|there| there.starts_with(&line[..=end])) {
            Some(there) => *there = line.to_vec(),
            None => lines.push(line.to_vec()),
        }
    }
    let path = lines.iter().find_map(|line| line.strip_prefix(b"PATH=")).unwrap_or_default().to_vec();
    Ok((lines.iter().map(|line| c_string(line)).collect::<Outcome<_>>()?, path))
}

/// Where the command may lie: itself if it has a slash, else in each directory of `path`.
fn candidates(name: &[u8], path: &[u8]) -> Outcome<Vec<CString>> {
    if name.contains(&b'/') {
        return Ok(vec![c_string(name)?]);
    }
    if name.is_empty() {
        return Ok(Vec::new());
    }
    path.split(|&b| b == b':')
        .map(|directory| {
            let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
            c_string(&[directory, b"/", name].concat())
        })
        .collect()
}

/// A path as the command would see it from its directory.
fn inside(cwd: &CString, path: &CString) -> Vec<u8> {
    match path.as_bytes() {
        absolute if absolute.starts_with(b"/") => absolute.to_vec(),
        relative => [cwd.as_bytes(), b"/", relative].concat(),
    }
}

/// Whether a file that the kernel cannot run is no script either: bash looks for a NUL in the first line.
fn is_binary(path: &[u8]) -> bool {
    let mut start = [0; 80];
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let read = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut start))
        .unwrap_or(0);
    start[..read].iter().take_while(|&&b| b != b'\n').any(|&b| b == 0)
}

/// What a refusal of the kernel's means, in bash's words where it is about the command.
fn explain(error: SpawnError, name: &[u8], cwd: &CString, programs: &[CString]) -> Refusal {
    let errno = Errno::from_raw_os_error(error.errno);
    let nobody = |about: &str| failure(FailureKind::NoProcesses, about, Some(error.errno)).into();
    match error.stage {
        Stage::Clone => return nobody("process"),
        Stage::Exec if errno == Errno::AGAIN || errno == Errno::NOMEM => return nobody("process"),
        Stage::Cwd => {
            let cwd = cwd.to_string_lossy();
            return failure(FailureKind::NoSuchCwd, cwd, Some(error.errno)).into();
        }
        Stage::User => return failure(FailureKind::NoSuchUser, "user", Some(error.errno)).into(),
        Stage::Descriptors | Stage::Terminal => return from_errno(errno, b"terminal").into(),
        Stage::Exec => {}
    }
    let is = |wanted: fn(&std::fs::Metadata) -> bool| {
        programs.iter().any(|path| std::fs::metadata(as_os(&inside(cwd, path))).is_ok_and(|there| wanted(&there)))
    };
    let searched = !name.contains(&b'/');
    let (code, reason) = match errno {
        Errno::NOENT if is(|there| there.is_file()) => (127, "cannot execute: required file not found".to_owned()),
        Errno::NOENT | Errno::NOTDIR if searched => (127, "command not found".to_owned()),
        Errno::NOENT => (127, words(error.errno)),
        Errno::ACCESS if searched && !is(|there| there.is_file()) => (127, "command not found".to_owned()),
        Errno::ACCESS if !searched && is(|there| there.is_dir()) => (126, words(libc::EISDIR)),
        Errno::NOEXEC => (126, "cannot execute binary file: Exec format error".to_owned()),
        _ => (126, words(error.errno)),
    };
    Refusal::NotStarted { code, message: format!("{}: {reason}", String::from_utf8_lossy(name)) }
}

/// The command's ends of its descriptors; `None` is the agent's own /dev/null, by the launcher's doing.
struct Theirs([Option<Rc<OwnedFd>>; 3], std::io::Stdin);

impl Theirs {
    fn borrow(&self) -> [BorrowedFd<'_>; 3] {
        [&self.0[0], &self.0[1], &self.0[2]].map(|fd| fd.as_ref().map_or(self.1.as_fd(), |fd| fd.as_fd()))
    }
}

/// Makes pipes or a terminal: the command's ends, what its input goes into, what its output comes from.
fn stdio(request: &Exec, user: &User) -> Outcome<(Theirs, Option<InputSide>, [Option<Source>; 2])> {
    if let Some(pty) = &request.pty {
        let pty = Pty::open(pty.rows, pty.cols, user.uid)
            .map_err(|error| from_errno(Errno::from_raw_os_error(error.errno), b"terminal"))?;
        let slave = Some(Rc::new(pty.slave));
        let fd = ours(pty.master, Interest::READABLE | Interest::WRITABLE)?;
        let theirs = Theirs([slave.clone(), slave.clone(), slave], std::io::stdin());
        return Ok((theirs, Some(InputSide::Terminal(fd.clone())), [Some(Source { fd, stream: Stream::Pty }), None]));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(at(b"pipe"));
    let mut theirs = [None, None, None];
    let mut input = None;
    if request.stdin {
        let (read, write) = pipe()?;
        theirs[0] = Some(Rc::new(read));
        input = Some(InputSide::Pipe(ours(write, Interest::WRITABLE)?));
    }
    let mut sources = [None, None];
    for (place, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
        let (read, write) = pipe()?;
        theirs[place + 1] = Some(Rc::new(write));
        sources[place] = Some(Source { fd: ours(read, Interest::READABLE)?, stream });
    }
    Ok((Theirs(theirs, std::io::stdin()), input, sources))
}

fn ours(fd: OwnedFd, interest: Interest) -> Outcome<Rc<AsyncFd<OwnedFd>>> {
    rustix::io::ioctl_fionbio(&fd, true).map_err(at(b"pipe"))?;
    #[expect(deprecated, reason = "its unsafe successor asks what an OwnedFd keeps: the descriptor stays its own")]
    AsyncFd::with_interest(fd, interest).map(Rc::new).map_err(|error| from_io(&error, b"epoll"))
}
