//! A listener that is killed, stopped, starved or delayed while twenty containers start: all of them start (or are refused
//! where that was the choice), none waits longer than the deadline and a second, the host is free afterwards, and nothing
//! is told as held that was not.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{ConfigChange, ContainerEvent, Decision, EventKind, Handler, OnTimeout, Record};
use serde_json::Value;
use support::{LIMIT, PATIENCE, only, parse_uptime, uptime, verify_lines};
use testkit::{Bundle, Process, Rootfs, Runtime, Scratch, Task, need, skip, unique_id, wait_until, watchdog};

const COUNT: usize = 20;

const DEADLINE: Duration = Duration::from_secs(4);

/// What makes this test program a listener: the runtime to mark, where to write what is told, how the handler behaves, and
/// what is done where it does not answer.
const RUNTIME: &str = "CONTAINERHOOK_TEST_RUNTIME";
const LOG: &str = "CONTAINERHOOK_TEST_LOG";
const HANDLER: &str = "CONTAINERHOOK_TEST_HANDLER";
const DENY: &str = "CONTAINERHOOK_TEST_DENY";

/// One storm at a time: the bounds below are about the listener, not about how busy this test makes the machine.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Not a test: what the tests below run as a process of its own.
#[test]
fn as_a_listener() {
    let (Some(runtime), Some(log)) = (std::env::var_os(RUNTIME), std::env::var_os(LOG)) else { return };
    let handler = std::env::var(HANDLER).expect("how the handler behaves");
    let on_timeout = if std::env::var_os(DENY).is_some() { OnTimeout::Deny } else { OnTimeout::Allow };
    let _dog = watchdog(LIMIT);
    let records = Log::open(&log);
    let builder = only([PathBuf::from(runtime)]).deadline(DEADLINE).on_timeout(on_timeout);
    let notifier = builder
        .on_record(move |record: &Record| records.line(&record.to_json()))
        .start(Misbehaving { how: handler, log: Log::open(&log), calls: AtomicUsize::new(0) })
        .expect("the notifier starts");
    Log::open(&log).line("ready");
    std::thread::sleep(Duration::from_secs(1000));
    notifier.close();
}

struct Misbehaving {
    how: String,
    log: Log,
    calls: AtomicUsize,
}

impl Handler for Misbehaving {
    fn on_event(&self, event: &ContainerEvent) -> Decision {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let pre_create = event.kind() == EventKind::PreCreate;
        match self.how.as_str() {
            "sleeps" => std::thread::sleep(Duration::from_millis(100)),
            "panics" if event.held() => panic!("on purpose"),
            "never returns" => std::thread::sleep(Duration::from_secs(1000)),
            // Some are held, some are on their way, and some have not come yet.
            "takes all memory" if call == COUNT / 2 => {
                let mut hoard = Vec::new();
                while hoard.len() < 4096 {
                    hoard.push(vec![1_u8; 1 << 20]);
                }
                std::hint::black_box(&hoard);
            }
            "changes" if pre_create => {
                let config = event.config().expect("it has a configuration");
                let mut change = ConfigChange::of(config).expect("which is JSON");
                // More than what is left of any block.
                change.add_env("FILLER", &"x".repeat(100_000));
                return Decision::change(&change);
            }
            _ => {}
        }
        let up = uptime().unwrap_or(f64::MAX);
        self.log.line(&format!("returns {} {} {up}", event.kind(), event.id()));
        Decision::allow()
    }
}

/// Lines that several threads write, each by one call.
struct Log(Mutex<fs::File>);

impl Log {
    fn open(path: impl AsRef<Path>) -> Log {
        Log(Mutex::new(fs::File::options().append(true).create(true).open(path).expect("a log")))
    }

    fn line(&self, line: &str) {
        let _ = self.0.lock().unwrap().write_all(format!("{line}\n").as_bytes());
    }
}

