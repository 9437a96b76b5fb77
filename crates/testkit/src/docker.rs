//! Docker: a daemon of its own, and its client.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::daemon::Daemon;
use crate::image::Archive;
use crate::skip::find_program;
use crate::{Family, Process, Runtime, Scratch, task};

/// A dockerd with a containerd below it, and the image [`BUSYBOX`](crate::BUSYBOX). Its containers have no network but
/// `none` and `host`.
#[derive(Debug)]
pub struct Dockerd {
    // In the order in which they have to end.
    daemon: Daemon,
    scratch: Scratch,
}

impl Dockerd {
    /// Starts one that executes the installed runc.
    ///
    /// # Errors
    /// When it is not installed or does not start; the error has the end of its log.
    pub fn start() -> Result<Self> {
        Self::new(None)
    }

    /// Starts one that executes this copy of a runtime.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(runtime: &Runtime) -> Result<Self> {
        Self::new(Some(runtime))
    }

    fn new(runtime: Option<&Runtime>) -> Result<Self> {
        let program = find_program("dockerd").ok_or_else(|| anyhow!("dockerd is not installed"))?;
        let scratch = Scratch::new()?;
        let mut command = Command::new(program);
        // A file of its own, for the host's /etc/docker/daemon.json may contradict the flags.
        let config = scratch.join("daemon.json");
        fs::write(&config, "{}")?;
        command.arg("--config-file").arg(config);
        command.arg("--data-root").arg(scratch.join("root")).arg("--exec-root").arg(scratch.join("exec"));
        command.arg("--pidfile").arg(scratch.join("pid")).arg("-H").arg(address(&scratch));
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"]);
        // The systemd driver wants slices for parents, and a systemd.
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.arg(format!("--cgroup-parent=/{}", scratch.name()));
        if let Some(runtime) = runtime {
            // BuildKit takes the first runc in PATH, whatever the default runtime is.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folder = runtime.path().parent().map(Path::to_owned);
            command
                .env("PATH", std::env::join_paths(folder.into_iter().chain(std::env::split_paths(&path)))?);
            let name = format!("copied-{}", runtime.family().name());
            command.arg(format!("--add-runtime={name}={}", runtime.path().display()));
            command.arg(format!("--default-runtime={name}"));
            if runtime.family() == Family::Crun && crate::runtime::is_hybrid() {
                // The whole engine, for the shim executes the runtime without our help.
                crate::sys::without_unified_cgroup(&mut command);
            }
        }
        let ready = || {
            let mut ask = docker(&scratch, ["version"]);
            scratch.join("d.sock").exists() && task::run(&mut ask).is_ok_and(|o| o.status.success())
        };
        let daemon = Daemon::start(&mut command, scratch.join("dockerd.log"), ready)?;
        let engine = Self { daemon, scratch };
        let image = Archive::busybox()?;
        task::run(engine.docker(["load", "--quiet", "--input"]).arg(image.path()))?.ok()?;
        Ok(engine)
    }

    /// The daemon.
    #[must_use]
    pub fn process(&self) -> Process {
        self.daemon.process()
    }

    /// Docker's client, for this daemon.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        docker(&self.scratch, args)
    }

    /// `docker run --network none FLAGS IMAGE ARGS`.
    pub fn run(&self, flags: &[&str], args: &[&str]) -> Command {
        let mut command = self.docker(["run", "--network", "none"]);
        command.args(flags).arg(crate::BUSYBOX).args(args);
        command
    }

    /// What `docker inspect` says about one field, such as `.State.Pid`.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn inspect(&self, container: &str, field: &str) -> Result<String> {
        let format = format!("{{{{{field}}}}}");
        let output = task::run(&mut self.docker(["inspect", "--format", &format, container]))?.ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    /// The folder in which the bundle of the container with this (whole) id lies while it exists.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.scratch.join("exec/containerd/daemon/io.containerd.runtime.v2.task/moby").join(id)
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.daemon.log_tail()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // Killed shims leave their sockets outside the scratch folder. runc's state lies inside, in the exec-root.
        let tasks = self.scratch.join("exec/containerd/daemon/io.containerd.runtime.v2.task/moby");
        crate::containerd::remove_shim_sockets(&tasks);
    }
}

fn address(scratch: &Scratch) -> String {
    format!("unix://{}", scratch.join("d.sock").display())
}

fn docker<S: AsRef<OsStr>>(scratch: &Scratch, args: impl IntoIterator<Item = S>) -> Command {
    // Debian's own before another that may lie earlier in PATH: it is the one that fits the daemon.
    let debian = Path::new("/usr/bin/docker");
    let program = if debian.exists() { Some(debian.to_owned()) } else { find_program("docker") };
    let mut command = Command::new(program.unwrap_or_else(|| "docker".into()));
    // Nothing of the person who runs the tests: no credentials, no context, no proxy settings.
    command
        .env("DOCKER_CONFIG", scratch.join("client"))
        .env_remove("DOCKER_CONTEXT")
        .env_remove("DOCKER_HOST");
    command.arg("-H").arg(address(scratch)).args(args);
    command
}
