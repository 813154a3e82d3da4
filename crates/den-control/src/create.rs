//! Making a computer.
//!
//! ```text
//! check ─► reserve the name ─► row (flushed) ───────────────┐
//!                          └─► disk ─► boot, agent answers ─┴─► running ─► answer
//! ```
//!
//! The row's flush and the boot go side by side. A create that fails unmakes all of it; one that a
//! crash cut off is unmade by the next start, unless the host went down too: then the row may have
//! been acknowledged, and becomes a stopped computer. Its disk is not waited for, only written out some
//! seconds later ([`crate::durable`]): where a power cut took it, the next start makes it again.

use std::{sync::Arc, time::Instant};

use den_api::{ComputerView, CreateComputer};
use den_disk::{Disk, Identity};
use den_gate::policy::Policy;
use den_image::Image;
use den_machine::{BootPlan, Machine, Shared};
use den_model::{Computer, ComputerId, ComputerName, ComputerSpec, EventKind, Parent, State, Tier};
use den_store::{Durability, Idempotency, StoreError};
use den_sys::failpoint;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    errors::chain,
    exec::start_entrypoint,
    handle::{Ask, Handle, Known, Reply, Status},
    idempotency::{Claim, Ticket, outcome},
    life,
    limits::IDEMPOTENCY_KEY_BYTES_MAX,
    metrics::Operation,
    names::friendly,
    net::{self, Net},
    pools::Seat,
    spec::{self, Wanted},
    task,
};

/// How many names are made up before the id is taken for one.
const NAME_ATTEMPTS: u32 = 6;

impl Control {
    /// Makes a computer and returns once it runs and its row is on the disk. With a `key`, the same
    /// request made again gives the same computer.
    ///
    /// Errors: `bad_name`, `bad_size`, `bad_request`, `unsupported`, `name_taken`, `image_not_found`,
    /// `idempotency_mismatch`, `volume_not_found`, `mount_refused`, `pool_not_found`, `pool_full`, `host_full`, `host_lacks`. Nothing is left of it then.
    pub async fn create(&self, request: CreateComputer, key: Option<String>, who: &Who) -> Result<ComputerView, Error> {
        let began = Instant::now();
        self.0.open_for_work()?;
        let wanted = spec::check(&request, self.0.defaults, |text| self.0.volumes.find(text))?;
        let policy = net::of_create(request.net.as_ref(), &self.0.net)?;
        let idle = life::idle::parse(request.idle.as_deref())?;
        let ticket = match key {
            None => None,
            Some(key) => match self.claim(&key, &request).await? {
                Ok(ticket) => Some(ticket),
                Err(made) => return self.replayed(made),
            },
        };
        self.0.reserve.room()?;
        let image = self.0.images.resolve(&wanted.image)?;
        if wanted.entrypoint && image.config.entrypoint.is_empty() && image.config.cmd.is_empty() {
            return Err(Error::bad_request(format!("`entrypoint`: the image `{}` has no command", wanted.image)));
        }
        let seat = self.0.pools.take(&wanted.pool, &[new_id()], &wanted.limits)?.pop();
        let seat = seat.ok_or_else(|| Error::internal("a pool gave no room and no reason"))?;
        let (handle, inbox) = self.reserve(seat, wanted, policy, &image, None)?;
        handle.idle.set(idle);
        tracing::debug!(computer = %handle.id, who = who.0, "a computer is made");
        let (reply, made) = oneshot::channel();
        self.0.tasks.spawn(make(Arc::clone(&self.0), handle, inbox, image, ticket, who.0.clone(), reply));
        match made.await.map_err(|_| Error::shutting_down())?? {
            Outcome::Made(view) => {
                self.0.metrics.took(Operation::Create, began);
                Ok(*view)
            }
            Outcome::Replay(id) => self.replayed(id),
        }
    }

