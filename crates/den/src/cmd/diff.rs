//! `diff`: what differs between two states of computers, by meaning and by path.

use clap::Args;
use den_api::DiffView;

use super::{
    changes::{self, Lines},
    progress::Line,
    state::StateArg,
};
use crate::{find::Global, report::Outcome, report::Trouble, show};

/// How many lines are shown when nobody says.
const SHOWN: u32 = 200;
/// The same with texts.
const SHOWN_TEXT: u32 = 1000;
/// The most paths that one request asks for.
const FILES_MAX: u32 = 100_000;

#[derive(Debug, Args)]
#[command(after_help = "Example: den diff web@12 web@15 --text  |  den diff try --stat\n\
                        One state: NAME@STATE against NAME now; a fork's NAME against what it was forked from.\n\
                        Signs: + added, ~ changed, - removed, > renamed.")]
pub struct DiffArgs {
    /// The first state
    #[arg(value_name = "A[@STATE]")]
    a: String,
    /// The second; @STATE for one of the same computer
    #[arg(value_name = "B[@STATE]")]
    b: Option<String>,
    /// Only how many, by area and directory
    #[arg(long, conflicts_with_all = ["text", "files"])]
    stat: bool,
    /// The differences of text files, line by line
    #[arg(long, conflicts_with = "files")]
    text: bool,
    /// Only the paths
    #[arg(long, visible_alias = "name-only")]
    files: bool,
    /// Only this path and what is below it; may be given several times
    #[arg(long, short, value_name = "PATH")]
    path: Vec<String>,
    /// How many lines; 0 for all [default: 200, with --text 1000]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u32>,
}

/// Shows what differs.
pub async fn run(global: &Global, args: DiffArgs) -> Outcome {
    let a = StateArg::parse(&args.a)?;
    let b = match &args.b {
        Some(text) if text.starts_with('@') => Some(StateArg::parse(&format!("{}{text}", a.name))?),
        Some(text) => Some(StateArg::parse(text)?),
        None => None,
    };
    let client = global.client()?;
    // Counts by directory need every path; lines that are not shown need none.
    let limit = match (args.lines, args.stat, global.json) {
        (Some(0), ..) | (_, true, _) => Some(FILES_MAX),
        (Some(lines), ..) => Some(lines.min(FILES_MAX)),
        (None, _, true) => None,
        (None, ..) => Some(SHOWN),
    };
    let b = b.map(|b| b.text());
    let view = match Line::is_wanted() {
        true => {
            let mut line = Line::new();
            let told = |progress| line.tell(&progress);
            client.diff_watched(&a.text(), b.as_deref(), &args.path, args.text, limit, told).await?
        }
        false => client.diff(&a.text(), b.as_deref(), &args.path, args.text, limit).await?,
    };
    if global.json {
        show::json(&view)?;
        return Ok(0);
    }
    shown(&args, &view)?;
    Ok(0)
}

fn shown(args: &DiffArgs, view: &DiffView) -> Result<(), Trouble> {
    let total = changes::total(&view.count);
    if total == 0 && view.facts.is_empty() {
        show::line(&format!("no difference between {} and {}", view.a, view.b))?;
        return changes::volumes(&view.volumes, "compared");
    }
    let mut lines = Lines::new(args.lines.unwrap_or(if args.text { SHOWN_TEXT } else { SHOWN }));
    let missing = total.saturating_sub(view.files.len() as u64);
    if !args.files {
        show::line(&format!("{}  {} to {}", changes::count(&view.count), view.a, view.b))?;
    }
    if args.stat {
        changes::stat(&view.files, &view.facts, &mut lines);
        show::print(&lines.finish(missing, "--path P, or --json"))?;
        return changes::volumes(&view.volumes, "compared");
    }
    if !args.files {
        changes::facts(&view.facts, &mut lines);
    }
    for change in &view.files {
        if args.files {
            lines.push(&changes::entry_path(&change.path, change.after.as_ref().or(change.before.as_ref())));
            continue;
        }
        lines.push(&changes::line(change));
        if let Some(text) = &change.text {
            lines.push_all(text, "");
        }
    }
    show::print(&lines.finish(missing, "-n 0, --path P, or --json"))?;
    if args.files { Ok(()) } else { changes::volumes(&view.volumes, "compared") }
}
