//! `containerhook doctor`: what works on this host, what does not, and what to do about it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use containerhook::{
    Area, Available, Capability, CaptureBackend, ContainerEvent, ExitBackend, MarkedRuntime, Status, Support,
    supported_at,
};
use serde::Serialize;

use crate::args::{Global, ListenArgs};
use crate::failure::{CANNOT, FAILED};
use crate::output::{self, Ink, Pen};
use crate::row::{clean, fold};

const HELP: &str = "\
It listens for a moment to see what would be marked, tells nothing, holds nothing, and leaves nothing behind.
Everything is tried; what could not be tried is \"unknown\", which is no \"no\".

Examples:
  containerhook doctor
  containerhook doctor --json | jq .verdict
  containerhook doctor --json | jq -r '.capabilities[] | select(.available == \"no\") | .name'
  containerhook doctor --host-root /host         in a container that sees the host's / there

Exit codes:
  0  everything works
  1  it works, with less than it could have: see what is missing
  2  it cannot work here: see what to do";

/// Tells what this host supports, what is missing, and what to do about it
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Works,
    WorksWithLess,
    CannotWork,
}

impl Verdict {
    fn of(support: &Support, status: Option<&Status>) -> Verdict {
        match status {
            Some(status) if support.is_supported() => {
                if support.missed().next().is_some() || !status.warnings.is_empty() {
                    Verdict::WorksWithLess
                } else {
                    Verdict::Works
                }
            }
            _ => Verdict::CannotWork,
        }
    }

