//! Whose end it is: ids and pids that are used again, ends that come early, a thousand at once.

mod support;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{EventKind, ExitBackend, ExitStatus, Record};
use libc::{SIGKILL, SIGTERM};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, end, the};
use testkit::{Bundle, Containerd, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

/// A static one: nothing else is opened at an exec of it.
const BUSYBOX: &str = "/bin/busybox";

/// A runtime that makes no containers but processes, and takes a millisecond where a real one takes fifty. What its init
/// does at its start is in the bundle's file `plan`.
const FAKE: &str = r#"#!BUSYBOX sh
root=$2 verb=$3
case $verb in
create) # --root R create --bundle B --pid-file P ID
    bundle=$5 pid_file=$7 id=$8
    BUSYBOX ln -s $bundle $root/$id || exit 1
    BUSYBOX mkfifo $bundle/go
    [ ! -e $bundle/last_pid ] || { read last < $bundle/last_pid; echo $last > /proc/sys/kernel/ns_last_pid; }
    BUSYBOX sh -c ". $bundle/plan" plan $bundle </dev/null >/dev/null 2>&1 &
    echo $! > $pid_file.new
    BUSYBOX mv $pid_file.new $pid_file
    [ ! -e $bundle/slow ] || BUSYBOX sleep 0.3
    ;;
start) echo go > $root/$4/go ;;
delete) BUSYBOX rm $root/$4/go $root/$4 ;;
esac
"#;

struct Fake {
    scratch: Scratch,
}

impl Fake {
    fn new() -> Result<Fake> {
        let scratch = Scratch::new()?;
        std::fs::create_dir(scratch.join("state"))?;
        let path = scratch.join("runc");
        std::fs::write(&path, FAKE.replace("BUSYBOX", BUSYBOX))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Fake { scratch })
    }

    fn path(&self) -> PathBuf {
        self.scratch.join("runc")
    }

    fn do_ok(&self, args: &[&str]) -> Result<()> {
        let root = self.scratch.join("state");
        let mut command = Command::new(self.path());
        let status = command.arg("--root").arg(root).args(args).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "{args:?}: {status}");
        Ok(())
    }

    fn bundle(&self, name: &str, plan: &str) -> Result<PathBuf> {
        let bundle = self.scratch.join(name);
        std::fs::create_dir_all(&bundle)?;
        std::fs::write(bundle.join("plan"), plan)?;
        Ok(bundle)
    }

    fn create(&self, bundle: &Path, id: &str) -> Result<()> {
        let (bundle, pid_file) = (bundle.to_string_lossy(), bundle.join("pid"));
        self.do_ok(&["create", "--bundle", &bundle, "--pid-file", &pid_file.to_string_lossy(), id])
    }

    fn live(&self, bundle: &Path, id: &str) -> Result<()> {
        self.create(bundle, id)?;
        self.do_ok(&["start", id])
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.do_ok(&["delete", id])
    }
}

/// What an init of the fake does when it is started, and how it ends by that.
fn plan(how: ExitStatus) -> String {
    let act = match (how.code, how.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, signal) => format!("kill -{} $$", signal.unwrap_or_default()),
    };
    format!("read go < $1/go; {act}")
}

/// Each number has an end of its own, as far as there are enough.
fn how(i: usize) -> ExitStatus {
    const SIGNALS: [i32; 6] = [SIGKILL, SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGALRM, libc::SIGINT];
    if i % 5 == 4 {
        // A shell in the background ignores SIGINT: that of the list is never drawn.
        ExitStatus::signaled(SIGNALS[i / 5 % 5])
    } else {
        ExitStatus::exited((i % 256) as i32)
    }
}

/// It has been told to its deletion, and to have ended so.
fn ends_so(listener: &Listener, id: &str, how: ExitStatus) -> Result<()> {
    let records = listener.wait(id, &WHOLE_LIFE)?;
    let stopped = the(EventKind::Stopped, &records)?;
    let exit = stopped.event.exit().copied().with_context(|| stopped.to_json())?;
    ensure!(end(exit) == end(how), "not {how}: {}", stopped.to_json());
    Ok(())
}

