//! Names that users give: a computer's (a DNS label) and an image's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest name, in bytes: a DNS label, RFC 1035 section 2.3.4.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a name is empty")]
    Empty,
    /// Longer than a DNS label may be.
    #[error("the name `{0}` has more than 63 characters")]
    TooLong(String),
    /// A character that a DNS label has no place for.
    #[error("the name `{name}` has `{character}` in it")]
    Character {
        /// The whole name.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// `-` at an end.
    #[error("the name `{0}` begins or ends with `-`")]
    Hyphen(String),
    /// It would be taken for an id.
    #[error("the name `{0}` looks like an id")]
    LooksLikeId(String),
}

/// A computer's name: a DNS label of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputerName(String);

impl ComputerName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ComputerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(character) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            if text.starts_with("cmp_") {
                return Err(NameError::LooksLikeId(text.to_owned()));
            }
            return Err(NameError::Character { name: text.to_owned(), character });
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.to_owned()));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::Hyphen(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// An image's name as a user writes it: `base`, `debian:bookworm`, `host/path:tag`.
///
/// The tag is `latest` where none is given, except that names without a `/` and a tag are local
/// names and kept as they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

impl ImageName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > 255 {
            return Err(NameError::TooLong(text.to_owned()));
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
        if let Some(character) = text.chars().find(|c| !allowed(c)) {
            return Err(NameError::Character { name: text.to_owned(), character });
        }
        if text.starts_with('-') || text.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(NameError::Hyphen(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_type {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}
text_type!(ComputerName);
text_type!(ImageName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "web", "web-1", "0", &"a".repeat(63)] {
            assert!(good.parse::<ComputerName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Web", "a_b", "a.b", "ä", "a b", "cmp_1", &"a".repeat(64)] {
            assert!(bad.parse::<ComputerName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_name_climbs_nowhere() {
        for good in ["base", "debian:bookworm", "registry.test:5000/a/b@sha256:00"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in ["", "../x", "a//b", "a/./b", "-x", "a b", "/a"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
