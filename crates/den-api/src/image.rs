//! Images.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// Its name.
    pub name: String,
    /// `sha256:…`.
    pub digest: String,
    /// Number of layers.
    pub layers: usize,
    /// Bytes unpacked, all layers.
    pub size: u64,
    /// Microseconds since the epoch.
    pub created_at: i64,
    /// Where it came from.
    pub source: String,
    /// `ENTRYPOINT` and `CMD` together.
    pub command: Vec<String>,
    /// `K=V`.
    pub env: Vec<String>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Names of computers that stand on it.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// `POST /v1/images/pull`. The answer is a stream of [`JobEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// `debian:bookworm`, `host/path:tag`, `…@sha256:…`.
    pub reference: String,
}

/// `POST /v1/images/build`. The answer is a stream of [`JobEvent`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildImage {
    /// Its name; `base` makes the default image.
    pub name: String,
    /// `debian:bookworm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Debian packages.
    #[serde(default)]
    pub packages: Vec<String>,
    /// A mirror in place of the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
}

/// A line (NDJSON) of a pull, import or build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobEvent {
    /// How far it is.
    Progress {
        /// What is being done: `fetching`, `unpacking`, `bootstrapping`.
        stage: String,
        /// Which part: a layer's short digest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<String>,
        /// Bytes.
        done: u64,
        /// Bytes, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// A line that a tool printed.
    Line {
        /// The line.
        text: String,
    },
    /// It is done.
    Done {
        /// The image.
        image: ImageView,
    },
    /// It was not done, and nothing of it is left.
    Failed {
        /// Why.
        error: crate::ErrorDetail,
    },
}

/// The answer of `GET /v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images.
    pub items: Vec<ImageView>,
}
