//! What an idle computer costs.

use std::time::{Duration, Instant};

use super::{
    Bench,
    machine::meminfo,
    report::{Measure, millis},
};

/// The kernel gives back what it holds for a while (dead cgroups, slabs) before this has passed.
const SETTLE: Duration = Duration::from_secs(3);

/// Memory that goes when `count` computers idle, kernel's and agent's, per computer in MiB.
pub async fn idle(bench: &Bench, count: u32) -> anyhow::Result<Measure> {
    // One run from the image before: the page cache is the image's, not the computers'.
    let first = bench.create("memory").await?;
    bench.run(&first.name, &["true"]).await?;
    tokio::time::sleep(SETTLE).await;
    let before = meminfo("MemAvailable");
    let start = Instant::now();
    let names = bench.crowd(count).await?;
    let made = millis(start);
    tokio::time::sleep(SETTLE).await;
    let after = meminfo("MemAvailable");
    let mut charged = 0;
    for name in &names {
        let view = bench.client.computer(name).await?;
        anyhow::ensure!(view.state.as_str() == "running", "`{name}` is {}", view.state.as_str());
        charged += view.usage.map_or(0, |usage| usage.memory_bytes);
    }
    let last = names.last().cloned().unwrap_or_default();
    bench.run(&last, &["true"]).await?;
    bench.remove(names).await?;
    bench.client.remove(&first.name).await?;

    let each = before.saturating_sub(after) as f64 / 1024.0 / f64::from(count);
    let charged = charged as f64 / f64::from(1 << 20) / f64::from(count);
    let note = format!(
        "MemAvailable with {count} idle ones against none, each; {charged:.2} MiB of it in its cgroup; made in {made:.0} ms"
    );
    let name = if count == 100 { "idle_memory_mib" } else { "idle_1000" };
    Ok(Measure::new(name, "MiB", vec![each], note).goal("≤ 3", |m| m.p50 <= 3.0))
}