/// A listener in a process of its own.
struct Listener {
    task: Task,
    log: PathBuf,
    _scratch: Scratch,
}

impl Listener {
    fn start(runtime: &Runtime, handler: &str, on_timeout: OnTimeout) -> Result<Self> {
        Self::start_by(runtime, handler, on_timeout, |_| ())
    }

    fn start_by(
        runtime: &Runtime,
        handler: &str,
        on_timeout: OnTimeout,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let log = scratch.join("log");
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "as_a_listener", "--nocapture", "--test-threads=1"]);
        command.env(RUNTIME, runtime.path()).env(LOG, &log).env(HANDLER, handler);
        if on_timeout == OnTimeout::Deny {
            command.env(DENY, "1");
        }
        prepare(&mut command);
        let mut listener = Listener { task: Task::spawn(&mut command)?, log, _scratch: scratch };
        let ready = wait_until("the listener is ready", PATIENCE, || {
            let ended = listener.task.try_wait().ok()?.is_some();
            (ended || listener.lines().iter().any(|line| line == "ready")).then_some(ended)
        });
        ensure!(!ready?, "the listener has ended: {:?}", listener.task.printed());
        Ok(listener)
    }

    fn lines(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    fn records(&self) -> Result<Vec<Value>> {
        let lines = self.lines();
        lines.iter().filter(|line| line.starts_with('{')).map(|l| Ok(serde_json::from_str(l)?)).collect()
    }

    fn process(&self) -> Process {
        self.task.process()
    }

    /// How many containers wait for this listener.
    fn told(&self, kind: EventKind) -> usize {
        self.records().unwrap_or_default().iter().filter(|record| record["event"] == kind.as_str()).count()
    }
}

/// What became of one container; a test that fails shows all of it.
#[derive(Debug)]
#[allow(dead_code, reason = "printed where a test fails")]
struct Ran {
    id: String,
    /// The exit code, or with what the exec of its runtime failed.
    came_to: Result<Option<i32>, i32>,
    /// Uptime at its first instruction.
    began: Option<f64>,
    #[allow(dead_code, reason = "it is for who reads why a test failed")]
    stderr: String,
}

/// Twenty containers that start at the same time.
struct Storm<'a> {
    runtime: &'a Runtime,
    bundles: Vec<(String, PathBuf)>,
    _keep: (Vec<Bundle>, Rootfs),
}

impl<'a> Storm<'a> {
    fn new(runtime: &'a Runtime) -> Result<Self> {
        let rootfs = Rootfs::busybox()?;
        let bundles = (0..COUNT)
            .map(|_| {
                let bundle = Bundle::builder(unique_id("chaos")).rootfs(&rootfs);
                bundle.args(["/bin/sh", "-c", "read up idle < /proc/uptime; echo $up"]).build()
            })
            .collect::<Result<Vec<Bundle>>>()?;
        let paths = bundles.iter().map(|bundle| (bundle.id().to_owned(), bundle.path().to_owned()));
        Ok(Storm { runtime, bundles: paths.collect(), _keep: (bundles, rootfs) })
    }

    /// Runs them; meanwhile something happens to the listener. What each came to, and the longest time that one of them was
    /// seen to wait for an answer.
    fn rages(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<(Vec<Ran>, Duration)> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| longest_wait(&over));
            let runs: Vec<_> =
                self.bundles.iter().map(|(id, path)| scope.spawn(move || self.run(id, path))).collect();
            let meanwhile = meanwhile();
            let ran: Result<Vec<Ran>> =
                runs.into_iter().map(|run| run.join().ok().context("it panicked")?).collect();
            over.store(true, Ordering::SeqCst);
            let longest = watcher.join().ok().context("it panicked")?;
            meanwhile?;
            Ok((ran?, longest))
        })
    }

    fn run(&self, id: &str, bundle: &Path) -> Result<Ran> {
        let mut command = self.runtime.command(["run", "--bundle"]);
        let (came_to, stdout, stderr) = match Task::spawn(command.arg(bundle).arg(id)) {
            Ok(task) => {
                let output = task.wait(LIMIT)?;
                (Ok(output.code()), output.stdout, output.stderr)
            }
            Err(error) => match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                Some(errno) => (Err(errno), String::new(), String::new()),
                None => return Err(error),
            },
        };
        Ok(Ran { id: id.to_owned(), came_to, began: parse_uptime(&stdout).ok(), stderr })
    }
}

