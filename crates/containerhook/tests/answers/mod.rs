//! What containers leave on a host, for tests that say that nothing is left.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part of this")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{ContainerEvent, Decision, EventKind};
use testkit::{Output, Process, Task, processes, wait_until};

use crate::support::{LIMIT, PATIENCE};

/// Runs a command to its end, however it ends.
pub fn done(command: &mut Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)
}

/// Where runtimes and engines keep state outside a test's own folders, next to everybody else's.
const SHARED: [&str; 5] = ["/run/runc", "/run/crun", "/run/youki", "/run/containerd", "/run/libpod"];

/// Where to look for what an engine and its containers leave.
#[derive(Clone)]
pub struct Places {
    /// The engine's folder: all of it is the test's own.
    pub own: PathBuf,
    /// Whose mounts to look at.
    pub mounts_of: Process,
}

/// All that a host has of an engine and its containers, by names that occur nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    processes: BTreeSet<(Process, String)>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Places {
    /// What is there now of the engine, and of containers of these ids.
    pub fn traces(&self, ids: &[&str]) -> Traces {
        let own = self.own.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let words: Vec<&str> = ids.iter().copied().chain([own.as_str()]).collect();
        let named = |text: &str| words.iter().any(|word| text.contains(word));
        let mut traces = Traces::default();
        let mut carries = |process: &Process| {
            let cwd = fs::read_link(format!("/proc/{}/cwd", process.0)).unwrap_or_default();
            let (args, cgroups) = (process.args(), process.cgroups());
            let all = args.iter().chain(&cgroups).map(String::as_str);
            let carries = all.chain([&*cwd.to_string_lossy()]).any(named);
            if carries && process.is_alive() && *process != Process::me() {
                traces.processes.insert((*process, args.join(" ")));
            }
        };
        processes().iter().for_each(&mut carries);
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.mounts_of.0)).unwrap_or_default();
        for line in table.lines() {
            let at = line.split(' ').nth(4).unwrap_or_default();
            // Podman leaves its own mount of its storage after any run that fails, and takes it away with a later command.
            if named(line) && Path::new(at) != self.own.join("storage/overlay") {
                traces.mounts.insert(at.to_owned());
            }
            if line.split(" - ").nth(1).is_some_and(|kind| kind.starts_with("cgroup")) {
                walk(Path::new(at), &mut |path| {
                    if named(&path.to_string_lossy()) {
                        traces.cgroups.insert(path.to_owned());
                    }
                });
            }
        }
        for shared in SHARED {
            walk(Path::new(shared), &mut |path| {
                if named(&path.to_string_lossy()) {
                    traces.files.insert(path.to_owned());
                }
            });
        }
        walk(&self.own, &mut |path| _ = traces.files.insert(path.to_owned()));
        traces
    }

    /// Waits until there is nothing that was not there before, and nothing of these containers: engines clean up after
    /// they have told their user.
    pub fn wait_clean(&self, before: &Traces, ids: &[&str]) -> Result<()> {
        self.wait_clean_but(before, ids, &[])
    }

    /// As [`wait_clean`](Self::wait_clean), but for what lies in these folders of the engine.
    pub fn wait_clean_but(&self, before: &Traces, ids: &[&str], but: &[&str]) -> Result<()> {
        let but: Vec<PathBuf> = but.iter().map(|folder| self.own.join(folder)).collect();
        let mut left = String::new();
        let clean = wait_until("nothing is left behind", Duration::from_secs(20), || {
            let mut now = self.traces(ids);
            now.files.retain(|file| !but.iter().any(|folder| file.starts_with(folder)));
            left = now.beyond(before);
            left.is_empty().then_some(())
        });
        clean.with_context(|| format!("left behind by {ids:?}:{left}"))
    }
}

