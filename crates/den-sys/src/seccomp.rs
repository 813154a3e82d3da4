//! The system call filter of a computer: everything is allowed but what is about the host, or is
//! attack surface that a computer has no use for. Mounting, namespaces, ptrace and the like are
//! allowed on purpose: a computer is one.
//!
//! A deny list by call number costs nothing for allowed calls, since the kernel (5.11) remembers
//! for which numbers the filter always allows; only `ioctl` and `socket`, whose arguments are
//! looked at, run it. Sources: seccomp(2), bpf classic; lists tried in CONTAINER.md section 10.

use std::os::fd::OwnedFd;

use crate::SysError;

const LD_W_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const USER_NOTIF: u32 = 0x7fc0_0000;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const NEW_LISTENER: libc::c_ulong = 8;

const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;
const ARCH_AARCH64: u32 = 0xc000_00b7;
const X32_BIT: u32 = 0x4000_0000;

const AT_NUMBER: u32 = 0;
const AT_ARCH: u32 = 4;
const AT_ARG0: u32 = 16;
const AT_ARG1: u32 = 24;
const AT_ARG5: u32 = 56;

/// Calls that tell of the host what a computer should know of itself: the agent answers them. Of 64-bit programs
/// only: others see the host.
const HEARD: [libc::c_long; 4] = [libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_sysinfo, libc::SYS_sched_getaffinity];

/// PID 1 starts before it can answer, and glibc asks for its main thread's processors by this number.
const FIRST_PROCESS: u32 = 1;

/// Socket families that are not bound to a network namespace, or only attack surface.
/// AF_VSOCK above all: it reaches the hypervisor whatever the namespace.
const FAMILIES: [u32; 24] = [38, 40, 30, 21, 31, 9, 3, 11, 6, 35, 37, 39, 43, 15, 33, 42, 41, 5, 4, 20, 8, 28, 36, 45];

/// TIOCSTI and TIOCLINUX (typing into someone's terminal); making btrfs subvolumes and snapshots,
/// which would escape a computer's snapshots and quota; btrfs sync and its waits.
const IOCTLS: [u32; 9] =
    [0x5412, 0x541c, 0x5000_940e, 0x5000_9418, 0x5000_9401, 0x5000_9417, 0x9408, 0x8008_9418, 0x4008_9416];

const EPERM: u32 = libc::EPERM as u32;
const ENOSYS: u32 = libc::ENOSYS as u32;
const EACCES: u32 = libc::EACCES as u32;

/// Calls of the native architecture that are refused, and with what.
#[cfg(target_arch = "x86_64")]
fn native_denied() -> Vec<(u32, u32)> {
    let mut denied = common_denied();
    for call in [libc::SYS_iopl, libc::SYS_ioperm] {
        denied.push((call as u32, EPERM));
    }
    for call in [libc::SYS_uselib, libc::SYS__sysctl, libc::SYS_sysfs] {
        denied.push((call as u32, ENOSYS));
    }
    denied
}

#[cfg(not(target_arch = "x86_64"))]
fn native_denied() -> Vec<(u32, u32)> {
    common_denied()
}

fn common_denied() -> Vec<(u32, u32)> {
    let mut denied = Vec::new();
    // Host-global: another kernel, modules, swap, accounting, quota, time, the kernel's log.
    for call in [
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_syslog,
        // Reaches files by handle, past every mount.
        libc::SYS_open_by_handle_at,
        // Large attack surface, or placement of memory on the host.
        libc::SYS_bpf,
        libc::SYS_fanotify_init,
        libc::SYS_vmsplice,
        libc::SYS_move_pages,
        libc::SYS_mbind,
        libc::SYS_migrate_pages,
        libc::SYS_set_mempolicy_home_node,
    ] {
        denied.push((call as u32, EPERM));
    }
    denied.push((libc::SYS_perf_event_open as u32, EACCES));
    // Programs fall back when these do not exist: io_uring (and with it gone, CRIU works), kernel
    // keyrings (not namespaced), userfaultfd.
    for call in [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_userfaultfd,
        libc::SYS_lookup_dcookie,
        libc::SYS_nfsservctl,
    ] {
        denied.push((call as u32, ENOSYS));
    }
    denied
}

