//! The few rtnetlink requests that a launch needs, batched. Source: rtnetlink(7), veth(4),
//! linux/if_link.h, linux/neighbour.h.
//!
//! ```text
//! Batch: veth, neighbour, …  ──one send──►  kernel works them off in order, within that call
//!                            ◄─one receive─ the last one's acknowledgement, after what failed before it
//! ```

mod routing;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::SysError;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// Bytes of struct nlmsghdr.
const HEADER_BYTES: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const AF_INET: u8 = libc::AF_INET as u8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;

/// A socket to the network namespace that the thread was in when it was made.
pub struct Netlink(OwnedFd);

/// A veth pair to make: one end here, the other in the namespace of a process.
pub struct VethPair<'a> {
    /// Name of the end here, at most 15 bytes.
    pub name: &'a str,
    /// Index of the end here; 0 lets the kernel choose.
    pub index: u32,
    /// Address of the end here; `None` lets the kernel choose.
    pub mac: Option<[u8; 6]>,
    /// Process whose namespace gets the other end.
    pub peer_pid: i32,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Address of the other end.
    pub peer_mac: [u8; 6],
    /// Bytes of a packet.
    pub mtu: u32,
}

/// Where a route leads.
pub enum Route {
    /// To this one address, which is reached without a gateway.
    Neighbour(Ipv4Addr),
    /// To everywhere, by this gateway, which need not lie in a network of the interface.
    Default(Ipv4Addr),
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
        self.run(Batch::new().set_up(index))
    }

    /// Makes a veth pair. The other end has index 2 and is down: it is brought up from inside.
    pub fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), SysError> {
        self.run(Batch::new().veth(pair))
    }

    /// Unmakes the interface of this name; one that is gone is no error.
    pub fn delete(&self, name: &str) -> Result<(), SysError> {
        let mut batch = Batch::new();
        let request = batch.begin("RTM_DELLINK", RTM_DELLINK, 0);
        request.interface(0, 0, 0);
        request.text(IFLA_IFNAME, name);
        match self.run(batch) {
            Err(error) if error.errno == libc::ENODEV => Ok(()),
            other => other,
        }
    }

    /// Has the kernel work off a batch. What comes after a request that failed is tried all the
    /// same; the error is the first one's.
    pub fn run(&self, mut batch: Batch) -> Result<(), SysError> {
        batch.finish();
        let Some(&last) = batch.calls.last() else { return Ok(()) };
        let (bytes, calls) = (batch.bytes, batch.calls);
        rustix::net::send(&self.0, &bytes, SendFlags::empty()).map_err(SysError::rustix(last, "send"))?;
        let mut first = Ok(());
        let mut answer = [0_u8; 8192];
        // The kernel answers within the call to send, so none of these waits.
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())
                .map_err(SysError::rustix(last, "receive"))?;
            let mut rest = &answer[..length];
            while rest.len() >= HEADER_BYTES {
                let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
                let (size, kind, number) = (word(0) as usize, word(4) as u16, word(8) as usize);
                // An acknowledgement: nlmsghdr and the negative errno.
                if kind != NLMSG_ERROR || size < HEADER_BYTES + 4 || size > rest.len() {
                    return Err(SysError::new(last, "malformed answer", libc::EPROTO));
                }
                let errno = -(word(HEADER_BYTES) as i32);
                let call = calls.get(number.wrapping_sub(1));
                if let Some(call) = call.filter(|_| errno != 0 && first.is_ok()) {
                    first = Err(SysError::new(call, "", errno));
                }
                if number == calls.len() {
                    return first;
                }
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

/// Requests that go to the kernel in one send.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    calls: Vec<&'static str>,
    /// Where the last request begins: its length is known only when the next one begins.
    open: usize,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(512), ..Self::default() }
    }

    /// Adds: make a veth pair, see [`Netlink::add_veth`].
    pub fn veth(mut self, pair: &VethPair<'_>) -> Self {
        let request = self.begin("RTM_NEWLINK veth", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
        request.interface(pair.index, IFF_UP, IFF_UP);
        request.text(IFLA_IFNAME, pair.name);
        if let Some(mac) = &pair.mac {
            request.attribute(IFLA_ADDRESS, mac);
        }
        request.size(pair.mtu);
        let link = request.open(IFLA_LINKINFO);
        request.attribute(IFLA_INFO_KIND, b"veth");
        let data = request.open(IFLA_INFO_DATA);
        let peer = request.open(VETH_INFO_PEER);
        request.interface(2, 0, 0);
        request.text(IFLA_IFNAME, pair.peer_name);
        request.attribute(IFLA_ADDRESS, &pair.peer_mac);
        request.size(pair.mtu);
        request.attribute(IFLA_NET_NS_PID, &pair.peer_pid.to_ne_bytes());
        request.close(peer);
        request.close(data);
        request.close(link);
        self
    }

    /// Adds: bring the interface of this index up.
    pub fn set_up(mut self, index: u32) -> Self {
        self.begin("RTM_NEWLINK up", RTM_NEWLINK, 0).interface(index, IFF_UP, IFF_UP);
        self
    }

    /// Adds: the interface gives itself no IPv6 address when it comes up.
    pub fn no_link_local(mut self, index: u32) -> Self {
        let request = self.begin("RTM_NEWLINK addr-gen-mode", RTM_NEWLINK, 0);
        request.interface(index, 0, 0);
        let families = request.open(IFLA_AF_SPEC);
        let family = request.open(libc::AF_INET6 as u16);
        request.attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
        request.close(family);
        request.close(families);
        self
    }

    /// Adds: the interface has this address, alone in its network (/32).
    pub fn address(mut self, index: u32, address: Ipv4Addr) -> Self {
        let request = self.begin("RTM_NEWADDR", RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        request.bytes.extend([AF_INET, 32, 0, RT_SCOPE_UNIVERSE]);
        request.bytes.extend(index.to_ne_bytes());
        request.attribute(IFA_LOCAL, &address.octets());
        request.attribute(IFA_ADDRESS, &address.octets());
        self
    }

    /// Adds: this address has this MAC behind the interface, for ever. The interface must be up.
    pub fn neighbour(mut self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Self {
        let request = self.begin("RTM_NEWNEIGH", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
        // struct ndmsg: family, padding, index, state, flags, type.
        request.bytes.extend([AF_INET, 0, 0, 0]);
        request.bytes.extend(index.to_ne_bytes());
        request.bytes.extend(NUD_PERMANENT.to_ne_bytes());
        request.bytes.extend([0, 0]);
        request.attribute(NDA_DST, &address.octets());
        request.attribute(NDA_LLADDR, &mac);
        self
    }

    /// Adds: a route of the main table by the interface, which must be up.
    pub fn route(mut self, index: u32, route: &Route) -> Self {
        let request = self.begin("RTM_NEWROUTE", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
        let (bits, scope, flags) = match route {
            Route::Neighbour(_) => (32, RT_SCOPE_LINK, 0),
            Route::Default(_) => (0, RT_SCOPE_UNIVERSE, RTNH_F_ONLINK),
        };
        // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
        request.bytes.extend([AF_INET, bits, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST]);
        request.bytes.extend(u32::to_ne_bytes(flags));
        match route {
            Route::Neighbour(address) => request.attribute(RTA_DST, &address.octets()),
            Route::Default(gateway) => request.attribute(RTA_GATEWAY, &gateway.octets()),
        }
        request.attribute(RTA_OIF, &index.to_ne_bytes());
        self
    }

    /// Begins a request; `call` names it in an error.
    fn begin(&mut self, call: &'static str, kind: u16, flags: u16) -> &mut Self {
        self.end();
        self.open = self.bytes.len();
        self.calls.push(call);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend((self.calls.len() as u32).to_ne_bytes());
        self.bytes.extend([0; 4]);
        self
    }

    /// Writes the length of the last request into it, now that it is known.
    fn end(&mut self) {
        let length = (self.bytes.len() - self.open) as u32;
        if let Some(header) = self.bytes.get_mut(self.open..self.open + 4) {
            header.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Only the last one asks for an acknowledgement; a failure is said in any case.
    fn finish(&mut self) {
        self.end();
        if let Some(flags) = self.bytes.get_mut(self.open + 6..self.open + 8) {
            flags[0] |= NLM_F_ACK.to_ne_bytes()[0];
            flags[1] |= NLM_F_ACK.to_ne_bytes()[1];
        }
    }

    /// struct ifinfomsg.
    fn interface(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes.extend([0; 4]);
        for value in [index, flags, change] {
            self.bytes.extend(value.to_ne_bytes());
        }
    }

    /// Bytes of a packet, and one queue each way: the kernel makes as many as there are CPUs else.
    fn size(&mut self, mtu: u32) {
        self.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.attribute(IFLA_NUM_TX_QUEUES, &1_u32.to_ne_bytes());
        self.attribute(IFLA_NUM_RX_QUEUES, &1_u32.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend([0, 0]);
        self.bytes.extend(kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }
}
