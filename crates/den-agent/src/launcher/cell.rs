//! A cell is what a computer lives in, from the first clone on: slot of host ids, cgroup, link and
//! PID 1. It is a husk until an image is put into it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use den_sys::SysError;
use den_sys::mount::Detached;
pub(super) use den_wire::launcher::cgroup_name;

use super::ids::ids;

/// One cell.
pub(super) struct Cell {
    /// Counts cells of this RUN; names the cgroup and the link.
    pub sequence: u64,
    /// Which pool's; 0: the house's own.
    pub pool: u64,
    /// Thousandths of a CPU that it may use, once it is a computer.
    pub cpu_milli: u32,
    /// Which range of host ids.
    pub slot: Option<u32>,
    /// PID 1, as the host counts.
    pub pid: i32,
    /// The same, by descriptor.
    pub pidfd: OwnedFd,
    /// How far it is.
    pub phase: Phase,
}

/// How far a cell is.
pub(super) enum Phase {
    /// Preparing itself; says so on its socket.
    Building(Parts),
    /// Ready for an image.
    Parked(Parts),
    /// Has its image; its socket closes when the agent runs.
    Booting {
        /// To hear of a failure by.
        socket: OwnedFd,
        /// The computer.
        id: String,
        /// Whom to answer.
        client: u64,
        /// Whether it had been parked when it was asked for.
        pooled: bool,
    },
    /// The agent runs.
    Running {
        /// The computer.
        id: String,
        /// Who waits for its end.
        waiting: Vec<u64>,
    },
}

/// What a husk needs to become a computer.
pub(super) struct Parts {
    /// To its first process.
    pub socket: OwnedFd,
    /// Maps 0.. to its slot's ids.
    pub namespace: OwnedFd,
    /// Its /dev, made by the host so that it has devices.
    pub dev: Detached,
}

impl Cell {
    /// Name of its cgroup.
    pub(super) fn cgroup(&self) -> String {
        cgroup_name(self.pool, self.sequence)
    }

    /// The computer in it.
    pub(super) fn computer(&self) -> Option<&str> {
        match &self.phase {
            Phase::Booting { id, .. } | Phase::Running { id, .. } => Some(id),
            Phase::Building(_) | Phase::Parked(_) => None,
        }
    }
}

/// The sequence number in a cell's cgroup's name, the pool's left out.
pub(super) fn parse_cgroup_name(name: &str) -> Option<u64> {
    name.strip_prefix('c')?.parse().ok()
}

/// The number in a pool's cgroup's name.
pub(super) fn parse_pool_name(name: &str) -> Option<u64> {
    name.strip_prefix('p')?.parse().ok().filter(|pool| *pool != 0)
}

/// Numbers of cells. None is given out twice in one RUN while its folder is kept, whatever is killed: a
/// link that the kernel is still taking away would have the new one's name and index.
pub(super) struct Sequences {
    next: u64,
    reserved: u64,
    path: PathBuf,
}

impl Sequences {
    /// So many are written down as used at a time.
    const BLOCK: u64 = 1024;

    /// Goes on after all that were given out.
    pub(super) fn open(run: &Path) -> Self {
        let path = run.join("sequence");
        let next = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1);
        Self { next, reserved: next, path }
    }

    /// A number that is found in use was given out.
    pub(super) fn seen(&mut self, sequence: u64) {
        self.next = self.next.max(sequence + 1);
    }

    /// A new one.
    pub(super) fn take(&mut self) -> u64 {
        let sequence = self.next;
        self.next += 1;
        if sequence >= self.reserved {
            self.reserved = sequence + Self::BLOCK;
            let half = self.path.with_extension("half");
            let written = fs::write(&half, self.reserved.to_string()).and_then(|()| fs::rename(&half, &self.path));
            if let Err(error) = written {
                eprintln!("warning: writing {}: {error}", self.path.display());
            }
        }
        sequence
    }
}

