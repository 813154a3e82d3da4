//! The nouns of Den: ids, names, sizes, limits, specs, and which state follows which.
//!
//! ```text
//! id ── ComputerId, …       name ── ComputerName      size ── Bytes, Cpus, Duration texts
//! computer ── ComputerSpec, Limits, Computer          step ── StepNumber, Step, StepEnd
//! event ── Event, EventKind                             service ── ServiceSpec, Service, ServiceState
//! pool ── PoolName, PoolLimits, Amounts: what computers share
//! volume ── VolumeId, VolumeName, VolumeMount: folders that several computers mount
//! state ── State, Request, Fact: the transition table   history ── Snapshot, StateRef, Parent
//! ```
//!
//! Deliberately absent: I/O, async, a clock, randomness. Times are microseconds since the Unix
//! epoch and are passed in; ids are made from a UUID that the caller draws.

pub mod computer;
pub mod event;
pub mod history;
pub mod id;
pub mod idle;
pub mod meter;
pub mod name;
pub mod pool;
pub mod service;
pub mod size;
pub mod state;
pub mod step;
pub mod volume;

pub use computer::{Computer, ComputerSpec, Limits, Tier};
pub use event::{Event, EventKind};
pub use history::{ChangeCount, Parent, Snapshot, SnapshotKind, StateError, StateLabel, StateName, StateRef};
pub use id::{ComputerId, Id, IdError};
pub use idle::{Idle, IdleError, Sleep};
pub use name::{ComputerName, ImageName, NameError};
pub use pool::{Amount, Amounts, Pool, PoolLimits, PoolName, Short, Standing};
pub use service::{BackOff, Ready, Restart, Service, ServiceError, ServiceName, ServiceSpec, ServiceState};
pub use size::{Bytes, Cpus, SizeError, parse_duration};
pub use state::{Fact, Refused, Request, State};
pub use step::{Step, StepEnd, StepKind, StepNumber, StepStatus};
pub use volume::{Volume, VolumeId, VolumeMount, VolumeName, VolumeNameError};

/// Microseconds since the Unix epoch, UTC.
pub type Micros = i64;
