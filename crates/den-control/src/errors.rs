//! Whose fault an error is, its code, and what to do next. The one place that decides these.
//!
//! Codes are a contract; messages are not. The cause of an unexpected error is for the log only.

use std::{fmt, sync::Arc};

use den_disk::DiskError;
use den_history::HistoryError;
use den_image::ImageError;
use den_machine::{LinkError, MachineError};
use den_model::{
    Amount, Bytes, ComputerName, NameError, PoolName, Refused, Short, SizeError, State, StateName, VolumeName,
};
use den_store::StoreError;
use den_wire::agent::{Failure, FailureKind};

/// Why a request was not done.
#[derive(Debug, Clone)]
pub struct Error {
    /// Stable, for programs.
    pub code: &'static str,
    /// The HTTP status that fits.
    pub status: u16,
    /// One sentence with the values.
    pub message: String,
    /// What to try next.
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// What lies beneath. Not for the client where the code is `internal`.
    pub cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

impl Error {
    /// An error of this code.
    pub fn new(code: &'static str, status: u16, message: impl Into<String>) -> Self {
        Self { code, status, message: message.into(), hint: None, retryable: false, cause: None }
    }

    /// A request that makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new("bad_request", 400, message)
    }

    /// Something that should not have happened.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("internal", 500, message)
    }

    /// The same with what to try next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as something that may succeed later.
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The same with what lies beneath.
    pub fn because(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// The message with every cause, for logs and for a computer's `reason`.
    pub fn chain(&self) -> String {
        chain(self)
    }

    pub(crate) fn computer_not_found(text: &str) -> Self {
        Self::new("computer_not_found", 404, format!("there is no computer `{text}`"))
            .hint("`den ls` lists those there are")
    }

    pub(crate) fn trashed(name: &ComputerName) -> Self {
        Self::new("computer_trashed", 404, format!("`{name}` is in the trash"))
            .hint(format!("`den undo {name}` brings it back; its log, files and states can be read as it lies there"))
    }

    pub(crate) fn pool_not_found(name: &str) -> Self {
        Self::new("pool_not_found", 404, format!("there is no pool `{name}`"))
            .hint("`den pool ls` lists the pools, `den pool new` makes one")
    }

    pub(crate) fn pool_full(name: &PoolName, short: &Short) -> Self {
        let (what, left) = (short.what, short.what.text(short.left()));
        let (limit, wanted) = (what.text(short.limit), what.text(short.wanted));
        let message = format!("the pool `{name}` is full: {wanted} wanted, {left} left of {limit}");
        let room = match what {
            Amount::Computers => "remove computers of it (`den rm`)",
            Amount::Memory => "stop or remove computers of it (`den stop`, `den rm`)",
            Amount::Disk => "remove computers of it for good (`den rm --now`, `den trash empty`)",
        };
        Self::new("pool_full", 409, message)
            .hint(format!("{room}, ask for less, or give it more with `den pool set {name} --{what}`"))
            .retryable()
    }

    pub(crate) fn pool_too_small(name: &PoolName, short: &Short) -> Self {
        let (limit, wanted) = (short.what.text(short.limit), short.what.text(short.wanted));
        Self::new("pool_too_small", 409, format!("{limit} is too little for the pool `{name}`: {wanted} is taken"))
            .hint(format!("stop or remove computers of it first; `den pool info {name}` shows what is taken"))
    }

    pub(crate) fn pool_in_use(name: &PoolName, computers: u64, trashed: u64) -> Self {
        let message = match trashed {
            0 => format!("the pool `{name}` has {computers} computers in it"),
            _ => format!("the pool `{name}` has {computers} computers in it, {trashed} of them in the trash"),
        };
        Self::new("pool_in_use", 409, message)
            .hint("remove them for good first: `den rm --now`, and `den trash empty` for what lies in the trash")
    }

    pub(crate) fn volume_not_found(text: &str) -> Self {
        Self::new("volume_not_found", 404, format!("there is no shared volume `{text}`"))
            .hint("`den volume ls` lists them, `den volume new` makes one")
    }

    pub(crate) fn volume_exists(name: &VolumeName) -> Self {
        Self::new("volume_exists", 409, format!("there is a shared volume `{name}` already"))
            .hint(format!("take another name; `den volume info {name}` shows that one"))
    }

    pub(crate) fn volume_in_use(name: &VolumeName, computers: &[String]) -> Self {
        let who = computers.iter().map(|computer| format!("`{computer}`")).collect::<Vec<_>>().join(", ");
        Self::new("volume_in_use", 409, format!("the shared volume `{name}` is mounted by {who}"))
            .hint("remove them for good first: `den rm --now`, and `den trash empty` for what lies in the trash")
    }

    pub(crate) fn step_not_found(name: &ComputerName, number: u64) -> Self {
        Self::new("step_not_found", 404, format!("`{name}` has no step {number}"))
            .hint(format!("`den log {name}` lists its steps"))
    }

    pub(crate) fn step_ended(name: &ComputerName, number: u64) -> Self {
        Self::new("step_ended", 409, format!("step {number} of `{name}` has ended"))
            .hint(format!("`den log {name} {number}` shows its output"))
    }

    pub(crate) fn name_taken(name: &ComputerName, holder: impl fmt::Display) -> Self {
        Self::new("name_taken", 409, format!("the name `{name}` is taken by {holder}"))
            .hint(format!("take another name, or remove that one with `den rm {name}`"))
    }

    pub(crate) fn bad_size(field: &str, error: &SizeError) -> Self {
        Self::new("bad_size", 400, format!("`{field}`: {error}")).because(error.clone())
    }

    pub(crate) fn size_below(field: &str, given: impl fmt::Display, least: impl fmt::Display) -> Self {
        Self::new("bad_size", 400, format!("`{field}`: {given} is below the least of {least}"))
    }

    pub(crate) fn bad_name(field: &str, error: &NameError) -> Self {
        Self::new("bad_name", 400, format!("`{field}`: {error}"))
            .hint("a computer's name is 1 to 63 of a-z, 0-9 and `-`, with no `-` at its ends")
    }

    pub(crate) fn idempotency_mismatch(key: &str) -> Self {
        Self::new("idempotency_mismatch", 422, format!("the idempotency key `{key}` was used for another request"))
            .hint("take a new key for a new request")
    }

    pub(crate) fn refused(name: &ComputerName, refused: Refused) -> Self {
        use den_model::Request;
        match (refused.state, refused.request) {
            (State::Removing, _) => Self::computer_not_found(name.as_str()),
            (State::Unplugged, _) => Self::unplugged(name),
            (State::Paused, request @ (Request::Use | Request::Start)) => {
                Self::new("wrong_state", 409, format!("`{name}` is paused, and so does not take `{request}`"))
                    .hint(format!("`den resume {name}` lets it go on"))
            }
            (State::Trashed, _) => Self::trashed(name),
            (state @ (State::Stopped | State::Failed), Request::Use) => {
                Self::new("computer_stopped", 409, format!("`{name}` is {state}"))
                    .hint(format!("start it with `den start {name}`"))
            }
            (state, request) => {
                let error =
                    Self::new("wrong_state", 409, format!("`{name}` is {state}, and so does not take `{request}`"));
                match state {
                    State::Creating | State::Starting | State::Stopping => error.retryable(),
                    _ => error,
                }
            }
        }
        .because(refused)
    }

    pub(crate) fn unplugged(name: &ComputerName) -> Self {
        Self::new("unplugged", 409, format!("`{name}` is unplugged: it stands still, and takes nothing"))
            .hint(format!("`den replug {name}` takes it back; its log, files, states and flows may be read"))
    }

    /// States that hold memory are not kept.
    pub(crate) fn unsupported_memory_state(name: &ComputerName) -> Self {
        let message = format!("a state of `{name}` with its memory cannot be kept: this Den keeps disks alone");
        Self::new("unsupported", 501, message).hint(format!(
            "without --memory it has the disk; `den fork {name} --memory` makes another one with what runs, and \
             `den pause --to-disk` keeps that"
        ))
    }

    /// Why a fork has no memory.
    pub(crate) fn unsupported_memory_fork(name: &ComputerName, why: &str) -> Self {
        let message = format!("a fork of `{name}` with its memory cannot be made: {why}");
        Self::new("unsupported", 501, message).hint("without --memory it has the disk, and services start again")
    }

    /// Why the memory of a computer stays in memory.
    pub(crate) fn unsupported_memory(name: &ComputerName, why: &str) -> Self {
        let message = format!("the memory of `{name}` cannot be written to the disk: {why}");
        Self::new("unsupported", 501, message)
            .hint(format!("`den pause {name}` keeps it in memory; `den stop {name}` keeps the disk alone"))
    }

    pub(crate) fn restoring(name: &ComputerName, state: &StateName) -> Self {
        Self::new(
            "wrong_state",
            409,
            format!("`{name}` is being taken back to `{state}`, and takes nothing until then"),
        )
        .retryable()
    }

    pub(crate) fn log_damaged(name: &ComputerName, number: u64, at: u64) -> Self {
        Self::new(
            "log_damaged",
            500,
            format!("the log of step {number} of `{name}` holds no record at byte {at}: something inside wrote to it"),
        )
    }

    pub(crate) fn shutting_down() -> Self {
        Self::new("shutting_down", 503, "the daemon is ending").hint("start it again with `den serve`").retryable()
    }

    /// What the agent of `name` answered, or that it did not.
    pub(crate) fn link(name: &ComputerName, error: LinkError) -> Self {
        match error {
            LinkError::Failed(failure) => Self::failure(name, &failure),
            LinkError::Silent(waited) => {
                let waited = waited.as_secs();
                Self::new("agent_lost", 502, format!("the agent in `{name}` does not answer, for {waited} s now"))
                    .hint(format!(
                        "`den info {name}` shows what it uses; `den stop {name}` ends it, and its disk stays"
                    ))
                    .retryable()
                    .because(error)
            }
            LinkError::TooMuch { what, limit } => {
                Self::new("too_large", 413, format!("`{name}` has more than {limit} {what} there"))
                    .hint("list fewer levels, or a folder further down")
            }
            other => Self::new("agent_lost", 502, format!("the agent in `{name}` is not to be reached"))
                .hint(format!("`den info {name}` shows whether it still runs"))
                .retryable()
                .because(other),
        }
    }

    fn failure(name: &ComputerName, failure: &Failure) -> Self {
        use FailureKind as K;
        let subject = &failure.subject;
        let is = |code, status, what: &str| Self::new(code, status, format!("`{subject}` in `{name}`: {what}"));
        match failure.kind {
            K::NotFound => is("file_not_found", 404, "no such file or directory"),
            K::Exists => is("file_exists", 409, "it exists already"),
            K::NotADirectory => is("not_a_directory", 400, "not a directory"),
            K::IsADirectory => is("is_a_directory", 400, "it is a directory"),
            K::NotEmpty => is("not_empty", 409, "the directory is not empty").hint("remove it with `recursive`"),
            K::NotAFile => is("not_a_file", 400, "neither a file, a directory nor a link"),
            K::PermissionDenied => is("permission_denied", 403, "the kernel refused it even to root inside"),
            K::NoSpace => is("disk_full", 507, "no room is left on the computer's disk")
                .hint(format!("make room in `{name}`, or make a computer with a larger `--disk`")),
            K::NoSuchUser => is("no_such_user", 400, "no such user or group inside"),
            K::NoSuchCwd => is("no_such_cwd", 400, "no such directory to run in"),
            K::NoProcesses => Self::new(
                "no_processes",
                503,
                format!("`{name}` can make no further process: its limit on processes or memory is reached"),
            )
            .hint("end some of its processes, or make a computer with a larger `--pids` or `--memory`")
            .retryable(),
            K::NoSuchStep => Self::new("step_ended", 409, format!("the step in `{name}` has ended")),
            K::Refused => is("port_refused", 502, "nothing listens there")
                .hint(format!("`den ports {name}` shows what does"))
                .retryable(),
            K::BadRequest => is("bad_request", 400, "the request makes no sense"),
            K::Unsupported => Self::new("unsupported", 501, format!("the agent in `{name}` is too old for this"))
                .hint(format!("`den stop {name}` and `den start {name}` give it the present one")),
            K::LinkLoop => is("bad_request", 400, "too many symbolic links on the way"),
            K::ChangedMeanwhile => {
                is("changed_meanwhile", 409, "it was changed while the merge was made").hint("merge again").retryable()
            }
            K::HalfDone => {
                is("merge_broken", 500, "the merge failed halfway").hint("restore the state that was kept before it")
            }
            // EINVAL, ENAMETOOLONG, EBUSY.
            K::Other => match failure.errno {
                Some(22) => is("bad_request", 400, "the kernel does not take this"),
                Some(36) => is("bad_request", 400, "a name of more than 255 bytes, or a path of 4096"),
                Some(16) => is("permission_denied", 403, "it is in use, as what is mounted is"),
                Some(errno) => {
                    let words = std::io::Error::from_raw_os_error(errno);
                    Self::new("file_failed", 500, format!("`{subject}` in `{name}`: {words}"))
                }
                None => is("file_failed", 500, "it failed"),
            },
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NameTaken { name, holder } => Self::name_taken(name, holder),
            StoreError::IdempotencyMismatch { key } => Self::idempotency_mismatch(key),
            StoreError::NoSuchComputer { computer } => Self::computer_not_found(&computer.to_string()),
            StoreError::Full { .. } => {
                Self::new("host_full", 507, error.to_string()).hint("make room on the disk of the data folder")
            }
            StoreError::Locked { .. } => Self::new("store_locked", 409, error.to_string())
                .hint("another `den serve` uses this data folder; end it, or take another one with `--data`"),
            StoreError::Newer { .. } => {
                Self::new("store_newer", 500, error.to_string()).hint("use the newer Den that wrote it")
            }
            StoreError::Corrupt { .. } | StoreError::Foreign { .. } => Self::new(error.code(), 500, error.to_string())
                .hint(
                    "nothing was written; put your last copy of `den.db*` in its place, docs/OPERATIONS.md says more",
                ),
            StoreError::Missing { .. } => Self::new("store_missing", 500, error.to_string()).hint(
                "put your last copy of `den.db*` in its place; to begin anew, move `computers` and `disk.btrfs` away",
            ),
            StoreError::LabelTaken { label, .. } => {
                Self::new("label_taken", 409, format!("there is a state `{label}` already"))
                    .hint("take another label, or let that one go with `den snaps rm NAME@LABEL`")
            }
            StoreError::ServiceExists { .. } => Self::new("service_exists", 409, error.to_string()),
            StoreError::PoolExists { .. } => Self::new("pool_exists", 409, error.to_string()),
            StoreError::NoSuchPool { pool } => Self::pool_not_found(pool),
            StoreError::VolumeExists { volume } => Self::volume_exists(volume),
            StoreError::NoSuchVolume { volume } => Self::volume_not_found(&volume.to_string()),
            StoreError::NoSuchService { .. } => Self::new("service_not_found", 404, error.to_string()),
            StoreError::NothingToUndo { .. } => Self::new("nothing_to_undo", 409, "it was taken back already")
                .hint("`den undo --list` shows what can be"),
            StoreError::Closed => Self::shutting_down(),
            _ => Self::new(error.code(), 500, error.to_string()),
        }
        .because(error)
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        let code = error.code();
        let status = match code {
            "image_not_found" | "registry_not_found" => 404,
            "image_in_use" => 409,
            "image_too_large" => 413,
            "image_bad_layer" | "image_unsupported" => 422,
            "image_source_unreadable" | "image_bad_reference" | "build_refused" => 400,
            "image_digest_mismatch" | "registry_unreachable" | "registry_refused" => 502,
            "storage_full" => 507,
            _ => 500,
        };
        Self {
            code,
            status,
            message: error.to_string(),
            hint: error.hint(),
            retryable: error.retryable(),
            cause: Some(Arc::new(error)),
        }
    }
}

