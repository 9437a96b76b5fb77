//! What a container's cgroup counts: kills for want of memory, and what was used.
//!
//! The files are found while the init lives, for a dead process tells its cgroup no more. Only their paths are kept: no
//! descriptor is open, so nothing of this outlives the cgroup. Version 1, version 2 and both beside each other
//! (hybrid) are read where systemd mounts them, below `/sys/fs/cgroup`.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::event::Resources;
use crate::exit::Process;
use crate::proc::HostProc;

/// These files are short; `memory.stat` and its like are not read.
const MOST: u64 = 64 << 10;

/// Where a container's counters are, and what one of them said when its init was found.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    /// `memory.events` or `memory.oom_control`.
    kills: Option<PathBuf>,
    /// A cgroup can be older than the container.
    kills_before: Option<u64>,
    peak: Option<PathBuf>,
    cpu: Option<Cpu>,
}

#[derive(Debug)]
enum Cpu {
    /// `cpuacct.usage`, in nanoseconds.
    Nanoseconds(PathBuf),
    /// `usage_usec` in `cpu.stat`.
    Stat(PathBuf),
}

impl Cgroup {
    /// The cgroup of this process; `None` where it is in none of its own, or has ended.
    pub(crate) fn of(proc: &HostProc, pid: i32, host_root: &Path) -> Option<Cgroup> {
        let text = read(&proc.path(pid, "cgroup"))?;
        let cgroup = Cgroup::by(&text, &host_root.join("sys/fs/cgroup"));
        (cgroup.kills.is_some() || cgroup.peak.is_some() || cgroup.cpu.is_some()).then_some(cgroup)
    }

    /// By what `/proc/PID/cgroup` says, below the folder where the hierarchies are mounted.
    fn by(text: &str, mounts: &Path) -> Cgroup {
        let mut cgroup = Cgroup::default();
        let mut unified = None;
        for line in text.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let Some(inside) = own(path) else { continue };
            if number == "0" {
                let root = if mounts.join("cgroup.controllers").exists() {
                    mounts.to_owned()
                } else {
                    mounts.join("unified")
                };
                unified = Some(root.join(inside));
                continue;
            }
            // A hierarchy is mounted under the names of all its controllers, and linked under each.
            let dir = |controller: &str| {
                controllers.split(',').any(|one| one == controller).then(|| {
                    let together = mounts.join(controllers).join(inside);
                    if together.is_dir() { together } else { mounts.join(controller).join(inside) }
                })
            };
            if let Some(dir) = dir("memory") {
                cgroup.kills = existing(dir.join("memory.oom_control"));
                cgroup.peak = existing(dir.join("memory.max_usage_in_bytes"));
            }
            if let Some(dir) = dir("cpuacct") {
                cgroup.cpu = existing(dir.join("cpuacct.usage")).map(Cpu::Nanoseconds);
            }
        }
        if let Some(dir) = unified {
            cgroup.kills = cgroup.kills.or_else(|| existing(dir.join("memory.events")));
            // Since 5.19.
            cgroup.peak = cgroup.peak.or_else(|| existing(dir.join("memory.peak")));
            cgroup.cpu = cgroup.cpu.or_else(|| existing(dir.join("cpu.stat")).map(Cpu::Stat));
        }
        cgroup.kills_before = cgroup.kills();
        cgroup
    }

    fn kills(&self) -> Option<u64> {
        value(&read(self.kills.as_deref()?)?, "oom_kill")
    }

    /// Has the kernel killed processes of this cgroup for want of memory since it was found? `None` where the cgroup is
    /// gone.
    pub(crate) fn has_killed(&self) -> Option<bool> {
        Some(self.kills()? > self.kills_before?)
    }

    /// What was used up to now; `None` where the cgroup is gone.
    pub(crate) fn resources(&self) -> Option<Resources> {
        let cpu_usec = match &self.cpu {
            Some(Cpu::Nanoseconds(path)) => number(path).map(|ns| ns / 1000),
            Some(Cpu::Stat(path)) => read(path).and_then(|text| value(&text, "usage_usec")),
            None => None,
        };
        let memory_peak = self.peak.as_deref().and_then(number);
        (cpu_usec.is_some() || memory_peak.is_some()).then_some(Resources { cpu_usec, memory_peak })
    }
}

