//! A tar as a stream of members.
//!
//! ```text
//! [x: pax][L: long name][K: long link] header ─► Member ─► read_data … ─► next header
//! ```
//!
//! Reads ustar, GNU (long names, base-256 numbers, sparse) and pax (all attributes binary-safe,
//! sparse 0.1 and 1.0). The field formats are the `tar` crate's; the loop is ours, since that crate
//! cuts pax values at line ends (capabilities hold such bytes) and reads extension headers of any
//! length into memory.
//!
//! Invariants: an extension header is at most [`EXTENSION_BYTES_MAX`] long, and names the very next
//! member only. Source: pax(1), POSIX.1-2024; GNU tar manual, "Sparse Formats".

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, Header};

use crate::{
    ImageError,
    decode::read_error,
    limits::{SPARSE_PIECES_MAX, XATTR_BYTES_MAX},
};

/// One extension header: a path, a link and a handful of attributes.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Symlink,
    HardLink,
    Fifo,
    Device,
}

/// One member's header, extensions applied.
#[derive(Debug)]
pub(crate) struct Member {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// The file's length, holes included.
    pub size: u64,
    pub link: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of each piece that the tape has data for, in order.
    pub pieces: Vec<(u64, u64)>,
}

/// What the extension headers say of the next member.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_major: Option<u64>,
    sparse_map: Option<Vec<u8>>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
}

/// Reads members in order.
pub(crate) struct Tape<R> {
    source: R,
    /// Data of the present member not read yet.
    left: u64,
    /// Bytes that fill its last block.
    padding: u64,
}

fn bad(reason: impl Into<String>) -> ImageError {
    ImageError::BadLayer(reason.into())
}

impl<R: Read> Tape<R> {
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0 }
    }

    /// Gives the source back, for what follows the end.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// The source, to ask it how far it is.
    pub fn get_ref(&self) -> &R {
        &self.source
    }

    /// The next member; `None` at the end. What is left of the last one's data is passed over.
    pub fn next(&mut self) -> Result<Option<Member>, ImageError> {
        let mut extension = Extension::default();
        let mut extended = false;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return if extended { Err(bad("its tar ends after an extension header")) } else { Ok(None) };
            };
            let size = header.entry_size().map_err(read_error)?;
            let kind = header.entry_type().as_byte();
            if matches!(kind, b'x' | b'g' | b'L' | b'K') {
                if size > EXTENSION_BYTES_MAX {
                    return Err(ImageError::TooLarge {
                        what: "bytes in a tar extension header",
                        limit: "1 MiB".into(),
                    });
                }
                self.begin(size);
                let mut text = vec![0; size as usize];
                self.source.read_exact(&mut text).map_err(read_error)?;
                self.left = 0;
                extended = extended || kind != b'g';
                match kind {
                    b'x' => extension.read(&text)?,
                    b'L' => extension.path = Some(until_zero(&text).to_vec()),
                    b'K' => extension.link = Some(until_zero(&text).to_vec()),
                    // Global headers carry comments, such as git's commit id.
                    _ => {}
                }
                continue;
            }
            return self.member(&header, extension).map(Some);
        }
    }

    /// Reads data of the present member, at most `buffer`; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        loop {
            match self.source.read(&mut buffer[..want]) {
                Ok(0) => return Err(bad("it is cut short")),
                Ok(count) => {
                    self.left -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn skip_rest(&mut self) -> Result<(), ImageError> {
        let mut buffer = [0; 32 << 10];
        while self.read_data(&mut buffer)? > 0 {}
        let padding = std::mem::take(&mut self.padding) as usize;
        self.source.read_exact(&mut buffer[..padding]).map_err(read_error)
    }

    /// The next header block. A tar ends with zeros; one that just ends is taken as ended too.
    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while have < block.len() {
            match self.source.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(bad("it is cut short")),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|&b| u32::from(b)).sum::<u32>() + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(bad("it is no tar, or a header in it is damaged"));
        }
        Ok(Some(header))
    }

    fn member(&mut self, header: &Header, extension: Extension) -> Result<Member, ImageError> {
        let path = match (extension.sparse_name, extension.path) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => header.path_bytes().into_owned(),
        };
        let link =
            extension.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned())).unwrap_or_default();
        let letter = header.entry_type().as_byte();
        let kind = match letter {
            // An old tar marks a folder by the slash alone.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            other => return Err(bad(format!("`{}` has the unknown tar type {other:#04x}", show(&path)))),
        };
        let stored = extension.size.unwrap_or(header.entry_size().map_err(read_error)?);
        if i64::try_from(stored).is_err() {
            return Err(bad(format!("`{}` claims {stored} bytes", show(&path))));
        }
        // Only these have data; the size of a link may be its target's.
        let mut data = if matches!(kind, Kind::File) { stored } else { 0 };
        if matches!(letter, b'5' | 0 | b'0' | b'7') && kind == Kind::Folder {
            data = stored;
        }
        self.begin(data);
        let id = |pax: Option<u64>, field: io::Result<u64>| -> Result<u32, ImageError> {
            let id = pax.map_or(field, Ok).map_err(read_error)?;
            u32::try_from(id)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or_else(|| bad(format!("`{}` has the owner {id}", show(&path))))
        };
        let (uid, gid) = (id(extension.uid, header.uid())?, id(extension.gid, header.gid())?);
        let mtime = match extension.mtime {
            Some(mtime) => mtime,
            None => (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0),
        };
        let mut member = Member {
            kind,
            mode: header.mode().map_err(read_error)? & 0o7777,
            uid,
            gid,
            mtime,
            size: data,
            link,
            xattrs: extension.xattrs,
            pieces: if data > 0 { vec![(0, data)] } else { Vec::new() },
            path,
        };
        if kind == Kind::File {
            if letter == b'S' {
                (member.size, member.pieces) = self.gnu_sparse(header)?;
            } else if let Some(map) = &extension.sparse_map {
                member.size = extension.sparse_size.unwrap_or(data);
                member.pieces = pieces_of(map.split(|&b| b == b',').map(number))?;
            } else if extension.sparse_major == Some(1) {
                member.size = extension.sparse_size.unwrap_or(data);
                member.pieces = self.pax_sparse()?;
            }
            check_pieces(&member, self.left)?;
        }
        Ok(member)
    }

    /// The old GNU format: pieces in the header and in blocks after it, before the data.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>), ImageError> {
        let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file without a GNU header"))?;
        let mut pieces = Vec::new();
        let mut add = |piece: &tar::GnuSparseHeader| -> Result<(), ImageError> {
            if !piece.is_empty() {
                if pieces.len() == SPARSE_PIECES_MAX {
                    return Err(ImageError::TooLarge { what: "pieces in a sparse file", limit: "1,048,576".into() });
                }
                pieces.push((piece.offset().map_err(read_error)?, piece.length().map_err(read_error)?));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.source.read_exact(block.as_mut_bytes()).map_err(read_error)?;
            block.sparse.iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        Ok((gnu.real_size().map_err(read_error)?, pieces))
    }

    /// The pax format 1.0: the data begins with a map, decimal numbers a line, filled to a block.
    fn pax_sparse(&mut self) -> Result<Vec<(u64, u64)>, ImageError> {
        let mut block = [0; BLOCK as usize];
        let mut text = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut have = 0;
            while have < block.len() {
                match self.read_data(&mut block[have..])? {
                    0 => return Err(bad("the map of a sparse file is cut short")),
                    count => have += count,
                }
            }
            for &byte in &block {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    text.push(byte);
                    if text.len() > 20 {
                        return Err(bad("the map of a sparse file is no list of numbers"));
                    }
                    continue;
                }
                let value = number(&text).ok_or_else(|| bad("the map of a sparse file is no list of numbers"))?;
                text.clear();
                if numbers.is_empty() {
                    if value > SPARSE_PIECES_MAX as u64 {
                        return Err(ImageError::TooLarge {
                            what: "pieces in a sparse file",
                            limit: "1,048,576".into(),
                        });
                    }
                    wanted = 1 + 2 * value as usize;
                }
                numbers.push(value);
            }
        }
        pieces_of(numbers.into_iter().skip(1).map(Some))
    }
}

