//! Answering system calls of others: seccomp user notification.
//!
//! ```text
//! caller: statfs ─► filter: notify ─► (waits) ······················► goes on with a value, or with its own call
//! answerer:                receive ─► looks, writes into its memory ─► answer, or proceed
//! ```
//!
//! Whoever answers is under the same filter. Its own calls carry [`OWN`] as their sixth argument, which the
//! filter lets through and the kernel ignores: so it never waits for itself. Anyone may do the same; what the
//! answers hide is no secret.
//!
//! Source: seccomp_unotify(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::SysError;

/// The sixth argument of calls that the filter lets through: "denv".
pub const OWN: u32 = 0x6465_6e76;

/// `_IOWR('!', 0, struct seccomp_notif)`, and the next two.
const RECEIVE: u32 = 0xc050_2100;
const SEND: u32 = 0xc018_2101;
const ID_VALID: u32 = 0x4008_2102;

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: the caller's own call is made.
const CONTINUE: u32 = 1;

/// The longest path, in bytes with its NUL.
const PATH_BYTES_MAX: usize = 4096;

/// What memory is read by, in bytes: no less than this is mapped.
const PAGE_BYTES: usize = 4096;

/// Where the calls of all processes under a filter arrive.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// struct seccomp_notif of linux/seccomp.h.
#[repr(C)]
#[derive(Default)]
struct Raw {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// struct seccomp_notif_resp.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// A call that waits.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Names it.
    id: u64,
    /// The thread, as this process counts.
    pub thread: i32,
    /// The number of the call.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Listener {
    /// What [`crate::seccomp::Filter::install_heard`] has returned, perhaps in another process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor, to be handed on.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// The next call. Waits if poll(2) did not say that there is one; `None` if its caller has gone meanwhile.
    pub fn receive(&self) -> Result<Option<Call>, SysError> {
        let mut raw = Raw::default();
        // SAFETY: the kernel writes a struct seccomp_notif of 80 bytes, whose layout `Raw` has; it is zeroed, as
        // the kernel demands.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE as libc::Ioctl, &raw mut raw) };
        if result == 0 {
            let Raw { id, pid, number, arguments, .. } = raw;
            return Ok(Some(Call { id, thread: pid as i32, number: i64::from(number), arguments }));
        }
        match SysError::last("ioctl(NOTIF_RECV)", "") {
            error if matches!(error.errno, libc::ENOENT | libc::EINTR | libc::EAGAIN) => Ok(None),
            error => Err(error),
        }
    }

    /// Whether the caller still waits: its thread number still means it, and its memory may be written to.
    pub fn waits(&self, call: &Call) -> bool {
        // SAFETY: the kernel reads the 8 bytes of the id.
        unsafe { libc::ioctl(self.0.as_raw_fd(), ID_VALID as libc::Ioctl, &raw const call.id) == 0 }
    }

    /// The call returns `value`. A caller that is gone is no error.
    pub fn answer(&self, call: &Call, value: i64) {
        self.respond(&Response { id: call.id, value, error: 0, flags: 0 });
    }

    /// The call is made as if nobody had asked. A caller that is gone is no error.
    pub fn proceed(&self, call: &Call) {
        self.respond(&Response { id: call.id, value: 0, error: 0, flags: CONTINUE });
    }

    fn respond(&self, response: &Response) {
        // SAFETY: the kernel reads a struct seccomp_notif_resp of 24 bytes, whose layout this has.
        unsafe {
            libc::ioctl(self.0.as_raw_fd(), SEND as libc::Ioctl, response as *const Response);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads memory of another process; `None` where it is not all there.
fn read_memory(thread: i32, address: u64, buffer: &mut [u8]) -> Option<()> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: the local part is this buffer; the remote one is not of this process, and the kernel checks it.
    let read = unsafe { libc::process_vm_readv(thread, &local, 1, &remote, 1, 0) };
    (read == buffer.len() as isize).then_some(())
}

/// Writes memory of another process; `None` where it cannot be written to as a whole.
pub fn write_memory(thread: i32, address: u64, bytes: &[u8]) -> Option<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the local part is only read; the remote one is not of this process, and the kernel checks it.
    let written = unsafe { libc::process_vm_writev(thread, &local, 1, &remote, 1, 0) };
    (written == bytes.len() as isize).then_some(())
}

/// A path in another process's memory, without its NUL; `None` where it is longer than a path can be, or not there.
pub fn read_path(thread: i32, mut address: u64) -> Option<Vec<u8>> {
    let mut path = Vec::new();
    while path.len() < PATH_BYTES_MAX {
        // To the end of its page: what follows may not be mapped.
        let length = (PAGE_BYTES - address as usize % PAGE_BYTES).min(256);
        let mut part = [0; 256];
        read_memory(thread, address, &mut part[..length])?;
        if let Some(end) = part[..length].iter().position(|byte| *byte == 0) {
            path.extend_from_slice(&part[..end]);
            return Some(path);
        }
        path.extend_from_slice(&part[..length]);
        address = address.checked_add(length as u64)?;
    }
    None
}

/// struct statfs of a 64-bit architecture.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Its magic number.
    pub kind: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// All blocks.
    pub blocks: u64,
    /// Those that are free.
    pub free: u64,
    /// Those of them that anyone may use.
    pub available: u64,
    /// Number of files, free ones, id, longest name, fragment size, flags, spare: as they came.
    pub rest: [u64; 10],
}

