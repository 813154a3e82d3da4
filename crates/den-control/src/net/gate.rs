//! Keeping the gate running, and told.
//!
//! ```text
//! attach · detach · policy · status ──orders──► supervisor ──RUN/gate.sock──► gate
//!        │                                          │  starts it, finds it, starts it anew
//!        └──► links: what shall be attached ◄───────┘  each time: Hello, House, Attach of all
//! ```
//!
//! Invariants:
//! - `links` is the truth; an order only says that some of it has changed. An order that is lost with
//!   a connection costs nothing, for the next connection begins with all of it.
//! - A gate that is away holds up nobody for longer than [`ANSWER_WAIT`]: computers run on, closed.
//! - The gate outlives this process; the next one finds it by its socket. One of another program is
//!   asked to end and replaced.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use den_gate::wire::{Attach, House, LINE_BYTES_MAX, Reply, Request, Status, Statuses, VERSION};
use den_machine::Machine;
use den_model::{ComputerId, EventKind};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

use crate::{Error, control::blocking, events::Events, handle::Handle, net::HouseNet};

/// How long a request of ours waits for the gate's answer.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// A gate that has left a request unanswered for this long is taken to be lost.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a gate may take from its start to its first answer.
const START_MAX: Duration = Duration::from_secs(5);
/// Between two looks for the socket of one that starts.
const START_PAUSE: Duration = Duration::from_millis(2);
/// Before a lost gate is connected to again: this, then twice this, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// One that was up for this long has recovered.
const STEADY: Duration = Duration::from_secs(10);
/// How long one that was told to end may take.
const EXIT_MAX: Duration = Duration::from_secs(3);
/// Orders that wait for the supervisor; more wait in their callers.
const ORDERS_MAX: usize = 1024;
/// What RUN/gate.log may have grown to when a gate is started; it is emptied then.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// The length of the key in DATA/net.key, in bytes.
const KEY_BYTES: usize = 32;

/// The gate as the rest of the house sees it.
pub(crate) struct Gate {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
}

struct Shared {
    run: PathBuf,
    data: PathBuf,
    house: House,
    program: Option<PathBuf>,
    /// What shall be attached, and, without a value, what may still be and shall not.
    links: Mutex<BTreeMap<ComputerId, Option<Wanted>>>,
    state: watch::Sender<State>,
    /// The process that answered last; 0 before the first.
    pid: AtomicU32,
    events: Arc<Events>,
}

/// A link that shall be attached.
#[derive(Clone)]
struct Wanted {
    handle: Arc<Handle>,
    link: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Up,
    Down(String),
}

struct Order {
    what: What,
    reply: Option<oneshot::Sender<Reply>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Attach(ComputerId),
    Detach(ComputerId),
    Policy(ComputerId),
    Status(ComputerId),
    Statuses(Option<ComputerId>),
    Exit,
}

/// How a conversation ended.
enum Ended {
    Told,
    Lost(String),
}

impl Gate {
    /// Reads or draws the key of the house and starts the supervisor.
    pub(crate) async fn open(data: &Path, run: &Path, net: &HouseNet, events: Arc<Events>) -> Result<Self, Error> {
        let folder = data.to_owned();
        let key = blocking(move || key(&folder)).await?.map_err(|error| {
            Error::new("bad_config", 500, format!("the key in {}: {error}", data.join("net.key").display()))
                .because(error)
        })?;
        let house = House { private: net.private.clone(), resolvers: net.resolvers.clone(), key };
        let state = match net.program {
            Some(_) => State::Starting,
            None => State::Down("this house has no gate".to_owned()),
        };
        let shared = Arc::new(Shared {
            run: run.to_owned(),
            data: data.to_owned(),
            house,
            program: net.program.clone(),
            links: Mutex::default(),
            state: watch::channel(state).0,
            pid: AtomicU32::new(0),
            events,
        });
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        if shared.program.is_some() {
            tokio::spawn(supervise(Arc::clone(&shared), inbox));
        }
        Ok(Self { shared, orders })
    }

