//! The command line as it was typed, and what it becomes for the library.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use containerhook::{Builder, CaptureBackend, ContainerNotifier, EventKind, ExitBackend, OnTimeout};

use crate::confine::SandboxArgs;
use crate::failure::{EXIT_CODES, Usage};
use crate::listener::Supervised;
use crate::output::ColorChoice;

/// Holds and tells containers the moment they are created, start and end, without any setting in a container runtime.
#[derive(Debug, Parser)]
#[command(name = "containerhook", version, after_help = EXIT_CODES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Given by the supervisor to the listener that it starts
    #[arg(long, hide = true)]
    pub(crate) supervised: Option<Supervised>,
    /// Given by the supervisor to the listener that it starts: the socket of the helper that runs --exec
    #[arg(long, hide = true)]
    pub(crate) hooks: Option<i32>,
    /// Given to that helper: the other end
    #[arg(long, hide = true)]
    pub(crate) hooks_helper: Option<i32>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Watch(Box<crate::watch::WatchArgs>),
    Top(crate::top::TopArgs),
    List(crate::list::ListArgs),
    Doctor(crate::doctor::DoctorArgs),
    Verify(crate::verify::VerifyArgs),
    Ready(crate::ready::ReadyArgs),
    /// Prints a script that completes this program's options in a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, or writes one for each subcommand into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        directory: Option<PathBuf>,
    },
}

impl Command {
    /// What its listener keeps itself from; `None` for one that does not listen for long.
    pub(crate) fn sandbox(&self) -> Option<&SandboxArgs> {
        match self {
            Command::Watch(args) => Some(&args.sandbox),
            Command::Top(args) => Some(&args.sandbox),
            _ => None,
        }
    }

    /// What is to be run for each event.
    ///
    /// # Errors
    ///
    /// Where that can never be run.
    pub(crate) fn hook(&self) -> anyhow::Result<Option<&str>> {
        let Command::Watch(args) = self else { return Ok(None) };
        args.hooks.check()?;
        Ok(args.hooks.command())
    }

    /// How long its listener may be stuck before its supervisor kills it; `None` for one that needs no supervisor.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        match self {
            Command::Watch(args) => args.watchdog.limit(),
            Command::Top(args) => args.watchdog.limit(),
            _ => None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// What is logged to stderr: off, error, warn, info, debug, trace, or directives such as containerhook=debug
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn", env = "CONTAINERHOOK_LOG")]
    #[arg(help_heading = "Output")]
    log_level: String,
    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    #[arg(
        help_heading = "Output",
        help = "When to colour: auto (on a terminal, unless NO_COLOR is set), always, never"
    )]
    pub(crate) color: ColorChoice,
}

impl Global {
    /// Log lines would tear a screen apart: with `screen` they are kept only where stderr is not that screen.
    pub(crate) fn start_log(&self, screen: bool) -> anyhow::Result<()> {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        if screen && terminal {
            return Ok(());
        }
        let filter = tracing_subscriber::EnvFilter::builder()
            .parse(&self.log_level)
            .map_err(|error| Usage(format!("--log-level {:?} is not understood: {error}", self.log_level)))?;
        let colored = match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(colored)
            .with_target(false)
            .try_init()
            .map_err(|error| anyhow::anyhow!(error))
            .context("cannot start to log")
    }
}

/// Which runtimes are listened to, and how: what every listening subcommand takes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ListenArgs {
    /// One more runtime to listen to, by its path on the host (repeatable); it adds to those that are found
    #[arg(long, value_name = "PATH", help_heading = "What to listen to")]
    runtime: Vec<PathBuf>,
    /// Listen to the runtimes given by --runtime only
    #[arg(long, requires = "runtime", help_heading = "What to listen to")]
    no_discover: bool,
    /// Where the host's file system is seen, for a listener in a container [env: HOST_ROOT]
    #[arg(long, value_name = "DIR", help_heading = "What to listen to")]
    host_root: Option<PathBuf>,
    /// How held executions are read: auto, memory (in the host's pid namespace), lookup (in another one, with BPF), tracepoint (without CAP_SYS_PTRACE; it costs every system call of the host)
    #[arg(long, value_name = "HOW", default_value = "auto", hide_possible_values = true)]
    #[arg(help_heading = "What to listen to")]
    capture: CaptureArg,
    /// How the ends of containers are learned: auto, bpf, pidfd-info (Linux 6.15), pidfd (without exit codes)
    #[arg(long, value_name = "HOW", default_value = "auto", hide_possible_values = true)]
    #[arg(help_heading = "What to listen to")]
    exit: ExitArg,
}

