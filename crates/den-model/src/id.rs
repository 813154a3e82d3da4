//! Ids: a UUID v7 shown as a prefix and 26 characters of Crockford base32, so that the kind can be
//! seen, order is time, and a double click selects it whole.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A kind of thing that has ids.
pub trait Kind {
    /// What its ids begin with, without the underscore.
    const PREFIX: &'static str;
}

/// Names one thing of kind `K` for ever; never given out twice, even after deletion.
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

/// The kind of [`ComputerId`].
pub enum ComputerKind {}
impl Kind for ComputerKind {
    const PREFIX: &'static str = "cmp";
}

/// Names one computer. Prints as `cmp_…`.
pub type ComputerId = Id<ComputerKind>;

/// Why a text is no id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no id of the form `{prefix}_` and 26 characters of base32")]
pub struct IdError {
    /// What was given.
    pub text: String,
    /// The prefix that was wanted.
    pub prefix: &'static str,
}

impl<K: Kind> Id<K> {
    /// The id that shows as this UUID.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    /// The UUID behind it.
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// The shortest part that tells ids made in one run apart: the last 8 characters.
    pub fn short(self) -> String {
        let text = self.to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.as_u128();
        let mut text = [0_u8; 26];
        for (place, slot) in text.iter_mut().rev().enumerate() {
            *slot = ALPHABET[(number >> (5 * place)) as usize & 31];
        }
        let text = std::str::from_utf8(&text).expect("the alphabet is ASCII");
        write!(f, "{}_{text}", K::PREFIX)
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError { text: text.to_owned(), prefix: K::PREFIX };
        let digits = text.strip_prefix(K::PREFIX).and_then(|rest| rest.strip_prefix('_')).ok_or_else(wrong)?;
        if digits.len() != 26 {
            return Err(wrong());
        }
        let mut number = 0_u128;
        for (place, byte) in digits.bytes().enumerate() {
            let value = ALPHABET.iter().position(|&c| c == byte).ok_or_else(wrong)?;
            if place == 0 && value > 7 {
                return Err(wrong()); // 26 characters carry 130 bits; the first two must be zero.
            }
            number = number << 5 | value as u128;
        }
        Ok(Self::from_uuid(Uuid::from_u128(number)))
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_shown() {
        for number in [0, 1, u128::MAX, 0x0192_3456_789a_7bcd_8ef0_1234_5678_9abc] {
            let id = ComputerId::from_uuid(Uuid::from_u128(number));
            assert_eq!(id.to_string().parse::<ComputerId>(), Ok(id));
            assert_eq!(id.to_string().len(), 30);
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "cmp_",
            "snp_00000000000000000000000000",
            "cmp_8zzzzzzzzzzzzzzzzzzzzzzzzz",
            "cmp_0000000000000000000000000I",
        ] {
            assert!(text.parse::<ComputerId>().is_err(), "{text}");
        }
    }
}
