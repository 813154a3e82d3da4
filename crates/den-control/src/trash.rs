//! The trash: what is removed lies there for a while, and comes back or goes for good.
//!
//! ```text
//! rm ──► row 'trashed', with the way back ─► name free ─► processes end ─► answer (row flushed)
//!                    │ disk, states, steps, records of the network stay where they are
//!        undo ◄──────┤
//!                    └──► emptied: by hand · too old · DATA short of room, the oldest first
//! rm --now, emptied ──► row 'removing' ─► processes end ─► disk out of sight, row deleted
//! ```
//!
//! Invariants:
//! - From the first write on it is in the trash: a crash after it has the next start end what still runs.
//! - What lies there changes no more. It is read, forked, taken out and emptied; all else is refused.
//! - What begins to be emptied is emptied, by this daemon or the next.
//! - Nothing goes for good by being removed twice: that takes `--now` or an emptying.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use den_api::{ComputerView, EmptiedList, EmptiedView, TrashList, TrashView};
use den_disk::Identity;
use den_model::{ComputerName, EventKind, Micros, Request, Standing, State};
use den_store::Durability;
use den_sys::failpoint;
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    errors::chain,
    handle::{Ask, Handle},
    limits::{ROOM_WAIT, STEPS_END_WAIT, TRASH_LOOK_EVERY, TRASH_LOOK_SOONEST, TRASH_ROOM_MIN, TRASH_ROOM_PERCENT},
    metrics::Operation,
    recover,
    task::Task,
    undo::What,
};

/// How often room that is being made is looked for.
const ROOM_LOOK: Duration = Duration::from_millis(50);

/// Where what is removed goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Into the trash, where the house has one.
    IntoTrash,
    /// For good, also out of the trash.
    ForGood,
}

/// The trash of a house.
pub(crate) struct Trash {
    /// How long something lies in it; none: what is removed goes for good.
    kept_for: Option<Duration>,
    /// Something was put in.
    added: Notify,
}

impl Trash {
    /// For `kept_for` each; 0 is no trash.
    pub(crate) fn new(kept_for: Duration) -> Self {
        Self { kept_for: Some(kept_for).filter(|time| !time.is_zero()), added: Notify::new() }
    }

    /// Until when something lies in it that was put in `at` then.
    fn until(&self, at: Micros) -> Micros {
        at.saturating_add(self.kept_for.map_or(0, |time| time.as_micros().try_into().unwrap_or(Micros::MAX)))
    }
}

/// How a computer comes out of the trash.
pub(crate) struct Undelete {
    /// What put it there, and is taken back.
    pub number: u64,
    /// Where it stood before.
    pub before: State,
    /// What it is called from now on; its own name without.
    pub name: Option<ComputerName>,
    pub who: String,
}

impl Control {
    /// Removes a computer: its processes are gone and its name is free when this returns. Disk, states and steps
    /// lie in the trash, or are on their way.
    ///
    /// Errors: `computer_not_found`; `computer_trashed` where it lies there already.
    pub async fn remove(&self, computer: &str, removal: Removal, who: &Who) -> Result<(), Error> {
        let handle = match removal {
            Removal::IntoTrash => self.0.registry.find(computer)?,
            Removal::ForGood => self.0.registry.find_any(computer)?,
        };
        tracing::debug!(computer = %handle.id, who = who.0, ?removal, "a removal is asked for");
        let who = who.0.clone();
        let began = Instant::now();
        handle.ask(|reply| Ask::Remove { removal, who, reply }).await?;
        self.0.metrics.took(Operation::Remove, began);
        Ok(())
    }

    /// What lies in the trash, the first that was removed first.
    pub async fn trash(&self) -> TrashList {
        let items = self.0.in_trash().into_iter().map(|(at, handle)| TrashView {
            computer: handle.view(),
            removed_at: at,
            kept_until: self.0.trash.until(at),
        });
        TrashList { items: items.collect(), kept_for_s: self.0.trash.kept_for.map(|time| time.as_secs()) }
    }

