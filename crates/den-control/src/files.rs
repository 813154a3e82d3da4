//! Files inside a computer. What changes them is a step, recorded before and ended after.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use den_api::{ChangeView, FileOperation, StatView};
use den_machine::{Changes, DataSink, DataSource, LinkError};
use den_model::{Step, StepEnd, StepKind};
use den_store::Durability;
use den_wire::agent::{self, ChangeKind, FileStat, Request};

use crate::{
    Error, Who,
    answer::{answered, carried},
    control::{Control, Inner, now},
    durable::step_is_safe_or_said,
    handle::Handle,
    life::{Awake, Busy},
    limits::DEPTH_MAX,
    steps::{Live, finish},
};

/// A file to write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteFile {
    /// Which.
    pub path: Vec<u8>,
    /// Permission bits; those of the file that was there, else 0o644, without.
    pub mode: Option<u32>,
    /// `user`, `user:group`; that of the file that was there, else root, without.
    pub owner: Option<String>,
    /// Modification time, microseconds since the epoch; now without.
    pub mtime: Option<i64>,
    /// Whether missing directories above it are made.
    pub parents: bool,
    /// Whether it is added to the end of what is there.
    pub append: bool,
    /// Whether what is there is emptied and written in place.
    pub in_place: bool,
    /// Extended attributes in place of all whose names begin alike; only with `in_place`.
    pub attributes: Option<Attributes>,
}

/// Extended attributes of a file: those whose names begin with `prefix`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// What their names begin with.
    pub prefix: String,
    /// The rest of each name, and its value.
    pub set: Vec<(String, Vec<u8>)>,
}

/// Bytes on their way out of a computer.
pub struct FileReader {
    handle: Arc<Handle>,
    source: DataSource,
    /// Came already, so that a refusal is known before an answer begins.
    first: Option<Bytes>,
    _busy: Busy,
}

impl FileReader {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        carried(&self.handle, self.source.next()).await.map_err(|error| self.handle.link_error(error))
    }
}

/// Bytes on their way in. Dropped unfinished, what was there stays as it was, unless they are written in place.
struct Sink {
    sink: Option<DataSink>,
    step: Change,
    _busy: Busy,
}

impl Sink {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(sink) = &mut self.sink else { return Err(broken()) };
        self.step.handle.plugged()?;
        match carried(&self.step.handle, sink.send(bytes)).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.sink = None;
                Err(self.step.failed(error).await)
            }
        }
    }

    async fn finish(mut self) -> Result<Option<FileStat>, Error> {
        let sink = self.sink.take().ok_or_else(broken)?;
        match carried(&self.step.handle, sink.finish()).await {
            Ok(stat) => {
                self.step.end(StepEnd::Exited { code: 0 }).await;
                Ok(stat)
            }
            Err(error) => Err(self.step.failed(error).await),
        }
    }
}

fn broken() -> Error {
    Error::bad_request("the transfer has failed before")
}

/// Writes a file. It appears whole when finished; dropped unfinished, what was there stays. One that is written in
/// place or added to is there from the beginning on, and dropped unfinished it keeps what came until then.
pub struct FileWriter(Sink);

impl FileWriter {
    /// Sends bytes; waits while the computer does not take them.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.0.send(bytes).await
    }

    /// Says that all was sent, and waits until the file is in its place.
    pub async fn finish(self) -> Result<StatView, Error> {
        match self.0.finish().await? {
            Some(stat) => Ok(stat_view(&stat)),
            None => Err(Error::internal("a write was answered without the file's attributes")),
        }
    }
}

/// Unpacks a tar stream.
pub struct TarWriter(Sink);

impl TarWriter {
    /// Sends bytes; waits while the computer does not take them.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.0.send(bytes).await
    }

    /// Says that all was sent, and waits until all of it is in its place.
    pub async fn finish(self) -> Result<(), Error> {
        self.0.finish().await.map(drop)
    }
}

/// Changes under a path as they happen.
pub struct Watcher {
    handle: Arc<Handle>,
    watch: Watch,
    changes: Changes,
    /// See [`crate::life::Doors::rests`]: when it was armed.
    rests: u64,
    _busy: Busy,
}

/// What is watched.
struct Watch {
    path: Vec<u8>,
    recursive: bool,
    plain: bool,
}

impl Watch {
    /// Arms it, in a computer that is awake.
    async fn arm(&self, handle: &Handle, machine: &Awake) -> Result<Changes, Error> {
        let armed = carried(handle, machine.link().watch(&self.path, self.recursive, self.plain)).await;
        armed.map_err(|error| handle.link_error(error))
    }
}

