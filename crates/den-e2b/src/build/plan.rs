//! What a build is to do: read, checked, and told apart from what earlier builds did.

use std::collections::BTreeMap;

use den_model::Restart;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Context, StartHow};
use crate::{envd::paths::clean, error::ApiError};

/// The most steps of a build.
const STEPS_MAX: usize = 200;

/// The longest command, path or value, in bytes.
const WORD_BYTES_MAX: usize = 128 << 10;

/// `POST /v2/templates/{id}/builds/{build}`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    from_image: Option<String>,
    from_template: Option<String>,
    force: Option<bool>,
    steps: Option<Vec<AskedStep>>,
    start_cmd: Option<String>,
    start_user: Option<String>,
    start_restart: Option<String>,
    ready_cmd: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AskedStep {
    #[serde(rename = "type")]
    kind: String,
    args: Option<Vec<String>>,
    files_hash: Option<String>,
    force: Option<bool>,
}

/// What a build begins as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    Image(String),
    Template(String),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) enum Step {
    Run { command: String, user: Option<String> },
    Copy { source: String, to: String, owner: Option<String>, mode: Option<String>, hash: String },
    Env(Vec<(String, String)>),
    Workdir(String),
    User(String),
}

/// A step, and whether it is done whatever was done before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub step: Step,
    pub force: bool,
}

/// A build, all checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub from: From,
    pub force: bool,
    pub steps: Vec<Planned>,
    pub start: Option<String>,
    pub start_how: StartHow,
    pub ready: Option<String>,
}

/// How far a build had come after its base or a step: a state of a computer, and what holds from there on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    /// Of all that was done until then.
    pub key: String,
    pub holder: String,
    pub state: String,
    pub context: Context,
}

impl Asked {
    /// Errors: 400.
    pub(super) fn check(self) -> Result<Plan, ApiError> {
        let Self { from_image, from_template, force, steps, start_cmd, start_user, start_restart, ready_cmd } = self;
        let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let from = match (given(from_image), given(from_template)) {
            (Some(image), None) => From::Image(image),
            (None, Some(template)) => From::Template(template),
            (Some(_), Some(_)) => return Err(ApiError::bad("fromImage and fromTemplate: one of the two")),
            (None, None) => return Err(ApiError::bad("fromImage or fromTemplate: missing")),
        };
        let steps = steps.unwrap_or_default();
        if steps.len() > STEPS_MAX {
            return Err(ApiError::bad(format!("steps: {} are more than {STEPS_MAX}", steps.len())));
        }
        let (start, ready) = (given(start_cmd), given(ready_cmd));
        for (name, text) in [("startCmd", &start), ("readyCmd", &ready)] {
            if text.as_ref().is_some_and(|text| !is_word(text)) {
                return Err(ApiError::bad(format!("{name}: it is too long, or has a NUL")));
            }
        }
        let planned = |(at, step): (usize, AskedStep)| {
            let force = step.force.unwrap_or(false);
            step.check().map(|step| Planned { step, force }).map_err(|why| {
                let shown: String = why.chars().take(200).collect();
                ApiError::bad(format!("step {}: {}", at + 1, shown.escape_debug()))
            })
        };
        let steps = steps.into_iter().enumerate().map(planned).collect::<Result<_, _>>()?;
        let start_how = StartHow { user: given(start_user), restart: given(start_restart) };
        if start_how.user.as_ref().is_some_and(|user| !is_user(user)) {
            return Err(ApiError::bad("startUser: it is no name of a user"));
        }
        if let Some(Err(error)) = start_how.restart.as_ref().map(|restart| restart.parse::<Restart>()) {
            return Err(ApiError::bad(format!("startRestart: {error}")));
        }
        if start.is_none() && start_how != StartHow::default() {
            return Err(ApiError::bad("startUser and startRestart are of a startCmd"));
        }
        Ok(Plan { from, force: force.unwrap_or(false), steps, start, start_how, ready })
    }
}

fn is_word(text: &str) -> bool {
    text.len() <= WORD_BYTES_MAX && !text.contains('\0')
}

