//! Shared volumes: folders that several computers mount.
//!
//! Not the volumes of a computer's own disk (`/var/lib/docker` and the like), which are kept and forked with it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Bytes, Id, Micros, id::Kind};

/// The longest name, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 128;

/// The kind of [`VolumeId`].
pub enum VolumeKind {}
impl Kind for VolumeKind {
    const PREFIX: &'static str = "vol";
}

/// Names one shared volume. Prints as `vol_…`.
pub type VolumeId = Id<VolumeKind>;

/// Why a text is no name of a shared volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeNameError {
    /// Nothing was given.
    #[error("a name is empty")]
    Empty,
    /// Longer than it may be.
    #[error("a name has {0} bytes, more than {VOLUME_NAME_BYTES_MAX}")]
    TooLong(usize),
    /// A character that no name has.
    #[error("the name `{name}` has `{character}` in it")]
    Character {
        /// The whole name.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// It would be taken for an id.
    #[error("the name `{0}` looks like an id")]
    LooksLikeId(String),
}

/// A shared volume's name: `a-z`, `A-Z`, `0-9`, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        if text.is_empty() {
            return Err(VolumeNameError::Empty);
        }
        if text.len() > VOLUME_NAME_BYTES_MAX {
            return Err(VolumeNameError::TooLong(text.len()));
        }
        if let Some(character) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')) {
            return Err(VolumeNameError::Character { name: text.to_owned(), character });
        }
        if text.parse::<VolumeId>().is_ok() {
            return Err(VolumeNameError::LooksLikeId(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for VolumeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for VolumeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A shared volume as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name, which no other has.
    pub name: VolumeName,
    /// Bytes that it may hold.
    pub limit: Bytes,
    /// When it was made.
    pub created_at: Micros,
}

/// A shared volume in a computer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Which.
    pub volume: VolumeId,
    /// As it is called.
    pub name: VolumeName,
    /// Where it is seen inside: absolute, without `.` and `..`.
    pub path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_e2b_takes_and_no_id() {
        for good in ["a", "Data_1", "-", "vol_1", &"a".repeat(128)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", ".", "ä", "a.b", "vol_00000000000000000000000000", &"a".repeat(129)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
        }
    }
}