    /// `up` or `down`, and why it is down.
    pub(crate) fn state(&self) -> (&'static str, Option<String>) {
        match &*self.shared.state.borrow() {
            State::Up => ("up", None),
            State::Starting => ("down", Some("it is starting".to_owned())),
            State::Down(why) => ("down", Some(why.clone())),
        }
    }

    /// Returns once the first attempt to have a gate has come out either way.
    pub(crate) async fn settled(&self) {
        let mut state = self.shared.state.subscribe();
        let _ = timeout(START_MAX, state.wait_for(|state| *state != State::Starting)).await;
    }

    /// Has the link of a computer that begins to run taken up. Asked for when this is called; done, or
    /// given up waiting for, when the future that it returns is ready.
    pub(crate) fn attach(&self, handle: &Arc<Handle>, machine: &Machine) -> impl Future<Output = ()> + Send + use<> {
        let (id, link) = (handle.id, machine.net_link());
        let told = if handle.status.borrow().cut {
            None // It is being cut off: its link stays closed.
        } else if link == 0 {
            tracing::warn!(computer = %id, "it was booted by a launcher from before there was a gate: it has no network until it is started anew");
            None
        } else {
            self.links().insert(id, Some(Wanted { handle: Arc::clone(handle), link }));
            Some(self.order(What::Attach(id)))
        };
        async move {
            let Some(told) = told else { return };
            match told.await {
                Some(Reply::Done) => {}
                Some(reply) => tracing::error!(computer = %id, ?reply, "the gate did not take a link up: it is closed"),
                None => tracing::warn!(computer = %id, "the gate is away: a link is closed until it is back"),
            }
        }
    }

    /// Has the link of a computer that no longer runs let go. Asked for when this is called; done, or
    /// given up waiting for, when the future that it returns is ready.
    pub(crate) fn detach(&self, id: ComputerId) -> impl Future<Output = ()> + Send + use<> {
        if self.shared.program.is_some() {
            self.links().insert(id, None);
        }
        let (told, shared) = (self.order(What::Detach(id)), Arc::clone(&self.shared));
        async move {
            if let Some(Reply::Done) = told.await {
                shared.forget([id]);
            }
        }
    }

    /// Has the policy of a computer put in force, as its handle has it.
    pub(crate) async fn policy(&self, id: ComputerId) {
        if !matches!(self.links().get(&id), Some(Some(_))) {
            return;
        }
        match self.order(What::Policy(id)).await {
            Some(Reply::Done) | None => {}
            Some(reply) => tracing::error!(computer = %id, ?reply, "the gate did not take a policy"),
        }
    }

    /// What the link of a computer carries.
    pub(crate) async fn status(&self, id: ComputerId) -> Option<Status> {
        match self.order(What::Status(id)).await {
            Some(Reply::Status(status)) => Some(status),
            _ => None,
        }
    }

    /// What all links carry, as far as the gate answers.
    pub(crate) async fn statuses(&self) -> Option<Statuses> {
        let mut found = Statuses::default();
        loop {
            let after = found.links.last().and_then(|(id, _)| id.parse().ok());
            let Some(Reply::Statuses(page)) = self.order(What::Statuses(after)).await else { return None };
            found.all = page.all;
            found.links.extend(page.links);
            if !page.more {
                return Some(found);
            }
        }
    }

