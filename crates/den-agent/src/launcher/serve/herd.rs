//! Husks for each pool, and what the kernel holds the cells of a pool to.

use std::time::{Duration, Instant};

use den_sys::{SysError, cgroup, failpoint};
use den_wire::launcher::{Limits, PoolCaps};
use rustix::io::Errno;

use super::{BUILDS_AHEAD, Launcher, Order, REFILL_AFTER, RETRY_AFTER};
use crate::launcher::cell::{Cell, Record};

impl Launcher {
    /// Orders husks if some are wanted now; returns how long the loop may sleep.
    pub(super) fn refill(&mut self) -> Option<Duration> {
        if !self.herds.are_several() {
            return self.refill_one(0);
        }
        // Those that somebody waits for go first.
        let mut pools = self.herds.numbers();
        pools.sort_by_key(|pool| self.waiting_for(*pool) == 0);
        pools.into_iter().filter_map(|pool| self.refill_one(pool)).min()
    }

    fn waiting_for(&self, pool: u64) -> u32 {
        self.waiting.iter().filter(|(_, create)| create.pool == pool).count() as u32
    }

    fn refill_one(&mut self, pool: u64) -> Option<Duration> {
        loop {
            let (waiting, target) = (self.waiting_for(pool), self.herds.wanted(pool, self.pool));
            let ready = self.ready(pool);
            if self.exit.is_some() || ready >= target + waiting || self.builder.husks() >= BUILDS_AHEAD {
                return None;
            }
            if let Some(failure) = self.last_failure
                && failure.elapsed() < RETRY_AFTER
            {
                return Some(RETRY_AFTER - failure.elapsed());
            }
            let quiet = self.last_create.elapsed();
            if waiting == 0 && ready > target / 4 && quiet < REFILL_AFTER {
                return Some(REFILL_AFTER - quiet);
            }
            match self.slots.take() {
                Some(slot) => {
                    let (sequence, base) = (self.sequences.take(), self.slots.base(slot));
                    self.builder.order(Order::Build { sequence, slot, base, pool });
                }
                None => {
                    self.not_built(pool, &SysError::new("slots", "all in use", Errno::AGAIN.raw_os_error()));
                    return Some(RETRY_AFTER);
                }
            }
        }
    }

    /// Husks of a pool that are there or on their way.
    fn ready(&self, pool: u64) -> u32 {
        let herd = self.herds.get(pool).map_or(0, |herd| herd.parked.len() as u32 + herd.building);
        herd + self.builder.husks_of(pool)
    }

    /// A husk of a pool could not be made.
    pub(super) fn not_built(&mut self, pool: u64, error: &SysError) {
        eprintln!("warning: a husk could not be made: {error}");
        self.last_failure = Some(Instant::now());
        if self.ready(pool) == 0 {
            // Nobody is left who could serve them.
            let (theirs, others) =
                std::mem::take(&mut self.waiting).into_iter().partition(|(_, create)| create.pool == pool);
            self.waiting = others;
            let theirs: std::collections::VecDeque<_> = theirs;
            for (client, _) in theirs {
                self.refuse(client, error);
            }
        }
    }

    /// Ends husks that are more than are wanted.
    pub(super) fn trim(&mut self) {
        for pool in self.herds.numbers() {
            let wanted = self.herds.wanted(pool, self.pool) as usize;
            while self.herds.of(pool).parked.len() > wanted {
                let Some(sequence) = self.herds.of(pool).parked.pop_back() else { break };
                self.end_husk(sequence);
            }
        }
    }

    /// These are all pools, and what their computers may use together.
    pub(super) fn hold_pools(&mut self, pools: &[PoolCaps]) -> Result<(), SysError> {
        self.herds.say(pools);
        self.trim();
        for pool in self.herds.leaving() {
            self.let_go(pool);
        }
        failpoint::hit("launcher.pools");
        // Cgroup v1 lets no pool have more than the house, nor the house less than a pool: whichever of the two is in
        // the way comes again, after the other.
        let held = self.hold_all();
        if held.is_ok() { held } else { self.hold_all() }
    }

    fn hold_all(&mut self) -> Result<(), SysError> {
        let mut first = Ok(());
        for pool in self.herds.numbers() {
            let held = self.hold_pool(pool);
            first = first.and(held);
        }
        first
    }

    /// A pool has its cgroup, in which nothing runs that was not held to anything.
    pub(super) fn pool_is_made(&mut self, pool: u64) -> Result<(), SysError> {
        let herd = self.herds.of(pool);
        if herd.made {
            return Ok(());
        }
        herd.made = true;
        let held = self.hold_pool(pool);
        if held.is_err() {
            self.herds.of(pool).made = false;
        }
        held
    }

    fn hold_pool(&mut self, pool: u64) -> Result<(), SysError> {
        let of_it = |cell: &&Cell| cell.pool == pool && cell.computer().is_some();
        let cells: Vec<_> = self.cells.values().filter(of_it).map(|cell| (cell.cgroup(), cell.cpu_milli)).collect();
        self.herds.apply(&self.tools.cgroups, pool, &cells)
    }

    /// Has the cgroup of a pool taken away that is no more and has nothing in it.
    pub(super) fn let_go(&mut self, pool: u64) {
        let leaves = self.herds.get(pool).is_some_and(|herd| herd.leaving);
        let lived_in = self.cells.values().any(|cell| cell.pool == pool)
            || self.reserved.values().any(|reserved| reserved.is_of(pool));
        if leaves && self.builder.husks_of(pool) == 0 && !lived_in {
            self.builder.order(Order::UnmakePool(pool));
            self.herds.forget(pool);
        }
    }

    /// Holds a cell to what its computer may use, and gives it its weight where something is shared.
    pub(super) fn limit(&self, cell: &Cell, limits: &Limits) -> Result<(), SysError> {
        let (cgroups, name) = (&self.tools.cgroups, cell.cgroup());
        let Limits { cpu_milli, memory_bytes, pids } = *limits;
        let own = self.herds.cpu_of(cgroups, cell.pool, cpu_milli);
        cgroups.limit(&name, &cgroup::Limits { cpu_milli: own, memory_bytes, pids })?;
        match self.herds.is_weighed(cell.pool) {
            true => cgroups.weigh(&name, cpu_milli),
            false => Ok(()),
        }
    }

    /// Holds a running computer to other limits.
    pub(super) fn set_limits(&mut self, id: &str, limits: Limits) -> Result<(), SysError> {
        let cell = self.cell_of(id)?;
        self.limit(cell, &limits)?;
        let sequence = cell.sequence;
        let home = self.run.join("computers").join(id);
        if let Some(record) = Record::read(&home) {
            Record { cpu_milli: Some(limits.cpu_milli), ..record }.write(&home)?;
        }
        if let Some(cell) = self.cells.get_mut(&sequence) {
            cell.cpu_milli = limits.cpu_milli;
        }
        Ok(())
    }
}
