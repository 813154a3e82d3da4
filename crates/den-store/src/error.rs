//! Why the store did not do what was asked, with a stable code each.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use den_model::{ComputerId, ComputerName, PoolName, ServiceName, StateLabel, StepNumber, VolumeId, VolumeName};
use rusqlite::ErrorCode;

/// Why a fact was not written or read. Nothing of a failed write is kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process owns the store.
    #[error("the store is held by {}; its lock is {}", holder(*pid), path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, where it has said so.
        pid: Option<u32>,
    },
    /// A later Den wrote it.
    #[error("{} has schema {found}; this Den knows schemas up to {known}", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// It is damaged or no database.
    #[error("{} is damaged: {found}", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What was met.
        found: String,
    },
    /// There is none, where there was one.
    #[error("{} is not there or empty, and what it knew of is", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A database of another program.
    #[error("{} is a database, but not one of Den's", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// A file of the store cannot be opened.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried with it.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// Another computer has the name.
    #[error("the name `{name}` is taken by {holder}")]
    NameTaken {
        /// The name asked for.
        name: ComputerName,
        /// Who has it.
        holder: ComputerId,
    },
    /// The same create was asked for before and has made this computer. Rather an answer than a fault.
    #[error("this create was asked for before and made {computer}")]
    IdempotencyReplay {
        /// What it made.
        computer: ComputerId,
    },
    /// The idempotency key was used for a create that said something else.
    #[error("the idempotency key `{key}` was used before for another request")]
    IdempotencyMismatch {
        /// The key.
        key: String,
    },
    /// There is no such computer.
    #[error("there is no computer {computer}")]
    NoSuchComputer {
        /// What was asked for.
        computer: ComputerId,
    },
    /// The id is in use: ids are never given out twice.
    #[error("there is a computer {computer} already")]
    ComputerExists {
        /// The id.
        computer: ComputerId,
    },
    /// There is no such step, or for its end: none that still runs.
    #[error("{computer} has no step {number} that could end")]
    NoSuchStep {
        /// Its computer.
        computer: ComputerId,
        /// The step.
        number: StepNumber,
    },
    /// The number is in use.
    #[error("{computer} has a step {number} already")]
    StepExists {
        /// Its computer.
        computer: ComputerId,
        /// The step.
        number: StepNumber,
    },
    /// Another state of the computer has the label.
    #[error("{computer} has a state `{label}` already")]
    LabelTaken {
        /// Its computer.
        computer: ComputerId,
        /// The label.
        label: StateLabel,
    },
    /// The number is in use: numbers of kept states are never given out twice.
    #[error("{computer} has a kept state {number} already")]
    SnapshotExists {
        /// Its computer.
        computer: ComputerId,
        /// The number.
        number: u64,
    },
    /// There is no such kept state.
    #[error("{computer} has no kept state {number}")]
    NoSuchSnapshot {
        /// Its computer.
        computer: ComputerId,
        /// The number.
        number: u64,
    },
    /// It was taken back already, or there is no such thing.
    #[error("there is nothing number {number} that could be taken back")]
    NothingToUndo {
        /// The number of the row.
        number: u64,
    },
    /// Another service of the computer has the name.
    #[error("{computer} has a service `{service}` already")]
    ServiceExists {
        /// Its computer.
        computer: ComputerId,
        /// The name.
        service: ServiceName,
    },
    /// There is a pool of this name already.
    #[error("there is a pool `{pool}` already")]
    PoolExists {
        /// Its name.
        pool: PoolName,
    },
    /// There is no such pool.
    #[error("there is no pool `{pool}`")]
    NoSuchPool {
        /// What was asked for.
        pool: String,
    },
    /// There is a shared volume of this name or id already.
    #[error("there is a shared volume `{volume}` already")]
    VolumeExists {
        /// Its name.
        volume: VolumeName,
    },
    /// There is no such shared volume.
    #[error("there is no shared volume {volume}")]
    NoSuchVolume {
        /// What was asked for.
        volume: VolumeId,
    },
    /// There is no such service.
    #[error("{computer} has no service `{service}`")]
    NoSuchService {
        /// Its computer.
        computer: ComputerId,
        /// The name.
        service: ServiceName,
    },
    /// The disk has no room.
    #[error("{op}: no room for {}", path.display())]
    Full {
        /// What was being done.
        op: Op,
        /// The database.
        path: PathBuf,
    },
    /// SQLite met something else.
    #[error("{op}: {} did not take it", path.display())]
    Sqlite {
        /// What was being done.
        op: Op,
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        source: Arc<rusqlite::Error>,
    },
    /// It was written, but the disk did not confirm it. No later write is confirmed either.
    #[error("the disk did not confirm what was written to {}", path.display())]
    NotSynced {
        /// The write-ahead log.
        path: PathBuf,
        /// What the flush met.
        source: Arc<io::Error>,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or("another process".to_owned(), |pid| format!("process {pid}"))
}

