//! Questions over the whole path: bytes in, bytes out, with a server upstream that counts.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::svcb::{EchConfigList, IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::{EDE_BLOCKED, EDE_NETWORK, EDE_OTHER, Names, Resolver, Transport, answer, is_virtual, refused};
use crate::policy::{Policy, Posture};
use crate::record::{Outcome, Record as Line};

/// A computer that asks, and a DNS server on this machine's loopback.
struct World {
    _folder: tempfile::TempDir,
    names: Names,
    resolver: Resolver,
    policy: Policy,
    asked: Arc<AtomicUsize>,
    lines: Mutex<Vec<Line<'static>>>,
    servers: tokio::task::JoinSet<()>,
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// What the zone of the tests holds.
fn zone(query: &Query) -> (ResponseCode, Vec<Record>, Vec<Record>) {
    let text = query.name.to_ascii().to_ascii_lowercase();
    let record = |ttl, data| Record::from_rdata(name(&text), ttl, data);
    let soa = Record::from_rdata(
        name("example."),
        30,
        RData::SOA(SOA::new(name("ns.example."), name("root.example."), 7, 1, 1, 1, 30)),
    );
    match (text.as_str(), query.query_type) {
        ("real.example.", RecordType::A) => {
            let data = [A(Ipv4Addr::new(192, 0, 2, 1)), A(Ipv4Addr::new(192, 0, 2, 2))];
            (ResponseCode::NoError, data.map(|a| record(3000, RData::A(a))).into(), vec![])
        }
        ("alias.example.", RecordType::A) => {
            let end = Record::from_rdata(name("real.example."), 20, RData::A(A(Ipv4Addr::new(192, 0, 2, 1))));
            (ResponseCode::NoError, vec![record(50, RData::CNAME(CNAME(name("real.example.")))), end], vec![])
        }
        ("six.example.", RecordType::AAAA) => {
            (ResponseCode::NoError, vec![record(50, RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)))], vec![])
        }
        ("real.example.", RecordType::HTTPS) => {
            let parameters = vec![
                (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A(Ipv4Addr::new(192, 0, 2, 1))]))),
                (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3]))),
                (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(vec![AAAA(Ipv6Addr::LOCALHOST)]))),
            ];
            let service = HTTPS(SVCB::new(1, Name::root(), parameters));
            (ResponseCode::NoError, vec![record(60, RData::HTTPS(service))], vec![])
        }
        ("long.example.", RecordType::TXT) => {
            let texts = (0..20).map(|n| record(60, RData::TXT(TXT::new(vec![format!("{n:0>100}")]))));
            (ResponseCode::NoError, texts.collect(), vec![])
        }
        ("broken.example.", _) => (ResponseCode::ServFail, vec![], vec![]),
        ("real.example." | "alias.example." | "six.example.", _) => (ResponseCode::NoError, vec![], vec![soa]),
        _ => (ResponseCode::NXDomain, vec![], vec![soa]),
    }
}

fn reply(query: &[u8], over_udp: bool) -> Vec<u8> {
    let query = Message::from_vec(query).expect("a query of the resolver's");
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.queries = query.queries.clone();
    let (code, answers, authorities) = zone(&query.queries[0]);
    reply.metadata.response_code = code;
    reply.answers = answers;
    reply.authorities = authorities;
    let bytes = reply.to_vec().expect("encodes");
    if over_udp && bytes.len() > 1200 { reply.truncate().to_vec().expect("encodes") } else { bytes }
}

