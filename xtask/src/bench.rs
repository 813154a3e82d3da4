//! `cargo xtask bench`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fs_err as fs;
use serde_json::Value;

use crate::{base, daemon::Daemon, packages, tools};

/// A dockerd that has not answered by then does not start.
const DOCKER_START_MAX: Duration = Duration::from_secs(60);

/// Where the download's server is, on the host itself: nobody's address (RFC 5737), which computers are let to.
const OPENED: &str = "192.0.2.253:7790";
/// Lines of README between which the table goes.
const MARKS: [&str; 2] = ["<!-- bench: made by `cargo xtask bench --readme` -->", "<!-- bench: end -->"];

/// `cargo xtask bench`
#[derive(Debug, clap::Args)]
pub struct BenchTaskArgs {
    /// What to measure [default: all]
    names: Vec<String>,
    /// podman, docker or none
    #[arg(long, default_value = "podman", value_parser = ["podman", "docker", "none"])]
    rival: String,
    /// Put the table into README.md
    #[arg(long)]
    readme: bool,
    /// Fewer runs of each measure
    #[arg(long)]
    runs: Option<u32>,
    /// This program in place of a build of what is here
    #[arg(long, value_name = "PROGRAM")]
    den: Option<std::path::PathBuf>,
}

/// Measures on a daemon of its own; the table to the terminal, the JSON into target/bench.json.
pub fn run(args: &BenchTaskArgs) -> anyhow::Result<()> {
    tools::need_root("cargo xtask bench")?;
    packages::need(packages::BUILD)?;
    packages::need(packages::RUN)?;
    if args.rival != "none" {
        packages::need(packages::RIVALS)?;
    }
    let den = match &args.den {
        Some(den) => den.clone(),
        None => tools::build(tools::Profile::Release)?,
    };
    base::ensure(&den)?;
    let folder = tempfile::Builder::new().prefix("den-xbench-").tempdir_in("/var/tmp")?;
    let name = folder.path().file_name().context("a name")?.to_string_lossy().into_owned();
    let run = Path::new("/tmp").join(format!("{name}-run"));
    let docker = match args.rival.as_str() {
        "docker" => Some(Docker::start(&folder.path().join("docker"))?),
        _ => None,
    };
    let data = folder.path().join("data");
    let daemon = Daemon::start_with(&den, &data, &run, base::store(), "127.0.0.1:0", &["--private", OPENED])?;
    let mut command = daemon.den(&["bench", "--json", "--rival", &args.rival]);
    // Those with a thousand computers start a daemon of their own.
    command.arg("--images").arg(base::store()).args(&args.names).stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(runs) = args.runs {
        command.args(["--runs", &runs.to_string()]);
    }
    if let Some(docker) = &docker {
        command.env("DOCKER_HOST", &docker.host);
    }
    let output = command.output().context("cannot start den bench")?;
    let left = daemon.stop()?;
    drop(docker);
    let _ = fs::remove_dir_all(&run);
    ensure!(output.status.success(), "den bench ended with {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("den bench printed no JSON")?;
    let table = table(&report, &args.rival);
    println!("{table}");
    let target = tools::root().join("target");
    fs::create_dir_all(&target)?;
    let target = target.join("bench.json");
    fs::write(&target, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("JSON: {}", target.display());
    if args.readme {
        put_into_readme(&table)?;
    }
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    Ok(())
}

/// The report as markdown.
fn table(report: &Value, rival: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let figure = |value: &Value| match value.as_f64() {
        Some(v) if v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) => format!("{v:.2}"),
        None => String::new(),
    };
    let mut out = String::new();
    let machine = &report["machine"];
    out.push_str(&format!(
        "`cargo xtask bench --rival {rival}` on {} cores ({}), {} MiB, kernel {}, storage {}, page cache {}, load {} at the start.\n\n",
        machine["cores"],
        text(&machine["cpu"]),
        machine["memory_mib"],
        text(&machine["kernel"]),
        text(&machine["storage"]),
        text(&machine["page_cache"]),
        machine["load"],
    ));
    out.push_str(
        "| measure | unit | n | min | p50 | p99 | goal | | rival p50 |\n|---|---|--:|--:|--:|--:|---|---|--:|\n",
    );
    for row in report["results"].as_array().into_iter().flatten() {
        let (goal, met) = match &row["goal"] {
            Value::Null => (String::new(), ""),
            goal => (text(&goal["text"]), if goal["met"] == true { "met" } else { "**missed**" }),
        };
        out.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {goal} | {met} | {} |\n",
            text(&row["name"]),
            text(&row["unit"]),
            row["n"],
            figure(&row["min"]),
            figure(&row["p50"]),
            figure(&row["p99"]),
            figure(&row["rival"]["p50"]),
        ));
    }
    out.push('\n');
    for row in report["results"].as_array().into_iter().flatten() {
        let command = match &row["rival"]["command"] {
            Value::String(command) => format!("; rival: `{command}`"),
            _ => String::new(),
        };
        out.push_str(&format!("- `{}`: {}{command}\n", text(&row["name"]), text(&row["note"])));
    }
    let who = report["results"].as_array().into_iter().flatten().find_map(|row| row["rival"]["name"].as_str());
    if let Some(who) = who {
        out.push_str(&format!(
            "\nRival: {who}. What had to be switched off for it: {}.\n",
            text(&report["rival_note"])
        ));
    }
    out
}

fn put_into_readme(table: &str) -> anyhow::Result<()> {
    let path = tools::root().join("README.md");
    let readme = fs::read_to_string(&path)?;
    let (before, rest) = readme.split_once(MARKS[0]).with_context(|| format!("README.md has no line {}", MARKS[0]))?;
    let (_, after) = rest.split_once(MARKS[1]).with_context(|| format!("README.md has no line {}", MARKS[1]))?;
    fs::write(path, format!("{before}{}\n\n{table}\n{}{after}", MARKS[0], MARKS[1]))?;
    Ok(())
}

/// A docker daemon of our own, without network, on its own folders.
struct Docker {
    child: Child,
    host: String,
}

impl Docker {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let socket = folder.join("docker.sock");
        let host = format!("unix://{}", socket.display());
        let log = fs::File::create(folder.join("log"))?.into_parts().0;
        let child = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false"])
            .args(["--storage-driver", "overlay2", "--host", &host])
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start dockerd")?;
        let docker = Self { child, host };
        let since = Instant::now();
        while !Command::new("docker")
            .args(["info"])
            .env("DOCKER_HOST", &docker.host)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?
            .success()
        {
            ensure!(
                since.elapsed() < DOCKER_START_MAX,
                "dockerd does not answer; see {}",
                folder.join("log").display()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(docker)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
