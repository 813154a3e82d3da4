//! A state as its computer saw it: the kept upper over the layers of its image, read-only.
//!
//! ```text
//! snapshots/<n>/data ─┐
//! layers, top first  ─┴─► detached overlay ──► View
//!
//! /bin/../lib/x ──follow()──► /usr/lib/x ──lstat, entries, open_file, …──► what is exactly there
//! ```
//!
//! Invariants:
//! - Only [`View::follow`] and [`View::follow_parent`] go through links, and they stay in the root. All
//!   else takes the path as it stands: where a directory of it is a link, there is nothing at that path.
//!   So a walk over real names never leaves them.
//! - Pipes, sockets and devices are looked at, never opened.
//! - No path is too long: what one system call does not take goes in pieces.
//!
//! Needs root. No thread's working directory or credentials are changed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use den_api::{EntryKind, MetaView};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use crate::error::{HistoryError, shown};

mod overlay;

/// The names that one directory may have; more are refused.
pub(crate) const ENTRIES_MAX: usize = 1_000_000;
/// The components that a path may have.
pub(crate) const DEPTH_MAX: usize = 2_000;
/// The bytes that a path may have.
const PATH_BYTES_MAX: usize = 256 << 10;
/// The links that one path may lead through, as in the kernel.
const LINKS_MAX: usize = 40;
/// The attributes of one entry, names and values, as the kernel limits each of them.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// How much of a path goes into one system call: the kernel takes 4,095 bytes.
const PIECE_BYTES_MAX: usize = 4_000;

/// A state to compare or merge: what is seen, and where its own part lies.
#[derive(Debug)]
pub struct State {
    /// What is seen.
    pub view: View,
    /// The computer's own part: whiteouts and all, with the marks of the overlay.
    pub upper: PathBuf,
    /// The subvolume or folder that holds it.
    pub root: PathBuf,
}

impl State {
    /// Opens what was kept at `snapshot`, over `layers`, the highest first.
    pub fn open(snapshot: &Path, layers: &[PathBuf]) -> Result<Self, HistoryError> {
        let view = View::open(snapshot, layers)?;
        Ok(Self { view, upper: snapshot.join("data"), root: snapshot.to_owned() })
    }
}

/// A read-only sight of a whole state. It ends with this value; nothing is to be unmounted.
#[derive(Debug)]
pub struct View {
    root: OwnedFd,
}

impl View {
    /// Puts `snapshot/data` over `layers`, the highest first.
    pub fn open(snapshot: &Path, layers: &[PathBuf]) -> Result<Self, HistoryError> {
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        Ok(Self { root: overlay::mount(&snapshot.join("data"), &layers)? })
    }

    /// The real path behind `path`: no component of it is a link. A missing one is `NotFound`.
    pub fn follow(&self, path: &Path) -> Result<PathBuf, HistoryError> {
        self.resolve(path, Last::Followed)
    }

    /// The same, but where the last component is a link, it stays.
    pub fn follow_parent(&self, path: &Path) -> Result<PathBuf, HistoryError> {
        self.resolve(path, Last::Kept)
    }

