//! Sleeping, and being cut off.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ComputerView, computer::Amount};

/// `PATCH /v1/computers/{c}`: what is not named stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeComputer {
    /// Sleeps by itself after so long without use: `10m`, `10m:stop`, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10m")]
    pub idle: Option<String>,
    /// A number of CPUs, or text such as `"0.5"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub cpus: Option<Amount>,
    /// Bytes, or text such as `"2GiB"`; no less than what cannot be taken from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub memory: Option<Amount>,
    /// Bytes, or text such as `"20GiB"`; no less than what it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub disk: Option<Amount>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

/// `POST /v1/computers/{c}/pause`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseComputer {
    /// Whether its memory goes to the disk, where this host can do that.
    #[serde(default)]
    pub to_disk: bool,
}

/// `POST /v1/unplug`: who was cut off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UnpluggedList {
    /// All that are cut off now.
    pub items: Vec<ComputerView>,
}
