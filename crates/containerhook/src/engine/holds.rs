//! What is held, from its event to its answer.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fanotify::{Event, PermissionEvent};

use super::Engine;
use super::ends::Doubt;
use crate::capture::{Capture, Unplaced, name};
use crate::exit::Process;
use crate::lifecycle::{HoldId, Input, LifeId, Refusal};
use crate::outlet::Level;
use crate::work::Job;

/// A container, or a runtime, that waits for an answer.
pub(super) enum Held {
    /// In its exec; dropped, it goes on.
    Exec(PermissionEvent),
    /// After its exec, by a signal.
    Stopped { init: Process, runtime: Process },
}

impl Engine {
    pub(super) fn event(&mut self, event: Event, at: Instant, time: SystemTime) {
        match event {
            Event::Permission(event) => self.held(event, at, time),
            Event::Overflow => {
                self.apply(Input::Overflow { time });
                self.look();
            }
            Event::Passed(passed) => {
                let line = format!("task {} was not held: no descriptor was left (ulimit -n)", passed.task());
                self.log.log(Level::Warn, line);
                // It goes on by itself, and is told of what can still be seen of it.
                if let Some(marked) = passed.inode().and_then(|inode| self.runtimes.get(&inode)) {
                    let binary = Arc::clone(&marked.binary);
                    match self.capture.passed(passed.task()) {
                        Ok(tid) => {
                            let life = self.lifecycle.new_id();
                            self.workers.submit(Job::Passed { life, tid, binary, at, time });
                        }
                        Err(why) => self.unplaced(&binary.path, &why, time),
                    }
                } else if let Some(lives) = passed.inode().and_then(|inode| self.entries.get(&inode)) {
                    // Most likely the first program of one of these: it will not come again.
                    let container =
                        |life: &LifeId| Some(format!("{:?}", self.lifecycle.container(*life)?.id));
                    let ids: Vec<String> = lives.iter().take(8).filter_map(container).collect();
                    let why = format!(
                        "a file that {} containers are to start was executed unheld; among them {}",
                        lives.len(),
                        ids.join(", ")
                    );
                    self.apply(Input::Lost { why, time });
                }
            }
            Event::Refused(refused) => {
                self.log.log(Level::Warn, format!("the kernel denied an execution: {}", refused.reason()));
            }
            _ => {}
        }
    }

    pub(super) fn held(&mut self, event: PermissionEvent, at: Instant, time: SystemTime) {
        // Answered by being dropped, wherever this returns without keeping it.
        let Ok(inode) = event.inode() else { return };
        let sighting = match self.capture.who(&event) {
            Ok(Some(sighting)) => sighting,
            Ok(None) => return,
            Err(Unplaced { why, refused }) => {
                drop(event);
                if refused {
                    self.replace_capture();
                }
                let path = self.runtimes.get(&inode).map(|marked| marked.binary.path.clone());
                return self.unplaced(&path.unwrap_or_else(|| "a container's entrypoint".into()), &why, time);
            }
        };
        if self.lifecycle.knows(sighting.tid).is_some_and(|process| self.exits.is_alive(process)) {
            // A runtime that executes itself again, or what it was asked to run.
            if !self.entries.contains_key(&inode) {
                return;
            }
        }
        let hold = self.lifecycle.new_id();
        let job = if let Some(lives) = self.entries.get(&inode) {
            let executable = lives
                .iter()
                .find_map(|life| self.entry_marks.get(life))
                .map(|(_, path)| path.display().to_string());
            Job::Entry { hold, sighting, stopped: false, candidates: lives.clone(), executable, at, time }
        } else if let Some(marked) = self.runtimes.get(&inode) {
            Job::Command { hold, sighting, binary: Arc::clone(&marked.binary), at, time }
        } else {
            return;
        };
        self.holds.insert(hold, Held::Exec(event));
        self.reading.push_back((at + self.patience, hold));
        self.workers.submit(job);
    }

    /// What reads held executions does not work any more: another way is looked for, once.
    pub(super) fn replace_capture(&mut self) {
        if std::mem::take(&mut self.may_replace_capture) {
            self.workers.submit(Job::ReplaceCapture { failed: self.capture.backend() });
        }
    }

