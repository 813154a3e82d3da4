//! The floor: addresses that no computer reaches, whatever its posture and rules.
//!
//! ```text
//! address to dial ──► operator's private target? ──yes──► permitted
//!                          │no
//!                          ├─ TCP 25 ─────────────────────► smtp
//!                          ├─ v4: in FLOOR4 ──────────────► floor
//!                          └─ v6: in FLOOR6, or a v4 inside it (mapped, NAT64, 6to4, Teredo) is ─► floor
//! ```
//!
//! Held against the address that is dialled, after names are resolved. The documentation ranges
//! (192.0.2/24, 198.51.100/24, 203.0.113/24) are not in it: closed networks use them.
//!
//! Not here: the host's own addresses. Only the dialler can know them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::decide::Why;
use crate::policy::PrivateTarget;

/// Blocks of IPv4 in the floor.
pub const FLOOR4: [(Ipv4Addr, u8); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Blocks of IPv6 in the floor, beside those that hold an IPv4 address.
pub const FLOOR6: [(Ipv6Addr, u8); 6] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    // NAT64 of the network's own choosing (RFC 8215): where its IPv4 address lies, only it knows.
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    // Link-local, and site-local (fec0::/10) beside it.
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 9),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// The port of SMTP between servers: mail is not sent from computers.
pub const SMTP: u16 = 25;

/// Whether `address` may be dialled at `port`: [`Why::Floor`] or [`Why::Smtp`] where not.
///
/// Pure; the dialler checks besides that the address is not the host's own.
pub fn permits(address: IpAddr, port: u16, private: &[PrivateTarget]) -> Result<(), Why> {
    // To the kernel a mapped address is the IPv4 one.
    let address = address.to_canonical();
    if let IpAddr::V4(v4) = address
        && private.iter().any(|target| target.holds(v4, port))
    {
        return Ok(());
    }
    if port == SMTP {
        return Err(Why::Smtp);
    }
    let below = match address {
        IpAddr::V4(v4) => holds4(v4),
        IpAddr::V6(v6) => holds6(v6),
    };
    if below { Err(Why::Floor) } else { Ok(()) }
}

/// The first block of the floor that shares an address with this one.
pub fn overlaps(address: Ipv4Addr, prefix: u8) -> Option<(Ipv4Addr, u8)> {
    FLOOR4.into_iter().find(|&(block, bits)| {
        let shorter = prefix.min(bits);
        network(address, shorter) == network(block, shorter)
    })
}

/// The first address of the block of `prefix` bits that `address` lies in.
pub fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

fn holds4(address: Ipv4Addr) -> bool {
    FLOOR4.iter().any(|&(block, prefix)| network(address, prefix) == block)
}

fn holds6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    let within = |block: Ipv6Addr, prefix: u8| (bits ^ block.to_bits()) >> (128 - u32::from(prefix)) == 0;
    if FLOOR6.iter().any(|&(block, prefix)| within(block, prefix)) {
        return true;
    }
    let low = Ipv4Addr::from_bits(bits as u32);
    let s = address.segments();
    let pair = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match s {
        // IPv4-compatible (RFC 4291 2.5.5.1), and NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => holds4(low),
        // 6to4, RFC 3056.
        [0x2002, a, b, ..] => holds4(pair(a, b)),
        // Teredo, RFC 4380: the server, and the client with its bits inverted.
        [0x2001, 0, a, b, ..] => holds4(pair(a, b)) || holds4(Ipv4Addr::from_bits(!low.to_bits())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(address: &str, expected: Result<(), Why>) {
        assert_eq!(permits(address.parse().unwrap(), 443, &[]), expected, "{address}");
    }

    #[test]
    fn eg09_the_floor_holds_in_every_spelling() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "2001:0:a00:1::1",
            // Teredo: a public server, and the client 10.0.0.1 inverted.
            "2001:0:808:808:0:0:f5ff:fffe",
        ] {
            check(address, Err(Why::Floor));
        }
    }

    #[test]
    fn what_is_public_is_permitted() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.0.2.1",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.100.7",
            "203.0.113.80",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:db8::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
            "2001:0:808:808:0:0:f7f7:f7f7",
        ] {
            check(address, Ok(()));
        }
    }

    #[test]
    fn private_targets_are_exempt_at_their_port_only() {
        let private = ["10.1.2.3:5432".parse().unwrap(), "10.2.0.0/16:25".parse().unwrap()];
        let permits = |address: &str, port| permits(address.parse().unwrap(), port, &private);
        assert_eq!(permits("10.1.2.3", 5432), Ok(()));
        assert_eq!(permits("::ffff:10.1.2.3", 5432), Ok(()));
        assert_eq!(permits("10.1.2.3", 5433), Err(Why::Floor));
        assert_eq!(permits("10.1.2.4", 5432), Err(Why::Floor));
        assert_eq!(permits("10.2.255.1", 25), Ok(()));
        assert_eq!(permits("8.8.8.8", 25), Err(Why::Smtp));
        // Through a translator it is another target.
        assert_eq!(permits("64:ff9b::10.1.2.3", 5432), Err(Why::Floor));
    }

    #[test]
    fn blocks_overlap_either_way_round() {
        let overlaps = |text: &str, prefix| overlaps(text.parse().unwrap(), prefix);
        assert_eq!(overlaps("10.1.2.0", 24), Some((Ipv4Addr::new(10, 0, 0, 0), 8)));
        assert_eq!(overlaps("0.0.0.0", 0), Some((Ipv4Addr::new(0, 0, 0, 0), 8)));
        assert_eq!(overlaps("192.0.0.0", 8), Some((Ipv4Addr::new(192, 0, 0, 0), 24)));
        assert_eq!(overlaps("203.0.113.0", 24), None);
        assert_eq!(network(Ipv4Addr::new(10, 1, 2, 3), 0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(network(Ipv4Addr::new(10, 1, 2, 3), 32), Ipv4Addr::new(10, 1, 2, 3));
    }

    proptest! {
        #[test]
        fn an_embedded_address_is_held_as_the_address_itself(bits in any::<u32>(), port in 26u16..) {
            let v4 = Ipv4Addr::from_bits(bits);
            let own = permits(v4.into(), port, &[]);
            prop_assert_eq!(permits(v4.to_ipv6_mapped().into(), port, &[]), own);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            prop_assert_eq!(permits(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(), port, &[]), own);
            prop_assert_eq!(permits(Ipv6Addr::new(0x2002, high, low, 9, 9, 9, 9, 9).into(), port, &[]), own);
            prop_assert_eq!(overlaps(v4, 32).is_some(), own.is_err());
        }
    }
}
