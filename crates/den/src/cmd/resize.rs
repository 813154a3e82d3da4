//! `resize`: another size for a computer that is there.

use clap::Args;
use den_api::{ChangeComputer, ComputerView, computer::Amount};

use crate::{find::Global, report::Outcome, show};

#[derive(Debug, Args)]
#[command(after_help = "Example: den resize web --memory 8G  |  den resize web --cpus 0.5 --disk 40G\n\
                  Nothing inside is ended for it; den undo takes it back.")]
pub struct ResizeArgs {
    /// Name or id
    name: String,
    /// CPUs at most, such as 2 or 0.5
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Memory at most, such as 2G
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Disk at most, beyond the image
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// Processes and threads at most
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
}

/// Gives a computer another size; without one, says what it has.
pub async fn run(global: &Global, args: ResizeArgs) -> Outcome {
    let client = global.client()?;
    let ResizeArgs { name, cpus, memory, disk, pids } = args;
    let change = ChangeComputer {
        cpus: cpus.map(Amount),
        memory: memory.map(Amount),
        disk: disk.map(Amount),
        pids,
        ..ChangeComputer::default()
    };
    let computer = match change == ChangeComputer::default() {
        true => client.computer(&name).await?,
        false => client.change_computer(&name, &change).await?,
    };
    if global.json {
        show::json(&computer)?
    } else {
        show::line(&size(&computer))?
    }
    Ok(0)
}

fn size(c: &ComputerView) -> String {
    let (memory, disk) = (show::size(c.memory.0), show::size(c.disk.0));
    format!("cpus {}, memory {memory}, disk {disk}, processes {}", c.cpus, c.pids)
}
