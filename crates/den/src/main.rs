//! `den`: the command line, and the daemon behind `den serve`.
//!
//! ```text
//! main ─► cli (words into arguments) ─► cmd::… ─► den_api::Client ─► the daemon
//!                                       cmd::serve ─► den_control, den_server
//! report   errors, hints, exit codes      show   tables, ages, JSON
//! find     where the daemon is            term   raw mode, sizes
//! ```
//!
//! Invariant: a client command has one thread and loads nothing of the daemon's; starting it is most
//! of what a short `den exec` costs.

mod agent;
mod bench;
mod cli;
mod cmd;
mod doctor;
mod find;
mod report;
mod show;
mod term;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => trouble.report(),
    }
}
