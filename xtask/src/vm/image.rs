//! What a guest boots into: busybox, the runtimes with their libraries, the test programs, and the script that runs them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use testkit::skip::find_program;

use super::cpio::Archive;
use super::kernels::Kernel;
use super::programs::Program;

/// The script: see there what it does.
const INIT: &str = include_str!("guest.sh");

/// Container runtimes, taken from this machine.
const RUNTIMES: &[&str] = &["runc", "crun"];

/// What a guest has besides our programs. Each file with where it is put.
#[derive(Debug)]
pub(super) struct Userland {
    busybox: PathBuf,
    files: Vec<(PathBuf, String)>,
}

impl Userland {
    pub(super) fn of_this_machine() -> Result<Self> {
        let found = |name: &str| {
            let package = if name == "busybox" { "busybox-static" } else { name };
            let remedy =
                || format!("{name} is not installed; `apt-get install --no-install-recommends {package}`");
            find_program(name).with_context(remedy)
        };
        let mut files = Vec::new();
        let mut libraries = BTreeSet::new();
        for name in RUNTIMES {
            let path = found(name)?;
            libraries.extend(libraries_of(&path)?);
            files.push((path, format!("/usr/bin/{name}")));
        }
        files.extend(libraries.into_iter().map(|path| (path.clone(), path.to_string_lossy().into_owned())));
        Ok(Self { busybox: found("busybox")?, files })
    }

    /// Of packages of another architecture, unpacked below `tree`: with all of their libraries.
    pub(super) fn of_tree(tree: &Path, triple: &str) -> Result<Self> {
        let found = |name: &str| {
            let folders = ["bin", "usr/bin", "sbin", "usr/sbin"];
            let path = folders.iter().map(|folder| tree.join(folder).join(name)).find(|path| path.exists());
            path.with_context(|| format!("{} has no {name}", tree.display()))
        };
        let mut files = Vec::new();
        for name in RUNTIMES {
            files.push((found(name)?, format!("/usr/bin/{name}")));
        }
        for folder in ["lib".to_owned(), format!("lib/{triple}"), format!("usr/lib/{triple}")] {
            for entry in fs::read_dir(tree.join(&folder)).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                // A link between libraries becomes the file that it leads to.
                if name.contains(".so") && entry.path().is_file() {
                    files.push((entry.path(), format!("/{folder}/{name}")));
                }
            }
        }
        Ok(Self { busybox: found("busybox")?, files })
    }
}

/// Writes the image for a kernel.
pub(super) fn write(to: &Path, kernel: &Kernel, userland: &Userland, programs: &[Program]) -> Result<()> {
    let file = File::create(to).with_context(|| format!("making {}", to.display()))?;
    let mut image = Archive::new(BufWriter::new(file));
    image.copy(&userland.busybox, "/bin/busybox")?;
    image.file("/vm/init", INIT.as_bytes())?;
    image.link("/init", "vm/init")?;
    image.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    image.file("/etc/group", b"root:x:0:\nnogroup:x:65534:\n")?;
    for (file, at) in &userland.files {
        image.copy(file, at)?;
    }
    if let Some(config) = &kernel.config {
        image.copy(config, &format!("/boot/{}", config.file_name().unwrap_or_default().to_string_lossy()))?;
    }
    for (number, module) in kernel.modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        image.copy(module, &format!("/vm/modules/{number}-{name}"))?;
    }
    let mut list = String::new();
    for program in programs {
        let at = format!("/vm/programs/{}", program.name);
        image.copy(&program.file, &at)?;
        let (name, limit, arguments) = (&program.name, program.limit.as_secs(), program.arguments.join(" "));
        let _ = writeln!(list, "{name} {limit} {at} {arguments}");
    }
    image.file("/vm/list", list.as_bytes())?;
    image.finish()?;
    Ok(())
}

/// What the loader would load; nothing for a static program.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/') && Path::new(word).is_file());
    Ok(paths.map(PathBuf::from).collect())
}