impl StoreError {
    /// The stable code: a contract.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "store_locked",
            Self::Newer { .. } => "store_newer",
            Self::Corrupt { .. } => "store_corrupt",
            Self::Missing { .. } => "store_missing",
            Self::Foreign { .. } => "store_foreign",
            Self::File { .. } => "store_file",
            Self::NameTaken { .. } => "name_taken",
            Self::IdempotencyReplay { .. } => "idempotency_replay",
            Self::IdempotencyMismatch { .. } => "idempotency_mismatch",
            Self::NoSuchComputer { .. } => "no_such_computer",
            Self::ComputerExists { .. } => "computer_exists",
            Self::NoSuchStep { .. } => "no_such_step",
            Self::StepExists { .. } => "step_exists",
            Self::LabelTaken { .. } => "label_taken",
            Self::SnapshotExists { .. } => "snapshot_exists",
            Self::NoSuchSnapshot { .. } => "no_such_snapshot",
            Self::NothingToUndo { .. } => "nothing_to_undo",
            Self::ServiceExists { .. } => "service_exists",
            Self::NoSuchService { .. } => "no_such_service",
            Self::PoolExists { .. } => "pool_exists",
            Self::NoSuchPool { .. } => "no_such_pool",
            Self::VolumeExists { .. } => "volume_exists",
            Self::NoSuchVolume { .. } => "no_such_volume",
            Self::Full { .. } => "store_full",
            Self::Sqlite { .. } => "store_failed",
            Self::NotSynced { .. } => "store_not_synced",
            Self::Closed => "store_closed",
        }
    }
}

/// What the store was doing, for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Open,
    Check,
    Commit,
    InsertComputer,
    SetState,
    DeleteComputer,
    SetNet,
    ReadComputers,
    InsertStep,
    EndStep,
    ReadSteps,
    InsertSnapshot,
    DeleteSnapshots,
    ReadSnapshots,
    WriteServices,
    ReadServices,
    WritePools,
    ReadPools,
    WriteVolumes,
    ReadVolumes,
    InsertEvents,
    ReadEvents,
    InsertUndo,
    ReadUndo,
    WriteFacts,
    ReadFacts,
    Prune,
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "opening the store",
            Self::Check => "checking the store",
            Self::Commit => "committing",
            Self::InsertComputer => "recording a computer",
            Self::SetState => "recording a state",
            Self::DeleteComputer => "forgetting a computer",
            Self::SetNet => "recording what a computer may reach",
            Self::ReadComputers => "reading computers",
            Self::InsertStep => "recording a step",
            Self::EndStep => "recording the end of a step",
            Self::ReadSteps => "reading steps",
            Self::InsertSnapshot => "recording a kept state",
            Self::DeleteSnapshots => "forgetting kept states",
            Self::ReadSnapshots => "reading kept states",
            Self::WriteServices => "recording a service",
            Self::WritePools => "recording a pool",
            Self::ReadPools => "reading pools",
            Self::WriteVolumes => "recording a shared volume",
            Self::ReadVolumes => "reading shared volumes",
            Self::ReadServices => "reading services",
            Self::InsertEvents => "recording events",
            Self::ReadEvents => "reading events",
            Self::InsertUndo => "recording what can be taken back",
            Self::ReadUndo => "reading what can be taken back",
            Self::WriteFacts => "recording what another interface knows",
            Self::ReadFacts => "reading what another interface knows",
            Self::Prune => "forgetting old rows",
        })
    }
}

/// An error as it comes out of a closure that holds a connection: `?` works on SQLite's.
pub(crate) enum Inside {
    Sqlite(rusqlite::Error),
    /// A row holds what no Den writes.
    Row(String),
    Known(StoreError),
}

impl From<rusqlite::Error> for Inside {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Inside {
    fn from(error: StoreError) -> Self {
        Self::Known(error)
    }
}

impl Inside {
    /// The public error, given what was being done.
    pub(crate) fn during(self, op: Op, path: &Path) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Known(error) => error,
            Self::Row(found) => StoreError::Corrupt { path, found },
            Self::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                    StoreError::Corrupt { path, found: error.to_string() }
                }
                Some(ErrorCode::DiskFull) => StoreError::Full { op, path },
                _ => StoreError::Sqlite { op, path, source: Arc::new(error) },
            },
        }
    }
}
