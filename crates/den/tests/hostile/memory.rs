//! Memory by other ways than a heap: pipes, socket buffers, page tables, /dev/shm.

use crate::world::World;

#[test]
fn memory_of_the_kernels_is_the_attackers_own() {
    let world = World::new();
    let ways = [
        (
            "pipes",
            "import os, fcntl\n\
             held = []\n\
             try:\n\
             \x20while len(held) < 9000:\n\
             \x20\x20r, w = os.pipe(); held += [r, w]; os.set_blocking(w, False)\n\
             \x20\x20try: fcntl.fcntl(w, 1031, 1 << 20)\n\
             \x20\x20except OSError: pass\n\
             \x20\x20try: os.write(w, b'x' * (1 << 20))\n\
             \x20\x20except OSError: pass\n\
             except OSError as e: print(e.strerror)\n\
             print('done')",
        ),
        (
            "sockets",
            "import socket\n\
             held = []\n\
             try:\n\
             \x20while len(held) < 9000:\n\
             \x20\x20a, b = socket.socketpair(); a.setblocking(False); held.append((a, b))\n\
             \x20\x20try:\n\
             \x20\x20\x20while 1: a.send(b'x' * 65536)\n\
             \x20\x20except OSError: pass\n\
             except OSError as e: print(e.strerror)\n\
             print('done')",
        ),
        (
            "page tables",
            "import mmap\n\
             held = []\n\
             try:\n\
             \x20for i in range(64):\n\
             \x20\x20m = mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n\
             \x20\x20held.append(m)\n\
             \x20\x20for at in range(0, 1 << 32, 1 << 21): m[at]\n\
             except (OSError, MemoryError) as e: print(e)\n\
             print('done')",
        ),
        (
            "shared memory",
            "import os\n\
             try:\n\
             \x20for i in range(64): open('/dev/shm/f%d' % i, 'wb').write(b'x' * (32 << 20))\n\
             except OSError as e: print(e.strerror)\n\
             print('done')",
        ),
    ];
    for (what, script) in ways {
        let attack = world.withstand(script);
        assert!(attack.code == 137 || attack.said.contains("done"), "{what}: {attack:?}");
        world.house.sh("c", "rm -f /dev/shm/f*");
        world.attacker_goes_on();
        let used = world.house.json(&["info", "c"])["usage"]["memory_bytes"].as_u64().expect("bytes");
        assert!(used <= 256 << 20, "{what}: {used} bytes");
    }
}
