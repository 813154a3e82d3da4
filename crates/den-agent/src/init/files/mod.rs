//! Operations on files, each on a thread of its own that blocks as it likes: on a slow disk, on a
//! FUSE file system, on a host that does not read. Closing the connection ends it.
//!
//! Paths are bytes and are resolved as for root inside; those that do not begin with `/` begin there.
//! Trees are walked with descriptors and a stack on the heap: no depth overflows the thread's own
//! stack, and a directory that is swapped for a link meanwhile leads nowhere else.

mod apply;
mod copy;
mod edit;
mod list;
mod read;
mod tar_in;
mod tar_out;
mod tar_read;
mod tree;
mod watch;
mod write;
mod xattr;

use den_wire::agent::{FileStat, Reply, Request};
use minicbor::bytes::ByteVec;
use rustix::fs::{AtFlags, CWD, FileType, Stat};

use super::conn::Blocking;
use super::failure::{Outcome, at, bad};
use super::users::Users;

/// Runs one operation and answers it.
pub fn run(request: Request, mut conn: Blocking) {
    let done = match request {
        Request::Read { path, offset, length } => read::read(&mut conn, &path, offset, length),
        Request::Write(write) => write::write(&mut conn, &write).map(Some),
        Request::Stat { path, follow } => stat(&path, follow).map(|stat| Some(Reply::Stat(stat))),
        Request::List { path, depth } => list::list(&mut conn, &path, depth).map(Some),
        Request::MakeDir { path, mode, parents, owner } => {
            edit::make_dir(&path, mode, parents, owner.as_deref()).map(done)
        }
        Request::Move { from, to } => edit::rename(&from, &to).map(done),
        Request::Remove { path, recursive } => edit::remove(&path, recursive).map(done),
        Request::Chmod { path, mode, recursive } => edit::chmod(&path, mode, recursive).map(done),
        Request::Chown { path, owner, recursive } => edit::chown(&path, &owner, recursive).map(done),
        Request::Symlink { path, target } => {
            rustix::fs::symlinkat(&target[..], CWD, &path[..]).map_err(at(&path)).map(done)
        }
        Request::Watch { path, recursive, plain } => watch::watch(&mut conn, &path, recursive, plain).map(|()| None),
        Request::TarOut { path, follow } => tar_out::tar_out(&mut conn, &path, follow).map(|()| None),
        Request::TarIn { path, owner, rename } => {
            tar_in::tar_in(&mut conn, &path, owner.as_deref(), rename.as_ref().map(|name| &name[..])).map(done)
        }
        Request::Attributes { paths, prefix } => {
            xattr::of_paths(&paths, &prefix).map(|all| Some(Reply::Attributes(all)))
        }
        Request::Apply(request) => apply::apply(&mut conn, &request).map(done),
        // Answered on the one thread.
        _ => Err(bad("request")),
    };
    match done {
        // A host that is gone is told nothing.
        Ok(Some(reply)) => drop(conn.reply(&reply)),
        Ok(None) => {}
        Err(failure) => drop(conn.reply(&Reply::Failed(failure))),
    }
}

fn done(_: ()) -> Option<Reply> {
    Some(Reply::Done)
}

fn stat(path: &[u8], follow: bool) -> Outcome<FileStat> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = rustix::fs::statat(CWD, path, flags).map_err(at(path))?;
    let target = match kind(&stat) {
        FileType::Symlink => rustix::fs::readlinkat(CWD, path, Vec::new()).ok().map(std::ffi::CString::into_bytes),
        _ => None,
    };
    Ok(describe(path.to_vec(), &stat, target, &mut Users::read()))
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn describe(path: Vec<u8>, stat: &Stat, target: Option<Vec<u8>>, users: &mut Users) -> FileStat {
    FileStat {
        path: ByteVec::from(path),
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        mtime: stat.st_mtime.saturating_mul(1_000_000).saturating_add(stat.st_mtime_nsec as i64 / 1000),
        target: target.map(ByteVec::from),
        user: users.user_name(stat.st_uid),
        group: users.group_name(stat.st_gid),
        inode: stat.st_ino,
        links: stat.st_nlink,
        blocks: stat.st_blocks as u64,
    }
}