/// Ends a process by its cgroup (version 2, Linux 5.14), where it is the only one in it: for a process that no signal
/// reaches, since it is in another pid namespace than we are.
pub(crate) fn kill(proc: &HostProc, process: Process, host_root: &Path) -> Result<(), String> {
    let text = read(&proc.path(process.pid, "cgroup")).unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let inside = own(path).ok_or("it has no cgroup (version 2) of its own that is seen from here")?;
    let mounts = host_root.join("sys/fs/cgroup");
    let root = if mounts.join("cgroup.controllers").exists() { mounts } else { mounts.join("unified") };
    let dir = root.join(inside);
    let file = |name: &str| dir.join(name);
    // Who is not in our pid namespace is a line with a 0.
    let processes = read(&file("cgroup.procs")).ok_or_else(|| format!("{} cannot be read", dir.display()))?;
    let below = read(&file("cgroup.stat")).and_then(|text| value(&text, "nr_descendants"));
    if processes.lines().count() != 1 || below != Some(0) {
        return Err(format!("{} is not its alone", dir.display()));
    }
    // The pid is asked after: it is this very process that is in there.
    if !proc.stat(process.pid).is_ok_and(|now| now.start_time == process.start_time) {
        return Ok(());
    }
    std::fs::write(file("cgroup.kill"), "1").map_err(|e| format!("{}: {e}", file("cgroup.kill").display()))
}

/// A path inside a hierarchy, unless it is the root's, lies outside of the reader's cgroup namespace or was removed.
fn own(path: &str) -> Option<&str> {
    let inside = path.strip_prefix('/')?;
    let fits = !inside.is_empty()
        && !inside.ends_with(" (deleted)")
        && inside.split('/').all(|name| name != ".." && name != ".");
    fits.then_some(inside)
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.exists().then_some(path)
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    Some(text)
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim_ascii().parse().ok()
}

/// The number behind a key, of a file of `key number` lines.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key)?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Mounts(tempfile::TempDir);

    impl Mounts {
        fn new(files: &[(&str, &str)]) -> Mounts {
            let mounts = Mounts(tempfile::tempdir().unwrap());
            for (path, text) in files {
                mounts.write(path, text);
            }
            mounts
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn of(&self, text: &str) -> Cgroup {
            Cgroup::by(text, self.0.path())
        }
    }

    fn used(cpu_usec: u64, memory_peak: u64) -> Option<Resources> {
        Some(Resources { cpu_usec: Some(cpu_usec), memory_peak: Some(memory_peak) })
    }

    #[test]
    fn version_1() {
        let mounts = Mounts::new(&[
            ("memory/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory/c/memory.max_usage_in_bytes", "4096\n"),
            ("cpu,cpuacct/c/cpuacct.usage", "2500999\n"),
        ]);
        let cgroup = mounts.of("4:memory:/c\n2:cpu,cpuacct:/c\n1:name=systemd:/c\n");
        assert_eq!(cgroup.resources(), used(2500, 4096));
        assert_eq!(cgroup.has_killed(), Some(false), "what was counted before is not the container's");
        mounts.write("memory/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        assert_eq!(cgroup.has_killed(), Some(true));
        fs::remove_dir_all(mounts.0.path().join("memory")).unwrap();
        assert_eq!(cgroup.has_killed(), None, "the cgroup is gone: nothing is known");
    }

    #[test]
    fn version_2() {
        let mounts = Mounts::new(&[
            ("cgroup.controllers", "cpu memory\n"),
            ("a b/c:d/memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n"),
            ("a b/c:d/memory.peak", "8192\n"),
            ("a b/c:d/cpu.stat", "usage_usec 77\nuser_usec 70\n"),
        ]);
        let cgroup = mounts.of("0::/a b/c:d\n");
        assert_eq!((cgroup.resources(), cgroup.has_killed()), (used(77, 8192), Some(false)));
        mounts.write("a b/c:d/memory.events", "oom 2\noom_kill 1\n");
        assert_eq!(cgroup.has_killed(), Some(true));
    }

    #[test]
    fn hybrid() {
        let mounts = Mounts::new(&[
            ("memory/c/memory.oom_control", "oom_kill 0\n"),
            ("memory/c/memory.max_usage_in_bytes", "1\n"),
            ("cpuacct/c/cpuacct.usage", "5000\n"),
            ("unified/c/cpu.stat", "usage_usec 9\n"),
        ]);
        let cgroup = mounts.of("4:memory:/c\n2:cpuacct:/c\n0::/c\n");
        assert_eq!((cgroup.resources(), cgroup.has_killed()), (used(5, 1), Some(false)));
    }

    #[test]
    fn nobodys_cgroup_is_none() {
        let mounts =
            Mounts::new(&[("memory/memory.oom_control", "oom_kill 7\n"), ("cgroup.controllers", "")]);
        for text in ["4:memory:/\n", "0::/\n", "0::/../x\n", "4:memory:/c (deleted)\n", "x", "", "4:memory\n"]
        {
            let cgroup = mounts.of(text);
            assert_eq!((cgroup.resources(), cgroup.has_killed()), (None, None), "{text:?}");
        }
    }
}
