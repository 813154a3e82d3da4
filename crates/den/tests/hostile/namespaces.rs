//! Namespaces without number and in depth, and links of the network in them.

use crate::world::World;

#[test]
fn namespaces_end_at_a_limit() {
    let world = World::new();
    let attack = world.withstand(
        "import ctypes, os\n\
         l = ctypes.CDLL(None, use_errno=True)\n\
         for name, flag in [('net', 0x40000000), ('uts', 0x04000000), ('ipc', 0x08000000)]:\n\
         \x20held, n = [], 0\n\
         \x20while n < 200000:\n\
         \x20\x20if l.unshare(flag) < 0: break\n\
         \x20\x20held.append(os.open('/proc/self/ns/' + name, 0)); n += 1\n\
         \x20\x20if n > 19000: break\n\
         \x20print(name, n)\n\
         \x20for f in held: os.close(f)\n\
         deep = 0\n\
         while deep < 64:\n\
         \x20uid = os.getuid()\n\
         \x20if l.unshare(0x10000000) < 0: print(os.strerror(ctypes.get_errno())); break\n\
         \x20try:\n\
         \x20\x20open('/proc/self/setgroups', 'w').write('deny')\n\
         \x20\x20open('/proc/self/uid_map', 'w').write('0 %d 1' % uid)\n\
         \x20except OSError as e: print(e.strerror); break\n\
         \x20deep += 1\n\
         print('deep', deep)",
    );
    if attack.code != 137 {
        assert!(attack.number("net") <= 1000, "{attack:?}");
        assert!(attack.number("deep") <= 32, "{attack:?}");
    }
    world.attacker_goes_on();
}

#[test]
fn links_without_number_hold_nobody_up() {
    let world = World::new();
    let attack = world.withstand(
        "import subprocess\n\
         r = subprocess.run('i=0; while [ $i -lt 1500 ] && ip link add v$i type veth peer name w$i; do i=$((i+1)); done; echo links $i', shell=True, capture_output=True, text=True)\n\
         print(r.stdout)",
    );
    assert!(attack.number("links") > 0, "it may make links: {attack:?}");
    // They go with it, and others are made meanwhile.
    world.house.den(&["rm", "c"]).ok();
    world.house.den(&["new", "d", "--memory", "256MiB"]).ok();
    assert_eq!(world.house.sh("d", "ip -br link | wc -l").ok(), "2");
}
