//! Packing a tree: ustar heads, and a pax head before those that ustar cannot say (long names, large
//! numbers, parts of seconds, extended attributes). Names are written as the bytes they are.
//!
//! A file has the size in its head whatever happens to it meanwhile: what it lacks is zeros, what
//! it gained is left out. Sockets are left out, as tar(1) does.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use den_wire::frame::{HEAD_BYTES, head};
use den_wire::{DATA_CHUNK_BYTES, FrameKind};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::super::conn::Blocking;
use super::super::failure::{Outcome, at, failure, from_errno};
use super::tree::{Visit, Walk, open_dir, walk};
use super::write::{open_parent, split};
use super::{kind, xattr};

const BLOCK_BYTES: usize = 512;

/// Sends the archive and its end.
pub fn tar_out(conn: &mut Blocking, path: &[u8], follow: bool) -> Outcome<()> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = rustix::fs::statat(CWD, path, flags).map_err(at(path))?;
    let mut out = Frames { conn, buffer: vec![0; HEAD_BYTES + DATA_CHUNK_BYTES], filled: HEAD_BYTES };
    let name = match split(path) {
        Ok((_, name)) if !path.ends_with(b"/.") => name,
        _ => b".",
    };
    let mut links = HashMap::new();
    if kind(&stat) == FileType::Directory {
        // A link at the path is followed here only if that was asked: else it is no directory.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(at(path))?;
        put(&mut out, root.as_fd(), b".", &[name, b"/"].concat(), &stat, &mut links, path)?;
        walk(root, path, |visit| {
            let Visit::Enter(entry) = visit else { return Ok(Walk::Past) };
            let is_dir = kind(entry.stat) == FileType::Directory;
            let full = [name, b"/", entry.path, if is_dir { b"/" } else { b"" }].concat();
            let about = [path, b"/", entry.path].concat();
            put(&mut out, entry.dir, entry.name, &full, entry.stat, &mut links, &about)?;
            Ok(Walk::Into)
        })?;
    } else if follow {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match kind(&stat) {
            FileType::RegularFile => {
                let file = rustix::fs::open(path, flags, Mode::empty()).map_err(at(path))?;
                put_file(&mut out, file, name, path)?;
            }
            _ => put(&mut out, CWD, path, name, &stat, &mut links, path)?,
        }
    } else {
        let (parent, last) = split(path)?;
        let parent = open_parent(parent, false)?;
        put(&mut out, parent.as_fd(), last, name, &stat, &mut links, path)?;
    }
    out.put(&[0; 2 * BLOCK_BYTES]).and_then(|()| out.finish()).map_err(gone)
}

fn gone(_: io::Error) -> den_wire::agent::Failure {
    failure(den_wire::agent::FailureKind::Other, "connection", None)
}

type Links = HashMap<(u64, u64), Vec<u8>>;

fn put(
    out: &mut Frames<'_>,
    dir: BorrowedFd<'_>,
    name: &[u8],
    full: &[u8],
    stat: &Stat,
    links: &mut Links,
    about: &[u8],
) -> Outcome<()> {
    let failed = |errno| from_errno(errno, about);
    let file_type = kind(stat);
    if stat.st_nlink > 1 && !matches!(file_type, FileType::Directory | FileType::Socket) {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(first) = links.get(&inode) {
            return out.put(&heads(full, stat, b'1', 0, first, &[])).map_err(gone);
        }
        links.insert(inode, full.to_vec());
    }
    let bytes = match file_type {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            return match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                Ok(file) => put_file(out, file, full, about),
                Err(Errno::NOENT | Errno::LOOP) => Ok(()),
                Err(errno) => Err(failed(errno)),
            };
        }
        FileType::Directory => {
            let xattrs = match open_dir(dir, name).and_then(xattr::list) {
                Ok(xattrs) => xattrs,
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            };
            heads(full, stat, b'5', 0, b"", &xattrs)
        }
        FileType::Symlink => match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Ok(target) => heads(full, stat, b'2', 0, target.as_bytes(), &[]),
            Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        },
        FileType::CharacterDevice => heads(full, stat, b'3', 0, b"", &[]),
        FileType::BlockDevice => heads(full, stat, b'4', 0, b"", &[]),
        FileType::Fifo => heads(full, stat, b'6', 0, b"", &[]),
        _ => return Ok(()),
    };
    out.put(&bytes).map_err(gone)
}

