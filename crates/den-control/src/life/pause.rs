//! Pausing and resuming.
//!
//! ```text
//! pause   row ─► shown, so that nobody is let in ─► who was let in is through ─► frozen
//! resume  row ─► thawed ─► shown
//! ```
//!
//! A crash between leaves what the row says to the next start: frozen again, or let go on.

use den_api::ComputerView;
use den_machine::Machine;
use den_model::{EventKind, Micros, Request, Sleep, Standing, State};
use den_store::Durability;
use den_sys::failpoint;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::room;
use crate::{
    Error, Who,
    control::{Control, blocking, now},
    errors::chain,
    handle::Ask,
    limits::{GRACE_DEFAULT, PAUSE_INSIDE_WAIT, PAUSE_WAIT},
    task::Task,
};

/// Why a computer goes to sleep, or goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum By {
    /// Somebody asked for it.
    Who(String),
    /// Nobody has used it since then.
    Idle {
        /// When somebody was last seen.
        since: Micros,
    },
    /// A request for it came.
    Request,
}

impl By {
    fn who(&self) -> Option<&str> {
        match self {
            Self::Who(who) => Some(who),
            Self::Idle { .. } | Self::Request => None,
        }
    }
}

impl Control {
    /// Has all processes of a computer stand still. Its memory and its connections are kept.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `unplugged`, `pause_failed`.
    pub async fn pause(&self, computer: &str, who: &Who) -> Result<ComputerView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let by = By::Who(who.0.clone());
        handle.ask(|reply| Ask::Pause { by, reply }).await?;
        Ok(handle.view())
    }

    /// Lets the processes of a paused computer go on.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `unplugged`.
    pub async fn resume(&self, computer: &str, who: &Who) -> Result<ComputerView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let by = By::Who(who.0.clone());
        handle.ask(|reply| Ask::Resume { by, reply }).await?;
        Ok(handle.view())
    }
}

impl Task {
    /// Has it stand still. One that is used after all stays awake.
    pub(crate) async fn pause(&self, by: By) -> Result<(), Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        let paused = handle.after(Request::Pause)?;
        let machine = self.machine().ok_or_else(|| Error::internal("it runs without a machine"))?;
        let is_idle = matches!(by, By::Idle { .. });
        if is_idle {
            // A host restart takes its processes; it is still asleep then, and wakes on request.
            drop(inner.store.set_asleep(handle.id, true, Durability::Process));
        }
        self.set(paused, None, None).await?;
        handle.status.send_modify(|status| status.asleep = is_idle);
        failpoint::hit("pause.state");
        let used = match by {
            By::Idle { since } => handle.doors.is_open() || handle.doors.last() > since,
            _ => false,
        };
        if used {
            return self.awake_again(None).await;
        }
        // Whoever was let in has its answer, or stands still with it.
        handle.doors.all_left(PAUSE_INSIDE_WAIT).await;
        let stands = {
            let (inner, handle, machine) = (inner.clone(), handle.clone(), machine.clone());
            blocking(move || handle.stand.hold(&inner, &machine, PAUSE_WAIT)).await?
        };
        match stands {
            Ok(true) => {}
            Ok(false) if handle.status.borrow().cut => {}
            Ok(false) => {
                let message = format!(
                    "`{}` did not stand still within {} s: something inside waits for the host's kernel",
                    handle.name(),
                    PAUSE_WAIT.as_secs()
                );
                self.awake_again(Some(&machine)).await?;
                return Err(Error::new("pause_failed", 409, message)
                    .hint("a process that waits for a disk or a network file system cannot be stopped; try again")
                    .retryable());
            }
            Err(_) if machine.is_dead() => {} // Its death is what the task hears next.
            Err(error) => {
                let message = format!("`{}` cannot be made to stand still", handle.name());
                self.awake_again(Some(&machine)).await?;
                return Err(Error::new("pause_failed", 500, message)
                    .hint("`den doctor` says whether this host can pause")
                    .because(error));
            }
        }
        failpoint::hit("pause.frozen");
        let detail = match is_idle {
            true => json!({ "idle": handle.idle.get().map(|idle| idle.to_string()) }),
            false => Value::Null,
        };
        inner.events.tell(EventKind::Paused, Some(handle), by.who(), detail);
        room::give_back_later(inner, handle, machine);
        Ok(())
    }

    /// It was to be paused, and is not.
    async fn awake_again(&self, machine: Option<&Machine>) -> Result<(), Error> {
        self.set(State::Running, None, None).await?;
        if let Some(machine) = machine {
            self.handle.stand.release(&self.inner, machine);
        }
        Ok(())
    }

    /// Lets it go on.
    pub(crate) async fn resume(&self, by: By) -> Result<(), Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        let running = handle.after(Request::Resume)?;
        if by == By::Request {
            inner.open_for_work()?;
        }
        let machine = self.machine().ok_or_else(|| Error::internal("it is paused without a machine"))?;
        if machine.is_on_disk() {
            inner.pools.hold(handle.id, Standing::Runs)?;
            if let Err(error) = self.revive(&machine).await {
                inner.pools.stands(handle.id, State::Paused, false);
                return Err(error);
            }
        }
        let at = now();
        self.not_asleep();
        inner.store.set_state(handle.id, running, None, at, None, Durability::Process).await?;
        failpoint::hit("resume.state");
        handle.stand.release(inner, &machine);
        failpoint::hit("resume.thawed");
        handle.doors.seen();
        // Last: who sees that it runs finds that it does.
        self.show(running, None, at);
        let kind = if by == By::Request { EventKind::Woken } else { EventKind::Resumed };
        let detail = if by == By::Request { json!({ "from": "paused" }) } else { Value::Null };
        inner.events.tell(kind, Some(handle), by.who(), detail);
        Ok(())
    }

    /// A request came for it. Nothing to do where another one was here before.
    pub(crate) async fn wake(&mut self) -> Result<(), Error> {
        let (state, asleep) = {
            let status = self.handle.status.borrow();
            (status.state, status.asleep)
        };
        match state {
            State::Running => Ok(()),
            State::Paused => self.resume(By::Request).await,
            State::Stopped if asleep => {
                self.start().await?;
                self.inner.events.tell(EventKind::Woken, Some(&self.handle), None, json!({ "from": "stopped" }));
                Ok(())
            }
            _ => self.handle.after(Request::Use).map(drop),
        }
    }

    /// Nobody has used it since `since`: it sleeps as it was told to.
    pub(crate) async fn doze(&mut self, since: Micros, then: Sleep) {
        let doors = &self.handle.doors;
        if self.handle.state() != State::Running || doors.is_open() || doors.last() > since {
            return;
        }
        match then {
            Sleep::Pause => {
                if let Err(error) = self.pause(By::Idle { since }).await {
                    tracing::warn!(computer = %self.handle.id, error = chain(&error), "an idle computer does not sleep");
                }
            }
            Sleep::Stop => {
                drop(self.inner.store.set_asleep(self.handle.id, true, Durability::Process));
                self.handle.status.send_modify(|status| status.asleep = true);
                let (reply, _nobody) = oneshot::channel();
                self.stop(GRACE_DEFAULT, "idle", reply).await
            }
        }
    }

    /// From here on no request wakes it.
    pub(crate) fn not_asleep(&self) {
        let was = self.handle.status.borrow().asleep;
        if was {
            drop(self.inner.store.set_asleep(self.handle.id, false, Durability::Process));
            self.handle.status.send_modify(|status| status.asleep = false);
        }
    }
}
