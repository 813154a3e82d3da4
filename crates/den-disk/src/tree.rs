//! What lies in a shared volume, reached without leaving it.
//!
//! Computers write into a volume at the same time, and some of them are hostile: links lead anywhere, what was a
//! folder a moment ago is a link, a pipe waits for a writer. So:
//!
//! - Every path is resolved by the kernel from the volume's own folder, with openat2(2): no link, `..` or mount in it
//!   leads out (`RESOLVE_BENEATH`, `RESOLVE_NO_MAGICLINKS`, `RESOLVE_NO_XDEV`). A path with `..` in it is refused.
//! - What was opened is looked at before anything is read or written; only regular files are opened for that.
//! - Below a folder that is open, one name at a time is followed, and no link.
//! - How deep and how much is looked at has limits.
//!
//! A file is written beside the tree, without a name, and gets its name when it is whole and on the disk. Where a file
//! had the name before, the new one has for an instant a name of its own, `.den-…`, which a crash may leave.

use std::{
    collections::VecDeque,
    ffi::{CStr, CString},
    fs::File,
    io::Write as _,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use den_model::VolumeId;
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid},
    io::Errno,
};

use crate::Disks;

/// The longest path, as the kernel has it.
const PATH_BYTES_MAX: usize = 4096;
/// How deep folders nest that are listed.
pub const TREE_DEPTH_MAX: usize = 100;
/// Entries of one listing.
pub const TREE_ENTRIES_MAX: usize = 50_000;
/// Folders that are open at a time while a tree is removed; what nests deeper is moved up first.
const OPEN_MAX: usize = 32;
/// How long a tree is removed at most: whoever writes into it all the while has it stay.
const REMOVAL_MAX: Duration = Duration::from_secs(600);
/// How often a path is resolved anew while others move what is on it.
const ATTEMPTS: usize = 100;
/// Owner and group of what nobody is named for: the first user of a computer.
const OWNER: u32 = 1000;
/// Permissions of a new file and of a new folder of which nothing is said.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// Tells names of files that are being renamed apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Why something in a volume was not read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// There is no such file or folder.
    #[error("no such file or directory")]
    NotFound,
    /// Something on the way, or the end of it, is no folder.
    #[error("not a directory")]
    NotADirectory,
    /// It is a folder.
    #[error("it is a directory")]
    IsADirectory,
    /// It is neither a file nor a folder.
    #[error("neither a file nor a directory")]
    NotAFile,
    /// There is one already.
    #[error("it exists already")]
    Exists,
    /// Somebody writes into it while it is removed.
    #[error("the directory is not empty: something writes into it")]
    NotEmpty,
    /// A link on the way leads out of the volume.
    #[error("a link on the way leads out of the volume")]
    Outside,
    /// No path that a file can have.
    #[error("{0}")]
    BadPath(&'static str),
    /// There is more of it than is looked at.
    #[error("more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much is looked at.
        limit: usize,
    },
    /// The volume's limit is reached, or the disk is full.
    #[error("no room is left in the volume")]
    Full,
    /// Something else that the kernel says.
    #[error("{call}: {}", std::io::Error::from_raw_os_error(*errno))]
    Sys {
        /// What was called.
        call: &'static str,
        /// What it answered, errno(3).
        errno: i32,
    },
}

/// Gives what a call met a meaning.
fn of(call: &'static str) -> impl Fn(Errno) -> TreeError {
    move |errno| match errno {
        Errno::NOENT => TreeError::NotFound,
        Errno::NOTDIR => TreeError::NotADirectory,
        Errno::ISDIR => TreeError::IsADirectory,
        Errno::EXIST => TreeError::Exists,
        Errno::NOTEMPTY => TreeError::NotEmpty,
        Errno::XDEV => TreeError::Outside,
        Errno::LOOP => TreeError::BadPath("too many symbolic links on the way"),
        Errno::NAMETOOLONG => TreeError::BadPath("a name of more than 255 bytes, or a path of 4096"),
        Errno::NOSPC | Errno::DQUOT => TreeError::Full,
        errno => TreeError::Sys { call, errno: errno.raw_os_error() },
    }
}

fn of_io(call: &'static str) -> impl Fn(std::io::Error) -> TreeError {
    move |error| of(call)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// What something in a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A pipe, a socket, a device.
    Other,
}

