//! What this host can do, found out by trying, and the command that mends what it cannot.
//!
//! ```text
//! examine(DATA, RUN) ─► kernel · cgroups · disk · devices · net · host ─► Report: one Check a line
//! ```
//!
//! Invariants:
//! - Without root nothing is tried: all would fail for the one reason.
//! - Every check leaves the host as it was: what it makes is unmade, whether it went well or not,
//!   and is made so that the kernel unmakes it if this process is killed (detached mounts, loop
//!   devices that clear themselves, namespaces of children) wherever that is possible.
//! - `fail` means that computers cannot be had; `warn` that something is slower, looser or missing.
//!
//! Not here: changing anything for good.

mod cgroups;
mod command;
mod devices;
mod disk;
mod host;
mod kernel;
mod net;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use command::run;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, less well.
    Warn,
    /// Computers cannot be had like this.
    Fail,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What, in a word or two; a contract.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What that means for computers here; empty where all is well.
    pub means: String,
    /// The command that mends it, where there is one.
    pub fix: Option<String>,
}

/// All checks, in the order in which they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst status of any check.
    pub status: Status,
    /// The checks.
    pub checks: Vec<Check>,
}

/// Whether the text may carry colours: for a terminal, yes; for a pipe, no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// With escape sequences.
    Always,
}

/// Tries everything that Den needs, for a DATA and a RUN that need not exist yet. Takes below two seconds.
pub fn examine(data: &Path, run: &Path) -> Report {
    let rights = kernel::rights();
    if rights.status == Status::Fail {
        // Whatever else failed would only say so again.
        return Report { status: Status::Fail, checks: vec![rights] };
    }
    let near = nearest(data);
    let mut checks = vec![rights];
    checks.extend(kernel::checks(&near));
    checks.extend(cgroups::checks());
    checks.extend(disk::checks(data, &near));
    checks.extend(devices::checks());
    checks.extend(net::checks());
    checks.extend(host::checks(data, run));
    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    Report { status, checks }
}

impl Report {
    /// One line a check, and below it what it means and how to mend it where it is not well.
    pub fn render(&self, colour: Colour) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for check in &self.checks {
            let (word, code) = match check.status {
                Status::Ok => ("ok  ", "32"),
                Status::Warn => ("warn", "33"),
                Status::Fail => ("FAIL", "31"),
            };
            let word = match colour {
                Colour::Always => format!("\x1b[{code}m{word}\x1b[0m"),
                Colour::Never => word.to_owned(),
            };
            let _ = writeln!(text, "{word}  {:width$}  {}", check.name, check.found);
            let indent = " ".repeat(width + 8);
            if !check.means.is_empty() {
                let _ = writeln!(text, "{indent}{}", check.means);
            }
            if let Some(fix) = &check.fix {
                let _ = writeln!(text, "{indent}fix: {fix}");
            }
        }
        text
    }
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), means: String::new(), fix: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), means: means.into(), fix: None }
    }

    fn fail(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), means: means.into(), fix: None }
    }

    fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix = Some(command.into());
        self
    }

    /// From a trial: `ok` with what it found, or `status` with what stood in the way.
    fn tried<E: std::fmt::Display>(
        name: &'static str,
        result: Result<String, E>,
        status: Status,
        means: &str,
        fix: Option<&str>,
    ) -> Self {
        match result {
            Ok(found) => Self::ok(name, found),
            Err(error) => {
                Self { name, status, found: error.to_string(), means: means.to_owned(), fix: fix.map(str::to_owned) }
            }
        }
    }
}

/// The path itself or the closest directory above it that exists: what it will be made in.
fn nearest(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Where a program is, as a shell run by root would find it.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|place| place.join(name)).find(|file| file.is_file())
}

/// The text of a file of one line, such as those below /proc/sys.
fn line(path: impl AsRef<Path>) -> Option<String> {
    fs_err::read_to_string(path.as_ref()).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_line_a_check_with_what_mends_it_below() {
        let checks = vec![
            Check::ok("kernel", "Linux 6.18"),
            Check::warn("swap", "none", "paused computers keep their memory").fix("swapon x"),
        ];
        let report = Report { status: Status::Warn, checks };
        let expected = "\
ok    kernel  Linux 6.18
warn  swap    none
              paused computers keep their memory
              fix: swapon x
";
        assert_eq!(report.render(Colour::Never), expected);
        assert!(report.render(Colour::Always).starts_with("\x1b[32mok  \x1b[0m  kernel"));
    }

    #[test]
    fn an_examination_leaves_nothing_behind_and_is_quick() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        // Only its own: other tests mount at the same time.
        let ours = scratch.path().to_str().unwrap();
        let mounted = || fs_err::read_to_string("/proc/self/mountinfo").unwrap().contains(ours);
        let begun = std::time::Instant::now();
        let report = examine(&scratch.path().join("data"), &scratch.path().join("run"));
        // Two seconds on a machine at rest.
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(report.checks.len() > 1 || report.status == Status::Fail);
        assert!(!mounted());
        assert_eq!(fs_err::read_dir(scratch.path()).unwrap().count(), 0);
        for device in fs_err::read_dir("/sys/block").unwrap() {
            let backing = line(device.unwrap().path().join("loop/backing_file")).unwrap_or_default();
            assert!(!backing.contains(ours), "{backing}");
        }
        let groups = den_sys::cgroup::Hierarchies::find().unwrap();
        for mount in groups.v1.iter().map(|(_, mount)| mount).chain(&groups.unified) {
            assert!(!mount.join(format!("den-doctor-{}", std::process::id())).exists());
        }
    }

    #[test]
    fn a_run_directory_too_deep_for_sockets_is_told() {
        let run = Path::new("/tmp").join("x".repeat(80));
        let check = host::sockets(&run);
        assert_eq!((check.name, check.status), ("run directory", Status::Fail));
        assert!(check.fix.is_some());
    }
}
