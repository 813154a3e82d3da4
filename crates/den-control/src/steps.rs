//! The steps of one computer: their numbers, those that run, and what their logs take.
//!
//! ```text
//! ended ─► the log says the same? ─yes─► told ─► the state after it is kept ─► recorded ─► no more among those that run
//!                └─no─► recorded ─► told ─► …
//! ```
//!
//! Invariants:
//! - A step is among the running ones before its row is written and until its end is recorded, so
//!   that whoever finds it in neither place knows that there is none.
//! - What anyone is told of its end is what recovery would say: it lies in the log, which outlives this
//!   process as the row does, or it is recorded already.
//! - Who reads rows waits for the ends that were told before ([`Steps::recorded`]), so that all see one truth.
//! - The next step waits for the state after this one from before anyone is told.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use den_model::{Micros, Step, StepEnd};
use den_store::{Durability, StoreError};
use tokio::sync::{Semaphore, watch};

use crate::{
    control::{Inner, now},
    durable::step_is_safe_or_said,
    errors::{Error, chain, too_many},
    exec::{End, end_by_log},
    handle::Handle,
    history,
    limits::{READERS_MAX, STEPS_END_WAIT, STEPS_KEPT_MAX, STEPS_PRUNE_EVERY, STEPS_RUNNING_MAX},
    logs::Logs,
    output::Progress,
};

pub(crate) struct Steps {
    last: AtomicU64,
    running: Mutex<HashMap<u64, Arc<Live>>>,
    /// Counts those that run, for who waits until none does.
    count: watch::Sender<usize>,
    /// Counts those whose end was told and is not recorded yet.
    told: watch::Sender<usize>,
    pub readers: Arc<Semaphore>,
    pub logs: Logs,
}

/// A step that runs.
pub(crate) struct Live {
    /// As it was recorded when it began.
    pub step: Step,
    /// None for steps on files.
    pub log: Option<Arc<File>>,
    pub progress: watch::Sender<Progress>,
}

impl Live {
    pub(crate) fn new(step: Step, log: Option<Arc<File>>) -> Arc<Self> {
        let (progress, _) = watch::channel(Progress { log_bytes: 0, output_bytes: step.output_bytes, end: None });
        Arc::new(Self { step, log, progress })
    }

    /// Whether its end was told.
    pub(crate) fn has_ended(&self) -> bool {
        self.progress.borrow().end.is_some()
    }

    /// The step as it is now.
    pub(crate) fn present(&self) -> Step {
        let progress = self.progress.borrow();
        match &progress.end {
            Some(ended) => (**ended).clone(),
            None => Step { output_bytes: progress.output_bytes, ..self.step.clone() },
        }
    }
}

