//! Facts about processes, and waiting for an outcome.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// A process of this host, by its pid. Every question is answered from `/proc` at the moment it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process(
    /// The pid as this test sees it.
    pub i32,
);

impl Process {
    /// This test's own process.
    #[must_use]
    pub fn me() -> Self {
        Self(std::process::id() as i32)
    }

    /// Clock ticks since boot at which the process started; with the pid this is its identity.
    #[must_use]
    pub fn start_time(self) -> Option<u64> {
        self.stat(19)?.parse().ok()
    }

    /// `R`, `S`, `D`, `Z` and so on.
    #[must_use]
    pub fn state(self) -> Option<char> {
        self.stat(0)?.chars().next()
    }

    /// The parent's pid.
    #[must_use]
    pub fn parent(self) -> Option<Self> {
        self.stat(1)?.parse().ok().map(Self)
    }

    /// Whether it exists and is not a zombie.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(self.state(), None | Some('Z' | 'X'))
    }

    /// Its pid in each pid namespace, from this one inwards.
    #[must_use]
    pub fn ns_pids(self) -> Vec<i32> {
        let status = fs::read_to_string(self.path("status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
        line.split_whitespace().filter_map(|n| n.parse().ok()).collect()
    }

    /// Its arguments; those that are not UTF-8 are shown with replacement characters.
    #[must_use]
    pub fn args(self) -> Vec<String> {
        let bytes = fs::read(self.path("cmdline")).unwrap_or_default();
        let text = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if text.is_empty() {
            return Vec::new();
        }
        text.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
    }

    /// The paths of its cgroups, one a hierarchy.
    #[must_use]
    pub fn cgroups(self) -> Vec<String> {
        let text = fs::read_to_string(self.path("cgroup")).unwrap_or_default();
        text.lines().filter_map(|l| l.splitn(3, ':').nth(2)).map(str::to_owned).collect()
    }

    /// The kernel function it sleeps in, where the kernel tells.
    #[must_use]
    pub fn waits_in(self) -> Option<String> {
        fs::read_to_string(self.path("wchan")).ok().filter(|w| w != "0" && !w.is_empty())
    }

    /// Whether one of its fanotify groups has a mark on the file at `path`: the way to await a listener that gets ready.
    #[must_use]
    pub fn marks(self, path: &Path) -> bool {
        let Ok(file) = fs::metadata(path) else { return false };
        let (major, minor) = (libc::major(file.dev()), libc::minor(file.dev()));
        let mark = format!("fanotify ino:{:x} sdev:{:x} ", file.ino(), major << 20 | minor);
        // Each thread may have a descriptor table of its own, and an engine's thread does.
        let threads = fs::read_dir(self.path("task")).into_iter().flatten().flatten();
        let tables = threads.filter_map(|t| fs::read_dir(t.path().join("fdinfo")).ok());
        let mut infos = tables.flatten().flatten().filter_map(|fd| fs::read_to_string(fd.path()).ok());
        infos.any(|info| info.contains(&mark))
    }

    /// Its children.
    #[must_use]
    pub fn children(self) -> Vec<Self> {
        processes().into_iter().filter(|p| p.parent() == Some(self)).collect()
    }

    /// Its children, theirs, and so on.
    #[must_use]
    pub fn descendants(self) -> Vec<Self> {
        let all: Vec<_> = processes().into_iter().filter_map(|p| Some((p, p.parent()?))).collect();
        let mut found = vec![self];
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            let new = all.iter().filter(|(p, pp)| *pp == parent && !found.contains(p)).map(|(p, _)| *p);
            found.extend(new.collect::<Vec<_>>());
            next += 1;
        }
        found.split_off(1)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone or not ours to signal.
    pub fn kill(self, signal: i32) -> Result<()> {
        Ok(crate::sys::kill(self.0, signal)?)
    }

    pub(crate) fn path(self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.0))
    }

    /// A field of `/proc/PID/stat`, counted from the one after the name, which may itself hold spaces and brackets.
    fn stat(self, field: usize) -> Option<String> {
        let text = fs::read(self.path("stat")).ok()?;
        let text = String::from_utf8_lossy(&text);
        text.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
    }
}

/// All processes of this pid namespace, lowest pid first.
#[must_use]
pub fn processes() -> Vec<Process> {
    let mut found: Vec<_> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Process))
        .collect();
    found.sort_unstable();
    found
}

/// Asks `f` again and again until it has an answer. For outcomes, never for measuring time.
///
/// # Errors
/// When there is no answer within `limit`; `what` says what was waited for.
pub fn wait_until<T>(what: &str, limit: Duration, mut f: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = f() {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An id such as `web-1a2b3-4c5d-7` that no other test, run or person uses.
#[must_use]
pub fn unique_id(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u32);
    format!("{prefix}-{:x}-{now:x}-{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
