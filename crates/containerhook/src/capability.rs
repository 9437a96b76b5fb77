//! What this host supports, and why not where it does not.

use std::fmt;

use serde::Serialize;

/// Is a capability there? Only what was tried is answered with yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Available {
    /// It was tried, and works.
    Yes,
    /// It was tried, and does not.
    No,
    /// It could not be tried, or the trial said nothing.
    Unknown,
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Available::Yes => "yes",
            Available::No => "no",
            Available::Unknown => "unknown",
        })
    }
}

/// One thing that containerhook needs, or makes use of.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Capability {
    /// A stable name for programs: `fanotify-permission-events`, `process-memory`, `bpf-exit`.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// Is it there?
    pub available: Available,
    /// Does nothing work without it?
    pub required: bool,
    /// What the trial showed.
    pub detail: Option<String>,
    /// What to do where it is missing.
    pub remedy: Option<String>,
}

/// What this host supports: see [`supported`](crate::supported).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Support {
    /// Each capability with the outcome of its trial.
    pub capabilities: Vec<Capability>,
}

impl Support {
    /// The plain answer: can a [`ContainerNotifier`](crate::ContainerNotifier) hold and tell containers here?
    #[must_use]
    pub fn is_supported(&self) -> bool {
        self.capabilities.iter().all(|c| !c.required || c.available != Available::No)
    }
}
