//! What builds copy: archives that clients put to a signed URL, each a file below the data folder.
//!
//! ```text
//! <data>/e2b/files/<template>.<hash>                 whole
//!                 .<template>.<hash>.<random>        on its way; gone when it breaks off, and at the next start
//! ```

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::body::Body;
use futures_util::StreamExt as _;
use tokio::{io::AsyncWriteExt as _, sync::Semaphore};

use super::plan::is_hash;
use crate::{
    error::ApiError,
    secret,
    time::{SECOND, now},
};

/// The largest archive, and all of them together.
const FILE_BYTES_MAX: u64 = 4 << 30;
const ALL_BYTES_MAX: u64 = 32 << 30;

/// Archives on their way at a time.
const AT_ONCE: usize = 8;

/// How long a client may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// How long a URL is good.
const URL_GOOD_S: i64 = 3600;

/// How long an archive stays that no build uses.
const UNUSED_KEPT: Duration = Duration::from_secs(2 * 3600);

/// All archives.
pub(super) struct Files {
    folder: PathBuf,
    turns: Semaphore,
    key: [u8; 32],
}

/// A file on its way; dropped, it is gone.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %self.0.display(), "a part of an archive is left until the next start");
        }
    }
}

impl Files {
    /// Those below the folder; what is left of those on their way goes.
    pub(super) fn open(folder: PathBuf, key: &str) -> io::Result<Self> {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                std::fs::remove_file(entry.path())?;
            }
        }
        let key = blake3::derive_key("den e2b: uploads of builds", key.as_bytes());
        Ok(Self { folder, turns: Semaphore::new(AT_ONCE), key })
    }

    /// Where an archive is, if `hash` is one that can name it.
    fn path(&self, template: &str, hash: &str) -> Result<PathBuf, ApiError> {
        let is_id = !template.is_empty() && template.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match is_id && is_hash(hash) {
            true => Ok(self.folder.join(format!("{template}.{hash}"))),
            false => Err(ApiError::bad("the hash of files is 64 hexadecimal digits")),
        }
    }

    /// The archive, if it is there.
    pub(super) async fn find(&self, template: &str, hash: &str) -> Result<Option<PathBuf>, ApiError> {
        let path = self.path(template, hash)?;
        Ok(tokio::fs::try_exists(&path).await.unwrap_or(false).then_some(path))
    }

    fn signature(&self, template: &str, hash: &str, until: i64) -> String {
        blake3::keyed_hash(&self.key, format!("{template}/{hash}/{until}").as_bytes()).to_hex().to_string()
    }

    /// Path and query of the URL that an archive is put to.
    pub(super) fn url(&self, template: &str, hash: &str) -> String {
        let until = now() / SECOND + URL_GOOD_S;
        let signature = self.signature(template, hash, until);
        format!("/templates/{template}/uploads/{hash}?until={until}&signature={signature}")
    }

    /// Whether a URL is one of ours and still good.
    pub(super) fn is_signed(&self, template: &str, hash: &str, until: Option<&str>, signature: Option<&str>) -> bool {
        let until = until.and_then(|text| text.parse().ok()).filter(|until| *until >= now() / SECOND);
        until.zip(signature).is_some_and(|(until, given)| secret::same(&self.signature(template, hash, until), given))
    }

    /// Takes an archive; it is there whole or not at all.
    ///
    /// Errors: 400, 408, 413, 429.
    pub(super) async fn put(
        &self,
        template: &str,
        hash: &str,
        length: Option<u64>,
        body: Body,
    ) -> Result<(), ApiError> {
        let path = self.path(template, hash)?;
        let _turn = self.turns.try_acquire().map_err(|_| ApiError::new(429, "too many files are being put"))?;
        let too_large = || ApiError::new(413, format!("files for one step: at most {} GiB", FILE_BYTES_MAX >> 30));
        if length.is_some_and(|length| length > FILE_BYTES_MAX) {
            return Err(too_large());
        }
        let room = ALL_BYTES_MAX.saturating_sub(self.bytes().await.map_err(internal)?);
        if length.unwrap_or(0) > room {
            return Err(full());
        }
        let random = uuid::Uuid::new_v4().simple();
        let partial = Partial(self.folder.join(format!(".{template}.{hash}.{random}")));
        let mut file = tokio::fs::File::create_new(&partial.0).await.map_err(internal)?;
        let (mut data, mut bytes) = (body.into_data_stream(), 0);
        loop {
            match tokio::time::timeout(SILENCE_MAX, data.next()).await {
                Ok(Some(Ok(piece))) => {
                    bytes += piece.len() as u64;
                    if bytes > FILE_BYTES_MAX {
                        return Err(too_large());
                    }
                    if bytes > room {
                        return Err(full());
                    }
                    file.write_all(&piece).await.map_err(internal)?;
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(ApiError::bad(format!("the files did not arrive: {error}"))),
                Err(_) => return Err(ApiError::new(408, "the files came too slowly")),
            }
        }
        if length.is_some_and(|length| length != bytes) {
            return Err(ApiError::bad("the files did not arrive whole"));
        }
        file.sync_all().await.map_err(internal)?;
        drop(file);
        tokio::fs::rename(&partial.0, &path).await.map_err(internal)
    }

    async fn bytes(&self) -> io::Result<u64> {
        let (mut all, mut bytes) = (tokio::fs::read_dir(&self.folder).await?, 0);
        while let Some(entry) = all.next_entry().await? {
            bytes += entry.metadata().await.map_or(0, |metadata| metadata.len());
        }
        Ok(bytes)
    }

    /// Removes what no build uses: `used` has the names of those that do, and of what else is to stay.
    pub(super) async fn clear(&self, used: &BTreeSet<String>, gone: Option<&str>) {
        if let Err(error) = self.try_clear(used, gone).await {
            tracing::warn!(%error, "files of builds that nobody uses are left");
        }
    }

    async fn try_clear(&self, used: &BTreeSet<String>, gone: Option<&str>) -> io::Result<()> {
        let mut all = tokio::fs::read_dir(&self.folder).await?;
        while let Some(entry) = all.next_entry().await? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || used.contains(&name) {
                continue;
            }
            let age = entry.metadata().await?.modified()?.elapsed().unwrap_or_default();
            let is_of_gone = gone.is_some_and(|template| name.split('.').next() == Some(template));
            if is_of_gone || age > UNUSED_KEPT {
                tokio::fs::remove_file(entry.path()).await?;
            }
        }
        Ok(())
    }
}