    pub(super) fn capture_replaced(&mut self, replaced: Result<Capture, String>) {
        let failed = name(self.capture.backend());
        match replaced {
            Ok(capture) => {
                let now = name(capture.backend());
                self.capture = capture;
                self.warn(format!(
                    "held executions cannot be read by {failed} any more: they are by {now} now"
                ));
            }
            Err(why) => {
                self.warn(format!("held executions cannot be read by {failed} any more, and not by {why}"));
            }
        }
    }

    /// An execution of which nobody knows whose it is.
    fn unplaced(&mut self, path: &Path, why: &str, time: SystemTime) {
        let why = format!("an execution of {} could not be read: {why}", path.display());
        self.apply(Input::Lost { why, time });
    }

    /// Lets go what a worker could not read in time.
    pub(super) fn give_up(&mut self, now: Instant) {
        while let Some(&Doubt { until, process, .. }) = self.doubts.front()
            && until <= now
        {
            self.counted(process, None);
        }
        while let Some(&(at, hold)) = self.reading.front() {
            if at > now {
                return;
            }
            self.reading.pop_front();
            if let Some(held) = self.holds.remove(&hold) {
                self.let_go(held, None);
                // Whoever reads it may wait for ever. What comes of it after all is told as not held.
                let why = format!(
                    "an execution was let go unread: reading it took longer than {:?}",
                    self.patience
                );
                self.apply(Input::Lost { why, time: SystemTime::now() });
            }
        }
    }

    pub(super) fn read(&mut self, hold: HoldId) {
        if let Some(at) = self.reading.iter().position(|(_, reading)| *reading == hold) {
            self.reading.remove(at);
        }
    }

    /// Answers what is held.
    pub(super) fn let_go(&mut self, held: Held, refusal: Option<Refusal>) {
        match held {
            Held::Exec(event) => {
                let answered = match refusal {
                    None => event.allow(),
                    Some(Refusal { error }) => match error.errno() {
                        None => event.deny(),
                        Some(errno) => event.deny_with_errno(errno).map(drop),
                    },
                };
                if let Err(error) = answered {
                    self.log.log(Level::Debug, format!("answering: {error}"));
                }
            }
            Held::Stopped { init, runtime } => {
                let signal = if refusal.is_some() { libc::SIGKILL } else { libc::SIGCONT };
                if let Err(error) = self.exits.kill(init, signal) {
                    self.log.log(Level::Debug, format!("continuing process {}: {error}", init.pid));
                }
                if let Some(exec_watch) = &mut self.exec_watch {
                    exec_watch.release(runtime);
                }
            }
        }
    }

    /// The entrypoint of what this runtime process runs could not be marked: the container is stopped after its exec.
    pub(super) fn stop_at_exec(&mut self, life: LifeId) -> Result<(), String> {
        let runtime =
            self.creations.get(&life).and_then(|creation| creation.runs()).ok_or("it is not run")?;
        let exec_watch = self.exec_watch.as_mut().ok_or("BPF is refused or turned off")?;
        exec_watch.stop_under(runtime).map_err(|error| error.to_string())?;
        self.stops.insert(runtime, life);
        Ok(())
    }

    /// A container's first program was stopped for us.
    pub(super) fn stopped(
        &mut self,
        init: Process,
        runtime: Process,
        filename: String,
        at: Instant,
        time: SystemTime,
    ) {
        let held = Held::Stopped { init, runtime };
        let Some(life) = self.stops.remove(&runtime) else {
            self.let_go(held, None);
            return;
        };
        let hold = self.lifecycle.new_id();
        self.holds.insert(hold, held);
        self.reading.push_back((at + self.patience, hold));
        let (candidates, executable) = (vec![life], Some(filename));
        self.workers.submit(Job::Entry {
            hold,
            sighting: init.pid.into(),
            stopped: true,
            candidates,
            executable,
            at,
            time,
        });
    }

    pub(super) fn release(&mut self, life: LifeId) {
        let Some(creation) = self.creations.remove(&life) else { return };
        self.exits.has_made(creation.runtime());
        // It never came to the exec that was to be stopped.
        if let Some(runtime) = creation.runs()
            && self.stops.remove(&runtime).is_some()
            && let Some(exec_watch) = &mut self.exec_watch
        {
            exec_watch.release(runtime);
        }
    }
}
