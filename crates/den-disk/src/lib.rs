//! The writable part of computers: where it lies, how it is made, limited and unmade.
//!
//! ```text
//! DATA/computers/                 btrfs: of DATA itself, or of a loop-mounted image DATA/disk.btrfs;
//!                                 or a plain directory
//! DATA/computers/<id>/live/       one subvolume (or directory): data/ work/ vol/
//! DATA/computers/<id>/snapshots/  what it was: <n>, read-only subvolumes (or copies) of live
//! DATA/computers/<id>/live.new/   what it shall be, while a restore is under way
//! DATA/computers/<id>/group        the number of what counts them together, once it was restored
//! DATA/computers/<id>/steps/      another one: output of steps
//! DATA/computers/.volumes/<id>    a shared volume, which several computers mount
//! DATA/computers/.gone/<n>        out of sight already, being removed
//!
//!              snapshot                     fork                       restore
//!   live ───────────────► snapshots/n ───────────────► live of another ┐
//!     ▲                       └────────────► live.new ─┐               └► snapshots/0 of it
//!     └────────────────────────────────────────────────┘ live before: snapshots/m
//! ```
//!
//! Invariants:
//! - A computer's directory has its id for its name; what has none is swept by [`Disks::open`].
//! - Removal is one rename. What comes after it may be cut off at any point.
//! - A disk is whole once `steps` is there: it is made last.
//! - A number in `snapshots/` names a state that is whole; what begins with a dot is being made.
//! - The state that `live` had before a restore is never without a name.
//!
//! Not here: the overlay that is mounted from a disk (`machine`), images (`image`), and what the
//! database knows (`store`).

mod backing;
mod backup;
mod boots;
mod copy;
mod dirty;
mod fork;
mod group;
mod keys;
mod rekey;
mod resize;
mod restore;
mod room;
mod snapshots;
mod tree;
mod volumes;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use den_model::{Bytes, ComputerId, VolumeId};
use den_sys::{SysError, btrfs};
use rustix::fs::{Mode, OFlags};

pub use backing::{Storage, StorageChoice};
pub use boots::Furnished;
pub use dirty::{Dirt, Mark};
pub use fork::Forked;
pub use room::Room;
pub use snapshots::Settled;
pub use tree::{TREE_DEPTH_MAX, TREE_ENTRIES_MAX, Tree, TreeEntry, TreeError, TreeKind, TreeOwner, Writing};

/// Where disks shall lie.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// The data folder.
    pub data: PathBuf,
    /// Which storage.
    pub storage: StorageChoice,
    /// Size of the btrfs image, if one is made; 80 % of what is free on DATA without.
    pub size: Option<Bytes>,
}

/// Why a disk could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A file operation failed; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A program that is needed is not installed.
    #[error("`{program}` is needed to make the disk image and is not installed")]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// `mkfs.btrfs` failed.
    #[error("mkfs.btrfs on {}: {message}", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What it printed.
        message: String,
    },
    /// There is one already.
    #[error("computer {0} has a disk already")]
    Exists(ComputerId),
    /// There is one already.
    #[error("shared volume {0} has a folder already")]
    VolumeExists(VolumeId),
    /// It has no such state.
    #[error("computer {id} has no state {number} on its disk")]
    NoSnapshot {
        /// The computer.
        id: ComputerId,
        /// The state.
        number: u64,
    },
    /// There is a state of this number.
    #[error("computer {id} has a state {number} already")]
    SnapshotExists {
        /// The computer.
        id: ComputerId,
        /// The state.
        number: u64,
    },
    /// Only btrfs can do it.
    #[error("{what} needs disks on btrfs; here they are plain directories")]
    Unsupported {
        /// What was wanted.
        what: &'static str,
    },
    /// A tree nests deeper than Den copies.
    #[error("{}: directories nest deeper than {limit}", path.display())]
    TooDeep {
        /// Where it was given up.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
}

/// All disks of one data folder.
#[derive(Clone)]
pub struct Disks(Arc<Inner>);

struct Inner {
    root: PathBuf,
    root_fd: OwnedFd,
    storage: Storage,
    limit: backing::Limit,
    /// `/sys/fs/btrfs/<uuid>/qgroups`, where usage is read.
    qgroups: Option<PathBuf>,
    gone: AtomicU64,
}

/// One computer's disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Holds `data/`, `work/` and `vol/`.
    pub live: PathBuf,
    /// Holds the output of steps.
    pub steps: PathBuf,
}

