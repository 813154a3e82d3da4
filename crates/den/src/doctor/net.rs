//! What the gate needs: its packet rules are loaded into a network namespace that ends with the trial.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{Check, Status, program};

/// Every kind of statement that the gate's rules have; they hold for nobody.
const RULES: &str = "
table ip den_doctor {
 set rate { typeof iif; size 64; flags dynamic,timeout; timeout 1m; }
 map back { typeof meta mark : iif; size 64; flags dynamic,timeout; timeout 10s; }
 chain raw {
  type filter hook prerouting priority raw; policy accept
  iif \"lo\" accept
  notrack
  ether saddr != 02:00:00:00:00:02 counter drop
  update @rate { iif limit rate over 20000/second burst 5000 packets counter } counter drop
 }
 chain mangle {
  type filter hook prerouting priority mangle; policy drop
  udp dport 53 tproxy ip to :53 meta mark set 1 accept
  meta l4proto tcp socket transparent 1 meta mark set 1 accept
  meta l4proto tcp tproxy ip to :7443 meta mark set 1 accept
  meta mark set jhash iif mod 4294967295 seed 0x64656e
  update @back { meta mark : iif }
  meta l4proto tcp reject with tcp reset
  udp dport 443 reject with icmp type port-unreachable
 }
 chain output {
  type filter hook output priority filter; policy accept
  ip daddr 10.0.0.2 dup to 10.0.0.2 device meta mark map @back
 }
}
table arp den_doctor {
 chain input {
  type filter hook input priority filter; policy drop
  arp operation request arp saddr ip 10.0.0.2 arp daddr ip 169.254.1.1 accept
 }
}
";
const MEANS: &str = "computers have no network: the gate does not start, and nothing leaves them";

pub(super) fn checks() -> Vec<Check> {
    let (Some(nft), Some(unshare)) = (program("nft"), program("unshare")) else {
        return vec![Check::warn("gate", "nft is not installed", MEANS).fix("apt-get install nftables")];
    };
    let loaded = || -> Result<String, String> {
        let mut command = Command::new(unshare);
        command.arg("--net").arg(nft).args(["-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("unshare: {error}"))?;
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(RULES.as_bytes()));
        let output = child.wait_with_output().map_err(|error| format!("nft: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        match (output.status.success(), written) {
            (true, Some(Ok(()))) => Ok("nft loads its rules: tproxy, socket, reject, dup".to_owned()),
            _ => Err(format!("nft: {}", said.lines().next().unwrap_or("it ended without a word"))),
        }
    };
    let fix = "modprobe -a nft_tproxy nft_socket nft_reject_ipv4 nft_dup_ipv4 nft_hash nft_ct";
    vec![Check::tried("gate", loaded(), Status::Warn, MEANS, Some(fix))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_load_or_the_reason_is_told() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        for check in checks() {
            assert!(check.status == Status::Ok || (!check.means.is_empty() && check.fix.is_some()), "{check:?}");
        }
    }
}
