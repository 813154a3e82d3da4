//! `process.Process`: commands of a sandbox are steps of its computer.
//!
//! ```text
//! Start ─► exec ─► step ──log──► OutputReader ─► start · data… · end
//! Connect ───────────────────────► the same, from the present on
//! ```
//!
//! A client that goes away stops nothing: the step goes on, and what it says lies in its log.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use den_api::{EndView, ExecRequest, PtySize, SignalRequest, StepView};
use den_control::{Execution, Follow, Input, Order, OutputItem, OutputReader, OutputStream};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    connect::{Call, Code, RpcError, Voice, end},
    cut, paths,
};
use crate::{
    E2b,
    book::{Phase, Sandbox},
    who,
};

/// How long a process that has ended can still be connected to.
const ENDED_KEPT: Duration = Duration::from_secs(30);

/// From how many on those that have ended are looked for.
const LOOK_FROM: usize = 64;

/// The most that is done to one process's input at once: each holds a message, and waits for those before it.
const INPUTS_MAX: usize = 8;

/// The most steps that a restarted daemon looks through for those that still run.
const ADOPTED_MAX: usize = 1000;

/// The longest tag of a process, in bytes.
const TAG_BYTES_MAX: usize = 1024;

/// The processes of a sandbox, by their numbers inside.
#[derive(Default)]
pub(crate) struct Table {
    all: Mutex<BTreeMap<u32, Arc<Process>>>,
    /// How many there are when those that have ended are looked for again.
    look_at: AtomicUsize,
    adopted: tokio::sync::OnceCell<()>,
    /// What its parent knows of those that go on in a fork, by their steps.
    known: Mutex<BTreeMap<u64, Known>>,
}

/// What nobody but who has started a process knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    config: Value,
    tag: Option<String>,
    kind: Kind,
}

/// One process.
struct Process {
    pid: u32,
    step: u64,
    config: Value,
    tag: Option<String>,
    kind: Kind,
    /// Once it was needed, of a process that has one; until it ends.
    input: tokio::sync::Mutex<Option<Input>>,
    inputs: Arc<Semaphore>,
    ended: Mutex<Option<(Instant, EndView)>>,
}

/// What its input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Silent,
    Stdin,
    Terminal,
}

#[derive(Deserialize)]
struct Config {
    cmd: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
}

#[derive(Deserialize)]
struct Size {
    #[serde(default)]
    cols: u32,
    #[serde(default)]
    rows: u32,
}

#[derive(Deserialize)]
struct Pty {
    size: Option<Size>,
}

#[derive(Deserialize)]
struct Start {
    process: Option<Config>,
    pty: Option<Pty>,
    tag: Option<String>,
    stdin: Option<bool>,
}

