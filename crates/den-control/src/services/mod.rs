//! The services of computers: added, started, watched over, ended, forgotten.
//!
//! ```text
//! add · start · stop · restart · rm ──► row ──► supervisor of the service: one task for one run of its computer
//! start · restore · fork · take-up ─────────►       start ─► a step ─► ready? ─► ended ─► again? ─► wait ─┐
//!                                                     ▲                                                  │
//!                                                     └──────────────────────────────────────────────────┘
//! ```
//!
//! Invariants:
//! - Each start is a step, recorded together with being the newest start of its service. So a daemon that is
//!   started again finds what runs and follows it, and a service never runs twice.
//! - Whether a service is wanted is on the disk before anything is begun or ended for it.
//! - One supervisor of a service at a time: the next one waits for the one before.
//! - Supervision stands still with its computer: one that is paused is neither asked nor started anything.
//!
//! Not here: what systemd of an image does with services of its own.

mod ready;
mod supervise;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use den_api::{
    EndView, ExecRequest,
    service::{AddService, ServiceView},
};
use den_machine::Machine;
use den_model::{
    ComputerName, EventKind, Micros, Request, Restart, Service as Row, ServiceName, ServiceSpec, ServiceState, State,
    Step, StepEnd, StepKind,
    service::{READY_WITHIN_DEFAULT, SERVICE_KEEP_BYTES},
};
use den_store::{Durability, Pending};
use den_sys::failpoint;
use serde_json::json;
use tokio::sync::{Mutex as Queue, OwnedMutexGuard, watch};

use self::supervise::{First, Supervisor};
use crate::{
    Error, Who,
    control::{Control, Inner, now},
    errors::too_many,
    exec,
    handle::Handle,
    life::Awake,
    limits::{READY_WITHIN_MAX, SERVICE_TURN_WAIT, SERVICES_MAX},
};

/// The services of one computer.
#[derive(Default)]
pub(crate) struct Services {
    known: Mutex<BTreeMap<ServiceName, Arc<Service>>>,
    /// Held while a service comes or goes.
    turn: Arc<Queue<()>>,
}

/// One service, for as long as it has a row.
pub(crate) struct Service {
    name: ServiceName,
    spec: ServiceSpec,
    created_at: Micros,
    standing: watch::Sender<Standing>,
    /// Held by who asks something of it.
    turn: Arc<Queue<()>>,
    /// Who watches over it in this run of its computer.
    supervisor: Mutex<Option<Supervisor>>,
}

/// Where a service stands.
#[derive(Debug, Clone)]
struct Standing {
    state: ServiceState,
    reason: Option<String>,
    since: Micros,
    wanted: bool,
    /// See [`Row`].
    begun: bool,
    /// See [`Row`].
    ready: bool,
    restarts: u64,
    step: u64,
    last_end: Option<(StepEnd, Micros)>,
    revision: u64,
    /// It has no row any more.
    gone: bool,
}

impl Service {
    fn new(row: Row, last_end: Option<(StepEnd, Micros)>) -> Arc<Self> {
        let Row { name, spec, wanted, created_at, step, begun, ready, restarts } = row;
        let standing = Standing {
            state: ServiceState::Stopped,
            reason: None,
            since: last_end.as_ref().map_or(created_at, |(_, at)| *at),
            wanted,
            begun,
            ready,
            restarts,
            step,
            last_end,
            revision: 1,
            gone: false,
        };
        let (standing, turn, supervisor) = (watch::channel(standing).0, Arc::default(), Mutex::default());
        Arc::new(Self { name, spec, created_at, standing, turn, supervisor })
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        self.standing.send_modify(|standing| {
            change(standing);
            standing.revision += 1;
        });
    }

    /// Shows another state.
    fn set(&self, state: ServiceState, reason: Option<String>) {
        self.change(|standing| {
            if standing.state != state {
                standing.since = now();
            }
            (standing.state, standing.reason) = (state, reason);
        });
    }

