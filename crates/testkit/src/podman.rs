//! Podman, for root and for a user who is not.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};

use crate::image::{Archive, PAUSE};
use crate::runtime::bare_command;
use crate::skip::find_program;
use crate::{Family, Runtime, Scratch, task};

/// Podman with a storage of its own, no daemon, and the image [`BUSYBOX`](crate::BUSYBOX).
#[derive(Debug)]
pub struct Podman {
    user: Option<User>,
    scratch: Scratch,
    conmon: PathBuf,
    family: Family,
}

impl Podman {
    /// Podman for root, that executes this copy of a runtime, by a copy of conmon.
    ///
    /// # Errors
    /// When it is not installed, or refuses.
    pub fn start_with(runtime: &Runtime) -> Result<Self> {
        Self::new(runtime, None)
    }

    /// Podman for a user who is made for this, that executes this copy of a runtime, by a copy of conmon. Its containers
    /// have no network but `none` and `host`.
    ///
    /// # Errors
    /// When it is not installed, or refuses.
    pub fn rootless_with(runtime: &Runtime) -> Result<Self> {
        Self::new(runtime, Some(User::add()?))
    }

    fn new(runtime: &Runtime, user: Option<User>) -> Result<Self> {
        let installed = find_program("conmon").ok_or_else(|| anyhow!("conmon is not installed"))?;
        let scratch = Scratch::new()?;
        let engine = Self { user, conmon: scratch.join("conmon"), family: runtime.family(), scratch };
        task::copy_program(&installed, &engine.conmon)?;
        for folder in ["home", "run", "tmp"] {
            fs::create_dir(engine.scratch.join(folder))?;
        }
        let text = config_text(&engine.scratch, runtime, &engine.conmon);
        fs::write(engine.scratch.join("containers.conf"), text)?;
        fs::write(engine.scratch.join("storage.conf"), storage_text(&engine.scratch))?;
        // A missing policy is an error to Podman, and a host may have a strict one.
        fs::create_dir_all(engine.scratch.join("home/.config/containers"))?;
        let policy = engine.scratch.join("home/.config/containers/policy.json");
        fs::write(policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        if let Some(user) = &engine.user {
            own(engine.scratch.path(), user.id)?;
        }
        for image in [Archive::busybox()?, Archive::pause()?] {
            task::run(engine.podman(["load", "--quiet", "--input"]).arg(image.path()))?.ok()?;
        }
        Ok(engine)
    }

    /// `podman` for this storage.
    pub fn podman<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.bare("podman");
        command.args(args);
        command
    }

    /// `podman run --network none FLAGS IMAGE ARGS`.
    pub fn run(&self, flags: &[&str], args: &[&str]) -> Command {
        let mut command = self.podman(["run", "--network", "none"]);
        command.args(flags).arg(crate::BUSYBOX).args(args);
        command
    }

    /// What `podman inspect` says about one field, such as `.State.Pid`.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn inspect(&self, container: &str, field: &str) -> Result<String> {
        let format = format!("{{{{{field}}}}}");
        let output = task::run(&mut self.podman(["inspect", "--format", &format, container]))?.ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    /// The copy of conmon that it executes.
    #[must_use]
    pub fn conmon(&self) -> &Path {
        &self.conmon
    }

    /// The uid of the user who runs it.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.user.as_ref().map_or(0, |user| user.id)
    }

    fn bare(&self, program: &str) -> Command {
        let program = find_program(program).unwrap_or_else(|| program.into());
        let mut command = match &self.user {
            None => bare_command(self.family, &program),
            Some(user) => {
                let mut command = Command::new(program);
                command.uid(user.id).gid(user.id).env("USER", &user.name).env("LOGNAME", &user.name);
                // Podman looks at its folder, and the caller's may be closed to this user.
                command.current_dir(self.scratch.path());
                command
            }
        };
        command.env("HOME", self.scratch.join("home"));
        command.env("TMPDIR", self.scratch.join("tmp"));
        command.env("XDG_RUNTIME_DIR", self.scratch.join("run"));
        command.env("CONTAINERS_CONF", self.scratch.join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.scratch.join("storage.conf"));
        for name in ["DBUS_SESSION_BUS_ADDRESS", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "CONTAINER_HOST"] {
            command.env_remove(name);
        }
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if self.user.is_none() {
            // Only Podman knows the cgroups of its containers, which carry their ids and not our name.
            let _ = task::run(&mut self.podman(["rm", "--all", "--force", "--time", "0"]));
            let _ = task::run(&mut self.podman(["pod", "rm", "--all", "--force"]));
        }
    }
}

