//! Computers.

use std::collections::BTreeMap;

use den_model::{Bytes, ComputerId, Cpus, Micros, PoolName, State, Tier};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{NetRequest, ParentView};

/// `POST /v1/computers`. With the header `Idempotency-Key`, a repeated request gives the computer
/// that the first one made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateComputer {
    /// A DNS label; one is made up without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An image's name; `base` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `container` or `vm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "container")]
    pub tier: Option<String>,
    /// A number of CPUs, or text such as `"0.5"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub cpus: Option<Amount>,
    /// Bytes, or text such as `"2GiB"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub memory: Option<Amount>,
    /// Bytes, or text such as `"20GiB"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub disk: Option<Amount>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Environment of every command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// For its owner to find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether the image's own command is started at every boot, as a step.
    #[serde(default)]
    pub entrypoint: bool,
    /// What it may reach; as the house has it without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetRequest>,
    /// Sleeps by itself after so long without use: `10m`, or `10m:stop`; never without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10m")]
    pub idle: Option<String>,
    /// The pool that it takes room of; `default` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Volumes that it has mounted; what is in one is shared with all computers that have it mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<VolumeMountRequest>>,
}

/// A volume that a computer is to have mounted, to read and to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMountRequest {
    /// Its id or its name.
    pub volume: String,
    /// Where it is seen inside; an absolute path. The folder is made where it is missing.
    #[schema(example = "/mnt/data")]
    pub path: String,
}

/// A volume that a computer has mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMountView {
    /// Its id, `vol_…`.
    pub volume: String,
    /// What it was called when the computer was made.
    pub name: String,
    /// Where it is seen inside.
    #[schema(example = "/mnt/data")]
    pub path: String,
}

/// A number, or a number with a unit as text. Kept as text until it is checked, so that the
/// refusal can name what was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount(pub String);

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            other => return Err(serde::de::Error::custom(format!("{other} is neither a number nor a text"))),
        }))
    }
}

/// A computer as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComputerView {
    /// Its id, `cmp_…`.
    #[schema(value_type = String)]
    pub id: ComputerId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    #[schema(value_type = String, example = "running")]
    pub state: State,
    /// Why it failed or stopped by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The image's name.
    pub image: String,
    /// The image's digest.
    pub image_digest: String,
    /// How it is carried.
    #[schema(value_type = String, example = "container")]
    pub tier: Tier,
    /// CPUs at most.
    #[schema(value_type = f64)]
    pub cpus: Cpus,
    /// Bytes of memory at most.
    #[schema(value_type = u64)]
    pub memory: Bytes,
    /// Bytes of disk at most, beyond the image.
    #[schema(value_type = u64)]
    pub disk: Bytes,
    /// Processes and threads at most.
    pub pids: u32,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The pool that it takes room of.
    #[serde(default = "default_pool")]
    #[schema(example = "default")]
    pub pool: String,
    /// Whether the image's own command is started at boot.
    pub entrypoint: bool,
    /// Where it was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentView>,
    /// Microseconds since the epoch.
    pub created_at: Micros,
    /// When its state last changed, microseconds since the epoch.
    pub changed_at: Micros,
    /// Number of its last step; 0 before the first.
    pub last_step: u64,
    /// How it faces the network: `open`, `guarded` or `sealed`.
    #[serde(default)]
    #[schema(example = "open")]
    pub net: String,
    /// Its address inside; all computers have the same.
    #[serde(default)]
    pub address: String,
    /// What this computer can do: `exec`, `files`, `pty`, ….
    pub capabilities: Vec<String>,
    /// When it sleeps by itself: `10m`, `10m:stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10m")]
    pub idle: Option<String>,
    /// Whether it sleeps because nobody used it: the next request wakes it.
    #[serde(default)]
    pub asleep: bool,
    /// What it uses now; only in the answer for one computer, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageView>,
    /// What can be done with its memory; only in the answer for one computer that runs or is paused, where it is
    /// asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_state: Option<MemoryView>,
    /// Volumes that it has mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMountView>,
}

/// What can be done with the memory of a computer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryView {
    /// It is on the disk, and nothing of the computer runs.
    pub on_disk: bool,
    /// Whether it can be written there: `den pause --to-disk`.
    pub hibernate: bool,
    /// Whether a fork can have it: `den fork --memory`.
    pub memory_fork: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The pool of computers whose daemon knew of none.
fn default_pool() -> String {
    PoolName::DEFAULT.to_owned()
}

/// What a computer uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    /// CPU time since boot, in microseconds.
    pub cpu_us: u64,
    /// Bytes of memory, page cache included.
    pub memory_bytes: u64,
    /// Bytes of disk beyond the image, where the storage counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u32,
    /// How often the memory limit ended a process.
    pub oom_kills: u64,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Pass it as `after` for the next page; none on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/computers/{name}/stop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopComputer {
    /// Milliseconds between SIGTERM and SIGKILL; 5000 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// `GET /v1/version`: who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Version of Den.
    pub version: String,
    /// Version of the API: 1.
    pub api: u32,
    /// The data folder.
    pub data: String,
    /// `btrfs` or `plain`.
    pub storage: String,
    /// Husks that are ready.
    pub husks: u32,
}

/// `POST /v1/shutdown`: all computers are stopped, then the daemon ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Milliseconds between SIGTERM and SIGKILL; 5000 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}
