//! Open files: of one process, of many, and in flight over sockets.

use std::time::Duration;

use crate::world::{World, host};

#[test]
fn open_files_are_paid_from_the_attackers_memory() {
    let world = World::new();
    let before = host();
    let attack = world.withstand(
        "import os, time\n\
         kids = []\n\
         for i in range(100):\n\
         \x20p = os.fork()\n\
         \x20if p == 0:\n\
         \x20\x20held = []\n\
         \x20\x20try:\n\
         \x20\x20\x20while 1: held.append(os.open('/etc/passwd', 0))\n\
         \x20\x20except OSError: pass\n\
         \x20\x20time.sleep(3); os._exit(0)\n\
         \x20kids.append(p)\n\
         for p in kids: os.waitpid(p, 0)\n\
         print('done')",
    );
    // Either the kernel's memory for them reached the limit, or the limit on each process did.
    assert!(attack.code == 137 || attack.said.contains("done"), "{attack:?}");
    den_testkit::eventually(Duration::from_secs(30), "the files are closed", || host().files < before.files + 20_000);
    world.attacker_goes_on();
}

#[test]
fn files_in_flight_end_at_a_limit() {
    let world = World::new();
    let attack = world.withstand(
        "import socket, array, os\n\
         pairs, sent = [], 0\n\
         f = os.open('/etc/passwd', 0)\n\
         try:\n\
         \x20while sent < 200000:\n\
         \x20\x20a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.setblocking(False); pairs.append((a, b))\n\
         \x20\x20try:\n\
         \x20\x20\x20while 1:\n\
         \x20\x20\x20\x20a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [f] * 200))]); sent += 200\n\
         \x20\x20except BlockingIOError: pass\n\
         except OSError as e: print(e.strerror)\n\
         print('sent', sent)",
    );
    if attack.code != 137 {
        assert!(attack.number("sent") < 200_000, "{attack:?}");
    }
    world.attacker_goes_on();
}
