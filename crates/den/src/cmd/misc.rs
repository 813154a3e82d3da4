//! `completions`, `doctor`, `shutdown`, `version`.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;
use den_api::{ClientError, computer::Shutdown};
use den_model::parse_duration;

use crate::{
    cli::Cli,
    doctor,
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// How long the daemon may take beyond the grace: what was written is flushed to disk.
const SHUTDOWN_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
#[command(after_help = "Example: den completions bash > /etc/bash_completion.d/den")]
pub struct CompletionsArgs {
    /// For which shell
    shell: CompletionShell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den shutdown --grace 10s\nComputers keep their disks; `den start` boots them again.")]
pub struct ShutdownArgs {
    /// Between SIGTERM and SIGKILL inside the computers [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
}

/// Prints a completion script.
pub fn completions(args: &CompletionsArgs) -> Outcome {
    let shell = match args.shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "den", &mut script);
    std::io::stdout().write_all(&script).map_err(|error| Trouble::io("standard output", &error))?;
    Ok(0)
}

/// Says what this host can do.
pub fn doctor(global: &Global) -> Outcome {
    doctor::run(global)
}

/// Stops all computers, then the daemon; returns once it is gone.
pub async fn shutdown(global: &Global, args: ShutdownArgs) -> Outcome {
    let shutdown = Shutdown { grace_ms: args.grace.map(|grace| grace.as_millis() as u64) };
    let client = global.client()?;
    client.shutdown(&shutdown).await?;
    // It answers until all is unmade, launcher, gate and mounts included.
    let since = Instant::now();
    while !matches!(client.version().await, Err(ClientError::Unreachable { .. })) {
        if since.elapsed() > args.grace.unwrap_or_default() + SHUTDOWN_MAX {
            return Err(
                Trouble::new("the daemon was told to end, and still answers").hint("its log says what it waits for")
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(0)
}

/// Says who answers.
pub async fn version(global: &Global) -> Outcome {
    let client = global.client()?;
    let version = client.version().await?;
    if global.json {
        show::json(&version)?;
    } else {
        show::facts(&[
            ("den", env!("CARGO_PKG_VERSION").to_owned()),
            ("daemon", format!("{} at {}", version.version, client.url())),
            ("data", format!("{} on {}", version.data, version.storage)),
            ("husks", version.husks.to_string()),
        ])?;
    }
    Ok(0)
}
