//! `cargo xtask demo`: a session for the eye. What it prints after `$` can be typed.
//!
//! ```text
//! build ─► serve ─► base ─► create · exec · files · a service · packages from a registry, and who saw it
//!       ─► a project's own tests ─► a change in a fork, compared, merged, taken back ─► SIGKILL to the daemon in the middle of a command ─► its whole output ─► log ─► bench
//! ```

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fs_err as fs;

use crate::{base, daemon::Daemon, packages, tools};

/// The data folder, unless something else lives there.
const DATA: &str = "/var/lib/den";
/// Another demo's folder, if the first is taken.
const DATA_OTHER: &str = "/var/lib/den-demo";
/// The project whose own tests are run: pure Python, with its tests in its source package.
const PROJECT: &str = "more-itertools==11.2.1";
/// Where its source is unpacked.
const CHECKOUT: &str = "/home/user/project";
/// What the fork changes of it.
const CHANGED: &str = "more_itertools/recipes.py";
/// Lines that the command prints in whose middle the daemon is killed.
const LONG_LINES: u32 = 60;

/// `cargo xtask demo`
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Leave the daemon and the computers running
    #[arg(long)]
    keep: bool,
    /// The data folder [default: /var/lib/den if nothing is in it, else /var/lib/den-demo]
    #[arg(long)]
    data: Option<PathBuf>,
    /// This program in place of a build of what is here
    #[arg(long, value_name = "PROGRAM")]
    den: Option<PathBuf>,
}

/// Shows Den; ends what it started unless told to keep it.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    tools::need_root("cargo xtask demo")?;
    for list in [packages::BUILD, packages::RUN] {
        packages::need(list)?;
    }
    say("Build");
    let den = match &args.den {
        Some(den) => den.clone(),
        None => tools::build(tools::Profile::Release)?,
    };
    base::ensure(&den)?;
    let data = match &args.data {
        Some(data) => std::path::absolute(data)?,
        None if free(Path::new(DATA)) => DATA.into(),
        None => {
            println!("{DATA} is in use; the demo takes {DATA_OTHER}");
            DATA_OTHER.into()
        }
    };
    ensure!(free(&data), "{} is not empty: end the daemon there and remove it, or pass --data", data.display());
    let made = !data.exists();
    let run = match data == Path::new(DATA) {
        true => PathBuf::from("/run/den"),
        false => Path::new("/run").join(format!("den-demo-{}", std::process::id())),
    };
    let listen = if std::net::TcpListener::bind("127.0.0.1:7878").is_ok() { "127.0.0.1:7878" } else { "127.0.0.1:0" };
    let mut show = Show { daemon: Daemon::start(&den, &data, &run, base::store(), listen)?, den };
    let shown = show.all();
    if args.keep && shown.is_ok() {
        let at = if data == Path::new(DATA) { String::new() } else { format!("DEN_DATA={} ", data.display()) };
        println!(
            "\nThe daemon goes on. Type:\n  {at}{0} ls\n  {at}{0} sh web\nand to end it:\n  {at}{0} shutdown",
            show.den.display()
        );
        show.daemon.leave();
        return Ok(());
    }
    let left = show.daemon.stop()?;
    if made {
        fs::remove_dir_all(&data)?;
    }
    let _ = fs::remove_dir_all(&run);
    shown?;
    say("Ended");
    println!("The daemon, its computers and {} are gone (--keep leaves them).", data.display());
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    println!("Nothing of them is left on the host: no process, mount, cgroup, link or loop device.");
    Ok(())
}

/// Whether a data folder is not there or empty.
fn free(data: &Path) -> bool {
    std::fs::read_dir(data).map_or(true, |mut entries| entries.next().is_none())
}

struct Show {
    daemon: Daemon,
    den: PathBuf,
}

