//! EG11: the metadata address, however it is written: refused at once, in every posture. No hang.

use crate::world::{World, canary, refused};

#[test]
fn metadata_is_refused_in_every_posture() {
    let world = World::new();
    let secret = canary();
    world.add("o", "open", &[]);
    world.add("c", "guarded", &["good.test"]);
    world.add("s", "sealed", &[]);
    let script = format!(
        "for text in ('169.254.169.254', '2852039166', '0xa9fea9fe', '0251.0376.0251.0376', '0xa9.254.43518', '169.254.170.2'):\n\
         \x20say(**fate(socket.inet_ntoa(socket.inet_aton(text)), 80, b'GET /latest/meta-data/{secret} HTTP/1.0\\r\\n\\r\\n'))\n\
         say(**fate('169.254.169.254', 443, b'x'))\n\
         say(**fate('169.254.169.254', 1, b'x'))\n\
         for text in ('2852039166', '0xa9fea9fe', '169.254.169.254', '[::ffff:169.254.169.254]', '[fd00:ec2::254]'):\n\
         \x20since = time.monotonic()\n\
         \x20code = os.system(f\"curl -sf -o /dev/null -m 4 --noproxy '*' 'http://{{text}}/latest/'\") >> 8\n\
         \x20say(end='refused' if code in (7, 22, 55, 56) else 'curl %d' % code, ms=ms(since))\n\
         for text in ('2852039166', '0xa9fea9fe', '169.254.169.254', '0251.0376.0251.0376'):\n\
         \x20say(dns=dns(text))"
    );
    for (name, why) in [("o", "floor"), ("c", "ip_literal"), ("s", "sealed")] {
        let seen = world.run(name, &script);
        assert_eq!(seen.len(), 17);
        seen[..13].iter().for_each(refused);
        // As a name it is none: no address comes of it.
        assert!(seen[13..].iter().all(|seen| seen["dns"]["code"] != 0 && seen["dns"]["answers"] == 0), "{seen:?}");
        world.record(name, "a denied flow to metadata", |record| {
            record["kind"] == "open"
                && record["verdict"] == "deny"
                && record["target"] == "169.254.169.254:80"
                && (record["why"] == why || record["why"] == "floor")
        });
    }
    world.no_leak(&secret);
}
