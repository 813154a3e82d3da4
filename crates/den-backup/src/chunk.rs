//! Chunks: what bytes are cut into, named by what is in them.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::BackupError;

/// Files up to this are one chunk; larger ones are cut where their content says, so that what is put in or
/// taken out in the middle leaves the rest as it was.
pub(crate) const DATA_MIN: usize = 256 << 10;
const DATA_MEAN: usize = 1 << 20;
const DATA_MAX: usize = 4 << 20;
/// Listings of trees change here and there, and are small.
const TREE_MIN: usize = 64 << 10;
const TREE_MEAN: usize = 256 << 10;
const TREE_MAX: usize = 1 << 20;
/// No chunk unpacks to more.
pub(crate) const RAW_MAX: usize = DATA_MAX;
/// Good and quick.
const LEVEL: i32 = 3;

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// What a chunk is part of; each kind has packs of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Contents of files.
    Data,
    /// Listings of trees.
    Tree,
}

impl Kind {
    /// Least, mean and most bytes of a chunk.
    pub(crate) fn sizes(self) -> (usize, usize, usize) {
        match self {
            Self::Data => (DATA_MIN, DATA_MEAN, DATA_MAX),
            Self::Tree => (TREE_MIN, TREE_MEAN, TREE_MAX),
        }
    }
}

/// BLAKE3 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Hash(#[cbor(n(0), with = "minicbor::bytes")] [u8; 32]);

impl Hash {
    /// Of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = blake3::HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(blake3::Hash::from_hex(text)?.into()))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// As a chunk is stored: a byte that says how, then the bytes, made smaller where they can be.
pub(crate) fn pack(raw: &[u8]) -> Result<Vec<u8>, BackupError> {
    let mut stored = vec![0; zstd::zstd_safe::compress_bound(raw.len()) + 1];
    let length = zstd::bulk::compress_to_buffer(raw, &mut stored[1..], LEVEL)
        .map_err(|error| BackupError::io("compress", "a chunk", error))?;
    if length < raw.len() {
        stored[0] = ZSTD;
        stored.truncate(length + 1);
    } else {
        stored.clear();
        stored.push(PLAIN);
        stored.extend_from_slice(raw);
    }
    Ok(stored)
}

/// The bytes of a chunk, if they are those that its name says.
pub(crate) fn unpack(hash: Hash, stored: &[u8], raw_bytes: usize) -> Result<Vec<u8>, BackupError> {
    let broken = |why: &str| BackupError::Broken { what: format!("the chunk {hash}"), why: why.to_owned() };
    if raw_bytes > RAW_MAX {
        return Err(broken("it says to be larger than any chunk is"));
    }
    let raw = match stored.split_first() {
        Some((&PLAIN, raw)) => raw.to_vec(),
        Some((&ZSTD, packed)) => {
            zstd::bulk::decompress(packed, raw_bytes).map_err(|_| broken("its bytes do not unpack"))?
        }
        _ => return Err(broken("it is stored in no known way")),
    };
    match Hash::of(&raw) == hash {
        true => Ok(raw),
        false => Err(broken("its bytes have changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_unpacks_and_a_changed_bit_shows() {
        let text = b"the same again and again ".repeat(1000);
        let noise: Vec<u8> =
            (0..5000_u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec()).collect();
        for raw in [&text[..], &noise[..], b"", b"x"] {
            let (hash, mut stored) = (Hash::of(raw), pack(raw).unwrap());
            assert_eq!(unpack(hash, &stored, raw.len()).unwrap(), raw);
            let Some(last) = stored[1..].last_mut() else { continue };
            *last ^= 1;
            assert_eq!(unpack(hash, &stored, raw.len()).unwrap_err().code(), "backup_broken");
        }
        assert!(pack(&text).unwrap().len() < 200);
        assert_eq!(pack(&noise).unwrap().len(), noise.len() + 1);
        assert!(unpack(Hash::of(b""), &[PLAIN], RAW_MAX + 1).is_err());
    }
}
