//! What the first bytes say, however they were cut.

use super::*;
use proptest::prelude::*;

/// As OpenSSL 3.0 sends it to `api.good.test`.
const OPENSSL: &str = "1603010200010001fc0303fcd6afc2838cbde757d0e6dd235b57f9aec1057dfe8de043d35b159150822a2e20cd618cabe988 \
     76b25e2d17fe1446ea10af8d302e70eb378c3831f558ebac59ed0024130213031301c02cc030c02bc02fcca9cca8c024c028 \
     c023c027009f009e006b006700ff0100018f00000012001000000d6170692e676f6f642e74657374000b000403000102000a \
     00160014001d0017001e0019001801000101010201030104002300000016000000170000000d002a00280403050306030807 \
     08080809080a080b080408050806040105010601030303010302040205020602002b00050403040303002d00020101003300 \
     260024001d002096fdc88f35d6501e9f02a4381fc684c1c4e916f02f61008a5ea694338177e344001500e000000000000000 \
     0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 \
     0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 \
     0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 \
     0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 \
     0000000000000000000000000000000000";

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

/// A server_name extension of these (type, name).
fn server_name(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|(kind, name)| [&[*kind][..], &(name.len() as u16).to_be_bytes(), name].concat())
        .collect();
    extension(0, &[&(list.len() as u16).to_be_bytes()[..], &list].concat())
}

/// The handshake message of a ClientHello with these extensions.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = extensions.concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([2, 9, 9]); // session
    body.extend([0, 4, 0x13, 0x01, 0x5a, 0x5a]); // suites, one of them GREASE
    body.extend([1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    message
}

/// In records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|piece| [&[22, 3, 1][..], &(piece.len() as u16).to_be_bytes(), piece].concat())
        .collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(extensions), 1 << 14)
}

fn tls(sni: Option<Result<&str, NameFault>>, ech: bool) -> Peeked {
    Peeked::Tls { sni: sni.map(|said| said.map(|name| name.parse().unwrap())), ech }
}

/// Each beginning says `More`, or what the whole says.
fn check(bytes: &[u8], expected: &Peeked) {
    assert_eq!(&peek(bytes), expected, "{}", bytes.escape_ascii());
    for end in 0..bytes.len() {
        let part = peek(&bytes[..end]);
        assert!(part == Peeked::More || &part == expected, "cut at {end}: {part:?}");
    }
    assert_eq!(&peek(&[bytes, b"\x17\x03\x03\0\x01x\r\nHost: evil.test\r\n\r\n"].concat()), expected);
}

#[test]
fn a_real_client_hello_has_its_name() {
    check(&bytes_of(OPENSSL), &tls(Some(Ok("api.good.test")), false));
}

#[test]
fn the_name_is_found_among_other_extensions() {
    let grease = extension(0x1a1a, b"");
    let name = server_name(&[(0, b"Good.Test")]);
    check(&hello(&[grease.clone(), name.clone(), extension(0x2a2a, b"x")]), &tls(Some(Ok("good.test")), false));
    check(&hello(&[grease.clone(), grease.clone()]), &tls(None, false));
    check(&hello(&[]), &tls(None, false));
    check(&hello(&[name.clone(), extension(0xfe0d, &[0; 40])]), &tls(Some(Ok("good.test")), true));
    check(&hello(&[extension(0xffce, b"x"), grease]), &tls(None, true));
}

#[test]
fn a_hello_without_extensions_has_no_name() {
    let mut whole = message(&[]);
    whole.truncate(whole.len() - 2);
    let body = (whole.len() - 4) as u32;
    whole[1..4].copy_from_slice(&body.to_be_bytes()[1..]);
    check(&records(&whole, 1 << 14), &tls(None, false));
}

