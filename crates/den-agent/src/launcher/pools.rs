//! Pools: the cells of each, and what the kernel holds them to together.
//!
//! ```text
//! <hierarchy>/den/c7         of no pool of its own: the house's
//! <hierarchy>/den/p3/c8      of the pool 3; p3 has the limits, c8 its own and its weight
//! ```
//!
//! A process is born in its cgroup and never moves. So a husk is made for a pool: on demand for the first computer
//! in it, and a few ahead while it has one.
//!
//! Cgroup v1 lets no group have more CPU than one above it, where v2 takes the least of all: there cells get the
//! lesser of their own and their pool's, again whenever one of these changes.

use std::collections::{BTreeMap, VecDeque};

use den_sys::SysError;
use den_sys::cgroup::{Cgroups, Layout};
use den_wire::launcher::{PoolCaps, pool_cgroup_name};

/// Husks that are kept ready for a pool with computers in it.
pub(super) const AHEAD: u32 = 2;
/// Memory beyond what a pool's computers may use: its husks', and the kernel's for them all.
const MEMORY_BESIDE: u64 = 64 << 20;

/// The husks of one pool, and how many computers are in it.
#[derive(Default)]
pub(super) struct Herd {
    /// Husks that are ready.
    pub parked: VecDeque<u64>,
    /// Husks that prepare themselves.
    pub building: u32,
    /// Computers.
    pub computers: u32,
    /// Its cgroup is there.
    pub made: bool,
    /// What holds for all of them; none where the daemon has not said.
    caps: Option<PoolCaps>,
    /// What its cgroup is held to.
    set: Option<PoolCaps>,
    /// It is no more: when nothing is in it, its cgroup goes.
    pub leaving: bool,
}

/// All pools; 0 is the house's own cells.
pub(super) struct Herds(BTreeMap<u64, Herd>);

impl Herds {
    /// The house alone.
    pub(super) fn new() -> Self {
        Self(BTreeMap::from([(0, Herd { made: true, ..Herd::default() })]))
    }

    /// The herd of a pool; one that is not known begins here.
    pub(super) fn of(&mut self, pool: u64) -> &mut Herd {
        self.0.entry(pool).or_default()
    }

    /// The same, to look at.
    pub(super) fn get(&self, pool: u64) -> Option<&Herd> {
        self.0.get(&pool)
    }

