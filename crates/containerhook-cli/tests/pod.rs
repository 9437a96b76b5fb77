//! The DaemonSet's containers, run by runc as they are written: with their mounts, capabilities, environment, probes and
//! namespaces, and nothing else. They tell containers of the host.
//!
//! One thing is added: this program is linked to the host's C library, so `/lib` and `/usr/lib` are shown read-only. The image's
//! is static. And it marks a copy of runc, which nobody else executes.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use common::{LONG, events, kinds};
use serde_json::{Value, json};
use testkit::{Bundle, Process, Runtime, Scratch, Task, need, skip, unique_id, wait_until, watchdog};

fn overlay(name: &str) -> Result<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes/overlays").join(name);
    let mut rendered = Command::new("kubectl").arg("kustomize").arg(folder).stdout(Stdio::piped()).spawn()?;
    let rendered_out = rendered.stdout.take().context("no pipe")?;
    // It asks no server; of all that `kubectl` can do to a manifest this is the least, and it says the whole as JSON.
    let json = Command::new("kubectl")
        .args(["annotate", "--local", "--filename", "-", "tested=yes", "--output", "json"])
        .stdin(rendered_out)
        .output()?;
    ensure!(rendered.wait()?.success() && json.status.success(), "{json:?}");
    Ok(serde_json::from_slice(&json.stdout)?)
}

/// As `[1][2]…` of a manifest, or an error that names it.
fn words(value: &Value) -> Result<Vec<String>> {
    let words = value.as_array().with_context(|| format!("no list: {value}"))?.iter();
    words.map(|word| Ok(word.as_str().context("no word")?.to_owned())).collect()
}

/// What a kubelet and a runtime make of the pod's one container.
struct Pod {
    bundle: Bundle,
    runc: Runtime,
    task: Task,
    container: Value,
    _root: Scratch,
}

impl Pod {
    fn start(overlay_name: &str, marked: &Path, more: &[&str]) -> Result<Pod> {
        let manifest = overlay(overlay_name)?;
        let spec = &manifest["spec"]["template"]["spec"];
        let container = spec["containers"][0].clone();
        let security = &container["securityContext"];
        ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "{security}");
        let add = words(&security["capabilities"]["add"])?;
        let capabilities: Vec<String> = add.iter().map(|name| format!("CAP_{name}")).collect();
        let root = Scratch::new()?;
        std::fs::create_dir(root.join("root"))?;
        let args = std::iter::once("/containerhook".to_owned()).chain(words(&container["args"])?);
        let args = args.chain(more.iter().map(|word| (*word).to_owned()));
        let args = args.chain(["--no-discover".to_owned(), "--runtime".to_owned()]);
        let args = args.chain([marked.to_str().context("utf-8")?.to_owned()]);
        let mut bundle = Bundle::builder(unique_id("pod")).args(args).mount(
            "/containerhook",
            "bind",
            env!("CARGO_BIN_EXE_containerhook"),
            &["bind", "ro"],
        );
        for libraries in ["/lib", "/lib64", "/usr/lib", "/usr/lib64"] {
            if Path::new(libraries).exists() {
                bundle = bundle.mount(libraries, "bind", libraries, &["rbind", "ro"]);
            }
        }
        for mount in container["volumeMounts"].as_array().context("no mounts")? {
            let volume = spec["volumes"].as_array().context("no volumes")?.iter();
            let volume =
                volume.clone().find(|volume| volume["name"] == mount["name"]).context("no volume")?;
            let at = mount["mountPath"].as_str().context("no path")?;
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            bundle = match (volume["hostPath"]["path"].as_str(), volume["emptyDir"]["medium"].as_str()) {
                (Some(path), None) => {
                    let propagation = match mount["mountPropagation"].as_str() {
                        Some("HostToContainer") => "rslave",
                        None => "rprivate",
                        Some(other) => bail!("{other}"),
                    };
                    bundle.mount(at, "bind", path, &["rbind", access, propagation])
                }
                (None, Some("Memory")) => bundle.mount(at, "tmpfs", "tmpfs", &["nosuid", "nodev", access]),
                _ => bail!("{volume}"),
            };
        }
        for variable in container["env"].as_array().context("no environment")? {
            let [name, value] = ["name", "value"].map(|key| variable[key].as_str().unwrap_or_default());
            bundle = bundle.env(name, value);
        }
        let bundle = bundle.edit(|config| {
            config["root"] =
                json!({"path": root.join("root"), "readonly": security["readOnlyRootFilesystem"]});
            config["process"]["user"] = json!({"uid": security["runAsUser"], "gid": 0});
            config["process"]["noNewPrivileges"] = json!(security["allowPrivilegeEscalation"] == false);
            config["process"]["capabilities"] =
                json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
            // As containerd and CRI-O have it for a pod that is not privileged.
            config["linux"]["maskedPaths"] = json!([
                "/proc/asound",
                "/proc/acpi",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware"
            ]);
            config["linux"]["readonlyPaths"] =
                json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
            if spec["hostPID"] == true {
                let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
                namespaces.retain(|namespace| namespace["type"] != "pid");
            }
        });
        let (bundle, runc) = (bundle.build()?, Runtime::runc()?);
        let task = runc.spawn_run(&bundle)?;
        Ok(Pod { bundle, runc, task, container, _root: root })
    }

    /// What the kubelet would learn by this probe.
    fn probe(&self, name: &str) -> Result<bool> {
        let command = words(&self.container[name]["exec"]["command"])?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        Ok(self.runc.exec(self.bundle.id(), &command)?.code() == Some(0))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let ready = wait_until(&format!("the {name} succeeds"), LONG, || {
                if matches!(self.task.try_wait(), Ok(Some(_)) | Err(_)) {
                    return Some(false);
                }
                self.probe(name).ok().filter(|ready| *ready)
            });
            ensure!(ready.with_context(|| self.said())?, "it ended: {}", self.said());
        }
        Ok(())
    }

    fn said(&self) -> String {
        let (out, err) = self.task.printed();
        format!("{out}{err}")
    }

    fn wait_for(&self, id: &str, kind: &str) -> Result<Vec<Value>> {
        let told = || {
            let events = events(&self.task.printed().0);
            events.iter().any(|event| event["id"] == id && event["event"] == kind).then_some(events)
        };
        wait_until(&format!("{kind} of {id}"), LONG, told).with_context(|| self.said())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.runc.delete(self.bundle.id(), true);
    }
}

