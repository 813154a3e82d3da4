//! A Den inside a Den: computers in a computer, with their own gate behind the outer one.

use super::lab::{DEN, Lab};

/// A root of one program.
const TINY: &str = r#"
set -e
mkdir -p /root/tiny/bin /root/tiny/etc /root/tiny/root
cp /bin/busybox /root/tiny/bin/
for name in sh ls id cat echo hostname wget head ps df; do ln -s busybox /root/tiny/bin/$name; done
echo root:x:0:0:root:/root:/bin/sh > /root/tiny/etc/passwd
echo root:x:0: > /root/tiny/etc/group
tar -cf /root/tiny.tar -C /root/tiny .
# Id-mapped mounts need a file system that belongs to this computer: a tmpfs does, its root does not.
mkdir -p /var/lib/den && mount -t tmpfs den /var/lib/den
"#;

#[test]
fn a_den_runs_inside_a_den() {
    let lab = Lab::with(&["nftables", "busybox-static"]);
    lab.house.den(&["cp", DEN, "lab:/usr/local/bin/den"]).ok();
    lab.sh(TINY).ok();
    lab.keep(&["sh", "-c", "exec den serve --storage plain --pool 1 > /var/log/den.log 2>&1"]);
    lab.until("the inner daemon answers", "den version");
    lab.sh("den image import /root/tiny.tar tiny").ok();
    lab.sh("den new inner --image tiny").ok();
    lab.check(
        "a computer in a computer",
        "den exec inner -- sh -c 'id -u; hostname; cat /proc/1/comm; echo well > /root/f'",
        "0\ninner\nden-agent",
    );
    lab.check("it keeps its disk", "den stop inner && den start inner && den exec inner -- cat /root/f", "well");
    lab.check(
        "out through both gates",
        "url=$(grep -m1 -o 'http://[^ ]*' /etc/apt/sources.list)/dists/bookworm/Release; den exec inner -- sh -c \"wget -q -O - $url | head -n 1\"",
        "Origin: Debian",
    );
    let seen = lab.house.den(&["net", "log", "lab", "--json"]).ok();
    assert!(seen.contains("\"allow\""), "the outer gate has seen it: {seen}");
    lab.check(
        "two at once, and their end",
        "den new other --image tiny && den exec other -- hostname && den rm inner other && den ls -q | wc -l",
        "other\nother\n0",
    );
    lab.sh("den shutdown").ok();
    // What is smaller than on a host is said.
    lab.refused(
        "limits of an inner computer",
        "test -e /sys/fs/cgroup/memory.max || { echo no controllers; false; }",
        "no controllers",
    );
}
