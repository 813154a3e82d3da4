//! `cargo xtask`: the few things that are done with this repository.
//!
//! ```text
//! demo    packages ─► release build ─► daemon ─► image `base` ─► a session for the eye
//! test    packages ─► fmt · clippy · build once ─► image `base` ─► unit and end-to-end tests
//! bench   packages ─► release build ─► daemon on a folder of its own ─► `den bench` with a rival
//! image   the image `base` alone
//! vm      a Debian kernel under QEMU, cgroup v2 alone ─► a short session in it
//! ```
//!
//! Each ends what it started and takes away what it made, but for the image store in
//! /var/cache/den, which the next run uses again.

mod base;
mod bench;
mod daemon;
mod demo;
mod packages;
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
    /// Runs a short session on another kernel, in an emulated machine with cgroup v2
    Vm(vm::VmArgs),
    /// Builds the image `base` into the shared store, if it is not there
    Image,
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
        Task::Vm(args) => vm::run(&args),
        Task::Image => {
            packages::need(packages::RUN)?;
            base::ensure(&tools::build(tools::Profile::Dev)?)
        }
    }
}