/// Something in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// From the volume's root on: `/a/b`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: TreeKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group, as computers see them.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was read, written and changed last: microseconds since the epoch.
    pub atime: i64,
    /// Written.
    pub mtime: i64,
    /// Changed.
    pub ctime: i64,
    /// Where a link leads.
    pub target: Option<Vec<u8>>,
}

/// Whom something shall belong to, and who may do what with it; what is left out is as it was, or as for all new ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeOwner {
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Permission bits.
    pub mode: Option<u32>,
}

/// A volume whose files are looked at and changed. Everything blocks.
pub struct Tree {
    root: OwnedFd,
}

impl Disks {
    /// Opens a volume.
    ///
    /// Errors: `NotFound` where its folder is gone.
    pub fn open_volume(&self, id: VolumeId) -> Result<Tree, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = rustix::fs::open(self.volume(id), flags, Mode::empty()).map_err(of("open"))?;
        Ok(Tree { root })
    }
}

/// A path of a volume: the names on it, from its root on.
struct Way<'a>(Vec<&'a str>);

impl<'a> Way<'a> {
    fn read(path: &'a str) -> Result<Self, TreeError> {
        if path.len() >= PATH_BYTES_MAX {
            return Err(TreeError::BadPath("a path of more than 4095 bytes"));
        }
        if path.contains('\0') {
            return Err(TreeError::BadPath("a path with a zero byte in it"));
        }
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        match names.contains(&"..") {
            true => Err(TreeError::BadPath("a path with `..` in it")),
            false => Ok(Self(names)),
        }
    }

    /// As the kernel resolves it from the volume's folder.
    fn relative(&self) -> String {
        if self.0.is_empty() { ".".to_owned() } else { self.0.join("/") }
    }

    /// As it is shown.
    fn shown(&self) -> Vec<u8> {
        format!("/{}", self.0.join("/")).into_bytes()
    }

    /// What it lies in, and what it is called there; the root lies in nothing.
    fn split(&self) -> Result<(Way<'a>, &'a str), TreeError> {
        let (name, above) = self.0.split_last().ok_or(TreeError::BadPath("that is the volume itself"))?;
        Ok((Way(above.to_vec()), name))
    }
}

fn kind_of(stat: &Stat) -> TreeKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => TreeKind::File,
        FileType::Directory => TreeKind::Folder,
        FileType::Symlink => TreeKind::Link,
        _ => TreeKind::Other,
    }
}

fn micros(seconds: i64, nanos: u64) -> i64 {
    seconds.saturating_mul(1_000_000).saturating_add((nanos / 1000).cast_signed())
}

