//! Between the host and the agent inside a computer.
//!
//! | request | then from the host | then from the agent |
//! | --- | --- | --- |
//! | `Hello` | | `Hello` |
//! | `Exec` (with the log's descriptor) | `Input` messages, data = standard input, end = its end | `Started` or `Failed`; `Progress` as the log grows; `Ended` |
//! | `Attach` | as for `Exec` | the same, from where the step is now |
//! | `Signal` | | `Done` or `Failed` |
//! | `Shutdown` | | `Done`; then everything inside ends |
//! | `Read` | | `Stat`, data…, end; or `Failed` |
//! | `Write`, `TarIn` | data…, end | `Stat` (`Write`) or `Done` (`TarIn`) after the end; or `Failed` at any time |
//! | `TarOut` | | data…, end; or `Failed` (also after data) |
//! | `Stat` | | `Stat` or `Failed` |
//! | `List` | | `Entries`…, `Done`; or `Failed` |
//! | `MakeDir`, `Move`, `Remove`, `Chmod`, `Chown`, `Symlink` | | `Done` or `Failed` |
//! | `Watch` | | `Done` once it is armed, then `Changed`… until either side closes |
//! | `Dial` | raw bytes | `Done`, then raw bytes without frames; or `Failed` |
//! | `Ports` | | `Ports`…, `Done`; or `Failed` |
//! | `Attributes` | | `Attributes`, of each path in order; none of one that has none or is not there |
//! | `Sync` | | `Done`; what is frozen goes on when the connection closes |
//! | `Rest` | | `Done` once nothing of the host's is open any more, beside it where calls arrive; or `Failed` |
//! | `Calls` (with what came beside `Rest`'s `Done`, if anything) | | `Done` |
//! | `Wake` (with a listener beside), on [`REST_SOCKET`] | | `Done`; the next connections go to that listener |
//! | `Relog` (with the log's descriptor) | | `Done`; the step's output goes on |
//! | `Apply` | `ApplyOp` messages, each `File` followed by data…, end; then end | `Done` or `Failed` after the end; or `Failed` at any time |
//!
//! A step does not depend on its connection: when it closes, the command goes on, its standard
//! input is closed, and the log has the rest. Paths and arguments are bytes without NUL, as Linux
//! has them.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// The first frame of a connection.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Request {
    /// Who is there?
    #[n(0)]
    Hello {
        /// The host's [`crate::VERSION`].
        #[n(0)]
        version: u16,
    },
    /// Runs a command as a step.
    #[n(1)]
    Exec(#[n(0)] Exec),
    /// Joins a running step.
    #[n(2)]
    Attach {
        /// Its number.
        #[n(0)]
        step: u64,
    },
    /// Sends a signal to a running step.
    #[n(3)]
    Signal {
        /// Its number.
        #[n(0)]
        step: u64,
        /// The signal's number.
        #[n(1)]
        signal: i32,
        /// To whom.
        #[n(2)]
        scope: SignalScope,
    },
    /// Ends everything inside: SIGTERM to all, SIGKILL after the grace, then the agent exits.
    #[n(4)]
    Shutdown {
        /// Milliseconds between the two.
        #[n(0)]
        grace_ms: u64,
    },
    /// Reads a regular file.
    #[n(5)]
    Read {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// From this byte.
        #[n(1)]
        offset: u64,
        /// This many bytes at most; to the end without.
        #[n(2)]
        length: Option<u64>,
    },
    /// Writes a regular file: into a temporary one beside it, moved over it at the end.
    #[n(6)]
    Write(#[n(0)] WriteFile),
    /// Attributes of one path.
    #[n(7)]
    Stat {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// Whether a link at the end is followed.
        #[n(1)]
        follow: bool,
    },
    /// What a directory holds.
    #[n(8)]
    List {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// How many levels: 1 is the directory itself.
        #[n(1)]
        depth: u32,
    },
    /// Makes a directory.
    #[n(9)]
    MakeDir {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// Permission bits; 0o755 without.
        #[n(1)]
        mode: Option<u32>,
        /// Whether those above it are made, and one that exists is no error.
        #[n(2)]
        parents: bool,
        /// `user`, `user:group`, numbers or names.
        #[n(3)]
        owner: Option<String>,
    },
    /// Moves, also between file systems and over what is there.
    #[n(10)]
    Move {
        /// From.
        #[n(0)]
        from: ByteVec,
        /// To.
        #[n(1)]
        to: ByteVec,
    },
    /// Removes a file, link or directory.
    #[n(11)]
    Remove {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// Whether what a directory holds goes with it.
        #[n(1)]
        recursive: bool,
    },
    /// Sets permission bits.
    #[n(12)]
    Chmod {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// The bits, 0 to 0o7777.
        #[n(1)]
        mode: u32,
        /// Whether all below it too.
        #[n(2)]
        recursive: bool,
    },
    /// Sets the owner.
    #[n(13)]
    Chown {
        /// Which; a link itself is changed, not followed.
        #[n(0)]
        path: ByteVec,
        /// `user`, `user:group`, `:group`, numbers or names.
        #[n(1)]
        owner: String,
        /// Whether all below it too.
        #[n(2)]
        recursive: bool,
    },
    /// Makes a symbolic link.
    #[n(14)]
    Symlink {
        /// Where the link is.
        #[n(0)]
        path: ByteVec,
        /// What it says.
        #[n(1)]
        target: ByteVec,
    },
    /// Watches a directory or file.
    #[n(15)]
    Watch {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// Whether all below it too, those made later included.
        #[n(1)]
        recursive: bool,
        /// Whether it tells what happened to each name as the kernel tells it: a write is told at the write and not
        /// again when the file is closed, and what was moved away is moved from where it was.
        #[n(2)]
        #[cbor(default)]
        plain: bool,
    },
    /// Packs a path (a tree or one file) into a tar stream. Names in it begin with the path's last
    /// component, or with `.` for `/` and for paths that end in `/.`.
    #[n(16)]
    TarOut {
        /// Which.
        #[n(0)]
        path: ByteVec,
        /// Whether a link at the path itself is followed.
        #[n(1)]
        follow: bool,
    },
    /// Unpacks a tar stream below a directory, which is made where it is missing.
    #[n(17)]
    TarIn {
        /// Into.
        #[n(0)]
        path: ByteVec,
        /// Owner of everything in place of what the archive says.
        #[n(1)]
        owner: Option<String>,
        /// A name that the archive's first component is replaced by.
        #[n(2)]
        rename: Option<ByteVec>,
    },
    /// Connects to a TCP port inside: on the loopback of the computer, else where it is listened on.
    /// `shutdown` of one direction is the end of that direction; closing the whole connection before
    /// both have ended is a reset.
    #[n(18)]
    Dial {
        /// The port.
        #[n(0)]
        port: u16,
    },
    /// What listens inside.
    #[n(19)]
    Ports,
    /// Changes many paths: all of them, or none. See [`ApplyOp`].
    #[n(20)]
    Apply(#[n(0)] Apply),
    /// Writes out what waits inside: every file system that is mounted there, the innermost first. Those that can
    /// be are frozen, until the connection closes or [`SYNC_HOLD_MS`] have passed.
    #[n(21)]
    Sync,
    /// Lets go of all that is the host's: connections, logs of steps, the listener. Commands go on; what they write
    /// waits in their pipes. Answered with `Done`, and the connection closes last. From then on the agent listens on
    /// [`REST_SOCKET`] alone, so that it may be written down and read back elsewhere.
    #[n(30)]
    Rest,
    /// Takes the listener that is beside it. Only from the host, after `Rest`.
    #[n(31)]
    Wake,
    /// Answers the calls of its programs again that arrive at the descriptor beside it, which came beside the answer
    /// to `Rest`; without one, shows its files alone.
    #[n(33)]
    Calls,
    /// Gives a step its log again, which is beside it; it goes on where it was.
    #[n(32)]
    Relog {
        /// Its number.
        #[n(0)]
        step: u64,
    },
    /// Extended attributes of files and directories, links followed.
    #[n(60)]
    Attributes {
        /// Which, at most [`ATTRIBUTES_PATHS_MAX`].
        #[n(0)]
        paths: Vec<ByteVec>,
        /// What their names begin with.
        #[n(1)]
        prefix: ByteVec,
    },
}

/// The most paths of one [`Request::Attributes`].
pub const ATTRIBUTES_PATHS_MAX: usize = 256;

/// The abstract name of a socket in the computer's network namespace, at which an agent that rests is found.
pub const REST_SOCKET: &str = "den-agent-rests";

/// How long a file system is frozen at most after [`Request::Sync`], in milliseconds.
pub const SYNC_HOLD_MS: u64 = 10_000;

/// The most operations of one `Apply`.
pub const APPLY_OPS_MAX: u64 = 500_000;

/// The most bytes of all [`ApplyOp`] messages of one `Apply`; contents of files are not of them.
pub const APPLY_MESSAGE_BYTES_MAX: u64 = 128 << 20;

/// Many changes at once.
///
/// What files will hold is written aside first. Then every path is held against what was expected of
/// it, and only then do the changes happen, in the order in which they came. Until there nothing is
/// different but for what was put aside, which goes away again when it fails.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Apply {
    /// The step that it is; names the folder in which things are put aside, `/.den-merge-<step>`.
    #[n(0)]
    pub step: u64,
    /// How many operations follow, at most [`APPLY_OPS_MAX`].
    #[n(1)]
    pub ops: u64,
    /// The directory that is taken for `/`.
    #[n(2)]
    pub root: Option<ByteVec>,
}

/// One change. A directory is made before what goes into it, and emptied before it is removed.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct ApplyOp {
    /// Where, absolute, without `.`, `..` and links on the way.
    #[n(0)]
    pub path: ByteVec,
    /// What is there now; nothing without. What an earlier operation removes does not count.
    #[n(1)]
    pub expect: Option<Expected>,
    /// What is done.
    #[n(2)]
    pub action: ApplyAction,
}