impl Show {
    fn all(&mut self) -> anyhow::Result<()> {
        say("Computers");
        for name in ["web", "db", "lab"] {
            let start = Instant::now();
            self.den(&["new", name])?;
            println!("  {:.1} ms, the whole process", start.elapsed().as_secs_f64() * 1e3);
        }
        self.den(&["ls"])?;
        self.den(&[
            "exec",
            "web",
            "--",
            "sh",
            "-c",
            "hostname; id -un; uname -r; python3 --version; node --version; df -h / | tail -1",
        ])?;
        let start = Instant::now();
        self.den(&["exec", "web", "--", "true"])?;
        println!("  {:.1} ms, the whole process", start.elapsed().as_secs_f64() * 1e3);
        self.den(&["info", "web"])?;

        say("Files in and out");
        let folder = tempfile::Builder::new().prefix("den-demo-").tempdir()?;
        let tree = folder.path().join("notes");
        fs::create_dir_all(tree.join("deep/er"))?;
        fs::write(tree.join("deep/er/hello.txt"), "written on the host\n")?;
        self.den(&["cp", text(&tree), "web:/root/"])?;
        self.den(&[
            "exec",
            "web",
            "--",
            "sh",
            "-c",
            "cat /root/notes/deep/er/hello.txt; echo and back >> /root/notes/deep/er/hello.txt",
        ])?;
        self.den(&["cp", "web:/root/notes/deep/er/hello.txt", "-"])?;

        say("A service that stays");
        self.den(&["exec", "web", "-d", "--cwd", "/root/notes", "--", "python3", "-m", "http.server", "8000"])?;
        self.den(&[
            "exec",
            "web",
            "--",
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8 9; do curl -sf localhost:8000/deep/er/hello.txt && break; sleep 0.2; done",
        ])?;

        self.network()?;
        self.project()?;
        self.history()?;
        self.killed()?;

        say("What was done");
        self.den(&["log", "web"])?;
        self.den(&["log", "db"])?;

        say("Speed");
        self.den(&["bench", "create", "create_exec", "exec", "exec_cli", "fork", "restore", "--runs", "50"])
    }

    /// Packages from the registry that this host uses, through the gate; what the gate has to say of it;
    /// and a computer that may reach nothing but another one.
    fn network(&mut self) -> anyhow::Result<()> {
        say("A package from a registry");
        let start = Instant::now();
        self.sh(
            "lab",
            "apt-get -qq update && apt-get -qq -y install figlet > /dev/null 2>&1 && figlet from a registry",
        )?;
        println!("  {:.1} s", start.elapsed().as_secs_f64());

        say("Each flow is decided, and on record");
        self.den(&["net", "lab"])?;
        println!("$ den net log lab | tail -8");
        let log = tools::read(&mut self.daemon.den(&["net", "log", "lab"]))?;
        let lines: Vec<&str> = log.lines().collect();
        ensure!(!lines.is_empty(), "`den net log lab` has no line");
        lines[lines.len().saturating_sub(8)..].iter().for_each(|line| println!("{line}"));

        say("Guarded: nothing but what a rule allows");
        self.den(&["net", "db", "guarded"])?;
        self.den(&["net", "db", "allow", "vm:web:8000"])?;
        self.sh("db", "curl -sf http://web.vm.internal:8000/deep/er/hello.txt")?;
        self.sh("db", "curl -sS -m 5 http://example.com/; curl -s -m 5 http://192.0.2.1/")?;
        self.den(&["net", "log", "db"])?;

        say("A way in");
        self.den(&["ports", "web"])?;
        println!("$ den forward web 0:8000 &");
        let mut forward = self.daemon.den(&["forward", "web", "0:8000"]).stdout(Stdio::piped()).spawn()?;
        let shown = self.through(&mut forward);
        let _ = forward.kill();
        let _ = forward.wait();
        shown
    }

