//! HO04: abuse of others. Mail by port 25 is refused in every posture; a scan of ports and addresses
//! comes to its rate of new flows, and is written down.

use std::net::IpAddr;

use den_testkit::Site;

use crate::world::{World, answered, canary, refused};

#[test]
fn mail_is_refused_and_a_scan_is_slow() {
    let world = World::new();
    world.add("o", "open", &[]);
    world.add("c", "guarded", &["tcp://good.test:25", "tcp://good.test:587"]);
    let secret = canary();
    let evil: IpAddr = world.net.at(Site::Evil).into();
    world.net.point("mail.evil.test", &[evil]);
    let seen = world.run(
        "o",
        &format!("say(**fate('{{evil}}', 25, b'EHLO {secret}\\r\\n'))\nsay(**fate(address('mail.evil.test'), 25, b'EHLO {secret}\\r\\n'))"),
    );
    seen.iter().for_each(refused);
    world.denied("o", "open", "smtp", "{evil}:25");
    refused(&world.run("c", &format!("say(**fate(address('good.test'), 25, b'EHLO {secret}\\r\\n'))"))[0]);
    world.denied("c", "open", "smtp", "good.test");
    assert!(world.net.raw_at(Site::Good, 25).is_empty());
    world.untouched(Site::Evil);
    world.no_leak(&secret);
    // Mail by submission is an ordinary flow: it needs a rule in guarded.
    let seen = world.run(
        "c",
        "good = address('good.test')\nsay(**fate(good, 587, b'EHLO x\\r\\n', enough=b'EHLO x'))\nsay(**fate(good, 465, b'EHLO x\\r\\n'))",
    );
    assert_eq!(seen[0]["end"], "enough", "{seen:?}");
    refused(&seen[1]);
    // A server that speaks first is not waited for.
    let seen = world.run("o", "say(**fate('{good}', 22, enough=b'SSH-2.0'))");
    assert!(seen[0]["end"] == "enough" && seen[0]["ms"].as_u64().is_some_and(|ms| ms < 1000), "{seen:?}");

    // A scan: 50 new flows a second after a burst of 200; what is over is reset, and beyond 128 a second dropped.
    let seen = world.run(
        "o",
        "time.sleep(4)\n\
         since, done, ends = time.monotonic(), 0, {}\n\
         for port in range(1000, 2000):\n\
         \x20end = fate('{good}', port, wait=2)['end']; ends[end] = ends.get(end, 0) + 1\n\
         say(ends=ends, ms=ms(since))\n\
         time.sleep(1)\n\
         say(**get('{good}', 'good.test'))",
    );
    let touched: std::collections::BTreeSet<_> = world
        .net
        .packets_to(world.net.at(Site::Good))
        .iter()
        .filter_map(|packet| packet.port)
        .filter(|port| (1000..2000).contains(port))
        .collect();
    let allowance = 200 + 50 * (seen[0]["ms"].as_u64().expect("a time") / 1000 + 1) + 60;
    assert!(
        !touched.is_empty() && (touched.len() as u64) <= allowance,
        "{} ports were reached: {seen:?}",
        touched.len()
    );
    assert!(seen[0]["ends"]["silent"].is_null(), "no attempt hangs: {seen:?}");
    world.record("o", "the limit of new flows", |record| {
        record["kind"] == "limit" && record.to_string().contains("new")
    });
    answered(&seen[1]);
}
