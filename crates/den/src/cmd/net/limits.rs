//! Limits as they are written: `flows=100,new=20,bits=1g,bytes=20g,dns=50`.

use den_api::{NetLimitsChange, NetLimitsView};

/// Reads limits. Units are decimal, as they are for networks: `1g` is 1,000,000,000.
pub fn parse(text: &str) -> Result<NetLimitsChange, String> {
    let mut limits = NetLimitsChange::default();
    for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("`{part}`: wanted WHAT=AMOUNT, as in flows=100"))?;
        let amount =
            amount(value).ok_or_else(|| format!("`{part}`: `{value}` is no amount such as 100, 20g or none"))?;
        let small = || u32::try_from(amount).map_err(|_| format!("`{part}`: more than {}", u32::MAX));
        match key {
            "flows" => limits.flows = Some(small()?),
            "new" | "new_per_s" => limits.new_per_s = Some(small()?),
            "bits" | "bits_per_s" => limits.bits_per_s = Some(amount),
            "bytes" | "bytes_per_day" => limits.bytes_per_day = Some(amount),
            "dns" | "dns_per_s" => limits.dns_per_s = Some(small()?),
            other => return Err(format!("`{other}` is no limit; there are flows, new, bits, bytes and dns")),
        }
    }
    if limits.is_empty() { Err("wanted WHAT=AMOUNT, as in flows=100".to_owned()) } else { Ok(limits) }
}

/// 0 is without a limit, and `none` says so.
fn amount(text: &str) -> Option<u64> {
    if text == "none" {
        return Some(0);
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        "t" => 1_000_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// As `parse` reads them, with the units spelt out.
pub fn shown(limits: &NetLimitsView) -> String {
    let one = |amount: u64, unit: &str| match amount {
        0 => format!("no limit of {unit}"),
        amount => format!("{} {unit}", short(amount)),
    };
    [
        one(limits.flows.into(), "flows"),
        one(limits.new_per_s.into(), "new flows/s"),
        one(limits.bits_per_s, "bits/s each way"),
        one(limits.bytes_per_day, "bytes/day"),
        one(limits.dns_per_s.into(), "DNS queries/s"),
    ]
    .join(", ")
}

fn short(amount: u64) -> String {
    for (unit, letter) in [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")] {
        if amount >= unit && amount.is_multiple_of(unit) {
            return format!("{}{letter}", amount / unit);
        }
    }
    amount.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_decimal_units() {
        let limits = parse("flows=100,bits=1g bytes=2T,new=none").unwrap();
        let expected = NetLimitsChange {
            flows: Some(100),
            bits_per_s: Some(1_000_000_000),
            bytes_per_day: Some(2_000_000_000_000),
            new_per_s: Some(0),
            dns_per_s: None,
        };
        assert_eq!(limits, expected);
        for wrong in
            ["", "flows", "flows=", "flows=-1", "flows=1x", "speed=1", "flows=5g", "bits=99999999999t", "bits=é"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_shown_with_their_units() {
        let limits =
            NetLimitsView { flows: 512, new_per_s: 0, bits_per_s: 200_000_000, bytes_per_day: 1234, dns_per_s: 50 };
        assert_eq!(
            shown(&limits),
            "512 flows, no limit of new flows/s, 200M bits/s each way, 1234 bytes/day, 50 DNS queries/s"
        );
    }
}
