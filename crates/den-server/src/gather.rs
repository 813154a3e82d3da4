//! Output gathered into one JSON value, under a limit.

use base64::{Engine, engine::general_purpose::STANDARD};
use den_api::{
    ExecResult, OutputView, StepView,
    step::{EXEC_OUTPUT_BYTES_MAX, OUTPUT_VIEW_BYTES_MAX},
};
use den_control::{OutputItem, OutputStream};
use futures_util::{Stream, StreamExt};

use crate::error::ApiError;

/// Waits for a step's end and keeps the first [`EXEC_OUTPUT_BYTES_MAX`] of each stream.
pub(crate) async fn result(items: impl Stream<Item = Result<OutputItem, ApiError>>) -> Result<ExecResult, ApiError> {
    let mut items = std::pin::pin!(items);
    let (mut stdout, mut stderr, mut truncated) = (Vec::new(), Vec::new(), false);
    while let Some(item) = items.next().await {
        match item? {
            OutputItem::Data { stream, bytes, .. } => {
                let kept = if stream == OutputStream::Stderr { &mut stderr } else { &mut stdout };
                let room = EXEC_OUTPUT_BYTES_MAX - kept.len();
                truncated |= bytes.len() > room;
                kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            OutputItem::Cut { .. } => truncated = true,
            OutputItem::End(step) => {
                let (stdout, stdout_base64) = as_text(stdout);
                let (stderr, stderr_base64) = as_text(stderr);
                return Ok(ExecResult { step: *step, stdout, stderr, stdout_base64, stderr_base64, truncated });
            }
        }
    }
    Err(ApiError::internal("a reader that follows ended before its step did"))
}

/// The bytes as text, or as base64 where they are none. A character that the limit cut in two is
/// left out, for it says nothing against the rest.
fn as_text(mut bytes: Vec<u8>) -> (String, Option<String>) {
    if bytes.len() == EXEC_OUTPUT_BYTES_MAX
        && let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => (String::new(), Some(STANDARD.encode(error.as_bytes()))),
    }
}

/// A page of output in the making.
pub(crate) struct PageOf {
    offset: u64,
    next: u64,
    bytes: Vec<u8>,
    cut_bytes: u64,
    ended: bool,
}

impl PageOf {
    pub(crate) fn new(from: u64) -> Self {
        Self { offset: from, next: from, bytes: Vec::new(), cut_bytes: 0, ended: false }
    }

    /// Takes what fits; false once nothing more does.
    pub(crate) fn take(&mut self, item: OutputItem) -> bool {
        match item {
            OutputItem::Data { offset, bytes, .. } => {
                let fits = bytes.len().min(OUTPUT_VIEW_BYTES_MAX - self.bytes.len());
                self.bytes.extend_from_slice(&bytes[..fits]);
                self.next = offset + fits as u64;
                fits == bytes.len() && self.bytes.len() < OUTPUT_VIEW_BYTES_MAX
            }
            OutputItem::Cut { offset, bytes } => {
                self.cut_bytes = self.cut_bytes.saturating_add(bytes);
                self.next = offset.saturating_add(bytes);
                true
            }
            OutputItem::End(_) => {
                self.ended = true;
                false
            }
        }
    }

    pub(crate) fn view(self, step: StepView) -> OutputView {
        OutputView {
            offset: self.offset,
            next: self.next,
            data_base64: STANDARD.encode(&self.bytes),
            text: String::from_utf8(self.bytes).ok(),
            cut_bytes: self.cut_bytes,
            ended: self.ended,
            step,
        }
    }
}