/// The same for 32-bit programs on x86; numbers from arch/x86/entry/syscalls/syscall_32.tbl.
const I386_DENIED: [(u32, u32); 41] = [
    (283, EPERM),  // kexec_load
    (128, EPERM),  // init_module
    (350, EPERM),  // finit_module
    (129, EPERM),  // delete_module
    (87, EPERM),   // swapon
    (115, EPERM),  // swapoff
    (51, EPERM),   // acct
    (131, EPERM),  // quotactl
    (443, EPERM),  // quotactl_fd
    (79, EPERM),   // settimeofday
    (264, EPERM),  // clock_settime
    (404, EPERM),  // clock_settime64
    (25, EPERM),   // stime
    (103, EPERM),  // syslog
    (342, EPERM),  // open_by_handle_at
    (357, EPERM),  // bpf
    (338, EPERM),  // fanotify_init
    (316, EPERM),  // vmsplice
    (317, EPERM),  // move_pages
    (274, EPERM),  // mbind
    (294, EPERM),  // migrate_pages
    (450, EPERM),  // set_mempolicy_home_node
    (110, EPERM),  // iopl
    (101, EPERM),  // ioperm
    (336, EACCES), // perf_event_open
    (425, ENOSYS), // io_uring_setup
    (426, ENOSYS), // io_uring_enter
    (427, ENOSYS), // io_uring_register
    (286, ENOSYS), // add_key
    (287, ENOSYS), // request_key
    (288, ENOSYS), // keyctl
    (374, ENOSYS), // userfaultfd
    (253, ENOSYS), // lookup_dcookie
    (169, ENOSYS), // nfsservctl
    (86, ENOSYS),  // uselib
    (166, ENOSYS), // vm86
    (113, ENOSYS), // vm86old
    (149, ENOSYS), // _sysctl
    (135, ENOSYS), // sysfs
    (130, ENOSYS), // get_kernel_syms
    (167, ENOSYS), // query_module
];

/// A compiled filter.
#[derive(Clone)]
pub struct Filter(Vec<libc::sock_filter>);

/// Both filters of a computer: the one that has its calls answered, and the one for where that cannot be.
#[derive(Clone)]
pub struct Filters {
    heard: Filter,
    plain: Filter,
}

impl Filters {
    /// Those of this architecture.
    pub fn of_a_computer() -> Self {
        Self { heard: Filter::of_a_computer(Answers::Listener), plain: Filter::of_a_computer(Answers::Kernel) }
    }

    /// Puts this process under one of them. Returns where its calls arrive; `None` where someone further out listens
    /// already, as to a Den inside a computer, or the kernel has no listeners.
    pub fn install(&self) -> Result<Option<OwnedFd>, SysError> {
        match self.heard.install_heard() {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if matches!(error.errno, libc::EBUSY | libc::EINVAL) => self.plain.install().map(|()| None),
            Err(error) => Err(error),
        }
    }
}

/// Who answers the calls that tell of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The kernel.
    Kernel,
    /// Whoever holds the listener of the filter.
    Listener,
}

impl Filter {
    /// The filter of a computer on this architecture.
    pub fn of_a_computer(answers: Answers) -> Self {
        let heard = match answers {
            Answers::Kernel => Vec::new(),
            Answers::Listener => heard(),
        };
        let mut program = vec![load(AT_ARCH)];
        if cfg!(target_arch = "x86_64") {
            let native =
                section(&native_denied(), libc::SYS_socket as u32, libc::SYS_ioctl as u32, None, Some(X32_BIT), heard);
            // 32-bit programs make sockets by `socket`; `socketcall` hides its family in memory, so
            // sockets cannot be made by it.
            let compat = section(&I386_DENIED, 359, 54, Some(102), None, Vec::new());
            jump_to_section(&mut program, ARCH_X86_64, native);
            jump_to_section(&mut program, ARCH_I386, compat);
        } else {
            let native = section(&native_denied(), libc::SYS_socket as u32, libc::SYS_ioctl as u32, None, None, heard);
            jump_to_section(&mut program, ARCH_AARCH64, native);
        }
        program.push(ret(ERRNO | ENOSYS));
        Self(program)
    }

