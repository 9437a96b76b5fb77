//! No handler holds a container past its deadline, whatever it does.

mod support;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{Builder, ContainerEvent, EventKind, OnTimeout, Record, Verdict};
use support::{LIMIT, Listener, WHOLE_LIFE, only, the};
use testkit::{Bundle, Output, Runtime, Task, need, unique_id, watchdog};

/// What is set, where a handler is not to be in time.
const DEADLINE: Duration = Duration::from_millis(1500);

/// What holds a handler until the test lets it go.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*open {
            open = self.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// A listener whose handler does not come back from events of this kind before the gate is opened.
fn stuck_at(builder: Builder, kind: EventKind) -> Result<(Listener, Arc<Gate>)> {
    let gate = Arc::new(Gate::default());
    let in_handler = Arc::clone(&gate);
    let handler = move |event: &ContainerEvent| {
        if event.kind() == kind {
            in_handler.wait();
        }
    };
    Ok((Listener::start(builder, handler)?, gate))
}

/// Creates, starts, executes in it, and deletes: what each came to.
fn live(runtime: &Runtime, bundle: &Bundle) -> [bool; 3] {
    let create = runtime.create(bundle).is_ok();
    let start = create && runtime.start(bundle.id()).is_ok();
    let exec = start && runtime.exec(bundle.id(), &["/bin/true"]).is_ok_and(|output| output.status.success());
    let _ = runtime.delete(bundle.id(), true);
    [create, start, exec]
}

fn timed_out(record: &Record, decision: Verdict) -> Result<()> {
    let answer = record.answer.as_ref().with_context(|| format!("not held: {}", record.to_json()))?;
    ensure!(answer.timed_out && answer.decision == decision, "{}", record.to_json());
    ensure!(answer.held_for >= DEADLINE, "{}", record.to_json());
    ensure!(answer.reason.as_ref().is_some_and(|reason| reason.contains("had not answered")), "{answer:?}");
    Ok(())
}

#[test]
fn of_each_kind() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let whole = [
        EventKind::PreCreate,
        EventKind::Created,
        EventKind::Started,
        EventKind::Exec,
        EventKind::ExecStopped,
        EventKind::Stopped,
        EventKind::Deleted,
    ];
    for kind in [EventKind::PreCreate, EventKind::Created, EventKind::Started, EventKind::Exec] {
        for on_timeout in [OnTimeout::Allow, OnTimeout::Deny] {
            let builder = only([runtime.path()]).deadline_for(kind, DEADLINE).on_timeout(on_timeout);
            let (listener, gate) = stuck_at(builder, kind)?;
            let bundle = Bundle::builder(unique_id("late")).script("exec sleep 1000").build()?;
            let came_to = live(&runtime, &bundle);
            let (decision, expected) = match (on_timeout, kind) {
                (OnTimeout::Allow, _) => (Verdict::Allow, [true, true, true]),
                (_, EventKind::PreCreate) => (Verdict::Deny, [false, false, false]),
                (_, EventKind::Created) => (Verdict::Deny, [true, false, false]),
                // The start has returned when the entrypoint is executed, or has not.
                (_, EventKind::Started) => (Verdict::Deny, [true, came_to[1], false]),
                (_, _) => (Verdict::Deny, [true, true, false]),
            };
            ensure!(came_to == expected, "{kind}, {on_timeout:?}: {came_to:?}");
            let denied = decision == Verdict::Deny;
            // An exec in a container whose entrypoint is denied comes too early or too late, and may be told.
            let tried = denied && kind == EventKind::Started && came_to[1];
            let kinds = whole.iter().copied().filter(|told| match told {
                EventKind::PreCreate => true,
                EventKind::Created | EventKind::Stopped | EventKind::Deleted => {
                    !(denied && kind == EventKind::PreCreate)
                }
                EventKind::Started => !(denied && matches!(kind, EventKind::PreCreate | EventKind::Created)),
                EventKind::Exec => came_to[2] || (denied && kind == EventKind::Exec),
                _ => came_to[2],
            });
            let execs = [EventKind::Exec, EventKind::ExecStopped];
            let (of_exec, kinds): (Vec<EventKind>, Vec<EventKind>) =
                kinds.partition(|kind| execs.contains(kind));
            // `start` returns when the init has been told to go on: an exec may be seen before the entrypoint is.
            listener.wait_besides(bundle.id(), &kinds, &execs)?;
            let mut records = listener.records();
            records.retain(|record| record.event.id() == bundle.id());
            let told: Vec<EventKind> = records
                .iter()
                .map(|record| record.event.kind())
                .filter(|kind| execs.contains(kind))
                .collect();
            ensure!(tried || told == of_exec, "{kind}, {on_timeout:?}: {told:?}, not {of_exec:?}");
            timed_out(the(kind, &records)?, decision)?;
            ensure!(listener.status()?.timed_out == 1, "{:?}", listener.status()?);
            gate.open();
            listener.wait_idle()?;
            listener.close()?;
        }
    }
    Ok(())
}

