//! New keys of SSH servers, as `ssh-keygen` writes them, without running it.
//!
//! ```text
//! -----BEGIN OPENSSH PRIVATE KEY-----   base64 of:
//! "openssh-key-v1\0" · "none" · "none" · "" · 1 · public · private(check, check, fields, comment, 1 2 3 …)
//! ```
//!
//! Source: PROTOCOL.key of OpenSSH; RFC 4251, 4253, 5656, 8709. The numbers come from aws-lc.

use std::io;

use aws_lc_rs::encoding::{AsBigEndian, AsDer};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine;

use crate::DiskError;

/// A kind of key that servers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ed25519,
    Ecdsa,
    Rsa,
}

/// A key pair as two files.
pub(crate) struct Pair {
    pub private: String,
    pub public: String,
}

impl Kind {
    /// The kind of a file's name, if it has one that is still made. DSA is not.
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        [Self::Ed25519, Self::Ecdsa, Self::Rsa].into_iter().find(|kind| name == kind.file_name().as_bytes())
    }

    /// The private file's name in /etc/ssh.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh_host_ed25519_key",
            Self::Ecdsa => "ssh_host_ecdsa_key",
            Self::Rsa => "ssh_host_rsa_key",
        }
    }
}

/// Fills `bytes` with randomness.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), DiskError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| refused("random bytes"))
}

/// Makes a key pair of this kind for the host `hostname`.
pub(crate) fn make(kind: Kind, hostname: &str) -> Result<Pair, DiskError> {
    let (algorithm, public, private) = match kind {
        Kind::Ed25519 => ed25519()?,
        Kind::Ecdsa => ecdsa()?,
        Kind::Rsa => rsa()?,
    };
    let comment = format!("root@{hostname}");
    let base64 = base64::engine::general_purpose::STANDARD;
    let mut check = [0_u8; 4];
    random(&mut check)?;
    let mut secret = Blob::default().raw(&check).raw(&check).raw(&private.0).text(comment.as_bytes());
    for padding in 1.. {
        if secret.0.len() % 8 == 0 {
            break;
        }
        secret.0.push(padding);
    }
    let whole = Blob::default()
        .raw(b"openssh-key-v1\0")
        .text(b"none")
        .text(b"none")
        .text(b"")
        .raw(&1_u32.to_be_bytes())
        .text(&public.0)
        .text(&secret.0);
    let mut text = String::from("-----BEGIN OPENSSH PRIVATE KEY-----\n");
    for line in base64.encode(&whole.0).as_bytes().chunks(70) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str("-----END OPENSSH PRIVATE KEY-----\n");
    Ok(Pair { private: text, public: format!("{algorithm} {} {comment}\n", base64.encode(&public.0)) })
}

/// The name of the algorithm, the public part, and what the private part has before the comment.
type Parts = (&'static str, Blob, Blob);

fn ed25519() -> Result<Parts, DiskError> {
    const NAME: &str = "ssh-ed25519";
    let pair = Ed25519KeyPair::generate().map_err(|_| refused(NAME))?;
    let seed = pair.seed().map_err(|_| refused(NAME))?.as_be_bytes().map_err(|_| refused(NAME))?;
    let point = pair.public_key().as_ref();
    let public = Blob::default().text(NAME.as_bytes()).text(point);
    let private = Blob::default().raw(&public.0).text(&[seed.as_ref(), point].concat());
    Ok((NAME, public, private))
}

fn ecdsa() -> Result<Parts, DiskError> {
    const NAME: &str = "ecdsa-sha2-nistp256";
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| refused(NAME))?;
    let secret = pair.private_key().as_be_bytes().map_err(|_| refused(NAME))?;
    let public = Blob::default().text(NAME.as_bytes()).text(b"nistp256").text(pair.public_key().as_ref());
    let private = Blob::default().raw(&public.0).number(secret.as_ref());
    Ok((NAME, public, private))
}

