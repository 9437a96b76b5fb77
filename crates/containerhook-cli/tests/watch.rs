//! `watch`, `list` and `doctor` against a real runtime: a copy of runc that nobody else executes.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::{LONG, Watch, err, events, kinds, out, program, verify};
use serde_json::Value;
use testkit::{Bundle, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

/// A container that exits with 7.
fn seven() -> Result<Bundle> {
    Bundle::builder(unique_id("cli")).script("exit 7").build()
}

#[test]
fn a_life_is_told_as_json_lines() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let watch = Watch::start(&runc, &["--json", "--config"])?;
    let init = runc.create(&bundle)?;
    runc.start(bundle.id())?;
    watch.wait_for(&bundle, "stopped")?;
    let events = watch.stop()?;

    assert_eq!(kinds(&events, bundle.id())[..2], ["pre-create", "created"]);
    let find = |kind: &str| events.iter().find(|e| e["event"] == kind && e["id"] == bundle.id()).unwrap();
    assert_eq!(find("created")["pid"], init.0);
    assert_eq!(find("created")["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(find("created")["runtime"]["path"], runc.path().to_str().unwrap());
    assert_eq!(find("pre-create")["config"], bundle.config()?);
    assert_eq!(find("stopped")["exit"]["code"], 7);
    // Containers of others may be told too, and may not have ended.
    let own: Vec<Value> = events.iter().filter(|e| e["id"] == bundle.id()).cloned().collect();
    assert_eq!(verify(&events, &[])?, "");
    assert_eq!(verify(&own, &["--complete", "--gaps"])?, "");
    Ok(())
}

#[test]
fn one_kind_alone_is_told() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let watch = Watch::start(&runc, &["--json", "--event", "stopped"])?;
    assert_eq!(runc.run(&bundle)?.code(), Some(7));
    watch.wait_for(&bundle, "stopped")?;
    let events = watch.stop()?;
    assert_eq!(kinds(&events, bundle.id()), ["stopped"]);
    assert_eq!(events.iter().find(|event| event["id"] == bundle.id()).unwrap()["exit"]["code"], 7);
    assert_eq!(verify(&events, &["--event", "stopped"])?, "");
    Ok(())
}

#[test]
fn filter_and_format_choose_what_is_printed() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let (shown, hidden) = (seven()?, seven()?);
    let filter = format!("id={}", shown.id());
    let watch = Watch::start(
        &runc,
        &[
            "--filter",
            &filter,
            "--event",
            "created,stopped",
            "--format",
            "{event} {id} {exit.code} {config.process.args.2}",
        ],
    )?;
    for bundle in [&hidden, &shown] {
        assert_eq!(runc.run(bundle)?.code(), Some(7));
    }
    let expected = format!("created {0} - exit 7\nstopped {0} 7 exit 7\n", shown.id());
    let printed = wait_until("both lines", LONG, || {
        let printed = watch.0.printed().0;
        (printed.lines().count() >= 2).then_some(printed)
    })?;
    assert_eq!(printed, expected);
    watch.0.process().kill(libc::SIGTERM)?;
    assert_eq!(watch.0.wait(LONG)?.ok()?.stdout, expected);
    Ok(())
}

#[test]
fn since_start_counts_seconds() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let begin = Instant::now();
    let watch = Watch::start(&runc, &["--since-start", "--event", "stopped", "--no-trunc"])?;
    let ready = Instant::now();
    std::thread::sleep(Duration::from_millis(1200));
    let slept = ready.elapsed();
    assert_eq!(runc.run(&bundle)?.code(), Some(7));
    let line = wait_until("the end's line", LONG, || {
        let printed = watch.0.printed().0;
        printed.lines().find(|line| line.contains(bundle.id())).map(str::to_owned)
    })?;
    let seconds: f64 =
        line.split(' ').next().and_then(|word| word.strip_prefix('+')).unwrap_or("").parse()?;
    // A millisecond is cut off, and the clocks are not the same.
    let range = slept.as_secs_f64() - 0.1..=begin.elapsed().as_secs_f64() + 0.1;
    ensure!(range.contains(&seconds), "{line}: {range:?}");
    watch.0.process().kill(libc::SIGTERM)?;
    watch.0.wait(LONG)?.ok()?;
    Ok(())
}

