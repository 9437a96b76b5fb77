//! What is said on standard error while something long goes on; in colour on a terminal only.

use std::io::IsTerminal;

/// A step begins.
pub(crate) fn step(text: &str) {
    line("1;36", "==>", text);
}

/// Something to know.
pub(crate) fn note(text: &str) {
    line("1", "   ", text);
}

pub(crate) fn warn(text: &str) {
    line("1;33", "warning:", text);
}

pub(crate) fn error(text: &str) {
    line("1;31", "error:", text);
}

fn line(colour: &str, mark: &str, text: &str) {
    if is_coloured(&std::io::stderr()) {
        eprintln!("\x1b[{colour}m{mark}\x1b[0m {text}");
    } else {
        eprintln!("{mark} {text}");
    }
}

pub(crate) fn is_coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
