//! The task of one computer: it alone changes the computer's state.
//!
//! ```text
//! requests ──mailbox──► task ──► State::ask ──► store, agent, launcher, disk ──► status
//! PID 1 gone ─────────►      └─► State::learn
//! ```
//!
//! A removal overtakes a stop that waits for its grace; all else is one after the other.

use std::{sync::Arc, time::Duration};

use den_api::ComputerView;
use den_machine::Machine;
use den_model::{Fact, Request, State};
use den_store::Durability;
use den_sys::failpoint;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Error, Who,
    control::{Control, Inner, blocking, check_grace, now},
    create::{boot, make_disk},
    errors::chain,
    exec::start_entrypoint,
    handle::{Ask, Handle, Reply},
    history::fork,
    limits::{STEPS_END_WAIT, STOP_MARGIN},
};

impl Control {
    /// Boots a stopped or failed computer on the disk it had.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `image_not_found`, `host_full`, `host_lacks`.
    pub async fn start(&self, computer: &str, who: &Who) -> Result<ComputerView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        tracing::debug!(computer = %handle.id, who = who.0, "a start is asked for");
        handle.ask(|reply| Ask::Start { reply }).await?;
        Ok(handle.view())
    }

    /// Ends all processes of a computer, by SIGTERM and after the grace (5 s without one) by SIGKILL.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `bad_request`.
    pub async fn stop(&self, computer: &str, grace: Option<Duration>, who: &Who) -> Result<ComputerView, Error> {
        let grace = check_grace(grace)?;
        let handle = self.0.registry.find(computer)?;
        tracing::debug!(computer = %handle.id, who = who.0, "a stop is asked for");
        handle.ask(|reply| Ask::Stop { grace, reply }).await?;
        Ok(handle.view())
    }

    /// Removes a computer with its disk and its steps. When this returns, its processes and its row
    /// are gone for good, and its bytes are on their way.
    ///
    /// Errors: `computer_not_found`.
    pub async fn remove(&self, computer: &str, who: &Who) -> Result<(), Error> {
        let handle = self.0.registry.find(computer)?;
        tracing::debug!(computer = %handle.id, who = who.0, "a removal is asked for");
        handle.ask(|reply| Ask::Remove { reply }).await
    }
}

/// Serves a computer until it is removed.
pub(crate) async fn run(inner: Arc<Inner>, handle: Arc<Handle>, inbox: mpsc::Receiver<Ask>) {
    Task { inner, handle, inbox }.serve().await;
}

pub(crate) struct Task {
    pub(crate) inner: Arc<Inner>,
    pub(crate) handle: Arc<Handle>,
    inbox: mpsc::Receiver<Ask>,
}

impl Task {
    async fn serve(mut self) {
        loop {
            let machine = self.machine();
            let ask = tokio::select! {
                ask = self.inbox.recv() => ask,
                () = died(machine.as_ref()) => {
                    self.on_death().await;
                    continue;
                }
            };
            let removal = match ask {
                None => return,
                Some(Ask::Start { reply }) => {
                    let result = self.start().await;
                    drop(reply.send(result));
                    None
                }
                Some(Ask::Stop { grace, reply }) => self.stop(grace, reply).await,
                Some(Ask::Restore { state, who, reply }) => {
                    let result = self.restore(state, who).await;
                    drop(reply.send(result));
                    None
                }
                Some(Ask::Remove { reply }) => Some(reply),
            };
            if let Some(reply) = removal {
                let result = self.remove().await;
                let gone = result.is_ok();
                drop(reply.send(result));
                if gone {
                    return;
                }
            }
        }
    }

    pub(crate) fn machine(&self) -> Option<Machine> {
        self.handle.status.borrow().machine.clone()
    }

    /// The state after a request, or why not.
    pub(crate) fn ask(&self, request: Request) -> Result<State, Error> {
        self.handle.state().ask(request).map_err(|refused| Error::refused(self.handle.name(), refused))
    }

    /// Records a state, then shows it. The store's refusal leaves both as they were.
    pub(crate) async fn set(&self, state: State, reason: Option<String>, boot_id: Option<String>) -> Result<(), Error> {
        let at = now();
        let id = self.handle.id;
        self.inner.store.set_state(id, state, reason.clone(), at, boot_id, Durability::Process).await?;
        self.show(state, reason, at);
        Ok(())
    }

