//! `e2b template`: has the daemon build a template that E2B's SDKs expect to be there.
//!
//! It is a build like those of `Template.build`: its steps are kept and shown, and what is as it was is not done again.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use den_api::Client;
use serde_json::{Value, json};

use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// Between two looks at a build.
const LOOK: Duration = Duration::from_millis(300);

/// Where the interpreter lies: an environment of Python's, and the server in it.
const PLACE: &str = "/opt/code-interpreter";

/// How much of a line is shown: scripts are one, and `den log` has them whole.
const LINE_CHARS_MAX: usize = 160;

/// What the interpreter is made of, by the place below [`PLACE`]`/den`.
const FILES: [(&str, &str); 5] = [
    ("server.py", include_str!("interpreter/server.py")),
    ("kernels.py", include_str!("interpreter/kernels.py")),
    ("kernel.mjs", include_str!("interpreter/kernel.mjs")),
    ("ready.py", include_str!("interpreter/ready.py")),
    ("inside/den_display.py", include_str!("interpreter/den_display.py")),
];

/// What the server and its kernels need, and what charts and tables are told from.
const NEEDED: &str = "'jupyter_client~=8.10' 'ipykernel~=7.4' 'tornado~=6.5' 'bash_kernel~=0.10.0' 'e2b-charts~=1.0' \
                      'matplotlib~=3.11' numpy pandas pillow";

/// Installs what the image lacks that the rest needs.
const BASICS: &str = r#"
missing=
command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null || missing="python3 python3-venv"
command -v node >/dev/null && command -v npm >/dev/null || missing="$missing nodejs npm"
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || { echo "the image lacks $missing, and has no apt-get" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update && apt-get -qq -y --no-install-recommends install $missing </dev/null
"#;

/// Has kernels and shells find what was installed, and be quick at their first start.
const SETTLE: &str = r#"
set -e
cd /opt/code-interpreter
bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' | {
    read -r site
    echo /opt/code-interpreter/den/inside >"$site/den.pth"
}
bin/python -m bash_kernel.install --sys-prefix
echo 'PATH=/opt/code-interpreter/bin:$PATH' >/etc/profile.d/code-interpreter.sh
bin/python -c 'import matplotlib.pyplot, pandas, e2b_charts'
bin/python -m compileall -q den
chown -R user: .
"#;

/// A template that SDKs expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Known {
    /// `code-interpreter-v1`, for `e2b-code-interpreter`: Python, JavaScript, TypeScript and bash
    CodeInterpreter,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den e2b template code-interpreter --pip 'scipy scikit-learn requests'\n\
                        It is built of packages of Debian, PyPI and npm, as a computer of this house reaches them.")]
pub struct TemplateArgs {
    /// Which
    #[arg(value_name = "TEMPLATE")]
    which: Known,
    /// The image that it begins as: Debian's kind, or one with python3, venv, node and npm
    #[arg(long, value_name = "IMAGE", default_value = "base")]
    from: String,
    /// Further packages of PyPI, beside numpy, pandas, matplotlib and pillow
    #[arg(long, value_name = "PACKAGES", value_delimiter = ' ')]
    pip: Vec<String>,
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

/// Builds it, and says what the build says.
pub async fn run(global: &Global, client: &Client, key: &str, args: &TemplateArgs) -> Outcome {
    let Known::CodeInterpreter = args.which;
    let name = "code-interpreter-v1";
    let mut wanted = json!({ "name": name });
    if let Some(cpus) = args.cpus {
        wanted["cpuCount"] = cpus.into();
    }
    if let Some(memory) = args.memory {
        wanted["memoryMB"] = memory.0.div_ceil(1 << 20).into();
    }
    let made = client.e2b(key, "/v3/templates", Some(&wanted)).await?;
    let (template, build) = (text(&made, "templateID")?, text(&made, "buildID")?);
    let archive = archive().map_err(|error| Trouble::io("the files of the template", &error))?;
    let hash = blake3::hash(&archive).to_hex().to_string();
    let place = client.e2b(key, &format!("/templates/{template}/files/{hash}"), None).await?;
    if place["present"] != true {
        let url = text(&place, "url")?;
        let path = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| rest[at..].to_owned()));
        let path = path.ok_or_else(|| Trouble::new(format_args!("the daemon's `{url}` is no place to upload to")))?;
        client.e2b_upload(&path, archive).await?;
    }
    let builds = format!("templates/{template}/builds/{build}");
    client.e2b(key, &format!("/v2/{builds}"), Some(&plan(args, &hash)?)).await?;
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

/// What the server is made of, the same bytes whenever it is made.
fn archive() -> std::io::Result<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in FILES {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, path, text.as_bytes())?;
    }
    Ok(archive.into_inner()?.into())
}

/// Steps, and what runs in each sandbox.
fn plan(args: &TemplateArgs, hash: &str) -> Result<Value, Trouble> {
    let root = |script: &str| json!({ "type": "RUN", "args": [script, "root"] });
    let pip = format!("{PLACE}/bin/pip install --quiet --no-cache-dir");
    let mut steps = vec![
        root(BASICS),
        root(&format!("python3 -m venv {PLACE} && {pip} {NEEDED}")),
        root(&format!(
            "mkdir -p {PLACE}/den && cd {PLACE}/den && npm install --no-audit --no-fund --no-save acorn@8 sucrase@3"
        )),
    ];
    let further: Vec<&str> = args.pip.iter().map(String::as_str).filter(|package| !package.is_empty()).collect();
    if let Some(odd) = further.iter().find(|package| !is_package(package)) {
        return Err(Trouble::usage(format_args!("`{odd}` is no package of PyPI")));
    }
    if !further.is_empty() {
        steps.push(root(&format!("{pip} '{}'", further.join("' '"))));
    }
    steps.push(json!({ "type": "COPY", "args": [".", format!("{PLACE}/den/"), "root", ""], "filesHash": hash }));
    steps.push(root(SETTLE));
    steps.push(json!({ "type": "ENV", "args": ["PATH", format!("{PLACE}/bin:$PATH")] }));
    Ok(json!({
        "fromImage": args.from,
        "force": args.no_cache,
        "steps": steps,
        "startCmd": format!("exec {PLACE}/bin/python {PLACE}/den/server.py"),
        "startUser": "root",
        "startRestart": "always",
        "readyCmd": format!("{PLACE}/bin/python {PLACE}/den/ready.py"),
    }))
}

/// `name`, `name[extra]`, `name==1.2`.
fn is_package(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.[],=<>~!+".contains(&byte))
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
    fn packages_are_words() {
        for (text, expected) in
            [("scipy", true), ("a[b]>=1,<2", true), ("-r", false), ("a'b", false), ("a;b", false), ("", false)]
        {
            assert_eq!(is_package(text), expected, "{text}");
        }
    }

    #[test]
    fn the_files_are_the_same_each_time() {
        assert_eq!(archive().unwrap(), archive().unwrap());
        let mut archive = tar::Archive::new(std::io::Cursor::new(archive().unwrap()));
        assert_eq!(archive.entries().unwrap().count(), FILES.len());
    }
}
