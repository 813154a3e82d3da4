//! A mount of one file, answered by a thread of the test: as much of the kernel's FUSE protocol as a loop device
//! over it needs. Source: linux/fuse.h, protocol 7.31.
//!
//! The root of the mount is that file itself, so there is no directory and nothing to look up.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread::JoinHandle;

use fs_err as fs;
use rustix::mount::{MountFlags, UnmountFlags};

/// What the one file is.
pub(super) trait Device: Send + 'static {
    /// Its size in bytes.
    fn size(&self) -> u64;
    fn read(&mut self, offset: u64, length: usize) -> Vec<u8>;
    fn write(&mut self, offset: u64, bytes: &[u8]);
    /// All that was written is safe when this returns.
    fn flush(&mut self);
}

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const FORGET: u32 = 2;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

const MAJOR: u32 = 7;
const MINOR: u32 = 31;
const ASYNC_READ: u32 = 1;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
const WRITE_BYTES_MAX: u32 = 1 << 20;
const IN_HEADER: usize = 40;
const ENOSYS: i32 = 38;

/// The mount; dropping it takes it away and waits for its thread.
pub(super) struct Mount {
    place: std::path::PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Mount {
    /// Mounts `device` over the file `place`.
    pub(super) fn new(place: &Path, device: impl Device) -> Self {
        use std::os::fd::AsRawFd as _;
        let connection = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let connection = connection.into_parts().0;
        let words = format!("fd={},rootmode=100600,user_id=0,group_id=0", connection.as_raw_fd());
        let words = std::ffi::CString::new(words).expect("no zero byte");
        rustix::mount::mount("den-disk", place, "fuse", MountFlags::NODEV | MountFlags::NOSUID, words.as_c_str())
            .expect("a FUSE mount");
        let serving = std::thread::Builder::new().name("den-disk".into()).spawn(move || serve(connection, device));
        Self { place: place.to_owned(), thread: Some(serving.expect("a thread")) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What still has it open keeps it; the thread ends with the last of them.
        let _ = rustix::mount::unmount(&self.place, UnmountFlags::DETACH);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers until the mount is gone.
fn serve(mut connection: std::fs::File, mut device: impl Device) {
    let mut request = vec![0; WRITE_BYTES_MAX as usize + (64 << 10)];
    loop {
        let length = match connection.read(&mut request) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(19) => return, // ENODEV: unmounted.
            // ENOENT: taken back before it was read.
            Err(error) if matches!(error.raw_os_error(), Some(2 | 4 | 11)) => continue,
            Err(error) => panic!("/dev/fuse: {error}"),
        };
        let request = &request[..length];
        let (opcode, unique) = (u32_at(request, 4), u64_at(request, 8));
        let body = &request[IN_HEADER..];
        let mut answer = Vec::new();
        let error = match opcode {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            INIT => {
                answer = init(body);
                0
            }
            GETATTR | SETATTR => {
                answer.extend([0; 16]); // Not kept: it is cheap to ask again.
                answer.extend(attributes(device.size()));
                0
            }
            OPEN => {
                answer.extend([0; 16]);
                0
            }
            READ => {
                answer = device.read(u64_at(body, 8), u32_at(body, 16) as usize);
                0
            }
            WRITE => {
                let bytes = u32_at(body, 16);
                device.write(u64_at(body, 8), &body[40..40 + bytes as usize]);
                answer.extend(bytes.to_ne_bytes());
                answer.extend([0; 4]);
                0
            }
            FSYNC => {
                device.flush();
                0
            }
            STATFS => {
                answer.extend([0; 80]);
                0
            }
            FLUSH | RELEASE | DESTROY => 0,
            _ => -ENOSYS,
        };
        let mut reply = Vec::with_capacity(16 + answer.len());
        reply.extend((16 + answer.len() as u32).to_ne_bytes());
        reply.extend((error as i32).to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(answer);
        match connection.write(&reply) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(2)) => {} // Nobody waits any more.
            Err(error) if error.raw_os_error() == Some(19) => return,
            Err(error) => panic!("/dev/fuse: {error}"),
        }
    }
}

fn init(body: &[u8]) -> Vec<u8> {
    let wanted = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES;
    let mut answer = Vec::with_capacity(64);
    for word in [MAJOR, MINOR, u32_at(body, 8), u32_at(body, 12) & wanted] {
        answer.extend(word.to_ne_bytes());
    }
    for half in [16_u16, 12] {
        answer.extend(half.to_ne_bytes());
    }
    answer.extend(WRITE_BYTES_MAX.to_ne_bytes());
    answer.extend(1_u32.to_ne_bytes());
    answer.extend(((WRITE_BYTES_MAX / 4096) as u16).to_ne_bytes());
    answer.resize(64, 0);
    answer
}

/// `struct fuse_attr` of the file.
fn attributes(size: u64) -> Vec<u8> {
    let mut attributes = Vec::with_capacity(88);
    for word in [1, size, size / 512, 0, 0, 0] {
        attributes.extend(word.to_ne_bytes());
    }
    for half in [0_u32, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0] {
        attributes.extend(half.to_ne_bytes());
    }
    attributes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
