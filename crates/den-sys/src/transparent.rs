//! Sockets that take what was sent to somebody else. Source: ip(7) IP_TRANSPARENT, socket(7)
//! SO_BINDTODEVICE, linux Documentation/networking/tproxy.rst.
//!
//! A listener that is bound to a device hands the device on to what it accepts: two peers with the
//! same addresses and ports never meet, and answers leave by the device without a route.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::SysError;

/// Datagrams that wait in [`datagrams`], in bytes: many devices share one socket.
const RECEIVE_BYTES: i32 = 4 << 20;

/// How the kernel finds out that the other side of a quiet connection is gone.
pub struct Keepalive {
    /// Quiet for so long before the first question.
    pub idle: Duration,
    /// Between questions.
    pub interval: Duration,
    /// Questions without an answer.
    pub count: u32,
}

/// A non-blocking listener in this thread's network namespace for whatever the packet rules bring to
/// `port` by `device`. What it accepts inherits TCP_NODELAY and `keepalive`, and is sent without pacing
/// (`reno`, which every kernel has): a veth has no queue to spare, and the host's `bbr` would have each
/// packet wait for a timer.
///
/// Errors: `ENODEV` where there is no such device.
pub fn listener(device: &str, port: u16, backlog: i32, keepalive: &Keepalive) -> Result<OwnedFd, SysError> {
    let socket = socket(SocketType::STREAM)?;
    bind_to_device(&socket, device)?;
    let set = |call| SysError::rustix(call, device);
    sockopt::set_tcp_nodelay(&socket, true).map_err(set("setsockopt(TCP_NODELAY)"))?;
    keep_alive(&socket, keepalive).map_err(set("setsockopt(SO_KEEPALIVE)"))?;
    sockopt::set_tcp_congestion(&socket, "reno").map_err(set("setsockopt(TCP_CONGESTION)"))?;
    bind(&socket, port)?;
    rustix::net::listen(&socket, backlog).map_err(set("listen"))?;
    Ok(socket)
}

/// Has the kernel look after a quiet connection.
pub fn keep_alive(socket: impl AsFd, keepalive: &Keepalive) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, keepalive.idle)?;
    sockopt::set_tcp_keepintvl(socket, keepalive.interval)?;
    sockopt::set_tcp_keepcnt(socket, keepalive.count)
}

/// Whoever waits for this TCP socket is woken once it holds so many bytes, at its end and when it breaks. What it
/// holds now and is enough wakes at once. Source: socket(7) SO_RCVLOWAT, `tcp_set_rcvlowat` of net/ipv4/tcp.c.
pub fn wake_from(socket: impl AsFd, bytes: i32) -> Result<(), SysError> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes, "setsockopt(SO_RCVLOWAT)")
}

/// A non-blocking UDP socket at `port`, for all devices, which [`crate::datagram`] reads and answers.
pub fn datagrams(port: u16) -> Result<OwnedFd, SysError> {
    let socket = socket(SocketType::DGRAM)?;
    set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1, "setsockopt(IP_PKTINFO)")?;
    // Past the host's usual maximum; a gate inside a computer has to be content with that.
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BYTES, "setsockopt(SO_RCVBUFFORCE)")
        .or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BYTES, "setsockopt(SO_RCVBUF)"))?;
    bind(&socket, port)?;
    Ok(socket)
}

fn socket(kind: SocketType) -> Result<OwnedFd, SysError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::INET, kind, flags, None).map_err(SysError::rustix("socket", ""))?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(SysError::rustix("setsockopt(SO_REUSEADDR)", ""))?;
    set(&socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1, "setsockopt(IP_TRANSPARENT)")?;
    Ok(socket)
}

fn bind(socket: &OwnedFd, port: u16) -> Result<(), SysError> {
    let any = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    rustix::net::bind(socket, &any).map_err(SysError::rustix("bind", any))
}

fn set(socket: impl AsFd, level: i32, option: i32, value: i32, call: &'static str) -> Result<(), SysError> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` lives here and has the length that is said.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result != 0 { Err(SysError::last(call, "")) } else { Ok(()) }
}

fn bind_to_device(socket: &OwnedFd, device: &str) -> Result<(), SysError> {
    // SAFETY: the kernel reads as many bytes as the text has.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_ptr().cast(),
            device.len() as libc::socklen_t,
        )
    };
    if result != 0 { Err(SysError::last("setsockopt(SO_BINDTODEVICE)", device)) } else { Ok(()) }
}
