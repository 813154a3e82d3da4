//! systemd for the machine: the packages that `base` lacks, unpacked over its root, and a unit that runs the session.
//!
//! ```text
//! apt, with the package list of `base` ─► what `systemd` needs beyond it ─► CACHE/systemd-<suite> ─► root disk
//! ```

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use fs_err as fs;

use super::{CACHE, apt::Apt, keep};
use crate::tools;

/// What is run once the machine has booted that far.
const UNIT: &str = "\
[Unit]
Description=The session of cargo xtask vm
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash /den-vm/guest.sh
StandardOutput=file:/dev/ttyS0
StandardError=inherit
TimeoutStartSec=infinity
";
/// What the machine boots to.
const TARGET: &str = "\
[Unit]
Description=A host with systemd
Requires=basic.target den-vm.service
After=basic.target
AllowIsolate=yes
";
/// The part of the session that is about systemd.
const SESSION: &str = include_str!("systemd.sh");

/// Puts systemd and the session's unit on the root disk; needs the network the first time.
pub fn add(root: &Path) -> anyhow::Result<()> {
    let release = fs::read_to_string(root.join("etc/os-release"))?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("`base` does not say which Debian it is")?;
    let tree = Path::new(CACHE).join(format!("systemd-{suite}"));
    if !tree.is_dir() {
        fetch(suite, root, &tree)?;
    }
    tools::run(Command::new("cp").arg("-a").arg(tree.join("usr")).arg(tree.join("etc")).arg(root))?;
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(&units)?;
    fs::write(units.join("den-vm.service"), UNIT)?;
    fs::write(units.join("den-vm.target"), TARGET)?;
    let _ = fs::remove_file(units.join("default.target"));
    symlink("den-vm.target", units.join("default.target"))?;
    fs::write(root.join("etc/machine-id"), "")?;
    Ok(fs::write(root.join("den-vm/systemd.sh"), SESSION)?)
}

fn fetch(suite: &str, root: &Path, tree: &Path) -> anyhow::Result<()> {
    eprintln!("fetching systemd of Debian {suite}, once …");
    let apt = Apt::of(suite)?;
    // What apt would install beside what `base` has.
    let status = format!("Dir::State::status={}", root.join("var/lib/dpkg/status").display());
    let mut plan = apt.command("apt-get");
    plan.args(["-o", &status, "-qq", "-s", "--no-install-recommends", "install", "systemd"]);
    let plan = tools::read(plan.stdout(std::process::Stdio::piped()))?;
    let packages: Vec<&str> =
        plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next()).collect();
    tools::run(apt.command("apt-get").args(["-qq", "download"]).args(&packages))?;
    keep(tree, |tree| {
        for folder in ["usr", "etc"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        for package in debs(apt.folder())? {
            let one = tempfile::tempdir_in(apt.folder())?;
            tools::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(one.path()))?;
            // `base` has /lib, /bin and /sbin in /usr.
            for (from, to) in [("lib", "usr"), ("bin", "usr"), ("sbin", "usr"), ("usr", ""), ("etc", "")] {
                let from = one.path().join(from);
                if from.is_dir() {
                    tools::run(Command::new("cp").arg("-a").arg(&from).arg(tree.join(to)))?;
                }
            }
        }
        Ok(())
    })
}

fn debs(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
    Ok(entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}