impl Watcher {
    /// The next change. After its computer was written down and goes on an overflow: what happened at that instant
    /// may be missing.
    pub async fn next(&mut self) -> Result<ChangeView, Error> {
        let change = match self.changes.next().await {
            Ok(change) => change,
            Err(error) => {
                self.handle.moves().await;
                let rests = self.handle.doors.rests();
                if rests == self.rests {
                    return Err(self.handle.link_error(error));
                }
                self.changes = self.watch.arm(&self.handle, &self.handle.awake().await?).await?;
                self.rests = rests;
                return Ok(ChangeView { kind: "overflow".to_owned(), path: String::new(), from: None });
            }
        };
        let kind = match change.kind {
            ChangeKind::Created => "created",
            ChangeKind::Written => "written",
            ChangeKind::Removed => "removed",
            ChangeKind::Moved => "moved",
            ChangeKind::Attributes => "attributes",
            ChangeKind::Overflow => "overflow",
        };
        Ok(ChangeView { kind: kind.to_owned(), path: text(&change.path), from: change.from.map(|from| text(&from)) })
    }
}

/// A step on files that goes on. Dropped before its end, it is recorded as lost.
struct Change {
    inner: Arc<Inner>,
    handle: Arc<Handle>,
    live: Option<Arc<Live>>,
}

impl Change {
    async fn begin(
        inner: &Arc<Inner>,
        handle: &Arc<Handle>,
        argv: Vec<String>,
        user: Option<String>,
        who: &Who,
    ) -> Result<Self, Error> {
        handle.steps.room()?;
        handle.history.settled().await;
        let number = handle.steps.number();
        let step = Step { user, ..Step::begun(number, StepKind::Files, argv, who.0.clone(), now()) };
        let row = inner.store.insert_step(handle.id, &step, Durability::Process);
        let live = Live::new(step, None);
        handle.steps.add(&live);
        // From here on dropping it ends the row, even if the row is still on its way.
        let change = Self { inner: Arc::clone(inner), handle: Arc::clone(handle), live: Some(live) };
        row.await?;
        Ok(change)
    }

    async fn end(&mut self, end: StepEnd) {
        if let Some(live) = &self.live {
            let (number, well) = (live.step.number, end == StepEnd::Exited { code: 0 });
            finish(&self.inner, &self.handle, live, end, 0).await;
            self.live = None;
            if well {
                step_is_safe_or_said(&self.inner, &self.handle, number, None).await;
            }
        }
    }

    async fn failed(&mut self, error: LinkError) -> Error {
        let error = self.handle.link_error(error);
        self.end(StepEnd::NotStarted { code: 1, message: error.message.clone() }).await;
        error
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            let (inner, handle) = (Arc::clone(&self.inner), Arc::clone(&self.handle));
            let tasks = inner.tasks.clone();
            // A drop outside of the runtime leaves it to the next start.
            if tokio::runtime::Handle::try_current().is_ok() {
                tasks.spawn(async move { finish(&inner, &handle, &live, StepEnd::Lost, 0).await });
            }
        }
    }
}

impl Control {
    /// Attributes of a path.
    ///
    /// Errors: `file_not_found`, `computer_stopped` and the others of files, as for all here.
    pub async fn stat(&self, computer: &str, path: &[u8], follow: bool) -> Result<StatView, Error> {
        let (handle, machine) = self.enter(computer, &[path]).await?;
        let stat =
            answered(&handle, machine.link().stat(path, follow)).await.map_err(|error| handle.link_error(error))?;
        Ok(stat_view(&stat))
    }

    /// What a directory holds, to this many levels.
    pub async fn list_files(&self, computer: &str, path: &[u8], depth: u32) -> Result<Vec<StatView>, Error> {
        if depth == 0 || depth > DEPTH_MAX {
            return Err(Error::bad_request(format!("`depth`: {depth} is not from 1 to {DEPTH_MAX}")));
        }
        let (handle, machine) = self.enter(computer, &[path]).await?;
        let listed = carried(&handle, machine.link().list(path, depth)).await;
        let entries = listed.map_err(|error| handle.link_error(error))?;
        Ok(entries.iter().map(stat_view).collect())
    }

    /// Reads a file from a byte on, to the end or for a length.
    pub async fn read_file(
        &self,
        computer: &str,
        path: &[u8],
        offset: u64,
        length: Option<u64>,
    ) -> Result<(StatView, FileReader), Error> {
        let (handle, machine) = self.enter(computer, &[path]).await?;
        let opened = answered(&handle, machine.link().read(path, offset, length)).await;
        let (stat, source) = opened.map_err(|error| handle.link_error(error))?;
        Ok((stat_view(&stat), FileReader { _busy: Busy::of(&handle), handle, source, first: None }))
    }

    /// Packs a path into a tar stream.
    pub async fn tar_out(&self, computer: &str, path: &[u8], follow: bool) -> Result<FileReader, Error> {
        let (handle, machine) = self.enter(computer, &[path]).await?;
        let first = async {
            let mut source = machine.link().tar_out(path, follow).await?;
            Ok((source.next().await?, source))
        };
        let (first, source) = carried(&handle, first).await.map_err(|error| handle.link_error(error))?;
        Ok(FileReader { _busy: Busy::of(&handle), handle, source, first })
    }

