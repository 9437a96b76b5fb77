//! A changed configuration at `PreCreate`: the container sees it, nobody reads half of it, and what engines make of it later.
//!
//! `docs/answers.md` states what these tests show.

#[path = "answers/mod.rs"]
mod answers;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use answers::done;
use anyhow::{Context as _, Result, ensure};
use containerhook::{
    ConfigChange, ContainerEvent, Decision, EventKind, Handler, HookKind, OnTimeout, Record, Verdict,
};
use serde_json::Value;
use support::{LIMIT, Listener, PATIENCE, only, the};
use testkit::{
    Bundle, Containerd, Cri, Dockerd, Family, Output, Podman, Runtime, Scratch, need, unique_id, wait_until,
    watchdog,
};

use EventKind::{Created, PreCreate, Started};

/// Changes every container in all of the usual ways, and looks at the file while it is changed.
struct Changer {
    scratch: Scratch,
    seen: Mutex<Vec<Seen>>,
    readers: Mutex<Vec<Reader>>,
}

/// A `config.json` before and after.
struct Seen {
    id: String,
    old: Vec<u8>,
    new: Vec<u8>,
    path: PathBuf,
}

/// Reads a file again and again.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<Vec<u8>>>,
}

const OWNER: (u32, u32) = (123, 456);
const MODE: u32 = 0o640;

impl Changer {
    fn new() -> Result<Arc<Self>> {
        let scratch = Scratch::new()?;
        fs::create_dir(scratch.join("tools"))?;
        fs::write(scratch.join("tools/mounted"), "from the host\n")?;
        // A hook gets the container's state, with its annotations.
        let busybox = testkit::skip::find_program("busybox").context("no busybox")?;
        ensure!(Command::new("cp").arg(busybox).arg(scratch.join("busybox")).status()?.success());
        Ok(Arc::new(Changer { scratch, seen: Mutex::default(), readers: Mutex::default() }))
    }

    fn change(&self, event: &ContainerEvent) -> Result<Decision> {
        let config = event.config().context("no config")?;
        let path = event.bundle().context("no bundle")?.join("config.json");
        let value = config.value().context("no value")?;
        let mut args: Vec<&str> = Vec::new();
        for arg in value["process"]["args"].as_array().context("no arguments")? {
            args.push(arg.as_str().context("no word")?);
        }
        let state = self.scratch.join(event.id());
        let tools = self.scratch.join("tools");
        let mut change = ConfigChange::of(config)?;
        change.add_env("TRACE", "on").remove_env("UNWANTED");
        change.set_args(args.iter().map(|arg| if *arg == "original" { "changed" } else { arg }));
        change.add_bind(&tools.to_string_lossy(), "/tools", &["ro"]);
        change.add_annotation("containerhook/test", "annotated");
        change.add_rlimit("NOFILE", 77, 78);
        change.drop_capability("KILL");
        let hook = format!("exec {} cat > {}", self.busybox(), state.display());
        change.add_hook(HookKind::CreateRuntime, &self.busybox(), &["sh", "-c", &hook], &[]);

        // An owner and a mode that nobody makes by chance.
        chown(&path, Some(OWNER.0), Some(OWNER.1))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(MODE))?;
        let (old, new) = (config.raw().to_vec(), change.to_bytes());
        self.readers.lock().unwrap().push(Reader::start(path.clone()));
        self.seen.lock().unwrap().push(Seen { id: event.id().to_owned(), old, new, path });
        Ok(Decision::change(&change))
    }

    fn busybox(&self) -> String {
        self.scratch.join("busybox").to_string_lossy().into_owned()
    }

    /// What the hook was told of the container.
    fn hooked(&self, id: &str) -> Result<Value> {
        let path = self.scratch.join(id);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// While it was changed, the file was the old one or the new one, and it belongs to whom it did.
    fn ensure_whole(&self, id: &str) -> Result<()> {
        let mut read = BTreeSet::new();
        for reader in std::mem::take(&mut *self.readers.lock().unwrap()) {
            reader.stop.store(true, Ordering::SeqCst);
            read.extend(reader.thread.join().expect("it does not panic"));
        }
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().find(|seen| seen.id == id).context("it was not changed")?;
        ensure!(!read.is_empty());
        for bytes in read {
            ensure!(bytes == seen.old || bytes == seen.new, "half: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(())
    }

    fn ensure_kept(&self, id: &str) -> Result<()> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().find(|seen| seen.id == id).context("it was not changed")?;
        let facts = fs::metadata(&seen.path)?;
        ensure!(fs::read(&seen.path)? == seen.new);
        ensure!((facts.uid(), facts.gid(), facts.mode() & 0o7777) == (OWNER.0, OWNER.1, MODE), "{facts:?}");
        let folder = seen.path.parent().context("no folder")?;
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            ensure!(!name.contains("containerhook-") || !name.starts_with('.'), "{name} was left");
        }
        Ok(())
    }
}

