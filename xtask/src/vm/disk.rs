//! The machine's root disk and the initramfs that reaches it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use fs_err as fs;

use super::{Purpose, kernel::Kernel, systemd};
use crate::{base, criu, tools};

/// Modules that lead to the root disk. One that a kernel has built in has no file.
const EARLY: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
/// Programs of the host that the machine needs and `base` may lack.
const PROGRAMS: [&str; 3] = ["mkfs.btrfs", "btrfs", "nft"];
/// What of `base` nothing in the machine uses, half of its bytes.
const LEFT_OUT: [&str; 6] =
    ["usr/share/nodejs", "usr/share/locale", "usr/share/doc", "usr/share/man", "usr/lib/gcc", "usr/include"];
/// The machine's process 1.
const GUEST: &str = include_str!("guest.sh");
/// The measures in place of its session.
const BENCH: &str = include_str!("bench.sh");
/// What the computers on this host and in the machine are compared by.
pub const MOVED: &str = include_str!("moved.sh");
/// The file that names `base`, in the store of images.
const NAME: &str = "names/base";
/// The small image, in its folder.
const IMAGE: &str = "base.tar";
/// The root disk, most of it never written.
const DISK_SIZE: &str = "8G";

/// The manifest of `base` and its layers, the topmost first, as paths in the store of images.
fn base_files() -> anyhow::Result<(PathBuf, Vec<PathBuf>)> {
    let hex = |digest: &str| digest.trim().trim_start_matches("sha256:").to_owned();
    let digest = fs::read_to_string(base::store().join(NAME))?;
    let path = Path::new("manifests").join(format!("{}.json", hex(&digest)));
    let manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(base::store().join(&path))?)?;
    let layers = manifest["layers"].as_array().context("the manifest of `base` names no layers")?;
    let layers = layers.iter().rev().filter_map(|layer| layer.as_str());
    Ok((path, layers.map(|layer| Path::new("layers").join(hex(layer))).collect()))
}

/// A store at `to` that has `base` and nothing else.
fn base_store(to: &Path) -> anyhow::Result<()> {
    let (manifest, layers) = base_files()?;
    for path in layers.into_iter().chain([manifest, PathBuf::from(NAME)]) {
        let copy = to.join(&path);
        fs::create_dir_all(copy.parent().context("a path in a folder")?)?;
        tools::run(Command::new("cp").arg("-a").arg(base::store().join(path)).arg(copy))?;
    }
    Ok(())
}

/// An overlay mount for as long as a disk is made from it.
struct Merged(PathBuf);

impl Drop for Merged {
    fn drop(&mut self) {
        let _ = tools::run(Command::new("umount").arg(&self.0));
    }
}

