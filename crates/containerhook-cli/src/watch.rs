//! `containerhook watch`: prints events as they come, until it is told to end.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use containerhook::{Builder, ContainerEvent, ContainerNotifier, EventKind, Record};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::args::{Global, ListenArgs, OnTimeoutArg, duration, event_kind};
use crate::failure::EXIT_CODES;
use crate::output::{self, Pen};
use crate::signals::{self, End};
use crate::table::{Clock, Table};

const EXAMPLES: &str = "\
Examples:
  containerhook watch                            a table of every event
  containerhook watch --json | jq -r .id         one JSON object a line (docs/events.md)
  containerhook watch --event created,stopped    these two kinds only
  containerhook watch --delay 3s                 see a container wait for three seconds";

/// Prints what happens to containers, as it happens
///
/// Every container runtime found on the host is listened to. Each container created from then on is held for a moment
/// at each step, told, and let go. Ctrl-C ends it: what is held goes on, and nothing is left behind.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    listen: ListenArgs,

    /// Print (and hold) these kinds of events only; repeatable, or separated by commas
    ///
    /// Containers are followed all the same: `--event stopped` alone tells every end. `overflow` and `lost` are always
    /// printed, for without them the rest could not be believed.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = event_kind(), help_heading = "Which events")]
    event: Vec<EventKind>,
    /// Tell the containers first that run already
    #[arg(long, help_heading = "Which events")]
    existing: bool,

    /// Print one JSON object a line
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Add each container's OCI configuration to the JSON
    #[arg(long, requires = "json", help_heading = "Output")]
    config: bool,
    /// Show the time since the start instead of the time of day
    #[arg(long, conflicts_with = "json", help_heading = "Output")]
    since_start: bool,
    /// Show ids of 64 hexadecimal digits whole
    #[arg(long, conflicts_with = "json", help_heading = "Output")]
    no_trunc: bool,

    /// How long a container may be held at each step before it goes on by itself; at most 2m
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Holding")]
    deadline: Option<Duration>,
    /// What becomes of a container whose time has passed: allow or deny
    #[arg(
        long,
        value_name = "CHOICE",
        default_value = "allow",
        hide_possible_values = true,
        help_heading = "Holding"
    )]
    on_timeout: OnTimeoutArg,
    /// Hold every container this long before its runtime creates it: for demonstrations
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Holding")]
    delay: Option<Duration>,

    /// End after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Running")]
    duration: Option<Duration>,
    /// Write this file once every runtime is listened to (`ready: …` is also printed to stderr)
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    ready_file: Option<PathBuf>,
}

impl WatchArgs {
    fn builder(&self) -> Builder {
        let mut builder = self.listen.builder().on_timeout(self.on_timeout.into()).existing(self.existing);
        if !self.event.is_empty() {
            let always = [EventKind::Overflow, EventKind::Lost];
            builder = builder.events(self.event.iter().copied().chain(always));
        }
        if let Some(deadline) = self.deadline {
            builder = builder.deadline(deadline);
        }
        builder
    }

    fn printer(&self, global: &Global) -> Printer {
        if self.json {
            return Printer::Json { config: self.config };
        }
        let clock =
            if self.since_start { Clock::Since(Timestamp::now()) } else { Clock::Day(TimeZone::system()) };
        Printer::Table(Table::new(clock, Pen { colored: global.color.on_stdout() }, self.no_trunc))
    }
}

enum Printer {
    Json { config: bool },
    Table(Table),
}

impl Printer {
    fn print(&mut self, record: &Record) -> io::Result<()> {
        match self {
            Printer::Json { config: true } => output::line(&record.to_json_with_config()),
            Printer::Json { config: false } => output::line(&record.to_json()),
            Printer::Table(table) => {
                let width = output::width();
                if let Some(head) = table.head(width) {
                    output::line(&head)?;
                }
                output::line(&table.line(&serde_json::to_value(record)?, width))
            }
        }
    }
}

pub(crate) fn run(args: &WatchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let (end, ended) = mpsc::channel();
    signals::tell(end.clone()).context("cannot listen for signals")?;

    let printer = Mutex::new(args.printer(global));
    let closed = end.clone();
    let print = move |record: &Record| {
        // After a failure there is nobody to print for: the listener is about to end.
        if let Err(error) = printer.lock().unwrap_or_else(PoisonError::into_inner).print(record) {
            let _ = closed.send(End::of_output(&error));
        }
    };
    let delay = args.delay.unwrap_or_default();
    let notifier = args.builder().on_record(print).start(move |event: &ContainerEvent| {
        if event.kind() == EventKind::PreCreate {
            std::thread::sleep(delay);
        }
    })?;
    output::tell_when_closed(end).context("cannot watch stdout")?;
    announce(&notifier, args)?;

    let end = wait(&ended, args.duration);
    // Records that are complete are still printed by this.
    notifier.close();
    // What went wrong while they were: the reader may have left meanwhile.
    let end = ended.try_iter().find(|end| matches!(end, End::OutputFailed(_))).unwrap_or(end);
    match end {
        End::OutputFailed(error) => {
            Err(io::Error::from_raw_os_error(error)).context("cannot write to stdout")
        }
        End::Asked | End::OutputClosed => Ok(ExitCode::SUCCESS),
    }
}

/// Says that no container is missed from now on.
fn announce(notifier: &ContainerNotifier, args: &WatchArgs) -> anyhow::Result<()> {
    let count = notifier.status()?.runtimes.len();
    let ready = format!("ready: {count} runtime{} marked", if count == 1 { "" } else { "s" });
    eprintln!("{ready}");
    if let Some(path) = &args.ready_file {
        std::fs::write(path, format!("{ready}\n"))
            .with_context(|| format!("cannot write the ready file {}", path.display()))?;
    }
    Ok(())
}

fn wait(ended: &mpsc::Receiver<End>, duration: Option<Duration>) -> End {
    // A duration beyond what the clock can count is as good as none.
    let end = match duration.and_then(|duration| Instant::now().checked_add(duration)) {
        Some(until) => match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => return End::Asked,
            end => end.ok(),
        },
        None => ended.recv().ok(),
    };
    // The thread that listens for signals holds a sender as long as the program runs.
    end.unwrap_or(End::Asked)
}
