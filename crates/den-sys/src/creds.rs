//! Credentials of the thread: file system ids, owner of what is cloned, capabilities.

use crate::SysError;

/// Capabilities that a computer has no use for, or that are only about the host.
/// Dropping SYS_RAWIO also makes systemd skip units that could not work.
pub const DROPPED_CAPABILITIES: [i32; 8] = [
    17, // SYS_RAWIO
    16, // SYS_MODULE
    25, // SYS_TIME
    35, // WAKE_ALARM
    33, // MAC_ADMIN
    32, // MAC_OVERRIDE
    36, // BLOCK_SUSPEND
    37, // AUDIT_READ
];

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Raises every permitted capability to effective again; changing an id to non-zero drops them.
fn restore_effective() -> Result<(), SysError> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 takes a header and two data structs, which live here.
    if unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) } != 0 {
        return Err(SysError::last("capget", ""));
    }
    for half in &mut data {
        half.effective = half.permitted;
    }
    // SAFETY: as above; the kernel only reads them.
    if unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) } != 0 {
        return Err(SysError::last("capset", ""));
    }
    Ok(())
}

/// File system ids of another user, with all capabilities kept; root's again when dropped.
pub struct FsIds(());

impl FsIds {
    /// Makes and opens files as `owner` from here on, in this thread.
    pub fn become_owner(owner: u32) -> Result<Self, SysError> {
        // SAFETY: these take numbers and cannot fail other than by not changing the id.
        unsafe {
            libc::setfsgid(owner);
            libc::setfsuid(owner);
        }
        let ids = Self(());
        restore_effective()?;
        Ok(ids)
    }
}

impl Drop for FsIds {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            libc::setfsuid(0);
            libc::setfsgid(0);
        }
    }
}

/// Effective ids of another user, with all capabilities kept; root's again when dropped. What is
/// cloned meanwhile belongs to that user: a user namespace's limits are counted against its owner.
pub struct EffectiveIds(());

impl EffectiveIds {
    /// Becomes `owner` in this thread, keeping the real and saved ids.
    pub fn become_owner(owner: u32) -> Result<Self, SysError> {
        // SAFETY: setresgid and setresuid take numbers; raw, so that only this thread changes.
        let changed = unsafe {
            libc::syscall(libc::SYS_setresgid, -1_i32, owner, -1_i32) == 0
                && libc::syscall(libc::SYS_setresuid, -1_i32, owner, -1_i32) == 0
        };
        if !changed {
            return Err(SysError::last("setresuid", owner));
        }
        let ids = Self(());
        restore_effective()?;
        Ok(ids)
    }
}

impl Drop for EffectiveIds {
    fn drop(&mut self) {
        // SAFETY: as above; back to root, which the saved id allows.
        unsafe {
            libc::syscall(libc::SYS_setresuid, -1_i32, 0, -1_i32);
            libc::syscall(libc::SYS_setresgid, -1_i32, 0, -1_i32);
        }
    }
}

/// Becomes root of this user namespace: all ids 0, no supplementary groups where that is allowed.
pub fn become_inner_root() -> Result<(), SysError> {
    // SAFETY: numbers only; raw, since the process is single-threaded.
    unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>());
        if libc::syscall(libc::SYS_setresgid, 0, 0, 0) != 0 || libc::syscall(libc::SYS_setresuid, 0, 0, 0) != 0 {
            return Err(SysError::last("setresuid", 0));
        }
    }
    Ok(())
}

/// Takes [`DROPPED_CAPABILITIES`] out of the bounding set.
pub fn drop_bounding() -> Result<(), SysError> {
    for capability in DROPPED_CAPABILITIES {
        // SAFETY: prctl with numbers. EINVAL means that this kernel does not know the capability.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let error = SysError::last("prctl(CAPBSET_DROP)", capability);
            if error.errno != libc::EINVAL {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Lets this process's /proc files belong to its own user, which a change of ids took away.
pub fn set_dumpable() {
    // SAFETY: prctl with numbers.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
}

/// Ends this process when its parent ends.
pub fn die_with_parent() {
    // SAFETY: prctl with numbers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
    }
}

/// How many ids, from 0 on, this process's user namespace has; `u32::MAX` in the host's.
pub fn ids_here() -> u32 {
    static IDS: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *IDS.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let from_zero = map.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("0")).then(|| words.nth(1)?.parse().ok()).flatten()
        });
        from_zero.unwrap_or(u32::MAX)
    })
}

/// Keeps only these capabilities in this thread and in the threads and programs that it starts from
/// here on; none can be won back. To be called before other threads are started.
pub fn keep_only(capabilities: &[u32]) -> Result<(), SysError> {
    rustix::thread::set_no_new_privs(true).map_err(SysError::rustix("prctl(NO_NEW_PRIVS)", ""))?;
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    for capability in capabilities {
        let half = &mut data[(capability / 32) as usize];
        half.effective |= 1 << (capability % 32);
        half.permitted |= 1 << (capability % 32);
    }
    // SAFETY: version 3 takes a header and two data structs, which live here; the kernel only reads them.
    if unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) } != 0 {
        return Err(SysError::last("capset", ""));
    }
    Ok(())
}
