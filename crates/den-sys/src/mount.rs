//! The new mount API: detached mounts that no namespace shows until they are attached.
//!
//! Source: open_tree(2), mount_setattr(2), fsopen(2), fsconfig(2), fsmount(2), move_mount(2);
//! overlay layers by descriptor need Linux 6.13, detached ones 6.15; before that by path.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::SysError;
use crate::creds::FsIds;

/// A mount that is attached nowhere; it ends when this is dropped unless it was attached.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// A clone of the tree at `path` (without submounts), its ids shifted by the user namespace
    /// `idmap`, read-only if asked. Reading through it leaves no trace (noatime): what is only read
    /// does not count as changed. It is nobody's peer, as a clone is on hosts whose mounts are shared.
    pub fn of_tree(path: &Path, idmap: Option<BorrowedFd<'_>>, access: Access) -> Result<Self, SysError> {
        let about = path.display().to_string();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let fd = rustix::mount::open_tree(rustix::fs::CWD, path, flags)
            .map_err(SysError::rustix("open_tree(CLONE)", &about))?;
        let mut attr = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
        attr.attr_set |= match access {
            Access::ReadOnly => libc::MOUNT_ATTR_RDONLY,
            Access::ReadWrite => 0,
            Access::Shared => libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        };
        if let Some(namespace) = idmap {
            attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
            attr.userns_fd = namespace.as_raw_fd() as u64;
        }
        let quiet = libc::mount_attr {
            attr_set: attr.attr_set | libc::MOUNT_ATTR_NOATIME,
            attr_clr: libc::MOUNT_ATTR__ATIME,
            ..attr
        };
        match set_attributes(fd.as_fd(), &quiet, &about) {
            // Times of access may be locked for a mount that came from outside, as in a computer.
            Err(error) if error.errno == libc::EPERM => set_attributes(fd.as_fd(), &attr, &about)?,
            other => other?,
        }
        Ok(Self(fd))
    }

    /// A clone of what `name` is in it, detached too.
    pub fn part(&self, name: &str) -> Result<Self, SysError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(&self.0, name, flags).map(Self).map_err(SysError::rustix("open_tree(CLONE)", name))
    }

    /// Attaches it at `path`, relative to the working directory.
    pub fn attach(&self, path: &str) -> Result<(), SysError> {
        rustix::mount::move_mount(&self.0, "", rustix::fs::CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(SysError::rustix("move_mount", path))
    }

    /// Attaches it at `name` in the directory `below`, which may be of a detached mount itself (Linux 6.15).
    pub fn attach_below(&self, below: BorrowedFd<'_>, name: &str) -> Result<(), SysError> {
        rustix::mount::move_mount(&self.0, "", below, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(SysError::rustix("move_mount", name))
    }

    /// For a descriptor that came from another process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a mount may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No.
    ReadOnly,
    /// Yes.
    ReadWrite,
    /// Yes, and others write there too: what they left makes nobody root, and is no device.
    Shared,
}

/// Attaches `mount` at `path` in the tree below `root`, and makes the folders that are missing on the way. No link in
/// the path leads out of `root`.
///
/// Errors: ENOTDIR where a file is in the way; those of openat2(2) for what `links` does not allow.
pub fn attach_in(root: BorrowedFd<'_>, mount: &Detached, path: &str, links: Links) -> Result<(), SysError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | links.flags();
    let open = |path: &str| rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
    let path = path.trim_start_matches('/');
    let mut place = open(path);
    if let Err(Errno::NOENT) = place {
        let mut parent = open(".").map_err(SysError::rustix("openat2", path))?;
        let mut end = 0;
        for name in path.split('/') {
            end += name.len();
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SysError::new("mkdir", path, errno.raw_os_error())),
            }
            // From the root, so that what leads over a link is still within it.
            parent = open(&path[..end]).map_err(SysError::rustix("openat2", path))?;
            end += 1;
        }
        place = Ok(parent);
    }
    let place = place.map_err(SysError::rustix("openat2", path))?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", &place, "", both).map_err(SysError::rustix("move_mount", path))
}

/// What a path may lead over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Links and mounts, as programs inside would.
    Followed,
    /// Neither: the path is where it says.
    Refused,
}

impl Links {
    fn flags(self) -> ResolveFlags {
        match self {
            Self::Followed => ResolveFlags::empty(),
            Self::Refused => ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        }
    }
}

