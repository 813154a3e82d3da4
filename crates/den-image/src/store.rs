//! The folder that holds images, and who may change it when.
//!
//! ```text
//! root/layers/<hex>/{fs/, layer.json}     root/manifests/<hex>.json     root/names/<name> = digest
//! root/blobs/<hex>.part                   root/tmp/<job>/…              root/lock
//! ```
//!
//! A *job* is one import, pull or build: a folder in `tmp/` that it holds an flock on. It marks each
//! layer it counts on with a file `want-<hex>`, so that a removal beside it leaves those layers.
//!
//! Locks: `root/lock` (flock) outside, the two caches inside; no cache is locked during I/O on layers.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    fs,
    io::{ErrorKind, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use den_model::{Bytes, ImageName, Micros};
use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, openat, statat, syncfs},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    Image, ImageConfig, ImageError, UnpackLimits,
    decode::{digest_hex, sha256_hex},
    error::At as _,
    unpack::Unpacked,
};

/// A partly fetched blob that nobody asked for again.
const BLOB_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Images on disk. Cheap to clone; all clones share the caches.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    names: OwnedFd,
    manifests: OwnedFd,
    limits: UnpackLimits,
    by_name: RwLock<HashMap<ImageName, Warm>>,
    by_digest: RwLock<HashMap<String, (CString, Arc<Image>)>>,
}

/// A name that was resolved before. It holds as long as its file is the same one.
struct Warm {
    file: CString,
    stamp: Stamp,
    image: Arc<Image>,
}

/// Inode and time of change: a name moves by a rename, which gives it a new inode.
type Stamp = (u64, i64, u64);

/// What a removal took away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The name that is gone.
    pub name: ImageName,
    /// What it stood for.
    pub digest: String,
    /// Whether the image itself went too; it stays while another name stands for it.
    pub image_removed: bool,
    /// Layers that no other image uses.
    pub layers_removed: usize,
    /// Bytes that they held.
    pub freed: Bytes,
}

/// `manifests/<hex>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub digest: String,
    pub name: ImageName,
    /// `sha256:…` of each layer's tar, the bottom one first.
    pub layers: Vec<String>,
    pub config: ImageConfig,
    pub size_bytes: u64,
    pub created_at: Micros,
    pub source: String,
}

/// `layers/<hex>/layer.json`.
#[derive(Debug, Serialize, Deserialize)]
struct LayerRecord {
    diff_id: String,
    size_bytes: u64,
    entries: u64,
    created_at: Micros,
}

