//! Forks that are each their own: what runs goes on in them where it can, and one that fails leaves the others.
//!
//! ```text
//! names, room ─► does anything run? ──no──────────────────┐
//!                     └yes─► may it be copied? ──no, why──┤
//!                                 └yes─► copy ─► each goes on ──it does not, why──┐
//!                                        state kept ◄─────┘                       │
//!                                            └─► each boots ◄─────────────────────┘
//! ```
//!
//! Invariants:
//! - All of them are of one instant.
//! - Nothing that goes on in the parent, and nobody who is at it, is broken off for a copy.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use den_api::{ComputerView, NetRequest};
use den_gate::policy::Policy;
use den_model::{ComputerName, StateName, StateRef};
use futures_util::{StreamExt, stream};
use tokio::sync::oneshot;

use super::{
    Resolved,
    fork::{self, Origin, admit, wanted},
    fork_memory,
};
use crate::{
    Error, Who,
    control::{Control, blocking},
    create::new_id,
    handle::{Ask, Handle},
    life::{Copy, Transfers, under_way},
    limits::{FORKS_AT_ONCE, UNDER_WAY_LOOK, UNDER_WAY_WAIT},
    metrics::Operation,
    net,
    pools::Seat,
    spec::Wanted,
};

/// A fork that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkOne {
    /// Its name.
    pub name: ComputerName,
    /// Labels over the parent's.
    pub labels: BTreeMap<String, String>,
    /// Environment over the parent's.
    pub env: BTreeMap<String, String>,
}

/// What all forks of one call have beside that.
#[derive(Debug, Clone, Default)]
pub struct ForkEach {
    /// The policy in place of the parent's.
    pub net: Option<NetRequest>,
    /// Where what runs goes on in them, they sleep on the disk until somebody resumes them.
    pub sleep: bool,
}

/// A fork that was made.
#[derive(Debug)]
pub struct EachFork {
    /// The computer: running, or asleep where that was asked for.
    pub computer: ComputerView,
    /// Why it was booted, though something ran in its parent.
    pub anew: Option<String>,
}

/// What all of them are made of.
#[derive(Clone)]
struct Beginning {
    origin: Arc<Origin>,
    policy: Policy,
    /// What runs.
    copy: Option<Arc<Copy>>,
    sleep: bool,
}

/// One that has room.
struct Place {
    wanted: Wanted,
    seat: Seat,
}

impl Control {
    /// Makes computers that go on from where `computer` is: with what runs in it, where anything does and this host
    /// can copy it, else with the disk alone. Returns once each runs, or says why it does not.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `image_not_found`, `host_full`, those of a policy that a create is
    /// refused for; of each `name_taken`, `bad_request`, `pool_full`, `fork_failed`, `host_full`, `host_lacks`.
    pub async fn fork_each(
        &self,
        computer: &str,
        forks: Vec<ForkOne>,
        all: &ForkEach,
        who: &Who,
    ) -> Result<Vec<Result<EachFork, Error>>, Error> {
        let began = Instant::now();
        self.0.open_for_work()?;
        self.0.reserve.room()?;
        let parent = self.0.registry.find_any(computer)?;
        admit(&parent)?;
        let policy = match &all.net {
            Some(net) => net::of_create(Some(net), &self.0.net)?,
            None => parent.net.get().policy.clone(),
        };
        let image = self.0.images.by_digest(&parent.spec().image_digest)?;
        let places: Vec<_> = forks.into_iter().map(|one| self.place(&parent, one)).collect();
        if places.iter().all(Result::is_err) {
            return Ok(places.into_iter().filter_map(Result::err).map(Err).collect());
        }
        let (from, copy, anew) = self.instant(&parent, who).await?;
        admit(&parent)?;
        if let Some(why) = &anew {
            tracing::warn!(computer = %parent.id, why, "what runs in a computer does not go on in its forks");
        }
        let origin = Origin { from, image, who: who.0.clone() };
        let beginning = Beginning { origin: Arc::new(origin), policy, copy: copy.map(Arc::new), sleep: all.sleep };
        let mut work = Vec::with_capacity(places.len());
        for place in places {
            work.push(async { self.fork_one(&beginning, anew.as_ref(), place?).await });
        }
        let made = stream::iter(work).buffered(FORKS_AT_ONCE).collect().await;
        self.0.metrics.took(Operation::Fork, began);
        Ok(made)
    }

