//! Cutting a computer off, and taking it back.
//!
//! ```text
//! unplug ─┬─► cut: nobody gets in, connections end      at once, beside whatever its task is at
//!         ├─► freezer on ─────────────────────────
//!         ├─► gate: its link is let go, flows end
//!         └─► task ─► the same again, and waited for ─► row (flushed) ─► answer
//! replug ───► task ─► row ─► gate ─► freezer off, if it ran
//! ```
//!
//! What fails on the way leaves it cut off: with less than was asked for, never with more.

use std::sync::Arc;

use den_api::ComputerView;
use den_model::{EventKind, Request, State};
use den_store::Durability;
use den_sys::failpoint;
use futures_util::future::join_all;
use serde_json::json;

use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    errors::chain,
    handle::{Ask, Handle},
    limits::{PAUSE_WAIT, UNPLUG_WAIT},
    task::Task,
};

const MOVES: &str = "it is cut off, and something in it does not stand still yet: it waits for the host's kernel";

impl Control {
    /// Cuts a computer off, whatever it is doing: its processes stand still, its flows end, nothing gets in.
    /// Disk, memory, output and records stay, and may be read.
    ///
    /// Errors: `computer_not_found`.
    pub async fn unplug(&self, computer: &str, who: &Who) -> Result<ComputerView, Error> {
        let handle = self.0.registry.find(computer)?;
        cut_off(&self.0, &handle, who).await?;
        Ok(handle.view())
    }

    /// Cuts off all computers at once, those that are just being made with them.
    ///
    /// Errors: the first of those that it met; the others are cut off all the same.
    pub async fn unplug_all(&self, who: &Who) -> Result<Vec<ComputerView>, Error> {
        let mut handles = self.0.registry.all();
        handles.retain(|handle| handle.state() == State::Creating || handle.after(Request::Unplug).is_ok());
        let done = join_all(handles.iter().map(|handle| cut_off(&self.0, handle, who))).await;
        for (handle, done) in handles.iter().zip(done) {
            match done {
                // One that did not come about, or was removed meanwhile.
                Err(error) if error.code == "computer_not_found" => {}
                Err(error) => {
                    tracing::error!(computer = %handle.id, error = error.chain(), "it is not cut off as it should be");
                    return Err(error);
                }
                Ok(()) => {}
            }
        }
        Ok(handles.iter().filter(|handle| handle.state() == State::Unplugged).map(|handle| handle.view()).collect())
    }

    /// Takes a computer that was cut off back to what it was.
    ///
    /// Errors: `computer_not_found`, `wrong_state`.
    pub async fn replug(&self, computer: &str, who: &Who) -> Result<ComputerView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let who = who.0.clone();
        handle.ask(|reply| Ask::Replug { who, reply }).await?;
        Ok(handle.view())
    }
}

async fn cut_off(inner: &Arc<Inner>, handle: &Arc<Handle>, who: &Who) -> Result<(), Error> {
    if handle.state() != State::Creating {
        handle.after(Request::Unplug)?;
    }
    // At once: its task may be at something that takes long.
    handle.status.send_modify(|status| status.cut = true);
    let machine = handle.status.borrow().machine.clone();
    if let Some(machine) = machine
        && let Err(error) = handle.stand.begin(inner, &machine)
        && !machine.is_dead()
    {
        tracing::error!(computer = %handle.id, error = chain(&error), "what is cut off does not stand still");
    }
    let detached = inner.gate.detach(handle.id);
    let who = who.0.clone();
    let (asked, ()) = tokio::join!(handle.ask(|reply| Ask::Unplug { who, reply }), detached);
    asked
}

impl Task {
    /// Records that it is cut off, once all of it is.
    pub(crate) async fn unplug(&self, who: &str) -> Result<(), Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        let unplugged = handle.after(Request::Unplug)?;
        let was = handle.state();
        if was == State::Unplugged {
            return Ok(());
        }
        let before = match was {
            State::Stopping | State::Starting => State::Stopped,
            other => other,
        };
        handle.status.send_modify(|status| status.cut = true);
        let detached = inner.gate.detach(handle.id);
        let stands = match self.machine() {
            None => true,
            Some(machine) => {
                let (inner, handle) = (Arc::clone(inner), Arc::clone(handle));
                let held = blocking(move || {
                    handle
                        .stand
                        .hold(&inner, &machine, UNPLUG_WAIT)
                        .or_else(|error| if machine.is_dead() { Ok(true) } else { Err(error) })
                });
                held.await?.unwrap_or_else(|error| {
                    tracing::error!(computer = %self.handle.id, error = chain(&error), "what is cut off does not stand still");
                    false
                })
            }
        };
        detached.await;
        failpoint::hit("unplug.cut");
        let at = now();
        inner.store.set_state_before(handle.id, unplugged, before, at, Durability::Power).await?;
        failpoint::hit("unplug.row");
        handle.status.send_modify(|status| status.before = Some(before));
        self.show(unplugged, (!stands).then(|| MOVES.to_owned()), at);
        inner.events.tell(EventKind::Unplugged, Some(handle), Some(who), json!({ "was": was, "stands_still": stands }));
        Ok(())
    }

    /// Takes it back to what it was.
    pub(crate) async fn replug(&self, who: &str) -> Result<(), Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        let stopped = handle.after(Request::Replug)?;
        let machine = self.machine().filter(|machine| !machine.is_dead());
        let before = handle.status.borrow().before.unwrap_or(stopped);
        let to = match (&machine, before) {
            (Some(_), State::Running | State::Paused) => before,
            (None, State::Failed) => State::Failed,
            _ => stopped,
        };
        if to == stopped
            && let Some(machine) = &machine
        {
            // It was being stopped.
            self.end(machine).await;
        }
        inner.store.set_state(handle.id, to, None, now(), None, Durability::Process).await?;
        failpoint::hit("replug.row");
        handle.status.send_modify(|status| status.cut = false);
        if let Some(machine) = machine.filter(|_| to != stopped) {
            if !machine.is_on_disk() {
                inner.gate.attach(handle, &machine).await;
            }
            if to == State::Running {
                handle.stand.release(inner, &machine);
            }
        }
        handle.doors.seen();
        self.show(to, None, now());
        inner.events.tell(EventKind::Replugged, Some(handle), Some(who), json!({ "state": to }));
        Ok(())
    }

    /// The house is closed: what is cut off ends as it stands, and stays cut off.
    pub(crate) async fn end_cut_off(&self) {
        if let Some(machine) = self.machine() {
            self.end(&machine).await;
            self.handle.status.send_modify(|status| status.machine = None);
        }
    }
}

/// Takes up a computer that an earlier daemon left paused or cut off: it stands still as it did.
pub(crate) async fn stand_again(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: &den_machine::Machine) {
    let (inner, handle, machine) = (Arc::clone(inner), Arc::clone(handle), machine.clone());
    let id = handle.id;
    let held = blocking(move || handle.stand.hold(&inner, &machine, PAUSE_WAIT)).await;
    match held {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => tracing::error!(computer = %id, "not all of it stands still yet"),
        Ok(Err(error)) => tracing::error!(computer = %id, error = chain(&error), "it does not stand still"),
        Err(error) => tracing::error!(computer = %id, error = error.chain(), "it does not stand still"),
    }
}
