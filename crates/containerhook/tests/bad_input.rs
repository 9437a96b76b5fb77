//! Bundles and ids that are not what they should be: a clear word or none, nothing held, and the next container is told.

mod support;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind, Record};
use libc::SIGKILL;
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, only, the};
use testkit::{Bundle, Process, Runtime, Task, need, unique_id, wait_until, watchdog};

/// What becomes of a creation that fails.
const FAILED: [EventKind; 2] = [EventKind::PreCreate, EventKind::Deleted];

struct Host {
    runtime: Runtime,
    listener: Listener,
}

impl Host {
    fn new(runtime: Runtime) -> Result<Self> {
        let listener = Listener::to([runtime.path()])?;
        Ok(Host { runtime, listener })
    }

    /// Creates a container that cannot be, and gives its records.
    fn fails(&self, bundle: &Bundle) -> Result<Vec<Record>> {
        let output = self.runtime.spawn_create(bundle)?.wait(PATIENCE)?;
        ensure!(!output.status.success(), "{output:?}");
        self.listener.wait(bundle.id(), &FAILED)
    }

    /// Nothing is left of what was bad, and a container that is well is told.
    fn goes_on_well(self) -> Result<()> {
        let Host { runtime, listener } = self;
        listener.wait_idle()?;
        ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
        let bundle = Bundle::builder(unique_id("well")).build()?;
        runtime.create(&bundle)?;
        runtime.start(bundle.id())?;
        listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
        runtime.delete(bundle.id(), true)?;
        listener.wait(bundle.id(), &WHOLE_LIFE)?;
        listener.wait_idle()?;
        ensure!(listener.status()?.timed_out == 0);
        listener.close()?;
        Ok(())
    }
}

fn bad_bundle(name: &str, spoil: impl FnOnce(&Path) -> Result<()>) -> Result<Bundle> {
    let bundle = Bundle::builder(unique_id(name)).build()?;
    std::fs::remove_file(bundle.config_path())?;
    spoil(&bundle.config_path())?;
    Ok(bundle)
}

/// Told with what is known, and with a word on the configuration that holds all of `words`.
fn told_without_config(records: &[Record], bundle: &Bundle, words: &[&str]) -> Result<()> {
    for record in records {
        let event = &record.event;
        ensure!(event.config().is_none() && event.pid().is_none(), "{}", record.to_json());
        ensure!(event.bundle() == Some(bundle.path()), "{}", record.to_json());
        let error = event.config_error().with_context(|| record.to_json())?;
        ensure!(words.iter().all(|word| error.contains(word)), "{error:?} has not {words:?}");
        ensure!(error.len() < 1000, "{error}");
    }
    ensure!(the(EventKind::PreCreate, records)?.event.held());
    Ok(())
}

#[test]
fn no_config() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let host = Host::new(runtime)?;
        let bundle = bad_bundle("none", |_| Ok(()))?;
        told_without_config(&host.fails(&bundle)?, &bundle, &["there is no", "config.json"])?;
        host.goes_on_well()?;
    }
    Ok(())
}

#[test]
fn no_bundle() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let host = Host::new(runtime)?;
        let id = unique_id("nowhere");
        let mut create = host.runtime.command(["create", "--bundle", "/no/such/bundle", &id]);
        ensure!(!Task::spawn(&mut create)?.wait(PATIENCE)?.status.success());
        let records = host.listener.wait(&id, &FAILED)?;
        ensure!(records[0].event.bundle() == Some(Path::new("/no/such/bundle")));
        ensure!(records[0].event.config_error().is_some_and(|error| error.contains("No such file")));
        host.goes_on_well()?;
    }
    Ok(())
}