/// A user's or group's name, or both with `:`.
fn is_user(text: &str) -> bool {
    let fits = |name: &str| {
        !name.is_empty()
            && name.len() <= 64
            && !name.starts_with('-')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match text.split_once(':') {
        Some((user, group)) => fits(user) && fits(group),
        None => fits(text),
    }
}

/// 64 hexadecimal digits, which also name a file.
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl AskedStep {
    fn check(self) -> Result<Step, String> {
        let Self { kind, args, files_hash, .. } = self;
        let args = args.unwrap_or_default();
        if !args.iter().all(|text| is_word(text)) {
            return Err("an argument is too long, or has a NUL".to_owned());
        }
        let some = |at: usize| args.get(at).filter(|text| !text.is_empty()).cloned();
        let user = |at: usize| match some(at) {
            Some(user) if !is_user(&user) => Err(format!("`{user}` is no name of a user")),
            user => Ok(user),
        };
        let first = |what: &str| some(0).ok_or_else(|| format!("{kind} without {what}"));
        Ok(match kind.as_str() {
            "RUN" => Step::Run { command: first("a command")?, user: some(1) },
            "COPY" => {
                let source = first("a source")?;
                let hash = files_hash.filter(|hash| is_hash(hash)).ok_or("COPY without filesHash of 64 digits")?;
                let mode = some(3);
                if let Some(mode) = &mode
                    && (mode.len() > 5 || !mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte)))
                {
                    return Err(format!("`{mode}` is no mode"));
                }
                Step::Copy {
                    source: inner_path(&source)?,
                    to: args.get(1).cloned().unwrap_or_default(),
                    owner: user(2)?,
                    mode,
                    hash,
                }
            }
            "ENV" => {
                if args.is_empty() || args.len() % 2 == 1 {
                    return Err("ENV takes names and values".to_owned());
                }
                let pairs: Vec<_> = args.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
                if let Some((name, _)) = pairs.iter().find(|(name, _)| !is_variable(name)) {
                    return Err(format!("`{name}` is no name of a variable"));
                }
                Step::Env(pairs)
            }
            "WORKDIR" => Step::Workdir(first("a path")?),
            "USER" => {
                first("a name")?;
                Step::User(user(0)?.unwrap_or_default())
            }
            _ => return Err(format!("`{kind}` is none of RUN, COPY, ENV, WORKDIR and USER")),
        })
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A path within the archive, without what leads nowhere.
fn inner_path(path: &str) -> Result<String, String> {
    let mut depth = 0_i64;
    for part in path.split('/') {
        depth += match part {
            "" | "." => 0,
            ".." => -1,
            _ => 1,
        };
        if depth < 0 {
            return Err(format!("`{path}` leads out of its context"));
        }
    }
    match path.starts_with('/') {
        true => Err(format!("`{path}` is absolute")),
        false => Ok(clean(path)[1..].to_owned()),
    }
}

impl Plan {
    /// The keys of the base and of each step: what was done until then is the same where they are.
    pub(super) fn keys(&self, base: &str) -> Vec<String> {
        let mut key = blake3::hash(base.as_bytes()).to_hex().to_string();
        let mut keys = vec![key.clone()];
        for Planned { step, .. } in &self.steps {
            let text = serde_json::to_string(step).unwrap_or_default();
            key = blake3::hash(format!("{key} {text}").as_bytes()).to_hex().to_string();
            keys.push(key.clone());
        }
        keys
    }

    /// How many of the keys may be found in earlier builds.
    pub(super) fn reusable(&self) -> usize {
        match self.force {
            true => 0,
            false => 1 + self.steps.iter().take_while(|planned| !planned.force).count(),
        }
    }

    /// The hashes of what is copied.
    pub(super) fn files(&self) -> Vec<String> {
        let hash = |planned: &Planned| match &planned.step {
            Step::Copy { hash, .. } => Some(hash.clone()),
            _ => None,
        };
        self.steps.iter().filter_map(hash).collect()
    }
}

/// `$NAME` and `${NAME}` replaced by what they stand for, or by nothing; `\$` is a dollar.
pub(super) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        if let Some(after) = tail.strip_prefix("\\$") {
            out.push('$');
            rest = after;
            continue;
        }
        let braced = tail.strip_prefix("${").and_then(|inner| inner.split_once('}'));
        let (name, after) = match braced {
            Some(both) => both,
            None => {
                let inner = &tail[1..];
                let end = inner.find(|one: char| !one.is_ascii_alphanumeric() && one != '_').unwrap_or(inner.len());
                inner.split_at(end)
            }
        };
        if tail.starts_with('$') && is_variable(name) {
            out.push_str(env.get(name).map_or("", String::as_str));
            rest = after;
        } else {
            out.push_str(&tail[..1]);
            rest = &tail[1..];
        }
    }
    out.push_str(rest);
    out
}