/// It has been told to have ended so, and not been deleted.
fn ends_so_far(listener: &Listener, id: &str, how: ExitStatus) -> Result<()> {
    let records = listener.wait(id, &WHOLE_LIFE[..4])?;
    let exit = records[3].event.exit().copied().with_context(|| records[3].to_json())?;
    ensure!(end(exit) == end(how), "not {how}: {}", records[3].to_json());
    Ok(())
}

/// 1,000 containers, a few of them real, each with its own end.
#[test]
fn a_thousand_at_once() -> Result<()> {
    need!(Root, Busybox, Runc);
    const FAKES: usize = 970;
    const ALL: usize = 1000;
    let limit = Duration::from_secs(540);
    let _dog = watchdog(limit);
    let (fake, runc) = (Fake::new()?, Runtime::runc()?);
    let listener = Listener::to([fake.path(), runc.path()])?;
    let prefix = unique_id("one-of");
    let id = |i: usize| format!("{prefix}-{i}");
    let next = AtomicUsize::new(0);
    let live = |i: usize| -> Result<()> {
        if i < FAKES {
            let bundle = fake.bundle(&format!("b{i}"), &plan(how(i)))?;
            fake.live(&bundle, &id(i))?;
            listener.wait(&id(i), &WHOLE_LIFE[..4])?;
            return fake.delete(&id(i));
        }
        // Process 1 of a pid namespace can only be killed from outside.
        let how = how(i);
        let script = how.code.map_or("sleep 1000".to_owned(), |code| format!("exit {code}"));
        let bundle = Bundle::builder(id(i)).script(&script).build()?;
        let init = runc.create(&bundle)?;
        runc.start(bundle.id())?;
        if let Some(signal) = how.signal {
            listener.wait(bundle.id(), &WHOLE_LIFE[..3])?;
            ensure!(signal == SIGKILL || signal == SIGTERM || signal > 0);
            init.kill(SIGKILL)?;
        }
        listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
        runc.delete(bundle.id(), false)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= ALL {
                            return Ok(());
                        }
                        // The real ones are spread over the time.
                        let i = n * 33 % ALL;
                        let i = if ALL % 3 == 0 { n } else { i };
                        live(i).with_context(|| id(i))?;
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    for i in 0..ALL {
        let how = how(i);
        let how = if i >= FAKES && how.signal.is_some() { ExitStatus::signaled(SIGKILL) } else { how };
        ends_so(&listener, &id(i), how)?;
    }
    listener.wait_idle()?;
    let status = listener.status()?;
    ensure!(status.containers == 0 && status.timed_out == 0, "{status:?}");
    let records = listener.close()?;
    ensure!(records.len() == ALL * WHOLE_LIFE.len(), "{} records", records.len());
    Ok(())
}

/// One id, life after life, with nothing between the deletion and the next creation.
#[test]
fn an_id_a_hundred_times() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let fake = Fake::new()?;
    let listener = Listener::to([fake.path()])?;
    let id = unique_id("again");
    for i in 0..100 {
        let bundle = fake.bundle("one", &plan(how(i)))?;
        fake.live(&bundle, &id)?;
        // As an engine: it deletes when it has reaped the init, whether that was told or not.
        let pid: i32 = std::fs::read_to_string(bundle.join("pid"))?.trim().parse()?;
        wait_until("the init has ended", PATIENCE, || (!testkit::Process(pid).is_alive()).then_some(()))?;
        fake.delete(&id)?;
    }
    let kinds = WHOLE_LIFE.repeat(100);
    let records = listener.wait(&id, &kinds)?;
    for (i, life) in records.chunks(WHOLE_LIFE.len()).enumerate() {
        let exit = the(EventKind::Stopped, life)?.event.exit().copied().context("no exit")?;
        ensure!(end(exit) == end(how(i)), "life {i}: {}", life[3].to_json());
    }
    listener.close()?;
    Ok(())
}

