//! What is done inside a builder: commands, and what is copied. All of it are steps of the computer.

use std::{collections::BTreeMap, io::Write as _, path::Path, time::Duration};

use den_api::{EndView, ExecRequest};
use den_control::{Error, Execution, OutputItem, OutputStream};
use flate2::write::MultiGzDecoder;
use tokio::io::AsyncReadExt as _;

use super::{
    Build, Context,
    log::Level,
    plan::{Step, expand},
};
use crate::{E2b, envd::paths::clean, who};

/// How much of an archive is read, and inflated, at a time.
const READ_BYTES: usize = 256 << 10;
const INFLATE_BYTES: usize = 16 << 10;

/// The most of a command's output that is looked at here.
const OUT_BYTES_MAX: usize = 1 << 20;

/// The longest line that is waited for.
const LINE_BYTES_MAX: usize = 4096;

/// Where an archive is unpacked.
const UNPACKED: &str = "/.den-copy";

/// Checks that the image is one that SDKs can use, and has the user that they use.
const PREPARE: &str = r#"
[ -x /bin/bash ] || { echo "it has no /bin/bash, which every command of the SDKs is run by" >&2; exit 1; }
"#;

/// Makes a user, `$1`, who may use sudo, unless it is there.
const USER: &str = r#"
set -e
id -u "$1" >/dev/null 2>&1 || {
    if command -v useradd >/dev/null; then useradd --create-home --user-group --shell /bin/bash "$1"
    else adduser -D -s /bin/bash "$1"; fi
    mkdir -p /etc/sudoers.d
    printf '%s ALL=(ALL:ALL) NOPASSWD:ALL\n' "$1" > "/etc/sudoers.d/den-$1"
    chmod 0440 "/etc/sudoers.d/den-$1"
}
"#;

/// Makes a directory `$1` and those above it, owned by `$2` where they are new.
const MAKE: &str = r#"
make() {
    if [ -d "$1" ]; then return 0; fi
    make "$(dirname -- "$1")" || return 1
    mkdir -- "$1" && chown -- "$owner" "$1"
}
"#;

