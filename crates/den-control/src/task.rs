//! The task of one computer: it alone changes the computer's state.
//!
//! ```text
//! requests ──mailbox──► task ──► State::ask ──► store, agent, launcher, disk ──► status
//! PID 1 gone ─────────►      └─► State::learn
//! ```
//!
//! A removal or an unplug overtakes a stop that waits for its grace; all else is one after the other.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use den_api::ComputerView;
use den_machine::Machine;
use den_model::{EventKind, Fact, Request, Standing, State};
use den_store::Durability;
use den_sys::failpoint;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Error, Who,
    control::{Control, Inner, check_grace, now},
    create::{boot, make_disk},
    errors::chain,
    exec::start_entrypoint,
    handle::{Ask, Handle, Reply},
    history::fork,
    life::hibernate,
    limits::{STEPS_END_WAIT, STOP_MARGIN},
    metrics::Operation,
    services,
    trash::{Removed, Went},
};

impl Control {
    /// Boots a stopped or failed computer on the disk it had.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `image_not_found`, `pool_full`, `host_full`, `host_lacks`.
    pub async fn start(&self, computer: &str, who: &Who) -> Result<ComputerView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        tracing::debug!(computer = %handle.id, who = who.0, "a start is asked for");
        let who = who.0.clone();
        let began = Instant::now();
        handle.ask(|reply| Ask::Start { who, reply }).await?;
        self.0.metrics.took(Operation::Start, began);
        Ok(handle.view())
    }

    /// Ends all processes of a computer, by SIGTERM and after the grace (5 s without one) by SIGKILL.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `bad_request`.
    pub async fn stop(&self, computer: &str, grace: Option<Duration>, who: &Who) -> Result<ComputerView, Error> {
        let grace = check_grace(grace)?;
        let handle = self.0.registry.find(computer)?;
        tracing::debug!(computer = %handle.id, who = who.0, "a stop is asked for");
        let who = who.0.clone();
        let began = Instant::now();
        handle.ask(|reply| Ask::Stop { grace, who, reply }).await?;
        self.0.metrics.took(Operation::Stop, began);
        Ok(handle.view())
    }
}

/// Serves a computer until it is removed.
pub(crate) async fn run(inner: Arc<Inner>, handle: Arc<Handle>, inbox: mpsc::Receiver<Ask>) {
    Task { inner, handle, inbox, later: VecDeque::new() }.serve().await;
}

pub(crate) struct Task {
    pub(crate) inner: Arc<Inner>,
    pub(crate) handle: Arc<Handle>,
    inbox: mpsc::Receiver<Ask>,
    /// What came while something else went on, and goes before what is in the inbox.
    later: VecDeque<Ask>,
}

impl Task {
    async fn serve(mut self) {
        loop {
            let machine = self.machine();
            let ask = match self.later.pop_front() {
                Some(ask) => Some(ask),
                None => tokio::select! {
                    ask = self.inbox.recv() => ask,
                    () = died(machine.as_ref()) => {
                        self.on_death().await;
                        continue;
                    }
                },
            };
            match ask {
                None => return,
                Some(Ask::Start { who, reply }) => {
                    let result = self.start().await;
                    if result.is_ok() {
                        self.inner.events.tell(EventKind::Started, Some(&self.handle), Some(&who), Value::Null);
                    }
                    drop(reply.send(result));
                }
                Some(Ask::Stop { grace, who, reply }) => {
                    self.not_asleep();
                    self.stop(grace, &who, reply).await;
                }
                Some(Ask::Resize { size, who, reply }) => {
                    let result = self.resize(size, &who).await;
                    drop(reply.send(result));
                }
                Some(Ask::Hibernate { who, reply }) => {
                    let result = self.hibernate(&who).await;
                    drop(reply.send(result));
                }
                Some(Ask::Copy { who, transfers, reply }) => {
                    let result = self.copy(&who, transfers).await;
                    drop(reply.send(result)); // Who does not wait for it any more leaves it to be dropped.
                }
                Some(Ask::Pause { by, reply }) => {
                    let result = self.pause(by).await;
                    drop(reply.send(result));
                }
                Some(Ask::Resume { by, reply }) => {
                    let result = self.resume(by).await;
                    drop(reply.send(result));
                }
                Some(Ask::Unplug { who, reply }) => {
                    let result = self.unplug(&who).await;
                    drop(reply.send(result));
                }
                Some(Ask::Replug { who, reply }) => {
                    let result = self.replug(&who).await;
                    drop(reply.send(result));
                }
                Some(Ask::Wake { reply }) => {
                    let result = self.wake().await;
                    drop(reply.send(result));
                }
                Some(Ask::Doze { since, then }) => {
                    self.doze(since, then).await;
                }
                Some(Ask::Restore { state, who, takes_back, reply }) => {
                    let result = self.restore(state, who, takes_back).await;
                    drop(reply.send(result));
                }
                Some(Ask::Remove { removal, who, reply }) => {
                    let result = self.remove(removal, &who).await;
                    let gone = matches!(result, Ok(Removed::Gone));
                    drop(reply.send(result.map(drop)));
                    if gone {
                        return;
                    }
                }
                Some(Ask::Empty { why, who, reply }) => {
                    let result = self.empty(why, who.as_deref()).await;
                    let gone = result.is_ok();
                    drop(reply.send(result));
                    if gone {
                        return;
                    }
                }
                Some(Ask::Undelete { undelete, reply }) => {
                    let result = self.undelete(undelete).await;
                    let over = matches!(result, Ok((_, Went::ToAnother)));
                    drop(reply.send(result.map(|(view, _)| view)));
                    if over {
                        return;
                    }
                }
            }
        }
    }

