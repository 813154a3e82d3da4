//! One record of the gate in one line for eyes.

use den_api::NetRecord;

use crate::show;

/// Time (UTC), kind or verdict, protocol, where to, how much, why, by which rule.
pub fn line(record: &NetRecord) -> String {
    let verdict = match (record.kind.as_str(), record.verdict.as_deref()) {
        ("close" | "limit" | "drop" | "gate", _) | (_, None) => record.kind.as_str(),
        (_, Some(verdict)) => verdict,
    };
    let protocol = match record.kind.as_str() {
        "dns" => "dns",
        "http" => "http",
        _ => record.protocol.as_deref().unwrap_or("-"),
    };
    let place = match (&record.name, record.target) {
        (Some(name), Some(target)) => format!("{name}:{}", target.port()),
        (Some(name), None) => name.clone(),
        (None, Some(target)) => target.to_string(),
        (None, None) => String::from("-"),
    };
    let mut text = format!("{}  {verdict:<6} {protocol:<5} {place}", time(record.at));
    let mut add = |words: String| {
        text.push_str("  ");
        text.push_str(&words);
    };
    if let Some(detail) = &record.detail {
        add(detail.clone());
    }
    if let Some(dialled) = record.dialled {
        add(format!("→ {dialled}"));
    }
    if !record.answers.is_empty() {
        add(record.answers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    }
    if let (Some(up), Some(down)) = (record.up_bytes, record.down_bytes) {
        add(format!("{} out, {} in", show::size(up), show::size(down)));
    }
    if let Some(ms) = record.ms {
        add(show::took(ms as i64 * 1000));
    }
    if let Some(why) = &record.why {
        add(why.clone());
    }
    if let Some(rule) = &record.rule {
        add(format!("`{rule}`"));
    }
    if let Some(count) = record.count.filter(|&count| count > 1) {
        add(format!("{count} times"));
    }
    // Some of it was chosen inside: what would move a terminal's cursor is shown, not done.
    if text.contains(char::is_control) { text.replace(char::is_control, "?") } else { text }
}

/// `11-22 05:03:01.250`, UTC.
fn time(micros: u64) -> String {
    let moment = show::moment(i64::try_from(micros).unwrap_or(i64::MAX));
    // Without the year.
    let (_, rest) = moment.split_once('-').unwrap_or_default();
    format!("{rest}.{:03}", micros / 1000 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: &str) -> NetRecord {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_record_is_a_line() {
        let open = r#"{"at":1795324981250000,"kind":"open","flow":7,"protocol":"tls","target":"198.18.0.9:443",
            "name":"api.example.com","verdict":"deny","why":"sni_mismatch","rule":"api.example.com"}"#;
        assert_eq!(
            line(&record(open)),
            "11-22 05:23:01.250  deny   tls   api.example.com:443  sni_mismatch  `api.example.com`"
        );
        let close = r#"{"at":1795324981250000,"kind":"close","protocol":"tcp","target":"192.0.2.7:22",
            "up_bytes":10,"down_bytes":2048,"ms":38,"why":"eof"}"#;
        assert_eq!(line(&record(close)), "11-22 05:23:01.250  close  tcp   192.0.2.7:22  10B out, 2KiB in  38ms  eof");
        let dns = r#"{"at":0,"kind":"dns","name":"x.example","verdict":"allow","detail":"A","answers":["192.0.2.1"]}"#;
        assert_eq!(line(&record(dns)), "01-01 00:00:00.000  allow  dns   x.example  A  192.0.2.1");
    }

    #[test]
    fn what_was_chosen_inside_moves_no_cursor() {
        let shown = line(&record("{\"at\":0,\"kind\":\"http\",\"detail\":\"GET /\\u001b[2J\\n\"}"));
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }

    #[test]
    fn leap_days_are_days() {
        assert!(time(951_782_400_000_000).starts_with("02-29 "));
        assert!(time(951_868_800_000_000).starts_with("03-01 "));
    }
}
