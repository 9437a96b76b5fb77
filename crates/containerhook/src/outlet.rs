//! The one thread on which records are delivered and log lines are written: the engine must not call what a user
//! installed (a record's receiver, a tracing subscriber), which may wait, or hold descriptors of another table.

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

/// The engine's end of the channel.
#[derive(Clone)]
pub(crate) struct Inlet {
    sender: Sender<Out>,
    records: bool,
}

impl Inlet {
    pub(crate) fn record(&self, record: Record) {
        if self.records {
            let _ = self.sender.send(Out::Record(Box::new(record)));
        }
    }

    pub(crate) fn log(&self, level: Level, line: impl Into<String>) {
        let enabled = match level {
            Level::Warn => tracing::level_filters::LevelFilter::current() >= tracing::Level::WARN,
            Level::Info => tracing::level_filters::LevelFilter::current() >= tracing::Level::INFO,
            Level::Debug => tracing::level_filters::LevelFilter::current() >= tracing::Level::DEBUG,
        };
        if enabled {
            let _ = self.sender.send(Out::Log(level, line.into()));
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
        let thread = thread::Builder::new()
            .name("ch-records".into())
            .spawn(move || deliver(&receiver, on_record.as_deref()))
            .map_err(|e| Error::os("cannot start the thread that delivers records", e))?;
        Ok(Outlet { inlet: Inlet { sender, records }, thread })
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

fn deliver(receiver: &Receiver<Out>, on_record: Option<&(dyn Fn(&Record) + Send)>) {
    while let Ok(out) = receiver.recv() {
        match out {
            Out::Record(record) => {
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
