//! What a computer is told when it asks for a name.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamKey};
use hickory_proto::rr::rdata::{HTTPS, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

use super::message::{EDE_BLOCKED, EDE_NETWORK, EDE_OTHER, Response, TTL, bare};
use super::names::{Names, is_virtual};
use super::resolver::{Resolver, absolute};
use crate::floor;
use crate::host::Host;
use crate::policy::{NameVerdict, Policy, Posture};
use crate::record::{Kind, Outcome, Protocol, Record};

/// How long a real address is given out for in guarded, in seconds, at most.
const REAL_TTL_MAX: u32 = 300;

/// By what a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: what does not fit is cut off, and the asker comes again by TCP.
    Udp,
    /// A stream: answers are sent whole. The two bytes of length are the caller's.
    Tcp,
}

/// What was done with a query, for the record.
struct Told<'a> {
    verdict: Outcome,
    why: &'static str,
    rule: Option<&'a crate::rule::Rule>,
    answers: Vec<IpAddr>,
}

impl<'a> Told<'a> {
    const fn allow(why: &'static str) -> Self {
        Self { verdict: Outcome::Allow, why, rule: None, answers: Vec::new() }
    }

    const fn deny(why: &'static str, rule: Option<&'a crate::rule::Rule>) -> Self {
        Self { verdict: Outcome::Deny, why, rule, answers: Vec::new() }
    }
}

/// Answers one query of a computer, and records it once. None: what came is no query.
///
/// How often a computer asks is the caller's concern: see [`super::refused`].
pub async fn answer(
    query: &[u8],
    transport: Transport,
    policy: &Policy,
    names: &Names,
    resolver: &Resolver,
    record: &(dyn Fn(&Record<'_>) + Sync),
) -> Option<Vec<u8>> {
    let Ok(message) = Message::from_vec(query) else {
        let answer = bare(query, ResponseCode::FormErr)?;
        record(&note(None, None, &Told::deny("bad_query", None)));
        return Some(answer);
    };
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut response = Response::to(&message);
    let (host, kind, told) = if message.metadata.op_code != OpCode::Query {
        response.fail(ResponseCode::NotImp, None);
        (None, None, Told::deny("bad_query", None))
    } else if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        response.fail(ResponseCode::BADVERS, None);
        (None, None, Told::deny("bad_query", None))
    } else if let [question] = message.queries.as_slice() {
        let host = host_of(&question.name);
        let told = tell(question, host.as_ref(), policy, names, resolver, &mut response).await;
        (host, Some(question.query_type), told)
    } else {
        response.fail(ResponseCode::FormErr, None);
        (None, None, Told::deny("bad_query", None))
    };
    record(&note(host.as_ref(), kind, &told));
    response.bytes(transport == Transport::Udp)
}

/// Decides what one question is told, and writes it into the response.
async fn tell<'a>(
    question: &Query,
    host: Option<&Host>,
    policy: &'a Policy,
    names: &Names,
    resolver: &Resolver,
    response: &mut Response,
) -> Told<'a> {
    let refuse = |response: &mut Response, told: Told<'a>| {
        response.fail(ResponseCode::Refused, Some((EDE_BLOCKED, told.why)));
        told
    };
    if policy.posture == Posture::Sealed {
        return refuse(response, Told::deny("sealed", None));
    }
    let Some(host) = host else { return refuse(response, Told::deny("bad_name", None)) };
    if question.query_class != DNSClass::IN || is_meta(question.query_type) {
        return refuse(response, Told::deny("bad_query", None));
    }
    if let Some(told) = tell_local(question, host, names, response) {
        return told;
    }
    match policy.may_resolve(host) {
        NameVerdict::Deny(why, rule) => refuse(response, Told::deny(why.as_str(), rule)),
        NameVerdict::Virtual => tell_virtual(question, host, names, response),
        // Only rules for other computers make such names, and those are virtual.
        NameVerdict::Real if is_internal(host) => refuse(response, Told::deny("no_rule", None)),
        NameVerdict::Real => tell_real(question, host, policy, names, resolver, response).await,
    }
}

/// What is the same everywhere and never asked for outside: this machine's own name, and the names
/// of addresses that lead nowhere or were given out here.
fn tell_local<'a>(question: &Query, host: &Host, names: &Names, response: &mut Response) -> Option<Told<'a>> {
    let text = host.as_str();
    if text == "localhost" || text.ends_with(".localhost") {
        let mut told = Told::allow("local");
        if question.query_type == RecordType::A {
            response.address(Ipv4Addr::LOCALHOST, TTL);
            told.answers.push(Ipv4Addr::LOCALHOST.into());
        } else {
            response.nothing(None);
        }
        return Some(told);
    }
    if !text.ends_with(".arpa") {
        return None;
    }
    let address = question.name.parse_arpa_name().ok().filter(|net| net.prefix_len() == net.max_prefix_len())?.addr();
    let name = match address {
        IpAddr::V4(address) if is_virtual(address) => names.name_of(address),
        address if floor::permits(address, 443, &[]).is_ok() => return None,
        _ => None,
    };
    let Some(name) = name.and_then(|name| absolute(&name).ok()) else {
        response.fail(ResponseCode::NXDomain, None);
        response.nothing(None);
        return Some(Told::allow("no_such_name"));
    };
    if question.query_type == RecordType::PTR {
        response.record(RData::PTR(PTR(name)), TTL);
    } else {
        response.nothing(None);
    }
    Some(Told::allow("local"))
}

