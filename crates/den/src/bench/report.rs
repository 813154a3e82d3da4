//! What was measured, as a table and as JSON.

use serde::Serialize;

use super::machine::Machine;
use crate::{report::Trouble, show};

/// All of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// What had to be switched off for the rival to run at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rival_note: Option<String>,
    /// One entry a name.
    pub results: Vec<Measure>,
}

/// One measure.
#[derive(Debug, Serialize)]
pub struct Measure {
    /// Which.
    pub name: &'static str,
    /// Of its figures.
    pub unit: &'static str,
    /// How often it was taken.
    pub n: usize,
    /// The smallest.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// 99 of 100 are no larger.
    pub p99: f64,
    /// What one has to know to read it.
    pub note: String,
    /// What it is meant to be.
    pub goal: Option<Goal>,
    /// The rival's, in the same run.
    pub rival: Option<RivalMeasure>,
}

/// The rival's figure.
#[derive(Debug, Serialize)]
pub struct RivalMeasure {
    /// Who.
    pub name: String,
    /// The command that was timed.
    pub command: String,
    /// How often.
    pub n: usize,
    /// The median.
    pub p50: f64,
}

/// What a figure is meant to be.
#[derive(Debug, Serialize)]
pub struct Goal {
    /// In words: `p50 ≤ 10 ms`.
    pub text: &'static str,
    /// Whether this run met it.
    pub met: bool,
}

impl Measure {
    /// From single figures.
    pub fn new(name: &'static str, unit: &'static str, mut values: Vec<f64>, note: impl Into<String>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            name,
            unit,
            n: values.len(),
            min: round(values.first().copied().unwrap_or(f64::NAN)),
            p50: round(rank(&values, 0.5)),
            p99: round(rank(&values, 0.99)),
            note: note.into(),
            goal: None,
            rival: None,
        }
    }

    /// The same with what it is meant to be.
    pub fn goal(mut self, text: &'static str, met: impl Fn(&Self) -> bool) -> Self {
        self.goal = Some(Goal { text, met: met(&self) });
        self
    }
}

/// The value that `part` of the sorted values do not pass.
pub fn rank(sorted: &[f64], part: f64) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        count => sorted[((part * count as f64).ceil() as usize).clamp(1, count) - 1],
    }
}

/// Three digits that mean something.
fn round(value: f64) -> f64 {
    let scale = if value.abs() >= 100.0 { 1.0 } else { 100.0 };
    (value * scale).round() / scale
}

impl Report {
    /// Nothing yet.
    pub fn new(machine: Machine) -> Self {
        Self { machine, rival_note: None, results: Vec::new() }
    }

    /// For eyes.
    pub fn print(&self) -> Result<(), Trouble> {
        let rows = self.results.iter().map(|m| {
            let (rival, times) = match &m.rival {
                Some(rival) => (figure(rival.p50), format!("{:.1}x", ratio(m, rival.p50))),
                None => Default::default(),
            };
            let goal = m
                .goal
                .as_ref()
                .map_or(String::new(), |goal| format!("{} {}", goal.text, if goal.met { "met" } else { "MISSED" }));
            [
                m.name.to_owned(),
                m.unit.to_owned(),
                m.n.to_string(),
                figure(m.min),
                figure(m.p50),
                figure(m.p99),
                goal,
                rival,
                times,
            ]
        });
        show::table(["name", "unit", "n", "min", "p50", "p99", "goal", "rival p50", "times"], rows)?;
        show::line("")?;
        for measure in self.results.iter().filter(|m| !m.note.is_empty()) {
            show::line(&format!("{}: {}", measure.name, measure.note))?;
        }
        if let Some(rival) = self.results.iter().find_map(|m| m.rival.as_ref()) {
            show::line(&format!("rival: {}", rival.name))?;
        }
        if let Some(note) = &self.rival_note {
            show::line(&format!("rival's note: {note}"))?;
        }
        show::line(&format!("machine: {}", self.machine))
    }
}

/// How many times better than the rival: more is better for rates, less for the rest.
fn ratio(measure: &Measure, rival: f64) -> f64 {
    if measure.unit == "MB/s" { measure.p50 / rival } else { rival / measure.p50 }
}

fn figure(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Milliseconds since `start`.
pub fn millis(start: std::time::Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn a_rank_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([rank(&values, 0.5), rank(&values, 0.99), rank(&values, 1.0)], [50.0, 99.0, 100.0]);
        assert_eq!([rank(&[7.0], 0.5), rank(&[7.0], 0.99)], [7.0, 7.0]);
        assert!(rank(&[], 0.5).is_nan());
    }
}
