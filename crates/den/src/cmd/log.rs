//! `log`: the steps of a computer, a line each; or one step's output.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use den_api::{Client, ExecResult, StepChanges, StepView, client::StepFilter};
use serde::Serialize;

use super::changes::{self, Lines};
use super::stream::{Follow, Followed, Interrupt, RECONNECT_MAX, Sink, Source};
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// How many of the latest steps are shown when nobody says.
const SHOWN: u32 = 50;
/// The most that one request asks for.
const PAGE: u32 = 1000;
/// Steps that are read for as many lines, where many starts of a service are one line.
const READ_MAX: usize = 2000;
/// So many starts of a service with nothing else between them are one line.
const FOLDED_FROM: usize = 3;
/// The least width of the column that says who asked.
const WHO_CHARS: usize = 6;
/// Between two looks for new steps.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);
/// How much of a command is shown in a line, in characters.
const COMMAND_CHARS: usize = 100;
/// How many changed files are listed behind a step's output.
const FILES_SHOWN: u32 = 50;

#[derive(Debug, Args)]
#[command(after_help = "Example: den log web  |  den log web 12  |  den log web --path /etc\n\
                        Columns: step, age, who, exit, time, output, files changed, snapshot, command.\n\
                        A step's output goes where it went; the files it changed are listed on standard error.")]
pub struct LogArgs {
    /// Name or id
    name: String,
    /// One step: its output, as it was printed
    step: Option<u64>,
    /// Go on as more comes
    #[arg(long, short)]
    follow: bool,
    /// How many of the latest steps; 0 for all [default: 50]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "step")]
    lines: Option<u32>,
    /// Only steps with this text in their command
    #[arg(long, value_name = "TEXT", conflicts_with = "step")]
    grep: Option<String>,
    /// Only steps that changed this path or something below it
    #[arg(long, value_name = "PATH", conflicts_with_all = ["step", "follow"])]
    path: Option<String>,
    /// From this byte of the step's output
    #[arg(long, value_name = "BYTE", default_value_t = 0, hide_default_value = true, requires = "step")]
    from: u64,
    /// Only the files that the step changed
    #[arg(long, requires = "step", conflicts_with_all = ["follow", "from"])]
    files: bool,
}

/// Shows steps, or one step's output.
pub async fn run(global: &Global, args: LogArgs) -> Outcome {
    let client = global.client()?;
    match args.step {
        Some(step) if args.files => files(global, &client, &args.name, step).await,
        Some(step) => output(global, client, &args, step).await,
        None => steps(global, &client, &args).await,
    }
}

/// A step's output: to standard output and error, or with the step as one JSON value.
async fn output(global: &Global, client: Client, args: &LogArgs, step: u64) -> Outcome {
    let stream = client.output(&args.name, step, args.from, args.follow).await?;
    let mut follow = Follow {
        global,
        client: client.clone(),
        name: &args.name,
        step: Some(step),
        next: args.from,
        interrupt: Interrupt::Detach,
        follow: args.follow,
        sink: if global.json { Sink::kept() } else { Sink::Standard },
        patience: RECONNECT_MAX,
        input: false,
    };
    let view = match follow.run(Source::Stream(stream), &mut drop).await? {
        Followed::Ended(view) => *view,
        Followed::Detached if !global.json => return Ok(0),
        Followed::Read | Followed::Detached => client.step(&args.name, step).await?,
    };
    // A step that changed nothing, or of which that is not known, has no list.
    let changed = match view.changes {
        Some(count) if changes::total(&count) > 0 => client.step_changes(&args.name, step).await.ok(),
        _ => None,
    };
    match follow.sink.result(view) {
        Some(result) => show::json(&WithChanges { result, changes: changed })?,
        None => {
            if let Some(changed) = changed {
                eprint!("{}", listed(&changed, FILES_SHOWN, &format!("den log {} {step} --files", args.name)));
            }
        }
    }
    Ok(0)
}

/// A step with its output and what it changed, as one JSON value.
#[derive(Serialize)]
struct WithChanges {
    #[serde(flatten)]
    result: ExecResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<StepChanges>,
}

/// What a step changed, a line a path.
fn listed(changed: &StepChanges, most: u32, how: &str) -> String {
    let mut lines = Lines::new(most);
    changed.files.iter().for_each(|change| lines.push(&changes::line(change)));
    let missing = changes::total(&changed.count).saturating_sub(changed.files.len() as u64);
    format!("changed: {}\n{}", changes::count(&changed.count), lines.finish(missing, how))
}

/// Only what a step changed.
async fn files(global: &Global, client: &Client, name: &str, step: u64) -> Outcome {
    let changed = client.step_changes(name, step).await?;
    if global.json {
        show::json(&changed)?;
    } else if changes::total(&changed.count) == 0 {
        show::line("it changed nothing")?;
    } else {
        show::print(&listed(&changed, 0, "the rest is not kept"))?;
    }
    Ok(0)
}

