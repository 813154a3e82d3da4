//! Running commands, and what may be done to those that run.
//!
//! ```text
//! caller ── exec ──► task of the step: row ─► log ─► agent ──► Started ──► answer to the caller
//!                       └─ then follows the events to the end; records it; tells who waits
//! ```
//!
//! The task is the step's own, so a caller that goes away leaves nothing half done.

use std::{os::fd::AsFd, sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use den_api::{ExecRequest, Page, PtySize, SignalRequest, StepView};
use den_machine::{LinkError, Machine, StepEvent, StepEvents, StepInput, StepLink};
use den_model::{ComputerName, Micros, ServiceName, Step, StepEnd, StepKind};
use den_store::{Durability, Order};
use den_sys::failpoint;
use den_wire::{
    agent::{self, Exec, FailureKind, Pty, SignalScope},
    log::{EndRecord, KEEP_BYTES_MIN},
};
use minicbor::bytes::ByteVec;
use tokio::sync::{oneshot, watch};

use crate::{
    Error, Who,
    answer::answered,
    control::{Control, Inner, now, page_limit},
    errors::{chain, too_long, too_many},
    handle::{Handle, Reply},
    life::{Awake, hibernate},
    limits::{COMMAND_BYTES_MAX, READERS_MAX, RECOVERY_WAIT, START_PATIENCE_MS},
    log::{LastRecord, end_of, first_words},
    metrics::Operation,
    output::{Follow, OutputReader, OutputStream, Progress, Reading},
    parse_signal, spec,
    steps::{Live, finish},
};

/// A command that has been started, or that the agent said could not be.
pub struct Execution {
    /// As it was when it began.
    pub step: StepView,
    /// Its output from the first byte, to the end.
    pub output: OutputReader,
    /// The way to its standard input and terminal.
    pub input: Input,
    /// Its first process, as it is numbered inside; none of one that was over at once.
    pub pid: Option<u32>,
}

/// The way in to a running step.
pub struct Input {
    handle: Arc<Handle>,
    number: u64,
    /// None where all of the standard input went with the command: then it is joined when needed.
    link: Option<StepInput>,
    pid: Option<u32>,
    /// See [`crate::life::Doors::rests`]: when it was joined.
    rests: u64,
}

impl Input {
    /// The first process of a step that was joined while it ran, as it is numbered inside.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Sends standard input; waits while the command does not read it.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let handle = Arc::clone(&self.handle);
        let _word = handle.doors.words.read().await;
        let sent = self.link().await?.stdin(bytes).await;
        sent.map_err(|error| self.handle.link_error(error))
    }

    /// Ends standard input.
    pub async fn close_stdin(&mut self) -> Result<(), Error> {
        let handle = Arc::clone(&self.handle);
        let _word = handle.doors.words.read().await;
        let sent = self.link().await?.close_stdin().await;
        sent.map_err(|error| self.handle.link_error(error))
    }

    /// Gives the terminal another size.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), Error> {
        let handle = Arc::clone(&self.handle);
        let _word = handle.doors.words.read().await;
        let sent = self.link().await?.resize(rows, cols).await;
        sent.map_err(|error| self.handle.link_error(error))
    }

    /// Sends a signal, by name or number, to the step's process group.
    pub async fn signal(&mut self, signal: &str) -> Result<(), Error> {
        let signal = parse_signal(signal)?;
        let handle = Arc::clone(&self.handle);
        let _word = handle.doors.words.read().await;
        let sent = self.link().await?.signal(signal, SignalScope::Group).await;
        sent.map_err(|error| self.handle.link_error(error))
    }

    async fn link(&mut self) -> Result<&mut StepInput, Error> {
        self.handle.plugged()?;
        let rests = self.handle.doors.rests();
        let link = match self.link.take().filter(|_| self.rests == rests) {
            Some(link) => link,
            None => join(&self.handle, &*self.handle.awake().await?, self.number).await?.0,
        };
        self.rests = rests;
        Ok(self.link.insert(link))
    }
}

