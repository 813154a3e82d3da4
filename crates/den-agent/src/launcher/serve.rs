//! The launcher's loop: requests in, cells through their phases.

mod herd;
mod revived;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use den_sys::cgroup::Cgroups;
use den_sys::mount::{self, Access, Detached, LayersBy, OverlayPlan};
use den_sys::seccomp::Filters;
use den_sys::{SysError, cgroup, clone, failpoint, socket};
use den_wire::launcher::{Create, PACKET_BYTES_MAX, Reply, Request, Usage};
use rustix::event::epoll;
use rustix::net::SocketType;

use super::Settings;
use super::builder::{self, Builder, News, Order, Tools};
use super::cell::{self, Cell, Parts, Phase, Record, Sequences, Slots};
use super::husk::{self, Take};
use super::ids::ids;
use super::net::GateNet;
use super::pools::Herds;
use super::shown::Shown;

/// Husks that are kept ready until `serve` says otherwise.
const POOL_DEFAULT: u32 = 0;
/// Quiet time after a create before husks are made again, so that a series of creates is not held
/// up by refilling behind each of them. Below a quarter of the pool it is not waited for.
const REFILL_AFTER: Duration = Duration::from_millis(30);
/// Time between two tries after a husk could not be made.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Creates that wait for a husk, at most.
const WAITING_MAX: usize = 4096;
/// Husks that are ordered at once: the builder goes on while the loop is at something else.
const BUILDS_AHEAD: u32 = 2;

const LISTENER: u64 = 0;
const CLIENT: u64 = 1 << 56;
const SOCKET: u64 = 2 << 56;
const PROCESS: u64 = 3 << 56;
const BUILDER: u64 = 4 << 56;
const KIND: u64 = 0xff << 56;

pub(super) struct Launcher {
    run: PathBuf,
    epoll: OwnedFd,
    listener: OwnedFd,
    tools: Tools,
    builder: Builder,
    layers_by: LayersBy,
    shown: Shown,
    slots: Slots,
    sequences: Sequences,
    cells: HashMap<u64, Cell>,
    by_id: HashMap<String, u64>,
    herds: Herds,
    waiting: VecDeque<(u64, Create)>,
    clients: HashMap<u64, OwnedFd>,
    /// Clients that did not take the whole list of computers at once, and what is still to come.
    introducing: HashMap<u64, Vec<u64>>,
    /// Places for computers that are being read back from a disk, by id.
    reserved: HashMap<String, revived::Reserved>,
    next_client: u64,
    pool: u32,
    last_create: Instant,
    last_failure: Option<Instant>,
    exit: Option<u64>,
    _lock: fs::File,
}

impl Launcher {
    /// Takes this RUN; `None` if another launcher has it.
    pub(super) fn open(settings: Settings) -> Result<Option<Self>, SysError> {
        let run = settings.run;
        let _ = rustix::process::setsid(); // Fails only where it leads a session already.
        rustix::process::umask(rustix::fs::Mode::empty());
        let lock_path = run.join("launcher.lock");
        let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|error| SysError::io("open", &lock_path, &error))?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let pid_path = run.join("launcher.pid");
        fs::write(&pid_path, std::process::id().to_string()).map_err(|e| SysError::io("write", &pid_path, &e))?;
        let lock_of_builder = Tools::lock(&run)?;
        let instance = cgroup::instance_of(&run);
        let cgroups = Cgroups::open(&instance)?;
        let net = GateNet::open(&run.join("gate.netns"))?;
        let slots = Slots::open(&run)?;
        let sequences = Sequences::open(&run);
        let listener = socket::listen(&run.join("launcher.sock"), SocketType::SEQPACKET, 512)?;
        rustix::io::ioctl_fionbio(&listener, true).map_err(SysError::rustix("ioctl(FIONBIO)", "listener"))?;

