//! Shared volumes: folders that several computers mount.

use den_model::Micros;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::computer::Amount;

/// `POST /v1/volumes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// 1 to 128 of `a-z`, `A-Z`, `0-9`, `-` and `_`.
    #[schema(example = "models")]
    pub name: String,
    /// What it may hold: bytes, or text such as `"10GiB"`, which is what is taken where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10GiB")]
    pub size: Option<Amount>,
}

/// A shared volume as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Its id, `vol_…`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Bytes that it may hold.
    pub size: u64,
    /// Bytes in it, where the storage counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// The computers that mount it, those in the trash included.
    pub computers: Vec<String>,
    /// When it was made, microseconds since the epoch.
    pub created_at: Micros,
}

/// `GET /v1/volumes`: all of them, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// The volumes.
    pub items: Vec<VolumeView>,
}
