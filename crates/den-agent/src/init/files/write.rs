//! Writing a file.
//!
//! ```text
//! data ─► .den-….tmp beside the target ─ owner, mode, time ─ renamed over it
//! ```
//!
//! Whoever reads the path sees the old file or the new one. A temporary file is gone whatever goes
//! wrong. A target that is a mount (such as /etc/resolv.conf may be) cannot be renamed over: its
//! contents are replaced in place.
//!
//! What is asked to be written in place, or added to the end, has no temporary file: readers see it
//! grow, and what breaks off leaves what came until then.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use den_wire::agent::{FailureKind, Reply, WriteFile};
use den_wire::frame::{HEAD_BYTES, parse_head};
use den_wire::{DATA_CHUNK_BYTES, FrameKind};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::conn::Blocking;
use super::super::failure::{Outcome, at, bad, failure, from_errno, text};
use super::super::users::Users;
use super::{describe, edit, kind, xattr};

/// Runs of zeros become holes in pieces of this many bytes.
const HOLE_BYTES: usize = 64 << 10;

/// How many links are followed to find what is replaced, as the kernel has it.
const LINKS_MAX: usize = 40;

/// The permission bits of a new file.
const MODE_DEFAULT: u32 = 0o644;

/// Writes what the connection sends; returns the attributes of what is there then.
pub fn write(conn: &mut Blocking, request: &WriteFile) -> Outcome<Reply> {
    let mut users = Users::read();
    let owner = request.owner.as_deref().map(|owner| users.owner_of_new(owner)).transpose()?;
    if request.mode.is_some_and(|mode| mode > 0o7777) {
        return Err(bad("permission bits beyond 0o7777"));
    }
    let path = resolve_last(&request.path)?;
    let (parent, name) = split(&path)?;
    let parent = match request.in_place && request.parents {
        true => {
            edit::make_dir(parent, None, true, request.owner.as_deref())?;
            open_parent(parent, false)?
        }
        false => open_parent(parent, request.parents)?,
    };
    let there = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(at(&path)(errno)),
    };
    match there.as_ref().map(kind) {
        None | Some(FileType::RegularFile) => {}
        Some(FileType::Directory) => return Err(failure(FailureKind::IsADirectory, text(&path), None)),
        Some(_) => return Err(failure(FailureKind::NotAFile, text(&path), None)),
    }

    let place = Place { parent: parent.as_fd(), name, path: &path };
    let file = match (request.append, request.in_place) {
        (true, _) => append(conn, request, &place, there.as_ref(), owner)?,
        (false, true) => in_place(conn, request, &place, owner)?,
        (false, false) => replace(conn, request, &place, there.as_ref(), owner)?,
    };
    let stat = rustix::fs::fstat(&file).map_err(at(&path))?;
    Ok(Reply::Stat(describe(request.path.to_vec(), &stat, None, &mut users)))
}

/// Where a file goes.
struct Place<'a> {
    parent: BorrowedFd<'a>,
    name: &'a [u8],
    path: &'a [u8],
}

type Owner = Option<(Option<u32>, Option<u32>)>;

fn append(
    conn: &mut Blocking,
    request: &WriteFile,
    place: &Place<'_>,
    there: Option<&Stat>,
    owner: Owner,
) -> Outcome<OwnedFd> {
    let fail = at(place.path);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(request.mode.unwrap_or(MODE_DEFAULT));
    let file = rustix::fs::openat(place.parent, place.name, flags, mode).map_err(&fail)?;
    let mut position = rustix::fs::fstat(&file).map_err(&fail)?.st_size as u64;
    receive(conn, &file, &mut position, place.path)?;
    if there.is_none() || owner.is_some() || request.mode.is_some() {
        set_owner_and_mode(&file, owner, request.mode).map_err(&fail)?;
    }
    set_mtime(&file, request.mtime).map_err(&fail)?;
    Ok(file)
}

/// Made or emptied, owned, then written: what breaks off leaves what came until then.
fn in_place(conn: &mut Blocking, request: &WriteFile, place: &Place<'_>, owner: Owner) -> Outcome<OwnedFd> {
    let fail = at(place.path);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(request.mode.unwrap_or(MODE_DEFAULT));
    let file = rustix::fs::openat(place.parent, place.name, flags, mode).map_err(&fail)?;
    set_owner_and_mode(&file, owner, request.mode).map_err(&fail)?;
    if let Some(attributes) = &request.attributes {
        xattr::replace(&file, attributes).map_err(&fail)?;
    }
    let mut position = 0;
    receive(conn, &file, &mut position, place.path)?;
    // The end may be a hole; a length that is right already is not set, for that would be told to who watches.
    if rustix::fs::fstat(&file).map_err(&fail)?.st_size as u64 != position {
        rustix::fs::ftruncate(&file, position).map_err(&fail)?;
    }
    set_mtime(&file, request.mtime).map_err(&fail)?;
    Ok(file)
}

