//! What is left of a daemon on the host: processes, cgroups, mounts, loop devices, network, sockets.
//!
//! Found by name only: whatever Den makes carries the run folder's name, its path or the data
//! folder's path. So this finds what a sweep would have to find, without asking Den.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

/// A line for each thing that is left; empty when the host is as it was.
pub fn leftovers(run: &Path, data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (pid, why) in processes(run, data) {
        found.push(format!("process {pid}: {why}"));
    }
    found.extend(cgroups(run).into_iter().map(|dir| format!("cgroup {}", dir.display())));
    found.extend(mounts(run, data).into_iter().map(|point| format!("mount {point}")));
    found.extend(loops(run, data).into_iter().map(|(device, file)| format!("loop device {device}: {file}")));
    found.extend(network(run));
    found.extend(sockets(run, data));
    found
}

/// Takes away what `leftovers` found, as far as that goes.
pub fn sweep(run: &Path, data: &Path) {
    for _ in 0..50 {
        let left = processes(run, data);
        if left.is_empty() {
            break;
        }
        for (pid, _) in left {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for dir in cgroups(run).into_iter().rev() {
        let _ = fs::remove_dir(dir);
    }
    for point in mounts(run, data).into_iter().rev() {
        let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    }
    for (device, _) in loops(run, data) {
        let _ = std::process::Command::new("losetup").args(["-d", &device]).status();
    }
}

/// The name of the cgroup that a house has in each hierarchy.
pub fn instance(run: &Path) -> String {
    den_sys::cgroup::instance_of(run)
}

/// Processes that name the folders in their command line or environment, or stand in a cgroup of
/// theirs, with the reason.
pub(crate) fn processes(run: &Path, data: &Path) -> Vec<(i32, String)> {
    let own = std::process::id() as i32;
    let (run_text, data_text) = (run.to_string_lossy(), data.to_string_lossy());
    let group = format!("/{}/", den_sys::cgroup::instance_of(run));
    let mut found = Vec::new();
    for pid in numbers("/proc") {
        if pid == own {
            continue;
        }
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        if read("stat").windows(4).any(|w| w == b") Z ") {
            continue;
        }
        let cmdline = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let environ = read("environ");
        if cmdline.contains(&*run_text) || cmdline.contains(&*data_text) {
            found.push((pid, cmdline.trim().to_owned()));
        } else if contains(&environ, run_text.as_bytes()) || contains(&environ, data_text.as_bytes()) {
            found.push((pid, format!("{} (by its environment)", cmdline.trim())));
        } else if String::from_utf8_lossy(&read("cgroup")).contains(&group) {
            found.push((pid, format!("{} (by its cgroup)", cmdline.trim())));
        }
    }
    found
}

/// Cgroups of any hierarchy that carry the run folder's name, parents first.
pub(crate) fn cgroups(run: &Path) -> Vec<PathBuf> {
    let name = den_sys::cgroup::instance_of(run);
    let mut found = BTreeSet::new();
    for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        if !tail.starts_with("cgroup") {
            continue;
        }
        let Some(point) = head.split(' ').nth(4) else { continue };
        walk(Path::new(point), 6, &mut |dir| {
            if dir.components().any(|c| c.as_os_str().to_string_lossy() == *name) {
                found.insert(dir.to_path_buf());
            }
        });
    }
    found.into_iter().collect()
}

/// Mount points at, under or from the folders, in the order in which they were made.
fn mounts(run: &Path, data: &Path) -> Vec<String> {
    let own = loops(run, data).into_iter().map(|(device, _)| device).collect::<Vec<_>>();
    let mut found = Vec::new();
    for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let Some(point) = words.get(4) else { continue };
        let under = |path: &str| Path::new(path).starts_with(run) || Path::new(path).starts_with(data);
        let source = words.iter().position(|w| *w == "-").and_then(|at| words.get(at + 2)).copied().unwrap_or("");
        if under(point) || under(source) || own.iter().any(|device| device == source) {
            found.push((*point).to_owned());
        }
    }
    found
}

/// Loop devices whose file lies in the folders: (device, file).
pub(crate) fn loops(run: &Path, data: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let file = file.trim().to_owned();
        if Path::new(&file).starts_with(run) || Path::new(&file).starts_with(data) {
            found.push((format!("/dev/{}", entry.file_name().to_string_lossy()), file));
        }
    }
    found
}

/// Links and named network namespaces that carry the run folder's name.
fn network(run: &Path) -> Vec<String> {
    let name = base(run);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let link = entry.file_name().to_string_lossy().into_owned();
        let alias = std::fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
        if link.contains(&name) || alias.contains(&name) {
            found.push(format!("link {link} {}", alias.trim()));
        }
    }
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(&name) {
            found.push(format!("network namespace {}", entry.path().display()));
        }
    }
    found
}

/// Sockets that someone still holds, and socket files.
fn sockets(run: &Path, data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for line in std::fs::read_to_string("/proc/net/unix").unwrap_or_default().lines() {
        if let Some(path) = line.split_whitespace().nth(7)
            && (Path::new(path).starts_with(run) || Path::new(path).starts_with(data))
        {
            found.push(format!("socket {path}"));
        }
    }
    walk_files(run, &mut |path| {
        use std::os::unix::fs::FileTypeExt as _;
        if path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket()) {
            found.push(format!("socket file {}", path.display()));
        }
    });
    found
}

fn base(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle)
}

fn numbers(dir: &str) -> Vec<i32> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect()
}

fn walk(dir: &Path, depth: u32, found: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            found(&path);
            if depth > 0 {
                walk(&path, depth - 1, found);
            }
        }
    }
}

fn walk_files(dir: &Path, found: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk_files(&path, found);
        } else {
            found(&path);
        }
    }
}

/// The pid in a file, if there is one.
pub(crate) fn pid_in(file: &Path) -> io::Result<rustix::process::Pid> {
    fs::read_to_string(file)?
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| io::Error::other(format!("{} holds no pid", file.display())))
}
