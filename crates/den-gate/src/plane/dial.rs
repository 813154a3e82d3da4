//! Connecting to where a flow is let through: the name is resolved here, each address is held
//! against the floor and against the host's own, and exactly what passed is dialled.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::decide::{Why, dialled};
use crate::host::Host;
use crate::policy::{Policy, PrivateTarget};

use super::Rest;
use super::inside::KEEPALIVE;

/// For all addresses of a name together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// For one address while there are others.
const DIAL_TIMEOUT_ONE: Duration = Duration::from_secs(3);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why nothing is dialled, or nobody answered.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub why: Why,
    /// The rule that denies an address, as it was written.
    pub rule: Option<String>,
}

impl From<Why> for Refused {
    fn from(why: Why) -> Self {
        Self { why, rule: None }
    }
}

/// The addresses of a name, or the one that was asked for, that may be dialled.
pub(super) async fn addresses(
    rest: &Rest,
    policy: &Policy,
    name: Option<&Host>,
    asked: SocketAddr,
) -> Result<Vec<SocketAddr>, Refused> {
    let found = match name {
        None => vec![asked.ip()],
        Some(name) => rest.resolver.addresses(name).await.map_err(|error| {
            tracing::debug!(%error, "a name has no address");
            Refused::from(Why::NoAddress)
        })?,
    };
    let mut refused = None;
    let mut passed = Vec::with_capacity(1);
    for address in found.into_iter().take(ADDRESSES_MAX) {
        let address = SocketAddr::new(address, asked.port());
        match permits(rest, policy, address) {
            Ok(()) => passed.push(address),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(refused) if passed.is_empty() => Err(refused),
        _ if passed.is_empty() => Err(Why::NoAddress.into()),
        _ => Ok(passed),
    }
}

/// Whether an address may be dialled, by the floor, the rules and what is the host's own.
pub(super) fn permits(rest: &Rest, policy: &Policy, address: SocketAddr) -> Result<(), Refused> {
    let (ip, port) = (address.ip().to_canonical(), address.port());
    dialled(policy, ip, port, rest.private())
        .map_err(|(why, rule)| Refused { why, rule: rule.map(ToString::to_string) })?;
    let opened = |target: &PrivateTarget| match ip {
        IpAddr::V4(v4) => target.holds(v4, port),
        IpAddr::V6(_) => false,
    };
    if rest.private().iter().any(opened) {
        return Ok(());
    }
    match is_own(address) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Why::OwnAddress.into()),
        // A broadcast address of one of the host's networks.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Why::Floor.into()),
        // No way there; the dial says it again.
        Err(_) => Ok(()),
    }
}

/// Whether the host would talk to itself: a UDP socket that is connected sends nothing, and says
/// which address it would send from.
fn is_own(target: SocketAddr) -> io::Result<bool> {
    let (family, any): (_, IpAddr) = match target {
        SocketAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &target)?;
    let local = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok(local.ip() == target.ip() || local.ip() == any)
}

/// Connects to the first of these that answers.
pub(super) async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Why> {
    let until = Instant::now() + DIAL_TIMEOUT;
    let mut why = Why::DialFailed;
    for (at, address) in addresses.iter().enumerate() {
        let one = if at + 1 < addresses.len() { Instant::now() + DIAL_TIMEOUT_ONE } else { until };
        match tokio::time::timeout_at(one.min(until), connect_one(*address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "upstream does not take the flow");
                why = Why::DialFailed;
            }
            Err(_) => why = Why::DialTimeout,
        }
    }
    Err(why)
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    den_sys::transparent::keep_alive(&socket, &KEEPALIVE)?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::is_own;

    #[test]
    fn the_host_knows_its_own_addresses() {
        assert!(is_own("127.0.0.1:80".parse().unwrap()).unwrap());
        assert!(!is_own("192.0.2.1:80".parse().unwrap()).unwrap_or(false));
    }
}
