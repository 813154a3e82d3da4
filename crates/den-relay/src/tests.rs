//! Real sockets of both kinds; the far ends are what a client and a server would hold.

use std::future::pending;
use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(listener.accept(), TcpStream::connect(listener.local_addr().unwrap()));
    (near.unwrap().0, far.unwrap())
}

/// `client ═tcp═ relay ═unix═ relay ═tcp═ server`, as it is in use.
async fn chain() -> (TcpStream, TcpStream, [JoinHandle<End>; 2]) {
    let (client_near, client) = tcp_pair().await;
    let (server_near, server) = tcp_pair().await;
    let (host, agent) = UnixStream::pair().unwrap();
    let relays = [
        tokio::spawn(relay(client_near, host, b"", pending())),
        tokio::spawn(relay(agent, server_near, b"", pending())),
    ];
    (client, server, relays)
}

async fn ends(relays: [JoinHandle<End>; 2]) -> [End; 2] {
    let [one, two] = relays;
    [one.await.unwrap(), two.await.unwrap()]
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (mut client, mut server, relays) = chain().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = String::new();
    server.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answered = String::new();
    client.read_to_string(&mut answered).await.unwrap();
    assert_eq!(answered, "answer");
    assert_eq!(ends(relays).await, [End::Whole; 2]);

    let (mut client, mut server, relays) = chain().await;
    server.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    client.write_all(b"still").await.unwrap();
    client.shutdown().await.unwrap();
    let mut said = String::new();
    server.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "still");
    assert_eq!(ends(relays).await, [End::Whole; 2]);
}

#[tokio::test]
async fn a_break_arrives_as_a_break_and_after_what_was_said() {
    for server_breaks in [true, false] {
        let (client, server, relays) = chain().await;
        let (mut breaks, mut sees) = if server_breaks { (server, client) } else { (client, server) };
        breaks.write_all(b"last words").await.unwrap();
        let mut heard = [0; 10];
        sees.read_exact(&mut heard).await.unwrap();
        breaks.set_zero_linger().unwrap();
        drop(breaks);
        let error = sees.read(&mut heard).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{server_breaks}");
        assert_eq!(ends(relays).await, [End::Broken; 2]);
    }
}

#[tokio::test]
async fn a_server_that_does_not_listen_to_the_end_is_heard() {
    let (mut client, mut server, relays) = chain().await;
    client.write_all(&[7; 100_000]).await.unwrap();
    server.read_exact(&mut [0; 10]).await.unwrap();
    server.write_all(b"enough").await.unwrap();
    let mut heard = [0; 6];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"enough");
    drop(server);
    let mut rest = Vec::new();
    let broken = loop {
        match client.write_all(&[7; 100_000]).await {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(broken.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{broken}");
    let _ = client.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    assert_eq!(ends(relays).await, [End::Broken; 2]);
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte() {
    let bytes: Vec<u8> = (0..8_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let (mut client, server, relays) = chain().await;
    let (mut read, mut write) = server.into_split();
    let sent = bytes.clone();
    let up = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        got
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    tokio::io::copy(&mut read, &mut write).await.unwrap();
    write.shutdown().await.unwrap();
    assert!(up.await.unwrap() == bytes);
    drop(read);
    assert_eq!(ends(relays).await, [End::Whole; 2]);
}

#[tokio::test]
async fn until_breaks_it_and_ahead_goes_first() {
    let (near, mut client) = tcp_pair().await;
    let (host, mut agent) = UnixStream::pair().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(relay(near, host, b"ahead ", async { drop(stopped.await) }));
    client.write_all(b"behind").await.unwrap();
    let mut said = [0; 12];
    agent.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"ahead behind");
    stop.send(()).unwrap();
    assert_eq!(client.read(&mut said).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(running.await.unwrap(), End::Broken);
}
