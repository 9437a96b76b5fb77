//! What this host supports, and why not where it does not.

use std::fmt;
use std::path::Path;

use serde::Serialize;

mod bpf;
mod host;
mod kernel;
mod privilege;
mod process;

pub use self::privilege::{Privilege, Privileges};

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

/// One thing that containerhook needs, or makes use of, or that explains why another is missing.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Capability {
    /// A stable name for programs: `fanotify-permission-events`, `process-memory`, `bpf-exit`.
    pub name: &'static str,
    /// Whose it is.
    pub area: Area,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// Is it there?
    pub available: Available,
    /// Does nothing work without it?
    pub required: bool,
    /// Would something be missed on this host, as it is, were it not there? `false` where another capability does the same,
    /// and where it only explains what others say.
    pub matters: bool,
    /// What the trial showed.
    pub detail: Option<String>,
    /// What to do where it is missing.
    pub remedy: Option<String>,
}

/// Where a capability comes from, and so where it is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Area {
    /// What the kernel can do, and allows.
    Kernel,
    /// The rights and namespaces of this process.
    Process,
    /// How the host is set up.
    Host,
}

impl Capability {
    /// One that matters, without more being known.
    fn new(area: Area, name: &'static str, purpose: &'static str, available: Available) -> Capability {
        let (required, matters, detail, remedy) = (false, true, None, None);
        Capability { name, area, purpose, available, required, matters, detail, remedy }
    }

    fn required(mut self, required: bool) -> Self {
        self.required = required;
        self
    }

    fn matters(mut self, matters: bool) -> Self {
        self.matters = matters;
        self
    }

    fn detail(mut self, detail: impl Into<Option<String>>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Said only where it is missing.
    fn remedy(mut self, remedy: &str) -> Self {
        self.remedy = (self.available != Available::Yes).then(|| remedy.to_owned());
        self
    }
}

/// What this host supports: see [`supported`].
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

    /// What is not there and would be missed, though it works without.
    pub fn missed(&self) -> impl Iterator<Item = &Capability> {
        self.capabilities.iter().filter(|c| c.matters && !c.required && c.available == Available::No)
    }

    /// Is the capability of this name there?
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.capabilities.iter().any(|c| c.name == name && c.available == Available::Yes)
    }
}

/// Tries what containerhook needs, here and now; nothing is held, and no runtime is looked for. The host's file system is
/// where the environment's `HOST_ROOT` says, as for a [`Builder`](crate::Builder).
///
/// ```
/// let support = containerhook::supported();
/// if !support.is_supported() {
///     for missing in support.capabilities.iter().filter(|c| c.required) {
///         eprintln!("{}: {}", missing.name, missing.remedy.as_deref().unwrap_or("no remedy is known"));
///     }
/// }
/// ```
#[doc(alias = "Supported")]
#[must_use]
pub fn supported() -> Support {
    supported_at(&crate::runtime::Search::from_env().host_root)
}

/// The same, where the host's file system is seen in this folder.
#[must_use]
pub fn supported_at(host_root: &Path) -> Support {
    let proc = crate::proc::HostProc::of(host_root);
    let namespaces = process::Namespaces::look(host_root, &proc);
    let mut capabilities = vec![kernel::permission_events(), kernel::options(host_root)];
    let memory = process::memory(&proc);
    let reads = memory.available == Available::Yes;
    capabilities.extend(bpf::trials(&namespaces, &proc));
    let tracepoint = bpf::tracepoint(host_root, &proc).matters(!reads);
    // What is read otherwise costs more and tells less, and tells all the same.
    let memory = memory.required(tracepoint.available != Available::Yes);
    capabilities.push(tracepoint);
    capabilities.extend([kernel::btf(), kernel::lockdown(), kernel::security_modules()]);
    capabilities.push(memory);
    capabilities.push(privilege::capability());
    capabilities.extend(namespaces.capabilities());
    capabilities.push(host::memory_cgroup(host_root));
    Support { capabilities }
}
