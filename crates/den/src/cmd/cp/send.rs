//! A file, stream or tree of the host as the body of a request, for other commands.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use den_api::client::Body;
use tokio::task::JoinHandle;

pub use super::transfer::both;
use super::{
    pack::pack,
    progress::Progress,
    transfer::{CHUNK_BYTES, ChunkWriter, body_from, send_file},
};
use crate::report::Trouble;

/// What a file holds; standard input for none.
pub fn stream(source: Option<&Path>) -> Result<(Body, JoinHandle<io::Result<()>>), Trouble> {
    let (file, shown) = match source {
        Some(path) => (File::open(path), path.display().to_string()),
        None => (io::stdin().as_fd().try_clone_to_owned().map(File::from), "standard input".to_owned()),
    };
    let file = file.map_err(|error| Trouble::io(&shown, &error))?;
    let progress = Progress::new(false);
    Ok(body_from(None, move |chunks| {
        send_file(file, None, &chunks, &progress)
            .map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))
    }))
}

/// What a directory holds, as tar.
pub fn tree(source: PathBuf) -> (Body, JoinHandle<io::Result<()>>) {
    let progress = Progress::new(false);
    body_from(None, move |chunks| {
        let gathered = Vec::with_capacity(CHUNK_BYTES);
        pack(&source, b".", true, ChunkWriter { chunks, gathered, progress })
    })
}
