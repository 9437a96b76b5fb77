//! `containerhook watch`: prints events as they come, until it is told to end.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use containerhook::{Builder, ContainerEvent, ContainerNotifier, Decision, EventKind, Record};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::args::{Global, ListenArgs, OnTimeoutArg, duration, event_kind};
use crate::confine::SandboxArgs;
use crate::failure::EXIT_CODES;
use crate::filter::{Condition, wanted};
use crate::hooks::{Channel, HookArgs, Hooks};
use crate::listener::{Beats, Watcher};
use crate::output::{self, Pen};
use crate::ready::{self, Ready};
use crate::signals::{self, End};
use crate::supervise::WatchdogArgs;
use crate::table::{Clock, Table};
use crate::template::Template;

const EXAMPLES: &str = "\
Examples:
  containerhook watch                            a table of every event
  containerhook watch --json | jq -r .id         one JSON object a line (docs/events.md)
  containerhook watch --event created,stopped    these two kinds only
  containerhook watch --filter namespace=shop    one namespace of Kubernetes
  containerhook watch --format '{id} {exit}'     lines of one's own
  containerhook watch --delay 3s                 see a container wait for three seconds
  containerhook watch --event stopped --exec 'logger $CONTAINERHOOK_ID has ended'
  containerhook watch --event pre-create --config --exec /usr/local/bin/may-it-run --hold --on-timeout deny";

/// Prints what happens to containers, as it happens
///
/// Every container runtime found on the host is listened to. Each container created from then on is held for a moment
/// at each step, told, and let go. Ctrl-C ends it: what is held goes on, and nothing is left behind.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(group = clap::ArgGroup::new("has_json").args(["json", "exec"]).multiple(true))]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    listen: ListenArgs,

    /// Print (and hold) these kinds of events only; repeatable, or separated by commas
    ///
    /// Without it all are printed but `failed`, which engines cause every day.
    ///
    /// Containers are followed all the same: `--event stopped` alone tells every end. `overflow` and `lost` are always
    /// printed, for without them the rest could not be believed.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = event_kind(), help_heading = "Which events")]
    event: Vec<EventKind>,
    /// Print those only whose field matches, such as name=web-* or namespace!=kube-system (repeatable)
    ///
    /// Several filters of one field are alternatives; filters of different fields must all match. `*` and `?` stand for
    /// any characters and any one. The others are held and let go all the same, and keep their numbers in `seq`.
    #[arg(long, value_name = "FIELD=PATTERN", help_heading = "Which events")]
    filter: Vec<Condition>,
    /// Tell the containers first that run already
    #[arg(long, help_heading = "Which events")]
    existing: bool,
    /// Remember here which containers run: what ends while nothing listens is told at the next start
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath, help_heading = "Which events")]
    state_file: Option<std::path::PathBuf>,

    /// Print one JSON object a line
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Add each container's OCI configuration to the JSON (of --json, and of --exec)
    #[arg(long, requires = "has_json", help_heading = "Output")]
    config: bool,
    /// Print each event as this line, such as '{time} {event} {name} {exit}': the fields are those of the JSON
    #[arg(long, value_name = "TEMPLATE", conflicts_with_all = ["json", "since_start", "no_trunc"])]
    #[arg(help_heading = "Output")]
    format: Option<Template>,
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

    #[command(flatten)]
    pub(crate) hooks: HookArgs,

    #[command(flatten)]
    pub(crate) watchdog: WatchdogArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    /// End after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Running")]
    duration: Option<Duration>,
    /// Write this file once every runtime is listened to, for `containerhook ready FILE` (it is also printed to stderr)
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    ready_file: Option<PathBuf>,
}

impl WatchArgs {
    fn builder(&self) -> Builder {
        let mut builder = self.listen.builder().on_timeout(self.on_timeout.into());
        if !self.event.is_empty() {
            let always = [EventKind::Overflow, EventKind::Lost];
            builder = builder.events(self.event.iter().copied().chain(always));
        }
        if let Some(path) = &self.state_file {
            builder = builder.state_file(path);
        }
        if let Some(deadline) = self.deadline {
            builder = builder.deadline(deadline);
        }
        builder
    }

    fn printer(&self, global: &Global) -> Printer {
        let filter = self.filter.clone();
        if self.json {
            return Printer { filter, form: Form::Json { config: self.config } };
        }
        if let Some(template) = &self.format {
            return Printer { filter, form: Form::Template(template.clone()) };
        }
        let clock =
            if self.since_start { Clock::Since(Timestamp::now()) } else { Clock::Day(TimeZone::system()) };
        let table = Table::new(clock, Pen { colored: global.color.on_stdout() }, self.no_trunc);
        Printer { filter, form: Form::Table(table) }
    }
}

struct Printer {
    filter: Vec<Condition>,
    form: Form,
}

enum Form {
    Json { config: bool },
    Template(Template),
    Table(Table),
}

