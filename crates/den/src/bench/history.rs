//! States: kept, forked, gone back to, compared, merged.
//!
//! ```text
//! snapshot         a computer with data on its disk and a writer inside, so that each has something to keep
//! snapshot_10g     the same with ten times as much on it; snapshot_writer: with a busier writer
//! fork, fork_100   of one that stands still
//! restore          to the same state again and again
//! diff_1000        one tree of 200,000 files, a fork of it that changed 1,000: made once for both
//! merge_1000       the fork into it, then restored
//! ```
//!
//! Beside it: `cp -a --reflink=auto` of the same disk, where this program can read it.

use std::{path::PathBuf, process::Stdio, time::Duration, time::Instant};

use den_api::{ForkRequest, MergeRequest, RestoreRequest, SnapRequest};

use super::{
    Bench, LABEL, PACE,
    report::{Measure, millis, rank},
};

/// Files of the tree that is compared and merged: directories, and files in each.
const TREE: (u32, u32) = (200, 1000);
/// Of which so many are changed.
const CHANGED: u32 = 1000;
/// The state that all begin from.
const BEFORE: &str = "bench-before";
/// What is on the disk of which a larger one's states are taken.
const BIG_MIB: u32 = 10 << 10;
/// Writes a little all the time.
const LITTLE: &str = "while :; do date > /root/last; sleep 0.01; done";
/// Writes 2 MiB ten times a second.
const MUCH: &str = "mkdir /root/much; i=0; while :; do head -c 2097152 /dev/zero > /root/much/$((i % 64)); i=$((i+1)); sleep 0.095; done";
/// How long the history of a step may take to be written.
const SETTLE: Duration = Duration::from_secs(5);

/// The computer with the tree, and its fork that changed some of it.
#[derive(Debug)]
pub struct Tree {
    parent: String,
    fork: String,
}

/// `den snap` of a running computer in which something writes.
pub async fn snapshot(bench: &Bench) -> anyhow::Result<Measure> {
    let mib = bench.args.copy_mib;
    let (taken, note) = snapshots(bench, "snapshot", mib, LITTLE, 100).await?;
    let stood = rank(&taken.frozen, 0.5);
    Ok(Measure::new("snapshot", "ms", taken.times, note)
        .goal("p50 ≤ 8, still ≤ 5", |m| m.p50 <= 8.0 && stood <= 5.0))
}

/// The same with ten gigabytes on the disk.
pub async fn snapshot_10g(bench: &Bench) -> anyhow::Result<Measure> {
    let (taken, note) = snapshots(bench, "big", BIG_MIB, LITTLE, 100).await?;
    let stood = rank(&taken.frozen, 0.5);
    Ok(Measure::new("snapshot_10g", "ms", taken.times, note)
        .goal("p50 ≤ 8, still ≤ 5", |m| m.p50 <= 8.0 && stood <= 5.0))
}

/// How long a computer stands still in which 20 MB are written each second.
pub async fn snapshot_writer(bench: &Bench) -> anyhow::Result<Measure> {
    let (taken, note) = snapshots(bench, "writer", 64, MUCH, 40).await?;
    let call = {
        let mut times = taken.times;
        times.sort_by(f64::total_cmp);
        rank(&times, 0.5)
    };
    let note = format!("standing still while 20 MB/s are written inside; the call {call:.1} ms; {note}");
    Ok(Measure::new("snapshot_writer", "ms", taken.frozen, note).goal("p50 ≤ 40", |m| m.p50 <= 40.0))
}

/// What snapshots took.
struct Taken {
    times: Vec<f64>,
    /// How long the computer stood still, in order.
    frozen: Vec<f64>,
}

