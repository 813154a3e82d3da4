//! Builds the static agent that runs inside every computer, so that `cargo install` alone gives the
//! whole of Den.
//!
//! A cargo of its own runs, with a target folder of its own (the outer cargo holds the lock of the
//! outer one), for another profile and a static C library. `DEN_AGENT_BIN` names one that is built
//! already: for packagers and cross builds.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let crates = Path::new(&var("CARGO_MANIFEST_DIR")).parent().expect("a folder of crates").to_owned();
    println!("cargo::rerun-if-env-changed=DEN_AGENT_BIN");
    let agent = match env::var_os("DEN_AGENT_BIN").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path).canonicalize().expect("DEN_AGENT_BIN names a file");
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build(&crates),
    };
    println!("cargo::rustc-env=DEN_AGENT_PATH={}", agent.display());
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn build(crates: &Path) -> PathBuf {
    let workspace = crates.parent().expect("a workspace");
    for part in [
        "den-agent/src",
        "den-agent/Cargo.toml",
        "den-relay/src",
        "den-relay/Cargo.toml",
        "den-wire/src",
        "den-wire/Cargo.toml",
        "den-sys/src",
        "den-sys/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", crates.join(part).display());
    }
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.toml").display());
    let triple = var("TARGET");
    let target = target_dir();
    let status = Command::new(var("CARGO"))
        .current_dir(workspace)
        .args(["build", "--locked", "--quiet", "--package", "den-agent", "--profile", "release-agent"])
        .args(["--target", &triple, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // What the outer build was told is not meant for this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_MAKEFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "den-agent did not build for {triple}; is its Rust target installed?");
    target.join(triple).join("release-agent/den-agent")
}

/// One folder for all profiles, beside them: `target/agent`. `OUT_DIR` is
/// `target/PROFILE/build/den-HASH/out`, with the triple before the profile in a cross build.
fn target_dir() -> PathBuf {
    let out = PathBuf::from(var("OUT_DIR"));
    let profile = out.ancestors().nth(3).expect("OUT_DIR lies four below the target folder");
    let above = profile.parent().expect("a target folder");
    let target = if above.ends_with(var("TARGET")) { above.parent().unwrap_or(above) } else { above };
    target.join("agent")
}