    fn supervisor(&self) -> MutexGuard<'_, Option<Supervisor>> {
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self) -> Result<OwnedMutexGuard<()>, Error> {
        take_turn(&self.turn, &format!("the service `{}`", self.name)).await
    }

    fn view(&self) -> ServiceView {
        let Standing { state, reason, since, wanted, restarts, step, last_end, revision, .. } =
            self.standing.borrow().clone();
        let spec = self.spec.clone();
        ServiceView {
            name: self.name.to_string(),
            state: state.as_str().to_owned(),
            reason,
            since,
            wanted,
            restarts,
            step: Some(step).filter(|&step| step > 0),
            last_end: last_end.as_ref().map(|(end, _)| EndView::from(end)),
            last_ended_at: last_end.as_ref().map(|(_, at)| *at),
            run: spec.run,
            restart: spec.restart.to_string(),
            ready: spec.ready.map(|ready| ready.to_string()),
            ready_within_ms: spec.ready_within_ms,
            user: spec.user,
            cwd: spec.cwd,
            env: spec.env,
            keep_bytes: spec.keep_bytes,
            created_at: self.created_at,
            revision,
        }
    }
}

impl Services {
    fn known(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Arc<Service>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Service>> {
        self.known().values().cloned().collect()
    }

    fn find(&self, computer: &ComputerName, text: &str) -> Result<Arc<Service>, Error> {
        let known = self.known();
        let found = known.values().find(|service| service.name.as_str() == text);
        found.cloned().ok_or_else(|| not_found(computer, text, known.keys()))
    }

    /// The step of this number, recorded just now, is the newest start of a service.
    pub(crate) fn began(&self, name: &ServiceName, step: u64) {
        if let Some(service) = self.known().get(name).cloned() {
            service.change(|standing| {
                standing.restarts = if standing.begun { standing.restarts + 1 } else { 0 };
                (standing.step, standing.begun, standing.ready) = (step, true, false);
            });
        }
    }
}

/// A fork has the services of its parent, of which those have begun whose `steps` go on in it. Queues their rows,
/// where there are any, behind that of the computer.
pub(crate) fn inherit(inner: &Inner, child: &Handle, parent: &Handle, steps: &[Step]) -> Option<Pending<()>> {
    let rows: Vec<Row> = parent
        .services
        .all()
        .iter()
        .map(|service| {
            let standing = service.standing.borrow();
            let row = Row {
                wanted: standing.wanted,
                ..Row::new(service.name.clone(), service.spec.clone(), child.created_at)
            };
            match steps.iter().any(|step| step.number == standing.step) {
                true => Row {
                    step: standing.step,
                    begun: standing.begun,
                    ready: standing.ready,
                    restarts: standing.restarts,
                    ..row
                },
                false => row,
            }
        })
        .collect();
    let services = rows.iter().map(|row| (row.name.clone(), Service::new(row.clone(), None)));
    child.services.known().extend(services);
    (!rows.is_empty()).then(|| inner.store.insert_services(child.id, rows, Durability::Process))
}

/// Takes up what the store has of the services of a computer.
pub(crate) async fn read(inner: &Inner, handle: &Handle) -> Result<(), Error> {
    let rows = inner.store.services(handle.id).await?;
    for row in rows {
        let mut end = None;
        if row.step > 0
            && let Some(step) = inner.store.get_step(handle.id, row.step).await?
        {
            end = step.end.zip(step.ended_at);
        }
        handle.services.known().insert(row.name.clone(), Service::new(row, end));
    }
    Ok(())
}

/// The computer runs from now on: so do its services.
pub(crate) fn started(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: &Machine) {
    for service in handle.services.all() {
        service.change(|standing| (standing.begun, standing.ready, standing.restarts) = (false, false, 0));
        if service.standing.borrow().wanted {
            supervise::begin(inner, handle, machine, &service, First::Start);
        }
    }
}

/// The computer may have run on while no daemon did: so did its services. What ended meanwhile has its end recorded.
pub(crate) async fn taken_up(inner: &Arc<Inner>, handle: &Arc<Handle>) -> Result<(), Error> {
    let Some(machine) = handle.status.borrow().machine.clone() else { return Ok(()) };
    let live = handle.steps.all();
    let mut starts: Vec<_> = live.into_iter().filter(|live| live.step.kind == StepKind::Service).collect();
    starts.sort_by_key(|live| live.step.number);
    for service in handle.services.all() {
        let (wanted, begun, step) = {
            let standing = service.standing.borrow();
            (standing.wanted, standing.begun, standing.step)
        };
        let who = service.name.who();
        let newest = starts.iter().rposition(|live| live.step.who == who).filter(|_| wanted);
        let first = match newest.map(|place| starts.remove(place)) {
            Some(live) => First::Follow(live),
            None if !wanted => continue,
            None if !begun => First::Start,
            None => match inner.store.get_step(handle.id, step).await?.and_then(|step| step.end.zip(step.ended_at)) {
                Some((end, at)) => {
                    service.change(|standing| standing.last_end = Some((end.clone(), at)));
                    First::Ended(end)
                }
                None => First::Ended(StepEnd::Lost),
            },
        };
        supervise::begin(inner, handle, &machine, &service, first);
    }
    // Of a service that is not wanted or not known any more: what it was told before the daemon went is done.
    for live in starts {
        let (handle, machine) = (Arc::clone(handle), machine.clone());
        inner.tasks.spawn(async move {
            handle.moves().await;
            supervise::end(&machine, &live).await;
        });
    }
    Ok(())
}

impl Control {
    /// Gives a computer a service, which is started at once where it runs.
    ///
    /// Errors: `computer_not_found`, `bad_name`, `bad_request`, `service_exists`, `too_many`, `host_full`.
    pub async fn add_service(&self, computer: &str, request: AddService, who: &Who) -> Result<ServiceView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        takes_changes(&handle)?;
        let (name, spec) = check(&self.0, &handle, request)?;
        tracing::debug!(computer = %handle.id, service = %name, who = who.0, "a service is added");
        let inner = Arc::clone(&self.0);
        carried_out(&self.0, async move {
            let _turn = take_turn(&handle.services.turn, &format!("the services of `{}`", handle.name())).await?;
            if handle.services.known().contains_key(&name) {
                return Err(taken(handle.name(), &name));
            }
            if handle.services.known().len() >= SERVICES_MAX {
                return Err(too_many(&format!("services of `{}`", handle.name()), SERVICES_MAX));
            }
            let row = Row::new(name.clone(), spec, now());
            inner.store.insert_service(handle.id, row.clone(), Durability::Power).await?;
            failpoint::hit("service.added");
            let service = Service::new(row, None);
            handle.services.known().insert(name, Arc::clone(&service));
            run_if_it_runs(&inner, &handle, &service);
            Ok(service.view())
        })
        .await
    }

