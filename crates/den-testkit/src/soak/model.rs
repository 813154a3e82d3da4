//! What each computer must be: kept in the test, compared with what the daemon says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Files below the folder of the soak, by their name, and what is in them: lines.
pub type Files = BTreeMap<String, String>;

/// Memory of a computer as it is made.
pub const MEMORY_MIB: u64 = 512;

/// Where a computer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
    /// It runs.
    Running,
    /// It is stopped.
    Stopped,
    /// It came down with a launcher or in its boot, and can be started.
    Failed,
    /// It is paused.
    Paused,
    /// It is cut off, and was this before.
    Unplugged(Box<Stands>),
}

impl Stands {
    /// As the API calls it.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::Unplugged(_) => "unplugged",
        }
    }
}

/// How a step must have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this code.
    Code(i32),
    /// It may go on; when it has ended by itself, then with 0.
    Going,
    /// Cut off at some moment, or nobody was told how.
    Any,
}

/// A step that was acknowledged.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its end.
    pub end: End,
    /// All that it prints, where it ends by itself.
    pub output: Option<String>,
    /// The files after it, where nothing else was at work then.
    pub files: Option<Files>,
}

/// What it may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// `open`, `guarded` or `sealed`.
    pub posture: String,
    /// Its rules.
    pub allow: BTreeSet<String>,
}

/// Something that `undo` takes back.
#[derive(Debug, Clone)]
pub enum Undo {
    /// A restore or a merge; the files before.
    Disk(Files),
    /// A policy; the one before.
    Net(Net),
    /// A size; the memory before, in MiB.
    Memory(u64),
}

/// A computer as it must be.
#[derive(Debug, Clone)]
pub struct Computer {
    /// Its id; empty until the daemon has told it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub stands: Stands,
    /// Its files.
    pub files: Files,
    /// Its network.
    pub net: Net,
    /// Its named states.
    pub labels: BTreeMap<String, Files>,
    /// Its services.
    pub services: BTreeSet<String>,
    /// Its steps.
    pub steps: BTreeMap<u64, Step>,
    /// Kinds of steps that came with what was asked since it was compared last.
    pub unknown: BTreeSet<&'static str>,
    /// What can be taken back, the last at the end.
    pub undo: Vec<Undo>,
    /// The parent's id and the files it started from, as long as neither went back in time since.
    pub origin: Option<(String, Files)>,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// A fork with memory: the steps that may have run in its parent then, and go on in it.
    pub inherited: Option<BTreeSet<u64>>,
}

/// A computer as the daemon shows it.
#[derive(Debug)]
pub struct Seen {
    /// `GET /v1/computers/{c}`.
    pub info: Value,
    /// All its steps.
    pub steps: Vec<Value>,
    /// Its files now.
    pub files: Files,
    /// `GET …/net`.
    pub net: Value,
    /// Its states.
    pub states: Vec<Value>,
    /// Its services.
    pub services: Vec<Value>,
}

impl Seen {
    /// Its steps and states, a line a thing, for a failure.
    pub fn brief(&self) -> String {
        let step = |step: &Value| {
            let (kind, end) = (text(step, "kind"), text(&step["end"], "how"));
            format!("  step {} {kind} {end} state {} {}\n", step["number"], step["snapshot"], step["argv"])
        };
        let state = |state: &Value| format!("  state {state}\n");
        self.steps.iter().map(step).chain(self.states.iter().map(state)).collect()
    }
}

impl Computer {
    /// As one is made.
    pub fn new(name: &str) -> Self {
        Self {
            id: String::new(),
            name: name.to_owned(),
            stands: Stands::Running,
            files: Files::new(),
            net: Net { posture: "open".to_owned(), allow: BTreeSet::new() },
            labels: BTreeMap::new(),
            services: BTreeSet::new(),
            steps: BTreeMap::new(),
            unknown: BTreeSet::new(),
            undo: Vec::new(),
            origin: None,
            memory_mib: MEMORY_MIB,
            inherited: None,
        }
    }

    /// A fork of `self` that starts from `files`.
    pub fn forked(&self, name: &str, files: Files) -> Self {
        Self {
            net: self.net.clone(),
            services: self.services.clone(),
            memory_mib: self.memory_mib,
            files: files.clone(),
            origin: Some((self.id.clone(), files)),
            ..Self::new(name)
        }
    }

    /// A fork of `self` in which goes on what runs.
    pub fn copied(&self, name: &str) -> Self {
        let goes_on: BTreeMap<u64, Step> =
            self.steps.iter().filter(|(_, step)| step.end == End::Going).map(|(n, step)| (*n, step.clone())).collect();
        Self {
            inherited: Some(goes_on.keys().copied().collect()),
            steps: goes_on,
            ..self.forked(name, self.files.clone())
        }
    }

    /// Whatever ran in it has ended, at some moment.
    pub fn cut(&mut self) {
        for step in self.steps.values_mut().filter(|step| step.end == End::Going) {
            step.end = End::Any;
        }
    }

    /// Its disk is that of an older moment: whatever ran has ended, and it has no common past with others
    /// that the model knows of.
    pub fn back_to(&mut self, files: Files) {
        self.files = files;
        self.origin = None;
        self.cut();
    }

    /// Whether a step of it may still run.
    pub fn is_busy(&self) -> bool {
        self.steps.values().any(|step| step.end == End::Going)
    }

