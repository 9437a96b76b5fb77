//! `containerhook list`: the containers that run at this moment.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

use crate::args::Global;
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
/// It asks no engine and holds nothing: it reads the state that runtimes leave, and /proc.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct ListArgs {
    /// Where the host's file system is seen, for one who looks from inside a container
    #[arg(long, value_name = "DIR", env = "HOST_ROOT", help_heading = "Which containers")]
    host_root: Option<PathBuf>,
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

pub(crate) fn run(args: &ListArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let host_root = args.host_root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let told = containerhook::existing(&host_root);

    let mut lines = Vec::new();
    for record in told {
        let line = if args.config { record.to_json_with_config() } else { record.to_json() };
        let event: Value = serde_json::from_str(&line)?;
        if wanted(&args.filter, &event) {
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
