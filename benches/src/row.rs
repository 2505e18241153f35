//! One measured number.

use serde::{Deserialize, Serialize};

/// The value to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reach {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// A measured number: the median of its samples, with their spread.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// The samples, sorted; there is at least one.
    samples: Vec<f64>,
    pub(crate) reach: Option<Reach>,
    /// Facts that a reader must know beside the number.
    pub(crate) note: String,
}

impl Reach {
    pub(crate) const fn bound(self) -> f64 {
        match self {
            Self::AtMost(bound) | Self::AtLeast(bound) => bound,
        }
    }

    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

impl Row {
    /// A row of at least one sample.
    ///
    /// # Panics
    /// `samples` is empty: a bench that measured nothing must fail instead.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, mut samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "a row has samples");
        samples.sort_by(f64::total_cmp);
        Self {
            name: name.into(),
            unit,
            samples,
            reach: None,
            note: String::new(),
        }
    }

    #[must_use]
    pub(crate) fn reach(mut self, reach: Reach) -> Self {
        self.reach = Some(reach);
        self
    }

    #[must_use]
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// The median: the upper of the two middle samples if their number is even.
    pub(crate) fn median(&self) -> f64 {
        self.samples[self.samples.len() / 2]
    }

    /// All samples, sorted.
    pub(crate) fn samples(&self) -> &[f64] {
        &self.samples
    }

    /// Smallest and largest sample.
    pub(crate) fn spread(&self) -> (f64, f64) {
        (self.samples[0], self.samples[self.samples.len() - 1])
    }

    /// The number of samples.
    pub(crate) const fn count(&self) -> usize {
        self.samples.len()
    }

    /// The sample below which a `share` of all samples lies.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let index = (share * self.samples.len() as f64).ceil() as usize;
        self.samples[index.clamp(1, self.samples.len()) - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_quantiles_are_samples() {
        let row = Row::new("x", "s", vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((row.median(), row.spread()), (3.0, (1.0, 5.0)));
        let hundred = Row::new("x", "s", (1..=100).map(f64::from).collect());
        assert_eq!(
            (
                hundred.quantile(0.5),
                hundred.quantile(0.99),
                hundred.quantile(1.0)
            ),
            (50.0, 99.0, 100.0)
        );
    }

    #[test]
    fn a_bound_holds_on_its_side() {
        assert!(Reach::AtMost(0.5).holds(0.5) && !Reach::AtMost(0.5).holds(0.6));
        assert!(Reach::AtLeast(0.5).holds(0.6) && !Reach::AtLeast(0.5).holds(0.4));
    }
}