    /// The pools, the house first.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.0.keys().copied().collect()
    }

    /// Whether there are pools beside the house.
    pub(super) fn are_several(&self) -> bool {
        self.0.len() > 1
    }

    /// Husks that are ready, of all pools.
    pub(super) fn parked(&self) -> usize {
        self.0.values().map(|herd| herd.parked.len()).sum()
    }

    /// How many husks shall be ready of a pool, where the house has `house` of them.
    pub(super) fn wanted(&self, pool: u64, house: u32) -> u32 {
        match (pool, self.0.get(&pool)) {
            (0, _) => house,
            (_, Some(herd)) if herd.computers > 0 && !herd.leaving => AHEAD.min(house),
            _ => 0,
        }
    }

    /// These are all pools. Those that are left out go.
    pub(super) fn say(&mut self, pools: &[PoolCaps]) {
        for herd in self.0.values_mut() {
            (herd.leaving, herd.caps) = (true, None);
        }
        for caps in pools {
            let herd = self.of(caps.number);
            (herd.leaving, herd.caps) = (false, Some(*caps));
        }
        self.of(0).leaving = false;
    }

    /// Pools that are no more.
    pub(super) fn leaving(&self) -> Vec<u64> {
        self.0.iter().filter(|(_, herd)| herd.leaving).map(|(pool, _)| *pool).collect()
    }

    /// Forgets a pool that is no more.
    pub(super) fn forget(&mut self, pool: u64) {
        self.0.remove(&pool);
    }

    /// The CPU limit that a cell of a pool gets, of its own.
    pub(super) fn cpu_of(&self, cgroups: &Cgroups, pool: u64, own: u32) -> u32 {
        match cgroups.layout() {
            Layout::V2 => own,
            Layout::V1 => self.cap(pool).map_or(own, |cap| own.min(cap)),
        }
    }

    /// CPU that a pool is held to: its own, and the house's.
    fn cap(&self, pool: u64) -> Option<u32> {
        let of = |pool: u64| self.0.get(&pool).and_then(|herd| herd.set).and_then(|set| set.cpu_milli);
        match (of(pool), of(0)) {
            (Some(own), Some(house)) => Some(own.min(house)),
            (own, house) => own.or(house),
        }
    }

    /// Whether cells of a pool are weighed against each other: where something is shared.
    pub(super) fn is_weighed(&self, pool: u64) -> bool {
        pool != 0 || self.0.get(&0).and_then(|house| house.caps).is_some_and(|caps| caps.cpu_milli.is_some())
    }

    /// Holds the cgroup of a pool to what was said, where it is there. `cells` are the computers in it, by the
    /// names of their cgroups and their own CPU limits.
    pub(super) fn apply(&mut self, cgroups: &Cgroups, pool: u64, cells: &[(String, u32)]) -> Result<(), SysError> {
        let Some(herd) = self.0.get_mut(&pool) else { return Ok(()) };
        let changed = |caps: &PoolCaps| herd.made && herd.set != Some(*caps);
        let Some(caps) = herd.caps.filter(changed) else { return Ok(()) };
        let before = herd.set.replace(caps);
        let name = pool_cgroup_name(pool);
        let memory = caps.memory_bytes.map(|bytes| bytes.saturating_add(MEMORY_BESIDE));
        let held = self.cells(cgroups, pool, cells, Going::Down).and_then(|()| {
            cgroups.limit_all(&name, caps.cpu_milli, memory)?;
            if pool != 0 {
                cgroups.weigh(&name, caps.cpu_milli.unwrap_or_else(all_cpus))?;
            }
            self.cells(cgroups, pool, cells, Going::Up)
        });
        if held.is_err()
            && let Some(herd) = self.0.get_mut(&pool)
        {
            herd.set = before;
        }
        held
    }

    /// Gives cells what they may have of their pool. On the way down what is refused is what gets more.
    fn cells(&self, cgroups: &Cgroups, pool: u64, cells: &[(String, u32)], going: Going) -> Result<(), SysError> {
        for (name, own) in cells {
            if cgroups.layout() == Layout::V1 {
                let done = cgroups.limit_cpu(name, self.cpu_of(cgroups, pool, *own));
                if going == Going::Up {
                    gone_is_fine(done)?;
                }
            }
            if going == Going::Up && self.is_weighed(pool) {
                gone_is_fine(cgroups.weigh(name, *own))?;
            }
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq)]
enum Going {
    /// Before the pool's own limit.
    Down,
    /// After it.
    Up,
}

/// A computer may end meanwhile.
fn gone_is_fine(done: Result<(), SysError>) -> Result<(), SysError> {
    match done {
        Err(error) if error.errno != rustix::io::Errno::NOENT.raw_os_error() => Err(error),
        _ => Ok(()),
    }
}

/// The weight of a pool without a limit: that of the host's CPUs.
fn all_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1000, |cpus| (cpus.get() as u32).saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(number: u64, cpu_milli: Option<u32>) -> PoolCaps {
        PoolCaps { number, cpu_milli, memory_bytes: None }
    }

    #[test]
    fn husks_are_kept_where_there_are_computers() {
        let mut herds = Herds::new();
        herds.say(&[caps(0, None), caps(3, None)]);
        assert_eq!((herds.wanted(0, 8), herds.wanted(3, 8), herds.wanted(4, 8)), (8, 0, 0));
        herds.of(3).computers = 1;
        assert_eq!((herds.wanted(3, 8), herds.wanted(3, 1), herds.wanted(3, 0)), (AHEAD, 1, 0));
        herds.say(&[caps(0, None)]);
        assert_eq!((herds.wanted(3, 8), herds.leaving()), (0, vec![3]));
        herds.forget(3);
        assert!(!herds.are_several());
    }

    #[test]
    fn the_least_of_pool_and_house_holds() {
        let mut herds = Herds::new();
        let mut set = |pool, cpu| herds.of(pool).set = Some(caps(pool, cpu));
        set(3, Some(500));
        set(4, None);
        set(0, Some(2000));
        assert_eq!(
            (herds.cap(3), herds.cap(4), herds.cap(0), herds.cap(9)),
            (Some(500), Some(2000), Some(2000), Some(2000))
        );
        herds.of(0).set = None;
        assert_eq!((herds.cap(3), herds.cap(4)), (Some(500), None));
        assert!(herds.is_weighed(3) && !herds.is_weighed(0));
    }
}