/// What an archive is called.
pub(super) fn name(template: &str, hash: &str) -> String {
    format!("{template}.{hash}")
}

fn full() -> ApiError {
    ApiError::new(413, "the files of all templates take too much; delete templates that are not needed")
}

/// A folder of the house for the daemon alone, made if it is not there.
pub(super) fn folder(data: &Path, name: &str) -> io::Result<PathBuf> {
    let folder = data.join("e2b").join(name);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    Ok(folder)
}

fn internal(error: io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ApiError::new(503, "the disk of this house is full")
        }
        _ => {
            tracing::error!(%error, "files of a build cannot be kept");
            ApiError::new(503, "the files cannot be kept; the log of `den serve` says why")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("den-e2b-files-{}", uuid::Uuid::new_v4().simple()));
            std::fs::create_dir(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[tokio::test]
    async fn files_are_there_whole_or_not_at_all() {
        let folder = Folder::new();
        std::fs::write(folder.0.join(".t.left"), "x").unwrap();
        let files = Files::open(folder.0.clone(), "key").unwrap();
        let hash = "ab".repeat(32);
        assert_eq!(files.find("t1", &hash).await.unwrap(), None);
        assert_eq!(files.put("t1", &hash, Some(5), Body::from("abc")).await.unwrap_err().status, 400);
        assert_eq!(files.put("t1", &hash, Some(FILE_BYTES_MAX + 1), Body::empty()).await.unwrap_err().status, 413);
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "nothing is left of them");
        files.put("t1", &hash, Some(3), Body::from("abc")).await.unwrap();
        let path = files.find("t1", &hash).await.unwrap().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"abc");
        files.clear(&BTreeSet::from([name("t1", &hash)]), Some("t1")).await;
        files.clear(&BTreeSet::new(), None).await;
        assert!(files.find("t1", &hash).await.unwrap().is_some());
        files.clear(&BTreeSet::new(), Some("t1")).await;
        assert!(files.find("t1", &hash).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn no_name_leads_out() {
        let folder = Folder::new();
        let files = Files::open(folder.0.clone(), "key").unwrap();
        for (template, hash) in [("../t", "ab".repeat(32)), ("t", "../../etc/passwd".to_owned()), ("", "ab".repeat(32))]
        {
            assert_eq!(files.find(template, &hash).await.unwrap_err().status, 400, "{template} {hash}");
        }
    }

    #[test]
    fn a_url_is_good_for_what_it_says() {
        let folder = Folder::new();
        let files = Files::open(folder.0.clone(), "key").unwrap();
        let hash = "ab".repeat(32);
        let url = files.url("t1", &hash);
        let query = crate::api::query::pairs(url.split_once('?').unwrap().1);
        let (until, signature) = (query[0].1.as_str(), query[1].1.as_str());
        assert!(files.is_signed("t1", &hash, Some(until), Some(signature)));
        assert!(!files.is_signed("t2", &hash, Some(until), Some(signature)));
        assert!(!files.is_signed("t1", &hash, Some("1"), Some(signature)));
        assert!(!files.is_signed("t1", &hash, Some(until), None));
        assert!(!files.is_signed("t1", &hash, Some("1"), Some(&files.signature("t1", &hash, 1))), "it is over");
    }
}