/// Takes `runs` snapshots of a computer with so much on its disk, while `writer` runs in it.
async fn snapshots(bench: &Bench, name: &str, mib: u32, writer: &str, runs: u32) -> anyhow::Result<(Taken, String)> {
    let view = bench.create(name).await?;
    let fill = format!(
        "mkdir -p /root/data; i=0; while [ $i -lt {mib} ]; do head -c 1048576 /dev/zero > /root/data/$i; i=$((i+1)); done; sync"
    );
    bench.run(&view.name, &["sh", "-c", &fill]).await?;
    bench.run(&view.name, &["sh", "-c", &format!("setsid sh -c '{writer}' > /dev/null 2>&1 &")]).await?;
    tokio::time::sleep(PACE * 10).await;
    let (mut times, mut frozen, mut torn) = (Vec::new(), Vec::new(), 0);
    for run in 0..=bench.runs(runs) {
        tokio::time::sleep(PACE).await;
        let label = format!("bench-{run}");
        let start = Instant::now();
        let snapshot = bench
            .client
            .snap(&view.name, &SnapRequest { label: Some(label.clone()), sync: false, memory: false })
            .await?;
        if run > 0 {
            times.push(millis(start));
            frozen.push(snapshot.frozen_us as f64 / 1e3);
            torn += u32::from(snapshot.torn);
        }
        bench.client.drop_snapshot(&view.name, &label).await?;
    }
    frozen.sort_by(f64::total_cmp);
    let (stood, longest) = (rank(&frozen, 0.5), rank(&frozen, 0.99));
    let mut note =
        format!("API call, {mib} MiB on the disk, a writer inside; stood still {stood:.2} ms, p99 {longest:.2} ms");
    if torn > 0 {
        note.push_str(&format!("; {torn} of {} without standing still", times.len()));
    }
    if writer == LITTLE && mib < BIG_MIB {
        note.push_str(&copied(bench, &view.id.to_string()).await?);
    }
    bench.client.remove_now(&view.name).await?;
    Ok((Taken { times, frozen }, note))
}

/// From the request to the end of `true` in the fork.
pub async fn fork(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("parent").await?;
    bench.run(&view.name, &["sh", "-c", "echo something > /root/file"]).await?;
    let mut times = Vec::new();
    for run in 0..=bench.runs(50) {
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        let forks = bench.client.fork(&view.name, &bench.forks("fork", 1)).await?;
        let fork = &forks.items[0].name;
        bench.run(fork, &["true"]).await?;
        if run > 0 {
            times.push(millis(start));
        }
        bench.client.remove_now(fork).await?;
    }
    let note = format!("fork, then `true` to its end{}", copied(bench, &view.id.to_string()).await?);
    bench.client.remove_now(&view.name).await?;
    Ok(Measure::new("fork", "ms", times, note).goal("p50 ≤ 25", |m| m.p50 <= 25.0))
}

/// A hundred forks in one request.
pub async fn fork_100(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("parent").await?;
    bench.run(&view.name, &["sh", "-c", "echo something > /root/file"]).await?;
    let (mut times, mut disk) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(3) {
        tokio::time::sleep(PACE * 20).await;
        let start = Instant::now();
        let forks = bench.client.fork(&view.name, &bench.forks("many", 100)).await?;
        times.push(millis(start));
        let names: Vec<String> = forks.items.into_iter().map(|fork| fork.name).collect();
        if disk.is_empty() {
            for name in names.iter().take(10) {
                let usage = bench.client.computer(name).await?.usage;
                disk.extend(usage.and_then(|usage| usage.disk_bytes).map(|bytes| bytes as f64 / 1024.0));
            }
        }
        bench.remove(names).await?;
    }
    bench.client.remove_now(&view.name).await?;
    disk.sort_by(f64::total_cmp);
    let each = if disk.is_empty() { "not counted here".to_owned() } else { format!("{:.0} KiB", rank(&disk, 0.5)) };
    let note = format!("one request for 100 until all run; disk each before it writes: {each}");
    Ok(Measure::new("fork_100", "ms", times, note)
        .goal("p50 ≤ 2000, < 200 KiB each", |m| m.p50 <= 2000.0 && disk.iter().all(|kib| *kib < 200.0)))
}

/// Back to a state, of a running computer, until it runs again.
pub async fn restore(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("restore").await?;
    bench.run(&view.name, &["sh", "-c", "echo before > /root/file"]).await?;
    bench.client.snap(&view.name, &SnapRequest { label: Some(BEFORE.to_owned()), sync: false, memory: false }).await?;
    let request = RestoreRequest { state: BEFORE.to_owned() };
    let mut times = Vec::new();
    for run in 0..=bench.runs(50) {
        bench.run(&view.name, &["sh", "-c", "echo after > /root/file; echo more > /root/more"]).await?;
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        bench.client.restore(&view.name, &request).await?;
        if run > 0 {
            times.push(millis(start));
        }
        bench.run(&view.name, &["sh", "-c", "test \"$(cat /root/file)\" = before && ! test -e /root/more"]).await?;
    }
    bench.client.remove_now(&view.name).await?;
    Ok(Measure::new("restore", "ms", times, "API call, running before and after").goal("p50 ≤ 30", |m| m.p50 <= 30.0))
}

