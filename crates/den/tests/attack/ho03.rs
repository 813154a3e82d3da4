//! HO03: ten thousand sockets, requests that never end, windows of one byte. A computer has so many
//! flows and no more; its neighbour has its own.

use std::time::Duration;

use crate::world::{World, answered};

#[test]
fn flows_are_bounded_and_the_neighbour_has_its_own() {
    let world = World::guarded(&["good.test", "tcp://good.test:5432"]);
    world.add("n", "guarded", &["good.test"]);
    world.house.den(&["net", "c", "limit", "new=0"]).ok();
    std::thread::scope(|scope| {
        let attack = world.start(
            scope,
            "c",
            "import resource, selectors\n\
             hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n\
             good = address('good.test')\n\
             count = min(10000, hard - 50)\n\
             held, gone = [], 0\n\
             for n in range(count):\n\
             \x20s = socket.socket(); s.settimeout(3)\n\
             \x20try:\n\
             \x20\x20if n % 3 == 0: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)\n\
             \x20\x20s.connect((good, 80 if n % 2 else 5432))\n\
             \x20\x20s.send(b'GET /bytes/100000 HTTP/1.1\\r\\nHost: good.test\\r\\n' + (b'\\r\\n' if n % 3 == 0 else b'X: '))\n\
             \x20\x20held.append(s)\n\
             \x20except OSError: gone += 1\n\
             \x20if n == count - 1: time.sleep(3)\n\
             \x20if n % 500 == 499 or n == count - 1:\n\
             \x20\x20live = []\n\
             \x20\x20for s in held:\n\
             \x20\x20\x20s.setblocking(False)\n\
             \x20\x20\x20try:\n\
             \x20\x20\x20\x20if s.recv(1): live.append(s)\n\
             \x20\x20\x20\x20else: gone += 1\n\
             \x20\x20\x20except BlockingIOError: live.append(s)\n\
             \x20\x20\x20except OSError: gone += 1\n\
             \x20\x20held = live\n\
             say(held=len(held), gone=gone, count=count)",
        );
        std::thread::sleep(Duration::from_millis(500));
        let seen = world.run(
            "n",
            "good = address('good.test')\n\
             bad, most, until = 0, 0, time.time() + 3\n\
             while time.time() < until:\n\
             \x20r = get(good, 'good.test', wait=4); bad += not r['got'].startswith('HTTP/1.1 200'); most = max(most, r['ms']); time.sleep(0.03)\n\
             say(bad=bad, most=most)",
        );
        assert_eq!(seen[0]["bad"], 0, "{seen:?}");
        assert!(seen[0]["most"].as_u64().is_some_and(|most| most < 3000), "{seen:?}");
        let seen = &attack.join().expect("the attack")[0];
        let count = seen["count"].as_u64().expect("a number");
        assert!(count >= 1000, "{seen}");
        assert!(
            seen["held"].as_u64().is_some_and(|held| held <= 512 + 40),
            "at most 512 flows, and what the backlog holds: {seen}"
        );
        assert!(seen["gone"].as_u64().is_some_and(|gone| gone >= count - 552), "{seen}");
    });
    world.record("c", "the limit of flows", |record| record["kind"] == "limit" && record.to_string().contains("flows"));
    assert!(!world.records("n").iter().any(|record| record["kind"] == "limit"));
    // All let go, the computer itself is served again.
    den_testkit::eventually(Duration::from_secs(20), "flows are let go", || {
        let seen = world.run("c", "say(**get(address('good.test'), 'good.test'))");
        seen[0]["got"].as_str().is_some_and(|got| got.starts_with("HTTP/1.1 200"))
    });
    answered(&world.run("n", "say(**get(address('good.test'), 'good.test'))")[0]);
}