    /// The right to make what the key asks for, or what was made.
    async fn claim(&self, key: &str, request: &CreateComputer) -> Result<Result<Ticket, ComputerId>, Error> {
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(Error::bad_request(format!(
                "an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, not {}",
                key.len()
            )));
        }
        let body = serde_json::to_vec(request).map_err(|error| Error::internal("a request").because(error))?;
        let hash = blake3::hash(&body);
        loop {
            match self.0.keys.claim(key, hash)? {
                // Before room or a name is taken: what it made may be what has them.
                Claim::First(ticket) => match self.0.store.made_by(key, &ticket.hash()).await? {
                    Some(id) => {
                        ticket.made(id);
                        return Ok(Err(id));
                    }
                    None => return Ok(Ok(ticket)),
                },
                Claim::Again(made) => {
                    if let Some(id) = outcome(made).await {
                        return Ok(Err(id));
                    }
                }
            }
        }
    }

    fn replayed(&self, id: ComputerId) -> Result<ComputerView, Error> {
        let there = self.0.registry.get(id).filter(|handle| handle.state() != State::Trashed);
        there.map(|handle| handle.view()).ok_or_else(|| {
            Error::computer_not_found(&id.to_string())
                .hint("this idempotency key made it, and it was removed since: take a new key")
        })
    }

    /// Puts the computer where others see it, under a name that nobody else has.
    pub(crate) fn reserve(
        &self,
        seat: Seat,
        wanted: Wanted,
        policy: Policy,
        image: &Image,
        parent: Option<Parent>,
    ) -> Result<(Arc<Handle>, mpsc::Receiver<Ask>), Error> {
        let Wanted { name, image: image_name, limits, env, labels, entrypoint, pool, volumes } = wanted;
        let id = seat.id();
        let steps_dir = self.0.disks()?.disk(id).steps;
        let spec = |name| ComputerSpec {
            name,
            image: image_name.clone(),
            image_digest: image.digest.clone(),
            tier: Tier::Container,
            limits,
            env: env.clone(),
            labels: labels.clone(),
            entrypoint,
            pool: pool.clone(),
            volumes: volumes.clone(),
        };
        let at = now();
        let status = Status::of(State::Creating, None, at);
        let add = |name: ComputerName| {
            let net = Net::new(policy.clone());
            let (parent, steps_dir) = (parent.clone(), steps_dir.clone());
            let known = Known { id, spec: spec(name), created_at: at, parent, steps_dir, last_step: 0, net };
            let (handle, inbox) = Handle::new(known, status.clone());
            self.0.registry.insert(Arc::clone(&handle)).map(|()| (handle, inbox))
        };
        let added = match name {
            Some(name) => add(name.clone()).map_err(|holder| Error::name_taken(&name, holder)),
            None => {
                let seed = id.uuid().as_u64_pair().1;
                let made_up = (0..NAME_ATTEMPTS).map(|attempt| friendly(seed, attempt));
                let last = format!("c-{}", id.short()).parse();
                let free = |name: &ComputerName| self.0.registry.holder(name).is_none();
                let added = made_up.chain(last).filter(free).find_map(|name| add(name).ok());
                added.ok_or_else(|| Error::internal("no free name was found"))
            }
        };
        let (handle, inbox) = added?;
        // It is seen by whoever removes a volume from here on.
        if let Err(gone) = self.0.volumes.stay(&handle.spec().volumes) {
            self.0.registry.remove(&handle);
            return Err(gone);
        }
        seat.keep();
        Ok((handle, inbox))
    }
}

/// Names a computer that is to be made.
pub(crate) fn new_id() -> ComputerId {
    ComputerId::from_uuid(Uuid::now_v7())
}

enum Outcome {
    Made(Box<ComputerView>),
    /// The store knew the key from before a restart.
    Replay(ComputerId),
}

/// The first part of a computer's task: it comes to run, or nothing of it is left.
async fn make(
    inner: Arc<Inner>,
    handle: Arc<Handle>,
    inbox: mpsc::Receiver<Ask>,
    image: Arc<Image>,
    ticket: Option<Ticket>,
    who: String,
    reply: Reply<Outcome>,
) {
    failpoint::hit("create.reserved");
    let id = handle.id;
    handle.base(|| Some(Arc::clone(&image)));
    let row = row_of(&inner, &handle);
    let hash = ticket.as_ref().map(Ticket::hash);
    let asked = ticket.as_ref().zip(hash.as_ref());
    let asked = asked.map(|(ticket, hash)| Idempotency { key: ticket.key(), request_hash: hash });
    let inserted = inner.store.insert_computer(&row, asked, Durability::Power);
    // Queued behind the row, so that the same flush has both.
    let idle = handle.idle.get().map(|idle| inner.store.set_idle(id, Some(idle), Durability::Power));
    let inserted = async {
        let mut inserted = inserted.await;
        if let (Ok(()), Some(idle)) = (&inserted, idle) {
            inserted = idle.await;
        }
        failpoint::hit("create.row");
        inserted
    };
    let (inserted, carried) = tokio::join!(inserted, carry(&inner, &handle, &image));
    let has_row = inserted.is_ok();
    let result = match (inserted, carried) {
        (Ok(()), Ok(machine)) => running(&inner, &handle, machine).await,
        (Ok(()), Err(error)) => Err(error),
        (Err(error), carried) => {
            drop(carried);
            match error {
                StoreError::IdempotencyReplay { computer } => {
                    unmake(&inner, &handle, has_row).await;
                    if let Some(ticket) = ticket {
                        ticket.made(computer);
                    }
                    drop(reply.send(Ok(Outcome::Replay(computer))));
                    return;
                }
                error => Err(error.into()),
            }
        }
    };
    match result {
        Ok(machine) => {
            if let Some(ticket) = ticket {
                ticket.made(id);
            }
            tracing::info!(computer = %id, name = %handle.name(), image = %handle.spec().image, "a computer runs");
            drop(reply.send(Ok(Outcome::Made(Box::new(handle.view())))));
            let image = handle.spec().image.to_string();
            inner.events.tell(EventKind::Created, Some(&handle), Some(&who), json!({ "image": image }));
            if handle.spec().entrypoint {
                start_entrypoint(&inner, &handle, machine);
            }
            task::run(inner, handle, inbox).await;
        }
        Err(error) => {
            unmake(&inner, &handle, has_row).await;
            drop(ticket);
            drop(reply.send(Err(error)));
        }
    }
}

