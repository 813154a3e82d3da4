//! A running step, and the connections that attend it.
//!
//! ```text
//! connection ── data, input ──► Step ──► standard input or terminal
//!            ◄── latest status ── watch ◄── `output` (pump) ◄── pipes
//! ```
//!
//! A connection sees the latest status and no queue, so one that does not read costs nothing. The
//! connection that started a step owns its standard input: when it closes, the input ends. Others
//! may write too, and leave it open.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use den_sys::spawn::{SIGNAL_MAX, kill};
use den_wire::agent::{End, FailureKind, Input, PROGRESS_INTERVAL_MS, Reply, SignalScope};
use den_wire::frame::message_bytes;
use den_wire::{FrameKind, read_frame, write_message};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::conn::{Conn, FrameReader};
use super::failure::{Outcome, bad, failure};

/// What a terminal takes for the end of input at the start of a line.
const END_OF_TRANSMISSION: u8 = 4;

/// The longest that a start is kept back.
const PATIENCE_MAX: Duration = Duration::from_millis(100);

/// The steps that run.
#[derive(Default)]
pub struct Steps {
    running: RefCell<HashMap<u64, Rc<Step>>>,
    /// Connections that attend one, so that a shutdown can wait for their last word.
    attended: Rc<Cell<usize>>,
}

impl Steps {
    /// The step of this number, if it runs.
    pub fn get(&self, number: u64) -> Option<Rc<Step>> {
        self.running.borrow().get(&number).cloned()
    }

    /// Their numbers, in order.
    pub fn numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.running.borrow().keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// Adds one that has been started.
    pub fn add(&self, number: u64, pid: u32, input: Option<InputSide>) -> Rc<Step> {
        let step = Rc::new(Step {
            number,
            pid,
            reaped: Cell::new(false),
            status: watch::Sender::new(Status::default()),
            input: RefCell::new(input),
            input_closed: Notify::new(),
            log: watch::Sender::new(LogTurn::Open),
            attended: self.attended.clone(),
        });
        self.running.borrow_mut().insert(number, step.clone());
        step
    }

    /// Has all of them let go of their logs.
    pub fn let_go(&self) {
        for step in self.running.borrow().values() {
            step.log.send_replace(LogTurn::LetGo);
        }
    }

    /// Whether all of them have.
    pub fn have_let_go(&self) -> bool {
        self.running.borrow().values().all(|step| matches!(*step.log.borrow(), LogTurn::Gone))
    }

    /// Ends one: tells its connections and forgets it.
    pub fn end(&self, step: &Step, last: Status) {
        self.running.borrow_mut().remove(&step.number);
        step.close_input();
        step.status.send_replace(last);
    }

    /// Whether no step runs, and no connection has yet to hear of an end.
    pub fn all_told(&self) -> bool {
        self.running.borrow().is_empty() && self.attended.get() == 0
    }
}

/// Where a step is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Length of the log.
    pub log_bytes: u64,
    /// Bytes of output.
    pub output_bytes: u64,
    /// How it ended, if it has.
    pub end: Option<End>,
}

impl Status {
    /// What is said of it.
    fn reply(&self) -> Reply {
        let Self { log_bytes, output_bytes, ref end } = *self;
        match end.clone() {
            Some(end) => Reply::Ended { end, log_bytes, output_bytes },
            None => Reply::Progress { log_bytes, output_bytes },
        }
    }
}

/// Whose turn it is with a step's log.
pub enum LogTurn {
    /// The pump writes it.
    Open,
    /// The pump is to let go of it.
    LetGo,
    /// It has: output waits in the pipes.
    Gone,
    /// The pump is to go on in this file.
    GoOn(Option<OwnedFd>),
}

/// Our side of a standard input.
#[derive(Clone)]
pub enum InputSide {
    /// A pipe, which can end.
    Pipe(Rc<AsyncFd<OwnedFd>>),
    /// A terminal, which has a size, and whose end is a character.
    Terminal(Rc<AsyncFd<OwnedFd>>),
}

/// A running step.
pub struct Step {
    number: u64,
    /// Its first process, which leads its session and group.
    pub pid: u32,
    /// Whether that process has been reaped.
    pub reaped: Cell<bool>,
    /// For its connections.
    pub status: watch::Sender<Status>,
    /// Between the pump and an agent that rests.
    pub log: watch::Sender<LogTurn>,
    input: RefCell<Option<InputSide>>,
    input_closed: Notify,
    attended: Rc<Cell<usize>>,
}