/// A virtual address, without a word to anyone outside.
fn tell_virtual<'a>(question: &Query, host: &Host, names: &Names, response: &mut Response) -> Told<'a> {
    let mut told = Told::allow("allowed_rule");
    if question.query_type != RecordType::A {
        response.nothing(None);
        return told;
    }
    match names.address_of(host) {
        Ok(address) => {
            response.address(address, TTL);
            told.answers.push(address.into());
            told
        }
        Err(error) => {
            tracing::error!(name = host.as_str(), %error, "a virtual address could not be written down");
            response.fail(ResponseCode::ServFail, Some((EDE_OTHER, "unrecorded")));
            Told::deny("unrecorded", None)
        }
    }
}

/// What the world says.
async fn tell_real<'a>(
    question: &Query,
    host: &Host,
    policy: &'a Policy,
    names: &Names,
    resolver: &Resolver,
    response: &mut Response,
) -> Told<'a> {
    let guarded = policy.posture == Posture::Guarded;
    let mut told = Told::allow(if guarded { "allowed_rule" } else { "allowed_open" });
    // There is no IPv6 inside, and in guarded an address is all that a rule gives.
    if question.query_type == RecordType::AAAA || (guarded && question.query_type != RecordType::A) {
        response.nothing(None);
        return told;
    }
    let mut found = match resolver.lookup(host, question.query_type).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(name = host.as_str(), error = %error, source = ?std::error::Error::source(&error), "no answer");
            response.fail(ResponseCode::ServFail, Some((EDE_NETWORK, "no_answer")));
            return Told::allow("no_answer");
        }
    };
    // A name that is denied is denied under another name too.
    for record in &found.answers {
        let RData::CNAME(alias) = &record.data else { continue };
        let Some(alias) = host_of(&alias.0) else { continue };
        if !guarded && let NameVerdict::Deny(why, rule) = policy.may_resolve(&alias) {
            response.fail(ResponseCode::Refused, Some((EDE_BLOCKED, why.as_str())));
            return Told::deny(why.as_str(), rule);
        }
    }
    if found.answers.is_empty() {
        if !found.exists {
            response.fail(ResponseCode::NXDomain, None);
            told.why = "no_such_name";
        }
        response.nothing(found.soa);
        return told;
    }
    let mut ttl = REAL_TTL_MAX;
    for record in &mut found.answers {
        if guarded {
            record.ttl = record.ttl.min(REAL_TTL_MAX);
        }
        ttl = ttl.min(record.ttl);
        match &mut record.data {
            RData::A(address) => told.answers.push(address.0.into()),
            RData::HTTPS(HTTPS(service)) | RData::SVCB(service) => narrow(service, policy),
            _ => {}
        }
    }
    if guarded {
        let v4: Vec<_> = told
            .answers
            .iter()
            .filter_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            })
            .collect();
        names.pin(host, &v4, Duration::from_secs(ttl.into()));
    }
    response.records(found.answers);
    told
}

/// Takes out hints at addresses that cannot be reached from inside; and, where flows are decided by
/// the name they say, the keys that would hide it.
fn narrow(service: &mut SVCB, policy: &Policy) {
    let by_name = policy.denies_names();
    service.svc_params.retain(|(key, _)| match key {
        SvcParamKey::Ipv6Hint => false,
        SvcParamKey::EchConfigList => !by_name,
        _ => true,
    });
}

/// Types that ask for no record, but for a whole zone or for everything (RFC 6895: 128 to 255), and
/// those that are part of the protocol.
fn is_meta(kind: RecordType) -> bool {
    matches!(u16::from(kind), 0 | 41 | 128..=255)
}

fn is_internal(host: &Host) -> bool {
    host.as_str() == "internal" || host.as_str().ends_with(".internal")
}

/// Reads a name once, into the one type that everything else goes by. None: it is no host's name.
fn host_of(name: &Name) -> Option<Host> {
    Host::from_labels(name.iter()).ok()
}

fn note<'r>(host: Option<&'r Host>, kind: Option<RecordType>, told: &Told<'r>) -> Record<'r> {
    let mut record = Record::new(Kind::Dns);
    record.protocol = Some(Protocol::Dns);
    record.name = host.map(|host| Cow::Borrowed(host.as_str()));
    record.detail = kind.map(|kind| match kind {
        RecordType::Unknown(number) => Cow::Owned(format!("TYPE{number}")),
        kind => Cow::Owned(kind.to_string()),
    });
    record.verdict = Some(told.verdict);
    record.why = Some(Cow::Borrowed(told.why));
    record.rule = told.rule.map(|rule| Cow::Owned(rule.to_string()));
    record.answers.clone_from(&told.answers);
    record
}
