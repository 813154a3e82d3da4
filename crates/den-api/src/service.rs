//! Services: commands that a computer keeps running.

use std::collections::BTreeMap;

use den_model::Micros;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EndView;

/// How long `GET …/services/{service}` waits at most for something to change, in milliseconds.
pub const SERVICE_WAIT_MS_MAX: u64 = 60_000;

/// `POST /v1/computers/{c}/services`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddService {
    /// 1 to 63 of a-z, 0-9 and `-`.
    pub name: String,
    /// The command and its arguments; looked up in PATH.
    pub run: Vec<String>,
    /// `always` (without it), `on-failure` or `no`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// `port:8000`: that TCP port takes a connection; `exec:CMD`: that command of `sh` ends with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// How long it may take to be ready, in milliseconds: 60000 without. One that is not is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_within_ms: Option<u64>,
    /// Name or number, optionally `:group`; the image's user or root without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where; the image's working directory or the user's home without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment over the computer's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Bytes of the output of each start that are kept: the first and the newest. 64 MiB without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_bytes: Option<u64>,
}

/// A service as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name in its computer.
    pub name: String,
    /// `starting`, `ready`, `running` (it has no check), `backing_off`, `stopped` or `failed`.
    pub state: String,
    /// Why, where that is not plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In this state since: microseconds since the epoch.
    pub since: Micros,
    /// Whether it runs while its computer runs.
    pub wanted: bool,
    /// Starts that nobody asked for, since the first of this run of its computer.
    pub restarts: u64,
    /// The step of its newest start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// How the newest start that has ended did so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<EndView>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ended_at: Option<Micros>,
    /// The command and its arguments.
    pub run: Vec<String>,
    /// `always`, `on-failure` or `no`.
    pub restart: String,
    /// What it is ready by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// How long it may take to be ready, in milliseconds.
    pub ready_within_ms: u64,
    /// As whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment over the computer's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Bytes of the output of each start that are kept.
    pub keep_bytes: u64,
    /// When it was added.
    pub created_at: Micros,
    /// Grows whenever something of this changes, until the daemon is started again.
    pub revision: u64,
}

/// The answer of `GET /v1/computers/{c}/services`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceList {
    /// By name.
    pub items: Vec<ServiceView>,
}