/// What is to be done at a path. What is there gives way, unless either is a directory.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ApplyAction {
    /// A regular file, whose bytes follow.
    #[n(0)]
    File(#[n(0)] Dress),
    /// A directory, where nothing is.
    #[n(1)]
    Directory(#[n(0)] Dress),
    /// A symbolic link.
    #[n(2)]
    Symlink {
        /// What it says.
        #[n(0)]
        target: ByteVec,
        /// Its owner and time.
        #[n(1)]
        dress: Dress,
    },
    /// A named pipe.
    #[n(3)]
    Fifo(#[n(0)] Dress),
    /// A hard link to a file that is there, or that an earlier operation puts there.
    #[n(4)]
    Link {
        /// The file's path.
        #[n(0)]
        to: ByteVec,
    },
    /// Nothing: what is there is removed.
    #[n(5)]
    Remove,
    /// Attributes of what is there.
    #[n(6)]
    Dress(#[n(0)] Dress),
}

/// What is to be there before a change.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Expected {
    /// `st_mode`: type and permission bits.
    #[n(0)]
    pub mode: u32,
    /// Owner inside.
    #[n(1)]
    pub uid: u32,
    /// Group inside.
    #[n(2)]
    pub gid: u32,
    /// Bytes; not of directories.
    #[n(3)]
    pub size: Option<u64>,
    /// Modification time, nanoseconds since the epoch; not of directories.
    #[n(4)]
    pub mtime_ns: Option<i64>,
    /// Change time, nanoseconds since the epoch; not of directories.
    #[n(5)]
    pub ctime_ns: Option<i64>,
}

/// Attributes to set, in this order. What is left out stays as it is, or as it is made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Dress {
    /// Owner.
    #[n(0)]
    pub uid: Option<u32>,
    /// Group.
    #[n(1)]
    pub gid: Option<u32>,
    /// Permission bits, 0 to 0o7777.
    #[n(2)]
    pub mode: Option<u32>,
    /// Extended attributes.
    #[n(3)]
    pub xattrs: Vec<DressXattr>,
    /// Modification time, nanoseconds since the epoch.
    #[n(4)]
    pub mtime_ns: Option<i64>,
}

/// An extended attribute to set or remove.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DressXattr {
    /// Its name.
    #[n(0)]
    pub name: ByteVec,
    /// Its value; removed without.
    #[n(1)]
    pub value: Option<ByteVec>,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Exec {
    /// The step's number.
    #[n(0)]
    pub step: u64,
    /// The command and its arguments; the command is looked up in the `PATH` of `env`.
    #[n(1)]
    pub argv: Vec<ByteVec>,
    /// Where; the user's home without.
    #[n(2)]
    pub cwd: Option<ByteVec>,
    /// `K=V`, over what the agent sets itself (PATH, HOME, USER, LOGNAME, SHELL). Later ones win.
    #[n(3)]
    pub env: Vec<ByteVec>,
    /// Name or number, optionally `:group`; root without.
    #[n(4)]
    pub user: Option<String>,
    /// Whether data frames are its standard input; else it reads from /dev/null.
    #[n(5)]
    pub stdin: bool,
    /// A terminal for it.
    #[n(6)]
    pub pty: Option<Pty>,
    /// After this many milliseconds its whole process group is ended.
    #[n(7)]
    pub timeout_ms: Option<u64>,
    /// How many bytes of output the log keeps; see [`crate::log`].
    #[n(8)]
    pub keep_bytes: Option<u64>,
    /// Whether it ends with the last process of its session: when the first has ended, the others are ended.
    #[n(9)]
    #[cbor(default)]
    pub whole: bool,
    /// How many milliseconds the agent may keep back that it runs, so that one frame tells all of a short command.
    #[n(10)]
    pub patience_ms: Option<u64>,
}

/// A terminal's size and kind.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pty {
    /// Lines.
    #[n(0)]
    pub rows: u16,
    /// Columns.
    #[n(1)]
    pub cols: u16,
    /// `TERM`; `xterm-256color` without.
    #[n(2)]
    pub term: Option<String>,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct WriteFile {
    /// Which; a link at the end is followed, so that what it points to is replaced.
    #[n(0)]
    pub path: ByteVec,
    /// Permission bits; those of the file that was there, else 0o644, without.
    #[n(1)]
    pub mode: Option<u32>,
    /// `user`, `user:group`; that of the file that was there, else root, without.
    #[n(2)]
    pub owner: Option<String>,
    /// Modification time, microseconds since the epoch; now without.
    #[n(3)]
    pub mtime: Option<i64>,
    /// Whether missing directories above it are made.
    #[n(4)]
    pub parents: bool,
    /// Whether it is added to the end of what is there, in place.
    #[n(5)]
    pub append: bool,
    /// Whether what is there is emptied and written in place, as a shell's `>` does: whoever watches sees one file
    /// made, owned and written. Directories made above it get the owner too.
    #[n(6)]
    #[cbor(default)]
    pub in_place: bool,
    /// Extended attributes that it has from then on; only with `in_place`.
    #[n(7)]
    pub attributes: Option<Attributes>,
}

/// Extended attributes that take the place of all whose names begin alike.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Attributes {
    /// What the names of those that go begin with.
    #[n(0)]
    pub prefix: ByteVec,
    /// Those that come; their names begin with it too.
    #[n(1)]
    pub set: Vec<DressXattr>,
}

