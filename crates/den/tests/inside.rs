//! From the inside: what a root user in a computer finds is shaped like a machine of their own, and
//! ends at its walls.

use std::time::Duration;

use den_testkit::{House, eventually};

const DEN: &str = env!("CARGO_BIN_EXE_den");

fn house() -> House {
    let house = House::open(DEN);
    house.new_computer("web");
    house
}

#[test]
fn it_looks_like_a_machine_of_its_own() {
    let house = house();
    let check = |script: &str, expected: &str| assert_eq!(house.sh("web", script).ok(), expected, "{script}");
    check("cat /proc/self/uid_map | tr -s ' '", " 0 0 262144");
    check("cat /proc/1/comm", "den-agent");
    check("stat -f -c %T /", "overlayfs");
    check("stat -c '%U:%G %a' / /etc/passwd /tmp /root", "root:root 755\nroot:root 644\nroot:root 1777\nroot:root 700");
    check(
        "ls /dev | tr '\\n' ' ' | grep -o -w -e null -e zero -e full -e random -e urandom -e tty -e fuse -e ptmx -e pts -e shm | sort | tr '\\n' ' '",
        "full fuse null ptmx pts random shm tty urandom zero ",
    );
    check("echo x > /dev/null; head -c 3 /dev/zero | wc -c; [ -c /dev/net/tun ] && echo tun", "3\ntun");
    check("readlink /dev/fd /dev/stdin /dev/stdout", "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1");
    check("hostname; cat /etc/hostname; grep -c -w web /etc/hosts", "web\nweb\n1");
    check("cat /etc/machine-id | wc -c", "33");
    check(
        "ip -br link show lo | awk '{print $2}'; ip -4 -br addr show lo | awk '{print $3}'; ping -c1 -W2 127.0.0.1 > /dev/null && echo pong",
        "UNKNOWN\n127.0.0.1/8\npong",
    );
    check(
        "findmnt -n -o FSTYPE /proc /sys /dev /dev/shm /dev/pts /dev/mqueue /run | tr '\\n' ' '; for m in /proc /sys /dev /dev/shm /dev/pts /dev/mqueue; do findmnt -n -o FSTYPE -M $m; done | tr '\\n' ' '",
        "proc sysfs tmpfs tmpfs devpts mqueue ",
    );
    check("grep -c ' /sys/fs/cgroup' /proc/mounts", "1");
    check(
        "python3 --version | cut -d. -f1; python --version | cut -d. -f1; node --version | cut -c1; for c in pip npm git curl sudo gcc make rg jq sqlite3 ps ip ssh less vi; do command -v $c > /dev/null || echo no $c; done",
        "Python 3\nPython 3\nv",
    );
    check("python3 -m venv /tmp/v && /tmp/v/bin/python -c 'print(6*7)'", "42");
    check("cd /tmp && printf 'int main(){return 7;}' > a.c && gcc a.c -o a && ./a; echo $?", "7");
}

#[test]
fn its_link_is_set_up_from_the_start() {
    let house = house();
    let check = |script: &str, expected: &str| assert_eq!(house.sh("web", script).ok(), expected, "{script}");
    check("ip -4 -o addr show eth0 | awk '{print $4}'; ip -6 -o addr show eth0", "10.0.0.2/32");
    check("ip -br link show eth0 | awk '{print $2, $3}'; cat /sys/class/net/eth0/ifindex", "UP 02:00:00:00:00:02\n2");
    check(
        "ip route show | awk '{$1=$1};1'",
        "default via 169.254.1.1 dev eth0 onlink\n169.254.1.1 dev eth0 scope link",
    );
    check("ip neigh show dev eth0 | awk '{print $1, $3, $4}'", "169.254.1.1 02:00:00:00:00:01 PERMANENT");
    // Everybody may ping.
    check("sudo -u user ping -c1 -W2 127.0.0.1 > /dev/null && echo pong", "pong");
}

#[test]
fn it_cannot_see_the_host_or_its_neighbours() {
    let house = house();
    house.new_computer("db");
    house.den(&["exec", "db", "-d", "--", "sleep", "4321"]).ok();
    assert_eq!(house.sh("web", "ps -e -o args= | grep -c -e '[s]leep 4321' -e '[d]en serve'").stdout.trim(), "0");
    let listing = house.sh("web", "cat /proc/mounts /proc/self/mountinfo").ok();
    let data = house.data().to_string_lossy().into_owned();
    assert!(!listing.contains(&data) && !listing.contains("/den-run-"), "no path of the host's:\n{listing}");
    assert_ne!(house.sh("web", "cat /etc/machine-id").ok(), house.sh("db", "cat /etc/machine-id").ok());
    for ns in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |name: &str| house.sh(name, &format!("readlink /proc/self/ns/{ns}")).ok();
        let host = std::fs::read_link(format!("/proc/self/ns/{ns}")).expect("a link").to_string_lossy().into_owned();
        assert!(of("web") != of("db") && of("web") != host, "{ns}");
    }
    house.sh("web", "echo secret > /root/secret; echo x > /dev/shm/x").ok();
    house.sh("db", "ls /root/secret /dev/shm/x").refused(2, "No such file");
    house.sh("web", "ls -A /proc/1/root/../../ | grep -x var/cache").refused(1, "");
    // What its link lets it reach is the gate's affair, and the subject of `attack`.
}

