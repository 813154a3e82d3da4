//! The house's own certificate authority of the domain, and the certificate that it signs.
//!
//! ```text
//! e2b-ca.<domain>.pem (0600: key and certificate) ─► Authority ─┬─► certificate, for clients to trust
//!                                                               └─► leaf, in memory, new before it ends
//! ```
//!
//! Invariants:
//! - The authority is made once and has no end. By its name constraints it can sign for names of its domain alone,
//!   so whoever trusts it trusts it with nothing else.
//! - A leaf holds for [`LEAF_TIME`] and is never on the disk.

use std::{
    fmt,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, Datelike as _};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use uuid::Uuid;

use super::Domain;

/// How long a leaf holds, and how long it is shown. What it holds before it was made is for clocks that are slow.
const LEAF_TIME: Duration = Duration::from_secs(30 * 24 * 3600);
const LEAF_SHOWN: Duration = Duration::from_secs(20 * 24 * 3600);
const LEAF_BEFORE: Duration = Duration::from_secs(2 * 24 * 3600);

/// The longest common name: RFC 5280, appendix A.1.
const COMMON_NAME_CHARS_MAX: usize = 64;

/// Characters of a line of PEM: RFC 7468.
const PEM_LINE_CHARS: usize = 64;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The file cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// Where it is.
        path: PathBuf,
        /// What was met.
        source: io::Error,
    },
    /// The file does not hold a key and a certificate that clients would take.
    #[error("{} is no certificate authority of this domain: {why}", path.display())]
    Unfit {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl AuthorityError {
    /// What to try next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::File { .. } => "it is its owner's alone: run this as the user that `den serve` runs as",
            Self::Unfit { .. } => {
                "move it away: the next start makes a new one, which clients have to be told to trust"
            }
        }
    }
}

/// A certificate authority for one domain.
pub struct Authority {
    domain: String,
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// What a client is shown.
struct Leaf {
    made: SystemTime,
    shown: Arc<CertifiedKey>,
}

impl Leaf {
    /// Whether another one is to be made. A clock may have been put back.
    fn is_over(&self, now: SystemTime) -> bool {
        now.duration_since(self.made).is_ok_and(|age| age >= LEAF_SHOWN) || now + LEAF_BEFORE / 2 < self.made
    }
}

impl Authority {
    /// The authority of `domain` whose file lies in `folder`; made where there is none.
    ///
    /// Errors: the file cannot be read or written; what is in it is of no use.
    pub fn open(folder: &Path, domain: &Domain) -> Result<Self, AuthorityError> {
        let path = folder.join(format!("e2b-ca.{}.pem", domain.name()));
        let file = |source| AuthorityError::File { path: path.clone(), source };
        let unfit = |why: String| AuthorityError::Unfit { path: path.clone(), why };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                keep(&path, &draw(domain.name()).map_err(|error| unfit(error.to_string()))?).map_err(file)?;
                std::fs::read(&path).map_err(file)?
            }
            Err(error) => return Err(file(error)),
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|error| unfit(format!("its key: {error}")))?;
        let certificate =
            CertificateDer::from_pem_slice(&text).map_err(|error| unfit(format!("its certificate: {error}")))?;
        let key = KeyPair::try_from(&key).map_err(|error| unfit(format!("its key: {error}")))?;
        let authority = Self { domain: domain.name().to_owned(), key, certificate };
        // As a client would: key, certificate, name and constraints belong together.
        authority.check().map_err(unfit)?;
        Ok(authority)
    }

    /// The certificate, which clients are told to trust.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// The certificates that this host trusts, and this one: for clients that take one file in place of the host's.
    pub fn bundle(&self) -> String {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            tracing::warn!(errors = ?found.errors, "this host trusts no certificates, and the bundle has the house's own alone");
        }
        // The host may trust this one already, or `SSL_CERT_FILE` be this bundle's.
        let others = found.certs.iter().filter(|one| **one != self.certificate);
        others.map(|one| pem("CERTIFICATE", one)).chain([self.pem()]).collect()
    }

    /// TLS with a certificate for the domain and every name right below it; HTTP/2 and HTTP/1.1.
    ///
    /// Errors: no leaf can be made.
    pub fn into_tls(self) -> Result<ServerConfig, String> {
        let leaf = Mutex::new(self.leaf(SystemTime::now())?);
        let leaves = Leaves { authority: self, leaf };
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(leaves));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn leaf(&self, now: SystemTime) -> Result<Leaf, String> {
        self.leaf_of([self.domain.clone(), format!("*.{}", self.domain)], now)
    }

    fn leaf_of(&self, names: [String; 2], now: SystemTime) -> Result<Leaf, String> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let day = |since: Duration| {
            let at = DateTime::from_timestamp(since.as_secs() as i64, 0).unwrap_or_default();
            date_time_ymd(at.year(), at.month() as u8, at.day() as u8)
        };
        let signed = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name = named("sandboxes of Den");
            params.not_before = day(since.saturating_sub(LEAF_BEFORE));
            params.not_after = day(since + LEAF_TIME);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            let own = params_of_authority(&self.domain);
            let certificate = params.signed_by(&key, &Issuer::from_params(&own, &self.key))?;
            Ok((CertificateDer::from(certificate), key))
        };
        let (certificate, key) = signed().map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let shown = CertifiedKey::from_der(vec![certificate], key, &provider()).map_err(|error| error.to_string())?;
        Ok(Leaf { made: now, shown: Arc::new(shown) })
    }

    /// Whether a client that trusts this authority would take its leaf.
    fn check(&self) -> Result<(), String> {
        let now = SystemTime::now();
        self.verify(&self.leaf(now)?, &format!("api.{}", self.domain), now)
    }

    fn verify(&self, leaf: &Leaf, name: &str, now: SystemTime) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(|error| error.to_string())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (own, others) = leaf.shown.cert.split_first().ok_or("no certificate")?;
        let verified = verifier.verify_server_cert(own, others, &name, &[], UnixTime::since_unix_epoch(since));
        verified.map(drop).map_err(|error| error.to_string())
    }
}

