//! EG05: a virtual address with another name in the TLS hello: denied, both ways round.

use den_testkit::Site;

use crate::world::{World, answered, canary, refused};

#[test]
fn the_hello_must_say_the_name_that_was_asked_for() {
    let world = World::guarded(&["good.test", "echo.test"]);
    let secret = canary();
    let seen = world.run(
        "c",
        &format!(
            "good, echo = address('good.test'), address('echo.test')\n\
             say(**tls(good, 'evil.test', path='/{secret}'))\n\
             say(**tls(good, '{secret}.evil.test'))\n\
             say(**tls(good, 'echo.test', path='/{secret}'))\n\
             say(**tls(echo, 'good.test', path='/{secret}'))\n\
             say(**tls(echo, 'good.test.evil.test'))\n\
             say(**fate(good, 443, records(hello(b'evil.test\\0.good.test'))))\n\
             say(**fate(good, 443, records(hello(b'evil.test'), 5)))\n\
             say(**fate(good, 443, records(hello(b'')), wait=2))"
        ),
    );
    assert_eq!(seen.len(), 8);
    seen.iter().for_each(refused);
    world.denied("c", "open", "sni_mismatch", "good.test");
    world.denied("c", "open", "sni_mismatch", "echo.test");
    for site in [Site::Good, Site::Echo, Site::Evil] {
        world.untouched(site);
    }
    world.no_leak(&secret);

    let seen = world.run(
        "c",
        "good, echo = address('good.test'), address('echo.test')\n\
         say(**tls(good, 'good.test'))\nsay(**tls(good, 'GOOD.test'))\nsay(**tls(echo, 'echo.test'))",
    );
    seen.iter().for_each(answered);
    let sni: Vec<_> = world.net.requests().into_iter().filter_map(|request| request.sni).collect();
    assert_eq!(sni.len(), 3, "{sni:?}");
    assert!(world.net.requests_at(Site::Echo)[0].sni.as_deref() == Some("echo.test"));
}
