//! An engine that is stuck: `Builder::watchdog` ends its process, and what it held goes on.

mod support;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use containerhook::{ContainerEvent, ErrorKind, EventKind};
use support::{LIMIT, Listener, PATIENCE, only};
use testkit::{Bundle, Runtime, Task, need, unique_id, wait_until, watchdog};

/// Makes this test program a listener: the runtime to mark.
const RUNTIME: &str = "CONTAINERHOOK_TEST_RUNTIME";

/// More than a busy machine makes a healthy engine wait.
const WATCHDOG: Duration = Duration::from_millis(2000);

/// Not a test: what the tests below run as a process of its own. It holds what is created for ever.
#[test]
fn as_a_listener() {
    let Some(runtime) = std::env::var_os(RUNTIME).map(PathBuf::from) else { return };
    let _dog = watchdog(LIMIT);
    let notifier = only([&runtime])
        .deadline(Duration::from_secs(110))
        .watchdog(WATCHDOG)
        .start(|event: &ContainerEvent| {
            if event.kind() == EventKind::PreCreate {
                say(&format!("holds {}", event.id()));
                std::thread::sleep(LIMIT);
            }
        })
        .expect("the notifier starts");
    say("ready");
    std::thread::sleep(LIMIT);
    notifier.close();
}

/// Straight to the descriptor: the test runner keeps what is printed by macro to itself.
fn say(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("\n@ {line}\n").as_bytes());
}

fn listening(runtime: &Path) -> Result<Task> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "as_a_listener", "--nocapture", "--test-threads=1"]).env(RUNTIME, runtime);
    let task = Task::spawn(&mut command)?;
    says(&task, "ready")?;
    Ok(task)
}

fn says(task: &Task, what: &str) -> Result<()> {
    let line = format!("@ {what}");
    wait_until(what, PATIENCE, || task.printed().0.lines().any(|l| l == line).then_some(()))
}

#[test]
fn a_stuck_engine_ends_its_process_and_what_it_held_goes_on() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = listening(&runtime.path())?;
    let bundle = Bundle::builder(unique_id("stuck")).args(["/bin/sleep", "1000"]).build()?;
    std::thread::scope(|scope| -> Result<()> {
        let create = scope.spawn(|| runtime.create(&bundle));
        says(&listener, &format!("holds {}", bundle.id()))?;
        // A handler that does not return is not what is looked for.
        std::thread::sleep(WATCHDOG * 3);
        ensure!(listener.process().is_alive() && !create.is_finished());
        let stalled = listener.process().stall("ch-engine")?;
        let since = Instant::now();
        stalled.until_its_end();
        ensure!(since.elapsed() < WATCHDOG + Duration::from_secs(1), "{:?}", since.elapsed());
        let init = create.join().expect("it does not panic")?;
        ensure!(init.is_alive() && runtime.state(bundle.id())?.status == "created");
        Ok(())
    })?;
    let output = listener.wait(PATIENCE)?;
    assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{output:?}");
    ensure!(output.stderr.contains("watchdog: the notifier's engine has not answered"), "{}", output.stderr);
    runtime.start(bundle.id())
}

#[test]
fn a_process_that_was_stopped_and_goes_on_is_left_alone() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let mut listener = listening(&runtime.path())?;
    for _ in 0..3 {
        listener.process().kill(libc::SIGSTOP)?;
        let stopped = || (listener.process().state() == Some('T')).then_some(());
        wait_until("it is stopped", PATIENCE, stopped)?;
        std::thread::sleep(WATCHDOG * 2);
        listener.process().kill(libc::SIGCONT)?;
        std::thread::sleep(WATCHDOG / 2);
    }
    std::thread::sleep(WATCHDOG * 2);
    if let Some(output) = listener.try_wait()? {
        anyhow::bail!("it ended: {output:?}");
    }
    Ok(())
}

#[test]
fn a_heartbeat_tells_that_the_engine_turns_and_that_it_has_ended() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::start(only([runtime.path()]).watchdog(WATCHDOG), |_: &ContainerEvent| ())?;
    let heartbeat = listener.notifier().heartbeat();
    heartbeat.beat(PATIENCE)?;
    // A thread gives itself its name, some time after the engine has begun to answer.
    wait_until("the watchdog's thread is there", PATIENCE, || (threads("ch-watchdog") == 1).then_some(()))?;
    std::thread::sleep(WATCHDOG * 2);
    drop(listener);
    assert_eq!(heartbeat.beat(PATIENCE).unwrap_err().kind(), ErrorKind::Closed);
    // It ends with its notifier, and does not end this process.
    wait_until("the watchdog's thread ends", PATIENCE, || (threads("ch-watchdog") == 0).then_some(()))
}

#[test]
fn a_limit_that_an_engine_cannot_keep_is_refused() {
    let start = only(["/nowhere"]).watchdog(Duration::from_millis(99)).start(|_: &ContainerEvent| ());
    let error = start.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("at least 100ms"), "{error}");
}

/// How many threads of this process have this name.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|comm| comm.trim_end() == name).count()
}
