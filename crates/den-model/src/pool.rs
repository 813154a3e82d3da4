//! Pools: what computers share, and whether there is room for one more.
//!
//! ```text
//!               computers   disk            memory
//! runs, paused      1       its limit       its limit
//! stopped           1       its limit       –
//! in the trash      –       its limit       –
//! ```
//!
//! CPUs are in no sum: they are shared by weight while they are used, and the kernel sees to the most. What is
//! summed are limits, not use: what was promised to a computer is there when it wants it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Bytes, ComputerName, Cpus, Limits, Micros, NameError, State};

/// A pool's name: a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(String);

impl PoolName {
    /// The pool of computers that name none. It is always there.
    pub const DEFAULT: &'static str = "default";

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the one that is always there.
    pub fn is_default(&self) -> bool {
        self.0 == Self::DEFAULT
    }
}

impl Default for PoolName {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl FromStr for PoolName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // The rules are those of a computer's name.
        text.parse::<ComputerName>().map(|name| Self(name.as_str().to_owned()))
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for PoolName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PoolName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What all computers of a pool have together at most; none: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolLimits {
    /// CPUs that are used at a time.
    pub cpus: Option<Cpus>,
    /// Memory limits of those that run.
    pub memory: Option<Bytes>,
    /// Disk limits of all, those in the trash included.
    pub disk: Option<Bytes>,
    /// Computers, those in the trash left out.
    pub computers: Option<u64>,
}

/// A pool as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Never given out twice; names its cgroup. 0 is the default's.
    pub number: u64,
    /// Its name.
    pub name: PoolName,
    /// What it has.
    pub limits: PoolLimits,
    /// When it was made.
    pub created_at: Micros,
}

/// How much of a pool a computer takes by what it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has processes, or is about to; as a rule paused and cut off ones have.
    Runs,
    /// It has none.
    Rests,
    /// It lies in the trash.
    Trashed,
}

impl Standing {
    /// Of a computer in this state; `processes`: whether it has any, where the state leaves that open: one that is
    /// cut off may have ended, and the memory of one that is paused may lie on a disk.
    pub fn of(state: State, processes: bool) -> Self {
        match state {
            State::Creating | State::Starting | State::Running | State::Stopping => Self::Runs,
            State::Paused | State::Unplugged | State::Removing if processes => Self::Runs,
            State::Paused | State::Unplugged | State::Removing | State::Stopped | State::Failed => Self::Rests,
            State::Trashed => Self::Trashed,
        }
    }

    /// What a computer of these limits takes.
    pub fn takes(self, limits: &Limits) -> Amounts {
        Amounts {
            computers: u64::from(self != Self::Trashed),
            memory: if self == Self::Runs { limits.memory } else { Bytes(0) },
            disk: limits.disk,
        }
    }
}

/// What is taken of a pool, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// Computers.
    pub computers: u64,
    /// Memory.
    pub memory: Bytes,
    /// Disk.
    pub disk: Bytes,
}

impl Amounts {
    /// Both together. Where that is more than there are numbers, the largest.
    pub fn and(self, more: Self) -> Self {
        Self {
            computers: self.computers.saturating_add(more.computers),
            memory: Bytes(self.memory.0.saturating_add(more.memory.0)),
            disk: Bytes(self.disk.0.saturating_add(more.disk.0)),
        }
    }

    /// This without `less`; nothing goes below zero.
    pub fn without(self, less: Self) -> Self {
        Self {
            computers: self.computers.saturating_sub(less.computers),
            memory: Bytes(self.memory.0.saturating_sub(less.memory.0)),
            disk: Bytes(self.disk.0.saturating_sub(less.disk.0)),
        }
    }
}

/// Which amount there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Computers.
    Computers,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
}

impl Amount {
    /// As it is called in requests and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Computers => "computers",
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }

    /// A value of it, in words.
    pub fn text(self, value: u64) -> String {
        match self {
            Self::Computers if value == 1 => "1 computer".to_owned(),
            Self::Computers => format!("{value} computers"),
            Self::Memory => format!("{} of memory", Bytes(value)),
            Self::Disk => format!("{} of disk", Bytes(value)),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// Which amount.
    pub what: Amount,
    /// All that there is.
    pub limit: u64,
    /// What is taken.
    pub held: u64,
    /// What more was wanted.
    pub wanted: u64,
}

impl Short {
    /// What nobody has taken.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.held)
    }
}

impl PoolLimits {
    /// Whether there is room for `more` beside what is held. Of what is not wanted there may be too little.
    ///
    /// Errors: the first amount that does not reach.
    pub fn room(&self, held: Amounts, more: Amounts) -> Result<(), Short> {
        let amounts = [
            (Amount::Computers, self.computers, held.computers, more.computers),
            (Amount::Memory, self.memory.map(|bytes| bytes.0), held.memory.0, more.memory.0),
            (Amount::Disk, self.disk.map(|bytes| bytes.0), held.disk.0, more.disk.0),
        ];
        for (what, limit, held, wanted) in amounts {
            if let Some(limit) = limit
                && wanted > 0
                && held.checked_add(wanted).is_none_or(|sum| sum > limit)
            {
                return Err(Short { what, limit, held, wanted });
            }
        }
        Ok(())
    }