impl Reader {
    fn start(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::SeqCst) {
                // Its engine removes it in the end.
                let Ok(bytes) = fs::read(&path) else { break };
                seen.insert(bytes);
            }
            seen
        });
        Reader { stop, thread }
    }
}

/// Changes what is about to be created, and looks at the file again when the runtime has read it.
struct Changing(Arc<Changer>, Arc<OnceLock<String>>);

impl Handler for Changing {
    fn on_event(&self, event: &ContainerEvent) -> Decision {
        let sandbox = event.kubernetes().is_some_and(|kubernetes| kubernetes.sandbox);
        let done = match event.kind() {
            _ if sandbox => Ok(Decision::allow()),
            PreCreate => self.0.change(event),
            Created => self.0.ensure_kept(event.id()).map(|()| Decision::allow()),
            _ => Ok(Decision::allow()),
        };
        done.unwrap_or_else(|error| {
            let _ = self.1.set(format!("{error:#}"));
            Decision::deny(format!("{error:#}"))
        })
    }
}

struct Test {
    changer: Arc<Changer>,
    failure: Arc<OnceLock<String>>,
    listener: Listener,
}

impl Test {
    fn start(runtime: &Runtime) -> Result<Self> {
        let (changer, failure) = (Changer::new()?, Arc::default());
        let handler = Changing(Arc::clone(&changer), Arc::clone(&failure));
        let listener = Listener::start(only([runtime.path()]), handler)?;
        Ok(Test { changer, failure, listener })
    }

    /// The container that was changed first, when it has been told as started.
    fn started(&self) -> Result<Vec<Record>> {
        let found = self.listener.wait_for("it has started", |records| {
            let started = records.iter().find(|record| record.event.kind() == Started)?;
            let of_it = |record: &&Record| record.event.id() == started.event.id();
            Some(records.iter().filter(of_it).cloned().collect())
        });
        if let Some(failure) = self.failure.get() {
            anyhow::bail!("the handler: {failure}");
        }
        found
    }

