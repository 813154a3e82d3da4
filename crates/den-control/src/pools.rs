//! Pools: what computers share, and how much of it is taken.
//!
//! ```text
//! create, fork, start, wake, undelete, resize ──► Pools::take · hold · change ──► one lock: checked and taken ──► row
//! stopped, failed, trashed, gone ────────────────► Pools::stands · leave ◄── after the row says so
//! start of the daemon ── rows ──► Pools::put: what is taken follows from them
//! den pool set ──► the lesser of old and new holds ──► row ──► the new ──► launcher: cgroups
//! ```
//!
//! Invariants:
//! - What is taken is taken under one lock, before the row that needs it; what is given back is given back after
//!   the row that no longer does. So at any instant no more is promised than there is, and a crash, which leaves
//!   rows only, neither loses nor leaks any.
//! - All or none: several forks take their room at once.
//! - Every computer with a row or about to have one is in exactly one pool.
//! - What has begun is never refused what it holds: to pause, resume, unplug, replug and restore a running one
//!   takes nothing. Limits below what is held are refused; a pool that holds too much all the same (limits of the
//!   default of an older row, say) gives nothing more of it.
//!
//! For a resize: [`Pools::change`] takes what is more and gives back what is less, checked, in one go. Call it with
//! the new limits before the row is written where they are larger; if the row cannot be written, call it with the
//! old ones, which is never refused. (For smaller ones: first the row, then this.)
//!
//! CPUs are in no sum: the launcher gives each pool a cgroup of its own. See decision 12.

mod ledger;
mod requests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use den_model::{ComputerId, EventKind, Limits, Pool, PoolName, Short, Standing, State};
use serde_json::json;

use crate::{Error, events::Events, limits::POOL_TOLD_EVERY};
use ledger::Ledger;
pub(crate) use requests::{pool_name, tell_launcher};

/// All pools of a house.
pub(crate) struct Pools {
    ledger: Mutex<Ledger>,
    /// One change of pools at a time, until the launcher has it.
    changing: tokio::sync::Mutex<()>,
    events: Arc<Events>,
}

impl Pools {
    /// These pools, with nobody in them.
    pub(crate) fn new(pools: Vec<Pool>, events: Arc<Events>) -> Self {
        Self { ledger: Mutex::new(Ledger::new(pools)), changing: tokio::sync::Mutex::new(()), events }
    }

    /// Whether computers of the default pool are weighed against each other by their limits.
    pub(crate) fn weighs_default(&self) -> bool {
        self.ledger().caps().iter().any(|caps| caps.number == 0 && caps.cpu_milli.is_some())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for computers that are about to be made, for all of them or for none. What is not kept is given
    /// back when the answer is dropped.
    ///
    /// Errors: `pool_not_found`; `pool_full`.
    pub(crate) fn take(
        self: &Arc<Self>,
        pool: &PoolName,
        ids: &[ComputerId],
        limits: &Limits,
    ) -> Result<Vec<Seat>, Error> {
        self.asked(|ledger| ledger.take(pool, ids, limits))?;
        Ok(ids.iter().map(|id| Seat { pools: Arc::clone(self), id: *id, kept: false }).collect())
    }

    /// Takes what a computer needs more to stand so. It holds that until [`Pools::stands`] says otherwise.
    ///
    /// Errors: `pool_full`.
    pub(crate) fn hold(&self, id: ComputerId, standing: Standing) -> Result<(), Error> {
        self.asked(|ledger| ledger.hold(id, None, Some(standing)))
    }

    /// Takes what a computer of these limits needs more than it has, and gives back what it needs less. Never
    /// refused for what does not grow.
    ///
    /// Errors: `pool_full`.
    pub(crate) fn change(&self, id: ComputerId, to: &Limits) -> Result<(), Error> {
        self.asked(|ledger| ledger.hold(id, Some(*to), None))
    }

    /// A computer has come to this state: what it no longer needs is given back.
    pub(crate) fn stands(&self, id: ComputerId, state: State, processes: bool) {
        self.ledger().set(id, Standing::of(state, processes));
    }

    /// A computer is gone, with all that it held.
    pub(crate) fn leave(&self, id: ComputerId) {
        self.ledger().leave(id);
    }

    /// A computer is there, whether there is room for it or not: its row says so.
    pub(crate) fn put(&self, id: ComputerId, pool: &PoolName, limits: &Limits, standing: Standing) {
        self.ledger().put(id, pool, limits, standing);
    }

    /// The number of the cgroup that a computer is booted in; 0 is the house's own.
    pub(crate) fn cgroup_of(&self, id: ComputerId) -> u64 {
        self.ledger().number_of(id)
    }

    /// Checks and takes; one that is full is told of, now and then.
    fn asked(&self, take: impl FnOnce(&mut Ledger) -> Result<(), Refused>) -> Result<(), Error> {
        let mut ledger = self.ledger();
        let refused = match take(&mut ledger) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        let tell = match &refused {
            Refused::Full(pool, _) => ledger.is_news(pool, Instant::now(), POOL_TOLD_EVERY),
            Refused::NoPool(_) => false,
        };
        drop(ledger);
        if tell && let Refused::Full(pool, short) = &refused {
            let detail = json!({
                "what": "pool", "pool": pool, "amount": short.what.as_str(), "limit": short.limit, "held": short.held,
                "wanted": short.wanted,
            });
            self.events.tell(EventKind::LimitReached, None, None, detail);
        }
        Err(refused.into())
    }
}

/// Why a pool gave no room.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    NoPool(PoolName),
    Full(PoolName, Short),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoPool(name) => Self::pool_not_found(name.as_str()),
            Refused::Full(name, short) => Self::pool_full(&name, &short),
        }
    }
}

/// Room for one computer that is about to be made.
pub(crate) struct Seat {
    pools: Arc<Pools>,
    id: ComputerId,
    kept: bool,
}

impl Seat {
    /// Whom it is for.
    pub(crate) fn id(&self) -> ComputerId {
        self.id
    }

    /// The computer is there: who unmakes it gives the room back.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.kept {
            self.pools.leave(self.id);
        }
    }
}
