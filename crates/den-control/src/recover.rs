//! Taking up what an earlier daemon left.
//!
//! Three facts are held against each other: the row, the running machine, the disk. What follows
//! from them is a pure function, and doing it twice does nothing more than doing it once.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use den_disk::Identity;
use den_machine::{LinkError, Machine, StepLink};
use den_model::{Computer, ComputerId, Fact, SnapshotKind, Standing, State, Step, StepEnd, StepKind};
use den_store::{Durability, Life};
use den_wire::agent::FailureKind;
use futures_util::{StreamExt, future::BoxFuture, stream};

use crate::{
    Error,
    control::{Inner, blocking, now},
    errors::chain,
    exec::{End, end_by_log, end_from_log, follow, join_again},
    handle::{Handle, Known, Status},
    history,
    life::{Stand, copy, hibernate, look_after, stand_again},
    net::Net,
    resize, services,
    steps::Live,
    task,
};

/// Computers that are taken up at a time.
const TAKE_UP_MAX: usize = 16;

/// What to do with one computer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has processes and is ours: goes on, or stands still as it did.
    Adopt { state: State },
    /// It has no processes, or shall have none: this is where it stands now, and why.
    Settle { state: State, reason: Option<&'static str> },
    /// As [`Verdict::Settle`], and its disk is made if it is not there.
    RollForward { state: State, reason: &'static str },
    /// Nobody was told that it was made, or it was being removed: nothing of it stays.
    Unmake { forget_key: bool },
}

const NOT_STARTED: &str = "the host restarted while it was made; it was never started";
const HOST_RESTARTED: &str = "the host restarted";
const ENDED_UNSEEN: &str = "it ended while no daemon ran";
const RESTORE_CUT_OFF: &str = "the daemon ended while it was taken back to a state; `den log` says whether it was";
const NO_DISK: &str = "its disk is gone";
const NEW_DISK: &str = "the host went down before its disk was written out; it has a new one";

/// What there is of a computer's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDisk {
    There,
    /// Nothing, or half of one, and it was never known to be written out: a power cut may have taken it.
    Unwritten,
    Gone,
}

/// What follows from a row, from whether a machine runs, from whether the host restarted since, and
/// from its disk. Without a row nothing may stay.
pub(crate) fn decide(row: Option<State>, machine: bool, host_restarted: bool, disk: OnDisk) -> Verdict {
    let Some(state) = row else { return Verdict::Unmake { forget_key: false } };
    match state {
        State::Removing => Verdict::Unmake { forget_key: false },
        State::Creating if host_restarted => Verdict::RollForward { state: State::Stopped, reason: NOT_STARTED },
        State::Creating => Verdict::Unmake { forget_key: true },
        // It was acknowledged, and the row is all that had to be safe of it.
        _ if disk == OnDisk::Unwritten && host_restarted => {
            let state = match state {
                State::Trashed | State::Unplugged => state,
                _ => State::Stopped,
            };
            Verdict::RollForward { state, reason: NEW_DISK }
        }
        // Whatever still runs of it was about to be ended. Without a disk there is nothing to come back to.
        State::Trashed if disk == OnDisk::There => Verdict::Settle { state, reason: None },
        State::Trashed => Verdict::Unmake { forget_key: false },
        State::Running | State::Starting if machine => Verdict::Adopt { state: State::Running },
        State::Paused | State::Unplugged if machine => Verdict::Adopt { state },
        // It stays cut off, whatever became of it.
        State::Unplugged => Verdict::Settle { state, reason: None },
        _ if disk != OnDisk::There => Verdict::Settle { state: State::Failed, reason: Some(NO_DISK) },
        State::Running | State::Starting | State::Paused if host_restarted => {
            Verdict::Settle { state: state.learn(Fact::HostRestarted), reason: Some(HOST_RESTARTED) }
        }
        State::Running | State::Starting | State::Paused => {
            Verdict::Settle { state: state.learn(Fact::Died), reason: Some(ENDED_UNSEEN) }
        }
        // What was asked for is finished.
        State::Stopping => Verdict::Settle { state: state.learn(Fact::Died), reason: None },
        State::Stopped | State::Failed => Verdict::Settle { state, reason: None },
    }
}

