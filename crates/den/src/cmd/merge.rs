//! `merge`: a fork's changes into another computer, all or nothing.

use clap::Args;
use den_api::{ConflictView, MergeRequest, MergeView, MetaView};

use super::{
    changes::{self, Lines},
    fork::parent_of,
    progress::Line,
    snap::state_of,
    state::StateArg,
};
use crate::{
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// How many lines are shown when nobody says.
const SHOWN: u32 = 200;
/// How many lines say what is not merged.
const SKIPPED_SHOWN: u32 = 20;

#[derive(Debug, Args)]
#[command(after_help = "Example: den merge try --dry-run  |  den merge try --theirs /etc/app.conf\n\
                        Three-way from the state both come from; any conflict, and nothing is changed: exit code 1.")]
pub struct MergeArgs {
    /// Whose changes
    #[arg(value_name = "FORK[@STATE]")]
    fork: String,
    /// Into which computer [default: the fork's parent]
    #[arg(long, value_name = "NAME")]
    into: Option<String>,
    /// Say what would come, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Only this path and what is below it; may be given several times
    #[arg(long, short, value_name = "PATH")]
    path: Vec<String>,
    /// Where both changed it, the target's stays; may be given several times
    #[arg(long, value_name = "PATH")]
    ours: Vec<String>,
    /// Where both changed it, the fork's comes; may be given several times
    #[arg(long, value_name = "PATH")]
    theirs: Vec<String>,
    /// How many lines; 0 for all [default: 200]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u32>,
}

/// Merges.
pub async fn run(global: &Global, args: MergeArgs) -> Outcome {
    let from = StateArg::parse(&args.fork)?;
    let client = global.client()?;
    let into = match &args.into {
        Some(name) => name.clone(),
        None => parent_of(&client.computer(&from.name).await?)?,
    };
    let request = MergeRequest {
        from: from.text(),
        dry_run: args.dry_run,
        paths: args.path,
        ours: args.ours,
        theirs: args.theirs,
    };
    let merged = match Line::is_wanted() {
        true => {
            let mut line = Line::new();
            client.merge_watched(&into, &request, |progress| line.tell(&progress)).await
        }
        false => client.merge(&into, &request).await,
    };
    let view = merged.map_err(|error| {
        let gone = args.into.is_none() && error.code() == Some("computer_not_found");
        let trouble = Trouble::from(error);
        if gone { trouble.hint("its parent is gone: name the target with --into NAME") } else { trouble }
    })?;
    if global.json {
        show::json(&view)?;
        return Ok(if view.conflicts.is_empty() { 0 } else { FAILED });
    }
    // Its name, where it was found by the fork's parent.
    let into = match args.into {
        Some(name) => name,
        None => client.computer(&into).await?.name,
    };
    shown(&from.text(), &into, args.dry_run, args.lines.unwrap_or(SHOWN), &view)
}

/// Shows what a merge did, would do, or met.
pub fn shown(from: &str, into: &str, dry_run: bool, most: u32, view: &MergeView) -> Outcome {
    let mut lines = Lines::new(most);
    if !view.conflicts.is_empty() {
        view.conflicts.iter().for_each(|conflict| conflict_lines(conflict, &mut lines));
        show::print(&lines.finish(0, "-n 0, or --json"))?;
        let many = match view.conflicts.len() {
            1 => "1 conflict".to_owned(),
            many => format!("{many} conflicts"),
        };
        return Err(Trouble::new(format_args!("`{from}` cannot be merged into `{into}`: {many}; nothing was changed"))
            .hint("--ours PATH keeps what is there, --theirs PATH takes the fork's, --path PATH leaves out the rest"));
    }
    let count = changes::count(&view.count);
    if changes::total(&view.count) == 0 {
        show::line(&format!("nothing to merge: `{into}` has all that `{from}` changed since {}", view.base))?;
        left(view)?;
        return Ok(0);
    }
    let step = view.step.map_or_else(String::new, |step| format!(", step {step}"));
    let verb = if dry_run { "would come" } else { "merged" };
    show::line(&format!("{count}  {verb} from {from} into {into}{step}"))?;
    view.files.iter().for_each(|change| lines.push(&changes::line(change)));
    let missing = changes::total(&view.count).saturating_sub(view.files.len() as u64);
    show::print(&lines.finish(missing, "-n 0, or --json"))?;
    left(view)?;
    if let Some(before) = &view.before {
        show::line(&format!("undo: den restore {}", state_of(into, before)))?;
    }
    Ok(0)
}

/// What the fork has changed and does not come.
fn left(view: &MergeView) -> Result<(), Trouble> {
    let mut lines = Lines::new(SKIPPED_SHOWN);
    for skipped in &view.skipped {
        lines.push(&format!("not merged: {}: {}", show::clean(&skipped.path), show::clean(&skipped.message)));
    }
    show::print(&lines.finish(0, "--json"))?;
    changes::volumes(&view.volumes, "merged")
}

/// A path that both changed, with its three versions.
fn conflict_lines(conflict: &ConflictView, lines: &mut Lines) {
    lines.push(&format!("! {}  {}: {}", show::clean(&conflict.path), conflict.why, show::clean(&conflict.message)));
    let side = |meta: &Option<MetaView>| meta.as_ref().map_or_else(|| "not there".to_owned(), changes::meta);
    for (name, meta) in [("base", &conflict.base), ("ours", &conflict.ours), ("theirs", &conflict.theirs)] {
        lines.push(&format!("  {name:<6}  {}", side(meta)));
    }
    if let Some(text) = &conflict.text {
        lines.push_all(text, "  | ");
    }
}
