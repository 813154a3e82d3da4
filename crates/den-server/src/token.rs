//! The bearer token: who holds it may do everything.

use std::io::{self, Read};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq as _;

/// Random bytes in a token.
const TOKEN_BYTES: usize = 32;

/// A bearer token. It has no `Debug` and no `Display`; [`Token::expose`] is how it is written down.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Draws a new one: `den_` and 43 characters.
    ///
    /// Errors: `/dev/urandom` cannot be read.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(format!("den_{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// One that was drawn before.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the file that clients read.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `presented` is this token. Takes as long whatever byte differs first; only the
    /// length, which is no secret, shows.
    pub fn matches(&self, presented: &[u8]) -> bool {
        !self.0.is_empty() && bool::from(self.0.as_bytes().ct_eq(presented))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_bytes_match() {
        let token = Token::new("den_abc");
        assert!(token.matches(b"den_abc"));
        for other in [&b""[..], b"den_ab", b"den_abd", b"Den_abc", b"den_abcd"] {
            assert!(!token.matches(other));
        }
        assert!(!Token::new("").matches(b""), "an empty token lets nobody in");
    }

    #[test]
    fn two_tokens_differ() {
        let (a, b) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert_eq!(a.expose().len(), 47);
        assert_ne!(a.expose(), b.expose());
    }
}
