//! Giving the memory of processes that stand still back to the host.
//!
//! ```text
//! v2  bytes ► memory.reclaim, some at a time
//! v1  cgroup.procs ─► /proc/<pid>/maps ─► process_madvise(MADV_PAGEOUT), some at a time
//! ```
//!
//! What is given back lies in swap or zram, and comes again as it is touched. Only a hint: pages that others
//! use, or that are locked, stay.

use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::SysError;
use crate::cgroup::{Hierarchies, Layout};

/// `madvise(2)`: reclaims pages (Linux 5.4), of another process since 5.10.
const MADV_PAGEOUT: libc::c_int = 21;

/// Bytes that are asked for at a time, so that whoever is woken meanwhile waits for no more.
const STEP_BYTES: u64 = 16 << 20;

/// Steps of one v2 cgroup: 64 GiB of the largest.
const STEPS_MAX: u64 = 4096;

/// The longest `maps` that is read, in bytes.
const MAPS_BYTES_MAX: u64 = 16 << 20;

/// Swap of this host in bytes, zram included.
pub fn swap_bytes() -> u64 {
    let facts = rustix::system::sysinfo();
    facts.totalswap.saturating_mul(u64::from(facts.mem_unit))
}

/// Gives back what the processes of the cgroup `name` of `instance` hold, while `go_on` says so. Returns the
/// bytes that were offered to the kernel.
///
/// Errors: the cgroup or the kernel's call is not there.
pub fn give_back(instance: &str, name: &str, go_on: impl Fn() -> bool) -> Result<u64, SysError> {
    let hierarchies = Hierarchies::find()?;
    if hierarchies.layout == Layout::V2
        && let Some(mount) = &hierarchies.unified
    {
        return reclaim(&mount.join(instance).join(name), go_on);
    }
    let mount = hierarchies.v1.iter().find(|(controller, _)| *controller == "memory").map(|(_, mount)| mount);
    let Some(mount) = mount else { return Ok(0) };
    let path = mount.join(instance).join(name).join("cgroup.procs");
    let list = std::fs::read_to_string(&path).map_err(|error| SysError::io("read", &path, &error))?;
    let mut offered = 0;
    for pid in list.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)) {
        if !go_on() {
            break;
        }
        // One may have ended; the kernel's own refusal is told.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        offered += page_out(pidfd.as_fd(), pid, &go_on)?;
    }
    Ok(offered)
}

/// v2: until the kernel finds no more.
fn reclaim(cgroup: &Path, go_on: impl Fn() -> bool) -> Result<u64, SysError> {
    let file = cgroup.join("memory.reclaim");
    let mut offered = 0;
    for _ in 0..STEPS_MAX {
        let current = cgroup.join("memory.current");
        let current = std::fs::read_to_string(&current).map_err(|error| SysError::io("read", &current, &error))?;
        let left: u64 = current.trim().parse().unwrap_or(0);
        if left == 0 || !go_on() {
            break;
        }
        match std::fs::write(&file, left.min(STEP_BYTES).to_string()) {
            Ok(()) => offered += left.min(STEP_BYTES),
            // It found less than that: it is done.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => break,
            Err(error) => return Err(SysError::io("write", &file, &error)),
        }
    }
    Ok(offered)
}

/// Has all mappings of a process paged out, while `go_on` says so; the bytes of those that the kernel took.
///
/// Errors: the kernel has no such call, or it is not allowed.
pub fn page_out(pidfd: BorrowedFd<'_>, pid: Pid, go_on: impl Fn() -> bool) -> Result<u64, SysError> {
    let mut text = String::new();
    let path = format!("/proc/{}/maps", pid.as_raw_nonzero());
    let read = std::fs::File::open(&path).and_then(|file| file.take(MAPS_BYTES_MAX).read_to_string(&mut text));
    if read.is_err() {
        return Ok(0); // It has ended.
    }
    let mut offered = 0;
    for (start, end) in text.lines().filter_map(range) {
        let mut at = start;
        while at < end {
            if !go_on() {
                return Ok(offered);
            }
            let length = (end - at).min(STEP_BYTES);
            let vector = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: length as usize };
            // SAFETY: the vector is one element that lives through the call; its address is of the other
            // process, which the kernel checks, and nothing is written there.
            let done = unsafe {
                libc::syscall(libc::SYS_process_madvise, pidfd.as_raw_fd(), &raw const vector, 1_usize, MADV_PAGEOUT, 0)
            };
            if done >= 0 {
                offered += done as u64;
            } else {
                let error = SysError::last("process_madvise", &path);
                match error.errno {
                    // Locked or special memory; a process or mapping that is gone.
                    libc::EINVAL | libc::ENOMEM | libc::EFAULT => {}
                    libc::ESRCH => return Ok(offered),
                    _ => return Err(error),
                }
            }
            at += length;
        }
    }
    Ok(offered)
}

/// `start-end` of a line of maps; none for what the kernel lays there itself.
fn range(line: &str) -> Option<(u64, u64)> {
    if line.ends_with("[vsyscall]") || line.ends_with("[vdso]") || line.ends_with("[vvar]") {
        return None;
    }
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        assert_eq!(range("00400000-0040b000 r-xp 00000000 08:01 1 /bin/true"), Some((0x40_0000, 0x40_b000)));
        for line in ["ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]", "", "x-y z"] {
            assert_eq!(range(line), None, "{line}");
        }
    }

    /// What lies in files is given back with and without swap.
    #[test]
    fn a_process_gives_its_pages_back() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let went = page_out(pidfd.as_fd(), pid, || true);
        let kept = page_out(pidfd.as_fd(), pid, || false);
        child.kill().unwrap();
        child.wait().unwrap();
        let gone = page_out(pidfd.as_fd(), pid, || true);
        if rustix::process::geteuid().is_root() {
            assert!(went.unwrap() > 0, "some of it was taken");
        }
        assert_eq!((kept.unwrap(), gone.unwrap()), (0, 0));
    }
}
