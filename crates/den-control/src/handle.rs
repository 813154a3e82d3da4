//! What the rest of the program holds of a computer: its spec, its state as its task last said,
//! the way to its task, and its steps.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use den_api::{ComputerView, RestoreView, VolumeMountView};
use den_image::Image;
use den_machine::Machine;
use den_model::{
    ComputerId, ComputerName, ComputerSpec, Limits, Micros, Parent, Request, Sleep, State, StateName, VolumeMount,
};
use minicbor::bytes::ByteVec;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    Error,
    history::{History, fork::parent_view},
    life::{By, Copy, Doors, IdleCell, Stand, Transfers},
    limits::{DIALS_MAX, MAILBOX_MAX},
    net::{ADDRESS, Net, NetCell},
    registry::Entry,
    resize::Size,
    services::Services,
    steps::Steps,
    trash::{Removal, Undelete},
};

/// What every computer of this tier can do.
const CAPABILITIES: [&str; 9] = ["exec", "pty", "stdin", "attach", "signal", "files", "watch", "tar", "pause"];

/// One computer, for as long as it has a row.
pub(crate) struct Handle {
    pub id: ComputerId,
    name: ComputerName,
    spec: RwLock<Arc<ComputerSpec>>,
    pub created_at: Micros,
    /// Where it was forked from.
    pub parent: Option<Parent>,
    pub status: watch::Sender<Status>,
    pub mailbox: mpsc::Sender<Ask>,
    pub steps: Steps,
    /// What it keeps running.
    pub services: Services,
    /// Its states.
    pub history: History,
    /// What it may reach.
    pub net: NetCell,
    /// Places for connections to ports inside.
    pub dials: Arc<Semaphore>,
    /// Who is at it, and who wakes it.
    pub doors: Doors,
    /// Whether it stands still.
    pub stand: Stand,
    /// When it sleeps by itself.
    pub idle: IdleCell,
    base: OnceLock<Arc<Base>>,
}

/// What a computer is made known with.
pub(crate) struct Known {
    pub id: ComputerId,
    pub spec: ComputerSpec,
    pub created_at: Micros,
    pub parent: Option<Parent>,
    /// Where the output of its steps lies.
    pub steps_dir: PathBuf,
    /// The number of the last of them.
    pub last_step: u64,
    pub net: Net,
}

/// Where a computer stands.
#[derive(Clone)]
pub(crate) struct Status {
    pub state: State,
    pub reason: Option<String>,
    pub changed_at: Micros,
    /// There while it runs, and while it is being ended.
    pub machine: Option<Machine>,
    /// While its disk is put back to a state: which.
    pub restoring: Option<StateName>,
    /// It sleeps because nobody used it, and a request wakes it.
    pub asleep: bool,
    /// Nothing gets in: it is unplugged, or about to be.
    pub cut: bool,
    /// Where it stood when it was unplugged.
    pub before: Option<State>,
}

impl Status {
    /// One that has no processes.
    pub(crate) fn of(state: State, reason: Option<String>, changed_at: Micros) -> Self {
        let (machine, restoring, before) = (None, None, None);
        Self { state, reason, changed_at, machine, restoring, asleep: false, cut: false, before }
    }
}

/// What the task of a computer is asked.
pub(crate) enum Ask {
    Start {
        who: String,
        reply: Reply<()>,
    },
    Stop {
        grace: Duration,
        who: String,
        reply: Reply<()>,
    },
    Remove {
        removal: Removal,
        who: String,
        reply: Reply<()>,
    },
    Empty {
        why: &'static str,
        who: Option<String>,
        reply: Reply<()>,
    },
    Undelete {
        undelete: Undelete,
        reply: Reply<ComputerView>,
    },
    Restore {
        state: StateName,
        who: String,
        takes_back: Option<u64>,
        reply: Reply<RestoreView>,
    },
    Resize {
        size: Size,
        who: String,
        reply: Reply<()>,
    },
    Hibernate {
        who: String,
        reply: Reply<()>,
    },
    /// What runs of it, for forks.
    Copy {
        who: String,
        transfers: Transfers,
        reply: Reply<Copy>,
    },
    Pause {
        by: By,
        reply: Reply<()>,
    },
    Resume {
        by: By,
        reply: Reply<()>,
    },
    Unplug {
        who: String,
        reply: Reply<()>,
    },
    Replug {
        who: String,
        reply: Reply<()>,
    },
    /// A request came for it.
    Wake {
        reply: Reply<()>,
    },
    /// Nobody has used it since `since`.
    Doze {
        since: Micros,
        then: Sleep,
    },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the image and the spec give to every command.
pub(crate) struct Base {
    pub env: Vec<ByteVec>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    /// The image's own command.
    pub command: Vec<String>,
}

impl Base {
    pub(crate) fn new(image: &Image, spec: &ComputerSpec) -> Self {
        let config = &image.config;
        let own = spec.env.iter().map(|(key, value)| format!("{key}={value}"));
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Self {
            env: config.env.iter().cloned().chain(own).map(|text| ByteVec::from(text.into_bytes())).collect(),
            cwd: some(&config.working_dir),
            user: some(&config.user),
            command: [&config.entrypoint[..], &config.cmd].concat(),
        }
    }
}

impl Entry for Handle {
    fn id(&self) -> ComputerId {
        self.id
    }
    fn name(&self) -> &ComputerName {
        &self.name
    }
}

impl Handle {
    /// A computer and the inbox for its task.
    pub(crate) fn new(known: Known, status: Status) -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let Known { id, spec, created_at, parent, steps_dir, last_step, net } = known;
        let (mailbox, inbox) = mpsc::channel(MAILBOX_MAX);
        let (status, _) = watch::channel(status);
        let steps = Steps::new(steps_dir, last_step);
        let dials = Arc::new(Semaphore::new(DIALS_MAX));
        let net = NetCell::new(net);
        let (history, services, base) = (History::new(), Services::default(), OnceLock::new());
        let (doors, stand, idle) = (Doors::new(), Stand::default(), IdleCell::default());
        let handle = Self {
            id,
            name: spec.name.clone(),
            spec: RwLock::new(Arc::new(spec)),
            created_at,
            parent,
            status,
            mailbox,
            steps,
            services,
            history,
            net,
            dials,
            doors,
            stand,
            idle,
            base,
        };
        (Arc::new(handle), inbox)
    }

