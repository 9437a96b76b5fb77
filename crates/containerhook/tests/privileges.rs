//! Which capability each way to listen needs: one is taken away at a time, and real containers are told, or are not.
//!
//! The listener is this very program, executed again with the capabilities that are left. What was found is compared with the
//! table of docs/privileges.md.

mod support;

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{
    CaptureBackend, ConfigChange, ContainerEvent, Decision, EventKind, ExitBackend, Privilege, Record,
};
use serde_json::Value;
use support::{LIMIT, PATIENCE, only};
use testkit::{Bundle, Runtime, Scratch, Task, need, skip, unique_id, wait_until, watchdog};

const LISTENER: &str = "the_listener_itself";

/// A user of no account.
const SOMEBODY: u32 = 54_321;

/// Not a test: what the tests below execute with less privilege.
#[test]
#[ignore = "is executed by the tests of this file, with less privilege"]
fn the_listener_itself() -> Result<()> {
    let Some(runtime) = std::env::var_os("LISTENER_RUNTIME").map(PathBuf::from) else {
        testkit::skip::report(LISTENER, "it is executed by the tests of this file");
        return Ok(());
    };
    let _dog = watchdog(LIMIT);
    let said = |name: &str| std::env::var(name).unwrap_or_default();
    let capture = match &*said("LISTENER_CAPTURE") {
        "memory" => CaptureBackend::Memory,
        "lookup" => CaptureBackend::Lookup,
        "tracepoint" => CaptureBackend::Tracepoint,
        _ => CaptureBackend::Auto,
    };
    let exit = match &*said("LISTENER_EXIT") {
        "bpf" => ExitBackend::Bpf,
        "pidfd-info" => ExitBackend::PidfdInfo,
        "pidfd" => ExitBackend::Pidfd,
        _ => ExitBackend::Auto,
    };
    let print = |record: &Record| println!("{}", record.to_json_with_config());
    let handler = |event: &ContainerEvent| match (event.kind(), event.config()) {
        (EventKind::Created, _) if event.id().starts_with("denied") => Decision::deny("by this test"),
        (EventKind::PreCreate, Some(config)) if event.id().starts_with("changed") => {
            let Ok(mut change) = ConfigChange::of(config) else { return Decision::deny("no object") };
            change.add_env("CHANGED", "yes");
            Decision::change(&change)
        }
        _ => Decision::allow(),
    };
    let builder = only([runtime]).exec_watch(true).capture(capture).exit_backend(exit);
    let notifier = match builder.on_record(print).start(handler) {
        Ok(notifier) => notifier,
        Err(error) => {
            println!("\nrefused: {error}");
            return Ok(());
        }
    };
    println!("\nready: {}", serde_json::to_string(&notifier.status()?)?);
    std::thread::sleep(LIMIT);
    Ok(())
}

/// One at a time: a listener hears of every container of the host that no mark holds, and lets go on what it stopped.
static ALONE: Mutex<()> = Mutex::new(());

/// How a listener is to listen.
#[derive(Clone, Copy, Debug)]
struct Mode {
    capture: &'static str,
    exit: &'static str,
}

struct Listening(Task);

fn listen(mode: Mode, kept: &[Privilege], runtime: &Runtime) -> Result<Result<Listening, String>> {
    let mut command = Command::new("setpriv");
    let kept: String = kept.iter().map(|kept| kept.name().to_lowercase().replace("cap_", ",+")).collect();
    command.arg(format!("--bounding-set=-all{kept}")).args(["--inh-caps=-all", "--no-new-privs"]);
    command.arg(std::env::current_exe()?).args([LISTENER, "--exact", "--ignored", "--nocapture"]);
    command.env("LISTENER_RUNTIME", runtime.path());
    command.env("LISTENER_CAPTURE", mode.capture).env("LISTENER_EXIT", mode.exit);
    let mut task = Task::spawn(&mut command)?;
    let begun = wait_until("the listener is ready, or says why not", PATIENCE, || {
        let ended = task.try_wait().ok().flatten();
        let (out, _) = task.printed();
        let line = |prefix| out.lines().find_map(|line| Some(line.strip_prefix(prefix)?.to_owned()));
        if line("ready: ").is_some() {
            return Some(Ok(None));
        }
        line("refused: ").map(|why| Ok(Some(why))).or_else(|| ended.map(|output| Err(format!("{output:?}"))))
    })?;
    match begun {
        Ok(None) => Ok(Ok(Listening(task))),
        Ok(Some(why)) => Ok(Err(why)),
        Err(output) => bail!("the listener ended: {output}"),
    }
}

