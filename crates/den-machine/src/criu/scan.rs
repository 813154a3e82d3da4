//! A dry look at what runs inside, before anything is stopped for it: what CRIU cannot write down.
//!
//! It may miss something, since what runs goes on meanwhile: then CRIU refuses, and the computer goes on.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatvfs, openat2};

use crate::Shared;

/// Devices that hold nothing: null, zero, full, random, urandom, tty, console and terminals.
const HARMLESS: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];

/// File systems in memory, and how many files a boot makes in each: /run has itself and `lock`.
const IN_MEMORY: [(&str, u64); 2] = [("run", 2), ("dev/shm", 1)];

/// Whether nothing runs beside the first process, and nothing was put into memory.
pub(super) fn is_empty(first: u32) -> bool {
    // Whoever has lost its parent is a child of the first.
    let alone = children().get(&first).into_iter().flatten().all(|&pid| has_ended(pid));
    alone && IN_MEMORY.iter().all(|(path, files)| files_in(first, path).is_some_and(|found| found <= *files)) && {
        let table = fs::read_to_string(format!("/proc/{first}/mountinfo")).unwrap_or_default();
        let ours =
            |point: &str| point == "/run" || ["/dev", "/proc/", "/sys/"].iter().any(|ours| point.starts_with(ours));
        !table.is_empty() && points(&table).all(|(point, kind)| ours(point) || !matches!(kind, "tmpfs" | "ramfs"))
    }
}

/// Whether nobody but its parent has yet to hear of it.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X')))
}

/// How many files the file system at a path inside has.
fn files_in(first: u32, path: &str) -> Option<u64> {
    let root = fs::File::open(format!("/proc/{first}/root")).ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let place = openat2(&root, path, flags, Mode::empty(), resolve).ok()?;
    let facts = fstatvfs(&place).ok()?;
    facts.f_files.checked_sub(facts.f_ffree)
}

/// Where what is mounted, and of which kind.
fn points(table: &str) -> impl Iterator<Item = (&str, &str)> {
    table.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        Some((front.split(' ').nth(4)?, back.split(' ').next()?))
    })
}

/// Says what cannot be written down, and whose it is.
pub(super) fn scan(first: u32, shared: &[Shared]) -> Result<(), String> {
    let children = children();
    let mut all = vec![first];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children.get(pid).into_iter().flatten());
        at += 1;
    }
    let space = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let own = ["user", "net", "uts", "ipc", "pid", "time"].map(|kind| (kind, space(first, kind)));
    for &pid in &all {
        let refuse = |what: &str| Err(format!("`{}` ({}) {what}", name(pid), inside(pid)));
        if pid == first && name(pid).starts_with("systemd") {
            return refuse("runs the computer, and its namespaces cannot be written down");
        }
        for (kind, namespace) in &own {
            if pid != first && space(pid, kind).is_some_and(|its| Some(its) != *namespace) {
                return refuse(&format!("has a {kind} namespace of its own, as containers inside have"));
            }
        }
        // The agent lets go of what it has open before it is written down.
        for (at, target) in descriptors(pid).filter(|_| pid != first) {
            let what = target.to_string_lossy();
            // Others take it meanwhile, or have it: then nothing could be read back.
            if shared.iter().any(|shared| target.starts_with(&shared.path)) && is_locked(pid, &at) {
                return refuse(&format!("holds a lock on {what}, which is on a shared volume"));
            }
            if let Some(device) = what.strip_prefix("/dev/") {
                let terminal =
                    device.starts_with("pts/") || device.starts_with("shm/") || device.starts_with("mqueue/");
                if !terminal && !HARMLESS.contains(&device) && !device.starts_with(".den/") {
                    let means = if device == "fuse" { "serves a file system" } else { "has a device open" };
                    return refuse(&format!("{means}: {what}"));
                }
            } else if let Some(kind) = what.strip_prefix("anon_inode:") {
                let kind = kind.trim_matches(['[', ']']);
                if ["io_uring", "inotify", "fanotify", "perf_event", "bpf-prog", "bpf-map", "userfaultfd", "seccomp"]
                    .contains(&kind)
                {
                    return refuse(&format!("has {kind} open, which cannot be written down"));
                }
            } else if fs::metadata(&at).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                // A file of FUSE, which tells nobody outside anything: in /proc and /sys it is one of the view's.
                return refuse(&format!("has {what} open, which is served inside"));
            }
        }
    }
    mounts(first)
}

/// What is mounted inside that cannot be mounted again.
fn mounts(first: u32) -> Result<(), String> {
    let table = fs::read_to_string(format!("/proc/{first}/mountinfo")).unwrap_or_default();
    for (point, kind) in points(&table) {
        let ours = point == "/" || point.starts_with("/proc/") || point.starts_with("/sys/");
        if !ours && (kind == "overlay" || kind.starts_with("fuse") || kind == "ramfs" || kind == "nsfs") {
            return Err(format!("a file system of the kind {kind} is mounted at {point}"));
        }
    }
    Ok(())
}

/// Whose parent is who, of all processes.
fn children() -> HashMap<u32, Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

/// Its open files: the link in /proc, and what it says.
fn descriptors(pid: u32) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let folder = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
    let links = folder.into_iter().flatten().flatten().map(|entry| entry.path());
    links.filter_map(|at| Some((at.clone(), fs::read_link(&at).ok()?)))
}

/// Whether a process holds a lock by this open file.
fn is_locked(pid: u32, at: &Path) -> bool {
    let number = at.file_name().unwrap_or_default();
    let facts = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("fdinfo").join(number));
    facts.is_ok_and(|facts| facts.lines().any(|line| line.starts_with("lock:")))
}

fn name(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    text.trim_end().chars().filter(|c| !c.is_control()).collect()
}

/// Its number inside.
fn inside(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|numbers| numbers.split_whitespace().next_back()).unwrap_or("?").to_owned()
}
