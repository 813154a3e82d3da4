//! The btrfs calls that Den needs: subvolumes, their deletion, simple quotas.
//!
//! Source: linux/btrfs.h; simple quotas need Linux 6.7.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use crate::SysError;

const SUBVOL_CREATE: libc::Ioctl = 0x5000_940e_u32 as libc::Ioctl;
const SNAP_DESTROY: libc::Ioctl = 0x5000_940f_u32 as libc::Ioctl;
const INO_LOOKUP: libc::Ioctl = 0xd000_9412_u32 as libc::Ioctl;
const QUOTA_CTL: libc::Ioctl = 0xc010_9428_u32 as libc::Ioctl;
const QGROUP_LIMIT: libc::Ioctl = 0x8030_942b_u32 as libc::Ioctl;

const QUOTA_CTL_ENABLE_SIMPLE: u64 = 4;
const LIMIT_MAX_EXCL: u64 = 1 << 1;
const LIMIT_MAX_RFER: u64 = 1 << 0;

/// The statfs magic of btrfs.
pub const MAGIC: u32 = 0x9123_683e;

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct InoLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct QuotaCtl {
    command: u64,
    status: u64,
}

#[repr(C)]
struct QgroupLimit {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

fn vol_args(name: &str) -> Result<Box<VolArgs>, SysError> {
    let mut args = Box::new(VolArgs { fd: 0, name: [0; 4088] });
    if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) {
        return Err(SysError::new("btrfs", name, libc::EINVAL));
    }
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(args)
}

/// Whether `path` lies on btrfs.
pub fn is_btrfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u32 == MAGIC)
}

/// Makes an empty subvolume `name` in `directory`. About 0.1 ms.
pub fn create_subvolume(directory: BorrowedFd<'_>, name: &str) -> Result<(), SysError> {
    let args = vol_args(name)?;
    // SAFETY: the ioctl reads a btrfs_ioctl_vol_args, whose layout VolArgs has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_CREATE, &*args as *const VolArgs) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_SUBVOL_CREATE)", name)) } else { Ok(()) }
}

/// Unlinks the subvolume `name` of `directory`; its bytes are freed in the background.
///
/// Errors: `ENOTEMPTY` where it holds another subvolume, `EINVAL` for a plain directory.
pub fn destroy_subvolume(directory: BorrowedFd<'_>, name: &str) -> Result<(), SysError> {
    let args = vol_args(name)?;
    // SAFETY: as for SUBVOL_CREATE.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SNAP_DESTROY, &*args as *const VolArgs) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_SNAP_DESTROY)", name)) } else { Ok(()) }
}

/// The id of the subvolume that holds `directory`.
pub fn subvolume_id(directory: BorrowedFd<'_>) -> Result<u64, SysError> {
    let mut lookup = Box::new(InoLookup { tree: 0, object: 256, name: [0; 4080] });
    // SAFETY: the ioctl reads and writes a btrfs_ioctl_ino_lookup_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), INO_LOOKUP, &mut *lookup as *mut InoLookup) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_INO_LOOKUP)", "")) } else { Ok(lookup.tree) }
}

/// Turns simple quotas on for the file system of `directory`. On already is no error.
pub fn enable_simple_quota(directory: BorrowedFd<'_>) -> Result<(), SysError> {
    let mut control = QuotaCtl { command: QUOTA_CTL_ENABLE_SIMPLE, status: 0 };
    // SAFETY: the ioctl reads and writes a btrfs_ioctl_quota_ctl_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), QUOTA_CTL, &mut control as *mut QuotaCtl) };
    if result != 0 {
        let error = SysError::last("ioctl(BTRFS_QUOTA_CTL, simple)", "");
        if error.errno != libc::EEXIST {
            return Err(error);
        }
    }
    Ok(())
}

/// Holds the subvolume of this id to `bytes` of its own data and metadata.
pub fn limit_subvolume(directory: BorrowedFd<'_>, id: u64, bytes: u64) -> Result<(), SysError> {
    let limit = QgroupLimit {
        qgroup: id,
        flags: LIMIT_MAX_EXCL | LIMIT_MAX_RFER,
        max_referenced: bytes,
        max_exclusive: bytes,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: the ioctl reads a btrfs_ioctl_qgroup_limit_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), QGROUP_LIMIT, &limit as *const QgroupLimit) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_QGROUP_LIMIT)", id)) } else { Ok(()) }
}
