//! What is slow, each on a thread of its own so that commits go on meanwhile: flushing the WAL for those who wait for
//! power safety, copying the WAL into the database, and reading what of the WAL is written over next.
//!
//! SQLite writes the WAL over from its beginning once all of it was copied, in frames that are no whole blocks of a
//! file system. The kernel reads such a block first where its memory has given it up, and a commit waits: 0.1 ms for
//! each of its frames, and 20 where a neighbour keeps the disk busy.

use std::{
    fs::File,
    io,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::JoinHandle,
    time::Instant,
};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::Advice;

use crate::{
    Meters, StoreError, VFS,
    error::{Inside, Op},
    writer::Job,
};

/// After so many pages in the WAL (of 4 KiB) it is copied into the database.
pub(crate) const CHECKPOINT_PAGES: i32 = 2048;
/// From so many pages on the writer itself copies, and nothing is added meanwhile: under steady load
/// the thread never catches up, and the WAL begins anew only when all of it was copied.
pub(crate) const CHECKPOINT_PAGES_FORCED: i32 = 4 * CHECKPOINT_PAGES;

/// A page of the database in the WAL (fileformat2.html, "WAL File Format"): its head and 4 KiB. The WAL's own head of 32
/// bytes is no matter here.
const FRAME_BYTES: u64 = 24 + 4096;
/// So many frames are read at a time, 512 KiB, which are those of some sixty commands.
pub(crate) const AHEAD: i32 = 128;

/// Owns the threads. Dropped after the writer, whose handle keeps them going.
pub(crate) struct Syncer {
    handle: Option<Handle>,
    threads: Vec<JoinHandle<()>>,
}

/// What the writer speaks to.
#[derive(Clone)]
pub(crate) struct Handle {
    waiters: Sender<Vec<Box<dyn Job>>>,
    checkpoint: SyncSender<()>,
    /// Flushes and copies that are asked for and not done.
    busy: Arc<AtomicUsize>,
    next: Next,
    pub(crate) path: Arc<Path>,
}

impl Syncer {
    /// Starts the threads for the database at `path`, whose WAL exists.
    pub(crate) fn start(path: &Path, meters: Arc<Meters>) -> Result<Self, StoreError> {
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let wal = PathBuf::from(wal);
        let failed =
            |doing, path: &Path, source| StoreError::File { doing, path: path.to_owned(), source: Arc::new(source) };
        let open = || File::options().read(true).write(true).open(&wal).map_err(|source| failed("open", &wal, source));
        let (file, read) = (open()?, open()?);
        let connection = connect(path).map_err(|error| Inside::from(error).during(Op::Open, path))?;

        let (waiters, inbox) = mpsc::channel();
        // One order to copy waiting is as good as many.
        let (checkpoint, orders) = mpsc::sync_channel(1);
        let busy = Arc::new(AtomicUsize::new(0));
        let (ahead, frames) = mpsc::channel();
        let next = Next { anew: Arc::default(), ahead };
        let (syncing, copying, copied) = (Arc::clone(&busy), Arc::clone(&busy), next.clone());
        let sync = spawn("den-store-sync", move || run_syncs(&file, &wal, &inbox, &syncing, &meters));
        let copy = spawn("den-store-copy", move || run_checkpoints(&connection, &orders, &copying, &copied));
        let reading = spawn("den-store-ahead", move || frames.iter().for_each(|frame| read_ahead(&read, frame)));
        let threads = [sync, copy, reading].into_iter().collect::<Result<_, _>>();
        let threads = threads.map_err(|source| failed("start a thread for", path, source))?;
        Ok(Self { handle: Some(Handle { waiters, checkpoint, busy, next, path: path.into() }), threads })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone().expect("there until dropped")
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.handle = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // A panic there was printed there.
        }
    }
}

