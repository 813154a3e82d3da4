//! Agents as they were: built from the repository's own history, once, and kept under `target/old-agent`.
//!
//! ```text
//! git archive REV ─► target/old-agent/<rev>/tree ─► cargo build, as den's build script does ─► <rev>/den-agent
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fs_err as fs;

/// Agents that computers in the field may still run: what was not there yet, and the commit.
pub const OLD_AGENTS: [(&str, &str); 2] = [
    ("before `Sync`, pause and services", "5a2737a4dba8a9a026b0ebac90f74751bd28df79"),
    ("before pools and hibernation", "7255a8a238fdbcf354505619ca3b55401ccc5410"),
];

/// The program of the agent of a commit, built where it was not yet. Takes a minute then.
///
/// Errors: as text, with what mends it: the commit is not in this clone, or does not build.
pub fn old_agent(commit: &str) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/den-testkit lies two below");
    let folder = root.join("target/old-agent").join(commit);
    let agent = folder.join("den-agent");
    if agent.is_file() {
        return Ok(agent);
    }
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).stderr(Stdio::null()).output();
        output.ok().filter(|output| output.status.success()).map(|output| output.stdout)
    };
    if git(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).is_none() {
        let shallow = git(&["rev-parse", "--is-shallow-repository"]).is_some_and(|said| said.starts_with(b"true"));
        let mend = if shallow { "git fetch --unshallow" } else { "git fetch origin" };
        return Err(format!("the agent of {commit} cannot be built, for this clone has no such commit: {mend}"));
    }
    // Two tests may want it at a time.
    fs::create_dir_all(&folder).map_err(|error| told("a folder for an old agent", &error))?;
    let lock = std::fs::File::create(folder.join("lock")).map_err(|error| told("a lock", &error))?;
    lock.lock().map_err(|error| told("a lock", &error))?;
    if agent.is_file() {
        return Ok(agent);
    }
    let tree = folder.join("tree");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).map_err(|error| told("a folder", &error))?;
    let archive = git(&["archive", commit]).ok_or_else(|| format!("git archive {commit} failed"))?;
    let packed = folder.join("tree.tar");
    fs::write(&packed, archive).map_err(|error| told("the archive", &error))?;
    run(Command::new("tar").arg("xf").arg(&packed).arg("-C").arg(&tree))?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let target = folder.join("target");
    run(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&tree)
        .args(["build", "--locked", "--quiet", "--package", "den-agent", "--profile", "release-agent"])
        .args(["--target", &triple, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_MAKEFLAGS"))?;
    let built = target.join(&triple).join("release-agent/den-agent");
    // Under its name it is whole.
    let half = folder.join("den-agent.new");
    let kept = fs::copy(&built, &half).and_then(|_| fs::rename(&half, &agent));
    kept.map_err(|error| told("an old agent", &error))?;
    let _ = (fs::remove_dir_all(&tree), fs::remove_dir_all(&target), fs::remove_file(&packed));
    Ok(agent)
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} ended with {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
