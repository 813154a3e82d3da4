//! EG18: a policy is narrowed while flows are open. Those that it no longer allows are reset within a
//! second; the others go on.

use std::time::{Duration, Instant};

use crate::world::{World, refused};

/// Streams by three ways and one that stays; says when each ends.
const STREAMS: &str = "\
def stream(name, go):\n\
\x20try: go()\n\
\x20except OSError as e: pass\n\
\x20say(name=name, ended=time.time())\n\
def http(to, host):\n\
\x20s = socket.create_connection((to, 80)); s.settimeout(20)\n\
\x20s.sendall(b'GET /stream HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n' % host.encode())\n\
\x20while s.recv(65536): pass\n\
def secure(to, host):\n\
\x20c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); c.check_hostname, c.verify_mode = False, ssl.CERT_NONE\n\
\x20s = c.wrap_socket(socket.create_connection((to, 443)), server_hostname=host); s.settimeout(20)\n\
\x20s.sendall(b'GET /stream HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n' % host.encode())\n\
\x20while s.recv(65536): pass\n\
def raw(to):\n\
\x20s = socket.create_connection((to, 5432)); s.settimeout(20)\n\
\x20s.sendall(b'hello')\n\
\x20while s.recv(65536): pass\n";

#[test]
fn a_narrower_policy_cuts_what_it_forbids() {
    let world = World::guarded(&["good.test", "echo.test", "tcp://good.test:5432"]);
    let script = format!(
        "{STREAMS}\
         good, echo = address('good.test'), address('echo.test')\n\
         ways = dict(http=lambda: http(good, 'good.test'), tls=lambda: secure(good, 'good.test'), raw=lambda: raw(good), other=lambda: http(echo, 'echo.test'))\n\
         for name, go in ways.items(): threading.Thread(target=stream, args=(name, go), daemon=True).start()\n\
         time.sleep(4.5)\n\
         say(name='well', ended=time.time())"
    );
    std::thread::scope(|scope| {
        let inside = world.start(scope, "c", &script);
        den_testkit::eventually(Duration::from_secs(10), "four flows", || {
            let open = world
                .records("c")
                .iter()
                .filter(|record| record["kind"] == "open" && record["verdict"] == "allow")
                .count();
            open >= 4 && world.net.streamed() > 0
        });
        let since = Instant::now();
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs_f64();
        // Any refused change leaves the old policy in force: nothing is cut by it.
        world.house.den(&["net", "c", "allow", "*"]).refused(1, "too wide");
        world.house.den(&["net", "c", "deny", "good.test"]).ok();
        let answered = since.elapsed();
        let seen = inside.join().expect("the streams");
        let ended = |name: &str| {
            seen.iter().find(|line| line["name"] == name).map(|line| line["ended"].as_f64().expect("a time") - at)
        };
        for name in ["http", "tls", "raw"] {
            let after = ended(name).unwrap_or_else(|| panic!("{name} goes on: {seen:?}"));
            assert!(after > -0.05 && after < answered.as_secs_f64() + 1.0, "{name} ended after {after} s");
        }
        assert_eq!(ended("other"), None, "what is allowed still goes on: {seen:?}");
    });
    world.record("c", "a flow cut by the policy", |record| {
        record["kind"] == "close" && record["why"] == "policy" && record.to_string().contains("good.test")
    });
    // What was allowed is no longer so for new flows; nothing is remembered of the old policy.
    let seen = world.run("c", "say(**dns('good.test'))");
    crate::world::blocked(&seen[0]);
    world.house.den(&["net", "c", "sealed"]).ok();
    refused(&world.run("c", "say(**fate('198.18.0.9', 80, b'x'))")[0]);
    assert_eq!(world.house.json(&["net", "c"])["posture"], "sealed");
}

#[test]
fn a_computer_that_stopped_comes_back_under_the_policy_of_now() {
    let world = World::guarded(&["good.test"]);
    world.house.den(&["stop", "c"]).ok();
    world.house.den(&["net", "c", "forget", "good.test"]).ok();
    world.house.den(&["start", "c"]).ok();
    crate::world::blocked(&world.run("c", "say(**dns('good.test'))")[0]);
    world.house.den(&["net", "c", "allow", "good.test"]).ok();
    crate::world::answered(&world.run("c", "say(**get(address('good.test'), 'good.test'))")[0]);
}
