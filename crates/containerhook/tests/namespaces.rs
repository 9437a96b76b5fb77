//! A listener that is not where the host is: in a pid namespace of its own, in a container, with less privilege.
//!
//! The listener is this very program, executed again under `unshare` or runc; its records come as lines of JSON.

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{CaptureBackend, ContainerEvent, ContainerNotifier, Decision, EventKind, Record};
use serde_json::Value;
use support::LIMIT;
use testkit::{Bundle, Containerd, Output, Process, Runtime, Scratch, Task, need, unique_id};
use testkit::{wait_until, watchdog};

/// The name of the test that is the listener.
const LISTENER: &str = "the_listener_itself";

/// What a listener in a container is given here. CAP_SYS_ADMIN holds what CAP_BPF and CAP_PERFMON do.
const CAPABILITIES: [&str; 5] =
    ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH"];

/// Where a listener lives.
#[derive(Clone, Debug)]
enum Place {
    /// A pid namespace and a mount namespace of its own, with all capabilities.
    Namespaces,
    /// A container, with or without a pid namespace of its own.
    Container { own_pids: bool, capabilities: Vec<&'static str> },
}

/// What it is to do there.
#[derive(Clone, Debug, Default)]
struct Orders {
    capture: Option<CaptureBackend>,
    deny: Option<EventKind>,
    discover: bool,
}

/// A listener elsewhere, that is ready.
struct Elsewhere {
    task: Task,
    scratch: Scratch,
    _container: Option<(Runtime, Bundle)>,
}

/// What it said when it was ready, or why it is not.
enum Begun {
    Ready(Box<Elsewhere>, Value),
    Refused(String),
}

impl Place {
    fn begin(&self, runtime: &Path, orders: &Orders) -> Result<Begun> {
        let scratch = Scratch::new()?;
        let program = std::env::current_exe()?;
        let words: Vec<OsString> =
            vec![LISTENER.into(), "--exact".into(), "--ignored".into(), "--nocapture".into()];
        let host = match self {
            Place::Namespaces => scratch.join("host"),
            Place::Container { .. } => PathBuf::from("/host"),
        };
        let backend = orders.capture.map(serde_json::to_value).transpose()?;
        let environment = [
            ("LISTENER_HOST", host.clone().into_os_string()),
            ("LISTENER_RUNTIME", runtime.into()),
            ("LISTENER_STOP", scratch.join("stop").into_os_string()),
            ("LISTENER_CAPTURE", backend.as_ref().and_then(Value::as_str).unwrap_or_default().into()),
            ("LISTENER_DENY", orders.deny.map(EventKind::as_str).unwrap_or_default().into()),
            ("LISTENER_DISCOVER", if orders.discover { "1" } else { "" }.into()),
        ];
        let (mut task, container) = match self {
            Place::Namespaces => {
                std::fs::create_dir(&host)?;
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "slave", "sh", "-e", "-c"]);
                command.arg(r#"mount --rbind / "$1"; shift; exec unshare --pid --fork --mount-proc "$@""#);
                command.arg("sh").arg(&host).arg(program).args(words).envs(environment);
                (Task::spawn(&mut command)?, None)
            }
            Place::Container { own_pids, capabilities } => {
                let outer = Runtime::runc()?;
                let args = std::iter::once("/listener".into()).chain(words);
                let args = args.map(|word| word.to_string_lossy().into_owned());
                let read_only = ["rbind", "ro"];
                let mut bundle = Bundle::builder(unique_id("listener"))
                    .args(args)
                    .mount("/listener", "bind", program, &read_only)
                    .mount("/host", "bind", "/", &["rbind", "ro", "rslave"]);
                // What this program is linked to; a static one needs none of it.
                for libraries in ["/lib", "/lib64", "/usr/lib", "/usr/lib64"] {
                    if Path::new(libraries).exists() {
                        bundle = bundle.mount(libraries, "bind", libraries, &read_only);
                    }
                }
                for (name, value) in environment {
                    bundle = bundle.env(name, &value.to_string_lossy());
                }
                let bundle = bundle
                    .edit(|config| {
                        let set = serde_json::json!(capabilities);
                        config["process"]["capabilities"] =
                            serde_json::json!({"bounding": set, "effective": set, "permitted": set});
                        if !own_pids {
                            let namespaces = config["linux"]["namespaces"].as_array_mut();
                            namespaces.expect("a list").retain(|namespace| namespace["type"] != "pid");
                        }
                    })
                    .build()?;
                (outer.spawn_run(&bundle)?, Some((outer, bundle)))
            }
        };
        let begun = wait_until("the listener is ready, or says why not", Duration::from_secs(60), || {
            let ended = task.try_wait().ok().flatten();
            let (out, err) = task.printed();
            let line = |prefix| out.lines().find_map(|line| Some(line.strip_prefix(prefix)?.to_owned()));
            if let Some(ready) = line("ready: ") {
                return Some(Ok(Ok(ready)));
            }
            line("refused: ")
                .map(|why| Ok(Err(why)))
                .or_else(|| ended.map(|output: Output| Err(format!("{output:?}\n{out}{err}"))))
        })?;
        match begun {
            Ok(Ok(status)) => {
                let status = serde_json::from_str(&status)?;
                Ok(Begun::Ready(Box::new(Elsewhere { task, scratch, _container: container }), status))
            }
            Ok(Err(why)) => {
                task.wait(LIMIT)?;
                Ok(Begun::Refused(why))
            }
            Err(output) => bail!("the listener ended: {output}"),
        }
    }

