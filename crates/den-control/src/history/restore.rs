//! Taking a computer back to a state of it.
//!
//! ```text
//! state ─► row of the restore, row of the state before (flushed) ┐
//!          new disk beside the old one ──────────────────────────┴─► processes end ─► disks change places
//!                                                                      ─► boot, if it ran ─► answer
//! ```
//!
//! Invariants:
//! - It is the same computer: id, name, policy, limits, steps. Only processes and disk are others.
//! - The disk as it was becomes a kept state, so a restore can be taken back.
//! - The disks change places in two renames, and what a crash leaves between them the next start
//!   finishes. The row of the state before is there first; without its disk it says nothing.

use std::{sync::Arc, time::Instant};

use den_api::{RestoreRequest, RestoreView, SnapshotView};
use den_disk::Identity;
use den_machine::Machine;
use den_model::{EventKind, Fact, Micros, Request, Snapshot, Standing, State, StateName, Step, StepEnd, StepKind};
use den_store::{Durability, NewUndo};
use den_sys::failpoint;
use serde_json::json;

use super::{Resolved, changes};
use crate::{
    Error, Who,
    control::{Control, blocking, now},
    create::boot,
    durable::disks_are_safe,
    errors::chain,
    exec::start_entrypoint,
    handle::{Ask, Handle},
    life::hibernate,
    limits::SENT_SHOWN,
    metrics::Operation,
    net::records::{Sent, sent},
    services,
    task::Task,
    undo::{UNDO_BEFORE, What},
};

impl Control {
    /// Takes the disk of `computer` back to a state. Its processes end, and it boots again if it ran. The
    /// state before is kept.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `state_not_found`, `bad_state`, `history_unsupported`,
    /// `image_not_found`, `host_full`, `pool_full` where its memory lies on the disk: nothing has changed then. `boot_failed`, `host_lacks`: the disk is the
    /// old one, and the computer has failed.
    pub async fn restore(&self, computer: &str, request: RestoreRequest, who: &Who) -> Result<RestoreView, Error> {
        self.0.open_for_work()?;
        let state: StateName = request.state.parse()?;
        if state == StateName::Now {
            return Err(Error::new("bad_state", 400, "`now` is how it is already: there is nothing to take back")
                .hint(format!("`den snaps {computer}` lists the states that are kept")));
        }
        let handle = self.0.registry.find(computer)?;
        tracing::debug!(computer = %handle.id, %state, who = who.0, "a restore is asked for");
        self.restore_for(&handle, state, who, None).await
    }

    /// As [`Control::restore`]; `takes_back` says what it undoes.
    pub(crate) async fn restore_for(
        &self,
        handle: &Handle,
        state: StateName,
        who: &Who,
        takes_back: Option<u64>,
    ) -> Result<RestoreView, Error> {
        let who = who.0.clone();
        let began = Instant::now();
        let restored = handle.ask(|reply| Ask::Restore { state, who, takes_back, reply }).await?;
        self.0.metrics.took(Operation::Restore, began);
        Ok(restored)
    }
}

/// What a restore knows once it may begin.
struct Plan {
    to: Resolved,
    before: Snapshot,
    step: Step,
    /// How it is taken back.
    undo: NewUndo,
}

impl Task {
    /// Takes the computer back to `state`.
    pub(crate) async fn restore(
        &self,
        state: StateName,
        who: String,
        takes_back: Option<u64>,
    ) -> Result<RestoreView, Error> {
        let after = self.ask(Request::Restore)?;
        self.inner.open_for_work()?;
        let restoring = |state| self.handle.status.send_modify(|status| status.restoring = state);
        restoring(Some(state.clone()));
        let restored = self.restore_to(&state, after, who, takes_back).await;
        restoring(None);
        restored
    }