/// The init ends, and is reaped, before the runtime that creates it has ended.
#[test]
fn an_end_before_its_creation_is_told() -> Result<()> {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let fake = Fake::new()?;
    let listener = Listener::to([fake.path()])?;
    let id = unique_id("early");
    let bundle = fake.bundle("early", "exit 3")?;
    std::fs::write(bundle.join("slow"), "")?;
    fake.create(&bundle, &id)?;
    let kinds = [EventKind::PreCreate, EventKind::Created, EventKind::Stopped];
    let told = listener.wait_for("its end", |records| {
        let of: Vec<Record> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
        of.last()
            .is_some_and(|r| matches!(r.event.kind(), EventKind::Stopped | EventKind::Deleted))
            .then_some(of)
    })?;
    let got: Vec<EventKind> = told.iter().map(|r| r.event.kind()).collect();
    ensure!(got == kinds, "{got:?}\n{}", listener.text());
    ensure!(!told[1].event.held() && told[2].event.pid().is_some(), "{}", listener.text());
    // Nobody has watched it; BPF keeps such ends while a runtime is at work. Without, a code would be a guess.
    let kept = listener.status()?.exit_backend == ExitBackend::Bpf;
    let how = if kept { (Some(3), None) } else { (None, None) };
    ensure!(told[2].event.exit().map(|exit| end(*exit)) == Some(how), "{}", told[2].to_json());
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    listener.close()?;
    Ok(())
}

/// The kernel is made to give one pid again and again. Others fork here too, so not every try succeeds.
#[test]
fn a_pid_again_and_again() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::to([runtime.path()])?;
    let prefix = unique_id("pid");
    let mut used: HashMap<u32, usize> = HashMap::new();
    let mut last = None;
    for i in 0..100 {
        if let Some(pid) = last {
            std::fs::write("/proc/sys/kernel/ns_last_pid", format!("{}", pid - 1))?;
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("read go; exit {i}")]).stdin(Stdio::piped());
        let mut child = command.spawn()?;
        let id = format!("{prefix}-{i}");
        listener.notifier().watch_termination(&id, child.id())?;
        drop(child.stdin.take());
        ensure!(child.wait()?.into_raw() == i << 8);
        *used.entry(child.id()).or_default() += 1;
        last.get_or_insert(child.id());
    }
    for i in 0..100 {
        let records = listener.wait(&format!("{prefix}-{i}"), &[EventKind::Stopped])?;
        let exit = records[0].event.exit().copied().context("no exit")?;
        ensure!(exit.code == Some(i), "{i}: {}", records[0].to_json());
    }
    let most = used.values().max().copied().unwrap_or_default();
    println!("one pid was used {most} times");
    ensure!(most > 1, "no pid was used again");
    listener.close()?;
    Ok(())
}

/// Its parent has other things to do.
#[test]
fn an_init_that_nobody_reaps_is_told_at_once() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::to([runtime.path()])?;
    let mut zombie = Command::new("/bin/sh").args(["-c", "read go; exit 5"]).stdin(Stdio::piped()).spawn()?;
    listener.notifier().watch_termination("zombie", zombie.id())?;
    drop(zombie.stdin.take());
    let records = listener.wait("zombie", &[EventKind::Stopped])?;
    ensure!(records[0].event.exit().is_some_and(|exit| exit.code == Some(5)), "{}", records[0].to_json());
    // It is told as it begins to die, a moment before it is a zombie.
    let process = testkit::Process(zombie.id().cast_signed());
    wait_until("it is a zombie", PATIENCE, || (process.state() == Some('Z')).then_some(()))?;
    zombie.wait()?;
    ensure!(listener.records().len() == 1, "told again\n{}", listener.text());
    listener.close()?;
    Ok(())
}

