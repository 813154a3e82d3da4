//! An attacker `c` and a neighbour `n` on one house.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use den_testkit::House;

const DEN: &str = env!("CARGO_BIN_EXE_den");

/// Commands that the neighbour is given at least while an attack goes on.
const SERVED_MIN: usize = 5;

/// What the attacks of `crates/den/attacks` begin with.
const PRELUDE: &str = include_str!("../../attacks/prelude.py");

/// The limits of an attacker.
const SMALL: [&str; 6] = ["--memory", "256MiB", "--pids", "200", "--disk", "256MiB"];

/// Settings that change by themselves, or are of a namespace, a user or a device.
const FLEETING: [&str; 12] = [
    "/random/",
    "/net/",
    "/user/",
    "-nr",
    "-state",
    "_last_pid",
    "/pty/nr",
    "/sched_domain",
    "/binfmt_misc",
    "/ucount",
    "/dirty_",
    "/quota/",
];

/// A house with an attacker and a neighbour.
pub struct World {
    pub house: House,
}

/// What an attack printed, and how it ended.
#[derive(Debug)]
pub struct Attack {
    pub code: i32,
    /// Both streams, the standard output first.
    pub said: String,
}

impl Attack {
    /// The number on its line `word N`; panics where there is none.
    pub fn number(&self, word: &str) -> u64 {
        let line = self.said.lines().find_map(|line| line.strip_prefix(word)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("no `{word}` in {self:?}"))
    }

    /// Panics unless its output has `words`.
    pub fn says(&self, words: &str) -> &Self {
        assert!(self.said.contains(words), "wanted `{words}`: {self:?}");
        self
    }
}

impl World {
    /// `c` with small limits, and `n`.
    pub fn new() -> Self {
        Self::with(&SMALL)
    }

    /// `c` with these limits, and `n`.
    pub fn with(limits: &[&str]) -> Self {
        let house = House::open(DEN);
        house.den(&[&["new", "c"], limits].concat()).ok();
        house.den(&["new", "n", "--memory", "256MiB", "--pids", "200"]).ok();
        house.sh("n", "echo mine > /root/mine").ok();
        Self { house }
    }

    /// Another attacker in the place of the one that was removed.
    pub fn new_attacker(&self) {
        self.house.den(&[&["new", "c"], &SMALL[..]].concat()).ok();
    }

    /// Runs Python in the attacker, at most for a minute, while the neighbour works. The neighbour must be
    /// served all the while and find what is its own.
    pub fn withstand(&self, script: &str) -> Attack {
        self.run(&["python3", "-c", script])
    }

    /// The same with one of `crates/den/attacks`, which ends after some seconds.
    pub fn attack(&self, script: &str, seconds: u32) -> Attack {
        self.run(&["python3", "-c", &format!("{PRELUDE}{script}"), &seconds.to_string()])
    }

    fn run(&self, words: &[&str]) -> Attack {
        let over = AtomicBool::new(false);
        let (attack, served) = std::thread::scope(|scope| {
            let neighbour = scope.spawn(|| {
                let mut served = 0;
                while served < SERVED_MIN || !over.load(Ordering::Acquire) {
                    assert_eq!(self.house.sh("n", "cat /root/mine").ok(), "mine", "after {served} commands");
                    served += 1;
                }
                served
            });
            let ran = self.house.den(&[&["exec", "c", "--timeout", "60s", "--"], words].concat());
            over.store(true, Ordering::Release);
            (Attack { code: ran.code, said: ran.stdout + &ran.stderr }, neighbour.join())
        });
        assert!(served.expect("the neighbour is served") >= SERVED_MIN);
        attack
    }

    /// The attacker runs and takes commands.
    pub fn attacker_goes_on(&self) {
        assert_eq!(self.house.sh("c", "echo on").ok(), "on");
    }
}

/// Counts of the host's that no attack may move far.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// Open files of the whole host.
    pub files: u64,
    /// Mounts in this namespace.
    pub mounts: usize,
}

/// As they are now.
pub fn host() -> Host {
    let number = |path: &str, nth: usize| {
        let text = std::fs::read_to_string(path).expect("a count of the kernel's");
        text.split([' ', '\t', '/', '\n']).filter(|word| !word.is_empty()).nth(nth).and_then(|word| word.parse().ok())
    };
    Host {
        files: number("/proc/sys/fs/file-nr", 0).expect("a number"),
        mounts: std::fs::read_to_string("/proc/self/mounts").expect("mounts").lines().count(),
    }
}

/// Settings of the host's kernel that stay as they are unless somebody sets them.
pub fn settings() -> BTreeMap<String, String> {
    fn walk(at: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.to_string_lossy().into_owned();
            if path.is_dir() {
                walk(&path, found);
            } else if !FLEETING.iter().any(|part| name.contains(part))
                && let Ok(value) = std::fs::read_to_string(&path)
            {
                found.insert(name, value);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(Path::new("/proc/sys"), &mut found);
    assert!(found.len() > 100, "settings are read: {}", found.len());
    found
}

/// Lines of the kernel's log that tell of harm.
pub fn kernel_complaints() -> Vec<String> {
    let said = std::process::Command::new("dmesg").output().expect("dmesg");
    // Not what a busy host says of itself: stalls, lockups and tasks that wait are also another test's, or its host's.
    let harm = ["kernel BUG", "BUG: unable", "BUG: KASAN", "Oops", "general protection", "table full", "Bad page"];
    String::from_utf8_lossy(&said.stdout)
        .lines()
        .filter(|line| harm.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect()
}
