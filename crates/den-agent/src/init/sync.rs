//! Writing out what waits, before a state is kept.
//!
//! ```text
//! /proc/self/mountinfo ─► those that hold data, the last mounted first ─► syncfs ─► frozen, where it can be
//!                                                                                   └─ connection closes ─► thawed
//! ```
//!
//! A file system on a loop device or behind FUSE writes to a file of one further out, so the innermost comes first
//! and the root last. What lives in memory alone is passed over. Only file systems that this computer mounted itself
//! can be frozen by it: the kernel refuses the others.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use den_wire::agent::{Reply, SYNC_HOLD_MS};
use rustix::fs::{Mode, OFlags};

use super::conn::Blocking;

/// Mounts that are looked at.
const MOUNTS_MAX: usize = 4096;

/// File systems that hold no bytes of their own.
const IN_MEMORY: [&str; 22] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.den",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// File systems of block devices, which a computer can only have mounted itself. Never those that its own disk may
/// lie on: that is everyone's.
const FREEZABLE: [&str; 6] = ["ext2", "ext3", "ext4", "f2fs", "nilfs2", "xfs"];

/// Writes out, answers, and holds what is frozen until the other side has what it wants.
pub fn run(mut conn: Blocking) {
    let mut frozen = Vec::new();
    for mount in mounts() {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // One that is covered or gone by now has nothing that can be reached.
        let Ok(fd) = rustix::fs::open(&mount.target, flags, Mode::empty()) else { continue };
        let _ = rustix::fs::syncfs(&fd);
        if FREEZABLE.contains(&mount.kind.as_str()) && den_sys::mount::freeze(fd.as_fd()).is_ok() {
            frozen.push(Frozen(fd));
        }
    }
    if conn.reply(&Reply::Done).is_ok() && !frozen.is_empty() {
        wait(&mut conn);
    }
}

/// Waits until the connection closes, not for ever.
fn wait(conn: &mut Blocking) {
    let limit = Some(Duration::from_millis(SYNC_HOLD_MS));
    if rustix::net::sockopt::set_socket_timeout(conn.as_fd(), rustix::net::sockopt::Timeout::Recv, limit).is_ok() {
        let _ = conn.read(&mut [0]);
    }
}

/// Goes on when it is dropped.
struct Frozen(OwnedFd);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = den_sys::mount::thaw(self.0.as_fd());
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    target: String,
    kind: String,
}

/// What holds data, the last mounted first.
fn mounts() -> Vec<Mount> {
    let mut text = String::new();
    let read = File::open("/proc/self/mountinfo").and_then(|mut file| file.read_to_string(&mut text));
    if read.is_err() {
        return vec![Mount { target: "/".to_owned(), kind: "overlay".to_owned() }];
    }
    let mut found = parse(&text);
    found.reverse();
    found
}

/// `36 35 98:0 /root /target options [more] - kind source options`, one a line.
fn parse(text: &str) -> Vec<Mount> {
    let mut seen = std::collections::HashSet::new();
    let mount = |line: &str| {
        let (mut before, mut after) = {
            let (before, after) = line.split_once(" - ")?;
            (before.split(' '), after.split(' '))
        };
        let device = before.nth(2)?.to_owned();
        let target = den_sys::mount::unescape(before.nth(1)?);
        let kind = after.next()?.to_owned();
        // A second place of the same one has nothing more.
        let is_new = seen.insert(device);
        (is_new && !IN_MEMORY.contains(&kind.as_str())).then_some(Mount { target, kind })
    };
    text.lines().take(MOUNTS_MAX).filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_data_once_each() {
        let text = "1 0 0:50 / / rw shared:1 - overlay den rw\n\
                    2 1 0:51 / /tmp rw - tmpfs tmpfs rw\n\
                    3 1 0:52 /vol/docker /var/lib/docker rw - btrfs /dev/loop0 rw\n\
                    4 1 0:52 /vol/x /var/lib/containers rw - btrfs /dev/loop0 rw\n\
                    5 1 0:53 / /mnt/a\\040b rw master:2 - fuse.sshfs x rw\nnonsense\n";
        let seen: Vec<_> = parse(text).into_iter().map(|mount| (mount.target, mount.kind)).collect();
        let expected = [("/", "overlay"), ("/var/lib/docker", "btrfs"), ("/mnt/a b", "fuse.sshfs")];
        assert_eq!(seen, expected.map(|(target, kind)| (target.to_owned(), kind.to_owned())));
    }
}
