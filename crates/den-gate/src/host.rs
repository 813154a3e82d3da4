//! A host's name, parsed once. Whatever names a host (a rule, a query, an SNI, a Host header)
//! becomes a [`Host`] or is refused; nothing later looks at the bytes it came from.
//!
//! ```text
//! what a person wrote ──FromStr──► IDNA ──► ASCII ─┐
//!                                                  ├─► lower case, one dot at the end off ─► rules below ─► Host
//! what came by a wire ──TryFrom<&[u8]>─► ASCII ────┘
//! ```
//!
//! Invariants:
//! - Labels of `a-z`, `0-9`, `-` and `_`, each of 1 to 63 bytes, none with `-` in front; 253 bytes in all.
//! - `xn--` labels decode, and encode to themselves again: no two spellings of one name.
//! - The last label is no number: `127.1`, `0x7f.1` and `2130706433` are addresses to some resolvers.
//! - On a wire a name is ASCII already; other bytes there are refused, never mapped.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest name, in bytes: 255 octets on the wire, RFC 1035 section 2.3.4.
pub const HOST_BYTES_MAX: usize = 253;
/// The longest label, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;

/// The name of a host, in the one form in which names are compared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Box<str>);

/// Why something is no host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HostError {
    /// Nothing, or nothing but a dot.
    #[error("it is empty")]
    Empty,
    /// Two dots side by side, or one in front.
    #[error("a label is empty")]
    EmptyLabel,
    /// More than [`LABEL_BYTES_MAX`].
    #[error("a label has more than {LABEL_BYTES_MAX} characters")]
    LongLabel,
    /// More than [`HOST_BYTES_MAX`].
    #[error("it has more than {HOST_BYTES_MAX} characters")]
    Long,
    /// One that has no place in a name.
    #[error("{0:?} is not allowed in it")]
    Character(char),
    /// A byte beyond ASCII, where only ASCII travels.
    #[error("byte {0:#04x} is not ASCII")]
    NotAscii(u8),
    /// `-` in front of a label.
    #[error("a label begins with `-`")]
    Hyphen,
    /// An IPv4 address, or what some resolver takes for one.
    #[error("it ends in a number, as an address does")]
    Number,
    /// Not a name by IDNA (UTS 46), or an `xn--` label that does not decode.
    #[error("it is no valid international name (IDNA)")]
    Idna,
}

impl Host {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this lies below `parent`, at any depth. A name is not below itself.
    pub fn is_under(&self, parent: &Host) -> bool {
        let (own, above) = (self.0.as_bytes(), parent.0.as_bytes());
        own.len() > above.len() && own.ends_with(above) && own[own.len() - above.len() - 1] == b'.'
    }

    /// The labels, leftmost first.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// Takes a name label by label, as DNS carries it: a dot inside a label is refused rather than
    /// taken for a border.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, HostError> {
        let mut name = Vec::with_capacity(64);
        for label in labels {
            if label.contains(&b'.') {
                return Err(HostError::Character('.'));
            }
            if label.is_empty() {
                return Err(HostError::EmptyLabel);
            }
            if name.len() + label.len() > HOST_BYTES_MAX {
                return Err(HostError::Long);
            }
            if !name.is_empty() {
                name.push(b'.');
            }
            name.extend_from_slice(label);
        }
        Self::try_from(name.as_slice())
    }

    /// From ASCII of either case; the single place where a `Host` is made.
    fn from_ascii(name: &str) -> Result<Self, HostError> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > HOST_BYTES_MAX {
            return Err(HostError::Long);
        }
        let mut last = "";
        let mut encoded = false;
        for label in name.split('.') {
            if label.is_empty() {
                return Err(HostError::EmptyLabel);
            }
            if label.len() > LABEL_BYTES_MAX {
                return Err(HostError::LongLabel);
            }
            if label.starts_with('-') {
                return Err(HostError::Hyphen);
            }
            if let Some(bad) = label.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))) {
                return Err(HostError::Character(bad));
            }
            encoded |= label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("xn--"));
            last = label;
        }
        if is_number(last) {
            return Err(HostError::Number);
        }
        let lower = name.to_ascii_lowercase();
        // An `xn--` label must be what its own decoding encodes to.
        if encoded && !to_ascii(&lower).is_ok_and(|again| again == lower) {
            return Err(HostError::Idna);
        }
        Ok(Self(lower.into_boxed_str()))
    }
}

