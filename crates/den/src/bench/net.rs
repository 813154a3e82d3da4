//! The network: what the gate costs.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    time::Instant,
};

use anyhow::Context as _;
use den_api::{ComputerView, CreateComputer, ExecRequest, NetLimitsChange, NetRequest};

use super::{
    Bench, PACE,
    report::{Measure, millis, rank},
    upstream::Upstream,
};

/// A client reads this many bytes at once, inside and outside.
const READ_BYTES: usize = 256 << 10;
/// Requests of one latency run.
const REQUESTS: usize = 4000;
/// Connections that a client has open at once.
const PARALLEL: u32 = 64;
/// How long connections are counted.
const CONNECTS_SECONDS: u32 = 3;

/// Reads as many bytes as it asked for; prints the seconds.
const DOWNLOAD: &str = r#"
import socket, struct, sys, time
host, port, size, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
buffer, got, start = bytearray(step), 0, time.monotonic()
s = socket.create_connection((host, port))
s.sendall(struct.pack('<Q', size))
while got < size:
    n = s.recv_into(buffer)
    if n == 0:
        sys.exit(f'{got} of {size} bytes came')
    got += n
print(time.monotonic() - start)
"#;

/// One byte there and back on one connection; prints the milliseconds of each.
const LATENCY: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times, clock = [], time.monotonic
for _ in range(int(sys.argv[3])):
    start = clock()
    s.send(b'?')
    s.recv(1)
    times.append((clock() - start) * 1e3)
print(*('%.4f' % t for t in times))
"#;

/// Connections whose first byte came, some at a time, until the time is over; prints their number, how
/// many failed, and the seconds.
const CONNECTS: &str = r#"
import select, socket, sys, time
at, seconds, parallel = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3]), int(sys.argv[4])
poll, open_, done, failed = select.epoll(), {}, 0, 0
def connect():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    s.connect_ex(at)
    open_[s.fileno()] = s
    poll.register(s.fileno(), select.EPOLLIN)
start = now = time.monotonic()
for _ in range(parallel):
    connect()
while open_:
    for fd, _ in poll.poll(10):
        s = open_.pop(fd)
        try:
            done, failed = (done + 1, failed) if s.recv(1) else (done, failed + 1)
        except OSError:
            failed += 1
        s.close()
        now = time.monotonic()
        if now - start < seconds:
            connect()
print(done, failed, now - start)
"#;

/// A download into a computer, beside the host's own loopback: from the same server over the same loopback where the
/// operator lets computers to it, else from a namespace beside the host, whose link has a rate of its own.
pub async fn download(bench: &Bench) -> anyhow::Result<Measure> {
    let view = computer(bench, "download").await?;
    let private = bench.client.net(&view.name).await?.private;
    let opened = private.iter().find_map(|target| target.parse().ok().filter(is_nobodys));
    let upstream = Upstream::open(opened)?;
    let from = upstream.opened.unwrap_or(upstream.outside.send);
    let size = u64::from(bench.args.copy_mib) << 20;
    let gbit = |seconds: f64| size as f64 * 8.0 / seconds / 1e9;
    let (mut through, mut loopback, mut link) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=bench.runs(9) {
        let words = [size.to_string(), READ_BYTES.to_string()];
        let out = python(bench, &view, DOWNLOAD, from, &words).await?;
        let seconds = out.trim().parse().with_context(|| format!("no time: {out}"))?;
        let (outside, inside) = (fetch(upstream.outside.send, size)?, fetch(upstream.loopback.send, size)?);
        // The first one warms up and is not counted.
        if run > 0 {
            through.push(gbit(seconds));
            link.push(gbit(outside));
            loopback.push(gbit(inside));
        }
    }
    bench.client.remove_now(&view.name).await?;
    let (link, loopback) = (median(link), median(loopback));
    let share = median(through.clone()) / loopback;
    let place = match upstream.opened {
        Some(_) => "the host's loopback".to_owned(),
        None => format!("a namespace beside the host, whose link without the gate has {link:.1} Gbit/s,"),
    };
    let note = format!(
        "{} MiB from {place} into a computer, limits off; p50 is {:.0} % of the host's loopback ({loopback:.1} Gbit/s, \
         {}); server, gate and client share the cores",
        bench.args.copy_mib,
        share * 100.0,
        congestion_control(),
    );
    Ok(Measure::new("net_download_gbit", "Gbit/s", through, note)
        .goal("p50 ≥ 5, ≥ 80 % of loopback", |m| m.p50 >= 5.0 && share >= 0.8))
}

/// An address that no network has (RFC 5737, TEST-NET-1).
fn is_nobodys(target: &SocketAddrV4) -> bool {
    target.ip().octets().starts_with(&[192, 0, 2])
}