    /// The services of a computer, by name.
    ///
    /// Errors: `computer_not_found`.
    pub fn services(&self, computer: &str) -> Result<Vec<ServiceView>, Error> {
        let handle = self.0.registry.find(computer)?;
        Ok(handle.services.all().iter().map(|service| service.view()).collect())
    }

    /// One service, as soon as it is another than at the revision `seen`, or when `wait` is over.
    ///
    /// Errors: `computer_not_found`, `service_not_found`.
    pub async fn service(
        &self,
        computer: &str,
        name: &str,
        seen: Option<u64>,
        wait: Duration,
    ) -> Result<ServiceView, Error> {
        let handle = self.0.registry.find(computer)?;
        let service = handle.services.find(handle.name(), name)?;
        if let Some(seen) = seen {
            let mut standing = service.standing.subscribe();
            let other = standing.wait_for(|standing| standing.revision != seen || standing.gone);
            let _ = tokio::time::timeout(wait, other).await;
        }
        if service.standing.borrow().gone {
            return Err(not_found(handle.name(), name, handle.services.known().keys()));
        }
        Ok(service.view())
    }

    /// Has a service run while its computer runs. One that runs goes on.
    ///
    /// Errors: `computer_not_found`, `service_not_found`, `host_full`.
    pub async fn start_service(&self, computer: &str, name: &str, who: &Who) -> Result<ServiceView, Error> {
        let (handle, service) = self.service_to_change(computer, name)?;
        tracing::debug!(computer = %handle.id, service = name, who = who.0, "a service is to start");
        let inner = Arc::clone(&self.0);
        carried_out(&self.0, async move {
            let _turn = service.turn().await?;
            let runs = {
                use ServiceState as S;
                let standing = service.standing.borrow();
                standing.wanted && matches!(standing.state, S::Starting | S::Ready | S::Running)
            };
            if !runs {
                want(&inner, &handle, &service, true).await?;
                supervise::ended(&service).await;
                run_if_it_runs(&inner, &handle, &service);
            }
            Ok(service.view())
        })
        .await
    }

