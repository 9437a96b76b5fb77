//! Fifty containers at once on containerd, with a handler that takes a second, beside the same fifty without a listener.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind};
use support::{Listener, WHOLE_LIFE, only};
use testkit::{Containerd, Runtime, Task, need, unique_id, watchdog};

const COUNT: usize = 50;

/// How long the handler takes.
const HANDLER: Duration = Duration::from_secs(1);

/// How much longer all fifty may take with it.
const MORE: Duration = Duration::from_secs(3);

/// How often both are measured: what else the machine does makes either longer, never shorter.
const ROUNDS: usize = 4;

const LONG: Duration = Duration::from_secs(560);

/// All at the same time, to the end of the last. Their ids, and how long it took.
fn fifty(containerd: &Containerd) -> Result<(Vec<String>, Duration)> {
    let ids: Vec<String> = (0..COUNT).map(|_| unique_id("fifty")).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let runs: Vec<_> = ids
            .iter()
            .map(|id| {
                scope.spawn(|| -> Result<()> {
                    let mut run = containerd.run(&["--rm"], id, &["/bin/true"]);
                    Task::spawn(&mut run)?.wait(LONG)?.ok().map(drop)
                })
            })
            .collect();
        runs.into_iter().try_for_each(|run| run.join().ok().context("it panicked")?)
    })?;
    Ok((ids, begin.elapsed()))
}

/// The handler is at each container's creation for a second, and at the fifty of them side by side.
#[test]
fn a_handler_of_a_second_costs_fifty_at_most_three() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LONG);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    // What the engine does once only is not to be measured.
    fifty(&containerd)?;
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    for round in 0..ROUNDS {
        let plain = fifty(&containerd)?.1;
        let listener = Listener::start(only([runtime.path()]), |event: &ContainerEvent| {
            if event.kind() == EventKind::PreCreate {
                std::thread::sleep(HANDLER);
            }
        })?;
        let (ids, slow) = fifty(&containerd)?;
        for id in &ids {
            let records = listener.wait(id, &WHOLE_LIFE)?;
            ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());
            let answer = records[0].answer.as_ref().context("no answer")?;
            ensure!(answer.held_for >= HANDLER && !answer.timed_out, "{}", records[0].to_json());
        }
        listener.wait_idle()?;
        listener.close()?;
        println!("round {round}: fifty took {plain:.2?} without a listener, {slow:.2?} with it");
        (without, with) = (without.min(plain), with.min(slow));
        if with <= without + MORE {
            return Ok(());
        }
    }
    ensure!(with <= without + MORE, "fifty took {without:.2?} without a listener, {with:.2?} with it");
    Ok(())
}
