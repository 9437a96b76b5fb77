//! Buildah: a runtime executed to build an image, not to run a service.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::runtime::bare_command;
use crate::skip::find_program;
use crate::{Family, Rootfs, Runtime, Scratch, task};

/// Buildah with a storage of its own, and a working container made of a busybox root.
#[derive(Debug)]
pub struct Buildah {
    scratch: Scratch,
    runtime: std::path::PathBuf,
    family: Family,
    container: String,
}

impl Buildah {
    /// Buildah for root, that executes this copy of a runtime.
    ///
    /// # Errors
    /// When it is not installed, or refuses.
    pub fn start_with(runtime: &Runtime) -> Result<Self> {
        let (path, family) = (runtime.path(), runtime.family());
        find_program("buildah").ok_or_else(|| anyhow!("buildah is not installed"))?;
        let mut engine = Self { scratch: Scratch::new()?, runtime: path, family, container: String::new() };
        for folder in ["home", "run", "tmp"] {
            fs::create_dir(engine.scratch.join(folder))?;
        }
        fs::write(
            engine.scratch.join("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n",
        )?;
        let output = task::run(&mut engine.buildah(["from", "--pull-never", "scratch"]))?.ok()?;
        engine.container = output.stdout.trim().to_owned();
        let rootfs = Rootfs::busybox()?;
        task::run(engine.buildah(["add", "--quiet", &engine.container]).arg(rootfs.path()).arg("/"))?.ok()?;
        Ok(engine)
    }

    /// `buildah` for this storage.
    pub fn buildah<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let program = find_program("buildah").unwrap_or_else(|| "buildah".into());
        let mut command = bare_command(self.family, &program);
        command.env("HOME", self.scratch.join("home")).env("TMPDIR", self.scratch.join("tmp"));
        command.env("XDG_RUNTIME_DIR", self.scratch.join("run"));
        command.env("CONTAINERS_CONF", self.scratch.join("containers.conf"));
        command
            .arg("--root")
            .arg(self.scratch.join("storage"))
            .arg("--runroot")
            .arg(self.scratch.join("run/storage"));
        command.args(["--storage-driver", "overlay"]).args(args);
        command
    }

    /// `buildah run --isolation oci --runtime COPY --network none FLAGS CONTAINER ARGS`.
    pub fn run(&self, flags: &[&str], args: &[&str]) -> Command {
        let mut command = self.buildah(["run", "--isolation", "oci", "--network", "none", "--runtime"]);
        command.arg(&self.runtime).args(flags).arg(&self.container).arg("--").args(args);
        command
    }

    /// The name of the working container.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }
}
