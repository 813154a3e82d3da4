//! Real fixtures for tests: a daemon with its own folders, and the proof that nothing of it is left.
//!
//! ```text
//! House ── den serve --data TMP --run TMP ──► Api (HTTP by hand)   den … (the CLI, as a process)
//!   │ kill_serve · kill_launcher · restart
//!   └ drop: den shutdown, then leftovers(run, data) must be empty
//! old_agent ── the agent of an older commit
//! RecordingDisk ── a disk for DATA whose power can be cut
//! soak ── clients that do what their dice say, a model of what must be, kills, and a census of the host
//! Internet ── name server, web sites, raw services, a witness of every packet, in a namespace of its own
//! ```
//!
//! Invariants:
//! - A house shares nothing with another but the images it reads, so tests may run side by side.
//! - What a house leaves on the host fails the test that made it, and is cleaned up all the same.
//!
//! Deliberately absent: stand-ins for the kernel.

pub mod house;
pub mod http;
pub mod images;
pub mod internet;
pub mod leftovers;
pub mod old;
pub mod powercut;
pub mod soak;

pub use house::{House, Options, Ran, at_each_point, at_each_point_with, eventually, store_copy};
pub use http::{Api, Reply};
pub use internet::{Internet, Site};
pub use leftovers::{leftovers, sweep};
pub use old::{OLD_AGENTS, old_agent};
pub use powercut::{Cut, Dice, FileSystem, RecordingDisk};
