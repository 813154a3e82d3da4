//! Whether two files hold the same bytes. Neither a number of an inode nor a time is trusted: forks that
//! run the same command get the same ones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::HistoryError;
use crate::view::{Meta, View};

/// Bytes that are compared at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// An entry of a state.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub view: &'a View,
    pub path: &'a Path,
    pub meta: &'a Meta,
}

impl<'a> Place<'a> {
    pub(crate) fn of(view: &'a View, path: &'a Path, meta: &'a Meta) -> Self {
        Self { view, path, meta }
    }
}

/// Takes `bytes` off, if there are as many.
pub(crate) fn spend(left: &mut u64, bytes: u64) -> bool {
    let enough = *left >= bytes;
    if enough {
        *left -= bytes;
    }
    enough
}

/// Compares two regular files; beyond `left` bytes their times tell.
pub(crate) fn same_bytes(old: Place<'_>, new: Place<'_>, left: &mut u64) -> Result<bool, HistoryError> {
    let size = old.meta.size;
    if size != new.meta.size {
        return Ok(false);
    }
    if size == 0 {
        return Ok(true);
    }
    let (first, second) = (old.view.open_file(old.path)?, new.view.open_file(new.path)?);
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        // Where both have a hole there is nothing to compare, and a hole may be long.
        if size > CHUNK_BYTES as u64 {
            at = data_from(&first, at, size, old.path)?.min(data_from(&second, at, size, new.path)?);
        }
        if at >= size {
            return Ok(true);
        }
        let length = (size - at).min(CHUNK_BYTES as u64);
        if !spend(left, length) {
            return Ok(old.meta.mtime == new.meta.mtime);
        }
        one.resize(length as usize, 0);
        other.resize(length as usize, 0);
        first.read_exact_at(&mut one, at).map_err(HistoryError::io("reading", old.path))?;
        second.read_exact_at(&mut other, at).map_err(HistoryError::io("reading", new.path))?;
        if one != other {
            return Ok(false);
        }
        at += length;
    }
}

/// Where the next bytes that are no hole begin, from `at` on; `size` where there are none.
fn data_from(file: &File, at: u64, size: u64, path: &Path) -> Result<u64, HistoryError> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data),
        Err(Errno::NXIO) => Ok(size),
        Err(Errno::INVAL) => Ok(at),
        Err(errno) => Err(HistoryError::call("lseek(SEEK_DATA)", path)(errno)),
    }
}
