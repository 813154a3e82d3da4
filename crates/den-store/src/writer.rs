//! The one connection that writes, and who may use it.
//!
//! ```text
//! op ─► nobody writes, nothing waits, nothing is flushed? ─yes─► on the calling thread: BEGIN · op · COMMIT ─► answer
//!         └─no─► queue ─► thread: take what waits, at most BATCH_MAX ─► BEGIN · ops · COMMIT ─► answers
//! ```
//!
//! An op is tens of microseconds; waking a thread for it and being woken by it costs as much again, and
//! many times that where idle processors are slow to wake. So an op that meets no other is done in place.
//!
//! Invariants:
//! - An op that fails undoes itself and no other. A commit that fails fails all of its batch.
//! - Ops are written in the order in which they were submitted: in place only while none waits.
//! - The caller is not held up by others: in place only where the lock is free at once, no flush or copy of the
//!   WAL is under way, it does not begin anew, and the last write in place was not slow.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::{
    mpsc::{self, Receiver, Sender, error::TrySendError},
    oneshot,
};

use crate::{
    Durability, Inner, Meters, Parts, QUEUE_MAX, StoreError,
    error::{Inside, Op},
    sync::{self, AHEAD, CHECKPOINT_PAGES, CHECKPOINT_PAGES_FORCED, Handle},
};

/// Most ops in one transaction: bounds how long the first waits for the last.
const BATCH_MAX: usize = 256;

/// A write in place that took longer says that the disk is slow now.
const SLOW: Duration = Duration::from_millis(2);

/// After a slow write in place only the thread writes, for so long.
const SLOW_PAUSE: Duration = Duration::from_secs(1);

/// An op waiting for a full queue to have room; keeps the store open until then.
pub(crate) type Queueing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An op on its way through the writer: run once, then answered once.
pub(crate) trait Job: Send {
    fn durability(&self) -> Durability;
    fn parts(&self) -> Parts;
    /// Does it within the open transaction and keeps the outcome; whether it went well.
    fn run(&mut self, connection: &Connection, handle: &Handle) -> bool;
    /// Tells the caller the outcome, or `instead` where the batch came to grief.
    fn answer(self: Box<Self>, instead: Option<StoreError>);
}

struct Write<T, F> {
    op: Op,
    durability: Durability,
    parts: Parts,
    work: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

/// Packs `work` for the writer.
pub(crate) fn job<T, F>(
    op: Op,
    durability: Durability,
    parts: Parts,
    work: F,
    reply: oneshot::Sender<Result<T, StoreError>>,
) -> Box<dyn Job>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, Inside> + Send + 'static,
{
    Box::new(Write { op, durability, parts, work: Some(work), outcome: None, reply })
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T, Inside> + Send> Job for Write<T, F> {
    fn durability(&self) -> Durability {
        self.durability
    }

    fn parts(&self) -> Parts {
        self.parts
    }

    fn run(&mut self, connection: &Connection, handle: &Handle) -> bool {
        let Some(work) = self.work.take() else { return false };
        let outcome = work(connection).map_err(|inside| inside.during(self.op, &handle.path));
        let well = outcome.is_ok();
        self.outcome = Some(outcome);
        well
    }

    fn answer(self: Box<Self>, instead: Option<StoreError>) {
        let outcome = match (self.outcome, instead) {
            // An op's own error says more than the batch's.
            (Some(Err(own)), _) => Err(own),
            (_, Some(error)) => Err(error),
            (Some(outcome), None) => outcome,
            (None, None) => Err(StoreError::Closed),
        };
        let _ = self.reply.send(outcome); // The caller may have gone; the fact is written.
    }
}

/// The queue's entrance, the thread behind it, and the connection that both write with.
pub(crate) struct Writer {
    queue: Option<Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    pen: Mutex<Pen>,
    /// Ops that were queued and are not written yet.
    queued: AtomicUsize,
}

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// The caller, who may be one of few threads that all requests share.
    InPlace,
    Thread,
}

/// What one writer at a time holds.
struct Pen {
    connection: Connection,
    handle: Handle,
    meters: Arc<Meters>,
    /// Pages in the WAL after the last commit.
    pages: Arc<AtomicI32>,
    /// Each copy syncs the disk twice, so they are asked for by pages written, not by commits.
    next_copy: i32,
    /// The first frame of the WAL that nobody was asked to have in memory.
    next_ahead: i32,
    /// Until when nothing is written in place.
    slow_until: Option<Instant>,
}

impl Writer {
    /// How many ops wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.max_capacity() - queue.capacity())
    }

