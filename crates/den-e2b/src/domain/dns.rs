//! Names of the domain, answered; nothing else is.
//!
//! ```text
//! the domain, and any name below ─► its address     other types ─► none (NOERROR)     other names ─► REFUSED
//! ```
//!
//! REFUSED has resolvers ask the next server that they know (resolv.conf(5)), so this may be the first of several.
//! Whoever asks is told what everybody may know: there is no limit on questions but the processor's.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::Domain;

/// How long an answer holds, in seconds: the address may be another one after the next start.
const TTL_S: u32 = 60;

/// The largest datagram that is read, and that askers are told of, in bytes (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;

/// Bytes of a message's head.
const HEAD_BYTES: usize = 12;

/// Connections at once; and how long one may be silent.
const CONNECTIONS_MAX: usize = 64;
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Pause after a socket failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Who is asked for names of the domain.
#[derive(Debug)]
pub struct Responder {
    udp: UdpSocket,
    tcp: TcpListener,
    at: SocketAddr,
    zone: Zone,
}

/// What there is to tell.
#[derive(Debug)]
struct Zone {
    apex: Name,
    address: IpAddr,
}

impl Responder {
    /// Takes the address `at`, UDP and TCP; port 0 picks a free one. All names of `domain` lead to `address`.
    ///
    /// Errors: what bind(2) meets.
    pub async fn bind(at: SocketAddr, domain: &Domain, address: IpAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind(at).await?;
        let at = udp.local_addr()?;
        let tcp = TcpListener::bind(at).await?;
        let apex = Name::from_ascii(format!("{}.", domain.name())).map_err(io::Error::other)?;
        Ok(Self { udp, tcp, at, zone: Zone { apex, address } })
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// Answers for as long as it is polled.
    pub async fn run(self) {
        let Self { udp, tcp, at: _, zone } = self;
        let zone = Arc::new(zone);
        tokio::join!(datagrams(&udp, &zone), connections(&tcp, &zone));
    }
}

async fn datagrams(socket: &UdpSocket, zone: &Zone) {
    let mut query = [0; UDP_BYTES_MAX as usize];
    loop {
        let (length, peer) = match socket.recv_from(&mut query).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "a question for a name is lost");
                sleep(PAUSE).await;
                continue;
            }
        };
        if let Some(answer) = zone.answer(&query[..length])
            && let Err(error) = socket.send_to(&answer, peer).await
        {
            tracing::debug!(%error, %peer, "an answer to a question for a name is lost");
        }
    }
}

