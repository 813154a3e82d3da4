//! A computer: what is asked for, what it is held to, and what is known of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Bytes, ComputerId, ComputerName, Cpus, ImageName, Micros, Parent, PoolName, State, VolumeMount};

/// How a computer is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Own namespaces on the host's kernel.
    #[default]
    Container,
    /// Own kernel under QEMU.
    Vm,
}

/// What a computer may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time.
    pub cpus: Cpus,
    /// Memory with its page cache.
    pub memory: Bytes,
    /// Bytes of disk beyond the image.
    pub disk: Bytes,
    /// Processes and threads.
    pub pids: u32,
}

impl Limits {
    /// The smallest memory in which the agent and a shell run.
    pub const MEMORY_MIN: Bytes = Bytes::mib(16);
    /// The smallest disk that btrfs can hold to.
    pub const DISK_MIN: Bytes = Bytes::mib(16);
    /// The fewest processes with which a shell is of use.
    pub const PIDS_MIN: u32 = 16;
}

/// What a computer is made from: all that a create says, made definite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputerSpec {
    /// Its name, free when it is made.
    pub name: ComputerName,
    /// The image's name as it was asked for.
    pub image: ImageName,
    /// The image's digest, `sha256:…`, as it was then.
    pub image_digest: String,
    /// Which carrier.
    pub tier: Tier,
    /// What it may use.
    pub limits: Limits,
    /// Environment of every command, over the image's.
    pub env: BTreeMap<String, String>,
    /// For its owner to find it by.
    pub labels: BTreeMap<String, String>,
    /// Whether the image's own command is started at every boot.
    pub entrypoint: bool,
    /// Which pool it takes room of.
    #[serde(default, skip_serializing_if = "PoolName::is_default")]
    pub pool: PoolName,
    /// Shared volumes that it mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
}

/// A computer as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computer {
    /// Its id.
    pub id: ComputerId,
    /// What it was made from.
    pub spec: ComputerSpec,
    /// Where it stands.
    pub state: State,
    /// Why it failed or stopped by itself, in words.
    pub reason: Option<String>,
    /// When the create came in.
    pub created_at: Micros,
    /// When its state last changed.
    pub changed_at: Micros,
    /// The kernel's boot id in which it was last brought up: another one means the host restarted.
    pub boot_id: String,
    /// What it may reach: the gate's policy as JSON, which only the gate's crate reads. None in rows
    /// from before there was a gate.
    pub net: Option<String>,
    /// Where it was forked from.
    pub parent: Option<Parent>,
}
