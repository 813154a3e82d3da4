//! The parts of OCI and Docker JSON that mean something here, and one layer's way from a blob.
//!
//! Lenient where writers differ (media types, fields that are null), strict in what names a file or
//! a size. Source: OCI image specification 1.1, manifest.md, config.md, image-index.md.

use std::{collections::BTreeMap, io::Read};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{
    ImageConfig, ImageError, ImageStore, Progress,
    decode::{digest_hex, hex},
    limits::LAYERS_MAX,
    progress::LayerMeter,
    store::Job,
    unpack::unpack,
};

/// Where a blob is to be found, and what it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, deserialize_with = "null")]
    pub platform: Option<Platform>,
}

/// What an image in an index is for.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
}

/// An image manifest (with a configuration) or an index (with manifests).
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    #[serde(default, deserialize_with = "null")]
    pub config: Option<Descriptor>,
    #[serde(default, deserialize_with = "null")]
    pub layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "null")]
    pub manifests: Vec<Descriptor>,
}

/// An image's configuration file.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default, deserialize_with = "null")]
    architecture: String,
    #[serde(default, deserialize_with = "null")]
    os: String,
    #[serde(default, deserialize_with = "null")]
    config: RunConfig,
    #[serde(default, deserialize_with = "null")]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null")]
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig {
    #[serde(default, deserialize_with = "null")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "null")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "null")]
    working_dir: String,
    #[serde(default, deserialize_with = "null")]
    user: String,
    #[serde(default, deserialize_with = "null")]
    stop_signal: String,
    #[serde(default, deserialize_with = "null")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "null")]
    labels: BTreeMap<String, String>,
}

/// `null` and an absent field both mean nothing.
fn null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads one of them.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8], what: &str) -> Result<T, ImageError> {
    serde_json::from_slice(text).map_err(|error| ImageError::BadLayer(format!("its {what} is malformed: {error}")))
}

/// This host's architecture in Go's words, as indexes have it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The image for this host among those of an index; one without a platform fits when it is alone.
pub(crate) fn choose(manifests: &[Descriptor]) -> Result<&Descriptor, ImageError> {
    let fits =
        |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture());
    if let Some(found) = manifests.iter().find(fits) {
        return Ok(found);
    }
    match manifests {
        [only] if only.platform.is_none() => Ok(only),
        [] => Err(ImageError::BadLayer("its index lists no image".to_owned())),
        _ => {
            let have: Vec<String> = manifests
                .iter()
                .filter_map(|d| d.platform.as_ref())
                .map(|p| format!("{}/{}", p.os, p.architecture))
                .collect();
            Err(ImageError::Unsupported(format!("it is not for linux/{}, but for {}", architecture(), have.join(", "))))
        }
    }
}

impl ConfigFile {
    /// The layers' digests, one for each of `layers`.
    pub fn diff_ids(&self, layers: usize) -> Result<&[String], ImageError> {
        let ids = &self.rootfs.diff_ids;
        if layers == 0 {
            return Err(ImageError::Unsupported("it has no layers".to_owned()));
        }
        if layers > LAYERS_MAX {
            return Err(ImageError::TooLarge { what: "layers", limit: LAYERS_MAX.to_string() });
        }
        if ids.len() != layers {
            let reason = format!("it has {layers} layers, and its configuration names {}", ids.len());
            return Err(ImageError::BadLayer(reason));
        }
        ids.iter().try_for_each(|id| digest_hex(id).map(drop))?;
        let other_os = !self.os.is_empty() && self.os != "linux";
        let other_cpu = !self.architecture.is_empty() && self.architecture != architecture();
        if other_os || other_cpu {
            let reason = format!("it is for {}/{}, not linux/{}", self.os, self.architecture, architecture());
            return Err(ImageError::Unsupported(reason));
        }
        Ok(ids)
    }

    /// What programs are to run with.
    pub fn into_config(self) -> ImageConfig {
        let some = |text: String| (!text.is_empty()).then_some(text);
        ImageConfig {
            entrypoint: self.config.entrypoint,
            cmd: self.config.cmd,
            env: self.config.env,
            working_dir: some(self.config.working_dir),
            user: some(self.config.user),
            stop_signal: some(self.config.stop_signal),
            exposed_ports: self.config.exposed_ports.into_keys().collect(),
            labels: self.config.labels,
        }
    }
}

/// Refuses what is no tar that we can read.
pub(crate) fn check_media_type(media_type: &str) -> Result<(), ImageError> {
    if media_type.ends_with("+encrypted") {
        return Err(ImageError::Unsupported("its layers are encrypted".to_owned()));
    }
    let is_tar = media_type.is_empty() || media_type.contains(".tar") || media_type.contains("rootfs.diff");
    if is_tar { Ok(()) } else { Err(ImageError::Unsupported(format!("a layer of it is of the type {media_type}"))) }
}

/// Unpacks one layer's blob, checks both its digests and puts it in its place.
///
/// `blob` is the digest of the compressed bytes where one is known.
pub(crate) fn take_layer(
    store: &ImageStore,
    job: &Job,
    source: impl Read,
    size: u64,
    blob: Option<&str>,
    diff_id: &str,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let diff_hex = digest_hex(diff_id)?;
    let (outer, fs_dir) = job.layer_folder(&format!("layer-{diff_hex}"))?;
    let mut source = Hashing { inner: source, hash: Sha256::new() };
    let mut meter = LayerMeter::new(progress, diff_hex[..12].to_owned(), "unpack", Some(size));
    let unpacked = unpack(&mut source, &fs_dir, store.limits(), &mut meter)?;
    let mismatch = |what: &str, expected: &str, found: String| ImageError::DigestMismatch {
        what: format!("{what} {}", &diff_hex[..12]),
        expected: expected.to_owned(),
        found,
    };
    if let Some(blob) = blob {
        let found = format!("sha256:{}", hex(&source.hash.finalize()));
        if found != blob {
            return Err(mismatch("the blob of the layer", blob, found));
        }
    }
    if unpacked.diff_hex != diff_hex {
        return Err(mismatch("the layer", diff_id, format!("sha256:{}", unpacked.diff_hex)));
    }
    meter.end(size);
    job.place(&outer, &unpacked)
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
