//! Watching over one service while its computer runs.
//!
//! Every start, every look and every wait ends when the computer does or when the supervisor is told to go.

use std::{sync::Arc, time::Duration};

use den_machine::Machine;
use den_model::{BackOff, EventKind, ServiceState as S, State, StepEnd};
use den_store::Durability;
use den_sys::failpoint;
use den_wire::agent::SignalScope;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Service, command, ready};
use crate::{
    Error,
    control::{Inner, now},
    errors::chain,
    exec,
    handle::Handle,
    limits::{RECOVERY_WAIT, SERVICE_GRACE, SERVICE_KILL_WAIT},
    steps::Live,
};

const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGKILL: i32 = 9;

/// What a supervisor begins with.
pub(super) enum First {
    /// A start.
    Start,
    /// A start that goes on.
    Follow(Arc<Live>),
    /// What became of the newest start.
    Ended(StepEnd),
}

/// The way to who watches over a service.
pub(super) struct Supervisor {
    leave: CancellationToken,
    /// Closed once it has gone.
    gone: watch::Receiver<()>,
}

/// How the watch over one start was over.
enum Over {
    /// It ended by itself, or was ended because it was not ready in time.
    Ended { end: StepEnd, ran: Duration, why: Option<String> },
    /// There is nothing more to do: the supervisor was told to go, or the computer ended.
    Leave,
}

/// The watch over one service in one run of its computer.
pub(super) struct Watch {
    pub(super) inner: Arc<Inner>,
    pub(super) handle: Arc<Handle>,
    pub(super) machine: Machine,
    pub(super) service: Arc<Service>,
    leave: CancellationToken,
}

/// Has a service watched over from now on, in this run of its computer.
pub(super) fn begin(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: &Machine, service: &Arc<Service>, first: First) {
    let leave = CancellationToken::new();
    let (going, gone) = watch::channel(());
    let before = service.supervisor().replace(Supervisor { leave: leave.clone(), gone });
    let watch = Watch {
        inner: Arc::clone(inner),
        handle: Arc::clone(handle),
        machine: machine.clone(),
        service: Arc::clone(service),
        leave,
    };
    if matches!(first, First::Start) {
        service.set(S::Starting, None);
    }
    inner.tasks.spawn(async move {
        let _going = going;
        if let Some(before) = before {
            leave_and_wait(before).await;
        }
        watch.over(first).await;
    });
}

/// Ends what runs of a service, and returns once nobody watches over it.
pub(super) async fn ended(service: &Service) {
    let supervisor = service.supervisor().take();
    if let Some(supervisor) = supervisor {
        leave_and_wait(supervisor).await;
    }
}

async fn leave_and_wait(Supervisor { leave, mut gone }: Supervisor) {
    leave.cancel();
    while gone.changed().await.is_ok() {}
}

/// Ends a step: SIGTERM to its group, after a grace SIGKILL; what its first process leaves behind goes with it.
pub(super) async fn end(machine: &Machine, live: &Live) {
    let mut progress = live.progress.subscribe();
    for (signals, wait) in [(&[SIGTERM, SIGCONT][..], SERVICE_GRACE), (&[SIGKILL], SERVICE_KILL_WAIT)] {
        for &signal in signals {
            let sent = machine.link().signal(live.step.number, signal, SignalScope::Group);
            if let Ok(Err(error)) = tokio::time::timeout(RECOVERY_WAIT, sent).await {
                // It has ended just now, as a rule.
                tracing::debug!(step = live.step.number, signal, error = chain(&error), "a service is not signalled");
            }
        }
        let ended = tokio::time::timeout(wait, progress.wait_for(|progress| progress.end.is_some()));
        if ended.await.is_ok() {
            return;
        }
    }
    tracing::error!(computer = %machine.id(), step = live.step.number, "a start of a service does not end");
}

impl Watch {
    async fn over(&self, first: First) {
        let mut back_off = BackOff::default();
        let mut first = Some(first);
        loop {
            let over = match first.take() {
                Some(First::Follow(live)) => self.follow(&live).await,
                Some(First::Ended(end)) => Over::Ended { end, ran: Duration::ZERO, why: None },
                Some(First::Start) | None => match self.start().await {
                    Ok(Some(live)) => self.follow(&live).await,
                    Ok(None) => Over::Leave,
                    Err(error) => {
                        let end = StepEnd::NotStarted { code: 126, message: error.message.clone() };
                        Over::Ended { end, ran: Duration::ZERO, why: Some(error.message) }
                    }
                },
            };
            let Over::Ended { end, ran, why } = over else { return self.left() };
            if self.leave.is_cancelled() || self.is_over() {
                return self.left();
            }
            if !self.again(&end, ran, why, &mut back_off).await {
                return;
            }
        }
    }

