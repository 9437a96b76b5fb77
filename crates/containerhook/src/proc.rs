//! The few facts of `/proc` that are read while an exec is held: read once, parsed by hand, no path of a container.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Who a task is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskFacts {
    pub(crate) tid: i32,
    pub(crate) tgid: i32,
    pub(crate) ppid: i32,
    /// Of the process, in clock ticks since boot: with the pid its identity.
    pub(crate) start_time: u64,
    pub(crate) uid: u32,
    pub(crate) euid: u32,
    pub(crate) fsuid: u32,
    pub(crate) fsgid: u32,
    pub(crate) groups: Vec<u32>,
    /// The process's pid in its own pid namespace.
    pub(crate) own_pid: i32,
    /// The inode number of its user namespace.
    pub(crate) user_ns: u64,
}

/// A process as its `stat` file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) ppid: i32,
    /// In clock ticks since boot.
    pub(crate) start_time: u64,
}

/// The procfs that shows the host's processes, by the host's pids.
///
/// It is `/proc`, unless the listener is in a pid namespace of its own: then it is `HOST_ROOT/proc`, which has to be the
/// host's. That is decided once, when a notifier starts. What a program asks of itself (`/proc/self`,
/// `/proc/thread-self`) is in any procfs the same and is no business of this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostProc {
    dir: Arc<Path>,
    own_pid: i32,
    foreign: bool,
}

impl Default for HostProc {
    /// Our own.
    fn default() -> Self {
        HostProc { dir: Path::new(OWN).into(), own_pid: std::process::id().cast_signed(), foreign: false }
    }
}

const OWN: &str = "/proc";

impl HostProc {
    /// That of the host whose file system is seen here.
    pub(crate) fn of(host_root: &Path) -> Self {
        let seen = |dir: PathBuf| -> Option<HostProc> {
            // From the procfs's own pid namespace down to ours.
            let status = read_small(&dir.join("self/status")).ok()?;
            let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            let pids: Vec<i32> = pids.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
            Some(HostProc { dir: dir.into(), own_pid: *pids.first()?, foreign: pids.len() > 1 })
        };
        let hosts = seen(host_root.join("proc")).filter(|proc| proc.foreign);
        // A procfs from above may lie at /proc itself (`unshare --pid` without `--mount-proc`).
        hosts.or_else(|| seen(OWN.into())).unwrap_or_default()
    }

    /// Whether its pids are not ours: no system call that takes a pid reaches its processes.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Ours, taken for another pid namespace's: what no pid can be used for then goes on without.
    #[cfg(test)]
    pub(crate) fn pretend_foreign() -> Self {
        HostProc { foreign: true, ..HostProc::default() }
    }

    /// This process, as it is numbered here.
    pub(crate) fn own_pid(&self) -> i32 {
        self.own_pid
    }

    /// Where it is mounted.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of a process or of a thread.
    pub(crate) fn path(&self, pid: i32, name: &str) -> PathBuf {
        self.dir.join(pid.to_string()).join(name)
    }

    pub(crate) fn task_facts(&self, tid: i32) -> io::Result<TaskFacts> {
        let mut facts = self.plain_facts(tid)?;
        facts.user_ns = self.namespace(tid, "user")?;
        Ok(facts)
    }

    /// All but its user namespace, which only some may look at.
    pub(crate) fn plain_facts(&self, tid: i32) -> io::Result<TaskFacts> {
        let status = read_small(&self.path(tid, "status"))?;
        let mut facts = parse_status(&status).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        facts.tid = tid;
        facts.start_time = self.stat(facts.tgid)?.start_time;
        Ok(facts)
    }

    /// The inode number of one of a task's namespaces.
    pub(crate) fn namespace(&self, tid: i32, name: &str) -> io::Result<u64> {
        std::fs::metadata(self.path(tid, "ns").join(name)).map(|m| m.ino())
    }

    /// One of the host's own namespaces: that of process 1, or where it may not be looked at, of the kernel's threads.
    pub(crate) fn host_namespace(&self, name: &str) -> io::Result<u64> {
        self.namespace(1, name).or_else(|error| {
            // A program may be process 2 of a host that is a container itself; it has an executable.
            let is_kernel = self.comm(2).is_ok_and(|comm| comm == "kthreadd")
                && std::fs::read_link(self.path(2, "exe"))
                    .is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
            if is_kernel { self.namespace(2, name) } else { Err(error) }
        })
    }

