//! Datagrams with the device that they came by and the address that they were sent to; answers
//! leave by that device and come from that address. Source: ip(7) IP_PKTINFO.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where a datagram came from and where it was bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// The address that it was sent to.
    pub to: Ipv4Addr,
    /// Index of the interface.
    pub interface: u32,
}

/// Room for one IP_PKTINFO, aligned as a cmsghdr must be.
type Control = [MaybeUninit<usize>; 16];

/// Receives one into `buffer`. A datagram without an envelope, or longer than the buffer, is
/// `InvalidData`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Envelope)> {
    let mut control: Control = [MaybeUninit::uninit(); 16];
    // SAFETY: these structs are plain numbers and pointers, for which zero is a value.
    let (mut name, mut message): (libc::sockaddr_in, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of_val(&name) as libc::socklen_t;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of `message` leads to something that lives here, with its true length.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut info = None;
    // SAFETY: the CMSG macros walk what the kernel wrote into `control`; IP_PKTINFO carries an
    // in_pktinfo, read without regard to alignment.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::IPPROTO_IP && found.cmsg_type == libc::IP_PKTINFO {
                info = Some(libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().read_unaligned());
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    let whole = message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) == 0;
    let Some(info) = info.filter(|_| whole && name.sin_family == libc::AF_INET as libc::sa_family_t) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let address = |raw: libc::in_addr| Ipv4Addr::from(u32::from_be(raw.s_addr));
    let from = SocketAddrV4::new(address(name.sin_addr), u16::from_be(name.sin_port));
    Ok((length as usize, Envelope { from, to: address(info.ipi_addr), interface: info.ipi_ifindex as u32 }))
}

/// Answers what came in this envelope.
pub fn answer(socket: BorrowedFd<'_>, envelope: &Envelope, bytes: &[u8]) -> io::Result<()> {
    let mut control: Control = [MaybeUninit::zeroed(); 16];
    // SAFETY: as in `receive`.
    let (mut name, mut message): (libc::sockaddr_in, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
    let raw = |address: Ipv4Addr| libc::in_addr { s_addr: u32::from(address).to_be() };
    name.sin_family = libc::AF_INET as libc::sa_family_t;
    name.sin_port = envelope.from.port().to_be();
    name.sin_addr = raw(*envelope.from.ip());
    let info = libc::in_pktinfo {
        ipi_ifindex: envelope.interface as i32,
        ipi_spec_dst: raw(envelope.to),
        ipi_addr: raw(Ipv4Addr::UNSPECIFIED),
    };
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of_val(&name) as libc::socklen_t;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: `control` has more room than one in_pktinfo with its header needs, and is aligned.
    let sent = unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of_val(&info) as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::IPPROTO_IP;
        (*header).cmsg_type = libc::IP_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(size_of_val(&info) as u32) as usize;
        libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().write_unaligned(info);
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
