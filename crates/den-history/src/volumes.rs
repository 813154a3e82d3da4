//! What lies beside the tree of a state: places that are no part of its overlay, as Docker's.
//!
//! ```text
//! <state>/data/…          the tree: compared and merged
//! <state>/vol/docker/…    /var/lib/docker: kept, forked and restored with it; here it is only seen whether it differs
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{HistoryError, State};

/// Files of one volume that are held against each other; one that has more is taken to differ.
const FILES_MAX: usize = 20_000;

/// What is compared of a file: its kind and mode, size, seconds and nanoseconds of its change.
type Seen = (u32, u64, i64, i64);

/// Where the volume is inside that `path`, relative to a state, is in; nothing where it is in none, or the top of one.
/// To the tops the boot and the re-keying of a fork write.
pub(crate) fn volume_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("vol").ok()?;
    let mut parts = inside.components();
    let name = parts.next()?;
    parts.next()?;
    Some(place(Path::new(&name)))
}

fn place(name: &Path) -> String {
    format!("/var/lib/{}", name.display())
}

/// The volumes of which not all files are alike in both, by a walk: for states of which it is not known since when
/// they may differ.
pub(crate) fn differing(a: &State, b: &State) -> Result<BTreeSet<String>, HistoryError> {
    let roots = [a.root.join("vol"), b.root.join("vol")];
    let mut names: BTreeSet<PathBuf> = BTreeSet::new();
    for root in &roots {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            names.insert(entry.file_name().into());
        }
    }
    let differs = |name: &PathBuf| {
        let [one, other] = roots.each_ref().map(|root| files(&root.join(name)));
        one.is_none() || one != other
    };
    Ok(names.iter().filter(|name| differs(name)).map(|name| place(name)).collect())
}

/// The files below a folder of a state; nothing where there are too many. A kept state does not change under it.
fn files(top: &Path) -> Option<BTreeMap<PathBuf, Seen>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { return None };
            if meta.is_dir() {
                folders.push(path);
            } else {
                let seen = (meta.mode(), meta.size(), meta.mtime(), meta.mtime_nsec());
                found.insert(path.strip_prefix(top).ok()?.to_owned(), seen);
            }
            if found.len() + folders.len() > FILES_MAX {
                return None;
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_volume_is_none_of_it() {
        let of = |path: &str| volume_of(Path::new(path));
        assert_eq!(of("vol/docker/overlay2/x"), Some("/var/lib/docker".to_owned()));
        for none in ["vol", "vol/docker", "data/vol/docker/x", "work/work"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
