//! Which files are marked: runtimes, and the entrypoints of containers that are being made.

use std::sync::Arc;

use fanotify::Mark;

use super::holds::Held;
use super::setup::of_fanotify;
use super::{Engine, Message};
use crate::error::{Error, ErrorKind};
use crate::lifecycle::{HoldId, LifeId};
use crate::marker::{self, Changes, Marker};
use crate::outlet::Level;
use crate::runtime::{Binary, Source};
use crate::work::{Job, MarkedEntry, Outcome, inode_of};

pub(super) struct Marked {
    pub(super) binary: Arc<Binary>,
    pub(super) mark: Mark,
}

pub(super) fn sources(binary: &Binary) -> String {
    let words: Vec<String> = binary
        .sources
        .iter()
        .map(|source| match source {
            Source::WellKnown => "a well-known place".to_owned(),
            Source::Option => "named by the caller".to_owned(),
            Source::Environment => "RUNTIME_PATH".to_owned(),
            Source::Config(path) => format!("configured in {}", path.display()),
            Source::Engine { pid, name } => format!("used by {name}, process {pid}"),
            Source::Learned => "seen at work".to_owned(),
        })
        .collect();
    words.join(", ")
}

impl Engine {
    /// Marks what is there, before anybody is told that the notifier listens: here, and here only, the engine waits.
    pub(super) fn mark_at_start(&mut self, discover: bool) -> Result<(), Error> {
        let discovered = crate::runtime::discover(&self.search);
        for warning in &discovered.warnings {
            self.warn(warning.to_string());
        }
        let wanted = discovered.binaries.iter().filter(|binary| marker::is_wanted(binary, discover)).cloned();
        let group = Arc::downgrade(&self.group);
        let mut refused = None;
        for (binary, mark) in marker::mark_all(&group, wanted) {
            match mark {
                Ok(mark) => self.marked(binary, mark),
                Err(error) => {
                    self.warn(format!("{} is not marked: {error}", binary.host_path.display()));
                    refused = Some(error);
                }
            }
        }
        if !self.runtimes.is_empty() {
            let post = Arc::clone(self.inbox.mailbox());
            let report = move |changes| post.post(Message::Worked(Outcome::Changed(changes)));
            match Marker::start(self.search.clone(), discover, discovered, group, report) {
                Ok(marker) => self.marker = Some(marker),
                Err(error) => self.warn(format!("runtimes that change will not be noticed: {error}")),
            }
            return Ok(());
        }
        match refused {
            Some(error) => Err(of_fanotify(&error)),
            None => Err(Error::new(
                ErrorKind::NoRuntime,
                format!("no container runtime was found under {}", self.search.host_root.display()),
            )
            .remedy("install one, or name its path: --runtime PATH, Builder::runtime; in a container set HOST_ROOT")),
        }
    }

    pub(super) fn marked(&mut self, binary: Binary, mark: Mark) {
        let line = format!("{} is marked ({})", binary.host_path.display(), sources(&binary));
        if self.keep(binary, mark) {
            self.log.log(Level::Info, line);
        }
    }

    /// Is it a new one? The earlier mark of an inode goes when the new one is there: the kernel's stays all the time.
    fn keep(&mut self, binary: Binary, mark: Mark) -> bool {
        let identity = binary.identity();
        let new = Marked { binary: Arc::new(binary), mark };
        let old = self.runtimes.insert(inode_of(&new.binary), new);
        let same = old.as_ref().is_some_and(|old| old.binary.identity() == identity);
        if let Some(old) = old {
            self.workers.submit(Job::Unmark(old.mark));
        }
        !same
    }

    pub(super) fn changed(&mut self, changes: Changes) {
        for warning in changes.warnings {
            // Each search finds what the one before it did.
            if !self.warnings.contains(&warning) {
                self.warn(warning);
            }
        }
        // What is gone goes first: its inode's number may be that of what has come.
        for binary in changes.gone {
            let inode = inode_of(&binary);
            if self.runtimes.get(&inode).is_some_and(|known| known.binary.identity() == binary.identity())
                && let Some(old) = self.runtimes.remove(&inode)
            {
                self.log.log(Level::Info, format!("{} is gone", binary.host_path.display()));
                self.workers.submit(Job::Unmark(old.mark));
            }
        }
        for (binary, mark) in changes.marked {
            match mark {
                Ok(mark) => self.marked(binary, mark),
                Err(error) => self.warn(format!("{} is not marked: {error}", binary.host_path.display())),
            }
        }
        for (binary, mark) in changes.likely {
            self.keep(binary, mark);
        }
    }

    pub(super) fn entry_marked(&mut self, life: LifeId, entry: Option<MarkedEntry>) {
        if let Some(MarkedEntry { mark, path }) = entry {
            self.entries.entry(mark.inode()).or_default().push(life);
            self.entry_marks.insert(life, (mark, path));
        }
    }

    pub(super) fn unmark(&mut self, life: LifeId, by: Option<HoldId>) {
        let Some((mark, _)) = self.entry_marks.remove(&life) else { return };
        let inode = mark.inode();
        if let Some(lives) = self.entries.get_mut(&inode) {
            lives.retain(|other| *other != life);
            if lives.is_empty() {
                self.entries.remove(&inode);
            }
        }
        match by.and_then(|hold| self.holds.get(&hold)) {
            Some(Held::Exec(event)) => {
                if let Err(error) = mark.remove_by(event.file()) {
                    self.log.log(Level::Debug, format!("removing a mark: {error}"));
                }
            }
            Some(Held::Stopped { .. }) | None => {
                self.workers.submit(Job::Unmark(mark));
            }
        }
    }
}
