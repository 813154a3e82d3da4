//! Starting a program, and sending signals.
//!
//! ```text
//! parent   plan made ─ signals blocked ─ clone(VM|VFORK) ........................ errno read
//! child                                     └ signals, session, descriptors, cwd, user ─ execve
//! ```
//!
//! Invariants:
//! - The child shares the parent's memory and runs on its own stack until `execve`, so starting
//!   costs the same however big the parent is. It makes raw system calls and nothing else: no
//!   allocation, no lock, no wrapper of libc that talks to other threads (as `setuid` would).
//! - What goes wrong in the child comes back as a stage and an errno, and the child is reaped.
//!
//! Not here: looking a command up, users, what an errno means to a person.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::{c_char, c_int, c_long, c_void};

use crate::slice::{self, Attributes};

/// The child's stack, in bytes: `start` needs well below 2 KiB of it.
const STACK_BYTES: usize = 32 << 10;

/// The highest signal number of Linux.
pub const SIGNAL_MAX: i32 = 64;

/// A program to start, wholly prepared.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Files to try one after the other, as execvp(3) does: the first that is there runs.
    pub programs: &'a [CString],
    /// Its arguments, its name first.
    pub argv: &'a [CString],
    /// Its environment, `K=V`.
    pub env: &'a [CString],
    /// Where it starts. Tried with the caller's rights and then with the user's.
    pub cwd: &'a CStr,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups.
    pub groups: &'a [u32],
    /// Its descriptors 0, 1 and 2. Each is above 2, or is at its place already.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whether descriptor 0 becomes its controlling terminal.
    pub terminal: Terminal,
    /// Written to its `oom_score_adj`.
    pub oom_score_adj: Option<&'a CStr>,
    /// Its limit on descriptors: soft, hard.
    pub descriptors: Option<(u64, u64)>,
    /// Permission bits that files it makes lack.
    pub umask: u32,
}

/// Whether a program gets a controlling terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// None.
    Absent,
    /// Its descriptor 0.
    Stdin,
}

/// How far a start came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// Making the process.
    Clone = 0,
    /// Putting its descriptors in place.
    Descriptors = 1,
    /// Taking the terminal.
    Terminal = 2,
    /// Going to its directory.
    Cwd = 3,
    /// Becoming its user.
    User = 4,
    /// Running its program.
    Exec = 5,
}

/// Why a program did not start. Nothing of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("starting a program at {stage:?}: errno {errno}")]
pub struct SpawnError {
    /// How far it came.
    pub stage: Stage,
    /// The kernel's error number.
    pub errno: i32,
    /// Which of the programs it is about, at [`Stage::Exec`].
    pub program: usize,
}

struct Plan {
    programs: *const *const c_char,
    programs_len: usize,
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    uid: u32,
    gid: u32,
    groups: *const u32,
    groups_len: usize,
    stdio: [c_int; 3],
    terminal: bool,
    oom_score_adj: *const c_char,
    oom_score_adj_len: usize,
    descriptors: libc::rlimit64,
    limit_descriptors: bool,
    umask: u32,
    slice: *const Attributes,
    failed_stage: u32,
    failed_errno: i32,
    failed_program: usize,
}

const NOT_FAILED: u32 = u32::MAX;

