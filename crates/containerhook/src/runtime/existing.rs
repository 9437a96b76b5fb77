//! Containers that run already, found without asking any engine.
//!
//! Runtimes keep a directory for each container, shims keep a bundle, conmon keeps its command line. Each of
//! these may be older than what it tells of, or a lie: a pid is believed only with evidence that it is still the
//! process that was meant, and what a user wrote only about processes of that user.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::engines::{Engine, Program, Running, Translator};
use super::proc::Proc;
use super::state::{State, parse_crun_status, parse_state_json};
use super::tree::{Found, Root, Route, Stat, list, stat};
use super::{Search, file};
use crate::proc::HostProc;

/// Containers of one state directory.
const CONTAINERS: usize = 65_536;
/// What the kernel calls USER_HZ, the unit of start times; it is 100 on every architecture that has engines.
const TICKS: u64 = 100;
/// Seconds by which a file may be older than the process it tells of, because both clocks are coarse.
const SLACK: u64 = 2;

/// Directories that hold a directory for each container, written by a runtime.
const STATES: &[&str] = &[
    "/run/runc",
    "/run/crun",
    "/run/youki",
    "/run/sysbox-runc",
    "/run/containerd/runc/*",
    "/run/containerd/crun/*",
    "/run/docker/runtime-*/*",
    "/run/balena-engine/runtime-*/*",
    "/run/snap.docker/runtime-*/*",
    // /var/run is a directory of its own on old systems.
    "/var/run/runc",
    "/var/run/crun",
    "/var/run/docker/runtime-*/*",
    // Rootless.
    "/run/user/*/runc",
    "/run/user/*/crun",
    "/run/user/*/youki",
    "/run/user/*/docker/runtime-*/*",
    "/run/user/*/containerd/runc/*",
    "/tmp/podman-run-*/runc",
    "/tmp/podman-run-*/crun",
    "/tmp/runtime-*/runc",
    "/tmp/runtime-*/crun",
    "/tmp/youki-*",
];

