//! systemd as PID 1 of a nested PID namespace, under the agent: an image's command, started at boot.

use super::lab::Lab;

/// What an image that wants systemd has for its command.
const BOOT: [&str; 9] = [
    "unshare",
    "--pid",
    "--mount",
    "--cgroup",
    "--fork",
    "--mount-proc",
    "--kill-child=SIGRTMIN+3",
    "/lib/systemd/systemd",
    "--show-status=false",
];
/// The way to it from a step: its own private socket looks at the PID of who asks.
const ENTER: &str = "nsenter --target $(pgrep -o -x systemd) --pid --mount --cgroup --";

#[test]
fn systemd_runs_services() {
    let lab = Lab::with(&["systemd", "systemd-sysv", "dbus", "nginx", "cron"]);
    lab.keep(&BOOT);
    let state = lab.until(
        "systemd is up",
        &format!("s=$({ENTER} systemctl is-system-running); echo $s; case $s in running|degraded) ;; *) false;; esac"),
    );
    assert_eq!(state, "running", "{}", lab.sh(&format!("{ENTER} systemctl --failed --no-pager")).stdout);
    let enter = |script: &str| format!("{ENTER} {script}");
    lab.check(
        "its services",
        &enter("systemctl is-active nginx cron dbus systemd-journald systemd-logind"),
        "active\nactive\nactive\nactive\nactive",
    );
    lab.check("PID 1", &enter("cat /proc/1/comm"), "systemd");
    lab.until("nginx answers", "curl -sf -o /dev/null localhost");
    lab.check("restart", &enter("systemctl restart nginx && curl -s -o /dev/null -w '%{http_code}' localhost"), "200");
    lab.check(
        "a unit of one's own",
        &enter("systemd-run --quiet --wait --pipe --collect sh -c 'echo from a unit'"),
        "from a unit",
    );
    lab.check(
        "its journal",
        &enter("sh -c 'logger -t den well; journalctl --sync; journalctl -q -t den -o cat'"),
        "well",
    );
    lab.check("a user asks over D-Bus", "sudo -u user systemctl is-active nginx", "active");
    // An end in good order, by its own signal.
    lab.sh("kill -s SIGRTMIN+3 $(pgrep -o -x systemd)").ok();
    lab.until("it has gone", "! pgrep -x systemd > /dev/null && ! pgrep nginx > /dev/null");
}