    fn start(&self, runtime: &Path, orders: &Orders) -> Result<(Elsewhere, Value)> {
        match self.begin(runtime, orders)? {
            Begun::Ready(listener, status) => Ok((*listener, status)),
            Begun::Refused(why) => bail!("{self:?}: {why}"),
        }
    }
}

impl Elsewhere {
    fn events(&self, id: &str) -> Vec<Value> {
        let out = self.task.printed().0;
        let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let records = whole.lines().filter(|line| line.starts_with('{'));
        let events = records.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["id"] == id).collect()
    }

    /// The events of a container, when one of this kind has come.
    fn wait(&self, id: &str, kind: EventKind) -> Result<Vec<Value>> {
        wait_until(&format!("{kind} of {id}"), support::PATIENCE, || {
            let events = self.events(id);
            events.iter().any(|event| event["event"] == kind.as_str()).then_some(events)
        })
        .with_context(|| format!("{:?}", self.task.printed()))
    }

    /// Ends it; whatever it has told must be what lives may be.
    fn stop(self) -> Result<String> {
        std::fs::write(self.scratch.join("stop"), "")?;
        let output = self.task.wait(LIMIT)?.ok()?;
        ensure!(output.stdout.contains("closed"), "{output:?}");
        Ok(output.stdout + &output.stderr)
    }
}

