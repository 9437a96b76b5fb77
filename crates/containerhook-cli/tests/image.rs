//! The image: built by the two commands that stand in its Dockerfile, and run as that says, with and without the host's pids.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::{LONG, events, kinds, verify};
use serde_json::{Value, json};
use testkit::{Dockerd, Runtime, Scratch, Task, need, skip, unique_id, wait_until, watchdog};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn dockerfile() -> PathBuf {
    root().join("deploy/container/Dockerfile")
}

/// The words of the command in the Dockerfile's comment that begins like this, up to the first line that ends it.
fn documented(begin: &str) -> Result<Vec<String>> {
    let file = std::fs::read_to_string(dockerfile())?;
    let mut lines = file.lines().map(|line| line.trim_start_matches('#').trim());
    let first = lines.by_ref().find(|line| line.starts_with(begin)).with_context(|| begin.to_owned())?;
    let mut words = Vec::new();
    for line in std::iter::once(first).chain(lines) {
        words.extend(line.trim_end_matches('\\').split_whitespace().map(str::to_owned));
        if !line.ends_with('\\') {
            break;
        }
    }
    Ok(words)
}

/// The program, linked as the Dockerfile says; without optimisation, and where `cargo xtask vm` puts its own.
fn static_program() -> Result<PathBuf> {
    let mut command = Command::new(env!("CARGO"));
    let words = documented("RUSTFLAGS=")?;
    let (flags, rest) = words.split_at(words.iter().position(|word| word == "cargo").context("no cargo")?);
    let flags = flags.join(" ");
    let flags = flags
        .strip_prefix("RUSTFLAGS='")
        .and_then(|flags| flags.strip_suffix('\''))
        .context(flags.clone())?;
    let target = rest.iter().find(|word| word.ends_with("-linux-gnu")).context("no target")?;
    let folder = root().join("target/vm/build");
    command.current_dir(root()).args(rest[1..].iter().filter(|word| *word != "--release"));
    command.args(["--bin", "containerhook", "--target-dir"]).arg(&folder);
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", flags);
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "symbols");
    Task::spawn(&mut command)?.wait(BUILT)?.ok()?;
    Ok(folder.join(target).join("debug/containerhook"))
}

/// Far more than a build takes beside other tests.
const BUILT: Duration = Duration::from_secs(900);

/// Whether what is mounted on the host later comes through a bind mount of `/` that asks for that.
fn root_is_shared() -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).context("no root")?;
    Ok(root.split(" - ").next().is_some_and(|fields| fields.contains(" shared:")))
}

#[test]
fn built_and_run_as_documented() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    if cfg!(not(target_arch = "x86_64")) {
        skip!("the Dockerfile's words are for x86-64");
    }
    let _dog = watchdog(BUILT + LONG * 6);
    let program = static_program()?;
    let runc = Runtime::runc()?;
    let docker = Dockerd::start_with(&runc)?;
    let context = Scratch::new()?;
    std::fs::copy(&program, context.join("containerhook"))?;
    let mut build = docker.docker(["build", "--network", "none", "-t", "containerhook", "-f"]);
    // The builder that every daemon has.
    build.arg(dockerfile()).arg(context.path()).env("DOCKER_BUILDKIT", "0");
    Task::spawn(&mut build)?.wait(LONG)?.ok()?;
    for host_pid in [true, false] {
        watches(&docker, &runc, host_pid).with_context(|| format!("--pid host: {host_pid}"))?;
    }
    Ok(())
}

fn watches(docker: &Dockerd, runc: &Runtime, host_pid: bool) -> Result<()> {
    let name = unique_id("listener");
    let mut words = documented("docker run")?.split_off(1);
    if !host_pid {
        let at = words.iter().position(|word| word == "--pid").context("no --pid")?;
        words.drain(at..at + 2);
    }
    if !root_is_shared()? {
        words.iter_mut().for_each(|word| *word = word.replace(",rslave", ""));
    }
    words.splice(1..1, ["--name".to_owned(), name.clone()]);
    // Only a copy of runc is marked, which nobody else executes.
    let marked = runc.path().display().to_string();
    let args = ["watch", "--json", "--no-discover", "--runtime", &marked];
    let mut listener = Task::spawn(docker.docker(words).args(args))?;
    let ready = wait_until("the listener is ready", LONG, || {
        let ended = matches!(listener.try_wait(), Ok(Some(_)) | Err(_));
        (ended || listener.printed().1.contains("ready: 1 runtime marked")).then_some(!ended)
    })?;
    ensure!(ready, "it ended: {:?}", listener.printed());

    let told = unique_id("told");
    let script = "read -r _; exit 7";
    let flags = ["--detach", "--interactive", "--name", &told];
    Task::spawn(&mut docker.run(&flags, &["/bin/sh", "-c", script]))?.wait(LONG)?.ok()?;
    let id = docker.inspect(&told, ".Id")?;
    let pid: u64 = docker.inspect(&told, ".State.Pid")?.parse()?;
    Task::spawn(docker.docker(["kill", "--signal", "KILL", &told]).env("LC_ALL", "C"))?.wait(LONG)?.ok()?;
    let whole = ["pre-create", "created", "started", "killed", "stopped", "deleted"];
    let all = wait_until("the whole life", LONG, || {
        let all = events(&listener.printed().0);
        (kinds(&all, &id).len() >= whole.len()).then_some(all)
    })
    .with_context(|| format!("{:?}", listener.printed()))?;
    let mut kinds = kinds(&all, &id);
    // The runtime that was asked to kill may end after what it killed.
    kinds.sort_unstable();
    let mut sorted = whole;
    sorted.sort_unstable();
    assert_eq!(kinds, sorted);
    for event in all.iter().filter(|event| event["id"] == *id) {
        let kind = event["event"].as_str().context("no kind")?;
        let held = matches!(kind, "pre-create" | "created" | "started");
        assert_eq!(event["held"], held, "{event}");
        assert_eq!(event["name"], json!(told), "{event}");
        if matches!(kind, "created" | "started" | "stopped") {
            assert_eq!(event["pid"], json!(pid), "{event}");
        }
        if kind == "stopped" {
            assert_eq!(event["exit"]["signal"], json!(libc::SIGKILL), "{event}");
        }
    }
    let own: Vec<Value> = all.into_iter().filter(|event| event["id"] == *id).collect();
    assert_eq!(verify(&own, &[])?, "");

    // The client passes it on, and the listener ends as it does on a terminal.
    listener.process().kill(libc::SIGINT)?;
    let output = listener.wait(LONG)?;
    ensure!(output.code() == Some(0), "{output:?}");
    Ok(())
}
