//! EG07: hellos that hide their name. None: denied. Encrypted (ECH), or what looks like it: denied
//! unless the rule says ` ech`. In pieces: read all the same. Too slow or too long: denied.

use den_testkit::Site;

use crate::world::{World, answered, canary, refused};

#[test]
fn a_hello_that_hides_its_name_is_refused() {
    let world = World::guarded(&["good.test", "cdn.test ech"]);
    let secret = canary();
    let seen = world.run(
        "c",
        &format!(
            "good = address('good.test')\n\
             say(**tls(good, None, host='good.test', path='/{secret}'))\n\
             say(**fate(good, 443, records(hello(None))))\n\
             say(**fate(good, 443, records(hello('good.test', ech=outer_ech(b'{secret}.evil.test')))))\n\
             say(**fate(good, 443, records(hello('good.test', ech=outer_ech()), 9)))\n\
             say(**fate(good, 443, records(hello('good.test', ech=b'\\x01'))))"
        ),
    );
    assert_eq!(seen.len(), 5);
    seen.iter().for_each(refused);
    world.denied("c", "open", "sni_missing", "good.test");
    world.denied("c", "open", "ech", "good.test");
    world.untouched(Site::Good);

    // In pieces: records of any size, in segments of any size. The server's hello (0x16) comes back.
    let seen = world.run(
        "c",
        "good, cdn = address('good.test'), address('cdn.test')\n\
         one = records(hello('good.test'))\n\
         say(**fate(good, 443, one, enough=b'\\x16\\x03\\x03'))\n\
         for size in (1, 3, 50): say(**fate(good, 443, records(hello('good.test'), size), enough=b'\\x16\\x03\\x03'))\n\
         say(**fate(good, 443, pieces=[one[:3], one[3:9], one[9:60], one[60:]], pause=0.05, enough=b'\\x16\\x03\\x03'))\n\
         say(**fate(cdn, 443, records(hello('cdn.test', ech=outer_ech())), enough=b'\\x16\\x03\\x03'))",
    );
    assert_eq!(seen.len(), 6);
    seen.iter().for_each(|seen| assert_eq!(seen["end"], "enough", "{seen}"));
    let seen = world.run(
        "c",
        "good, cdn = address('good.test'), address('cdn.test')\n\
         for size in (1, 3, 50): say(**fate(good, 443, records(hello('evil.test'), size)))\n\
         say(**fate(cdn, 443, records(hello('evil.test', ech=outer_ech()))))",
    );
    seen.iter().for_each(refused);
    world.denied("c", "open", "sni_mismatch", "good.test");
    world.denied("c", "open", "sni_mismatch", "cdn.test");
    world.no_leak(&secret);
}

#[test]
fn a_hello_that_does_not_end_is_refused() {
    let world = World::guarded(&["good.test"]);
    // A byte a second, nothing at all, and one longer than 16 KiB: at once three clients.
    let seen = world.run(
        "c",
        "good = address('good.test')\n\
         one = records(hello('good.test'))\n\
         found = {}\n\
         def go(name, **words): found[name] = fate(good, 443, wait=9, **words)\n\
         threads = [threading.Thread(target=go, args=('slow',), kwargs=dict(pieces=[one[n:n+1] for n in range(12)], pause=0.9)),\n\
         \x20threading.Thread(target=go, args=('nothing',)),\n\
         \x20threading.Thread(target=go, args=('long',), kwargs=dict(send=records(hello('good.test', pad=40000))))]\n\
         [t.start() for t in threads]; [t.join() for t in threads]\n\
         say(**found)\n\
         say(**tls(good, 'good.test'))",
    );
    for name in ["slow", "nothing"] {
        let ms = seen[0][name]["ms"].as_u64().expect("a time");
        assert!((4000..8000).contains(&ms) && seen[0][name]["end"] == "reset", "five seconds: {}", seen[0]);
    }
    refused(&seen[0]["long"]);
    answered(&seen[1]);
    world.denied("c", "open", "peek_timeout", "good.test");
    world.denied("c", "open", "not_tls_or_http", "good.test");
    assert_eq!(world.net.requests_at(Site::Good).len(), 1);
}