#[derive(Deserialize, Default)]
struct Selector {
    pid: Option<u32>,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Selected {
    process: Option<Selector>,
}

#[derive(Deserialize)]
struct Update {
    process: Option<Selector>,
    pty: Option<Pty>,
}

#[derive(Deserialize)]
struct Bytes64(#[serde(deserialize_with = "super::connect::bytes")] Vec<u8>);

#[derive(Deserialize)]
struct Words {
    stdin: Option<Bytes64>,
    pty: Option<Bytes64>,
}

#[derive(Deserialize)]
struct SendInput {
    process: Option<Selector>,
    input: Option<Words>,
}

#[derive(Deserialize)]
struct Signal {
    process: Option<Selector>,
    #[serde(default)]
    signal: Value,
}

#[derive(Deserialize)]
struct Streamed {
    start: Option<Selected>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    input: Option<Words>,
}

/// Answers a call.
pub(crate) async fn serve(e2b: &E2b, sandbox: &Arc<Sandbox>, method: &str, call: Call) -> Response {
    let voice = call.voice.clone();
    let done = match (adopt(e2b, sandbox).await, method) {
        (Err(error), _) => Err(error),
        (Ok(()), "Start") => return start(e2b, sandbox, call).await.unwrap_or_else(|error| voice.ended(Some(&error))),
        (Ok(()), "Connect") => {
            return connect(e2b, sandbox, call).await.unwrap_or_else(|error| voice.ended(Some(&error)));
        }
        (Ok(()), "StreamInput") => return stream_input(e2b, sandbox, call).await,
        (Ok(()), "List") => list(e2b, sandbox, call).await,
        (Ok(()), "Update") => update(e2b, sandbox, call).await,
        (Ok(()), "SendInput") => send_input(e2b, sandbox, call).await,
        (Ok(()), "SendSignal") => send_signal(e2b, sandbox, call).await,
        (Ok(()), _) => close_stdin(e2b, sandbox, call).await,
    };
    voice.answered(done)
}

async fn start(e2b: &E2b, sandbox: &Arc<Sandbox>, call: Call) -> Result<Response, RpcError> {
    let (user, timeout_ms) = (call.user(sandbox), call.timeout_ms());
    let (keepalive, voice) = (call.keepalive(), call.voice.clone());
    let Start { process, pty, tag, stdin } = call.message().await?;
    let Config { cmd, args, envs, cwd } = process.ok_or_else(|| RpcError::bad("process: missing"))?;
    if tag.as_ref().is_some_and(|tag| tag.len() > TAG_BYTES_MAX) {
        return Err(RpcError::bad(format!("tag: more than {TAG_BYTES_MAX} bytes")));
    }
    let kind = match (&pty, stdin) {
        (Some(_), _) => Kind::Terminal,
        // Left out it is wanted, for the oldest SDKs do not know it.
        (None, None | Some(true)) => Kind::Stdin,
        (None, Some(false)) => Kind::Silent,
    };
    let cwd = cwd.filter(|cwd| !cwd.is_empty()).map(|cwd| paths::of(sandbox, &cwd, &user));
    let cwd = cwd.or_else(|| Some(sandbox.facts().context.as_ref()?.workdir.clone()));
    let mut config = json!({ "cmd": cmd, "args": args, "envs": envs });
    if let Some(cwd) = &cwd {
        config["cwd"] = cwd.as_str().into();
    }
    let request = ExecRequest {
        argv: std::iter::once(cmd).chain(args).collect(),
        cwd: cwd.clone(),
        env: envs,
        user: Some(user.clone()),
        stream_stdin: kind == Kind::Stdin,
        pty: pty.map(|pty| terminal(pty.size)).transpose()?,
        timeout_ms,
        // It is told of its number at once.
        detach: true,
        ..ExecRequest::default()
    };
    let Execution { step, output, input, pid } =
        e2b.control().exec(&sandbox.id, request, &who()).await.map_err(|error| match error.code {
            "no_such_cwd" => RpcError::bad(format!("cwd '{}' does not exist", cwd.unwrap_or_default())),
            "no_such_user" => RpcError::new(Code::Unauthenticated, format!("invalid username: '{user}'")),
            _ => error.into(),
        })?;
    let input = (kind != Kind::Silent && pid.is_some()).then_some(input);
    let process = |pid| Arc::new(Process::new(pid, step.number, config, tag, kind, input));
    let process = match pid {
        Some(pid) => {
            let process = process(pid);
            sandbox.processes.add(e2b, &sandbox.id, Arc::clone(&process)).await;
            process
        }
        // One that could not be started has no number; it says why, and ends with 127 or 126.
        None => process(u32::try_from(step.number).unwrap_or(u32::MAX)),
    };
    Ok(events(sandbox, process, Some(output), keepalive, voice))
}

fn terminal(size: Option<Size>) -> Result<PtySize, RpcError> {
    let Size { cols, rows } = size.unwrap_or(Size { cols: 80, rows: 24 });
    let fits = |number: u32, usual: u16| match number {
        0 => Ok(usual),
        number => u16::try_from(number).map_err(|_| RpcError::bad("pty.size: above 65535")),
    };
    Ok(PtySize { rows: fits(rows, 24)?, cols: fits(cols, 80)?, term: None })
}

async fn connect(e2b: &E2b, sandbox: &Arc<Sandbox>, call: Call) -> Result<Response, RpcError> {
    let (keepalive, voice) = (call.keepalive(), call.voice.clone());
    let Selected { process } = call.message().await?;
    let process = sandbox.processes.find(process)?;
    process.look(e2b, &sandbox.id).await;
    let output = match process.has_ended() {
        Some(Freshness::Old) => return Err(not_found(&process)),
        Some(Freshness::Fresh) => None,
        None => {
            let view = e2b.control().step(&sandbox.id, process.step).await?;
            let from = view.output_bytes;
            Some(e2b.control().output(&sandbox.id, process.step, from, Follow::ToTheEnd, None).await?)
        }
    };
    Ok(events(sandbox, process, output, keepalive, voice))
}

/// Where a stream of events is.
struct Events {
    sandbox: Arc<Sandbox>,
    process: Arc<Process>,
    output: Option<OutputReader>,
    keepalive: Duration,
    voice: Voice,
    stage: Stage,
}

enum Stage {
    Start,
    Middle,
    Last(Option<RpcError>),
    Over,
}

/// The events of a process; of one that has ended already its end.
fn events(
    sandbox: &Arc<Sandbox>,
    process: Arc<Process>,
    output: Option<OutputReader>,
    keepalive: Duration,
    voice: Voice,
) -> Response {
    let of = voice.clone();
    let events = Events { sandbox: Arc::clone(sandbox), process, output, keepalive, voice: of, stage: Stage::Start };
    let stream = stream::unfold(events, |mut events| async move {
        let next = events.next().await?;
        Some((next, events))
    });
    voice.streamed(cut(Arc::clone(sandbox), stream))
}

impl Events {
    async fn next(&mut self) -> Option<Result<Bytes, axum::BoxError>> {
        loop {
            match &mut self.stage {
                Stage::Start => {
                    self.stage = Stage::Middle;
                    return Some(self.event(json!({ "start": { "pid": self.process.pid } })));
                }
                Stage::Middle => match &mut self.output {
                    None => {
                        let known = self.process.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
                        let Some((_, how)) = known else { return Some(Err("its end is not known".into())) };
                        if let Some(last) = self.ended(&how) {
                            return Some(last);
                        }
                    }
                    Some(output) => {
                        let next = tokio::time::timeout(self.keepalive, output.next()).await;
                        let item = match next {
                            Err(_) => return Some(self.event(json!({ "keepalive": {} }))),
                            Ok(Ok(item)) => item,
                            Ok(Err(error)) => {
                                self.stage = Stage::Last(Some(error.into()));
                                continue;
                            }
                        };
                        match item {
                            None => return Some(Err("the output ends without an end".into())),
                            Some(OutputItem::Cut { .. }) => {}
                            Some(OutputItem::Data { stream, bytes, .. }) => {
                                let name = match stream {
                                    OutputStream::Stdout => "stdout",
                                    OutputStream::Stderr => "stderr",
                                    OutputStream::Terminal => "pty",
                                };
                                return Some(self.event(json!({ "data": { name: STANDARD.encode(&bytes) } })));
                            }
                            Some(OutputItem::End(step)) => {
                                let Some(how) = &step.end else { return Some(Err("it has no end".into())) };
                                self.process.set_ended(how);
                                if let Some(last) = self.ended(how) {
                                    return Some(last);
                                }
                            }
                        }
                    }
                },
                Stage::Last(error) => {
                    let last = end(error.as_ref());
                    self.stage = Stage::Over;
                    return Some(Ok(last));
                }
                Stage::Over => return None,
            }
        }
    }

    /// What is said of an end before the end of the stream.
    fn ended(&mut self, how: &EndView) -> Option<Result<Bytes, axum::BoxError>> {
        // It ended with its sandbox: that is no end of its own.
        if how.how == "lost" || self.sandbox.phase() != Phase::Running {
            return Some(Err("the sandbox does not run any more".into()));
        }
        if how.how == "timed_out" {
            let error = RpcError::new(Code::DeadlineExceeded, "the command ran past its time, and was killed");
            self.stage = Stage::Last(Some(error));
            return None;
        }
        self.stage = Stage::Last(None);
        Some(self.event(json!({ "end": end_event(how) })))
    }

    fn event(&self, event: Value) -> Result<Bytes, axum::BoxError> {
        self.voice.envelope(json!({ "event": event }))
    }
}

/// How a process ended, in Go's words.
fn end_event(how: &EndView) -> Value {
    match how.how.as_str() {
        "signaled" => {
            let words = format!("signal: {}", signal_words(how.signal.unwrap_or(0)));
            json!({ "exitCode": -1, "status": words, "error": words })
        }
        _ if how.exit_code == 0 => json!({ "exited": true, "status": "exit status 0" }),
        _ => {
            let words = format!("exit status {}", how.exit_code);
            json!({ "exitCode": how.exit_code, "exited": true, "status": words, "error": words })
        }
    }
}

/// Source: `zerrors_linux_amd64.go` of Go's package syscall.
fn signal_words(signal: i32) -> String {
    let known = [
        (1, "hangup"),
        (2, "interrupt"),
        (3, "quit"),
        (4, "illegal instruction"),
        (5, "trace/breakpoint trap"),
        (6, "aborted"),
        (7, "bus error"),
        (8, "floating point exception"),
        (9, "killed"),
        (10, "user defined signal 1"),
        (11, "segmentation fault"),
        (12, "user defined signal 2"),
        (13, "broken pipe"),
        (14, "alarm clock"),
        (15, "terminated"),
    ];
    let words = known.iter().find(|(number, _)| *number == signal).map(|(_, words)| (*words).to_owned());
    words.unwrap_or_else(|| format!("signal {signal}"))
}

async fn list(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let _: Value = call.message().await?;
    sandbox.processes.forget_ended(e2b, &sandbox.id).await;
    let all = sandbox.processes.lock();
    let running = all.values().filter(|process| process.has_ended().is_none());
    let items: Vec<Value> = running
        .map(|process| {
            let mut item = json!({ "config": process.config, "pid": process.pid });
            if let Some(tag) = &process.tag {
                item["tag"] = tag.as_str().into();
            }
            item
        })
        .collect();
    Ok(json!({ "processes": items }))
}

async fn update(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let Update { process, pty } = call.message().await?;
    let process = sandbox.processes.find(process)?;
    let Some(Pty { size }) = pty else { return Ok(json!({})) };
    if process.kind != Kind::Terminal {
        return Err(RpcError::new(Code::FailedPrecondition, "the process has no terminal"));
    }
    let PtySize { rows, cols, .. } = terminal(size)?;
    process.with_input(e2b, &sandbox.id, Deed::Resize(rows, cols)).await?;
    Ok(json!({}))
}

async fn send_input(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let SendInput { process, input } = call.message().await?;
    let process = sandbox.processes.find(process)?;
    write(e2b, sandbox, &process, input).await?;
    Ok(json!({}))
}

async fn write(e2b: &E2b, sandbox: &Sandbox, process: &Arc<Process>, input: Option<Words>) -> Result<(), RpcError> {
    let bytes = match (input, process.kind) {
        (Some(Words { stdin: Some(Bytes64(bytes)), .. }), Kind::Stdin) => bytes,
        (Some(Words { pty: Some(Bytes64(bytes)), .. }), Kind::Terminal) => bytes,
        (Some(Words { stdin: Some(_), .. }), Kind::Silent) => {
            return Err(RpcError::new(Code::Internal, "error writing to stdin: stdin is not enabled or was closed"));
        }
        (Some(Words { stdin: Some(_), .. }), Kind::Terminal) => {
            return Err(RpcError::new(
                Code::Internal,
                "error writing to stdin: the process has a terminal; send `pty`",
            ));
        }
        (Some(Words { pty: Some(_), .. }), _) => {
            return Err(RpcError::new(Code::Internal, "error writing to tty: the process has no terminal"));
        }
        (None | Some(Words { stdin: None, pty: None }), _) => return Err(RpcError::bad("input: missing")),
    };
    process.with_input(e2b, &sandbox.id, Deed::Write(bytes)).await
}

async fn close_stdin(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let Selected { process } = call.message().await?;
    let process = sandbox.processes.find(process)?;
    match process.kind {
        Kind::Terminal => {
            Err(RpcError::new(Code::Unknown, "cannot close stdin of a terminal: send ^D (0x04) as its input"))
        }
        Kind::Silent => Err(RpcError::new(Code::Internal, "stdin is not enabled or was closed")),
        Kind::Stdin => {
            process.with_input(e2b, &sandbox.id, Deed::Close).await?;
            Ok(json!({}))
        }
    }
}

async fn send_signal(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let Signal { process, signal } = call.message().await?;
    let process = sandbox.processes.find(process)?;
    let signal = match (signal.as_str(), signal.as_i64()) {
        (Some("SIGNAL_SIGTERM"), _) | (_, Some(15)) => "TERM",
        (Some("SIGNAL_SIGKILL"), _) | (_, Some(9)) => "KILL",
        _ => return Err(RpcError::new(Code::Unimplemented, format!("invalid signal: {signal}"))),
    };
    let request = SignalRequest { signal: signal.to_owned(), process_only: true };
    e2b.control().signal(&sandbox.id, process.step, &request).await.map_err(|error| match error.code {
        "step_ended" => not_found(&process),
        _ => error.into(),
    })?;
    Ok(json!({}))
}

async fn stream_input(e2b: &E2b, sandbox: &Arc<Sandbox>, call: Call) -> Response {
    let voice = call.voice.clone();
    let mut messages = Box::pin(call.messages::<Streamed>());
    let mut process = None;
    while let Some(message) = messages.next().await {
        let done = match message {
            Err(error) => Err(error),
            Ok(Streamed { start: Some(Selected { process: wanted }), .. }) => {
                sandbox.processes.find(wanted).map(|found| process = Some(found))
            }
            Ok(Streamed { data: Some(Data { input }), .. }) => match &process {
                Some(process) => write(e2b, sandbox, process, input).await,
                None => Err(RpcError::bad("the first message is no start")),
            },
            // It only says that it is there.
            Ok(_) => Ok(()),
        };
        if let Err(error) = done {
            return voice.ended(Some(&error));
        }
    }
    match voice.envelope(json!({})) {
        Ok(answer) => voice.streamed(axum::body::Body::from([answer, end(None)].concat())),
        Err(error) => voice.ended(Some(&RpcError::new(Code::Internal, error.to_string()))),
    }
}

fn not_found(process: &Process) -> RpcError {
    RpcError::new(Code::NotFound, format!("process with pid {} not found", process.pid))
}

/// What is done with a process's input.
enum Deed {
    Write(Vec<u8>),
    Resize(u16, u16),
    Close,
}

/// How long ago a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freshness {
    Fresh,
    Old,
}

impl Process {
    fn new(pid: u32, step: u64, config: Value, tag: Option<String>, kind: Kind, input: Option<Input>) -> Self {
        let (input, inputs) = (tokio::sync::Mutex::new(input), Arc::new(Semaphore::new(INPUTS_MAX)));
        Self { pid, step, config, tag, kind, input, inputs, ended: Mutex::default() }
    }