/// Copies what was unpacked: `$1` the archive's root, `$2` the source in it, `$3` where to, `$4` the owner, `$5` the
/// mode, `$6` `one`, `each` (what a pattern has found, side by side) or `tree`.
const COPY: &str = r#"
set -e
root=$1 source=$2 to=$3 owner=$4 mode=$5 how=$6
trap 'rm -rf -- "$root"' EXIT
from="$root${source:+/$source}"
[ -e "$from" ] || [ -L "$from" ] || { echo "there is no '$source' in what was uploaded" >&2; exit 1; }
if [ -n "$mode" ]; then find "$from" ! -type l -exec chmod -- "$mode" {} +; fi
inside() {
    for one in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        if [ -e "$one" ] || [ -L "$one" ]; then cp -a -- "$one" "$2/"; fi
    done
}
place() {
    if [ -d "$1" ] && [ ! -L "$1" ]; then
        make "${2%/}"
        inside "$1" "${2%/}"
    elif [ -d "$2" ] || [ "${2%/}" != "$2" ]; then
        make "${2%/}"
        cp -a -- "$1" "${2%/}/"
    else
        make "$(dirname -- "$2")"
        cp -a -- "$1" "$2"
    fi
}
case $how in
one | tree) place "$from" "$to" ;;
each)
    make "${to%/}"
    for each in "$from"/* "$from"/.[!.]* "$from"/..?*; do
        if [ -e "$each" ] || [ -L "$each" ]; then place "$each" "${to%/}/"; fi
    done ;;
esac
"#;

/// What came of a command.
pub(super) struct Ran {
    pub end: EndView,
    pub out: Vec<u8>,
}

/// A command of a build.
pub(super) struct Command<'a> {
    pub argv: Vec<String>,
    pub user: &'a str,
    pub cwd: Option<&'a str>,
    pub env: BTreeMap<String, String>,
    /// It is ended then.
    pub within: Duration,
    /// Under which step it is said what it prints; not at all without.
    pub said_under: Option<&'a str>,
}

/// What a step copies.
struct Copied<'a> {
    archive: &'a Path,
    source: &'a str,
    to: &'a str,
    owner: &'a str,
    mode: &'a str,
}

/// A builder at work.
pub(super) struct Builder<'a> {
    pub e2b: &'a E2b,
    pub build: &'a Build,
    pub name: &'a str,
}

/// Breaks output into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || self.0.len() >= LINE_BYTES_MAX {
                self.end(&mut each);
            }
            if byte != b'\n' {
                self.0.push(byte);
            }
        }
    }

    fn end(&mut self, mut each: impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.0);
        if !line.trim().is_empty() {
            each(line.trim_end());
        }
        self.0.clear();
    }
}

impl Builder<'_> {
    /// Runs a command to its end.
    pub(super) async fn run(&self, command: Command<'_>) -> Result<Ran, Error> {
        let Command { argv, user, cwd, env, within, said_under } = command;
        let request = ExecRequest {
            argv,
            cwd: cwd.map(str::to_owned),
            env,
            user: Some(user.to_owned()),
            timeout_ms: Some(u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1)),
            ..ExecRequest::default()
        };
        let Execution { mut output, .. } = self.e2b.control().exec(self.name, request, &who()).await?;
        let (mut out, mut stdout, mut stderr) = (Vec::new(), Lines::default(), Lines::default());
        let say = |level, line: &str| {
            if let Some(step) = said_under {
                self.build.say(level, Some(step), line);
            }
        };
        loop {
            match output.next().await? {
                None => return Err(Error::internal("a step's output ends without its end")),
                Some(OutputItem::Cut { .. }) => {}
                Some(OutputItem::Data { stream: OutputStream::Stderr, bytes, .. }) => {
                    stderr.take(&bytes, |line| say(Level::Warn, line));
                }
                Some(OutputItem::Data { bytes, .. }) => {
                    let room = OUT_BYTES_MAX - out.len();
                    out.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    stdout.take(&bytes, |line| say(Level::Info, line));
                }
                Some(OutputItem::End(step)) => {
                    stdout.end(|line| say(Level::Info, line));
                    stderr.end(|line| say(Level::Warn, line));
                    let end = step.end.ok_or_else(|| Error::internal("a step that ended has no end"))?;
                    return Ok(Ran { end, out });
                }
            }
        }
    }

    /// Runs a script of ours as root.
    async fn script(&self, script: &str, args: &[&str], within: Duration, step: &str) -> Result<(), String> {
        let argv = ["/bin/sh", "-c", script, "den"].into_iter().chain(args.iter().copied()).map(str::to_owned);
        let command = Command {
            argv: argv.collect(),
            user: "root",
            cwd: Some("/"),
            env: BTreeMap::new(),
            within,
            said_under: Some(step),
        };
        let ran = self.run(command).await.map_err(|error| error.message)?;
        match ran.end.exit_code {
            0 => Ok(()),
            _ => Err(how(&ran.end)),
        }
    }

    /// Has a computer be one that SDKs can use.
    pub(super) async fn prepare(&self, context: &Context, within: Duration) -> Result<(), String> {
        self.script(PREPARE, &[], within, "base")
            .await
            .map_err(|_| "the image has no /bin/bash, by which the SDKs run every command".to_owned())?;
        self.script(USER, &[&context.user], within, "base")
            .await
            .map_err(|why| format!("the user '{}' is not there and could not be made: {why}", context.user))?;
        let script = format!("{MAKE}owner=$2\nmake \"$1\"");
        self.script(&script, &[&context.workdir, &owner(&context.user)], within, "base").await
    }

    /// Carries a step out; what holds from there on.
    pub(super) async fn step(
        &self,
        number: &str,
        step: &Step,
        archive: Option<&Path>,
        context: &Context,
        within: Duration,
    ) -> Result<Context, String> {
        let mut after = context.clone();
        match step {
            Step::Run { command, user } => {
                let user = user.as_deref().unwrap_or(&context.user);
                let failed = |why: String| format!("failed to run command '{}': {why}", shown(command));
                let ran = self
                    .run(Command {
                        argv: ["/bin/bash", "-l", "-c", command].map(str::to_owned).to_vec(),
                        user,
                        cwd: Some(&context.workdir),
                        env: context.env.clone(),
                        within,
                        said_under: Some(number),
                    })
                    .await
                    .map_err(|error| failed(refused(&error, user)))?;
                if ran.end.exit_code != 0 {
                    return Err(failed(how(&ran.end)));
                }
            }
            Step::Copy { source, to, owner: given, mode, .. } => {
                let archive = archive.ok_or_else(|| format!("the files of '{source}' were not uploaded"))?;
                let owner = owner(given.as_deref().unwrap_or(&context.user));
                let mode = mode.as_deref().unwrap_or("");
                let copied = Copied { archive, source, to, owner: &owner, mode };
                self.copy(copied, &context.workdir, within, number)
                    .await
                    .map_err(|why| format!("failed to copy '{source}': {why}"))?;
            }
            Step::Env(pairs) => {
                if pairs.iter().any(|(_, value)| value.contains('$')) {
                    let mut env = self.environment(context, within).await?;
                    for (name, value) in pairs {
                        let value = expand(value, &env);
                        env.insert(name.clone(), value.clone());
                        after.env.insert(name.clone(), value);
                    }
                } else {
                    after.env.extend(pairs.iter().cloned());
                }
            }
            Step::Workdir(path) => {
                after.workdir = absolute(path, &context.workdir);
                let script = format!("{MAKE}owner=$2\nmake \"$1\"");
                self.script(&script, &[&after.workdir, &owner(&context.user)], within, number)
                    .await
                    .map_err(|why| format!("failed to make '{}': {why}", after.workdir))?;
            }
            Step::User(name) => {
                let (user, _) = name.split_once(':').unwrap_or((name, ""));
                self.script(USER, &[user], within, number)
                    .await
                    .map_err(|why| format!("failed to make the user '{name}': {why}"))?;
                after.user = name.clone();
            }
        }
        Ok(after)
    }

    /// What a command finds in its environment.
    async fn environment(&self, context: &Context, within: Duration) -> Result<BTreeMap<String, String>, String> {
        let command = Command {
            argv: vec!["env".to_owned(), "-0".to_owned()],
            user: &context.user,
            cwd: Some("/"),
            env: context.env.clone(),
            within,
            said_under: None,
        };
        let ran = self.run(command).await.map_err(|error| error.message)?;
        if ran.end.exit_code != 0 {
            return Err(format!("the environment cannot be read: {}", how(&ran.end)));
        }
        let text = String::from_utf8_lossy(&ran.out).into_owned();
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    async fn copy(&self, copied: Copied<'_>, workdir: &str, within: Duration, number: &str) -> Result<(), String> {
        let Copied { archive, source, to, owner, mode } = copied;
        self.script("rm -rf -- \"$1\" && mkdir -m 0755 -- \"$1\"", &[UNPACKED], within, number).await?;
        self.unpack(archive, owner).await?;
        let (base, how) = found_by(source);
        let is_folder = to.is_empty() || to.ends_with('/') || to.ends_with("/.") || to == ".";
        let mut to = absolute(to, workdir);
        if is_folder && !to.ends_with('/') {
            to.push('/');
        }
        let script = format!("{MAKE}{COPY}");
        self.script(&script, &[UNPACKED, &base, &to, owner, mode, how], within, number).await
    }

    /// Unpacks an archive, inflated here if it is to be.
    async fn unpack(&self, archive: &Path, owner: &str) -> Result<(), String> {
        let lost = |error: std::io::Error| format!("what was uploaded cannot be read: {error}");
        let said = |error: Error| error.message;
        let mut file = tokio::fs::File::open(archive).await.map_err(lost)?;
        let mut writer = self
            .e2b
            .control()
            .tar_in(self.name, UNPACKED.as_bytes(), Some(owner.trim_end_matches(':').to_owned()), None, &who())
            .await
            .map_err(|error| refused(&error, owner))?;
        let mut buffer = vec![0; READ_BYTES];
        let (mut decoder, mut first) = (None, true);
        loop {
            let count = file.read(&mut buffer).await.map_err(lost)?;
            if count == 0 {
                break;
            }
            let bytes = &buffer[..count];
            if std::mem::take(&mut first) && bytes.starts_with(&[0x1f, 0x8b]) {
                decoder = Some(MultiGzDecoder::new(Vec::new()));
            }
            let Some(decoder) = &mut decoder else {
                writer.send(bytes).await.map_err(said)?;
                continue;
            };
            for piece in bytes.chunks(INFLATE_BYTES) {
                decoder.write_all(piece).map_err(lost)?;
                let inflated = std::mem::take(decoder.get_mut());
                if !inflated.is_empty() {
                    writer.send(&inflated).await.map_err(said)?;
                }
            }
        }
        if let Some(decoder) = decoder {
            let rest = decoder.finish().map_err(lost)?;
            if !rest.is_empty() {
                writer.send(&rest).await.map_err(said)?;
            }
        }
        writer.finish().await.map_err(said)
    }
}

/// Where in the archive what a source names begins, and how it is copied from there.
fn found_by(source: &str) -> (String, &'static str) {
    let is_pattern = |part: &str| part.contains(['*', '?', '[', '{']);
    let parts: Vec<&str> = source.split('/').collect();
    match parts.iter().position(|part| is_pattern(part)) {
        None => (source.to_owned(), "one"),
        Some(at) if at + 1 == parts.len() && !parts[at].contains("**") => (parts[..at].join("/"), "each"),
        Some(at) => (parts[..at].join("/"), "tree"),
    }
}

/// As `chown` reads it: with the user's own group where none is named.
fn owner(user: &str) -> String {
    if user.contains(':') { user.to_owned() } else { format!("{user}:") }
}

fn absolute(path: &str, workdir: &str) -> String {
    match path.starts_with('/') {
        true => clean(path),
        false => clean(&format!("{workdir}/{path}")),
    }
}

/// How a command ended, as upstream's builds say it.
pub(super) fn how(end: &EndView) -> String {
    match (&end.message, end.how.as_str(), end.signal) {
        (Some(message), _, _) => message.clone(),
        (_, "timed_out", _) => "it took too long".to_owned(),
        (_, _, Some(signal)) => format!("signal {signal} ended it"),
        _ => format!("exit status {}", end.exit_code),
    }
}

/// Why a command was not begun.
pub(super) fn refused(error: &Error, user: &str) -> String {
    match error.code {
        "no_such_user" => format!("command failed: unauthenticated: invalid username: '{user}'"),
        _ => error.message.clone(),
    }
}

/// A command as a message has it.
pub(super) fn shown(command: &str) -> String {
    command.chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_whole() {
        let (mut lines, mut told) = (Lines::default(), Vec::new());
        for piece in ["a", "b\nc\n\n", "d"] {
            lines.take(piece.as_bytes(), |line| told.push(line.to_owned()));
        }
        lines.end(|line| told.push(line.to_owned()));
        assert_eq!(told, ["ab", "c", "d"]);
        lines.take(&vec![b'x'; LINE_BYTES_MAX * 3], |line| assert_eq!(line.len(), LINE_BYTES_MAX));
    }

    #[test]
    fn sources_are_found() {
        for (source, base, how) in [
            ("a/b.txt", "a/b.txt", "one"),
            ("", "", "one"),
            ("a/*.txt", "a", "each"),
            ("*", "", "each"),
            ("a/**/*.py", "a", "tree"),
            ("*/x", "", "tree"),
        ] {
            assert_eq!(found_by(source), (base.to_owned(), how), "{source}");
        }
        assert_eq!(
            (absolute("x/", "/w"), absolute("/a/../b", "/w"), absolute(".", "/w")),
            ("/w/x".into(), "/b".into(), "/w".into())
        );
        assert_eq!((owner("user"), owner("a:b")), ("user:".to_owned(), "a:b".to_owned()));
    }
}
