//! Links: each computer's `eth0` is one end of a veth pair whose other end, `l<sequence>`, lies in the
//! gate's network namespace, which has no route to anywhere.
//!
//! ```text
//! computer                          gate's namespace
//! eth0  10.0.0.2/32                 l<sequence>, index 1000 + sequence
//!       02:00:00:00:00:02  ───────  02:00:00:00:00:01
//! default via 169.254.1.1           169.254.1.1/32 on lo
//! ```
//!
//! All computers look the same inside: who somebody is, is said by the link and by nothing that is
//! sent on it. Both ends know each other's address for ever, so nobody has to be asked for it. What
//! passes is the gate's affair: until one has been here, what a computer sends finds no way on.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use den_sys::clone::{self, Unshare};
use den_sys::netlink::{Batch, Netlink, Route, VethPair};
use den_sys::{SysError, mount};

use super::ids::ids;

/// Name of the interface inside.
const INSIDE: &str = "eth0";
/// Its index, and the loopback's.
const INSIDE_INDEX: u32 = 2;
const LOOPBACK: u32 = 1;
/// Its addresses, the same in every computer.
const INSIDE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const INSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The gate's, on every link.
const GATE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const GATE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The index of a link's outer end is this and its sequence number.
const INDEX_FIRST: u64 = 1000;
/// Bytes of a packet. The gate ends every flow, so no path beyond it matters.
const MTU: u32 = 1500;

/// Settings of the gate's namespace: packets whose sender is the same on every link are no reason to drop
/// them, nothing is forwarded, and there is no IPv6.
const SETTINGS: [(&str, &str); 11] = [
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// The gate's network namespace.
pub(crate) struct GateNet(OwnedFd);

impl GateNet {
    /// Finds the namespace that is held at `at`, or makes it and holds it there; then sets it up.
    /// To be called in the host's mount namespace, where `at` shall be visible.
    pub(crate) fn open(at: &Path) -> Result<Self, SysError> {
        let host = open_namespace(OWN)?;
        let kept = open_namespace(at).ok().filter(|kept| clone::enter_network(kept.as_fd()).is_ok());
        let made = match kept {
            Some(kept) => Ok(kept),
            None => clone::unshare(Unshare::Network).and_then(|()| {
                File::create(at).map_err(|error| SysError::io("create", at, &error))?;
                mount::bind(OWN.as_ref(), at)?;
                open_namespace(OWN)
            }),
        };
        let made = made.and_then(|namespace| set_up_gate().map(|()| namespace));
        clone::enter_network(host.as_fd())?;
        made.map(Self)
    }

    /// A socket in it.
    pub(crate) fn links(&self) -> Result<Links, SysError> {
        let host = open_namespace(OWN)?;
        clone::enter_network(self.0.as_fd())?;
        let socket = Netlink::open();
        clone::enter_network(host.as_fd())?;
        socket.map(Links)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const OWN: &str = "/proc/self/ns/net";

fn open_namespace(path: impl AsRef<Path>) -> Result<OwnedFd, SysError> {
    let path = path.as_ref();
    File::open(path).map(OwnedFd::from).map_err(|error| SysError::io("open", path, &error))
}

/// Each time and not only when the namespace is new: who made it may have been killed before this.
fn set_up_gate() -> Result<(), SysError> {
    for (name, value) in SETTINGS {
        let path = Path::new("/proc/sys/net").join(name);
        match fs::write(&path, value) {
            // A host without IPv6 has no settings for it.
            Err(error) if error.kind() != ErrorKind::NotFound || name.starts_with("ipv4") => {
                return Err(SysError::io("write", &path, &error));
            }
            _ => {}
        }
    }
    Netlink::open()?.run(Batch::new().set_up(LOOPBACK).address(LOOPBACK, GATE_ADDRESS))
}

/// Makes and unmakes links.
pub(crate) struct Links(Netlink);

impl Links {
    /// Gives the network namespace of process `pid` its link.
    pub(crate) fn connect(&self, sequence: u64, pid: i32) -> Result<(), SysError> {
        let index = u32::try_from(INDEX_FIRST + sequence)
            .ok()
            .filter(|index| *index <= i32::MAX as u32)
            .ok_or(SysError::new("link", "numbers are used up", rustix::io::Errno::RANGE.raw_os_error()))?;
        let pair = VethPair {
            name: &link_name(sequence),
            index,
            mac: Some(GATE_MAC),
            peer_pid: pid,
            peer_name: INSIDE,
            peer_mac: INSIDE_MAC,
            mtu: MTU,
        };
        self.0.run(Batch::new().veth(&pair).neighbour(index, INSIDE_ADDRESS, INSIDE_MAC))
    }

    /// Unmakes the link; one that went with its namespace is no error.
    pub(super) fn disconnect(&self, sequence: u64) -> Result<(), SysError> {
        self.0.delete(&link_name(sequence))
    }
}

fn link_name(sequence: u64) -> String {
    format!("l{sequence}")
}

/// The inner end, by the husk itself: the loopback, `eth0`, and the way out.
pub(crate) fn set_up_inside() -> Result<(), SysError> {
    // So that everybody may `ping`, as on most distributions. A kernel that refuses it leaves ping to root.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", format!("0 {}", ids().per_slot - 1));
    // The gate is the only peer, and a veth has no queue to spare: the host's `bbr` would have each packet wait
    // for a timer. A kernel that refuses it leaves the host's.
    let _ = fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
    let batch = Batch::new().set_up(LOOPBACK);
    // A kernel without IPv6 refuses what is about it.
    let batch = if Path::new("/proc/sys/net/ipv6").exists() { batch.no_link_local(INSIDE_INDEX) } else { batch };
    Netlink::open()?.run(
        batch
            .address(INSIDE_INDEX, INSIDE_ADDRESS)
            .set_up(INSIDE_INDEX)
            .neighbour(INSIDE_INDEX, GATE_ADDRESS, GATE_MAC)
            .route(INSIDE_INDEX, &Route::Neighbour(GATE_ADDRESS))
            .route(INSIDE_INDEX, &Route::Default(GATE_ADDRESS)),
    )
}
