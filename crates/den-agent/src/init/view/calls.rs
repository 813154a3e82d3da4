//! Answers to calls that tell of the host.
//!
//! | call | answer |
//! | --- | --- |
//! | `statfs`, `fstatfs` | on the computer's disk (its root, what is bound from it, overlays on it): its limit and use |
//! | `sysinfo` | memory, swap, load, processes of the computer |
//! | `sched_getaffinity` | the first of those processors that the thread may run on, as many as the limit allows, also while the computer leaves one to others |
//!
//! Whatever cannot be found out, or is no different, goes on as the caller's own call: so an error is always the
//! kernel's. Nothing here is a wall: a caller that changes its arguments meanwhile learns of the host what it could
//! read anyway.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use den_sys::notify::{self, Acting, Call, FileSystem, Listener, System};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::share::{self, Disk, MASK_BYTES_MAX, Share};

/// Files that are asked about at a time, each by a thread, where that may take a while.
const LOOKING_MAX: usize = 8;
/// The stack of such a thread, in bytes.
const STACK_BYTES: usize = 64 << 10;
/// Magic numbers of what the computer's disk is seen through.
const OVERLAY: u64 = 0x794c_7630;
const BTRFS: u64 = 0x9123_683e;

/// Threads that do.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// Answers one call, now or soon.
pub fn answer(listener: &Arc<Listener>, share: &Share, call: Call) {
    let done = match call.number {
        libc::SYS_statfs => return statfs(listener, share, call),
        libc::SYS_fstatfs => return fstatfs(listener, share, call),
        libc::SYS_sysinfo => sysinfo(share, &call),
        libc::SYS_sched_getaffinity => affinity(share, &call),
        _ => None,
    };
    finish(listener, &call, done);
}

/// What a call returns, and what it leaves in the caller's memory, at an address.
struct Done {
    value: i64,
    address: u64,
    bytes: Vec<u8>,
}

fn finish(listener: &Listener, call: &Call, done: Option<Done>) {
    let Some(done) = done else { return listener.proceed(call) };
    // The number means another thread by now if the caller has gone.
    if !listener.waits(call) {
        return;
    }
    match notify::write_memory(call.thread, done.address, &done.bytes) {
        Some(()) => listener.answer(call, done.value),
        None => listener.proceed(call),
    }
}

/// How the caller sees the tree.
struct Place {
    uid: u32,
    gid: u32,
    /// Where the path begins.
    at: OwnedFd,
    path: Vec<u8>,
    flags: ResolveFlags,
}

impl Place {
    fn of(share: &Share, call: &Call) -> Option<Self> {
        let path = notify::read_path(call.thread, call.arguments[0]).filter(|path| !path.is_empty())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(share.proc(), call.thread.to_string(), flags, Mode::empty()).ok()?;
        let owner = rustix::fs::fstat(&directory).ok()?;
        let (name, flags_of_path) = match path[0] {
            b'/' => ("root", ResolveFlags::IN_ROOT),
            _ => ("cwd", ResolveFlags::NO_MAGICLINKS),
        };
        let at = rustix::fs::openat(&directory, name, flags, Mode::empty()).ok()?;
        Some(Self { uid: owner.st_uid, gid: owner.st_gid, at, path, flags: flags_of_path })
    }

    /// Opens what the caller means, with the caller's rights.
    fn open(&self, more: ResolveFlags) -> Result<OwnedFd, Errno> {
        let _acting = (self.uid != 0).then(|| Acting::as_user(self.uid, self.gid));
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.at, &self.path[..], flags, Mode::empty(), self.flags | more)
    }
}

fn statfs(listener: &Arc<Listener>, share: &Share, call: Call) {
    let (Some(numbers), Some(place)) = (Numbers::of(share), Place::of(share, &call)) else {
        return listener.proceed(&call);
    };
    match place.open(ResolveFlags::CACHED) {
        // Not all of the path is in memory.
        Err(Errno::AGAIN) => aside(listener, call, numbers, move || place.open(ResolveFlags::empty()).ok()),
        Err(_) => {
            drop(place);
            listener.proceed(&call);
        }
        Ok(fd) => {
            drop(place);
            opened(listener, share, call, numbers, fd);
        }
    }
}

fn fstatfs(listener: &Arc<Listener>, share: &Share, call: Call) {
    let found = || {
        let number = u32::try_from(call.arguments[0]).ok()?;
        let path = format!("{}/fd/{number}", call.thread);
        let fd = rustix::fs::openat(share.proc(), path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some((Numbers::of(share)?, fd))
    };
    match found() {
        Some((numbers, fd)) => opened(listener, share, call, numbers, fd),
        None => listener.proceed(&call),
    }
}

/// Answers at once what lies on the root; any other file system may be served by a program that waits for us.
fn opened(listener: &Arc<Listener>, share: &Share, call: Call, numbers: Numbers, fd: OwnedFd) {
    if share.is_on_root(fd.as_fd()) {
        return finish(listener, &call, numbers.answer(fd, call.arguments[1]));
    }
    aside(listener, call, numbers, move || Some(fd));
}

/// Answers on a thread, which may wait for ever: so there are only so many, and beyond them the kernel answers.
fn aside(
    listener: &Arc<Listener>,
    call: Call,
    numbers: Numbers,
    open: impl FnOnce() -> Option<OwnedFd> + Send + 'static,
) {
    if LOOKING.fetch_add(1, Ordering::AcqRel) >= LOOKING_MAX {
        LOOKING.fetch_sub(1, Ordering::AcqRel);
        drop(open);
        return listener.proceed(&call);
    }
    let theirs = listener.clone();
    let started = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        finish(&theirs, &call, open().and_then(|fd| numbers.answer(fd, call.arguments[1])));
        LOOKING.fetch_sub(1, Ordering::AcqRel);
    });
    if started.is_err() {
        LOOKING.fetch_sub(1, Ordering::AcqRel);
        listener.proceed(&call);
    }
}

