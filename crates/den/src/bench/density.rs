//! A thousand idle computers, in a house of their own: one that may be killed and started again.
//!
//! ```text
//! den serve (this program) ─► creates alone ─► 1,000 computers ─► creates beside them · ls · memory · start
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use den_api::{Client, ClientError, CreateComputer, client::ComputerFilter};
use futures_util::{StreamExt as _, stream};
use tempfile::TempDir;

use super::{
    Bench, CROWD_PARALLEL, PACE,
    report::{Measure, millis, rank},
};

/// How many there are.
const CROWD: u32 = 1000;
/// How long a daemon may take until it answers.
const START_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether it does.
const START_LOOK: Duration = Duration::from_millis(2);
/// How long what was made settles before it is measured.
const SETTLE: Duration = Duration::from_secs(3);

/// From the request to the answer beside a thousand others, over that without them.
pub async fn create(bench: &Bench) -> anyhow::Result<Measure> {
    let house = bench.house().await?.lock().await;
    let (alone, beside) = (house.alone, house.creates(bench).await?);
    let note = format!("create p50 {beside:.2} ms beside {CROWD} idle ones, {alone:.2} ms without");
    Ok(Measure::new("idle_1000_create", "x", vec![beside / alone], note).goal("≤ 1.5", |m| m.p50 <= 1.5))
}

/// The whole `den ls`, from its start to its end.
pub async fn ls(bench: &Bench) -> anyhow::Result<Measure> {
    let house = bench.house().await?.lock().await;
    let mut times = Vec::new();
    for run in 0..=bench.runs(50) {
        let start = Instant::now();
        let output = den(&house.folder, &["ls"])?.output().context("cannot start den")?;
        if run > 0 {
            times.push(millis(start));
        }
        let lines = output.stdout.iter().filter(|&&byte| byte == b'\n').count();
        anyhow::ensure!(output.status.success() && lines >= CROWD as usize, "`den ls` showed {lines} lines");
    }
    Ok(Measure::new("ls_1000", "ms", times, "`den ls` with 1,000 computers, the whole process")
        .goal("p50 ≤ 50", |m| m.p50 <= 50.0))
}

/// What the daemon holds of memory.
pub async fn memory(bench: &Bench) -> anyhow::Result<Measure> {
    let house = bench.house().await?.lock().await;
    let status = fs::read_to_string(format!("/proc/{}/status", house.serve.id()))?;
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kib: f64 = resident.context("the daemon has ended")?;
    Ok(Measure::new("serve_memory_1000", "MiB", vec![kib / 1024.0], "resident, `den serve` with 1,000 computers")
        .goal("≤ 150", |m| m.p50 <= 150.0))
}

/// From the start of the daemon, the one before killed, until it answers.
pub async fn start(bench: &Bench) -> anyhow::Result<Measure> {
    let mut house = bench.house().await?.lock().await;
    let mut times = Vec::new();
    for _ in 0..bench.runs(5) {
        times.push(house.kill_and_start().await?);
        let filter = ComputerFilter { state: Some("running".to_owned()), ..ComputerFilter::default() };
        let running = house.client.all_computers(&filter).await?.len();
        anyhow::ensure!(running == CROWD as usize, "{running} of {CROWD} computers run");
    }
    Ok(Measure::new("start_1000", "ms", times, "`den serve` killed, then from its start to its first answer")
        .goal("p50 ≤ 2000", |m| m.p50 <= 2000.0))
}

/// A daemon with a thousand idle computers. Dropped, it ends with all of them.
pub struct House {
    folder: TempDir,
    images: PathBuf,
    serve: Child,
    client: Client,
    /// Median of a create before the others were there, in milliseconds.
    alone: f64,
}

impl House {
    /// Starts one and fills it.
    pub async fn fill(bench: &Bench) -> anyhow::Result<Self> {
        anyhow::ensure!(rustix::process::geteuid().is_root(), "a daemon of its own is started for this, by root");
        let images = match &bench.args.images {
            Some(images) => images.clone(),
            None => Path::new(&bench.client.version().await?.data).join("images"),
        };
        let folder = tempfile::Builder::new().prefix("den-bench-").tempdir()?;
        let serve = serve(&folder, &images)?;
        let client = bench.client.clone();
        // From here on whatever fails ends it.
        let mut house = Self { folder, images, serve, client, alone: f64::NAN };
        house.client = answering(&house.folder).await?;
        house.alone = house.creates(bench).await?;
        let made: Vec<_> = stream::iter(0..CROWD)
            .map(|number| house.make(bench, format!("idle{number}")))
            .buffer_unordered(CROWD_PARALLEL)
            .collect()
            .await;
        made.into_iter().collect::<Result<(), _>>()?;
        tokio::time::sleep(SETTLE).await;
        Ok(house)
    }

    async fn make(&self, bench: &Bench, name: String) -> Result<(), ClientError> {
        let spec = CreateComputer { name: Some(name), ..bench.spec("") };
        self.client.create(&spec, None).await.map(drop)
    }

    /// The median of some creates, in milliseconds.
    async fn creates(&self, bench: &Bench) -> anyhow::Result<f64> {
        let mut times = Vec::new();
        // The first one brings the image into the page cache and is not counted.
        for run in 0..=bench.runs(60) {
            tokio::time::sleep(PACE).await;
            let start = Instant::now();
            self.make(bench, "one".to_owned()).await?;
            if run > 0 {
                times.push(millis(start));
            }
            self.client.remove_now("one").await?;
        }
        times.sort_by(f64::total_cmp);
        Ok(rank(&times, 0.5))
    }

    async fn kill_and_start(&mut self) -> anyhow::Result<f64> {
        self.serve.kill()?;
        self.serve.wait()?;
        let start = Instant::now();
        self.serve = serve(&self.folder, &self.images)?;
        self.client = answering(&self.folder).await?;
        Ok(millis(start))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let ended = den(&self.folder, &["shutdown"]).and_then(|mut den| Ok(den.stdout(Stdio::null()).status()?));
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("the daemon of {} may still run", self.folder.path().display());
            let _ = self.serve.kill();
        }
        let _ = self.serve.wait();
    }
}

/// This program, for the daemon of `folder`.
fn den(folder: &TempDir, words: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words).env("DEN_DATA", folder.path().join("data")).env_remove("DEN_URL").env_remove("DEN_TOKEN");
    command.stdin(Stdio::null());
    Ok(command)
}

fn serve(folder: &TempDir, images: &Path) -> anyhow::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.path().join("log"))?;
    let mut command = den(folder, &["serve", "--listen", "127.0.0.1:0", "--images"])?;
    command.arg(images).arg("--run").arg(folder.path().join("run"));
    command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start `den serve`")
}

/// Waits until the daemon answers.
async fn answering(folder: &TempDir) -> anyhow::Result<Client> {
    let begun = Instant::now();
    loop {
        // The address of the one before, until this one has written its own.
        if let Ok(client) = Client::find(None, None, Some(&folder.path().join("data")))
            && client.version().await.is_ok()
        {
            return Ok(client);
        }
        if begun.elapsed() > START_MAX {
            let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            anyhow::bail!("`den serve` does not answer:\n{log}");
        }
        tokio::time::sleep(START_LOOK).await;
    }
}
