//! A bucket of S3, or of what speaks the same.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{Credentials, Object};
use crate::BackupError;

/// Objects that are on their way at a time.
const UPLOADS_MAX: usize = 4;
/// How long one request may take, a pack's worth of bytes included.
const REQUEST_MAX: Duration = Duration::from_secs(120);
/// How long a request is repeated.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often.
const RETRIES_MAX: usize = 5;

pub(super) struct S3 {
    text: String,
    prefix: String,
    store: std::sync::Arc<AmazonS3>,
    uploads: Mutex<JoinSet<Result<(), BackupError>>>,
    runtime: Requests,
}

/// Where requests run. It may be dropped by a thread that must not wait.
struct Requests(Option<Runtime>);

impl std::ops::Deref for Requests {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl S3 {
    pub(super) fn new(text: &str, bucket: &str, prefix: &str, credentials: &Credentials) -> Result<Self, BackupError> {
        let bad = |why: String| BackupError::BadPlace { place: text.to_owned(), why };
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        let mut plain = false;
        for (name, value) in credentials.pairs() {
            // Old and new names of the same.
            plain |= name.starts_with("AWS_ENDPOINT") && value.starts_with("http://");
            let key = match name {
                "AWS_ENDPOINT_URL_S3" | "AWS_ENDPOINT_URL" => "aws_endpoint".to_owned(),
                other => other.to_ascii_lowercase(),
            };
            // Variables of other tools are nothing to us.
            if let Ok(key) = key.parse() {
                builder = builder.with_config(key, value);
            }
        }
        let options = ClientOptions::new().with_timeout(REQUEST_MAX).with_allow_http(plain);
        let retry = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_MAX, ..RetryConfig::default() };
        let store = builder
            .with_client_options(options)
            .with_allow_http(plain)
            .with_retry(retry)
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("den-backup-s3")
            .enable_all()
            .build()
            .map_err(|error| BackupError::io("start", "a runtime", error))?;
        Ok(Self {
            text: text.to_owned(),
            prefix: prefix.to_owned(),
            store: std::sync::Arc::new(store),
            uploads: Mutex::default(),
            runtime: Requests(Some(runtime)),
        })
    }

    fn path(&self, name: &str) -> Path {
        match self.prefix.as_str() {
            "" => Path::from(name),
            prefix => Path::from(format!("{prefix}/{name}")),
        }
    }

    pub(super) fn put(&self, name: &str, bytes: Bytes) -> Result<(), BackupError> {
        let path = self.path(name);
        let put = self.store.put(&path, bytes.into());
        self.runtime.block_on(put).map(drop).map_err(|error| refused(&self.text, name, error))
    }

    pub(super) fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, BackupError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = self.path(name);
        match self.runtime.block_on(self.store.put_opts(&path, bytes.into(), options)) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(refused(&self.text, name, error)),
        }
    }

    pub(super) fn put_later(&self, name: &str, bytes: Bytes) -> Result<(), BackupError> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        while uploads.len() >= UPLOADS_MAX {
            ended(self.runtime.block_on(uploads.join_next()))?;
        }
        let (store, path, text, name) = (self.store.clone(), self.path(name), self.text.clone(), name.to_owned());
        let upload =
            async move { store.put(&path, bytes.into()).await.map(drop).map_err(|error| refused(&text, &name, error)) };
        uploads.spawn_on(upload, self.runtime.handle());
        Ok(())
    }

    pub(super) fn settle(&self) -> Result<(), BackupError> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        while !uploads.is_empty() {
            ended(self.runtime.block_on(uploads.join_next()))?;
        }
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Bytes>, BackupError> {
        let path = self.path(name);
        let got = self.runtime.block_on(async { self.store.get(&path).await?.bytes().await });
        found(&self.text, name, got)
    }

    pub(super) fn get_part(&self, name: &str, at: u64, bytes: usize) -> Result<Option<Bytes>, BackupError> {
        let path = self.path(name);
        let got = self.runtime.block_on(self.store.get_range(&path, at..at + bytes as u64));
        Ok(found(&self.text, name, got)?.filter(|part| part.len() == bytes))
    }

    pub(super) fn list(&self, folder: &str) -> Result<Vec<Object>, BackupError> {
        let below = self.path(folder);
        let listed = self.runtime.block_on(self.store.list(Some(&below)).try_collect::<Vec<_>>());
        let listed = listed.map_err(|error| refused(&self.text, folder, error))?;
        let skip = if self.prefix.is_empty() { 0 } else { self.path("").as_ref().trim_end_matches('/').len() + 1 };
        let object = |meta: object_store::ObjectMeta| Object {
            name: meta.location.as_ref().get(skip..).unwrap_or_default().to_owned(),
            bytes: meta.size,
        };
        Ok(listed.into_iter().map(object).collect())
    }

    pub(super) fn is_empty(&self) -> Result<bool, BackupError> {
        let below = (!self.prefix.is_empty()).then(|| Path::from(self.prefix.as_str()));
        let mut listed = self.store.list(below.as_ref());
        let first = self.runtime.block_on(listed.try_next());
        Ok(first.map_err(|error| refused(&self.text, "", error))?.is_none())
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), BackupError> {
        match self.runtime.block_on(self.store.delete(&self.path(name))) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(refused(&self.text, name, error)),
        }
    }
}

type Joined = Option<Result<Result<(), BackupError>, tokio::task::JoinError>>;

fn ended(joined: Joined) -> Result<(), BackupError> {
    match joined {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(BackupError::io("run", "an upload", std::io::Error::other(error))),
    }
}

fn found(place: &str, name: &str, got: Result<Bytes, Error>) -> Result<Option<Bytes>, BackupError> {
    match got {
        Ok(bytes) => Ok(Some(bytes)),
        // A bucket that is not there says the same of everything.
        Err(Error::NotFound { source, .. }) if source.to_string().contains("NoSuchBucket") => {
            Err(BackupError::Unreachable { place: place.to_owned(), name: name.to_owned(), source })
        }
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(refused(place, name, error)),
    }
}

fn refused(place: &str, name: &str, error: Error) -> BackupError {
    let (place, name) = (place.to_owned(), name.to_owned());
    let text = {
        let mut text = error.to_string();
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    };
    // The library keeps the status for itself, and says it in these words; a bare number may be part of a name.
    let is_status = |status: u16| text.contains(&format!("status code: {status}"));
    let denied = ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "169.254.169.254"];
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            BackupError::Refused { place, name, source: error.into() }
        }
        // Without credentials the library asks a metadata service that is not there.
        Error::Generic { .. } if is_status(403) || is_status(401) || denied.iter().any(|word| text.contains(word)) => {
            BackupError::Refused { place, name, source: error.into() }
        }
        Error::Generic { .. } if is_status(507) || text.contains("QuotaExceeded") => {
            BackupError::NoRoom { place, name }
        }
        error => BackupError::Unreachable { place, name, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_no_part_of_a_name() {
        let code = |said: &str| {
            let error = Error::Generic { store: "S3", source: said.to_owned().into() };
            refused("s3://x", "packs/40/403507", error).code()
        };
        assert_eq!(code("Server returned non-2xx status code: 403 Forbidden: "), "backup_refused");
        assert_eq!(code("Server returned non-2xx status code: 401 Unauthorized: "), "backup_refused");
        assert_eq!(code("Server returned non-2xx status code: 507 Insufficient Storage: "), "backup_no_room");
        assert_eq!(code("Server returned non-2xx status code: 500 of packs/40/4035070401"), "backup_unreachable");
    }
}