fn entry(path: Vec<u8>, stat: &Stat, target: Option<CString>) -> TreeEntry {
    TreeEntry {
        path,
        kind: kind_of(stat),
        size: stat.st_size.cast_unsigned(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        atime: micros(stat.st_atime, stat.st_atime_nsec),
        mtime: micros(stat.st_mtime, stat.st_mtime_nsec),
        ctime: micros(stat.st_ctime, stat.st_ctime_nsec),
        target: target.map(CString::into_bytes),
    }
}

/// What is open, as a path: for calls that take none.
fn by_number(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn sync(folder: BorrowedFd<'_>) -> Result<(), TreeError> {
    rustix::fs::fsync(folder).map_err(of("fsync"))
}

impl Tree {
    fn open(&self, way: &Way<'_>, flags: OFlags) -> Result<OwnedFd, TreeError> {
        let (path, flags) = (way.relative(), flags | OFlags::CLOEXEC);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 1..ATTEMPTS {
            match rustix::fs::openat2(&self.root, &path, flags, Mode::empty(), resolve) {
                // Something on the way was moved, and the kernel cannot tell where to.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened.map_err(of("openat2")),
            }
        }
        Err(TreeError::Sys { call: "openat2", errno: Errno::AGAIN.raw_os_error() })
    }

    fn open_folder(&self, way: &Way<'_>) -> Result<OwnedFd, TreeError> {
        self.open(way, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// What `path` names; a link is shown as one.
    pub fn stat(&self, path: &str) -> Result<TreeEntry, TreeError> {
        let way = Way::read(path)?;
        let found = self.open(&way, OFlags::PATH | OFlags::NOFOLLOW)?;
        shown(way.shown(), found.as_fd())
    }

    /// What lies in a folder, `depth` levels of it, each folder before what lies in it, by name.
    ///
    /// Errors: `TooMuch` beyond [`TREE_ENTRIES_MAX`] and [`TREE_DEPTH_MAX`].
    pub fn list(&self, path: &str, depth: usize) -> Result<Vec<TreeEntry>, TreeError> {
        let way = Way::read(path)?;
        let folder = self.open_folder(&way)?;
        let mut found = Vec::new();
        let above = if way.0.is_empty() { Vec::new() } else { way.shown() };
        list(&folder, &above, depth, 0, &mut found)?;
        Ok(found)
    }

    /// Makes a folder; with `parents`, also what is missing above it, and one that is there is no error.
    pub fn make_folder(&self, path: &str, owner: TreeOwner, parents: bool) -> Result<TreeEntry, TreeError> {
        let way = Way::read(path)?;
        let (above, name) = match way.split() {
            Err(_) if parents => return self.stat(path),
            Err(_) => return Err(TreeError::Exists),
            Ok(split) => split,
        };
        if parents {
            for end in 1..=above.0.len() {
                let part = Way(above.0[..end].to_vec());
                match self.open(&part, OFlags::PATH | OFlags::DIRECTORY) {
                    Err(TreeError::NotFound) => self.make_one(&part, owner).map(drop)?,
                    opened => drop(opened?),
                }
            }
        }
        match self.make_one(&way, owner) {
            Err(TreeError::Exists) if parents => {
                let folder = self.open_folder(&above)?;
                let there = openat(folder.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW);
                shown(way.shown(), there.map_err(|_| TreeError::Exists)?.as_fd())
            }
            made => made,
        }
    }

    fn make_one(&self, way: &Way<'_>, owner: TreeOwner) -> Result<TreeEntry, TreeError> {
        let (above, name) = way.split()?;
        let folder = self.open_folder(&above)?;
        rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o700)).map_err(of("mkdir"))?;
        let made = openat(folder.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let TreeOwner { uid, gid, mode } = owner;
        own(made.as_fd(), uid.unwrap_or(OWNER), gid.unwrap_or(OWNER), mode.unwrap_or(FOLDER_MODE))?;
        sync(made.as_fd())?;
        sync(folder.as_fd())?;
        shown(way.shown(), made.as_fd())
    }

    /// Gives a file or folder another owner, group or mode. Links are followed.
    pub fn change(&self, path: &str, owner: TreeOwner) -> Result<TreeEntry, TreeError> {
        let way = Way::read(path)?;
        let found = self.open(&way, OFlags::PATH)?;
        let TreeOwner { uid, gid, mode } = owner;
        if uid.is_some() || gid.is_some() {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            rustix::fs::chownat(&found, "", uid, gid, AtFlags::EMPTY_PATH).map_err(of("chown"))?;
        }
        if let Some(mode) = mode {
            // fchmod(2) takes nothing that was opened by path alone.
            rustix::fs::chmod(by_number(found.as_fd()), Mode::from_raw_mode(mode)).map_err(of("chmod"))?;
        }
        let stat = rustix::fs::fstat(&found).map_err(of("fstat"))?;
        if matches!(kind_of(&stat), TreeKind::File | TreeKind::Folder) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let open = rustix::fs::open(by_number(found.as_fd()), flags, Mode::empty()).map_err(of("open"))?;
            sync(open.as_fd())?;
        }
        shown(way.shown(), found.as_fd())
    }

    /// Removes a file, a link, or a folder with all that is in it.
    pub fn remove(&self, path: &str) -> Result<(), TreeError> {
        let way = Way::read(path)?;
        let (above, name) = way.split()?;
        let folder = self.open_folder(&above)?;
        let name = CString::new(name).map_err(|_| TreeError::BadPath("a path with a zero byte in it"))?;
        match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                let top = openat(folder.as_fd(), &*name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
                empty(top)?;
                rustix::fs::unlinkat(&folder, &name, AtFlags::REMOVEDIR).map_err(of("rmdir"))?;
            }
            removed => removed.map_err(of("unlink"))?,
        }
        sync(folder.as_fd())
    }

    /// Opens a regular file for reading. Links are followed.
    pub fn read(&self, path: &str) -> Result<(TreeEntry, File), TreeError> {
        let way = Way::read(path)?;
        let found = self.open(&way, OFlags::PATH)?;
        let entry = shown(way.shown(), found.as_fd())?;
        match entry.kind {
            TreeKind::File => {}
            TreeKind::Folder => return Err(TreeError::IsADirectory),
            TreeKind::Link | TreeKind::Other => return Err(TreeError::NotAFile),
        }
        // The same file that was looked at: a pipe in its place would wait for who writes.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(by_number(found.as_fd()), flags, Mode::empty()).map_err(of("open"))?;
        Ok((entry, File::from(file)))
    }

    /// Begins a file, which is nowhere until [`Writing::finish`]. One of this name is replaced then where `replace`
    /// says so; a link is replaced itself.
    pub fn write(&self, path: &str, owner: TreeOwner, replace: bool) -> Result<Writing, TreeError> {
        let way = Way::read(path)?;
        let (above, name) = way.split()?;
        let folder = self.open_folder(&above)?;
        let before = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(of("stat")(errno)),
        };
        let before = match before {
            Some(stat) if kind_of(&stat) == TreeKind::Folder => return Err(TreeError::IsADirectory),
            Some(stat) if kind_of(&stat) == TreeKind::Other => return Err(TreeError::NotAFile),
            Some(_) if !replace => return Err(TreeError::Exists),
            before => before.filter(|stat| kind_of(stat) == TreeKind::File),
        };
        let TreeOwner { uid, gid, mode } = owner;
        let was = |field: fn(&Stat) -> u32| before.as_ref().map(field);
        let uid = uid.or(was(|stat| stat.st_uid)).unwrap_or(OWNER);
        let gid = gid.or(was(|stat| stat.st_gid)).unwrap_or(OWNER);
        let mode = mode.or(was(|stat| stat.st_mode & 0o7777)).unwrap_or(FILE_MODE);
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, ".", flags, Mode::from_raw_mode(0o600)).map_err(of("open"))?;
        Ok(Writing {
            folder,
            name: name.to_owned(),
            shown: way.shown(),
            file: File::from(file),
            uid,
            gid,
            mode,
            replace,
        })
    }
}

