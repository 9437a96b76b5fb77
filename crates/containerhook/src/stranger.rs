//! A container whose runtime no mark held: what `/proc` and the command lines above it say.
//!
//! A family of container programs is one row of [`FAMILIES`]: how its process is known, and how its command line names
//! the container.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::bundle::{Caller, state_file};
use crate::cmdline::{self, Family, StateName, Verb};
use crate::proc::HostProc;

/// What could be learned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stranger {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    /// `lxc`, `systemd-nspawn`, `bubblewrap`, or the file name of whatever has an OCI command line.
    pub(crate) runtime: Option<String>,
    /// The process whose executable has the command line of an OCI runtime: to be marked.
    pub(crate) learned: Option<i32>,
    /// As it was given to `create` or `run`, or as the runtime's state has it.
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) state_root: Option<PathBuf>,
    /// Where the runtime keeps its state of the container.
    pub(crate) state: Option<PathBuf>,
}

/// A process above the container, as `/proc` shows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Above {
    pub(crate) pid: i32,
    pub(crate) comm: OsString,
    /// The executable's file name.
    pub(crate) exe: OsString,
    pub(crate) argv: Vec<OsString>,
}

struct ProgramFamily {
    runtime: &'static str,
    is_it: fn(&Above) -> bool,
    name: fn(&Above) -> Option<String>,
}

/// Programs that make containers and have no OCI command line.
const FAMILIES: &[ProgramFamily] = &[
    ProgramFamily {
        runtime: "lxc",
        // The monitor renames itself, and rewrites its command line: "[lxc monitor] /var/lib/lxc c1".
        is_it: |above| {
            above.exe.as_bytes().starts_with(b"lxc-") || above.comm.as_bytes().starts_with(b"[lxc monitor]")
        },
        name: |above| {
            let first = above.argv.first()?.to_string_lossy().into_owned();
            match first.strip_prefix("[lxc monitor] ") {
                Some(rest) => rest.split_ascii_whitespace().next_back().map(str::to_owned),
                None => option(&above.argv, &["-n", "--name"]),
            }
        },
    },
    ProgramFamily {
        runtime: "systemd-nspawn",
        is_it: |above| above.exe == "systemd-nspawn" || above.comm == "systemd-nspawn",
        name: |above| {
            option(&above.argv, &["-M", "--machine"]).or_else(|| {
                let directory = option(&above.argv, &["-D", "--directory"])?;
                Some(Path::new(&directory).file_name()?.to_string_lossy().into_owned())
            })
        },
    },
    ProgramFamily {
        runtime: "bubblewrap",
        is_it: |above| above.exe == "bwrap" || above.comm == "bwrap",
        name: |_| None,
    },
];

/// What the processes above, nearest first, and the container's cgroup say.
pub(crate) fn describe(init: i32, above: &[Above], cgroup: Option<&str>) -> Stranger {
    for process in above {
        if cmdline::looks_like_oci(&process.argv) {
            let invocation = cmdline::parse(Family::guess(&process.exe), &process.argv);
            let speaks_of_it = invocation.verb.creates() || invocation.verb == Verb::Start;
            if let (true, Some(id)) = (speaks_of_it, &invocation.id) {
                let root = invocation.state_root(&cmdline::Caller::default());
                let state = match (invocation.family.state_file().map(|file| file.name), root) {
                    (Some(StateName::InDirectory(name)), Some(root)) => Some(root.join(id).join(name)),
                    // A copy of runc under a name of its own.
                    (None, Some(root)) => Some(root.join(id).join("state.json")),
                    _ => None,
                };
                return Stranger {
                    state,
                    id: id.to_string_lossy().into_owned(),
                    runtime: Some(process.exe.to_string_lossy().into_owned()),
                    learned: Some(process.pid),
                    bundle: invocation.bundle.clone(),
                    state_root: invocation.root.clone(),
                    name: None,
                };
            }
        }
        if let Some(family) = FAMILIES.iter().find(|family| (family.is_it)(process)) {
            // The nearest one may be a helper, without the command line.
            let mut its = above.iter().filter(|process| (family.is_it)(process));
            let name = its.find_map(|process| (family.name)(process));
            return Stranger {
                id: name.clone().unwrap_or_else(|| format!("{}-{init}", family.runtime)),
                name,
                runtime: Some(family.runtime.to_owned()),
                ..Stranger::default()
            };
        }
    }
    // Engines name a container's cgroup after it: docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID, ID.
    let id = cgroup.and_then(|path| {
        let last = path.rsplit('/').find(|part| !part.is_empty())?;
        let bare = last.strip_suffix(".scope").unwrap_or(last);
        let id = bare.rsplit('-').next()?;
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
    });
    Stranger { id: id.unwrap_or_else(|| format!("pid-{init}")), ..Stranger::default() }
}

