//! `e2b template`: has the daemon build a template that E2B's SDKs expect to be there.
//!
//! It is a build like those of `Template.build`: its steps are kept and shown, and what is as it was is not done again.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use den_api::Client;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    desktop,
    interpreter::{self, Further},
};
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// Between two looks at a build.
const LOOK: Duration = Duration::from_millis(300);

/// How much of a line is shown: scripts are one, and `den log` has them whole.
const LINE_CHARS_MAX: usize = 160;

/// A template that SDKs expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Known {
    /// `code-interpreter-v1`, for `e2b-code-interpreter`: Python, JavaScript, TypeScript, R and bash
    CodeInterpreter,
    /// `desktop`, for `e2b-desktop`: a screen with XFCE that commands use, shown by noVNC
    Desktop,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: den e2b template code-interpreter --pip scipy  |  den e2b template desktop --apt gimp\n\
                        It is built of packages of Debian, PyPI and npm, as a computer of this house reaches them."
)]
pub struct TemplateArgs {
    /// Which
    #[arg(value_name = "TEMPLATE")]
    which: Known,
    /// The image that it begins as: Debian's kind, or for the code interpreter one with python3, venv, node and npm
    #[arg(long, value_name = "IMAGE", default_value = "base")]
    from: String,
    /// Further packages of Debian's
    #[arg(long, value_name = "PACKAGES", value_delimiter = ' ')]
    apt: Vec<String>,
    /// Further packages of PyPI for the code interpreter, beside numpy, pandas, matplotlib and pillow
    #[arg(long, value_name = "PACKAGES", value_delimiter = ' ')]
    pip: Vec<String>,
    /// Further languages for the code interpreter
    #[arg(long, value_name = "LANGUAGES", value_delimiter = ',')]
    with: Vec<Further>,
    /// CPUs of its sandboxes
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory of its sandboxes, such as 2G
    #[arg(long, value_name = "SIZE")]
    memory: Option<den_model::Bytes>,
    /// Do all steps, also those that an earlier build did
    #[arg(long)]
    no_cache: bool,
}

/// What a build is asked for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Plan<'a> {
    from_image: &'a str,
    force: bool,
    steps: Vec<Value>,
    #[serde(flatten)]
    start: Option<Start>,
}

/// What runs in each sandbox, and the command that ends with 0 once it is ready.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    pub start_cmd: String,
    pub start_user: &'static str,
    pub start_restart: &'static str,
    pub ready_cmd: String,
}

/// A step: what a shell does as root.
pub fn as_root(script: &str) -> Value {
    json!({ "type": "RUN", "args": [script, "root"] })
}

/// A script that installs packages of Debian's.
pub fn apt_install(packages: &str) -> String {
    format!(
        "command -v apt-get >/dev/null || {{ echo 'the image has no apt-get' >&2; exit 1; }}\n\
         export DEBIAN_FRONTEND=noninteractive\n\
         apt-get -qq update && apt-get -qq -y --no-install-recommends install {packages} </dev/null"
    )
}

impl Known {
    /// What SDKs call it.
    fn name(self) -> &'static str {
        match self {
            Self::CodeInterpreter => "code-interpreter-v1",
            Self::Desktop => "desktop",
        }
    }
}

/// Builds it, and says what the build says.
pub async fn run(global: &Global, client: &Client, key: &str, args: &TemplateArgs) -> Outcome {
    let apt = packages(&args.apt, "Debian", is_debian)?;
    let pip = packages(&args.pip, "PyPI", interpreter::is_package)?;
    if args.which == Known::Desktop && !pip.is_empty() {
        return Err(Trouble::usage("`--pip` is for the code interpreter")
            .hint("packages of Debian go into a desktop: `--apt 'python3-requests'`"));
    }
    if args.which == Known::Desktop && !args.with.is_empty() {
        return Err(Trouble::usage("`--with` is for the code interpreter")
            .hint("packages of Debian go into a desktop: `--apt default-jdk`"));
    }
    let name = args.which.name();
    let mut wanted = json!({ "name": name });
    if let Some(cpus) = args.cpus {
        wanted["cpuCount"] = cpus.into();
    }
    if let Some(memory) = args.memory {
        wanted["memoryMB"] = memory.0.div_ceil(1 << 20).into();
    }
    let made = client.e2b(key, "/v3/templates", Some(&wanted)).await?;
    let (template, build) = (text(&made, "templateID")?, text(&made, "buildID")?);
    let (mut steps, start) = match args.which {
        Known::CodeInterpreter => {
            let archive = interpreter::archive().map_err(|error| Trouble::io("the files of the template", &error))?;
            let hash = upload(client, key, &template, archive).await?;
            (interpreter::steps(&pip, &args.with, &hash), Some(interpreter::start()))
        }
        Known::Desktop => (desktop::steps(), None),
    };
    if !apt.is_empty() {
        steps.push(as_root(&apt_install(&apt.join(" "))));
    }
    let plan = Plan { from_image: &args.from, force: args.no_cache, steps, start };
    let builds = format!("templates/{template}/builds/{build}");
    client.e2b(key, &format!("/v2/{builds}"), Some(&json!(plan))).await?;
    follow(client, key, &builds).await?;
    match global.json {
        true => show::json(&json!({ "name": name, "template": template, "build": build }))?,
        false => show::line(name)?,
    }
    Ok(0)
}

