//! EG12: names that two parsers read differently. One parser reads them here, and it takes only what
//! can be read in one way.

use den_testkit::Site;

use crate::world::{World, answered, canary, refused};

#[test]
fn a_name_is_read_in_one_way_or_not_at_all() {
    let world = World::guarded(&["good.test", "*.wild.test"]);
    let secret = canary();
    // Labels as they travel: a NUL within, a dot within, a space, `%`, bytes beyond ASCII, a homoglyph's
    // punycode, broken punycode, another parent, a number.
    let seen = world.run(
        "c",
        &format!(
            "for labels in ([b'evil.test\\0', b'good', b'test'], [b'evil', b'test\\0', b'good', b'test'], [b'good.test'],\n\
             \x20[b'{secret}', b'good', b'test'], [b'good', b'test', b'evil', b'test'], [b'go od', b'test'], [b'good', b'test%eth0'],\n\
             \x20[b'g\\xc3\\xb6od', b'test'], [b'xn--god-lqa', b'test'], [b'xn--\\xff', b'wild', b'test'], [b'xn--a-\\0', b'wild', b'test'],\n\
             \x20[b'a\\0b', b'wild', b'test'], [b'a b', b'wild', b'test'], [b'a.evil', b'wild', b'test'], [b'a/b', b'wild', b'test'], [b'wild', b'test'],\n\
             \x20[b'test'], [b'notgood', b'test'], [b'a' * 63] * 3 + [b'b' * 52, b'wild', b'test'], []):\n\
             \x20say(**dns(labels))\n\
             say(**dns(None, raw=question('good.test')[:20]))\n\
             say(**dns(None, raw=question('good.test', klass=3)))\n\
             two = bytearray(question('good.test', edns=False)); two[5] = 2\n\
             say(**dns(None, raw=bytes(two) + question('evil.test', edns=False)[12:], wait=1))"
        ),
    );
    for (place, seen) in seen.iter().enumerate() {
        let nothing = seen["end"] == "silent" || seen["code"] != 0 && seen["answers"] == 0;
        assert!(nothing, "case {place}: {seen}");
    }
    assert!(world.net.queries().is_empty(), "{:?}", world.net.queries());

    // In the TLS hello and in Host.
    let seen = world.run(
        "c",
        "good = address('good.test')\n\
         for sni in (b'evil.test\\0.good.test', b'good.test\\0', b'good.test.evil.test', b'xn--god-lqa.test', b'good.test%eth0', b'good.test ', b'.good.test', b'good..test', b'a.' * 130 + b'good.test'):\n\
         \x20say(**fate(good, 443, records(hello(sni))))",
    );
    assert_eq!(seen.len(), 9);
    seen.iter().for_each(refused);
    let seen = world.run(
        "c",
        &format!(
            "good = address('good.test')\n\
             for host in ('evil.test\\0.good.test', 'good.test.evil.test', 'xn--god-lqa.test', 'good.test@evil.test', 'good.test:80@evil.test', 'good.test,evil.test', 'good.test/evil.test', 'good.test%00', 'g\\xf6od.test', 'good.test:99999'):\n\
             \x20say(**get(good, host, '/{secret}'))"
        ),
    );
    assert_eq!(seen.len(), 10);
    for (place, seen) in seen.iter().enumerate() {
        let got = seen["got"].as_str().unwrap_or_default();
        let told = ["400", "403", "421"].iter().any(|code| got.starts_with(&format!("HTTP/1.1 {code}")));
        assert!(told || seen["end"] == "reset", "Host {place}: {seen}");
    }
    assert!(world.net.requests_at(Site::Good).is_empty());

    // The same name in other letters, or with its last dot, is the same name.
    let seen = world.run(
        "c",
        "for labels in ([b'good', b'test'], [b'GoOd', b'TEST']): say(**dns(labels))\n\
         good = address('good.test')\n\
         for host in ('good.test', 'GOOD.test', 'good.test.', 'good.test:80'): say(**get(good, host))\n\
         say(**tls(good, 'GooD.Test'))",
    );
    assert_eq!(seen[0]["addresses"], seen[1]["addresses"]);
    assert_eq!(seen[0]["code"], 0);
    seen[2..].iter().for_each(answered);
    world.no_leak(&secret);

    // Rules are read by the same parser.
    for rule in [
        "evil.test\u{1}.good.test",
        "good..test",
        ".good.test",
        "good.test%eth0",
        "xn--\u{ff}.test",
        "-a.test",
        "a b.test",
        "2852039166",
        "0x7f.1",
        "good.test:0",
        "good.test:65536",
        "good.test:9-5",
        "ftp://good.test",
        "*good.test",
        "a.*.test",
        "",
    ] {
        let ran = world.house.den(&["net", "c", "allow", rule]);
        assert!(ran.code != 0, "`{rule}` was taken: {}", ran.stdout);
    }
    world.house.den(&["net", "c", "allow", &format!("{}.test", "a".repeat(254))]).refused(1, "");
}
