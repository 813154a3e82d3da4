//! The one place that decides where a flow may go.
//!
//! ```text
//!  1 sealed ........................................................ deny  sealed
//!  2 port 53 ....................................................... DNS over TCP (the gate answers)
//!  3 169.254.1.1 ................................................... deny  gateway
//!  4 virtual address without a name ................................ deny  unknown_name
//!  5 a computer's name: deny rules, then `vm:` rules ............... deny  denied_rule, no_rule
//!  6 floor and port 25, where an address is to be dialled as it is . deny  floor, smtp
//!  7 deny rules by block and by name ............................... deny  denied_rule
//!  8 open .......................................................... allow allowed_open
//!  9 guarded, by name: allow rules for the name and port ........... deny  no_rule
//!      first bytes: TLS  SNI = name, no ECH ........................ deny  sni_missing, sni_mismatch, ech
//!                   HTTP Host = name ............................... deny  host_mismatch
//!                   neither ........................................ deny  not_tls_or_http, peek_timeout
//!    guarded, by address: allow rules for the block and port ....... deny  ip_literal
//! then, by the dialler: each address it is about to dial, `dialled`
//! ```
//!
//! Asked up to three times about one flow: with nothing seen; with what was seen, if
//! [`Obligations::peek`] said so; and again for a live flow when the policy changes. Each answer
//! is whole: it needs none of the earlier ones.
//!
//! Invariants:
//! - Pure and without allocation; the same question has the same answer.
//! - Deny beats allow, and the floor beats both (but for the operator's private targets).
//! - A name comes from the gate's own answers, never from what the computer says; what it says
//!   (SNI, Host) can only take a flow away.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::floor;
use crate::host::Host;
use crate::policy::{Policy, Posture, PrivateTarget};
use crate::rule::{self, Rule, RuleProtocol, Target};

pub use crate::record::Outcome;

/// The gate's own address, as computers know it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The block of virtual addresses, RFC 2544: first address and prefix.
pub const VIRTUAL: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);

/// A TCP flow that a computer has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow<'a> {
    /// Where to, as the computer dialled it.
    pub target: SocketAddrV4,
    /// What the gate knows this address to stand for.
    pub name: Option<&'a Host>,
    /// How it knows.
    pub origin: NameOrigin,
    /// What was spoken, as far as it was looked at.
    pub seen: Seen<'a>,
}

/// How the gate knows the name of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameOrigin {
    /// It made the address up for the name.
    Virtual,
    /// It has answered a query of this computer with the address.
    Pinned,
    /// It does not.
    None,
}

/// What was spoken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Not looked yet.
    Nothing,
    /// A ClientHello.
    Tls {
        /// The name in it; none, too, where it is no host name.
        sni: Option<&'a Host>,
        /// It has an extension for an encrypted one.
        ech: bool,
    },
    /// The head of a request.
    Http {
        /// Whom it is for; none, too, where it says several or none that is a host name.
        host: Option<&'a Host>,
    },
    /// Something else.
    Other,
    /// Nothing came in time.
    Nobody,
}

/// What was decided, by which rule, and what is to be done besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether it may. With [`Obligations::peek`], whether it may so far.
    pub verdict: Outcome,
    /// Why.
    pub why: Why,
    /// The rule that decided.
    pub rule: Option<&'a Rule>,
    /// What the flow has to go through.
    pub obligations: Obligations<'a>,
}

/// What an allowed flow has to go through. All of it is `Default` for one that is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Obligations<'a> {
    /// Look at the first bytes, and ask again.
    pub peek: Peek,
    /// Each request is held against the name (`crate::http`), not only the first.
    pub inspect_http: bool,
    /// Dial an address that the name resolves to now; else the address as it was asked for.
    pub resolve: bool,
    /// It is for this computer: its agent dials.
    pub computer: Option<&'a str>,
    /// It is DNS over TCP: the gate itself answers.
    pub dns: bool,
}

/// Whether to look at the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Peek {
    /// No; whoever speaks first may.
    #[default]
    No,
    /// Yes, and without them there is nothing to allow.
    Must,
    /// Yes, if some come in time; [`Seen::Nobody`] is no reason to deny.
    IfWeb,
}

