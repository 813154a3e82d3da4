//! What all computers use, in one answer.

use den_model::{Bytes, ComputerId, Cpus, Micros, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/usage`: all computers at one moment. Two of them give rates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageList {
    /// When it was looked at: microseconds since 1970, UTC.
    pub at: Micros,
    /// The host beneath them.
    pub host: HostUsage,
    /// The computers, the oldest first.
    pub items: Vec<ComputerUsage>,
}

/// The host beneath the computers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostUsage {
    /// CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory in bytes that may still be taken.
    pub memory_available: u64,
    /// The disk of the data folder, in bytes.
    pub disk_total: u64,
    /// What is free on it, in bytes.
    pub disk_free: u64,
}

/// One computer. Counts begin when it boots; those of a computer that does not run are 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComputerUsage {
    /// Which.
    #[schema(value_type = String)]
    pub id: ComputerId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    #[schema(value_type = String)]
    pub state: State,
    /// CPU time, in microseconds.
    pub cpu_us: u64,
    /// CPUs that it may use.
    #[schema(value_type = f64)]
    pub cpus: Cpus,
    /// Memory in bytes, page cache included.
    pub memory_bytes: u64,
    /// Memory that it may use.
    #[schema(value_type = u64)]
    pub memory: Bytes,
    /// Its disk in bytes, with its states; none where the storage does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Disk that it may use.
    #[schema(value_type = u64)]
    pub disk: Bytes,
    /// Processes and threads.
    pub pids: u32,
    /// How many it may have.
    pub pids_limit: u32,
    /// How often the kernel ended a process for its memory limit.
    pub oom_kills: u64,
    /// How often it was refused a process for its limit.
    pub forks_refused: u64,
    /// Steps since it was made.
    pub steps: u64,
    /// Steps that run.
    pub steps_running: u64,
    /// What its link has carried; none while the gate is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<LinkUsage>,
}

/// What a link has carried since the gate took it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkUsage {
    /// Bytes from the computer.
    pub up_bytes: u64,
    /// Bytes to the computer.
    pub down_bytes: u64,
    /// Flows that are open.
    pub flows: u32,
    /// Flows and queries that were refused.
    pub denied: u64,
    /// Times a limit was reached.
    pub limited: u64,
}

/// `GET /readyz`: whether the daemon can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether all checks passed.
    pub ready: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at: `daemon`, `store`, `launcher`, `gate`, `disk`.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What is wrong. Only with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to do about it. Only with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