        // Husks attach their root to the working directory. They cannot walk there, but they stand
        // in it.
        let stage = run.join("root");
        fs::create_dir_all(&stage).map_err(|error| SysError::io("mkdir", &stage, &error))?;
        rustix::fs::chmod(&stage, rustix::fs::Mode::from_raw_mode(0o755))
            .map_err(SysError::rustix("chmod", stage.display()))?;
        let keep: Vec<PathBuf> =
            settings.keep.iter().map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
        // Devices of its own are all that a Den inside a computer can give to those in it.
        let nested = den_sys::creds::ids_here() != u32::MAX;
        mount::own_namespace(|point| {
            point == Path::new("/proc")
                || nested && point.starts_with("/dev")
                || point == Path::new("/sys")
                || keep.iter().any(|path| path.starts_with(point) || point.starts_with(path))
        })?;
        rustix::process::chdir(&stage).map_err(SysError::rustix("chdir", stage.display()))?;

        let layers = run.join("layers");
        fs::create_dir_all(&layers).map_err(|error| SysError::io("mkdir", &layers, &error))?;
        let layers_by = match std::env::var("DEN_LAYERS_BY").as_deref() {
            Ok("path") => LayersBy::Path,
            _ => LayersBy::Descriptor,
        };

        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(SysError::rustix("epoll_create1", ""))?;
        let mut launcher = Self {
            run,
            epoll,
            listener,
            tools: Tools { cgroups, net, filters: Filters::of_a_computer(), lock: lock_of_builder },
            builder: Builder::new(),
            layers_by,
            shown: Shown::default(),
            slots,
            sequences,
            cells: HashMap::new(),
            by_id: HashMap::new(),
            herds: Herds::new(),
            waiting: VecDeque::new(),
            clients: HashMap::new(),
            introducing: HashMap::new(),
            reserved: HashMap::new(),
            next_client: 1,
            pool: POOL_DEFAULT,
            last_create: Instant::now(),
            last_failure: None,
            exit: None,
            _lock: lock,
        };
        watch(&launcher.epoll, &launcher.listener, LISTENER)?;
        launcher.adopt()?;
        Ok(Some(launcher))
    }

    /// Takes up the computers of the launcher before this one, and ends what else it left.
    fn adopt(&mut self) -> Result<(), SysError> {
        let homes = self.run.join("computers");
        fs::create_dir_all(&homes).map_err(|error| SysError::io("mkdir", &homes, &error))?;
        for entry in fs::read_dir(&homes).map_err(|error| SysError::io("readdir", &homes, &error))?.flatten() {
            let home = entry.path();
            let Some(id) = home.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
            let alive = Record::read(&home)
                .filter(|record| cell::started(record.pid) == Some(record.started))
                .and_then(|record| clone::pidfd(record.pid).ok().map(|pidfd| (record, pidfd)));
            let Some((record, pidfd)) = alive else {
                cell::remove_home(&home);
                continue;
            };
            watch(&self.epoll, &pidfd, PROCESS | record.sequence)?;
            self.slots.claim(record.slot);
            self.sequences.seen(record.sequence);
            self.by_id.insert(id.clone(), record.sequence);
            let Record { pid, sequence, slot, pool, cpu_milli, .. } = record;
            let held_to = || self.tools.cgroups.cpu_limit(&cell::cgroup_name(pool, sequence)).unwrap_or(1000);
            let cpu_milli = cpu_milli.unwrap_or_else(held_to);
            let phase = Phase::Running { id, waiting: Vec::new() };
            self.cells.insert(sequence, Cell { sequence, pool, cpu_milli, slot: Some(slot), pid, pidfd, phase });
            self.herds.of(pool).computers += 1;
        }
        for name in self.tools.cgroups.list() {
            match (cell::parse_cgroup_name(&name), cell::parse_pool_name(&name)) {
                (Some(sequence), _) => self.adopt_cgroup(0, sequence),
                (_, Some(pool)) => {
                    self.herds.of(pool).made = true;
                    let inside = self.tools.cgroups.list_in(&name);
                    let cells: Vec<u64> = inside.iter().filter_map(|name| cell::parse_cgroup_name(name)).collect();
                    cells.into_iter().for_each(|sequence| self.adopt_cgroup(pool, sequence));
                }
                _ => builder::remove_cgroup(&self.tools.cgroups, &name),
            }
        }
        Ok(())
    }

    /// The cgroup of a cell: what has no computer in it goes.
    fn adopt_cgroup(&mut self, pool: u64, sequence: u64) {
        self.sequences.seen(sequence);
        if !self.cells.contains_key(&sequence) {
            self.tools.cgroups.kill(&cell::cgroup_name(pool, sequence));
            self.builder.order(Order::Unmake { sequence, slot: None, pool });
        }
    }

    /// Serves until it is told to exit.
    pub(super) fn run(&mut self) -> Result<(), SysError> {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = [self.refill(), self.tend()].into_iter().flatten().min();
            let timeout = timeout
                .map(|t| rustix::event::Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(SysError::new("epoll_wait", "", errno.raw_os_error())),
            }
            for event in &events {
                let event: &epoll::Event = event;
                let token = event.data.u64();
                let subject = token & !KIND;
                match token & KIND {
                    CLIENT => self.on_client(subject),
                    SOCKET => self.on_husk(subject),
                    PROCESS => self.on_end(subject),
                    BUILDER => self.on_builder(),
                    _ => self.on_listener(),
                }
            }
            if let Some(client) = self.exit
                && self.cells.is_empty()
                && self.builder.is_idle()
            {
                let _ = fs::remove_file(self.run.join("launcher.sock"));
                let _ = fs::remove_file(self.run.join("launcher.pid"));
                self.answer(client, &Reply::Done, None);
                return Ok(());
            }
        }
    }

    /// Sends the builder what it can take; returns how long the loop may sleep.
    fn tend(&mut self) -> Option<Duration> {
        self.builder.tend(&self.tools, |socket| watch(&self.epoll, socket, BUILDER))
    }

    fn on_builder(&mut self) {
        while let Some(news) = self.builder.news() {
            match news {
                News::Built { sequence, slot, pool, pid, pidfd, parts } => {
                    failpoint::hit("launcher.husk");
                    self.last_failure = None;
                    let watched = watch(&self.epoll, &parts.socket, SOCKET | sequence)
                        .and_then(|()| watch(&self.epoll, &pidfd, PROCESS | sequence))
                        .and_then(|()| self.pool_is_made(pool));
                    if watched.is_err() || self.exit.is_some() || self.herds.of(pool).leaving {
                        let _ = clone::kill(&pidfd);
                    }
                    if let Err(error) = watched {
                        self.builder.order(Order::Unmake { sequence, slot: Some(slot), pool });
                        self.not_built(pool, &error);
                        continue;
                    }
                    self.herds.of(pool).building += 1;
                    let phase = Phase::Building(parts);
                    let cell = Cell { sequence, pool, cpu_milli: 0, slot: Some(slot), pid, pidfd, phase };
                    self.cells.insert(sequence, cell);
                }
                News::Failed { slot, pool, error } => {
                    self.slots.give(slot);
                    self.not_built(pool, &error);
                    self.let_go(pool);
                }
                News::Unmade { slot } => {
                    if let Some(slot) = slot {
                        self.slots.give(slot);
                    }
                }
                News::Died => eprintln!("warning: the builder died; there will be another"),
            }
        }
        // Helpers, husks that came to nothing, builders.
        clone::reap_ended();
    }

    fn on_listener(&mut self) {
        while let Ok(Some(connection)) = socket::accept(self.listener.as_fd()) {
            let client = self.next_client;
            self.next_client += 1;
            let quiet = rustix::io::ioctl_fionbio(&connection, true).is_ok();
            if quiet && watch(&self.epoll, &connection, CLIENT | client).is_ok() {
                self.clients.insert(client, connection);
            }
        }
    }

    fn on_client(&mut self, client: u64) {
        if let Some(rest) = self.introducing.remove(&client) {
            self.introduce_rest(client, rest);
        }
        let Some(connection) = self.clients.get(&client) else { return };
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let length = match socket::receive(connection, &mut packet, &mut Vec::new()) {
            Ok(0) => 0,
            Ok(length) => length,
            Err(error) if error.errno == rustix::io::Errno::AGAIN.raw_os_error() => return,
            Err(_) => 0,
        };
        if length == 0 {
            self.clients.remove(&client);
            self.introducing.remove(&client);
            self.abandon(client);
            self.waiting.retain(|(waiting, _)| *waiting != client);
            if self.clients.is_empty() {
                self.thaw();
            }
            return;
        }
        match minicbor::decode(&packet[..length]) {
            Ok(request) => self.on_request(client, request),
            Err(_) => self.refuse(client, &SysError::new("request", "unknown", 0)),
        }
    }

    /// The daemon is gone, and with it whoever would have let go on what it had stopped for a snapshot.
    fn thaw(&self) {
        for cell in self.cells.values() {
            if let Phase::Running { id, .. } = &cell.phase
                && !cell::stands_still(&self.run.join("computers").join(id))
            {
                self.tools.cgroups.thaw(&cell.cgroup());
            }
        }
    }

    fn on_request(&mut self, client: u64, request: Request) {
        match request {
            Request::Hello { .. } => self.introduce(client),
            Request::Husks => _ = self.answer(client, &self.hello(), None),
            Request::Create(create) | Request::CreateSharing(create) => {
                self.last_create = Instant::now();
                if self.exit.is_some() {
                    self.refuse(client, &SysError::new("create", "the launcher is ending", 0));
                } else if self.by_id.contains_key(&create.id) || self.waiting.iter().any(|(_, c)| c.id == create.id) {
                    self.refuse(
                        client,
                        &SysError::new("create", "runs already", rustix::io::Errno::EXIST.raw_os_error()),
                    );
                } else if self.waiting.len() >= WAITING_MAX {
                    self.refuse(
                        client,
                        &SysError::new("create", "too many wait", rustix::io::Errno::AGAIN.raw_os_error()),
                    );
                } else if let Some(sequence) = self.herds.of(create.pool).parked.pop_front() {
                    self.boot(sequence, client, create, true);
                } else {
                    self.waiting.push_back((client, create));
                }
            }
            Request::Kill { id } => match self.by_id.get(&id).and_then(|sequence| self.cells.get_mut(sequence)) {
                None => {
                    self.waiting.retain(|(_, create)| create.id != id);
                    self.answer(client, &Reply::Done, None);
                }
                Some(cell) => {
                    failpoint::hit("launcher.kill");
                    let _ = clone::kill(&cell.pidfd);
                    match &mut cell.phase {
                        Phase::Running { waiting, .. } => waiting.push(client),
                        // Its create is answered by its end; who asks again is answered at once.
                        _ => self.refuse(
                            client,
                            &SysError::new("kill", "still booting", rustix::io::Errno::AGAIN.raw_os_error()),
                        ),
                    }
                }
            },
            Request::SetLimits { id, limits } => {
                let done = self.set_limits(&id, limits);
                self.done_or_not(client, done);
            }
            Request::Pools { pools } => {
                let done = self.hold_pools(&pools);
                self.done_or_not(client, done);
            }
            Request::Reserve { id, pool } => self.reserve(client, id, pool),
            Request::Taken { id, pid, cpu_milli } => self.take(client, &id, pid as i32, cpu_milli),
            Request::Pool { target } => {
                self.pool = target.min(ids().slots / 2);
                self.last_create = Instant::now() - REFILL_AFTER;
                self.trim();
                self.answer(client, &Reply::Done, None);
            }
            Request::Usage { id } => match self.cell_of(&id) {
                Ok(cell) => {
                    let usage = self.tools.cgroups.usage(&cell.cgroup());
                    let usage = Usage {
                        cpu_us: usage.cpu_us,
                        memory_bytes: usage.memory_bytes,
                        pids: usage.pids,
                        oom_kills: usage.oom_kills,
                    };
                    self.answer(client, &Reply::Usage(usage), None);
                }
                Err(error) => self.refuse(client, &error),
            },
            Request::Exit => {
                if !self.by_id.is_empty() || !self.waiting.is_empty() || !self.reserved.is_empty() {
                    let busy = rustix::io::Errno::BUSY.raw_os_error();
                    self.refuse(client, &SysError::new("exit", format!("{} computers run", self.by_id.len()), busy));
                    return;
                }
                self.exit = Some(client);
                let husks: Vec<u64> = self.cells.keys().copied().collect();
                for sequence in husks {
                    self.end_husk(sequence);
                }
            }
        }
    }

    fn hello(&self) -> Reply {
        Reply::Hello { version: den_wire::VERSION, pid: std::process::id(), husks: self.herds.parked() as u32 }
    }

    fn introduce(&mut self, client: u64) {
        self.answer(client, &self.hello(), None);
        self.introduce_rest(client, self.by_id.values().copied().collect());
    }

    /// Says what runs, until the client's socket is full: then again when it is not.
    fn introduce_rest(&mut self, client: u64, mut rest: Vec<u64>) {
        use epoll::EventFlags as Flags;
        while let Some(sequence) = rest.last() {
            if let Some(cell) = self.cells.get(sequence)
                && let Some(id) = cell.computer()
            {
                let (pid, link, pool) = (cell.pid as u32, cell.sequence, cell.pool);
                let running = Reply::Running { id: id.to_owned(), pid, link, pool };
                if !self.answer(client, &running, Some(&cell.pidfd)) {
                    break;
                }
            }
            rest.pop();
        }
        let done = rest.is_empty() && self.answer(client, &Reply::Done, None);
        let Some(connection) = self.clients.get(&client) else { return };
        let more = if done { Flags::empty() } else { Flags::OUT };
        let token = epoll::EventData::new_u64(CLIENT | client);
        let _ = epoll::modify(&self.epoll, connection, token, Flags::IN | Flags::RDHUP | more);
        if !done {
            self.introducing.insert(client, rest);
        }
    }

    fn cell_of(&self, id: &str) -> Result<&Cell, SysError> {
        let cell = self.by_id.get(id).and_then(|sequence| self.cells.get(sequence));
        cell.ok_or(SysError::new("computer", id, rustix::io::Errno::SRCH.raw_os_error()))
    }

    /// Puts an image into a parked husk.
    fn boot(&mut self, sequence: u64, client: u64, create: Create, pooled: bool) {
        let Some(cell) = self.cells.get_mut(&sequence) else { return };
        let Phase::Parked(parts) =
            std::mem::replace(&mut cell.phase, Phase::Running { id: create.id.clone(), waiting: Vec::new() })
        else {
            unreachable!("only parked husks are in the queue")
        };
        let pool = cell.pool;
        cell.cpu_milli = create.limits.cpu_milli;
        self.by_id.insert(create.id.clone(), sequence);
        self.herds.of(pool).computers += 1;
        match self.give_image(sequence, &parts, &create) {
            Ok(()) => {
                failpoint::hit("launcher.taken");
                let cell = self.cells.get_mut(&sequence).expect("it was there above");
                cell.phase = Phase::Booting { socket: parts.socket, id: create.id, client, pooled };
            }
            Err(error) => {
                self.refuse(client, &error);
                self.by_id.remove(&create.id);
                cell::remove_home(Path::new(&create.run));
                let cell = self.cells.get_mut(&sequence).expect("it was there above");
                // Of no use any more: part of the image may have reached it.
                let _ = clone::kill(&cell.pidfd);
                cell.phase = Phase::Building(parts);
                let herd = self.herds.of(pool);
                (herd.building, herd.computers) = (herd.building + 1, herd.computers - 1);
            }
        }
    }

    fn give_image(&mut self, sequence: u64, parts: &Parts, create: &Create) -> Result<(), SysError> {
        let cell = &self.cells[&sequence];
        let slot = cell.slot.unwrap_or(0);
        let base = self.slots.base(slot);
        let (pool, cpu_milli) = (cell.pool, Some(cell.cpu_milli));
        self.limit(cell, &create.limits)?;
        let layers: Vec<&Path> = create.layers.iter().map(Path::new).collect();
        let disk = Path::new(&create.disk);
        let plan = OverlayPlan {
            lower: &layers,
            writable: disk,
            idmap: parts.namespace.as_fd(),
            base,
            stage: &self.run.join("layers"),
        };
        let root = match mount::overlay(&plan, self.layers_by) {
            // Before Linux 6.15 an overlay takes no detached layers (EINVAL) or fsconfig none of
            // their descriptors (EBADF: they are O_PATH), before 6.5 it takes no descriptors at all
            // (EOPNOTSUPP). Tried once, then remembered.
            Err(error) if self.layers_by == LayersBy::Descriptor && takes_no_descriptors(&error) => {
                let root = mount::overlay(&plan, LayersBy::Path)?;
                eprintln!("note: layers go to the overlay by path: {error}");
                self.layers_by = LayersBy::Path;
                root
            }
            other => other?,
        };
        let mut volumes = Vec::new();
        for (name, _) in &create.volumes {
            let path = disk.join("vol").join(name);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(SysError::io("mkdir", &path, &error)),
            }
            volumes.push(Detached::of_tree(&path, Some(parts.namespace.as_fd()), Access::ReadWrite)?);
        }
        for (folder, _) in &create.shared {
            volumes.push(Detached::of_tree(Path::new(folder), Some(parts.namespace.as_fd()), Access::Shared)?);
        }
        let home = Path::new(&create.run);
        match fs::create_dir(home) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(SysError::io("mkdir", home, &error)),
        }
        let listener = socket::listen(&home.join("agent.sock"), SocketType::STREAM, 1024)?;
        let started = cell::started(cell.pid).ok_or(SysError::new("husk", "has ended", 0))?;
        Record { pid: cell.pid, started, sequence, slot, pool, cpu_milli }.write(home)?;
        failpoint::hit("launcher.record");
        // Shown inside, so that what runs from it can be written down and read back (hibernation).
        let agent = self.shown.of(&create.agent)?;
        let take = Take {
            hostname: create.hostname.clone(),
            shm_bytes: (create.limits.memory_bytes / 2).max(1 << 20),
            volumes: create.volumes.iter().map(|(_, path)| path.clone()).collect(),
            counter: create.counter.clone(),
            shared: create.shared.iter().map(|(_, path)| path.clone()).collect(),
        };
        let bytes = minicbor::to_vec(&take).expect("a Vec takes everything");
        let mut fds = vec![root.as_fd(), parts.dev.as_fd(), listener.as_fd(), agent.as_fd()];
        fds.extend(volumes.iter().map(AsFd::as_fd));
        socket::send(&parts.socket, &bytes, &fds)?;
        Ok(())
    }

    /// A husk has said something, or its socket has closed.
    fn on_husk(&mut self, sequence: u64) {
        let Some(cell) = self.cells.get_mut(&sequence) else { return };
        let socket = match &cell.phase {
            Phase::Building(parts) | Phase::Parked(parts) => &parts.socket,
            Phase::Booting { socket, .. } => socket,
            Phase::Running { .. } => return,
        };
        let mut message = [0_u8; 512];
        let length = socket::receive(socket, &mut message, &mut Vec::new()).unwrap_or(0);
        let placeholder = Phase::Running { id: String::new(), waiting: Vec::new() };
        match (std::mem::replace(&mut cell.phase, placeholder), length) {
            (Phase::Building(parts), _) if &message[..length] == husk::PARKED => {
                cell.phase = Phase::Parked(parts);
                let pool = cell.pool;
                self.herds.of(pool).building -= 1;
                let next = self.waiting.iter().position(|(_, create)| create.pool == pool);
                match next.and_then(|place| self.waiting.remove(place)) {
                    Some((client, create)) => self.boot(sequence, client, create, false),
                    None => {
                        self.herds.of(pool).parked.push_back(sequence);
                        if pool != 0 {
                            self.trim(); // Its last computer may have gone meanwhile.
                        }
                    }
                }
            }
            (Phase::Booting { id, client, pooled, .. }, 0) => {
                // Closed: the agent runs, or the process is gone and its end is the next event.
                let pid = cell.pid as u32;
                cell.phase = Phase::Running { id, waiting: Vec::new() };
                let (pidfd, pool) = (&self.cells[&sequence].pidfd, self.cells[&sequence].pool);
                self.answer(client, &Reply::Created { pid, pooled, link: sequence, pool }, Some(pidfd));
            }
            (Phase::Booting { id, client, .. }, length) => {
                let error = husk::parse_failure(&message[..length]).unwrap_or(SysError::new("launch", "", 0));
                cell.phase = Phase::Running { id, waiting: Vec::new() };
                let _ = clone::kill(&cell.pidfd);
                self.refuse(client, &error);
            }
            (phase, length) => {
                if let Some(error) = husk::parse_failure(&message[..length]) {
                    eprintln!("warning: a husk failed: {error}");
                    self.last_failure = Some(Instant::now());
                }
                let _ = clone::kill(&cell.pidfd);
                // Its end comes as an event; until then its socket need not wake us.
                if let Phase::Building(parts) | Phase::Parked(parts) = &phase {
                    let _ = epoll::delete(&self.epoll, &parts.socket);
                }
                cell.phase = phase;
            }
        }
    }

    /// PID 1 of a cell has ended, and so has all that was in it.
    fn on_end(&mut self, sequence: u64) {
        let Some(cell) = self.cells.remove(&sequence) else { return };
        let _ = epoll::delete(&self.epoll, &cell.pidfd);
        clone::reap_ended();
        failpoint::hit("launcher.reaped");
        let pool = cell.pool;
        self.builder.order(Order::Unmake { sequence, slot: cell.slot, pool });
        let herd = self.herds.of(pool);
        match &cell.phase {
            Phase::Building(_) => herd.building -= 1,
            Phase::Parked(_) => herd.parked.retain(|parked| *parked != sequence),
            Phase::Booting { .. } | Phase::Running { .. } => herd.computers -= 1,
        }
        match cell.phase {
            Phase::Building(parts) | Phase::Parked(parts) => {
                let _ = epoll::delete(&self.epoll, &parts.socket);
            }
            Phase::Booting { socket, id, client, .. } => {
                let _ = epoll::delete(&self.epoll, &socket);
                self.refuse(client, &SysError::new("launch", "it ended while it booted", 0));
                self.forget(&id);
            }
            Phase::Running { id, waiting } => {
                self.forget(&id);
                for client in waiting {
                    self.answer(client, &Reply::Done, None);
                }
            }
        }
        if pool != 0 {
            self.trim();
            self.let_go(pool);
        }
    }

    fn forget(&mut self, id: &str) {
        self.by_id.remove(id);
        cell::remove_home(&self.run.join("computers").join(id));
    }

    fn end_husk(&mut self, sequence: u64) {
        if let Some(cell) = self.cells.get(&sequence) {
            let _ = clone::kill(&cell.pidfd);
        }
    }

    /// Returns whether the client's socket had room.
    fn answer(&self, client: u64, reply: &Reply, fd: Option<&OwnedFd>) -> bool {
        let Some(connection) = self.clients.get(&client) else { return true };
        let bytes = minicbor::to_vec(reply).expect("a Vec takes everything");
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        // A client that does not read its answers has a full socket and gets no more.
        match socket::send(connection, &bytes, &fds) {
            Err(error) => error.errno != rustix::io::Errno::AGAIN.raw_os_error(),
            Ok(_) => true,
        }
    }

    fn done_or_not(&self, client: u64, done: Result<(), SysError>) {
        match done {
            Ok(()) => _ = self.answer(client, &Reply::Done, None),
            Err(error) => self.refuse(client, &error),
        }
    }

    fn refuse(&self, client: u64, error: &SysError) {
        self.answer(
            client,
            &Reply::Failed { stage: format!("{} {}", error.call, error.about), errno: error.errno },
            None,
        );
    }
}

fn takes_no_descriptors(error: &SysError) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::BADF, Errno::OPNOTSUPP].iter().any(|errno| errno.raw_os_error() == error.errno)
}

fn watch(epoll: &OwnedFd, fd: &OwnedFd, token: u64) -> Result<(), SysError> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN | epoll::EventFlags::RDHUP)
        .map_err(SysError::rustix("epoll_ctl", ""))
}
