//! nginx, cron, ssh, and ping to itself.

use super::lab::Lab;

#[test]
fn services_run_and_answer() {
    let lab = Lab::with(&["nginx", "cron", "openssh-server"]);
    lab.sh("echo 'well served' > /var/www/html/index.html; service nginx start; service cron start").ok();
    lab.check("nginx on loopback", "curl -sf localhost", "well served");
    lab.check("nginx on the computer's own address", "curl -sf http://10.0.0.2/", "well served");
    lab.check("two workers", "pgrep -c -f 'nginx: worker'", "2");

    // cron wakes up at each full minute.
    lab.sh("echo '* * * * * root date +\\%s > /tmp/cron-ran' > /etc/cron.d/den").ok();

    lab.check("ping to itself", "ping -q -c 2 -i 0.2 10.0.0.2 | grep -o '2 received'", "2 received");
    lab.check("ping to its name", "ping -q -c 1 \"$(hostname)\" | grep -o '1 received'", "1 received");
    lab.check("ping as a user", "sudo -u user ping -q -c 1 127.0.0.1 | grep -o '1 received'", "1 received");

    lab.sshd();
    lab.check(
        "ssh with a terminal",
        "ssh -tt -i ~/.ssh/id -o StrictHostKeyChecking=no -o LogLevel=ERROR localhost 'tty | cut -d/ -f1-3; id -un' < /dev/null | tr -d '\\r'",
        "/dev/pts\nroot",
    );

    let since = std::time::Instant::now();
    while lab.sh("test -s /tmp/cron-ran").code != 0 {
        assert!(since.elapsed().as_secs() < 90, "cron ran nothing for 90 s");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}