impl Traces {
    /// What is here and was not there.
    fn beyond(&self, before: &Traces) -> String {
        let mut text = String::new();
        for (process, args) in &self.processes {
            // One that executes another program is still the same.
            if before.processes.iter().all(|(other, _)| other != process) {
                let _ = write!(text, "\n  process {} {args}", process.0);
            }
        }
        for mount in self.mounts.difference(&before.mounts) {
            let _ = write!(text, "\n  mount {mount}");
        }
        for cgroup in self.cgroups.difference(&before.cgroups) {
            let _ = write!(text, "\n  cgroup {}", cgroup.display());
        }
        for file in self.files.difference(&before.files).filter(|file| !is_the_engines(file)) {
            let _ = write!(text, "\n  file {}", file.display());
        }
        text
    }
}

/// What comes and goes at other times than containers: logs and locks, and the files on which Docker mounted network
/// namespaces, which it removes once a minute.
fn is_the_engines(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
    [".log", ".lock", "-journal"].iter().any(|end| name.ends_with(end))
        || name.starts_with(".tmp")
        || folder == "netns"
}

/// Everything below a folder on its file system.
fn walk(folder: &Path, see: &mut dyn FnMut(&Path)) {
    let Ok(device) = fs::symlink_metadata(folder).map(|m| m.dev()) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        see(&path);
        let Ok(facts) = entry.metadata() else { continue };
        if facts.is_dir() && facts.dev() == device {
            walk(&path, see);
        }
    }
}

/// A handler that refuses one kind of event as long as it is told to.
#[derive(Clone, Default)]
pub struct Refuser(Arc<Mutex<Refusing>>);

#[derive(Default)]
struct Refusing {
    kind: Option<EventKind>,
    /// Whether the sandboxes of pods are meant, or the containers.
    sandboxes: bool,
    /// Sockets of the shims of all containers seen: their names do not tell whose they are.
    sockets: BTreeSet<PathBuf>,
}

/// The reason that [`Refuser`] gives.
pub const REASON: &str = "not on this host";

impl Refuser {
    pub fn refuse(&self, kind: Option<EventKind>) {
        self.0.lock().expect("no handler panics").kind = kind;
    }

    pub fn refuse_sandboxes(&self, kind: Option<EventKind>) {
        let mut this = self.0.lock().expect("no handler panics");
        (this.kind, this.sandboxes) = (kind, kind.is_some());
    }

    pub fn on_event(&self, event: &ContainerEvent) -> Decision {
        let mut this = self.0.lock().expect("no handler panics");
        let address = event.bundle().map(|bundle| bundle.join("address"));
        if let Some(address) = address.and_then(|file| fs::read_to_string(file).ok()) {
            this.sockets.insert(address.trim().trim_start_matches("unix://").into());
        }
        let sandbox = event.kubernetes().is_some_and(|kubernetes| kubernetes.sandbox);
        if this.kind == Some(event.kind()) && this.sandboxes == sandbox {
            Decision::deny(REASON)
        } else {
            Decision::allow()
        }
    }

    /// Waits until no shim of a container that was seen has a socket any more.
    pub fn wait_for_shims(&self) -> Result<()> {
        let sockets = self.0.lock().expect("no handler panics").sockets.clone();
        if sockets.is_empty() {
            bail!("no shim was seen");
        }
        wait_until("the shims have removed their sockets", PATIENCE, || {
            sockets.iter().all(|socket| !socket.exists()).then_some(())
        })
    }
}

/// Every test of this program is named in `docs/answers.md`, and every name in its part of the page is that of a test.
pub fn ensure_documented(program: &str) -> Result<()> {
    // Compiled in: a guest of `cargo xtask vm` has the test and not the page.
    let page = include_str!("../../../../docs/answers.md");
    let (refused, changed) = page.split_once("\n## Changed").context("no such part")?;
    let part = if program == "answers_deny" { refused } else { changed };
    let cells = part.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.rsplit('|').nth(1));
    let named: BTreeSet<String> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|name| *name != program)
        .map(str::to_owned)
        .collect();
    let list = done(Command::new(std::env::current_exe()?).arg("--list"))?.ok()?.stdout;
    let tests: BTreeSet<String> = list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| !name.starts_with("the_table"))
        .map(str::to_owned)
        .collect();
    ensure!(!tests.is_empty() && named == tests, "{:?}", named.symmetric_difference(&tests));
    Ok(())
}
