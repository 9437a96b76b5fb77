//! Many events, and more than the queue has room for.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use fanotify::{Event, Group};

use crate::harness::{Program, Running, Watchdog, can_run, eventually, skip};

#[test]
fn reading_an_empty_queue_does_not_wait() {
    if can_run("reading_an_empty_queue_does_not_wait") {
        let _watchdog = Watchdog::new();
        let group = Group::builder().nonblocking(true).build().expect("group");
        let mut events = Vec::new();
        assert_eq!(group.read(&mut events).expect("read"), 0);
        assert!(!group.wait(Some(Duration::from_millis(1))).expect("poll"));
    }
}

#[test]
fn a_batch_is_not_exceeded() {
    if !can_run("a_batch_is_not_exceeded") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let group = Group::builder().nonblocking(true).batch(3).build().expect("group");
    let _mark = group.mark(&program.path).expect("mark");
    let running: Vec<_> = (0..7).map(|_| program.start()).collect();
    running.iter().for_each(Running::until_held);
    let mut events = Vec::new();
    let counts: Vec<_> = (0..4).map(|_| group.read(&mut events).expect("read")).collect();
    assert_eq!(counts, [3, 3, 1, 0]);
    drop(events);
    for one in running {
        assert_eq!(one.end(), 0);
    }
}

#[test]
fn a_thousand_held_at_once() {
    const MANY: usize = 1000;
    const TEST: &str = "a_thousand_held_at_once";
    if !can_run(TEST) {
        return;
    }
    let _watchdog = Watchdog::new();
    if raise_descriptors() < MANY as u64 + 200 {
        return skip(TEST, "the limit of open files is too low and cannot be raised (ulimit -Hn)");
    }
    let program = Program::new();
    let group = Group::builder().nonblocking(true).build().expect("group");
    let _mark = group.mark(&program.path).expect("mark");
    let running: Vec<_> = (0..MANY).map(|_| program.start()).collect();

    let mut events = Vec::new();
    eventually("all events come", || {
        group.read(&mut events).expect("read");
        (events.len() == MANY).then_some(())
    });
    running.iter().for_each(Running::until_held);
    let mut wanted = HashMap::new();
    // In another order than they came, and not all alike.
    for (number, event) in events.into_iter().rev().enumerate() {
        let Event::Permission(event) = event else { panic!("{event:?}") };
        let deny = number % 3 == 0;
        let before = wanted.insert(event.task(), if deny { libc::EPERM } else { 0 });
        assert_eq!(before, None, "each task is told once");
        if deny { event.deny() } else { event.allow() }.expect("answer");
    }
    for one in running {
        let pid = one.pid;
        assert_eq!(Some(one.end()), wanted.remove(&pid));
    }
}

fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads into, then sets from, a structure of ours.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    limit.rlim_cur
}

#[test]
fn overflow_is_told_and_what_did_not_fit_is_allowed() {
    const ROOM: usize = 4;
    const TEST: &str = "overflow_is_told_and_what_did_not_fit_is_allowed";
    if !can_run(TEST) {
        return;
    }
    let _watchdog = Watchdog::new();
    let Some(setting) = Setting::lower("/proc/sys/fs/fanotify/max_queued_events", ROOM) else {
        return skip(TEST, "max_queued_events cannot be set (before Linux 5.13, or /proc/sys is read-only)");
    };
    let group = Group::builder().nonblocking(true).unlimited_queue(false).build().expect("group");
    drop(setting);
    let program = Program::new();
    let _mark = group.mark(&program.path).expect("mark");
    let mut running: Vec<_> = (0..ROOM + 6).map(|_| program.start()).collect();
    let mut allowed = 0;
    eventually("all but those in the queue end", || {
        running.retain_mut(|one| match one.ended() {
            Some(code) => {
                assert_eq!(code, 0);
                allowed += 1;
                false
            }
            None => true,
        });
        (allowed == 6).then_some(())
    });
    running.iter().for_each(Running::until_held);

    let mut events = Vec::new();
    assert_eq!(group.read(&mut events).expect("read"), ROOM + 1);
    assert!(matches!(events.pop(), Some(Event::Overflow)));
    assert!(events.iter().all(|event| matches!(event, Event::Permission(_))));
    drop(events);
    for one in running {
        assert_eq!(one.end(), 0);
    }
}

/// A kernel setting that is put back.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn lower(path: &'static str, value: usize) -> Option<Self> {
        let before = fs::read_to_string(path).ok()?;
        fs::write(path, value.to_string()).ok()?;
        Some(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(self.path, &self.before).expect("put the setting back");
    }
}