impl Handle {
    /// Answers `jobs` once what they wrote is on the disk.
    pub(crate) fn sync(&self, jobs: Vec<Box<dyn Job>>) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        if let Err(mpsc::SendError(jobs)) = self.waiters.send(jobs) {
            self.busy.fetch_sub(1, Ordering::Relaxed);
            jobs.into_iter().for_each(|job| job.answer(Some(StoreError::Closed)));
        }
    }

    /// Has the WAL copied soon.
    pub(crate) fn checkpoint(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        if self.checkpoint.try_send(()).is_err() {
            self.busy.fetch_sub(1, Ordering::Relaxed); // Full: an order waits already.
        }
    }

    /// What the next write meets.
    pub(crate) fn next(&self) -> &Next {
        &self.next
    }

    /// Whether the WAL is being flushed or copied: a write to it may wait for that.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }
}

/// What is known of the write to come.
#[derive(Clone)]
pub(crate) struct Next {
    /// All of the WAL was copied: it begins it anew, and flushes its head.
    anew: Arc<AtomicBool>,
    /// Frames that are written soon.
    ahead: Sender<i32>,
}

impl Next {
    /// Whether it begins the WAL anew, and so waits for the disk.
    pub(crate) fn begins_anew(&self) -> bool {
        self.anew.load(Ordering::Relaxed)
    }

    /// A write was done, which began it if it was to begin.
    pub(crate) fn written(&self) {
        if self.begins_anew() {
            self.anew.store(false, Ordering::Relaxed);
        }
    }

    /// The WAL was copied; whether all of it.
    pub(crate) fn copied(&self, all: bool) {
        self.anew.store(all, Ordering::Relaxed);
        self.read_ahead(0);
    }

    /// Has the frames from this one on in memory soon.
    pub(crate) fn read_ahead(&self, frame: i32) {
        let _ = self.ahead.send(frame); // A thread that has gone is no loss: commits read for themselves.
    }
}

/// Starts a named thread.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), VFS)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// One flush answers all who were waiting when it began.
fn run_syncs(wal: &File, path: &Path, inbox: &Receiver<Vec<Box<dyn Job>>>, busy: &AtomicUsize, meters: &Meters) {
    let mut lost: Option<StoreError> = None;
    while let Ok(mut jobs) = inbox.recv() {
        let mut orders = 1;
        jobs.extend(inbox.try_iter().inspect(|_| orders += 1).flatten());
        let began = Instant::now();
        if lost.is_none()
            && let Err(source) = wal.sync_data()
        {
            tracing::error!(%source, path = %path.display(), "the disk lost what was written; no write is confirmed any more");
            lost = Some(StoreError::NotSynced { path: path.to_owned(), source: Arc::new(source) });
        }
        meters.sync.add_time(began.elapsed());
        busy.fetch_sub(orders, Ordering::Relaxed);
        jobs.into_iter().for_each(|job| job.answer(lost.clone()));
    }
}

/// Has the kernel read [`AHEAD`] frames where its memory lacks them; what lies behind the file's end costs nothing.
fn read_ahead(wal: &File, frame: i32) {
    let (from, bytes) = (u64::from(frame.unsigned_abs()) * FRAME_BYTES, AHEAD as u64 * FRAME_BYTES);
    if let Err(error) = rustix::fs::fadvise(wal, from, NonZero::new(bytes), Advice::WillNeed) {
        tracing::debug!(%error, "the write-ahead log is not read ahead");
    }
}

/// Passive copies only: they wait for no reader and hold up no writer.
fn run_checkpoints(connection: &Connection, orders: &Receiver<()>, busy: &AtomicUsize, next: &Next) {
    while orders.recv().is_ok() {
        match checkpoint(connection) {
            Ok(all) => next.copied(all),
            Err(error) => {
                tracing::warn!(%error, "the write-ahead log could not be copied; it will be tried again");
            }
        }
        busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Copies what no reader needs any more from the WAL into the database; whether that was all of it.
pub(crate) fn checkpoint(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        Ok(row.get::<_, i64>("log")? == row.get::<_, i64>("checkpointed")?)
    })
}
