//! The making of a husk, and how it becomes a computer.
//!
//! ```text
//! builder                      helper (own user namespace)      husk (all namespaces, below it)
//! clone as owner BASE ───────► enter cgroups, wait
//! write maps 0→BASE ─────────► become 0, set limits on nesting
//!                              clone sibling ─────────────────► wait
//!                  ◄─── pid ── write maps 0→0, exit
//! limits, link ───────────────────────────────────────────────► mounts, loopback, eth0
//! launcher         ◄──────────────────────────────────── ready  parked
//! take: overlay, /dev, listener, agent ───────────────────────► attach, pivot, drop, exec
//!                  ◄─────────────────────── (socket closes) or the stage and errno of a failure
//! ```
//!
//! Two levels of user namespaces, since root of a namespace may raise the limits in its own
//! /proc/sys/user, but not those of the level above. Its owner is BASE and not the host's root:
//! inotify instances and the like are counted against the owner, so one computer cannot use up
//! everybody's. The builder clones both as siblings: the launcher is their parent and collects them.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use den_sys::SysError;
use den_sys::cgroup::{self, Door};
use den_sys::clone::{self, Cloned};
use den_sys::creds::{self, EffectiveIds};
use den_sys::mount::{self, Access, Detached, Links};
use den_sys::seccomp::Filters;
use den_sys::socket;
use den_wire::launcher::MOUNT_POINT;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use super::cell::Parts;
use super::ids::ids;
use super::net;

/// Namespaces that a computer may nest, per kind. A network namespace takes about 100 KB that no
/// memory limit counts.
const NESTING: [(&str, &str); 8] = [
    ("max_net_namespaces", "64"),
    ("max_user_namespaces", "256"),
    ("max_mnt_namespaces", "256"),
    ("max_pid_namespaces", "256"),
    ("max_ipc_namespaces", "64"),
    ("max_uts_namespaces", "64"),
    ("max_cgroup_namespaces", "64"),
    ("max_time_namespaces", "64"),
];

/// Terminals of one computer; the host has 4096 for all.
const PTYS_MAX: &str = "256";
/// Size of /run.
const RUN_BYTES: &str = "64m";
/// How long the builder waits for the helper.
const HELPER_SECONDS: u64 = 5;

/// Where the husk's own socket lies; what it opens comes after.
const SOCKET: i32 = 3;

/// Where the agent finds the calls that it is to answer, if it is.
const CALLS: i32 = 4;

/// Devices of a computer.
const DEVICES: [(&str, u32, u32); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("net/tun", 10, 200),
];

/// What comes with the image. The descriptors beside it: overlay, /dev, listener, agent, then one
/// per volume, then one per shared volume.
#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(super) struct Take {
    #[n(0)]
    pub hostname: String,
    #[n(1)]
    pub shm_bytes: u64,
    #[n(2)]
    pub volumes: Vec<String>,
    /// Where its disk is counted, below a sysfs; empty where it is not.
    #[n(3)]
    pub counter: String,
    /// Where shared volumes are seen; their descriptors come last.
    #[n(4)]
    pub shared: Vec<String>,
}

/// What a husk says when it is parked.
pub(super) const PARKED: &[u8] = b"parked";

/// A husk's first process, which prepares itself once it is let [`go`].
pub(super) struct Started {
    pub pid: i32,
    pub parts: Parts,
}

/// Clones helper and husk into the cgroup behind `door`, as siblings of this process. The husk waits
/// for [`go`] before it does anything.
pub(super) fn start(base: u32, door: &Door, filters: &Filters) -> Result<Started, SysError> {
    let dev = make_dev(base, None)?;
    let (ours, theirs) = socket::packet_pair()?;
    let owner = EffectiveIds::become_owner(base)?;
    let helper = match clone::clone_into(clone::USER_NAMESPACE | clone::SIBLING, door.unified())? {
        Cloned::Parent(helper) => helper,
        Cloned::Child => {
            std::mem::forget(owner);
            run_helper(theirs, door, filters)
        }
    };
    drop(owner);
    drop(theirs);
    let (pid, namespace) = introduce(&ours, helper.pid, base)?;
    Ok(Started { pid, parts: Parts { socket: ours, namespace, dev } })
}

