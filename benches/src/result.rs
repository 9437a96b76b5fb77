//! What a benchmark found, as it is kept in JSON: the tables, the page and the plots are made of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::{Estimate, Samples, quantile};

/// All that is known, each benchmark with the run that it is of.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results(pub(crate) BTreeMap<String, Found>);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) title: String,
    pub(crate) command: String,
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) machine: String,
    /// The load average of a minute before it began: above a few tenths, others were at work.
    pub(crate) load: f64,
    pub(crate) rows: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What is measured: rows of one group are compared.
    pub(crate) group: String,
    /// Under which listener.
    pub(crate) arm: String,
    pub(crate) unit: String,
    pub(crate) n: usize,
    pub(crate) median: f64,
    pub(crate) p99: Option<f64>,
    /// How many times the arm `to` it is, by pairs.
    pub(crate) to: Option<String>,
    pub(crate) ratio: Option<Estimate>,
    pub(crate) added: Option<Estimate>,
    /// Where it lies on the axis of a plot.
    pub(crate) x: Option<f64>,
}

impl Row {
    /// One figure, measured once.
    pub(crate) fn figure(group: &str, arm: &str, unit: &str, value: f64) -> Row {
        Row {
            group: group.to_owned(),
            arm: arm.to_owned(),
            unit: unit.to_owned(),
            n: 1,
            median: value,
            p99: None,
            to: None,
            ratio: None,
            added: None,
            x: None,
        }
    }

    pub(crate) fn of(group: &str, arm: &str, unit: &str, samples: &Samples) -> Row {
        let all = samples.all();
        Row {
            n: all.len(),
            // A tail of less than fifty samples is its maximum.
            p99: (all.len() >= 50).then(|| quantile(&all, 0.99)),
            ..Row::figure(group, arm, unit, quantile(&all, 0.5))
        }
    }

    pub(crate) fn compared(mut self, samples: &Samples, to: &str, base: &Samples) -> Row {
        self.to = Some(to.to_owned());
        self.ratio = samples.ratio_to(base);
        self.added = samples.added_to(base);
        self
    }

    pub(crate) fn at(mut self, x: f64) -> Row {
        self.x = Some(x);
        self
    }
}
