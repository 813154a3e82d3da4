//! `trash`: what was removed and can still come back.

use clap::{Args, Subcommand};
use den_api::TrashView;

use super::computers::each;
use crate::{find::Global, report::Outcome, show};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Example: den trash  |  den trash empty web\n\
                  den undo NAME brings one back; its log, files and states can be read as it lies there."
)]
pub struct TrashArgs {
    #[command(subcommand)]
    command: Option<TrashCommand>,
}

#[derive(Debug, Subcommand)]
enum TrashCommand {
    /// List what lies there
    #[command(visible_alias = "list", after_help = "Example: den trash ls --json")]
    Ls,
    /// Remove for good: some, or all
    #[command(alias = "rm", after_help = "Example: den trash empty  |  den trash empty web cmp_06e1")]
    Empty(EmptyArgs),
}

#[derive(Debug, Args)]
struct EmptyArgs {
    /// The names they had, or ids; all without
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Lists or empties the trash.
pub async fn run(global: &Global, args: TrashArgs) -> Outcome {
    match args.command {
        None | Some(TrashCommand::Ls) => list(global, false).await,
        Some(TrashCommand::Empty(args)) => empty(global, args).await,
    }
}

/// Lists what lies in the trash, or its names alone.
pub async fn list(global: &Global, quiet: bool) -> Outcome {
    let trash = global.client()?.trash().await?;
    if global.json {
        show::json(&trash.items)?;
    } else if quiet {
        show::print(&trash.items.iter().map(|item| format!("{}\n", item.computer.name)).collect::<String>())?;
    } else if trash.items.is_empty() {
        show::line(match trash.kept_for_s {
            Some(_) => "the trash is empty",
            None => "there is no trash: den serve runs with --trash-for 0",
        })?;
    } else {
        show::table(["NAME", "ID", "IMAGE", "REMOVED", "GOES IN", "STEPS"], trash.items.iter().map(row))?;
    }
    Ok(0)
}

fn row(item: &TrashView) -> [String; 6] {
    let c = &item.computer;
    let now = show::now_micros();
    [
        c.name.clone(),
        c.id.to_string(),
        c.image.clone(),
        format!("{} ago", show::age(item.removed_at)),
        // As an age that lies ahead.
        show::age(now - (item.kept_until - now).max(0)),
        c.last_step.to_string(),
    ]
}

async fn empty(global: &Global, args: EmptyArgs) -> Outcome {
    let client = global.client()?;
    let told = |emptied: den_api::EmptiedList| {
        if !global.json {
            return Ok(());
        }
        emptied.items.iter().try_for_each(show::json_line)
    };
    if args.names.is_empty() {
        told(client.empty_trash(None).await?)?;
        return Ok(0);
    }
    each(&args.names, async |name| told(client.empty_trash(Some(&name)).await?)).await
}