/// The longest time for which any process below this one was seen to wait in fanotify without a break. It can be too
/// little by the time between two looks, never too much.
fn longest_wait(over: &AtomicBool) -> Duration {
    let mut waits: HashMap<(Process, Option<u64>), Instant> = HashMap::new();
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        let mut still = HashMap::new();
        for process in Process::me().descendants() {
            // The name is that of the function, with what a compiler may add to it.
            if process.waits_in().is_some_and(|function| function.contains("fanotify")) {
                let key = (process, process.start_time());
                let now = Instant::now();
                let since = waits.get(&key).copied().unwrap_or(now);
                longest = longest.max(now - since);
                still.insert(key, since);
            }
        }
        waits = still;
        std::thread::sleep(Duration::from_millis(20));
    }
    longest
}

/// All have run to their end.
fn all_ran(ran: &[Ran]) -> Result<()> {
    let failed: Vec<&Ran> = ran.iter().filter(|ran| ran.came_to != Ok(Some(0))).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

/// The runtime executes freely: nobody holds it.
fn is_free(runtime: &Runtime) -> Result<()> {
    let end = Task::spawn(&mut runtime.command(["--version"]))?.wait(PATIENCE)?.ok()?;
    ensure!(end.stdout.contains("version"), "{end:?}");
    ensure!(runtime.containers().is_empty(), "{:?}", runtime.containers());
    Ok(())
}

/// Where a hold was told, and answered by the handler, the container's first instruction came after that; none lasted
/// longer than the deadline and a second; and what was told are lives that can be.
fn told_the_truth(listener: &Listener, ran: &[Ran]) -> Result<()> {
    verify_lines(&listener.records()?)?;
    let lines = listener.lines();
    let mut returned = HashMap::new();
    for line in lines.iter().filter_map(|line| line.strip_prefix("returns ")) {
        let [kind, id, up] = line.split(' ').collect::<Vec<_>>()[..] else { bail!("{line}") };
        returned.insert((kind.to_owned(), id.to_owned()), up.parse::<f64>()?);
    }
    for record in listener.records()?.iter().filter(|record| record["held"] == true) {
        let held = Duration::from_micros(record["answer"]["held_us"].as_u64().context("how long")?);
        ensure!(held <= DEADLINE + Duration::from_secs(1), "{record}");
        let (kind, id) =
            (record["event"].as_str().context("a kind")?, record["id"].as_str().context("an id")?);
        let answered = record["answer"]["timed_out"] == false && kind != "exec";
        let at = returned.get(&(kind.to_owned(), id.to_owned()));
        if let (true, Some(at)) = (answered, at)
            && let Some(began) = ran.iter().find(|ran| ran.id == id).and_then(|ran| ran.began)
        {
            // /proc/uptime has hundredths.
            ensure!(began + 0.011 >= *at, "{id} began at {began}, its handler of {kind} returned at {at}");
        }
    }
    Ok(())
}

fn bounded(longest: Duration) -> Result<()> {
    ensure!(longest <= DEADLINE + Duration::from_secs(1), "one waited for {longest:?}");
    Ok(())
}

#[test]
fn a_listener_that_is_killed() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let mut listener = Listener::start(&runtime, "sleeps", OnTimeout::Deny)?;
    let (ran, longest) = Storm::new(&runtime)?.rages(|| {
        wait_until("some are told", PATIENCE, || {
            (listener.told(EventKind::PreCreate) > COUNT / 4).then_some(())
        })?;
        listener.process().kill(libc::SIGKILL)?;
        wait_until("it is gone", PATIENCE, || listener.task.try_wait().ok().flatten())?;
        Ok(())
    })?;
    all_ran(&ran)?;
    bounded(longest)?;
    is_free(&runtime)?;
    told_the_truth(&listener, &ran)
}

