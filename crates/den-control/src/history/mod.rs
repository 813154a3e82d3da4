//! The states of computers: kept after each step that changed the disk, named, found, and let go.
//!
//! ```text
//! a step ends ─► told ─► keep: changed? ─no──► the step has the state before it
//!                  │              └─yes─► preflush · freeze · snapshot settled · thaw ─► row, and written out
//!                  │                       ─► what changed ─► retain
//!                  └─ the next step begins when that is done: `settled`
//! NAME@STATE ─► resolve ─► a kept state, held against being let go while it is used
//! ```
//!
//! Invariants:
//! - Whoever takes, drops or replaces states of a computer holds its [`Turn`].
//! - A state has its row once its content is settled, and is known once its folder is there too; it loses the
//!   row first. What a crash leaves of either alone goes at the next start; but of a state that a restore keeps,
//!   the row comes first (see `Snapshot::went_to`).
//! - A state that something descends from leaves its row behind, so that what two states have in common is
//!   found when it is gone.
//! - What is frozen is thawed: by its owner, by the launcher where this process has gone, by the next start.
//!
//! Not here: how states lie on the disk (`den-disk`), what is in them (`den-history`).

mod blame;
mod book;
mod changes;
mod diff;
mod explore;
pub(crate) mod fork;
mod fork_each;
mod fork_memory;
pub(crate) mod keep;
mod look;
pub(crate) mod merge;
mod restore;
mod retain;

use std::{path::PathBuf, sync::Arc};

use den_api::{SnapRequest, SnapshotList, SnapshotView};
use den_history::State;
use den_model::{ComputerId, Snapshot, SnapshotKind, StateError, StateLabel, StateName, StateRef};
use den_store::Durability;

pub use blame::StepsMatching;
pub(crate) use book::{History, Pin, Turn};
pub(crate) use changes::{changes_file, list_changes};
pub use diff::DiffRequest;
pub use explore::Exploration;
pub use fork_each::{EachFork, ForkEach, ForkOne};
pub(crate) use keep::{House, Wanted, ended, keep, take, thaw_all};
pub use look::{GrepRequest, LOOKS_MAX, StateBytes};

use crate::{
    Error, Who,
    control::{Control, Inner},
    handle::Handle,
    limits::STATES_SHOWN_MAX,
};

/// A kept state of a computer. It is not let go while this is there, unless its computer is removed.
pub(crate) struct Resolved {
    /// Its computer.
    pub handle: Arc<Handle>,
    /// What is recorded of it.
    pub snapshot: Snapshot,
    /// Its number among the kept states.
    pub number: u64,
    /// See [`Snapshot::generation`].
    pub generation: u64,
    /// Where it lies.
    pub snapshot_path: PathBuf,
    /// The image beneath it, the highest layer first.
    pub layers: Vec<PathBuf>,
    /// How it is written: `NAME@STATE`.
    pub shown: String,
    _pin: Pin,
}

impl Resolved {
    /// As it is shown.
    pub(crate) fn view(&self) -> SnapshotView {
        SnapshotView::from(&self.snapshot)
    }

    /// Opens it to be looked into. Blocks.
    pub(crate) fn open(&self) -> Result<State, Error> {
        Ok(State::open(&self.snapshot_path, &self.layers)?)
    }
}

/// One state on the way back to where a computer came from.
struct Ancestor {
    computer: ComputerId,
    number: u64,
    generation: u64,
    /// Where the same bytes lie.
    at: Option<(Arc<Handle>, u64)>,
}