    /// Ends a service until it is started again, and returns once it has ended.
    ///
    /// Errors: `computer_not_found`, `service_not_found`, `host_full`, `service_stays` where it does not end.
    pub async fn stop_service(&self, computer: &str, name: &str, who: &Who) -> Result<ServiceView, Error> {
        let (handle, service) = self.service_to_change(computer, name)?;
        tracing::debug!(computer = %handle.id, service = name, who = who.0, "a service is to stop");
        let (inner, who) = (Arc::clone(&self.0), who.0.clone());
        carried_out(&self.0, async move {
            let _turn = service.turn().await?;
            want(&inner, &handle, &service, false).await?;
            failpoint::hit("service.unwanted");
            let _awake = awake(&handle).await?;
            end(&handle, &service).await?;
            inner.events.tell(EventKind::ServiceStopped, Some(&handle), Some(&who), json!({ "service": service.name }));
            Ok(service.view())
        })
        .await
    }

    /// Ends a service and starts it.
    ///
    /// Errors: `computer_not_found`, `service_not_found`, `computer_stopped`, `host_full`, `service_stays`.
    pub async fn restart_service(&self, computer: &str, name: &str, who: &Who) -> Result<ServiceView, Error> {
        let (handle, service) = self.service_to_change(computer, name)?;
        tracing::debug!(computer = %handle.id, service = name, who = who.0, "a service is to start again");
        let inner = Arc::clone(&self.0);
        carried_out(&self.0, async move {
            let _turn = service.turn().await?;
            let _awake = handle.awake().await?;
            end(&handle, &service).await?;
            failpoint::hit("service.ended");
            want(&inner, &handle, &service, true).await?;
            run_if_it_runs(&inner, &handle, &service);
            Ok(service.view())
        })
        .await
    }

    /// Ends and forgets a service. Its steps stay.
    ///
    /// Errors: `computer_not_found`, `service_not_found`, `host_full`, `service_stays`.
    pub async fn remove_service(&self, computer: &str, name: &str, who: &Who) -> Result<(), Error> {
        let (handle, service) = self.service_to_change(computer, name)?;
        tracing::debug!(computer = %handle.id, service = name, who = who.0, "a service is removed");
        let (inner, who) = (Arc::clone(&self.0), who.0.clone());
        carried_out(&self.0, async move {
            let _all = take_turn(&handle.services.turn, &format!("the services of `{}`", handle.name())).await?;
            let _turn = service.turn().await?;
            // Not wanted first: a crash before its row goes leaves one that does not come back by itself.
            want(&inner, &handle, &service, false).await?;
            let _awake = awake(&handle).await?;
            end(&handle, &service).await?;
            let detail = json!({ "service": service.name, "removed": true });
            inner.events.tell(EventKind::ServiceStopped, Some(&handle), Some(&who), detail);
            inner.store.delete_service(handle.id, service.name.clone(), Durability::Power).await?;
            failpoint::hit("service.removed");
            handle.services.known().remove(&service.name);
            service.change(|standing| standing.gone = true);
            Ok(())
        })
        .await
    }

    fn service_to_change(&self, computer: &str, name: &str) -> Result<(Arc<Handle>, Arc<Service>), Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        takes_changes(&handle)?;
        let service = handle.services.find(handle.name(), name)?;
        Ok((handle, service))
    }
}

/// Does it to the end, whoever goes away.
async fn carried_out<T: Send + 'static>(
    inner: &Inner,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    inner.tasks.spawn(work).await.map_err(|_| Error::shutting_down())?
}

async fn take_turn(turn: &Arc<Queue<()>>, what: &str) -> Result<OwnedMutexGuard<()>, Error> {
    tokio::time::timeout(SERVICE_TURN_WAIT, Arc::clone(turn).lock_owned()).await.map_err(|_| {
        Error::new("busy", 503, format!("something else is being asked of {what}")).hint("try again").retryable()
    })
}

/// Refuses where what a computer keeps is not to be changed.
fn takes_changes(handle: &Handle) -> Result<(), Error> {
    handle.plugged()?;
    match handle.state() {
        State::Removing | State::Trashed => handle.after(Request::Use).map(drop),
        _ => Ok(()),
    }
}

/// Has a computer that is paused go on: what stands still does not end.
async fn awake(handle: &Arc<Handle>) -> Result<Option<Awake>, Error> {
    if handle.status.borrow().state == State::Paused { handle.awake().await.map(Some) } else { Ok(None) }
}