/// Why something was allowed or denied, or a flow came to its end. Codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The posture is open, and nothing is against it.
    AllowedOpen,
    /// A rule allows it.
    AllowedRule,
    /// DNS over TCP, which the gate itself answers.
    Dns,
    /// The posture is sealed.
    Sealed,
    /// The gate's own address has no such port.
    Gateway,
    /// A virtual address that stands for no name.
    UnknownName,
    /// No rule allows this name, or this port of it.
    NoRule,
    /// An address that was not answered to this computer, and that no rule allows as such.
    IpLiteral,
    /// The address is private, link-local, metadata or reserved.
    Floor,
    /// Port 25.
    Smtp,
    /// A rule denies it.
    DeniedRule,
    /// The TLS name is another one.
    SniMismatch,
    /// TLS without a name that can be read.
    SniMissing,
    /// TLS with an encrypted ClientHello.
    Ech,
    /// The Host of an HTTP request is another one, missing or contradictory.
    HostMismatch,
    /// The rule wants TLS or HTTP, and it is neither.
    NotTlsOrHttp,
    /// The rule wants TLS or HTTP, and nothing was said in time.
    PeekTimeout,
    /// Upstream did not answer in time.
    DialTimeout,
    /// Upstream refused, or cannot be reached.
    DialFailed,
    /// The name has no address.
    NoAddress,
    /// The address is the host's own.
    OwnAddress,
    /// It could not be written down.
    Unrecorded,
    /// The computer that is meant is not running, or not there.
    NoComputer,
    /// Too many flows at once.
    LimitFlows,
    /// Too many new flows a second.
    LimitNew,
    /// The bytes of the day are used up.
    LimitDay,
    /// Too many DNS queries a second.
    LimitDns,
    /// More bits a second than allowed: slowed down.
    LimitBits,
    /// The policy changed while the flow was open.
    Policy,
}