    /// Removes for good what lies in the trash: one computer, or all of them.
    ///
    /// Errors: `computer_not_found`, `ambiguous_name`; `not_in_trash`.
    pub async fn empty_trash(&self, computer: Option<&str>, who: &Who) -> Result<EmptiedList, Error> {
        let handles = match computer {
            Some(computer) => vec![self.0.registry.find_any(computer)?],
            None => self.0.in_trash().into_iter().map(|(_, handle)| handle).collect(),
        };
        let mut items = Vec::with_capacity(handles.len());
        for handle in handles {
            match empty(&handle, "it was emptied by hand", Some(who.0.clone())).await {
                Ok(()) => items.push(EmptiedView { id: handle.id, name: handle.name().to_string() }),
                // Taken out, or emptied by someone else, in between.
                Err(error) if computer.is_none() && matches!(error.code, "not_in_trash" | "computer_not_found") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(EmptiedList { items })
    }
}

impl Inner {
    /// What lies in the trash, and since when, the first that was removed first.
    fn in_trash(&self) -> Vec<(Micros, Arc<Handle>)> {
        let mut all: Vec<_> = self
            .registry
            .trashed()
            .into_iter()
            .map(|handle| {
                let at = handle.status.borrow().changed_at;
                (at, handle)
            })
            .collect();
        all.sort_by_key(|(at, handle)| (*at, handle.id));
        all
    }
}

/// Has one of the trash removed for good.
async fn empty(handle: &Handle, why: &'static str, who: Option<String>) -> Result<(), Error> {
    handle.ask(|reply| Ask::Empty { why, who, reply }).await
}

/// Empties what lay in the trash for long enough, and what there is no room for, until the house is closed.
pub(crate) async fn look_after(inner: Arc<Inner>) {
    while inner.open_for_work().is_ok() {
        let next = tidy(&inner).await;
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            () = inner.trash.added.notified() => {}
        }
    }
}

/// Empties what is due, and says when to look again.
async fn tidy(inner: &Inner) -> Duration {
    let mut next = TRASH_LOOK_EVERY;
    for (at, handle) in inner.in_trash() {
        let left = inner.trash.until(at).saturating_sub(now());
        if left > 0 {
            next = next.min(Duration::from_micros(left as u64));
            continue;
        }
        drop_one(inner, &handle, "it lay in the trash for as long as `--trash-for` says").await;
    }
    let mut oldest = inner.in_trash().into_iter();
    while is_short(inner).await
        && let Some((_, handle)) = oldest.next()
    {
        if drop_one(inner, &handle, "the disk of the data folder is short of room").await {
            make_room(inner).await;
        }
    }
    next.max(TRASH_LOOK_SOONEST)
}

/// Empties one, and says whether it is gone.
async fn drop_one(inner: &Inner, handle: &Handle, why: &'static str) -> bool {
    match empty(handle, why, None).await {
        Ok(()) => true,
        // Somebody took it out or emptied it.
        Err(error) if matches!(error.code, "not_in_trash" | "computer_not_found") => false,
        Err(_) if inner.open_for_work().is_err() => false,
        Err(error) => {
            tracing::error!(computer = %handle.id, why, error = error.chain(), "it stays in the trash, and is tried again");
            false
        }
    }
}

/// Whether the disks have less room than shall be free.
async fn is_short(inner: &Inner) -> bool {
    let Ok(disks) = inner.disks() else { return false };
    match blocking(move || disks.room()).await {
        Ok(Ok(room)) => room.free < TRASH_ROOM_MIN.min(den_model::Bytes(room.total.0 / 100 * TRASH_ROOM_PERCENT)),
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "how much room the disks have is not known");
            false
        }
        Err(_) => false,
    }
}

/// Waits until there is room again, or for so long that more has to go.
async fn make_room(inner: &Inner) {
    let until = tokio::time::Instant::now() + ROOM_WAIT;
    while tokio::time::Instant::now() < until && is_short(inner).await {
        if let Ok(disks) = inner.disks() {
            let _ = blocking(move || disks.hurry()).await; // It only takes longer then.
        }
        tokio::time::sleep(ROOM_LOOK).await;
    }
}

/// How a removal came out.
pub(crate) enum Removed {
    /// It lies in the trash.
    Trashed,
    /// Nothing of it is left.
    Gone,
}

/// Whose the computer is that came out of the trash.
pub(crate) enum Went {
    /// It has its name, and its task goes on.
    On,
    /// It has another name, and so another handle and another task.
    ToAnother,
}

