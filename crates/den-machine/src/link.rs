//! Talking to the agent: one connection an operation. The exchange of each is in
//! `den_wire::agent`.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use den_sys::socket;
use den_wire::agent::{
    APPLY_OPS_MAX, ATTRIBUTES_PATHS_MAX, ApplyOp, Change, DressXattr, End, Exec, Failure, FailureKind, FileStat, Hello,
    Input, Listening, Reply, Request, SignalScope, WriteFile,
};
use den_wire::frame::{HEAD_BYTES, message_bytes};
use den_wire::{DATA_CHUNK_BYTES, FrameKind, WireError, read_frame, write_end, write_frame, write_message};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub use self::apply::ApplyContent;

mod apply;
#[cfg(test)]
mod tests;

/// Nothing was done, for it would have to wait.
const AGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();

/// How long to wait, in milliseconds, each time that the agent has no place for a connection: 5 s in all.
const QUEUE_PAUSES: [u64; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1500, 1500];

/// What the kernel holds of data on its way in: two frames, so that one is sent while one is taken.
const SINK_BUFFER_BYTES: usize = 2 * DATA_CHUNK_BYTES;

/// The longest answer to `Rest`: a failure with its words.
const REST_ANSWER_BYTES_MAX: usize = 4 << 10;

/// How long the agent may take to rest: it waits some seconds for what goes on inside, and for its threads.
const REST_MAX: Duration = Duration::from_secs(15);

/// How long the agent may take nothing of what [`Link::apply`] sends.
const APPLY_TAKE_MAX: Duration = Duration::from_secs(60);

/// How long the agent may be at the changes of [`Link::apply`] once it has them all.
const APPLY_DONE_MAX: Duration = Duration::from_secs(300);

/// The most sockets that [`Link::ports`] takes; an agent that says more is broken.
pub const LISTENING_MAX: usize = 20_000;

/// The most entries that [`Link::list`] takes, and their most bytes of paths and targets: all of them are in
/// memory at once, and how many there are is up to whoever fills the disk, or has replaced the agent.
pub const ENTRIES_MAX: usize = 200_000;
/// See [`ENTRIES_MAX`].
pub const ENTRIES_BYTES_MAX: usize = 64 << 20;

/// To the agent of one computer. Connects anew for each operation.
#[derive(Debug, Clone)]
pub struct Link {
    path: std::sync::Arc<PathBuf>,
}

/// Why an operation inside was not done.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The agent said so.
    #[error("{} ({:?})", .0.subject, .0.kind)]
    Failed(Failure),
    /// The agent is gone, or speaks nonsense.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It is there, and says nothing.
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// It has more to say than is taken.
    #[error("more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much is taken.
        limit: usize,
    },
    /// Nobody listens.
    #[error("no agent at {}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> Self {
        Self::Wire(error.into())
    }
}

/// A running step: what comes from it and what goes to it.
pub struct StepLink {
    /// From it.
    pub events: StepEvents,
    /// To it.
    pub input: StepInput,
    /// Its first process, as it is numbered inside; none of a command that was over at once, or could not be started.
    pub pid: Option<u32>,
}

/// News of a running step.
pub struct StepEvents {
    read: BufReader<OwnedReadHalf>,
    /// The end of a command that could not be started.
    first: Option<StepEvent>,
}

/// What goes to a running step. Dropping it closes the step's standard input.
pub struct StepInput(OwnedWriteHalf);

/// News of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepEvent {
    /// Its log has grown.
    Progress {
        /// Length of the log file, in bytes.
        log_bytes: u64,
        /// Bytes of output, cut ones included.
        output_bytes: u64,
    },
    /// It has ended and its log is complete.
    Ended {
        /// How.
        end: End,
        /// Length of the log file, in bytes.
        log_bytes: u64,
        /// Bytes of output, cut ones included.
        output_bytes: u64,
    },
}

/// Data on its way out.
pub struct DataSource(
    BufReader<OwnedReadHalf>,
    #[expect(dead_code, reason = "closing it would end the operation")] OwnedWriteHalf,
);

