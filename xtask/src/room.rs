//! Room on the disks, before a run of all tests: a disk that fills up midway fails many tests, and none says why.
//!
//! ```text
//! target/debug    BUILD and INCREMENTAL, less what is built already, REBUILD at least ─┐
//! /tmp            TESTS                                                                ├─ added up on one disk
//! /var/cache/den  CACHE, where the image `base` is not there yet                       ─┘
//! ```

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use den_testkit::images;
use fs_err as fs;

/// What a whole build takes, with all tests and clippy. Seen: 3.7 GiB.
const BUILD_MIB: u64 = 5 << 10;
/// What an incremental one keeps beside that. Seen: 3.8 GiB.
const INCREMENTAL_MIB: u64 = 4 << 10;
/// What a build takes where there was one.
const REBUILD_MIB: u64 = 2 << 10;
/// What tests write at the same time, their disks and the machine's: a file of 4 GiB, and beside it as much again.
const TESTS_MIB: u64 = 9 << 10;
/// `base`, kernels, CRIU and SDKs.
const CACHE_MIB: u64 = 3 << 10;

/// A folder, what it needs, and what of it can go.
struct Need {
    folder: PathBuf,
    mib: u64,
    remove: &'static str,
}

/// Fails where a run does not fit.
pub fn look() -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    // This program lies in the profile's folder, wherever cargo has put that.
    let build = program.parent().context("a program lies in a folder")?.to_owned();
    let incremental = std::env::var_os("CARGO_INCREMENTAL").is_none_or(|value| value != "0");
    let whole = if incremental { BUILD_MIB + INCREMENTAL_MIB } else { BUILD_MIB };
    let mut needs = vec![
        Need {
            mib: whole.saturating_sub(size_mib(&build)).max(REBUILD_MIB),
            folder: build,
            remove: "`cargo clean`, or its folder incremental",
        },
        Need { mib: TESTS_MIB, folder: std::env::temp_dir(), remove: "folders den-* that no process uses" },
    ];
    if !images::has_base(Path::new(images::SHARED)) {
        let folder = Path::new(images::SHARED).to_owned();
        needs.push(Need { mib: CACHE_MIB, folder, remove: "images that nothing needs" });
    }
    let mut disks: Vec<(u64, Vec<Need>)> = Vec::new();
    for need in needs {
        let disk = fs::metadata(existing(&need.folder))?.dev();
        match disks.iter_mut().find(|(other, _)| *other == disk) {
            Some((_, of_disk)) => of_disk.push(need),
            None => disks.push((disk, vec![need])),
        }
    }
    for (_, needs) in disks {
        let place = existing(&needs.first().context("a disk is there for a need")?.folder).to_owned();
        let facts = rustix::fs::statvfs(&place)?;
        if let Some(error) = short((facts.f_bavail * facts.f_frsize) >> 20, &needs) {
            bail!(error);
        }
    }
    Ok(())
}

/// What is said where `free` is less than `needs` together.
fn short(free_mib: u64, needs: &[Need]) -> Option<String> {
    let needed: u64 = needs.iter().map(|need| need.mib).sum();
    if free_mib >= needed {
        return None;
    }
    let gib = |mib: u64| format!("{:.1} GiB", mib as f64 / 1024.0);
    let mut text = format!("the disk is too full for all tests: {} free, {} needed", gib(free_mib), gib(needed));
    for Need { folder, mib, remove } in needs {
        text += &format!("\n  {}: {}; what can go: {remove}", folder.display(), gib(*mib));
    }
    Some(text)
}

/// The nearest folder above that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// What a tree takes on its disk. What cannot be read, or goes meanwhile, counts nothing.
fn size_mib(folder: &Path) -> u64 {
    let mut left = vec![folder.to_owned()];
    let mut blocks = 0;
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(facts) = entry.metadata() else { continue };
            if facts.is_dir() {
                left.push(entry.path());
            } else {
                // cargo links the programs; a name is its share.
                blocks += facts.blocks() / facts.nlink().max(1);
            }
        }
    }
    (blocks * 512) >> 20
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Need, existing, short};

    #[test]
    fn a_disk_that_is_too_full_is_said_with_what_can_go() {
        let needs = [
            Need { folder: PathBuf::from("/a"), mib: 2048, remove: "this" },
            Need { folder: PathBuf::from("/b"), mib: 1024, remove: "that" },
        ];
        assert_eq!(short(3072, &needs), None);
        let said = short(3071, &needs).expect("too little");
        assert_eq!(
            said,
            "the disk is too full for all tests: 3.0 GiB free, 3.0 GiB needed\n  \
             /a: 2.0 GiB; what can go: this\n  /b: 1.0 GiB; what can go: that"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_on_the_disk_of_one_above() {
        assert_eq!(existing(Path::new("/proc/nothing/of/it")), Path::new("/proc"));
    }
}
