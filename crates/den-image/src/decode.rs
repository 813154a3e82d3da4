//! From bytes as they travel to the bytes of a tar: decompressing, counting, hashing.
//!
//! ```text
//! source ─► Counted ─► gzip | zstd | as it is ─► Guarded ─► Hashed ─► tape
//!              └────────── bytes in ─────────────────┘
//! ```
//!
//! Invariant: no more than `ratio_max` bytes come out for one that went in, once `ratio_free_bytes` are out.

use std::{
    cell::Cell,
    fmt,
    io::{self, BufReader, Read},
    rc::Rc,
};

use sha2::{Digest as _, Sha256};

use crate::{ImageError, UnpackLimits};

const BUFFER_BYTES: usize = 128 << 10;

/// Carried inside an `io::Error` through the decoders.
#[derive(Debug)]
struct Bomb(u64);

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} bytes come out for one that goes in", self.0)
    }
}
impl std::error::Error for Bomb {}

/// Tells what an error while reading a layer means: a bomb, a broken layer, or a source that failed.
pub(crate) fn read_error(error: io::Error) -> ImageError {
    if let Some(Bomb(ratio)) = error.get_ref().and_then(|inner| inner.downcast_ref::<Bomb>()) {
        return ImageError::TooLarge { what: "bytes for its compressed size", limit: format!("{ratio} to 1") };
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::BadLayer("it is cut short".to_owned()),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => ImageError::BadLayer(error.to_string()),
        // zstd reports what it dislikes as `Other`.
        io::ErrorKind::Other if error.raw_os_error().is_none() => ImageError::BadLayer(error.to_string()),
        _ => ImageError::Stream(error),
    }
}

/// Counts what passes.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Stops a bomb.
struct Guarded<R> {
    inner: R,
    bytes_in: Rc<Cell<u64>>,
    bytes_out: u64,
    limits: UnpackLimits,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes_out += count as u64;
        if self.bytes_out > self.limits.ratio_free_bytes.0
            && self.bytes_out / self.limits.ratio_max.max(1) > self.bytes_in.get()
        {
            return Err(io::Error::other(Bomb(self.limits.ratio_max)));
        }
        Ok(count)
    }
}

/// The decompressed bytes of one layer, hashed on their way.
pub(crate) struct Layer<'a> {
    inner: Box<dyn Read + 'a>,
    hash: Sha256,
    bytes_in: Rc<Cell<u64>>,
}

impl<'a> Layer<'a> {
    /// Finds out by the first bytes how `source` is compressed.
    pub fn open(source: impl Read + 'a, limits: UnpackLimits) -> Result<Self, ImageError> {
        let bytes_in = Rc::new(Cell::new(0));
        let mut source = Counted { inner: source, count: bytes_in.clone() };
        let mut magic = [0; 6];
        let mut have = 0;
        while have < magic.len() {
            match source.read(&mut magic[have..]) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::Stream(error)),
            }
        }
        let source = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(magic[..have].to_vec()).chain(source));
        let guard = |inner: Box<dyn Read + 'a>| -> Box<dyn Read + 'a> {
            Box::new(Guarded { inner, bytes_in: bytes_in.clone(), bytes_out: 0, limits })
        };
        let inner: Box<dyn Read + 'a> = match magic {
            [0x1f, 0x8b, ..] => {
                let out = flate2::bufread::MultiGzDecoder::new(source);
                Box::new(BufReader::with_capacity(BUFFER_BYTES, guard(Box::new(out))))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let out = zstd::stream::read::Decoder::with_buffer(source).map_err(read_error)?;
                Box::new(BufReader::with_capacity(BUFFER_BYTES, guard(Box::new(out))))
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => {
                return Err(ImageError::Unsupported(
                    "it is compressed with xz; recompress it with gzip or zstd".into(),
                ));
            }
            [b'B', b'Z', b'h', ..] => {
                return Err(ImageError::Unsupported(
                    "it is compressed with bzip2; recompress it with gzip or zstd".into(),
                ));
            }
            _ => Box::new(source),
        };
        Ok(Self { inner, hash: Sha256::new(), bytes_in })
    }

    /// Bytes taken from the source so far.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.get()
    }

    /// Reads what follows the tar's end, which the digest covers too, and returns the digest in hex.
    pub fn finish(mut self) -> Result<String, ImageError> {
        let mut rest = vec![0; BUFFER_BYTES];
        loop {
            match self.read(&mut rest) {
                Ok(0) => return Ok(hex(&self.hash.finalize())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
    }
}

impl Read for Layer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char]).collect()
}

/// The SHA-256 of `bytes` in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The hex part of `sha256:<64 hex digits>`; anything else is refused, so that it can name a file.
pub(crate) fn digest_hex(digest: &str) -> Result<&str, ImageError> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => Ok(hex),
        _ => Err(ImageError::BadLayer(format!("`{digest}` is no sha256 digest"))),
    }
}
