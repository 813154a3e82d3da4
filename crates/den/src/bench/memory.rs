//! What an idle computer costs.

use std::time::{Duration, Instant};

use super::{
    Bench,
    machine::occupied_kib,
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
    let before = occupied_kib();
    let start = Instant::now();
    let names = bench.crowd(count).await?;
    let made = millis(start);
    tokio::time::sleep(SETTLE).await;
    let after = occupied_kib();
    let mut charged = 0;
    for name in &names {
        let view = bench.client.computer(name).await?;
        anyhow::ensure!(view.state.as_str() == "running", "`{name}` is {}", view.state.as_str());
        charged += view.usage.map_or(0, |usage| usage.memory_bytes);
    }
    let last = names.last().cloned().unwrap_or_default();
    bench.run(&last, &["true"]).await?;
    bench.remove(names).await?;
    bench.client.remove_now(&first.name).await?;

    let charged = charged as f64 / f64::from(1 << 20) / f64::from(count);
    let each = (after as f64 - before as f64) / 1024.0 / f64::from(count);
    // Other programs come and go meanwhile; a figure below what the computers' own cgroups were
    // charged would be theirs.
    anyhow::ensure!(
        each >= charged / 2.0,
        "other programs gave memory back while it was measured; try again on a quieter machine"
    );
    let note = format!(
        "anonymous, kernel and shared memory with {count} idle ones less that without, each; {charged:.2} MiB \
         of it in its cgroup; made in {made:.0} ms"
    );
    let name = if count == 100 { "idle_memory_mib" } else { "idle_1000" };
    Ok(Measure::new(name, "MiB", vec![each], note).goal("≤ 3", |m| m.p50 <= 3.0))
}
