//! A tar stream as files on the host.
//!
//! The stream was made inside a computer, so nothing in it is believed.
//!
//! Invariants:
//! - Nothing is written outside the directory: every name is resolved beneath its descriptor and
//!   through no link (openat2(2), `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`); `..` is refused.
//! - No device, no setuid or setgid bit and no attribute but `user.*` arrives: on the host they would
//!   act for whoever wrote them inside.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, openat2},
    io::Errno,
};
use tar::{Archive, Entry, EntryType};

use super::transfer::CHUNK_BYTES;
use crate::report::Trouble;

/// A run of zeros this long, at a multiple of it, becomes a hole.
const HOLE_BYTES: usize = 64 << 10;
/// The deepest path, in components.
const DEPTH_MAX: usize = 1024;

/// Whose the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostOwner {
    /// As inside, by number.
    Kept,
    /// Whoever runs this.
    Mine,
    /// As asked.
    Given(u32, u32),
}

impl HostOwner {
    /// Reads `user[:group]`, names or numbers of this host.
    pub fn parse(text: &str) -> Result<Self, Trouble> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let accounts = fs_err::read_to_string("/etc/passwd").map_err(Trouble::new)?;
        let known = lookup(&accounts, user);
        let (uid, primary) = match (user.parse(), known) {
            (Ok(uid), known) => (uid, known.map_or(uid, |(_, gid)| gid)),
            (Err(_), Some((uid, gid))) => (uid, gid),
            (Err(_), None) => return Err(Trouble::new(format_args!("this host has no user `{user}`"))),
        };
        let gid = match group {
            "" => primary,
            group => match group.parse() {
                Ok(gid) => gid,
                Err(_) => {
                    let groups = fs_err::read_to_string("/etc/group").map_err(Trouble::new)?;
                    lookup(&groups, group)
                        .map(|(gid, _)| gid)
                        .ok_or_else(|| Trouble::new(format_args!("this host has no group `{group}`")))?
                }
            },
        };
        Ok(Self::Given(uid, gid))
    }

    /// The numbers for a file that is `uid:gid` inside; `None`: as it was made.
    fn numbers(self, uid: u32, gid: u32) -> Option<(Uid, Gid)> {
        let (uid, gid) = match self {
            Self::Mine => return None,
            Self::Kept => (uid, gid),
            Self::Given(uid, gid) => (uid, gid),
        };
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// Gives a file that is `uid:gid` inside to whom it is to belong.
    pub fn give(self, file: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
        match self.numbers(uid, gid) {
            Some((uid, gid)) => Ok(rustix::fs::fchown(file, Some(uid), Some(gid))?),
            None => Ok(()),
        }
    }
}

/// The third and fourth field of the line for `name` in /etc/passwd or /etc/group.
fn lookup(table: &str, name: &str) -> Option<(u32, u32)> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let first = fields.next()?;
        let number = fields.nth(1)?;
        (first == name || number == name)
            .then(|| Some((number.parse().ok()?, fields.next().and_then(|gid| gid.parse().ok()).unwrap_or(0))))?
    })
}

/// Unpacks `stream` below `directory`; `top` replaces the first component of the names in it.
pub fn unpack(stream: &mut dyn Read, directory: &Path, top: Option<&Path>, owner: HostOwner) -> Result<(), Trouble> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|error| Trouble::io(directory.display(), &error.into()))?;
    let mut unpacker = Unpacker {
        root,
        top: top.map(|top| top.as_os_str().as_bytes().to_owned()),
        owner,
        directories: Vec::new(),
        parent: None,
        buffer: vec![0; CHUNK_BYTES],
    };
    let broken = |error: &io::Error| Trouble::new(format_args!("the tar stream is broken: {error}"));
    let mut archive = Archive::new(stream);
    for entry in archive.entries().map_err(|error| broken(&error))? {
        let mut entry = entry.map_err(|error| broken(&error))?;
        let name = entry.path_bytes().into_owned();
        unpacker
            .entry(&mut entry, &name)
            .map_err(|error| Trouble::io(directory.join(OsStr::from_bytes(&name)).display(), &error))?;
    }
    unpacker.finish().map_err(|error| Trouble::io(directory.display(), &error))
}

/// A directory whose attributes wait until all is in it.
struct Pending {
    path: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    time: Timespec,
}

