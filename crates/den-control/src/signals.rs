//! Signals by name or number.

use crate::Error;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// Reads `INT`, `SIGINT`, `int` or `2`.
///
/// Errors: `bad_request`.
pub fn parse_signal(text: &str) -> Result<i32, Error> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(place) = NAMES.iter().position(|&known| known == name) {
        return Ok(place as i32 + 1);
    }
    match upper.parse() {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err(Error::bad_request(format!("`{text}` is no signal")).hint("name one such as `INT`, `TERM` or `9`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, expected) in [("INT", 2), ("SIGTERM", 15), ("kill", 9), ("34", 34), ("sys", 31), ("64", 64)] {
            assert_eq!(parse_signal(text).ok(), Some(expected), "{text}");
        }
        for bad in ["", "0", "-1", "65", "SIG", "HUPP"] {
            assert_eq!(parse_signal(bad).err().map(|error| error.code), Some("bad_request"), "{bad}");
        }
    }
}
