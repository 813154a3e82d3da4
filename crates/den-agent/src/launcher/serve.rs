//! The launcher's loop: requests in, cells through their phases.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use den_sys::cgroup::{Cgroups, Limits};
use den_sys::mount::{self, Access, Detached, LayersBy, OverlayPlan};
use den_sys::seccomp::Filter;
use den_sys::{SysError, cgroup, clone, failpoint, socket};
use den_wire::launcher::{Create, PACKET_BYTES_MAX, Reply, Request, Usage};
use rustix::event::epoll;
use rustix::net::SocketType;

use super::Settings;
use super::cell::{self, Cell, Parts, Phase, Record, Slots};
use super::husk::{self, Take};
use super::net::GateNet;

/// Husks that are kept ready until `serve` says otherwise.
const POOL_DEFAULT: u32 = 0;
/// Quiet time after a create before husks are made again, so that a series of creates is not held
/// up by refilling behind each of them. Below a quarter of the pool it is not waited for.
const REFILL_AFTER: Duration = Duration::from_millis(30);
/// Time between two tries after a husk could not be made.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Creates that wait for a husk, at most.
const WAITING_MAX: usize = 4096;
/// How long a cgroup may stay busy after its last process was reaped.
const CGROUP_TRIES: u32 = 50;

const LISTENER: u64 = 0;
const CLIENT: u64 = 1 << 56;
const SOCKET: u64 = 2 << 56;
const PROCESS: u64 = 3 << 56;
const KIND: u64 = 0xff << 56;

pub(super) struct Launcher {
    run: PathBuf,
    epoll: OwnedFd,
    listener: OwnedFd,
    cgroups: Cgroups,
    net: GateNet,
    layers_by: LayersBy,
    slots: Slots,
    filter: Filter,
    cells: HashMap<u64, Cell>,
    by_id: HashMap<String, u64>,
    parked: VecDeque<u64>,
    building: u32,
    waiting: VecDeque<(u64, Create)>,
    clients: HashMap<u64, OwnedFd>,
    agents: HashMap<String, OwnedFd>,
    next_client: u64,
    next_sequence: u64,
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
        let instance = cgroup::instance_of(&run);
        let cgroups = Cgroups::open(&instance)?;
        let net = GateNet::open(&run.join("gate.netns"))?;
        let slots = Slots::open(&run)?;
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
        mount::own_namespace(|point| {
            point == Path::new("/proc")
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
            cgroups,
            net,
            layers_by,
            slots,
            filter: Filter::of_a_computer(),
            cells: HashMap::new(),
            by_id: HashMap::new(),
            parked: VecDeque::new(),
            building: 0,
            waiting: VecDeque::new(),
            clients: HashMap::new(),
            agents: HashMap::new(),
            next_client: 1,
            next_sequence: 1,
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
            self.next_sequence = self.next_sequence.max(record.sequence + 1);
            self.by_id.insert(id.clone(), record.sequence);
            self.cells.insert(
                record.sequence,
                Cell {
                    sequence: record.sequence,
                    slot: Some(record.slot),
                    pid: record.pid,
                    pidfd,
                    phase: Phase::Running { id, waiting: Vec::new() },
                },
            );
        }
        for name in self.cgroups.list() {
            let sequence = cell::parse_cgroup_name(&name);
            if let Some(sequence) = sequence {
                self.next_sequence = self.next_sequence.max(sequence + 1);
            }
            if sequence.is_none_or(|sequence| !self.cells.contains_key(&sequence)) {
                self.cgroups.kill(&name);
                self.remove_cgroup(&name);
            }
        }
        Ok(())
    }