    /// The process that answered last.
    pub(crate) fn pid(&self) -> Option<u32> {
        Some(self.shared.pid.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
    }

    /// Ends the gate, and takes its files out of RUN. May be repeated.
    pub(crate) async fn exit(&self) {
        if self.shared.program.is_none() {
            return;
        }
        let (reply, ended) = oneshot::channel();
        if self.orders.send(Order { what: What::Exit, reply: Some(reply) }).await.is_ok() {
            // The supervisor goes without an answer where no gate could be reached.
            let _ = timeout(START_MAX, ended).await;
        }
        self.shared.state.send_replace(State::Down("the daemon is ending".to_owned()));
        let (run, pid) = (self.shared.run.clone(), self.shared.pid.load(Ordering::Relaxed));
        let ended = blocking(move || end_process(&run, pid, EXIT_MAX)).await;
        if let Ok(Err(error)) | Err(error) =
            ended.map(|ended| ended.map_err(|error| Error::internal(error.to_string())))
        {
            tracing::warn!(error = error.chain(), "the gate may still run");
        }
        for name in ["gate.sock", "gate.pid", "gate.lock"] {
            let _ = std::fs::remove_file(self.shared.run.join(name));
        }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<ComputerId, Option<Wanted>>> {
        self.shared.links()
    }

    /// Gives an order at once; the future has the answer, or nothing where the gate is away.
    fn order(&self, what: What) -> impl Future<Output = Option<Reply>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let given = if *self.shared.state.borrow() == State::Up {
            let order = Order { what, reply: Some(reply) };
            match self.orders.try_send(order) {
                Ok(()) => Some(None),
                Err(mpsc::error::TrySendError::Full(order)) => Some(Some((self.orders.clone(), order))),
                Err(mpsc::error::TrySendError::Closed(_)) => None,
            }
        } else {
            None
        };
        async move {
            let wait = async {
                if let Some((orders, order)) = given? {
                    orders.send(order).await.ok()?;
                }
                answer.await.ok()
            };
            timeout(ANSWER_WAIT, wait).await.ok().flatten()
        }
    }
}

/// Has a gate, talks to it, has another one when it is lost; until it is told to end.
async fn supervise(shared: Arc<Shared>, mut orders: mpsc::Receiver<Order>) {
    let mut pause = PAUSE_MIN;
    let mut starts = 0;
    loop {
        let begun = Instant::now();
        let ended = match reach(&shared, &mut starts).await {
            Ok(gate) => talk(&shared, gate, &mut orders).await,
            Err(why) => Ended::Lost(why),
        };
        let Ended::Lost(why) = ended else { return };
        let before = shared.state.send_replace(State::Down(why.clone()));
        if before != State::Down(why.clone()) {
            tracing::warn!(why, "the gate is away: nothing leaves any computer until it is back");
        }
        if begun.elapsed() > STEADY {
            pause = PAUSE_MIN;
        }
        let until = Instant::now() + pause;
        pause = (pause * 2).min(PAUSE_MAX);
        // Nobody waits for a gate that is away: dropped, an order has no answer.
        while let Ok(order) = tokio::time::timeout_at(until, orders.recv()).await {
            match order {
                None | Some(Order { what: What::Exit, .. }) => return,
                Some(order) => drop(order),
            }
        }
    }
}

/// One connection to the gate.
struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
}

impl Connection {
    async fn open(path: &Path) -> io::Result<Self> {
        let (read, write) = UnixStream::connect(path).await?.into_split();
        Ok(Self { read: BufReader::new(read), write, line: Vec::new() })
    }

