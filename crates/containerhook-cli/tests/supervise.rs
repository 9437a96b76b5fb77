//! The supervisor: listeners that are stopped, stuck, killed; and supervisors that are.

mod common;

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::{LONG, Watch, kinds, program};
use testkit::{Bundle, Process, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

/// The default.
const LIMIT: Duration = Duration::from_secs(2);

fn sleeper(prefix: &str) -> Result<Bundle> {
    Bundle::builder(unique_id(prefix)).args(["/bin/sleep", "1000"]).build()
}

/// One that is another than this.
fn next_listener(watch: &Watch, before: Process, runtime: &Runtime) -> Result<Process> {
    let next = || watch.0.process().children().into_iter().find(|p| *p != before && p.marks(&runtime.path()));
    wait_until("another listener is there", LONG, next)
        .with_context(|| format!("printed so far: {:?}", watch.0.printed()))
}

/// The runtime executes freely.
fn is_free(runtime: &Runtime) -> Result<()> {
    Task::spawn(&mut runtime.command(["--version"]))?.wait(LONG)?.ok().map(drop)
}

/// `harm` is done to a listener while it holds a create: that goes on in time, and another listener is there, which tells
/// what came and what comes.
fn survives(harm: impl FnOnce(Process) -> Result<()>, words: &str) -> Result<()> {
    let runc = Runtime::runc()?;
    let (held, next) = (sleeper("held")?, sleeper("next")?);
    let watch = Watch::start(&runc, &["--json", "--delay", "100s", "--deadline", "2m"])?;
    let first = watch.listener()?;
    let init = std::thread::scope(|scope| -> Result<Process> {
        let create = scope.spawn(|| runc.create(&held));
        wait_until("the handler sleeps", LONG, || common::sleeps(first, "ch-handler").then_some(()))?;
        ensure!(!create.is_finished());
        let since = Instant::now();
        harm(first)?;
        let init = create.join().expect("it does not panic")?;
        ensure!(since.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", since.elapsed());
        Ok(init)
    })?;
    ensure!(!first.is_alive());
    let second = next_listener(&watch, first, &runc)?;
    wait_until("it is ready", LONG, || (watch.0.printed().1.matches("ready:").count() == 2).then_some(()))?;
    // Its state lies where nobody looks, so it is told by its pid; and where the look came before its init, at its start.
    runc.start(held.id())?;
    let told = || watch.events().into_iter().find(|event| event["pid"] == init.0);
    let told = wait_until("what came meanwhile is told", LONG, told)
        .with_context(|| format!("printed so far: {:?}", watch.0.printed()))?;
    assert_eq!(told["event"], "created", "{told}");
    let printed = watch.0.printed().1;
    ensure!(printed.contains(words), "{printed}");
    // It holds as the first one did.
    std::thread::scope(|scope| -> Result<()> {
        let create = scope.spawn(|| runc.create(&next));
        wait_until("the handler sleeps", LONG, || common::sleeps(second, "ch-handler").then_some(()))?;
        ensure!(!create.is_finished());
        let events = watch.stop()?;
        create.join().expect("it does not panic")?;
        ensure!(
            kinds(&events, next.id()).is_empty() || kinds(&events, next.id()) == ["pre-create"],
            "{events:?}"
        );
        Ok(())
    })?;
    ensure!(!second.is_alive());
    is_free(&runc)
}

#[test]
fn a_listener_that_is_stopped_is_replaced_and_what_it_held_goes_on() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 3);
    survives(|listener| listener.kill(libc::SIGSTOP), "the listener was stopped, and so killed")
}

#[test]
fn a_listener_whose_engine_is_stuck_is_replaced_and_what_it_held_goes_on() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 3);
    let mut stalled = None;
    survives(
        |listener| {
            stalled = Some(listener.stall("ch-engine")?);
            Ok(())
        },
        "the listener was stuck for 2s, and so killed",
    )
}

#[test]
fn a_listener_that_is_killed_is_replaced() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 3);
    survives(|listener| listener.kill(libc::SIGKILL), "the listener was killed by signal 9")
}