/// Nothing that runs inside it can help then: who watches it kills it.
#[test]
fn a_listener_that_is_stopped_and_killed() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let mut listener = Listener::start(&runtime, "sleeps", OnTimeout::Deny)?;
    let (ran, longest) = Storm::new(&runtime)?.rages(|| {
        wait_until("some are told", PATIENCE, || {
            (listener.told(EventKind::PreCreate) > COUNT / 4).then_some(())
        })?;
        listener.process().kill(libc::SIGSTOP)?;
        std::thread::sleep(Duration::from_secs(2));
        listener.process().kill(libc::SIGKILL)?;
        wait_until("it is gone", PATIENCE, || listener.task.try_wait().ok().flatten())?;
        Ok(())
    })?;
    all_ran(&ran)?;
    bounded(longest)?;
    is_free(&runtime)?;
    told_the_truth(&listener, &ran)
}

#[test]
fn a_listener_without_descriptors() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::start_by(&runtime, "sleeps", OnTimeout::Allow, |command| {
        // SAFETY: setrlimit is a system call, with a struct that lives as long as the call.
        let limit = || match unsafe {
            libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 40, rlim_max: 40 })
        } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: the closure does nothing but a system call.
        unsafe { command.pre_exec(limit) };
    })?;
    let (ran, longest) = Storm::new(&runtime)?.rages(|| Ok(()))?;
    all_ran(&ran)?;
    bounded(longest)?;
    told_the_truth(&listener, &ran)?;
    // What could not be read is not passed over in silence; those who read wait for descriptors, a second at most.
    wait_until("what was not told is said to be lost", PATIENCE, || {
        let (told, lost) = (listener.told(EventKind::PreCreate), listener.told(EventKind::Lost));
        (told == COUNT || lost > 0).then_some(())
    })?;
    // It listens still.
    let (ran, _) = Storm::new(&runtime)?.rages(|| Ok(()))?;
    all_ran(&ran)?;
    is_free(&runtime)
}

#[test]
fn a_handler_that_panics() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    for on_timeout in [OnTimeout::Allow, OnTimeout::Deny] {
        let listener = Listener::start(&runtime, "panics", on_timeout)?;
        let (ran, longest) = Storm::new(&runtime)?.rages(|| Ok(()))?;
        match on_timeout {
            OnTimeout::Deny => ensure!(ran.iter().all(|ran| ran.came_to == Err(libc::EPERM)), "{ran:#?}"),
            _ => all_ran(&ran)?,
        }
        bounded(longest)?;
        told_the_truth(&listener, &ran)?;
        is_free(&runtime)?;
    }
    Ok(())
}

#[test]
fn a_handler_that_never_returns() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    for on_timeout in [OnTimeout::Allow, OnTimeout::Deny] {
        let listener = Listener::start(&runtime, "never returns", on_timeout)?;
        let (ran, longest) = Storm::new(&runtime)?.rages(|| Ok(()))?;
        match on_timeout {
            OnTimeout::Deny => ensure!(ran.iter().all(|ran| ran.came_to == Err(libc::EPERM)), "{ran:#?}"),
            _ => all_ran(&ran)?,
        }
        // Where the kernel does not say what a process waits for, the records alone speak.
        let seen = Process::me().waits_in().is_some() || longest > Duration::ZERO;
        ensure!(!seen || longest > DEADLINE / 2, "nobody was seen to wait: {longest:?}");
        bounded(longest)?;
        told_the_truth(&listener, &ran)?;
        is_free(&runtime)?;
    }
    Ok(())
}

