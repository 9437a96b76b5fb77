//! A container that nothing held, and the runtime behind it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fanotify::Mark;

use super::describe::describe;
use super::existing::existing_container;
use super::{Outcome, Worker};
use crate::bundle::host_path::on_host;
use crate::bundle::{self, Caller, state_file};
use crate::event::{Container, Runtime};
use crate::exit::Process;
use crate::lifecycle::{Key, Untold};
use crate::marker;
use crate::runtime::{self, Binary, Role, Search, Source};
use crate::stranger;

impl Worker {
    /// What can be said of a container that nothing held; its runtime is marked, so that the next one is.
    pub(super) fn stranger(
        &self,
        init: Process,
        ancestors: Vec<i32>,
        search: &Search,
        existing: bool,
        time: SystemTime,
    ) -> Outcome {
        let said = stranger::look(&self.reader.proc, init.pid, &ancestors);
        if said.runtime.is_none() {
            // Its runtime has ended, and left its state where runtimes do.
            let found = runtime::existing::existing(search).into_iter();
            let ours = found.filter_map(|found| existing_container(&self.reader.proc, search, found));
            if let Some((key, container, init)) = ours.into_iter().find(|(_, _, process)| *process == init) {
                let learned = self.learn_of_engines(&ancestors, search);
                let untold = Untold { key, container, init, ancestors: Vec::new(), existing, time };
                return Outcome::Untold { untold: Box::new(untold), learned };
            }
        }
        let facts = self.reader.proc.task_facts(init.pid);
        // Whose it is: who runs the processes above it, which are not in its namespaces.
        let owner = ancestors.iter().find_map(|pid| self.reader.proc.task_facts(*pid).ok()).or(facts.ok());
        let trusted = owner.as_ref().is_some_and(|owner| self.trusts(owner));
        let owner_uid = owner.map_or(0, |owner| owner.euid);
        let runtime = said.runtime.clone().map(|name| Runtime::new(name, ""));
        let mut container = Container {
            id: said.id.clone(),
            pid: u32::try_from(init.pid).ok(),
            runtime,
            rootless: !trusted,
            owner_uid,
            state_root: said.state_root.clone(),
            ..Container::default()
        };
        let mut learned = Vec::new();
        let its = said.learned.filter(|_| trusted);
        let links = its.map(|pid| {
            ["root", "cwd"].map(|name| {
                let flags = libc::O_PATH | libc::O_DIRECTORY;
                File::options().read(true).custom_flags(flags).open(self.reader.proc.path(pid, name))
            })
        });
        let caller = match &links {
            Some([Ok(root), Ok(cwd)]) => {
                let (root, cwd) = (root.as_fd(), cwd.as_fd());
                Some(Caller { root, cwd, fsuid: 0, fsgid: 0, groups: &[], trusted })
            }
            _ => None,
        };
        if let Some(pid) = its {
            if let Some(caller) = &caller {
                let state = said.state.as_ref().and_then(|path| state_file::read_state(caller, path).ok());
                let bundle = said.bundle.clone().or_else(|| state?.bundle);
                let opened = bundle::open(caller, bundle.as_deref());
                container.bundle =
                    opened.host_path.map(|path| on_host(&search.host_root, &path)).or(said.bundle.clone());
                match opened.config {
                    Ok(config) => container.config = Some(config),
                    Err(error) => container.config_error = Some(error.to_string()),
                }
            }
            // `make start x` reads like a runtime's command line too: a bundle is what makes the difference.
            learned = if container.config.is_some() {
                self.learn(&search.host_root, pid).into_iter().collect()
            } else {
                Vec::new()
            };
            if let Some((binary, _)) = learned.first() {
                container.runtime =
                    Some(Runtime::new(&binary.name, on_host(&search.host_root, &binary.host_path)));
            }
        }
        if container.bundle.is_none() && trusted {
            // The runtime has ended since its command line was read.
            container.bundle = said.bundle;
        }
        if learned.is_empty() {
            learned = self.learn_of_engines(&ancestors, search);
        }
        container.name = said.name;
        let parent = ancestors.first().copied().unwrap_or_default();
        describe(&self.reader.proc, &mut container, parent, caller.as_ref());
        let state_root = said.state_root.or(said.runtime.map(PathBuf::from)).unwrap_or_default();
        let key = Key::new(state_root, said.id.into(), owner_uid);
        let untold = Untold { key, container, init, ancestors, existing, time };
        Outcome::Untold { untold: Box::new(untold), learned }
    }

    /// Marks the executable of a process that turned out to be a runtime.
    fn learn(&self, host_root: &Path, pid: i32) -> Option<(Binary, Mark)> {
        let (binary, mark) =
            marker::mark_all(&self.group, Binary::of_process(&self.reader.proc, host_root, pid)).pop()?;
        Some((binary, mark.ok()?))
    }

    /// Marks the runtimes that the container's shim or conmon was told of: the runtime itself has ended.
    fn learn_of_engines(&self, ancestors: &[i32], search: &Search) -> Vec<(Binary, Mark)> {
        let monitors = |source: &Source| match source {
            Source::Engine { pid, name } if name == "conmon" || name.starts_with("containerd-shim") => {
                ancestors.iter().any(|above| u32::try_from(*above) == Ok(*pid))
            }
            _ => false,
        };
        let search =
            Search { only: None, extra: Vec::new(), configs: false, engines: true, ..search.clone() };
        let found = runtime::discover(&search).binaries.into_iter();
        let theirs = found.filter(|it| it.role == Role::Runtime && it.sources.iter().any(monitors));
        // Such a place is searched in the root of every engine.
        let theirs = theirs.filter(|it| !it.sources.contains(&Source::WellKnown));
        // An engine in a mount namespace of its own may execute a file of the host's.
        let theirs = theirs.map(|theirs| {
            let host = runtime::rediscover_one(&search.host_root, &theirs.path, Source::Learned);
            host.filter(|host| host.identity() == theirs.identity()).unwrap_or(theirs)
        });
        let marked = marker::mark_all(&self.group, theirs);
        marked.into_iter().filter_map(|(binary, mark)| Some((binary, mark.ok()?))).collect()
    }
}
