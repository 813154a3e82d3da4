//! The text format of Prometheus, 0.0.4: families of samples, one line each.

use std::fmt::{Display, Write};

use den_model::meter::Distribution;

/// Microseconds in a second: times are given in seconds.
const MICROS: f64 = 1_000_000.0;

/// What a family is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// The unit of a histogram's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Microseconds, shown as seconds.
    Time,
    /// As they are.
    Count,
}

/// The text as it grows. Each family is begun once, and its samples follow it.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}"); // A String takes everything.
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}"); // As above.
    }

    /// A family of one sample without labels.
    pub(super) fn one(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The samples of one histogram; `label` tells it from others of its family.
    pub(super) fn histogram(&mut self, name: &str, label: Option<(&str, &str)>, unit: Unit, held: &Distribution) {
        let scaled = |value: u64| if unit == Unit::Time { value as f64 / MICROS } else { value as f64 };
        let bucket = format!("{name}_bucket");
        let labels = |le: &'_ str| -> Vec<(String, String)> {
            let own = label.map(|(key, value)| (key.to_owned(), value.to_owned()));
            own.into_iter().chain([("le".to_owned(), le.to_owned())]).collect()
        };
        let bounds = held.upto.iter().map(|(bound, count)| (scaled(*bound).to_string(), *count));
        for (bound, count) in bounds.chain([("+Inf".to_owned(), held.count)]) {
            let labels = labels(&bound);
            let labels: Vec<_> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            self.sample(&bucket, &labels, count);
        }
        self.sample(&format!("{name}_sum"), label.as_slice(), scaled(held.sum));
        self.sample(&format!("{name}_count"), label.as_slice(), held.count);
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use den_model::meter::{Histogram, SIZES};

    use super::*;

    #[test]
    fn a_family_is_its_words_and_its_samples() {
        let mut text = Text::default();
        text.family("a_total", Kind::Counter, "What is counted.");
        text.sample("a_total", &[("name", "a \"b\" \\ c\nd"), ("x", "y")], 3);
        text.one("b", Kind::Gauge, "One.", 0.5);
        assert_eq!(
            text.into_string(),
            "# HELP a_total What is counted.\n# TYPE a_total counter\n\
             a_total{name=\"a \\\"b\\\" \\\\ c\\nd\",x=\"y\"} 3\n\
             # HELP b One.\n# TYPE b gauge\nb 0.5\n"
        );
    }

    #[test]
    fn buckets_of_a_histogram_add_up() {
        let sizes = Histogram::new(SIZES);
        sizes.add(2);
        sizes.add(9999);
        let mut text = Text::default();
        text.histogram("n", Some(("of", "x")), Unit::Count, &sizes.read());
        let text = text.into_string();
        let expected =
            ["n_bucket{of=\"x\",le=\"1\"} 0", "n_bucket{of=\"x\",le=\"2\"} 1", "n_bucket{of=\"x\",le=\"+Inf\"} 2"];
        assert!(expected.iter().all(|line| text.lines().any(|other| other == *line)), "{text}");
        assert!(text.ends_with("n_sum{of=\"x\"} 10001\nn_count{of=\"x\"} 2\n"), "{text}");
    }

    #[test]
    fn times_are_seconds() {
        let times = Distribution { upto: vec![(2500, 1)], count: 1, sum: 1500 };
        let mut text = Text::default();
        text.histogram("t", None, Unit::Time, &times);
        assert_eq!(text.into_string(), "t_bucket{le=\"0.0025\"} 1\nt_bucket{le=\"+Inf\"} 1\nt_sum 0.0015\nt_count 1\n");
    }
}
