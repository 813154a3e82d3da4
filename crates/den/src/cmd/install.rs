//! `install` and `uninstall`: the program in its place, and a unit of systemd that runs the daemon.
//!
//! ```text
//! /proc/self/exe ─► PREFIX/bin/den     den.service ─► UNITS ─► systemctl daemon-reload, enable, restart
//! ```
//!
//! What systemd may not do to the daemon: kill what it started (computers, launcher and gate outlive it), or
//! give it mounts of its own (the next daemon would not find the disks that this one mounted). What is passed on
//! to children (no new privileges, system call filters) would be passed on to computers.

use std::{
    fs::Permissions,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use den_api::client::DATA_DEFAULT;

use super::serve::run_folder;
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// The unit's name.
const UNIT: &str = "den.service";
/// Where an operator's units lie.
const UNITS_DEFAULT: &str = "/etc/systemd/system";
/// There where systemd runs the host: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// Capabilities that nothing in Den needs.
const DROPPED: [&str; 12] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_SYSLOG",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_PACCT",
    "CAP_SYS_RAWIO",
    "CAP_SYS_TIME",
    "CAP_WAKE_ALARM",
];

#[derive(Debug, Args)]
#[command(after_help = "Example: sudo den install -- --listen 127.0.0.1:7900\n\
                        A newer den does the same to upgrade: computers go on meanwhile. Settings may lie in\n\
                        /etc/den/den.toml instead. Without systemd it says how to run the daemon.")]
pub struct InstallArgs {
    /// The program goes to DIR/bin
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// The unit goes there; another folder than systemd's own starts nothing
    #[arg(long, value_name = "DIR", default_value = UNITS_DEFAULT)]
    units: PathBuf,
    /// Print the unit, and do nothing
    #[arg(long)]
    print: bool,
    /// Do not start the daemon
    #[arg(long)]
    no_start: bool,
    /// Flags of `den serve`
    #[arg(last = true, value_name = "FLAG")]
    flags: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: sudo den shutdown && sudo den uninstall\nThe data folder stays.")]
pub struct UninstallArgs {
    /// Where the program was put
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Where the unit was put
    #[arg(long, value_name = "DIR", default_value = UNITS_DEFAULT)]
    units: PathBuf,
    /// The daemon's run folder [default: the one that belongs to the data folder]
    #[arg(long, env = "DEN_RUN", hide_env = true, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Also while computers run; nothing stops them then
    #[arg(long)]
    force: bool,
}

/// Puts program and unit in their places, and starts the daemon.
pub fn install(global: &Global, args: &InstallArgs) -> Outcome {
    let program = absolute(&args.prefix)?.join("bin/den");
    let data = absolute(global.data.as_deref().unwrap_or(Path::new(DATA_DEFAULT)))?;
    let unit = unit(&program, &data, &args.flags);
    if args.print {
        show::print(&unit)?;
        return Ok(0);
    }
    need_root()?;
    let own = fs_err::read("/proc/self/exe").map_err(Trouble::new)?;
    let is_there = std::fs::read(&program).is_ok_and(|there| there == own);
    if !is_there {
        write(&program, &own, 0o755)?;
    }
    show::line(&format!("program  {}", program.display()))?;
    let systemd = Path::new(BOOTED).is_dir();
    if !systemd && args.units == Path::new(UNITS_DEFAULT) {
        show::print(&without_systemd(&program, &data, &args.flags))?;
        return Ok(0);
    }
    let path = args.units.join(UNIT);
    write(&path, unit.as_bytes(), 0o644)?;
    show::line(&format!("unit     {}", path.display()))?;
    if systemd && args.units == Path::new(UNITS_DEFAULT) {
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", UNIT])?;
        if !args.no_start {
            // One that runs is replaced; its computers go on.
            systemctl(&["restart", UNIT])?;
            show::line("running  systemctl status den; journalctl -u den")?;
        }
    }
    Ok(0)
}

/// Takes program and unit away again.
pub fn uninstall(global: &Global, args: &UninstallArgs) -> Outcome {
    need_root()?;
    let data = global.data.as_deref().unwrap_or(Path::new(DATA_DEFAULT));
    let launcher = args.run.clone().unwrap_or_else(|| run_folder(data)).join("launcher.sock");
    if !args.force && is_listening(&launcher) {
        return Err(Trouble::new(format_args!("Den still carries computers: {} answers", launcher.display()))
            .hint("den shutdown ends them, and the daemon; their disks stay"));
    }
    let (unit, program) = (args.units.join(UNIT), absolute(&args.prefix)?.join("bin/den"));
    let systemd = Path::new(BOOTED).is_dir() && args.units == Path::new(UNITS_DEFAULT);
    if systemd && unit.exists() {
        systemctl(&["disable", "--now", UNIT])?;
    }
    for path in [&unit, &program] {
        match std::fs::remove_file(path) {
            Ok(()) => show::line(&format!("removed  {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Trouble::io(path.display(), &error)),
        }
    }
    if systemd {
        systemctl(&["daemon-reload"])?;
    }
    show::line(&format!("kept     {}", data.display()))?;
    Ok(0)
}

/// The unit.
fn unit(program: &Path, data: &Path, flags: &[String]) -> String {
    let flags: String = flags.iter().map(|flag| format!(" {}", quoted(flag))).collect();
    let (program, data) = (quoted(&program.to_string_lossy()), quoted(&data.to_string_lossy()));
    let dropped = DROPPED.join(" ");
    format!(
        "[Unit]\n\
         Description=Den, computers for AI agents\n\
         After=network-online.target local-fs.target\n\
         Wants=network-online.target\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         ExecStart={program} serve --data {data}{flags}\n\
         # Computers, the launcher and the gate outlive the daemon, and the next one finds them.\n\
         KillMode=process\n\
         Restart=on-failure\n\
         RestartSec=1\n\
         TimeoutStartSec=120\n\
         TimeoutStopSec=30\n\
         # Computers have cgroups and limits of their own.\n\
         Delegate=yes\n\
         TasksMax=infinity\n\
         LimitNOFILE=1048576\n\
         CapabilityBoundingSet=~{dropped}\n\
         # Not here, and not in a drop-in: anything that gives the daemon mounts of its own (Protect*=, Private*=,\n\
         # ReadOnlyPaths=), for the next one would not find the disks; NoNewPrivileges=, SystemCallFilter= and\n\
         # Restrict*=, which computers would inherit; RuntimeDirectory=, which is removed with the daemon.\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// What to do where systemd does not run the host.
fn without_systemd(program: &Path, data: &Path, flags: &[String]) -> String {
    let flags: String = flags.iter().map(|flag| format!(" {flag}")).collect();
    format!(
        "systemd does not run this host. Have its supervisor run, as root:\n\
         \n  {} serve --data {}{flags}\n\n\
         It ends by SIGTERM to that one process. Processes that it started are left alone: they are the computers,\n\
         and the next daemon finds them.\n",
        program.display(),
        data.display()
    )
}

/// A word of a unit's command line: systemd.service(5), \"Command lines\".
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ';' | '\\'));
    if plain { escaped } else { format!("\"{escaped}\"") }
}

fn need_root() -> Result<(), Trouble> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Trouble::new("program and unit go where only root writes").hint("sudo den install; --print shows the unit"))
}

