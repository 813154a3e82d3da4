//! The launcher: clones computers, and nothing else. Single-threaded and small, so that a clone
//! costs little, and a process of its own, so that computers outlive `serve`.
//!
//! ```text
//!                       ┌──orders──► builder ──clones──┐
//! serve ──packets──► launcher ──socket──► husk (parked: all but the image is there)
//!                       │                   │ take: overlay, /dev, listener, agent
//!                       │                   ▼
//!                       └──pidfd────────► computer (the husk, pivoted, has become the agent)
//! ```
//!
//! Invariants:
//! - One launcher per RUN: `RUN/launcher.lock` is held. A new one takes up the computers of one
//!   that was killed, from `RUN/computers/<id>/init`, and ends the husks and cgroups it left.
//! - Nothing here waits for a client or for a booting computer, nor for the kernel's locks around
//!   cgroups and links: what takes these is the builder's work.
//!
//! Not here: what a computer may be asked (`control`), its disk (`disk`), the agent (`init`).

mod builder;
mod cell;
mod husk;
mod ids;
mod net;
mod pools;
mod serve;
mod shown;

pub(crate) use husk::make_dev as cell_dev;
pub(crate) use net::{GateNet, set_up_inside};

use std::path::PathBuf;

/// What the command line says.
pub(crate) struct Settings {
    /// The run folder; its path names cgroups.
    pub run: PathBuf,
    /// Mounts that hold, or lie under, one of these stay in the launcher's namespace.
    pub keep: Vec<PathBuf>,
}

/// Runs the launcher: `--run DIR [--keep DIR]…`. Returns the exit code: 2 for wrong usage, 3 when
/// another launcher has this RUN, 1 for what the host refuses.
pub fn main(args: &[String]) -> i32 {
    let mut run = None;
    let mut keep = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), words.next()) {
            ("--run", Some(value)) => run = Some(PathBuf::from(value)),
            ("--keep", Some(value)) => keep.push(PathBuf::from(value)),
            _ => {
                eprintln!("error: `{word}` is no option of the launcher, or lacks its value");
                return 2;
            }
        }
    }
    let Some(run) = run else {
        eprintln!("error: the launcher needs `--run DIR`");
        return 2;
    };
    keep.push(run.clone());
    match serve::Launcher::open(Settings { run, keep }) {
        Ok(Some(mut launcher)) => match launcher.run() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("error: {error}");
                1
            }
        },
        Ok(None) => 3,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}
