//! Keeping states: after the steps that changed something, and where one is asked for.
//!
//! ```text
//!  finish of a step ──ended──► queue ──► one task of the computer: takes all that wait
//!                                            unchanged ─► the steps have the state before
//!                                            changed ─► state ─► the steps have it ─► what changed, later
//! ```
//!
//! Whether the disk changed is a look at a few counters of the kernel, so that a step which changed nothing
//! is through before the next one comes.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use den_disk::{Dirt, Disks, Mark, Settled, Storage};
use den_machine::{Machine, Synced};
use den_model::{ChangeCount, ComputerId, Snapshot, SnapshotKind, State, StateLabel, StepNumber};
use den_store::{Durability, StoreError};
use den_sys::{cgroup, failpoint};
use den_wire::launcher::FROZEN;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::{History, Turn, changes, retain};
use crate::{
    Error,
    control::{Inner, blocking, now as clock},
    create::make_zero,
    errors::chain,
    handle::Handle,
    life::Stand,
    limits::{COMPARED_AT_ONCE, EXPLORATIONS_MAX, FREEZE_WAIT, PREFLUSH_ABOVE, STATES_NEWEST_COPIED, SYNC_WAIT},
    undo::UNDO_BEFORE,
};

/// What all computers share of this.
pub(crate) struct House {
    /// Names the cgroups of this house.
    instance: String,
    /// Where they lie that have a freezer.
    freezers: Option<PathBuf>,
    /// RUN/computers.
    computers: PathBuf,
    /// Whether states are kept after steps: where it costs a copy, no.
    pub(crate) automatic: bool,
    /// Automatic states that are kept of one computer, before they are thinned.
    pub(super) newest: usize,
    /// States that a fork comes from.
    forked: Mutex<HashSet<(ComputerId, u64)>>,
    /// Places for explorations.
    pub(super) exploring: Arc<Semaphore>,
    /// Places for comparing states after steps.
    pub(super) compared: Arc<Semaphore>,
    /// What goes on behind steps that have ended.
    pub work: TaskTracker,
}

impl House {
    pub(crate) fn new(run: &Path, storage: Storage, newest: usize) -> Self {
        let instance = cgroup::instance_of(run);
        let hierarchies = cgroup::Hierarchies::find().ok();
        let mount = hierarchies.as_ref().and_then(cgroup::Hierarchies::freezing);
        Self {
            freezers: mount.map(|mount| mount.join(&instance)),
            instance,
            computers: run.join("computers"),
            automatic: storage == Storage::Btrfs,
            newest: if storage == Storage::Btrfs { newest } else { newest.min(STATES_NEWEST_COPIED) },
            forked: Mutex::default(),
            exploring: Arc::new(Semaphore::new(EXPLORATIONS_MAX)),
            compared: Arc::new(Semaphore::new(COMPARED_AT_ONCE)),
            work: TaskTracker::new(),
        }
    }

    /// Something comes from this state: its row stays.
    pub(super) fn forked(&self, computer: ComputerId, number: u64) {
        self.forked.lock().unwrap_or_else(PoisonError::into_inner).insert((computer, number));
    }

    pub(super) fn is_forked(&self, computer: ComputerId, number: u64) -> bool {
        self.forked.lock().unwrap_or_else(PoisonError::into_inner).contains(&(computer, number))
    }

    /// What stops the processes of a computer.
    pub(crate) fn freezer(&self, machine: &Machine) -> Option<cgroup::Freezer> {
        cgroup::Freezer::of(&self.freezers.as_ref()?.join(self.cgroup_name(machine)))
    }

    /// Its cgroup, below that of the house.
    pub(crate) fn cgroup_name(&self, machine: &Machine) -> String {
        machine.cgroup()
    }

    /// The cgroup of the house.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The folder of a computer under RUN.
    pub(crate) fn home(&self, id: ComputerId) -> PathBuf {
        self.computers.join(id.to_string())
    }
}

/// Lets everything of this house go on that an earlier daemon left frozen, but for what stands still on purpose.
pub(crate) fn thaw_all(run: &Path) {
    let Ok(hierarchies) = cgroup::Hierarchies::find() else { return };
    let Some(mount) = hierarchies.freezing() else { return };
    let house = mount.join(cgroup::instance_of(run));
    let homes = std::fs::read_dir(run.join("computers")).into_iter().flatten().flatten();
    let on_purpose: HashSet<String> =
        homes.filter_map(|home| std::fs::read_to_string(home.path().join(FROZEN)).ok()).collect();
    thaw_below(&house, "", &on_purpose);
}

