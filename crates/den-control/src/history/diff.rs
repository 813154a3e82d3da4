//! How two states differ: by path, and by meaning.
//!
//! ```text
//! A ─┐                   ┌─► files          cost: what changed since the state both come from
//!    ├─ resolve ─► views ┼─► facts          packages, users, services, …
//! B ─┘                   └─ ports           of a side that is `now`, and runs
//! ```
//!
//! Two states without a common image are not compared: it would be a list of two systems.

use std::{collections::BTreeMap, path::PathBuf};

use den_api::{ChangeKind, DiffView, FactChange, PortView};
use den_history::{DiffOptions, Phase as Step, Progress, meaning};
use den_model::{State as Phase, StateName, StateRef};

use super::{
    Resolved,
    look::{chosen, looking, still_there, within},
};
use crate::{Error, control::Control};

/// Paths of a diff where it does not say.
const FILES_DEFAULT: usize = 10_000;
/// Paths of a diff.
const FILES_MAX: usize = 100_000;

/// Which states to compare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiffRequest {
    /// The first: `NAME` or `NAME@STATE`.
    pub a: String,
    /// The second. Without: `NAME@STATE` against it now, `NAME` as it was made against it now.
    pub b: Option<String>,
    /// Only these and what is below them.
    pub paths: Vec<String>,
    /// Whether text files come with a unified diff.
    pub text: bool,
    /// Paths at most: 1 to 100,000, 10,000 without.
    pub limit: Option<usize>,
}

impl Control {
    /// How two states differ.
    ///
    /// Errors: `computer_not_found`, `state_not_found`, `bad_state`, `bad_request`; `no_common_state` where
    /// the two were not made from one image.
    pub async fn diff(&self, request: DiffRequest) -> Result<DiffView, Error> {
        self.diff_watched(request, &Progress::default()).await
    }

    /// As [`Control::diff`]; `progress` says how far it is.
    pub async fn diff_watched(&self, request: DiffRequest, progress: &Progress) -> Result<DiffView, Error> {
        let limit = within("limit", request.limit, FILES_DEFAULT, FILES_MAX)?;
        let paths = chosen(&request.paths)?;
        let (a, b) = sides(&request.a, request.b.as_deref())?;
        let (first, second) = (self.resolve(&a).await?, self.resolve(&b).await?);
        same_image(&first, &second)?;
        let since = self.common(&first, &second);
        let whole = paths.is_empty();
        let options = DiffOptions { progress: progress.clone(), ..options(paths, request.text, limit) };
        let (difference, mut facts, first, second) = looking(move || {
            let (a, b) = (first.open()?, second.open()?);
            let difference = den_history::diff(&a, &b, since, &options)?;
            let changed: Vec<PathBuf> =
                difference.raw.iter().flat_map(|raw| [Some(raw.path.clone()), raw.from.clone()]).flatten().collect();
            options.progress.begin(Step::Meaning, 0);
            let facts = meaning::facts(&a.view, &b.view, Some(&changed));
            still_there(&[&first, &second])?;
            Ok((difference, facts, first, second))
        })
        .await?;
        if whole {
            let before = self.listening(&a, &first).await;
            let after = self.listening(&b, &second).await;
            facts.extend(port_changes(&before, &after));
        }
        Ok(DiffView {
            a: title(&a, &first),
            b: title(&b, &second),
            count: difference.count,
            files: difference.files,
            truncated: difference.truncated,
            facts,
            volumes: difference.volumes,
        })
    }

    /// What listens in a state: nothing but in one that is `now`, and runs.
    async fn listening(&self, state: &StateRef, resolved: &Resolved) -> BTreeMap<String, String> {
        if state.state != StateName::Now || resolved.handle.state() != Phase::Running {
            return BTreeMap::new();
        }
        match self.ports(&resolved.handle.id.to_string()).await {
            Ok(ports) => ports.iter().map(port).collect(),
            // It may have ended in between, or its agent is older than ports.
            Err(error) => {
                tracing::debug!(computer = %resolved.handle.id, error = error.chain(), "what listens is not known");
                BTreeMap::new()
            }
        }
    }
}

