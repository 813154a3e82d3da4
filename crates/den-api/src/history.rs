//! States of computers: kept, forked, compared, merged, gone back to.
//!
//! A *state* of a computer is named by text: `12` (after step 12; `0` is as it was made), a label that
//! `snap` gave (`before-upgrade`), or `now`. Where a field takes a computer and a state, it is written
//! `NAME` or `NAME@STATE`; `NAME` alone is `NAME@now`.

use std::collections::BTreeMap;

use den_model::{ComputerId, Micros};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ComputerView;

/// `POST /v1/computers/{c}/snapshots`: keeps the state as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapRequest {
    /// A name for it: a DNS label that is not all digits and not `now`. It is kept until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "before-upgrade")]
    pub label: Option<String>,
    /// Has everything inside written out first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync: bool,
    /// With the processes that run, where this host can do that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory: bool,
}

/// A state that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// Counts the kept states of one computer; 0 is as it was made or forked.
    pub number: u64,
    /// The last step that had ended.
    pub step: u64,
    /// The name that a user gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// `made`, `auto`, `named`, `fork`, `restore` or `merge`: why it was kept.
    #[schema(example = "auto")]
    pub kind: String,
    /// Microseconds since the epoch.
    pub created_at: Micros,
    /// How long the computer stood still for it, in microseconds; 0 where nothing ran.
    pub frozen_us: u64,
    /// Whether its processes could not be stopped for it: files may be from different moments.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub torn: bool,
}

/// `GET /v1/computers/{c}/snapshots`, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// All that are kept.
    pub items: Vec<SnapshotView>,
}

/// `POST /v1/computers/{c}/fork`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// From which state; `now` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Its name; with `count` above 1 followed by `-1`, `-2`, …. One is made up without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many, 1 to 100: all or none. 1 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Labels over the parent's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Environment over the parent's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The pool that they take room of; the parent's without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// With the processes that run, where this host can do that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory: bool,
}

/// The answer to a fork.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForkView {
    /// The new computers, running.
    pub items: Vec<ComputerView>,
}

/// Where a fork comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParentView {
    /// The parent; it may be gone.
    #[schema(value_type = String)]
    pub id: ComputerId,
    /// Its name when the fork was made.
    pub name: String,
    /// The number of the parent's snapshot that the fork began as.
    pub snapshot: u64,
    /// The last step of the parent before that.
    pub step: u64,
}

/// `POST /v1/computers/{c}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// To which state.
    pub state: String,
}

/// The answer to a restore: the disk is the old one, and the computer runs if it did before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RestoreView {
    /// As it is now.
    pub computer: ComputerView,
    /// The step that the restore is.
    pub step: u64,
    /// The state that was restored.
    pub to: SnapshotView,
    /// The state before, kept: restore this one to take the restore back.
    pub before: SnapshotView,
    /// What is not taken back: flows since that state that carried bytes out. At most 100.
    pub sent: Vec<SentView>,
    /// How many more there were.
    pub sent_more: u64,
}

/// Bytes that left after the state that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentView {
    /// When the flow began.
    pub at: Micros,
    /// Host or address, and port.
    #[schema(example = "example.com:443")]
    pub to: String,
    /// Bytes that the computer sent.
    pub bytes: u64,
}

/// What an entry of a state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Special,
}

/// Attributes of an entry of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetaView {
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky, 0 to 0o7777.
    pub mode: u32,
    /// Owner, as inside.
    pub uid: u32,
    /// Group, as inside.
    pub gid: u32,
    /// Bytes, of a file.
    pub size: u64,
    /// Microseconds since the epoch.
    pub mtime: Micros,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// One entry of `GET /v1/computers/{c}/states/{state}/list` and `/stat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateEntry {
    /// Absolute. What is no UTF-8 in it has `\xNN`.
    pub path: String,
    /// Its attributes.
    #[serde(flatten)]
    pub meta: MetaView,
}

/// `GET /v1/computers/{c}/states/{state}/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateList {
    /// In the order of their paths; below a directory directly behind it.
    pub items: Vec<StateEntry>,
    /// Whether there are more than the limit.
    pub truncated: bool,
}

/// One line of `GET /v1/computers/{c}/states/{state}/grep`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrepHit {
    /// In which file.
    pub path: String,
    /// From 1; 0: a binary file that matches.
    pub line: u64,
    /// The line, cut at 1,000 characters.
    pub text: String,
}

/// `GET /v1/computers/{c}/states/{state}/grep`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrepList {
    /// In the order of their paths.
    pub items: Vec<GrepHit>,
    /// Whether there are more than the limit.
    pub truncated: bool,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is only in the second state.
    Added,
    /// It is in both and differs.
    Changed,
    /// It is only in the first state.
    Removed,
    /// It is elsewhere in the second state: `from` says where it was.
    Renamed,
}