#[test]
fn what_a_runtime_failed_to_do_is_in_the_log_alone() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("fails")).script("sleep 1000").build()?;
    let mut command = program();
    command.args(["watch", "--json", "--no-discover", "--runtime"]).arg(runc.path());
    let watch = Watch(Task::spawn(command.env("CONTAINERHOOK_LOG", "debug"))?);
    let said = |words: &str| {
        let said = wait_until(words, LONG, || watch.0.printed().1.contains(words).then_some(()));
        said.map_err(|error| error.context(format!("{:?}", watch.0.printed())))
    };
    said("ready: 1 runtime marked")?;
    runc.create(&bundle)?;
    runc.start(bundle.id())?;
    watch.wait_for(&bundle, "started")?;
    let fails = |args: &[&str]| Task::spawn(&mut runc.command(args))?.wait(LONG);
    // It is not paused; and there is no such verb.
    let resumed = fails(&["resume", bundle.id()])?.code();
    assert_eq!(resumed, Some(1));
    said(&format!("resumed is not told of container \"{}\": its runtime failed, exit 1", bundle.id()))?;
    fails(&["dance", bundle.id()])?;
    said("was executed for \"dance\"")?;
    runc.delete(bundle.id(), true)?;
    watch.wait_for(&bundle, "deleted")?;
    let events = watch.stop()?;
    assert_eq!(kinds(&events, bundle.id()), ["pre-create", "created", "started", "stopped", "deleted"]);
    Ok(())
}

/// One container that fits, and for each field one that differs in nothing else.
#[test]
fn a_filter_of_each_field_counts() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 3);
    let (runc, other) = (Runtime::runc()?, Scratch::new()?);
    let other = other.join("other-runc");
    std::fs::copy(runc.path(), &other)?;
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let prefix = unique_id("fits");
    let pod = |key: &str| format!("io.kubernetes.cri.{key}");
    let annotations = [
        ("container-name", "main"),
        ("sandbox-namespace", "shop"),
        ("image-name", "docker.io/library/web:1"),
        ("container-type", "container"),
    ];
    // With one of them changed, or with the annotation by which Podman is known.
    let bundle = |id: String, changed: Option<&str>, engine: Option<&str>| {
        let mut bundle = Bundle::builder(id).script("exit 7");
        for (key, value) in annotations {
            let value = if changed == Some(key) { "another" } else { value };
            bundle = bundle.annotation(&pod(key), value);
        }
        match engine {
            Some(engine) => bundle.annotation("io.container.manager", engine).build(),
            None => bundle.build(),
        }
    };
    let mut command = program();
    command.args(["watch", "--no-discover", "--event", "created", "--runtime"]).arg(runc.path());
    command
        .arg("--runtime")
        .arg(&other)
        .args(["--format", "{id} {name} {namespace} {engine} {runtime} {image}"]);
    let id = format!("id={prefix}*");
    for filter in [&*id, "name=main", "namespace=s*p", "engine=containerd", "runtime=runc", "image=*/web:?"] {
        command.args(["--filter", filter]);
    }
    let watch = Watch(Task::spawn(&mut command)?);
    wait_until("watch is ready", LONG, || watch.0.printed().1.contains("ready: 2 runtimes").then_some(()))?;
    let mut others = vec![bundle(unique_id("unfit"), None, None)?];
    for key in ["container-name", "sandbox-namespace", "image-name"] {
        others.push(bundle(format!("{prefix}-{key}"), Some(key), None)?);
    }
    others.push(bundle(format!("{prefix}-engine"), None, Some("libpod"))?);
    for bundle in &others {
        assert_eq!(runc.run(bundle)?.code(), Some(7));
    }
    let by_other = bundle(format!("{prefix}-runtime"), None, None)?;
    let mut run = runc.bare(&other);
    run.arg("--root").arg(runc.state_dir()).args(["run", "--bundle"]).arg(by_other.path()).arg(by_other.id());
    assert_eq!(Task::spawn(&mut run)?.wait(LONG)?.code(), Some(7));
    // The last one: whatever else was to be shown is there then.
    let fits = bundle(format!("{prefix}-all"), None, None)?;
    assert_eq!(runc.run(&fits)?.code(), Some(7));
    let line = format!("{prefix}-all main shop containerd runc docker.io/library/web:1\n");
    wait_until("the one that fits", LONG, || watch.0.printed().0.contains(&line).then_some(()))?;
    watch.0.process().kill(libc::SIGTERM)?;
    assert_eq!(watch.0.wait(LONG)?.ok()?.stdout, line);
    Ok(())
}

