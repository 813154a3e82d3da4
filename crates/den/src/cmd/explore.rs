//! `explore`: one command in several forks of a computer, scored; the best is kept or merged.
//!
//! ```text
//! fork × n ─► run CMD in each, DEN_FORK=i ─► score CMD in each ─► table ─► keep · merge ─► remove the rest
//!     └────────── Ctrl-C, a failure: all forks are removed, also those on their way ──────────┘
//! ```
//!
//! Invariants:
//! - Every fork carries the label `den.explore` with this run's id from its first moment, so that
//!   what is to be removed is asked of the daemon and not remembered.
//! - A fork request that is under way is waited for before that is asked.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, ValueEnum};
use den_api::{
    ChangeCount, Client, ClientError, ExecRequest, ExecResult, ForkRequest, ForkView, MergeRequest, MergeView,
    StepView, client::ComputerFilter,
};
use den_model::parse_duration;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::{changes, merge, state::StateArg, stream::Signals};
use crate::{
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// The label that a run's forks carry.
const LABEL: &str = "den.explore";
/// How many forks when nobody says.
const FORKS: u32 = 4;
/// How long a fork request is waited for before what it made is removed.
const FORK_MAX: Duration = Duration::from_secs(60);
/// How often what is left is asked for before it is given up.
const REMOVE_ATTEMPTS: u32 = 3;
/// Forks that are removed at the same time.
const REMOVE_PARALLEL: usize = 16;
/// How much of a name goes into the names of its forks, in characters: a label holds 63.
const NAME_CHARS: usize = 48;
/// How much of a line of output is shown, in characters.
const LINE_CHARS: usize = 60;
/// 128 and the signal's number, as a shell shows it.
const SIGNALED: u8 = 128;

#[derive(Debug, Args)]
#[command(
    after_help = "Example: den explore web -n 4 --run './try.sh $DEN_FORK' --score 'pytest -q | tail -1' --keep best\n\
                        Score: the number on the last line of its output, the highest is best; without one its exit\n\
                        code, 0 is best. Ctrl-C removes all forks."
)]
pub struct ExploreArgs {
    /// From which computer, or which state of it
    #[arg(value_name = "NAME[@STATE]")]
    from: String,
    /// How many forks [default: 4]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    count: Option<u32>,
    /// What to run in each, by sh; DEN_FORK is 1, 2, …
    #[arg(long, value_name = "CMD", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    run: String,
    /// What tells how good it is, by sh [default: the exit code of --run]
    #[arg(long, value_name = "CMD", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    score: Option<String>,
    /// The lowest score is best
    #[arg(long)]
    lowest: bool,
    /// Which forks stay [default: best, with --merge none]
    #[arg(long, value_name = "WHICH")]
    keep: Option<Keep>,
    /// Merge the best into NAME
    #[arg(long)]
    merge: bool,
    /// As whom: name or number, with :group
    #[arg(long, short)]
    user: Option<String>,
    /// Where
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// End each command after this long
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Keep {
    /// The best one
    Best,
    /// All
    All,
    /// None
    None,
}

/// What the forks are judged by. The worst first, so that the greatest is the best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
enum Score {
    /// The command failed; a higher code is no better or worse than a lower one, but orders them.
    Failed {
        /// The code that a shell would show.
        exit_code: i32,
    },
    /// It succeeded and said no number.
    Done {
        /// 0.
        exit_code: i32,
    },
    /// It succeeded and said a number.
    Number(f64),
}

impl Score {
    fn of(result: &ExecResult) -> Self {
        let exit_code = result.step.end.as_ref().map_or(-1, |end| end.exit_code);
        let last = result.stdout.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let number = last.and_then(|line| line.parse::<f64>().ok()).filter(|number| number.is_finite());
        match (exit_code, number) {
            (0, Some(number)) => Self::Number(number),
            (0, None) => Self::Done { exit_code },
            _ => Self::Failed { exit_code },
        }
    }

    /// Whether it is better than another.
    fn beats(self, other: Self, lowest: bool) -> bool {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => {
                if lowest {
                    a < b
                } else {
                    a > b
                }
            }
            (Self::Failed { exit_code: a }, Self::Failed { exit_code: b }) => a < b,
            (a, b) => a.class() > b.class(),
        }
    }

    fn class(self) -> u8 {
        match self {
            Self::Failed { .. } => 0,
            Self::Done { .. } => 1,
            Self::Number(_) => 2,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::Failed { exit_code } => format!("exit {exit_code}"),
            Self::Done { .. } => "exit 0".to_owned(),
            Self::Number(number) => number.to_string(),
        }
    }
}

/// One fork and what came of it.
#[derive(Debug, Serialize)]
struct Tried {
    /// Its name.
    name: String,
    /// What it found in DEN_FORK.
    fork: u32,
    /// What it is judged by.
    score: Score,
    /// How its command ended.
    run: StepView,
    /// The last line that its command printed.
    last_line: String,
    /// How many paths the command changed, where that is known already.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<ChangeCount>,
    /// Whether it is still there.
    kept: bool,
}

