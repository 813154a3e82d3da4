//! The rival: podman or docker, with the root of the same image, on the same machine.
//!
//! Its root comes out of a computer as a tar and goes into `import`. Podman gets folders of its own,
//! so nothing of the user's is touched; docker is the daemon that DOCKER_HOST names, and the image
//! and containers of this run are removed at the end.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};

use super::{
    Bench, flow,
    machine::occupied_kib,
    report::{RivalMeasure, millis, rank},
};

/// The image and the prefix of containers.
const IMAGE: &str = "den-bench";
/// Enough for `true`; a rival without CAP_SYS_RESOURCE may not raise its limits, only lower them.
const ULIMITS: [&str; 4] = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"];
/// How many of its processes start at the same time when a hundred are made.
const PARALLEL: usize = 4;

/// Who is measured beside Den.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Debian's podman, with the first of crun and runc that starts a container here
    Podman,
    /// The docker daemon that DOCKER_HOST names
    Docker,
    /// Nobody
    None,
}

/// A rival that starts containers here.
pub struct Rival {
    name: String,
    /// What had to be switched off, and in which words it is called.
    pub note: String,
    /// The program and its global flags.
    program: Vec<String>,
    /// Flags of `run`.
    flags: Vec<String>,
    folder: Option<tempfile::TempDir>,
    cgroups_before: Vec<PathBuf>,
    hundred: Option<(f64, f64)>,
}

impl Rival {
    /// Imports the root of `computer` and finds flags with which a container starts.
    pub async fn prepare(kind: Kind, bench: &Bench, computer: &str) -> anyhow::Result<Self> {
        let cgroups_before = cgroups();
        let folder = tempfile::Builder::new().prefix("den-bench-rival-").tempdir_in("/var/tmp")?;
        let root = folder.path().join("root.tar");
        let mut tar = bench.den(&["exec", computer, "--", "tar", "--one-file-system", "-C", "/", "-cf", "-", "."])?;
        let status = tar.stdin(Stdio::null()).stdout(File::create(&root)?).stderr(Stdio::null()).status()?;
        // tar ends with 1 where a file changed while it was read.
        anyhow::ensure!(matches!(status.code(), Some(0 | 1)), "the root of `{computer}` did not come out: {status}");
        let result = Self::find(kind, folder.path(), &root);
        fs_err::remove_file(&root)?;
        let (name, program, flags, note) = result?;
        Ok(Self { name, note, program, flags, folder: Some(folder), cgroups_before, hundred: None })
    }

    fn find(kind: Kind, folder: &Path, root: &Path) -> anyhow::Result<(String, Vec<String>, Vec<String>, String)> {
        let plain = vec!["--network".to_owned(), "none".to_owned()];
        let lowered: Vec<String> = plain.iter().cloned().chain(ULIMITS.map(str::to_owned)).collect();
        let mut candidates = Vec::new();
        match kind {
            Kind::Podman => {
                for runtime in ["crun", "runc"] {
                    let mut program = vec!["podman".to_owned()];
                    for (flag, value) in [("--root", "root"), ("--runroot", "run")] {
                        program.extend([flag.to_owned(), folder.join(value).to_string_lossy().into_owned()]);
                    }
                    program.extend(["--storage-driver", "overlay", "--runtime", runtime].map(str::to_owned));
                    if !Path::new("/run/systemd/system").exists() {
                        program.extend(["--cgroup-manager", "cgroupfs"].map(str::to_owned));
                    }
                    candidates.push((format!("podman with {runtime}"), program.clone(), plain.clone()));
                    candidates.push((format!("podman with {runtime}, ulimits lowered"), program, lowered.clone()));
                }
            }
            Kind::Docker => {
                let program = vec!["docker".to_owned()];
                candidates.push(("docker".to_owned(), program.clone(), plain));
                candidates.push(("docker, ulimits lowered".to_owned(), program, lowered));
            }
            Kind::None => bail!("no rival"),
        }
        call(&candidates[0].1, &["import", &root.to_string_lossy(), IMAGE]).context("the rival takes no image")?;
        let mut refusals = Vec::new();
        for (name, program, flags) in candidates {
            let mut words = vec!["run", "--rm"];
            words.extend(flags.iter().map(String::as_str));
            words.extend([IMAGE, "true"]);
            match call(&program, &words) {
                Ok(_) => {
                    let version = call(&program, &["--version"])?;
                    let runtime = if name.contains("crun") { "crun" } else { "runc" };
                    let runtime = call(&[runtime.to_owned()], &["--version"]).unwrap_or_default();
                    let full = format!("{} ({})", version.trim(), runtime.lines().next().unwrap_or_default());
                    let mut note = format!("{name}; run {}", flags.join(" "));
                    if !refusals.is_empty() {
                        note.push_str(&format!("; did not start here: {}", refusals.join("; ")));
                    }
                    return Ok((full, program, flags, note));
                }
                Err(error) => refusals.push(format!("{name} ({error:#})")),
            }
        }
        bail!("no way was found to start a container: {}", refusals.join("; "))
    }

