//! `cargo xtask vm`: a short session on another kernel, in an emulated machine with cgroup v2 alone.
//!
//! ```text
//! /var/cache/den/vm/<release>   a Debian kernel and its modules, from the host's own mirror
//! den-vm-…/root.img             ext4: `base`, those modules, `den`, a small image, vm/guest.sh
//! den-vm-…/initrd               busybox and the modules that reach the disk
//!                               ▼
//!                               qemu ─► guest.sh as process 1 ─► `VM: N passed, N failed`
//! ```
//!
//! Not a part of `cargo xtask test`: without KVM one boot takes minutes.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;

use crate::{base, packages, tools};

/// A machine that has not switched itself off by then is switched off.
const BOOT_MAX: Duration = Duration::from_secs(600);
/// Kernels and what apt knows of them.
const CACHE: &str = "/var/cache/den/vm";
/// Kernels that are fetched by their release, and the Debian suite each belongs to.
const RELEASES: [(&str, &str); 2] = [("6.1", "bookworm"), ("6.12", "trixie")];
/// What the host needs beside what Den needs.
const PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "e2fsprogs", "xz-utils", "tar"];
/// Modules that lead to the root disk. One that a kernel has built in has no file.
const EARLY: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
/// Programs of the host that the machine needs and `base` may lack.
const PROGRAMS: [&str; 3] = ["mkfs.btrfs", "btrfs", "nft"];
/// The machine's process 1.
const GUEST: &str = include_str!("vm/guest.sh");
/// The root disk, most of it never written.
const DISK_SIZE: &str = "8G";

/// `cargo xtask vm`
#[derive(Debug, clap::Args)]
pub struct VmArgs {
    /// 6.1, 6.12, or a vmlinuz-VERSION whose modules lie in ../lib/modules/VERSION
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// The program to run [default: target/release/den, else target/debug/den]
    den: Option<PathBuf>,
    /// kvm or tcg [default: kvm where the processor has it]
    #[arg(long)]
    accel: Option<String>,
}

/// Boots the machine, shows its session, and fails where a check failed.
pub fn run(args: &VmArgs) -> anyhow::Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "the machine is an x86_64 one, and so has to be this host");
    tools::need_root("cargo xtask vm")?;
    packages::need(packages::RUN)?;
    packages::need(PACKAGES)?;
    let den = match &args.den {
        Some(den) => std::path::absolute(den)?,
        None => ["release", "debug"]
            .map(|profile| tools::root().join("target").join(profile).join("den"))
            .into_iter()
            .find(|den| den.is_file())
            .context("no den in target/release or target/debug: build it, or name one")?,
    };
    ensure!(den.is_file(), "{} is not there", den.display());
    base::ensure(&den)?;
    let kernel = Kernel::find(&args.kernel)?;
    let folder = tempfile::Builder::new().prefix("den-vm-").tempdir()?;
    eprintln!("making the disk for Linux {} …", kernel.version);
    let disk = root_disk(folder.path(), &kernel, &den)?;
    let initrd = initrd(folder.path(), &kernel)?;
    let accel = args.accel.clone().unwrap_or_else(|| String::from(if has_kvm() { "kvm" } else { "tcg" }));
    eprintln!("booting under {accel}, at most {} s …", BOOT_MAX.as_secs());
    let (passed, failed) = boot(&kernel, &disk, &initrd, &accel)?;
    ensure!(failed == 0, "{failed} of {} checks failed on Linux {}", passed + failed, kernel.version);
    Ok(())
}

/// A kernel and its modules: `tree/usr/lib/modules/<version>`.
struct Kernel {
    image: PathBuf,
    tree: PathBuf,
    version: String,
}

impl Kernel {
    fn find(name: &str) -> anyhow::Result<Self> {
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
    fn in_order(&self, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
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

/// Fetches Debian's cloud kernel of `suite` with an apt that has a state of its own.
fn fetch(suite: &str, kept: &Path) -> anyhow::Result<()> {
    eprintln!("fetching the kernel of Debian {suite}, once …");
    let apt = tempfile::Builder::new().prefix("den-vm-apt-").tempdir()?;
    fs::create_dir_all(apt.path().join("lists/partial"))?;
    fs::create_dir_all(apt.path().join("cache/archives/partial"))?;
    fs::write(apt.path().join("suite.sources"), source(suite)?)?;
    let own = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(apt.path()).stdout(Stdio::null());
        for (option, value) in
            [("Dir::State::lists", "lists"), ("Dir::Cache", "cache"), ("Dir::Etc::sourcelist", "suite.sources")]
        {
            command.arg("-o").arg(format!("{option}={}", apt.path().join(value).display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root"]);
        command
    };
    tools::run(own("apt-get").args(["-qq", "update"]))?;
    let depends = tools::read(own("apt-cache").args(["depends", "linux-image-cloud-amd64"]).stdout(Stdio::piped()))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{suite} has no cloud kernel"))?;
    tools::run(own("apt-get").args(["-qq", "download", package]))?;
    keep(kept, |folder| {
        tools::run(Command::new("dpkg-deb").arg("-x").arg(only(apt.path(), "linux-image-")?).arg(folder))
    })
}

/// An apt source for `suite` at the mirror that this host takes Debian from.
fn source(suite: &str) -> anyhow::Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d")?.filter_map(Result::ok).map(|entry| entry.path()));
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let (mirror, signed) = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => {
                let Some(found) = text.split("\n\n").find_map(stanza) else { continue };
                found
            }
            Some("list") => {
                let Some(mirror) = text.lines().find_map(one_line) else { continue };
                (mirror, String::new())
            }
            _ => continue,
        };
        return Ok(format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n{signed}"));
    }
    bail!("this host's apt sources name no Debian mirror: pass --kernel PATH")
}

/// The mirror of a deb822 stanza for a Debian release, and its `Signed-By` field.
fn stanza(text: &str) -> Option<(String, String)> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once(':').filter(|_| !line.starts_with([' ', '\t'])) {
            Some((name, value)) => fields.push((name, value.trim().to_owned())),
            None => {
                let (_, value) = fields.last_mut()?;
                value.push('\n');
                value.push_str(line);
            }
        }
    }
    let field = |name: &str| fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    if field("Enabled") == Some("no") || !field("Suites")?.split_whitespace().any(is_release) {
        return None;
    }
    let signed = field("Signed-By").map(|value| format!("Signed-By: {value}\n")).unwrap_or_default();
    Some((field("URIs")?.split_whitespace().next()?.to_owned(), signed))
}

/// The mirror of a line `deb [options] URI suite component…` for a Debian release.
fn one_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let mirror = words.next()?;
    words.next().filter(|suite| is_release(suite)).map(|_| mirror.to_owned())
}

