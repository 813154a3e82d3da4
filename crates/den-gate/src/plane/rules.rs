//! The packet rules of the gate's namespace: one set for all links, and nothing is loaded when a
//! computer comes or goes.
//!
//! ```text
//! raw     only 10.0.0.2 from 02:00:00:00:00:02, only so many packets a second; no tracking
//! mangle  UDP 53 ─► the one socket      TCP ─► its own socket, else the listener of its device
//!         other TCP ─► RST              UDP 443 ─► port unreachable         the rest ─► nothing
//! ```
//!
//! Every computer has the same address, so a refusal that the kernel makes itself has no route that
//! says by which link it leaves. It finds its way by a mark: what is refused gets one that is made
//! from its interface and kept in the map `back` for a moment; the kernel's answer inherits it
//! (`fwmark_reflect`), is routed into a dead end (the interface `back`), and goes by the link that
//! the map says instead. So a dead gate, too, refuses at once.
//!
//! A first packet (SYN) goes to the listener even where its four numbers still belong to a connection
//! that has just ended: `tproxy` lets the old one go then, `socket` would find it.
//!
//! Source: nft(8), linux Documentation/networking/tproxy.rst; tried on Linux 6.18 with nft 1.0.6.

/// Port of the listeners.
pub(super) const LISTEN_PORT: u16 = 7443;
/// Port of DNS.
pub(super) const DNS_PORT: u16 = 53;
/// Mark of what is delivered here, whatever its address, and the table that says so.
pub(super) const MARK: u32 = 1;
/// See [`MARK`].
pub(super) const TABLE: u8 = 100;
/// The dead end, with its indexes; see the module.
pub(super) const BACK: [(&str, u32); 2] = [("back", 2), ("back-end", 3)];
/// Packets a second that a link may send; more are dropped. A first packet that is dropped comes again a
/// second later, so this is far above what a busy computer needs: seven packets a connection, 2,300
/// acknowledgements for a GiB of a fast download.
pub(super) const PACKETS_PER_S: u32 = 50_000;
/// Packets at once above that.
pub(super) const PACKETS_BURST: u32 = 12_500;

/// DNS packets a second of a link: all share one socket, and nobody shall fill it. The limit that
/// a policy sets is far below, and answered with a refusal.
const QUERIES_PER_S: u32 = 2_000;

/// Sets of the rules that count, by interface, packets that went nowhere, and the words for that in
/// a record: more than [`PACKETS_PER_S`] or [`QUERIES_PER_S`], another address or MAC than a
/// computer's, QUIC, no flow.
pub(super) const COUNTING: [(&str, &str); 5] =
    [("rate", "packets"), ("queries", "dns_packets"), ("forged", "forged"), ("quic", "quic"), ("stray", "no_flow")];

/// Settings under /proc/sys/net.
pub(super) const SETTINGS: [(&str, &str); 5] = [
    ("ipv4/fwmark_reflect", "1"),
    // Its buckets are by address, and here all have the same one. The packet limit above holds.
    ("ipv4/icmp_ratelimit", "0"),
    // A half-open connection is given up after seven seconds; a link is no long way.
    ("ipv4/tcp_synack_retries", "2"),
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
];

/// For `nft -f -`; replaces what is loaded in one step.
pub(super) fn ruleset() -> String {
    format!(
        r#"table ip den_gate
delete table ip den_gate
table ip6 den_gate
delete table ip6 den_gate
table arp den_gate
delete table arp den_gate
table ip den_gate {{
 counter spoofed {{ }}
 counter packets_over {{ }}
 counter dropped {{ }}
 set rate {{ typeof iif; size 65535; flags dynamic,timeout; timeout 1m; }}
 set forged {{ typeof iif; size 65535; flags dynamic,timeout; timeout 1m; }}
 set stray {{ typeof iif; size 65535; flags dynamic,timeout; timeout 1m; }}
 set queries {{ typeof iif; size 65535; flags dynamic,timeout; timeout 1m; }}
 set quic {{ typeof iif; size 65535; flags dynamic,timeout; timeout 1m; }}
 map back {{ typeof meta mark : iif; size 65535; flags dynamic,timeout; timeout 10s; }}
 chain raw {{
  type filter hook prerouting priority raw; policy accept
  iif "lo" accept
  notrack
  ip saddr != 10.0.0.2 update @forged {{ iif counter }} counter name "spoofed" drop
  ether saddr != 02:00:00:00:00:02 update @forged {{ iif counter }} counter name "spoofed" drop
  update @rate {{ iif limit rate over {PACKETS_PER_S}/second burst {PACKETS_BURST} packets counter }} counter name "packets_over" drop
 }}
 chain mangle {{
  type filter hook prerouting priority mangle; policy drop
  iif "lo" accept
  ip daddr 127.0.0.0/8 update @stray {{ iif counter }} counter name "dropped" drop
  udp dport {DNS_PORT} update @queries {{ iif limit rate over {QUERIES_PER_S}/second burst {QUERIES_PER_S} packets counter }} counter name "packets_over" drop
  udp dport {DNS_PORT} tproxy ip to :{DNS_PORT} meta mark set {MARK} accept
  tcp flags & (fin | syn | rst | ack) != syn socket transparent 1 meta mark set {MARK} accept
  meta l4proto tcp tproxy ip to :{LISTEN_PORT} meta mark set {MARK} accept
  meta mark set jhash iif mod 4294967295 seed 0x64656e
  update @back {{ meta mark : iif }}
  meta l4proto tcp reject with tcp reset
  udp dport 443 update @quic {{ iif counter }} reject with icmp type port-unreachable
  update @stray {{ iif counter }} counter name "dropped"
 }}
 chain input {{
  type filter hook input priority filter; policy drop
  iif "lo" accept
  meta mark {MARK} accept
 }}
 chain forward {{
  type filter hook forward priority filter; policy drop
 }}
 chain output {{
  type filter hook output priority filter; policy accept
  oifname "{back}" ip daddr 10.0.0.2 dup to 10.0.0.2 device meta mark map @back
  oifname "{back}" drop
 }}
}}
table ip6 den_gate {{
 chain raw {{
  type filter hook prerouting priority raw; policy drop
  iif "lo" accept
 }}
}}
table arp den_gate {{
 chain input {{
  type filter hook input priority filter; policy drop
  arp operation request arp saddr ip 10.0.0.2 arp daddr ip 169.254.1.1 accept
 }}
}}
"#,
        back = BACK[0].0
    )
}
