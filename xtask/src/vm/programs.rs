//! What a guest runs: the test programs, linked statically, and the program itself.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{cargo, root, say};

/// What compiles the programs, and for what.
#[derive(Clone, Debug)]
pub(super) struct Toolchain {
    target: &'static str,
    /// The compiler and the linker, where they are not this machine's own.
    other: Option<(PathBuf, PathBuf)>,
}

impl Toolchain {
    pub(super) fn of_this_machine() -> Self {
        Self { target: "x86_64-unknown-linux-gnu", other: None }
    }

    pub(super) fn cross(target: &'static str, rustc: PathBuf, linker: PathBuf) -> Self {
        Self { target, other: Some((rustc, linker)) }
    }

    fn prepare(&self, command: &mut Command) {
        // Named, so that build scripts and procedural macros, which are loaded by the compiler, are not linked statically.
        command.args(["--target", self.target]);
        let Some((rustc, linker)) = &self.other else { return };
        let variable = format!("CARGO_TARGET_{}_LINKER", self.target.to_uppercase().replace('-', "_"));
        command.env("RUSTC", rustc).env(variable, linker);
        // Set by the toolchain that runs us.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC_WORKSPACE_WRAPPER");
    }
}

/// Something that a guest runs.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) file: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) limit: Duration,
}

/// The name of the one that says what a kernel can do.
pub(super) const DOCTOR: &str = "doctor";

/// Test programs that are not built for a guest, and why. All others are, also those that are written tomorrow.
const LEFT_OUT: &[(&str, &str)] = &[
    ("builds", "needs BuildKit and buildah"),
    ("containerd", "needs containerd"),
    ("cri", "needs containerd"),
    ("docker", "needs Docker"),
    ("fifty", "needs containerd"),
    ("nested", "needs an engine"),
    ("other_runtimes", "needs youki, gVisor, lxc or bubblewrap"),
    ("podman", "needs Podman"),
    ("privileges", "takes four minutes on a real machine; capabilities are the same on each kernel"),
    ("rootless", "needs Podman"),
];

/// Tests that say nothing about a kernel: parsers and the state machine are pure, and are tested on the host. So are
/// measurements. What is left of the library's unit tests is what touches the kernel.
const PURE: &[&str] =
    &["change::", "cmdline::", "config::", "event::", "lifecycle::", "metadata::", "verify::"];

const MINUTE: Duration = Duration::from_secs(60);

/// A program that is longer at it than this is stuck. An emulated machine takes some twenty times as long.
const LIMIT: Duration = Duration::from_secs(900);

/// What says most of a kernel in the least time: the whole life of containers by real runtimes, each way to learn of an
/// end and of a command, memory that ran out, other pid namespaces, and the kernel's own face. CI runs these on every kernel.
const MAIN: &[&str] = &[DOCTOR, "exits", "fanotify-root", "oom", "runc_crun"];

/// Of those, tests that are long and are about the machine's speed rather than its kernel.
const NOT_MAIN: &[&str] = &["of_one_id_at_once_again"];

/// Which programs are wanted.
#[derive(Clone, Debug)]
pub(super) enum Choice {
    Main,
    /// Those whose names contain one of these; all of them if there is none.
    Named(Vec<String>),
}

impl Choice {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Main => MAIN.contains(&name),
            Self::Named(words) => words.is_empty() || words.iter().any(|word| name.contains(word.as_str())),
        }
    }
}

/// The names of all, without building them.
pub(super) fn names() -> Result<Vec<String>> {
    let mut names =
        vec![DOCTOR.to_owned(), "fanotify".to_owned(), "fanotify-root".to_owned(), "lib".to_owned()];
    names.extend(integration_tests()?);
    Ok(names)
}

/// Builds those that are wanted, and what says which capabilities there are.
pub(super) fn build(choice: &Choice, toolchain: &Toolchain, folder: &Path) -> Result<Vec<Program>> {
    let wanted = |name: &str| choice.has(name);
    let mut programs = Vec::new();
    let cli =
        compile(toolchain, folder, &["build", "--package", "containerhook-cli", "--bin", "containerhook"])?;
    let cli = cli.into_iter().next().context("cargo built no containerhook")?.1;
    let arguments = ["doctor", "--json"].map(str::to_owned).to_vec();
    programs.push(Program { name: DOCTOR.to_owned(), file: cli, arguments, limit: MINUTE });
    if wanted("fanotify") || wanted("fanotify-root") {
        for (target, file) in
            compile(toolchain, folder, &["test", "--no-run", "--package", "fanotify", "--lib", "--tests"])?
        {
            let name = if target == "fanotify" { target } else { format!("fanotify-{target}") };
            if wanted(&name) {
                programs.push(Program { name, file, arguments: Vec::new(), limit: LIMIT });
            }
        }
    }
    let tests: Vec<String> = integration_tests()?.into_iter().filter(|name| wanted(name)).collect();
    let mut options = vec!["test", "--no-run", "--package", "containerhook"];
    if wanted("lib") {
        options.push("--lib");
    }
    for name in &tests {
        options.extend(["--test", name]);
    }
    if wanted("lib") || !tests.is_empty() {
        for (target, file) in compile(toolchain, folder, &options)? {
            let is_lib = target == "containerhook";
            let left_out = match choice {
                _ if is_lib => PURE,
                Choice::Main => NOT_MAIN,
                Choice::Named(_) => &[],
            };
            let arguments =
                left_out.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]).collect();
            let name = if is_lib { "lib".to_owned() } else { target };
            programs.push(Program { name, file, arguments, limit: LIMIT });
        }
    }
    Ok(programs)
}

/// The integration tests of the library that a guest can run, by name.
fn integration_tests() -> Result<Vec<String>> {
    let folder = root().join("crates/containerhook/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.retain(|name| !LEFT_OUT.iter().any(|(left, _)| left == name));
    names.sort();
    Ok(names)
}

/// Runs cargo; the target's name and the file of each program that it made.
fn compile(toolchain: &Toolchain, folder: &Path, options: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let shown = if options.len() > 8 { &options[..4] } else { options };
    say::step(&format!("cargo {} (static)", shown.join(" ")));
    let mut command = cargo();
    command.args(options).args(["--message-format", "json-render-diagnostics"]);
    toolchain.prepare(&mut command);
    command.arg("--target-dir").arg(folder);
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    // A guest is given all of them in its memory.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "symbols");
    let mut cargo = command.stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let mut made = Vec::new();
    for line in BufReader::new(cargo.stdout.take().context("cargo's output")?).lines() {
        let Ok(message) = serde_json::from_str::<Value>(&line?) else { continue };
        let target = message["target"]["name"].as_str();
        if let (Some(target), Some(file)) = (target, message["executable"].as_str()) {
            made.push((target.to_owned(), PathBuf::from(file)));
        }
    }
    if !cargo.wait()?.success() {
        bail!("cargo could not build the test programs: see its words above");
    }
    Ok(made)
}
