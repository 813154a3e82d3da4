//! A process that waits for an answer of its own ends when it is killed. Needs root and /dev/fuse.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use den_sys::{clone, mount};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

/// Set where this program is the one that waits.
const WAITS: &str = "DEN_TEST_WAITS";
const INIT: u32 = 26;
const SOON: Duration = Duration::from_secs(30);

#[test]
fn who_waits_for_an_answer_of_its_own_can_be_killed() {
    if std::env::var_os(WAITS).is_some() {
        wait_for_itself();
    }
    let own = std::env::current_exe().expect("this program");
    let mut child = Command::new(own)
        .args(["--exact", "who_waits_for_an_answer_of_its_own_can_be_killed", "--nocapture"])
        .env(WAITS, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("asked")), "it ended before it was asked");
    child.kill().expect("killed");
    let since = Instant::now();
    while child.try_wait().expect("its end").is_none() {
        assert!(since.elapsed() < SOON, "it waits for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server of files that has read a question about one, which another thread of it has asked.
fn wait_for_itself() -> ! {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("/dev/fuse");
    let mount = Arc::new(mount::new_fuse(device.as_fd(), "den-test", MountAttrFlags::empty()).expect("a mount"));
    let (asks, number) = (Arc::clone(&mount), device.as_raw_fd());
    std::thread::spawn(move || {
        clone::apart_from(&[number]).expect("descriptors of its own");
        drop(asks.part("file"));
    });
    let mut request = vec![0; 1 << 16];
    loop {
        rustix::io::read(&device, &mut request[..]).expect("a request");
        let opcode = u32::from_ne_bytes(request[4..8].try_into().expect("four bytes"));
        if opcode != INIT {
            println!("asked");
            std::io::stdout().flush().expect("said");
            std::thread::sleep(SOON * 10);
        }
        // Length, no error, the same number; 7.31, and nothing else wanted.
        let mut answer = [0_u8; 80];
        answer[..4].copy_from_slice(&80_u32.to_ne_bytes());
        answer[8..16].copy_from_slice(&request[8..16]);
        answer[16..20].copy_from_slice(&7_u32.to_ne_bytes());
        answer[20..24].copy_from_slice(&31_u32.to_ne_bytes());
        rustix::io::write(&device, &answer).expect("an answer");
    }
}