/// Brings the house in order and starts the tasks of all computers in it.
pub(crate) async fn take_up(inner: &Arc<Inner>, running: Vec<Machine>) -> Result<(), Error> {
    let disks = inner.disks()?;
    let house = Arc::clone(inner);
    let on_disk: HashSet<ComputerId> = blocking(move || {
        copy::sweep(&house);
        disks.list()
    })
    .await??
    .into_iter()
    .collect();
    let mut machines: HashMap<ComputerId, Machine> =
        running.into_iter().map(|machine| (machine.id(), machine)).collect();
    let rows = inner.store.all_computers().await?;
    let mut lives = inner.store.lives().await?;
    let known: HashSet<ComputerId> = rows.iter().map(|row| row.id).collect();

    // What nobody knows goes first: it may hold a slot or a share of the disk.
    let strangers: HashSet<_> = machines.keys().chain(&on_disk).filter(|id| !known.contains(id)).copied().collect();
    for id in strangers {
        machines.remove(&id);
        tracing::warn!(computer = %id, "something of a computer without a row is removed");
        unmake(inner, id).await?;
    }
    let work = rows.into_iter().map(|row| {
        let machine = machines.remove(&row.id).filter(|machine| !machine.is_dead());
        let life = lives.remove(&row.id).unwrap_or_default();
        let whole = || inner.disks().is_ok_and(|disks| disks.exists(row.id));
        let disk = match on_disk.contains(&row.id) && (!life.unwritten || whole()) {
            true => OnDisk::There,
            false if life.unwritten => OnDisk::Unwritten,
            false => OnDisk::Gone,
        };
        take_up_one(inner, row, life, machine, disk)
    });
    let mut results = stream::iter(work).buffer_unordered(TAKE_UP_MAX);
    while let Some(result) = results.next().await {
        result?;
    }
    look_after(inner);
    Ok(())
}