    /// What one is to be, and room for it.
    fn place(&self, parent: &Handle, one: ForkOne) -> Result<Place, Error> {
        let ForkOne { name, labels, env } = one;
        if let Some(holder) = self.0.registry.holder(&name) {
            return Err(Error::name_taken(&name, holder));
        }
        let wanted = Wanted { name: Some(name), ..wanted(parent, env, labels, None)? };
        let seat = self.seat(&wanted)?;
        Ok(Place { wanted, seat })
    }

    fn seat(&self, wanted: &Wanted) -> Result<Seat, Error> {
        let mut seats = self.0.pools.take(&wanted.pool, &[new_id()], &wanted.limits)?;
        seats.pop().ok_or_else(|| Error::internal("a pool has given no seat"))
    }

    /// The state that they begin as; what runs, or why that stays behind.
    async fn instant(
        &self,
        parent: &Arc<Handle>,
        who: &Who,
    ) -> Result<(Resolved, Option<Copy>, Option<String>), Error> {
        let anew = match self.what_runs(parent, who).await {
            Ok(Some(mut copy)) => return Ok((copy.take_state()?, Some(copy), None)),
            Ok(None) => None,
            Err(error) => Some(error.chain()),
        };
        let now = StateRef { computer: parent.id.to_string(), state: StateName::Now };
        Ok((self.resolve(&now).await?, None, anew))
    }

    /// A copy of what runs, if anything does.
    ///
    /// Errors: why there is none; the computer goes on as it was.
    async fn what_runs(&self, parent: &Arc<Handle>, who: &Who) -> Result<Option<Copy>, Error> {
        let machine = parent.status.borrow().machine.clone().filter(|machine| !machine.is_dead());
        let Some(machine) = machine else { return Ok(None) };
        if !machine.is_on_disk() && blocking(move || machine.runs_nothing()).await? {
            return Ok(None);
        }
        let asked = Instant::now();
        while under_way(parent).is_some() && asked.elapsed() < UNDER_WAY_WAIT {
            tokio::time::sleep(UNDER_WAY_LOOK).await;
        }
        let who = who.0.clone();
        parent.ask(|reply| Ask::Copy { who, transfers: Transfers::Spared, reply }).await.map(Some)
    }

    /// Makes one.
    async fn fork_one(&self, beginning: &Beginning, anew: Option<&String>, place: Place) -> Result<EachFork, Error> {
        let Place { wanted, seat } = place;
        let booted = Beginning { copy: None, ..beginning.clone() };
        if beginning.copy.is_none() {
            return self.grow(&booted, anew.cloned(), Place { wanted, seat }).await;
        }
        let again = wanted.clone();
        match self.grow(beginning, None, Place { wanted, seat }).await {
            Err(error) if error.code == "fork_failed" => {
                let why = error.chain();
                tracing::warn!(computer = %beginning.origin.from.handle.id, why, "a fork boots, for what runs did not go on in it");
                let seat = self.seat(&again)?;
                self.grow(&booted, Some(why), Place { wanted: again, seat }).await
            }
            made => made,
        }
    }

    async fn grow(&self, beginning: &Beginning, anew: Option<String>, place: Place) -> Result<EachFork, Error> {
        let Place { wanted, seat } = place;
        let Beginning { origin, policy, copy, sleep } = beginning.clone();
        let child = self.reserve(seat, wanted, policy, &origin.image, Some(origin.lineage()))?;
        let (reply, made) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        match copy {
            Some(copy) => {
                let work = fork_memory::make(inner, vec![child], origin, copy, !sleep, reply);
                drop(self.0.tasks.spawn(work));
            }
            None => drop(self.0.tasks.spawn(fork::make(inner, vec![child], origin, anew.clone(), reply))),
        }
        let mut made = made.await.map_err(|_| Error::shutting_down())??.items;
        let computer = made.pop().ok_or_else(|| Error::internal("nothing was forked"))?;
        Ok(EachFork { computer, anew })
    }
}