impl Listening {
    fn events(&self, id: &str) -> Vec<Value> {
        let out = self.0.printed().0;
        let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let records = whole.lines().filter(|line| line.starts_with('{'));
        let events = records.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["id"] == id).collect()
    }

    fn wait(&self, id: &str, kind: &str) -> Result<Vec<Value>> {
        wait_until(&format!("{kind} of {id}"), Duration::from_secs(20), || {
            let events = self.events(id);
            events.iter().any(|event| event["event"] == kind).then_some(events)
        })
        .with_context(|| format!("{:?}", self.0.printed()))
    }

    fn is_whole(&self, id: &str, codes: &[Value]) -> Result<()> {
        let events = self.wait(id, "deleted")?;
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
        ensure!(kinds == ["pre-create", "created", "started", "stopped", "deleted"], "{kinds:?}");
        for event in &events {
            let held = ["pre-create", "created", "started"].contains(&event["event"].as_str().unwrap_or(""));
            ensure!(event["held"] == held, "{event}");
            ensure!(event["config"].is_object(), "{event}");
            ensure!(event["event"] != "stopped" || codes.contains(&event["exit"]["code"]), "{event}");
        }
        Ok(())
    }
}

/// What is asked of a listener: each is one kind of container, or of caller, that there is on real hosts.
const TRIALS: [(&str, Trial); 6] = [
    ("a plain container", plain),
    ("a relative bundle path", relative),
    ("another user's processes", other_user),
    ("other users' folders", their_folder),
    ("rootless callers", rootless),
    ("a refusal at `created`", refused),
];

type Trial = fn(&Listening, &Runtime, &[Value]) -> Result<()>;

fn plain(listening: &Listening, runc: &Runtime, codes: &[Value]) -> Result<()> {
    let bundle = Bundle::builder(unique_id("plain")).script("exit 7").build()?;
    ensure!(runc.run(&bundle)?.code() == Some(7));
    listening.is_whole(bundle.id(), codes)
}

fn relative(listening: &Listening, runc: &Runtime, codes: &[Value]) -> Result<()> {
    let bundle = Bundle::builder(unique_id("relative")).script("exit 7").build()?;
    let mut run = runc.command(["run", bundle.id()]);
    ensure!(Task::spawn(run.current_dir(bundle.path()))?.wait(PATIENCE)?.code() == Some(7));
    listening.is_whole(bundle.id(), codes)
}

/// Its entrypoint is one that no mark finds: it is stopped after its exec, and has to be let go on.
fn other_user(listening: &Listening, runc: &Runtime, codes: &[Value]) -> Result<()> {
    let bundle = Bundle::builder(unique_id("theirs"))
        .args(["/proc/self/root/bin/sh", "-c", "exit 7"])
        .edit(|config| config["process"]["user"] = serde_json::json!({"uid": SOMEBODY, "gid": SOMEBODY}))
        .build()?;
    let mut run = runc.spawn_run(&bundle)?;
    let end = wait_until("it ends", Duration::from_secs(10), || run.try_wait().ok().flatten());
    if end.is_err() {
        // What was stopped stays so, for ever, unless somebody helps.
        let _ = runc.delete(bundle.id(), true);
    }
    ensure!(end?.code() == Some(7));
    listening.is_whole(bundle.id(), codes)
}

