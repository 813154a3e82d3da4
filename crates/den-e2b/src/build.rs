//! Templates that are built: `Template.build` of the SDKs.
//!
//! ```text
//! request ─► waiting ─► files put ─► start ─► queue (2 at once) ─► builder: image, other template, or a step's state
//!                                                    │               └─► step ─► state kept ─► … ─► ready? ─► stopped
//!                                                    └─► error: the builder is removed        build's fact, then tags
//! ```
//!
//! A builder is a computer, its steps are steps of it. Once built it is stopped and holds the template: sandboxes are
//! forks of it, and its states are where later builds of the template begin whose first steps are the same.
//!
//! Invariants:
//! - A builder is noted before it is made, until the fact of its build is kept: a crash leaves none that no build names.
//! - A build has its holder on the disk before a tag leads to it.
//! - A build that no tag leads to has no computer, unless a later build of the template stands on its states.
//! - A build that is ready has its tags, though the daemon ends between the two.
//! - What a build says and what is uploaded has a limit, in number and in bytes.

mod carry;
mod inside;
mod log;
mod plan;
pub(crate) mod routes;
mod shelf;
mod tags;
mod upload;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::{log::Entry, plan::Layer};
pub(crate) use self::{shelf::Shelf, tags::check_tag};

/// Builds that go on at a time; others wait.
const AT_ONCE: usize = 2;

/// Builds that are begun and not at their end.
const BEGUN_MAX: usize = 32;

/// Templates that are built.
const TEMPLATES_MAX: usize = 1000;

/// Builds of one template that are remembered, beside those that tags lead to.
const BUILDS_KEPT: usize = 20;

/// How long a build that nobody starts is remembered.
const UNBEGUN_KEPT_S: i64 = 24 * 3600;

/// How long all steps of a build may take together.
const BUILD_MAX: Duration = Duration::from_secs(3600);

/// How long one question of what is ready may take, and all of them.
const READY_ASK_MAX: Duration = Duration::from_secs(60);
const READY_MAX: Duration = Duration::from_secs(300);

/// How long a start command is looked at that has no question.
const START_LOOK: Duration = Duration::from_secs(2);

/// The service that a start command is, in every sandbox of its template.
pub(crate) const START: &str = "start";

/// Who commands run as, where, and with what, from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    pub user: String,
    pub workdir: String,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

impl Default for Context {
    fn default() -> Self {
        Self { user: "user".to_owned(), workdir: "/home/user".to_owned(), env: BTreeMap::new() }
    }
}

/// What is kept of a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    id: String,
    name: String,
    public: bool,
    created_at: i64,
    updated_at: i64,
    #[serde(default)]
    tags: BTreeMap<String, Tagged>,
}

/// What a tag leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tagged {
    build: String,
    at: i64,
}

/// A tag of a template, and the build that it leads to.
pub(crate) struct Assigned {
    pub tag: String,
    pub build: String,
    pub at: i64,
    pub created_at: i64,
    pub finished_at: Option<i64>,
}

impl Record {
    /// Has tags lead to a build from then on.
    fn lead_to(&mut self, build: &str, tags: &[String], at: i64) {
        for tag in tags {
            self.tags.insert(tag.clone(), Tagged { build: build.to_owned(), at });
        }
        self.updated_at = at;
    }
}

/// Where a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Waiting,
    Building,
    Ready,
    Error,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Error => "error",
        }
    }
}

/// Why a build has come to nothing, and at which step: `base`, its number from 1, or `finalize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Reason {
    message: String,
    step: String,
}

impl Reason {
    fn new(step: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), step: step.into() }
    }
}

/// What is kept of a build.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Facts {
    template: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    cpus: Option<u32>,
    #[serde(default)]
    memory_mib: Option<u64>,
    status: Status,
    /// It has been started.
    #[serde(default)]
    begun: bool,
    #[serde(default)]
    reason: Option<Reason>,
    created_at: i64,
    #[serde(default)]
    finished_at: Option<i64>,
    #[serde(default)]
    made: Option<Made>,
}

/// What came of a build.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Made {
    /// The stopped computer that sandboxes are forks of.
    holder: String,
    image: String,
    context: Context,
    #[serde(default)]
    start: Option<String>,
    #[serde(default)]
    start_how: StartHow,
    #[serde(default)]
    ready: Option<String>,
    /// The base, and each step.
    layers: Vec<Layer>,
    /// The hashes of what was copied.
    #[serde(default)]
    files: Vec<String>,
    cpus: u32,
    memory_mib: u64,
    disk_mib: u64,
}

impl Made {
    /// The computers that this stands on.
    fn computers(&self) -> BTreeSet<String> {
        self.layers.iter().map(|layer| layer.holder.clone()).chain([self.holder.clone()]).collect()
    }
}

/// One build.
struct Build {
    id: String,
    state: Mutex<State>,
}

struct State {
    facts: Facts,
    /// What it says while it goes on; then it lies in a file.
    said: Option<Vec<Entry>>,
}

impl Build {
    fn new(id: String, facts: Facts) -> Arc<Self> {
        let said = matches!(facts.status, Status::Waiting | Status::Building).then(Vec::new);
        Arc::new(Self { id, state: Mutex::new(State { facts, said }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts(&self) -> Facts {
        self.state().facts.clone()
    }

    /// Whether somebody still works on it.
    fn goes_on(&self) -> bool {
        let state = self.state();
        state.facts.begun && state.facts.finished_at.is_none()
    }
}

/// What Den's own templates say of their start command, and no SDK does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartHow {
    /// Who runs it: the template's user without.
    pub user: Option<String>,
    /// What becomes of it when it ends, as services say it: nothing without.
    pub restart: Option<String>,
}

/// How a sandbox of a template begins its start command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub command: String,
    pub how: StartHow,
    pub context: Context,
}
