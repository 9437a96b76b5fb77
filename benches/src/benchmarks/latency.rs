//! How soon a handler is told, with containers coming at a steady rate.
//!
//! A container is made by the stand-in, which stamps the clock just before its exec, before create's end, and before the
//! entrypoint's exec; the end is a SIGKILL, stamped when it is sent. The floors: the listener of one thread, told of
//! the same execs; the waiting parent that reads the pid file; a thread in `poll` on the init's pidfd.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use benches::clock;

use crate::benchmarks::resources::computes;
use crate::context::Context;
use crate::listener::{Arm, Listener};
use crate::load;
use crate::result::Row;
use crate::stats::Samples;

const WHAT: [&str; 4] = [
    "exec of the runtime → PreCreate",
    "create’s end → Created",
    "exec of the entrypoint → Started",
    "SIGKILL of the init → Stopped",
];

/// All threads of it, with the look at `create`, `start` and `delete`.
pub(crate) const COMPUTED: &str = "processor time of the listener for one container";

pub(crate) fn run(ctx: &Context) -> Result<Vec<Row>> {
    load::adopt_orphans();
    let mut rows = Vec::new();
    for (rate, count) in [(1.0, ctx.pick(5, 30)), (10.0, ctx.pick(40, 300)), (100.0, ctx.pick(300, 2000))] {
        let mut floor = vec![Samples::default(); WHAT.len()];
        let mut hook = floor.clone();
        let mut work = [Samples::default(), Samples::default()];
        // In ten blocks each, in turn; at one a second the blocks would be hardly more than their beginning.
        let blocks = if count < 100 { 2 } else { 10 };
        for block in 0..blocks * 2 {
            let (arm, into) = if block % 2 == 0 {
                (Arm::Floor, &mut floor)
            } else {
                (Arm::hook("containerhook", &["--exec-watch"]), &mut hook)
            };
            let (found, computed) = measure(ctx, &arm, rate, count / blocks)?;
            for (what, found) in into.iter_mut().zip(found) {
                what.0.push(found);
            }
            work[block % 2].0.push(vec![computed]);
        }
        for ((what, floor), hook) in WHAT.iter().zip(&floor).zip(&hook) {
            let group = format!("{what}, {rate:.0}/s");
            rows.push(Row::of(&group, "floor", "µs", floor).at(rate));
            rows.push(Row::of(&group, "containerhook", "µs", hook).compared(hook, "floor", floor).at(rate));
        }
        let group = format!("{COMPUTED}, {rate:.0}/s");
        let [floor, hook] = &work;
        rows.push(Row::of(&group, "floor", "µs", floor).at(rate));
        rows.push(Row::of(&group, "containerhook", "µs", hook).compared(hook, "floor", floor).at(rate));
    }
    Ok(rows)
}

/// One container's moments, as its maker knows them.
struct Moments {
    id: String,
    exec: u64,
    create_end: u64,
    entry: u64,
    kill: u64,
    /// When the waiting parent knew the pid, and when the thread in `poll` knew of the end.
    known: u64,
    ended: u64,
}

/// The four moments, and what the listener computed for each container.
fn measure(ctx: &Context, arm: &Arm, rate: f64, count: usize) -> Result<([Vec<f64>; 4], f64)> {
    let floor = *arm == Arm::Floor;
    let entry = ctx.bundle.rootfs().join("entry");
    let mut marked = vec![ctx.runtime.as_path()];
    if floor {
        marked.push(&entry);
    }
    let mut listener = arm.start(&ctx.tools, &marked, true)?.context("this arm has a listener")?;
    // One that does not count: threads are started, pages are touched.
    container(ctx, floor)?;
    std::thread::sleep(Duration::from_millis(100));
    listener.drain()?;
    let begin = Instant::now();
    let mut all = Vec::new();
    let computed = computes(&listener, count, || {
        for turn in 0..count {
            let due = Duration::from_secs_f64(turn as f64 / rate);
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            all.push(container(ctx, floor)?);
        }
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    })?;
    let found = if floor { of_floor(ctx, &mut listener, &all) } else { of_hook(ctx, &mut listener, &all) };
    Ok((found?, computed))
}

fn container(ctx: &Context, floor: bool) -> Result<Moments> {
    let folder = ctx.state.as_path();
    let id = ctx.id("t");
    let (mut create, mut stamps) =
        load::spawn_stamped(&mut load::create(&ctx.runtime, folder, ctx.bundle.path(), &id))?;
    create.wait()?;
    let init = load::read_pid(&folder.join("pid"))?;
    let known = clock::now();
    let (exec, create_end) = (stamps.next()?, stamps.next()?);
    load::timed(&mut load::verb(&ctx.runtime, folder, "start", &id))?;
    let entry = stamps.next()?;
    // The entrypoint is held; it is to run before it ends.
    let until = Instant::now() + Duration::from_secs(10);
    while !executes_entry(init) {
        anyhow::ensure!(Instant::now() < until, "the entrypoint of {id} does not run");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (kill, ended) = if floor {
        let thread = load::floor_of_end(init)?;
        let kill = load::kill(init);
        (kill, thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?)
    } else {
        (load::kill(init), 0)
    };
    load::reap(init);
    load::timed(&mut load::verb(&ctx.runtime, folder, "delete", &id))?;
    Ok(Moments { id, exec, create_end, entry, kill, known, ended })
}

fn executes_entry(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"/rootfs/entry\0wait\0"))
}

fn since(from: u64, to: u64) -> f64 {
    (to as f64 - from as f64) / 1e3
}

fn of_floor(ctx: &Context, listener: &mut Listener, all: &[Moments]) -> Result<[Vec<f64>; 4]> {
    let stamps = listener.drain()?;
    let runtime = ctx.runtime.to_string_lossy();
    let of = |own: bool| -> Vec<u64> {
        stamps.iter().filter(|stamp| (stamp.1 == *runtime) == own).map(|stamp| stamp.2).collect()
    };
    // Each container executes the runtime three times: create, start, delete.
    let creates = of(true).into_iter().step_by(3);
    Ok([
        creates.zip(all).map(|(at, moments)| since(moments.exec, at)).collect(),
        all.iter().map(|moments| since(moments.create_end, moments.known)).collect(),
        of(false).into_iter().zip(all).map(|(at, moments)| since(moments.entry, at)).collect(),
        all.iter().map(|moments| since(moments.kill, moments.ended)).collect(),
    ])
}

fn of_hook(ctx: &Context, listener: &mut Listener, all: &[Moments]) -> Result<[Vec<f64>; 4]> {
    let stamps: HashMap<(String, String), u64> =
        listener.drain()?.into_iter().map(|(what, id, at)| ((id, what), at)).collect();
    let of = |kind: &str, from: &dyn Fn(&Moments) -> u64| -> Vec<f64> {
        let one = |moments: &Moments| {
            let at = stamps.get(&(moments.id.clone(), kind.to_owned()))?;
            Some(since(from(moments), *at))
        };
        let found: Vec<f64> = all.iter().filter_map(one).collect();
        if found.len() != all.len() {
            ctx.note(format!("{kind} was told of {} of {} containers.", found.len(), all.len()));
        }
        found
    };
    Ok([
        of("pre-create", &|moments| moments.exec),
        of("created", &|moments| moments.create_end),
        of("started", &|moments| moments.entry),
        of("stopped", &|moments| moments.kill),
    ])
}
