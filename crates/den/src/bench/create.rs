//! Making and removing computers.

use std::time::Instant;

use super::{
    Bench, PACE,
    report::{Measure, millis, rank},
};

/// From the request to the answer that says `running`.
pub async fn create(bench: &Bench) -> anyhow::Result<Measure> {
    let times = creates(bench, bench.runs(200)).await?;
    Ok(Measure::new("create", "ms", times, "API call to running, one at a time")
        .goal("p50 ≤ 10, p99 ≤ 40", |m| m.p50 <= 10.0 && m.p99 <= 40.0))
}

/// From the request to the end of `true` in the new computer.
pub async fn create_exec(bench: &Bench) -> anyhow::Result<Measure> {
    let mut times = Vec::new();
    for _ in 0..bench.runs(100) {
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        let view = bench.create("exec").await?;
        bench.run(&view.name, &["true"]).await?;
        times.push(millis(start));
        bench.client.remove_now(&view.name).await?;
    }
    Ok(Measure::new("create_exec", "ms", times, "create, then `true` to its end").goal("p50 ≤ 15", |m| m.p50 <= 15.0))
}

/// From the request to the answer.
pub async fn remove(bench: &Bench) -> anyhow::Result<Measure> {
    let mut times = Vec::new();
    for _ in 0..bench.runs(100) {
        let view = bench.create("remove").await?;
        bench.run(&view.name, &["true"]).await?;
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        bench.client.remove_now(&view.name).await?;
        times.push(millis(start));
        // Out of the trash, where the house has one.
        match bench.client.remove_now(&view.id.to_string()).await {
            Err(error) if error.code() != Some("computer_not_found") => return Err(error.into()),
            _ => {}
        }
    }
    Ok(Measure::new("remove", "ms", times, "of a running computer").goal("p50 ≤ 15", |m| m.p50 <= 15.0))
}

/// A hundred at once.
pub async fn create_100(bench: &Bench) -> anyhow::Result<Measure> {
    let mut times = Vec::new();
    for _ in 0..bench.runs(5) {
        tokio::time::sleep(PACE * 40).await;
        let start = Instant::now();
        let names = bench.crowd(100).await?;
        times.push(millis(start));
        bench.remove(names).await?;
    }
    Ok(Measure::new("create_100", "ms", times, "100 requests at once until all run")
        .goal("p50 ≤ 1500", |m| m.p50 <= 1500.0))
}

/// How much 300 idle computers slow a create down.
pub async fn create_300_ratio(bench: &Bench) -> anyhow::Result<Measure> {
    let runs = bench.runs(60);
    let mut alone = creates(bench, runs).await?;
    let crowd = bench.crowd(300).await?;
    tokio::time::sleep(PACE * 40).await;
    let mut beside = creates(bench, runs).await?;
    bench.remove(crowd).await?;
    alone.sort_by(f64::total_cmp);
    beside.sort_by(f64::total_cmp);
    let (alone, beside) = (rank(&alone, 0.5), rank(&beside, 0.5));
    let note = format!("create p50 {beside:.2} ms beside 300 idle ones, {alone:.2} ms without; {runs} runs each");
    Ok(Measure::new("create_300_ratio", "x", vec![beside / alone], note).goal("≤ 1.5", |m| m.p50 <= 1.5))
}

async fn creates(bench: &Bench, runs: u32) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    // The first one brings the image into the page cache and is not counted.
    for run in 0..=runs {
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        let view = bench.create("create").await?;
        if run > 0 {
            times.push(millis(start));
        }
        bench.client.remove_now(&view.name).await?;
    }
    Ok(times)
}