async fn take_up_one(
    inner: &Arc<Inner>,
    mut row: Computer,
    life: Life,
    machine: Option<Machine>,
    on_disk: OnDisk,
) -> Result<(), Error> {
    let disk = on_disk == OnDisk::There;
    hibernate::left_alone(inner, row.id).await?;
    let (machine, rests) = hibernate::find(inner, &mut row, machine);
    if disk {
        settle_disk(inner, row.id).await;
    }
    resize::settle(inner, row.id, machine.as_ref(), row.spec.limits).await;
    let host_restarted = row.boot_id != inner.boot_id;
    let verdict = decide(Some(row.state), machine.is_some(), host_restarted, on_disk);
    tracing::debug!(computer = %row.id, state = %row.state, ?verdict, "a computer is taken up");
    if let Verdict::Unmake { forget_key } = verdict {
        unmake(inner, row.id).await?;
        if forget_key {
            inner.store.undo_create(row.id, Durability::Process).await?;
        } else {
            inner.store.delete_computer(row.id, Durability::Process).await?;
        }
        return Ok(());
    }
    if disk {
        name_again(inner, &row).await?;
    }
    let last_step = inner.store.last_step_number(row.id).await?;
    let was = row.state;
    // Before anything of it goes on that could give room back, or want more.
    let stands = match verdict {
        Verdict::Adopt { state } | Verdict::Settle { state, .. } | Verdict::RollForward { state, .. } => state,
        Verdict::Unmake { .. } => State::Stopped,
    };
    let processes = machine.as_ref().is_some_and(|machine| !machine.is_on_disk());
    let standing = Standing::of(stands, processes && matches!(verdict, Verdict::Adopt { .. }));
    inner.pools.put(row.id, &row.spec.pool, &row.spec.limits, standing);
    let status = Status {
        asleep: life.asleep,
        cut: was == State::Unplugged,
        before: life.before,
        ..Status::of(was, row.reason, row.changed_at)
    };
    let steps_dir = inner.disks()?.disk(row.id).steps;
    let net = Net::read(row.net.as_deref());
    if let Some(why) = &net.unreadable {
        tracing::error!(computer = %row.id, why, "a computer is sealed");
    }
    let Computer { spec, created_at, parent, .. } = row;
    let known = Known { id: row.id, spec, created_at, parent, steps_dir, last_step, net };
    let (handle, inbox) = Handle::new(known, status);
    handle.idle.set(life.idle);
    let remade = match verdict {
        Verdict::RollForward { .. } => {
            inner.machines.kill(row.id).await?;
            task::remake_disk(inner, &handle).await
        }
        _ => Ok(()),
    };
    // Before anything of it goes on: what ends from here on has its state kept.
    if disk || remade.is_ok() {
        let rows = inner.store.snapshots(row.id).await?;
        handle.history.take_up(inner, &handle, rows).await?;
    }
    if !matches!(verdict, Verdict::Adopt { state: State::Running | State::Paused }) {
        // The gate may carry on for one that ended while no daemon ran. Nobody waits.
        drop(inner.gate.detach(row.id));
    }
    let open_steps = inner.store.running_steps(row.id).await?;
    match verdict {
        Verdict::Adopt { state } => {
            if let Some(machine) = machine {
                if was != state {
                    settle(inner, &handle, state, None).await?;
                }
                handle.status.send_modify(|status| status.machine = Some(machine.clone()));
                if rests {
                    hibernate::come_back(&handle, &machine).await;
                }
                match state {
                    _ if machine.is_on_disk() => {}
                    State::Running if Stand::was_left(inner, handle.id) => handle.stand.release(inner, &machine),
                    State::Running => {}
                    _ => stand_again(inner, &handle, &machine).await,
                }
                if state != State::Unplugged && !machine.is_on_disk() {
                    // Nobody waits: the first words to the gate have it.
                    drop(inner.gate.attach(&handle, &machine));
                }
                adopt_steps(inner, &handle, &machine, open_steps).await;
            }
        }
        Verdict::Settle { state, reason } => {
            if machine.is_some() {
                inner.machines.kill(row.id).await?;
            }
            // It has no processes because it was being taken back, which is no failure.
            let (state, reason) = match open_steps.iter().any(|step| step.kind == StepKind::Restore) {
                true if reason == Some(ENDED_UNSEEN) => (State::Stopped, Some(RESTORE_CUT_OFF)),
                _ => (state, reason),
            };
            if state != was {
                settle(inner, &handle, state, reason).await?;
            }
            if disk {
                history::merge::take_back(inner, &handle, &open_steps).await?;
            }
            end_steps(inner, &handle, open_steps).await?;
        }
        Verdict::RollForward { state, reason } => {
            end_steps(inner, &handle, open_steps).await?;
            let (state, reason) = match remade {
                Ok(()) => (state, reason),
                // Of a fork whose parent is gone too: it is told, and all others are there.
                Err(error) if handle.parent.is_some() => {
                    tracing::error!(computer = %row.id, error = error.chain(), "the disk of a fork cannot be made again");
                    (State::Failed, NO_DISK)
                }
                Err(error) => return Err(error),
            };
            settle(inner, &handle, state, Some(reason)).await?;
        }
        Verdict::Unmake { .. } => {}
    }
    if life.unwritten {
        inner.late.disk_was_made(handle.id);
    }
    services::read(inner, &handle).await?;
    services::taken_up(inner, &handle).await?;
    if was == State::Trashed {
        inner.registry.trash(Arc::clone(&handle));
    } else if let Err(holder) = inner.registry.insert(Arc::clone(&handle)) {
        let name = handle.name();
        return Err(Error::new("store_corrupt", 500, format!("`{name}` is the name of {} and {holder}", handle.id)));
    }
    history::keep(inner, &handle);
    inner.tasks.spawn(task::run(Arc::clone(inner), handle, inbox));
    Ok(())
}

/// Takes up a computer that has no processes once more, as its row has it now.
pub(crate) fn take_up_again(inner: &Arc<Inner>, id: ComputerId) -> BoxFuture<'_, Result<(), Error>> {
    // In a box, for it is a task that does this, and one that it starts.
    Box::pin(async move {
        let row = inner.store.get_computer(id).await?.ok_or_else(|| Error::computer_not_found(&id.to_string()))?;
        let life = inner.store.lives().await?.remove(&id).unwrap_or_default();
        take_up_one(inner, row, life, None, OnDisk::There).await
    })
}

