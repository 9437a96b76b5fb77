//! How a listener is spoken to: a line to its standard input, and lines from its standard output.
//!
//! A listener says `ready` once its marks are set, and answers each request with lines of which the last is `end`:
//! `drain` gives the stamps since the last time, one a line: *what*, *whose*, *nanoseconds*; `watch PID` watches
//! processes for their end. It closes and ends when its input ends, so it never outlives the benchmark.

use std::io::{BufRead, Write};
use std::sync::{Mutex, PoisonError};

use crate::clock;

/// What a listener has seen, and when.
#[derive(Debug, Default)]
pub struct Stamps(Mutex<Vec<(&'static str, String, u64)>>);

impl Stamps {
    /// Keeps the moment of an event.
    pub fn push(&self, what: &'static str, whose: &str) {
        let now = clock::now();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((what, whose.to_owned(), now));
    }

    /// The lines for `drain`.
    #[must_use]
    pub fn drain(&self) -> Vec<String> {
        let stamps = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        stamps.into_iter().map(|(what, whose, at)| format!("{what} {whose} {at}")).collect()
    }
}

/// Says `ready`, and answers requests until there are no more.
pub fn serve(mut answer: impl FnMut(&str) -> Vec<String>) {
    let say = |lines: Vec<String>, last: &str| {
        let mut out = std::io::stdout().lock();
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = writeln!(out, "{last}");
        let _ = out.flush();
    };
    say(Vec::new(), "ready");
    for request in std::io::stdin().lock().lines() {
        let Ok(request) = request else { return };
        say(answer(&request), "end");
    }
}
