//! Queries of URLs.

/// The pairs of a query or form, decoded; a percent sign without two hexadecimal digits stays as it is.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

/// The first value of `key`.
pub(crate) fn first<'a>(pairs: &'a [(String, String)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(there, _)| there == key).map(|(_, value)| value.as_str())
}

/// Decodes percent signs; what is no such code stays.
pub(crate) fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded_once() {
        let found = pairs("a=b+c&metadata=a%3Db%252520c&x&=&bad=%zz%4");
        let expected = [("a", "b c"), ("metadata", "a=b%2520c"), ("x", ""), ("", ""), ("bad", "%zz%4")];
        let expected: Vec<_> = expected.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(found, expected);
        assert_eq!(first(&found, "a"), Some("b c"));
    }
}
