//! Denials, deadlines and panics.

use super::super::*;
use super::rig::*;

fn deny() -> Decision {
    Decision::deny("not here")
}

#[test]
fn denied_before_it_is_created() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.reply(life, deny());
    assert_eq!(rig.allowed(life), Some(false));
    assert_eq!(rig.told_of("c"), ["pre-create deny"]);
    assert_eq!(rig.records[0].answer.as_ref().unwrap().reason.as_deref(), Some("not here"));
    // The engine cleans up.
    rig.delete("c", 11);
    assert_eq!(rig.records.len(), 1);
    rig.assert_quiet();
}

#[test]
fn denied_at_created_the_init_goes_before_the_start_fails() {
    let mut rig = Rig::new();
    let life = rig.created("c", 10, true);
    let start = rig.command("c", 12, Verb::Start);
    rig.reply(life, deny());
    assert_eq!(rig.killed, [process(11)]);
    assert_eq!(rig.allowed(start), None, "the init lives");
    rig.end(11, KILLED);
    assert_eq!(rig.allowed(start), Some(false));
    rig.allow_all();
    rig.delete("c", 13);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created deny", "stopped signal 9", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn denied_at_created_a_start_that_comes_later_fails() {
    for init_first in [true, false] {
        let mut rig = Rig::new();
        let life = rig.created("c", 10, true);
        rig.reply(life, deny());
        if init_first {
            rig.end(11, KILLED);
        }
        let start = rig.command("c", 12, Verb::Start);
        rig.end(11, KILLED);
        assert_eq!(rig.allowed(start), Some(false));
        rig.allow_all();
        rig.delete("c", 13);
        rig.assert_quiet();
    }
}

#[test]
fn denied_at_created_an_init_that_cannot_be_killed_holds_nothing_for_ever() {
    let mut rig = Rig::new();
    let life = rig.created("c", 10, false);
    let start = rig.command("c", 12, Verb::Start);
    rig.reply(life, deny());
    rig.pass(DEADLINE * 2);
    assert_eq!(rig.allowed(start), Some(false));
    assert_eq!(rig.held_for(start), DEADLINE + GRACE);
}

#[test]
fn denied_at_created_an_init_out_of_reach_is_refused_its_first_program() {
    for start_first in [true, false] {
        let mut rig = Rig::new();
        let life = rig.created("c", 10, true);
        let early = start_first.then(|| rig.command("c", 12, Verb::Start));
        rig.reply(life, deny());
        rig.apply(Input::Unkillable { process: process(11), why: "no cgroup".into() });
        let start = early.unwrap_or_else(|| rig.command("c", 12, Verb::Start));
        assert_eq!(rig.allowed(start), Some(true), "the start goes on");
        let entry = rig.entry(11, &[1]);
        assert_eq!(rig.allowed(entry), Some(false), "and ends at the first program");
        rig.end(12, EXITED);
        rig.end(11, FAILED);
        rig.allow_all();
        rig.delete("c", 13);
        assert_eq!(rig.told_of("c"), ["pre-create allow", "created deny", "stopped 1", "deleted"]);
        assert!(rig.logs.iter().any(|line| line.contains("its first program will be refused")));
        rig.assert_quiet();
    }
}

#[test]
fn denied_at_created_an_init_out_of_reach_without_a_mark_is_never_started() {
    for start_first in [true, false] {
        let mut rig = Rig::new();
        let life = rig.created("c", 10, false);
        let early = start_first.then(|| rig.command("c", 12, Verb::Start));
        rig.reply(life, deny());
        rig.apply(Input::Unkillable { process: process(11), why: "no cgroup".into() });
        let start = early.unwrap_or_else(|| rig.command("c", 12, Verb::Start));
        assert_eq!(rig.allowed(start), Some(false));
        assert!(rig.logs.iter().any(|line| line.contains("its init stays")));
        rig.end(11, KILLED);
        rig.allow_all();
        rig.delete("c", 13);
        assert_eq!(rig.told_of("c"), ["pre-create allow", "created deny", "stopped signal 9", "deleted"]);
        rig.assert_quiet();
    }
}

