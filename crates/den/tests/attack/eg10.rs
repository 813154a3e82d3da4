//! EG10: rebinding. A name whose answers change between public and private: what was checked is what
//! is dialled, so the private address never sees a packet.

use den_testkit::Site;

use crate::world::{World, canary};

#[test]
fn the_address_that_was_checked_is_the_one_that_is_dialled() {
    let world = World::guarded(&["rebind.test", "real.rebind.test dns=real", "tcp://rebind.test:5432"]);
    world.add("o", "open", &[]);
    let secret = canary();
    let (mirror, private) = (world.net.at(Site::Mirror).into(), world.net.private().into());
    for name in ["rebind.test", "real.rebind.test"] {
        world.net.alternate(name, &[&[mirror], &[private], &[private, mirror], &[mirror, private], &[private]]);
    }
    // Answers live for 0 s: each connection asks anew. Forty connections, by four ways.
    let script = format!(
        "good = bad = 0\n\
         for n in range(10):\n\
         \x20for name, go in (('rebind.test', get), ('rebind.test', None), ('real.rebind.test', get), ('rebind.test', tls)):\n\
         \x20\x20a = address(name)\n\
         \x20\x20if a is None: bad += 1; continue\n\
         \x20\x20r = go(a, name, path='/{secret}') if go else fate(a, 5432, b'{secret}', wait=3, enough=b'{secret}')\n\
         \x20\x20ok = r['end'] == 'enough' or r['got'].startswith('HTTP/1.1 200')\n\
         \x20\x20good += ok; bad += not ok\n\
         say(good=good, bad=bad)"
    );
    for name in ["c", "o"] {
        let seen = world.run(name, &script);
        assert!(seen[0]["good"].as_u64().is_some_and(|good| good >= 5), "the public answers work: {seen:?}");
        assert!(seen[0]["bad"].as_u64().is_some_and(|bad| bad >= 1), "the private ones do not: {seen:?}");
        world.record(name, "the floor", |record| record["verdict"] == "deny" && record.to_string().contains("floor"));
    }
    assert!(world.net.packets_to(world.net.private()).is_empty(), "the private address was touched");
    assert!(!world.net.packets_to(world.net.at(Site::Mirror)).is_empty());
    world.no_leak(&secret);
}
