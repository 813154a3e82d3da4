//! EG08: QUIC to an allowed host: refused at once by ICMP, so that the client falls back to TCP, and
//! counted.

use den_testkit::Site;

use crate::world::{World, answered, canary};

#[test]
fn quic_is_refused_at_once() {
    let world = World::guarded(&["good.test"]);
    world.add("o", "open", &[]);
    let secret = canary();
    let script = format!(
        "good = address('good.test')\n\
         for n in range(3):\n\
         \x20s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.connect((good, 443))\n\
         \x20since = time.monotonic()\n\
         \x20try: s.send(b'\\xc0\\0\\0\\0\\x01' + b'{secret}' * 60); s.recv(2000); say(end='answer', ms=ms(since))\n\
         \x20except OSError as e: say(end=how(e), ms=ms(since))\n\
         say(**tls(good, 'good.test'))"
    );
    for name in ["c", "o"] {
        let seen = world.run(name, &script);
        assert!(seen[..3].iter().all(|seen| seen["end"] == "refused"), "{seen:?}");
        assert!(seen[..3].iter().any(|seen| seen["ms"].as_u64().is_some_and(|ms| ms < 50)), "{seen:?}");
        answered(&seen[3]);
        world.dropped(name, "quic");
    }
    assert!(world.net.packets_to(world.net.at(Site::Good)).iter().all(|packet| packet.protocol == 6));
    world.no_leak(&secret);
}