fn text(answer: &Value, name: &str) -> Result<String, Trouble> {
    let found = answer[name].as_str().map(str::to_owned);
    found.ok_or_else(|| Trouble::new(format_args!("the daemon's answer has no `{name}`: {answer}")))
}

/// Puts an archive where the steps of a template find it; returns the name that it has there.
async fn upload(client: &Client, key: &str, template: &str, archive: Bytes) -> Result<String, Trouble> {
    let hash = blake3::hash(&archive).to_hex().to_string();
    let place = client.e2b(key, &format!("/templates/{template}/files/{hash}"), None).await?;
    if place["present"] != true {
        let url = text(&place, "url")?;
        let path = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| rest[at..].to_owned()));
        let path = path.ok_or_else(|| Trouble::new(format_args!("the daemon's `{url}` is no place to upload to")))?;
        client.e2b_upload(&path, archive).await?;
    }
    Ok(hash)
}

/// The packages among the words, each of which goes into a script.
fn packages<'a>(words: &'a [String], of: &str, is_package: fn(&str) -> bool) -> Result<Vec<&'a str>, Trouble> {
    let packages: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    match packages.iter().find(|word| !is_package(word)) {
        Some(odd) => Err(Trouble::usage(format_args!("`{odd}` is no package of {of}"))),
        None => Ok(packages),
    }
}

/// Whether it is `name`, `name:arch`, `name=1.2-3`, `name/release`.
fn is_debian(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+:=~/".contains(&byte))
}

/// Says what a build says until it is ready.
async fn follow(client: &Client, key: &str, builds: &str) -> Result<(), Trouble> {
    let mut told = 0;
    loop {
        let seen = client.e2b(key, &format!("/{builds}/status?logsOffset={told}"), None).await?;
        let entries = seen["logEntries"].as_array().map_or(&[][..], Vec::as_slice);
        for entry in entries {
            let line: String = entry["message"].as_str().unwrap_or("").chars().take(LINE_CHARS_MAX).collect();
            eprint_line(&show::clean(&line))?;
        }
        told += entries.len();
        match (seen["status"].as_str(), entries.is_empty()) {
            (Some("ready"), true) => return Ok(()),
            (Some("error"), true) => {
                let (why, step) = (&seen["reason"]["message"], &seen["reason"]["step"]);
                let why = why.as_str().unwrap_or("the build failed");
                return Err(Trouble::new(format_args!("step {}: {why}", step.as_str().unwrap_or("?")))
                    .hint("what the step said is above; nothing is left of a build that failed"));
            }
            (_, true) => tokio::time::sleep(LOOK).await,
            (_, false) => {}
        }
    }
}

fn eprint_line(line: &str) -> Result<(), Trouble> {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "{line}").map_err(|error| Trouble::io("standard error", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_debian_are_words() {
        for (text, expected) in
            [("g++", true), ("libc6:amd64=2.36-9", true), ("-y", false), ("a;b", false), ("a b", false), ("", false)]
        {
            assert_eq!(is_debian(text), expected, "{text}");
        }
    }

    #[test]
    fn a_plan_without_a_start_command_says_nothing_of_one() {
        let plan = Plan { from_image: "base", force: false, steps: Vec::new(), start: None };
        assert_eq!(json!(plan), json!({ "fromImage": "base", "force": false, "steps": [] }));
    }
}