#[test]
fn denied_at_the_first_program() {
    let mut rig = Rig::new();
    let life = rig.created("c", 10, true);
    rig.allow(life);
    rig.command("c", 12, Verb::Start);
    let entry = rig.entry(11, &[1]);
    rig.reply(life, deny());
    assert_eq!(rig.allowed(entry), Some(false));
    rig.end(11, FAILED);
    rig.allow_all();
    rig.delete("c", 13);
    assert_eq!(
        rig.told_of("c"),
        ["pre-create allow", "created allow", "started deny", "stopped 1", "deleted"]
    );
    rig.assert_quiet();
}

#[test]
fn a_run_denied_at_created_is_not_started() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, run());
    rig.allow(life);
    rig.finish_marked(life);
    let entry = rig.entry(11, &[10, 1]);
    rig.reply(life, deny());
    assert_eq!(rig.allowed(entry), Some(false));
    rig.end(11, FAILED);
    rig.end(10, FAILED);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created deny", "stopped 1", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_denied_exec_does_not_end() {
    let mut rig = Rig::new();
    let life = rig.running("c", 10);
    let exec = rig.command("c", 20, exec());
    rig.reply(life, deny());
    assert_eq!(rig.allowed(exec), Some(false));
    // Whatever the process is now, it is not the container's.
    assert!(!rig.watched.contains(&process(20)));
    assert_eq!(rig.told_of("c")[3..], ["exec deny"]);
}

#[test]
fn no_answer_by_the_deadline() {
    for (on_timeout, allowed, said) in
        [(OnTimeout::Allow, true, "pre-create allow late"), (OnTimeout::Deny, false, "pre-create deny late")]
    {
        let mut rig = Rig::with(EventKind::ALL.to_vec(), on_timeout);
        let life = rig.command("c", 10, create());
        let token = rig.token(life);
        rig.pass(DEADLINE);
        if allowed {
            rig.finish_unmarked(life);
        }
        assert_eq!(rig.allowed(life), Some(allowed));
        assert_eq!(rig.held_for(life), DEADLINE);
        assert_eq!(rig.told_of("c"), [said]);
        assert_eq!(rig.lifecycle.timed_out, 1);
        // An answer that comes now changes nothing.
        rig.apply(Input::Replied { token, decision: Ok(deny()) });
        assert_eq!(rig.records.len(), 1);
        rig.end(10, FAILED);
        rig.allow_all();
        rig.assert_quiet();
    }
}

#[test]
fn a_handler_that_never_answers_anything() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.pass(DEADLINE);
    rig.finish_marked(life);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    let start = rig.command("c", 12, Verb::Start);
    rig.pass(DEADLINE);
    let entry = rig.entry(11, &[1]);
    rig.pass(DEADLINE);
    let exec = rig.command("c", 14, exec());
    rig.pass(DEADLINE);
    rig.end(14, EXITED);
    rig.end(11, EXITED);
    rig.command("c", 13, Verb::After(EventKind::Deleted));
    rig.end(13, EXITED);
    rig.pass(DEADLINE * 3);
    for hold in [life, start, entry, exec] {
        assert_eq!((rig.allowed(hold), rig.held_for(hold)), (Some(true), DEADLINE));
    }
    assert_eq!(
        rig.told_of("c"),
        [
            "pre-create allow late",
            "created allow late",
            "started allow late",
            "exec allow late",
            "exec-stopped 0",
            "stopped 0",
            "deleted"
        ]
    );
    assert_eq!(rig.given(life).len(), 7, "the handler is given all of it all the same");
    rig.assert_quiet();
}

#[test]
fn a_panic_is_no_answer() {
    for (on_timeout, said) in
        [(OnTimeout::Allow, "pre-create allow late"), (OnTimeout::Deny, "pre-create deny late")]
    {
        let mut rig = Rig::with(EventKind::ALL.to_vec(), on_timeout);
        let life = rig.command("c", 10, create());
        let token = rig.token(life);
        rig.reply_to(token, Err("index out of bounds".into()));
        if on_timeout == OnTimeout::Allow {
            rig.finish_unmarked(life);
        }
        assert_eq!(rig.told_of("c"), [said]);
        assert!(rig.logs.iter().any(|line| line.contains("index out of bounds")), "{:?}", rig.logs);
        let reason = rig.records[0].answer.as_ref().unwrap().reason.clone().unwrap();
        assert!(reason.contains("index out of bounds"), "{reason}");
    }
}

