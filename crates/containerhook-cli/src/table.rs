//! A table of events that fits the terminal: what matters least goes first where it is narrow.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::output::{Ink, Pen};
use crate::row::{Row, cut, fit};

/// How times are shown.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The time of day in this zone.
    Day(TimeZone),
    /// The seconds since this moment.
    Since(Timestamp),
}

impl Clock {
    fn show(&self, time: &str) -> String {
        let Ok(time) = time.parse::<Timestamp>() else { return String::new() };
        match self {
            Clock::Day(zone) => time.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string(),
            Clock::Since(start) => {
                let millis = time.duration_since(*start).as_millis();
                let sign = if millis < 0 { '-' } else { '+' };
                let millis = millis.unsigned_abs();
                format!("{sign}{}.{:03}", millis / 1000, millis % 1000)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Time,
    Event,
    Id,
    Name,
    Pid,
    Engine,
    Runtime,
}

/// In the order shown, with the cells each takes. The last column, what happened, takes the rest.
const COLUMNS: [(Column, &str, usize); 7] = [
    (Column::Time, "TIME", 12),
    (Column::Event, "EVENT", 12),
    (Column::Id, "ID", 14),
    (Column::Name, "NAME", 18),
    (Column::Pid, "PID", 8),
    (Column::Engine, "ENGINE", 10),
    (Column::Runtime, "RUNTIME", 8),
];

/// What is left out first where the terminal is narrow.
const LEAST: [Column; 5] = [Column::Runtime, Column::Engine, Column::Name, Column::Pid, Column::Time];

/// The least room for what happened.
const WHAT: usize = 20;

const GAP: usize = 2;

/// Turns events into lines of a table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) clock: Clock,
    pub(crate) pen: Pen,
    pub(crate) full_ids: bool,
    shown: Option<Vec<Column>>,
}

impl Table {
    pub(crate) fn new(clock: Clock, pen: Pen, full_ids: bool) -> Table {
        Table { clock, pen, full_ids, shown: None }
    }

    /// The table's head, or nothing where it stands there already; again where the terminal's width has changed what is shown.
    pub(crate) fn head(&mut self, width: Option<usize>) -> Option<String> {
        let columns = columns_for(width);
        if self.shown.as_ref() == Some(&columns) {
            return None;
        }
        let mut line = String::new();
        for (column, title, cells) in COLUMNS {
            if columns.contains(&column) {
                line.push_str(&fit(title, cells + GAP));
            }
        }
        line.push_str("WHAT");
        self.shown = Some(columns);
        Some(self.pen.paint(Ink::Bold, &limit(&line, width)))
    }

    /// One event's line.
    pub(crate) fn line(&self, event: &Value, width: Option<usize>) -> String {
        let row = Row::new(event, self.full_ids);
        let columns = columns_for(width);
        let mut line = String::new();
        let mut used = 0;
        for (column, _, cells) in COLUMNS.iter().filter(|(column, ..)| columns.contains(column)) {
            let time;
            let words = match column {
                Column::Time => {
                    time = self.clock.show(event["time"].as_str().unwrap_or_default());
                    &time
                }
                Column::Event => &row.event,
                Column::Id => &row.id,
                Column::Name => &row.name,
                Column::Pid => &row.pid,
                Column::Engine => &row.engine,
                Column::Runtime => &row.runtime,
            };
            // Not cut where nothing asks for it: a file or a pipe has no width.
            let words = if width.is_some() { fit(words, *cells) } else { format!("{words:cells$}") };
            line.push_str(&match column {
                Column::Event => self.pen.paint(row.ink(), &words),
                Column::Time => self.pen.paint(Ink::Dim, &words),
                _ => words,
            });
            line.push_str("  ");
            used += cells + GAP;
        }
        let what = match width {
            Some(width) => cut(&row.what, width.saturating_sub(used)),
            None => row.what.clone(),
        };
        line.push_str(&self.pen.paint(if row.alarming { Ink::Red } else { Ink::Plain }, &what));
        line.truncate(line.trim_end().len());
        line
    }
}

fn columns_for(width: Option<usize>) -> Vec<Column> {
    let mut columns: Vec<Column> = COLUMNS.iter().map(|(column, ..)| *column).collect();
    let Some(width) = width else { return columns };
    for least in LEAST {
        let needed: usize = COLUMNS
            .iter()
            .filter(|(column, ..)| columns.contains(column))
            .map(|(.., cells)| cells + GAP)
            .sum();
        if needed + WHAT <= width {
            break;
        }
        columns.retain(|column| *column != least);
    }
    columns
}

fn limit(line: &str, width: Option<usize>) -> String {
    width.map_or_else(|| line.to_owned(), |width| cut(line, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use unicode_width::UnicodeWidthStr as _;

    fn stopped() -> Value {
        json!({
            "event": "stopped", "seq": 4, "time": "2026-11-23T21:31:54.123456789Z",
            "id": "0123456789abcdef".repeat(4), "name": "web", "pid": 4711, "engine": "docker",
            "runtime": {"name": "runc", "path": "/usr/sbin/runc"}, "held": false, "existing": false,
            "answer": null, "exit": {"code": null, "signal": 9, "oom_killed": true}
        })
    }

    fn table(colored: bool) -> Table {
        Table::new(Clock::Day(TimeZone::UTC), Pen { colored }, false)
    }

    #[test]
    fn a_wide_terminal_shows_every_column() {
        let mut table = table(false);
        assert_eq!(
            table.head(Some(120)).unwrap(),
            "TIME          EVENT         ID              NAME                PID       ENGINE      RUNTIME   WHAT"
        );
        assert_eq!(table.head(Some(121)), None);
        assert_eq!(
            table.line(&stopped(), Some(130)),
            "21:31:54.123  stopped       0123456789ab    web                 4711      docker      runc      SIGKILL, out of memory"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut event = stopped();
        event["name"] = json!("容器".repeat(40));
        event["id"] = json!("a-very-long-id-that-somebody-chose-for-a-container");
        for width in 1..200 {
            let mut table = table(false);
            let head = table.head(Some(width)).unwrap();
            assert!(head.width() <= width, "{width}: {head:?}");
            let line = table.line(&event, Some(width));
            // Event and id are shown even where they do not fit: they are what a line is for.
            assert!(line.width() <= width.max(28), "{width}: {line:?}");
        }
    }

    #[test]
    fn a_narrow_terminal_leaves_out_what_matters_least_and_says_so_in_a_new_head() {
        let mut table = table(false);
        assert!(table.head(Some(200)).unwrap().contains("RUNTIME"));
        let head = table.head(Some(80)).unwrap();
        assert_eq!(head, "TIME          EVENT         ID              PID       WHAT");
        assert_eq!(
            table.line(&stopped(), Some(80)),
            "21:31:54.123  stopped       0123456789ab    4711      SIGKILL, out of memory"
        );
    }

    #[test]
    fn a_pipe_gets_whole_words() {
        let mut event = stopped();
        event["name"] = json!("a-name-that-is-wider-than-its-column-is");
        assert!(table(false).line(&event, None).contains("a-name-that-is-wider-than-its-column-is  4711"));
    }

    #[test]
    fn colours_are_escapes_only_where_wanted() {
        assert!(!table(false).line(&stopped(), Some(120)).contains('\x1b'));
        assert!(table(true).line(&stopped(), Some(120)).contains("\x1b[31mSIGKILL, out of memory\x1b[0m"));
    }

    #[test]
    fn times_count_from_the_start_where_asked() {
        let clock = Clock::Since("2026-11-23T21:31:50Z".parse().unwrap());
        assert_eq!(clock.show("2026-11-23T21:31:54.123456789Z"), "+4.123");
        assert_eq!(clock.show("2026-11-23T21:31:49.5Z"), "-0.500");
        assert_eq!(clock.show("yesterday"), "");
    }
}