/// A fork against what it was forked from.
pub async fn diff_1000(bench: &Bench) -> anyhow::Result<Measure> {
    let tree = tree(bench).await?;
    let (a, mut times) = (format!("{}@0", tree.fork), Vec::new());
    for run in 0..=bench.runs(20) {
        let start = Instant::now();
        let diff = bench.client.diff(&a, Some(&tree.fork), &["/srv/tree".to_owned()], false, None).await?;
        if run > 0 {
            times.push(millis(start));
        }
        anyhow::ensure!(diff.count.changed == u64::from(CHANGED), "the difference has {:?}", diff.count);
    }
    let note = format!("{CHANGED} changed files among {}, page cache warm", TREE.0 * TREE.1);
    Ok(Measure::new("diff_1000", "ms", times, note).goal("p50 ≤ 300", |m| m.p50 <= 300.0))
}

/// A fork into its parent, which is restored after each.
pub async fn merge_1000(bench: &Bench) -> anyhow::Result<Measure> {
    let tree = tree(bench).await?;
    let request = MergeRequest { from: tree.fork.clone(), ..MergeRequest::default() };
    let mut times = Vec::new();
    for run in 0..=bench.runs(5) {
        tokio::time::sleep(PACE * 4).await;
        let start = Instant::now();
        let merge = bench.client.merge(&tree.parent, &request).await?;
        if run > 0 {
            times.push(millis(start));
        }
        anyhow::ensure!(merge.conflicts.is_empty(), "the merge met {} conflicts", merge.conflicts.len());
        anyhow::ensure!(merge.count.changed == u64::from(CHANGED), "the merge brought {:?}", merge.count);
        bench.client.restore(&tree.parent, &RestoreRequest { state: BEFORE.to_owned() }).await?;
    }
    let note =
        format!("{CHANGED} changed files into a running parent of {}, snapshot and step included", TREE.0 * TREE.1);
    Ok(Measure::new("merge_1000", "ms", times, note).goal("p50 ≤ 1000", |m| m.p50 <= 1000.0))
}

/// The tree and its fork; made by the first who asks, removed with all of the run.
async fn tree(bench: &Bench) -> anyhow::Result<&Tree> {
    bench
        .tree
        .get_or_try_init(|| async {
            let parent = bench.create("tree").await?.name;
            let (directories, files) = TREE;
            let make = format!(
                "import os\nfor d in range({directories}):\n p = f'/srv/tree/{{d}}'\n os.makedirs(p)\n for f in range({files}):\n  open(f'{{p}}/{{f}}', 'w').write(f'{{d}} {{f}}\\n')\n"
            );
            bench.run(&parent, &["python3", "-c", &make]).await?;
            bench.client.snap(&parent, &SnapRequest { label: Some(BEFORE.to_owned()), sync: false, memory: false }).await?;
            let mut request = bench.forks("treefork", 1);
            request.state = Some(BEFORE.to_owned());
            let fork = bench.client.fork(&parent, &request).await?.items.remove(0).name;
            let change = format!(
                "for n in range({CHANGED}):\n open(f'/srv/tree/{{n % {directories}}}/{{n // {directories} * 7}}', 'a').write('changed\\n')\n"
            );
            bench.run(&fork, &["python3", "-c", &change]).await?;
            tokio::time::sleep(SETTLE).await;
            Ok(Tree { parent, fork })
        })
        .await
}

/// `; cp -a …: 12.3 ms`: the same disk copied by hand, where this program may and can.
async fn copied(bench: &Bench, id: &str) -> anyhow::Result<String> {
    if !bench.client.is_local() || !rustix::process::geteuid().is_root() {
        return Ok(String::new());
    }
    let folder = PathBuf::from(bench.client.version().await?.data).join("computers").join(id);
    let (from, to) = (folder.join("live"), folder.join(".bench-copy"));
    if !from.is_dir() {
        return Ok(String::new());
    }
    let mut times = Vec::new();
    for _ in 0..bench.runs(5) {
        let start = Instant::now();
        let status = std::process::Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .args([&from, &to])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        let time = millis(start);
        fs_err::remove_dir_all(&to)?;
        // Files that come and go while it copies are its trouble, not ours.
        if status.code().is_some() {
            times.push(time);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(format!("; `cp -a --reflink=auto` of the same disk: {:.1} ms, not at one moment", rank(&times, 0.5)))
}

impl Bench {
    /// Forks that this run removes.
    pub(super) fn forks(&self, name: &str, count: u32) -> ForkRequest {
        ForkRequest {
            name: Some(format!("bench-{name}-{}", std::process::id())),
            count: Some(count),
            labels: [(LABEL.to_owned(), self.label.clone())].into(),
            ..ForkRequest::default()
        }
    }
}
