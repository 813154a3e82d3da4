//! One rule: where a computer may go, or may not.
//!
//! ```text
//! [PROTO://]TARGET[:PORT[-PORT]][ dns=real][ ech]
//!
//! api.example.com            TLS or HTTP, ports 80 and 443
//! *.example.com:8443         any name below, at any depth; not example.com itself
//! https://api.example.com    TLS, port 443               (https:// is written tls:// ever after)
//! tcp://db.example.com:5432  any bytes; a port is needed
//! 203.0.113.0/24[:443]       addresses; any bytes, all ports unless said; never met by a name
//! vm:db:5432                 another computer, by its name
//! ```
//!
//! What is not said differs by list: a port that is not said means the usual ones in `allow`, and
//! all of them in `deny`.
//!
//! Invariants:
//! - The text of a rule is its canonical form: it parses to the same rule, and two rules that mean
//!   the same have the same text.
//! - Names below `vm.internal` are computers, and only `vm:` rules mean them; not even `*` does.

mod error;

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub(crate) use error::shown;
pub use error::{Fault, RuleError, Unsupported};

use crate::floor;
use crate::host::Host;
use den_model::ComputerName;

/// Above the names of computers: `db.vm.internal`.
pub const COMPUTERS: &str = "vm.internal";
/// The longest rule as it is written, in bytes.
pub const RULE_BYTES_MAX: usize = 512;

/// One rule. Its list says whether it allows or denies.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The canonical text.
    pub text: Box<str>,
    /// What may be spoken.
    pub protocol: RuleProtocol,
    /// Where to.
    pub target: Target,
    /// At which ports.
    pub ports: Ports,
    /// Its name is answered with the real addresses, which are then reachable as such.
    pub real_dns: bool,
    /// A ClientHello with ECH may pass, although the name inside cannot be seen.
    pub ech: bool,
}

/// What may be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleProtocol {
    /// TLS or HTTP by what the bytes are; any bytes where the target is an address or a computer.
    Any,
    /// TLS.
    Tls,
    /// HTTP/1 in the clear.
    Http,
    /// Any bytes, which are not looked at.
    Tcp,
}

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// This name.
    Host(Host),
    /// Any name below this one.
    Under(Host),
    /// Any name.
    Any,
    /// A block of addresses; one address is a block of 32 bits.
    Net {
        /// The first one.
        address: Ipv4Addr,
        /// Bits that they share.
        prefix: u8,
    },
    /// Another computer, by its name.
    Computer(String),
}

/// At which ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ports {
    /// Not said.
    Unsaid,
    /// From the first to the last, both included.
    Range {
        /// The lowest.
        first: u16,
        /// The highest.
        last: u16,
    },
}

impl Rule {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the target means this name, whatever the port.
    pub fn names(&self, name: &Host) -> bool {
        match &self.target {
            Target::Host(host) => host == name,
            Target::Under(parent) => name.is_under(parent) && !is_computer(name),
            Target::Any => !is_computer(name),
            Target::Computer(computer) => computer_of(name) == Some(computer),
            Target::Net { .. } => false,
        }
    }

    /// Whether the target means this address, whatever the port.
    pub fn holds(&self, other: Ipv4Addr) -> bool {
        matches!(self.target, Target::Net { address, prefix } if floor::network(other, prefix) == address)
    }

    /// Whether this rule, as one of `allow`, lets this port be used.
    pub fn allows_port(&self, port: u16) -> bool {
        match (self.ports, &self.target, self.protocol) {
            (Ports::Range { first, last }, ..) => (first..=last).contains(&port),
            (Ports::Unsaid, Target::Net { .. }, _) => true,
            (Ports::Unsaid, _, RuleProtocol::Any) => matches!(port, 80 | 443),
            (Ports::Unsaid, _, RuleProtocol::Tls) => port == 443,
            (Ports::Unsaid, _, RuleProtocol::Http) => port == 80,
            (Ports::Unsaid, _, RuleProtocol::Tcp) => false,
        }
    }