impl Spawn<'_> {
    /// Starts it as the leader of a session and process group of its own, with no signal blocked
    /// or ignored, and returns its process id. The caller reaps it.
    ///
    /// Errors: at `Clone`, EAGAIN at a limit on processes and ENOMEM; at `Exec`, as execve(2), with
    /// EACCES winning over ENOENT where several programs were tried. ENOEXEC is returned, not mended.
    pub fn start(&self) -> Result<u32, SpawnError> {
        for (place, fd) in self.stdio.iter().enumerate() {
            if fd.as_raw_fd() <= 2 && fd.as_raw_fd() != place as c_int {
                return Err(SpawnError { stage: Stage::Descriptors, errno: libc::EINVAL, program: 0 });
            }
        }
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
        };
        let (programs, argv, env) = (pointers(self.programs), pointers(self.argv), pointers(self.env));
        let (soft, hard) = self.descriptors.unwrap_or_default();
        let mut plan = Plan {
            programs: programs.as_ptr(),
            programs_len: self.programs.len(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: self.cwd.as_ptr(),
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.as_ptr(),
            groups_len: self.groups.len(),
            stdio: self.stdio.map(|fd| fd.as_raw_fd()),
            terminal: self.terminal == Terminal::Stdin,
            oom_score_adj: self.oom_score_adj.map_or(ptr::null(), CStr::as_ptr),
            oom_score_adj_len: self.oom_score_adj.map_or(0, |text| text.to_bytes().len()),
            descriptors: libc::rlimit64 { rlim_cur: soft, rlim_max: hard },
            limit_descriptors: self.descriptors.is_some(),
            umask: self.umask,
            slice: slice::usual().map_or(ptr::null(), ptr::from_ref),
            failed_stage: NOT_FAILED,
            failed_errno: 0,
            failed_program: 0,
        };
        let mut stack = Vec::<u128>::with_capacity(STACK_BYTES / size_of::<u128>());
        let plan = &raw mut plan;

        // SAFETY: the set is written by sigfillset before it is read, and both sets live on this
        // frame. The stack is STACK_BYTES of owned memory aligned to 16; clone gets its upper end.
        // CLONE_VFORK holds this thread until the child has called execve or _exit, so `plan`, what
        // it points to (`self`, the vectors above) and the stack outlive the child's use of them.
        // `child` never returns into this frame. Signals are blocked across it, so no handler of
        // this process runs in the child.
        let (pid, errno) = unsafe {
            let mut all = std::mem::zeroed::<libc::sigset_t>();
            let mut before = std::mem::zeroed::<libc::sigset_t>();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let top = stack.as_mut_ptr().add(STACK_BYTES / size_of::<u128>()).cast::<c_void>();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let pid = libc::clone(child, top, flags, plan.cast());
            let errno = *libc::__errno_location();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
            (pid, errno)
        };
        if pid < 0 {
            return Err(SpawnError { stage: Stage::Clone, errno, program: 0 });
        }
        // SAFETY: the child has left this memory (CLONE_VFORK); it wrote the fields before that.
        let (stage, errno, program) = unsafe {
            (
                ptr::read_volatile(&raw const (*plan).failed_stage),
                ptr::read_volatile(&raw const (*plan).failed_errno),
                ptr::read_volatile(&raw const (*plan).failed_program),
            )
        };
        let stage = match stage {
            NOT_FAILED => return Ok(pid as u32),
            1 => Stage::Descriptors,
            2 => Stage::Terminal,
            3 => Stage::Cwd,
            4 => Stage::User,
            _ => Stage::Exec,
        };
        // SAFETY: waits for the child made above, which has ended and which nobody else knows.
        while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } < 0
            && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
        {}
        Err(SpawnError { stage, errno, program })
    }
}

/// The kernel's `struct sigaction`, which differs from libc's.
#[repr(C)]
struct KernelSigaction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `start` passes its plan, which it does not touch while this runs.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    // SAFETY: raw calls on memory that the plan owns: NUL-terminated strings, null-terminated arrays
    // of them, and groups with their length. The process has its own table of descriptors, signal
    // handlers, cwd, umask and credentials (none of CLONE_FILES, _SIGHAND, _FS, and the raw calls
    // change this task only), so the parent notices nothing but errno, which it reads before.
    unsafe {
        let fail = |plan: &mut Plan, stage: Stage, program: usize, errno: i32| -> ! {
            ptr::write_volatile(&raw mut plan.failed_errno, errno);
            ptr::write_volatile(&raw mut plan.failed_program, program);
            ptr::write_volatile(&raw mut plan.failed_stage, stage as u32);
            libc::_exit(127)
        };
        let errno = || *libc::__errno_location();

        let default = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
        for signal in 1..=SIGNAL_MAX {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, ptr::null_mut::<c_void>(), 8_usize);
        }
        libc::syscall(libc::SYS_setsid);
        for place in 0..3 {
            let from = plan.stdio[place as usize];
            let done = if from == place { libc::fcntl(from, libc::F_SETFD, 0) } else { libc::dup2(from, place) };
            if done < 0 {
                fail(plan, Stage::Descriptors, 0, errno());
            }
        }
        if plan.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            fail(plan, Stage::Terminal, 0, errno());
        }
        // Everything of the agent's is close-on-exec; this is for what it was given without.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
        if !plan.oom_score_adj.is_null() {
            let path = c"/proc/self/oom_score_adj";
            let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_WRONLY, 0) as c_int;
            if fd >= 0 {
                libc::write(fd, plan.oom_score_adj.cast(), plan.oom_score_adj_len);
                libc::close(fd);
            }
        }
        if plan.limit_descriptors {
            let limits = &raw const plan.descriptors;
            libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, limits, ptr::null_mut::<c_void>());
        }
        libc::syscall(libc::SYS_umask, plan.umask);
        let there = libc::syscall(libc::SYS_chdir, plan.cwd) == 0;
        if !there && errno() != libc::EACCES {
            fail(plan, Stage::Cwd, 0, errno());
        }
        let (uid, gid) = (plan.uid as c_long, plan.gid as c_long);
        if libc::syscall(libc::SYS_setgroups, plan.groups_len, plan.groups) < 0
            || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
            || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
        {
            fail(plan, Stage::User, 0, errno());
        }
        if !there && libc::syscall(libc::SYS_chdir, plan.cwd) < 0 {
            fail(plan, Stage::Cwd, 0, errno());
        }
        let none = 0_u64;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut::<c_void>(),
            size_of::<u64>(),
        );

        if !plan.slice.is_null() {
            libc::syscall(libc::SYS_sched_setattr, 0, plan.slice, 0);
        }

        let mut denied = None;
        let mut missing = libc::ENOENT;
        for index in 0..plan.programs_len {
            libc::syscall(libc::SYS_execve, *plan.programs.add(index), plan.argv, plan.env);
            match errno() {
                libc::EACCES => denied = denied.or(Some(index)),
                number @ (libc::ENOENT | libc::ENOTDIR) => missing = number,
                number => fail(plan, Stage::Exec, index, number),
            }
        }
        match denied {
            Some(index) => fail(plan, Stage::Exec, index, libc::EACCES),
            None => fail(plan, Stage::Exec, 0, missing),
        }
    }
}