/// The disk as the computer is to see it.
#[derive(Clone, Copy)]
struct Numbers {
    disk: Disk,
    root: FileSystem,
}

impl Numbers {
    fn of(share: &Share) -> Option<Self> {
        Some(Self { disk: share.disk()?, root: share.root()? })
    }

    /// Lets go of the file first: the caller may unmount what it lies on as soon as it is answered.
    fn answer(self, fd: OwnedFd, address: u64) -> Option<Done> {
        let found = notify::file_system(&fd);
        drop(fd);
        let shown = self.shown(found.ok()?)?;
        Some(Done { value: 0, address, bytes: shown.bytes() })
    }

    /// `None` for another file system than the disk's. What lies on the disk has the size of the host's own.
    fn shown(self, found: FileSystem) -> Option<FileSystem> {
        let is_ours = matches!(found.kind, OVERLAY | BTRFS)
            && (found.blocks, found.block_bytes) == (self.root.blocks, self.root.block_bytes);
        if !is_ours || found.block_bytes == 0 {
            return None;
        }
        let blocks = (self.disk.limit / found.block_bytes).min(found.blocks);
        let free = blocks.saturating_sub(self.disk.used.div_ceil(found.block_bytes));
        Some(FileSystem { blocks, free, available: free.min(found.available), ..found })
    }
}

fn sysinfo(share: &Share, call: &Call) -> Option<Done> {
    let memory = share.memory()?;
    let kernel = notify::system().ok()?;
    let (loads, _) = share.load();
    let shown = System {
        loads: loads.map(|load| (load * 65536.0) as u64),
        memory: memory.total,
        free: memory.free(),
        shared: memory.shared,
        buffers: 0,
        swap: memory.swap[0],
        swap_free: memory.swap[1],
        processes: share.processes().min(u64::from(u16::MAX)),
        high: [0; 2],
        unit: 1,
        ..kernel
    };
    Some(Done { value: 0, address: call.arguments[0], bytes: shown.bytes() })
}

fn affinity(share: &Share, call: &Call) -> Option<Done> {
    let thread = match call.arguments[0] as i32 {
        0 => call.thread,
        named => whom(share, call.thread, named)?,
    };
    let mut mask = [0; MASK_BYTES_MAX];
    let length = usize::try_from(call.arguments[1] as u32).ok()?.min(MASK_BYTES_MAX);
    let written = notify::affinity(thread, &mut mask[..length]).ok()?;
    let (mask, processors) = (&mask[..written], share.processors());
    let mask = match share.not_held_back(mask) {
        Some(whole) => first(&whole, processors).unwrap_or(whole),
        None => first(mask, processors)?,
    };
    Some(Done { value: written as i64, address: call.arguments[2], bytes: mask })
}

/// Whom a thread means by a number, as this process counts; `None` in a namespace further in, unless itself.
fn whom(share: &Share, thread: i32, named: i32) -> Option<i32> {
    if named == thread {
        return Some(thread);
    }
    let status = share.kernel_text(&format!("{thread}/status"), |_| false);
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let numbers: Vec<i32> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [_] => Some(named),
        [.., own] if own == named => Some(thread),
        _ => None,
    }
}

/// The first `count` of those in `mask`; `None` if there are no more.
fn first(mask: &[u8], count: usize) -> Option<Vec<u8>> {
    if share::count(mask) <= count {
        return None;
    }
    let mut left = count;
    // Words of the machine's order; on a little-endian one, bits in the order of bytes.
    let take = |byte: &u8| {
        let mut kept = 0;
        for bit in 0..8 {
            if byte & (1 << bit) != 0 && left > 0 {
                kept |= 1 << bit;
                left -= 1;
            }
        }
        kept
    };
    Some(mask.iter().map(take).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processors_of_those_allowed() {
        assert_eq!(first(&[0b1111_0000, 0b11, 0], 5), Some(vec![0b1111_0000, 0b1, 0]));
        assert_eq!(first(&[0b1010], 1), Some(vec![0b10]));
        assert_eq!(first(&[0b1010], 2), None);
    }

    #[test]
    fn only_the_disk_is_shown_as_the_share() {
        let root =
            FileSystem { kind: OVERLAY, block_bytes: 4096, blocks: 1000, free: 700, available: 500, rest: [0; 10] };
        let numbers = Numbers { disk: Disk { limit: 100 * 4096, used: 10 * 4096 + 1 }, root };
        let shown = numbers.shown(root).expect("the disk");
        assert_eq!((shown.blocks, shown.free, shown.available), (100, 89, 89));
        assert!(numbers.shown(FileSystem { kind: BTRFS, ..root }).is_some());
        assert!(numbers.shown(FileSystem { kind: 0x0102_1994, ..root }).is_none());
        assert!(numbers.shown(FileSystem { blocks: 999, ..root }).is_none());
        let full = Numbers { disk: Disk { limit: 5000 * 4096, used: 9000 * 4096 }, root };
        let shown = full.shown(root).expect("the disk");
        assert_eq!((shown.blocks, shown.available), (1000, 0));
        let scarce = numbers.shown(FileSystem { available: 3, ..root }).expect("the disk");
        assert_eq!((scarce.free, scarce.available), (89, 3));
    }
}
