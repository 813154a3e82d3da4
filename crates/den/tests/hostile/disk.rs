//! The disk: full of bytes, full of names, and synced without end.

use crate::world::World;

#[test]
fn a_full_disk_is_the_attackers_own() {
    let world = World::new();
    let attack = world.withstand(
        "import os\n\
         n = 0\n\
         try:\n\
         \x20with open('/root/fill', 'wb') as f:\n\
         \x20\x20while n < 2000: f.write(os.urandom(1 << 20)); f.flush(); n += 1\n\
         except OSError as e: print('errno', e.errno)\n\
         print('mib', n)",
    );
    assert!(attack.number("mib") < 300, "{attack:?}");
    assert!([28, 122].contains(&attack.number("errno")), "{attack:?}");
    world.house.sh("c", "rm /root/fill").ok();
    den_testkit::eventually(std::time::Duration::from_secs(60), "there is room again", || {
        world.house.sh("c", "head -c 1M /dev/zero > /root/small && sync").code == 0
    });
}

#[test]
fn names_without_number_are_the_attackers_own() {
    let world = World::with(&["--memory", "256MiB", "--pids", "200", "--disk", "32MiB"]);
    let attack = world.withstand(
        "import os, time\n\
         os.makedirs('/root/m')\n\
         n, until = 0, time.time() + 40\n\
         try:\n\
         \x20while time.time() < until:\n\
         \x20\x20os.close(os.open('/root/m/%0200d' % n, os.O_CREAT | os.O_WRONLY)); n += 1\n\
         \x20\x20if n % 5000 == 0: os.sync()\n\
         except OSError as e: print('errno', e.errno)\n\
         print('names', n)",
    );
    assert!([28, 122].contains(&attack.number("errno")), "names end where the disk does: {attack:?}");
    world.house.den(&["rm", "c"]).ok();
    assert_eq!(world.house.sh("n", "echo x > /root/x && cat /root/x").ok(), "x");
}

#[test]
fn syncs_without_end_hold_nobody_up() {
    let world = World::new();
    let attack = world.withstand(
        "import os, time\n\
         kids, until = [], time.time() + 6\n\
         for i in range(8):\n\
         \x20p = os.fork()\n\
         \x20if p == 0:\n\
         \x20\x20f = os.open('/root/s%d' % i, os.O_CREAT | os.O_WRONLY)\n\
         \x20\x20while time.time() < until: os.pwrite(f, b'x' * 4096, 0); os.fsync(f)\n\
         \x20\x20os._exit(0)\n\
         \x20kids.append(p)\n\
         for p in kids: os.waitpid(p, 0)\n\
         print('done')",
    );
    attack.says("done");
    world.attacker_goes_on();
}