/// The one JSON value.
#[derive(Debug, Serialize)]
struct Explored {
    /// The label of the forks.
    label: String,
    /// The best first.
    forks: Vec<Tried>,
    /// The best one, if any succeeded.
    best: Option<String>,
    /// What the merge did.
    #[serde(skip_serializing_if = "Option::is_none")]
    merge: Option<MergeView>,
}

/// Tries.
pub async fn run(global: &Global, args: ExploreArgs) -> Outcome {
    let from = StateArg::parse(&args.from)?;
    let client = global.client()?;
    let parent = client.computer(&from.name).await?;
    let id = run_id();
    let label = format!("{LABEL}={id}");
    let mut signals = Signals::listen().map_err(|error| Trouble::io("cannot listen for signals", &error))?;
    let stem: String = parent.name.chars().take(NAME_CHARS).collect();
    let stem = format!("{}-{id}", stem.trim_end_matches('-'));
    let count = args.count.unwrap_or(FORKS);
    let request = ForkRequest {
        state: from.state.clone(),
        // One alone would be called by the stem.
        name: Some(if count == 1 { format!("{stem}-1") } else { stem }),
        count: Some(count),
        labels: BTreeMap::from([(LABEL.to_owned(), id)]),
        env: BTreeMap::new(),
    };
    let mut forking = tokio::spawn({
        let (client, name) = (client.clone(), parent.id.to_string());
        async move { client.fork(&name, &request).await }
    });
    let explored = tokio::select! {
        biased;
        signal = signals.next() => Err(Trouble::quiet(SIGNALED + signal)),
        explored = explore(&client, &args, &parent.name, &mut forking) => explored,
    };
    if !forking.is_finished() {
        // Its forks must be there before they can be found.
        let _ = tokio::time::timeout(FORK_MAX, &mut forking).await;
    }
    let kept = |explored: &Explored| -> Vec<String> {
        explored.forks.iter().filter(|tried| tried.kept).map(|tried| tried.name.clone()).collect()
    };
    let removed = remove_all_but(&client, &label, &explored.as_ref().map(kept).unwrap_or_default()).await;
    let explored = match (explored, removed) {
        (Ok(explored), Ok(_)) => explored,
        (Err(trouble), Ok(_)) => return Err(trouble),
        (Ok(_), Err(trouble)) => return Err(trouble),
        (Err(first), Err(second)) => {
            first.report();
            return Err(second);
        }
    };
    if global.json {
        let none = explored.best.is_none();
        let met = explored.merge.as_ref().is_some_and(|merge| !merge.conflicts.is_empty());
        show::json(&Explored { label, ..explored })?;
        return Ok(if met || none { FAILED } else { 0 });
    }
    shown(&args, &parent.name, &explored)
}

/// Short, and another one in the next microsecond: what is left of the time in base 36.
fn run_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut number = (show::now_micros() as u64) ^ (u64::from(std::process::id()) << 24);
    let mut text = String::from("x");
    for _ in 0..7 {
        text.push(char::from(DIGITS[(number % 36) as usize]));
        number /= 36;
    }
    text
}

/// All of it but the removal.
async fn explore(
    client: &Client,
    args: &ExploreArgs,
    parent: &str,
    forking: &mut JoinHandle<Result<ForkView, ClientError>>,
) -> Result<Explored, Trouble> {
    let forks = forking.await.map_err(Trouble::new)??;
    let count = forks.items.len();
    let mut numbered: Vec<(u32, String)> = (1..).zip(forks.items.into_iter().map(|fork| fork.name)).collect();
    // Names end in the number, whatever the order of the answer.
    for (number, name) in &mut numbered {
        if let Some(said) = name.rsplit('-').next().and_then(|end| end.parse().ok()) {
            *number = said;
        }
    }
    let tries = stream::iter(numbered).map(|(fork, name)| one(client, args, fork, name)).buffer_unordered(count.max(1));
    let tried: Vec<Result<Tried, Trouble>> = tries.collect().await;
    let mut tried = tried.into_iter().collect::<Result<Vec<_>, _>>()?;
    tried.sort_by(|a, b| {
        let better = |x: &Tried, y: &Tried| x.score.beats(y.score, args.lowest);
        better(b, a).cmp(&better(a, b)).then(a.fork.cmp(&b.fork))
    });
    let best = tried.first().filter(|best| !matches!(best.score, Score::Failed { .. })).map(|best| best.name.clone());
    let merge = match &best {
        Some(best) if args.merge => {
            let request = MergeRequest { from: best.clone(), ..MergeRequest::default() };
            Some(client.merge(parent, &request).await?)
        }
        _ => None,
    };
    let conflicts = merge.as_ref().is_some_and(|merge| !merge.conflicts.is_empty());
    let keep = args.keep.unwrap_or(if args.merge { Keep::None } else { Keep::Best });
    for tried in &mut tried {
        let is_best = best.as_ref() == Some(&tried.name);
        tried.kept = match keep {
            Keep::All => true,
            Keep::Best => is_best,
            // What could not be merged would be lost.
            Keep::None => is_best && conflicts,
        };
    }
    Ok(Explored { label: String::new(), forks: tried, best, merge })
}

