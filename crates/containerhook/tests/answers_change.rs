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
    Bundle, Containerd, Cri, Dockerd, Family, Podman, Runtime, Scratch, need, unique_id, wait_until, watchdog,
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
        let seen = seen.iter().rfind(|seen| seen.id == id).context("it was not changed")?;
        ensure!(!read.is_empty());
        for bytes in read {
            ensure!(bytes == seen.old || bytes == seen.new, "half: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(())
    }

    fn ensure_kept(&self, id: &str) -> Result<()> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().rfind(|seen| seen.id == id).context("it was not changed")?;
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
        let new = &seen.iter().rfind(|seen| seen.id == id).context("it was not changed")?.new;
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

/// What `exec` gives a process in a container that was changed: its mounts are the container's, and all else is the
/// engine's own copy of the configuration, which nobody has changed; but for what Podman reads in the bundle.
fn ensure_unchanged_in_exec(output: &str, has_capability: bool) -> Result<()> {
    let words: Vec<(&str, &str)> = output.lines().filter_map(|line| line.trim().split_once('=')).collect();
    let word = |name: &str| words.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    ensure!(word("mounted") == Some("from the host"), "{output}");
    ensure!(word("trace") == Some(""), "{output}");
    ensure!(word("unwanted") == Some("1"), "{output}");
    let capabilities = u64::from_str_radix(word("capabilities").context("no capabilities")?.trim(), 16)?;
    ensure!((capabilities & CAP_KILL != 0) == has_capability, "{capabilities:#x}");
    ensure!(word("limit") != Some("77"), "{output}");
    Ok(())
}

/// What stays until somebody removes it.
const STAY: [&str; 4] = ["/bin/sh", "-c", "sleep 1000; true", "original"];

#[test]
fn what_docker_shows_later() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let docker = Dockerd::start_with(&runtime)?;
    let test = Test::start(&runtime)?;
    let name = unique_id("changed");
    done(&mut docker.run(&["--detach", "--env", "UNWANTED=1", "--name", &name], &STAY))?.ok()?;
    let records = test.started()?;
    ensure!(words_of(&records)?.last().map(String::as_str) == Some("changed"));
    let inspected = docker.inspect(&name, "json .Config.Env")? + &docker.inspect(&name, "json .Args")?;
    ensure!(!inspected.contains("TRACE") && inspected.contains("UNWANTED=1"), "{inspected}");
    ensure!(inspected.contains("original") && !inspected.contains("changed"), "{inspected}");
    ensure!(!docker.inspect(&name, "json .Mounts")?.contains("/tools"));
    ensure_unchanged_in_exec(&done(docker.docker(["exec", &name]).args(ARGS))?.ok()?.stdout, true)?;

    // Another life from Docker's own copy, and so another change.
    done(&mut docker.docker(["restart", "--time", "0", &name]))?.ok()?;
    let id = records[0].event.id();
    let again = test.listener.wait_for("it has started again", |records| {
        let started = |record: &&Record| record.event.id() == id && record.event.kind() == Started;
        records.iter().filter(started).nth(1).cloned()
    })?;
    ensure!(words_of(&[again])?.last().map(String::as_str) == Some("changed"));
    done(&mut docker.docker(["rm", "--force", &name]))?.ok()?;
    test.listener.close()?;
    Ok(())
}

#[test]
fn what_containerd_shows_later() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    let test = Test::start(&runtime)?;
    let id = unique_id("changed");
    done(&mut containerd.run(&["--detach", "--env", "UNWANTED=1"], &id, &STAY))?.ok()?;
    ensure!(words_of(&test.started()?)?.last().map(String::as_str) == Some("changed"));
    let info = done(&mut containerd.ctr(["containers", "info", &id]))?.ok()?.stdout;
    ensure!(!info.contains("TRACE") && info.contains("UNWANTED=1") && info.contains("original"), "{info}");
    let exec = done(containerd.ctr(["task", "exec", "--exec-id", "e1", &id]).args(ARGS))?.ok()?;
    ensure_unchanged_in_exec(&exec.stdout, true)?;
    done(&mut containerd.ctr(["task", "delete", "--force", &id]))?;
    test.listener.close()?;
    Ok(())
}

