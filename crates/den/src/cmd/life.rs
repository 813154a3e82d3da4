//! `pause`, `resume`, `idle`, `unplug`, `replug`.

use clap::Args;
use den_api::{ChangeComputer, ComputerView, PauseComputer, client::ComputerFilter};

use super::computers::each;
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

#[derive(Debug, Args)]
#[command(after_help = "Example: den pause web\nA command, a file, a connection for it wakes it.")]
pub struct PauseArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Write the memory to the disk, where the host can
    #[arg(long)]
    to_disk: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den resume web")]
pub struct ResumeArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den idle web 10m  |  den idle web 2h:stop  |  den idle web off")]
pub struct IdleArgs {
    /// Name or id
    name: String,
    /// 10m, 2h:stop, off; without: what holds
    time: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den unplug web  |  den unplug --all")]
pub struct UnplugArgs {
    /// Names or ids
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All there are, at once
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den replug web")]
pub struct ReplugArgs {
    /// Names or ids
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All that are unplugged
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

fn shown(global: &Global, computer: &ComputerView) -> Result<(), Trouble> {
    if global.json { show::json_line(computer) } else { Ok(()) }
}

/// Has computers stand still.
pub async fn pause(global: &Global, args: PauseArgs) -> Outcome {
    let client = global.client()?;
    let pause = PauseComputer { to_disk: args.to_disk };
    each(&args.names, async |name| shown(global, &client.pause(&name, &pause).await?)).await
}

/// Lets computers go on.
pub async fn resume(global: &Global, args: ResumeArgs) -> Outcome {
    let client = global.client()?;
    each(&args.names, async |name| shown(global, &client.resume(&name).await?)).await
}

/// Says or changes when a computer sleeps by itself.
pub async fn idle(global: &Global, args: IdleArgs) -> Outcome {
    let client = global.client()?;
    let computer = match args.time {
        Some(time) => {
            client
                .change_computer(&args.name, &ChangeComputer { idle: Some(time), ..ChangeComputer::default() })
                .await?
        }
        None => client.computer(&args.name).await?,
    };
    if global.json {
        show::json(&computer)?;
    } else {
        show::line(computer.idle.as_deref().unwrap_or("off"))?;
    }
    Ok(0)
}

/// Cuts computers off.
pub async fn unplug(global: &Global, args: UnplugArgs) -> Outcome {
    let client = global.client()?;
    if args.all {
        let cut = client.unplug_all().await?;
        for computer in &cut.items {
            if global.json { show::json_line(computer)? } else { show::line(&computer.name)? }
        }
        return Ok(0);
    }
    each(&args.names, async |name| shown(global, &client.unplug(&name).await?)).await
}

/// Takes computers back.
pub async fn replug(global: &Global, args: ReplugArgs) -> Outcome {
    let client = global.client()?;
    let names = match args.all {
        false => args.names,
        true => {
            let filter = ComputerFilter { state: Some("unplugged".to_owned()), ..ComputerFilter::default() };
            client.all_computers(&filter).await?.into_iter().map(|computer| computer.id.to_string()).collect()
        }
    };
    each(&names, async |name| shown(global, &client.replug(&name).await?)).await
}