/// Those of pools lie one below.
fn thaw_below(folder: &Path, pool: &str, on_purpose: &HashSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name();
        if pool.is_empty() && name.to_str().is_some_and(|name| name.starts_with('p')) {
            thaw_below(&entry.path(), &format!("{}/", name.to_string_lossy()), on_purpose);
            continue;
        }
        if name.to_str().is_some_and(|name| on_purpose.contains(&format!("{pool}{name}"))) {
            continue;
        }
        if let Some(mut freezer) = cgroup::Freezer::of(&entry.path())
            && let Err(error) = freezer.thaw()
        {
            tracing::error!(cgroup = %entry.path().display(), error = chain(&error), "it may be left frozen");
        }
    }
}

/// A state to take.
pub(crate) struct Wanted {
    pub kind: SnapshotKind,
    pub label: Option<StateLabel>,
    /// Whether all that was written goes to the disk before it stands still.
    pub sync: bool,
    /// Nothing of it moves already.
    pub stands: bool,
}

impl Wanted {
    /// One that nobody named.
    pub(crate) fn of(kind: SnapshotKind) -> Self {
        Self { kind, label: None, sync: false, stands: false }
    }
}

impl History {
    /// A computer that was just made or forked runs: what the disk is like now is its state 0.
    pub(crate) async fn begun(&self, inner: &Arc<Inner>, handle: &Arc<Handle>) {
        if let Some(parent) = &handle.parent {
            inner.history.forked(parent.id, parent.snapshot);
            match inner.store.snapshots(handle.id).await {
                Ok(rows) => self.load(rows, 0),
                Err(error) => tracing::error!(computer = %handle.id, error = chain(&error), "its states are not known"),
            }
        }
        if !inner.history.automatic {
            return;
        }
        // The first step waits for this, who made it does not.
        self.expect();
        let (disks, handle) = (inner.disks(), Arc::clone(handle));
        inner.history.work.spawn_blocking(move || {
            let history = &handle.history;
            let marked = disks.and_then(|disks| {
                let dirt = disks.dirt(handle.id)?;
                let mark = dirt.mark()?;
                history.set_dirt(Arc::new(dirt));
                history.set_mark(Some(mark));
                if handle.parent.is_none() && (history.head(), history.last_ended()) == (0, 0) {
                    history.set_furnished(disks.furnished(handle.id)?);
                }
                Ok::<_, Error>(())
            });
            if let Err(error) = marked {
                tracing::debug!(computer = %handle.id, error = chain(&error), "its first step counts as a change");
            }
            history.done(1);
        });
    }

    /// The disk was taken back to another state, and the one it was is recorded as `before`. The turn's.
    pub(crate) async fn went(&self, inner: &Arc<Inner>, handle: &Arc<Handle>, before: &Snapshot) {
        let mut before = before.clone();
        let (id, number) = (handle.id, before.number);
        if let Ok(disks) = inner.disks()
            && let Ok(Ok(generation)) = blocking(move || disks.snapshot_generation(id, number)).await
        {
            // Without it, what comes from this state is compared the long way: nobody waits.
            before.generation = generation;
            drop(inner.store.set_snapshot_taken(id, number, generation, 0, false, Durability::Process));
        }
        // What ended with its processes was the last that was done to the disk as it was.
        let steps = self.replaced(before.clone());
        if let Some(&last) = steps.last() {
            self.done(steps.len());
            drop(inner.store.set_step_snapshot(id, steps, number, None, Durability::Process));
            changes::count_later(inner, handle, last, &before);
        }
    }