impl FileSystem {
    /// As it lies in memory.
    pub fn bytes(&self) -> Vec<u8> {
        let head = [self.kind, self.block_bytes, self.blocks, self.free, self.available];
        head.iter().chain(&self.rest).flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// The file system that `fd` lies on, as the kernel says it.
pub fn file_system(fd: impl AsFd) -> Result<FileSystem, SysError> {
    let mut found = FileSystem::default();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes a struct statfs of 120 bytes, whose layout `FileSystem` has; the other arguments
    // are not looked at.
    match unsafe { libc::syscall(libc::SYS_fstatfs, fd, &raw mut found, 0, 0, 0, OWN as usize) } {
        0 => Ok(found),
        _ => Err(SysError::last("fstatfs", "")),
    }
}

/// The processors that `thread` (0: this one) may run on, as the kernel says it, a bit each. Returns how many bytes
/// it wrote.
pub fn affinity(thread: i32, mask: &mut [u8]) -> Result<usize, SysError> {
    // SAFETY: the kernel writes at most as many bytes as the length says; the other arguments are not looked at.
    let written = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, thread, mask.len(), mask.as_mut_ptr(), 0, 0, OWN as usize)
    };
    usize::try_from(written).map_err(|_| SysError::last("sched_getaffinity", thread))
}

/// struct sysinfo of a 64-bit architecture.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct System {
    /// Seconds since boot.
    pub uptime: u64,
    /// Three load averages, in parts of 65,536.
    pub loads: [u64; 3],
    /// Memory, in units; the same for what follows.
    pub memory: u64,
    /// Free.
    pub free: u64,
    /// Shared.
    pub shared: u64,
    /// Buffers.
    pub buffers: u64,
    /// Swap.
    pub swap: u64,
    /// Free swap.
    pub swap_free: u64,
    /// Number of threads, in the low 16 bits.
    pub processes: u64,
    /// High memory; there is none.
    pub high: [u64; 2],
    /// Bytes of a unit, in the low 32 bits.
    pub unit: u64,
}

impl System {
    /// As it lies in memory.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { uptime, loads, memory, free, shared, buffers, swap, swap_free, processes, high, unit } = *self;
        let [one, five, fifteen] = loads;
        let words = [
            uptime, one, five, fifteen, memory, free, shared, buffers, swap, swap_free, processes, high[0], high[1],
            unit,
        ];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// What the kernel says of the system.
pub fn system() -> Result<System, SysError> {
    let mut found = System::default();
    // SAFETY: the kernel writes a struct sysinfo of 112 bytes, whose layout `System` has; the other arguments are
    // not looked at.
    match unsafe { libc::syscall(libc::SYS_sysinfo, &raw mut found, 0, 0, 0, 0, OWN as usize) } {
        0 => Ok(found),
        _ => Err(SysError::last("sysinfo", "")),
    }
}

/// File system ids of another user for this thread, without the capabilities that go past permissions; root's
/// again, with them, when dropped.
pub struct Acting(());

impl Acting {
    /// Opens files as this user from here on, in this thread.
    pub fn as_user(uid: u32, gid: u32) -> Self {
        // SAFETY: these take numbers and cannot fail other than by not changing the id.
        unsafe {
            libc::setfsgid(gid);
            libc::setfsuid(uid);
        }
        Self(())
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            libc::setfsuid(0);
            libc::setfsgid(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!((size_of::<Raw>(), size_of::<Response>()), (80, 24));
        assert_eq!((size_of::<FileSystem>(), FileSystem::default().bytes().len()), (120, 120));
        assert_eq!((size_of::<System>(), System::default().bytes().len()), (112, 112));
    }

    #[test]
    fn own_calls_say_what_everybody_is_told() {
        let root = std::fs::File::open("/").expect("opens");
        let (ours, theirs) = (file_system(&root).expect("known"), rustix::fs::fstatfs(&root).expect("known"));
        assert_eq!(
            (ours.kind, ours.blocks, ours.block_bytes),
            (theirs.f_type as u64, theirs.f_blocks, theirs.f_bsize as u64)
        );
        let (ours, theirs) = (system().expect("known"), rustix::system::sysinfo());
        assert_eq!((ours.memory, ours.unit as u32), (theirs.totalram, theirs.mem_unit));
        let mut mask = [0; 128];
        let bytes = affinity(0, &mut mask).expect("known");
        let processors: u32 = mask[..bytes].iter().map(|byte| byte.count_ones()).sum();
        assert!(processors > 0);
    }

    #[test]
    fn a_path_ends_with_its_nul() {
        let own = std::process::id() as i32;
        let long = std::ffi::CString::new("x".repeat(1000)).expect("no NUL");
        assert_eq!(read_path(own, long.as_ptr() as u64), Some(vec![b'x'; 1000]));
        let endless = vec![b'x'; 3 * PATH_BYTES_MAX];
        assert_eq!(read_path(own, endless.as_ptr() as u64), None);
        assert_eq!(read_path(own, 8), None);
        let mut there = [0_u8; 4];
        let address = there.as_mut_ptr() as u64;
        assert_eq!(write_memory(own, address, b"abcd"), Some(()));
        assert_eq!(std::hint::black_box(&there), b"abcd");
        assert_eq!(write_memory(own, 8, b"abcd"), None);
    }
}