    /// Whether this rule, as one of `deny`, takes this port away.
    pub fn denies_port(&self, port: u16) -> bool {
        match self.ports {
            Ports::Unsaid => true,
            Ports::Range { first, last } => (first..=last).contains(&port),
        }
    }

    /// Whether this rule means all that is spoken at all ports.
    pub fn is_whole(&self) -> bool {
        self.ports == Ports::Unsaid && self.protocol == RuleProtocol::Any
    }

    /// The canonical text of these parts.
    fn write(&self) -> Box<str> {
        let mut text = String::with_capacity(64);
        text.push_str(match self.protocol {
            RuleProtocol::Any => "",
            RuleProtocol::Tls => "tls://",
            RuleProtocol::Http => "http://",
            RuleProtocol::Tcp => "tcp://",
        });
        match &self.target {
            Target::Host(host) => text.push_str(host.as_str()),
            Target::Under(host) => text.extend(["*.", host.as_str()]),
            Target::Any => text.push('*'),
            Target::Net { address, prefix: 32 } => text.push_str(&address.to_string()),
            Target::Net { address, prefix } => text.push_str(&format!("{address}/{prefix}")),
            Target::Computer(name) => text.extend(["vm:", name]),
        }
        match self.ports {
            Ports::Unsaid => {}
            Ports::Range { first, last } if first == last => text.push_str(&format!(":{first}")),
            Ports::Range { first, last } => text.push_str(&format!(":{first}-{last}")),
        }
        if self.real_dns {
            text.push_str(" dns=real");
        }
        if self.ech {
            text.push_str(" ech");
        }
        text.into_boxed_str()
    }
}

/// The computer that a name below [`COMPUTERS`] means.
pub fn computer_of(name: &Host) -> Option<&str> {
    let label = name.as_str().strip_suffix(COMPUTERS)?.strip_suffix('.')?;
    (!label.contains('.')).then_some(label)
}

/// Whether a name belongs to computers: [`COMPUTERS`] or one below it.
pub fn is_computer(name: &Host) -> bool {
    name.as_str().strip_suffix(COMPUTERS).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let bad = |fault| RuleError::Bad { text: error::shown(text), fault };
        let unsupported = |what| RuleError::Unsupported { text: error::shown(text), what };
        if text.len() > RULE_BYTES_MAX {
            return Err(bad(Fault::Long));
        }
        let mut words = text.split_ascii_whitespace();
        let first = words.next().ok_or_else(|| bad(Fault::Empty))?;
        let (mut real_dns, mut ech) = (false, false);
        for word in words {
            match word {
                "dns=real" => real_dns = true,
                "ech" => ech = true,
                _ if is_method(first) => return Err(unsupported(Unsupported::Method)),
                _ => return Err(bad(Fault::Option { word: error::shown(word) })),
            }
        }

        let (protocol, rest) = match first.split_once("://") {
            None => (RuleProtocol::Any, first),
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "tls" | "https" => (RuleProtocol::Tls, rest),
                "http" => (RuleProtocol::Http, rest),
                "tcp" => (RuleProtocol::Tcp, rest),
                "udp" | "quic" => return Err(unsupported(Unsupported::Udp)),
                _ => return Err(bad(Fault::Protocol { scheme: error::shown(scheme) })),
            },
        };

        let (target, ports) = if let Some(rest) = rest.strip_prefix("vm:") {
            if protocol != RuleProtocol::Any {
                return Err(unsupported(Unsupported::ComputerProtocol));
            }
            computer(rest).map_err(bad)?
        } else {
            if rest.starts_with('[') || rest.bytes().filter(|b| *b == b':').count() > 1 {
                return Err(unsupported(Unsupported::V6));
            }
            let (place, ports) = match rest.split_once(':') {
                None => (rest, Ports::Unsaid),
                // A colon inside a path is no port.
                Some((place, port)) if !place.contains('/') || is_block(place) => {
                    let port = if is_block(place) { port } else { port.split('/').next().unwrap_or(port) };
                    (place, self::ports(port).map_err(bad)?)
                }
                Some(_) => (rest, Ports::Unsaid),
            };
            if is_block(place) {
                (block(place).map_err(bad)?, ports)
            } else if rest.contains('/') || rest.contains('?') {
                return Err(unsupported(Unsupported::Path));
            } else {
                (named(place).map_err(bad)?, ports)
            }
        };

        let by_name = matches!(target, Target::Host(_) | Target::Under(_) | Target::Any);
        match (&target, protocol, ports) {
            (Target::Net { .. }, RuleProtocol::Tls | RuleProtocol::Http, _) => {
                return Err(unsupported(Unsupported::AddressProtocol));
            }
            (_, RuleProtocol::Tcp, Ports::Unsaid) if by_name => return Err(bad(Fault::PortNeeded)),
            _ => {}
        }
        if real_dns && !by_name {
            return Err(bad(Fault::OptionOfNames { word: "dns=real" }));
        }
        if ech && !(by_name && matches!(protocol, RuleProtocol::Any | RuleProtocol::Tls)) {
            return Err(bad(Fault::OptionOfNames { word: "ech" }));
        }
        // `tcp://` in front of an address says what is so without it.
        let protocol = if matches!(target, Target::Net { .. }) { RuleProtocol::Any } else { protocol };
        let mut rule = Self { text: Box::default(), protocol, target, ports, real_dns, ech };
        rule.text = rule.write();
        Ok(rule)
    }
}

