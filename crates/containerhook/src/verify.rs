//! A model of legal lives: what a stream of events may say, and what it may not.
//!
//! `containerhook verify` holds a log against it, and the library's own tests every stream of theirs.
//!
//! It reads the JSON of the contract line by line and knows nothing of how the lines were made, so it can judge a log
//! of any age, and the library's own tests.
//!
//! A life is one container from its creation to its end. Ids come back, so lives of one id follow each other; and two
//! may be open at the same time, in different bundles: containerd gives each of its namespaces a root of its own, and
//! a create that fails because its id is taken is a short life beside the one that has the id.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

use crate::event::EventKind;
use serde_json::Value;

/// How many ended lives are remembered, to tell an event too many from an event of a container never seen.
const REMEMBERED: usize = 65_536;

/// How many lives of one id are kept.
const LIVES_OF_AN_ID: usize = 32;

/// What the stream may lack by the way it was made.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The kinds of events it holds; all where there are none.
    pub kinds: Vec<EventKind>,
    /// Numbers may have gaps: it holds some containers' events only.
    pub gaps: bool,
    /// It begins anywhere, and any line may be missing: it was cut.
    pub partial: bool,
    /// Every life that begins must end before the stream does.
    pub complete: bool,
}

impl Rules {
    /// Would an event of this kind be here if it had happened?
    fn tells(&self, kind: EventKind) -> bool {
        !self.partial && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

/// Something that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The line, counted from 1; `None` where the whole stream lacks something.
    pub line: Option<u64>,
    /// The container's id, where it is about one.
    pub id: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: ")?,
            None => f.write_str("at the end: ")?,
        }
        if let Some(id) = &self.id {
            write!(f, "{id}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines that were events.
    pub events: u64,
    /// Lives that were seen to begin.
    pub lives: u64,
    /// Lives that were seen to end.
    pub ended: u64,
    /// Lives that were open when the stream ended.
    pub open: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `pre-create` was told.
    Creating,
    /// `created` was told.
    Created,
    /// `started` was told.
    Started,
    /// `stopped` was told.
    Stopped,
    /// It was there before the stream: nothing is known but that it is.
    Unseen,
}

#[derive(Debug)]
struct Life {
    stage: Stage,
    bundle: Option<String>,
    pid: Option<u64>,
    rootless: bool,
    owner: Option<u64>,
    /// Where it was refused, by the event's word.
    denied: Option<&'static str>,
    /// Processes executed in it that were not told to have ended.
    execs: u64,
}

/// Judges a stream, line by line.
#[derive(Debug, Default)]
pub struct Model {
    rules: Rules,
    last_seq: Option<u64>,
    lives: HashMap<String, Vec<Life>>,
    /// Inits that live, by pid.
    pids: HashMap<u64, String>,
    /// Ids whose last life is over, and in which order that came: the oldest is forgotten first.
    over: HashSet<String>,
    over_order: VecDeque<String>,
    /// Events were lost: containers may have come and gone unseen.
    lossy: bool,
    summary: Summary,
    found: Vec<Violation>,
}

/// One line's parts that the rules are about, of the right types.
struct Event<'a> {
    kind: EventKind,
    id: &'a str,
    pid: Option<u64>,
    bundle: Option<&'a str>,
    existing: bool,
    rootless: bool,
    owner: Option<u64>,
    denied: bool,
    /// It was not held, and says why.
    unheard: bool,
    /// It has a word more to say.
    detailed: bool,
    /// Nothing is known of it but its id and pid.
    found: bool,
}

impl Model {
    /// A model that has seen nothing yet.
    #[must_use]
    pub fn new(rules: Rules) -> Model {
        Model { rules, ..Model::default() }
    }

    /// Takes the next line. What it violates is found by [`take_violations`](Self::take_violations).
    pub fn line(&mut self, number: u64, line: &Value) {
        let before = self.found.len();
        if let Some(event) = self.shape(line) {
            self.summary.events += 1;
            self.life(&event);
        }
        for violation in &mut self.found[before..] {
            violation.line = Some(number);
        }
    }

