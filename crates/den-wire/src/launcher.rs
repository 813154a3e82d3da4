//! Between `serve` and the launcher: one message a packet on a SOCK_SEQPACKET socket, descriptors
//! beside it. The launcher answers each request in order.
//!
//! Anyone who can open the socket is the host's root: it lies in a 0700 directory.

use minicbor::{Decode, Encode};

/// The longest packet, in bytes.
pub const PACKET_BYTES_MAX: usize = 64 << 10;

/// A file in a computer's folder under RUN that says that it stands still on purpose, and is not let go
/// on when its daemon ends. It holds the name of its cgroup.
pub const FROZEN: &str = "frozen";

/// What a shared volume that could not be attached failed at; its path inside follows.
pub const MOUNT_POINT: &str = "mount point";

/// What the shared volume of this place in [`Create::shared`] is called in CRIU's images.
pub fn shared_name(number: usize) -> String {
    format!("shared{number}")
}

/// The name of a cell's cgroup, below that of the house: of a computer with this link, in this pool.
pub fn cgroup_name(pool: u64, link: u64) -> String {
    match pool {
        0 => format!("c{link}"),
        pool => format!("{}/c{link}", pool_cgroup_name(pool)),
    }
}

/// The name of a pool's cgroup, below that of the house, which is 0.
pub fn pool_cgroup_name(pool: u64) -> String {
    match pool {
        0 => String::new(),
        pool => format!("p{pool}"),
    }
}

/// What `serve` asks.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Request {
    /// Who is there, and what runs? Answered with `Hello`, then one `Running` per computer (its
    /// pidfd beside it), then `Done`.
    #[n(0)]
    Hello {
        /// Of `serve`.
        #[n(0)]
        version: u16,
    },
    /// Boots a computer. Answered with `Created` (its pidfd beside it) or `Failed`.
    #[n(1)]
    Create(#[n(0)] Create),
    /// Ends a computer at once. Answered with `Done` when every process of it is gone; its empty cgroup
    /// and its link follow. At once if it does not run.
    #[n(2)]
    Kill {
        /// Its id.
        #[n(0)]
        id: String,
    },
    /// Holds a running computer to other limits.
    #[n(3)]
    SetLimits {
        /// Its id.
        #[n(0)]
        id: String,
        /// The new ones.
        #[n(1)]
        limits: Limits,
    },
    /// How many husks to keep ready.
    #[n(4)]
    Pool {
        /// The number; 0 unmakes all.
        #[n(0)]
        target: u32,
    },
    /// What a computer uses now. Answered with `Usage`.
    #[n(5)]
    Usage {
        /// Its id.
        #[n(0)]
        id: String,
    },
    /// Unmakes the husks and exits, if no computer runs; else answered with `Failed`.
    #[n(6)]
    Exit,
    /// What the computers of each pool have together: all pools that there are. A pool that is left out goes, with
    /// its husks, once no computer is in it. Answered with `Done` when the kernel holds what runs to it.
    #[n(7)]
    Pools {
        /// The pools; the number 0 is the house, with all pools in it.
        #[n(0)]
        pools: Vec<PoolCaps>,
    },
    /// How many husks are ready? Answered with `Hello` alone, however many computers run; refused by a launcher
    /// that is too old to know it.
    #[n(8)]
    Husks,
    /// As `Create`, of a computer with shared volumes: a launcher that is too old to mount them refuses it, and would
    /// leave them out else.
    #[n(9)]
    CreateSharing(#[n(0)] Create),
    /// A place for a computer whose processes are read back from a disk: ids and a number that nobody else has.
    /// Answered with `Reserved`. What is in its cgroup ends when this connection does, unless it was `Taken`.
    #[n(20)]
    Reserve {
        /// Its id.
        #[n(0)]
        id: String,
        /// The number of its pool.
        #[n(1)]
        pool: u64,
    },
    /// The computer that was read back is there: from here on it is carried as one that was booted. Answered with
    /// `Created` (its pidfd beside it) or `Failed`.
    #[n(21)]
    Taken {
        /// Its id.
        #[n(0)]
        id: String,
        /// PID 1 of it, as the host counts.
        #[n(1)]
        pid: u32,
        /// Thousandths of a CPU that it may use.
        #[n(2)]
        cpu_milli: u32,
    },
}

/// How a computer is read back from a disk, by a process of its own that becomes CRIU: `den-agent revive`, which
/// finds this on its standard input.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Revive {
    /// As it would be booted.
    #[n(0)]
    pub create: Create,
    /// RUN.
    #[n(1)]
    pub run: String,
    /// What the launcher has reserved: the number of its link.
    #[n(2)]
    pub link: u64,
    /// The first of its ids.
    #[n(3)]
    pub base: u32,
    /// How many ids it has.
    #[n(4)]
    pub ids: u32,
    /// The images.
    #[n(5)]
    pub images: String,
    /// CRIU.
    #[n(6)]
    pub criu: String,
    /// The socket that is told how far it is.
    #[n(7)]
    pub hook: String,
    /// What the computer takes for the id of its boot.
    #[n(8)]
    pub boot_id: String,
}

