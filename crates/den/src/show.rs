//! Plain output: short sizes, short ages, tables without lines, JSON.

use std::{
    io::{self, IsTerminal, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use chrono::DateTime;
use comfy_table::{ContentArrangement, Table, presets};
use den_model::Bytes;
use serde::Serialize;

use crate::report::Trouble;

/// Prints text to standard output; a reader that went away ends the command quietly.
pub fn print(text: &str) -> Result<(), Trouble> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Trouble::io("standard output", &error))
}

/// Prints one line.
pub fn line(text: &str) -> Result<(), Trouble> {
    print(&format!("{text}\n"))
}

/// Prints one JSON value: on one line when piped, indented for eyes.
pub fn json(value: &impl Serialize) -> Result<(), Trouble> {
    let text =
        if io::stdout().is_terminal() { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    line(&text.expect("answers are plain data with text keys"))
}

/// Prints one JSON value on a line of its own, for streams.
pub fn json_line(value: &impl Serialize) -> Result<(), Trouble> {
    line(&serde_json::to_string(value).expect("answers are plain data with text keys"))
}

/// Prints rows beneath a head, in columns, without lines or colours.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Result<(), Trouble> {
    print(&columns(head, rows))
}

/// What [`table`] prints.
pub fn columns<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Prints `key  value` lines, the values in one column. Empty values are left out.
pub fn facts(facts: &[(&str, String)]) -> Result<(), Trouble> {
    let width = facts.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let text: String = facts
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key:width$}  {value}\n"))
        .collect();
    print(&text)
}

/// Microseconds since the epoch, now.
pub fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as i64)
}

/// `2026-01-31 23:59:58` of microseconds since 1970, UTC.
pub fn moment(at: i64) -> String {
    DateTime::from_timestamp_micros(at).unwrap_or_default().format("%Y-%m-%d %H:%M:%S").to_string()
}

/// How long ago: `3s`, `5m`, `2h`, `4d`.
pub fn age(then: i64) -> String {
    let seconds = (now_micros() - then).max(0) / 1_000_000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long it took: `0.4ms`, `38ms`, `2.1s`, `5m 3s`.
pub fn took(micros: i64) -> String {
    match micros.max(0) {
        m @ 0..=9_999 => format!("{:.1}ms", m as f64 / 1e3),
        m @ 10_000..=999_999 => format!("{}ms", m / 1000),
        m @ 1_000_000..=59_999_999 => format!("{:.1}s", m as f64 / 1e6),
        m @ 60_000_000..=3_599_999_999 => format!("{}m {}s", m / 60_000_000, m / 1_000_000 % 60),
        m => format!("{}h {}m", m / 3_600_000_000, m / 60_000_000 % 60),
    }
}

/// A size without a space, for columns.
pub fn size(bytes: u64) -> String {
    Bytes(bytes).to_string().replace(' ', "")
}

/// A command as one would type it, cut after `max` characters.
pub fn command(argv: &[String], max: usize) -> String {
    let mut text = String::new();
    for word in argv {
        if !text.is_empty() {
            text.push(' ');
        }
        let plain = !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '=' | '@' | '%' | '+' | ','));
        if plain {
            text.push_str(word);
        } else {
            text.push('\'');
            // What would move a terminal's cursor is shown, not done.
            text.extend(word.replace('\'', r"'\''").chars().map(|c| if c.is_control() { ' ' } else { c }));
            text.push('\'');
        }
    }
    if text.chars().count() > max {
        text = text.chars().take(max.saturating_sub(1)).collect();
        text.push('…');
    }
    text
}

/// A text from inside a computer without what would move a terminal's cursor: `\x1b`, `\x0a`.
pub fn clean(text: &str) -> String {
    if !text.chars().any(|c| c.is_control() && c != '\t') {
        return text.to_owned();
    }
    text.chars()
        .map(|c| match c {
            '\t' => c.to_string(),
            c if c.is_control() => format!("\\x{:02x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (1_798_761_599, "2026-12-31 23:59:59"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(moment(seconds * 1_000_000), expected);
        }
    }

    #[test]
    fn spans_are_shown_short() {
        let check = |micros, expected: &str| assert_eq!(took(micros), expected);
        check(420, "0.4ms");
        check(38_200, "38ms");
        check(2_140_000, "2.1s");
        check(303_000_000, "5m 3s");
        check(7_260_000_000, "2h 1m");
        assert_eq!(age(now_micros() - 30_000_000), "30s");
        assert_eq!(age(now_micros() - 3 * 86_400_000_000), "3d");
    }

    #[test]
    fn commands_are_shown_as_they_are_typed() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(command(&words(&["ls", "-la", "/a b"]), 80), "ls -la '/a b'");
        assert_eq!(command(&words(&["sh", "-c", "a\nb'c"]), 80), r"sh -c 'a b'\''c'");
        assert_eq!(command(&words(&["echo", "aaaaaaaa"]), 8), "echo aa…");
    }
}
