//! Making computers that begin as a state of another.
//!
//! ```text
//! state kept ─► all names reserved ─► each: row (flushed) ───────────────────────────┐
//!                                     └─► disk of the state, re-keyed ─► boot ───────┼─► all run, in one
//!                                                                    └─► written out ┘   write ─► answer
//! ```
//!
//! Invariants:
//! - All or none: what fails unmakes the others, and until all of them are recorded as running a crash
//!   leaves rows that the next start unmakes.
//! - The parent goes on. A fork shares nothing with it that can be written, and stays whole when it goes.

use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use den_api::{ForkRequest, ForkView, NetRequest, ParentView, VolumeMountRequest};
use den_disk::{Forked, Identity};
use den_image::Image;
use den_machine::Machine;
use den_model::{ComputerName, EventKind, Parent, Request, Snapshot, SnapshotKind, State, StateName, StateRef, Step};
use den_store::{Durability, StoreError};
use den_sys::failpoint;
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::{Resolved, fork_memory};
use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    create::{boot, new_id, row_of, unmake},
    exec::start_entrypoint,
    handle::{Ask, Handle, Reply},
    life::Transfers,
    limits::{FORKS_AT_ONCE, FORKS_MAX},
    metrics::Operation,
    net,
    pools::pool_name,
    services,
    spec::{self, Wanted},
    task,
};

/// A fork that has a name and nothing else yet, with what its task will be asked.
pub(super) type Child = (Arc<Handle>, mpsc::Receiver<Ask>);

/// What forks are made of, and for whom.
pub(super) struct Origin {
    pub from: Resolved,
    pub image: Arc<Image>,
    pub who: String,
}

impl Origin {
    /// Where they come from.
    pub(super) fn lineage(&self) -> Parent {
        let Resolved { handle, number, snapshot, .. } = &self.from;
        Parent { id: handle.id, name: handle.name().to_string(), snapshot: *number, step: snapshot.step }
    }
}

impl Control {
    /// Makes computers that begin as a state of `computer`, and returns once they run and their rows are
    /// on the disk. They have the parent's limits, pool, image, environment, labels, services and policy.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `state_not_found`, `bad_state`, `bad_request`, `bad_name`,
    /// `unsupported`, `fork_failed`, `name_taken`, `image_not_found`, `pool_not_found`, `pool_full`, `host_full`, `host_lacks`. None of them is left then.
    pub async fn fork(&self, computer: &str, request: ForkRequest, who: &Who) -> Result<ForkView, Error> {
        self.fork_with(computer, request, None, None, who).await
    }

