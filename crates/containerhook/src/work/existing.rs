//! Containers that run already.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::SystemTime;

use super::describe::describe;
use super::{Outcome, Worker};
use crate::bundle::host_path::on_host;
use crate::bundle::{self, Caller};
use crate::capture::Reader;
use crate::config::Config;
use crate::event::{Container, ContainerEvent, Record, Runtime};
use crate::exit::Process;
use crate::lifecycle::Key;
use crate::proc::HostProc;
use crate::runtime::existing::Existing;
use crate::runtime::{self, Search};

/// The containers that run at this moment, without a listener.
///
/// They are found as [`Builder::existing`](crate::Builder::existing) finds them: by the state that runtimes and shims
/// leave, and by `/proc`; no engine is asked. Each is a [`Created`](crate::EventKind::Created) record with
/// [`existing`](crate::ContainerEvent::existing) set, oldest first, numbered from 1. It takes no privilege but to read
/// what it looks at: what it may not read it does not find.
#[must_use]
pub fn existing(host_root: &Path) -> Vec<Record> {
    let search = Search { host_root: host_root.to_owned(), ..Search::default() };
    let proc = HostProc::of(host_root);
    let known = runtime::existing::existing(&search);
    let strangers = runtime::existing::strangers(&search, &known);
    let mut found: Vec<(Process, Container)> = known
        .into_iter()
        .filter_map(|found| existing_container(&proc, &search, found))
        .map(|(_, container, process)| (process, container))
        .collect();
    let user_ns = proc.namespace(proc.own_pid(), "user").unwrap_or_default();
    let worker =
        Worker { group: Weak::new(), user_ns, reader: Reader { proc, host_root: host_root.to_owned() } };
    for (pid, start_time) in strangers {
        let Ok(pid) = i32::try_from(pid) else { continue };
        let init = Process { pid, start_time };
        let ancestors = worker.reader.proc.ancestors(pid);
        if let Outcome::Untold { untold, .. } =
            worker.stranger(init, ancestors, &search, true, SystemTime::now())
        {
            found.push((untold.init, untold.container));
        }
    }
    found.sort_by_key(|(process, _)| (process.start_time, process.pid));
    let number = |(at, (_, container)): (usize, (Process, Container))| Record {
        seq: at as u64 + 1,
        event: ContainerEvent::existing_now(container),
        answer: None,
    };
    found.into_iter().enumerate().map(number).collect()
}

/// A container that runs already, with what its bundle says.
pub(super) fn existing_container(
    proc: &HostProc,
    search: &Search,
    found: Existing,
) -> Option<(Key, Container, Process)> {
    let process = Process { pid: i32::try_from(found.pid).ok()?, start_time: found.start_time };
    // As the runtime's own command line will name it.
    let told_root = found.state_root.map(|path| on_host(&search.host_root, &path));
    let state_root = told_root.clone().unwrap_or_else(|| PathBuf::from(&found.runtime));
    let mut container = Container {
        pid: Some(found.pid),
        runtime: Some(Runtime::new(found.runtime, "")),
        state_root: told_root,
        rootless: found.owner_uid != 0,
        owner_uid: found.owner_uid,
        ..Container::default()
    };
    if let Some(bundle) = &found.bundle {
        match existing_config(search, bundle, found.owner_uid) {
            Ok(config) => container.config = Some(config),
            Err(error) => container.config_error = Some(error),
        }
    }
    container.bundle = found.bundle.map(|path| on_host(&search.host_root, &path));
    container.id = found.id;
    container.name = found.name;
    let parent = proc.stat(process.pid).map_or(0, |stat| stat.ppid);
    let root = File::options().read(true).custom_flags(libc::O_PATH).open(&search.host_root).ok();
    let caller = root.as_ref().map(|root| host_caller(root.as_fd(), found.owner_uid));
    describe(proc, &mut container, parent, caller.as_ref());
    let key = Key::new(state_root, container.id.clone().into(), found.owner_uid);
    Some((key, container, process))
}

/// The configuration in a bundle that the listener has found by itself.
fn existing_config(search: &Search, bundle: &Path, owner: u32) -> Result<Config, String> {
    let (root, inside) = split_root(&search.host_root, bundle);
    let root = File::options().read(true).custom_flags(libc::O_PATH).open(&root);
    let root = root.map_err(|e| format!("{}: {e}", bundle.display()))?;
    bundle::open(&host_caller(root.as_fd(), owner), Some(&inside)).config.map_err(|e| e.to_string())
}

/// Whoever owns a state wrote the bundle's name into it: it is read with that one's rights.
fn host_caller(root: BorrowedFd<'_>, owner: u32) -> Caller<'_> {
    Caller { root, cwd: root, fsuid: owner, fsgid: owner, groups: &[], trusted: owner == 0 }
}

/// `HOST_ROOT/proc/PID/root/PATH`, or `HOST_ROOT/PATH`, as a root and a path in it.
fn split_root(host_root: &Path, path: &Path) -> (PathBuf, PathBuf) {
    let in_host = path.strip_prefix(host_root).unwrap_or(path);
    let mut parts = in_host.components();
    if in_host.has_root() {
        parts.next();
    }
    let (proc, pid, root) = (parts.next(), parts.next(), parts.next());
    match (proc, pid, root) {
        (Some(proc), Some(pid), Some(root)) if proc.as_os_str() == "proc" && root.as_os_str() == "root" => {
            (host_root.join("proc").join(pid).join("root"), Path::new("/").join(parts.as_path()))
        }
        _ => (host_root.to_owned(), Path::new("/").join(in_host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_in_another_mount_namespace_is_opened_in_that_root() {
        let table = [
            ("/", "/run/b", "/", "/run/b"),
            ("/host", "/host/run/b", "/host", "/run/b"),
            ("/", "/proc/12/root/run/b", "/proc/12/root", "/run/b"),
            ("/host", "/host/proc/12/root/run/b", "/host/proc/12/root", "/run/b"),
        ];
        for (host_root, path, root, inside) in table {
            let split = split_root(Path::new(host_root), Path::new(path));
            assert_eq!(split, (PathBuf::from(root), PathBuf::from(inside)), "{path}");
        }
    }
}