impl Control {
    /// Keeps the state of a computer as it is now, under a label if one is given.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `bad_state`, `label_taken`, `host_full`.
    pub async fn snap(&self, computer: &str, request: SnapRequest, who: &Who) -> Result<SnapshotView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        if request.memory {
            return Err(Error::unsupported_memory_state(handle.name()));
        }
        let label = request.label.as_deref().map(str::parse::<StateLabel>).transpose()?;
        tracing::debug!(computer = %handle.id, who = who.0, "a state is to be kept");
        handle.history.settled().await;
        let turn = handle.history.turn().await?;
        if let Some(label) = &label
            && handle.history.labelled(label).is_some()
        {
            return Err(label_taken(&handle, label));
        }
        // A state that has a name already, or is kept for another reason, stays as it is.
        let head = match keep::is_clean(&self.0, &handle, &turn).await? && !request.sync {
            true => handle.history.kept(handle.history.head()).filter(|head| head.is_automatic()),
            false => None,
        };
        let kept = match head {
            Some(head) => {
                let named = Snapshot { label, kind: SnapshotKind::Named, ..head };
                let (number, label) = (named.number, named.label.clone());
                self.0.store.set_label(handle.id, number, label, named.kind, Durability::Power).await?;
                handle.history.put(named.clone());
                named
            }
            None => {
                let wanted = Wanted { label, sync: request.sync, ..Wanted::of(SnapshotKind::Named) };
                take(&self.0, &handle, &turn, wanted).await?
            }
        };
        Ok(SnapshotView::from(&kept))
    }

    /// The kept states of a computer, the oldest first.
    ///
    /// Errors: `computer_not_found`.
    pub async fn snapshots(&self, computer: &str) -> Result<SnapshotList, Error> {
        let handle = self.0.registry.find_any(computer)?;
        handle.history.settled().await;
        Ok(SnapshotList { items: handle.history.all_kept().iter().map(SnapshotView::from).collect() })
    }

    /// Lets a kept state go.
    ///
    /// Errors: `computer_not_found`, `state_not_found`, `bad_state` for `now` and for what a computer was made
    /// as, `state_in_use`.
    pub async fn drop_snapshot(&self, computer: &str, state: &str) -> Result<(), Error> {
        let handle = self.0.registry.find(computer)?;
        handle.plugged()?;
        let name: StateName = state.parse()?;
        if name == StateName::Now {
            return Err(bad_state("`now` is no kept state").hint(format!("`den snaps {computer}` lists those")));
        }
        handle.history.settled().await;
        if let Some(number) = self.find_kept(&handle, &name).await? {
            handle.history.unpinned(number).await;
        }
        let turn = handle.history.turn().await?;
        let found = self.find_kept(&handle, &name).await?;
        if found == Some(0) || name == StateName::Step(0) {
            return Err(bad_state(format!("what `{}` was made as is kept while it is there", handle.name())));
        }
        let number = found.ok_or_else(|| state_not_found(&handle, &name))?;
        if handle.history.is_pinned(number) {
            let message = format!("state `{name}` of `{}` is being looked at", handle.name());
            return Err(Error::new("state_in_use", 409, message).hint("try again").retryable());
        }
        retain::let_go(&self.0, &handle, &turn, vec![number]).await
    }

    /// Finds a state; `now` is kept first where it is not yet.
    ///
    /// Errors: `computer_not_found`, `state_not_found` with those there are, `image_not_found`, `host_full`.
    pub(crate) async fn resolve(&self, reference: &StateRef) -> Result<Resolved, Error> {
        let handle = self.0.registry.find_any(&reference.computer)?;
        handle.history.settled().await;
        let turn = handle.history.turn().await?;
        let resolved = self.resolve_under(&handle, &reference.state, &turn).await;
        drop(turn);
        resolved
    }

    /// As [`Control::resolve`], for who has the turn already.
    pub(crate) async fn resolve_under(
        &self,
        handle: &Arc<Handle>,
        state: &StateName,
        turn: &Turn,
    ) -> Result<Resolved, Error> {
        let snapshot = match state {
            StateName::Now => keep::now(&self.0, handle, turn).await?,
            _ => match self.find_kept(handle, state).await? {
                Some(0) => keep::zero(&self.0, handle, turn).await?,
                Some(number) => handle.history.kept(number).ok_or_else(|| state_not_found(handle, state))?,
                None => return Err(state_not_found(handle, state)),
            },
        };
        held(&self.0, handle, snapshot)
    }

    /// The number of a kept state. A step that changed nothing has the one before it.
    async fn find_kept(&self, handle: &Handle, state: &StateName) -> Result<Option<u64>, Error> {
        let history = &handle.history;
        Ok(match state {
            StateName::Now => None,
            StateName::Step(0) | StateName::Snapshot(0) => Some(0),
            StateName::Snapshot(number) => Some(*number).filter(|&number| history.kept(number).is_some()),
            StateName::Label(label) => history.labelled(label),
            StateName::Step(step) => match history.newest_after(*step) {
                Some(number) => Some(number),
                None => {
                    let step = self.0.store.get_step(handle.id, *step).await?;
                    let number = step.and_then(|step| step.snapshot);
                    number.filter(|&number| number == 0 || history.kept(number).is_some())
                }
            },
        })
    }

    /// Since when two states may differ: the generation of the nearest state that both come from. None where
    /// that is not known.
    pub(crate) fn common(&self, a: &Resolved, b: &Resolved) -> Option<u64> {
        let (a, b) = (self.0.ancestors(a), self.0.ancestors(b));
        nearest(&a, &b).map(|(a, _)| a.generation).filter(|&generation| generation > 0)
    }

    /// The nearest state that two states come from, of those whose bytes are still there.
    ///
    /// Errors: `image_not_found` and what making state 0 meets.
    pub(crate) async fn base(&self, a: &Resolved, b: &Resolved) -> Result<Option<Resolved>, Error> {
        let (a, b) = (self.0.ancestors(a), self.0.ancestors(b));
        let Some((one, other)) = nearest(&a, &b) else { return Ok(None) };
        let Some((handle, number)) = one.at.clone().or_else(|| other.at.clone()) else { return Ok(None) };
        let snapshot = match handle.history.kept(number) {
            Some(snapshot) => snapshot,
            None if number == 0 => keep::zero(&self.0, &handle, &handle.history.turn().await?).await?,
            None => return Ok(None),
        };
        let mut base = held(&self.0, &handle, snapshot)?;
        base.generation = one.generation;
        Ok(Some(base))
    }
}

