//! The commands, a file per group.

pub mod blame;
mod changes;
pub mod computers;
pub mod cp;
pub mod diff;
pub mod exec;
pub mod explore;
pub mod fork;
pub mod forward;
pub mod gate;
pub mod image;
pub mod log;
pub mod look;
pub mod merge;
pub mod misc;
pub mod net;
pub mod ports;
pub mod serve;
pub mod snap;
mod state;
mod stream;