/// Not a test: what [`Place::begin`] executes.
#[test]
#[ignore = "is executed by the tests of this file, elsewhere"]
fn the_listener_itself() -> Result<()> {
    let said = |name: &str| std::env::var(name).ok().filter(|word| !word.is_empty());
    let Some(host) = said("LISTENER_HOST") else {
        testkit::skip::report(LISTENER, "it is executed by the tests of this file");
        return Ok(());
    };
    let _dog = watchdog(LIMIT);
    let capture = match said("LISTENER_CAPTURE").as_deref() {
        Some("memory") => CaptureBackend::Memory,
        Some("lookup") => CaptureBackend::Lookup,
        Some("tracepoint") => CaptureBackend::Tracepoint,
        _ => CaptureBackend::Auto,
    };
    let deny: Option<EventKind> = said("LISTENER_DENY").map(|word| word.parse()).transpose()?;
    let discover = said("LISTENER_DISCOVER").is_some();
    let builder = ContainerNotifier::builder()
        .host_root(&host)
        .runtime(said("LISTENER_RUNTIME").context("no runtime")?)
        .discover(discover)
        .exec_watch(false)
        .capture(capture);
    let print = |record: &Record| println!("{}", record.to_json_with_config());
    let handler = move |event: &ContainerEvent| {
        if deny == Some(event.kind()) { Decision::deny("by this test") } else { Decision::allow() }
    };
    let stop = Path::new(&host).join(said("LISTENER_STOP").context("no stop")?.trim_start_matches('/'));
    let notifier = match builder.on_record(print).start(handler) {
        Ok(notifier) => notifier,
        Err(error) => {
            println!("refused: {error}");
            return Ok(());
        }
    };
    // The test harness has begun a line.
    println!("\nready: {}", serde_json::to_string(&notifier.status()?)?);
    // From then on no memory is read by this process.
    let broken = stop.with_file_name("break");
    let mut is_broken = false;
    while !stop.exists() {
        if !is_broken && broken.exists() {
            refuse_pread()?;
            is_broken = true;
            println!("broken");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("warnings: {:?}", notifier.status()?.warnings);
    notifier.close();
    println!("closed");
    Ok(())
}

/// Every thread of this process has pread64 refused from now on: what reads memory by it does not work any more.
fn refuse_pread() -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
    const SECCOMP_FILTER_FLAG_TSYNC: libc::c_ulong = 1;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let errno = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = [
        // The number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_pread64 as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, errno),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is readable for its length and outlives the call.
    let result = unsafe {
        let (mode, flags) = (SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC);
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter)
    };
    ensure!(result == 0, "seccomp: {result} {}", std::io::Error::last_os_error());
    Ok(())
}

/// A container is created, started, has another program executed, and ends; told with the host's pids.
fn a_whole_life(runtime: &Runtime, listener: &Elsewhere) -> Result<()> {
    let bundle = Bundle::builder(unique_id("life"))
        .script("while ! [ -e /go ]; do sleep 0.01; done; exit 42")
        .build()?;
    let init = runtime.create(&bundle)?;
    runtime.start(bundle.id())?;
    listener.wait(bundle.id(), EventKind::Started)?;
    ensure!(runtime.exec(bundle.id(), &["/bin/sh", "-c", "exit 5"])?.code() == Some(5));
    listener.wait(bundle.id(), EventKind::ExecStopped)?;
    std::fs::write(bundle.rootfs().path().join("go"), "")?;
    listener.wait(bundle.id(), EventKind::Stopped)?;
    wait_until("the runtime sees it", support::PATIENCE, || {
        runtime.state(bundle.id()).ok().filter(|state| state.status == "stopped")
    })?;
    runtime.delete(bundle.id(), false)?;
    let events = listener.wait(bundle.id(), EventKind::Deleted)?;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    let life = ["pre-create", "created", "started", "exec", "exec-stopped", "stopped", "deleted"];
    ensure!(kinds == life, "{kinds:?}");
    check(&events, &bundle, &runtime.path(), init, Some(42))?;
    let of = |kind: &str| events.iter().find(|event| event["event"] == kind).context("no such event");
    ensure!(of("exec")?["exec"]["args"] == serde_json::json!(["/bin/sh", "-c", "exit 5"]), "{}", of("exec")?);
    ensure!(of("exec-stopped")?["exit"]["code"] == 5, "{}", of("exec-stopped")?);
    Ok(())
}

fn check(events: &[Value], bundle: &Bundle, marked: &Path, init: Process, code: Option<i32>) -> Result<()> {
    for event in events {
        let kind = event["event"].as_str().unwrap_or_default();
        let pid = if kind == "pre-create" { Value::Null } else { init.0.into() };
        ensure!(event["pid"] == pid, "the host's pid is {init:?}: {event}");
        let path = Path::new(event["bundle"].as_str().unwrap_or_default());
        // Not the listener's name for it, below its HOST_ROOT.
        ensure!(path == bundle.path(), "not {}: {event}", bundle.path().display());
        let runtime = Path::new(event["runtime"]["path"].as_str().unwrap_or_default());
        ensure!(runtime == marked, "not {}: {event}", marked.display());
        ensure!(event["config"] == bundle.config()?, "another configuration: {event}");
        let held = matches!(kind, "pre-create" | "created" | "started" | "exec");
        ensure!(event["held"] == held, "{event}");
        if kind == "stopped" {
            ensure!(event["exit"]["code"] == serde_json::json!(code), "{event}");
        }
    }
    Ok(())
}

/// `create` and `start` by one process, which is held twice.
fn a_run(runtime: &Runtime, listener: &Elsewhere) -> Result<()> {
    let bundle = Bundle::builder(unique_id("run")).script("exit 7").build()?;
    ensure!(runtime.run(&bundle)?.code() == Some(7));
    let events = listener.wait(bundle.id(), EventKind::Deleted)?;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    ensure!(kinds == ["pre-create", "created", "started", "stopped", "deleted"], "{events:?}");
    let stopped = &events[3];
    ensure!(stopped["exit"]["code"] == 7 && stopped["pid"].is_u64(), "{stopped}");
    Ok(())
}

fn works_with(place: &Place, runtime: &Runtime, capture: Option<CaptureBackend>, used: &str) -> Result<()> {
    let orders = Orders { capture, ..Orders::default() };
    let (listener, status) = place.start(&runtime.path(), &orders)?;
    ensure!(status["capture_backend"] == used, "{place:?}: {status}");
    a_whole_life(runtime, &listener)?;
    a_run(runtime, &listener)?;
    listener.stop()?;
    Ok(())
}

/// Whether the look-up can be had here at all; else the test is skipped, loudly.
fn no_bpf(test: &str) -> Result<bool> {
    let runtime = Runtime::runc()?;
    let builder = support::only([runtime.path()]).capture(CaptureBackend::Lookup);
    match builder.start(|_: &ContainerEvent| ()) {
        Ok(notifier) => {
            notifier.close();
            Ok(false)
        }
        Err(error) => {
            testkit::skip::report(test, &error.to_string());
            Ok(true)
        }
    }
}

#[test]
fn each_backend_in_the_hosts_own_namespaces() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    if no_bpf("each_backend_in_the_hosts_own_namespaces")? {
        return Ok(());
    }
    for backend in [CaptureBackend::Memory, CaptureBackend::Lookup, CaptureBackend::Tracepoint] {
        a_life_in_the_hosts_own_namespaces(backend).with_context(|| format!("{backend:?}"))?;
    }
    Ok(())
}

