//! One tar into one folder that overlayfs can take as a layer.
//!
//! ```text
//! .wh.x           ─► x, a character device 0:0            hides x of the layers below
//! .wh..wh..opq    ─► trusted.overlay.opaque=y             hides all of them in this folder
//! device nodes    ─► left out; a computer makes its own /dev
//! zero blocks     ─► holes
//! ```
//!
//! Invariants:
//! - Owner before mode before attributes: chown(2) clears set-user-id and capabilities.
//! - No attribute of a layer speaks to overlayfs or to the host's security modules.
//! - No character device 0:0 is made except for a `.wh.` entry.
//!
//! Source: OCI image specification, layer.md; Documentation/filesystems/overlayfs.rst.

use std::{
    ffi::OsStr,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use den_model::Bytes;
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
        fsetxattr, fstat, ftruncate, futimens, linkat, mkdirat, mknodat, openat, symlinkat, utimensat,
    },
    io::{Errno, pwrite},
};

use crate::{
    ImageError, UnpackLimits,
    decode::Layer,
    error::At as _,
    progress::LayerMeter,
    root::{LayerPath, Root, kind_of, remove_tree},
    tape::{Kind, Member, Tape, show},
};

/// What came out of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// SHA-256 of the uncompressed tar, in hex.
    pub diff_hex: String,
    /// Bytes of its files, holes left out.
    pub size: Bytes,
    /// Members that were taken.
    pub entries: u64,
    /// Device nodes that were left out.
    pub devices_skipped: u64,
    /// Attributes that were left out.
    pub xattrs_skipped: u64,
}

/// Unpacks the tar that `source` yields, compressed or not, into the empty folder `target`.
pub(crate) fn unpack(
    source: impl Read,
    target: &Path,
    limits: UnpackLimits,
    meter: &mut LayerMeter<'_>,
) -> Result<Unpacked, ImageError> {
    let mut tape = Tape::new(Layer::open(source, limits)?);
    let mut work = Work {
        root: Root::open(target)?,
        folders: Vec::new(),
        buffer: vec![0; 256 << 10],
        size: 0,
        logical: 0,
        devices_skipped: 0,
        xattrs_skipped: 0,
        limits,
    };
    let mut entries = 0;
    while let Some(member) = tape.next()? {
        entries += 1;
        if entries > limits.entries_max {
            return Err(ImageError::TooLarge { what: "entries", limit: limits.entries_max.to_string() });
        }
        work.take(member, &mut tape)?;
        meter.at(tape.get_ref().bytes_in());
    }
    work.date_folders()?;
    let layer = tape.into_inner();
    let diff_hex = layer.finish()?;
    if entries == 0 && diff_hex == EMPTY_HEX {
        return Err(ImageError::BadLayer("it is empty: not even a tar's end".to_owned()));
    }
    Ok(Unpacked {
        diff_hex,
        size: Bytes(work.size),
        entries,
        devices_skipped: work.devices_skipped,
        xattrs_skipped: work.xattrs_skipped,
    })
}

/// SHA-256 of nothing.
const EMPTY_HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

struct Work {
    root: Root,
    /// Folders whose time is set last, since each child changes it.
    folders: Vec<(LayerPath, (i64, i64))>,
    buffer: Vec<u8>,
    size: u64,
    logical: u64,
    devices_skipped: u64,
    xattrs_skipped: u64,
    limits: UnpackLimits,
}