/// Gives the helper its ids and learns of the husk.
fn introduce(socket: &OwnedFd, helper: i32, base: u32) -> Result<(i32, OwnedFd), SysError> {
    let map = format!("0 {base} {}\n", ids().per_slot);
    write_proc(&format!("/proc/{helper}/uid_map"), &map)?;
    write_proc(&format!("/proc/{helper}/gid_map"), &map)?;
    let path = format!("/proc/{helper}/ns/user");
    let namespace = fs::File::open(&path).map_err(|error| SysError::io("open", Path::new(&path), &error))?;
    rustix::net::sockopt::set_socket_timeout(
        socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(std::time::Duration::from_secs(HELPER_SECONDS)),
    )
    .map_err(SysError::rustix("setsockopt(RCVTIMEO)", ""))?;
    socket::send(socket, b"maps", &[])?;
    let mut answer = [0_u8; 512];
    let length = socket::receive(socket, &mut answer, &mut Vec::new())?;
    if let Some(pid) = answer[..length].try_into().ok().map(i32::from_ne_bytes) {
        return Ok((pid, namespace.into()));
    }
    Err(parse_failure(&answer[..length]).unwrap_or_else(|| SysError::new("helper", "ended early", 0)))
}

/// Lets a husk prepare itself, once its link is there.
pub(super) fn go(socket: &OwnedFd) -> Result<(), SysError> {
    socket::send(socket, b"go", &[]).map(drop)
}

/// A failure on its way from a husk: `call NUL about NUL errno`.
pub(super) fn parse_failure(bytes: &[u8]) -> Option<SysError> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut parts = text.split('\0');
    let (call, about, errno) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
    // The call's name comes from another copy of this program; it is kept as part of the subject.
    Some(SysError::new("launch", format!("{call} {about}"), errno))
}

fn fail(socket: BorrowedFd<'_>, error: &SysError) -> ! {
    let mut text = format!("{}\0{}\0{}", error.call, error.about, error.errno);
    if text.len() > 500 {
        text = format!("{}\0\0{}", error.call, error.errno);
    }
    let _ = socket::send(socket, text.as_bytes(), &[]);
    clone::exit_now(1)
}

fn run_helper(socket: OwnedFd, door: &Door, filters: &Filters) -> ! {
    if let Err(error) = door.enter() {
        fail(socket.as_fd(), &error);
    }
    let own = door.unified().is_some();
    // Everything else that the builder has open is closed here: a copy of another husk's socket
    // would keep it from noticing the launcher's end.
    if clone::place(socket.as_fd(), SOCKET).is_err() {
        clone::exit_now(1);
    }
    std::mem::forget(socket);
    clone::close_from(SOCKET as u32 + 1);
    let socket = mount::adopt(SOCKET);
    match help(&socket, own, filters) {
        Ok(()) => clone::exit_now(0),
        Err(error) => fail(socket.as_fd(), &error),
    }
}

