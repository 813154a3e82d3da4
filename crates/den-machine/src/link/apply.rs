//! Sending the changes of a merge, from a thread that may block on the files it reads.
//!
//! ```text
//! Apply · op · op data… end · op · … · end ──► agent: puts aside, checks, commits ──► Done or Failed
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;

use den_wire::agent::{Apply, ApplyAction, ApplyOp, Failure, FailureKind, Reply, Request};
use den_wire::frame::blocking::{read_frame, write_frame, write_message};
use den_wire::{DATA_CHUNK_BYTES, FrameKind};

use super::{LinkError, unexpected};

/// What a file will hold.
#[derive(Debug)]
pub enum ApplyContent {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What this file holds from where it stands to its end.
    File(File),
}

pub(super) fn apply<C>(stream: UnixStream, step: u64, ops: &[ApplyOp], content: C) -> Result<(), LinkError>
where
    C: FnMut(usize) -> io::Result<ApplyContent>,
{
    let mut out = BufWriter::with_capacity(DATA_CHUNK_BYTES, &stream);
    let sent = send(&mut out, step, ops, content);
    match sent {
        Ok(()) => {}
        // What the computer holds could not be read here: the agent sees the end and clears up.
        Err(Stopped::Content(path, error)) => {
            let subject = format!("{}: {error}", String::from_utf8_lossy(&path));
            let errno = error.raw_os_error();
            return Err(LinkError::Failed(Failure { kind: FailureKind::Other, subject, errno }));
        }
        // The agent may have said why it takes no more.
        Err(Stopped::Sending(error)) => {
            return match answer(&stream) {
                Err(refusal @ LinkError::Failed(_)) => Err(refusal),
                _ => Err(error.into()),
            };
        }
    }
    drop(out);
    answer(&stream)
}

enum Stopped {
    Content(Vec<u8>, io::Error),
    Sending(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Sending(error)
    }
}

fn send<C>(out: &mut impl Write, step: u64, ops: &[ApplyOp], mut content: C) -> Result<(), Stopped>
where
    C: FnMut(usize) -> io::Result<ApplyContent>,
{
    write_message(out, &Request::Apply(Apply { step, ops: ops.len() as u64, root: None }))?;
    let mut buffer = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        write_message(out, op)?;
        if !matches!(op.action, ApplyAction::File(_)) {
            continue;
        }
        let at = |error| Stopped::Content(op.path.to_vec(), error);
        match content(index).map_err(at)? {
            ApplyContent::Bytes(bytes) => {
                for chunk in bytes.chunks(DATA_CHUNK_BYTES) {
                    write_frame(out, FrameKind::Data, chunk)?;
                }
            }
            ApplyContent::File(mut file) => {
                buffer.resize(DATA_CHUNK_BYTES, 0);
                loop {
                    match file.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(read) => write_frame(out, FrameKind::Data, &buffer[..read])?,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(at(error)),
                    }
                }
            }
        }
        write_frame(out, FrameKind::End, &[])?;
    }
    write_frame(out, FrameKind::End, &[])?;
    Ok(out.flush()?)
}

fn answer(mut stream: &UnixStream) -> Result<(), LinkError> {
    match read_frame(&mut stream).map_err(LinkError::Wire)?.message::<Reply>()? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(LinkError::Failed(failure)),
        _ => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(path: &str, action: ApplyAction) -> ApplyOp {
        ApplyOp { path: path.as_bytes().to_vec().into(), expect: None, action }
    }

    #[test]
    fn what_is_sent_is_what_an_agent_reads() {
        let (here, mut there) = UnixStream::pair().expect("a pair");
        let ops = vec![
            op("/d", ApplyAction::Directory(Default::default())),
            op("/d/f", ApplyAction::File(Default::default())),
            op("/x", ApplyAction::Remove),
        ];
        let sent = ops.clone();
        let bytes = vec![7; DATA_CHUNK_BYTES + 1];
        let content = bytes.clone();
        let sender =
            std::thread::spawn(move || apply(here, 9, &sent, move |_| Ok(ApplyContent::Bytes(content.clone()))));
        let first = read_frame(&mut there).expect("a frame");
        assert_eq!(
            first.message::<Request>().expect("a request"),
            Request::Apply(Apply { step: 9, ops: 3, root: None })
        );
        let mut back = Vec::new();
        let mut data = Vec::new();
        loop {
            let frame = read_frame(&mut there).expect("a frame");
            match frame.kind {
                FrameKind::Message => back.push(frame.message::<ApplyOp>().expect("an operation")),
                FrameKind::Data => data.extend(frame.payload),
                FrameKind::End if back.len() == 3 => break,
                FrameKind::End => {}
            }
        }
        assert_eq!((back, data), (ops, bytes));
        write_message(&mut there, &Reply::Done).expect("sent");
        assert!(sender.join().expect("no panic").is_ok());
    }

    #[test]
    fn a_refusal_before_the_end_is_the_error() {
        let (here, mut there) = UnixStream::pair().expect("a pair");
        let ops = vec![op("/f", ApplyAction::File(Default::default()))];
        let failure = Failure { kind: FailureKind::NoSpace, subject: "/f".into(), errno: Some(28) };
        write_message(&mut there, &Reply::Failed(failure.clone())).expect("sent");
        drop(there);
        let done = apply(here, 1, &ops, |_| Ok(ApplyContent::Bytes(vec![0; 4 << 20])));
        assert!(matches!(done, Err(LinkError::Failed(said)) if said == failure));
    }
}
