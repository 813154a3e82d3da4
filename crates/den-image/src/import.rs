//! Images from files: what it is, is found out by looking.
//!
//! ```text
//! folder with oci-layout or manifest.json ─► its layers           (archive)
//! folder without                          ─► one layer            (folder)
//! file or stream: a tar, compressed or not ─► unpacked, and then looked at as a folder is
//! ```
//!
//! So an archive is unpacked by the same code, under the same limits, as a layer.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use den_model::ImageName;

use crate::{
    Image, ImageConfig, ImageError, ImageStore, Progress, archive, folder,
    progress::{LayerMeter, stage},
    store::Job,
    unpack::{Unpacked, unpack},
};

/// What a root filesystem that comes without a configuration is to have for one.
#[derive(Debug, Clone, Default)]
pub struct ImportConfig {
    /// Taken as it is.
    pub config: ImageConfig,
    /// Where it came from, for people; `imported` when absent.
    pub source: Option<String>,
}

impl ImageStore {
    /// Takes in the file or folder at `source`: a root filesystem (tar, gzip, zstd or a folder), an OCI
    /// layout (a folder or a tar of one) or what `docker save` writes.
    pub fn import(&self, source: &Path, name: &ImageName, progress: &dyn Progress) -> Result<Arc<Image>, ImageError> {
        let from = source.display().to_string();
        let unreadable = |error| ImageError::Source { path: source.to_owned(), source: error };
        let meta = std::fs::metadata(source).map_err(unreadable)?;
        if !meta.is_dir() {
            if !meta.is_file() {
                return Err(ImageError::Unsupported(format!("`{from}` is neither a file nor a folder")));
            }
            let file = File::open(source).map_err(unreadable)?;
            let config = ImportConfig { source: Some(from), ..ImportConfig::default() };
            return self.import_sized(file, Some(meta.len()), name, config, progress);
        }
        let job = self.job()?;
        if archive::is_archive(source) {
            return archive::take(self, &job, source, name, from, progress);
        }
        stage(progress, "packing the folder");
        let (outer, unpacked) = folder::as_tar(source, |tar| stream_layer(self, &job, tar, "1", progress))?;
        self.keep(&job, &outer, &unpacked, name, ImageConfig::default(), from)
    }

    /// Takes in a stream: the same forms as [`ImageStore::import`] takes as files.
    pub fn import_stream(
        &self,
        source: impl Read,
        name: &ImageName,
        config: ImportConfig,
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, ImageError> {
        self.import_sized(source, None, name, config, progress)
    }

    fn import_sized(
        &self,
        source: impl Read,
        size: Option<u64>,
        name: &ImageName,
        config: ImportConfig,
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, ImageError> {
        let job = self.job()?;
        stage(progress, "unpacking");
        let (outer, fs_dir) = job.layer_folder("1")?;
        let mut meter = LayerMeter::new(progress, "1".to_owned(), "unpack", size);
        let unpacked = unpack(source, &fs_dir, self.limits(), &mut meter)?;
        let from = config.source.unwrap_or_else(|| "imported".to_owned());
        if archive::is_archive(&fs_dir) {
            return archive::take(self, &job, &fs_dir, name, from, progress);
        }
        self.keep(&job, &outer, &unpacked, name, config.config, from)
    }

    /// An image of one layer.
    fn keep(
        &self,
        job: &Job,
        outer: &Path,
        unpacked: &Unpacked,
        name: &ImageName,
        config: ImageConfig,
        from: String,
    ) -> Result<Arc<Image>, ImageError> {
        job.place(outer, unpacked)?;
        job.commit(name, None, vec![format!("sha256:{}", unpacked.diff_hex)], config, from)
    }
}

/// Unpacks one layer into the job's folder `label`; returns that folder and what came out.
pub(crate) fn stream_layer(
    store: &ImageStore,
    job: &Job,
    source: &mut dyn Read,
    label: &str,
    progress: &dyn Progress,
) -> Result<(PathBuf, Unpacked), ImageError> {
    let (outer, fs_dir) = job.layer_folder(label)?;
    let mut meter = LayerMeter::new(progress, label.to_owned(), "unpack", None);
    let unpacked = unpack(source, &fs_dir, store.limits(), &mut meter)?;
    meter.end(unpacked.size.0);
    Ok((outer, unpacked))
}
