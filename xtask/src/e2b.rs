//! `cargo xtask e2b`: E2B's own SDKs, which its tests drive, from their registries into `target/e2b`.

use std::{path::Path, process::Command};

use anyhow::Context as _;

use crate::tools;

/// Versions of the SDK for Python that are tested.
const PYTHON: [&str; 3] = ["2.63.0", "2.50.0", "2.45.0"];
/// Versions of the SDK for JavaScript that are tested.
const JAVASCRIPT: [&str; 3] = ["2.51.0", "2.50.0", "2.45.0"];

/// Connect's own client for JavaScript, with the SDK whose descriptors it goes by.
const BINARY_JAVASCRIPT: (&str, &str) = ("2.2.0", "2.51.0");

/// Versions of the code interpreter's SDKs that are tested, each with the SDK below it: the newest, the oldest that
/// take one address for all, and one that goes by names.
const CODE_PYTHON: [(&str, &str); 3] = [("2.11.5", "2.63.0"), ("2.9.2", "2.45.0"), ("2.4.1", "2.13.3")];
const CODE_JAVASCRIPT: [(&str, &str); 2] = [("2.8.0", "2.51.0"), ("2.7.0", "2.45.0")];

/// Versions of the desktop's SDKs that are tested, likewise. Python's before 2.5 does not wait for the desktop.
const DESKTOP_PYTHON: [(&str, &str); 2] = [("2.7.2", "2.63.0"), ("2.4.4", "2.45.0")];
const DESKTOP_JAVASCRIPT: [(&str, &str); 2] = [("2.4.0", "2.51.0"), ("2.3.3", "2.45.0")];

/// The version of E2B's command line that is tested.
const COMMAND_LINE: &str = "2.19.0";

/// Installs those that are missing.
pub fn ensure() -> anyhow::Result<()> {
    let root = tools::root().join("target/e2b");
    std::fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
    for version in PYTHON {
        python(&root.join(format!("py-{version}")), &[format!("e2b=={version}")])?;
    }
    for (version, below) in CODE_PYTHON {
        let packages = [format!("e2b-code-interpreter=={version}"), format!("e2b=={below}")];
        python(&root.join(format!("code-py-{version}")), &packages)?;
    }
    for (version, below) in DESKTOP_PYTHON {
        let packages = [format!("e2b-desktop=={version}"), format!("e2b=={below}"), "websockets".to_owned()];
        python(&root.join(format!("desktop-py-{version}")), &packages)?;
    }
    for version in JAVASCRIPT {
        javascript(&root.join(format!("js-{version}")), &["ws".to_owned(), format!("e2b@{version}")])?;
    }
    let (connect, version) = BINARY_JAVASCRIPT;
    let packages = [format!("@connectrpc/connect-node@{connect}"), format!("e2b@{version}")];
    javascript(&root.join(format!("binary-js-{version}")), &packages)?;
    for (version, below) in CODE_JAVASCRIPT {
        let packages = [format!("@e2b/code-interpreter@{version}"), format!("e2b@{below}")];
        javascript(&root.join(format!("code-js-{version}")), &packages)?;
    }
    for (version, below) in DESKTOP_JAVASCRIPT {
        let packages = [format!("@e2b/desktop@{version}"), format!("e2b@{below}"), "ws".to_owned()];
        javascript(&root.join(format!("desktop-js-{version}")), &packages)?;
    }
    javascript(&root.join(format!("cli-{COMMAND_LINE}")), &[format!("@e2b/cli@{COMMAND_LINE}")])
}

fn python(place: &Path, packages: &[String]) -> anyhow::Result<()> {
    // The last that is put there, so that one that broke off is made again.
    if place.join("ready").exists() {
        return Ok(());
    }
    tools::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(place))?;
    tools::run(Command::new(place.join("bin/pip")).args(["install", "--quiet", "pytest"]).args(packages))?;
    Ok(std::fs::write(place.join("ready"), packages.join(" "))?)
}

fn javascript(place: &Path, packages: &[String]) -> anyhow::Result<()> {
    if place.join("ready").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(place)?;
    std::fs::write(place.join("package.json"), "{\"private\":true}")?;
    let words = ["install", "--silent", "--no-audit", "--no-fund"];
    tools::run(Command::new("npm").current_dir(place).args(words).args(packages))?;
    Ok(std::fs::write(place.join("ready"), packages.join(" "))?)
}
