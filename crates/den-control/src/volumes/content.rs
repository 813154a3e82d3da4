//! What lies in shared volumes: looked at and changed from outside, whether a computer mounts them or not.
//!
//! ```text
//! stat, list, make, change, remove ──► a thread that may block ──► Tree
//! read    task: file ──chunks, CHUNKS of them──► who reads
//! write   who writes ──chunks──► task: a file without a name ──finish──► on the disk, named
//! ```
//!
//! What is open here is let go of when the house is closed, whoever stalls.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use den_disk::{TREE_DEPTH_MAX, Tree, TreeEntry, TreeError, TreeOwner, Writing};
use tokio::{
    io::AsyncReadExt as _,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};

use crate::{
    Error,
    control::{Control, Inner},
    errors,
    limits::{VOLUME_ID_MAX, VOLUME_TRANSFERS_MAX},
};

/// Bytes that are read at a time, and how many such chunks wait for who reads or writes.
const CHUNK_BYTES: usize = 128 << 10;
const CHUNKS: usize = 4;

/// Bytes on their way out of a volume.
pub struct VolumeReader {
    chunks: mpsc::Receiver<Result<Bytes, Error>>,
}

impl VolumeReader {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.chunks.recv().await.transpose()
    }
}

/// Bytes on their way into a volume. Dropped unfinished, what was there stays as it was.
pub struct VolumeWriter {
    /// None: that was all.
    parts: mpsc::Sender<Option<Bytes>>,
    outcome: oneshot::Receiver<Result<TreeEntry, Error>>,
}

impl VolumeWriter {
    /// Writes what comes next.
    ///
    /// Errors: `volume_full`; what the disk meets.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Error> {
        if self.parts.send(Some(bytes)).await.is_ok() {
            return Ok(());
        }
        match (&mut self.outcome).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(Error::shutting_down()),
        }
    }

    /// Gives it its name, and returns once it is safe from the end of power.
    ///
    /// Errors: as of [`VolumeWriter::send`]; `file_exists` where it was not to be replaced.
    pub async fn finish(self) -> Result<TreeEntry, Error> {
        let Self { parts, outcome } = self;
        let _ = parts.send(None).await;
        outcome.await.unwrap_or_else(|_| Err(Error::shutting_down()))
    }
}

/// What a tree answered about `path`.
fn failed(error: TreeError, path: &str) -> Error {
    let shown: String = path.chars().take(200).collect();
    let is = |code, status, what: &str| Error::new(code, status, format!("`{shown}` in the volume: {what}"));
    let text = error.to_string();
    match error {
        TreeError::NotFound => is("file_not_found", 404, &text),
        TreeError::NotADirectory => is("not_a_directory", 400, &text),
        TreeError::IsADirectory => is("is_a_directory", 400, &text),
        TreeError::NotAFile => is("not_a_file", 400, &text),
        TreeError::Exists => is("file_exists", 409, &text),
        TreeError::NotEmpty => is("not_empty", 409, &text).retryable(),
        TreeError::Outside | TreeError::BadPath(_) => is("bad_request", 400, &text),
        TreeError::TooMuch { .. } => is("too_large", 413, &text).hint("list fewer levels, or a folder further down"),
        TreeError::Full => is("volume_full", 507, &text).hint("remove something from it, or make a larger one"),
        TreeError::Sys { errno, .. } => Error::of_file(
            format!("`{shown}` in the volume: {text}"),
            &std::io::Error::from_raw_os_error(errno),
            |text| Error::new("file_failed", 500, text),
        ),
    }
}

fn checked(owner: TreeOwner) -> Result<TreeOwner, Error> {
    for (field, id) in [("uid", owner.uid), ("gid", owner.gid)] {
        if id.is_some_and(|id| id > VOLUME_ID_MAX) {
            return Err(Error::bad_request(format!("`{field}`: computers have ids from 0 to {VOLUME_ID_MAX}")));
        }
    }
    match owner.mode {
        Some(mode) if mode > 0o7777 => Err(Error::bad_request("`mode`: more than 0o7777")),
        _ => Ok(owner),
    }
}

impl Inner {
    /// A place among those that read and write volumes at a time.
    fn place_at_volumes(&self) -> Result<OwnedSemaphorePermit, Error> {
        let place = Arc::clone(&self.volumes.places).try_acquire_owned();
        place.map_err(|_| errors::too_many("transfers of shared volumes", VOLUME_TRANSFERS_MAX))
    }

    fn tree(&self, volume: &str) -> Result<impl FnOnce() -> Result<Tree, Error> + Send + use<>, Error> {
        self.open_for_work()?;
        let (volume, disks) = (self.volumes.find(volume)?, self.disks()?);
        Ok(move || disks.open_volume(volume.id).map_err(|error| failed(error, "/")))
    }
}