/// A file that is being written. Dropped, nothing is left of it.
pub struct Writing {
    folder: OwnedFd,
    name: String,
    shown: Vec<u8>,
    file: File,
    uid: u32,
    gid: u32,
    mode: u32,
    replace: bool,
}

impl Writing {
    /// Writes what comes next.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.file.write_all(bytes).map_err(of_io("write"))
    }

    /// Gives the file its name, once all of it is on the disk.
    pub fn finish(self) -> Result<TreeEntry, TreeError> {
        own(self.file.as_fd(), self.uid, self.gid, self.mode)?;
        self.file.sync_all().map_err(of_io("fsync"))?;
        match self.link(&self.name) {
            Err(TreeError::Exists) if self.replace => self.take_over()?,
            linked => linked?,
        }
        sync(self.folder.as_fd())?;
        shown(self.shown, self.file.as_fd())
    }

    fn link(&self, name: &str) -> Result<(), TreeError> {
        let file = by_number(self.file.as_fd());
        rustix::fs::linkat(CWD, file, &self.folder, name, AtFlags::SYMLINK_FOLLOW).map_err(of("link"))
    }

    fn take_over(&self) -> Result<(), TreeError> {
        let beside = format!(".den-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        self.link(&beside)?;
        rustix::fs::renameat(&self.folder, &beside, &self.folder, &self.name).map_err(|errno| {
            let _ = rustix::fs::unlinkat(&self.folder, &beside, AtFlags::empty());
            of("rename")(errno)
        })
    }
}

/// What is open, as it is shown.
fn shown(path: Vec<u8>, found: BorrowedFd<'_>) -> Result<TreeEntry, TreeError> {
    let stat = rustix::fs::fstat(found).map_err(of("fstat"))?;
    let target = match kind_of(&stat) {
        TreeKind::Link => Some(rustix::fs::readlinkat(found, "", Vec::new()).map_err(of("readlink"))?),
        _ => None,
    };
    Ok(entry(path, &stat, target))
}

/// Opens one name in a folder that is open.
fn openat(folder: BorrowedFd<'_>, name: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, TreeError> {
    rustix::fs::openat(folder, name, flags | OFlags::CLOEXEC, Mode::empty()).map_err(of("open"))
}

