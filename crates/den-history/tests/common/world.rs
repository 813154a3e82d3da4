//! Three states of one computer, made by scripts.

use std::process::Command;

use den_history::State;
use den_history::merge::{MergeOptions, Plan, plan};

/// Base, ours and theirs over one layer, in a directory that goes with it.
pub struct World {
    pub dir: tempfile::TempDir,
}

impl World {
    /// Three empty ones.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("den-merge-").tempdir().expect("a directory");
        for name in ["layer", "base/data", "ours/data", "theirs/data"] {
            std::fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        Self { dir }
    }

    /// Base is made by the first script; ours and theirs are copies, changed by the others.
    pub fn scripted(base: &str, ours: &str, theirs: &str) -> Self {
        let world = Self::new();
        world.sh("base/data", base);
        for side in ["ours", "theirs"] {
            world.sh(".", &format!("cp -a base/data/. {side}/data/"));
        }
        world.sh("ours/data", ours);
        world.sh("theirs/data", theirs);
        world
    }

    /// What a script prints that must succeed.
    pub fn sh(&self, dir: &str, script: &str) -> String {
        let out =
            Command::new("bash").args(["-euc", script]).current_dir(self.dir.path().join(dir)).output().expect("bash");
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub fn state(&self, name: &str) -> State {
        State::open(&self.dir.path().join(name), &[self.dir.path().join("layer")]).expect("a state")
    }

    pub fn plan(&self, options: &MergeOptions) -> Plan {
        plan(&self.state("base"), &self.state("ours"), &self.state("theirs"), None, options).expect("a plan")
    }
}