/// A container of the host is told by its host's pid and paths.
fn tells(overlay: &str, capture: &str) -> Result<()> {
    let _dog = watchdog(LONG * 3);
    let marked = Runtime::runc()?;
    let mut pod = Pod::start(overlay, &marked.path(), &["--config", "--capture", capture])?;
    pod.wait_until_ready()?;
    let bundle = Bundle::builder(unique_id("host"))
        .script("while ! [ -e /go ]; do sleep 0.01; done; exit 42")
        .build()?;
    let init = marked.create(&bundle)?;
    marked.start(bundle.id())?;
    std::fs::write(bundle.rootfs().path().join("go"), "")?;
    pod.wait_for(bundle.id(), "stopped")?;
    wait_until("runc sees its end", LONG, || {
        marked.state(bundle.id()).ok().filter(|state| state.status == "stopped")
    })?;
    marked.delete(bundle.id(), false)?;
    let events = pod.wait_for(bundle.id(), "deleted")?;
    let life = ["pre-create", "created", "started", "stopped", "deleted"];
    assert_eq!(kinds(&events, bundle.id()), life, "{}", pod.said());
    for event in events.iter().filter(|event| event["id"] == bundle.id()) {
        let kind = event["event"].as_str().unwrap_or_default();
        ensure!(event["pid"] == if kind == "pre-create" { Value::Null } else { init.0.into() }, "{event}");
        let path = |value: &Value| value.as_str().map(PathBuf::from);
        ensure!(path(&event["bundle"]).as_deref() == Some(bundle.path()), "{event}");
        ensure!(path(&event["runtime"]["path"]) == Some(marked.path()), "{event}");
        ensure!(event["config"] == bundle.config()?, "{event}");
        ensure!(event["held"] == ["pre-create", "created", "started"].contains(&kind), "{event}");
        ensure!(kind != "stopped" || event["exit"]["code"] == 42, "{event}");
    }
    // It ends as a pod is ended.
    let outer = pod.runc.state(pod.bundle.id())?.init;
    outer.kill(libc::SIGTERM)?;
    let end = wait_until("it ends", LONG, || pod.task.try_wait().ok().flatten())?;
    ensure!(end.code() == Some(0), "{end:?}");
    Ok(())
}

macro_rules! pods {
    ($($name:ident: $overlay:literal $capture:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            need!(Root, Runc, Busybox);
            if testkit::skip::find_program("kubectl").is_none() {
                skip!("kubectl is not installed: it renders the manifests");
            }
            tells($overlay, $capture)
        }
    )*};
}

pods! {
    with_the_hosts_pids_by_memory: "host-pid" "memory";
    with_the_hosts_pids_by_the_tracepoint: "host-pid" "tracepoint";
    with_pids_of_its_own_by_looking_up: "own-pid" "lookup";
    with_pids_of_its_own_by_the_tracepoint: "own-pid" "tracepoint";
    with_pids_of_its_own_by_what_works: "own-pid" "auto";
}

/// A probe fails from the moment that nobody listens, and succeeds again when another listener does.
#[test]
fn probes_follow_the_listener() -> Result<()> {
    need!(Root, Runc, Busybox);
    if testkit::skip::find_program("kubectl").is_none() {
        skip!("kubectl is not installed: it renders the manifests");
    }
    let _dog = watchdog(LONG * 3);
    let marked = Runtime::runc()?;
    let mut pod = Pod::start("host-pid", &marked.path(), &[])?;
    pod.wait_until_ready()?;
    let supervisor = pod.runc.state(pod.bundle.id())?.init;
    let listener = |supervisor: Process| supervisor.children().first().copied();
    let first = listener(supervisor).context("no listener")?;
    first.kill(libc::SIGSTOP)?;
    wait_until("the one that is stopped is replaced", LONG, || {
        (pod.task.printed().1.matches("ready: 1 runtime marked").count() == 2).then_some(())
    })
    .with_context(|| pod.said())?;
    ensure!(!first.is_alive());
    pod.wait_until_ready()?;
    // Nobody to replace it: the file is left behind, and deceives nobody.
    let file = format!("/proc/{}/root/run/ready/file", supervisor.0);
    let copy = std::fs::File::open(&file)?;
    ensure!(common::run(&["ready", &file]).status.success());
    supervisor.kill(libc::SIGKILL)?;
    let end = wait_until("it ends", LONG, || pod.task.try_wait().ok().flatten());
    end?;
    let left = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    let reopened = std::fs::File::open(left)?;
    rustix::fs::flock(&reopened, rustix::fs::FlockOperation::NonBlockingLockShared)?;
    Ok(())
}
