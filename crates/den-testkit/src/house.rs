//! A daemon with its own folders, and the CLI beside it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fs_err as fs;
use rustix::process::{Signal, kill_process};

use crate::leftovers::pid_in;
use crate::{Api, images, leftovers, sweep};

/// A daemon that has not answered by then is broken.
const START_MAX: Duration = Duration::from_secs(60);
/// A daemon that was told to go and is still there is broken.
const STOP_MAX: Duration = Duration::from_secs(60);
/// What the kernel takes away in its own time (dead cgroups, namespaces) must be gone by then. A mount namespace that
/// another test makes has copies of all mounts for as long as it is there.
const SETTLE_MAX: Duration = Duration::from_secs(90);

/// How a house differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// An image store of its own in place of the shared one.
    pub images: Option<PathBuf>,
    /// A data folder elsewhere: on a disk of the test's. It outlives the house.
    pub data: Option<PathBuf>,
    /// How long what is removed lies in the trash, as `--trash-for` takes it; without, the house has none.
    pub trash_for: Option<String>,
    /// Further words for `den serve`.
    pub args: Vec<String>,
    /// Environment of `den serve`: failpoints.
    pub env: Vec<(String, String)>,
}

/// A daemon, its folders and its CLI. Dropping it shuts it down and checks that nothing is left.
pub struct House {
    den: PathBuf,
    options: Options,
    folder: tempfile::TempDir,
    run: PathBuf,
    listen: String,
    serve: Option<Child>,
}

/// A process that ended, as text.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit code; 128 + signal where one ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Panics unless it ended with 0; returns its output without the last line's end.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Panics unless it ended with `code` and its standard error has `words`.
    pub fn refused(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains(words), "wanted `{words}` in: {}", self.stderr);
        self
    }
}

impl House {
    /// A running daemon on the shared images.
    pub fn open(den: &str) -> Self {
        Self::with(den, Options::default())
    }

    /// A running daemon.
    pub fn with(den: &str, options: Options) -> Self {
        let folder = tempfile::Builder::new().prefix("den-test-").tempdir().expect("a temporary folder");
        let name = folder.path().file_name().expect("a name").to_string_lossy().into_owned();
        let run = Path::new("/tmp").join(name.replace("den-test-", "den-run-"));
        let mut house = Self { den: den.into(), options, folder, run, listen: "127.0.0.1:0".to_owned(), serve: None };
        house.start();
        house.listen = house.api().addr.to_string();
        house
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.options.data.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// The run folder.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// A folder for the test's own files on the host.
    pub fn scratch(&self) -> PathBuf {
        let dir = self.folder.path().join("scratch");
        fs::create_dir_all(&dir).expect("a scratch folder");
        dir
    }

    /// What `den serve` wrote to its standard output and error, all starts together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("serve.log")).unwrap_or_default()
    }

    /// Environment of the next start of `den serve`.
    pub fn set_env(&mut self, env: &[(&str, &str)]) {
        self.options.env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    }

    /// How long the next start of `den serve` keeps what is removed.
    pub fn set_trash_for(&mut self, time: &str) {
        self.options.trash_for = Some(time.to_owned());
    }