#[test]
fn each_kind_has_its_deadline() {
    let mut rig = Rig::new()
        .deadline_for(EventKind::PreCreate, Duration::from_secs(1))
        .deadline_for(EventKind::Created, Duration::from_secs(2))
        .deadline_for(EventKind::Started, Duration::from_secs(3))
        .deadline_for(EventKind::Exec, Duration::from_secs(4));
    let life = rig.command("c", 10, create());
    rig.pass(Duration::from_secs(1));
    rig.finish_marked(life);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    let start = rig.command("c", 12, Verb::Start);
    rig.pass(Duration::from_secs(2));
    let entry = rig.entry(11, &[1]);
    rig.pass(Duration::from_secs(3));
    let exec = rig.command("c", 13, exec());
    rig.pass(Duration::from_secs(4));
    for (hold, seconds) in [(life, 1), (start, 2), (entry, 3), (exec, 4)] {
        assert_eq!((rig.allowed(hold), rig.held_for(hold)), (Some(true), Duration::from_secs(seconds)));
    }
}

#[test]
fn what_waits_behind_a_slow_event_is_under_its_own_deadline() {
    for (mut rig, allowed, said) in
        [(Rig::new(), true, "exec allow late"), (Rig::denying(), false, "exec deny late")]
    {
        rig = rig.deadline_for(EventKind::Paused, Duration::from_secs(100));
        let life = rig.running("c", 10);
        rig.command("c", 20, Verb::After(EventKind::Paused));
        rig.end(20, EXITED);
        // The handler is at `paused`, and stays there.
        let exec = rig.command("c", 21, exec());
        rig.pass(DEADLINE);
        assert_eq!(rig.allowed(exec), Some(allowed));
        assert_eq!(rig.held_for(exec), DEADLINE);
        assert_eq!(rig.told_of("c")[3..], ["paused"], "the records keep the order of the events");
        rig.allow(life);
        assert_eq!(rig.told_of("c")[3..], ["paused", said]);
        assert_eq!(rig.given(life).last().unwrap(), "exec", "it is told, and not as held");
        rig.reply(life, deny());
        assert_eq!(rig.records.len(), 5);
    }
}

#[test]
fn created_waits_behind_a_slow_event_under_its_own_deadline() {
    let mut rig = Rig::denying().deadline_for(EventKind::Killed, Duration::from_secs(100));
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    let kill = Verb::After(EventKind::Killed);
    rig.end(10, EXITED);
    rig.command("c", 20, kill);
    rig.end(20, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    let start = rig.command("c", 12, Verb::Start);
    rig.pass(DEADLINE);
    assert_eq!(rig.killed, [process(11)]);
    rig.end(11, KILLED);
    assert_eq!(rig.allowed(start), Some(false));
    rig.allow_all();
    rig.delete("c", 13);
    assert_eq!(
        rig.told_of("c"),
        ["pre-create allow", "killed", "created deny late", "stopped signal 9", "deleted"]
    );
    rig.assert_quiet();
}

#[test]
fn started_of_a_run_has_what_created_left() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, run());
    rig.allow(life);
    rig.finish_marked(life);
    let entry = rig.entry(11, &[10, 1]);
    rig.pass(DEADLINE * 2);
    assert_eq!(rig.allowed(entry), Some(true));
    assert_eq!(rig.held_for(entry), DEADLINE);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow late", "started allow late"]);
}

#[test]
fn an_answer_to_what_was_not_held_has_no_effect() {
    let mut rig = Rig::new();
    let life = rig.running("c", 10);
    rig.end(11, EXITED);
    rig.reply(life, deny());
    rig.delete("c", 20);
    assert_eq!(rig.told_of("c")[3..], ["stopped 0", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn the_error_of_a_denial_is_the_handlers() {
    let busy = || Decision::deny_with("later", DenyError::Busy);
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.reply(life, busy());
    assert_eq!(rig.error(life), Some(DenyError::Busy));

    let life = rig.created("d", 20, false);
    let start = rig.command("d", 22, Verb::Start);
    rig.reply(life, busy());
    rig.end(21, KILLED);
    assert_eq!(rig.error(start), Some(DenyError::Busy));

    let life = rig.running("e", 30);
    let exec = rig.command("e", 33, exec());
    rig.reply(life, busy());
    assert_eq!(rig.error(exec), Some(DenyError::Busy));

    let mut rig = Rig::denying();
    let life = rig.command("c", 10, create());
    rig.pass(DEADLINE);
    assert_eq!(rig.error(life), Some(DenyError::NotPermitted));
}