/// A further way in to a running step.
async fn join(handle: &Handle, machine: &Machine, number: u64) -> Result<(StepInput, Option<u32>), Error> {
    match answered(handle, machine.link().attach(number)).await {
        Ok(StepLink { input, pid, .. }) => Ok((input, pid)),
        Err(LinkError::Failed(failure)) if failure.kind == FailureKind::NoSuchStep => {
            Err(Error::step_ended(handle.name(), number))
        }
        Err(error) => Err(handle.link_error(error)),
    }
}

/// A command that is all checked.
struct Plan {
    kind: StepKind,
    argv: Vec<String>,
    cwd: Option<String>,
    user: Option<String>,
    pty: bool,
    who: String,
    exec: Exec,
    /// The service of which it is a start.
    service: Option<ServiceName>,
    /// All of its standard input.
    stdin: Option<Vec<u8>>,
}

/// What the task of a step tells its caller.
struct Started {
    live: Arc<Live>,
    input: Option<StepInput>,
    pid: Option<u32>,
}

impl Control {
    /// Runs a command in `computer` and returns once the agent has it. The command goes on whatever
    /// becomes of the answer. A command that is not there is a step that ends at once with 127.
    ///
    /// Errors: `computer_not_found`, `computer_stopped`, `wrong_state`, `bad_request`,
    /// `no_such_user`, `no_such_cwd`, `no_processes`, `too_many`, `agent_lost`.
    pub async fn exec(&self, computer: &str, request: ExecRequest, who: &Who) -> Result<Execution, Error> {
        let began = Instant::now();
        let handle = self.0.registry.find(computer)?;
        handle.plugged()?;
        let plan = Plan::check(&self.0, &handle, request, who)?;
        let turn = reader_turn(&handle)?;
        let rests = handle.doors.rests();
        let awake = handle.awake().await?;
        handle.steps.room()?;
        let (reply, started) = oneshot::channel();
        self.0.tasks.spawn(run(Arc::clone(&self.0), Arc::clone(&handle), awake.machine(), plan, reply));
        let Started { live, input, pid } = started.await.map_err(|_| Error::shutting_down())??;
        self.0.metrics.took(Operation::Exec, began);
        let step = StepView::from(&live.step);
        let output = OutputReader::new(Reading {
            name: handle.name().clone(),
            number: step.number,
            progress: live.progress.subscribe(),
            log: live.log.clone(),
            from: 0,
            follow: Follow::ToTheEnd,
            only: None,
            turn,
        });
        let input = Input { handle, number: step.number, link: input, pid, rests };
        Ok(Execution { step, output, input, pid })
    }

    /// Reads the output of a step from any byte.
    ///
    /// Errors: `computer_not_found`, `step_not_found`, `too_many`.
    pub async fn output(
        &self,
        computer: &str,
        number: u64,
        from: u64,
        follow: Follow,
        only: Option<OutputStream>,
    ) -> Result<OutputReader, Error> {
        let handle = self.0.registry.find_any(computer)?;
        let turn = reader_turn(&handle)?;
        let (progress, log) = match self.find_step(&handle, number).await? {
            Found::Running(live) => (live.progress.subscribe(), live.log.clone()),
            Found::Ended(step) => {
                let log = match step.kind.has_log() {
                    false => None,
                    true => handle.steps.logs.open(number).map_err(|error| {
                        Error::internal(format!("cannot open the log of step {number} of `{}`", handle.name()))
                            .because(error)
                    })?,
                };
                let progress = Progress { log_bytes: 0, output_bytes: step.output_bytes, end: Some(Arc::new(*step)) };
                (watch::channel(progress).1, log.map(Arc::new))
            }
        };
        let name = handle.name().clone();
        Ok(OutputReader::new(Reading { name, number, progress, log, from, follow, only, turn }))
    }