/// `-n VALUE`, `-nVALUE`, `--name VALUE`, `--name=VALUE`.
fn option(argv: &[OsString], names: &[&str]) -> Option<String> {
    let mut words = argv.iter().skip(1).map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word == "--" {
            return None;
        }
        for name in names {
            let Some(rest) = word.strip_prefix(name) else { continue };
            if rest.is_empty() {
                return words.next().map(|value| value.into_owned());
            }
            if let Some(value) = rest.strip_prefix('=') {
                return Some(value.to_owned());
            }
            if !name.starts_with("--") {
                return Some(rest.to_owned());
            }
        }
    }
    None
}

/// How many of the newest processes are looked at for the one that started a container.
const NEWEST: usize = 48;

/// Looks at the processes above, as they are now; and as the process that created the container may have ended long
/// ago, at the newest ones for that which has just started it.
pub(crate) fn look(proc: &HostProc, init: i32, ancestors: &[i32]) -> Stranger {
    let mut above: Vec<Above> = ancestors.iter().map(|pid| process(proc, *pid)).collect();
    if !above.iter().any(|process| cmdline::looks_like_oci(&process.argv)) {
        above.splice(0..0, starter(proc, init));
    }
    let cgroup = std::fs::read_to_string(proc.path(init, "cgroup")).unwrap_or_default();
    // On cgroup v1 any hierarchy will do, the one of systemd is always there; on v2 there is one.
    let path = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).max_by_key(|path| path.len());
    describe(init, &above, path)
}

/// `runc start ID` ends a few milliseconds after the container's first program has begun.
fn starter(proc: &HostProc, init: i32) -> Option<Above> {
    let mut pids: Vec<i32> = std::fs::read_dir(proc.dir())
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != init)
        .collect();
    if proc.is_foreign() {
        // /proc/loadavg has the last number of the reader's pid namespace: those above the init's are the next best.
        pids.sort_unstable_by_key(|pid| (pid - init).rem_euclid(1 << 22));
    } else {
        // The newest have the numbers just below the last one that was given, also after the numbers began anew.
        let loadavg = std::fs::read_to_string(proc.dir().join("loadavg")).ok()?;
        let last: i32 = loadavg.split_ascii_whitespace().next_back()?.parse().ok()?;
        pids.sort_unstable_by_key(|pid| (last - pid).rem_euclid(1 << 22));
    }
    // Its own state says which container it starts; there may be others that start at this moment.
    let own = own_pids(proc, init);
    pids.into_iter().take(NEWEST).map(|pid| process(proc, pid)).find(|process| {
        let starts = || cmdline::parse(Family::guess(&process.exe), &process.argv).verb == Verb::Start;
        if !cmdline::looks_like_oci(&process.argv) || !starts() {
            return false;
        }
        let path = describe(init, std::slice::from_ref(process), None).state;
        let pid = path.and_then(|path| state_pid(proc, process.pid, &path));
        pid.is_some_and(|pid| own.contains(&pid))
    })
}

