//! `containerhook top`: a live screen of the containers that are there.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use containerhook::{ContainerEvent, Record};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use serde_json::Value;

use crate::args::{Global, ListenArgs};
use crate::board::{Board, Entry, Order, State, age};
use crate::confine::SandboxArgs;
use crate::failure::{EXIT_CODES, Usage};
use crate::filter::{Condition, wanted};
use crate::listener::{Beats, Watcher};
use crate::output::Pen;
use crate::row::{fit, time_words};
use crate::signals;
use crate::supervise::WatchdogArgs;
use crate::table::{Clock, Table};

const KEYS: &str = "\
Keys:
  up, down, page up, page down, home, end   move
  s                                         sort by age, name or time held
  e                                         show or hide the last events
  q, Escape, Ctrl-C                         end

Examples:
  containerhook top
  containerhook top --filter engine=docker";

/// Shows the containers that are there on a live screen
///
/// Containers that run already are shown too. A container that has ended stays for ten seconds, with how it ended.
#[derive(Debug, Args)]
#[command(after_help = format!("{KEYS}\n\n{EXIT_CODES}"))]
pub(crate) struct TopArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// Show those only whose field matches, such as name=web-* or namespace!=kube-system (repeatable)
    #[arg(long, value_name = "FIELD=PATTERN", help_heading = "Which containers")]
    filter: Vec<Condition>,
    #[command(flatten)]
    pub(crate) watchdog: WatchdogArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
}

/// How long keys are waited for before the next look at what else has come.
const TICK: Duration = Duration::from_millis(100);

pub(crate) fn run(args: &TopArgs, global: &Global, watcher: Watcher) -> anyhow::Result<ExitCode> {
    if !io::stdout().is_terminal() {
        return Err(Usage("top needs a terminal; `containerhook watch` writes to anything".into()).into());
    }
    let (end, ended) = mpsc::channel();
    signals::tell(end, watcher.is_supervisor()).context("cannot listen for signals")?;
    let (sender, records) = mpsc::channel();
    let notifier = args
        .listen
        .builder()
        .existing(true)
        .on_record(move |record: &Record| {
            if let Ok(event) = serde_json::to_value(record) {
                let _ = sender.send(event);
            }
        })
        .start(|_: &ContainerEvent| {})?;
    let runtimes = notifier.status()?.runtimes.len();
    let beats = Beats::start(&notifier, watcher, args.watchdog.limit())?;
    args.sandbox.close();

    let mut screen = Screen::new(runtimes, global.color.on_stdout());
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let shown = screen.show(&mut terminal, &args.filter, &records, &ended);
    ratatui::restore();
    drop(beats);
    notifier.close();
    shown.context("cannot use the terminal")?;
    Ok(ExitCode::SUCCESS)
}

struct Screen {
    board: Board,
    order: Order,
    top: usize,
    last: bool,
    runtimes: usize,
    colored: bool,
    since: Timestamp,
    /// How many rows of containers fitted the last time.
    page: usize,
}

impl Screen {
    fn new(runtimes: usize, colored: bool) -> Screen {
        Screen {
            board: Board::default(),
            order: Order::default(),
            top: 0,
            last: true,
            runtimes,
            colored,
            since: Timestamp::now(),
            page: 1,
        }
    }

