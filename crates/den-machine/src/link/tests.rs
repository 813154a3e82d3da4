//! A link to an agent that was replaced by whoever has its computer.

use den_wire::agent::{FileStat, Reply};
use den_wire::frame::message_bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;

use super::{ENTRIES_BYTES_MAX, ENTRIES_MAX, Link, LinkError};

/// Lists at an agent that says `reply` without end.
async fn list_of_endless(reply: Reply) -> LinkError {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let listener = UnixListener::bind(&path).expect("a listener");
    let agent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a request");
        let bytes = message_bytes(&reply);
        while stream.write_all(&bytes).await.is_ok() {}
    });
    let error = Link::new(path).list(b"/", 1).await.expect_err("no end");
    agent.await.expect("it notices that nobody listens");
    error
}

fn entry(path: usize, user: usize) -> FileStat {
    FileStat {
        path: vec![b'x'; path].into(),
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: 0,
        target: None,
        user: Some("u".repeat(user)),
        group: None,
        inode: 1,
        links: 1,
        blocks: 0,
    }
}

#[tokio::test]
async fn a_listing_without_end_is_cut() {
    let error = list_of_endless(Reply::Entries(vec![entry(1, 1); 1000])).await;
    assert!(matches!(error, LinkError::TooMuch { limit: ENTRIES_MAX, .. }), "{error:?}");
    let error = list_of_endless(Reply::Entries(vec![entry(1, 500_000)])).await;
    assert!(matches!(error, LinkError::TooMuch { limit: ENTRIES_BYTES_MAX, .. }), "{error:?}");
    // Of these there could be as many as one likes.
    let error = list_of_endless(Reply::Entries(Vec::new())).await;
    assert!(matches!(error, LinkError::Failed(_)), "{error:?}");
}