/// What a computer is told about itself in /etc.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Its hostname.
    pub hostname: &'a str,
    /// Its machine id, machine-id(5).
    pub machine_id: [u8; 16],
}

const GONE: &str = ".gone";

/// The gate answers names, at the address that is every computer's gateway.
const RESOLV_CONF: &str = "nameserver 169.254.1.1\noptions edns0 timeout:2 attempts:3\n";

/// What the output of one computer's steps may take, whatever writes it: the agent holds the
/// logs' descriptors, and root inside could take them from it.
pub const STEPS_BYTES_MAX: Bytes = Bytes::gib(8);

impl Disks {
    /// Finds or makes the place for disks, mounts it, and sweeps what a crash left half removed.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let root = config.data.join("computers");
        fs_err::create_dir_all(&root)?;
        let (storage, limit) = backing::open(config, &root)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_fd =
            rustix::fs::open(&root, flags, Mode::empty()).map_err(SysError::rustix("open", root.display()))?;
        fs_err::create_dir_all(root.join(GONE))?;
        fs_err::create_dir_all(root.join(volumes::FOLDER))?;
        rustix::fs::chmod(&root, Mode::from_raw_mode(0o700)).map_err(SysError::rustix("chmod", root.display()))?;
        let qgroups = (storage == Storage::Btrfs).then(|| backing::qgroups(&root)).flatten();
        let disks = Self(Arc::new(Inner { root, root_fd, storage, limit, qgroups, gone: AtomicU64::new(0) }));
        disks.sweep();
        disks.sweep_volume_backups();
        Ok(disks)
    }

    /// Whether a data folder holds, or held, disks of computers or shared volumes. Nothing is mounted for it.
    pub fn were_in(data: &Path) -> bool {
        let computers = data.join("computers");
        data.join(backing::IMAGE).exists()
            || has_some::<ComputerId>(&computers)
            || has_some::<VolumeId>(&computers.join(volumes::FOLDER))
    }

    /// Whether the disks of a data folder are mounted and take no writes any more. They do once they are mounted
    /// anew: [`Self::let_go`], when nothing runs on them.
    pub fn are_read_only(data: &Path) -> bool {
        backing::is_read_only(&data.join("computers"))
    }

    /// Unmounts the disks of a data folder that are not open.
    ///
    /// Errors: EBUSY while something runs on them.
    pub fn let_go(data: &Path) -> Result<(), DiskError> {
        backing::close(&data.join("computers"))
    }

    /// What disks lie on.
    pub fn storage(&self) -> Storage {
        self.0.storage
    }

    /// Makes the disk of `id`, held to `limit`, with `identity` written to its /etc.
    ///
    /// Errors: `Exists`; what the file system refuses. Nothing is left of it then.
    pub fn create(&self, id: ComputerId, limit: Bytes, identity: &Identity<'_>) -> Result<Disk, DiskError> {
        let home = self.make_home(id)?;
        self.fill(&home, id, limit, identity).inspect_err(|_| {
            let _ = self.remove(id);
        })
    }

    fn make_home(&self, id: ComputerId) -> Result<PathBuf, DiskError> {
        let home = self.home(id);
        match std::fs::create_dir(&home) {
            Ok(()) => Ok(home),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(DiskError::Exists(id)),
            Err(error) => Err(SysError::io("mkdir", &home, &error).into()),
        }
    }

    fn fill(&self, home: &Path, id: ComputerId, limit: Bytes, identity: &Identity<'_>) -> Result<Disk, DiskError> {
        let disk = self.disk(id);
        match self.0.storage {
            Storage::Btrfs => btrfs::create_subvolume(open_dir(home)?.as_fd(), "live")?,
            Storage::Plain => make(&disk.live)?,
        }
        let live = open_dir(&disk.live)?;
        self.limit(live.as_fd(), limit)?;
        furnish(live.as_fd(), identity)?;
        self.make_steps(home, &disk)?;
        Ok(disk)
    }

    /// Holds the subvolume `live` to `limit`, where that can be done.
    fn limit(&self, live: BorrowedFd<'_>, limit: Bytes) -> Result<(), DiskError> {
        if self.0.limit == backing::Limit::Held {
            btrfs::limit_subvolume(live, btrfs::subvolume_id(live)?, limit.0)?;
        }
        Ok(())
    }

    /// Made last: whoever finds it knows that the rest is there.
    fn make_steps(&self, home: &Path, disk: &Disk) -> Result<(), DiskError> {
        match self.0.storage {
            Storage::Btrfs => {
                let home = open_dir(home)?;
                btrfs::create_subvolume(home.as_fd(), "steps")?;
                if self.0.limit == backing::Limit::Held {
                    let steps = open_dir(&disk.steps)?;
                    btrfs::limit_subvolume(steps.as_fd(), btrfs::subvolume_id(steps.as_fd())?, STEPS_BYTES_MAX.0)?;
                }
            }
            Storage::Plain => make(&disk.steps)?,
        }
        Ok(())
    }

    /// The folder of `id`, which may not be there.
    fn home(&self, id: ComputerId) -> PathBuf {
        self.0.root.join(id.to_string())
    }

    /// The paths of `id`'s disk, whether it is there or not.
    pub fn disk(&self, id: ComputerId) -> Disk {
        let home = self.home(id);
        Disk { live: home.join("live"), steps: home.join("steps") }
    }

    /// Whether `id` has a disk that is whole; of a fork see [`Disks::fork_exists`].
    pub fn exists(&self, id: ComputerId) -> bool {
        // `steps` is made last.
        self.disk(id).steps.is_dir()
    }

    /// Whether `id`, which was just made as a fork, has a disk that is whole: later its state 0 may be gone.
    pub fn fork_exists(&self, id: ComputerId) -> bool {
        // That is made last.
        self.exists(id) && self.snapshot_path(id, 0).is_dir()
    }

    /// Everyone who has a disk, whole or not.
    pub fn list(&self) -> Result<Vec<ComputerId>, DiskError> {
        let mut ids = Vec::new();
        for entry in fs_err::read_dir(&self.0.root)? {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Removes the disk of `id`: out of sight at once, its bytes later. None is no error.
    pub fn remove(&self, id: ComputerId) -> Result<(), DiskError> {
        self.discard(Path::new(&id.to_string()))
    }

    /// Takes `path`, relative to the root of all disks, out of sight and deletes it. None is no error.
    fn discard(&self, path: &Path) -> Result<(), DiskError> {
        let number = self.0.gone.fetch_add(1, Ordering::Relaxed);
        let name = path.to_string_lossy().replace('/', ".");
        let gone = format!("{GONE}/{name}.{}.{number}", std::process::id());
        match rustix::fs::renameat(&self.0.root_fd, path, &self.0.root_fd, &gone) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(SysError::new("rename", path.display(), errno.raw_os_error()).into()),
        }
        let disks = self.clone();
        // Its own short thread: deletion of a large plain tree takes long, and nobody waits for it.
        let spawned = std::thread::Builder::new().name("den-disk-gone".into()).stack_size(256 << 10).spawn(move || {
            disks.delete(&disks.0.root.join(gone));
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "a removed disk waits for the next start to be deleted");
        }
        Ok(())
    }

    /// Bytes that `id` has written beyond its image, where the storage counts them: also what only a kept
    /// state still holds.
    pub fn usage(&self, id: ComputerId) -> Option<Bytes> {
        let qgroups = self.0.qgroups.as_ref()?;
        if let Some(used) = self.group_usage(id) {
            return Some(used);
        }
        let live = open_dir(&self.disk(id).live).ok()?;
        let subvolume = btrfs::subvolume_id(live.as_fd()).ok()?;
        group::bytes_of(qgroups, &format!("0_{subvolume}"))
    }

    /// Waits until all that was done to disks so far survives the end of power: what was made, renamed and removed,
    /// and what was written out of memory already.
    pub fn commit(&self) -> Result<(), DiskError> {
        match self.0.storage {
            Storage::Btrfs => {
                let transaction = btrfs::start_sync(self.0.root_fd.as_fd())?;
                Ok(btrfs::wait_sync(self.0.root_fd.as_fd(), transaction)?)
            }
            Storage::Plain => self.write_out(),
        }
    }

    /// Writes everything of all disks out of memory and to the device.
    pub fn write_out(&self) -> Result<(), DiskError> {
        rustix::fs::syncfs(&self.0.root_fd).map_err(SysError::rustix("syncfs", self.0.root.display()))?;
        Ok(())
    }

    /// Writes everything of the disk of `id` out of memory and to the device.
    pub fn write_out_of(&self, id: ComputerId) -> Result<(), DiskError> {
        match self.0.storage {
            Storage::Btrfs => self.flush_once(id),
            Storage::Plain => self.write_out(),
        }
    }

    /// Where the kernel counts what `id` uses against its limit, below a sysfs; `None` where the storage does not.
    pub fn counter(&self, id: ComputerId) -> Option<String> {
        let qgroups = self.0.qgroups.as_ref().filter(|_| self.0.limit == backing::Limit::Held)?;
        let name = match self.group_name(id) {
            Some(name) => name,
            None => format!("0_{}", btrfs::subvolume_id(open_dir(&self.disk(id).live).ok()?.as_fd()).ok()?),
        };
        Some(qgroups.strip_prefix("/sys").ok()?.join(name).to_str()?.to_owned())
    }

    /// Waits for what is being removed and unmounts, if nothing uses it any more.
    pub fn close(self) -> Result<(), DiskError> {
        self.sweep();
        let root = self.0.root.clone();
        drop(self);
        backing::close(&root)
    }

    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(self.0.root.join(GONE)) else { return };
        for entry in entries.flatten() {
            self.delete(&entry.path());
        }
    }

    /// Deletes a computer's folder, or a part of one. Failures are logged: the next sweep tries again.
    fn delete(&self, path: &Path) {
        if self.0.storage == Storage::Btrfs && Self::was_volume(path) {
            // Nothing in it is ours: no file there names a group or a state.
            destroy(path);
        } else if self.0.storage == Storage::Btrfs {
            group::dissolve(path);
            destroy_below(path);
            destroy_below(&path.join(snapshots::FOLDER));
        }
        match std::fs::remove_dir_all(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot delete a removed disk"),
        }
    }
}