/// Directories that hold a bundle for each container of one containerd namespace, written by shims.
const TASKS: &[&str] = &[
    "/run/containerd/io.containerd.runtime.v2.task/*",
    "/run/containerd/io.containerd.runtime.v1.linux/*",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/*",
    "/run/docker/containerd/daemon/io.containerd.runtime.v1.linux/*",
    "/run/snap.docker/containerd/daemon/io.containerd.runtime.v2.task/*",
    "/run/k3s/containerd/io.containerd.runtime.v2.task/*",
    "/run/k0s/containerd/io.containerd.runtime.v2.task/*",
    "/var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/*",
    "/var/snap/k8s/common/run/containerd/io.containerd.runtime.v2.task/*",
    "/system/run/containerd/io.containerd.runtime.v2.task/*",
    "/run/user/*/docker/containerd/daemon/io.containerd.runtime.v2.task/*",
    "/run/user/*/containerd/io.containerd.runtime.v2.task/*",
    "/run/user/*/containerd-rootless/io.containerd.runtime.v2.task/*",
];

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Existing {
    pub(crate) id: String,
    /// Its init, as the host numbers it.
    pub(crate) pid: u32,
    /// In clock ticks since boot; with the pid, the identity of the process.
    pub(crate) start_time: u64,
    /// As we would open it.
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) rootfs: Option<PathBuf>,
    /// `runc`, `crun`, `youki`, or what the shim says.
    pub(crate) runtime: String,
    /// The directory that holds its state, as we would open it.
    pub(crate) state_root: Option<PathBuf>,
    /// Who wrote the state: not 0 for a rootless engine's, and then nothing in it deserves the listener's trust.
    pub(crate) owner_uid: u32,
    /// As conmon was told.
    pub(crate) name: Option<String>,
    /// RFC 3339, as the runtime wrote it.
    pub(crate) created: Option<String>,
}

/// Looks for every container that runs now, each once, in the order of their start.
pub(crate) fn existing(search: &Search) -> Vec<Existing> {
    let running = Running::look(&search.host_root);
    let foreign = running.foreign_roots();
    let mut finder = Finder {
        running: &running,
        translator: (!foreign.is_empty()).then(|| Translator::new(&running.proc)),
        boot_time: running.proc.boot_time(),
        found: BTreeMap::new(),
        visited: HashSet::new(),
    };
    let host = View { root: &running.host, engine: None };
    finder.look(&host);
    for engine in foreign {
        finder.look(&View { root: &engine.root, engine: Some(engine.pid) });
    }
    for engine in &running.engines {
        finder.engine(engine);
    }
    let mut found: Vec<Existing> = finder.found.into_values().collect();
    found.sort_by_key(|e| (e.start_time, e.pid));
    found
}

/// The inits of containers that are not among those known: processes that are number 1 of a pid namespace below
/// the host's, with another mount namespace. Nothing that a runtime wrote tells of them, or it lies where nobody
/// said; they may also be of lxc, systemd-nspawn or bubblewrap. Pid and start time.
pub(crate) fn strangers(search: &Search, known: &[Existing]) -> Vec<(u32, u64)> {
    let proc = Proc::of(&search.host_root);
    let known: HashSet<u32> = known.iter().map(|e| e.pid).collect();
    // Init's namespace may not be ours to see; then ours has to do, and we are not in a container.
    let ours = HostProc::of(&search.host_root).own_pid().cast_unsigned();
    let host = proc.host_namespace("mnt").or_else(|| proc.namespace(ours, "mnt"));
    let mut strangers = Vec::new();
    for pid in proc.pids() {
        if known.contains(&pid) {
            continue;
        }
        let Some(status) = proc.status(pid) else { continue };
        let is_init = status.pids.len() > 1 && status.pids.last() == Some(&1);
        if is_init && proc.namespace(pid, "mnt").is_some_and(|ns| Some(ns) != host) {
            strangers.extend(proc.life(pid).map(|life| (pid, life.start_time)));
        }
    }
    strangers
}

/// A root, and whose numbers the pids in it are.
struct View<'a> {
    root: &'a Root,
    engine: Option<u32>,
}

struct Finder<'a> {
    running: &'a Running,
    translator: Option<Translator<'a>>,
    boot_time: Option<u64>,
    found: BTreeMap<(u32, u64), Existing>,
    /// Directories that were read, as we would open them.
    visited: HashSet<PathBuf>,
}

impl Finder<'_> {
    fn look(&mut self, view: &View<'_>) {
        for pattern in STATES {
            self.states(view, &Route::pattern(Path::new(pattern)));
        }
        for pattern in TASKS {
            self.tasks(view, &Route::pattern(Path::new(pattern)));
        }
    }

    /// What a running process tells of directories that nobody would guess.
    fn engine(&mut self, engine: &Engine) {
        let view = View { root: &engine.root, engine: engine.foreign.then_some(engine.pid) };
        let proc = &self.running.proc;
        match engine.program {
            // A shim's working directory is the bundle of its first container; the others lie beside it.
            Program::Shim => {
                if let Some(tasks) = proc.cwd(engine.pid).as_deref().and_then(Path::parent) {
                    self.tasks(&view, &Route::exact(tasks));
                }
                if let Some(root) = engine.flag(&["runtime-root"]) {
                    let namespace = engine.flag(&["namespace"]).unwrap_or_default();
                    self.states(&view, &Route::exact(&Path::new(root).join(namespace)));
                }
            }
            Program::Docker => {
                if let Some(exec_root) = engine.flag(&["exec-root"]).and_then(|d| engine.path(proc, d)) {
                    self.states(&view, &Route::pattern(&exec_root.join("runtime-*/*")));
                    let tasks = exec_root.join("containerd/daemon/io.containerd.runtime.v2.task/*");
                    self.tasks(&view, &Route::pattern(&tasks));
                }
            }
            Program::Containerd => {
                if let Some(state) = engine.flag(&["state"]).and_then(|d| engine.path(proc, d)) {
                    let tasks = state.join("io.containerd.runtime.v2.task/*");
                    self.tasks(&view, &Route::pattern(&tasks));
                }
            }
            Program::Conmon => self.conmon(engine, &view),
            _ => {}
        }
    }

    fn conmon(&mut self, engine: &Engine, view: &View<'_>) {
        // An exec session has a conmon of its own.
        if engine.args.iter().any(|a| a == "-e" || a == "--exec") {
            return;
        }
        let mut arguments = engine.flags(&["runtime-arg"]).into_iter();
        while let Some(argument) = arguments.next() {
            let root = match argument.as_bytes().strip_prefix(b"--root=") {
                Some(root) => Some(std::ffi::OsStr::from_bytes(root)),
                None if argument == "--root" => arguments.next(),
                None => None,
            };
            if let Some(root) = root {
                self.states(view, &Route::exact(Path::new(root)));
            }
        }
        let Some(id) = engine.flag(&["c", "cid"]).and_then(|id| id.to_str()) else { return };
        let name = engine.flag(&["n", "name"]).map(|n| n.to_string_lossy().into_owned());
        if let Some(known) = self.found.values_mut().find(|e| e.id == id && e.owner_uid == engine.euid) {
            known.name = known.name.take().or(name);
            return;
        }
        // A runtime whose state we cannot read. conmon wrote the pid file on its word.
        let path = engine.flag(&["p", "container-pidfile"]).and_then(|p| engine.path(&self.running.proc, p));
        let Some(walked) = path.map(|p| view.root.walk(&Route::exact(&p))) else { return };
        let Some(file) = walked.found.first() else { return };
        let Some(pid) = file::read(&file.fd, 32).ok().and_then(|c| number(&c)) else { return };
        let runtime = engine.flag(&["r", "runtime"]).map(Path::new).and_then(Path::file_name);
        let state = State {
            id: Some(id.to_owned()),
            pid,
            bundle: engine.flag(&["b", "bundle"]).map(PathBuf::from),
            ..State::default()
        };
        let runtime = runtime.unwrap_or_default().to_string_lossy().into_owned();
        let owner = if engine.euid == 0 { file.stat.uid } else { engine.euid };
        self.believe(view, state, runtime, owner, file.stat.modified, None, name);
    }

    /// A directory of a runtime's states.
    fn states(&mut self, view: &View<'_>, route: &Route) {
        for dir in self.unvisited(view, route) {
            for (id, at, owner) in containers(&dir) {
                let read = |name: &str| file::read_at(&at, Path::new(name)).ok();
                let state = read("state.json")
                    .and_then(|(content, stat)| Some((parse_state_json(&content)?, stat)))
                    .or_else(|| read("status").and_then(|(c, stat)| Some((parse_crun_status(&c)?, stat))));
                let Some((mut state, stat)) = state else { continue };
                state.id.get_or_insert(id);
                let (runtime, owner) = (state.runtime.to_owned(), first_user(owner, stat.uid));
                let state_root = Some(view.root.host_path(&dir.path));
                self.believe(view, state, runtime, owner, stat.modified, state_root, None);
            }
        }
    }

    /// A directory of shims' bundles.
    fn tasks(&mut self, view: &View<'_>, route: &Route) {
        for dir in self.unvisited(view, route) {
            let namespace = dir.path.file_name().unwrap_or_default().to_owned();
            let mut roots = HashSet::new();
            let mut bundles = Vec::new();
            for (id, at, owner) in containers(&dir) {
                let read = |name: &str| file::read_at(&at, Path::new(name)).ok();
                let options: Option<Options> =
                    read("options.json").and_then(|(c, _)| serde_json::from_slice(&c).ok());
                if let Some(root) = options.and_then(|o| o.root).filter(|r| r.is_absolute()) {
                    roots.insert(root.join(&namespace));
                }
                let Some((pid, stat)) = read("init.pid") else { continue };
                let Some(pid) = number(&pid) else { continue };
                let text = |name: &str| read(name).and_then(|(c, _)| String::from_utf8(c).ok());
                let runtime = runtime_of(text("runtime").as_deref(), text("shim-binary-path").as_deref());
                let state = State { bundle: Some(dir.path.join(&id)), id: Some(id), pid, ..State::default() };
                bundles.push((state, runtime, first_user(owner, stat.uid), stat.modified));
            }
            // The runtime's own word first: it has the start time.
            for root in roots {
                self.states(view, &Route::exact(&root));
            }
            for (state, runtime, owner, modified) in bundles {
                self.believe(view, state, runtime, owner, modified, None, None);
            }
        }
    }

    fn unvisited(&mut self, view: &View<'_>, route: &Route) -> Vec<Found> {
        let mut found = view.root.walk(route).found;
        found.retain(|f| {
            f.stat.file_type == FileType::Directory && self.visited.insert(view.root.host_path(&f.path))
        });
        found
    }

    /// Takes a container's word, where the process it names is still the one that was meant.
    #[allow(clippy::too_many_arguments)]
    fn believe(
        &mut self,
        view: &View<'_>,
        state: State,
        runtime: String,
        owner: u32,
        written: i64,
        state_root: Option<PathBuf>,
        name: Option<String>,
    ) {
        let Some(id) = state.id else { return };
        let pid = match (&self.translator, view.engine) {
            (Some(translator), Some(engine)) => translator.translate(engine, state.pid),
            _ => Some(state.pid),
        };
        let Some(pid) = pid else { return };
        let proc = &self.running.proc;
        let Some(life) = proc.life(pid) else { return };
        let meant = match state.start_time {
            Some(start_time) => start_time == life.start_time,
            None => proc.cgroup(pid).contains(&id) || self.older(life.start_time, written),
        };
        if !meant || (owner != 0 && !self.belongs(pid, owner)) {
            return;
        }
        let host = |path: PathBuf| {
            let walked = view.root.walk(&Route::exact(&path));
            let there = walked.found.first().map(|f| f.path.clone());
            there.or_else(|| path.is_absolute().then_some(path)).map(|p| view.root.host_path(&p))
        };
        let new = Existing {
            id,
            pid,
            start_time: life.start_time,
            bundle: state.bundle.and_then(host),
            rootfs: state.rootfs.and_then(host),
            runtime,
            state_root,
            owner_uid: owner,
            name,
            created: state.created,
        };
        match self.found.get_mut(&(pid, life.start_time)) {
            None => drop(self.found.insert((pid, life.start_time), new)),
            // Another's word on what the owner of a process said counts for nothing.
            Some(known) if known.owner_uid != 0 && owner == 0 => *known = new,
            Some(known) if known.owner_uid == owner => {
                known.bundle = known.bundle.take().or(new.bundle);
                known.rootfs = known.rootfs.take().or(new.rootfs);
                known.state_root = known.state_root.take().or(new.state_root);
                known.name = known.name.take().or(new.name);
                known.created = known.created.take().or(new.created);
            }
            Some(_) => {}
        }
    }

    /// Did the process start before the file was written? A pid that was used again did not.
    fn older(&self, start_time: u64, written: i64) -> bool {
        let started = self.boot_time.map(|boot| boot + start_time / TICKS);
        started.zip(u64::try_from(written).ok()).is_some_and(|(s, w)| s <= w + SLACK)
    }

    /// Is the process one of this user, or in a user namespace of theirs?
    fn belongs(&self, pid: u32, owner: u32) -> bool {
        let proc = &self.running.proc;
        if proc.status(pid).is_some_and(|s| s.euid == owner) {
            return true;
        }
        let map = proc.uid_map(pid);
        // The initial namespace has everybody in it, and is nobody's.
        map.first() != Some(&(0, u32::MAX))
            && map.iter().any(|(first, count)| owner >= *first && owner - *first < *count)
    }
}

