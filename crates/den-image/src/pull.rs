//! Images from a registry.
//!
//! ```text
//! manifest ─► configuration ─► for each layer that is not here, three at a time:
//!     blobs/<hex>.part ──(Range from where it was cut)──► digest checked ─► unpacked ─► removed
//! ```
//!
//! Invariants:
//! - Nothing is unpacked before the digest of its blob is right.
//! - A part file has one writer, who holds an flock on it; another pull of the same blob waits.
//!
//! Source: OCI distribution specification 1.1.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_client::{
    Client, Reference,
    client::{BlobResponse, ClientConfig, ClientProtocol},
    errors::{DigestError, OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    Image, ImageError, ImageStore, Progress, ProgressEvent,
    decode::{digest_hex, hex, sha256_hex},
    error::At as _,
    limits::{CONFIG_BYTES_MAX, FETCH_TRIES_MAX, FETCHES_MAX, MANIFEST_BYTES_MAX},
    oci::{ConfigFile, Descriptor, Manifest, check_media_type, choose, parse, take_layer},
    progress::{LayerMeter, stage},
    store::Job,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_millis(300);

const MEDIA_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

impl ImageStore {
    /// Pulls `reference`, such as `debian:bookworm` or `HOST/path@sha256:…`, and names it so.
    ///
    /// Layers that are here already are not fetched. A pull that was cut goes on where it was.
    /// Runs on tokio; may be dropped at any point, and then leaves at most a part file.
    pub async fn pull(&self, reference: &str, progress: Arc<dyn Progress>) -> Result<Arc<Image>, ImageError> {
        let bad = |reason: String| ImageError::BadReference { reference: reference.to_owned(), reason };
        let name = reference.parse().map_err(|error: den_model::NameError| bad(error.to_string()))?;
        let parsed: Reference = reference.parse().map_err(|error: oci_client::ParseError| bad(error.to_string()))?;
        let registry = Registry::new(parsed);
        stage(&*progress, format!("reading the manifest of {reference}"));
        let (manifest, digest) = registry.manifest().await?;
        let Some(config) = &manifest.config else {
            return Err(ImageError::Unsupported("its manifest has no configuration".to_owned()));
        };
        let config: ConfigFile = parse(&registry.small_blob(config).await?, "configuration")?;
        let ids = config.diff_ids(manifest.layers.len())?.to_vec();
        manifest.layers.iter().try_for_each(|layer| check_media_type(&layer.media_type))?;
        let store = self.clone();
        let job = Arc::new(blocking(move || store.job()).await?);
        stage(&*progress, "fetching and unpacking layers");
        let mut layers: Vec<(Descriptor, String)> = manifest.layers.into_iter().zip(ids.iter().cloned()).collect();
        // The same layer twice in one image is fetched once.
        layers.sort_by(|a, b| a.1.cmp(&b.1));
        layers.dedup_by(|a, b| a.1 == b.1);
        stream::iter(layers)
            .map(|(layer, id)| self.pull_layer(&registry, &job, layer, id, &progress))
            .buffer_unordered(FETCHES_MAX)
            .try_collect::<Vec<()>>()
            .await?;
        let source = reference.to_owned();
        blocking(move || job.commit(&name, Some(digest), ids, config.into_config(), source)).await
    }

    async fn pull_layer(
        &self,
        registry: &Registry,
        job: &Arc<Job>,
        layer: Descriptor,
        id: String,
        progress: &Arc<dyn Progress>,
    ) -> Result<(), ImageError> {
        let hex = digest_hex(&id)?.to_owned();
        let is_here = || {
            let (job, hex) = (job.clone(), hex.clone());
            blocking(move || job.want(&hex))
        };
        let kept = || {
            progress.event(ProgressEvent::Layer {
                layer: hex[..12].to_owned(),
                action: "kept".to_owned(),
                done_bytes: layer.size,
                total_bytes: Some(layer.size),
            });
        };
        if is_here().await? {
            kept();
            return Ok(());
        }
        let path = self.path("blobs", &format!("{}.part", digest_hex(&layer.digest)?));
        let limit = self.limits().unpacked_bytes_max;
        if layer.size > limit.0 {
            return Err(ImageError::too_many_bytes("in a compressed layer", limit));
        }
        let part = Part::open(path).await?;
        // Another pull may have unpacked it while we waited for the file.
        if is_here().await? {
            kept();
            return part.remove();
        }
        let mut meter = LayerMeter::new(&**progress, hex[..12].to_owned(), "fetch", Some(layer.size));
        let part = registry.fetch(&layer, part, &mut meter).await?;
        let (store, job, progress) = (self.clone(), job.clone(), progress.clone());
        blocking(move || {
            let mut part = part;
            part.file.seek(SeekFrom::Start(0)).at("cannot read", &part.path)?;
            let taken = take_layer(&store, &job, &part.file, layer.size, None, &id, &*progress);
            // A layer that cannot be unpacked will not be better the next time.
            part.remove()?;
            taken
        })
        .await
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(ImageError::Stream(std::io::Error::other(error))),
        },
    }
}

