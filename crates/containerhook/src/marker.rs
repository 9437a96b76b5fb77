//! The thread that keeps runtimes marked while the engine runs: one that an upgrade replaces, one that is installed
//! later, one that a configuration names from now on.
//!
//! It waits for directories that matter to change, marks what it finds there by itself, as the container that comes right
//! after an upgrade's rename is to be seen, and hands the marks to the engine.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread;

use fanotify::{Group, Mark};

use crate::runtime::watch::{Change, Watch};
use crate::runtime::{self, Binary, Discovered, Search, Source};
use crate::sys::{Bell, Poll};

/// What has changed about the runtimes.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) marked: Vec<(Binary, Result<Mark, fanotify::Error>)>,
    /// Marked on the suspicion that it becomes a runtime: an installer's file under its name of the moment.
    pub(crate) likely: Vec<(Binary, Mark)>,
    pub(crate) gone: Vec<Binary>,
    pub(crate) warnings: Vec<String>,
}

/// Ends the thread when it is dropped.
pub(crate) struct Marker {
    stop: Arc<Bell>,
}

impl Drop for Marker {
    fn drop(&mut self) {
        self.stop.ring();
    }
}

/// Which of the binaries that were found are wanted.
pub(crate) fn is_wanted(binary: &Binary, discover: bool) -> bool {
    discover || binary.sources.iter().any(|source| matches!(source, Source::Option | Source::Environment))
}

/// Marks what is there still.
pub(crate) fn mark_all(
    group: &Weak<Group>,
    binaries: impl IntoIterator<Item = Binary>,
) -> Vec<(Binary, Result<Mark, fanotify::Error>)> {
    let Some(group) = group.upgrade() else { return Vec::new() };
    binaries
        .into_iter()
        .filter_map(|binary| {
            // Gone since it was found: its successor is found in its turn.
            let file = binary.open().ok()?;
            let mark = group.mark_fd(&file).map(|mark| mark.with_path(&binary.host_path));
            Some((binary, mark))
        })
        .collect()
}

impl Marker {
    /// Starts the thread, with what was found when the engine began. `report` is called with what changes.
    pub(crate) fn start(
        search: Search,
        discover: bool,
        discovered: Discovered,
        group: Weak<Group>,
        report: impl Fn(Changes) + Send + 'static,
    ) -> io::Result<Marker> {
        let mut watch = Watch::new()?;
        let stop = Arc::new(Bell::new()?);
        let poll = Poll::new()?;
        poll.add(watch.fd(), 0)?;
        poll.add(stop.as_fd(), 1)?;
        let rung = Arc::clone(&stop);
        thread::Builder::new().name("ch-runtimes".into()).spawn(move || {
            let mut news = watch.follow(&discovered);
            drop(discovered);
            loop {
                let mut changes = Changes::default();
                while !news.is_empty() {
                    let mut search_again = false;
                    for change in std::mem::take(&mut news) {
                        match change {
                            Change::Found(binary) if is_wanted(&binary, discover) => {
                                changes.marked.extend(mark_all(&group, [binary]));
                            }
                            Change::Likely(binary) if is_wanted(&binary, discover) => {
                                for (binary, mark) in mark_all(&group, [binary]) {
                                    changes.likely.extend(mark.ok().map(|mark| (binary, mark)));
                                }
                            }
                            Change::Found(_) | Change::Likely(_) => {}
                            Change::Gone(binary) => changes.gone.push(binary),
                            Change::Config(_) | Change::All => search_again = true,
                        }
                    }
                    if search_again {
                        let discovered = runtime::discover(&search);
                        changes.warnings.extend(discovered.warnings.iter().map(ToString::to_string));
                        let wanted =
                            discovered.binaries.iter().filter(|binary| is_wanted(binary, discover)).cloned();
                        changes.marked.extend(mark_all(&group, wanted));
                        news = watch.follow(&discovered);
                    }
                }
                changes.warnings.extend(watch.warnings().iter().map(ToString::to_string));
                // What two searches in a row have found is told once.
                let mut told = HashSet::new();
                changes.warnings.retain(|warning| told.insert(warning.clone()));
                let Changes { marked, likely, gone, warnings } = &changes;
                if !(marked.is_empty() && likely.is_empty() && gone.is_empty() && warnings.is_empty()) {
                    report(changes);
                }
                poll.wait(None);
                if rung.silence() {
                    return;
                }
                news = watch.drain();
            }
        })?;
        Ok(Marker { stop })
    }
}