    fn set_ended(&self, how: &EndView) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| (Instant::now(), how.clone()));
        // Whoever has it now drops it.
        if let Ok(mut input) = self.input.try_lock() {
            *input = None;
        }
    }

    fn has_ended(&self) -> Option<Freshness> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, _) = ended.as_ref()?;
        Some(if at.elapsed() < ENDED_KEPT { Freshness::Fresh } else { Freshness::Old })
    }

    /// Sees whether it has ended since.
    async fn look(&self, e2b: &E2b, sandbox: &str) {
        if self.has_ended().is_some() {
            return;
        }
        if let Ok(view) = e2b.control().step(sandbox, self.step).await
            && let Some(how) = &view.end
        {
            self.set_ended(how);
        }
    }

    /// Does something with its input, to the end though the client goes away: half a message would be misread.
    ///
    /// Errors: `resource_exhausted` while it takes nothing and [`INPUTS_MAX`] wait already.
    async fn with_input(self: &Arc<Self>, e2b: &E2b, sandbox: &str, deed: Deed) -> Result<(), RpcError> {
        let place = Arc::clone(&self.inputs).try_acquire_owned().map_err(|_| {
            let words = format!("process {} does not read: {INPUTS_MAX} inputs wait for it already", self.pid);
            RpcError::new(Code::ResourceExhausted, words)
        })?;
        let (process, e2b, sandbox) = (Arc::clone(self), e2b.clone(), sandbox.to_owned());
        let done = tokio::spawn(async move {
            let _place = place;
            let mut input = process.input.lock().await;
            if input.is_none() {
                *input = Some(e2b.control().attach(&sandbox, process.step).await?);
            }
            let Some(way) = input.as_mut() else { return Ok(()) };
            let done = match deed {
                Deed::Write(bytes) => way.stdin(&bytes).await,
                Deed::Resize(rows, cols) => way.resize(rows, cols).await,
                Deed::Close => way.close_stdin().await,
            };
            if process.has_ended().is_some() {
                *input = None;
            }
            done
        });
        let done = done.await.map_err(|error| RpcError::new(Code::Internal, error.to_string()))?;
        done.map_err(|error| match error.code {
            "step_ended" => not_found(self),
            _ => error.into(),
        })
    }
}