#[test]
fn a_config_of_64_mb() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let host = Host::new(Runtime::runc()?)?;
    // One that the runtime takes: the listener must not stand in its way.
    let bundle = Bundle::builder(unique_id("large")).build()?;
    let mut text = serde_json::to_vec(&bundle.config()?)?;
    text.resize(64 << 20, b' ');
    std::fs::write(bundle.config_path(), &text)?;
    host.runtime.create(&bundle)?;
    host.runtime.start(bundle.id())?;
    host.listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
    host.runtime.delete(bundle.id(), true)?;
    let records = host.listener.wait(bundle.id(), &WHOLE_LIFE)?;
    for record in &records {
        ensure!(
            record.event.config().is_none() && record.event.config_error().is_some(),
            "{}",
            record.to_json()
        );
    }
    host.goes_on_well()
}

#[test]
fn a_config_that_is_a_fifo() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let host = Host::new(Runtime::runc()?)?;
    let bundle = bad_bundle("fifo", |path| {
        ensure!(Command::new("mkfifo").arg(path).status()?.success());
        Ok(())
    })?;
    let task = host.runtime.spawn_create(&bundle)?;
    // The runtime waits for a writer, and nobody holds it any more.
    let records = host.listener.wait(bundle.id(), &FAILED[..1])?;
    told_without_config(&records, &bundle, &["config.json"])?;
    wait_until("nothing is held", PATIENCE, || (host.listener.status().ok()?.held == 0).then_some(()))?;
    ensure!(task.process().is_alive());
    task.process().kill(SIGKILL)?;
    task.wait(PATIENCE)?;
    host.listener.wait(bundle.id(), &FAILED)?;
    host.goes_on_well()
}

#[test]
fn a_config_that_is_a_folder() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let host = Host::new(runtime)?;
        let bundle = bad_bundle("folder", |path| Ok(std::fs::create_dir(path)?))?;
        told_without_config(&host.fails(&bundle)?, &bundle, &["config.json"])?;
        host.goes_on_well()?;
    }
    Ok(())
}

#[test]
fn a_config_that_is_a_link_to_dev_zero() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let host = Host::new(Runtime::runc()?)?;
    let bundle = bad_bundle("zero", |path| Ok(std::os::unix::fs::symlink("/dev/zero", path)?))?;
    told_without_config(&host.fails(&bundle)?, &bundle, &["config.json"])?;
    host.goes_on_well()
}

#[test]
fn a_config_that_is_no_json() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let host = Host::new(runtime)?;
        for text in [&b""[..], b"{", b"not json", b"\xff\xfe", b"[]", b"null", b"{\"process\": 3}"] {
            let bundle = bad_bundle("text", |path| Ok(std::fs::write(path, text)?))?;
            let records = host.fails(&bundle)?;
            ensure!(records[0].event.held() && records[0].event.bundle() == Some(bundle.path()));
            if serde_json::from_slice::<serde_json::Value>(text).is_err() {
                told_without_config(&records, &bundle, &["config.json"])?;
            }
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let bundle = bad_bundle("deep", |path| Ok(std::fs::write(path, format!("{{\"x\":{deep}}}"))?))?;
        ensure!(host.fails(&bundle)?[0].event.held());
        host.goes_on_well()?;
    }
    Ok(())
}

/// Ids that no runtime takes: not one of them is told.
#[test]
fn ids_that_no_runtime_takes() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let host = Host::new(runtime)?;
        let bundle = Bundle::builder(unique_id("unused")).build()?;
        let long = "x".repeat(100_000);
        let ids: [&[u8]; 10] = [
            b"../../../../etc",
            b"..",
            b".",
            b"a/b",
            b"",
            b"\x1b[2J",
            b"new\nline",
            b"bell\x07",
            b"tab\tdel\x7f",
            long.as_bytes(),
        ];
        for id in ids {
            let mut create = host.runtime.command(["create", "--bundle"]);
            create.arg(bundle.path()).arg(std::ffi::OsStr::from_bytes(id));
            let output = Task::spawn(&mut create)?.wait(PATIENCE)?;
            // crun takes some of them; what it then made of them is no longer ours.
            if output.status.success() {
                let mut delete = host.runtime.command(["delete", "--force"]);
                Task::spawn(delete.arg(std::ffi::OsStr::from_bytes(id)))?.wait(PATIENCE)?;
            }
        }
        host.listener.wait_idle()?;
        ensure!(host.listener.records().is_empty(), "{}", host.listener.text());
        host.goes_on_well()?;
    }
    Ok(())
}