    /// What was found since the last time.
    #[must_use]
    pub fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.found)
    }

    /// Ends the stream.
    #[must_use]
    pub fn finish(mut self) -> (Summary, Vec<Violation>) {
        let mut open: Vec<(&String, Stage)> = self
            .lives
            .iter()
            .flat_map(|(id, lives)| lives.iter().map(move |life| (id, life)))
            // A refused create has no end to tell of.
            .filter(|(_, life)| !(life.stage == Stage::Creating && life.denied.is_some()))
            .map(|(id, life)| (id, life.stage))
            .filter(|(_, stage)| !matches!(stage, Stage::Stopped | Stage::Unseen))
            .collect();
        open.sort_by(|a, b| a.0.cmp(b.0));
        self.summary.open = open.len() as u64;
        if self.rules.complete {
            self.found.extend(open.iter().map(|(id, stage)| Violation {
                line: None,
                id: Some((*id).clone()),
                what: format!("its end was not told (the last that was: {})", stage.word()),
            }));
        }
        (self.summary, self.found)
    }

    fn violated(&mut self, id: &str, what: impl Into<String>) {
        let id = (!id.is_empty()).then(|| id.to_owned());
        self.found.push(Violation { line: None, id, what: what.into() });
    }

    /// The shape of a line by itself: words, types, and which fields go with which.
    fn shape<'a>(&mut self, line: &'a Value) -> Option<Event<'a>> {
        let Some(object) = line.as_object() else {
            self.violated("", "it is no JSON object");
            return None;
        };
        let id = line["id"].as_str().unwrap_or_default();
        let Some(word) = line["event"].as_str() else {
            self.violated(id, "it has no event");
            return None;
        };
        let kind = match word.parse::<EventKind>() {
            Ok(kind) => kind,
            Err(error) => {
                self.violated(id, error.to_string());
                return None;
            }
        };
        self.seq(&line["seq"]);
        let about_one = !matches!(kind, EventKind::Overflow | EventKind::Lost);
        if id.is_empty() && about_one {
            self.violated("", format!("{word} without an id"));
        }
        if line["time"].as_str().is_none_or(|time| !is_utc_with_nanoseconds(time)) {
            self.violated(id, format!("time {} is not RFC 3339 in UTC with nanoseconds", line["time"]));
        }
        for (field, right, type_) in [
            ("name", line["name"].is_string() || line["name"].is_null(), "a string or null"),
            (
                "pid",
                line["pid"].as_u64().is_some_and(|pid| pid > 0) || line["pid"].is_null(),
                "a pid or null",
            ),
            ("bundle", line["bundle"].is_string() || line["bundle"].is_null(), "a path or null"),
            ("held", line["held"].is_boolean(), "true or false"),
            ("existing", line["existing"].is_boolean(), "true or false"),
            ("rootless", line["rootless"].is_boolean(), "true or false"),
            ("answer", line["answer"].is_object() || line["answer"].is_null(), "an object or null"),
            ("exit", line["exit"].is_object() || line["exit"].is_null(), "an object or null"),
            ("exec", line["exec"].is_object() || line["exec"].is_null(), "an object or null"),
        ] {
            if !right || !object.contains_key(field) {
                self.violated(id, format!("{field} is {}, not {type_}", line[field]));
            }
        }
        self.answer(id, kind, line);
        self.exit(id, kind, &line["exit"]);
        if kind == EventKind::Exec && !line["exec"].is_object() {
            self.violated(id, "exec does not say what is executed");
        }
        Some(Event {
            kind,
            id,
            pid: line["pid"].as_u64(),
            bundle: line["bundle"].as_str(),
            existing: line["existing"] == true,
            rootless: line["rootless"] == true,
            owner: line["owner_uid"].as_u64(),
            denied: line["answer"]["decision"] == "deny",
            unheard: line["held"] == false && line["detail"].is_string(),
            detailed: line["detail"].is_string(),
            found: line["runtime"].is_null() && line["bundle"].is_null() && !line["pid"].is_null(),
        })
    }

    fn seq(&mut self, seq: &Value) {
        let Some(seq) = seq.as_u64().filter(|seq| *seq > 0) else {
            self.violated("", format!("seq is {seq}, not a number from 1"));
            return;
        };
        match self.last_seq {
            // A listener that was started again writes to the same log: to it, what runs was there before.
            Some(last) if seq == 1 && last > 0 => self.restart(),
            None if seq != 1 && !(self.rules.partial || self.rules.gaps) => {
                self.violated("", format!("the first seq is {seq}, not 1"));
            }
            Some(last) if seq <= last => {
                self.violated("", format!("seq {seq} does not come after {last}"));
            }
            Some(last) if seq > last + 1 && !(self.rules.partial || self.rules.gaps) => {
                self.violated("", format!("seq goes from {last} to {seq}: {} missing", seq - last - 1));
            }
            _ => {}
        }
        self.last_seq = Some(seq);
    }

    fn restart(&mut self) {
        for lives in self.lives.values_mut() {
            lives.retain(|life| !matches!(life.stage, Stage::Creating | Stage::Stopped));
            for life in lives {
                life.stage = Stage::Unseen;
            }
        }
        self.lives.retain(|_, lives| !lives.is_empty());
        self.over.clear();
        self.over_order.clear();
        self.lossy = false;
    }

    fn answer(&mut self, id: &str, kind: EventKind, line: &Value) {
        let (held, answer) = (line["held"] == true, &line["answer"]);
        let can_be_held =
            matches!(kind, EventKind::PreCreate | EventKind::Created | EventKind::Started | EventKind::Exec);
        if held && !can_be_held {
            self.violated(id, format!("{kind} cannot be held"));
        }
        if held && answer.is_null() {
            self.violated(id, format!("{kind} was held and not answered"));
        }
        if !held && answer.is_object() {
            self.violated(id, format!("{kind} was answered and not held"));
        }
        if answer.is_null() {
            return;
        }
        match answer["decision"].as_str() {
            Some("allow" | "deny") => {}
            Some("change") if kind == EventKind::PreCreate => {}
            Some("change") => self.violated(id, format!("{kind} cannot be answered with change")),
            _ => self.violated(id, format!("the decision is {}", answer["decision"])),
        }
        if !answer["timed_out"].is_boolean() || !answer["held_us"].is_u64() {
            self.violated(id, "the answer lacks timed_out or held_us");
        }
    }

    fn exit(&mut self, id: &str, kind: EventKind, exit: &Value) {
        if exit.is_null() {
            return;
        }
        if !matches!(kind, EventKind::Stopped | EventKind::ExecStopped | EventKind::Failed) {
            self.violated(id, format!("{kind} has an exit"));
        }
        let (code, signal) = (&exit["code"], &exit["signal"]);
        if !code.is_null() && !signal.is_null() {
            self.violated(id, format!("it exited with code {code} and by signal {signal}"));
        }
        if !code.is_null() && code.as_u64().is_none_or(|code| code > 255) {
            self.violated(id, format!("exit code {code}"));
        }
        if !signal.is_null() && signal.as_u64().is_none_or(|signal| !(1..=64).contains(&signal)) {
            self.violated(id, format!("signal {signal}"));
        }
        if !exit["oom_killed"].is_null() && !exit["oom_killed"].is_boolean() {
            self.violated(id, format!("oom_killed is {}", exit["oom_killed"]));
        }
    }

    /// The event's place in its container's life.
    fn life(&mut self, event: &Event<'_>) {
        match event.kind {
            EventKind::Overflow | EventKind::Lost => self.lossy = true,
            EventKind::PreCreate => self.pre_create(event),
            EventKind::Created => self.created(event),
            EventKind::Started => self.started(event),
            EventKind::Stopped => self.stopped(event),
            EventKind::Deleted => self.deleted(event),
            EventKind::Exec => {
                if let Some(mut life) = self.take(event, |life| life.stage != Stage::Creating) {
                    if life.stage == Stage::Stopped {
                        self.violated(event.id, "exec after stopped");
                    }
                    life.execs += u64::from(!event.denied);
                    self.put(event.id, life);
                } else {
                    self.unknown(event);
                    let execs = u64::from(!event.denied);
                    self.put(event.id, Life { execs, ..Life::begun(event, Stage::Unseen) });
                }
            }
            EventKind::ExecStopped => match self.take(event, |life| life.execs > 0) {
                Some(mut life) => {
                    life.execs -= 1;
                    self.put(event.id, life);
                }
                None if self.rules.tells(EventKind::Exec) && !self.lossy => {
                    self.violated(event.id, "exec-stopped without exec");
                }
                None => {}
            },
            // The verbs of a runtime, told when its process has ended: an exit is often told earlier.
            _ => match self.take(event, |life| life.stage != Stage::Creating) {
                Some(life) => self.put(event.id, life),
                None => self.unknown(event),
            },
        }
    }

    fn pre_create(&mut self, event: &Event<'_>) {
        if event.pid.is_some() {
            self.violated(event.id, "pre-create has a pid: nothing runs yet");
        }
        if event.existing {
            self.violated(event.id, "pre-create of a container that was there before");
        }
        let twice = self.lives.get(event.id).is_some_and(|lives| {
            lives.iter().any(|life| {
                life.stage == Stage::Creating
                    && life.denied.is_none()
                    && life.bundle.as_deref() == event.bundle
            })
        });
        if twice {
            self.violated(event.id, "pre-create was told twice");
        }
        self.summary.lives += 1;
        let denied = event.denied.then_some("pre-create");
        let lives = self.lives.entry(event.id.to_owned()).or_default();
        // A refused create never was: the next one is a life of its own.
        lives.retain(|life| {
            !(life.stage == Stage::Creating
                && life.denied.is_some()
                && life.bundle.as_deref() == event.bundle)
        });
        // An id that is used for ever without a deletion that is told must not fill the memory.
        if lives.len() >= LIVES_OF_AN_ID {
            lives.remove(0);
        }
        self.put(event.id, Life { denied, ..Life::begun(event, Stage::Creating) });
    }

    fn created(&mut self, event: &Event<'_>) {
        // One whose pid could not be learned is told all the same, and says so.
        if event.pid.is_none() && !event.unheard && !event.detailed {
            self.violated(event.id, "created without a pid");
            return;
        }
        let begun =
            |life: &Life| life.stage == Stage::Creating || (event.existing && life.stage == Stage::Unseen);
        let mut life = match self.take(event, begun) {
            Some(life) => {
                if event.existing && life.stage != Stage::Unseen {
                    self.violated(event.id, "existing, but its creation was seen");
                }
                if life.denied.is_some() {
                    self.violated(event.id, "created after its pre-create was denied");
                }
                self.unchanged(event, &life);
                life
            }
            None => {
                let again = self.lives.get(event.id).is_some_and(|lives| {
                    lives.iter().any(|life| {
                        event.pid.is_some() && life.pid == event.pid && life.stage != Stage::Stopped
                    })
                });
                if again {
                    self.violated(event.id, "created was told twice");
                    return;
                }
                // A container whose runtime nobody knew to mark is told when it is there; the event says so.
                if !(event.existing || event.unheard || self.lossy) && self.rules.tells(EventKind::PreCreate)
                {
                    self.violated(event.id, "created without pre-create");
                }
                self.summary.lives += 1;
                Life::begun(event, Stage::Creating)
            }
        };
        let others = self.lives.get(event.id).map(Vec::as_slice).unwrap_or_default();
        let overlapping = others.iter().any(|other| {
            matches!(other.stage, Stage::Created | Stage::Started) && other.bundle.as_deref() == event.bundle
        });
        if overlapping && self.rules.tells(EventKind::Stopped) && !self.lossy {
            self.violated(event.id, "created while the one before it in this bundle has not stopped");
        }
        if self.rules.tells(EventKind::Stopped)
            && !self.lossy
            && let Some(pid) = event.pid
            && let Some(owner) = self.pids.get(&pid).filter(|_| life.stage != Stage::Unseen).cloned()
        {
            self.violated(event.id, format!("its pid {pid} is that of {owner}, which has not stopped"));
        }
        if let Some(pid) = event.pid {
            self.pids.insert(pid, event.id.to_owned());
        }
        life.stage = Stage::Created;
        life.pid = event.pid;
        life.denied = event.denied.then_some("created");
        self.put(event.id, life);
    }

    fn started(&mut self, event: &Event<'_>) {
        match self.take(event, |life| life.stage != Stage::Unseen) {
            Some(mut life) => {
                match life.stage {
                    Stage::Creating if self.rules.tells(EventKind::Created) => {
                        self.violated(event.id, "started before created");
                    }
                    Stage::Started => self.violated(event.id, "started was told twice"),
                    Stage::Stopped => self.violated(event.id, "started after stopped"),
                    _ => {}
                }
                if let Some(denied) = life.denied {
                    self.violated(event.id, format!("started after its {denied} was denied"));
                }
                self.unchanged(event, &life);
                if life.stage != Stage::Stopped {
                    life.stage = Stage::Started;
                }
                self.put(event.id, life);
            }
            None => {
                if self.rules.tells(EventKind::Created) && !self.lossy {
                    self.violated(event.id, "started without created");
                }
                self.put(event.id, Life::begun(event, Stage::Started));
            }
        }
    }

    fn stopped(&mut self, event: &Event<'_>) {
        let life = self.take(event, |life| life.stage != Stage::Stopped);
        match &life {
            Some(life) => {
                if life.stage == Stage::Creating && self.rules.tells(EventKind::Created) {
                    self.violated(event.id, "stopped before created");
                }
                self.unchanged(event, life);
            }
            None if self.over.contains(event.id) || self.lives.contains_key(event.id) => {
                self.violated(event.id, "stopped was told twice");
            }
            // Of what others have found nothing but the end is told.
            None if !event.existing
                && !event.found
                && self.rules.tells(EventKind::Created)
                && !self.lossy =>
            {
                self.violated(event.id, "stopped without created");
            }
            None => {}
        }
        let mut life = life.unwrap_or_else(|| Life::begun(event, Stage::Unseen));
        if let Some(pid) = life.pid.or(event.pid) {
            self.pids.remove(&pid);
        }
        self.summary.ended += 1;
        life.stage = Stage::Stopped;
        self.put(event.id, life);
        self.remember(event.id);
    }

    fn deleted(&mut self, event: &Event<'_>) {
        match self.take(event, |_| true) {
            Some(life) => {
                match life.stage {
                    Stage::Created | Stage::Started
                        if self.rules.tells(EventKind::Stopped) && !self.lossy =>
                    {
                        self.violated(event.id, "deleted before stopped");
                    }
                    Stage::Stopped => {}
                    _ => self.summary.ended += 1,
                }
                if life.owner != event.owner || life.rootless != event.rootless {
                    self.violated(event.id, "its owner has changed");
                }
                if let Some(pid) = life.pid {
                    self.pids.remove(&pid);
                }
                self.remember(event.id);
            }
            None if self.over.contains(event.id) => self.violated(event.id, "deleted was told twice"),
            // It was there before the listener, and is gone.
            None => {}
        }
        if self.lives.get(event.id).is_some_and(Vec::is_empty) {
            self.lives.remove(event.id);
        }
    }

    /// An event of a life whose beginning was not told.
    fn unknown(&mut self, event: &Event<'_>) {
        if self.over.contains(event.id) && !self.lossy && !self.rules.partial {
            self.violated(event.id, format!("{} after its end", event.kind));
        }
    }

    fn unchanged(&mut self, event: &Event<'_>, life: &Life) {
        match (life.pid, event.pid) {
            (Some(was), Some(is)) if was != is => {
                self.violated(event.id, format!("its pid was {was}, and is {is}"));
            }
            (Some(was), None) => {
                self.violated(event.id, format!("its pid was {was}, and is not known any more"));
            }
            _ => {}
        }
        if life.bundle.is_some() && event.bundle.is_some() && life.bundle.as_deref() != event.bundle {
            self.violated(event.id, "its bundle has changed");
        }
        if life.owner != event.owner || life.rootless != event.rootless {
            self.violated(event.id, "its owner has changed");
        }
    }

    /// The life an event belongs to, out of those that may be meant: by its pid, else by its bundle, else the latest.
    fn take(&mut self, event: &Event<'_>, may_be: impl Fn(&Life) -> bool) -> Option<Life> {
        let lives = self.lives.get_mut(event.id)?;
        let by = |same: &dyn Fn(&Life) -> bool| lives.iter().rposition(|life| may_be(life) && same(life));
        let index = by(&|life| event.pid.is_some() && life.pid == event.pid)
            .or_else(|| {
                by(&|life| {
                    life.bundle.as_deref() == event.bundle && (life.pid.is_none() || event.pid.is_none())
                })
            })
            .or_else(|| by(&|life| life.bundle.as_deref() == event.bundle))
            .or_else(|| by(&|life| life.bundle.is_none() || event.bundle.is_none()))
            // Nothing fits well: one that is alone is meant, and what differs is said.
            .or_else(|| (lives.len() == 1).then(|| by(&|_| true)).flatten())?;
        Some(lives.remove(index))
    }

    fn put(&mut self, id: &str, life: Life) {
        self.lives.entry(id.to_owned()).or_default().push(life);
    }

    fn remember(&mut self, id: &str) {
        if !self.over.insert(id.to_owned()) {
            return;
        }
        self.over_order.push_back(id.to_owned());
        if self.over_order.len() > REMEMBERED
            && let Some(oldest) = self.over_order.pop_front()
        {
            self.over.remove(&oldest);
            // A container that stopped long ago, and whose deletion is never told (BuildKit deletes none).
            if let Some(lives) = self.lives.get_mut(&oldest) {
                lives.retain(|life| life.stage != Stage::Stopped);
                if lives.is_empty() {
                    self.lives.remove(&oldest);
                }
            }
        }
    }
}

