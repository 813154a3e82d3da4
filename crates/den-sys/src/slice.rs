//! How soon a thread that wakes gets a processor.
//!
//! The scheduler gives a thread that begins to run a slice of some milliseconds, and lets one that wakes
//! wait until that is over, unless its own slice is the shorter one. Where a computer keeps all processors
//! busy, a request to its neighbour waits so at each hop: the daemon, the agent, the command. A short slice
//! is no larger share: it is the same time, in smaller parts, sooner.
//!
//! ```text
//! serve ─► gate, launcher ─► agent ─► the process of a command ─┬─ execve ─► the command
//! └──────────────── short, so that each hop is soon ────────────┘            └ as long as any other's
//! ```
//!
//! What runs in computers has the usual slice: with a short one a computer's busy processes would have its
//! neighbour's agent wait as before.

use std::sync::OnceLock;

use crate::SysError;

/// The shortest slice that the kernel takes.
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` of linux/sched/types.h, as long as it was at first (SCHED_ATTR_SIZE_VER0).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const SIZE: u32 = 48;
const _: () = assert!(size_of::<Attributes>() == SIZE as usize);

/// Asks for the shortest slice for this thread and for what it starts from here on, threads and processes, but for
/// programs that [`crate::spawn`] starts.
///
/// A kernel before 6.12 takes the call and does nothing; a thread that is not scheduled as most are stays as
/// it is. Errors: `ENOSYS`, `EPERM`, where a filter refuses it. Source: sched_setattr(2), and
/// `__setparam_fair` of kernel/sched/syscalls.c.
pub fn shorten() -> Result<(), SysError> {
    let own = own()?;
    if own.policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    let wanted = Attributes { size: SIZE, flags: 0, runtime: SLICE_NS, ..own };
    // SAFETY: it reads SIZE bytes, as the struct says of itself.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &wanted, 0) } != 0 {
        return Err(SysError::last("sched_setattr", ""));
    }
    Ok(())
}

/// What gives a process the usual slice again that this one starts; none where its own is the usual one. It is
/// looked at once.
pub(crate) fn usual() -> Option<&'static Attributes> {
    static USUAL: OnceLock<Option<Attributes>> = OnceLock::new();
    let look = || {
        let own = own().ok()?;
        (own.policy == libc::SCHED_OTHER as u32 && own.runtime == SLICE_NS).then_some(Attributes {
            size: SIZE,
            flags: 0,
            runtime: 0,
            ..own
        })
    };
    USUAL.get_or_init(look).as_ref()
}

fn own() -> Result<Attributes, SysError> {
    let mut own = Attributes::default();
    // SAFETY: the kernel writes SIZE bytes, which is what there is.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &mut own, SIZE, 0) } != 0 {
        return Err(SysError::last("sched_getattr", ""));
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::{own, shorten};

    #[test]
    fn a_slice_is_taken_and_changes_nothing_else() {
        let look = || {
            let own = own().expect("a look");
            (own.policy, own.nice)
        };
        let before = look();
        shorten().expect("a shorter slice");
        assert_eq!(look(), before);
        assert_eq!(std::thread::spawn(look).join().expect("a thread"), before);
    }
}
