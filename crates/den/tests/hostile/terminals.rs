//! Terminals, of which the host has one number for all.

use crate::world::World;

#[test]
fn terminals_end_at_the_computers_own_limit() {
    let world = World::new();
    let attack = world.withstand(
        "import os, time\n\
         held = []\n\
         try:\n\
         \x20while len(held) < 5000: held.append(os.openpty())\n\
         except OSError as e: print(e.strerror)\n\
         print('terminals', len(held), flush=True); time.sleep(3)",
    );
    assert!(attack.number("terminals") <= 256, "{attack:?}");
    // Others have theirs.
    let ran = world.house.den(&["exec", "n", "--", "script", "-qc", "tty", "/dev/null"]);
    assert!(ran.stdout.contains("/dev/pts/"), "{ran:?}");
    world.attacker_goes_on();
}
