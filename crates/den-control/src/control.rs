//! The house: what it is opened with, what it holds, and the requests that only look.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use den_api::{ComputerView, Page, UsageView, VersionView};
use den_disk::{DiskConfig, Disks, StorageChoice};
use den_image::ImageStore;
use den_machine::{Criu, Machines, MachinesConfig};
use den_model::{Bytes, Cpus, EventKind, Limits, Micros, State};
use den_store::Store;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    Error,
    backup::{self, Backups},
    durable::{self, Late},
    errors::chain,
    events::Events,
    handle::{Ask, Handle},
    history::{House, thaw_all},
    idempotency::Keys,
    limits::{ENDINGS_WAIT, GRACE_DEFAULT, GRACE_MAX, KEEP_WAIT, PAGE_DEFAULT, PAGE_MAX, STEPS_END_WAIT, STOP_MARGIN},
    metrics::Metrics,
    net::{HouseNet, gate, gate::Gate},
    pools::{self, Pools},
    ports, precedence, recover,
    registry::Registry,
    reserve::Reserve,
    trash::{self, Trash},
    volumes::{self, Volumes},
    watch::{self, Watch},
};

/// What a house is opened with. All of it has been checked.
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// Sockets of what runs.
    pub run: PathBuf,
    /// The image store.
    pub images: PathBuf,
    /// Husks that are kept ready.
    pub pool: u32,
    /// Where disks lie.
    pub storage: StorageChoice,
    /// Size of the btrfs image, if one is made.
    pub disk_size: Option<Bytes>,
    /// Limits of computers that name none.
    pub defaults: Limits,
    /// The agent's program.
    pub agent: &'static [u8],
    /// The network of computers that say nothing of it, and the gate.
    pub net: HouseNet,
    /// Automatic states of one computer that are all kept; older ones are thinned. [`crate::limits::STATES_NEWEST`] as a
    /// rule.
    pub keep_states: usize,
    /// How long what is removed lies in the trash; 0: it goes for good at once.
    pub trash_for: Duration,
    /// Whether a step is safe from the end of power before it is answered; else a second later.
    pub sync_steps: bool,
    /// CRIU; looked for in DATA and in PATH where it is not named.
    pub criu: Option<PathBuf>,
}

impl Config {
    /// The limits that fit this host: its CPUs, half of its memory up to 4 GiB, 20 GiB, 4096 processes.
    pub fn default_limits() -> Limits {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let facts = rustix::system::sysinfo();
        let memory = facts.totalram.saturating_mul(u64::from(facts.mem_unit));
        Limits {
            cpus: Cpus((cpus as u32).saturating_mul(1000).min(Cpus::MAX.0)),
            memory: Bytes((memory / 2).min(Bytes::gib(4).0)).max(Limits::MEMORY_MIN),
            disk: Bytes::gib(20),
            pids: 4096,
        }
    }
}

/// Who asks: the name of a token or an interface. It is recorded, and decides nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who(pub String);

/// Which computers to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListComputers {
    /// The `next` of the page before.
    pub after: Option<String>,
    /// How many at most.
    pub limit: Option<usize>,
    /// Only those in this state.
    pub state: Option<State>,
    /// Only those with all of these labels at these values.
    pub labels: Vec<(String, String)>,
}

/// The house. Clones are the same one.
#[derive(Clone)]
pub struct Control(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub data: PathBuf,
    pub defaults: Limits,
    /// Of the kernel: another one means that the host restarted.
    pub boot_id: String,
    /// Sockets of what runs.
    pub run: PathBuf,
    pub metrics: Metrics,
    pub watch: Watch,
    pub store: Store,
    pub events: Arc<Events>,
    pub images: ImageStore,
    pub machines: Machines,
    pub net: HouseNet,
    pub gate: Gate,
    pub history: House,
    pub late: Arc<Late>,
    pub reserve: Reserve,
    disks: RwLock<Option<Disks>>,
    pub registry: Registry<Handle>,
    pub trash: Trash,
    pub backups: Backups,
    pub pools: Arc<Pools>,
    pub volumes: Volumes,
    pub keys: Keys,
    pub tasks: TaskTracker,
    /// What the launcher still unmakes of computers that are gone.
    pub endings: TaskTracker,
    pub closing: AtomicBool,
    /// The CRIU that was named.
    pub criu_named: Option<PathBuf>,
    /// The one that was found, or why none was.
    pub criu: OnceLock<Result<Criu, String>>,
    /// Places for connections to ports inside, of all computers together.
    pub dials: Arc<Semaphore>,
}