    /// Compares. Steps that the model does not know are those of services, or of a kind that is awaited or in `unknown`.
    pub fn differs(&self, seen: &Seen, unknown: &[&str]) -> Result<(), String> {
        let same = |what: &str, wanted: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
            let (wanted, found) = (format!("{wanted:?}"), format!("{found:?}"));
            if wanted == found { Ok(()) } else { Err(format!("{what}: wanted {wanted}, found {found}")) }
        };
        same("state", &self.stands.text(), &text(&seen.info, "state"))?;
        same("name", &self.name.as_str(), &text(&seen.info, "name"))?;
        same("files", &self.files, &seen.files)?;
        same("posture", &self.net.posture.as_str(), &text(&seen.net, "posture"))?;
        same("rules", &self.net.allow, &words(&seen.net["allow"]))?;
        let services: BTreeSet<String> = seen.services.iter().map(|one| text(one, "name").to_owned()).collect();
        same("services", &self.services, &services)?;
        let labels: BTreeSet<&str> = seen.states.iter().filter_map(|state| state["label"].as_str()).collect();
        same("named states", &self.labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), &labels)?;
        let numbers: Vec<u64> = seen.steps.iter().filter_map(|step| step["number"].as_u64()).collect();
        match &self.inherited {
            None => same("numbers of steps", &(1..=numbers.len() as u64).collect::<Vec<_>>(), &numbers)?,
            // They begin with those that went on, whichever of a service those are.
            Some(_) => same("the order of steps", &true, &numbers.is_sorted_by(|one, next| one < next))?,
        }
        same("memory", &(self.memory_mib << 20), &seen.info["memory"].as_u64().unwrap_or_default())?;
        for step in &seen.steps {
            let number = step["number"].as_u64().unwrap_or_default();
            match self.steps.get(&number) {
                Some(known) => known.differs(step).map_err(|why| format!("step {number}: {why}"))?,
                None if step["kind"] == "service" => {}
                None if unknown.contains(&text(step, "kind")) || self.unknown.contains(text(step, "kind")) => {}
                None => return Err(format!("nobody asked for step {number}: {step}")),
            }
        }
        let there: BTreeSet<u64> = numbers.into_iter().collect();
        // One that went on may have ended just before.
        let may_lack = |step: &u64| self.inherited.as_ref().is_some_and(|inherited| inherited.contains(step));
        match self.steps.keys().find(|step| !there.contains(step) && !may_lack(step)) {
            Some(step) => Err(format!("step {step} was acknowledged and is not there")),
            None => Ok(()),
        }
    }

    /// Takes note of what went on and has ended by itself: its output is whole from now on.
    pub fn ended(&mut self, seen: &Seen) {
        for step in seen.steps.iter().filter(|step| step["status"] == "ended") {
            let number = step["number"].as_u64().unwrap_or_default();
            if let Some(known) = self.steps.get_mut(&number).filter(|known| known.end == End::Going) {
                known.end = End::Code(0);
            }
        }
    }

    /// Takes up the steps that it did not know, as ones of which nothing is promised.
    pub fn adopt(&mut self, seen: &Seen) {
        self.unknown.clear();
        if let Some(inherited) = &self.inherited {
            let there: BTreeSet<u64> = seen.steps.iter().filter_map(|step| step["number"].as_u64()).collect();
            self.steps.retain(|step, _| there.contains(step) || !inherited.contains(step));
        }
        for step in seen.steps.iter().filter(|step| step["kind"] != "service") {
            let number = step["number"].as_u64().unwrap_or_default();
            self.steps.entry(number).or_insert(Step { end: End::Any, output: None, files: None });
        }
    }
}

impl Step {
    fn differs(&self, seen: &Value) -> Result<(), String> {
        let ended = seen["status"] == "ended";
        let good = match self.end {
            End::Code(code) => ended && seen["end"]["exit_code"] == code && seen["end"]["how"] == "exited",
            End::Going => !ended || (seen["end"]["exit_code"] == 0 && seen["end"]["how"] == "exited"),
            End::Any => true,
        };
        if good { Ok(()) } else { Err(format!("wanted {:?}, found {seen}", self.end)) }
    }
}

/// A field as text.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// A list of texts.
fn words(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
}

/// What a merge of `theirs` into `ours` gives, both from `base`; `None` where both changed one file.
pub fn merged(base: &Files, ours: &Files, theirs: &Files) -> Option<Files> {
    let mut result = ours.clone();
    let names: BTreeSet<&String> = base.keys().chain(theirs.keys()).collect();
    for name in names {
        let (was, mine, new) = (base.get(name), ours.get(name), theirs.get(name));
        if new == was || new == mine {
            continue;
        }
        if mine != was {
            return None;
        }
        match new {
            Some(content) => result.insert(name.clone(), content.clone()),
            None => result.remove(name),
        };
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::{Files, merged};

    fn files(of: &[(&str, &str)]) -> Files {
        of.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
    }

    #[test]
    fn a_merge_takes_what_one_side_changed_and_refuses_what_both_did() {
        let base = files(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let ours = files(&[("a", "2"), ("b", "1"), ("c", "1")]);
        let theirs = files(&[("a", "1"), ("b", "3"), ("d", "3")]);
        assert_eq!(merged(&base, &ours, &theirs), Some(files(&[("a", "2"), ("b", "3"), ("d", "3")])));
        assert_eq!(merged(&base, &ours, &files(&[("b", "1"), ("c", "1")])), None);
        assert_eq!(merged(&base, &ours, &ours), Some(ours.clone()));
    }
}