/// Sends a signal as kill(2): to a process; below 0 to a group, at -1 to all but PID 1.
///
/// Errors: ESRCH where there is none; EINVAL for a number that is no signal.
pub fn kill(pid: i32, signal: i32) -> Result<(), i32> {
    // SAFETY: takes two numbers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}

/// Takes over a descriptor that the program was started with, and makes it close-on-exec.
///
/// Errors: EBADF where there is none; EINVAL for 0, 1 and 2, which std holds; EBUSY if it was taken
/// before. Call it first: a descriptor that the program opened itself has an owner already.
pub fn take_descriptor(number: i32) -> std::io::Result<OwnedFd> {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    if !(3..64).contains(&number) {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
    }
    if TAKEN.fetch_or(1 << number, Ordering::Relaxed) & (1 << number) != 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: fcntl takes numbers; that it succeeds shows that the descriptor is open. Nobody else
    // owns it: it is taken once, and by this function's contract it is the starter's, not ours.
    unsafe {
        if libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// Keeps the heap small: one arena whatever the number of threads, and large blocks mapped on
/// their own, so that they go back to the kernel when they are freed. For a program that lies in
/// memory once per computer; call it before the first thread.
pub fn small_heap() {
    // SAFETY: sets parameters of malloc, before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn start(program: &str, argv: &[&str], cwd: &CStr) -> Result<i32, SpawnError> {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").expect("/dev/null");
        let strings = |list: &[&str]| list.iter().map(|s| CString::new(*s).expect("no NUL")).collect::<Vec<_>>();
        let pid = Spawn {
            programs: &strings(&[program]),
            argv: &strings(argv),
            env: &[],
            cwd,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: &[],
            stdio: [null.as_fd(); 3],
            terminal: Terminal::Absent,
            oom_score_adj: None,
            descriptors: None,
            umask: 0o22,
        }
        .start()?;
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
        let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
            .expect("our child")
            .expect("has ended");
        Ok(status.exit_status().unwrap_or(-1))
    }

    #[test]
    fn a_program_runs_and_returns_its_code() {
        assert_eq!(start("/bin/sh", &["sh", "-c", "exit 7"], c"/"), Ok(7));
    }

    #[test]
    fn a_failure_names_its_stage() {
        let stage = |result: Result<i32, SpawnError>| result.map_err(|e| (e.stage, e.errno));
        assert_eq!(stage(start("/no/such", &["x"], c"/")), Err((Stage::Exec, libc::ENOENT)));
        assert_eq!(stage(start("/etc/passwd", &["x"], c"/")), Err((Stage::Exec, libc::EACCES)));
        assert_eq!(stage(start("/bin/true", &["x"], c"/no/such")), Err((Stage::Cwd, libc::ENOENT)));
    }
}
