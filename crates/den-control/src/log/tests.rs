use std::io::Write;

use super::*;

/// Writes logs as an agent does, and otherwise.
struct Log {
    bytes: Vec<u8>,
    offset: u64,
}

impl Log {
    fn new() -> Self {
        Self { bytes: Vec::new(), offset: 0 }
    }

    fn raw(mut self, stream: Stream, offset: u64, payload: &[u8]) -> Self {
        let head = RecordHead { stream, length: payload.len() as u32, time: 0, offset };
        self.bytes.extend(head.to_bytes());
        self.bytes.extend(payload);
        self
    }

    fn data(self, stream: Stream, payload: &[u8]) -> Self {
        let offset = self.offset;
        let mut log = self.raw(stream, offset, payload);
        log.offset += payload.len() as u64;
        log
    }

    fn lost(mut self, bytes: u64) -> Self {
        self.offset += bytes;
        self
    }

    fn end(self) -> Self {
        let offset = self.offset;
        self.raw(Stream::End, offset, &EndRecord::Exited(0).to_bytes())
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Puts a Cut record at `place` that leads to `target`, and zeros between.
    fn punch(&mut self, place: u64, target: u64) {
        let head = RecordHead { stream: Stream::Cut, length: 8, time: 0, offset: 0 };
        let (from, to) = (place as usize, target as usize);
        self.bytes[from..to].fill(0);
        self.bytes[from..from + RECORD_HEAD_BYTES].copy_from_slice(&head.to_bytes());
        self.bytes[from + RECORD_HEAD_BYTES..from + 32].copy_from_slice(&target.to_le_bytes());
    }

    fn file(&self) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.bytes).unwrap();
        Arc::new(file)
    }
}

/// Reads a final log to its end: the pieces with neighbours joined, or where it is damaged.
async fn read(file: &Arc<File>, from: u64) -> Result<Vec<Piece>, u64> {
    let limit = file.metadata().unwrap().len();
    let mut cursor = Cursor::new(Arc::clone(file), from);
    let mut pieces = VecDeque::new();
    for _ in 0..1_000_000 {
        match cursor.fill(limit, Growth::Final, &mut pieces).await {
            Ok(Filled::Some) => {}
            Ok(Filled::Nothing) => return Ok(joined(pieces)),
            Err(Trouble::Damaged(at)) => return Err(at),
            Err(Trouble::Io(error)) => panic!("{error}"),
        }
    }
    panic!("it does not come to an end");
}

fn joined(pieces: impl IntoIterator<Item = Piece>) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), &piece) {
            (Some(Piece::Data { stream: s, offset: o, bytes: b }), Piece::Data { stream, offset, bytes })
                if s == stream && *o + b.len() as u64 == *offset =>
            {
                *b = [b.as_ref(), bytes].concat().into();
            }
            _ => all.push(piece),
        }
    }
    all
}

