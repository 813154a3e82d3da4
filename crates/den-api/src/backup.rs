//! Backups: the request, and how far it is.

use std::{collections::BTreeMap, fmt};

use den_model::Micros;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/backups`. The answer is a stream of [`BackupEvent`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackUp {
    /// Where to: a folder of the daemon's host, by its whole path, or `s3://BUCKET/PREFIX`.
    pub to: String,
    /// Keys and tokens of the house stay out.
    #[serde(default)]
    pub without_secrets: bool,
    /// Of the backups there only so many newest are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// A file of the daemon's host with lines `AWS_…=value`; without, the daemon's environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<String>,
    /// Credentials and settings of S3 under the names of the variables, `AWS_…`, in place of the daemon's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credentials: BTreeMap<String, String>,
}

impl fmt::Debug for BackUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Credentials are never shown.
        f.debug_struct("BackUp").field("to", &self.to).field("keep", &self.keep).finish_non_exhaustive()
    }
}

/// A backup that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupView {
    /// Its id.
    pub id: String,
    /// Where it lies.
    pub to: String,
    /// When it was begun: microseconds since the epoch.
    #[schema(value_type = i64)]
    pub at: Micros,
    /// Computers in it.
    pub computers: usize,
    /// States in it, disks as they were left out.
    pub states: usize,
    /// How long it took.
    pub time_ms: u64,
    /// Bytes of files that were read.
    pub read_bytes: u64,
    /// Bytes of them that no backup there had.
    pub new_bytes: u64,
    /// Bytes that were written there.
    pub stored_bytes: u64,
    /// Trees (disks, states, layers) that had not changed since the last one and were not read.
    pub trees_unchanged: u64,
    /// Files that were not read for the same reason.
    pub files_unchanged: u64,
    /// Files that were read.
    pub files_read: u64,
    /// Files that could not be read and are not in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Backups that were let go of for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// A line (NDJSON) of a backup that is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BackupEvent {
    /// How far it is.
    Progress {
        /// What is being read.
        what: String,
        /// Bytes of files that were read.
        read_bytes: u64,
        /// Bytes that were written.
        stored_bytes: u64,
    },
    /// It is done.
    Done {
        /// The backup.
        backup: BackupView,
    },
    /// It was not made. Former ones are as they were.
    Failed {
        /// Why.
        error: crate::ErrorDetail,
    },
}