fn set_attributes(fd: BorrowedFd<'_>, attr: &libc::mount_attr, about: &str) -> Result<(), SysError> {
    // SAFETY: the path is an empty C string, `attr` is a live mount_attr and the size is its own;
    // the kernel reads it only. `fd` is open because it is borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attr as *const libc::mount_attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(SysError::last("mount_setattr", about)) } else { Ok(()) }
}

/// A new file system of kind `kind` with these options, detached.
pub fn new_filesystem(
    kind: &'static str,
    options: &[(&str, &str)],
    attr: MountAttrFlags,
) -> Result<Detached, SysError> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(SysError::rustix("fsopen", kind))?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(fs.as_fd(), *key, *value)
            .map_err(SysError::rustix("fsconfig", format_args!("{kind} {key}={value}")))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(SysError::rustix("fsconfig(CREATE)", kind))?;
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
        .map_err(SysError::rustix("fsmount", kind))?;
    Ok(Detached(mount))
}

/// As [`new_filesystem`], with at most one option that has no value.
pub fn new_filesystem_flagged(
    kind: &'static str,
    flag: Option<&str>,
    attr: MountAttrFlags,
) -> Result<Detached, SysError> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(SysError::rustix("fsopen", kind))?;
    if let Some(flag) = flag {
        rustix::mount::fsconfig_set_flag(fs.as_fd(), flag)
            .map_err(SysError::rustix("fsconfig", format_args!("{kind} {flag}")))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(SysError::rustix("fsconfig(CREATE)", kind))?;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
        .map(Detached)
        .map_err(SysError::rustix("fsmount", kind))
}

/// A FUSE file system whose requests come to `device`, an open /dev/fuse; detached. Everybody inside may use it,
/// by its permission bits.
pub fn new_fuse(device: BorrowedFd<'_>, name: &str, attr: MountAttrFlags) -> Result<Detached, SysError> {
    const KIND: &str = "fuse";
    let fs = rustix::mount::fsopen(KIND, FsOpenFlags::FSOPEN_CLOEXEC).map_err(SysError::rustix("fsopen", KIND))?;
    let number = device.as_raw_fd().to_string();
    let options = [
        ("source", name),
        ("subtype", name),
        ("fd", number.as_str()),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)
            .map_err(SysError::rustix("fsconfig", format_args!("{KIND} {key}={value}")))?;
    }
    for flag in ["allow_other", "default_permissions"] {
        rustix::mount::fsconfig_set_flag(fs.as_fd(), flag)
            .map_err(SysError::rustix("fsconfig", format_args!("{KIND} {flag}")))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(SysError::rustix("fsconfig(CREATE)", KIND))?;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
        .map(Detached)
        .map_err(SysError::rustix("fsmount", KIND))
}

/// How layers are named to the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayersBy {
    /// By descriptor of a detached mount: nothing is ever visible. Linux 6.15.
    Descriptor,
    /// By path: each layer is attached below a staging directory of this mount namespace until the
    /// overlay is made. Linux 5.19.
    Path,
}

/// An overlay to make.
#[derive(Clone, Copy)]
pub struct OverlayPlan<'a> {
    /// Read-only layers, top first.
    pub lower: &'a [&'a Path],
    /// Holds `data/` and `work/`, which go on top.
    pub writable: &'a Path,
    /// Shifts the ids of all of them.
    pub idmap: BorrowedFd<'a>,
    /// The host id that 0 inside has.
    pub base: u32,
    /// An empty directory of this mount namespace, for [`LayersBy::Path`].
    pub stage: &'a Path,
}

