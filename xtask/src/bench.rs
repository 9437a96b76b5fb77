//! `cargo xtask bench`: what containerhook costs and how fast it is.
//!
//! The measuring is done by the crate `benches`; this builds what it needs. See docs/benchmarks.md for what it found.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{cargo, install, root, say};

/// Measure what containerhook costs and how fast it is
///
/// Prints a table for each benchmark and keeps the figures in docs/benchmarks.json, of which docs/benchmarks.md and its
/// plots are made. Nothing else should run meanwhile: the tables say how busy the machine was. Takes half an
/// hour, with --quick four minutes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    /// Only these: idle, hold, containers, engines, latency, throughput, resources
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Few rounds, to see that it runs: nothing in docs is changed
    #[arg(long)]
    quick: bool,
    /// Measure nothing: write docs/benchmarks.md from docs/benchmarks.json
    #[arg(long, conflicts_with_all = ["quick", "names"])]
    write: bool,
}

const EXAMPLES: &str = "Examples:
  sudo -E env PATH=$PATH cargo xtask bench --quick
  sudo -E env PATH=$PATH cargo xtask bench hold latency";

impl Bench {
    /// Its figures say nothing, and are kept nowhere.
    pub(crate) fn to_see_that_it_runs() -> Self {
        let names = ["idle", "hold", "containers", "latency"].map(str::to_owned).to_vec();
        Self { names, quick: true, write: false }
    }

    pub(crate) fn run(&self) -> Result<()> {
        install::need_root("bench")?;
        install::packages(install::BENCH)?;
        say::step("cargo build --release");
        let build = ["build", "--release", "--package", "benches", "--package", "containerhook-cli"];
        succeed(cargo().args(build), "cargo build")?;
        let target = target()?;
        let standin = standin(&target)?;
        let docs = root().join("docs");
        let mut bench = Command::new(target.join("release/bench"));
        bench.current_dir(root()).arg("--programs").arg(target.join("release"));
        bench.arg("--standin").arg(standin).args(&self.names);
        if self.quick {
            bench.arg("--quick").arg("--results").arg(target.join("benchmarks-quick.json"));
        } else {
            bench.arg("--results").arg(docs.join("benchmarks.json")).arg("--docs").arg(docs);
        }
        if self.write {
            bench.arg("--no-run");
        }
        succeed(&mut bench, "the benchmarks")
    }
}

/// The folder that cargo builds in.
fn target() -> Result<PathBuf> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output();
    let output = output.context("starting cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("reading cargo's metadata")?;
    metadata["target_directory"].as_str().map(PathBuf::from).context("cargo names no target directory")
}

/// Compiles the stand-in for a runtime. It has no standard library, and so no unwinding, which cargo decides for a whole
/// workspace only: hence rustc itself.
fn standin(target: &Path) -> Result<PathBuf> {
    let program = target.join("release/bench-standin");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "-O"]);
    for option in [
        "panic=abort",
        "relocation-model=static",
        "target-feature=+crt-static",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "strip=symbols",
    ] {
        command.arg("-C").arg(option);
    }
    command.arg("-o").arg(&program).arg(root().join("benches/standin/standin.rs"));
    succeed(&mut command, "compiling the stand-in")?;
    Ok(program)
}

fn succeed(command: &mut Command, what: &str) -> Result<()> {
    let program = Path::new(command.get_program()).file_name().map(OsStr::to_owned).unwrap_or_default();
    let status = command.status().with_context(|| format!("starting {}", program.display()))?;
    if !status.success() {
        bail!("{what} failed: see its words above");
    }
    Ok(())
}
