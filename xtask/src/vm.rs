//! `cargo xtask vm`: a session on another kernel, in an emulated machine with cgroup v2 alone.
//!
//! ```text
//! /var/cache/den/vm/<release>   a Debian kernel and its modules, from the host's own mirror
//! den-vm-…/moved                the backup of a house that was made on this host
//! den-vm-…/root.img             ext4: `base`, those modules, `den`, CRIU, a small image, vm/guest.sh, that backup
//! den-vm-…/initrd               busybox and the modules that reach the disk
//!                               ▼
//!                               qemu ─► guest.sh as process 1 ─► `VM: N passed, N failed`
//! ```
//!
//! With --systemd it is process 1 there, and the session is about `den install`; with --bench it is one of measures.
//!
//! `cargo xtask test` runs it last.

mod apt;
mod disk;
mod kernel;
mod machine;
mod moved;
mod systemd;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fs_err as fs;

pub use self::apt::Apt;
use self::{
    kernel::Kernel,
    machine::{Accel, Boot, Limits},
};
use crate::{base, criu, packages, tools};

/// When a machine is given up. Alone on two cores an emulated session needs half of it.
const LIMITS: Limits =
    Limits { begin: Duration::from_secs(180), quiet: Duration::from_secs(240), whole: Duration::from_secs(900) };
/// The same for measures: all attacks take a quarter of an hour.
const LIMITS_BENCH: Limits = Limits { whole: Duration::from_secs(3600), ..LIMITS };
/// Kernels and what apt knows of them.
const CACHE: &str = "/var/cache/den/vm";
/// What the host needs beside what Den needs.
const PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "e2fsprogs", "xz-utils", "tar", "binutils"];

/// `cargo xtask vm`
#[derive(Debug, clap::Args)]
pub struct VmArgs {
    /// 6.1, 6.12, or a vmlinuz-VERSION whose modules lie in ../lib/modules/VERSION
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// The program to run [default: target/release/den, else target/debug/den]
    den: Option<PathBuf>,
    /// systemd is process 1, and runs the daemon
    #[arg(long)]
    systemd: bool,
    /// Measure in place of the session, and fail where a goal is missed; `neighbour` is all that attacks
    #[arg(long, value_name = "MEASURE", num_args = 1.., conflicts_with = "systemd")]
    bench: Vec<String>,
    /// What carries the machine [default: kvm where it runs guests, else tcg]
    #[arg(long)]
    accel: Option<Accel>,
}

/// Boots the machine, shows its session, and fails where a check failed.
pub fn run(args: &VmArgs) -> anyhow::Result<()> {
    let den = match &args.den {
        Some(den) => std::path::absolute(den)?,
        None => ["release", "debug"]
            .map(|profile| tools::root().join("target").join(profile).join("den"))
            .into_iter()
            .find(|den| den.is_file())
            .context("no den in target/release or target/debug: build it, or name one")?,
    };
    ensure!(den.is_file(), "{} is not there", den.display());
    let purpose = match &args.bench[..] {
        [] if args.systemd => Purpose::Systemd,
        [] => Purpose::Session,
        rows => Purpose::Bench(rows),
    };
    let (passed, failed) = session(&args.kernel, &den, purpose, args.accel)?;
    ensure!(failed == 0, "{failed} of {} checks failed on Linux {}", passed + failed, args.kernel);
    Ok(())
}

/// The session that is a part of `cargo xtask test`; how many of its checks passed and failed.
pub fn of_tests(den: &Path) -> anyhow::Result<(u32, u32)> {
    session("6.1", den, Purpose::Session, None)
}

/// What a machine is booted for.
#[derive(Debug, Clone, Copy)]
enum Purpose<'a> {
    /// The session of guest.sh.
    Session,
    /// `den install`, with systemd as process 1.
    Systemd,
    /// These measures of `den bench`.
    Bench(&'a [String]),
}

fn session(kernel: &str, den: &Path, purpose: Purpose<'_>, accel: Option<Accel>) -> anyhow::Result<(u32, u32)> {
    ensure!(cfg!(target_arch = "x86_64"), "the machine is an x86_64 one, and so has to be this host");
    tools::need_root("cargo xtask vm")?;
    packages::need(packages::RUN)?;
    packages::need(PACKAGES)?;
    base::ensure(den)?;
    criu::ensure()?;
    let kernel = Kernel::find(kernel)?;
    let folder = tempfile::Builder::new().prefix("den-vm-").tempdir()?;
    let small = folder.path().join("den");
    tools::run(Command::new("strip").arg("-o").arg(&small).arg(den))?;
    let tar = disk::small_image(folder.path())?;
    let moved = match purpose {
        Purpose::Session => {
            eprintln!("making a house that moves …");
            Some(moved::make(folder.path(), &small, &tar)?)
        }
        Purpose::Systemd | Purpose::Bench(_) => None,
    };
    eprintln!("making the disk for Linux {} …", kernel.version);
    let disk = disk::root(folder.path(), &kernel, &small, purpose, moved.as_deref())?;
    let init = match purpose {
        Purpose::Systemd => "/lib/systemd/systemd",
        Purpose::Session | Purpose::Bench(_) => "/bin/bash /den-vm/guest.sh",
    };
    let limits = match purpose {
        Purpose::Bench(_) => LIMITS_BENCH,
        Purpose::Session | Purpose::Systemd => LIMITS,
    };
    let initrd = disk::initrd(folder.path(), &kernel, init)?;
    machine::run(&Boot { kernel: &kernel, disk: &disk, initrd: &initrd }, accel, limits)
}

/// Makes the folder `kept` whole or not at all.
pub fn keep(kept: &Path, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let parent = kept.parent().context("a cache folder has a parent")?;
    fs::create_dir_all(parent)?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
    make(new.path())?;
    Ok(fs::rename(new.keep(), kept)?)
}

fn only(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .with_context(|| format!("{} has no {prefix}…", folder.display()))
}
