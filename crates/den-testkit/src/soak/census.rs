//! What a house has on its host, counted: descriptors, threads, memory, mounts, subvolumes, cgroups, links,
//! processes, files. Counted by looking at the host, without asking Den.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::House;
use crate::leftovers::{self, pid_in};

/// The three programs of a house.
const PROGRAMS: [&str; 3] = ["serve", "gate", "launcher"];
/// Descriptors and threads that a program may have more than in the first count, however long it runs: readers of
/// the store, connections to the launcher, threads that wait for work. They are opened as many are wanted at once.
const KEPT_READY: u64 = 16;

/// How much there is of each thing, and the things themselves where they have names.
#[derive(Debug, Clone, Default)]
pub struct Census {
    counts: BTreeMap<String, u64>,
    named: BTreeMap<String, Vec<String>>,
}

/// Memory of one program that is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Its process.
    pub pid: i32,
    /// Anonymous memory in KiB.
    pub kib: u64,
}

/// The pid of one of the three; `None` while it is not there.
pub fn pid_of(house: &House, program: &str) -> Option<i32> {
    match program {
        "serve" => house.serve_pid(),
        _ => {
            let pid = pid_in(&house.run_dir().join(format!("{program}.pid"))).ok()?.as_raw_nonzero().get();
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let run = house.run_dir().as_os_str().as_encoded_bytes();
            line.windows(run.len()).any(|window| window == run).then_some(pid)
        }
    }
}

/// The memory of each program that is there.
pub fn memory(house: &House) -> BTreeMap<&'static str, Memory> {
    let of = |program| {
        let pid = pid_of(house, program)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let kib = line.split_whitespace().next()?.parse().ok()?;
        Some((program, Memory { pid, kib }))
    };
    PROGRAMS.into_iter().filter_map(of).collect()
}

impl Census {
    /// Counts.
    pub fn take(house: &House) -> Self {
        let mut census = Self::default();
        let (run, data) = (house.run_dir().to_path_buf(), house.data());
        for program in PROGRAMS {
            let Some(pid) = pid_of(house, program) else { continue };
            census.add(&format!("descriptors of {program}"), descriptors(pid));
            census.add(&format!("threads of {program}"), threads(pid));
            census.add(&format!("mounts that {program} sees"), mounts(pid, &[&run, &data]));
        }
        if let Some(gate) = pid_of(house, "gate") {
            census.add("links of the gate", links(gate));
        }
        census.count("processes", leftovers::processes(&run, &data).len());
        census.add("cgroups", paths(leftovers::cgroups(&run)));
        census.count("loop devices", leftovers::loops(&run, &data).len());
        census.add("subvolumes", subvolumes(&data));
        census.add("files of the run folder", below(&run));
        census.add("files of the data folder", below(&data));
        census
    }

    fn add(&mut self, what: &str, things: Vec<String>) {
        self.count(what, things.len());
        self.named.insert(what.to_owned(), things);
    }

    fn count(&mut self, what: &str, count: usize) {
        self.counts.insert(what.to_owned(), count as u64);
    }

    /// What there is more of than in `before`, a line a thing.
    pub fn grown(&self, before: &Self) -> Vec<String> {
        let mut grown = Vec::new();
        for (what, count) in &self.counts {
            let was = before.counts.get(what).copied().unwrap_or_default();
            let ready = if what.starts_with("descriptors") || what.starts_with("threads") { KEPT_READY } else { 0 };
            if *count > was + ready {
                let mut known = self::named(before.named.get(what));
                let mut new = self::named(self.named.get(what));
                new.retain(|thing, many| {
                    *many = many.saturating_sub(known.remove(thing).unwrap_or_default());
                    *many > 0
                });
                let new: Vec<String> =
                    new.into_iter().take(20).map(|(thing, many)| format!("{many} {thing}")).collect();
                grown.push(format!("{what}: {was}, now {count}: {}", new.join(", ")));
            }
        }
        grown
    }
}

/// How many there are of each.
fn named(things: Option<&Vec<String>>) -> BTreeMap<&str, usize> {
    let mut many = BTreeMap::new();
    for thing in things.into_iter().flatten() {
        *many.entry(thing.as_str()).or_default() += 1;
    }
    many
}

/// The open files of a process, by what they are: `socket:`, `user:`, a path.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let name = |target: PathBuf| {
        let name = target.to_string_lossy().into_owned();
        if name.starts_with('/') {
            name
        } else {
            name.trim_end_matches(|c: char| "[]0123456789".contains(c)).to_owned()
        }
    };
    entries.filter_map(|entry| Some(name(std::fs::read_link(entry.path()).ok()?))).collect()
}

fn threads(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(std::fs::read_to_string(entry.path().join("comm")).ok()?.trim().to_owned()))
        .collect()
}

/// The links in the network namespace of a process.
fn links(pid: i32) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// The mounts of a process; in the mount namespace that others use too only those that name one of `own`.
fn mounts(pid: i32, own: &[&Path]) -> Vec<String> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let shared = namespace(&pid.to_string()) == namespace("self");
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let is_own = |line: &&str| !shared || own.iter().any(|path| line.contains(&*path.to_string_lossy()));
    let point = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
    table.lines().filter(is_own).map(point).collect()
}

fn paths(of: Vec<PathBuf>) -> Vec<String> {
    of.into_iter().map(|path| path.display().to_string()).collect()
}

/// The subvolumes of the data folder, those that the kernel has yet to clean included.
fn subvolumes(data: &Path) -> Vec<String> {
    let list = |words: &[&str]| {
        let output = Command::new("btrfs").args(["subvolume", "list"]).args(words).arg(data.join("computers")).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all = list(&[]);
    all.extend(list(&["-d"]));
    all
}

/// All below a folder, but what lies inside the disks of computers.
fn below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < 4 {
                folders.push((entry.path(), depth + 1));
            }
            found.push(entry.path().display().to_string());
        }
    }
    found.sort();
    found
}
