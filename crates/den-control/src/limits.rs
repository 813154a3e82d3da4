//! Every limit of this crate, with its unit.

use std::time::Duration;

use den_model::Bytes;

/// Requests that wait for one computer's task; more wait in their callers.
pub const MAILBOX_MAX: usize = 32;
/// Steps of one computer that run at a time.
pub const STEPS_RUNNING_MAX: usize = 1024;
/// Connections to ports of one computer at a time.
pub const DIALS_MAX: usize = 4096;
/// The part of the daemon's descriptors that connections to ports may take, all computers together.
pub const DIALS_SHARE: u64 = 2;
/// Readers of one computer's outputs at a time.
pub const READERS_MAX: usize = 4096;
/// What the logs of one computer's ended steps may take on disk; the oldest go first.
pub const LOGS_KEEP_BYTES: Bytes = Bytes::gib(4);
/// Rows of ended steps that are kept for one computer.
pub const STEPS_KEPT_MAX: u64 = 100_000;
/// Every so many steps the rows beyond [`STEPS_KEPT_MAX`] go.
pub const STEPS_PRUNE_EVERY: u64 = 1000;
/// How much of a log is read at a time.
pub const READ_BYTES: usize = 256 << 10;
/// How much of a log is read at a time while records are passed over.
pub const SCAN_BYTES: usize = 8 << 10;
/// Between SIGTERM and SIGKILL where a stop does not say.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(5);
/// The longest that a stop may say.
pub const GRACE_MAX: Duration = Duration::from_secs(600);
/// What an agent is given beyond the grace, to end itself.
pub const STOP_MARGIN: Duration = Duration::from_secs(2);
/// How long the agent may keep back that a command has started, in milliseconds: one that ends sooner is told of
/// once, and wakes the daemon once.
pub const START_PATIENCE_MS: u64 = 3;
/// How long the steps of a computer that is gone are given to be recorded as ended.
pub const STEPS_END_WAIT: Duration = Duration::from_secs(2);
/// How long a shutdown waits for the launcher to unmake what is left of removed computers.
pub const ENDINGS_WAIT: Duration = Duration::from_secs(30);
/// How long a question to an agent may go unanswered while the house is taken up again.
pub const RECOVERY_WAIT: Duration = Duration::from_secs(5);
/// An idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Idempotency keys that are remembered in memory; the store has all.
pub const IDEMPOTENCY_KEYS_MAX: usize = 10_000;
/// Arguments and environment of one command together, in bytes: half of what exec(2) takes.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Labels of one computer.
pub const LABELS_MAX: usize = 64;
/// A label's key or value, in bytes.
pub const LABEL_BYTES_MAX: usize = 255;
/// Processes and threads of one computer: the kernel's own limit.
pub const PIDS_MAX: u32 = 4_194_304;
/// Entries of a page where a list does not say.
pub const PAGE_DEFAULT: usize = 100;
/// Entries of a page.
pub const PAGE_MAX: usize = 1000;
/// Levels of one list of files.
pub const DEPTH_MAX: u32 = 64;
/// Events of an image job that wait for their reader; further progress is left out, lines wait.
pub const JOB_EVENTS_MAX: usize = 256;
/// How often an image job tells of progress on one part.
pub const JOB_EVENT_INTERVAL: Duration = Duration::from_millis(100);
/// Forks that one request may ask for.
pub const FORKS_MAX: u32 = 100;
/// Forks of one request that are made at a time.
pub const FORKS_AT_ONCE: usize = 16;
/// Flows that a restore tells of one by one.
pub const SENT_SHOWN: usize = 100;
/// How long a step waits for the state before it to be kept, and a request for its turn at a computer's states.
pub const KEEP_WAIT: Duration = Duration::from_secs(10);
/// How long a computer may take to stand still for its state to be kept; else its files may be of different moments.
pub const FREEZE_WAIT: Duration = Duration::from_millis(50);
/// With more unwritten data than this, most of it is written before the computer stands still.
pub const PREFLUSH_ABOVE: Bytes = Bytes::mib(1);
/// Automatic states of one computer that are all kept; older ones are thinned.
pub const STATES_NEWEST: usize = 100;
/// The same where each state is a copy.
pub const STATES_NEWEST_COPIED: usize = 5;
/// After so many days no automatic state is kept.
pub const STATES_DAYS: i64 = 365;
/// Beyond this share of its disk a computer loses its oldest automatic states.
pub const STATES_DISK_PERCENT: u64 = 80;
/// How many of them at a time.
pub const STATES_DROPPED_AT_ONCE: usize = 8;
/// How long the bytes of states that were let go are waited for before more go.
pub const ROOM_WAIT: Duration = Duration::from_secs(2);
/// Such a wait that begins less than this after another one is left out.
pub const ROOM_PAUSE: Duration = Duration::from_secs(10);
/// How long a state that is to go waits for who looks at it.
pub const UNPIN_WAIT: Duration = Duration::from_secs(5);
/// States that an error lists.
pub const STATES_SHOWN_MAX: usize = 20;
/// Steps whose changes are looked for at a time, of all computers.
pub const COMPARED_AT_ONCE: usize = 2;
/// Changed paths that are listed of one step.
pub const CHANGES_MAX: usize = 10_000;
/// What the lists of one computer's changes may take on disk; the oldest go first.
pub const CHANGES_KEEP_BYTES: Bytes = Bytes::mib(64);
/// Every so many steps the lists beyond [`CHANGES_KEEP_BYTES`] go.
pub const CHANGES_PRUNE_EVERY: u64 = 64;