/// `GET` in `GET host/**`.
fn is_method(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_uppercase() || b == b',' || b == b'|' || b == b'*')
}

/// Whether this is meant as an address, or a block of them.
fn is_block(text: &str) -> bool {
    text.split_once('/').map_or(text, |(address, _)| address).parse::<Ipv4Addr>().is_ok()
}

fn block(text: &str) -> Result<Target, Fault> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let Ok(address) = address.parse::<Ipv4Addr>() else { return Err(Fault::Prefix { text: error::shown(text) }) };
    let prefix = match prefix {
        None => 32,
        Some(bits) => match decimal(bits) {
            Some(bits @ 0..=32) => bits as u8,
            _ => return Err(Fault::Prefix { text: error::shown(bits) }),
        },
    };
    let first = floor::network(address, prefix);
    if first != address {
        return Err(Fault::HostBits { address, first, prefix });
    }
    Ok(Target::Net { address, prefix })
}

fn named(text: &str) -> Result<Target, Fault> {
    if text == "*" {
        return Ok(Target::Any);
    }
    let (below, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
    if name.contains('*') {
        return Err(Fault::Wildcard);
    }
    let host: Host = name.parse().map_err(|why| Fault::Host { name: error::shown(name), why })?;
    if is_computer(&host) {
        return Err(Fault::Reserved { name: host });
    }
    Ok(if below { Target::Under(host) } else { Target::Host(host) })
}

fn computer(text: &str) -> Result<(Target, Ports), Fault> {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let name: ComputerName = name.parse().map_err(|why| Fault::Computer { why })?;
    let port = port.ok_or(Fault::PortNeeded)?;
    Ok((Target::Computer(name.as_str().to_owned()), ports(port)?))
}

/// `443`, `8000-8100`.
fn ports(text: &str) -> Result<Ports, Fault> {
    let one = |text: &str| match decimal(text) {
        Some(port @ 1..=65535) => Ok(port as u16),
        _ => Err(Fault::Port { text: error::shown(text) }),
    };
    let (first, last) = match text.split_once('-') {
        None => (one(text)?, one(text)?),
        Some((first, last)) => (one(first)?, one(last)?),
    };
    if first > last {
        return Err(Fault::PortsReversed { first, last });
    }
    Ok(Ports::Range { first, last })
}

/// Digits and nothing else; `+5` and `٣` are no numbers here.
fn decimal(text: &str) -> Option<u32> {
    (!text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({})", self.text)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
