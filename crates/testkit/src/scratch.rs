//! A folder with a name of its own, and the end of everything that carries that name.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::proc::{Process, processes};

/// The folders of this process that are still in use, for the watchdog.
static IN_USE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

const PREFIX: &str = "containerhook-";

/// In another scratch folder: paths are to be short. Podman's own cleanup refuses a folder of more than 50 characters, and then
/// leaves what it should have removed, and who waits for it waits for 20 s.
const SHORT_PREFIX: &str = "ch-";

/// What makes each name one that occurs nowhere else.
const RANDOM: usize = 8;

/// Is it a scratch folder by its name? Only names of this making count: a common word would hit strangers.
fn is_scratch(path: &Path) -> bool {
    let begins = |path: &Path, prefix: &str| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    };
    let in_another = path.parent().is_some_and(|parent| begins(parent, PREFIX));
    let short = || path.file_name().is_some_and(|name| name.len() == SHORT_PREFIX.len() + RANDOM);
    begins(path, PREFIX) || (in_another && begins(path, SHORT_PREFIX) && short())
}

/// A folder for one fixture. Dropping it kills the processes that mention its name in their arguments, working
/// directory or cgroup, unmounts what lies below it, removes cgroups of that name, and removes the folder.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

/// What still carries the name of a [`Scratch`].
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Processes, zombies not counted.
    pub processes: Vec<Process>,
    /// Mount points of this mount namespace, deepest last.
    pub mounts: Vec<PathBuf>,
    /// Folders in the cgroup hierarchies.
    pub cgroups: Vec<PathBuf>,
}

impl Scratch {
    /// Makes a folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let base = ["CONTAINERHOOK_SCRATCH", "TMPDIR"].iter().find_map(std::env::var_os);
        // Not /tmp: it may be a tmpfs that is too small, or one that overlay refuses as an upper folder.
        let base = base.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let folder = tempfile::Builder::new()
            .prefix(if is_scratch(&base) { SHORT_PREFIX } else { PREFIX })
            .rand_bytes(RANDOM)
            .tempdir_in(&base)
            .with_context(|| format!("making a scratch folder in {}", base.display()))?;
        let path = folder.keep();
        // Searchable, for containers of other users; the names below are not a secret.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        Ok(Self { path })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The folder's last name, which occurs nowhere else on this host. Good for cgroups and namespaces.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What carries the name now.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(&self.path)
    }

    pub(crate) fn all_in_use() -> Vec<PathBuf> {
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = sweep(&self.path) {
            eprintln!("testkit: cleaning up {}: {error:#}", self.path.display());
        }
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| *p != self.path);
    }
}

/// Ends everything that carries the name of the scratch folder `path`, and removes it.
pub(crate) fn sweep(path: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    let mut left = Leftovers::of(path);
    let mut killed = Vec::new();
    while !left.is_empty() {
        for process in &left.processes {
            let _ = process.kill(libc::SIGKILL);
            killed.extend(process.start_time().map(|start| (*process, start)));
        }
        for mount in left.mounts.iter().rev() {
            let _ = crate::sys::unmount_lazily(mount);
        }
        for cgroup in left.cgroups.iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
        let before = left;
        left = Leftovers::of(path);
        if Instant::now() >= end {
            break;
        }
        if !left.processes.is_empty() || before.processes.is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // A process that is being torn down has lost its arguments, folder and cgroup before it is dead.
    let is_dying = |(p, start): &(Process, u64)| p.is_alive() && p.start_time() == Some(*start);
    while killed.iter().any(is_dying) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    // Below a mount that is still there may lie the host's own files.
    if left.mounts.is_empty() && std::env::var_os("CONTAINERHOOK_KEEP").is_none() && path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))?;
    }
    if !left.is_empty() {
        bail!("still there: {left}");
    }
    Ok(())
}

impl Leftovers {
    /// What carries the name of the scratch folder that `path` is, or lies in.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let Some(path) = path.ancestors().find(|path| is_scratch(path)) else { return Self::default() };
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return Self::default() };
        let me = Process::me();
        let carries = |p: &Process| {
            *p != me
                && (p.args().iter().any(|arg| arg.contains(name))
                    || p.cgroups().iter().any(|cgroup| cgroup.contains(name))
                    || fs::read_link(p.path("cwd")).is_ok_and(|cwd| cwd.starts_with(path)))
        };
        // A task that this process has forked but that has not executed yet still shows this process's arguments.
        let processes = processes().into_iter().filter(Process::is_alive_ref).filter(carries).collect();
        let table = mount_table();
        let mounts = table.iter().map(|(at, _)| at).filter(|at| at.starts_with(path)).cloned().collect();
        let mut cgroups = Vec::new();
        for (at, _) in table.iter().filter(|(_, kind)| kind.starts_with("cgroup")) {
            for entry in fs::read_dir(at).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains(name) {
                    folders_below(entry.path(), &mut cgroups);
                }
            }
        }
        Self { processes, mounts, cgroups }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.mounts.is_empty() && self.cgroups.is_empty()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for process in &self.processes {
            write!(f, "\n  process {} ({})", process.0, process.args().join(" "))?;
        }
        for mount in &self.mounts {
            write!(f, "\n  mount {}", mount.display())?;
        }
        for cgroup in &self.cgroups {
            write!(f, "\n  cgroup {}", cgroup.display())?;
        }
        Ok(())
    }
}

impl Process {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape Iterator::filter wants")]
    fn is_alive_ref(&self) -> bool {
        self.is_alive()
    }
}

/// Mount points and file system types of this mount namespace, in the order they were mounted.
fn mount_table() -> Vec<(PathBuf, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let parse = |line: &str| {
        let at = line.split(' ').nth(4)?.replace("\\040", " ");
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        Some((PathBuf::from(at), kind.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

fn folders_below(folder: PathBuf, found: &mut Vec<PathBuf>) {
    let below: Vec<_> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect();
    found.push(folder);
    for folder in below {
        folders_below(folder, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_folders_are_known_by_their_names() {
        for (path, is) in [
            ("/var/tmp/containerhook-5c8gbmM1", true),
            ("/var/tmp/containerhook-5c8gbmM1/ch-YcLk7PCI", true),
            ("/var/tmp/containerhook-5c8gbmM1/ch-YcLk7PC", false),
            ("/var/tmp/ch-YcLk7PCI", false),
            ("/var/tmp/containerhook-5c8gbmM1/run", false),
            ("/", false),
        ] {
            assert_eq!(is_scratch(Path::new(path)), is, "{path}");
        }
    }
}
