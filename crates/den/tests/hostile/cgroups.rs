//! Cgroups without number: each takes memory of the kernel's that no limit on memory counts on v1.

use crate::world::World;

#[test]
fn cgroups_end_at_a_limit() {
    let world = World::new();
    let attack = world.withstand(
        "import os\n\
         n = 0\n\
         try:\n\
         \x20while n < 20000: os.mkdir('/sys/fs/cgroup/x%d' % n); n += 1\n\
         except OSError as e: print(e.strerror)\n\
         print('made', n)\n\
         deep, at = 0, '/sys/fs/cgroup/x0'\n\
         try:\n\
         \x20for i in range(n - 1): os.rmdir('/sys/fs/cgroup/x%d' % (i + 1))\n\
         \x20while deep < 1000: at += '/d'; os.mkdir(at); deep += 1\n\
         except OSError as e: print(e.strerror)\n\
         print('deep', deep)",
    );
    assert!(attack.number("made") <= 1024, "{attack:?}");
    assert!(attack.number("deep") <= 32, "{attack:?}");
    attack.says("Resource temporarily unavailable");
    world.attacker_goes_on();
    // Its own limits on that are not its own to write.
    let ran = world.house.sh("c", "echo max > /sys/fs/cgroup/cgroup.max.descendants");
    assert!(ran.code != 0, "{ran:?}");
    world.house.den(&["rm", "c"]).ok();
}