    /// Asks for a file by a port of this host that leads inside.
    fn through(&self, forward: &mut Child) -> anyhow::Result<()> {
        use std::io::{BufRead as _, Read as _, Write as _};
        let mut line = String::new();
        std::io::BufReader::new(forward.stdout.take().context("no output")?).read_line(&mut line)?;
        print!("{line}");
        let at = line.split_whitespace().find_map(|word| word.parse::<std::net::SocketAddr>().ok());
        let at = at.context("`den forward` named no address")?;
        println!("$ curl http://{at}/deep/er/hello.txt");
        let mut stream = std::net::TcpStream::connect(at)?;
        stream.write_all(b"GET /deep/er/hello.txt HTTP/1.0\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let (_, body) = reply.split_once("\r\n\r\n").context("no reply")?;
        print!("{body}");
        Ok(())
    }

    /// A real project's own tests, inside.
    fn project(&mut self) -> anyhow::Result<()> {
        say("A real project's own tests");
        self.den(&[
            "exec",
            "lab",
            "--user",
            "user",
            "--cwd",
            "/home/user",
            "--",
            "sh",
            "-c",
            &format!(
                "pip download --quiet --no-deps --no-binary :all: {PROJECT} && mkdir project && tar xzf *.tar.gz -C project --strip-components 1"
            ),
        ])?;
        let start = Instant::now();
        self.den(&[
            "exec",
            "lab",
            "--user",
            "user",
            "--cwd",
            "/home/user/project",
            "--",
            "python3",
            "-m",
            "unittest",
            "discover",
            "-s",
            "tests",
            "-t",
            ".",
        ])?;
        println!("  {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// A risky change is made in a fork and tested there; what it did is read, merged into the parent,
    /// traced to its step, and taken back.
    fn history(&mut self) -> anyhow::Result<()> {
        let version = tools::read(&mut self.daemon.den(&["version", "--json"]))?;
        let version: serde_json::Value = serde_json::from_str(&version)?;
        if version["storage"] != "btrfs" {
            say("History: left out, for this storage keeps no states by itself");
            return Ok(());
        }
        say("A risky change, in a fork");
        self.den(&["snap", "lab", "before-change"])?;
        let start = Instant::now();
        self.den(&["fork", "lab", "try"])?;
        println!("  {:.1} ms, the whole process", start.elapsed().as_secs_f64() * 1e3);
        self.sh(
            "try",
            &format!(
                "useradd -m deploy && cd {CHECKOUT} && rm -rf docs && sed -i '1i # tried in a fork first' {CHANGED}"
            ),
        )?;
        self.den(&[
            "exec",
            "try",
            "--user",
            "user",
            "--cwd",
            CHECKOUT,
            "--env",
            "PYTHONDONTWRITEBYTECODE=1",
            "--",
            "python3",
            "-m",
            "unittest",
            "tests.test_recipes",
            "-k",
            "Take",
            "-k",
            "Flatten",
            "-k",
            "Grouper",
            "-k",
            "Unique",
        ])?;

        say("What it changed, by meaning and by path");
        self.den(&["diff", "try", "--lines", "24"])?;
        let changed = format!("{CHECKOUT}/{CHANGED}");
        self.den(&["diff", "try", "--text", "--path", &changed])?;

        say("Merged into the parent, which went on meanwhile");
        self.sh("lab", "echo 'the parent was here' > /root/meanwhile")?;
        self.den(&["merge", "try", "--lines", "8"])?;
        let look = format!("id deploy; cat /root/meanwhile; head -1 {changed}; ls -d {CHECKOUT}/docs");
        self.sh("lab", &format!("{{ {look}; }} 2>&1 || true"))?;
        self.den(&["blame", "lab", &changed])?;
        self.den(&["log", "lab", "-n", "4"])?;

        say("And taken back");
        let start = Instant::now();
        self.den(&["restore", "lab@before-change"])?;
        println!("  {:.1} ms, the whole process", start.elapsed().as_secs_f64() * 1e3);
        self.sh("lab", &format!("{{ {look}; }} 2>&1 || true"))?;
        self.den(&["snaps", "lab"])?;
        self.den(&["tree", "--lineage", "lab"])?;
        self.den(&["rm", "try"])
    }

    /// Shows a script of `sh` in a computer and runs it.
    fn sh(&self, name: &str, script: &str) -> anyhow::Result<()> {
        self.den(&["exec", name, "--", "sh", "-c", script])
    }

    /// SIGKILL to the daemon while a command runs and a client reads it.
    fn killed(&mut self) -> anyhow::Result<()> {
        say("The daemon is killed in the middle of a command");
        let script = format!("for i in $(seq {LONG_LINES}); do echo line $i; sleep 0.1; done");
        let words = ["exec", "db", "--", "bash", "-c", &script];
        println!("$ den exec db -- bash -c '{script}' &");
        let info = tools::read(&mut self.daemon.den(&["info", "db", "--json"]))?;
        let info: serde_json::Value = serde_json::from_str(&info)?;
        let step = (info["last_step"].as_u64().context("`den info` names no last step")? + 1).to_string();
        let child = self.daemon.den(&words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        std::thread::sleep(Duration::from_secs(2));
        self.daemon.kill()?;
        println!("$ kill -9 (den serve)");
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        self.daemon.start_again()?;
        println!("$ den serve     ({:.0} ms until it answered)", start.elapsed().as_secs_f64() * 1e3);
        let expected: String = (1..=LONG_LINES).map(|line| format!("line {line}\n")).collect();
        let client = finish(child)?;
        let whole = tools::read(&mut self.daemon.den(&["attach", "db", &step]))?;
        ensure!(whole == expected, "the output is not whole:\n{whole}");
        println!("$ den attach db {step} | tail -3");
        for line in whole.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev() {
            println!("{line}");
        }
        println!("All {LONG_LINES} lines are there, each once.");
        ensure!(client == expected, "the client that read across the kill has another output:\n{client}");
        println!("The client that was reading went on by itself and has them all, too.");
        self.den(&[
            "exec",
            "web",
            "--",
            "curl",
            "-sf",
            "-o",
            "/dev/null",
            "-w",
            "the service answers %{http_code}\n",
            "localhost:8000/",
        ])
    }

    /// Shows a command, runs it, and fails where it fails.
    fn den(&self, words: &[&str]) -> anyhow::Result<()> {
        println!("$ den {}", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
        tools::run(self.daemon.den(words).stdin(Stdio::null()))
    }
}

fn finish(child: Child) -> anyhow::Result<String> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the client ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

fn quoted(word: &str) -> String {
    match !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=%+,@".contains(c)) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\n', "\\n")),
    }
}

fn say(what: &str) {
    println!("\n== {what}");
}
