//! Mounts without number: they stay in the computer's own namespace and go with it.

use crate::world::{World, host};

#[test]
fn mounts_stay_inside_and_go_with_the_computer() {
    let world = World::new();
    let before = host().mounts;
    let attack = world.withstand(
        "import ctypes, os, time\n\
         l = ctypes.CDLL(None, use_errno=True)\n\
         os.makedirs('/mnt/x', exist_ok=True)\n\
         n, until = 0, time.time() + 8\n\
         while time.time() < until:\n\
         \x20if l.mount(b'/etc', b'/mnt/x', None, 4096, None) < 0: print(os.strerror(ctypes.get_errno())); break\n\
         \x20n += 1\n\
         print('mounts', n)",
    );
    if attack.code != 137 {
        // Where mounts are shared, each one doubles what is there.
        assert!(attack.number("mounts") > 8, "it may mount: {attack:?}");
    }
    assert!(host().mounts <= before + 64, "mounts of the host's: {before}, then {}", host().mounts);
    world.house.den(&["stop", "c", "--grace", "1s"]).ok();
    world.house.den(&["start", "c"]).ok();
    assert_eq!(world.house.sh("c", "grep -c ' /mnt/x ' /proc/mounts").stdout.trim(), "0");
}