/// Slots of host ids, none of which another launcher on this host gives out.
pub(super) struct Slots {
    region: u32,
    free: Vec<u32>,
    _lock: fs::File,
}

impl Slots {
    /// Takes a region; the one this RUN had before if it is free.
    pub(super) fn open(run: &Path) -> Result<Self, SysError> {
        let locks = Path::new("/run/lock/den-ids");
        fs::create_dir_all(locks).map_err(|error| SysError::io("mkdir", locks, &error))?;
        let memory = run.join("region");
        let before = fs::read_to_string(&memory).ok().and_then(|text| text.trim().parse::<u32>().ok());
        for region in before.into_iter().chain(0..ids().regions).filter(|region| *region < ids().regions) {
            let path = locks.join(region.to_string());
            let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|error| SysError::io("open", &path, &error))?;
            if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::write(&memory, region.to_string()).map_err(|error| SysError::io("write", &memory, &error))?;
                return Ok(Self { region, free: (0..ids().slots).rev().collect(), _lock: file });
            }
        }
        Err(SysError::new("flock", "every range of ids has a launcher", rustix::io::Errno::BUSY.raw_os_error()))
    }

    /// Takes a slot; `None` when all are taken.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Takes this one: an adopted computer has it.
    pub(super) fn claim(&mut self, slot: u32) {
        self.free.retain(|free| *free != slot);
    }

    /// Gives one back.
    pub(super) fn give(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// The host id that 0 inside has.
    pub(super) fn base(&self, slot: u32) -> u32 {
        ids().base(self.region, slot)
    }
}

/// What a launcher writes down of a computer for the one after it.
pub(super) struct Record {
    /// PID 1.
    pub pid: i32,
    /// Its start in clock ticks since boot: tells it from a later process of the same number.
    pub started: u64,
    /// The cell's.
    pub sequence: u64,
    /// The cell's.
    pub slot: u32,
    /// The cell's; 0 in one of before there were pools.
    pub pool: u64,
    /// The cell's; none in one of before there were pools.
    pub cpu_milli: Option<u32>,
}

impl Record {
    fn path(home: &Path) -> PathBuf {
        home.join("init")
    }

    /// Writes it, whole or not at all.
    pub(super) fn write(&self, home: &Path) -> Result<(), SysError> {
        let (path, half) = (Self::path(home), home.join("init.half"));
        let Self { pid, started, sequence, slot, pool, cpu_milli } = self;
        let text = format!("{pid} {started} {sequence} {slot} {pool} {}\n", cpu_milli.unwrap_or(0));
        fs::write(&half, text).map_err(|error| SysError::io("write", &half, &error))?;
        fs::rename(&half, &path).map_err(|error| SysError::io("rename", &path, &error))
    }

    /// Reads it; `None` where there is none that is whole.
    pub(super) fn read(home: &Path) -> Option<Self> {
        let text = fs::read_to_string(Self::path(home)).ok()?;
        let mut words = text.split_whitespace();
        Some(Self {
            pid: words.next()?.parse().ok()?,
            started: words.next()?.parse().ok()?,
            sequence: words.next()?.parse().ok()?,
            slot: words.next()?.parse().ok()?,
            pool: words.next().map_or(Some(0), |word| word.parse().ok())?,
            cpu_milli: words.next().and_then(|word| word.parse().ok()).filter(|milli| *milli != 0),
        })
    }
}

/// When the process `pid` was started, in clock ticks since boot; proc_pid_stat(5) field 22.
pub(super) fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything; fields are counted after it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the daemon wants this computer to stand still while no daemon is there: it is paused or
/// unplugged. `home` is its folder under RUN.
pub(super) fn stands_still(home: &Path) -> bool {
    home.join(den_wire::launcher::FROZEN).exists()
}

/// Removes a computer's folder under RUN with what lies in it.
pub(super) fn remove_home(home: &Path) {
    match fs::remove_dir_all(home) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => eprintln!("warning: removing {}: {error}", home.display()),
    }
}
