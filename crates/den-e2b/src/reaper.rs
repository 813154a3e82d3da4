//! Ends sandboxes whose time is up, measures those that run, and follows what others do to their computers.

use std::{
    sync::{Arc, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use crate::{
    E2b, Inner,
    book::{Paused, Phase, SAMPLES_MAX, Sample, Sandbox},
    time::{SECOND, now},
};

/// How often all are measured and looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// When what could not be ended is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Runs as long as the interface is there.
pub(crate) async fn run(inner: Weak<Inner>) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let e2b = E2b(strong);
        let at = now();
        let running = e2b.book().all().into_iter().filter(|sandbox| sandbox.phase() == Phase::Running);
        let mut next = at + 3600 * SECOND;
        for sandbox in running {
            let ends = sandbox.facts().ends_at;
            if ends > at {
                next = next.min(ends);
            } else if !sandbox.expiring.swap(true, Ordering::AcqRel) {
                tokio::spawn(expire(e2b.clone(), sandbox));
            }
        }
        let wait = Duration::from_micros(u64::try_from(next - at).unwrap_or(0));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = e2b.book().alarm.notified() => {}
            _ = every.tick() => look(&e2b).await,
        }
    }
}

fn is_due(sandbox: &Sandbox) -> bool {
    sandbox.phase() == Phase::Running && sandbox.facts().ends_at <= now()
}

async fn expire(e2b: E2b, sandbox: Arc<Sandbox>) {
    let (pause, memory) = {
        let facts = sandbox.facts();
        (facts.auto_pause, facts.auto_pause_memory)
    };
    let ended = match pause {
        true => e2b.pause(&sandbox, if memory { Paused::Memory } else { Paused::Disk }, is_due).await,
        false => e2b.kill(&sandbox, is_due).await,
    };
    match ended {
        Ok(()) => tracing::info!(sandbox = sandbox.id, pause, "a sandbox's time is up"),
        // Somebody was faster, or has given it more time.
        Err(error) if matches!(error.status, 404 | 409) => {}
        Err(error) => tracing::warn!(sandbox = sandbox.id, error = error.message, "a sandbox outlives its time"),
    }
    if is_due(&sandbox) {
        tokio::time::sleep(AGAIN).await;
    }
    sandbox.expiring.store(false, Ordering::Release);
    e2b.book().alarm.notify_one();
}

/// Follows what others did to the computers, and measures those that run.
async fn look(e2b: &E2b) {
    e2b.look_into_the_trash().await;
    let mut runs = false;
    for sandbox in e2b.book().all() {
        // Whoever changes it sees to it.
        if let Ok(turn) = sandbox.turn.try_lock() {
            e2b.see(&sandbox, &turn).await;
        }
        runs |= sandbox.phase() == Phase::Running;
    }
    if runs {
        measure(e2b).await;
    }
}

async fn measure(e2b: &E2b) {
    let list = match e2b.control().usage().await {
        Ok(list) => list,
        Err(error) => return tracing::debug!(error = error.chain(), "sandboxes are not measured"),
    };
    let by_name: std::collections::HashMap<_, _> = list.items.iter().map(|item| (item.name.as_str(), item)).collect();
    for sandbox in e2b.book().all() {
        let Some(item) = by_name.get(sandbox.id.as_str()) else { continue };
        if sandbox.phase() != Phase::Running {
            continue;
        }
        let sample =
            Sample { at: list.at, cpu_us: item.cpu_us, memory: item.memory_bytes, disk: item.disk_bytes.unwrap_or(0) };
        let mut samples = sandbox.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(sample);
    }
}
