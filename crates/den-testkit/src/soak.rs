//! Random operations against a model, kills among them; and the proof that nothing is lost and nothing leaks.
//!
//! ```text
//! census ─► lap: rounds ─► all removed ─► census: nothing more than before ─► next lap …
//!            round: clients side by side, each with computers of its own    ┐ at the end of a round
//!            the world: nothing, or kill -9 of serve, gate, launcher        ┘ all that is there is what must be
//! ```
//!
//! Invariants:
//! - What a client does follows from the seed and from what it was answered. Where a kill breaks a request off,
//!   whether it was done is the daemon's choice: done or not done is taken up, anything between is a failure.
//! - What was acknowledged is there, whatever is killed afterwards.
//! - A failure names the seed and the last things that were done.
//!
//! Deliberately absent: the host's crash. Power cuts have a suite of their own.

mod census;
mod client;
mod dice;
mod model;
mod ops;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{House, Options};
use census::{Census, Memory};
use client::Client;
use dice::Dice;
use model::text;

/// What ends in its own time (threads without work, subvolumes, cgroups) has ended by then.
const CENSUS_MAX: Duration = Duration::from_secs(60);
/// Things that each client does in a round.
const STEPS: usize = 15;
/// A kill comes at some moment within this time from the start of its round.
const KILL_WITHIN_MS: usize = 500;
/// Memory of a program may grow by so much, whatever was done: what is kept for later is filled meanwhile.
const GROWTH_ONCE_KIB: u64 = 16 * 1024;
/// And beyond that by so much for each thousand operations.
const GROWTH_PER_1000_KIB: u64 = 1024;

/// What a soak is.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program.
    pub den: String,
    /// From which all follows.
    pub seed: u64,
    /// Laps begin until then; there is one at least.
    pub time: Duration,
    /// Clients side by side.
    pub clients: usize,
    /// Rounds of a lap.
    pub rounds: usize,
    /// Whether things are killed.
    pub kills: bool,
    /// The CRIU that writes memory to the disk; nothing is asked of it without.
    pub criu: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Things done.
    pub operations: u64,
    /// Those that a kill broke off.
    pub broken: u64,
    /// Laps.
    pub laps: u64,
    /// How often what was killed.
    pub kills: BTreeMap<&'static str, u64>,
    /// Memory of each program at the end, in KiB.
    pub memory: BTreeMap<&'static str, u64>,
}

/// What the world does to a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Nothing,
    Serve,
    Gate,
    Launcher,
    Both,
}

/// Runs it; `tell` gets a line a lap. Errors: what is wrong, with the seed and what was done last.
pub fn run(plan: &Plan, mut tell: impl FnMut(&str)) -> Result<Report, String> {
    let args = plan.criu.iter().flat_map(|criu| ["--criu".to_owned(), criu.display().to_string()]).collect();
    let options = Options { trash_for: Some("24h".to_owned()), args, ..Options::default() };
    let mut house = House::with(&plan.den, options);
    let result = laps(plan, &mut house, &mut tell).map_err(|why| {
        format!(
            "{why}\nto repeat it: --seed {} --clients {} --rounds {}\n--- den serve\n{}",
            plan.seed,
            plan.clients,
            plan.rounds,
            tail(&house.log())
        )
    });
    if let Err(why) = &result {
        // It may not close either.
        tell(why);
    }
    house.close();
    result
}

fn laps(plan: &Plan, house: &mut House, tell: &mut impl FnMut(&str)) -> Result<Report, String> {
    let since = Instant::now();
    let shaken = AtomicBool::new(false);
    let mut world = Dice::new(plan.seed, 0);
    let mut report = Report::default();
    warm(house);
    let before = settled(house, None)?;
    let mut grown: BTreeMap<&str, (Memory, u64)> = BTreeMap::new();
    let mut clients: Vec<Client<'_>> =
        (0..plan.clients).map(|number| Client::new(number, plan, house.api(), &shaken)).collect();
    while report.laps == 0 || since.elapsed() < plan.time {
        // Every second lap is left in peace, so that memory is compared within one life of each program.
        let kills = plan.kills && report.laps % 2 == 0;
        for round in 0..plan.rounds {
            let blow = if kills { blow(&mut world) } else { Blow::Nothing };
            let after = Duration::from_millis(world.below(KILL_WITHIN_MS) as u64);
            one_round(house, &mut clients, &shaken, blow, after, &mut report).map_err(|(who, why)| {
                let said = clients[who].said.join("\n  ");
                format!("lap {}, round {round} ({blow:?} after {after:?}), client {who}: {why}\n  {said}", report.laps)
            })?;
            whole(house, &clients)?;
        }
        for client in &mut clients {
            client.clear().map_err(|why| format!("lap {}: {why}", report.laps))?;
        }
        whole(house, &clients)?;
        report.operations = clients.iter().map(|client| client.done).sum();
        report.broken = clients.iter().map(|client| client.broken).sum();
        settled(house, Some(&before))?;
        for (program, now) in census::memory(house) {
            let (first, operations) = *grown.entry(program).or_insert((now, report.operations));
            if first.pid != now.pid {
                grown.insert(program, (now, report.operations));
            }
            let may = GROWTH_ONCE_KIB + (report.operations - operations) * GROWTH_PER_1000_KIB / 1000;
            if first.pid == now.pid && now.kib > first.kib + may {
                let done = report.operations - operations;
                return Err(format!("{program} grew from {} to {} KiB in {done} operations", first.kib, now.kib));
            }
            report.memory.insert(program, now.kib);
        }
        report.laps += 1;
        tell(&format!(
            "{:5} s  lap {}: {} operations, {} broken off by {:?}; KiB {:?}",
            since.elapsed().as_secs(),
            report.laps,
            report.operations,
            report.broken,
            report.kills,
            report.memory
        ));
    }
    Ok(report)
}