    pub(crate) fn machine(&self) -> Option<Machine> {
        self.handle.status.borrow().machine.clone()
    }

    /// The state after a request, or why not.
    pub(crate) fn ask(&self, request: Request) -> Result<State, Error> {
        if matches!(request, Request::Remove | Request::Stop) {
            // On a full disk it could not be written down.
            self.inner.reserve.need();
        }
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

    pub(crate) fn show(&self, state: State, reason: Option<String>, at: i64) {
        tracing::info!(computer = %self.handle.id, name = %self.handle.name(), %state, reason, "a state changed");
        if state == State::Failed {
            self.inner.events.tell(EventKind::Failed, Some(&self.handle), None, json!({ "reason": reason }));
        }
        // First: who sees that it stopped finds the room that it had.
        let processes = self.machine().is_some_and(|machine| !machine.is_dead() && !machine.is_on_disk());
        self.inner.pools.stands(self.handle.id, state, processes);
        // A restore that begins may be refused yet, and forgets it once its disk is to be another one.
        if !matches!(state, State::Running | State::Paused | State::Unplugged | State::Starting)
            && self.machine().is_some_and(|machine| machine.is_on_disk())
        {
            hibernate::forget_memory(&self.inner, self.handle.id);
        }
        self.handle.status.send_modify(|status| {
            status.state = state;
            status.reason = reason;
            status.changed_at = at;
            if !matches!(state, State::Running | State::Stopping | State::Removing | State::Paused | State::Unplugged) {
                status.machine = None;
            }
        });
    }

    pub(crate) async fn start(&self) -> Result<(), Error> {
        let starting = self.ask(Request::Start)?;
        self.inner.open_for_work()?;
        let image = self.inner.images.by_digest(&self.handle.spec().image_digest)?;
        self.inner.pools.hold(self.handle.id, Standing::Runs)?;
        if let Err(error) = self.set(starting, None, Some(self.inner.boot_id.clone())).await {
            self.inner.pools.stands(self.handle.id, self.handle.state(), false);
            return Err(error);
        }
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
                self.not_asleep();
                services::started(&self.inner, &self.handle, &machine);
                if self.handle.spec().entrypoint {
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

    /// Stops. A removal that comes meanwhile ends it at once, an unplug leaves it as it is; both come next then.
    pub(crate) async fn stop(&mut self, grace: Duration, who: &str, reply: Reply<()>) {
        if self.handle.state() == State::Unplugged && self.inner.open_for_work().is_err() {
            self.end_cut_off().await;
            drop(reply.send(Ok(())));
            return;
        }
        if let Some(machine) = self.machine().filter(|machine| machine.is_on_disk())
            && self.inner.open_for_work().is_err()
        {
            // Nothing of it runs, and the next daemon finds its memory where it is.
            self.handle.status.send_modify(|status| status.machine = None);
            self.end(&machine).await;
            drop(reply.send(Ok(())));
            return;
        }
        let stopping = match self.ask(Request::Stop) {
            Ok(stopping) => stopping,
            Err(error) => {
                drop(reply.send(Err(error)));
                return;
            }
        };
        if let Err(error) = self.set(stopping, None, None).await {
            drop(reply.send(Err(error)));
            return;
        }
        failpoint::hit("stop.state");
        if let Some(machine) = self.machine() {
            if self.handle.stand.is_wanted() && !self.handle.status.borrow().cut {
                self.handle.stand.release(&self.inner, &machine); // It was paused.
            }
            self.ask_to_end(&machine, grace).await;
            if matches!(self.later.front(), Some(Ask::Unplug { .. })) {
                drop(reply.send(Err(Error::unplugged(self.handle.name()))));
                return;
            }
            failpoint::hit("stop.asked");
            self.end(&machine).await;
        }
        failpoint::hit("stop.killed");
        self.set_fact(State::Stopping.learn(Fact::Died), None).await;
        failpoint::hit("stop.done");
        self.inner.events.tell(EventKind::Stopped, Some(&self.handle), Some(who), Value::Null);
        drop(reply.send(Ok(())));
    }

    /// Gives everything inside its grace; a removal or an unplug cuts it short, and comes next.
    async fn ask_to_end(&mut self, machine: &Machine, grace: Duration) {
        let ended = async {
            // An agent that does not take it is ended by the launcher.
            if machine.link().shutdown(grace).await.is_ok() {
                machine.died().await;
            }
        };
        let mut ended = std::pin::pin!(tokio::time::timeout(grace + STOP_MARGIN, ended));
        loop {
            let ask = tokio::select! {
                _ = &mut ended => return,
                Some(ask) = self.inbox.recv() => ask,
            };
            let (request, reply) = match ask {
                Ask::Remove { .. } | Ask::Unplug { .. } => return self.later.push_front(ask),
                // One that is put to sleep wakes when it has fallen asleep.
                Ask::Wake { .. } => {
                    self.later.push_back(ask);
                    continue;
                }
                Ask::Doze { .. } => continue,
                Ask::Pause { reply, .. } | Ask::Hibernate { reply, .. } => (Request::Pause, reply),
                Ask::Resize { reply, .. } => (Request::Resize, reply),
                Ask::Resume { reply, .. } => (Request::Resume, reply),
                Ask::Replug { reply, .. } => (Request::Replug, reply),
                Ask::Start { reply, .. } => (Request::Start, reply),
                Ask::Stop { reply, .. } => (Request::Stop, reply),
                Ask::Restore { reply, .. } => {
                    drop(reply.send(Err(self.ask(Request::Restore).err().unwrap_or_else(Error::shutting_down))));
                    continue;
                }
                Ask::Copy { reply, .. } => {
                    drop(reply.send(Err(self.ask(Request::Pause).err().unwrap_or_else(Error::shutting_down))));
                    continue;
                }
                Ask::Undelete { reply, .. } => {
                    drop(reply.send(Err(self.ask(Request::Undelete).err().unwrap_or_else(Error::shutting_down))));
                    continue;
                }
                // It is not in the trash, and that is what it says.
                Ask::Empty { .. } => {
                    self.later.push_back(ask);
                    continue;
                }
            };
            drop(reply.send(self.ask(request).map(drop)));
        }
    }

    /// Ends all processes and waits until the steps among them are recorded as ended.
    pub(crate) async fn end(&self, machine: &Machine) {
        self.handle.stand.ending(&self.inner, machine);
        if let Err(error) = machine.kill().await {
            tracing::error!(computer = %self.handle.id, error = chain(&error), "a computer may still run");
        }
        self.handle.stand.ended();
        self.inner.gate.detach(self.handle.id).await;
        self.handle.steps.all_ended(STEPS_END_WAIT).await;
    }

    /// Ends all processes and returns once they are gone. What the kernel takes longer for, cgroup,
    /// namespaces and mounts, the launcher finishes behind; [`Control::shutdown`] waits for it.
    pub(crate) async fn end_at_once(&self) -> Result<(), Error> {
        let Some(machine) = self.machine() else { return Ok(()) };
        self.handle.stand.ending(&self.inner, &machine);
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
                self.inner.watch.died(&self.inner.events, &self.handle, usage.oom_kills);
                format!("it ended by itself; its memory limit of {} had been reached", self.handle.limits().memory)
            }
            _ => "it ended by itself: its first process is gone".to_owned(),
        };
        self.end(&machine).await;
        self.set_fact(state, Some(reason)).await;
        self.handle.status.send_modify(|status| status.machine = None);
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
    let whole = match handle.parent {
        Some(_) => disks.fork_exists(handle.id),
        None => disks.exists(handle.id),
    };
    if !whole {
        disks.remove(handle.id)?; // Half of one.
        match handle.parent {
            Some(_) => {
                let image = inner.images.by_digest(&handle.spec().image_digest)?;
                fork::make_disk(inner, handle, &image).await?;
            }
            None => make_disk(inner, handle).await?,
        }
    }
    Ok(())
}