/// A user of this host. Dropping it ends its processes and removes it.
#[derive(Debug)]
struct User {
    name: String,
    id: u32,
}

/// The user database has one lock, and those who find it taken give up.
static USERS: Mutex<()> = Mutex::new(());

impl User {
    fn add() -> Result<Self> {
        let _lock = USERS.lock();
        let name = format!("chk{:x}", u64::from(std::process::id()) << 12 | u64::from(Self::count()));
        let shell = [
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
            "--shell",
            "/usr/sbin/nologin",
            "--user-group",
        ];
        task::run(Command::new(admin("useradd")).args(shell).arg(&name))?.ok()?;
        let number = task::run(Command::new("id").args(["-u", &name]))?.ok()?.stdout;
        let id = number.trim().parse().with_context(|| format!("id -u {name} printed {number:?}"))?;
        let user = Self { name, id };
        let ids = fs::read_to_string("/etc/subuid").unwrap_or_default();
        anyhow::ensure!(
            ids.lines().any(|line| line.split(':').next() == Some(&user.name)),
            "useradd gave {} no range in /etc/subuid: set SUB_UID_COUNT in /etc/login.defs",
            user.name
        );
        Ok(user)
    }

    fn count() -> u16 {
        static COUNT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _lock = USERS.lock();
        for process in crate::processes() {
            let owner = fs::metadata(process.path("")).map(|m| std::os::unix::fs::MetadataExt::uid(&m));
            if owner.is_ok_and(|uid| uid == self.id) {
                let _ = process.kill(libc::SIGKILL);
            }
        }
        let removed = task::run(Command::new(admin("userdel")).args(["--force", &self.name]));
        if let Err(error) = removed.and_then(task::Output::ok) {
            eprintln!("testkit: removing the user {}: {error:#}", self.name);
        }
    }
}

fn admin(program: &str) -> PathBuf {
    find_program(program).unwrap_or_else(|| program.into())
}

fn own(folder: &Path, id: u32) -> Result<()> {
    chown(folder, Some(id), Some(id))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            own(&entry.path(), id)?;
        } else {
            chown(entry.path(), Some(id), Some(id))?;
        }
    }
    Ok(())
}

/// No `static_dir`: the `podman container cleanup` that conmon executes is told `--root`, and looks for its database there;
/// with another folder it finds none, and `podman run --rm` waits 20 s for it.
fn config_text(scratch: &Scratch, runtime: &Runtime, conmon: &Path) -> String {
    let (w, name) = (scratch.path().display(), format!("copied-{}", runtime.family().name()));
    format!(
        r#"[containers]
# The defaults are higher than what a machine without CAP_SYS_RESOURCE has.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
infra_image = "{PAUSE}"
runtime = "{name}"
conmon_path = ["{conmon}"]
tmp_dir = "{w}/run/libpod"
[engine.runtimes]
{name} = ["{path}"]
[network]
network_config_dir = "{w}/networks"
"#,
        conmon = conmon.display(),
        path = runtime.path().display(),
    )
}

/// A `runroot` of more than 50 characters is taken by every command but the cleanup that conmon executes, which refuses it.
fn storage_text(scratch: &Scratch) -> String {
    let w = scratch.path().display();
    format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{w}/storage\"\nrunroot = \"{w}/r\"\n\
         rootless_storage_path = \"{w}/storage\"\n"
    )
}