    /// Whether what is held has room in them. `before` are the limits until now: an amount that they leave as it
    /// was, or give more of, is not looked at.
    ///
    /// Errors: the first amount that does not reach.
    pub fn hold(&self, held: Amounts, before: &Self) -> Result<(), Short> {
        let changed = |new: Option<u64>, old: Option<u64>| new.filter(|new| old.is_none_or(|old| *new < old));
        let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
        let tighter = Self {
            cpus: None,
            memory: changed(bytes(self.memory), bytes(before.memory)).map(Bytes),
            disk: changed(bytes(self.disk), bytes(before.disk)).map(Bytes),
            computers: changed(self.computers, before.computers),
        };
        tighter.room(Amounts::default(), held)
    }

    /// The lesser of both, amount by amount.
    pub fn least(&self, other: &Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            }
        }
        Self {
            cpus: least(self.cpus, other.cpus),
            memory: least(self.memory, other.memory),
            disk: least(self.disk, other.disk),
            computers: least(self.computers, other.computers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Limits = Limits { cpus: Cpus(1000), memory: Bytes::gib(2), disk: Bytes::gib(10), pids: 100 };

    fn limits(computers: Option<u64>, memory: Option<u64>, disk: Option<u64>) -> PoolLimits {
        PoolLimits { cpus: None, memory: memory.map(Bytes::gib), disk: disk.map(Bytes::gib), computers }
    }

    fn held(computers: u64, memory: u64, disk: u64) -> Amounts {
        Amounts { computers, memory: Bytes::gib(memory), disk: Bytes::gib(disk) }
    }

    #[test]
    fn a_computer_takes_what_it_may_use_where_it_stands() {
        assert_eq!(Standing::Runs.takes(&SIZE), held(1, 2, 10));
        assert_eq!(Standing::Rests.takes(&SIZE), held(1, 0, 10));
        assert_eq!(Standing::Trashed.takes(&SIZE), held(0, 0, 10));
        let memory = |state, processes| Standing::of(state, processes).takes(&SIZE).memory.0 > 0;
        for state in State::ALL {
            let expected = match state {
                State::Creating | State::Starting | State::Running | State::Stopping => (true, true),
                State::Paused | State::Unplugged | State::Removing => (true, false),
                State::Stopped | State::Failed | State::Trashed => (false, false),
            };
            assert_eq!((memory(state, true), memory(state, false)), expected, "{state}");
        }
    }

    #[test]
    fn the_first_amount_that_does_not_reach_is_told() {
        let room = |limits: PoolLimits, has, wants| limits.room(has, wants).map_err(|short| (short.what, short.left()));
        assert_eq!(room(limits(None, None, None), held(9, 9, 9), held(u64::MAX, 1, 1)), Ok(()));
        assert_eq!(room(limits(Some(3), Some(6), Some(30)), held(2, 4, 20), held(1, 2, 10)), Ok(()));
        assert_eq!(
            room(limits(Some(2), Some(1), Some(1)), held(2, 4, 20), held(1, 2, 10)),
            Err((Amount::Computers, 0))
        );
        assert_eq!(
            room(limits(Some(3), Some(5), None), held(2, 4, 20), held(1, 2, 10)),
            Err((Amount::Memory, Bytes::gib(1).0))
        );
        assert_eq!(room(limits(None, None, Some(10)), held(2, 4, 20), held(1, 2, 10)), Err((Amount::Disk, 0)));
        assert_eq!(
            room(limits(Some(u64::MAX), None, None), held(u64::MAX, 0, 0), held(1, 0, 0)),
            Err((Amount::Computers, 0))
        );
        // What asks for no more of it is not refused for it: a pool may hold more than it has.
        assert_eq!(room(limits(Some(1), Some(1), Some(1)), held(2, 2, 2), held(0, 0, 0)), Ok(()));
        assert_eq!(room(limits(Some(1), Some(4), Some(1)), held(2, 2, 2), held(0, 2, 0)), Ok(()));
    }

    #[test]
    fn limits_below_what_is_held_are_refused() {
        let has = held(2, 4, 20);
        let check = |new: PoolLimits, old: PoolLimits| new.hold(has, &old).map_err(|short| short.what);
        let none = PoolLimits::default();
        assert_eq!(check(limits(Some(2), Some(4), Some(20)), none), Ok(()));
        assert_eq!(check(limits(Some(1), None, None), none), Err(Amount::Computers));
        assert_eq!(check(limits(None, Some(3), None), none), Err(Amount::Memory));
        assert_eq!(check(limits(None, None, Some(19)), none), Err(Amount::Disk));
        // Too little already, and no less than before.
        assert_eq!(check(limits(Some(1), None, None), limits(Some(1), None, None)), Ok(()));
    }

    #[test]
    fn the_least_of_both_holds_while_limits_change() {
        let (old, new) = (limits(Some(3), Some(4), None), limits(Some(5), Some(2), Some(1)));
        assert_eq!(new.least(&old), limits(Some(3), Some(2), Some(1)));
    }

    #[test]
    fn sums_stay_in_their_bounds() {
        let most = Amounts { computers: u64::MAX, memory: Bytes(u64::MAX), disk: Bytes(u64::MAX) };
        assert_eq!(most.and(held(1, 1, 1)), most);
        assert_eq!(held(1, 1, 1).without(most), Amounts::default());
        assert_eq!(held(3, 5, 7).without(held(1, 2, 3)).and(held(1, 2, 3)), held(3, 5, 7));
    }

    #[test]
    fn a_pool_is_called_as_a_computer_is() {
        assert!(PoolName::default().is_default());
        assert!("team-a".parse::<PoolName>().is_ok_and(|name| !name.is_default()));
        for bad in ["", "A", "a/b", "-a", &"a".repeat(64)] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad}");
        }
    }
}