#[test]
fn root_inside_may_do_what_root_does() {
    let house = house();
    let check = |what: &str, script: &str, expected: &str| {
        let ran = house.sh("web", script);
        assert_eq!((ran.code, ran.stdout.trim_end()), (0, expected), "{what}: {}", ran.stderr);
    };
    check(
        "tmpfs",
        "mkdir -p /mnt/t && mount -t tmpfs -o size=1m tmpfs /mnt/t && echo x > /mnt/t/f && cat /mnt/t/f && umount /mnt/t",
        "x",
    );
    check("bind", "mkdir -p /mnt/b && mount --bind /etc /mnt/b && cat /mnt/b/hostname && umount /mnt/b", "web");
    check(
        "overlay on tmpfs",
        "mkdir -p /mnt/o && mount -t tmpfs tmpfs /mnt/o && cd /mnt/o && mkdir l u w m && echo low > l/f && mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m && echo up > m/f && cat l/f u/f && cd / && umount /mnt/o/m /mnt/o",
        "low\nup",
    );
    check("nested user namespace as root", "unshare -Ur id -u", "0");
    check("everything unshared", "unshare -Urmpf --mount-proc sh -c 'echo $$; set -- /proc/[0-9]*; echo $#'", "1\n1");
    check("nested user namespace as user", "sudo -u user unshare -Ur sh -c 'id -u; hostname'", "0\nweb");
    check("hostname", "hostname other && hostname && hostname web", "other");
    check("users", "useradd -m anna && su - anna -c 'id -un; pwd' && userdel -r anna 2>/dev/null", "anna\n/home/anna");
    check(
        "owners and modes",
        "touch /root/f && chown 200000:200000 /root/f && chmod 6755 /root/f && stat -c '%u %a' /root/f",
        "200000 6755",
    );
    check(
        "a link",
        "ip link add dummy0 type veth peer name dummy1 && ip -br link show dummy0 | cut -d@ -f1 && ip link del dummy0",
        "dummy0",
    );
    check("sysctl of its network", "sysctl -qw net.ipv4.ip_forward=1 && cat /proc/sys/net/ipv4/ip_forward", "1");
    check("chroot", "chroot / id -u", "0");
    check(
        "ptrace",
        "python3 -c \"import ctypes,os,signal;l=ctypes.CDLL(None,use_errno=True);p=os.fork();\nif p==0:\n l.ptrace(0,0,0,0);os.kill(os.getpid(),signal.SIGSTOP);os._exit(3)\ns=os.waitpid(p,0)[1];print(os.WIFSTOPPED(s));l.ptrace(17,p,0,0);print(os.WEXITSTATUS(os.waitpid(p,0)[1]))\"",
        "True\n3",
    );
    check(
        "file capabilities",
        "cp /bin/true /root/t && (command -v setcap > /dev/null || exit 0; setcap cap_net_raw+ep /root/t && getcap /root/t | grep -c cap_net_raw) | grep -v '^0$' | head -0; echo done",
        "done",
    );
    check("a fuse descriptor", "python3 -c \"import os;f=os.open('/dev/fuse',os.O_RDWR);print('open')\"", "open");
    check(
        "shared memory and semaphores",
        "python3 -c \"import multiprocessing as m;q=m.Queue();p=m.Process(target=q.put,args=(7,));p.start();print(q.get());p.join()\"",
        "7",
    );
    check(
        "a terminal",
        "python3 -c \"import pty,os;m,s=pty.openpty();print(os.ttyname(s).startswith('/dev/pts/'))\"",
        "True",
    );
    check(
        "sockets",
        "python3 -m http.server 8123 --bind 127.0.0.1 > /dev/null 2>&1 & for i in $(seq 100); do curl -sf -o /dev/null localhost:8123 && break; sleep 0.1; done; curl -s -o /dev/null -w '%{http_code}' localhost:8123; kill $!",
        "200",
    );
}

