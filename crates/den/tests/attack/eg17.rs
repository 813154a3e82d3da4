//! EG17: vsock to the host or to siblings: there is no such family inside. Nor is there any other way
//! beside the link; and by the link a sibling is reached by a rule that names it, or not at all.

use crate::world::{World, answered, blocked, refused};

#[test]
fn there_is_no_way_beside_the_link() {
    let world = World::guarded(&["good.test"]);
    let seen = world.run(
        "c",
        "for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):\n\
         \x20try: socket.socket(40, kind); say(end='open')\n\
         \x20except OSError as e: say(end=errno.errorcode[e.errno])\n\
         say(links=sorted(os.listdir('/sys/class/net')))\n\
         say(abstract=[line.split()[-1] for line in open('/proc/net/unix') if '@' in line])\n\
         say(vsock=os.path.exists('/dev/vsock'))\n\
         say(listening=[line.split()[1] for line in open('/proc/net/tcp') if ' 0A ' in line])",
    );
    assert!(seen[..3].iter().all(|seen| seen["end"] == "EAFNOSUPPORT"), "{seen:?}");
    assert_eq!(seen[3]["links"], serde_json::json!(["eth0", "lo"]));
    assert_eq!(seen[4]["abstract"], serde_json::json!([]), "no abstract socket of anybody's");
    assert_eq!(seen[5]["vsock"], false);
    assert_eq!(seen[6]["listening"], serde_json::json!([]), "nothing of Den's listens inside");
    answered(&world.run("c", "say(**get(address('good.test'), 'good.test'))")[0]);
}

#[test]
fn a_sibling_is_reached_by_a_rule_or_not_at_all() {
    let world = World::guarded(&["good.test"]);
    world.add("o", "open", &[]);
    world.add("d", "sealed", &[]);
    // Two services of `d`, on its loopback; its own posture is about its own flows.
    let serve = "import http.server, threading\n\
                 for port in (9000, 9001): threading.Thread(target=http.server.HTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler).serve_forever).start()";
    world.house.den(&["exec", "-d", "d", "--", "python3", "-c", serve]).ok();
    world.house.sh("d", "for i in $(seq 100); do curl -sf -o /dev/null localhost:9001 && break; sleep 0.05; done").ok();
    let attempt = "r = dns('d.vm.internal')\nsay(**r)\n\
                   for to in ('10.0.0.2', '10.0.0.3', '169.254.1.1', '198.18.0.7'): say(**fate(to, 9000, b'GET / HTTP/1.0\\r\\n\\r\\n') if to != '10.0.0.2' else dict(end='refused', ms=0, got=''))";
    for name in ["c", "o"] {
        let seen = world.run(name, attempt);
        blocked(&seen[0]);
        seen[1..].iter().for_each(refused);
        world.denied(name, "dns", "no_rule", "d.vm.internal");
    }
    // With a rule: this port of this one, and no other.
    for name in ["c", "o"] {
        world.house.den(&["net", name, "allow", "vm:d:9000"]).ok();
        let seen = world.run(
            name,
            "d = address('d.vm.internal')\n\
             say(**fate(d, 9000, b'GET / HTTP/1.0\\r\\n\\r\\n'))\nsay(**fate(d, 9001, b'GET / HTTP/1.0\\r\\n\\r\\n'))\n\
             say(**dns('c.vm.internal'))\nsay(**dns('other.d.vm.internal'))",
        );
        assert!(seen[0]["got"].as_str().is_some_and(|got| got.contains(" 200 OK")), "{seen:?}");
        refused(&seen[1]);
        blocked(&seen[2]);
        blocked(&seen[3]);
        world.denied(name, "open", "no_rule", "d.vm.internal");
    }
}