    /// What the container printed, and what was told, is all of the change.
    fn check(&self, output: &str) -> Result<()> {
        let records = self.started()?;
        let id = records[0].event.id().to_owned();
        self.changer.ensure_whole(&id)?;
        let answer = records[0].answer.as_ref().context("no answer")?;
        ensure!(answer.decision == Verdict::Change && answer.reason.is_none(), "{answer:?}");
        let seen = self.changer.seen.lock().unwrap();
        let new = &seen.iter().find(|seen| seen.id == id).context("it was not changed")?.new;
        // What is told from now on is what the runtime has read.
        let config = the(Created, &records)?.event.config().context("no config")?;
        ensure!(config.raw() == new, "another config is told");
        let words: Vec<(&str, &str)> =
            output.lines().filter_map(|line| line.trim().split_once('=')).collect();
        let word = |name: &str| words.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        ensure!(word("trace") == Some("on"), "{output}");
        ensure!(word("unwanted") == Some(""), "{output}");
        ensure!(word("argument") == Some("changed"), "{output}");
        ensure!(word("mounted") == Some("from the host"), "{output}");
        ensure!(word("writable") == Some("no"), "{output}");
        ensure!(word("limit") == Some("77"), "{output}");
        ensure!(word("limit_hard") == Some("78"), "{output}");
        let capabilities = word("capabilities").context("no capabilities")?;
        let capabilities = u64::from_str_radix(capabilities.trim(), 16)?;
        ensure!(capabilities != 0 && capabilities & CAP_KILL == 0, "{capabilities:#x}");
        let annotation = &self.changer.hooked(&id)?["annotations"]["containerhook/test"];
        ensure!(annotation == "annotated", "{annotation}");
        Ok(())
    }
}

const CAP_KILL: u64 = 1 << 5;

/// Prints what a container can see of a change.
const PRINT: &str = "echo trace=$TRACE; echo unwanted=$UNWANTED; echo argument=$0; echo mounted=$(cat /tools/mounted); \
     if touch /tools/x 2>/dev/null; then echo writable=yes; else echo writable=no; fi; \
     echo limit=$(ulimit -Sn); echo limit_hard=$(ulimit -Hn); \
     while read key value; do [ $key = CapBnd: ] && echo capabilities=$value; done < /proc/self/status; true";

const ARGS: [&str; 4] = ["/bin/sh", "-c", PRINT, "original"];

fn under_docker(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let docker = Dockerd::start_with(&runtime)?;
    let test = Test::start(&runtime)?;
    let output = done(&mut docker.run(&["--rm", "--env", "UNWANTED=1"], &ARGS))?.ok()?;
    test.check(&output.stdout)?;
    test.listener.close()?;
    Ok(())
}

fn under_containerd(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let containerd = Containerd::start_with(&runtime)?;
    let test = Test::start(&runtime)?;
    let id = unique_id("changed");
    let output = done(&mut containerd.run(&["--rm", "--env", "UNWANTED=1"], &id, &ARGS))?.ok()?;
    test.check(&output.stdout)?;
    test.listener.close()?;
    Ok(())
}

fn under_podman(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let podman = Podman::start_with(&runtime)?;
    let test = Test::start(&runtime)?;
    let output = done(&mut podman.run(&["--rm", "--env", "UNWANTED=1"], &ARGS))?.ok()?;
    test.check(&output.stdout)?;
    test.listener.close()?;
    Ok(())
}

/// `run`, by nobody but the runtime.
fn by_itself(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let test = Test::start(&runtime)?;
    let bundle = Bundle::builder(unique_id("changed")).args(ARGS).env("UNWANTED", "1").build()?;
    runtime.create(&bundle)?;
    runtime.start(bundle.id())?;
    let printed = wait_until("it has printed", PATIENCE, || {
        Some(bundle.stdout()).filter(|printed| printed.contains("capabilities="))
    })?;
    test.check(&printed)?;
    runtime.delete(bundle.id(), true)?;
    test.listener.close()?;
    Ok(())
}

macro_rules! changes {
    ($($family:ident $module:ident),*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn by_itself() -> Result<()> {
                need!(Root, Busybox, $family);
                super::by_itself(Family::$family)
            }

            #[test]
            fn under_docker() -> Result<()> {
                need!(Root, Busybox, Docker, $family);
                super::under_docker(Family::$family)
            }

            #[test]
            fn under_containerd() -> Result<()> {
                need!(Root, Busybox, Containerd, $family);
                super::under_containerd(Family::$family)
            }

            #[test]
            fn under_podman() -> Result<()> {
                need!(Root, Busybox, Podman, $family);
                super::under_podman(Family::$family)
            }
        }
    )*};
}

changes!(Runc runc, Crun crun, Youki youki);
