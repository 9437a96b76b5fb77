//! One search: what was found, by whom it was named, and what is left to look at.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use super::config::{self, FILES, Format};
use super::engines::{Engine, Program, Running};
use super::tree::{Found, Inode, Root, Route};
use super::{Binary, Discovered, Kind, Place, Realm, Role, Search, Source, Trust, Warning, file, places};

/// Places beyond this many are not looked at, and that is said.
const PLACES: usize = 50_000;
/// Configuration files of one search, imports included.
const CONFIGS: usize = 4096;
/// Directories of one engine's PATH.
const DIRECTORIES: usize = 32;

pub(super) fn survey(search: &Search) -> Discovered {
    let root = Root::new(&search.host_root);
    let host = Realm { root: root.clone(), trust: Trust::All };
    let mut survey = Survey {
        runtimes: places::RUNTIMES.iter().map(Into::into).collect(),
        monitors: places::MONITORS.iter().map(Into::into).collect(),
        binaries: BTreeMap::new(),
        warnings: Vec::new(),
        places: Vec::new(),
        seen: HashSet::new(),
        files: HashSet::new(),
    };
    // A path may be told with the host's root before it or without.
    let inside = |path: &Path| match path.strip_prefix(&search.host_root) {
        Ok(relative) => Path::new("/").join(relative),
        Err(_) => Path::new("/").join(path),
    };
    if let Some(only) = &search.only {
        survey.must_have(&host, &inside(only), &Source::Environment, "RUNTIME_PATH");
    } else {
        survey.realm(&host, &Source::WellKnown, search.configs);
        if search.engines {
            survey.engines(search);
        }
    }
    for extra in &search.extra {
        let absolute = std::path::absolute(extra).unwrap_or_else(|_| extra.clone());
        survey.must_have(&host, &inside(&absolute), &Source::Option, "--runtime");
    }
    survey.finish()
}

struct Survey {
    runtimes: Arc<[OsString]>,
    monitors: Arc<[OsString]>,
    binaries: BTreeMap<Inode, Binary>,
    warnings: Vec<Warning>,
    places: Vec<Place>,
    seen: HashSet<(Realm, Route, Kind)>,
    /// Configurations that were read, as we open them.
    files: HashSet<PathBuf>,
}

impl Survey {
    /// Looks for binaries at a place, and says whether there are any, or it was looked at before.
    fn binary(&mut self, realm: &Realm, route: Route, role: Role, source: &Source) -> bool {
        let Some(place) = self.place(realm, route, Kind::Binary(role), source) else { return true };
        let found = place.find();
        let any = !found.is_empty();
        for binary in found {
            match self.binaries.get_mut(&binary.inode) {
                Some(known) => {
                    for source in binary.sources {
                        if !known.sources.contains(&source) {
                            known.sources.push(source);
                        }
                    }
                }
                None => drop(self.binaries.insert(binary.inode, binary)),
            }
        }
        any
    }

    /// A place that was not looked at yet.
    fn place(&mut self, realm: &Realm, route: Route, kind: Kind, source: &Source) -> Option<Place> {
        if self.places.len() >= PLACES || !self.seen.insert((realm.clone(), route.clone(), kind)) {
            return None;
        }
        let place = Place { realm: realm.clone(), route, kind, source: source.clone() };
        self.places.push(place.clone());
        Some(place)
    }

    fn must_have(&mut self, realm: &Realm, path: &Path, source: &Source, by: &str) {
        if !self.binary(realm, Route::exact(path), role_of(path), source) {
            let message = format!("{by} names it, but no executable file is there");
            self.warnings.push(Warning { file: realm.root.host_path(path), line: None, message });
        }
    }

