//! Web sites in the clear and by TLS, and services of raw TCP. All sites listen on all their ports;
//! the address that a client came to says which site it is.
//!
//! ```text
//! /            name of the site, method, path, Host        /bytes/N   N bytes
//! /stream      1 KiB each 10 ms, for ever                  /hang      no answer
//! /redirect    302 to http://evil.test/                    /socket    101 where it is asked for, then echo
//! ```

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Shared, Site, TICK, hold};

const HTTP: [u16; 2] = [80, 8080];
const TLS: [u16; 2] = [443, 8443];
/// Services that speak first, and what they say.
const BANNERS: [(u16, &str); 2] = [(22, "SSH-2.0-test\r\n"), (25, "220 mail.test\r\n")];
/// Services that say back what they are told.
const RAW: [u16; 9] = [465, 587, 853, 3333, 5432, 6379, 7000, 9000, 9001];
/// A client that is silent for so long is let go.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Bytes of a connection that are kept.
const KEPT_MAX: usize = 1 << 20;

/// A request that a web site got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The site's address.
    pub at: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// The name in the TLS hello, where there was TLS.
    pub sni: Option<String>,
    /// Its first line.
    pub line: String,
    /// Its Host header.
    pub host: String,
    /// Head and body as they came.
    pub bytes: Vec<u8>,
}

/// Starts all of them.
pub(crate) fn start(shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    let tls = certificate();
    for port in HTTP {
        threads.push(accept_until_stopped(shared, listen(port), |shared, stream| {
            let _ = web(shared, &stream.local_addr()?, None, stream);
            Ok::<(), io::Error>(())
        }));
    }
    for port in TLS {
        let tls = Arc::clone(&tls);
        threads.push(accept_until_stopped(shared, listen(port), move |shared, stream| {
            let at = stream.local_addr()?;
            let connection = rustls::ServerConnection::new(Arc::clone(&tls)).map_err(io::Error::other)?;
            let mut stream = rustls::StreamOwned::new(connection, Recorder::new(shared, stream)?);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            let sni = stream.conn.server_name().map(str::to_owned);
            web(shared, &at, sni, stream)
        }));
    }
    for (port, banner) in BANNERS {
        threads.push(accept_until_stopped(shared, listen(port), move |shared, stream| raw(shared, stream, banner)));
    }
    for port in RAW {
        threads.push(accept_until_stopped(shared, listen(port), |shared, stream| raw(shared, stream, "")));
    }
    threads
}

fn listen(port: u16) -> TcpListener {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a port of the test's own namespace")
}

/// Gives each connection a thread, until the internet ends; then waits for nobody.
pub(crate) fn accept_until_stopped<R>(
    shared: &Arc<Shared>,
    listener: TcpListener,
    serve: impl Fn(&Arc<Shared>, TcpStream) -> R + Send + Sync + 'static,
) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    let serve = Arc::new(serve);
    listener.set_nonblocking(true).expect("a listener");
    std::thread::spawn(move || {
        let tick = Timespec::try_from(TICK).expect("a short time");
        while !shared.stopped() {
            let mut ready = [PollFd::new(&listener, PollFlags::IN)];
            let _ = poll(&mut ready, Some(&tick));
            while let Ok((stream, _)) = listener.accept() {
                let (shared, serve) = (Arc::clone(&shared), Arc::clone(&serve));
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(SILENCE_MAX));
                let _ = stream.set_write_timeout(Some(SILENCE_MAX));
                let _ = stream.set_nodelay(true);
                let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || drop(serve(&shared, stream)));
            }
        }
    })
}

/// A TCP stream whose incoming bytes are remembered as they come.
struct Recorder {
    shared: Arc<Shared>,
    stream: TcpStream,
    /// Its place in the list.
    place: usize,
}

impl Recorder {
    fn new(shared: &Arc<Shared>, stream: TcpStream) -> io::Result<Self> {
        let at = stream.local_addr()?;
        let IpAddr::V4(address) = at.ip() else { return Err(io::Error::other("no IPv4")) };
        let mut all = hold(&shared.seen.raw);
        all.push((address, at.port(), Vec::new()));
        Ok(Self { shared: Arc::clone(shared), stream, place: all.len() - 1 })
    }
}

