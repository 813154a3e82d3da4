//! What a fork must not share with its parent: a test a row of docs/FORKS.md.
//!
//! ```text
//! System (adapter) ◄── Den: a daemon of its own, driven by its CLI
//!    ▲
//! rows::hostname, rows::boot_id, …     know nothing of Den: what is true of a fork anywhere
//! ```
//!
//! To run the rows against another system, implement [`System`] for it.

use std::collections::BTreeSet;

use den_testkit::House;

/// A system of computers that can be forked.
trait System {
    /// Makes a computer that runs, with `INHERITED=yes` in the environment of what runs in it.
    fn create(&self, name: &str);
    /// What a script of `sh` prints when root runs it inside; panics if it fails.
    fn run(&self, name: &str, script: &str) -> String;
    /// Makes `child` from `parent` as it is now, and returns when it runs. The parent goes on.
    fn fork(&self, parent: &str, child: &str);
    /// Ends all processes and boots again.
    fn restart(&self, name: &str);
    /// By what the system tells it from all others.
    fn id(&self, name: &str) -> String;
    /// What the network has recorded of it, as text.
    fn traffic(&self, name: &str) -> String;
    /// What it may reach, as text.
    fn policy(&self, name: &str) -> String;
    /// Takes the network away from it.
    fn seal(&self, name: &str);
    /// The name of what it was forked from, if it was.
    fn parent(&self, name: &str) -> Option<String>;
    /// How many commands its log holds.
    fn steps(&self, name: &str) -> usize;
}

struct Den(House);

impl System for Den {
    fn create(&self, name: &str) {
        self.0.den(&["new", name, "--memory", "1GiB", "--env", "INHERITED=yes"]).ok();
    }

    fn run(&self, name: &str, script: &str) -> String {
        self.0.sh(name, script).ok()
    }

    fn fork(&self, parent: &str, child: &str) {
        assert_eq!(self.0.den(&["fork", parent, child]).ok(), child);
    }

    fn restart(&self, name: &str) {
        self.0.den(&["stop", name]).ok();
        self.0.den(&["start", name]).ok();
    }

    fn id(&self, name: &str) -> String {
        self.0.json(&["info", name])["id"].as_str().expect("an id").to_owned()
    }

    fn traffic(&self, name: &str) -> String {
        self.0.den(&["net", "log", name, "--lines", "0", "--json"]).ok()
    }

    fn policy(&self, name: &str) -> String {
        self.0.json(&["info", name])["net"].as_str().expect("a posture").to_owned()
    }

    fn seal(&self, name: &str) {
        self.0.den(&["net", name, "sealed"]).ok();
    }

    fn parent(&self, name: &str) -> Option<String> {
        self.0.json(&["info", name])["parent"]["name"].as_str().map(str::to_owned)
    }

    fn steps(&self, name: &str) -> usize {
        self.0.json(&["info", name])["last_step"].as_u64().expect("a number") as usize
    }
}

/// Runs `script` in a parent and forks it.
fn pair(system: &dyn System, script: &str) -> [&'static str; 2] {
    system.create("parent");
    system.run("parent", script);
    system.fork("parent", "child");
    ["parent", "child"]
}

/// What both print; they must differ, and neither is empty.
fn differ(system: &dyn System, names: [&str; 2], script: &str) -> [String; 2] {
    let said = names.map(|name| system.run(name, script));
    assert!(said.iter().all(|text| !text.is_empty()), "{script}: {said:?}");
    assert_ne!(said[0], said[1], "{script}: the fork has its parent's");
    said
}

/// What both print; it must be the same.
fn agree(system: &dyn System, names: [&str; 2], script: &str) -> String {
    let [parent, child] = names.map(|name| system.run(name, script));
    assert_eq!(child, parent, "{script}");
    parent
}

mod rows {
    use std::time::Duration;

    use den_testkit::eventually;

    use super::{System, agree, differ, pair};

    pub fn id(system: &dyn System) {
        let [parent, child] = pair(system, ":");
        assert_ne!(system.id(parent), system.id(child));
    }

    pub fn hostname(system: &dyn System) {
        let names = pair(system, ":");
        for script in ["uname -n", "cat /etc/hostname"] {
            assert_eq!(differ(system, names, script), ["parent", "child"], "{script}");
        }
    }

    pub fn hosts(system: &dyn System) {
        let names = pair(system, "echo '10.9.8.7 database' >> /etc/hosts");
        let [_, hosts] = differ(system, names, "cat /etc/hosts");
        let words: Vec<&str> = hosts.split_whitespace().collect();
        assert!(words.contains(&"child") && words.contains(&"database") && !words.contains(&"parent"), "{hosts}");
    }

