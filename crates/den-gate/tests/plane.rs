//! The data plane, as the kernel has it: a gate's namespace, computers behind veth, an upstream in a
//! namespace of its own. Needs root, iproute2 and nft; without root the tests say so and pass.

mod plane {
    pub mod world;
}

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use den_gate::policy::{NetLimits, Policy, Posture};
use plane::world::{UPSTREAM, World, dial, dial_from, question, resolve};

const SOON: Duration = Duration::from_millis(300);

fn policy(posture: Posture, allow: &[&str]) -> Policy {
    let allow = allow.iter().map(|rule| rule.parse().expect("a rule")).collect();
    Policy { posture, allow, ..Policy::default() }
}

fn to(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

fn echoes(stream: &mut TcpStream, text: &[u8]) -> bool {
    let mut back = vec![0; text.len()];
    stream.write_all(text).is_ok() && stream.read_exact(&mut back).is_ok() && back == text
}

/// A connect that is refused, and at once; or one that is reset before anything comes back.
fn refused(world: &World, computer: usize, target: SocketAddrV4) -> bool {
    let begun = Instant::now();
    let outcome = world.inside(computer, move || {
        let mut stream = dial(target)?;
        let _ = stream.write_all(b"hello");
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.read(&mut [0; 16])
    });
    let said = outcome.as_ref().map_err(std::io::Error::kind);
    let is_reset = matches!(said, Err(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset));
    if !is_reset || begun.elapsed() > SOON {
        eprintln!("{target}: {outcome:?} after {:?}", begun.elapsed());
    }
    is_reset && begun.elapsed() < SOON
}

#[test]
fn open_reaches_the_world_and_not_the_floor() {
    let Some(world) = World::new(1) else { return };
    world.attach(0, policy(Posture::Open, &[]));
    world.inside(0, || {
        let mut stream = dial(to(UPSTREAM, 7007)).unwrap();
        assert!(echoes(&mut stream, b"through the gate"));
        // The end of one direction leaves the other.
        stream.write_all(b"last words").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"last words");
    });
    for target in [
        to(Ipv4Addr::new(10, 9, 9, 9), 80),
        to(Ipv4Addr::new(169, 254, 169, 254), 80),
        to(Ipv4Addr::new(127, 0, 0, 2), 80),
        to(Ipv4Addr::new(169, 254, 1, 1), 80),
        to(world.host(), 7007),
        to(UPSTREAM, 25),
        to(UPSTREAM, 1),
        to(Ipv4Addr::new(198, 18, 3, 4), 443),
    ] {
        if !target.ip().is_loopback() {
            assert!(refused(&world, 0, target), "{target}");
        }
    }
    let records = world.records(0);
    let has = |words: &[&str]| records.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["\"kind\":\"open\"", "allowed_open", "198.51.100.18:7007"]), "{records}");
    assert!(has(&["\"kind\":\"close\"", "\"why\":\"done\"", "\"up_bytes\":26", "\"down_bytes\":26"]), "{records}");
    assert!(has(&["deny", "\"floor\"", "169.254.169.254:80"]), "{records}");
    assert!(has(&["deny", "own_address"]), "{records}");
    assert!(has(&["deny", "smtp"]), "{records}");
    assert!(has(&["close", "dial_failed"]), "{records}");
    assert!(has(&["deny", "unknown_name"]), "{records}");
}