#[test]
fn a_held_create_goes_on_when_the_watcher_is_asked_to_end() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let watch = Watch::start(&runc, &["--json", "--delay", "100s", "--deadline", "110s"])?;
    let listener = watch.listener()?;
    std::thread::scope(|scope| {
        // Whoever executes a program waits for its exec, so this thread is held too.
        let create = scope.spawn(|| runc.create(&bundle));
        let held =
            wait_until("the handler sleeps", LONG, || common::sleeps(listener, "ch-handler").then_some(()));
        let before = Instant::now();
        let stopped = watch.stop();
        create.join().unwrap()?;
        held?;
        stopped?;
        ensure!(before.elapsed() < Duration::from_secs(50), "it waited for the handler");
        Ok(())
    })
}

#[test]
fn a_delay_holds_the_create() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let watch = Watch::start(&runc, &["--json", "--delay", "500ms"])?;
    let before = Instant::now();
    runc.create(&bundle)?;
    assert!(before.elapsed() >= Duration::from_millis(500));
    let event = watch.wait_for(&bundle, "pre-create")?;
    assert!(event["answer"]["held_us"].as_u64().unwrap() >= 500_000, "{event}");
    watch.stop()?;
    Ok(())
}

#[test]
fn a_deadline_that_passes_denies_where_asked() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let args = ["--json", "--delay", "30s", "--deadline", "200ms", "--on-timeout", "deny"];
    let watch = Watch::start(&runc, &args)?;
    ensure!(runc.spawn_create(&bundle).and_then(|task| task.wait(LONG)?.ok()).is_err(), "it was created");
    let event = watch.wait_for(&bundle, "pre-create")?;
    assert_eq!((&event["answer"]["decision"], &event["answer"]["timed_out"]), (&"deny".into(), &true.into()));
    watch.stop()?;
    Ok(())
}

#[test]
fn a_reader_that_leaves_ends_it_at_once() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let mut command = program();
    command.args(["watch", "--json", "--no-discover", "--runtime"]).arg(runc.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut ready = String::new();
    stderr.read_line(&mut ready)?;
    assert_eq!(ready, "ready: 1 runtime marked\n");
    // Nothing happens, so nothing is written: it must notice by itself.
    drop(child.stdout.take());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest)?;
    assert_eq!((child.wait()?.code(), rest.as_str()), (Some(0), ""));
    Ok(())
}

#[test]
fn a_full_disk_is_told() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let mut command = program();
    command.args(["watch", "--no-discover", "--runtime"]).arg(runc.path());
    let output = command.stdout(std::fs::File::options().write(true).open("/dev/full")?).output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("cannot write to stdout: No space left on device"), "{}", err(&output));
    Ok(())
}

#[test]
fn ctrl_z_does_not_stop_the_listener() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let watch = Watch::start(&runc, &["--json"])?;
    watch.0.process().kill(libc::SIGTSTP)?;
    wait_until("it says why not", LONG, || watch.0.printed().1.contains("not stopping").then_some(()))?;
    runc.create(&bundle)?;
    watch.wait_for(&bundle, "created")?;
    assert_ne!(watch.0.process().state(), Some('T'));
    watch.stop()?;
    Ok(())
}

#[test]
fn a_second_signal_ends_it_even_where_its_output_is_stuck() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    // A pipe that is full, and that nobody reads: the table's head cannot be written.
    let (reader, mut writer) = std::io::pipe()?;
    set_nonblocking(&writer, true)?;
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    set_nonblocking(&writer, false)?;
    let mut command = program();
    command.args(["watch", "--no-discover", "--runtime"]).arg(runc.path());
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn()?;
    let mut ready = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut ready)?;
    let process = testkit::Process(child.id() as i32);
    process.kill(libc::SIGINT)?;
    // The first is taken when its handler has run; only then is the next another one.
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait()?.is_none(), "it ended although its output is stuck");
    process.kill(libc::SIGINT)?;
    let status = child.wait()?;
    drop(reader);
    assert_eq!(status.code(), Some(130));
    Ok(())
}

