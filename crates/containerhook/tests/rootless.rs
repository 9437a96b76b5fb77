//! Users who are not root: their engines are told like others, and their inventions harm nobody.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use containerhook::{ContainerEvent, Engine, EventKind, Record};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, only, the};
use testkit::{Bundle, Podman, Process, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

#[test]
fn podman() -> Result<()> {
    need!(Root, Busybox, Runc, PodmanRootless);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let podman = Podman::rootless_with(&runtime)?;
    let listener = Listener::to([runtime.path(), podman.conmon().to_owned()])?;
    let run = podman.run(&["--detach", "--name", "theirs"], &["/bin/sleep", "1000"]).begin()?;
    let id = run.wait(LIMIT)?.ok()?.stdout.trim().to_owned();
    listener.wait(&id, &WHOLE_LIFE[..3])?;
    let init = Process(podman.inspect("theirs", ".State.Pid")?.parse()?);
    podman.podman(["rm", "--force", "--time", "0", "theirs"]).begin()?.wait(PATIENCE)?.ok()?;
    let records = listener.wait_for("its deletion", |records| {
        let records: Vec<Record> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
        (records.last()?.event.kind() == EventKind::Deleted).then_some(records)
    })?;
    ensure!(
        the(EventKind::Created, &records)?.event.pid() == Some(init.0.cast_unsigned()),
        "{}",
        listener.text()
    );
    for record in &records {
        let event = &record.event;
        ensure!(event.rootless() && event.owner_uid() == podman.uid(), "{}", record.to_json());
        ensure!(
            event.engine() == Some(Engine::Podman) && event.name() == Some("theirs"),
            "{}",
            record.to_json()
        );
        ensure!(event.config().is_some(), "{}", record.to_json());
    }
    for kind in [EventKind::PreCreate, EventKind::Created] {
        ensure!(the(kind, &records)?.event.held(), "{}", listener.text());
    }
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

trait Begin {
    fn begin(&mut self) -> Result<Task>;
}

impl Begin for Command {
    fn begin(&mut self) -> Result<Task> {
        Task::spawn(self)
    }
}

/// A user of no account.
const NOBODY: u32 = 54_321;

/// What only root may read, and what a listener that reads it would tell.
const SECRET: &str = "the-secret-of-root";

/// A user who may execute a runtime, and nothing else; what plays the runtime succeeds whatever it is told.
struct Stranger {
    scratch: Scratch,
    home: PathBuf,
}

impl Stranger {
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let home = scratch.join("home");
        std::fs::create_dir(&home)?;
        chown(&home, Some(NOBODY), Some(NOBODY))?;
        let text =
            format!("#!/bin/sh\nwhile [ -e {}/wait ]; do sleep 0.05; done\n", scratch.path().display());
        let mut write = Command::new("sh");
        write.args(["-c", r#"printf '%s' "$2" > "$1" && chmod 755 "$1""#, "sh"]);
        write.arg(scratch.join("runc")).arg(text).begin()?.wait(PATIENCE)?.ok()?;
        Ok(Stranger { scratch, home })
    }

    /// The file to mark.
    fn runtime(&self) -> PathBuf {
        self.scratch.join("runc")
    }

    /// The runtime does not end before [`go_on`](Self::go_on).
    fn wait(&self) -> Result<()> {
        Ok(std::fs::write(self.scratch.join("wait"), "")?)
    }

    fn go_on(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.scratch.join("wait"))?)
    }

    /// A folder of the user's own.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.home.join(name);
        std::fs::create_dir(&folder)?;
        chown(&folder, Some(NOBODY), Some(NOBODY))?;
        Ok(folder)
    }

    /// A file that only root may read.
    fn secret(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        std::fs::write(&path, format!(r#"{{"ociVersion": "1.0.2", "hostname": "{SECRET}"}}"#))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.runtime());
        command.args(args).uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    }
}

fn fifo(path: &Path) -> Result<()> {
    let mut make = Command::new("mkfifo");
    make.arg("-m").arg("666").arg(path).begin()?.wait(PATIENCE)?.ok()?;
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Everything that the listener tells of this stranger's containers is told as this stranger's.
fn is_theirs(records: &[Record]) -> Result<()> {
    for record in records {
        let event = &record.event;
        ensure!(event.rootless() && event.owner_uid() == NOBODY, "{}", record.to_json());
        let all = record.to_json_with_config();
        ensure!(!all.contains(SECRET), "{all}");
        ensure!(event.config().is_none_or(|config| !contains(config.raw(), SECRET)), "{all}");
    }
    Ok(())
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn what_only_root_may_read_is_not_read_for_others() -> Result<()> {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let stranger = Stranger::new()?;
    let listener = Listener::to([stranger.runtime()])?;
    // Root's bundle, whose configuration only root may read; a link to such a file; one in a closed folder.
    let roots = stranger.scratch.join("bundle");
    std::fs::create_dir(&roots)?;
    stranger.secret("bundle/config.json")?;
    let linked = stranger.folder("linked")?;
    symlink(stranger.secret("secret")?, linked.join("config.json"))?;
    let closed = stranger.scratch.join("closed");
    std::fs::create_dir(&closed)?;
    std::fs::write(closed.join("config.json"), format!(r#"{{"hostname": "{SECRET}"}}"#))?;
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700))?;
    for bundle in [roots, linked, closed] {
        for verb in ["create", "run", "restore"] {
            let id = unique_id("forged");
            let args =
                [verb, "--bundle", &text(&bundle), "--pid-file", &text(&stranger.home.join("pid")), &id];
            stranger.command(&args).begin()?.wait(PATIENCE)?.ok()?;
            let records = listener.wait_for("it is told", |records| {
                let records: Vec<Record> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
                records.iter().any(|r| r.event.kind() == EventKind::PreCreate).then_some(records)
            })?;
            let event = &the(EventKind::PreCreate, &records)?.event;
            ensure!(event.config().is_none() && event.config_error().is_some(), "{}", listener.text());
        }
    }
    // The same by what `exec` is told to execute.
    let process = stranger.secret("process.json")?;
    std::fs::write(&process, format!(r#"{{"args": ["{SECRET}"], "cwd": "/"}}"#))?;
    let id = unique_id("forged");
    stranger.command(&["exec", "--process", &text(&process), &id]).begin()?.wait(PATIENCE)?.ok()?;
    listener.wait_idle()?;
    is_theirs(&listener.records())?;
    listener.close()?;
    Ok(())
}

#[test]
fn a_pid_file_that_names_a_process_of_root_is_not_believed() -> Result<()> {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let stranger = Stranger::new()?;
    let listener = Listener::to([stranger.runtime()])?;
    let bundle = stranger.folder("bundle")?;
    std::fs::write(bundle.join("config.json"), r#"{"ociVersion": "1.0.2"}"#)?;
    let pid_file = bundle.join("pid");
    // Number 1; and one that is even younger than the invention.
    for young in [false, true] {
        stranger.wait()?;
        let id = unique_id("forged");
        let mut create =
            stranger.command(&["create", "--bundle", &text(&bundle), "--pid-file", &text(&pid_file), &id]);
        let create = create.begin()?;
        listener.wait(&id, &WHOLE_LIFE[..1])?;
        let victim = if young { Some(Task::spawn(Command::new("/bin/sleep").arg("1000"))?) } else { None };
        let pid = victim.as_ref().map_or(1, |victim| victim.process().0);
        std::fs::write(&pid_file, format!("{pid}\n"))?;
        stranger.go_on()?;
        create.wait(PATIENCE)?.ok()?;
        listener.wait_idle()?;
        let records = listener.of(&id);
        ensure!(records.iter().all(|r| r.event.pid() != Some(pid.cast_unsigned())), "{}", listener.text());
        is_theirs(&records)?;
        std::fs::remove_file(&pid_file)?;
    }
    listener.close()?;
    Ok(())
}

/// Words about root's container by somebody else: its state folder and its id.
#[test]
fn nobody_but_root_speaks_for_a_container_of_root() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let (stranger, runtime) = (Stranger::new()?, Runtime::runc()?);
    let listener = Listener::to([stranger.runtime(), runtime.path()])?;
    let bundle = Bundle::builder(unique_id("roots")).args(["/bin/sleep", "1000"]).build()?;
    let (id, state) = (bundle.id(), text(&runtime.state_dir()));
    let init = runtime.create(&bundle)?;
    runtime.start(id)?;
    listener.wait(id, &WHOLE_LIFE[..3])?;
    let (bundle_path, pid_file) = (text(bundle.path()), text(&bundle.pid_file()));
    let words: [&[&str]; 7] = [
        &["kill", id, "KILL"],
        &["pause", id],
        &["update", id],
        &["delete", "--force", id],
        &["start", id],
        &["exec", id, "/bin/sh"],
        &["create", "--bundle", &bundle_path, "--pid-file", &pid_file, id],
    ];
    for words in words {
        stranger.command(&[&["--root", &state], words].concat()).begin()?.wait(PATIENCE)?.ok()?;
    }
    listener.wait_idle()?;
    let of_root = |listener: &Listener| -> Vec<Record> {
        listener.of(id).into_iter().filter(|record| !record.event.rootless()).collect()
    };
    ensure!(of_root(&listener).len() == 3, "{}", listener.text());
    let theirs: Vec<Record> = listener.of(id).into_iter().filter(|r| r.event.rootless()).collect();
    is_theirs(&theirs)?;
    // Its pid file is root's own, and names root's process.
    ensure!(theirs.iter().all(|r| r.event.pid() != Some(init.0.cast_unsigned())), "{}", listener.text());
    runtime.delete(id, true)?;
    wait_until("its end is told", PATIENCE, || (of_root(&listener).len() == 5).then_some(()))?;
    let kinds: Vec<EventKind> = of_root(&listener).iter().map(|r| r.event.kind()).collect();
    ensure!(kinds == WHOLE_LIFE, "{kinds:?}");
    Ok(())
}

/// A hundred inventions at once, with everything in them that could be waited for.
#[test]
fn a_hundred_at_once_delay_nobody() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let (stranger, runtime) = (Stranger::new()?, Runtime::runc()?);
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let builder = only([stranger.runtime(), runtime.path()]).deadline(Duration::from_secs(100));
    // The stranger's events take as long as root's container.
    let listener = Listener::start(builder, move |event: &ContainerEvent| {
        while event.rootless() && !ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    })?;
    let bundle = stranger.folder("bundle")?;
    fifo(&bundle.join("config.json"))?;
    fifo(&bundle.join("pid"))?;
    let device = stranger.folder("device")?;
    symlink("/dev/zero", device.join("config.json"))?;
    let endless = stranger.folder("endless")?;
    symlink("config.json", endless.join("config.json"))?;
    let bundles = [text(&bundle), text(&device), text(&endless)];
    let pid_file = text(&bundle.join("pid"));
    let result = std::thread::scope(|scope| -> Result<()> {
        for number in 0..100 {
            let (bundle, id) = (&bundles[number % 3], unique_id("invented"));
            let args = ["run", "--bundle", bundle, "--pid-file", &pid_file, &id];
            let mut command = stranger.command(&args);
            // On a thread: who spawns a process waits until its exec is over.
            scope.spawn(move || command.status());
        }
        let ours = || -> Result<()> {
            wait_until("many are held", PATIENCE, || (listener.status().ok()?.held > 50).then_some(()))?;
            let roots = Bundle::builder(unique_id("roots")).build()?;
            runtime.run(&roots)?.ok()?;
            let records = listener.wait(roots.id(), &WHOLE_LIFE)?;
            let answered = |record: &Record| record.answer.as_ref().is_some_and(|answer| !answer.timed_out);
            ensure!(records[..3].iter().all(answered), "{}", listener.text());
            Ok(())
        };
        let result = ours();
        over.store(true, Ordering::Relaxed);
        result
    });
    result?;
    listener.wait_idle()?;
    ensure!(listener.status()?.timed_out == 0);
    let theirs: Vec<Record> =
        listener.records().into_iter().filter(|r| r.event.id().starts_with("invented")).collect();
    ensure!(theirs.iter().filter(|r| r.event.kind() == EventKind::PreCreate).count() == 100);
    is_theirs(&theirs)?;
    listener.close()?;
    Ok(())
}