/// The handler never comes back from anything: every event is told all the same, in order.
#[test]
fn of_every_event_of_a_container() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let gate = Arc::new(Gate::default());
    let (called, in_handler) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(&gate));
    let calls = Arc::clone(&called);
    let builder = only([runtime.path()]).deadline(DEADLINE).max_handlers(1);
    let listener = Listener::start(builder, move |event: &ContainerEvent| {
        calls.lock().unwrap().push(event.kind());
        in_handler.wait();
    })?;
    let bundle = Bundle::builder(unique_id("never")).args(["/bin/true"]).build()?;
    ensure!(runtime.run(&bundle)?.code() == Some(0));
    let records = listener.wait(bundle.id(), &WHOLE_LIFE)?;
    for kind in [EventKind::PreCreate, EventKind::Created] {
        timed_out(the(kind, &records)?, Verdict::Allow)?;
    }
    // The same exec is Created and Started: there was no time left for the second.
    let started = the(EventKind::Started, &records)?;
    ensure!(started.answer.as_ref().is_some_and(|answer| answer.timed_out), "{}", started.to_json());
    gate.open();
    listener.wait_idle()?;
    let all = testkit::wait_until("the handler is told of everything", support::PATIENCE, || {
        (called.lock().unwrap().len() == WHOLE_LIFE.len()).then_some(())
    });
    all?;
    ensure!(*called.lock().unwrap() == WHOLE_LIFE, "{:?}", called.lock().unwrap());
    listener.close()?;
    Ok(())
}

/// One container's handler never comes back; another's is not kept from working, though one may work at a time.
#[test]
fn of_one_container_is_no_other_ones() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let gate = Arc::new(Gate::default());
    let in_handler = Arc::clone(&gate);
    let builder = only([runtime.path()]).deadline(DEADLINE).max_handlers(1);
    let listener = Listener::start(builder, move |event: &ContainerEvent| {
        if event.id().starts_with("stuck") {
            in_handler.wait();
        }
    })?;
    let stuck = Bundle::builder(unique_id("stuck")).args(["/bin/true"]).build()?;
    ensure!(runtime.run(&stuck)?.code() == Some(0));
    listener.wait(stuck.id(), &WHOLE_LIFE)?;
    // All of the stuck one's handlers are at it still, and cost no place.
    let other = Bundle::builder(unique_id("other")).args(["/bin/true"]).build()?;
    ensure!(runtime.run(&other)?.code() == Some(0));
    let records = listener.wait(other.id(), &WHOLE_LIFE)?;
    let late = records.iter().filter_map(|record| record.answer.as_ref()).any(|answer| answer.timed_out);
    ensure!(!late, "{}", listener.text());
    gate.open();
    listener.close()?;
    Ok(())
}

#[test]
fn a_panic_is_no_answer() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    for (on_timeout, decision) in [(OnTimeout::Allow, Verdict::Allow), (OnTimeout::Deny, Verdict::Deny)] {
        let builder = only([runtime.path()]).on_timeout(on_timeout);
        let listener = Listener::start(builder, |event: &ContainerEvent| {
            assert_ne!(event.kind(), EventKind::PreCreate, "on purpose");
        })?;
        let bundle = Bundle::builder(unique_id("panic")).args(["/bin/true"]).build()?;
        let ran = Task::spawn(runtime.command(["run", "--bundle"]).arg(bundle.path()).arg(bundle.id()));
        let told = match decision {
            Verdict::Deny => {
                ensure!(ran.is_err(), "it was let go");
                &WHOLE_LIFE[..1]
            }
            _ => {
                let output: Output = ran?.wait(LIMIT)?;
                ensure!(output.code() == Some(0), "{output:?}");
                &WHOLE_LIFE[..]
            }
        };
        let records = listener.wait(bundle.id(), told)?;
        let answer = records[0].answer.as_ref().context("held")?;
        ensure!(answer.timed_out && answer.decision == decision, "{answer:?}");
        ensure!(answer.reason.as_ref().is_some_and(|reason| reason.contains("on purpose")), "{answer:?}");
        listener.wait_idle()?;
        listener.close()?;
    }
    Ok(())
}