fn their_folder(listening: &Listening, runc: &Runtime, codes: &[Value]) -> Result<()> {
    let bundle = Bundle::builder(unique_id("folder")).script("exit 7").build()?;
    chown(bundle.path(), Some(SOMEBODY), Some(SOMEBODY))?;
    std::fs::set_permissions(bundle.path(), std::fs::Permissions::from_mode(0o700))?;
    ensure!(runc.run(&bundle)?.code() == Some(7));
    listening.is_whole(bundle.id(), codes)
}

/// The creation fails for her; it is told all the same, with the configuration that she may read.
fn rootless(listening: &Listening, runc: &Runtime, _: &[Value]) -> Result<()> {
    let bundle = Bundle::builder(unique_id("rootless")).build()?;
    chown(bundle.path(), Some(SOMEBODY), Some(SOMEBODY))?;
    chown(bundle.config_path(), Some(SOMEBODY), Some(SOMEBODY))?;
    open_folders(&bundle, runc)?;
    let state = Scratch::new()?;
    let mut create = Command::new(runc.path());
    create.arg("--root").arg(state.path()).arg("create").arg("--bundle").arg(bundle.path()).arg(bundle.id());
    Task::spawn(create.uid(SOMEBODY).gid(SOMEBODY).current_dir("/"))?.wait(PATIENCE)?;
    let events = listening.wait(bundle.id(), "pre-create")?;
    ensure!(events[0]["config"].is_object() && events[0]["held"] == true, "{}", events[0]);
    Ok(())
}