#[test]
fn a_fuse_filesystem_is_mounted_by_hand() {
    let house = house();
    // No library: the mount itself and the first message of the kernel are what matters.
    let script = r#"
import ctypes, os, struct
fd = os.open('/dev/fuse', os.O_RDWR)
os.makedirs('/mnt/fuse', exist_ok=True)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()
if libc.mount(b'test', b'/mnt/fuse', b'fuse', 0, options) != 0:
    raise OSError(ctypes.get_errno(), 'mount')
message = os.read(fd, 1 << 17)
length, opcode = struct.unpack('<II', message[:8])
print(length == len(message), opcode)
os.system('umount -l /mnt/fuse')
"#;
    assert_eq!(
        house.den(&["exec", "web", "--", "python3", "-c", script]).ok(),
        "True 26",
        "FUSE_INIT is the first message"
    );
}

#[test]
fn what_reaches_the_host_is_refused() {
    let house = house();
    let refused = |what: &str, script: &str, words: &str| {
        let ran = house.sh("web", script);
        assert!(ran.code != 0, "{what} was allowed: {}", ran.stdout);
        let said = format!("{}{}", ran.stdout, ran.stderr).to_lowercase();
        assert!(said.contains(words), "{what}: {said}");
    };
    refused("a device node", "mknod /root/sda b 8 0", "not permitted");
    refused("a character device", "mknod /root/mem c 1 1", "not permitted");
    refused("the clock", "date -s '2001-01-01'", "not permitted");
    refused(
        "swap",
        "truncate -s 1M /root/s; python3 -c \"import ctypes,os;l=ctypes.CDLL(None,use_errno=True);r=l.swapon(b'/root/s',0);print(os.strerror(ctypes.get_errno()));exit(r!=0)\"",
        "not permitted",
    );
    refused("a kernel setting", "echo 1 > /proc/sys/kernel/panic", "");
    refused("sysrq", "echo b > /proc/sysrq-trigger", "");
    refused("sysfs", "echo 1 > /sys/kernel/profiling || echo 1 > /sys/power/state", "");
    refused(
        "the cgroup above",
        "echo 0 > /sys/fs/cgroup/../cgroup/cgroup.max.depth && ls /sys/fs/cgroup/.. | grep -x unified",
        "",
    );
    refused("kcore", "head -c 1 /proc/kcore | grep -q .", "");
    refused("another's memory limit", "echo -1 > /sys/fs/cgroup/memory.max || echo 99 > /sys/fs/cgroup/pids.max", "");
    assert_eq!(house.sh("web", "dmesg 2>/dev/null | wc -l").ok(), "0", "no message of the kernel's is read");
    let call = |number: u32, args: &str| {
        format!(
            "python3 -c \"import ctypes,errno;l=ctypes.CDLL(None,use_errno=True);r=l.syscall({number},{args});print(errno.errorcode[ctypes.get_errno()]);exit(1 if r<0 else 0)\""
        )
    };
    // x86-64 numbers: what the filter refuses and with which error.
    if std::env::consts::ARCH == "x86_64" {
        refused("bpf", &call(321, "0,0,0"), "eperm");
        refused("perf_event_open", &call(298, "0,0,-1,-1,0"), "eacces");
        refused("io_uring_setup", &call(425, "1,0"), "enosys");
        refused("keyctl", &call(250, "0,-3,0"), "enosys");
        refused("kexec_load", &call(246, "0,0,0,0"), "eperm");
        refused("init_module", &call(175, "0,0,0"), "eperm");
        refused("syslog", &call(103, "3,0,0"), "eperm");
        refused("open_by_handle_at", &call(304, "0,0,0"), "eperm");
    }
    let socket = |family: u32| {
        format!(
            "python3 -c \"import socket;socket.socket({family},socket.SOCK_STREAM if {family}==40 else socket.SOCK_SEQPACKET)\""
        )
    };
    refused("vsock", &socket(40), "not supported");
    refused("alg", &socket(38), "not supported");
    refused(
        "input into another terminal",
        "python3 -c \"import pty,fcntl,os;m,s=pty.openpty();fcntl.ioctl(s,0x5412,b'x')\"",
        "",
    );
    assert_eq!(house.sh("web", "echo well").ok(), "well");
}

#[test]
fn a_memory_bomb_ends_inside() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--memory", "128MiB", "--pids", "256"]).ok();
    house.den(&["new", "db", "--memory", "256MiB"]).ok();
    house.den(&["exec", "db", "-d", "--", "sleep", "3000"]).ok();
    let ran = house.den(&["exec", "web", "--", "python3", "-c", "b=[]\nwhile True: b.append(bytearray(1<<20))"]);
    assert_eq!(ran.code, 137, "{ran:?}");
    assert_eq!(house.sh("web", "echo alive").ok(), "alive", "the computer goes on");
    let info = house.json(&["info", "web"]);
    assert!(info["usage"]["oom_kills"].as_u64().is_some_and(|kills| kills > 0), "{info}");
    // Filling memory with files ends the same way.
    house.sh("web", "head -c 1G /dev/zero > /dev/shm/fill; rm -f /dev/shm/fill");
    assert_eq!(house.sh("web", "echo alive").ok(), "alive", "filling /dev/shm does not end the computer");
    assert_eq!(house.sh("db", "pgrep -fx 'sleep 3000' | wc -l").ok(), "1", "the neighbour goes on");
}