    /// Takes up what an earlier daemon recorded: rows and folders that do not belong to each other go, and a
    /// step whose state was not kept any more is looked at.
    pub(crate) async fn take_up(
        &self,
        inner: &Arc<Inner>,
        handle: &Arc<Handle>,
        rows: Vec<Snapshot>,
    ) -> Result<(), Error> {
        if let Some(parent) = &handle.parent {
            inner.history.forked(parent.id, parent.snapshot);
        }
        let (disks, id) = (inner.disks()?, handle.id);
        let listed = blocking(move || disks.snapshots(id)).await??;
        let folders: HashSet<u64> = listed.into_iter().collect();
        let kept: HashSet<u64> = rows.iter().filter(|row| !row.dropped).map(|row| row.number).collect();
        let rowless: Vec<u64> = folders.difference(&kept).copied().collect();
        let lost: Vec<u64> = kept.difference(&folders).copied().collect();
        let unkept = inner.store.unkept_step(id).await?;
        // What replaced a disk that was left is a step too, and it has no state of its own.
        let ended = |row: &Snapshot| match row.kind {
            SnapshotKind::Restore if row.dropped || folders.contains(&row.number) => row.step + 1,
            _ => row.step,
        };
        let last = rows.iter().map(ended).chain(unkept).max().unwrap_or(0);
        self.load(rows, last);
        if !lost.is_empty() {
            tracing::warn!(computer = %id, states = ?lost, "states that have no bytes are forgotten");
            inner.store.delete_snapshots(id, lost.clone(), Vec::new(), Durability::Process).await?;
            for &number in &lost {
                // A restore that did not come about.
                inner.store.forget_undo_of(id, UNDO_BEFORE, number, Durability::Process).await?;
            }
            self.forget(&lost, &[]);
        }
        for number in rowless {
            tracing::debug!(computer = %id, number, "a state that has no row is removed");
            let disks = inner.disks()?;
            blocking(move || disks.drop_snapshot(id, number)).await??;
        }
        if inner.history.automatic {
            if let Some(head) = self.kept(self.head()).filter(|head| head.generation > 0 && head.number > 0) {
                self.set_mark(Some(Mark::of_snapshot(head.generation)));
            }
            if let Some(step) = unkept {
                self.queue(step);
            }
        }
        Ok(())
    }
}

/// A step has ended, and nobody was told yet.
pub(crate) fn ended(inner: &Inner, handle: &Handle, step: StepNumber) {
    if inner.history.automatic {
        handle.history.queue(step);
    }
}

/// Looks, in the background, at what has ended.
pub(crate) fn keep(inner: &Arc<Inner>, handle: &Arc<Handle>) {
    if handle.history.begin_keeping() {
        let (inner, handle) = (Arc::clone(inner), Arc::clone(handle));
        inner.history.work.clone().spawn(async move {
            loop {
                // A restore, or memory that is written down, may take its time.
                let turn = loop {
                    match handle.history.turn().await {
                        Err(error) if error.code == "busy" => {}
                        turn => break turn,
                    }
                };
                let steps = handle.history.queued();
                if steps.is_empty() {
                    return;
                }
                let looked = match &turn {
                    Ok(turn) => look(&inner, &handle, turn, &steps).await,
                    Err(_) => Ok(()), // It is being removed.
                };
                if let Err(error) = looked {
                    handle.history.not_kept(&steps);
                    tracing::warn!(computer = %handle.id, ?steps, error = error.chain(), "the state after a step is not kept");
                }
                handle.history.done(steps.len());
            }
        });
    }
}

/// What the disk is like after steps that have ended.
async fn look(inner: &Arc<Inner>, handle: &Arc<Handle>, turn: &Turn, steps: &[StepNumber]) -> Result<(), Error> {
    let id = handle.id;
    let steps = steps.to_vec();
    if is_clean(inner, handle, turn).await? {
        let (head, none) = (handle.history.head(), Some(ChangeCount::default()));
        for &step in &steps {
            changes::was_no_merge(inner, handle, step, head).await?;
        }
        // Nobody waits for it; a repeat after a crash would say the same.
        drop(inner.store.set_step_snapshot(id, steps, head, none, Durability::Process));
        return Ok(());
    }
    let taken = match take_changed(inner, handle, turn).await {
        Err(error) if error.code == "host_full" && retain::make_room(inner, handle, turn).await? > 0 => {
            Some(take(inner, handle, turn, Wanted::of(SnapshotKind::Auto)).await?)
        }
        taken => taken?,
    };
    let Some(taken) = taken else {
        drop(inner.store.set_step_snapshot(
            id,
            steps,
            handle.history.head(),
            Some(ChangeCount::default()),
            Durability::Process,
        ));
        return Ok(());
    };
    let last = steps.last().copied();
    drop(inner.store.set_step_snapshot(id, steps, taken.number, None, Durability::Process));
    if let Some(step) = last {
        changes::count_later(inner, handle, step, &taken);
    }
    Ok(())
}

