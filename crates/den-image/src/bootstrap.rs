//! Images from a Debian mirror, where no registry can be reached.
//!
//! ```text
//! the host's apt sources ─► mmdebstrap ──tar on stdout──► unpack ─► layer
//!                        └► debootstrap ─► folder ─► tar ──┘
//! ```
//!
//! The sources, the proxy and the certificates are the host's own, so a build works wherever
//! `apt-get install` does. The image keeps the sources and, if asked, the certificates, not the proxy.
//!
//! Invariant: what a build leaves behind when it fails is in its job's folder.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use den_model::ImageName;

use crate::{
    Image, ImageConfig, ImageError, ImageStore, Progress, ProgressEvent,
    error::At as _,
    folder,
    import::stream_layer,
    progress::stage,
    sources::{Source, host_sources},
    store::Job,
};

/// What kind of image to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// A minimal system with apt, and the packages asked for.
    Plain,
    /// The default image: what an agent wants at hand, and a user `user` who may use sudo.
    Base,
}

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// The name that it gets.
    pub name: ImageName,
    /// Distribution and release, such as `debian:bookworm` or `ubuntu:noble`.
    pub from: String,
    /// Packages besides those of the recipe.
    pub packages: Vec<String>,
    /// Where to get packages; the host's apt sources when absent.
    pub mirror: Option<String>,
    /// What kind.
    pub recipe: Recipe,
    /// Whether programs inside trust the certificates that this host's administrator added.
    pub host_certificates: bool,
}

impl BuildSpec {
    /// The default image, under the name `base`.
    pub fn base() -> Self {
        Self {
            name: "base".parse().expect("a good name"),
            from: "debian:bookworm".to_owned(),
            packages: Vec::new(),
            mirror: None,
            recipe: Recipe::Base,
            host_certificates: true,
        }
    }
}

/// What [`Recipe::Base`] has besides the essential packages and apt.
const BASE_PACKAGES: &[&str] = &[
    "adduser",
    "build-essential",
    "ca-certificates",
    "curl",
    "file",
    "fuse3",
    "git",
    "gnupg",
    "iproute2",
    "iputils-ping",
    "jq",
    "less",
    "lsof",
    "mount",
    "netbase",
    "nodejs",
    "npm",
    "openssh-client",
    "openssl",
    "passwd",
    "procps",
    "psmisc",
    "python-is-python3",
    "python3",
    "python3-dev",
    "python3-pip",
    "python3-venv",
    "ripgrep",
    "rsync",
    "sqlite3",
    "sudo",
    "tzdata",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
    "zip",
];

const HOST_CERTIFICATES: &str = "/usr/local/share/ca-certificates";
const CERTIFICATE_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Installs packages (`$2` and on) in a root (`$1`) that debootstrap made, without starting services.
const INSTALL: &str = r#"set -eu
root="$1"
shift
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get -q update
chroot "$root" apt-get -q -y dist-upgrade
if [ $# -gt 0 ]; then chroot "$root" apt-get -q -y install "$@"; fi
chroot "$root" apt-get clean
rm "$root/usr/sbin/policy-rc.d"
"#;

impl ImageStore {
    /// Builds an image from a Debian or Ubuntu mirror. Needs root. Minutes, not seconds.
    ///
    /// Errors: [`ImageError::BuildToolMissing`], [`ImageError::BuildRefused`] (no mirror known, a word
    /// that is no package), [`ImageError::BuildFailed`] with the tool's last words.
    pub fn build(&self, spec: &BuildSpec, progress: &dyn Progress) -> Result<Arc<Image>, ImageError> {
        let plan = Plan::new(spec)?;
        let job = self.job()?;
        let script = job.dir.join("customize");
        fs::write(&script, plan.script(spec)).at("cannot write", &script)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).at("cannot change", &script)?;
        let unpacked = match tool()? {
            Tool::Mmdebstrap(program) => {
                stage(progress, format!("bootstrapping {} with mmdebstrap", spec.from));
                let mut command = plan.mmdebstrap(&program, &script);
                command.stdout(Stdio::piped());
                let ran = Ran::start(command, spec, progress, |out| stream_layer(self, &job, out, "1", progress))?;
                ran.finish(spec)?
            }
            Tool::Debootstrap(program) => {
                stage(progress, format!("bootstrapping {} with debootstrap", spec.from));
                let target = job.dir.join("root");
                plan.debootstrap(&program, &target, &script, spec, progress, &job)?;
                stage(progress, "packing");
                folder::as_tar(&target, |tar| stream_layer(self, &job, tar, "1", progress))?
            }
        };
        stage(progress, "keeping the layer");
        job.place(&unpacked.0, &unpacked.1)?;
        let layers = vec![format!("sha256:{}", unpacked.1.diff_hex)];
        let source = match spec.recipe {
            Recipe::Base => format!("built from {} with the recipe base", spec.from),
            Recipe::Plain => format!("built from {}", spec.from),
        };
        job.commit(&spec.name, None, layers, plan.config(spec), source)
    }
}

