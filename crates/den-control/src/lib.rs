//! What a request means: create, exec, stop, remove and the rest, as steps over the store, the
//! disks, the images and the machines.
//!
//! ```text
//! server ──► Control ──► registry ──► Handle ──mailbox──► task of the computer ──► store · disk · machine
//!                │                      ├─ status (watch)                    one owner of its state
//!                │                      └─ steps ──► task of the step ──► agent · log file
//!                ├─ output: readers of log files, each at its own pace
//!                ├─ files: through the agent, writes as steps
//!                ├─ ports: what listens inside, connections to it
//!                ├─ services: commands that are kept running, each start a step
//!                ├─ history: states kept after steps, forked, compared, merged, gone back to
//!                ├─ net: what a computer may reach; the gate kept running, told, and read from
//!                ├─ usage, metrics, health, watch: what all of it takes, how it does, limits that are met
//!                ├─ events: what happened, told in passing, followed from the store
//!                ├─ life: sleeping, waking on request, being cut off
//!                ├─ images: jobs over the image store
//!                ├─ pools: what computers share, and how much of it is taken
//!                ├─ volumes: folders that several computers mount
//!                ├─ backup: all of it into another place, and a house made from there
//!                ├─ trash, undo: what was removed or done, for a while taken back
//!                └─ recover: rows, machines and disks held against each other, at open
//! ```
//!
//! Invariants:
//! - One task changes a computer's state, as the table in `den-model` allows. Commands and file
//!   operations are let in by a look at that state and then run side by side.
//! - What a request has begun does not hang on its caller: whoever goes away leaves nothing half made.
//! - A create is answered after its row is on the disk, a removal after the row's end is; the end of
//!   a step is recorded before anyone is told.
//! - A crash at any instant leaves what the next `Control::open` finishes or unmakes.
//! - A step begins once the state after the one before is kept, if that changed anything.
//! - Nobody waits for a reader, and no lock is held across an await but the one that puts changes of
//!   one computer's policy in order.
//!
//! Limits are in `limits`, errors with their codes in `errors`. Not here: HTTP, terminals, and how
//! anything is carried out on Linux.

mod answer;
mod backup;
mod control;
mod create;
mod durable;
mod errors;
mod events;
mod exec;
mod facts;
mod files;
mod handle;
mod health;
mod history;
mod idempotency;
mod images;
mod life;
pub mod limits;
mod log;
mod logs;
mod metrics;
mod names;
mod net;
mod output;
mod pools;
mod ports;
mod precedence;
mod recover;
mod registry;
mod reserve;
mod resize;
mod services;
mod signals;
mod spec;
mod steps;
mod task;
mod trash;
mod undo;
mod usage;
mod volumes;
mod watch;

pub use backup::{
    BACKUP_EVERY_MIN, BACKUP_KEEP_MAX, BackupJob, BackupPlan, RestoreBackup, RestoredBackup, restore_backup,
};
pub use control::{Config, Control, ListComputers, Who};
pub use den_disk::{StorageChoice, TreeEntry, TreeKind, TreeOwner};
pub use den_history::Progress;
pub use den_machine::Criu;
pub use den_store::Order;
pub use errors::Error;
pub use events::{EventReader, ReadEvents};
pub use exec::{Execution, Input};
pub use files::{Attributes, FileReader, FileWriter, TarWriter, Watcher, WriteFile};
pub use history::{
    DiffRequest, EachFork, Exploration, ForkEach, ForkOne, GrepRequest, LOOKS_MAX, StateBytes, StepsMatching,
};
pub use images::Job;
pub use net::{
    HouseNet,
    records::{ReadRecords, RecordReader},
};
pub use output::{Follow, OutputItem, OutputReader, OutputStream};
pub use ports::Connection;
pub use signals::parse_signal;
pub use trash::Removal;
pub use volumes::{VolumeReader, VolumeWriter};
