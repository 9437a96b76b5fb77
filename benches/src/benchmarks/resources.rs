//! Memory, wake-ups and processor time of a listener to which nothing happens; its size, and its time to ready.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::context::Context;
use crate::listener::{Arm, Listener};
use crate::result::Row;
use crate::stats::Samples;

pub(crate) fn run(ctx: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let arm = Arm::hook("containerhook", &["--exec-watch"]);
    let start = || -> Result<Listener> {
        arm.start(&ctx.tools, &[ctx.runtime.as_path()], false)?.context("this arm has a listener")
    };

    let mut ready = Samples(vec![Vec::new()]);
    let mut found = Samples(vec![Vec::new()]);
    let root = host_root(ctx)?;
    for _ in 0..ctx.pick(5, 40) {
        ready.0[0].push(start()?.ready.as_secs_f64() * 1e3);
        let options = ["--discover", "--exec-watch", "--host-root"].map(OsString::from);
        let args = options.into_iter().chain([root.as_os_str().to_owned()]);
        found.0[0].push(Listener::start(&ctx.tools.listener, args)?.ready.as_secs_f64() * 1e3);
    }
    rows.push(Row::of("from its start until ready", "containerhook, one runtime given", "ms", &ready));
    rows.push(Row::of("from its start until ready", "containerhook, runtimes looked for", "ms", &found));

    let mut listener = start()?;
    // Threads that are left over from the start linger for some seconds.
    std::thread::sleep(Duration::from_secs(ctx.pick(1, 12)));
    let after_start = Memory::of(listener.pid())?;
    let length = ctx.pick(5, 60);
    for processes in [100_usize, 3000] {
        let others = testkit::processes().len();
        let herd = Herd::start(ctx, processes.saturating_sub(others) as u32)?;
        let arm = format!("containerhook, {} processes on the host", others + herd.pids.len());
        let before = Activity::of(listener.pid())?;
        std::thread::sleep(Duration::from_secs(length));
        let after = Activity::of(listener.pid())?;
        let group = format!("idle for {length} s");
        let (switches, cpu) = after.since(&before);
        rows.push(Row::figure(&group, &arm, "wake-ups of all threads", switches as f64));
        rows.push(Row::figure(&group, &arm, "ms of processor time", cpu as f64 / 1e6));
    }
    rows.push(Row::figure("resident after its start", "containerhook", "MB", after_start.resident));
    rows.push(Row::figure("its own (anonymous) part", "containerhook", "MB", after_start.anonymous));

    let herd = Herd::start(ctx, 10_000)?;
    herd.watched_by(&mut listener)?;
    std::thread::sleep(Duration::from_secs(1));
    let watching = Memory::of(listener.pid())?;
    rows.push(Row::figure("resident with 10,000 watched", "containerhook", "MB", watching.resident));
    let each = (watching.resident - after_start.resident) * 1e6 / 10_000.0;
    rows.push(Row::figure("resident for each watched container", "containerhook", "bytes", each));
    drop(listener);

    let size = |path: &Path| fs::metadata(path).map(|found| found.len() as f64 / 1e6);
    rows.push(Row::figure("size of the program", "containerhook", "MB", size(&ctx.tools.cli)?));
    let stripped = ctx.scratch.join("stripped");
    let strip = Command::new("strip").arg("-o").arg(&stripped).arg(&ctx.tools.cli).status();
    if strip.is_ok_and(|status| status.success()) {
        rows.push(Row::figure("size of the program", "containerhook, stripped", "MB", size(&stripped)?));
    }
    Ok(rows)
}

/// A host whose only runtime is the copy of the stand-in: looking for runtimes must not find those of this host, which
/// others execute.
fn host_root(ctx: &Context) -> Result<std::path::PathBuf> {
    let root = ctx.scratch.join("host");
    fs::create_dir_all(root.join("usr/bin"))?;
    fs::create_dir_all(root.join("proc"))?;
    fs::copy(&ctx.tools.standin, root.join("usr/bin/runc"))?;
    Ok(root)
}

/// Processes that only are there.
pub(crate) struct Herd {
    shepherd: Option<Child>,
    pub(crate) pids: Vec<u32>,
}

impl Herd {
    pub(crate) fn start(ctx: &Context, count: u32) -> Result<Herd> {
        if count == 0 {
            return Ok(Herd { shepherd: None, pids: Vec::new() });
        }
        let mut command = Command::new(&ctx.plain);
        let mut child = command.args(["herd", &count.to_string()]).stdout(Stdio::piped()).spawn()?;
        let pid = child.id();
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line);
        let mut herd = Herd { shepherd: Some(child), pids: Vec::new() };
        read?;
        ensure!(line == "ready\n", "no room for {count} processes");
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        herd.pids = children.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        Ok(herd)
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        if let Some(shepherd) = &mut self.shepherd {
            let _ = shepherd.kill();
            let _ = shepherd.wait();
            // They were told to go with the shepherd.
            while self.pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
                for pid in &self.pids {
                    // Where orphans come to this process they are its to bury; elsewhere it is ECHILD.
                    crate::load::reap(*pid as i32);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// In megabytes.
struct Memory {
    resident: f64,
    anonymous: f64,
}

impl Memory {
    fn of(pid: u32) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok());
            kib.map(|kib| kib * 1024.0 / 1e6).with_context(|| format!("no {name} in the status"))
        };
        Ok(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")? })
    }
}

/// What the listener computes meanwhile, in microseconds for each of `count`.
pub(crate) fn computes(
    listener: &Listener,
    count: usize,
    mut meanwhile: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let before = Activity::of(listener.pid())?;
    meanwhile()?;
    let (_, nanoseconds) = Activity::of(listener.pid())?.since(&before);
    Ok(nanoseconds as f64 / 1e3 / count as f64)
}

/// Of each thread: how often it was woken, and its processor time in nanoseconds.
pub(crate) struct Activity(HashMap<OsString, (u64, u64)>);

impl Activity {
    pub(crate) fn of(pid: u32) -> Result<Activity> {
        let mut threads = HashMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            let status = fs::read_to_string(task.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let switches = line.and_then(|count| count.trim().parse().ok()).unwrap_or_default();
            let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let cpu = schedstat.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default();
            threads.insert(task.file_name(), (switches, cpu));
        }
        Ok(Activity(threads))
    }

    /// Of all threads together. One that has ended meanwhile was woken for that, and is not known otherwise.
    pub(crate) fn since(&self, before: &Activity) -> (u64, u64) {
        let ended = before.0.keys().filter(|task| !self.0.contains_key(*task)).count() as u64;
        self.0.iter().fold((ended, 0), |(switches, cpu), (task, now)| {
            let then = before.0.get(task).copied().unwrap_or_default();
            (switches + now.0.saturating_sub(then.0), cpu + now.1.saturating_sub(then.1))
        })
    }
}