    /// Serves until it is told to exit.
    pub(super) fn run(&mut self) -> Result<(), SysError> {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = self.refill();
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
                    _ => self.on_listener(),
                }
            }
            if let Some(client) = self.exit
                && self.cells.is_empty()
            {
                let _ = fs::remove_file(self.run.join("launcher.sock"));
                let _ = fs::remove_file(self.run.join("launcher.pid"));
                self.answer(client, &Reply::Done, None);
                return Ok(());
            }
        }
    }

    /// Makes a husk if one is wanted now; returns how long the loop may sleep.
    fn refill(&mut self) -> Option<Duration> {
        let ready = self.parked.len() as u32 + self.building;
        let wanted = self.pool + self.waiting.len() as u32;
        if self.exit.is_some() || ready >= wanted {
            return None;
        }
        if let Some(failure) = self.last_failure
            && failure.elapsed() < RETRY_AFTER
        {
            return Some(RETRY_AFTER - failure.elapsed());
        }
        let quiet = self.last_create.elapsed();
        if self.waiting.is_empty() && ready > self.pool / 4 && quiet < REFILL_AFTER {
            return Some(REFILL_AFTER - quiet);
        }
        match self.build() {
            Ok(()) => {
                self.last_failure = None;
                Some(Duration::ZERO)
            }
            Err(error) => {
                eprintln!("warning: a husk could not be made: {error}");
                self.last_failure = Some(Instant::now());
                if ready == 0 {
                    // Nobody is left who could serve them.
                    for (client, _) in std::mem::take(&mut self.waiting) {
                        self.refuse(client, &error);
                    }
                }
                Some(RETRY_AFTER)
            }
        }
    }

    fn build(&mut self) -> Result<(), SysError> {
        let slot =
            self.slots.take().ok_or(SysError::new("slots", "all in use", rustix::io::Errno::AGAIN.raw_os_error()))?;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let made = self.build_in(sequence, slot);
        if made.is_err() {
            self.slots.give(slot);
            self.remove_cgroup(&cell::cgroup_name(sequence));
        }
        made
    }

    fn build_in(&mut self, sequence: u64, slot: u32) -> Result<(), SysError> {
        let base = self.slots.base(slot);
        let cgroup = cell::cgroup_name(sequence);
        self.cgroups.create(&cgroup, base)?;
        failpoint::hit("launcher.cgroup");
        let husk::Started { pid, parts } = husk::start(base, &self.filter)?;
        failpoint::hit("launcher.cloned");
        let pidfd = clone::pidfd(pid)?;
        let prepared = self
            .cgroups
            .attach(&cgroup, pid)
            .and_then(|()| self.net.connect(sequence, pid))
            .inspect(|()| clone::raise_limits(pid))
            .and_then(|()| husk::go(&parts.socket))
            .and_then(|()| watch(&self.epoll, &parts.socket, SOCKET | sequence))
            .and_then(|()| watch(&self.epoll, &pidfd, PROCESS | sequence));
        if let Err(error) = prepared {
            let _ = clone::kill(&pidfd);
            clone::reap(pid, true);
            self.net.disconnect(sequence);
            return Err(error);
        }
        // The host's OOM killer shall take something inside before PID 1. Refused without
        // CAP_SYS_RESOURCE; the agent gives its children the usual score again.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "-900");
        failpoint::hit("launcher.husk");
        self.building += 1;
        self.cells.insert(sequence, Cell { sequence, slot: Some(slot), pid, pidfd, phase: Phase::Building(parts) });
        Ok(())
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
            self.waiting.retain(|(waiting, _)| *waiting != client);
            return;
        }
        match minicbor::decode(&packet[..length]) {
            Ok(request) => self.on_request(client, request),
            Err(_) => self.refuse(client, &SysError::new("request", "unknown", 0)),
        }
    }

    fn on_request(&mut self, client: u64, request: Request) {
        match request {
            Request::Hello { .. } => self.introduce(client),
            Request::Create(create) => {
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
                } else if let Some(sequence) = self.parked.pop_front() {
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
                let done = self.cgroup_of(&id).and_then(|name| self.cgroups.limit(&name, &cgroup_limits(&limits)));
                match done {
                    Ok(()) => self.answer(client, &Reply::Done, None),
                    Err(error) => self.refuse(client, &error),
                }
            }
            Request::Pool { target } => {
                self.pool = target.min(cell::SLOTS / 2);
                self.last_create = Instant::now() - REFILL_AFTER;
                while self.parked.len() as u32 > self.pool {
                    let Some(sequence) = self.parked.pop_back() else { break };
                    self.end_husk(sequence);
                }
                self.answer(client, &Reply::Done, None);
            }
            Request::Usage { id } => match self.cgroup_of(&id) {
                Ok(name) => {
                    let usage = self.cgroups.usage(&name);
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
                if !self.by_id.is_empty() || !self.waiting.is_empty() {
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

    fn introduce(&self, client: u64) {
        let hello =
            Reply::Hello { version: den_wire::VERSION, pid: std::process::id(), husks: self.parked.len() as u32 };
        self.answer(client, &hello, None);
        for cell in self.cells.values() {
            if let Some(id) = cell.computer() {
                let running = Reply::Running { id: id.to_owned(), pid: cell.pid as u32 };
                self.answer(client, &running, Some(&cell.pidfd));
            }
        }
        self.answer(client, &Reply::Done, None);
    }

    fn cgroup_of(&self, id: &str) -> Result<String, SysError> {
        let sequence =
            self.by_id.get(id).ok_or(SysError::new("computer", id, rustix::io::Errno::SRCH.raw_os_error()))?;
        Ok(cell::cgroup_name(*sequence))
    }

    /// Puts an image into a parked husk.
    fn boot(&mut self, sequence: u64, client: u64, create: Create, pooled: bool) {
        let Some(cell) = self.cells.get_mut(&sequence) else { return };
        let Phase::Parked(parts) =
            std::mem::replace(&mut cell.phase, Phase::Running { id: create.id.clone(), waiting: Vec::new() })
        else {
            unreachable!("only parked husks are in the queue")
        };
        self.by_id.insert(create.id.clone(), sequence);
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
                self.building += 1;
            }
        }
    }

    fn give_image(&mut self, sequence: u64, parts: &Parts, create: &Create) -> Result<(), SysError> {
        let cell = &self.cells[&sequence];
        let slot = cell.slot.unwrap_or(0);
        let base = self.slots.base(slot);
        self.cgroups.limit(&cell.cgroup(), &cgroup_limits(&create.limits))?;
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
            volumes.push(Detached::of_tree(&path, Some(parts.namespace.as_fd()), Access::ReadWrite)?);
        }
        let home = Path::new(&create.run);
        match fs::create_dir(home) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(SysError::io("mkdir", home, &error)),
        }
        let listener = socket::listen(&home.join("agent.sock"), SocketType::STREAM, 1024)?;
        let started = cell::started(cell.pid).ok_or(SysError::new("husk", "has ended", 0))?;
        Record { pid: cell.pid, started, sequence, slot }.write(home)?;
        failpoint::hit("launcher.record");
        if !self.agents.contains_key(&create.agent) {
            let path = Path::new(&create.agent);
            let agent = fs::File::open(path).map_err(|error| SysError::io("open", path, &error))?;
            self.agents.insert(create.agent.clone(), agent.into());
        }
        let agent = &self.agents[&create.agent];
        let take = Take {
            hostname: create.hostname.clone(),
            shm_bytes: (create.limits.memory_bytes / 2).max(1 << 20),
            volumes: create.volumes.iter().map(|(_, path)| path.clone()).collect(),
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
                self.building -= 1;
                match self.waiting.pop_front() {
                    Some((client, create)) => self.boot(sequence, client, create, false),
                    None => self.parked.push_back(sequence),
                }
            }
            (Phase::Booting { id, client, pooled, .. }, 0) => {
                // Closed: the agent runs, or the process is gone and its end is the next event.
                let pid = cell.pid as u32;
                cell.phase = Phase::Running { id, waiting: Vec::new() };
                let pidfd = &self.cells[&sequence].pidfd;
                self.answer(client, &Reply::Created { pid, pooled }, Some(pidfd));
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
        clone::reap(cell.pid, false);
        failpoint::hit("launcher.reaped");
        self.net.disconnect(sequence);
        self.remove_cgroup(&cell.cgroup());
        if let Some(slot) = cell.slot {
            self.slots.give(slot);
        }
        match cell.phase {
            Phase::Building(parts) => {
                let _ = epoll::delete(&self.epoll, &parts.socket);
                self.building -= 1;
            }
            Phase::Parked(parts) => {
                let _ = epoll::delete(&self.epoll, &parts.socket);
                self.parked.retain(|parked| *parked != sequence);
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

    fn remove_cgroup(&self, name: &str) {
        for _ in 0..CGROUP_TRIES {
            match self.cgroups.remove(name) {
                Ok(()) => return,
                Err(error) if error.errno == rustix::io::Errno::BUSY.raw_os_error() => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => {
                    eprintln!("warning: {error}");
                    return;
                }
            }
        }
        eprintln!("warning: cgroup {name} stays busy; the next launcher removes it");
    }

    fn answer(&self, client: u64, reply: &Reply, fd: Option<&OwnedFd>) {
        let Some(connection) = self.clients.get(&client) else { return };
        let bytes = minicbor::to_vec(reply).expect("a Vec takes everything");
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        // A client that does not read its answers has a full socket and gets no more.
        let _ = socket::send(connection, &bytes, &fds);
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

fn cgroup_limits(limits: &den_wire::launcher::Limits) -> Limits {
    Limits { cpu_milli: limits.cpu_milli, memory_bytes: limits.memory_bytes, pids: limits.pids }
}

fn watch(epoll: &OwnedFd, fd: &OwnedFd, token: u64) -> Result<(), SysError> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN | epoll::EventFlags::RDHUP)
        .map_err(SysError::rustix("epoll_ctl", ""))
}