impl Table {
    /// Of a computer that is new: nothing runs in it.
    pub(crate) fn empty() -> Self {
        Self { adopted: tokio::sync::OnceCell::new_with(Some(())), ..Self::default() }
    }

    /// Of a computer in which commands go on, by what is known of them.
    pub(crate) fn of(known: BTreeMap<u64, Known>) -> Self {
        Self { known: Mutex::new(known), ..Self::default() }
    }

    /// What is known of them, by their steps: where they go on they do so under the same numbers.
    pub(crate) fn known(&self) -> BTreeMap<u64, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.extend(self.lock().values().map(|process| {
            let Process { config, tag, kind, .. } = &**process;
            (process.step, Known { config: config.clone(), tag: tag.clone(), kind: *kind })
        }));
        known
    }

    /// Adds one. Those that ended are looked for when there are twice as many as the last time left.
    async fn add(&self, e2b: &E2b, sandbox: &str, process: Arc<Process>) {
        let there = {
            let mut all = self.lock();
            all.insert(process.pid, process);
            all.len()
        };
        if there > self.look_at.load(Ordering::Relaxed).max(LOOK_FROM) {
            self.forget_ended(e2b, sandbox).await;
            self.look_at.store(2 * self.lock().len(), Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Process>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, selector: Option<Selector>) -> Result<Arc<Process>, RpcError> {
        match selector.unwrap_or_default() {
            Selector { pid: Some(pid), .. } => self
                .lock()
                .get(&pid)
                .cloned()
                .ok_or_else(|| RpcError::new(Code::NotFound, format!("process with pid {pid} not found"))),
            Selector { tag: Some(tag), .. } => {
                let all = self.lock();
                let mut tagged = all.values().filter(|process| process.tag.as_ref() == Some(&tag));
                tagged
                    .next_back()
                    .cloned()
                    .ok_or_else(|| RpcError::new(Code::NotFound, format!("process with tag {tag} not found")))
            }
            _ => Err(RpcError::bad("process: neither a pid nor a tag")),
        }
    }

    /// Forgets those that ended a while ago.
    async fn forget_ended(&self, e2b: &E2b, sandbox: &str) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        for process in all {
            process.look(e2b, sandbox).await;
        }
        self.lock().retain(|_, process| process.has_ended() != Some(Freshness::Old));
    }
}

