//! What a directory holds.

use den_wire::agent::{FailureKind, Reply};
use rustix::fs::{FileType, Mode, OFlags};

use super::super::conn::Blocking;
use super::super::failure::{Outcome, at, bad, failure};
use super::super::users::Users;
use super::tree::{Visit, Walk, walk};
use super::{describe, kind};

/// How many entries go into one frame.
const ENTRIES_MAX: usize = 1000;

/// How many bytes of paths and targets go into one frame: entries may be long.
const ENTRIES_BYTES_MAX: usize = 256 << 10;

/// Sends `Entries`; the last ones and `Done` follow. Sorted by path, component by component.
pub fn list(conn: &mut Blocking, path: &[u8], depth: u32) -> Outcome<Reply> {
    if depth == 0 {
        return Err(bad("a depth of 0"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(at(path))?;
    let mut users = Users::read();
    let mut batch = Vec::new();
    let mut bytes = 0;
    let gone = || failure(FailureKind::Other, "connection", None);
    walk(root, path, |visit| {
        let Visit::Enter(entry) = visit else { return Ok(Walk::Past) };
        let target = match kind(entry.stat) {
            FileType::Symlink => rustix::fs::readlinkat(entry.dir, entry.name, Vec::new()).ok(),
            _ => None,
        };
        let target = target.map(std::ffi::CString::into_bytes);
        bytes += entry.path.len() + target.as_ref().map_or(0, Vec::len);
        batch.push(describe(entry.path.to_vec(), entry.stat, target, &mut users));
        if batch.len() >= ENTRIES_MAX || bytes >= ENTRIES_BYTES_MAX {
            bytes = 0;
            conn.reply(&Reply::Entries(std::mem::take(&mut batch))).map_err(|_| gone())?;
        }
        Ok(if entry.depth < depth { Walk::Into } else { Walk::Past })
    })?;
    if !batch.is_empty() {
        conn.reply(&Reply::Entries(batch)).map_err(|_| gone())?;
    }
    Ok(Reply::Done)
}
