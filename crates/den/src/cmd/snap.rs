//! `snap`, `snaps`, `restore`: states kept, listed, forgotten, gone back to.

use clap::Args;
use den_api::{RestoreRequest, SnapRequest, SnapshotView};
use serde_json::json;

use super::state::StateArg;
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

#[derive(Debug, Args)]
#[command(after_help = "Example: den snap web before-upgrade\nPrints the state, as other commands take it.")]
pub struct SnapArgs {
    /// Name or id
    name: String,
    /// What to call it; a named one is kept until it is removed
    label: Option<String>,
    /// Have everything inside written out first
    #[arg(long)]
    sync: bool,
    /// With the processes that run, where the host can
    #[arg(long)]
    memory: bool,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "den snaps NAME\n       den snaps rm NAME@STATE…",
    after_help = "Example: den snaps web  |  den snaps rm web@before-upgrade\n\
                  NAME@12 is the state after step 12, NAME@.7 the snapshot of that number, NAME@LABEL a named one."
)]
pub struct SnapsArgs {
    /// Name or id; or rm and states
    #[arg(required = true, value_name = "WORD")]
    words: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den restore web@12  |  den restore web@before-upgrade\n\
                        Processes end, the disk is the old one. The state before is kept, so that it can be undone.")]
pub struct RestoreArgs {
    /// Which state: NAME@12 after step 12, NAME@LABEL
    #[arg(value_name = "NAME@STATE")]
    state: String,
}

/// What one types to mean this kept state of `name` and no other: its label, or its number.
pub fn state_of(name: &str, snapshot: &SnapshotView) -> String {
    match &snapshot.label {
        Some(label) => format!("{name}@{label}"),
        None => format!("{name}@.{}", snapshot.number),
    }
}

/// In words: after which step, or under which name.
fn described(snapshot: &SnapshotView) -> String {
    match (&snapshot.label, snapshot.step) {
        (Some(label), step) => format!("{label} (after step {step})"),
        (None, 0) => "what it was made as".to_owned(),
        (None, step) => format!("step {step}"),
    }
}

/// Keeps the state as it is now.
pub async fn snap(global: &Global, args: SnapArgs) -> Outcome {
    let request = SnapRequest { label: args.label, sync: args.sync, memory: args.memory };
    let snapshot = global.client()?.snap(&args.name, &request).await?;
    if global.json {
        show::json(&snapshot)?;
    } else {
        show::line(&state_of(&args.name, &snapshot))?;
        if snapshot.torn {
            eprintln!("its processes could not be stopped for it: files may be from different moments");
        }
    }
    Ok(0)
}

/// Lists the kept states, or forgets some.
pub async fn snaps(global: &Global, args: SnapsArgs) -> Outcome {
    match &args.words[..] {
        [name] => list(global, name).await,
        [verb, states @ ..] if ["rm", "remove", "delete"].contains(&verb.as_str()) => forget(global, states).await,
        [name, verb, rest @ ..] if ["rm", "remove", "delete"].contains(&verb.as_str()) && !rest.is_empty() => {
            let states: Vec<String> = rest
                .iter()
                .map(|state| if state.contains('@') { state.clone() } else { format!("{name}@{state}") })
                .collect();
            forget(global, &states).await
        }
        [_, word, ..] => Err(Trouble::usage(format_args!("`{word}` is one word too many after a name"))
            .hint("den snaps NAME lists, den snaps rm NAME@STATE forgets")),
        [] => Err(Trouble::usage("no name is given")),
    }
}

async fn list(global: &Global, name: &str) -> Outcome {
    let name = StateArg::parse(name)?.name;
    let snapshots = global.client()?.snapshots(&name).await?;
    if global.json {
        show::json(&snapshots)?;
    } else if snapshots.is_empty() {
        show::line(&format!("no states yet; keep one with: den snap {name}"))?;
    } else {
        let rows = snapshots.iter().map(|snapshot| {
            [
                state_of(&name, snapshot),
                snapshot.step.to_string(),
                snapshot.kind.clone() + if snapshot.torn { ", torn" } else { "" },
                show::age(snapshot.created_at),
                if snapshot.frozen_us == 0 { "-".to_owned() } else { show::took(snapshot.frozen_us as i64) },
            ]
        });
        show::table(["STATE", "STEP", "WHY", "AGE", "FROZEN"], rows)?;
    }
    Ok(0)
}

async fn forget(global: &Global, states: &[String]) -> Outcome {
    if states.is_empty() {
        return Err(Trouble::usage("`rm` wants a state").hint("den snaps rm NAME@STATE"));
    }
    let states = states.iter().map(|text| StateArg::parse(text)).collect::<Result<Vec<_>, _>>()?;
    // All are read before the first goes.
    for state in &states {
        state.needed("`snaps rm`")?;
    }
    let client = global.client()?;
    for state in &states {
        client.drop_snapshot(&state.name, state.state()).await?;
        if global.json {
            show::json_line(&json!({ "removed": state.text() }))?;
        }
    }
    Ok(0)
}

/// Goes back to a state.
pub async fn restore(global: &Global, args: RestoreArgs) -> Outcome {
    let state = StateArg::parse(&args.state)?;
    let request = RestoreRequest { state: state.needed("`restore`")?.to_owned() };
    let view = global.client()?.restore(&state.name, &request).await?;
    if global.json {
        show::json(&view)?;
        return Ok(0);
    }
    let name = &view.computer.name;
    show::line(&format!(
        "{name} is back at {}, kept {} ago; {}; this is step {}",
        described(&view.to),
        show::age(view.to.created_at),
        view.computer.state,
        view.step
    ))?;
    show::line(&format!("undo: den restore {}", state_of(name, &view.before)))?;
    let count = view.sent.len() as u64 + view.sent_more;
    if count > 0 {
        let flows = if count == 1 { "1 flow has".to_owned() } else { format!("{count} flows have") };
        show::line(&format!("not undone: {flows} carried data out since"))?;
        let lines: String = view
            .sent
            .iter()
            .map(|sent| {
                format!("  {:>5}  {:>8}  {}\n", show::age(sent.at), show::size(sent.bytes), show::clean(&sent.to))
            })
            .collect();
        show::print(&lines)?;
        if view.sent_more > 0 {
            show::line(&format!("  {} more: den net log {name}", view.sent_more))?;
        }
    }
    Ok(0)
}
