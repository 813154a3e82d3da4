//! A bar for copies that take long enough to be watched.

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Shorter copies show no bar.
const SILENT: Duration = Duration::from_millis(400);

/// Counts bytes; shows them where standard error is a terminal. Clones count together.
#[derive(Clone)]
pub struct Progress {
    shared: Arc<Shared>,
}

struct Shared {
    shown: bool,
    begun: Instant,
    bytes: AtomicU64,
    total: AtomicU64,
    bar: OnceLock<ProgressBar>,
}

impl Progress {
    /// Counts from now; `wanted` is whether a bar may be shown.
    pub fn new(wanted: bool) -> Self {
        let shown = wanted && io::stderr().is_terminal();
        let (bytes, total) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { shown, begun: Instant::now(), bytes, total, bar: OnceLock::new() }) }
    }

    /// How many there will be.
    pub fn expect(&self, bytes: u64) {
        self.shared.total.store(bytes, Ordering::Relaxed);
    }

    /// That many more are done.
    pub fn add(&self, bytes: usize) {
        let done = self.shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if self.shared.shown && (self.shared.bar.get().is_some() || self.shared.begun.elapsed() > SILENT) {
            self.shared.bar.get_or_init(|| self.bar()).set_position(done);
        }
    }

    fn bar(&self) -> ProgressBar {
        let total = self.shared.total.load(Ordering::Relaxed);
        let (bar, style) = match total {
            0 => (ProgressBar::no_length(), "{spinner} {bytes} {binary_bytes_per_sec}"),
            _ => (ProgressBar::new(total), "{wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"),
        };
        bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
        bar
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.shared.bar.get() {
            bar.finish_and_clear();
        }
    }

    /// How many so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}
