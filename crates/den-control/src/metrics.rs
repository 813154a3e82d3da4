//! What is measured, and how it is shown to Prometheus.
//!
//! ```text
//! requests, steps ──count──► Metrics (atomics)  ─┐
//! store, events, launcher: counts of their own  ─┼─► text, when somebody asks
//! computers, gate, disk, /proc: looked at then  ─┘
//! ```
//!
//! Invariants:
//! - Counting is an addition or two; nothing is looked at unless somebody asks.
//! - Labels are words of this program: no more of them however many computers there are. Samples of
//!   single computers come only where the operator said so.

mod text;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use den_api::{PoolView, UsageList};
use den_gate::wire::Statuses;
use den_model::{
    Micros, State, StepEnd, StepKind,
    meter::{Histogram, RUNS, TIMES},
};

use self::text::{Kind, Text, Unit};
use crate::{
    Error,
    control::{Control, Inner, blocking},
    errors::chain,
    usage,
};

/// What a request asks for, where it is worth a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Fork,
    Start,
    Stop,
    Remove,
    Restore,
    Merge,
    /// From the request until the agent has the command.
    Exec,
}

impl Operation {
    const ALL: [Self; 8] =
        [Self::Create, Self::Fork, Self::Start, Self::Stop, Self::Remove, Self::Restore, Self::Merge, Self::Exec];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Fork => "fork",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::Restore => "restore",
            Self::Merge => "merge",
            Self::Exec => "exec",
        }
    }
}

/// `USER_HZ`: what /proc counts CPU time in, on every Linux that Den runs on.
const TICKS: f64 = 100.0;
/// How a step ended, as a label.
const RESULTS: [&str; 6] = ["ok", "failed", "signaled", "timed_out", "not_started", "lost"];
/// The first HTTP status, and one beyond the last.
const STATUSES: std::ops::Range<u16> = 100..600;

/// What is counted as it happens.
pub(crate) struct Metrics {
    /// In the order of [`Operation::ALL`].
    took: Vec<Histogram>,
    /// In the order of [`StepKind::ALL`].
    steps_started: Vec<AtomicU64>,
    /// In the order of [`RESULTS`].
    steps_ended: [AtomicU64; RESULTS.len()],
    step_time: Histogram,
    output_bytes: AtomicU64,
    states_kept: AtomicU64,
    states_dropped: AtomicU64,
    statuses: Vec<AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            took: Operation::ALL.map(|_| Histogram::new(TIMES)).into(),
            steps_started: zeros(StepKind::ALL.len()),
            steps_ended: Default::default(),
            step_time: Histogram::new(RUNS),
            output_bytes: AtomicU64::new(0),
            states_kept: AtomicU64::new(0),
            states_dropped: AtomicU64::new(0),
            statuses: zeros(STATUSES.len()),
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Metrics {
    /// A request was done that began then.
    pub(crate) fn took(&self, operation: Operation, began: Instant) {
        if let Some(histogram) = self.took.get(operation as usize) {
            histogram.add_time(began.elapsed());
        }
    }

    /// A step begins.
    pub(crate) fn step_started(&self, kind: StepKind) {
        if let Some(counter) = StepKind::ALL.iter().position(|other| *other == kind) {
            add(&self.steps_started[counter], 1);
        }
    }

    /// A step has ended.
    pub(crate) fn step_ended(&self, end: &StepEnd, started_at: Micros, ended_at: Micros, output_bytes: u64) {
        let result = match end {
            StepEnd::Exited { code: 0 } => 0,
            StepEnd::Exited { .. } => 1,
            StepEnd::Signaled { .. } => 2,
            StepEnd::TimedOut => 3,
            StepEnd::NotStarted { .. } => 4,
            StepEnd::Lost => 5,
        };
        add(&self.steps_ended[result], 1);
        add(&self.output_bytes, output_bytes);
        self.step_time.add(ended_at.saturating_sub(started_at).try_into().unwrap_or(0));
    }

    /// A state was kept.
    pub(crate) fn state_kept(&self) {
        add(&self.states_kept, 1);
    }

    /// States were let go.
    pub(crate) fn states_dropped(&self, count: usize) {
        add(&self.states_dropped, count as u64);
    }

    fn answered(&self, status: u16) {
        let index = status.checked_sub(STATUSES.start).map(usize::from);
        if let Some(counter) = index.and_then(|index| self.statuses.get(index)) {
            add(counter, 1);
        }
    }
}

impl Control {
    /// Counts an answer over HTTP.
    pub fn answered(&self, status: u16) {
        self.0.metrics.answered(status);
    }