/// Makes an overlay, detached.
///
/// The overlay keeps the credentials of whoever makes it, and uses them in `work/`: so the file
/// system ids are `base` for that call, else `work/` cannot be written and the mount silently
/// becomes read-only. A single-threaded caller is assumed (credentials are the thread's).
pub fn overlay(plan: &OverlayPlan<'_>, by: LayersBy) -> Result<Detached, SysError> {
    let fs =
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(SysError::rustix("fsopen", "overlay"))?;
    let set = |key: &str, value: &str| {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)
            .map_err(SysError::rustix("fsconfig", format_args!("overlay {key}")))
    };
    set("source", "computer")?;
    // A detached tree ends with its descriptor, so all of them stay open until the overlay is made.
    let mut keep = Vec::with_capacity(plan.lower.len() + 3);
    let mut staged = None;
    let trees = plan.lower.iter().map(|layer| Detached::of_tree(layer, Some(plan.idmap), Access::ReadOnly));
    let writable = Detached::of_tree(plan.writable, Some(plan.idmap), Access::ReadWrite)?;
    match by {
        LayersBy::Descriptor => {
            for tree in trees {
                let tree = tree?;
                set_fd(fs.as_fd(), "lowerdir+", tree.as_fd())?;
                keep.push(tree.0);
            }
            for (key, name) in [("upperdir", "data"), ("workdir", "work")] {
                let fd = rustix::fs::openat(
                    &writable,
                    name,
                    OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                    Mode::empty(),
                )
                .map_err(SysError::rustix("openat", format_args!("{}/{name}", plan.writable.display())))?;
                set_fd(fs.as_fd(), key, fd.as_fd())?;
                keep.push(fd);
            }
        }
        LayersBy::Path => {
            let stage = staged.insert(Staged::enter(plan.stage)?);
            let mut lower = String::new();
            for (number, tree) in trees.enumerate() {
                let (tree, name) = (tree?, number.to_string());
                stage.attach(&tree, &name)?;
                lower += if number == 0 { "" } else { ":" };
                lower += &name;
                keep.push(tree.0);
            }
            set("lowerdir", &lower)?;
            stage.attach(&writable, "top")?;
            set("upperdir", "top/data")?;
            set("workdir", "top/work")?;
        }
    }
    keep.push(writable.0);
    for (key, value) in [("metacopy", "off"), ("index", "off")] {
        set(key, value)?;
    }
    match crate::creds::ids_here() {
        u32::MAX => set("redirect_dir", "on")?,
        // Inside a computer `trusted.*` attributes are out of reach; with those of users a directory of a
        // layer cannot be renamed in one step (EXDEV, programs copy).
        _ => rustix::mount::fsconfig_set_flag(fs.as_fd(), "userxattr")
            .map_err(SysError::rustix("fsconfig", "overlay userxattr"))?,
    }
    let made = {
        let _ids = FsIds::become_owner(plan.base)?;
        rustix::mount::fsconfig_create(fs.as_fd())
    };
    made.map_err(SysError::rustix("fsconfig(CREATE)", format_args!("overlay: {}", messages(fs.as_fd()))))?;
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOATIME)
        .map_err(SysError::rustix("fsmount", "overlay"))?;
    let stat = rustix::fs::fstatvfs(&mount).map_err(SysError::rustix("fstatvfs", "overlay"))?;
    if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(SysError::new("fsmount", "overlay came up read-only", libc::EROFS));
    }
    Ok(Detached(mount))
}

/// Layers that are attached for a moment. The overlay has its own hold on them once it is made.
///
/// The working directory is the staging one meanwhile, so that layers have names of a digit or two:
/// a string option takes 256 bytes at most, for all layers together.
struct Staged {
    names: Vec<String>,
    before: OwnedFd,
}

impl Staged {
    fn enter(stage: &Path) -> Result<Self, SysError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let before = rustix::fs::open(".", flags, Mode::empty()).map_err(SysError::rustix("open", "."))?;
        rustix::process::chdir(stage).map_err(SysError::rustix("chdir", stage.display()))?;
        Ok(Self { names: Vec::new(), before })
    }

    fn attach(&mut self, tree: &Detached, name: &str) -> Result<(), SysError> {
        match rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(SysError::new("mkdir", name, errno.raw_os_error())),
        }
        tree.attach(name)?;
        self.names.push(name.to_owned());
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            let _ = unmount(Path::new(name), rustix::mount::UnmountFlags::DETACH);
        }
        let _ = rustix::process::fchdir(&self.before);
    }
}

fn set_fd(fs: BorrowedFd<'_>, key: &str, fd: BorrowedFd<'_>) -> Result<(), SysError> {
    rustix::mount::fsconfig_set_fd(fs, key, fd).map_err(SysError::rustix("fsconfig(SET_FD)", key))
}

/// What the kernel had to say about a file system context.
fn messages(fs: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut line = [0_u8; 256];
    while let Ok(length) = rustix::io::read(fs, &mut line) {
        if length == 0 || text.len() > 1024 {
            break;
        }
        text += &String::from_utf8_lossy(&line[..length]);
    }
    text.trim().to_owned()
}

