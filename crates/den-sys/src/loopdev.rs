//! Loop devices: a file as a block device. Source: loop(4); LOOP_CONFIGURE needs Linux 5.8.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::SysError;

const CTL_GET_FREE: libc::Ioctl = 0x4c82;
const CONFIGURE: libc::Ioctl = 0x4c0a;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;
const MAJOR: u32 = 7;

/// How often another process may take the free device first.
const TRIES_MAX: u32 = 32;

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// A loop device that goes away by itself once nothing uses it: neither this nor a mount.
pub struct LoopDevice {
    /// Its node.
    pub path: PathBuf,
    _device: OwnedFd,
}

impl LoopDevice {
    /// Sets one up over `file`, with direct I/O where the file system has it.
    pub fn over(file: &Path) -> Result<Self, SysError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let backing = rustix::fs::open(file, flags, Mode::empty()).map_err(SysError::rustix("open", file.display()))?;
        let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty())
            .map_err(SysError::rustix("open", "/dev/loop-control"))?;
        for _ in 0..TRIES_MAX {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), CTL_GET_FREE) };
            if number < 0 {
                return Err(SysError::last("ioctl(LOOP_CTL_GET_FREE)", ""));
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(device) => device,
                Err(rustix::io::Errno::NOENT) => {
                    let node = libc::makedev(MAJOR, number as u32);
                    let mode = Mode::from_raw_mode(0o660);
                    match rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::BlockDevice, mode, node) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => continue,
                        Err(errno) => return Err(SysError::new("mknod", path.display(), errno.raw_os_error())),
                    }
                }
                Err(errno) => return Err(SysError::new("open", path.display(), errno.raw_os_error())),
            };
            match configure(&device, &backing, AUTOCLEAR | DIRECT_IO) {
                Ok(()) => return Ok(Self { path, _device: device }),
                Err(error) if error.errno == libc::EBUSY => continue,
                Err(error) if error.errno == libc::EINVAL => {
                    configure(&device, &backing, AUTOCLEAR)?;
                    return Ok(Self { path, _device: device });
                }
                Err(error) => return Err(error),
            }
        }
        Err(SysError::new("ioctl(LOOP_CONFIGURE)", "every free device was taken", libc::EBUSY))
    }
}

fn configure(device: &OwnedFd, backing: &OwnedFd, flags: u32) -> Result<(), SysError> {
    let config = LoopConfig {
        fd: backing.as_fd().as_raw_fd() as u32,
        block_size: 4096,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the ioctl reads a struct loop_config of linux/loop.h, whose layout this has.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &config as *const LoopConfig) };
    if result != 0 { Err(SysError::last("ioctl(LOOP_CONFIGURE)", "")) } else { Ok(()) }
}