/// Whether the disk is as it was when its state was kept last. Where that is not known, it is not.
pub(super) async fn is_clean(inner: &Arc<Inner>, handle: &Arc<Handle>, _turn: &Turn) -> Result<bool, Error> {
    let Some(mark) = handle.history.mark() else { return Ok(false) };
    let known = handle.history.dirt();
    let (disks, handle) = (inner.disks()?, Arc::clone(handle));
    blocking(move || {
        let dirt = dirt_of(&disks, &handle, known)?;
        let began = Instant::now();
        let changed = dirt.changed(&mark)?;
        tracing::trace!(computer = %handle.id, changed, took = ?began.elapsed(), "a look at the disk");
        Ok(!changed)
    })
    .await?
}

/// What is looked at to find changes; opened once.
fn dirt_of(disks: &Disks, handle: &Handle, known: Option<Arc<Dirt>>) -> Result<Arc<Dirt>, Error> {
    match known {
        Some(dirt) => Ok(dirt),
        None => {
            let dirt = Arc::new(disks.dirt(handle.id)?);
            handle.history.set_dirt(Arc::clone(&dirt));
            Ok(dirt)
        }
    }
}

/// The state as it is now, kept if it was not.
pub(super) async fn now(inner: &Arc<Inner>, handle: &Arc<Handle>, turn: &Turn) -> Result<Snapshot, Error> {
    now_as(inner, handle, turn, Wanted::of(SnapshotKind::Auto)).await
}

/// As [`now`], of a computer of which nothing moves, though it is not frozen.
pub(crate) async fn now_of_still(inner: &Arc<Inner>, handle: &Arc<Handle>, turn: &Turn) -> Result<Snapshot, Error> {
    now_as(inner, handle, turn, Wanted { stands: true, ..Wanted::of(SnapshotKind::Auto) }).await
}

async fn now_as(inner: &Arc<Inner>, handle: &Arc<Handle>, turn: &Turn, wanted: Wanted) -> Result<Snapshot, Error> {
    if is_clean(inner, handle, turn).await? {
        let head = handle.history.head();
        match handle.history.kept(head) {
            Some(kept) => return Ok(kept),
            None if head == 0 => return zero(inner, handle, turn).await,
            None => {}
        }
    }
    let taken = take(inner, handle, turn, wanted).await?;
    retain::later(inner, handle);
    Ok(taken)
}

/// The state that a computer was made as; laid down where it was not yet.
pub(super) async fn zero(inner: &Arc<Inner>, handle: &Arc<Handle>, _turn: &Turn) -> Result<Snapshot, Error> {
    if let Some(zero) = handle.history.kept(0) {
        return Ok(zero);
    }
    make_zero(inner, handle).await?;
    let zero = Snapshot {
        number: 0,
        step: 0,
        label: None,
        kind: SnapshotKind::Made,
        created_at: handle.created_at,
        frozen_us: 0,
        torn: false,
        // The disk does not come from it, so nothing follows from when it was laid down.
        generation: 0,
        parent: None,
        went_to: None,
        dropped: false,
    };
    record(inner, handle, zero).await
}

/// Keeps the state as it is now, whether it changed or not.
///
/// Errors: `wrong_state` for what is being made, `label_taken`, `host_full`.
pub(crate) async fn take(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    turn: &Turn,
    wanted: Wanted,
) -> Result<Snapshot, Error> {
    let settled = settle(inner, handle, turn, wanted).await?;
    write(inner, handle, settled).await
}

/// Keeps the state after a step; none where the disk was written to by a boot alone.
async fn take_changed(inner: &Arc<Inner>, handle: &Arc<Handle>, turn: &Turn) -> Result<Option<Snapshot>, Error> {
    let (booted, furnished) = handle.history.take_booted();
    let laid = settle(inner, handle, turn, Wanted::of(SnapshotKind::Auto)).await?;
    if !booted {
        return write(inner, handle, laid).await.map(Some);
    }
    // Its bytes are looked at before it has a row.
    let Laid { snapshot, settled, mark } = laid;
    let (disks, id, head, number) = (inner.disks()?, handle.id, handle.history.head(), snapshot.number);
    let (generation, same) = blocking(move || {
        let generation = settled.finish()?;
        let same = match furnished.filter(|_| head == 0) {
            Some(before) => disks.is_furnished(id, number, &before),
            None => disks.is_only_booted(id, head, number),
        };
        if let Ok(true) = same {
            disks.drop_snapshot(id, number)?;
        }
        Ok::<_, Error>((generation, same))
    })
    .await??;
    failpoint::hit("snapshot.taken");
    let mark = mark.filter(|mark| mark.generation == generation);
    match same {
        Ok(true) => {
            handle.history.set_mark(mark);
            return Ok(None);
        }
        Ok(false) => {}
        // Then it counts as changed.
        Err(error) => tracing::debug!(computer = %id, error = chain(&error), "what a boot wrote is not known"),
    }
    let recorded = record(inner, handle, Snapshot { generation, ..snapshot }).await?;
    kept(handle, &recorded, mark);
    Ok(Some(recorded))
}

