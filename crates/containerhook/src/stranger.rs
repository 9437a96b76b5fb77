//! A container whose runtime no mark held: what `/proc` and the command lines above it say.
//!
//! A family of container programs is one row of [`FAMILIES`]: how its process is known, and how its command line names
//! the container.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cmdline::{self, Family};
use crate::exec_watch::Seen;

/// What could be learned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stranger {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    /// `lxc`, `systemd-nspawn`, `bubblewrap`, or the file name of whatever has an OCI command line.
    pub(crate) runtime: Option<String>,
    /// The process whose executable has the command line of an OCI runtime: to be marked.
    pub(crate) learned: Option<i32>,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) state_root: Option<PathBuf>,
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
            if let (true, Some(id)) = (invocation.verb.creates(), &invocation.id) {
                return Stranger {
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
            let name = (family.name)(process);
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

/// Looks at the processes above, as they are now.
pub(crate) fn look(seen: &Seen) -> Stranger {
    let above: Vec<Above> = seen
        .ancestors
        .iter()
        .map(|ancestor| {
            let pid = ancestor.process.pid;
            let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let line = read("cmdline");
            let line = line.strip_suffix(b"\0").unwrap_or(&line);
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let exe = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Above {
                pid,
                comm: ancestor.comm.clone(),
                // A binary that was replaced while it ran.
                exe: exe.strip_suffix(" (deleted)").unwrap_or(&exe).into(),
                argv: line.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned()).collect(),
            }
        })
        .collect();
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", seen.init.pid)).unwrap_or_default();
    // On cgroup v1 any hierarchy will do, the one of systemd is always there; on v2 there is one.
    let path = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).max_by_key(|path| path.len());
    describe(seen.init.pid, &above, path)
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
