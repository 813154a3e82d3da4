//! `code-interpreter-v1`: a server of Den's over kernels of Jupyter's.

use bytes::Bytes;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::template::{Start, as_root};

/// Where the interpreter lies: an environment of Python's, and the server in it.
const PLACE: &str = "/opt/code-interpreter";

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

/// Puts R in, where the image has packages of it.
const R: &str = r#"
command -v apt-get >/dev/null || { echo "the image has no apt-get: R is left out"; exit 0; }
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update || exit 1
apt-cache show r-cran-irkernel >/dev/null 2>&1 || { echo "no package r-cran-irkernel: R is left out"; exit 0; }
apt-get -qq -y --no-install-recommends install r-cran-irkernel </dev/null && apt-get clean || exit 1
PATH=/opt/code-interpreter/bin:$PATH Rscript -e 'IRkernel::installspec(prefix = "/opt/code-interpreter")'
"#;

/// Puts Java in: JJava, and the kit whose compiler it is.
const JAVA: &str = r#"
/opt/code-interpreter/bin/pip install --quiet --no-cache-dir jjava==1.0a8 || exit 1
command -v javac >/dev/null && exit 0
command -v apt-get >/dev/null || { echo "the image lacks a JDK, and has no apt-get" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update && apt-get -qq -y --no-install-recommends install default-jdk-headless </dev/null && apt-get clean
"#;

/// A language that is put in where it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Further {
    /// A JDK of Debian's and the kernel JJava: 125 MB to fetch, 300 MB of disk
    Java,
}

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

/// What the server is made of, the same bytes whenever it is made.
pub fn archive() -> std::io::Result<Bytes> {
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

/// What makes it. `hash` is what the archive was uploaded under, `further` are packages of PyPI.
pub fn steps(further: &[&str], with: &[Further], hash: &str) -> Vec<Value> {
    let pip = format!("{PLACE}/bin/pip install --quiet --no-cache-dir");
    let mut steps = vec![
        as_root(BASICS),
        as_root(&format!("python3 -m venv {PLACE} && {pip} {NEEDED}")),
        as_root(&format!(
            "mkdir -p {PLACE}/den && cd {PLACE}/den && npm install --no-audit --no-fund --save acorn@8 sucrase@3"
        )),
        as_root(R),
    ];
    if with.contains(&Further::Java) {
        steps.push(as_root(JAVA));
    }
    if !further.is_empty() {
        steps.push(as_root(&format!("{pip} '{}'", further.join("' '"))));
    }
    steps.push(json!({ "type": "COPY", "args": [".", format!("{PLACE}/den/"), "root", ""], "filesHash": hash }));
    steps.push(as_root(SETTLE));
    steps.push(json!({ "type": "ENV", "args": ["PATH", format!("{PLACE}/bin:$PATH")] }));
    steps
}

/// The server, in each sandbox.
pub fn start() -> Start {
    Start {
        start_cmd: format!("exec {PLACE}/bin/python {PLACE}/den/server.py"),
        start_user: "root",
        start_restart: "always",
        ready_cmd: format!("{PLACE}/bin/python {PLACE}/den/ready.py"),
    }
}

/// Whether it is `name`, `name[extra]`, `name==1.2`.
pub fn is_package(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.[],=<>~!+".contains(&byte))
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