fn rsa() -> Result<Parts, DiskError> {
    const NAME: &str = "ssh-rsa";
    let pair = RsaKeyPair::generate(KeySize::Rsa3072).map_err(|_| refused(NAME))?;
    let document: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().map_err(|_| refused(NAME))?;
    let numbers = rsa_numbers(document.as_ref()).ok_or_else(|| refused(NAME))?;
    // version, n, e, d, p, q, d mod p-1, d mod q-1, 1/q mod p
    let [_, n, e, d, p, q, _, _, inverse] = numbers;
    let public = Blob::default().text(NAME.as_bytes()).number(e).number(n);
    let private =
        Blob::default().text(NAME.as_bytes()).number(n).number(e).number(d).number(inverse).number(p).number(q);
    Ok((NAME, public, private))
}

/// The numbers of an RSAPrivateKey (RFC 8017, A.1.2) in a PrivateKeyInfo (RFC 5208).
fn rsa_numbers(document: &[u8]) -> Option<[&[u8]; 9]> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    const OCTETS: u8 = 0x04;
    let (info, _) = element(document, SEQUENCE)?;
    let (_version, rest) = element(info, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (key, _) = element(rest, OCTETS)?;
    let (mut rest, _) = element(key, SEQUENCE)?;
    let mut numbers = [&[][..]; 9];
    for number in &mut numbers {
        (*number, rest) = element(rest, INTEGER)?;
    }
    Some(numbers)
}

/// The contents of a DER element of this kind, and what follows it.
fn element(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (is, length, rest) = match bytes {
        [is, length @ ..=0x7f, rest @ ..] => (is, usize::from(*length), rest),
        [is, 0x81, a, rest @ ..] => (is, usize::from(*a), rest),
        [is, 0x82, a, b, rest @ ..] => (is, usize::from(u16::from_be_bytes([*a, *b])), rest),
        _ => return None,
    };
    (*is == kind).then_some(())?;
    rest.split_at_checked(length)
}

fn refused(what: &str) -> DiskError {
    io::Error::other(format!("the library makes no {what}")).into()
}

/// What is written in the way of RFC 4251.
#[derive(Default)]
struct Blob(Vec<u8>);

impl Blob {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A `string`.
    fn text(self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("a key is short");
        self.raw(&length.to_be_bytes()).raw(bytes)
    }

    /// An `mpint` that is not negative.
    fn number(self, bytes: &[u8]) -> Self {
        let bytes = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())..];
        match bytes.first() {
            Some(first) if *first >= 0x80 => self.text(&[&[0], bytes].concat()),
            _ => self.text(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;
    use std::process::Command;

    /// `ssh-keygen -y` makes the public part of a private file, and checks the numbers on the way.
    #[test]
    fn openssh_reads_them() {
        if Command::new("ssh-keygen").arg("-?").output().is_err() {
            return;
        }
        for kind in [Kind::Ed25519, Kind::Ecdsa, Kind::Rsa] {
            for _ in 0..if kind == Kind::Rsa { 1 } else { 20 } {
                let pair = make(kind, "web").unwrap();
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("key");
                let mut options = std::fs::OpenOptions::new();
                let mut private = options.write(true).create_new(true).mode(0o600).open(&file).unwrap();
                io::Write::write_all(&mut private, pair.private.as_bytes()).unwrap();
                let output = Command::new("ssh-keygen").args(["-y", "-f"]).arg(&file).output().unwrap();
                assert_eq!(String::from_utf8_lossy(&output.stdout), pair.public, "{output:?}");
                std::fs::write(folder.path().join("text"), "signed").unwrap();
                let sign = Command::new("ssh-keygen")
                    .args(["-Y", "sign", "-n", "den", "-f"])
                    .arg(&file)
                    .arg(folder.path().join("text"))
                    .output()
                    .unwrap();
                assert!(sign.status.success(), "{sign:?}");
            }
        }
    }
}