/// Runs and scores in one fork.
async fn one(client: &Client, args: &ExploreArgs, fork: u32, name: String) -> Result<Tried, Trouble> {
    let within = |error: ClientError| Trouble::from(error).within(format_args!("`{name}`"));
    let request = |script: &str| ExecRequest {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: [("DEN_FORK".to_owned(), fork.to_string())].into(),
        user: args.user.clone(),
        cwd: args.cwd.clone(),
        timeout_ms: args.timeout.map(|timeout| timeout.as_millis() as u64),
        ..ExecRequest::default()
    };
    let ran = client.exec(&name, &request(&args.run)).await.map_err(within)?;
    let scored = match &args.score {
        Some(script) => Some(client.exec(&name, &request(script)).await.map_err(within)?),
        None => None,
    };
    let score = match &scored {
        Some(scored) => Score::of(scored),
        // Without a judge of its own a number is only output.
        None => match ran.step.end.as_ref().map_or(-1, |end| end.exit_code) {
            0 => Score::Done { exit_code: 0 },
            exit_code => Score::Failed { exit_code },
        },
    };
    let said = scored.as_ref().filter(|scored| matches!(Score::of(scored), Score::Failed { .. })).unwrap_or(&ran);
    let text = if said.stdout.trim().is_empty() { &said.stderr } else { &said.stdout };
    let last_line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    let changes = client.step(&name, ran.step.number).await.map_err(within)?.changes;
    Ok(Tried { name, fork, score, run: ran.step, last_line, changes, kept: false })
}

/// Removes the forks of a run but those in `kept`; how many they were.
async fn remove_all_but(client: &Client, label: &str, kept: &[String]) -> Result<usize, Trouble> {
    let filter = ComputerFilter { labels: vec![label.to_owned()], ..ComputerFilter::default() };
    let mut removed = 0;
    let mut last: Option<ClientError> = None;
    for _ in 0..REMOVE_ATTEMPTS {
        let left = match client.all_computers(&filter).await {
            Ok(left) => left,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        let left: Vec<String> = left.into_iter().map(|fork| fork.name).filter(|name| !kept.contains(name)).collect();
        if left.is_empty() {
            return Ok(removed);
        }
        let outcomes: Vec<Result<(), ClientError>> = stream::iter(left)
            .map(|name| async move { client.remove(&name).await })
            .buffer_unordered(REMOVE_PARALLEL)
            .collect()
            .await;
        for outcome in outcomes {
            match outcome {
                Ok(()) => removed += 1,
                Err(error) if error.code() == Some("computer_not_found") => {}
                Err(error) => last = Some(error),
            }
        }
    }
    match last {
        None => Ok(removed),
        Some(error) => {
            let text = format!("the forks of this run could not all be removed: {}", crate::report::chain(&error));
            Err(Trouble::new(text).hint(format_args!("which there are: den ls --label {label}")))
        }
    }
}

fn shown(args: &ExploreArgs, parent: &str, explored: &Explored) -> Outcome {
    let rows = explored.forks.iter().map(|tried| {
        let end = tried.run.end.as_ref().map_or_else(|| "-".to_owned(), |end| end.exit_code.to_string());
        let took = tried.run.ended_at.map_or_else(|| "-".to_owned(), |at| show::took(at - tried.run.started_at));
        let line: String = show::clean(&tried.last_line).chars().take(LINE_CHARS).collect();
        [
            tried.name.clone(),
            tried.fork.to_string(),
            tried.score.shown(),
            end,
            took,
            tried.changes.as_ref().map_or_else(|| "-".to_owned(), changes::count),
            if tried.kept { "kept" } else { "removed" }.to_owned(),
            line,
        ]
    });
    show::table(["NAME", "FORK", "SCORE", "EXIT", "TIME", "CHANGED", "FORK IS", "LAST LINE"], rows)?;
    let Some(best) = &explored.best else {
        return Err(
            Trouble::new("no fork did it: every one failed").hint("what they said: --keep all, then den log NAME")
        );
    };
    if let Some(merged) = &explored.merge {
        return merge::shown(best, parent, false, 0, merged);
    }
    show::line(&format!("best: {best}"))?;
    if args.keep != Some(Keep::None) {
        show::line(&format!("next: den diff {best}  |  den merge {best}"))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_highest_number_then_who_succeeded() {
        let (failed, done) = (Score::Failed { exit_code: 1 }, Score::Done { exit_code: 0 });
        assert!(Score::Number(2.0).beats(Score::Number(1.0), false));
        assert!(Score::Number(1.0).beats(Score::Number(2.0), true));
        assert!(Score::Number(-5.0).beats(done, false) && done.beats(failed, false));
        assert!(failed.beats(Score::Failed { exit_code: 2 }, false));
        assert!(!done.beats(done, false));
        assert_eq!([Score::Number(0.5).shown(), failed.shown()], ["0.5", "exit 1"]);
    }

    #[test]
    fn an_id_is_part_of_a_name() {
        let id = run_id();
        assert!(id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{id}");
    }
}