    /// All metrics in the text format of Prometheus, 0.0.4; with `per_computer` some of each computer too.
    ///
    /// Errors: `internal`.
    pub async fn metrics(&self, per_computer: bool) -> Result<String, Error> {
        let inner = Arc::clone(&self.0);
        let husks = async {
            match self.0.open_for_work() {
                Ok(()) => self.0.machines.husks().await.map_err(|error| chain(&error)).ok(),
                Err(_) => None,
            }
        };
        let (links, husks, looked) =
            tokio::join!(self.0.gate.statuses(), husks, blocking(move || (usage::look(&inner), processes(&inner))));
        let (mut list, processes) = looked?;
        if let Some(links) = &links {
            usage::with_links(&mut list.items, links);
        }
        let mut text = Text::default();
        self.0.metrics.write(&mut text);
        computers(&mut text, &self.0, &list);
        pools(&mut text, &self.pools().items);
        gate(&mut text, &self.0, links.as_ref());
        store(&mut text, &self.0);
        host(&mut text, &self.0, &list);
        launcher(&mut text, &self.0, husks);
        backups(&mut text, &self.0);
        events(&mut text, &self.0);
        processes.write(&mut text);
        if per_computer {
            each(&mut text, &list);
        }
        Ok(text.into_string())
    }
}

impl Metrics {
    fn write(&self, text: &mut Text) {
        let name = "den_operation_seconds";
        text.family(name, Kind::Histogram, "How long requests took that were done; exec: until the command runs.");
        for (operation, took) in Operation::ALL.iter().zip(&self.took) {
            text.histogram(name, Some(("operation", operation.as_str())), Unit::Time, &took.read());
        }
        let name = "den_steps_started_total";
        text.family(name, Kind::Counter, "Steps that were begun, by kind.");
        for (kind, count) in StepKind::ALL.iter().zip(&self.steps_started) {
            text.sample(name, &[("kind", kind.as_str())], read(count));
        }
        let name = "den_steps_ended_total";
        text.family(name, Kind::Counter, "Steps that have ended, by how.");
        for (result, count) in RESULTS.iter().zip(&self.steps_ended) {
            text.sample(name, &[("result", result)], read(count));
        }
        let name = "den_step_seconds";
        text.family(name, Kind::Histogram, "How long steps ran.");
        text.histogram(name, None, Unit::Time, &self.step_time.read());
        let bytes = read(&self.output_bytes);
        text.one("den_output_bytes_total", Kind::Counter, "Bytes that steps wrote, counted at their end.", bytes);
        text.one("den_states_kept_total", Kind::Counter, "States that were kept.", read(&self.states_kept));
        text.one("den_states_dropped_total", Kind::Counter, "States that were let go.", read(&self.states_dropped));
        let name = "den_http_answers_total";
        text.family(name, Kind::Counter, "Answers over HTTP, by status.");
        for (status, count) in STATUSES.zip(&self.statuses).filter(|(_, count)| read(count) > 0) {
            text.sample(name, &[("status", &status.to_string())], read(count));
        }
    }
}

fn computers(text: &mut Text, inner: &Inner, list: &UsageList) {
    let name = "den_computers";
    text.family(name, Kind::Gauge, "Computers, by state.");
    let handles = inner.registry.all();
    for state in State::ALL {
        let count = handles.iter().filter(|handle| handle.state() == state).count();
        text.sample(name, &[("state", state.as_str())], count);
    }
    let sum = |of: fn(&den_api::ComputerUsage) -> u64| list.items.iter().map(of).sum::<u64>();
    text.one("den_steps_running", Kind::Gauge, "Steps that run.", sum(|item| item.steps_running));
    text.one("den_computers_memory_bytes", Kind::Gauge, "Memory of all computers.", sum(|item| item.memory_bytes));
    text.one(
        "den_computers_pids",
        Kind::Gauge,
        "Processes and threads of all computers.",
        sum(|item| item.pids.into()),
    );
    let disk = sum(|item| item.disk_bytes.unwrap_or(0));
    text.one("den_computers_disk_bytes", Kind::Gauge, "Disks of all computers, with their states.", disk);
    let kept: usize = handles.iter().map(|handle| handle.history.count_kept()).sum();
    text.one("den_states", Kind::Gauge, "States that are kept.", kept);
}

/// What each pool has, and what is taken of it; no sample where there is no limit.
fn pools(text: &mut Text, pools: &[PoolView]) {
    type Of = fn(&PoolView) -> Option<f64>;
    let families: [(&str, &str, Of); 8] = [
        ("den_pool_computers", "Computers of a pool, those in the trash left out.", |it| {
            Some(it.used.computers as f64)
        }),
        ("den_pool_computers_limit", "How many they may be.", |it| it.computers.map(|most| most as f64)),
        ("den_pool_cpus", "CPUs that those of a pool that run may use, each by itself.", |it| Some(it.used.cpus)),
        ("den_pool_cpus_limit", "CPUs that they share.", |it| it.cpus.map(|most| f64::from(most.0) / 1000.0)),
        ("den_pool_memory_bytes", "Memory limits of those of a pool that run.", |it| Some(it.used.memory as f64)),
        ("den_pool_memory_limit_bytes", "What these may be together.", |it| it.memory.map(|most| most.0 as f64)),
        ("den_pool_disk_bytes", "Disk limits of those of a pool, of the trash too.", |it| Some(it.used.disk as f64)),
        ("den_pool_disk_limit_bytes", "What these may be together.", |it| it.disk.map(|most| most.0 as f64)),
    ];
    for (name, help, of) in families {
        text.family(name, Kind::Gauge, help);
        for pool in pools {
            if let Some(value) = of(pool) {
                text.sample(name, &[("pool", &pool.name)], value);
            }
        }
    }
}

fn gate(text: &mut Text, inner: &Inner, links: Option<&Statuses>) {
    let up = u8::from(inner.gate.state().0 == "up");
    text.one("den_gate_up", Kind::Gauge, "Whether the gate answers.", up);
    let Some(Statuses { all, links, .. }) = links else { return };
    text.one("den_gate_links", Kind::Gauge, "Computers that the gate carries.", links.len());
    text.one("den_gate_flows_open", Kind::Gauge, "Flows that are open.", all.flows);
    let name = "den_gate_flows_total";
    text.family(name, Kind::Counter, "Flows and queries that were decided, by verdict, since the gate began.");
    text.sample(name, &[("verdict", "allow")], all.allowed);
    text.sample(name, &[("verdict", "deny")], all.denied);
    text.one("den_gate_limits_total", Kind::Counter, "Times a limit of a network was reached.", all.limited);
    let name = "den_gate_bytes_total";
    text.family(name, Kind::Counter, "Bytes of allowed flows, since the gate began.");
    text.sample(name, &[("direction", "up")], all.up_bytes);
    text.sample(name, &[("direction", "down")], all.down_bytes);
}

fn store(text: &mut Text, inner: &Inner) {
    let meters = inner.store.meters();
    let mut histogram = |name, help, unit, held: &Histogram| {
        text.family(name, Kind::Histogram, help);
        text.histogram(name, None, unit, &held.read());
    };
    histogram("den_store_batch_size", "Writes in one transaction.", Unit::Count, &meters.batch);
    histogram("den_store_commit_seconds", "How long transactions took.", Unit::Time, &meters.commit);
    histogram("den_store_sync_seconds", "How long the disk took to confirm writes.", Unit::Time, &meters.sync);
    text.one("den_store_waiting", Kind::Gauge, "Writes that wait.", inner.store.waiting());
}

fn host(text: &mut Text, inner: &Inner, list: &UsageList) {
    let places = [("data", inner.data.clone()), ("computers", inner.data.join("computers"))];
    let found: Vec<_> = places.iter().filter_map(|(name, path)| Some((*name, usage::room(path).ok()?))).collect();
    let name = "den_disk_total_bytes";
    text.family(name, Kind::Gauge, "Size of the filesystem of the data folder, and of the computers' disks in it.");
    for (place, (total, _)) in &found {
        text.sample(name, &[("place", place)], total);
    }
    let name = "den_disk_free_bytes";
    text.family(name, Kind::Gauge, "What is free there.");
    for (place, (_, free)) in &found {
        text.sample(name, &[("place", place)], free);
    }
    let available = list.host.memory_available;
    text.one("den_host_memory_available_bytes", Kind::Gauge, "Memory of the host that may be taken.", available);
}

fn launcher(text: &mut Text, inner: &Inner, husks: Option<u32>) {
    text.one("den_launcher_up", Kind::Gauge, "Whether the launcher answers.", u8::from(husks.is_some()));
    if let Some(husks) = husks {
        text.one("den_husks_ready", Kind::Gauge, "Husks that wait for a computer.", husks);
    }
    let (pooled, cold) = inner.machines.boots();
    let name = "den_boots_total";
    text.family(name, Kind::Counter, "Computers that were booted: into a husk that waited, or one made for it.");
    text.sample(name, &[("husk", "ready")], pooled);
    text.sample(name, &[("husk", "missed")], cold);
}

fn backups(text: &mut Text, inner: &Inner) {
    let backups = &inner.backups;
    let good = backups.last_good.load(Ordering::Relaxed);
    if good > 0 {
        let name = "den_backup_last_good_timestamp_seconds";
        text.one(name, Kind::Gauge, "When the last backup that was made was begun.", good as f64 / 1e6);
        let name = "den_backup_last_good_age_seconds";
        let age = (crate::control::now() - good).max(0);
        text.one(name, Kind::Gauge, "How long ago that was.", age as f64 / 1e6);
        let took = read(&backups.last_took_ms) as f64 / 1e3;
        text.one("den_backup_last_seconds", Kind::Gauge, "How long the last one took.", took);
        text.one("den_backup_last_bytes", Kind::Gauge, "Bytes that it wrote.", read(&backups.last_stored));
    }
    text.one("den_backups_failed_total", Kind::Counter, "Backups that were not made.", read(&backups.failed));
}

fn events(text: &mut Text, inner: &Inner) {
    let name = "den_events_total";
    text.family(name, Kind::Counter, "Events, by kind.");
    for (kind, count) in inner.events.counts().of_kinds() {
        text.sample(name, &[("kind", kind.as_str())], count);
    }
}

/// Samples of single computers.
fn each(text: &mut Text, list: &UsageList) {
    type Of = fn(&den_api::ComputerUsage) -> f64;
    let families: [(&str, Kind, &str, Of); 8] = [
        ("den_computer_cpu_seconds_total", Kind::Counter, "CPU time.", |item| item.cpu_us as f64 / 1e6),
        ("den_computer_memory_bytes", Kind::Gauge, "Memory, page cache included.", |item| item.memory_bytes as f64),
        ("den_computer_disk_bytes", Kind::Gauge, "Its disk, with its states.", |item| {
            item.disk_bytes.unwrap_or(0) as f64
        }),
        ("den_computer_pids", Kind::Gauge, "Processes and threads.", |item| f64::from(item.pids)),
        ("den_computer_oom_kills_total", Kind::Counter, "Processes ended for its memory limit.", |item| {
            item.oom_kills as f64
        }),
        ("den_computer_steps_total", Kind::Counter, "Steps.", |item| item.steps as f64),
        ("den_computer_net_up_bytes_total", Kind::Counter, "Bytes from it.", |item| {
            item.net.map_or(0.0, |net| net.up_bytes as f64)
        }),
        ("den_computer_net_down_bytes_total", Kind::Counter, "Bytes to it.", |item| {
            item.net.map_or(0.0, |net| net.down_bytes as f64)
        }),
    ];
    for (name, kind, help, of) in families {
        text.family(name, kind, help);
        for item in &list.items {
            text.sample(name, &[("computer", &item.id.to_string()), ("name", &item.name)], of(item));
        }
    }
}

/// What the processes of the house take.
struct Processes(Vec<(&'static str, Process)>);

struct Process {
    resident: u64,
    threads: u64,
    descriptors: u64,
    cpu: f64,
}

/// Looks at this process and the gate's. Blocks.
fn processes(inner: &Inner) -> Processes {
    let gate = inner.gate.pid();
    let found = [("serve", Some(std::process::id())), ("gate", gate)].into_iter();
    Processes(found.filter_map(|(name, pid)| Some((name, Process::look(pid?)?))).collect())
}

impl Process {
    fn look(pid: u32) -> Option<Self> {
        let folder = Path::new("/proc").join(pid.to_string());
        let status = std::fs::read_to_string(folder.join("status")).ok()?;
        let number = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
        // After the name, which may have anything in it: utime and stime are the 12th and 13th.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(Self {
            resident: number("VmRSS:")? * 1024,
            threads: number("Threads:")?,
            descriptors: std::fs::read_dir(folder.join("fd")).ok()?.count() as u64,
            cpu: ticks as f64 / TICKS,
        })
    }
}

impl Processes {
    fn write(&self, text: &mut Text) {
        type Of = fn(&Process) -> f64;
        let families: [(&str, Kind, &str, Of); 4] = [
            ("den_process_resident_bytes", Kind::Gauge, "Memory of Den's own processes.", |it| it.resident as f64),
            ("den_process_threads", Kind::Gauge, "Their threads.", |it| it.threads as f64),
            ("den_process_open_fds", Kind::Gauge, "Their descriptors.", |it| it.descriptors as f64),
            ("den_process_cpu_seconds_total", Kind::Counter, "Their CPU time.", |it| it.cpu),
        ];
        for (name, kind, help, of) in families {
            text.family(name, kind, help);
            for (process, found) in &self.0 {
                text.sample(name, &[("process", process)], of(found));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_where_their_histogram_is() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index, "{}", operation.as_str());
        }
    }

    #[test]
    fn steps_are_counted_by_how_they_end() {
        let metrics = Metrics::default();
        metrics.step_started(StepKind::Exec);
        metrics.step_ended(&StepEnd::Exited { code: 3 }, 1_000_000, 3_000_000, 7);
        metrics.answered(404);
        metrics.answered(99);
        let mut text = Text::default();
        metrics.write(&mut text);
        let text = text.into_string();
        for line in [
            "den_steps_started_total{kind=\"exec\"} 1",
            "den_steps_ended_total{result=\"failed\"} 1",
            "den_steps_ended_total{result=\"ok\"} 0",
            "den_step_seconds_sum 2",
            "den_output_bytes_total 7",
            "den_http_answers_total{status=\"404\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }

    #[test]
    fn this_process_is_seen() {
        let process = Process::look(std::process::id()).unwrap();
        assert!(process.resident > 0 && process.threads > 0 && process.descriptors > 0);
    }
}
