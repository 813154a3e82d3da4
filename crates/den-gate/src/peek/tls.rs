//! A ClientHello: RFC 8446 section 4.1.2 inside records of section 5.1, server_name of RFC 6066.

use std::borrow::Cow;

use super::{NameFault, PEEK_BYTES_MAX, Peeked};
use crate::host::{Host, HostError};

/// A record of the handshake; the first byte of TLS.
pub(super) const HANDSHAKE: u8 = 22;
/// The longest record, in bytes.
const RECORD_BYTES_MAX: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
/// encrypted_client_hello, and encrypted_server_name as drafts before had it.
const ENCRYPTED: [u16; 2] = [0xfe0d, 0xffce];
const HOST_NAME: u8 = 0;

/// What the records at the beginning of `bytes` say.
pub(super) fn peek(bytes: &[u8]) -> Peeked {
    match message(bytes) {
        Message::More => Peeked::More,
        Message::Other => Peeked::Other,
        Message::Whole(hello) => client_hello(&hello).unwrap_or(Peeked::Other),
    }
}

enum Message<'a> {
    More,
    Other,
    /// The body of the ClientHello.
    Whole(Cow<'a, [u8]>),
}

/// Puts the first handshake message together; it may lie in any number of records.
fn message(bytes: &[u8]) -> Message<'_> {
    let mut gathered: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        // Each check is made as soon as its byte is there, and none takes back an earlier one.
        match rest {
            [] => return Message::More,
            [kind, ..] if *kind != HANDSHAKE => return Message::Other,
            [_, major, ..] if *major != 3 => return Message::Other,
            [_, _, minor, ..] if *minor > 4 => return Message::Other,
            _ => {}
        }
        let [_, _, _, high, low, body @ ..] = rest else { return Message::More };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > RECORD_BYTES_MAX {
            return Message::Other;
        }
        let (piece, next) = body.split_at(length.min(body.len()));
        if gathered.is_empty() {
            gathered = Cow::Borrowed(piece);
        } else {
            gathered.to_mut().extend_from_slice(piece);
        }
        let mut wanted = usize::MAX;
        if let Some(&kind) = gathered.first()
            && kind != CLIENT_HELLO
        {
            return Message::Other;
        }
        if let [_, a, b, c, ..] = gathered[..] {
            wanted = u32::from_be_bytes([0, a, b, c]) as usize + 4;
            if wanted > PEEK_BYTES_MAX {
                return Message::Other;
            }
        }
        if gathered.len() >= wanted {
            return Message::Whole(match gathered {
                Cow::Borrowed(all) => Cow::Borrowed(&all[4..wanted]),
                Cow::Owned(all) => Cow::Owned(all[4..wanted].to_vec()),
            });
        }
        if piece.len() < length {
            return Message::More;
        }
        rest = next;
    }
}

/// Reads a body; `None` where it is malformed.
fn client_hello(body: &[u8]) -> Option<Peeked> {
    let mut body = Reader(body);
    if body.u16()? >> 8 != 3 {
        return None;
    }
    body.take(32)?;
    let session = body.u8()?;
    body.take(usize::from(session))?;
    let suites = body.u16()?;
    if session > 32 || suites < 2 || suites % 2 != 0 {
        return None;
    }
    body.take(usize::from(suites))?;
    let compressions = body.u8()?;
    if compressions == 0 {
        return None;
    }
    body.take(usize::from(compressions))?;

    let (mut sni, mut ech) = (None, false);
    if !body.0.is_empty() {
        let length = body.u16()?;
        let mut extensions = Reader(body.take(usize::from(length))?);
        if !body.0.is_empty() {
            return None;
        }
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let length = extensions.u16()?;
            let data = extensions.take(usize::from(length))?;
            if kind == SERVER_NAME {
                sni = Some(if sni.is_some() { Err(NameFault::Several) } else { server_name(data) });
            }
            ech |= ENCRYPTED.contains(&kind);
        }
    }
    Some(Peeked::Tls { sni, ech })
}

/// The one name of a server_name extension.
fn server_name(data: &[u8]) -> Result<Host, NameFault> {
    one_name(data).ok_or(NameFault::Malformed)?.and_then(|name| {
        // RFC 6066: without a dot at the end.
        if name.ends_with(b".") {
            return Err(NameFault::Host(HostError::EmptyLabel));
        }
        Ok(Host::try_from(name)?)
    })
}

/// `None` where the list is malformed.
fn one_name(data: &[u8]) -> Option<Result<&[u8], NameFault>> {
    let mut data = Reader(data);
    let length = data.u16()?;
    let mut list = Reader(data.take(usize::from(length))?);
    // No other kind of name was ever defined, so how long one is cannot be known.
    if !data.0.is_empty() || list.u8()? != HOST_NAME {
        return None;
    }
    let length = list.u16()?;
    let name = list.take(usize::from(length))?;
    Some(if list.0.is_empty() { Ok(name) } else { Err(NameFault::Several) })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
}