    fn show(
        &mut self,
        terminal: &mut ratatui::DefaultTerminal,
        filter: &[Condition],
        records: &mpsc::Receiver<Value>,
        ended: &mpsc::Receiver<signals::End>,
    ) -> io::Result<()> {
        let mut drawn: Option<Instant> = None;
        loop {
            let mut changed = false;
            while let Ok(event) = records.try_recv() {
                if wanted(filter, &event) {
                    self.board.apply(event, Timestamp::now(), started);
                    changed = true;
                }
            }
            changed |= self.board.sweep(Timestamp::now());
            // Ages are told in seconds.
            if changed || drawn.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                terminal.draw(|frame| self.draw(frame, Timestamp::now()))?;
                drawn = Some(Instant::now());
            }
            if ended.try_recv().is_ok() {
                return Ok(());
            }
            if event::poll(TICK)? {
                if let Event::Key(key) = event::read()?
                    && key.kind != KeyEventKind::Release
                    && !self.key(key.code, key.modifiers)
                {
                    return Ok(());
                }
                drawn = None;
            }
        }
    }

    /// Takes a key. `false` where it is the last.
    fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> bool {
        match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Up | KeyCode::Char('k') => self.top = self.top.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.top = self.top.saturating_add(1),
            KeyCode::PageUp => self.top = self.top.saturating_sub(self.page),
            KeyCode::PageDown | KeyCode::Char(' ') => self.top = self.top.saturating_add(self.page),
            KeyCode::Home => self.top = 0,
            KeyCode::End => self.top = usize::MAX,
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('e') => self.last = !self.last,
            _ => {}
        }
        true
    }

    fn draw(&mut self, frame: &mut Frame<'_>, now: Timestamp) {
        let area = frame.area();
        // On a low screen the containers come first.
        let events = if self.last && area.height >= 12 { (area.height / 4).clamp(3, 10) } else { 0 };
        let [head, titles, body, below] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(events),
        ])
        .areas(area);
        frame.render_widget(Paragraph::new(self.head(now)), head);
        let columns = columns(usize::from(area.width));
        let title: String = columns.iter().map(|column| fit(column.title, column.cells) + "  ").collect();
        frame
            .render_widget(Paragraph::new(title).style(self.style(Color::Reset, Modifier::REVERSED)), titles);
        self.page = usize::from(body.height).max(1);
        let rows = self.board.rows(self.order);
        self.top = self.top.min(rows.len().saturating_sub(self.page));
        // Only what is seen is made: a thousand containers cost no more than a screenful.
        let lines: Vec<Line<'_>> = rows
            .iter()
            .skip(self.top)
            .take(self.page)
            .map(|entry| {
                let line: String = columns
                    .iter()
                    .map(|column| fit(&(column.words)(entry, now), column.cells) + "  ")
                    .collect();
                let color = match entry.state {
                    State::Creating | State::Created => Color::Cyan,
                    State::Running => Color::Reset,
                    State::Paused => Color::Yellow,
                    State::Ended(..) => Color::DarkGray,
                };
                Line::styled(line, self.style(color, Modifier::empty()))
            })
            .collect();
        frame.render_widget(Paragraph::new(lines), body);
        self.draw_events(frame, below);
    }

    fn head(&self, now: Timestamp) -> Line<'static> {
        let running = self.board.count(|state| matches!(state, State::Running | State::Paused));
        let coming = self.board.count(|state| matches!(state, State::Creating | State::Created));
        let mut words = format!(
            "{running} running, {coming} coming; {} events in {}; {} runtime{}; by {}",
            self.board.events,
            age_words(age(self.since, now)),
            self.runtimes,
            if self.runtimes == 1 { "" } else { "s" },
            self.order.word(),
        );
        if self.board.denied > 0 {
            words += &format!("; {} refused", self.board.denied);
        }
        let mut spans =
            vec![Span::styled("containerhook  ", self.style(Color::Reset, Modifier::BOLD)), words.into()];
        if self.board.lost > 0 {
            let lost = format!("; {} losses", self.board.lost);
            spans.push(Span::styled(lost, self.style(Color::Red, Modifier::BOLD)));
        }
        Line::from(spans)
    }

    fn draw_events(&self, frame: &mut Frame<'_>, area: Rect) {
        if area.height == 0 {
            return;
        }
        let width = usize::from(area.width);
        let mut table = Table::new(Clock::Day(TimeZone::system()), Pen { colored: false }, false);
        let head = table.head(Some(width)).unwrap_or_default();
        let mut lines = vec![Line::styled(fit(&head, width), self.style(Color::Reset, Modifier::UNDERLINED))];
        let room = usize::from(area.height) - 1;
        let skipped = self.board.last.len().saturating_sub(room);
        lines.extend(
            self.board.last.iter().skip(skipped).map(|event| Line::raw(table.line(event, Some(width)))),
        );
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn style(&self, color: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        if self.colored && color != Color::Reset { style.fg(color) } else { style }
    }
}

struct Column {
    title: &'static str,
    cells: usize,
    words: fn(&Entry, Timestamp) -> String,
}

/// In the order shown; the number is how soon a column goes where there is no room.
const COLUMNS: [(u8, Column); 9] = [
    (0, Column { title: "ID", cells: 14, words: |entry, _| entry.id.clone() }),
    (1, Column { title: "NAME", cells: 24, words: |entry, _| entry.name.clone() }),
    (
        4,
        Column {
            title: "PID",
            cells: 8,
            words: |entry, _| entry.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        },
    ),
    (5, Column { title: "ENGINE", cells: 10, words: |entry, _| entry.engine.clone() }),
    (6, Column { title: "RUNTIME", cells: 8, words: |entry, _| entry.runtime.clone() }),
    (0, Column { title: "AGE", cells: 7, words: |entry, now| age_words(age(entry.since, now)) }),
    (0, Column { title: "STATE", cells: 16, words: |entry, _| state_words(&entry.state) }),
    (3, Column { title: "HELD", cells: 7, words: |entry, _| held_words(entry.held) }),
    (2, Column { title: "LAST", cells: 24, words: last_words }),
];

fn columns(width: usize) -> Vec<&'static Column> {
    let mut kept: Vec<&(u8, Column)> = COLUMNS.iter().collect();
    while kept.iter().map(|(_, column)| column.cells + 2).sum::<usize>() > width {
        let Some(least) = kept.iter().map(|(rank, _)| *rank).max().filter(|rank| *rank > 0) else { break };
        kept.retain(|(rank, _)| *rank != least);
    }
    kept.into_iter().map(|(_, column)| column).collect()
}

fn age_words(age: Duration) -> String {
    time_words(Duration::from_secs(age.as_secs())).replace("0 µs", "0 s").replace(".0 s", " s")
}

