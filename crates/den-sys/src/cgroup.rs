//! Control groups on hosts with v1 hierarchies, with v2, or with both.
//!
//! ```text
//! v2   <mount>/<instance>/<name>                 limits and processes in one place
//! v1   <controller's mount>/<instance>/<name>    one of these per controller
//!      <cgroup2 mount>/<instance>/<name>         beside them: freezing, killing, and what a
//!                                                computer sees as its own tree
//! ```
//!
//! Where cgroup2 is mounted nowhere it is mounted for Den alone, attached to nothing: a computer without a
//! cgroup of its own there would see the host's whole tree. Processes are stopped by v1 then.
//!
//! Only below `<instance>`, which Den makes. Everything is reached from descriptors that were
//! opened at the start, so it works from a mount namespace that shows no /sys.

mod freezer;
mod memory;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

pub use self::freezer::{Freezer, freezer};
use crate::SysError;
use crate::mount::{self, Detached, unescape};

/// The period of CPU bandwidth, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// What all that an instance runs weighs beside the host's own services, the daemon among them: a fifth of one of them
/// (of 1000, see [`Cgroups::weigh`]). A fraction, so that what the daemon does for one computer is not held up by what
/// another does.
const INSTANCE_WEIGHT: u32 = 200;

/// v1 controllers that a computer is put under.
const V1_CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", CPUSET];

/// The controller of the processors that a cgroup may use. All works without it but for [`Cgroups::hold_to`].
const CPUSET: &str = "cpuset";

/// Whether a cgroup yields to all, of the controller `cpu`; the same on v1 and v2.
const IDLE: &str = "cpu.idle";

/// The v1 controller that stops processes, where no cgroup2 is mounted that can.
const V1_FREEZER: &str = "freezer";

/// Files of a v2 cgroup that belong to who has it delegated; the limits stay the host's.
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

/// What may be made below a v2 cgroup that was handed over: each cgroup takes some 10 KiB of the kernel's
/// memory, which nobody is charged for where the memory controller is in v1.
const BELOW_MAX: [(&str, &str); 2] = [("cgroup.max.descendants", "1024"), ("cgroup.max.depth", "32")];

/// Which layout the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One tree with controllers.
    V2,
    /// A tree per controller; a v2 tree without controllers may lie beside them.
    V1,
}

/// Where the host's hierarchies are.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    /// Which layout.
    pub layout: Layout,
    /// The cgroup2 mount, if there is one.
    pub unified: Option<PathBuf>,
    /// v1: controller and mount.
    pub v1: Vec<(&'static str, PathBuf)>,
}

impl Hierarchies {
    /// Reads /proc/self/mountinfo.
    pub fn find() -> Result<Self, SysError> {
        let path = Path::new("/proc/self/mountinfo");
        let table = std::fs::read_to_string(path).map_err(|error| SysError::io("read", path, &error))?;
        let mut unified = None;
        let mut v1 = Vec::new();
        for line in table.lines() {
            let Some((front, back)) = line.split_once(" - ") else { continue };
            let Some(point) = front.split(' ').nth(4).map(unescape) else { continue };
            let mut back = back.split(' ');
            match back.next() {
                Some("cgroup2") if unified.is_none() => unified = Some(PathBuf::from(point)),
                Some("cgroup") => {
                    let options = back.nth(1).unwrap_or("");
                    for controller in V1_CONTROLLERS.into_iter().chain([V1_FREEZER]) {
                        if options.split(',').any(|option| option == controller) {
                            v1.push((controller, PathBuf::from(&point)));
                        }
                    }
                }
                _ => {}
            }
        }
        let controllers =
            unified.as_ref().and_then(|mount| std::fs::read_to_string(mount.join("cgroup.controllers")).ok());
        let has = |name: &str| controllers.as_deref().is_some_and(|list| list.split_whitespace().any(|c| c == name));
        let layout = if has("memory") && has("pids") { Layout::V2 } else { Layout::V1 };
        if layout == Layout::V2 {
            v1.clear();
        }
        if unified.is_some() {
            v1.retain(|(controller, _)| *controller != V1_FREEZER);
        }
        Ok(Self { layout, unified, v1 })
    }