fn replace(
    conn: &mut Blocking,
    request: &WriteFile,
    place: &Place<'_>,
    there: Option<&Stat>,
    owner: Owner,
) -> Outcome<OwnedFd> {
    let fail = at(place.path);
    let temporary = Temporary::make(place.parent).map_err(&fail)?;
    let mut position = 0;
    receive(conn, &temporary.file, &mut position, place.path)?;
    rustix::fs::ftruncate(&temporary.file, position).map_err(&fail)?;
    let mode = request.mode.or(there.map(|stat| stat.st_mode & 0o7777)).unwrap_or(MODE_DEFAULT);
    let (uid, gid) = owner.unwrap_or_default();
    let owner = (uid.or(there.map(|stat| stat.st_uid)), gid.or(there.map(|stat| stat.st_gid)));
    set_owner_and_mode(&temporary.file, Some(owner), Some(mode)).map_err(&fail)?;
    set_mtime(&temporary.file, request.mtime).map_err(&fail)?;
    match rustix::fs::renameat(place.parent, &temporary.name[..], place.parent, place.name) {
        Ok(()) => temporary.keep().map_err(&fail),
        Err(Errno::BUSY) => {
            let file = overwrite(&temporary, place).map_err(&fail)?;
            if request.owner.is_some() || request.mode.is_some() {
                set_owner_and_mode(&file, Some(owner), Some(mode)).map_err(&fail)?;
            }
            set_mtime(&file, request.mtime).map_err(&fail)?;
            Ok(file)
        }
        Err(errno) => Err(fail(errno)),
    }
}

/// Puts the temporary file's contents into what is a mount.
fn overwrite(temporary: &Temporary<'_>, place: &Place<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(temporary.parent, &temporary.name[..], flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let to = std::fs::File::from(rustix::fs::openat(place.parent, place.name, flags, Mode::empty())?);
    let copied = io::copy(&mut std::fs::File::from(from), &mut &to);
    copied.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(to.into())
}

/// Takes data frames until their end.
fn receive(conn: &mut Blocking, file: &OwnedFd, position: &mut u64, path: &[u8]) -> Outcome<()> {
    let mut payload = Vec::new();
    let gone = |_| failure(FailureKind::Other, "connection", None);
    loop {
        let mut head = [0; HEAD_BYTES];
        conn.read_exact(&mut head).map_err(gone)?;
        let (kind, length) = parse_head(head).map_err(|error| bad(error.to_string()))?;
        match kind {
            FrameKind::Data => {}
            FrameKind::End if length == 0 => return Ok(()),
            _ => return Err(bad("a frame that is no data")),
        }
        if payload.len() < length {
            payload.resize(length.max(DATA_CHUNK_BYTES), 0);
        }
        conn.read_exact(&mut payload[..length]).map_err(gone)?;
        write_sparse(file.as_fd(), &payload[..length], position).map_err(|errno| from_errno(errno, path))?;
    }
}

