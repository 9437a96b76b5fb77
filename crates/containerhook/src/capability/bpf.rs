//! What the kernel takes of BPF, part by part.

use std::path::Path;

use super::process::Namespaces;
use super::{Area, Available, Capability};
use crate::bpf::{Loader, Refused};
use crate::capture;
use crate::exec_watch::ExecWatch;
use crate::exit::{Choice, Exits};
use crate::lookup::Lookup;
use crate::proc::HostProc;

const REMEDY: &str = "run with CAP_SYS_ADMIN (or CAP_BPF and CAP_PERFMON), on a kernel with CONFIG_DEBUG_INFO_BTF=y that is \
                      not locked down";

pub(super) fn trials(namespaces: &Namespaces, proc: &HostProc) -> Vec<Capability> {
    let mut loader = Loader::for_pids_of(proc);
    // Each alone says little: a part uses the one, or else the other.
    let kinds = [
        ("bpf-tp-btf", "the better kind of tracing program", loader.takes("btf")),
        ("bpf-raw-tp", "the other kind, which does the same", loader.takes("raw")),
    ];
    let kinds = kinds.map(|(name, purpose, taken)| of(name, purpose, taken).matters(false));
    let exit = Exits::open_for(Choice::Bpf, &mut loader, proc).map(drop);
    let pidfd = Exits::open_for(Choice::PidfdInfo, &mut loader, proc).map(drop);
    let exec_watch = ExecWatch::open_for(&mut loader, proc).map(drop);
    let lookup = look_up(&mut loader);
    drop(loader);

    let exit = of("bpf-exit", "exit codes, at once", exit);
    let mut pidfd = of("pidfd-exit-info", "exit codes, where BPF tells none", pidfd);
    pidfd.remedy = pidfd.remedy.map(|_| "run Linux 6.15 or later".to_owned());
    let (by_bpf, by_pidfd) = (exit.available == Available::Yes, pidfd.available == Available::Yes);
    let exec_watch = of("bpf-exec-watch", "what no mark holds", exec_watch);
    let lookup = of("bpf-lookup", "who is held, from another pid namespace", lookup)
        .matters(namespaces.is_host_pid() == Some(false));

    let mut all = Vec::from(kinds);
    all.extend([exit.matters(!by_pidfd), pidfd.matters(!by_bpf), exec_watch, lookup]);
    all
}

/// Attached for a moment: in this moment it costs every execve of the host a little.
pub(super) fn tracepoint(host_root: &Path, proc: &HostProc) -> Capability {
    // Whose an execution is has to be known too.
    let tried = look_up(&mut Loader::for_pids_of(proc)).and_then(|()| capture::tracepoint(proc, host_root));
    of("bpf-tracepoint", "the arguments of held executions, without their memory", tried)
}

fn of<E: std::fmt::Display>(name: &'static str, purpose: &'static str, tried: Result<(), E>) -> Capability {
    let available = if tried.is_ok() { Available::Yes } else { Available::No };
    Capability::new(Area::Kernel, name, purpose, available)
        .detail(tried.err().map(|error| error.to_string()))
        .remedy(REMEDY)
}

fn look_up(loader: &mut Loader) -> Result<(), Refused> {
    let group = fanotify::Group::new().map_err(|error| Refused::new("what it looks into", &error))?;
    Lookup::open(loader, std::os::fd::AsFd::as_fd(&group)).map(drop)
}