#[test]
fn a_fork_bomb_stops_at_the_limit() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--memory", "512MiB", "--pids", "100"]).ok();
    house.den(&["new", "db", "--memory", "256MiB"]).ok();
    let bomb = "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000";
    let reply = house
        .api()
        .post("/v1/computers/web/steps", &serde_json::json!({"argv": ["bash", "-c", bomb], "detach": true}))
        .expect(202);
    let step = reply.json()["number"].as_u64().expect("a number");
    eventually(Duration::from_secs(60), "the limit is reached", || {
        house.json(&["info", "web"])["usage"]["pids"].as_u64().is_some_and(|pids| pids >= 90)
    });
    let pids = house.json(&["info", "web"])["usage"]["pids"].as_u64().expect("a number");
    assert!(pids <= 100, "{pids}");
    assert_eq!(house.sh("db", "echo well").ok(), "well", "the neighbour is well");
    // Full up, a new command is refused with a code that says: later. It is never lost.
    for _ in 0..5 {
        let reply = house.api().post("/v1/computers/web/steps", &serde_json::json!({"argv": ["true"]}));
        match reply.status {
            200 => {}
            _ => assert_eq!(reply.refusal(503, "no_processes")["retryable"], true),
        }
    }
    assert_eq!(house.api().get(&format!("/v1/computers/web/steps/{step}")).expect(200).json()["status"], "running");
    house.den(&["stop", "web", "--grace", "500ms"]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "echo well").ok(), "well");
}

#[test]
fn a_cpu_limit_holds() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--cpus", "0.2", "--memory", "256MiB"]).ok();
    let before = house.json(&["info", "web"])["usage"]["cpu_us"].as_u64().expect("a time");
    house.sh("web", "timeout 3 sh -c 'while :; do :; done' & timeout 3 sh -c 'while :; do :; done'; wait");
    let after = house.json(&["info", "web"])["usage"]["cpu_us"].as_u64().expect("a time");
    let used = after - before;
    assert!((200_000..1_200_000).contains(&used), "{used} µs of CPU in 3 s with 0.2 CPUs");
}

#[test]
fn init_cannot_be_ended_by_a_step_and_its_end_is_the_computers() {
    let house = house();
    house.sh("web", "kill -KILL 1; sleep 0.1; echo still").ok();
    assert_eq!(house.json(&["info", "web"])["state"], "running");
    // A SIGTERM is a request to go: the computer ends, and it is said.
    house.sh("web", "kill -TERM 1; sleep 60");
    eventually(Duration::from_secs(60), "it is no longer running", || {
        house.json(&["info", "web"])["state"] != "running"
    });
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "echo again").ok(), "again");
}

#[test]
fn subvolumes_cannot_be_made_inside() {
    let house = house();
    // BTRFS_IOC_SUBVOL_CREATE: a nested subvolume would escape the disk's limit.
    let script = "import ctypes,os,errno\nl=ctypes.CDLL(None,use_errno=True)\nfd=os.open('/root',os.O_RDONLY)\nb=ctypes.create_string_buffer(4096)\n\
                  r=l.ioctl(fd,ctypes.c_ulong(0x5000940e),b)\nprint(errno.errorcode[ctypes.get_errno()] if r else 'made')";
    assert_eq!(house.den(&["exec", "web", "--", "python3", "-c", script]).ok(), "ENOTTY");
}

#[test]
fn the_agent_gets_a_processor_sooner_than_what_it_runs() {
    let house = House::open(DEN);
    house.new_computer("web");
    // sched_getattr(2): the slice is where a deadline's runtime is. A kernel before 6.12 says 0.
    let script = "import ctypes, platform, struct\n\
        number = {'x86_64': 315, 'aarch64': 275}[platform.machine()]\n\
        def slice(pid):\n\
        \x20seen = ctypes.create_string_buffer(48)\n\
        \x20assert ctypes.CDLL(None).syscall(number, pid, seen, 48, 0) == 0\n\
        \x20return struct.unpack_from('<Q', seen, 24)[0]\n\
        print(slice(1), slice(0))";
    let said = house.den(&["exec", "web", "--", "python3", "-c", script]).ok();
    let slices: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [agent, command] = slices[..] else { panic!("two slices: {said}") };
    assert!(agent == 0 && command == 0 || agent == 100_000 && command > agent, "{said}");
}