    /// Watches a path; the watch is armed when this returns.
    pub async fn watch(&self, computer: &str, path: &[u8], recursive: bool) -> Result<Watcher, Error> {
        self.watcher(computer, Watch { path: path.to_owned(), recursive, plain: false }).await
    }

    /// Extended attributes of paths whose names begin with `prefix`, a list a path, without the prefix. None of what
    /// is not there.
    pub async fn attributes(&self, computer: &str, paths: &[&[u8]], prefix: &str) -> Result<Vec<Attributes>, Error> {
        let (handle, machine) = self.enter(computer, paths).await?;
        let found = carried(&handle, machine.link().attributes(paths, prefix.as_bytes())).await;
        let found = found.map_err(|error| handle.link_error(error))?;
        let named = |one: agent::DressXattr| {
            let name = one.name.get(prefix.len()..).map(text).unwrap_or_default();
            (name, one.value.map(|value| value.to_vec()).unwrap_or_default())
        };
        let of = |list: Vec<_>| Attributes { prefix: prefix.to_owned(), set: list.into_iter().map(named).collect() };
        Ok(found.into_iter().map(of).collect())
    }

    /// As [`Control::watch`], told as the kernel tells it: see `den_wire::agent::Request::Watch`.
    pub async fn watch_plain(&self, computer: &str, path: &[u8], recursive: bool) -> Result<Watcher, Error> {
        self.watcher(computer, Watch { path: path.to_owned(), recursive, plain: true }).await
    }

    async fn watcher(&self, computer: &str, watch: Watch) -> Result<Watcher, Error> {
        let (handle, machine) = self.enter(computer, &[&watch.path]).await?;
        let rests = handle.doors.rests();
        let changes = watch.arm(&handle, &machine).await?;
        Ok(Watcher { _busy: Busy::watching(&handle), handle, watch, changes, rests })
    }

    /// Writes a file.
    pub async fn write_file(&self, computer: &str, file: WriteFile, who: &Who) -> Result<FileWriter, Error> {
        let WriteFile { path, mode, owner, mtime, parents, append, in_place, attributes } = file;
        let (handle, machine) = self.enter(computer, &[&path]).await?;
        check_mode(mode)?;
        let verb = if append { "append" } else { "write" };
        let argv = vec![verb.to_owned(), text(&path)];
        let mut step = Change::begin(&self.0, &handle, argv, owner.clone(), who).await?;
        let attributes = attributes.map(|Attributes { prefix, set }| {
            let named = |(name, value): (String, Vec<u8>)| agent::DressXattr {
                name: format!("{prefix}{name}").into_bytes().into(),
                value: Some(value.into()),
            };
            agent::Attributes { set: set.into_iter().map(named).collect(), prefix: prefix.clone().into_bytes().into() }
        });
        let path = path.into();
        let file = agent::WriteFile { path, mode, owner, mtime, parents, append, in_place, attributes };
        match answered(&handle, machine.link().write(&file)).await {
            Ok(sink) => Ok(FileWriter(Sink { _busy: Busy::of(&handle), sink: Some(sink), step })),
            Err(error) => Err(step.failed(error).await),
        }
    }

    /// Unpacks a tar stream below a directory.
    pub async fn tar_in(
        &self,
        computer: &str,
        path: &[u8],
        owner: Option<String>,
        rename: Option<Vec<u8>>,
        who: &Who,
    ) -> Result<TarWriter, Error> {
        let (handle, machine) = self.enter(computer, &[path]).await?;
        let argv = vec!["unpack".to_owned(), text(path)];
        let mut step = Change::begin(&self.0, &handle, argv, owner.clone(), who).await?;
        match answered(&handle, machine.link().tar_in(path, owner.as_deref(), rename.as_deref())).await {
            Ok(sink) => Ok(TarWriter(Sink { _busy: Busy::of(&handle), sink: Some(sink), step })),
            Err(error) => Err(step.failed(error).await),
        }
    }

    /// Makes a directory, moves, removes, sets bits or owner, links.
    pub async fn change_file(&self, computer: &str, operation: FileOperation, who: &Who) -> Result<(), Error> {
        let (argv, request) = request_of(operation)?;
        let paths: Vec<&[u8]> = argv[1..].iter().map(String::as_bytes).collect();
        let (handle, machine) = self.enter(computer, &paths).await?;
        let mut step = Change::begin(&self.0, &handle, argv, None, who).await?;
        match carried(&handle, machine.link().change(&request)).await {
            Ok(()) => {
                step.end(StepEnd::Exited { code: 0 }).await;
                Ok(())
            }
            Err(error) => Err(step.failed(error).await),
        }
    }