async fn steps(global: &Global, client: &Client, args: &LogArgs) -> Outcome {
    let filter = StepFilter { grep: args.grep.clone(), path: args.path.clone(), ..StepFilter::default() };
    let filtered = filter != StepFilter::default();
    let fold = !args.follow && !global.json;
    let steps = latest(client, &args.name, &filter, args.lines.unwrap_or(SHOWN), fold).await?;
    let mut last = steps.last().map_or(0, |step| step.number);
    if args.follow {
        let mut open = BTreeMap::new();
        for step in steps {
            shown(global, step, &mut open)?;
        }
        loop {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            let ended: Vec<u64> = open.keys().copied().collect();
            for number in ended {
                let step = client.step(&args.name, number).await?;
                if step.end.is_some() {
                    open.remove(&number);
                    print_step(global, &step)?;
                }
            }
            let newer = StepFilter { after: Some(last.to_string()), limit: Some(PAGE), ..filter.clone() };
            for step in client.steps_matching(&args.name, &newer).await?.items {
                last = last.max(step.number);
                shown(global, step, &mut open)?;
            }
        }
    }
    if global.json {
        show::json(&steps)?;
    } else if steps.is_empty() {
        show::line(if filtered { "no such steps" } else { "no steps yet" })?;
    } else {
        let width = steps.iter().map(|step| step.who.len()).max().unwrap_or(0);
        show::print(&folded(&steps).iter().map(|folded| folded.line(width)).collect::<String>())?;
        if !filtered && steps[0].number > 1 && args.lines.is_none() {
            eprintln!("hint: the {} steps before with -n 0", steps[0].number - 1);
        } else if filtered && args.lines.is_none() && steps.len() >= SHOWN as usize {
            eprintln!("hint: the latest {SHOWN}; all with -n 0");
        }
    }
    Ok(0)
}

/// A step, or several starts of one service with nothing but services between them.
struct Folded<'a> {
    /// The newest.
    step: &'a StepView,
    /// The oldest, and how many.
    first: u64,
    count: usize,
}

impl Folded<'_> {
    fn line(&self, who: usize) -> String {
        let command = show::command(&self.step.argv, COMMAND_CHARS);
        match self.count {
            1 => line(self.step, who, &command),
            count => line(self.step, who, &format!("{count} starts since step {}: {command}", self.first)),
        }
    }
}

/// The lines of a list of steps, in the order of its numbers.
fn folded(steps: &[StepView]) -> Vec<Folded<'_>> {
    let ended = |step: &StepView| step.kind == "service" && step.end.is_some();
    let mut lines: Vec<Folded<'_>> = Vec::new();
    for run in steps.chunk_by(|one, other| ended(one) && ended(other)) {
        let begin = lines.len();
        for step in run {
            let same = |folded: &Folded<'_>| folded.step.who == step.who;
            let starts = run.iter().filter(|other| other.who == step.who).count();
            match lines[begin..].iter_mut().find(|folded| starts >= FOLDED_FROM && same(folded)) {
                Some(folded) => {
                    folded.first = folded.first.min(step.number);
                    folded.count += 1;
                    if step.number > folded.step.number {
                        folded.step = step;
                    }
                }
                None => lines.push(Folded { step, first: step.number, count: 1 }),
            }
        }
        lines[begin..].sort_by_key(|folded| folded.step.number);
    }
    lines
}

/// The latest `count` steps that the filter lets through, or with `fold` as many as make so many lines, the
/// oldest of them first; 0 is all.
async fn latest(
    client: &Client,
    name: &str,
    filter: &StepFilter,
    count: u32,
    fold: bool,
) -> Result<Vec<StepView>, Trouble> {
    let mut steps: Vec<StepView> = Vec::new();
    let mut filter = StepFilter { newest_first: true, ..filter.clone() };
    loop {
        let lines = if fold && count > 0 { folded(&steps).len() } else { steps.len() };
        filter.limit = Some(if count == 0 { PAGE } else { PAGE.min(count - lines as u32) });
        let page = client.steps_matching(name, &filter).await?;
        steps.extend(page.items);
        match page.next {
            Some(next) if count == 0 => filter.after = Some(next),
            Some(next) if fold && steps.len() < READ_MAX && folded(&steps).len() < count as usize => {
                filter.after = Some(next);
            }
            Some(next) if !fold && steps.len() < count as usize => filter.after = Some(next),
            _ => break,
        }
    }
    steps.reverse();
    Ok(steps)
}

/// Shows a step that has ended, remembers one that runs.
fn shown(global: &Global, step: StepView, open: &mut BTreeMap<u64, ()>) -> Result<(), Trouble> {
    if step.end.is_none() {
        open.insert(step.number, ());
        return Ok(());
    }
    print_step(global, &step)
}

fn print_step(global: &Global, step: &StepView) -> Result<(), Trouble> {
    if global.json {
        show::json_line(step)
    } else {
        show::print(&line(step, 0, &show::command(&step.argv, COMMAND_CHARS)))
    }
}

/// Number, age, who, exit, time, output, files changed, snapshot, command.
fn line(step: &StepView, who: usize, command: &str) -> String {
    let exit = match &step.end {
        None => "runs".to_owned(),
        Some(end) => match end.how.as_str() {
            "exited" => format!("exit {}", end.exit_code),
            "signaled" => format!("signal {}", end.signal.unwrap_or(end.exit_code - 128)),
            "timed_out" => "timed out".to_owned(),
            "not_started" => format!("exit {}", end.exit_code),
            other => other.to_owned(),
        },
    };
    let took = show::took(step.ended_at.unwrap_or_else(show::now_micros) - step.started_at);
    let changed = step.changes.as_ref().map_or_else(|| "-".to_owned(), changes::count);
    let snapshot = step.snapshot.map_or_else(|| "-".to_owned(), |number| format!(".{number}"));
    format!(
        "{:<5} {:>5}  {:<width$}  {:<9}  {:>7}  {:>8}  {:<11}  {:<4}  {}\n",
        step.number,
        show::age(step.started_at),
        step.who,
        exit,
        took,
        show::size(step.output_bytes),
        changed,
        snapshot,
        command,
        width = who.max(WHO_CHARS),
    )
}
