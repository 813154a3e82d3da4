//! What a computer notices of a hostile one beside it, and of its end.
//!
//! ```text
//! n: `true`, again and again ─► c: attacks ─► n: again ─► c: removed, n: again ─► n: alone again
//!    quiet                        │  p99          │ still at it?     p99                quiet
//!                                 └────────────── over the lesser p99 of the two quiets ──┘
//! ```
//!
//! The attacks are those of the suite `hostile`, which shows where each of them ends: the same files.
//! An attack says now and then that it goes on; one that has stopped by itself gives no figure.

use std::time::{Duration, Instant};

use den_api::{CreateComputer, ExecRequest, computer::Amount};

use super::{
    Bench, PACE,
    report::{Measure, millis, rank},
    settle,
};

/// What the rows of this file begin with; alone it names all of them.
pub const ROWS: &str = "neighbour";

/// How long an attack goes on before its neighbour is measured.
const GROW: Duration = Duration::from_secs(1);
/// How long a neighbour is measured at a time, where that gives a p99.
const LOOK: Duration = Duration::from_secs(4);
/// And at most, where it does not.
const LOOK_MAX: Duration = Duration::from_secs(15);
/// Commands beside an attack, where they fit into that time: the p99 is not that of a few.
const COMMANDS: u32 = 1500;
/// And in quiet, each time.
const QUIET_COMMANDS: u32 = 800;
/// Commands from which there is a p99.
const COMMANDS_MIN: usize = 100;
/// Who uses so much CPU time in a second is at it.
const AT_IT_US: u64 = 250_000;
/// Longer than all that is measured, in seconds.
const ATTACK_SECONDS: &str = "90";
/// Two quiets that differ more than this were none.
const QUIET_TIMES: f64 = 2.0;

/// What every attack begins with.
const PRELUDE: &str = include_str!("../../attacks/prelude.py");

macro_rules! attacks {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../attacks/", $name, ".py")))),*]
    };
}

/// Rows without their first word, and what attacks.
const ATTACKS: &[(&str, &str)] = attacks!["spin" "forks" "zombies" "traces" "timers" "memory" "disk" "files" "flushes"
    "output" "descriptors" "watches" "sockets" "mounts" "namespaces" "links" "packets" "cgroups" "keys" "probes"];

/// Measures the row `name`.
pub async fn beside(bench: &Bench, name: &'static str) -> anyhow::Result<Measure> {
    let kind = name.strip_prefix(ROWS).and_then(|rest| rest.strip_prefix('_'));
    let script = ATTACKS.iter().find(|(attack, _)| Some(*attack) == kind).map(|(_, script)| *script);
    let script = script.ok_or_else(|| anyhow::anyhow!("`{name}` names no attack"))?;
    let neighbour = bench.create("neighbour").await?.name;
    let before = execs(bench, &neighbour, QUIET_COMMANDS).await?;
    let small = CreateComputer {
        memory: Some(Amount("256MiB".to_owned())),
        disk: Some(Amount("512MiB".to_owned())),
        pids: Some(500),
        ..bench.spec("attacker")
    };
    let attacker = bench.client.create(&small, None).await?.name;
    let argv = ["python3", "-c", &format!("{PRELUDE}{script}"), ATTACK_SECONDS].map(str::to_owned).to_vec();
    let step = bench.client.exec_detached(&attacker, &ExecRequest { argv, ..ExecRequest::default() }).await?.number;
    tokio::time::sleep(GROW).await;
    let begun = bench.client.step(&attacker, step).await?;
    let beside = execs(bench, &neighbour, COMMANDS).await?;
    let goes_on = goes_on(bench, &attacker, step, begun.output_bytes).await?;
    let (removed, gone) = tokio::join!(bench.client.remove_now(&attacker), execs(bench, &neighbour, 100));
    removed?;
    let gone = gone?;
    settle::settle().await;
    let after = execs(bench, &neighbour, QUIET_COMMANDS).await?;
    bench.client.remove_now(&neighbour).await?;
    if !goes_on {
        let note = "no figure: the attack did not go on";
        return Ok(Measure::new(name, "x", Vec::new(), note.to_owned()).goal("≤ 2", |_| false));
    }
    let quiets = [rank(&before, 0.99), rank(&after, 0.99)];
    let (quiet, loud) = (quiets[0].min(quiets[1]), quiets[0].max(quiets[1]));
    let [p50, p99] = [0.5, 0.99].map(|part| rank(&beside, part));
    let note = format!(
        "`true` in a neighbour: p99 {p99:.2} ms, {:.2} while the attacker is removed, {:.2} and {:.2} in quiet before \
         and after; p50 {p50:.2}, {:.2} in quiet{}",
        rank(&gone, 0.99),
        quiets[0],
        quiets[1],
        rank(&before, 0.5).min(rank(&after, 0.5)),
        if loud > quiet * QUIET_TIMES { "; it was not quiet: measure again" } else { "" },
    );
    // What of the host's settings it depends on.
    let setting = match kind {
        Some("mounts") => Some(("fs.mount-max", "/proc/sys/fs/mount-max")),
        Some("disk" | "files" | "flushes" | "output") => {
            Some(("workqueues on", "/sys/devices/virtual/workqueue/cpumask"))
        }
        _ => None,
    };
    let set = setting.and_then(|(name, path)| Some((name, std::fs::read_to_string(path).ok()?)));
    let note = set.map_or(note.clone(), |(name, value)| format!("{note}; {name} {}", value.trim()));
    Ok(Measure::new(name, "x", vec![p99 / quiet], note).goal("≤ 2", |m| m.p50 <= 2.0))
}

/// Whether the attack goes on: it says something more, or has not ended and uses processors. Among hundreds of its own
/// processes the one that speaks may have no turn.
async fn goes_on(bench: &Bench, attacker: &str, step: u64, said: u64) -> anyhow::Result<bool> {
    let since = Instant::now();
    while since.elapsed() < LOOK {
        let now = bench.client.step(attacker, step).await?;
        if now.end.is_some() || now.output_bytes > said {
            return Ok(now.end.is_none());
        }
        tokio::time::sleep(PACE).await;
    }
    let used = async || {
        let all = bench.client.usage().await?.items;
        anyhow::Ok(all.iter().find(|computer| computer.name == attacker).map_or(0, |computer| computer.cpu_us))
    };
    let before = used().await?;
    tokio::time::sleep(GROW).await;
    Ok(used().await?.saturating_sub(before) > AT_IT_US)
}

/// How long commands take that do nothing, sorted.
async fn execs(bench: &Bench, name: &str, usual: u32) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    tokio::time::sleep(PACE).await;
    bench.run(name, &["true"]).await?;
    let since = Instant::now();
    for _ in 0..bench.runs(usual) {
        let start = Instant::now();
        bench.run(name, &["true"]).await?;
        times.push(millis(start));
        let whole = if times.len() < COMMANDS_MIN { LOOK_MAX } else { LOOK };
        if since.elapsed() > whole {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::{ATTACKS, ROWS};
    use crate::bench::NAMES;

    #[test]
    fn every_row_has_an_attack_and_every_attack_a_row() {
        let rows: Vec<&str> = NAMES.into_iter().filter(|name| name.starts_with(ROWS)).collect();
        let attacks: Vec<String> = ATTACKS.iter().map(|(attack, _)| format!("{ROWS}_{attack}")).collect();
        assert_eq!(rows, attacks);
    }
}
