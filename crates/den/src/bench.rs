//! `den bench`: how fast this daemon is on this machine, beside a rival in the same run.
//!
//! ```text
//! names ─► Bench ── measures: create · exec · copy · network · history · memory ─► Report ─► table or JSON
//!             └── rival: podman or docker, the same root, the same machine
//! ```
//!
//! Invariants:
//! - Every computer it makes carries a label of this run, and is removed at the end, also when the
//!   run fails or is interrupted.
//! - A figure that misses its goal is printed like any other, and said to miss.
//!
//! Deliberately absent: anything but the public API, the `den` program itself and, for the network,
//! a place on the outside to talk to. What it measures is what a user gets.

mod chain;
mod create;
mod density;
mod exec;
mod flow;
mod history;
mod life;
mod machine;
mod memory;
mod neighbour;
mod net;
mod report;
mod rival;
mod settle;
mod upstream;

use std::{io::IsTerminal as _, path::PathBuf, time::Duration};

use clap::builder::PossibleValuesParser;
use den_api::{Client, ClientError, ComputerView, CreateComputer, ExecRequest, client::ComputerFilter};
use futures_util::{StreamExt as _, stream};
use tokio::sync::{Mutex, OnceCell};

use self::report::{Measure, Report};
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// What is measured, in the order of the table.
const NAMES: [&str; 55] = [
    "create",
    "create_exec",
    "remove",
    "exec",
    "exec_cli",
    "create_100",
    "idle_memory_mib",
    "cp_in_mb_s",
    "cp_out_mb_s",
    "output_mb_s",
    "net_download_gbit",
    "net_connects_s",
    "net_latency_ms",
    "create_300_ratio",
    "net_300_ratio",
    "snapshot",
    "snapshot_writer",
    "step_unchanged",
    "step_changed",
    "fork",
    "fork_20",
    "read_20",
    "fork_100",
    "restore",
    "diff_1000",
    "merge_1000",
    "pause",
    "resume",
    "unplug",
    "neighbour_spin",
    "neighbour_forks",
    "neighbour_zombies",
    "neighbour_traces",
    "neighbour_timers",
    "neighbour_memory",
    "neighbour_disk",
    "neighbour_files",
    "neighbour_flushes",
    "neighbour_output",
    "neighbour_descriptors",
    "neighbour_watches",
    "neighbour_sockets",
    "neighbour_mounts",
    "neighbour_namespaces",
    "neighbour_links",
    "neighbour_packets",
    "neighbour_cgroups",
    "neighbour_keys",
    "neighbour_probes",
    "snapshot_10g",
    "idle_1000",
    "idle_1000_create",
    "ls_1000",
    "serve_memory_1000",
    "start_1000",
];

/// Measured only where the storage keeps states by itself.
const HISTORY: [&str; 11] = [
    "snapshot",
    "snapshot_writer",
    "step_unchanged",
    "step_changed",
    "fork",
    "fork_20",
    "read_20",
    "fork_100",
    "restore",
    "diff_1000",
    "merge_1000",
];

/// Measured only when asked for: a minute and some gigabytes.
const ON_DEMAND: [&str; 6] =
    ["snapshot_10g", "idle_1000", "idle_1000_create", "ls_1000", "serve_memory_1000", "start_1000"];

/// The label that a run's computers carry.
const LABEL: &str = "den.bench";

/// Between two creates that are measured one by one, so that the pool is as a user finds it.
const PACE: Duration = Duration::from_millis(50);

/// Creates and removes that are under way at the same time when many are made.
const CROWD_PARALLEL: usize = 100;

/// `den bench`
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: den bench create exec --rival podman")]
pub struct BenchArgs {
    /// What to measure [default: all but snapshot_10g and *_1000*; net_* as root; history on btrfs]
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(NAMES.into_iter().chain([neighbour::ROWS])))]
    names: Vec<String>,
    /// What to measure beside it, with the same root and on the same machine
    #[arg(long, value_enum, default_value = "none")]
    rival: rival::Kind,
    /// Runs of each measure, where the default would be more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,
    /// The image to measure with
    #[arg(long, value_name = "IMAGE", default_value = "base")]
    image: String,
    /// MiB that each copy moves
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    copy_mib: u32,
    /// Images of the daemon that is started for *_1000 [default: images in the data folder]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
}