/// One that nobody near it has, neither process nor thread: what lives on would keep it.
fn a_free_pid() -> Result<u32> {
    let most: u32 = std::fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?;
    let is_free = |pid: &u32| (*pid..pid + 100).all(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    (most / 2..most - 100).step_by(100).find(is_free).context("every pid is in use")
}

/// The same with containers: an init has the pid of the one before, life after life.
#[test]
fn inits_of_the_same_pid() -> Result<()> {
    need!(Root, Busybox);
    const LIVES: usize = 8;
    let _dog = watchdog(LIMIT);
    let fake = Fake::new()?;
    let listener = Listener::to([fake.path()])?;
    let prefix = unique_id("reborn");
    let mut used: HashMap<u32, usize> = HashMap::new();
    let pid = a_free_pid()?;
    for i in 0..LIVES {
        let id = format!("{prefix}-{i}");
        let bundle = fake.bundle(&format!("b{i}"), &plan(how(i)))?;
        // The runtime makes the kernel give this pid next, unless somebody else is quicker.
        std::fs::write(bundle.join("last_pid"), format!("{}\n", pid - 1))?;
        fake.live(&bundle, &id)?;
        ends_so_far(&listener, &id, how(i))?;
        let pid: u32 = std::fs::read_to_string(bundle.join("pid"))?.trim().parse()?;
        *used.entry(pid).or_default() += 1;
        // A zombie keeps its pid, and some hosts' process 1 looks for them every two seconds.
        let proc = PathBuf::from(format!("/proc/{pid}"));
        wait_until("the host has reaped it", PATIENCE, || (!proc.exists()).then_some(()))?;
        fake.delete(&id)?;
        let records = listener.wait(&id, &WHOLE_LIFE)?;
        ensure!(records[1..].iter().all(|record| record.event.pid() == Some(pid)), "{}", listener.text());
    }
    let most = used.values().max().copied().unwrap_or_default();
    println!("one pid was that of {most} of {LIVES} inits");
    ensure!(most > LIVES / 4, "no pid was used again and again: {used:?}");
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    let records = listener.close()?;
    ensure!(records.len() == LIVES * WHOLE_LIFE.len(), "{} records", records.len());
    Ok(())
}

/// The runtime that started it is killed, and nobody waits for the container but the host's own init.
#[test]
fn an_init_that_outlives_its_runtime() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("outlives")).script("read go < /wait; exit 5").build()?;
    ensure!(Command::new("mkfifo").arg(bundle.rootfs().join("wait")).status()?.success());
    let run = runtime.spawn_run(&bundle)?;
    let records = listener.wait(bundle.id(), &WHOLE_LIFE[..3])?;
    let init = testkit::Process(records[1].event.pid().context("no pid")?.cast_signed());
    run.process().kill(SIGKILL)?;
    ensure!(!run.wait(PATIENCE)?.status.success());
    ensure!(init.is_alive() && listener.of(bundle.id()).len() == 3, "{}", listener.text());
    std::fs::write(bundle.rootfs().join("wait"), "go\n")?;
    let records = listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
    let exit = records[3].event.exit().copied().with_context(|| records[3].to_json())?;
    // Whoever reaps it does so at once: without BPF or Linux 6.15 its code can be missed.
    let exact = listener.status()?.exit_backend != ExitBackend::Pidfd;
    ensure!(exit.code == Some(5) || (!exact && exit.code.is_none()), "{}", records[3].to_json());
    runtime.delete(bundle.id(), true)?;
    listener.wait(bundle.id(), &WHOLE_LIFE)?;
    listener.close()?;
    Ok(())
}