async fn connections(listener: &TcpListener, zone: &Arc<Zone>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let zone = Arc::clone(zone);
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &zone).await {
                        tracing::debug!(%error, %peer, "a connection that asks for names broke");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection that asks for names is lost");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Each message has its length before it: RFC 1035 section 4.2.2.
async fn connection(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    loop {
        let mut query = Vec::new();
        let read = async {
            let length = match stream.read_u16().await {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            };
            query.resize(usize::from(length), 0);
            stream.read_exact(&mut query).await.map(|_| true)
        };
        if !timeout(SILENCE_MAX, read).await?? {
            return Ok(());
        }
        let Some(answer) = zone.answer(&query) else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let all = [&length.to_be_bytes()[..], &answer].concat();
        timeout(SILENCE_MAX, stream.write_all(&all)).await??;
    }
}

impl Zone {
    /// The answer to a query, which fits in the smallest datagram. None: what came is no query.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let Ok(query) = Message::from_vec(query) else { return bare(query) };
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
        answer.metadata = Metadata::response_from_request(&query.metadata);
        answer.queries = query.queries.clone();
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            answer.edns = Some(edns);
        }
        let version = query.edns.as_ref().map_or(0, Edns::version);
        answer.metadata.response_code = match (query.metadata.op_code, version, &query.queries[..]) {
            (OpCode::Query, 0, [question]) if question.query_class == DNSClass::IN => {
                self.tell(&question.name, question.query_type, &mut answer)
            }
            (OpCode::Query, 0, [_]) => ResponseCode::Refused,
            (OpCode::Query, 0, _) => ResponseCode::FormErr,
            (OpCode::Query, _, _) => ResponseCode::BADVERS,
            _ => ResponseCode::NotImp,
        };
        answer.to_vec().ok()
    }

    fn tell(&self, name: &Name, kind: RecordType, answer: &mut Message) -> ResponseCode {
        if !self.apex.zone_of(name) || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return ResponseCode::Refused;
        }
        answer.metadata.authoritative = true;
        let soa = || {
            let data = SOA::new(self.apex.clone(), self.apex.clone(), 1, 3600, 600, 86400, TTL_S);
            RData::SOA(data)
        };
        // The name as it was written: some askers vary the case of letters and look for it.
        match (kind, self.address) {
            (RecordType::A | RecordType::ANY, IpAddr::V4(address)) => {
                answer.answers.push(Record::from_rdata(name.clone(), TTL_S, RData::A(A(address))));
            }
            (RecordType::AAAA | RecordType::ANY, IpAddr::V6(address)) => {
                answer.answers.push(Record::from_rdata(name.clone(), TTL_S, RData::AAAA(AAAA(address))));
            }
            (RecordType::SOA, _) if *name == self.apex => {
                answer.answers.push(Record::from_rdata(name.clone(), TTL_S, soa()));
            }
            // How long "there is none" holds: RFC 2308.
            _ => answer.authorities.push(Record::from_rdata(self.apex.clone(), TTL_S, soa())),
        }
        ResponseCode::NoError
    }
}