/// Finishes or takes back what a crash left of a restore or of keeping a state.
async fn settle_disk(inner: &Inner, id: ComputerId) {
    let settled = match inner.disks() {
        Ok(disks) => blocking(move || disks.settle(id)).await.and_then(|settled| Ok(settled?)),
        Err(error) => Err(error),
    };
    if let Err(error) = settled {
        tracing::error!(computer = %id, error = error.chain(), "a disk cannot be put in order");
    }
}

/// A disk that was given a name before its row was: it is called as the row says.
async fn name_again(inner: &Inner, row: &Computer) -> Result<(), Error> {
    let (disks, id, hostname) = (inner.disks()?, row.id, row.spec.name.to_string());
    let named = blocking(move || match disks.is_being_renamed(id) {
        true => disks.rename(id, &Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() }).map(|()| {
            disks.renamed(id);
            true
        }),
        false => Ok(false),
    });
    if named.await?? {
        tracing::info!(computer = %row.id, name = %row.spec.name, "a disk has the name of its computer again");
    }
    Ok(())
}

async fn settle(inner: &Inner, handle: &Handle, state: State, reason: Option<&str>) -> Result<(), Error> {
    let (at, reason) = (now(), reason.map(str::to_owned));
    inner.store.set_state(handle.id, state, reason.clone(), at, None, Durability::Process).await?;
    tracing::info!(computer = %handle.id, name = %handle.name(), %state, reason, "a computer was taken up");
    handle.status.send_modify(|status| {
        (status.state, status.reason, status.changed_at) = (state, reason, at);
    });
    Ok(())
}

/// Processes and disk; none of either is no error.
async fn unmake(inner: &Inner, id: ComputerId) -> Result<(), Error> {
    inner.gate.detach(id).await;
    inner.machines.kill(id).await?;
    let disks = inner.disks()?;
    blocking(move || disks.remove(id)).await??;
    Ok(())
}

/// Goes on with the steps of a computer that runs; ends those that its agent does not know.
async fn adopt_steps(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: &Machine, steps: Vec<Step>) {
    for step in steps {
        let log = match step.kind.has_log() {
            false => None,
            true => handle.steps.logs.open(step.number).unwrap_or_default(),
        };
        let number = step.number;
        let live = Live::new(step, log.map(Arc::new));
        handle.steps.add(&live);
        if live.step.kind == StepKind::Restore && end_restore(inner, handle, number).await.unwrap_or(false) {
            handle.steps.forget(number);
            continue;
        }
        if live.step.kind == StepKind::Merge {
            handle.history.is_unsure(number);
        }
        if !live.step.kind.has_log() {
            // It was the work of the daemon that is gone.
            end_from_log(inner, handle, &live).await;
            continue;
        }
        if handle.stands() {
            // Its agent answers when it goes on. What it has written is there to be read: it stands between two
            // calls of the kernel, so the last record is whole.
            if let Some(length) = live.log.as_ref().and_then(|log| log.metadata().ok()).map(|facts| facts.len()) {
                live.progress.send_modify(|progress| progress.log_bytes = length);
            }
            let (inner, handle, machine) = (Arc::clone(inner), Arc::clone(handle), machine.clone());
            let tasks = inner.tasks.clone();
            tasks.spawn(async move { adopt_step(&inner, &handle, &machine, live).await });
        } else {
            adopt_step(inner, handle, machine, live).await;
        }
    }
}

/// Goes on with one step.
async fn adopt_step(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: &Machine, live: Arc<Live>) {
    let number = live.step.number;
    match join_again(handle, machine, number).await {
        Some(Ok(StepLink { events, input, .. })) => {
            drop(input);
            let (inner, handle, machine) = (Arc::clone(inner), Arc::clone(handle), machine.clone());
            let tasks = inner.tasks.clone();
            tasks.spawn(async move { follow(&inner, &handle, &machine, &live, events).await });
        }
        Some(Err(LinkError::Failed(failure))) if failure.kind == FailureKind::NoSuchStep => {
            end_from_log(inner, handle, &live).await;
        }
        refused => {
            let error = match refused {
                Some(Err(error)) => chain(&error),
                _ => "no answer".to_owned(),
            };
            tracing::warn!(computer = %handle.id, step = number, error, "a step is not taken up");
            end_from_log(inner, handle, &live).await;
        }
    }
}