/// Whether anything in a folder has such an id for its name.
fn has_some<T: std::str::FromStr>(folder: &Path) -> bool {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<T>().is_ok()))
}

/// Destroys the subvolume `path`; what is none is left.
fn destroy(path: &Path) {
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        && let Ok(folder) = open_dir(folder)
    {
        let _ = btrfs::destroy_subvolume(folder.as_fd(), name);
    }
}

/// Destroys every subvolume that lies in the directory `path`; what is none is left.
fn destroy_below(path: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(directory) = rustix::fs::open(path, flags, Mode::empty()) else { return };
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if let Some(name) = entry.file_name().to_str() {
            let _ = btrfs::destroy_subvolume(directory.as_fd(), name);
        }
    }
}

/// What a new disk holds.
fn furnish(live: BorrowedFd<'_>, identity: &Identity<'_>) -> Result<(), DiskError> {
    // Docker takes the storage driver that it finds traces of: without them it would choose btrfs on
    // btrfs, whose subvolumes a computer cannot make.
    let directories = ["data", "work", "vol", "data/etc", "vol/docker", "vol/docker/overlay2", "vol/docker/overlay2/l"];
    for name in directories {
        rustix::fs::mkdirat(live, name, Mode::from_raw_mode(0o755)).map_err(SysError::rustix("mkdir", name))?;
    }
    for (name, text, mode) in [
        ("data/etc/hostname", identity.hostname_file(), 0o644),
        ("data/etc/hosts", identity.hosts_file(), 0o644),
        ("data/etc/resolv.conf", RESOLV_CONF.to_owned(), 0o644),
        ("data/etc/machine-id", identity.machine_id_file(), 0o444),
    ] {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(live, name, flags, Mode::from_raw_mode(mode))
            .map_err(SysError::rustix("create", name))?;
        rustix::io::write(&fd, text.as_bytes()).map_err(SysError::rustix("write", name))?;
    }
    // As container engines make it: `fusermount` and others read it, and images often lack it.
    rustix::fs::symlinkat("../proc/self/mounts", live, "data/etc/mtab")
        .map_err(SysError::rustix("symlink", "data/etc/mtab"))?;
    Ok(())
}

impl Identity<'_> {
    fn hostname_file(&self) -> String {
        format!("{}\n", self.hostname)
    }

    fn hosts_file(&self) -> String {
        let hostname = self.hostname;
        format!("127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
    }

    fn machine_id_file(&self) -> String {
        let digits: String = self.machine_id.iter().map(|byte| format!("{byte:02x}")).collect();
        digits + "\n"
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, SysError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(SysError::rustix("open", path.display()))
}

fn make(path: &Path) -> Result<(), SysError> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(SysError::rustix("mkdir", path.display()))
}