#[test]
fn eg05_names_that_can_be_read_in_two_ways_are_not_read() {
    let several = || tls(Some(Err(NameFault::Several)), false);
    let malformed = || tls(Some(Err(NameFault::Malformed)), false);
    let host = |why| tls(Some(Err(NameFault::Host(why))), false);
    check(&hello(&[server_name(&[(0, b"good.test"), (0, b"evil.test")])]), &several());
    check(&hello(&[server_name(&[(0, b"good.test")]), server_name(&[(0, b"evil.test")])]), &several());
    check(&hello(&[server_name(&[(0, b"good.test"), (1, b"evil.test")])]), &several());
    check(&hello(&[server_name(&[(1, b"good.test"), (0, b"good.test")])]), &malformed());
    check(&hello(&[server_name(&[(1, b"good.test")])]), &malformed());
    check(&hello(&[extension(0, b"")]), &malformed());
    check(&hello(&[extension(0, b"\0\x0c\0\0\x09good.testxx")]), &malformed());
    check(&hello(&[extension(0, b"\0\x0c\0\0\x0agood.test")]), &malformed());
    check(&hello(&[server_name(&[(0, b"")])]), &host(HostError::Empty));
    check(&hello(&[server_name(&[(0, b"good.test.")])]), &host(HostError::EmptyLabel));
    check(&hello(&[server_name(&[(0, b"evil.test\0.good.test")])]), &host(HostError::Character('\0')));
    check(&hello(&[server_name(&[(0, b"203.0.113.7")])]), &host(HostError::Number));
    check(&hello(&[server_name(&[(0, "gооd.test".as_bytes())])]), &host(HostError::NotAscii(0xd0)));
}

#[test]
fn eg07_a_hello_may_be_in_any_number_of_records() {
    let whole = message(&[extension(0x3a3a, b""), server_name(&[(0, b"good.test")])]);
    for size in [1, 2, 3, 4, 5, 40, 41, whole.len() - 1] {
        check(&records(&whole, size), &tls(Some(Ok("good.test")), false));
    }
}

#[test]
fn eg07_a_hello_beyond_the_window_is_not_read() {
    let name = server_name(&[(0, b"good.test")]);
    let mut long = hello(&[extension(0x4a4a, &[0; 15_000]), name.clone()]);
    assert_eq!(peek(&long), tls(Some(Ok("good.test")), false));
    long = records(&message(&[extension(0x4a4a, &[0; 17_000]), name.clone()]), 1 << 14);
    assert_eq!(peek(&long), Peeked::Other);
    // Within the window by its own length, and beyond it by the records around each byte.
    long = records(&message(&[extension(0x4a4a, &[0; 4_000]), name]), 1);
    assert_eq!(peek(&long[..PEEK_BYTES_MAX - 1]), Peeked::More);
    assert_eq!(peek(&long[..PEEK_BYTES_MAX]), Peeked::Other);
    assert_eq!(peek(&long), Peeked::Other);
}

#[test]
fn what_is_not_a_hello_is_other() {
    let good = hello(&[server_name(&[(0, b"good.test")])]);
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    for bad in [
        with(0, 23),                                                                      // application data
        with(1, 2),                                                                       // version of the record
        with(5, 2),                                                                       // ServerHello
        with(6, 1),                                                                       // a message of 64 KiB
        with(9, 2),                                                                       // version of the message
        with(43, 33),                                                                     // session id too long
        vec![0x80, 0x2e, 1, 3, 1, 0, 21, 0, 0, 0, 16],                                    // SSLv2
        vec![22, 3, 1, 0, 0],                                                             // an empty record
        vec![22, 3, 1, 0xff, 0xff],                                                       // a record too long
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x10\x03\x15\x03\x01\x00\x02\x01\x00".to_vec(), // an alert within
        b"\x00\x00\x00\x05".to_vec(),
        b"\r\nGET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        check(&bad, &Peeked::Other);
    }
    let mut long = message(&[server_name(&[(0, b"good.test")])]);
    long.push(0);
    let body = (long.len() - 4) as u32;
    long[1..4].copy_from_slice(&body.to_be_bytes()[1..]);
    check(&records(&long, 1 << 14), &Peeked::Other);
}

fn http(head: &str, expected: Option<Result<&str, NameFault>>) {
    let host = expected.map(|said| said.map(|name| name.parse().unwrap()));
    check(head.as_bytes(), &Peeked::Http { host, head_bytes: head.len() });
}

