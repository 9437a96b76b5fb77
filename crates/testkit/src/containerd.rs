//! containerd, with `ctr` as its client.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::daemon::Daemon;
use crate::image::{Archive, BUSYBOX, PAUSE};
use crate::skip::find_program;
use crate::{Family, Process, Runtime, Scratch, task};

/// A containerd of its own: root, state, socket and namespace, with the image [`BUSYBOX`].
#[derive(Debug)]
pub struct Containerd {
    // In the order in which they have to end.
    daemon: Daemon,
    scratch: Scratch,
    runtime: Option<PathBuf>,
    /// In a mount namespace of its own.
    apart: bool,
}

impl Containerd {
    /// Starts one that executes the installed runc.
    ///
    /// # Errors
    /// When it is not installed or does not start; the error has the end of its log.
    pub fn start() -> Result<Self> {
        Self::new(None, false, false)
    }

    /// Starts one that executes this copy of a runtime.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(runtime: &Runtime) -> Result<Self> {
        Self::new(Some(runtime), false, false)
    }

    /// Starts one with the CRI plugin and an image for sandboxes. The plugin executes the copy, where one is given.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_cri(runtime: Option<&Runtime>) -> Result<Self> {
        Self::new(runtime, true, false)
    }

    /// Starts one in a mount namespace of its own, where a file system that the host does not see has its bundles and a
    /// copy of this runtime, which is the first in its `PATH`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_apart(runtime: &Runtime) -> Result<Self> {
        Self::new(Some(runtime), false, true)
    }

    fn new(runtime: Option<&Runtime>, cri: bool, apart: bool) -> Result<Self> {
        let program = find_program("containerd").ok_or_else(|| anyhow!("containerd is not installed"))?;
        let scratch = Scratch::new()?;
        let config = scratch.join("config.toml");
        let copy = runtime.map(Runtime::path);
        let name = |copy: &PathBuf| scratch.join("apart").join(copy.file_name().unwrap_or_default());
        let path = if apart { copy.as_ref().map(name) } else { copy.clone() };
        fs::write(&config, config_text(&scratch, path.as_deref(), cri, &state(&scratch, apart)))?;
        let mut command = Command::new(&program);
        if let Some(copy) = copy.filter(|_| apart) {
            fs::create_dir(scratch.join("apart"))?;
            command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-e", "-c"]);
            command.arg(r#"mount -t tmpfs apart "$1"; cp "$2" "$1"; shift 2; exec "$@""#).arg("sh");
            command.arg(scratch.join("apart")).arg(copy).arg(program);
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(scratch.join("apart")).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(folders)?);
        }
        command.arg("--config").arg(&config);
        if runtime.is_some_and(|r| r.family() == Family::Crun) && crate::runtime::is_hybrid() {
            // The whole engine, for the shim executes the runtime without our help.
            crate::sys::without_unified_cgroup(&mut command);
        }
        let ready = || {
            let mut ask = ctr(&scratch, ["version"]);
            scratch.join("c.sock").exists() && task::run(&mut ask).is_ok_and(|o| o.status.success())
        };
        let daemon = Daemon::start(&mut command, scratch.join("containerd.log"), ready)?;
        let engine = Self { daemon, scratch, runtime: path, apart };
        engine.import(&engine.namespace(), &Archive::busybox()?)?;
        if cri {
            engine.import(CRI_NAMESPACE, &Archive::busybox()?)?;
            engine.import(CRI_NAMESPACE, &Archive::pause()?)?;
        }
        Ok(engine)
    }

    fn import(&self, namespace: &str, image: &Archive) -> Result<()> {
        let mut command =
            ctr(&self.scratch, ["-n", namespace, "images", "import", "--snapshotter", "overlayfs"]);
        task::run(command.arg(image.path()))?.ok().map(drop)
    }

    /// The daemon.
    #[must_use]
    pub fn process(&self) -> Process {
        self.daemon.process()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("c.sock")
    }

    /// The containerd namespace of [`ctr`](Self::ctr).
    #[must_use]
    pub fn namespace(&self) -> String {
        self.scratch.name()
    }

    /// The folder in which the bundle of the container `id` lies while it exists.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        state(&self.scratch, self.apart).join("io.containerd.runtime.v2.task").join(self.namespace()).join(id)
    }

    /// The runtime that [`run`](Self::run) names, as the daemon sees it.
    #[must_use]
    pub fn runtime(&self) -> Option<&Path> {
        self.runtime.as_deref()
    }

    /// `ctr` for this daemon and its namespace.
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = ctr(&self.scratch, ["-n", &self.namespace()]);
        command.args(args);
        command
    }

    /// `ctr run FLAGS [--runc-binary COPY] IMAGE ID ARGS`.
    pub fn run(&self, flags: &[&str], id: &str, args: &[&str]) -> Command {
        let mut command = self.ctr(["run", "--snapshotter", "overlayfs"]);
        if let Some(runtime) = &self.runtime {
            command.arg("--runc-binary").arg(runtime);
        }
        command.args(flags).args([BUSYBOX, id]).args(args);
        command
    }

    /// The folder for the logs of CRI containers.
    pub(crate) fn logs(&self) -> PathBuf {
        self.scratch.join("logs")
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.daemon.log_tail()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Killed shims leave what lies outside the scratch folder: their sockets, and runc's state.
        let mut tasks = state(&self.scratch, self.apart).join("io.containerd.runtime.v2.task");
        if self.apart {
            let root = PathBuf::from(format!("/proc/{}/root", self.process().0));
            tasks = root.join(tasks.strip_prefix("/").unwrap_or(&tasks));
        }
        for namespace in folders(&tasks) {
            remove_shim_sockets(&namespace);
            for bundle in folders(&namespace) {
                let id = bundle.file_name().unwrap_or_default().to_owned();
                let states =
                    Path::new("/run/containerd/runc").join(namespace.file_name().unwrap_or_default());
                let _ = fs::remove_dir_all(states.join(id));
            }
        }
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(self.namespace()));
    }
}

