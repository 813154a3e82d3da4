//! Backups of the whole house, by hand and by the clock, while computers run; and a house made from one.
//!
//! ```text
//! every disk and shared volume: snapshot ─► copy of the database ─► states, disks, output, records, volumes
//!   (all at once)                             └ what it names and is gone by now is taken out of the copy
//!                                         ─► images, keys ─► manifest (last)
//! ```
//!
//! Invariants:
//! - A backup is of one moment, but for output and records, which are newer: they only grow.
//! - Every state and disk that the database of a backup names is in the backup.
//! - One backup at a time; a request to a house that is making one is refused.
//! - A backup holds up no computer but for its snapshot, and no removal: what goes away meanwhile is left out.
//!
//! Not here: how trees become chunks, and places (`backup`, the crate).

mod restore;
mod run;

use std::{
    path::{Component, Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use den_api::{BackUp, BackupEvent, BackupView, ErrorDetail};
use den_backup::{BackupError, Credentials, Place, Progress, Pruned, Repository};
use den_model::EventKind;
use serde_json::json;
use tokio::sync::{mpsc, watch};

pub(crate) use restore::refuse_half;
pub use restore::{RestoreBackup, RestoredBackup, restore_backup};

use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    limits::{JOB_EVENT_INTERVAL, JOB_EVENTS_MAX},
};

/// A backup that failed is tried again after so long, where the next is not due before.
const RETRY_AFTER: Duration = Duration::from_secs(600);
/// A backup is due so often at most.
pub const BACKUP_EVERY_MIN: Duration = Duration::from_secs(60);
/// How often it is looked whether one is due, whatever the clock does.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The most backups that can be asked to be kept.
pub const BACKUP_KEEP_MAX: usize = 100_000;
/// How long a shutdown waits for a backup to end: a file, or a request to S3 that is under way.
const END_WAIT: Duration = Duration::from_secs(60);
/// Paths that were left out and are told of.
const LEFT_OUT_MAX: usize = 100;

/// Backups by the clock.
#[derive(Debug, Clone)]
pub struct BackupPlan {
    /// Where to.
    pub to: String,
    /// How often.
    pub every: Duration,
    /// How many are kept; none: all.
    pub keep: Option<usize>,
    /// Keys and tokens stay out.
    pub without_secrets: bool,
    /// A file with credentials; without, those of the daemon's environment.
    pub credentials_file: Option<PathBuf>,
}

/// How a house does with its backups.
#[derive(Default)]
pub(crate) struct Backups {
    running: watch::Sender<bool>,
    /// Set when the house closes.
    stop: Arc<AtomicBool>,
    /// When the last good one was begun: microseconds since the epoch; 0 where none is known.
    pub last_good: AtomicI64,
    /// How long it took, in milliseconds.
    pub last_took_ms: AtomicU64,
    /// Bytes that it wrote.
    pub last_stored: AtomicU64,
    /// That failed since the daemon began.
    pub failed: AtomicU64,
}

impl Backups {
    /// Ends what goes on: it leaves nothing that the next does not use.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until none is made any more: one that is has the disks open.
    pub(crate) async fn ended(&self) {
        let mut running = self.running.subscribe();
        if tokio::time::timeout(END_WAIT, running.wait_for(|running| !running)).await.is_err() {
            tracing::warn!(waited_s = END_WAIT.as_secs(), "a backup does not end, and is not waited for any more");
        }
    }
}

/// The right to make the house's one backup.
struct Turn(Arc<Inner>);

impl Turn {
    fn take(inner: &Arc<Inner>) -> Result<Self, Error> {
        if inner.backups.running.send_replace(true) {
            return Err(Error::new("backup_running", 409, "a backup of this house is being made")
                .hint("wait until it is done: `den events --follow` tells")
                .retryable());
        }
        Ok(Self(Arc::clone(inner)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.backups.running.send_replace(false);
    }
}

/// A backup that is being made.
pub struct BackupJob {
    events: mpsc::Receiver<BackupEvent>,
}

impl BackupJob {
    /// The next event; the last one is `Done` or `Failed`, and `None` comes after it.
    pub async fn recv(&mut self) -> Option<BackupEvent> {
        self.events.recv().await
    }
}

/// What is to be made.
struct Order {
    to: String,
    keep: Option<usize>,
    without_secrets: bool,
    credentials: Credentials,
}

impl Order {
    fn place(&self, inner: &Inner) -> Result<Place, Error> {
        let place = Place::new(&self.to, &self.credentials).map_err(of)?;
        if self.to.starts_with("s3://") {
            return Ok(place);
        }
        let bad = |why: &str| of(BackupError::BadPlace { place: self.to.clone(), why: why.to_owned() });
        let folder = Path::new(self.to.strip_prefix("file://").unwrap_or(&self.to));
        let folder = real(folder).ok_or_else(|| bad("`..` leads out of a folder that is not there"))?;
        let beneath = |data: &Path| folder.starts_with(real(data).as_deref().unwrap_or(data));
        if beneath(&inner.data) || beneath(inner.images.root()) {
            return Err(bad("it lies in the folder that is to be backed up"));
        }
        Ok(place)
    }
}

/// A path without links and `..`, of which the end need not be there; none where that has a `..`.
fn real(path: &Path) -> Option<PathBuf> {
    let (above, there) = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)))?;
    let rest = path.strip_prefix(above).ok()?;
    rest.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)).then(|| there.join(rest))
}

