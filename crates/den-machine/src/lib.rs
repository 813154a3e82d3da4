//! Running computers: booting them through the launcher, and talking to the agent inside.
//!
//! ```text
//! Machines ──packets──► launcher       boot, kill, limits, usage; respawned when it died
//! Machine  ── pidfd, Link ──► agent    one connection an operation
//! ```
//!
//! Invariants:
//! - A boot that fails leaves nothing: no process, cgroup, link or folder under RUN.
//! - Dropping any of these ends no computer. Only `kill` and `Link::shutdown` do.
//!
//! Not here: disks (`disk`), rows (`store`), which request is allowed when (`control`).
//! A tier is a driver behind `Machines::boot`; what follows a boot is the same for all, since the
//! link speaks one protocol.

mod criu;
mod launcher;
mod link;
mod machines;

pub use criu::{Criu, CriuError, Dump, Kept};
pub use den_wire::launcher::PoolCaps;
pub use link::{
    ApplyContent, Changes, DataSink, DataSource, LISTENING_MAX, Link, LinkError, StepEvent, StepEvents, StepInput,
    StepLink, Synced,
};
pub use machines::{BootPlan, Machine, MachineError, Machines, MachinesConfig, Shared};