impl Life {
    fn begun(event: &Event<'_>, stage: Stage) -> Life {
        Life {
            stage,
            bundle: event.bundle.map(str::to_owned),
            pid: event.pid,
            rootless: event.rootless,
            owner: event.owner,
            denied: None,
            execs: 0,
        }
    }
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Stage::Creating => "pre-create",
            Stage::Created => "created",
            Stage::Started => "started",
            Stage::Stopped => "stopped",
            Stage::Unseen => "an event of a container that was there before",
        }
    }
}

/// `2026-11-23T21:31:54.123456789Z`
fn is_utc_with_nanoseconds(time: &str) -> bool {
    const FORM: &[u8] = b"dddd-dd-ddTdd:dd:dd.dddddddddZ";
    time.len() == FORM.len()
        && time.bytes().zip(FORM).all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An event from a few words: `created c1 pid=5 bundle=/b existing held deny`. It is right but for what they say.
    fn event(seq: u64, words: &str) -> Value {
        let mut words = words.split(' ');
        let kind = words.next().unwrap();
        let mut event = json!({
            "event": kind, "seq": seq, "time": "2026-11-23T21:31:54.123456789Z", "id": words.next().unwrap_or(""),
            "name": null, "pid": null, "bundle": null, "runtime": {"name": "runc", "path": "/runc"}, "engine": null, "held": false,
            "existing": false, "answer": null, "rootless": false, "owner_uid": 0, "image": null,
            "kubernetes": null, "exec": null, "exit": null
        });
        let answer =
            |decision: &str| json!({"decision": decision, "reason": null, "timed_out": false, "held_us": 9});
        if matches!(kind, "pre-create") {
            event["held"] = json!(true);
            event["answer"] = answer("allow");
        }
        if kind == "exec" {
            event["exec"] = json!({"args": ["sh"], "user": null, "tty": false, "cwd": null});
        }
        for word in words {
            match word.split_once('=') {
                Some(("code", code)) => {
                    event["exit"] =
                        json!({"code": code.parse::<i64>().unwrap(), "signal": null, "oom_killed": null});
                }
                Some(("signal", signal)) => {
                    event["exit"]["code"] = event["exit"]["code"].take();
                    event["exit"]["signal"] = json!(signal.parse::<i64>().unwrap());
                }
                Some(("seq" | "pid" | "owner_uid", number)) => {
                    event[word.split('=').next().unwrap()] = json!(number.parse::<u64>().unwrap());
                }
                Some((field, value)) => event[field] = json!(value),
                None if matches!(word, "allow" | "deny" | "change") => {
                    event["held"] = json!(true);
                    event["answer"] = answer(word);
                }
                None if word == "found" => event["runtime"] = Value::Null,
                None if word == "unanswered" => event["answer"] = Value::Null,
                None => event[word] = json!(true),
            }
        }
        event
    }

    fn judge(rules: &Rules, lines: &[&str]) -> (Summary, Vec<String>) {
        let mut model = Model::new(rules.clone());
        let mut seq = 0;
        for (index, words) in lines.iter().enumerate() {
            let event = event(seq + 1, words);
            seq = event["seq"].as_u64().unwrap();
            model.line(index as u64 + 1, &event);
        }
        let mut found = model.take_violations();
        let (summary, at_end) = model.finish();
        found.extend(at_end);
        (summary, found.iter().map(Violation::to_string).collect())
    }

    #[test]
    fn legal_lives() {
        let lives: &[&[&str]] = &[
            &[],
            &["pre-create a"],
            &[
                "pre-create a",
                "created a pid=5 allow",
                "started a pid=5 allow",
                "stopped a pid=5 code=0",
                "deleted a pid=5",
            ],
            // runsc: its entrypoint is never executed on the host. BuildKit: nothing is deleted.
            &["pre-create a", "created a pid=5", "stopped a pid=5 signal=9"],
            // A create that failed, and the next of its id.
            &["pre-create a", "deleted a", "pre-create a", "created a pid=5", "stopped a pid=5", "deleted a"],
            // Refused, and tried again, with and without its end being told.
            &["pre-create a deny", "pre-create a deny", "deleted a", "pre-create a", "deleted a"],
            &["pre-create a", "created a pid=5 deny", "stopped a pid=5 signal=9", "deleted a pid=5"],
            &["pre-create a change", "created a pid=5"],
            // Docker restarts: one id, one bundle, life after life, and pids that come again.
            &[
                "pre-create a bundle=/a",
                "created a pid=5 bundle=/a",
                "stopped a pid=5 bundle=/a",
                "deleted a bundle=/a",
                "pre-create a bundle=/a",
                "created a pid=5 bundle=/a",
                "stopped a pid=5 bundle=/a",
            ],
            // The end is told at once, the deletion later: the next life may have begun.
            &[
                "pre-create a",
                "created a pid=5",
                "stopped a pid=5",
                "pre-create a",
                "deleted a pid=5",
                "created a pid=6",
                "stopped a pid=6",
                "deleted a pid=6",
            ],
            // Two namespaces of containerd: one id, two bundles, at the same time.
            &[
                "pre-create a bundle=/1",
                "pre-create a bundle=/2",
                "created a pid=5 bundle=/2",
                "created a pid=4 bundle=/1",
                "stopped a pid=5 bundle=/2",
                "stopped a pid=4 bundle=/1",
            ],
            // The id is taken: the second create fails, and the first container lives on.
            &[
                "pre-create a bundle=/1",
                "created a pid=5 bundle=/1",
                "pre-create a bundle=/1",
                "deleted a bundle=/1",
                "started a pid=5 bundle=/1",
                "stopped a pid=5 bundle=/1",
            ],
            // Its runtime was not marked.
            &["created a pid=5 detail=not_held", "started a pid=5 detail=not_held", "stopped a pid=5 code=3"],
            // There before the listener.
            &["created a pid=5 existing", "stopped a pid=5 code=0", "deleted a pid=5"],
            &["stopped a pid=5 existing"],
            // Found by others.
            &["stopped a pid=5 found"],
            // Its pid could not be learned.
            &["pre-create a", "created a detail=x", "stopped a"],
            &[
                "exec a pid=5 allow",
                "exec-stopped a pid=5 code=1",
                "paused a pid=5",
                "resumed a pid=5",
                "deleted a",
            ],
            // Executed processes end with the container, on either side of its end.
            &[
                "pre-create a",
                "created a pid=5",
                "exec a pid=5 allow",
                "exec a pid=5 allow",
                "exec-stopped a pid=5 code=0",
                "killed a pid=5",
                "stopped a pid=5 signal=9",
                "exec-stopped a pid=5 signal=9",
                "checkpointed a pid=5",
            ],
            // What was lost was lost.
            &["overflow", "started a pid=5", "stopped a pid=5 code=0"],
            &["lost a", "created a pid=5", "created b pid=6"],
            // The listener was started again, and goes on in the same log.
            &[
                "pre-create a",
                "created a pid=5",
                "created a pid=5 existing seq=1",
                "stopped a pid=5",
                "pre-create b",
            ],
            &["pre-create a", "created a pid=5", "stopped a pid=5 seq=1"],
        ];
        for life in lives {
            assert_eq!(judge(&Rules::default(), life).1, Vec::<String>::new(), "{life:?}");
        }
    }

    #[test]
    fn illegal_lives() {
        let lives: &[(&[&str], &[&str])] = &[
            (&["pre-create a seq=3"], &["line 1: the first seq is 3, not 1"]),
            (&["pre-create a", "created a pid=5 seq=4"], &["line 2: seq goes from 1 to 4: 2 missing"]),
            (
                &["pre-create a", "created a pid=5", "started a pid=5 seq=2"],
                &["line 3: seq 2 does not come after 2"],
            ),
            (&["pre-create a", "pre-create a"], &["line 2: a: pre-create was told twice"]),
            (&["pre-create a pid=5"], &["line 1: a: pre-create has a pid: nothing runs yet"]),
            (&["pre-create a existing"], &["line 1: a: pre-create of a container that was there before"]),
            (&["pre-create a unanswered"], &["line 1: a: pre-create was held and not answered"]),
            (&["created a pid=5"], &["line 1: a: created without pre-create"]),
            (&["created a pid=5 allow detail=x"], &["line 1: a: created without pre-create"]),
            (&["pre-create a", "created a"], &["line 2: a: created without a pid"]),
            (&["pre-create a", "created a pid=5", "created a pid=5"], &["line 3: a: created was told twice"]),
            (
                &["pre-create a", "created a pid=5 change"],
                &["line 2: a: created cannot be answered with change"],
            ),
            (
                &["pre-create a deny", "created a pid=5"],
                &["line 2: a: created after its pre-create was denied"],
            ),
            (
                &["pre-create a", "created a pid=5 existing"],
                &["line 2: a: existing, but its creation was seen"],
            ),
            (
                &["created a pid=5 existing", "created a pid=5 existing"],
                &["line 2: a: created was told twice"],
            ),
            (&["pre-create a", "started a pid=5"], &["line 2: a: started before created"]),
            (&["started a pid=5"], &["line 1: a: started without created"]),
            (
                &["pre-create a", "created a pid=5", "started a pid=5", "started a pid=5"],
                &["line 4: a: started was told twice"],
            ),
            (
                &["pre-create a", "created a pid=5", "stopped a pid=5", "started a pid=5"],
                &["line 4: a: started after stopped"],
            ),
            (
                &["pre-create a", "created a pid=5 deny", "started a pid=5"],
                &["line 3: a: started after its created was denied"],
            ),
            (&["pre-create a", "stopped a"], &["line 2: a: stopped before created"]),
            (&["stopped a pid=5"], &["line 1: a: stopped without created"]),
            (
                &["pre-create a", "created a pid=5", "stopped a pid=5", "stopped a pid=5"],
                &["line 4: a: stopped was told twice"],
            ),
            (
                &["pre-create a", "created a pid=5", "stopped a pid=6"],
                &["line 3: a: its pid was 5, and is 6"],
            ),
            (
                &["pre-create a", "created a pid=5", "stopped a"],
                &["line 3: a: its pid was 5, and is not known any more"],
            ),
            (&["pre-create a", "created a pid=5 owner_uid=7"], &["line 2: a: its owner has changed"]),
            (
                &["pre-create a bundle=/1", "created a pid=5 bundle=/2"],
                &["line 2: a: its bundle has changed"],
            ),
            (&["pre-create a", "created a pid=5", "deleted a pid=5"], &["line 3: a: deleted before stopped"]),
            (&["pre-create a", "deleted a", "deleted a"], &["line 3: a: deleted was told twice"]),
            (
                &["pre-create a", "created a pid=5", "pre-create a", "created a pid=6"],
                &["line 4: a: created while the one before it in this bundle has not stopped"],
            ),
            (
                &["pre-create a", "created a pid=5", "pre-create b", "created b pid=5"],
                &["line 4: b: its pid 5 is that of a, which has not stopped"],
            ),
            (&["pre-create a", "deleted a", "paused a"], &["line 3: a: paused after its end"]),
            (
                &["pre-create a", "created a pid=5", "stopped a pid=5", "exec a pid=5"],
                &["line 4: a: exec after stopped"],
            ),
            (&["exec-stopped a pid=5"], &["line 1: a: exec-stopped without exec"]),
            (&["deleted a allow"], &["line 1: a: deleted cannot be held"]),
            (&["pre-create a code=3"], &["line 1: a: pre-create has an exit"]),
            (&["stopped a existing code=256"], &["line 1: a: exit code 256"]),
            (&["stopped a existing signal=65"], &["line 1: a: signal 65"]),
            (&["stopped a existing code=1 signal=9"], &["line 1: a: it exited with code 1 and by signal 9"]),
            (&["created"], &["line 1: created without an id", "line 1: created without a pid"]),
            (
                &["born a"],
                &[
                    "line 1: a: \"born\" is no kind of event; the kinds are pre-create, created, started, stopped, deleted, exec, exec-stopped, paused, resumed, updated, killed, checkpointed, failed, overflow, lost",
                ],
            ),
            (
                &["pre-create a time=now"],
                &["line 1: a: time \"now\" is not RFC 3339 in UTC with nanoseconds"],
            ),
        ];
        for (life, violations) in lives {
            assert_eq!(judge(&Rules::default(), life).1, *violations, "{life:?}");
        }
    }

    #[test]
    fn lines_that_are_no_events() {
        let mut model = Model::new(Rules::default());
        for (number, line) in [(1, json!(3)), (2, json!({})), (3, json!({"event": "created"}))] {
            model.line(number, &line);
        }
        let found: Vec<String> = model.take_violations().iter().map(Violation::to_string).collect();
        assert_eq!(found[..2], ["line 1: it is no JSON object", "line 2: it has no event"]);
        assert!(found.contains(&"line 3: seq is null, not a number from 1".to_owned()), "{found:?}");
        assert!(found.contains(&"line 3: held is null, not true or false".to_owned()), "{found:?}");
    }

    #[test]
    fn a_filtered_stream_lacks_only_what_was_filtered() {
        let rules = Rules { kinds: vec![EventKind::Created, EventKind::Stopped], ..Rules::default() };
        let life =
            ["created a pid=5", "stopped a pid=5", "created a pid=6", "stopped a pid=6", "stopped a pid=6"];
        assert_eq!(judge(&rules, &life).1, ["line 5: a: stopped was told twice"]);
        let rules = Rules { kinds: vec![EventKind::Stopped], ..Rules::default() };
        assert_eq!(judge(&rules, &["stopped a pid=5"]).1, Vec::<String>::new());
    }

    #[test]
    fn a_stream_of_some_containers_has_whole_lives_and_gaps() {
        let rules = Rules { gaps: true, ..Rules::default() };
        let life = ["pre-create a seq=4", "created a pid=5 seq=9", "stopped a pid=5 seq=11"];
        assert_eq!(judge(&rules, &life).1, Vec::<String>::new());
        assert_eq!(judge(&rules, &life[1..]).1, ["line 1: a: created without pre-create"]);
    }

    #[test]
    fn a_cut_stream_may_begin_anywhere() {
        let rules = Rules { partial: true, ..Rules::default() };
        let life = [
            "stopped b pid=3 seq=17",
            "created a pid=5 seq=19",
            "stopped a pid=5 seq=40",
            "deleted a pid=5 seq=41",
        ];
        assert_eq!(judge(&rules, &life).1, Vec::<String>::new());
        assert_eq!(
            judge(&rules, &["created a pid=5 seq=19", "stopped a pid=5 seq=12"]).1,
            ["line 2: seq 12 does not come after 19"]
        );
    }

    #[test]
    fn a_complete_stream_ends_every_life_it_begins() {
        let rules = Rules { complete: true, ..Rules::default() };
        let lines = [
            "pre-create a",
            "created a pid=5",
            "pre-create b",
            "created b pid=6",
            "stopped b pid=6",
            "pre-create c deny",
            "pre-create d",
            "exec e pid=9",
        ];
        let (summary, found) = judge(&rules, &lines);
        assert_eq!(
            found,
            [
                "at the end: a: its end was not told (the last that was: created)",
                "at the end: d: its end was not told (the last that was: pre-create)"
            ]
        );
        assert_eq!(summary, Summary { events: 8, lives: 4, ended: 1, open: 2 });
        let (_, found) = judge(&Rules::default(), &lines);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_stream_without_end_takes_bounded_memory() {
        let mut model = Model::new(Rules::default());
        let mut seq = 0;
        let mut tell = |model: &mut Model, words: &str| {
            seq += 1;
            model.line(seq, &event(seq, words));
        };
        for round in 0..200 {
            tell(&mut model, "pre-create a");
            tell(&mut model, &format!("created a pid={}", round + 1));
            tell(&mut model, &format!("stopped a pid={}", round + 1));
        }
        assert_eq!(model.take_violations(), []);
        assert!(model.lives["a"].len() <= LIVES_OF_AN_ID);
        assert!(model.pids.is_empty());
        for index in 0..REMEMBERED + 10 {
            model.remember(&format!("id-{index}"));
        }
        assert_eq!((model.over.len(), model.over_order.len()), (REMEMBERED, REMEMBERED));
    }
}