fn put_file(out: &mut Frames<'_>, file: OwnedFd, full: &[u8], about: &[u8]) -> Outcome<()> {
    let failed = |errno| from_errno(errno, about);
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    if kind(&stat) != FileType::RegularFile {
        return Ok(());
    }
    let size = stat.st_size as u64;
    let xattrs = xattr::list(&file).map_err(failed)?;
    out.put(&heads(full, &stat, b'0', size, b"", &xattrs)).map_err(gone)?;
    let mut left = size;
    while left > 0 {
        let room = out.room().map_err(gone)?;
        let want = (room.len() as u64).min(left) as usize;
        let read = match rustix::io::read(&file, &mut room[..want]) {
            Ok(0) => {
                room[..want].fill(0);
                want
            }
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        out.filled += read;
        left -= read as u64;
    }
    let padding = (BLOCK_BYTES - (size % BLOCK_BYTES as u64) as usize) % BLOCK_BYTES;
    out.put(&[0; BLOCK_BYTES][..padding]).map_err(gone)
}

/// One entry's head, with a pax head before it where it needs one.
fn heads(path: &[u8], stat: &Stat, flag: u8, size: u64, link: &[u8], xattrs: &[xattr::Xattr]) -> Vec<u8> {
    let mut block = [0; BLOCK_BYTES];
    let mut pax = Vec::new();
    text(&mut block[..100], path, b"path", &mut pax);
    text(&mut block[157..257], link, b"linkpath", &mut pax);
    number(&mut block[100..108], u64::from(stat.st_mode & 0o7777), b"", &mut pax);
    number(&mut block[108..116], u64::from(stat.st_uid), b"uid", &mut pax);
    number(&mut block[116..124], u64::from(stat.st_gid), b"gid", &mut pax);
    number(&mut block[124..136], size, b"size", &mut pax);
    number(&mut block[136..148], stat.st_mtime.max(0) as u64, b"", &mut pax);
    if stat.st_mtime_nsec != 0 || stat.st_mtime < 0 {
        record(&mut pax, b"mtime", decimal_time(stat.st_mtime, stat.st_mtime_nsec as u32).as_bytes());
    }
    let device = if matches!(flag, b'3' | b'4') { stat.st_rdev } else { 0 };
    number(&mut block[329..337], u64::from(rustix::fs::major(device)), b"", &mut pax);
    number(&mut block[337..345], u64::from(rustix::fs::minor(device)), b"", &mut pax);
    for (name, value) in xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    seal(&mut block, flag);
    if pax.is_empty() {
        return block.to_vec();
    }
    let mut before = [0; BLOCK_BYTES];
    before[..8].copy_from_slice(b"./pax/ax");
    number(&mut before[100..108], 0o644, b"", &mut Vec::new());
    for range in [108..116, 116..124, 136..148] {
        number(&mut before[range], 0, b"", &mut Vec::new());
    }
    number(&mut before[124..136], pax.len() as u64, b"", &mut Vec::new());
    seal(&mut before, b'x');
    pax.resize(pax.len().next_multiple_of(BLOCK_BYTES), 0);
    [&before[..], &pax, &block].concat()
}

/// Seconds before the epoch count down, their parts too: -1.5 is `tv_sec` -2, `tv_nsec` 5e8.
fn decimal_time(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (seconds, nanos) if seconds < 0 && nanos > 0 => {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
        }
        (seconds, nanos) => format!("{seconds}.{nanos:09}"),
    }
}

fn text(field: &mut [u8], value: &[u8], key: &[u8], pax: &mut Vec<u8>) {
    let fits = value.len().min(field.len());
    field[..fits].copy_from_slice(&value[..fits]);
    if fits < value.len() {
        record(pax, key, value);
    }
}

fn number(field: &mut [u8], value: u64, key: &[u8], pax: &mut Vec<u8>) {
    let digits = field.len() - 1;
    let octal = format!("{value:0digits$o}");
    if octal.len() <= digits {
        field[..digits].copy_from_slice(octal.as_bytes());
    } else {
        field[..digits].fill(b'0');
        record(pax, key, value.to_string().as_bytes());
    }
}

/// `length key=value\n`, where the length counts itself.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    pax.extend_from_slice(format!("{length} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        pax.extend_from_slice(part);
    }
}

fn seal(block: &mut [u8; BLOCK_BYTES], flag: u8) {
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Data frames, each filled before it is sent.
struct Frames<'a> {
    conn: &'a mut Blocking,
    buffer: Vec<u8>,
    filled: usize,
}

impl Frames<'_> {
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let now = room.len().min(bytes.len());
            room[..now].copy_from_slice(&bytes[..now]);
            self.filled += now;
            bytes = &bytes[now..];
        }
        Ok(())
    }

    /// Where the next bytes go; never empty.
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.send()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn send(&mut self) -> io::Result<()> {
        if self.filled > HEAD_BYTES {
            self.buffer[..HEAD_BYTES].copy_from_slice(&head(FrameKind::Data, self.filled - HEAD_BYTES));
            self.conn.write_all(&self.buffer[..self.filled])?;
            self.filled = HEAD_BYTES;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.send()?;
        self.conn.write_all(&head(FrameKind::End, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for value in [1, 5, 90, 91, 92, 93, 990, 991] {
            let mut pax = Vec::new();
            record(&mut pax, b"key", &vec![b'v'; value]);
            let text = String::from_utf8(pax).expect("ASCII");
            assert_eq!(text.split(' ').next().expect("a length"), text.len().to_string());
        }
    }

    #[test]
    fn a_time_before_the_epoch_counts_down() {
        assert_eq!(decimal_time(-2, 500_000_000), "-1.500000000");
        assert_eq!(decimal_time(7, 5), "7.000000005");
    }
}
