//! Which places a difference touches.

use std::path::{Path, PathBuf};

/// The paths that differ, in order, or all there are where they are not known.
pub(super) struct Touched {
    paths: Option<Vec<PathBuf>>,
}

impl Touched {
    pub(super) fn new(paths: Option<&[PathBuf]>) -> Self {
        let paths = paths.map(|paths| {
            let mut paths = paths.to_vec();
            paths.sort_unstable();
            paths
        });
        Self { paths }
    }

    pub(super) fn is_known(&self) -> bool {
        self.paths.is_some()
    }

    /// Whether `path`, something below it or a directory above it differs.
    pub(super) fn by(&self, path: &Path) -> bool {
        let Some(paths) = &self.paths else { return true };
        let from = paths.partition_point(|changed| changed.as_path() < path);
        paths.get(from).is_some_and(|changed| changed.starts_with(path))
            || path.ancestors().skip(1).any(|above| {
                // What differs of the root itself is its mode or owner.
                above != Path::new("/") && paths.binary_search_by(|changed| changed.as_path().cmp(above)).is_ok()
            })
    }

    /// The paths that differ; none where they are not known.
    pub(super) fn paths(&self) -> &[PathBuf] {
        self.paths.as_deref().unwrap_or_default()
    }
}