fn a_life_in_the_hosts_own_namespaces(backend: CaptureBackend) -> Result<()> {
    let runtime = Runtime::runc()?;
    let builder = support::only([runtime.path()]).capture(backend);
    let listener = support::Listener::start(builder, |_: &ContainerEvent| ())?;
    ensure!(listener.status()?.capture_backend == backend);
    let bundle = Bundle::builder(unique_id("lookup")).script("exit 7").build()?;
    let init = runtime.create(&bundle)?;
    runtime.start(bundle.id())?;
    let records = listener.wait(bundle.id(), &support::WHOLE_LIFE[..4])?;
    let stopped = support::the(EventKind::Stopped, &records)?;
    ensure!(stopped.event.pid() == Some(init.0.cast_unsigned()), "{}", stopped.to_json());
    ensure!(stopped.event.exit().and_then(|exit| exit.code) == Some(7), "{}", stopped.to_json());
    runtime.delete(bundle.id(), true)?;
    listener.wait(bundle.id(), &support::WHOLE_LIFE)?;
    listener.close()?;
    Ok(())
}

#[test]
fn a_listener_in_its_own_pid_namespace() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    if no_bpf("a_listener_in_its_own_pid_namespace")? {
        return Ok(());
    }
    let runtime = Runtime::runc()?;
    works_with(&Place::Namespaces, &runtime, None, "lookup")?;
    works_with(&Place::Namespaces, &runtime, Some(CaptureBackend::Tracepoint), "tracepoint")?;
    // What cannot work there is refused, with the reason.
    let orders = Orders { capture: Some(CaptureBackend::Memory), ..Orders::default() };
    match Place::Namespaces.begin(&runtime.path(), &orders)? {
        Begun::Refused(why) => ensure!(why.contains("another pid namespace"), "{why}"),
        Begun::Ready(..) => bail!("from another pid namespace nobody is named by the kernel's event"),
    }
    Ok(())
}

