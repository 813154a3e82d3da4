//! What a step is promised, against the real agent.

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::{Inside, argv, command, data, end, ended, read_log, reply, sh, until};
use den_wire::agent::{End, Exec, FailureKind, Hello, Input, Pty, Reply, Request, SignalScope};
use den_wire::frame::blocking::{write_frame, write_message};
use den_wire::log::{EndRecord, KEEP_BYTES_MIN};
use den_wire::{FrameKind, VERSION};
use minicbor::bytes::ByteVec;

fn env(lines: &[&str]) -> Vec<ByteVec> {
    argv(lines)
}

fn hello(inside: &Inside) -> Hello {
    match inside.ask(&Request::Hello { version: VERSION }) {
        Reply::Hello(hello) => hello,
        other => panic!("no hello: {other:?}"),
    }
}

#[test]
fn it_says_hello_and_refuses_nonsense() {
    let inside = Inside::start();
    assert_eq!(hello(&inside).version, VERSION);
    let nonsense: [(&[u8], FailureKind); 6] = [
        (&[0, 0, 0, 0, 1], FailureKind::BadRequest),
        (&[255, 255, 255, 255, 1], FailureKind::BadRequest),
        (&[1, 0, 0, 0, 9, 0], FailureKind::BadRequest),
        (&[1, 0, 0, 0, 2, 0], FailureKind::BadRequest),
        (&[3, 0, 0, 0, 1, 0xff, 0xff, 0xff], FailureKind::BadRequest),
        // [999, []]: a request that this agent is too old for.
        (&[5, 0, 0, 0, 1, 0x82, 0x19, 0x03, 0xe7, 0x80], FailureKind::Unsupported),
    ];
    for (bytes, kind) in nonsense {
        let mut stream = inside.connect();
        stream.write_all(bytes).expect("sent");
        match reply(&mut stream) {
            Reply::Failed(failure) => assert_eq!(failure.kind, kind, "{bytes:?}"),
            other => panic!("{other:?}"),
        }
    }
    // Half a frame, and then nobody.
    inside.connect().write_all(&[9, 0, 0]).expect("sent");
    assert_eq!(inside.failure(&Request::Attach { step: 7 }).kind, FailureKind::NoSuchStep);
    let signal = Request::Signal { step: 7, signal: 15, scope: SignalScope::Group };
    assert_eq!(inside.failure(&signal).kind, FailureKind::NoSuchStep);
    assert_eq!(inside.failure(&Request::Exec(sh(1, "true"))).kind, FailureKind::BadRequest);
}

#[test]
fn streams_are_separate_and_binary() {
    let inside = Inside::start();
    let ran = inside.sh(1, "printf '\\000\\377out'; printf '\\001err' >&2; exit 3");
    assert_eq!(ran.end, End::Exited { code: 3 });
    assert_eq!(ran.log.end, Some(EndRecord::Exited(3)));
    assert_eq!((&ran.log.stdout[..], &ran.log.stderr[..]), (&b"\0\xffout"[..], &b"\x01err"[..]));
    let ran = inside.sh(2, "kill -9 $$");
    assert_eq!(ran.end, End::Signaled { signal: 9 });
    let ran = inside.run(Exec {
        argv: vec![b"printf".to_vec().into(), b"%s".to_vec().into(), vec![0xfe].into()],
        step: 3,
        ..Exec::default()
    });
    assert_eq!(ran.log.stdout, [0xfe]);
}

#[test]
fn a_short_step_with_a_patient_caller_is_told_of_once() {
    let inside = Inside::start();
    let short = |step| Exec { patience_ms: Some(u64::MAX), ..sh(step, "echo out") };
    let mut stream = inside.begin(short(1));
    assert!(matches!(reply(&mut stream), Reply::Started { .. }));
    // No word of its output between: the caller is not woken for that.
    match reply(&mut stream) {
        Reply::Ended { end, output_bytes, .. } => assert_eq!((end, output_bytes), (End::Exited { code: 0 }, 4)),
        other => panic!("{other:?}"),
    }
    // One that takes longer is told of while it runs, however patient the caller is.
    let mut stream = inside.begin(Exec { patience_ms: Some(u64::MAX), ..sh(2, "echo out; exec sleep 1000") });
    assert!(matches!(reply(&mut stream), Reply::Started { .. }));
    assert!(matches!(reply(&mut stream), Reply::Progress { output_bytes: 4, .. }));
    let signal = Request::Signal { step: 2, signal: 9, scope: SignalScope::Group };
    assert!(matches!(inside.ask(&signal), Reply::Done));
    assert_eq!(ended(&mut stream), End::Signaled { signal: 9 });
}

