//! The durable facts: computers, their steps, their kept states, and which creates were asked for already.
//!
//! ```text
//! callers ──submit──► queue ──► writer thread ── BEGIN · op · op · op · COMMIT ──► answers Process
//!    ▲    └─ nobody else writes: in place ──────┘ one connection    │ (WAL written)
//!    │                                                              ▼
//!    ├──────────────── answers Power ◄── sync thread: one fdatasync of the WAL for all who wait
//!    │
//!    └── reads: a few read-only connections        checkpoint thread: WAL ──► den.db
//!                                                  ahead thread: has in memory what of the WAL is written over next
//! ```
//!
//! **Two durabilities.** A commit writes its frames into the WAL file, so once it has returned, the
//! facts survive the end of this process by any signal; [`Durability::Process`] is answered there.
//! [`Durability::Power`] is answered after the WAL was flushed too.
//!
//! *Why an fdatasync of our own is right.* The connections run under `synchronous = NORMAL`. What
//! `FULL` adds to it in WAL mode is one thing: `walFrames` in SQLite syncs the WAL file after the
//! commit frame (it also pads to a sector, but not where overwriting is power-safe, SQLite's
//! default on Unix). The sync thread makes that same call, later and once for many. Between a commit
//! and its sync a checkpoint may run and the WAL may begin anew, overwriting the frames waited for;
//! that is harmless, because `walCheckpoint` syncs the WAL before it copies, syncs the database
//! before it calls the frames copied, and the WAL begins anew only when all were. The directory is
//! synced by SQLite when it first syncs a WAL it made, which under NORMAL is before the first frame.
//! The WAL file keeps its inode while a connection is open, and SQLite holds its locks on other
//! files, so our own descriptors neither go stale nor drop a lock when closed.
//!
//! Invariants:
//! - An acknowledged fact is there after the next open; one not acknowledged is there whole or not at all.
//! - Facts are written in the order in which they were submitted (see [`Pending`] for a full queue).
//! - Reads see every fact that was acknowledged before they began.
//! - After a failed sync nothing is acknowledged as power-safe until the store is opened again:
//!   the kernel reports a lost page once, and a second sync would lie.
//! - One process owns a store, by a lock that ends with the process.
//!
//! Not here: which state may follow which (`den-model`), what a request means (`den-control`),
//! the output of steps (files of their own).

mod backup;
mod computers;
mod error;
mod events;
mod facts;
mod history;
mod life;
mod lock;
mod net;
mod pools;
mod readers;
mod schema;
mod services;
mod size;
mod steps;
mod sync;
mod together;
mod trash;
mod undo;
mod undo_rows;
mod volumes;
mod wal;
mod writer;

use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use den_model::meter::{Histogram, SIZES, TIMES};
use tokio::sync::oneshot;

pub use backup::{CopyRow, StoreCopy, schema_known};
pub use computers::{Filter, Idempotency};
pub use error::StoreError;
pub use events::{EVENTS_KEPT_MAX, EventFilter, EventRows, EventsOf, NewEvent};
pub use life::Life;
pub use net::NetChange;
pub use steps::Order;
pub use undo_rows::{NewUndo, UNDO_GONE_KEPT_MAX, UNDO_KEPT_MAX, UndoOf, UndoRow};

use crate::{error::Op, lock::Lock, readers::Readers, sync::Syncer, writer::Writer};

/// The name of the database in the directory given to [`Store::open`].
pub const FILE: &str = "den.db";
/// How SQLite has the file. This process alone opens it, and the index of the log is memory of this process: mapped
/// from a file, as usually, it ends the process (SIGBUS) once a file system that copies on write is full.
/// Source: sqlite.org/vfs.html, "unix-excl".
pub(crate) const VFS: &str = "unix-excl";
/// Most operations waiting for the writer. More wait in their callers.
pub const QUEUE_MAX: usize = 4096;
/// Most rows that one list call returns, whatever was asked for.
pub const LIST_ROWS_MAX: usize = 1000;

/// What an acknowledged fact survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of this process at any instant. Costs tens of microseconds.
    Process,
    /// The end of power too. Costs one flush of the disk, shared with all who wait for one.
    Power,
}

/// The facts of one `serve`. Clones are the same store; the last one dropped ends the threads.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

// Dropped in this order: the writer ends while the syncer still answers, and the lock goes last.
struct Inner {
    readers: Arc<Readers>,
    writer: Writer,
    _syncer: Syncer,
    meters: Arc<Meters>,
    path: PathBuf,
    lock: Lock,
}

impl Drop for Inner {
    /// The log goes with the last connection.
    fn drop(&mut self) {
        self.lock.no_longer_in_use();
    }
}