/// containerd notices, and has the container killed and deleted by another shim.
#[test]
fn a_shim_that_dies() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let id = unique_id("shimless");
    let mut command = containerd.run(&["--detach"], &id, &["/bin/sleep", "1000"]);
    Task::spawn(&mut command)?.wait(LIMIT)?.ok()?;
    let records = listener.wait(&id, &WHOLE_LIFE[..3])?;
    let init = testkit::Process(records[1].event.pid().context("no pid")?.cast_signed());
    let shim = init.parent().context("it has no parent")?;
    ensure!(shim.args().iter().any(|arg| arg.contains("shim")), "{:?}", shim.args());
    shim.kill(SIGKILL)?;
    let records = listener.wait_besides(&id, &WHOLE_LIFE, &[EventKind::Killed])?;
    let exit = records[3].event.exit().copied().with_context(|| records[3].to_json())?;
    let exact = listener.status()?.exit_backend != ExitBackend::Pidfd;
    let killed = end(exit) == (None, Some(SIGKILL));
    ensure!(killed || (!exact && end(exit) == (None, None)), "{}", records[3].to_json());
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    listener.close()?;
    Ok(())
}

/// Nothing of this process turns while nothing happens, however much is watched.
#[test]
fn ten_thousand_are_watched_for_nothing() -> Result<()> {
    need!(Root, Busybox, Runc);
    const COUNT: usize = 10_000;
    let _dog = watchdog(Duration::from_secs(400));
    let runtime = Runtime::runc()?;
    let listener = Listener::to([runtime.path()])?;
    let script = format!("i=0; while [ $i -lt {COUNT} ]; do sleep 100000 & i=$((i+1)); done; echo all; wait");
    let mut command = Command::new(BUSYBOX);
    command.args(["sh", "-c", &script]);
    let parent = Task::spawn(&mut command)?;
    let reaped = Reaped(parent);
    wait_until("all are there", Duration::from_secs(200), || {
        reaped.0.printed().0.contains("all").then_some(())
    })?;
    let children = reaped.0.process().children();
    ensure!(children.len() == COUNT, "{} children", children.len());
    let before = resident()?;
    for (i, child) in children.iter().enumerate() {
        listener.notifier().watch_termination(&format!("w{i}"), child.0.cast_unsigned())?;
    }
    let bytes = resident()?.saturating_sub(before) * 1024 / COUNT as u64;
    println!("{bytes} bytes of memory for each of {COUNT} watched");
    listener.wait_idle()?;
    // What the watches were for is still done in the background for a moment.
    wait_until("it comes to rest", PATIENCE, || {
        let turns = turns().ok()?;
        // A worker without work ends after 5 s.
        std::thread::sleep(Duration::from_secs(7));
        (self::turns().ok()? == turns).then_some(())
    })?;
    let turns = turns()?;
    ensure!(!turns.is_empty());
    std::thread::sleep(Duration::from_secs(5));
    ensure!(self::turns()? == turns, "{turns:?}, then {:?}", self::turns()?);
    ensure!(listener.status()?.containers == COUNT && listener.records().is_empty());
    children[COUNT / 2].kill(SIGKILL)?;
    listener.wait(&format!("w{}", COUNT / 2), &[EventKind::Stopped])?;
    drop(reaped);
    listener.wait_for("all ends", |records| (records.len() == COUNT).then_some(()))?;
    listener.close()?;
    Ok(())
}

/// A parent whose children end with it.
struct Reaped(Task);

impl Drop for Reaped {
    fn drop(&mut self) {
        let children = self.0.process().children();
        let _ = self.0.process().kill(SIGKILL);
        for child in children {
            let _ = child.kill(SIGKILL);
        }
    }
}

/// How often each thread of the library has been on a processor.
fn turns() -> Result<Vec<(String, u64)>> {
    let mut turns = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        let Ok(name) = std::fs::read_to_string(path.join("comm")) else { continue };
        // The one that hears of changed files hears of all that is done in /var/tmp, by whomever.
        if !name.starts_with("ch-") || name.trim() == "ch-runtimes" {
            continue;
        }
        let status = std::fs::read_to_string(path.join("status"))?;
        let switches = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
        let count = switches.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
        turns.push((format!("{} {}", path.display(), name.trim()), count));
    }
    turns.sort();
    Ok(turns)
}

/// KiB of this process's memory.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}
