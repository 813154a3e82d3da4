//! Running a command that does nothing.

use std::{process::Stdio, time::Instant};

use anyhow::Context as _;

use super::{
    Bench,
    report::{Measure, millis},
};

/// One request on a kept connection, until the answer with the exit code is here.
pub async fn exec(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("exec").await?;
    let mut times = Vec::new();
    for run in 0..=bench.runs(1000) {
        let start = Instant::now();
        bench.run(&view.name, &["true"]).await?;
        if run > 0 {
            times.push(millis(start));
        }
    }
    bench.client.remove_now(&view.name).await?;
    Ok(Measure::new("exec", "ms", times, "`true` over the API, connection kept").goal("p50 ≤ 2", |m| m.p50 <= 2.0))
}

/// The `den` program from its start to its end.
pub async fn exec_cli(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("cli").await?;
    let mut times = Vec::new();
    for run in 0..=bench.runs(200) {
        let mut command = bench.den(&["exec", &view.name, "--", "true"])?;
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).status().context("cannot start den")?;
        if run > 0 {
            times.push(millis(start));
        }
        anyhow::ensure!(status.success(), "`den exec` ended with {status}");
    }
    bench.client.remove_now(&view.name).await?;
    Ok(Measure::new("exec_cli", "ms", times, "`den exec NAME -- true`, the whole process")
        .goal("p50 ≤ 12", |m| m.p50 <= 12.0))
}
