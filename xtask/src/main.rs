//! What the repository needs beyond cargo.

mod bpf;

use clap::Parser;

/// What the repository needs beyond cargo.
#[derive(Parser)]
enum Task {
    /// Compile the BPF object.
    Bpf {
        /// Only compare the committed one.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Bpf { check } => bpf::run(check),
    }
}
