//! Tests on real files. They run as root, as the daemon does.

mod import;
mod pull;
mod store;
mod unpack;

use std::{fs, io::Write as _, path::Path};

use crate::{ImageError, ImageStore, Quiet, decode::sha256_hex};

/// Writes tars that no honest tool writes.
#[derive(Default, Clone)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// A member as its header has it; names beyond 100 bytes get a GNU long name before them.
    pub fn member(mut self, path: &[u8], kind: u8, mode: u32, link: &[u8], data: &[u8]) -> Self {
        if path.len() > 100 {
            self = self.member(b"././@LongLink", b'L', 0o644, b"", path);
        }
        if link.len() > 100 {
            self = self.member(b"././@LongLink", b'K', 0o644, b"", link);
        }
        let mut header = tar::Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        gnu.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        gnu.typeflag = [kind];
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        self.header(header, data)
    }

    pub fn header(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| rest + n.to_string().len() == *n).unwrap();
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.member(b"pax", b'x', 0o644, b"", &text)
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.member(path.as_bytes(), b'0', 0o644, b"", data)
    }

    pub fn folder(self, path: &str) -> Self {
        self.member(path.as_bytes(), b'5', 0o755, b"", b"")
    }

    pub fn symlink(self, path: &str, to: &str) -> Self {
        self.member(path.as_bytes(), b'2', 0o777, to.as_bytes(), b"")
    }

    pub fn hard_link(self, path: &str, to: &str) -> Self {
        self.member(path.as_bytes(), b'1', 0o644, to.as_bytes(), b"")
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

pub fn digest(data: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(data))
}

/// A store in a folder that goes with it.
pub fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::Builder::new().prefix("den-image-").tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    (dir, store)
}

/// Imports a tar and gives the folder of its one layer.
pub fn import(store: &ImageStore, name: &str, tar: &[u8]) -> Result<std::sync::Arc<crate::Image>, ImageError> {
    store.import_stream(tar, &name.parse().unwrap(), crate::ImportConfig::default(), &Quiet)
}

/// Nothing half-made is left: no job, no layer without a manifest.
pub fn assert_clean(store: &ImageStore) {
    let count = |part: &str| fs::read_dir(store.root().join(part)).unwrap().count();
    assert_eq!(count("tmp"), 0, "jobs left");
    assert_eq!(count("blobs"), 0, "blobs left");
}

/// The image and an OCI layout of it: configuration and manifest as JSON, blobs by digest.
pub struct Oci {
    pub manifest: Vec<u8>,
    pub blobs: Vec<Vec<u8>>,
}

/// Makes an OCI image of these tars, the bottom one first; `pack` compresses.
pub fn oci(tars: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>, media_type: &str) -> Oci {
    let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
    let config = serde_json::json!({
        "architecture": crate::oci::architecture(), "os": "linux",
        "config": {"Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": null, "WorkingDir": "/w", "User": "1000:1000"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let packed: Vec<Vec<u8>> = tars.iter().map(|tar| pack(tar)).collect();
    let layers: Vec<_> = packed
        .iter()
        .map(|blob| serde_json::json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()}))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": layers,
    });
    let mut blobs = packed;
    blobs.push(config);
    Oci { manifest: serde_json::to_vec(&manifest).unwrap(), blobs }
}

/// Writes it as an OCI layout.
pub fn write_layout(folder: &Path, oci: &Oci) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for blob in oci.blobs.iter().chain([&oci.manifest]) {
        fs::write(blobs.join(sha256_hex(blob)), blob).unwrap();
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(&oci.manifest), "size": oci.manifest.len(),
    }]});
    fs::write(folder.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