#[test]
fn a_listener_in_a_container() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    if no_bpf("a_listener_in_a_container")? {
        return Ok(());
    }
    let runtime = Runtime::runc()?;
    for (own_pids, used) in [(true, "lookup"), (false, "memory")] {
        let place = Place::Container { own_pids, capabilities: CAPABILITIES.to_vec() };
        works_with(&place, &runtime, None, used)?;
        works_with(&place, &runtime, Some(CaptureBackend::Tracepoint), "tracepoint")?;
        // Without the right to read another process's memory the next best is used.
        let capabilities = CAPABILITIES.into_iter().filter(|it| *it != "CAP_SYS_PTRACE").collect();
        works_with(&Place::Container { own_pids, capabilities }, &runtime, None, "tracepoint")?;
    }
    Ok(())
}

#[test]
fn each_capability_is_needed_or_not_and_never_half() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT * 2);
    if no_bpf("each_capability_is_needed_or_not_and_never_half")? {
        return Ok(());
    }
    let runtime = Runtime::runc()?;
    let mut needed = BTreeSet::new();
    for own_pids in [true, false] {
        for without in CAPABILITIES {
            let capabilities = CAPABILITIES.into_iter().filter(|it| *it != without).collect();
            let place = Place::Container { own_pids, capabilities };
            match place.begin(&runtime.path(), &Orders::default())? {
                Begun::Ready(listener, _) => {
                    a_whole_life(&runtime, &listener).with_context(|| format!("{place:?}"))?;
                    listener.stop()?;
                }
                Begun::Refused(why) => {
                    eprintln!("without {without}, own pids {own_pids}: {why}");
                    ensure!(why.contains(without), "{without} was missing, and not named: {why}");
                    needed.insert((own_pids, without));
                }
            }
        }
    }
    // The tracepoint does without CAP_SYS_PTRACE, and the rest is in what CAP_SYS_ADMIN may.
    let known = BTreeSet::from([(true, "CAP_SYS_ADMIN"), (false, "CAP_SYS_ADMIN")]);
    ensure!(needed == known, "{needed:?}");
    Ok(())
}

#[test]
fn containers_of_an_engine_in_another_mount_namespace() -> Result<()> {
    need!(Root, Busybox, Runc, Containerd);
    let _dog = watchdog(LIMIT);
    if no_bpf("containers_of_an_engine_in_another_mount_namespace")? {
        return Ok(());
    }
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_apart(&runtime)?;
    let id = unique_id("nested");
    // The engine's runtime, which the host does not see, is found through the engine's root.
    let orders = Orders { discover: true, ..Orders::default() };
    let (listener, status) = Place::Namespaces.start(&runtime.path(), &orders)?;
    let copy = containerd.runtime().context("no runtime")?.strip_prefix("/")?;
    let marked = |runtime: &Value| runtime["path"].as_str().is_some_and(|it| Path::new(it).ends_with(copy));
    ensure!(status["runtimes"].as_array().is_some_and(|all| all.iter().any(marked)), "{status}");
    let mut run = containerd.run(&["--rm"], &id, &["/bin/sh", "-c", "sleep 0.2; exit 9"]);
    let mut task = Task::spawn(&mut run)?;
    let created = listener.wait(&id, EventKind::Created)?;
    let created = created.iter().find(|event| event["event"] == "created").context("not created")?;
    let pid = created["pid"].as_i64().with_context(|| created.to_string())? as i32;
    // As the host numbers it: it is the first of a pid namespace right below the host's.
    let ns_pids = Process(pid).ns_pids();
    ensure!(ns_pids.is_empty() || ns_pids == [pid, 1], "{ns_pids:?}: {created}");
    ensure!(created["config"]["process"]["args"][2] == "sleep 0.2; exit 9", "{created}");
    let output = wait_until("it ends", support::PATIENCE, || task.try_wait().ok().flatten())?;
    ensure!(output.code() == Some(9), "{output:?}");
    let events = listener.wait(&id, EventKind::Deleted)?;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    ensure!(kinds == ["pre-create", "created", "started", "stopped", "deleted"], "{kinds:?}");
    ensure!(events[3]["exit"]["code"] == 9 && events[3]["pid"] == pid, "{}", events[3]);
    listener.stop()?;
    Ok(())
}