impl Why {
    /// The stable code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowedOpen => "allowed_open",
            Self::AllowedRule => "allowed_rule",
            Self::Dns => "dns",
            Self::Sealed => "sealed",
            Self::Gateway => "gateway",
            Self::UnknownName => "unknown_name",
            Self::NoRule => "no_rule",
            Self::IpLiteral => "ip_literal",
            Self::Floor => "floor",
            Self::Smtp => "smtp",
            Self::DeniedRule => "denied_rule",
            Self::SniMismatch => "sni_mismatch",
            Self::SniMissing => "sni_missing",
            Self::Ech => "ech",
            Self::HostMismatch => "host_mismatch",
            Self::NotTlsOrHttp => "not_tls_or_http",
            Self::PeekTimeout => "peek_timeout",
            Self::DialTimeout => "dial_timeout",
            Self::DialFailed => "dial_failed",
            Self::NoAddress => "no_address",
            Self::OwnAddress => "own_address",
            Self::Unrecorded => "unrecorded",
            Self::NoComputer => "no_computer",
            Self::LimitFlows => "limit_flows",
            Self::LimitNew => "limit_new",
            Self::LimitDay => "limit_day",
            Self::LimitDns => "limit_dns",
            Self::LimitBits => "limit_bits",
            Self::Policy => "policy",
        }
    }

    /// One sentence for a person, without the values.
    pub const fn message(self) -> &'static str {
        match self {
            Self::AllowedOpen => "the posture is open",
            Self::AllowedRule => "a rule allows it",
            Self::Dns => "the gate answers DNS itself",
            Self::Sealed => "this computer is sealed: nothing leaves it",
            Self::Gateway => "the gate has no such port",
            Self::UnknownName => "this address stands for no name that was answered here",
            Self::NoRule => "no rule allows this name at this port",
            Self::IpLiteral => "addresses are reached by name, or by a rule for the address",
            Self::Floor => "no computer may reach private, link-local and reserved addresses",
            Self::Smtp => "no computer may send to port 25",
            Self::DeniedRule => "a rule denies it",
            Self::SniMismatch => "the name in the TLS greeting is not the one that was looked up",
            Self::SniMissing => "the TLS greeting has no readable name",
            Self::Ech => "the name in the TLS greeting is encrypted",
            Self::HostMismatch => "the Host of the request is not the one that was looked up",
            Self::NotTlsOrHttp => "the rule allows TLS and HTTP, and this is neither",
            Self::PeekTimeout => "the rule allows TLS and HTTP, and nothing was said in time",
            Self::DialTimeout => "upstream did not answer in time",
            Self::DialFailed => "upstream refused, or cannot be reached",
            Self::NoAddress => "the name has no IPv4 or IPv6 address",
            Self::OwnAddress => "no computer may reach the host's own addresses",
            Self::Unrecorded => "the flow could not be written down",
            Self::NoComputer => "there is no running computer of this name",
            Self::LimitFlows => "too many flows are open",
            Self::LimitNew => "too many new flows in a second",
            Self::LimitDay => "the bytes of this day are used up",
            Self::LimitDns => "too many DNS queries in a second",
            Self::LimitBits => "slowed to the limit of bits a second",
            Self::Policy => "the policy has changed, and does not allow it any more",
        }
    }

    /// What to do about it, where something can be done.
    pub const fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::Sealed => "`den net NAME guarded` or `den net NAME open` lets it out",
            Self::NoRule | Self::UnknownName => "`den net NAME allow HOST[:PORT]` allows it",
            Self::IpLiteral => "use the host's name, or `den net NAME allow ADDRESS:PORT`",
            Self::Floor | Self::OwnAddress => {
                "the operator opens single targets with `den serve --private ADDRESS:PORT`"
            }
            Self::Smtp => "send mail by a submission port, 465 or 587",
            Self::DeniedRule => "`den net NAME` shows the rules",
            Self::Ech => "a rule with ` ech` at its end lets it pass",
            Self::NotTlsOrHttp | Self::PeekTimeout => "a rule `tcp://HOST:PORT` lets any bytes pass",
            Self::SniMismatch | Self::SniMissing | Self::HostMismatch => "connect to the name that is asked for",
            Self::NoComputer => "`den list` shows the computers that run",
            Self::LimitFlows | Self::LimitNew | Self::LimitDay | Self::LimitDns | Self::LimitBits => {
                "`den net NAME` shows the limits"
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Decides about a flow.
pub fn decide<'a>(policy: &'a Policy, flow: &Flow<'_>, private: &[PrivateTarget]) -> Decision<'a> {
    let (address, port) = (*flow.target.ip(), flow.target.port());
    if policy.posture == Posture::Sealed {
        return deny(Why::Sealed, None);
    }
    if port == 53 {
        return allow(Why::Dns, None, Obligations { dns: true, ..Obligations::default() });
    }
    if address == GATEWAY {
        return deny(Why::Gateway, None);
    }
    let name = flow.name.filter(|_| flow.origin != NameOrigin::None);
    let by_name = is_virtual(address);
    if by_name && (name.is_none() || flow.origin != NameOrigin::Virtual) {
        return deny(Why::UnknownName, None);
    }
    if let Some(name) = name
        && rule::is_computer(name)
    {
        return if by_name { to_computer(policy, name, port) } else { deny(Why::NoRule, None) };
    }
    // An address that was asked for is what will be dialled; a name's are held against the floor
    // when they are known, and only the port can be judged here.
    if by_name {
        if port == floor::SMTP && !private.iter().any(|target| target.port == port) {
            return deny(Why::Smtp, None);
        }
    } else if let Err((why, rule)) = dialled(policy, IpAddr::V4(address), port, private) {
        return deny(why, rule);
    }
    if let Some(rule) = denied(policy, name, port, flow.seen) {
        return deny(Why::DeniedRule, Some(rule));
    }
    match policy.posture {
        Posture::Sealed => deny(Why::Sealed, None),
        Posture::Open => {
            if let Seen::Tls { sni: Some(said), .. } | Seen::Http { host: Some(said) } = flow.seen
                && let Some(rule) = denied(policy, Some(said), port, flow.seen)
            {
                return deny(Why::DeniedRule, Some(rule));
            }
            // Other ports are not kept waiting: their server may be the one that speaks first.
            let look = flow.seen == Seen::Nothing && matches!(port, 80 | 443) && policy.denies_names();
            let peek = if look { Peek::IfWeb } else { Peek::No };
            allow(Why::AllowedOpen, None, Obligations { peek, resolve: by_name, ..Obligations::default() })
        }
        Posture::Guarded => match name {
            Some(name) => guarded(policy, flow, name),
            None => literal(policy, address, port),
        },
    }
}

/// Whether an address that a name has resolved to, or that was asked for, may be dialled: the
/// floor and the rules of `deny` for blocks. The dialler asks about each address it uses.
pub fn dialled<'a>(
    policy: &'a Policy,
    address: IpAddr,
    port: u16,
    private: &[PrivateTarget],
) -> Result<(), (Why, Option<&'a Rule>)> {
    floor::permits(address, port, private).map_err(|why| (why, None))?;
    if let IpAddr::V4(v4) = address.to_canonical()
        && let Some(rule) = policy.denies_address(v4, port)
    {
        return Err((Why::DeniedRule, Some(rule)));
    }
    Ok(())
}

/// Whether an address is of the block that names are given.
pub fn is_virtual(address: Ipv4Addr) -> bool {
    floor::network(address, VIRTUAL.1) == VIRTUAL.0
}

/// To another computer: any bytes, where a rule says so, in open too.
fn to_computer<'a>(policy: &'a Policy, name: &Host, port: u16) -> Decision<'a> {
    if let Some(rule) = policy.deny.iter().find(|rule| rule.names(name) && rule.denies_port(port)) {
        return deny(Why::DeniedRule, Some(rule));
    }
    for rule in &policy.allow {
        if let Target::Computer(computer) = &rule.target
            && rule.names(name)
            && rule.allows_port(port)
        {
            let obligations = Obligations { computer: Some(computer), ..Obligations::default() };
            return allow(Why::AllowedRule, Some(rule), obligations);
        }
    }
    deny(Why::NoRule, None)
}