    /// As [`Task::set`], for what has happened whether it can be recorded or not.
    pub(crate) async fn set_fact(&self, state: State, reason: Option<String>) {
        let at = now();
        let recorded = self.inner.store.set_state(self.handle.id, state, reason.clone(), at, None, Durability::Process);
        if let Err(error) = recorded.await {
            tracing::error!(computer = %self.handle.id, %state, error = chain(&error), "a state is not recorded");
        }
        self.show(state, reason, at);
    }

    fn show(&self, state: State, reason: Option<String>, at: i64) {
        tracing::info!(computer = %self.handle.id, name = %self.handle.name(), %state, reason, "a state changed");
        self.handle.status.send_modify(|status| {
            status.state = state;
            status.reason = reason;
            status.changed_at = at;
            if !matches!(state, State::Running | State::Stopping | State::Removing) {
                status.machine = None;
            }
        });
    }

    async fn start(&self) -> Result<(), Error> {
        let starting = self.ask(Request::Start)?;
        self.inner.open_for_work()?;
        let image = self.inner.images.by_digest(&self.handle.spec.image_digest)?;
        self.set(starting, None, Some(self.inner.boot_id.clone())).await?;
        failpoint::hit("start.state");
        let booted = async {
            if !self.inner.disks()?.exists(self.handle.id) {
                return Err(Error::internal(format!("the disk of `{}` is gone", self.handle.name())));
            }
            boot(&self.inner, &self.handle, &image).await
        };
        match booted.await {
            Ok(machine) => {
                failpoint::hit("start.booted");
                self.handle.status.send_modify(|status| status.machine = Some(machine.clone()));
                if let Err(error) = self.set(State::Starting.learn(Fact::Booted), None, None).await {
                    self.end(&machine).await;
                    self.set_fact(State::Failed, Some(error.chain())).await;
                    return Err(error);
                }
                failpoint::hit("start.done");
                if self.handle.spec.entrypoint {
                    start_entrypoint(&self.inner, &self.handle, machine);
                }
                Ok(())
            }
            Err(error) => {
                self.set_fact(State::Starting.learn(Fact::BootFailed), Some(error.chain())).await;
                Err(error)
            }
        }
    }

    /// Stops. A removal that comes meanwhile ends it at once and is handed back.
    async fn stop(&mut self, grace: Duration, reply: Reply<()>) -> Option<Reply<()>> {
        let stopping = match self.ask(Request::Stop) {
            Ok(stopping) => stopping,
            Err(error) => {
                drop(reply.send(Err(error)));
                return None;
            }
        };
        if let Err(error) = self.set(stopping, None, None).await {
            drop(reply.send(Err(error)));
            return None;
        }
        failpoint::hit("stop.state");
        let mut removal = None;
        if let Some(machine) = self.machine() {
            removal = self.ask_to_end(&machine, grace).await;
            failpoint::hit("stop.asked");
            self.end(&machine).await;
        }
        failpoint::hit("stop.killed");
        self.set_fact(State::Stopping.learn(Fact::Died), None).await;
        failpoint::hit("stop.done");
        drop(reply.send(Ok(())));
        removal
    }

    /// Gives everything inside its grace; a removal cuts it short.
    async fn ask_to_end(&mut self, machine: &Machine, grace: Duration) -> Option<Reply<()>> {
        let ended = async {
            // An agent that does not take it is ended by the launcher.
            if machine.link().shutdown(grace).await.is_ok() {
                machine.died().await;
            }
        };
        let mut ended = std::pin::pin!(tokio::time::timeout(grace + STOP_MARGIN, ended));
        loop {
            let ask = tokio::select! {
                _ = &mut ended => return None,
                Some(ask) = self.inbox.recv() => ask,
            };
            let (request, reply) = match ask {
                Ask::Remove { reply } => return Some(reply),
                Ask::Start { reply } => (Request::Start, reply),
                Ask::Stop { reply, .. } => (Request::Stop, reply),
                Ask::Restore { reply, .. } => {
                    drop(reply.send(Err(self.ask(Request::Restore).err().unwrap_or_else(Error::shutting_down))));
                    continue;
                }
            };
            drop(reply.send(self.ask(request).map(drop)));
        }
    }

