//! `containerhook list`: the containers that run at this moment.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use clap::Args;
use containerhook::{ContainerEvent, ContainerNotifier, EventKind, Record};
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

use crate::args::{Global, ListenArgs};
use crate::failure::EXIT_CODES;
use crate::filter::{Condition, wanted};
use crate::output::{self, Ink, Pen};
use crate::row::{Row, clean, cut, fit};

const EXAMPLES: &str = "\
Examples:
  containerhook list
  containerhook list --filter engine=docker --json | jq -r .id";

/// Lists the containers that run already
///
/// It asks no engine: it listens for a moment, is told what is there, and leaves.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct ListArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// List those only whose field matches, such as name=web-* or namespace!=kube-system (repeatable)
    #[arg(long, value_name = "FIELD=PATTERN", help_heading = "Which containers")]
    filter: Vec<Condition>,
    /// Print one JSON object a line: a `created` event with `existing` set
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Add each container's OCI configuration to the JSON
    #[arg(long, requires = "json", help_heading = "Output")]
    config: bool,
    /// Show ids of 64 hexadecimal digits, and every other word, whole
    #[arg(long, conflicts_with = "json", help_heading = "Output")]
    no_trunc: bool,
}

/// Nothing more has been told for so long: that was all.
const QUIET: Duration = Duration::from_millis(300);

/// However many there are, so long is enough.
const LONGEST: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &ListArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let with_config = args.config;
    let (sender, records) = mpsc::channel();
    let notifier = args
        .listen
        .builder()
        .existing(true)
        .events([EventKind::Created])
        .on_record(move |record: &Record| {
            let line = if with_config { record.to_json_with_config() } else { record.to_json() };
            let _ = sender.send(line);
        })
        .start(|_: &ContainerEvent| {})?;
    let told = collect(&notifier, &records)?;
    notifier.close();

    let mut lines = Vec::new();
    for line in told.into_iter().chain(records.try_iter()) {
        let event: Value = serde_json::from_str(&line)?;
        if event["existing"] == true && wanted(&args.filter, &event) {
            lines.push((line, event));
        }
    }
    let text = if args.json {
        lines.into_iter().map(|(line, _)| line + "\n").collect()
    } else {
        let width = if args.no_trunc { None } else { output::width() };
        let events: Vec<Value> = lines.into_iter().map(|(_, event)| event).collect();
        table(&events, width, args.no_trunc, Pen { colored: global.color.on_stdout() })
    };
    output::text(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn collect(notifier: &ContainerNotifier, records: &mpsc::Receiver<String>) -> anyhow::Result<Vec<String>> {
    let until = Instant::now() + LONGEST;
    let mut told = Vec::new();
    loop {
        match records.recv_timeout(QUIET) {
            Ok(line) => told.push(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let status = notifier.status()?;
                if told.len() + status.creating >= status.containers {
                    break;
                }
            }
        }
        if Instant::now() >= until {
            break;
        }
    }
    Ok(told)
}

fn table(events: &[Value], width: Option<usize>, full_ids: bool, pen: Pen) -> String {
    let mut rows = vec![["ID", "NAME", "PID", "ENGINE", "RUNTIME", "IMAGE"].map(str::to_owned)];
    rows.extend(events.iter().map(|event| {
        let row = Row::new(event, full_ids);
        [
            row.id,
            row.name,
            row.pid,
            row.engine,
            row.runtime,
            clean(event["image"].as_str().unwrap_or_default()),
        ]
    }));
    // A name of a thousand characters must not push everything else off the screen.
    let most = if width.is_some() { [40, 40, 10, 12, 24, 0] } else { [usize::MAX; 6] };
    let widths: Vec<usize> = (0..5)
        .map(|column| rows.iter().map(|row| row[column].width()).max().unwrap_or(0).min(most[column]))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (words, cells) in row.iter().zip(&widths) {
            line += &fit(words, *cells);
            line += "  ";
        }
        line += &row[5];
        let line = width.map_or_else(|| line.clone(), |width| cut(&line, width));
        let line = line.trim_end();
        let _ = writeln!(text, "{}", if index == 0 { pen.paint(Ink::Bold, line) } else { line.to_owned() });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_words() {
        let events = [
            json!({"id": "0123456789abcdef".repeat(4), "name": "web", "pid": 4711, "engine": "docker",
                   "runtime": {"name": "runc"}, "image": "nginx:1"}),
            json!({"id": "c2", "name": null, "pid": 5, "engine": null, "runtime": null, "image": null}),
        ];
        let pen = Pen { colored: false };
        assert_eq!(
            table(&events, Some(100), false, pen),
            "ID            NAME  PID   ENGINE  RUNTIME  IMAGE\n\
             0123456789ab  web   4711  docker  runc     nginx:1\n\
             c2                  5\n"
        );
        for line in table(&events, Some(30), false, pen).lines() {
            assert!(line.width() <= 30, "{line}");
        }
        assert!(table(&events, None, true, pen).contains(&"0123456789abcdef".repeat(4)));
        assert_eq!(table(&[], None, false, pen), "ID  NAME  PID  ENGINE  RUNTIME  IMAGE\n");
    }
}