fn open_folders(bundle: &Bundle, runc: &Runtime) -> Result<()> {
    for folder in bundle.path().ancestors().chain(runc.path().ancestors().skip(1)) {
        if folder.starts_with("/var/tmp/containerhook-") || folder.starts_with("/tmp/containerhook-") {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// The init of another user's is ended in its place.
fn refused(listening: &Listening, runc: &Runtime, _: &[Value]) -> Result<()> {
    let bundle = Bundle::builder(unique_id("denied"))
        .args(["/bin/sleep", "1000"])
        .edit(|config| config["process"]["user"] = serde_json::json!({"uid": SOMEBODY, "gid": SOMEBODY}))
        .build()?;
    let init = runc.create(&bundle)?;
    let started = runc.start(bundle.id());
    let ended = wait_until("its init has ended", Duration::from_secs(3), || (!init.is_alive()).then_some(()));
    runc.delete(bundle.id(), true)?;
    ensure!(started.is_err(), "it was started");
    ended?;
    listening.wait(bundle.id(), "stopped").map(drop)
}

/// What becomes of the trials when this capability is missing: a cell of the table.
fn without(mode: Mode, missing: Option<Privilege>, runc: &Runtime) -> Result<String> {
    let kept: Vec<Privilege> =
        Privilege::TO_LISTEN.into_iter().filter(|privilege| Some(*privilege) != missing).collect();
    // Without the others it is known where the runtime's own exit code says it.
    let codes: &[Value] = if mode.exit == "pidfd" { &[7.into(), Value::Null] } else { &[7.into()] };
    let listening = match listen(mode, &kept, runc)? {
        Ok(listening) => listening,
        Err(why) => {
            let name = missing.context(why.clone())?.name();
            ensure!(why.contains(name), "{mode:?} without {name}: it is not named: {why}");
            return Ok("refuses to start".into());
        }
    };
    let mut failed = Vec::new();
    for (name, trial) in TRIALS {
        if let Err(error) = trial(&listening, runc, codes) {
            println!("{mode:?} without {missing:?}: {name}: {error:#}");
            failed.push(name);
        }
    }
    Ok(if failed.is_empty() { "whole".into() } else { format!("not {}", failed.join(", ")) })
}

/// The row of docs/privileges.md for this way to listen.
fn row(mode: Mode) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _dog = watchdog(LIMIT * 2);
    let runc = Runtime::runc()?;
    if let Err(why) = listen(mode, &Privilege::ALL, &runc)? {
        skip!("{why}");
    }
    ensure!(without(mode, None, &runc)? == "whole", "with all six it is not whole: {mode:?}");
    let mut row = format!("| `--capture {}` `--exit {}` |", mode.capture, mode.exit);
    for missing in Privilege::TO_LISTEN {
        write!(row, " {} |", without(mode, Some(missing), &runc)?)?;
    }
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/privileges.md"))?;
    ensure!(page.lines().any(|line| line == row), "docs/privileges.md does not have this row:\n{row}");
    Ok(())
}

/// Busybox has one that knows no bounding set.
fn has_no_setpriv() -> bool {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--bounding-set=+kill", "true"]);
    !setpriv.output().is_ok_and(|output| output.status.success())
}

macro_rules! rows {
    ($($name:ident: $capture:literal $exit:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            need!(Root, Runc, Busybox);
            if has_no_setpriv() {
                skip!("setpriv is not installed; `apt-get install util-linux`");
            }
            let mode = Mode { capture: $capture, exit: $exit };
            row(mode)
        }
    )*};
}

rows! {
    memory_and_bpf: "memory" "bpf";
    memory_and_pidfd_info: "memory" "pidfd-info";
    memory_and_pidfd: "memory" "pidfd";
    lookup_and_bpf: "lookup" "bpf";
    tracepoint_and_bpf: "tracepoint" "bpf";
    auto_and_auto: "auto" "auto";
}

/// A configuration in a folder of another user's, with that user's owner and mode, is changed with the six alone or it is not.
#[test]
fn a_change_of_another_users_configuration() -> Result<()> {
    need!(Root, Runc, Busybox);
    if has_no_setpriv() {
        skip!("setpriv is not installed; `apt-get install util-linux`");
    }
    let _dog = watchdog(LIMIT);
    let runc = Runtime::runc()?;
    let mode = Mode { capture: "auto", exit: "auto" };
    let besides = [Privilege::CapChown, Privilege::CapDacOverride, Privilege::CapFowner];
    let with = |added: &[Privilege]| [&Privilege::TO_LISTEN, added].concat();
    let mut found = Vec::new();
    for (kept, whose) in [
        (with(&[]), 0),
        (with(&[]), SOMEBODY),
        (with(&[besides[0], besides[1]]), SOMEBODY),
        (with(&[besides[0], besides[2]]), SOMEBODY),
        (with(&[besides[1], besides[2]]), SOMEBODY),
        (with(&besides), SOMEBODY),
    ] {
        let listening = listen(mode, &kept, &runc)?.map_err(anyhow::Error::msg)?;
        let bundle = Bundle::builder(unique_id("changed")).script("[ \"$CHANGED\" = yes ]").build()?;
        chown(bundle.path(), Some(whose), Some(whose))?;
        chown(bundle.config_path(), Some(whose), Some(whose))?;
        std::fs::set_permissions(bundle.config_path(), std::fs::Permissions::from_mode(0o640))?;
        let changed = runc.run(&bundle)?.code() == Some(0);
        let after = std::fs::metadata(bundle.config_path())?;
        use std::os::unix::fs::MetadataExt as _;
        let same = (after.uid(), after.gid(), after.mode() & 0o777) == (whose, whose, 0o640);
        ensure!(same, "whose it is has changed: {after:?}");
        let told = listening.wait(bundle.id(), "pre-create")?;
        ensure!((told[0]["answer"]["decision"] == "change") == changed, "{}", told[0]);
        found.push(changed);
        println!("{kept:?} {whose}: {changed}: {}", told[0]["answer"]);
    }
    ensure!(found == [true, false, false, false, false, true], "{found:?}");
    Ok(())
}