fn blow(world: &mut Dice) -> Blow {
    world.weighted(&[(8, Blow::Nothing), (5, Blow::Serve), (2, Blow::Gate), (2, Blow::Launcher), (1, Blow::Both)])
}

/// All clients at once; a blow meanwhile. Errors: which client, and what is wrong.
fn one_round(
    house: &mut House,
    clients: &mut [Client<'_>],
    shaken: &AtomicBool,
    blow: Blow,
    after: Duration,
    report: &mut Report,
) -> Result<(), (usize, String)> {
    shaken.store(blow != Blow::Nothing, Ordering::SeqCst);
    let start = Barrier::new(clients.len() + 1);
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let running: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    (0..STEPS).try_for_each(|_| client.step())
                })
            })
            .collect();
        start.wait();
        if blow != Blow::Nothing {
            std::thread::sleep(after);
            strike(house, blow, report);
        }
        running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err("the client panicked".to_owned()))).collect()
    });
    // What is replaced by itself is there again before anything is held against the daemon.
    let since = Instant::now();
    while blow != Blow::Nothing
        && ["gate", "launcher"].iter().any(|program| census::pid_of(house, program).is_none())
        && since.elapsed() < CENSUS_MAX
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    match results.into_iter().enumerate().find_map(|(who, result)| Some((who, result.err()?))) {
        Some(wrong) => Err(wrong),
        None => {
            let checked = clients.iter_mut().enumerate().try_for_each(|(who, client)| {
                client.check_all().map_err(|why| (who, format!("at the end of the round: {why}")))
            });
            shaken.store(false, Ordering::SeqCst);
            checked
        }
    }
}

fn strike(house: &mut House, blow: Blow, report: &mut Report) {
    let kill = |house: &House, program: &'static str| {
        let pid = census::pid_of(house, program).and_then(Pid::from_raw);
        pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    };
    let mut count = |program: &'static str| *report.kills.entry(program).or_default() += 1;
    match blow {
        Blow::Nothing => {}
        Blow::Gate if kill(house, "gate") => count("gate"),
        Blow::Launcher if kill(house, "launcher") => count("launcher"),
        Blow::Gate | Blow::Launcher => {}
        Blow::Serve | Blow::Both => {
            house.kill_serve();
            count("serve");
            if blow == Blow::Both && kill(house, "launcher") {
                count("launcher");
            }
            house.start();
        }
    }
}

/// What the daemon lists is what all clients have, and nothing else.
fn whole(house: &House, clients: &[Client<'_>]) -> Result<(), String> {
    let list = |path: &str| -> Result<BTreeSet<(String, String)>, String> {
        let reply = house.api().get(path);
        if reply.status != 200 {
            return Err(format!("GET {path}: {} {}", reply.status, reply.text()));
        }
        let items = reply.json()["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().map(|one| (text(one, "id").to_owned(), text(one, "name").to_owned())).collect())
    };
    let same = |what: &str, wanted: BTreeSet<(String, String)>, found: BTreeSet<(String, String)>| {
        let lost: Vec<_> = wanted.difference(&found).collect();
        let more: Vec<_> = found.difference(&wanted).collect();
        match lost.is_empty() && more.is_empty() {
            true => Ok(()),
            false => Err(format!("{what}: lost {lost:?}, too many {more:?}")),
        }
    };
    let of = |computer: &model::Computer| (computer.id.clone(), computer.name.clone());
    same(
        "the list",
        clients.iter().flat_map(|client| client.computers.iter().map(of)).collect(),
        list("/v1/computers?limit=1000")?,
    )?;
    same("the trash", clients.iter().flat_map(|client| client.trash.iter().map(of)).collect(), list("/v1/trash")?)
}

/// Has the daemon open what it opens once.
fn warm(house: &House) {
    house.new_computer("warm");
    house.sh("warm", "echo warm > /root/warm").ok();
    house.den(&["fork", "warm", "warmer"]).ok();
    house.den(&["rm", "--now", "warm", "warmer"]).ok();
}

/// A census of the house once it has nothing more than `before`. Errors: what it has more.
fn settled(house: &House, before: Option<&Census>) -> Result<Census, String> {
    let since = Instant::now();
    let mut last = Census::take(house);
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = Census::take(house);
        let grown = now.grown(before.unwrap_or(&last));
        match grown.is_empty() {
            true if before.is_some() || last.grown(&now).is_empty() => return Ok(now),
            _ if since.elapsed() > CENSUS_MAX => return Err(format!("left behind: {}", grown.join("\n  "))),
            _ => last = now,
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(80)..].join("\n")
}
