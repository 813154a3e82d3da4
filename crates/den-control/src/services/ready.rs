//! Whether a service is ready: asked again and again, within a time that stands still with its computer.

use std::{
    fs::File,
    os::fd::AsFd,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use den_machine::StepEvent;
use den_model::Ready;
use den_wire::{
    agent::End,
    log::{KEEP_BYTES_MIN, RECORD_HEAD_BYTES, RecordHead},
};

use super::supervise::Watch;
use crate::{
    Error, exec,
    limits::{READY_ASK_MAX, READY_PAUSES},
};

/// Numbers of questions to agents: no step's, for those count from 1.
static QUESTIONS: AtomicU64 = AtomicU64::new(1 << 63);

/// How much of what a check printed is told, in characters.
const SAID_CHARS: usize = 200;

/// Waits until a check holds.
///
/// Errors: why it did not within that time.
pub(super) async fn holds(watch: &Watch, check: &Ready, within: Duration) -> Result<(), String> {
    let mut pauses = READY_PAUSES.iter().copied();
    let (mut left, mut pause) = (within, Duration::ZERO);
    loop {
        if !watch.awake().await {
            // Whoever awaits this hears of it by another way.
            return std::future::pending().await;
        }
        let began = Instant::now();
        let asked = tokio::time::timeout(READY_ASK_MAX.min(left), ask(watch, check)).await;
        let why = match asked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => "no answer".to_owned(),
        };
        pause = pauses.next().unwrap_or(pause);
        tokio::time::sleep(pause.min(left.saturating_sub(began.elapsed()))).await;
        left = left.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(format!("not ready within {within:?}: `{check}`: {why}"));
        }
    }
}

async fn ask(watch: &Watch, check: &Ready) -> Result<(), String> {
    match check {
        Ready::Port(port) => {
            watch.machine.link().dial(*port).await.map(drop).map_err(|_| "nobody takes a connection".to_owned())
        }
        Ready::Exec(command) => run(watch, command).await.unwrap_or_else(|error| Err(error.message)),
    }
}

/// Runs a check as the service runs. It is no step: nothing was asked for, and it leaves nothing behind.
async fn run(watch: &Watch, command: &str) -> Result<Result<(), String>, Error> {
    let request = den_api::ExecRequest {
        argv: ["sh", "-c", command].map(str::to_owned).to_vec(),
        timeout_ms: Some(READY_ASK_MAX.as_millis() as u64),
        keep_bytes: Some(KEEP_BYTES_MIN),
        ..super::command(&watch.service.spec)
    };
    let mut exec = exec::check_service(&watch.inner, &watch.handle, request)?;
    (exec.step, exec.whole) = (QUESTIONS.fetch_add(1, Ordering::Relaxed), true);
    let output = rustix::fs::memfd_create("den-ready", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| Error::internal("no memory for a check's output").because(std::io::Error::from(error)))?;
    let mut link =
        watch.machine.link().exec(&exec, output.as_fd()).await.map_err(|error| watch.handle.link_error(error))?;
    let end = loop {
        match link.events.next().await.map_err(|error| watch.handle.link_error(error))? {
            StepEvent::Progress { .. } => {}
            StepEvent::Ended { end, .. } => break end,
        }
    };
    let ended = match end {
        End::Exited { code: 0 } => return Ok(Ok(())),
        End::Exited { code } => format!("it ended with {code}"),
        End::Signaled { signal } => format!("signal {signal} ended it"),
        End::TimedOut => format!("it took longer than {READY_ASK_MAX:?}"),
        End::NotStarted { message, .. } => message,
    };
    let said = said(&File::from(output));
    Ok(Err(if said.is_empty() { ended } else { format!("{ended}: {said}") }))
}

/// The last line of the first that a check printed.
fn said(output: &File) -> String {
    let mut bytes = [0; RECORD_HEAD_BYTES + 4096];
    let count = output.read_at(&mut bytes, 0).unwrap_or(0);
    let Some(head) = bytes.first_chunk().and_then(RecordHead::parse) else { return String::new() };
    let end = (RECORD_HEAD_BYTES + head.length as usize).min(count).max(RECORD_HEAD_BYTES);
    let text = String::from_utf8_lossy(&bytes[RECORD_HEAD_BYTES..end]);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(SAID_CHARS).collect()
}
