//! Backups: chunks named by their content, packed, in a folder or a bucket of S3.
//!
//! ```text
//!            Writer                                                     Layer
//! trees ──walk──► listing, chunks ──► packs ──► index ──► manifest ──lay──► trees
//!   └ unchanged since the last: taken over           (last)    └ on top of the tree laid before
//! ```
//!
//! Invariants:
//! - A backup exists once its manifest does, which is written last.
//! - What is there is only added to: a backup that is cut off leaves all others as they were.
//! - Every byte that is read back is held against its hash.
//!
//! Not here: what belongs to a house, databases, snapshots (`control`); encryption: the place is trusted.

mod chunk;
mod error;
mod index;
mod lay;
mod lease;
mod manifest;
mod place;
mod prune;
mod repository;
mod tree;
mod verify;
mod walk;
mod writer;

pub use chunk::Hash;
pub use error::BackupError;
pub use lay::{Layer, Listing};
pub use manifest::{Blob, Computer, FORMAT, Found, Manifest, Of, Took, Tree};
pub use place::{Credentials, Place};
pub use prune::{Pruned, prune, remove};
pub use repository::{Chunks, Repository};
pub use verify::{Lost, Verified, verify};
pub use walk::{Base, Source};
pub use writer::{About, Writer};

/// Who is told how far something is. Calls come from the thread that does it, and must not wait.
pub trait Progress: Sync {
    /// Something is begun.
    fn begins(&self, what: &str);
    /// So many bytes of files were read, or written where it is a restore.
    fn read(&self, bytes: u64);
    /// So many bytes were put into the place.
    fn stored(&self, bytes: u64);
}

/// Nobody is told.
impl Progress for () {
    fn begins(&self, _: &str) {}
    fn read(&self, _: u64) {}
    fn stored(&self, _: u64) {}
}