impl Work {
    fn take<R: Read>(&mut self, member: Member, tape: &mut Tape<R>) -> Result<(), ImageError> {
        let path = LayerPath::parse(&member.path)?;
        if path.name.is_empty() {
            // `./`: the root itself.
            if member.kind == Kind::Folder {
                self.dress_folder(b"", &path, &member)?;
            }
            return Ok(());
        }
        if let Some(hidden) = path.name.strip_prefix(b".wh.") {
            let hidden = hidden.to_vec();
            return self.hide(&path, &hidden);
        }
        match member.kind {
            Kind::Device => self.devices_skipped += 1,
            Kind::Folder => self.folder(path, &member)?,
            Kind::File => self.file(&path, &member, tape)?,
            Kind::Symlink => self.symlink(&path, &member)?,
            Kind::HardLink => self.hard_link(&path, &member)?,
            Kind::Fifo => {
                self.clear(&path)?;
                let parent = self.root.parent(&path.parent)?;
                let name = OsStr::from_bytes(&path.name);
                mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(member.mode & 0o777), 0)
                    .at("cannot make", show(&member.path))?;
                self.dress_link(&path, &member)?;
            }
        }
        Ok(())
    }

    /// A whiteout for `hidden` in the folder of `path`.
    fn hide(&mut self, path: &LayerPath, hidden: &[u8]) -> Result<(), ImageError> {
        if hidden == b".wh..opq" {
            let parent = self.root.parent(&path.parent)?;
            return set_opaque(parent, b".").at("cannot make opaque", show(&path.parent));
        }
        if hidden.starts_with(b".wh.") {
            // What aufs kept for itself, such as `.wh..wh.plnk`.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ImageError::BadLayer(format!("the whiteout `{}` hides no name", show(&path.name))));
        }
        let parent = self.root.parent(&path.parent)?;
        match kind_of(parent, hidden).at("cannot look at", show(hidden))? {
            // A whiteout is about the layers below, never about this one.
            Some(FileType::Directory) => set_opaque(parent, hidden).at("cannot make opaque", show(hidden)),
            Some(_) => Ok(()),
            None => mknodat(parent, OsStr::from_bytes(hidden), FileType::CharacterDevice, Mode::empty(), 0)
                .at("cannot make a whiteout at", show(hidden)),
        }
    }

    /// Makes room for `path`: a later member replaces an earlier one. Tells whether a whiteout was there.
    fn clear(&mut self, path: &LayerPath) -> Result<bool, ImageError> {
        let parent = self.root.parent(&path.parent)?;
        let there = kind_of(parent, &path.name).at("cannot look at", show(&path.name))?;
        if there.is_none() {
            return Ok(false);
        }
        remove_tree(parent, &path.name).at("cannot replace", show(&path.name))?;
        self.root.forget();
        Ok(there == Some(FileType::CharacterDevice))
    }

    fn folder(&mut self, path: LayerPath, member: &Member) -> Result<(), ImageError> {
        let parent = self.root.parent(&path.parent)?;
        let name = OsStr::from_bytes(&path.name);
        match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = kind_of(parent, &path.name).at("cannot look at", show(&member.path))?;
                if there != Some(FileType::Directory) {
                    let hidden = self.clear(&path)?;
                    let parent = self.root.parent(&path.parent)?;
                    mkdirat(parent, name, Mode::from_raw_mode(0o755)).at("cannot make", show(&member.path))?;
                    if hidden {
                        set_opaque(parent, &path.name).at("cannot make opaque", show(&member.path))?;
                    }
                }
            }
            Err(errno) => return Err(self.root.explain(errno, &member.path)),
        }
        let name = path.name.clone();
        self.dress_folder(&name, &path, member)?;
        self.folders.push((path, member.mtime));
        Ok(())
    }

    /// Owner, mode and attributes of a folder; of the root when `name` is empty.
    fn dress_folder(&mut self, name: &[u8], path: &LayerPath, member: &Member) -> Result<(), ImageError> {
        let parent = self.root.parent(&path.parent)?;
        let name = if name.is_empty() { b"." } else { name };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, OsStr::from_bytes(name), flags, Mode::empty()).at("cannot open", show(&member.path))?;
        dress(fd.as_fd(), member, &mut self.xattrs_skipped).at("cannot set the owner and mode of", show(&member.path))
    }

    fn file<R: Read>(&mut self, path: &LayerPath, member: &Member, tape: &mut Tape<R>) -> Result<(), ImageError> {
        self.logical = self.logical.saturating_add(member.size);
        if self.logical > self.limits.unpacked_bytes_max.0 {
            return Err(ImageError::too_many_bytes("of unpacked files", self.limits.unpacked_bytes_max));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = OsStr::from_bytes(&path.name);
        let create = |parent: BorrowedFd<'_>| openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let file = match create(self.root.parent(&path.parent)?) {
            Err(Errno::EXIST) => {
                self.clear(path)?;
                create(self.root.parent(&path.parent)?)
            }
            other => other,
        }
        .map_err(|errno| self.root.explain(errno, &member.path))?;
        let mut filled = 0;
        for &(offset, length) in &member.pieces {
            let mut at = offset;
            let mut left = length;
            while left > 0 {
                let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let have = tape.read_data(&mut self.buffer[..want])?;
                if have == 0 {
                    return Err(ImageError::BadLayer(format!("the data of `{}` is cut short", show(&member.path))));
                }
                let written = write_with_holes(file.as_fd(), &self.buffer[..have], at)
                    .at("cannot write", self.root.path().join(OsStr::from_bytes(&member.path)))?;
                filled += written;
                at += have as u64;
                left -= have as u64;
            }
        }
        self.size += filled;
        if filled != member.size {
            // There are holes, and one may be at the end.
            ftruncate(&file, member.size).at("cannot extend", show(&member.path))?;
        }
        dress(file.as_fd(), member, &mut self.xattrs_skipped)
            .at("cannot set the owner and mode of", show(&member.path))?;
        futimens(&file, &times(member.mtime)).at("cannot date", show(&member.path))
    }

    fn symlink(&mut self, path: &LayerPath, member: &Member) -> Result<(), ImageError> {
        if member.link.is_empty() || member.link.len() > 4095 || member.link.contains(&0) {
            return Err(ImageError::BadLayer(format!("the link `{}` leads to no path", show(&member.path))));
        }
        self.clear(path)?;
        self.root.forget();
        let parent = self.root.parent(&path.parent)?;
        symlinkat(OsStr::from_bytes(&member.link), parent, OsStr::from_bytes(&path.name))
            .map_err(|errno| self.root.explain(errno, &member.path))?;
        self.dress_link(path, member)
    }

    fn hard_link(&mut self, path: &LayerPath, member: &Member) -> Result<(), ImageError> {
        let target = LayerPath::parse(&member.link)?;
        let broken = |why: &str| {
            let (name, target) = (show(&member.path), show(&member.link));
            ImageError::BadLayer(format!("the hard link `{name}` leads to `{target}`, which {why}"))
        };
        let above = self
            .root
            .resolve(&target.parent, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|_| broken("is not in the layer"))?;
        match kind_of(above.as_fd(), &target.name).map_err(|_| broken("is not in the layer"))? {
            None => return Err(broken("is not in the layer")),
            Some(FileType::Directory) => return Err(broken("is a folder")),
            Some(FileType::CharacterDevice) => return Err(broken("the layer removes")),
            Some(_) => {}
        }
        let parent = self.root.parent(&path.parent)?;
        let (old, new) = (OsStr::from_bytes(&target.name), OsStr::from_bytes(&path.name));
        match linkat(&above, old, parent, new, AtFlags::empty()) {
            Err(Errno::EXIST) => {
                // A member that links to itself says nothing new.
                if target == *path {
                    return Ok(());
                }
                self.clear(path)?;
                let parent = self.root.parent(&path.parent)?;
                linkat(&above, old, parent, new, AtFlags::empty())
            }
            other => other,
        }
        .map_err(|errno| self.root.explain(errno, &member.path))
    }

    /// Owner and time of what cannot be opened without effect.
    fn dress_link(&mut self, path: &LayerPath, member: &Member) -> Result<(), ImageError> {
        let parent = self.root.parent(&path.parent)?;
        let name = OsStr::from_bytes(&path.name);
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .at("cannot set the owner of", show(&member.path))?;
        utimensat(parent, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .at("cannot date", show(&member.path))?;
        self.xattrs_skipped += member.xattrs.len() as u64;
        Ok(())
    }

    /// The deepest last, so that no date is changed again. A folder that a later member replaced is passed over.
    fn date_folders(&mut self) -> Result<(), ImageError> {
        for (path, mtime) in std::mem::take(&mut self.folders).into_iter().rev() {
            let Ok(parent) = self.root.resolve(&path.parent, OFlags::PATH | OFlags::DIRECTORY) else { continue };
            let name = OsStr::from_bytes(&path.name);
            match utimensat(&parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.root.explain(errno, &path.name)),
            }
        }
        Ok(())
    }
}