/// What inet_aton(3) and the URL standard ("ends in a number") take for a number: digits, or `0x`
/// and hexadecimal digits or nothing.
fn is_number(label: &str) -> bool {
    let bytes = label.as_bytes();
    match bytes {
        [b'0', b'x' | b'X', hex @ ..] => hex.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

fn to_ascii(name: &str) -> Result<Cow<'_, str>, HostError> {
    idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::URL).map_err(|_| HostError::Idna)
}

impl FromStr for Host {
    type Err = HostError;

    /// What a person wrote: international names become `xn--` labels.
    fn from_str(name: &str) -> Result<Self, HostError> {
        if name.is_ascii() {
            return Self::from_ascii(name);
        }
        // Characters that have no place are named before IDNA says no without a reason.
        if let Some(bad) = name.chars().find(|c| c.is_ascii_control() || " %#/:<>?@[\\]^|".contains(*c)) {
            return Err(HostError::Character(bad));
        }
        Self::from_ascii(&to_ascii(name)?)
    }
}

impl TryFrom<&[u8]> for Host {
    type Error = HostError;

    /// What came by a wire: ASCII, or refused.
    fn try_from(name: &[u8]) -> Result<Self, HostError> {
        if let Some(byte) = name.iter().find(|b| !b.is_ascii()) {
            return Err(HostError::NotAscii(*byte));
        }
        Self::from_ascii(std::str::from_utf8(name).map_err(|_| HostError::Idna)?)
    }
}

