//! The files that are shown in place of the kernel's, and what is in them.

use std::fmt::Write;

use super::share::{Memory, Share, uptime};

/// Of the times in /proc/stat, a second.
const TICKS: f64 = 100.0;

/// One of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// Memory and swap.
    MemInfo,
    /// Swap.
    Swaps,
    /// The processors.
    CpuInfo,
    /// Their times.
    Stat,
    /// Load averages.
    LoadAvg,
    /// Numbers of the processors.
    Processors,
}

/// Their names here, what they hold, and which files they lie over. The place is the node's number.
pub const FILES: [(&str, File, &[&str]); 6] = [
    ("meminfo", File::MemInfo, &["/proc/meminfo"]),
    ("swaps", File::Swaps, &["/proc/swaps"]),
    ("cpuinfo", File::CpuInfo, &["/proc/cpuinfo"]),
    ("stat", File::Stat, &["/proc/stat"]),
    ("loadavg", File::LoadAvg, &["/proc/loadavg"]),
    (
        "processors",
        File::Processors,
        &["/sys/devices/system/cpu/online", "/sys/devices/system/cpu/possible", "/sys/devices/system/cpu/present"],
    ),
];

impl File {
    /// Whether there is anything to show: else the kernel's own stays.
    pub fn is_known(self, share: &Share) -> bool {
        match self {
            Self::MemInfo | Self::Swaps => share.knows_memory() && share.memory().is_some(),
            Self::CpuInfo | Self::Stat | Self::LoadAvg | Self::Processors => share.knows_processors(),
        }
    }

    /// What is in it now.
    pub fn text(self, share: &Share) -> Vec<u8> {
        match self {
            Self::MemInfo => meminfo(&share.memory().unwrap_or_default()).into_bytes(),
            Self::Swaps => swaps(&share.memory().unwrap_or_default()).into_bytes(),
            Self::CpuInfo => {
                let count = share.processors();
                let text = share.kernel_text("cpuinfo", |text| blocks(text, count).is_some());
                blocks(&text, count).map_or(text.clone(), |length| text[..length].to_vec())
            }
            Self::Stat => {
                let text = share.kernel_text("stat", |_| false);
                let times = Times { used_us: share.processor_time(), uptime: uptime(), running: running(share) };
                stat(&text, share.at_boot(), share.processors(), &times).into_bytes()
            }
            Self::LoadAvg => {
                let text = share.kernel_text("loadavg", |_| false);
                let text = String::from_utf8_lossy(&text);
                let last = text.trim().rsplit(' ').next().unwrap_or("1");
                let ([one, five, fifteen], _) = share.load();
                let (running, all) = (running(share), share.processes());
                format!("{one:.2} {five:.2} {fifteen:.2} {running}/{all} {last}\n").into_bytes()
            }
            Self::Processors => match share.processors() {
                1 => b"0\n".to_vec(),
                count => format!("0-{}\n", count - 1).into_bytes(),
            },
        }
    }
}

/// Who asks runs; others as the processors they use.
fn running(share: &Share) -> u64 {
    (share.load().1.ceil() as u64).clamp(1, share.processes().max(1))
}

fn meminfo(memory: &Memory) -> String {
    let [active_anon, inactive_anon] = memory.anonymous_lists;
    let [active_file, inactive_file] = memory.file_lists;
    let lines = [
        ("MemTotal", memory.total),
        ("MemFree", memory.free()),
        ("MemAvailable", memory.available()),
        ("Buffers", 0),
        ("Cached", memory.cached),
        ("SwapCached", 0),
        ("Active", active_anon + active_file),
        ("Inactive", inactive_anon + inactive_file),
        ("Active(anon)", active_anon),
        ("Inactive(anon)", inactive_anon),
        ("Active(file)", active_file),
        ("Inactive(file)", inactive_file),
        ("Unevictable", memory.unevictable),
        ("Mlocked", memory.unevictable),
        ("SwapTotal", memory.swap[0]),
        ("SwapFree", memory.swap[1]),
        ("Dirty", memory.dirty[0]),
        ("Writeback", memory.dirty[1]),
        ("AnonPages", memory.anonymous),
        ("Mapped", memory.mapped),
        ("Shmem", memory.shared),
        ("KReclaimable", memory.slab[0]),
        ("Slab", memory.slab[0] + memory.slab[1]),
        ("SReclaimable", memory.slab[0]),
        ("SUnreclaim", memory.slab[1]),
        ("KernelStack", memory.kernel[0]),
        ("PageTables", memory.kernel[1]),
        ("CommitLimit", memory.total + memory.swap[0]),
        ("Committed_AS", memory.anonymous + memory.shared),
    ];
    let mut text = String::with_capacity(lines.len() * 28);
    for (name, bytes) in lines {
        let _ = writeln!(text, "{:<15} {:>8} kB", format!("{name}:"), bytes >> 10);
    }
    text
}

