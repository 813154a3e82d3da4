//! Waiting until the host has nothing left to do of the measure before: the kernel takes namespaces,
//! links and subvolumes apart long after a remove was answered, and one measure shall not pay for
//! another.

use std::time::Duration;

/// How long the host is looked at at a time.
const LOOK: Duration = Duration::from_millis(250);
/// The share of CPU time that must be idle, in percent.
const IDLE_MIN: u64 = 90;
/// How long is waited at most; a busy host is measured as it is.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Returns once the host is idle, or after [`WAIT_MAX`].
pub(super) async fn settle() {
    let mut waited = Duration::ZERO;
    let mut before = cpu_ticks();
    while waited < WAIT_MAX {
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
        let now = cpu_ticks();
        let (Some((idle, all)), Some((idle_before, all_before))) = (now, before) else { return };
        let (idle, all) = (idle.saturating_sub(idle_before), all.saturating_sub(all_before));
        if idle * 100 >= all * IDLE_MIN {
            return;
        }
        before = now;
    }
}

/// Idle and all ticks of all CPUs since boot, proc_stat(5).
fn cpu_ticks() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).take(8).map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}
