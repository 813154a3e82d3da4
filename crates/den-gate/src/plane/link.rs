//! One computer's link: what it may, what it uses, and the flows that are open.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::decide::{Flow, NameOrigin, Outcome, Peek, Seen, Why, decide};
use crate::dns::Names;
use crate::host::Host;
use crate::peek::Peeked;
use crate::policy::{NetLimits, Policy};
use crate::record::{Kind, Record};
use crate::wire::{Attach, Status};

use super::cut::Cut;
use super::journal::Journal;
use super::limits::{Bucket, Day, Notes, Rate};
use super::{Gate, Rest, dial, flow};

/// The index of a link's interface is this and its number.
pub(super) const INDEX_FIRST: u32 = 1000;
/// After a failed accept: descriptors are used up, and others have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Flows of a computer that are refused a second. The kernel drops what comes beyond them and the backlog, in the
/// sender's own time; a first packet that is dropped comes again a second later.
const REFUSALS_PER_S: u32 = 128;
/// How long nothing is accepted where there are more.
const REFUSALS_PAUSE: Duration = Duration::from_millis(500);

/// One computer's link.
pub(super) struct Link {
    /// The computer's id.
    pub id: String,
    /// Index of its interface.
    pub index: u32,
    pub names: Names,
    told: RwLock<Arc<Attach>>,
    /// Counts what was told, of the computer or of the house.
    generation: AtomicU64,
    journal: Journal,
    flows: Mutex<HashMap<u64, Arc<Live>>>,
    open: AtomicU32,
    accepting: Mutex<Option<AbortHandle>>,
    closed: AtomicBool,
    new: Bucket,
    dns: Bucket,
    /// DNS queries that are being answered.
    pub queries: AtomicU32,
    up: Rate,
    down: Rate,
    day: Day,
    notes: Notes,
    bits_per_s: AtomicU64,
    bytes_per_day: AtomicU64,
    allowed: AtomicU64,
    denied: AtomicU64,
    limited: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the computer.
    Up,
    /// To the computer.
    Down,
}

/// What was looked at of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nothing yet.
    Not,
    /// The first bytes.
    At(Peeked),
    /// Nothing came in time.
    Nobody,
}

impl Looked {
    pub(super) fn seen(&self) -> Seen<'_> {
        match self {
            Self::Not => Seen::Nothing,
            Self::At(peeked) => peeked.seen(),
            Self::Nobody => Seen::Nobody,
        }
    }
}

/// A flow that was let through: what was known when it was, to decide again when the policy changes.
pub(super) struct Live {
    pub target: SocketAddrV4,
    pub name: Option<Host>,
    pub origin: NameOrigin,
    pub looked: Looked,
    /// Each of its requests is looked at.
    pub inspected: bool,
    /// Where it is connected to.
    pub dialled: Mutex<Option<SocketAddr>>,
    pub cut: Cut,
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// A place among a computer's flows; given back when dropped.
pub(super) struct Slot(Arc<Link>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A live flow's place in the list; gone when dropped.
pub(super) struct Listed {
    link: Arc<Link>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.link.live().remove(&self.number);
    }
}

impl Link {
    /// Opens what the computer has on disk. Nothing is accepted yet.
    pub(super) fn open(attach: Attach, key: [u8; 32]) -> io::Result<Self> {
        let index = u32::try_from(attach.link).ok().and_then(|link| link.checked_add(INDEX_FIRST));
        let index = index.ok_or(io::ErrorKind::InvalidInput)?;
        let journal = Journal::open(&attach.folder)?;
        let link = Self {
            id: attach.id.clone(),
            index,
            names: Names::open(&attach.folder, key)?,
            generation: AtomicU64::new(0),
            journal,
            flows: Mutex::default(),
            open: AtomicU32::new(0),
            accepting: Mutex::default(),
            closed: AtomicBool::new(false),
            new: Bucket::default(),
            dns: Bucket::default(),
            queries: AtomicU32::new(0),
            up: Rate::default(),
            down: Rate::default(),
            day: Day::open(&attach.folder),
            notes: Notes::default(),
            bits_per_s: AtomicU64::new(attach.policy.limits.bits_per_s),
            bytes_per_day: AtomicU64::new(attach.policy.limits.bytes_per_day),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            told: RwLock::new(Arc::new(attach)),
        };
        link.write(&Record { detail: Some("link_up".into()), ..Record::new(Kind::Gate) })?;
        Ok(link)
    }