/// What senders of this host go by, where they say nothing; tcp(7) tcp_congestion_control.
fn congestion_control() -> String {
    let name = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    name.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// New connections through the gate.
pub async fn connects(bench: &Bench) -> anyhow::Result<Measure> {
    let upstream = Upstream::open(None)?;
    let view = computer(bench, "connects").await?;
    let (mut rates, mut failures) = (Vec::new(), 0.0);
    for _ in 0..bench.runs(3) {
        let words = [CONNECTS_SECONDS.to_string(), PARALLEL.to_string()];
        let out = python(bench, &view, CONNECTS, upstream.outside.greet, &words).await?;
        let figures = numbers(&out)?;
        let [done, failed, seconds] = figures[..] else { anyhow::bail!("not three figures: {out}") };
        rates.push(done / seconds);
        failures += failed;
    }
    bench.client.remove_now(&view.name).await?;
    let note = format!(
        "connect, a byte from the server, close; {PARALLEL} at a time for {CONNECTS_SECONDS} s, limits off, each \
         recorded; {failures} failed"
    );
    Ok(Measure::new("net_connects_s", "1/s", rates, note)
        .goal("p50 ≥ 3000, none fails", |m| m.p50 >= 3000.0 && failures == 0.0))
}

/// What the gate adds to a request on a kept connection.
pub async fn latency(bench: &Bench) -> anyhow::Result<Measure> {
    let upstream = Upstream::open(None)?;
    let view = computer(bench, "latency").await?;
    let (mut added, mut without) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(3) {
        let direct = median(ask(upstream.outside.echo)?);
        let out = python(bench, &view, LATENCY, upstream.outside.echo, &[REQUESTS.to_string()]).await?;
        added.extend(numbers(&out)?.into_iter().map(|time| time - direct));
        without.push(direct);
    }
    bench.client.remove_now(&view.name).await?;
    let note = format!(
        "a byte there and back, Python's in a computer through the gate, less {:.3} ms: the p50 of a program on the host \
         without it",
        median(without)
    );
    Ok(Measure::new("net_latency_ms", "ms", added, note).goal("p50 ≤ 0.3", |m| m.p50 <= 0.3))
}

/// How much 300 computers with links slow a request down.
pub async fn beside_300(bench: &Bench) -> anyhow::Result<Measure> {
    let upstream = Upstream::open(None)?;
    let view = computer(bench, "beside").await?;
    let alone = asked_inside(bench, &view, &upstream).await?;
    let crowd = bench.crowd(300).await?;
    tokio::time::sleep(PACE * 40).await;
    let beside = asked_inside(bench, &view, &upstream).await?;
    bench.remove(crowd).await?;
    bench.client.remove_now(&view.name).await?;
    let note =
        format!("a byte there and back: p50 {beside:.3} ms beside 300 idle ones with links, {alone:.3} ms without");
    Ok(Measure::new("net_300_ratio", "x", vec![beside / alone], note).goal("≤ 1.5", |m| m.p50 <= 1.5))
}

/// The median of requests of a program inside, in milliseconds; the best of some runs.
async fn asked_inside(bench: &Bench, view: &ComputerView, upstream: &Upstream) -> anyhow::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..bench.runs(3) {
        let out = python(bench, view, LATENCY, upstream.outside.echo, &[REQUESTS.to_string()]).await?;
        best = best.min(median(numbers(&out)?));
    }
    Ok(best)
}

/// A computer that may reach all that the floor lets it, as often as it likes.
async fn computer(bench: &Bench, name: &str) -> anyhow::Result<ComputerView> {
    let limits = NetLimitsChange {
        flows: Some(0),
        new_per_s: Some(0),
        bits_per_s: Some(0),
        bytes_per_day: Some(0),
        dns_per_s: Some(0),
    };
    let net = NetRequest { posture: Some("open".to_owned()), limits: Some(limits), ..NetRequest::default() };
    let spec = CreateComputer { net: Some(net), ..bench.spec(name) };
    Ok(bench.client.create(&spec, None).await?)
}

/// Runs a script inside; what it printed.
async fn python(
    bench: &Bench,
    view: &ComputerView,
    script: &str,
    at: SocketAddr,
    words: &[String],
) -> anyhow::Result<String> {
    let mut argv: Vec<String> = ["python3", "-c", script].map(str::to_owned).into();
    argv.extend([at.ip().to_string(), at.port().to_string()]);
    argv.extend_from_slice(words);
    let result = bench.client.exec(&view.name, &ExecRequest { argv, ..ExecRequest::default() }).await?;
    let code = result.step.end.as_ref().map(|end| end.exit_code);
    anyhow::ensure!(code == Some(0), "python3 in `{}` ended with {code:?}: {}", view.name, result.stderr);
    Ok(result.stdout)
}

/// Reads `size` bytes; the seconds.
fn fetch(at: SocketAddr, size: u64) -> anyhow::Result<f64> {
    let mut buffer = vec![0; READ_BYTES];
    let start = Instant::now();
    let mut stream = TcpStream::connect(at)?;
    stream.write_all(&size.to_le_bytes())?;
    let mut got = 0;
    while got < size {
        match stream.read(&mut buffer)? {
            0 => anyhow::bail!("{got} of {size} bytes came"),
            count => got += count as u64,
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

/// One byte there and back, many times; the milliseconds of each.
fn ask(at: SocketAddr) -> anyhow::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    (0..REQUESTS)
        .map(|_| {
            let start = Instant::now();
            stream.write_all(b"?")?;
            stream.read_exact(&mut byte)?;
            Ok(millis(start))
        })
        .collect()
}

fn numbers(text: &str) -> anyhow::Result<Vec<f64>> {
    text.split_whitespace().map(|word| word.parse().with_context(|| format!("no number: {word}"))).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    rank(&values, 0.5)
}
