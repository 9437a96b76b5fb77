//! What `top` knows: the containers that are there, and what was last told. Made from the JSON of the contract.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::row::{Row, clean, exit_words, name};

/// How many ended containers are shown for a while.
const ENDED: usize = 1000;

/// How long an ended container is shown.
const LINGER: Duration = Duration::from_secs(10);

/// How many of the last events are kept.
const LAST: usize = 100;

/// What becomes of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Creating,
    Created,
    Running,
    Paused,
    /// It ended, at this moment, in these words.
    Ended(Timestamp, String),
}

/// One container. All words are clean.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) pid: Option<u64>,
    pub(crate) engine: String,
    pub(crate) runtime: String,
    pub(crate) image: String,
    pub(crate) state: State,
    /// Since when it is there.
    pub(crate) since: Timestamp,
    /// How long it was held, in all.
    pub(crate) held: Duration,
    /// The last event, and when.
    pub(crate) last: (String, Timestamp),
}

/// By what rows are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// The newest first.
    #[default]
    Age,
    Name,
    /// The longest held first.
    Held,
}

impl Order {
    pub(crate) fn next(self) -> Order {
        match self {
            Order::Age => Order::Name,
            Order::Name => Order::Held,
            Order::Held => Order::Age,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Order::Age => "age",
            Order::Name => "name",
            Order::Held => "held",
        }
    }
}

/// A container is known by its id and bundle: namespaces of containerd may use one id at the same time.
type Key = (String, String);

#[derive(Debug, Default)]
pub(crate) struct Board {
    entries: BTreeMap<Key, Entry>,
    /// Ended ones, oldest first.
    ended: VecDeque<Key>,
    pub(crate) events: u64,
    pub(crate) denied: u64,
    pub(crate) lost: u64,
    /// The last events, newest last.
    pub(crate) last: VecDeque<Value>,
}

impl Board {
    /// Takes in an event. `started` tells since when a process is there, where its container was there before.
    pub(crate) fn apply(
        &mut self,
        event: Value,
        now: Timestamp,
        started: impl FnOnce(u64) -> Option<Timestamp>,
    ) {
        self.events += 1;
        let kind = event["event"].as_str().unwrap_or_default();
        let time = event["time"].as_str().and_then(|time| time.parse().ok()).unwrap_or(now);
        if event["answer"]["decision"] == "deny" {
            self.denied += 1;
        }
        if matches!(kind, "overflow" | "lost") {
            self.lost += 1;
        } else {
            self.container(kind, &event, time, started);
        }
        self.last.push_back(event);
        if self.last.len() > LAST {
            self.last.pop_front();
        }
    }

    fn container(
        &mut self,
        kind: &str,
        event: &Value,
        time: Timestamp,
        started: impl FnOnce(u64) -> Option<Timestamp>,
    ) {
        let word = |field: &Value| field.as_str().unwrap_or_default().to_owned();
        let key = (word(&event["id"]), word(&event["bundle"]));
        let ended = self.entries.get(&key).is_some_and(|entry| matches!(entry.state, State::Ended(..)));
        if ended && matches!(kind, "pre-create" | "created") {
            // The same id again: a new container.
            self.forget(&key);
        }
        if kind == "deleted" && !self.entries.contains_key(&key) {
            return;
        }
        let row = Row::new(event, false);
        let pid = event["pid"].as_u64();
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            id: row.id,
            name: String::new(),
            pid,
            engine: String::new(),
            runtime: String::new(),
            image: String::new(),
            state: State::Running,
            since: pid.filter(|_| event["existing"] == true).and_then(started).unwrap_or(time),
            held: Duration::ZERO,
            last: (String::new(), time),
        });
        let refresh = |old: &mut String, new: String| {
            if !new.is_empty() {
                *old = new;
            }
        };
        refresh(&mut entry.name, name(event));
        refresh(&mut entry.engine, row.engine);
        refresh(&mut entry.runtime, row.runtime);
        refresh(&mut entry.image, clean(event["image"].as_str().unwrap_or_default()));
        entry.pid = pid.or(entry.pid);
        entry.held += Duration::from_micros(event["answer"]["held_us"].as_u64().unwrap_or(0));
        entry.last = (row.event, time);
        let denied = event["answer"]["decision"] == "deny";
        let next = match kind {
            "pre-create" if denied => Some(State::Ended(time, "refused".into())),
            "pre-create" => Some(State::Creating),
            "created" if event["existing"] == true => Some(State::Running),
            "created" => Some(State::Created),
            "started" | "resumed" => Some(State::Running),
            "paused" => Some(State::Paused),
            "stopped" => Some(State::Ended(time, exit_words(&event["exit"]))),
            "deleted" => match &entry.state {
                State::Ended(..) => None,
                State::Creating => Some(State::Ended(time, "creation failed".into())),
                _ => Some(State::Ended(time, "deleted".into())),
            },
            _ => None,
        };
        // A runtime's verb may be told after the end: that is where a life stays.
        if let Some(next) = next.filter(|_| !matches!(entry.state, State::Ended(..))) {
            let ends = matches!(next, State::Ended(..));
            entry.state = next;
            if ends {
                self.ended.push_back(key);
                if self.ended.len() > ENDED
                    && let Some(oldest) = self.ended.pop_front()
                {
                    self.entries.remove(&oldest);
                }
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        self.entries.remove(key);
        self.ended.retain(|other| other != key);
    }

    /// Takes those away that ended a while ago. Was there any?
    pub(crate) fn sweep(&mut self, now: Timestamp) -> bool {
        let before = self.ended.len();
        while let Some(key) = self.ended.front() {
            let at = match self.entries.get(key).map(|entry| &entry.state) {
                Some(State::Ended(at, _)) => *at,
                _ => Timestamp::MIN,
            };
            if age(at, now) < LINGER {
                break;
            }
            let key = key.clone();
            self.forget(&key);
        }
        self.ended.len() != before
    }

    pub(crate) fn count(&self, which: impl Fn(&State) -> bool) -> usize {
        self.entries.values().filter(|entry| which(&entry.state)).count()
    }

    pub(crate) fn rows(&self, order: Order) -> Vec<&Entry> {
        let mut rows: Vec<&Entry> = self.entries.values().collect();
        match order {
            Order::Age => rows.sort_by_key(|entry| std::cmp::Reverse(entry.since)),
            Order::Name => rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id))),
            Order::Held => rows.sort_by_key(|entry| std::cmp::Reverse(entry.held)),
        }
        rows
    }
}

