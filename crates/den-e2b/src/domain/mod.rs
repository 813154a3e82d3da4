//! A domain of the house's own, that SDKs are led to as they are led to E2B's: by names, with TLS.
//!
//! ```text
//! name ─► Responder (DNS, this domain alone) ─► address ─► TLS with a leaf of the Authority ─► the same router
//! ```
//!
//! Deliberately absent: the listener of TLS. Connections are `den-server`'s.

mod authority;
mod dns;

use std::{fmt, net::IpAddr, str::FromStr};

pub use authority::{Authority, AuthorityError};
pub use dns::Responder;

/// The longest domain: before it come `<port>-<id>.`, and a name has at most 253 characters.
const NAME_CHARS_MAX: usize = 253 - "65535-".len() - 21 - 1;

/// The longest part between two dots: RFC 1035.
const LABEL_CHARS_MAX: usize = 63;

/// A domain and the port of its TLS, as `E2B_DOMAIN` has both: `e2b.test:8443`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    name: String,
    port: u16,
}

/// Why a text names no domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDomain {
    /// Nothing is before the port.
    #[error("there is no name")]
    Empty,
    /// Nothing, or no number, is after the last colon.
    #[error("there is no port after the name")]
    NoPort,
    /// A URL.
    #[error("it is a URL")]
    Url,
    /// An IP address.
    #[error("it is an address, and names are what it is for")]
    Address,
    /// A part that no host's name has.
    #[error("`{0}` is no part of a host's name: those are a-z, 0-9 and `-` inside, at most {LABEL_CHARS_MAX}")]
    Label(String),
    /// It is too long.
    #[error("it is longer than {NAME_CHARS_MAX} characters")]
    Long,
    /// Names right below it belong to different people.
    #[error("`{0}` is a public suffix: names below it are not yours")]
    Suffix(String),
}

impl NoDomain {
    /// What to try next.
    pub fn hint(&self) -> String {
        match self {
            Self::Suffix(name) => format!("put a name before it, for example e2b.{name}:8443"),
            Self::NoPort => "for example e2b.test:8443; port 0 picks a free one".to_owned(),
            _ => "for example e2b.test:8443".to_owned(),
        }
    }
}

impl FromStr for Domain {
    type Err = NoDomain;

    fn from_str(text: &str) -> Result<Self, NoDomain> {
        if text.contains('/') {
            return Err(NoDomain::Url);
        }
        let is_address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if is_address(text) {
            return Err(NoDomain::Address);
        }
        let (name, port) = text.rsplit_once(':').ok_or(NoDomain::NoPort)?;
        if is_address(name) {
            return Err(NoDomain::Address);
        }
        let port = port.parse().map_err(|_| NoDomain::NoPort)?;
        let name = name.to_ascii_lowercase();
        if name.is_empty() {
            return Err(NoDomain::Empty);
        }
        if name.len() > NAME_CHARS_MAX {
            return Err(NoDomain::Long);
        }
        if let Some(label) = name.split('.').find(|label| !is_label(label)) {
            return Err(NoDomain::Label(label.to_owned()));
        }
        // Some programs read `1.2` and `0x7f.1` as addresses, as inet_aton(3) does.
        let last = name.rsplit('.').next().unwrap_or("");
        if last.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(NoDomain::Address);
        }
        if psl::suffix_str(&name).is_some_and(|suffix| suffix == name) {
            return Err(NoDomain::Suffix(name));
        }
        Ok(Self { name, port })
    }
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_CHARS_MAX).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl Domain {
    /// Without the port.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its TLS is listened for; 0: it is not known yet.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same with the port that was picked.
    pub fn at(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Whether a name, without a port, is the domain or below it.
    pub(crate) fn has(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        let Some(at) = name.len().checked_sub(self.name.len()) else { return false };
        let (before, tail) = name.as_bytes().split_at(at);
        tail.eq_ignore_ascii_case(self.name.as_bytes()) && (before.is_empty() || before.ends_with(b"."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_name_with_a_port() {
        for (text, expected) in [
            ("e2b.test:8443", "e2b.test:8443"),
            ("E2B.Test:0", "e2b.test:0"),
            ("a-b.1x.example.co.uk:443", "a-b.1x.example.co.uk:443"),
            ("den.localhost:8443", "den.localhost:8443"),
            ("xn--bcher-kva.example:65535", "xn--bcher-kva.example:65535"),
        ] {
            assert_eq!(text.parse::<Domain>().unwrap().to_string(), expected);
        }
        let long = format!("{}.test:1", ["a"; 120].join("."));
        for (text, expected) in [
            ("", NoDomain::NoPort),
            ("e2b.test", NoDomain::NoPort),
            ("e2b.test:", NoDomain::NoPort),
            ("e2b.test:70000", NoDomain::NoPort),
            ("e2b.test:https", NoDomain::NoPort),
            (":8443", NoDomain::Empty),
            ("https://e2b.test:8443", NoDomain::Url),
            ("e2b.test:8443/", NoDomain::Url),
            ("127.0.0.1:8443", NoDomain::Address),
            ("127.0.0.1", NoDomain::Address),
            ("::1", NoDomain::Address),
            ("[::1]:8443", NoDomain::Address),
            ("127.1:8443", NoDomain::Address),
            ("e2b.0x7f:8443", NoDomain::Address),
            ("my_e2b.test:8443", NoDomain::Label("my_e2b".to_owned())),
            ("e2b..test:8443", NoDomain::Label(String::new())),
            ("e2b.test.:8443", NoDomain::Label(String::new())),
            ("*.e2b.test:8443", NoDomain::Label("*".to_owned())),
            ("-e2b.test:8443", NoDomain::Label("-e2b".to_owned())),
            ("bücher.test:8443", NoDomain::Label("bücher".to_owned())),
            ("e2b test:8443", NoDomain::Label("e2b test".to_owned())),
            ("test:8443", NoDomain::Suffix("test".to_owned())),
            ("localhost:8443", NoDomain::Suffix("localhost".to_owned())),
            ("com:8443", NoDomain::Suffix("com".to_owned())),
            ("co.uk:8443", NoDomain::Suffix("co.uk".to_owned())),
            (&long, NoDomain::Long),
        ] {
            assert_eq!(text.parse::<Domain>().unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn a_domain_has_what_is_below_it() {
        let domain: Domain = "e2b.test:1".parse().unwrap();
        for name in ["e2b.test", "api.e2b.test", "A.B.E2B.TEST", "api.e2b.test."] {
            assert!(domain.has(name), "{name}");
        }
        for name in ["", "test", "xe2b.test", "e2b.test.evil.test", "e2b.tes", "é2b.test"] {
            assert!(!domain.has(name), "{name}");
        }
    }
}
