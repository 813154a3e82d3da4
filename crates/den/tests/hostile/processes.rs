//! Processes: bombs, the dead that nobody fetches, and reaching for others'.

use crate::world::World;

#[test]
fn the_dead_without_number_end_at_the_limit() {
    let world = World::new();
    let attack = world.withstand(
        "import os, time\n\
         n = 0\n\
         try:\n\
         \x20while n < 100000:\n\
         \x20\x20if os.fork() == 0: os._exit(0)\n\
         \x20\x20n += 1\n\
         except OSError as e: print(e.strerror)\n\
         print('dead', n)",
    );
    assert!(attack.number("dead") < 200, "{attack:?}");
    // Those whose parent ends are fetched by PID 1, again and again.
    for _ in 0..5 {
        let attack = world.withstand(
            "import os\n\
             for i in range(100):\n\
             \x20if os.fork() == 0:\n\
             \x20\x20if os.fork() == 0: os._exit(0)\n\
             \x20\x20os._exit(0)\n\
             \x20os.wait()\n\
             print('done')",
        );
        attack.says("done");
    }
    den_testkit::eventually(std::time::Duration::from_secs(20), "no dead are left", || {
        world.house.sh("c", "ps -e -o stat= | grep -c '^Z'").stdout.trim() == "0"
    });
}

#[test]
fn a_fork_bomb_holds_nobody_up() {
    let world = World::new();
    let attack = world.withstand(
        "import os, signal, time\n\
         until = time.time() + 6\n\
         while time.time() < until:\n\
         \x20try:\n\
         \x20\x20if os.fork() == 0: pass\n\
         \x20except OSError: time.sleep(0.001)\n\
         print('over', flush=True); os.killpg(0, signal.SIGKILL)",
    );
    attack.says("over");
    den_testkit::eventually(std::time::Duration::from_secs(30), "it takes commands again", || {
        world.house.sh("c", "echo on").stdout.trim() == "on"
    });
}

#[test]
fn nobody_elses_process_is_traced_or_named() {
    let world = World::new();
    let host = std::process::id();
    let attack = world.withstand(&format!(
        "import ctypes, os\n\
         l = ctypes.CDLL(None, use_errno=True)\n\
         own = set(int(p) for p in os.listdir('/proc') if p.isdigit())\n\
         seen = 0\n\
         for pid in list(range(1, 70000)) + [{host}]:\n\
         \x20if pid in own: continue\n\
         \x20try: os.kill(pid, 0)\n\
         \x20except ProcessLookupError: continue\n\
         \x20except PermissionError: pass\n\
         \x20if not os.path.exists('/proc/%d' % pid): seen += 1\n\
         print('seen', seen)\n\
         print('attach', l.ptrace(16, {host}, 0, 0))"
    ));
    assert_eq!(attack.number("seen"), 0, "{attack:?}");
    attack.says("attach -1");
    world.attacker_goes_on();
}