    /// Starts `den serve` and waits until it answers; panics with its log where it does not.
    pub fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("{why}\n{}", self.log());
        }
    }

    /// Starts `den serve`. Errors: it ended, or it does not answer; both as text.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.serve.is_none(), "a serve runs already");
        let client = self.data().join("client.json");
        let _ = fs::remove_file(&client);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("serve.log"))
            .expect("a log file")
            .into_parts()
            .0;
        let images = self.options.images.clone().unwrap_or_else(images::shared);
        let mut command = Command::new(&self.den);
        command
            .arg("serve")
            .arg("--data")
            .arg(self.data())
            .arg("--run")
            .arg(&self.run)
            .arg("--images")
            .arg(images)
            .args(["--listen", &self.listen])
            .args(["--trash-for", self.options.trash_for.as_deref().unwrap_or("0")])
            .args(&self.options.args)
            .env_remove("DEN_URL")
            .env_remove("DEN_TOKEN")
            .env_remove("DEN_DATA")
            .envs(self.options.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log again"))
            .stderr(log);
        let mut child = command.spawn().expect("den serve");
        let since = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("the child") {
                return Err(format!("den serve ended at its start: {status}"));
            }
            if client.is_file()
                && let Ok(reply) = self.try_api().and_then(|api| api.open("GET", "/healthz", &[], b""))
                && reply.status == 200
            {
                self.serve = Some(child);
                return Ok(());
            }
            if since.elapsed() > START_MAX {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("den serve does not answer after {START_MAX:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL to `den serve`, as a crash would.
    pub fn kill_serve(&mut self) {
        let mut child = self.serve.take().expect("a serve runs");
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
    }

    /// Waits until `den serve` has ended by itself (a failpoint); panics where it goes on.
    pub fn wait_serve_dead(&mut self) {
        let child = self.serve.as_mut().expect("a serve runs");
        let since = Instant::now();
        while child.try_wait().expect("the child").is_none() {
            assert!(since.elapsed() < STOP_MAX, "den serve goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.serve = None;
    }

    /// Whether `den serve` is alive.
    pub fn serve_alive(&mut self) -> bool {
        self.serve.as_mut().is_some_and(|child| child.try_wait().expect("the child").is_none())
    }

    /// The pid of `den serve`, while it runs.
    pub fn serve_pid(&self) -> Option<i32> {
        self.serve.as_ref().and_then(|child| i32::try_from(child.id()).ok())
    }

    /// The launcher's pid.
    pub fn launcher(&self) -> rustix::process::Pid {
        pid_in(&self.run.join("launcher.pid")).expect("launcher.pid")
    }

    /// SIGKILL to the launcher.
    pub fn kill_launcher(&self) {
        kill_process(self.launcher(), Signal::KILL).expect("SIGKILL to the launcher");
    }

    /// SIGKILL to `den serve`, and a new one.
    pub fn restart(&mut self) {
        self.kill_serve();
        self.start();
    }

    /// The HTTP face of the daemon that runs now.
    pub fn api(&self) -> Api {
        self.try_api().expect("client.json")
    }

    fn try_api(&self) -> std::io::Result<Api> {
        let text = fs::read_to_string(self.data().join("client.json"))?;
        let client: serde_json::Value = serde_json::from_str(&text)?;
        let url = client["url"].as_str().unwrap_or_default();
        let addr = url.trim_start_matches("http://").trim_end_matches('/');
        Ok(Api {
            addr: addr.parse().map_err(|_| std::io::Error::other(format!("no address: {url}")))?,
            token: client["token"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// The CLI with some words, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.den);
        command
            .args(args)
            .env_remove("DEN_URL")
            .env_remove("DEN_TOKEN")
            .env("DEN_DATA", self.data())
            .stdin(Stdio::null());
        command
    }

    /// Runs the CLI.
    pub fn den(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().expect("the CLI starts"))
    }

    /// Runs the CLI with a standard input.
    pub fn den_with(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the CLI starts");
        let mut stdin = child.stdin.take().expect("its input");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                use std::io::Write as _;
                // A command that does not read all of it is no fault of the test's.
                let _ = stdin.write_all(input);
            });
            Ran::from(child.wait_with_output().expect("its end"))
        })
    }

    /// Runs the CLI with `--json` and reads what it prints.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut words = args.to_vec();
        words.push("--json");
        let out = self.den(&words).ok();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("`den {}`: no JSON ({e}): {out}", words.join(" ")))
    }

    /// Makes a computer with default limits that suit a test.
    pub fn new_computer(&self, name: &str) {
        self.den(&["new", name, "--memory", "1GiB", "--pids", "512"]).ok();
    }

    /// Runs a script of `sh` in a computer.
    pub fn sh(&self, name: &str, script: &str) -> Ran {
        self.den(&["exec", name, "--", "sh", "-c", script])
    }

    /// Ids of the computers that have a disk.
    pub fn disks(&self) -> Vec<String> {
        let mut ids: Vec<String> = std::fs::read_dir(self.data().join("computers"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("cmp_"))
            .collect();
        ids.sort();
        ids
    }

    /// Shuts the daemon down and checks that nothing is left. Dropping does the same.
    pub fn close(self) {
        drop(self);
    }

    fn end(&mut self) {
        let mut wrong = Vec::new();
        if !self.serve_alive() {
            let ended = self.serve.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended.filter(|_| std::thread::panicking()) {
                eprintln!("den serve had ended: {status}");
            }
            self.serve = None;
            self.options.env.clear();
            if let Err(why) = self.try_start() {
                wrong.push(why);
            }
        }
        if self.serve.is_some() {
            let ran = self.den(&["shutdown"]);
            if ran.code != 0 {
                wrong.push(format!("den shutdown: {}{}", ran.stdout, ran.stderr));
            }
            let since = Instant::now();
            while self.serve_alive() && since.elapsed() < STOP_MAX {
                std::thread::sleep(Duration::from_millis(5));
            }
            if self.serve_alive() {
                wrong.push("den serve goes on after `den shutdown`".to_owned());
                self.kill_serve();
            }
            self.serve = None;
        }
        let data = self.data();
        let since = Instant::now();
        let mut left = leftovers(&self.run, &data);
        while !left.is_empty() && since.elapsed() < SETTLE_MAX {
            std::thread::sleep(Duration::from_millis(50));
            left = leftovers(&self.run, &data);
        }
        if !left.is_empty() {
            sweep(&self.run, &data);
        }
        wrong.extend(left.into_iter().map(|line| format!("left behind: {line}")));
        let log = self.log();
        let _ = fs::remove_dir_all(&self.run);
        if std::thread::panicking() {
            eprintln!("--- den serve\n{log}---");
            for line in wrong {
                eprintln!("{line}");
            }
        } else {
            assert!(wrong.is_empty(), "{}\n--- den serve\n{log}---", wrong.join("\n"));
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `act` on a daemon that dies at each of `points`, starts it again and has `check` look at what is
/// left; in the second round the launcher is killed as well, and `check` is told so. `begin` comes once in
/// each of the two houses, `prepare` before each point.
pub fn at_each_point(
    den: &str,
    points: &[&str],
    begin: impl Fn(&House),
    prepare: impl Fn(&House),
    act: impl Fn(&House),
    check: impl Fn(&House, &str, bool),
) {
    at_each_point_with(den, &Options::default(), points, begin, prepare, act, check);
}

/// As [`at_each_point`], in houses with these options.
pub fn at_each_point_with(
    den: &str,
    options: &Options,
    points: &[&str],
    begin: impl Fn(&House),
    prepare: impl Fn(&House),
    act: impl Fn(&House),
    check: impl Fn(&House, &str, bool),
) {
    for launcher in [false, true] {
        let mut house = House::with(den, options.clone());
        begin(&house);
        for point in points {
            let when = format!("{point}{}", if launcher { ", launcher killed as well" } else { "" });
            eprintln!("--- {when}");
            prepare(&house);
            house.kill_serve();
            house.set_env(&[("DEN_FAILPOINT", point)]);
            house.start();
            act(&house);
            house.wait_serve_dead();
            if launcher {
                house.kill_launcher();
            }
            house.set_env(&[]);
            house.start();
            check(&house, &when, launcher);
        }
        house.close();
    }
}

/// A copy of a house's store in a folder of its own: a daemon that runs has the store to itself.
pub fn store_copy(data: &Path) -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a folder");
    let files = ["den.db", "den.db-wal"];
    let facts =
        || files.map(|name| std::fs::metadata(data.join(name)).ok().map(|facts| (facts.len(), facts.modified().ok())));
    for _ in 0..100 {
        let before = facts();
        for name in files {
            let _ = std::fs::remove_file(place.path().join(name));
            let _ = std::fs::copy(data.join(name), place.path().join(name));
        }
        // Else it was written to meanwhile.
        if before == facts() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    place
}

/// Waits until `done` is true; panics with `what` after `limit`.
pub fn eventually(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