    /// The mount below which processes are stopped by a [`Freezer`].
    pub fn freezing(&self) -> Option<&Path> {
        let v1 = || self.v1.iter().find(|(controller, _)| *controller == V1_FREEZER).map(|(_, mount)| mount);
        self.unified.as_ref().or_else(v1).map(PathBuf::as_path)
    }
}

/// The name of the directory that belongs to the run folder `run`: `den` for /run/den, else `den-`
/// and 16 hex digits made of the canonical path, so that two daemons never share one.
pub fn instance_of(run: &Path) -> String {
    let run = std::fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    if run == Path::new("/run/den") {
        return "den".to_owned();
    }
    // FNV-1a, 64 bits: it has to be the same for every version, and nothing more.
    let bytes = run.as_os_str().as_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("den-{hash:016x}")
}

/// The directory `<instance>` in every hierarchy.
pub struct Cgroups {
    layout: Layout,
    unified: Option<OwnedFd>,
    v1: Vec<(&'static str, OwnedFd)>,
}

/// What a cgroup may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_milli: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// What a cgroup uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// Bytes, page cache included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// How often the memory limit ended a process.
    pub oom_kills: u64,
}

/// A way into a cgroup that makes nobody wait.
///
/// The kernel moves a process under a lock that every fork and exit on the host takes, and waits for a
/// grace period of RCU to get it: 15 ms, once per v1 hierarchy. A process that is cloned into a v2
/// cgroup needs no move; a thread that moves *itself* by a v1 `tasks` file does not need that lock
/// (`cgroup_procs_write_start` of kernel/cgroup/cgroup.c, Linux 5.12), and what it clones is there too.
pub struct Door {
    unified: Option<OwnedFd>,
    tasks: Vec<OwnedFd>,
}

impl Door {
    /// What [`crate::clone::clone_into`] takes.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves this process through, as a whole: who was not cloned into the v2 cgroup.
    pub fn enter_whole(&self) -> Result<(), SysError> {
        if let Some(unified) = &self.unified {
            write_below(unified.as_fd(), "", "cgroup.procs", "0")?;
        }
        self.enter()
    }

    /// Moves this thread through: the v1 part. Whether it may is asked of who opened the door.
    pub fn enter(&self) -> Result<(), SysError> {
        for tasks in &self.tasks {
            rustix::io::write(tasks, b"0").map_err(SysError::rustix("write", "0 to cgroup tasks"))?;
        }
        Ok(())
    }
}

impl Cgroups {
    /// Makes `<instance>` in every hierarchy and, on v2, hands the controllers down to it.
    pub fn open(instance: &str) -> Result<Self, SysError> {
        let hierarchies = Hierarchies::find()?;
        let unified = match &hierarchies.unified {
            Some(mount) => {
                if hierarchies.layout == Layout::V2 {
                    // One by one: a kernel may lack one. EBUSY says that processes live in the
                    // root of a container's own tree; then limits are the outer host's.
                    let root = open_directory(rustix::fs::CWD, mount)?;
                    enable_controllers(root.as_fd());
                }
                let directory = make_and_open(rustix::fs::CWD, &mount.join(instance))?;
                if hierarchies.layout == Layout::V2 {
                    enable_controllers(directory.as_fd());
                }
                Some(directory)
            }
            None => new_unified().ok().and_then(|root| make_and_open(root.as_fd(), Path::new(instance)).ok()),
        };
        let mut v1 = Vec::new();
        for (controller, mount) in &hierarchies.v1 {
            let directory = make_and_open(rustix::fs::CWD, &mount.join(instance))?;
            // Nobody can be put where no processors are.
            if *controller != CPUSET || fill_cpuset(mount, directory.as_fd()).is_ok() {
                v1.push((*controller, directory));
            }
        }
        let cgroups = Self { layout: hierarchies.layout, unified, v1 };
        // No limit: they have all that nobody else wants. A kernel without it has them weigh as much as the rest.
        let _ = cgroups.weigh("", INSTANCE_WEIGHT);
        Ok(cgroups)
    }

