//! How far something long is, on the last line of a terminal.
//!
//! Nothing is shown of what is done within [`SHOWN_AFTER`], nor where standard error is no terminal.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use den_api::ProgressView;

/// Before that nobody wonders.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// A line that is written over, and goes when this does.
pub struct Line {
    since: Instant,
    shown: bool,
}

impl Line {
    /// Whether there is anybody to show it to.
    pub fn is_wanted() -> bool {
        io::stderr().is_terminal()
    }

    /// Begins.
    pub fn new() -> Self {
        Self { since: Instant::now(), shown: false }
    }

    /// Shows how far it is.
    pub fn tell(&mut self, progress: &ProgressView) {
        if self.since.elapsed() >= SHOWN_AFTER {
            self.shown = true;
            let _ = write!(io::stderr(), "\r\x1b[K{}", text(progress));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(ProgressView { phase, done, of }: &ProgressView) -> String {
    let phase = crate::show::clean(phase);
    match of {
        Some(of) => format!("{phase} {done} of {of}"),
        None if *done > 0 => format!("{phase} {done}"),
        None => phase,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_many_where_that_is_known() {
        let view = |done, of| ProgressView { phase: "comparing".to_owned(), done, of };
        assert_eq!(text(&view(3, Some(9))), "comparing 3 of 9");
        assert_eq!(text(&view(0, None)), "comparing");
        assert_eq!(text(&view(4, None)), "comparing 4");
    }
}
