//! When what was answered is safe from the end of power.
//!
//! ```text
//! a step ends ─► told ─┬─► its state is kept: the disk's transaction is written out
//!                      └─► note: its log ──SAFE_AFTER──► logs synced, once for all of them ─► rows flushed
//! a computer is made    ─► its row flushed ─► answered; DISKS_WRITTEN_AFTER: transaction ─► the row says so
//! files, merge          ─► the state after it is kept ─► rows flushed ─► answered
//! restore               ─► the disks changed places: transaction ─► rows flushed ─► answered
//! ```
//!
//! A command is answered first and is safe a second later, for a flush takes longer than most commands; with
//! `sync_steps` it is safe first. What is asked of Den itself (a computer, a state with a name, a file, a fork, a
//! merge, a restore, a policy) is always safe first. Of a computer that was only made nothing but its row has to be:
//! its disk can be made from it once more.
//!
//! Order: bytes before rows, so that a row that is there after a power cut has its bytes, where nothing else was
//! flushed in between: a row that has to be safe takes the rows before it along.

use std::{
    fs::File,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use den_model::{ComputerId, StepNumber};
use den_store::Durability;
use tokio::sync::Notify;

use crate::{
    Error,
    control::{Inner, blocking},
    errors::chain,
    handle::Handle,
    limits::{DISKS_WRITTEN_AFTER, LOGS_SYNCED_EACH_MAX, SAFE_AFTER},
};

/// What was answered and is not safe yet.
pub(crate) struct Late {
    /// Whether steps are safe before they are answered.
    pub strict: bool,
    noted: Mutex<Noted>,
    news: Notify,
    /// Computers whose disk may not be written out.
    made: Mutex<Vec<ComputerId>>,
    news_of_disks: Notify,
}

#[derive(Default)]
struct Noted {
    logs: Vec<Arc<File>>,
    /// More logs ended than are synced one by one.
    all: bool,
}

impl Late {
    pub(crate) fn new(strict: bool) -> Self {
        Self {
            strict,
            noted: Mutex::default(),
            news: Notify::new(),
            made: Mutex::default(),
            news_of_disks: Notify::new(),
        }
    }

    /// A step was answered; its log is to be safe soon.
    pub(crate) fn note(&self, log: Option<&Arc<File>>) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        match log {
            Some(log) if noted.logs.len() < LOGS_SYNCED_EACH_MAX => noted.logs.push(Arc::clone(log)),
            Some(_) => noted.all = true,
            None => {}
        }
        drop(noted);
        self.news.notify_one();
    }

    /// The disk of `id` was made; it is to be written out.
    pub(crate) fn disk_was_made(&self, id: ComputerId) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.news_of_disks.notify_one();
    }

    /// What was noted; from here on it is the caller's.
    pub(crate) fn take(&self) -> (Vec<Arc<File>>, bool) {
        let Noted { logs, all } = std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner));
        (logs, all)
    }
}

/// Makes safe what was answered, again and again, until the house is gone.
pub(crate) async fn run(late: Arc<Late>, house: Weak<Inner>) {
    loop {
        late.news.notified().await;
        tokio::time::sleep(SAFE_AFTER).await;
        let Some(inner) = house.upgrade() else { return };
        make_safe(&inner).await;
    }
}

/// Writes out the disks that were made, and has the rows say so, again and again, until the house is gone.
pub(crate) async fn write_disks(late: Arc<Late>, house: Weak<Inner>) {
    loop {
        late.news_of_disks.notified().await;
        tokio::time::sleep(DISKS_WRITTEN_AFTER).await;
        let Some(inner) = house.upgrade() else { return };
        let made = std::mem::take(&mut *late.made.lock().unwrap_or_else(PoisonError::into_inner));
        if made.is_empty() {
            continue;
        }
        // With the disks let go of, the next daemon does it.
        let Ok(disks) = inner.disks() else { return };
        let written = async {
            blocking(move || disks.commit()).await??;
            Ok::<_, Error>(inner.store.disks_are_written(made, Durability::Process).await?)
        };
        if let Err(error) = written.await {
            tracing::warn!(error = error.chain(), "disks that were made may have to be made again after a power cut");
        }
    }
}

/// Makes safe what was answered until now. Nothing, once the disks are let go of.
pub(crate) async fn make_safe(inner: &Arc<Inner>) {
    let (logs, all) = inner.late.take();
    let Ok(disks) = inner.disks() else { return };
    let synced = blocking(move || -> Result<(), Error> {
        if all {
            return Ok(disks.write_out()?);
        }
        // One that fails keeps no other from it.
        let results: Vec<_> = logs.iter().map(|log| log.sync_data()).collect();
        Ok(results.into_iter().collect::<Result<(), _>>().map_err(den_disk::DiskError::from)?)
    });
    let synced = synced.await.and_then(|synced| synced);
    let flushed = inner.store.flush().await.map_err(Error::from);
    if let Err(error) = synced.and(flushed) {
        tracing::error!(error = error.chain(), "what was answered last may not survive the end of power");
    }
}

/// Waits until what step `number` did, what it wrote to its log and all rows are safe.
///
/// Errors: what the disk or the store meet; then nothing is known to be safe.
pub(crate) async fn step_is_safe(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    number: StepNumber,
    log: Option<Arc<File>>,
) -> Result<(), Error> {
    // A state that is kept is on the disk, and so is what did not change since the last one.
    let kept = handle.history.settled_after(number).await && inner.history.automatic;
    let (disks, id) = (inner.disks()?, handle.id);
    // Writing out goes by a snapshot of a fixed name, as keeping a state does.
    let _turn = if kept { None } else { Some(handle.history.turn().await?) };
    blocking(move || -> Result<(), Error> {
        if !kept {
            disks.write_out_of(id)?;
        }
        if let Some(log) = log {
            log.sync_data().map_err(den_disk::DiskError::from)?;
        }
        Ok(())
    })
    .await??;
    Ok(inner.store.flush().await?)
}

/// As [`step_is_safe`], for what cannot be taken back any more: that it is not safe is told to the operator.
pub(crate) async fn step_is_safe_or_said(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    number: StepNumber,
    log: Option<Arc<File>>,
) {
    if let Err(error) = step_is_safe(inner, handle, number, log).await {
        tracing::error!(computer = %handle.id, step = number, error = error.chain(), "a step may not survive the end of power");
    }
}

/// Waits until what was done to disks as a whole (made, renamed, removed) and all rows are safe.
pub(crate) async fn disks_are_safe(inner: &Arc<Inner>, handle: &Handle) {
    let committed = async {
        let disks = inner.disks()?;
        blocking(move || disks.commit()).await??;
        Ok::<_, Error>(inner.store.flush().await?)
    };
    if let Err(error) = committed.await {
        tracing::error!(computer = %handle.id, error = chain(&error), "what was done may not survive the end of power");
    }
}