#[test]
fn what_is_refused_from_another_pid_namespace_never_runs() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    if no_bpf("what_is_refused_from_another_pid_namespace_never_runs")? {
        return Ok(());
    }
    let runtime = Runtime::runc()?;
    for deny in [EventKind::PreCreate, EventKind::Created, EventKind::Started] {
        let orders = Orders { deny: Some(deny), ..Orders::default() };
        let (listener, _) = Place::Namespaces.start(&runtime.path(), &orders)?;
        let bundle = Bundle::builder(unique_id("deny")).script("touch /ran; exit 0").build()?;
        if deny == EventKind::PreCreate {
            ensure!(runtime.create(&bundle).is_err());
        } else {
            runtime.create(&bundle)?;
            // Whether it is the start that fails, or the container's first program, depends on whether a cgroup can be
            // killed here; either way it ends, and nothing of it has run.
            let _ = runtime.start(bundle.id());
            let events = listener.wait(bundle.id(), EventKind::Stopped)?;
            let stopped = events.last().context("no event")?;
            ensure!(stopped["exit"] != serde_json::json!({"code": 0}), "{stopped}");
            let told = events.iter().find(|event| event["event"] == deny.as_str()).context("not told")?;
            ensure!(told["answer"]["decision"] == "deny", "{told}");
            wait_until("the runtime sees it", support::PATIENCE, || {
                runtime.state(bundle.id()).ok().filter(|state| state.status == "stopped")
            })?;
            runtime.delete(bundle.id(), true)?;
            listener.wait(bundle.id(), EventKind::Deleted)?;
        }
        ensure!(!bundle.rootfs().path().join("ran").exists(), "{deny}: it ran");
        listener.stop()?;
    }
    Ok(())
}

/// An argument list that lies in pages of a file that nobody has touched, as a forked program's literals may.
struct Untouched {
    at: usize,
    length: usize,
}

impl Untouched {
    fn new(words: &[OsString]) -> Result<Self> {
        let pointers = (words.len() + 1) * 8;
        let length =
            (pointers + words.iter().map(|word| word.len() + 1).sum::<usize>()).next_multiple_of(4096);
        // SAFETY: a new mapping, which nothing refers to, and which the second one replaces at its place.
        unsafe {
            let (read, private) = (libc::PROT_READ, libc::MAP_PRIVATE);
            let nowhere = std::ptr::null_mut();
            let at = libc::mmap(nowhere, length, read, private | libc::MAP_ANONYMOUS, -1, 0);
            ensure!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            let (mut array, mut text) = (Vec::new(), Vec::new());
            for word in words {
                array.extend((at as usize + pointers + text.len()).to_ne_bytes());
                text.extend(word.as_encoded_bytes());
                text.push(0);
            }
            array.extend([0; 8]);
            array.extend(text);
            array.resize(length, 0);
            let mut file = tempfile::tempfile()?;
            std::io::Write::write_all(&mut file, &array)?;
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            ensure!(libc::mmap(at, length, read, private | libc::MAP_FIXED, fd, 0) == at);
            Ok(Untouched { at: at as usize, length })
        }
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more.
        unsafe { libc::munmap(self.at as *mut libc::c_void, self.length) };
    }
}

