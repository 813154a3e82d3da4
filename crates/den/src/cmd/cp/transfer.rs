//! The ways of a copy, and the pipes they are made of.
//!
//! ```text
//! thread: read, pack ──chunks──► request body          answer ──chunks──► thread: unpack
//!                     bounded                                  bounded
//! ```
//!
//! Invariant: at most [`CHUNKS_AHEAD`] chunks wait between two ends, so a copy of any size takes the
//! same memory.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::FileTypeExt, fs::MetadataExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use den_api::{
    ClientError, FileOperation,
    client::{Body, ByteStream, FileHead, WriteFile},
};
use rustix::{
    fs::{Mode, OFlags, Timespec, Timestamps},
    io::Errno,
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Copy, host_base,
    pack::{is_sparse, pack},
    place,
    progress::Progress,
    unpack::{HostOwner, unpack},
};
use crate::report::Trouble;

/// How much is read at once.
pub const CHUNK_BYTES: usize = 512 << 10;
/// Smaller files go over a connection that is there already.
const SENDFILE_BYTES_MIN: u64 = 1 << 20;
/// How many chunks wait between two ends.
const CHUNKS_AHEAD: usize = 4;

pub type Chunks = mpsc::Sender<io::Result<Bytes>>;

/// Gathers what is written into chunks and sends them.
pub struct ChunkWriter {
    pub chunks: Chunks,
    pub gathered: Vec<u8>,
    pub progress: Progress,
}

impl ChunkWriter {
    fn pass_on(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.gathered, Vec::with_capacity(CHUNK_BYTES));
        self.progress.add(chunk.len());
        self.chunks.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        if self.gathered.len() == CHUNK_BYTES {
            self.pass_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()
    }
}

/// Reads chunks as they come.
struct ChunkReader {
    chunks: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let taken = out.len().min(self.rest.len());
        out[..taken].copy_from_slice(&self.rest.split_to(taken));
        Ok(taken)
    }
}

/// Makes a body out of what `produce` sends from a thread.
pub fn body_from(
    length: Option<u64>,
    produce: impl FnOnce(Chunks) -> io::Result<()> + Send + 'static,
) -> (Body, JoinHandle<io::Result<()>>) {
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let producing = tokio::task::spawn_blocking(move || {
        let abandon = sender.clone();
        let produced = produce(sender);
        if let Err(error) = &produced {
            // Abandons the request, so that nobody takes the part for the whole.
            let _ = abandon.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
        }
        produced
    });
    (Body::Stream { chunks, left: length }, producing)
}

/// The outcome of a request whose body came from a thread. The side that failed first is told:
/// a daemon's refusal before the broken pipe that it caused, a read error before the broken request.
pub async fn both<T>(
    answer: Result<T, den_api::ClientError>,
    producing: JoinHandle<io::Result<()>>,
) -> Result<T, Trouble> {
    match answer {
        Err(error) if error.code().is_some() => Err(error.into()),
        answer => {
            match producing.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(Trouble::new(error)),
                _ => {}
            }
            Ok(answer?)
        }
    }
}

/// Sends `left` bytes of a file, or all there are.
pub fn send_file(file: File, left: Option<u64>, chunks: &Chunks, progress: &Progress) -> io::Result<()> {
    let mut left = left;
    while left != Some(0) {
        let most = left.map_or(CHUNK_BYTES, |left| CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES)));
        let mut chunk = Vec::with_capacity(most);
        // A pipe gives what it has; gathered, it costs fewer chunks.
        while chunk.len() < most {
            match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut chunk)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if chunk.is_empty() {
            return match left {
                None => Ok(()),
                Some(left) => Err(io::Error::other(format!("it became {left} bytes shorter while it was read"))),
            };
        }
        left = left.map(|left| left - chunk.len() as u64);
        progress.add(chunk.len());
        if chunks.blocking_send(Ok(chunk.into())).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    Ok(())
}

