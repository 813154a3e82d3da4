//! `volume`: folders that several computers mount.

use clap::{Args, Subcommand};
use den_api::{CreateVolume, VolumeView, computer::Amount};

use super::computers::each;
use crate::{find::Global, report::Outcome, report::Trouble, show};

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// The shared volumes, what is in them and who mounts them
    #[command(visible_alias = "list", after_help = "Example: den volume ls --json")]
    Ls,
    /// Make a shared volume
    #[command(visible_alias = "create", after_help = "Example: den volume new models --size 50GiB")]
    New(NewArgs),
    /// One shared volume
    #[command(after_help = "Example: den volume info models")]
    Info(InfoArgs),
    /// Remove shared volumes with all that is in them, for good
    #[command(
        visible_alias = "remove",
        after_help = "Example: den volume rm models\nNo undo. One that a computer mounts stays, also where that lies in the trash."
    )]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub struct NewArgs {
    /// Of a-z, A-Z, 0-9, - and _
    name: String,
    /// What it may hold: 10GiB where nothing is said
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    size: Option<String>,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Its name or id
    name: String,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Does what is asked of shared volumes.
pub async fn run(global: &Global, command: VolumeCommand) -> Outcome {
    let client = global.client()?;
    match command {
        VolumeCommand::Ls => list(global, &client.volumes().await?.items)?,
        VolumeCommand::New(NewArgs { name, size }) => {
            let volume = client.make_volume(&CreateVolume { name, size: size.map(Amount) }).await?;
            if global.json { show::json(&volume)? } else { show::line(&volume.name)? }
        }
        VolumeCommand::Info(InfoArgs { name }) => {
            let volume = client.volume(&name).await?;
            if global.json { show::json(&volume)? } else { info(&volume)? }
        }
        VolumeCommand::Rm(RmArgs { names }) => {
            return each(&names, async |name| {
                client.remove_volume(&name).await?;
                if global.json { show::json_line(&serde_json::json!({ "removed": name })) } else { Ok(()) }
            })
            .await;
        }
    }
    Ok(0)
}

/// `1.0 MiB of 10 GiB`; the second alone where nobody counts.
fn held(volume: &VolumeView) -> String {
    let limit = show::size(volume.size);
    volume.used.map_or(limit.clone(), |used| format!("{} of {limit}", show::size(used)))
}

fn list(global: &Global, volumes: &[VolumeView]) -> Result<(), Trouble> {
    if global.json {
        return show::json(&volumes);
    }
    let row = |volume: &VolumeView| {
        let age = show::age(volume.created_at);
        [volume.name.clone(), held(volume), volume.computers.len().to_string(), age]
    };
    show::table(["NAME", "SIZE", "COMPUTERS", "AGE"], volumes.iter().map(row))
}

fn info(volume: &VolumeView) -> Result<(), Trouble> {
    show::facts(&[
        ("name", volume.name.clone()),
        ("id", volume.id.clone()),
        ("size", held(volume)),
        ("mounted by", volume.computers.join(", ")),
        ("created", format!("{} ago", show::age(volume.created_at))),
    ])
}