impl ListenArgs {
    /// As the library takes it from the environment where it is not said.
    pub(crate) fn host_root(&self) -> PathBuf {
        let said = std::env::var_os("HOST_ROOT").filter(|path| !path.is_empty()).map(PathBuf::from);
        self.host_root.clone().or(said).unwrap_or_else(|| "/".into())
    }

    pub(crate) fn builder(&self) -> Builder {
        let mut builder = ContainerNotifier::builder()
            .discover(!self.no_discover)
            .capture(self.capture.into())
            .exit_backend(self.exit.into());
        for runtime in &self.runtime {
            builder = builder.runtime(runtime);
        }
        if let Some(host_root) = &self.host_root {
            builder = builder.host_root(host_root);
        }
        builder
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CaptureArg {
    #[default]
    Auto,
    Memory,
    Lookup,
    Tracepoint,
}

impl From<CaptureArg> for CaptureBackend {
    fn from(arg: CaptureArg) -> Self {
        match arg {
            CaptureArg::Auto => CaptureBackend::Auto,
            CaptureArg::Memory => CaptureBackend::Memory,
            CaptureArg::Lookup => CaptureBackend::Lookup,
            CaptureArg::Tracepoint => CaptureBackend::Tracepoint,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ExitArg {
    #[default]
    Auto,
    Bpf,
    PidfdInfo,
    Pidfd,
}

impl From<ExitArg> for ExitBackend {
    fn from(arg: ExitArg) -> Self {
        match arg {
            ExitArg::Auto => ExitBackend::Auto,
            ExitArg::Bpf => ExitBackend::Bpf,
            ExitArg::PidfdInfo => ExitBackend::PidfdInfo,
            ExitArg::Pidfd => ExitBackend::Pidfd,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnTimeoutArg {
    /// It goes on
    Allow,
    /// It is refused
    Deny,
}

impl From<OnTimeoutArg> for OnTimeout {
    fn from(arg: OnTimeoutArg) -> Self {
        match arg {
            OnTimeoutArg::Allow => OnTimeout::Allow,
            OnTimeoutArg::Deny => OnTimeout::Deny,
        }
    }
}

/// A kind of event, by its word of the JSON contract.
pub(crate) fn event_kind() -> impl clap::builder::TypedValueParser<Value = EventKind> {
    PossibleValuesParser::new(EventKind::ALL.map(EventKind::as_str)).try_map(|word| word.parse::<EventKind>())
}

/// A length of time as people write it: `500ms`, `3s`, `1m 30s`.
pub(crate) fn duration(words: &str) -> Result<Duration, String> {
    let hint = "give a number and a unit, such as 500ms, 3s or 2m";
    let span: jiff::SignedDuration = words.trim().parse().map_err(|_| hint.to_owned())?;
    Duration::try_from(span).map_err(|_| format!("it lies in the past; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lengths_of_time_need_a_unit() {
        for (words, expected) in [
            ("500ms", Some(Duration::from_millis(500))),
            ("3s", Some(Duration::from_secs(3))),
            ("1m 30s", Some(Duration::from_secs(90))),
            ("2min", Some(Duration::from_secs(120))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("0s", Some(Duration::ZERO)),
            ("5", None),
            ("", None),
            ("-3s", None),
            ("3 parsecs", None),
        ] {
            assert_eq!(duration(words).ok(), expected, "{words:?}");
        }
    }
}