    /// Lets a file operation in, with paths that Linux can have.
    async fn enter(&self, computer: &str, paths: &[&[u8]]) -> Result<(Arc<Handle>, Awake), Error> {
        let handle = self.0.registry.find(computer)?;
        for path in paths {
            if path.is_empty() {
                return Err(Error::bad_request("`path` is empty"));
            }
            if path.contains(&0) {
                return Err(Error::bad_request("`path` has a zero byte in it"));
            }
        }
        let awake = handle.awake().await?;
        Ok((handle, awake))
    }
}

/// The words of the step, the operation first, and what the agent is asked.
fn request_of(operation: FileOperation) -> Result<(Vec<String>, Request), Error> {
    let bytes = |text: &String| text.clone().into_bytes().into();
    let words = |verb: &str, rest: &[&String]| {
        std::iter::once(verb.to_owned()).chain(rest.iter().map(|&word| word.clone())).collect::<Vec<String>>()
    };
    Ok(match operation {
        FileOperation::Mkdir { path, mode, parents, owner } => {
            let mode = mode.as_deref().map(octal).transpose()?;
            (words("mkdir", &[&path]), Request::MakeDir { path: bytes(&path), mode, parents, owner })
        }
        FileOperation::Move { from, to } => {
            (words("move", &[&from, &to]), Request::Move { from: bytes(&from), to: bytes(&to) })
        }
        FileOperation::Remove { path, recursive } => {
            (words("remove", &[&path]), Request::Remove { path: bytes(&path), recursive })
        }
        FileOperation::Chmod { path, mode, recursive } => {
            let mode_bits = octal(&mode)?;
            (words("chmod", &[&mode, &path]), Request::Chmod { path: bytes(&path), mode: mode_bits, recursive })
        }
        FileOperation::Chown { path, owner, recursive } => {
            (words("chown", &[&owner, &path]), Request::Chown { path: bytes(&path), owner, recursive })
        }
        FileOperation::Symlink { path, target } => {
            (words("symlink", &[&target, &path]), Request::Symlink { path: bytes(&path), target: bytes(&target) })
        }
    })
}

/// Reads `0644`, `644`, `4755`.
fn octal(text: &str) -> Result<u32, Error> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o7777 && !text.starts_with('+'));
    mode.ok_or_else(|| Error::bad_request(format!("`mode`: `{text}` is no octal number from 0 to 7777")))
}

fn check_mode(mode: Option<u32>) -> Result<(), Error> {
    match mode {
        Some(mode) if mode > 0o7777 => Err(Error::bad_request(format!("`mode`: {mode:o} is above 7777"))),
        _ => Ok(()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Attributes as they are shown.
pub(crate) fn stat_view(stat: &FileStat) -> StatView {
    let kind = match stat.mode & 0o170_000 {
        0o040_000 => "directory",
        0o120_000 => "symlink",
        0o010_000 => "fifo",
        0o140_000 => "socket",
        0o020_000 => "char_device",
        0o060_000 => "block_device",
        _ => "file",
    };
    let exact = std::str::from_utf8(&stat.path).is_err().then(|| BASE64.encode(&*stat.path));
    StatView {
        path: text(&stat.path),
        path_base64: exact,
        kind: kind.to_owned(),
        mode: format!("{:04o}", stat.mode & 0o7777),
        uid: stat.uid,
        gid: stat.gid,
        user: stat.user.clone(),
        group: stat.group.clone(),
        size: stat.size,
        allocated: stat.blocks.saturating_mul(512),
        mtime: stat.mtime,
        target: stat.target.as_ref().map(|target| text(target)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        for (text, expected) in [("0644", Some(0o644)), ("755", Some(0o755)), ("7777", Some(0o7777))] {
            assert_eq!(octal(text).ok(), expected, "{text}");
        }
        for bad in ["", "8", "0x1ff", "-1", "+7", "10000", "rwx"] {
            assert_eq!(octal(bad).err().map(|error| error.code), Some("bad_request"), "{bad}");
        }
    }

    #[test]
    fn a_path_that_is_no_text_is_shown_twice() {
        let stat = FileStat {
            path: b"/a\xff".to_vec().into(),
            mode: 0o120_777,
            uid: 1,
            gid: 2,
            size: 3,
            mtime: 4,
            target: Some(b"b".to_vec().into()),
            user: None,
            group: None,
            inode: 5,
            links: 1,
            blocks: 8,
        };
        let view = stat_view(&stat);
        assert_eq!((view.path.as_str(), view.path_base64.as_deref()), ("/a\u{fffd}", Some("L2H/")));
        assert_eq!((view.kind.as_str(), view.mode.as_str(), view.allocated), ("symlink", "0777", 4096));
    }
}
