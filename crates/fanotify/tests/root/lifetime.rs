//! A listener that goes leaves nothing behind that waits.

use std::sync::Arc;
use std::thread;

use fanotify::{ErrorKind, Group, Mark, PermissionEvent};

use crate::harness::{Program, Watchdog, assert_unheld, can_run, eventually, held};
use crate::listener::Listener;

#[test]
fn closing_the_group_allows_what_is_held() {
    if !can_run("closing_the_group_allows_what_is_held") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let group = Group::new().expect("group");
    let mark = group.mark(&program.path).expect("mark");
    let (first, second) = (program.start(), program.start());
    let event = held_of_two(&group, first.pid, second.pid);
    group.close();
    assert_eq!((first.end(), second.end()), (0, 0), "read or still in the queue, both go on");

    assert_eq!(event.deny().expect_err("too late").kind(), ErrorKind::GroupClosed);
    mark.remove().expect("nothing is left to remove");
    assert_eq!(program.run(), 0);
}

/// One event, though two execs may already wait.
fn held_of_two(group: &Group, first: i32, second: i32) -> PermissionEvent {
    let mut events = Vec::new();
    group.read(&mut events).expect("read");
    match events.remove(0) {
        fanotify::Event::Permission(event) => {
            assert!([first, second].contains(&event.task()));
            // A second one, if it was read, stays unanswered until the group has gone.
            std::mem::forget(events);
            event
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn dropping_an_event_after_its_group_is_harmless() {
    if can_run("dropping_an_event_after_its_group_is_harmless") {
        let _watchdog = Watchdog::new();
        let program = Program::new();
        let group = Group::new().expect("group");
        let _mark = group.mark(&program.path).expect("mark");
        let running = program.start();
        let event = held(&group);
        drop(group);
        drop(event);
        assert_eq!(running.end(), 0);
    }
}

#[test]
fn a_listener_that_is_killed_lets_go() {
    if !can_run("a_listener_that_is_killed_lets_go") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let mut listener = Listener::start("hold", &program.path);
    listener.expect("ready");
    let mut running = program.start();
    listener.expect("held");
    running.until_held();
    assert_eq!(running.ended(), None);
    listener.kill();
    assert_eq!(running.end(), 0);
}

#[test]
fn an_exec_that_is_killed_while_held_can_still_be_answered() {
    if !can_run("an_exec_that_is_killed_while_held_can_still_be_answered") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let group = Group::new().expect("group");
    let _mark = group.mark(&program.path).expect("mark");
    let mut running = program.start();
    let event = held(&group);
    // SAFETY: a child of ours that has not been waited for.
    unsafe { libc::kill(running.pid, libc::SIGKILL) };
    let end = eventually("the wait for the answer can be killed", || running.ended());
    assert_eq!(end, -libc::SIGKILL);
    event.allow().expect("the kernel keeps the event until it is answered");
    let next = program.start();
    held(&group).allow().expect("allow");
    assert_eq!(next.end(), 0);
}

#[test]
fn a_group_is_shared_between_threads() {
    fn both<T: Send + Sync>() {}
    both::<Group>();
    both::<Mark>();
    both::<PermissionEvent>();
    if !can_run("a_group_is_shared_between_threads") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let group = Arc::new(Group::new().expect("group"));
    let reader = thread::spawn({
        let group = Arc::clone(&group);
        move || {
            for _ in 0..50 {
                held(&group).allow().expect("allow");
            }
        }
    });
    for _ in 0..50 {
        // While the reader waits for the next one.
        let mark = group.mark(&program.path).expect("mark");
        assert_eq!(program.run(), 0);
        mark.remove().expect("remove");
    }
    reader.join().expect("reader");
    assert_unheld(&group, &program.path);
}
