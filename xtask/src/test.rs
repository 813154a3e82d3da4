//! `cargo xtask test`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::{base, criu, e2b, packages, room, tools, vm};

/// `cargo xtask test`
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Only tests whose name has this
    filter: Vec<String>,
    /// Tests only: no formatting, no clippy, no machine with cgroup v2
    #[arg(long)]
    quick: bool,
    /// Without the suite `computer`, E2B's SDKs and the machine with cgroup v2, which need package registries and
    /// some minutes
    #[arg(long)]
    local: bool,
}

/// Runs everything and prints `N passed, N failed` as the last line.
pub fn run(args: &TestArgs) -> anyhow::Result<()> {
    tools::need_root("cargo xtask test")?;
    let since = Instant::now();
    room::look()?;
    for list in [packages::BUILD, packages::RUN, packages::TEST] {
        packages::need(list)?;
    }
    let mut counts = Counts::default();
    if !args.quick && args.filter.is_empty() {
        counts.check("formatting", tools::cargo().args(["fmt", "--all", "--check"]))?;
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
        counts.check("clippy", tools::cargo().args(clippy))?;
    }
    let den = tools::build(tools::Profile::Dev)?;
    base::ensure(&den)?;
    criu::ensure()?;
    if !args.local {
        e2b::ensure()?;
    }
    // One suite after the other, so that a fixture's daemon has the machine to itself but for one more.
    counts.suite(&args.filter, args.local)?;
    if !args.quick && !args.local && args.filter.is_empty() {
        counts.machine(&den);
    }
    println!("{} passed, {} failed ({} s)", counts.passed, counts.failed, since.elapsed().as_secs());
    if counts.failed > 0 {
        bail!("{} failed", counts.failed);
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    /// A check that counts as one test.
    fn check(&mut self, what: &str, command: &mut Command) -> anyhow::Result<()> {
        eprintln!("{what} …");
        match command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {what}"))?.success() {
            true => self.passed += 1,
            false => {
                self.failed += 1;
                eprintln!("{what} FAILED");
            }
        }
        Ok(())
    }

    /// The session in a machine with another kernel and cgroup v2, each of its checks a test. One that breaks off,
    /// or cannot be had, is one that failed.
    fn machine(&mut self, den: &Path) {
        if !cfg!(target_arch = "x86_64") {
            eprintln!("no session on cgroup v2: its machine is an x86_64 one");
            return;
        }
        eprintln!("a session on cgroup v2 …");
        let since = Instant::now();
        match vm::of_tests(den) {
            Ok((passed, failed)) => {
                self.passed += u64::from(passed);
                self.failed += u64::from(failed);
                eprintln!("{passed} passed, {failed} failed on cgroup v2 ({} s)", since.elapsed().as_secs());
            }
            Err(error) => {
                self.failed += 1;
                eprintln!("the session on cgroup v2 FAILED: {error:#}");
            }
        }
    }

    /// All tests of the workspace, by nextest where it is at hand: it runs each in a process of its
    /// own and two at a time; by `cargo test` elsewhere.
    fn suite(&mut self, filter: &[String], local: bool) -> anyhow::Result<()> {
        let nextest = tools::cargo()
            .args(["nextest", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let mut command = tools::cargo();
        if nextest {
            command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--test-threads", "2"]);
            command.args(["--status-level", "fail", "--final-status-level", "fail", "--no-tests", "warn"]);
            command.args(filter).stderr(Stdio::piped());
            if local {
                command.args(["--", "--skip", "computer::", "--skip", "python_", "--skip", "javascript_"]);
            }
        } else {
            command.args(["test", "--workspace", "--no-fail-fast", "--quiet"]);
            command.args(filter).args(["--", "--test-threads", "2"]).stdout(Stdio::piped());
            if local {
                command.args(["--skip", "computer::", "--skip", "python_", "--skip", "javascript_"]);
            }
        }
        let mut child = command.stdin(Stdio::null()).spawn().context("cannot start the tests")?;
        let mut seen = false;
        let mut pass = |counts: &mut Self, line: &str| {
            if let Some((passed, failed)) = summary(line) {
                counts.passed += passed;
                counts.failed += failed;
                seen = true;
            }
            println!("{line}");
        };
        use std::io::BufRead as _;
        if let Some(out) = child.stdout.take() {
            std::io::BufReader::new(out).lines().map_while(Result::ok).for_each(|line| pass(self, &line));
        }
        if let Some(err) = child.stderr.take() {
            std::io::BufReader::new(err).lines().map_while(Result::ok).for_each(|line| pass(self, &line));
        }
        let status = child.wait()?;
        if !status.success() && self.failed == 0 {
            self.failed += 1;
            eprintln!("the tests ended with {status}");
        }
        if !seen && status.success() && filter.is_empty() {
            bail!("no test ran");
        }
        Ok(())
    }
}

/// Passed and failed of a closing line: nextest's `Summary […] 12 tests run: 11 passed (1 slow), 1
/// failed, 2 skipped`, or cargo's `test result: ok. 11 passed; 1 failed; …`.
fn summary(line: &str) -> Option<(u64, u64)> {
    let line = strip_colour(line);
    if !(line.trim_start().starts_with("Summary [") || line.starts_with("test result:")) {
        return None;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |what: &str| {
        words
            .iter()
            .position(|word| word.trim_matches([',', ';']) == what)
            .and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok())
            .unwrap_or(0)
    };
    Some((before("passed"), before("failed") + before("timed")))
}

fn strip_colour(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('\u{1b}') {
        plain.push_str(&rest[..at]);
        rest = rest[at..].find('m').map_or("", |end| &rest[at + end + 1..]);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn a_closing_line_is_counted() {
        let check = |line, expected| assert_eq!(summary(line), expected, "{line}");
        check("     Summary [   0.5s] 12 tests run: 11 passed (1 slow), 1 failed, 2 skipped", Some((11, 1)));
        check("     Summary [   0.5s] 3 tests run: 3 passed, 0 skipped", Some((3, 0)));
        check(
            "\u{1b}[32;1m     Summary\u{1b}[0m [ 1.2s] 4 tests run: \u{1b}[1m3\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 1 timed out",
            Some((3, 1)),
        );
        check("test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured", Some((5, 2)));
        check("running 3 tests", None);
    }
}
