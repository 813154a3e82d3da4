//! When a computer goes to sleep by itself, and how.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{SizeError, parse_duration};

/// Goes to sleep after so long without a step, a connection or CPU use worth the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Milliseconds.
    pub after_ms: u64,
    /// How it sleeps.
    pub then: Sleep,
}

/// How a computer sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sleep {
    /// Its processes stand still, its memory is kept.
    #[default]
    Pause,
    /// It is stopped: the disk stays, and it boots when it is asked for.
    Stop,
}

/// Why a text is no [`Idle`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum IdleError {
    /// The time cannot be read.
    #[error(transparent)]
    Time(#[from] SizeError),
    /// What comes after the colon is neither.
    #[error("`{0}` is neither `pause` nor `stop`")]
    Then(String),
    /// Too short or too long.
    #[error("{given} s is not from {} s to {} s", Idle::AFTER_MIN.as_secs(), Idle::AFTER_MAX.as_secs())]
    Range {
        /// What was given, in seconds.
        given: f64,
    },
}

impl Idle {
    /// The shortest time.
    pub const AFTER_MIN: Duration = Duration::from_secs(1);
    /// The longest: a year.
    pub const AFTER_MAX: Duration = Duration::from_secs(365 * 86_400);

    /// The time without use.
    pub const fn after(self) -> Duration {
        Duration::from_millis(self.after_ms)
    }
}

impl FromStr for Idle {
    type Err = IdleError;

    /// Reads `10m`, `10m:pause`, `2h:stop`.
    fn from_str(text: &str) -> Result<Self, IdleError> {
        let (after, then) = match text.split_once(':') {
            None => (text, Sleep::Pause),
            Some((after, "pause")) => (after, Sleep::Pause),
            Some((after, "stop")) => (after, Sleep::Stop),
            Some((_, other)) => return Err(IdleError::Then(other.to_owned())),
        };
        let after = parse_duration(after)?;
        if !(Self::AFTER_MIN..=Self::AFTER_MAX).contains(&after) {
            return Err(IdleError::Range { given: after.as_secs_f64() });
        }
        Ok(Self { after_ms: after.as_millis() as u64, then })
    }
}

impl fmt::Display for Idle {
    /// In the largest unit that it is a whole number of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
        let (unit, name) = units.into_iter().find(|(unit, _)| self.after_ms.is_multiple_of(*unit)).unwrap_or((1, "ms"));
        write!(f, "{}{name}", self.after_ms / unit)?;
        match self.then {
            Sleep::Pause => Ok(()),
            Sleep::Stop => f.write_str(":stop"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_shown() {
        for (text, shown) in [
            ("10m", "10m"),
            ("600s:pause", "10m"),
            ("90s:stop", "90s:stop"),
            ("2h", "2h"),
            ("1500ms", "1500ms"),
            ("48h", "2d"),
        ] {
            let idle: Idle = text.parse().unwrap();
            assert_eq!(idle.to_string(), shown);
            assert_eq!(shown.parse(), Ok(idle));
        }
        for bad in ["", "m", "10m:", "10m:nap", "0", "999ms", "-5m", "366d", "10m:stop:stop"] {
            assert!(bad.parse::<Idle>().is_err(), "{bad}");
        }
    }
}
