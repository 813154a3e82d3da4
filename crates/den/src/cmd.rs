//! The commands, a file per group.

pub mod computers;
pub mod cp;
pub mod exec;
pub mod forward;
pub mod gate;
pub mod image;
pub mod log;
pub mod misc;
pub mod net;
pub mod ports;
pub mod serve;
mod stream;
