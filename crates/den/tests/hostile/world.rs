//! An attacker `c` and a neighbour `n` on one house.

use std::sync::atomic::{AtomicBool, Ordering};

use den_testkit::House;

const DEN: &str = env!("CARGO_BIN_EXE_den");

/// Commands that the neighbour is given at least while an attack goes on.
const SERVED_MIN: usize = 5;

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
        Self::with(&["--memory", "256MiB", "--pids", "200", "--disk", "256MiB"])
    }

    /// `c` with these limits, and `n`.
    pub fn with(limits: &[&str]) -> Self {
        let house = House::open(DEN);
        house.den(&[&["new", "c"], limits].concat()).ok();
        house.den(&["new", "n", "--memory", "256MiB", "--pids", "200"]).ok();
        house.sh("n", "echo mine > /root/mine").ok();
        Self { house }
    }

    /// Runs Python in the attacker, at most for a minute, while the neighbour works. The neighbour must be
    /// served all the while and find what is its own.
    pub fn withstand(&self, script: &str) -> Attack {
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
            let ran = self.house.den(&["exec", "c", "--timeout", "60s", "--", "python3", "-c", script]);
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
