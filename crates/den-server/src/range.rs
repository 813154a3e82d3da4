//! The `Range` header (RFC 9110 section 14), as far as one range goes.
//!
//! Anything that is no single byte range is ignored, as the RFC allows: the answer is then the
//! whole file with 200.

/// One range of bytes as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// `bytes=first-`
    From(u64),
    /// `bytes=first-last`, last included.
    Between(u64, u64),
    /// `bytes=-length`: the last ones.
    Last(u64),
}

impl Range {
    /// Reads the header's value; `None` for what is to be ignored.
    pub fn parse(value: &str) -> Option<Self> {
        let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| -> Option<u64> {
            // `parse` takes a leading `+`, the RFC does not; a comma (several ranges) fails here too.
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
        };
        match (first, last) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// The first byte and the length within a file of `size` bytes; `None` where no byte of the
    /// range is there (416).
    pub fn within(self, size: u64) -> Option<(u64, u64)> {
        let (first, end) = match self {
            Self::From(first) => (first, size),
            Self::Between(first, last) => (first, size.min(last.saturating_add(1))),
            Self::Last(length) => (size.saturating_sub(length), size),
        };
        (first < end).then(|| (first, end - first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ten_bytes() {
        let check = |value, expected| assert_eq!(Range::parse(value).and_then(|r| r.within(10)), expected, "{value}");
        check("bytes=0-", Some((0, 10)));
        check("bytes=4-6", Some((4, 3)));
        check("bytes=4-400", Some((4, 6)));
        check("bytes=9-9", Some((9, 1)));
        check("bytes=-3", Some((7, 3)));
        check("bytes=-30", Some((0, 10)));
        check("bytes=0-18446744073709551615", Some((0, 10)));
        check("bytes=10-", None);
        check("bytes=-0", None);
    }

    #[test]
    fn what_is_no_single_range_is_ignored() {
        for value in
            ["", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=+1-2"]
        {
            assert_eq!(Range::parse(value), None, "{value}");
        }
        assert_eq!(Range::parse("bytes=0-").unwrap().within(0), None);
    }
}