/// A build with everything found out that can be before it starts.
struct Plan {
    suite: String,
    sources: Vec<Source>,
    packages: Vec<String>,
    apt_options: Vec<String>,
    certificates: bool,
}

impl Plan {
    fn new(spec: &BuildSpec) -> Result<Self, ImageError> {
        let refuse = |reason: String, hint: &'static str| {
            Err(ImageError::BuildRefused { name: spec.name.clone(), reason, hint })
        };
        let (distribution, suite) = spec.from.split_once(':').unwrap_or((&spec.from, ""));
        let is_word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b':' | b'=' | b'~'))
        };
        if !matches!(distribution, "debian" | "ubuntu") || !is_word(suite) || suite.contains(':') {
            return refuse(
                format!("`{}` is no release of Debian or Ubuntu", spec.from),
                "name one such as `debian:bookworm` or `ubuntu:noble`",
            );
        }
        if let Some(package) = spec.packages.iter().find(|package| !is_word(package)) {
            return refuse(
                format!("`{package}` is no package's name"),
                "packages are named as `apt-get install` takes them",
            );
        }
        let sources = match &spec.mirror {
            Some(mirror) => {
                let known = ["http://", "https://", "file:/", "copy:/"].iter().any(|scheme| mirror.starts_with(scheme));
                if !known || mirror.contains(|c: char| c.is_whitespace() || c.is_control()) {
                    return refuse(
                        format!("`{mirror}` is no mirror"),
                        "a mirror is a URL such as `http://HOST/debian`",
                    );
                }
                let components: &[&str] = if distribution == "ubuntu" { &["main", "universe"] } else { &["main"] };
                vec![Source {
                    uri: mirror.clone(),
                    suite: suite.to_owned(),
                    components: components.iter().map(|&c| c.to_owned()).collect(),
                    signed_by: None,
                }]
            }
            None => host_sources(Path::new("/etc"), distribution, suite),
        };
        if sources.is_empty() {
            return refuse(
                format!("this host's apt sources do not say where `{distribution}` is to be had"),
                "name a mirror with `--mirror http://HOST/debian`",
            );
        }
        let mut packages: Vec<String> = match spec.recipe {
            Recipe::Base => BASE_PACKAGES.iter().map(|&package| package.to_owned()).collect(),
            Recipe::Plain => Vec::new(),
        };
        packages.extend(spec.packages.iter().cloned());
        let certificates = spec.host_certificates
            && fs::read_dir(HOST_CERTIFICATES)
                .is_ok_and(|mut list| list.any(|e| e.is_ok_and(|e| e.path().extension().is_some_and(|x| x == "crt"))));
        if certificates {
            packages.push("ca-certificates".to_owned());
        }
        packages.sort();
        packages.dedup();
        Ok(Self { suite: suite.to_owned(), sources, packages, apt_options: apt_options(), certificates })
    }

    fn mmdebstrap(&self, program: &Path, script: &Path) -> Command {
        let mut command = Command::new(program);
        command.args(["--mode=root", "--variant=apt", "--format=tar"]);
        for option in &self.apt_options {
            command.arg(format!("--aptopt={option}"));
        }
        if !self.packages.is_empty() {
            command.arg(format!("--include={}", self.packages.join(",")));
        }
        // An executable file's path, as it is: mmdebstrap then runs it with the root as its argument.
        command.arg(format!("--customize-hook={}", script.display()));
        command.arg(&self.suite).arg("-");
        command.args(self.sources.iter().map(Source::line));
        command
    }

    fn debootstrap(
        &self,
        program: &Path,
        target: &Path,
        script: &Path,
        spec: &BuildSpec,
        progress: &dyn Progress,
        job: &Job,
    ) -> Result<(), ImageError> {
        let first = &self.sources[0];
        let mut command = Command::new(program);
        command.arg("--variant=minbase");
        if let Some(keyring) = &first.signed_by {
            command.arg(format!("--keyring={keyring}"));
        }
        if !first.components.is_empty() {
            command.arg(format!("--components={}", first.components.join(",")));
        }
        command.arg(&self.suite).arg(target).arg(&first.uri).stdout(Stdio::piped());
        run_lines(command, spec, progress)?;
        let write = |file: &str, text: String| {
            let path = target.join(file);
            fs::write(&path, text).at("cannot write", path)
        };
        write("etc/apt/sources.list", self.sources.iter().map(|source| source.line() + "\n").collect())?;
        write(
            "etc/apt/apt.conf.d/99mmdebstrap",
            self.apt_options.iter().map(|option| format!("{option};\n")).collect(),
        )?;
        // Its own resolver is no match for apt's, so apt brings the packages. In a mount namespace,
        // since what is mounted there then cannot be left behind.
        let install = job.dir.join("install");
        fs::write(&install, INSTALL).at("cannot write", &install)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh"]).arg(&install).arg(target).args(&self.packages);
        command.stdout(Stdio::piped());
        run_lines(command, spec, progress)?;
        let mut command = Command::new(script);
        command.arg(target).stdout(Stdio::piped());
        run_lines(command, spec, progress)
    }

    /// Runs on the host with the new root as `$1`, after every package is there.
    fn script(&self, spec: &BuildSpec) -> String {
        let mut script = String::from(
            "#!/bin/sh\nset -eu\nroot=\"$1\"\n\
             rm -rf \"$root\"/var/lib/apt/lists/* \"$root\"/var/cache/apt/*.bin \"$root\"/var/cache/apt/archives/*.deb\n\
             mkdir -p \"$root\"/var/lib/apt/lists/partial \"$root\"/var/cache/apt/archives/partial\n\
             : > \"$root\"/etc/machine-id\nrm -f \"$root\"/var/lib/dbus/machine-id\n\
             rm -f \"$root\"/etc/hostname \"$root\"/etc/resolv.conf\n\
             printf 'localhost\\n' > \"$root\"/etc/hostname\n: > \"$root\"/etc/resolv.conf\n\
             # The way to the mirror is this host's business.\n\
             if [ -f \"$root\"/etc/apt/apt.conf.d/99mmdebstrap ]; then\n\
             sed -i '/Proxy/d' \"$root\"/etc/apt/apt.conf.d/99mmdebstrap\nfi\n",
        );
        if self.certificates {
            script.push_str(&format!(
                "mkdir -p \"$root\"{HOST_CERTIFICATES}\ncp {HOST_CERTIFICATES}/*.crt \"$root\"{HOST_CERTIFICATES}/\n\
                 chroot \"$root\" update-ca-certificates\n"
            ));
        }
        if spec.recipe == Recipe::Base {
            script.push_str(
                "chroot \"$root\" useradd --uid 1000 --user-group --create-home --shell /bin/bash user\n\
                 printf 'user ALL=(ALL:ALL) NOPASSWD:ALL\\n' > \"$root\"/etc/sudoers.d/user\n\
                 chmod 0440 \"$root\"/etc/sudoers.d/user\n\
                 mkdir -p \"$root\"/etc/docker\n\
                 printf '{\"storage-driver\":\"overlay2\"}\\n' > \"$root\"/etc/docker/daemon.json\n",
            );
        }
        script
    }

    fn config(&self, spec: &BuildSpec) -> ImageConfig {
        let mut env = vec![format!("PATH={PATH}"), "LANG=C.UTF-8".to_owned()];
        if spec.recipe == Recipe::Base {
            // The computer is the isolation; a virtual environment around each script is in the way.
            env.push("PIP_BREAK_SYSTEM_PACKAGES=1".to_owned());
            env.push("PIP_ROOT_USER_ACTION=ignore".to_owned());
        }
        if self.certificates {
            // Programs that carry a list of their own, such as pip in a virtual environment and node.
            for name in ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
                env.push(format!("{name}={CERTIFICATE_BUNDLE}"));
            }
        }
        ImageConfig { env, cmd: vec!["/bin/bash".to_owned()], ..ImageConfig::default() }
    }
}