    /// As [`Control::fork`], with a policy and with shared volumes in place of the parent's from the first instant on.
    ///
    /// Errors: those too of a policy that a create is refused for.
    pub async fn fork_with(
        &self,
        computer: &str,
        request: ForkRequest,
        net: Option<&NetRequest>,
        volumes: Option<&[VolumeMountRequest]>,
        who: &Who,
    ) -> Result<ForkView, Error> {
        let began = Instant::now();
        self.0.open_for_work()?;
        self.0.reserve.room()?;
        let parent = self.0.registry.find_any(computer)?;
        admit(&parent)?;
        let ForkRequest { state, name, count, labels, env, pool, memory } = request;
        let names = names(name.as_deref(), count)?;
        for name in names.iter().flatten() {
            if let Some(holder) = self.0.registry.holder(name) {
                return Err(Error::name_taken(name, holder));
            }
        }
        let mut wanted = wanted(&parent, env, labels, pool.as_deref())?;
        if let Some(volumes) = volumes {
            wanted.volumes = spec::mounts(volumes, |text| self.0.volumes.find(text))?;
        }
        let policy = match net {
            Some(_) => net::of_create(net, &self.0.net)?,
            None => parent.net.get().policy.clone(),
        };
        let image = self.0.images.by_digest(&parent.spec().image_digest)?;
        let state = state.as_deref().map_or(Ok(StateName::Now), str::parse)?;
        let ids: Vec<_> = names.iter().map(|_| new_id()).collect();
        let seats = self.0.pools.take(&wanted.pool, &ids, &wanted.limits)?;
        let (from, copy) = match memory {
            false => (self.resolve(&StateRef { computer: parent.id.to_string(), state }).await?, None),
            true if state != StateName::Now => {
                let why = "`memory`: what ran at a state that was kept is not known";
                return Err(Error::bad_request(why).hint("it goes with the state `now` alone"));
            }
            true => {
                let by = who.0.clone();
                let mut copy = parent.ask(|reply| Ask::Copy { who: by, transfers: Transfers::Cut, reply }).await?;
                (copy.take_state()?, Some(copy))
            }
        };
        admit(&parent)?;
        let origin = Arc::new(Origin { from, image, who: who.0.clone() });
        let mut children: Vec<Child> = Vec::with_capacity(names.len());
        for (name, seat) in names.into_iter().zip(seats) {
            let wanted = Wanted { name, ..wanted.clone() };
            match self.reserve(seat, wanted, policy.clone(), &origin.image, Some(origin.lineage())) {
                Ok(child) => children.push(child),
                Err(error) => {
                    for (child, _) in &children {
                        self.0.registry.remove(child);
                        self.0.pools.leave(child.id);
                    }
                    return Err(error);
                }
            }
        }
        tracing::debug!(computer = %parent.id, snapshot = origin.from.number, count = children.len(), who = who.0, "forks are made");
        let (reply, made) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        match copy.map(Arc::new) {
            None => drop(self.0.tasks.spawn(make(inner, children, origin, None, reply))),
            Some(copy) => drop(self.0.tasks.spawn(fork_memory::make(inner, children, origin, copy, reply))),
        }
        let made = made.await.map_err(|_| Error::shutting_down())??;
        self.0.metrics.took(Operation::Fork, began);
        Ok(made)
    }
}

/// What a fork is to be: its parent, and what is given over that.
///
/// Errors: `bad_request`, `bad_name`.
pub(super) fn wanted(
    parent: &Handle,
    env: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    pool: Option<&str>,
) -> Result<Wanted, Error> {
    let spec = parent.spec();
    let over = |own: &BTreeMap<_, _>, given| own.clone().into_iter().chain(given).collect();
    let wanted = Wanted {
        name: None,
        image: spec.image.clone(),
        limits: spec.limits,
        env: over(&spec.env, env),
        labels: over(&spec.labels, labels),
        entrypoint: spec.entrypoint,
        pool: pool.map_or_else(|| Ok(spec.pool.clone()), |pool| pool_name("pool", pool))?,
        volumes: spec.volumes.clone(),
    };
    spec::check_env(&wanted.env)?;
    spec::check_labels(&wanted.labels)?;
    Ok(wanted)
}

/// Lets a fork in.
pub(super) fn admit(parent: &Handle) -> Result<(), Error> {
    parent.state().ask(Request::Fork).map(drop).map_err(|refused| Error::refused(parent.name(), refused))
}

/// The names of `count` forks; none for those that get a made-up one.
fn names(name: Option<&str>, count: Option<u32>) -> Result<Vec<Option<ComputerName>>, Error> {
    let count = count.unwrap_or(1);
    if !(1..=FORKS_MAX).contains(&count) {
        return Err(Error::bad_request(format!("`count`: {count} is not from 1 to {FORKS_MAX}")));
    }
    let Some(name) = name else { return Ok(vec![None; count as usize]) };
    let parse = |text: &str| ComputerName::from_str(text).map_err(|error| Error::bad_name("name", &error));
    match count {
        1 => Ok(vec![Some(parse(name)?)]),
        // The name alone is looked at too, so that `-1` is not what it fails for.
        _ => parse(name).and_then(|_| (1..=count).map(|n| parse(&format!("{name}-{n}")).map(Some)).collect()),
    }
}

/// How a fork is seen to come from its parent.
pub(crate) fn parent_view(parent: &Parent) -> ParentView {
    ParentView { id: parent.id, name: parent.name.clone(), snapshot: parent.snapshot, step: parent.step }
}

