//! What a listener may do, and that each capability it keeps is one that it needs.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use common::{LONG, Watch, kinds, program};
use containerhook::Privilege;
use landlock::{AccessFs, Ruleset, RulesetAttr as _};
use testkit::{Bundle, Runtime, Scratch, Task, need, skip, unique_id, wait_until, watchdog};

/// A user of no account.
const SOMEBODY: u32 = 54_321;

const WHOLE_LIFE: [&str; 5] = ["pre-create", "created", "started", "stopped", "deleted"];

fn status(file: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(file)?;
    let line =
        |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    Ok(text.lines().filter_map(line).collect())
}

#[test]
fn a_listener_keeps_six_capabilities_and_cannot_get_more() -> Result<()> {
    need!(Root, Runc);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let watch = Watch::start(&runc, &["--json"])?;
    let listener = watch.listener()?;
    let kept: u64 = Privilege::TO_LISTEN.iter().map(|privilege| 1 << privilege.number()).sum();
    // The filter comes after `ready`.
    let filtered = || {
        let status = status(Path::new(&format!("/proc/{}/status", listener.0))).ok()?;
        status.contains(&("Seccomp".into(), "2".into())).then_some(())
    };
    wait_until("the filter is there", LONG, filtered)?;
    for process in [watch.0.process(), listener] {
        let mut threads = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", process.0))? {
            let status = status(&thread?.path().join("status"))?;
            let said =
                |key: &str| status.iter().find(|(found, _)| found == key).map(|(_, value)| value.as_str());
            for (set, bits) in
                [("CapEff", kept), ("CapPrm", kept), ("CapBnd", kept), ("CapInh", 0), ("CapAmb", 0)]
            {
                ensure!(said(set) == Some(&format!("{bits:016x}")), "{set}: {status:?}");
            }
            ensure!(said("NoNewPrivs") == Some("1"), "{status:?}");
            // The supervisor has to start programs.
            ensure!(said("Seccomp") == Some(if process == listener { "2" } else { "0" }), "{status:?}");
            threads += 1;
        }
        ensure!((threads > 1) == (process == listener));
    }
    watch.stop().map(drop)
}

/// Starts `watch` with these capabilities only, as setpriv names them.
fn below_setpriv(kept: &str, runtime: &Runtime, args: &[&str]) -> Result<Task> {
    let inner = program();
    let mut command = Command::new("setpriv");
    command.args([&format!("--bounding-set={kept}"), "--inh-caps=-all", "--no-new-privs"]);
    command.arg(inner.get_program()).arg("watch").args(args);
    command.args(["--no-discover", "--runtime"]).arg(runtime.path());
    for name in ["CONTAINERHOOK_LOG", "NOTIFY_SOCKET", "HOST_ROOT", "RUNTIME_PATH"] {
        command.env_remove(name);
    }
    Task::spawn(&mut command)
}

fn has_no_setpriv() -> bool {
    testkit::skip::find_program("setpriv").is_none()
}

#[test]
fn one_that_is_missing_is_named_and_nothing_is_listened_to() -> Result<()> {
    need!(Root, Runc);
    if has_no_setpriv() {
        skip!("setpriv is not installed; `apt-get install util-linux`");
    }
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    for missing in Privilege::TO_LISTEN {
        let name = missing.name().to_lowercase().replace("cap_", "-");
        let output = below_setpriv(&name, &runc, &["--json"])?.wait(LONG)?;
        assert_eq!(output.code(), Some(2), "{missing}: {output:?}");
        ensure!(output.stderr.contains(missing.name()), "{missing}: {output:?}");
        ensure!(!output.stderr.contains("ready:") && output.stdout.is_empty(), "{missing}: {output:?}");
    }
    Ok(())
}

/// The life of a container, of another user's processes, with an entrypoint that no mark finds, held at each step, with its
/// configuration and exit code.
fn is_whole(watch: Watch, runc: &Runtime) -> Result<()> {
    let bundle = Bundle::builder(unique_id("whole")).args(["/proc/self/root/bin/sh", "-c", "exit 7"]);
    let bundle = bundle
        .edit(|config| config["process"]["user"] = serde_json::json!({"uid": SOMEBODY, "gid": SOMEBODY}))
        .build()?;
    assert_eq!(runc.run(&bundle)?.code(), Some(7));
    watch.wait_for(&bundle, "deleted").with_context(|| format!("{:?}", watch.0.printed()))?;
    let events = watch.stop()?;
    assert_eq!(kinds(&events, bundle.id()), WHOLE_LIFE, "{events:?}");
    for event in events.iter().filter(|event| event["id"] == bundle.id()) {
        let holds =
            ["pre-create", "created", "started"].contains(&event["event"].as_str().unwrap_or_default());
        ensure!(!holds || event["held"] == true, "{event}");
        ensure!(event["config"].is_object(), "{event}");
        ensure!(event["event"] != "stopped" || event["exit"]["code"] == 7, "{event}");
    }
    Ok(())
}

