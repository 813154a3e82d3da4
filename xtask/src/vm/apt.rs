//! Packages of another Debian suite than this host's, from the mirror that it takes its own from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::bail;
use fs_err as fs;

use crate::tools;

/// An apt that has a state of its own and another suite than this host's; nothing is installed by it.
pub struct Apt(tempfile::TempDir);

impl Apt {
    /// Knows what `suite` has.
    pub fn of(suite: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("den-apt-").tempdir()?;
        fs::create_dir_all(folder.path().join("lists/partial"))?;
        fs::create_dir_all(folder.path().join("cache/archives/partial"))?;
        fs::write(folder.path().join("status"), "")?;
        fs::write(folder.path().join("suite.sources"), source(suite)?)?;
        let apt = Self(folder);
        apt.run(&["-qq", "update"])?;
        Ok(apt)
    }

    /// Where what is downloaded lies.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A program of apt's, in its folder.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).stdout(Stdio::null());
        for (option, value) in [
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourcelist", "suite.sources"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.0.path().join(value).display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root"]);
        command
    }

    /// Runs apt-get.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        tools::run(self.command("apt-get").args(words))
    }

    /// The packages that it has fetched.
    pub fn packages(&self) -> anyhow::Result<Vec<PathBuf>> {
        let files =
            fs::read_dir(self.0.path().join("cache/archives"))?.filter_map(Result::ok).map(|entry| entry.path());
        Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
    }
}

/// An apt source for `suite` at the mirror that this host takes Debian from.
fn source(suite: &str) -> anyhow::Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d")?.filter_map(Result::ok).map(|entry| entry.path()));
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let (mirror, signed) = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => {
                let Some(found) = text.split("\n\n").find_map(stanza) else { continue };
                found
            }
            Some("list") => {
                let Some(mirror) = text.lines().find_map(one_line) else { continue };
                (mirror, String::new())
            }
            _ => continue,
        };
        return Ok(format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n{signed}"));
    }
    bail!("this host's apt sources name no Debian mirror: pass --kernel PATH")
}

/// The mirror of a deb822 stanza for a Debian release, and its `Signed-By` field.
fn stanza(text: &str) -> Option<(String, String)> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once(':').filter(|_| !line.starts_with([' ', '\t'])) {
            Some((name, value)) => fields.push((name, value.trim().to_owned())),
            None => {
                let (_, value) = fields.last_mut()?;
                value.push('\n');
                value.push_str(line);
            }
        }
    }
    let field = |name: &str| fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    if field("Enabled") == Some("no") || !field("Suites")?.split_whitespace().any(is_release) {
        return None;
    }
    let signed = field("Signed-By").map(|value| format!("Signed-By: {value}\n")).unwrap_or_default();
    Some((field("URIs")?.split_whitespace().next()?.to_owned(), signed))
}

/// The mirror of a line `deb [options] URI suite component…` for a Debian release.
fn one_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let mirror = words.next()?;
    words.next().filter(|suite| is_release(suite)).map(|_| mirror.to_owned())
}

fn is_release(suite: &str) -> bool {
    ["bookworm", "trixie", "forky", "sid", "stable", "testing"].contains(&suite)
}
