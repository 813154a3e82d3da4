//! Why a rule, a posture or a private target was refused, and the nearest right form.

use std::net::Ipv4Addr;

use den_model::NameError;

use crate::host::{Host, HostError};
use crate::policy::RULES_MAX;
use crate::rule::{COMPUTERS, RULE_BYTES_MAX, computer_of};

/// Why a policy, or a part of one, was refused. What was in force stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not a posture.
    #[error("{text:?} is no posture")]
    Posture {
        /// What was given.
        text: String,
    },
    /// It cannot be read.
    #[error("{}", .fault.of(.text))]
    Bad {
        /// What was given.
        text: String,
        /// What stood in the way.
        fault: Fault,
    },
    /// It can be read, and the gate cannot do it.
    #[error("rule {text:?}: {what}")]
    Unsupported {
        /// What was given.
        text: String,
        /// What the gate cannot do.
        what: Unsupported,
    },
    /// It allows names that anyone can get.
    #[error("rule {text:?} is too wide: {reason}")]
    Wide {
        /// The rule.
        text: String,
        /// What is wide about it.
        reason: String,
    },
    /// It allows addresses of the floor.
    #[error("rule {text:?} reaches into {block}/{prefix}, which no computer may reach")]
    Floor {
        /// The rule.
        text: String,
        /// The block of the floor.
        block: Ipv4Addr,
        /// Its prefix.
        prefix: u8,
    },
    /// A list is too long.
    #[error("{count} rules in one list; at most {RULES_MAX} are kept")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Not a private target.
    #[error("{}", .fault.of_private(.text))]
    Private {
        /// What was given.
        text: String,
        /// What stood in the way.
        fault: Fault,
    },
}

/// What stood in the way of reading a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing was given.
    Empty,
    /// More than [`RULE_BYTES_MAX`].
    Long,
    /// Not a host name.
    Host {
        /// The part that should be one.
        name: String,
        /// Why it is none.
        why: HostError,
    },
    /// A `*` elsewhere than in front.
    Wildcard,
    /// A name that only `vm:` rules mean.
    Reserved {
        /// The name.
        name: Host,
    },
    /// Not a computer's name.
    Computer {
        /// Why it is none.
        why: NameError,
    },
    /// Not a port.
    Port {
        /// What was given.
        text: String,
    },
    /// The first port is above the last.
    PortsReversed {
        /// The first as given.
        first: u16,
        /// The last as given.
        last: u16,
    },
    /// A port has to be said here.
    PortNeeded,
    /// Not the length of a prefix.
    Prefix {
        /// What was given.
        text: String,
    },
    /// An address within the block rather than its first.
    HostBits {
        /// What was given.
        address: Ipv4Addr,
        /// The first of the block.
        first: Ipv4Addr,
        /// Its prefix.
        prefix: u8,
    },
    /// Not a protocol.
    Protocol {
        /// What was given.
        scheme: String,
    },
    /// Not an option.
    Option {
        /// What was given.
        word: String,
    },
    /// An option that this kind of rule does not have.
    OptionOfNames {
        /// The option.
        word: &'static str,
    },
}

/// What the gate cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// `udp://`.
    #[error("UDP does not leave a computer, other than DNS")]
    Udp,
    /// An IPv6 address.
    #[error("computers have no IPv6, so no address of it can be meant")]
    V6,
    /// A path.
    #[error("rules by path need TLS inspection, which is not there yet")]
    Path,
    /// A method.
    #[error("rules by method need TLS inspection, which is not there yet")]
    Method,
    /// `tls://` in front of an address.
    #[error("an address has no name that TLS or HTTP could be held against")]
    AddressProtocol,
    /// A protocol in front of `vm:`.
    #[error("flows to a computer are not looked into, so they have no protocol")]
    ComputerProtocol,
}

impl RuleError {
    /// Stable, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Posture { .. } => "bad_posture",
            Self::Bad { .. } | Self::TooMany { .. } => "bad_rule",
            Self::Unsupported { .. } => "unsupported_rule",
            Self::Wide { .. } => "wide_rule",
            Self::Floor { .. } => "floor_rule",
            Self::Private { .. } => "bad_private",
        }
    }

    /// What to write instead.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Posture { text } => Some(match text.trim().to_ascii_lowercase().as_str() {
                near @ ("open" | "guarded" | "sealed") => format!("write `{near}`"),
                "closed" | "none" | "off" => "write `sealed` for nothing; others are `open` and `guarded`".into(),
                _ => "postures are `open`, `guarded` and `sealed`".into(),
            }),
            Self::Bad { text, fault } => fault.hint(text),
            Self::Private { .. } => {
                Some("write an IPv4 address or block and a port: `10.1.2.3:5432`, `10.1.2.0/24:443`".into())
            }
            Self::Unsupported { text, what } => what.hint(text),
            Self::Wide { .. } => Some("name the hosts you need, or say again with `--force`".into()),
            Self::Floor { .. } => Some(
                "the operator opens single targets with `den serve --private ADDRESS:PORT`; the rule then says \
                 that port too"
                    .into(),
            ),
            Self::TooMany { .. } => Some("one `*.example.com` stands for all names below it".into()),
        }
    }
}

