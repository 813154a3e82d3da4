//! Reading a file.

use std::io::Write;

use den_wire::agent::{FailureKind, Reply};
use den_wire::frame::{HEAD_BYTES, head};
use den_wire::{DATA_CHUNK_BYTES, FrameKind};
use rustix::fs::{FileType, Mode, OFlags};

use super::super::conn::Blocking;
use super::super::failure::{Outcome, at, failure, text};
use super::super::users::Users;
use super::{describe, kind};

/// Sends `Stat`, the data and its end.
pub fn read(conn: &mut Blocking, path: &[u8], offset: u64, length: Option<u64>) -> Outcome<Option<Reply>> {
    // Without O_NONBLOCK opening a FIFO waits for its other side.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let is_no_file = |errno: rustix::io::Errno| match errno {
        // A socket says ENXIO, and so does a device without a driver.
        rustix::io::Errno::NXIO | rustix::io::Errno::NODEV => {
            failure(FailureKind::NotAFile, text(path), Some(errno.raw_os_error()))
        }
        errno => at(path)(errno),
    };
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(is_no_file)?;
    let stat = rustix::fs::fstat(&file).map_err(at(path))?;
    match kind(&stat) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(failure(FailureKind::IsADirectory, text(path), None)),
        _ => return Err(failure(FailureKind::NotAFile, text(path), None)),
    }
    let stat = describe(path.to_vec(), &stat, None, &mut Users::read());
    if conn.reply(&Reply::Stat(stat)).is_err() {
        return Ok(None);
    }
    let mut position = offset;
    let mut left = length.unwrap_or(u64::MAX);
    let mut frame = Vec::new();
    while left > 0 {
        let want = left.min(DATA_CHUNK_BYTES as u64) as usize;
        if frame.is_empty() {
            frame.resize(HEAD_BYTES + want, 0);
        }
        if position > i64::MAX as u64 {
            break;
        }
        let read = match rustix::io::pread(&file, &mut frame[HEAD_BYTES..HEAD_BYTES + want], position) {
            Ok(0) => break,
            Ok(read) => read,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(at(path)(errno)),
        };
        frame[..HEAD_BYTES].copy_from_slice(&head(FrameKind::Data, read));
        if conn.write_all(&frame[..HEAD_BYTES + read]).is_err() {
            return Ok(None);
        }
        position += read as u64;
        left -= read as u64;
    }
    let _ = conn.write_all(&head(FrameKind::End, 0));
    Ok(None)
}