/// The leaf of the hour.
struct Leaves {
    authority: Authority,
    leaf: Mutex<Leaf>,
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(f)
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(SystemTime::now()))
    }
}

impl Leaves {
    fn at(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let mut leaf = self.leaf.lock().unwrap_or_else(PoisonError::into_inner);
        if leaf.is_over(now) {
            match self.authority.leaf(now) {
                Ok(new) => *leaf = new,
                Err(error) => tracing::error!(error, "the certificate of the domain is not renewed"),
            }
        }
        Arc::clone(&leaf.shown)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A key and a certificate that it signs itself, as PEM.
fn draw(domain: &str) -> Result<String, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params_of_authority(domain).self_signed(&key)?;
    Ok(pem("PRIVATE KEY", &key.serialize_der()) + &pem("CERTIFICATE", certificate.der()))
}

/// The same at each start: what leaves say of their issuer comes from here.
fn params_of_authority(domain: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Den, for {domain}"));
    params.not_before = date_time_ymd(2020, 1, 1);
    // "No well-defined expiration date": RFC 5280 section 4.1.2.5.
    params.not_after = date_time_ymd(9999, 12, 31);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let names = vec![GeneralSubtree::DnsName(domain.to_owned())];
    params.name_constraints = Some(NameConstraints { permitted_subtrees: names, excluded_subtrees: Vec::new() });
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name.chars().take(COMMON_NAME_CHARS_MAX).collect::<String>());
    names
}

