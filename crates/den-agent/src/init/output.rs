//! From a step's pipes into its log, until its end.
//!
//! ```text
//! stdout ┐                               ┌ first process reaped, pipes at their end  ─► ended
//! stderr ┴► one record for what is at hand ┤ first process reaped, EXIT_DRAIN gone by  ─► ended
//! pty    ─►                              └ time over: SIGTERM, TIMEOUT_GRACE, SIGKILL
//! ```
//!
//! A step ends with its first process. Processes that it left behind may hold its pipes; what they
//! write within [`EXIT_DRAIN`] is in the log. After that their output is read and dropped, so that
//! a server started in the background does not die of SIGPIPE. Of a step that is whole (a service) none is
//! left behind: they are ended as when its time is over.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use den_wire::agent::End;
use den_wire::log::{EndRecord, RECORD_BYTES_MAX, RECORD_HEAD_BYTES, Stream};
use rustix::process::WaitStatus;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::log::LogWriter;
use super::step::{LogTurn, Status, Step};
use super::{Agent, session};

/// How long after the end of its first process a step waits for pipes that others hold.
pub const EXIT_DRAIN: Duration = Duration::from_millis(100);

/// Between SIGTERM and SIGKILL when a step's time is over.
pub const TIMEOUT_GRACE: Duration = Duration::from_secs(2);

/// How often a step whose time is over looks whether its session is gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long killed processes may take to go before the step ends without them.
const KILLED_MAX: Duration = Duration::from_secs(2);

/// A step's buffer at first, in bytes of payload; a command that fills it gets [`RECORD_BYTES_MAX`].
const FIRST_BUFFER_BYTES: usize = 8 << 10;

/// What a pipe holds once its command has shown that it writes much, in bytes.
const PIPE_BYTES: usize = 1 << 20;

/// How many full buffers are taken before others get their turn.
const TURNS_MAX: u32 = 4;

/// For ever, to a timer.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One of a step's outputs.
pub struct Source {
    /// Our end; does not block.
    pub fd: Rc<AsyncFd<OwnedFd>>,
    /// What it is.
    pub stream: Stream,
}

/// What ends a step, other than its first process.
pub struct Until {
    /// Its time.
    pub timeout: Option<Duration>,
    /// Whether those that its first process leaves behind are ended with it.
    pub whole: bool,
}

/// Which timer runs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The step's own time, if it has one.
    Running,
    /// SIGTERM has been sent; SIGKILL follows at this time.
    Ending(Instant),
    /// SIGKILL has been sent; from this time on the first process alone is waited for.
    Killed(Instant),
    /// The first process has ended: pipes are drained.
    Draining,
}

enum Event {
    /// The agent goes to rest, or goes on.
    Log,
    Readable(usize),
    Reaped(Option<WaitStatus>),
    Alarm,
}