fn swaps(memory: &Memory) -> String {
    let mut text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_owned();
    let [total, free] = memory.swap;
    if total > 0 {
        let _ =
            writeln!(text, "{:<40}virtual\t\t{}\t\t{}\t\t-2", "none", total >> 10, total.saturating_sub(free) >> 10);
    }
    text
}

/// How long the first `count` processors of a /proc/cpuinfo are; `None` if they are not all there yet.
fn blocks(text: &[u8], count: usize) -> Option<usize> {
    text.windows(2).enumerate().filter(|(_, pair)| pair == b"\n\n").nth(count - 1).map(|(at, _)| at + 2)
}

/// Of this computer.
struct Times {
    /// User and system.
    used_us: [u64; 2],
    uptime: f64,
    running: u64,
}

/// The host's counts that /proc/stat shows only since the computer booted: names and values.
pub type Counts = Vec<(String, u64)>;

/// The first number of each line of a /proc/stat that counts what has happened.
pub fn counts(kernel: &[u8]) -> Counts {
    let text = String::from_utf8_lossy(kernel);
    let count = |line: &str| {
        let (name, numbers) = line.split_once(' ')?;
        let counts = ["intr", "ctxt", "processes", "softirq"].contains(&name);
        counts.then_some((name.to_owned(), numbers.split(' ').next()?.parse().ok()?))
    };
    text.lines().filter_map(count).collect()
}

/// /proc/stat: the times of this computer, spread evenly over its processors; what the kernel counts, since its boot.
fn stat(kernel: &[u8], at_boot: &Counts, processors: usize, times: &Times) -> String {
    let &Times { used_us, uptime, running } = times;
    let ticks = |us: u64| (us as f64 / 1e6 * TICKS) as u64;
    let [user, system] = used_us.map(|us| ticks(us) / processors as u64);
    let idle = ((uptime * TICKS) as u64).saturating_sub(user + system);
    let mut text = String::new();
    let all = processors as u64;
    let _ = writeln!(text, "cpu  {} 0 {} {} 0 0 0 0 0 0", user * all, system * all, idle * all);
    for processor in 0..processors {
        let _ = writeln!(text, "cpu{processor} {user} 0 {system} {idle} 0 0 0 0 0 0");
    }
    for (name, count) in counts(kernel) {
        let before = at_boot.iter().find(|(known, _)| *known == name).map_or(0, |(_, before)| *before);
        let _ = writeln!(text, "{name} {}", count.saturating_sub(before));
    }
    if let Some(line) = String::from_utf8_lossy(kernel).lines().find(|line| line.starts_with("btime ")) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "procs_running {running}\nprocs_blocked 0");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_by_blocks() {
        let text = b"processor\t: 0\nflags\t: a\n\nprocessor\t: 1\nflags\t: b\n\n";
        assert_eq!(blocks(text, 1), Some(25));
        assert_eq!(blocks(text, 2), Some(text.len()));
        assert_eq!(blocks(text, 3), None);
    }

    #[test]
    fn times_are_spread_over_the_processors() {
        let kernel = b"cpu  9 9 9 9\ncpu0 9 9\ncpu1 9 9\nintr 5 6\nbtime 7\nprocs_running 40\nprocs_blocked 3\n";
        let (boot, none) = (counts(b"intr 2 1\nctxt 9\n"), Counts::new());
        let times = Times { used_us: [4_000_000, 2_000_000], uptime: 10.0, running: 1 };
        let text = stat(kernel, &boot, 2, &times);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "cpu  400 0 200 1400 0 0 0 0 0 0");
        assert_eq!(lines[2], "cpu1 200 0 100 700 0 0 0 0 0 0");
        assert_eq!(lines[3..], ["intr 3", "btime 7", "procs_running 1", "procs_blocked 0"]);
        let busy = Times { used_us: [90_000_000, 0], ..times };
        assert!(stat(kernel, &none, 1, &busy).starts_with("cpu  9000 0 0 0 "), "no time below none");
    }

    #[test]
    fn memory_as_the_kernel_prints_it() {
        let memory = Memory { total: 512 << 20, used: 100 << 20, cached: 30 << 20, ..Memory::default() };
        let text = meminfo(&memory);
        assert!(text.starts_with("MemTotal:         524288 kB\nMemFree:          421888 kB\n"), "{text}");
        assert!(text.contains("\nSwapTotal:             0 kB\n"), "{text}");
        assert_eq!(swaps(&memory).lines().count(), 1);
        assert_eq!(swaps(&Memory { swap: [2 << 20, 1 << 20], ..memory }).lines().count(), 2);
    }
}