    pub(crate) fn stat(&self, pid: i32) -> io::Result<Stat> {
        let text = read_small(&self.path(pid, "stat"))?;
        parse_stat(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The short name of a process (`comm`).
    pub(crate) fn comm(&self, pid: i32) -> io::Result<String> {
        read_small(&self.path(pid, "comm")).map(|name| name.trim_end().to_owned())
    }

    /// What a process is called: its short name, or its executable's file name where it has executed itself through
    /// `/proc/self/exe`, as Go programs do (`podman build` among them), and is called `exe`.
    pub(crate) fn program(&self, pid: i32) -> Option<String> {
        let name = self.comm(pid).ok()?;
        if name != "exe" {
            return Some(name);
        }
        let path = std::fs::read_link(self.path(pid, "exe")).ok()?;
        Some(path.file_name()?.to_string_lossy().into_owned())
    }

    /// The pids of a process's ancestors, nearest first.
    pub(crate) fn ancestors(&self, pid: i32) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut at = pid;
        // Deep enough for a runtime that a runtime's wrapper runs, and bounded.
        while pids.len() < 16 {
            match self.stat(at) {
                Ok(Stat { ppid, .. }) if ppid > 0 => {
                    pids.push(ppid);
                    at = ppid;
                }
                _ => break,
            }
        }
        pids
    }
}

/// A file of proc that is written in one piece: what comes by one read, if there is room for more, is all of it.
pub(crate) fn read_small(path: &Path) -> io::Result<String> {
    // Names in these files are bytes; the fields that are used are ASCII.
    let mut file = File::open(path)?;
    let mut bytes = vec![0; 4096];
    let mut length = file.read(&mut bytes)?;
    if length == bytes.len() {
        let mut more = Vec::new();
        file.take(64 << 10).read_to_end(&mut more)?;
        bytes.extend(more);
        length = bytes.len();
    }
    bytes.truncate(length);
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

fn parse_status(text: &str) -> Option<TaskFacts> {
    let mut facts = TaskFacts::default();
    let mut seen = 0;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let mut words = value.split_ascii_whitespace();
        match key {
            "Tgid" => (facts.tgid, seen) = (words.next()?.parse().ok()?, seen + 1),
            "PPid" => (facts.ppid, seen) = (words.next()?.parse().ok()?, seen + 1),
            "Uid" => {
                facts.uid = words.next()?.parse().ok()?;
                facts.euid = words.next()?.parse().ok()?;
                facts.fsuid = words.nth(1)?.parse().ok()?;
                seen += 1;
            }
            "Gid" => (facts.fsgid, seen) = (words.nth(3)?.parse().ok()?, seen + 1),
            "Groups" => facts.groups = words.filter_map(|word| word.parse().ok()).collect(),
            "NStgid" => (facts.own_pid, seen) = (words.next_back()?.parse().ok()?, seen + 1),
            _ => {}
        }
    }
    (seen == 5).then_some(facts)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold anything, a parenthesis too: the last one ends it.
    let mut words = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    Some(Stat {
        state: *words.next()?.as_bytes().first()?,
        ppid: words.next()?.parse().ok()?,
        start_time: words.nth(17)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_behind_a_name_with_parentheses() {
        let text = "42 (a) (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2\n";
        assert_eq!(parse_stat(text), Some(Stat { state: b'S', ppid: 7, start_time: 987_654 }));
        assert_eq!(parse_stat("42 (a"), None);
        assert_eq!(parse_stat("42 (a) S 7"), None);
    }

    #[test]
    fn status_gives_identity_and_rights() {
        let text = "Name:\trunc\nTgid:\t12\nPid:\t13\nPPid:\t9\nUid:\t1000\t0\t0\t5\nGid:\t1\t2\t3\t4\n\
                    Groups:\t4 27 \nNStgid:\t12\t1\nNSpid:\t13\t2\n";
        let facts = parse_status(text).unwrap();
        assert_eq!((facts.tgid, facts.ppid, facts.own_pid), (12, 9, 1));
        assert_eq!((facts.uid, facts.euid, facts.fsuid, facts.fsgid), (1000, 0, 5, 4));
        assert_eq!(facts.groups, [4, 27]);
        assert!(parse_status("Tgid:\t12\n").is_none());
    }

    #[test]
    fn this_process_is_read() {
        let proc = HostProc::of(Path::new("/"));
        let facts = proc.task_facts(proc.own_pid()).unwrap();
        assert_eq!((facts.tgid, facts.tid), (proc.own_pid(), proc.own_pid()));
        assert_eq!(facts.ppid, proc.ancestors(proc.own_pid())[0]);
        assert!(facts.start_time > 0);
    }
}
