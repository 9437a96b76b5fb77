//! What a guest boots into: busybox, the runtimes with their libraries, the test programs, and the script that runs them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use testkit::skip::find_program;

use super::cpio::Archive;
use super::kernels::Kernel;
use super::programs::Program;

/// The script: see there what it does.
const INIT: &str = include_str!("guest.sh");

/// Container runtimes, taken from this machine.
const RUNTIMES: &[&str] = &["runc", "crun"];

/// Writes the image for a kernel.
pub(super) fn write(to: &Path, kernel: &Kernel, programs: &[Program]) -> Result<()> {
    let file = File::create(to).with_context(|| format!("making {}", to.display()))?;
    let mut image = Archive::new(BufWriter::new(file));
    let busybox =
        find_program("busybox").context("busybox is not installed; `apt-get install busybox-static`")?;
    image.copy(&busybox, "/bin/busybox")?;
    image.file("/vm/init", INIT.as_bytes())?;
    image.link("/init", "vm/init")?;
    image.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    image.file("/etc/group", b"root:x:0:\nnogroup:x:65534:\n")?;
    let mut libraries = BTreeSet::new();
    for name in RUNTIMES {
        let Some(path) = find_program(name) else {
            bail!("{name} is not installed; `apt-get install --no-install-recommends {name}`");
        };
        image.copy(&path, &format!("/usr/bin/{name}"))?;
        libraries.extend(libraries_of(&path)?);
    }
    for library in libraries {
        image.copy(&library, &library.to_string_lossy())?;
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
