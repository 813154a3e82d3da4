//! Who is in which pool and what is taken of each. No I/O, no clock.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use den_machine::PoolCaps;
use den_model::{Amounts, ComputerId, Limits, Pool, PoolLimits, PoolName, Standing};

use super::Refused;

/// The pools, and all computers in them.
pub(super) struct Ledger {
    pools: BTreeMap<PoolName, Entry>,
    members: HashMap<ComputerId, Member>,
}

/// One pool.
struct Entry {
    pool: Pool,
    /// The sum of what its computers take.
    held: Amounts,
    /// It is being removed: nobody gets in.
    leaving: bool,
    /// When somebody was last told that it is full.
    told: Option<Instant>,
}

/// One computer.
struct Member {
    pool: PoolName,
    limits: Limits,
    standing: Standing,
}

impl Member {
    fn takes(&self) -> Amounts {
        self.standing.takes(&self.limits)
    }
}

/// What is shown of a pool.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shown {
    pub pool: Pool,
    pub held: Amounts,
    /// Computers that have processes.
    pub running: u64,
    /// In the trash.
    pub trashed: u64,
    /// Thousandths of CPUs that those that run may use, each by itself.
    pub cpus: u64,
}

/// Why a pool does not go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stays {
    NoPool,
    /// So many computers, and so many of them in the trash.
    InUse {
        computers: u64,
        trashed: u64,
    },
}

impl Ledger {
    pub(super) fn new(pools: Vec<Pool>) -> Self {
        let mut ledger = Self { pools: BTreeMap::new(), members: HashMap::new() };
        pools.into_iter().for_each(|pool| ledger.add(pool, false));
        ledger
    }

    /// Adds a pool with nobody in it. `leaving`: nobody is let in until it is said to be there.
    pub(super) fn add(&mut self, pool: Pool, leaving: bool) {
        let name = pool.name.clone();
        self.pools.insert(name, Entry { pool, held: Amounts::default(), leaving, told: None });
    }

    /// How many pools there are.
    pub(super) fn count(&self) -> usize {
        self.pools.len()
    }

    pub(super) fn has(&self, name: &PoolName) -> bool {
        self.pools.contains_key(name)
    }

    fn entry(&mut self, name: &PoolName) -> Result<&mut Entry, Refused> {
        let entry = self.pools.get_mut(name).filter(|entry| !entry.leaving);
        entry.ok_or_else(|| Refused::NoPool(name.clone()))
    }

    /// Room for new computers, for all or none.
    pub(super) fn take(&mut self, pool: &PoolName, ids: &[ComputerId], limits: &Limits) -> Result<(), Refused> {
        let standing = Standing::Runs;
        let entry = self.entry(pool)?;
        let more = ids.iter().fold(Amounts::default(), |sum, _| sum.and(standing.takes(limits)));
        entry.pool.limits.room(entry.held, more).map_err(|short| Refused::Full(pool.clone(), short))?;
        entry.held = entry.held.and(more);
        let member = || Member { pool: pool.clone(), limits: *limits, standing };
        self.members.extend(ids.iter().map(|id| (*id, member())));
        Ok(())
    }