#[test]
fn with_these_alone_every_event_is_right() -> Result<()> {
    need!(Root, Runc, Busybox);
    if has_no_setpriv() {
        skip!("setpriv is not installed; `apt-get install util-linux`");
    }
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let kept: String =
        Privilege::TO_LISTEN.iter().map(|p| p.name().to_lowercase().replace("cap_", ",+")).collect();
    let watch = Watch(below_setpriv(&format!("-all{kept}"), &runc, &["--json", "--config"])?);
    wait_until("it is ready", LONG, || watch.0.printed().1.contains("ready:").then_some(()))
        .with_context(|| format!("{:?}", watch.0.printed()))?;
    is_whole(watch, &runc)
}

#[test]
fn in_its_sandbox_every_event_is_right() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    is_whole(Watch::start(&runc, &["--json", "--config"])?, &runc)
}

#[test]
fn without_a_sandbox_nothing_is_dropped() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let watch = Watch::start(&runc, &["--json", "--config", "--no-sandbox"])?;
    let [own, listener] = [std::process::id().cast_signed(), watch.listener()?.0]
        .map(|pid| status(Path::new(&format!("/proc/{pid}/status"))).unwrap_or_default());
    for key in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
        let said = |of: &[(String, String)]| of.iter().find(|(found, _)| found == key).cloned();
        assert_eq!(said(&own), said(&listener));
    }
    is_whole(watch, &runc)
}

/// Whether the configuration of a bundle is read, which a user's `runc create` names. It fails for her: it is told all the same.
fn reads(args: &[&str], bundle: &Bundle, runc: &Runtime, uid: u32) -> Result<bool> {
    let watch = Watch::start(runc, &[&["--json", "--config", "--event", "pre-create"], args].concat())?;
    let mut create = Command::new(runc.path());
    let state = Scratch::new()?;
    create.arg("--root").arg(state.path()).arg("create").arg("--bundle").arg(bundle.path()).arg(bundle.id());
    // What it says of itself is of no interest: it is stopped here whatever it does.
    Task::spawn(create.uid(uid).gid(uid).current_dir("/"))?.wait(LONG)?;
    let told = watch.wait_for(bundle, "pre-create")?;
    if uid == 0 {
        let _ = Command::new(runc.path())
            .arg("--root")
            .arg(state.path())
            .args(["delete", "--force", bundle.id()])
            .output()?;
    }
    watch.stop()?;
    Ok(told["config"].is_object())
}

#[test]
fn other_users_folders_take_dac_read_search() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    for (args, expected) in [(&["--do-without", "CAP_DAC_READ_SEARCH"][..], false), (&[], true)] {
        let bundle = Bundle::builder(unique_id("theirs")).build()?;
        chown(bundle.path(), Some(SOMEBODY), Some(SOMEBODY))?;
        std::fs::set_permissions(bundle.path(), std::fs::Permissions::from_mode(0o700))?;
        assert_eq!(reads(args, &bundle, &runc, 0)?, expected, "{args:?}");
    }
    Ok(())
}

#[test]
fn what_a_rootless_user_names_takes_setuid_and_setgid() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    for (args, expected) in
        [(&["--do-without", "CAP_SETUID"][..], false), (&["--do-without", "CAP_SETGID"], false), (&[], true)]
    {
        let bundle = Bundle::builder(unique_id("rootless")).build()?;
        chown(bundle.path(), Some(SOMEBODY), Some(SOMEBODY))?;
        chown(bundle.config_path(), Some(SOMEBODY), Some(SOMEBODY))?;
        for folder in bundle.path().ancestors().chain(runc.path().ancestors().skip(1)) {
            if folder.starts_with("/var/tmp/containerhook-") || folder.starts_with("/tmp/containerhook-") {
                std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
            }
        }
        assert_eq!(reads(args, &bundle, &runc, SOMEBODY)?, expected, "{args:?}");
    }
    Ok(())
}