/// Writes `bytes` at `position` and moves it on; leaves out aligned pieces of [`HOLE_BYTES`] that
/// are zero. The caller sets the length at the end.
pub fn write_sparse(file: BorrowedFd<'_>, mut bytes: &[u8], position: &mut u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let to_boundary = HOLE_BYTES - (*position % HOLE_BYTES as u64) as usize;
        // Whole pieces from here that hold something are written in one call.
        let mut end = to_boundary.min(bytes.len());
        let is_hole = |piece: &[u8]| piece.len() == HOLE_BYTES && is_zero(piece);
        if is_hole(&bytes[..end]) {
            *position += end as u64;
            bytes = &bytes[end..];
            continue;
        }
        while end < bytes.len() {
            let next = (end + HOLE_BYTES).min(bytes.len());
            if is_hole(&bytes[end..next]) {
                break;
            }
            end = next;
        }
        let (mut now, rest) = bytes.split_at(end);
        while !now.is_empty() {
            match rustix::io::pwrite(file, now, *position) {
                Ok(0) => return Err(Errno::NOSPC),
                Ok(written) => {
                    now = &now[written..];
                    *position += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        bytes = rest;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    // Comparing a block with itself one byte on is one memcmp, which is fast at any optimisation.
    bytes.first().is_none_or(|&first| first == 0) && bytes[1..] == bytes[..bytes.len() - 1]
}

/// Sets what is given. The owner first: the kernel takes set-user-ID bits away with it.
pub fn set_owner_and_mode(file: &OwnedFd, owner: Owner, mode: Option<u32>) -> rustix::io::Result<()> {
    if let Some((uid, gid)) = owner
        && (uid.is_some() || gid.is_some())
    {
        rustix::fs::fchown(file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
    }
    match mode {
        Some(mode) => rustix::fs::fchmod(file, Mode::from_raw_mode(mode)),
        None => Ok(()),
    }
}

fn set_mtime(file: &OwnedFd, micros: Option<i64>) -> rustix::io::Result<()> {
    let Some(micros) = micros else { return Ok(()) };
    let time = Timespec { tv_sec: micros.div_euclid(1_000_000), tv_nsec: micros.rem_euclid(1_000_000) as _ };
    let time = Timespec { tv_nsec: time.tv_nsec * 1000, ..time };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
}

/// A file that is unlinked unless it is kept.
pub struct Temporary<'a> {
    /// Open for writing.
    pub file: OwnedFd,
    /// Its name in the directory.
    pub name: Vec<u8>,
    parent: BorrowedFd<'a>,
    kept: bool,
}

/// A name that nothing has, for what is made beside its place.
pub fn temporary_name() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!(".den-{:x}-{:x}.tmp", now as u64, NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes()
}

impl<'a> Temporary<'a> {
    fn make(parent: BorrowedFd<'a>) -> rustix::io::Result<Self> {
        let name = temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, &name[..], flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self { file, name, parent, kept: false })
    }

    fn keep(mut self) -> rustix::io::Result<OwnedFd> {
        self.kept = true;
        rustix::io::fcntl_dupfd_cloexec(&self.file, 3)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = rustix::fs::unlinkat(self.parent, &self.name[..], AtFlags::empty());
        }
    }
}

/// The directory and the last name of a path.
pub fn split(path: &[u8]) -> Outcome<(&[u8], &[u8])> {
    let trimmed = &path[..path.iter().rposition(|&b| b != b'/').map_or(0, |last| last + 1)];
    let (parent, name): (&[u8], &[u8]) = match trimmed.iter().rposition(|&b| b == b'/') {
        Some(0) => (b"/", &trimmed[1..]),
        Some(slash) => (&trimmed[..slash], &trimmed[slash + 1..]),
        None => (b".", trimmed),
    };
    match name {
        b"" if path.is_empty() => Err(from_errno(Errno::NOENT, path)),
        b"" | b"." | b".." => Err(bad(text(path))),
        _ => Ok((parent, name)),
    }
}

/// Opens a directory to work in, made first where that is wanted.
pub fn open_parent(parent: &[u8], make: bool) -> Outcome<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Err(Errno::NOENT) if make => {
            edit::make_dir(parent, None, true, None)?;
            rustix::fs::open(parent, flags, Mode::empty()).map_err(at(parent))
        }
        other => other.map_err(at(parent)),
    }
}

/// Follows a link at the end of a path, and the links that it leads to, to a path whose last
/// component is none.
fn resolve_last(path: &[u8]) -> Outcome<Vec<u8>> {
    let mut path = path.to_vec();
    if path.ends_with(b"/") {
        return Err(failure(FailureKind::IsADirectory, text(&path), None));
    }
    for _ in 0..LINKS_MAX {
        match rustix::fs::readlinkat(CWD, &path[..], Vec::new()) {
            Ok(target) => {
                let target = target.into_bytes();
                path = match (target.starts_with(b"/"), path.iter().rposition(|&b| b == b'/')) {
                    (false, Some(slash)) => [&path[..=slash], &target].concat(),
                    _ => target,
                };
            }
            Err(_) => return Ok(path),
        }
    }
    Err(from_errno(Errno::LOOP, &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_become_holes() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let file = tempfile::tempfile().expect("a file");
        let mut bytes = vec![0; 1 << 20];
        bytes[300_000] = 1;
        let mut position = 5;
        write_sparse(file.as_fd(), &bytes, &mut position).expect("written");
        assert_eq!(position, 5 + (1 << 20));
        file.set_len(position).expect("a length");
        assert!(file.metadata().expect("attributes").blocks() * 512 <= 4 * HOLE_BYTES as u64);
        let mut back = vec![9; 1 << 20];
        file.read_exact_at(&mut back, 5).expect("read");
        assert!(back == bytes);
    }

    #[test]
    fn a_path_is_split() {
        assert_eq!(split(b"/a/b/"), Ok((&b"/a"[..], &b"b"[..])));
        assert_eq!(split(b"/a"), Ok((&b"/"[..], &b"a"[..])));
        assert_eq!(split(b"a"), Ok((&b"."[..], &b"a"[..])));
        for none in [&b"/"[..], b"", b"/a/..", b"."] {
            assert!(split(none).is_err());
        }
    }
}