    /// Comes back to a step: the way to its input. For one that has ended there is none, and each use
    /// says `step_ended`.
    ///
    /// Errors: `computer_not_found`, `step_not_found`, `agent_lost`.
    pub async fn attach(&self, computer: &str, number: u64) -> Result<Input, Error> {
        let handle = self.0.registry.find(computer)?;
        let rests = handle.doors.rests();
        let link = match self.find_step(&handle, number).await? {
            Found::Running(live) if live.has_ended() => None,
            Found::Running(_) => match join(&handle, &*handle.awake().await?, number).await {
                Ok(link) => Some(link),
                Err(error) if error.code == "step_ended" => None,
                Err(error) => return Err(error),
            },
            Found::Ended(_) => None,
        };
        let (link, pid) = link.map_or((None, None), |(link, pid)| (Some(link), pid));
        Ok(Input { handle, number, link, pid, rests })
    }

    /// Sends a signal to a running step.
    ///
    /// Errors: `step_ended`, `step_not_found`, `bad_request`.
    pub async fn signal(&self, computer: &str, number: u64, request: &SignalRequest) -> Result<(), Error> {
        let signal = parse_signal(&request.signal)?;
        let scope = if request.process_only { SignalScope::Process } else { SignalScope::Group };
        let (handle, machine) = self.running_step(computer, number).await?;
        match answered(&handle, machine.link().signal(number, signal, scope)).await {
            Ok(()) => Ok(()),
            Err(LinkError::Failed(failure)) if failure.kind == FailureKind::NoSuchStep => {
                Err(Error::step_ended(handle.name(), number))
            }
            Err(error) => Err(handle.link_error(error)),
        }
    }

    /// One step as it is now.
    ///
    /// Errors: `computer_not_found`, `step_not_found`.
    pub async fn step(&self, computer: &str, number: u64) -> Result<StepView, Error> {
        let handle = self.0.registry.find_any(computer)?;
        Ok(match self.find_step(&handle, number).await? {
            Found::Running(live) => StepView::from(&live.present()),
            Found::Ended(step) => StepView::from(&*step),
        })
    }

    /// A page of steps beyond the number `after`.
    pub async fn steps(
        &self,
        computer: &str,
        after: Option<u64>,
        limit: Option<usize>,
        order: Order,
    ) -> Result<Page<StepView>, Error> {
        let handle = self.0.registry.find_any(computer)?;
        let limit = page_limit(limit)?;
        handle.steps.recorded().await;
        let rows = self.0.store.steps(handle.id, after, limit, order).await?;
        let full = rows.len() == limit;
        let items: Vec<_> = rows
            .iter()
            .map(|row| match handle.steps.get(row.number).filter(|_| row.end.is_none()) {
                Some(live) => StepView::from(&live.present()),
                None => StepView::from(row),
            })
            .collect();
        let next = items.last().filter(|_| full).map(|last| last.number.to_string());
        Ok(Page { items, next })
    }

    async fn running_step(&self, computer: &str, number: u64) -> Result<(Arc<Handle>, Awake), Error> {
        let handle = self.0.registry.find(computer)?;
        match self.find_step(&handle, number).await? {
            Found::Running(live) if !live.has_ended() => {
                let awake = handle.awake().await?;
                Ok((handle, awake))
            }
            Found::Running(_) | Found::Ended(_) => Err(Error::step_ended(handle.name(), number)),
        }
    }

    async fn find_step(&self, handle: &Handle, number: u64) -> Result<Found, Error> {
        // Between the two looks a step may begin: then it is among the running ones on the second.
        for _ in 0..2 {
            if let Some(live) = handle.steps.get(number) {
                return Ok(Found::Running(live));
            }
            match self.0.store.get_step(handle.id, number).await? {
                Some(step) if step.end.is_some() => return Ok(Found::Ended(Box::new(step))),
                Some(_) => {}
                None => break,
            }
        }
        Err(Error::step_not_found(handle.name(), number))
    }
}

enum Found {
    Running(Arc<Live>),
    Ended(Box<Step>),
}

fn reader_turn(handle: &Handle) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
    let turn = Arc::clone(&handle.steps.readers).try_acquire_owned();
    turn.map_err(|_| too_many("readers of one computer's output", READERS_MAX))
}

