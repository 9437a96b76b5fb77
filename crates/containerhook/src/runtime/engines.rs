//! Running engines: which processes they are, which root they see, and what they were told.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::proc::{Proc, Status};
use super::tree::{Inode, Root};
use crate::proc::HostProc;

/// Engines beyond this many are not looked at: each costs walks, and anybody may call a process `conmon`.
const MAX: usize = 4096;
/// Mount namespaces other than the host's that are searched.
const FOREIGN: usize = 256;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// A program that executes runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Program {
    Docker,
    Containerd,
    Shim,
    Crio,
    Podman,
    Conmon,
    Buildkit,
    Buildah,
    /// k3s, RKE2, k0s and MicroK8s: a Kubernetes that has its own containerd.
    Kubernetes,
}

impl Program {
    /// By the name of the process or of its executable. The kernel cuts the former off after 15 bytes.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "dockerd" | "dockerd-current" | "balenad" | "balena-engine-d" => Self::Docker,
            "containerd" | "docker-containerd" | "docker-containe" | "balena-engine-c" => Self::Containerd,
            "crio" => Self::Crio,
            "podman" => Self::Podman,
            "conmon" => Self::Conmon,
            "buildkitd" => Self::Buildkit,
            "buildah" => Self::Buildah,
            "k3s" | "k3s-server" | "k3s-agent" | "rke2" | "k0s" | "kubelite" => Self::Kubernetes,
            _ if name.starts_with("containerd-shim") => Self::Shim,
            _ => return None,
        })
    }
}

/// A running engine.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pub(crate) pid: u32,
    pub(crate) program: Program,
    pub(crate) name: String,
    /// What it sees as `/`.
    pub(crate) root: Root,
    /// That is another one than the host's.
    pub(crate) foreign: bool,
    /// Nonzero for a rootless one: nothing of the host that it does not own is marked on its word.
    pub(crate) euid: u32,
    pub(crate) args: Vec<OsString>,
}

impl Engine {
    /// The last value of a flag in any spelling: `-flag V`, `--flag V`, `--flag=V`.
    pub(crate) fn flag(&self, names: &[&str]) -> Option<&OsStr> {
        self.flags(names).pop()
    }

    pub(crate) fn flags(&self, names: &[&str]) -> Vec<&OsStr> {
        let value = |(at, arg): (usize, &'_ OsString)| -> Option<&OsStr> {
            let flag = arg.as_bytes();
            let flag = flag.strip_prefix(b"--").or_else(|| flag.strip_prefix(b"-"))?;
            let rest = names.iter().find_map(|name| match flag.strip_prefix(name.as_bytes())? {
                rest @ ([] | [b'=', ..]) => Some(rest.len()),
                _ => None,
            })?;
            match rest {
                0 => self.args.get(at + 1).map(|v| &**v),
                _ => Some(OsStr::from_bytes(&self.args[at].as_bytes()[arg.len() - rest + 1..])),
            }
        };
        self.args.iter().enumerate().skip(1).filter_map(value).collect()
    }

    /// A path from its command line, as seen from its root.
    pub(crate) fn path(&self, proc: &Proc, path: &OsStr) -> Option<PathBuf> {
        let path = Path::new(path);
        if path.is_absolute() { Some(path.into()) } else { Some(proc.cwd(self.pid)?.join(path)) }
    }
}

/// All that run now.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) proc: Proc,
    pub(crate) host: Root,
    pub(crate) engines: Vec<Engine>,
}

impl Running {
    /// One look at every process.
    pub(crate) fn look(host_root: &Path) -> Self {
        let proc = Proc::of(host_root);
        let host = Root::new(host_root);
        let home = Home::of(&proc, host_root);
        let mut roots: BTreeMap<(Option<Inode>, Inode), Root> = BTreeMap::new();
        let mut engines = Vec::new();
        for pid in proc.pids() {
            if engines.len() >= MAX {
                break;
            }
            let Some((program, name)) = program(&proc, pid) else { continue };
            let Some(status) = proc.status(pid).filter(may_be_an_engine) else { continue };
            let Some(top) = proc.root(pid) else { continue };
            let ns = proc.namespace(pid, "mnt");
            let foreign = !home.is(ns, top);
            let root = if !foreign {
                host.clone()
            } else if let Some(root) = roots.get(&(ns, top)) {
                root.clone()
            } else if roots.len() < FOREIGN {
                let root = Root::new(proc.path(pid, "root")).shunning(proc.slow_mounts(pid));
                roots.insert((ns, top), root.clone());
                root
            } else {
                continue;
            };
            let args = proc.cmdline(pid);
            engines.push(Engine { pid, program, name, root, foreign, euid: status.euid, args });
        }
        Self { proc, host, engines }
    }

    /// One engine for each root that is not the host's.
    pub(crate) fn foreign_roots(&self) -> Vec<&Engine> {
        let mut roots: BTreeMap<&Root, &Engine> = BTreeMap::new();
        for engine in self.engines.iter().filter(|e| e.foreign) {
            roots.entry(&engine.root).or_insert(engine);
        }
        roots.into_values().collect()
    }
}