/// The root disk: `base`, the kernel's modules, Den, CRIU, and what the session needs: the small image, and `moved`
/// where a house of this host goes with it.
pub fn root(
    folder: &Path,
    kernel: &Kernel,
    den: &Path,
    purpose: Purpose<'_>,
    moved: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| folder.join(name));
    for path in [&upper, &work, &root] {
        fs::create_dir(path)?;
    }
    for path in LEFT_OUT {
        let whiteout = upper.join(path);
        fs::create_dir_all(whiteout.parent().context("a path in a folder")?)?;
        tools::run(Command::new("mknod").arg(whiteout).args(["c", "0", "0"]))?;
    }
    let lower = std::iter::once(kernel.tree.clone())
        .chain(base_files()?.1.into_iter().map(|layer| base::store().join(layer).join("fs")));
    let lower = lower.map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    tools::run(Command::new("mount").args(["-t", "overlay", "den-vm", "-o", &options]).arg(&root))?;
    let merged = Merged(root.clone());

    fs::copy(den, root.join("usr/local/bin/den"))?;
    fs::copy("/bin/busybox", root.join("usr/bin/busybox"))?;
    let _ = fs::remove_file(root.join("usr/sbin/modprobe"));
    symlink("../bin/busybox", root.join("usr/sbin/modprobe"))?;
    for program in PROGRAMS {
        bring(program, &root)?;
    }
    fs::create_dir(root.join("den-vm"))?;
    fs::write(root.join("den-vm/guest.sh"), GUEST)?;
    fs::write(root.join("den-vm/moved.sh"), MOVED)?;
    fs::copy(folder.join(IMAGE), root.join("den-vm").join(IMAGE))?;
    fs::write(root.join("etc/resolv.conf"), "")?;
    match purpose {
        Purpose::Session => {}
        Purpose::Systemd => systemd::add(&root)?,
        Purpose::Bench(rows) => {
            fs::write(root.join("den-vm/bench.sh"), BENCH)?;
            fs::write(root.join("den-vm/measures"), rows.join("\n"))?;
            base_store(&root.join("den-vm/images"))?;
        }
    }
    if let Some(moved) = moved {
        tools::run(Command::new("cp").arg("-a").arg(moved).arg(root.join("den-vm/moved")))?;
    }
    let criu = Path::new(criu::CRIU);
    let above = root.join(criu.strip_prefix("/")?).parent().context("CRIU lies in a folder")?.to_owned();
    fs::create_dir_all(&above)?;
    tools::run(Command::new("cp").arg("-a").arg(criu).arg(above))?;

    let disk = folder.join("root.img");
    tools::run(Command::new("truncate").args(["-s", DISK_SIZE]).arg(&disk))?;
    tools::run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(&disk))?;
    drop(merged);
    Ok(disk)
}

/// Copies a program of the host and its libraries, where the root has none.
fn bring(program: &str, root: &Path) -> anyhow::Result<()> {
    let path = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .map(|folder| Path::new(folder).join(program))
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("this host has no {program}"))?;
    fs::copy(&path, root.join("usr/bin").join(program))?;
    let libraries = tools::read(Command::new("ldd").arg(&path))?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let there = root.join(library.trim_start_matches('/'));
        if !there.exists() {
            fs::copy(library, there)?;
        }
    }
    Ok(())
}

/// A tar of a root of a few files, in `folder`: what computers in the machine start from.
pub fn small_image(folder: &Path) -> anyhow::Result<PathBuf> {
    let (root, tar) = (folder.join("small"), folder.join(IMAGE));
    for path in ["bin", "dev", "etc", "opt/tree", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in tools::read(Command::new("busybox").arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
    fs::write(root.join("etc/lower"), "from the image\n")?;
    fs::write(root.join("opt/tree/old"), "from the image\n")?;
    tools::run(Command::new("tar").arg("-C").arg(root).args(["--owner=0", "--group=0", "-cf"]).arg(&tar).arg("."))?;
    Ok(tar)
}

/// An initramfs that reaches the root disk and goes there.
pub fn initrd(folder: &Path, kernel: &Kernel, process_1: &str) -> anyhow::Result<PathBuf> {
    let root = folder.join("early");
    for path in ["bin", "dev", "new"] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh"))?;
    let mut init = String::from("#!/bin/sh\n/bin/busybox mount -t devtmpfs devtmpfs /dev\n");
    for module in kernel.in_order(&EARLY)? {
        let name = module.file_name().context("a module has a name")?;
        fs::copy(&module, root.join(name))?;
        init += &format!("/bin/busybox insmod /{}\n", name.to_string_lossy());
    }
    init += &format!(
        "until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done\n\
         /bin/busybox mount -t ext4 /dev/vda /new\n\
         /bin/busybox umount /dev\n\
         exec /bin/busybox switch_root /new {process_1}\n"
    );
    fs::write(root.join("init"), init)?;
    tools::run(Command::new("chmod").arg("755").arg(root.join("init")))?;
    let file = folder.join("initrd");
    let pack = "find . | busybox cpio -o -H newc 2>/dev/null > \"$0\"";
    tools::run(Command::new("sh").args(["-c", pack]).arg(&file).current_dir(&root))?;
    Ok(file)
}