fn data(stream: Stream, offset: u64, bytes: &[u8]) -> Piece {
    Piece::Data { stream, offset, bytes: Bytes::copy_from_slice(bytes) }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_log_is_read_from_any_byte() {
    let log =
        Log::new().data(Stream::Stdout, b"hello ").data(Stream::Stdout, b"world").data(Stream::Stderr, b"oh").end();
    let all = b"hello worldoh";
    let file = log.file();
    for from in 0..=all.len() {
        let mut expected = Vec::new();
        if from < 11 {
            expected.push(data(Stream::Stdout, from as u64, &all[from..11]));
        }
        if from < 13 {
            let first = from.max(11);
            expected.push(data(Stream::Stderr, first as u64, &all[first..]));
        }
        assert_eq!(read(&file, from as u64).await, Ok(expected), "from {from}");
    }
    assert_eq!(read(&file, 1000).await, Ok(vec![]));
}

#[tokio::test]
async fn large_and_small_records_come_back_as_they_were() {
    let mut log = Log::new();
    let mut whole = Vec::new();
    for (seed, length) in
        [1, 100, RECORD_BYTES_MAX, 0, 7, 200_000, RECORD_BYTES_MAX, 3].into_iter().cycle().take(40).enumerate()
    {
        let bytes = noise(length, seed as u64);
        whole.extend(&bytes);
        log = log.data(Stream::Stdout, &bytes);
    }
    let file = log.end().file();
    for from in [0, 1, 99, 262_000, 1 << 20, (1 << 20) + 77_777, whole.len() - 1] {
        let pieces = read(&file, from as u64).await.unwrap();
        assert_eq!(pieces, vec![data(Stream::Stdout, from as u64, &whole[from..])], "from {from}");
    }
}

#[tokio::test]
async fn what_was_lost_is_said() {
    let file = Log::new().data(Stream::Stdout, b"abc").lost(10).data(Stream::Stdout, b"xyz").lost(4).end().file();
    let cut = |offset, bytes| Piece::Cut { offset, bytes };
    let end = [data(Stream::Stdout, 13, b"xyz"), cut(16, 4)];
    let check = async |from, first: &[Piece]| {
        assert_eq!(read(&file, from).await, Ok([first, &end].concat()), "from {from}");
    };
    check(0, &[data(Stream::Stdout, 0, b"abc"), cut(3, 10)]).await;
    check(5, &[cut(5, 8)]).await;
    check(13, &[]).await;
    assert_eq!(read(&file, 18).await, Ok(vec![cut(18, 2)]));
}

/// A log of 1 KiB records, its boundaries, and its output.
fn long(records: u64) -> (Log, Vec<u64>, Vec<u8>) {
    let (mut log, mut places, mut whole) = (Log::new(), Vec::new(), Vec::new());
    for seed in 0..records {
        let bytes = noise(1000, seed);
        places.push(log.len());
        whole.extend(&bytes);
        log = log.data(Stream::Stdout, &bytes);
    }
    (log, places, whole)
}

#[tokio::test]
async fn a_hole_is_passed_over_and_said() {
    let (mut log, places, whole) = long(4000);
    let edge = places.iter().position(|&place| place >= HEAD_KEEP_BYTES).unwrap();
    log.punch(places[edge], places[3000]);
    let file = log.end().file();
    let (before, after) = (edge * 1000, 3000 * 1000);
    for from in [0, 5, before, before + 17, after - 1, after, after + 1] {
        let mut expected = Vec::new();
        if from < before {
            expected.push(data(Stream::Stdout, from as u64, &whole[from..before]));
        }
        if from < after {
            let first = from.max(before);
            expected.push(Piece::Cut { offset: first as u64, bytes: (after - first) as u64 });
        }
        let last = from.max(after);
        expected.push(data(Stream::Stdout, last as u64, &whole[last..]));
        assert_eq!(read(&file, from as u64).await, Ok(expected), "from {from}");
    }
}

#[tokio::test]
async fn a_reader_that_a_hole_overtakes_gives_out_no_zeros() {
    let (mut log, places, whole) = long(4000);
    let edge = places.iter().position(|&place| place >= HEAD_KEEP_BYTES).unwrap();
    let file = log.file();
    let limit = log.len();
    for met in [100 << 10, (1 << 20) + 1234, 2 << 20] {
        file.write_all_at(&log.bytes, 0).unwrap();
        let mut cursor = Cursor::new(Arc::clone(&file), 0);
        let mut pieces = VecDeque::new();
        while cursor.pos < met {
            cursor.fill(limit, Growth::Growing, &mut pieces).await.unwrap();
        }
        let mut punched = Log { bytes: log.bytes.clone(), offset: 0 };
        punched.punch(places[edge], places[3500]);
        file.write_all_at(&punched.bytes, 0).unwrap();
        while cursor.fill(limit, Growth::Growing, &mut pieces).await.unwrap() == Filled::Some {}
        let mut next = 0;
        for piece in pieces {
            match piece {
                Piece::Data { offset, bytes, .. } => {
                    assert_eq!(offset, next);
                    assert!(whole[offset as usize..].starts_with(&bytes), "other bytes at {offset}");
                    next += bytes.len() as u64;
                }
                Piece::Cut { offset, bytes } => {
                    assert_eq!(offset, next);
                    next += bytes;
                    assert_eq!(next, 3500 * 1000);
                }
            }
        }
        assert_eq!(next, whole.len() as u64);
    }
    log.punch(places[edge], places[3999]);
}

#[tokio::test]
async fn garbage_is_refused_and_never_followed_for_ever() {
    let good = || Log::new().data(Stream::Stdout, b"abc");
    let after = good().len();
    let check = async |log: Log, expected: Result<usize, u64>| {
        assert_eq!(read(&log.file(), 0).await.map(|pieces| pieces.len()), expected);
    };
    check(Log { bytes: vec![0; 4096], offset: 0 }, Err(0)).await;
    check(Log { bytes: noise(1 << 20, 3), offset: 0 }, Err(0)).await;
    check(good().raw(Stream::Stdout, 1, b"goes back"), Err(after)).await;
    check(good().raw(Stream::Stdout, u64::MAX, b"too far"), Err(after)).await;
    // A cut to itself, back, beyond the end, of a wrong length.
    check(good().raw(Stream::Cut, 3, &after.to_le_bytes()), Err(after)).await;
    check(good().raw(Stream::Cut, 3, &0_u64.to_le_bytes()), Err(after)).await;
    check(good().raw(Stream::Cut, 3, &(1_u64 << 60).to_le_bytes()), Err(after)).await;
    check(good().raw(Stream::Cut, 3, &[0; 9]), Err(after)).await;
    // A torn end is what a sudden death leaves.
    check(Log { bytes: good().end().bytes[..after as usize + 10].to_vec(), offset: 0 }, Ok(1)).await;
    check(Log { bytes: good().bytes[..after as usize - 1].to_vec(), offset: 0 }, Ok(1)).await;
    check(Log::new(), Ok(0)).await;
    // A huge file of nothing.
    let file = Log::new().file();
    file.set_len(1 << 43).unwrap();
    assert_eq!(read(&file, 0).await, Err(0));
}

#[tokio::test]
async fn invented_logs_neither_panic_nor_loop() {
    for seed in 0..300_u64 {
        let mut log = Log::new();
        for (n, byte) in noise(12, seed).into_iter().enumerate() {
            let payload = noise(usize::from(byte) * 40, n as u64);
            log = match byte % 6 {
                0 => log.raw(Stream::Cut, 0, &(u64::from(byte) * 97).to_le_bytes()),
                1 => log.lost(u64::from(byte)).data(Stream::Stderr, &payload),
                2 => log.raw(Stream::Pty, u64::from(byte), &payload),
                _ => log.data(Stream::Stdout, &payload),
            };
        }
        let at = noise(8, seed + 1000);
        let place = u64::from_le_bytes(at.try_into().unwrap()) as usize % log.bytes.len();
        log.bytes[place] ^= 0x41;
        let file = log.file();
        for from in [0, 1, 5000] {
            let _ = read(&file, from).await;
        }
    }
}

#[test]
fn the_end_is_found_at_the_end() {
    let log = Log::new().data(Stream::Stdout, b"abc").end();
    let last = end_of(&log.file()).unwrap().expect("an end");
    assert_eq!((last.end, last.output_bytes), (EndRecord::Exited(0), 3));
    assert_eq!(end_of(&Log::new().data(Stream::Stdout, b"abc").file()).unwrap(), None);
    assert_eq!(end_of(&Log::new().file()).unwrap(), None);
    let log = Log::new().data(Stream::Stderr, b"nope: command not found\n").end();
    assert_eq!(first_words(&log.file()), "nope: command not found");
    assert_eq!(first_words(&Log::new().file()), "");
}

/// How fast a log is read: `cargo test --release -p den-control -- --ignored --nocapture speed`.
#[tokio::test]
#[ignore = "it measures"]
async fn speed_of_reading() {
    for (length, name) in [(RECORD_BYTES_MAX, "256 KiB"), (4096, "4 KiB"), (100, "100 B")] {
        let mut log = Log::new();
        while log.len() < 256 << 20 {
            log = log.data(Stream::Stdout, &vec![7; length]);
        }
        let file = log.end().file();
        let limit = file.metadata().unwrap().len();
        let begun = std::time::Instant::now();
        let mut cursor = Cursor::new(Arc::clone(&file), 0);
        let (mut pieces, mut total) = (VecDeque::new(), 0);
        while cursor.fill(limit, Growth::Growing, &mut pieces).await.unwrap() == Filled::Some {
            for piece in pieces.drain(..) {
                let Piece::Data { bytes, .. } = piece else { continue };
                total += bytes.len();
            }
        }
        let taken = begun.elapsed();
        let begun = std::time::Instant::now();
        let mut cursor = Cursor::new(Arc::clone(&file), total as u64 - 1);
        while cursor.fill(limit, Growth::Growing, &mut pieces).await.unwrap() == Filled::Some {}
        println!(
            "records of {name}: {:.0} MB/s; to the last byte in {:?}",
            total as f64 / taken.as_secs_f64() / 1e6,
            begun.elapsed()
        );
    }
}