/// How this host's apt reaches its sources, as options for another apt.
fn apt_options() -> Vec<String> {
    let mut options = vec!["APT::Install-Recommends \"false\"".to_owned(), "Acquire::Languages \"none\"".to_owned()];
    let mut command = Command::new("apt-config");
    command.args(["dump", "--no-empty", "--format", "%F \"%v\";%n"]);
    command.args(["Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until", "Acquire::Check-Date"]);
    command.args(["Acquire::ForceIPv4", "Acquire::Retries"]);
    if let Ok(output) = command.stdin(Stdio::null()).output()
        && output.status.success()
    {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        options.extend(text.lines().map(|line| line.trim_end_matches(';').to_owned()));
    }
    options
}

enum Tool {
    Mmdebstrap(PathBuf),
    Debootstrap(PathBuf),
}

fn tool() -> Result<Tool, ImageError> {
    let find = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
        folders.map(|folder| folder.join(name)).find(|path| path.is_file())
    };
    find("mmdebstrap")
        .map(Tool::Mmdebstrap)
        .or_else(|| find("debootstrap").map(Tool::Debootstrap))
        .ok_or(ImageError::BuildToolMissing)
}

/// A tool that has ended, and what came of its output.
struct Ran<T> {
    child: Child,
    last: String,
    output: Result<T, ImageError>,
}

