//! What the repository needs beyond cargo.

mod bench;
mod bpf;
mod ci;
mod demo;
mod install;
mod say;
mod test;
mod vm;

use std::path::{Path, PathBuf};

use clap::Parser;

/// What the repository needs beyond cargo.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 110, after_help = EXAMPLES)]
enum Task {
    Demo(demo::Demo),
    Test(test::Test),
    Bench(bench::Bench),
    /// Compile the BPF object that is committed beside its source
    Bpf {
        /// Write nothing; fail when the committed object is not what the source compiles to
        #[arg(long)]
        check: bool,
    },
    Vm(vm::Vm),
    Ci(ci::Ci),
}

const EXAMPLES: &str = "Examples:
  cargo xtask demo          see a container held and told, from its creation to its end
  cargo xtask test          install what the tests need, and run them all
  cargo xtask test docker   only the tests with docker in their name
  cargo xtask bench --quick   see what it costs
  cargo xtask vm --kernel 6.1   run the tests on another kernel, in a virtual machine
  cargo xtask ci            everything that has to pass before a change is merged";

fn main() -> std::process::ExitCode {
    let result = match Task::parse() {
        Task::Demo(demo) => demo.run(),
        Task::Test(test) => test.run(),
        Task::Bench(bench) => bench.run(),
        Task::Bpf { check } => bpf::run(check),
        Task::Vm(vm) => vm.run(),
        Task::Ci(ci) => ci.run(),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            say::error(&format!("{error:#}"));
            std::process::ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// `cargo`, the one that runs us, in the repository's root and with our tools in reach.
fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("PATH", install::path());
    command
}