/// `own`: whether the husk has a cgroup of its own in v2.
fn help(socket: &OwnedFd, own: bool, filters: &Filters) -> Result<(), SysError> {
    let mut message = [0_u8; 16];
    if socket::receive(socket, &mut message, &mut Vec::new())? == 0 {
        return Err(SysError::new("helper", "no launcher", 0));
    }
    creds::become_inner_root()?;
    creds::set_dumpable();
    for (file, limit) in NESTING {
        write_proc(&format!("/proc/sys/user/{file}"), limit)?;
    }
    let husk = match clone::clone(clone::COMPUTER_NAMESPACES | clone::SIBLING)? {
        Cloned::Parent(husk) => husk,
        Cloned::Child => run_husk(own, filters),
    };
    let map = format!("0 0 {}\n", ids().per_slot);
    let introduced = write_proc(&format!("/proc/{}/uid_map", husk.pid), &map)
        .and_then(|()| write_proc(&format!("/proc/{}/gid_map", husk.pid), &map))
        .and_then(|()| socket::send(socket, &husk.pid.to_ne_bytes(), &[]));
    if let Err(error) = introduced {
        if let Some(pid) = rustix::process::Pid::from_raw(husk.pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        return Err(error);
    }
    Ok(())
}

fn run_husk(own: bool, filters: &Filters) -> ! {
    let socket = mount::adopt(SOCKET);
    let Err(error) = live(&socket, own, filters);
    fail(socket.as_fd(), &error)
}

/// The husk's life. Returns only with a failure; when the launcher ends, so does a parked husk.
fn live(socket: &OwnedFd, own: bool, filters: &Filters) -> Result<std::convert::Infallible, SysError> {
    let mut message = vec![0_u8; 16 << 10];
    if socket::receive(socket, &mut message, &mut Vec::new())? == 0 {
        clone::exit_now(0);
    }
    creds::become_inner_root()?;
    rustix::process::setsid().map_err(SysError::rustix("setsid", ""))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    mount::propagate_root(MountPropagationFlags::PRIVATE)?;
    let parts = Prepared::new(own)?;
    socket::send(socket, PARKED, &[])?;
    let mut fds = Vec::new();
    let length = socket::receive(socket, &mut message, &mut fds)?;
    if length == 0 {
        clone::exit_now(0);
    }
    let take: Take = minicbor::decode(&message[..length]).map_err(|_| SysError::new("take", "malformed", 0))?;
    become_computer(parts, &take, fds, filters)
}

/// Mounts that do not depend on the image.
struct Prepared {
    proc: Detached,
    sys: Detached,
    spare_proc: Detached,
    spare_sys: Detached,
    pts: Detached,
    mqueue: Detached,
    run: Detached,
    cgroup: Option<Detached>,
}

impl Prepared {
    fn new(own: bool) -> Result<Self, SysError> {
        let quiet =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let new = mount::new_filesystem;
        let ptys = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"), ("max", PTYS_MAX)];
        // The root of what `cgroup` shows is the cgroup that we were born in.
        clone::unshare(clone::Unshare::Cgroup)?;
        net::set_up_inside()?;
        Ok(Self {
            proc: new("proc", &[], quiet)?,
            // Read-only as a mount, not as a file system: else no writable one could be mounted
            // later, as `ip netns exec` and `docker --privileged` do.
            sys: new("sysfs", &[], quiet | MountAttrFlags::MOUNT_ATTR_RDONLY)?,
            // `ip netns exec` unmounts /sys first; the kernel then lets nobody mount a new one
            // unless another full view is left somewhere. These are it.
            spare_proc: new("proc", &[], quiet)?,
            spare_sys: new("sysfs", &[], quiet)?,
            pts: new("devpts", &ptys, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC)?,
            mqueue: new("mqueue", &[], quiet)?,
            run: new(
                "tmpfs",
                &[("mode", "0755"), ("size", RUN_BYTES)],
                MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
            )?,
            // Of who has none of its own it would show the host's.
            cgroup: if own { cgroup::new_unified().ok() } else { None },
        })
    }
}

fn become_computer(
    parts: Prepared,
    take: &Take,
    fds: Vec<OwnedFd>,
    filters: &Filters,
) -> Result<std::convert::Infallible, SysError> {
    let mut fds = fds.into_iter();
    let mut next = |what: &'static str| fds.next().ok_or(SysError::new("take", what, 0));
    let root = Detached::from_fd(next("no root")?);
    let dev = Detached::from_fd(next("no /dev")?);
    let listener = next("no listener")?;
    let agent = Detached::from_fd(next("no agent")?);
    let volumes: Vec<Detached> = fds.map(Detached::from_fd).collect();

    // The working directory is an empty one that the launcher keeps for this.
    root.attach(".")?;
    rustix::process::fchdir(root.as_fd()).map_err(SysError::rustix("fchdir", "root"))?;
    for directory in ["proc", "sys", "dev", "run", "tmp"] {
        let mode = Mode::from_raw_mode(if directory == "tmp" { 0o1777 } else { 0o755 });
        match rustix::fs::mkdir(directory, mode) {
            Ok(()) if directory == "tmp" => {
                rustix::fs::chmod("tmp", mode).map_err(SysError::rustix("chmod", "tmp"))?;
            }
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(SysError::new("mkdir", directory, errno.raw_os_error())),
        }
    }
    parts.proc.attach("proc")?;
    parts.sys.attach("sys")?;
    dev.attach("dev")?;
    parts.pts.attach("dev/pts")?;
    let shm = mount::new_filesystem(
        "tmpfs",
        &[("mode", "1777"), ("size", &take.shm_bytes.to_string())],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    shm.attach("dev/shm")?;
    parts.mqueue.attach("dev/mqueue")?;
    parts.spare_proc.attach("dev/.den/proc")?;
    parts.spare_sys.attach("dev/.den/sys")?;
    agent.attach("dev/.den/agent")?;
    parts.run.attach("run")?;
    show_boot_id()?;
    match rustix::fs::mkdir("run/lock", Mode::from_raw_mode(0o1777)) {
        Ok(()) => {
            rustix::fs::chmod("run/lock", Mode::from_raw_mode(0o1777)).map_err(SysError::rustix("chmod", "run/lock"))?
        }
        Err(errno) => return Err(SysError::new("mkdir", "run/lock", errno.raw_os_error())),
    }
    if let Some(cgroup) = &parts.cgroup {
        cgroup.attach("sys/fs/cgroup")?;
    }
    for (volume, path) in volumes.iter().zip(&take.volumes) {
        mount::attach_in(root.as_fd(), volume, path, Links::Followed)?;
    }
    // The tree is the computer's, which may have anything at that path by now.
    for (volume, path) in volumes.iter().skip(take.volumes.len()).zip(&take.shared) {
        mount::attach_in(root.as_fd(), volume, path, Links::Refused)
            .map_err(|error| SysError::new(MOUNT_POINT, path, error.errno))?;
    }
    // The overlay notes where a directory comes from when it first looks at it: that is no step's doing.
    let _ = rustix::fs::stat("etc");
    mount::pivot_here()?;
    mount::propagate_root(MountPropagationFlags::SHARED)?;
    rustix::system::sethostname(take.hostname.as_bytes()).map_err(SysError::rustix("sethostname", &take.hostname))?;

    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, Mode::empty())
        .map_err(SysError::rustix("open", "/dev/null"))?;
    // Uptime, and when processes began, by the computer's own start. A kernel that has no such thing shows the host's.
    let _ = clone::begin_time(parts.proc.as_fd());
    creds::drop_bounding()?;
    // The socket moves away from the listener's number; it closes when the agent is executed.
    let socket = mount::adopt(SOCKET);
    let socket = rustix::io::fcntl_dupfd_cloexec(&socket, 10).map_err(SysError::rustix("fcntl(DUPFD)", ""))?;
    for number in 0..3 {
        clone::place(null.as_fd(), number)?;
    }
    // So that it is at neither of the two numbers.
    let agent = rustix::io::fcntl_dupfd_cloexec(&agent, 10).map_err(SysError::rustix("fcntl(DUPFD)", ""))?;
    clone::place(listener.as_fd(), SOCKET)?;
    clone::ignore_faults();
    let counter = CString::new(format!("DEN_COUNTER={}", take.counter)).unwrap_or_default();
    let mut environment = vec![
        c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        c"HOME=/root",
        c"LANG=C.UTF-8",
        c"container=den",
    ];
    if !take.counter.is_empty() {
        environment.push(&counter);
    }
    match filters.install().and_then(|calls| calls.map(|calls| clone::place(calls.as_fd(), CALLS)).transpose()) {
        Ok(Some(())) => environment.push(c"DEN_CALLS=4"),
        Ok(None) => {}
        Err(error) => fail(socket.as_fd(), &error),
    }
    let error = clone::exec_fd(agent.as_fd(), &[c"den-agent", c"init"], &environment);
    fail(socket.as_fd(), &error)
}

/// Gives the computer a boot id of its own, new at each boot: the kernel shows the host's to everyone.
///
/// A proc that is mounted anew inside has the host's; the spare one is left as it is, since the kernel
/// allows a new one only where a whole one is seen.
fn show_boot_id() -> Result<(), SysError> {
    const FILE: &str = "dev/.den/boot_id";
    let path = Path::new("proc/sys/kernel/random/uuid");
    let id = fs::read(path).map_err(|error| SysError::io("read", path, &error))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(rustix::fs::CWD, FILE, flags, Mode::from_raw_mode(0o444))
        .map_err(SysError::rustix("create", FILE))?;
    rustix::io::write(&file, &id).map_err(SysError::rustix("write", FILE))?;
    Detached::of_tree(Path::new(FILE), None, Access::ReadOnly)?.attach("proc/sys/kernel/random/boot_id")
}

/// A /dev of the host's making, so that it has real devices: root inside can make none.
/// With the id of its boot, where it has one already.
pub(crate) fn make_dev(base: u32, boot_id: Option<&str>) -> Result<Detached, SysError> {
    let owner = base.to_string();
    let options =
        [("size", "1m"), ("nr_inodes", "4096"), ("mode", "755"), ("uid", owner.as_str()), ("gid", owner.as_str())];
    // As what is bound from it: inside, nobody may change how times of access are kept, CRIU neither.
    let noatime = MountAttrFlags::MOUNT_ATTR_NOATIME;
    let dev = mount::new_filesystem(
        "tmpfs",
        &options,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | noatime,
    )?;
    let own = |name: &str| {
        rustix::fs::chownat(&dev, name, Some(Uid::from_raw(base)), Some(Gid::from_raw(base)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(SysError::rustix("chown", name))
    };
    for (name, mode) in [
        ("pts", 0o755),
        ("shm", 0o755),
        ("mqueue", 0o755),
        ("net", 0o755),
        (".den", 0o700),
        (".den/proc", 0o755),
        (".den/sys", 0o755),
    ] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(mode)).map_err(SysError::rustix("mkdir", name))?;
        own(name)?;
    }
    let file = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(&dev, ".den/agent", file, Mode::from_raw_mode(0o555))
        .map_err(SysError::rustix("create", ".den/agent"))?;
    own(".den/agent")?;
    if let Some(boot_id) = boot_id {
        let made = rustix::fs::openat(&dev, ".den/boot_id", file, Mode::from_raw_mode(0o444))
            .map_err(SysError::rustix("create", ".den/boot_id"))?;
        rustix::io::write(&made, boot_id.as_bytes()).map_err(SysError::rustix("write", ".den/boot_id"))?;
        own(".den/boot_id")?;
    }
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        match rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, clone::device(major, minor)) {
            Ok(()) => own(name)?,
            // Inside a computer no devices are made: its own are shown to those in it.
            Err(rustix::io::Errno::PERM) => show_device(&dev, name)?,
            Err(errno) => return Err(SysError::new("mknod", name, errno.raw_os_error())),
        }
    }
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
        ("null", "kmsg"),
    ] {
        rustix::fs::symlinkat(target, &dev, name).map_err(SysError::rustix("symlink", name))?;
        own(name)?;
    }
    Ok(dev)
}

/// Puts this process's own device there.
fn show_device(dev: &Detached, name: &str) -> Result<(), SysError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666)).map_err(SysError::rustix("create", name))?;
    Detached::of_tree(&Path::new("/dev").join(name), None, Access::ReadWrite)?.attach_below(dev.as_fd(), name)
}

fn write_proc(path: &str, text: &str) -> Result<(), SysError> {
    let write = || {
        use std::io::Write;
        // One write: the kernel takes a map only whole.
        fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    };
    write().map_err(|error| SysError::io("write", Path::new(path), &error))
}