impl<T> Ran<T> {
    /// Starts `command`, gives its standard output to `take`, and each line of its standard error to
    /// `progress`.
    fn start(
        mut command: Command,
        spec: &BuildSpec,
        progress: &dyn Progress,
        take: impl FnOnce(&mut dyn Read) -> Result<T, ImageError>,
    ) -> Result<Self, ImageError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        let mut child = command.spawn().map_err(|error| ImageError::BuildRefused {
            name: spec.name.clone(),
            reason: format!("{program} does not start: {error}"),
            hint: "see `den doctor`",
        })?;
        let mut stdout = child.stdout.take().expect("piped above");
        let stderr = child.stderr.take().expect("piped above");
        let last = Mutex::new(String::new());
        let output = thread::scope(|scope| {
            scope.spawn(|| follow(stderr, progress, &last));
            let output = take(&mut stdout);
            // A tool whose output is refused ends by SIGPIPE, and its standard error with it.
            drop(stdout);
            output
        });
        Ok(Self { child, last: last.into_inner().unwrap_or_default(), output })
    }

    fn finish(mut self, spec: &BuildSpec) -> Result<T, ImageError> {
        let status = self.child.wait().map_err(ImageError::Stream)?;
        match self.output {
            // The tool's own end explains an output that is cut short.
            Err(ImageError::BadLayer(_)) | Ok(_) if !status.success() => {
                Err(ImageError::BuildFailed { name: spec.name.clone(), status: status.to_string(), last: self.last })
            }
            output => output,
        }
    }
}

/// Runs a tool whose output is only news.
fn run_lines(command: Command, spec: &BuildSpec, progress: &dyn Progress) -> Result<(), ImageError> {
    let last = Mutex::new(String::new());
    let ran = Ran::start(command, spec, progress, |out| {
        follow(out, progress, &last);
        Ok(())
    })?;
    let mut ran = Ran { child: ran.child, last: ran.last, output: ran.output };
    if ran.last.is_empty() {
        ran.last = last.into_inner().unwrap_or_default();
    }
    ran.finish(spec)
}

/// Passes lines on, and keeps the first error, or else the last line.
fn follow(source: impl Read, progress: &dyn Progress, last: &Mutex<String>) {
    let mut lines = BufReader::new(source);
    let mut line = Vec::new();
    while matches!(lines.by_ref().take(8192).read_until(b'\n', &mut line), Ok(count) if count > 0) {
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        line.clear();
        if text.is_empty() {
            continue;
        }
        if let Ok(mut last) = last.lock() {
            // The first error says what happened; those after it are its consequences.
            if !last.starts_with("E:") {
                last.clone_from(&text);
            }
        }
        progress.event(ProgressEvent::Line { text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_cannot_be_is_refused_before_it_starts() {
        let check = |change: fn(&mut BuildSpec), expected: &str| {
            let mut spec = BuildSpec::base();
            change(&mut spec);
            let error = Plan::new(&spec).err().expect("refused").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(|spec| spec.from = "plan9".into(), "no release");
        check(|spec| spec.from = "debian:../x".into(), "no release");
        check(|spec| spec.from = "debian:".into(), "no release");
        check(|spec| spec.packages = vec!["curl; reboot".into()], "no package's name");
        check(|spec| spec.packages = vec!["--x".into()], "no package's name");
        check(|spec| spec.mirror = Some("x y".into()), "no mirror");
        check(|spec| spec.from = "ubuntu:noble".into(), "apt sources");
    }
}
