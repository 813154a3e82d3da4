//! `top`: what all computers use, now.
//!
//! ```text
//! GET /v1/usage ─► two of them ─► rates ─► table, a line of JSON, or the screen until `q`
//! ```

use std::{
    cmp::Ordering,
    collections::HashMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::{Args, ValueEnum};
use den_api::{ComputerUsage, HostUsage, UsageList};
use den_model::{ComputerId, State, parse_duration};
use serde::Serialize;

use super::stream::stdin_chunks;
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
    term::{self, Raw},
};

/// Between the two looks of one that looks once.
const ONCE: Duration = Duration::from_millis(500);
/// The shortest and the longest time between two looks.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// Ctrl-C and Ctrl-D, as a raw terminal sends them.
const KEYS_END: [u8; 3] = [b'q', 3, 4];

#[derive(Debug, Args)]
#[command(after_help = "Example: den top --sort memory\n\
                        Keys: c CPU, m memory, d disk, n network, s steps, a name, q quits.\n\
                        CPU is in per cent of one CPU. Piped, or with --once, it looks once; --json has rates too.")]
pub struct TopArgs {
    /// Look once
    #[arg(long)]
    once: bool,
    /// Between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Computers that do not run too
    #[arg(long)]
    all: bool,
}

/// By what computers are put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Sort {
    #[default]
    Cpu,
    Memory,
    Disk,
    Net,
    Steps,
    Name,
}

impl Sort {
    fn of(key: u8) -> Option<Self> {
        Some(match key {
            b'c' => Self::Cpu,
            b'm' => Self::Memory,
            b'd' => Self::Disk,
            b'n' => Self::Net,
            b's' => Self::Steps,
            b'a' => Self::Name,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Net => "network",
            Self::Steps => "steps",
            Self::Name => "name",
        }
    }
}

/// A computer with its rates over the last interval.
#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    usage: &'a ComputerUsage,
    /// Per cent of one CPU.
    cpu_percent: f64,
    up_bytes_per_s: f64,
    down_bytes_per_s: f64,
    steps_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Rows<'a> {
    at: i64,
    seconds: f64,
    host: &'a HostUsage,
    items: Vec<Row<'a>>,
}

impl<'a> Rows<'a> {
    /// What happened between two looks. What was not there before, or began anew, counts from 0.
    fn between(before: &UsageList, now: &'a UsageList, args: &TopArgs, sort: Sort) -> Self {
        let seconds = ((now.at - before.at) as f64 / 1e6).max(0.001);
        let old: HashMap<ComputerId, &ComputerUsage> = before.items.iter().map(|item| (item.id, item)).collect();
        let shown = |item: &&ComputerUsage| args.all || !matches!(item.state, State::Stopped | State::Failed);
        let mut items: Vec<_> = now
            .items
            .iter()
            .filter(shown)
            .map(|usage| {
                let old = old.get(&usage.id);
                let rate = |of: fn(&ComputerUsage) -> u64| {
                    let (new, old) = (of(usage), old.map_or(0, |old| of(old)));
                    (if new < old { new } else { new - old }) as f64 / seconds
                };
                Row {
                    usage,
                    cpu_percent: rate(|item| item.cpu_us) / 1e4,
                    up_bytes_per_s: rate(|item| item.net.map_or(0, |net| net.up_bytes)),
                    down_bytes_per_s: rate(|item| item.net.map_or(0, |net| net.down_bytes)),
                    steps_per_s: rate(|item| item.steps),
                }
            })
            .collect();
        items.sort_by(|a, b| a.order(b, sort));
        Self { at: now.at, seconds, host: &now.host, items }
    }