fn is_release(suite: &str) -> bool {
    ["bookworm", "trixie", "forky", "sid", "stable", "testing"].contains(&suite)
}

/// Makes the folder `kept` whole or not at all.
fn keep(kept: &Path, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let parent = kept.parent().context("a cache folder has a parent")?;
    fs::create_dir_all(parent)?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
    make(new.path())?;
    Ok(fs::rename(new.keep(), kept)?)
}

fn only(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .with_context(|| format!("{} has no {prefix}…", folder.display()))
}

/// The layers of `base`, the topmost first.
fn base_layers() -> anyhow::Result<Vec<PathBuf>> {
    let hex = |digest: &str| digest.trim().trim_start_matches("sha256:").to_owned();
    let digest = fs::read_to_string(base::store().join("names/base"))?;
    let manifest = base::store().join("manifests").join(format!("{}.json", hex(&digest)));
    let manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(manifest)?)?;
    let layers = manifest["layers"].as_array().context("the manifest of `base` names no layers")?;
    let layers = layers.iter().rev().filter_map(|layer| layer.as_str());
    Ok(layers.map(|layer| base::store().join("layers").join(hex(layer)).join("fs")).collect())
}

/// An overlay mount for as long as a disk is made from it.
struct Merged(PathBuf);

impl Drop for Merged {
    fn drop(&mut self) {
        let _ = tools::run(Command::new("umount").arg(&self.0));
    }
}

/// The root disk: `base`, the kernel's modules, Den, and what the session needs.
fn root_disk(folder: &Path, kernel: &Kernel, den: &Path) -> anyhow::Result<PathBuf> {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| folder.join(name));
    for path in [&upper, &work, &root] {
        fs::create_dir(path)?;
    }
    let lower = std::iter::once(kernel.tree.clone()).chain(base_layers()?);
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
    fs::write(root.join("etc/resolv.conf"), "")?;
    small_image(&folder.join("small"), &root.join("den-vm/base.tar"))?;

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

/// A tar of a root of a few files: what computers in the machine start from.
fn small_image(root: &Path, tar: &Path) -> anyhow::Result<()> {
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
    tools::run(Command::new("tar").arg("-C").arg(root).args(["--owner=0", "--group=0", "-cf"]).arg(tar).arg("."))
}

/// An initramfs that reaches the root disk and goes there.
fn initrd(folder: &Path, kernel: &Kernel) -> anyhow::Result<PathBuf> {
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
    init += "until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done\n\
             /bin/busybox mount -t ext4 /dev/vda /new\n\
             /bin/busybox umount /dev\n\
             exec /bin/busybox switch_root /new /bin/bash /den-vm/guest.sh\n";
    fs::write(root.join("init"), init)?;
    tools::run(Command::new("chmod").arg("755").arg(root.join("init")))?;
    let file = folder.join("initrd");
    let pack = "find . | busybox cpio -o -H newc 2>/dev/null > \"$0\"";
    tools::run(Command::new("sh").args(["-c", pack]).arg(&file).current_dir(&root))?;
    Ok(file)
}

/// Whether the processor can run a guest by itself; a /dev/kvm alone does not say so.
fn has_kvm() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") && Path::new("/dev/kvm").exists()
}

/// A machine that ends with this program's interest in it.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the machine, prints what its console says; how many checks passed and failed.
fn boot(kernel: &Kernel, disk: &Path, initrd: &Path, accel: &str) -> anyhow::Result<(u32, u32)> {
    let cpu = if accel == "kvm" { "host" } else { "max,la57=off,cx16=off" };
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-machine", "q35", "-accel", accel, "-cpu", cpu, "-smp", "2", "-m", "4096"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"])
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Machine)
        .context("cannot start qemu-system-x86_64")?;
    let console = machine.0.stdout.take().context("the console is a pipe")?;
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let since = Instant::now();
    let mut verdict = None;
    loop {
        match lines.recv_timeout(BOOT_MAX.saturating_sub(since.elapsed())) {
            Ok(line) => {
                println!("{:6.1}  {line}", since.elapsed().as_secs_f64());
                verdict = verdict.or_else(|| counts(&line));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the machine was still on after {} s", BOOT_MAX.as_secs()),
        }
    }
    verdict.context("the machine went off without a verdict")
}

/// The numbers of `VM: N passed, N failed`.
fn counts(line: &str) -> Option<(u32, u32)> {
    let (passed, failed) = line.strip_prefix("VM: ")?.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}
