//! Debian's kernels: fetched once, their modules unpacked.

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use fs_err as fs;

use super::{CACHE, apt::Apt, keep, only};
use crate::tools;

/// Kernels that are fetched by their release, and the Debian suite each belongs to.
const RELEASES: [(&str, &str); 2] = [("6.1", "bookworm"), ("6.12", "trixie")];

/// A kernel and its modules: `tree/usr/lib/modules/<version>`.
pub struct Kernel {
    /// What is booted.
    pub image: PathBuf,
    /// Its modules, unpacked.
    pub tree: PathBuf,
    /// As `uname -r` says it.
    pub version: String,
}

impl Kernel {
    /// Finds it by its release, or by a path; fetches it where it has to.
    pub fn find(name: &str) -> anyhow::Result<Self> {
        if name.contains('/') {
            return Self::at(Path::new(name));
        }
        let (_, suite) = RELEASES
            .into_iter()
            .find(|(release, _)| *release == name)
            .with_context(|| format!("`{name}` is neither 6.1, nor 6.12, nor a path"))?;
        let kept = Path::new(CACHE).join(name);
        if !kept.is_dir() {
            fetch(suite, &kept)?;
        }
        Self::at(&only(&kept.join("boot"), "vmlinuz-")?)
    }

    /// The kernel `<top>/boot/vmlinuz-<version>`. Its modules are copied into the cache, unpacked.
    fn at(image: &Path) -> anyhow::Result<Self> {
        let image = fs::canonicalize(image)?;
        let version = image
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
            .with_context(|| format!("{} is not named vmlinuz-VERSION", image.display()))?
            .to_owned();
        let tree = Path::new(CACHE).join("modules").join(&version);
        if !tree.is_dir() {
            let top = image.parent().and_then(Path::parent).context("a kernel lies in a folder boot")?;
            let from = ["lib/modules", "usr/lib/modules"]
                .map(|folder| top.join(folder).join(&version))
                .into_iter()
                .find(|folder| folder.is_dir())
                .with_context(|| format!("{} has no modules of {version}", top.display()))?;
            keep(&tree, |tree| {
                let modules = tree.join("usr/lib/modules");
                fs::create_dir_all(&modules)?;
                symlink("usr/lib", tree.join("lib"))?;
                tools::run(Command::new("cp").arg("-a").arg(from).arg(&modules))?;
                tools::run(
                    Command::new("find").arg(&modules).args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]),
                )?;
                tools::run(Command::new("busybox").args(["depmod", "-b"]).arg(tree).arg(&version))?;
                // In the disk's tree `lib` is base's own link.
                Ok(fs::remove_file(tree.join("lib"))?)
            })?;
        }
        Ok(Self { image, tree, version })
    }

    fn modules(&self) -> PathBuf {
        self.tree.join("usr/lib/modules").join(&self.version)
    }

    /// Files of the modules `wanted` and of all they need, in the order in which they are loaded.
    pub fn in_order(&self, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let table = fs::read_to_string(self.modules().join("modules.dep"))?;
        let needs: HashMap<&str, Vec<&str>> = table
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(module, needs)| (module, needs.split_whitespace().collect()))
            .collect();
        let mut order = Vec::new();
        for name in wanted {
            let of = |module: &&&str| {
                let stem = Path::new(**module).file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
                stem == **name
            };
            if let Some(module) = needs.keys().find(of) {
                visit(module, &needs, &mut order);
            }
        }
        Ok(order.into_iter().map(|module| self.modules().join(module)).collect())
    }
}

fn visit<'a>(module: &'a str, needs: &HashMap<&'a str, Vec<&'a str>>, order: &mut Vec<&'a str>) {
    if order.contains(&module) {
        return;
    }
    for need in needs.get(module).into_iter().flatten() {
        visit(need, needs, order);
    }
    order.push(module);
}

/// Fetches Debian's cloud kernel of `suite`.
fn fetch(suite: &str, kept: &Path) -> anyhow::Result<()> {
    eprintln!("fetching the kernel of Debian {suite}, once …");
    let apt = Apt::of(suite)?;
    let depends =
        tools::read(apt.command("apt-cache").args(["depends", "linux-image-cloud-amd64"]).stdout(Stdio::piped()))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{suite} has no cloud kernel"))?;
    apt.run(&["-qq", "download", package])?;
    keep(kept, |folder| {
        tools::run(Command::new("dpkg-deb").arg("-x").arg(only(apt.folder(), "linux-image-")?).arg(folder))
    })
}