/// The time between two moments, not negative: clocks are set.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn event(kind: &str, id: &str, second: i64) -> Value {
        json!({"event": kind, "id": id, "bundle": "/b", "time": at(second).to_string(), "pid": 7,
               "exit": {"code": 3, "signal": null, "oom_killed": null}, "existing": false, "answer": null})
    }

    fn play(board: &mut Board, events: &[(&str, &str, i64)]) {
        for (kind, id, second) in events {
            board.apply(event(kind, id, *second), at(*second), |_| None);
        }
    }

    fn states(board: &Board) -> Vec<(&str, State)> {
        board.rows(Order::Name).into_iter().map(|entry| (entry.id.as_str(), entry.state.clone())).collect()
    }

    #[test]
    fn a_life_goes_over_the_board() {
        let mut board = Board::default();
        let seven = |second| State::Ended(at(second), "exit 3".into());
        for (kind, second, state) in [
            ("pre-create", 0, State::Creating),
            ("created", 1, State::Created),
            ("started", 2, State::Running),
            ("exec", 3, State::Running),
            ("paused", 4, State::Paused),
            ("resumed", 5, State::Running),
            ("stopped", 6, seven(6)),
            ("killed", 7, seven(6)),
            ("deleted", 8, seven(6)),
        ] {
            play(&mut board, &[(kind, "a", second)]);
            assert_eq!(states(&board), [("a", state)], "{kind}");
        }
        assert!(!board.sweep(at(15)));
        assert!(board.sweep(at(16)));
        assert_eq!((states(&board), board.events), (vec![], 9));
    }

    #[test]
    fn an_id_that_comes_again_is_a_new_container() {
        let mut board = Board::default();
        play(
            &mut board,
            &[("pre-create", "a", 0), ("created", "a", 1), ("stopped", "a", 2), ("pre-create", "a", 3)],
        );
        assert_eq!(states(&board), [("a", State::Creating)]);
        assert!(!board.sweep(at(100)), "the end of the first must not take the second away");
        assert_eq!(board.rows(Order::Age)[0].since, at(3));
    }

    #[test]
    fn what_failed_or_was_refused_does_not_run() {
        let mut board = Board::default();
        play(&mut board, &[("pre-create", "a", 0), ("deleted", "a", 1), ("deleted", "unknown", 1)]);
        let mut refused = event("pre-create", "b", 2);
        refused["answer"] = json!({"decision": "deny", "held_us": 1500});
        board.apply(refused, at(2), |_| None);
        assert_eq!(
            states(&board),
            [
                ("a", State::Ended(at(1), "creation failed".into())),
                ("b", State::Ended(at(2), "refused".into()))
            ]
        );
        assert_eq!((board.denied, board.rows(Order::Held)[0].held), (1, Duration::from_micros(1500)));
    }

    #[test]
    fn what_was_there_before_has_the_age_of_its_process() {
        let mut board = Board::default();
        let mut before = event("created", "a", 1000);
        before["existing"] = json!(true);
        board.apply(before, at(1000), |pid| (pid == 7).then(|| at(10)));
        assert_eq!((states(&board)[0].1.clone(), board.rows(Order::Age)[0].since), (State::Running, at(10)));
    }

    #[test]
    fn it_keeps_no_more_than_can_be_shown() {
        let mut board = Board::default();
        for index in 0..3 * ENDED as i64 {
            let id = format!("c{index}");
            play(&mut board, &[("created", &id, 0), ("stopped", &id, 0)]);
        }
        assert_eq!((board.rows(Order::Age).len(), board.last.len()), (ENDED, LAST));
    }
}