impl From<HistoryError> for Error {
    fn from(error: HistoryError) -> Self {
        let (code, status) = match error.code() {
            "path_not_found" => ("no_such_path", 404),
            "file_too_large" | "too_many" => ("too_large", 413),
            code if error.is_of_request() => (code, 400),
            code => (code, 500),
        };
        Self::new(code, status, chain(&error)).hint(error.hint()).because(error)
    }
}

/// What is to be done where [`takes_no_writes`].
const NO_WRITES: &str = "the disks take no writes, `dmesg` says why: after a full disk make room on that of the data \
                         folder, then `den shutdown` and `den serve`";

impl Error {
    /// A file of the house's own that could not be written: what is to be done where its disk is full, or takes no
    /// writes any more; else `otherwise` of the message.
    pub(crate) fn of_file(message: String, error: &std::io::Error, otherwise: impl FnOnce(String) -> Self) -> Self {
        match error.raw_os_error() {
            // ENOSPC, EDQUOT.
            Some(28 | 122) => Self::new("host_full", 507, message).hint("make room on the disk of the data folder"),
            Some(number) if takes_no_writes(number) => Self::new("storage_failed", 500, message).hint(NO_WRITES),
            _ => otherwise(message),
        }
    }
}

impl From<DiskError> for Error {
    fn from(error: DiskError) -> Self {
        let text = chain(&error);
        let number = match &error {
            // As transparent as they are, they would be passed over.
            DiskError::Sys(error) => Some(error.errno),
            DiskError::Io(error) => error_number(error),
            other => error_number(other),
        };
        if matches!(error, DiskError::Unsupported { .. }) {
            Self::new("history_unsupported", 501, text)
                .hint("serve a data folder on btrfs, or without `--storage plain`")
                .because(error)
        } else if number.is_some_and(is_full) {
            Self::new("host_full", 507, text)
                .hint("make room on the disk of the data folder, or remove computers with `den rm`")
                .because(error)
        } else if number.is_some_and(takes_no_writes) {
            Self::new("storage_failed", 500, text).hint(NO_WRITES).because(error)
        } else {
            Self::new("storage_failed", 500, text).hint("`den doctor` says what this host lacks").because(error)
        }
    }
}

