//! `ports`: what listens inside a computer.

use clap::Args;

use crate::{find::Global, report::Outcome, show};

/// How much of a command is shown in a line, in characters.
const COMMAND_CHARS: usize = 60;

#[derive(Debug, Args)]
#[command(after_help = "Example: den ports web\n\
                        Columns: port, protocol, address, process, command. `den forward` reaches TCP ports.")]
pub struct PortsArgs {
    /// Name or id
    name: String,
}

/// Shows what listens.
pub async fn run(global: &Global, args: PortsArgs) -> Outcome {
    let ports = global.client()?.ports(&args.name).await?;
    if global.json {
        show::json(&ports)?;
    } else if ports.is_empty() {
        show::line("nothing listens")?;
    } else {
        let rows = ports.into_iter().map(|port| {
            let command = match (port.argv.is_empty(), port.command) {
                (false, _) => show::command(&port.argv, COMMAND_CHARS),
                (true, Some(command)) => show::command(&[command], COMMAND_CHARS),
                (true, None) => "-".to_owned(),
            };
            let pid = port.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            [port.port.to_string(), port.protocol, port.address, pid, command]
        });
        show::table(["PORT", "PROTO", "ADDRESS", "PID", "COMMAND"], rows)?;
    }
    Ok(0)
}