async fn want(inner: &Inner, handle: &Handle, service: &Service, wanted: bool) -> Result<(), Error> {
    inner.store.want_service(handle.id, service.name.clone(), wanted, Durability::Power).await?;
    service.change(|standing| {
        standing.wanted = wanted;
        if wanted {
            (standing.begun, standing.ready, standing.restarts) = (false, false, 0);
        }
    });
    Ok(())
}

/// Ends what runs of a service.
async fn end(handle: &Handle, service: &Service) -> Result<(), Error> {
    supervise::ended(service).await;
    let step = service.standing.borrow().step;
    if handle.steps.get(step).is_some_and(|live| live.step.kind == StepKind::Service && !live.has_ended()) {
        let message = format!("step {step} of `{}`, a start of `{}`, does not end", handle.name(), service.name);
        return Err(Error::new("service_stays", 504, message)
            .hint(format!("`den stop {}` ends all of its processes", handle.name()))
            .retryable());
    }
    service.set(ServiceState::Stopped, None);
    Ok(())
}

fn run_if_it_runs(inner: &Arc<Inner>, handle: &Arc<Handle>, service: &Arc<Service>) {
    let machine = handle.status.borrow().machine.clone().filter(|machine| !machine.is_dead());
    match machine {
        Some(machine) => supervise::begin(inner, handle, &machine, service, First::Start),
        None => service.set(ServiceState::Stopped, Some(format!("`{}` does not run", handle.name()))),
    }
}

/// A service whose every field is right.
fn check(inner: &Inner, handle: &Handle, request: AddService) -> Result<(ServiceName, ServiceSpec), Error> {
    let AddService { name, run, restart, ready, ready_within_ms, user, cwd, env, keep_bytes } = request;
    let name: ServiceName = name.parse().map_err(|error| {
        Error::new("bad_name", 400, format!("`name`: {error}"))
            .hint("a service's name is 1 to 63 of a-z, 0-9 and `-`, with no `-` at its ends")
    })?;
    let bad = |field: &str, error: &dyn std::fmt::Display| Error::bad_request(format!("`{field}`: {error}"));
    let restart = restart.map_or(Ok(Restart::default()), |text| text.parse());
    let restart = restart.map_err(|error| bad("restart", &error))?;
    let ready = ready.map(|text| text.parse()).transpose().map_err(|error| bad("ready", &error))?;
    let most = READY_WITHIN_MAX.as_millis() as u64;
    if ready_within_ms.is_some_and(|within| within == 0 || within > most) {
        return Err(Error::bad_request(format!("`ready_within_ms`: not from 1 to {most}")));
    }
    let spec = ServiceSpec {
        run,
        restart,
        ready,
        ready_within_ms: ready_within_ms.unwrap_or(READY_WITHIN_DEFAULT.as_millis() as u64),
        user,
        cwd,
        env,
        keep_bytes: keep_bytes.unwrap_or(SERVICE_KEEP_BYTES),
    };
    exec::check_service(inner, handle, command(&spec)).map_err(|mut error| {
        if spec.run.first().is_none_or(String::is_empty) {
            error.message = error.message.replace("`argv`", "`run`");
            error.hint = Some("say what to run: `den service add NAME web --run 'python3 -m http.server'`".to_owned());
        }
        error
    })?;
    Ok((name, spec))
}

/// What a start of a service runs.
fn command(spec: &ServiceSpec) -> ExecRequest {
    ExecRequest {
        argv: spec.run.clone(),
        cwd: spec.cwd.clone(),
        env: spec.env.clone(),
        user: spec.user.clone(),
        keep_bytes: Some(spec.keep_bytes),
        ..ExecRequest::default()
    }
}

fn not_found<'a>(computer: &ComputerName, text: &str, known: impl Iterator<Item = &'a ServiceName>) -> Error {
    let known: Vec<_> = known.map(ServiceName::as_str).collect();
    let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Error::new("service_not_found", 404, format!("`{computer}` has no service `{text}`; there is {there}"))
        .hint(format!("`den service ls {computer}` lists them"))
}

fn taken(computer: &ComputerName, name: &ServiceName) -> Error {
    Error::new("service_exists", 409, format!("`{computer}` has a service `{name}` already"))
        .hint(format!("take another name, or remove that one with `den service rm {computer} {name}`"))
}
