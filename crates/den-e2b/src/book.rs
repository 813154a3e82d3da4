//! The sandboxes there are: what is kept of each, and where it stands.
//!
//! ```text
//!            ┌── pause, time is up ──► Changing ──► Paused ──┐
//! Running ◄──┴────────── Changing ◄── resume, connect ───────┘
//!    └────── kill, time is up ──► Gone
//! ```
//!
//! What is done to its computer by other ways moves it too; one whose computer lies in the trash is put away, and comes
//! back with it.
//!
//! Whoever streams from a sandbox watches its phase, and breaks off once it is not `Running`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::{
    build::Context,
    envd::{filesystem::Watchers, process::Table},
    making::InHand,
};

/// The kind of the facts that are sandboxes.
pub(crate) const SANDBOX: &str = "e2b.sandbox";

/// The label of computers that are E2B's, and what it says.
pub(crate) const LABEL: &str = "e2b";

/// Measurements that are kept of one sandbox: an hour's.
pub(crate) const SAMPLES_MAX: usize = 720;

/// What is kept of a sandbox beside its computer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub template: String,
    #[serde(default)]
    pub alias: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What envd's clients show; none: they need not.
    #[serde(default)]
    pub token: Option<String>,
    /// What clients of its other ports show; none: they need not.
    #[serde(default)]
    pub traffic_token: Option<String>,
    /// When it began to run last.
    pub started_at: i64,
    pub ends_at: i64,
    #[serde(default)]
    pub auto_pause: bool,
    #[serde(default = "yes")]
    pub auto_pause_memory: bool,
    #[serde(default)]
    pub auto_resume: bool,
    #[serde(default)]
    pub paused: Option<Paused>,
    #[serde(default)]
    pub internet: Option<bool>,
    #[serde(default)]
    pub network: Option<Value>,
    pub cpus: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
    /// Who its commands run as, where they do not say, and where.
    #[serde(default)]
    pub context: Option<Context>,
    /// Volumes that it mounts.
    #[serde(default)]
    pub volumes: Vec<Mount>,
    /// Its computer lies in the trash.
    #[serde(default)]
    pub trashed: bool,
}

/// A volume in a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub name: String,
    pub path: String,
}

fn yes() -> bool {
    true
}

/// What a paused sandbox still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Paused {
    /// Its processes, standing still.
    Memory,
    /// Its files.
    Disk,
}

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Changing,
    Paused,
    Gone,
}

/// What a sandbox used at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub at: i64,
    pub cpu_us: u64,
    pub memory: u64,
    pub disk: u64,
}

/// One sandbox.
pub(crate) struct Sandbox {
    pub id: String,
    facts: Mutex<Facts>,
    pub phase: watch::Sender<Phase>,
    /// Who changes its phase, or what is kept of it.
    pub turn: tokio::sync::Mutex<()>,
    /// Somebody is ending it, for its time is up.
    pub expiring: AtomicBool,
    /// How many copy what runs in it: it stands still for a moment, and is not paused.
    pub copies: AtomicUsize,
    pub processes: Table,
    pub watchers: Watchers,
    pub samples: Mutex<VecDeque<Sample>>,
}

impl Sandbox {
    /// One whose computer is new: there are no commands in it that an earlier daemon has begun.
    pub(crate) fn made(id: String, facts: Facts) -> Arc<Self> {
        let sandbox = Self::new(id, facts);
        sandbox.processes.is_new();
        sandbox
    }

    /// One whose computer was forked: commands may go on in it, of which its parent knows more than the computer.
    pub(crate) fn forked(id: String, facts: Facts, parent: &Self) -> Arc<Self> {
        let sandbox = Self::new(id, facts);
        sandbox.processes.inherit(&parent.processes);
        sandbox
    }

    /// What runs in it is copied, until this is dropped.
    pub(crate) fn is_copied(&self) -> impl Drop + '_ {
        struct Copies<'a>(&'a AtomicUsize);
        impl Drop for Copies<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.copies.fetch_add(1, Ordering::AcqRel);
        Copies(&self.copies)
    }

    pub(crate) fn new(id: String, facts: Facts) -> Arc<Self> {
        let phase = if facts.paused.is_some() { Phase::Paused } else { Phase::Running };
        Arc::new(Self {
            id,
            facts: Mutex::new(facts),
            phase: watch::Sender::new(phase),
            turn: tokio::sync::Mutex::default(),
            expiring: AtomicBool::new(false),
            copies: AtomicUsize::new(0),
            processes: Table::default(),
            watchers: Watchers::default(),
            samples: Mutex::default(),
        })
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Done once it does not run any more.
    pub(crate) async fn not_running(&self) {
        let mut phase = self.phase.subscribe();
        drop(phase.wait_for(|phase| *phase != Phase::Running).await);
    }
}

/// All sandboxes.
#[derive(Default)]
pub(crate) struct Book {
    all: RwLock<BTreeMap<String, Arc<Sandbox>>>,
    /// Those whose computers lie in the trash: no more than it holds.
    away: Mutex<BTreeMap<String, Facts>>,
    /// Requests for a sandbox that may come twice.
    pub in_hand: InHand,
    /// Who changes which snapshot a name stands for.
    pub snapshots: tokio::sync::Mutex<()>,
    /// A time has changed.
    pub alarm: Notify,
}

impl Book {
    /// The sandbox of this id, unless it is gone. Older SDKs have the client's id after a `-`.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Sandbox>> {
        let id = id.split('-').next().unwrap_or("");
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).filter(|sandbox| sandbox.phase() != Phase::Gone).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Sandbox>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().filter(|sandbox| sandbox.phase() != Phase::Gone).cloned().collect()
    }

    pub(crate) fn add(&self, sandbox: Arc<Sandbox>) {
        self.away().remove(&sandbox.id);
        self.all.write().unwrap_or_else(PoisonError::into_inner).insert(sandbox.id.clone(), sandbox);
        self.alarm.notify_one();
    }

    /// Those whose computers lie in the trash, by their ids.
    pub(crate) fn away(&self) -> MutexGuard<'_, BTreeMap<String, Facts>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn remove(&self, id: &str) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}
