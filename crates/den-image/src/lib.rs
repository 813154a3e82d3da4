//! Images in, read-only overlay layers out.
//!
//! ```text
//! registry ──pull──┐                                  names/base ──► manifests/<digest>.json
//! tar, OCI, folder ┼─► unpack ──► tmp/<job>/… ──rename──► layers/<diff id>/fs   (shared by images)
//! apt mirror ─build┘    └─ every path beneath the layer's root, every size under a limit
//! ```
//!
//! Invariants:
//! - What stands in `layers/`, `manifests/` and `names/` is complete: each arrives by one rename.
//! - Writers hold the flock on `lock` for the rename only; readers need no lock. Several daemons may
//!   share one store.
//! - A job's folder in `tmp/` is locked by the job that made it, so whoever can lock it may remove it.
//! - Nothing in a layer is created outside that layer's folder, whatever the layer says.
//!
//! Deliberately absent: mounting, running anything of an image on behalf of a computer, policy on
//! who may pull what.

mod archive;
mod bootstrap;
mod decode;
mod error;
mod folder;
mod image;
mod import;
mod limits;
mod oci;
mod progress;
mod pull;
mod root;
mod sources;
mod store;
mod tape;
mod unpack;

#[cfg(test)]
mod tests;

pub use bootstrap::{BuildSpec, Recipe};
pub use error::ImageError;
pub use image::{Image, ImageConfig};
pub use import::ImportConfig;
pub use limits::UnpackLimits;
pub use progress::{Progress, ProgressEvent, Quiet};
pub use store::{ImageStore, Removed};