impl Read for Recorder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        if let Some((_, _, kept)) = hold(&self.shared.seen.raw).get_mut(self.place)
            && kept.len() < KEPT_MAX
        {
            kept.extend_from_slice(&buffer[..count]);
        }
        Ok(count)
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A service of raw bytes: says its banner, then back what it is told.
fn raw(shared: &Arc<Shared>, stream: TcpStream, banner: &str) -> io::Result<()> {
    let mut stream = Recorder::new(shared, stream)?;
    stream.write_all(banner.as_bytes())?;
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// A web site, request after request.
fn web(shared: &Arc<Shared>, at: &SocketAddr, sni: Option<String>, stream: impl Read + Write) -> io::Result<()> {
    let IpAddr::V4(address) = at.ip() else { return Ok(()) };
    let mut stream = Buffered { stream, bytes: Vec::new() };
    loop {
        let Some(head) = stream.head()? else { return Ok(()) };
        let text = String::from_utf8_lossy(&head).into_owned();
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim().to_owned())
        };
        let line = text.lines().next().unwrap_or_default().to_owned();
        let mut request = Request {
            at: address,
            port: at.port(),
            sni: sni.clone(),
            line,
            host: field("host").unwrap_or_default(),
            bytes: head,
        };
        let body = if field("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            stream.chunked()?
        } else {
            stream.take(field("content-length").and_then(|value| value.parse().ok()).unwrap_or(0))?
        };
        request.bytes.extend(&body);
        hold(&shared.seen.requests).push(request.clone());
        let path = request.line.split(' ').nth(1).unwrap_or("/").to_owned();
        if path == "/stream" {
            return endless(shared, &mut stream.stream);
        } else if path == "/hang" {
            let mut one = [0];
            while stream.stream.read(&mut one)? > 0 {}
            return Ok(());
        } else if path == "/socket" && field("upgrade").is_some() {
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.stream.write_all(head.as_bytes())?;
            return back(&mut stream);
        }
        let (status, more, body) = if path == "/redirect" {
            ("302 Found", "Location: http://evil.test/stolen\r\n", Vec::new())
        } else if let Some(count) = path.strip_prefix("/bytes/").and_then(|count| count.parse::<usize>().ok()) {
            ("200 OK", "", vec![b'x'; count])
        } else if address == shared.at(Site::Echo) {
            ("200 OK", "", request.bytes.clone())
        } else {
            let site = address.octets()[3] % 16;
            ("200 OK", "", format!("site {site} {} host={}\n", request.line, request.host).into_bytes())
        };
        let head = format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n", body.len());
        stream.stream.write_all(head.as_bytes())?;
        if !request.line.starts_with("HEAD ") {
            stream.stream.write_all(&body)?;
        }
        stream.stream.flush()?;
        if field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            return Ok(());
        }
    }
}

fn endless(shared: &Shared, stream: &mut impl Write) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
    let block = [b's'; 1024];
    while !shared.stopped() {
        stream.write_all(&block)?;
        stream.flush()?;
        shared.seen.streamed.fetch_add(block.len() as u64, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn back(stream: &mut Buffered<impl Read + Write>) -> io::Result<()> {
    let early = std::mem::take(&mut stream.bytes);
    stream.stream.write_all(&early)?;
    let mut buffer = [0; 4096];
    loop {
        match stream.stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.stream.write_all(&buffer[..count])?,
        }
    }
}

/// A stream with what was read too much.
struct Buffered<S> {
    stream: S,
    bytes: Vec<u8>,
}

impl<S: Read> Buffered<S> {
    fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let count = self.stream.read(&mut buffer)?;
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    /// A head with the empty line after it; none at the end.
    fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(Some(self.bytes.drain(..end + 4).collect()));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.bytes.len() < count {
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.bytes.drain(..count).collect())
    }

    /// A chunked body as it came.
    fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(self.take(1)?);
            }
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            let size =
                usize::from_str_radix(text.split(';').next().unwrap_or_default(), 16).map_err(io::Error::other)?;
            body.extend(&line);
            if size == 0 {
                body.extend(self.take(2)?);
                return Ok(body);
            }
            body.extend(self.take(size + 2)?);
        }
    }
}

impl<S: Write> Write for Buffered<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// One certificate for all names, signed by itself: the clients of these tests look at where bytes
/// go, not at chains.
fn certificate() -> Arc<rustls::ServerConfig> {
    let names: Vec<String> = ["good", "echo", "evil", "cdn", "front", "mirror", "wild", "rebind", "float"]
        .iter()
        .flat_map(|name| [format!("{name}.test"), format!("*.{name}.test")])
        .collect();
    let pair = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(pair.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .expect("a key that fits");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
