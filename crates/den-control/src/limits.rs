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
/// How often it is looked at who keeps processors busy, and how much later for each computer that runs.
pub const PRECEDENCE_EVERY: Duration = Duration::from_millis(250);
/// See [`PRECEDENCE_EVERY`].
pub const PRECEDENCE_MORE_EVERY: Duration = Duration::from_millis(2);
/// Below so many CPUs in all nobody keeps one busy.
pub const PRECEDENCE_HOUSE_MIN: f64 = 0.1;
/// A computer that uses all it may use has this part of its weight.
pub const PRECEDENCE_LEAST: u32 = 64;
/// Who has the kernel work for so many CPUs, and so much of its time, is one that holds up others.
pub const KERNEL_MIN: (f64, f64) = (0.3, 0.6);
/// So it is until that is less than this.
pub const KERNEL_GIVING_WAY_MIN: (f64, f64) = (0.1, 0.6);
/// And where nobody has asked it for anything of late: neither for a step, nor by a connection.
pub const KERNEL_UNASKED_MIN: (f64, f64) = (0.05, 0.4);
/// Who uses so much of a CPU is at work: a command of 5 ms between two looks, and no server that waits.
pub const AT_WORK_CPUS_MIN: f64 = 0.02;
/// Who uses so much of what it may use, and who keeps the kernel busy, yields to who does not.
pub const YIELDS_USED_MIN: f64 = 0.5;
/// It counts as one until it uses less than this.
pub const YIELDS_USED_UNTIL: f64 = 0.25;
/// How long after others were at work a processor is left to them, and they are yielded to.
pub const AT_WORK_FOR: Duration = Duration::from_secs(2);
/// What the logs of one computer's ended steps may take on disk; the oldest go first.
pub const LOGS_KEEP_BYTES: Bytes = Bytes::gib(4);
/// Logs that are made ahead at most, for steps to come.
pub const LOGS_AHEAD_MAX: u64 = 64;
/// Steps after which they are: a computer for one command has one log.
pub const LOGS_AHEAD_FROM: u64 = 2;
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
/// Room on the disk of DATA that is kept for the day when there is none.
pub const RESERVE_BYTES: Bytes = Bytes::mib(32);
/// With less room than this nothing new is made, and the reserve is let go for what is removed. More than what ext4
/// keeps for itself and counts as free (16 MiB).
pub const ROOM_BYTES_MIN: Bytes = Bytes::mib(48);
/// After this a step that was answered survives the end of power too.
pub const SAFE_AFTER: Duration = Duration::from_secs(1);
/// After this the disks of computers that were made are written out, together.
pub const DISKS_WRITTEN_AFTER: Duration = Duration::from_secs(5);
/// Logs that are synced one by one in that time; where more ended, everything is written out.
pub const LOGS_SYNCED_EACH_MAX: usize = 64;
/// How long the steps of a computer that is gone are given to be recorded as ended.
pub const STEPS_END_WAIT: Duration = Duration::from_secs(2);
/// How long a shutdown waits for the launcher to unmake what is left of removed computers.
pub const ENDINGS_WAIT: Duration = Duration::from_secs(30);
/// How long an agent may say nothing to a command: one that thrashes for want of memory takes seconds to start it.
pub const ANSWER_WAIT: Duration = Duration::from_secs(30);
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
/// Services of one computer.
pub const SERVICES_MAX: usize = 64;
/// How long a request waits for its turn at a service: longer than one takes to be ended.
pub const SERVICE_TURN_WAIT: Duration = Duration::from_secs(30);
/// Between SIGTERM and SIGKILL where a service is ended.
pub const SERVICE_GRACE: Duration = Duration::from_secs(5);
/// How long a service that was killed may take to be gone.
pub const SERVICE_KILL_WAIT: Duration = Duration::from_secs(10);
/// The longest that a service may be given to be ready.
pub const READY_WITHIN_MAX: Duration = Duration::from_secs(3600);
/// How long one look whether a service is ready may take.
pub const READY_ASK_MAX: Duration = Duration::from_secs(5);
/// Between two such looks; the last one goes on.
pub const READY_PAUSES: [Duration; 5] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
];
/// Changed paths that are listed of one step.
pub const CHANGES_MAX: usize = 10_000;
/// What the lists of one computer's changes may take on disk; the oldest go first.
pub const CHANGES_KEEP_BYTES: Bytes = Bytes::mib(64);
/// Every so many steps the lists beyond [`CHANGES_KEEP_BYTES`] go.
pub const CHANGES_PRUNE_EVERY: u64 = 64;
/// Events that wait to be written down; more are counted and left out.
pub const EVENTS_QUEUE_MAX: usize = 4096;
/// Events that are written at once.
pub const EVENTS_BATCH_MAX: usize = 256;
/// How long the first of a batch waits for others.
pub const EVENTS_GATHER: Duration = Duration::from_millis(10);
/// The detail of one event, in bytes of JSON.
pub const EVENT_DETAIL_BYTES_MAX: usize = 4096;
/// How long requests that were let in are waited for before their computer stands still.
pub const PAUSE_INSIDE_WAIT: Duration = Duration::from_secs(1);
/// How long files and connections that are on their way are waited for before a fork that would break them does
/// without the memory.
pub const UNDER_WAY_WAIT: Duration = Duration::from_secs(2);
/// Between two looks for them.
pub const UNDER_WAY_LOOK: Duration = Duration::from_millis(20);
/// Room on the disk beyond the memory that is written there.
pub const MEMORY_BESIDE: Bytes = Bytes::mib(64);
/// How long all processes of a computer may take to stand still.
pub const PAUSE_WAIT: Duration = Duration::from_secs(2);
/// How long an unplug waits for them; they are told to stand still, and will.
pub const UNPLUG_WAIT: Duration = Duration::from_millis(50);
/// How long an agent may take to say that it is there, where work inside takes long.
pub const HELLO_WAIT: Duration = Duration::from_secs(5);
/// How long all processes of a computer may take to stand still so that its memory can become less.
pub const RESIZE_STAND_WAIT: Duration = Duration::from_secs(2);
/// How long the kernel may take to have that memory back, while they stand.
pub const RESIZE_MEMORY_WAIT: Duration = Duration::from_secs(5);
/// How often a request wakes a computer that somebody puts to sleep again at once.
pub const WAKE_TRIES: u32 = 8;
/// How long a request waits for a computer that is being stopped for being idle.
pub const WAKE_WAIT: Duration = Duration::from_secs(30);
/// How often computers with an idle time are looked at.
pub const IDLE_LOOK: Duration = Duration::from_secs(1);
/// CPU use that counts as none: this part of one CPU, over the idle time.
pub const IDLE_CPU_PERCENT: u32 = 1;
/// How long a computer sleeps before its memory is given back.
pub const ROOM_AFTER: Duration = Duration::from_secs(10);
/// How long what was removed lies in the trash where nobody says.
pub const TRASH_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest that may be said.
pub const TRASH_FOR_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// With less than this free where disks lie, the oldest in the trash goes.
pub const TRASH_ROOM_MIN: Bytes = Bytes::gib(2);
/// The same as a share of all there is: the smaller of both counts.
pub const TRASH_ROOM_PERCENT: u64 = 5;
/// How often the trash is looked through at least.
pub const TRASH_LOOK_EVERY: Duration = Duration::from_secs(30);
/// And at most.
pub const TRASH_LOOK_SOONEST: Duration = Duration::from_millis(20);
/// Rows of what can be taken back that one list shows.
pub const UNDO_SHOWN_MAX: usize = 1000;
/// How often limits that computers run into are looked for.
pub const WATCH_EVERY: Duration = Duration::from_secs(5);
/// From this share of its disk on a computer's disk is told to be full.
pub const DISK_REACHED_PERCENT: u64 = 99;
/// Below this share it has room again.
pub const DISK_LEFT_PERCENT: u64 = 95;
/// A filesystem of Den's with less than this share free is low,
pub const DISK_LOW_PERCENT: u64 = 5;
/// or, where that is more, with less than this.
pub const DISK_LOW_BYTES: Bytes = Bytes::gib(1);
/// How long a part of the house may take to answer that it is well.
pub const CHECK_WAIT: Duration = Duration::from_secs(2);
/// Explorations at a time.
pub const EXPLORATIONS_MAX: usize = 16;
/// How long what waits inside may take to be written out before a state is kept with `--sync`.
pub const SYNC_WAIT: Duration = Duration::from_secs(30);
/// Pools of a house, the default among them.
pub const POOLS_MAX: usize = 256;
/// Shared volumes of a house.
pub const VOLUMES_MAX: usize = 1024;
/// Shared volumes that one computer mounts.
pub const MOUNTS_MAX: usize = 16;
/// The longest path inside at which one is mounted, in bytes.
pub const MOUNT_PATH_BYTES_MAX: usize = 256;
/// Who reads and writes what lies in shared volumes, at a time.
pub const VOLUME_TRANSFERS_MAX: usize = 256;
/// The greatest id of a user or group inside a computer: a slot has 262,144.
pub const VOLUME_ID_MAX: u32 = 262_143;
/// What a shared volume may hold of which nothing is said.
pub const VOLUME_BYTES_DEFAULT: Bytes = Bytes::gib(10);
/// How often it is told at most that one pool is full.
pub const POOL_TOLD_EVERY: Duration = Duration::from_secs(60);