/// The engine's thread alone is stopped, again and again, as where a host has no time for it.
#[test]
fn an_engine_that_is_delayed() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::start(&runtime, "sleeps", OnTimeout::Allow)?;
    let (ran, longest) = Storm::new(&runtime)?.rages(|| {
        let (stalled, between) = (Duration::from_millis(600), Duration::from_millis(150));
        listener.process().delay("ch-engine", 8, stalled, between)
    })?;
    all_ran(&ran)?;
    bounded(longest)?;
    told_the_truth(&listener, &ran)?;
    is_free(&runtime)
}

#[test]
fn a_listener_that_runs_out_of_memory() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let scratch = Scratch::new()?;
    let Some(cgroup) = limited_memory(&scratch.name()) else {
        skip!("the memory of a cgroup cannot be limited here")
    };
    let runtime = Runtime::runc()?;
    let mut listener = Listener::start_by(&runtime, "takes all memory", OnTimeout::Deny, |command| {
        let procs = cgroup.join("cgroup.procs");
        // SAFETY: the child of a fork that has one thread opens and writes a file.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
    })?;
    let (ran, longest) = Storm::new(&runtime)?.rages(|| {
        let end = wait_until("it is out of memory", PATIENCE, || listener.task.try_wait().ok().flatten())?;
        ensure!(end.status.signal() == Some(libc::SIGKILL), "{end:?}");
        Ok(())
    })?;
    all_ran(&ran)?;
    bounded(longest)?;
    is_free(&runtime)?;
    told_the_truth(&listener, &ran)
}

/// A cgroup that may use 100 MB, on either version.
fn limited_memory(name: &str) -> Option<PathBuf> {
    for (root, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
    {
        let cgroup = Path::new(root).join(name);
        if fs::create_dir(&cgroup).is_ok() {
            if fs::write(cgroup.join(file), (100 << 20).to_string()).is_ok() {
                return Some(cgroup);
            }
            let _ = fs::remove_dir(&cgroup);
        }
    }
    None
}

#[test]
fn a_disk_that_is_full_when_configurations_are_changed() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _alone = alone();
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    for on_timeout in [OnTimeout::Allow, OnTimeout::Deny] {
        let listener = Listener::start(&runtime, "changes", on_timeout)?;
        let disk = Scratch::new()?;
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(disk.path())
            .status()?;
        if !mount.success() {
            skip!("nothing can be mounted here");
        }
        let mut storm = Storm::new(&runtime)?;
        for (id, bundle) in &mut storm.bundles {
            let on_disk = disk.join(&*id);
            fs::create_dir(&on_disk)?;
            fs::copy(bundle.join("config.json"), on_disk.join("config.json"))?;
            *bundle = on_disk;
        }
        let filler = fs::write(disk.join("filler"), vec![0; 4 << 20]);
        ensure!(filler.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC)));
        let (ran, longest) = storm.rages(|| Ok(()))?;
        match on_timeout {
            OnTimeout::Deny => ensure!(ran.iter().all(|ran| ran.came_to == Err(libc::EPERM)), "{ran:#?}"),
            _ => all_ran(&ran)?,
        }
        bounded(longest)?;
        told_the_truth(&listener, &ran)?;
        for (id, bundle) in &storm.bundles {
            // The file is the old one, whole, and nothing lies beside it.
            let files: Vec<_> = fs::read_dir(bundle)?.flatten().map(|file| file.file_name()).collect();
            ensure!(files == ["config.json"], "{id}: {files:?}");
            serde_json::from_slice::<Value>(&fs::read(bundle.join("config.json"))?)?;
        }
        for record in listener.records()?.iter().filter(|record| record["event"] == "pre-create") {
            let reason = record["answer"]["reason"].as_str().unwrap_or_default();
            ensure!(reason.contains("could not be written"), "{record}");
        }
        is_free(&runtime)?;
    }
    Ok(())
}
