//! Whether KVM runs a guest here: found out by running two.
//!
//! ```text
//! parent ── fork ──► child   open ─ VM ─ memory ─ vCPU ─ 16-bit guest ─ 64-bit guest ─ exit
//!    │                 └─ writes the stage it is at into a page both see
//!    └── waits at most `limit`, kills, reads the page
//! ```
//!
//! That `/dev/kvm` opens says little: below a hypervisor without nesting, software variants of KVM
//! interpret a guest's first instructions and then stand still. So the first guest writes a byte to
//! a port in real mode and halts, as firmware does; the second does what a kernel does first: it runs
//! in long mode with paging, reads CPUID, clears an SSE register, loads an IDT and takes an
//! exception through it.
//!
//! Invariant: whatever the guest does, the caller is back after `limit`, with nothing left behind.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use crate::SysError;

/// How far a trial came: each was begun, and the last one was not finished unless it is [`Stage::Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stage {
    /// Opening `/dev/kvm` and asking its version.
    Open,
    /// `KVM_CREATE_VM`.
    CreateVm,
    /// `KVM_SET_USER_MEMORY_REGION`.
    Memory,
    /// `KVM_CREATE_VCPU`, its shared page and its CPUID.
    CreateVcpu,
    /// Running 16-bit code.
    RealMode,
    /// Entering 64-bit code.
    LongMode,
    /// Taking an exception in it.
    Exception,
    /// Everything ran.
    Done,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Open,
        Self::CreateVm,
        Self::Memory,
        Self::CreateVcpu,
        Self::RealMode,
        Self::LongMode,
        Self::Exception,
        Self::Done,
    ];

    /// What was tried, in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "opening /dev/kvm",
            Self::CreateVm => "KVM_CREATE_VM",
            Self::Memory => "KVM_SET_USER_MEMORY_REGION",
            Self::CreateVcpu => "KVM_CREATE_VCPU",
            Self::RealMode => "running 16-bit guest code",
            Self::LongMode => "running 64-bit guest code",
            Self::Exception => "an exception in 64-bit guest code",
            Self::Done => "running guest code",
        }
    }
}

/// Why a trial went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It came to its end.
    Done,
    /// A call returned this error.
    Errno(i32),
    /// The guest left by another exit than it should: the `exit_reason` of linux/kvm.h.
    Exit(u32),
    /// KVM interprets the guest and did not know the instruction that begins so: no hardware runs it.
    NotEmulated([u8; 4]),
    /// Nothing came within the limit.
    TimedOut,
    /// The kernel ended the process that tried.
    Killed,
}

/// What came of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// The last stage that was begun.
    pub stage: Stage,
    /// Why it is the last.
    pub ending: Ending,
}

/// Runs the guests in a process of their own, for at most `limit`.
///
/// Errors: only where no process can be made or watched; what KVM refuses is in the [`Trial`].
pub fn trial(limit: Duration) -> Result<Trial, SysError> {
    let board = Board::new()?;
    // SAFETY: the child calls only functions that are async-signal-safe: system calls through libc
    // without locks or allocation, and `_exit`. That is what a fork of a process with threads allows.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(SysError::last("fork", "the trial of KVM")),
        0 => {
            x86::run(&board);
            // SAFETY: `_exit` ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).expect("fork returns no zero to the parent"),
    };
    let in_time = wait(child, limit);
    if !matches!(in_time, Ok(true)) {
        // Still our child and not waited for, so its pid is its own.
        let _ = kill_process(child, Signal::KILL);
    }
    let reaped = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(SysError::rustix("waitpid", "the trial of KVM"))?,
        }
    };
    let ended = reaped.is_some_and(|(_, status)| status.exited());
    let stage = Stage::ALL[(board.read(Slot::Stage) as usize).min(Stage::ALL.len() - 1)];
    let ending = match (in_time?, stage) {
        (false, _) => Ending::TimedOut,
        (true, Stage::Done) => Ending::Done,
        (true, _) if !ended => Ending::Killed,
        (true, _) => match board.read(Slot::Errno) {
            0 if board.read(Slot::Emulation) != 0 => Ending::NotEmulated(board.read(Slot::Instruction).to_le_bytes()),
            0 => Ending::Exit(board.read(Slot::Exit)),
            errno => Ending::Errno(errno as i32),
        },
    };
    Ok(Trial { stage, ending })
}

