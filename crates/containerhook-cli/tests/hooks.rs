//! `watch --exec`: hooks run outside of the sandbox, and nothing waits for one for ever.

mod common;

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use common::{LONG, Watch, kinds};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};
use serde_json::Value;
use testkit::{Bundle, Process, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

/// A hook, and what it wrote.
struct Hook {
    folder: Scratch,
}

impl Hook {
    fn new(script: &str) -> Result<Hook> {
        let hook = Hook { folder: Scratch::new()? };
        std::fs::write(hook.program(), format!("#!/bin/sh\ncd {:?}\n{script}\n", hook.folder.path()))?;
        std::fs::set_permissions(hook.program(), std::fs::Permissions::from_mode(0o755))?;
        Ok(hook)
    }

    fn program(&self) -> PathBuf {
        self.folder.join("hook")
    }

    fn watch(&self, runtime: &Runtime, args: &[&str]) -> Result<Watch> {
        let program = self.program();
        let program = program.to_str().context("utf-8")?;
        let watch = Watch::of(&runtime.path(), &[&["--json", "--exec", program], args].concat())?;
        Ok(watch)
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.join(name)).ok()
    }

    fn wait_for(&self, name: &str) -> Result<String> {
        wait_until(&format!("the hook's {name:?}"), LONG, || self.read(name))
    }
}

/// The process that runs hooks, and the listener.
fn helper_and_listener(watch: &Watch) -> Result<(Process, Process)> {
    let is_helper = |process: &Process| process.args().iter().any(|word| word.starts_with("--hooks-helper="));
    let (helpers, others): (Vec<_>, Vec<_>) = watch.0.process().children().into_iter().partition(is_helper);
    match (&*helpers, &*others) {
        ([helper], [listener]) => Ok((*helper, *listener)),
        all => anyhow::bail!("{all:?}"),
    }
}

fn has_ended(process: Process) -> Option<()> {
    (!process.is_alive()).then_some(())
}

fn status_of(text: &str, key: &str) -> Option<String> {
    Some(text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim().to_owned())
}

#[test]
fn a_hook_has_what_the_listener_has_given_up_and_is_told_all() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let hook = Hook::new(
        "cat /proc/self/status >status; cat >json.$CONTAINERHOOK_KIND\n\
         echo noise; env | grep ^CONTAINERHOOK_ >env.$CONTAINERHOOK_KIND.new; mv env.$CONTAINERHOOK_KIND.new env.$CONTAINERHOOK_KIND",
    )?;
    let watch = hook.watch(&runc, &[])?;
    let bundle = Bundle::builder(unique_id("hook")).script("exit 4").build()?;
    assert_eq!(runc.run(&bundle)?.code(), Some(4));
    for kind in ["pre-create", "created", "started", "stopped", "deleted"] {
        let env = hook.wait_for(&format!("env.{kind}"))?;
        for line in [
            format!("CONTAINERHOOK_ID={}", bundle.id()),
            format!("CONTAINERHOOK_KIND={kind}"),
            format!("CONTAINERHOOK_BUNDLE={}", bundle.path().display()),
        ] {
            ensure!(env.lines().any(|found| found == line), "{line}: {env}");
        }
        // It is the line that was printed.
        let told: Value = serde_json::from_str(&hook.wait_for(&format!("json.{kind}"))?)?;
        assert_eq!(told, watch.wait_for(&bundle, kind)?);
        ensure!(kind == "pre-create" || env.contains(&format!("CONTAINERHOOK_PID={}", told["pid"])), "{env}");
    }
    let (_, listener) = helper_and_listener(&watch)?;
    let hooks = hook.read("status").context("no status")?;
    let own = std::fs::read_to_string("/proc/self/status")?;
    let listeners = std::fs::read_to_string(format!("/proc/{}/status", listener.0))?;
    for key in ["CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"] {
        assert_eq!(status_of(&hooks, key), status_of(&own, key), "{key}");
        ensure!(status_of(&hooks, key) != status_of(&listeners, key), "{key}: {listeners}");
    }
    // Its words are not among the events.
    ensure!(watch.0.printed().1.contains("noise\n"), "{:?}", watch.0.printed());
    watch.stop().map(drop)
}

/// What is held takes descriptors: the listener may have as many as it is permitted, whoever runs for it as many as ever.
#[test]
fn the_limit_of_descriptors_is_raised_for_the_listener_alone() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let hook = Hook::new("ulimit -n >soft.new; mv soft.new soft")?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", r#"ulimit -Sn 200 && ulimit -Hn 1000 && exec "$@""#, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_containerhook"));
    let exec = hook.program().display().to_string();
    let watch = Watch::by(command, &runc.path(), &["--json", "--exec", &exec])?;
    let (_, listener) = helper_and_listener(&watch)?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", listener.0))?;
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
    assert_eq!(limit.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1000", "1000"], "{limit}");
    let bundle = Bundle::builder(unique_id("limit")).script("exit 0").build()?;
    runc.run(&bundle)?.ok()?;
    assert_eq!(hook.wait_for("soft")?.trim(), "200");
    watch.stop().map(drop)
}