impl Extension {
    /// Takes the records of one pax header: `LENGTH KEY=VALUE\n`, where LENGTH counts all of it.
    fn read(&mut self, mut text: &[u8]) -> Result<(), ImageError> {
        let malformed = || bad("a pax header is malformed");
        while !text.is_empty() && text[0] != 0 {
            let space = text.iter().position(|&b| b == b' ').ok_or_else(malformed)?;
            let length = number(&text[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(malformed)?;
            if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &text[space + 1..length - 1];
            text = &text[length..];
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let numeric = || number(value).map(Some).ok_or_else(malformed);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = numeric()?,
                b"uid" => self.uid = numeric()?,
                b"gid" => self.gid = numeric()?,
                b"mtime" => self.mtime = Some(time(value).ok_or_else(malformed)?),
                b"GNU.sparse.major" => self.sparse_major = numeric()?,
                b"GNU.sparse.map" => self.sparse_map = Some(value.to_vec()),
                b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = numeric()?,
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        if value.len() > XATTR_BYTES_MAX {
                            return Err(ImageError::TooLarge {
                                what: "bytes in an extended attribute",
                                limit: "64 KiB".into(),
                            });
                        }
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// A path for people.
pub(crate) fn show(path: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(path).into_owned();
    text.retain(|c| !c.is_control());
    if text.len() > 200 {
        text.truncate(text.floor_char_boundary(200));
        text.push('…');
    }
    text
}

fn until_zero(text: &[u8]) -> &[u8] {
    &text[..text.iter().position(|&b| b == 0).unwrap_or(text.len())]
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-12.5` as seconds and the nanoseconds after them.
fn time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(if whole.starts_with('-') && nanoseconds > 0 {
        (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)
    } else {
        (seconds, nanoseconds)
    })
}

fn pieces_of(mut numbers: impl Iterator<Item = Option<u64>>) -> Result<Vec<(u64, u64)>, ImageError> {
    let mut pieces = Vec::new();
    while let Some(offset) = numbers.next() {
        match (offset, numbers.next().flatten()) {
            (Some(offset), Some(length)) if pieces.len() < SPARSE_PIECES_MAX => pieces.push((offset, length)),
            _ => return Err(bad("the map of a sparse file is no list of pairs")),
        }
    }
    Ok(pieces)
}

/// Pieces are in order, within the file, and as long together as the data that follows.
fn check_pieces(member: &Member, data: u64) -> Result<(), ImageError> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for &(offset, length) in &member.pieces {
        let next = offset.checked_add(length).filter(|&next| offset >= end && next <= member.size);
        let Some(next) = next else {
            return Err(bad(format!("the pieces of the sparse file `{}` overlap", show(&member.path))));
        };
        end = next;
        total += length;
    }
    if total != data || i64::try_from(member.size).is_err() {
        return Err(bad(format!("the pieces of the sparse file `{}` are not its data", show(&member.path))));
    }
    Ok(())
}
