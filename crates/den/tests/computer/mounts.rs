//! tmpfs, overlay and FUSE mounts inside; what cannot be mounted says so.

use super::lab::Lab;

/// A file system of one file, on the module that Debian calls `fusepy`.
const ONE_FILE: &str = r#"
import errno, stat, sys
try:
    from fusepy import FUSE, FuseOSError, Operations
except ImportError:
    from fuse import FUSE, FuseOSError, Operations

class One(Operations):
    def getattr(self, path, fh=None):
        if path == '/':
            return dict(st_mode=stat.S_IFDIR | 0o755, st_nlink=2)
        if path == '/f':
            return dict(st_mode=stat.S_IFREG | 0o444, st_nlink=1, st_size=7)
        raise FuseOSError(errno.ENOENT)
    def readdir(self, path, fh):
        return ['.', '..', 'f']
    def read(self, path, size, offset, fh):
        return b'by fuse'[offset:offset + size]

FUSE(One(), sys.argv[1], foreground=True)
"#;

#[test]
fn file_systems_are_mounted() {
    let lab =
        Lab::with(&["openssh-server", "sshfs", "python3-fusepy", "fuse-overlayfs", "squashfs-tools", "squashfuse"]);
    lab.check(
        "tmpfs",
        "mount -t tmpfs -o size=4m t /mnt && head -c 5M /dev/zero > /mnt/f; stat -c %s /mnt/f; umount /mnt",
        "4194304",
    );
    let layers = |at: &str| {
        format!(
            "mkdir -p {at}/l {at}/u {at}/w {at}/m && echo low > {at}/l/f && mount -t overlay o -o lowerdir={at}/l,upperdir={at}/u,workdir={at}/w {at}/m && echo up > {at}/m/f && cat {at}/l/f {at}/u/f && umount {at}/m"
        )
    };
    lab.check(
        "an overlay on a tmpfs",
        &format!("mount -t tmpfs t /mnt && {}; umount /mnt", layers("/mnt/o")),
        "low\nup",
    );
    lab.check("an overlay on a volume", &layers("/var/lib/containers/o"), "low\nup");
    lab.refused("an overlay on the root", &layers("/srv/o"), "wrong fs type, bad option, bad superblock");
    lab.check(
        "fuse-overlayfs on the root",
        "cd /srv/o && fuse-overlayfs -o lowerdir=l,upperdir=u,workdir=w m && cat m/f && fusermount3 -u m",
        "low",
    );
    lab.check("a bind mount, shared with its copies", "mkdir -p /srv/a /srv/b && touch /srv/a/f && mount --bind /srv/a /srv/b && unshare -m ls /srv/b && umount /srv/b", "f");

    lab.sshd();
    lab.sh("mkdir -p /srv/data /mnt/ssh && echo over ssh > /srv/data/f").ok();
    lab.check(
        "sshfs",
        "sshfs -o IdentityFile=~/.ssh/id,StrictHostKeyChecking=no root@localhost:/srv/data /mnt/ssh && cat /mnt/ssh/f && echo back > /mnt/ssh/g && cat /srv/data/g && fusermount3 -u /mnt/ssh",
        "over ssh\nback",
    );
    lab.house.den_with(&["cp", "-", "lab:/usr/local/bin/one.py"], ONE_FILE.as_bytes()).ok();
    lab.keep(&["sh", "-c", "mkdir -p /mnt/one && exec python3 /usr/local/bin/one.py /mnt/one"]);
    lab.until("the file system is there", "test -e /mnt/one/f");
    lab.check("a FUSE of Python's", "cat /mnt/one/f; umount /mnt/one", "by fuse");
    lab.check(
        "a FUSE as a user",
        "sudo -u user sh -c 'mkdir -p ~/one; python3 /usr/local/bin/one.py ~/one & for i in $(seq 50); do test -e ~/one/f && break; sleep 0.1; done; cat ~/one/f; fusermount3 -u ~/one'",
        "by fuse",
    );
    lab.check(
        "an image file, by FUSE",
        "mksquashfs /srv/data /srv/d.sq -quiet -no-progress > /dev/null && squashfuse /srv/d.sq /mnt/ssh && cat /mnt/ssh/f && fusermount3 -u /mnt/ssh",
        "over ssh",
    );
    lab.refused("an image file, by the kernel", "mount -o loop /srv/d.sq /mnt", "Operation not permitted");
}