/// A blob that is being fetched, locked.
struct Part {
    path: PathBuf,
    file: fs::File,
}

impl Part {
    async fn open(path: PathBuf) -> Result<Self, ImageError> {
        loop {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .at("cannot open", &path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                use std::os::unix::fs::MetadataExt as _;
                // The last holder may have removed what we opened.
                let same = |meta: fs::Metadata| file.metadata().is_ok_and(|ours| ours.ino() == meta.ino());
                if fs::metadata(&path).is_ok_and(same) {
                    return Ok(Self { path, file });
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn remove(self) -> Result<(), ImageError> {
        fs::remove_file(&self.path).at("cannot remove", &self.path)
    }

    /// Hashes what is there already.
    async fn resume(mut self) -> Result<(Self, Sha256, u64), ImageError> {
        blocking(move || {
            let mut hash = Sha256::new();
            let mut have = 0;
            let mut buffer = vec![0; 256 << 10];
            self.file.seek(SeekFrom::Start(0)).at("cannot read", &self.path)?;
            loop {
                let count = self.file.read(&mut buffer).at("cannot read", &self.path)?;
                if count == 0 {
                    return Ok((self, hash, have));
                }
                hash.update(&buffer[..count]);
                have += count as u64;
            }
        })
        .await
    }

    fn restart(&mut self) -> Result<(), ImageError> {
        self.file.set_len(0).at("cannot empty", &self.path)?;
        self.file.seek(SeekFrom::Start(0)).at("cannot empty", &self.path).map(drop)
    }
}

/// One image's registry.
struct Registry {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Registry {
    fn new(reference: Reference) -> Self {
        let host = reference.resolve_registry().to_owned();
        let plain = is_local(&host);
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("den/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Self { client: Client::new(config), auth: login(&host), reference }
    }

    fn host(&self) -> &str {
        self.reference.resolve_registry()
    }

    /// The manifest for this host, and its digest.
    async fn manifest(&self) -> Result<(Manifest, String), ImageError> {
        let mut reference = self.reference.clone();
        // An index leads to an image; deeper nesting is nothing that a tool writes.
        for _ in 0..3 {
            let pulled = self.client.pull_manifest_raw(&reference, &self.auth, MEDIA_TYPES).await;
            let (text, _) = pulled.map_err(|error| self.explain(error))?;
            if text.len() as u64 > MANIFEST_BYTES_MAX {
                return Err(ImageError::TooLarge { what: "bytes in its manifest", limit: "4 MiB".to_owned() });
            }
            let found = format!("sha256:{}", sha256_hex(&text));
            if let Some(expected) = reference.digest().filter(|expected| *expected != found) {
                let (what, expected) = ("the manifest".to_owned(), expected.to_owned());
                return Err(ImageError::DigestMismatch { what, expected, found });
            }
            let manifest: Manifest = parse(&text, "manifest")?;
            if manifest.manifests.is_empty() {
                return Ok((manifest, found));
            }
            let chosen = choose(&manifest.manifests)?;
            digest_hex(&chosen.digest)?;
            reference = reference.clone_with_digest(chosen.digest.clone());
        }
        Err(ImageError::BadLayer("its index leads to nothing but indexes".to_owned()))
    }

    /// A blob that fits in memory.
    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        digest_hex(&descriptor.digest)?;
        if descriptor.size > CONFIG_BYTES_MAX {
            return Err(ImageError::TooLarge { what: "bytes in its configuration", limit: "4 MiB".to_owned() });
        }
        let pulled = self.client.pull_blob_stream(&self.reference, descriptor.digest.as_str()).await;
        let mut stream = pulled.map_err(|error| self.explain(error))?;
        let mut text = Vec::new();
        while let Some(chunk) = stream.next().await {
            // Its own check of the digest ends the stream with an error; ours below names both.
            let Ok(chunk) = chunk else { break };
            text.extend_from_slice(&chunk);
            if text.len() as u64 > CONFIG_BYTES_MAX {
                return Err(ImageError::TooLarge { what: "bytes in its configuration", limit: "4 MiB".to_owned() });
            }
        }
        if (text.len() as u64) < descriptor.size {
            return Err(self.unreachable("it cut the image's configuration short"));
        }
        let found = format!("sha256:{}", sha256_hex(&text));
        if found != descriptor.digest {
            let (what, expected) = ("the configuration".to_owned(), descriptor.digest.clone());
            return Err(ImageError::DigestMismatch { what, expected, found });
        }
        Ok(text)
    }

    /// Fetches what is missing of a blob; when it returns, all of it is there and its digest right.
    async fn fetch(&self, blob: &Descriptor, part: Part, meter: &mut LayerMeter<'_>) -> Result<Part, ImageError> {
        let (mut part, mut hash, mut have) = part.resume().await?;
        let mut tries = 0;
        loop {
            if have > blob.size {
                part.restart()?;
                (hash, have) = (Sha256::new(), 0);
            }
            if have == blob.size {
                break;
            }
            let before = have;
            let failure =
                match self.client.pull_blob_stream_partial(&self.reference, blob.digest.as_str(), have, None).await {
                    Ok(response) => {
                        let mut stream = match response {
                            BlobResponse::Partial(stream) => stream,
                            BlobResponse::Full(stream) => {
                                if have > 0 {
                                    part.restart()?;
                                    (hash, have) = (Sha256::new(), 0);
                                }
                                stream
                            }
                        };
                        loop {
                            match stream.next().await {
                                Some(Ok(chunk)) => {
                                    // More than promised is no use; the digest below decides.
                                    let want = usize::try_from(blob.size - have).unwrap_or(usize::MAX).min(chunk.len());
                                    part.file.write_all(&chunk[..want]).at("cannot write", &part.path)?;
                                    hash.update(&chunk[..want]);
                                    have += want as u64;
                                    meter.at(have);
                                    if have == blob.size {
                                        break None;
                                    }
                                }
                                Some(Err(error)) => break Some(self.unreachable(&innermost(&error))),
                                None => break Some(self.unreachable("it cut a layer short")),
                            }
                        }
                    }
                    Err(error) => match self.explain(error) {
                        error @ ImageError::RegistryUnreachable { .. } => Some(error),
                        final_word => return Err(final_word),
                    },
                };
            if let Some(failure) = failure {
                tries = if have > before { 1 } else { tries + 1 };
                if tries >= FETCH_TRIES_MAX {
                    return Err(failure);
                }
                tracing::debug!(blob = blob.digest, have, %failure, "going on with a blob that was cut");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        meter.end(have);
        let found = format!("sha256:{}", hex(&hash.finalize()));
        if found != blob.digest {
            part.remove()?;
            let (what, expected) = ("a layer's blob".to_owned(), blob.digest.clone());
            return Err(ImageError::DigestMismatch { what, expected, found });
        }
        Ok(part)
    }

    fn unreachable(&self, reason: &str) -> ImageError {
        ImageError::RegistryUnreachable { registry: self.host().to_owned(), reason: reason.to_owned() }
    }

    fn explain(&self, error: OciDistributionError) -> ImageError {
        let registry = self.host().to_owned();
        let not_found = || ImageError::RegistryNotFound {
            registry: self.host().to_owned(),
            reference: match self.reference.digest() {
                Some(digest) => format!("{}@{digest}", self.reference.repository()),
                None => format!("{}:{}", self.reference.repository(), self.reference.tag().unwrap_or("latest")),
            },
        };
        match error {
            OciDistributionError::ImageManifestNotFoundError(_) => not_found(),
            OciDistributionError::RegistryError { envelope, .. } => {
                let missing = |code: &OciErrorCode| {
                    matches!(
                        code,
                        OciErrorCode::ManifestUnknown
                            | OciErrorCode::NameUnknown
                            | OciErrorCode::NotFound
                            | OciErrorCode::BlobUnknown
                    )
                };
                match envelope.errors.first() {
                    Some(first) if missing(&first.code) => not_found(),
                    Some(first) if first.message.is_empty() => {
                        ImageError::RegistryRefused { registry, reason: format!("{:?}", first.code) }
                    }
                    Some(first) => ImageError::RegistryRefused { registry, reason: first.message.clone() },
                    None => ImageError::RegistryRefused { registry, reason: "it gives no reason".to_owned() },
                }
            }
            OciDistributionError::UnauthorizedError { .. } => {
                ImageError::RegistryRefused { registry, reason: "not logged in, or no such image".to_owned() }
            }
            OciDistributionError::AuthenticationFailure(reason) => {
                let reason = if reason.is_empty() { "the login is not accepted".to_owned() } else { reason };
                ImageError::RegistryRefused { registry, reason }
            }
            OciDistributionError::ServerError { code: 404, .. } => not_found(),
            OciDistributionError::ServerError { code, message, .. } if code < 500 => {
                ImageError::RegistryRefused { registry, reason: format!("HTTP {code} {message}").trim_end().to_owned() }
            }
            OciDistributionError::ServerError { code, .. } => self.unreachable(&format!("HTTP {code}")),
            OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
                ImageError::DigestMismatch { what: "the manifest".to_owned(), expected, found: actual }
            }
            OciDistributionError::DigestError(error) => ImageError::BadLayer(error.to_string()),
            OciDistributionError::RequestError(error) => self.unreachable(&innermost(&error)),
            OciDistributionError::IoError(error) => self.unreachable(&innermost(&error)),
            other => ImageError::Unsupported(other.to_string()),
        }
    }
}

/// The cause that the others only wrap.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A registry on this host speaks plain HTTP.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_matches(['[', ']']);
    name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// `~/.docker/config.json`, the part without helpers.
#[derive(Default, Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, Login>,
}

#[derive(Default, Deserialize)]
struct Login {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The login for `host` that `docker login` or `podman login` left.
fn login(host: &str) -> RegistryAuth {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")));
    let text = folder.and_then(|folder| fs::read(folder.join("config.json")).ok()).unwrap_or_default();
    login_in(&text, host)
}

fn login_in(text: &[u8], host: &str) -> RegistryAuth {
    let config: DockerConfig = serde_json::from_slice(text).unwrap_or_default();
    let host_of = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        key.split('/').next().unwrap_or(key).to_owned()
    };
    let Some((_, login)) = config.auths.iter().find(|(key, _)| host_of(key) == host) else {
        return RegistryAuth::Anonymous;
    };
    if !login.username.is_empty() {
        return RegistryAuth::Basic(login.username.clone(), login.password.clone());
    }
    let decoded = STANDARD.decode(login.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((user, password)) => RegistryAuth::Basic(user.to_owned(), password.to_owned()),
        None => RegistryAuth::Anonymous,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_on_this_host_speaks_plain_http() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:80", "[::1]:5000"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["registry.test", "registry.test:5000", "10.0.0.1:5000", "localhost.test"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn a_login_is_found_by_its_host() {
        let text = br#"{"auths":{"https://registry.test/v1/":{"auth":"dTpwOnE="},"other.test":{}}}"#;
        assert_eq!(login_in(text, "registry.test"), RegistryAuth::Basic("u".into(), "p:q".into()));
        assert_eq!(login_in(text, "other.test"), RegistryAuth::Anonymous);
        assert_eq!(login_in(b"nonsense", "registry.test"), RegistryAuth::Anonymous);
    }
}
