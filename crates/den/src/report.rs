//! What a command says when it did not do what was asked, and the code it ends with.
//!
//! ```text
//! error: what was wanted and what stood in the way: the causes
//! hint: what to try next
//! ```

use std::{
    error::Error,
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use den_api::ClientError;

/// Refused or failed.
pub const FAILED: u8 = 1;
/// Wrong usage; clap ends with the same.
pub const USAGE: u8 = 2;
/// A reader went away: 128 + SIGPIPE, as a shell shows it.
pub const PIPE_BROKEN: u8 = 141;

/// A command's error as it is shown.
#[derive(Debug)]
pub struct Trouble {
    message: String,
    hint: Option<String>,
    code: u8,
}

/// What commands return: the exit code, or what went wrong.
pub type Outcome = Result<u8, Trouble>;

impl Trouble {
    /// Something was refused or failed.
    pub fn new(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), hint: None, code: FAILED }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, ..Self::new(message) }
    }

    /// A system call on `what` failed.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::quiet(PIPE_BROKEN);
        }
        Self::new(format_args!("{what}: {error}"))
    }

    /// Nothing to say, only a code.
    pub fn quiet(code: u8) -> Self {
        Self { message: String::new(), hint: None, code }
    }

    /// The same with what to try next.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same, said of `place`.
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// As it is said.
    pub fn shown(&self) -> String {
        match &self.hint {
            _ if self.message.is_empty() => String::new(),
            Some(hint) => format!("error: {}\nhint: {hint}\n", self.message),
            None => format!("error: {}\n", self.message),
        }
    }

    /// What the shell gets.
    #[cfg(test)]
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Says it on standard error; the code for the shell.
    pub fn report(self) -> ExitCode {
        // Nobody may be there to read it any more.
        let _ = io::stderr().write_all(self.shown().as_bytes());
        ExitCode::from(self.code)
    }
}

/// The messages of an error and its causes, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Self {
        let mut trouble = Self::new(chain(&error));
        if let ClientError::Refused { detail, .. } = &error
            && let (Some(request), "internal") = (&detail.request_id, detail.code.as_str())
        {
            trouble.message.push_str(&format!(" (request {request} in the daemon's log)"));
        }
        trouble.hint = error.hint().map(str::to_owned);
        trouble
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<ClientError>() {
            Ok(error) => error.into(),
            Err(error) => Self::new(chain(&*error)),
        }
    }
}