impl Steps {
    pub(crate) fn new(dir: PathBuf, last: u64) -> Self {
        Self {
            last: AtomicU64::new(last),
            running: Mutex::default(),
            count: watch::channel(0).0,
            told: watch::channel(0).0,
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            logs: Logs::new(dir),
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// The number of the next step.
    pub(crate) fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses where too many run; not exact, since nothing is held.
    pub(crate) fn room(&self) -> Result<(), Error> {
        if self.lock().len() < STEPS_RUNNING_MAX {
            Ok(())
        } else {
            Err(too_many("steps that run in one computer", STEPS_RUNNING_MAX))
        }
    }

    pub(crate) fn add(&self, live: &Arc<Live>) {
        let mut running = self.lock();
        running.insert(live.step.number, Arc::clone(live));
        self.count.send_replace(running.len());
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        *self.count.borrow()
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<Live>> {
        self.lock().get(&number).cloned()
    }

    /// All that run.
    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        self.lock().values().cloned().collect()
    }

    /// Whether one runs that keeps its computer awake.
    pub(crate) fn in_use(&self) -> bool {
        self.lock().values().any(|live| live.step.kind.keeps_awake())
    }

    /// Takes a step away that was never recorded.
    pub(crate) fn forget(&self, number: u64) {
        let mut running = self.lock();
        running.remove(&number);
        self.count.send_replace(running.len());
    }

    /// Waits until the rows say what was told before.
    pub(crate) async fn recorded(&self) {
        if *self.told.borrow() == 0 {
            return;
        }
        let mut told = self.told.subscribe();
        let _ = tokio::time::timeout(STEPS_END_WAIT, told.wait_for(|&told| told == 0)).await;
    }

    /// Waits until no step runs, or for `limit`.
    pub(crate) async fn all_ended(&self, limit: Duration) {
        let mut count = self.count.subscribe();
        let _ = tokio::time::timeout(limit, count.wait_for(|&count| count == 0)).await;
    }
}

/// Tells the end of a step to all who wait, and records it: in this order where its log says the same.
pub(crate) async fn finish(inner: &Arc<Inner>, handle: &Arc<Handle>, live: &Live, end: StepEnd, output_bytes: u64) {
    let (number, steps) = (live.step.number, &handle.steps);
    let in_log = live.log.as_deref().and_then(|log| end_by_log(log, live.step.started_at));
    let in_log = in_log.filter(|said| said.end == end && said.output_bytes == output_bytes);
    // Safe before it is told, where that is wanted.
    let strict = inner.late.strict && live.log.is_some();
    let first = in_log.is_none() || strict;
    let End { end, output_bytes, at } = in_log.unwrap_or(End { end, output_bytes, at: now() });
    let ended = Step { ended_at: Some(at), end: Some(end.clone()), output_bytes, ..live.step.clone() };
    if first {
        record(inner, handle, number, at, &end, output_bytes).await;
    }
    inner.metrics.step_ended(&end, live.step.started_at, at, output_bytes);
    // Before anyone is told, so that the next step waits for it.
    history::ended(inner, handle, number);
    if strict {
        history::keep(inner, handle);
        step_is_safe_or_said(inner, handle, number, live.log.clone()).await;
    }
    if !first {
        steps.told.send_modify(|told| *told += 1);
    }
    live.progress.send_modify(|progress| {
        progress.output_bytes = output_bytes;
        progress.end = Some(Arc::new(ended));
    });
    if !first {
        // Who waits for the end goes first.
        tokio::task::yield_now().await;
        den_sys::failpoint::hit("exec.told");
        record(inner, handle, number, at, &end, output_bytes).await;
    }
    steps.forget(number);
    if !first {
        steps.told.send_modify(|told| *told -= 1);
    }
    history::keep(inner, handle);
    if !strict {
        inner.late.note(live.log.as_ref());
    }
    if live.log.is_none() {
        steps.logs.not_needed(inner, handle, number);
    }
    steps.logs.make_ahead(inner, handle);
    if let Some(log) = &live.log {
        handle.steps.logs.ended(inner, handle, number, log);
    }
    if number > STEPS_KEPT_MAX && number.is_multiple_of(STEPS_PRUNE_EVERY) {
        let below = number - STEPS_KEPT_MAX;
        let pruned = inner.store.prune_steps(handle.id, below, Durability::Process);
        handle.steps.logs.prune_below(inner, handle, below);
        if let Err(error) = pruned.await {
            tracing::warn!(computer = %handle.id, error = %error, "old steps are not forgotten");
        }
    }
}

async fn record(inner: &Inner, handle: &Handle, number: u64, at: Micros, end: &StepEnd, output_bytes: u64) {
    match inner.store.end_step(handle.id, number, at, end, output_bytes, Durability::Process).await {
        // The computer is being removed, and its rows are gone already.
        Ok(()) | Err(StoreError::NoSuchStep { .. } | StoreError::NoSuchComputer { .. }) => {}
        Err(error) => {
            let error = chain(&error);
            tracing::error!(computer = %handle.id, step = number, error, "the end of a step is not recorded");
        }
    }
    den_sys::failpoint::hit("exec.ended");
}