struct Unpacker {
    root: OwnedFd,
    top: Option<Vec<u8>>,
    owner: HostOwner,
    directories: Vec<Pending>,
    /// The last directory that something went into.
    parent: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Unpacker {
    /// The name of an entry, cleaned: no `.`, no empty component, the first one replaced.
    fn place(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        let mut components: Vec<&[u8]> = Vec::new();
        if name.starts_with(b"/") {
            return Err(io::Error::other("the name is absolute, so it is refused"));
        }
        for component in name.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(io::Error::other("the name has `..` in it, so it is refused")),
                component => components.push(component),
            }
        }
        if components.len() > DEPTH_MAX {
            return Err(io::Error::other(format!("the name has more than {DEPTH_MAX} components")));
        }
        if let (Some(top), Some(first)) = (&self.top, components.first_mut()) {
            *first = top;
        }
        Ok(components.join(&b'/'))
    }

    fn entry(&mut self, entry: &mut Entry<'_, &mut dyn Read>, name: &[u8]) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = self.place(name)?;
        if path.is_empty() {
            // The directory itself: it is there, and its owner's.
            return Ok(());
        }
        let (parent, last) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], &path[..]),
        };
        let header = entry.header();
        let mode = header.mode()? & 0o777;
        let number = |value: u64| u32::try_from(value).map_err(|_| io::Error::other("an owner above 32 bits"));
        let (uid, gid) = (number(header.uid()?)?, number(header.gid()?)?);
        let mut time = Timespec { tv_sec: header.mtime()? as i64, tv_nsec: 0 };
        let mut attributes = Vec::new();
        if let Some(records) = entry.pax_extensions()? {
            for record in records {
                let record = record?;
                match record.key_bytes() {
                    b"mtime" => time = timestamp(record.value_bytes()).unwrap_or(time),
                    key => {
                        if let Some(key) = key.strip_prefix(b"SCHILY.xattr.")
                            && key.starts_with(b"user.")
                        {
                            attributes.push((key.to_owned(), record.value_bytes().to_owned()));
                        }
                    }
                }
            }
        }
        let times = Timestamps { last_access: time, last_modification: time };
        self.open_parent(parent)?;
        match kind {
            EntryType::Directory => {
                let directory = self.directory(last)?;
                set_attributes(directory.as_fd(), &attributes)?;
                self.directories.push(Pending { path: path.clone(), mode, uid, gid, time });
                return Ok(());
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.clear(last)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let parent = self.parent_fd();
                let file = File::from(rustix::fs::openat(parent, last, flags, Mode::RUSR | Mode::WUSR)?);
                let size = entry.size();
                let filled = fill(&file, entry, size, &mut self.buffer).and_then(|()| {
                    set_attributes(file.as_fd(), &attributes)?;
                    self.owner.give(file.as_fd(), uid, gid)?;
                    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
                    Ok(rustix::fs::futimens(&file, &times)?)
                });
                if filled.is_err() {
                    let _ = rustix::fs::unlinkat(self.parent_fd(), last, AtFlags::empty());
                }
                return filled;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| io::Error::other("a link to nothing"))?;
                let target = self.place(&target)?;
                return self.link(&target, &path, last);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| io::Error::other("a link to nothing"))?;
                self.clear(last)?;
                rustix::fs::symlinkat(&*target, self.parent_fd(), last)?;
            }
            EntryType::Fifo => {
                self.clear(last)?;
                rustix::fs::mknodat(self.parent_fd(), last, FileType::Fifo, Mode::from_raw_mode(mode), 0)?;
            }
            EntryType::Char | EntryType::Block => {
                eprintln!("den: {} is a device and stays behind", String::from_utf8_lossy(name));
                return Ok(());
            }
            other => {
                eprintln!("den: {} is of an unknown kind ({other:?}) and stays behind", String::from_utf8_lossy(name));
                return Ok(());
            }
        }
        // A symbolic link or FIFO: by name, for it cannot be opened.
        if let Some((uid, gid)) = self.owner.numbers(uid, gid) {
            rustix::fs::chownat(self.parent_fd(), last, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(rustix::fs::utimensat(self.parent_fd(), last, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn parent_fd(&self) -> BorrowedFd<'_> {
        match &self.parent {
            Some((path, parent)) if !path.is_empty() => parent.as_fd(),
            _ => self.root.as_fd(),
        }
    }

    /// Opens the directory that the next entry goes into; makes it where the stream left it out.
    fn open_parent(&mut self, path: &[u8]) -> io::Result<()> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        self.parent = None;
        if path.is_empty() {
            return Ok(());
        }
        let mut end = 0;
        let opened = loop {
            match self.beneath(path) {
                Err(Errno::NOENT) if end < path.len() => {
                    end = path[end..].iter().position(|&byte| byte == b'/').map_or(path.len(), |at| end + at);
                    match rustix::fs::mkdirat(self.root.as_fd(), &path[..end], Mode::RWXU) {
                        Ok(()) | Err(Errno::EXIST) => end = (end + 1).min(path.len()),
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(Errno::LOOP) => return Err(io::Error::other("a symbolic link is in the way")),
                opened => break opened?,
            }
        };
        self.parent = Some((path.to_owned(), opened));
        Ok(())
    }

    fn beneath(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    /// Takes away what has the name, unless it is a directory.
    fn clear(&self, last: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(self.parent_fd(), last, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => Err(io::Error::other("a directory is in the way")),
            Err(error) => Err(error.into()),
        }
    }

    fn directory(&self, last: &[u8]) -> io::Result<OwnedFd> {
        match rustix::fs::mkdirat(self.parent_fd(), last, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self.parent_fd(), last, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => Err(io::Error::other("what is there is no directory")),
            opened => Ok(opened?),
        }
    }

    fn link(&mut self, target: &[u8], path: &[u8], last: &[u8]) -> io::Result<()> {
        if target == path {
            return Err(io::Error::other("a hard link to itself"));
        }
        let (directory, name) = match target.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => (&b""[..], target),
        };
        let found = if directory.is_empty() { None } else { Some(self.beneath(directory)?) };
        let from = found.as_ref().unwrap_or(&self.root);
        self.clear(last)?;
        Ok(rustix::fs::linkat(from, name, self.parent_fd(), last, AtFlags::empty())?)
    }

    /// Gives the directories their attributes, the innermost first: writing below changes times,
    /// and a mode may forbid writing.
    fn finish(mut self) -> io::Result<()> {
        while let Some(pending) = self.directories.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let directory = openat2(&self.root, &pending.path[..], flags, Mode::empty(), resolve)?;
            self.owner.give(directory.as_fd(), pending.uid, pending.gid)?;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(pending.mode))?;
            let times = Timestamps { last_access: pending.time, last_modification: pending.time };
            rustix::fs::futimens(&directory, &times)?;
        }
        Ok(())
    }
}

/// `1700000000.123456789`, as pax has it.
fn timestamp(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: digits.parse().ok()? })
}

