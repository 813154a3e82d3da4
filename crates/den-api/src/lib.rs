//! What travels over HTTP: requests, responses, the error body, the output stream, and a client.
//!
//! ```text
//! computer ── create, list, view          step ── exec request, view, output frames
//! files    ── stat, list, changes         image ── view, import/pull/build requests, progress
//! history  ── snapshots, forks, diffs, merges      explore ── forks that are tried, events
//! net      ── policy, changes, records
//! event    ── what happened
//! usage    ── all computers at a moment; readiness
//! backup   ── request, progress
//! life     ── pause, idle, unplug
//! error    ── one body for all            client ── the typed client (used by the CLI)
//! ```
//!
//! Deliberately absent: rules. What may follow what is in `den-model` and `den-control`.

pub mod backup;
pub mod client;
pub mod computer;
pub mod error;
pub mod event;
pub mod explore;
pub mod files;
pub mod history;
pub mod image;
pub mod life;
pub mod net;
pub mod output;
pub mod pool;
pub mod ports;
pub mod service;
pub mod step;
pub mod trash;
pub mod usage;
pub mod volume;

pub use backup::{BackUp, BackupEvent, BackupView};
pub use client::{Client, ClientError};
pub use computer::{
    ComputerView, CreateComputer, MemoryView, Page, Shutdown, StopComputer, UsageView, VersionView, VolumeMountRequest,
    VolumeMountView,
};
pub use error::{ErrorBody, ErrorDetail};
pub use event::{EventPage, EventView};
pub use explore::{
    ExploreEvent, ExploreForks, ExploreKeep, ExploreMerging, ExploreRan, ExploreRequest, ExploreScore, ExploreView,
    ExploredFork,
};
pub use files::{ChangeView, EntryList, EntryView, FileOperation, StatView};
pub use history::{
    BlameLine, BlameView, ChangeCount, ChangeKind, ChangePart, ConflictView, DiffView, EntryKind, FactChange,
    FileChange, ForkRequest, ForkView, GrepHit, GrepList, MergeRequest, MergeView, MetaView, ParentView, ProgressView,
    RestoreRequest, RestoreView, SentView, SkippedView, SnapRequest, SnapshotList, SnapshotView, StateEntry, StateList,
    StepChanges,
};
pub use image::{BuildImage, ImageList, ImageView, JobEvent, PullImage};
pub use life::{ChangeComputer, PauseComputer, UnpluggedList};
pub use net::{
    NetChange, NetChangeView, NetCheck, NetDecision, NetLimitsChange, NetLimitsView, NetLogPage, NetRecord, NetRequest,
    NetStatusView, NetView,
};
pub use output::OutputFrame;
pub use pool::{ChangePool, CreatePool, PoolList, PoolUse, PoolView};
pub use ports::{PortList, PortView};
pub use service::{AddService, ServiceList, ServiceView};
pub use step::{EndView, ExecRequest, ExecResult, OutputView, PtySize, SignalRequest, StepView, WsInput};
pub use trash::{EmptiedList, EmptiedView, TrashList, TrashView, UndoList, UndoRequest, UndoView, Undone};
pub use usage::{Check, ComputerUsage, HostUsage, LinkUsage, Readiness, UsageList};
pub use volume::{CreateVolume, VolumeList, VolumeView};