/// To an address that stands for nothing.
fn literal(policy: &Policy, address: Ipv4Addr, port: u16) -> Decision<'_> {
    match policy.allow.iter().find(|rule| rule.holds(address) && rule.allows_port(port)) {
        Some(rule) => allow(Why::AllowedRule, Some(rule), Obligations::default()),
        None => deny(Why::IpLiteral, None),
    }
}

/// To a name, in guarded.
fn guarded<'a>(policy: &'a Policy, flow: &Flow<'_>, name: &Host) -> Decision<'a> {
    let (address, port) = (*flow.target.ip(), flow.target.port());
    let resolve = is_virtual(address);
    let mut web: Option<&Rule> = None;
    let mut fits: Option<&Rule> = None;
    let mut named = false;
    for rule in &policy.allow {
        // A block is allowed with any bytes, whether a name is known for the address or not.
        if !resolve && rule.holds(address) && rule.allows_port(port) {
            return allow(Why::AllowedRule, Some(rule), Obligations::default());
        }
        if !rule.names(name) || !(resolve || rule.real_dns) {
            continue;
        }
        named = true;
        if !rule.allows_port(port) {
            continue;
        }
        if rule.protocol == RuleProtocol::Tcp {
            // Only a rule that denies one protocol makes the bytes matter.
            let look = flow.seen == Seen::Nothing && denies_protocol(policy, name, port);
            let peek = if look { Peek::IfWeb } else { Peek::No };
            return allow(Why::AllowedRule, Some(rule), Obligations { peek, resolve, ..Obligations::default() });
        }
        web = web.or(Some(rule));
        // Of the rules for what is spoken, one that says `ech` is worth more.
        if speaks(rule.protocol, flow.seen) && !fits.is_some_and(|best| best.ech || !rule.ech) {
            fits = Some(rule);
        }
    }
    let Some(web) = web else {
        // A pinned address whose names are answered virtually now is an address like any other.
        return deny(if named || resolve { Why::NoRule } else { Why::IpLiteral }, None);
    };
    let open = Obligations { resolve, ..Obligations::default() };
    match (flow.seen, fits) {
        (Seen::Nothing, _) => allow(Why::AllowedRule, Some(web), Obligations { peek: Peek::Must, ..open }),
        (Seen::Nobody, _) => deny(Why::PeekTimeout, Some(web)),
        (Seen::Other, _) => deny(Why::NotTlsOrHttp, Some(web)),
        (Seen::Tls { .. } | Seen::Http { .. }, None) => deny(Why::NoRule, None),
        (Seen::Tls { sni, ech }, Some(rule)) => match sni {
            None => deny(Why::SniMissing, Some(rule)),
            Some(sni) if sni != name => deny(Why::SniMismatch, Some(rule)),
            Some(_) if ech && !rule.ech => deny(Why::Ech, Some(rule)),
            Some(_) => allow(Why::AllowedRule, Some(rule), open),
        },
        (Seen::Http { host }, Some(rule)) if host == Some(name) => {
            allow(Why::AllowedRule, Some(rule), Obligations { inspect_http: true, ..open })
        }
        (Seen::Http { .. }, Some(rule)) => deny(Why::HostMismatch, Some(rule)),
    }
}

/// Whether a rule's protocol is the one that is spoken.
fn speaks(protocol: RuleProtocol, seen: Seen<'_>) -> bool {
    match protocol {
        RuleProtocol::Any => matches!(seen, Seen::Tls { .. } | Seen::Http { .. }),
        RuleProtocol::Tls => matches!(seen, Seen::Tls { .. }),
        RuleProtocol::Http => matches!(seen, Seen::Http { .. }),
        RuleProtocol::Tcp => true,
    }
}

/// The rule of `deny` that takes this name away. One for a single protocol needs it to be seen.
fn denied<'a>(policy: &'a Policy, name: Option<&Host>, port: u16, seen: Seen<'_>) -> Option<&'a Rule> {
    let name = name?;
    policy.deny.iter().find(|rule| {
        rule.denies_port(port)
            && rule.names(name)
            && (rule.protocol == RuleProtocol::Any || speaks(rule.protocol, seen))
    })
}

fn denies_protocol(policy: &Policy, name: &Host, port: u16) -> bool {
    policy.deny.iter().any(|rule| {
        matches!(rule.protocol, RuleProtocol::Tls | RuleProtocol::Http) && rule.denies_port(port) && rule.names(name)
    })
}

fn allow<'a>(why: Why, rule: Option<&'a Rule>, obligations: Obligations<'a>) -> Decision<'a> {
    Decision { verdict: Outcome::Allow, why, rule, obligations }
}

fn deny(why: Why, rule: Option<&Rule>) -> Decision<'_> {
    Decision { verdict: Outcome::Deny, why, rule, obligations: Obligations::default() }
}

#[cfg(test)]
mod tests;
