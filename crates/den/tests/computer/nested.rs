//! Namespaces within, and bubblewrap.

use super::lab::Lab;

#[test]
fn sandboxes_nest() {
    let lab = Lab::with(&["bubblewrap"]);
    lab.check("a user namespace in a user namespace", "unshare -Ur unshare -Ur id -u", "0");
    lab.check(
        "all namespaces as a user",
        "sudo -u user unshare -UrmpfinuC --mount-proc sh -c 'hostname inner; echo $$ $(hostname)'",
        "1 inner",
    );
    let bwrap = "bwrap --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp --unshare-all --die-with-parent";
    let inside =
        "sh -c 'echo $(id -u) $$ $(ls -A /tmp | wc -l); touch /etc/x 2>&1 | grep -c read-only -i; ip -br link | wc -l'";
    lab.check("bubblewrap as root", &format!("{bwrap} {inside}"), "0 2 0\n1\n1");
    lab.check("bubblewrap as a user", &format!("sudo -u user {bwrap} {inside}"), "1000 2 0\n1\n1");
    lab.check("bubblewrap in bubblewrap", &format!("sudo -u user {bwrap} {bwrap} id -u"), "1000");
    lab.check(
        "a network namespace with a name",
        "ip netns add blue && ip netns exec blue ip -br link show lo | cut -d' ' -f1 && ip netns del blue",
        "lo",
    );
}