/// Mounts a block device or other source at `target`, visible in this mount namespace.
pub fn mount(source: &str, target: &Path, kind: &str, options: &str) -> Result<(), SysError> {
    let about = format!("{source} at {}", target.display());
    let text = |t: &str| CString::new(t).map_err(|_| SysError::new("mount", &about, libc::EINVAL));
    let options = text(options)?;
    rustix::mount::mount(source, target, kind, rustix::mount::MountFlags::NOATIME, Some(options.as_c_str()))
        .map_err(SysError::rustix("mount", about))
}

/// Unmounts what is at `target`, lazily if asked.
pub fn unmount(target: &Path, flags: rustix::mount::UnmountFlags) -> Result<(), SysError> {
    rustix::mount::unmount(target, flags).map_err(SysError::rustix("umount2", target.display()))
}

/// Makes this process's own copy of the mount namespace: mounts made outside still come in, none
/// goes out. Then drops every mount that `keep` (given its mount point) does not want.
pub fn own_namespace(keep: impl Fn(&Path) -> bool) -> Result<(), SysError> {
    // SAFETY: unshare takes a flag and touches no memory; the caller is single-threaded, so the
    // whole process moves.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(SysError::last("unshare(NEWNS)", ""));
    }
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::REC | rustix::mount::MountPropagationFlags::DOWNSTREAM,
    )
    .map_err(SysError::rustix("mount(MS_SLAVE)", "/"))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| SysError::io("read", Path::new("/proc/self/mountinfo"), &e))?;
    let points: Vec<String> = table.lines().filter_map(|line| line.split(' ').nth(4).map(unescape)).collect();
    for point in points.iter().rev() {
        let path = Path::new(point);
        if path != Path::new("/") && !keep(path) {
            // One that something else hides cannot be reached any more; it costs little to keep.
            let _ = unmount(path, rustix::mount::UnmountFlags::DETACH);
        }
    }
    Ok(())
}

/// Has a file system write everything out and stand still.
///
/// Errors: what the kernel refuses: whoever did not mount it may not, and not every kind can.
pub fn freeze(place: BorrowedFd<'_>) -> Result<(), SysError> {
    still(place, FIFREEZE, "ioctl(FIFREEZE)")
}

/// Lets a frozen file system go on.
pub fn thaw(place: BorrowedFd<'_>) -> Result<(), SysError> {
    still(place, FITHAW, "ioctl(FITHAW)")
}

/// `_IOWR('X', 119, int)` and the next one.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

fn still(place: BorrowedFd<'_>, request: libc::Ioctl, call: &'static str) -> Result<(), SysError> {
    // SAFETY: both take no memory of ours: their argument is ignored.
    if unsafe { libc::ioctl(place.as_raw_fd(), request, 0) } == 0 {
        Ok(())
    } else {
        Err(SysError::last(call, "a mount"))
    }
}

/// Undoes the octal escapes of /proc/self/mountinfo.
pub fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits: Vec<u8> = bytes.by_ref().take(3).collect();
            let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit.wrapping_sub(b'0')));
            out.push(value as u8);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Makes `new_root` (the working directory) the root and lets go of the old one.
pub fn pivot_here() -> Result<(), SysError> {
    rustix::process::pivot_root(".", ".").map_err(SysError::rustix("pivot_root", ""))?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
        .map_err(SysError::rustix("umount2", "old root"))?;
    rustix::process::chdir("/").map_err(SysError::rustix("chdir", "/"))
}

/// Takes ownership of a raw descriptor that a system call has just returned.
pub(crate) fn own(raw: libc::c_long) -> OwnedFd {
    // SAFETY: the callers pass the non-negative result of a call that made a new descriptor, which
    // nothing else owns.
    unsafe { OwnedFd::from_raw_fd(raw as i32) }
}

/// Shows `source` at `target` too.
pub fn bind(source: &Path, target: &Path) -> Result<(), SysError> {
    rustix::mount::mount_bind(source, target).map_err(SysError::rustix("mount(BIND)", target.display()))
}

/// Sets how mounts and unmounts below the root travel between namespaces.
pub fn propagate_root(flags: rustix::mount::MountPropagationFlags) -> Result<(), SysError> {
    rustix::mount::mount_change("/", flags | rustix::mount::MountPropagationFlags::REC)
        .map_err(SysError::rustix("mount(propagation)", "/"))
}

/// Owns the descriptor of this number, which the caller has put there with `clone::place`.
pub fn adopt(number: i32) -> OwnedFd {
    own(libc::c_long::from(number))
}
