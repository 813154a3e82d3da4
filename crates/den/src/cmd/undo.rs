//! `undo`: what was done last, taken back.

use clap::Args;
use den_api::{UndoRequest, UndoView};

use super::snap::state_of;
use crate::{find::Global, report::Outcome, show};

#[derive(Debug, Args)]
#[command(after_help = "Example: den undo  |  den undo web  |  den undo web --as web-2  |  den undo --list\n\
                  Takes back rm, restore, merge, net and resize; again, what was done before that.")]
pub struct UndoArgs {
    /// What was done to this one, one in the trash included [default: what was done last]
    name: Option<String>,
    /// Bring back what was removed under another name
    #[arg(long = "as", value_name = "NEW", conflicts_with = "list")]
    new_name: Option<String>,
    /// The one of this number in the list; of an undo, that does it again
    #[arg(long, value_name = "N", conflicts_with = "list")]
    number: Option<u64>,
    /// What was done, and what can be taken back
    #[arg(long, short)]
    list: bool,
}

/// Takes something back, or lists what can be.
pub async fn run(global: &Global, args: UndoArgs) -> Outcome {
    if args.list {
        return list(global, args.name.as_deref()).await;
    }
    let request = UndoRequest { computer: args.name, number: args.number, name: args.new_name };
    let done = global.client()?.undo(&request).await?;
    if global.json {
        show::json(&done)?;
        return Ok(0);
    }
    let name = &done.computer.name;
    show::line(&format!("taken back: {}; {name} is {}", done.undone.text, done.computer.state))?;
    if let Some(reason) = &done.computer.reason {
        show::line(&format!("because: {reason}"))?;
    }
    if let Some(before) = &done.before {
        show::line(&format!("as it was just now: {}", state_of(name, before)))?;
    }
    if let Some(redo) = done.redo {
        show::line(&format!("undo: den undo --number {redo}"))?;
    }
    Ok(0)
}

async fn list(global: &Global, name: Option<&str>) -> Outcome {
    let list = global.client()?.undo_list(name, None).await?;
    if global.json {
        show::json(&list.items)?;
    } else if list.items.is_empty() {
        show::line("nothing was done yet that could be taken back")?;
    } else {
        show::table(["NUMBER", "AGE", "BY", "WHAT", "UNDO"], list.items.iter().map(row))?;
    }
    Ok(0)
}

fn row(item: &UndoView) -> [String; 5] {
    let what = match item.takes_back {
        Some(number) => format!("undo of {number}: {}", item.text),
        None => item.text.clone(),
    };
    let can = match (&item.why_not, item.undone_at) {
        (None, _) => "yes".to_owned(),
        (Some(_), Some(at)) => format!("done {} ago", show::age(at)),
        (Some(why), None) => format!("no: {why}"),
    };
    [item.number.to_string(), show::age(item.at), item.who.clone(), what, can]
}