    /// The places and configurations that every root may have.
    fn realm(&mut self, realm: &Realm, source: &Source, configs: bool) {
        for dir in places::DIRECTORIES {
            self.directory(realm, Route::pattern(Path::new(dir)), source);
        }
        for (role, patterns) in
            [(Role::Runtime, places::RUNTIME_PATTERNS), (Role::Monitor, places::MONITOR_PATTERNS)]
        {
            for pattern in patterns {
                self.binary(realm, Route::pattern(Path::new(pattern)), role, source);
            }
        }
        if configs {
            let path: Vec<PathBuf> = places::PATH.iter().map(PathBuf::from).collect();
            for (format, pattern) in FILES {
                self.config(realm, *format, &Route::pattern(Path::new(pattern)), &path);
            }
        }
    }

    /// A directory of programs.
    fn directory(&mut self, realm: &Realm, dir: Route, source: &Source) {
        let (runtimes, monitors) = (Arc::clone(&self.runtimes), Arc::clone(&self.monitors));
        self.binary(realm, dir.clone().any_of(runtimes), Role::Runtime, source);
        self.binary(realm, dir.any_of(monitors), Role::Monitor, source);
    }

    /// Configurations, with what they import; `path` is where the names in them are looked for.
    fn config(&mut self, realm: &Realm, format: Format, route: &Route, path: &[PathBuf]) {
        let mut routes = vec![route.clone()];
        while let Some(route) = routes.pop() {
            let source = Source::WellKnown;
            if self.place(realm, route.clone(), Kind::Config(format), &source).is_none() {
                continue;
            }
            for found in realm.root.walk(&route).found {
                if self.files.len() >= CONFIGS {
                    return;
                }
                // A directory where drop-ins are expected is none; they may have any name.
                if found.stat.file_type == FileType::Directory {
                    continue;
                }
                if self.files.insert(realm.root.host_path(&found.path)) {
                    let imports = self.config_file(realm, format, &found, path);
                    routes.extend(imports.iter().map(|i| Route::pattern(i)));
                }
            }
        }
    }

    fn config_file(
        &mut self,
        realm: &Realm,
        format: Format,
        found: &Found,
        path: &[PathBuf],
    ) -> Vec<PathBuf> {
        let file = realm.root.host_path(&found.path);
        let content = match file::read_all(&found.fd) {
            Ok(content) => content,
            Err(error) => {
                self.warnings.push(Warning { file, line: None, message: format!("cannot be read: {error}") });
                return Vec::new();
            }
        };
        let reading = config::read(format, &content);
        for (line, message) in reading.problems {
            self.warnings.push(Warning { file: file.clone(), line, message });
        }
        let source = Source::Config(file.clone());
        for named in reading.named {
            let value = Path::new(&named.value);
            if !named.value.contains('/') {
                self.name(realm, &named.value, named.role, path, &source);
                continue;
            }
            // MicroK8s leaves this variable in a file that it substitutes when it starts.
            let value = match named.value.strip_prefix("${SNAP}/") {
                Some(rest) => Path::new("/snap/microk8s/current").join(rest),
                None => value.to_path_buf(),
            };
            let there = self.binary(realm, Route::exact(&value), named.role, &source);
            if named.needed && !there {
                let message = format!("names {}, but no executable file is there", value.display());
                self.warnings.push(Warning { file: file.clone(), line: named.line, message });
            }
        }
        let beside = found.sought.parent().unwrap_or(Path::new("/"));
        reading.imports.iter().map(|import| beside.join(import)).collect()
    }

    /// A name without a slash, as execvp looks for it.
    fn name(&mut self, realm: &Realm, name: &str, role: Role, path: &[PathBuf], source: &Source) {
        for dir in path {
            self.binary(realm, Route::exact(&dir.join(name)), role, source);
        }
    }

    fn engines(&mut self, search: &Search) {
        let running = Running::look(&search.host_root);
        let devices = ["", "usr", "bin", "sbin", "usr/bin", "usr/sbin", "usr/local", "opt"];
        let device = |dir| Some(std::fs::metadata(search.host_root.join(dir)).ok()?.dev());
        let devices: Arc<[u64]> = devices.into_iter().filter_map(device).collect();
        let realm = |engine: &Engine| Realm {
            root: engine.root.clone(),
            trust: match engine.euid {
                0 => Trust::All,
                uid => Trust::User { uid, host: Arc::clone(&devices) },
            },
        };
        for engine in running.foreign_roots() {
            self.realm(&realm(engine), &of(engine), search.configs);
        }
        for engine in &running.engines {
            self.engine(&running, engine, &realm(engine), search.configs);
        }
    }