    fn resolve(&self, path: &Path, last: Last) -> Result<PathBuf, HistoryError> {
        let asked = checked(path)?;
        // Most paths have no links: one look says so. `..` is left to the walk, for it goes back from
        // where a link led.
        if !components(asked.as_os_str().as_bytes()).any(|name| name == "..") {
            match self.lstat(&asked)? {
                Some(meta) if last == Last::Kept || meta.kind != EntryKind::Symlink => return Ok(asked),
                _ => {}
            }
        }
        // What is still to be walked, the next at the end.
        let mut todo: Vec<OsString> = components(asked.as_os_str().as_bytes()).rev().map(OsStr::to_owned).collect();
        let mut real: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            real.push(name);
            let here = joined(&real);
            let meta = self.lstat(&here)?.ok_or_else(|| HistoryError::not_found(path))?;
            let Some(target) = meta.target else { continue };
            if todo.is_empty() && last == Last::Kept {
                break;
            }
            links += 1;
            if links > LINKS_MAX || todo.len() > DEPTH_MAX {
                return Err(HistoryError::Loop { path: shown(path), max: LINKS_MAX });
            }
            real.pop();
            if target.starts_with(b"/") {
                real.clear();
            }
            todo.extend(components(&target).rev().map(OsStr::to_owned));
        }
        Ok(joined(&real))
    }

    /// What is at `path`; nothing where one of its directories is missing or a link.
    pub fn lstat(&self, path: &Path) -> Result<Option<Meta>, HistoryError> {
        match self.handle(path) {
            Ok(fd) => self.meta_of(fd.as_fd(), path).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(HistoryError::call("openat2", path)(errno)),
        }
    }

    /// What is at `path`, which must be there.
    pub fn stat(&self, path: &Path) -> Result<Meta, HistoryError> {
        self.lstat(path)?.ok_or_else(|| HistoryError::not_found(path))
    }

    /// The directory at `path`, to be read.
    pub fn open_dir(&self, path: &Path) -> Result<OwnedFd, HistoryError> {
        match self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(match self.lstat(path)? {
                Some(meta) => HistoryError::NotADirectory { path: shown(path), kind: meta.kind },
                None => HistoryError::not_found(path),
            }),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Err(HistoryError::not_found(path)),
            Err(errno) => Err(HistoryError::call("openat2", path)(errno)),
        }
    }

    /// The names in the directory at `path` and what they are, by name.
    pub fn entries(&self, path: &Path) -> Result<Vec<(OsString, EntryKind)>, HistoryError> {
        let failed = |errno| HistoryError::call("getdents", path)(errno);
        let mut dir = rustix::fs::Dir::new(self.open_dir(path)?).map_err(failed)?;
        let mut entries = Vec::new();
        while let Some(entry) = dir.read() {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() == ENTRIES_MAX {
                let max = ENTRIES_MAX as u64;
                return Err(HistoryError::TooMany { path: shown(path), what: "entries", max });
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match self.lstat(&path.join(name))? {
                    Some(meta) => meta.kind,
                    None => continue,
                },
                known => kind_of(known),
            };
            entries.push((name.to_owned(), kind));
        }
        entries.sort_unstable();
        Ok(entries)
    }

    /// The regular file at `path`, to be read.
    pub fn open_file(&self, path: &Path) -> Result<File, HistoryError> {
        self.open_with_meta(path).map(|(_, file)| file)
    }

    /// The same, with what it is.
    pub fn open_with_meta(&self, path: &Path) -> Result<(Meta, File), HistoryError> {
        let meta = self.stat(path)?;
        if meta.kind != EntryKind::File {
            return Err(HistoryError::NotAFile { path: shown(path), kind: meta.kind });
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let file = self.open_at(path, flags).map_err(|errno| HistoryError::call("openat2", path)(errno))?;
        Ok((meta, File::from(file)))
    }

    /// All bytes of the regular file at `path`; more than `max` are refused.
    pub fn read_limited(&self, path: &Path, max: u64) -> Result<Vec<u8>, HistoryError> {
        let (meta, file) = self.open_with_meta(path)?;
        let too_large = |size| HistoryError::TooLarge { path: shown(path), size, max };
        if meta.size > max {
            return Err(too_large(meta.size));
        }
        let mut bytes = Vec::with_capacity(meta.size as usize + 1);
        file.take(max + 1).read_to_end(&mut bytes).map_err(HistoryError::io("reading", path))?;
        if bytes.len() as u64 > max { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
    }

    /// The extended attributes of what is at `path`, without the marks of the overlay.
    pub fn xattrs(&self, path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, HistoryError> {
        let fd = match self.handle(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(HistoryError::not_found(path)),
            Err(errno) => return Err(HistoryError::call("openat2", path)(errno)),
        };
        // A descriptor that opens nothing takes no f*xattr call, but its name under /proc is the entry
        // itself, a link and a pipe too.
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut found = BTreeMap::new();
        let nested = den_sys::creds::ids_here() != u32::MAX;
        let list = match grown(|buffer| rustix::fs::listxattr(name.as_str(), buffer)) {
            Ok(list) => list,
            Err(Errno::OPNOTSUPP) => return Ok(found),
            Err(errno) => return Err(HistoryError::call("listxattr", path)(errno)),
        };
        for key in list.split(|&b| b == 0).filter(|key| !key.is_empty()) {
            let marks: &[u8] = if nested { b"user.overlay." } else { b"trusted.overlay." };
            if key.starts_with(marks) {
                continue;
            }
            match grown(|buffer| rustix::fs::getxattr(name.as_str(), key, buffer)) {
                Ok(value) => {
                    found.insert(key.to_owned(), value);
                }
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(HistoryError::call("getxattr", path)(errno)),
            }
        }
        Ok(found)
    }

    /// The entry at exactly this path, not opened.
    fn handle(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW)
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let bytes = path.as_os_str().as_bytes();
        let mut rest = &bytes[bytes.iter().take_while(|&&b| b == b'/').count()..];
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = |at: BorrowedFd<'_>, name: &[u8], flags: OFlags| {
            let name = if name.is_empty() { b"." } else { name };
            rustix::fs::openat2(at, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        };
        let mut at: Option<OwnedFd> = None;
        while rest.len() > PIECE_BYTES_MAX {
            // A name has 255 bytes at most, so there is a slash to cut at.
            let cut = rest[..PIECE_BYTES_MAX].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
            let from = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let next = open(from, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY)?;
            at = Some(next);
            rest = &rest[cut + 1..];
        }
        open(at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd), rest, flags)
    }

    fn meta_of(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<Meta, HistoryError> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(fd, "", flags, StatxFlags::BASIC_STATS)
            .map_err(|errno| HistoryError::call("statx", path)(errno))?;
        let file_type = FileType::from_raw_mode(u32::from(stat.stx_mode));
        let kind = kind_of(file_type);
        let target = match kind {
            EntryKind::Symlink => Some(
                rustix::fs::readlinkat(fd, "", Vec::new())
                    .map_err(|errno| HistoryError::call("readlinkat", path)(errno))?
                    .into_bytes(),
            ),
            _ => None,
        };
        let mtime = Stamp { sec: stat.stx_mtime.tv_sec, nsec: stat.stx_mtime.tv_nsec };
        Ok(Meta {
            kind,
            file_type: u32::from(stat.stx_mode) & 0o170_000,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            mtime_us: mtime.micros(),
            mtime,
            ctime: Stamp { sec: stat.stx_ctime.tv_sec, nsec: stat.stx_ctime.tv_nsec },
            rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            target,
            nlink: u64::from(stat.stx_nlink),
            ino: stat.stx_ino,
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        })
    }
}