    fn exit_code(self) -> u8 {
        match self {
            Verdict::Works => 0,
            Verdict::WorksWithLess => FAILED,
            Verdict::CannotWork => CANNOT,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    verdict: Verdict,
    version: &'static str,
    kernel: Option<String>,
    host_root: PathBuf,
    capabilities: Vec<Capability>,
    /// What a listener would mark.
    runtimes: Vec<MarkedRuntime>,
    /// How a listener would read held executions.
    capture_backend: Option<CaptureBackend>,
    /// How it would learn of ends.
    exit_backend: Option<ExitBackend>,
    outcomes: Vec<Outcome>,
    warnings: Vec<String>,
    /// Why no listener could start.
    error: Option<String>,
}

/// What becomes of some moment of a container's life here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// It waits for the answer.
    Held,
    /// It is told, and goes on meanwhile.
    Told,
    /// Nothing is known of it.
    Unseen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Outcome {
    what: &'static str,
    how: How,
    why: &'static str,
}

/// By what was tried, and by what would be marked.
fn outcomes(support: &Support, status: &Status) -> Vec<Outcome> {
    let watch = support.has("bpf-exec-watch");
    let mut all = Vec::new();
    let mut add = |what, how, why| all.push(Outcome { what, how, why });
    add("creation, start and exec by a marked runtime", How::Held, "its executions are held");
    add("a container's first instruction", How::Held, "its entrypoint is marked before it is created");
    let what = "the same, of `run`, where no mark can find the entrypoint";
    if watch {
        add(what, How::Held, "a BPF program stops it at its exec");
    } else {
        add(what, How::Told, "it takes bpf-exec-watch to hold it");
    }
    if status.runtimes.iter().any(|runtime| runtime.name.contains("runsc")) {
        add("the same, of gVisor", How::Told, "its entrypoint is never executed on the host");
    }
    let what = "a container of a runtime that is not marked";
    if watch {
        add(what, How::Told, "when its first program runs; --runtime PATH marks one more");
    } else {
        add(what, How::Unseen, "it takes bpf-exec-watch to see it; --runtime PATH marks it");
    }
    add("a container that runs already", How::Told, "with --existing");
    let why = match status.exit_backend {
        ExitBackend::Bpf => "at once, with its exit code",
        ExitBackend::PidfdInfo => "with its exit code, once its parent has reaped it",
        _ => "at once, without its exit code",
    };
    add("a container's end", How::Told, why);
    all
}

pub(crate) fn run(args: &DoctorArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let report = examine(&args.listen);
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        report.text(Pen { colored: global.color.on_stdout() }, output::width().unwrap_or(80).clamp(60, 100))
    };
    output::text(&text)?;
    Ok(ExitCode::from(report.verdict.exit_code()))
}

fn examine(listen: &ListenArgs) -> Report {
    let host_root = listen.host_root();
    let support = supported_at(&host_root);
    // With no kind of event to tell, nothing is held: executions of a runtime are let go at once.
    let status = listen.builder().events([]).start(|_: &ContainerEvent| {}).and_then(|notifier| {
        let status = notifier.status();
        notifier.close();
        status
    });
    let (status, error) = match status {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Report {
        verdict: Verdict::of(&support, status.as_ref()),
        version: env!("CARGO_PKG_VERSION"),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .ok()
            .map(|words| words.trim().to_owned()),
        host_root,
        capture_backend: status.as_ref().map(|status| status.capture_backend),
        exit_backend: status.as_ref().map(|status| status.exit_backend),
        outcomes: status.as_ref().map(|status| outcomes(&support, status)).unwrap_or_default(),
        warnings: status.as_ref().map(|status| status.warnings.clone()).unwrap_or_default(),
        runtimes: status.map(|status| status.runtimes).unwrap_or_default(),
        capabilities: support.capabilities,
        error,
    }
}

/// Where what is told of something begins.
const INDENT: usize = 11;

impl Report {
    fn text(&self, pen: Pen, width: usize) -> String {
        let mut text = String::new();
        let kernel = self.kernel.as_deref().map(clean).unwrap_or_else(|| "?".into());
        let _ = writeln!(text, "containerhook {} on Linux {kernel}", self.version);
        let areas = [(Area::Kernel, "Kernel"), (Area::Process, "This process"), (Area::Host, "Host")];
        for (area, title) in areas {
            let capabilities: Vec<_> = self.capabilities.iter().filter(|c| c.area == area).collect();
            if !capabilities.is_empty() {
                let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, title));
                for capability in capabilities {
                    self.say_capability(capability, pen, width, &mut text);
                }
            }
        }
        self.say_runtimes(pen, width, &mut text);
        self.say_ways(pen, width, &mut text);
        self.say_outcomes(pen, width, &mut text);
        if !self.warnings.is_empty() {
            let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, "Warnings"));
            for warning in &self.warnings {
                for line in fold(&clean(warning), width - 2) {
                    let _ = writeln!(text, "  {}", pen.paint(Ink::Yellow, &line));
                }
            }
        }
        let (ink, words) = match self.verdict {
            Verdict::Works => (Ink::Green, "Everything works."),
            Verdict::WorksWithLess => (Ink::Yellow, "It works, with less than it could have."),
            Verdict::CannotWork => (Ink::Red, "It cannot work here."),
        };
        let _ = writeln!(text, "\n{}", pen.paint(ink, words));
        text
    }

    fn say_capability(&self, capability: &Capability, pen: Pen, width: usize, text: &mut String) {
        let ink = match capability.available {
            Available::Yes => Ink::Green,
            Available::No if capability.required => Ink::Red,
            Available::No if capability.matters => Ink::Yellow,
            // Nothing is lost by it.
            Available::No | Available::Unknown => Ink::Dim,
            _ => Ink::Plain,
        };
        let available = pen.paint(ink, &format!("{:<7}", capability.available));
        let widest = self.capabilities.iter().map(|c| c.name.len()).max().unwrap_or(0);
        let mut purpose = capability.purpose.to_owned();
        if capability.required && capability.available != Available::Yes {
            purpose += " (required)";
        }
        let column = INDENT + widest + 2;
        let mut lines = fold(&purpose, width.saturating_sub(column)).into_iter();
        let first = lines.next().unwrap_or_default();
        let _ = writeln!(text, "  {available}  {:widest$}  {first}", capability.name);
        for line in lines {
            let _ = writeln!(text, "{:column$}{line}", "");
        }
        if capability.available == Available::Yes {
            return;
        }
        if let Some(detail) = &capability.detail {
            for line in fold(&clean(detail), width - INDENT) {
                let _ = writeln!(text, "{:INDENT$}{line}", "");
            }
        }
        // What nothing is lost by needs no remedy.
        if let Some(remedy) = &capability.remedy
            && (capability.matters || capability.required)
        {
            for (number, line) in fold(&clean(remedy), width - INDENT - 2).into_iter().enumerate() {
                let _ = writeln!(text, "{:INDENT$}{} {line}", "", if number == 0 { '→' } else { ' ' });
            }
        }
    }

    fn say_runtimes(&self, pen: Pen, width: usize, text: &mut String) {
        let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, "Runtimes that are marked"));
        let widest = self.runtimes.iter().map(|r| clean(&r.name).len()).max().unwrap_or(0);
        for runtime in &self.runtimes {
            let path = clean(&runtime.path.to_string_lossy());
            let line = format!("  {:widest$}  {path}", clean(&runtime.name));
            let found_by = format!("({})", clean(&runtime.found_by));
            if line.chars().count() + 2 + found_by.chars().count() <= width {
                let _ = writeln!(text, "{line}  {found_by}");
            } else {
                let _ = writeln!(text, "{line}\n  {:widest$}    {found_by}", "");
            }
        }
        if let Some(error) = &self.error {
            for (number, line) in fold(&clean(error), width - 8).iter().enumerate() {
                let start = if number == 0 { "none:" } else { "" };
                let _ = writeln!(text, "  {start:5} {}", pen.paint(Ink::Red, line));
            }
        }
    }

    /// What `--capture auto` and `--exit auto` come to here, or what was asked for instead.
    fn say_ways(&self, pen: Pen, width: usize, text: &mut String) {
        let (Some(capture), Some(exit)) = (self.capture_backend, self.exit_backend) else { return };
        let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, "How a listener listens"));
        let capture = match capture {
            CaptureBackend::Memory => ("memory", "held executions are read in their callers' memory"),
            CaptureBackend::Lookup => ("lookup", "the same, and who executes is looked up by BPF"),
            CaptureBackend::Tracepoint => {
                ("tracepoint", "held executions are noted by BPF, at a cost to every execve of the host")
            }
            _ => ("?", "held executions are read in some other way"),
        };
        let exit = match exit {
            ExitBackend::Bpf => ("bpf", "ends are told by BPF"),
            ExitBackend::PidfdInfo => ("pidfd-info", "ends are told by a pidfd, with their exit code"),
            ExitBackend::Pidfd => ("pidfd", "ends are told by a pidfd"),
            _ => ("?", "ends are told in some other way"),
        };
        for (option, (word, what)) in [("--capture", capture), ("--exit", exit)] {
            let _ = writeln!(text, "  {option:<9}  {word}");
            for line in fold(what, width - INDENT - 2) {
                let _ = writeln!(text, "{:INDENT$}  {}", "", pen.paint(Ink::Dim, &line));
            }
        }
    }

    fn say_outcomes(&self, pen: Pen, width: usize, text: &mut String) {
        if self.outcomes.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, "What is held, and what is only told"));
        for outcome in &self.outcomes {
            let (ink, how) = match outcome.how {
                How::Held => (Ink::Green, "held"),
                How::Told => (Ink::Plain, "told"),
                How::Unseen => (Ink::Yellow, "unseen"),
            };
            let _ = writeln!(text, "  {}  {}", pen.paint(ink, &format!("{how:<7}")), outcome.what);
            for line in fold(outcome.why, width - INDENT - 2) {
                let _ = writeln!(text, "{:INDENT$}  {}", "", pen.paint(Ink::Dim, &line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(capabilities: Vec<Capability>) -> Report {
        Report {
            verdict: Verdict::CannotWork,
            version: "0.1.0",
            kernel: Some("6.1.0".into()),
            host_root: "/".into(),
            capabilities,
            runtimes: Vec::new(),
            capture_backend: None,
            exit_backend: None,
            outcomes: Vec::new(),
            warnings: vec!["/etc/x.toml: line 3\x1b[2J".into()],
            error: Some("cannot open a fanotify group (run as root)".into()),
        }
    }

    #[test]
    fn the_text_says_what_is_wrong() {
        assert_eq!(
            report(Vec::new()).text(Pen { colored: false }, 80),
            "containerhook 0.1.0 on Linux 6.1.0\n\n\
             Runtimes that are marked\n  none: cannot open a fanotify group (run as root)\n\n\
             Warnings\n  /etc/x.toml: line 3\\u{1b}[2J\n\n\
             It cannot work here.\n"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut report = report(containerhook::supported().capabilities);
        (report.capture_backend, report.exit_backend) =
            (Some(CaptureBackend::Tracepoint), Some(ExitBackend::PidfdInfo));
        report.warnings = vec!["a word and another ".repeat(20)];
        report.outcomes = vec![Outcome {
            what: "a container's end",
            how: How::Told,
            why: "at once, without its exit code",
        }];
        for width in [60, 80, 100] {
            let text = report.text(Pen { colored: false }, width);
            for line in text.lines() {
                assert!(unicode_width::UnicodeWidthStr::width(line) <= width, "{width}: {line:?}");
            }
        }
    }

    #[test]
    fn what_nothing_is_lost_by_leaves_the_verdict_as_it_is() {
        let mut support = containerhook::supported();
        for capability in &mut support.capabilities {
            capability.available = Available::Yes;
        }
        assert_eq!(support.missed().count(), 0);
        let without = |change: fn(&mut Capability)| {
            let mut support = support.clone();
            change(&mut support.capabilities[0]);
            (support.is_supported(), support.missed().count())
        };
        assert_eq!(
            without(|c| (c.available, c.required, c.matters) = (Available::No, false, false)),
            (true, 0)
        );
        assert_eq!(
            without(|c| (c.available, c.required, c.matters) = (Available::No, false, true)),
            (true, 1)
        );
        assert_eq!(without(|c| (c.available, c.required) = (Available::No, true)), (false, 0));
        assert_eq!(without(|c| (c.available, c.required) = (Available::Unknown, true)), (true, 0));
        // No listener, no use.
        assert_eq!(Verdict::of(&support, None), Verdict::CannotWork);
    }

    #[test]
    fn each_verdict_has_its_exit_code() {
        let codes = [Verdict::Works, Verdict::WorksWithLess, Verdict::CannotWork].map(Verdict::exit_code);
        assert_eq!(codes, [0, 1, 2]);
    }
}
