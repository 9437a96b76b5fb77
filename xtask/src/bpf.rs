//! `cargo xtask bpf`: compile the BPF object that is committed beside its source, or check that it is what the source says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

const SOURCE: &str = "containerhook.bpf.c";
const OBJECT: &str = "containerhook.bpf.o";

/// Another clang makes another object, which may be as good; but only the same one can show that the committed object
/// comes from the source. Debian 12 has this one.
const CLANG: &str = "14";

/// Compiles. With `check` the committed object is compared and left alone.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/containerhook/bpf").canonicalize()?;
    let version = clang_version()?;
    if version != CLANG {
        let message = format!(
            "clang {version} is installed, and the committed object is made by clang {CLANG} (apt-get install clang llvm on Debian 12)"
        );
        ensure!(!check, "{message}");
        eprintln!("warning: {message}");
    }

    let scratch = Scratch::new()?;
    let made = compile(&dir, &scratch.0)?;
    let committed = dir.join(OBJECT);
    if check {
        let old = fs::read(&committed).with_context(|| format!("read {}", committed.display()))?;
        ensure!(
            old == made,
            "{} is not what {SOURCE} compiles to: run `cargo xtask bpf`",
            committed.display()
        );
        println!("{OBJECT} is what {SOURCE} compiles to ({} bytes)", made.len());
    } else {
        fs::write(&committed, &made).with_context(|| format!("write {}", committed.display()))?;
        println!("wrote {} ({} bytes)", committed.display(), made.len());
    }
    Ok(())
}

/// The object's bytes. The compiler runs in the source's folder and names everything relative to it, so that the result
/// does not depend on where the repository lies.
fn compile(dir: &Path, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let object = scratch.join(OBJECT);
    run_tool(
        Command::new("clang")
            .args(["-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror"])
            .args(["-target", "bpf", "-mcpu=v3", "-nostdinc"])
            .arg(format!("-ffile-prefix-map={}=.", dir.display()))
            .args(["-c", SOURCE, "-o"])
            .arg(&object)
            .current_dir(dir),
    )?;
    // DWARF only; BTF stays.
    run_tool(Command::new("llvm-strip").arg("-g").arg(&object))?;
    Ok(fs::read(&object)?)
}

fn run_tool(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("start {program} (apt-get install clang llvm provides it)"))?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}

/// The major version.
fn clang_version() -> anyhow::Result<String> {
    let output = Command::new("clang")
        .arg("--version")
        .output()
        .context("start clang (apt-get install clang llvm provides it)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((_, rest)) = text.split_once("clang version ") else {
        bail!("clang --version says: {}", text.trim());
    };
    Ok(rest.chars().take_while(char::is_ascii_digit).collect())
}

/// A folder that goes with us.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Scratch> {
        let dir = std::env::temp_dir().join(format!("containerhook-bpf-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