/// Finds what was started by an earlier daemon, or in the parent of a fork, and still runs.
async fn adopt(e2b: &E2b, sandbox: &Sandbox) -> Result<(), RpcError> {
    let table = &sandbox.processes;
    let adopt = || async {
        for step in running(e2b, &sandbox.id).await? {
            let input = e2b.control().attach(&sandbox.id, step.number).await?;
            let Some(pid) = input.pid() else { continue };
            let known = table.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&step.number);
            let Known { config, tag, kind } = known.unwrap_or_else(|| {
                let (cmd, args) = step.argv.split_first().map_or(("", &[][..]), |(cmd, args)| (cmd.as_str(), args));
                let config = json!({ "cmd": cmd, "args": args, "envs": {} });
                Known { config, tag: None, kind: if step.pty { Kind::Terminal } else { Kind::Stdin } }
            });
            let process = Process::new(pid, step.number, config, tag, kind, Some(input));
            table.lock().insert(pid, Arc::new(process));
        }
        table.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok::<_, den_control::Error>(())
    };
    table.adopted.get_or_try_init(adopt).await?;
    Ok(())
}

/// The steps of processes that run in a computer.
async fn running(e2b: &E2b, computer: &str) -> Result<Vec<StepView>, den_control::Error> {
    let mut steps = e2b.control().steps(computer, None, Some(ADOPTED_MAX), Order::NewestFirst).await?.items;
    steps.retain(|step| step.end.is_none() && step.who == who().0 && step.kind == "exec");
    Ok(steps)
}

