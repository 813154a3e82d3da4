//! Control groups on hosts with v1 hierarchies, with v2, or with both.
//!
//! ```text
//! v2   <mount>/<instance>/<name>                 limits and processes in one place
//! v1   <controller's mount>/<instance>/<name>    one of these per controller
//!      <cgroup2 mount>/<instance>/<name>         beside them: freezing, killing, and what a
//!                                                computer sees as its own tree
//! ```
//!
//! Only below `<instance>`, which Den makes. Everything is reached from descriptors that were
//! opened at the start, so it works from a mount namespace that shows no /sys.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::SysError;
use crate::mount::unescape;

/// The period of CPU bandwidth, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// v1 controllers that a computer is put under.
const V1_CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];

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
                let directory = make_and_open(mount, instance)?;
                if hierarchies.layout == Layout::V2 {
                    enable_controllers(directory.as_fd());
                }
                Some(directory)
            }
            None => None,
        };
        let mut v1 = Vec::new();
        for (controller, mount) in &hierarchies.v1 {
            v1.push((*controller, make_and_open(mount, instance)?));
        }
        Ok(Self { layout: hierarchies.layout, unified, v1 })
    }

    /// Opens what there is of `<instance>`, to look into it: nothing is made.
    pub fn look(instance: &str) -> Result<Self, SysError> {
        let hierarchies = Hierarchies::find()?;
        let open = |mount: &PathBuf| open_directory(rustix::fs::CWD, mount.join(instance));
        let unified = hierarchies.unified.as_ref().map(open).transpose()?;
        let v1 = hierarchies.v1.iter().map(|(controller, mount)| Ok((*controller, open(mount)?)));
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
        let quota = (u64::from(limits.cpu_milli) * CPU_PERIOD_US / 1000).max(1000);
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
        for (controller, file, value) in files {
            if let Some(directory) = self.controller(controller) {
                match write_below(directory, name, file, &value) {
                    Ok(()) => {}
                    // A nested v2 tree whose controllers could not be handed down has no such file.
                    Err(error) if error.errno == libc::ENOENT && self.layout == Layout::V2 => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
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
                cpu_us: keyed(&read("cpu", "cpu.stat"), "usage_usec "),
                memory_bytes: number(read("memory", "memory.current")),
                pids: number(read("pids", "pids.current")) as u32,
                oom_kills: keyed(&read("memory", "memory.events"), "oom_kill "),
            },
            Layout::V1 => Usage {
                cpu_us: number(read("cpuacct", "cpuacct.usage")) / 1000,
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
        // It may be gone.
        if let Some(unified) = &self.unified {
            let _ = write_below(unified.as_fd(), name, "cgroup.freeze", "0");
        } else if let Some((_, freezer)) = self.v1.iter().find(|(controller, _)| *controller == V1_FREEZER) {
            let _ = write_below(freezer.as_fd(), name, "freezer.state", "THAWED");
        }
    }

    /// Ends every process in the cgroup `name` and below it.
    pub fn kill(&self, name: &str) {
        if let Some(unified) = &self.unified
            && write_below(unified.as_fd(), name, "cgroup.kill", "1").is_ok()
        {
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
        first
    }
}

fn enable_controllers(directory: BorrowedFd<'_>) {
    for controller in ["+memory", "+pids", "+cpu", "+io"] {
        let _ = write_below(directory, "", "cgroup.subtree_control", controller);
    }
}

fn make_and_open(mount: &Path, instance: &str) -> Result<OwnedFd, SysError> {
    let path = mount.join(instance);
    match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(SysError::new("mkdir", path.display(), errno.raw_os_error())),
    }
    open_directory(rustix::fs::CWD, &path)
}

fn open_directory(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<OwnedFd, SysError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(at, path.as_ref(), flags, Mode::empty())
        .map_err(SysError::rustix("open", path.as_ref().display()))
}

fn write_below(directory: BorrowedFd<'_>, name: &str, file: &str, value: &str) -> Result<(), SysError> {
    let path = if name.is_empty() { file.to_owned() } else { format!("{name}/{file}") };
    let fd = rustix::fs::openat(directory, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(SysError::rustix("open", format_args!("cgroup {path}")))?;
    rustix::io::write(&fd, value.as_bytes())
        .map_err(SysError::rustix("write", format_args!("{value} to cgroup {path}")))?;
    Ok(())
}

fn read_below(directory: BorrowedFd<'_>, name: &str, file: &str) -> Option<String> {
    let path = format!("{name}/{file}");
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

/// Stops the processes of one cgroup.
///
/// ```text
/// v2  freeze: "1" ► cgroup.freeze ··· kernel stops each process ··· cgroup.events: "frozen 1"
///     thaw:   "0" ► cgroup.freeze
/// v1  "FROZEN", "THAWED" ► freezer.state, which reads "FREEZING" meanwhile
/// ```
///
/// A process inside cannot end it: the file belongs to the host. Dropped, it thaws, unless it was told
/// to [`Freezer::keep`].
#[derive(Debug)]
pub struct Freezer {
    freeze: OwnedFd,
    /// v2; the v1 file has both.
    events: Option<OwnedFd>,
    on: bool,
}

/// Between two looks at a v1 freezer, which tells nobody when it is done.
const V1_LOOK_AGAIN: Duration = Duration::from_micros(500);

/// Opens the freezer of the cgroup `name` of `instance`. `None` where the host has none or the
/// cgroup is gone.
pub fn freezer(instance: &str, name: &str) -> Option<Freezer> {
    Freezer::of(&Hierarchies::find().ok()?.freezing()?.join(instance).join(name))
}

impl Freezer {
    /// Of the cgroup at `path`, of v2 or of the v1 freezer.
    pub fn of(path: &Path) -> Option<Self> {
        let directory = open_directory(rustix::fs::CWD, path).ok()?;
        let open = |file, flags| rustix::fs::openat(&directory, file, flags | OFlags::CLOEXEC, Mode::empty()).ok();
        match open("cgroup.freeze", OFlags::WRONLY) {
            Some(freeze) => Some(Self { freeze, events: Some(open("cgroup.events", OFlags::RDONLY)?), on: false }),
            None => Some(Self { freeze: open("freezer.state", OFlags::RDWR)?, events: None, on: false }),
        }
    }

    /// Whether processes that stand still can be ended; else they have to be let go on for it.
    pub fn ends_frozen(&self) -> bool {
        self.events.is_some()
    }

    /// Stops all processes in it; returns once they stand. `false` if one did not within `timeout`
    /// (it waits for a device, say): then all go on again.
    pub fn freeze(&mut self, timeout: Duration) -> Result<bool, SysError> {
        self.begin()?;
        let stands = self.wait(timeout)?;
        if !stands {
            self.thaw()?;
        }
        Ok(stands)
    }

    /// Has all processes in it stop, without waiting for them.
    pub fn begin(&mut self) -> Result<(), SysError> {
        self.on = true;
        self.write(if self.events.is_some() { b"1" } else { b"FROZEN" })
    }

    /// Waits until all stand, and says whether they do.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, SysError> {
        let end = Instant::now() + timeout;
        loop {
            if self.is_frozen()? {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let Some(events) = &self.events else {
                std::thread::sleep(left.min(V1_LOOK_AGAIN));
                continue;
            };
            // The kernel tells of every change of the file, from the last time that it was read.
            let mut wait = [PollFd::new(events, PollFlags::PRI)];
            let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match rustix::event::poll(&mut wait, Some(&limit)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(SysError::new("poll", "cgroup.events", errno.raw_os_error())),
            }
        }
    }

    /// Leaves them as they are when this is dropped.
    pub fn keep(&mut self) {
        self.on = false;
    }

    /// Lets them go on. What is not frozen stays so; a cgroup that is gone holds nothing.
    pub fn thaw(&mut self) -> Result<(), SysError> {
        match self.write(if self.events.is_some() { b"0" } else { b"THAWED" }) {
            Err(error) if !matches!(error.errno, libc::ENODEV | libc::ENOENT) => return Err(error),
            _ => self.on = false,
        }
        Ok(())
    }

    fn write(&self, value: &[u8]) -> Result<(), SysError> {
        rustix::io::pwrite(&self.freeze, value, 0).map(drop).map_err(SysError::rustix("write", "cgroup freezer"))
    }

    /// Whether all stand.
    pub fn is_frozen(&self) -> Result<bool, SysError> {
        let mut text = [0_u8; 256];
        let file = self.events.as_ref().unwrap_or(&self.freeze);
        let length = rustix::io::pread(file, &mut text, 0).map_err(SysError::rustix("read", "cgroup freezer"))?;
        let wanted: &[u8] = if self.events.is_some() { b"frozen 1" } else { b"FROZEN" };
        Ok(text[..length].split(|byte| *byte == b'\n').any(|line| line == wanted))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.on {
            let _ = self.thaw();
        }
    }
}