/// An id that is not UTF-8: told with replacement characters, and refused by the runtime.
#[test]
fn an_id_that_is_no_text() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let host = Host::new(Runtime::runc()?)?;
    let bundle = Bundle::builder(unique_id("unused")).build()?;
    let mut create = host.runtime.command(["create", "--bundle"]);
    create.arg(bundle.path()).arg(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    ensure!(!Task::spawn(&mut create)?.wait(PATIENCE)?.status.success());
    host.listener.wait("\u{fffd}\u{fffd}", &FAILED)?;
    host.goes_on_well()
}

/// A pid file that names a process which was there before is a lie, and that process is none of the container's.
#[test]
fn a_pid_file_that_lies() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let host = Host::new(Runtime::runc()?)?;
    let bundle = Bundle::builder(unique_id("liar")).args(["/bin/sleep", "1000"]).build()?;
    let pid_file = bundle.path().join("pid");
    std::fs::write(&pid_file, Process::me().0.to_string())?;
    // Given without a pid file, the runtime's own state names init.
    let mut create = host.runtime.command(["create", "--bundle"]);
    create.arg(bundle.path()).arg(bundle.id());
    Task::spawn(&mut create)?.wait(PATIENCE)?.ok()?;
    let records = host.listener.wait(bundle.id(), &WHOLE_LIFE[..2])?;
    let init = host.runtime.state(bundle.id())?.init;
    ensure!(records[1].event.pid() == Some(init.0.cast_unsigned()), "{}", records[1].to_json());
    host.runtime.delete(bundle.id(), true)?;
    host.listener.wait_for("its deletion", |records| {
        records.iter().find(|r| r.event.id() == bundle.id() && r.event.kind() == EventKind::Deleted).cloned()
    })?;
    host.goes_on_well()
}

/// 130 creations that fail: each told, none pending, and the next container is told.
#[test]
fn many_that_fail() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let host = Host::new(Runtime::runc()?)?;
    let bundle = Bundle::builder("unused").args(["/no/such/program"]).build()?;
    let ids: Vec<String> = (0..130).map(|i| format!("{}-{i}", unique_id("fails"))).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = ids
            .chunks(33)
            .map(|ids| {
                let host = &host;
                let bundle = &bundle;
                scope.spawn(move || -> Result<()> {
                    for id in ids {
                        let mut create = host.runtime.command(["create", "--bundle"]);
                        create.arg(bundle.path()).arg("--pid-file").arg(bundle.path().join(id)).arg(id);
                        ensure!(!Task::spawn(&mut create)?.wait(PATIENCE)?.status.success());
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    for id in &ids {
        let records = host.listener.wait(id, &FAILED)?;
        ensure!(records[0].event.held() && !records[1].event.held());
    }
    ensure!(host.listener.records().len() == 260);
    host.goes_on_well()
}

/// Nobody who is asked may be fooled into thinking that a bad configuration was empty.
#[test]
fn a_handler_sees_why_there_is_no_config() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let (say, said) = std::sync::mpsc::channel();
    let listener = Listener::start(only([runtime.path()]), move |event: &ContainerEvent| {
        let _ = say.send((event.config().is_none(), event.config_error().map(str::to_owned)));
    })?;
    let bundle = bad_bundle("seen", |path| Ok(std::fs::write(path, "{\"process\":")?))?;
    ensure!(!runtime.spawn_create(&bundle)?.wait(PATIENCE)?.status.success());
    listener.wait(bundle.id(), &FAILED)?;
    let (none, error) = said.recv()?;
    let error = error.context("no word")?;
    ensure!(none && error.contains("line 1"), "{error}");
    listener.close()?;
    Ok(())
}