impl Plan {
    fn check(inner: &Inner, handle: &Handle, request: ExecRequest, who: &Who) -> Result<Self, Error> {
        let ExecRequest { argv, cwd, env, user, stdin, stream_stdin, pty, timeout_ms, detach, keep_bytes } = request;
        if argv.first().is_none_or(String::is_empty) {
            let what = if argv.is_empty() { "no command is given" } else { "the command is an empty word" };
            return Err(Error::bad_request(format!("`argv`: {what}"))
                .hint("its first word names a program: `den exec NAME -- ls -la`, or a script with `-- sh -c '…'`"));
        }
        let texts = argv.iter().chain(&cwd).chain(&user);
        if texts.clone().any(|text| text.contains('\0')) {
            return Err(Error::bad_request("`argv`, `cwd` or `user` has a zero byte in it"));
        }
        if texts.map(|text| text.len() + 1).sum::<usize>() > COMMAND_BYTES_MAX {
            return Err(too_long("the command", COMMAND_BYTES_MAX));
        }
        spec::check_env(&env)?;
        if timeout_ms == Some(0) {
            return Err(Error::bad_request("`timeout_ms`: 0 is not above zero"));
        }
        if keep_bytes.is_some_and(|bytes| bytes < KEEP_BYTES_MIN) {
            return Err(Error::bad_request(format!("`keep_bytes`: below the least of {KEEP_BYTES_MIN}")));
        }
        if stdin.is_some() && stream_stdin {
            return Err(Error::bad_request("`stdin` and `stream_stdin` are both given"));
        }
        let stdin = stdin.map(|text| BASE64.decode(text)).transpose();
        let stdin = stdin.map_err(|error| Error::bad_request(format!("`stdin` is no base64: {error}")))?;
        let pty = pty.map(|pty| terminal(handle.name(), pty)).transpose()?;
        let base = handle.base(|| inner.images.by_digest(&handle.spec().image_digest).ok());
        let cwd = cwd.or_else(|| base.cwd.clone());
        let user = user.or_else(|| base.user.clone());
        let own = env.into_iter().map(|(key, value)| ByteVec::from(format!("{key}={value}").into_bytes()));
        // Who waits for the end, and can do nothing before it, is told of a short command once.
        let waits = !(detach || stream_stdin || pty.is_some());
        let exec = Exec {
            step: 0,
            argv: argv.iter().map(|text| ByteVec::from(text.clone().into_bytes())).collect(),
            cwd: cwd.clone().map(|text| ByteVec::from(text.into_bytes())),
            env: base.env.iter().cloned().chain(own).collect(),
            user: user.clone(),
            stdin: stream_stdin || stdin.is_some(),
            pty,
            timeout_ms,
            keep_bytes,
            whole: false,
            patience_ms: waits.then_some(START_PATIENCE_MS),
        };
        let (pty, who) = (exec.pty.is_some(), who.0.clone());
        Ok(Self { kind: StepKind::Exec, argv, cwd, user, pty, who, exec, service: None, stdin })
    }
}

fn terminal(name: &ComputerName, size: PtySize) -> Result<Pty, Error> {
    let PtySize { rows, cols, term } = size;
    if rows == 0 || cols == 0 {
        return Err(Error::bad_request(format!("`pty`: a terminal in `{name}` of {rows} by {cols}")));
    }
    if term.as_ref().is_some_and(|term| term.is_empty() || term.contains('\0')) {
        return Err(Error::bad_request("`pty.term` is empty or has a zero byte in it"));
    }
    Ok(Pty { rows, cols, term })
}

/// Starts the image's own command as a step, and lets it run.
pub(crate) fn start_entrypoint(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: Machine) {
    let base = handle.base(|| inner.images.by_digest(&handle.spec().image_digest).ok());
    let request = ExecRequest { argv: base.command.clone(), ..ExecRequest::default() };
    match Plan::check(inner, handle, request, &Who("boot".to_owned())) {
        Ok(plan) => {
            let plan = Plan { kind: StepKind::Entrypoint, ..plan };
            let (reply, _) = oneshot::channel();
            inner.tasks.spawn(run(Arc::clone(inner), Arc::clone(handle), machine, plan, reply));
        }
        Err(error) => tracing::warn!(computer = %handle.id, %error, "the image's own command is not started"),
    }
}

