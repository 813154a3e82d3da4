//! EG02: labels under an allowed wildcard. All are answered here, with virtual addresses; nothing is
//! asked upstream before a connection, and the rate is bounded.

use crate::world::{World, answered, canary};

#[test]
fn random_labels_stay_in_the_gate() {
    let world = World::guarded(&["*.wild.test"]);
    let secret = canary();
    let flood = |count: u32, prefix: &str| {
        format!(
            "from collections import Counter\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((GATE, 53)); s.settimeout(0.5)\n\
             def ask(n):\n\
             \x20for _ in range(9):\n\
             \x20\x20s.send(question('{prefix}-%d.wild.test' % n, number=n & 0xffff))\n\
             \x20\x20try:\n\
             \x20\x20\x20r = reading(s.recv(2048))\n\
             \x20\x20\x20while r['number'] != n & 0xffff: r = reading(s.recv(2048))\n\
             \x20\x20\x20return r\n\
             \x20\x20except OSError: pass # The kernel drops what is over 2,000 a second, limit or not.\n\
             seen, codes = set(), Counter()\n\
             for n in range({count}):\n\
             \x20r = ask(n)\n\
             \x20codes[str(r['code'])] += 1\n\
             \x20seen.update(r['addresses'])\n\
             say(codes=codes, distinct=len(seen), odd=[a for a in seen if not a.startswith(('198.18.', '198.19.'))])"
        )
    };
    // At full speed most of them are over the rate: 50 a second and a burst of 200.
    let seen = &world.run("c", &flood(600, &secret))[0];
    let answers = seen["codes"]["0"].as_u64().unwrap_or(0);
    assert!((150..450).contains(&answers), "{seen}");
    assert!(seen["codes"]["5"].as_u64().is_some_and(|refused| refused > 100), "over the rate is REFUSED: {seen}");
    world.record("c", "the DNS limit", |record| record["kind"] == "limit" && record.to_string().contains("dns"));

    // Without a rate: ten thousand names, ten thousand addresses, none of them asked upstream.
    world.house.den(&["net", "c", "limit", "dns=0"]).ok();
    let seen = &world.run("c", &flood(10_000, "x"))[0];
    assert_eq!((&seen["codes"]["0"], &seen["distinct"]), (&10_000.into(), &10_000.into()), "{seen}");
    assert_eq!(seen["odd"], serde_json::json!([]));
    assert!(world.net.queries().is_empty(), "{:?}", world.net.queries().first());

    // Only a connection makes the gate ask, and for this name only.
    let seen = world.run("c", "say(**get(address('one.wild.test'), 'one.wild.test'))");
    answered(&seen[0]);
    let queries = world.net.queries();
    assert!(!queries.is_empty() && queries.iter().all(|query| query.name == "one.wild.test"), "{queries:?}");
    world.no_leak(&secret);
}
