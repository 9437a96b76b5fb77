//! An OCI bundle: a folder with a `config.json` and a root.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Process, Rootfs, Scratch};

/// A bundle on disk, that runc, crun and youki take as it is.
#[derive(Debug)]
pub struct Bundle {
    id: String,
    scratch: Scratch,
    rootfs: Rootfs,
}

/// Makes a [`Bundle`]. Begun by [`Bundle::builder`].
#[derive(Debug)]
#[must_use = "a builder makes nothing until it is built"]
pub struct BundleBuilder {
    id: String,
    rootfs: Option<Rootfs>,
    config: Value,
}

impl Bundle {
    /// A bundle for a container of the id `id`, with the settings of `runc spec`, except that it runs `/bin/true`, has no
    /// terminal, raises no limit, and lives in a cgroup of its own.
    pub fn builder(id: impl Into<String>) -> BundleBuilder {
        BundleBuilder { id: id.into(), rootfs: None, config: default_config() }
    }

    /// The id of the container that runs it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The root file system, as the host sees it.
    #[must_use]
    pub fn rootfs(&self) -> &Rootfs {
        &self.rootfs
    }

    /// The path of `config.json`.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.scratch.join("config.json")
    }

    /// `config.json` as it is now.
    ///
    /// # Errors
    /// When it cannot be read or is not JSON.
    pub fn config(&self) -> Result<Value> {
        let path = self.config_path();
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))
    }

    /// Writes `config.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, config: &Value) -> Result<()> {
        let path = self.config_path();
        fs::write(&path, serde_json::to_vec_pretty(config)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Where [`Runtime::create`](crate::Runtime::create) lets the runtime write init's pid.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.scratch.join("init.pid")
    }

    /// The container's init, from the pid file: no runtime is executed for the answer.
    ///
    /// # Errors
    /// When there is no pid file (yet).
    pub fn init(&self) -> Result<Process> {
        let path = self.pid_file();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Process(text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))?))
    }

    /// What the container that [`Runtime::create`](crate::Runtime::create) made has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        fs::read(self.stdout_path()).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    pub(crate) fn stdout_path(&self) -> PathBuf {
        self.scratch.join("stdout")
    }

    pub(crate) fn stderr_path(&self) -> PathBuf {
        self.scratch.join("stderr")
    }

    /// The cgroup that the container lives in, below each hierarchy's root.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("/{}", self.scratch.name())
    }
}

impl BundleBuilder {
    /// What the container executes.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.config["process"]["args"] = args.into_iter().map(|a| Value::from(a.into())).collect();
        self
    }

    /// Runs `script` by `/bin/sh -c`.
    pub fn script(self, script: &str) -> Self {
        self.args(["/bin/sh", "-c", script])
    }

    /// Adds to its environment, which holds `PATH=/bin` from the start.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        push(&mut self.config["process"]["env"], json!(format!("{name}={value}")));
        self
    }

    /// Its working directory.
    pub fn cwd(mut self, cwd: &str) -> Self {
        self.config["process"]["cwd"] = json!(cwd);
        self
    }

    /// A root shared with other bundles. Without this call the bundle gets a busybox of its own.
    pub fn rootfs(mut self, rootfs: &Rootfs) -> Self {
        self.rootfs = Some(rootfs.clone());
        self
    }

    /// Adds a mount.
    pub fn mount(
        mut self,
        destination: &str,
        kind: &str,
        source: impl AsRef<Path>,
        options: &[&str],
    ) -> Self {
        let source = source.as_ref().to_string_lossy();
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        push(&mut self.config["mounts"], mount);
        self
    }

    /// Shows a file or folder of the host in the container.
    pub fn bind(self, source: impl AsRef<Path>, destination: &str) -> Self {
        self.mount(destination, "bind", source, &["rbind", "rw"])
    }

    /// Adds an annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.config["annotations"][name] = json!(value);
        self
    }

    /// Changes anything else in the config.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Writes the bundle.
    ///
    /// # Errors
    /// When there is no busybox, or no room.
    pub fn build(mut self) -> Result<Bundle> {
        let rootfs = match self.rootfs {
            Some(rootfs) => rootfs,
            None => Rootfs::busybox()?,
        };
        let scratch = Scratch::new()?;
        set_default(&mut self.config["root"]["path"], json!(rootfs.path().to_string_lossy()));
        // On cgroup v1 a container without a path of its own would share one named by its id with everybody's.
        set_default(&mut self.config["linux"]["cgroupsPath"], json!(format!("/{}", scratch.name())));
        let bundle = Bundle { id: self.id, scratch, rootfs };
        bundle.write_config(&self.config)?;
        Ok(bundle)
    }
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn set_default(value: &mut Value, default: Value) {
    if value.is_null() {
        *value = default;
    }
}

/// As `runc spec` writes it, without what a host may refuse: no rlimits (they need CAP_SYS_RESOURCE to be raised), no
/// mqueue and no cgroup mount (not in every kernel or layout).
fn default_config() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true
        },
        "root": {"path": null, "readonly": false},
        "hostname": "testkit",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "annotations": {},
        "linux": {
            "cgroupsPath": null,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys"]
        }
    })
}

impl AsRef<Path> for Bundle {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

impl From<&Bundle> for OsString {
    fn from(bundle: &Bundle) -> Self {
        bundle.path().into()
    }
}
