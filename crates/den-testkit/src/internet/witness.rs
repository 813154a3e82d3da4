//! The witness: a packet socket on the link's inner end, which sees what arrives before any server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};

use super::{Shared, TICK, hold};

/// Bytes of a packet that are kept.
const SNAP: usize = 1600;
/// Packets that are kept; a bulk transfer's acknowledgements would else fill memory.
const PACKETS_MAX: usize = 100_000;
const ETH_P_ALL: u16 = 3;

/// A packet that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Whence.
    pub from: IpAddr,
    /// Whither.
    pub to: IpAddr,
    /// IP protocol number: 1 ICMP, 6 TCP, 17 UDP.
    pub protocol: u8,
    /// The port it is for, of TCP and UDP.
    pub port: Option<u16>,
    /// What comes after the IP header, as far as it is kept.
    pub bytes: Vec<u8>,
}

/// Starts it; it hears from this moment on.
pub(crate) fn start(shared: &Arc<Shared>) -> JoinHandle<()> {
    let all = NonZeroU32::new(ETH_P_ALL.to_be().into()).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, all).expect("a packet socket");
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 8 << 20);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let own = |to: IpAddr| matches!(to, IpAddr::V4(to) if is_own(&shared, to));
        let tick = Timespec::try_from(TICK).expect("a short time");
        let mut buffer = vec![0; SNAP];
        while !shared.stopped() {
            let mut ready = [PollFd::new(&socket, PollFlags::IN)];
            let _ = poll(&mut ready, Some(&tick));
            while let Ok((length, _)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                // What the namespace itself sends is seen as well: only what is for it, or foreign, counts.
                if let Some(packet) = parse(&buffer[..length])
                    && !matches!(packet.from, IpAddr::V4(from) if is_own(&shared, from))
                    && (own(packet.to) || !is_noise(&packet))
                {
                    let mut packets = hold(&shared.seen.packets);
                    if packets.len() < PACKETS_MAX {
                        packets.push(packet);
                    }
                }
            }
        }
    })
}

/// Addresses of this internet's own.
fn is_own(shared: &Shared, address: Ipv4Addr) -> bool {
    let block = shared.block;
    let [a, b, c, d] = address.octets();
    ([a, b, c] == [198, 51, 100] && d / 16 == block && d % 16 > 1)
        || ([a, b, c] == [10, 77, block])
        || ([a, b, c] == [100, 64, 77] && d / 16 == block)
}

/// The host's own chatter on a new link: multicast listener reports, router solicitations.
fn is_noise(packet: &Packet) -> bool {
    match packet.to {
        IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
        IpAddr::V6(to) => to.is_multicast() || packet.protocol == 58,
    }
}

fn parse(bytes: &[u8]) -> Option<Packet> {
    let (from, to, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
        4 => {
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
            let header = usize::from(bytes[0] & 15) * 4;
            (address(12)?.into(), address(16)?.into(), *bytes.get(9)?, bytes.get(header..)?)
        }
        6 => {
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
            (address(8)?.into(), address(24)?.into(), *bytes.get(6)?, bytes.get(40..)?)
        }
        _ => return None,
    };
    let port = match protocol {
        6 | 17 => rest.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]])),
        _ => None,
    };
    Some(Packet { from, to, protocol, port, bytes: rest.to_vec() })
}