#[test]
fn a_step_has_a_clean_environment() {
    let inside = Inside::start();
    let ran = inside.run(Exec {
        env: env(&["A=1", "A=2", "HOME=/tmp"]),
        ..sh(1, "env | sort; umask; pwd; ls /proc/self/fd; ulimit -n")
    });
    let text = ran.stdout();
    for line in ["A=2", "HOME=/tmp", "LOGNAME=root", "USER=root", "0022", "/root"] {
        assert!(text.lines().any(|there| there == line), "{line} in {text}");
    }
    // 3 is the directory that ls reads.
    assert!(text.contains("\n0\n1\n2\n3\n") && !text.contains("\n4\n"), "{text}");
    let ran = inside.sh(2, "grep -E 'Sig(Blk|Ign)' /proc/self/status; cut -d' ' -f1,5,6 /proc/$$/stat; echo $$");
    assert_eq!(ran.stdout().matches("0000000000000000").count(), 2, "{}", ran.stdout());
    let lines: Vec<String> = ran.stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines[2], format!("{0} {0} {0}", lines[3]));
}

#[test]
fn a_user_is_taken_with_its_groups() {
    let inside = Inside::start();
    let ran = inside.run(Exec {
        user: Some("nobody".into()),
        cwd: Some(b"/".to_vec().into()),
        ..sh(1, "id -un; id -gn; echo $HOME")
    });
    assert_eq!(ran.stdout(), "nobody\nnogroup\n/nonexistent\n");
    let ran = inside.run(Exec {
        user: Some("4242:4243".into()),
        ..sh(2, "id -u; id -g; id -G; pwd; grep Cap /proc/self/status | head -3")
    });
    assert!(ran.stdout().starts_with("4242\n4243\n4243\n/\n"), "{}", ran.stdout());
    assert!(ran.stdout().contains("CapEff:\t0000000000000000"), "{}", ran.stdout());
    for user in ["no-such", "root:no-such", ""] {
        match reply(&mut inside.begin(Exec { user: Some(user.into()), ..sh(3, "true") })) {
            Reply::Failed(failure) => assert_eq!(failure.kind, FailureKind::NoSuchUser),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_cannot_start_is_said_as_bash_says_it() {
    let inside = Inside::start();
    let write = |name: &str, mode: u32, contents: &[u8]| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(inside.path(name), contents).expect("written");
        std::fs::set_permissions(inside.path(name), std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    write("plain", 0o644, b"echo");
    write("lost", 0o755, b"#!/no/such\n");
    write("script", 0o755, b"echo \"$0 $1\"\n");
    write("junk", 0o755, b"\x7fELF\0\0\0");
    std::fs::create_dir(inside.path("folder")).expect("made");
    let path = format!("PATH={}:/usr/bin:/bin", inside.dir.path().display());
    let cases = [
        ("no-such", 127, "no-such: command not found"),
        ("", 127, ": command not found"),
        ("./no-such", 127, "./no-such: No such file or directory"),
        ("./plain", 126, "./plain: Permission denied"),
        ("plain", 126, "plain: Permission denied"),
        ("./folder", 126, "./folder: Is a directory"),
        ("folder", 127, "folder: command not found"),
        ("./lost", 127, "./lost: cannot execute: required file not found"),
        ("lost", 127, "lost: cannot execute: required file not found"),
        ("./junk", 126, "./junk: cannot execute binary file: Exec format error"),
        ("./plain/x", 126, "./plain/x: Not a directory"),
    ];
    for (step, (name, code, message)) in cases.into_iter().enumerate() {
        let exec = Exec { cwd: Some(inside.bytes("")), env: env(&[&path]), ..command(step as u64, &[name]) };
        let ran = inside.run(exec);
        assert_eq!(ran.end, End::NotStarted { code, message: message.to_owned() });
        assert_eq!((ran.stderr(), ran.log.end), (format!("{message}\n"), Some(EndRecord::NotStarted(code))));
    }
    let exec = Exec { cwd: Some(inside.bytes("")), env: env(&[&path]), ..command(50, &["script", "a b"]) };
    assert_eq!(inside.run(exec).stdout(), format!("{} a b\n", inside.path("script").display()));
    let long = "x".repeat(200 << 10);
    let ran = inside.run(command(51, &["true", &long]));
    assert_eq!(ran.end, End::NotStarted { code: 126, message: "true: Argument list too long".to_owned() });
    let refused = |exec: Exec| match reply(&mut inside.begin(exec)) {
        Reply::Failed(failure) => failure.kind,
        other => panic!("{other:?}"),
    };
    let exec = Exec { cwd: Some(b"/no/such".to_vec().into()), ..sh(60, "true") };
    assert_eq!(refused(exec), FailureKind::NoSuchCwd);
    assert_eq!(refused(Exec { step: 61, ..Exec::default() }), FailureKind::BadRequest);
    assert_eq!(refused(command(62, &["a\0b"])), FailureKind::BadRequest);
    assert_eq!(refused(Exec { env: env(&["=x"]), ..sh(63, "true") }), FailureKind::BadRequest);
}

#[test]
fn input_goes_in_and_ends() {
    let inside = Inside::start();
    let mut stream = inside.begin(Exec { stdin: true, ..command(1, &["cat"]) });
    let part: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for _ in 0..10 {
        data(&mut stream, &part).expect("sent");
    }
    end(&mut stream);
    assert_eq!(ended(&mut stream), End::Exited { code: 0 });
    assert!(read_log(&inside.log_path(1)).stdout == part.repeat(10));

    // One that does not read: its input is dropped with it, and nothing waits.
    let mut stream = inside.begin(Exec { stdin: true, ..sh(2, "exec 0<&-; sleep 0.1") });
    for _ in 0..20 {
        data(&mut stream, &part).expect("sent");
    }
    assert_eq!(ended(&mut stream), End::Exited { code: 0 });

    // A host that goes away ends the input, not the command.
    let stream = inside.begin(Exec { stdin: true, ..sh(3, "cat; echo after") });
    drop(stream);
    until("the step ends", || read_log(&inside.log_path(3)).end.is_some());
    assert_eq!(read_log(&inside.log_path(3)).stdout, b"after\n");
    assert_eq!(inside.sh(4, "cat; echo none").stdout(), "none\n");
}

#[test]
fn a_lost_or_slow_host_stalls_no_command() {
    let inside = Inside::start();
    // Never reads, though output goes on for long enough to fill any socket with news.
    let silent = inside.begin(sh(1, "for i in $(seq 3000); do echo $i; sleep 0.0005; done; head -c 50M /dev/zero"));
    let mut lost = inside.begin(sh(2, "echo one; sleep 0.5; echo two"));
    assert!(matches!(reply(&mut lost), Reply::Started { .. }));
    drop(lost);
    let mut again = inside.connect();
    write_message(&mut again, &Request::Attach { step: 2 }).expect("sent");
    assert!(matches!(reply(&mut again), Reply::Started { .. }));
    assert_eq!(ended(&mut again), End::Exited { code: 0 });
    assert_eq!(read_log(&inside.log_path(2)).stdout, b"one\ntwo\n");
    until("the silent one's step ends", || {
        std::fs::metadata(inside.log_path(1)).is_ok_and(|log| log.len() > 50 << 20) && hello(&inside).running.is_empty()
    });
    assert_eq!(read_log(&inside.log_path(1)).end, Some(EndRecord::Exited(0)));
    drop(silent);
}

#[test]
fn several_steps_run_at_once() {
    let inside = Inside::start();
    let start = Instant::now();
    let mut streams: Vec<_> = (0..40).map(|n| inside.begin(sh(n, &format!("sleep 0.5; echo {n}; exit {n}")))).collect();
    let mut running = Vec::new();
    until("all run", || {
        running = hello(&inside).running;
        running.len() == 40
    });
    assert_eq!(running, (0..40).collect::<Vec<_>>());
    match reply(&mut inside.begin(sh(0, "true"))) {
        Reply::Failed(failure) => assert_eq!(failure.kind, FailureKind::Exists),
        other => panic!("{other:?}"),
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        assert_eq!(ended(stream), End::Exited { code: n as i32 });
        assert!(n == 0 || read_log(&inside.log_path(n as u64)).stdout == format!("{n}\n").as_bytes());
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn time_ends_the_whole_group() {
    let inside = Inside::start();
    let marker = "987654.25";
    let start = Instant::now();
    let exec = sh(
        1,
        &format!(
            "trap 'echo term' TERM; sleep {marker} & (trap '' TERM; exec sleep {marker}) & while :; do wait; done"
        ),
    );
    let ran = inside.run(Exec { timeout_ms: Some(300), ..exec });
    assert_eq!((ran.end, ran.log.end), (End::TimedOut, Some(EndRecord::TimedOut)));
    assert!(start.elapsed() >= Duration::from_millis(2200) && start.elapsed() < Duration::from_secs(6));
    assert!(String::from_utf8_lossy(&ran.log.stdout).contains("term"));
    assert_eq!(
        inside.sh(2, &format!("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep {marker}$'")).stdout(),
        "0\n"
    );
    // Other groups of the session go too (`set -m` gives each job its own), and nobody waits where all go at once.
    let start = Instant::now();
    let ran = inside.run(Exec { timeout_ms: Some(200), ..sh(3, &format!("set -m; sleep {marker} & sleep {marker}")) });
    assert_eq!(ran.end, End::TimedOut);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let ran = inside.sh(4, "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done | grep -c '^sleep' ");
    assert_eq!(ran.stdout(), "0\n");
    assert_eq!(inside.run(Exec { timeout_ms: Some(5000), ..sh(5, "exit 4") }).end, End::Exited { code: 4 });
}

#[test]
fn signals_reach_the_group_or_the_process() {
    let inside = Inside::start();
    let script = "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.01; done";
    for (step, scope) in [(1, SignalScope::Process), (2, SignalScope::Group)] {
        let mut stream = inside.begin(sh(step, script));
        until("it is ready", || !read_log(&inside.log_path(step)).stdout.is_empty());
        if step == 1 {
            assert_eq!(inside.ask(&Request::Signal { step, signal: 10, scope }), Reply::Done);
            assert_eq!(ended(&mut stream), End::Exited { code: 9 });
        } else {
            write_message(&mut stream, &Input::Signal { signal: 9, scope }).expect("sent");
            assert_eq!(ended(&mut stream), End::Signaled { signal: 9 });
        }
    }
    let mut stream = inside.begin(sh(3, "sleep 10"));
    assert!(matches!(reply(&mut stream), Reply::Started { .. }));
    for signal in [0, -1, 65, i32::MAX] {
        let refused = inside.failure(&Request::Signal { step: 3, signal, scope: SignalScope::Group });
        assert_eq!(refused.kind, FailureKind::BadRequest);
    }
    // A real-time signal has a number only.
    assert_eq!(inside.ask(&Request::Signal { step: 3, signal: 40, scope: SignalScope::Group }), Reply::Done);
    assert_eq!(ended(&mut stream), End::Signaled { signal: 40 });
}

#[test]
fn a_terminal_has_a_size_and_an_end() {
    let inside = Inside::start();
    let pty = |rows, cols| Some(Pty { rows, cols, term: None });
    let ran = inside.run(Exec {
        pty: pty(33, 111),
        ..sh(1, "stty size; echo $TERM; tty; test -t 0 && test -t 1 && echo yes; echo >/dev/tty")
    });
    let text = String::from_utf8_lossy(&ran.log.pty).replace('\r', "");
    assert!(text.starts_with("33 111\nxterm-256color\n/dev/pts/") && text.ends_with("yes\n\n"), "{text}");
    assert_eq!(ran.end, End::Exited { code: 0 });

    let mut stream = inside.begin(Exec {
        pty: pty(24, 80),
        // A shell's `read` fails where the trap's signal comes in the middle of it, and what it had read is gone.
        ..sh(2, "trap 'stty size' WINCH; echo ready; until read line; do :; done; echo got $line; cat; echo end")
    });
    let seen = |text: &str| String::from_utf8_lossy(&read_log(&inside.log_path(2)).pty).contains(text);
    until("it is ready", || seen("ready"));
    write_message(&mut stream, &Input::Resize { rows: 50, cols: 132 }).expect("sent");
    until("it knows its size", || seen("50 132"));
    // A second connection writes too, and its end is not the terminal's.
    let mut second = inside.connect();
    write_message(&mut second, &Request::Attach { step: 2 }).expect("sent");
    data(&mut second, b"hello\n").expect("sent");
    until("the line is read", || seen("got hello"));
    drop(second);
    end(&mut stream);
    assert_eq!(ended(&mut stream), End::Exited { code: 0 });
    assert!(seen("end"));

    // Interrupted by the character, as a shell's user does it; and all output is there at the end.
    let mut stream = inside.begin(Exec { pty: pty(24, 80), ..sh(3, "echo up; exec sleep 100") });
    assert!(matches!(reply(&mut stream), Reply::Started { .. }));
    until("it is up", || String::from_utf8_lossy(&read_log(&inside.log_path(3)).pty).contains("up"));
    data(&mut stream, &[3]).expect("sent");
    assert_eq!(ended(&mut stream), End::Signaled { signal: 2 });
    let ran = inside.run(Exec { pty: pty(24, 80), ..command(4, &["seq", "100000"]) });
    assert!(ran.log.pty.ends_with(b"\r\n100000\r\n"));
    assert_eq!(ran.log.pty.len(), 588_895 + 100_000);
}

#[test]
fn what_stays_behind_holds_up_no_end_and_lives_on() {
    let inside = Inside::start();
    let start = Instant::now();
    let ran = inside.sh(
        1,
        "(sleep 0.03; echo late; sleep 0.5; echo lost; echo alive >$0) & echo now"
            .replace("$0", inside.path("alive").to_str().expect("UTF-8"))
            .as_str(),
    );
    assert_eq!((ran.stdout().as_str(), ran.end), ("now\nlate\n", End::Exited { code: 0 }));
    assert!(start.elapsed() < Duration::from_millis(450), "{:?}", start.elapsed());
    until("it wrote to a pipe that is no step's, and lived", || inside.path("alive").exists());
    // One that writes without end does not keep the step either.
    let start = Instant::now();
    assert_eq!(inside.sh(2, "yes & sleep 0.02").end, End::Exited { code: 0 });
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(inside.sh(3, "grep -l ^yes /proc/[0-9]*/comm | cut -d/ -f3 | xargs kill").end, End::Exited { code: 0 });
    // Orphans are reaped.
    inside.sh(4, "for i in $(seq 50); do (sleep 0.05 &) ; done; sleep 0.2");
    assert_eq!(inside.sh(5, "grep -c '^State:.Z' /proc/[0-9]*/status | grep -c ':1'").stdout(), "0\n");
}

#[test]
fn a_step_that_is_whole_leaves_none_of_its_session_behind() {
    let inside = Inside::start();
    // In the group, in a group of its own, and in a session of its own.
    // It ends once all are what they are to be; how many there are of the last one is its word.
    let script = "set -m; sleep 3001 & set +m; sleep 3002 & setsid -f sleep 3003
        for each in 3001:1 3002:1 3003:$1; do
            until [ $(pgrep -cfx \"sleep ${each%:*}\") = ${each#*:} ]; do sleep 0.01; done
        done; exit 4";
    let bash = |number, count: &str| Exec {
        argv: ["bash", "-c", script, "bash", count].map(|word| word.as_bytes().to_vec().into()).to_vec(),
        ..sh(number, "")
    };
    let left = |number, which: &str| {
        inside.sh(number, &format!("pgrep -cfx 'sleep {which}' || true")).stdout().trim().to_owned()
    };
    let ran = inside.run(Exec { whole: true, ..bash(1, "1") });
    assert_eq!((ran.end, ran.log.end), (End::Exited { code: 4 }, Some(EndRecord::Exited(4))));
    assert_eq!([left(2, "3001"), left(3, "3002"), left(4, "3003")], ["0", "0", "1"]);
    assert_eq!(inside.run(bash(5, "2")).end, End::Exited { code: 4 });
    assert_eq!([left(6, "3001"), left(7, "3002"), left(8, "3003")], ["1", "1", "2"]);
}

#[test]
fn a_log_keeps_to_its_limit() {
    use std::os::unix::fs::MetadataExt;
    let inside = Inside::start();
    let ran = inside.run(Exec { keep_bytes: Some(KEEP_BYTES_MIN), ..sh(1, "seq 6000000; echo last >&2") });
    let log = &ran.log;
    assert_eq!(ran.end, End::Exited { code: 0 });
    assert_eq!(log.output, 46_888_896 + 5);
    assert_eq!(log.cut + (log.stdout.len() + log.stderr.len()) as u64, log.output);
    assert!(log.stdout.starts_with(b"1\n2\n3\n") && log.stdout.ends_with(b"\n6000000\n"));
    let disk = std::fs::metadata(inside.log_path(1)).expect("attributes").blocks() * 512;
    assert!(disk <= KEEP_BYTES_MIN + (1 << 20), "{disk}");
}

/// Undoes something of the host's whatever becomes of the test.
struct Undo<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn a_full_disk_stalls_no_command() {
    let mut inside = Inside::start();
    let small = inside.path("small");
    std::fs::create_dir(&small).expect("made");
    let mount =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "den-test"]).arg(&small).status();
    assert!(mount.expect("mount").success());
    let mounted = small.clone();
    let _undo = Undo(move || drop(std::process::Command::new("umount").arg(&mounted).status()));
    std::os::unix::fs::symlink(small.join("1.log"), inside.log_path(1)).expect("linked");
    let mut stream = inside.begin(sh(1, "head -c 20M /dev/zero; sleep 0.2; echo end"));
    assert_eq!(ended(&mut stream), End::Exited { code: 0 });
    assert!(std::fs::metadata(small.join("1.log")).expect("a log").len() <= 1 << 20);
    assert!(!inside.has_ended());
    assert_eq!(inside.sh(2, "echo on").stdout(), "on\n");
}

#[test]
fn a_full_process_table_leaves_the_agent_well() {
    let group = format!("/sys/fs/cgroup/pids/den-agent-test-{}", std::process::id());
    if std::fs::create_dir(&group).is_err() {
        eprintln!("skipped: no cgroup v1 hierarchy `pids` here");
        return;
    }
    let made = group.clone();
    let _undo = Undo(move || until("the group is empty", || std::fs::remove_dir(&made).is_ok()));
    let set = |file: &str, text: &str| std::fs::write(format!("{group}/{file}"), text).expect("written");
    let inside = Inside::start();
    hello(&inside);
    set("cgroup.procs", &inside.pid().to_string());
    set("pids.max", "12");
    // bash tries again where dash gives up.
    let mut bomb = inside.begin(command(1, &["bash", "-c", "while :; do sleep 60 & done"]));
    until("the table is full", || {
        std::fs::read_to_string(format!("{group}/pids.current")).expect("a number").trim() == "12"
    });
    // A thread of the agent's that ends makes room once more; the bomb has it at once.
    let is_refused = |reply: Reply| match reply {
        Reply::Failed(failure) => failure.kind == FailureKind::NoProcesses,
        _ => false,
    };
    let mut step = 1;
    until("a step is refused", || {
        step += 1;
        is_refused(reply(&mut inside.begin(sh(step, "true"))))
    });
    until("a thread is refused", || {
        is_refused(inside.ask(&Request::Stat { path: b"/".to_vec().into(), follow: true }))
    });
    until("the others have ended", || hello(&inside).running == [1]);
    let mut second = inside.connect();
    write_message(&mut second, &Request::Attach { step: 1 }).expect("sent");
    assert!(matches!(reply(&mut second), Reply::Started { .. }));
    assert_eq!(inside.ask(&Request::Signal { step: 1, signal: 9, scope: SignalScope::Group }), Reply::Done);
    assert_eq!(ended(&mut bomb), End::Signaled { signal: 9 });
    until("there is room again", || {
        step += 1;
        matches!(reply(&mut inside.begin(sh(step, "true"))), Reply::Started { .. })
    });
}

#[test]
fn a_shutdown_ends_everything() {
    let mut inside = Inside::start();
    let mut polite =
        inside.begin(sh(1, "trap 'trap \"\" TERM; echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done"));
    let mut stubborn = inside.begin(sh(2, "trap '' TERM; echo ready; while :; do sleep 0.01; done"));
    until("both are ready", || (1..=2).all(|step| !read_log(&inside.log_path(step)).stdout.is_empty()));
    let start = Instant::now();
    assert_eq!(inside.ask(&Request::Shutdown { grace_ms: u64::MAX }), Reply::Done);
    assert_eq!(inside.ask(&Request::Shutdown { grace_ms: 300 }), Reply::Done);
    assert_eq!(ended(&mut polite), End::Exited { code: 5 });
    assert_eq!(ended(&mut stubborn), End::Signaled { signal: 9 });
    assert!(inside.wait().success());
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(2));
    assert_eq!(read_log(&inside.log_path(1)).stdout, b"ready\nbye\n");
    assert_eq!(read_log(&inside.log_path(2)).end, Some(EndRecord::Signaled(9)));

    let mut idle = Inside::start();
    hello(&idle);
    let start = Instant::now();
    let pid = idle.pid() as i32;
    den_sys::spawn::kill(pid, 15).expect("sent");
    assert!(idle.wait().success());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_port_is_dialled() {
    let inside = Inside::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().expect("a connection");
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).expect("read");
        // Answers after the other side's end: the halves close on their own.
        tcp.write_all(&all).expect("written");
    });
    let mut stream = inside.connect();
    let mut first = den_wire::frame::message_bytes(&Request::Dial { port });
    first.extend(b"early ");
    stream.write_all(&first).expect("sent");
    assert_eq!(reply(&mut stream), Reply::Done);
    let big = vec![7; 1 << 20];
    let mut writer = stream.try_clone().expect("a descriptor");
    let sent = big.clone();
    std::thread::spawn(move || {
        writer.write_all(&sent).expect("sent");
        writer.shutdown(std::net::Shutdown::Write).expect("ended");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("read");
    assert!(back == [&b"early "[..], &big].concat());
    server.join().expect("served");
    assert_eq!(inside.failure(&Request::Dial { port: 1 }).kind, FailureKind::Refused);
    let mut odd = inside.connect();
    write_frame(&mut odd, FrameKind::End, &[]).expect("sent");
    assert!(matches!(reply(&mut odd), Reply::Failed(_)));
}

/// Not a timed test: `cargo test -p den-agent --test steps -- --ignored --nocapture figures`, with
/// DEN_AGENT naming the static agent.
#[test]
#[ignore = "prints figures"]
fn figures() {
    let inside = Inside::start();
    let mut micros: Vec<u128> = (0..500)
        .map(|step| {
            let exec = command(step, &["/bin/true"]);
            let start = Instant::now();
            let mut stream = inside.begin(exec);
            ended(&mut stream);
            start.elapsed().as_micros()
        })
        .collect();
    micros.sort_unstable();
    println!("exec /bin/true: min {} us, p50 {} us, p99 {} us", micros[0], micros[250], micros[495]);
    let start = Instant::now();
    assert_eq!(inside.run_without_log(1000, "head -c 2G /dev/zero"), End::Exited { code: 0 });
    println!("output: {:.0} MB/s", (2u64 << 30) as f64 / 1e6 / start.elapsed().as_secs_f64());
    let status = std::fs::read_to_string(format!("/proc/{}/status", inside.pid())).expect("status");
    for line in status
        .lines()
        .filter(|line| line.starts_with("Rss") || line.starts_with("VmRSS") || line.starts_with("Threads"))
    {
        println!("{line}");
    }
}

impl Inside {
    fn run_without_log(&self, step: u64, script: &str) -> End {
        ended(&mut self.begin(sh(step, script)))
    }
}
