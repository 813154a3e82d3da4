//! The btrfs calls that Den needs: subvolumes, their snapshots and deletion, what was written since a
//! transaction, simple quotas.
//!
//! Source: linux/btrfs.h; simple quotas need Linux 6.7.

mod settled;

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

pub use self::settled::{Snapshot, begin_snapshot};
use crate::SysError;

const SUBVOL_CREATE: libc::Ioctl = 0x5000_940e_u32 as libc::Ioctl;
const SNAP_DESTROY: libc::Ioctl = 0x5000_940f_u32 as libc::Ioctl;
const INO_LOOKUP: libc::Ioctl = 0xd000_9412_u32 as libc::Ioctl;
const QUOTA_CTL: libc::Ioctl = 0xc010_9428_u32 as libc::Ioctl;
const QGROUP_LIMIT: libc::Ioctl = 0x8030_942b_u32 as libc::Ioctl;
const QGROUP_ASSIGN: libc::Ioctl = 0x4018_9429_u32 as libc::Ioctl;
const QGROUP_CREATE: libc::Ioctl = 0x4010_942a_u32 as libc::Ioctl;
const SNAP_CREATE_V2: libc::Ioctl = 0x5000_9417_u32 as libc::Ioctl;
const GET_SUBVOL_INFO: libc::Ioctl = 0x81f8_943c_u32 as libc::Ioctl;
const SUBVOL_GETFLAGS: libc::Ioctl = 0x8008_9419_u32 as libc::Ioctl;
const SUBVOL_SETFLAGS: libc::Ioctl = 0x4008_941a_u32 as libc::Ioctl;
const START_SYNC: libc::Ioctl = 0x8008_9418_u32 as libc::Ioctl;
const WAIT_SYNC: libc::Ioctl = 0x4008_9416_u32 as libc::Ioctl;
const TREE_SEARCH_V2: libc::Ioctl = 0xc070_9411_u32 as libc::Ioctl;
const INO_PATHS: libc::Ioctl = 0xc038_9423_u32 as libc::Ioctl;

const SUBVOL_READ_ONLY: u64 = 1 << 1;
/// The inode of a subvolume's own directory; those above [`LAST_INODE`] are the kernel's.
const FIRST_INODE: u64 = 256;
const LAST_INODE: u64 = u64::MAX - 256;
/// Kinds of items: btrfs_tree.h.
const INODE_ITEM: u32 = 1;
const INODE_REF: u32 = 12;
const INODE_EXTREF: u32 = 13;
const DIR_ITEM: u32 = 84;
/// Words that one search may bring; the largest item is a node of 64 KiB.
const SEARCH_WORDS: usize = (128 << 10) / 8;

const QUOTA_CTL_ENABLE_SIMPLE: u64 = 4;
const LIMIT_MAX_EXCL: u64 = 1 << 1;
const LIMIT_MAX_RFER: u64 = 1 << 0;

/// The statfs magic of btrfs.
pub const MAGIC: u32 = 0x9123_683e;

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct InoLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct QuotaCtl {
    command: u64,
    status: u64,
}

#[repr(C)]
struct QgroupLimit {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

#[repr(C)]
struct QgroupAssign {
    assign: u64,
    member: u64,
    group: u64,
}

#[repr(C)]
struct QgroupCreate {
    create: u64,
    qgroup: u64,
}

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

#[repr(C)]
struct SubvolInfo([u64; 63]);

/// Where the names of an inode go.
#[repr(C)]
struct Names([u64; 4096 / 8]);

#[repr(C)]
struct InoPaths {
    inode: u64,
    size: u64,
    reserved: [u64; 4],
    names: u64,
}

#[repr(C)]
struct Search<const WORDS: usize> {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    kinds: [u32; 2],
    items: u32,
    unused: u32,
    reserved: [u64; 4],
    size: u64,
    found: [u64; WORDS],
}

impl<const WORDS: usize> Search<WORDS> {
    /// For what lies between two keys (object, kind, offset), in leaves written by `least` or later.
    fn new(from: (u64, u32, u64), to: (u64, u32, u64), least: u64) -> Box<Self> {
        Box::new(Self {
            tree: 0,
            objects: [from.0, to.0],
            offsets: [from.2, to.2],
            transactions: [least, u64::MAX],
            kinds: [from.1, to.1],
            items: u32::MAX,
            unused: 0,
            reserved: [0; 4],
            size: (WORDS * 8) as u64,
            found: [0; WORDS],
        })
    }