/// It is told whole, though not held: never by a part of its arguments.
#[test]
fn arguments_that_no_permitted_way_reads_while_they_are_held_are_told_after_it() -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::process::CommandExt as _;

    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    if no_bpf("arguments_that_no_permitted_way_reads_while_they_are_held_are_told_after_it")? {
        return Ok(());
    }
    let runtime = Runtime::runc()?;
    let capabilities = CAPABILITIES.into_iter().filter(|it| *it != "CAP_SYS_PTRACE").collect();
    let place = Place::Container { own_pids: true, capabilities };
    let (listener, status) = place.start(&runtime.path(), &Orders::default())?;
    ensure!(status["capture_backend"] == "tracepoint", "{status}");
    let bundle = Bundle::builder(unique_id("gap")).script("exit 3").build()?;
    let mut words: Vec<OsString> = vec![runtime.path().into(), "--root".into(), runtime.state_dir().into()];
    words.extend(["create".into(), "--bundle".into(), bundle.path().into()]);
    words.extend(["--pid-file".into(), bundle.pid_file().into(), bundle.id().into()]);
    let untouched = Untouched::new(&words)?;
    let program = std::ffi::CString::new(runtime.path().as_os_str().as_bytes())?;
    let array = untouched.at;
    let mut command = Command::new(runtime.path());
    let execute = move || {
        let environment = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(), std::ptr::null()];
        // SAFETY: the path is a C string, and both arrays are of C strings and end with a null pointer.
        unsafe { libc::execve(program.as_ptr(), array as *const *const libc::c_char, environment.as_ptr()) };
        Err(std::io::Error::last_os_error())
    };
    // SAFETY: the child makes a system call and nothing else.
    unsafe { command.pre_exec(execute) };
    Task::spawn(&mut command)?.wait(LIMIT)?.ok()?;
    let init = bundle.init()?;
    runtime.start(bundle.id())?;
    let events = listener.wait(bundle.id(), EventKind::Stopped)?;
    let of = |kind: &str| events.iter().find(|event| event["event"] == kind).context("no such event");
    let begun = of("pre-create")?;
    ensure!(begun["held"] == false && begun["config"] == bundle.config()?, "{begun}");
    ensure!(of("created")?["pid"] == init.0, "{}", of("created")?);
    ensure!(of("stopped")?["exit"]["code"] == 3, "{}", of("stopped")?);
    runtime.delete(bundle.id(), true)?;
    let said = listener.stop()?;
    ensure!(!said.contains("\"lost\""), "{said}");
    Ok(())
}

#[test]
fn a_backend_that_stops_working_is_replaced_and_that_is_told() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    if no_bpf("a_backend_that_stops_working_is_replaced_and_that_is_told")? {
        return Ok(());
    }
    let runtime = Runtime::runc()?;
    let (listener, status) = Place::Namespaces.start(&runtime.path(), &Orders::default())?;
    ensure!(status["capture_backend"] == "lookup", "{status}");
    a_run(&runtime, &listener)?;
    std::fs::write(listener.scratch.join("break"), "")?;
    let said = |word: &str| listener.task.printed().0.contains(word);
    wait_until("it is broken", support::PATIENCE, || said("broken\n").then_some(()))?;
    // What cannot be read is let go, and told as lost.
    let bundle = Bundle::builder(unique_id("unread")).script("exit 4").build()?;
    ensure!(runtime.run(&bundle)?.code() == Some(4));
    wait_until("it is told as lost", support::PATIENCE, || said("\"event\":\"lost\"").then_some(()))?;
    ensure!(listener.events(bundle.id()).is_empty(), "{:?}", listener.events(bundle.id()));
    wait_until("another one is used", support::PATIENCE, || {
        let bundle = Bundle::builder(unique_id("again")).script("exit 5").build().ok()?;
        (runtime.run(&bundle).ok()?.code() == Some(5)).then_some(())?;
        let told = || listener.events(bundle.id()).iter().any(|event| event["event"] == "deleted");
        wait_until("it is told", Duration::from_secs(2), || told().then_some(())).ok()
    })?;
    a_whole_life(&runtime, &listener)?;
    let said = listener.stop()?;
    ensure!(said.contains("by lookup any more: they are by tracepoint now"), "{said}");
    Ok(())
}
