//! Sleep: computers that stand still, that wake on request, and that are cut off.
//!
//! ```text
//!            pause, idle                     unplug (from anywhere)
//!  running ─────────────► paused            ────────────────────────► unplugged
//!     ▲  ◄─────────────────┘ resume,                                      │ replug
//!     │      wake on request                                              ▼
//!     └── stopped for being idle ◄── idle                            where it was
//! ```
//!
//! - `stand` has processes stand still and lets them go on; it knows who wants that.
//! - `wake` lets requests in, and wakes whom they are for, once for however many.
//! - `pause`, `unplug` are what the task of a computer does; `idle` looks for those that nobody uses.
//! - `hibernate` keeps the memory of one on the disk, and nothing of it runs; `copy` has others go on from it too.
//! - `room` gives the memory of those that sleep back to the host.
//!
//! Invariants:
//! - The row says whether a computer stands still on purpose. What is frozen and has no such row goes on at
//!   the next start; what has one is frozen again.
//! - A paused computer goes on for nobody but who resumes, wakes, stops, restores or removes it: its state is
//!   kept, forked and read while it stands.
//! - A request that was let in is through before its computer stands still, or wakes it.
//! - Cutting off waits for nothing: what a task is at, a stop's grace, a state that is being kept.

pub(crate) mod copy;
pub(crate) mod hibernate;
pub(crate) mod idle;
mod pause;
mod room;
pub(crate) mod stand;
mod unplug;
mod wake;

pub(crate) use copy::{Copy, Transfers, under_way};
pub(crate) use idle::{IdleCell, look_after};
pub(crate) use pause::By;
pub(crate) use stand::Stand;
pub(crate) use unplug::stand_again;
pub(crate) use wake::{Awake, Busy, Doors};
