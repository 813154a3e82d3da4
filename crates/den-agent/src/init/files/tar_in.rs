//! Unpacking an archive below a directory.
//!
//! Invariants:
//! - Nothing is made outside the directory: each name is resolved with the directory as its root
//!   (openat2, RESOLVE_IN_ROOT), so neither `..` nor a link that the archive brought leads out.
//! - What cannot be made as the archive says is a failure. Nothing is left out silently.
//! - Directories get their times last, since what is put into them changes those.

use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use den_wire::FrameKind;
use den_wire::agent::{Failure, FailureKind};
use den_wire::frame::{HEAD_BYTES, parse_head};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use tar::EntryType;

use super::super::conn::Blocking;
use super::super::failure::{Outcome, at, bad, failure, from_errno, text};
use super::super::users::Users;
use super::tar_read::{Member, Reader};
use super::tree::open_dir;
use super::write::{set_owner_and_mode, write_sparse};
use super::{edit, xattr};

/// How much is read ahead, so that heads of small files cost no call each, in bytes.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// How much of a file is moved at once, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// How often a resolution is tried that a rename inside disturbed.
const RESOLVE_TRIES: u32 = 16;

const DIR_MODE_DEFAULT: u32 = 0o755;

/// Unpacks what the connection sends.
pub fn tar_in(conn: &mut Blocking, path: &[u8], owner: Option<&str>, rename: Option<&[u8]>) -> Outcome<()> {
    let owner_numbers = owner.map(|owner| Users::read().owner_of_new(owner)).transpose()?;
    if rename.is_some_and(|name| name.is_empty() || name.contains(&b'/') || name == b"." || name == b"..") {
        return Err(bad("a name to rename to"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            edit::make_dir(path, None, true, owner)?;
            rustix::fs::open(path, flags, Mode::empty())
        }
        other => other,
    };
    let mut unpack = Unpack {
        root: Rc::new(root.map_err(at(path))?),
        owner: owner_numbers,
        rename,
        parent: None,
        dirs: Vec::new(),
        buffer: Vec::new(),
    };
    let mut data = BufReader::with_capacity(READ_AHEAD_BYTES, Data { conn, left: 0, ended: false });
    let mut archive = Reader::new(&mut data);
    while let Some(member) = archive.next().map_err(|error| broken(&error))? {
        unpack.member(member, &mut archive)?;
    }
    unpack.set_times()?;
    // What follows the archive's own end is padding.
    io::copy(&mut data, &mut io::sink()).map(drop).map_err(|error| broken(&error))
}

fn broken(error: &io::Error) -> Failure {
    match (Errno::from_io_error(error), error.kind()) {
        (Some(errno), _) => from_errno(errno, b"archive"),
        (None, io::ErrorKind::Unsupported) => failure(FailureKind::Unsupported, format!("archive: {error}"), None),
        (None, _) => bad(format!("archive: {error}")),
    }
}

struct Unpack<'a> {
    root: Rc<OwnedFd>,
    owner: Option<(Option<u32>, Option<u32>)>,
    rename: Option<&'a [u8]>,
    /// The last directory that something was put into.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    dirs: Vec<(Vec<u8>, Timespec)>,
    buffer: Vec<u8>,
}