    /// Searches the subvolume of `directory`; hands what was found to `take` and says what the last was.
    fn run(
        &mut self,
        directory: BorrowedFd<'_>,
        mut take: impl FnMut(&Header, &[u8]),
    ) -> Result<Option<Header>, SysError> {
        self.items = u32::MAX;
        self.size = (WORDS * 8) as u64;
        // SAFETY: the ioctl reads a btrfs_ioctl_search_args_v2, whose layout Search has up to `size`, and
        // writes at most `size` bytes behind it, which `found` has.
        let result = unsafe { libc::ioctl(directory.as_raw_fd(), TREE_SEARCH_V2, self as *mut Self) };
        if result != 0 {
            return Err(SysError::last("ioctl(BTRFS_TREE_SEARCH_V2)", ""));
        }
        // SAFETY: the array lives in `self`, and every bit pattern of it is bytes.
        let bytes = unsafe { std::slice::from_raw_parts(self.found.as_ptr().cast::<u8>(), WORDS * 8) };
        let (mut at, mut last) = (0, None);
        for _ in 0..self.items {
            let Some(head) = bytes.get(at..at + 32) else { break };
            let length = u32_at(head, 28).unwrap_or(0) as usize;
            let header = Header {
                object: u64_at(head, 8).unwrap_or(0),
                offset: u64_at(head, 16).unwrap_or(0),
                kind: u32_at(head, 24).unwrap_or(0),
            };
            let Some(item) = bytes.get(at + 32..at + 32 + length) else { break };
            take(&header, item);
            at += 32 + length;
            last = Some(header);
        }
        Ok(last)
    }
}

fn vol_args(name: &str) -> Result<Box<VolArgs>, SysError> {
    let mut args = Box::new(VolArgs { fd: 0, name: [0; 4088] });
    if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) {
        return Err(SysError::new("btrfs", name, libc::EINVAL));
    }
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(args)
}

/// Whether `path` lies on btrfs.
pub fn is_btrfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u32 == MAGIC)
}

/// Makes an empty subvolume `name` in `directory`. About 0.1 ms.
pub fn create_subvolume(directory: BorrowedFd<'_>, name: &str) -> Result<(), SysError> {
    let args = vol_args(name)?;
    // SAFETY: the ioctl reads a btrfs_ioctl_vol_args, whose layout VolArgs has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_CREATE, &*args as *const VolArgs) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_SUBVOL_CREATE)", name)) } else { Ok(()) }
}

/// Unlinks the subvolume `name` of `directory`; its bytes are freed in the background.
///
/// Errors: `ENOTEMPTY` where it holds another subvolume, `EINVAL` for a plain directory.
pub fn destroy_subvolume(directory: BorrowedFd<'_>, name: &str) -> Result<(), SysError> {
    let args = vol_args(name)?;
    // SAFETY: as for SUBVOL_CREATE.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SNAP_DESTROY, &*args as *const VolArgs) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_SNAP_DESTROY)", name)) } else { Ok(()) }
}

/// The id of the subvolume that holds `directory`.
pub fn subvolume_id(directory: BorrowedFd<'_>) -> Result<u64, SysError> {
    let mut lookup = Box::new(InoLookup { tree: 0, object: 256, name: [0; 4080] });
    // SAFETY: the ioctl reads and writes a btrfs_ioctl_ino_lookup_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), INO_LOOKUP, &mut *lookup as *mut InoLookup) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_INO_LOOKUP)", "")) } else { Ok(lookup.tree) }
}

/// Turns simple quotas on for the file system of `directory`. On already is no error.
pub fn enable_simple_quota(directory: BorrowedFd<'_>) -> Result<(), SysError> {
    let mut control = QuotaCtl { command: QUOTA_CTL_ENABLE_SIMPLE, status: 0 };
    // SAFETY: the ioctl reads and writes a btrfs_ioctl_quota_ctl_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), QUOTA_CTL, &mut control as *mut QuotaCtl) };
    if result != 0 {
        let error = SysError::last("ioctl(BTRFS_QUOTA_CTL, simple)", "");
        if error.errno != libc::EEXIST {
            return Err(error);
        }
    }
    Ok(())
}

