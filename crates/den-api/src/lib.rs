//! What travels over HTTP: requests, responses, the error body, the output stream, and a client.
//!
//! ```text
//! computer ── create, list, view          step ── exec request, view, output frames
//! files    ── stat, list, changes         image ── view, import/pull/build requests, progress
//! history  ── snapshots, forks, diffs, merges
//! net      ── policy, changes, records
//! error    ── one body for all            client ── the typed client (used by the CLI)
//! ```
//!
//! Deliberately absent: rules. What may follow what is in `den-model` and `den-control`.

pub mod client;
pub mod computer;
pub mod error;
pub mod files;
pub mod history;
pub mod image;
pub mod net;
pub mod output;
pub mod ports;
pub mod step;

pub use client::{Client, ClientError};
pub use computer::{ComputerView, CreateComputer, Page, Shutdown, StopComputer, UsageView, VersionView};
pub use error::{ErrorBody, ErrorDetail};
pub use files::{ChangeView, EntryList, EntryView, FileOperation, StatView};
pub use history::{
    BlameLine, BlameView, ChangeCount, ChangeKind, ChangePart, ConflictView, DiffView, EntryKind, FactChange,
    FileChange, ForkRequest, ForkView, GrepHit, GrepList, MergeRequest, MergeView, MetaView, ParentView,
    RestoreRequest, RestoreView, SentView, SnapRequest, SnapshotList, SnapshotView, StateEntry, StateList, StepChanges,
};
pub use image::{BuildImage, ImageList, ImageView, JobEvent, PullImage};
pub use net::{
    NetChange, NetChangeView, NetCheck, NetDecision, NetLimitsChange, NetLimitsView, NetLogPage, NetRecord, NetRequest,
    NetStatusView, NetView,
};
pub use output::OutputFrame;
pub use ports::{PortList, PortView};
pub use step::{EndView, ExecRequest, ExecResult, OutputView, PtySize, SignalRequest, StepView, WsInput};
