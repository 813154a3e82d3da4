//! Reading a tar stream: ustar, old GNU (long names, base-256 numbers, sparse files) and pax.
//!
//! Heads are taken apart by the `tar` crate. Its reader is not used: it ends a pax record at the
//! first newline, which names and extended attributes may hold.

use std::io::{self, Read};

use rustix::fs::Timespec;
use tar::{EntryType, Header};

use super::xattr::Xattr;

const BLOCK_BYTES: usize = 512;

/// The longest pax head or long name, in bytes: extended attributes are at most 64 KiB each.
const META_BYTES_MAX: u64 = 4 << 20;

/// The most pieces of a sparse file.
const PIECES_MAX: usize = 1 << 20;

/// One member of an archive; its data is read from the reader before the next member is.
pub struct Member {
    /// Its head: mode, type, and numbers that pax does not override.
    pub header: Header,
    /// Its name as it is written.
    pub path: Vec<u8>,
    /// What it links to.
    pub link: Option<Vec<u8>>,
    /// What a pax head says.
    pub pax: Pax,
    /// Its size once unpacked.
    pub size: u64,
    /// Where its data goes: offset and length of each piece.
    pub pieces: Vec<(u64, u64)>,
}

/// What a pax head says beyond the ordinary one.
#[derive(Default)]
pub struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    /// Its owner.
    pub uid: Option<u32>,
    /// Its group.
    pub gid: Option<u32>,
    /// Its modification time.
    pub mtime: Option<Timespec>,
    /// Its extended attributes.
    pub xattrs: Vec<Xattr>,
}

/// Reads members off a stream.
pub struct Reader<R> {
    from: R,
    /// Data of the present member that has not been read.
    left: u64,
    /// Zeros after it.
    padding: u64,
}

impl<R: Read> Reader<R> {
    /// Begins.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next member; `None` at the archive's end.
    ///
    /// Errors: `Unsupported` for sparse files in pax format; `InvalidData` for what is no archive.
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        let (mut pax, mut long_path, mut long_link) = (Pax::default(), None, None);
        loop {
            let rest = self.left.saturating_add(self.padding);
            (self.left, self.padding) = (0, 0);
            if io::copy(&mut (&mut self.from).take(rest), &mut io::sink())? < rest {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            match header.entry_type() {
                EntryType::XHeader => pax = parse_pax(&self.meta(size)?)?,
                EntryType::GNULongName => long_path = Some(until_nul(self.meta(size)?)),
                EntryType::GNULongLink => long_link = Some(until_nul(self.meta(size)?)),
                EntryType::XGlobalHeader => drop(self.meta(size)?),
                kind => {
                    let mut size = match kind {
                        // Some writers give links the size of what they link to, and no data.
                        EntryType::Link | EntryType::Symlink | EntryType::Directory | EntryType::Fifo => 0,
                        _ => pax.size.unwrap_or(size),
                    };
                    let (stored, mut pieces) = (size, vec![(0, size)]);
                    if kind == EntryType::GNUSparse {
                        (size, pieces) = self.sparse(&header, size)?;
                    }
                    self.expect(stored);
                    let path = pax.path.take().or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
                    let header_link = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
                    let link = pax.link.take().or(long_link).or_else(header_link);
                    return Ok(Some(Member { path, link, pax, size, pieces, header }));
                }
            }
        }
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK_BYTES];
        if self.from.read(&mut block[..1])? == 0 {
            return Ok(None);
        }
        self.from.read_exact(&mut block[1..])?;
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|&b| u32::from(b)).sum::<u32>() + 8 * 32;
        if header.cksum()? != sum {
            return Err(invalid("a head whose sum is wrong"));
        }
        Ok(Some(header))
    }

    fn meta(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > META_BYTES_MAX {
            return Err(invalid("a head that is too long"));
        }
        self.expect(size);
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn sparse(&mut self, header: &Header, stored: u64) -> io::Result<(u64, Vec<(u64, u64)>)> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file without a map"))?;
        let size = gnu.real_size()?;
        let mut pieces = Vec::new();
        let mut add = |list: &[tar::GnuSparseHeader]| -> io::Result<()> {
            for piece in list.iter().filter(|piece| !piece.is_empty()) {
                pieces.push((piece.offset()?, piece.length()?));
            }
            if pieces.len() > PIECES_MAX { Err(invalid("a sparse file of too many pieces")) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.from.read_exact(block.as_mut_bytes())?;
            add(block.sparse())?;
            more = block.is_extended();
        }
        let mut end = 0;
        let mut total = 0;
        for &(offset, length) in &pieces {
            end = match offset.checked_add(length) {
                Some(next) if offset >= end && next <= size => next,
                _ => return Err(invalid("a sparse file whose map is out of order")),
            };
            total += length;
        }
        if total == stored { Ok((size, pieces)) } else { Err(invalid("a sparse file of another size than its map")) }
    }
}

impl<R: Read> Read for Reader<R> {
    /// Data of the present member, holes left out.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// Records `length key=value\n`, where the length counts all of it and the value may hold anything.
fn parse_pax(mut bytes: &[u8]) -> io::Result<Pax> {
    let mut pax = Pax::default();
    let broken = || invalid("a pax record that is none");
    while !bytes.is_empty() {
        let space = bytes.iter().position(|&b| b == b' ').ok_or_else(broken)?;
        let length: usize = word(&bytes[..space]).parse().map_err(|_| broken())?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(broken());
        }
        let (record, rest) = (&bytes[space + 1..length - 1], &bytes[length..]);
        let equals = record.iter().position(|&b| b == b'=').ok_or_else(broken)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => pax.path = Some(value.to_vec()),
            b"linkpath" => pax.link = Some(value.to_vec()),
            b"size" => pax.size = Some(word(value).parse().map_err(|_| broken())?),
            b"uid" => pax.uid = Some(word(value).parse().map_err(|_| broken())?),
            b"gid" => pax.gid = Some(word(value).parse().map_err(|_| broken())?),
            b"mtime" => pax.mtime = Some(parse_time(word(value)).ok_or_else(broken)?),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "a sparse file in pax format"));
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        bytes = rest;
    }
    Ok(pax)
}

fn word(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn parse_time(text: &str) -> Option<Timespec> {
    let (digits, negative) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let seconds: i64 = whole.parse().ok().filter(|&seconds: &i64| seconds >= 0)?;
    if !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    let (seconds, nanos) = match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    };
    Some(Timespec { tv_sec: seconds, tv_nsec: nanos as _ })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_value_may_hold_newlines() {
        let pax = parse_pax(b"16 path=a\nb=c 1\n26 SCHILY.xattr.user.x=\0\n\n").map_err(|error| error.to_string());
        assert_eq!(
            pax.map(|pax| (pax.path, pax.xattrs)),
            Ok((Some(b"a\nb=c 1".to_vec()), vec![(b"user.x".to_vec(), b"\0\n".to_vec())]))
        );
        for broken in [&b"5 a=b"[..], b"x a=b\n", b"99 a=b\n", b"0 a=b\n", b"5 ab\n", b"\n"] {
            assert!(parse_pax(broken).is_err());
        }
    }

    #[test]
    fn times_are_read() {
        let time = |text| parse_time(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("-1.500000000"), Some((-2, 500_000_000)));
        assert_eq!(time("7"), Some((7, 0)));
        assert_eq!(time("1.0000000019"), Some((1, 1)));
        for none in ["", "x", "1.x", "--1", "1.5.5"] {
            assert_eq!(time(none), None);
        }
    }
}
