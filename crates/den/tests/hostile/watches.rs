//! Watches on files, which the kernel counts by user: another computer has its own.

use crate::world::World;

#[test]
fn watches_are_counted_by_computer() {
    let world = World::new();
    let exhaust = "import ctypes, os\n\
         l = ctypes.CDLL(None, use_errno=True)\n\
         held = []\n\
         while len(held) < 19000:\n\
         \x20r = l.inotify_init()\n\
         \x20if r < 0: break\n\
         \x20held.append(r)\n\
         print('instances', len(held), flush=True)\n\
         import time; time.sleep(3)";
    let attack = world.withstand(exhaust);
    let most = attack.number("instances");
    assert!(most < 19_000, "{attack:?}");
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| world.withstand(exhaust));
        let other = world.house.den(&["exec", "n", "--", "python3", "-c", exhaust]).ok();
        let got: u64 = other.trim().strip_prefix("instances ").and_then(|n| n.parse().ok()).expect("a number");
        assert!(got + 8 >= most, "the neighbour has {got} of {most}");
        attack.join().expect("the attack");
    });
    world.attacker_goes_on();
}
