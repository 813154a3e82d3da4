//! HO02: floods of packets: UDP to every port and address, SYNs that are never finished. Nothing of
//! it becomes state of the host's, and a neighbour goes on.

use std::time::Duration;

use den_testkit::Site;

use crate::world::{World, answered, canary};

fn tracked() -> u64 {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Descriptors that the gate holds: sockets, most of all.
fn held(world: &World) -> usize {
    let pid = std::fs::read_to_string(world.house.run_dir().join("gate.pid")).expect("gate.pid");
    std::fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("the gate's descriptors").count()
}

#[test]
fn a_flood_leaves_no_state() {
    let world = World::guarded(&["good.test"]);
    world.add("n", "guarded", &["good.test"]);
    let secret = canary();
    let (before, held_before) = (tracked(), held(&world));
    std::thread::scope(|scope| {
        let neighbour = world.start(
            scope,
            "n",
            "good = address('good.test')\n\
             times, bad, until = [], 0, time.time() + 5\n\
             while time.time() < until:\n\
             \x20r = get(good, 'good.test', wait=4); times.append(r['ms']); bad += not r['got'].startswith('HTTP/1.1 200'); time.sleep(0.03)\n\
             times.sort()\n\
             say(bad=bad, count=len(times), half=times[len(times) // 2], most=times[-1])",
        );
        let attack = world.start(
            scope,
            "c",
            &format!(
                "w = wire()\n\
                 sent, until, n = 0, time.time() + 4, 0\n\
                 body = b'{secret}'\n\
                 while time.time() < until:\n\
                 \x20for _ in range(200):\n\
                 \x20\x20n += 1\n\
                 \x20\x20to = '198.51.%d.%d' % (n >> 8 & 255, n & 255)\n\
                 \x20\x20if n % 16 == 0: to = '{{evil}}'\n\
                 \x20\x20data = struct.pack('>HHHH', n & 0xffff, (n * 7) & 0xffff | 1, 8 + len(body), 0) + body\n\
                 \x20\x20p = syn(to, 80 + n % 9, source_port=1024 + n % 60000) if n % 4 == 0 else packet(17, to, data)\n\
                 \x20\x20try: w.send(frame(p)); sent += 1\n\
                 \x20\x20except OSError: pass\n\
                 say(sent=sent)"
            ),
        );
        let mut most = 0;
        for _ in 0..40 {
            most = most.max(tracked());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(most <= before + 200, "connections tracked by the host: {before}, then {most}");
        let attack = &attack.join().expect("the flood")[0];
        assert!(attack["sent"].as_u64().is_some_and(|sent| sent > 20_000), "{attack}");
        let seen = &neighbour.join().expect("the neighbour")[0];
        assert_eq!(seen["bad"], 0, "{seen}");
        assert!(seen["half"].as_u64().is_some_and(|half| half < 250), "the neighbour is served: {seen}");
        assert!(seen["most"].as_u64().is_some_and(|most| most < 2500), "the neighbour is served: {seen}");
    });
    // What the flood began and did not end is let go; nothing is kept for it.
    assert!(held(&world) < held_before + 1100, "{} descriptors, {held_before} before", held(&world));
    den_testkit::eventually(Duration::from_secs(20), "the gate lets go", || held(&world) < held_before + 64);
    world.untouched(Site::Evil);
    world.no_leak(&secret);
    answered(&world.run("c", "time.sleep(1.5)\nsay(**get(address('good.test'), 'good.test', wait=9))")[0]);
}
