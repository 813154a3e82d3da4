//! `cargo xtask`: the few things that are done with this repository.
//!
//! ```text
//! demo    packages ─► release build ─► daemon ─► image `base` ─► a session for the eye
//! test    packages ─► fmt · clippy · build once ─► image `base` ─► unit and end-to-end tests ─► vm
//! bench   packages ─► release build ─► daemon on a folder of its own ─► `den bench` with a rival
//! image   the image `base` alone
//! criu    CRIU of a newer Debian, for the tests of memory on the disk
//! old-agents   agents of older commits, for the tests of upgrades
//! soak    release build ─► random operations and kills against a model, for half an hour
//! e2b     E2B's SDKs, which its tests drive
//! vm      a Debian kernel under QEMU, cgroup v2 alone ─► a session in it
//! ```
//!
//! Each ends what it started and takes away what it made, but for the image store in
//! /var/cache/den, which the next run uses again.

mod base;
mod bench;
mod criu;
mod daemon;
mod demo;
mod e2b;
mod packages;
mod room;
mod soak;
mod test;
mod tools;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The few things that are done with this repository")]
struct Words {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds Den, makes computers and shows what they can do
    Demo(demo::DemoArgs),
    /// Runs all tests; the last line says how many passed
    Test(test::TestArgs),
    /// Measures Den beside podman or docker
    Bench(bench::BenchTaskArgs),
    /// Random operations and kills against a model: nothing lost, nothing left behind
    Soak(soak::SoakArgs),
    /// Runs a session on another kernel, in an emulated machine with cgroup v2
    Vm(vm::VmArgs),
    /// Installs E2B's SDKs, which its tests drive, where they are missing
    E2b,
    /// Fetches the CRIU that tests use, if it is not there
    Criu,
    /// Builds the image `base` into the shared store, if it is not there
    Image,
    /// Builds the agents of older commits that the tests of upgrades use, if they are not there
    OldAgents,
}

fn main() -> std::process::ExitCode {
    match run(Words::parse().task) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::OldAgents => {
            for (_, commit) in den_testkit::OLD_AGENTS {
                let agent = den_testkit::old_agent(commit).map_err(anyhow::Error::msg)?;
                println!("{}", agent.display());
            }
            Ok(())
        }
        Task::E2b => e2b::ensure(),
        Task::Criu => criu::ensure().map(drop),
        Task::Image => {
            packages::need(packages::RUN)?;
            base::ensure(&tools::build(tools::Profile::Dev)?)
        }
    }
}
