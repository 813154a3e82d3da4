//! Images that lie in a folder as manifests and blobs.
//!
//! ```text
//! oci-layout, index.json ─► manifest ─► blobs/sha256/<config>, blobs/sha256/<layer>…      OCI layout
//! manifest.json          ─► [{Config: FILE, Layers: [FILE…]}]                             docker save
//! ```
//!
//! Invariant: a file that a manifest names is looked for beneath the folder, links included, since
//! the folder may be the content of a hostile archive.

use std::{fs::File, io::Read as _, path::Path, sync::Arc};

use den_model::ImageName;
use rustix::{fs::OFlags, io::Errno};
use serde::Deserialize;

use crate::{
    Image, ImageError, ImageStore, Progress, ProgressEvent,
    decode::{digest_hex, sha256_hex},
    limits::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX},
    oci::{ConfigFile, Manifest, check_media_type, choose, parse, take_layer},
    progress::stage,
    root::{LayerPath, Root},
    store::Job,
    tape::show,
};

/// One image of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// Whether `folder` holds an image as manifests and blobs, and is no root filesystem.
pub(crate) fn is_archive(folder: &Path) -> bool {
    let file = |name: &str| folder.join(name).symlink_metadata().is_ok_and(|meta| meta.is_file());
    let folder = |name: &str| folder.join(name).symlink_metadata().is_ok();
    let layout = file("oci-layout") && file("index.json");
    (layout || file("manifest.json")) && !["bin", "etc", "usr", "sbin"].into_iter().any(folder)
}

/// Takes in the image in `folder`.
pub(crate) fn take(
    store: &ImageStore,
    job: &Job,
    folder: &Path,
    name: &ImageName,
    source: String,
    progress: &dyn Progress,
) -> Result<Arc<Image>, ImageError> {
    let archive = Archive { root: Root::open(folder)? };
    stage(progress, "reading the manifest");
    if folder.join("oci-layout").symlink_metadata().is_ok() && folder.join("index.json").symlink_metadata().is_ok() {
        return archive.take_layout(store, job, name, source, progress);
    }
    archive.take_saved(store, job, name, source, progress)
}

struct Archive {
    root: Root,
}

impl Archive {
    fn take_layout(
        &self,
        store: &ImageStore,
        job: &Job,
        name: &ImageName,
        source: String,
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, ImageError> {
        let mut manifest: Manifest = parse(&self.read("index.json", MANIFEST_BYTES_MAX)?, "index")?;
        let mut digest = None;
        // An index of an index of images is as deep as writers go.
        for _ in 0..3 {
            if manifest.config.is_some() {
                break;
            }
            let chosen = choose(&manifest.manifests)?.digest.clone();
            manifest = parse(&self.read_blob(&chosen, MANIFEST_BYTES_MAX)?, "manifest")?;
            digest = Some(chosen);
        }
        let Some(config) = &manifest.config else {
            return Err(ImageError::BadLayer("its index leads to no manifest with a configuration".to_owned()));
        };
        let config: ConfigFile = parse(&self.read_blob(&config.digest, CONFIG_BYTES_MAX)?, "configuration")?;
        let ids = config.diff_ids(manifest.layers.len())?.to_vec();
        for (layer, id) in manifest.layers.iter().zip(&ids) {
            check_media_type(&layer.media_type)?;
            let path = format!("blobs/sha256/{}", digest_hex(&layer.digest)?);
            self.layer(store, job, &path, Some(&layer.digest), id, progress)?;
        }
        job.commit(name, digest, ids, config.into_config(), source)
    }

    fn take_saved(
        &self,
        store: &ImageStore,
        job: &Job,
        name: &ImageName,
        source: String,
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, ImageError> {
        let saved: Vec<Saved> = parse(&self.read("manifest.json", MANIFEST_BYTES_MAX)?, "manifest.json")?;
        let image = match saved.as_slice() {
            [only] => only,
            [] => return Err(ImageError::BadLayer("it holds no image".to_owned())),
            many => {
                let reason = format!("it holds {} images; save one at a time", many.len());
                return Err(ImageError::Unsupported(reason));
            }
        };
        let config: ConfigFile = parse(&self.read(&image.config, CONFIG_BYTES_MAX)?, "configuration")?;
        let ids = config.diff_ids(image.layers.len())?.to_vec();
        for (path, id) in image.layers.iter().zip(&ids) {
            self.layer(store, job, path, None, id, progress)?;
        }
        job.commit(name, None, ids, config.into_config(), source)
    }

    fn layer(
        &self,
        store: &ImageStore,
        job: &Job,
        path: &str,
        blob: Option<&str>,
        id: &str,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let hex = digest_hex(id)?;
        if job.want(hex)? {
            progress.event(ProgressEvent::Layer {
                layer: hex[..12].to_owned(),
                action: "kept".to_owned(),
                done_bytes: 0,
                total_bytes: None,
            });
            return Ok(());
        }
        let (file, size) = self.open(path)?;
        take_layer(store, job, file, size, blob, id, progress)
    }

    fn read_blob(&self, digest: &str, max: u64) -> Result<Vec<u8>, ImageError> {
        let text = self.read(&format!("blobs/sha256/{}", digest_hex(digest)?), max)?;
        let found = format!("sha256:{}", sha256_hex(&text));
        if found != digest {
            let what = "a manifest or configuration".to_owned();
            return Err(ImageError::DigestMismatch { what, expected: digest.to_owned(), found });
        }
        Ok(text)
    }

    fn read(&self, path: &str, max: u64) -> Result<Vec<u8>, ImageError> {
        let (file, size) = self.open(path)?;
        if size > max {
            return Err(ImageError::TooLarge { what: "bytes in a manifest or configuration", limit: max.to_string() });
        }
        let mut text = Vec::new();
        file.take(max).read_to_end(&mut text).map_err(ImageError::Stream)?;
        Ok(text)
    }

    fn open(&self, path: &str) -> Result<(File, u64), ImageError> {
        LayerPath::parse(path.as_bytes())?;
        let missing = || ImageError::BadLayer(format!("it has no file `{}`", show(path.as_bytes())));
        // Without NONBLOCK a fifo of that name would hold us for ever.
        let fd = match self.root.resolve(path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Err(missing()),
            Err(errno) => return Err(self.root.explain(errno, path.as_bytes())),
        };
        let file = File::from(fd);
        let meta = file.metadata().map_err(ImageError::Stream)?;
        if meta.is_file() { Ok((file, meta.len())) } else { Err(missing()) }
    }
}
