//! Who has kept processors busy goes after who has not, and leaves one of them to others where it keeps the kernel busy.
//!
//! ```text
//! every 250 ms: what the house used ─ little ─► nothing more
//!                                   └ much ──► use of each computer ─► weight
//!                                              of that the kernel's ─► all processors, or all but one
//!                                              either ─► yields to who is at work and does neither, or not
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
//! No weight helps while the kernel works for somebody: most kernels finish a system call, or some milliseconds of it,
//! before another has the processor. So who has it work for most of its time runs on all processors but one while
//! others that do not are at work, and for some seconds after. Computing is no such work, and alone, or among its like,
//! a computer has all processors.
//!
//! Nor does a weight help who wakes to find its way: a processor is taken, whatever weighs there. The kernel's own
//! threads, which write for one that fills its disk, and the commands of a neighbour queue behind each other on the
//! one processor while who has them work has the other. So who keeps processors or the kernel busy yields (SCHED_IDLE)
//! while one that does neither is at work, and for some seconds after: its processor counts as free then.
//!
//! Invariants:
//! - The first look of a daemon writes all weights and gives all processors back, so that one that died leaves nobody
//!   behind for good; what the launcher writes with new limits is corrected at the next look.
//! - An idle house costs one small file a look.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Instant,
};

use den_model::{ComputerId, State};
use den_sys::{
    SysError,
    cgroup::{self, Cgroups},
};

use crate::{
    control::{Inner, blocking},
    handle::Handle,
    limits::{
        AT_WORK_CPUS_MIN, AT_WORK_FOR, DIALS_MAX, KERNEL_GIVING_WAY_MIN, KERNEL_MIN, KERNEL_UNASKED_MIN,
        PRECEDENCE_EVERY, PRECEDENCE_HOUSE_MIN, PRECEDENCE_LEAST, PRECEDENCE_MORE_EVERY, YIELDS_USED_MIN,
        YIELDS_USED_UNTIL,
    },
};

/// What a computer weighs where nothing is shared in proportion to limits: the kernel's own default, that of one CPU.
const WHOLE: u32 = 1000;
/// How much a look counts beside those before it.
const NEWEST: f64 = 1.0 / 3.0;
/// Who would have to have less by less than this has all: one that uses a twenty-fifth of what it may.
const ALL: f64 = 1.1;
/// A weight within so much of the one that is wanted stays.
const NEAR: f64 = 0.2;
/// Who kept the kernel busy for so much of late is held, until it is less than the second.
const HELD: [f64; 2] = [0.5, 0.2];

/// A computer at the last look.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    cpu_us: u64,
    /// CPU time of late, of what it may use: 0 to 1.
    used: f64,
    /// Whether that is much.
    much: bool,
    /// None: not known, or it yields.
    weight: Option<u32>,
    /// What of `cpu_us` was the kernel's, where it used so much that it was looked at.
    system_us: Option<u64>,
    /// How much of late it kept the kernel busy: 0 to 1.
    kernel: f64,
    /// Whether that is most of its time.
    for_kernel: bool,
    /// Whether it leaves a processor to others.
    held: bool,
    /// Whether it runs where nobody else wants to.
    yields: bool,
    /// When it was at work last.
    at_work: Option<Instant>,
    /// Its last step, and when somebody last asked it for something.
    step: u64,
    asked: Option<Instant>,
}

impl Seen {
    fn is_busy(&self) -> bool {
        self.for_kernel || self.much
    }
}

/// What one look leaves to the next.
#[derive(Default)]
struct Looks {
    computers: HashMap<ComputerId, Seen>,
    /// Whether one has less than its weight, or than all processors.
    lessened: bool,
}

