//! A read-only overlay that is attached nowhere: only whoever holds the descriptor sees it.
//!
//! Source: fsopen(2), fsconfig(2), fsmount(2), Documentation/filesystems/overlayfs.rst. Layers by
//! descriptor need Linux 6.13, `lowerdir+` 6.5; a value of a text option is 256 bytes at most, so
//! before 6.13 layers are named by their descriptors under /proc. Layers are not detached clones, so
//! 6.15 is not needed, and nothing of the calling thread (directory, credentials) is changed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use den_sys::SysError;
use den_sys::mount::{Access, Detached};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Puts `top` over `layers` (the highest first). Whiteouts, opaque and moved directories of `top` count.
pub(super) fn mount(top: &Path, layers: &[&Path]) -> Result<OwnedFd, SysError> {
    mount_by(top, layers, &WAYS)
}

/// The same, in the first of these ways that this kernel knows.
pub(super) fn mount_by(top: &Path, layers: &[&Path], ways: &[By]) -> Result<OwnedFd, SysError> {
    let open = |path: &Path| {
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(SysError::rustix("openat", path.display()))
    };
    let mut trees = vec![open(top)?];
    for layer in layers {
        trees.push(open(layer)?);
    }
    if layers.is_empty() {
        // An overlay wants two layers at least.
        let tree = Detached::of_tree(top, None, Access::ReadOnly)?;
        return reopen(tree.as_fd(), top);
    }
    let mut refused = SysError::new("fsconfig", top.display(), Errno::INVAL.raw_os_error());
    for way in ways {
        match make(top, &trees, *way) {
            Ok(mount) => return Ok(mount),
            Err(error) => refused = error,
        }
        if !UNKNOWN.iter().any(|errno| errno.raw_os_error() == refused.errno) {
            break;
        }
    }
    Err(refused)
}

/// What a kernel says to a way that it does not know. Before 6.5 it says so when the overlay is made, and has taken
/// any option before.
const UNKNOWN: [Errno; 4] = [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS, Errno::BADF];

/// Makes it, with its layers named in one of the ways.
fn make(top: &Path, trees: &[OwnedFd], way: By) -> Result<OwnedFd, SysError> {
    let fs =
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(SysError::rustix("fsopen", "overlay"))?;
    let set = |key: &str, value: &str| {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)
            .map_err(SysError::rustix("fsconfig", format_args!("overlay {key}={value}")))
    };
    set("source", "state")?;
    name_layers(fs.as_fd(), trees, way)?;
    set("metacopy", "off")?;
    set("index", "off")?;
    match den_sys::creds::ids_here() {
        u32::MAX => set("redirect_dir", "follow")?,
        // Inside a computer the marks of an overlay are attributes of users.
        _ => rustix::mount::fsconfig_set_flag(fs.as_fd(), "userxattr")
            .map_err(SysError::rustix("fsconfig", "overlay userxattr"))?,
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(SysError::rustix("fsconfig(CREATE)", top.display()))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(SysError::rustix("fsmount", top.display()))
}

/// How layers are named to the overlay, the newest way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Each by descriptor: Linux 6.13.
    Descriptor,
    /// Each by the name of its descriptor: Linux 6.5.
    Name,
    /// All in one text, which holds about a dozen.
    List,
}

const WAYS: [By; 3] = [By::Descriptor, By::Name, By::List];

fn name_layers(fs: BorrowedFd<'_>, trees: &[OwnedFd], way: By) -> Result<(), SysError> {
    let name = |tree: &OwnedFd| format!("/proc/self/fd/{}", tree.as_raw_fd());
    let named = match way {
        By::Descriptor => {
            trees.iter().try_for_each(|tree| rustix::mount::fsconfig_set_fd(fs, "lowerdir+", tree.as_fd()))
        }
        By::Name => trees.iter().try_for_each(|tree| rustix::mount::fsconfig_set_string(fs, "lowerdir+", name(tree))),
        By::List => {
            let list = trees.iter().map(name).collect::<Vec<_>>().join(":");
            rustix::mount::fsconfig_set_string(fs, "lowerdir", list)
        }
    };
    named.map_err(SysError::rustix("fsconfig", format_args!("overlay lowerdir of {} layers", trees.len())))
}

fn reopen(fd: BorrowedFd<'_>, about: &Path) -> Result<OwnedFd, SysError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(SysError::rustix("fcntl(DUPFD)", about.display()))
}
