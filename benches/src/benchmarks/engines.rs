//! Containers by engines: what one costs with and without a listener, and how soon an engine's own events tell of it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use benches::clock;
use testkit::{Containerd, Dockerd, Family, Need, Podman, Runtime};

use crate::context::{Context, rows};
use crate::listener::{Arm, Listener};
use crate::result::Row;
use crate::stats::Samples;

pub(crate) fn run(ctx: &Context) -> Result<Vec<Row>> {
    let mut found = Vec::new();
    for (name, need, measure) in [
        ("ctr run", Need::Containerd, ctr as fn(&Context) -> Result<Vec<Row>>),
        ("docker run", Need::Docker, docker),
        ("podman run", Need::Podman, podman),
    ] {
        match need.missing().or_else(|| Need::Runc.missing()) {
            Some(missing) => ctx.note(format!("{name} was not measured: {missing}")),
            None => found.extend(measure(ctx).with_context(|| name.to_owned())?),
        }
    }
    Ok(found)
}

fn ctr(ctx: &Context) -> Result<Vec<Row>> {
    let runtime = Runtime::new(Family::Runc)?;
    let engine = Containerd::start_with(&runtime)?;
    let one = || engine.run(&["--rm"], &ctx.id("bench"), &["/bin/true"]);
    let mut found = costs(ctx, "ctr run --rm", &runtime, one)?;
    found.extend(detector(ctx, "ctr events", &runtime, &mut engine.ctr(["events"]), one, |line| {
        let kind = match () {
            () if line.contains("/tasks/start") => "started",
            () if line.contains("/tasks/exit") => "stopped",
            () => return None,
        };
        let id = line.split("\"container_id\":\"").nth(1)?.split('"').next()?;
        Some((kind, id.to_owned()))
    })?);
    Ok(found)
}

fn docker(ctx: &Context) -> Result<Vec<Row>> {
    let runtime = Runtime::new(Family::Runc)?;
    let engine = Dockerd::start_with(&runtime)?;
    let one = || engine.run(&["--rm"], &["/bin/true"]);
    let mut found = costs(ctx, "docker run --rm", &runtime, one)?;
    let mut events = engine.docker(["events", "--format", "{{.Status}} {{.ID}}"]);
    found.extend(detector(ctx, "docker events", &runtime, &mut events, one, status_and_id)?);
    Ok(found)
}

fn podman(ctx: &Context) -> Result<Vec<Row>> {
    let runtime = Runtime::new(Family::Runc)?;
    let engine = Podman::start_with(&runtime)?;
    let one = || engine.run(&["--rm"], &["/bin/true"]);
    let mut found = costs(ctx, "podman run --rm", &runtime, one)?;
    let mut events = engine.podman(["events", "--format", "{{.Status}} {{.ID}}"]);
    found.extend(detector(ctx, "podman events", &runtime, &mut events, one, status_and_id)?);
    Ok(found)
}

/// Docker's word is `die`, Podman's `died`.
fn status_and_id(line: &str) -> Option<(&'static str, String)> {
    let (status, id) = line.trim().split_once(' ')?;
    let kind = match status {
        "start" => "started",
        "die" | "died" => "stopped",
        _ => return None,
    };
    Some((kind, id.to_owned()))
}

/// One whole `run`, under each arm in turn.
fn costs(ctx: &Context, what: &str, runtime: &Runtime, one: impl Fn() -> Command) -> Result<Vec<Row>> {
    let arms = [Arm::None, Arm::NoneAgain, Arm::Floor, Arm::hook("containerhook", &["--exec-watch"])];
    let path = runtime.path();
    quietly(&mut one())?;
    let samples = ctx.rounds(ctx.pick(2, 16), &arms, &[path.as_path()], |_, _| {
        let timed = |_| {
            let begin = Instant::now();
            quietly(&mut one())?;
            anyhow::Ok(begin.elapsed().as_secs_f64() * 1e3)
        };
        (0..ctx.pick(1, 2)).map(timed).collect()
    })?;
    Ok(rows(what, "ms", &arms, &samples))
}

/// How much later than containerhook's handler an engine's own stream of events tells of the same container.
fn detector(
    ctx: &Context,
    name: &str,
    runtime: &Runtime,
    events: &mut Command,
    one: impl Fn() -> Command,
    read: impl Fn(&str) -> Option<(&'static str, String)>,
) -> Result<Vec<Row>> {
    let arm = Arm::hook("containerhook", &[]);
    let mut listener: Listener =
        arm.start(&ctx.tools, &[runtime.path().as_path()], true)?.context("this arm has a listener")?;
    let stream = Stream::start(events)?;
    // It says nothing when it has begun to listen.
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..ctx.pick(3, 20) {
        quietly(&mut one())?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let theirs: Vec<(u64, &str, String)> =
        stream.lines().iter().filter_map(|(at, line)| read(line).map(|(kind, id)| (*at, kind, id))).collect();
    let ours = listener.drain()?;
    let mut found = Vec::new();
    for kind in ["started", "stopped"] {
        let mut later = Vec::new();
        let mut untold = 0;
        for (_, id, at) in ours.iter().filter(|(what, ..)| what == kind) {
            match theirs.iter().find(|(_, word, whose)| *word == kind && whose == id) {
                Some((theirs, ..)) => later.push((*theirs as f64 - *at as f64) / 1e6),
                None => untold += 1,
            }
        }
        if untold > 0 {
            ctx.note(format!("{name} did not tell of {untold} that containerhook told as {kind}."));
        }
        if !later.is_empty() {
            let group = format!("{kind}: how much later than containerhook");
            found.push(Row::of(&group, name, "ms", &Samples(vec![later])));
        }
    }
    Ok(found)
}

fn quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The lines that a program prints, each with the moment it came.
struct Stream {
    child: Child,
    lines: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Stream {
    fn start(command: &mut Command) -> Result<Stream> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        let lines = Arc::new(Mutex::default());
        let theirs: Arc<Mutex<Vec<(u64, String)>>> = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in output.lines().map_while(std::result::Result::ok) {
                theirs.lock().unwrap_or_else(PoisonError::into_inner).push((clock::now(), line));
            }
        });
        Ok(Stream { child, lines })
    }

    fn lines(&self) -> Vec<(u64, String)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