/// Ends the steps of a computer that has no processes.
async fn end_steps(inner: &Inner, handle: &Handle, steps: Vec<Step>) -> Result<(), Error> {
    for step in steps {
        if step.kind == StepKind::Restore && end_restore(inner, handle, step.number).await? {
            continue;
        }
        let said = match handle.steps.logs.open(step.number) {
            Ok(Some(log)) if step.kind.has_log() => end_by_log(&log, step.started_at),
            _ => None,
        };
        let lost = || End { end: StepEnd::Lost, output_bytes: step.output_bytes, at: now() };
        let End { end, output_bytes, at } = said.unwrap_or_else(lost);
        inner.store.end_step(handle.id, step.number, at, &end, output_bytes, Durability::Process).await?;
        if step.kind == StepKind::Merge {
            handle.history.is_unsure(step.number);
            history::ended(inner, handle, step.number);
        }
    }
    Ok(())
}

/// Ends a restore whose daemon died after the disk was taken back, and says whether it was: the state
/// before is kept then.
async fn end_restore(inner: &Inner, handle: &Handle, number: u64) -> Result<bool, Error> {
    let (store, id, disks) = (&inner.store, handle.id, inner.disks()?);
    let kept = store.snapshots(id).await?;
    let before = kept.iter().rfind(|state| state.kind == SnapshotKind::Restore && state.step + 1 == number);
    let before = before.filter(|state| disks.snapshot_path(id, state.number).is_dir());
    let Some(state) = before.and_then(|before| before.went_to) else { return Ok(false) };
    let follows = store.set_step_snapshot(id, vec![number], state, None, Durability::Process);
    store.end_step(id, number, now(), &StepEnd::Exited { code: 0 }, 0, Durability::Process).await?;
    follows.await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_after(verdict: Verdict, before: Option<State>) -> Option<State> {
        match verdict {
            Verdict::Adopt { state } => Some(state),
            Verdict::Settle { state, .. } | Verdict::RollForward { state, .. } => Some(state),
            Verdict::Unmake { .. } => None,
        }
        .filter(|_| before.is_some())
    }

    fn all(mut each: impl FnMut(Option<State>, bool, bool, OnDisk)) {
        for row in State::ALL.into_iter().map(Some).chain([None]) {
            for machine in [false, true] {
                for host_restarted in [false, true] {
                    for disk in [OnDisk::There, OnDisk::Gone, OnDisk::Unwritten] {
                        each(row, machine, host_restarted, disk);
                    }
                }
            }
        }
    }

    #[test]
    fn the_whole_table() {
        let mut table = String::new();
        all(|row, machine, host_restarted, disk| {
            table += &format!(
                "{:<9} {:<10} {:<12} {:<9} {}\n",
                row.map_or("no row", State::as_str),
                if machine { "machine" } else { "no machine" },
                if host_restarted { "other boot" } else { "same boot" },
                match disk {
                    OnDisk::There => "disk",
                    OnDisk::Gone => "no disk",
                    OnDisk::Unwritten => "unwritten",
                },
                match decide(row, machine, host_restarted, disk) {
                    Verdict::Adopt { state } => format!("adopt, {state}"),
                    Verdict::Settle { state, reason } =>
                        format!("{state} {}", reason.unwrap_or_default()).trim().to_owned(),
                    Verdict::RollForward { state, reason } => format!("{state}, with a disk: {reason}"),
                    Verdict::Unmake { forget_key } => {
                        if forget_key { "unmake, and forget its key" } else { "unmake" }.to_owned()
                    }
                }
            );
        });
        insta::assert_snapshot!(table);
    }

    #[test]
    fn taking_up_twice_changes_nothing_more() {
        all(|row, machine, host_restarted, disk| {
            let first = decide(row, machine, host_restarted, disk);
            let after = row_after(first, row);
            let adopted = matches!(first, Verdict::Adopt { .. });
            let disk_after = match first {
                Verdict::RollForward { .. } => OnDisk::There,
                Verdict::Unmake { .. } => OnDisk::Gone,
                _ => disk,
            };
            if after.is_none() && !adopted && disk_after != OnDisk::There {
                return; // Nothing is left to decide on.
            }
            let second = decide(after, adopted, host_restarted, disk_after);
            assert_eq!(row_after(second, after), after, "{row:?} {machine} {host_restarted} {disk:?}");
        });
    }
}
