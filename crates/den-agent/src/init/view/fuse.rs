//! The file system behind the files: a FUSE server of a handful of files in one directory.
//!
//! ```text
//! kernel ─► request: length, opcode, id, node, caller ─► answer: length, error, id, body
//! ```
//!
//! Names and attributes hold for ever, so only opening, reading and closing come here. What is read is made when a
//! file is read from its beginning, and the rest of it comes from the same moment. To open one costs nothing here, so
//! nobody can take the files away from others; where too much is kept, later parts are made anew.
//!
//! Source: linux/fuse.h, protocol 7.31; the other side is the kernel, and older or newer ones agree on that.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use den_sys::SysError;
use den_sys::mount::{self, Detached};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::files::FILES;
use super::share::Share;

/// The name that mounts show, as `fuse.den`.
const NAME: &str = "den";
/// What a request is read into, in bytes: the kernel wants 8 KiB at least.
const REQUEST_BYTES: usize = 16 << 10;
/// Bytes of a request before its body.
const HEAD_BYTES: usize = 40;
/// Texts that are kept for who reads a file bit by bit, in bytes all together; beyond this they are made anew.
const KEPT_BYTES_MAX: usize = 4 << 20;
/// How many of them are kept.
const KEPT_MAX: usize = 4096;
/// Names and attributes hold so long, in seconds.
const FOR_EVER: u64 = 1 << 30;

const MAJOR: u32 = 7;
const MINOR: u32 = 31;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// `FOPEN_DIRECT_IO`: every read comes here.
const DIRECT_IO: u32 = 1;

const ROOT: u64 = 1;
/// Number of the first file.
const FIRST: u64 = 2;

/// A file system, and what it serves.
pub struct Server {
    device: OwnedFd,
    request: Vec<u8>,
    /// What was read of open files, by their handles.
    texts: HashMap<u64, Vec<u8>>,
    /// Bytes of them.
    kept: usize,
    next: u64,
    made: u64,
}

impl Server {
    /// Makes one, and its mount, which is attached nowhere yet.
    pub fn new() -> Result<(Self, Detached), SysError> {
        const DEVICE: &str = "/dev/fuse";
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(SysError::rustix("open", DEVICE))?;
        let quiet =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = mount::new_fuse(device.as_fd(), NAME, quiet)?;
        let made = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec as u64;
        let (request, texts) = (vec![0; REQUEST_BYTES], HashMap::new());
        Ok((Self { device, request, texts, kept: 0, next: 1, made }, mount))
    }

    /// Serves one request, if one is there. `false` once the file system is gone.
    pub fn serve(&mut self, share: &Share) -> bool {
        let mut request = std::mem::take(&mut self.request);
        let read = rustix::io::read(&self.device, &mut request[..]);
        let goes_on = match read {
            Ok(length) => {
                self.answer(share, &request[..length]);
                true
            }
            // ENOENT: who asked has gone.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => true,
            Err(_) => false,
        };
        self.request = request;
        goes_on
    }

    fn answer(&mut self, share: &Share, request: &[u8]) {
        let Some(head) = Head::parse(request) else { return };
        let body = &request[HEAD_BYTES..];
        match head.opcode {
            // Nobody waits for an answer to these.
            FORGET | BATCH_FORGET | INTERRUPT | DESTROY => {}
            opcode => {
                let answer = self.result(share, &head, opcode, body);
                self.reply(head.id, answer);
            }
        }
    }