    /// A line on the house, and the table.
    fn text(&self, lines: usize) -> String {
        let HostUsage { cpus, memory_total, memory_available, disk_total, disk_free } = *self.host;
        let running = self.items.iter().filter(|row| row.usage.state == State::Running).count();
        let busy: f64 = self.items.iter().map(|row| row.cpu_percent).sum();
        let head = format!(
            "{} UTC  {running} of {} run, CPU {busy:.0}% of {}%, memory {} free of {}, disk {} free of {}\n",
            show::moment(self.at),
            self.items.len(),
            cpus * 100,
            show::size(memory_available),
            show::size(memory_total),
            show::size(disk_free),
            show::size(disk_total),
        );
        let rows = self.items.iter().take(lines).map(|row| {
            let usage = row.usage;
            let some = |text: String, there: bool| if there { text } else { "-".to_owned() };
            [
                usage.name.clone(),
                usage.state.to_string(),
                format!("{:.1}", row.cpu_percent),
                show::size(usage.memory_bytes),
                format!("{:.0}%", share(usage.memory_bytes, usage.memory.0)),
                usage.disk_bytes.map_or_else(|| "-".to_owned(), show::size),
                some(show::size(row.up_bytes_per_s as u64), usage.net.is_some()),
                some(show::size(row.down_bytes_per_s as u64), usage.net.is_some()),
                format!("{:.1}", row.steps_per_s),
                usage.steps_running.to_string(),
                usage.pids.to_string(),
            ]
        });
        let names = ["NAME", "STATE", "CPU%", "MEM", "MEM%", "DISK", "UP/s", "DOWN/s", "STEPS/s", "RUN", "PIDS"];
        head + &show::columns(names, rows)
    }
}

impl Row<'_> {
    /// The most first; names rise.
    fn order(&self, other: &Self, sort: Sort) -> Ordering {
        let net = |row: &Self| row.up_bytes_per_s + row.down_bytes_per_s;
        let first = match sort {
            Sort::Cpu => other.cpu_percent.total_cmp(&self.cpu_percent),
            Sort::Memory => other.usage.memory_bytes.cmp(&self.usage.memory_bytes),
            Sort::Disk => other.usage.disk_bytes.cmp(&self.usage.disk_bytes),
            Sort::Net => net(other).total_cmp(&net(self)),
            Sort::Steps => other.steps_per_s.total_cmp(&self.steps_per_s),
            Sort::Name => Ordering::Equal,
        };
        first.then_with(|| self.usage.name.cmp(&other.usage.name))
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 * 100.0 }
}

/// Shows what computers use.
pub async fn run(global: &Global, args: TopArgs) -> Outcome {
    if !(INTERVALS.0..=INTERVALS.1).contains(&args.interval) {
        return Err(Trouble::usage("`--interval` is not from 100ms to 1h"));
    }
    let client = global.client()?;
    let mut before = client.usage().await?;
    if args.once || !io::stdout().is_terminal() {
        tokio::time::sleep(ONCE).await;
        let now = client.usage().await?;
        let rows = Rows::between(&before, &now, &args, args.sort);
        if global.json {
            show::json(&rows)?
        } else {
            show::print(&rows.text(usize::MAX))?
        }
        return Ok(0);
    }
    if global.json {
        loop {
            tokio::time::sleep(args.interval).await;
            let now = client.usage().await?;
            show::json_line(&Rows::between(&before, &now, &args, args.sort))?;
            before = now;
        }
    }
    let mut screen = Screen::open()?;
    let mut sort = args.sort;
    let mut keys = stdin_chunks();
    let mut wait = ONCE;
    loop {
        let pressed = tokio::select! {
            keys = keys.recv() => Some(keys),
            () = tokio::time::sleep(wait) => None,
        };
        match &pressed {
            Some(None) => return Ok(0),
            Some(Some(keys)) if keys.iter().any(|key| KEYS_END.contains(key)) => return Ok(0),
            Some(Some(keys)) => sort = keys.iter().rev().find_map(|&key| Sort::of(key)).unwrap_or(sort),
            None => {}
        }
        wait = args.interval;
        let now = client.usage().await?;
        let (lines, width) = term::size().unwrap_or((24, 80));
        let rows = Rows::between(&before, &now, &args, sort);
        let mut text = rows.text(usize::from(lines).saturating_sub(3));
        text += &format!("by {}; c m d n s a change it, q quits", sort.name());
        screen.show(&text, usize::from(width))?;
        // A key redraws at once; rates are over a time worth the name.
        if pressed.is_none() {
            before = now;
        }
    }
}