/// Measures the daemon that the flags name.
pub fn run(global: &Global, args: BenchArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Trouble::io("cannot start the runtime", &error))?;
    runtime.block_on(measure(global, args))
}

async fn measure(global: &Global, args: BenchArgs) -> Outcome {
    let client = global.client()?;
    let mut bench = Bench {
        label: format!("{}-{}", std::process::id(), show::now_micros()),
        machine: machine::Machine::look(&client.version().await?.storage),
        url: client.url().to_owned(),
        global: global.clone(),
        client,
        args,
        tree: OnceCell::new(),
        house: OnceCell::new(),
    };
    let outcome = tokio::select! {
        report = bench.all() => report.map(Some),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    drop(bench.house.take());
    let cleaned = bench.remove_all().await;
    let Some(report) = outcome? else { return Err(Trouble::quiet(130)) };
    cleaned?;
    if global.json {
        show::json(&report)?;
    } else {
        report.print()?;
    }
    Ok(0)
}

/// One run.
struct Bench {
    client: Client,
    url: String,
    global: Global,
    args: BenchArgs,
    label: String,
    machine: machine::Machine,
    /// What is compared and merged, once it is made.
    tree: OnceCell<history::Tree>,
    /// A daemon of its own with a thousand computers, once it is there.
    house: OnceCell<Mutex<density::House>>,
}

impl Bench {
    async fn all(&self) -> anyhow::Result<Report> {
        let mut report = Report::new(self.machine.clone());
        let mut rival = match self.args.rival {
            rival::Kind::None => None,
            kind => {
                self.say("preparing the rival");
                let root = self.create("root").await?;
                let rival = rival::Rival::prepare(kind, self, &root.name).await?;
                tokio::time::sleep(PACE).await;
                self.client.remove_now(&root.name).await?;
                report.rival_note = Some(rival.note.clone());
                Some(rival)
            }
        };
        for name in NAMES {
            if !self.wanted(name) {
                continue;
            }
            self.say(name);
            settle::settle().await;
            let mut measure = self.one(name).await?;
            if let Some(rival) = &mut rival {
                measure.rival = rival.measure(name, self).await?;
            }
            // Programs were waited for on this thread: the runtime has yet to see which of the kept
            // connections the daemon closed meanwhile.
            tokio::time::sleep(PACE).await;
            report.results.push(measure);
        }
        if let Some(rival) = rival {
            rival.close();
        }
        Ok(report)
    }

    async fn one(&self, name: &'static str) -> anyhow::Result<Measure> {
        match name {
            "create" => create::create(self).await,
            "create_exec" => create::create_exec(self).await,
            "remove" => create::remove(self).await,
            "create_100" => create::create_100(self).await,
            "create_300_ratio" => create::create_300_ratio(self).await,
            "exec" => exec::exec(self).await,
            "exec_cli" => exec::exec_cli(self).await,
            "idle_memory_mib" => memory::idle(self, 100).await,
            "idle_1000" => memory::idle(self, 1000).await,
            "cp_in_mb_s" => flow::copy_in(self).await,
            "cp_out_mb_s" => flow::copy_out(self).await,
            "output_mb_s" => flow::output(self).await,
            "net_download_gbit" => net::download(self).await,
            "net_connects_s" => net::connects(self).await,
            "net_latency_ms" => net::latency(self).await,
            "net_300_ratio" => net::beside_300(self).await,
            "snapshot" => history::snapshot(self).await,
            "snapshot_writer" => history::snapshot_writer(self).await,
            "snapshot_10g" => history::snapshot_10g(self).await,
            "step_unchanged" => chain::step_unchanged(self).await,
            "step_changed" => chain::step_changed(self).await,
            "fork_20" => chain::fork_20(self).await,
            "read_20" => chain::read_20(self).await,
            "fork" => history::fork(self).await,
            "fork_100" => history::fork_100(self).await,
            "restore" => history::restore(self).await,
            "diff_1000" => history::diff_1000(self).await,
            "merge_1000" => history::merge_1000(self).await,
            "pause" => life::pause(self).await,
            "resume" => life::resume(self).await,
            "unplug" => life::unplug(self).await,
            name if name.starts_with(neighbour::ROWS) => neighbour::beside(self, name).await,
            "idle_1000_create" => density::create(self).await,
            "ls_1000" => density::ls(self).await,
            "serve_memory_1000" => density::memory(self).await,
            "start_1000" => density::start(self).await,
            _ => unreachable!("clap takes names of NAMES only"),
        }
    }

    /// The daemon with a thousand computers.
    async fn house(&self) -> anyhow::Result<&Mutex<density::House>> {
        self.house.get_or_try_init(async || Ok(Mutex::new(density::House::fill(self).await?))).await
    }

    fn wanted(&self, name: &str) -> bool {
        match self.args.names.is_empty() {
            // The network is measured from a namespace that only root can make.
            true if HISTORY.contains(&name) => self.machine.storage == "btrfs",
            true => !ON_DEMAND.contains(&name) && (!name.starts_with("net_") || rustix::process::geteuid().is_root()),
            false => self
                .args
                .names
                .iter()
                .any(|wanted| wanted == name || wanted == neighbour::ROWS && name.starts_with(neighbour::ROWS)),
        }
    }

    /// Says on a terminal what is being done.
    fn say(&self, what: &str) {
        if std::io::stderr().is_terminal() {
            eprintln!("{what} …");
        }
    }

    /// How often a measure is taken: `usual`, or fewer where the user said so.
    fn runs(&self, usual: u32) -> u32 {
        self.args.runs.map_or(usual, |runs| runs.min(usual))
    }

    /// What a computer of this run is asked for as.
    fn spec(&self, name: &str) -> CreateComputer {
        CreateComputer {
            name: Some(format!("bench-{name}-{}", std::process::id())),
            image: Some(self.args.image.clone()),
            labels: [(LABEL.to_owned(), self.label.clone())].into(),
            ..CreateComputer::default()
        }
    }

    async fn create(&self, name: &str) -> Result<ComputerView, ClientError> {
        self.client.create(&self.spec(name), None).await
    }

    /// Runs a short command that must succeed.
    async fn run(&self, name: &str, argv: &[&str]) -> anyhow::Result<()> {
        let request =
            ExecRequest { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() };
        let result = self.client.exec(name, &request).await?;
        let code = result.step.end.as_ref().map(|end| end.exit_code);
        anyhow::ensure!(code == Some(0), "`{}` in `{name}` ended with {code:?}: {}", argv.join(" "), result.stderr);
        Ok(())
    }

    /// Makes `count` computers at once; their names.
    async fn crowd(&self, count: u32) -> Result<Vec<String>, ClientError> {
        let made: Vec<_> = stream::iter(0..count)
            .map(|number| async move { self.create(&format!("crowd{number}")).await })
            .buffer_unordered(CROWD_PARALLEL)
            .collect()
            .await;
        made.into_iter().map(|view| view.map(|view| view.name)).collect()
    }

    /// Removes computers, many at once.
    async fn remove(&self, names: Vec<String>) -> Result<(), ClientError> {
        let done: Vec<_> = stream::iter(names)
            .map(|name| async move { self.client.remove_now(&name).await })
            .buffer_unordered(CROWD_PARALLEL)
            .collect()
            .await;
        done.into_iter().collect()
    }

    /// Removes all that this run made.
    async fn remove_all(&self) -> Result<(), ClientError> {
        let filter = ComputerFilter { labels: vec![format!("{LABEL}={}", self.label)], ..ComputerFilter::default() };
        let left = self.client.all_computers(&filter).await?;
        self.remove(left.into_iter().map(|view| view.name).collect()).await
    }

    /// The `den` program itself, talking to the same daemon.
    fn den(&self, words: &[&str]) -> anyhow::Result<std::process::Command> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(words);
        match (&self.global.data, &self.global.url) {
            (_, Some(_)) => command.env("DEN_URL", &self.url),
            (Some(data), None) => command.env("DEN_DATA", data).env_remove("DEN_URL"),
            (None, None) => command.env_remove("DEN_DATA").env_remove("DEN_URL"),
        };
        Ok(command)
    }
}