impl Printer {
    fn print(&mut self, record: &Record) -> io::Result<()> {
        if let (Form::Json { config }, []) = (&self.form, &*self.filter) {
            return output::line(&json(record, *config));
        }
        let event = match &self.form {
            Form::Template(template) if template.needs_config() => serde_json::from_str(&json(record, true))?,
            _ => serde_json::to_value(record)?,
        };
        if !wanted(&self.filter, &event) {
            return Ok(());
        }
        match &mut self.form {
            Form::Json { config } => output::line(&json(record, *config)),
            Form::Template(template) => output::line(&template.fill(&event)),
            Form::Table(table) => {
                let width = output::width();
                if let Some(head) = table.head(width) {
                    output::line(&head)?;
                }
                output::line(&table.line(&event, width))
            }
        }
    }

    /// What can be shown before the first event.
    fn begin(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Table(table) => table.head(output::width()).map_or(Ok(()), |head| output::line(&head)),
            Form::Json { .. } | Form::Template(_) => Ok(()),
        }
    }
}

/// How long hooks that run at the end are waited for: less than the supervisor waits.
const HOOKS_LEFT: Duration = Duration::from_secs(5);

fn is_selected(filter: &[Condition], json: impl Fn() -> String) -> bool {
    filter.is_empty() || serde_json::from_str(&json()).is_ok_and(|event| wanted(filter, &event))
}

fn json(record: &Record, with_config: bool) -> String {
    if with_config { record.to_json_with_config() } else { record.to_json() }
}

pub(crate) fn run(
    args: &WatchArgs,
    global: &Global,
    watcher: Watcher,
    channel: Option<Channel>,
) -> anyhow::Result<ExitCode> {
    let (end, ended) = mpsc::channel();
    signals::tell(end.clone(), watcher.is_supervisor()).context("cannot listen for signals")?;

    let printer = Arc::new(Mutex::new(args.printer(global)));
    let (records, closed) = (Arc::clone(&printer), end.clone());
    let start =
        |channel| Hooks::start(channel, &args.hooks, args.config, args.on_timeout.into(), end.clone());
    let hooks = channel.map(start).transpose()?.map(Arc::new);
    let (filter, holds) = (args.filter.clone(), args.hooks.holds());
    let told = hooks.clone().filter(|_| !holds);
    let is_wanted = filter.clone();
    let print = move |record: &Record| {
        if let Some(hooks) = &told
            && is_selected(&is_wanted, || record.to_json())
        {
            hooks.tell(record);
        }
        // After a failure there is nobody to print for: the listener is about to end.
        if let Err(error) = records.lock().unwrap_or_else(PoisonError::into_inner).print(record) {
            let _ = closed.send(End::of_output(&error));
        }
    };
    let asked = hooks.clone().filter(|_| holds);
    let delay = args.delay.unwrap_or_default();
    let existing = args.existing || watcher.has_restarted();
    let duration = args.duration.map(|duration| duration.saturating_sub(watcher.before()));
    let notifier =
        args.builder().existing(existing).on_record(print).start(move |event: &ContainerEvent| {
            if event.kind() == EventKind::PreCreate {
                std::thread::sleep(delay);
            }
            match &asked {
                Some(hooks) if is_selected(&filter, || event.to_json()) => hooks.ask(event),
                _ => Decision::allow(),
            }
        })?;
    output::tell_when_closed(end.clone()).context("cannot watch stdout")?;
    let _ready = announce(&notifier, args)?;
    let beats = Beats::start(&notifier, watcher, args.watchdog.limit())?;
    args.sandbox.close();
    if let Err(error) = printer.lock().unwrap_or_else(PoisonError::into_inner).begin() {
        let _ = end.send(End::of_output(&error));
    }

    let end = wait(&ended, duration);
    drop(beats);
    // Records that are complete are still printed by this.
    notifier.close();
    // So is what runs for them, if it does not take long.
    if let Some(hooks) = hooks.filter(|_| end != End::HooksDied) {
        hooks.finish(HOOKS_LEFT);
    }
    // What went wrong while they were: the reader may have left meanwhile.
    let end = ended.try_iter().find(|end| matches!(end, End::OutputFailed(_))).unwrap_or(end);
    match end {
        End::OutputFailed(error) => {
            Err(io::Error::from_raw_os_error(error)).context("cannot write to stdout")
        }
        End::HooksDied => anyhow::bail!("the process that runs --exec has ended: start again"),
        End::Asked | End::OutputClosed => Ok(ExitCode::SUCCESS),
    }
}

/// Says that no container is missed from now on.
fn announce(notifier: &ContainerNotifier, args: &WatchArgs) -> anyhow::Result<Option<Ready>> {
    let count = notifier.status()?.runtimes.len();
    let ready = format!("ready: {count} runtime{} marked", if count == 1 { "" } else { "s" });
    eprintln!("{ready}");
    args.ready_file.as_deref().map(|path| ready::announce(path, &ready)).transpose()
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