/// Passes an answer on as a body.
fn relay(mut stream: ByteStream, length: Option<u64>, progress: Progress) -> (Body, JoinHandle<io::Result<()>>) {
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let producing = tokio::spawn(async move {
        loop {
            let chunk = match stream.next().await {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => return Ok(()),
                Err(error) => {
                    let said = crate::report::chain(&error);
                    let _ = sender.send(Err(io::Error::other(said.clone()))).await;
                    return Err(io::Error::other(said));
                }
            };
            progress.add(chunk.as_ref().map_or(0, Bytes::len));
            if sender.send(chunk).await.is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    });
    (Body::Stream { chunks, left: length }, producing)
}

impl Copy<'_> {
    /// From the host into a computer.
    pub async fn upload(&self, source: &Path, name: &str, path: &[u8]) -> Result<(), Trouble> {
        let unreadable = |error: io::Error| Trouble::io(source.display(), &error);
        let source_bytes = source.as_os_str().as_bytes();
        // A slash at the end of a link means what it leads to.
        let mut follow = self.follow || source_bytes.ends_with(b"/");
        let mut metadata = if follow { source.metadata() } else { source.symlink_metadata() }.map_err(unreadable)?;
        if metadata.is_symlink() && source.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            // `<(command)` in a shell: a link to a pipe.
            (metadata, follow) = (source.metadata().map_err(unreadable)?, true);
        }
        let contents = metadata.is_dir() && place::is_contents(source_bytes);
        let base = if contents { None } else { Some(host_base(source)?) };
        let to = self.place_inside(name, path, base.as_ref().map(|base| base.as_bytes()), metadata.is_dir()).await?;
        let kind = metadata.file_type();
        if (kind.is_file() && !is_sparse(&metadata)) || kind.is_fifo() || kind.is_char_device() {
            return self.upload_file(source, follow, name, &to.path()).await;
        }
        self.progress.expect(if kind.is_file() { metadata.blocks() * 512 } else { 0 });
        let (source, top) = (source.to_owned(), to.name.clone().unwrap_or_else(|| b".".to_vec()));
        let progress = self.progress.clone();
        let (body, producing) = body_from(None, move |chunks| {
            let gathered = Vec::with_capacity(CHUNK_BYTES);
            pack(&source, &top, follow, ChunkWriter { chunks, gathered, progress })
        });
        let answer = self.client.tar_in(name, &to.directory, self.owner_inside(), None, body).await;
        both(answer, producing).await
    }

    async fn upload_file(&self, source: &Path, follow: bool, name: &str, path: &[u8]) -> Result<(), Trouble> {
        let unreadable = |error: io::Error| Trouble::io(source.display(), &error);
        let flags = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(source).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let owner = match self.owner_inside() {
            Some(owner) => owner.to_owned(),
            None => format!("{}:{}", metadata.uid(), metadata.gid()),
        };
        let mut how = WriteFile { owner: Some(owner), parents: self.parents, ..WriteFile::default() };
        let mut length = None;
        if metadata.is_file() {
            how.mode = Some(metadata.mode() & 0o7777);
            how.mtime = Some(metadata.mtime() * 1_000_000 + metadata.mtime_nsec() / 1000);
            length = Some(metadata.len());
            self.progress.expect(metadata.len());
        }
        let file = match length {
            Some(length) if length >= SENDFILE_BYTES_MIN => {
                let progress = self.progress.clone();
                let again = file.try_clone().map_err(unreadable)?;
                match self.client.send_file(name, path, &how, (file, length), move |count| progress.add(count)).await {
                    // A file system without sendfile(2).
                    Err(ClientError::Source { source }) if source.kind() == io::ErrorKind::InvalidInput => again,
                    Err(ClientError::Source { source }) => return Err(unreadable(source)),
                    answer => return Ok(answer.map(drop)?),
                }
            }
            _ => file,
        };
        let (progress, shown) = (self.progress.clone(), source.display().to_string());
        let (body, producing) = body_from(length, move |chunks| {
            send_file(file, length, &chunks, &progress).map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => error,
                kind => io::Error::new(kind, format!("{shown}: {error}")),
            })
        });
        both(self.client.write_file(name, path, &how, body).await, producing).await.map(drop)
    }

    /// From a computer to the host.
    pub async fn download(&self, name: &str, path: &[u8], target: &Path) -> Result<(), Trouble> {
        let contents = place::is_contents(path);
        let follow = self.follow || contents || path.ends_with(b"/");
        let path = place::trim(path);
        let look = self.look(name, path, follow).await?;
        let is_directory = look.is_directory;
        let base = (!contents).then(|| Path::new(std::ffi::OsStr::from_bytes(place::split(path).1)).to_owned());
        let slash = target.as_os_str().as_bytes().ends_with(b"/");
        // Where it goes: into a directory that is there, or under the name that was given.
        let there = target.metadata();
        let (directory, new_name) = match (&there, base) {
            (Ok(metadata), base) if metadata.is_dir() => (target.to_owned(), base),
            (Ok(_), _) if is_directory || slash => {
                return Err(Trouble::new(format_args!("{} is no directory", target.display())));
            }
            (Err(_), None) => {
                fs_err::create_dir_all(target).map_err(Trouble::new)?;
                (target.to_owned(), None)
            }
            (Err(_), Some(_)) if slash && !is_directory && !self.parents => {
                return Err(Trouble::new(format_args!("{} does not exist", target.display()))
                    .hint("make it first, or with --parents"));
            }
            (Err(_), Some(base)) if slash && !is_directory => (target.to_owned(), Some(base)),
            (_, _) => {
                let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
                (directory.unwrap_or(Path::new(".")).to_owned(), Some(PathBuf::from(host_base(target)?)))
            }
        };
        if self.parents {
            fs_err::create_dir_all(&directory).map_err(Trouble::new)?;
        }
        let owner = self.owner_on_host()?;
        if let (true, Some(new_name)) = (look.is_plain_file, &new_name) {
            let (head, stream) = self.read(name, &look).await?;
            return self.download_file(head, stream, &directory.join(new_name), owner).await;
        }
        if let (Some(target), Some(new_name)) = (&look.link, &new_name) {
            let at = directory.join(new_name);
            return std::os::unix::fs::symlink(target, &at).map_err(|error| Trouble::io(at.display(), &error));
        }
        let stream = self.pack(name, path, follow).await?;
        let progress = self.progress.clone();
        receive(stream, progress, move |chunks| unpack(chunks, &directory, new_name.as_deref(), owner)).await
    }

    async fn download_file(
        &self,
        head: FileHead,
        mut stream: ByteStream,
        target: &Path,
        owner: HostOwner,
    ) -> Result<(), Trouble> {
        let unwritable = |error: io::Error| Trouble::io(target.display(), &error);
        self.progress.expect(head.size);
        // A link is written through, as `cp` does.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        if target.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            let mut file = File::options().write(true).open(&target).map_err(unwritable)?;
            while let Some(bytes) = stream.next().await? {
                self.progress.add(bytes.len());
                file.write_all(&bytes).map_err(unwritable)?;
            }
            return Ok(());
        }
        // Beside it and then in its place, so that a broken copy leaves what was there.
        let directory = target.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::Builder::new()
            .prefix(".den-cp-")
            .tempfile_in(directory)
            .map_err(|error| Trouble::io(directory.display(), &error))?;
        let mut written = 0;
        while let Some(bytes) = stream.next().await? {
            self.progress.add(bytes.len());
            written += bytes.len() as u64;
            file.write_all(&bytes).map_err(unwritable)?;
        }
        if written != head.size {
            return Err(Trouble::new(format_args!("{written} of {} bytes came", head.size)));
        }
        owner.give(file.as_file().as_fd(), head.uid, head.gid).map_err(unwritable)?;
        rustix::fs::fchmod(file.as_file(), Mode::from_raw_mode(head.mode & 0o777))
            .map_err(|error| unwritable(error.into()))?;
        let time = Timespec {
            tv_sec: head.mtime.div_euclid(1_000_000),
            tv_nsec: (head.mtime.rem_euclid(1_000_000) * 1000) as _,
        };
        rustix::fs::futimens(file.as_file(), &Timestamps { last_access: time, last_modification: time })
            .map_err(|error| unwritable(error.into()))?;
        file.persist(&target).map_err(|error| unwritable(error.error))?;
        Ok(())
    }

    /// To standard output: a file's bytes, or a tree as tar.
    pub async fn stream_out(&self, name: &str, path: &[u8]) -> Result<(), Trouble> {
        let look = self.look(name, place::trim(path), true).await?;
        let mut stream =
            if look.is_directory { self.pack(name, path, true).await? } else { self.read(name, &look).await?.1 };
        // Not through `io::stdout`, which looks for line ends.
        let out = io::stdout().as_fd().try_clone_to_owned().map_err(|error| Trouble::io("standard output", &error))?;
        let mut out = File::from(out);
        while let Some(bytes) = stream.next().await? {
            self.progress.add(bytes.len());
            out.write_all(&bytes).map_err(|error| Trouble::io("standard output", &error))?;
        }
        Ok(())
    }

    /// From standard input: a file's bytes; or, where the path is a directory, a tar stream.
    pub async fn stream_in(&self, name: &str, path: &[u8]) -> Result<(), Trouble> {
        let is_tree = self.is_directory(name, place::trim(path)).await? == Some(true);
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(|error| Trouble::io("standard input", &error))?;
        let progress = self.progress.clone();
        let (body, producing) = body_from(None, move |chunks| {
            send_file(File::from(input), None, &chunks, &progress)
                .map_err(|error| io::Error::new(error.kind(), format!("standard input: {error}")))
        });
        if is_tree {
            return both(self.client.tar_in(name, path, self.owner, None, body).await, producing).await;
        }
        let owner = self.owner.map(str::to_owned);
        let how = WriteFile { owner, parents: self.parents, ..WriteFile::default() };
        both(self.client.write_file(name, path, &how, body).await, producing).await.map(drop)
    }

    /// From computer to computer.
    pub async fn between(&self, name: &str, path: &[u8], to: &str, target: &[u8]) -> Result<(), Trouble> {
        let contents = place::is_contents(path);
        let follow = self.follow || contents || path.ends_with(b"/");
        let path = place::trim(path);
        let look = self.look(name, path, follow).await?;
        let base = (!contents).then(|| place::split(path).1);
        let inside = self.place_inside(to, target, base, look.is_directory).await?;
        if let Some(target) = look.link {
            let path = String::from_utf8(inside.path()).map_err(|_| Trouble::new("the link's name is no UTF-8"))?;
            return Ok(self.client.change(to, &FileOperation::Symlink { path, target }).await?);
        }
        if look.is_plain_file {
            let (head, stream) = self.read(name, &look).await?;
            let how = WriteFile {
                mode: Some(head.mode & 0o7777),
                owner: Some(self.owner.map_or_else(|| format!("{}:{}", head.uid, head.gid), str::to_owned)),
                mtime: Some(head.mtime),
                parents: self.parents,
                append: false,
            };
            self.progress.expect(head.size);
            let (body, producing) = relay(stream, Some(head.size), self.progress.clone());
            return both(self.client.write_file(to, inside.path(), &how, body).await, producing).await.map(drop);
        }
        let stream = self.pack(name, path, follow).await?;
        let (body, producing) = relay(stream, None, self.progress.clone());
        let answer = self.client.tar_in(to, &inside.directory, self.owner, inside.name.as_deref(), body).await;
        both(answer, producing).await
    }
}

/// Feeds an answer to a thread that consumes it.
async fn receive(
    mut stream: ByteStream,
    progress: Progress,
    consume: impl FnOnce(&mut dyn Read) -> Result<(), Trouble> + Send + 'static,
) -> Result<(), Trouble> {
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let consuming = tokio::task::spawn_blocking(move || {
        let mut reader = ChunkReader { chunks, rest: Bytes::new() };
        consume(&mut reader)?;
        // The padding behind the archive's end, so that the sender is not cut off.
        io::copy(&mut reader, &mut io::sink()).map(drop).map_err(Trouble::new)
    });
    let fed = loop {
        match stream.next().await {
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
            Ok(Some(bytes)) => {
                progress.add(bytes.len());
                if sender.send(bytes).await.is_err() {
                    break Ok(());
                }
            }
        }
    };
    drop(sender);
    let consumed = consuming.await.unwrap_or_else(|error| Err(Trouble::new(error)));
    // A stream that broke off explains the archive that ends too early.
    fed?;
    consumed
}