    /// What one engine was told when it was started.
    fn engine(&mut self, running: &Running, engine: &Engine, realm: &Realm, configs: bool) {
        let (proc, source) = (&running.proc, of(engine));
        let environ = match engine.program {
            // There is one for each container, and each was told everything by arguments.
            Program::Conmon | Program::Shim => HashMap::new(),
            _ => proc.environ(engine.pid),
        };
        let var = |name: &str| environ.get(OsStr::new(name)).filter(|v| !v.is_empty());
        let mut path: Vec<PathBuf> = var("PATH").map_or_else(
            || places::PATH.iter().map(PathBuf::from).collect(),
            |p| std::env::split_paths(p).filter(|d| d.is_absolute()).take(DIRECTORIES).collect(),
        );
        let exe = proc.exe(engine.pid);
        if engine.program == Program::Conmon {
            if let Some(exe) = &exe {
                self.binary(realm, Route::exact(exe), Role::Monitor, &source);
            }
            for runtime in engine.flags(&["r", "runtime"]) {
                self.binary(realm, Route::exact(Path::new(runtime)), Role::Runtime, &source);
            }
            return;
        }
        if engine.program == Program::Shim {
            return self.shim(running, engine, realm, &path);
        }
        // A bundle of static binaries lies together.
        path.extend(exe.as_deref().and_then(Path::parent).map(Path::to_path_buf));
        for dir in &path {
            self.directory(realm, Route::exact(dir), &source);
        }
        let named: &[(&str, Role)] = match engine.program {
            Program::Podman | Program::Buildah => &[("runtime", Role::Runtime), ("conmon", Role::Monitor)],
            Program::Crio => &[("conmon", Role::Monitor)],
            Program::Buildkit => &[("oci-worker-binary", Role::Runtime)],
            _ => &[],
        };
        for (flag, role) in named {
            for value in engine.flags(&[flag]) {
                self.told(realm, value, *role, &path, &source);
            }
        }
        match engine.program {
            Program::Docker => {
                for value in engine.flags(&["add-runtime"]) {
                    if let Some(at) = value.as_bytes().iter().position(|b| *b == b'=') {
                        let value = OsStr::from_bytes(&value.as_bytes()[at + 1..]);
                        self.told(realm, value, Role::Runtime, &path, &source);
                    }
                }
            }
            Program::Crio => {
                for list in engine.flags(&["runtimes"]) {
                    for entry in list.as_bytes().split(|b| *b == b',') {
                        if let Some(value) = entry.split(|b| *b == b':').nth(1).filter(|v| !v.is_empty()) {
                            self.told(realm, OsStr::from_bytes(value), Role::Runtime, &path, &source);
                        }
                    }
                }
            }
            Program::Kubernetes => {
                let flags = engine.flags(&["data-dir", "d"]);
                for dir in flags.into_iter().filter_map(|d| engine.path(proc, d)) {
                    for bin in ["bin", "data/current/bin", "data/*/bin"] {
                        self.directory(realm, Route::pattern(&dir.join(bin)), &source);
                    }
                }
            }
            _ => {}
        }
        if configs {
            for (format, file) in config_files(running, engine, &environ) {
                self.config(realm, format, &Route::pattern(&file), &path);
            }
        }
    }

    /// A runtime from a command line.
    fn told(&mut self, realm: &Realm, value: &OsStr, role: Role, path: &[PathBuf], source: &Source) {
        match value.to_str() {
            Some(name) if !name.contains('/') => self.name(realm, name, role, path, source),
            _ => drop(self.binary(realm, Route::exact(Path::new(value)), role, source)),
        }
    }