/// Looks until the house is dropped.
pub(crate) async fn run(house: Weak<Inner>) {
    let (mut cgroups, mut wait, mut last) = (None, PRECEDENCE_EVERY, None);
    let mut looks = Looks { lessened: true, ..Looks::default() };
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
        if !busy && !looks.lessened {
            (cgroups, wait) = (Some(found), PRECEDENCE_EVERY);
            continue;
        }
        let (before, looked) = (std::mem::take(&mut looks), Arc::clone(&inner));
        let done = blocking(move || {
            let looks = look(&looked, &found, &before);
            (found, looks)
        });
        let Ok((found, now)) = done.await else { continue };
        looks = now;
        wait = PRECEDENCE_EVERY + PRECEDENCE_MORE_EVERY * looks.computers.len() as u32;
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

/// One that runs, at a look.
struct One {
    id: ComputerId,
    cgroup: String,
    /// What it weighs that uses little.
    whole: u32,
    /// As it is before anything is changed.
    seen: Seen,
}

/// Looks at those that run, and changes who goes first. Blocks: some microseconds each.
fn look(inner: &Inner, cgroups: &Cgroups, before: &Looks) -> Looks {
    let host = std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
    let all = inner.registry.all();
    let mut all: Vec<_> =
        all.iter().filter_map(|handle| see(inner, cgroups, handle, before.computers.get(&handle.id), host)).collect();

    let now = Instant::now();
    let at_work = |seen: &Seen| seen.at_work.is_some_and(|at| now.duration_since(at) < AT_WORK_FOR);
    let others = all.iter().any(|one| !one.seen.for_kernel && at_work(&one.seen));
    let calm = all.iter().any(|one| !one.seen.is_busy() && at_work(&one.seen));
    let fewer = if others && all.iter().any(|one| one.seen.for_kernel) { cgroups.processors() } else { None };
    let fewer = fewer.as_deref().and_then(all_but_one);

    let mut looks = Looks::default();
    for one in &mut all {
        one.leave(cgroups, fewer.as_deref());
        one.give_way(cgroups, calm);
        looks.lessened |= one.seen.held || one.seen.yields || one.seen.weight != Some(one.whole);
    }
    looks.computers = all.into_iter().map(|one| (one.id, one.seen)).collect();
    looks
}

/// What one does; none: it does not run.
fn see(inner: &Inner, cgroups: &Cgroups, handle: &Handle, before: Option<&Seen>, host: f64) -> Option<One> {
    let cgroup = cgroup_of(handle)?;
    let (cpu_us, at) = (cgroups.cpu_us(&cgroup)?, Instant::now());
    let milli = handle.limits().cpus.0;
    let may = (f64::from(milli) / 1000.0).clamp(0.001, host);
    let now = before.map_or(0.0, |before| cpus(cpu_us, before.cpu_us, at, before.at));
    let used = before.map_or(0.0, |before| ((now / may).min(1.0) - before.used).mul_add(NEWEST, before.used));
    let much = before.is_some_and(|before| before.much);
    let much = used > if much { YIELDS_USED_UNTIL } else { YIELDS_USED_MIN };
    let at_work = if now >= AT_WORK_CPUS_MIN { Some(at) } else { before.and_then(|before| before.at_work) };

    let held = before.map_or_else(|| cgroups.is_held(&cgroup), |before| before.held);
    // With other limits the launcher has it yield no longer.
    let yields = before.is_none_or(|before| before.yields) && cgroups.yields(&cgroup);
    let step = handle.steps.last();
    let asks = before.is_none_or(|before| before.step != step)
        || handle.doors.is_open()
        || handle.dials.available_permits() < DIALS_MAX;
    let asked = if asks { Some(at) } else { before.and_then(|before| before.asked) };
    let least = match asked.is_some_and(|asked| at.duration_since(asked) < AT_WORK_FOR) {
        false => KERNEL_UNASKED_MIN,
        true if held || yields => KERNEL_GIVING_WAY_MIN,
        true => KERNEL_MIN,
    };
    let was = before.map_or(0.0, |before| before.kernel);
    let system_us = (now >= least.0 || was > 0.0).then(|| cgroups.system_us(&cgroup)).flatten();
    let system = before.and_then(|before| Some(cpus(system_us?, before.system_us?, at, before.at))).unwrap_or(0.0);
    let kernel = kept_kernel_busy(was, now, system, least);
    let for_kernel = kernel > HELD[usize::from(held)];

    let whole = if inner.pools.weighs_default() || cgroup.contains('/') { milli } else { WHOLE };
    // Where it weighs less, the launcher may have written another one with other limits.
    let stays = |weight: u32| weight == whole || cgroups.weighs(&cgroup, weight);
    let weight = before.and_then(|before| before.weight).filter(|&weight| stays(weight));
    let seen =
        Seen { at, cpu_us, used, much, weight, system_us, kernel, for_kernel, held, yields, at_work, step, asked };
    Some(One { id: handle.id, cgroup, whole, seen })
}

impl One {
    /// Has it leave a processor to others where it keeps the kernel busy and there are `fewer`; else gives all back.
    fn leave(&mut self, cgroups: &Cgroups, fewer: Option<&str>) {
        let fewer = fewer.filter(|_| self.seen.for_kernel);
        if self.seen.held != fewer.is_some() && self.is_done(cgroups.hold_to(&self.cgroup, fewer)) {
            self.seen.held = fewer.is_some();
        }
    }

    /// Has it yield where it keeps something busy and one at work is `calm`; else gives it the weight that is due.
    fn give_way(&mut self, cgroups: &Cgroups, calm: bool) {
        if calm && self.seen.is_busy() {
            if !self.seen.yields && self.is_done(cgroups.yield_to_all(&self.cgroup)) {
                (self.seen.yields, self.seen.weight) = (true, None);
            }
            return;
        }
        let wanted = weight(self.whole, self.seen.used);
        let has = self.seen.weight.is_some_and(|there| near(there, wanted, self.whole));
        // It yields no longer, too.
        if !has && self.is_done(cgroups.weigh(&self.cgroup, wanted)) {
            (self.seen.yields, self.seen.weight) = (false, Some(wanted));
        }
    }

    /// Whether that is done; the next look tries again.
    fn is_done(&self, done: Result<(), SysError>) -> bool {
        if let Err(error) = &done {
            tracing::debug!(computer = %self.id, %error, "who goes first is not changed");
        }
        done.is_ok()
    }
}

/// How much one keeps the kernel busy of late that has used so many CPUs since, so many of them in the kernel, where
/// it takes so many CPUs and so much of what was used.
fn kept_kernel_busy(before: f64, used: f64, system: f64, least: (f64, f64)) -> f64 {
    let now = system >= least.0 && system >= used * least.1;
    let kernel = (f64::from(u8::from(now)) - before).mul_add(NEWEST, before);
    if kernel < 0.01 { 0.0 } else { kernel }
}

/// A list of processors (cpuset(7), "List format") without its last; none where that is all.
fn all_but_one(list: &str) -> Option<String> {
    let (before, last) = list.rsplit_once(',').map_or(("", list), |(before, last)| (before, last));
    let last = last.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?.checked_sub(1)?);
        (first <= last).then(|| if first == last { first.to_string() } else { format!("{first}-{last}") })
    });
    match (before, last) {
        ("", last) => last,
        (before, None) => Some(before.to_owned()),
        (before, Some(last)) => Some(format!("{before},{last}")),
    }
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
    use super::{
        HELD, KERNEL_GIVING_WAY_MIN, KERNEL_MIN, KERNEL_UNASKED_MIN, NEWEST, all_but_one, kept_kernel_busy, near,
        weight,
    };

    #[test]
    fn a_weight_shrinks_with_use() {
        let weights = [0.0, 0.125, 0.25, 0.5, 1.0].map(|used| weight(1000, used));
        assert_eq!(weights, [1000, 504, 203, 60, 16]);
        assert_eq!((weight(10, 1.0), weight(1000, 0.03)), (1, 1000));
        assert!(near(100, 110, 1000) && !near(100, 200, 1000) && !near(999, 1000, 1000));
    }

    #[test]
    fn a_list_loses_its_last_processor() {
        let lists = ["0-1", "0-3", "0,2", "0-1,4-7", "0-3,5", "0-2,4-5"].map(all_but_one);
        let fewer = ["0", "0-2", "0", "0-1,4-6", "0-3", "0-2,4"].map(|list| Some(list.to_owned()));
        assert_eq!(lists, fewer);
        assert_eq!((all_but_one("0"), all_but_one("3"), all_but_one("")), (None, None, None));
    }

    /// Some looks make the difference, so that a command of a moment changes nothing.
    #[test]
    fn who_keeps_the_kernel_busy_is_known_after_some_looks() {
        let looks = |mut kernel: f64, used: f64, system: f64, until: &dyn Fn(f64) -> bool| {
            (1..100).find(|_| {
                kernel = kept_kernel_busy(kernel, used, system, KERNEL_MIN);
                until(kernel)
            })
        };
        assert_eq!(looks(0.0, 2.0, 1.6, &|kernel| kernel > HELD[0]), Some(2));
        assert_eq!(looks(1.0, 0.0, 0.0, &|kernel| kernel <= HELD[1]), Some(4));
        assert_eq!(looks(1.0, 0.0, 0.0, &|kernel| kernel == 0.0), Some(12));
        // One that computes, and one that does little.
        for (used, system) in [(2.0, 0.8), (0.2, 0.2)] {
            assert_eq!(looks(0.0, used, system, &|kernel| kernel > 0.0), None);
        }
        // Who gives way can do less, and would have it all back; of who does it unasked less is too much.
        let after = |least| kept_kernel_busy(0.5, 0.2, 0.1, least);
        assert!(after(KERNEL_MIN) < 0.5 && after(KERNEL_GIVING_WAY_MIN) < 0.5 && after(KERNEL_UNASKED_MIN) > 0.5);
        assert!(kept_kernel_busy(0.5, 0.2, 0.15, KERNEL_GIVING_WAY_MIN) > 0.5);
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
