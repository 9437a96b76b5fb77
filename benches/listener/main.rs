//! containerhook with a handler that returns at once, for the benchmarks.

use std::sync::Arc;
use std::time::Duration;

use benches::protocol::{self, Stamps};
use clap::Parser;
use containerhook::{CaptureBackend, ContainerEvent, ContainerNotifier, ExitBackend};

/// containerhook with a handler that returns at once
#[derive(Debug, Parser)]
struct Listener {
    /// Mark this runtime
    #[arg(long)]
    runtime: Vec<std::path::PathBuf>,
    /// Look for runtimes, too
    #[arg(long)]
    discover: bool,
    /// Look for them below this folder
    #[arg(long)]
    host_root: Option<std::path::PathBuf>,
    /// Tell of containers that no mark held
    #[arg(long)]
    exec_watch: bool,
    /// auto, bpf, pidfd-info or pidfd
    #[arg(long, default_value = "auto")]
    exits: String,
    /// auto, memory, lookup or tracepoint
    #[arg(long, default_value = "auto")]
    capture: String,
    /// How long the handler sleeps, in milliseconds
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// How long a thread may wait awake, in microseconds
    #[arg(long)]
    busy_wait: Option<u64>,
    /// Stamp each event
    #[arg(long)]
    stamps: bool,
}

fn main() -> anyhow::Result<()> {
    let listener = Listener::parse();
    let stamps = Arc::new(Stamps::default());
    let (theirs, keeps) = (Arc::clone(&stamps), listener.stamps);
    let delay = Duration::from_millis(listener.delay);
    let mut builder = ContainerNotifier::builder()
        .discover(listener.discover)
        .exec_watch(listener.exec_watch)
        .capture(match listener.capture.as_str() {
            "auto" => CaptureBackend::Auto,
            "memory" => CaptureBackend::Memory,
            "lookup" => CaptureBackend::Lookup,
            "tracepoint" => CaptureBackend::Tracepoint,
            other => anyhow::bail!("there is no capture backend {other}"),
        })
        .exit_backend(match listener.exits.as_str() {
            "auto" => ExitBackend::Auto,
            "bpf" => ExitBackend::Bpf,
            "pidfd-info" => ExitBackend::PidfdInfo,
            "pidfd" => ExitBackend::Pidfd,
            other => anyhow::bail!("there is no exit backend {other}"),
        })
        .max_handlers(256);
    if let Some(most) = listener.busy_wait {
        builder = builder.busy_wait(Duration::from_micros(most));
    }
    for runtime in &listener.runtime {
        builder = builder.runtime(runtime);
    }
    if let Some(root) = &listener.host_root {
        builder = builder.host_root(root);
    }
    let notifier = builder.start(move |event: &ContainerEvent| {
        if keeps {
            theirs.push(event.kind().as_str(), event.id());
        }
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
    })?;
    protocol::serve(|request| match request.split_once(' ').unwrap_or((request, "")) {
        ("watch", pids) => {
            let watch = |pid: &str| {
                let number = pid.parse().map_err(|_| format!("{pid} is no pid"))?;
                notifier.watch_termination(pid, number).map_err(|error| error.to_string())
            };
            pids.split(' ').filter_map(|pid| watch(pid).err()).collect()
        }
        ("status", _) => match notifier.status() {
            Ok(status) => serde_json::to_string(&status).into_iter().collect(),
            Err(error) => vec![error.to_string()],
        },
        _ => stamps.drain(),
    });
    notifier.close();
    Ok(())
}
