//! What happens is told as it happens, and written down in batches.
//!
//! ```text
//! tell ──try_send──► queue ──► writer: takes what waits ─► one write ─► the newest number (watch)
//!   never waits        full: counted, and told of                          │
//!                                                        followers ◄───────┘ read on from where they are
//! ```
//!
//! Invariants:
//! - Telling never waits and never fails: no request is slower for it than for a push into a queue.
//! - A follower reads from the store only, from its number on, so it misses nothing and gets nothing twice.
//! - What was left out is counted, and that is an event too.
//!
//! An event is told after its fact is recorded. A crash may lose the last few milliseconds of them, never the facts.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use den_api::{EventPage, EventView};
use den_model::{ComputerId, ComputerName, Event, EventKind};
use den_store::{Durability, EventFilter, EventRows, EventsOf, NewEvent, Store};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    control::{Control, now, page_limit},
    errors::chain,
    handle::Handle,
    limits::{EVENT_DETAIL_BYTES_MAX, EVENTS_BATCH_MAX, EVENTS_GATHER, EVENTS_QUEUE_MAX, PAGE_MAX},
};

/// The way in for whoever has something to tell.
pub(crate) struct Events {
    /// None once it is closed.
    queue: Mutex<Option<mpsc::Sender<NewEvent>>>,
    counts: Arc<Counts>,
    newest: watch::Receiver<u64>,
    /// Those who follow are to go.
    ending: CancellationToken,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What was told since the daemon began.
pub(crate) struct Counts {
    /// By kind, in the order of [`EventKind::ALL`].
    kinds: Vec<AtomicU64>,
    /// Left out and not told of yet.
    lost: AtomicU64,
}

impl Counts {
    fn add(&self, kind: EventKind) {
        if let Some(count) = EventKind::ALL.iter().position(|&other| other == kind).and_then(|at| self.kinds.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often each kind was told of.
    pub(crate) fn of_kinds(&self) -> impl Iterator<Item = (EventKind, u64)> {
        EventKind::ALL.iter().copied().zip(self.kinds.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

impl Events {
    /// Begins to take events for `store`. Runs a task of its own until it is closed or dropped.
    pub(crate) fn new(store: &Store) -> Self {
        let (queue, inbox) = mpsc::channel(EVENTS_QUEUE_MAX);
        let kinds = EventKind::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        let counts = Arc::new(Counts { kinds, lost: AtomicU64::new(0) });
        let (written, newest) = watch::channel(0);
        let writer = tokio::spawn(write(store.clone(), inbox, Arc::clone(&counts), written));
        let ending = CancellationToken::new();
        Self { queue: Mutex::new(Some(queue)), counts, newest, ending, writer: Mutex::new(Some(writer)) }
    }

    /// Tells that something happened, to `handle` or to the house, and who asked for it. `detail` is a JSON object,
    /// or null where there is no more to say.
    pub(crate) fn tell(&self, kind: EventKind, handle: Option<&Handle>, who: Option<&str>, detail: Value) {
        self.tell_of(kind, handle.map(|handle| (handle.id, handle.name())), who, detail);
    }

    /// As [`Events::tell`], of a computer that has no handle, or no longer has.
    pub(crate) fn tell_of(
        &self,
        kind: EventKind,
        computer: Option<(ComputerId, &ComputerName)>,
        who: Option<&str>,
        detail: Value,
    ) {
        self.counts.add(kind);
        let (computer, name) = computer.map(|(id, name)| (id, name.to_string())).unzip();
        let who = who.map(str::to_owned);
        let event = NewEvent { at: now(), kind, computer, name, who, detail: text_of(&detail) };
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = &*queue
            && queue.try_send(event).is_err()
        {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was told since the daemon began.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Writes what is queued, and ends the streams of those who follow. What is told later is left out.
    pub(crate) async fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.await; // A panic there was printed there.
        }
    }
}

/// The detail as it is kept: an object of a bounded size.
fn text_of(detail: &Value) -> String {
    match detail {
        Value::Object(_) => {
            let text = detail.to_string();
            match text.len() {
                0..=EVENT_DETAIL_BYTES_MAX => text,
                bytes => json!({ "left_out_bytes": bytes }).to_string(),
            }
        }
        Value::Null => "{}".to_owned(),
        other => text_of(&json!({ "value": other })),
    }
}

async fn write(store: Store, mut inbox: mpsc::Receiver<NewEvent>, counts: Arc<Counts>, written: watch::Sender<u64>) {
    let mut batch = Vec::with_capacity(EVENTS_BATCH_MAX);
    while inbox.recv_many(&mut batch, EVENTS_BATCH_MAX).await > 0 {
        // What belongs together is written together, and after the answer that it would hold up.
        if batch.len() < EVENTS_BATCH_MAX && !inbox.is_closed() {
            tokio::time::sleep(EVENTS_GATHER).await;
            while batch.len() < EVENTS_BATCH_MAX
                && let Ok(event) = inbox.try_recv()
            {
                batch.push(event);
            }
        }
        let lost = counts.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "events came faster than they could be written down");
            counts.add(EventKind::EventsLost);
            let detail = json!({ "count": lost }).to_string();
            let kind = EventKind::EventsLost;
            batch.push(NewEvent { at: now(), kind, computer: None, name: None, who: None, detail });
        }
        let count = batch.len() as u64;
        match store.insert_events(std::mem::take(&mut batch), Durability::Process).await {
            Ok(last) => drop(written.send_replace(last)),
            Err(error) => {
                tracing::error!(count, error = chain(&error), "events are not written down");
                counts.lost.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// Which events to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadEvents {
    /// Only beyond this number.
    pub after: Option<u64>,
    /// How many at most.
    pub limit: Option<usize>,
    /// The latest so many, in place of `after` and `limit`.
    pub last: Option<usize>,
    /// Only those of this computer, by name, id or the beginning of an id. It may be gone.
    pub computer: Option<String>,
    /// Only these kinds.
    pub kinds: Vec<String>,
}

/// Follows what happens.
pub struct EventReader {
    store: Store,
    filter: EventFilter,
    newest: watch::Receiver<u64>,
    ending: CancellationToken,
}

impl Control {
    /// A page of what happened, the oldest first.
    ///
    /// Errors: `computer_not_found`, `bad_request`.
    pub async fn events(&self, read: ReadEvents) -> Result<EventPage, Error> {
        let mut filter = self.event_filter(&read).await?;
        let limit = match read.last {
            Some(last @ 1..=PAGE_MAX) => {
                (filter.after, filter.newest) = (0, true);
                last
            }
            Some(last) => return Err(Error::bad_request(format!("`last`: {last} is not from 1 to {PAGE_MAX}"))),
            None => page_limit(read.limit)?,
        };
        let after = filter.after;
        page(after, self.0.store.events(filter, limit).await?)
    }

    /// Ends the streams of those who follow, for they would hold up the daemon's end.
    pub fn end_followers(&self) {
        self.0.events.ending.cancel();
    }

    /// Writes down what is told and not written yet. What is told later is left out.
    pub async fn close_events(&self) {
        self.0.events.close().await;
    }

    /// Reads on as things happen.
    ///
    /// Errors: `computer_not_found`, `bad_request`.
    pub async fn follow_events(&self, read: ReadEvents) -> Result<EventReader, Error> {
        let filter = self.event_filter(&read).await?;
        let events = &self.0.events;
        let (newest, ending) = (events.newest.clone(), events.ending.clone());
        Ok(EventReader { store: self.0.store.clone(), filter, newest, ending })
    }

    async fn event_filter(&self, read: &ReadEvents) -> Result<EventFilter, Error> {
        let kinds = read.kinds.iter().map(|text| {
            EventKind::parse(text).ok_or_else(|| {
                let all: Vec<_> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
                Error::bad_request(format!("`kind`: `{text}` is none of {}", all.join(", ")))
            })
        });
        let kinds = kinds.collect::<Result<_, _>>()?;
        let of = match &read.computer {
            Some(computer) => Some(self.events_of(computer).await?),
            None => None,
        };
        Ok(EventFilter { after: read.after.unwrap_or(0), kinds, of, newest: false })
    }

    /// Whom a name or an id speaks of; one that is gone is known by its events.
    async fn events_of(&self, computer: &str) -> Result<EventsOf, Error> {
        let not_there = match self.0.registry.find_any(computer) {
            Ok(handle) => return Ok(EventsOf::Id(handle.id)),
            Err(error) if error.code != "computer_not_found" => return Err(error),
            Err(error) => error,
        };
        let of = match computer.parse() {
            Ok(id) => EventsOf::Id(id),
            Err(_) => EventsOf::Name(computer.to_owned()),
        };
        let filter = EventFilter { of: Some(of.clone()), ..EventFilter::default() };
        match self.0.store.events(filter, 1).await?.events.is_empty() {
            true => Err(not_there),
            false => Ok(of),
        }
    }
}

impl EventReader {
    /// The next events, as soon as there are some; `None` once the house is closed.
    pub async fn next(&mut self) -> Result<Option<EventPage>, Error> {
        loop {
            // Asked before it is read: what is written after this is a change.
            let open = self.newest.has_changed().is_ok();
            self.newest.mark_unchanged();
            let after = self.filter.after;
            let page = page(after, self.store.events(self.filter.clone(), PAGE_MAX).await?)?;
            self.filter.after = page.next;
            if !page.events.is_empty() || page.lost {
                return Ok(Some(page));
            }
            let changed = tokio::select! {
                changed = self.newest.changed() => changed.is_ok(),
                () = self.ending.cancelled() => false,
            };
            if !open || !changed {
                return Ok(None);
            }
        }
    }
}

fn page(after: u64, rows: EventRows) -> Result<EventPage, Error> {
    let EventRows { events, upto, oldest } = rows;
    let lost = after > 0 && after.saturating_add(1) < oldest;
    let events = events.into_iter().map(view).collect::<Result<_, _>>()?;
    Ok(EventPage { events, next: upto.max(after), lost })
}

fn view(event: Event) -> Result<EventView, Error> {
    let Event { number, at, kind, computer, name, who, detail } = event;
    let detail = serde_json::from_str(&detail)
        .map_err(|error| Error::internal(format!("the detail of the event {number}")).because(error))?;
    Ok(EventView { number, at, kind, computer, name, who, detail })
}
