//! A step's output on its way to where it is wanted, through a lost daemon and back.
//!
//! ```text
//! daemon ──frames──► Follow ──bytes──► Sink: standard output and error · memory · JSON lines
//!    ╳ lost             │
//!    └── found again ◄──┘ output?from=the next byte
//! ```
//!
//! Invariants:
//! - Every byte is written once: `next` counts what has been, and a frame that begins earlier loses
//!   its beginning.
//! - While a reader of standard output is slow, signals are still heard, and nothing is read ahead.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use base64::Engine;
use bytes::Bytes;
use den_api::{
    Client, ClientError, ErrorBody, ExecResult, OutputFrame, SignalRequest, StepView,
    client::{OutputStream, SessionOutput},
    output::OutputKind,
    step::EXEC_OUTPUT_BYTES_MAX,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
};

use crate::{find::Global, report::Trouble, show};

/// How long a daemon that is gone is waited for.
pub const RECONNECT_MAX: Duration = Duration::from_secs(60);
/// Between two attempts to find it again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// After this long the wait is mentioned.
const RECONNECT_SILENT: Duration = Duration::from_secs(1);
/// What a pipe takes at once if it takes anything: `PIPE_BUF`, pipe(7).
const WRITE_AT_ONCE: usize = 4096;

/// Where a step's output comes from.
pub enum Source {
    /// Only to be read.
    Stream(OutputStream),
    /// With a way back.
    Session(SessionOutput),
}

impl Source {
    async fn next(&mut self) -> Result<Option<OutputFrame>, ClientError> {
        match self {
            Self::Stream(stream) => stream.next().await,
            Self::Session(session) => session.next().await,
        }
    }
}

/// Where a step's output goes.
pub enum Sink {
    /// To standard output and standard error.
    Standard,
    /// Kept, for one JSON value at the end.
    Kept {
        /// Standard output, and a terminal's.
        stdout: Vec<u8>,
        /// Standard error.
        stderr: Vec<u8>,
        /// Whether there was more.
        truncated: bool,
    },
    /// A JSON value per frame.
    Lines,
}

impl Sink {
    /// Keeps it.
    pub fn kept() -> Self {
        Self::Kept { stdout: Vec::new(), stderr: Vec::new(), truncated: false }
    }

    /// The one JSON value of a kept output.
    pub fn result(self, step: StepView) -> Option<ExecResult> {
        let Self::Kept { stdout, stderr, truncated } = self else { return None };
        let text = |bytes: Vec<u8>| match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => (String::new(), Some(base64::engine::general_purpose::STANDARD.encode(error.as_bytes()))),
        };
        let ((stdout, stdout_base64), (stderr, stderr_base64)) = (text(stdout), text(stderr));
        Some(ExecResult { step, stdout, stderr, stdout_base64, stderr_base64, truncated })
    }

    /// Takes bytes: at once, or on a thread while `Some` is returned.
    fn take(&mut self, frame: &OutputFrame) -> io::Result<Option<JoinHandle<io::Result<()>>>> {
        match self {
            Self::Standard if frame.kind == OutputKind::Stderr => write(io::stderr(), &frame.payload),
            Self::Standard => write(io::stdout(), &frame.payload),
            Self::Kept { stdout, stderr, truncated } => {
                let kept = if frame.kind == OutputKind::Stderr { stderr } else { stdout };
                let room = EXEC_OUTPUT_BYTES_MAX - kept.len();
                *truncated |= frame.payload.len() > room;
                kept.extend_from_slice(&frame.payload[..frame.payload.len().min(room)]);
                Ok(None)
            }
            Self::Lines => {
                let event = match frame.kind {
                    OutputKind::Stderr => "stderr",
                    OutputKind::Terminal => "terminal",
                    _ => "stdout",
                };
                let data = base64::engine::general_purpose::STANDARD.encode(&frame.payload);
                let line = json!({ "event": event, "offset": frame.offset, "data": data });
                write_all(&io::stdout(), format!("{line}\n").as_bytes()).map(|()| None)
            }
        }
    }
}