/// A state whose content is settled, in a folder that has no row yet.
struct Laid {
    snapshot: Snapshot,
    settled: Settled,
    /// How the disk is then.
    mark: Option<Mark>,
}

/// Settles the state as it is now.
async fn settle(inner: &Arc<Inner>, handle: &Arc<Handle>, _turn: &Turn, wanted: Wanted) -> Result<Laid, Error> {
    let Wanted { kind, label, sync, stands } = wanted;
    if handle.state() == State::Creating {
        let message = format!("`{}` is being made, and has no state yet", handle.name());
        return Err(Error::new("wrong_state", 409, message).retryable());
    }
    let history = &handle.history;
    let (number, parent, step) = (history.next_number(), history.head(), history.last_ended());
    let machine = handle.status.borrow().machine.clone();
    // Held until the state is settled: then what it froze goes on.
    let synced = match &machine {
        Some(machine) if sync && !machine.is_dead() && !machine.is_on_disk() => written_out(handle, machine).await,
        _ => None,
    };
    let (disks, known, taken_of) = (inner.disks()?, history.dirt(), Arc::clone(inner));
    let id = handle.id;
    let watched = Arc::clone(handle);
    let stood = blocking(move || {
        let dirt = match disks.storage() {
            Storage::Btrfs => Some(dirt_of(&disks, &watched, known)?),
            Storage::Plain => None,
        };
        if sync {
            let live = fs_err::File::open(&disks.disk(id).live).map_err(den_disk::DiskError::from)?;
            rustix::fs::syncfs(live.file()).map_err(std::io::Error::from).map_err(den_disk::DiskError::from)?;
        } else if dirt.as_ref().is_some_and(|dirt| dirt.waiting_bytes() > PREFLUSH_ABOVE.0) {
            disks.preflush(id)?;
        }
        let machine = machine.as_ref().filter(|machine| !stands && !machine.is_dead() && !machine.is_on_disk());
        still(&taken_of, &watched.stand, machine, &disks, id, number, dirt.as_deref())
    });
    let Stood { settled, frozen, torn, mark } = stood.await??;
    drop(synced);
    let snapshot = Snapshot {
        number,
        step,
        label,
        kind,
        created_at: clock(),
        frozen_us: frozen.as_micros() as u64,
        torn,
        generation: mark.map_or(0, |mark| mark.generation),
        parent: Some(parent),
        went_to: None,
        dropped: false,
    };
    Ok(Laid { snapshot, settled, mark })
}

/// Writes the row of a state while its bytes are written out.
async fn write(inner: &Arc<Inner>, handle: &Arc<Handle>, laid: Laid) -> Result<Snapshot, Error> {
    let Laid { snapshot, settled, mark } = laid;
    let (id, number) = (handle.id, snapshot.number);
    let row = inner.store.insert_snapshot(id, &snapshot, durability(&snapshot));
    let written = async {
        let generation = blocking(|| settled.finish()).await;
        failpoint::hit("snapshot.taken");
        Ok(generation??)
    };
    let (row, written) = tokio::join!(row, written);
    let generation: u64 = match (&row, written) {
        (_, Ok(generation)) => generation,
        (row, Err(error)) => {
            if row.is_ok() {
                inner.store.delete_snapshots(id, vec![number], Vec::new(), Durability::Process).await?;
            }
            return Err(error);
        }
    };
    let recorded = recorded(inner, handle, Snapshot { generation, ..snapshot.clone() }, row).await?;
    if generation != snapshot.generation {
        // It did not stand still, and others wrote it out in between.
        let Snapshot { frozen_us, torn, .. } = snapshot;
        inner.store.set_snapshot_taken(id, number, generation, frozen_us, torn, Durability::Process).await?;
    }
    kept(handle, &recorded, mark.filter(|mark| mark.generation == generation));
    Ok(recorded)
}

