//! EG09: an allowed name that points under the floor. The address that would be dialled is held
//! against the floor: no SYN leaves.

use std::net::IpAddr;

use den_testkit::{Internet, Site};

use crate::world::{World, answered, canary, refused};

#[test]
fn a_name_that_points_under_the_floor_is_not_dialled() {
    let net = Internet::new();
    let opened = format!("{}:8080", net.private());
    let world = World::on(net, &["--private", &opened]);
    world.add("c", "guarded", &["float.test", "float.test:8080", "tcp://float.test:5432", "*.float.test"]);
    world.add("o", "open", &[]);
    let secret = canary();
    let (private, shared) = (world.net.private().to_string(), world.net.carrier_grade().to_string());
    let low = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.2",
        &private,
        &shared,
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "192.0.0.8",
        "198.18.0.5",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fd00::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:a00:1::f5ff:fffe",
    ];
    for (place, address) in low.iter().enumerate() {
        let address: IpAddr = address.parse().expect("an address");
        world.net.point(&format!("n{place}.float.test"), &[address]);
    }
    let seen = world.run(
        "c",
        &format!(
            "for n in range({}):\n\x20name = 'n%d.float.test' % n\n\x20say(**get(address(name), name, '/{secret}'))",
            low.len()
        ),
    );
    assert_eq!(seen.len(), low.len());
    for (place, seen) in seen.iter().enumerate() {
        println!("{}", low[place]);
        refused(seen);
    }
    for place in 0..low.len() {
        // The record of the request: it is dialled for that.
        let name = format!("n{place}.float.test");
        world.record("c", &format!("{name}: floor"), |record| {
            record["verdict"] == "deny" && record["why"] == "floor" && record["name"] == name.as_str()
        });
    }

    // Many answers, one of them good: what is under the floor is not dialled, whatever its place.
    let good: IpAddr = world.net.at(Site::Good).into();
    world.net.point("float.test", &[world.net.private().into(), good]);
    let seen = world.run("c", &format!("say(**get(address('float.test'), 'float.test', '/{secret}'))"));
    assert!(seen[0]["ms"].as_u64().is_some_and(|ms| ms < 3000), "{seen:?}");

    // An address of the host's own, and by raw TCP and TLS, in guarded and in open.
    world.net.point("float.test", &[world.net.host().into()]);
    let seen = world
        .run("c", "say(**fate(address('float.test'), 5432, b'x'))\nsay(**tls(address('float.test'), 'float.test'))");
    seen.iter().for_each(refused);
    world.denied("c", "open", "own_address", "float.test");
    let seen = world.run(
        "o",
        &format!(
            "for to in ('{{private}}', '{{shared}}', '{{host}}', '10.0.0.1', '192.168.0.1'):\n\
             \x20say(**fate(to, 80, b'{secret}'))\n\
             say(**get(address('n4.float.test') or '{{private}}', 'n4.float.test', '/{secret}'))"
        ),
    );
    seen.iter().for_each(refused);
    world.denied("o", "open", "floor", "{private}:80");
    world.denied("o", "open", "own_address", "{host}:80");
    assert!(world.net.packets_to(world.net.private()).is_empty(), "a private address was touched");
    assert!(world.net.packets_to(world.net.carrier_grade()).is_empty(), "a shared address was touched");
    world.no_leak(&secret);

    // The operator has opened one port of the private address: that one, and by a rule, works.
    world.net.point("float.test", &[world.net.private().into()]);
    let seen = world.run(
        "c",
        "say(**get(address('float.test'), 'float.test', port=8080))\nsay(**get(address('float.test'), 'float.test'))",
    );
    answered(&seen[0]);
    assert!(!seen[1]["got"].as_str().unwrap_or_default().starts_with("HTTP/1.1 200"), "{seen:?}");
    let ports: Vec<_> = world.net.packets_to(world.net.private()).iter().map(|packet| packet.port).collect();
    assert!(!ports.is_empty() && ports.iter().all(|port| *port == Some(8080)), "{ports:?}");
}
