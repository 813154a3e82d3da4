//! Processes made with clone3(2), and waited for by descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::SysError;
use crate::mount::own;

/// In which of the two one finds oneself.
pub enum Cloned {
    /// The caller, with the new process.
    Parent(Child),
    /// The new process, which must not return from what called `clone`.
    Child,
}

/// A process that was cloned.
#[derive(Debug)]
pub struct Child {
    /// Its number in the caller's pid namespace.
    pub pid: i32,
}

/// Namespaces of a computer but for the user namespace's outer level.
pub const COMPUTER_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS) as u64;

/// A new user namespace.
pub const USER_NAMESPACE: u64 = libc::CLONE_NEWUSER as u64;

/// The new process becomes the caller's sibling, not its child.
pub const SIBLING: u64 = libc::CLONE_PARENT as u64;

/// CLONE_INTO_CGROUP of linux/sched.h.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones this process as fork(2) does, with `flags`.
///
/// Only for a single-threaded process, whose copy may then do whatever the process itself may.
pub fn clone(flags: u64) -> Result<Cloned, SysError> {
    clone_into(flags, None)
}

/// As [`clone()`]; the new process is born in this cgroup (the directory of a v2 one).
///
/// A process that is moved waits for a grace period of RCU, and every fork on the host waits with it; one
/// that is born there does not. Source: CLONE_INTO_CGROUP in clone(2), Linux 5.7.
pub fn clone_into(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, SysError> {
    let sibling = flags & SIBLING != 0;
    let flags = if cgroup.is_some() { flags | INTO_CGROUP } else { flags };
    let arguments = CloneArgs {
        flags,
        exit_signal: if sibling { 0 } else { libc::SIGCHLD as u64 },
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the copy has its own memory and stack, as after fork(2). The
    // process is single-threaded, so no lock is held by a thread that the copy lacks.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &arguments as *const CloneArgs, size_of::<CloneArgs>()) };
    match result {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => Ok(Cloned::Parent(Child { pid: pid as i32 })),
        _ => Err(SysError::last("clone3", format_args!("{flags:#x}"))),
    }
}

/// Whether the kernel knows clone3 and no filter hides it: a call without arguments is `EINVAL` then, else `ENOSYS`.
pub fn clone3_is_known() -> bool {
    // SAFETY: the kernel refuses a size of 0 before it looks at the pointer (clone3(2), EINVAL).
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<CloneArgs>(), 0_usize) };
    result == -1 && SysError::last("clone3", "").errno == libc::EINVAL
}

/// struct clone_args of linux/sched.h, version 2 (88 bytes).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A descriptor of the process `pid`, readable once it has ended.
///
/// Errors: `ESRCH` where there is none.
pub fn pidfd(pid: i32) -> Result<OwnedFd, SysError> {
    // SAFETY: numbers only; a non-negative result is a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 { Err(SysError::last("pidfd_open", pid)) } else { Ok(own(fd)) }
}

/// Sends SIGKILL to the process behind `pidfd`. One that has ended is no error.
pub fn kill(pidfd: impl AsFd) -> Result<(), SysError> {
    match rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(SysError::new("pidfd_send_signal", "", errno.raw_os_error())),
    }
}

