//! The index of a git repository, versions 2 to 4.
//!
//! Source: gitformat-index(5). Checksums are not looked at: git may leave them out, and what is damaged
//! is told by what does not parse.

/// The files that are taken.
const ENTRIES_MAX: usize = 500_000;
/// The bytes of all their paths: a path of version 4 may be longer than what it is written with.
const PATHS_BYTES_MAX: usize = 128 << 20;
/// The longest path, in bytes.
const PATH_BYTES_MAX: usize = 4_095;

/// One file as git saw it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the work tree.
    pub path: Vec<u8>,
    /// When it changed: seconds, of which git keeps the low 32 bits.
    pub mtime_sec: u32,
    /// Nanoseconds; 0 where git was built without them.
    pub mtime_nsec: u32,
    /// Type and permissions, as in a tree of git.
    pub mode: u32,
    /// The low 32 bits of its size; 0 where git could not be sure.
    pub size: u32,
    /// The digest of its content.
    pub object: Vec<u8>,
    /// Whether it is one side of a conflict.
    pub conflict: bool,
    /// Whether git was told not to look at it.
    pub skipped: bool,
}

/// The entries by path, or nothing if this is no index. `object_bytes`: 20, or 32 in a repository of SHA-256.
pub(super) fn parse(bytes: &[u8], object_bytes: usize) -> Option<Vec<Entry>> {
    let mut rest = Reader(bytes);
    if rest.take(4)? != b"DIRC" {
        return None;
    }
    let version = rest.number()?;
    let count = rest.number()? as usize;
    if !(2..=4).contains(&version) || count > ENTRIES_MAX {
        return None;
    }
    // An entry takes 62 bytes at least, so a count that is a lie reserves no more than there is.
    let mut entries: Vec<Entry> = Vec::with_capacity(count.min(bytes.len() / 62));
    let mut path: Vec<u8> = Vec::new();
    let mut paths_bytes = 0;
    for _ in 0..count {
        let start = rest.0.len();
        rest.take(8)?; // ctime
        let (mtime_sec, mtime_nsec) = (rest.number()?, rest.number()?);
        rest.take(8)?; // dev, ino
        let mode = rest.number()?;
        rest.take(8)?; // uid, gid
        let size = rest.number()?;
        let object = rest.take(object_bytes)?.to_vec();
        let flags = rest.short()?;
        let more = if version >= 3 && flags & 0x4000 != 0 { rest.short()? } else { 0 };
        if version == 4 {
            let strip = rest.varint()?;
            path.truncate(path.len().checked_sub(strip)?);
        } else {
            path.clear();
        }
        let end = rest.0.iter().position(|&b| b == 0)?;
        path.extend_from_slice(rest.take(end)?);
        rest.take(1)?;
        paths_bytes += path.len();
        if path.len() > PATH_BYTES_MAX || paths_bytes > PATHS_BYTES_MAX {
            return None;
        }
        if version < 4 {
            let taken = start - rest.0.len();
            rest.take(taken.next_multiple_of(8) - taken)?;
        }
        // One that climbs out names nothing of this work tree.
        if !path.split(|&b| b == b'/').all(|name| !name.is_empty() && name != b"." && name != b"..") {
            continue;
        }
        entries.push(Entry {
            path: path.clone(),
            mtime_sec,
            mtime_nsec,
            mode,
            size,
            object,
            conflict: flags & 0x3000 != 0,
            skipped: flags & 0x8000 != 0 || more & 0x4000 != 0,
        });
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Some(entries)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// The number format of packs' offsets: each byte but the last adds one.
    fn varint(&mut self) -> Option<usize> {
        let mut byte = self.take(1)?[0];
        let mut value = usize::from(byte & 127);
        while byte & 128 != 0 {
            byte = self.take(1)?[0];
            value = value.checked_add(1)?.checked_mul(128)?.checked_add(usize::from(byte & 127))?;
        }
        Some(value)
    }
}
