//! The Debian packages that this host needs.

use std::process::{Command, Stdio};

use crate::tools;

/// To run Den.
pub const RUN: &[&str] =
    &["btrfs-progs", "mmdebstrap", "nftables", "iproute2", "ca-certificates", "util-linux", "mount"];
/// To build it.
pub const BUILD: &[&str] = &["gcc", "libc6-dev", "make"];
/// To test it: an end-to-end test uses what is named here on the host.
pub const TEST: &[&str] = &["tar", "python3", "busybox-static"];
/// To measure it beside others.
pub const RIVALS: &[&str] = &["podman", "crun", "runc", "docker.io"];

/// Installs those that are missing, by apt.
pub fn need(packages: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    tools::need_root("installing packages")?;
    eprintln!("installing {} …", missing.join(" "));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        command
    };
    tools::run(apt().args(["-qq", "update"]))?;
    tools::run(apt().args(["-qq", "-y", "--no-install-recommends", "install"]).args(missing))
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
