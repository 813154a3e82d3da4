//! Files inside a computer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of thing a path is, with its attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatView {
    /// The path; bytes that are no UTF-8 as U+FFFD, and then `path_base64` has the exact ones.
    pub path: String,
    /// The exact path where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// `file`, `directory`, `symlink`, `fifo`, `socket`, `char_device` or `block_device`.
    pub kind: String,
    /// Permission bits in octal: `0644`.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The owner's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes that are allocated: less than `size` for a sparse file.
    pub allocated: u64,
    /// Modified, microseconds since the epoch.
    pub mtime: i64,
    /// What a symbolic link says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// An entry of a list: its path is relative to what was listed.
pub type EntryView = StatView;

/// `POST /v1/computers/{name}/files`: one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum FileOperation {
    /// Makes a directory.
    Mkdir {
        /// Where.
        path: String,
        /// Permission bits in octal.
        #[serde(default)]
        mode: Option<String>,
        /// With those above it; one that exists is no error.
        #[serde(default)]
        parents: bool,
        /// `user[:group]`.
        #[serde(default)]
        owner: Option<String>,
    },
    /// Moves.
    Move {
        /// From.
        from: String,
        /// To.
        to: String,
    },
    /// Removes.
    Remove {
        /// What.
        path: String,
        /// With what it holds.
        #[serde(default)]
        recursive: bool,
    },
    /// Sets permission bits.
    Chmod {
        /// Of what.
        path: String,
        /// In octal.
        mode: String,
        /// With all below.
        #[serde(default)]
        recursive: bool,
    },
    /// Sets the owner.
    Chown {
        /// Of what.
        path: String,
        /// `user`, `user:group`, `:group`.
        owner: String,
        /// With all below.
        #[serde(default)]
        recursive: bool,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Where.
        path: String,
        /// What it says.
        target: String,
    },
}

/// An event of `GET …/files/watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    /// `created`, `written`, `removed`, `moved`, `attributes` or `overflow`.
    pub kind: String,
    /// Relative to what is watched.
    pub path: String,
    /// Where it was before a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// The answer of `GET …/files/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EntryList {
    /// The entries.
    pub items: Vec<EntryView>,
}