impl Store {
    /// Opens the store in `dir`, making or migrating it where needed.
    ///
    /// Blocks for as long as recovering the WAL takes, milliseconds as a rule.
    ///
    /// Errors: `store_locked` where another process has it; `store_newer` where a later Den wrote
    /// it, and `store_corrupt` or `store_foreign` where it is no store, all before anything is written.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_in(dir, false)
    }

    /// As [`Store::open`], in a folder that holds what a store knew of: a new one would know of nothing.
    ///
    /// Errors: also `store_missing`, and nothing is made.
    pub fn open_again(dir: &Path) -> Result<Self, StoreError> {
        Self::open_in(dir, true)
    }

    fn open_in(dir: &Path, again: bool) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let lock = Lock::take(dir.join("den.db.lock"))?;
        let log = wal::check(&path)?;
        if again && !path.exists() {
            return Err(StoreError::Missing { path });
        }
        // A log that was left and is not there must have been copied into the database.
        let there = path.metadata().is_ok_and(|facts| facts.len() > 0);
        let copied = lock.left().filter(|_| there && !log);
        let (connection, mark) = schema::open(&path, again, copied)?;
        let meters = Arc::new(Meters::default());
        let syncer = Syncer::start(&path, Arc::clone(&meters))?;
        let readers = Arc::new(Readers::new(path.clone()));
        let writer = Writer::start(connection, syncer.handle(), Arc::clone(&meters))?;
        // From here on a log belongs to the database, until it is closed.
        lock.in_use(dir, &mark)?;
        Ok(Self(Arc::new(Inner { readers, writer, _syncer: syncer, meters, path, lock })))
    }

    /// Reads every page and says whether the file is whole. Takes about a second a gigabyte.
    ///
    /// Errors: `store_corrupt` with SQLite's words for what is wrong.
    pub async fn check(&self) -> Result<(), StoreError> {
        let path = self.0.path.clone();
        self.read_many(Op::Check, move |connection| {
            let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            Ok(found)
        })
        .await
        .and_then(|found| if found == "ok" { Ok(()) } else { Err(StoreError::Corrupt { path, found }) })
    }

    /// How it does, since it was opened.
    pub fn meters(&self) -> &Meters {
        &self.0.meters
    }

    /// How many operations wait for the writer.
    pub fn waiting(&self) -> usize {
        self.0.writer.waiting()
    }

    /// Writes nothing, and returns once all that was queued before is written: whether it would be.
    pub fn probe(&self) -> Pending<()> {
        self.write(Op::Check, Durability::Process, Parts::One, |connection| {
            // A page is changed and left as it was.
            connection.prepare_cached("UPDATE meta SET value = value WHERE key = ''")?.execute([])?;
            Ok(())
        })
    }

    /// Writes `work` in place, or queues it for the writer; it is one unit even in a batch.
    fn write<T, F>(&self, op: Op, durability: Durability, parts: Parts, work: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T, error::Inside> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = writer::job(op, durability, parts, work, reply);
        Pending { queueing: self.0.writer.submit(&self.0, job), answer }
    }

    /// Reads a row or a few on the calling thread: tens of microseconds.
    fn read_few<T>(
        &self,
        op: Op,
        read: impl FnOnce(&rusqlite::Connection) -> Result<T, error::Inside>,
    ) -> Result<T, StoreError> {
        self.0.readers.with(read).map_err(|inside| inside.during(op, &self.0.path))
    }

    /// Reads many rows on a thread that may block.
    async fn read_many<T, F>(&self, op: Op, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T, error::Inside> + Send + 'static,
    {
        let _turn = self.0.readers.turn().await;
        let readers = Arc::clone(&self.0.readers);
        let result = tokio::task::spawn_blocking(move || readers.with(read)).await;
        result.map_err(|_| StoreError::Closed)?.map_err(|inside| inside.during(op, &self.0.path))
    }
}

/// What is measured of a store.
#[derive(Debug)]
pub struct Meters {
    /// Operations in a transaction.
    pub batch: Histogram,
    /// How long a transaction takes.
    pub commit: Histogram,
    /// How long the disk takes to confirm what was written.
    pub sync: Histogram,
}

impl Default for Meters {
    fn default() -> Self {
        Self { batch: Histogram::new(SIZES), commit: Histogram::new(TIMES), sync: Histogram::new(TIMES) }
    }
}

/// Whether an operation is one SQL statement, which SQLite undoes by itself when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts {
    One,
    Several,
}

/// The answer to a write that is done or queued already, whether this is awaited or not.
///
/// Dropping it does not undo the write. Where the queue was full (more than [`QUEUE_MAX`] waiting),
/// the write is queued when this is first polled, and only then has its place in the order.
#[must_use = "whether the fact was written is known only by awaiting this"]
pub struct Pending<T> {
    queueing: Option<writer::Queueing>,
    answer: oneshot::Receiver<Result<T, StoreError>>,
}

impl<T> Future for Pending<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(queueing) = &mut self.queueing {
            if queueing.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.queueing = None;
        }
        // The sender is dropped unanswered only when the writer thread is gone.
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or(Err(StoreError::Closed)))
    }
}