impl Task {
    /// Removes the computer, into the trash where that is asked for and there is one.
    pub(crate) async fn remove(&self, removal: Removal, who: &str) -> Result<Removed, Error> {
        match (removal, self.handle.state()) {
            (Removal::IntoTrash, State::Trashed) => Err(Error::trashed(self.handle.name())),
            (Removal::IntoTrash, _) if self.inner.trash.kept_for.is_some() => {
                self.move_to_trash(who).await.map(|()| Removed::Trashed)
            }
            _ => self.for_good("it was removed for good", Some(who)).await.map(|()| Removed::Gone),
        }
    }

    /// Removes for good what lies in the trash.
    pub(crate) async fn empty(&self, why: &'static str, who: Option<&str>) -> Result<(), Error> {
        if self.handle.state() != State::Trashed {
            let name = self.handle.name();
            return Err(Error::new("not_in_trash", 409, format!("`{name}` is not in the trash"))
                .hint("`den trash` lists what is"));
        }
        self.for_good(why, who).await
    }

    async fn move_to_trash(&self, who: &str) -> Result<(), Error> {
        let removing = self.ask(Request::Remove)?;
        let (inner, handle, id) = (&self.inner, &self.handle, self.handle.id);
        let (before, reason) = self.stands();
        let at = now();
        let undo = What::Rm { before }.record(handle, who, at, None);
        inner.store.trash(id, undo, Durability::Process).await?;
        // The flush goes on while the processes end.
        let flushed = inner.store.flush();
        inner.registry.trash(Arc::clone(handle));
        self.show(removing, reason.clone(), at);
        failpoint::hit("trash.state");
        if let Err(error) = self.end_at_once().await {
            self.not_removed(before, reason, &error).await;
            return Err(error);
        }
        handle.stand.ended();
        failpoint::hit("trash.killed");
        inner.gate.detach(id).await;
        handle.steps.all_ended(STEPS_END_WAIT).await;
        self.show(State::Trashed, reason, at);
        let flushed = flushed.await;
        failpoint::hit("trash.done");
        inner.events.tell(EventKind::Trashed, Some(handle), Some(who), serde_json::Value::Null);
        inner.trash.added.notify_one();
        Ok(flushed?)
    }

    /// Removes the computer with all that it holds.
    async fn for_good(&self, why: &'static str, who: Option<&str>) -> Result<(), Error> {
        let removing = self.ask(Request::Remove)?;
        let (inner, handle, id) = (&self.inner, &self.handle, self.handle.id);
        let (before, reason) = self.stands();
        let at = now();
        let undo = What::Rm { before }.record(handle, who.unwrap_or("den"), at, None);
        inner.store.removing(id, undo, why, Durability::Process).await?;
        self.show(removing, None, at);
        inner.registry.free_name(handle);
        failpoint::hit("remove.state");
        if let Err(error) = self.end_at_once().await {
            self.not_removed(before, reason, &error).await;
            return Err(error);
        }
        failpoint::hit("remove.killed");
        // No state is begun any more, and what one is taken of stays until it is.
        handle.history.close().await;
        // Before the disk goes, for the gate writes its records there.
        if before != State::Trashed {
            inner.gate.detach(id).await;
        }
        handle.steps.all_ended(STEPS_END_WAIT).await;
        // The row goes to the disk while the disk goes out of sight. Each alone is swept by the next start.
        let row = inner.store.delete_computer(id, Durability::Power);
        let disks = inner.disks()?;
        let removed = blocking(move || disks.remove(id)).await?;
        failpoint::hit("remove.disk");
        if let Err(error) = removed {
            tracing::error!(computer = %id, error = chain(&error), "the disk of a removed computer is left");
        }
        row.await?;
        failpoint::hit("remove.row");
        handle.status.send_modify(|status| status.machine = None);
        inner.registry.remove(handle);
        inner.pools.leave(id);
        tracing::info!(computer = %id, name = %handle.name(), why, "a computer is gone");
        let detail = json!({ "why": why, "from_trash": before == State::Trashed });
        inner.events.tell(EventKind::Removed, Some(handle), who, detail);
        Ok(())
    }

    /// The state, and why.
    fn stands(&self) -> (State, Option<String>) {
        let status = self.handle.status.borrow();
        (status.state, status.reason.clone())
    }

