//! stdout: whole lines, at once; a reader that has gone away is a clean end; colours where they are wanted.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::Sender;

use clap::ValueEnum;

use crate::signals::End;

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl ColorChoice {
    /// <https://no-color.org>: NO_COLOR counts when it is there and not empty.
    pub(crate) fn on_stdout(self) -> bool {
        match self {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                io::stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

/// A colour of the terminal's own palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

/// Puts ink on words, or leaves them as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pen {
    pub(crate) colored: bool,
}

impl Pen {
    pub(crate) fn paint(self, ink: Ink, words: &str) -> String {
        let code = match ink {
            _ if !self.colored || words.is_empty() => return words.to_owned(),
            Ink::Plain => return words.to_owned(),
            Ink::Bold => "1",
            Ink::Dim => "2",
            Ink::Red => "31",
            Ink::Green => "32",
            Ink::Yellow => "33",
            Ink::Cyan => "36",
        };
        format!("\x1b[{code}m{words}\x1b[0m")
    }
}

/// Writes one line and sees it off: a script that reads events must not wait for a buffer to fill.
pub(crate) fn line(line: &str) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes)?;
    stdout.flush()
}

/// A whole text, for commands that print and end. `Ok(false)` where nobody reads any more.
pub(crate) fn text(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has the reader gone away?
pub(crate) fn gone(error: &io::Error) -> bool {
    // EIO is what a terminal that was closed says.
    error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO)
}

/// The terminal's width; `None` where stdout is none, and a line may be as long as it likes.
pub(crate) fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let columns = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    // A terminal that does not know its size says 0.
    Some(columns.filter(|columns| *columns > 0).unwrap_or(80))
}

/// Tells when stdout's reader goes away while there is nothing to write: `watch --json | head -1` would otherwise go on
/// holding containers until the next event.
pub(crate) fn tell_when_closed(end: Sender<End>) -> io::Result<()> {
    std::thread::Builder::new().name("stdout".into()).spawn(move || {
        loop {
            // POLLERR and POLLHUP are told without being asked for, and nothing else is wanted.
            let mut fd = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
            // SAFETY: one pollfd that lives through the call, and a count of one.
            let ready = unsafe { libc::poll(&raw mut fd, 1, -1) };
            if ready < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            if ready > 0 && fd.revents & (libc::POLLERR | libc::POLLHUP) != 0 {
                let _ = end.send(End::OutputClosed);
            }
            return;
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pen_without_colour_leaves_no_escapes() {
        assert_eq!(Pen { colored: false }.paint(Ink::Red, "deny"), "deny");
        assert_eq!(Pen { colored: true }.paint(Ink::Red, "deny"), "\x1b[31mdeny\x1b[0m");
        assert_eq!(Pen { colored: true }.paint(Ink::Red, ""), "");
        assert_eq!(Pen { colored: true }.paint(Ink::Plain, "x"), "x");
    }

    #[test]
    fn a_reader_that_left_is_told_apart_from_a_full_disk() {
        assert!(gone(&io::Error::from_raw_os_error(libc::EPIPE)));
        assert!(!gone(&io::Error::from_raw_os_error(libc::ENOSPC)));
    }
}
