//! A house that moves: made on this host, backed up, restored in the machine under another kernel and cgroup v2.
//!
//! ```text
//! den serve ─► moved.sh make ─► facts of its computers ─┐
//!     │                                                 ├─► the machine's disk ─► restore-backup ─► the same facts
//!     └─► den backup ───────────────────────────────────┘
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;

use super::disk::MOVED;
use crate::{daemon::Daemon, tools};

/// Makes the house in `folder`, of computers from the image `tar`; the folder with its backup and facts.
pub fn make(folder: &Path, den: &Path, tar: &Path) -> anyhow::Result<PathBuf> {
    let (home, moved) = (folder.join("home"), folder.join("moved"));
    fs::create_dir(&home)?;
    fs::create_dir(&moved)?;
    let script = folder.join("moved.sh");
    fs::write(&script, MOVED)?;
    let daemon = Daemon::start(den, &home.join("data"), &home.join("run"), &home.join("images"), "127.0.0.1:0")?;
    let made = tools::run(
        Command::new("bash")
            .arg(&script)
            .arg(tar)
            .arg(&moved)
            .env("DEN", den)
            .env("DEN_DATA", &daemon.data)
            .env_remove("DEN_URL")
            .env_remove("DEN_TOKEN"),
    );
    daemon.stop()?;
    made?;
    fs::remove_dir_all(&home)?;
    Ok(moved)
}