    fn result(&mut self, share: &Share, head: &Head, opcode: u32, body: &[u8]) -> Result<Vec<u8>, Errno> {
        match opcode {
            INIT => init(body),
            LOOKUP => {
                let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
                let place = FILES.iter().position(|(known, ..)| known.as_bytes() == name && head.node == ROOT);
                let node = FIRST + place.ok_or(Errno::NOENT)? as u64;
                let mut entry = Body::default();
                entry.long(node).long(0).long(FOR_EVER).long(FOR_EVER).word(0).word(0);
                self.attributes(&mut entry, node)?;
                Ok(entry.0)
            }
            GETATTR => {
                let mut answer = Body::default();
                answer.long(FOR_EVER).word(0).word(0);
                self.attributes(&mut answer, head.node)?;
                Ok(answer.0)
            }
            OPEN => {
                file(head.node)?;
                // Root inside may open what nobody may write.
                if word(body, 0)? & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32 {
                    return Err(Errno::ACCESS);
                }
                let handle = self.next;
                self.next += 1;
                let mut answer = Body::default();
                answer.long(handle).word(DIRECT_IO).word(0);
                Ok(answer.0)
            }
            READ => {
                let (handle, offset) = (long(body, 0)?, long(body, 8)?);
                let size = word(body, 16)? as usize;
                self.read(share, head.node, handle, offset, size)
            }
            RELEASE => {
                self.forget(long(body, 0)?);
                Ok(Vec::new())
            }
            STATFS => {
                let mut answer = Body::default();
                // No blocks: of what has none, df says nothing.
                answer.long(0).long(0).long(0).long(FILES.len() as u64).long(0);
                answer.word(4096).word(255).word(4096);
                answer.0.resize(80, 0);
                Ok(answer.0)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn read(&mut self, share: &Share, node: u64, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let kind = FILES[file(node)?].1;
        let part = |text: &[u8]| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
            text[from..text.len().min(from.saturating_add(size))].to_vec()
        };
        if offset > 0
            && let Some(kept) = self.texts.get(&handle)
        {
            return Ok(part(kept));
        }
        self.forget(handle);
        let text = kind.text(share);
        let answer = part(&text);
        if self.texts.len() < KEPT_MAX && self.kept + text.len() <= KEPT_BYTES_MAX {
            self.kept += text.len();
            self.texts.insert(handle, text);
        }
        Ok(answer)
    }

    /// Lets go of what was read by this handle, if anything was kept.
    fn forget(&mut self, handle: u64) {
        if let Some(text) = self.texts.remove(&handle) {
            self.kept -= text.len();
        }
    }

    /// struct fuse_attr.
    fn attributes(&self, body: &mut Body, node: u64) -> Result<(), Errno> {
        let (mode, links) = match node {
            ROOT => (libc::S_IFDIR | 0o555, 2),
            node => {
                file(node)?;
                (libc::S_IFREG | 0o444, 1)
            }
        };
        body.long(node).long(0).long(0).long(self.made).long(self.made).long(self.made);
        body.word(0).word(0).word(0).word(mode).word(links).word(0).word(0).word(0).word(4096).word(0);
        Ok(())
    }

    /// One write: the kernel takes answers whole. Who asked may have gone.
    fn reply(&self, id: u64, answer: Result<Vec<u8>, Errno>) {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let mut reply = Body(Vec::with_capacity(16 + body.len()));
        reply.word(16 + body.len() as u32).word(error as u32).long(id);
        reply.0.extend_from_slice(&body);
        let _ = rustix::io::write(&self.device, &reply.0);
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Agrees on the protocol; no feature is wanted.
fn init(body: &[u8]) -> Result<Vec<u8>, Errno> {
    if word(body, 0)? < MAJOR {
        return Err(Errno::PROTO);
    }
    let mut answer = Body::default();
    // Read ahead, flags, background requests (two halves), longest write, granularity of time.
    answer.word(MAJOR).word(MINOR).word(0).word(0).word(0).word(4096).word(1);
    answer.0.resize(64, 0);
    Ok(answer.0)
}

/// The place of a file in [`FILES`].
fn file(node: u64) -> Result<usize, Errno> {
    let place = node.checked_sub(FIRST).and_then(|place| usize::try_from(place).ok()).ok_or(Errno::ISDIR)?;
    if place < FILES.len() { Ok(place) } else { Err(Errno::STALE) }
}

struct Head {
    opcode: u32,
    id: u64,
    node: u64,
}

impl Head {
    fn parse(request: &[u8]) -> Option<Self> {
        let length = word(request, 0).ok()? as usize;
        if request.len() < HEAD_BYTES || length != request.len() {
            return None;
        }
        Some(Self { opcode: word(request, 4).ok()?, id: long(request, 8).ok()?, node: long(request, 16).ok()? })
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Errno> {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map(u32::from_ne_bytes).ok_or(Errno::INVAL)
}

fn long(bytes: &[u8], at: usize) -> Result<u64, Errno> {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map(u64::from_ne_bytes).ok_or(Errno::INVAL)
}

#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn word(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn long(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a kernel: only the answers' shape.
    fn server() -> Server {
        let null = std::fs::File::options().write(true).open("/dev/null").expect("opens");
        Server { device: null.into(), request: Vec::new(), texts: HashMap::new(), kept: 0, next: 1, made: 0 }
    }

    fn head(opcode: u32, node: u64) -> Head {
        Head { opcode, id: 7, node }
    }

    #[test]
    fn answers_have_the_lengths_of_the_protocol() {
        let (mut server, share) = (server(), Share::find(None).expect("a proc"));
        let mut ask = |opcode, node, body: &[u8]| server.result(&share, &head(opcode, node), opcode, body);
        let mut greeting = Body::default();
        greeting.word(7).word(45).word(0).word(0);
        assert_eq!(ask(INIT, 0, &greeting.0).map(|body| body.len()), Ok(64));
        assert_eq!(ask(LOOKUP, ROOT, b"meminfo\0").map(|body| body.len()), Ok(128));
        assert_eq!(ask(LOOKUP, ROOT, b"none\0"), Err(Errno::NOENT));
        assert_eq!(ask(GETATTR, FIRST, &[]).map(|body| body.len()), Ok(104));
        assert_eq!(ask(GETATTR, 99, &[]), Err(Errno::STALE));
        assert_eq!(ask(STATFS, ROOT, &[]).map(|body| body.len()), Ok(80));
        assert_eq!(ask(OPEN, ROOT, &[0; 8]), Err(Errno::ISDIR));
        assert_eq!(ask(READ, FIRST, &[]), Err(Errno::INVAL));
        assert_eq!(ask(99, ROOT, &[]), Err(Errno::NOSYS));
    }

    #[test]
    fn a_file_read_in_parts_is_of_one_moment() {
        let (mut server, share) = (server(), Share::find(None).expect("a proc"));
        let node = FIRST + FILES.iter().position(|(name, ..)| *name == "stat").expect("there") as u64;
        let opened = server.result(&share, &head(OPEN, node), OPEN, &[0; 8]).expect("opens");
        let handle = long(&opened, 0).expect("a handle");
        let mut read = |offset: u64, size: u32| {
            let mut body = Body::default();
            body.long(handle).long(offset).word(size);
            server.result(&share, &head(READ, node), READ, &body.0).expect("reads")
        };
        let whole = read(0, 1 << 20);
        assert!(whole.starts_with(b"cpu  "));
        assert_eq!(read(5, 7), whole[5..12]);
        assert_eq!(read(whole.len() as u64, 100), b"");
        let mut body = Body::default();
        body.long(handle);
        assert_eq!(server.result(&share, &head(RELEASE, node), RELEASE, &body.0), Ok(Vec::new()));
        assert_eq!((server.kept, server.texts.len()), (0, 0));
    }

    #[test]
    fn however_many_are_open_they_can_be_read() {
        let (mut server, share) = (server(), Share::find(None).expect("a proc"));
        let node = FIRST + FILES.iter().position(|(name, ..)| *name == "processors").expect("there") as u64;
        for _ in 0..3 * KEPT_MAX {
            let opened = server.result(&share, &head(OPEN, node), OPEN, &[0; 8]).expect("opens");
            let mut body = Body::default();
            body.long(long(&opened, 0).expect("a handle")).long(0).word(100);
            let text = server.result(&share, &head(READ, node), READ, &body.0).expect("reads");
            assert!(text.starts_with(b"0"));
        }
        assert_eq!(server.texts.len(), KEPT_MAX);
        // Nothing is kept of this one, and it goes on all the same.
        let mut body = Body::default();
        body.long(u64::MAX).long(1).word(100);
        assert!(server.result(&share, &head(READ, node), READ, &body.0).expect("reads").ends_with(b"\n"));
        assert_eq!(server.result(&share, &head(RELEASE, node), RELEASE, &body.0), Ok(Vec::new()));
    }
}
