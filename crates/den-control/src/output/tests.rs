use std::os::unix::fs::FileExt;

use den_model::{StepEnd, StepKind};
use den_wire::log::{EndRecord, RecordHead};
use tokio::sync::Semaphore;

use super::*;

fn step(output_bytes: u64) -> Arc<Step> {
    let begun = Step::begun(1, StepKind::Exec, vec!["x".to_owned()], "test".to_owned(), 0);
    Arc::new(Step { ended_at: Some(1), end: Some(StepEnd::Exited { code: 0 }), output_bytes, ..begun })
}

struct Running {
    file: Arc<File>,
    log_bytes: u64,
    output_bytes: u64,
    progress: watch::Sender<Progress>,
    turns: Arc<Semaphore>,
}

impl Running {
    fn new() -> Self {
        let (progress, _) = watch::channel(Progress { log_bytes: 0, output_bytes: 0, end: None });
        let file = Arc::new(tempfile::tempfile().unwrap());
        Self { file, log_bytes: 0, output_bytes: 0, progress, turns: Arc::new(Semaphore::new(1000)) }
    }

    fn put(&mut self, stream: Stream, payload: &[u8]) {
        let head = RecordHead { stream, length: payload.len() as u32, time: 0, offset: self.output_bytes };
        let record = [&head.to_bytes()[..], payload].concat();
        self.file.write_all_at(&record, self.log_bytes).unwrap();
        self.log_bytes += record.len() as u64;
        if stream != Stream::End {
            self.output_bytes += payload.len() as u64;
        }
        let (log_bytes, output_bytes) = (self.log_bytes, self.output_bytes);
        self.progress.send_modify(|progress| (progress.log_bytes, progress.output_bytes) = (log_bytes, output_bytes));
    }

    fn end(&mut self) {
        self.put(Stream::End, &EndRecord::Exited(0).to_bytes());
        let end = Some(step(self.output_bytes));
        self.progress.send_modify(|progress| progress.end = end);
    }

    fn reader(&self, from: u64, follow: Follow, only: Option<OutputStream>) -> OutputReader {
        OutputReader::new(Reading {
            name: "web".parse().unwrap(),
            number: 1,
            progress: self.progress.subscribe(),
            log: Some(Arc::clone(&self.file)),
            from,
            follow,
            only,
            turn: Arc::clone(&self.turns).try_acquire_owned().unwrap(),
        })
    }
}

async fn all(mut reader: OutputReader) -> (Vec<u8>, u64, bool) {
    let (mut bytes, mut cut, mut ended) = (Vec::new(), 0, false);
    while let Some(item) = reader.next().await.unwrap() {
        assert!(!ended, "nothing follows the end");
        match item {
            OutputItem::Data { bytes: more, .. } => bytes.extend(more),
            OutputItem::Cut { bytes, .. } => cut += bytes,
            OutputItem::End(_) => ended = true,
        }
    }
    (bytes, cut, ended)
}

#[tokio::test]
async fn readers_follow_to_the_end() {
    let mut step = Running::new();
    let readers: Vec<_> = (0..20).map(|from| tokio::spawn(all(step.reader(from, Follow::ToTheEnd, None)))).collect();
    let mut whole = Vec::new();
    for n in 0..50_u8 {
        let piece = vec![n; 1000 + usize::from(n)];
        whole.extend(&piece);
        step.put(Stream::Stdout, &piece);
        tokio::task::yield_now().await;
    }
    step.end();
    for (from, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.await.unwrap(), (whole[from..].to_vec(), 0, true));
    }
}

#[tokio::test]
async fn a_reader_of_the_present_does_not_wait() {
    let mut step = Running::new();
    step.put(Stream::Stdout, b"abc");
    assert_eq!(all(step.reader(0, Follow::Present, None)).await, (b"abc".to_vec(), 0, false));
    step.end();
    assert_eq!(all(step.reader(1, Follow::Present, None)).await, (b"bc".to_vec(), 0, true));
}

#[tokio::test]
async fn one_stream_alone() {
    let mut step = Running::new();
    step.put(Stream::Stdout, b"out");
    step.put(Stream::Stderr, b"err");
    step.put(Stream::Stdout, b"put");
    step.end();
    let only = |stream| step.reader(0, Follow::ToTheEnd, Some(stream));
    assert_eq!(all(only(OutputStream::Stdout)).await.0, b"output");
    assert_eq!(all(only(OutputStream::Stderr)).await.0, b"err");
}

#[tokio::test]
async fn a_log_that_is_gone_is_one_cut() {
    let running = Running::new();
    running.progress.send_modify(|progress| progress.end = Some(step(77)));
    let mut reader = running.reader(7, Follow::ToTheEnd, None);
    reader.cursor = None;
    assert_eq!(all(reader).await, (vec![], 70, true));
}

#[tokio::test]
async fn a_torn_log_ends_with_a_cut() {
    let mut running = Running::new();
    running.put(Stream::Stdout, b"abc");
    running.progress.send_modify(|progress| progress.end = Some(step(5)));
    assert_eq!(all(running.reader(0, Follow::ToTheEnd, None)).await, (b"abc".to_vec(), 2, true));
}

#[tokio::test]
async fn a_damaged_log_is_said_once() {
    let mut running = Running::new();
    running.put(Stream::Stdout, b"abc");
    running.file.write_all_at(&[9; 100], running.log_bytes).unwrap();
    running.progress.send_modify(|progress| progress.end = Some(step(5)));
    let mut reader = running.reader(0, Follow::ToTheEnd, None);
    assert!(matches!(reader.next().await, Ok(Some(OutputItem::Data { .. }))));
    assert_eq!(reader.next().await.unwrap_err().code, "log_damaged");
    assert_eq!(reader.next().await.unwrap(), None);
}
