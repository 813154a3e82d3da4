//! A computer with software in it.

use den_testkit::{House, Options, Ran};

/// The program under test.
pub const DEN: &str = env!("CARGO_BIN_EXE_den");

/// The computer's name.
pub const NAME: &str = "lab";

/// A house with one computer that has the public internet, as a user gets it.
pub struct Lab {
    /// Its house.
    pub house: House,
}

impl Lab {
    /// With Debian packages, installed inside as a user would.
    pub fn with(packages: &[&str]) -> Self {
        let lab = Self { house: House::with(DEN, Options::default()) };
        lab.house.den(&["new", NAME, "--memory", "3GiB", "--pids", "4096", "--disk", "16GiB"]).ok();
        if !packages.is_empty() {
            lab.house.apt(NAME, packages);
        }
        lab
    }

    /// Runs a script of `bash` as root.
    pub fn sh(&self, script: &str) -> Ran {
        self.house.den(&["exec", NAME, "--", "bash", "-c", script])
    }

    /// Runs a script that must succeed and print `expected`.
    pub fn check(&self, what: &str, script: &str, expected: &str) {
        let ran = self.sh(script);
        let ends = (ran.code, ran.stdout.trim_end());
        assert_eq!(ends, (0, expected), "{what}: {script}\nstderr: {}", ran.stderr);
    }

    /// Runs a script that must fail and say `words`.
    pub fn refused(&self, what: &str, script: &str, words: &str) {
        let ran = self.sh(script);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(ran.code != 0 && said.contains(words), "{what}: {}, {said}", ran.code);
    }

    /// Starts sshd, with a key of root's that leads to root again.
    pub fn sshd(&self) {
        self.sh("mkdir -p /run/sshd && ssh-keygen -A > /dev/null && /usr/sbin/sshd && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id && cp ~/.ssh/id.pub ~/.ssh/authorized_keys").ok();
    }

    /// Runs something that stays.
    pub fn keep(&self, words: &[&str]) {
        self.house.den(&[&["exec", NAME, "-d", "--"], words].concat()).ok();
    }

    /// Waits for a script to succeed; what it printed. Panics with its last words after a minute.
    pub fn until(&self, what: &str, script: &str) -> String {
        let since = std::time::Instant::now();
        loop {
            let ran = self.sh(script);
            if ran.code == 0 {
                return ran.ok();
            }
            assert!(since.elapsed().as_secs() < 60, "not within a minute: {what}: {}{}", ran.stdout, ran.stderr);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// Installing software.
pub trait Install {
    /// Installs Debian packages in a computer by apt, from wherever its sources say.
    fn apt(&self, name: &str, packages: &[&str]);
}

impl Install for House {
    fn apt(&self, name: &str, packages: &[&str]) {
        let script = format!(
            "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && \
             apt-get -qq -y --no-install-recommends install {} < /dev/null > /tmp/apt.log 2>&1 || {{ tail -30 /tmp/apt.log; exit 1; }}",
            packages.join(" ")
        );
        self.den(&["exec", name, "--", "bash", "-c", &script]).ok();
    }
}
