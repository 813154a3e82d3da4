//! The host around it: memory, swap, settings, sockets, packages.

use std::{
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use den_control::Criu;
use den_model::Bytes;

use super::{Check, line, nearest, program};

/// Memory with which a few computers do something useful.
const MEMORY_BYTES_GOOD: u64 = 1 << 30;
/// sockaddr_un holds 108 bytes, the last a zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What many computers on one kernel want: limits that all of them share.
const SHARED: [(&str, u64); 6] = [
    ("fs.file-max", 1 << 30),
    ("fs.inotify.max_user_instances", 8192),
    ("fs.inotify.max_user_watches", 1 << 20),
    ("vm.max_map_count", 1 << 20),
    ("kernel.pid_max", 1 << 22),
    ("kernel.pty.max", 4096),
];

/// Mounts of one mount namespace. The kernel holds up every look at a path, on all processors, for as long as it
/// takes to copy or undo the mounts of a namespace: a third of a second for 100,000.
const MOUNTS_GOOD: i64 = 1024;
/// The processors that threads of the kernel run on which are bound to none (core-api/workqueue of its documentation).
const WORKQUEUES: &str = "/sys/devices/virtual/workqueue/cpumask";

/// What keeps a root inside from learning about or reaching the host: setting, least, most.
const HARDENING: [(&str, i64, i64); 10] = [
    ("kernel.dmesg_restrict", 1, 1),
    ("kernel.unprivileged_bpf_disabled", 1, 2),
    ("kernel.perf_event_paranoid", 2, 4),
    ("kernel.kptr_restrict", 1, 2),
    ("vm.unprivileged_userfaultfd", 0, 0),
    ("dev.tty.legacy_tiocsti", 0, 0),
    ("fs.protected_symlinks", 1, 1),
    ("fs.protected_hardlinks", 1, 1),
    ("fs.protected_fifos", 1, 2),
    ("fs.protected_regular", 1, 2),
];

pub(super) fn checks(data: &Path, run: &Path) -> Vec<Check> {
    vec![
        memory(),
        swap(),
        memory_to_disk(data),
        shared(),
        mounts(),
        workqueues(),
        hardening(),
        sockets(run),
        builder(),
        nftables(),
    ]
}

fn meminfo(key: &str) -> Option<u64> {
    let text = line("/proc/meminfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

fn memory() -> Check {
    let (Some(total), Some(available)) = (meminfo("MemTotal"), meminfo("MemAvailable")) else {
        return Check::warn("memory", "/proc/meminfo does not say", "how many computers fit is not known");
    };
    let found = format!("{} of {} available", Bytes(available), Bytes(total));
    if available >= MEMORY_BYTES_GOOD {
        Check::ok("memory", found)
    } else {
        Check::warn("memory", found, "few computers will fit: an idle one takes 3 MiB, a build 1 GiB")
    }
}

fn swap() -> Check {
    let means = "paused computers keep their memory, and one at its limit loses processes at once";
    match (meminfo("SwapTotal"), Path::new("/sys/block/zram0").exists()) {
        (Some(total), _) if total > 0 => {
            Check::ok("swap", format!("{}; paused computers give their memory back", Bytes(total)))
        }
        (_, true) => Check::warn("swap", "none; zram is there", means)
            .fix("echo 4G > /sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0"),
        _ => Check::warn("swap", "none", means).fix("apt-get install zram-tools"),
    }
}

fn memory_to_disk(data: &Path) -> Check {
    let named = std::env::var_os("DEN_CRIU").map(PathBuf::from);
    match Criu::find(named.as_deref(), data) {
        Ok(Criu { program, version }) => Check::ok("criu", format!("{version}, {}", program.display())),
        Err(why) => Check::warn("criu", why, "`den pause --to-disk` is refused")
            .fix("install CRIU 4.2 or newer, or name one: den serve --criu FILE"),
    }
}

fn setting(name: &str) -> Option<i64> {
    // A dot parts directories, and no file name among ours has one.
    line(PathBuf::from("/proc/sys").join(name.replace('.', "/")))?.parse().ok()
}

fn shared() -> Check {
    let low: Vec<_> = SHARED
        .iter()
        .filter_map(|&(name, wanted)| Some((name, setting(name)?, wanted)))
        .filter(|&(_, found, wanted)| found < wanted as i64)
        .collect();
    if low.is_empty() {
        return Check::ok("shared limits", "as advised for many computers");
    }
    let found: Vec<_> = low.iter().map(|(name, found, wanted)| format!("{name} {found} < {wanted}")).collect();
    let fix: Vec<_> = low.iter().map(|(name, _, wanted)| format!("{name}={wanted}")).collect();
    Check::warn("shared limits", found.join(", "), "all computers share these, and hundreds will meet them")
        .fix(format!("sysctl -w {}", fix.join(" ")))
}

fn mounts() -> Check {
    let found = setting("fs.mount-max").unwrap_or(0);
    if (1..=MOUNTS_GOOD).contains(&found) {
        return Check::ok("mounts", format!("{found} in each computer at most"));
    }
    let means = "one computer that mounts without end makes all others wait, for longer the more it may have";
    Check::warn("mounts", format!("fs.mount-max {found} > {MOUNTS_GOOD}"), means)
        .fix(format!("sysctl -w fs.mount-max={MOUNTS_GOOD}"))
}

/// Whether the kernel's own work for computers (writes, their checksums) leaves a processor to those at work, as
/// computers that keep it busy do.
fn workqueues() -> Check {
    const NAME: &str = "workqueues";
    let online = line("/sys/devices/system/cpu/online");
    let last = online.and_then(|online| online.rsplit([',', '-']).next()?.parse::<usize>().ok());
    let Some((mask, last)) = line(WORKQUEUES).zip(last) else {
        return Check::ok(NAME, "not to be divided on this kernel");
    };
    let without = mask_without(&mask, last);
    if !mask_has(&mask, last) {
        return Check::ok(NAME, format!("leave processor {last} to who is at work"));
    }
    if without.chars().all(|digit| "0,".contains(digit)) {
        return Check::ok(NAME, "one processor");
    }
    let means = "the kernel's own work for a computer that writes without end is done on any processor";
    Check::warn(NAME, format!("on all processors ({mask})"), means).fix(format!("echo {without} > {WORKQUEUES}"))
}

/// Whether processor `number` is in a mask of the kernel: hexadecimal, a comma after each 32 bits, the highest first.
fn mask_has(mask: &str, number: usize) -> bool {
    let digit = mask.chars().rev().filter(char::is_ascii_hexdigit).nth(number / 4);
    digit.and_then(|digit| digit.to_digit(16)).is_some_and(|digit| digit >> (number % 4) & 1 == 1)
}

/// The mask without processor `number`.
fn mask_without(mask: &str, number: usize) -> String {
    let mut digits = 0;
    let without = mask.chars().rev().map(|digit| {
        let Some(value) = digit.to_digit(16) else { return digit };
        digits += 1;
        let is_in = digits - 1 == number / 4;
        char::from_digit(if is_in { value & !(1 << (number % 4)) } else { value }, 16).unwrap_or(digit)
    });
    without.collect::<Vec<_>>().into_iter().rev().collect()
}

fn hardening() -> Check {
    let loose: Vec<_> = HARDENING
        .iter()
        .filter_map(|&(name, least, most)| {
            // Absent from this kernel: nothing to shut.
            let found = setting(name)?;
            (!(least..=most).contains(&found)).then_some((name, found, if found < least { least } else { most }))
        })
        .collect();
    if loose.is_empty() {
        return Check::ok("hardening", "settings as advised");
    }
    let found: Vec<_> = loose.iter().map(|(name, found, _)| format!("{name}={found}")).collect();
    let fix: Vec<_> = loose.iter().map(|(name, _, wanted)| format!("{name}={wanted}")).collect();
    Check::warn("hardening", found.join(", "), "computers see or may try a little more of this host than they need")
        .fix(format!("sysctl -w {}", fix.join(" ")))
}

/// A socket of the length that a computer's has, where RUN is or will be.
pub(super) fn sockets(run: &Path) -> Check {
    const NAME: &str = "run directory";
    let longest = run.join("computers").join(format!("cmp_{}", "0".repeat(26))).join("agent.sock");
    let length = longest.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let found = format!("{}: sockets in it would have paths of {length} bytes", run.display());
        let means = format!("the kernel takes {SOCKET_PATH_BYTES_MAX}; Den cannot reach its computers");
        return Check::fail(NAME, found, means).fix("den serve --run /run/den");
    }
    let near = nearest(run);
    let tried = tempfile::Builder::new().prefix(".den-").tempdir_in(&near).and_then(|scratch| {
        UnixListener::bind(scratch.path().join("s")).map(drop)?;
        scratch.close()
    });
    match tried {
        Ok(()) => Check::ok(NAME, format!("{} takes sockets", near.display())),
        Err(error) => Check::fail(NAME, format!("{}: {error}", near.display()), "Den cannot reach its computers"),
    }
}

fn builder() -> Check {
    match ["mmdebstrap", "debootstrap"].into_iter().find_map(program) {
        Some(path) => Check::ok("image builder", path.display().to_string()),
        None => {
            let means = "images are pulled or imported; `den image build` has nothing to build with";
            Check::warn("image builder", "neither mmdebstrap nor debootstrap", means).fix("apt-get install mmdebstrap")
        }
    }
}

fn nftables() -> Check {
    match program("nft") {
        Some(path) => Check::ok("nftables", path.display().to_string()),
        None => {
            Check::warn("nftables", "nft is not there", "the gate between computers and the network cannot be set up")
                .fix("apt-get install nftables")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{mask_has, mask_without};

    #[test]
    fn a_mask_loses_one_processor() {
        for (mask, number, without) in [
            ("3", 1, "1"),
            ("ff", 7, "7f"),
            ("ffffffff,ffffffff", 63, "7fffffff,ffffffff"),
            ("f,00000000", 32, "e,00000000"),
        ] {
            assert!(mask_has(mask, number), "{mask} {number}");
            assert_eq!(mask_without(mask, number), without);
            assert!(!mask_has(without, number));
        }
        assert!(!mask_has("3", 2) && !mask_has("3", 64));
    }
}