#[test]
fn one_containers_events_come_one_after_the_other() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    // The first one takes longest.
    let hook =
        Hook::new("[ $CONTAINERHOOK_KIND = pre-create ] && sleep 0.3; echo $CONTAINERHOOK_KIND >>all")?;
    let watch = hook.watch(&runc, &[])?;
    let bundle = Bundle::builder(unique_id("order")).script("exit 0").build()?;
    runc.run(&bundle)?.ok()?;
    watch.wait_for(&bundle, "deleted")?;
    // What was told before the end is run before the end.
    let events = watch.stop()?;
    assert_eq!(hook.read("all").context("nothing")?, kinds(&events, bundle.id()).join("\n") + "\n");
    Ok(())
}

#[test]
fn with_hold_its_exit_code_is_the_answer() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let hook = Hook::new(
        "case $CONTAINERHOOK_ID in\n\
         good*) grep -q '\"answer\":null' && exit 0;;\n\
         bad*) exit 3;;\n\
         no-such*) exit 127;;\n\
         *) kill -9 $$;;\n\
         esac",
    )?;
    let watch = hook.watch(&runc, &["--hold", "--event", "pre-create"])?;
    for (prefix, runs, decision, reason) in [
        ("good", true, "allow", None),
        ("bad", false, "deny", Some("exit code 3")),
        // No answers: as --on-timeout says.
        ("no-such", true, "allow", None),
        ("killed", true, "allow", None),
    ] {
        let bundle = Bundle::builder(unique_id(prefix)).script("exit 5").build()?;
        assert_eq!(runc.run(&bundle).ok().and_then(|output| output.code()) == Some(5), runs, "{prefix}");
        let told = watch.wait_for(&bundle, "pre-create")?;
        assert_eq!(told["answer"]["decision"], decision, "{told}");
        let words = told["answer"]["reason"].as_str();
        ensure!(reason.is_none_or(|reason| words.is_some_and(|words| words.contains(reason))), "{told}");
    }
    ensure!(watch.0.printed().1.contains("was killed by signal 9"), "{:?}", watch.0.printed());
    watch.stop()?;
    let watch = hook.watch(&runc, &["--hold", "--event", "pre-create", "--on-timeout", "deny"])?;
    let bundle = Bundle::builder(unique_id("killed")).build()?;
    ensure!(!runc.run(&bundle).is_ok_and(|output| output.status.success()));
    let told = watch.wait_for(&bundle, "pre-create")?;
    assert_eq!(told["answer"]["decision"], "deny");
    assert_eq!(told["answer"]["timed_out"], false);
    watch.stop().map(drop)
}

#[test]
fn one_that_takes_too_long_is_killed_at_the_deadline_and_the_container_goes_on() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    // What it waits for is in its process group, and in a session of its own, and a child of that.
    let away = "setsid sh -c 'sleep 1000 & echo $$ $! >away; wait' &";
    let hook = Hook::new(&format!(
        "sleep 1000 & one=$!; {away} until [ -s away ]; do sleep 0.01; done; echo $$ $one $(cat away) >pids.new; \
         mv pids.new pids; wait"
    ))?;
    let watch = hook.watch(&runc, &["--hold", "--event", "pre-create", "--deadline", "500ms"])?;
    let bundle = Bundle::builder(unique_id("slow")).script("exit 6").build()?;
    assert_eq!(runc.run(&bundle)?.code(), Some(6));
    let told = watch.wait_for(&bundle, "pre-create")?;
    assert_eq!(told["answer"]["timed_out"], true, "{told}");
    let pids = hook.wait_for("pids")?;
    ensure!(pids.split_whitespace().count() == 4, "{pids}");
    for pid in pids.split_whitespace() {
        let process = Process(pid.parse()?);
        wait_until("the hook has ended", LONG, || has_ended(process))?;
    }
    watch.stop().map(drop)
}

#[test]
fn one_that_nobody_waits_for_has_a_limit_too() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let hook = Hook::new("echo $$ >pid.new; mv pid.new pid; exec sleep 1000")?;
    let watch = hook.watch(&runc, &["--event", "stopped", "--exec-timeout", "300ms"])?;
    let bundle = Bundle::builder(unique_id("limit")).script("exit 0").build()?;
    runc.run(&bundle)?.ok()?;
    let process = Process(hook.wait_for("pid")?.trim().parse()?);
    wait_until("the hook has ended", LONG, || has_ended(process))?;
    let said = || watch.0.printed().1.contains("was not done in time").then_some(());
    wait_until("that is said", LONG, said)?;
    watch.stop().map(drop)
}

#[test]
fn filters_choose_for_hooks_too_and_words_are_a_shells() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let folder = Scratch::new()?;
    let words = format!("echo $CONTAINERHOOK_ID >>{:?}", folder.join("ids"));
    let args = ["--json", "--event", "deleted", "--filter", "id=this-*", "--exec", &words];
    let watch = Watch::of(&runc.path(), &args)?;
    let bundles = ["that", "this"].map(unique_id).map(|id| Bundle::builder(id).script("exit 0").build());
    let [that, this] = bundles;
    for bundle in [&that?, this.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?] {
        runc.run(bundle)?.ok()?;
    }
    let this = this?;
    watch.wait_for(&this, "deleted")?;
    watch.stop()?;
    assert_eq!(std::fs::read_to_string(folder.join("ids"))?, format!("{}\n", this.id()));
    Ok(())
}