#[test]
fn without_sys_ptrace_bpf_notes_the_arguments() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let args = ["--no-discover", "--runtime", runc.path().to_str().context("utf-8")?].map(str::to_owned);
    let output = program().args(["doctor", "--json"]).args(args).output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let all = report["capabilities"].as_array().context("no capabilities")?;
    if !all.iter().any(|found| found["name"] == "bpf-tracepoint" && found["available"] == "yes") {
        skip!("BPF is refused here");
    }
    let watch = Watch::start(&runc, &["--json", "--config", "--do-without", "sys_ptrace"])?;
    let warned = watch.0.printed().1.contains("cannot be read by memory");
    ensure!(warned, "{:?}", watch.0.printed());
    let bundle = Bundle::builder(unique_id("traced")).script("exit 7").build()?;
    assert_eq!(runc.run(&bundle)?.code(), Some(7));
    watch.wait_for(&bundle, "deleted")?;
    let events = watch.stop()?;
    assert_eq!(kinds(&events, bundle.id()), WHOLE_LIFE);
    for event in events.iter().filter(|event| event["id"] == bundle.id()) {
        ensure!(event["config"].is_object(), "{event}");
        ensure!(event["event"] != "started" || event["held"] == true, "{event}");
        ensure!(event["event"] != "stopped" || event["exit"]["code"] == 7, "{event}");
    }
    Ok(())
}

#[test]
fn list_takes_no_capability() -> Result<()> {
    need!(Root, Runc, Busybox);
    if has_no_setpriv() {
        skip!("setpriv is not installed; `apt-get install util-linux`");
    }
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("listed")).args(["/bin/sleep", "1000"]);
    let user = serde_json::json!({"uid": SOMEBODY, "gid": SOMEBODY});
    let bundle = bundle.edit(|config| config["process"]["user"] = user).build()?;
    // Where runc keeps its state unless it is told otherwise: nobody tells `list`.
    let mut run = Command::new(runc.path());
    run.args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(bundle.id());
    Task::spawn(&mut run)?.wait(LONG)?.ok()?;
    let mut listed = Vec::new();
    for kept in ["+all", "-all"] {
        let mut command = Command::new("setpriv");
        command.args([&format!("--bounding-set={kept}"), "--inh-caps=-all", "--no-new-privs"]);
        command.arg(program().get_program()).args(["list", "--json", "--config"]).env_remove("HOST_ROOT");
        let output = Task::spawn(&mut command)?.wait(LONG)?.ok()?;
        let mut lines = output.stdout.lines().map(serde_json::from_str::<serde_json::Value>);
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| line["id"] == bundle.id()));
        let mut line = line.context("it is not listed")??;
        // Of the look, not of the container.
        for of_the_look in ["time", "seq"] {
            line[of_the_look].take();
        }
        listed.push(line);
    }
    let deleted = Command::new(runc.path()).args(["delete", "--force", bundle.id()]).output()?;
    ensure!(deleted.status.success(), "{deleted:?}");
    assert_eq!(listed[0], listed[1]);
    ensure!(listed[0]["config"].is_object() && listed[0]["pid"].is_u64(), "{}", listed[0]);
    Ok(())
}

/// Why there is no Landlock domain around a listener.
#[test]
fn landlock_would_keep_a_listener_from_its_work() -> Result<()> {
    need!(Root);
    let other = Task::spawn(Command::new("sleep").arg("100"))?;
    let pid = other.process();
    let look = move || std::fs::read_link(format!("/proc/{}/root", pid.0)).map(drop);
    look().context("before")?;
    let inside = std::thread::spawn(move || -> Result<Option<bool>> {
        // It forbids nothing but to make a device.
        let ruleset = Ruleset::default().handle_access(AccessFs::MakeBlock)?.create()?;
        let status = ruleset.restrict_self()?;
        if status.ruleset == landlock::RulesetStatus::NotEnforced {
            return Ok(None);
        }
        Ok(Some(look().is_err()))
    });
    let refused = inside.join().expect("it does not panic")?;
    other.process().kill(libc::SIGKILL)?;
    other.wait(LONG)?;
    match refused {
        None => skip!("this kernel has no Landlock, or does not use it"),
        Some(refused) => ensure!(refused),
    }
    Ok(())
}

#[test]
fn the_table_names_every_capability_with_a_test_of_this_file() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/privileges.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let own = include_str!("privileges.rs");
    let mut named = BTreeSet::new();
    for row in text.lines().filter(|line| line.starts_with("| `CAP_")) {
        let words: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        named.insert(words[0].to_owned());
        let tests: Vec<&&str> = words.iter().filter(|word| word.starts_with("privileges::")).collect();
        ensure!(!tests.is_empty(), "{row}");
        for test in tests {
            ensure!(own.contains(&format!("fn {}(", &test["privileges::".len()..])), "{test}");
        }
    }
    let kept: BTreeSet<String> = Privilege::TO_LISTEN.iter().map(|p| p.name().to_owned()).collect();
    assert_eq!(named, kept);
    Ok(())
}