    async fn send(&mut self, request: &Request) -> Result<(), String> {
        match timeout(SILENCE_MAX, self.write.write_all(line(request).as_bytes())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("its connection broke: {error}")),
            Err(_) => Err("it does not read what it is asked".to_owned()),
        }
    }

    /// The next answer. May be dropped half way: what came is kept.
    async fn receive(&mut self) -> Result<Reply, String> {
        loop {
            let chunk = self.read.fill_buf().await.map_err(|error| format!("its connection broke: {error}"))?;
            if chunk.is_empty() {
                return Err("it has ended".to_owned());
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            self.line.extend_from_slice(&chunk[..taken]);
            self.read.consume(taken);
            if end.is_some() {
                let reply = serde_json::from_slice(&self.line).map_err(|error| format!("it answers nonsense: {error}"));
                self.line.clear();
                return reply;
            }
            if self.line.len() > LINE_BYTES_MAX {
                return Err("it answers without end".to_owned());
            }
        }
    }

    /// Who is there.
    async fn hello(&mut self) -> Result<(u16, u32), String> {
        self.send(&Request::Hello { version: VERSION }).await?;
        match timeout(START_MAX, self.receive()).await {
            Ok(Ok(Reply::Hello { version, pid, .. })) => Ok((version, pid)),
            Ok(Ok(_)) => Err("it answers `hello` with something else".to_owned()),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }
}

/// The gate of this RUN, of this program: the one that runs, or a new one.
async fn reach(shared: &Shared, starts: &mut u32) -> Result<Connection, String> {
    let socket = shared.run.join("gate.sock");
    if let Ok(mut gate) = Connection::open(&socket).await {
        let greeted = gate.hello().await;
        if let Ok((VERSION, pid)) = greeted
            && is_this_program(shared, pid)
        {
            shared.pid.store(pid, Ordering::Relaxed);
            return Ok(gate);
        }
        tracing::info!(?greeted, "the gate that runs is another program's, or does not answer: it is replaced");
        let _ = gate.send(&Request::Exit).await;
        let _ = timeout(EXIT_MAX, async { while gate.receive().await.is_ok() {} }).await;
        let (run, pid) = (shared.run.clone(), greeted.map_or(0, |(_, pid)| pid));
        let ended = tokio::task::spawn_blocking(move || end_process(&run, pid, EXIT_MAX)).await;
        if let Ok(Err(error)) = ended {
            return Err(format!("the gate of another program does not end: {error}"));
        }
    }
    let mut gate = start(shared, &socket, *starts == 0).await?;
    *starts += 1;
    let (_, pid) = gate.hello().await?;
    shared.pid.store(pid, Ordering::Relaxed);
    Ok(gate)
}

/// Whether `pid` runs the program that a start would run. One that cannot be looked at is ours: it
/// holds our socket.
fn is_this_program(shared: &Shared, pid: u32) -> bool {
    let of = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime));
    let Some(program) = &shared.program else { return false };
    match (of(program), of(&PathBuf::from(format!("/proc/{pid}/exe")))) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        _ => true,
    }
}

/// Starts a gate and connects to it. It inherits the fail points of this process the first time only.
async fn start(shared: &Shared, socket: &Path, first: bool) -> Result<Connection, String> {
    let program = shared.program.as_ref().ok_or("this house has no gate")?;
    let log = shared.run.join("gate.log");
    let file = File::options().create(true).append(true).open(&log);
    let file = file.map_err(|error| format!("{}: {error}", log.display()))?;
    if file.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        let _ = file.set_len(0); // It only costs room.
    }
    let mut command = Command::new(program);
    command.arg0("den").args(["gate", "--run"]).arg(&shared.run);
    if !first {
        command.env_remove("DEN_FAILPOINT");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).current_dir("/");
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
    tracing::info!(pid = child.id(), "a gate is started");
    let (sender, mut ended) = oneshot::channel();
    // It outlives us as a rule; where it does not, someone has to collect it.
    let waits = std::thread::Builder::new().name("den-gate-wait".into()).stack_size(64 << 10).spawn(move || {
        let _ = sender.send(child.wait());
    });
    waits.map_err(|error| format!("a thread that waits for it: {error}"))?;
    let deadline = Instant::now() + START_MAX;
    loop {
        if let Ok(gate) = Connection::open(socket).await {
            return Ok(gate);
        }
        if ended.try_recv().is_ok() {
            // Another one may have been faster.
            return Connection::open(socket).await.map_err(|_| format!("it ended at its start: {}", last_line(&log)));
        }
        if Instant::now() > deadline {
            return Err("it does not come up".to_owned());
        }
        sleep(START_PAUSE).await;
    }
}

/// Why it ended: hints stand below what they are about.
fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let said = text.lines().rfind(|line| line.starts_with("error: "));
    let said = said.or_else(|| text.lines().rfind(|line| !line.is_empty()));
    said.unwrap_or("it said nothing").trim_start_matches("error: ").to_owned()
}