pub(crate) const CRI_NAMESPACE: &str = "k8s.io";

fn ctr<S: AsRef<OsStr>>(scratch: &Scratch, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(find_program("ctr").unwrap_or_else(|| "ctr".into()));
    command.arg("--address").arg(scratch.join("c.sock")).args(args);
    command
}

/// Removes the sockets in `/run/containerd/s` of the shims whose bundles lie in this folder.
pub(crate) fn remove_shim_sockets(bundles: &Path) {
    for bundle in folders(bundles) {
        if let Ok(address) = fs::read_to_string(bundle.join("address")) {
            let _ = fs::remove_file(address.trim().trim_start_matches("unix://"));
        }
    }
}

fn folders(of: &Path) -> Vec<PathBuf> {
    fs::read_dir(of).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

/// The folder of the daemon's state, where the bundles lie.
fn state(scratch: &Scratch, apart: bool) -> PathBuf {
    scratch.join(if apart { "apart/state" } else { "state" })
}

fn config_text(scratch: &Scratch, runtime: Option<&Path>, cri: bool, state: &Path) -> String {
    let (w, state) = (scratch.path().display(), state.display());
    // The other snapshotters only complain about what this host lacks; the default folder of "opt" is the host's.
    let mut disabled = vec!["aufs", "btrfs", "devmapper", "zfs"]
        .into_iter()
        .map(|s| format!("\"io.containerd.snapshotter.v1.{s}\""))
        .collect::<Vec<_>>();
    if !cri {
        disabled.push("\"io.containerd.grpc.v1.cri\"".into());
    }
    let options = runtime.map_or_else(String::new, |path| format!("BinaryName = \"{}\"", path.display()));
    format!(
        r#"version = 2
root = "{w}/root"
state = "{state}"
disabled_plugins = [{disabled}]
[grpc]
  address = "{w}/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{w}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # A container cannot be created where the engine may not lower the score: runc says "can't get final child's PID".
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        {options}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{w}/cni"
"#,
        disabled = disabled.join(", ")
    )
}