    pub(crate) fn name(&self) -> &ComputerName {
        &self.name
    }

    /// What it was made from, with the size that it has now.
    pub(crate) fn spec(&self) -> Arc<ComputerSpec> {
        Arc::clone(&self.spec.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What it may use.
    pub(crate) fn limits(&self) -> Limits {
        self.spec.read().unwrap_or_else(PoisonError::into_inner).limits
    }

    /// It may use this from now on. Only its task says so, with the row.
    pub(crate) fn resized(&self, limits: Limits) {
        let mut spec = self.spec.write().unwrap_or_else(PoisonError::into_inner);
        *spec = Arc::new(ComputerSpec { limits, ..(**spec).clone() });
    }

    pub(crate) fn state(&self) -> State {
        self.status.borrow().state
    }

    /// Lets a command or a file operation in where the computer runs; [`Handle::awake`] wakes it for it.
    ///
    /// Errors: `computer_stopped`, `wrong_state`, `unplugged`, `computer_not_found`.
    pub(crate) fn admit(&self) -> Result<Machine, Error> {
        let status = self.status.borrow();
        if status.cut {
            return Err(Error::unplugged(self.name()));
        }
        status.state.ask(Request::Use).map_err(|refused| match &status.restoring {
            Some(state) => Error::restoring(self.name(), state),
            None => Error::refused(self.name(), refused),
        })?;
        status.machine.clone().ok_or_else(|| Error::internal(format!("`{}` runs without a machine", self.name())))
    }

    /// Asks the task and waits for its answer.
    pub(crate) async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::computer_not_found(self.name().as_str());
        self.mailbox.send(ask(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Tells why the agent did not do something: where the computer has ended meanwhile, that.
    pub(crate) fn link_error(&self, error: den_machine::LinkError) -> Error {
        let told = Error::link(self.name(), error);
        if told.code != "agent_lost" {
            return told;
        }
        match self.admit() {
            Err(stopped) => stopped,
            Ok(_) => told,
        }
    }

    /// What commands are given; made once.
    pub(crate) fn base(&self, image: impl FnOnce() -> Option<Arc<Image>>) -> Arc<Base> {
        Arc::clone(self.base.get_or_init(|| match image() {
            Some(image) => Arc::new(Base::new(&image, &self.spec())),
            None => {
                let spec = self.spec();
                tracing::warn!(computer = %self.id, digest = %spec.image_digest, "the image is gone: its environment is left out");
                let env = spec.env.iter().map(|(key, value)| ByteVec::from(format!("{key}={value}").into_bytes()));
                Arc::new(Base { env: env.collect(), cwd: None, user: None, command: Vec::new() })
            }
        }))
    }

    pub(crate) fn view(&self) -> ComputerView {
        let Status { state, reason, changed_at, asleep, .. } = self.status.borrow().clone();
        let spec = self.spec();
        ComputerView {
            id: self.id,
            name: spec.name.to_string(),
            state,
            reason,
            image: spec.image.to_string(),
            image_digest: spec.image_digest.clone(),
            tier: spec.tier,
            cpus: spec.limits.cpus,
            memory: spec.limits.memory,
            disk: spec.limits.disk,
            pids: spec.limits.pids,
            env: spec.env.clone(),
            labels: spec.labels.clone(),
            pool: spec.pool.to_string(),
            entrypoint: spec.entrypoint,
            parent: self.parent.as_ref().map(parent_view),
            created_at: self.created_at,
            changed_at,
            last_step: self.steps.last(),
            net: self.net.get().policy.posture.to_string(),
            address: ADDRESS.to_owned(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            idle: self.idle.get().map(|idle| idle.to_string()),
            asleep: matches!(state, State::Paused | State::Stopped) && asleep,
            usage: None,
            memory_state: None,
            volumes: spec.volumes.iter().map(mount_view).collect(),
        }
    }
}

fn mount_view(VolumeMount { volume, name, path }: &VolumeMount) -> VolumeMountView {
    VolumeMountView { volume: volume.to_string(), name: name.to_string(), path: path.clone() }
}
