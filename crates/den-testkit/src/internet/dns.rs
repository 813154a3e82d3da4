//! The authoritative name server: UDP and TCP 53, answers from a table that a test changes, and
//! remembers every question.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::sites::accept_until_stopped;
use super::{Shared, Site, TICK, hold};

const A: u16 = 1;
const AAAA: u16 = 28;

/// A question that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// In small letters, without the last dot; bytes that are no letters as `\ddd`.
    pub name: String,
    /// The record type.
    pub kind: u16,
}

/// Names and their answers.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    names: HashMap<String, (usize, Vec<Vec<IpAddr>>)>,
}

impl Zone {
    pub(crate) fn set(&mut self, name: &str, answers: &[&[IpAddr]]) {
        let answers = answers.iter().map(|addresses| addresses.to_vec()).collect();
        self.names.insert(name.to_owned(), (0, answers));
    }

    /// The answer that is due: none where the name does not exist. A question for A moves the round on.
    fn answer(&mut self, name: &str, kind: u16) -> Option<Vec<IpAddr>> {
        let mut key = name.to_owned();
        let mut rest = name;
        while !self.names.contains_key(&key) {
            rest = rest.split_once('.')?.1;
            key = format!("*.{rest}");
        }
        let (turn, answers) = self.names.get_mut(&key)?;
        let addresses = answers.get(*turn % answers.len().max(1))?.clone();
        if kind == A {
            *turn += 1;
        }
        Some(addresses)
    }
}

/// Starts both services.
pub(crate) fn start(shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let at = SocketAddr::from((shared.at(Site::Dns), 53));
    let udp = UdpSocket::bind(at).expect("UDP 53");
    udp.set_read_timeout(Some(TICK)).expect("a timeout");
    let tcp = TcpListener::bind(at).expect("TCP 53");
    let own = Arc::clone(shared);
    let by_udp = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while !own.stopped() {
            let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
            if let Some(answer) = answer(&own, &buffer[..length]) {
                let _ = udp.send_to(&answer, from);
            }
        }
    });
    let by_tcp = accept_until_stopped(shared, tcp, |shared, mut stream| {
        let _ = serve(shared, &mut stream);
    });
    vec![by_udp, by_tcp]
}

fn serve(shared: &Shared, stream: &mut std::net::TcpStream) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message)?;
        let Some(answer) = answer(shared, &message) else { return Ok(()) };
        let mut framed = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes().to_vec();
        framed.extend(answer);
        stream.write_all(&framed)?;
    }
}

/// Remembers the question and answers it.
fn answer(shared: &Shared, message: &[u8]) -> Option<Vec<u8>> {
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*message.get(at)?);
        if length == 0 {
            break;
        }
        for &byte in message.get(at + 1..at + 1 + length)? {
            match byte {
                b'A'..=b'Z' => name.push(byte.to_ascii_lowercase().into()),
                0x21..=0x7e if byte != b'.' && byte != b'\\' => name.push(byte.into()),
                _ => name.push_str(&format!("\\{byte:03}")),
            }
        }
        name.push('.');
        at += 1 + length;
    }
    name.pop();
    let end = at + 5;
    let kind = u16::from_be_bytes([*message.get(at + 1)?, *message.get(at + 2)?]);
    let question = message.get(12..end)?;
    hold(&shared.seen.queries).push(Query { name: name.clone(), kind });
    let found = hold(&shared.zone).answer(&name, kind);
    let code = if found.is_some() { 0 } else { 3 };
    let wanted: Vec<Vec<u8>> = found
        .unwrap_or_default()
        .into_iter()
        .filter_map(|address| match (kind, address) {
            (A, IpAddr::V4(address)) => Some(address.octets().to_vec()),
            (AAAA, IpAddr::V6(address)) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut out = message.get(..2)?.to_vec();
    // A response, authoritative; recursion as it was asked for.
    out.extend([0x84 | (message.get(2)? & 1), 0x80 | code]);
    out.extend([0, 1, 0, u8::try_from(wanted.len()).ok()?, 0, 0, 0, 0]);
    out.extend(question);
    for address in wanted {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 0]);
        out.extend(u16::try_from(address.len()).ok()?.to_be_bytes());
        out.extend(address);
    }
    Some(out)
}