fn port(port: &PortView) -> (String, String) {
    let name = format!("{}/{} {}", port.protocol, port.port, port.address);
    (name, port.command.clone().unwrap_or_else(|| "?".to_owned()))
}

fn port_changes(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<FactChange> {
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let change = |name: &String| {
        let (before, after) = (before.get(name), after.get(name));
        let kind = match (before, after) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            (one, other) if one == other => return None,
            _ => ChangeKind::Changed,
        };
        let fact = |kind| FactChange {
            area: "port".to_owned(),
            name: name.clone(),
            kind,
            before: before.cloned(),
            after: after.cloned(),
            files_before: Vec::new(),
            files_after: Vec::new(),
        };
        Some(fact(kind))
    };
    names.into_iter().filter_map(change).collect()
}

/// The two sides, the second filled in.
fn sides(a: &str, b: Option<&str>) -> Result<(StateRef, StateRef), Error> {
    let first: StateRef = a.parse()?;
    let second = match b {
        Some(b) => b.parse()?,
        None => StateRef { computer: first.computer.clone(), state: StateName::Now },
    };
    let first = match (b, &first.state) {
        // A computer alone: against how it was made.
        (None, StateName::Now) => StateRef { state: StateName::Step(0), ..first },
        _ => first,
    };
    Ok((first, second))
}

pub(super) fn options(paths: Vec<PathBuf>, text: bool, limit: usize) -> DiffOptions {
    DiffOptions { paths, text, limit, ..DiffOptions::default() }
}

/// States of computers from different images have nothing in common.
pub(super) fn same_image(a: &Resolved, b: &Resolved) -> Result<(), Error> {
    if a.layers == b.layers {
        return Ok(());
    }
    let (one, other) = (a.handle.spec(), b.handle.spec());
    let message = format!(
        "`{}` comes from the image {} and `{}` from {}: they have no state in common",
        one.name, one.image, other.name, other.image
    );
    Err(Error::new("no_common_state", 409, message)
        .hint("compare and merge states of forks, or of computers made from the same image"))
}

/// `NAME@STATE`, with the name a computer has now.
pub(super) fn title(state: &StateRef, resolved: &Resolved) -> String {
    format!("{}@{}", resolved.handle.name(), state.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_alone_is_compared_with_now() {
        let check = |a: &str, b: Option<&str>, expected: (&str, &str)| {
            let (a, b) = sides(a, b).unwrap();
            assert_eq!((a.to_string().as_str(), b.to_string().as_str()), expected);
        };
        check("web", None, ("web@0", "web@now"));
        check("web@3", None, ("web@3", "web@now"));
        check("web", Some("fix"), ("web@now", "fix@now"));
        check("web@1", Some("fix@clean"), ("web@1", "fix@clean"));
        assert_eq!(sides("web@", None).unwrap_err().code, "bad_state");
        assert_eq!(sides("web", Some("x@!")).unwrap_err().code, "bad_state");
    }

    #[test]
    fn ports_that_came_and_went() {
        let set = |ports: &[(&str, &str)]| ports.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let before = set(&[("tcp/22 ::", "sshd"), ("tcp/80 ::", "nginx"), ("tcp/81 ::", "x")]);
        let after = set(&[("tcp/22 ::", "sshd"), ("tcp/80 ::", "apache2"), ("udp/53 ::", "dns")]);
        let seen: Vec<_> = port_changes(&before, &after).into_iter().map(|fact| (fact.name, fact.kind)).collect();
        let expected =
            [("tcp/80 ::", ChangeKind::Changed), ("tcp/81 ::", ChangeKind::Removed), ("udp/53 ::", ChangeKind::Added)];
        assert_eq!(seen, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }
}
