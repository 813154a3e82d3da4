//! CRIU for tests and demos: Debian's, from a newer suite, in a folder of its own with the libraries that it needs.
//!
//! ```text
//! /var/cache/den/criu/root    packages of `forky`, unpacked
//! /var/cache/den/criu/criu    runs it through its own ld.so: nothing of this host is upgraded
//! ```
//!
//! A host whose root lacks CAP_SYS_RESOURCE (this one runs in a container, say) may not read the limits of a process
//! whose user namespace another owns: `shim.c` then asks as the owner.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use fs_err as fs;

use crate::{tools, vm};

/// Where it is kept.
pub const CRIU: &str = "/var/cache/den/criu";
/// A suite that has CRIU 4.2.
const SUITE: &str = "forky";
/// Asks for limits as the owner of the user namespace.
const SHIM: &str = include_str!("criu/shim.c");
/// CAP_SYS_RESOURCE, as /proc/self/status has it.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Fetches it unless it is there; the program.
pub fn ensure() -> anyhow::Result<PathBuf> {
    let program = Path::new(CRIU).join("criu");
    if !program.is_file() {
        tools::need_root("fetching CRIU")?;
        eprintln!("fetching CRIU of Debian {SUITE}, once …");
        vm::keep(Path::new(CRIU), fetch)?;
    }
    Ok(program)
}

fn fetch(folder: &Path) -> anyhow::Result<()> {
    let apt = vm::Apt::of(SUITE)?;
    // As on a machine that has nothing: all that it needs comes with it.
    apt.run(&["-qq", "-y", "--download-only", "--no-install-recommends", "install", "criu"])?;
    let root = folder.join("root");
    fs::create_dir(&root)?;
    for package in apt.packages()? {
        tools::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&root))?;
    }
    let library = |name: &str| format!("{CRIU}/root/usr/lib/{}-linux-gnu/{name}", std::env::consts::ARCH);
    let loader = format!("ld-linux-{}.so.2", std::env::consts::ARCH.replace('_', "-"));
    let mut preload = String::new();
    if !has_sys_resource()? {
        let source = folder.join("shim.c");
        fs::write(&source, SHIM)?;
        tools::run(
            Command::new("gcc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(folder.join("shim.so")).arg(source),
        )?;
        preload = format!("--preload {CRIU}/shim.so ");
    }
    let script = format!(
        "#!/bin/sh\nexec {} {preload}--library-path {} {CRIU}/root/usr/sbin/criu \"$@\"\n",
        library(&loader),
        library("")
    );
    let program = folder.join("criu");
    fs::write(&program, script)?;
    fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn has_sys_resource() -> anyhow::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff in /proc/self/status")?;
    Ok(u64::from_str_radix(line.trim(), 16)? & CAP_SYS_RESOURCE != 0)
}
