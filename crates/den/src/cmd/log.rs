//! `log`: the steps of a computer, a line each; or one step's output.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use den_api::{Client, StepView, client::Order};

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
/// Between two looks for new steps.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);
/// How much of a command is shown in a line, in characters.
const COMMAND_CHARS: usize = 100;

#[derive(Debug, Args)]
#[command(after_help = "Example: den log web  |  den log web 12  |  den log web -n 5\n\
                        Columns: step, age, who, exit, time, output, command.")]
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
    /// From this byte of the step's output
    #[arg(long, value_name = "BYTE", default_value_t = 0, hide_default_value = true, requires = "step")]
    from: u64,
}

/// Shows steps, or one step's output.
pub async fn run(global: &Global, args: LogArgs) -> Outcome {
    let client = global.client()?;
    match args.step {
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
        Followed::Read | Followed::Detached if !global.json => return Ok(0),
        Followed::Read | Followed::Detached => client.step(&args.name, step).await?,
    };
    if let Some(result) = follow.sink.result(view) {
        show::json(&result)?;
    }
    Ok(0)
}

async fn steps(global: &Global, client: &Client, args: &LogArgs) -> Outcome {
    let steps = latest(client, &args.name, args.lines.unwrap_or(SHOWN)).await?;
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
            let page = client.steps(&args.name, Some(&last.to_string()), Some(PAGE), Order::Ascending).await?;
            for step in page.items {
                last = last.max(step.number);
                shown(global, step, &mut open)?;
            }
        }
    }
    if global.json {
        show::json(&steps)?;
    } else if steps.is_empty() {
        show::line("no steps yet")?;
    } else {
        show::print(&steps.iter().map(line).collect::<String>())?;
        if steps[0].number > 1 && args.lines.is_none() {
            eprintln!("hint: the {} steps before with -n 0", steps[0].number - 1);
        }
    }
    Ok(0)
}

/// The latest `count` steps, the oldest of them first; 0 is all.
async fn latest(client: &Client, name: &str, count: u32) -> Result<Vec<StepView>, Trouble> {
    let mut steps: Vec<StepView> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let wanted = if count == 0 { PAGE } else { PAGE.min(count - steps.len() as u32) };
        let page = client.steps(name, after.as_deref(), Some(wanted), Order::Descending).await?;
        steps.extend(page.items);
        match page.next {
            Some(next) if count == 0 || (steps.len() as u32) < count => after = Some(next),
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
    if global.json { show::json_line(step) } else { show::print(&line(step)) }
}

/// Number, age, who, exit, time, output, command.
fn line(step: &StepView) -> String {
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
    format!(
        "{:<5} {:>5}  {:<6}  {:<9}  {:>7}  {:>8}  {}\n",
        step.number,
        show::age(step.started_at),
        step.who,
        exit,
        took,
        show::size(step.output_bytes),
        show::command(&step.argv, COMMAND_CHARS),
    )
}
