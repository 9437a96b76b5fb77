//! `containerhook doctor`, where something is missing.

mod common;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use common::{err, out, program};
use containerhook::Privilege;
use serde_json::Value;
use testkit::{Runtime, Scratch, need};

/// What it says of one capability.
fn said<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let all = report["capabilities"].as_array().context("no capabilities")?;
    all.iter().find(|capability| capability["name"] == name).with_context(|| format!("no {name}: {report}"))
}

fn available<'a>(report: &'a Value, name: &str) -> Result<&'a str> {
    said(report, name)?["available"].as_str().context("no word")
}

/// The report, and the exit code that has to fit it.
fn report(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| err(&output))?;
    let code = match report["verdict"].as_str() {
        Some("works") => 0,
        Some("works-with-less") => 1,
        Some("cannot-work") => 2,
        _ => anyhow::bail!("{report}"),
    };
    ensure!(output.status.code() == Some(code), "{:?}: {report}", output.status);
    Ok(report)
}

/// `doctor --json` for a copy of runc.
fn doctor(runtime: &Runtime) -> Command {
    let mut command = program();
    command.args(["doctor", "--json", "--no-discover", "--runtime"]).arg(runtime.path());
    command
}

/// The same, below another program.
fn below(outer: &mut Command, inner: &Command) -> Result<Value> {
    outer.arg(inner.get_program()).args(inner.get_args());
    for name in ["CONTAINERHOOK_LOG", "HOST_ROOT", "RUNTIME_PATH"] {
        outer.env_remove(name);
    }
    report(outer)
}

#[test]
fn on_this_host_it_says_what_is_held_and_what_is_told() -> Result<()> {
    need!(Root, Runc);
    let runtime = Runtime::runc()?;
    let report = report(&mut doctor(&runtime))?;
    for name in ["fanotify-permission-events", "process-memory", "host-user-namespace", "host-root"] {
        ensure!(available(&report, name)? == "yes", "{name}: {report}");
    }
    ensure!(report["runtimes"][0]["path"] == runtime.path().to_str().context("utf-8")?, "{report}");
    ensure!(report["capture_backend"] == "memory", "{report}");
    let bpf = available(&report, "bpf-exit")? == "yes";
    ensure!((report["exit_backend"] == "bpf") == bpf, "{report}");
    let how = |what: &str| {
        let outcomes = report["outcomes"].as_array().cloned().unwrap_or_default();
        outcomes
            .into_iter()
            .find(|outcome| outcome["what"].as_str().is_some_and(|words| words.contains(what)))
    };
    ensure!(how("creation").context("no creation")?["how"] == "held", "{report}");
    let unmarked = how("not marked").context("nothing of what is not marked")?;
    let watched = available(&report, "bpf-exec-watch")? == "yes";
    ensure!(unmarked["how"] == if watched { "told" } else { "unseen" }, "{report}");
    Ok(())
}

#[test]
fn the_text_fits_a_terminal_of_80_columns() -> Result<()> {
    need!(Root, Runc);
    let output = program().args(["doctor", "--color", "never"]).output()?;
    let text = out(&output);
    for title in ["Kernel", "This process", "Host", "Runtimes that are marked", "How a listener listens"] {
        ensure!(text.contains(&format!("\n{title}\n")), "{text}");
    }
    // A path is not broken.
    let wide = |line: &&str| line.chars().count() > 80 && !line.contains(" /");
    ensure!(!text.lines().any(|line| wide(&line)), "{text}");
    Ok(())
}

#[test]
fn a_capability_of_the_process_that_is_missing_is_named() -> Result<()> {
    need!(Root, Runc);
    if testkit::skip::find_program("setpriv").is_none() {
        testkit::skip!("setpriv is not installed; `apt-get install util-linux`");
    }
    let runtime = Runtime::runc()?;
    for word in Privilege::TO_LISTEN.map(|privilege| privilege.to_string()) {
        let name = word.trim_start_matches("CAP_").to_lowercase();
        let mut setpriv = Command::new("setpriv");
        setpriv.args([&format!("--bounding-set=-{name}"), "--no-new-privs"]);
        let report = below(&mut setpriv, &doctor(&runtime))?;
        let said = said(&report, "process-capabilities")?;
        ensure!(said["available"] == "no" && said["remedy"].is_string(), "{said}");
        let detail = said["detail"].as_str().context("no detail")?;
        ensure!(detail.matches("CAP_").count() == 1 && detail.contains(&word), "{detail}");
        ensure!(report["verdict"] != "works", "{report}");
        // Without the memory of others BPF does the work, where there is BPF.
        let works = match &*word {
            "CAP_SYS_ADMIN" => false,
            "CAP_SYS_PTRACE" => available(&report, "bpf-tracepoint")? == "yes",
            _ => true,
        };
        ensure!((report["verdict"] == "cannot-work") != works, "{report}");
        if word == "CAP_SYS_PTRACE" && works {
            ensure!(report["capture_backend"] == "tracepoint", "{report}");
            ensure!(available(&report, "process-memory")? == "no", "{report}");
        }
    }
    Ok(())
}

#[test]
fn namespaces_of_its_own_are_told_from_the_hosts() -> Result<()> {
    need!(Root, Runc);
    let runtime = Runtime::runc()?;
    let folder = Scratch::new()?;
    let host = folder.join("host");
    std::fs::create_dir(&host)?;
    let unshare = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"]);
        unshare.arg(&host);
        unshare
    };
    // As in a container that sees nothing of the host's processes.
    let alone = "mount -t proc proc /proc; shift; exec \"$@\"";
    let report = below(&mut unshare(alone), &doctor(&runtime))?;
    ensure!(available(&report, "host-pid-namespace")? == "no", "{report}");
    ensure!(available(&report, "host-proc")? == "no", "{report}");
    ensure!(report["verdict"] == "cannot-work", "{report}");

    // As in one that sees the host's `/` in a folder.
    let with_host = "mount --rbind / \"$1\"; mount -t proc proc /proc; shift; exec \"$@\"";
    let mut inner = doctor(&runtime);
    inner.arg("--host-root").arg(&host);
    let report = below(&mut unshare(with_host), &inner)?;
    ensure!(available(&report, "host-pid-namespace")? == "no", "{report}");
    ensure!(available(&report, "host-proc")? == "yes", "{report}");
    ensure!(available(&report, "host-root")? == "yes", "{report}");
    let lookup = said(&report, "bpf-lookup")?;
    ensure!(lookup["matters"] == true, "{lookup}");
    Ok(())
}

#[test]
fn a_host_root_that_is_not_the_hosts_is_told() -> Result<()> {
    need!(Root, Runc);
    let runtime = Runtime::runc()?;
    let folder = Scratch::new()?;
    for root in [folder.path().to_owned(), folder.join("nowhere")] {
        let mut command = doctor(&runtime);
        command.env("HOST_ROOT", &root);
        let report = report(&mut command)?;
        ensure!(available(&report, "host-root")? != "yes", "{report}");
        ensure!(report["verdict"] == "cannot-work", "{report}");
    }
    Ok(())
}
