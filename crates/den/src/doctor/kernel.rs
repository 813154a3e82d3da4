//! Rights and kernel features: each one is used.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use den_sys::{
    SysError, clone,
    mount::{self, LayersBy, OverlayPlan},
    seccomp::{Answers, Filter},
};

use super::{Check, Status, line, program};

/// Kernels from this one on take overlay layers as detached descriptors.
const KERNEL_MIN: (u32, u32) = (6, 15);
/// From the first of these on and before the second, the kernel moves a cgroup ahead of all others whenever its share
/// of a processor is counted anew, which is at each sleep and waking of what is in it (Linux 6d71a9c61604, taken back
/// by 101f3498b4bd): two processes that wake each other without end keep whole processors for seconds.
const STARVES: [(u32, u32, u32); 2] = [(6, 13, 0), (6, 18, 45)];
/// How long a child may take to be in its namespaces; it takes 2 ms.
const CHILD_LIMIT: Duration = Duration::from_millis(500);
/// Ids that the trials shift to: far from any user's.
const BASE: u32 = 1 << 30;

/// Capabilities of linux/capability.h that making a computer uses.
const NEEDED: [(u32, &str); 12] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (3, "FOWNER"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (12, "NET_ADMIN"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (27, "MKNOD"),
];
const SYS_RESOURCE: u32 = 24;

pub(super) fn checks(near: &Path) -> Vec<Check> {
    let release = line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut checks = vec![version(&release), scheduler(&release), clone3(), pidfd(), namespaces()];
    checks.extend(layers(near));
    checks.push(seccomp());
    checks.push(share());
    checks
}

/// Whether this is a root that may do what Den does.
pub(super) fn rights() -> Check {
    const NAME: &str = "rights";
    if !rustix::process::geteuid().is_root() {
        let uid = rustix::process::geteuid().as_raw();
        let means = "Den makes computers as root; inside, root is nobody on the host";
        return Check::fail(NAME, format!("user {uid}, not root"), means).fix("sudo den doctor");
    }
    let held = line("/proc/self/status")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("CapEff:").map(|hex| hex.trim().to_owned())))
        .and_then(|hex| u64::from_str_radix(&hex, 16).ok())
        .unwrap_or(0);
    let lacking: Vec<_> = NEEDED.iter().filter(|(bit, _)| held & 1 << bit == 0).map(|(_, name)| *name).collect();
    if !lacking.is_empty() {
        let means = "this root is itself confined, and cannot make computers";
        return Check::fail(NAME, format!("root without CAP_{}", lacking.join(", CAP_")), means);
    }
    if held & 1 << SYS_RESOURCE == 0 {
        let means =
            "limits cannot be raised above those of this shell, and PID 1 inside is not kept from the OOM killer";
        return Check::warn(NAME, "root without CAP_SYS_RESOURCE", means);
    }
    Check::ok(NAME, "root with all capabilities that Den uses")
}

/// The three numbers that a release begins with; 0 for those that it lacks.
fn numbers(release: &str) -> (u32, u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

fn scheduler(release: &str) -> Check {
    const NAME: &str = "scheduler";
    let [first, mended] = STARVES;
    if !(first..mended).contains(&numbers(release)) {
        return Check::ok(NAME, "no fault known of this kernel's");
    }
    let means = "two processes that wake each other without end may keep all other computers waiting for seconds";
    Check::warn(NAME, format!("Linux {release}, unless its maker has mended it"), means)
        .fix("a kernel of 6.18.45 or later")
}

fn version(release: &str) -> Check {
    let (found_major, found_minor, _) = numbers(release);
    let (major, minor) = KERNEL_MIN;
    if (found_major, found_minor) >= KERNEL_MIN {
        Check::ok("kernel", format!("Linux {release}"))
    } else {
        let means = format!("Den is made for {major}.{minor} and later; what is tried below decides");
        Check::warn("kernel", format!("Linux {release}"), means)
            .fix("apt-get install -t bookworm-backports linux-image-amd64")
    }
}

fn clone3() -> Check {
    if clone::clone3_is_known() {
        Check::ok("clone3", "answers")
    } else {
        Check::fail(
            "clone3",
            "no such call, or a seccomp filter hides it",
            "the launcher starts every computer with it",
        )
    }
}

fn pidfd() -> Check {
    let own = rustix::process::getpid();
    let tried = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).map(|_| "opens".to_owned());
    let tried = tried.map_err(|errno| format!("pidfd_open: {errno}"));
    Check::tried("pidfd", tried, Status::Fail, "a computer's end is learnt by it", None)
}