/// Tells the gate all that holds, then what changes, until it is lost or told to end.
async fn talk(shared: &Shared, mut gate: Connection, orders: &mut mpsc::Receiver<Order>) -> Ended {
    // What waits for an answer, the oldest first, and since when.
    let mut waiting: VecDeque<(Instant, Option<oneshot::Sender<Reply>>)> = VecDeque::new();
    let all = shared.all();
    let gone: Vec<ComputerId> =
        all.iter().filter_map(|what| if let What::Detach(id) = what { Some(*id) } else { None }).collect();
    let links = all.len() - gone.len();
    let first = all.into_iter().filter_map(|what| shared.request(what));
    let first: Vec<Request> = std::iter::once(Request::House(shared.house.clone())).chain(first).collect();
    for request in &first {
        if let Err(why) = gate.send(request).await {
            return Ended::Lost(why);
        }
        waiting.push_back((Instant::now(), None));
    }
    let mut greetings = waiting.len();
    let mut exiting = None;
    loop {
        let silence = waiting.front().map(|(since, _)| *since + SILENCE_MAX);
        let silence = async {
            match silence {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reply = gate.receive() => match reply {
                Ok(reply) => {
                    let Some((_, to)) = waiting.pop_front() else {
                        return Ended::Lost("it answers what nobody asked".to_owned());
                    };
                    if let Some(to) = to {
                        let _ = to.send(reply); // Whoever asked may have gone.
                    } else if let Reply::Failed { code, message } = reply {
                        tracing::error!(code, message, "the gate did not take what holds");
                    }
                    if greetings > 0 {
                        greetings -= 1;
                        if greetings == 0 {
                            tracing::info!(links, "the gate is up");
                            shared.forget(gone.iter().copied());
                            if let State::Down(why) = shared.state.send_replace(State::Up) {
                                let detail = serde_json::json!({ "why": why, "links": links });
                                shared.events.tell(EventKind::GateRestarted, None, None, detail);
                            }
                            // What changed while all of it was being told.
                            if let Err(why) = tell_changes(shared, &mut gate, &mut waiting, &first).await {
                                return Ended::Lost(why);
                            }
                        }
                    }
                }
                Err(_) if exiting.is_some() => return Ended::Told,
                Err(why) => return Ended::Lost(why),
            },
            order = orders.recv(), if exiting.is_none() => {
                let Some(Order { what, reply }) = order else {
                    // The house is dropped without a shutdown: the gate goes on.
                    return Ended::Told;
                };
                let Some(request) = shared.request(what) else { continue };
                if let Err(why) = gate.send(&request).await {
                    return if what == What::Exit { Ended::Told } else { Ended::Lost(why) };
                }
                if what == What::Exit {
                    waiting.push_back((Instant::now(), None));
                    // Dropped, it says that the gate is gone.
                    exiting = Some(reply);
                } else {
                    waiting.push_back((Instant::now(), reply));
                }
            }
            () = silence => {
                return if exiting.is_some() { Ended::Told } else { Ended::Lost("it does not answer".to_owned()) };
            }
        }
    }
}

fn line(request: &Request) -> String {
    let mut line = serde_json::to_string(request).expect("requests are plain data");
    line.push('\n');
    line
}

/// Tells again what is no longer as `told` had it: orders given while the state was not `Up` are not
/// queued.
async fn tell_changes(
    shared: &Shared,
    gate: &mut Connection,
    waiting: &mut VecDeque<(Instant, Option<oneshot::Sender<Reply>>)>,
    told: &[Request],
) -> Result<(), String> {
    let told: HashSet<String> = told.iter().map(line).collect();
    let now: Vec<Request> = shared.all().into_iter().filter_map(|what| shared.request(what)).collect();
    for request in now.into_iter().filter(|request| !told.contains(&line(request))) {
        gate.send(&request).await?;
        waiting.push_back((Instant::now(), None));
    }
    Ok(())
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, BTreeMap<ComputerId, Option<Wanted>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that a gate has to be told of links.
    fn all(&self) -> Vec<What> {
        let what =
            |(&id, wanted): (_, &Option<Wanted>)| if wanted.is_some() { What::Attach(id) } else { What::Detach(id) };
        self.links().iter().map(what).collect()
    }

    /// These are let go, and the gate has said so; but for those that are wanted again.
    fn forget(&self, gone: impl IntoIterator<Item = ComputerId>) {
        let mut links = self.links();
        for id in gone {
            if matches!(links.get(&id), Some(None)) {
                links.remove(&id);
            }
        }
    }

    /// What the gate is asked for this order; nothing where the link is no longer wanted.
    fn request(&self, what: What) -> Option<Request> {
        let wanted = |id: ComputerId| self.links().get(&id).cloned().flatten();
        Some(match what {
            What::Attach(id) => {
                let Wanted { handle, link } = wanted(id)?;
                let text = id.to_string();
                Request::Attach(Box::new(Attach {
                    name: handle.name().to_string(),
                    link,
                    folder: self.data.join("computers").join(&text).join("net"),
                    agent: self.run.join("computers").join(&text).join("agent.sock"),
                    policy: handle.net.get().policy.clone(),
                    id: text,
                }))
            }
            What::Policy(id) => {
                Request::Policy { id: id.to_string(), policy: wanted(id)?.handle.net.get().policy.clone() }
            }
            What::Detach(id) => Request::Detach { id: id.to_string() },
            What::Status(id) => {
                wanted(id)?;
                Request::Status { id: id.to_string() }
            }
            What::Statuses(after) => Request::Statuses { after: after.map(|id| id.to_string()) },
            What::Exit => Request::Exit,
        })
    }
}

/// Ends the gate that an earlier daemon left in RUN, with the files of computers that it holds; the next one takes its
/// place as that of a gate which was killed.
pub(crate) fn end_left(run: &Path) -> io::Result<()> {
    end_process(run, 0, Duration::ZERO)
}

/// Waits until the process that answered last, or else that of RUN/gate.pid, is gone, and ends it where
/// it does not go by itself for so long.
fn end_process(run: &Path, known: u32, patience: Duration) -> io::Result<()> {
    let written = || std::fs::read_to_string(run.join("gate.pid")).ok()?.trim().parse().ok();
    let pid = if known == 0 { written() } else { Some(known as i32) };
    let Some(pid) = pid.and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    // The number may have been given to another process since.
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
    let run_bytes = std::os::unix::ffi::OsStrExt::as_bytes(run.as_os_str());
    if !words.contains(&run_bytes) || !words.contains(&b"gate".as_slice()) {
        return Ok(());
    }
    let gone = |limit: Duration| -> io::Result<bool> {
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: 0 };
        Ok(rustix::event::poll(&mut fds, Some(&limit))? > 0)
    };
    if gone(patience)? {
        return Ok(());
    }
    tracing::warn!(pid = pid.as_raw_nonzero(), "the gate is ended");
    rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
    if gone(EXIT_MAX)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// The key of the house in hexadecimal digits: drawn at the first start, kept since.
fn key(data: &Path) -> io::Result<String> {
    use std::{
        io::{Read, Write},
        os::unix::fs::OpenOptionsExt,
    };
    let path = data.join("net.key");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) if bytes.len() == KEY_BYTES => bytes,
        Ok(bytes) => return Err(io::Error::other(format!("{} bytes where {KEY_BYTES} are wanted", bytes.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = vec![0; KEY_BYTES];
            File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            // Put in its place whole: the store's lock says that nobody else is at it.
            let half = data.join(".net.key");
            let _ = std::fs::remove_file(&half);
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&half)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&half, &path)?;
            bytes
        }
        Err(error) => return Err(error),
    };
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_drawn_once_and_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let first = key(folder.path()).unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(key(folder.path()).unwrap(), first);
        let mode = std::fs::metadata(folder.path().join("net.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(folder.path().join("net.key"), "short").unwrap();
        assert!(key(folder.path()).is_err());
    }

    #[test]
    fn a_pid_that_is_no_gate_of_ours_is_left_alone() {
        let run = tempfile::tempdir().unwrap();
        end_process(run.path(), 0, EXIT_MAX).unwrap();
        std::fs::write(run.path().join("gate.pid"), std::process::id().to_string()).unwrap();
        end_process(run.path(), 0, EXIT_MAX).unwrap();
        end_process(run.path(), std::process::id(), EXIT_MAX).unwrap();
    }
}
