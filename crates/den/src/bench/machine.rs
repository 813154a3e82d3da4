//! On what it was measured.

use std::fmt;

use serde::Serialize;

/// The machine and its state.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// CPUs this program may use.
    pub cores: usize,
    /// The CPU's name.
    pub cpu: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// `uname -r`.
    pub kernel: String,
    /// `btrfs` or `plain`.
    pub storage: String,
    /// `warm`: a computer had run from the image before anything was measured.
    pub page_cache: &'static str,
    /// Load of the last minute when the run began.
    pub load: f64,
}

impl Machine {
    /// Looks at /proc.
    pub fn look(storage: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: cpu
                .lines()
                .find_map(|line| {
                    line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned())
                })
                .unwrap_or_default(),
            memory_mib: meminfo("MemTotal") / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            storage: storage.to_owned(),
            page_cache: "warm",
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, cpu, memory_mib, kernel, storage, page_cache, load } = self;
        write!(f, "{cores} cores ({cpu}), {memory_mib} MiB, kernel {kernel}, storage {storage}, ")?;
        write!(f, "page cache {page_cache}, load {load} at the start")
    }
}

/// A field of /proc/meminfo, in KiB.
pub fn meminfo(field: &str) -> u64 {
    std::fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// Memory that programs and the kernel hold and cannot give back, in KiB: all but free memory and
/// the page cache.
pub fn occupied_kib() -> u64 {
    ["AnonPages", "Shmem", "Slab", "KernelStack", "PageTables", "Percpu"].into_iter().map(meminfo).sum()
}