/// A user namespace with all the others, and one more inside it.
fn namespaces() -> Check {
    let all = ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--cgroup", "--"];
    let nested = ["unshare", "--user", "--map-root-user", "--mount", "true"];
    let run = |arguments: &[&str]| -> Result<(), String> {
        let unshare = program("unshare").ok_or("unshare (util-linux) is not there to try it with")?;
        let output = Command::new(unshare).args(arguments).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("unshare: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(said.lines().next().unwrap_or("no reason given").to_owned()) }
    };
    let fix = "sysctl -w user.max_user_namespaces=100000 user.max_mnt_namespaces=100000 user.max_net_namespaces=100000";
    match (run(&[&all[..], &["true"]].concat()), run(&[&all[..], &nested[..]].concat())) {
        (Err(error), _) => Check::fail("namespaces", error, "a computer is made of them").fix(fix),
        (_, Err(error)) => {
            Check::warn("namespaces", format!("not nested: {error}"), "containers inside a computer will not run")
                .fix(fix)
        }
        _ => Check::ok("namespaces", "user, mount, pid, net, ipc, uts, cgroup; a user namespace nested in one"),
    }
}

/// Idmapped clones of directories where DATA lies, and an overlay of them by descriptor.
fn layers(near: &Path) -> Vec<Check> {
    let means = "computers share their image's layers by it; without it none starts";
    let scratch = match tempfile::Builder::new().prefix(".den-doctor-").tempdir_in(near) {
        Ok(scratch) => scratch,
        Err(error) => {
            let found = format!("{}: {error}", near.display());
            return vec![Check::fail("overlay", found, "DATA must be a directory that can be written to")];
        }
    };
    let place = scratch.path();
    let made = ["lower", "writable/data", "writable/work", "stage"]
        .iter()
        .try_for_each(|name| fs_err::create_dir_all(place.join(name)));
    let shifted = made.and_then(|()| Shifted::new());
    let kind = filesystem(near);

    let idmap =
        shifted.as_ref().map_err(|error| format!("a user namespace to shift by: {error}")).and_then(|shifted| {
            mount::Detached::of_tree(&place.join("lower"), Some(shifted.namespace.as_fd()), mount::Access::ReadOnly)
                .map(|_| format!("open_tree and mount_setattr shift ids on {kind}"))
                .map_err(|error| error.to_string())
        });
    let overlay = shifted.as_ref().map_err(ToString::to_string).and_then(|shifted| {
        let (lower, writable, stage) = (place.join("lower"), place.join("writable"), place.join("stage"));
        let plan = OverlayPlan {
            lower: &[&lower],
            writable: &writable,
            idmap: shifted.namespace.as_fd(),
            base: BASE,
            stage: &stage,
        };
        let by_path = || {
            // In a view of its own, with its own working directory, so that the host never sees the layers.
            mount::own_namespace(|_| true)?;
            mount::overlay(&plan, LayersBy::Path).map(drop)
        };
        // The overlay takes credentials of its own thread, which must not be one of a pool.
        let attempt = |run: &(dyn Fn() -> Result<(), SysError> + Sync)| {
            std::thread::scope(|scope| {
                let tried = scope.spawn(run).join().map_err(|_| "the trial panicked".to_owned())?;
                tried.map_err(|error| error.to_string())
            })
        };
        attempt(&|| mount::overlay(&plan, LayersBy::Descriptor).map(drop))
            .map(|()| format!("from detached, shifted descriptors on {kind}, writable"))
            .or_else(|_| {
                attempt(&by_path)
                    .map(|()| format!("from shifted layers by path on {kind} (Linux before 6.15), writable"))
            })
    });
    vec![
        Check::tried("idmapped mounts", idmap, Status::Fail, means, None),
        Check::tried("overlay", overlay, Status::Fail, means, None),
    ]
}

fn seccomp() -> Check {
    // A filter holds for its thread and ends with it.
    let tried = std::thread::spawn(|| Filter::of_a_computer(Answers::Kernel).install()).join();
    let tried = match tried {
        Ok(result) => result.map(|()| "a computer's filter installs".to_owned()).map_err(|error| error.to_string()),
        Err(_) => Err("the trial panicked".to_owned()),
    };
    Check::tried("seccomp", tried, Status::Fail, "calls that reach out of a computer could not be refused", None)
}

/// Whether programs inside can be shown their computer's share: files by FUSE, calls by a filter's listener.
fn share() -> Check {
    let files = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let fuse = files.lines().any(|line| line.split_whitespace().last() == Some("fuse"));
    // The filter ends with its thread, and the listener before it: nothing is asked meanwhile.
    let calls = std::thread::spawn(|| Filter::of_a_computer(Answers::Listener).install_heard().map(drop)).join();
    let tried = match (fuse, calls) {
        (false, _) => Err("no FUSE in /proc/filesystems".to_owned()),
        (true, Ok(Ok(()))) => Ok("processors, memory and disk are a computer's own inside".to_owned()),
        (true, Ok(Err(error))) => Err(format!("no listener: {error}")),
        (true, Err(_)) => Err("the trial panicked".to_owned()),
    };
    let fix = (!fuse).then_some("modprobe fuse");
    Check::tried("share", tried, Status::Warn, "nproc, free or df inside show the host", fix)
}

/// What the directory lies on, by its statfs magic.
pub(super) fn filesystem(path: &Path) -> String {
    match rustix::fs::statfs(path).map(|stat| stat.f_type as u32) {
        Ok(den_sys::btrfs::MAGIC) => "btrfs".to_owned(),
        Ok(0xef53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "xfs".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x794c_7630) => "overlay".to_owned(),
        Ok(other) => format!("a file system {other:#x}"),
        Err(errno) => format!("an unreadable file system ({errno})"),
    }
}

/// A child in namespaces of its own, ended when dropped.
pub(super) struct Inside(Child);

impl Inside {
    /// Starts one in a new namespace; `kind` is its name below /proc/PID/ns.
    pub(super) fn start(option: &str, kind: &str) -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "unshare (util-linux) is not there to try it with");
        let unshare = program("unshare").ok_or_else(missing)?;
        let mut command = Command::new(unshare);
        // `cat` waits for as long as our end of its pipe is open: it cannot outlive us.
        command.args([option, "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut inside = Self(command.spawn()?);
        let ours = fs_err::read_link(format!("/proc/self/ns/{kind}"))?;
        let theirs = format!("/proc/{}/ns/{kind}", inside.pid());
        let begun = Instant::now();
        while fs_err::read_link(&theirs)? == ours {
            if let Some(status) = inside.0.try_wait()? {
                return Err(io::Error::other(format!("unshare {option}: {status}")));
            }
            if begun.elapsed() > CHILD_LIMIT {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("unshare {option} takes too long")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(inside)
    }

    pub(super) fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill(); // It may have ended by itself.
        let _ = self.0.wait();
    }
}

/// A user namespace in which 0 is [`BASE`].
struct Shifted {
    namespace: File,
    _inside: Inside,
}

impl Shifted {
    fn new() -> io::Result<Self> {
        let inside = Inside::start("--user", "user")?;
        let pid = inside.pid();
        for map in ["uid_map", "gid_map"] {
            fs_err::write(format!("/proc/{pid}/{map}"), format!("0 {BASE} 65536"))?;
        }
        Ok(Self { namespace: File::open(format!("/proc/{pid}/ns/user"))?, _inside: inside })
    }
}

#[cfg(test)]
mod tests {
    use super::{numbers, scheduler};
    use crate::doctor::Status;

    #[test]
    fn kernels_that_starve_are_told_by_their_release() {
        assert_eq!(numbers("6.18.44-fc-v669"), (6, 18, 44));
        assert_eq!(numbers("7.1"), (7, 1, 0));
        for release in ["6.13.0", "6.14.0-33-generic", "6.18.44-fc-v669"] {
            assert_eq!(scheduler(release).status, Status::Warn, "{release}");
        }
        for release in ["6.1.0-44-amd64", "6.12.48+deb13-amd64", "6.18.45", "6.19.1", "7.0.0"] {
            assert_eq!(scheduler(release).status, Status::Ok, "{release}");
        }
    }
}