    /// Puts this process under the filter. It keeps what it has and all it starts has it too.
    /// Needs CAP_SYS_ADMIN in its user namespace; sets no `no_new_privs`, so sudo works.
    pub fn install(&self) -> Result<(), SysError> {
        self.load(0).map(drop)
    }

    /// The same; returns where the calls of [`Answers::Listener`] arrive, for a [`crate::notify::Listener`].
    ///
    /// Errors: `EBUSY` where someone further out listens already.
    pub fn install_heard(&self) -> Result<OwnedFd, SysError> {
        self.load(NEW_LISTENER).map(crate::mount::own)
    }

    fn load(&self, flags: libc::c_ulong) -> Result<libc::c_long, SysError> {
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: `program` points to `len` instructions that live until the call returns; the
        // kernel copies and checks them.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, 1, flags, &program as *const libc::sock_fprog) };
        if result < 0 { Err(SysError::last("seccomp", "")) } else { Ok(result) }
    }
}

fn load(at: u32) -> libc::sock_filter {
    libc::sock_filter { code: LD_W_ABS, jt: 0, jf: 0, k: at }
}

fn ret(action: u32) -> libc::sock_filter {
    libc::sock_filter { code: RET, jt: 0, jf: 0, k: action }
}

/// `if A == k { return errno }`.
fn refuse_if(program: &mut Vec<libc::sock_filter>, k: u32, errno: u32) {
    program.push(libc::sock_filter { code: JEQ, jt: 0, jf: 1, k });
    program.push(ret(ERRNO | errno));
}

/// A list of values of an argument that are refused, run when the call is `call`.
fn argument(call: u32, at: u32, values: &[u32], errno: u32) -> Vec<libc::sock_filter> {
    let mut body = vec![load(at)];
    for &value in values {
        refuse_if(&mut body, value, errno);
    }
    body.push(ret(ALLOW));
    let mut program = vec![libc::sock_filter { code: JEQ, jt: 0, jf: body.len() as u8, k: call }];
    program.append(&mut body);
    program
}

/// Has the listener answer [`HEARD`], but for its own calls.
fn heard() -> Vec<libc::sock_filter> {
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter { code: JEQ, jt, jf, k };
    let mut body = vec![
        jump(libc::SYS_sched_getaffinity as u32, 0, 3),
        load(AT_ARG0),
        jump(FIRST_PROCESS, 0, 1),
        ret(ALLOW),
        load(AT_ARG5),
        jump(crate::notify::OWN, 0, 1),
        ret(ALLOW),
        ret(USER_NOTIF),
    ];
    let mut program = Vec::new();
    for (index, call) in HEARD.into_iter().enumerate() {
        let rest = (HEARD.len() - index - 1) as u8;
        // The last one that is none of them goes past the body.
        let past = if rest == 0 { body.len() as u8 } else { 0 };
        program.push(jump(call as u32, rest, past));
    }
    program.append(&mut body);
    program
}

fn section(
    denied: &[(u32, u32)],
    socket: u32,
    ioctl: u32,
    socketcall: Option<u32>,
    limit: Option<u32>,
    mut heard: Vec<libc::sock_filter>,
) -> Vec<libc::sock_filter> {
    let mut program = vec![load(AT_NUMBER)];
    if let Some(limit) = limit {
        program.push(libc::sock_filter { code: JGE, jt: 0, jf: 1, k: limit });
        program.push(ret(ERRNO | ENOSYS));
    }
    program.append(&mut argument(ioctl, AT_ARG1, &IOCTLS, libc::ENOTTY as u32));
    program.append(&mut argument(socket, AT_ARG0, &FAMILIES, libc::EAFNOSUPPORT as u32));
    if let Some(call) = socketcall {
        // 1 is SYS_SOCKET, 8 is SYS_SOCKETPAIR.
        program.append(&mut argument(call, AT_ARG0, &[1, 8], ENOSYS));
    }
    program.append(&mut heard);
    for &(call, errno) in denied {
        refuse_if(&mut program, call, errno);
    }
    program.push(ret(ALLOW));
    program
}

