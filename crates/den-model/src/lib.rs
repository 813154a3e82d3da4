//! The nouns of Den: ids, names, sizes, limits, specs, and which state follows which.
//!
//! ```text
//! id ── ComputerId, …       name ── ComputerName      size ── Bytes, Cpus, Duration texts
//! computer ── ComputerSpec, Limits, Computer          step ── StepNumber, Step, StepEnd
//! state ── State, Request, Fact: the transition table   history ── Snapshot, StateRef, Parent
//! ```
//!
//! Deliberately absent: I/O, async, a clock, randomness. Times are microseconds since the Unix
//! epoch and are passed in; ids are made from a UUID that the caller draws.

pub mod computer;
pub mod history;
pub mod id;
pub mod name;
pub mod size;
pub mod state;
pub mod step;

pub use computer::{Computer, ComputerSpec, Limits, Tier};
pub use history::{ChangeCount, Parent, Snapshot, SnapshotKind, StateError, StateLabel, StateName, StateRef};
pub use id::{ComputerId, Id, IdError};
pub use name::{ComputerName, ImageName, NameError};
pub use size::{Bytes, Cpus, SizeError, parse_duration};
pub use state::{Fact, Refused, Request, State};
pub use step::{Step, StepEnd, StepKind, StepNumber, StepStatus};

/// Microseconds since the Unix epoch, UTC.
pub type Micros = i64;