/// The flag is the pipe's, not the descriptor's.
fn set_nonblocking(pipe: &std::io::PipeWriter, yes: bool) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let flags = if yes { libc::O_NONBLOCK } else { 0 };
    // SAFETY: F_SETFL on a descriptor that is open, with an integer argument.
    let result = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, flags) };
    ensure!(result == 0, std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn it_ends_after_its_duration_and_says_when_it_is_ready() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let folder = Scratch::new()?;
    let ready = folder.join("ready");
    let mut command = program();
    command.args(["watch", "--duration", "10ms", "--no-discover", "--ready-file"]).arg(&ready);
    let output = Task::spawn(command.arg("--runtime").arg(runc.path()))?.wait(LONG)?.ok()?;
    assert_eq!(std::fs::read_to_string(&ready)?, "ready: 1 runtime marked\n");
    assert_eq!(output.stderr, "ready: 1 runtime marked\n");
    assert!(output.stdout.starts_with("TIME "), "{}", output.stdout);
    Ok(())
}

#[test]
fn without_a_runtime_it_cannot_work() -> Result<()> {
    need!(Root);
    let _dog = watchdog(LONG);
    let folder = Scratch::new()?;
    for subcommand in ["watch", "doctor"] {
        let mut command = program();
        command.args([subcommand, "--no-discover", "--runtime"]).arg(folder.join("runc"));
        let output = command.output()?;
        assert_eq!(output.status.code(), Some(2), "{subcommand}: {}", err(&output));
        let words = out(&output) + &err(&output);
        assert!(words.contains("no container runtime"), "{subcommand}: {words}");
    }
    Ok(())
}

#[test]
fn doctor_tells_what_is_marked_and_leaves_nothing_behind() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG);
    let runc = Runtime::runc()?;
    let mut command = program();
    let output =
        command.args(["doctor", "--json", "--no-discover", "--runtime"]).arg(runc.path()).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["error"], Value::Null, "{report}");
    let marked: Vec<&str> =
        report["runtimes"].as_array().unwrap().iter().filter_map(|r| r["path"].as_str()).collect();
    assert_eq!(marked, [runc.path().to_str().unwrap()]);
    for capability in report["capabilities"].as_array().unwrap() {
        let complete = capability["available"] == "yes" || capability["detail"].is_string();
        assert!(complete, "it does not say why not: {capability}");
    }
    let code = match report["verdict"].as_str() {
        Some("works") => 0,
        Some("works-with-less") => 1,
        _ => 2,
    };
    assert_eq!(output.status.code(), Some(code), "{report}");
    Ok(())
}

#[test]
fn containers_that_run_already_are_listed() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 2);
    let runc = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("list")).script("sleep 1000").build()?;
    // In the state folder that runc has by default, for that is where a container is looked for.
    let mut create = Command::new(runc.path());
    create.args(["create", "--bundle"]).arg(bundle.path()).arg("--pid-file").arg(bundle.pid_file());
    Task::spawn(create.arg(bundle.id()))?.wait(LONG)?.ok()?;
    let _deleted = Deleted(runc.path(), bundle.id().to_owned());
    let init = bundle.init()?;
    let list = |args: &[&str]| {
        let mut command = program();
        command.arg("list").args(args).output()
    };
    let output = list(&["--json", "--filter", &format!("id={}", bundle.id())])?;
    assert!(output.status.success(), "{}", err(&output));
    let listed = events(&out(&output));
    assert_eq!(listed.len(), 1, "{}", out(&output));
    assert_eq!((&listed[0]["pid"], &listed[0]["existing"]), (&init.0.into(), &true.into()));
    let output = list(&[])?;
    let line = out(&output).lines().find(|line| line.contains(bundle.id())).map(str::to_owned);
    assert!(line.is_some_and(|line| line.contains(&format!("  {}", init.0))), "{}", out(&output));
    Ok(())
}

/// A container of runc's default state folder: deleted with this.
struct Deleted(std::path::PathBuf, String);

impl Drop for Deleted {
    fn drop(&mut self) {
        let _ = Command::new(&self.0).args(["delete", "--force", &self.1]).status();
    }
}

/// A terminal in which a program runs; it ends with its test.
struct Terminal {
    folder: Scratch,
}