impl ImageStore {
    /// Opens the store in the folder `root`, making it if need be, and removes what a crash left.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        Self::open_with(root, UnpackLimits::default())
    }

    /// As [`ImageStore::open`], with limits of the caller's.
    pub fn open_with(root: &Path, limits: UnpackLimits) -> Result<Self, ImageError> {
        for part in ["layers", "manifests", "names", "blobs", "tmp"] {
            let path = root.join(part);
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).at("cannot make", &path)?;
            // A set-user-id program of an image must not be within reach of the host's users.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).at("cannot close", path)?;
        }
        let folder = |part: &str| {
            let path = root.join(part);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty()).at("cannot open", path)
        };
        let store = Self {
            inner: Arc::new(Inner {
                names: folder("names")?,
                manifests: folder("manifests")?,
                root: fs::canonicalize(root).at("cannot find", root)?,
                limits,
                by_name: RwLock::default(),
                by_digest: RwLock::default(),
            }),
        };
        if let Some(lock) = store.try_lock()? {
            store.sweep(&lock)?;
        }
        Ok(store)
    }

    /// The folder that it is in.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(crate) fn limits(&self) -> UnpackLimits {
        self.inner.limits
    }

    /// The image that `name` stands for now. One stat(2) when it was asked for before.
    ///
    /// Errors: [`ImageError::NotFound`].
    pub fn resolve(&self, name: &ImageName) -> Result<Arc<Image>, ImageError> {
        if let Some(warm) = self.inner.by_name.read().expect("no panic under this lock").get(name)
            && stamp(&self.inner.names, &warm.file) == Ok(warm.stamp)
        {
            return Ok(warm.image.clone());
        }
        self.resolve_cold(name)
    }

    fn resolve_cold(&self, name: &ImageName) -> Result<Arc<Image>, ImageError> {
        let file = encode(name);
        let path = self.path("names", &file);
        let c_file = CString::new(file).expect("encoding leaves no zero byte");
        // The stamp first: if the name moves in between, the next call sees another stamp.
        let stamp = match stamp(&self.inner.names, &c_file) {
            Ok(stamp) => stamp,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => {
                self.inner.by_name.write().expect("no panic under this lock").remove(name);
                return Err(ImageError::NotFound(name.clone()));
            }
            Err(errno) => return Err(errno).at("cannot look at", path),
        };
        let digest = match fs::read_to_string(&path) {
            Ok(text) => text.trim_end().to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(ImageError::NotFound(name.clone())),
            Err(error) => return Err(error).at("cannot read", path),
        };
        let record = match self.record(&digest) {
            Err(ImageError::NotFoundDigest(_)) => return Err(ImageError::NotFound(name.clone())),
            other => other?,
        };
        let image = Arc::new(self.image(record, Some(name)));
        let warm = Warm { file: c_file, stamp, image: image.clone() };
        self.inner.by_name.write().expect("no panic under this lock").insert(name.clone(), warm);
        Ok(image)
    }

    /// The image with this digest, whatever its names stand for by now.
    ///
    /// Errors: [`ImageError::NotFoundDigest`].
    pub fn by_digest(&self, digest: &str) -> Result<Arc<Image>, ImageError> {
        let none = || ImageError::NotFoundDigest(digest.to_owned());
        if let Some((file, image)) = self.inner.by_digest.read().expect("no panic under this lock").get(digest)
            && stamp(&self.inner.manifests, file).is_ok()
        {
            return Ok(image.clone());
        }
        let hex = digest_hex(digest).map_err(|_| none())?;
        let image = Arc::new(self.image(self.record(digest)?, None));
        let file = CString::new(format!("{hex}.json")).expect("hex has no zero byte");
        let mut cache = self.inner.by_digest.write().expect("no panic under this lock");
        cache.insert(digest.to_owned(), (file, image.clone()));
        Ok(image)
    }

    /// Every name and its image, by name.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut images = Vec::new();
        for file in self.files("names")? {
            let Some(name) = decode(&file) else { continue };
            match self.resolve(&name) {
                Ok(image) => images.push((*image).clone()),
                // Removed since the folder was read.
                Err(ImageError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Takes a name away, and its image with it if that was the last name.
    ///
    /// `in_use` tells whether a computer stands on a digest. It is asked for this image only, so a
    /// store that several daemons share is as safe as the answer of the one that removes.
    ///
    /// Errors: [`ImageError::NotFound`]; [`ImageError::InUse`] when the image would go but may not.
    pub fn remove(&self, name: &ImageName, in_use: &dyn Fn(&str) -> bool) -> Result<Removed, ImageError> {
        let lock = self.lock()?;
        self.sweep(&lock)?;
        let image = self.resolve_cold(name)?;
        let digest = image.digest.clone();
        let named = self.named_digests(Some(name))?;
        let last = !named.contains(&digest);
        if last && in_use(&digest) {
            return Err(ImageError::InUse { name: name.clone() });
        }
        let file = self.path("names", &encode(name));
        fs::remove_file(&file).at("cannot remove", &file)?;
        self.inner.by_name.write().expect("no panic under this lock").remove(name);
        let mut removed = Removed {
            name: name.clone(),
            digest: digest.clone(),
            image_removed: last,
            layers_removed: 0,
            freed: Bytes(0),
        };
        if last {
            (removed.layers_removed, removed.freed) = self.drop_images(&lock, &[digest])?;
        }
        Ok(removed)
    }

    /// Removes images that no name stands for any more, such as those a newer pull replaced, and
    /// layers that no image uses. Returns how many layers went, and their bytes.
    pub fn prune(&self, in_use: &dyn Fn(&str) -> bool) -> Result<(usize, Bytes), ImageError> {
        let lock = self.lock()?;
        self.sweep(&lock)?;
        let named = self.named_digests(None)?;
        let gone: Vec<String> = self
            .files("manifests")?
            .iter()
            .filter_map(|file| Some(format!("sha256:{}", file.strip_suffix(".json")?)))
            .filter(|digest| !named.contains(digest) && !in_use(digest))
            .collect();
        self.drop_images(&lock, &gone)
    }

    /// Removes these manifests, then every layer that neither a manifest nor a running job counts on.
    fn drop_images(&self, _lock: &Lock, digests: &[String]) -> Result<(usize, Bytes), ImageError> {
        for digest in digests {
            let path = self.path("manifests", &format!("{}.json", digest_hex(digest)?));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at("cannot remove", path),
                _ => {}
            }
            self.inner.by_digest.write().expect("no panic under this lock").remove(digest);
        }
        let mut wanted = self.wanted_by_jobs()?;
        for file in self.files("manifests")? {
            let record = self.read_record(&self.path("manifests", &file))?;
            wanted.extend(record.into_iter().flat_map(|r| r.layers).map(|id| id.replace("sha256:", "")));
        }
        let (mut count, mut freed) = (0, 0);
        let grave = self.inner.root.join("tmp").join(unique());
        for hex in self.files("layers")?.into_iter().filter(|hex| !wanted.contains(hex)) {
            freed += self.layer(&hex)?.map_or(0, |size| size.0);
            count += 1;
            fs::create_dir_all(&grave).at("cannot make", &grave)?;
            let path = self.path("layers", &hex);
            fs::rename(&path, grave.join(&hex)).at("cannot remove", path)?;
        }
        if count > 0 {
            fs::remove_dir_all(&grave).at("cannot remove", grave)?;
        }
        Ok((count, Bytes(freed)))
    }

    /// What names stand for, leaving one out.
    fn named_digests(&self, except: Option<&ImageName>) -> Result<HashSet<String>, ImageError> {
        let mut digests = HashSet::new();
        for file in self.files("names")? {
            if decode(&file).as_ref() != except || except.is_none() {
                let path = self.path("names", &file);
                digests.insert(fs::read_to_string(&path).at("cannot read", path)?.trim_end().to_owned());
            }
        }
        Ok(digests)
    }

    fn wanted_by_jobs(&self) -> Result<HashSet<String>, ImageError> {
        let mut wanted = HashSet::new();
        for job in self.files("tmp")? {
            let path = self.path("tmp", &job);
            let Ok(entries) = fs::read_dir(&path) else { continue };
            for entry in entries.flatten() {
                if let Some(hex) = entry.file_name().to_str().and_then(|name| name.strip_prefix("want-")) {
                    wanted.insert(hex.to_owned());
                }
            }
        }
        Ok(wanted)
    }

    /// Removes jobs whose makers are gone, and blobs that were given up.
    fn sweep(&self, _lock: &Lock) -> Result<(), ImageError> {
        for job in self.files("tmp")? {
            let path = self.path("tmp", &job);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(CWD, &path, flags, Mode::empty()) {
                Ok(fd) => {
                    if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
                        fs::remove_dir_all(&path).at("cannot remove", path)?;
                    }
                }
                Err(Errno::NOENT) => {}
                Err(_) => fs::remove_file(&path).at("cannot remove", path)?,
            }
        }
        for blob in self.files("blobs")? {
            let path = self.path("blobs", &blob);
            let age = fs::metadata(&path).and_then(|meta| meta.modified()).map(|at| at.elapsed().unwrap_or_default());
            if age.is_ok_and(|age| age > BLOB_AGE_MAX) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<Lock, ImageError> {
        let (file, path) = self.open_lock()?;
        while let Err(errno) = flock(&file, FlockOperation::LockExclusive) {
            if errno != Errno::INTR {
                return Err(errno).at("cannot lock", path);
            }
        }
        Ok(Lock(file))
    }

    fn try_lock(&self) -> Result<Option<Lock>, ImageError> {
        let (file, path) = self.open_lock()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno).at("cannot lock", path),
        }
    }

    fn open_lock(&self) -> Result<(OwnedFd, PathBuf), ImageError> {
        let path = self.inner.root.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::from_raw_mode(0o600)).at("cannot open", &path)?;
        Ok((file, path))
    }

    /// Begins a job. What it leaves in its folder goes when it is dropped.
    pub(crate) fn job(&self) -> Result<Job, ImageError> {
        let lock = self.lock()?;
        self.sweep(&lock)?;
        let dir = self.inner.root.join("tmp").join(unique());
        fs::create_dir(&dir).at("cannot make", &dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, &dir, flags, Mode::empty()).at("cannot open", &dir)?;
        flock(&fd, FlockOperation::NonBlockingLockExclusive).at("cannot lock", &dir)?;
        Ok(Job { store: self.clone(), dir, _lock: fd })
    }

    /// The unpacked size of a layer that is here.
    fn layer(&self, hex: &str) -> Result<Option<Bytes>, ImageError> {
        let path = self.path("layers", hex).join("layer.json");
        match fs::read(&path) {
            Ok(text) => {
                let record: LayerRecord =
                    serde_json::from_slice(&text).map_err(std::io::Error::from).at("cannot understand", path)?;
                Ok(Some(Bytes(record.size_bytes)))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).at("cannot read", path),
        }
    }

    fn record(&self, digest: &str) -> Result<Record, ImageError> {
        let none = || ImageError::NotFoundDigest(digest.to_owned());
        let hex = digest_hex(digest).map_err(|_| none())?;
        self.read_record(&self.path("manifests", &format!("{hex}.json")))?.ok_or_else(none)
    }

    fn read_record(&self, path: &Path) -> Result<Option<Record>, ImageError> {
        match fs::read(path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(std::io::Error::from).at("cannot understand", path)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).at("cannot read", path),
        }
    }

    fn image(&self, record: Record, name: Option<&ImageName>) -> Image {
        let folder = |id: &String| self.path("layers", id.trim_start_matches("sha256:")).join("fs");
        Image {
            name: name.cloned().unwrap_or(record.name),
            digest: record.digest,
            layers: record.layers.iter().rev().map(folder).collect(),
            config: record.config,
            size: Bytes(record.size_bytes),
            created_at: record.created_at,
            source: record.source,
        }
    }

    pub(crate) fn path(&self, part: &str, file: &str) -> PathBuf {
        let mut path = self.inner.root.join(part);
        path.push(file);
        path
    }

    fn files(&self, part: &str) -> Result<Vec<String>, ImageError> {
        let path = self.inner.root.join(part);
        let entries = fs::read_dir(&path).at("cannot list", &path)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

/// The store's flock, until dropped.
struct Lock(#[expect(dead_code, reason = "held, not used")] OwnedFd);

/// One import, pull or build under way.
pub(crate) struct Job {
    store: ImageStore,
    pub dir: PathBuf,
    _lock: OwnedFd,
}

impl Job {
    /// Makes the folder `name/fs` for a layer to be unpacked in, and returns both paths.
    pub fn layer_folder(&self, name: &str) -> Result<(PathBuf, PathBuf), ImageError> {
        let outer = self.dir.join(name);
        let fs_dir = outer.join("fs");
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&fs_dir).at("cannot make", &fs_dir)?;
        Ok((outer, fs_dir))
    }

    /// Counts on the layer `hex` from now on, and tells whether it is here.
    pub fn want(&self, hex: &str) -> Result<bool, ImageError> {
        let _lock = self.store.lock()?;
        let path = self.dir.join(format!("want-{hex}"));
        fs::write(&path, b"").at("cannot write", path)?;
        Ok(self.store.path("layers", hex).is_dir())
    }

    /// Moves a layer that was unpacked in `outer/fs` to where images find it.
    pub fn place(&self, outer: &Path, unpacked: &Unpacked) -> Result<(), ImageError> {
        let hex = &unpacked.diff_hex;
        if self.want(hex)? {
            return fs::remove_dir_all(outer).at("cannot remove", outer);
        }
        let record = LayerRecord {
            diff_id: format!("sha256:{hex}"),
            size_bytes: unpacked.size.0,
            entries: unpacked.entries,
            created_at: now(),
        };
        let path = outer.join("layer.json");
        fs::write(&path, json(&record)).at("cannot write", &path)?;
        // All of it is on disk before its name says that it is complete.
        let fd = fs::File::open(outer).at("cannot open", outer)?;
        syncfs(&fd).at("cannot flush", outer)?;
        let _lock = self.store.lock()?;
        let target = self.store.path("layers", hex);
        if target.is_dir() {
            return fs::remove_dir_all(outer).at("cannot remove", outer);
        }
        fs::rename(outer, &target).at("cannot make", target)
    }

    /// Writes the manifest and points `name` at it. Every layer has been placed.
    ///
    /// Without a digest of its own, an image gets one from its layers and configuration, so that the
    /// same import twice is the same image.
    pub fn commit(
        &self,
        name: &ImageName,
        digest: Option<String>,
        layers: Vec<String>,
        config: ImageConfig,
        source: String,
    ) -> Result<Arc<Image>, ImageError> {
        let digest = digest.unwrap_or_else(|| format!("sha256:{}", sha256_hex(&json(&(&layers, &config)))));
        let hex = digest_hex(&digest)?.to_owned();
        let mut size_bytes = 0;
        for id in &layers {
            let layer = self.store.layer(digest_hex(id)?)?;
            size_bytes += layer.ok_or_else(|| ImageError::BadLayer(format!("its layer {id} never came")))?.0;
        }
        let record = Record { digest, name: name.clone(), layers, config, size_bytes, created_at: now(), source };
        let _lock = self.store.lock()?;
        let manifest = self.store.path("manifests", &format!("{hex}.json"));
        // The same image again, perhaps under another name: what is known of it stays.
        if self.store.read_record(&manifest)?.is_none() {
            self.write(&manifest, &json(&record))?;
        }
        let file = self.store.path("names", &encode(name));
        self.write(&file, format!("{}\n", record.digest).as_bytes())?;
        self.store.resolve_cold(name)
    }

    /// Writes a whole file by way of a rename, and flushes both.
    fn write(&self, path: &Path, text: &[u8]) -> Result<(), ImageError> {
        let half = self.dir.join("half");
        let mut file = fs::File::create(&half).at("cannot create", &half)?;
        file.write_all(text).and_then(|()| file.sync_all()).at("cannot write", &half)?;
        fs::rename(&half, path).at("cannot create", path)?;
        let folder = path.parent().unwrap_or(path);
        fs::File::open(folder).and_then(|dir| dir.sync_all()).at("cannot flush", folder)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "a job's folder stays until the next sweep");
        }
    }
}

/// A name for something in `tmp/` that no other process uses.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{time:x}-{}-{count}", std::process::id())
}

pub(crate) fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types have text for keys")
}

fn stamp(folder: &OwnedFd, file: &CString) -> Result<Stamp, Errno> {
    statat(folder, file.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)
        .map(|stat| (stat.st_ino, stat.st_mtime, stat.st_mtime_nsec))
}

/// A name as a file name: everything but letters, digits, `.`, `_` and `-` as `%2f`.
fn encode(name: &ImageName) -> String {
    let mut file = String::with_capacity(name.as_str().len() + 8);
    for byte in name.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => file.push(byte as char),
            other => file.push_str(&format!("%{other:02x}")),
        }
    }
    file
}

/// The opposite; `None` for what `encode` never writes.
fn decode(file: &str) -> Option<ImageName> {
    let mut bytes = Vec::with_capacity(file.len());
    let mut rest = file.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()?.parse().ok()
}