/// Reads a body as it is sent; its registry's passwords are not looked at.
pub(super) fn read(body: Value) -> Result<Plan, ApiError> {
    serde_json::from_value::<Asked>(body).map_err(|error| ApiError::bad(format!("the body: {error}")))?.check()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(steps: Value) -> Result<Plan, u16> {
        read(json!({ "fromImage": "base", "steps": steps })).map_err(|error| error.status)
    }

    #[test]
    fn keys_are_the_same_up_to_what_differs() {
        let run = |text: &str| json!({ "type": "RUN", "args": [text] });
        let one = plan(json!([run("a"), run("b"), run("c")])).unwrap();
        let other = plan(json!([run("a"), run("x"), run("c")])).unwrap();
        let (a, b) = (one.keys("base"), other.keys("base"));
        assert!(a[..2] == b[..2] && a[2] != b[2] && a[3] != b[3]);
        assert_ne!(one.keys("other")[0], a[0]);
        assert_eq!(one.reusable(), 4);
        let forced = plan(json!([run("a"), { "type": "RUN", "args": ["b"], "force": true }, run("c")])).unwrap();
        assert_eq!(forced.reusable(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let hash = "a".repeat(64);
        for step in [
            json!({ "type": "RUN" }),
            json!({ "type": "RUN", "args": ["a\u{0}"] }),
            json!({ "type": "FROM", "args": ["a"] }),
            json!({ "type": "COPY", "args": ["a", "b"] }),
            json!({ "type": "COPY", "args": ["a", "b"], "filesHash": "../../etc" }),
            json!({ "type": "COPY", "args": ["../a", "b"], "filesHash": hash }),
            json!({ "type": "COPY", "args": ["a/../../b", "b"], "filesHash": hash }),
            json!({ "type": "COPY", "args": ["a", "b", "-x"], "filesHash": hash }),
            json!({ "type": "COPY", "args": ["a", "b", "", "9"], "filesHash": hash }),
            json!({ "type": "ENV", "args": ["a"] }),
            json!({ "type": "ENV", "args": ["a=b", "c"] }),
            json!({ "type": "USER", "args": ["a b"] }),
            json!({ "type": "WORKDIR", "args": [] }),
        ] {
            assert_eq!(plan(json!([step])).err(), Some(400), "{step}");
        }
        let copy = json!({ "type": "COPY", "args": ["./a/../b/", "c", "", "0755"], "filesHash": hash });
        let plan = plan(json!([copy])).unwrap();
        assert!(matches!(&plan.steps[0].step, Step::Copy { source, .. } if source == "b"));
        assert_eq!(plan.files(), [hash]);
    }

    #[test]
    fn how_a_start_command_is_kept_running_is_checked() {
        let read = |how: Value| {
            let mut body = json!({ "fromImage": "base", "startCmd": "x" });
            body.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
            read(body).map(|plan| plan.start_how).map_err(|error| error.status)
        };
        let how = StartHow { user: Some("root".to_owned()), restart: Some("always".to_owned()) };
        assert_eq!(read(json!({ "startUser": "root", "startRestart": "always" })), Ok(how));
        assert_eq!(read(json!({})), Ok(StartHow::default()));
        for bad in [
            json!({ "startUser": "a b" }),
            json!({ "startRestart": "ever" }),
            json!({ "startCmd": "", "startUser": "root" }),
        ] {
            assert_eq!(read(bad.clone()), Err(400), "{bad}");
        }
    }

    #[test]
    fn variables_stand_for_what_they_have() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("PATH".to_owned(), "/bin".to_owned())]);
        for (text, expected) in [
            ("$A", "1"),
            ("${A}b$A", "1b1"),
            ("$PATH:/x", "/bin:/x"),
            ("$NO-$", "-$"),
            ("\\$A \\n $1 ${", "$A \\n $1 ${"),
            ("ü$Aü", "ü1ü"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }
}
