//! The few rtnetlink requests that a launch needs, batched. Source: rtnetlink(7), veth(4).

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::SysError;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const REQUEST_ACK: u16 = 1 | 4;
const CREATE_EXCLUSIVE: u16 = 0x400 | 0x200;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;

/// A socket to the network namespace that the thread was in when it was made.
pub struct Netlink(OwnedFd);

/// A veth pair to make: one end here, the other in the namespace of a process.
pub struct VethPair<'a> {
    /// Name of the end here, at most 15 bytes.
    pub name: &'a str,
    /// Process whose namespace gets the other end.
    pub peer_pid: i32,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Address of the other end.
    pub peer_mac: [u8; 6],
    /// Bytes of a packet.
    pub mtu: u32,
}

impl Netlink {
    /// Opens one (protocol 0 is NETLINK_ROUTE) in this thread's network namespace.
    pub fn open() -> Result<Self, SysError> {
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map(Self)
            .map_err(SysError::rustix("socket(NETLINK_ROUTE)", ""))
    }

    /// Brings the interface of this index up; 1 is the loopback.
    pub fn set_up(&self, index: u32) -> Result<(), SysError> {
        let mut request = Message::new(RTM_NEWLINK, 0);
        request.interface(index, IFF_UP, IFF_UP);
        self.exchange(request, "RTM_NEWLINK up")
    }

    /// Makes a veth pair. The other end has index 2 and is down: it is brought up from inside.
    pub fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), SysError> {
        let mut request = Message::new(RTM_NEWLINK, CREATE_EXCLUSIVE);
        request.interface(0, IFF_UP, IFF_UP);
        request.text(IFLA_IFNAME, pair.name);
        request.attribute(IFLA_MTU, &pair.mtu.to_ne_bytes());
        let link = request.open(IFLA_LINKINFO);
        request.attribute(IFLA_INFO_KIND, b"veth");
        let data = request.open(IFLA_INFO_DATA);
        let peer = request.open(VETH_INFO_PEER);
        request.interface(2, 0, 0);
        request.text(IFLA_IFNAME, pair.peer_name);
        request.attribute(IFLA_ADDRESS, &pair.peer_mac);
        request.attribute(IFLA_MTU, &pair.mtu.to_ne_bytes());
        request.attribute(IFLA_NET_NS_PID, &pair.peer_pid.to_ne_bytes());
        request.close(peer);
        request.close(data);
        request.close(link);
        self.exchange(request, "RTM_NEWLINK veth")
    }

    /// Unmakes the interface of this name; one that is gone is no error.
    pub fn delete(&self, name: &str) -> Result<(), SysError> {
        let mut request = Message::new(RTM_DELLINK, 0);
        request.interface(0, 0, 0);
        request.text(IFLA_IFNAME, name);
        match self.exchange(request, "RTM_DELLINK") {
            Err(error) if error.errno == libc::ENODEV => Ok(()),
            other => other,
        }
    }

    fn exchange(&self, request: Message, call: &'static str) -> Result<(), SysError> {
        let bytes = request.finish();
        rustix::net::send(&self.0, &bytes, SendFlags::empty()).map_err(SysError::rustix(call, "send"))?;
        let mut answer = [0_u8; 4096];
        let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())
            .map_err(SysError::rustix(call, "receive"))?;
        // An acknowledgement: nlmsghdr (16 bytes) and the negative errno.
        if length < 20 {
            return Err(SysError::new(call, "short answer", libc::EPROTO));
        }
        match i32::from_ne_bytes(answer[16..20].try_into().expect("4 bytes")) {
            0 => Ok(()),
            error => Err(SysError::new(call, "", -error)),
        }
    }
}

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
        bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        Self(bytes)
    }

    /// struct ifinfomsg.
    fn interface(&mut self, index: u32, flags: u32, change: u32) {
        self.0.extend([0; 4]);
        for value in [index, flags, change] {
            self.0.extend(value.to_ne_bytes());
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend(kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let length = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}
