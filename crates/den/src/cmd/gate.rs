//! `gate`: the process that carries the network of all computers. `serve` starts it.

use std::path::PathBuf;

use clap::Args;
use den_gate::plane::{self, GateError, Settings};
use tracing_subscriber::EnvFilter;

use crate::report::{Outcome, Trouble, chain};

#[derive(Debug, Args)]
pub struct GateArgs {
    /// The run folder of the daemon
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
}

/// Runs the gate until it is told to end. The exit code is 3 when another gate has this RUN.
pub fn run(args: GateArgs) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err(
            Trouble::new("the gate enters a network namespace, and needs to be root").hint("den serve starts it")
        );
    }
    // It outlives `serve`, and what is typed on the terminal of `serve` is not for it. One that leads a
    // session already is started by hand.
    let _ = rustix::process::setsid();
    let filter = EnvFilter::try_from_env("DEN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match plane::run(&Settings { run: args.run }) {
        Ok(()) => Ok(0),
        Err(error @ GateError::Running { .. }) => {
            tracing::warn!("{error}");
            Ok(3)
        }
        Err(error) => {
            let trouble = Trouble::new(chain(&error));
            Err(match error.hint() {
                Some(hint) => trouble.hint(hint),
                None => trouble,
            })
        }
    }
}