/// Writes a little at once where that cannot block, the rest on a thread.
fn write(out: impl AsFd + Send + 'static, bytes: &Bytes) -> io::Result<Option<JoinHandle<io::Result<()>>>> {
    if bytes.len() <= WRITE_AT_ONCE {
        let mut ready = [PollFd::new(&out, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut ready, Some(&now)).is_ok_and(|count| count > 0) {
            return write_all(&out, bytes).map(|()| None);
        }
    }
    let bytes = bytes.clone();
    Ok(Some(tokio::task::spawn_blocking(move || write_all(&out, &bytes))))
}

fn write_all(out: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(out, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Someone else who has the same terminal or pipe open made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(out, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How following a step ended.
pub enum Followed {
    /// The step has ended; its view says how.
    Ended(Box<StepView>),
    /// The stream ended before the step, as was asked (`follow` was false).
    Read,
    /// The user let go of it.
    Detached,
}

/// What Ctrl-C does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// The first one goes to the step as SIGINT, the second lets go of it.
    Forward,
    /// Lets go of it.
    Detach,
    /// Nothing: the terminal is raw and sends it as a byte.
    Byte,
}

/// Takes a new source after a reconnect: the session's way in, for a step with a terminal.
pub type Reopen<'a> = &'a mut dyn FnMut(den_api::client::SessionInput);

/// Follows one step.
pub struct Follow<'a> {
    /// Where the daemon is found again.
    pub global: &'a Global,
    /// The daemon as it is known now.
    pub client: Client,
    /// Which computer.
    pub name: &'a str,
    /// Which step, once that is known.
    pub step: Option<u64>,
    /// The offset of the next byte.
    pub next: u64,
    /// What Ctrl-C does.
    pub interrupt: Interrupt,
    /// Whether to go on when what there is has been read.
    pub follow: bool,
    /// Where it goes.
    pub sink: Sink,
    /// How long a lost daemon is waited for.
    pub patience: Duration,
    /// Whether it has standard input, which ends with the daemon unless it is a terminal's.
    pub input: bool,
}

/// Signals that end or interrupt the command.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From now on they no longer end the process.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the next one.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hang_up.recv() => 1,
        }
    }
}

/// What came first.
enum Next {
    Frame(Result<Option<OutputFrame>, ClientError>),
    Written(io::Result<()>),
    Signal(u8),
}

impl Follow<'_> {
    /// Follows `source` until the step ends, the user lets go, or the daemon stays away.
    pub async fn run(&mut self, mut source: Source, reopen: Reopen<'_>) -> Result<Followed, Trouble> {
        let mut signals = Signals::listen().map_err(|error| Trouble::io("cannot listen for signals", &error))?;
        let mut writing: Option<JoinHandle<io::Result<()>>> = None;
        let mut interrupts = 0;
        loop {
            let next = tokio::select! {
                biased;
                number = signals.next() => Next::Signal(number),
                written = async { writing.as_mut().expect("guarded").await }, if writing.is_some() => {
                    Next::Written(written.unwrap_or_else(|error| Err(io::Error::other(error))))
                }
                frame = source.next(), if writing.is_none() => Next::Frame(frame),
            };
            match next {
                Next::Written(written) => {
                    writing = None;
                    if let Err(error) = written {
                        return Err(self.unwritable(&error).await);
                    }
                }
                Next::Signal(2) => match self.interrupt {
                    Interrupt::Byte => {}
                    Interrupt::Forward if interrupts == 0 && self.step.is_some() => {
                        interrupts += 1;
                        self.send_signal("INT").await;
                    }
                    Interrupt::Forward | Interrupt::Detach => return Ok(Followed::Detached),
                },
                // The step goes on; only its reader ends. Returning puts the terminal back.
                Next::Signal(number) => return Err(Trouble::quiet(128 + number)),
                Next::Frame(Ok(Some(frame))) => match frame.kind {
                    OutputKind::Stdout | OutputKind::Stderr | OutputKind::Terminal => {
                        if let Some(frame) = self.unseen(frame) {
                            writing = match self.sink.take(&frame) {
                                Ok(writing) => writing,
                                Err(error) => return Err(self.unwritable(&error).await),
                            };
                        }
                    }
                    OutputKind::Cut => self.cut(&frame)?,
                    OutputKind::Started => self.started(&frame)?,
                    OutputKind::End => {
                        let step: StepView = understand(&frame.payload)?;
                        if matches!(self.sink, Sink::Lines) {
                            show::json_line(&json!({ "event": "end", "step": step }))?;
                        }
                        return Ok(Followed::Ended(Box::new(step)));
                    }
                    OutputKind::Error => {
                        let ErrorBody { error: detail } = understand(&frame.payload)?;
                        let error = ClientError::Refused { status: 0, detail };
                        if !is_passing(&error) {
                            return Err(error.into());
                        }
                        source = self.find_again(error, reopen).await?;
                    }
                },
                Next::Frame(Ok(None)) if !self.follow => return Ok(Followed::Read),
                Next::Frame(Ok(None)) => {
                    let source_error = io::Error::from(io::ErrorKind::UnexpectedEof).into();
                    let lost = ClientError::Broken { url: self.client.url().to_owned(), source: source_error };
                    source = self.find_again(lost, reopen).await?;
                }
                Next::Frame(Err(error)) if error.is_lost() => source = self.find_again(error, reopen).await?,
                Next::Frame(Err(error)) => return Err(error.into()),
            }
        }
    }

    /// What of a frame has not been written yet; counts it as written.
    fn unseen(&mut self, mut frame: OutputFrame) -> Option<OutputFrame> {
        let end = frame.offset + frame.payload.len() as u64;
        if end <= self.next {
            return None;
        }
        let seen = self.next.saturating_sub(frame.offset);
        frame.payload = frame.payload.slice(seen as usize..);
        frame.offset += seen;
        self.next = end;
        Some(frame)
    }

    fn cut(&mut self, frame: &OutputFrame) -> Result<(), Trouble> {
        let gone = frame.payload.as_ref().try_into().map(u64::from_le_bytes).unwrap_or(0);
        let end = frame.offset.saturating_add(gone);
        if end <= self.next {
            return Ok(());
        }
        let offset = self.next.max(frame.offset);
        self.next = end;
        match &mut self.sink {
            Sink::Kept { truncated, .. } => *truncated = true,
            Sink::Lines => show::json_line(&json!({ "event": "cut", "offset": offset, "bytes": end - offset }))?,
            Sink::Standard => eprintln!("den: {} bytes of output from byte {offset} are gone", end - offset),
        }
        Ok(())
    }

    fn started(&mut self, frame: &OutputFrame) -> Result<(), Trouble> {
        let step: StepView = understand(&frame.payload)?;
        if self.step.replace(step.number).is_none() && matches!(self.sink, Sink::Lines) {
            show::json_line(&json!({ "event": "started", "step": step }))?;
        }
        Ok(())
    }

    /// The reader of standard output is gone, or the disk below it full. What the step prints goes
    /// nowhere from here on; as in a shell's pipe it is told so by SIGPIPE.
    async fn unwritable(&self, error: &io::Error) -> Trouble {
        if error.kind() == io::ErrorKind::BrokenPipe && self.interrupt != Interrupt::Detach {
            self.send_signal("PIPE").await;
        }
        Trouble::io("standard output", error)
    }

    async fn send_signal(&self, signal: &str) {
        if let Some(step) = self.step {
            let signal = SignalRequest { signal: signal.to_owned(), process_only: false };
            // The step may have ended in between; then there is nobody to signal.
            let _ = self.client.signal(self.name, step, &signal).await;
        }
    }

    /// Waits for a daemon that is gone, and goes on at the next byte.
    async fn find_again(&mut self, lost: ClientError, reopen: Reopen<'_>) -> Result<Source, Trouble> {
        let Some(step) = self.step else {
            return Err(Trouble::from(lost)
                .hint(format_args!("the command may have begun nevertheless; look with: den log {}", self.name)));
        };
        let begun = Instant::now();
        let mut mentioned = false;
        loop {
            let error = match self.open(step, reopen).await {
                Ok(source) => {
                    if std::mem::take(&mut self.input) && self.interrupt != Interrupt::Byte {
                        eprintln!("den: the daemon was gone for a moment; standard input ended there");
                    }
                    return Ok(source);
                }
                Err(error) if is_passing(&error) => error,
                Err(error) => return Err(error.into()),
            };
            if begun.elapsed() >= self.patience {
                return Err(Trouble::from(error).hint(format_args!(
                    "the step goes on without its reader; once the daemon is back: den attach {} {step} --from {}",
                    self.name, self.next
                )));
            }
            if !mentioned && begun.elapsed() >= RECONNECT_SILENT {
                mentioned = true;
                if io::stderr().is_terminal() {
                    eprint!("den: the daemon is gone; waiting for it\r\n");
                }
            }
            tokio::time::sleep(RECONNECT_INTERVAL).await;
        }
    }

    async fn open(&mut self, step: u64, reopen: Reopen<'_>) -> Result<Source, ClientError> {
        // Found anew each time: a daemon that picks its port picks another one.
        self.client = self.global.client()?;
        if self.interrupt == Interrupt::Byte {
            match self.client.attach(self.name, step, self.next).await {
                Ok(session) => {
                    reopen(session.input);
                    return Ok(Source::Session(session.output));
                }
                // It ended meanwhile; the rest of its output can be read all the same.
                Err(error) if error.code() == Some("step_ended") => {}
                Err(error) => return Err(error),
            }
        }
        self.client.output(self.name, step, self.next, self.follow).await.map(Source::Stream)
    }
}

