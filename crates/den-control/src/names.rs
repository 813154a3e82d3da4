//! Names for computers that were given none: two short words.

use den_model::ComputerName;

const FIRST: [&str; 48] = [
    "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cool", "cosy", "crisp", "deep", "eager",
    "early", "fair", "fast", "fine", "fond", "free", "fresh", "glad", "gold", "grand", "green", "happy", "keen",
    "kind", "light", "lively", "lucky", "mellow", "merry", "mild", "neat", "noble", "plain", "proud", "quick", "quiet",
    "rapid", "ready", "sharp", "smart", "solid", "sunny", "swift", "warm", "wise",
];

const SECOND: [&str; 48] = [
    "badger", "bear", "beaver", "birch", "brook", "cedar", "cliff", "cloud", "crane", "dune", "eagle", "elm", "falcon",
    "fern", "finch", "fjord", "fox", "glade", "grove", "hare", "hawk", "heron", "hill", "ibis", "lake", "lark", "lynx",
    "maple", "marsh", "meadow", "moss", "oak", "otter", "owl", "pine", "pond", "raven", "reef", "ridge", "river",
    "robin", "sparrow", "spruce", "stone", "stork", "swan", "tern", "wren",
];

/// The `attempt`th name that `seed` leads to: two words, from the second attempt on with a number.
pub(crate) fn friendly(seed: u64, attempt: u32) -> ComputerName {
    let mixed = blake3::hash(&[seed.to_le_bytes(), u64::from(attempt).to_le_bytes()].concat());
    let bytes = mixed.as_bytes();
    let (first, second) = (FIRST[bytes[0] as usize % FIRST.len()], SECOND[bytes[1] as usize % SECOND.len()]);
    let name = match attempt {
        0 => format!("{first}-{second}"),
        _ => format!("{first}-{second}-{}", u16::from_le_bytes([bytes[2], bytes[3]]) % 1000),
    };
    name.parse().expect("the words are of the right letters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_makes_a_name() {
        for first in FIRST {
            for second in SECOND {
                assert!(format!("{first}-{second}-999").parse::<ComputerName>().is_ok());
            }
        }
    }

    #[test]
    fn attempts_differ() {
        let names: std::collections::HashSet<_> = (0..8).map(|attempt| friendly(7, attempt).to_string()).collect();
        assert_eq!(names.len(), 8);
    }
}