/// FORMERR to what cannot be read further than its head. None: it is no query, and answering would only make noise.
fn bare(query: &[u8]) -> Option<Vec<u8>> {
    let head: [u8; 4] = query.get(..HEAD_BYTES)?.first_chunk().copied()?;
    if head[2] & 0x80 != 0 {
        return None;
    }
    let mut answer = vec![head[0], head[1], 0x80 | (head[2] & 0x79), ResponseCode::FormErr.low()];
    answer.resize(HEAD_BYTES, 0);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn zone(address: &str) -> Zone {
        Zone { apex: Name::from_ascii("e2b.test.").unwrap(), address: address.parse().unwrap() }
    }

    fn asked(name: &str, kind: RecordType) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query
    }

    fn told(zone: &Zone, query: &Message) -> Message {
        let answer = Message::from_vec(&zone.answer(&query.to_vec().unwrap()).expect("an answer")).unwrap();
        assert_eq!((answer.metadata.id, answer.metadata.message_type), (7, MessageType::Response));
        assert!(answer.metadata.recursion_desired && !answer.metadata.truncation);
        assert_eq!(answer.queries, query.queries);
        answer
    }

    fn check(zone: &Zone, name: &str, kind: RecordType, code: ResponseCode, expected: Option<&str>) {
        let answer = told(zone, &asked(name, kind));
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert_eq!(answer.metadata.authoritative, code == ResponseCode::NoError, "{name} {kind}");
        let found: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(found, Vec::from_iter(expected.map(str::to_owned)), "{name} {kind}");
        if let [record] = &answer.answers[..] {
            assert_eq!(record.name.to_string(), name, "as it was written");
        }
        let says_how_long = code == ResponseCode::NoError && expected.is_none();
        assert_eq!(answer.authorities.len(), usize::from(says_how_long), "{name} {kind}");
    }

    #[test]
    fn names_of_the_domain_have_its_address() {
        let zone = zone("127.0.0.1");
        for name in ["e2b.test.", "api.e2b.test.", "49983-iab1.e2b.test.", "a.b.c.e2b.test.", "API.E2b.TesT."] {
            check(&zone, name, RecordType::A, ResponseCode::NoError, Some("127.0.0.1"));
            check(&zone, name, RecordType::ANY, ResponseCode::NoError, Some("127.0.0.1"));
            for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::TXT, RecordType::MX] {
                check(&zone, name, kind, ResponseCode::NoError, None);
            }
        }
        let soa = told(&zone, &asked("e2b.test.", RecordType::SOA));
        assert_eq!(soa.answers.len(), 1);
    }

    #[test]
    fn an_address_of_ipv6_has_no_a() {
        let zone = zone("::1");
        check(&zone, "api.e2b.test.", RecordType::AAAA, ResponseCode::NoError, Some("::1"));
        check(&zone, "api.e2b.test.", RecordType::A, ResponseCode::NoError, None);
    }

    #[test]
    fn other_names_are_refused() {
        let zone = zone("127.0.0.1");
        for name in [".", "test.", "xe2b.test.", "e2b.test.example.com.", "example.com.", "1.0.0.127.in-addr.arpa."] {
            check(&zone, name, RecordType::A, ResponseCode::Refused, None);
        }
        check(&zone, "e2b.test.", RecordType::AXFR, ResponseCode::Refused, None);
        let mut chaos = asked("e2b.test.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(told(&zone, &chaos).metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn edns_is_answered_in_kind() {
        let zone = zone("127.0.0.1");
        let mut query = asked("e2b.test.", RecordType::A);
        query.edns = Some(Edns::new());
        let answer = told(&zone, &query);
        assert_eq!((answer.answers.len(), answer.edns.map(|edns| edns.max_payload())), (1, Some(UDP_BYTES_MAX)));
        query.edns.as_mut().unwrap().set_version(1);
        assert_eq!(u16::from(told(&zone, &query).metadata.response_code), 16, "BADVERS");
    }

    #[test]
    fn what_is_no_query_is_not_answered() {
        let zone = zone("127.0.0.1");
        let query = asked("e2b.test.", RecordType::A).to_vec().unwrap();
        let mut response = query.clone();
        response[2] |= 0x80;
        for noise in [&[][..], b"GET /", &query[..11], &response, &response[..14], &[0xff; 600]] {
            assert_eq!(zone.answer(noise), None, "{noise:?}");
        }
        let form_error = |query: &[u8]| {
            let answer = Message::from_vec(&zone.answer(query).expect("an answer")).unwrap();
            assert_eq!((answer.metadata.id, answer.metadata.response_code), (7, ResponseCode::FormErr), "{query:?}");
        };
        for length in 12..query.len() {
            form_error(&query[..length]);
        }
        let mut none = query[..12].to_vec();
        none[5] = 0;
        form_error(&none);
        let mut update = query;
        update[2] |= 5 << 3;
        let answer = Message::from_vec(&zone.answer(&update).expect("an answer")).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
    }

    #[tokio::test]
    async fn it_is_asked_by_datagrams_and_connections() {
        let domain: Domain = "e2b.test:1".parse().unwrap();
        let at = "127.0.0.1:0".parse().unwrap();
        let responder = Responder::bind(at, &domain, "127.0.0.9".parse().unwrap()).await.unwrap();
        let at = responder.address();
        assert!(Responder::bind(at, &domain, "127.0.0.9".parse().unwrap()).await.is_err(), "it is taken");
        let runs = tokio::spawn(responder.run());
        let query = asked("x.e2b.test.", RecordType::A).to_vec().unwrap();
        let check = |answer: &[u8]| {
            let answer = Message::from_vec(answer).unwrap();
            assert_eq!(answer.answers[0].data.to_string(), "127.0.0.9");
        };
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut room = [0; 512];
        for noise in [b"".as_slice(), b"noise", &query] {
            socket.send_to(noise, at).await.unwrap();
        }
        let length = socket.recv(&mut room).await.unwrap();
        check(&room[..length]);
        let mut stream = TcpStream::connect(at).await.unwrap();
        for _ in 0..2 {
            stream.write_u16(query.len() as u16).await.unwrap();
            stream.write_all(&query).await.unwrap();
            let length = usize::from(stream.read_u16().await.unwrap());
            stream.read_exact(&mut room[..length]).await.unwrap();
            check(&room[..length]);
        }
        runs.abort();
    }
}