    /// It ended: what follows. Whether it is to be started again, after the wait for that.
    async fn again(&self, end: &StepEnd, ran: Duration, why: Option<String>, back_off: &mut BackOff) -> bool {
        let well = why.is_none() && *end == StepEnd::Exited { code: 0 };
        let said = why.clone().unwrap_or_else(|| words(end));
        let detail = json!({
            "service": self.service.name,
            "step": self.service.standing.borrow().step,
            "exit_code": end.exit_code(),
            "reason": said,
        });
        if !self.service.spec.restart.again(well) {
            if well {
                self.service.set(S::Stopped, Some("it is done".to_owned()));
            } else {
                self.service.set(S::Failed, Some(said));
                self.inner.events.tell(EventKind::ServiceFailed, Some(&self.handle), None, detail);
            }
            return false;
        }
        let wait = back_off.next(ran);
        self.service.set(S::BackingOff, Some(said));
        self.inner.events.tell(EventKind::ServiceBackingOff, Some(&self.handle), None, detail);
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.leave.cancelled() => { self.left(); false }
            () = self.machine.died() => { self.left(); false }
        }
    }

    /// The computer's run is over.
    fn is_over(&self) -> bool {
        let state = self.handle.state();
        self.machine.is_dead() || matches!(state, State::Stopping | State::Stopped | State::Failed | State::Removing)
    }

    fn left(&self) {
        self.service.set(S::Stopped, None);
    }

    /// Waits until the computer runs; false where it will not, or nobody wants to know any more.
    pub(super) async fn awake(&self) -> bool {
        let mut status = self.handle.status.subscribe();
        loop {
            if self.leave.is_cancelled() || self.is_over() {
                return false;
            }
            if status.borrow_and_update().state == State::Running {
                return true;
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return false },
                () = self.leave.cancelled() => return false,
                () = self.machine.died() => return false,
            }
        }
    }

    /// Starts the command as a step; `None` where there is no more to do.
    async fn start(&self) -> Result<Option<Arc<Live>>, Error> {
        if !self.awake().await {
            return Ok(None);
        }
        self.service.set(S::Starting, None);
        failpoint::hit("service.starts");
        let (service, request) = (&self.service, command(&self.service.spec));
        let live = exec::start_service(&self.inner, &self.handle, &self.machine, &service.name, request).await?;
        let detail = json!({ "service": service.name, "step": live.step.number });
        self.inner.events.tell(EventKind::ServiceStarted, Some(&self.handle), None, detail);
        Ok(Some(live))
    }

    /// Follows a start to its end.
    async fn follow(&self, live: &Arc<Live>) -> Over {
        let ran = || Duration::from_micros(now().saturating_sub(live.step.started_at).max(0) as u64);
        let (spec, name) = (&self.service.spec, &self.service.name);
        let mut check = match &spec.ready {
            None => {
                self.service.set(S::Running, None);
                None
            }
            Some(_) if self.service.standing.borrow().ready => {
                self.service.set(S::Ready, None);
                None
            }
            Some(check) => {
                self.service.set(S::Starting, None);
                Some(Box::pin(ready::holds(self, check, Duration::from_millis(spec.ready_within_ms))))
            }
        };
        let mut progress = live.progress.subscribe();
        loop {
            let ended = async {
                let ended = progress.wait_for(|progress| progress.end.is_some()).await;
                ended.ok().and_then(|progress| progress.end.clone()).and_then(|step| step.end.clone())
            };
            tokio::select! {
                ended = ended => {
                    return Over::Ended { end: self.ended(ended), ran: ran(), why: None };
                }
                () = self.leave.cancelled() => {
                    end(&self.machine, live).await;
                    let ended = live.progress.borrow().end.clone().and_then(|step| step.end.clone());
                    self.ended(ended);
                    return Over::Leave;
                }
                held = async { check.as_mut().expect("guarded").await }, if check.is_some() => {
                    check = None;
                    match held {
                        Ok(()) => {
                            let step = live.step.number;
                            // Where it is not recorded, the next daemon asks again.
                            drop(self.inner.store.service_ready(self.handle.id, name.clone(), step, Durability::Process));
                            self.service.change(|standing| standing.ready = true);
                            self.service.set(S::Ready, None);
                            let detail = json!({ "service": name, "step": step });
                            self.inner.events.tell(EventKind::ServiceReady, Some(&self.handle), None, detail);
                        }
                        Err(why) => {
                            self.service.set(S::Starting, Some(why.clone()));
                            end(&self.machine, live).await;
                            let ended = live.progress.borrow().end.clone().and_then(|step| step.end.clone());
                            return Over::Ended { end: self.ended(ended), ran: ran(), why: Some(why) };
                        }
                    }
                }
            }
        }
    }

    /// Shows how the newest start ended.
    fn ended(&self, end: Option<StepEnd>) -> StepEnd {
        let end = end.unwrap_or(StepEnd::Lost);
        self.service.change(|standing| standing.last_end = Some((end.clone(), now())));
        end
    }
}

/// How a start ended, in words.
fn words(end: &StepEnd) -> String {
    match end {
        StepEnd::Exited { code } => format!("it ended with {code}"),
        StepEnd::Signaled { signal } => format!("signal {signal} ended it"),
        StepEnd::TimedOut => "it ran past its time".to_owned(),
        StepEnd::NotStarted { message, .. } => format!("it was not started: {message}"),
        StepEnd::Lost => "it ended, and nobody saw how".to_owned(),
    }
}