    /// Other limits or another standing of one that is there: what it takes more has to be there.
    pub(super) fn hold(
        &mut self,
        id: ComputerId,
        limits: Option<Limits>,
        standing: Option<Standing>,
    ) -> Result<(), Refused> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let before = member.takes();
        let (limits, standing) = (limits.unwrap_or(member.limits), standing.unwrap_or(member.standing));
        let after = standing.takes(&limits);
        if let Some(entry) = self.pools.get(&member.pool) {
            let more = after.without(before);
            let room = entry.pool.limits.room(entry.held, more);
            room.map_err(|short| Refused::Full(member.pool.clone(), short))?;
        }
        self.turn(id, limits, standing);
        Ok(())
    }

    /// Another standing, whatever it takes.
    pub(super) fn set(&mut self, id: ComputerId, standing: Standing) {
        if let Some(limits) = self.members.get(&id).map(|member| member.limits) {
            self.turn(id, limits, standing);
        }
    }

    fn turn(&mut self, id: ComputerId, limits: Limits, standing: Standing) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let before = member.takes();
        (member.limits, member.standing) = (limits, standing);
        let after = member.takes();
        if let Some(entry) = self.pools.get_mut(&member.pool) {
            entry.held = entry.held.without(before).and(after);
        }
    }

    /// One that is there, in place of what was known of it.
    pub(super) fn put(&mut self, id: ComputerId, pool: &PoolName, limits: &Limits, standing: Standing) {
        self.leave(id);
        let pool = if self.has(pool) { pool.clone() } else { PoolName::default() };
        if let Some(entry) = self.pools.get_mut(&pool) {
            entry.held = entry.held.and(standing.takes(limits));
        }
        self.members.insert(id, Member { pool, limits: *limits, standing });
    }

    /// One that is gone.
    pub(super) fn leave(&mut self, id: ComputerId) {
        if let Some(member) = self.members.remove(&id)
            && let Some(entry) = self.pools.get_mut(&member.pool)
        {
            entry.held = entry.held.without(member.takes());
        }
    }

    /// The number of the pool that it is in.
    pub(super) fn number_of(&self, id: ComputerId) -> u64 {
        let pool = self.members.get(&id).and_then(|member| self.pools.get(&member.pool));
        pool.map_or(0, |entry| entry.pool.number)
    }

    /// Whether nobody was told for this long that it is full; from here on somebody was.
    pub(super) fn is_news(&mut self, name: &PoolName, now: Instant, every: Duration) -> bool {
        let Some(entry) = self.pools.get_mut(name) else { return false };
        let news = entry.told.is_none_or(|told| now.duration_since(told) >= every);
        if news {
            entry.told = Some(now);
        }
        news
    }

    /// Has other limits hold from now on if what is held has room in them, and says which did until now. While
    /// they are being recorded the lesser of both holds: [`Ledger::settle`] ends that.
    pub(super) fn tighten(
        &mut self,
        name: &PoolName,
        to: impl FnOnce(&PoolLimits) -> PoolLimits,
    ) -> Result<(PoolLimits, PoolLimits), Refused> {
        let entry = self.entry(name)?;
        let before = entry.pool.limits;
        let to = to(&before);
        to.hold(entry.held, &before).map_err(|short| Refused::Full(name.clone(), short))?;
        entry.pool.limits = to.least(&before);
        Ok((before, to))
    }

    /// These limits hold.
    pub(super) fn settle(&mut self, name: &PoolName, limits: PoolLimits) {
        if let Some(entry) = self.pools.get_mut(name) {
            entry.pool.limits = limits;
        }
    }

    /// Lets nobody into a pool that is empty any more, and says its number.
    pub(super) fn close(&mut self, name: &PoolName) -> Result<u64, Stays> {
        let of_it = || self.members.values().filter(|member| member.pool == *name);
        let (computers, trashed) =
            (of_it().count() as u64, of_it().filter(|member| member.standing == Standing::Trashed).count() as u64);
        match self.pools.get_mut(name) {
            None => Err(Stays::NoPool),
            Some(entry) if entry.leaving => Err(Stays::NoPool),
            Some(_) if computers > 0 => Err(Stays::InUse { computers, trashed }),
            Some(entry) => {
                entry.leaving = true;
                Ok(entry.pool.number)
            }
        }
    }

    /// A pool that was closed goes, or is there again.
    pub(super) fn closed(&mut self, name: &PoolName, gone: bool) {
        if gone {
            self.pools.remove(name);
        } else if let Some(entry) = self.pools.get_mut(name) {
            entry.leaving = false;
        }
    }

    /// What the kernel holds computers to, for the launcher: all pools but the default by their number, and under
    /// 0 the house. That is the default's own where it is alone. Others lie below the house: it gets what they
    /// have too, and is not held where one of them is not.
    pub(super) fn caps(&self) -> Vec<PoolCaps> {
        let limits = |entry: &Entry| (entry.pool.limits.cpus, entry.pool.limits.memory);
        let (mut cpus, mut memory) = self
            .pools
            .get(&PoolName::default())
            .map_or((None, None), |entry| (limits(entry).0.map(|cpus| u64::from(cpus.0)), limits(entry).1));
        let mut caps = Vec::with_capacity(self.pools.len());
        for entry in self.pools.values().filter(|entry| !entry.pool.name.is_default()) {
            let (own_cpus, own_memory) = limits(entry);
            cpus = cpus.zip(own_cpus).map(|(sum, own)| sum + u64::from(own.0));
            memory = memory.zip(own_memory).map(|(sum, own)| den_model::Bytes(sum.0.saturating_add(own.0)));
            caps.push(PoolCaps {
                number: entry.pool.number,
                cpu_milli: own_cpus.map(|cpus| cpus.0),
                memory_bytes: own_memory.map(|bytes| bytes.0),
            });
        }
        let cpu_milli = cpus.map(|cpus| u32::try_from(cpus).unwrap_or(u32::MAX));
        caps.push(PoolCaps { number: 0, cpu_milli, memory_bytes: memory.map(|bytes| bytes.0) });
        caps
    }

    /// All pools, the default first, then by name.
    pub(super) fn shown(&self) -> Vec<Shown> {
        let mut shown: Vec<Shown> = self
            .pools
            .values()
            .filter(|entry| !entry.leaving)
            .map(|entry| Shown { pool: entry.pool.clone(), held: entry.held, running: 0, trashed: 0, cpus: 0 })
            .collect();
        shown.sort_by_key(|shown| !shown.pool.name.is_default());
        let places: HashMap<PoolName, usize> =
            shown.iter().enumerate().map(|(place, shown)| (shown.pool.name.clone(), place)).collect();
        for member in self.members.values() {
            let Some(shown) = places.get(&member.pool).and_then(|place| shown.get_mut(*place)) else { continue };
            match member.standing {
                Standing::Runs => {
                    shown.running += 1;
                    shown.cpus += u64::from(member.limits.cpus.0);
                }
                Standing::Trashed => shown.trashed += 1,
                Standing::Rests => {}
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use den_model::{Amount, Bytes, Cpus};
    use uuid::Uuid;

    use super::*;

    const SIZE: Limits = Limits { cpus: Cpus(2000), memory: Bytes::gib(1), disk: Bytes::gib(4), pids: 64 };

    fn id(number: u128) -> ComputerId {
        ComputerId::from_uuid(Uuid::from_u128(number))
    }

    fn name(text: &str) -> PoolName {
        text.parse().unwrap()
    }

    fn pool(number: u64, text: &str, limits: PoolLimits) -> Pool {
        Pool { number, name: name(text), limits, created_at: 0 }
    }

    fn limits(computers: Option<u64>, memory: Option<u64>) -> PoolLimits {
        PoolLimits { computers, memory: memory.map(Bytes::gib), ..PoolLimits::default() }
    }

    fn ledger(of: PoolLimits) -> Ledger {
        Ledger::new(vec![pool(0, "default", PoolLimits::default()), pool(3, "p", of)])
    }

    fn held(ledger: &Ledger) -> (u64, u64, u64) {
        let held = ledger.pools[&name("p")].held;
        (held.computers, held.memory.0 >> 30, held.disk.0 >> 30)
    }

    fn short(refused: Result<(), Refused>) -> Option<(Amount, u64)> {
        match refused {
            Err(Refused::Full(_, short)) => Some((short.what, short.left())),
            _ => None,
        }
    }

    #[test]
    fn several_get_in_together_or_not_at_all() {
        let mut ledger = ledger(limits(Some(3), None));
        ledger.take(&name("p"), &[id(1)], &SIZE).unwrap();
        let many: Vec<_> = (10..13).map(id).collect();
        assert_eq!(short(ledger.take(&name("p"), &many, &SIZE)), Some((Amount::Computers, 2)));
        assert_eq!(held(&ledger), (1, 1, 4));
        ledger.take(&name("p"), &many[..2], &SIZE).unwrap();
        assert_eq!(held(&ledger), (3, 3, 12));
        assert_eq!((ledger.number_of(id(10)), ledger.number_of(id(12))), (3, 0));
        assert_eq!(ledger.take(&name("q"), &many, &SIZE), Err(Refused::NoPool(name("q"))));
    }

    #[test]
    fn who_stops_gives_its_memory_and_takes_it_again() {
        let mut ledger = ledger(limits(None, Some(2)));
        ledger.take(&name("p"), &[id(1), id(2)], &SIZE).unwrap();
        ledger.set(id(1), Standing::Rests);
        assert_eq!(held(&ledger), (2, 1, 8));
        ledger.take(&name("p"), &[id(3)], &SIZE).unwrap();
        assert_eq!(short(ledger.hold(id(1), None, Some(Standing::Runs))), Some((Amount::Memory, 0)));
        assert_eq!(held(&ledger), (3, 2, 12));
        // One that holds it already takes nothing.
        ledger.hold(id(2), None, Some(Standing::Runs)).unwrap();
        ledger.set(id(2), Standing::Trashed);
        assert_eq!(held(&ledger), (2, 1, 12));
        ledger.hold(id(1), None, Some(Standing::Runs)).unwrap();
        ledger.leave(id(2));
        ledger.leave(id(2));
        assert_eq!(held(&ledger), (2, 2, 8));
        for number in [1, 3] {
            ledger.leave(id(number));
        }
        assert_eq!(held(&ledger), (0, 0, 0));
    }

    #[test]
    fn another_size_takes_the_difference() {
        let mut ledger = ledger(limits(None, Some(3)));
        ledger.take(&name("p"), &[id(1), id(2)], &SIZE).unwrap();
        let larger = Limits { memory: Bytes::gib(2), ..SIZE };
        ledger.hold(id(1), Some(larger), None).unwrap();
        assert_eq!(held(&ledger), (2, 3, 8));
        assert_eq!(short(ledger.hold(id(2), Some(larger), None)), Some((Amount::Memory, 0)));
        // Back is never refused, nor what a resting one may use later.
        ledger.hold(id(1), Some(SIZE), None).unwrap();
        ledger.set(id(1), Standing::Rests);
        ledger.hold(id(1), Some(Limits { memory: Bytes::gib(9), ..SIZE }), None).unwrap();
        assert_eq!(held(&ledger), (2, 1, 8));
    }

    #[test]
    fn while_limits_change_the_lesser_holds() {
        let mut ledger = ledger(limits(Some(2), None));
        ledger.take(&name("p"), &[id(1)], &SIZE).unwrap();
        let (before, to) = ledger.tighten(&name("p"), |_| limits(Some(9), Some(1))).unwrap();
        assert_eq!(ledger.pools[&name("p")].pool.limits, limits(Some(2), Some(1)));
        assert_eq!(short(ledger.take(&name("p"), &[id(2)], &SIZE)), Some((Amount::Memory, 0)));
        ledger.settle(&name("p"), before);
        ledger.take(&name("p"), &[id(2)], &SIZE).unwrap();
        // Below what is held: refused, and as it was.
        assert_eq!(
            ledger.tighten(&name("p"), |_| to).err().map(|refused| short(Err(refused))),
            Some(Some((Amount::Memory, Bytes::gib(1).0)))
        );
        assert_eq!(ledger.pools[&name("p")].pool.limits, limits(Some(2), None));
    }

    #[test]
    fn a_pool_goes_when_nobody_is_in_it() {
        let mut ledger = ledger(PoolLimits::default());
        ledger.take(&name("p"), &[id(1), id(2)], &SIZE).unwrap();
        ledger.set(id(2), Standing::Trashed);
        assert_eq!(ledger.close(&name("p")), Err(Stays::InUse { computers: 2, trashed: 1 }));
        ledger.leave(id(1));
        ledger.leave(id(2));
        assert_eq!(ledger.close(&name("p")), Ok(3));
        assert_eq!(ledger.take(&name("p"), &[id(3)], &SIZE), Err(Refused::NoPool(name("p"))));
        ledger.closed(&name("p"), false);
        ledger.take(&name("p"), &[id(3)], &SIZE).unwrap();
        ledger.leave(id(3));
        ledger.close(&name("p")).unwrap();
        ledger.closed(&name("p"), true);
        assert_eq!(ledger.close(&name("p")), Err(Stays::NoPool));
    }

    #[test]
    fn the_house_is_held_to_what_all_pools_have() {
        let of = |default: PoolLimits, other: PoolLimits| {
            let ledger = Ledger::new(vec![pool(0, "default", default), pool(3, "p", other)]);
            let caps = ledger.caps();
            let house = caps.iter().find(|caps| caps.number == 0).map(|caps| (caps.cpu_milli, caps.memory_bytes));
            (caps.len(), house)
        };
        let some = PoolLimits { cpus: Some(Cpus(500)), memory: Some(Bytes(7)), ..PoolLimits::default() };
        assert_eq!(of(PoolLimits::default(), some), (2, Some((None, None))));
        assert_eq!(of(some, PoolLimits::default()), (2, Some((None, None))));
        assert_eq!(of(some, some), (2, Some((Some(1000), Some(14)))));
        let alone = Ledger::new(vec![pool(0, "default", some)]);
        assert_eq!(alone.caps(), [PoolCaps { number: 0, cpu_milli: Some(500), memory_bytes: Some(7) }]);
    }

    #[test]
    fn what_rows_say_is_taken_whether_there_is_room_or_not() {
        let mut ledger = ledger(limits(Some(1), None));
        for number in [1, 2] {
            ledger.put(id(number), &name("p"), &SIZE, Standing::Runs);
            ledger.put(id(number), &name("p"), &SIZE, Standing::Rests);
        }
        assert_eq!(held(&ledger), (2, 0, 8));
        // A pool that nobody knows is the default.
        ledger.put(id(3), &name("gone"), &SIZE, Standing::Runs);
        assert_eq!(ledger.number_of(id(3)), 0);
        let shown: Vec<_> = ledger.shown().into_iter().map(|it| (it.pool.number, it.running, it.cpus)).collect();
        assert_eq!(shown, [(0, 1, 2000), (3, 0, 0)]);
    }

    #[test]
    fn that_it_is_full_is_told_now_and_then() {
        let mut ledger = ledger(PoolLimits::default());
        let (now, every) = (Instant::now(), Duration::from_secs(60));
        assert!(ledger.is_news(&name("p"), now, every));
        assert!(!ledger.is_news(&name("p"), now + Duration::from_secs(59), every));
        assert!(ledger.is_news(&name("p"), now + every, every));
        assert!(!ledger.is_news(&name("q"), now, every));
    }
}