    /// The rival's figure for a measure; none where it has nothing alike.
    pub async fn measure(&mut self, name: &str, bench: &Bench) -> anyhow::Result<Option<RivalMeasure>> {
        let short = bench.runs(20);
        let (command, values) = match name {
            "create" => {
                let values = self.times(short, |rival, number| {
                    let container = format!("{IMAGE}-{number}");
                    let time = rival.started(&container)?;
                    rival.remove(&[&container])?;
                    Ok(time)
                })?;
                ("run -d IMAGE sleep infinity", values)
            }
            "create_exec" => {
                ("run --rm IMAGE true", self.times(short, |rival, _| rival.run(&["--rm", IMAGE, "true"]))?)
            }
            "remove" => {
                let values = self.times(short, |rival, number| {
                    let container = format!("{IMAGE}-{number}");
                    rival.started(&container)?;
                    rival.remove(&[&container])
                })?;
                ("rm -f NAME, killed at once", values)
            }
            "exec_cli" => {
                self.started(IMAGE)?;
                let values = self.times(bench.runs(50), |rival, _| rival.timed(&["exec", IMAGE, "true"]));
                self.remove(&[IMAGE])?;
                ("exec NAME true", values?)
            }
            "snapshot" => self.commits(short.min(5), false)?,
            "fork" => self.commits(short.min(5), true)?,
            "create_100" => ("run -d, 100 times, 4 at once", vec![self.hundred()?.0]),
            "idle_memory_mib" => ("run -d IMAGE sleep infinity, 100 of them", vec![self.hundred()?.1]),
            "cp_in_mb_s" | "cp_out_mb_s" => {
                let file = flow::payload(bench.args.copy_mib)?;
                let rates = self.copies(name == "cp_in_mb_s", file.path(), bench.args.copy_mib)?;
                ("cp", vec![rates])
            }
            "output_mb_s" => {
                ("exec NAME head -c N /dev/zero", vec![self.output(u64::from(bench.args.copy_mib.min(960)) << 20)?])
            }
            _ => return Ok(None),
        };
        let mut sorted = values;
        sorted.sort_by(f64::total_cmp);
        let p50 = (rank(&sorted, 0.5) * 100.0).round() / 100.0;
        Ok(Some(RivalMeasure { name: self.name.clone(), command: command.to_owned(), n: sorted.len(), p50 }))
    }

    /// Takes away what it left.
    pub fn close(self) {}

    fn times(&self, runs: u32, mut one: impl FnMut(&Self, u32) -> anyhow::Result<f64>) -> anyhow::Result<Vec<f64>> {
        (0..runs).map(|number| one(self, number)).collect()
    }

    fn call(&self, words: &[&str]) -> anyhow::Result<String> {
        call(&self.program, words)
    }

