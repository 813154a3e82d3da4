//! The tests' internet by itself: a witness that hears nothing would pass every attack row.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use den_testkit::{Internet, Site, eventually};

const SOON: Duration = Duration::from_secs(5);

fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

fn ask(net: &Internet, name: &str) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    socket.send_to(&question(name, 1), (net.at(Site::Dns), 53)).expect("a query");
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).expect("an answer");
    buffer[..length].to_vec()
}

fn address(answer: &[u8]) -> Ipv4Addr {
    let tail: [u8; 4] = answer[answer.len() - 4..].try_into().expect("four bytes");
    tail.into()
}

fn get(at: Ipv4Addr, text: &str) -> String {
    let mut stream = TcpStream::connect(SocketAddr::from((at, 80))).expect("a connection");
    stream.write_all(text.as_bytes()).expect("a request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("an answer");
    reply
}

#[test]
fn names_sites_and_the_witness_work() {
    let net = Internet::new();
    assert_eq!(address(&ask(&net, "Good.TEST")), net.at(Site::Good));
    assert_eq!(address(&ask(&net, "a.b.evil.test")), net.at(Site::Evil));
    assert_eq!(ask(&net, "nobody.test")[3] & 15, 3, "NXDOMAIN");
    net.alternate("rebind.test", &[&[net.at(Site::Mirror).into()], &[net.private().into()]]);
    let turns: Vec<_> = (0..3).map(|_| address(&ask(&net, "rebind.test"))).collect();
    assert_eq!(turns, [net.at(Site::Mirror), net.private(), net.at(Site::Mirror)]);
    assert!(net.queries().iter().any(|query| query.name == "good.test" && query.kind == 1));

    let reply = get(net.at(Site::Good), "GET /a HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
    assert!(reply.contains("site 3 GET /a HTTP/1.1 host=good.test"), "{reply}");
    let reply = get(
        net.at(Site::Echo),
        "POST /b HTTP/1.1\r\nHost: echo.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert!(reply.contains("POST /b HTTP/1.1\r\nHost: echo.test"), "{reply}");
    assert_eq!(net.requests_at(Site::Echo).len(), 1);
    assert!(get(net.private(), "GET / HTTP/1.0\r\nConnection: close\r\n\r\n").contains("200 OK"));

    let tls = std::process::Command::new("curl")
        .args(["-sk", "--noproxy", "*", "--resolve", &format!("good.test:443:{}", net.at(Site::Good))])
        .arg("https://good.test/tls")
        .output()
        .expect("curl");
    assert!(String::from_utf8_lossy(&tls.stdout).contains("GET /tls"), "{tls:?}");
    assert!(net.requests().iter().any(|request| request.sni.as_deref() == Some("good.test")));

    assert!(!net.leaked("KANARIE"));
    ask(&net, "kanarie1.evil.test");
    eventually(SOON, "a query is a leak", || net.leaked("KANARIE1"));
    get(net.at(Site::Evil), "GET /kanarie2 HTTP/1.0\r\nConnection: close\r\n\r\n");
    eventually(SOON, "a request is a leak", || net.leaked("KANARIE2"));
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    udp.send_to(b"xxkanarie3", (net.at(Site::Evil), 4444)).expect("a datagram");
    eventually(SOON, "a datagram to no one is a leak", || net.leaked("KANARIE3"));
    assert!(net.packets_to(net.at(Site::Evil)).iter().any(|packet| packet.protocol == 17 && packet.port == Some(4444)));
    get(net.at(Site::Good), "GET /kanarie4 HTTP/1.0\r\nConnection: close\r\n\r\n");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!net.leaked("KANARIE4"), "what good.test hears is no leak");
}

#[test]
fn they_stand_side_by_side_and_go() {
    let one = Internet::new();
    let two = Internet::new();
    assert_ne!(one.at(Site::Dns), two.at(Site::Dns));
    assert_eq!(address(&ask(&one, "good.test")), one.at(Site::Good));
    assert_eq!(address(&ask(&two, "good.test")), two.at(Site::Good));
    let links = || {
        let mine = format!("dn{}-", std::process::id());
        std::fs::read_dir("/sys/class/net")
            .expect("links")
            .flatten()
            .filter(|link| link.file_name().to_string_lossy().starts_with(&mine))
            .count()
    };
    let before = links();
    assert!(before >= 2);
    drop(one);
    assert_eq!(address(&ask(&two, "good.test")), two.at(Site::Good));
    drop(two);
    eventually(SOON, "the links are gone", || links() + 2 <= before);
}