/// The pids of a process in all namespaces that it is in, below ours.
fn own_pids(proc: &HostProc, pid: i32) -> Vec<i32> {
    let status = std::fs::read_to_string(proc.path(pid, "status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Whose init a runtime's state names, as that runtime numbers it. It is read with that runtime's rights, in its root:
/// anybody may call a process `start`.
fn state_pid(proc: &HostProc, runtime: i32, path: &Path) -> Option<i32> {
    let facts = proc.task_facts(runtime).ok()?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let root = File::options().read(true).custom_flags(flags).open(proc.path(runtime, "root")).ok()?;
    let caller = Caller {
        root: root.as_fd(),
        cwd: root.as_fd(),
        fsuid: facts.fsuid,
        fsgid: facts.fsgid,
        groups: &facts.groups,
        trusted: false,
    };
    state_file::read_state(&caller, path).ok()?.pid
}

fn process(proc: &HostProc, pid: i32) -> Above {
    let comm = std::fs::read(proc.path(pid, "comm")).unwrap_or_default();
    let line = std::fs::read(proc.path(pid, "cmdline")).unwrap_or_default();
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let exe = std::fs::read_link(proc.path(pid, "exe")).unwrap_or_default();
    let exe = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let argv: Vec<OsString> =
        line.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned()).collect();
    // A binary that was replaced while it ran.
    let mut exe = OsString::from(exe.strip_suffix(" (deleted)").unwrap_or(&exe));
    // crun executes itself again from a mount that is nowhere, others from a copy in memory.
    if exe.is_empty() || exe.as_bytes().starts_with(b"memfd:") {
        let own = argv.first().and_then(|word| Path::new(word).file_name());
        exe = own.unwrap_or_default().to_owned();
    }
    Above { pid, comm: OsStr::from_bytes(comm.trim_ascii_end()).to_owned(), exe, argv }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn above(exe: &str, comm: &str, argv: &[&str]) -> Above {
        Above { pid: 9, comm: comm.into(), exe: exe.into(), argv: argv.iter().map(OsString::from).collect() }
    }

    #[test]
    fn families_are_known_by_their_processes() {
        let lxc = above("lxc-start", "[lxc monitor] /", &["[lxc monitor] /var/lib/lxc web"]);
        let table = [
            (lxc, "lxc", "web", Some("web")),
            (
                above("lxc-execute", "lxc-execute", &["lxc-execute", "-P", "/x", "-n", "c1", "--", "a"]),
                "lxc",
                "c1",
                Some("c1"),
            ),
            (
                above(
                    "systemd-nspawn",
                    "systemd-nspawn",
                    &["systemd-nspawn", "-q", "-D", "/srv/deb", "/bin/true"],
                ),
                "systemd-nspawn",
                "deb",
                Some("deb"),
            ),
            (
                above(
                    "systemd-nspawn",
                    "systemd-nspawn",
                    &["systemd-nspawn", "--machine=m1", "-D", "/srv/deb"],
                ),
                "systemd-nspawn",
                "m1",
                Some("m1"),
            ),
            (
                above("bwrap", "bwrap", &["bwrap", "--bind", "/", "/", "sh"]),
                "bubblewrap",
                "bubblewrap-42",
                None,
            ),
        ];
        for (process, runtime, id, name) in table {
            let said = describe(42, &[above("sh", "sh", &["sh"]), process], None);
            assert_eq!(
                (said.runtime.as_deref(), said.id.as_str(), said.name.as_deref()),
                (Some(runtime), id, name)
            );
            assert_eq!(said.learned, None);
        }
    }

    #[test]
    fn an_unlisted_runtime_is_learned_by_its_command_line() {
        let argv =
            ["/opt/x/my-oci", "--root", "/run/x", "create", "--bundle", "/b", "--pid-file", "/p", "c9"];
        let said = describe(42, &[above("my-oci", "my-oci", &argv)], None);
        assert_eq!((said.id.as_str(), said.learned), ("c9", Some(9)));
        assert_eq!(said.bundle.as_deref(), Some(Path::new("/b")));
        assert_eq!(said.state_root.as_deref(), Some(Path::new("/run/x")));
    }

    #[test]
    fn a_cgroup_names_the_container_where_nothing_else_does() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/x/cri-containerd-{id}.scope"),
        ] {
            assert_eq!(describe(42, &[], Some(&path)).id, id);
        }
        assert_eq!(describe(42, &[], Some("/user.slice")).id, "pid-42");
    }
}
