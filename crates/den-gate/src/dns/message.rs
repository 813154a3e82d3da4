//! A response, from its question to its bytes.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record};

/// Extended DNS error: none of the others (RFC 8914).
pub const EDE_OTHER: u16 = 0;
/// Extended DNS error: blocked by the operator's policy (RFC 8914).
pub const EDE_BLOCKED: u16 = 15;
/// Extended DNS error: no server could be reached (RFC 8914: "No Reachable Authority").
pub const EDE_NETWORK: u16 = 22;
/// The option's number.
const EDE: u16 = 15;

/// Largest response over UDP, in bytes: it fits in a packet on any link (DNS flag day 2020).
pub(super) const UDP_BYTES_MAX: u16 = 1232;
/// Largest response over UDP to who does not speak EDNS, in bytes (RFC 1035).
const PLAIN_BYTES_MAX: usize = 512;
/// How long an answer of our own holds, in seconds.
pub(super) const TTL: u32 = 60;

/// Bytes of a message's head.
const HEAD_BYTES: usize = 12;

/// A response that is being put together.
pub(super) struct Response {
    message: Message,
    /// What the asker takes over UDP; none: it does not speak EDNS.
    payload: Option<u16>,
}

impl Response {
    /// An empty one to this query: NOERROR, with its question as it was written.
    pub(super) fn to(query: &Message) -> Self {
        let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
        message.metadata = Metadata::response_from_request(&query.metadata);
        message.metadata.recursion_available = true;
        message.queries = query.queries.clone();
        let payload = query.edns.as_ref().map(Edns::max_payload);
        if payload.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            message.edns = Some(edns);
        }
        Self { message, payload }
    }

    /// Sets the code; says why where the asker can read it.
    pub(super) fn fail(&mut self, code: ResponseCode, reason: Option<(u16, &str)>) {
        self.message.metadata.response_code = code;
        if let (Some((number, text)), Some(edns)) = (reason, self.message.edns.as_mut()) {
            let mut data = number.to_be_bytes().to_vec();
            data.extend_from_slice(text.as_bytes());
            edns.options_mut().insert(EdnsOption::Unknown(EDE, data));
        }
    }

    /// Adds an address under the name that was asked for.
    pub(super) fn address(&mut self, address: Ipv4Addr, ttl: u32) {
        self.record(RData::A(A(address)), ttl);
    }

    /// Adds a record under the name that was asked for.
    pub(super) fn record(&mut self, data: RData, ttl: u32) {
        let name = self.asked();
        self.message.answers.push(Record::from_rdata(name, ttl, data));
    }

    /// Adds records of others. Where their owner is what was asked for, it is written as it was
    /// asked: some askers vary the case of letters and look for it.
    pub(super) fn records(&mut self, records: impl IntoIterator<Item = Record>) {
        let asked = self.asked();
        self.message.answers.extend(records.into_iter().map(|mut record| {
            if record.name == asked {
                record.name = asked.clone();
            }
            record
        }));
    }

    /// Says how long "there is none" holds: with the zone's SOA, or one of our own.
    pub(super) fn nothing(&mut self, soa: Option<Record>) {
        let soa = soa.unwrap_or_else(|| {
            let owner = Name::from_labels([b"gate".as_slice(), b"internal"]).unwrap_or_default();
            let data = SOA::new(owner.clone(), owner, 1, 3600, 600, 86400, TTL);
            Record::from_rdata(self.asked(), TTL, RData::SOA(data))
        });
        self.message.authorities.push(soa);
    }

    /// Returns the bytes; over UDP those that fit, with the bit that says so.
    pub(super) fn bytes(self, over_udp: bool) -> Option<Vec<u8>> {
        let bytes = self.message.to_vec().ok()?;
        let room = match self.payload {
            _ if !over_udp => usize::from(u16::MAX),
            Some(payload) => usize::from(payload.clamp(PLAIN_BYTES_MAX as u16, UDP_BYTES_MAX)),
            None => PLAIN_BYTES_MAX,
        };
        if bytes.len() <= room {
            return Some(bytes);
        }
        self.message.truncate().to_vec().ok()
    }

    fn asked(&self) -> Name {
        self.message.queries.first().map(|query| query.name.clone()).unwrap_or_default()
    }
}

/// Returns the bytes of a response without anything in it but a code, where the query cannot be
/// read further than its head; none: it is no query, and answering would only make noise.
pub(super) fn bare(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let head: [u8; 4] = query.get(..HEAD_BYTES)?.first_chunk().copied()?;
    if head[2] & 0x80 != 0 {
        return None;
    }
    let mut answer = vec![head[0], head[1], 0x80 | (head[2] & 0x79), 0x80 | code.low()];
    answer.resize(HEAD_BYTES, 0);
    Some(answer)
}

/// Returns REFUSED to a query that was not looked at: who asks too often. Cheap, and with the
/// reason (RFC 8914) where the query says that it would be read. None: it is no query.
pub fn refused(query: &[u8], reason: u16) -> Option<Vec<u8>> {
    let mut answer = bare(query, ResponseCode::Refused)?;
    let questions = query.get(4..6)?;
    if questions != [0, 1] || OpCode::from_u8((query[2] >> 3) & 0x0f) != OpCode::Query {
        return Some(answer);
    }
    let Some(end) = question_end(query) else { return Some(answer) };
    answer[5] = 1;
    answer.extend_from_slice(&query[HEAD_BYTES..end]);
    if query.get(end..end + 3) == Some(&[0, 0, 41]) {
        answer[11] = 1;
        answer.extend_from_slice(&[0, 0, 41]);
        answer.extend_from_slice(&UDP_BYTES_MAX.to_be_bytes());
        answer.extend_from_slice(&[0; 4]);
        answer.extend_from_slice(&6_u16.to_be_bytes());
        answer.extend_from_slice(&EDE.to_be_bytes());
        answer.extend_from_slice(&2_u16.to_be_bytes());
        answer.extend_from_slice(&reason.to_be_bytes());
    }
    Some(answer)
}

/// Where the first question ends; none: it is cut off, or refers to elsewhere.
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = HEAD_BYTES;
    loop {
        match *query.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
        if at > HEAD_BYTES + 255 {
            return None;
        }
    }
    let end = at + 5;
    (end <= query.len()).then_some(end)
}
