//! What this host supports, and why not where it does not.

use std::fmt;

use serde::Serialize;

use crate::bpf::Loader;
use crate::exit::{Choice, Exits};
use crate::proc::HostProc;
use crate::runtime::Search;

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
}

/// Tries what containerhook needs, here and now; nothing is held, and no runtime is looked for.
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
    Support {
        capabilities: vec![permission_events(), process_memory(), bpf_exit(), pidfd_info(), user_namespace()],
    }
}

/// Where a listener that the environment sets up sees the host's processes.
fn host_proc() -> HostProc {
    HostProc::of(&Search::from_env().host_root)
}

fn permission_events() -> Capability {
    let (available, detail) = match fanotify::supported() {
        fanotify::Support::Yes => (Available::Yes, None),
        fanotify::Support::No { reason } => (Available::No, Some(reason)),
        fanotify::Support::Unknown { reason } => (Available::Unknown, Some(reason)),
        _ => (Available::Unknown, None),
    };
    Capability {
        name: "fanotify-permission-events",
        purpose: "to see and hold the executions of container runtimes",
        available,
        required: true,
        detail,
        remedy: (available != Available::Yes).then(|| {
            "run as root of the host's user namespace with CAP_SYS_ADMIN, on a kernel with \
             CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y (Linux 5.10 or later)"
                .to_owned()
        }),
    }
}

/// Processes that are tried before the answer is "unknown".
const TRIED: usize = 64;

fn process_memory() -> Capability {
    let (available, detail) = try_process_memory();
    Capability {
        name: "process-memory",
        purpose: "to read the arguments of a held execution",
        available,
        required: true,
        detail,
        remedy: (available != Available::Yes).then(|| {
            "grant CAP_SYS_PTRACE, share the host's pid namespace, and run a kernel without a ptrace restriction \
             (kernel.yama.ptrace_scope below 3)"
                .to_owned()
        }),
    }
}

/// Reads the system call of some other process: it takes the same right as reading that of a runtime. One process may
/// be out of reach for reasons of its own, as one with more capabilities than this one has.
fn try_process_memory() -> (Available, Option<String>) {
    let proc = host_proc();
    let dir = proc.dir().display();
    let entries = match std::fs::read_dir(proc.dir()) {
        Ok(entries) => entries,
        Err(error) => return (Available::Unknown, Some(format!("{dir}: {error}"))),
    };
    let mut refused = None;
    let others = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let others = others.filter(|pid| *pid != proc.own_pid());
    // Kernel threads have no memory, and no command line.
    let others =
        others.filter(|pid| std::fs::read(proc.path(*pid, "cmdline")).is_ok_and(|line| !line.is_empty()));
    for pid in others.take(TRIED) {
        match std::fs::read_to_string(proc.path(pid, "syscall")) {
            Ok(_) => return (Available::Yes, None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => refused = Some(format!("{dir}/{pid}/syscall: {error}")),
        }
    }
    match refused {
        Some(refused) => (Available::No, Some(refused)),
        None => (Available::Unknown, Some("no other process was there to try it on".to_owned())),
    }
}

fn bpf_exit() -> Capability {
    let (available, detail) =
        match Exits::open_for(Choice::Bpf, &mut Loader::for_pids_of(&host_proc()), &host_proc()) {
            Ok(_) => (Available::Yes, None),
            Err(error) => (Available::No, Some(error.to_string())),
        };
    Capability {
        name: "bpf-exit",
        purpose: "to learn exit codes at once, without a descriptor for each container",
        available,
        required: false,
        detail,
        remedy: (available != Available::Yes).then(|| {
            "grant CAP_BPF and CAP_PERFMON, on a kernel with CONFIG_DEBUG_INFO_BTF=y that is not locked down".to_owned()
        }),
    }
}

fn pidfd_info() -> Capability {
    let (available, detail) = match Exits::open_for(Choice::PidfdInfo, &mut Loader::new(), &host_proc()) {
        Ok(_) => (Available::Yes, None),
        Err(error) => (Available::No, Some(error.to_string())),
    };
    Capability {
        name: "pidfd-exit-info",
        purpose: "to learn exit codes where BPF is refused",
        available,
        required: false,
        detail,
        remedy: (available != Available::Yes).then(|| "Linux 6.15 or later has it".to_owned()),
    }
}

fn user_namespace() -> Capability {
    let proc = host_proc();
    let (own, first) = (proc.namespace(proc.own_pid(), "user"), proc.host_namespace("user"));
    let (available, detail) = match (own, first) {
        (Ok(own), Ok(first)) if own == first => (Available::Yes, None),
        (Ok(_), Ok(_)) => {
            (Available::No, Some("this process is in another user namespace than process 1".to_owned()))
        }
        (Err(error), _) | (_, Err(error)) => (Available::Unknown, Some(format!("/proc/1/ns/user: {error}"))),
    };
    Capability {
        name: "host-user-namespace",
        purpose: "to tell the host's root from that of a user namespace",
        available,
        required: false,
        detail,
        remedy: (available == Available::No).then(|| "run outside of user namespaces".to_owned()),
    }
}
