//! The terminal: raw while a step has it, its size, and what it was before, always.

use std::io::{self, IsTerminal};

use rustix::termios::{self, OptionalActions, Termios};

/// Standard input as raw bytes: no echo, no line editing, no signals from keys. Dropping it puts
/// back what was; so does a panic, for it unwinds. Whoever ends the process otherwise drops it first.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal raw; `None` where standard input is none.
    ///
    /// Errors: the terminal is gone.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone with its window; there is nothing to put back then.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Lines and columns of the terminal, if there is one.
pub fn size() -> Option<(u16, u16)> {
    let of = |size: termios::Winsize| (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col));
    termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin())).ok().and_then(of)
}