impl Fault {
    /// The whole message, where `text` was to be a rule.
    fn of(&self, text: &str) -> String {
        match self {
            Self::Empty => "a rule is empty".into(),
            Self::Long => format!("a rule has more than {RULE_BYTES_MAX} characters: {text:?}"),
            Self::Host { name, why } => format!("{name:?} is no host name: {why}"),
            fault => format!("rule {text:?}: {}", fault.what()),
        }
    }

    /// The whole message, where `text` was to be a private target.
    fn of_private(&self, text: &str) -> String {
        match self {
            Self::Host { .. } | Self::Empty => format!("{text:?} is no private target: an IPv4 address is missing"),
            fault => format!("private target {text:?}: {}", fault.what()),
        }
    }

    fn what(&self) -> String {
        match self {
            Self::Empty => "it is empty".into(),
            Self::Long => format!("more than {RULE_BYTES_MAX} characters"),
            Self::Host { name, why } => format!("{name:?} is no host name: {why}"),
            Self::Wildcard => "`*` may only stand in front, for all names below".into(),
            Self::Reserved { name } => format!("names below `{COMPUTERS}` are computers, and {name} is one of them"),
            Self::Computer { why } => why.to_string(),
            Self::Port { text } => format!("port {text:?} is no number from 1 to 65535"),
            Self::PortsReversed { first, last } => format!("port {first} comes after {last}"),
            Self::PortNeeded => "it needs a port".into(),
            Self::Prefix { text } => format!("/{text} is no length of a prefix, 0 to 32"),
            Self::HostBits { address, prefix, .. } => format!("{address} is not the first address of a /{prefix}"),
            Self::Protocol { scheme } => format!("`{scheme}://` is no protocol of rules"),
            Self::Option { word } => format!("{word:?} is no option of rules"),
            Self::OptionOfNames { word } => format!("`{word}` has no meaning here"),
        }
    }

    fn hint(&self, text: &str) -> Option<String> {
        match self {
            Self::Empty | Self::Long => Some("a rule is like `api.example.com` or `tcp://db.example.com:5432`".into()),
            Self::Host { name, why } => Some(match repaired(name) {
                Some(right) => format!("write `{right}`"),
                None if *why == HostError::Number => "write addresses in full: `203.0.113.7`".into(),
                None => "a host name is like `api.example.com`; `*.example.com` is all names below".into(),
            }),
            Self::Wildcard => Some("`*.example.com` means all names below `example.com`, at any depth".into()),
            Self::Reserved { name } => {
                Some(format!("write `vm:{}:PORT`", computer_of(name).filter(|n| *n != "*").unwrap_or("NAME")))
            }
            Self::Computer { .. } => Some("write `vm:NAME:PORT`, with the name that `den list` shows".into()),
            Self::Port { .. } => Some("write `:443`, or `:8000-8100`".into()),
            Self::PortsReversed { first, last } => Some(format!("write `:{last}-{first}`")),
            Self::PortNeeded => Some(format!("write `{}:PORT`", text.trim())),
            Self::Prefix { .. } => Some("a block is like `203.0.113.0/24`".into()),
            Self::HostBits { first, prefix, address } => {
                Some(format!("write `{first}/{prefix}` for the block, or `{address}` for the address"))
            }
            Self::Protocol { .. } => Some("`tls://`, `http://` and `tcp://` are".into()),
            Self::Option { .. } => Some("`dns=real` and `ech` are; one rule is said at a time".into()),
            Self::OptionOfNames { word: "ech" } => Some("it belongs to a name that is reached by TLS".into()),
            Self::OptionOfNames { .. } => Some("it belongs to a host name".into()),
        }
    }
}

impl Unsupported {
    fn hint(self, text: &str) -> Option<String> {
        let first = text.split_ascii_whitespace().next().unwrap_or_default();
        let bare = first.split_once("://").map_or(first, |(_, rest)| rest);
        Some(match self {
            Self::Udp => {
                format!("programs that speak QUIC fall back to TCP: write `{}`", bare.split('/').next().unwrap_or(bare))
            }
            Self::V6 => "write the host's name, or its IPv4 address".into(),
            Self::Path => format!("write `{}`: the whole host", first.replacen(bare, host_of(bare), 1)),
            Self::Method => {
                let place = text.split_ascii_whitespace().nth(1).unwrap_or_default();
                let place = place.split_once("://").map_or(place, |(_, rest)| rest);
                format!("write `{}`: the whole host, with all methods", host_of(place))
            }
            Self::AddressProtocol | Self::ComputerProtocol => format!("write `{bare}`"),
        })
    }
}

fn host_of(place: &str) -> &str {
    place.split(['/', '?']).next().unwrap_or(place)
}

/// The name that was probably meant.
fn repaired(name: &str) -> Option<String> {
    let tidy: Vec<&str> = name.trim().split('.').map(|l| l.trim_start_matches('-')).filter(|l| !l.is_empty()).collect();
    let right: Host = tidy.join(".").parse().ok()?;
    Some(if name.starts_with('.') { format!("*.{right}") } else { right.to_string() })
}

/// What was given, as far as a message should carry it.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
