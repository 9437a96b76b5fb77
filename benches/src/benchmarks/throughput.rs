//! As many creates as callers at once can have held and answered.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::benchmarks::resources::{Herd, computes};
use crate::context::Context;
use crate::listener::{Arm, Listener};
use crate::load;
use crate::result::Row;
use crate::stats::Samples;

/// What is measured with containers that are watched, and its unit.
pub(crate) const WATCHED: [(&str, &str); 3] = [
    ("creates, 8 callers", "/s"),
    ("one create, 1 caller", "µs"),
    ("processor time of the listener for one create", "µs"),
];

pub(crate) fn run(ctx: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let rounds = ctx.pick(2, 8);
    let marked = [ctx.runtime.as_path()];
    let arms = [Arm::Floor, Arm::None, Arm::Work, Arm::hook("containerhook", &[])];
    for callers in ctx.pick(vec![1, 8, 64], vec![1, 2, 4, 8, 16, 32, 64]) {
        let samples = ctx.rounds(rounds, &arms, &marked, |_, _| {
            callers_at_once(ctx, callers, Duration::from_millis(100))?;
            Ok(vec![callers_at_once(
                ctx,
                callers,
                ctx.pick(Duration::from_millis(300), Duration::from_millis(700)),
            )?])
        })?;
        let found = crate::context::rows(&format!("creates, {callers} callers"), "/s", &arms, &samples);
        rows.extend(found.into_iter().map(|row| row.at(callers as f64)));
    }

    let hook = [Arm::hook("containerhook", &[])];
    let mut growth: [Vec<Row>; 3] = Default::default();
    let mut base: Option<[Samples; 3]> = None;
    for watched in [0, 100, 10_000] {
        let herd = Herd::start(ctx, watched)?;
        let (mut alone, mut computed) = (Samples::default(), Samples::default());
        let count = ctx.pick(30, 200);
        let samples = ctx.rounds(rounds, &hook, &marked, |_, listener| {
            let listener = listener.context("there is one")?;
            herd.watch(listener)?;
            callers_at_once(ctx, 8, Duration::from_millis(100))?;
            let rate = callers_at_once(ctx, 8, Duration::from_millis(500))?;
            let mut times = Vec::new();
            computed.0.push(vec![computes(listener, count, || {
                for _ in 0..count {
                    let id = ctx.id("x");
                    times.push(load::timed(&mut load::create(
                        &ctx.runtime,
                        &ctx.state,
                        ctx.bundle.path(),
                        &id,
                    ))?);
                }
                Ok(())
            })?]);
            alone.0.push(times);
            Ok(vec![rate])
        })?;
        let found = [samples.into_iter().next().context("there is one arm")?, alone, computed];
        let base = base.get_or_insert_with(|| found.clone());
        let arm = format!("containerhook, {watched} watched");
        for (at, (group, unit)) in WATCHED.into_iter().enumerate() {
            let row = Row::of(group, &arm, unit, &found[at]);
            let row =
                if watched == 0 { row } else { row.compared(&found[at], "0 watched, before", &base[at]) };
            growth[at].push(row.at(f64::from(watched)));
        }
    }
    rows.extend(growth.into_iter().flatten());

    for delay in ["0", "1", "100"] {
        let arm = [Arm::hook("containerhook", &["--delay", delay])];
        let samples = ctx.rounds(ctx.pick(1, 3), &arm, &marked, |_, _| {
            callers_at_once(ctx, 64, Duration::from_millis(200))?;
            Ok(vec![callers_at_once(ctx, 64, Duration::from_secs(1))?])
        })?;
        rows.push(Row::of(
            "creates, 64 callers",
            &format!("containerhook, handler of {delay} ms"),
            "/s",
            &samples[0],
        ));
    }
    Ok(rows)
}

/// Creates a second.
fn callers_at_once(ctx: &Context, callers: usize, length: Duration) -> Result<f64> {
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let done = std::thread::scope(|scope| {
        let over = &over;
        let caller = |folder: PathBuf| {
            let mut done = 0u32;
            while !over.load(Ordering::Relaxed) {
                let id = ctx.id("x");
                load::timed(&mut load::create(&ctx.runtime, &folder, ctx.bundle.path(), &id))?;
                done += 1;
            }
            anyhow::Ok(done)
        };
        let mut threads = Vec::new();
        for number in 0..callers {
            let folder = ctx.state.join(format!("caller{number}"));
            fs::create_dir_all(folder.join("state"))?;
            threads.push(scope.spawn(move || caller(folder)));
        }
        std::thread::sleep(length);
        over.store(true, Ordering::Relaxed);
        let mut done = 0;
        for thread in threads {
            done += thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        anyhow::Ok(done)
    })?;
    Ok(f64::from(done) / begin.elapsed().as_secs_f64())
}

impl Herd {
    fn watch(&self, listener: &mut Listener) -> Result<()> {
        self.pids.chunks(100).try_for_each(|pids| {
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            let errors = listener.ask(&format!("watch {}", pids.join(" ")))?;
            anyhow::ensure!(errors.is_empty(), "watching: {}", errors[0]);
            Ok(())
        })
    }

    pub(crate) fn watched_by(&self, listener: &mut Listener) -> Result<()> {
        self.watch(listener)
    }
}