/// What the computers of a pool may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct PoolCaps {
    /// Names its cgroup.
    #[n(0)]
    pub number: u64,
    /// Thousandths of a CPU; none: no limit.
    #[n(1)]
    pub cpu_milli: Option<u32>,
    /// Bytes; none: no limit.
    #[n(2)]
    pub memory_bytes: Option<u64>,
}

/// A computer to boot.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Create {
    /// Its id.
    #[n(0)]
    pub id: String,
    /// Its hostname.
    #[n(1)]
    pub hostname: String,
    /// The image's layers on the host, top first.
    #[n(2)]
    pub layers: Vec<String>,
    /// The directory on the host that holds `data/` and `work/`.
    #[n(3)]
    pub disk: String,
    /// What it may use.
    #[n(4)]
    pub limits: Limits,
    /// The agent's program on the host.
    #[n(5)]
    pub agent: String,
    /// The computer's directory under RUN: `agent.sock` is made in it.
    #[n(6)]
    pub run: String,
    /// Directories of the disk that are mounted over the root, since they cannot lie on an
    /// overlay: (name under `vol/`, path inside).
    #[n(7)]
    pub volumes: Vec<(String, String)>,
    /// The number of its pool; 0: none of its own.
    #[n(8)]
    #[cbor(default)]
    pub pool: u64,
    /// Where its disk is counted, below a sysfs: `fs/btrfs/<uuid>/qgroups/<group>`; empty where it is not.
    #[n(9)]
    #[cbor(default)]
    pub counter: String,
    /// Folders of the host that others have mounted too: (folder, path inside). Goes with `CreateSharing`.
    #[n(10)]
    #[cbor(default)]
    pub shared: Vec<(String, String)>,
}

/// What a computer may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Limits {
    /// Thousandths of a CPU.
    #[n(0)]
    pub cpu_milli: u32,
    /// Bytes.
    #[n(1)]
    pub memory_bytes: u64,
    /// Processes and threads.
    #[n(2)]
    pub pids: u32,
}

/// What the launcher answers.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Reply {
    /// Who is there.
    #[n(0)]
    Hello {
        /// The launcher's [`crate::VERSION`].
        #[n(0)]
        version: u16,
        /// Its process.
        #[n(1)]
        pid: u32,
        /// Husks that are ready.
        #[n(2)]
        husks: u32,
    },
    /// A computer that runs.
    #[n(1)]
    Running {
        /// Its id.
        #[n(0)]
        id: String,
        /// PID 1 of it, as the host counts.
        #[n(1)]
        pid: u32,
        /// Its link: `l<link>` in the gate's namespace, with the index 1000 + link. 0 where a launcher
        /// is too old to say.
        #[n(2)]
        #[cbor(default)]
        link: u64,
        /// The number of its pool: its cgroup is below that of the pool.
        #[n(3)]
        #[cbor(default)]
        pool: u64,
    },
    /// It boots: its agent listens.
    #[n(2)]
    Created {
        /// PID 1 of it, as the host counts.
        #[n(0)]
        pid: u32,
        /// Whether a husk was ready.
        #[n(1)]
        pooled: bool,
        /// Its link, as in `Running`.
        #[n(2)]
        #[cbor(default)]
        link: u64,
        /// Its pool, as in `Running`.
        #[n(3)]
        #[cbor(default)]
        pool: u64,
    },
    /// It is done.
    #[n(3)]
    Done,
    /// It was not done, and nothing of it is left.
    #[n(4)]
    Failed {
        /// Which call or stage.
        #[n(0)]
        stage: String,
        /// The kernel's error number; 0 where there is none.
        #[n(1)]
        errno: i32,
    },
    /// What a computer uses now.
    #[n(5)]
    Usage(#[n(0)] Usage),
    /// A place for what is read back from a disk.
    #[n(20)]
    Reserved {
        /// The number of its link.
        #[n(0)]
        link: u64,
        /// The first of its ids.
        #[n(1)]
        base: u32,
        /// How many ids it has.
        #[n(2)]
        ids: u32,
    },
}

/// What a computer uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Usage {
    /// CPU time since boot, in microseconds.
    #[n(0)]
    pub cpu_us: u64,
    /// Bytes, page cache included.
    #[n(1)]
    pub memory_bytes: u64,
    /// Processes and threads.
    #[n(2)]
    pub pids: u32,
    /// How often the memory limit ended a process.
    #[n(3)]
    pub oom_kills: u64,
}