/// From here on a change is one since this state.
fn kept(handle: &Handle, snapshot: &Snapshot, mark: Option<Mark>) {
    handle.history.set_mark(mark);
    failpoint::hit("snapshot.row");
    let Snapshot { number, step, kind, frozen_us, .. } = snapshot;
    tracing::debug!(computer = %handle.id, number, step, kind = kind.as_str(), frozen_us, "a state is kept");
}

/// Has everything inside written out by its agent. One that cannot is no reason to keep nothing: what has left the
/// programs inside is written out from here in any case.
async fn written_out(handle: &Handle, machine: &Machine) -> Option<Synced> {
    let why = match tokio::time::timeout(SYNC_WAIT, machine.link().sync()).await {
        Ok(Ok(Some(synced))) => return Some(synced),
        Ok(Ok(None)) => "its agent is older than that".to_owned(),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("it took longer than {} s", SYNC_WAIT.as_secs()),
    };
    tracing::warn!(computer = %handle.id, why, "file systems inside are not written out by its agent");
    None
}

/// A state that is settled.
struct Stood {
    settled: Settled,
    frozen: Duration,
    torn: bool,
    mark: Option<Mark>,
}

/// The part for which a computer stands still.
fn still(
    inner: &Inner,
    stand: &Stand,
    machine: Option<&Machine>,
    disks: &Disks,
    id: ComputerId,
    number: u64,
    dirt: Option<&Dirt>,
) -> Result<Stood, Error> {
    let _turn = stand.turn();
    let mut freezer = machine.and_then(|machine| inner.history.freezer(machine));
    let began = Instant::now();
    let frozen = match &mut freezer {
        // It may have ended in between: then nothing moves either.
        Some(freezer) => match freezer.begin().and_then(|()| freezer.wait(FREEZE_WAIT)).unwrap_or(false) {
            // What is paused stands as far as it can.
            false if !stand.is_wanted() => {
                let _ = freezer.thaw(); // Again below, where it is told of.
                false
            }
            stands => stands,
        },
        None => false,
    };
    failpoint::hit("snapshot.frozen");
    let stood = began.elapsed();
    let settled = disks.begin_snapshot(id, number);
    // Before they go on: whatever they write is a change.
    let mark = dirt.and_then(|dirt| dirt.mark().ok());
    let time = began.elapsed();
    if stand.is_wanted() {
        freezer.iter_mut().for_each(cgroup::Freezer::keep);
    } else if let Some(freezer) = &mut freezer
        && let Err(error) = freezer.thaw()
        && machine.is_some_and(|machine| !machine.is_dead())
    {
        tracing::error!(computer = %id, error = chain(&error), "it may be left frozen");
    }
    let running = machine.is_some_and(|machine| !machine.is_dead());
    tracing::trace!(computer = %id, number, ?stood, settled = ?time, "a state is settled");
    Ok(Stood { settled: settled?, frozen: if frozen { time } else { Duration::ZERO }, torn: running && !frozen, mark })
}

fn durability(snapshot: &Snapshot) -> Durability {
    if snapshot.is_automatic() { Durability::Process } else { Durability::Power }
}

/// Writes the row of a state whose folder is there. Where it is not written, the folder goes again.
pub(crate) async fn record(inner: &Arc<Inner>, handle: &Handle, snapshot: Snapshot) -> Result<Snapshot, Error> {
    let row = inner.store.insert_snapshot(handle.id, &snapshot, durability(&snapshot)).await;
    recorded(inner, handle, snapshot, row).await
}

/// What becomes of a state whose folder is there and whose row is, or is not.
async fn recorded(
    inner: &Arc<Inner>,
    handle: &Handle,
    snapshot: Snapshot,
    row: Result<(), StoreError>,
) -> Result<Snapshot, Error> {
    match row {
        Ok(()) => {
            inner.metrics.state_kept();
            handle.history.put(snapshot.clone());
            Ok(snapshot)
        }
        Err(error) => {
            let (disks, id, number) = (inner.disks()?, handle.id, snapshot.number);
            if let Err(left) = blocking(move || disks.drop_snapshot(id, number)).await? {
                tracing::warn!(computer = %id, number, error = chain(&left), "a state without a row is left");
            }
            Err(match error {
                StoreError::LabelTaken { label, .. } => super::label_taken(handle, &label),
                error => error.into(),
            })
        }
    }
}
