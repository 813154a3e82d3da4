//! Keys, tokens and ids: drawn, and compared.

use std::{
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use subtle::ConstantTimeEq as _;
use uuid::Uuid;

/// The file in the data folder that holds the key.
pub(crate) const KEY_FILE: &str = "e2b.key";

/// Hexadecimal digits in a key, as SDKs up to 2.50 demand them.
const KEY_DIGITS: usize = 40;

/// The key of the house whose data lie in `data`: `e2b_` and 40 hexadecimal digits. Drawn when first asked for.
///
/// Errors: the file cannot be read or written, or holds no key.
pub fn key_of(data: &Path) -> io::Result<String> {
    let path = data.join(KEY_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) if is_key(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => return Err(io::Error::other("it is not `e2b_` and 40 hexadecimal digits")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = format!("e2b_{}", &digits()[..KEY_DIGITS]);
    let beside = data.join(format!(".{KEY_FILE}.{}", Uuid::new_v4().simple()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{key}")?;
    file.sync_all()?;
    // Whoever was first has it: `den e2b key` may draw one while the daemon starts.
    let linked = std::fs::hard_link(&beside, &path);
    std::fs::remove_file(&beside)?;
    match linked {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(std::fs::read_to_string(&path)?.trim().to_owned())
        }
        Err(error) => Err(error),
    }
}

fn is_key(text: &str) -> bool {
    text.strip_prefix("e2b_")
        .is_some_and(|rest| rest.len() == KEY_DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// 64 random hexadecimal digits.
pub(crate) fn digits() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// An id as E2B draws them: `prefix` and 20 of a-z and 0-9.
pub(crate) fn id(prefix: char) -> String {
    let mut number = Uuid::new_v4().as_u128();
    let mut text = String::from(prefix);
    for _ in 0..20 {
        text.push(char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]));
        number /= 36;
    }
    text
}

/// Whether two secrets are the same. Takes as long whatever byte differs first; only the length shows.
pub(crate) fn same(own: &str, presented: &str) -> bool {
    !own.is_empty() && bool::from(own.as_bytes().ct_eq(presented.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_drawn_once() {
        let folder = std::env::temp_dir().join(format!("den-e2b-key-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).unwrap();
        let key = key_of(&folder).unwrap();
        assert!(is_key(&key), "{key}");
        assert_eq!(key_of(&folder).unwrap(), key);
        std::fs::write(folder.join(KEY_FILE), "e2b_short").unwrap();
        assert!(key_of(&folder).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn ids_are_small_letters_and_digits() {
        let id = id('i');
        assert!(id.len() == 21 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{id}");
        assert!(same("ab", "ab") && !same("ab", "ac") && !same("", "") && !same("a", "ab"));
    }
}
