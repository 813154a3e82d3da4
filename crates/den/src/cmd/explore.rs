//! `explore`: one command in several forks of a computer, scored; the best is kept or merged.
//!
//! The daemon does it and tells what happens; hanging up ends it, and it removes the forks. So Ctrl-C hangs up, and
//! waits until they are gone.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use den_api::{Client, ExploreEvent, ExploreKeep, ExploreRequest, ExploreScore, ExploreView, client::ComputerFilter};
use den_model::parse_duration;

use super::{changes, merge, state::StateArg, stream::Signals};
use crate::{
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// How long it is waited for that the forks of an exploration that was ended are gone.
const GONE_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked.
const GONE_LOOK: Duration = Duration::from_millis(20);
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

impl From<Keep> for ExploreKeep {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Best => Self::Best,
            Keep::All => Self::All,
            Keep::None => Self::None,
        }
    }
}

/// Tries.
pub async fn run(global: &Global, args: ExploreArgs) -> Outcome {
    let from = StateArg::parse(&args.from)?;
    let client = global.client()?;
    let mut signals = Signals::listen().map_err(|error| Trouble::io("cannot listen for signals", &error))?;
    let request = ExploreRequest {
        state: from.state.clone(),
        count: args.count,
        run: args.run.clone(),
        score: args.score.clone(),
        lowest: args.lowest,
        keep: args.keep.map(ExploreKeep::from),
        merge: args.merge,
        user: args.user.clone(),
        cwd: args.cwd.clone(),
        timeout_ms: args.timeout.map(|timeout| timeout.as_millis() as u64),
    };
    let explored = match explore(&client, &from.name, &request, &mut signals).await? {
        Ok(explored) => explored,
        Err(signal) => return Err(Trouble::quiet(SIGNALED + signal)),
    };
    if global.json {
        let none = explored.best.is_none();
        let met = explored.merge.as_ref().is_some_and(|merge| !merge.conflicts.is_empty());
        show::json(&explored)?;
        return Ok(if met || none { FAILED } else { 0 });
    }
    let parent = client.computer(&from.name).await?.name;
    shown(&args, &parent, &explored)
}

/// Follows it to its end. A signal ends it: its number, once all forks are gone. Those that are on their way are
/// waited for: then they can be seen to go.
async fn explore(
    client: &Client,
    name: &str,
    request: &ExploreRequest,
    signals: &mut Signals,
) -> Result<Result<ExploreView, u8>, Trouble> {
    let mut ended = None;
    let mut exploring = {
        let mut starting = std::pin::pin!(client.explore(name, request));
        loop {
            tokio::select! {
                biased;
                signal = signals.next(), if ended.is_none() => ended = Some(signal),
                exploring = &mut starting => break exploring?,
            }
        }
    };
    let watched = std::io::stderr().is_terminal();
    let (mut all, mut done, mut label) = (0, 0, None::<String>);
    loop {
        if let (Some(signal), Some(label)) = (ended, &label) {
            // To hang up is to end it.
            drop(exploring);
            gone(client, label).await?;
            return Ok(Err(signal));
        }
        let event = tokio::select! {
            biased;
            signal = signals.next(), if ended.is_none() => {
                ended = Some(signal);
                continue;
            }
            event = exploring.next() => event?,
        };
        let told = match event {
            None => return Err(Trouble::new("the daemon ended it").hint("its forks are removed; try again")),
            Some(ExploreEvent::Forked(forks)) => {
                all = forks.names.len();
                label = Some(forks.label);
                format!("{all} forks run")
            }
            Some(ExploreEvent::Ran(ran)) => format!("{}: exit {}, now its score", ran.name, ran.exit_code),
            Some(ExploreEvent::Tried(fork)) => {
                done += 1;
                format!("{done} of {all}: {} {}", fork.name, score(fork.score))
            }
            Some(ExploreEvent::Merging(fork)) => format!("{} is merged", fork.name),
            Some(ExploreEvent::End(view)) => return Ok(Ok(*view)),
        };
        if watched {
            eprintln!("{}", show::clean(&told));
        }
    }
}

/// Waits until the forks are gone.
async fn gone(client: &Client, label: &str) -> Result<(), Trouble> {
    let filter = ComputerFilter { labels: vec![label.to_owned()], ..ComputerFilter::default() };
    let since = Instant::now();
    while !client.all_computers(&filter).await?.is_empty() {
        if since.elapsed() > GONE_WAIT {
            let text = "the forks of this run are not all removed yet";
            return Err(Trouble::new(text).hint(format_args!("which there are: den ls --label {label}")));
        }
        tokio::time::sleep(GONE_LOOK).await;
    }
    Ok(())
}

fn score(score: ExploreScore) -> String {
    match score {
        ExploreScore::Exit { exit_code } => format!("exit {exit_code}"),
        ExploreScore::Number(number) => number.to_string(),
    }
}

fn shown(args: &ExploreArgs, parent: &str, explored: &ExploreView) -> Outcome {
    let rows = explored.forks.iter().map(|tried| {
        let end = tried.run.end.as_ref().map_or_else(|| "-".to_owned(), |end| end.exit_code.to_string());
        let took = tried.run.ended_at.map_or_else(|| "-".to_owned(), |at| show::took(at - tried.run.started_at));
        let line: String = show::clean(&tried.last_line).chars().take(LINE_CHARS).collect();
        [
            tried.name.clone(),
            tried.fork.to_string(),
            score(tried.score),
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
    fn a_score_is_a_number_or_how_it_ended() {
        assert_eq!(score(ExploreScore::Number(0.5)), "0.5");
        assert_eq!(score(ExploreScore::Exit { exit_code: 3 }), "exit 3");
    }
}