/// Whether the child ended within `limit`.
fn wait(child: Pid, limit: Duration) -> Result<bool, SysError> {
    let pidfd = pidfd_open(child, PidfdFlags::empty()).map_err(SysError::rustix("pidfd_open", "the trial of KVM"))?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(SysError::rustix("poll", "the trial of KVM")(errno)),
        }
    }
}

/// A page that parent and child both see.
struct Board(*mut AtomicU32);

#[derive(Clone, Copy)]
enum Slot {
    Stage = 0,
    Errno = 1,
    Exit = 2,
    /// Not 0 where KVM gave up on an instruction, which the next slot has.
    Emulation = 3,
    Instruction = 4,
}

const BOARD_BYTES: usize = 4096;

impl Board {
    fn new() -> Result<Self, SysError> {
        // SAFETY: a new anonymous mapping, aliasing nothing.
        let page = unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            libc::mmap(ptr::null_mut(), BOARD_BYTES, access, kind, -1, 0)
        };
        if page == libc::MAP_FAILED { Err(SysError::last("mmap", "")) } else { Ok(Self(page.cast())) }
    }

    fn slot(&self, slot: Slot) -> &AtomicU32 {
        // SAFETY: the mapping lives as long as `self`, is page-aligned, zeroed, and longer than any slot.
        unsafe { &*self.0.add(slot as usize) }
    }

    fn read(&self, slot: Slot) -> u32 {
        self.slot(slot).load(Ordering::Acquire)
    }

    fn write(&self, slot: Slot, value: u32) {
        self.slot(slot).store(value, Ordering::Release);
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, to which no reference outlives `self`.
        unsafe { libc::munmap(self.0.cast(), BOARD_BYTES) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    //! Guests for other processors are not written: the trial ends at what it cannot try.
    pub(super) fn run(board: &super::Board) {
        board.write(super::Slot::Errno, libc::ENOSYS as u32);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The child: no allocation, no panic, no lock.

    use super::*;

    const MEMORY_BYTES: usize = 64 << 10;
    // Where things lie in the guest's memory.
    const TABLES: usize = 0x1000; // PML4, PDPT, PD: a page each; the first 2 MiB map to themselves.
    const GDT: usize = 0x4000;
    const IDT: usize = 0x5000;
    const IDT_POINTER: usize = 0x6000;
    const STACK_TOP: u64 = 0x8000;
    const CODE: usize = 0x8000;
    const HANDLER: usize = 0x9000;

    const PORT: u16 = 0x3f8;

    /// Real mode: `mov dx, 0x3f8; mov al, 'R'; out dx, al; hlt`.
    const REAL: [u8; 7] = [0xba, 0xf8, 0x03, 0xb0, b'R', 0xee, 0xf4];
    /// Long mode: `mov dx, 0x3f8; mov al, 'L'; out dx, al; xor eax, eax; cpuid; xorps xmm0, xmm0;
    /// lidt [0x6000]; int3; mov dx, 0x3f8; mov al, 'K'; out dx, al; hlt`.
    const LONG: [u8; 35] = [
        0x66, 0xba, 0xf8, 0x03, 0xb0, b'L', 0xee, 0x31, 0xc0, 0x0f, 0xa2, 0x0f, 0x57, 0xc0, 0x0f, 0x01, 0x1c, 0x25,
        0x00, 0x60, 0x00, 0x00, 0xcc, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'K', 0xee, 0xf4, 0x90, 0x90, 0x90, 0x90,
    ];
    /// Its handler of `int3`: `mov dx, 0x3f8; mov al, 'I'; out dx, al; iretq`.
    const ON_INT3: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'I', 0xee, 0x48, 0xcf];

    // linux/kvm.h and asm/kvm.h.
    const KVM_GET_API_VERSION: c_ulong = 0xae00;
    const KVM_CREATE_VM: c_ulong = 0xae01;
    const KVM_GET_VCPU_MMAP_SIZE: c_ulong = 0xae04;
    const KVM_GET_SUPPORTED_CPUID: c_ulong = 0xc008_ae05;
    const KVM_CREATE_VCPU: c_ulong = 0xae41;
    const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
    const KVM_SET_TSS_ADDR: c_ulong = 0xae47;
    const KVM_RUN: c_ulong = 0xae80;
    const KVM_SET_REGS: c_ulong = 0x4090_ae82;
    const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
    const KVM_SET_SREGS: c_ulong = 0x4138_ae84;
    const KVM_SET_CPUID2: c_ulong = 0x4008_ae90;
    const KVM_EXIT_IO: u32 = 2;
    const KVM_EXIT_HLT: u32 = 5;
    const KVM_EXIT_INTERNAL_ERROR: u32 = 17;
    const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
    const INSTRUCTION_BYTES_KNOWN: u64 = 1;
    const API_VERSION: c_int = 12;

    #[repr(C)]
    struct MemoryRegion {
        slot: u32,
        flags: u32,
        guest_address: u64,
        bytes: u64,
        host_address: u64,
    }

    /// `kvm_regs`: rax … rdx, rsi, rdi, rsp, rbp, r8 … r15, rip, rflags.
    #[repr(C)]
    #[derive(Default)]
    struct Registers {
        general: [u64; 6],
        rsp: u64,
        rbp: u64,
        high: [u64; 8],
        rip: u64,
        rflags: u64,
    }

    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Segment {
        base: u64,
        limit: u32,
        selector: u16,
        kind: u8,
        present: u8,
        dpl: u8,
        db: u8,
        s: u8,
        l: u8,
        g: u8,
        avl: u8,
        unusable: u8,
        padding: u8,
    }

    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Table {
        base: u64,
        limit: u16,
        padding: [u16; 3],
    }

    /// `kvm_sregs`.
    #[repr(C)]
    #[derive(Default)]
    struct Special {
        cs: Segment,
        data: [Segment; 5], // ds, es, fs, gs, ss
        tr: Segment,
        ldt: Segment,
        gdt: Table,
        idt: Table,
        cr0: u64,
        cr2: u64,
        cr3: u64,
        cr4: u64,
        cr8: u64,
        efer: u64,
        apic_base: u64,
        interrupts: [u64; 4],
    }

    const CPUID_ENTRIES_MAX: usize = 256;

    /// `kvm_cpuid2`; an entry is 40 bytes.
    #[repr(C)]
    struct Cpuid {
        count: u32,
        padding: u32,
        entries: [[u32; 10]; CPUID_ENTRIES_MAX],
    }

    const _: () = assert!(mem::size_of::<Registers>() == 0x90 && mem::size_of::<Special>() == 0x138);

    /// The head of `kvm_run` up to the `io` member of its union.
    #[repr(C)]
    struct Run {
        request: [u8; 8],
        exit_reason: u32,
        flags: [u8; 4],
        cr8: u64,
        apic_base: u64,
        io_direction: u8,
        io_size: u8,
        io_port: u16,
        io_count: u32,
        io_offset: u64,
    }

    /// The same with the `emulation_failure` member.
    #[repr(C)]
    struct Failure {
        head: [u64; 4],
        suberror: u32,
        count: u32,
        flags: u64,
        instruction_bytes: u8,
        instruction: [u8; 15],
    }

    /// The trial has ended early; the board says why.
    struct Over;

    struct Vcpu<'a> {
        board: &'a Board,
        fd: c_int,
        run: *const Run,
        memory: *mut u8,
    }

    pub(super) fn run(board: &Board) {
        // The descriptors and mappings end with the process, a moment from now.
        let _ = guests(board);
    }

    fn guests(board: &Board) -> Result<(), Over> {
        // SAFETY: asks for SIGKILL when the parent is gone; takes no pointer.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0, 0, 0) };
        board.write(Slot::Stage, Stage::Open as u32);
        // SAFETY: a constant C string.
        let kvm = check(board, unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?;
        if call(board, kvm, KVM_GET_API_VERSION, 0)? != API_VERSION {
            board.write(Slot::Errno, libc::ENOTSUP as u32);
            return Err(Over);
        }
        board.write(Slot::Stage, Stage::CreateVm as u32);
        let machine = call(board, kvm, KVM_CREATE_VM, 0)?;
        // Wanted by Intel processors without unrestricted guests; refused by others, which is as well.
        let _ = ioctl(machine, KVM_SET_TSS_ADDR, 0xfffb_d000);

        board.write(Slot::Stage, Stage::Memory as u32);
        let memory = map(board, MEMORY_BYTES, -1)?;
        let region = MemoryRegion {
            slot: 0,
            flags: 0,
            guest_address: 0,
            bytes: MEMORY_BYTES as u64,
            host_address: memory as u64,
        };
        call(board, machine, KVM_SET_USER_MEMORY_REGION, address(&region))?;

        board.write(Slot::Stage, Stage::CreateVcpu as u32);
        let fd = call(board, machine, KVM_CREATE_VCPU, 0)?;
        let shared = call(board, kvm, KVM_GET_VCPU_MMAP_SIZE, 0)?;
        let run = map(board, shared as usize, fd)?.cast::<Run>();
        let mut cpuid = Cpuid { count: CPUID_ENTRIES_MAX as u32, padding: 0, entries: [[0; 10]; CPUID_ENTRIES_MAX] };
        call(board, kvm, KVM_GET_SUPPORTED_CPUID, address_mut(&mut cpuid))?;
        call(board, fd, KVM_SET_CPUID2, address(&cpuid))?;

        let vcpu = Vcpu { board, fd, run, memory };
        vcpu.real_mode()?;
        vcpu.long_mode()
    }

    impl Vcpu<'_> {
        fn real_mode(&self) -> Result<(), Over> {
            self.board.write(Slot::Stage, Stage::RealMode as u32);
            self.place(CODE, &REAL);
            let mut special = Special::default();
            call(self.board, self.fd, KVM_GET_SREGS, address_mut(&mut special))?;
            special.cs.base = 0;
            special.cs.selector = 0;
            call(self.board, self.fd, KVM_SET_SREGS, address(&special))?;
            self.start_at(CODE)?;
            self.expect_byte(b'R')?;
            self.expect_halt()
        }

        fn long_mode(&self) -> Result<(), Over> {
            self.board.write(Slot::Stage, Stage::LongMode as u32);
            let table = |place: usize, entry: u64| self.place(place, &entry.to_le_bytes());
            table(TABLES, (TABLES as u64 + 0x1000) | 3); // present, writable
            table(TABLES + 0x1000, (TABLES as u64 + 0x2000) | 3);
            table(TABLES + 0x2000, 0x83); // and 2 MiB large
            table(GDT + 8, 0x00af_9b00_0000_ffff); // 64-bit code
            table(GDT + 16, 0x00cf_9300_0000_ffff); // data
            // Gate 3: the handler's address in pieces around the code selector and `present, interrupt gate`.
            table(IDT + 3 * 16, (HANDLER as u64 & 0xffff) | 8 << 16 | 0x8e00 << 32);
            self.place(IDT_POINTER, &(16 * 32 - 1_u16).to_le_bytes());
            table(IDT_POINTER + 2, IDT as u64);
            self.place(CODE, &LONG);
            self.place(HANDLER, &ON_INT3);

            let mut special = Special::default();
            call(self.board, self.fd, KVM_GET_SREGS, address_mut(&mut special))?;
            let flat = Segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Segment::default() };
            special.cs = Segment { selector: 8, kind: 0xb, l: 1, ..flat };
            special.data = [Segment { selector: 16, kind: 3, db: 1, ..flat }; 5];
            special.gdt = Table { base: GDT as u64, limit: 23, ..Table::default() };
            special.cr3 = TABLES as u64;
            special.cr4 = 1 << 5 | 1 << 9 | 1 << 10; // PAE, OSFXSR, OSXMMEXCPT
            special.cr0 = 1 << 31 | 1 << 16 | 0x33; // PG, WP, NE, ET, MP, PE
            special.efer = 1 << 10 | 1 << 8; // LMA, LME
            call(self.board, self.fd, KVM_SET_SREGS, address(&special))?;
            self.start_at(CODE)?;
            self.expect_byte(b'L')?;
            self.board.write(Slot::Stage, Stage::Exception as u32);
            self.expect_byte(b'I')?;
            self.expect_byte(b'K')?;
            self.expect_halt()?;
            self.board.write(Slot::Stage, Stage::Done as u32);
            Ok(())
        }

        fn place(&self, at: usize, bytes: &[u8]) {
            // SAFETY: every place is a constant with its bytes within the MEMORY_BYTES mapped at `memory`,
            // and the guest does not run while we write.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.add(at), bytes.len()) };
        }

        fn start_at(&self, place: usize) -> Result<(), Over> {
            let registers = Registers { rip: place as u64, rsp: STACK_TOP, rflags: 2, ..Registers::default() };
            call(self.board, self.fd, KVM_SET_REGS, address(&registers)).map(drop)
        }

        /// Runs until the guest leaves, and returns why it did.
        fn leave(&self) -> Result<u32, Over> {
            while let Err(errno) = ioctl(self.fd, KVM_RUN, 0) {
                if errno != libc::EINTR && errno != libc::EAGAIN {
                    self.board.write(Slot::Errno, errno as u32);
                    return Err(Over);
                }
            }
            // SAFETY: the kernel shares at least a page here, and writes it only during KVM_RUN.
            Ok(unsafe { ptr::read_volatile(&raw const (*self.run).exit_reason) })
        }

        fn expect_byte(&self, byte: u8) -> Result<(), Over> {
            let exit = self.leave()?;
            if exit == KVM_EXIT_IO {
                // SAFETY: as in `leave`; the offset is the kernel's, within the pages that it shares.
                let (port, found) = unsafe {
                    let run = ptr::read_volatile(self.run);
                    (run.io_port, ptr::read_volatile(self.run.cast::<u8>().add(run.io_offset as usize)))
                };
                if port == PORT && found == byte {
                    return Ok(());
                }
            }
            self.astray(exit)
        }

        fn expect_halt(&self) -> Result<(), Over> {
            match self.leave()? {
                KVM_EXIT_HLT => Ok(()),
                exit => self.astray(exit),
            }
        }

        /// Notes an exit that the guest did not ask for.
        fn astray(&self, exit: u32) -> Result<(), Over> {
            self.board.write(Slot::Exit, exit);
            if exit == KVM_EXIT_INTERNAL_ERROR {
                // SAFETY: as in `leave`; the union is longer than this member of it.
                let failure = unsafe { ptr::read_volatile(self.run.cast::<Failure>()) };
                if failure.suberror == KVM_INTERNAL_ERROR_EMULATION {
                    self.board.write(Slot::Emulation, 1);
                    if failure.count >= 3 && failure.flags & INSTRUCTION_BYTES_KNOWN != 0 {
                        let [a, b, c, d, ..] = failure.instruction;
                        self.board.write(Slot::Instruction, u32::from_le_bytes([a, b, c, d]));
                    }
                }
            }
            Err(Over)
        }
    }

    fn address<T>(value: &T) -> c_long {
        ptr::from_ref(value) as c_long
    }

    fn address_mut<T>(value: &mut T) -> c_long {
        ptr::from_mut(value) as c_long
    }

    fn ioctl(fd: c_int, request: c_ulong, argument: c_long) -> Result<c_int, c_int> {
        // SAFETY: only called with requests of KVM and either a number or the address of a live value
        // of the struct that the request reads or fills, checked against its size in the request.
        match unsafe { libc::ioctl(fd, request, argument) } {
            // SAFETY: errno of this thread.
            -1 => Err(unsafe { *libc::__errno_location() }),
            value => Ok(value),
        }
    }

    fn call(board: &Board, fd: c_int, request: c_ulong, argument: c_long) -> Result<c_int, Over> {
        ioctl(fd, request, argument).map_err(|errno| {
            board.write(Slot::Errno, errno as u32);
            Over
        })
    }

    fn check(board: &Board, value: c_int) -> Result<c_int, Over> {
        if value >= 0 {
            return Ok(value);
        }
        // SAFETY: errno of this thread.
        board.write(Slot::Errno, unsafe { *libc::__errno_location() } as u32);
        Err(Over)
    }

    fn map(board: &Board, bytes: usize, fd: c_int) -> Result<*mut u8, Over> {
        let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
        // SAFETY: a new mapping at an address that the kernel chooses, aliasing nothing.
        let at: *mut c_void =
            unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, kind, fd, 0) };
        if at == libc::MAP_FAILED { check(board, -1).map(|_| ptr::null_mut()) } else { Ok(at.cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_comes_back_in_time_and_leaves_no_child() {
        let begun = Instant::now();
        let trial = trial(Duration::from_secs(1)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{trial:?}");
        assert_eq!(trial.stage == Stage::Done, trial.ending == Ending::Done, "{trial:?}");
        eprintln!("{trial:?} after {:?}", begun.elapsed());
    }
}
