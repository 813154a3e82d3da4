//! An image as its users see it.

use std::path::PathBuf;

use den_model::{Bytes, ImageName, Micros};
use serde::{Deserialize, Serialize};

/// An image that is here: every layer is unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name that it was asked for by; for [`crate::ImageStore::by_digest`] its first name.
    pub name: ImageName,
    /// `sha256:…` of the manifest. Never moves, unlike the name.
    pub digest: String,
    /// The folders to stack, the top one first, as overlayfs wants them.
    pub layers: Vec<PathBuf>,
    /// What to start, and how.
    pub config: ImageConfig,
    /// Unpacked bytes of all layers together, shared ones too.
    pub size: Bytes,
    /// When it arrived in this store.
    pub created_at: Micros,
    /// Where it came from: a reference, a path, or what it was built from.
    pub source: String,
}

/// What an image says about the programs that run in it: the part of an OCI image configuration
/// that means something here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments after them, or the whole command without an entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Where programs start; `/` when absent.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// The signal that stops the entrypoint, such as `SIGTERM`.
    pub stop_signal: Option<String>,
    /// `80/tcp` and the like.
    pub exposed_ports: Vec<String>,
    /// Free text, such as `org.opencontainers.image.version`.
    pub labels: std::collections::BTreeMap<String, String>,
}