/// The whole screen, until it is dropped.
struct Screen {
    /// Keys come one by one, and are not shown.
    _raw: Option<Raw>,
}

impl Screen {
    fn open() -> Result<Self, Trouble> {
        let raw = Raw::enter().map_err(|error| Trouble::io("the terminal", &error))?;
        // The other screen, without a cursor.
        show::print("\x1b[?1049h\x1b[?25l")?;
        Ok(Self { _raw: raw })
    }

    fn show(&mut self, text: &str, width: usize) -> Result<(), Trouble> {
        let mut frame = String::from("\x1b[H");
        for line in text.lines() {
            frame.extend(show::clean(line).chars().take(width));
            frame.push_str("\x1b[K\r\n");
        }
        // The last line ends without a new one, so that nothing scrolls.
        let end = frame.trim_end_matches("\r\n").len();
        frame.truncate(end);
        frame.push_str("\x1b[J");
        show::print(&frame)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| out.flush()); // The terminal may be gone.
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn usage(at: i64, items: &[(u128, &str, u64, u64)]) -> UsageList {
        let items: Vec<_> = items
            .iter()
            .map(|(id, name, cpu_us, memory)| {
                json!({
                    "id": format!("cmp_{id:0>26}"), "name": name, "state": "running", "cpu_us": cpu_us,
                    "cpus": 2, "memory_bytes": memory, "memory": 1000, "disk": 1000, "disk_bytes": 10, "pids": 3,
                    "pids_limit": 9, "oom_kills": 0, "forks_refused": 0, "steps": 4, "steps_running": 1,
                })
            })
            .collect();
        let host = json!({ "cpus": 2, "memory_total": 9, "memory_available": 5, "disk_total": 9, "disk_free": 5 });
        serde_json::from_value(json!({ "at": at, "host": host, "items": items })).expect("a list")
    }

    fn args() -> TopArgs {
        TopArgs { once: true, interval: ONCE, sort: Sort::Cpu, all: false }
    }

    #[test]
    fn rates_are_over_the_time_between() {
        let before = usage(0, &[(1, "a", 1_000_000, 5)]);
        let now = usage(2_000_000, &[(1, "a", 2_000_000, 5), (2, "b", 3_000_000, 7)]);
        let rows = Rows::between(&before, &now, &args(), Sort::Cpu);
        let seen: Vec<_> = rows.items.iter().map(|row| (row.usage.name.as_str(), row.cpu_percent)).collect();
        assert_eq!(seen, [("b", 150.0), ("a", 50.0)]);
        assert_eq!(rows.items[1].steps_per_s, 0.0);
        assert_eq!(rows.items[0].steps_per_s, 2.0);
        let by_name = Rows::between(&before, &now, &args(), Sort::Name);
        assert_eq!(by_name.items[0].usage.name, "a");
    }

    #[test]
    fn counters_that_begin_anew_are_no_negative_rate() {
        let (before, now) = (usage(0, &[(1, "a", 9_000_000, 5)]), usage(1_000_000, &[(1, "a", 500_000, 5)]));
        let rows = Rows::between(&before, &now, &args(), Sort::Cpu);
        assert_eq!(rows.items[0].cpu_percent, 50.0);
    }

    #[test]
    fn the_table_has_the_house_above_it_and_no_more_lines_than_fit() {
        let list = usage(1_000_000, &[(1, "a", 0, 500), (2, "b", 0, 5)]);
        let rows = Rows::between(&list, &list, &args(), Sort::Memory);
        let text = rows.text(1);
        assert!(text.starts_with("1970-01-01 00:00:01 UTC  2 of 2 run, CPU 0% of 200%"), "{text}");
        assert!(text.contains("\na ") && !text.contains("\nb "), "{text}");
        assert!(text.contains("50%"), "{text}");
    }
}
