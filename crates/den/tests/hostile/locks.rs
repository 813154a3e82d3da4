//! Small things of the kernel's without number: file locks, timers, message queues, shared memory.

use crate::world::World;

#[test]
fn locks_timers_and_queues_end_at_limits() {
    let world = World::new();
    let attack = world.withstand(
        "import ctypes, fcntl, os, time\n\
         l = ctypes.CDLL(None, use_errno=True)\n\
         t, n = ctypes.c_long(), 0\n\
         while n < 3000000 and l.timer_create(0, None, ctypes.byref(t)) == 0: n += 1\n\
         print('timers', n)\n\
         n = 0\n\
         while n < 100000 and l.shmget(0, 1 << 20, 0o1666) >= 0: n += 1\n\
         print('segments', n)\n\
         n = 0\n\
         while n < 100000 and l.msgget(0, 0o1666) >= 0: n += 1\n\
         print('queues', n)\n\
         n, until = 0, time.time() + 3\n\
         with open('/root/l', 'w') as f:\n\
         \x20try:\n\
         \x20\x20while time.time() < until: fcntl.lockf(f, fcntl.LOCK_EX, 1, n * 2); n += 1\n\
         \x20except OSError as e: print(e.strerror)\n\
         print('locks', n)",
    );
    if attack.code != 137 {
        assert!(attack.number("timers") < 3_000_000, "{attack:?}");
        assert!(attack.number("segments") < 100_000, "{attack:?}");
        assert!(attack.number("queues") < 100_000, "{attack:?}");
    }
    world.attacker_goes_on();
}