impl AsRef<str> for Host {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.0)
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|e| de::Error::custom(format_args!("{text:?} is no host name: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: Result<&str, HostError>) {
        let got = text.parse::<Host>();
        assert_eq!(got.as_ref().map(Host::as_str).map_err(|e| *e), expected, "{text:?}");
        if text.is_ascii() {
            assert_eq!(Host::try_from(text.as_bytes()), got, "by wire: {text:?}");
        }
    }

    #[test]
    fn one_name_has_one_form() {
        check("api.example.com", Ok("api.example.com"));
        check("API.Example.COM", Ok("api.example.com"));
        check("api.example.com.", Ok("api.example.com"));
        check("localhost", Ok("localhost"));
        check("_acme-challenge.example.com", Ok("_acme-challenge.example.com"));
        check("r3---sn-q4f.example.com", Ok("r3---sn-q4f.example.com"));
        check("3.pool.example.com", Ok("3.pool.example.com"));
        check("bücher.example", Ok("xn--bcher-kva.example"));
        check("BÜCHER.example", Ok("xn--bcher-kva.example"));
        check("xn--bcher-kva.example", Ok("xn--bcher-kva.example"));
        check("XN--BCHER-KVA.example", Ok("xn--bcher-kva.example"));
        // Full-width forms are letters and dots to IDNA.
        check("ｇｏｏｄ。ｔｅｓｔ", Ok("good.test"));
    }

    #[test]
    fn eg12_odd_names_are_refused_or_are_another_name() {
        check("evil.test\0.good.test", Err(HostError::Character('\0')));
        check("good.test\r\n", Err(HostError::Character('\r')));
        check("good.test%eth0", Err(HostError::Character('%')));
        check("good.test..", Err(HostError::EmptyLabel));
        check(".good.test", Err(HostError::EmptyLabel));
        check("good..test", Err(HostError::EmptyLabel));
        check("", Err(HostError::Empty));
        check(".", Err(HostError::Empty));
        check("good.test:443", Err(HostError::Character(':')));
        check("user@good.test", Err(HostError::Character('@')));
        check("good.test/", Err(HostError::Character('/')));
        check("[::1]", Err(HostError::Character('[')));
        check("fe80::1%eth0", Err(HostError::Character(':')));
        check("*.good.test", Err(HostError::Character('*')));
        check("-o.good.test", Err(HostError::Hyphen));
        check("go od.test", Err(HostError::Character(' ')));
        // A Cyrillic letter makes another name, not an equal one.
        check("gооd.test", Ok("xn--gd-fmca.test"));
        check("xn--.test", Err(HostError::Idna));
        check("xn--a.test", Err(HostError::Idna));
        check("xn--99999999999.test", Err(HostError::Idna));
        // Decodes to plain ASCII, so it would be a second spelling of a name.
        check("xn--good-.test", Err(HostError::Idna));
        let good: Host = "good.test".parse().unwrap();
        let other: Host = "good.test.evil.test".parse().unwrap();
        assert_ne!(good, other);
        assert!(!other.is_under(&good));
    }

    #[test]
    fn eg12_lengths() {
        let label = "a".repeat(63);
        check(&format!("{label}.test"), Ok(&format!("{label}.test")));
        check(&format!("{label}a.test"), Err(HostError::LongLabel));
        let long = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(long.len(), 253);
        check(&long, Ok(&long));
        check(&format!("{long}."), Ok(&long));
        check(&format!("{long}a"), Err(HostError::Long));
    }

    #[test]
    fn eg12_numbers_are_not_names() {
        for text in
            ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "0x7f000001", "0x", "1.2.3.0x", "good.1"]
        {
            check(text, Err(HostError::Number));
        }
        check("１２７.0.0.1", Err(HostError::Number));
        check("127.0.0.1.", Err(HostError::Number));
        check("1e3", Ok("1e3"));
        check("0xg", Ok("0xg"));
    }

    #[test]
    fn a_wire_carries_ascii() {
        assert_eq!(Host::try_from("bücher.example".as_bytes()), Err(HostError::NotAscii(0xc3)));
        assert_eq!(Host::try_from(&b"go\xffod.test"[..]), Err(HostError::NotAscii(0xff)));
        let labels = |l: &[&[u8]]| Host::from_labels(l.iter().copied());
        assert_eq!(labels(&[b"Good", b"test"]).unwrap().as_str(), "good.test");
        assert_eq!(labels(&[b"evil.good", b"test"]), Err(HostError::Character('.')));
        assert_eq!(labels(&[b"good", b""]), Err(HostError::EmptyLabel));
        assert_eq!(labels(&[]), Err(HostError::Empty));
        assert_eq!(labels(&[&[b'a'; 63][..]; 5]), Err(HostError::Long));
    }

    #[test]
    fn below_means_below_a_dot() {
        let under = |name: &str, parent: &str| name.parse::<Host>().unwrap().is_under(&parent.parse::<Host>().unwrap());
        assert!(under("a.good.test", "good.test"));
        assert!(under("b.a.good.test", "good.test"));
        assert!(!under("good.test", "good.test"));
        assert!(!under("evilgood.test", "good.test"));
    }

    #[test]
    fn a_name_travels_as_a_string() {
        let host: Host = serde_json::from_str(r#""Good.Test.""#).unwrap();
        assert_eq!(serde_json::to_string(&host).unwrap(), r#""good.test""#);
        let error = serde_json::from_str::<Host>(r#""a..b""#).unwrap_err().to_string();
        assert!(error.starts_with(r#""a..b" is no host name: a label is empty"#), "{error}");
    }

    proptest! {
        #[test]
        fn a_host_reads_back_as_itself(text in "\\PC{0,40}|[a-zA-Z0-9._-]{0,80}|(xn--)?[a-z0-9-]{1,20}\\.test") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.as_str().parse::<Host>().unwrap(), host.clone());
                prop_assert_eq!(Host::try_from(host.as_str().as_bytes()).unwrap(), host.clone());
                prop_assert_eq!(Host::from_labels(host.labels().map(str::as_bytes)).unwrap(), host.clone());
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
                prop_assert!(host.as_str().bytes().all(plain) && host.as_str().parse::<std::net::Ipv4Addr>().is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Host::try_from(bytes.as_slice());
        }
    }
}
