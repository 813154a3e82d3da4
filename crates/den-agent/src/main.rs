//! The program inside a computer, and the one that starts computers: one static binary, two roles.
//!
//! ```text
//! den-agent init            PID 1 of a computer: reaps, runs commands, serves files
//! den-agent launcher ...    on the host: makes computers, outlives `serve`
//! den-agent revive, hook    on the host, for a moment: reads one back from a disk
//! ```
//!
//! Deliberately absent: secrets, policy, any trust in what is asked beyond its shape.

mod init;
mod launcher;
mod revive;

/// Answered to `--version` and in `Hello`.
pub(crate) const BUILD: &str = env!("CARGO_PKG_VERSION");

fn main() {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let code = match args.first().map(String::as_str) {
        Some("init") => init::main(),
        Some("launcher") => launcher::main(&args[1..]),
        Some("revive") => revive::main(),
        Some("hook") => revive::hook(&args[1..]),
        Some("--version") => {
            println!("den-agent {BUILD}");
            0
        }
        _ => {
            eprintln!("usage: den-agent init | launcher … | --version");
            2
        }
    };
    std::process::exit(code);
}
