//! What the history costs those who do not ask for it: steps, and computers that come from one another.
//!
//! ```text
//! step_unchanged   a step on the heels of another, beside one that comes later: it waits for a look at the disk
//! step_changed     a step that writes to the disk, beside one that writes to memory
//! fork_20, read_20 forks of forks of forks, each with something of its own, beside the first of them
//! ```
//!
//! Each pair is measured in turns.

use std::time::{Duration, Instant};

use super::{
    Bench, PACE,
    report::{Measure, millis, rank},
};

/// How many forks lie between the first computer and the last.
const DEPTH: u32 = 20;
/// After a step: its state is known by then.
const GAP: Duration = Duration::from_millis(4);
/// Files that are read, and how often all of them.
const FILES: u32 = 500;
const READS: u32 = 4;
/// Not slower than the other one: a tenth is what two medians of the same differ by.
const ALIKE: f64 = 1.1;

/// What a step pays for the look at the disk after the one before, which changed nothing.
pub async fn step_unchanged(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("unchanged").await?;
    let (mut at_once, mut later) = (Vec::new(), Vec::new());
    for run in 0..=bench.runs(500) {
        tokio::time::sleep(GAP).await;
        let start = Instant::now();
        bench.run(&view.name, &["true"]).await?;
        let first = millis(start);
        let start = Instant::now();
        bench.run(&view.name, &["true"]).await?;
        if run > 0 {
            later.push(first);
            at_once.push(millis(start));
        }
    }
    bench.client.remove_now(&view.name).await?;
    at_once.sort_by(f64::total_cmp);
    later.sort_by(f64::total_cmp);
    let (one, other) = (rank(&at_once, 0.5), rank(&later, 0.5));
    let note =
        format!("how much later `true` on the heels of `true` ends: {one:.2} ms, {other:.2} ms without one before");
    Ok(Measure::new("step_unchanged", "ms", vec![one - other], note).goal("≤ 0.2", |m| m.p50 <= 0.2))
}

/// Whether a step that changed the disk returns later for it.
pub async fn step_changed(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("changed").await?;
    let (mut kept, mut passing) = (Vec::new(), Vec::new());
    for run in 0..=bench.runs(100) {
        for (times, place) in [(&mut kept, "/root/file"), (&mut passing, "/dev/shm/file")] {
            tokio::time::sleep(PACE).await;
            let start = Instant::now();
            bench.run(&view.name, &["sh", "-c", &format!("echo {run} > {place}")]).await?;
            if run > 0 {
                times.push(millis(start));
            }
        }
    }
    let states = bench.client.snapshots(&view.name).await?.len();
    anyhow::ensure!(states > kept.len() / 2, "{} steps wrote, and {states} states are kept", kept.len());
    bench.client.remove_now(&view.name).await?;
    passing.sort_by(f64::total_cmp);
    let other = rank(&passing, 0.5);
    let note =
        format!("`echo > /root/file`, whose state is kept once it has ended; `echo > /dev/shm/file`: {other:.2} ms");
    Ok(Measure::new("step_changed", "ms", kept, note).goal("p50 ≤ 1.1x that", |m| m.p50 <= ALIKE * other))
}

/// A fork of the last of a chain, to the end of `true` in it.
pub async fn fork_20(bench: &Bench) -> anyhow::Result<Measure> {
    let chain = bench.chain().await?;
    let [mut first, mut last] = [Vec::new(), Vec::new()];
    for run in 0..=bench.runs(30) {
        for (times, parent) in [(&mut first, &chain[0]), (&mut last, &chain[chain.len() - 1])] {
            tokio::time::sleep(PACE).await;
            let start = Instant::now();
            let fork = bench.client.fork(parent, &bench.forks("deeper", 1)).await?.items.remove(0).name;
            bench.run(&fork, &["true"]).await?;
            if run > 0 {
                times.push(millis(start));
            }
            bench.client.remove_now(&fork).await?;
        }
    }
    bench.remove(chain).await?;
    first.sort_by(f64::total_cmp);
    let other = rank(&first, 0.5);
    let note = format!("fork at depth {DEPTH}, then `true`; at depth 1: {other:.2} ms");
    Ok(Measure::new("fork_20", "ms", last, note).goal("p50 ≤ 1.1x that", |m| m.p50 <= ALIKE * other))
}

/// Reading files that the first of a chain wrote in the last.
pub async fn read_20(bench: &Bench) -> anyhow::Result<Measure> {
    let chain = bench.chain().await?;
    let read = format!(
        "import time\ndef all():\n for f in range({FILES}):\n  with open(f'/root/data/{{f}}') as file: file.read()\nall()\nstart = time.perf_counter()\nfor _ in range({READS}): all()\nprint((time.perf_counter() - start) / {} * 1e6)",
        FILES * READS
    );
    let [mut first, mut last] = [Vec::new(), Vec::new()];
    for _ in 0..bench.runs(20) {
        for (times, name) in [(&mut first, &chain[0]), (&mut last, &chain[chain.len() - 1])] {
            let request = den_api::ExecRequest {
                argv: vec!["python3".to_owned(), "-c".to_owned(), read.clone()],
                ..den_api::ExecRequest::default()
            };
            let text = bench.client.exec(name, &request).await?.stdout;
            times.push(text.trim().parse::<f64>().map_err(|_| anyhow::anyhow!("it printed {text:?}"))?);
        }
    }
    bench.remove(chain).await?;
    first.sort_by(f64::total_cmp);
    let other = rank(&first, 0.5);
    let note =
        format!("open, read and close a file of 4 KiB at depth {DEPTH}, page cache warm; at depth 0: {other:.2} us");
    Ok(Measure::new("read_20", "us", last, note).goal("p50 ≤ 1.1x that", |m| m.p50 <= ALIKE * other))
}

impl Bench {
    /// Names of a computer with files on its disk and of the forks that come from one another, each of which has
    /// written something.
    async fn chain(&self) -> anyhow::Result<Vec<String>> {
        let mut names = vec![self.create("chain").await?.name];
        let fill = format!(
            "mkdir /root/data; i=0; while [ $i -lt {FILES} ]; do head -c 4096 /dev/zero > /root/data/$i; i=$((i+1)); done"
        );
        self.run(&names[0], &["sh", "-c", &fill]).await?;
        for depth in 1..=DEPTH {
            let fork = self.client.fork(&names[names.len() - 1], &self.forks(&format!("depth{depth}"), 1)).await?;
            let name = fork.items.into_iter().next().map(|fork| fork.name).unwrap_or_default();
            let write = format!("echo {depth} > /root/depth; echo {depth} > /root/data/{depth}");
            self.run(&name, &["sh", "-c", &write]).await?;
            names.push(name);
        }
        Ok(names)
    }
}