    fn timed(&self, words: &[&str]) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.call(words)?;
        Ok(millis(start))
    }

    /// Times `run` with the flags that work here.
    fn run(&self, words: &[&str]) -> anyhow::Result<f64> {
        let mut all = vec!["run"];
        all.extend(self.flags.iter().map(String::as_str));
        all.extend(words);
        self.timed(&all)
    }

    fn started(&self, container: &str) -> anyhow::Result<f64> {
        self.run(&["-d", "--name", container, IMAGE, "sleep", "infinity"])
    }

    /// Times the removal of containers, without the seconds that podman gives PID 1 to end by itself.
    fn remove(&self, containers: &[&str]) -> anyhow::Result<f64> {
        let mut words = vec!["rm", "-f"];
        if self.program[0] == "podman" {
            words.extend(["-t", "0"]);
        }
        words.extend(containers);
        self.timed(&words)
    }

    /// Times `commit` of a running container, with `then` also a container that starts from it; paused
    /// where the rival can pause here.
    fn commits(&self, runs: u32, then: bool) -> anyhow::Result<(&'static str, Vec<f64>)> {
        let image = format!("{IMAGE}-kept");
        self.started(IMAGE)?;
        let one = |pause: &str| -> anyhow::Result<f64> {
            self.call(&["exec", IMAGE, "sh", "-c", "date > /root/last"])?;
            let mut time = self.timed(&["commit", pause, IMAGE, &image])?;
            if then {
                time += self.run(&["--rm", &image, "true"])?;
            }
            self.call(&["rmi", "-f", &image])?;
            Ok(time)
        };
        let pauses = one("--pause=true").is_ok();
        let pause = if pauses { "--pause=true" } else { "--pause=false" };
        let values: anyhow::Result<Vec<f64>> = (0..runs).map(|_| one(pause)).collect();
        self.remove(&[IMAGE])?;
        let words = match (then, pauses) {
            (false, true) => "commit NAME, paused",
            (false, false) => "commit --pause=false NAME",
            (true, true) => "commit NAME, paused; run --rm of it, true",
            (true, false) => "commit --pause=false NAME; run --rm of it, true",
        };
        Ok((words, values?))
    }

    /// Makes and removes a hundred, once: milliseconds, and MiB of memory each.
    fn hundred(&mut self) -> anyhow::Result<(f64, f64)> {
        if let Some(known) = self.hundred {
            return Ok(known);
        }
        let measured = self.measure_hundred()?;
        self.hundred = Some(measured);
        Ok(measured)
    }

    fn measure_hundred(&self) -> anyhow::Result<(f64, f64)> {
        let before = occupied_kib();
        let start = Instant::now();
        let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..PARALLEL)
                .map(|worker| {
                    scope.spawn(move || {
                        for number in (worker..100).step_by(PARALLEL) {
                            self.started(&format!("{IMAGE}-{number}"))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
        });
        let time = millis(start);
        std::thread::sleep(std::time::Duration::from_secs(3));
        let used = (occupied_kib() as f64 - before as f64) / 1024.0 / 100.0;
        let names: Vec<String> = (0..100).map(|number| format!("{IMAGE}-{number}")).collect();
        let removed = self.remove(&names.iter().map(String::as_str).collect::<Vec<_>>());
        results.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
        removed?;
        Ok((time, used))
    }

    fn copies(&self, inward: bool, file: &Path, mib: u32) -> anyhow::Result<f64> {
        self.started(IMAGE)?;
        let inside = format!("{IMAGE}:/root/payload");
        let path = file.to_string_lossy();
        let mut result = self.timed(&["cp", &path, &inside]);
        if !inward {
            let folder = tempfile::Builder::new().prefix("den-bench-").tempdir_in("/var/tmp")?;
            let to = folder.path().join("payload");
            result = result.and_then(|_| self.timed(&["cp", &inside, &to.to_string_lossy()]));
        }
        self.remove(&[IMAGE])?;
        Ok((u64::from(mib) << 20) as f64 / (result? / 1e3) / 1e6)
    }

    fn output(&self, bytes: u64) -> anyhow::Result<f64> {
        self.started(IMAGE)?;
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(["exec", IMAGE, "head", "-c", &bytes.to_string(), "/dev/zero"]);
        let start = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().context("its output")?;
        let got = std::io::copy(&mut stdout, &mut std::io::sink())?;
        child.wait()?;
        let seconds = start.elapsed().as_secs_f64();
        self.remove(&[IMAGE])?;
        anyhow::ensure!(got == bytes, "{got} of {bytes} bytes of the rival's output came");
        Ok(got as f64 / seconds / 1e6)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let left = self.call(&["ps", "-aq", "--filter", &format!("name={IMAGE}")]).unwrap_or_default();
        for container in left.split_whitespace() {
            let _ = self.remove(&[container]);
        }
        let _ = self.call(&["rmi", "-f", IMAGE]);
        if let Some(folder) = self.folder.take() {
            if self.program[0] == "podman" {
                let _ = rustix::mount::unmount(folder.path().join("root/overlay"), rustix::mount::UnmountFlags::DETACH);
            }
            let _ = folder.close();
        }
        for dir in cgroups().into_iter().filter(|dir| !self.cgroups_before.contains(dir)) {
            remove_empty(&dir);
        }
    }
}

/// The cgroups that podman and docker make beside each other's and leave there.
fn cgroups() -> Vec<PathBuf> {
    let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    roots
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .flat_map(|root| ["libpod_parent", "docker"].map(|name| root.join(name)))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Removes a cgroup and those below it as far as they are empty.
fn remove_empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

fn call(program: &[String], words: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(&program[0])
        .args(&program[1..])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", program[0]))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{} {}`: {}", program[0], words.first().unwrap_or(&""), said.lines().last().unwrap_or_default().trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