#[test]
fn a_request_says_whom_it_is_for() {
    http("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", Some(Ok("good.test")));
    http("GET / HTTP/1.1\r\nAccept: */*\r\nhOsT:GOOD.test:8080 \r\nX: Host: evil.test\r\n\r\n", Some(Ok("good.test")));
    http("PROPFIND /a b HTTP/1.1\r\n\r\n".replace("a b", "ab").as_str(), None);
    http("GET / HTTP/1.0\n\n", None);
    http("GET / HTTP/1.1\nHost: good.test\n\n", Some(Ok("good.test")));
    http("OPTIONS * HTTP/1.1\r\nHost: good.test\r\n\r\n", Some(Ok("good.test")));
    http("GET http://good.test/a HTTP/1.1\r\n\r\n", Some(Ok("good.test")));
    http("GET http://good.test:80/a HTTP/1.1\r\nHost: Good.Test\r\n\r\n", Some(Ok("good.test")));
    http("GET /?u=http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", Some(Ok("good.test")));
    http("CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n", Some(Ok("good.test")));
    http("GET / HTTP/1.1\r\nHost: good.test\r\nX: a\r\n  Host: evil.test\r\n\r\n", Some(Ok("good.test")));
}

#[test]
fn eg06_requests_that_can_be_read_in_two_ways_are_not_read() {
    let host = |why| Some(Err(NameFault::Host(why)));
    let (several, malformed) = (Some(Err(NameFault::Several)), Some(Err(NameFault::Malformed)));
    http("GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n", several);
    http("GET / HTTP/1.1\r\nHost: good.test\r\nhost: good.test\r\n\r\n", several);
    http("GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", several);
    http("CONNECT evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n", several);
    http("GET http://good.test@evil.test/ HTTP/1.1\r\n\r\n", host(HostError::Character('@')));
    http("GET http:///a HTTP/1.1\r\nHost: good.test\r\n\r\n", host(HostError::Empty));
    http("GET / HTTP/1.1\r\nHost : good.test\r\n\r\n", malformed);
    http("GET / HTTP/1.1\r\nHost\r\n\r\n", malformed);
    http("GET / HTTP/1.1\r\nHost: good.test\r\n .evil.test\r\n\r\n", malformed);
    http("GET / HTTP/1.1\r\nHost: good.test:80:80\r\n\r\n", malformed);
    http("GET / HTTP/1.1\r\nHost: good.test:http\r\n\r\n", malformed);
    http("GET / HTTP/1.1\r\nHost:\r\n\r\n", host(HostError::Empty));
    http("GET / HTTP/1.1\r\nHost: good.test evil.test\r\n\r\n", host(HostError::Character(' ')));
    http("GET / HTTP/1.1\r\nHost: evil.test\0.good.test\r\n\r\n", host(HostError::Character('\0')));
    http("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", host(HostError::Number));
    http("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", malformed);
}

#[test]
fn what_is_no_request_is_other() {
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"SSH-2.0-x\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1.2\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET\t/ HTTP/1.1\r\n",
        b"get k\r\n",
        b"OPTIONS rtsp://good.test RTSP/1.0\r\n",
        b"EHLO good.test\r\n",
        b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        b"{\"a\":1}",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ] {
        check(bytes, &Peeked::Other);
    }
    let endless = format!("GET / HTTP/1.1\r\nHost: good.test\r\nX: {}", "a".repeat(PEEK_BYTES_MAX));
    assert_eq!(peek(&endless.as_bytes()[..PEEK_BYTES_MAX - 1]), Peeked::More);
    assert_eq!(peek(endless.as_bytes()), Peeked::Other);
}

proptest! {
    #[test]
    fn a_cut_never_changes_the_answer(
        mut bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            Just(hello(&[server_name(&[(0, b"good.test")]), extension(0xfe0d, b"x")])),
            Just(records(&message(&[server_name(&[(0, b"good.test")])]), 9)),
            "(GET|get|PRI|CONNECT) (/|\\*|http://a.test/|b:1) HTTP/[12]\\.[01]\r?\n((Host|X|host ): ?[ab:.]{0,6}\r?\n){0,3}\r?\n"
                .prop_map(String::into_bytes),
        ],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let mut known = Peeked::More;
        for end in 0..=bytes.len() {
            let now = peek(&bytes[..end]);
            prop_assert!(known == Peeked::More || now == known, "at {}: {:?} became {:?}", end, known, now);
            known = now;
        }
    }
}
