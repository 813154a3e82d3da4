//! Where backups lie: a folder, or a bucket of S3.
//!
//! ```text
//! den-backup.json                      whose this is, and in which format
//! lease.json                           who writes, until when
//! packs/<xx>/<hash>                    chunks, some MB together
//! index/<hash>                         which chunk is where
//! broken/<hash of a pack>              which chunks of it were found broken, until they are there again
//! backups/<time>-<random>.<hash>.json  one backup: written last
//! ```
//!
//! Invariants:
//! - What was put is there whole, under its name, after a power cut too; or not at all.
//! - Nothing is ever written over but the lease, what is marked as broken and its mark.
//!
//! Calls block. Those to S3 run on a runtime of their own.

mod folder;
mod s3;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use bytes::Bytes;

use crate::BackupError;
use folder::Folder;
use s3::S3;

/// Credentials and settings of S3, under the names that `AWS_…` variables have. Shows nothing of itself.
#[derive(Clone, Default)]
pub struct Credentials(BTreeMap<String, String>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} settings)", self.0.len())
    }
}

/// The longest file of credentials.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;

impl Credentials {
    /// Those of this process's environment.
    pub fn from_env() -> Self {
        Self(std::env::vars().filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty()).collect())
    }

    /// Those of a file of lines `AWS_…=value`, over those of the environment. Others than its owner must not be
    /// able to read it.
    pub fn from_file(path: &std::path::Path) -> Result<Self, BackupError> {
        use std::os::unix::fs::MetadataExt;
        let wrong = |why: &str| BackupError::BadPlace { place: path.display().to_string(), why: why.to_owned() };
        let facts = std::fs::metadata(path).map_err(|error| BackupError::io("open", path, error))?;
        if facts.mode() & 0o077 != 0 {
            return Err(wrong("others than its owner can reach this file of credentials; chmod 600 mends it"));
        }
        if facts.len() > CREDENTIALS_BYTES_MAX {
            return Err(wrong("a file of credentials is not as long"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| BackupError::io("read", path, error))?;
        let mut all = Self::from_env();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (name, value) = line.split_once('=').ok_or_else(|| wrong("each line has to be NAME=value"))?;
            let value = value.trim().trim_matches(['"', '\'']);
            all.0.insert(name.trim().to_owned(), value.to_owned());
        }
        Ok(all)
    }

    /// From pairs of `AWS_…` and a value; others are left out.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().filter(|(name, _)| name.starts_with("AWS_")).collect())
    }

    /// Name and value of each.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub name: String,
    pub bytes: u64,
}

/// Where backups lie.
pub struct Place {
    text: String,
    kind: Kind,
}

enum Kind {
    Folder(Folder),
    S3(S3),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({})", self.text)
    }
}

impl Place {
    /// The place that `text` names: an absolute path, `file:///…`, or `s3://BUCKET/PREFIX`.
    ///
    /// Errors: `BadPlace`.
    pub fn new(text: &str, credentials: &Credentials) -> Result<Self, BackupError> {
        let bad = |why: &str| BackupError::BadPlace { place: text.to_owned(), why: why.to_owned() };
        let kind = if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(bad("it names no bucket"));
            }
            Kind::S3(S3::new(text, bucket, prefix.trim_matches('/'), credentials)?)
        } else {
            let path = text.strip_prefix("file://").unwrap_or(text);
            if path.contains("://") {
                return Err(bad("only folders and s3:// are known"));
            }
            if !path.starts_with('/') {
                return Err(bad("a folder is named by its whole path"));
            }
            Kind::Folder(Folder::new(PathBuf::from(path)))
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// The folder, where it is one.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        match &self.kind {
            Kind::Folder(folder) => Some(folder.root()),
            Kind::S3(_) => None,
        }
    }

    /// Puts an object there, and returns once it is there to stay.
    pub(crate) fn put(&self, name: &str, bytes: Bytes) -> Result<(), BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.put(&self.text, name, &bytes),
            Kind::S3(s3) => s3.put(name, bytes),
        }
    }

    /// Puts an object there unless there is one; says whether it did.
    pub(crate) fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.put_new(&self.text, name, &bytes),
            Kind::S3(s3) => s3.put_new(name, bytes),
        }
    }

    /// As [`Place::put`], and may return before it is there: [`Place::settle`] waits for all.
    pub(crate) fn put_later(&self, name: &str, bytes: Bytes) -> Result<(), BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.put(&self.text, name, &bytes),
            Kind::S3(s3) => s3.put_later(name, bytes),
        }
    }

    /// Waits for what was put. Errors: the first that any of it met.
    pub(crate) fn settle(&self) -> Result<(), BackupError> {
        match &self.kind {
            Kind::Folder(_) => Ok(()),
            Kind::S3(s3) => s3.settle(),
        }
    }

    /// An object; none where there is none.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Bytes>, BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.get(name),
            Kind::S3(s3) => s3.get(name),
        }
    }

    /// A part of an object; none where there is none, or not as much of it.
    pub(crate) fn get_part(&self, name: &str, at: u64, bytes: usize) -> Result<Option<Bytes>, BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.get_part(name, at, bytes),
            Kind::S3(s3) => s3.get_part(name, at, bytes),
        }
    }

    /// All objects below a folder, in no order. None where it is not there.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<Object>, BackupError> {
        match &self.kind {
            Kind::Folder(place) => place.list(folder),
            Kind::S3(s3) => s3.list(folder),
        }
    }

    /// Whether nothing is there at all.
    pub(crate) fn is_empty(&self) -> Result<bool, BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.is_empty(),
            Kind::S3(s3) => s3.is_empty(),
        }
    }

    /// Removes an object. None is no error.
    pub(crate) fn delete(&self, name: &str) -> Result<(), BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.delete(name),
            Kind::S3(s3) => s3.delete(name),
        }
    }

    /// Removes what a writer that died left half written.
    pub(crate) fn sweep(&self) -> Result<(), BackupError> {
        match &self.kind {
            Kind::Folder(folder) => folder.sweep(),
            // An object is there whole or not at all.
            Kind::S3(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_in_full() {
        for wrong in ["backup", "", "s3://", "s3:///x", "ftp://x/y", "gs://x"] {
            let error = Place::new(wrong, &Credentials::default()).expect_err(wrong);
            assert_eq!(error.code(), "bad_backup_place", "{wrong}");
        }
        assert!(Place::new("/mnt/x", &Credentials::default()).is_ok());
        assert!(Place::new("file:///mnt/x", &Credentials::default()).is_ok());
    }

    #[test]
    fn credentials_show_nothing() {
        let pairs = [("AWS_SECRET_ACCESS_KEY", "hunter2"), ("OTHER", "x")];
        let all = Credentials::from_pairs(pairs.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(all.pairs().count(), 1);
        assert_eq!(format!("{all:?}"), "Credentials(1 settings)");
    }
}