    /// It may still run, so it stays; the name is its own again unless someone was quicker.
    async fn not_removed(&self, before: State, reason: Option<String>, error: &Error) {
        let state = if before == State::Running { State::Failed } else { before };
        if self.inner.registry.insert(Arc::clone(&self.handle)).is_err() {
            return; // The next start removes it.
        }
        let (at, reason) = (now(), reason.or(Some(error.chain())));
        let store = &self.inner.store;
        let recorded = store.not_removed(self.handle.id, state, reason.clone(), at, Durability::Process);
        if let Err(error) = recorded.await {
            tracing::error!(computer = %self.handle.id, %state, error = chain(&error), "a state is not recorded");
        }
        self.show(state, reason, at);
    }

    /// Takes the computer out of the trash, and starts it if it ran.
    pub(crate) async fn undelete(&self, undelete: Undelete) -> Result<(ComputerView, Went), Error> {
        let stopped = self.ask(Request::Undelete)?;
        self.inner.open_for_work()?;
        let (inner, handle, id) = (&self.inner, &self.handle, self.handle.id);
        let Undelete { number, before, name, who } = undelete;
        let name = name.unwrap_or_else(|| handle.name().clone());
        inner.registry.claim(&name, id).map_err(|holder| {
            Error::name_taken(&name, holder).hint(format!(
                "`den undo {} --as NAME` brings it back under another name, `den rm {name}` frees this one",
                handle.name()
            ))
        })?;
        let state = match before {
            State::Unplugged | State::Failed => before,
            _ => stopped,
        };
        let room = inner.pools.hold(id, Standing::of(state, false));
        let taken_out = match room {
            Ok(()) => self.take_out(number, state, &name).await,
            Err(full) => Err(full),
        };
        match taken_out {
            Ok(()) => {}
            Err(error) => {
                inner.pools.stands(id, State::Trashed, false);
                inner.registry.unclaim(&name, id);
                return Err(error);
            }
        }
        let renamed = name != *handle.name();
        let handle = match renamed {
            true => self.renew().await?,
            false => {
                let reason = self.stands().1;
                // The name is claimed, so it is free for this one.
                let _ = inner.registry.insert(Arc::clone(handle));
                handle.status.send_modify(|status| status.cut = state == State::Unplugged);
                self.show(state, reason, now());
                Arc::clone(handle)
            }
        };
        failpoint::hit("undelete.shown");
        inner.events.tell(EventKind::Undeleted, Some(&handle), Some(&who), json!({ "name": name.to_string() }));
        if matches!(before, State::Running | State::Starting) {
            // Out of the trash it is either way; the view says whether it runs.
            let started = match renamed {
                true => handle.ask(|reply| Ask::Start { who, reply }).await,
                false => self.start().await,
            };
            if let Err(error) = started {
                tracing::warn!(computer = %id, error = error.chain(), "it is out of the trash and does not start");
            }
        }
        Ok((handle.view(), if renamed { Went::ToAnother } else { Went::On }))
    }

    /// The disk's part and the row's.
    async fn take_out(&self, number: u64, state: State, name: &ComputerName) -> Result<(), Error> {
        let (inner, handle, id) = (&self.inner, &self.handle, self.handle.id);
        // What the launcher still unmakes of it goes first.
        inner.machines.kill(id).await?;
        let mut spec = (*handle.spec()).clone();
        let renamed = spec.name != *name;
        if renamed {
            spec.name = name.clone();
            let (disks, hostname) = (inner.disks()?, name.to_string());
            blocking(move || disks.rename(id, &Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() }))
                .await??;
        }
        failpoint::hit("undelete.ready");
        inner.store.undelete(id, &spec, state, number, now(), Durability::Power).await?;
        failpoint::hit("undelete.row");
        if renamed {
            let disks = inner.disks()?;
            blocking(move || disks.renamed(id)).await?;
        }
        Ok(())
    }

    /// The computer as its row has it now, with a task of its own: this one's is over.
    async fn renew(&self) -> Result<Arc<Handle>, Error> {
        let id = self.handle.id;
        // Whoever has this handle still reads; nobody changes anything by it.
        self.handle.history.close().await;
        recover::take_up_again(&self.inner, id).await?;
        self.inner.registry.get(id).ok_or_else(|| Error::computer_not_found(&id.to_string()))
    }
}