fn held_words(held: Duration) -> String {
    if held.is_zero() { String::new() } else { time_words(held) }
}

fn state_words(state: &State) -> String {
    match state {
        State::Creating => "creating".into(),
        State::Created => "created".into(),
        State::Running => "running".into(),
        State::Paused => "paused".into(),
        State::Ended(_, how) => how.clone(),
    }
}

fn last_words(entry: &Entry, now: Timestamp) -> String {
    let (event, at) = &entry.last;
    format!("{event}, {} ago", age_words(age(*at, now)))
}

/// When a process was started, by `/proc`.
fn started(pid: u64) -> Option<Timestamp> {
    // USER_HZ, the unit of start times: 100 on every architecture that has container engines.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // After the name, which may itself hold brackets and spaces, the start time is the 20th word.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let age = jiff::SignedDuration::try_from_secs_f64((uptime - ticks / TICKS).max(0.0)).ok()?;
    Timestamp::now().checked_sub(age).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn screen(containers: usize) -> Screen {
        let mut screen = Screen::new(3, false);
        screen.since = at(0);
        for index in 0..containers {
            let event = json!({
                "event": "created", "id": format!("c{index:04}"), "bundle": format!("/b/{index}"), "pid": 1000 + index,
                "time": at(index as i64 / 100).to_string(), "name": "容器\x1b[2J", "engine": "docker",
                "runtime": {"name": "runc"}, "existing": false, "held": true,
                "answer": {"decision": "allow", "reason": null, "timed_out": false, "held_us": 1500}
            });
            screen.board.apply(event, at(20), |_| None);
        }
        screen
    }

    fn draw(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame, at(75))).unwrap();
        let buffer = terminal.backend().buffer();
        (0..height)
            .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn a_screen_shows_what_is_there() {
        let lines = draw(&mut screen(1), 140, 20);
        assert_eq!(lines[0], "containerhook  0 running, 1 coming; 1 events in 1m 15s; 3 runtimes; by age");
        let title = "ID              NAME                      PID       ENGINE      RUNTIME   AGE      STATE             HELD     LAST";
        assert_eq!(lines[1], title);
        assert!(lines[2].starts_with("c0000"), "{lines:?}");
        for words in
            ["\\u{1b}[2J", "1000", "docker", "runc", "1m 15s", "created", "1.5 ms", "created, 1m 15s ago"]
        {
            assert!(lines[2].contains(words), "{words}: {lines:?}");
        }
        assert!(lines[15].starts_with("TIME"), "{lines:?}");
        assert!(lines[16].contains("allowed after 1.5 ms"), "{lines:?}");
    }

    #[test]
    fn a_thousand_containers_are_scrolled_through() {
        let mut screen = screen(1000);
        let first = |screen: &mut Screen| draw(screen, 100, 30)[2].split(' ').next().unwrap().to_owned();
        assert_eq!(first(&mut screen), "c0900");
        screen.key(KeyCode::PageDown, KeyModifiers::NONE);
        assert_eq!(first(&mut screen), format!("c{:04}", 900 + screen.page));
        screen.key(KeyCode::End, KeyModifiers::NONE);
        let page = screen.page;
        assert_eq!(first(&mut screen), format!("c{:04}", 100 - page));
        assert_eq!(draw(&mut screen, 100, 30)[1 + page].split(' ').next(), Some("c0099"));
        screen.key(KeyCode::Home, KeyModifiers::NONE);
        screen.key(KeyCode::Char('s'), KeyModifiers::NONE);
        assert_eq!(first(&mut screen), "c0000");
        screen.key(KeyCode::Up, KeyModifiers::NONE);
        assert_eq!(first(&mut screen), "c0000");
    }

    #[test]
    fn every_size_can_be_drawn() {
        let mut screen = screen(50);
        for (width, height) in [(1, 1), (2, 3), (10, 2), (20, 12), (40, 5), (80, 24), (300, 100)] {
            let lines = draw(&mut screen, width, height);
            assert!(
                lines[0].starts_with("containerhook".get(..usize::from(width).min(13)).unwrap()),
                "{lines:?}"
            );
        }
        assert!(draw(&mut screen, 80, 24)[1].contains("STATE"));
        assert!(!draw(&mut screen, 80, 24)[1].contains("RUNTIME"));
    }

    #[test]
    fn the_keys_that_end_it() {
        let mut screen = screen(0);
        assert!(!screen.key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(!screen.key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(!screen.key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(screen.key(KeyCode::Char('c'), KeyModifiers::NONE));
    }

    #[test]
    fn ages_are_whole_seconds() {
        let words = [0, 1, 9, 59, 61].map(|seconds| age_words(Duration::from_millis(seconds * 1000 + 700)));
        assert_eq!(words, ["0 s", "1 s", "9 s", "59 s", "1m 01s"]);
    }

    #[test]
    fn this_process_was_started_a_moment_ago() {
        let since = started(u64::from(std::process::id())).unwrap();
        assert!(age(since, Timestamp::now()) < Duration::from_secs(3600));
        assert_eq!(started(u64::MAX), None);
    }
}