impl Step {
    /// Gives it its log again. `false` where it has one.
    pub fn relog(&self, file: OwnedFd) -> bool {
        self.log.send_if_modified(|turn| {
            *turn = match turn {
                LogTurn::Gone => LogTurn::GoOn(Some(file)),
                // Told, and not done yet.
                LogTurn::LetGo => LogTurn::Open,
                LogTurn::Open | LogTurn::GoOn(_) => return false,
            };
            true
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32, scope: SignalScope) -> Outcome<()> {
        if !(1..=SIGNAL_MAX).contains(&signal) {
            return Err(bad(format!("signal {signal}")));
        }
        let gone = || failure(FailureKind::NoSuchStep, self.number.to_string(), None);
        let target = match scope {
            SignalScope::Group => -(self.pid as i32),
            // Its number may be another's by now.
            SignalScope::Process if self.reaped.get() => return Err(gone()),
            SignalScope::Process => self.pid as i32,
        };
        kill(target, signal).map_err(|_| gone())
    }

    fn input(&self) -> Option<InputSide> {
        self.input.borrow().clone()
    }

    /// Closes the standard input, also under those who are writing to it.
    fn close_input(&self) {
        self.input.borrow_mut().take();
        self.input_closed.notify_waiters();
    }

    /// Writes input, as fast as the command takes it; drops it once nobody can read it.
    async fn write_input(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(InputSide::Pipe(fd) | InputSide::Terminal(fd)) = self.input() else { return };
            tokio::select! {
                () = self.input_closed.notified() => {}
                ready = fd.writable() => {
                    let Ok(mut ready) = ready else { return };
                    match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                        Ok(Ok(written)) => bytes = &bytes[written..],
                        Ok(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Ok(Err(_)) => return self.close_input(),
                        Err(_would_block) => {}
                    }
                }
            }
        }
    }

    /// What a connection sends, until it closes or sends what is no frame.
    async fn feed(&self, frames: &mut FrameReader) {
        while let Ok(frame) = read_frame(frames).await {
            match frame.kind {
                FrameKind::Data => self.write_input(&frame.payload).await,
                FrameKind::End => match self.input() {
                    Some(InputSide::Terminal(_)) => self.write_input(&[END_OF_TRANSMISSION]).await,
                    _ => self.close_input(),
                },
                FrameKind::Message => match frame.message() {
                    Ok(Input::Resize { rows, cols }) => {
                        if let Some(InputSide::Terminal(fd)) = self.input() {
                            let _ = den_sys::pty::resize(fd.get_ref().as_fd(), rows, cols);
                        }
                    }
                    // One that came too late is no error: the end is on its way.
                    Ok(Input::Signal { signal, scope }) => drop(self.signal(signal, scope)),
                    // From a newer host.
                    Err(_) => {}
                },
            }
        }
    }

    /// Tells a connection how the step goes, until its end. Where that comes within `patience`, all at once.
    async fn tell(&self, out: &mut OwnedWriteHalf, patience: Option<Duration>) -> std::io::Result<()> {
        let mut status = self.status.subscribe();
        let mut told = Status::default();
        let mut words = message_bytes(&Reply::Started { pid: self.pid });
        if let Some(patience) = patience {
            let ended = status.wait_for(|status| status.end.is_some());
            if let Ok(Ok(ended)) = timeout(patience.min(PATIENCE_MAX), ended).await {
                words.extend(message_bytes(&ended.reply()));
                drop(ended);
                return out.write_all(&words).await;
            }
        }
        out.write_all(&words).await?;
        loop {
            let now = status.borrow_and_update().clone();
            if now.end.is_some() {
                return write_message(out, &now.reply()).await;
            }
            if now != told {
                let next = Instant::now() + Duration::from_millis(PROGRESS_INTERVAL_MS);
                write_message(out, &now.reply()).await?;
                told = now;
                tokio::select! {
                    () = sleep_until(next) => {}
                    _ = status.wait_for(|status| status.end.is_some()) => continue,
                }
            }
            if *status.borrow() == told {
                // The sender is in `self`, so this does not fail.
                let _ = status.changed().await;
            }
        }
    }
}

/// Whether a connection's end is the end of the standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// Yes: it started the step.
    Owned,
    /// No: it joined.
    Shared,
}

/// Serves a connection until the step or the connection ends.
pub async fn attend(step: &Step, conn: Conn, stdin: Stdin, patience: Option<Duration>) {
    struct Attending<'a>(&'a Cell<usize>);
    impl Drop for Attending<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }
    step.attended.set(step.attended.get() + 1);
    let _attending = Attending(&step.attended);

    let (mut frames, mut out) = conn.split();
    let close = || {
        // A terminal stays for those who come back to it.
        if stdin == Stdin::Owned && matches!(step.input(), Some(InputSide::Pipe(_))) {
            step.close_input();
        }
    };
    {
        let tell = step.tell(&mut out, patience);
        tokio::pin!(tell);
        let told = tokio::select! {
            _ = &mut tell => true,
            () = step.feed(&mut frames) => false,
        };
        close();
        if !told {
            let _ = tell.await;
        }
    }
    // All was said, and both ways are closed with the connection.
    out.forget();
}
