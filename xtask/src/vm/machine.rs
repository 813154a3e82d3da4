//! The emulated machine: how it is carried, its console, and when it is given up.
//!
//! ```text
//! trial of KVM ─► runs guests ─► kvm ─┐ nothing is said at the session's begin
//!              └► does not  ─────────►└► tcg ─► once more ─► given up, with the end of the console
//! ```
//!
//! Invariant: whatever the guest does, the caller is back after [`Limits::whole`] an attempt, and no QEMU is left; where
//! this program is killed it goes with it.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use den_sys::kvm::{self, Ending};

use super::kernel::Kernel;

/// How long a trial of KVM may take.
const TRIAL_MAX: Duration = Duration::from_secs(2);
/// A console line is cut there.
const LINE_MAX: u64 = 64 << 10;
/// Lines that are between the console and this program at most.
const QUEUE: usize = 1024;
/// So much of the console's end is in an error.
const TAIL: usize = 40;
/// How the session's first line begins.
const BEGIN: &str = "Linux ";

/// When a machine is given up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the start to the session's first line.
    pub begin: Duration,
    /// Between two lines.
    pub quiet: Duration,
    /// From the start to the end.
    pub whole: Duration,
}

/// What carries a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU alone: slow, anywhere.
    Tcg,
}

/// What is booted.
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The root disk.
    pub disk: &'a Path,
    /// The initramfs.
    pub initrd: &'a Path,
}

/// How an attempt ended.
enum End {
    /// `VM: N passed, N failed`
    Verdict(u32, u32),
    /// The session did not begin, and why.
    NotBegun(String),
    /// It broke off, and how.
    Broken(String),
}

/// Runs the machine and prints what its console says; how many checks passed and failed.
///
/// A machine that goes off or stands still before its session has begun is booted once more, without KVM: that is a
/// matter of who carries it, and nothing of Den has run.
pub fn run(boot: &Boot<'_>, accel: Option<Accel>, limits: Limits) -> anyhow::Result<(u32, u32)> {
    eprintln!("booting, at most {} s …", limits.whole.as_secs());
    let end = match once(boot, accel.unwrap_or_else(carried_by), limits)? {
        End::NotBegun(why) => {
            eprintln!("{why}\nonce more …");
            once(boot, accel.unwrap_or(Accel::Tcg), limits)?
        }
        end => end,
    };
    match end {
        End::Verdict(passed, failed) => Ok((passed, failed)),
        End::NotBegun(why) | End::Broken(why) => bail!(why),
    }
}

/// KVM where it runs guests: that it opens, and that the processor can, does not say so.
fn carried_by() -> Accel {
    let runs = Path::new("/dev/kvm").exists() && kvm::trial(TRIAL_MAX).is_ok_and(|trial| trial.ending == Ending::Done);
    if runs { Accel::Kvm } else { Accel::Tcg }
}

/// A machine that ends with this program's interest in it.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn once(boot: &Boot<'_>, accel: Accel, limits: Limits) -> anyhow::Result<End> {
    let (accel, cpu) = match accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg", "max,la57=off,cx16=off"),
    };
    // It goes when this program does, however that ends.
    let mut machine = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-machine", "q35", "-accel", accel, "-cpu", cpu, "-smp", "2", "-m", "4096"])
        .arg("-kernel")
        .arg(&boot.kernel.image)
        .arg("-initrd")
        .arg(boot.initrd)
        .arg("-append")
        // A processor that waits for a busy host looks stuck to the guest's watchdog.
        .arg("console=ttyS0 quiet loglevel=3 nowatchdog panic=-1 cgroup_no_v1=all")
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,cache=unsafe", boot.disk.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Machine)
        .context("cannot start qemu-system-x86_64")?;
    let console = machine.0.stdout.take().context("the console is a pipe")?;
    let (send, lines) = mpsc::sync_channel(QUEUE);
    std::thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            line.clear();
            if send.send(text).is_err() {
                break;
            }
        }
    });
    let since = Instant::now();
    let mut tail = VecDeque::new();
    let (mut begun, mut verdict) = (false, None);
    let why = loop {
        let whole = limits.whole.saturating_sub(since.elapsed());
        let begin = if begun { whole } else { limits.begin.saturating_sub(since.elapsed()) };
        let wait = whole.min(begin).min(limits.quiet);
        match lines.recv_timeout(wait) {
            Ok(line) => {
                println!("{:6.1}  {line}", since.elapsed().as_secs_f64());
                begun |= line.starts_with(BEGIN);
                verdict = verdict.or_else(|| counts(&line));
                tail.push_back(line);
                if tail.len() > TAIL {
                    tail.pop_front();
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break "the machine went off without a verdict".to_owned(),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let seconds = since.elapsed().as_secs();
                break match wait == limits.quiet {
                    true => format!("the machine said nothing for {} s, {seconds} s after its start", wait.as_secs()),
                    false => format!("the machine was still on after {seconds} s"),
                };
            }
        }
    };
    // Who had a verdict and did not switch off has nothing more to say.
    if let Some((passed, failed)) = verdict {
        return Ok(End::Verdict(passed, failed));
    }
    let end: String = tail.iter().map(|line| format!("\n    {line}")).collect();
    let why = format!("{why}; the end of its console:{end}");
    Ok(if begun { End::Broken(why) } else { End::NotBegun(why) })
}

/// The numbers of `VM: N passed, N failed`.
fn counts(line: &str) -> Option<(u32, u32)> {
    let (passed, failed) = line.strip_prefix("VM: ")?.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn a_verdict_is_read() {
        assert_eq!(counts("VM: 31 passed, 2 failed"), Some((31, 2)));
        assert_eq!(counts("VM: 31 passed"), None);
        assert_eq!(counts("ok  a computer is made"), None);
    }
}
