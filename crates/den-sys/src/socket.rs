//! Unix sockets that carry descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::SysError;

/// The most descriptors in one packet.
pub const FDS_MAX: usize = 64;

/// A connected pair of SOCK_SEQPACKET sockets, close-on-exec.
pub fn packet_pair() -> Result<(OwnedFd, OwnedFd), SysError> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(SysError::rustix("socketpair", ""))
}

/// A listening socket of this kind at `path`, mode 0600. What stood there is replaced.
pub fn listen(path: &Path, kind: SocketType, backlog: i32) -> Result<OwnedFd, SysError> {
    let about = path.display().to_string();
    let fd = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(SysError::rustix("socket", &about))?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(SysError::new("unlink", about, errno.raw_os_error())),
    }
    let address = SocketAddrUnix::new(path).map_err(SysError::rustix("sockaddr_un", &about))?;
    rustix::net::bind(&fd, &address).map_err(SysError::rustix("bind", &about))?;
    rustix::net::listen(&fd, backlog).map_err(SysError::rustix("listen", &about))?;
    Ok(fd)
}

/// Accepts a connection; `None` where none waits on a non-blocking socket.
pub fn accept(listener: BorrowedFd<'_>) -> Result<Option<OwnedFd>, SysError> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => Ok(None),
        Err(errno) => Err(SysError::new("accept4", "", errno.raw_os_error())),
    }
}

/// Connects a SOCK_SEQPACKET socket to `path`.
pub fn connect_packet(path: &Path) -> Result<OwnedFd, SysError> {
    let about = path.display().to_string();
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(SysError::rustix("socket", &about))?;
    let address = SocketAddrUnix::new(path).map_err(SysError::rustix("sockaddr_un", &about))?;
    rustix::net::connect(&fd, &address).map_err(SysError::rustix("connect", &about))?;
    Ok(fd)
}

/// Connects a stream socket that does not block to `path`.
///
/// Errors: `EAGAIN` where the listener's queue is full.
pub fn connect_stream(path: &Path) -> Result<OwnedFd, SysError> {
    let about = || path.display().to_string();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| SysError::new("socket", about(), errno.raw_os_error()))?;
    let address =
        SocketAddrUnix::new(path).map_err(|errno| SysError::new("sockaddr_un", about(), errno.raw_os_error()))?;
    rustix::net::connect(&fd, &address).map_err(|errno| SysError::new("connect", about(), errno.raw_os_error()))?;
    Ok(fd)
}

/// As [`connect_stream`], to an abstract name of this thread's network namespace.
pub fn connect_abstract(name: &str) -> Result<OwnedFd, SysError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| SysError::new("socket", name, errno.raw_os_error()))?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())
        .map_err(|errno| SysError::new("sockaddr_un", name, errno.raw_os_error()))?;
    rustix::net::connect(&fd, &address).map_err(|errno| SysError::new("connect", name, errno.raw_os_error()))?;
    Ok(fd)
}

/// Sends `bytes` with `fds` beside them in one call; returns how many bytes went.
///
/// Errors: `EMSGSIZE` for a packet too long, `EPIPE` when the other side is gone, `EAGAIN` on a
/// non-blocking socket that is full.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, SysError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(SysError::new("sendmsg", "too many descriptors", libc::EMSGSIZE));
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(SysError::new("sendmsg", "", errno.raw_os_error())),
        }
    }
}

/// Receives into `bytes` and appends descriptors to `fds`; returns the number of bytes, 0 at the end.
pub fn receive(socket: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, SysError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(SysError::new("recvmsg", "", errno.raw_os_error())),
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(received.bytes)
}