impl Terminal {
    fn start(columns: u16, command: &Command) -> Result<Terminal> {
        let terminal = Terminal { folder: Scratch::new()? };
        let mut words = vec![command.get_program()];
        words.extend(command.get_args());
        let mut tmux = terminal.tmux();
        tmux.args(["-f", "/dev/null", "new-session", "-d", "-x", &columns.to_string(), "-y", "30"])
            .args(words);
        let output = tmux.env("TERM", "xterm-256color").output()?;
        ensure!(output.status.success(), "{}", err(&output));
        Ok(terminal)
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.folder.join("tmux"));
        command
    }

    fn screen(&self) -> String {
        self.tmux().args(["capture-pane", "-p"]).output().map(|output| out(&output)).unwrap_or_default()
    }

    fn wait_for(&self, what: &str) -> Result<String> {
        let found = wait_until(what, LONG, || Some(self.screen()).filter(|screen| screen.contains(what)));
        found.map_err(|error| error.context(format!("the screen is:\n{}", self.screen())))
    }

    fn press(&self, keys: &[&str]) -> Result<()> {
        ensure!(self.tmux().arg("send-keys").args(keys).status()?.success(), "tmux send-keys");
        Ok(())
    }

    fn resize(&self, columns: u16) -> Result<()> {
        let status = self.tmux().args(["resize-window", "-x", &columns.to_string(), "-y", "30"]).status()?;
        ensure!(status.success(), "tmux resize-window");
        Ok(())
    }

    /// Is the program still there? A session ends with its last program.
    fn ended(&self) -> Result<()> {
        wait_until("the program ends", LONG, || {
            let has = self.tmux().args(["has-session"]).output().ok()?;
            (!has.status.success()).then_some(())
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux().arg("kill-server").output();
    }
}

#[test]
fn a_terminal_shows_a_table_that_fits() -> Result<()> {
    need!(Root, Runc, Busybox, Tmux);
    let _dog = watchdog(LONG * 3);
    let runc = Runtime::runc()?;
    let bundle = seven()?;
    let mut command = program();
    command.args(["watch", "--no-discover", "--runtime"]).arg(runc.path());
    let terminal = Terminal::start(130, &command)?;
    let screen = terminal.wait_for("TIME ")?;
    assert!(
        screen.contains("EVENT         ID              NAME                PID       ENGINE      RUNTIME"),
        "{screen}"
    );
    terminal.wait_for("ready: 1 runtime marked")?;
    assert_eq!(runc.run(&bundle)?.code(), Some(7));
    let screen = terminal.wait_for("exit 7")?;
    for words in ["pre-create", "created", "stopped", "allowed after", "runc"] {
        assert!(screen.contains(words), "{words}\n{screen}");
    }
    // Narrower: a new head that says which columns are left.
    terminal.resize(80)?;
    assert_eq!(runc.run(&seven()?)?.code(), Some(7));
    let screen = terminal.wait_for("PID       WHAT")?;
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    terminal.press(&["C-c"])?;
    terminal.ended()
}

#[test]
fn a_live_screen_shows_a_container_and_its_end() -> Result<()> {
    need!(Root, Runc, Busybox, Tmux);
    let _dog = watchdog(LONG * 3);
    let runc = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("top")).script("sleep 1000").build()?;
    let shown: String = bundle.id().chars().take(13).collect();
    let mut command = program();
    let filter = format!("id={}", bundle.id());
    command.args(["top", "--filter", &filter, "--no-discover", "--runtime"]).arg(runc.path());
    let terminal = Terminal::start(130, &command)?;
    terminal.wait_for("0 running, 0 coming")?;
    runc.create(&bundle)?;
    let screen = terminal.wait_for("created, ")?;
    assert!(screen.contains(&shown) && screen.contains("0 running, 1 coming"), "{screen}");
    runc.start(bundle.id())?;
    terminal.wait_for("1 running, 0 coming")?;
    // It is drawn anew at another width.
    terminal.resize(60)?;
    let screen = wait_until("a narrow screen", LONG, || {
        Some(terminal.screen()).filter(|screen| screen.contains("AGE") && !screen.contains("ENGINE"))
    })?;
    assert!(screen.contains(&shown), "{screen}");
    terminal.resize(130)?;
    runc.kill(bundle.id(), "KILL")?;
    terminal.wait_for("SIGKILL")?;
    terminal.press(&["q"])?;
    terminal.ended()
}

/// A runtime that makes no containers but processes. Its state folder has a link to each bundle.
const FAKE: &str = r#"#!/bin/busybox sh
case $3 in
create) # --root R create --bundle B --pid-file P ID
    /bin/busybox sleep 100000 </dev/null >/dev/null 2>&1 &
    echo $! > $7
    ;;
