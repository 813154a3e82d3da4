//! Links, bridges, nft and iptables inside.

use super::lab::Lab;

#[test]
fn its_network_is_its_own_to_change() {
    let lab = Lab::with(&["nftables", "iptables"]);
    lab.check(
        "two namespaces on a bridge, with NAT to a third",
        r#"set -e
        ip link add br0 type bridge; ip addr add 10.5.0.1/24 dev br0; ip link set br0 up
        for n in 1 2; do
            ip netns add n$n; ip link add v$n type veth peer name eth0 netns n$n; ip link set v$n master br0 up
            ip -n n$n addr add 10.5.0.1$n/24 dev eth0; ip -n n$n link set eth0 up; ip -n n$n link set lo up; ip -n n$n route add default via 10.5.0.1
        done
        ip netns exec n1 ping -q -c 1 -W 2 10.5.0.12 | grep -o '1 received'
        sysctl -qw net.ipv4.ip_forward=1
        nft add table ip nat; nft add chain ip nat post '{ type nat hook postrouting priority srcnat; }'
        nft add chain ip nat pre '{ type nat hook prerouting priority dstnat; }'
        nft add rule ip nat post ip saddr 10.5.0.0/24 oif != br0 masquerade
        nft add rule ip nat pre tcp dport 8888 dnat to 10.5.0.12:80
        ip netns add n3; ip link add v3 type veth peer name eth0 netns n3; ip addr add 10.6.0.1/24 dev v3; ip link set v3 up
        ip -n n3 addr add 10.6.0.2/24 dev eth0; ip -n n3 link set eth0 up
        ip netns exec n1 ping -q -c 1 -W 2 10.6.0.2 | grep -o '1 received'
        cd /etc/default; ip netns exec n2 python3 -m http.server 80 > /dev/null 2>&1 & server=$!
        for i in $(seq 50); do ip netns exec n3 curl -sf -o /dev/null http://10.6.0.1:8888/ && echo forwarded && break; sleep 0.1; done
        kill $server"#,
        "1 received\n1 received\nforwarded",
    );
    lab.check(
        "the way out goes through NAT inside as well",
        "cd /etc && n=$(ip netns exec n1 sh -c 'mkdir -p /tmp/e && cd /tmp && apt-get download -q hostname 2>&1 | grep -c -i err'; true); ls /tmp/hostname_*.deb | wc -l",
        "1",
    );
    lab.check(
        "nft refuses",
        "nft add table inet t && nft add chain inet t in '{ type filter hook input priority 0; }' && nft add rule inet t in tcp dport 8123 counter reject with tcp reset && \
         (python3 -m http.server 8123 > /dev/null 2>&1 & echo $! > /tmp/pid); sleep 1; curl -s localhost:8123; echo $?; nft delete table inet t; curl -s -o /dev/null localhost:8123; echo $?; kill $(cat /tmp/pid)",
        "7\n0",
    );
    lab.keep(&["sh", "-c", "cd /tmp && exec python3 -m http.server 8126"]);
    lab.until("the server answers", "curl -s -o /dev/null localhost:8126");
    for iptables in ["iptables", "iptables-legacy"] {
        lab.check(
            iptables,
            &format!(
                "{iptables} -A INPUT -p tcp --dport 8124 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset && \
                 {iptables} -t nat -A OUTPUT -p tcp --dport 8125 -j REDIRECT --to-ports 8126; \
                 curl -s -o /dev/null localhost:8125; echo $?; curl -s localhost:8124; echo $?; {iptables} -F; {iptables} -t nat -F OUTPUT; \
                 curl -s -o /dev/null localhost:8125; echo $?"
            ),
            "0\n7\n7",
        );
    }
    for kind in ["veth peer name x1", "bridge", "macvlan link eth0", "vxlan id 7 dstport 4789 local 10.0.0.2", "tun"] {
        let script = match kind {
            "tun" => "ip tuntap add dev x0 mode tun && ip link del x0".to_owned(),
            kind => {
                let (before, kind) = match kind.strip_prefix("macvlan ") {
                    Some(on) => (on, "macvlan"),
                    None => ("", kind),
                };
                format!("ip link add x0 {before} type {kind} && ip link set x0 up && ip link del x0")
            }
        };
        lab.sh(&script).ok();
    }
    // A dummy needs the host's kernel to know the type; ours says so, and what it says is documented.
    let dummy = lab.sh("ip link add d0 type dummy && ip link del d0");
    assert!(dummy.code == 0 || dummy.stderr.contains("Unknown device type"), "{dummy:?}");
}
