//! `pool`: what computers share.

use clap::{Args, Subcommand};
use den_api::{ChangePool, CreatePool, PoolView, computer::Amount};

use super::computers::each;
use crate::{find::Global, report::Outcome, report::Trouble, show};

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// The pools, what they have and what is taken
    #[command(visible_alias = "list", after_help = "Example: den pool ls --json")]
    Ls,
    /// Make a pool
    #[command(
        visible_alias = "create",
        after_help = "Example: den pool new team-a --cpus 4 --memory 16G --computers 20\n\
                                              What is left out has no limit. Then: den new web --pool team-a"
    )]
    New(NewArgs),
    /// Give a pool other limits, at once
    #[command(after_help = "Example: den pool set team-a --memory 32G --cpus none\n\
                            none takes a limit away. Less memory, disk or computers than are taken is refused.")]
    Set(SetArgs),
    /// Remove pools that nobody is in
    #[command(visible_alias = "remove", after_help = "Example: den pool rm team-a")]
    Rm(RmArgs),
    /// One pool
    #[command(after_help = "Example: den pool info team-a")]
    Info(InfoArgs),
}

#[derive(Debug, Args)]
pub struct LimitArgs {
    /// CPUs that all of it uses at a time: 4, 0.5
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// Memory limits of all that run, together: 16G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Disk limits of all, the trash with them: 200G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    disk: Option<String>,
    /// Computers
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    computers: Option<String>,
}

impl LimitArgs {
    fn change(self) -> ChangePool {
        let Self { cpus, memory, disk, computers } = self;
        ChangePool {
            cpus: cpus.map(Amount),
            memory: memory.map(Amount),
            disk: disk.map(Amount),
            computers: computers.map(Amount),
        }
    }
}

#[derive(Debug, Args)]
pub struct NewArgs {
    /// A DNS label
    name: String,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Its name
    name: String,
}

/// Does what is asked of pools.
pub async fn run(global: &Global, command: PoolCommand) -> Outcome {
    let client = global.client()?;
    match command {
        PoolCommand::Ls => list(global, &client.pools().await?.items)?,
        PoolCommand::New(NewArgs { name, limits }) => {
            let ChangePool { cpus, memory, disk, computers } = limits.change();
            let pool = client.new_pool(&CreatePool { name, cpus, memory, disk, computers }).await?;
            if global.json { show::json(&pool)? } else { show::line(&pool.name)? }
        }
        PoolCommand::Set(SetArgs { name, limits }) => {
            let change = limits.change();
            if change == ChangePool::default() {
                return Err(Trouble::usage("give at least one of --cpus, --memory, --disk, --computers"));
            }
            let pool = client.change_pool(&name, &change).await?;
            if global.json {
                show::json(&pool)?;
            }
        }
        PoolCommand::Rm(RmArgs { names }) => {
            return each(&names, async |name| {
                client.remove_pool(&name).await?;
                if global.json { show::json_line(&serde_json::json!({ "removed": name })) } else { Ok(()) }
            })
            .await;
        }
        PoolCommand::Info(InfoArgs { name }) => {
            let pool = client.pool(&name).await?;
            if global.json { show::json(&pool)? } else { info(&pool)? }
        }
    }
    Ok(0)
}

/// `3 of 10`, or `3` where there is no limit.
fn of(used: String, limit: Option<String>) -> String {
    match limit {
        Some(limit) => format!("{used} of {limit}"),
        None => used,
    }
}

fn amounts(pool: &PoolView) -> [String; 4] {
    let used = &pool.used;
    [
        of(used.computers.to_string(), pool.computers.map(|most| most.to_string())),
        of(used.cpus.to_string(), pool.cpus.map(|most| most.to_string())),
        of(show::size(used.memory), pool.memory.map(|most| show::size(most.0))),
        of(show::size(used.disk), pool.disk.map(|most| show::size(most.0))),
    ]
}

fn list(global: &Global, pools: &[PoolView]) -> Result<(), Trouble> {
    if global.json {
        return show::json(&pools);
    }
    let row = |pool: &PoolView| {
        let [computers, cpus, memory, disk] = amounts(pool);
        [pool.name.clone(), computers, cpus, memory, disk]
    };
    show::table(["NAME", "COMPUTERS", "CPUS", "MEMORY", "DISK"], pools.iter().map(row))
}

fn info(pool: &PoolView) -> Result<(), Trouble> {
    let [computers, cpus, memory, disk] = amounts(pool);
    let some = |count: u64| if count > 0 { count.to_string() } else { String::new() };
    show::facts(&[
        ("name", pool.name.clone()),
        ("computers", computers),
        ("running", some(pool.used.running)),
        ("in the trash", some(pool.used.trashed)),
        ("cpus", cpus),
        ("memory", memory),
        ("disk", disk),
        ("created", format!("{} ago", show::age(pool.created_at))),
    ])
}
