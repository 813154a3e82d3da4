//! Sizes, shares of CPU and durations, as users write them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is no size, number of CPUs or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a known unit.
    #[error("`{text}` is no {what}")]
    Malformed {
        /// What was given.
        text: String,
        /// What was wanted, with an example.
        what: &'static str,
    },
    /// Zero or below.
    #[error("`{text}` is not above zero")]
    NotPositive {
        /// What was given.
        text: String,
    },
    /// More than the number type, or the host, has room for.
    #[error("`{text}` is too large")]
    TooLarge {
        /// What was given.
        text: String,
    },
}

/// A number of bytes. Reads `512M`, `2GiB`, `1.5G`, `4096`; K, M, G, T are powers of 1024 as in
/// memory sizes everywhere. Travels as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// This many MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
    /// This many GiB.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }
}

/// Splits `12.5unit` and scales it by what `unit` says, in whole numbers only.
fn scaled(text: &str, what: &'static str, unit: impl Fn(&str) -> Option<u64>) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed { text: text.to_owned(), what };
    let trimmed = text.trim();
    if trimmed.starts_with('-') && trimmed[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return Err(SizeError::NotPositive { text: text.to_owned() });
    }
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(end);
    let scale = u128::from(unit(suffix.trim()).ok_or_else(malformed)?);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || (number.contains('.') && fraction.is_empty()) {
        return Err(malformed());
    }
    let too_large = || SizeError::TooLarge { text: text.to_owned() };
    if whole.len() > 20 {
        return Err(too_large());
    }
    let whole: u128 = whole.parse().map_err(|_| malformed())?;
    let mut value = whole.checked_mul(scale).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        let part: u128 = fraction.parse().map_err(|_| malformed())?;
        value += part * scale / 10_u128.pow(fraction.len() as u32);
    }
    if value == 0 {
        return Err(SizeError::NotPositive { text: text.to_owned() });
    }
    u64::try_from(value).ok().filter(|&v| v <= i64::MAX as u64).ok_or_else(too_large)
}

impl FromStr for Bytes {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        scaled(text, "size such as `512M` or `2GiB`", |unit| {
            let unit = unit.to_ascii_lowercase();
            let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
            Some(
                1 << match unit {
                    "" => 0,
                    "k" => 10,
                    "m" => 20,
                    "g" => 30,
                    "t" => 40,
                    _ => return None,
                },
            )
        })
        .map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift {
                let tenths = (u128::from(self.0) * 10) >> shift;
                return if tenths % 10 == 0 {
                    write!(f, "{} {unit}", tenths / 10)
                } else {
                    write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A share of CPU time in thousandths of one CPU. Reads `2`, `0.5`. Travels as a number of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(pub u32);

impl Cpus {
    /// The smallest share that the kernel's bandwidth control takes: 1 ms in 100 ms.
    pub const MIN: Self = Self(10);
    /// More CPUs than any host has.
    pub const MAX: Self = Self(4_096_000);
}

impl FromStr for Cpus {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let milli = scaled(text, "number of CPUs such as `2` or `0.5`", |unit| (unit.is_empty()).then_some(1000))?;
        match u32::try_from(milli).map(Self) {
            Ok(cpus) if cpus < Self::MIN => Err(SizeError::NotPositive { text: text.to_owned() }),
            Ok(cpus) if cpus <= Self::MAX => Ok(cpus),
            _ => Err(SizeError::TooLarge { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// Reads `90` or `90s`, `250ms`, `15m`, `2h`, `7d`.
///
/// Errors: what is no duration, zero, below zero, or more than 64 bits of milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, SizeError> {
    scaled(text, "duration such as `30s`, `15m` or `2h`", |unit| {
        Some(match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        })
    })
    .map(Duration::from_millis)
}

/// Either the text a user writes or the bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Whole(u64),
    Signed(i64),
    Number(f64),
    Text(String),
}

impl NumberOrText {
    fn text(self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NumberOrText::deserialize(deserializer)?.text().parse().map_err(de::Error::custom)
    }
}
impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1000.0)
    }
}
impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NumberOrText::deserialize(deserializer)?.text().parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_users_write_them() {
        let check = |text: &str, expected: u64| assert_eq!(text.parse::<Bytes>(), Ok(Bytes(expected)), "{text}");
        check("1", 1);
        check("512M", 512 << 20);
        check("512 MiB", 512 << 20);
        check("1.5g", 3 << 29);
        check("2TB", 2 << 40);
        for bad in ["", "0", "-1", "10ZB", "1..5G", "M", "0.0000000001K", "99999999999999999999T", "1e3", "9000000000G"]
        {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes::gib(2).to_string(), "2 GiB");
    }

    #[test]
    fn cpus_and_durations() {
        assert_eq!("0.5".parse::<Cpus>(), Ok(Cpus(500)));
        assert!("0.001".parse::<Cpus>().is_err());
        assert!("2x".parse::<Cpus>().is_err());
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("0").is_err());
        assert!(parse_duration("5y").is_err());
    }
}
