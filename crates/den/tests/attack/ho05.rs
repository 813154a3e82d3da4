//! HO05: a computer that uses up what it has: processes, disk, memory, log. Each ends at its own
//! limit; the neighbour and the host go on.

use std::time::{Duration, Instant};

use crate::world::{World, answered};

#[test]
fn what_is_used_up_is_ones_own() {
    let world = World::new();
    world.house.den(&["new", "c", "--memory", "192MiB", "--pids", "100", "--disk", "1GiB", "--net", "guarded"]).ok();
    world.add("n", "guarded", &["good.test"]);
    let well = || answered(&world.run("n", "say(**get(address('good.test'), 'good.test'))")[0]);
    let still = || {
        let since = Instant::now();
        loop {
            let ran = world.house.sh("c", "echo well");
            if ran.code == 0 {
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(20), "{ran:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };

    // Processes.
    world.house.sh("c", "b() { b | b & }; b 2>/dev/null; sleep 1.5; kill -9 -1");
    well();
    still();
    // Memory.
    assert_ne!(world.house.sh("c", "python3 -c 'b=[bytearray(1<<20) for _ in range(4096)]'").code, 0);
    well();
    still();
    // Disk.
    let ran = world.house.sh("c", "dd if=/dev/zero of=/root/fill bs=4M count=1000 2>&1; rm -f /root/fill");
    assert!(ran.stdout.contains("No space left") || ran.stdout.contains("quota"), "{ran:?}");
    well();
    still();
    // Output of a step, and the record of refused flows: each has its bound.
    world.house.sh("c", "head -c 80M /dev/zero | tr '\\0' x | fold -w 120 > /dev/stderr").ok();
    world.house.den(&["net", "c", "limit", "new=0,flows=0,dns=0"]).ok();
    let seen = world.run(
        "c",
        "until, count = time.time() + 4, 0\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect((GATE, 53)); u.settimeout(1)\n\
         q = question('a' * 60 + '.' + 'b' * 60 + '.evil.test')\n\
         while time.time() < until:\n\
         \x20for _ in range(20):\n\
         \x20\x20try: u.send(q); u.recv(2000)\n\
         \x20\x20except OSError: pass\n\
         \x20\x20count += 1\n\
         \x20fate('192.0.2.9', 81, b'x', wait=2); count += 1\n\
         say(count=count)",
    );
    assert!(seen[0]["count"].as_u64().is_some_and(|count| count > 500), "{seen:?}");
    well();
    let id = &world.house.json(&["info", "c"])["id"];
    let folder = world.house.data().join("computers").join(id.as_str().expect("an id")).join("net");
    let bytes: u64 = std::fs::read_dir(&folder)
        .expect("the folder of records")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("flows-"))
        .map(|entry| entry.metadata().map_or(0, |meta| meta.len()))
        .sum();
    assert!(bytes > 10_000 && bytes <= 33 << 20, "{bytes} bytes of records");
    // From inside neither records nor policy are to be found.
    let out =
        world.house.sh("c", "find / -xdev \\( -name 'flows-*.jsonl' -o -name 'net.key' \\) 2>/dev/null | head").ok();
    assert_eq!(out, "");
}
