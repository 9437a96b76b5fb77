//! A listener that is killed, and started again: no end is lost, and no container is new twice.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind};
use libc::SIGKILL;
use serde_json::Value;
use support::{LIMIT, Listener, PATIENCE, end, only};
use testkit::{Bundle, Runtime, Scratch, need, unique_id, wait_until, watchdog};

use EventKind::{Created, Deleted, Stopped};

const RUNTIME: &str = "CONTAINERHOOK_TEST_RUNTIME";
const STATE: &str = "CONTAINERHOOK_TEST_STATE";

/// Not a test, but the listener that one starts as a process of its own.
#[test]
fn the_listener_that_is_killed() -> Result<()> {
    let (Some(runtime), Some(state)) = (std::env::var_os(RUNTIME), std::env::var_os(STATE)) else {
        return Ok(());
    };
    let builder = only([runtime]).state_file(state);
    let listener = Listener::start(builder, |_: &ContainerEvent| ())?;
    // Long enough for the test, which kills it; not for ever where that was killed.
    std::thread::sleep(LIMIT);
    drop(listener);
    Ok(())
}

struct Killed(std::process::Child);

impl Killed {
    fn start(runtime: &Runtime, state: &Path) -> Result<Killed> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", "the_listener_that_is_killed"])
            .env(RUNTIME, runtime.path())
            .env(STATE, state);
        let child = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let process = testkit::Process(child.0.id().cast_signed());
        wait_until("it listens", PATIENCE, || process.marks(&runtime.path()).then_some(()))?;
        Ok(child)
    }

    fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The ids in the file, in order.
fn remembered(state: &Path) -> Result<Vec<String>> {
    let text = std::fs::read(state).with_context(|| state.display().to_string())?;
    // It is put in place by a rename: whenever it is read it is whole.
    let json: Value = serde_json::from_slice(&text)?;
    let containers = json["containers"].as_array().context("no containers")?;
    let mut ids: Vec<String> =
        containers.iter().filter_map(|c| c["id"].as_str().map(str::to_owned)).collect();
    ids.sort();
    Ok(ids)
}

fn wait_for(state: &Path, ids: &[&str]) -> Result<()> {
    let mut ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    ids.sort();
    wait_until("the file says what runs", PATIENCE, || {
        remembered(state).ok().filter(|found| *found == ids).map(drop)
    })
}

#[test]
fn ends_that_nobody_saw_are_told() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let scratch = Scratch::new()?;
    let state = scratch.join("state.json");
    let bundle = |name: &str| Bundle::builder(unique_id(name)).args(["/bin/sleep", "1000"]).build();
    let (ends, lives, early) = (bundle("ends")?, bundle("lives")?, bundle("early")?);

    let killed = Killed::start(&runtime, &state)?;
    let mut inits = Vec::new();
    for bundle in [&ends, &lives, &early] {
        inits.push(runtime.create(bundle)?);
        runtime.start(bundle.id())?;
    }
    wait_for(&state, &[ends.id(), lives.id(), early.id()])?;
    // This end is seen: it is not told again.
    inits[2].kill(SIGKILL)?;
    wait_for(&state, &[ends.id(), lives.id()])?;
    killed.kill()?;
    inits[0].kill(SIGKILL)?;
    wait_until("its init has ended", PATIENCE, || (!inits[0].is_alive()).then_some(()))?;

    // With a look at what runs, too: each is told once.
    let builder = only([runtime.path()]).state_file(&state).existing(true);
    let listener = Listener::start(builder, |_: &ContainerEvent| ())?;
    let stopped = listener.wait(ends.id(), &[Stopped])?.remove(0);
    ensure!(stopped.event.existing() && stopped.event.exit().is_none(), "{}", stopped.to_json());
    ensure!(stopped.event.pid() == Some(inits[0].0.cast_unsigned()), "{}", stopped.to_json());
    ensure!(stopped.event.finished_at().is_none(), "{}", stopped.to_json());
    ensure!(stopped.event.runtime().is_some_and(|it| it.path == runtime.path()), "{}", stopped.to_json());
    let created = listener.wait(lives.id(), &[Created])?.remove(0);
    ensure!(created.event.existing() && !created.event.held(), "{}", created.to_json());
    ensure!(created.event.bundle() == Some(lives.path()), "{}", created.to_json());
    wait_until("it has looked", PATIENCE, || listener.status().ok().filter(|s| !s.looking).map(drop))?;
    wait_for(&state, &[lives.id()])?;
    inits[1].kill(SIGKILL)?;
    let records = listener.wait(lives.id(), &[Created, Stopped])?;
    let exit = records[1].event.exit().copied();
    ensure!(exit.map(end) == Some((None, Some(SIGKILL))), "{}", records[1].to_json());
    for (bundle, kinds) in [(&ends, &[Stopped, Deleted][..]), (&lives, &[Created, Stopped, Deleted])] {
        runtime.delete(bundle.id(), true)?;
        listener.wait(bundle.id(), kinds)?;
    }
    ensure!(listener.of(early.id()).is_empty(), "{}", listener.text());
    wait_for(&state, &[])?;
    listener.close()?;

    // Nothing is left to tell.
    let listener = Listener::start(only([runtime.path()]).state_file(&state), |_: &ContainerEvent| ())?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(listener.close()?.is_empty());
    Ok(())
}

/// What cannot be read or written is a warning, and nothing waits for it.
#[test]
fn a_file_that_is_no_use_is_none() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let scratch = Scratch::new()?;
    std::fs::write(scratch.join("nonsense"), "{")?;
    for (path, warns) in [("nonsense", true), ("no/such/folder", false)] {
        let builder = only([runtime.path()]).state_file(scratch.join(path));
        let listener = Listener::start(builder, |_: &ContainerEvent| ())?;
        let warned = listener.status()?.warnings.iter().any(|line| line.contains(path));
        ensure!(warned == warns, "{path}: {:?}", listener.status()?.warnings);
        let bundle = Bundle::builder(unique_id("useless")).build()?;
        ensure!(runtime.run(&bundle)?.code() == Some(0));
        listener.wait(bundle.id(), &support::WHOLE_LIFE)?;
        listener.close()?;
    }
    Ok(())
}
