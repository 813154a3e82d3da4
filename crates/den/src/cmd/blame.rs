//! `blame`: the step that last changed a file, or each of its lines.

use std::{collections::BTreeSet, ffi::OsString};

use clap::Args;
use den_api::{Client, StepView};

use super::state::{one_path, with_path};
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// How much of a command is shown in a line, in characters.
const COMMAND_CHARS: usize = 100;
/// Steps that are named above the lines.
const STEPS_MAX: usize = 50;

#[derive(Debug, Args)]
#[command(after_help = "Example: den blame web /etc/hosts  |  den blame web /srv/app.py --lines")]
pub struct BlameArgs {
    /// Name or id
    name: OsString,
    /// Which file
    path: Option<OsString>,
    /// Line by line, with the steps that wrote them
    #[arg(long, short)]
    lines: bool,
}

/// Shows who changed it.
pub async fn run(global: &Global, args: BlameArgs) -> Outcome {
    let (target, behind) = with_path(&args.name)?;
    if target.state.is_some() {
        return Err(Trouble::usage("`blame` goes back from now; it takes no state")
            .hint(format_args!("what a file was: den cat {} PATH", target.text())));
    }
    let Some(path) = one_path(behind, args.path.as_deref())? else {
        return Err(Trouble::usage("`blame` wants a path").hint(format_args!("den blame {} /etc/hosts", target.name)));
    };
    let client = global.client()?;
    let view = client.blame(&target.name, &path, args.lines).await?;
    if global.json {
        show::json(&view)?;
        return Ok(0);
    }
    if !args.lines {
        let text = match view.step {
            Some(number) => format!("step {number}  {}", described(&client, &target.name, number).await?),
            None => "as it was made: no kept step changed it".to_owned(),
        };
        show::line(&text)?;
    } else {
        let steps: BTreeSet<u64> = view.lines.iter().filter_map(|line| line.step).collect();
        // The newest ones are named; each of the rest is a `den log NAME STEP` away.
        for number in steps.iter().rev().take(STEPS_MAX).collect::<Vec<_>>().into_iter().rev() {
            show::line(&format!("step {number}  {}", described(&client, &target.name, *number).await?))?;
        }
        let width = steps.last().map_or(1, |step| step.to_string().len());
        let text: String = view
            .lines
            .iter()
            .map(|line| {
                let step = line.step.map_or_else(|| "-".to_owned(), |step| step.to_string());
                format!("{step:>width$}  {}\n", show::clean(&line.text))
            })
            .collect();
        show::print(&text)?;
    }
    if view.truncated {
        eprintln!("hint: this is not all: the file has more lines, or its older steps are not kept any more");
    }
    Ok(0)
}

/// When, who, what.
async fn described(client: &Client, name: &str, number: u64) -> Result<String, Trouble> {
    let step: StepView = client.step(name, number).await?;
    Ok(format!("{}  {}  {}", show::age(step.started_at), step.who, show::command(&step.argv, COMMAND_CHARS)))
}