    /// Opens what there is of `<instance>`, to look into it: nothing is made.
    pub fn look(instance: &str) -> Result<Self, SysError> {
        let hierarchies = Hierarchies::find()?;
        let open = |mount: &PathBuf| open_directory(rustix::fs::CWD, mount.join(instance));
        let unified = match &hierarchies.unified {
            Some(mount) => Some(open(mount)?),
            None => new_unified().ok().and_then(|root| open_directory(root.as_fd(), instance).ok()),
        };
        let v1 = hierarchies.v1.iter().filter_map(|(controller, mount)| match open(mount) {
            Err(_) if *controller == CPUSET => None, // An earlier version made none.
            directory => Some(directory.map(|directory| (*controller, directory))),
        });
        Ok(Self { layout: hierarchies.layout, unified, v1: v1.collect::<Result<_, SysError>>()? })
    }

    /// Which layout the host has.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn directories(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.v1.iter().map(|(_, fd)| fd.as_fd()).chain(self.unified.as_ref().map(AsFd::as_fd))
    }

    fn controller(&self, name: &str) -> Option<BorrowedFd<'_>> {
        match self.layout {
            Layout::V2 => self.unified.as_ref().map(AsFd::as_fd),
            Layout::V1 => self.v1.iter().find(|(controller, _)| *controller == name).map(|(_, fd)| fd.as_fd()),
        }
    }

    /// Makes the cgroup `name`; its v2 tree is handed to the host user `owner`.
    pub fn create(&self, name: &str, owner: u32) -> Result<(), SysError> {
        for directory in self.directories() {
            match rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SysError::new("mkdir", format_args!("cgroup {name}"), errno.raw_os_error())),
            }
        }
        if let Some(unified) = &self.unified {
            let directory = open_directory(unified.as_fd(), name)?;
            let owner = Some(rustix::fs::Uid::from_raw(owner));
            let group = owner.map(|owner| rustix::fs::Gid::from_raw(owner.as_raw()));
            let chown = |file: &str, flags| rustix::fs::chownat(&directory, file, owner, group, flags);
            chown("", AtFlags::EMPTY_PATH).map_err(SysError::rustix("chown", format_args!("cgroup {name}")))?;
            for file in DELEGATED {
                match chown(file, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(SysError::new("chown", file, errno.raw_os_error())),
                }
            }
            for (file, most) in BELOW_MAX {
                write_below(unified.as_fd(), name, file, most)?;
            }
        }
        Ok(())
    }

    /// Makes the cgroup `name`, for others to be made in. One that is there stays as it is.
    pub fn create_parent(&self, name: &str) -> Result<(), SysError> {
        for directory in self.directories() {
            match rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SysError::new("mkdir", format_args!("cgroup {name}"), errno.raw_os_error())),
            }
        }
        if self.layout == Layout::V2
            && let Some(unified) = &self.unified
        {
            enable_controllers(open_directory(unified.as_fd(), name)?.as_fd());
        }
        Ok(())
    }

    /// Opens the cgroup `name` for a process that shall be born in it.
    pub fn door(&self, name: &str) -> Result<Door, SysError> {
        let unified = self.unified.as_ref().map(|unified| open_directory(unified.as_fd(), name)).transpose()?;
        let tasks = self.v1.iter().map(|(_, directory)| {
            let path = format!("{name}/tasks");
            rustix::fs::openat(directory, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(SysError::rustix("open", format_args!("cgroup {path}")))
        });
        Ok(Door { unified, tasks: tasks.collect::<Result<_, _>>()? })
    }

    /// The descriptors by which all this is reached.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.directories().collect()
    }

    /// Holds the cgroup `name` to `limits`.
    pub fn limit(&self, name: &str, limits: &Limits) -> Result<(), SysError> {
        let quota = quota(limits.cpu_milli);
        let files: [(&str, &str, String); 3] = match self.layout {
            Layout::V2 => [
                ("memory", "memory.max", limits.memory_bytes.to_string()),
                ("pids", "pids.max", limits.pids.to_string()),
                ("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_US}")),
            ],
            Layout::V1 => [
                ("memory", "memory.limit_in_bytes", limits.memory_bytes.to_string()),
                ("pids", "pids.max", limits.pids.to_string()),
                ("cpu", "cpu.cfs_quota_us", quota.to_string()),
            ],
        };
        files.iter().try_for_each(|(controller, file, value)| self.set(controller, name, file, value))
    }

    /// Holds all that is below the cgroup `name` to these together; none: no limit. `""` is the instance itself.
    ///
    /// Errors: on v1, `EINVAL` where one below may use more CPUs than these; `EBUSY` where more memory is in use
    /// than can be given back.
    pub fn limit_all(&self, name: &str, cpu_milli: Option<u32>, memory_bytes: Option<u64>) -> Result<(), SysError> {
        let cpu = cpu_milli.map(quota);
        let files: [(&str, &str, String); 2] = match self.layout {
            Layout::V2 => [
                ("memory", "memory.max", memory_bytes.map_or("max".to_owned(), |bytes| bytes.to_string())),
                ("cpu", "cpu.max", format!("{} {CPU_PERIOD_US}", cpu.map_or("max".to_owned(), |us| us.to_string()))),
            ],
            Layout::V1 => [
                ("memory", "memory.limit_in_bytes", memory_bytes.map_or("-1".to_owned(), |bytes| bytes.to_string())),
                ("cpu", "cpu.cfs_quota_us", cpu.map_or("-1".to_owned(), |us| us.to_string())),
            ],
        };
        files.iter().try_for_each(|(controller, file, value)| self.set(controller, name, file, value))
    }

    /// Holds the cgroup `name` to so much CPU.
    ///
    /// Errors: on v1, `EINVAL` where that is more than what holds for a cgroup above it.
    pub fn limit_cpu(&self, name: &str, cpu_milli: u32) -> Result<(), SysError> {
        let quota = quota(cpu_milli);
        match self.layout {
            Layout::V2 => self.set("cpu", name, "cpu.max", &format!("{quota} {CPU_PERIOD_US}")),
            Layout::V1 => self.set("cpu", name, "cpu.cfs_quota_us", &quota.to_string()),
        }
    }

    /// Gives the cgroup `name` its share of what it and its neighbours want: in proportion to `cpu_milli`. One that
    /// yields (see [`Cgroups::yield_to_all`]) does so no longer.
    pub fn weigh(&self, name: &str, cpu_milli: u32) -> Result<(), SysError> {
        let (file, value) = self.share(cpu_milli);
        match self.set("cpu", name, file, &value) {
            // It has no share while it yields (`sched_group_set_shares` of kernel/sched/fair.c, Linux 6.1).
            Err(error) if error.errno == libc::EINVAL && self.yields(name) => {
                self.set("cpu", name, IDLE, "0")?;
                self.set("cpu", name, file, &value)
            }
            done => done,
        }
    }

    /// Has the cgroup `name` run where nobody else beside it wants to (cpu.idle, SCHED_IDLE of sched(7)): who wakes
    /// takes its processor at once, and finds its way there as to one that is free. Until it is weighed again.
    ///
    /// Errors: `ENOENT` on v1 before Linux 5.15; on v2 it has no effect there.
    pub fn yield_to_all(&self, name: &str) -> Result<(), SysError> {
        self.set("cpu", name, IDLE, "1")
    }

    /// Whether the cgroup `name` yields to all.
    pub fn yields(&self, name: &str) -> bool {
        let idle = self.controller("cpu").and_then(|directory| read_below(directory, name, IDLE));
        idle.is_some_and(|idle| idle.trim() == "1")
    }

    /// The file of a share, and what is in it.
    fn share(&self, cpu_milli: u32) -> (&'static str, String) {
        let cpu = u64::from(cpu_milli);
        match self.layout {
            Layout::V2 => ("cpu.weight", (cpu / 10).clamp(1, 10_000).to_string()),
            Layout::V1 => ("cpu.shares", (cpu * 1024 / 1000).clamp(2, 262_144).to_string()),
        }
    }

    /// Thousandths of a CPU that the cgroup `name` is held to; none: it is not.
    pub fn cpu_limit(&self, name: &str) -> Option<u32> {
        let directory = self.controller("cpu")?;
        let us = match self.layout {
            Layout::V2 => read_below(directory, name, "cpu.max")?.split_whitespace().next()?.parse::<u64>().ok()?,
            Layout::V1 => read_below(directory, name, "cpu.cfs_quota_us")?.trim().parse::<u64>().ok()?,
        };
        u32::try_from(us * 1000 / CPU_PERIOD_US).ok()
    }

    /// Writes a controller's file of the cgroup `name`, where the controller is there.
    fn set(&self, controller: &str, name: &str, file: &str, value: &str) -> Result<(), SysError> {
        let Some(directory) = self.controller(controller) else { return Ok(()) };
        match write_below(directory, name, file, value) {
            // A nested v2 tree whose controllers could not be handed down has no such file.
            Err(error) if error.errno == libc::ENOENT && self.layout == Layout::V2 => Ok(()),
            done => done,
        }
    }

    /// CPU time of the cgroup `name` and all below it, in microseconds; `""` is the instance itself. None: it is gone.
    pub fn cpu_us(&self, name: &str) -> Option<u64> {
        self.time_us(name, "usage_usec ", "cpuacct.usage")
    }

    /// What of [`Cgroups::cpu_us`] was work of the kernel, counted by ticks.
    pub fn system_us(&self, name: &str) -> Option<u64> {
        self.time_us(name, "system_usec ", "cpuacct.usage_sys")
    }

    /// Microseconds: `key` of cpu.stat, on v1 those of `file`, which has nanoseconds.
    fn time_us(&self, name: &str, key: &str, file: &str) -> Option<u64> {
        match self.layout {
            Layout::V2 => {
                let stat = read_below(self.controller("cpu")?, name, "cpu.stat")?;
                stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            }
            Layout::V1 => {
                let time = read_below(self.controller("cpuacct")?, name, file)?;
                time.trim().parse::<u64>().ok().map(|ns| ns / 1000)
            }
        }
    }

    /// The processors that there are for the instance, as a list (cpuset(7), "List format"). None: they cannot be
    /// divided here.
    pub fn processors(&self) -> Option<String> {
        let file = match self.layout {
            Layout::V2 => "cpuset.cpus.effective",
            Layout::V1 => "cpuset.cpus",
        };
        let list = read_below(self.controller(CPUSET)?, "", file)?.trim().to_owned();
        (!list.is_empty()).then_some(list)
    }

    /// Lets the cgroup `name` run on these processors alone, a list as in [`Cgroups::processors`]; none: on all.
    ///
    /// Errors: on v1, `ENOENT` for one that an earlier version made.
    pub fn hold_to(&self, name: &str, processors: Option<&str>) -> Result<(), SysError> {
        // All are written out, on v2 too: the kernel gives no cgroup with processes the empty list back that it began
        // with (ENOSPC, `validate_change` of kernel/cgroup/cpuset.c, Linux 6.1).
        let list = processors.map(str::to_owned).or_else(|| self.processors());
        list.map_or(Ok(()), |list| self.set(CPUSET, name, "cpuset.cpus", &list))
    }

    /// Whether the cgroup `name` is held to a part of the processors.
    pub fn is_held(&self, name: &str) -> bool {
        let held = self.controller(CPUSET).and_then(|directory| read_below(directory, name, "cpuset.cpus"));
        let held = held.as_deref().map_or("", str::trim);
        !held.is_empty() && self.processors().is_some_and(|all| all != held)
    }

    /// Whether the cgroup `name` has the share that [`Cgroups::weigh`] gives for `cpu_milli`.
    pub fn weighs(&self, name: &str, cpu_milli: u32) -> bool {
        let (file, value) = self.share(cpu_milli);
        let there = self.controller("cpu").and_then(|directory| read_below(directory, name, file));
        there.is_some_and(|there| there.trim() == value)
    }

    /// What the cgroup `name` uses.
    pub fn usage(&self, name: &str) -> Usage {
        let read = |controller: &str, file: &str| {
            self.controller(controller).and_then(|directory| read_below(directory, name, file)).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let keyed = |text: &str, key: &str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        match self.layout {
            Layout::V2 => Usage {
                cpu_us: self.cpu_us(name).unwrap_or(0),
                memory_bytes: number(read("memory", "memory.current")),
                pids: number(read("pids", "pids.current")) as u32,
                oom_kills: keyed(&read("memory", "memory.events"), "oom_kill "),
            },
            Layout::V1 => Usage {
                cpu_us: self.cpu_us(name).unwrap_or(0),
                memory_bytes: number(read("memory", "memory.usage_in_bytes")),
                pids: number(read("pids", "pids.current")) as u32,
                oom_kills: keyed(&read("memory", "memory.oom_control"), "oom_kill "),
            },
        }
    }

    /// How often a fork in the cgroup `name` was refused for its limit on processes.
    pub fn forks_refused(&self, name: &str) -> u64 {
        let events = self.controller("pids").and_then(|directory| read_below(directory, name, "pids.events"));
        let line = |text: String| text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok());
        events.and_then(line).unwrap_or(0)
    }

    /// Lets the processes of the cgroup `name` go on, if someone had stopped them with a [`Freezer`].
    pub fn thaw(&self, name: &str) {
        // It may be gone. The v1 freezer is here only where it is the one that stops them.
        if let Some((_, freezer)) = self.v1.iter().find(|(controller, _)| *controller == V1_FREEZER) {
            let _ = write_below(freezer.as_fd(), name, "freezer.state", "THAWED");
        } else if let Some(unified) = &self.unified {
            let _ = write_below(unified.as_fd(), name, "cgroup.freeze", "0");
        }
    }

    /// Ends every process in the cgroup `name` and below it.
    pub fn kill(&self, name: &str) {
        let killed =
            self.unified.as_ref().is_some_and(|unified| write_below(unified.as_fd(), name, "cgroup.kill", "1").is_ok());
        // With v1 beside it, somebody may be in those cgroups alone.
        if killed && self.layout == Layout::V2 {
            return;
        }
        for directory in self.directories() {
            for pid in read_below(directory, name, "cgroup.procs").unwrap_or_default().lines() {
                if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }

    /// Removes the cgroup `name` with what its processes made below it. One that is gone is no
    /// error.
    ///
    /// Errors: `EBUSY` while a process is in it.
    pub fn remove(&self, name: &str) -> Result<(), SysError> {
        let mut first = Ok(());
        for directory in self.directories() {
            if let Err(errno) = remove_tree(directory, Path::new(name), 0)
                && first.is_ok()
            {
                first = Err(SysError::new("rmdir", format_args!("cgroup {name}"), errno.raw_os_error()));
            }
        }
        first
    }

    /// Names of all cgroups in `<instance>`.
    pub fn list(&self) -> Vec<String> {
        let mut names: Vec<String> = self.directories().flat_map(children).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Names of all cgroups in the cgroup `name`.
    pub fn list_in(&self, name: &str) -> Vec<String> {
        let open = |directory| open_directory(directory, name).ok();
        let mut names: Vec<String> =
            self.directories().filter_map(open).flat_map(|inner| children(inner.as_fd())).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Removes `<instance>` itself from every hierarchy, with the empty cgroups in it. Needs the
    /// host's view of its mounts.
    ///
    /// Errors: `EBUSY` while a process is in one.
    pub fn remove_instance(instance: &str) -> Result<(), SysError> {
        let hierarchies = Hierarchies::find()?;
        let mut first = Ok(());
        for mount in hierarchies.v1.iter().map(|(_, mount)| mount).chain(&hierarchies.unified) {
            let removed = open_directory(rustix::fs::CWD, mount).and_then(|root| {
                remove_tree(root.as_fd(), Path::new(instance), 0)
                    .map_err(SysError::rustix("rmdir", mount.join(instance).display()))
            });
            first = first.and(removed);
        }
        if hierarchies.unified.is_none()
            && let Ok(root) = new_unified()
        {
            let removed = remove_tree(root.as_fd(), Path::new(instance), 0);
            first = first.and(removed.map_err(SysError::rustix("rmdir", format_args!("cgroup {instance}"))));
        }
        first
    }
}

/// Microseconds in a period.
fn quota(cpu_milli: u32) -> u64 {
    (u64::from(cpu_milli) * CPU_PERIOD_US / 1000).max(1000)
}

fn enable_controllers(directory: BorrowedFd<'_>) {
    for controller in ["+memory", "+pids", "+cpu", "+io", "+cpuset"] {
        let _ = write_below(directory, "", "cgroup.subtree_control", controller);
    }
}

/// Gives the v1 cgroup of an instance what the hierarchy at `mount` has, and has those below it begin with the same.
fn fill_cpuset(mount: &Path, directory: BorrowedFd<'_>) -> Result<(), SysError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = mount.join(file);
        let all = std::fs::read_to_string(&path).map_err(|error| SysError::io("read", &path, &error))?;
        write_below(directory, "", file, all.trim())?;
    }
    write_below(directory, "", "cgroup.clone_children", "1")
}

/// A mount of cgroup2, attached nowhere; it ends with what was opened in it. Its root is that of this process's
/// cgroup namespace. Where the kernel has none, nobody inside can mount one either.
pub fn new_unified() -> Result<Detached, SysError> {
    let quiet =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount::new_filesystem("cgroup2", &[], quiet)
}

fn make_and_open(at: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, SysError> {
    match rustix::fs::mkdirat(at, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(SysError::new("mkdir", path.display(), errno.raw_os_error())),
    }
    open_directory(at, path)
}

fn open_directory(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<OwnedFd, SysError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(at, path.as_ref(), flags, Mode::empty())
        .map_err(SysError::rustix("open", path.as_ref().display()))
}

/// A file of the cgroup `name`; `""` is the directory itself.
fn below(name: &str, file: &str) -> String {
    if name.is_empty() { file.to_owned() } else { format!("{name}/{file}") }
}

fn write_below(directory: BorrowedFd<'_>, name: &str, file: &str, value: &str) -> Result<(), SysError> {
    let path = below(name, file);
    let fd = rustix::fs::openat(directory, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(SysError::rustix("open", format_args!("cgroup {path}")))?;
    rustix::io::write(&fd, value.as_bytes())
        .map_err(SysError::rustix("write", format_args!("{value} to cgroup {path}")))?;
    Ok(())
}

fn read_below(directory: BorrowedFd<'_>, name: &str, file: &str) -> Option<String> {
    let path = below(name, file);
    let fd = rustix::fs::openat(directory, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(fd), &mut text).ok()?;
    Some(text)
}

fn children(directory: BorrowedFd<'_>) -> Vec<String> {
    let Ok(fd) = open_directory(directory, ".") else { return Vec::new() };
    let Ok(mut entries) = rustix::fs::Dir::new(fd) else { return Vec::new() };
    let mut names = Vec::new();
    while let Some(Ok(entry)) = entries.read() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type() == rustix::fs::FileType::Directory && name != "." && name != ".." {
            names.push(name);
        }
    }
    names
}

/// The deepest tree that is removed: cgroup.max.depth is unlimited, our patience is not.
const DEPTH_MAX: u32 = 64;

fn remove_tree(directory: BorrowedFd<'_>, name: &Path, depth: u32) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) if depth < DEPTH_MAX => {}
        Err(errno) => return Err(errno),
    }
    let Ok(inner) = open_directory(directory, name) else { return Ok(()) };
    for child in children(inner.as_fd()) {
        remove_tree(inner.as_fd(), Path::new(&child), depth + 1)?;
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
