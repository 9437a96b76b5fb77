//! Which binaries to mark: the well-known places, those that engines' configurations name, those that running
//! engines use, and what changes about them.
//!
//! [`discover`] looks at everything once. What it found goes to marks; where it looked goes to
//! [`watch::Watch`], which says when a look may have another answer. A [`Place`] can be looked at again on its
//! own, cheaply, for a binary that an upgrade has just replaced.
//!
//! All of this blocks on file systems and belongs on a worker of the engine.

pub(crate) mod config;
mod engines;
pub(crate) mod existing;
mod file;
mod places;
mod proc;
mod state;
mod survey;
mod tree;
pub(crate) mod watch;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

pub(crate) use tree::{Born, Inode, Root};

use crate::proc::HostProc;
use config::Format;
use tree::{Found, Route, Trail};

/// What to look for, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Search {
    /// The host's `/`, as we see it.
    pub(crate) host_root: PathBuf,
    /// The one runtime to look for instead of everything else, as the Go package's `RUNTIME_PATH`.
    pub(crate) only: Option<PathBuf>,
    /// Runtimes besides those that are found.
    pub(crate) extra: Vec<PathBuf>,
    /// Read the engines' configurations.
    pub(crate) configs: bool,
    /// Look at the running engines.
    pub(crate) engines: bool,
}

impl Default for Search {
    fn default() -> Self {
        Self { host_root: "/".into(), only: None, extra: Vec::new(), configs: true, engines: true }
    }
}

impl Search {
    /// As `HOST_ROOT` and `RUNTIME_PATH` say; an empty one says nothing.
    pub(crate) fn from_env() -> Self {
        Self::from_vars(std::env::var_os("HOST_ROOT"), std::env::var_os("RUNTIME_PATH"))
    }

    fn from_vars(host_root: Option<OsString>, runtime_path: Option<OsString>) -> Self {
        let said = |var: Option<OsString>| var.filter(|v| !v.is_empty()).map(PathBuf::from);
        let host_root = said(host_root).unwrap_or_else(|| "/".into());
        Self { host_root, only: said(runtime_path), ..Self::default() }
    }
}

/// What [`discover`] found, and where it looked.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    /// One for each inode.
    pub(crate) binaries: Vec<Binary>,
    pub(crate) warnings: Vec<Warning>,
    /// Every place that was looked at, also those with nothing there yet.
    pub(crate) places: Vec<Place>,
}

/// An executable to mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// What it is called, by which its family may be guessed: `runc`.
    pub(crate) name: String,
    /// Where it lies, links resolved, as seen from its own root.
    pub(crate) path: PathBuf,
    /// The same as we would open it; [`Binary::open`] is safer.
    pub(crate) host_path: PathBuf,
    pub(crate) inode: Inode,
    pub(crate) role: Role,
    /// It begins with `#!`: what it executes is another binary, with a mark of its own.
    pub(crate) script: bool,
    pub(crate) sources: Vec<Source>,
    root: Root,
    born: Born,
}

impl Binary {
    /// The executable of a process that turned out to be a runtime.
    pub(crate) fn of_process(proc: &HostProc, host_root: &Path, pid: i32) -> Option<Self> {
        let theirs = proc.path(pid, "root");
        let inode = |m: &std::fs::Metadata| Inode { dev: m.dev(), ino: m.ino() };
        let shared = inode(&std::fs::metadata(&theirs).ok()?) == inode(&std::fs::metadata(host_root).ok()?);
        let root = if shared { host_root } else { &theirs };
        let exe = std::fs::metadata(proc.path(pid, "exe")).ok()?;
        let link = std::fs::read_link(proc.path(pid, "exe")).ok()?;
        // Runtimes execute themselves again from a mount that is nowhere ("/", crun), or from a copy in memory.
        let copied = link.as_os_str().as_bytes().starts_with(b"/memfd:");
        let is_it = |found: &Self| {
            found.inode == inode(&exe)
                || copied && std::fs::metadata(&found.host_path).is_ok_and(|file| file.len() == exe.len())
        };
        let named = Self::named_by_itself(proc, pid);
        let mut paths = std::iter::once(link).chain(named);
        paths.find_map(|path| rediscover_one(root, &path, Source::Learned).filter(is_it))
    }

    /// Where a process's own argument 0 may point to.
    fn named_by_itself(proc: &HostProc, pid: i32) -> Vec<PathBuf> {
        let proc = proc::Proc::by(proc);
        let Ok(pid) = u32::try_from(pid) else { return Vec::new() };
        let Some(word) = proc.cmdline(pid).into_iter().next().filter(|word| !word.is_empty()) else {
            return Vec::new();
        };
        if word.as_bytes().contains(&b'/') {
            let cwd = proc.cwd(pid).unwrap_or_else(|| "/".into());
            return vec![cwd.join(word)];
        }
        let mut environ = proc.environ(pid);
        let path = environ.remove(std::ffi::OsStr::new("PATH"));
        let folders: Vec<PathBuf> = match &path {
            Some(path) => {
                std::env::split_paths(path).filter(|folder| folder.is_absolute()).take(64).collect()
            }
            None => places::PATH.iter().map(PathBuf::from).collect(),
        };
        folders.into_iter().map(|folder| folder.join(&word)).collect()
    }

