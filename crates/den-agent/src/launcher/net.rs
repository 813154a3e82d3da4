//! Links: each computer's `eth0` is one end of a veth pair whose other end lies in the gate's
//! network namespace, which has no route to anywhere. Until a gate takes the links up they are
//! down inside, so a connection is refused at once instead of vanishing.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use den_sys::clone::{self, Unshare};
use den_sys::netlink::{Netlink, VethPair};
use den_sys::{SysError, mount};

/// Name of the interface inside.
const INSIDE: &str = "eth0";
/// Its address, the same in every computer: the link is the identity.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// Bytes of a packet. The gate ends every flow, so no path beyond it matters.
const MTU: u32 = 1500;

/// The gate's network namespace, by a socket in it.
pub(super) struct GateNet(Netlink);

impl GateNet {
    /// Finds the namespace that is held at `at`, or makes it and holds it there.
    /// To be called in the host's mount namespace, where `at` shall be visible.
    pub(super) fn open(at: &Path) -> Result<Self, SysError> {
        let own = Path::new("/proc/self/ns/net");
        let open = |path: &Path| File::open(path).map_err(|error| SysError::io("open", path, &error));
        let host = open(own)?;
        let kept = open(at).ok().filter(|kept| clone::enter_network(kept.as_fd()).is_ok());
        if kept.is_none() {
            clone::unshare(Unshare::Network)?;
            File::create(at).map_err(|error| SysError::io("create", at, &error))?;
            mount::bind(own, at)?;
        }
        let socket = Netlink::open().and_then(|socket| socket.set_up(1).map(|()| socket));
        clone::enter_network(host.as_fd())?;
        Ok(Self(socket?))
    }

    /// Gives the network namespace of process `pid` its link.
    pub(super) fn connect(&self, sequence: u64, pid: i32) -> Result<(), SysError> {
        let name = link_name(sequence);
        self.0.add_veth(&VethPair { name: &name, peer_pid: pid, peer_name: INSIDE, peer_mac: MAC, mtu: MTU })
    }

    /// Unmakes the link; one that went with its namespace is no error.
    pub(super) fn disconnect(&self, sequence: u64) {
        if let Err(error) = self.0.delete(&link_name(sequence)) {
            eprintln!("warning: {error}");
        }
    }
}

fn link_name(sequence: u64) -> String {
    format!("l{sequence}")
}