#[test]
fn the_next_listener_tells_whole_lives() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 3);
    let runc = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("after")).args(["/bin/sh", "-c", "exit 7"]).build()?;
    let watch = Watch::start(&runc, &["--json"])?;
    let first = watch.listener()?;
    first.kill(libc::SIGSTOP)?;
    let second = next_listener(&watch, first, &runc)?;
    wait_until("it is ready", LONG, || (watch.0.printed().1.matches("ready:").count() == 2).then_some(()))?;
    assert_eq!(runc.run(&bundle)?.code(), Some(7));
    watch.wait_for(&bundle, "deleted")?;
    ensure!(second.is_alive());
    let events = watch.stop()?;
    assert_eq!(kinds(&events, bundle.id()), ["pre-create", "created", "started", "stopped", "deleted"]);
    Ok(())
}

#[test]
fn nobody_is_left_when_the_supervisor_is_killed() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = sleeper("held")?;
    let watch = Watch::start(&runc, &["--delay", "100s", "--deadline", "2m"])?;
    let listener = watch.listener()?;
    std::thread::scope(|scope| -> Result<()> {
        let create = scope.spawn(|| runc.create(&bundle));
        wait_until("the handler sleeps", LONG, || common::sleeps(listener, "ch-handler").then_some(()))?;
        watch.0.process().kill(libc::SIGKILL)?;
        create.join().expect("it does not panic").map(drop)
    })?;
    wait_until("the listener ends", LONG, || (!listener.is_alive()).then_some(()))?;
    is_free(&runc)
}

#[test]
fn it_ends_well_however_often_and_to_whom_a_signal_goes() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LONG * 3);
    let runc = Runtime::runc()?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // A terminal sends it to both, a service manager too; a person to either.
        for (to_supervisor, to_listener) in [(true, true), (true, false), (false, true)] {
            let watch = Watch::start(&runc, &["--json"])?;
            let listener = watch.listener()?;
            if to_listener {
                listener.kill(signal)?;
            }
            if to_supervisor {
                watch.0.process().kill(signal)?;
            }
            let output = watch.0.wait(LONG)?;
            assert_eq!(output.code(), Some(0), "{to_supervisor} {to_listener} {output:?}");
            assert_eq!(output.stderr, "ready: 1 runtime marked\n");
            ensure!(!listener.is_alive());
        }
    }
    is_free(&runc)
}

#[test]
fn a_signal_to_what_is_just_starting_ends_it() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    for wait in [0, 5, 20, 50, 100] {
        let mut command = program();
        command.args(["watch", "--no-discover", "--runtime"]).arg(runc.path());
        let task = Task::spawn(&mut command)?;
        std::thread::sleep(Duration::from_millis(wait));
        task.process().kill(libc::SIGTERM)?;
        let output = task.wait(LONG)?;
        // By the signal itself, before anything listened to it.
        let how = (output.code(), output.status.signal());
        ensure!([(Some(0), None), (Some(143), None), (None, Some(15))].contains(&how), "{output:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_work_is_not_tried_again() -> Result<()> {
    need!(Root);
    let _dog = watchdog(LONG * 2);
    let mut command = program();
    let output =
        Task::spawn(command.args(["watch", "--no-discover", "--runtime", "/nowhere"]))?.wait(LONG)?;
    assert_eq!(output.code(), Some(2), "{output:?}");
    assert_eq!(output.stderr.matches("containerhook:").count(), 1, "{output:?}");
    Ok(())
}

#[test]
fn without_a_supervisor_it_is_one_process() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let watch = Watch::start(&runc, &["--json", "--watchdog", "off"])?;
    assert_eq!(watch.0.process().children(), []);
    ensure!(watch.0.process().marks(&runc.path()));
    watch.stop().map(drop)
}

#[test]
fn the_supervisor_is_small_and_has_nothing_to_do_with_fanotify() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let watch = Watch::start(&runc, &["--json"])?;
    let (supervisor, listener) = (watch.0.process(), watch.listener()?);
    ensure!(listener.marks(&runc.path()) && !supervisor.marks(&runc.path()));
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", supervisor.0));
    ensure!(read("status")?.contains("\nThreads:\t1\n"));
    let fds: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", supervisor.0))?
        .map(|fd| Ok(std::fs::read_link(fd?.path())?.display().to_string()))
        .collect::<Result<_>>()?;
    ensure!(!fds.iter().any(|fd| fd.contains("fanotify") || fd.contains("bpf")), "{fds:?}");
    // What its handlers start must not have the pipe that says that it lives.
    let words = listener.args();
    let told = words.iter().find_map(|word| word.strip_prefix("--supervised=")).context("no such option")?;
    let number = told.split(':').next().unwrap_or_default();
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{number}", listener.0))?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).context("no flags")?;
    ensure!(u32::from_str_radix(flags.trim(), 8)? & libc::O_CLOEXEC as u32 != 0, "{info}");
    watch.stop().map(drop)
}

