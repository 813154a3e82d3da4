//! The words of the command line.

#[cfg(test)]
mod tests;

use std::future::Future;

use clap::{Parser, Subcommand};

use crate::{
    bench, cmd,
    find::Global,
    report::{Outcome, Trouble},
};

/// Computers for AI agents: created in milliseconds, root inside, and they stay.
#[derive(Debug, Parser)]
#[command(
    name = "den",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "First steps: den serve (as root), then: den new web; den exec web -- uname -a\n\
                  Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 124 timed out; exec: the command's own"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon: API, store, computers
    Serve(cmd::serve::ServeArgs),
    /// A computer, running
    #[command(visible_alias = "create")]
    New(cmd::computers::NewArgs),
    /// List computers, or the files of one
    #[command(visible_alias = "list", alias = "ps")]
    Ls(cmd::computers::LsArgs),
    /// One computer: limits, usage, image
    #[command(alias = "inspect", alias = "show")]
    Info(cmd::computers::NameArgs),
    /// Remove computers; den undo brings them back from the trash
    #[command(visible_alias = "delete", alias = "remove", alias = "destroy")]
    Rm(cmd::computers::RmArgs),
    /// What was removed and can come back; empty removes it for good
    #[command(alias = "bin")]
    Trash(cmd::trash::TrashArgs),
    /// Take back the last rm, restore, merge, net or resize
    #[command(alias = "undelete")]
    Undo(cmd::undo::UndoArgs),
    /// Run a command; its output streams, its exit code is den's
    #[command(alias = "run")]
    Exec(cmd::exec::ExecArgs),
    /// A shell
    #[command(alias = "shell", alias = "ssh")]
    Sh(cmd::exec::ShArgs),
    /// Copy files and trees in, out, or from computer to computer
    #[command(alias = "copy")]
    Cp(cmd::cp::CpArgs),
    /// The steps of a computer, or one step's output
    #[command(alias = "logs", alias = "history")]
    Log(cmd::log::LogArgs),
    /// Keep the state of a computer, under a name
    #[command(alias = "snapshot", alias = "commit")]
    Snap(cmd::snap::SnapArgs),
    /// The states of a computer that are kept; rm forgets one
    #[command(alias = "snapshots", alias = "states")]
    Snaps(cmd::snap::SnapsArgs),
    /// New computers that start from a computer, or a state of it
    #[command(alias = "clone", alias = "branch")]
    Fork(cmd::fork::ForkArgs),
    /// What differs between two states: packages, users, services, files
    Diff(cmd::diff::DiffArgs),
    /// A fork's changes into its parent, all or nothing
    Merge(cmd::merge::MergeArgs),
    /// Back to a state, in place; prints what cannot be undone
    #[command(alias = "rollback", alias = "revert")]
    Restore(cmd::snap::RestoreArgs),
    /// Try a command in several forks, score them, keep or merge the best
    Explore(cmd::explore::ExploreArgs),
    /// The step that last changed a file, or each of its lines
    #[command(alias = "annotate")]
    Blame(cmd::blame::BlameArgs),
    /// Files of any state
    Cat(cmd::look::CatArgs),
    /// The tree of any state; --lineage: who was forked from whom
    Tree(cmd::look::TreeArgs),
    /// Lines in the files of any state
    Grep(cmd::look::GrepArgs),
    /// What a path of any state is
    Stat(cmd::look::StatArgs),
    /// Back to a running step
    Attach(cmd::exec::AttachArgs),
    /// Ports of this host that lead to ports inside, loopback-only servers included
    #[command(alias = "port-forward", alias = "fwd")]
    Forward(cmd::forward::ForwardArgs),
    /// What a computer may reach, and what it did reach
    #[command(alias = "network")]
    Net(cmd::net::NetArgs),
    /// Commands that a computer keeps running, restarted when they end
    #[command(aliases = ["services", "svc"], subcommand)]
    Service(cmd::service::ServiceCommand),
    /// What listens inside
    #[command(alias = "port", alias = "listeners")]
    Ports(cmd::ports::PortsArgs),
    /// End all processes of computers; their disks stay
    Stop(cmd::computers::StopArgs),
    /// Boot stopped computers
    Start(cmd::computers::NamesArgs),
    /// Freeze computers, memory kept; a request wakes them
    #[command(alias = "freeze", alias = "suspend", alias = "sleep")]
    Pause(cmd::life::PauseArgs),
    /// Let paused computers go on
    #[command(alias = "unpause", alias = "thaw", alias = "wake")]
    Resume(cmd::life::ResumeArgs),
    /// When a computer sleeps by itself
    Idle(cmd::life::IdleArgs),
    /// Another size for a computer, also while it runs
    #[command(alias = "scale")]
    Resize(cmd::resize::ResizeArgs),
    /// Cut computers off: frozen, no flows, no way in, all kept
    #[command(alias = "quarantine", alias = "isolate")]
    Unplug(cmd::life::UnplugArgs),
    /// Take unplugged computers back
    Replug(cmd::life::ReplugArgs),
    /// What groups of computers share: CPUs, memory, disk
    #[command(alias = "pools", subcommand)]
    Pool(cmd::pool::PoolCommand),
    /// Shared volumes: folders that several computers mount
    #[command(aliases = ["volumes", "vol"], subcommand)]
    Volume(cmd::volume::VolumeCommand),
    /// The interface that E2B's SDKs speak: what they are told, and the key
    #[command(subcommand)]
    E2b(cmd::e2b::E2bCommand),
    /// What computers start from
    #[command(alias = "images", subcommand)]
    Image(cmd::image::ImageCommand),
    /// What all computers use, live: CPU, memory, disk, network, steps
    #[command(alias = "stats", alias = "usage")]
    Top(cmd::top::TopArgs),
    /// What happened: made, failed, out of memory, limits reached, …
    #[command(alias = "event")]
    Events(cmd::events::EventsArgs),
    /// All of it into a folder or S3, incremental; ls, verify, rm
    #[command(alias = "backups")]
    Backup(cmd::backup::BackupArgs),
    /// A house from a backup, into an empty data folder; no daemon runs
    #[command(name = "restore-backup")]
    RestoreBackup(cmd::backup::RestoreArgs),
    /// What this host can do, what it lacks, and what mends it
    Doctor,
    /// Put the program and a systemd unit in their places, and start the daemon
    Install(cmd::install::InstallArgs),
    /// Take program and unit away; the data stays
    Uninstall(cmd::install::UninstallArgs),
    /// Measure the running daemon
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell
    Completions(cmd::misc::CompletionsArgs),
    /// Stop all computers, then the daemon
    Shutdown(cmd::misc::ShutdownArgs),
    /// Who answers: version, data folder, storage
    Version,
    /// Carries the network of all computers; the daemon starts it
    #[command(hide = true)]
    Gate(cmd::gate::GateArgs),
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    match command {
        Command::Serve(args) => cmd::serve::run(&global, args),
        Command::New(args) => client(cmd::computers::new(&global, args)),
        Command::Ls(args) => client(cmd::computers::ls(&global, args)),
        Command::Info(args) => client(cmd::computers::info(&global, args)),
        Command::Rm(args) => client(cmd::computers::rm(&global, args)),
        Command::Trash(args) => client(cmd::trash::run(&global, args)),
        Command::Undo(args) => client(cmd::undo::run(&global, args)),
        Command::Exec(args) => client(cmd::exec::exec(&global, args)),
        Command::Sh(args) => client(cmd::exec::sh(&global, args)),
        Command::Cp(args) => client(cmd::cp::run(&global, args)),
        Command::Log(args) => client(cmd::log::run(&global, args)),
        Command::Snap(args) => client(cmd::snap::snap(&global, args)),
        Command::Snaps(args) => client(cmd::snap::snaps(&global, args)),
        Command::Fork(args) => client(cmd::fork::fork(&global, args)),
        Command::Diff(args) => client(cmd::diff::run(&global, args)),
        Command::Merge(args) => client(cmd::merge::run(&global, args)),
        Command::Restore(args) => client(cmd::snap::restore(&global, args)),
        Command::Explore(args) => client(cmd::explore::run(&global, args)),
        Command::Blame(args) => client(cmd::blame::run(&global, args)),
        Command::Cat(args) => client(cmd::look::cat(&global, args)),
        Command::Tree(args) => client(cmd::look::tree(&global, args)),
        Command::Grep(args) => client(cmd::look::grep(&global, args)),
        Command::Stat(args) => client(cmd::look::stat(&global, args)),
        Command::Attach(args) => client(cmd::exec::attach(&global, args)),
        Command::Forward(args) => client(cmd::forward::run(&global, args)),
        Command::Net(args) => client(cmd::net::run(&global, args)),
        Command::Service(command) => client(cmd::service::run(&global, command)),
        Command::Ports(args) => client(cmd::ports::run(&global, args)),
        Command::Stop(args) => client(cmd::computers::stop(&global, args)),
        Command::Start(args) => client(cmd::computers::start(&global, args)),
        Command::Pause(args) => client(cmd::life::pause(&global, args)),
        Command::Resume(args) => client(cmd::life::resume(&global, args)),
        Command::Idle(args) => client(cmd::life::idle(&global, args)),
        Command::Resize(args) => client(cmd::resize::run(&global, args)),
        Command::Unplug(args) => client(cmd::life::unplug(&global, args)),
        Command::Replug(args) => client(cmd::life::replug(&global, args)),
        Command::Pool(command) => client(cmd::pool::run(&global, command)),
        Command::Volume(command) => client(cmd::volume::run(&global, command)),
        Command::E2b(command) => client(cmd::e2b::run(&global, &command)),
        Command::Image(command) => client(cmd::image::run(&global, command)),
        Command::Top(args) => client(cmd::top::run(&global, args)),
        Command::Events(args) => client(cmd::events::run(&global, args)),
        Command::Backup(args) => client(cmd::backup::run(&global, args)),
        Command::RestoreBackup(args) => cmd::backup::restore(&global, args),
        Command::Doctor => cmd::misc::doctor(&global),
        Command::Install(args) => cmd::install::install(&global, &args),
        Command::Uninstall(args) => cmd::install::uninstall(&global, &args),
        Command::Bench(args) => bench::run(&global, args),
        Command::Completions(args) => cmd::misc::completions(&args),
        Command::Shutdown(args) => client(cmd::misc::shutdown(&global, args)),
        Command::Version => client(cmd::misc::version(&global)),
        Command::Gate(args) => cmd::gate::run(args),
    }
}

/// Runs a client command on this one thread, and ends without waiting for threads that still read.
fn client(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Trouble::io("cannot start the runtime", &error))?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}