    /// Ends all processes and waits until the steps among them are recorded as ended.
    pub(crate) async fn end(&self, machine: &Machine) {
        if let Err(error) = machine.kill().await {
            tracing::error!(computer = %self.handle.id, error = chain(&error), "a computer may still run");
        }
        self.inner.gate.detach(self.handle.id).await;
        self.handle.steps.all_ended(STEPS_END_WAIT).await;
    }

    /// Ends all processes and returns once they are gone. What the kernel takes longer for, cgroup,
    /// namespaces and mounts, the launcher finishes behind; [`Control::shutdown`] waits for it.
    async fn end_at_once(&self) -> Result<(), Error> {
        let Some(machine) = self.machine() else { return Ok(()) };
        let id = self.handle.id;
        let (sender, killed) = oneshot::channel();
        let ending = machine.clone();
        self.inner.endings.spawn(async move {
            let result = ending.kill().await;
            if let Err(error) = &result {
                tracing::error!(computer = %id, error = chain(error), "a computer may still run");
            }
            let _ = sender.send(result); // Nobody listens once its processes are gone.
        });
        tokio::select! {
            killed = killed => Ok(killed.map_err(|_| Error::shutting_down())??),
            () = machine.died() => Ok(()),
        }
    }

    /// PID 1 is gone, and nobody asked for it.
    async fn on_death(&self) {
        let Some(machine) = self.machine() else { return };
        let state = self.handle.state().learn(Fact::Died);
        // Before the cgroup goes, with what it counted.
        let usage = self.inner.machines.usage(self.handle.id).await;
        let reason = match usage {
            Ok(usage) if usage.oom_kills > 0 => {
                format!("it ended by itself; its memory limit of {} had been reached", self.handle.spec.limits.memory)
            }
            _ => "it ended by itself: its first process is gone".to_owned(),
        };
        self.end(&machine).await;
        self.set_fact(state, Some(reason)).await;
    }

    async fn remove(&self) -> Result<(), Error> {
        let removing = self.ask(Request::Remove)?;
        let (before, reason) = {
            let status = self.handle.status.borrow();
            (status.state, status.reason.clone())
        };
        self.set(removing, None, None).await?;
        self.inner.registry.free_name(&self.handle);
        failpoint::hit("remove.state");
        let id = self.handle.id;
        if let Err(error) = self.end_at_once().await {
            // It may still run, so it stays; the name is its own again unless someone was quicker.
            let state = if before == State::Running { State::Failed } else { before };
            if self.inner.registry.insert(Arc::clone(&self.handle)).is_ok() {
                self.set_fact(state, reason.or(Some(error.chain()))).await;
            }
            return Err(error);
        }
        failpoint::hit("remove.killed");
        // No state is begun any more, and what one is taken of stays until it is.
        self.handle.history.close().await;
        // Before the disk goes, for the gate writes its records there.
        self.inner.gate.detach(id).await;
        self.handle.steps.all_ended(STEPS_END_WAIT).await;
        // The row goes to the disk while the disk goes out of sight. Each alone is swept by the next start.
        let row = self.inner.store.delete_computer(id, Durability::Power);
        let disks = self.inner.disks()?;
        let removed = blocking(move || disks.remove(id)).await?;
        failpoint::hit("remove.disk");
        if let Err(error) = removed {
            tracing::error!(computer = %id, error = chain(&error), "the disk of a removed computer is left");
        }
        row.await?;
        failpoint::hit("remove.row");
        self.handle.status.send_modify(|status| status.machine = None);
        self.inner.registry.remove(&self.handle);
        tracing::info!(computer = %id, name = %self.handle.name(), "a computer is gone");
        Ok(())
    }
}

async fn died(machine: Option<&Machine>) {
    match machine {
        Some(machine) => machine.died().await,
        None => std::future::pending().await,
    }
}

/// Boots nothing: makes the disk that a create or a fork cut off by a power cut did not.
pub(crate) async fn remake_disk(inner: &Inner, handle: &Handle) -> Result<(), Error> {
    let disks = inner.disks()?;
    if !disks.exists(handle.id) {
        disks.remove(handle.id)?; // Half of one.
        match handle.parent {
            Some(_) => {
                let image = inner.images.by_digest(&handle.spec.image_digest)?;
                fork::make_disk(inner, handle, &image).await?;
            }
            None => make_disk(inner, handle).await?,
        }
    }
    Ok(())
}