/// A service manager's socket.
struct Manager {
    folder: Scratch,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Result<Manager> {
        let folder = Scratch::new()?;
        let socket = UnixDatagram::bind(folder.join("notify"))?;
        socket.set_read_timeout(Some(LONG))?;
        Ok(Manager { folder, socket })
    }

    fn start(&self, runtime: &Runtime, args: &[&str]) -> Result<Task> {
        let mut command: Command = program();
        command.env("NOTIFY_SOCKET", self.folder.join("notify")).env("WATCHDOG_USEC", "2000000");
        command.arg("watch").args(args).arg("--no-discover").arg("--runtime").arg(runtime.path());
        Task::spawn(&mut command)
    }

    fn next(&self) -> Result<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).context("nothing more came")?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Everything that is there already, and then nothing for this long.
    fn is_silent_for(&self, time: Duration) -> Result<bool> {
        self.socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut quiet_since = Instant::now();
        let until = Instant::now() + LONG;
        while quiet_since.elapsed() < time && Instant::now() < until {
            if self.socket.recv(&mut [0; 4096]).is_ok() {
                quiet_since = Instant::now();
            }
        }
        self.socket.set_read_timeout(Some(LONG))?;
        Ok(Instant::now() < until)
    }
}

#[test]
fn systemd_is_told_when_all_is_marked_and_that_the_engine_turns() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LONG * 3);
    let runc = Runtime::runc()?;
    for args in [&["--watchdog", "off"][..], &[]] {
        let manager = Manager::new()?;
        let task = manager.start(&runc, args)?;
        assert!(manager.next()?.starts_with("READY=1\n"));
        let listener = if args.is_empty() { task.process().children()[0] } else { task.process() };
        ensure!(listener.marks(&runc.path()));
        for _ in 0..3 {
            assert_eq!(manager.next()?, "WATCHDOG=1");
        }
        task.process().kill(libc::SIGTERM)?;
        task.wait(LONG)?.ok()?;
        let mut last = manager.next()?;
        while last == "WATCHDOG=1" {
            last = manager.next()?;
        }
        assert_eq!(last, "STOPPING=1");
    }
    Ok(())
}

#[test]
fn systemd_hears_nothing_while_the_engine_is_stuck() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LONG * 3);
    let runc = Runtime::runc()?;
    let manager = Manager::new()?;
    let task = manager.start(&runc, &["--watchdog", "off"])?;
    assert!(manager.next()?.starts_with("READY=1\n"));
    let _stalled = task.process().stall("ch-engine")?;
    // Its other threads run.
    ensure!(manager.is_silent_for(Duration::from_secs(4))?);
    ensure!(task.process().is_alive());
    Ok(())
}

const UNIT: &str = include_str!("../../../deploy/systemd/containerhook.service");

fn setting(name: &str) -> Result<&'static str> {
    let mut lines = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.next().with_context(|| format!("the unit has no {name}"))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() -> Result<()> {
    if testkit::skip::find_program("systemd-analyze").is_none() {
        testkit::skip::report(
            "systemd_finds_nothing_wrong_with_the_unit",
            "systemd-analyze is not installed",
        );
        return Ok(());
    }
    let folder = Scratch::new()?;
    let file = folder.join("containerhook.service");
    // It looks for the program too.
    let installed = setting("ExecStart")?.split(' ').next().unwrap_or_default();
    std::fs::write(&file, UNIT.replace(installed, env!("CARGO_BIN_EXE_containerhook")))?;
    let output = Task::spawn(Command::new("systemd-analyze").arg("verify").arg(&file))?.wait(LONG)?.ok()?;
    let about = output.stderr.lines().filter(|line| line.contains("containerhook.service"));
    assert_eq!(about.collect::<Vec<_>>(), Vec::<&str>::new());
    Ok(())
}

