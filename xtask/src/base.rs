//! The image `base`, built once and kept for all.

use std::path::Path;

use den_testkit::images;

use crate::{daemon::Daemon, tools};

/// Where the shared image store lies.
pub fn store() -> &'static Path {
    Path::new(images::SHARED)
}

/// Builds `base` into the shared store if it is not there. Takes some minutes.
pub fn ensure(den: &Path) -> anyhow::Result<()> {
    if images::has_base(store()) {
        return Ok(());
    }
    tools::need_root("building an image")?;
    eprintln!("building the image `base` into {}, once …", store().display());
    let folder = tempfile::Builder::new().prefix("den-base-").tempdir()?;
    let (data, run) = (folder.path().join("data"), folder.path().join("run-base"));
    let daemon = Daemon::start(den, &data, &run, store(), "127.0.0.1:0")?;
    build_with(&daemon)?;
    daemon.stop()?;
    Ok(())
}

/// Builds `base` with a daemon that runs.
fn build_with(daemon: &Daemon) -> anyhow::Result<()> {
    tools::run(&mut daemon.den(&["image", "build", "base"]))
}