#[test]
fn sealed_and_guarded_let_out_what_they_say() {
    let Some(world) = World::new(2) else { return };
    world.attach(0, policy(Posture::Sealed, &[]));
    world.attach(1, policy(Posture::Guarded, &["tcp://good.test:7007", "http://web.test:8080"]));
    assert!(refused(&world, 0, to(UPSTREAM, 7007)));
    assert!(world.inside(0, || resolve(Ipv4Addr::new(169, 254, 1, 1), "good.test")).is_err());
    assert!(refused(&world, 1, to(UPSTREAM, 7007)));
    world.inside(1, || {
        // Whomever it asks, the gate answers.
        let address = resolve(Ipv4Addr::new(8, 8, 8, 8), "good.test").unwrap();
        assert_eq!(address.octets()[..1], [198]);
        assert_eq!(resolve(Ipv4Addr::new(169, 254, 1, 1), "good.test").unwrap(), address);
        assert_eq!(resolve(Ipv4Addr::new(8, 8, 8, 8), "evil.test"), Err(5));
        // By TCP, several at once, and then the end.
        let mut stream = dial(to(Ipv4Addr::new(8, 8, 4, 4), 53)).unwrap();
        let query = question("good.test");
        let framed = [&(query.len() as u16).to_be_bytes()[..], &query].concat();
        stream.write_all(&framed.repeat(20)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        let length = usize::from(u16::from_be_bytes([answers[0], answers[1]]));
        assert_eq!(answers.len(), 20 * (length + 2));
        assert!(answers.ends_with(&address.octets()));
        let mut stream = dial(to(address, 7007)).unwrap();
        assert!(echoes(&mut stream, b"by name"));

        // Plain HTTP is told why.
        let mut stream = dial(to(UPSTREAM, 80)).unwrap();
        write!(stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("\"code\":\"ip_literal\""), "{answer}");

        let web = resolve(Ipv4Addr::new(8, 8, 8, 8), "web.test").unwrap();
        let ask = |host: &str| {
            let mut stream = dial(to(web, 8080)).unwrap();
            write!(stream, "GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        let answer = ask("web.test:8080");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let answer = ask("evil.test");
        assert!(answer.starts_with("HTTP/1.1 421") && answer.contains("host_mismatch"), "{answer}");
    });
    let records = world.records(1);
    assert!(records.lines().any(|line| line.contains("\"kind\":\"http\"") && line.contains("GET /x")), "{records}");
    assert!(records.contains("ip_literal") && records.contains("\"kind\":\"dns\""), "{records}");
}

#[test]
fn a_dead_gate_refuses_at_once_and_a_new_one_goes_on() {
    let Some(mut world) = World::new(1) else { return };
    world.attach(0, policy(Posture::Open, &[]));
    let quic = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("9.9.9.9:443").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let begun = Instant::now();
        for _ in 0..10 {
            // The refusal may have come before the second datagram is sent.
            let refusal = socket.send(b"hello").and_then(|_| socket.recv(&mut [0; 16]));
            assert_eq!(refusal.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        assert!(begun.elapsed() < SOON);
    };
    world.inside(0, quic);
    let mut stream = world.inside(0, || dial(to(UPSTREAM, 7007)).unwrap());
    assert!(echoes(&mut stream, b"alive"));
    world.kill();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    assert!(refused(&world, 0, to(UPSTREAM, 7007)));
    world.inside(0, quic);
    world.start();
    world.attach(0, policy(Posture::Open, &[]));
    assert!(world.inside(0, || echoes(&mut dial(to(UPSTREAM, 7007)).unwrap(), b"again")));
    // Let go, the link refuses; taken up again, it works, and all of that is quick.
    world.detach(0);
    assert!(refused(&world, 0, to(UPSTREAM, 7007)));
    let begun = Instant::now();
    for _ in 0..20 {
        world.detach(0);
        world.attach(0, policy(Posture::Open, &[]));
    }
    eprintln!("detach and attach take {:?}", begun.elapsed() / 20);
    assert!(world.inside(0, || echoes(&mut dial(to(UPSTREAM, 7007)).unwrap(), b"again")));
}

#[test]
fn who_one_is_is_the_link_and_nothing_else() {
    let Some(world) = World::new(2) else { return };
    world.attach(0, policy(Posture::Open, &[]));
    world.attach(1, policy(Posture::Open, &[]));
    // The same four numbers on two links.
    let mut first = world.inside(0, || dial_from(40_000, to(UPSTREAM, 7007)).unwrap());
    let mut second = world.inside(1, || dial_from(40_000, to(UPSTREAM, 7007)).unwrap());
    for round in 0..50 {
        assert!(echoes(&mut first, format!("first {round}").as_bytes()));
        assert!(echoes(&mut second, format!("second {round}").as_bytes()));
    }
    drop(first);
    assert!(echoes(&mut second, b"still here"));
    assert!(world.status(0).up_bytes > 0 && world.status(1).flows == 1);
    // Another source address gets no answer.
    world.ip(&["-n", &world.computer(1), "addr", "add", "10.0.0.9/32", "dev", "eth0"]);
    world.inside(1, || {
        let socket = UdpSocket::bind("10.0.0.9:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.connect("9.9.9.9:443").unwrap();
        socket.send(b"hello").unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    });
    assert!(!world.counter("spoofed").contains("packets 0 "));
}

#[test]
fn a_narrower_policy_ends_what_it_does_not_allow() {
    let Some(world) = World::new(1) else { return };
    world.attach(0, policy(Posture::Open, &[]));
    let mut kept = world.inside(0, || dial(to(UPSTREAM, 7007)).unwrap());
    let mut ended = world.inside(0, || dial(to(UPSTREAM, 7008)).unwrap());
    assert!(echoes(&mut kept, b"one") && echoes(&mut ended, b"two"));
    let begun = Instant::now();
    world.policy(0, policy(Posture::Guarded, &["198.51.100.18/32:7007"]));
    ended.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert_eq!(ended.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(echoes(&mut kept, b"three"));
    let records = world.records(0);
    assert!(records.lines().any(|line| line.contains("close") && line.contains("\"why\":\"policy\"")), "{records}");
    // A flow by name ends when the address behind it is denied.
    world.policy(0, policy(Posture::Guarded, &["tcp://good.test:7007"]));
    let mut named =
        world.inside(0, || dial(to(resolve(Ipv4Addr::new(8, 8, 8, 8), "good.test").unwrap(), 7007)).unwrap());
    assert!(echoes(&mut named, b"four"));
    let deny = vec!["198.51.100.16/28".parse().unwrap()];
    world.policy(0, Policy { deny, ..policy(Posture::Guarded, &["tcp://good.test:7007"]) });
    named.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(named.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn limits_hold() {
    let Some(world) = World::new(1) else { return };
    let limits = NetLimits { flows: 3, new_per_s: 0, bytes_per_day: 1_000_000, ..NetLimits::default() };
    world.attach(0, Policy { limits, ..policy(Posture::Open, &[]) });
    let mut flows: Vec<_> = (0..3).map(|_| world.inside(0, || dial(to(UPSTREAM, 7007)).unwrap())).collect();
    assert!(flows.iter_mut().all(|flow| echoes(flow, b"x")));
    assert!(refused(&world, 0, to(UPSTREAM, 7007)));
    flows.clear();
    let until = Instant::now() + Duration::from_secs(2);
    while world.status(0).flows > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    // The day's bytes.
    let sent = world.inside(0, || {
        let mut stream = dial(to(UPSTREAM, 7009)).unwrap();
        let block = vec![7; 64 << 10];
        (0..200).take_while(|_| stream.write_all(&block).is_ok()).count() << 16
    });
    assert!(sent < 12 << 20, "{sent}");
    assert!(refused(&world, 0, to(UPSTREAM, 7007)));
    let records = world.records(0);
    assert!(records.contains("limit_day") && records.contains("\"detail\":\"flows\""), "{records}");
    assert!(world.status(0).limited >= 2);
}

#[test]
fn a_flood_is_dropped_and_noted() {
    let Some(world) = World::new(1) else { return };
    let limits = NetLimits { new_per_s: 5, bits_per_s: 16_000_000, ..NetLimits::default() };
    world.attach(0, Policy { limits, ..policy(Posture::Open, &[]) });
    let mut tries = 0;
    while world.counter("packets_over").contains("packets 0 ") {
        tries += 1;
        assert!(tries < 40, "no packet was over the limit");
        world.inside(0, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("9.9.9.9:9").unwrap();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(500) {
                let _ = socket.send(b"flood");
            }
        });
    }
    // Twenty are a burst; what comes after is refused.
    let passed = world.inside(0, || {
        let try_one = || dial(to(UPSTREAM, 7007)).is_ok_and(|mut stream| echoes(&mut stream, b"x"));
        (0..60).filter(|_| try_one()).count()
    });
    assert!((20..30).contains(&passed), "{passed}");
    std::thread::sleep(Duration::from_secs(1));
    // 16 Mbit/s are 2 MB/s.
    let took = world.inside(0, || {
        let begun = Instant::now();
        let mut stream = dial(to(UPSTREAM, 7007)).unwrap();
        let mut back = stream.try_clone().unwrap();
        let reader = std::thread::spawn(move || std::io::copy(&mut back, &mut std::io::sink()).unwrap());
        stream.write_all(&vec![7; 2_000_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.join().unwrap(), 2_000_000);
        begun.elapsed()
    });
    assert!(took > Duration::from_millis(700) && took < Duration::from_secs(4), "{took:?}");
    std::thread::sleep(Duration::from_secs(5));
    let records = world.records(0);
    for limit in ["new_per_s", "bits_per_s", "packets"] {
        assert!(records.contains(&format!("\"detail\":\"{limit}\"")), "{limit}: {records}");
    }
}

#[test]
fn a_flood_of_flows_is_refused_a_few_times_a_second_and_then_dropped() {
    let Some(world) = World::new(1) else { return };
    let limits = NetLimits { new_per_s: 5, ..NetLimits::default() };
    world.attach(0, Policy { limits, ..policy(Posture::Open, &[]) });
    let begun = Instant::now();
    let tries = world.inside(0, move || {
        let target = SocketAddr::V4(to(UPSTREAM, 7007));
        let one = || drop(TcpStream::connect_timeout(&target, Duration::from_millis(1)));
        (0..).take_while(|_| begun.elapsed() < Duration::from_secs(2)).map(|_| one()).count() as u64
    });
    let refused = world.status(0).denied;
    // A burst of 512, 128 a second, and one more before each pause.
    let most = 512 + begun.elapsed().as_millis() as u64 * 130 / 1000 + 1;
    assert!((512..=most).contains(&refused) && tries > most, "{refused} of {tries}, at most {most}");
    // Its end is the end of it.
    let until = Instant::now() + Duration::from_secs(10);
    let passes = || dial(to(UPSTREAM, 7007)).is_ok_and(|mut stream| echoes(&mut stream, b"x"));
    while !world.inside(0, passes) {
        assert!(Instant::now() < until, "no flow passes after the flood");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn another_computer_is_reached_by_its_agent_where_a_rule_says_so() {
    let Some(world) = World::new(2) else { return };
    world.agent();
    world.attach(0, policy(Posture::Open, &["vm:c1:5432"]));
    world.attach(1, policy(Posture::Sealed, &[]));
    world.inside(0, || {
        let server = Ipv4Addr::new(169, 254, 1, 1);
        let address = resolve(server, "c1.vm.internal").unwrap();
        let mut stream = dial(to(address, 5432)).unwrap();
        assert!(echoes(&mut stream, b"to a neighbour"));
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(resolve(server, "c0.vm.internal"), Err(5));
    });
    let address = world.inside(0, || resolve(Ipv4Addr::new(169, 254, 1, 1), "c1.vm.internal").unwrap());
    assert!(refused(&world, 0, to(address, 5433)));
    assert!(refused(&world, 1, to(address, 5432)));
}

#[test]
fn told_to_end_it_resets_its_flows_and_leaves_nothing() {
    let Some(mut world) = World::new(1) else { return };
    world.attach(0, policy(Posture::Open, &[]));
    let mut stream = world.inside(0, || dial(to(UPSTREAM, 7007)).unwrap());
    assert!(echoes(&mut stream, b"alive"));
    assert!(world.end(), "it ends well");
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(world.records(0).contains("gate_ended"));
    world.start();
    world.attach(0, policy(Posture::Open, &[]));
    // What was used this day is known to the next one.
    assert!(world.status(0).day_bytes >= 10);
}

#[test]
fn what_cannot_be_written_down_is_not_dialled() {
    let Some(world) = World::new(1) else { return };
    // The journal is about to turn to a file that it will not open: a link.
    let folder = world.folder(0);
    std::fs::create_dir(&folder).unwrap();
    let full = std::fs::File::create(folder.join("flows-1.jsonl")).unwrap();
    full.set_len(den_gate::record::FILE_BYTES_MAX - 10).unwrap();
    world.attach(0, policy(Posture::Open, &[]));
    std::os::unix::fs::symlink("/dev/null", folder.join("flows-2.jsonl")).unwrap();
    assert!(refused(&world, 0, to(UPSTREAM, 7007)));
    assert_eq!((world.status(0).allowed, world.status(0).denied), (0, 1));
    std::fs::remove_file(folder.join("flows-2.jsonl")).unwrap();
    assert!(world.inside(0, || echoes(&mut dial(to(UPSTREAM, 7007)).unwrap(), b"x")));
}

#[test]
fn a_private_target_is_open_for_its_port_alone() {
    let Some(world) = World::new(1) else { return };
    world.attach(0, policy(Posture::Open, &[]));
    let listener = std::net::TcpListener::bind((world.host(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = std::net::TcpListener::bind((world.host(), 0)).unwrap();
    let host = world.host();
    assert!(refused(&world, 0, to(host, port)));
    world.house(&[&format!("{host}:{port}")]);
    let stream = world.inside(0, move || dial(to(host, port)).unwrap());
    let (mut served, _) = listener.accept().unwrap();
    served.write_all(b"hello").unwrap();
    let mut stream = stream;
    stream.read_exact(&mut [0; 5]).unwrap();
    assert!(refused(&world, 0, to(host, other.local_addr().unwrap().port())));
    // Closed again, what goes through it ends.
    world.house(&[]);
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Many bytes, none for a while, few, many again: copied, by a pipe, without it, and all of them.
#[test]
fn bytes_come_whole_whatever_their_rhythm() {
    let Some(world) = World::new(1) else { return };
    let free = NetLimits { flows: 0, new_per_s: 0, bits_per_s: 0, bytes_per_day: 0, dns_per_s: 0 };
    world.attach(0, Policy { limits: free, ..policy(Posture::Open, &[]) });
    world.inside(0, || {
        let mut stream = dial(to(UPSTREAM, 7007)).unwrap();
        let mut seed = 1_u32;
        for size in [5 << 20, 3, 200_000, 1, 2 << 20, 40_000, 40_000, 7, 7, 7, 7, 7, 7, 7, 7, 7, 3 << 20, 11] {
            let sent: Vec<u8> = std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .take(size)
            .collect();
            let (mut there, bytes) = (stream.try_clone().unwrap(), sent.clone());
            let writer = std::thread::spawn(move || there.write_all(&bytes).unwrap());
            let mut back = vec![0; size];
            stream.read_exact(&mut back).unwrap();
            writer.join().unwrap();
            assert!(back == sent, "{size} bytes came back as others");
            std::thread::sleep(Duration::from_millis(5));
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    });
}

/// Figures, printed; the bounds are far below what a quiet host does.
#[test]
fn it_is_fast() {
    let Some(world) = World::new(1) else { return };
    let free = NetLimits { flows: 0, new_per_s: 0, bits_per_s: 0, bytes_per_day: 0, dns_per_s: 0 };
    world.attach(0, Policy { limits: free, ..policy(Posture::Open, &[]) });
    let rate = |port| {
        move || {
            let mut stream = dial(to(UPSTREAM, port)).unwrap();
            let block = vec![7; 1 << 20];
            let (begun, mut bytes) = (Instant::now(), 0_u64);
            while begun.elapsed() < Duration::from_secs(2) {
                stream.write_all(&block).unwrap();
                bytes += block.len() as u64;
            }
            bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
        }
    };
    let up = world.inside(0, rate(7009));
    let down = world.inside(0, || {
        let mut stream = dial(to(UPSTREAM, 7010)).unwrap();
        let mut block = vec![0; 1 << 20];
        let (begun, mut bytes) = (Instant::now(), 0_u64);
        while begun.elapsed() < Duration::from_secs(2) {
            bytes += stream.read(&mut block).unwrap() as u64;
        }
        bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
    });
    // Eight at a time, and the upstream closes first.
    let many = world.inside(0, || {
        let begun = Instant::now();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                // A thread is in the namespace of the one that starts it.
                std::thread::spawn(move || {
                    let mut count = 0_u32;
                    while begun.elapsed() < Duration::from_secs(2) {
                        let mut stream = dial(to(UPSTREAM, 7011)).unwrap();
                        let _ = stream.read(&mut [0; 16]).unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let count: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        f64::from(count) / begun.elapsed().as_secs_f64()
    });
    let (new, p50) = world.inside(0, || {
        let (begun, mut count) = (Instant::now(), 0_u32);
        while begun.elapsed() < Duration::from_secs(2) {
            let mut stream = dial(to(UPSTREAM, 7007)).unwrap();
            assert!(echoes(&mut stream, b"x"));
            count += 1;
        }
        let per_s = f64::from(count) / begun.elapsed().as_secs_f64();
        let mut stream = dial(to(UPSTREAM, 7007)).unwrap();
        stream.set_nodelay(true).unwrap();
        (per_s, median(&mut stream))
    });
    let direct = world.upstream(move || {
        let mut stream = TcpStream::connect(SocketAddr::V4(to(UPSTREAM, 7007))).unwrap();
        stream.set_nodelay(true).unwrap();
        median(&mut stream)
    });
    eprintln!("{up:.1} Gbit/s up, {down:.1} down; {new:.0} new flows/s one after the other, {many:.0} eight at a time");
    eprintln!("a request takes {p50:?} (p50; the upstream's own loopback {direct:?})");
    assert!(up > 0.5 && down > 0.5 && new > 200.0 && many > 200.0);
}

/// The median of two thousand requests on a kept connection.
fn median(stream: &mut TcpStream) -> Duration {
    let mut times: Vec<_> = (0..2000)
        .map(|_| {
            let begun = Instant::now();
            assert!(echoes(stream, b"request"));
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[1000]
}

/// Not a test: the gate's own process, started by the others.
#[test]
#[ignore = "the gate's own process"]
fn gate_process() {
    let Ok(run) = std::env::var("DEN_TEST_GATE_RUN") else { return };
    den_gate::plane::run(&den_gate::plane::Settings { run: run.into() }).expect("the gate runs");
}