    /// A shim writes the runtime it uses into each bundle, and has the first of them as its working directory.
    fn shim(&mut self, running: &Running, engine: &Engine, realm: &Realm, path: &[PathBuf]) {
        let Some(tasks) = running.proc.cwd(engine.pid).and_then(|b| Some(b.parent()?.to_path_buf())) else {
            return;
        };
        // Containers come and go here: a place would be looked at, and watched, for nothing.
        if !self.files.insert(realm.root.host_path(&tasks)) {
            return;
        }
        for found in realm.root.walk(&Route::pattern(&tasks.join("*/runtime"))).found {
            let Ok(content) = file::read(&found.fd, 4096) else { continue };
            let value = OsString::from_vec(content.trim_ascii().to_vec());
            if !value.is_empty() {
                self.told(realm, &value, Role::Runtime, path, &of(engine));
            }
        }
    }

    fn finish(mut self) -> Discovered {
        if self.places.len() >= PLACES {
            let message = format!("more than {PLACES} places are named; the rest is not searched");
            self.warnings.push(Warning { file: "/proc".into(), line: None, message });
        }
        let mut binaries: Vec<Binary> = self.binaries.into_values().collect();
        binaries.sort_by(|a, b| a.host_path.cmp(&b.host_path));
        Discovered { binaries, warnings: self.warnings, places: self.places }
    }
}

/// What has conmon's name is conmon, whoever names it.
pub(super) fn role_of(path: &Path) -> Role {
    let monitor = path.file_name().is_some_and(|n| places::MONITORS.iter().any(|m| OsStr::new(m) == n));
    if monitor { Role::Monitor } else { Role::Runtime }
}

fn of(engine: &Engine) -> Source {
    Source::Engine { pid: engine.pid, name: engine.name.clone() }
}

/// The configurations that an engine was told of, or finds in its user's home.
fn config_files(
    running: &Running,
    engine: &Engine,
    environ: &HashMap<OsString, OsString>,
) -> Vec<(Format, PathBuf)> {
    let flags = |names: &[&str]| -> Vec<PathBuf> {
        engine.flags(names).into_iter().filter_map(|f| engine.path(&running.proc, f)).collect()
    };
    let var = |name: &str| environ.get(OsStr::new(name)).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = var("XDG_CONFIG_HOME").or_else(|| Some(var("HOME")?.join(".config")));
    let at_home = |names: &[&str]| -> Vec<PathBuf> {
        home.iter().flat_map(|home| names.iter().map(|n| home.join(n))).collect()
    };
    let (format, files) = match engine.program {
        Program::Docker => {
            (Format::Docker, [flags(&["config-file"]), at_home(&["docker/daemon.json"])].concat())
        }
        Program::Containerd => {
            (Format::Containerd, [flags(&["config", "c"]), at_home(&["containerd/config.toml"])].concat())
        }
        Program::Crio => {
            let dirs = flags(&["config-dir", "d"]).into_iter().map(|d| d.join("*"));
            (Format::Crio, flags(&["config", "c"]).into_iter().chain(dirs).collect())
        }
        Program::Podman | Program::Buildah => {
            let vars = ["CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE"];
            let homes = ["containers/containers.conf", "containers/containers.conf.d/*.conf"];
            (Format::Podman, vars.into_iter().filter_map(var).chain(at_home(&homes)).collect())
        }
        Program::Buildkit => {
            (Format::Buildkit, [flags(&["config"]), at_home(&["buildkit/buildkitd.toml"])].concat())
        }
        Program::Kubernetes => {
            let dirs = flags(&["data-dir", "d"]).into_iter();
            (Format::Containerd, dirs.map(|d| d.join("agent/etc/containerd/config.toml")).collect())
        }
        Program::Shim | Program::Conmon => return Vec::new(),
    };
    files.into_iter().map(|f| (format, f)).collect()
}

#[cfg(test)]
mod tests;
