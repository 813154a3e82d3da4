//! Who has kept processors busy goes after who has not.
//!
//! ```text
//! every 250 ms: what the house used ─ little ─► nothing more
//!                                   └ much ──► use of each computer ─► weight
//!
//! use, of what it may use    0 %   12 %   25 %   50 %   100 %
//! weight                     1     1/2    1/5    1/17   1/64
//! ```
//!
//! The scheduler divides a processor evenly between computers that want it at a moment: a command of a neighbour that
//! wakes beside one that computes all day gets half of it, and waits for the other's turn to end. A weight that shrinks
//! with use gives the moment to who asks for a moment. Two that compute all day are even again, and alone either has
//! all there is: a weight is no limit.
//!
//! Use is smoothed over some looks: a weight that shrinks with use lessens use, and would swing without.
//!
//! Invariants:
//! - The first look of a daemon writes all weights, so that one that died leaves nobody behind for good; what the
//!   launcher writes with new limits is corrected at the next look.
//! - An idle house costs one small file a look.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Instant,
};

use den_model::{ComputerId, State};
use den_sys::cgroup::{self, Cgroups};

use crate::{
    control::{Inner, blocking},
    handle::Handle,
    limits::{PRECEDENCE_EVERY, PRECEDENCE_HOUSE_MIN, PRECEDENCE_LEAST, PRECEDENCE_MORE_EVERY},
};

/// What a computer weighs where nothing is shared in proportion to limits: the kernel's own default, that of one CPU.
const WHOLE: u32 = 1000;
/// How much a look counts beside those before it.
const NEWEST: f64 = 1.0 / 3.0;
/// Who would have to have less by less than this has all: one that uses a twenty-fifth of what it may.
const ALL: f64 = 1.1;
/// A weight within so much of the one that is wanted stays.
const NEAR: f64 = 0.2;

/// A computer at the last look.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    cpu_us: u64,
    /// CPU time of late, of what it may use: 0 to 1.
    used: f64,
    weight: u32,
}

/// Looks until the house is dropped.
pub(crate) async fn run(house: Weak<Inner>) {
    let (mut cgroups, mut wait) = (None, PRECEDENCE_EVERY);
    let (mut last, mut seen) = (None, HashMap::new());
    let mut lessened = true;
    loop {
        tokio::time::sleep(wait).await;
        let Some(inner) = house.upgrade() else { return };
        if inner.open_for_work().is_err() {
            return;
        }
        let found = cgroups.take().or_else(|| Cgroups::look(&cgroup::instance_of(&inner.run)).ok());
        // The launcher makes it, and may have made it anew.
        let Some((found, cpu_us)) = found.and_then(|found| found.cpu_us("").map(|cpu_us| (found, cpu_us))) else {
            continue;
        };
        let now = Instant::now();
        let busy = last
            .replace((now, cpu_us))
            .is_some_and(|(at, before)| cpus(cpu_us, before, now, at) >= PRECEDENCE_HOUSE_MIN);
        if !busy && !lessened {
            (cgroups, wait) = (Some(found), PRECEDENCE_EVERY);
            continue;
        }
        let (before, looked) = (std::mem::take(&mut seen), Arc::clone(&inner));
        let done = blocking(move || {
            let seen = look(&looked, &found, &before);
            (found, seen)
        });
        let Ok((found, (now_seen, now_lessened))) = done.await else { continue };
        (seen, lessened) = (now_seen, now_lessened);
        wait = PRECEDENCE_EVERY + PRECEDENCE_MORE_EVERY * seen.len() as u32;
        cgroups = Some(found);
    }
}

/// CPUs that were used between two looks, on average.
fn cpus(now_us: u64, before_us: u64, now: Instant, before: Instant) -> f64 {
    let time = now.duration_since(before).as_micros().max(1);
    now_us.saturating_sub(before_us) as f64 / time as f64
}

/// What of its weight a computer has that uses so much of what it may use.
fn weight(whole: u32, used: f64) -> u32 {
    let less = f64::from(PRECEDENCE_LEAST - 1).mul_add(used * used, 1.0);
    if less < ALL { whole } else { ((f64::from(whole) / less).round() as u32).max(1) }
}

/// Whether the weight that is there may stay where `wanted` is wanted.
fn near(there: u32, wanted: u32, whole: u32) -> bool {
    there == wanted || wanted != whole && f64::from(there.abs_diff(wanted)) <= f64::from(wanted) * NEAR
}

/// Those that run, and whether one of them has less than its weight. Blocks: some microseconds each.
fn look(inner: &Inner, cgroups: &Cgroups, last: &HashMap<ComputerId, Seen>) -> (HashMap<ComputerId, Seen>, bool) {
    let weighs_default = inner.pools.weighs_default();
    let host = std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
    let (mut seen, mut lessened) = (HashMap::new(), false);
    for handle in inner.registry.all() {
        let Some(cgroup) = cgroup_of(&handle) else { continue };
        let Some(cpu_us) = cgroups.cpu_us(&cgroup) else { continue };
        let (at, before) = (Instant::now(), last.get(&handle.id));
        let milli = handle.limits().cpus.0;
        let may = (f64::from(milli) / 1000.0).clamp(0.001, host);
        let used = before.map_or(0.0, |before| {
            let now = (cpus(cpu_us, before.cpu_us, at, before.at) / may).min(1.0);
            (now - before.used).mul_add(NEWEST, before.used)
        });
        let whole = if weighs_default || cgroup.contains('/') { milli } else { WHOLE };
        let wanted = weight(whole, used);
        // Where it weighs less, the launcher may have written another one with other limits.
        let stays = |weight: u32| weight == whole || cgroups.weighs(&cgroup, weight);
        let there = before.map(|before| before.weight).filter(|&weight| stays(weight));
        let weight = match there {
            Some(there) if near(there, wanted, whole) => there,
            _ => {
                if let Err(error) = cgroups.weigh(&cgroup, wanted) {
                    tracing::debug!(computer = %handle.id, %error, "its weight is not changed");
                }
                wanted
            }
        };
        lessened |= weight != whole;
        seen.insert(handle.id, Seen { at, cpu_us, used, weight });
    }
    (seen, lessened)
}

/// The cgroup of a computer that runs.
fn cgroup_of(handle: &Handle) -> Option<String> {
    let status = handle.status.borrow();
    match status.state {
        State::Running => status.machine.as_ref().map(crate::usage::cgroup_of),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{NEWEST, near, weight};

    #[test]
    fn a_weight_shrinks_with_use() {
        let weights = [0.0, 0.125, 0.25, 0.5, 1.0].map(|used| weight(1000, used));
        assert_eq!(weights, [1000, 504, 203, 60, 16]);
        assert_eq!((weight(10, 1.0), weight(1000, 0.03)), (1, 1000));
        assert!(near(100, 110, 1000) && !near(100, 200, 1000) && !near(999, 1000, 1000));
    }

    /// Two that want all there is, one of which comes later: they share, and stay so.
    #[test]
    fn two_that_want_all_share_and_do_not_swing() {
        let mut used = [1.0, 0.0];
        for _ in 0..40 {
            let weights = used.map(|used| f64::from(weight(1000, used)));
            let sum: f64 = weights.iter().sum();
            for (used, weight) in used.iter_mut().zip(weights) {
                *used += (weight / sum - *used) * NEWEST;
            }
        }
        assert!((used[0] - 0.5).abs() < 0.01 && (used[1] - 0.5).abs() < 0.01, "{used:?}");
    }
}