/// The host's own mount namespace and root, as far as they can be known.
struct Home {
    namespace: Option<Inode>,
    root: Option<Inode>,
}

impl Home {
    fn of(proc: &Proc, host_root: &Path) -> Self {
        // We are in the host's namespace ourselves where its root is ours; init's may not be ours to see.
        let own = || proc.namespace(HostProc::of(host_root).own_pid().cast_unsigned(), "mnt");
        let meta = std::fs::metadata(host_root).ok();
        Self {
            namespace: if host_root == Path::new("/") { own() } else { proc.host_namespace("mnt") },
            root: meta.map(|m| Inode { dev: m.dev(), ino: m.ino() }),
        }
    }

    fn is(&self, namespace: Option<Inode>, root: Inode) -> bool {
        let same_namespace = self.namespace.is_none() || namespace.is_none() || self.namespace == namespace;
        same_namespace && self.root == Some(root)
    }
}

fn program(proc: &Proc, pid: u32) -> Option<(Program, String)> {
    let comm = proc.comm(pid)?;
    if let Some(program) = Program::named(&comm) {
        return Some((program, comm));
    }
    // k3s calls its threads by other names; an engine started by a link has the link's.
    let exe = proc.exe_name(pid)?;
    Program::named(&exe).map(|program| (program, exe))
}

/// Uid 0 without CAP_SYS_ADMIN is a process in a container: it cannot run containers, whatever it is called.
fn may_be_an_engine(status: &Status) -> bool {
    status.euid != 0 || status.effective & CAP_SYS_ADMIN != 0
}

/// Pids of another pid namespace in ours.
pub(crate) struct Translator<'a> {
    proc: &'a Proc,
    /// By the pids that processes have in namespaces below ours.
    inner: HashMap<u32, Vec<(u32, Status)>>,
}

impl<'a> Translator<'a> {
    pub(crate) fn new(proc: &'a Proc) -> Self {
        let mut inner: HashMap<u32, Vec<(u32, Status)>> = HashMap::new();
        for pid in proc.pids() {
            let Some(status) = proc.status(pid) else { continue };
            for other in status.pids.iter().skip(1) {
                inner.entry(*other).or_default().push((pid, status.clone()));
            }
        }
        Self { proc, inner }
    }

    /// Which process `engine` calls `pid`.
    pub(crate) fn translate(&self, engine: u32, pid: u32) -> Option<u32> {
        let level = self.proc.status(engine)?.pids.len();
        if level <= 1 {
            return Some(pid);
        }
        let namespace = self.proc.namespace(engine, "pid")?;
        let candidates = self.inner.get(&pid)?.iter();
        let mut named = candidates.filter(|(_, status)| status.pids.get(level - 1) == Some(&pid));
        named.find(|(host, _)| self.descends(*host, level, namespace)).map(|(host, _)| *host)
    }

    /// A pid namespace's processes, and those of the namespaces in it, have their parents in it.
    fn descends(&self, mut pid: u32, level: usize, namespace: Inode) -> bool {
        for _ in 0..64 {
            let Some(status) = self.proc.status(pid) else { return false };
            if status.pids.len() <= level {
                return status.pids.len() == level && self.proc.namespace(pid, "pid") == Some(namespace);
            }
            let Some(life) = self.proc.life(pid) else { return false };
            pid = life.parent;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(args: &[&str]) -> Engine {
        Engine {
            pid: 1,
            program: Program::Docker,
            name: "dockerd".into(),
            root: Root::new("/"),
            foreign: false,
            euid: 0,
            args: args.iter().map(Into::into).collect(),
        }
    }

    #[test]
    fn flags_in_every_spelling() {
        let e = engine(&["dockerd", "--config-file", "/a", "-c=/b", "--config-filed=/c", "-c"]);
        assert_eq!(e.flags(&["config-file", "c"]), ["/a", "/b"]);
        assert_eq!(e.flag(&["c"]), Some(OsStr::new("/b")));
        assert_eq!(e.flag(&["x"]), None);
        assert_eq!(engine(&[]).flag(&["x"]), None);
    }

    #[test]
    fn names_of_programs() {
        for (name, program) in [
            ("dockerd", Program::Docker),
            ("containerd-shim", Program::Shim),
            ("containerd-shim-kata-v2", Program::Shim),
            ("k3s-server", Program::Kubernetes),
            ("conmon", Program::Conmon),
        ] {
            assert_eq!(Program::named(name), Some(program), "{name}");
        }
        assert_eq!(Program::named("conmonx"), None);
    }

    #[test]
    fn a_container_that_calls_itself_an_engine_is_none() {
        let mut status = Status { euid: 0, effective: 0x0000_0000_a804_25fb, pids: vec![1] };
        assert!(!may_be_an_engine(&status));
        status.effective |= CAP_SYS_ADMIN;
        assert!(may_be_an_engine(&status));
    }
}