fn own(file: BorrowedFd<'_>, uid: u32, gid: u32, mode: u32) -> Result<(), TreeError> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::fchown(file, uid, gid).map_err(of("chown"))?;
    // After it, for chown(2) takes set-user-id bits away.
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(of("chmod"))
}

/// The names in a folder, but for `.` and `..`; at most `limit` and one more.
fn names(folder: &OwnedFd, limit: usize) -> Result<Vec<CString>, TreeError> {
    let mut names = Vec::new();
    for item in Dir::read_from(folder).map_err(of("readdir"))? {
        let item = item.map_err(of("readdir"))?;
        if ![c".", c".."].contains(&item.file_name()) {
            names.push(item.file_name().to_owned());
        }
        if names.len() > limit {
            break;
        }
    }
    Ok(names)
}

fn list(
    folder: &OwnedFd,
    above: &[u8],
    depth: usize,
    nested: usize,
    found: &mut Vec<TreeEntry>,
) -> Result<(), TreeError> {
    if nested == TREE_DEPTH_MAX {
        return Err(TreeError::TooMuch { what: "levels of directories", limit: TREE_DEPTH_MAX });
    }
    let mut names = names(folder, TREE_ENTRIES_MAX - found.len())?;
    names.sort();
    for name in &names {
        if found.len() == TREE_ENTRIES_MAX {
            return Err(TreeError::TooMuch { what: "entries", limit: TREE_ENTRIES_MAX });
        }
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            stat => stat.map_err(of("stat"))?,
        };
        let path = [above, b"/", name.as_bytes()].concat();
        let kind = kind_of(&stat);
        let target = match kind {
            TreeKind::Link => rustix::fs::readlinkat(folder, name, Vec::new()).ok(),
            _ => None,
        };
        found.push(entry(path.clone(), &stat, target));
        if kind == TreeKind::Folder && depth > 1 {
            match openat(folder.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(inner) => list(&inner, &path, depth - 1, nested + 1, found)?,
                // It is something else, or gone, meanwhile.
                Err(TreeError::NotFound | TreeError::NotADirectory | TreeError::BadPath(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Removes all that lies in `top`, however deep, with a few folders open at a time.
fn empty(top: OwnedFd) -> Result<(), TreeError> {
    /// Names that are taken out of a folder at a time.
    const BATCH: usize = 4096;
    let until = Instant::now() + REMOVAL_MAX;
    let top = std::rc::Rc::new(top);
    // Folders that are being emptied, the deepest last, each with its name in the one before.
    let mut open: Vec<(std::rc::Rc<OwnedFd>, Option<CString>, VecDeque<CString>)> = Vec::new();
    open.push((std::rc::Rc::clone(&top), None, names(&top, BATCH)?.into()));
    while let Some((folder, own, rest)) = open.last_mut() {
        let folder = std::rc::Rc::clone(folder);
        if let Some(name) = rest.pop_front() {
            match rustix::fs::unlinkat(&*folder, &name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {}
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(errno) => return Err(of("unlink")(errno)),
            }
            match rustix::fs::unlinkat(&*folder, &name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                // What took its place meanwhile is met by the next look.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(of("rmdir")(errno)),
            }
            if open.len() >= OPEN_MAX {
                let beside = format!(".den-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
                rustix::fs::renameat(&*folder, &name, &*top, beside).map_err(of("rename"))?;
                continue;
            }
            match openat(folder.as_fd(), &*name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(inner) => {
                    let rest = names(&inner, BATCH)?.into();
                    open.push((std::rc::Rc::new(inner), Some(name), rest));
                }
                Err(TreeError::NotFound | TreeError::NotADirectory | TreeError::BadPath(_)) => {}
                Err(error) => return Err(error),
            }
            continue;
        }
        if Instant::now() > until {
            return Err(TreeError::NotEmpty);
        }
        let more: VecDeque<CString> = names(&folder, BATCH)?.into();
        if !more.is_empty() {
            *rest = more;
            continue;
        }
        let own = own.take();
        open.pop();
        if let (Some((above, ..)), Some(own)) = (open.last(), own) {
            remove_folder(above.as_fd(), &own)?;
        }
    }
    Ok(())
}

/// Removes a folder that was just emptied; one that somebody has filled since is met by the next look.
fn remove_folder(above: BorrowedFd<'_>, name: &CStr) -> Result<(), TreeError> {
    match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(errno) => Err(of("rmdir")(errno)),
    }
}