impl Control {
    /// Does `work` with the tree of a volume, on a thread that may block, whether its caller stays or not.
    async fn with_tree<T: Send + 'static>(
        &self,
        volume: &str,
        path: &str,
        work: impl FnOnce(&Tree, &str) -> Result<T, TreeError> + Send + 'static,
    ) -> Result<T, Error> {
        let (place, open) = (self.0.place_at_volumes()?, self.0.tree(volume)?);
        let path = path.to_owned();
        let done = self.0.volumes.work.spawn_blocking(move || {
            let _place = place;
            work(&open()?, &path).map_err(|error| failed(error, &path))
        });
        done.await.map_err(|error| Error::internal("a task panicked").because(error))?
    }

    /// What `path` in a volume is. A link is shown as one.
    ///
    /// Errors: `volume_not_found`, `file_not_found`, `bad_request`.
    pub async fn volume_stat(&self, volume: &str, path: &str) -> Result<TreeEntry, Error> {
        self.with_tree(volume, path, |tree, path| tree.stat(path)).await
    }

    /// What lies in a folder of a volume, `depth` levels of it.
    ///
    /// Errors: `volume_not_found`, `file_not_found`, `not_a_directory`, `too_large`, `bad_request`.
    pub async fn volume_list(&self, volume: &str, path: &str, depth: usize) -> Result<Vec<TreeEntry>, Error> {
        let depth = depth.min(TREE_DEPTH_MAX + 1);
        self.with_tree(volume, path, move |tree, path| tree.list(path, depth)).await
    }

    /// Makes a folder in a volume; with `parents`, also those above it, and one that is there is no error.
    ///
    /// Errors: `volume_not_found`, `file_not_found`, `file_exists`, `volume_full`, `bad_request`.
    pub async fn volume_make_folder(
        &self,
        volume: &str,
        path: &str,
        owner: TreeOwner,
        parents: bool,
    ) -> Result<TreeEntry, Error> {
        let owner = checked(owner)?;
        self.with_tree(volume, path, move |tree, path| tree.make_folder(path, owner, parents)).await
    }

    /// Gives something in a volume another owner, group or mode.
    ///
    /// Errors: `volume_not_found`, `file_not_found`, `bad_request`.
    pub async fn volume_change(&self, volume: &str, path: &str, owner: TreeOwner) -> Result<TreeEntry, Error> {
        let owner = checked(owner)?;
        self.with_tree(volume, path, move |tree, path| tree.change(path, owner)).await
    }

    /// Removes something in a volume, a folder with all that is in it.
    ///
    /// Errors: `volume_not_found`, `file_not_found`, `not_empty` where something writes into it, `bad_request`.
    pub async fn volume_remove(&self, volume: &str, path: &str) -> Result<(), Error> {
        self.with_tree(volume, path, |tree, path| tree.remove(path)).await
    }

    /// Reads a file of a volume.
    ///
    /// Errors: `volume_not_found`, `file_not_found`, `is_a_directory`, `not_a_file`, `bad_request`.
    pub async fn volume_read(&self, volume: &str, path: &str) -> Result<(TreeEntry, VolumeReader), Error> {
        let place = self.0.place_at_volumes()?;
        let (entry, file) = self.with_tree(volume, path, |tree, path| tree.read(path)).await?;
        let (to, chunks) = mpsc::channel(CHUNKS);
        let (ending, shown) = (self.0.volumes.ending.clone(), path.to_owned());
        // No more than it had: what grows would never end.
        let mut file = tokio::fs::File::from_std(file).take(entry.size);
        self.0.volumes.work.spawn(async move {
            let _place = place;
            loop {
                let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
                let read = async {
                    let chunk = match file.read_buf(&mut chunk).await {
                        Ok(0) => return None,
                        Ok(_) => Ok(chunk.freeze()),
                        Err(error) => {
                            Err(Error::of_file(format!("`{shown}` in the volume: {error}"), &error, |text| {
                                Error::new("file_failed", 500, text)
                            }))
                        }
                    };
                    let whole = chunk.is_ok();
                    (to.send(chunk).await.is_ok() && whole).then_some(())
                };
                match ending.run_until_cancelled(read).await {
                    Some(Some(())) => {}
                    Some(None) => return,
                    None => return drop(to.try_send(Err(Error::shutting_down()))),
                }
            }
        });
        Ok((entry, VolumeReader { chunks }))
    }

    /// Begins to write a file of a volume, which is there once it is finished, whole. `replace`: in place of the one
    /// that is there.
    ///
    /// Errors: `volume_not_found`, `file_not_found` where the folder is not there, `file_exists`, `is_a_directory`,
    /// `volume_full`, `bad_request`.
    pub async fn volume_write(
        &self,
        volume: &str,
        path: &str,
        owner: TreeOwner,
        replace: bool,
    ) -> Result<VolumeWriter, Error> {
        let (owner, place) = (checked(owner)?, self.0.place_at_volumes()?);
        let writing = self.with_tree(volume, path, move |tree, path| tree.write(path, owner, replace)).await?;
        let (parts, inbox) = mpsc::channel(CHUNKS);
        let (reply, outcome) = oneshot::channel();
        let (ending, path) = (self.0.volumes.ending.clone(), path.to_owned());
        let work = self.0.volumes.work.clone();
        self.0.volumes.work.spawn(async move {
            let _place = place;
            let written = ending.run_until_cancelled(take(writing, inbox, &path)).await;
            let written = match written {
                Some(Ok(Some(writing))) => {
                    let finished = work.spawn_blocking(move || writing.finish()).await;
                    finished
                        .map_err(|error| Error::internal("a task panicked").because(error))
                        .and_then(|finished| finished.map_err(|error| failed(error, &path)))
                }
                // Whoever wrote went away.
                Some(Ok(None)) => return,
                Some(Err(error)) => Err(error),
                None => Err(Error::shutting_down()),
            };
            drop(reply.send(written));
        });
        Ok(VolumeWriter { parts, outcome })
    }
}

/// Writes what comes; None where it broke off before its end.
async fn take(
    mut writing: Writing,
    mut inbox: mpsc::Receiver<Option<Bytes>>,
    path: &str,
) -> Result<Option<Writing>, Error> {
    while let Some(part) = inbox.recv().await {
        let Some(bytes) = part else { return Ok(Some(writing)) };
        let wrote = tokio::task::spawn_blocking(move || writing.write(&bytes).map(|()| writing)).await;
        let wrote = wrote.map_err(|error| Error::internal("a task panicked").because(error))?;
        writing = wrote.map_err(|error| failed(error, path))?;
    }
    Ok(None)
}
