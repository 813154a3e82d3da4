//! What disks lie on: btrfs where it can be had, plain directories where not.

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use den_model::Bytes;
use den_sys::loopdev::LoopDevice;
use den_sys::{SysError, btrfs, mount};
use rustix::mount::UnmountFlags;

use crate::{DiskConfig, DiskError};

/// What disks lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Subvolumes: limits hold, snapshots take milliseconds.
    Btrfs,
    /// Directories: no limit on a disk.
    Plain,
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Btrfs => "btrfs",
            Self::Plain => "plain",
        })
    }
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StorageChoice {
    /// btrfs: DATA's own, else an image file.
    #[default]
    Auto,
    /// Directories.
    Plain,
}

/// Whether disks are held to their limits here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Held,
    NotHeld,
}

/// The image file, in the data folder.
pub(crate) const IMAGE: &str = "disk.btrfs";
/// How long what still uses the disks is waited for when they are let go.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// Between two tries.
const CLOSE_PAUSE: Duration = Duration::from_millis(20);
/// The smallest image that mkfs.btrfs takes with room to work in.
const IMAGE_BYTES_MIN: u64 = 512 << 20;

/// Makes sure that `root` is on what was chosen.
pub(crate) fn open(config: &DiskConfig, root: &Path) -> Result<(Storage, Limit), DiskError> {
    let mounted = is_mount(root);
    match config.storage {
        StorageChoice::Plain if !mounted => return Ok((Storage::Plain, Limit::NotHeld)),
        StorageChoice::Plain | StorageChoice::Auto => {}
    }
    if !mounted && !btrfs::is_btrfs(root) {
        let image = config.data.join(IMAGE);
        if !image.exists() {
            make_image(&image, config.size)?;
        }
        let device = LoopDevice::over(&image)?;
        mount::mount(&device.path.to_string_lossy(), root, "btrfs", "discard=async,commit=15")?;
    }
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(root, flags, rustix::fs::Mode::empty()).map_err(SysError::rustix("open", root.display()))?;
    match btrfs::enable_simple_quota(directory.as_fd()) {
        Ok(()) => Ok((Storage::Btrfs, Limit::Held)),
        // Linux before 6.7.
        Err(error) => {
            tracing::warn!(%error, "this kernel has no simple quotas: disks are not held to their limits");
            Ok((Storage::Btrfs, Limit::NotHeld))
        }
    }
}

/// Whether `root` is a mount of ours that takes no writes any more: btrfs ends them for good where one that it
/// needs has failed, as on a full disk below an image file.
pub(crate) fn is_read_only(root: &Path) -> bool {
    is_mount(root)
        && rustix::fs::statvfs(root).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Unmounts `root` if it is a mount of ours.
pub(crate) fn close(root: &Path) -> Result<(), DiskError> {
    if !is_mount(root) {
        return Ok(());
    }
    // The kernel lets go of namespaces and views a moment after their last user has.
    let until = Instant::now() + CLOSE_WAIT;
    loop {
        match mount::unmount(root, UnmountFlags::empty()) {
            Err(error) if error.errno == rustix::io::Errno::BUSY.raw_os_error() && Instant::now() < until => {
                std::thread::sleep(CLOSE_PAUSE);
            }
            other => return Ok(other?),
        }
    }
}

/// Where the kernel shows how much each subvolume of `root` uses.
pub(crate) fn qgroups(root: &Path) -> Option<PathBuf> {
    let device = std::fs::metadata(root).ok()?.dev();
    for entry in std::fs::read_dir("/sys/fs/btrfs").ok()?.flatten() {
        let path = entry.path();
        // Found by the mount's source, since btrfs gives each subvolume its own device number.
        let Ok(devices) = std::fs::read_dir(path.join("devices")) else { continue };
        let names: Vec<String> = devices.flatten().map(|d| d.file_name().to_string_lossy().into_owned()).collect();
        if source_of(root, device).is_some_and(|source| names.iter().any(|name| source == format!("/dev/{name}"))) {
            return Some(path.join("qgroups"));
        }
    }
    None
}

/// The source of the mount that holds `root`.
fn source_of(root: &Path, device: u64) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut best: Option<(usize, String)> = None;
    for line in table.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = front.split(' ').collect();
        let (Some(number), Some(point)) = (fields.get(2), fields.get(4)) else { continue };
        let point = mount::unescape(point);
        let source = back.split(' ').nth(1).map(mount::unescape)?;
        if *number == numbers || root.starts_with(&point) {
            let length = point.len();
            if best.as_ref().is_none_or(|(longest, _)| length >= *longest) {
                best = Some((length, source));
            }
        }
    }
    best.map(|(_, source)| source)
}

fn is_mount(path: &Path) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(&mount::unescape(point)) == path))
}

/// Makes a sparse file with an empty btrfs in it. A crash leaves the old state: the file gets its
/// name when it is complete.
fn make_image(image: &Path, size: Option<Bytes>) -> Result<(), DiskError> {
    let folder = image.parent().expect("a file in the data folder");
    let bytes = match size {
        Some(size) => size.0,
        None => {
            let stat = rustix::fs::statvfs(folder).map_err(SysError::rustix("statvfs", folder.display()))?;
            stat.f_bavail * stat.f_frsize / 10 * 8
        }
    }
    .max(IMAGE_BYTES_MIN)
        & !0xfff;
    let half = image.with_extension("btrfs.making");
    let file = fs_err::File::create(&half)?;
    file.set_len(bytes)?;
    drop(file);
    let made = Command::new("mkfs.btrfs").args(["--quiet", "--nodiscard", "-L", "den"]).arg(&half).output();
    let failed = match made {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(DiskError::Missing { program: "mkfs.btrfs" })
        }
        Err(error) => Some(SysError::io("run", Path::new("mkfs.btrfs"), &error).into()),
        Ok(output) if !output.status.success() => {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Some(DiskError::Format { path: half.clone(), message })
        }
        Ok(_) => None,
    };
    if let Some(error) = failed {
        let _ = std::fs::remove_file(&half);
        return Err(error);
    }
    fs_err::File::open(&half)?.sync_all()?;
    fs_err::rename(&half, image)?;
    fs_err::File::open(folder)?.sync_all()?;
    Ok(())
}