/// Puts a file that only its owner reads in its place, whole. One that is there already stays.
fn keep(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension(format!("pem.{}", Uuid::new_v4().simple()));
    let written = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match std::fs::hard_link(&beside, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = written();
    let removed = std::fs::remove_file(&beside);
    written.and(removed)
}

fn pem(kind: &str, der: &[u8]) -> String {
    let coded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {kind}-----\n");
    for line in coded.as_bytes().chunks(PEM_LINE_CHARS) {
        text.extend(line.iter().map(|&byte| char::from(byte)));
        text.push('\n');
    }
    text + &format!("-----END {kind}-----\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn in_folder(test: impl FnOnce(&Path)) {
        let folder = std::env::temp_dir().join(format!("den-e2b-ca-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).unwrap();
        test(&folder);
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn domain(name: &str) -> Domain {
        format!("{name}:8443").parse().unwrap()
    }

    #[test]
    fn an_authority_is_made_once_and_is_its_owners() {
        in_folder(|folder| {
            let first = Authority::open(folder, &domain("e2b.test")).unwrap();
            let second = Authority::open(folder, &domain("e2b.test").at(1)).unwrap();
            let other = Authority::open(folder, &domain("other.test")).unwrap();
            assert_eq!(first.pem(), second.pem());
            assert_ne!(first.pem(), other.pem());
            let now = SystemTime::now();
            // What the second signs the first's clients take.
            assert_eq!(first.verify(&second.leaf(now).unwrap(), "3000-iab1.e2b.test", now), Ok(()));
            assert!(first.verify(&other.leaf(now).unwrap(), "api.other.test", now).is_err());
            let path = folder.join("e2b-ca.e2b.test.pem");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2, "nothing is left beside them");
            assert!(first.bundle().ends_with(&first.pem()) && !first.bundle().contains("PRIVATE"));
        });
    }

    #[test]
    fn a_file_that_is_of_no_use_is_said() {
        in_folder(|folder| {
            Authority::open(folder, &domain("other.test")).unwrap();
            let (other, path) = (folder.join("e2b-ca.other.test.pem"), folder.join("e2b-ca.e2b.test.pem"));
            std::fs::copy(other, &path).unwrap();
            let refused = |why: &str| {
                let error = Authority::open(folder, &domain("e2b.test")).unwrap_err();
                assert!(matches!(error, AuthorityError::Unfit { .. }), "{error}");
                assert!(error.to_string().contains(why) && error.hint().contains("move it away"), "{error}");
            };
            refused("no certificate authority of this domain");
            for (text, why) in
                [("", "its key"), ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "its")]
            {
                std::fs::write(&path, text).unwrap();
                refused(why);
            }
            let lost = Authority::open(&folder.join("none"), &domain("e2b.test")).unwrap_err();
            assert!(matches!(lost, AuthorityError::File { .. }), "{lost}");
        });
    }

    #[test]
    fn it_can_sign_for_its_domain_alone() {
        in_folder(|folder| {
            let authority = Authority::open(folder, &domain("e2b.test")).unwrap();
            let now = SystemTime::now();
            let verify = |names: [&str; 2], name: &str| {
                let leaf = authority.leaf_of(names.map(str::to_owned), now).unwrap();
                authority.verify(&leaf, name, now)
            };
            assert_eq!(verify(["e2b.test", "a.b.e2b.test"], "a.b.e2b.test"), Ok(()));
            for names in [["evil.test", "e2b.test"], ["e2b.test", "*.evil.test"], ["e2b.test", "xe2b.test"]] {
                assert!(verify(names, "e2b.test").is_err(), "{names:?}");
            }
        });
    }

    #[test]
    fn a_leaf_is_renewed_before_it_ends() {
        in_folder(|folder| {
            let authority = Authority::open(folder, &domain("e2b.test")).unwrap();
            let start = SystemTime::now();
            let leaf = Mutex::new(authority.leaf(start).unwrap());
            let leaves = Leaves { authority, leaf };
            let first = leaves.at(start);
            assert!(Arc::ptr_eq(&first, &leaves.at(start + 19 * DAY)), "it is shown for a while");
            let mut shown = vec![first];
            for days in [21, 50, 400, 20_000, 3] {
                let now = start + days * DAY;
                let new = leaves.at(now);
                assert!(!shown.iter().any(|old| Arc::ptr_eq(old, &new)), "{days}: it is another one");
                for (since, holds) in [(0, true), (20, true), (40, false)] {
                    let leaf = Leaf { made: now, shown: Arc::clone(&new) };
                    let verified = leaves.authority.verify(&leaf, "api.e2b.test", now + since * DAY);
                    assert_eq!(verified.is_ok(), holds, "{days} {since}: {verified:?}");
                }
                shown.push(new);
            }
        });
    }
}
