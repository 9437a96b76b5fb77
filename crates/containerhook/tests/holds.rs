//! What is held waits for the handler, and nothing else does.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, only, parse_uptime, the, uptime};
use testkit::{Bundle, Family, Output, Rootfs, Runtime, Task, need, unique_id, wait_until, watchdog};

/// A handler that takes three seconds, and as long as the test has something to do meanwhile.
struct Sleeper {
    id: String,
    kind: EventKind,
    asleep: AtomicBool,
    may_wake: AtomicBool,
    woke: Mutex<Option<f64>>,
}

impl Sleeper {
    fn new(id: &str, kind: EventKind) -> Arc<Self> {
        let (id, woke) = (id.to_owned(), Mutex::default());
        Arc::new(Sleeper { id, kind, asleep: false.into(), may_wake: false.into(), woke })
    }

    fn on_event(&self, event: &ContainerEvent) {
        if event.id() != self.id || event.kind() != self.kind {
            return;
        }
        self.asleep.store(true, Ordering::SeqCst);
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end || !self.may_wake.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        *self.woke.lock().unwrap() = uptime().ok();
    }
}

/// The container writes when its first instruction ran; meanwhile the runtime lists, and another container lives.
fn until_the_handler_has_returned(family: Family, kind: EventKind, run: bool) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    // One root for both: while one container's entrypoint is held the other executes the same file.
    let rootfs = Rootfs::busybox()?;
    let bundle = |name| {
        Bundle::builder(unique_id(name))
            .rootfs(&rootfs)
            .args(["/bin/sh", "-c", "read up idle < /proc/uptime; echo $up"])
            .build()
    };
    let (held, other) = (bundle("held")?, bundle("other")?);
    let sleeper = Sleeper::new(held.id(), kind);
    let handler = Arc::clone(&sleeper);
    let builder = only([runtime.path()]).deadline(Duration::from_secs(100));
    let listener = Listener::start(builder, move |event: &ContainerEvent| handler.on_event(event))?;

    if !run && kind != EventKind::PreCreate {
        runtime.create(&held)?;
    }
    let printed = std::thread::scope(|scope| -> Result<String> {
        // On a thread: who spawns a process waits until its exec is over.
        let task = scope.spawn(|| -> Result<Output> {
            if run {
                runtime.run(&held)?.ok()
            } else if kind == EventKind::PreCreate {
                runtime.spawn_create(&held)?.wait(LIMIT)?.ok()
            } else {
                Task::spawn(&mut runtime.command(["start", held.id()]))?.wait(LIMIT)?.ok()
            }
        });
        let meanwhile = || -> Result<()> {
            let asleep = || sleeper.asleep.load(Ordering::SeqCst).then_some(());
            wait_until("the handler sleeps", PATIENCE, asleep)?;
            // Created is told as soon as the create has ended, and the start comes when it comes.
            wait_until("one execution is held", PATIENCE, || {
                (listener.status().ok()?.held == 1).then_some(())
            })?;
            Task::spawn(&mut runtime.command(["list"]))?.wait(PATIENCE)?.ok()?;
            let output = runtime.run(&other)?.ok()?;
            ensure!(parse_uptime(&output.stdout)? > 0.0);
            listener.wait(other.id(), &WHOLE_LIFE)?;
            ensure!(sleeper.woke.lock().unwrap().is_none(), "the other container has waited");
            Ok(())
        };
        let gone_on = meanwhile();
        sleeper.may_wake.store(true, Ordering::SeqCst);
        let output = task.join().expect("it does not panic")?;
        gone_on?;
        if run {
            return Ok(output.stdout);
        }
        if kind == EventKind::PreCreate {
            runtime.start(held.id())?;
        }
        listener.wait(held.id(), &WHOLE_LIFE[..4])?;
        runtime.delete(held.id(), true)?;
        Ok(held.stdout())
    })?;
    let records = listener.wait(held.id(), &WHOLE_LIFE)?;
    let woke = sleeper.woke.lock().unwrap().context("the handler has not woken")?;
    // To a hundredth of a second, as the kernel prints it.
    let first = parse_uptime(&printed).with_context(|| format!("it printed {printed:?}"))?;
    ensure!(first >= woke - 0.01, "its first instruction ran at {first}, and the handler returned at {woke}");
    let record = the(kind, &records)?;
    let answer = record.answer.as_ref().context("unanswered")?;
    ensure!(
        record.event.held() && !answer.timed_out && answer.held_for >= Duration::from_secs(3),
        "{answer:?}"
    );
    listener.wait_idle()?;
    ensure!(listener.status()?.timed_out == 0);
    listener.close()?;
    Ok(())
}

macro_rules! for_each_hold {
    ($($family:ident $module:ident),*) => {$(
        mod $module {
            use super::{EventKind, Family, Result, need, until_the_handler_has_returned};

            #[test]
            fn create_waits_for_pre_create() -> Result<()> {
                need!(Root, Busybox, $family);
                until_the_handler_has_returned(Family::$family, EventKind::PreCreate, false)
            }

            #[test]
            fn start_waits_for_created() -> Result<()> {
                need!(Root, Busybox, $family);
                until_the_handler_has_returned(Family::$family, EventKind::Created, false)
            }

            #[test]
            fn the_entrypoint_waits_for_started() -> Result<()> {
                need!(Root, Busybox, $family);
                until_the_handler_has_returned(Family::$family, EventKind::Started, false)
            }

            #[test]
            fn run_waits_for_pre_create() -> Result<()> {
                need!(Root, Busybox, $family);
                until_the_handler_has_returned(Family::$family, EventKind::PreCreate, true)
            }

            #[test]
            fn run_waits_for_created() -> Result<()> {
                need!(Root, Busybox, $family);
                until_the_handler_has_returned(Family::$family, EventKind::Created, true)
            }

            #[test]
            fn run_waits_for_started() -> Result<()> {
                need!(Root, Busybox, $family);
                until_the_handler_has_returned(Family::$family, EventKind::Started, true)
            }
        }
    )*};
}

for_each_hold!(Runc runc, Crun crun);