/// Owner, mode, attributes, in this order.
fn dress(fd: BorrowedFd<'_>, member: &Member, skipped: &mut u64) -> Result<(), Errno> {
    let there = fstat(fd)?;
    if (there.st_uid, there.st_gid) != (member.uid, member.gid) {
        fchown(fd, Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)))?;
    }
    if there.st_mode & 0o7777 != member.mode {
        fchmod(fd, Mode::from_raw_mode(member.mode))?;
    }
    for (name, value) in &member.xattrs {
        if !is_allowed(name) {
            *skipped += 1;
            continue;
        }
        match fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A filesystem without ACLs, or an attribute too large for it.
            Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::RANGE | Errno::TOOBIG | Errno::INVAL) => *skipped += 1,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Which attributes a layer may set: what programs inside set and read themselves.
fn is_allowed(name: &[u8]) -> bool {
    matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && !name.contains(&0))
}

fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, OsStr::from_bytes(name), flags, Mode::empty())?;
    fsetxattr(&fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())
}

fn times((seconds, nanoseconds): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}

/// Writes at `at` all but whole blocks of zeros; returns how much that was.
fn write_with_holes(file: BorrowedFd<'_>, data: &[u8], at: u64) -> Result<u64, Errno> {
    const HOLE_BYTES: usize = 4096;
    const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    let is_hole = |chunk: &[u8]| chunk == ZEROS;
    let mut written = 0;
    let mut start = 0;
    while start < data.len() {
        let mut end = start;
        while end < data.len() && !is_hole(&data[end..data.len().min(end + HOLE_BYTES)]) {
            end = data.len().min(end + HOLE_BYTES);
        }
        let mut from = start;
        while from < end {
            match pwrite(file, &data[from..end], at + from as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => from += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        written += (end - start) as u64;
        start = end;
        while start < data.len() && is_hole(&data[start..data.len().min(start + HOLE_BYTES)]) {
            start += HOLE_BYTES;
        }
    }
    Ok(written)
}