async fn world(policy: Policy) -> World {
    // A port that is free for UDP may be somebody's for TCP.
    let (udp, tcp, address) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address: SocketAddr = udp.local_addr().expect("address");
        if let Ok(tcp) = TcpListener::bind(address).await {
            break (udp, tcp, address);
        }
    };
    let asked = Arc::new(AtomicUsize::new(0));
    let mut servers = tokio::task::JoinSet::new();
    let count = Arc::clone(&asked);
    servers.spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::Relaxed);
            udp.send_to(&reply(&buffer[..length], true), from).await.expect("send");
        }
    });
    servers.spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            while let Ok(length) = stream.read_u16().await {
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await.expect("query");
                let reply = reply(&query, false);
                stream.write_u16(reply.len() as u16).await.expect("write");
                stream.write_all(&reply).await.expect("write");
            }
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    World {
        names: Names::open(folder.path(), [3; 32]).expect("open"),
        resolver: Resolver::at(&[address]).expect("a resolver"),
        _folder: folder,
        policy,
        asked,
        lines: Mutex::new(Vec::new()),
        servers,
    }
}

fn policy(posture: Posture, allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |list: &[&str]| list.iter().map(|rule| rule.parse().expect("a rule")).collect();
    Policy { posture, allow: rules(allow), deny: rules(deny), ..Policy::default() }
}

fn query(text: &str, kind: RecordType, payload: Option<u16>) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(text), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        query.set_edns(edns);
    }
    query
}

impl World {
    async fn send(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let record = |line: &Line<'_>| {
            let text = serde_json::to_string(line).expect("json");
            let line: Line<'_> = serde_json::from_str(&text).expect("json");
            let line = Line {
                name: line.name.map(|name| name.into_owned().into()),
                why: line.why.map(|why| why.into_owned().into()),
                rule: line.rule.map(|rule| rule.into_owned().into()),
                detail: line.detail.map(|detail| detail.into_owned().into()),
                verdict: line.verdict,
                answers: line.answers,
                ..Line::new(line.kind)
            };
            self.lines.lock().expect("lock").push(line);
        };
        answer(bytes, transport, &self.policy, &self.names, &self.resolver, &record).await
    }

    async fn ask(&self, text: &str, kind: RecordType) -> Message {
        let bytes = query(text, kind, Some(1232)).to_vec().expect("encodes");
        let answer = self.send(&bytes, Transport::Udp).await.expect("an answer");
        let answer = Message::from_vec(&answer).expect("a message");
        assert_eq!(answer.metadata.id, 4711);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
        assert!(answer.queries[0].name.eq_case(&name(text)), "{} is echoed", answer.queries[0].name);
        answer
    }

    async fn is_refused(&self, text: &str, kind: RecordType, why: &str) {
        let answer = self.ask(text, kind).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{text} {kind}");
        assert!(answer.answers.is_empty());
        assert_eq!(reason(&answer), Some((EDE_BLOCKED, why.to_owned())), "{text} {kind}");
        assert_eq!(self.last().why.as_deref(), Some(why));
    }

    async fn is_nothing(&self, text: &str, kind: RecordType, code: ResponseCode) {
        let answer = self.ask(text, kind).await;
        assert_eq!(answer.metadata.response_code, code, "{text} {kind}");
        assert!(answer.answers.is_empty(), "{text} {kind}");
        assert_eq!(answer.authorities.len(), 1, "{text} {kind}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }

    fn last(&self) -> Line<'static> {
        self.lines.lock().expect("lock").last().expect("a record").clone()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn reason(answer: &Message) -> Option<(u16, String)> {
    let Some(EdnsOption::Unknown(_, data)) = answer.edns.as_ref()?.option(EdnsCode::Unknown(15)) else { return None };
    let (number, text) = data.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), String::from_utf8_lossy(text).into_owned()))
}

fn addresses(answer: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    answer.answers.iter().filter_map(address).collect()
}

