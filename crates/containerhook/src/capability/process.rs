//! The rights and namespaces of this process, and what it sees of the host.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Area, Available, Capability};
use crate::proc::HostProc;

/// The inode numbers of the namespaces that a kernel makes first. They are the same on every kernel, and since Linux 6.18
/// part of its interface (`enum init_ns_ino`).
const FIRST_USER: u64 = 0xEFFF_FFFD;
const FIRST_PID: u64 = 0xEFFF_FFFC;

/// Processes that are tried before the answer is "unknown".
const TRIED: usize = 64;

/// Reads the system call of some other process: it takes the same right as reading that of a runtime. One process may
/// be out of reach for reasons of its own, as one with more capabilities than this one has.
pub(super) fn memory(proc: &HostProc) -> Capability {
    let (available, detail) = try_memory(proc.dir(), proc.own_pid());
    let purpose = "the arguments of held executions";
    Capability::new(Area::Process, "process-memory", purpose, available).detail(detail).remedy(
        "grant CAP_SYS_PTRACE, share the host's pid namespace or mount its /proc at HOST_ROOT/proc, and run a kernel \
         without a ptrace restriction (kernel.yama.ptrace_scope below 3)",
    )
}

fn try_memory(proc: &Path, own: i32) -> (Available, Option<String>) {
    let own = own.to_string();
    let entries = match std::fs::read_dir(proc) {
        Ok(entries) => entries,
        Err(error) => return (Available::Unknown, Some(format!("{}: {error}", proc.display()))),
    };
    let mut refused = None;
    let others = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let others = others.filter(|name| *name != own && name.bytes().all(|byte| byte.is_ascii_digit()));
    // Kernel threads have no memory, and no command line.
    let others =
        others.filter(|pid| std::fs::read(proc.join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty()));
    for pid in others.take(TRIED) {
        let path = proc.join(pid).join("syscall");
        match std::fs::read_to_string(&path) {
            Ok(_) => return (Available::Yes, None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => refused = Some(format!("{}: {error}", path.display())),
        }
    }
    match refused {
        Some(refused) => (Available::No, Some(refused)),
        None => (Available::Unknown, Some("no other process was there to try it on".to_owned())),
    }
}

/// Where this process stands, and whether what it takes for the host is the host.
pub(super) struct Namespaces {
    host_root: PathBuf,
    /// The `/proc` in which the host's processes should be.
    proc: PathBuf,
    user: Option<u64>,
    pid: Option<u64>,
    mount: Option<u64>,
    /// Of a process that is the host's if that `/proc` is: its init, or where that cannot be looked at, the kernel's thread
    /// that makes threads, which has the same namespaces and root, and the pid 2 on the host only.
    first: First,
    /// Such a thread is there.
    has_threads: bool,
}

struct First {
    pid: Option<u64>,
    mount: Option<u64>,
    /// Its root folder's device and inode.
    root: Option<(u64, u64)>,
}

impl First {
    fn look(process: &Path) -> First {
        let root = std::fs::metadata(process.join("root/.")).ok().map(|root| (root.dev(), root.ino()));
        First { pid: number(process, "pid"), mount: number(process, "mnt"), root }
    }
}

impl Namespaces {
    pub(super) fn look(host_root: &Path, proc: &HostProc) -> Namespaces {
        let own = Path::new("/proc/self");
        let proc = proc.dir().to_owned();
        let first = ["1", "2"].map(|pid| First::look(&proc.join(pid)));
        let [init, second] = first;
        let has_threads = has_kernel_threads(&proc);
        let first = if init.pid.is_none() && has_threads { second } else { init };
        Namespaces {
            host_root: host_root.to_owned(),
            user: number(own, "user"),
            pid: number(own, "pid"),
            mount: number(own, "mnt"),
            first,
            has_threads,
            proc,
        }
    }

    /// Is this process in the pid namespace of the host?
    pub(super) fn is_host_pid(&self) -> Option<bool> {
        self.pid.map(|number| number == FIRST_PID)
    }

    pub(super) fn capabilities(&self) -> [Capability; 4] {
        [self.user(), self.pid(), self.proc(), self.root()]
    }

    fn user(&self) -> Capability {
        let available = yes_or_no(self.user.map(|number| number == FIRST_USER));
        let detail =
            (available == Available::No).then(|| "this process is in another user namespace".to_owned());
        let purpose = "to tell the host's root from another";
        Capability::new(Area::Process, "host-user-namespace", purpose, available)
            .required(true)
            .detail(detail)
            .remedy(
                "run outside of user namespaces: the kernel gives permission events to the host's root only",
            )
    }

    /// Nothing is missed without it where the host's `/proc` is seen.
    fn pid(&self) -> Capability {
        let available = yes_or_no(self.is_host_pid());
        let detail = match available {
            Available::No => {
                Some("this process is in a pid namespace of its own (hostPID: false)".to_owned())
            }
            _ => None,
        };
        Capability::new(Area::Process, "host-pid-namespace", "to name processes as the host does", available)
            .matters(false)
            .detail(detail)
            .remedy("either share the host's pid namespace, or mount the host's /proc at HOST_ROOT/proc")
    }

    fn proc(&self) -> Capability {
        let path = self.proc.display();
        let (available, detail) = match self.first.pid {
            _ if !is_procfs(&self.proc) => (Available::No, Some(format!("{path} is no procfs"))),
            Some(FIRST_PID) => (Available::Yes, None),
            Some(_) => {
                (Available::No, Some(format!("{path} is that of another pid namespace than the host's")))
            }
            // Reading that takes the same right as reading a process's memory.
            None if self.has_threads => (Available::Yes, None),
            None => (Available::Unknown, Some(format!("the namespaces of {path}/1 cannot be read"))),
        };
        Capability::new(Area::Process, "host-proc", "the host's processes and their pids", available)
            .required(true)
            .detail(detail)
            .remedy("mount the host's /proc at HOST_ROOT/proc, as mounting the host's / at HOST_ROOT does")
    }

    /// Is what is seen at `HOST_ROOT` the root of the host's process 1?
    fn root(&self) -> Capability {
        let root = self.host_root.display();
        let seen = std::fs::metadata(&self.host_root).map(|root| (root.dev(), root.ino()));
        let (available, detail) = match (seen, self.first.root) {
            (Err(error), _) => (Available::No, Some(format!("{root}: {error}"))),
            (Ok(seen), Some(host)) if seen == host => match (self.mount, self.first.mount) {
                (Some(own), Some(first)) if own != first => {
                    (Available::Yes, Some(format!("seen at {root} from another mount namespace")))
                }
                _ => (Available::Yes, None),
            },
            (Ok(_), Some(_)) => {
                let hint = if self.host_root == Path::new("/") {
                    "this process has a root of its own, and HOST_ROOT is not set"
                } else {
                    "HOST_ROOT is another folder"
                };
                (Available::No, Some(format!("{root} is not the root of the host's process 1: {hint}")))
            }
            (Ok(_), None) => {
                (Available::Unknown, Some(format!("the root of {}/1 cannot be read", self.proc.display())))
            }
        };
        Capability::new(Area::Process, "host-root", "to find the host's runtimes", available)
            .detail(detail)
            .remedy("mount the host's / somewhere, and name that folder by HOST_ROOT or --host-root")
    }
}

/// They are in the first pid namespace only, and the one that makes them is always number 2 there.
fn has_kernel_threads(proc: &Path) -> bool {
    let read = |file| std::fs::read_to_string(proc.join("2").join(file));
    read("comm").is_ok_and(|name| name == "kthreadd\n") && read("cmdline").is_ok_and(|line| line.is_empty())
}

fn yes_or_no(is: Option<bool>) -> Available {
    match is {
        Some(true) => Available::Yes,
        Some(false) => Available::No,
        None => Available::Unknown,
    }
}

fn number(process: &Path, namespace: &str) -> Option<u64> {
    std::fs::metadata(process.join("ns").join(namespace)).ok().map(|found| found.ino())
}

fn is_procfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u64 == libc::PROC_SUPER_MAGIC as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Namespaces {
        let first = First { pid: Some(FIRST_PID), mount: Some(7), root: None };
        let (user, pid, mount) = (Some(FIRST_USER), Some(FIRST_PID), Some(7));
        Namespaces {
            host_root: "/".into(),
            proc: "/proc".into(),
            user,
            pid,
            mount,
            first,
            has_threads: false,
        }
    }

    #[test]
    fn on_the_host_itself_all_is_there() {
        let mut here = host();
        let root = std::fs::metadata("/").unwrap();
        here.first.root = Some((root.dev(), root.ino()));
        for capability in here.capabilities() {
            assert_eq!(
                (capability.available, capability.detail),
                (Available::Yes, None),
                "{}",
                capability.name
            );
            assert_eq!(capability.remedy, None);
        }
    }

    #[test]
    fn what_is_not_the_host_is_named() {
        let mut elsewhere = host();
        elsewhere.user = Some(1);
        elsewhere.pid = Some(2);
        elsewhere.first = First { pid: Some(2), mount: None, root: Some((0, 0)) };
        let all = elsewhere.capabilities();
        for capability in &all {
            assert_eq!(capability.available, Available::No, "{}", capability.name);
            assert!(capability.detail.is_some() && capability.remedy.is_some(), "{}", capability.name);
        }
        assert!(all[3].detail.as_deref().unwrap().contains("HOST_ROOT is not set"), "{:?}", all[3]);
        elsewhere.host_root = "/no/such".into();
        assert!(elsewhere.root().detail.unwrap().contains("/no/such: No such file"));
        elsewhere.proc = "/tmp".into();
        assert!(elsewhere.proc().detail.unwrap().contains("is no procfs"));
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let mut unseen = host();
        (unseen.user, unseen.pid) = (None, None);
        unseen.first = First { pid: None, mount: None, root: None };
        for capability in unseen.capabilities() {
            assert_eq!(capability.available, Available::Unknown, "{}", capability.name);
        }
    }
}
