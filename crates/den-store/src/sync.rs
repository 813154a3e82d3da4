//! The two slow things, each on a thread of its own so that commits go on meanwhile: flushing the
//! WAL for those who wait for power safety, and copying the WAL into the database.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::JoinHandle,
    time::Instant,
};

use rusqlite::{Connection, OpenFlags};

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

/// Owns both threads. Dropped after the writer, whose handle keeps them going.
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
        let file = File::options().write(true).open(&wal).map_err(|source| failed("open", &wal, source))?;
        let connection = connect(path).map_err(|error| Inside::from(error).during(Op::Open, path))?;

        let (waiters, inbox) = mpsc::channel();
        // One order to copy waiting is as good as many.
        let (checkpoint, orders) = mpsc::sync_channel(1);
        let busy = Arc::new(AtomicUsize::new(0));
        let (syncing, copying) = (Arc::clone(&busy), Arc::clone(&busy));
        let sync = spawn("den-store-sync", move || run_syncs(&file, &wal, &inbox, &syncing, &meters));
        let copy = spawn("den-store-copy", move || run_checkpoints(&connection, &orders, &copying));
        let (sync, copy) = (sync, copy);
        let threads = [sync, copy].into_iter().collect::<Result<_, _>>();
        let threads = threads.map_err(|source| failed("start a thread for", path, source))?;
        Ok(Self { handle: Some(Handle { waiters, checkpoint, busy, path: path.into() }), threads })
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

    /// Whether the WAL is being flushed or copied: a write to it may wait for that.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
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

/// Passive copies only: they wait for no reader and hold up no writer.
fn run_checkpoints(connection: &Connection, orders: &Receiver<()>, busy: &AtomicUsize) {
    while orders.recv().is_ok() {
        if let Err(error) = checkpoint(connection) {
            tracing::warn!(%error, "the write-ahead log could not be copied; it will be tried again");
        }
        busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Copies what no reader needs any more from the WAL into the database.
pub(crate) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}
