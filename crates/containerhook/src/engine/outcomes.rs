//! What comes of what workers have done.

use std::sync::Arc;
use std::time::SystemTime;

use super::{Engine, MOST_NAMES};
use crate::exit::Process;
use crate::lifecycle::{Existing, Init, Input, Verb};
use crate::outlet::Level;
use crate::work::{Found, Job, Outcome, inode_of};

impl Engine {
    pub(super) fn worked(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::NotTrusted(job) => {
                self.workers.anybody.submit(job);
            }
            Outcome::CaptureReplaced(replaced) => self.capture_replaced(replaced.map(|capture| *capture)),
            Outcome::Lost { hold, why, refused, time } => {
                self.read(hold);
                if let Some(held) = self.holds.remove(&hold) {
                    self.let_go(held, None);
                }
                if refused {
                    self.replace_capture();
                }
                self.apply(Input::Lost { why, time });
            }
            Outcome::Unread { hold, why, sighting, before, binary, at, time } => {
                self.read(hold);
                self.holds.remove(&hold);
                let line = format!("an execution of {} goes on unheld: {why}", binary.path.display());
                self.log.log(Level::Warn, line);
                let life = self.lifecycle.new_id();
                self.workers.submit(Job::After { life, sighting, before, binary, at, time });
            }
            Outcome::Passed { hold, why } => {
                self.read(hold);
                if let Some(held) = self.holds.remove(&hold) {
                    self.let_go(held, None);
                }
                if let Some((level, why)) = why {
                    self.log.log(level, why);
                }
            }
            Outcome::Monitor { hold, id, name } => {
                self.read(hold);
                self.names.retain(|(known, _)| *known != id);
                if self.names.len() >= MOST_NAMES {
                    self.names.pop_front();
                }
                self.names.push_back((id, name));
                self.holds.remove(&hold);
            }
            Outcome::Command { mut command, creation } => {
                let hold = command.hold;
                self.read(hold);
                let process = command.process;
                if let Some(creation) =
                    creation.as_ref().filter(|_| matches!(command.verb, Verb::Exec { .. }))
                {
                    self.exits.makes(process);
                    self.execs.insert(process, Arc::clone(creation));
                } else if let Some(creation) = creation {
                    if let Some(at) = self.names.iter().position(|(id, _)| *id == command.key.id)
                        && let Some((_, name)) = self.names.remove(at)
                    {
                        // CRI-O's conmon is called by a mangled name that says less than the annotations.
                        if command.container.kubernetes.is_none() {
                            command.container.name.get_or_insert(name);
                        }
                    }
                    self.exits.makes(process);
                    self.creations.insert(hold, creation);
                }
                command.held = self.holds.contains_key(&hold);
                if !command.held {
                    command.detail = Some("not held: it had gone on before it was read".into());
                }
                self.apply(Input::Command(command));
                if !self.lifecycle.is_life(hold) {
                    self.release(hold);
                }
                if !self.lifecycle.executes(process) && self.execs.remove(&process).is_some() {
                    self.exits.has_made(process);
                }
            }
            Outcome::Entry(entry) => {
                self.read(entry.hold);
                if self.holds.contains_key(&entry.hold) {
                    self.apply(Input::Entry(entry));
                }
            }
            Outcome::Finished { life, outcome, entry } => {
                self.entry_marked(life, entry);
                let mut outcome = outcome;
                if let Some(why) = outcome.unmarked.take() {
                    match self.stop_at_exec(life) {
                        Ok(()) => outcome.marked = true,
                        Err(also) => outcome.unmarked = Some(format!("{why}; {also}")),
                    }
                }
                self.apply(Input::Finished { life, outcome });
            }
            Outcome::Init { life, found, entry, time } => {
                let marked = entry.is_some();
                self.entry_marked(life, entry);
                let init = match found {
                    Err(why) => Init::Unknown(why),
                    Ok(process) => {
                        let runtime = self.creations.get(&life).map(|creation| creation.runtime());
                        self.watch_found(process, runtime)
                    }
                };
                self.apply(Input::InitFound { life, init, marked, time });
            }
            Outcome::Changed(changes) => self.changed(changes),
            Outcome::Untold { untold, learned } => {
                self.looks -= usize::from(untold.existing);
                for (binary, mark) in learned {
                    if !self.runtimes.contains_key(&inode_of(&binary)) {
                        let line = format!(
                            "{} is a container runtime that nothing named",
                            binary.host_path.display()
                        );
                        self.log.log(Level::Warn, line);
                    }
                    self.marked(binary, mark);
                }
                self.apply(Input::Untold(untold));
            }
            Outcome::Exec { life, runtime, found, time } => {
                let found = match found {
                    Found::Unknown(why) => Init::Unknown(why),
                    Found::Gone(pid) => self.ended_unwatched(Process { pid, start_time: 0 }, Some(runtime)),
                    Found::Process(process) => self.watch_found(process, Some(runtime)),
                };
                self.exits.has_made(runtime);
                self.apply(Input::ExecFound { life, runtime, found, time });
            }
            Outcome::Cgroup { process, cgroup } => self.apply(Input::Cgroup { process, cgroup }),
            Outcome::Counted { process, oom_killed } => self.counted(process, oom_killed),
            Outcome::Unkillable { process, why } => {
                self.killed.remove(&process);
                self.apply(Input::Unkillable { process, why });
            }
            Outcome::Ended { process, status, time } => {
                self.apply(Input::Ended { process, status, time });
                self.forget(process);
            }
            Outcome::Existing { found, strangers } => {
                self.looks -= 1;
                for (key, container, process) in found {
                    let time = SystemTime::now();
                    self.apply(Input::Existing(Box::new(Existing { key, container, process, time })));
                }
                for init in strangers {
                    let (search, time) = (self.search.clone(), SystemTime::now());
                    let ancestors = self.proc.ancestors(init.pid);
                    if !self.lifecycle.tells_of(init, &ancestors) {
                        self.looks += 1;
                        self.workers.submit(Job::Stranger { init, ancestors, search, existing: true, time });
                    }
                }
            }
        }
    }
}