/// What of a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangePart {
    /// Its bytes.
    Content,
    /// Its permission bits.
    Mode,
    /// Its owner or group.
    Owner,
    /// Its extended attributes.
    Xattr,
    /// Where a link points.
    Target,
    /// What it is: a file where a directory was.
    Kind,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileChange {
    /// Absolute. What is no UTF-8 in it has `\xNN`.
    pub path: String,
    /// How.
    pub kind: ChangeKind,
    /// Where it was, if it was renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What of it differs, where it is in both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ChangePart>,
    /// In the first state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<MetaView>,
    /// In the second state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<MetaView>,
    /// blake3 of the bytes before, of a binary file that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_before: Option<String>,
    /// blake3 of the bytes after, of a binary file that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_after: Option<String>,
    /// Lines added, of a text file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines_added: Option<u64>,
    /// Lines removed, of a text file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines_removed: Option<u64>,
    /// The difference as a unified diff, where it was asked for and both sides are text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Something that has a meaning beyond its files: a package, a user, a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct FactChange {
    /// `dpkg`, `pip`, `npm`, `user`, `group`, `service`, `port`, `cron`, `environment`, `git`.
    #[schema(example = "dpkg")]
    pub area: String,
    /// Which one.
    #[schema(example = "nginx")]
    pub name: String,
    /// How.
    pub kind: ChangeKind,
    /// What it was: a version, a shell, a head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Of a repository: the files that were not as last added, by path; at most 1,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files_before: Vec<String>,
    /// Those that are not as last added now; at most 1,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files_after: Vec<String>,
}

/// How many of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeCount {
    /// Paths that are new.
    pub added: u64,
    /// Paths that differ or moved.
    pub changed: u64,
    /// Paths that are gone.
    pub removed: u64,
}

/// `GET /v1/diff?a=A[@STATE]&b=B[@STATE]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffView {
    /// The first state, as `NAME@STATE`.
    pub a: String,
    /// The second.
    pub b: String,
    /// How many paths.
    pub count: ChangeCount,
    /// By path.
    pub files: Vec<FileChange>,
    /// Whether there are more paths than the limit.
    pub truncated: bool,
    /// By meaning.
    pub facts: Vec<FactChange>,
    /// What lies beside the tree that is compared, and differs too: `/var/lib/docker` and the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
}

/// How far a diff or a merge is, where it is asked for as `text/event-stream`: events `progress`, and then
/// `end` with what it would have answered, or `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressView {
    /// `keeping`, `finding`, `comparing`, `deciding`, `describing`, `meaning` or `applying`.
    #[schema(example = "comparing")]
    pub phase: String,
    /// How many paths of this phase are done.
    pub done: u64,
    /// Of how many, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
}

/// `POST /v1/computers/{c}/merge`: the changes of a fork since it was made, into `{c}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeRequest {
    /// Which changes: `FORK` or `FORK@STATE`.
    pub from: String,
    /// Says what it would do, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Only these paths and what is below them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Where both have changed one of these (or something below), the target's stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ours: Vec<String>,
    /// Where both have changed one of these (or something below), the fork's comes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub theirs: Vec<String>,
}

/// A path that both have changed, each in its own way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConflictView {
    /// Which.
    pub path: String,
    /// `content`, `delete`, `kind`, `metadata`, `package_database`, `lock_file`, `inside` or `volume`.
    #[schema(example = "content")]
    pub why: String,
    /// A sentence for people.
    pub message: String,
    /// In the state that both come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<MetaView>,
    /// In the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ours: Option<MetaView>,
    /// In the fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub theirs: Option<MetaView>,
    /// The lines with conflict markers, of a text file; at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A change of a fork that is not merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedView {
    /// Which path.
    pub path: String,
    /// How it was changed in the fork.
    pub kind: ChangeKind,
    /// A sentence for people.
    #[schema(example = "each computer has its own")]
    pub message: String,
}

/// The answer to a merge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MergeView {
    /// The state that both come from.
    pub base: String,
    /// What came or would come into the target.
    pub files: Vec<FileChange>,
    /// Whether there are more paths than the limit.
    pub truncated: bool,
    /// How many.
    pub count: ChangeCount,
    /// What stands against it. Where there is any, nothing was changed.
    pub conflicts: Vec<ConflictView>,
    /// What the fork has changed and does not come: each computer has its own. At most 1,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedView>,
    /// What lies beside the tree that is merged, and was changed in the fork: it does not come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// The step that the merge is; none where nothing was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The state of the target before, kept: restore it to take the merge back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<SnapshotView>,
}

/// `GET /v1/computers/{c}/steps/{number}/changes`: what one step changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepChanges {
    /// How many.
    pub count: ChangeCount,
    /// The paths, without texts.
    pub files: Vec<FileChange>,
    /// Whether there are more than the limit.
    pub truncated: bool,
}

/// `GET /v1/computers/{c}/blame?path=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlameView {
    /// Of which path.
    pub path: String,
    /// The step that changed it last; none: it is as it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// By line, of a text file.
    pub lines: Vec<BlameLine>,
    /// Whether there are more lines than the limit of 10,000, or steps that are not kept any more.
    pub truncated: bool,
}

/// A line and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlameLine {
    /// The step; none: it was there when the computer was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The line without its end.
    pub text: String,
}

impl From<den_model::ChangeCount> for ChangeCount {
    fn from(count: den_model::ChangeCount) -> Self {
        Self { added: count.added, changed: count.changed, removed: count.removed }
    }
}

impl From<ChangeCount> for den_model::ChangeCount {
    fn from(count: ChangeCount) -> Self {
        Self { added: count.added, changed: count.changed, removed: count.removed }
    }
}

impl From<&den_model::Snapshot> for SnapshotView {
    fn from(snapshot: &den_model::Snapshot) -> Self {
        Self {
            number: snapshot.number,
            step: snapshot.step,
            label: snapshot.label.as_ref().map(ToString::to_string),
            kind: snapshot.kind.as_str().to_owned(),
            created_at: snapshot.created_at,
            frozen_us: snapshot.frozen_us,
            torn: snapshot.torn,
        }
    }
}

impl From<&den_model::Parent> for ParentView {
    fn from(parent: &den_model::Parent) -> Self {
        Self { id: parent.id, name: parent.name.clone(), snapshot: parent.snapshot, step: parent.step }
    }
}
