//! The trash, and what can be taken back.

use den_model::{ComputerId, Micros};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ComputerView, SnapshotView};

/// `GET /v1/trash`: what lies in it, the first that was removed first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrashList {
    /// The computers.
    pub items: Vec<TrashView>,
    /// For how many seconds each is kept; none where the house has no trash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_for_s: Option<u64>,
}

/// A computer in the trash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrashView {
    /// The computer.
    #[serde(flatten)]
    pub computer: ComputerView,
    /// When it was removed, microseconds since the epoch.
    pub removed_at: Micros,
    /// When it goes for good; earlier where the disk of the data folder is short of room.
    pub kept_until: Micros,
}

/// `DELETE /v1/trash`: what is gone for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EmptiedList {
    /// The computers.
    pub items: Vec<EmptiedView>,
}

/// A computer that is gone for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EmptiedView {
    /// Its id, `cmp_…`.
    #[schema(value_type = String)]
    pub id: ComputerId,
    /// What it was called.
    pub name: String,
}

/// `POST /v1/undo`: takes back what was done last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// To this computer, one in the trash included; to any without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computer: Option<String>,
    /// The one of this number in place of the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// The name under which what was removed comes back; its own without.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Something that was done, and whether it can be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UndoView {
    /// Names it; counts up over all computers.
    pub number: u64,
    /// When it was done, microseconds since the epoch.
    pub at: Micros,
    /// Who asked for it.
    pub who: String,
    /// To which computer, `cmp_…`.
    #[schema(value_type = String)]
    pub computer: ComputerId,
    /// What that was called then.
    pub name: String,
    /// `rm`, `restore`, `merge` or `net`.
    #[schema(example = "rm")]
    pub kind: String,
    /// In words: `removal of web`.
    pub text: String,
    /// The number of what it took back, where it was an undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_back: Option<u64>,
    /// When it was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_at: Option<Micros>,
    /// Whether it can be taken back now.
    pub possible: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// `GET /v1/undo`: what was done, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UndoList {
    /// What was done.
    pub items: Vec<UndoView>,
}

/// The answer to an undo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Undone {
    /// What was taken back.
    pub undone: UndoView,
    /// The computer as it is now.
    pub computer: ComputerView,
    /// The state of its disk that was left and is kept, where the disk is another one now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<SnapshotView>,
    /// The number that takes this undo back, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redo: Option<u64>,
}