/// A state that is there, held.
pub(crate) fn held(inner: &Inner, handle: &Arc<Handle>, snapshot: Snapshot) -> Result<Resolved, Error> {
    let image = inner.images.by_digest(&handle.spec().image_digest)?;
    let pin = Pin::new(handle, snapshot.number);
    Ok(Resolved {
        number: snapshot.number,
        generation: snapshot.generation,
        snapshot_path: inner.disks()?.snapshot_path(handle.id, snapshot.number),
        layers: image.layers.clone(),
        shown: format!("{}@{}", handle.name(), handle.history.name_of(&snapshot)),
        handle: Arc::clone(handle),
        snapshot,
        _pin: pin,
    })
}

impl Inner {
    /// A state and all that it comes from, the nearest first, across computers.
    fn ancestors(&self, of: &Resolved) -> Vec<Ancestor> {
        let mut found: Vec<Ancestor> = Vec::new();
        let (mut handle, mut number) = (Arc::clone(&of.handle), of.number);
        // The same bytes in the fork that was made of it, and what is known of their generation.
        let (mut copy, mut known) = (None, 0);
        loop {
            let row = handle.history.row(number);
            let there = number == 0 || row.as_ref().is_some_and(|row| !row.dropped);
            let at = if there { Some((Arc::clone(&handle), number)) } else { copy };
            let generation = row.as_ref().map_or(known, |row| row.generation);
            copy = at.clone();
            found.push(Ancestor { computer: handle.id, number, generation, at });
            match (number, row) {
                // It is forgotten altogether, and so is what it came from.
                (1.., None) => return found,
                // What was made from an image began as its state 0, whether that was ever laid down or not.
                (1.., Some(row)) => number = row.parent.filter(|&parent| parent < number).unwrap_or(0),
                (0, _) => {
                    let Some(parent) = &handle.parent else { return found };
                    let (computer, snapshot) = (parent.id, parent.snapshot);
                    match self.registry.get(computer) {
                        Some(next) => (handle, number) = (next, snapshot),
                        None => {
                            found.push(Ancestor { computer, number: snapshot, generation, at: copy });
                            return found;
                        }
                    }
                    known = generation;
                    continue;
                }
            }
            (copy, known) = (None, 0);
        }
    }
}

/// The nearest that is in both and has its bytes in one of them.
fn nearest<'a>(a: &'a [Ancestor], b: &'a [Ancestor]) -> Option<(&'a Ancestor, &'a Ancestor)> {
    a.iter().find_map(|one| {
        let same = |other: &&Ancestor| (other.computer, other.number) == (one.computer, one.number);
        b.iter().find(same).filter(|other| one.at.is_some() || other.at.is_some()).map(|other| (one, other))
    })
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        let what = match &error {
            StateError::NoLabel(_) => "a label is 1 to 63 of a-z, 0-9 and `-`, not digits alone and not `now`",
            _ => "`den snaps NAME` lists the states that are kept",
        };
        bad_state(error.to_string()).hint(what).because(error)
    }
}

fn bad_state(message: impl Into<String>) -> Error {
    Error::new("bad_state", 400, message)
}

fn label_taken(handle: &Handle, label: &StateLabel) -> Error {
    let name = handle.name();
    Error::new("label_taken", 409, format!("`{name}` has a state `{label}` already"))
        .hint(format!("take another label, or let that one go with `den snaps rm {name}@{label}`"))
}

/// Says which states there are.
fn state_not_found(handle: &Handle, state: &StateName) -> Error {
    let (name, kept) = (handle.name(), handle.history.all_kept());
    let mut names: Vec<String> = kept.iter().map(|kept| handle.history.name_of(kept)).collect();
    if kept.first().is_none_or(|first| first.number > 0) {
        names.insert(0, "0".to_owned());
    }
    let left = names.len().saturating_sub(STATES_SHOWN_MAX);
    let shown = names[left..].join(", ");
    let more = if left > 0 { format!(", and {left} older ones") } else { String::new() };
    let why = match state {
        StateName::Step(step) if handle.steps.get(*step).is_some_and(|live| !live.has_ended()) => {
            format!("step {step} of `{name}` still runs")
        }
        StateName::Step(step) if *step > handle.steps.last() => format!("`{name}` has no step {step}"),
        _ => format!("no state `{state}` of `{name}` is kept"),
    };
    Error::new("state_not_found", 404, format!("{why}; there are {shown}{more}, and now"))
        .hint(format!("`den snaps {name}` lists them"))
}