/// Most of what is left has a reason in the unit's own words: of 10, what this asks for is 5.6.
#[test]
fn systemd_rates_the_units_exposure_below_5_6() -> Result<()> {
    if testkit::skip::find_program("systemd-analyze").is_none() {
        testkit::skip::report(
            "systemd_rates_the_units_exposure_below_5_6",
            "systemd-analyze is not installed; `apt-get install systemd`",
        );
        return Ok(());
    }
    let folder = Scratch::new()?;
    let file = folder.join("containerhook.service");
    std::fs::write(&file, UNIT)?;
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--threshold=56", "--no-pager"]).arg(&file);
    let output = Task::spawn(&mut command)?.wait(LONG)?;
    if output.stderr.contains("unrecognized option") {
        testkit::skip::report("systemd_rates_the_units_exposure_below_5_6", "systemd is older than 250");
        return Ok(());
    }
    output.ok()?;
    Ok(())
}

/// No system call that a listener makes is one that the unit refuses.
#[test]
fn the_units_filter_refuses_nothing_that_a_listener_uses() -> Result<()> {
    let sets: Vec<&str> = setting("SystemCallFilter")?.trim_start_matches('~').split(' ').collect();
    ensure!(setting("SystemCallFilter")?.starts_with('~') && setting("SystemCallErrorNumber")? == "EPERM");
    if testkit::skip::find_program("systemd-analyze").is_none() {
        testkit::skip::report(
            "the_units_filter_refuses_nothing_that_a_listener_uses",
            "systemd-analyze is not installed; `apt-get install systemd`",
        );
        return Ok(());
    }
    let used = include_str!("../src/confine/syscalls.rs");
    let list = |set: &str| -> Result<Vec<String>> {
        let mut command = Command::new("systemd-analyze");
        let output =
            Task::spawn(command.args(["syscall-filter", "--no-pager", set]))?.wait(LONG)?.ok()?.stdout;
        let lines = output.lines().map(str::trim).filter(|line| !line.starts_with(['@', '#']));
        Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
    };
    // The way of looking finds what is there.
    ensure!(list("@process")?.iter().any(|call| used.contains(&format!("libc::SYS_{call},"))));
    for set in sets {
        let calls = list(set)?;
        ensure!(!calls.is_empty(), "{set}");
        for call in calls {
            ensure!(!used.contains(&format!("libc::SYS_{call},")), "{set} has {call}");
        }
    }
    Ok(())
}

/// The unit's command line, with the unit's capabilities.
#[test]
fn the_capabilities_of_the_unit_are_enough() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    if testkit::skip::find_program("setpriv").is_none() {
        testkit::skip::report("the_capabilities_of_the_unit_are_enough", "setpriv is not installed");
        return Ok(());
    }
    let runc = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("unit")).args(["/bin/sh", "-c", "exit 7"]).build()?;
    let kept = setting("CapabilityBoundingSet")?.to_lowercase().replace("cap_", "+").replace(' ', ",");
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all,{kept}")).args(["--inh-caps=-all", "--no-new-privs"]);
    command.arg(env!("CARGO_BIN_EXE_containerhook"));
    command
        .args(setting("ExecStart")?.split(' ').skip(1))
        .args(["--no-discover", "--runtime"])
        .arg(runc.path());
    for name in ["CONTAINERHOOK_LOG", "NOTIFY_SOCKET", "HOST_ROOT", "RUNTIME_PATH"] {
        command.env_remove(name);
    }
    let watch = Watch(Task::spawn(&mut command)?);
    let ready = || watch.0.printed().1.contains("ready:").then_some(());
    wait_until("it is ready", LONG, ready).with_context(|| format!("{:?}", watch.0.printed()))?;
    assert_eq!(runc.run(&bundle)?.code(), Some(7));
    let stopped = watch.wait_for(&bundle, "stopped")?;
    assert_eq!(stopped["exit"]["code"], 7, "{stopped}");
    // Nothing that a capability is missing for: it would be a warning.
    assert_eq!(watch.0.printed().1, "ready: 1 runtime marked\n");
    let events = watch.stop()?;
    assert_eq!(kinds(&events, bundle.id()), ["pre-create", "created", "started", "stopped", "deleted"]);
    Ok(())
}
