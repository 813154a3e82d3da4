//! Disks in a folder of their own. Needs root.

use std::path::{Path, PathBuf};

use den_disk::{DiskConfig, Disks, Identity, StorageChoice};
use den_model::{Bytes, ComputerId};

pub const IDENTITY: Identity<'static> = Identity { hostname: "web", machine_id: [0xab; 16] };
pub const CHILD: Identity<'static> = Identity { hostname: "kid", machine_id: [0xcd; 16] };
pub const LIMIT: Bytes = Bytes::mib(64);

pub fn id(n: u128) -> ComputerId {
    ComputerId::from_uuid(uuid::Uuid::from_u128(n))
}

/// Unmounted and removed at the end, also that of a test that failed.
pub struct Place {
    pub disks: Option<Disks>,
    pub data: tempfile::TempDir,
}

impl Place {
    pub fn new(storage: StorageChoice) -> Self {
        let data = tempfile::Builder::new().prefix("den-disk-test.").tempdir().unwrap();
        Self { disks: Some(open(data.path(), storage)), data }
    }

    pub fn live(&self, n: u128) -> PathBuf {
        self.disk(n).live
    }

    pub fn disk(&self, n: u128) -> den_disk::Disk {
        self.disks.as_ref().unwrap().disk(id(n))
    }
}

impl std::ops::Deref for Place {
    type Target = Disks;

    fn deref(&self) -> &Disks {
        self.disks.as_ref().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        settled(self.data.path());
        let closed = self.disks.take().unwrap().close();
        if !std::thread::panicking() {
            closed.unwrap();
        }
    }
}

pub fn open(data: &Path, storage: StorageChoice) -> Disks {
    Disks::open(&DiskConfig { data: data.to_owned(), storage, size: Some(Bytes::gib(1)) }).unwrap()
}

/// Waits until removed disks are gone.
pub fn settled(data: &Path) {
    for _ in 0..500 {
        if std::fs::read_dir(data.join("computers/.gone")).map_or(0, Iterator::count) == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    if !std::thread::panicking() {
        panic!("a removed disk is still there");
    }
}

/// `attr NAME VALUE PATH` and `attrs` for scripts: not every host has programs for it.
const ATTRIBUTES: &str = r#"
    attr() { python3 -c 'import os,sys;os.setxattr(sys.argv[3],sys.argv[1],sys.argv[2].encode(),follow_symlinks=False)' "$@"; }
    attrs() { python3 -c 'import os
for d,ds,fs in sorted(os.walk(".")):
  for n in sorted([os.path.join(d,f) for f in fs+ds]+[d]):
    for a in sorted(os.listxattr(n,follow_symlinks=False)): print(n,a,os.getxattr(n,a,follow_symlinks=False))'; }
"#;

/// What a shell script prints, run as root in `at`.
pub fn sh(at: &Path, script: &str) -> String {
    let script = &format!("{ATTRIBUTES}\n{script}");
    let output = std::process::Command::new("sh").args(["-euc", script]).current_dir(at).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every entry of a tree with all that a copy has to keep.
pub fn listing(at: &Path) -> String {
    sh(
        at,
        r#"export LC_ALL=C
        find . -printf '%p %y %m %U:%G %n %l %T@ ' \( -type f -printf '%s\n' -o -type c -printf 'c\n' -o -printf '\n' \) | sort
        find . -type f -print0 | sort -z | xargs -0r sha256sum
        find . -type c -exec stat -c '%n %t:%T' {} + | sort
        find . -type f -links +1 -printf '%i %p\n' | sort | awk '{ if (!($1 in n)) n[$1] = ++c; print n[$1], $2 }' | sort -k2
        attrs"#,
    )
}