/// What the agent is told of a start of a service, or of a look whether it is ready.
///
/// Errors: `bad_request`.
pub(crate) fn check_service(inner: &Inner, handle: &Handle, request: ExecRequest) -> Result<Exec, Error> {
    Plan::check(inner, handle, request, &Who(String::new())).map(|plan| plan.exec)
}

/// Starts a service as a step, and returns once the agent has it.
///
/// Errors: as of [`Control::exec`]; `service_not_found` where it was removed just now.
pub(crate) async fn start_service(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    machine: &Machine,
    name: &ServiceName,
    request: ExecRequest,
) -> Result<Arc<Live>, Error> {
    handle.steps.room()?;
    let plan = Plan::check(inner, handle, request, &Who(name.who()))?;
    // None of its processes is left to be in the way of the next start.
    let exec = Exec { whole: true, ..plan.exec };
    let plan = Plan { kind: StepKind::Service, service: Some(name.clone()), exec, ..plan };
    let (reply, started) = oneshot::channel();
    inner.tasks.spawn(run(Arc::clone(inner), Arc::clone(handle), machine.clone(), plan, reply));
    Ok(started.await.map_err(|_| Error::shutting_down())??.live)
}

/// The task of one step.
async fn run(inner: Arc<Inner>, handle: Arc<Handle>, machine: Machine, plan: Plan, reply: Reply<Started>) {
    let has_input = plan.exec.stdin || plan.exec.pty.is_some();
    match begin(&inner, &handle, &machine, plan).await {
        Ok((live, StepLink { events, input, pid }, stdin)) => {
            failpoint::hit("exec.sent");
            let mut input = match has_input {
                true => Some(input),
                // Nothing goes that way, and to say so would wake the agent.
                false => {
                    input.leave();
                    None
                }
            };
            if let Some(bytes) = stdin
                && let Some(mut input) = input.take()
            {
                inner.tasks.spawn(async move {
                    // A command that does not read its input breaks this off when it ends.
                    if input.stdin(&bytes).await.is_ok() {
                        let _ = input.close_stdin().await;
                    }
                });
            }
            drop(reply.send(Ok(Started { live: Arc::clone(&live), input, pid })));
            failpoint::hit("exec.started");
            follow(&inner, &handle, &machine, &live, events).await;
        }
        Err(error) => drop(reply.send(Err(error))),
    }
}

type Begun = (Arc<Live>, StepLink, Option<Vec<u8>>);

async fn begin(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: &Machine, plan: Plan) -> Result<Begun, Error> {
    let Plan { kind, argv, cwd, user, pty, who, mut exec, service, stdin } = plan;
    handle.history.settled().await;
    let number = handle.steps.number();
    exec.step = number;
    let step = Step { user, cwd, pty, ..Step::begun(number, kind, argv, who, now()) };
    // The log is made while the writer has the row.
    let row = match &service {
        None => inner.store.insert_step(handle.id, &step, Durability::Process),
        Some(name) => inner.store.begin_service(handle.id, name.clone(), &step, Durability::Process),
    };
    let log = handle.steps.logs.create(number).map(Arc::new);
    let live = Live::new(step, log.as_ref().ok().cloned());
    handle.steps.add(&live);
    inner.metrics.step_started(kind);
    if let Err(error) = row.await {
        handle.steps.forget(number);
        return Err(error.into());
    }
    failpoint::hit("exec.row");
    if let Some(name) = &service {
        handle.services.began(name, number);
    }
    let log = match log {
        Ok(log) => log,
        Err(error) => {
            let message = format!("cannot make the log of step {number} of `{}`: {error}", handle.name());
            not_started(inner, handle, &live, &message).await;
            return Err(Error::of_file(message, &error, Error::internal).because(error));
        }
    };
    failpoint::hit("exec.log");
    match answered(handle, machine.link().exec(&exec, log.as_fd())).await {
        Ok(link) => Ok((live, link, stdin)),
        Err(error) => {
            let error = handle.link_error(error);
            if error.code == "agent_lost" || error.code == "computer_stopped" {
                // It may have been started before the link broke.
                end_from_log(inner, handle, &live).await;
            } else {
                not_started(inner, handle, &live, &error.message).await;
            }
            Err(error)
        }
    }
}