/// All of them come to run, or nothing of any is left. `anew`: why what runs in the parent does not go on in them,
/// where it was to.
pub(super) async fn make(
    inner: Arc<Inner>,
    children: Vec<Child>,
    origin: Arc<Origin>,
    anew: Option<String>,
    reply: Reply<ForkView>,
) {
    let Origin { from, image, who } = &*origin;
    failpoint::hit("fork.reserved");
    let give_up = AtomicBool::new(false);
    let mut work = Vec::with_capacity(children.len());
    for (child, _) in &children {
        let (inner, give_up) = (&inner, &give_up);
        work.push(async move {
            if give_up.load(Ordering::Relaxed) {
                return (false, Err(Error::internal("another fork failed")));
            }
            let made = make_one(inner, child, from, image).await;
            give_up.fetch_or(made.1.is_err(), Ordering::Relaxed);
            made
        });
    }
    let made: Vec<_> = stream::iter(work).buffered(FORKS_AT_ONCE).collect().await;
    let mut rows = Vec::with_capacity(made.len());
    let mut machines = Vec::with_capacity(made.len());
    let mut failed = None;
    for (has_row, result) in made {
        rows.push(has_row);
        match result {
            Ok(machine) => machines.push(machine),
            // The first that failed, not those that were not begun for it.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let result = match failed {
        Some(error) => Err(error),
        None => all_running(&inner, &children, machines).await,
    };
    if let Err(error) = result {
        unmake_all(&inner, children.iter().map(|(child, _)| child).zip(rows)).await;
        // What it was made of may have gone meanwhile.
        let error = admit(&from.handle).err().unwrap_or(error);
        drop(reply.send(Err(error)));
        return;
    }
    drop(reply.send(Ok(ForkView { items: children.iter().map(|(child, _)| child.view()).collect() })));
    for (child, inbox) in children {
        tracing::info!(computer = %child.id, name = %child.name(), parent = %from.handle.id, snapshot = from.number, "a fork runs");
        let mut of = json!({ "parent": from.handle.id, "parent_name": from.handle.name(), "state": from.number });
        if let Some(why) = &anew {
            of["anew"] = why.as_str().into();
        }
        inner.events.tell(EventKind::Forked, Some(&child), Some(who), of);
        let machine = child.status.borrow().machine.clone();
        if let Some(machine) = machine {
            services::started(&inner, &child, &machine);
            if child.spec().entrypoint {
                start_entrypoint(&inner, &child, machine);
            }
        }
        inner.tasks.spawn(task::run(Arc::clone(&inner), child, inbox));
    }
}

/// Takes back what was made of forks, with whether each has a row.
pub(super) async fn unmake_all<'a>(inner: &Inner, children: impl Iterator<Item = (&'a Arc<Handle>, bool)>) {
    let unmade: Vec<_> = children.map(|(child, has_row)| unmake(inner, child, has_row)).collect();
    stream::iter(unmade).buffer_unordered(FORKS_AT_ONCE).collect::<()>().await;
}

/// The row of a fork and what it has of its parent; `steps` run in it.
pub(super) async fn insert_rows(
    inner: &Inner,
    child: &Arc<Handle>,
    from: &Resolved,
    steps: &[Step],
) -> Result<(), StoreError> {
    let row = row_of(inner, child);
    let beginning = Snapshot {
        number: 0,
        step: 0,
        label: None,
        kind: SnapshotKind::Made,
        created_at: child.created_at,
        frozen_us: 0,
        torn: false,
        generation: from.generation,
        parent: None,
        went_to: None,
        dropped: false,
    };
    // All are queued here, in this order, and the last one's flush is that of the others too.
    let row = inner.store.insert_computer(&row, None, Durability::Process);
    let idle = from.handle.idle.get();
    child.idle.set(idle);
    if idle.is_some() {
        drop(inner.store.set_idle(child.id, idle, Durability::Process));
    }
    let steps_kept: Vec<_> =
        steps.iter().map(|step| inner.store.insert_step(child.id, step, Durability::Process)).collect();
    let inherited = services::inherit(inner, child, &from.handle, steps);
    let beginning = inner.store.insert_snapshot(child.id, &beginning, Durability::Power);
    row.await?;
    for step in steps_kept {
        step.await?;
    }
    if let Some(inherited) = inherited {
        inherited.await?;
    }
    beginning.await?;
    failpoint::hit("fork.row");
    Ok(())
}

