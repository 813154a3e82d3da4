//! What listens inside: the kernel's tables of sockets, and who holds each.
//!
//! ```text
//! /proc/net/{tcp,tcp6,udp,udp6} ─► address, port, inode ─┐
//! /proc/<pid>/fd/* ─► socket:[inode] ────────────────────┴─► with pid, name, command line
//! ```
//!
//! Only the computer's own network is looked at: what listens in a network namespace made inside (a
//! container's) is reached there through what publishes it here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use den_wire::agent::{Listening, PortProtocol, Reply};
use minicbor::bytes::ByteVec;

use super::conn::Blocking;

/// Sockets of one answer.
const REPLY_SOCKETS_MAX: usize = 256;

/// How much of a command line is sent, in bytes.
const ARGV_BYTES_MAX: u64 = 512;

/// `st` of a listening TCP socket, as /proc/net/tcp has it: TCP_LISTEN.
const TCP_LISTEN: &str = "0A";

/// `st` of a UDP socket that is connected to nobody: TCP_CLOSE.
const UDP_OPEN: &str = "07";

/// A row of one of the tables.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    address: IpAddr,
    port: u16,
    uid: u32,
    inode: u64,
}

/// Answers with all that listens.
pub fn run(mut conn: Blocking) {
    let tables = [
        (PortProtocol::Tcp, "/proc/net/tcp", TCP_LISTEN),
        (PortProtocol::Tcp, "/proc/net/tcp6", TCP_LISTEN),
        (PortProtocol::Udp, "/proc/net/udp", UDP_OPEN),
        (PortProtocol::Udp, "/proc/net/udp6", UDP_OPEN),
    ];
    let mut found = Vec::new();
    for (protocol, path, state) in tables {
        found.extend(table(path, state).into_iter().map(|row| (protocol, row)));
    }
    let mut holders = holders(found.iter().map(|(_, row)| row.inode));
    let sockets: Vec<Listening> = found
        .into_iter()
        .map(|(protocol, row)| {
            let holder = holders.get_mut(&row.inode).and_then(|holder| holder.clone());
            let address = match row.address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            Listening {
                protocol,
                address: address.into(),
                port: row.port,
                uid: row.uid,
                pid: holder.as_ref().map(|holder| holder.pid),
                command: holder.as_ref().map(|holder| holder.command.clone()),
                argv: holder.map(|holder| holder.argv),
            }
        })
        .collect();
    for some in sockets.chunks(REPLY_SOCKETS_MAX) {
        if conn.reply(&Reply::Ports(some.to_vec())).is_err() {
            return;
        }
    }
    let _ = conn.reply(&Reply::Done);
}

/// The addresses at which something listens on a TCP port.
pub fn tcp_addresses(port: u16) -> Vec<IpAddr> {
    let rows = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(|path| table(path, TCP_LISTEN));
    rows.filter(|row| row.port == port).map(|row| row.address).collect()
}

/// The rows in `state`. A table that is not there (no IPv6) is an empty one.
fn table(path: &str, state: &str) -> Vec<Row> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    rows(BufReader::new(file), state)
}

fn rows(table: impl BufRead, state: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for line in table.lines().skip(1) {
        let Ok(line) = line else { break };
        // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(st)) = (words.next(), words.nth(1)) else { continue };
        if st != state {
            if state == TCP_LISTEN {
                // Those that listen come first; connections, of which there may be many, follow.
                break;
            }
            continue;
        }
        let (Some(uid), Some(inode)) = (words.nth(3), words.nth(1)) else { continue };
        let (Some((address, port)), Ok(uid), Ok(inode)) = (local_address(local), uid.parse(), inode.parse()) else {
            continue;
        };
        if port != 0 {
            rows.push(Row { address, port, uid, inode });
        }
    }
    rows
}

/// `0100007F:1F90`: words of 32 bits in the order of the network, printed as numbers of the host.
fn local_address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (place, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(place * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some((address, port))
}

/// A process that holds a socket.
#[derive(Debug, Clone)]
struct Holder {
    pid: u32,
    command: ByteVec,
    argv: ByteVec,
}

/// Who holds these sockets: of several processes that of the lowest number, which is the parent.
fn holders(inodes: impl Iterator<Item = u64>) -> HashMap<u64, Option<Holder>> {
    let mut holders: HashMap<u64, Option<Holder>> =
        inodes.filter(|&inode| inode != 0).map(|inode| (inode, None)).collect();
    let mut left = holders.len();
    if left == 0 {
        return holders;
    }
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        // Gone meanwhile, or of a user namespace that this one may not look into.
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let mut holder = None;
        for descriptor in descriptors.flatten() {
            let Ok(link) = std::fs::read_link(descriptor.path()) else { continue };
            let inode = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode
                && let Some(place @ None) = holders.get_mut(&inode)
            {
                *place = Some(holder.get_or_insert_with(|| describe(pid)).clone());
                left -= 1;
                if left == 0 {
                    return holders;
                }
            }
        }
    }
    holders
}

fn describe(pid: u32) -> Holder {
    let read = |name: &str| {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(format!("/proc/{pid}/{name}")) {
            let _ = file.take(ARGV_BYTES_MAX).read_to_end(&mut bytes);
        }
        bytes
    };
    let mut command = read("comm");
    if command.ends_with(b"\n") {
        command.pop();
    }
    Holder { pid, command: command.into(), argv: read("cmdline").into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0\n   \
                   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1\n";
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(rows(tcp.as_bytes(), TCP_LISTEN), [Row { address: local, port: 8080, uid: 1000, inode: 4711 }]);
        let udp6 = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n  \
                    40: 0000000000000000FFFF00000100007F:0035 0000000000000000FFFF00000100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0\n  \
                    41: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 99 2 0 0\n  \
                    42: nonsense 07\n";
        let local = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(rows(udp6.as_bytes(), UDP_OPEN), [Row { address: local, port: 53, uid: 0, inode: 99 }]);
    }
}