all) # --root R all N PREFIX
    i=0
    while [ $i -lt $4 ]; do
        n=$((10000 + i))
        "$0" --root $2 create --bundle $2 --pid-file $2/pid-$n $5-${n#1}
        i=$((i + 1))
    done
    ;;
esac
"#;

/// The inits of a fake; they end with this.
struct Inits(Scratch);

impl Inits {
    fn all(&self) -> Vec<testkit::Process> {
        let files = std::fs::read_dir(self.0.path()).into_iter().flatten().flatten();
        let pids = files.filter(|file| file.file_name().to_string_lossy().starts_with("pid-"));
        let pid = |file: std::fs::DirEntry| std::fs::read_to_string(file.path()).ok()?.trim().parse().ok();
        pids.filter_map(pid).map(testkit::Process).collect()
    }
}

impl Drop for Inits {
    fn drop(&mut self) {
        for init in self.all() {
            let _ = init.kill(libc::SIGKILL);
        }
    }
}

#[test]
fn a_live_screen_shows_a_thousand_containers() -> Result<()> {
    need!(Root, Busybox, Tmux);
    const COUNT: usize = 1000;
    let long = LONG * 5;
    let _dog = watchdog(long);
    let inits = Inits(Scratch::new()?);
    let fake = inits.0.join("runc");
    std::fs::write(&fake, FAKE)?;
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    // Short, for the column is.
    let prefix = format!("t{:x}", std::process::id());
    let mut command = program();
    let filter = format!("id={prefix}-*");
    command.args(["top", "--filter", &filter, "--no-discover", "--runtime"]).arg(&fake);
    let terminal = Terminal::start(130, &command)?;
    terminal.wait_for("0 running, 0 coming")?;
    let mut all = Command::new("/bin/busybox");
    all.args(["sh"]).arg(&fake).arg("--root").arg(inits.0.path());
    all.args(["all", &COUNT.to_string(), &prefix]);
    Task::spawn(&mut all)?.wait(long)?.ok()?;
    // By name, without the events below: the first page, the last one, and the one before.
    terminal.press(&["s", "e"])?;
    let id = |i: usize| format!("{prefix}-{i:04}");
    let shows = |what: &str, i: usize| {
        let shown = wait_until(what, LONG, || {
            let screen = terminal.screen();
            let head = format!("0 running, {COUNT} coming; 2000 events");
            let whole = screen.contains(&head) && screen.contains("by name") && !screen.contains("EVENT");
            (whole && screen.contains(&id(i))).then_some(screen)
        });
        shown.map_err(|error| error.context(format!("the screen is:\n{}", terminal.screen())))
    };
    let first = shows("the first", 0)?;
    assert!(!first.contains(&id(COUNT - 1)), "{first}");
    terminal.press(&["End"])?;
    let last = shows("the last", COUNT - 1)?;
    assert!(!last.contains(&id(0)), "{last}");
    terminal.press(&["PageUp"])?;
    let rows = last.lines().filter(|line| line.starts_with(&prefix[..1])).count();
    assert!(rows > 10, "{last}");
    shows("the page before", COUNT - rows - 1)?;
    // At other widths it stays what it is, and as wide as the terminal.
    for (columns, last, engine) in [(60, false, false), (200, true, true), (100, true, false)] {
        terminal.resize(columns)?;
        terminal.press(&["Home"])?;
        let screen = wait_until("the first, drawn anew", LONG, || {
            let screen = terminal.screen();
            let fits = screen.lines().all(|line| line.chars().count() <= usize::from(columns));
            // A screen that is looked at while it is drawn has one line of before.
            let whole = screen.contains(&format!("{COUNT} coming")) && screen.contains("AGE");
            // What has room, and what has not: until it is drawn anew it is what was there, cut.
            let new = screen.contains("LAST") == last && screen.contains("ENGINE") == engine;
            (fits && whole && new).then_some(())
        });
        screen.map_err(|error| error.context(format!("the screen is:\n{}", terminal.screen())))?;
    }
    // All end: each is shown with its end.
    for init in inits.all() {
        init.kill(libc::SIGKILL)?;
    }
    let screen = terminal.wait_for("0 running, 0 coming")?;
    assert!(screen.contains("SIGKILL"), "{screen}");
    terminal.press(&["q"])?;
    terminal.ended()
}