fn jump_to_section(program: &mut Vec<libc::sock_filter>, arch: u32, section: Vec<libc::sock_filter>) {
    // Conditional jumps reach 255 instructions; the section is longer, so it is skipped by `ja`.
    program.push(libc::sock_filter { code: JEQ, jt: 1, jf: 0, k: arch });
    program.push(libc::sock_filter { code: 0x05, jt: 0, jf: 0, k: section.len() as u32 });
    program.extend(section);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn run(filter: &Filter, arch: u32, number: u32, args: [u64; 2]) -> u32 {
        run_with(filter, arch, number, [args[0], args[1], 0, 0, 0, 0])
    }

    fn run_with(filter: &Filter, arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (place, argument) in args.iter().enumerate() {
            data[16 + 8 * place..24 + 8 * place].copy_from_slice(&argument.to_le_bytes());
        }
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let i = filter.0[at];
            at += 1;
            match i.code {
                LD_W_ABS => a = u32::from_le_bytes(data[i.k as usize..i.k as usize + 4].try_into().unwrap()),
                JEQ => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                JGE => at += usize::from(if a >= i.k { i.jt } else { i.jf }),
                0x05 => at += i.k as usize,
                RET => return i.k,
                other => panic!("code {other}"),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_is_refused_and_what_is_not() {
        let filter = Filter::of_a_computer(Answers::Kernel);
        let native = |call: i64, args| run(&filter, ARCH_X86_64, call as u32, args);
        assert_eq!(native(libc::SYS_mount, [0, 0]), ALLOW);
        assert_eq!(native(libc::SYS_read, [0, 0]), ALLOW);
        assert_eq!(native(libc::SYS_bpf, [0, 0]), ERRNO | EPERM);
        assert_eq!(native(libc::SYS_io_uring_setup, [0, 0]), ERRNO | ENOSYS);
        assert_eq!(native(libc::SYS_socket, [2, 0]), ALLOW);
        assert_eq!(native(libc::SYS_socket, [40, 0]), ERRNO | libc::EAFNOSUPPORT as u32);
        assert_eq!(native(libc::SYS_ioctl, [0, 0x5401]), ALLOW);
        assert_eq!(native(libc::SYS_ioctl, [0, 0x5412]), ERRNO | libc::ENOTTY as u32);
        assert_eq!(run(&filter, ARCH_X86_64, X32_BIT | 1, [0, 0]), ERRNO | ENOSYS);
        assert_eq!(run(&filter, ARCH_I386, 4, [0, 0]), ALLOW);
        assert_eq!(run(&filter, ARCH_I386, 359, [40, 0]), ERRNO | libc::EAFNOSUPPORT as u32);
        assert_eq!(run(&filter, ARCH_I386, 102, [1, 0]), ERRNO | ENOSYS);
        assert_eq!(run(&filter, 0x1234, 0, [0, 0]), ERRNO | ENOSYS);
        assert_eq!(native(libc::SYS_statfs, [0, 0]), ALLOW);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_is_answered_by_the_listener() {
        let filter = Filter::of_a_computer(Answers::Listener);
        let native = |call: i64, args| run_with(&filter, ARCH_X86_64, call as u32, args);
        let own = [0, 0, 0, 0, 0, u64::from(crate::notify::OWN)];
        for call in HEARD {
            assert_eq!(native(call, [0; 6]), USER_NOTIF, "{call}");
            assert_eq!(native(call, own), ALLOW, "{call}");
        }
        assert_eq!(native(libc::SYS_sched_getaffinity, [1, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(native(libc::SYS_statfs, [1, 0, 0, 0, 0, 0]), USER_NOTIF);
        assert_eq!(native(libc::SYS_read, [0; 6]), ALLOW);
        assert_eq!(native(libc::SYS_bpf, [0; 6]), ERRNO | EPERM);
        assert_eq!(native(libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]), ERRNO | libc::ENOTTY as u32);
        assert_eq!(run(&filter, ARCH_I386, 99, [0, 0]), ALLOW, "statfs of 32 bits");
    }
}