    pub fn machine_id(system: &dyn System) {
        let names =
            pair(system, "mkdir -p /var/lib/dbus; cp --remove-destination /etc/machine-id /var/lib/dbus/machine-id");
        let [_, child] = differ(system, names, "cat /etc/machine-id");
        assert!(child.len() == 32 && child.bytes().all(|byte| byte.is_ascii_hexdigit()), "{child}");
        assert_eq!(system.run("child", "cat /var/lib/dbus/machine-id"), child);
    }

    pub fn boot_id(system: &dyn System) {
        const READ: &str = "cat /proc/sys/kernel/random/boot_id";
        let names = pair(system, ":");
        let [parent, child] = differ(system, names, READ);
        assert_eq!(system.run("child", READ), child, "it does not change while the computer runs");
        assert_eq!((child.len(), child.matches('-').count()), (36, 4), "{child}");
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        assert!(host.trim() != child && host.trim() != parent, "it is the host's");
        system.restart("child");
        let again = system.run("child", READ);
        assert!(again != child && again != parent, "a boot has the id of another one");
        assert!(system.run("child", &format!("echo x > {} 2>&1 || echo no", &READ[4..])).contains("no"));
    }

    pub fn ssh_host_keys(system: &dyn System) {
        let names = pair(
            system,
            "mkdir -p /etc/ssh; cd /etc/ssh; rm -f ssh_host_*
            for kind in ed25519 ecdsa rsa dsa; do
                echo \"secret of $kind\" > ssh_host_${kind}_key; echo \"public of $kind\" > ssh_host_${kind}_key.pub
            done; echo signed > ssh_host_ed25519_key-cert.pub; echo 'Port 22' > sshd_config",
        );
        for name in ["ssh_host_ed25519_key", "ssh_host_ecdsa_key"] {
            let [_, key] = differ(system, names, &format!("cat /etc/ssh/{name}"));
            assert!(key.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"), "{key}");
            differ(system, names, &format!("cat /etc/ssh/{name}.pub"));
            assert_eq!(system.run("child", &format!("stat -c %a:%u:%g /etc/ssh/{name}")), "600:0:0");
        }
        let all = system.run("child", "cd /etc/ssh; cat ssh_host_*; ls");
        assert!(!all.contains("secret of") && !all.contains("public of") && !all.contains("signed"), "{all}");
        agree(system, names, "cat /etc/ssh/sshd_config");
        // Forks are not each other either.
        system.fork("parent", "second");
        differ(system, ["child", "second"], "cat /etc/ssh/ssh_host_ed25519_key");
    }

    pub fn forgotten_secrets(system: &dyn System) {
        const FILES: &str = "/var/lib/systemd/credential.secret /etc/dropbear/dropbear_rsa_host_key \
            /var/lib/NetworkManager/secret_key /var/lib/dhcpcd/duid /var/lib/dhcp/dhclient.eth0.leases \
            /etc/iscsi/initiatorname.iscsi /etc/nvme/hostid /var/lib/docker/engine-id /etc/docker/key.json";
        let script = format!("for f in {FILES}; do mkdir -p $(dirname $f); echo secret > $f; done");
        let [parent, child] = pair(system, &script);
        let there = format!("for f in {FILES}; do if [ -e $f ]; then echo $f; fi; done");
        assert_eq!(system.run(parent, &there).lines().count(), 9);
        assert_eq!(system.run(child, &there), "", "secrets that were inherited");
    }

    pub fn random_seed(system: &dyn System) {
        let names = pair(
            system,
            "mkdir -p /var/lib/systemd /var/lib/urandom
            for f in /var/lib/systemd/random-seed /var/lib/urandom/random-seed; do head -c 512 /dev/zero > $f; done",
        );
        for file in ["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed"] {
            differ(system, names, &format!("sha256sum {file}"));
            assert_eq!(system.run("child", &format!("stat -c %s {file}")), "512");
        }
        differ(system, ["child", "parent"], "sha256sum /var/lib/*/random-seed | cut -d' ' -f1");
    }

    pub fn link(system: &dyn System) {
        let names = pair(system, "getent hosts early.forksafe.invalid || :");
        for name in names {
            system.run(name, &format!("getent hosts {name}.forksafe.invalid || :"));
        }
        for (name, other) in [(names[0], names[1]), (names[1], names[0])] {
            let own = format!("{name}.forksafe.invalid");
            eventually(Duration::from_secs(10), "it is recorded", || system.traffic(name).contains(&own));
            assert!(!system.traffic(other).contains(&own), "what {name} did is held against {other}");
        }
        assert!(!system.traffic("child").contains("early"), "the parent's record is the parent's");
    }

    pub fn files(system: &dyn System) {
        let names = pair(
            system,
            "mkdir -p /srv/tree/empty; cd /srv/tree; echo one > a; ln a b; ln -s a link; mkfifo pipe; chown 1000:33 a
            chmod 4751 a; chmod 1777 empty; touch -d '2001-02-03 04:05:06.7' a empty; truncate -s 5M sparse
            echo token > /root/.token; chmod 600 /root/.token; useradd -m someone || adduser -D someone",
        );
        let tree = agree(system, names, "cd /srv/tree; find . | sort | xargs stat -c '%n %F %a %u %g %h %s %y'");
        assert!(tree.contains("./a regular file 4751 1000 33 2 4 2001-02-03"), "{tree}");
        agree(system, names, "cat /srv/tree/b /root/.token /etc/passwd /etc/shadow; readlink /srv/tree/link");
        assert_eq!(agree(system, names, "echo $INHERITED"), "yes");
    }

    pub fn policy(system: &dyn System) {
        system.create("parent");
        let before = system.policy("parent");
        system.fork("parent", "first");
        assert_eq!(system.policy("first"), before);
        system.seal("parent");
        assert_eq!(system.policy("first"), before, "the policies are one");
        system.fork("parent", "second");
        assert_eq!(system.policy("second"), system.policy("parent"));
        assert_ne!(system.policy("second"), before);
    }

    pub fn address(system: &dyn System) {
        let names = pair(system, ":");
        agree(system, names, "cat /sys/class/net/eth0/address /proc/net/route");
    }

    pub fn processes(system: &dyn System) {
        const THERE: &str =
            "grep -lx sleep /proc/[0-9]*/comm 2>/dev/null | wc -l; ls /run/mark /dev/shm/mark 2>/dev/null | wc -l";
        let [parent, child] =
            pair(system, "setsid sleep 98765 < /dev/null > /dev/null 2>&1 & touch /run/mark /dev/shm/mark");
        let count =
            |name| system.run(name, THERE).lines().map(|line| line.trim().parse().unwrap()).collect::<Vec<u32>>();
        let (parent, child) = (count(parent), count(child));
        assert_eq!((parent[0], child[0]), (1, 0), "the parent's process goes on, in the parent");
        assert_eq!((parent[1], child[1]), (2, 0));
    }

    pub fn lineage(system: &dyn System) {
        let [parent, child] = pair(system, ":");
        assert_eq!(system.parent(child).as_deref(), Some(parent));
        assert_eq!(system.parent(parent), None);
        assert_eq!(system.steps(child), 0, "the parent's steps are the parent's");
        assert!(system.steps(parent) > 0);
    }

    pub fn isolation(system: &dyn System) {
        let names = pair(system, "echo before > /srv/shared; mkdir /srv/dir");
        system.run("parent", "echo parent > /srv/shared; rmdir /srv/dir; touch /srv/of-parent");
        system.run("child", "echo child >> /srv/shared; touch /srv/dir/of-child");
        let [parent, child] = differ(system, names, "cat /srv/shared; find /srv -name 'of-*'");
        assert_eq!(parent, "parent\n/srv/of-parent");
        assert_eq!(child, "before\nchild\n/srv/dir/of-child");
        // And so do forks of forks, when those between are changed.
        system.fork("child", "grandchild");
        system.run("child", "rm -r /srv/shared /srv/dir");
        assert_eq!(system.run("grandchild", "cat /srv/shared; find /srv -name 'of-*'"), child);
    }
}

macro_rules! rows {
    ($($row:ident)*) => {
        const ROWS: &[&str] = &[$(stringify!($row)),*];
        $(#[test]
        fn $row() {
            rows::$row(&Den(House::open(env!("CARGO_BIN_EXE_den"))));
        })*
    };
}

rows! {
    id hostname hosts machine_id boot_id ssh_host_keys forgotten_secrets random_seed link
    files policy address processes lineage isolation
}

/// The table names the tests, and no others.
#[test]
fn every_row_of_the_table_has_its_test() {
    let table = include_str!("../../../docs/FORKS.md");
    let named: BTreeSet<&str> =
        table.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit_once("| `")).map(|(_, name)| name).collect();
    assert_eq!(named, ROWS.iter().copied().collect());
}
