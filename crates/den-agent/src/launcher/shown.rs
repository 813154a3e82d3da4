//! The agent as computers show it, at /dev/.den/agent: a copy in memory, so that no path of the host's is to be
//! read inside. The copy lies in a folder of the same name as the file's own, by which it is found again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use den_sys::SysError;
use den_sys::mount::{self, Access, Detached};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

/// Copies of agents, by where each lies on the host. There are as many as programs that served here.
#[derive(Default)]
pub(super) struct Shown(HashMap<String, Detached>);

impl Shown {
    /// What a computer is given of the agent at `path`: read-only, detached. A kernel that clones nothing detached
    /// (before 6.15) gets the file itself.
    pub(super) fn of(&mut self, path: &str) -> Result<Detached, SysError> {
        let file = Path::new(path);
        let house = match self.0.get(path) {
            Some(house) => house,
            None => self.0.entry(path.to_owned()).or_insert(copy(file)?),
        };
        let inside = format!("/proc/self/fd/{}/{}", house.as_fd().as_raw_fd(), place(file));
        Detached::of_tree(Path::new(&inside), None, Access::ReadOnly)
            .or_else(|_| Detached::of_tree(file, None, Access::ReadOnly))
    }
}

/// The last two names of a path.
fn place(file: &Path) -> String {
    let name = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    format!("{}/{}", name(file.parent().and_then(Path::file_name)), name(file.file_name()))
}

fn copy(file: &Path) -> Result<Detached, SysError> {
    let bytes = fs::read(file).map_err(|error| SysError::io("read", file, &error))?;
    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let house = mount::new_filesystem("tmpfs", &[("mode", "755")], attr)?;
    let place = place(file);
    let folder = place.split('/').next().unwrap_or_default();
    rustix::fs::mkdirat(house.as_fd(), folder, Mode::from_raw_mode(0o755))
        .map_err(SysError::rustix("mkdir", folder))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copied = rustix::fs::openat(house.as_fd(), &place, flags, Mode::from_raw_mode(0o555))
        .map_err(SysError::rustix("create", &place))?;
    fs::File::from(copied).write_all(&bytes).map_err(|error| SysError::io("write", file, &error))?;
    Ok(house)
}
