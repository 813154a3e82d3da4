//! States of a computer that are kept, how they are named, and where a fork comes from.
//!
//! ```text
//! 0 ◄── 1 ◄── 2 ◄── 3          parent: the state that the disk was before
//!       ▲           └ went_to 1: kept when the computer was taken back to 1
//!       └──── 4                what came after that
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{ComputerId, Micros, StepNumber, name::NAME_BYTES_MAX};

/// The state of the disk as it is at the moment.
pub const NOW: &str = "now";

/// Why a text names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Nothing stands before or behind the `@`.
    #[error("`{0}` lacks a computer or a state: it is written NAME@STATE")]
    Half(String),
    /// Neither a number, a label nor `now`.
    #[error("`{0}` is no state: that is a step's number, `.` and a snapshot's number, a label, or `now`")]
    NoState(String),
    /// It cannot be a label.
    #[error("`{0}` is no label: that is a DNS label which is not all digits and not `now`")]
    NoLabel(String),
}

/// A name that a user gave to a state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateLabel(String);

impl StateLabel {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StateLabel {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        let shaped = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if shaped && text != NOW && !text.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(StateError::NoLabel(text.to_owned()))
        }
    }
}

impl fmt::Display for StateLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for StateLabel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StateLabel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A state of a computer, as text names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StateName {
    /// `now`: as it is at the moment.
    Now,
    /// `12`: after that step; `0` as it was made.
    Step(StepNumber),
    /// `.7`: the kept state of that number, where several follow one step.
    Snapshot(u64),
    /// What a user called it.
    Label(StateLabel),
}

impl FromStr for StateName {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        let none = || StateError::NoState(text.to_owned());
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if text == NOW {
            return Ok(Self::Now);
        }
        if let Some(number) = text.strip_prefix('.') {
            return if digits(number) { number.parse().map(Self::Snapshot).map_err(|_| none()) } else { Err(none()) };
        }
        if digits(text) {
            return text.parse().map(Self::Step).map_err(|_| none());
        }
        text.parse().map(Self::Label).map_err(|_| none())
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str(NOW),
            Self::Step(number) => write!(f, "{number}"),
            Self::Snapshot(number) => write!(f, ".{number}"),
            Self::Label(label) => write!(f, "{label}"),
        }
    }
}

/// A computer and one of its states: `NAME@STATE`, or `NAME` for it as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StateRef {
    /// A name, an id or the beginning of one.
    pub computer: String,
    /// Which state of it.
    pub state: StateName,
}

impl FromStr for StateRef {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        let (computer, state) = match text.split_once('@') {
            Some((computer, state)) if !computer.is_empty() && !state.is_empty() => (computer, state.parse()?),
            None if !text.is_empty() => (text, StateName::Now),
            _ => return Err(StateError::Half(text.to_owned())),
        };
        Ok(Self { computer: computer.to_owned(), state })
    }
}

impl fmt::Display for StateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.computer, self.state)
    }
}

/// Why a state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// It is as it was made or forked.
    Made,
    /// A step had changed it.
    Auto,
    /// A user asked for it.
    Named,
    /// A fork was made from it.
    Fork,
    /// It was about to be taken back to another state.
    Restore,
    /// Something was about to be merged into it.
    Merge,
}

impl SnapshotKind {
    /// All there are.
    pub const ALL: [Self; 6] = [Self::Made, Self::Auto, Self::Named, Self::Fork, Self::Restore, Self::Merge];

    /// As it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Auto => "auto",
            Self::Named => "named",
            Self::Fork => "fork",
            Self::Restore => "restore",
            Self::Merge => "merge",
        }
    }

    /// The kind of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A state of a computer that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Counts the kept states of one computer; 0 is as it was made. Never given out twice.
    pub number: u64,
    /// The last step that had ended.
    pub step: StepNumber,
    /// What a user calls it. No two of one computer have the same.
    pub label: Option<StateLabel>,
    /// Why it is kept.
    pub kind: SnapshotKind,
    /// When it was taken.
    pub created_at: Micros,
    /// How long the computer stood still for it, microseconds.
    pub frozen_us: u64,
    /// Whether its processes could not be stopped for it.
    pub torn: bool,
    /// What has changed since it has a higher one, in the storage's count. 0: that is not known. Of a fork's
    /// state 0 it is that of the state it was forked from.
    pub generation: u64,
    /// The state that the disk had been before.
    pub parent: Option<u64>,
    /// The state to which the computer was taken back when this had been kept.
    pub went_to: Option<u64>,
    /// Its bytes are gone; the row stays for what descends from it.
    pub dropped: bool,
}

impl Snapshot {
    /// Whether nobody asked for it, so that it goes when there are many or the room is short.
    pub fn is_automatic(&self) -> bool {
        self.label.is_none() && !matches!(self.kind, SnapshotKind::Made | SnapshotKind::Named)
    }
}

/// Where a fork comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent; it may be gone.
    pub id: ComputerId,
    /// Its name when the fork was made.
    pub name: String,
    /// The parent's snapshot that the fork began as.
    pub snapshot: u64,
    /// The last step of the parent before that.
    pub step: StepNumber,
}

/// How many paths a step changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCount {
    /// Paths that are new.
    pub added: u64,
    /// Paths that differ or moved.
    pub changed: u64,
    /// Paths that are gone.
    pub removed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_a_step_a_snapshot_a_label_or_now() {
        let label = |text: &str| StateName::Label(text.parse().unwrap());
        for (text, expected) in [
            ("now", StateName::Now),
            ("0", StateName::Step(0)),
            ("12", StateName::Step(12)),
            (".7", StateName::Snapshot(7)),
            ("before-upgrade", label("before-upgrade")),
            ("1a", label("1a")),
        ] {
            assert_eq!(text.parse::<StateName>().as_ref(), Ok(&expected), "{text}");
            assert_eq!(expected.to_string(), text);
        }
        for bad in ["", ".", ".x", "-1", "+1", "a_b", "Now", "../x", "99999999999999999999", &"a".repeat(64)] {
            assert!(bad.parse::<StateName>().is_err(), "{bad}");
        }
        for bad in ["now", "12", "", "a-"] {
            assert!(bad.parse::<StateLabel>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_computer_alone_is_as_it_is_now() {
        let check = |text: &str, shown: &str| assert_eq!(text.parse::<StateRef>().unwrap().to_string(), shown);
        check("web", "web@now");
        check("web@3", "web@3");
        check("cmp_01aaaaaa@clean", "cmp_01aaaaaa@clean");
        for bad in ["", "@", "web@", "@3", "web@3@4"] {
            assert!(bad.parse::<StateRef>().is_err(), "{bad}");
        }
    }
}
