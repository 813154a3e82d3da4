//! The disks of computers: btrfs on a loop device with simple quotas, and room for them.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
};

use den_sys::{SysError, btrfs, loopdev::LoopDevice, mount};
use rustix::{
    fs::{Mode, OFlags},
    mount::MountAttrFlags,
};

use super::{Check, Status, kernel::filesystem, program};

/// mkfs.btrfs refuses below 109 MiB; the file is sparse.
const IMAGE_BYTES: u64 = 128 << 20;
/// What the trial's subvolume may hold, and what is written to it.
const LIMIT_BYTES: u64 = 4 << 20;
const WRITTEN_BYTES: usize = 8 << 20;
/// A disk with less is not worth beginning on: the default image alone has about 1 GiB.
const FREE_BYTES_MIN: u64 = 2 << 30;
const FREE_BYTES_GOOD: u64 = 10 << 30;

const PLAIN: &str = "computers get plain directories: no limit on their disk, and forks copy";

pub(super) fn checks(data: &Path, near: &Path) -> Vec<Check> {
    vec![storage(near), quotas(near), room(data, near)]
}

fn storage(near: &Path) -> Check {
    if btrfs::is_btrfs(near) {
        Check::ok("storage", format!("{} lies on btrfs", near.display()))
    } else {
        let kind = filesystem(near);
        Check::ok("storage", format!("{} lies on {kind}: computers get a btrfs image file there", near.display()))
    }
}

/// A file system made, mounted nowhere, with a subvolume that is filled past its limit.
fn quotas(near: &Path) -> Check {
    const NAME: &str = "btrfs and quotas";
    let Some(mkfs) = program("mkfs.btrfs") else {
        return Check::warn(NAME, "mkfs.btrfs is not there", PLAIN).fix("apt-get install btrfs-progs");
    };
    match held_to_limit(near, &mkfs) {
        Ok(written) if written <= LIMIT_BYTES => {
            Check::ok(NAME, "a loop device, mkfs.btrfs, simple quotas: a subvolume was held to its limit")
        }
        Ok(written) => {
            let found = format!("{} MiB went into a subvolume limited to {} MiB", written >> 20, LIMIT_BYTES >> 20);
            Check::warn(NAME, found, "the disks of computers are not held to their limits")
        }
        Err(error) => {
            let modular = !std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("btrfs"));
            let check = Check::warn(NAME, error, PLAIN);
            if modular { check.fix("modprobe btrfs loop") } else { check }
        }
    }
}

/// Returns how many bytes went in.
fn held_to_limit(near: &Path, mkfs: &Path) -> Result<u64, String> {
    let told = |what: &str, error: io::Error| format!("{what}: {error}");
    let known = |error: SysError| error.to_string();
    let image = tempfile::Builder::new()
        .prefix(".den-doctor-")
        .tempfile_in(near)
        .map_err(|error| told("a file in DATA", error))?;
    image.as_file().set_len(IMAGE_BYTES).map_err(|error| told("a sparse file in DATA", error))?;
    let mut command = Command::new(mkfs);
    command.args(["--quiet", "--nodiscard", "--data", "single", "--metadata", "single"]).arg(image.path());
    let output = command.stdin(Stdio::null()).output().map_err(|error| told("mkfs.btrfs", error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("mkfs.btrfs: {}", said.lines().next().unwrap_or("no reason given")));
    }
    let device = LoopDevice::over(image.path()).map_err(known)?;
    let source = device.path.to_string_lossy();
    let mounted = mount::new_filesystem("btrfs", &[("source", &source)], MountAttrFlags::empty()).map_err(known)?;
    let errno = |call: &'static str| move |errno| SysError::rustix(call, "trial")(errno).to_string();
    // A mount's own descriptor is a path only, and ioctls want an open directory.
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(&mounted, ".", flags, Mode::empty()).map_err(errno("openat"))?;
    btrfs::enable_simple_quota(root.as_fd()).map_err(known)?;
    btrfs::create_subvolume(root.as_fd(), "trial").map_err(known)?;
    let trial = rustix::fs::openat(&root, "trial", flags, Mode::empty()).map_err(errno("openat"))?;
    let id = btrfs::subvolume_id(trial.as_fd()).map_err(known)?;
    btrfs::limit_subvolume(root.as_fd(), id, LIMIT_BYTES).map_err(known)?;

    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&trial, "file", flags, Mode::RUSR).map_err(errno("openat"))?;
    let chunk = vec![0x5a_u8; 256 << 10];
    let mut written = 0;
    while written < WRITTEN_BYTES as u64 {
        match rustix::io::write(&file, &chunk) {
            Ok(count) => written += count as u64,
            Err(rustix::io::Errno::DQUOT | rustix::io::Errno::NOSPC) => break,
            Err(errno) => return Err(format!("write: {errno}")),
        }
    }
    Ok(written)
}

fn room(data: &Path, near: &Path) -> Check {
    let stat = match rustix::fs::statvfs(near) {
        Ok(stat) => stat,
        Err(errno) => return Check::fail("free space", format!("{}: {errno}", near.display()), "DATA cannot be used"),
    };
    let free = stat.f_bavail * stat.f_frsize;
    let found = format!("{} for {}", den_model::Bytes(free), data.display());
    let status = match free {
        ..FREE_BYTES_MIN => Status::Fail,
        FREE_BYTES_MIN..FREE_BYTES_GOOD => Status::Warn,
        _ => return Check::ok("free space", found),
    };
    let means = "the default image takes about 1 GiB, and every computer what it writes".to_owned();
    Check { name: "free space", status, found, means, fix: Some("den serve --data DIR, on a larger disk".to_owned()) }
}
