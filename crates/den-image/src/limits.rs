//! How much of an image we take.

use den_model::Bytes;

/// A manifest or an index, as registries limit it too.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// An image's configuration.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Layers of one image. Overlayfs itself takes 500.
pub const LAYERS_MAX: usize = 128;
/// A path in a layer, Linux's `PATH_MAX` with its final zero.
pub const PATH_BYTES_MAX: usize = 4095;
/// Layers fetched at once.
pub const FETCHES_MAX: usize = 3;
/// Tries for one blob; each goes on from where the last one was cut.
pub const FETCH_TRIES_MAX: usize = 5;
/// The map of a sparse file, in pieces.
pub const SPARSE_PIECES_MAX: usize = 1 << 20;
/// One extended attribute, `XATTR_SIZE_MAX`.
pub const XATTR_BYTES_MAX: usize = 65536;

/// What one layer may unpack to.
#[derive(Debug, Clone, Copy)]
pub struct UnpackLimits {
    /// All files together, with the holes of sparse files.
    pub unpacked_bytes_max: Bytes,
    /// Files, folders, links and everything else that a tar lists.
    pub entries_max: u64,
    /// Bytes out per byte in. Real layers stay below 20; gzip of zeros reaches 1,000.
    pub ratio_max: u64,
    /// Up to here the ratio does not matter.
    pub ratio_free_bytes: Bytes,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            unpacked_bytes_max: Bytes::gib(64),
            entries_max: 4_000_000,
            ratio_max: 200,
            ratio_free_bytes: Bytes::mib(256),
        }
    }
}
