//! Images that tests stand on.

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;

/// Where the image store that all tests share lies: `DEN_TEST_IMAGES`, else this.
pub const SHARED: &str = "/var/cache/den/images";

/// The shared image store. Panics with what to type where `base` is not in it.
pub fn shared() -> PathBuf {
    let root = PathBuf::from(std::env::var_os("DEN_TEST_IMAGES").unwrap_or_else(|| SHARED.into()));
    assert!(has_base(&root), "no image `base` in {}: run `cargo xtask test`, which builds it", root.display());
    root
}

/// Whether the image `base` is in a store.
pub fn has_base(root: &Path) -> bool {
    root.join("names/base").is_file()
}

/// Makes a root folder of a few megabytes out of the host's own programs: enough to run `sh`.
pub fn small_root(at: &Path) {
    for program in ["/bin/sh", "/bin/true", "/bin/cat", "/bin/ls", "/bin/id", "/bin/stat", "/bin/sleep", "/bin/env"] {
        install(at, Path::new(program));
        let list = Command::new("ldd").arg(program).output().expect("ldd");
        for word in String::from_utf8_lossy(&list.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
            install(at, Path::new(word));
        }
    }
    for dir in ["etc", "proc", "sys", "dev", "tmp", "root", "run", "var"] {
        fs::create_dir_all(at.join(dir)).expect("a folder");
    }
    fs::write(at.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("passwd");
    fs::write(at.join("etc/group"), "root:x:0:\n").expect("group");
}

fn install(root: &Path, file: &Path) {
    let to = root.join(file.strip_prefix("/").expect("an absolute path"));
    if !to.exists() {
        fs::create_dir_all(to.parent().expect("a parent")).expect("a folder");
        fs::copy(fs::canonicalize(file).expect("the host has it"), &to).expect("a copy");
    }
}