    /// Takes the computer back to `state`, after which it is `after`.
    async fn restore_to(
        &self,
        state: &StateName,
        after: State,
        who: String,
        takes_back: Option<u64>,
    ) -> Result<RestoreView, Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        // Nothing is kept meanwhile, and nothing that is kept goes.
        let turn = handle.history.turn_of_restore().await?;
        let to = Control(Arc::clone(inner)).resolve_under(handle, state, &turn).await?;
        let image = inner.images.by_digest(&handle.spec().image_digest)?;
        let machine = self.machine();
        let (was, reason) = {
            let status = handle.status.borrow();
            (status.state, status.reason.clone())
        };
        if machine.as_ref().is_some_and(Machine::is_on_disk) {
            inner.pools.hold(handle.id, Standing::Runs)?;
        }
        let plan = self.plan(to, who, takes_back);
        // Nothing gets in from here on.
        let closed = match machine {
            Some(_) => self.set(after, None, Some(inner.boot_id.clone())).await,
            None => Ok(()),
        };
        let swapped = match closed {
            Ok(()) => self.swap(&plan, machine.as_ref()).await,
            Err(error) => Err(Failed { error, killed: false }),
        };
        let ended_at = match swapped {
            Ok(at) => at,
            Err(Failed { error, killed }) => {
                self.end_step(&plan, StepEnd::NotStarted { code: 126, message: error.message.clone() }, None).await;
                match machine.filter(|machine| !killed && !machine.is_dead()) {
                    Some(machine) => {
                        // First: what it holds of its pool is seen by what it has.
                        handle.status.send_modify(|status| status.machine = Some(machine));
                        self.set_fact(was, reason).await;
                    }
                    None if matches!(was, State::Running | State::Paused) => {
                        self.set_fact(State::Failed, Some(error.chain())).await
                    }
                    None => {}
                }
                return Err(error);
            }
        };
        let Plan { to, before, step, .. } = &plan;
        // The old disk is written out while the new one comes to life.
        let booted = async {
            match machine {
                Some(_) => Some(boot(inner, handle, &image).await),
                None => None,
            }
        };
        let ((), booted) = tokio::join!(handle.history.went(inner, handle, before), booted);
        self.take_ended(before.number);
        if let Some(booted) = booted {
            match booted {
                Ok(machine) => {
                    failpoint::hit("restore.booted");
                    handle.history.begun(inner, handle).await;
                    handle.status.send_modify(|status| {
                        status.machine = Some(machine.clone());
                        status.restoring = None;
                    });
                    self.set_fact(State::Starting.learn(Fact::Booted), None).await;
                    services::started(inner, handle, &machine);
                    if handle.spec().entrypoint {
                        start_entrypoint(inner, handle, machine);
                    }
                }
                Err(error) => {
                    self.end_step(&plan, StepEnd::Exited { code: 1 }, Some(to.number)).await;
                    self.set_fact(State::Starting.learn(Fact::BootFailed), Some(error.chain())).await;
                    return Err(error);
                }
            }
        } else {
            handle.history.begun(inner, handle).await;
            self.set_fact(after, None).await;
        }
        self.end_step(&plan, StepEnd::Exited { code: 0 }, Some(to.number)).await;
        disks_are_safe(inner, handle).await;
        changes::count_between(inner, handle, step.number, before.number, to.number);
        let sent = self.sent(to.snapshot.created_at, ended_at).await;
        handle.history.load([], step.number);
        tracing::info!(computer = %handle.id, name = %handle.name(), to = to.number, before = before.number, "a computer was taken back");
        let detail = json!({ "to": to.number, "before": before.number, "step": step.number });
        inner.events.tell(EventKind::Restored, Some(handle), Some(&step.who), detail);
        Ok(RestoreView {
            computer: handle.view(),
            step: step.number,
            to: to.view(),
            before: SnapshotView::from(before),
            sent: sent.flows,
            sent_more: sent.more,
        })
    }

    fn plan(&self, to: Resolved, who: String, takes_back: Option<u64>) -> Plan {
        let handle = &self.handle;
        let at = now();
        let number = handle.steps.number();
        // All before it have ended once the disk is kept.
        let before = handle.history.leaving(number - 1, to.number, at);
        let argv = vec!["restore".to_owned(), format!(".{}", to.number)];
        let what = What::Restore { to: handle.history.name_of(&to.snapshot), before: before.number };
        let undo = what.record(handle, &who, at, takes_back);
        let step = Step::begun(number, StepKind::Restore, argv, who, at);
        Plan { to, before, step, undo }
    }

    /// Puts the new disk in the place of the old one, and says when the last process had ended.
    async fn swap(&self, plan: &Plan, machine: Option<&Machine>) -> Result<Micros, Failed> {
        let (inner, handle, id) = (&self.inner, &self.handle, self.handle.id);
        let Plan { to, before, step, undo } = plan;
        let disks = inner.disks()?;
        let began = Instant::now();
        let rows = async {
            let step = inner.store.insert_step(id, step, Durability::Process);
            let before = inner.store.insert_snapshot_undo(id, before, undo.clone(), Durability::Power);
            step.await?;
            before.await?;
            failpoint::hit("restore.row");
            Ok::<_, Error>(())
        };
        let prepared = async {
            let (disks, hostname) = (disks.clone(), handle.name().to_string());
            let (number, limit) = (to.number, handle.limits().disk);
            blocking(move || {
                let identity = Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() };
                disks.restore_prepare(id, number, limit, &identity)
            })
            .await??;
            failpoint::hit("restore.prepared");
            Ok::<_, Error>(())
        };
        let ready = match tokio::join!(rows, prepared) {
            (Ok(()), prepared) => prepared,
            (Err(error), _) => Err(error),
        };
        tracing::debug!(computer = %id, after = ?began.elapsed(), "a restore is prepared");
        let mut killed = false;
        let swapped = async {
            ready?;
            if let Some(machine) = machine {
                killed = true;
                let on_disk = machine.is_on_disk();
                self.end(machine).await;
                if on_disk {
                    // It would not fit the other disk.
                    let inner = Arc::clone(inner);
                    blocking(move || hibernate::forget_memory(&inner, id)).await?;
                }
            }
            let ended_at = now();
            tracing::debug!(computer = %id, after = ?began.elapsed(), "its processes are gone");
            failpoint::hit("restore.killed");
            let (disks, number) = (disks.clone(), before.number);
            blocking(move || disks.restore_commit(id, number)).await??;
            tracing::debug!(computer = %id, after = ?began.elapsed(), "its disk is the other one");
            failpoint::hit("restore.swapped");
            Ok(ended_at)
        };
        let swapped: Result<Micros, Error> = swapped.await;
        match swapped {
            Ok(ended_at) => Ok(ended_at),
            Err(error) if self.take_back(before.number).await => {
                // Between the two renames: then it went on, as a start would have done.
                tracing::warn!(computer = %id, error = chain(&error), "a restore was finished at the second attempt");
                Ok(now())
            }
            Err(error) => Err(Failed { error, killed }),
        }
    }

    /// Undoes what a restore that failed has prepared, or finishes it where it has gone too far for that:
    /// says whether it has.
    async fn take_back(&self, before: u64) -> bool {
        let id = self.handle.id;
        let settled = match self.inner.disks() {
            Ok(disks) => {
                let settle = move || disks.settle(id).map(|()| disks.snapshot_path(id, before).is_dir());
                blocking(settle).await.and_then(|settled| Ok(settled?))
            }
            Err(error) => Err(error),
        };
        match settled {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => tracing::error!(computer = %id, error = chain(&error), "half a restore is left"),
        }
        let store = &self.inner.store;
        let undo = store.forget_undo_of(id, UNDO_BEFORE, before, Durability::Process);
        let forgotten = store.delete_snapshots(id, vec![before], Vec::new(), Durability::Process);
        if let Err(error) = undo.await.and(forgotten.await) {
            tracing::error!(computer = %id, error = chain(&error), "the row of a state that was not kept is left");
        }
        false
    }

    /// What had ended before the disks changed places is in the state before.
    fn take_ended(&self, before: u64) {
        let history = &self.handle.history;
        let mut steps = Vec::new();
        // Until it says that there are none: then nobody is taken to look at them.
        loop {
            let more = history.queued();
            if more.is_empty() {
                break;
            }
            steps.extend(more);
        }
        let count = steps.len();
        if count > 0 {
            drop(self.inner.store.set_step_snapshot(self.handle.id, steps, before, None, Durability::Process));
            history.done(count);
        }
    }

    async fn end_step(&self, plan: &Plan, end: StepEnd, snapshot: Option<u64>) {
        let (store, id, number) = (&self.inner.store, self.handle.id, plan.step.number);
        let ended = store.end_step(id, number, now(), &end, 0, Durability::Process);
        let follows = snapshot.map(|state| store.set_step_snapshot(id, vec![number], state, None, Durability::Process));
        let recorded = async {
            ended.await?;
            match follows {
                Some(follows) => follows.await,
                None => Ok(()),
            }
        };
        if let Err(error) = recorded.await {
            tracing::error!(computer = %id, step = number, error = chain(&error), "the end of a restore is not recorded");
        }
    }

    /// What the computer sent since `since`. That it cannot be read takes nothing back.
    async fn sent(&self, since: Micros, until: Micros) -> Sent {
        let (inner, id) = (Arc::clone(&self.inner), self.handle.id);
        let read = blocking(move || sent(&inner, id, since, until, SENT_SHOWN)).await;
        read.and_then(|read| read).unwrap_or_else(|error| {
            tracing::error!(computer = %id, error = chain(&error), "what was sent is not known");
            Sent::default()
        })
    }
}

/// Why the disks did not change places, and whether the processes are gone already.
struct Failed {
    error: Error,
    killed: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, killed: false }
    }
}