    pub(crate) fn start(mut connection: Connection, handle: Handle, meters: Arc<Meters>) -> Result<Self, StoreError> {
        let path = Arc::clone(&handle.path);
        let failed = |error| Inside::Sqlite(error).during(Op::Open, &path);
        let pages = Arc::new(AtomicI32::new(0));
        let counted = Arc::clone(&pages);
        connection
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
                counted.store(pages, Ordering::Relaxed);
                Ok(())
            }))
            .map_err(failed)?;
        let pen =
            Pen { connection, handle, meters, pages, next_copy: CHECKPOINT_PAGES, next_ahead: 0, slow_until: None };
        let shared = Arc::new(Shared { pen: Mutex::new(pen), queued: AtomicUsize::new(0) });
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        let own = Arc::clone(&shared);
        let thread = sync::spawn("den-store-write", move || run(&own, inbox));
        let thread = thread.map_err(|source| StoreError::File {
            doing: "start a thread for",
            path: path.to_path_buf(),
            source: Arc::new(source),
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), shared })
    }

    /// Does the op in place, or queues it; where there is no room, returns what will.
    pub(crate) fn submit(&self, store: &Arc<Inner>, job: Box<dyn Job>) -> Option<Queueing> {
        let job = self.shared.in_place(job)?;
        let queue = self.queue.as_ref().expect("there until dropped");
        self.shared.queued.fetch_add(1, Ordering::SeqCst);
        match queue.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Closed(job)) => {
                self.shared.queued.fetch_sub(1, Ordering::SeqCst);
                job.answer(Some(StoreError::Closed));
                None
            }
            Err(TrySendError::Full(job)) => {
                // Its place in the order is what it has once it is polled.
                self.shared.queued.fetch_sub(1, Ordering::SeqCst);
                let store = Arc::clone(store);
                Some(Box::pin(async move {
                    let writer = &store.writer;
                    let queue = writer.queue.as_ref().expect("there until dropped");
                    match queue.reserve().await {
                        Ok(place) => {
                            writer.shared.queued.fetch_add(1, Ordering::SeqCst);
                            place.send(job);
                        }
                        Err(_) => job.answer(Some(StoreError::Closed)),
                    }
                }))
            }
        }
    }
}

impl Drop for Writer {
    /// Waits for what is queued to be written.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic there was printed there.
        }
    }
}

impl Shared {
    /// Writes the op on the calling thread; gives it back where that would wait or overtake.
    fn in_place(&self, job: Box<dyn Job>) -> Option<Box<dyn Job>> {
        let Ok(mut pen) = self.pen.try_lock() else { return Some(job) };
        // Whatever was submitted before this op is counted here until it is written.
        if self.queued.load(Ordering::SeqCst) > 0 || !pen.is_quick() {
            return Some(job);
        }
        let began = Instant::now();
        pen.write(&mut vec![job], Where::InPlace);
        if began.elapsed() > SLOW {
            pen.slow_until = Some(began + SLOW_PAUSE);
        }
        None
    }
}

impl Pen {
    /// Whether a write is likely to be over at once.
    fn is_quick(&mut self) -> bool {
        if self.slow_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.slow_until = None;
        !self.handle.is_busy()
            && !self.handle.next().begins_anew()
            && self.pages.load(Ordering::Relaxed) < CHECKPOINT_PAGES_FORCED
    }

    /// Writes and answers a batch, and has the WAL copied when it is time.
    fn write(&mut self, batch: &mut Vec<Box<dyn Job>>, on: Where) {
        let began = Instant::now();
        self.meters.batch.add(batch.len() as u64);
        let failure = write_batch(&self.connection, batch, &self.handle).err();
        self.meters.commit.add_time(began.elapsed());
        let mut waiting = Vec::new();
        for job in batch.drain(..) {
            match job.durability() {
                Durability::Power if failure.is_none() => waiting.push(job),
                _ => job.answer(failure.clone()),
            }
        }
        if !waiting.is_empty() {
            self.handle.sync(waiting);
        }
        let pages = self.pages.load(Ordering::Relaxed);
        self.handle.next().written();
        self.ahead_of(pages);
        if pages < self.next_copy - CHECKPOINT_PAGES {
            self.next_copy = CHECKPOINT_PAGES; // The WAL has begun anew.
        }
        // In place nobody waits for a copy: the next op goes to the thread, which makes it.
        let forced = pages >= CHECKPOINT_PAGES_FORCED;
        if pages >= self.next_copy && (on == Where::Thread || !forced) {
            self.next_copy = pages + CHECKPOINT_PAGES;
            if !forced {
                self.handle.checkpoint();
            } else {
                match sync::checkpoint(&self.connection) {
                    Ok(all) => self.handle.next().copied(all),
                    Err(error) => tracing::warn!(%error, "the write-ahead log is long and could not be copied"),
                }
            }
        }
    }

