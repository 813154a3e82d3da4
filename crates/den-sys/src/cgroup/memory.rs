//! Making a cgroup's memory smaller without ending anything in it.
//!
//! ```text
//! v1  memory.limit_in_bytes ─ step by step ─► EBUSY: what is left cannot be taken
//! v2  memory.reclaim ─ step by step ─► memory.max last: one below what is used ends processes
//! ```
//!
//! Who asks has everything in the cgroup stand still meanwhile: what goes on could take more in between, and be
//! ended for it.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::{Cgroups, Layout, read_below, write_below};
use crate::SysError;

/// What is taken at a time, between two looks at the clock.
const STEP_BYTES: u64 = 64 << 20;
/// How often the kernel may find nothing to take before it is believed.
const MISSES_MAX: u32 = 3;

const LIMIT_V1: &str = "memory.limit_in_bytes";
const LIMIT_V2: &str = "memory.max";
const UNLIMITED_V1: u64 = i64::MAX as u64 & !0xffff;

impl Cgroups {
    /// Lowers the memory limit of the cgroup `name` from `from` to `to` bytes, and takes back what it uses beyond
    /// that: page cache, and what swap has room for. `false` where that cannot be had within `wait`; then the
    /// limit is what it was.
    pub fn lower_memory(&self, name: &str, from: u64, to: u64, wait: Duration) -> Result<bool, SysError> {
        let Some(directory) = self.controller("memory") else { return Ok(true) };
        let end = Instant::now() + wait;
        let (lowered, file) = match self.layout {
            Layout::V1 => (lower_v1(directory, name, to, end), LIMIT_V1),
            Layout::V2 => (lower_v2(directory, name, to, end), LIMIT_V2),
        };
        if !matches!(lowered, Ok(true)) {
            write_if_there(directory, name, file, &from.to_string())?;
        }
        lowered
    }

    /// The memory that the cgroup `name` is held to, in bytes; `None` where it is held to none.
    pub fn memory_limit(&self, name: &str) -> Option<u64> {
        let file = if self.layout == Layout::V1 { LIMIT_V1 } else { LIMIT_V2 };
        let text = read_below(self.controller("memory")?, name, file)?;
        // v1 shows none as the largest number of whole pages.
        text.trim().parse().ok().filter(|&bytes| bytes < UNLIMITED_V1)
    }

    /// Bytes that the cgroup `name` uses and that only swap could take.
    pub fn memory_held(&self, name: &str) -> u64 {
        let keys: &[&str] = match self.layout {
            Layout::V1 => &["total_rss ", "total_shmem "],
            Layout::V2 => &["anon ", "shmem "],
        };
        let read = |directory| read_below(directory, name, "memory.stat");
        let Some(stat) = self.controller("memory").and_then(read) else { return 0 };
        let value = |key: &&str| stat.lines().find_map(|line| line.strip_prefix(*key)?.trim().parse::<u64>().ok());
        keys.iter().filter_map(value).sum()
    }
}

fn number(directory: BorrowedFd<'_>, name: &str, file: &str) -> u64 {
    read_below(directory, name, file).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn lower_v1(directory: BorrowedFd<'_>, name: &str, to: u64, end: Instant) -> Result<bool, SysError> {
    loop {
        let used = number(directory, name, "memory.usage_in_bytes");
        let next = if used <= to { to } else { to.max(used.saturating_sub(STEP_BYTES)) };
        match write_below(directory, name, LIMIT_V1, &next.to_string()) {
            Ok(()) if next == to => return Ok(true),
            Ok(()) => {}
            Err(error) if error.errno == libc::EBUSY => return Ok(false),
            Err(error) => return Err(error),
        }
        if Instant::now() >= end {
            return Ok(false);
        }
    }
}

fn lower_v2(directory: BorrowedFd<'_>, name: &str, to: u64, end: Instant) -> Result<bool, SysError> {
    let mut misses = 0;
    loop {
        let used = number(directory, name, "memory.current");
        if used <= to {
            return write_if_there(directory, name, LIMIT_V2, &to.to_string()).map(|_| true);
        }
        if misses >= MISSES_MAX || Instant::now() >= end {
            return Ok(false);
        }
        let part = (used - to).min(STEP_BYTES);
        match write_if_there(directory, name, "memory.reclaim", &part.to_string()) {
            Ok(true) => misses = 0,
            // Before Linux 5.19: a mark beyond which the kernel takes back what it can.
            Ok(false) => {
                misses += 1;
                write_below(directory, name, "memory.high", &to.to_string())?;
                write_below(directory, name, "memory.high", "max")?;
            }
            Err(error) if error.errno == libc::EAGAIN => misses += 1,
            Err(error) => return Err(error),
        }
    }
}

/// `false` where there is no such file: a nested tree may have no controllers.
fn write_if_there(directory: BorrowedFd<'_>, name: &str, file: &str, value: &str) -> Result<bool, SysError> {
    match write_below(directory, name, file, value) {
        Ok(()) => Ok(true),
        Err(error) if error.errno == libc::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}
