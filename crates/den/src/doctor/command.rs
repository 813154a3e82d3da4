//! `den doctor`: the report as text or JSON, and 1 to the shell where computers cannot be had.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use super::{Colour, Status, examine};
use crate::{
    cmd::serve::run_folder,
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// Examines the host and prints what was found.
pub fn run(global: &Global) -> Outcome {
    let data = global.data.clone().unwrap_or_else(|| PathBuf::from(den_api::client::DATA_DEFAULT));
    let report = examine(&data, &run_folder(&data));
    if global.json {
        show::json(&report)?;
    } else {
        let mut stdout = std::io::stdout().lock();
        let plain = !stdout.is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let text = report.render(if plain { Colour::Never } else { Colour::Always });
        stdout.write_all(text.as_bytes()).map_err(|error| Trouble::io("standard output", &error))?;
    }
    Ok(if report.status == Status::Fail { FAILED } else { 0 })
}
