//! A daemon for as long as a task runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;

/// A daemon that has not answered by then does not start.
const START_MAX: Duration = Duration::from_secs(60);
/// A daemon that has not gone by then stays.
const STOP_MAX: Duration = Duration::from_secs(60);

/// `den serve` and its folders.
pub struct Daemon {
    den: PathBuf,
    /// Its data folder.
    pub data: PathBuf,
    /// Its run folder.
    pub run: PathBuf,
    images: PathBuf,
    listen: String,
    more: Vec<String>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts one; `listen` as `den serve` takes it.
    pub fn start(den: &Path, data: &Path, run: &Path, images: &Path, listen: &str) -> anyhow::Result<Self> {
        Self::start_with(den, data, run, images, listen, &[])
    }

    /// The same with more words for `den serve`.
    pub fn start_with(
        den: &Path,
        data: &Path,
        run: &Path,
        images: &Path,
        listen: &str,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let mut daemon = Self {
            den: den.into(),
            data: data.into(),
            run: run.into(),
            images: images.into(),
            listen: listen.into(),
            more: more.iter().map(|word| (*word).to_owned()).collect(),
            child: None,
        };
        daemon.start_again()?;
        // Started again, it listens where its clients know it.
        let client: serde_json::Value = serde_json::from_str(&fs::read_to_string(daemon.data.join("client.json"))?)?;
        if let Some(address) = client["url"].as_str().and_then(|url| url.strip_prefix("http://")) {
            daemon.listen = address.trim_end_matches('/').to_owned();
        }
        Ok(daemon)
    }

    /// Starts it after [`Self::kill`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let client = self.data.join("client.json");
        let _ = fs::remove_file(&client);
        let mut child = Command::new(&self.den)
            .args(["serve", "--listen", &self.listen])
            .arg("--data")
            .arg(&self.data)
            .arg("--run")
            .arg(&self.run)
            .arg("--images")
            .arg(&self.images)
            .args(&self.more)
            .env("DEN_LOG", std::env::var("DEN_LOG").unwrap_or_else(|_| "warn".to_owned()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start den serve")?;
        let since = Instant::now();
        while !(client.is_file()
            && self.den(&["version"]).stderr(Stdio::null()).stdout(Stdio::null()).status()?.success())
        {
            if let Some(status) = child.try_wait()? {
                bail!("den serve ended with {status}; try `{} doctor`", self.den.display());
            }
            ensure!(since.elapsed() < START_MAX, "den serve does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        Ok(())
    }

    /// SIGKILL, as a crash would; computers go on.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("no daemon runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The CLI, for this daemon.
    pub fn den(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.den);
        command.args(words).env("DEN_DATA", &self.data).env_remove("DEN_URL").env_remove("DEN_TOKEN");
        command
    }

    /// Leaves it running.
    pub fn leave(mut self) {
        self.child = None;
    }

    /// Stops its computers and it; what is left on the host, a line a thing.
    pub fn stop(mut self) -> anyhow::Result<Vec<String>> {
        self.end()?;
        let since = Instant::now();
        loop {
            let left = den_testkit::leftovers(&self.run, &self.data);
            if left.is_empty() || since.elapsed() > Duration::from_secs(15) {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let asked = self.den(&["shutdown"]).stdout(Stdio::null()).status();
        let since = Instant::now();
        while child.try_wait()?.is_none() {
            if since.elapsed() > STOP_MAX {
                child.kill()?;
                child.wait()?;
                bail!("den serve went on after `den shutdown` ({asked:?})");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("error: {error:#}");
        }
    }
}
