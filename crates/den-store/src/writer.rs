//! The thread that owns the one connection that writes.
//!
//! ```text
//! queue ─► take what waits, at most BATCH_MAX ─► BEGIN IMMEDIATE ─► ops ─► COMMIT ─► answers
//! ```
//!
//! An op that fails undoes itself and no other. A commit that fails fails all of its batch.

use std::{cell::Cell, future::Future, pin::Pin, sync::Arc, thread::JoinHandle};

use rusqlite::Connection;
use tokio::sync::{
    mpsc::{self, Receiver, Sender, error::TrySendError},
    oneshot,
};

use crate::{
    Durability, Inner, Parts, QUEUE_MAX, StoreError,
    error::{Inside, Op},
    sync::{self, CHECKPOINT_PAGES, CHECKPOINT_PAGES_FORCED, Handle},
};

/// Most ops in one transaction: bounds how long the first waits for the last.
const BATCH_MAX: usize = 256;

thread_local! {
    /// Pages in the WAL after the last commit of this thread.
    static WAL_PAGES: Cell<i32> = const { Cell::new(0) };
}

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

/// The queue's entrance and the thread behind it.
pub(crate) struct Writer {
    queue: Option<Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(mut connection: Connection, handle: Handle) -> Result<Self, StoreError> {
        let path = Arc::clone(&handle.path);
        let failed = |error| Inside::Sqlite(error).during(Op::Open, &path);
        connection
            .wal_hook(Some(|_: &mut rusqlite::hooks::Wal, pages| {
                WAL_PAGES.set(pages);
                Ok(())
            }))
            .map_err(failed)?;
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        let thread = sync::spawn("den-store-write", move || run(&connection, inbox, &handle));
        let thread = thread.map_err(|source| StoreError::File {
            doing: "start a thread for",
            path: path.to_path_buf(),
            source: Arc::new(source),
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues the op; where there is no room, returns what will.
    pub(crate) fn submit(&self, store: &Arc<Inner>, job: Box<dyn Job>) -> Option<Queueing> {
        let queue = self.queue.as_ref().expect("there until dropped");
        match queue.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Closed(job)) => {
                job.answer(Some(StoreError::Closed));
                None
            }
            Err(TrySendError::Full(job)) => {
                let store = Arc::clone(store);
                Some(Box::pin(async move {
                    let queue = store.writer.queue.as_ref().expect("there until dropped");
                    if let Err(mpsc::error::SendError(job)) = queue.send(job).await {
                        job.answer(Some(StoreError::Closed));
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

fn run(connection: &Connection, mut inbox: Receiver<Box<dyn Job>>, handle: &Handle) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    // Each copy syncs the disk twice, so they are asked for by pages written, not by commits.
    let mut next_copy = CHECKPOINT_PAGES;
    while inbox.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let failure = write_batch(connection, &mut batch, handle).err();
        let mut waiting = Vec::new();
        for job in batch.drain(..) {
            match job.durability() {
                Durability::Power if failure.is_none() => waiting.push(job),
                _ => job.answer(failure.clone()),
            }
        }
        if !waiting.is_empty() {
            handle.sync(waiting);
        }
        let pages = WAL_PAGES.get();
        if pages < next_copy - CHECKPOINT_PAGES {
            next_copy = CHECKPOINT_PAGES; // The WAL has begun anew.
        }
        if pages >= next_copy {
            next_copy = pages + CHECKPOINT_PAGES;
            if pages < CHECKPOINT_PAGES_FORCED {
                handle.checkpoint();
            } else if let Err(error) = sync::checkpoint(connection) {
                tracing::warn!(%error, "the write-ahead log is long and could not be copied");
            }
        }
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