    /// Keeps between one and two parts of the WAL in memory that come after its `pages`.
    fn ahead_of(&mut self, pages: i32) {
        // It has begun anew, or leapt.
        if pages < self.next_ahead - 2 * AHEAD || pages > self.next_ahead {
            self.next_ahead = pages;
        }
        while self.next_ahead < pages + AHEAD {
            self.handle.next().read_ahead(self.next_ahead);
            self.next_ahead += AHEAD;
        }
    }
}

fn run(shared: &Shared, mut inbox: Receiver<Box<dyn Job>>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let count = inbox.blocking_recv_many(&mut batch, BATCH_MAX);
        // A panic left the lock poisoned, and the connection who knows where: all are answered `closed`.
        let Ok(mut pen) = shared.pen.lock() else { return };
        if count == 0 {
            return;
        }
        pen.write(&mut batch, Where::Thread);
        shared.queued.fetch_sub(count, Ordering::SeqCst);
    }
}

/// Runs and commits a batch. An error means that none of it was written.
fn write_batch(connection: &Connection, batch: &mut [Box<dyn Job>], handle: &Handle) -> Result<(), StoreError> {
    let result = try_batch(connection, batch, handle);
    if result.is_err() && !connection.is_autocommit() {
        let _ = execute(connection, "ROLLBACK"); // Nothing was committed either way.
    }
    result.map_err(|error| Inside::Sqlite(error).during(Op::Commit, &handle.path))
}

fn try_batch(connection: &Connection, batch: &mut [Box<dyn Job>], handle: &Handle) -> rusqlite::Result<()> {
    execute(connection, "BEGIN IMMEDIATE")?;
    for job in batch {
        let savepoint = job.parts() == Parts::Several;
        if savepoint {
            execute(connection, "SAVEPOINT op")?;
        }
        let well = job.run(connection, handle);
        if connection.is_autocommit() {
            // A full disk or an I/O error undoes the whole transaction on the spot (lang_transaction.html,
            // "Response To Errors Within A Transaction").
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK),
                Some("an operation of the same batch failed and undid it".to_owned()),
            ));
        }
        if savepoint {
            if !well {
                execute(connection, "ROLLBACK TO op")?;
            }
            execute(connection, "RELEASE op")?;
        }
    }
    execute(connection, "COMMIT")
}

fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use crate::{Durability, Parts, Store, error::Op};

    /// The first write to a log that begins anew waits for the disk, and who asks is one of few threads.
    #[tokio::test]
    async fn a_log_is_begun_anew_by_the_writers_own_thread() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let log = std::fs::File::open(folder.path().join("den.db-wal")).unwrap();
        let begun = || {
            let mut salt = [0; 8];
            log.read_exact_at(&mut salt, 16).ok().map(|()| salt)
        };
        store
            .write(Op::Commit, Durability::Power, Parts::One, |db| Ok(db.execute_batch("CREATE TABLE t (v)")?))
            .await
            .unwrap();
        let (mut anew, mut in_place) = (0, 0);
        let mut last = begun();
        while anew < 3 {
            let write = store.write(Op::Commit, Durability::Process, Parts::One, |db| {
                db.execute("INSERT INTO t VALUES (randomblob(9000))", [])?;
                Ok(std::thread::current().name() == Some("den-store-write"))
            });
            let by_thread = write.await.unwrap();
            in_place += usize::from(!by_thread);
            if by_thread {
                std::thread::sleep(std::time::Duration::from_millis(10)); // A copy gets all.
            }
            if begun() != last {
                last = begun();
                anew += 1;
                assert!(by_thread, "the {anew}. time it was begun in place");
            }
        }
        assert!(in_place > 0, "{in_place} were written in place");
    }
}