/// The first row of a computer.
pub(crate) fn row_of(inner: &Inner, handle: &Handle) -> Computer {
    Computer {
        id: handle.id,
        spec: (*handle.spec()).clone(),
        state: State::Creating,
        reason: None,
        created_at: handle.created_at,
        changed_at: handle.created_at,
        boot_id: inner.boot_id.clone(),
        net: Some(handle.net.get().text()),
        parent: handle.parent.clone(),
    }
}

/// Disk and processes.
async fn carry(inner: &Inner, handle: &Arc<Handle>, image: &Image) -> Result<Machine, Error> {
    make_disk(inner, handle).await?;
    failpoint::hit("create.disk");
    let machine = boot(inner, handle, image).await?;
    failpoint::hit("create.booted");
    Ok(machine)
}

/// Makes the disk of a computer.
pub(crate) async fn make_disk(inner: &Inner, handle: &Handle) -> Result<(), Error> {
    let (disks, id, limit) = (inner.disks()?, handle.id, handle.limits().disk);
    let hostname = handle.name().to_string();
    blocking(move || {
        let seed = Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() };
        disks.create(id, limit, &seed).map(drop)
    })
    .await??;
    Ok(())
}

/// Lays down the state that a computer was made as from its image.
pub(crate) async fn make_zero(inner: &Inner, handle: &Handle) -> Result<(), Error> {
    let (disks, id, limit) = (inner.disks()?, handle.id, handle.limits().disk);
    let hostname = handle.name().to_string();
    blocking(move || {
        let seed = Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() };
        disks.zero(id, limit, &seed).map(drop)
    })
    .await??;
    Ok(())
}

/// What a computer is booted from.
pub(crate) fn plan<'a>(
    inner: &Inner,
    handle: &'a Handle,
    image: &'a Image,
    disk: &'a Disk,
    counter: Option<&'a str>,
    shared: &'a [Shared],
) -> BootPlan<'a> {
    BootPlan {
        id: handle.id,
        hostname: handle.name().as_str(),
        layers: &image.layers,
        disk: &disk.live,
        limits: handle.limits(),
        pool: inner.pools.cgroup_of(handle.id),
        counter,
        shared,
    }
}

/// The shared volumes that a computer mounts.
///
/// Errors: `volume_not_found` where one is gone.
pub(crate) fn shared(inner: &Inner, handle: &Handle) -> Result<Vec<Shared>, Error> {
    let spec = handle.spec();
    if spec.volumes.is_empty() {
        return Ok(Vec::new());
    }
    inner.volumes.stay(&spec.volumes)?;
    let disks = inner.disks()?;
    let mounts = spec.volumes.iter();
    Ok(mounts.map(|mount| Shared { folder: disks.volume(mount.volume), path: mount.path.clone() }).collect())
}

/// Boots a computer on the disk it has. The gate takes its link up while its agent wakes.
pub(crate) async fn boot(inner: &Inner, handle: &Arc<Handle>, image: &Image) -> Result<Machine, Error> {
    let disk = inner.disks()?.disk(handle.id);
    handle.history.boots();
    let counter = inner.disks()?.counter(handle.id);
    let shared = shared(inner, handle)?;
    let plan = plan(inner, handle, image, &disk, counter.as_deref(), &shared);
    let mut attached = None;
    let booted = inner.machines.boot_with(&plan, |machine| attached = Some(inner.gate.attach(handle, machine))).await;
    match (&booted, attached) {
        (Ok(_), Some(attached)) => attached.await,
        (Err(_), Some(_)) => inner.gate.detach(handle.id).await,
        (_, None) => {}
    }
    Ok(booted?)
}

async fn running(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: Machine) -> Result<Machine, Error> {
    let at = now();
    handle.history.begun(inner, handle).await;
    inner.store.set_state(handle.id, State::Running, None, at, None, Durability::Process).await?;
    inner.late.disk_was_made(handle.id);
    failpoint::hit("create.state");
    handle.status.send_modify(|status| {
        status.state = State::Running;
        status.changed_at = at;
        status.machine = Some(machine.clone());
    });
    Ok(machine)
}

/// Takes back whatever a failed create made. What resists is swept at the next start.
pub(crate) async fn unmake(inner: &Inner, handle: &Arc<Handle>, has_row: bool) {
    let id = handle.id;
    handle.status.send_modify(|status| status.state = State::Removing);
    if let Err(error) = inner.machines.kill(id).await {
        tracing::error!(computer = %id, error = chain(&error), "a computer that was not made may still run");
    }
    inner.gate.detach(id).await;
    if let Ok(disks) = inner.disks()
        && let Err(error) = disks.remove(id)
    {
        tracing::error!(computer = %id, error = chain(&error), "the disk of a computer that was not made is left");
    }
    if has_row && let Err(error) = inner.store.undo_create(id, Durability::Process).await {
        tracing::error!(computer = %id, error = chain(&error), "the row of a computer that was not made is left");
    }
    inner.registry.remove(handle);
    inner.pools.leave(id);
}
