//! `cargo xtask soak`: a long time of random operations and kills against a model of what must be.
//!
//! The short one of the tests is the same with fewer rounds.

use std::path::PathBuf;
use std::time::Duration;

use den_testkit::soak::{Plan, run as soak};

use crate::{base, criu, packages, tools};

/// `cargo xtask soak`
#[derive(Debug, clap::Args)]
pub struct SoakArgs {
    /// How long laps begin; the last one is ended
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What is done follows from it [default: the time of day]
    #[arg(long)]
    seed: Option<u64>,
    /// Clients side by side
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Rounds between two counts of what the host has
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Kill nothing
    #[arg(long)]
    gently: bool,
    /// The program to run [default: a release build of this tree]
    den: Option<PathBuf>,
}

/// Runs it; fails where something is lost or left behind.
pub fn run(args: &SoakArgs) -> anyhow::Result<()> {
    tools::need_root("cargo xtask soak")?;
    packages::need(packages::RUN)?;
    let den = match &args.den {
        Some(den) => std::path::absolute(den)?,
        None => tools::build(tools::Profile::Release)?,
    };
    base::ensure(&den)?;
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |time| time.as_secs())
    });
    println!("seed {seed}");
    let plan = Plan {
        den: den.display().to_string(),
        seed,
        time: Duration::from_secs(args.minutes * 60),
        clients: args.clients.max(1),
        rounds: args.rounds.max(1),
        kills: !args.gently,
        criu: Some(criu::ensure()?),
    };
    let report = soak(&plan, |line| println!("{line}")).map_err(anyhow::Error::msg)?;
    println!(
        "SOAK: {} operations in {} laps, {} broken off by {:?}; nothing lost, nothing left",
        report.operations, report.laps, report.broken, report.kills
    );
    Ok(())
}
