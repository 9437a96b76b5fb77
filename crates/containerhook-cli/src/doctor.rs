//! `containerhook doctor`: what works on this host, what does not, and what to do about it.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use containerhook::{Available, Capability, ContainerEvent, ExitBackend, MarkedRuntime, supported};
use serde::Serialize;

use crate::args::{Global, ListenArgs};
use crate::failure::{CANNOT, FAILED};
use crate::output::{self, Ink, Pen};
use crate::row::clean;

const HELP: &str = "\
It listens for a moment to see what would be marked, tells nothing, holds nothing, and leaves nothing behind.

Examples:
  containerhook doctor
  containerhook doctor --json | jq .verdict

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
    capabilities: Vec<Capability>,
    /// What a listener would mark.
    runtimes: Vec<MarkedRuntime>,
    exit_backend: Option<ExitBackend>,
    warnings: Vec<String>,
    /// Why no listener could start.
    error: Option<String>,
}

pub(crate) fn run(args: &DoctorArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let report = examine(&args.listen);
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        report.text(Pen { colored: global.color.on_stdout() })
    };
    output::text(&text)?;
    Ok(ExitCode::from(report.verdict.exit_code()))
}

fn examine(listen: &ListenArgs) -> Report {
    let support = supported();
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
    let warnings = status.as_ref().map(|status| status.warnings.clone()).unwrap_or_default();
    let verdict = if !support.is_supported() || status.is_none() {
        Verdict::CannotWork
    } else if support.capabilities.iter().any(|c| c.available == Available::No) || !warnings.is_empty() {
        Verdict::WorksWithLess
    } else {
        Verdict::Works
    };
    Report {
        verdict,
        version: env!("CARGO_PKG_VERSION"),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .ok()
            .map(|words| words.trim().to_owned()),
        capabilities: support.capabilities,
        exit_backend: status.as_ref().map(|status| status.exit_backend),
        runtimes: status.map(|status| status.runtimes).unwrap_or_default(),
        warnings,
        error,
    }
}

impl Report {
    fn text(&self, pen: Pen) -> String {
        let mut text = String::new();
        let kernel = self.kernel.as_deref().map(clean).unwrap_or_else(|| "?".into());
        let _ = writeln!(text, "containerhook {} on Linux {kernel}", self.version);
        self.say_capabilities(pen, &mut text);
        self.say_runtimes(pen, &mut text);
        if !self.warnings.is_empty() {
            let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, "Warnings"));
            for warning in &self.warnings {
                let _ = writeln!(text, "  {}", pen.paint(Ink::Yellow, &clean(warning)));
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

    fn say_capabilities(&self, pen: Pen, text: &mut String) {
        if self.capabilities.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, "Capabilities"));
        let widest = self.capabilities.iter().map(|c| c.name.len()).max().unwrap_or(0);
        for capability in &self.capabilities {
            let ink = match (capability.available, capability.required) {
                (Available::Yes, _) => Ink::Green,
                (Available::No, true) => Ink::Red,
                _ => Ink::Yellow,
            };
            let available = pen.paint(ink, &format!("{:<7}", capability.available));
            let needed = if capability.required { " (required)" } else { "" };
            let _ =
                writeln!(text, "  {available}  {:widest$}  {}{needed}", capability.name, capability.purpose);
            if capability.available != Available::Yes {
                for more in capability.detail.iter().chain(&capability.remedy) {
                    let _ = writeln!(text, "           {}", clean(more));
                }
            }
        }
    }

    fn say_runtimes(&self, pen: Pen, text: &mut String) {
        let _ = writeln!(text, "\n{}", pen.paint(Ink::Bold, "Runtimes that are listened to"));
        let widest = self.runtimes.iter().map(|r| clean(&r.name).len()).max().unwrap_or(0);
        for runtime in &self.runtimes {
            let path = clean(&runtime.path.to_string_lossy());
            let _ =
                writeln!(text, "  {:widest$}  {path}  ({})", clean(&runtime.name), clean(&runtime.found_by));
        }
        if let Some(error) = &self.error {
            let _ = writeln!(text, "  none: {}", pen.paint(Ink::Red, &clean(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_is_wrong() {
        let report = Report {
            verdict: Verdict::CannotWork,
            version: "0.1.0",
            kernel: Some("6.1.0".into()),
            capabilities: Vec::new(),
            runtimes: Vec::new(),
            exit_backend: None,
            warnings: vec!["/etc/x.toml: line 3\x1b[2J".into()],
            error: Some("cannot open a fanotify group (run as root)".into()),
        };
        assert_eq!(
            report.text(Pen { colored: false }),
            "containerhook 0.1.0 on Linux 6.1.0\n\n\
             Runtimes that are listened to\n  none: cannot open a fanotify group (run as root)\n\n\
             Warnings\n  /etc/x.toml: line 3\\u{1b}[2J\n\n\
             It cannot work here.\n"
        );
    }

    #[test]
    fn each_verdict_has_its_exit_code() {
        let codes = [Verdict::Works, Verdict::WorksWithLess, Verdict::CannotWork].map(Verdict::exit_code);
        assert_eq!(codes, [0, 1, 2]);
    }
}