#[test]
fn a_listener_that_is_killed_leaves_neither_helper_nor_hook_behind() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    for args in [&[][..], &["--watchdog", "off"]] {
        let hook = Hook::new("echo $$ >pid.new; mv pid.new pid; exec sleep 1000")?;
        let watch = hook.watch(&runc, &[&["--event", "created"], args].concat())?;
        let bundle = Bundle::builder(unique_id("left")).script("exit 0").build()?;
        runc.run(&bundle)?.ok()?;
        let running = Process(hook.wait_for("pid")?.trim().parse()?);
        let children = watch.0.process().children();
        ensure!(children.len() == if args.is_empty() { 2 } else { 1 }, "{children:?}");
        watch.0.process().kill(libc::SIGKILL)?;
        for process in children.into_iter().chain([running]) {
            wait_until("it has ended", LONG, || has_ended(process))?;
        }
    }
    Ok(())
}

#[test]
fn a_listener_that_is_replaced_has_hooks_again() -> Result<()> {
    need!(Root, Runc, Busybox);
    let _dog = watchdog(LONG * 4);
    let runc = Runtime::runc()?;
    let hook = Hook::new("echo $CONTAINERHOOK_ID >>ids")?;
    let watch = hook.watch(&runc, &["--event", "deleted"])?;
    let (helper, listener) = helper_and_listener(&watch)?;
    listener.kill(libc::SIGKILL)?;
    let replaced = || (watch.0.printed().1.matches("ready: 1 runtime marked").count() == 2).then_some(());
    wait_until("another one listens", LONG, replaced)?;
    let bundle = Bundle::builder(unique_id("again")).script("exit 0").build()?;
    runc.run(&bundle)?.ok()?;
    let has_run = || (hook.read("ids")? == format!("{}\n", bundle.id())).then_some(());
    wait_until("the hook has run", LONG, has_run)?;
    assert_eq!(helper_and_listener(&watch)?.0, helper);
    // Without its helper it cannot do what it was asked for, and says so.
    helper.kill(libc::SIGKILL)?;
    let output = watch.0.wait(LONG)?;
    assert_eq!(output.code(), Some(1), "{output:?}");
    ensure!(output.stderr.contains("the process that runs --exec has ended"), "{output:?}");
    Ok(())
}

/// The helper by itself, asked for more than may run at a time: all are run, sixteen at a time at most, and those of one
/// container one after the other. When nobody asks any more it ends.
#[test]
fn sixteen_run_at_a_time_and_the_rest_wait() -> Result<()> {
    const MANY: usize = 60;
    let _dog = watchdog(LONG * 3);
    let hook = Hook::new(
        "mkdir running.$$; ls -d running.* | wc -l >>counts\n\
         mkdir one.$NAME || echo $NAME >>twice; sleep 0.1; rmdir one.$NAME running.$$",
    )?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut command = common::program();
    command
        .arg(format!("--hooks-helper={}", theirs.as_raw_fd()))
        .args(["watch", "--exec"])
        .arg(hook.program());
    let helper = Task::spawn(&mut command)?;
    drop(theirs);
    let input = std::fs::File::open("/dev/null")?;
    for no in 0..MANY {
        // Every third one is the same container's.
        let container = if no % 3 == 0 { "same".to_owned() } else { format!("c{no}") };
        let env = [["NAME", &container]];
        let request = serde_json::json!({"no": no, "container": container, "limit_ms": 60_000, "held": no % 2 == 0, "env": env});
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        let files = [std::os::fd::AsFd::as_fd(&input)];
        with.push(SendAncillaryMessage::ScmRights(&files));
        let message = request.to_string();
        sendmsg(&ours, &[std::io::IoSlice::new(message.as_bytes())], &mut with, SendFlags::empty())?;
    }
    let mut answered = std::collections::BTreeSet::new();
    let mut buffer = [0_u8; 4096];
    while answered.len() < MANY {
        let (length, _) = recv(&ours, &mut buffer[..], RecvFlags::empty())?;
        let reply: Value = serde_json::from_slice(&buffer[..length])?;
        ensure!(reply["end"] == serde_json::json!({"Exited": 0}), "{reply}");
        ensure!(answered.insert(reply["no"].as_u64().context("no number")?), "twice: {reply}");
    }
    drop(ours);
    helper.wait(LONG)?.ok()?;
    let counts = hook.read("counts").context("none ran")?;
    let most = counts.split_whitespace().filter_map(|count| count.parse::<usize>().ok()).max();
    ensure!(most.is_some_and(|most| (2..=16).contains(&most)), "{most:?}");
    assert_eq!(hook.read("twice"), None);
    Ok(())
}

#[test]
fn what_can_never_be_run_is_refused() {
    let output = common::run(&["watch", "--exec", " "]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let output = common::run(&["watch", "--hold"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
