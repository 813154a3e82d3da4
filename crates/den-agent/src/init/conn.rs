//! A connection: its first frame with the descriptor beside it, and then what the operation makes
//! of it (frames on the one thread, frames on a thread of its own, raw bytes).

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use den_wire::agent::{FailureKind, Reply, Request};
use den_wire::frame::{HEAD_BYTES, message_bytes, parse_head};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::Beside;

/// How much is read at once before the first frame is known, in bytes.
const FIRST_READ_BYTES: usize = 4 << 10;

/// The buffer for frames that follow, in bytes; longer payloads go past it.
const FRAME_BUFFER_BYTES: usize = 512;

/// A connection whose first frame has not been answered.
pub struct Conn {
    stream: UnixStream,
    /// Read, but beyond the first frame.
    ahead: Vec<u8>,
}

/// What frames are read from on the one thread.
pub type FrameReader = BufReader<tokio::io::Chain<io::Cursor<Vec<u8>>, OwnedReadHalf>>;

impl Conn {
    /// A connection that has just been accepted.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    /// Reads the request; `None` if the other side went away.
    pub async fn request(&mut self) -> Result<Option<(Request, Beside)>, FailureKind> {
        let mut beside = None;
        let mut read = Vec::with_capacity(FIRST_READ_BYTES);
        let mut wanted = HEAD_BYTES;
        loop {
            if read.len() >= HEAD_BYTES {
                let head = read[..HEAD_BYTES].try_into().map_err(|_| FailureKind::BadRequest)?;
                let (kind, length) = parse_head(head).map_err(|_| FailureKind::BadRequest)?;
                if kind != den_wire::FrameKind::Message {
                    return Err(FailureKind::BadRequest);
                }
                wanted = HEAD_BYTES + length;
            }
            if read.len() >= wanted && wanted > HEAD_BYTES {
                break;
            }
            if read.len() == HEAD_BYTES && wanted == HEAD_BYTES {
                return Err(FailureKind::BadRequest);
            }
            match self.receive(&mut read, wanted, &mut beside).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
        self.ahead = read.split_off(wanted);
        match minicbor::decode::<Request>(&read[HEAD_BYTES..]) {
            Ok(request) => Ok(Some((request, beside))),
            Err(error) if error.is_unknown_variant() => Err(FailureKind::Unsupported),
            Err(_) => Err(FailureKind::BadRequest),
        }
    }

    async fn receive(&self, read: &mut Vec<u8>, wanted: usize, beside: &mut Beside) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            let before = read.len();
            let more = FIRST_READ_BYTES.max(wanted - before.min(wanted));
            let received = self.stream.try_io(tokio::io::Interest::READABLE, || {
                read.resize(before + more, 0);
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut slices = [IoSliceMut::new(&mut read[before..])];
                let message =
                    rustix::net::recvmsg(self.stream.as_fd(), &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                        // The first is the one; others are closed here.
                        for descriptor in descriptors {
                            beside.get_or_insert(descriptor);
                        }
                    }
                }
                Ok(message.bytes)
            });
            read.truncate(before + *received.as_ref().unwrap_or(&0));
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Sends the only answer of an operation. If the other side is gone there is nobody to tell.
    pub async fn answer(&mut self, reply: &Reply) {
        let _ = self.stream.write_all(&message_bytes(reply)).await;
    }

    /// As [`Conn::answer`], with a descriptor beside it. Short enough for the empty buffer of a socket.
    pub async fn answer_with(&mut self, reply: &Reply, beside: BorrowedFd<'_>) {
        if self.stream.writable().await.is_ok() {
            let _ = den_sys::socket::send(self.stream.as_fd(), &message_bytes(reply), &[beside]);
        }
    }

    /// Whether the other side is no process of this computer: then the kernel has no id for it in here.
    pub fn is_from_outside(&self) -> bool {
        self.stream.peer_cred().is_ok_and(|peer| peer.pid().is_none_or(|pid| pid == 0))
    }

    /// Whether the other side has closed it.
    pub fn is_left(&self) -> bool {
        // Told of without being asked for.
        let mut wait = [PollFd::new(&self.stream, PollFlags::empty())];
        matches!(poll(&mut wait, Some(&Timespec::default())), Ok(1..))
    }

    /// Takes it apart into frames that come in, and what goes out.
    pub fn split(self) -> (FrameReader, OwnedWriteHalf) {
        let (read, write) = self.stream.into_split();
        (BufReader::with_capacity(FRAME_BUFFER_BYTES, AsyncReadExt::chain(io::Cursor::new(self.ahead), read)), write)
    }

    /// The stream, and what was read of it already.
    pub fn into_raw(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.ahead)
    }

    /// For a thread.
    pub fn into_blocking(self) -> io::Result<Blocking> {
        let stream = self.stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(Blocking { ahead: io::Cursor::new(self.ahead), stream })
    }
}

/// A connection on a thread of its own.
pub struct Blocking {
    ahead: io::Cursor<Vec<u8>>,
    stream: StdStream,
}

impl Blocking {
    /// A second descriptor of the same socket.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Sends a message.
    pub fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        den_wire::frame::blocking::write_message(&mut self.stream, reply)
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match Read::read(&mut self.ahead, buffer)? {
            0 => self.stream.read(buffer),
            count => Ok(count),
        }
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Blocking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