/// Data on its way in. Dropping it without [`DataSink::finish`] abandons the operation.
pub struct DataSink {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

/// Changes under a watch.
pub struct Changes(
    BufReader<OwnedReadHalf>,
    #[expect(dead_code, reason = "closing it would end the watch")] OwnedWriteHalf,
);

type Halves = (BufReader<OwnedReadHalf>, OwnedWriteHalf);

impl Link {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path: std::sync::Arc::new(path) }
    }

    async fn connect(&self) -> Result<OwnedFd, LinkError> {
        let mut pauses = QUEUE_PAUSES.iter();
        loop {
            match socket::connect_stream(&self.path) {
                Ok(socket) => return Ok(socket),
                // connect(2) on a unix socket that does not wait: the listener's queue is full.
                Err(error) if error.errno == AGAIN => match pauses.next() {
                    Some(&pause) => tokio::time::sleep(Duration::from_millis(pause)).await,
                    None => return Err(LinkError::Connect { path: self.path.to_path_buf(), source: error.to_io() }),
                },
                Err(error) => {
                    return Err(LinkError::Connect { path: self.path.to_path_buf(), source: error.to_io() });
                }
            }
        }
    }

    /// Connects and sends a request, with a descriptor beside it. Both are done before the runtime is told of the
    /// socket: neither waits as a rule, and the agent finds the request when it wakes.
    async fn ask(&self, request: &Request, beside: Option<BorrowedFd<'_>>) -> Result<UnixStream, LinkError> {
        let socket = self.connect().await?;
        let bytes = message_bytes(request);
        let sent = socket::send(&socket, &bytes, beside.as_slice()).map_err(|error| error.to_io())?;
        let mut stream = UnixStream::from_std(socket.into())?;
        stream.write_all(&bytes[sent..]).await?;
        Ok(stream)
    }

    async fn open(&self, request: &Request) -> Result<Halves, LinkError> {
        let (read, write) = self.ask(request, None).await?.into_split();
        Ok((BufReader::new(read), write))
    }

    /// One request, one answer; `Failed` is an error.
    async fn call(&self, request: &Request) -> Result<Reply, LinkError> {
        let (mut read, _write) = self.open(request).await?;
        reply(&mut read).await
    }

    /// Who is there?
    pub async fn hello(&self) -> Result<Hello, LinkError> {
        match self.call(&Request::Hello { version: den_wire::VERSION }).await? {
            Reply::Hello(hello) => Ok(hello),
            _ => Err(unexpected()),
        }
    }

    /// Runs a command whose output goes to `log`. Returns once it runs, or could not be started: then
    /// the first event is its end.
    pub async fn exec(&self, exec: &Exec, log: BorrowedFd<'_>) -> Result<StepLink, LinkError> {
        started(self.ask(&Request::Exec(exec.clone()), Some(log)).await?).await
    }

    /// Joins a running step.
    pub async fn attach(&self, step: u64) -> Result<StepLink, LinkError> {
        started(self.ask(&Request::Attach { step }, None).await?).await
    }

    /// Sends a signal to a running step.
    pub async fn signal(&self, step: u64, signal: i32, scope: SignalScope) -> Result<(), LinkError> {
        self.change(&Request::Signal { step, signal, scope }).await
    }

    /// Asks for the end of everything inside, SIGKILL after `grace`. The machine dies a little later.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), LinkError> {
        self.change(&Request::Shutdown { grace_ms: grace.as_millis() as u64 }).await
    }

    /// A request that is answered with `Done`.
    pub async fn change(&self, request: &Request) -> Result<(), LinkError> {
        match self.call(request).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Attributes of a path.
    pub async fn stat(&self, path: &[u8], follow: bool) -> Result<FileStat, LinkError> {
        match self.call(&Request::Stat { path: path.to_vec().into(), follow }).await? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(unexpected()),
        }
    }

    /// What a directory holds, to this depth. `TooMuch` beyond [`ENTRIES_MAX`] and [`ENTRIES_BYTES_MAX`].
    pub async fn list(&self, path: &[u8], depth: u32) -> Result<Vec<FileStat>, LinkError> {
        let (mut read, _write) = self.open(&Request::List { path: path.to_vec().into(), depth }).await?;
        let (mut all, mut bytes) = (Vec::new(), 0);
        let too_much = |what, limit| LinkError::TooMuch { what, limit };
        loop {
            match reply(&mut read).await? {
                // Each message says at least one: who sends empty ones is no agent.
                Reply::Entries(entries) if entries.is_empty() => return Err(unexpected()),
                Reply::Entries(mut entries) => {
                    bytes += entries.iter().map(text_bytes).sum::<usize>();
                    all.append(&mut entries);
                    if all.len() > ENTRIES_MAX {
                        return Err(too_much("entries", ENTRIES_MAX));
                    }
                    if bytes > ENTRIES_BYTES_MAX {
                        return Err(too_much("bytes of names and links", ENTRIES_BYTES_MAX));
                    }
                }
                Reply::Done => return Ok(all),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Reads a file: its attributes, then its bytes.
    pub async fn read(
        &self,
        path: &[u8],
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileStat, DataSource), LinkError> {
        let (mut read, write) = self.open(&Request::Read { path: path.to_vec().into(), offset, length }).await?;
        match reply(&mut read).await? {
            Reply::Stat(stat) => Ok((stat, DataSource(read, write))),
            _ => Err(unexpected()),
        }
    }

    /// Writes a file. It appears, whole, when the sink is finished.
    pub async fn write(&self, file: &WriteFile) -> Result<DataSink, LinkError> {
        let (read, write) = self.open(&Request::Write(file.clone())).await?;
        Ok(DataSink::new(read, write))
    }

    /// Packs a path into a tar stream.
    pub async fn tar_out(&self, path: &[u8], follow: bool) -> Result<DataSource, LinkError> {
        let (read, write) = self.open(&Request::TarOut { path: path.to_vec().into(), follow }).await?;
        Ok(DataSource(read, write))
    }

    /// Unpacks a tar stream.
    pub async fn tar_in(&self, path: &[u8], owner: Option<&str>, rename: Option<&[u8]>) -> Result<DataSink, LinkError> {
        let request = Request::TarIn {
            path: path.to_vec().into(),
            owner: owner.map(str::to_owned),
            rename: rename.map(|name| name.to_vec().into()),
        };
        let (read, write) = self.open(&request).await?;
        Ok(DataSink::new(read, write))
    }

    /// Watches a path. Returns once the watch is armed.
    pub async fn watch(&self, path: &[u8], recursive: bool, plain: bool) -> Result<Changes, LinkError> {
        let (mut read, write) = self.open(&Request::Watch { path: path.to_vec().into(), recursive, plain }).await?;
        match reply(&mut read).await? {
            Reply::Done => Ok(Changes(read, write)),
            _ => Err(unexpected()),
        }
    }

    /// Applies many changes, all or none, as `step`: see [`Request::Apply`]. `content` is asked, in
    /// order, for what each `File` of `ops` will hold, by its index.
    ///
    /// It runs to its end on a thread of its own also when this future is dropped. Errors:
    /// `ChangedMeanwhile` and `NoSpace`, as all others, leave everything as it was; only `HalfDone`, and
    /// an agent that is gone, do not.
    pub async fn apply<C>(&self, step: u64, ops: Vec<ApplyOp>, content: C) -> Result<(), LinkError>
    where
        C: FnMut(usize) -> std::io::Result<ApplyContent> + Send + 'static,
    {
        if ops.len() as u64 > APPLY_OPS_MAX {
            let subject = format!("{} changes at once; at most {APPLY_OPS_MAX}", ops.len());
            return Err(LinkError::Failed(Failure { kind: FailureKind::BadRequest, subject, errno: None }));
        }
        let stream = std::os::unix::net::UnixStream::from(self.connect().await?);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&stream, SINK_BUFFER_BYTES);
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(APPLY_TAKE_MAX))?;
        stream.set_read_timeout(Some(APPLY_DONE_MAX))?;
        tokio::task::spawn_blocking(move || apply::apply(stream, step, &ops, content))
            .await
            .map_err(std::io::Error::other)?
    }

    /// Has everything inside written out, and what can be frozen stand still while this is held. `None` from an agent
    /// that cannot.
    pub async fn sync(&self) -> Result<Option<Synced>, LinkError> {
        let (mut read, write) = self.open(&Request::Sync).await?;
        match reply(&mut read).await {
            Ok(Reply::Done) => Ok(Some(Synced((read, write)))),
            Ok(_) => Err(unexpected()),
            Err(LinkError::Failed(failure)) if failure.kind == FailureKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the agent let go of all that is the host's; see [`Request::Rest`]. Returns where the calls of programs inside
    /// arrive, if they do, to be given back by [`Link::calls`].
    ///
    /// Errors: it may rest nevertheless, or have let go of logs; see [`crate::Machine::come_back`].
    pub async fn rest(&self) -> Result<Option<OwnedFd>, LinkError> {
        tokio::time::timeout(REST_MAX, self.rests()).await.unwrap_or(Err(LinkError::Silent(REST_MAX)))
    }

    async fn rests(&self) -> Result<Option<OwnedFd>, LinkError> {
        let mut stream = self.ask(&Request::Rest, None).await?;
        let (mut bytes, mut beside) = (vec![0; HEAD_BYTES + REST_ANSWER_BYTES_MAX], Vec::new());
        let length = loop {
            stream.readable().await?;
            let received = stream.try_io(tokio::io::Interest::READABLE, || {
                socket::receive(&stream, &mut bytes, &mut beside).map_err(|error| error.to_io())
            });
            match received {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                other => break other?,
            }
        };
        match read_reply(&mut &bytes[..length]).await? {
            Reply::Done => {}
            _ => return Err(unexpected()),
        }
        // Its end is the agent's last word.
        let mut rest = [0];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await? > 0 {}
        Ok(beside.pop())
    }

    /// Shows its programs their share again, and has their calls answered that arrive there.
    pub async fn calls(&self, calls: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
        self.told(&Request::Calls, calls).await
    }

    /// Gives a step its log again.
    pub async fn relog(&self, step: u64, log: BorrowedFd<'_>) -> Result<(), LinkError> {
        self.told(&Request::Relog { step }, Some(log)).await
    }

    async fn told(&self, request: &Request, beside: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
        let mut stream = self.ask(request, beside).await?;
        match read_reply(&mut stream).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Has an agent that rests listen to `listener`; `stream` leads to where it waits.
    pub(crate) async fn wake(stream: OwnedFd, listener: BorrowedFd<'_>) -> Result<(), LinkError> {
        let bytes = message_bytes(&Request::Wake);
        let sent = socket::send(&stream, &bytes, &[listener]).map_err(|error| error.to_io())?;
        let mut stream = UnixStream::from_std(stream.into())?;
        stream.write_all(&bytes[sent..]).await?;
        match read_reply(&mut stream).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Where the agent listens.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Extended attributes of paths whose names begin with `prefix`: name and value, a list a path.
    pub async fn attributes(&self, paths: &[&[u8]], prefix: &[u8]) -> Result<Vec<Vec<DressXattr>>, LinkError> {
        let mut all = Vec::with_capacity(paths.len());
        for some in paths.chunks(ATTRIBUTES_PATHS_MAX) {
            let paths = some.iter().map(|path| path.to_vec().into()).collect();
            match self.call(&Request::Attributes { paths, prefix: prefix.to_vec().into() }).await? {
                Reply::Attributes(mut found) if found.len() == some.len() => all.append(&mut found),
                _ => return Err(unexpected()),
            }
        }
        Ok(all)
    }

    /// What listens inside, in no order.
    pub async fn ports(&self) -> Result<Vec<Listening>, LinkError> {
        let (mut read, _write) = self.open(&Request::Ports).await?;
        let mut all = Vec::new();
        loop {
            match reply(&mut read).await? {
                Reply::Ports(mut some) if all.len() + some.len() <= LISTENING_MAX => all.append(&mut some),
                Reply::Done => return Ok(all),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Connects to a TCP port inside. What follows on the stream is the connection's own bytes; how ends
    /// and resets travel is said at [`Request::Dial`].
    pub async fn dial(&self, port: u16) -> Result<UnixStream, LinkError> {
        let mut stream = self.ask(&Request::Dial { port }, None).await?;
        // Unbuffered: bytes after the answer belong to the connection.
        match read_reply(&mut stream).await? {
            Reply::Done => Ok(stream),
            _ => Err(unexpected()),
        }
    }
}

/// What is inside is written out, and part of it may stand still until this is dropped.
pub struct Synced(#[expect(dead_code, reason = "closing it lets what is frozen go on")] Halves);

async fn started(stream: UnixStream) -> Result<StepLink, LinkError> {
    let (read, write) = stream.into_split();
    let mut read = BufReader::new(read);
    let (pid, first) = match reply(&mut read).await? {
        Reply::Started { pid } => (Some(pid), None),
        Reply::Ended { end, log_bytes, output_bytes } => {
            (None, Some(StepEvent::Ended { end, log_bytes, output_bytes }))
        }
        _ => return Err(unexpected()),
    };
    Ok(StepLink { events: StepEvents { read, first }, input: StepInput(write), pid })
}

impl StepEvents {
    /// The next news; `Wire(Closed)` when the agent is gone.
    pub async fn next(&mut self) -> Result<StepEvent, LinkError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        loop {
            match reply(&mut self.read).await? {
                Reply::Progress { log_bytes, output_bytes } => {
                    return Ok(StepEvent::Progress { log_bytes, output_bytes });
                }
                Reply::Ended { end, log_bytes, output_bytes } => {
                    return Ok(StepEvent::Ended { end, log_bytes, output_bytes });
                }
                Reply::Started { .. } => {}
                _ => return Err(unexpected()),
            }
        }
    }
}

impl StepInput {
    /// Lets go of it without a word; the step's standard input stays as it is.
    pub fn leave(self) {
        self.0.forget();
    }

    /// Sends bytes to its standard input; waits while the command does not read.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        for chunk in bytes.chunks(DATA_CHUNK_BYTES) {
            write_frame(&mut self.0, FrameKind::Data, chunk).await?;
        }
        Ok(())
    }

    /// Ends its standard input.
    pub async fn close_stdin(&mut self) -> Result<(), LinkError> {
        Ok(write_end(&mut self.0).await?)
    }

    /// Tells its terminal another size.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), LinkError> {
        Ok(write_message(&mut self.0, &Input::Resize { rows, cols }).await?)
    }

    /// Sends it a signal, in order with its input.
    pub async fn signal(&mut self, signal: i32, scope: SignalScope) -> Result<(), LinkError> {
        Ok(write_message(&mut self.0, &Input::Signal { signal, scope }).await?)
    }
}

impl DataSource {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        let frame = read_frame(&mut self.0).await?;
        match frame.kind {
            FrameKind::Data => Ok(Some(Bytes::from(frame.payload))),
            FrameKind::End => Ok(None),
            FrameKind::Message => match frame.message()? {
                Reply::Failed(failure) => Err(LinkError::Failed(failure)),
                _ => Err(unexpected()),
            },
        }
    }
}

impl DataSink {
    fn new(read: BufReader<OwnedReadHalf>, write: OwnedWriteHalf) -> Self {
        // Beyond net.core.wmem_max; without CAP_NET_ADMIN the usual size does, only slower.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(write.as_ref(), SINK_BUFFER_BYTES);
        Self { read, write }
    }

    /// Sends bytes. An early refusal of the agent is the error.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        for chunk in bytes.chunks(DATA_CHUNK_BYTES) {
            if let Err(error) = write_frame(&mut self.write, FrameKind::Data, chunk).await {
                return Err(self.refusal().await.unwrap_or(error.into()));
            }
        }
        Ok(())
    }

    /// Says that all was sent and waits until it is done; a file's attributes for a write.
    pub async fn finish(mut self) -> Result<Option<FileStat>, LinkError> {
        if let Err(error) = write_end(&mut self.write).await {
            return Err(self.refusal().await.unwrap_or(error.into()));
        }
        match reply(&mut self.read).await? {
            Reply::Stat(stat) => Ok(Some(stat)),
            Reply::Done => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// What the agent said before it closed.
    async fn refusal(&mut self) -> Option<LinkError> {
        match reply(&mut self.read).await {
            Err(error @ LinkError::Failed(_)) => Some(error),
            _ => None,
        }
    }
}

impl Changes {
    /// The next change; `Wire(Closed)` when the agent is gone.
    pub async fn next(&mut self) -> Result<Change, LinkError> {
        match reply(&mut self.0).await? {
            Reply::Changed(change) => Ok(change),
            _ => Err(unexpected()),
        }
    }
}

async fn read_reply<R: tokio::io::AsyncRead + Unpin>(read: &mut R) -> Result<Reply, LinkError> {
    match read_frame(read).await?.message()? {
        Reply::Failed(failure) => Err(LinkError::Failed(failure)),
        other => Ok(other),
    }
}

async fn reply(read: &mut BufReader<OwnedReadHalf>) -> Result<Reply, LinkError> {
    read_reply(read).await
}

/// Bytes of an entry that are as many as the agent says.
fn text_bytes(entry: &FileStat) -> usize {
    let name = |name: &Option<String>| name.as_ref().map_or(0, String::len);
    entry.path.len() + entry.target.as_ref().map_or(0, |to| to.len()) + name(&entry.user) + name(&entry.group)
}

fn unexpected() -> LinkError {
    LinkError::Failed(Failure {
        kind: FailureKind::BadRequest,
        subject: "the agent gave another answer than the request has".to_owned(),
        errno: None,
    })
}
