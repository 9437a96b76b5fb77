//! The one thread on which records are delivered and log lines are written: the engine must not call what a user
//! installed (a record's receiver, a tracing subscriber), which may wait, or hold descriptors of another table.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use crate::error::Error;
use crate::event::Record;
use crate::handler::RecordFn;

/// How loud a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Warn,
    Info,
    Debug,
}

pub(crate) enum Out {
    Record(Box<Record>),
    Log(Level, String),
    Flush,
}

/// How many records and lines may wait for their receiver. Beyond that they are dropped: whoever reads a pipe no more
/// must not make the listener grow without end.
const MOST_WAITING: usize = 65_536;

/// The engine's end of the channel.
#[derive(Clone)]
pub(crate) struct Inlet {
    sender: Sender<Out>,
    records: bool,
    waiting: Arc<AtomicUsize>,
}

impl Inlet {
    pub(crate) fn record(&self, record: Record) {
        if self.records {
            self.send(Out::Record(Box::new(record)));
        }
    }

    fn send(&self, out: Out) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            // The gap in the records' numbers tells.
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let _ = self.sender.send(out);
    }

    pub(crate) fn log(&self, level: Level, line: impl Into<String>) {
        let enabled = match level {
            Level::Warn => tracing::level_filters::LevelFilter::current() >= tracing::Level::WARN,
            Level::Info => tracing::level_filters::LevelFilter::current() >= tracing::Level::INFO,
            Level::Debug => tracing::level_filters::LevelFilter::current() >= tracing::Level::DEBUG,
        };
        if enabled {
            self.send(Out::Log(level, line.into()));
        }
    }
}

pub(crate) struct Outlet {
    inlet: Inlet,
    thread: JoinHandle<()>,
}

impl Outlet {
    pub(crate) fn start(on_record: Option<RecordFn>) -> Result<Outlet, Error> {
        let (sender, receiver) = mpsc::channel();
        let records = on_record.is_some();
        let waiting = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&waiting);
        let thread = thread::Builder::new()
            .name("ch-records".into())
            .spawn(move || deliver(&receiver, on_record.as_deref(), &taken))
            .map_err(|e| Error::os("cannot start the thread that delivers records", e))?;
        Ok(Outlet { inlet: Inlet { sender, records, waiting }, thread })
    }

    pub(crate) fn inlet(&self) -> Inlet {
        self.inlet.clone()
    }

    /// Delivers what has been sent so far, and ends.
    pub(crate) fn finish(self) {
        let _ = self.inlet.sender.send(Out::Flush);
        // A receiver of records may itself drop the notifier.
        if self.thread.thread().id() != thread::current().id() {
            let _ = self.thread.join();
        }
    }
}

fn deliver(receiver: &Receiver<Out>, on_record: Option<&(dyn Fn(&Record) + Send)>, taken: &AtomicUsize) {
    let mut last = 0;
    while let Ok(out) = receiver.recv() {
        if !matches!(out, Out::Flush) {
            taken.fetch_sub(1, Ordering::Relaxed);
        }
        if let Out::Record(record) = &out {
            let lost = record.seq.saturating_sub(last + 1);
            if lost > 0 {
                tracing::warn!(lost, "records were dropped: their receiver did not keep up");
            }
            last = record.seq;
        }
        match out {
            Out::Record(record) => {
                // The runtime is about to remove the cgroup: what it counted is read now, if it is at all.
                let _ = record.event.resources();
                if let Some(on_record) = on_record {
                    let call = std::panic::AssertUnwindSafe(|| on_record(&record));
                    if std::panic::catch_unwind(call).is_err() {
                        tracing::warn!(seq = record.seq, "the receiver of records panicked");
                    }
                }
            }
            Out::Log(Level::Warn, line) => tracing::warn!("{line}"),
            Out::Log(Level::Info, line) => tracing::info!("{line}"),
            Out::Log(Level::Debug, line) => tracing::debug!("{line}"),
            Out::Flush => return,
        }
    }
}