impl From<MachineError> for Error {
    fn from(error: MachineError) -> Self {
        let text = chain(&error);
        let number = match &error {
            MachineError::Refused { errno, .. } => Some(*errno),
            other => error_number(other),
        };
        match number {
            _ if matches!(error, MachineError::MountPoint { .. }) => Self::new("mount_refused", 409, text)
                .hint("`den restore` takes its disk back to before that; a new computer can have another path"),
            _ if matches!(error, MachineError::SharesNothing) => Self::new("unsupported", 501, text)
                .hint("`den shutdown` and start `den serve` again: computers stop, and the launcher is replaced"),
            Some(number) if is_full(number) => Self::new("host_full", 507, text)
                .hint("the host has no room for another computer: remove some with `den rm`")
                .because(error),
            // An overlay whose disk takes no writes.
            Some(30) => Self::new("host_full", 507, text)
                .hint("make room on the disk of the data folder; `dmesg` says whether it turned read-only")
                .because(error),
            _ if matches!(error, MachineError::Agent { .. } | MachineError::LauncherEnded { .. }) => {
                Self::new("boot_failed", 500, text)
                    .hint("try again; `den doctor` says what this host lacks")
                    .retryable()
                    .because(error)
            }
            _ => Self::new("host_lacks", 500, text).hint("`den doctor` says what this host lacks").because(error),
        }
    }
}

/// ENOSPC, EDQUOT, ENOMEM, EAGAIN, EMFILE, ENFILE.
fn is_full(errno: i32) -> bool {
    matches!(errno, 28 | 122 | 12 | 11 | 24 | 23)
}

/// EIO and EROFS: btrfs was told of a write that failed.
fn takes_no_writes(errno: i32) -> bool {
    matches!(errno, 5 | 30)
}

/// The kernel's number behind an error, wherever in its chain it is.
fn error_number(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        let number = match error.downcast_ref::<den_sys::SysError>() {
            Some(error) => Some(error.errno),
            None => error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error),
        };
        if number.is_some() {
            return number;
        }
        next = error.source();
    }
    None
}

/// An error and all its causes in one line; a cause that only repeats the line's end is left out.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// `507 host_full` for a request whose limit, not the kernel, says that there is no more.
pub(crate) fn too_many(what: &str, limit: usize) -> Error {
    Error::new("too_many", 503, format!("{what}: the limit of {limit} is reached")).retryable()
}

/// The refusal of what has more bytes than it may have.
pub(crate) fn too_long(what: &str, limit: usize) -> Error {
    Error::bad_request(format!("{what} has more than {}", Bytes(limit as u64)))
}