impl Control {
    /// Makes a backup of the house. Who goes away does not end it.
    ///
    /// Errors: `bad_backup_place`, `bad_request`, `backup_running`, `shutting_down`; all else comes as the job's
    /// last event.
    pub async fn back_up(&self, request: BackUp, who: &Who) -> Result<BackupJob, Error> {
        self.0.open_for_work()?;
        let BackUp { to, without_secrets, keep, credentials_file, credentials } = request;
        if keep.is_some_and(|keep| !(1..=BACKUP_KEEP_MAX).contains(&keep)) {
            return Err(Error::bad_request(format!("`keep`: not from 1 to {BACKUP_KEEP_MAX}")));
        }
        let credentials = match (credentials_file, credentials.is_empty()) {
            (Some(_), false) => {
                return Err(Error::bad_request("`credentials` and `credentials_file` do not go together"));
            }
            (Some(file), true) => Credentials::from_file(Path::new(&file)).map_err(of)?,
            (None, false) => Credentials::from_pairs(credentials),
            (None, true) => Credentials::from_env(),
        };
        let order = Order { to, keep, without_secrets, credentials };
        order.place(&self.0)?;
        let turn = Turn::take(&self.0)?;
        let (events, receiver) = mpsc::channel(JOB_EVENTS_MAX);
        let (inner, who) = (Arc::clone(&self.0), who.0.clone());
        self.0.tasks.spawn(async move {
            let told = Told::new(Some(events.clone()));
            let last = match make(&inner, turn, order, told, Some(&who)).await {
                Ok(backup) => BackupEvent::Done { backup },
                Err(error) => BackupEvent::Failed {
                    error: ErrorDetail {
                        code: error.code.to_owned(),
                        message: error.chain(),
                        hint: error.hint.clone(),
                        retryable: error.retryable,
                        request_id: None,
                    },
                },
            };
            let _ = events.send(last).await; // Nobody may look any more.
        });
        Ok(BackupJob { events: receiver })
    }

    /// Makes backups by the clock from now on, until the house is closed.
    ///
    /// Errors: `bad_backup_place`.
    pub fn schedule_backups(&self, plan: BackupPlan) -> Result<(), Error> {
        let order = plan_order(&plan)?;
        order.place(&self.0)?;
        tokio::spawn(by_the_clock(Arc::downgrade(&self.0), plan));
        Ok(())
    }
}

fn plan_order(plan: &BackupPlan) -> Result<Order, Error> {
    let credentials = match &plan.credentials_file {
        Some(file) => Credentials::from_file(file).map_err(of)?,
        None => Credentials::from_env(),
    };
    Ok(Order { to: plan.to.clone(), keep: plan.keep, without_secrets: plan.without_secrets, credentials })
}

/// When the newest backup in a place was begun; 0 where there is none, or it is not known. Not later than now,
/// whatever clock it was made by.
fn newest(place: &Place) -> i64 {
    let found = Repository::find(place, None).and_then(|found| Repository::manifest(place, &found));
    found.map_or(0, |manifest| manifest.at.min(now()))
}