/// Holds the subvolume of this id to `bytes` of its own data and metadata.
pub fn limit_subvolume(directory: BorrowedFd<'_>, id: u64, bytes: u64) -> Result<(), SysError> {
    let limit = QgroupLimit {
        qgroup: id,
        flags: LIMIT_MAX_EXCL | LIMIT_MAX_RFER,
        max_referenced: bytes,
        max_exclusive: bytes,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: the ioctl reads a btrfs_ioctl_qgroup_limit_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), QGROUP_LIMIT, &limit as *const QgroupLimit) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_QGROUP_LIMIT)", id)) } else { Ok(()) }
}

/// The number of the group that has this one's name: groups count what all their members use, and
/// [`limit_subvolume`] takes their numbers too.
pub fn group_number(subvolume: u64) -> u64 {
    1 << 48 | subvolume
}

/// Makes or removes a group. One that is there, or gone, already is no error.
///
/// Errors: `EBUSY` when one with members is to go.
pub fn set_group(directory: BorrowedFd<'_>, group: u64, exists: bool) -> Result<(), SysError> {
    let args = QgroupCreate { create: u64::from(exists), qgroup: group };
    // SAFETY: the ioctl reads a btrfs_ioctl_qgroup_create_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), QGROUP_CREATE, &args as *const QgroupCreate) };
    forgive(result, "ioctl(BTRFS_QGROUP_CREATE)", group)
}

/// Lets a subvolume be a member of a group, or no longer. As it is already is no error.
pub fn set_member(directory: BorrowedFd<'_>, subvolume: u64, group: u64, is: bool) -> Result<(), SysError> {
    let args = QgroupAssign { assign: u64::from(is), member: subvolume, group };
    // SAFETY: the ioctl reads a btrfs_ioctl_qgroup_assign_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), QGROUP_ASSIGN, &args as *const QgroupAssign) };
    forgive(result, "ioctl(BTRFS_QGROUP_ASSIGN)", subvolume)
}

fn forgive(result: libc::c_int, call: &'static str, about: u64) -> Result<(), SysError> {
    if result >= 0 {
        return Ok(());
    }
    let error = SysError::last(call, about);
    if matches!(error.errno, libc::EEXIST | libc::ENOENT) { Ok(()) } else { Err(error) }
}

/// Takes a snapshot of the subvolume `source` as `name` in the directory `into`. What `source` had
/// not yet written goes with it. Ends with a commit of the file system, 3 ms and more; who only has to wait
/// until its content is settled takes [`begin_snapshot`].
///
/// The generation of `source` moves with it.
pub fn snapshot(source: BorrowedFd<'_>, into: BorrowedFd<'_>, name: &str, read_only: bool) -> Result<(), SysError> {
    let mut args = Box::new(VolArgsV2 {
        fd: i64::from(source.as_raw_fd()),
        transid: 0,
        flags: if read_only { SUBVOL_READ_ONLY } else { 0 },
        unused: [0; 4],
        name: [0; 4040],
    });
    args.name.copy_from_slice(&vol_args(name)?.name[..4040]);
    // SAFETY: the ioctl reads a btrfs_ioctl_vol_args_v2, whose layout VolArgsV2 has.
    let result = unsafe { libc::ioctl(into.as_raw_fd(), SNAP_CREATE_V2, &mut *args as *mut VolArgsV2) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_SNAP_CREATE_V2)", name)) } else { Ok(()) }
}

/// The generation of the subvolume that holds `directory`: the transaction that wrote it last. What is
/// changed and not yet committed does not show in it.
pub fn generation(directory: BorrowedFd<'_>) -> Result<u64, SysError> {
    Ok(transactions(directory)?.0)
}

/// The generation of the subvolume that holds `directory`, as [`generation`] gives it, and the transaction in which an
/// inode of it was updated last, whether that is committed or not (`ctransid`).
pub fn transactions(directory: BorrowedFd<'_>) -> Result<(u64, u64), SysError> {
    let mut info = SubvolInfo([0; 63]);
    // SAFETY: the ioctl writes a btrfs_ioctl_get_subvol_info_args, which has 504 bytes.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), GET_SUBVOL_INFO, &mut info as *mut SubvolInfo) };
    // 1 where the kernel had to look for the parent; all is filled in then too.
    if result < 0 {
        return Err(SysError::last("ioctl(BTRFS_GET_SUBVOL_INFO)", ""));
    }
    // treeid, name[256], parent_id, dirid, generation, flags, uuid, parent_uuid, received_uuid, ctransid
    const GENERATION: usize = (8 + 256 + 16) / 8;
    Ok((info.0[GENERATION], info.0[GENERATION + 2 + 3 * 2]))
}