/// What a shim was told.
#[derive(serde::Deserialize)]
struct Options {
    root: Option<PathBuf>,
}

/// The containers of a directory: id, directory, and the first owner that is not root.
fn containers(dir: &Found) -> impl Iterator<Item = (String, OwnedFd, u32)> + '_ {
    let names = list(&dir.fd, CONTAINERS, |name| !name.starts_with('.'));
    names.into_iter().filter_map(|name| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, &*name, flags, Mode::empty()).ok()?;
        let Stat { uid, .. } = stat(&fd).ok()?;
        Some((name.into_string().ok()?, fd, first_user(dir.stat.uid, uid)))
    })
}

fn first_user(a: u32, b: u32) -> u32 {
    if a == 0 { b } else { a }
}

fn number(content: &[u8]) -> Option<u32> {
    std::str::from_utf8(content).ok()?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// By the runtime's path where a shim was given one, else by the shim's own name: `containerd-shim-runsc-v1`.
fn runtime_of(path: Option<&str>, shim: Option<&str>) -> String {
    let file_name = |path: &str| path.trim().rsplit('/').next().unwrap_or_default().to_owned();
    if let Some(name) = path.map(file_name).filter(|n| !n.is_empty()) {
        return name;
    }
    let shim = shim.map(file_name).unwrap_or_default();
    let kind = shim.strip_prefix("containerd-shim-").and_then(|s| s.rsplit_once("-v")).map(|(kind, _)| kind);
    kind.unwrap_or("runc").to_owned()
}

#[cfg(test)]
mod tests;