/// What is known of the processes that go on in a computer which sleeps.
pub(crate) async fn known_in(
    e2b: &E2b,
    computer: &str,
    mut known: BTreeMap<u64, Known>,
) -> Result<BTreeMap<u64, Known>, den_control::Error> {
    let steps: Vec<u64> = running(e2b, computer).await?.iter().map(|step| step.number).collect();
    known.retain(|step, _| steps.contains(step));
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(how: &str, exit_code: i32, signal: Option<i32>) -> EndView {
        EndView { how: how.to_owned(), exit_code, signal, message: None }
    }

    #[test]
    fn ends_are_said_as_go_says_them() {
        assert_eq!(end_event(&how("exited", 0, None)), json!({"exited": true, "status": "exit status 0"}));
        let failed = json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"});
        assert_eq!(end_event(&how("exited", 3, None)), failed);
        let killed = json!({"exitCode": -1, "status": "signal: killed", "error": "signal: killed"});
        assert_eq!(end_event(&how("signaled", 137, Some(9))), killed);
    }

    #[test]
    fn a_start_is_read_as_sdks_send_it() {
        let text = r#"{"process":{"cmd":"/bin/bash","args":["-l","-c","echo hi"],"envs":{"X":"y"},"cwd":"/tmp"},
                       "stdin":false,"unknown":1}"#;
        let start: Start = serde_json::from_str(text).unwrap();
        assert_eq!(start.process.unwrap().args.len(), 3);
        let size = terminal(Some(Size { cols: 100, rows: 0 })).unwrap();
        assert_eq!((size.cols, size.rows), (100, 24));
        assert!(terminal(Some(Size { cols: 70_000, rows: 1 })).is_err());
        let input: SendInput = serde_json::from_str(r#"{"process":{"pid":42},"input":{"stdin":"eA=="}}"#).unwrap();
        assert_eq!(input.input.unwrap().stdin.unwrap().0, b"x");
    }
}
