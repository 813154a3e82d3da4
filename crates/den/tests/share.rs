//! What programs inside see of the machine is the computer's share, not the host's.

use std::time::Duration;

use den_testkit::{House, eventually};

const DEN: &str = env!("CARGO_BIN_EXE_den");

fn house() -> House {
    let house = House::open(DEN);
    house.den(&["new", "web", "--cpus", "1", "--memory", "512m", "--disk", "2g"]).ok();
    house
}

/// Blocks of a `df -k` of this path: all, used, available.
fn df(house: &House, name: &str, path: &str) -> [u64; 3] {
    let text = house.sh(name, &format!("df -k {path} | tail -1 | awk '{{print $2, $3, $4}}'")).ok();
    let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    numbers.try_into().expect("three numbers")
}

#[test]
fn processors_memory_and_times_are_the_share() {
    let house = house();
    let check = |script: &str, expected: &str| assert_eq!(house.sh("web", script).ok(), expected, "{script}");
    check("nproc; nproc --all; getconf _NPROCESSORS_ONLN; grep -c ^processor /proc/cpuinfo", "1\n1\n1\n1");
    check(
        "cat /sys/devices/system/cpu/online /sys/devices/system/cpu/present /sys/devices/system/cpu/possible",
        "0\n0\n0",
    );
    check(
        "python3 -c 'import os; print(os.cpu_count(), len(os.sched_getaffinity(0)), len(os.sched_getaffinity(os.getpid())))'",
        "1 1 1",
    );
    check(
        "node -e 'const os = require(\"os\"); console.log(os.cpus().length, os.totalmem(), os.availableParallelism?.() ?? 1)'",
        "1 536870912 1",
    );
    check("awk '/^cpu[0-9]/ {n++} /^cpu / {t = $2 + $4 + $5} END {print n, (t < 100000)}' /proc/stat", "1 1");
    check("free -m | awk '/^Mem:/ {print $2, ($3 < 400)} /^Swap:/ {print ($2 >= 0)}'", "512 1\n1");
    check("awk '/^MemTotal/ {print $2}' /proc/meminfo; wc -l < /proc/swaps | awk '{print ($1 >= 1)}'", "524288\n1");
    check("awk '{print ($1 < 600)}' /proc/uptime; awk '{print NF, ($1 < 2)}' /proc/loadavg", "1\n5 1");
    check(
        "uptime | grep -c 'load average: '; vmstat 1 2 | wc -l; top -b -n 1 | grep -c 'MiB Mem :    512.0 total'",
        "1\n4\n1",
    );
    // When a process began, by the same clock.
    check("sleep 60 & sleep 0.2; ps -o etimes= -p $! | awk '{print ($1 < 5)}'; kill $!", "1");
    // Read in small parts, and again after going back.
    check(
        "python3 -c '
f = open(\"/proc/meminfo\", \"rb\", buffering=0)
parts = b\"\"
while part := f.read(7): parts += part
f.seek(0); again = f.read(1 << 16)
print(parts.split()[:2] == again.split()[:2] == [b\"MemTotal:\", b\"524288\"], parts.count(b\"kB\") == again.count(b\"kB\"))'",
        "True True",
    );
    // What is used counts.
    let used = |script: &str| -> u64 { house.sh("web", script).ok().parse().expect("a number") };
    let shown = used("head -c 100M /dev/zero > /dev/shm/x; free -k | awk '/^Mem:/ {print $2 - $4}'; rm /dev/shm/x");
    assert!((100 << 10..200 << 10).contains(&shown), "{shown} KiB used");
}

#[test]
fn a_thread_that_pinned_itself_sees_that() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--cpus", "1"]).ok();
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    house.sh("web", &format!("taskset -c {} nproc", host - 1)).ok();
    let list = house.sh("web", &format!("taskset -c {0} sh -c 'taskset -cp $$' | sed 's/.*: //'", host - 1)).ok();
    assert_eq!(list, (host - 1).to_string());
    // A mask that is too small is the kernel's to refuse.
    let script = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); \
        print(libc.sched_getaffinity(0, 1, ctypes.create_string_buffer(1)), ctypes.get_errno())";
    assert_eq!(house.den(&["exec", "web", "--", "python3", "-c", script]).ok(), "-1 22");
}

#[test]
fn the_disk_is_the_share_and_nothing_else_is() {
    let house = house();
    let [all, before, _] = df(&house, "web", "/");
    assert_eq!(all, 2 << 20);
    house.sh("web", "dd if=/dev/urandom of=/root/f bs=1M count=100 2> /dev/null").ok();
    let [all, used, available] = df(&house, "web", "/root");
    // What is promised to writes that are under way counts too, before and after.
    assert!((100 << 10..before + (110 << 10)).contains(&used), "{before} KiB, then {used}");
    assert!(available <= all - used);
    assert_eq!(df(&house, "web", "/var/lib/docker")[0], 2 << 20, "a part of the disk that lies on it itself");
    let check = |script: &str, expected: &str| assert_eq!(house.sh("web", script).ok(), expected, "{script}");
    check("mkdir /mnt/t /mnt/b; mount -t tmpfs -o size=7m x /mnt/t; df -k /mnt/t | tail -1 | awk '{print $2}'", "7168");
    check("mount --bind /etc /mnt/b; df -k /mnt/b | tail -1 | awk '{print $2}'", "2097152");
    check(
        "python3 -c 'import shutil; print(shutil.disk_usage(\"/\").total)'; cd /usr; python3 -c 'import shutil; print(shutil.disk_usage(\".\").total)'",
        "2147483648\n2147483648",
    );
    check(
        "python3 -c 'import os; print(os.fstatvfs(os.open(\"/etc/passwd\", 0)).f_blocks, os.statvfs(\"/dev\").f_blocks)'",
        "524288 256",
    );
    // Errors are the kernel's, by the caller's rights.
    check(
        "sudo -u user python3 -c '
import os
for path in [\"/none\", \"/root/x\", \"/etc/passwd/x\", b\"/\" + b\"x\" * 5000, \"\"]:
    try: print(os.statvfs(path).f_blocks)
    except OSError as error: print(error.errno)
print(os.statvfs(\"/home\").f_blocks)'",
        "2\n13\n20\n36\n2\n524288",
    );
    check(
        "rm /root/f; for i in $(seq 200); do df -k / | tail -1 | awk '{print $2}' & done | sort | uniq -c | awk '{print $1, $2}'; wait",
        "200 2097152",
    );
}

#[test]
fn sandboxes_inside_work_as_before_and_see_it_too() {
    let house = house();
    let check = |script: &str, expected: &str| assert_eq!(house.sh("web", script).ok(), expected, "{script}");
    check(
        "unshare -Urmpf --mount-proc sh -c 'echo $$; nproc; df -k / | tail -1 | awk \"{print \\$2}\"'",
        "1\n1\n2097152",
    );
    check("sudo -u user unshare -Urmpf --mount-proc sh -c 'nproc'", "1");
    check("chroot / sh -c 'nproc; df -k /etc | tail -1 | awk \"{print \\$2}\"'", "1\n2097152");
    check("python3 -c 'import os; print(len(os.sched_getaffinity(1)) > 0)'", "True");
    // What they mount over it is theirs.
    check(
        "unshare -m sh -c 'mount -t proc p /mnt && ls -d /mnt/1'; umount /proc/meminfo && grep -c MemTotal /proc/meminfo",
        "/mnt/1\n1",
    );
}

#[test]
fn it_is_right_after_pause_fork_and_restart() {
    let house = house();
    let seen = |name: &str| {
        house.sh(name, "nproc; free -m | awk '/^Mem:/ {print $2}'; df -k / | tail -1 | awk '{print $2}'").ok()
    };
    let share = "1\n512\n2097152";
    assert_eq!(seen("web"), share);
    // A new size shows at once.
    house.den(&["resize", "web", "--memory", "768m", "--disk", "3g"]).ok();
    assert_eq!(seen("web"), "1\n768\n3145728");
    house.den(&["resize", "web", "--memory", "512m", "--disk", "2g"]).ok();
    // Readers that are always in the middle of a question do not keep it from standing still.
    let loops = [
        "while :; do cat /proc/meminfo /proc/stat > /dev/null; done",
        "while :; do df / > /dev/null; nproc > /dev/null; done",
    ];
    for script in loops {
        house.den(&["exec", "web", "-d", "--", "sh", "-c", script]).ok();
    }
    for _ in 0..5 {
        house.den(&["pause", "web"]).ok();
        house.den(&["resume", "web"]).ok();
    }
    assert_eq!(seen("web"), share);
    house.den(&["fork", "web", "copy"]).ok();
    assert_eq!(seen("copy"), share);
    house.den(&["stop", "web"]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(seen("web"), share);
    let uptime = house.sh("web", "cut -d. -f1 /proc/uptime").ok();
    assert!(uptime.parse::<u64>().expect("a number") < 300, "{uptime}");
}

#[test]
fn a_restored_computer_sees_its_disk() {
    let house = house();
    house.den(&["snap", "web", "first"]).ok();
    house.sh("web", "dd if=/dev/urandom of=/root/f bs=1M count=50 2> /dev/null").ok();
    house.den(&["restore", "web@first"]).ok();
    let [all, used, _] = df(&house, "web", "/");
    assert!((2 << 20..3 << 20).contains(&all) && used < all, "{all} {used}");
    assert_eq!(house.sh("web", "nproc").ok(), "1");
}

#[test]
fn it_ends_with_its_computer() {
    let mut house = house();
    // Whoever asks just now keeps nothing from ending.
    house
        .den(&[
            "exec",
            "web",
            "-d",
            "--",
            "sh",
            "-c",
            "while :; do cat /proc/stat > /dev/null; nproc > /dev/null; df / > /dev/null; done",
        ])
        .ok();
    house.kill_serve();
    house.start();
    assert_eq!(house.sh("web", "nproc").ok(), "1");
    house.den(&["stop", "web", "-t", "100ms"]).ok();
    house.den(&["start", "web"]).ok();
    assert_eq!(house.sh("web", "nproc").ok(), "1");
}

#[test]
fn a_file_system_inside_that_does_not_answer_keeps_nobody_waiting() {
    let house = house();
    // Greets the kernel and says nothing more.
    let deaf = r#"
import ctypes, os, struct, time
os.mkdir("/mnt/deaf")
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
assert ctypes.CDLL(None).mount(b"deaf", b"/mnt/deaf", b"fuse", 0, options) == 0
request = os.read(device, 1 << 16)
unique = struct.unpack_from("Q", request, 8)[0]
os.write(device, struct.pack("IiQIIIIHHII", 80, 0, unique, 7, 31, 0, 0, 0, 0, 4096, 1).ljust(80, b"\0"))
print("deaf", flush=True)
time.sleep(1000)
"#;
    let step = house.den(&["exec", "web", "-d", "--", "python3", "-c", deaf]).ok();
    eventually(Duration::from_secs(60), "it is mounted", || house.den(&["log", "web", &step]).stdout.contains("deaf"));
    let ask = "import os; os.statvfs('/mnt/deaf')";
    let ask_open = "import os; os.fstatvfs(os.open('/mnt/deaf', os.O_PATH))";
    for script in [ask, ask_open] {
        house.den(&["exec", "web", "-d", "--", "python3", "-c", script]).ok();
    }
    // Both of them wait for it, and for nothing else.
    let waiting = "cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' ' | grep -o -e '[o]s.statvfs(./mnt' -e '[o]s.fstatvfs(os' | sort -u | wc -l";
    eventually(Duration::from_secs(60), "they ask", || house.sh("web", waiting).ok() == "2");
    for _ in 0..20 {
        assert_eq!(df(&house, "web", "/")[0], 2 << 20);
        assert_eq!(house.sh("web", "nproc").ok(), "1");
    }
    house.den(&["stop", "web", "-t", "100ms"]).ok();
}

#[test]
fn who_asks_for_a_file_system_can_unmount_it() {
    let house = house();
    let script = "mkdir -p /mnt/a /mnt/b; for i in $(seq 100); do \
        mount --bind /mnt/a /mnt/b && stat -f /mnt/b > /dev/null && umount /mnt/b || exit 1; \
        mount -t tmpfs none /mnt/b && stat -f /mnt/b > /dev/null && umount /mnt/b || exit 2; done; echo done";
    assert_eq!(house.sh("web", script).ok(), "done");
}

/// Killed in the instant in which its files are laid over the kernel's, one waited for itself for ever.
#[test]
fn one_that_is_removed_at_once_goes() {
    let house = House::open(DEN);
    std::thread::scope(|scope| {
        for client in 0..4 {
            let api = house.api();
            scope.spawn(move || {
                for round in 0..200 {
                    let name = format!("c{client}-{round}");
                    api.post("/v1/computers", &serde_json::json!({"name": name, "memory": "128MiB"})).expect(201);
                    // At some moment of its boot, which goes on after the answer.
                    std::thread::sleep(Duration::from_micros(round % 2 * 100 * (client * 7 + round % 13)));
                    api.delete(&format!("/v1/computers/{name}?now=true")).expect(204);
                }
            });
        }
    });
    assert_eq!(house.disks().len(), 0);
}