/// Row, disk and processes of one, and whether it has a row.
async fn make_one(
    inner: &Inner,
    child: &Arc<Handle>,
    from: &Resolved,
    image: &Arc<Image>,
) -> (bool, Result<Machine, Error>) {
    child.base(|| Some(Arc::clone(image)));
    let inserted = insert_rows(inner, child, from, &[]);
    let carried = async {
        let disk = begin_disk(inner, child, image).await?;
        failpoint::hit("fork.disk");
        let booted = async {
            let machine = boot(inner, child, image).await;
            failpoint::hit("fork.booted");
            machine
        };
        // Its state 0 is written out while it comes to life.
        let (written, booted) = tokio::join!(blocking(|| disk.finish()), booted);
        written??;
        booted
    };
    let (inserted, carried) = tokio::join!(inserted, carried);
    match inserted {
        Ok(()) => (true, carried),
        Err(error) => (false, Err(error.into())),
    }
}

/// Makes the disk of a fork, from its parent's state.
pub(crate) async fn make_disk(inner: &Inner, child: &Handle, image: &Image) -> Result<(), Error> {
    let disk = begin_disk(inner, child, image).await?;
    blocking(|| disk.finish().map(drop)).await??;
    Ok(())
}

/// As [`make_disk`], and returns when it may be booted: it is whole once it is finished.
pub(super) async fn begin_disk(inner: &Inner, child: &Handle, image: &Image) -> Result<Forked, Error> {
    let Some(parent) = child.parent.clone() else { return Err(Error::internal("a fork without a parent")) };
    let (disks, id, limit) = (inner.disks()?, child.id, child.limits().disk);
    let (hostname, layers) = (child.name().to_string(), image.layers.clone());
    let begun = blocking(move || {
        let identity = Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() };
        disks.begin_fork(parent.id, parent.snapshot, id, limit, &identity, &layers)
    });
    Ok(begun.await??)
}

/// From here on they are there whatever happens.
async fn all_running(inner: &Arc<Inner>, children: &[Child], machines: Vec<Machine>) -> Result<(), Error> {
    let at = now();
    let ids = children.iter().map(|(child, _)| child.id).collect();
    inner.store.all_are(ids, State::Running, at, Durability::Process).await?;
    failpoint::hit("fork.state");
    for ((child, _), machine) in children.iter().zip(machines) {
        child.history.begun(inner, child).await;
        child.status.send_modify(|status| {
            status.state = State::Running;
            status.changed_at = at;
            status.machine = Some(machine);
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_where_there_are_several() {
        let seen = |name, count| {
            let names = names(name, count).map_err(|error| error.code)?;
            Ok(names.into_iter().map(|name| name.map(|name| name.to_string())).collect::<Vec<_>>())
        };
        let some = |texts: &[&str]| Ok(texts.iter().map(|text| Some((*text).to_owned())).collect::<Vec<_>>());
        assert_eq!(seen(Some("try"), None), some(&["try"]));
        assert_eq!(seen(Some("try"), Some(1)), some(&["try"]));
        assert_eq!(seen(Some("try"), Some(3)), some(&["try-1", "try-2", "try-3"]));
        assert_eq!(seen(None, Some(2)), Ok(vec![None, None]));
        assert_eq!(seen(None, Some(0)), Err("bad_request"));
        assert_eq!(seen(None, Some(FORKS_MAX + 1)), Err("bad_request"));
        assert_eq!(seen(Some(""), Some(2)), Err("bad_name"));
        assert_eq!(seen(Some(&"a".repeat(62)), Some(2)), Err("bad_name"));
    }
}