    /// Takes flows from this listener until the link is closed.
    pub(super) fn accept(self: &Arc<Self>, gate: &Arc<Gate>, listener: TcpListener) {
        let (link, gate) = (Arc::clone(self), Arc::clone(gate));
        let task = tokio::spawn(async move {
            let refusals = Bucket::default();
            loop {
                match listener.accept().await {
                    Ok((client, _)) => {
                        if !link.take(&gate, client) && !refusals.take(REFUSALS_PER_S) {
                            tokio::time::sleep(REFUSALS_PAUSE).await;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(computer = link.id, %error, "a flow was not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        if let Some(old) = self.accepting().replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// Within the limits, a flow gets a task of its own; else it is refused at once, and it is false.
    fn take(self: &Arc<Self>, gate: &Arc<Gate>, client: tokio::net::TcpStream) -> bool {
        let limits = self.limits();
        let refuse = |limit| {
            self.denied.fetch_add(1, Ordering::Relaxed);
            self.limited(limit, 1);
            let _ = client.set_zero_linger();
            false
        };
        if !self.new.take(limits.new_per_s) {
            return refuse("new_per_s");
        }
        let slot = Slot(Arc::clone(self));
        if self.open.fetch_add(1, Ordering::Relaxed) >= limits.flows && limits.flows != 0 {
            return refuse("flows");
        }
        tokio::spawn(flow::serve(Arc::clone(gate), Arc::clone(self), client, slot));
        true
    }

    /// What was said last.
    pub(super) fn told(&self) -> Arc<Attach> {
        Arc::clone(&self.told.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn limits(&self) -> NetLimits {
        self.told.read().unwrap_or_else(PoisonError::into_inner).policy.limits
    }

    /// Whether a query is within the limit.
    pub(super) fn takes_query(&self) -> bool {
        self.dns.take(self.limits().dns_per_s)
    }

    /// Puts another state of things in force, and ends the flows that it does not allow.
    pub(super) fn tell(&self, attach: Attach, rest: &Rest) {
        self.bits_per_s.store(attach.policy.limits.bits_per_s, Ordering::Relaxed);
        self.bytes_per_day.store(attach.policy.limits.bytes_per_day, Ordering::Relaxed);
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(attach);
        self.decide_again(rest);
    }

    /// As [`Link::tell`], with another policy and nothing else.
    pub(super) fn tell_policy(&self, policy: Policy, rest: &Rest) {
        self.tell(Attach { policy, ..(*self.told()).clone() }, rest);
    }

    /// Ends the flows that are not allowed now.
    pub(super) fn decide_again(&self, rest: &Rest) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let told = self.told();
        for live in self.live().values() {
            if !live.passes(&told.policy, rest) {
                live.cut.fire(Why::Policy.as_str());
            }
        }
    }

    /// Puts a flow in the list before it is dialled. The policy may have changed since it was
    /// decided: whoever changes it sees the flow here, or the flow sees the change.
    pub(super) fn list(self: &Arc<Self>, number: u64, live: &Arc<Live>, rest: &Rest) -> Listed {
        self.live().insert(number, Arc::clone(live));
        if self.closed.load(Ordering::SeqCst) {
            live.cut.fire("detached");
        } else if !live.passes(&self.told().policy, rest) {
            live.cut.fire(Why::Policy.as_str());
        }
        Listed { link: Arc::clone(self), number }
    }

    /// Changes when something else is told: to be read before what is told is used.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// A flow is connected. If something else was told since `generation`, the address may not be
    /// allowed any more, and nobody else could know.
    pub(super) fn connected(&self, live: &Live, address: SocketAddr, generation: u64, rest: &Rest) {
        *live.dialled.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        if self.generation() != generation && !live.passes(&self.told().policy, rest) {
            live.cut.fire(Why::Policy.as_str());
        }
    }

    /// Accepts nothing more, and ends all flows for this reason.
    pub(super) fn close(&self, why: &'static str) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(task) = self.accepting().take() {
            task.abort();
        }
        for live in self.live().values() {
            live.cut.fire(why);
        }
    }

    /// Whether it was let go.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends the flows to another computer, which is `host`, for this reason.
    pub(super) fn cut_to(&self, host: &str, why: &'static str) {
        for live in self.live().values() {
            if live.name.as_ref().is_some_and(|name| name.as_str() == host) {
                live.cut.fire(why);
            }
        }
    }

    /// Flows that are open.
    pub(super) fn flows(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn write(&self, record: &Record<'_>) -> io::Result<()> {
        self.journal.record(record).inspect_err(|error| {
            tracing::error!(computer = self.id, %error, "a record was not written");
        })
    }

    /// A flow was decided.
    pub(super) fn count(&self, verdict: Outcome) {
        let counter = if verdict == Outcome::Allow { &self.allowed } else { &self.denied };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A limit was met so many times.
    pub(super) fn limited(&self, limit: &'static str, count: u64) {
        self.limited.fetch_add(count, Ordering::Relaxed);
        if let Some(count) = self.notes.count(limit, count) {
            self.note(limit, count);
        }
    }

    /// Writes down what was counted and not noted.
    pub(super) fn flush_limits(&self) {
        for (limit, count) in self.notes.rest() {
            self.note(limit, count);
        }
    }

    /// The kernel has dropped so many packets that are no flow.
    pub(super) fn dropped(&self, why: &'static str, count: u64) {
        let (verdict, why) = (Some(Outcome::Deny), Some(Cow::Borrowed(why)));
        let _ = self.write(&Record { verdict, why, count: Some(count), ..Record::new(Kind::Drop) });
    }

    fn note(&self, limit: &'static str, count: u64) {
        let detail = Some(Cow::Borrowed(limit));
        let _ = self.write(&Record { detail, count: Some(count), ..Record::new(Kind::Limit) });
    }

    /// Whether the bytes of the day are used up.
    pub(super) fn day_is_over(&self) -> bool {
        let most = self.bytes_per_day.load(Ordering::Relaxed);
        most != 0 && self.day.add(0) >= most
    }

    pub(super) fn save_day(&self) {
        self.day.save();
    }

    /// How many bytes may be moved in one go.
    pub(super) fn portion(&self, most: usize) -> usize {
        Rate::portion(self.bits_per_s.load(Ordering::Relaxed), most)
    }

    /// Counts bytes that were moved for a flow; returns how long it has to wait before it moves more.
    pub(super) fn charge(&self, live: &Live, way: Way, bytes: usize) -> Duration {
        let (flow, all, rate) = match way {
            Way::Up => (&live.up, &self.up_bytes, &self.up),
            Way::Down => (&live.down, &self.down_bytes, &self.down),
        };
        flow.fetch_add(bytes as u64, Ordering::Relaxed);
        all.fetch_add(bytes as u64, Ordering::Relaxed);
        let most = self.bytes_per_day.load(Ordering::Relaxed);
        if self.day.add(bytes as u64) > most && most != 0 {
            self.limited("bytes_per_day", 1);
            live.cut.fire(Why::LimitDay.as_str());
        }
        let wait = rate.charge(bytes, self.bits_per_s.load(Ordering::Relaxed));
        if !wait.is_zero() {
            self.limited("bits_per_s", 1);
        }
        wait
    }

    pub(super) fn status(&self) -> Status {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            flows: self.flows(),
            allowed: read(&self.allowed),
            denied: read(&self.denied),
            limited: read(&self.limited),
            up_bytes: read(&self.up_bytes),
            down_bytes: read(&self.down_bytes),
            day_bytes: self.day.add(0),
        }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accepting(&self) -> std::sync::MutexGuard<'_, Option<AbortHandle>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// What is decided about it.
    pub(super) fn flow(&self) -> Flow<'_> {
        Flow { target: self.target, name: self.name.as_ref(), origin: self.origin, seen: self.looked.seen() }
    }

    fn passes(&self, policy: &Policy, rest: &Rest) -> bool {
        let decision = decide(policy, &self.flow(), rest.private());
        // What was not looked at cannot be looked at any more; a rule that needs it does not hold.
        let blind = decision.obligations.peek == Peek::Must && self.looked == Looked::Not
            || decision.obligations.inspect_http && !self.inspected;
        let address = |address: SocketAddr| dial::permits(rest, policy, address).is_ok();
        decision.verdict == Outcome::Allow && !blind && self.dialled().is_none_or(address)
    }

    /// Where it is, or was, connected to.
    pub(super) fn dialled(&self) -> Option<SocketAddr> {
        *self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open or close record with what is known of the flow.
    pub(super) fn record(&self, kind: Kind, number: u64) -> Record<'_> {
        Record {
            flow: Some(number),
            target: Some(SocketAddr::V4(self.target)),
            name: self.name.as_ref().map(|name| Cow::Borrowed(name.as_str())),
            ..Record::new(kind)
        }
    }
}
