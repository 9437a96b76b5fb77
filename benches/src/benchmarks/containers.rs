//! Containers by real runtimes, from the first exec to the last, beside a hook binary in the config, which is what runs
//! at a container's creation where there is no listener.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use testkit::{Bundle, Family, Need, Rootfs, Runtime};

use crate::context::{Context, rows};
use crate::listener::Arm;
use crate::load;
use crate::result::Row;

pub(crate) fn run(ctx: &Context) -> Result<Vec<Row>> {
    let mut found = Vec::new();
    for (family, need) in [(Family::Runc, Need::Runc), (Family::Crun, Need::Crun)] {
        if let Some(missing) = need.missing() {
            ctx.note(format!("{} was not measured: {missing}", family.name()));
            continue;
        }
        found.extend(with(ctx, family)?);
    }
    Ok(found)
}

fn with(ctx: &Context, family: Family) -> Result<Vec<Row>> {
    let runtime = Runtime::new(family)?;
    let rootfs = Rootfs::busybox()?;
    std::fs::copy(&ctx.tools.standin, rootfs.join("entry"))?;
    let plain = Bundle::builder(ctx.id("bench")).rootfs(&rootfs).args(["/entry"]);
    let hooked = Bundle::builder(ctx.id("bench")).rootfs(&rootfs).args(["/entry"]).edit(|config| {
        let hook = serde_json::json!([{"path": ctx.tools.standin, "args": ["hook", "hook"]}]);
        config["hooks"] = serde_json::json!({"createRuntime": hook, "startContainer": [], "poststop": hook});
    });
    let (plain, hooked) = (plain.build()?, hooked.build()?);
    // The third arm has no listener either: its bundle names a hook program that does nothing.
    let hooks = Arm::hook("OCI hooks: createRuntime, poststop", &[]);
    let arms =
        [Arm::None, Arm::NoneAgain, hooks.clone(), Arm::Floor, Arm::hook("containerhook", &["--exec-watch"])];
    let path = runtime.path();
    let mut found = Vec::new();
    for (what, whole) in [("create, pid file, start, delete", create_to_delete as Whole), ("run", run_once)] {
        let mut samples = vec![crate::stats::Samples::default(); arms.len()];
        for round in 0..ctx.pick(4, 40) {
            for turn in 0..arms.len() {
                let turn = (turn + round) % arms.len();
                let at = if round % 2 == 0 { turn } else { arms.len() - 1 - turn };
                let is_hooks = arms[at] == hooks;
                let listener =
                    if is_hooks { None } else { arms[at].start(&ctx.tools, &[path.as_path()], false)? };
                let bundle = if is_hooks { &hooked } else { &plain };
                whole(ctx, &runtime, bundle)?;
                let times: Result<Vec<f64>> = (0..3).map(|_| whole(ctx, &runtime, bundle)).collect();
                samples[at].0.push(times?);
                drop(listener);
            }
        }
        found.extend(rows(&format!("{}: {what}", family.name()), "ms", &arms, &samples));
    }
    Ok(found)
}

type Whole = fn(&Context, &Runtime, &Bundle) -> Result<f64>;

fn create_to_delete(ctx: &Context, runtime: &Runtime, bundle: &Bundle) -> Result<f64> {
    let id = ctx.id("bench");
    let mut create = runtime.command(["create", "--bundle"]);
    create.arg(bundle.path()).arg("--pid-file").arg(bundle.pid_file()).arg(&id);
    let begin = Instant::now();
    quietly(&mut create)?;
    let init = load::read_pid(&bundle.pid_file())?;
    quietly(&mut runtime.command(["start", &id]))?;
    if let Ok(end) = load::pidfd(init) {
        load::wait_for_end(&end);
    }
    quietly(&mut runtime.command(["delete", &id]))?;
    let took = begin.elapsed();
    load::reap(init);
    Ok(took.as_secs_f64() * 1e3)
}

fn run_once(ctx: &Context, runtime: &Runtime, bundle: &Bundle) -> Result<f64> {
    let mut run = runtime.command(["run", "--bundle"]);
    run.arg(bundle.path()).arg(ctx.id("bench"));
    let begin = Instant::now();
    quietly(&mut run)?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

fn quietly(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