/// Whether the same may work in a moment.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { detail, .. } => detail.retryable,
        // Between two daemons the file that names the first may be gone.
        error => error.is_lost() || matches!(error, ClientError::NotFound { .. }),
    }
}

fn understand<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, Trouble> {
    serde_json::from_slice(payload)
        .map_err(|error| Trouble::new(format_args!("the daemon's answer cannot be understood: {error}")))
}

/// Says how a step ended where its exit code alone would mislead; returns that code.
pub fn exit_code(step: &StepView) -> u8 {
    let Some(end) = &step.end else { return 0 };
    match end.how.as_str() {
        "timed_out" => eprintln!("error: step {} ran past its time and was ended", step.number),
        "lost" => eprintln!("error: the computer ended beneath step {}", step.number),
        _ => {}
    }
    end.exit_code.rem_euclid(256) as u8
}

/// Standard input, read on a thread of its own; the channel closes at its end.
pub fn stdin_chunks() -> tokio::sync::mpsc::Receiver<Bytes> {
    const CHUNK_BYTES: usize = 64 << 10;
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    std::thread::spawn(move || {
        use std::io::Read;
        // Not through `io::stdin`, whose buffer would have every byte copied twice.
        let Ok(mut stdin) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else { return };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match stdin.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) if sender.blocking_send(Bytes::copy_from_slice(&chunk[..count])).is_err() => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None);
                }
                Err(_) => return,
            }
        }
    });
    receiver
}
