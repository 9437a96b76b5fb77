//! What containerhook costs and how fast it is. `cargo xtask bench` builds all that is needed and runs this.

mod benchmarks;
mod context;
mod listener;
mod load;
mod machine;
mod page;
mod plot;
mod result;
mod stats;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use context::Context;
use listener::Tools;
use result::{Found, Results};

/// What containerhook costs and how fast it is
#[derive(Debug, Parser)]
struct Bench {
    /// Only these
    names: Vec<String>,
    /// Few rounds: to see that it runs
    #[arg(long)]
    quick: bool,
    /// Where the listeners lie
    #[arg(long)]
    programs: PathBuf,
    /// The stand-in for a runtime
    #[arg(long)]
    standin: PathBuf,
    /// Where results are kept: those of the benchmarks that are run replace what is there
    #[arg(long)]
    results: PathBuf,
    /// Write benchmarks.md and its plots here
    #[arg(long)]
    docs: Option<PathBuf>,
    /// Measure nothing
    #[arg(long)]
    no_run: bool,
}

fn main() -> Result<()> {
    let bench = Bench::parse();
    if let Some(name) = bench.names.iter().find(|name| benchmarks::ALL.iter().all(|b| b.name != **name)) {
        let all: Vec<&str> = benchmarks::ALL.iter().map(|benchmark| benchmark.name).collect();
        bail!("there is no benchmark {name}; there are: {}", all.join(", "));
    }
    let mut results: Results = match std::fs::read(&bench.results) {
        Ok(json) => serde_json::from_slice(&json)
            .with_context(|| format!("{} is not what this program writes", bench.results.display()))?,
        Err(_) => Results::default(),
    };
    // Whatever is stuck: the listeners end with this process.
    let _dog = testkit::watchdog(Duration::from_secs(40 * 60));
    for benchmark in benchmarks::ALL {
        if bench.no_run || !(bench.names.is_empty() || bench.names.iter().any(|name| name == benchmark.name))
        {
            continue;
        }
        let begin = Instant::now();
        let load = machine::load();
        let ctx = Context::new(
            Tools {
                floor: bench.programs.join("bench-floor"),
                listener: bench.programs.join("bench-listener"),
                cli: bench.programs.join("containerhook"),
                standin: bench.standin.clone(),
            },
            bench.quick,
        )?;
        let rows = (benchmark.run)(&ctx).with_context(|| format!("the benchmark {}", benchmark.name))?;
        let quick = if bench.quick { " --quick" } else { "" };
        let found = Found {
            title: benchmark.title.to_owned(),
            command: format!("cargo xtask bench {}{quick}", benchmark.name),
            date: jiff_date(),
            commit: machine::commit(),
            machine: machine::describe(),
            load,
            rows,
            notes: ctx.taken_notes(),
        };
        print!("{}", page::table(&found));
        println!("({:.0} s)\n", begin.elapsed().as_secs_f64());
        results.0.insert(benchmark.name.to_owned(), found);
        // After each, so that one that fails takes nothing with it.
        std::fs::write(&bench.results, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("writing {}", bench.results.display()))?;
    }
    if let Some(docs) = &bench.docs {
        plot::all(&results, docs)?;
        page::write(&results, docs)?;
    }
    Ok(())
}

fn jiff_date() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}