/// Mounts disks anew that take no writes any more, for which all that stands on them has to end: what was synced is
/// there then, and nothing else could be written. A daemon that is shut down does so, one that was killed has not.
async fn mount_anew(data: &Path, config: MachinesConfig) -> Result<(), Error> {
    let run = config.run.clone();
    thaw_all(&run);
    let (machines, running) = Machines::connect(config).await?;
    tracing::warn!(
        computers = running.len(),
        "the disks were read-only: what runs is ended, and they are mounted anew"
    );
    for machine in &running {
        machine.kill().await?;
    }
    machines.dismiss().await?;
    let data = data.to_owned();
    blocking(move || {
        gate::end_left(&run).map_err(|error| Error::internal("the gate does not end").because(error))?;
        Ok(Disks::let_go(&data)?)
    })
    .await?
}

impl Inner {
    /// The disks.
    ///
    /// Errors: `shutting_down` once they are let go.
    pub(crate) fn disks(&self) -> Result<Disks, Error> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(Error::shutting_down)
    }

    /// Refuses new work once the house is being closed.
    pub(crate) fn open_for_work(&self) -> Result<(), Error> {
        if self.closing.load(Ordering::Acquire) { Err(Error::shutting_down()) } else { Ok(()) }
    }
}

impl Control {
    /// Opens the house, and takes up what an earlier daemon left: computers that run go on, and what
    /// was half made or half removed is finished or unmade.
    ///
    /// Errors: `store_locked`, `store_newer` and what else the store, the disks, the images or the
    /// launcher meet.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let Config {
            data,
            run,
            images,
            pool,
            storage,
            disk_size,
            defaults,
            agent,
            net,
            keep_states,
            trash_for,
            sync_steps,
            criu,
        } = config;
        let machines = MachinesConfig { run: run.clone(), data: data.clone(), images: images.clone(), pool, agent };
        let opened = data.clone();
        let (store, reserve) = blocking(move || {
            fs_err::create_dir_all(&opened)
                .map_err(|error| Error::new("bad_config", 500, error.to_string()).because(error))?;
            backup::refuse_half(&opened)?;
            // On a full disk the store has no room to be opened in. Who is refused by its lock has let go of nothing
            // but that.
            let reserve = Reserve::open(&opened);
            // From the store's lock on the folder is ours alone.
            let store = match Disks::were_in(&opened) {
                true => Store::open_again(&opened)?,
                false => Store::open(&opened)?,
            };
            Ok::<_, Error>((store, reserve))
        })
        .await??;
        if Disks::are_read_only(&data) {
            mount_anew(&data, machines.clone()).await?;
        }
        let (opened, folder) = (data.clone(), images);
        let (disks, image_store, boot_id, reserve) = blocking(move || {
            let disks = Disks::open(&DiskConfig { data: opened, storage, size: disk_size })?;
            let images = ImageStore::open(&folder)?;
            let boot_id = fs_err::read_to_string("/proc/sys/kernel/random/boot_id")
                .map_err(|error| Error::internal("the kernel has no boot id").because(error))?;
            reserve.take();
            Ok::<_, Error>((disks, images, boot_id.trim().to_owned(), reserve))
        })
        .await??;
        let computers = run.join("computers");
        let gate_run = run.clone();
        // Before anyone asks an agent for anything.
        thaw_all(&run);
        let history = House::new(&run, disks.storage(), keep_states);
        let (machines, running) = match Machines::connect(machines).await {
            Ok(connected) => connected,
            Err(error) => {
                // Nothing was taken up, so the mount of the disks goes again, unless computers of an
                // earlier daemon still stand on it.
                if fs_err::read_dir(&computers).map_or(true, |mut found| found.next().is_none()) {
                    let closed = blocking(move || disks.close()).await?;
                    closed.unwrap_or_else(|error| tracing::warn!(error = chain(&error), "the disks stay mounted"));
                }
                return Err(error.into());
            }
        };
        // After the launcher, which makes the gate's namespace.
        let events = Arc::new(Events::new(&store));
        let (of_launcher, of_gate) = (Arc::clone(&events), Arc::clone(&events));
        machines.on_restart(move || of_launcher.tell(EventKind::LauncherRestarted, None, None, Value::Null));
        let gate = Gate::open(&data, &gate_run, &net, of_gate).await?;
        let pools = Arc::new(Pools::new(store.pools().await?, Arc::clone(&events)));
        let volumes = Volumes::new(store.volumes().await?);
        let control = Self(Arc::new(Inner {
            data,
            defaults,
            boot_id,
            run: gate_run,
            metrics: Metrics::default(),
            watch: Watch::default(),
            events,
            store,
            images: image_store,
            machines,
            net,
            gate,
            history,
            late: Arc::new(Late::new(sync_steps)),
            reserve,
            criu_named: criu,
            criu: OnceLock::new(),
            disks: RwLock::new(Some(disks)),
            registry: Registry::new(),
            trash: Trash::new(trash_for),
            backups: Backups::default(),
            pools,
            volumes,
            keys: Keys::default(),
            tasks: TaskTracker::new(),
            endings: TaskTracker::new(),
            closing: AtomicBool::new(false),
            dials: Arc::new(Semaphore::new(ports::dials_max())),
        }));
        let ran = running.len();
        if let Err(error) = pools::tell_launcher(&control.0).await {
            tracing::error!(error = error.chain(), "the kernel may hold pools to other limits than they have");
        }
        volumes::sweep(&control.0).await?;
        recover::take_up(&control.0, running).await?;
        control.end_explorations();
        control.0.tasks.spawn(trash::look_after(Arc::clone(&control.0)));
        let known = control.0.registry.all().len();
        let detail = json!({ "version": env!("CARGO_PKG_VERSION"), "computers": known, "running": ran });
        control.0.events.tell(EventKind::DaemonStarted, None, None, detail);
        tokio::spawn(watch::run(Arc::downgrade(&control.0)));
        tokio::spawn(precedence::run(Arc::downgrade(&control.0)));
        tokio::spawn(durable::run(Arc::clone(&control.0.late), Arc::downgrade(&control.0)));
        tokio::spawn(durable::write_disks(Arc::clone(&control.0.late), Arc::downgrade(&control.0)));
        // The first computer shall not find it starting. Without one, all goes on, and nothing leaves.
        control.0.gate.settled().await;
        Ok(control)
    }

    /// One computer, with what it uses while it runs. `memory`: and with what can be done with its memory, for which
    /// all that runs inside is looked at.
    ///
    /// Errors: `computer_not_found`, `ambiguous_id`.
    pub async fn get(&self, computer: &str, memory: bool) -> Result<ComputerView, Error> {
        let handle = self.0.registry.find_any(computer)?;
        let mut view = handle.view();
        if memory {
            view.memory_state = self.memory(&handle).await;
        }
        if view.state == State::Running {
            match self.0.machines.usage(handle.id).await {
                Ok(usage) => {
                    view.usage = Some(UsageView {
                        cpu_us: usage.cpu_us,
                        memory_bytes: usage.memory_bytes,
                        disk_bytes: self.0.disks()?.usage(handle.id).map(|bytes| bytes.0),
                        pids: usage.pids,
                        oom_kills: usage.oom_kills,
                    });
                }
                // It may have ended in between.
                Err(error) => tracing::debug!(computer = %handle.id, error = chain(&error), "no usage is known"),
            }
        }
        Ok(view)
    }

    /// A page of computers, the oldest first.
    ///
    /// Errors: `bad_request` for a limit or a place that makes no sense.
    pub async fn list(&self, list: ListComputers) -> Result<Page<ComputerView>, Error> {
        let ListComputers { after, limit, state, labels } = list;
        let after = after.map(|text| text.parse()).transpose();
        let after = after.map_err(|error| Error::bad_request(format!("`after`: {error}")))?;
        let limit = page_limit(limit)?;
        let (page, more) = self.0.registry.page(after, limit, |handle| {
            state.map_or(handle.state() != State::Trashed, |state| state == handle.state())
                && labels.iter().all(|(key, value)| handle.spec().labels.get(key) == Some(value))
        });
        let next = page.last().filter(|_| more).map(|last| last.id.to_string());
        Ok(Page { items: page.iter().map(|handle| handle.view()).collect(), next })
    }

    /// Who answers.
    pub async fn version(&self) -> VersionView {
        let storage = self.0.disks().map_or("none".to_owned(), |disks| disks.storage().to_string());
        let husks = match self.0.closing.load(Ordering::Acquire) {
            true => 0, // The launcher is going, or gone.
            false => self.0.machines.husks().await.unwrap_or_else(|error| {
                tracing::warn!(error = chain(&error), "the launcher does not say how many husks it has");
                0
            }),
        };
        VersionView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: 1,
            data: self.0.data.display().to_string(),
            storage,
            husks,
        }
    }

    /// Stops every computer, ends the gate and the launcher and lets go of the disks. Requests are refused from
    /// the moment this begins. May be repeated.
    ///
    /// Errors: `bad_request` for a grace beyond ten minutes; what the launcher or the disks meet.
    pub async fn shutdown(&self, grace: Option<Duration>) -> Result<(), Error> {
        let grace = check_grace(grace)?;
        self.0.closing.store(true, Ordering::Release);
        self.0.backups.stop();
        let stops = self.0.registry.all().into_iter().map(|handle| async move {
            let mut status = handle.status.subscribe();
            if matches!(handle.state(), State::Creating | State::Starting) {
                let settled = |state| !matches!(state, State::Creating | State::Starting);
                let _ = status.wait_for(|status| settled(status.state)).await;
            }
            // One that is not running refuses, and is what it should be.
            let who = "shutdown".to_owned();
            let _ = handle.ask(|reply| Ask::Stop { grace, who, reply }).await;
            // One that is being removed ends the same way, or resists and is swept by the next start.
            let gone = status.wait_for(|status| status.machine.is_none());
            let _ = tokio::time::timeout(grace + STOP_MARGIN + STEPS_END_WAIT, gone).await;
        });
        join_all(stops).await;
        self.0.backups.ended().await;
        self.0.tasks.close();
        self.0.endings.close();
        let _ = tokio::time::timeout(ENDINGS_WAIT, self.0.endings.wait()).await;
        self.0.events.tell(EventKind::DaemonEnded, None, None, Value::Null);
        self.0.events.close().await;
        // Before its namespace goes, and before the disks do that its records lie on.
        self.0.gate.exit().await;
        self.0.machines.exit().await?;
        // What is still being kept or compared has the disks open.
        for handle in self.0.registry.all() {
            handle.history.close().await;
        }
        self.0.volumes.close().await;
        self.0.history.work.close();
        let _ = tokio::time::timeout(KEEP_WAIT, self.0.history.work.wait()).await;
        durable::make_safe(&self.0).await;
        let disks = self.0.disks.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(disks) = disks {
            blocking(move || disks.close()).await??;
        }
        Ok(())
    }
}

/// Runs what blocks for longer than a system call.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal("a task panicked").because(error))
}

/// Microseconds since the epoch.
pub(crate) fn now() -> Micros {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as Micros)
}

pub(crate) fn page_limit(limit: Option<usize>) -> Result<usize, Error> {
    match limit {
        None => Ok(PAGE_DEFAULT),
        Some(limit @ 1..=PAGE_MAX) => Ok(limit),
        Some(limit) => Err(Error::bad_request(format!("`limit`: {limit} is not from 1 to {PAGE_MAX}"))),
    }
}

pub(crate) fn check_grace(grace: Option<Duration>) -> Result<Duration, Error> {
    match grace {
        None => Ok(GRACE_DEFAULT),
        Some(grace) if grace <= GRACE_MAX => Ok(grace),
        Some(_) => Err(Error::bad_request(format!("`grace_ms`: more than {} s", GRACE_MAX.as_secs()))),
    }
}