    /// Opened as O_PATH, and the same inode still. To be closed soon: it keeps its file system mounted.
    ///
    /// # Errors
    /// `NotFound` when it is no longer there, or another one is.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let walked = self.root.walk(&Route::exact(&self.path));
        let same = |f: &Found| (f.stat.inode, f.stat.born) == self.identity();
        let same = walked.found.into_iter().find(same);
        same.map(|f| f.fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Which file it is, also after its inode's number is used again.
    pub(crate) fn identity(&self) -> (Inode, Born) {
        (self.inode, self.born)
    }
}

/// What an executable does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    /// An OCI runtime, or something that executes one.
    Runtime,
    /// conmon.
    Monitor,
}

/// Why a binary is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// It lies where such binaries lie.
    WellKnown,
    /// The user named it.
    Option,
    /// `RUNTIME_PATH` names it.
    Environment,
    /// A configuration names it.
    Config(PathBuf),
    /// A running process uses it.
    Engine { pid: u32, name: String },
    /// A container came from it that nothing had named.
    Learned,
}

/// What does not stop the search, but the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warning {
    pub(crate) file: PathBuf,
    /// Counted from 1.
    pub(crate) line: Option<u32>,
    pub(crate) message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", plain(&self.file.to_string_lossy()))?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", plain(&self.message))
    }
}

/// A configuration in a container may name paths that would write on the terminal of who reads the warning.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Somewhere to look.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    realm: Realm,
    route: Route,
    kind: Kind,
    source: Source,
}

/// What a place is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Binary(Role),
    Config(Format),
}

/// A root, and how far those who live in it are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Realm {
    root: Root,
    trust: Trust,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    All,
    /// A rootless engine may point at any file that its user can reach, and to mark the host's shell on its
    /// word would slow down everybody. So the file is the user's, or of a file system that is not the host's.
    User {
        uid: u32,
        host: Arc<[u64]>,
    },
}

impl Realm {
    fn believes(&self, found: &Found) -> bool {
        match &self.trust {
            Trust::All => true,
            Trust::User { uid, host } => found.stat.uid == *uid || !host.contains(&found.stat.inode.dev),
        }
    }
}

impl Place {
    /// Looks again: for a binary that was replaced, or has just come. A few system calls.
    pub(crate) fn find(&self) -> Vec<Binary> {
        self.look().0
    }

    /// What is there, and on which names that depends.
    fn look(&self) -> (Vec<Binary>, Trail) {
        let walked = self.realm.root.walk(&self.route);
        let Kind::Binary(role) = self.kind else { return (Vec::new(), walked.trail) };
        let binaries = walked.found.into_iter().filter_map(|f| self.binary(f, role)).collect();
        (binaries, walked.trail)
    }

    fn binary(&self, found: Found, role: Role) -> Option<Binary> {
        let executable = found.stat.file_type == FileType::RegularFile && found.stat.mode & 0o111 != 0;
        (executable && self.realm.believes(&found)).then(|| Binary {
            name: name_of(&found),
            host_path: self.realm.root.host_path(&found.path),
            script: is_script(&found.fd),
            path: found.path,
            inode: found.stat.inode,
            born: found.stat.born,
            role,
            sources: vec![self.source.clone()],
            root: self.realm.root.clone(),
        })
    }
}

/// A link may hide the name (`/etc/alternatives/…`) or be the only one to tell it (`runc` → `runc-1.2`): the
/// file's own name counts where it is a known one.
fn name_of(found: &Found) -> String {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let known = |name: &String| places::RUNTIMES.contains(&&**name) || places::MONITORS.contains(&&**name);
    let (own, sought) = (name(&found.path), name(&found.sought));
    if !known(&own) && known(&sought) { sought } else { own }
}

fn is_script(fd: &OwnedFd) -> bool {
    file::read(fd, 2).is_ok_and(|start| start == b"#!")
}

/// Looks at one path: for an executable that was learned in another way than by a search.
pub(crate) fn rediscover_one(root: &Path, path: &Path, source: Source) -> Option<Binary> {
    let realm = Realm { root: Root::new(root), trust: Trust::All };
    let role = survey::role_of(path);
    Place { realm, route: Route::exact(path), kind: Kind::Binary(role), source }.find().pop()
}

/// Looks everywhere.
pub(crate) fn discover(search: &Search) -> Discovered {
    survey::survey(search)
}

#[cfg(test)]
mod tests;