/// Whether the subvolume `directory` may not be written to.
pub fn is_read_only(directory: BorrowedFd<'_>) -> Result<bool, SysError> {
    let mut flags = 0_u64;
    // SAFETY: the ioctl writes a u64.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_GETFLAGS, &mut flags as *mut u64) };
    // 1 says that a search on the way found no exact key, which is how it is asked: all is filled in.
    if result < 0 {
        return Err(SysError::last("ioctl(BTRFS_SUBVOL_GETFLAGS)", ""));
    }
    Ok(flags & SUBVOL_READ_ONLY != 0)
}

/// Allows or forbids writing to the subvolume `directory`.
pub fn set_read_only(directory: BorrowedFd<'_>, read_only: bool) -> Result<(), SysError> {
    let flags = if read_only { SUBVOL_READ_ONLY } else { 0 };
    // SAFETY: the ioctl reads a u64.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_SETFLAGS, &flags as *const u64) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_SUBVOL_SETFLAGS)", "")) } else { Ok(()) }
}

/// Begins to commit all that was changed on the file system of `directory`; returns what
/// [`wait_sync`] takes.
pub fn start_sync(directory: BorrowedFd<'_>) -> Result<u64, SysError> {
    let mut transaction = 0_u64;
    // SAFETY: the ioctl writes a u64.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), START_SYNC, &mut transaction as *mut u64) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_START_SYNC)", "")) } else { Ok(transaction) }
}

/// Waits until this transaction is on the disk.
pub fn wait_sync(directory: BorrowedFd<'_>, transaction: u64) -> Result<(), SysError> {
    // SAFETY: the ioctl reads a u64.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), WAIT_SYNC, &transaction as *const u64) };
    if result != 0 { Err(SysError::last("ioctl(BTRFS_WAIT_SYNC)", "")) } else { Ok(()) }
}

/// An inode that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedInode {
    /// Its number in the subvolume.
    pub inode: u64,
    /// Its type and permissions, as in `st_mode`.
    pub mode: u32,
}

/// The inodes of the subvolume of `directory` that were written by a later transaction than `since`, in
/// the order of their numbers. Only what is committed shows: meant for snapshots.
///
/// Costs what was changed and not what is there: whole branches of the tree are passed over.
pub fn changed_inodes(directory: BorrowedFd<'_>, since: u64) -> Result<Vec<ChangedInode>, SysError> {
    let mut changed = Vec::new();
    let least = since.saturating_add(1);
    search(directory, (FIRST_INODE, u64::MAX), (INODE_ITEM, INODE_ITEM), least, |header, item| {
        // The branch was written since, which this inode in it need not have been.
        if header.kind != INODE_ITEM || header.object < FIRST_INODE || header.object > LAST_INODE {
            return;
        }
        let (Some(transaction), Some(links), Some(mode)) = (u64_at(item, 8), u32_at(item, 40), u32_at(item, 52)) else {
            return;
        };
        if transaction > since && links > 0 {
            changed.push(ChangedInode { inode: header.object, mode });
        }
    })?;
    Ok(changed)
}

/// All inodes of the subvolume of `directory`, each with the transaction that wrote it last, in the order of their
/// numbers. Only what is committed shows: meant for snapshots.
pub fn inode_transactions(directory: BorrowedFd<'_>) -> Result<Vec<(u64, u64)>, SysError> {
    let mut found = Vec::new();
    search(directory, (FIRST_INODE, u64::MAX), (INODE_ITEM, INODE_ITEM), 0, |header, item| {
        if header.kind == INODE_ITEM
            && let Some(transaction) = u64_at(item, 8)
        {
            found.push((header.object, transaction));
        }
    })?;
    Ok(found)
}