fn set_attributes(file: BorrowedFd<'_>, attributes: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    for (key, value) in attributes {
        match rustix::fs::fsetxattr(file, &key[..], value, XattrFlags::empty()) {
            // The file system has no room for them; the content is worth more.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies an entry's `size` bytes; long runs of zeros become holes.
fn fill(file: &File, entry: &mut impl Read, size: u64, buffer: &mut [u8]) -> io::Result<()> {
    let (mut offset, mut end_written) = (0_u64, 0_u64);
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match entry.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            break;
        }
        // Neighbouring blocks that are no holes go out in one write.
        let mut begin = 0;
        for block in (0..filled).step_by(HOLE_BYTES) {
            let end = (block + HOLE_BYTES).min(filled);
            if end - block == HOLE_BYTES && is_zero(&buffer[block..end]) {
                file.write_all_at(&buffer[begin..block], offset + begin as u64)?;
                begin = end;
            }
        }
        file.write_all_at(&buffer[begin..filled], offset + begin as u64)?;
        if begin < filled {
            end_written = offset + filled as u64;
        }
        offset += filled as u64;
        if filled < buffer.len() {
            break;
        }
    }
    if offset != size {
        return Err(io::Error::other(format!("the stream ends after {offset} of {size} bytes")));
    }
    if end_written < offset { file.set_len(offset) } else { Ok(()) }
}

/// Whether all bytes of a block are zero. One `memcmp`, which ends at the first that is not.
fn is_zero(block: &[u8]) -> bool {
    static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    *block == ZEROS[..block.len()]
}
