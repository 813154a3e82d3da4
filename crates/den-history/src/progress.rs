//! How far a long look is, for whoever asks meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use den_api::ProgressView;

/// What a diff or a merge is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// States are found, and kept where they are not yet.
    Keeping,
    /// Which paths may differ.
    Finding,
    /// Whether they do.
    Comparing,
    /// What is to be done about each.
    Deciding,
    /// Lines, hashes, texts.
    Describing,
    /// What it means.
    Meaning,
    /// It is being done.
    Applying,
}

const PHASES: [(Phase, &str); 7] = [
    (Phase::Keeping, "keeping"),
    (Phase::Finding, "finding"),
    (Phase::Comparing, "comparing"),
    (Phase::Deciding, "deciding"),
    (Phase::Describing, "describing"),
    (Phase::Meaning, "meaning"),
    (Phase::Applying, "applying"),
];

/// How far something is. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<State>);

#[derive(Debug, Default)]
struct State {
    phase: AtomicUsize,
    done: AtomicU64,
    /// 0: it is not known.
    of: AtomicU64,
}

impl Progress {
    /// Another phase begins, of so many paths; 0 where that is not known.
    pub fn begin(&self, phase: Phase, of: usize) {
        let index = PHASES.iter().position(|&(one, _)| one == phase).unwrap_or(0);
        self.0.done.store(0, Ordering::Relaxed);
        self.0.of.store(of as u64, Ordering::Relaxed);
        self.0.phase.store(index, Ordering::Relaxed);
    }

    /// One more is done.
    pub fn step(&self) {
        self.0.done.fetch_add(1, Ordering::Relaxed);
    }

    /// So many are done.
    pub fn at(&self, done: usize) {
        self.0.done.store(done as u64, Ordering::Relaxed);
    }

    /// As it is told.
    pub fn view(&self) -> ProgressView {
        let of = self.0.of.load(Ordering::Relaxed);
        ProgressView {
            phase: PHASES[self.0.phase.load(Ordering::Relaxed)].1.to_owned(),
            done: self.0.done.load(Ordering::Relaxed),
            of: (of > 0).then_some(of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_was_said() {
        let progress = Progress::default();
        assert_eq!(progress.view(), ProgressView { phase: "keeping".into(), done: 0, of: None });
        progress.begin(Phase::Comparing, 7);
        progress.clone().step();
        assert_eq!(progress.view(), ProgressView { phase: "comparing".into(), done: 1, of: Some(7) });
        progress.begin(Phase::Meaning, 0);
        assert_eq!(progress.view(), ProgressView { phase: "meaning".into(), done: 0, of: None });
    }
}