/// Every name of an inode, relative to the subvolume of `directory`; the subvolume itself is the empty
/// path. None for an inode that is not there.
pub fn paths_of(directory: BorrowedFd<'_>, inode: u64) -> Result<Vec<PathBuf>, SysError> {
    if inode == FIRST_INODE {
        return Ok(vec![PathBuf::new()]);
    }
    let mut names = Names([0; 4096 / 8]);
    let mut args =
        InoPaths { inode, size: size_of::<Names>() as u64, reserved: [0; 4], names: (&raw mut names) as u64 };
    // SAFETY: the ioctl reads a btrfs_ioctl_ino_path_args, whose layout InoPaths has, and writes up to
    // `size` bytes to `names`, which lives here.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), INO_PATHS, &mut args as *mut InoPaths) };
    if result != 0 {
        let error = SysError::last("ioctl(BTRFS_INO_PATHS)", inode);
        return if error.errno == libc::ENOENT { Ok(Vec::new()) } else { Err(error) };
    }
    let bytes: Vec<u8> = names.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let count = |at| u32_at(&bytes, at).unwrap_or(0) as usize;
    let (missing_bytes, found, missed) = (count(4), count(8), count(12));
    if missing_bytes > 0 || missed > 0 {
        return all_paths_of(directory, inode);
    }
    // The header of 16 bytes, then offsets from where they begin themselves.
    let texts = &bytes[16..];
    let path = |number: usize| {
        let text = texts.get(u64_at(texts, number * 8)? as usize..)?;
        Some(path_from(&text[..text.iter().position(|byte| *byte == 0)?]))
    };
    Ok((0..found).filter_map(path).collect())
}

/// As [`paths_of`], for an inode with more names than one answer holds.
fn all_paths_of(directory: BorrowedFd<'_>, inode: u64) -> Result<Vec<PathBuf>, SysError> {
    let mut links: Vec<(u64, Vec<u8>)> = Vec::new();
    search(directory, (inode, inode), (INODE_REF, INODE_EXTREF), 0, |header, item| {
        let mut rest = item;
        // index, length, name; the other kind has its parent before them.
        while let Some((parent, front)) = match header.kind {
            INODE_REF => Some((header.offset, 8)),
            INODE_EXTREF => u64_at(rest, 0).map(|parent| (parent, 16)),
            _ => None,
        } {
            let Some(length) = u16_at(rest, front) else { break };
            let Some(name) = rest.get(front + 2..front + 2 + usize::from(length)) else { break };
            links.push((parent, name.to_vec()));
            rest = &rest[front + 2 + usize::from(length)..];
        }
    })?;
    let mut paths = Vec::with_capacity(links.len());
    let mut parents: HashMap<u64, Vec<u8>> = HashMap::new();
    for (parent, name) in links {
        let mut path = match parents.get(&parent) {
            Some(path) => path.clone(),
            None => {
                let path = directory_path(directory, parent)?;
                parents.insert(parent, path.clone());
                path
            }
        };
        path.extend_from_slice(&name);
        paths.push(path_from(&path));
    }
    Ok(paths)
}

/// The path of a directory with a slash at its end; empty for the subvolume itself.
fn directory_path(directory: BorrowedFd<'_>, inode: u64) -> Result<Vec<u8>, SysError> {
    let mut lookup = Box::new(InoLookup { tree: 0, object: inode, name: [0; 4080] });
    // SAFETY: the ioctl reads and writes a btrfs_ioctl_ino_lookup_args, whose layout this has.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), INO_LOOKUP, &mut *lookup as *mut InoLookup) };
    if result != 0 {
        return Err(SysError::last("ioctl(BTRFS_INO_LOOKUP)", inode));
    }
    let length = lookup.name.iter().position(|byte| *byte == 0).unwrap_or(0);
    Ok(lookup.name[..length].to_vec())
}

fn path_from(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// What stands before an item that a search found.
struct Header {
    object: u64,
    offset: u64,
    kind: u32,
}

/// Hands every item of the subvolume in these ranges, in leaves written by `least` or later, to `take`.
/// Keys are ordered by object, then kind: kinds outside of the range come too, between the ends.
fn search(
    directory: BorrowedFd<'_>,
    objects: (u64, u64),
    kinds: (u32, u32),
    least: u64,
    mut take: impl FnMut(&Header, &[u8]),
) -> Result<(), SysError> {
    let mut args = Search::<SEARCH_WORDS>::new((objects.0, kinds.0, 0), (objects.1, kinds.1, u64::MAX), least);
    loop {
        // On with the next key.
        let Some(last) = args.run(directory, &mut take)? else { return Ok(()) };
        let next = match last {
            Header { object, kind, .. } if kind >= kinds.1 => object.checked_add(1).map(|object| (object, kinds.0, 0)),
            Header { object, kind, offset: u64::MAX } => Some((object, kind + 1, 0)),
            Header { object, kind, offset } => Some((object, kind, offset + 1)),
        };
        let Some((object, kind, offset)) = next.filter(|(object, ..)| *object <= objects.1) else { return Ok(()) };
        (args.objects[0], args.kinds[0], args.offsets[0]) = (object, kind, offset);
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