/// Whether a link at the end of a path is gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Followed,
    Kept,
}

/// A moment as the file system keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Seconds since the epoch; less than 0 before it.
    pub sec: i64,
    /// Nanoseconds after that second.
    pub nsec: u32,
}

impl Stamp {
    /// Microseconds since the epoch; the furthest there is, where that is not far enough.
    pub fn micros(self) -> i64 {
        self.sec.saturating_mul(1_000_000).saturating_add(i64::from(self.nsec / 1_000))
    }
}

/// What is known of an entry without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: EntryKind,
    /// What it is exactly: the `S_IFMT` bits, which tell a pipe from a socket and the kinds of devices.
    pub file_type: u32,
    /// Permission bits with set-id and sticky, 0 to 0o7777.
    pub mode: u32,
    /// Owner, as inside.
    pub uid: u32,
    /// Group, as inside.
    pub gid: u32,
    /// Bytes; of anything but a file as the file system says.
    pub size: u64,
    /// When its bytes changed, in microseconds since the epoch.
    pub mtime_us: i64,
    /// The same, exactly.
    pub mtime: Stamp,
    /// When anything of it changed.
    pub ctime: Stamp,
    /// Which device, of a device.
    pub rdev: u64,
    /// Where it points, of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// How many names it has.
    pub nlink: u64,
    /// With `dev`: the same for all names of one file, in one view. Says nothing across views.
    pub ino: u64,
    /// See `ino`.
    pub dev: u64,
}

impl Meta {
    /// As it travels.
    pub fn view(&self) -> MetaView {
        MetaView {
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            size: if self.kind == EntryKind::File { self.size } else { 0 },
            mtime: self.mtime_us,
            target: self.target.as_deref().map(show),
        }
    }
}

/// Bytes as text for people: what is no UTF-8 and what is a control character has `\xNN`, and a
/// backslash is doubled where it could be taken for that.
pub fn show(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        for (at, c) in valid.char_indices() {
            match c {
                c if c.is_control() => {
                    let mut buffer = [0; 4];
                    c.encode_utf8(&mut buffer).bytes().for_each(|b| escape(&mut text, b));
                }
                '\\' if valid[at + 1..].starts_with('x') => text.push_str("\\\\"),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|&b| escape(&mut text, b));
    }
    text
}

fn escape(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push_str("\\x");
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn kind_of(file_type: FileType) -> EntryKind {
    match file_type {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        _ => EntryKind::Special,
    }
}

/// An absolute path without empty components and `.`; one whose `..` climb out is refused.
pub(crate) fn checked(path: &Path) -> Result<PathBuf, HistoryError> {
    let bytes = path.as_os_str().as_bytes();
    let bad = |why| HistoryError::BadPath { path: shown(path), why };
    if !bytes.starts_with(b"/") {
        return Err(bad("it is not absolute"));
    }
    if bytes.contains(&0) {
        return Err(bad("it has a NUL in it"));
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(HistoryError::BadPath {
            path: shown(Path::new(OsStr::from_bytes(&bytes[..64]))),
            why: "it is too long",
        });
    }
    let mut depth = 0_i64;
    let mut names = Vec::new();
    for name in components(bytes) {
        if name == ".." {
            depth -= 1;
            if depth < 0 {
                return Err(bad("it climbs out of the root"));
            }
        } else {
            depth += 1;
        }
        names.push(name.to_owned());
    }
    if names.len() > DEPTH_MAX {
        return Err(bad("it has too many components"));
    }
    Ok(joined(&names))
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &OsStr> {
    path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".").map(OsStr::from_bytes)
}

fn joined(names: &[OsString]) -> PathBuf {
    let mut path = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum::<usize>().max(1));
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    if path.is_empty() {
        path.push(b'/');
    }
    PathBuf::from(OsString::from_vec(path))
}

/// Calls with a buffer that takes most answers, then with one that takes all.
fn grown(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0_u8; 512];
    match call(&mut small[..]) {
        Ok(length) => Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_BYTES_MAX];
            let length = call(&mut large[..])?;
            large.truncate(length);
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