/// Carries a started step to its end.
pub async fn pump(
    agent: Rc<Agent>,
    step: Rc<Step>,
    log: LogWriter,
    mut sources: [Option<Source>; 2],
    mut ended: oneshot::Receiver<WaitStatus>,
    until: Until,
) {
    let Until { timeout, whole } = until;
    let mut sink = Sink { log, buffer: vec![0; RECORD_HEAD_BYTES + FIRST_BUFFER_BYTES] };
    let mut end = None;
    let mut phase = Phase::Running;
    let mut timed_out = false;
    let mut turns = 0;
    // At their end; to close them can wait until the end of the step was told.
    let mut spent = Vec::new();
    let alarm = sleep_until(Instant::now() + timeout.unwrap_or(NEVER).min(NEVER));
    tokio::pin!(alarm);
    let mut turn = step.log.subscribe();
    let mut open = true;

    while phase != Phase::Draining || !open || sources.iter().any(Option::is_some) {
        let event = tokio::select! {
            () = readable(&sources[0]), if open => Event::Readable(0),
            () = readable(&sources[1]), if open => Event::Readable(1),
            _ = turn.changed() => Event::Log,
            status = &mut ended, if end.is_none() => Event::Reaped(status.ok()),
            () = &mut alarm => Event::Alarm,
        };
        match event {
            Event::Log => {
                open = sink.log_turn(&step);
                turn.mark_unchanged();
                if open && phase == Phase::Draining {
                    alarm.as_mut().reset(Instant::now() + EXIT_DRAIN);
                }
            }
            Event::Readable(which) => {
                let Some(source) = &sources[which] else { continue };
                let took = sink.take(source);
                let (log_bytes, output_bytes) = (sink.log.log_bytes(), sink.log.output_bytes());
                step.status.send_if_modified(|status| {
                    let more = status.log_bytes != log_bytes;
                    *status = Status { log_bytes, output_bytes, end: None };
                    more
                });
                match took {
                    Took::End => {
                        spent.extend(sources[which].take());
                        // Its last process closed them on its way out: often there is no need to wait for a signal.
                        if sources.iter().all(Option::is_none) && end.is_none() {
                            agent.children.reap();
                        }
                    }
                    Took::Dry => turns = 0,
                    Took::Full => turns += 1,
                }
                if turns >= TURNS_MAX {
                    turns = 0;
                    tokio::task::yield_now().await;
                }
            }
            Event::Reaped(status) => {
                step.reaped.set(true);
                end = Some(match status {
                    Some(status) => match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => EndRecord::Exited(code),
                        (None, signal) => EndRecord::Signaled(signal.unwrap_or(0)),
                    },
                    // Somebody else reaped it, which nobody inside can; said rather than waited for.
                    None => EndRecord::Signaled(0),
                });
                if phase == Phase::Running {
                    let now = Instant::now();
                    if whole && !session::members(step.pid).is_empty() {
                        session::signal(step.pid, libc::SIGTERM);
                        session::signal(step.pid, libc::SIGCONT);
                        phase = Phase::Ending(now + TIMEOUT_GRACE);
                        alarm.as_mut().reset(now + LOOK_INTERVAL);
                    } else {
                        phase = Phase::Draining;
                        alarm.as_mut().reset(now + EXIT_DRAIN);
                    }
                }
            }
            Event::Alarm => {
                let now = Instant::now();
                let gone = |phase| phase != Phase::Running && end.is_some() && session::members(step.pid).is_empty();
                let mut next = now + LOOK_INTERVAL;
                phase = match phase {
                    Phase::Running if timeout.is_none() => Phase::Running,
                    Phase::Running => {
                        timed_out = true;
                        session::signal(step.pid, libc::SIGTERM);
                        session::signal(step.pid, libc::SIGCONT);
                        Phase::Ending(now + TIMEOUT_GRACE)
                    }
                    Phase::Draining if open => break,
                    Phase::Draining => Phase::Draining,
                    ending if gone(ending) => Phase::Draining,
                    Phase::Ending(at) if now < at => Phase::Ending(at),
                    Phase::Ending(_) => {
                        session::signal(step.pid, libc::SIGKILL);
                        Phase::Killed(now + KILLED_MAX)
                    }
                    Phase::Killed(until) if now >= until && end.is_some() => Phase::Draining,
                    Phase::Killed(until) => {
                        session::signal(step.pid, libc::SIGKILL);
                        Phase::Killed(until)
                    }
                };
                if phase == Phase::Draining {
                    // Without its log there is nothing to be done but to wait for it.
                    next = now + if open { EXIT_DRAIN } else { NEVER };
                } else if phase == Phase::Running {
                    next = now + NEVER;
                }
                alarm.as_mut().reset(next);
            }
        }
    }

    let end = if timed_out { EndRecord::TimedOut } else { end.unwrap_or(EndRecord::Signaled(0)) };
    sink.log.end(end);
    let (log_bytes, output_bytes) = (sink.log.log_bytes(), sink.log.output_bytes());
    let end = match end {
        EndRecord::Exited(code) => End::Exited { code },
        EndRecord::Signaled(signal) => End::Signaled { signal },
        EndRecord::TimedOut => End::TimedOut,
        EndRecord::NotStarted(code) => End::NotStarted { code, message: String::new() },
    };
    agent.steps.end(&step, Status { log_bytes, output_bytes, end: Some(end) });
    // Who waits for it is told before anything is cleared away.
    tokio::task::yield_now().await;
    drop((sink, spent, step));
    for source in sources.into_iter().flatten() {
        if source.stream != Stream::Pty {
            tokio::task::spawn_local(discard(source));
        }
    }
}

async fn readable(source: &Option<Source>) {
    match source {
        Some(source) => drop(source.fd.readable().await),
        None => std::future::pending().await,
    }
}

/// Reads what the processes that a step left behind write, until they end.
async fn discard(source: Source) {
    loop {
        readable_once(&source).await;
        let mut waste = [0; 16 << 10];
        match source.fd.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut waste[..])?)) {
            Ok(0) => return,
            Ok(_) => tokio::task::yield_now().await,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
    }
}

async fn readable_once(source: &Source) {
    drop(source.fd.readable().await);
}

/// How a take ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Took {
    /// Nothing more is at hand.
    Dry,
    /// The buffer was filled.
    Full,
    /// Nothing more will come.
    End,
}

struct Sink {
    log: LogWriter,
    /// Room for a record's head, then for its payload.
    buffer: Vec<u8>,
}

impl Sink {
    /// Does what it is told about the log; whether it may be written.
    fn log_turn(&mut self, step: &Step) -> bool {
        let mut open = true;
        step.log.send_modify(|turn| match turn {
            LogTurn::LetGo => {
                self.log.let_go();
                *turn = LogTurn::Gone;
                open = false;
            }
            LogTurn::GoOn(file) => {
                if let Some(file) = file.take() {
                    self.log.go_on(file);
                }
                *turn = LogTurn::Open;
            }
            LogTurn::Gone => open = false,
            LogTurn::Open => {}
        });
        open
    }

    /// Takes what is at hand, up to a buffer full, into one record.
    fn take(&mut self, source: &Source) -> Took {
        let mut filled = RECORD_HEAD_BYTES;
        let took = loop {
            if filled == self.buffer.len() {
                break Took::Full;
            }
            let room = &mut self.buffer[filled..];
            match source.fd.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, room)?)) {
                Ok(0) => break Took::End,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Took::Dry,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A terminal whose other side is closed says EIO.
                Err(_) => break Took::End,
            }
        };
        if filled > RECORD_HEAD_BYTES {
            self.log.record(source.stream, &mut self.buffer[..filled]);
        }
        if took == Took::Full && self.buffer.len() < RECORD_HEAD_BYTES + RECORD_BYTES_MAX {
            self.buffer = vec![0; RECORD_HEAD_BYTES + RECORD_BYTES_MAX];
            // Refused beyond the user's share of pipe memory; it goes slower then.
            let _ = rustix::pipe::fcntl_setpipe_size(source.fd.get_ref(), PIPE_BYTES);
        }
        took
    }
}
