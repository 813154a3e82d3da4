//! What happened in the house.

use den_model::{ComputerId, EventKind, Micros};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened to a computer or to the house.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Counts the events of a house from 1, in the order in which they were written down.
    pub number: u64,
    /// Microseconds since 1970, UTC.
    pub at: Micros,
    /// What happened, as a stable word: `created`, `failed`, `limit_reached`, ….
    #[schema(value_type = String, example = "created")]
    pub kind: EventKind,
    /// To which computer. It may be gone by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub computer: Option<ComputerId>,
    /// As it was called then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who asked for it, where somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// The rest, by kind.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub detail: serde_json::Map<String, serde_json::Value>,
}

/// `GET /v1/events`: some events, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// The events.
    pub events: Vec<EventView>,
    /// Pass it as `after` for what comes then.
    pub next: u64,
    /// Whether events after the number that was given are gone, so that some are missing before these.
    pub lost: bool,
}