#[test]
fn what_podman_shows_later() -> Result<()> {
    need!(Root, Busybox, Podman, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let podman = Podman::start_with(&runtime)?;
    let test = Test::start(&runtime)?;
    let name = unique_id("changed");
    done(&mut podman.run(&["--detach", "--env", "UNWANTED=1", "--name", &name], &STAY))?.ok()?;
    let records = test.started()?;
    ensure!(words_of(&records)?.last().map(String::as_str) == Some("changed"));
    // Of a container that runs, Podman reads environment and capabilities in the bundle; all else is its own.
    let environment = podman.inspect(&name, "json .Config.Env")?;
    ensure!(environment.contains("TRACE=on") && !environment.contains("UNWANTED"), "{environment}");
    let own = podman.inspect(&name, "json .Args")? + &podman.inspect(&name, "json .Mounts")?;
    ensure!(own.contains("original") && !own.contains("changed") && !own.contains("/tools"), "{own}");
    let capabilities = podman.inspect(&name, "json .EffectiveCaps")?;
    ensure!(capabilities.contains("CAP_CHOWN") && !capabilities.contains("CAP_KILL"), "{capabilities}");
    ensure_unchanged_in_exec(&done(podman.podman(["exec", &name]).args(ARGS))?.ok()?.stdout, false)?;

    done(&mut podman.podman(["restart", "--time", "0", &name]))?.ok()?;
    let id = records[0].event.id();
    let again = test.listener.wait_for("it has started again", |records| {
        let started = |record: &&Record| record.event.id() == id && record.event.kind() == Started;
        records.iter().filter(started).nth(1).cloned()
    })?;
    ensure!(words_of(&[again])?.last().map(String::as_str) == Some("changed"));
    done(&mut podman.podman(["rm", "--force", "--time", "0", &name]))?.ok()?;
    test.listener.close()?;
    Ok(())
}

/// And that the container of a pod sees its change.
#[test]
fn what_cri_shows_later() -> Result<()> {
    need!(Root, Busybox, Cri, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let cri = Cri::start_with(&runtime)?;
    let test = Test::start(&runtime)?;
    let pod = cri.run_pod(&unique_id("pod"))?;
    let short = cri.create_container(&pod, "short", &ARGS)?;
    cri.start_container(&short)?;
    wait_until("it has ended", PATIENCE, || cri.exit_code(&short).ok().flatten())?;
    let logs = cri.containerd().socket().with_file_name("logs");
    // Each line has a time, a stream and a flag before what was printed.
    let log = fs::read_to_string(logs.join("short.log"))?;
    let printed: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    test.changer.ensure_whole(&short)?;
    ensure!(printed.contains(&"trace=on") && printed.contains(&"argument=changed"), "{log}");

    let id = cri.create_container(&pod, "stays", &STAY)?;
    cri.start_container(&id)?;
    let info = cri.ctr(&["containers", "info", &id])?.stdout;
    ensure!(!info.contains("TRACE") && info.contains("original"), "{info}");
    let (stdout, _, code) = cri.exec_sync(&id, &ARGS)?;
    ensure!(code == 0 && stdout.contains("trace=\n") && stdout.contains("mounted=from the host"), "{stdout}");
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    test.listener.close()?;
    Ok(())
}

/// runc by itself reads the changed file for `exec` too, where it is given no process.
#[test]
fn what_runc_reads_for_exec() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let test = Test::start(&runtime)?;
    let bundle = Bundle::builder(unique_id("changed")).args(STAY).env("UNWANTED", "1").build()?;
    runtime.create(&bundle)?;
    runtime.start(bundle.id())?;
    let output = runtime.exec(bundle.id(), &ARGS)?.ok()?.stdout;
    ensure!(output.contains("trace=on\n") && output.contains("unwanted=\n"), "{output}");
    runtime.delete(bundle.id(), true)?;
    test.listener.close()?;
    Ok(())
}

/// What the kernel saw being executed.
fn words_of(records: &[Record]) -> Result<Vec<String>> {
    Ok(the(Started, records)?.event.exec().context("no words")?.args.clone())
}

/// A bundle on a file system that is full when the configuration is changed.
fn on_a_full_disk(family: Family, choice: OnTimeout) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let bundle = Bundle::builder(unique_id("full")).script("echo it runs: $TRACE").build()?;
    let disk = Disk::mount(bundle.path().join("disk"))?;
    fs::copy(bundle.config_path(), disk.0.join("config.json"))?;
    let before = fs::read(disk.0.join("config.json"))?;
    // One that has room for nothing, not even for a name.
    fill(&disk.0)?;
    let listener = Listener::start(only([runtime.path()]).on_timeout(choice), |event: &ContainerEvent| {
        let Some(config) = event.config().filter(|_| event.kind() == PreCreate) else {
            return Decision::allow();
        };
        let mut change = ConfigChange::of(config).expect("it is plain");
        change.add_env("TRACE", &"on".repeat(10_000));
        Decision::change(&change)
    })?;
    let mut create = runtime.command(["create", "--bundle"]);
    create.arg(&disk.0).arg("--pid-file").arg(bundle.pid_file()).arg(bundle.id());
    let output = done(&mut create);
    let record = listener.wait_for("it is told", |records| records.first().cloned())?;
    let answer = record.answer.as_ref().context("unanswered")?;
    let reason = answer.reason.as_deref().unwrap_or_default();
    ensure!(reason.contains("could not be written") && reason.contains("No space left"), "{answer:?}");
    ensure!(!answer.timed_out, "{answer:?}");
    ensure!(fs::read(disk.0.join("config.json"))? == before, "the file has changed");
    let names: BTreeSet<String> = names(&disk.0)?;
    ensure!(names == BTreeSet::from(["config.json".into(), "filler".into()]), "{names:?}");
    if choice == OnTimeout::Deny {
        // The exec itself fails: there is no process that could say more.
        let error = format!("{:#}", output.err().context("it was executed")?);
        ensure!(error.contains("Operation not permitted"), "{error}");
        ensure!(answer.decision == Verdict::Deny, "{answer:?}");
        ensure!(runtime.containers().is_empty(), "{:?}", runtime.containers());
    } else {
        output?.ok()?;
        ensure!(answer.decision == Verdict::Allow, "{answer:?}");
        let records = listener.wait(bundle.id(), &[PreCreate, Created])?;
        ensure!(records[1].event.config().context("no config")?.raw() == before);
        runtime.start(bundle.id())?;
        let records = listener.wait_for("it has started", |records| {
            records.iter().any(|record| record.event.kind() == Started).then(|| records.to_vec())
        })?;
        ensure!(words_of(&records)?.last().map(String::as_str) == Some("echo it runs: $TRACE"));
        runtime.delete(bundle.id(), true)?;
    }
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// A tiny file system, unmounted when it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir(&at)?;
        let mut mount = Command::new("mount");
        done(mount.args(["-t", "tmpfs", "-o", "size=32k", "containerhook-test"]).arg(&at))?.ok()?;
        Ok(Disk(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn fill(disk: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut filler = fs::File::create(disk.join("filler"))?;
    while filler.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    Ok(())
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

mod on_a_full_disk {
    use super::*;

    #[test]
    fn runc_goes_on_unchanged() -> Result<()> {
        need!(Root, Busybox, Runc);
        super::on_a_full_disk(Family::Runc, OnTimeout::Allow)
    }

    #[test]
    fn runc_is_refused() -> Result<()> {
        need!(Root, Busybox, Runc);
        super::on_a_full_disk(Family::Runc, OnTimeout::Deny)
    }

    #[test]
    fn crun_goes_on_unchanged() -> Result<()> {
        need!(Root, Busybox, Crun);
        super::on_a_full_disk(Family::Crun, OnTimeout::Allow)
    }

    #[test]
    fn crun_is_refused() -> Result<()> {
        need!(Root, Busybox, Crun);
        super::on_a_full_disk(Family::Crun, OnTimeout::Deny)
    }
}