async fn by_the_clock(house: Weak<Inner>, plan: BackupPlan) {
    let mut failed_at: Option<Instant> = None;
    let mut is_known = false;
    loop {
        let Some(inner) = house.upgrade() else { return };
        if inner.open_for_work().is_err() {
            return;
        }
        // Credentials are read each time: they change.
        let order = match plan_order(&plan) {
            Ok(order) => order,
            Err(error) => {
                tracing::error!(error = error.chain(), "backups are not made");
                drop(inner);
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
        };
        if !is_known {
            if let Ok(place) = order.place(&inner)
                && let Ok(at) = blocking(move || newest(&place)).await
            {
                inner.backups.last_good.fetch_max(at, Ordering::Relaxed);
            }
            is_known = true;
        }
        // A clock that was put back is no reason to wait for it.
        inner.backups.last_good.fetch_min(now(), Ordering::Relaxed);
        let since = Duration::from_micros((now() - inner.backups.last_good.load(Ordering::Relaxed)).max(0) as u64);
        let retry = RETRY_AFTER.min(plan.every);
        let wait = match failed_at {
            Some(at) => retry.saturating_sub(at.elapsed()),
            None => plan.every.saturating_sub(since),
        };
        if wait.is_zero() {
            let made = match Turn::take(&inner) {
                Ok(turn) => make(&inner, turn, order, Told::new(None), None).await.map(drop),
                Err(error) => Err(error),
            };
            failed_at = made.is_err().then(Instant::now);
            continue;
        }
        drop(inner);
        tokio::time::sleep(wait.min(LOOK_EVERY)).await;
    }
}

async fn make(
    inner: &Arc<Inner>,
    turn: Turn,
    order: Order,
    told: Told,
    who: Option<&str>,
) -> Result<BackupView, Error> {
    let (house, to) = (Arc::clone(inner), order.to.clone());
    let begun = now();
    let made = blocking(move || {
        let _turn = turn;
        let manifest = run::run(&house, &order, &told)?;
        // What is there is good, whatever becomes of old ones.
        let pruned = match order.keep {
            Some(keep) => order.place(&house).and_then(|place| den_backup::prune(place, keep).map_err(of)),
            None => Ok(Pruned::default()),
        };
        Ok::<_, Error>((manifest, pruned))
    })
    .await
    .and_then(|made| made);
    let backups = &inner.backups;
    match made {
        Ok((manifest, pruned)) => {
            let took = manifest.took;
            // By this clock; ids may be ahead of it.
            backups.last_good.store(begun, Ordering::Relaxed);
            // Old ones that did not go: the code, and why.
            let (removed, kept) = match pruned {
                Ok(Pruned { backups, held: None, .. }) => (backups, None),
                Ok(Pruned { backups, held: Some(why), .. }) => (backups, Some(("backup_broken", why))),
                Err(error) => (Vec::new(), Some((error.code, error.chain()))),
            };
            if let Some((code, error)) = &kept {
                tracing::warn!(to, code, error, "a backup is made, and old ones or what they needed did not go");
            }
            backups.last_took_ms.store(took.time_ms, Ordering::Relaxed);
            backups.last_stored.store(took.stored_bytes, Ordering::Relaxed);
            let left_out =
                manifest.trees.iter().flat_map(|tree| tree.left_out.iter().map(|path| format!("{}: {path}", tree.of)));
            let view = BackupView {
                id: manifest.id.clone(),
                to: to.clone(),
                at: manifest.at,
                computers: manifest.computers.len(),
                states: manifest.computers.iter().map(|computer| computer.states).sum(),
                time_ms: took.time_ms,
                read_bytes: took.read_bytes,
                new_bytes: took.new_bytes,
                stored_bytes: took.stored_bytes,
                trees_unchanged: took.trees_unchanged,
                files_unchanged: took.files_unchanged,
                files_read: took.files_read,
                left_out: left_out.take(LEFT_OUT_MAX).collect(),
                removed,
            };
            let mut detail = json!({
                "id": view.id, "to": to, "stored_bytes": view.stored_bytes, "time_ms": view.time_ms,
                "left_out": view.left_out.len(), "removed": view.removed.len(),
            });
            if let Some((code, error)) = kept {
                detail["prune"] = json!({ "code": code, "error": error });
            }
            tracing::info!(id = view.id, to, stored = view.stored_bytes, "a backup is made");
            inner.events.tell(EventKind::BackupDone, None, who, detail);
            Ok(view)
        }
        Err(error) => {
            backups.failed.fetch_add(1, Ordering::Relaxed);
            tracing::error!(to, code = error.code, error = error.chain(), "a backup is not made");
            let detail = json!({ "to": to, "code": error.code, "error": error.chain() });
            inner.events.tell(EventKind::BackupFailed, None, who, detail);
            Err(error)
        }
    }
}

/// How far a backup is, told now and then.
struct Told {
    events: Option<mpsc::Sender<BackupEvent>>,
    now: Mutex<(String, Option<Instant>)>,
    read: AtomicU64,
    stored: AtomicU64,
}

impl Told {
    fn new(events: Option<mpsc::Sender<BackupEvent>>) -> Self {
        Self { events, now: Mutex::default(), read: AtomicU64::new(0), stored: AtomicU64::new(0) }
    }

    fn tell(&self, what: Option<&str>) {
        let Some(events) = &self.events else { return };
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(what) = what {
            what.clone_into(&mut now.0);
        }
        if now.1.is_some_and(|at| at.elapsed() < JOB_EVENT_INTERVAL) {
            return;
        }
        now.1 = Some(Instant::now());
        // Who does not keep up misses some.
        let _ = events.try_send(BackupEvent::Progress {
            what: now.0.clone(),
            read_bytes: self.read.load(Ordering::Relaxed),
            stored_bytes: self.stored.load(Ordering::Relaxed),
        });
    }
}

impl Progress for Told {
    fn begins(&self, what: &str) {
        self.tell(Some(what));
    }

    fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        self.tell(None);
    }

    fn stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The crate's error as this one's.
pub(crate) fn of(error: BackupError) -> Error {
    let status = match &error {
        BackupError::BadPlace { .. } => 400,
        BackupError::Empty { .. } | BackupError::NoBackup { .. } => 404,
        BackupError::Locked { .. } | BackupError::Lost { .. } | BackupError::Foreign { .. } => 409,
        BackupError::Newer { .. } => 409,
        BackupError::NoRoom { .. } => 507,
        BackupError::Refused { .. } | BackupError::Unreachable { .. } => 502,
        BackupError::Stopped => 503,
        _ => 500,
    };
    let made = Error::new(error.code(), status, error.to_string()).hint(error.hint());
    let made = if error.is_retryable() { made.retryable() } else { made };
    made.because(error)
}