/// The row stays, and says why nothing ran.
async fn not_started(inner: &Arc<Inner>, handle: &Arc<Handle>, live: &Live, why: &str) {
    finish(inner, handle, live, StepEnd::NotStarted { code: 126, message: why.to_owned() }, 0).await;
}

/// Follows a step to its end, through a link that breaks where the computer still runs.
pub(crate) async fn follow(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    machine: &Machine,
    live: &Arc<Live>,
    mut events: StepEvents,
) {
    loop {
        match events.next().await {
            Ok(StepEvent::Progress { log_bytes, output_bytes }) => {
                live.progress.send_modify(|progress| {
                    progress.log_bytes = log_bytes;
                    progress.output_bytes = output_bytes;
                });
            }
            Ok(StepEvent::Ended { end, log_bytes, output_bytes }) => {
                live.progress.send_if_modified(|progress| {
                    progress.log_bytes = log_bytes;
                    false // Told with the end.
                });
                return finish(inner, handle, live, step_end(end), output_bytes).await;
            }
            Err(error) if machine.is_dead() => {
                tracing::debug!(computer = %handle.id, step = live.step.number, error = chain(&error), "it ended with its computer");
                return end_from_log(inner, handle, live).await;
            }
            Err(_) => match join_again(handle, machine, live.step.number).await.and_then(Result::ok) {
                Some(link) => events = link.events,
                None => return end_from_log(inner, handle, live).await,
            },
        }
    }
}

/// Joins a running step once more; waits for a computer that stands still. `None` where the computer has ended,
/// or does not answer.
pub(crate) async fn join_again(handle: &Handle, machine: &Machine, number: u64) -> Option<Result<StepLink, LinkError>> {
    loop {
        let joined = async {
            handle.moves().await;
            tokio::time::timeout(RECOVERY_WAIT, machine.link().attach(number)).await
        };
        tokio::select! {
            () = machine.died() => return None,
            joined = joined => match joined {
                Ok(joined) => return Some(joined),
                Err(_) if handle.stands() => {}
                Err(_) => return None,
            },
        }
    }
}

/// Ends a step that nobody can tell of any more, by what its log says.
pub(crate) async fn end_from_log(inner: &Arc<Inner>, handle: &Arc<Handle>, live: &Live) {
    if inner.open_for_work().is_err() && hibernate::is_kept(inner, handle.id) {
        // It has not ended: the next daemon goes on with it.
        return handle.steps.forget(live.step.number);
    }
    let known_bytes = live.progress.borrow().output_bytes;
    let said = live.log.as_deref().and_then(|log| end_by_log(log, live.step.started_at));
    let (end, output_bytes) = said.map_or((StepEnd::Lost, known_bytes), |said| (said.end, said.output_bytes));
    finish(inner, handle, live, end, output_bytes).await;
}

/// The end of a step.
pub(crate) struct End {
    pub end: StepEnd,
    pub output_bytes: u64,
    pub at: Micros,
}

/// How the log says that its step ended, which began at `began`; `None` where it does not. Read again, it is the
/// same.
pub(crate) fn end_by_log(log: &std::fs::File, began: Micros) -> Option<End> {
    let LastRecord { end, output_bytes, time } = end_of(log).ok()??;
    let end = match end {
        EndRecord::Exited(code) => StepEnd::Exited { code },
        EndRecord::Signaled(signal) => StepEnd::Signaled { signal },
        EndRecord::TimedOut => StepEnd::TimedOut,
        EndRecord::NotStarted(code) => StepEnd::NotStarted { code, message: first_words(log) },
    };
    // It was written inside, where a clock may say anything.
    Some(End { end, output_bytes, at: time.min(now()).max(began) })
}

fn step_end(end: agent::End) -> StepEnd {
    match end {
        agent::End::Exited { code } => StepEnd::Exited { code },
        agent::End::Signaled { signal } => StepEnd::Signaled { signal },
        agent::End::TimedOut => StepEnd::TimedOut,
        agent::End::NotStarted { code, message } => StepEnd::NotStarted { code, message },
    }
}