/// Host to agent, on the connection of a step.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Input {
    /// The terminal has another size.
    #[n(0)]
    Resize {
        /// Lines.
        #[n(0)]
        rows: u16,
        /// Columns.
        #[n(1)]
        cols: u16,
    },
    /// A signal.
    #[n(1)]
    Signal {
        /// Its number.
        #[n(0)]
        signal: i32,
        /// To whom.
        #[n(1)]
        scope: SignalScope,
    },
}

/// To whom a signal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum SignalScope {
    /// The step's whole process group.
    #[n(0)]
    Group,
    /// Its first process only.
    #[n(1)]
    Process,
}

/// Agent to host.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Reply {
    /// Who is there.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// The command runs.
    #[n(1)]
    Started {
        /// Its process id inside.
        #[n(0)]
        pid: u32,
    },
    /// The log has grown. Sent at most every [`PROGRESS_INTERVAL_MS`] but once after the last byte.
    #[n(2)]
    Progress {
        /// Length of the log file, in bytes: all records up to it are whole.
        #[n(0)]
        log_bytes: u64,
        /// Bytes of output in it, cut ones included.
        #[n(1)]
        output_bytes: u64,
    },
    /// The command has ended and the log is complete.
    #[n(3)]
    Ended {
        /// How.
        #[n(0)]
        end: End,
        /// Length of the log file, in bytes.
        #[n(1)]
        log_bytes: u64,
        /// Bytes of output, cut ones included.
        #[n(2)]
        output_bytes: u64,
    },
    /// It is done.
    #[n(4)]
    Done,
    /// It was not done.
    #[n(5)]
    Failed(#[n(0)] Failure),
    /// Attributes of a path.
    #[n(6)]
    Stat(#[n(0)] FileStat),
    /// Some of what a directory holds.
    #[n(7)]
    Entries(#[n(0)] Vec<FileStat>),
    /// Something under a watch has changed.
    #[n(8)]
    Changed(#[n(0)] Change),
    /// Some of what listens.
    #[n(9)]
    Ports(#[n(0)] Vec<Listening>),
    /// Extended attributes, a list a path.
    #[n(60)]
    Attributes(#[n(0)] Vec<Vec<DressXattr>>),
}

/// The longest time that grown output waits before the host is told, in milliseconds.
pub const PROGRESS_INTERVAL_MS: u64 = 2;

/// The agent's answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The agent's [`crate::VERSION`].
    #[n(0)]
    pub version: u16,
    /// Version of the program it was built with.
    #[n(1)]
    pub build: String,
    /// Numbers of the steps that run.
    #[n(2)]
    pub running: Vec<u64>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum End {
    /// It returned this code.
    #[n(0)]
    Exited {
        /// 0 to 255.
        #[n(0)]
        code: i32,
    },
    /// A signal ended it.
    #[n(1)]
    Signaled {
        /// The signal's number.
        #[n(0)]
        signal: i32,
    },
    /// It ran past its time.
    #[n(2)]
    TimedOut,
    /// It could not be started. The words are in the log too, as standard error.
    #[n(3)]
    NotStarted {
        /// 127 not found, 126 not executable, as a shell returns.
        #[n(0)]
        code: i32,
        /// What a shell would say.
        #[n(1)]
        message: String,
    },
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Failure {
    /// What kind of reason.
    #[n(0)]
    pub kind: FailureKind,
    /// What it is about: a path, a user.
    #[n(1)]
    pub subject: String,
    /// The kernel's error number, where there is one.
    #[n(2)]
    pub errno: Option<i32>,
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum FailureKind {
    /// No such file or directory.
    #[n(0)]
    NotFound,
    /// Something is there already.
    #[n(1)]
    Exists,
    /// A directory was wanted.
    #[n(2)]
    NotADirectory,
    /// A directory was not wanted.
    #[n(3)]
    IsADirectory,
    /// The directory holds something.
    #[n(4)]
    NotEmpty,
    /// Neither file, directory nor link.
    #[n(5)]
    NotAFile,
    /// The kernel refused it to root inside.
    #[n(6)]
    PermissionDenied,
    /// The disk, or the computer's share of it, is full.
    #[n(7)]
    NoSpace,
    /// No such user or group inside.
    #[n(8)]
    NoSuchUser,
    /// The directory to run in is not there.
    #[n(9)]
    NoSuchCwd,
    /// No process or thread could be made: the limit on processes or memory is reached.
    #[n(10)]
    NoProcesses,
    /// No such step runs.
    #[n(11)]
    NoSuchStep,
    /// Nothing listens there.
    #[n(12)]
    Refused,
    /// The request makes no sense.
    #[n(13)]
    BadRequest,
    /// This agent does not know the request.
    #[n(14)]
    Unsupported,
    /// Too many links on the way.
    #[n(15)]
    LinkLoop,
    /// Another error of the kernel: see the number.
    #[n(16)]
    Other,
    /// It is not any more what it was expected to be; nothing was done.
    #[n(17)]
    ChangedMeanwhile,
    /// It failed halfway: some of it is done, some is not. The number says why.
    #[n(18)]
    HalfDone,
}

/// Attributes of a path.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct FileStat {
    /// The path; in a list, relative to what was listed.
    #[n(0)]
    pub path: ByteVec,
    /// `st_mode`: type and permission bits.
    #[n(1)]
    pub mode: u32,
    /// Owner inside.
    #[n(2)]
    pub uid: u32,
    /// Group inside.
    #[n(3)]
    pub gid: u32,
    /// Bytes.
    #[n(4)]
    pub size: u64,
    /// Modification time, microseconds since the epoch.
    #[n(5)]
    pub mtime: i64,
    /// What a symbolic link says.
    #[n(6)]
    pub target: Option<ByteVec>,
    /// The owner's name, where /etc/passwd inside has one.
    #[n(7)]
    pub user: Option<String>,
    /// The group's name, where /etc/group inside has one.
    #[n(8)]
    pub group: Option<String>,
    /// Inode number.
    #[n(9)]
    pub inode: u64,
    /// Number of hard links.
    #[n(10)]
    pub links: u64,
    /// 512-byte blocks that are allocated.
    #[n(11)]
    pub blocks: u64,
}

/// A socket that waits for others.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Listening {
    /// Which protocol.
    #[n(0)]
    pub protocol: PortProtocol,
    /// The address it is bound to: 4 bytes, or 16.
    #[n(1)]
    pub address: ByteVec,
    /// The port.
    #[n(2)]
    pub port: u16,
    /// Whose it is.
    #[n(3)]
    pub uid: u32,
    /// The process that holds it, the first of several; none where it could not be told.
    #[n(4)]
    pub pid: Option<u32>,
    /// That process's short name.
    #[n(5)]
    pub command: Option<ByteVec>,
    /// The beginning of its command line, each word ended by a NUL.
    #[n(6)]
    pub argv: Option<ByteVec>,
}

/// What a port is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum PortProtocol {
    /// A TCP socket that listens.
    #[n(0)]
    Tcp,
    /// A UDP socket that takes from anyone.
    #[n(1)]
    Udp,
}

/// A change under a watch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Change {
    /// What happened.
    #[n(0)]
    pub kind: ChangeKind,
    /// Relative to what is watched.
    #[n(1)]
    pub path: ByteVec,
    /// Where it was before, for a move within the watch; in a plain watch also for one out of it, whose path is empty.
    #[n(2)]
    pub from: Option<ByteVec>,
}

/// What happened under a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ChangeKind {
    /// A file, directory or link was made or moved in.
    #[n(0)]
    Created,
    /// Contents changed.
    #[n(1)]
    Written,
    /// Gone, or moved out.
    #[n(2)]
    Removed,
    /// Moved within the watch; `from` says from where.
    #[n(3)]
    Moved,
    /// Mode, owner or times changed.
    #[n(4)]
    Attributes,
    /// Changes were lost because they came too fast: look again.
    #[n(5)]
    Overflow,
}
