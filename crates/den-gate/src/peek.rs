//! What a client speaks, and to whom, by its first bytes. Nothing is taken from the stream.
//!
//! ```text
//! 0x16 0x03 ── records ── handshake message 1 ── extensions ─► Tls { sni, ech }
//! token SP … HTTP/1.x ── header lines ── empty line ─────────► Http { host }
//! else, malformed, or longer than PEEK_BYTES_MAX ────────────► Other
//! not enough yet ────────────────────────────────────────────► More
//! ```
//!
//! Invariants:
//! - An answer other than `More` stays the same whatever follows, so it does not matter how the
//!   bytes were cut into packets.
//! - What could be read in two ways is not read: two names in an SNI, two Hosts, a fold after a
//!   Host are an error in the place of a name, never the first or the last of them.

mod tls;

use crate::decide::Seen;
use crate::host::{Host, HostError};

/// Bytes that are looked at, at most.
pub const PEEK_BYTES_MAX: usize = 16 << 10;
/// The longest method that is taken for one.
const METHOD_BYTES_MAX: usize = 32;

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peeked {
    /// Not to be said yet.
    More,
    /// A whole ClientHello.
    Tls {
        /// The name in it, if it says one.
        sni: Option<Result<Host, NameFault>>,
        /// It has an encrypted one besides, or pretends to (GREASE looks the same).
        ech: bool,
    },
    /// The whole head of a request of HTTP/1.
    Http {
        /// Whom it is for, if it says so.
        host: Option<Result<Host, NameFault>>,
        /// Length of the head with its empty line.
        head_bytes: usize,
    },
    /// Neither.
    Other,
}

/// Why there is no one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// It is no host name.
    #[error("it is no host name: {0}")]
    Host(#[from] HostError),
    /// There are several, or two that differ.
    #[error("it says more than one")]
    Several,
    /// It is not written as it should be.
    #[error("it is malformed")]
    Malformed,
}

impl Peeked {
    /// As [`crate::decide::decide`] takes it. A name that cannot be read is none.
    pub fn seen(&self) -> Seen<'_> {
        match self {
            Self::More => Seen::Nothing,
            Self::Tls { sni, ech } => Seen::Tls { sni: self::name(sni), ech: *ech },
            Self::Http { host, .. } => Seen::Http { host: self::name(host) },
            Self::Other => Seen::Other,
        }
    }

    /// The name that was said, if one was and it can be read.
    pub fn name(&self) -> Option<&Host> {
        match self {
            Self::Tls { sni, .. } => name(sni),
            Self::Http { host, .. } => name(host),
            Self::More | Self::Other => None,
        }
    }
}

fn name(said: &Option<Result<Host, NameFault>>) -> Option<&Host> {
    said.as_ref().and_then(|said| said.as_ref().ok())
}

/// Says what these are the first bytes of.
pub fn peek(bytes: &[u8]) -> Peeked {
    let window = &bytes[..bytes.len().min(PEEK_BYTES_MAX)];
    let peeked = match window.first() {
        None => return Peeked::More,
        Some(&tls::HANDSHAKE) => tls::peek(window),
        Some(&first) if is_token(first) => http(window),
        Some(_) => Peeked::Other,
    };
    if peeked == Peeked::More && window.len() == PEEK_BYTES_MAX { Peeked::Other } else { peeked }
}

/// The head of a request of HTTP/1, RFC 9112. Lines end with CRLF, or LF as lenient servers have
/// it: what follows here is only whom it is for; whether it is well formed, `crate::http` says.
fn http(bytes: &[u8]) -> Peeked {
    let token = bytes.iter().take_while(|b| is_token(**b)).count();
    match bytes.get(token) {
        _ if token > METHOD_BYTES_MAX => return Peeked::Other,
        None => return Peeked::More,
        Some(b' ') => {}
        Some(_) => return Peeked::Other,
    }
    let Some((request, mut rest)) = line(bytes) else { return Peeked::More };
    let mut parts = request[token + 1..].splitn(2, |b| *b == b' ');
    let (Some(target), Some(b"HTTP/1.1" | b"HTTP/1.0")) = (parts.next(), parts.next()) else { return Peeked::Other };

    let mut host = authority(&bytes[..token], target).map(host_of);
    let by_target = host.is_some();
    let mut headers = 0;
    let mut after_host = false;
    loop {
        let Some((text, next)) = line(rest) else { return Peeked::More };
        rest = next;
        match text {
            [] => break,
            // A folded line goes on with the one before.
            [b' ' | b'\t', ..] if after_host => host = Some(Err(NameFault::Malformed)),
            [b' ' | b'\t', ..] => {}
            _ => {
                let (name, value) = text.split_at(text.iter().position(|b| *b == b':').unwrap_or(text.len()));
                after_host = name.trim_ascii().eq_ignore_ascii_case(b"host");
                if !after_host {
                    continue;
                }
                headers += 1;
                let said = match value.split_first() {
                    Some((_, value)) if name.len() == 4 => host_of(value.trim_ascii()),
                    _ => Err(NameFault::Malformed),
                };
                host = Some(match host {
                    None => said,
                    Some(_) if headers > 1 => Err(NameFault::Several),
                    Some(Ok(target)) if by_target => match said {
                        Ok(said) if said == target => Ok(target),
                        Ok(_) => Err(NameFault::Several),
                        Err(fault) => Err(fault),
                    },
                    Some(fault) => fault,
                });
            }
        }
    }
    Peeked::Http { host, head_bytes: bytes.len() - rest.len() }
}

/// The first line without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let text = &bytes[..end];
    Some((text.strip_suffix(b"\r").unwrap_or(text), &bytes[end + 1..]))
}

/// Whom a request's target names: `http://HOST/…`, or `HOST:PORT` of CONNECT.
fn authority<'a>(method: &[u8], target: &'a [u8]) -> Option<&'a [u8]> {
    if method == b"CONNECT" {
        return Some(target);
    }
    if matches!(target.first(), Some(b'/' | b'*')) {
        return None;
    }
    let start = target.windows(3).position(|three| three == b"://")? + 3;
    let rest = &target[start..];
    Some(&rest[..rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len())])
}

/// The name in `HOST[:PORT]`.
fn host_of(authority: &[u8]) -> Result<Host, NameFault> {
    let (name, port) = match authority.iter().position(|b| *b == b':') {
        None => (authority, None),
        Some(at) => (&authority[..at], Some(&authority[at + 1..])),
    };
    if port.is_some_and(|port| port.len() > 5 || !port.iter().all(u8::is_ascii_digit)) {
        return Err(NameFault::Malformed);
    }
    Ok(Host::try_from(name)?)
}

/// What a method and a header's name are made of, RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
