//! Pools: what computers share.

use den_model::{Bytes, Cpus, Micros};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::computer::Amount;

/// `POST /v1/pools`. What is left out has no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// A DNS label.
    #[schema(example = "team-a")]
    pub name: String,
    /// CPUs that all of its computers use at a time: a number, or text such as `"0.5"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "4")]
    pub cpus: Option<Amount>,
    /// The sum of the memory limits of those that run: bytes, or text such as `"16GiB"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "16GiB")]
    pub memory: Option<Amount>,
    /// The sum of the disk limits of all, those in the trash included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "200GiB")]
    pub disk: Option<Amount>,
    /// Computers, those in the trash left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10")]
    pub computers: Option<Amount>,
}

/// `PATCH /v1/pools/{pool}`. What is left out stays; `"none"` takes a limit away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePool {
    /// CPUs that all of its computers use at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "4")]
    pub cpus: Option<Amount>,
    /// The sum of the memory limits of those that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "16GiB")]
    pub memory: Option<Amount>,
    /// The sum of the disk limits of all, those in the trash included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "none")]
    pub disk: Option<Amount>,
    /// Computers, those in the trash left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10")]
    pub computers: Option<Amount>,
}

/// A pool as it is shown. A limit that is left out is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// CPUs at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub cpus: Option<Cpus>,
    /// Bytes of memory at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub memory: Option<Bytes>,
    /// Bytes of disk at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub disk: Option<Bytes>,
    /// Computers at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computers: Option<u64>,
    /// What is taken of it.
    pub used: PoolUse,
    /// When it was made, microseconds since the epoch.
    pub created_at: Micros,
}

/// What the computers of a pool take of it: their limits, whatever of them they use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolUse {
    /// Computers, those in the trash left out.
    pub computers: u64,
    /// Computers that run or are paused.
    pub running: u64,
    /// Computers in the trash.
    pub trashed: u64,
    /// CPUs that those that run may use, each by itself: they share what the pool has.
    pub cpus: f64,
    /// Memory limits of those that run or are paused, in bytes.
    pub memory: u64,
    /// Disk limits of all, those in the trash included, in bytes.
    pub disk: u64,
}

/// `GET /v1/pools`: all of them, the default first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// The pools.
    pub items: Vec<PoolView>,
}