#[tokio::test]
async fn an_allowed_name_has_a_virtual_address_and_no_query_leaves() {
    let world = world(policy(Posture::Guarded, &["api.example.com", "*.sub.example.com", "vm:db:5432"], &[])).await;
    let answer = world.ask("aPi.ExAmple.com.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let [address] = addresses(&answer)[..] else { panic!("one address: {answer:?}") };
    assert!(is_virtual(address));
    assert_eq!(answer.answers[0].ttl, 60);
    assert!(answer.answers[0].name.eq_case(&name("aPi.ExAmple.com.")));
    assert_eq!(world.names.name_of(address).expect("known").as_str(), "api.example.com");
    let line = world.last();
    assert_eq!((line.name.as_deref(), line.detail.as_deref()), (Some("api.example.com"), Some("A")));
    assert_eq!((line.verdict, line.answers), (Some(Outcome::Allow), vec![address.into()]));

    let again = world.ask("api.example.com.", RecordType::A).await;
    assert_eq!(addresses(&again), [address]);
    assert_eq!(addresses(&world.ask("a.b.sub.example.com.", RecordType::A).await).len(), 1);
    assert_eq!(addresses(&world.ask("db.vm.internal.", RecordType::A).await).len(), 1);
    for kind in
        [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB, RecordType::TXT, RecordType::MX, RecordType::SRV]
    {
        world.is_nothing("api.example.com.", kind, ResponseCode::NoError).await;
    }
    let pointer = format!("{}.{}.18.198.in-addr.arpa.", address.octets()[3], address.octets()[2]);
    if address.octets()[1] == 18 {
        let answer = world.ask(&pointer, RecordType::PTR).await;
        assert_eq!(answer.answers[0].data.to_string(), "api.example.com.");
    }
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn a_name_that_is_not_allowed_is_refused_and_no_query_leaves() {
    let world = world(policy(Posture::Guarded, &["api.example.com", "real.example"], &["real.example"])).await;
    world.is_refused("other.example.com.", RecordType::A, "no_rule").await;
    world.is_refused("sub.api.example.com.", RecordType::TXT, "no_rule").await;
    world.is_refused("real.example.", RecordType::A, "denied_rule").await;
    world.is_refused("db.vm.internal.", RecordType::A, "no_rule").await;
    for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::OPT] {
        world.is_refused("api.example.com.", kind, "bad_query").await;
    }
    assert_eq!(world.last().verdict, Some(Outcome::Deny));
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn sealed_refuses_everything() {
    let world = world(policy(Posture::Sealed, &["real.example"], &[])).await;
    world.is_refused("real.example.", RecordType::A, "sealed").await;
    world.is_refused("localhost.", RecordType::A, "sealed").await;
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn open_tells_what_the_world_says() {
    let world = world(policy(Posture::Open, &["vm:db:5432"], &["*.evil.example", "secret.example"])).await;
    let answer = world.ask("Real.Example.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]);
    assert!(answer.answers.iter().all(|record| record.name.eq_case(&name("Real.Example.")) && record.ttl > 2000));
    let answer = world.ask("alias.example.", RecordType::A).await;
    assert_eq!(answer.answers[0].data.to_string(), "real.example.");
    assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 1)]);

    let answer = world.ask("real.example.", RecordType::HTTPS).await;
    let RData::HTTPS(service) = &answer.answers[0].data else { panic!("{answer:?}") };
    assert_eq!(service.0.svc_params.len(), 1);
    assert_eq!(service.0.svc_params[0].0, SvcParamKey::Ipv4Hint);
    let free = self::world(policy(Posture::Open, &[], &[])).await;
    let answer = free.ask("real.example.", RecordType::HTTPS).await;
    let RData::HTTPS(service) = &answer.answers[0].data else { panic!("{answer:?}") };
    assert_eq!(service.0.svc_params.len(), 2, "nothing is decided by name here, so keys stay");

    let before = world.asked();
    world.is_nothing("six.example.", RecordType::AAAA, ResponseCode::NoError).await;
    world.is_refused("a.evil.example.", RecordType::A, "denied_rule").await;
    world.is_refused("secret.example.", RecordType::TXT, "denied_rule").await;
    world.is_refused("other.vm.internal.", RecordType::A, "no_rule").await;
    world.is_refused("gate.internal.", RecordType::A, "no_rule").await;
    assert!(is_virtual(addresses(&world.ask("db.vm.internal.", RecordType::A).await)[0]));
    assert_eq!(world.asked(), before, "none of these left");

    world.is_nothing("nowhere.example.", RecordType::A, ResponseCode::NXDomain).await;
    world.is_nothing("real.example.", RecordType::MX, ResponseCode::NoError).await;
    let answer = world.ask("broken.example.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reason(&answer), Some((EDE_NETWORK, "no_answer".to_owned())));
}

#[tokio::test]
async fn a_denied_name_is_denied_behind_an_alias_too() {
    let world = world(policy(Posture::Open, &[], &["real.example"])).await;
    world.is_refused("alias.example.", RecordType::A, "denied_rule").await;
}

#[tokio::test]
async fn a_real_answer_is_remembered() {
    let world = world(policy(Posture::Guarded, &["real.example dns=real"], &[])).await;
    let answer = world.ask("real.example.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]);
    assert!(answer.answers.iter().all(|record| record.ttl <= 300));
    let pinned = world.names.pinned(Ipv4Addr::new(192, 0, 2, 2)).expect("pinned");
    assert_eq!(pinned.as_str(), "real.example");
    let before = world.asked();
    world.is_nothing("real.example.", RecordType::TXT, ResponseCode::NoError).await;
    assert_eq!(world.asked(), before);
}

#[tokio::test]
async fn local_names_stay_here() {
    let world = world(policy(Posture::Open, &[], &[])).await;
    assert_eq!(addresses(&world.ask("localhost.", RecordType::A).await), [Ipv4Addr::LOCALHOST]);
    assert_eq!(addresses(&world.ask("a.LOCALHOST.", RecordType::A).await), [Ipv4Addr::LOCALHOST]);
    world.is_nothing("localhost.", RecordType::AAAA, ResponseCode::NoError).await;
    for pointer in
        ["2.0.0.10.in-addr.arpa.", "1.1.254.169.in-addr.arpa.", "7.7.19.198.in-addr.arpa.", "1.0.0.127.in-addr.arpa."]
    {
        world.is_nothing(pointer, RecordType::PTR, ResponseCode::NXDomain).await;
    }
    assert_eq!(world.asked(), 0);
    world.is_nothing("8.8.8.8.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain).await;
    assert_eq!(world.asked(), 1);
}

#[tokio::test]
async fn what_is_no_question_gets_a_code_or_nothing() {
    let world = world(policy(Posture::Guarded, &["api.example.com"], &[])).await;
    let plain = query("api.example.com.", RecordType::A, None);
    let bytes = plain.to_vec().expect("encodes");
    assert_eq!(world.send(&bytes[..11], Transport::Udp).await, None);
    let mut response = bytes.clone();
    response[2] |= 0x80;
    assert_eq!(world.send(&response, Transport::Udp).await, None);
    let code = async |bytes: &[u8]| {
        let answer = world.send(bytes, Transport::Udp).await.expect("an answer");
        Message::from_vec(&answer).expect("a message").metadata.response_code
    };
    assert_eq!(code(&bytes[..20]).await, ResponseCode::FormErr);
    let mut two = plain.clone();
    two.add_query(plain.queries[0].clone());
    assert_eq!(code(&two.to_vec().expect("encodes")).await, ResponseCode::FormErr);
    let mut none = plain.clone();
    none.queries.clear();
    assert_eq!(code(&none.to_vec().expect("encodes")).await, ResponseCode::FormErr);
    let mut update = bytes.clone();
    update[2] |= 5 << 3;
    assert_ne!(code(&update).await, ResponseCode::NoError);
    let mut chaos = plain.clone();
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(&chaos.to_vec().expect("encodes")).await, ResponseCode::Refused);
    let mut future = query("api.example.com.", RecordType::A, Some(1232));
    future.edns.as_mut().expect("edns").set_version(1);
    assert_eq!(u16::from(code(&future.to_vec().expect("encodes")).await), 16, "BADVERS");

    // Names that two programs would read in two ways never get past here, and leave no bytes.
    for label in [b"api.example".as_slice(), b"api\0", b"api ex", b"\xff\xfe", b"api\nx"] {
        let mut odd = plain.clone();
        odd.queries[0].name = Name::from_labels([label, b"com"]).expect("a name");
        assert_eq!(code(&odd.to_vec().expect("encodes")).await, ResponseCode::Refused, "{label:?}");
        let line = world.last();
        assert_eq!((line.name, line.why.as_deref()), (None, Some("bad_name")));
    }
    let mut seed = 1_u32;
    for _ in 0..2000 {
        let mut noise = bytes.clone();
        for _ in 0..3 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (seed >> 8) as usize % noise.len();
            noise[at] = (seed >> 24) as u8;
        }
        world.send(&noise, Transport::Tcp).await;
        refused(&noise, EDE_OTHER);
    }
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn an_answer_is_as_long_as_its_asker_takes() {
    let world = world(policy(Posture::Open, &[], &[])).await;
    for (payload, transport, whole) in [
        (None, Transport::Udp, false),
        (Some(1232), Transport::Udp, false),
        (Some(4096), Transport::Udp, false),
        (None, Transport::Tcp, true),
    ] {
        let bytes = query("long.example.", RecordType::TXT, payload).to_vec().expect("encodes");
        let answer = world.send(&bytes, transport).await.expect("an answer");
        assert_eq!(answer.len() <= 1232, !whole);
        let answer = Message::from_vec(&answer).expect("a message");
        assert_eq!(answer.metadata.truncation, !whole);
        assert_eq!(answer.answers.len(), if whole { 20 } else { 0 });
        assert_eq!(answer.edns.is_some(), payload.is_some());
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_so() {
    let bytes = query("aPi.example.com.", RecordType::A, Some(1232)).to_vec().expect("encodes");
    let answer = Message::from_vec(&refused(&bytes, EDE_BLOCKED).expect("an answer")).expect("a message");
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert_eq!(answer.metadata.id, 4711);
    assert!(answer.queries[0].name.eq_case(&name("aPi.example.com.")));
    assert_eq!(reason(&answer), Some((EDE_BLOCKED, String::new())));
    let bytes = query("api.example.com.", RecordType::A, None).to_vec().expect("encodes");
    let answer = Message::from_vec(&refused(&bytes, EDE_BLOCKED).expect("an answer")).expect("a message");
    assert_eq!((answer.edns, answer.queries.len()), (None, 1));
    assert_eq!(refused(&bytes[..5], EDE_BLOCKED), None);
}

#[tokio::test]
async fn the_gate_resolves_for_itself() {
    let mut world = world(policy(Posture::Guarded, &[], &[])).await;
    let host = |text: &str| text.parse::<crate::host::Host>().expect("a host");
    let found = world.resolver.addresses(&host("real.example")).await.expect("addresses");
    assert_eq!(found, [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]);
    let before = world.asked();
    world.resolver.addresses(&host("real.example")).await.expect("from the cache");
    assert_eq!(world.asked(), before);
    assert_eq!(world.resolver.addresses(&host("alias.example")).await.expect("addresses").len(), 1);
    assert_eq!(world.resolver.addresses(&host("six.example")).await.expect("v6 then"), [Ipv6Addr::LOCALHOST]);
    let error = world.resolver.addresses(&host("nowhere.example")).await.expect_err("no such name");
    assert!(matches!(error, super::ResolveError::NoAddress { exists: false, .. }), "{error:?}");
    assert_eq!(error.to_string(), "`nowhere.example` has no address: there is no such name");
    let error = world.resolver.addresses(&host("broken.example")).await.expect_err("no answer");
    assert!(matches!(error, super::ResolveError::Failed { .. }), "{error:?}");

    world.servers.shutdown().await;
    let begun = std::time::Instant::now();
    world.resolver.addresses(&host("late.example")).await.expect_err("nobody there");
    assert!(begun.elapsed() < Duration::from_secs(7));
}
