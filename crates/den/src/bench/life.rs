//! Pausing, resuming, waking and cutting off.

use std::time::Instant;

use den_api::{ExecRequest, PauseComputer};

use super::{
    Bench, PACE,
    report::{Measure, millis},
};

/// What a computer is busy with: a loop, and a process that sleeps.
const BUSY: &str = "while :; do :; done & sleep 100000";

/// From the request to the answer that all of it stands still.
pub async fn pause(bench: &Bench) -> anyhow::Result<Measure> {
    let name = busy(bench, "pause").await?;
    let mut times = Vec::new();
    for _ in 0..bench.runs(100) {
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        bench.client.pause(&name, &PauseComputer::default()).await?;
        times.push(millis(start));
        bench.client.resume(&name).await?;
    }
    bench.client.remove(&name).await?;
    Ok(Measure::new("pause", "ms", times, "of a running computer with a busy process")
        .goal("p50 ≤ 5", |m| m.p50 <= 5.0))
}

/// From the request to the answer that it goes on.
pub async fn resume(bench: &Bench) -> anyhow::Result<Measure> {
    let name = busy(bench, "resume").await?;
    let mut times = Vec::new();
    for _ in 0..bench.runs(100) {
        bench.client.pause(&name, &PauseComputer::default()).await?;
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        bench.client.resume(&name).await?;
        times.push(millis(start));
    }
    bench.client.remove(&name).await?;
    Ok(Measure::new("resume", "ms", times, "of a paused computer").goal("p50 ≤ 5", |m| m.p50 <= 5.0))
}

/// From the request to the answer that it is cut off.
pub async fn unplug(bench: &Bench) -> anyhow::Result<Measure> {
    let name = busy(bench, "unplug").await?;
    let mut times = Vec::new();
    for _ in 0..bench.runs(100) {
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        bench.client.unplug(&name).await?;
        times.push(millis(start));
        bench.client.replug(&name).await?;
    }
    bench.client.remove(&name).await?;
    Ok(Measure::new("unplug", "ms", times, "of a running computer with a busy process")
        .goal("p99 ≤ 100", |m| m.p99 <= 100.0))
}

async fn busy(bench: &Bench, name: &str) -> anyhow::Result<String> {
    let view = bench.create(name).await?;
    let argv = ["sh", "-c", BUSY].map(str::to_owned).to_vec();
    bench.client.exec_detached(&view.name, &ExecRequest { argv, ..ExecRequest::default() }).await?;
    Ok(view.name)
}
