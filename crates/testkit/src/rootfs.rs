//! A root file system with busybox in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow};

use crate::scratch::Scratch;
use crate::skip::find_program;
use crate::task;

/// A folder that is a container's root: a static busybox and a link for each of its commands. Clones are the same folder,
/// for containers that share one.
#[derive(Clone, Debug)]
pub struct Rootfs {
    scratch: Arc<Scratch>,
}

impl Rootfs {
    /// Makes one.
    ///
    /// # Errors
    /// When there is no static busybox.
    pub fn busybox() -> Result<Self> {
        let busybox = find_program("busybox").ok_or_else(|| anyhow!(NO_BUSYBOX))?;
        let scratch = Arc::new(Scratch::new()?);
        let root = Self { scratch };
        for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        task::copy_program(&busybox, &root.join("bin/busybox"))?;
        for command in commands(&busybox)? {
            symlink("busybox", root.join("bin").join(command))
                .with_context(|| format!("linking {command}"))?;
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        )?;
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        Ok(root)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.scratch.join("rootfs")
    }

    /// A path in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

const NO_BUSYBOX: &str = "busybox is not installed; `apt-get install --no-install-recommends busybox-static`";

/// Why there is no busybox that runs in an empty root, if there is none.
pub(crate) fn no_static_busybox() -> Option<String> {
    let Some(path) = find_program("busybox") else { return Some(NO_BUSYBOX.to_owned()) };
    // A dynamic one names its loader in a program header at the start of the file.
    let bytes = fs::read(&path).unwrap_or_default();
    let start = &bytes[..bytes.len().min(4096)];
    let dynamic = start.windows(9).any(|w| w == b"/ld-linux" || w == b"/ld-musl-");
    dynamic.then(|| format!("{} is not static; `apt-get install busybox-static`", path.display()))
}

fn commands(busybox: &Path) -> Result<&'static [String]> {
    static COMMANDS: OnceLock<Vec<String>> = OnceLock::new();
    if COMMANDS.get().is_none() {
        let list = task::run(Command::new(busybox).arg("--list"))?.ok()?.stdout;
        let names = list.lines().filter(|name| *name != "busybox" && !name.is_empty());
        let _ = COMMANDS.set(names.map(str::to_owned).collect());
    }
    Ok(COMMANDS.get().map(Vec::as_slice).unwrap_or_default())
}