impl Unpack<'_> {
    fn member(&mut self, member: Member, data: &mut impl Read) -> Outcome<()> {
        let Member { header, path: written, link, pax, size, pieces } = member;
        let broken = |error: io::Error| bad(format!("{}: {error}", text(&written)));
        let entry_type = header.entry_type();
        let path = self.place(&written)?;
        let mode = header.mode().map_err(broken)? & 0o7777;
        let number = |value: io::Result<u64>| value.map_err(broken).map(|value| u32::try_from(value).ok());
        let (uid, gid) = match self.owner {
            Some(owner) => owner,
            None => (pax.uid.or(number(header.uid())?), pax.gid.or(number(header.gid())?)),
        };
        let seconds = header.mtime().map_err(broken)?;
        let mtime = pax.mtime.unwrap_or(Timespec { tv_sec: seconds as i64, tv_nsec: 0 });
        let failed = |errno| from_errno(errno, &path);

        if path.is_empty() {
            // The directory itself, which is not the archive's to change.
            return match entry_type {
                EntryType::Directory => Ok(()),
                _ => Err(bad(format!("{}: a name that is the directory itself", text(&written)))),
            };
        }
        let (parent, name) = path
            .iter()
            .rposition(|&b| b == b'/')
            .map_or((&b""[..], &path[..]), |slash| (&path[..slash], &path[slash + 1..]));
        let parent = self.parent(parent)?;

        match entry_type {
            EntryType::Directory => {
                let dir = match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                    Ok(()) => open_dir(parent.as_fd(), name),
                    // One that is there stays, and so does a link to one.
                    Err(Errno::EXIST) => self.open(&path, OFlags::RDONLY | OFlags::DIRECTORY),
                    Err(errno) => Err(errno),
                };
                let dir = dir.map_err(failed)?;
                set_owner_and_mode(&dir, Some((uid, gid)), Some(mode)).map_err(failed)?;
                xattr::set(&dir, &pax.xattrs).map_err(failed)?;
                self.dirs.push((path, mtime));
                return Ok(());
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    replacing(&parent, name, || rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR))
                        .map_err(failed)?;
                let done = self.fill(data, &file, &path, size, &pieces).and_then(|()| {
                    set_owner_and_mode(&file, Some((uid, gid)), Some(mode)).map_err(failed)?;
                    xattr::set(&file, &pax.xattrs).map_err(failed)?;
                    rustix::fs::futimens(&file, &only_modified(mtime)).map_err(failed)
                });
                if done.is_err() {
                    let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
                }
                return done;
            }
            EntryType::Link => {
                let target = link.ok_or_else(|| bad(format!("{}: a link to nothing", text(&path))))?;
                let target = self.place(&target)?;
                let (dir, last) = target
                    .iter()
                    .rposition(|&b| b == b'/')
                    .map_or((&b""[..], &target[..]), |slash| (&target[..slash], &target[slash + 1..]));
                let dir = self.parent(dir)?;
                return replacing(&parent, name, || rustix::fs::linkat(&dir, last, &parent, name, AtFlags::empty()))
                    .map_err(failed);
            }
            EntryType::Symlink => {
                let target = link.ok_or_else(|| bad(format!("{}: a link to nothing", text(&path))))?;
                replacing(&parent, name, || rustix::fs::symlinkat(&target[..], &parent, name)).map_err(failed)?;
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let file_type = match entry_type {
                    EntryType::Fifo => FileType::Fifo,
                    EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                // Some leave the numbers of a FIFO empty.
                let device = match file_type {
                    FileType::Fifo => 0,
                    _ => {
                        let major = header.device_major().map_err(broken)?.unwrap_or(0);
                        rustix::fs::makedev(major, header.device_minor().map_err(broken)?.unwrap_or(0))
                    }
                };
                let mode = Mode::from_raw_mode(mode);
                replacing(&parent, name, || rustix::fs::mknodat(&parent, name, file_type, mode, device))
                    .map_err(failed)?;
            }
            other => {
                let about = format!("{}: an entry of type {:?}", text(&path), other.as_byte() as char);
                return Err(failure(FailureKind::Unsupported, about, None));
            }
        }
        let (user, group) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(&parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if entry_type != EntryType::Symlink {
            // The umask is 0, but changing the owner takes bits away.
            rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(failed)?;
        }
        rustix::fs::utimensat(&parent, name, &only_modified(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// A name in the archive as a path below the root, without `.` and without slashes at its ends.
    fn place(&self, written: &[u8]) -> Outcome<Vec<u8>> {
        let mut place = Vec::with_capacity(written.len());
        let components = written.split(|&b| b == b'/').filter(|component| !component.is_empty());
        for (index, component) in components.enumerate() {
            let component = if index == 0 { self.rename.unwrap_or(component) } else { component };
            match component {
                b".." => return Err(bad(format!("{}: a name with `..`", text(written)))),
                b"." => {}
                component if component.contains(&0) => return Err(bad("a name with a NUL byte")),
                component => {
                    if !place.is_empty() {
                        place.push(b'/');
                    }
                    place.extend_from_slice(component);
                }
            }
        }
        Ok(place)
    }

    /// Opens a path with the root as `/`.
    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        for _ in 0..RESOLVE_TRIES {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens the directory that something goes into, made with those above it where it is missing.
    fn parent(&mut self, path: &[u8]) -> Outcome<Rc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((known, dir)) = &self.parent
            && known == path
        {
            return Ok(dir.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = match self.open(path, flags) {
            Err(Errno::NOENT) => self.make_parents(path),
            other => other.map_err(|errno| from_errno(errno, path)),
        }?;
        let dir = Rc::new(dir);
        self.parent = Some((path.to_vec(), dir.clone()));
        Ok(dir)
    }

    fn make_parents(&self, path: &[u8]) -> Outcome<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut dir = self.open(b"", flags).map_err(|errno| from_errno(errno, path))?;
        let ends = path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(|(end, _)| end).chain([path.len()]);
        let mut start = 0;
        for end in ends {
            let (so_far, name) = (&path[..end], &path[start..end]);
            let failed = |errno| from_errno(errno, so_far);
            dir = match self.open(so_far, flags) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(DIR_MODE_DEFAULT)).map_err(failed)?;
                    let made = open_dir(dir.as_fd(), name).map_err(failed)?;
                    set_owner_and_mode(&made, self.owner, None).map_err(failed)?;
                    made
                }
                other => other.map_err(failed)?,
            };
            start = end + 1;
        }
        Ok(dir)
    }

    fn fill(
        &mut self,
        data: &mut impl Read,
        file: &OwnedFd,
        path: &[u8],
        size: u64,
        pieces: &[(u64, u64)],
    ) -> Outcome<()> {
        let want = CHUNK_BYTES.min(usize::try_from(size).unwrap_or(CHUNK_BYTES));
        if self.buffer.len() < want {
            self.buffer.resize(want, 0);
        }
        let failed = |errno| from_errno(errno, path);
        for &(offset, length) in pieces {
            let (mut position, end) = (offset, offset.saturating_add(length));
            while position < end {
                // Filled, so that pieces are aligned and zeros in them are seen.
                let now = want.min(usize::try_from(end - position).unwrap_or(want));
                data.read_exact(&mut self.buffer[..now]).map_err(|error| bad(format!("{}: {error}", text(path))))?;
                write_sparse(file.as_fd(), &self.buffer[..now], &mut position).map_err(failed)?;
            }
        }
        rustix::fs::ftruncate(file, size).map_err(failed)
    }

    fn set_times(&self) -> Outcome<()> {
        for (path, mtime) in self.dirs.iter().rev() {
            match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(dir) => rustix::fs::futimens(&dir, &only_modified(*mtime)).map_err(at(path))?,
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(from_errno(errno, path)),
            }
        }
        Ok(())
    }
}

/// Makes something; what is there and is no directory gives way.
fn replacing<T>(
    parent: &OwnedFd,
    name: &[u8],
    mut make: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            make()
        }
        other => other,
    }
}

fn only_modified(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ }, last_modification: mtime }
}

/// The bytes of the data frames, until their end.
struct Data<'a> {
    conn: &'a mut Blocking,
    /// Of the frame that is being read.
    left: usize,
    ended: bool,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 && !self.ended {
            let mut head = [0; HEAD_BYTES];
            self.conn.read_exact(&mut head)?;
            match parse_head(head).map_err(io::Error::other)? {
                (FrameKind::Data, length) => self.left = length,
                (FrameKind::End, 0) => self.ended = true,
                _ => return Err(io::Error::other("a frame that is no data")),
            }
        }
        let want = buffer.len().min(self.left);
        if want == 0 {
            return Ok(0);
        }
        let read = self.conn.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}