/// Waits for the child `pid` and returns its status as wait(2) has it; `None` if it still runs and
/// `block` says not to wait, or it is no child.
pub fn reap(pid: i32, block: bool) -> Option<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` lives here; waitpid writes only to it.
        let result = unsafe { libc::waitpid(pid, &mut status, if block { 0 } else { libc::WNOHANG }) };
        if result == pid {
            return Some(status);
        }
        if result < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
            continue;
        }
        return None;
    }
}

/// Collects every child that has ended.
pub fn reap_ended() {
    // SAFETY: without a place for the status, waitpid writes nothing.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Ends this process without running anything else of it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and runs no handlers.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) {
    // SAFETY: only called where no owner of a descriptor from `first` on is used or dropped
    // afterwards: just before execve or _exit.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, 0);
    }
}

/// Closes every descriptor from 3 on but these.
pub fn close_others(keep: &[BorrowedFd<'_>]) {
    let mut numbers: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        if number > first {
            // SAFETY: as for `close_from`: the caller is a copy of a process and never uses or drops
            // the owners of what is not in `keep`.
            unsafe {
                libc::syscall(libc::SYS_close_range, first, number - 1, 0);
            }
        }
        first = first.max(number + 1);
    }
    close_from(first);
}

/// Gives this thread descriptors of its own, without these: what the others of its process hold open of them ends with
/// them then, also while this thread waits in the kernel. All else it has at the numbers that it had.
///
/// Whatever owns a descriptor must not be dropped here as its last owner: that would close it here alone.
pub fn apart_from(without: &[RawFd]) -> Result<(), SysError> {
    // SAFETY: takes nothing from other threads. What is closed is this thread's copy, which nothing here owns.
    unsafe {
        if libc::unshare(libc::CLONE_FILES) != 0 {
            return Err(SysError::last("unshare(FILES)", ""));
        }
        for &number in without {
            libc::close(number);
        }
    }
    Ok(())
}

/// Puts a copy of `fd` at the number `at`, without close-on-exec.
pub fn place(fd: BorrowedFd<'_>, at: i32) -> Result<(), SysError> {
    // SAFETY: numbers only. What was at `at` is closed: the callers use numbers whose owners are
    // never touched again before execve.
    let result = unsafe {
        if fd.as_raw_fd() == at { libc::fcntl(at, libc::F_SETFD, 0) } else { libc::dup2(fd.as_raw_fd(), at) }
    };
    if result < 0 { Err(SysError::last("dup2", at)) } else { Ok(()) }
}

/// Runs the program behind `program` in place of this one. Returns only on failure.
pub fn exec_fd(program: BorrowedFd<'_>, arguments: &[&std::ffi::CStr], environment: &[&std::ffi::CStr]) -> SysError {
    let pointers = |texts: &[&std::ffi::CStr]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer and point to C strings that live until the call
    // returns, which it does only on failure.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    SysError::last("execveat", "")
}

/// Moves this thread into the network namespace behind `namespace`.
pub fn enter_network(namespace: BorrowedFd<'_>) -> Result<(), SysError> {
    // SAFETY: numbers only; the caller is single-threaded.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result != 0 { Err(SysError::last("setns(NEWNET)", "")) } else { Ok(()) }
}

/// Puts this process into a namespace of its own of this kind.
pub fn unshare(kind: Unshare) -> Result<(), SysError> {
    let flag = match kind {
        Unshare::Network => libc::CLONE_NEWNET,
        Unshare::Cgroup => libc::CLONE_NEWCGROUP,
        Unshare::Mount => libc::CLONE_NEWNS,
    };
    // SAFETY: numbers only; the caller is single-threaded.
    if unsafe { libc::unshare(flag) } != 0 { Err(SysError::last("unshare", flag)) } else { Ok(()) }
}

/// Has the time since boot begin now, for this process and all that come of it: a time namespace of its own.
/// `proc` is a proc of this process's pid namespace. Monotonic time stays the host's.
///
/// Errors: `EINVAL` where the kernel has none (before Linux 5.6, or built without).
pub fn begin_time(proc: BorrowedFd<'_>) -> Result<(), SysError> {
    let flags = rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::RDWR;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // SAFETY: numbers only; what this process itself is in stays as it is until `setns`.
    if unsafe { libc::unshare(libc::CLONE_NEWTIME) } != 0 {
        return Err(SysError::last("unshare(NEWTIME)", ""));
    }
    let offsets = rustix::fs::openat(proc, "self/timens_offsets", flags, rustix::fs::Mode::empty())
        .map_err(SysError::rustix("open", "timens_offsets"))?;
    // The new one begins with what this process's own has, and what is written counts from the host's boot.
    let mut text = [0; OFFSETS_BYTES_MAX];
    let length = rustix::io::pread(&offsets, &mut text, 0).map_err(SysError::rustix("read", "timens_offsets"))?;
    let (seconds, nanoseconds) = boottime_offset(&text[..length]);
    rustix::io::write(&offsets, format!("boottime {} {nanoseconds}", seconds - now.tv_sec).as_bytes())
        .map_err(SysError::rustix("write", "timens_offsets"))?;
    let read = rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::RDONLY;
    let namespace = rustix::fs::openat(proc, "self/ns/time_for_children", read, rustix::fs::Mode::empty())
        .map_err(SysError::rustix("open", "ns/time_for_children"))?;
    // SAFETY: numbers only; the caller is single-threaded.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWTIME) };
    if result != 0 { Err(SysError::last("setns(NEWTIME)", "")) } else { Ok(()) }
}

/// The longest /proc/self/timens_offsets, in bytes: two lines.
const OFFSETS_BYTES_MAX: usize = 256;

/// Seconds and nanoseconds in the line of the time since boot.
fn boottime_offset(text: &[u8]) -> (i64, u32) {
    let text = String::from_utf8_lossy(text);
    let numbers = text.lines().find_map(|line| line.strip_prefix("boottime")).unwrap_or_default();
    let mut numbers = numbers.split_whitespace();
    let seconds = numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (seconds, numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0))
}

/// Ignores faults of memory, which cannot be: the kernel ends who makes one all the same. The library that Rust
/// programs are built with then sets up no handler of its own, which costs each new thread five calls.
pub fn ignore_faults() {
    // SAFETY: sets dispositions; no handler runs.
    unsafe {
        libc::signal(libc::SIGSEGV, libc::SIG_IGN);
        libc::signal(libc::SIGBUS, libc::SIG_IGN);
    }
}

/// Kinds of namespaces for [`unshare`].
#[derive(Debug, Clone, Copy)]
pub enum Unshare {
    /// CLONE_NEWNET.
    Network,
    /// CLONE_NEWCGROUP; its root is the cgroup that the process is in.
    Cgroup,
    /// CLONE_NEWNS.
    Mount,
}

/// Raises limits of another process as far as this host lets us: open files, locked memory, nice.
/// A host that refuses (no CAP_SYS_RESOURCE) leaves what there is.
pub fn raise_limits(pid: i32) {
    let limits = [
        (libc::RLIMIT_NOFILE, 1 << 20),
        (libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY),
        (libc::RLIMIT_NICE, 40),
        (libc::RLIMIT_NPROC, libc::RLIM_INFINITY),
        (libc::RLIMIT_CORE, 0),
    ];
    for (resource, value) in limits {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let new =
            libc::rlimit { rlim_cur: value, rlim_max: value.max(if value == 0 { libc::RLIM_INFINITY } else { 0 }) };
        // SAFETY: both structs live here.
        unsafe {
            if resource == libc::RLIMIT_CORE {
                if libc::prlimit(pid, resource, std::ptr::null(), &mut old) == 0 {
                    let soft = libc::rlimit { rlim_cur: 0, rlim_max: old.rlim_max };
                    libc::prlimit(pid, resource, &soft, std::ptr::null_mut());
                }
            } else if libc::prlimit(pid, resource, &new, std::ptr::null_mut()) != 0
                && libc::prlimit(pid, resource, std::ptr::null(), &mut old) == 0
            {
                let soft = libc::rlimit { rlim_cur: old.rlim_max, rlim_max: old.rlim_max };
                libc::prlimit(pid, resource, &soft, std::ptr::null_mut());
            }
        }
    }
}

/// Names a device.
pub fn device(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_namespaces_add_up() {
        assert_eq!(boottime_offset(b"monotonic           0         0\nboottime       -1234       567\n"), (-1234, 567));
        assert_eq!(boottime_offset(b"monotonic           1         2\n"), (0, 0));
    }
}