fn absolute(path: &Path) -> Result<PathBuf, Trouble> {
    std::path::absolute(path).map_err(|error| Trouble::io(path.display(), &error))
}

/// Puts a file in its place whole. A program that runs goes on as it was.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Trouble> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut file =
            tempfile::Builder::new().prefix(".den.").permissions(Permissions::from_mode(0o600)).tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    written().map_err(|error| Trouble::io(path.display(), &error))
}

fn systemctl(args: &[&str]) -> Result<(), Trouble> {
    let said = || format!("systemctl {}", args.join(" "));
    let status = Command::new("systemctl").args(args).status().map_err(|error| Trouble::io(said(), &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Trouble::new(format_args!("{}: {status}", said())).hint("journalctl -u den says why"))
}

/// Whether anyone takes connections at a socket of the launcher.
fn is_listening(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => true,
        // It is there, of packets and not a stream: EPROTOTYPE, which a socket without a listener does not say.
        Err(error) => error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_leaves_computers_alone() {
        let unit = unit(Path::new("/usr/local/bin/den"), Path::new("/var/lib/den"), &["--net=guarded".to_owned()]);
        insta::assert_snapshot!(unit);
        let keys: Vec<_> = unit.lines().filter_map(|line| line.split_once('=')).map(|(key, _)| key).collect();
        for forbidden in ["NoNewPrivileges", "ProtectSystem", "PrivateTmp", "RuntimeDirectory", "SystemCallFilter"] {
            assert!(!keys.contains(&forbidden), "{forbidden}");
        }
    }

    #[test]
    fn words_of_a_command_line_are_quoted() {
        for (word, expected) in [
            ("/var/lib/den", "/var/lib/den"),
            ("/srv/my data", "\"/srv/my data\""),
            ("100%", "100%%"),
            ("$HOME", "$$HOME"),
            ("a\"b", "\"a\\\"b\""),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
