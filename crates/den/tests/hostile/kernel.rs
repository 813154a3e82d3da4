//! What is the kernel's own: its log, its clock, its settings, its keys, and the files of /proc and /sys.

use crate::world::World;

#[test]
fn nothing_of_the_kernels_is_read_or_set() {
    let world = World::new();
    let set = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let settings = [
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/swappiness",
        "/proc/sys/fs/file-max",
    ];
    let before = settings.map(set);
    let attack = world.withstand(
        "import os\n\
         wrote, read = [], []\n\
         for root, dirs, files in os.walk('/proc/sys'):\n\
         \x20if root.startswith('/proc/sys/net') or root.startswith('/proc/sys/user'): continue\n\
         \x20for f in files:\n\
         \x20\x20p = root + '/' + f\n\
         \x20\x20try: d = os.open(p, os.O_WRONLY); os.close(d); wrote.append(p)\n\
         \x20\x20except OSError: pass\n\
         for p in ['/proc/kmsg', '/proc/kcore', '/proc/sysrq-trigger', '/dev/mem', '/dev/kmem', '/dev/port', '/sys/kernel/security/lockdown',\n\
         \x20\x20\x20'/sys/kernel/debug/x', '/sys/kernel/tracing/trace', '/sys/firmware/dmi/tables/DMI', '/sys/fs/bpf', '/proc/timer_list', '/proc/sched_debug', '/proc/vmallocinfo', '/proc/slabinfo']:\n\
         \x20try:\n\
         \x20\x20with open(p, 'rb') as f:\n\
         \x20\x20\x20if f.read(1): read.append(p)\n\
         \x20except OSError: pass\n\
         for root, dirs, files in os.walk('/sys'):\n\
         \x20if root.startswith('/sys/fs/cgroup') or root.startswith('/sys/devices/virtual/net') or root.startswith('/sys/class/net'): dirs[:] = []; continue\n\
         \x20for f in files:\n\
         \x20\x20p = root + '/' + f\n\
         \x20\x20try: d = os.open(p, os.O_WRONLY); os.close(d); wrote.append(p)\n\
         \x20\x20except OSError: pass\n\
         print('wrote', wrote); print('read', read)",
    );
    // What is there once for each set of namespaces is the computer's own.
    let own = [
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/domainname",
        "/proc/sys/kernel/sem",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/kernel/pid_max",
        "/proc/sys/kernel/auto_msgmni",
    ];
    let own = |path: &str| {
        own.contains(&path)
            || path.starts_with("/proc/sys/kernel/shm")
            || path.starts_with("/proc/sys/kernel/msg")
            || path.starts_with("/proc/sys/kernel/sem")
            || path.starts_with("/proc/sys/fs/mqueue/")
    };
    let list = |word: &str| -> Vec<String> {
        let line = attack.said.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("{attack:?}"));
        line.split('\'').filter(|path| path.starts_with('/')).map(str::to_owned).collect()
    };
    let foreign: Vec<String> = list("wrote ").into_iter().filter(|path| !own(path)).collect();
    assert!(foreign.is_empty(), "opened for writing: {foreign:?}");
    assert_eq!(list("read "), Vec::<String>::new());
    assert_eq!(settings.map(set), before, "settings of the host");
    world.attacker_goes_on();
}

#[test]
fn keys_and_the_clock_are_out_of_reach() {
    let world = World::new();
    let attack = world.withstand(
        "import ctypes, time, os\n\
         l = ctypes.CDLL(None, use_errno=True)\n\
         def call(name, *args):\n\
         \x20r = l.syscall(*args); print(name, ctypes.get_errno() if r < 0 else 'allowed')\n\
         if os.uname().machine == 'x86_64':\n\
         \x20call('add_key', 248, b'user', b'x', b'y', 1, -3)\n\
         \x20call('keyctl', 250, 0, -3, 0)\n\
         \x20call('settimeofday', 164, ctypes.create_string_buffer(16), None)\n\
         \x20call('clock_settime', 227, 0, ctypes.create_string_buffer(16))\n\
         \x20call('reboot', 169, 0xfee1dead, 672274793, 0, 0)\n\
         try: time.clock_settime(time.CLOCK_REALTIME, 0); print('clock allowed')\n\
         except OSError as e: print('clock', e.errno)\n\
         print('year', time.gmtime().tm_year)",
    );
    for name in ["add_key", "keyctl", "settimeofday", "clock_settime", "reboot", "clock"] {
        assert!(!attack.said.contains(&format!("{name} allowed")), "{attack:?}");
    }
    assert!(attack.number("year") >= 2026, "{attack:?}");
    world.attacker_goes_on();
}
