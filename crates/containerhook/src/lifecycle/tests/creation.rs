//! From the exec of the runtime to the first program.

use super::super::*;
use super::rig::*;

#[test]
fn create_start_stop_delete() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    assert_eq!(rig.given(life), ["pre-create!"]);
    rig.allow(life);
    assert_eq!(rig.allowed(life), None, "it waits for the entrypoint's mark");
    rig.finish_marked(life);
    assert_eq!(rig.allowed(life), Some(true));
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    assert_eq!(rig.given(life), ["pre-create!", "created!"]);
    assert_eq!(rig.told.last().unwrap().1.pid(), Some(11));
    let start = rig.command("c", 12, Verb::Start);
    assert_eq!(rig.allowed(start), None, "created is not answered");
    rig.allow(life);
    assert_eq!(rig.allowed(start), Some(true));
    let entry = rig.entry(11, &[1]);
    assert_eq!(rig.allowed(entry), None);
    assert_eq!(rig.given(life).last().unwrap(), "started!");
    rig.allow(life);
    assert_eq!(rig.allowed(entry), Some(true));
    assert!(rig.marks.is_empty(), "the mark has been of use");
    rig.end(11, ExitStatus { code: Some(3), ..ExitStatus::UNKNOWN });
    rig.allow_all();
    rig.delete("c", 13);
    assert_eq!(
        rig.told_of("c"),
        ["pre-create allow", "created allow", "started allow", "stopped 3", "deleted"]
    );
    rig.assert_quiet();
}

#[test]
fn a_start_seen_before_the_creates_end_waits_for_created() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    rig.pass(Duration::from_millis(5));
    let start = rig.command("c", 12, Verb::Start);
    assert_eq!(rig.allowed(start), None);
    rig.pass(Duration::from_secs(1));
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    assert_eq!(rig.allowed(start), None);
    // The container is held since its start came, and no longer than from there.
    let deadline = rig.told.last().unwrap().1.deadline().unwrap();
    assert_eq!(deadline - rig.now, DEADLINE - Duration::from_secs(1));
    rig.allow(life);
    assert_eq!(rig.allowed(start), Some(true));
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow", "started"]);
}

#[test]
fn a_start_that_nobody_frees_goes_on_and_created_is_not_told_as_held() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    let start = rig.command("c", 12, Verb::Start);
    rig.end(10, EXITED);
    // The init's pid is on a disk that hangs.
    rig.pass(DEADLINE * 3);
    assert_eq!(rig.allowed(start), Some(true));
    assert_eq!(rig.held_for(start), DEADLINE + GRACE);
    // crun executes itself again for the same verb.
    let again = rig.command("c", 12, Verb::Start);
    assert_eq!(rig.held_for(again), Duration::ZERO);
    rig.init_found(life, Init::Watched(process(11)));
    assert_eq!(rig.given(life), ["pre-create!", "created"]);
    rig.allow_all();
    assert_eq!(rig.told_of("c")[..2], ["pre-create allow", "created"]);
}

#[test]
fn creates_that_fail_leave_nothing() {
    let mut rig = Rig::new();
    for n in 0..130 {
        let id = format!("c{n}");
        let life = rig.command(&id, 10 + n, create());
        rig.allow(life);
        rig.finish_marked(life);
        rig.end(10 + n, FAILED);
        rig.allow_all();
        assert_eq!(rig.told_of(&id), ["pre-create allow", "deleted"]);
    }
    rig.assert_quiet();
}

#[test]
fn a_create_of_unknown_end_without_an_init_has_failed() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_marked(life);
    rig.end(10, ExitStatus::UNKNOWN);
    rig.init_found(life, Init::Unknown("there is no pid file".into()));
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_create_that_is_killed_while_it_is_held() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.end(10, KILLED);
    assert_eq!(rig.allowed(life), Some(true));
    assert_eq!(rig.lifecycle.counts(), (0, 0));
    // The handler has it still.
    rig.allow(life);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_create_that_is_killed_while_the_entrypoint_is_marked() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.end(10, KILLED);
    assert_eq!(rig.allowed(life), Some(true));
    rig.finish_marked(life);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_create_that_is_killed_when_it_has_made_an_init() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    rig.end(10, KILLED);
    rig.init_found(life, Init::Watched(process(11)));
    rig.allow_all();
    rig.end(11, KILLED);
    rig.delete("c", 12);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow", "stopped signal 9", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_mark_that_is_not_there_in_time_is_done_without() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.pass(DEADLINE + GRACE);
    assert_eq!(rig.allowed(life), Some(true));
    assert_eq!(rig.told_of("c"), ["pre-create allow"]);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    rig.allow_all();
    // Now it comes, and serves still: the container is not started.
    rig.finish_marked(life);
    assert!(rig.marks.contains(&life));
    rig.command("c", 12, Verb::Start);
    rig.entry(11, &[1]);
    rig.allow_all();
    rig.end(11, EXITED);
    rig.delete("c", 13);
    assert_eq!(
        rig.told_of("c"),
        ["pre-create allow", "created allow", "started allow", "stopped 0", "deleted"]
    );
    rig.assert_quiet();
}

#[test]
fn a_change_that_is_not_written_in_time_counts_as_none() {
    for (on_timeout, allowed, said) in
        [(OnTimeout::Allow, true, "pre-create allow"), (OnTimeout::Deny, false, "pre-create deny")]
    {
        let mut rig = Rig::with(EventKind::ALL.to_vec(), on_timeout);
        let life = rig.command("c", 10, create());
        rig.reply(life, change(b"{}"));
        rig.pass(DEADLINE + GRACE);
        assert_eq!(rig.allowed(life), Some(allowed));
        assert_eq!(rig.told_of("c"), [said]);
        let outcome = Finished { config: Some(config(b"{}")), ..Finished::default() };
        rig.finish(life, outcome);
        assert_eq!(rig.records.len(), 1, "it is not recorded again");
        rig.end(10, FAILED);
        rig.allow_all();
        rig.assert_quiet();
    }
}

#[test]
fn a_change_that_cannot_be_written_is_settled_by_choice() {
    for (on_timeout, allowed, said) in
        [(OnTimeout::Allow, true, "pre-create allow"), (OnTimeout::Deny, false, "pre-create deny")]
    {
        let mut rig = Rig::with(EventKind::ALL.to_vec(), on_timeout);
        let life = rig.command("c", 10, create());
        rig.reply(life, change(b"{}"));
        let failed = Finished { change_failed: Some("no space".into()), ..Finished::default() };
        rig.finish(life, failed);
        assert_eq!(rig.allowed(life), Some(allowed));
        assert_eq!(rig.told_of("c"), [said]);
        let reason = rig.records[0].answer.as_ref().unwrap().reason.clone().unwrap();
        assert!(reason.contains("no space"), "{reason}");
    }
}

#[test]
fn a_changed_configuration_is_that_of_the_later_events() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.reply(life, change(br#"{"new":1}"#));
    assert!(rig.finishing[0].1.is_some());
    let changed = Some(config(br#"{"new":1}"#));
    rig.finish(life, Finished { config: changed, ..Finished::default() });
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    assert_eq!(rig.told_of("c"), ["pre-create change"]);
    assert_eq!(rig.told.last().unwrap().1.config().unwrap().raw(), br#"{"new":1}"#);
    // Later it is too late.
    rig.reply(life, change(b"{}"));
    let answer = rig.records[1].answer.clone().unwrap();
    assert_eq!(answer.decision, Verdict::Allow);
    assert!(answer.reason.unwrap().contains("pre-create only"));
}

#[test]
fn what_was_not_held_is_not_told_as_held() {
    let mut rig = Rig::new();
    let life = rig.command_by("c", 10, 1, create(), false);
    assert_eq!(rig.given(life), ["pre-create"]);
    // Too late to change or to refuse anything.
    rig.reply(life, change(b"{}"));
    assert!(rig.finishing[0].1.is_none());
    rig.finish_unmarked(life);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    rig.allow_all();
    rig.end(11, EXITED);
    rig.delete("c", 12);
    rig.command_by("c", 13, 1, exec(), false);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create", "created allow", "stopped 0", "deleted", "exec"]);
}

#[test]
fn run_is_held_at_its_entrypoint() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, run());
    rig.allow(life);
    rig.finish_marked(life);
    // A hook executes the same file.
    let other = rig.entry(50, &[49, 1]);
    assert_eq!(rig.allowed(other), Some(true));
    let entry = rig.entry(11, &[10, 1]);
    assert_eq!(rig.given(life), ["pre-create!", "created!"]);
    assert_eq!(rig.told.last().unwrap().1.pid(), Some(11));
    rig.allow(life);
    assert_eq!(rig.allowed(entry), None, "started has a say too");
    assert_eq!(rig.given(life), ["pre-create!", "created!", "started!"]);
    rig.allow(life);
    assert_eq!(rig.allowed(entry), Some(true));
    rig.end(11, EXITED);
    rig.end(10, EXITED);
    rig.allow_all();
    assert_eq!(
        rig.told_of("c"),
        ["pre-create allow", "created allow", "started allow", "stopped 0", "deleted"]
    );
    rig.assert_quiet();
}

#[test]
fn run_whose_entrypoint_is_not_marked() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, run());
    rig.allow(life);
    rig.finish_unmarked(life);
    rig.end(10, EXITED);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created", "started", "stopped 0", "deleted"]);
    assert!(rig.records[1].event.detail().unwrap().contains("/bin is a tmpfs"));
    rig.assert_quiet();
}

#[test]
fn run_that_the_kernel_shows_at_work() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, run());
    rig.allow(life);
    rig.finish_unmarked(life);
    let time = rig.time();
    assert!(rig.lifecycle.is_run(process(11), &[10, 1]));
    rig.apply(Input::Ran { init: process(11), ancestors: vec![10, 1], time });
    assert!(!rig.lifecycle.is_run(process(11), &[10, 1]), "once");
    rig.apply(Input::Ran { init: process(11), ancestors: vec![10, 1], time });
    rig.end(11, FAILED);
    rig.end(10, FAILED);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created", "started", "stopped 1", "deleted"]);
    assert_eq!(rig.records[1].event.pid(), Some(11));
    rig.assert_quiet();
}

#[test]
fn run_that_fails_before_its_entrypoint() {
    for status in [FAILED, ExitStatus::UNKNOWN] {
        let mut rig = Rig::new();
        let life = rig.command("c", 10, run());
        rig.allow(life);
        rig.finish_marked(life);
        rig.end(10, status);
        if status == ExitStatus::UNKNOWN {
            rig.init_found(life, Init::Unknown("there is no such container".into()));
        }
        rig.allow_all();
        assert_eq!(rig.told_of("c"), ["pre-create allow", "deleted"], "{status}");
        rig.assert_quiet();
    }
}

#[test]
fn run_that_is_killed_leaves_its_container() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, run());
    rig.allow(life);
    rig.finish_marked(life);
    rig.entry(11, &[10, 1]);
    rig.allow_all();
    rig.end(10, KILLED);
    rig.pass(Duration::from_secs(60));
    rig.end(11, EXITED);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow", "started allow", "stopped 0"]);
    rig.delete("c", 12);
    rig.assert_quiet();
}

#[test]
fn a_detached_run_whose_init_shows_itself_before_it_is_found() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, Verb::Run { detach: true, keep: false });
    rig.allow(life);
    rig.finish_marked(life);
    rig.end(10, EXITED);
    // It is nobody's child any more, and who it is comes to light only now.
    let entry = rig.entry(11, &[1]);
    let other = rig.entry(60, &[1]);
    assert_eq!((rig.allowed(entry), rig.allowed(other)), (None, None));
    rig.init_found(life, Init::Watched(process(11)));
    assert_eq!((rig.allowed(entry), rig.allowed(other)), (None, Some(true)));
    rig.allow_all();
    assert_eq!(rig.allowed(entry), Some(true));
    rig.end(11, EXITED);
    rig.delete("c", 12);
    assert_eq!(
        rig.told_of("c"),
        ["pre-create allow", "created allow", "started allow", "stopped 0", "deleted"]
    );
    rig.assert_quiet();
}

#[test]
fn a_detached_run_whose_init_is_found_before_it_shows_itself() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, Verb::Run { detach: true, keep: false });
    rig.allow(life);
    rig.finish_marked(life);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    assert_eq!(rig.given(life), ["pre-create!"], "its first program is still to come, and will be held");
    let entry = rig.entry(11, &[1]);
    assert_eq!((rig.allowed(entry), rig.given(life).last().unwrap().as_str()), (None, "created!"));
    rig.allow_all();
    rig.end(11, EXITED);
    rig.delete("c", 12);
    assert_eq!(
        rig.told_of("c"),
        ["pre-create allow", "created allow", "started allow", "stopped 0", "deleted"]
    );
    rig.assert_quiet();
}

#[test]
fn a_detached_run_whose_first_program_was_missed() {
    for ends in [true, false] {
        let mut rig = Rig::new();
        let life = rig.command("c", 10, Verb::Run { detach: true, keep: false });
        rig.allow(life);
        rig.finish_marked(life);
        rig.end(10, EXITED);
        rig.init_found(life, Init::Watched(process(11)));
        if ends {
            rig.end(11, EXITED);
            rig.allow_all();
        } else {
            rig.pass(Duration::from_secs(2));
            rig.allow_all();
            rig.end(11, EXITED);
        }
        rig.delete("c", 12);
        assert_eq!(rig.told_of("c"), ["pre-create allow", "created", "stopped 0", "deleted"]);
        rig.assert_quiet();
    }
}

#[test]
fn a_detached_run_whose_init_is_not_below_its_runtime() {
    let mut rig = Rig::new();
    let verb = Verb::Run { detach: true, keep: false };
    let life = rig.command("c", 10, verb.clone());
    let second = rig.command("d", 20, verb);
    rig.allow_all();
    rig.finish_marked(life);
    rig.finish_marked(second);
    // crun forks twice and waits: of two of one root, each says itself whose it is.
    let entry = rig.entry_of(21, &[1], &["crun", "run", "--detach", "d"]);
    let other = rig.entry_of(99, &[1], &["sh", "-c", "true"]);
    assert_eq!((rig.allowed(entry), rig.allowed(other)), (None, Some(true)));
    rig.allow_all();
    assert_eq!(rig.allowed(entry), Some(true));
    assert_eq!(rig.told_of("d"), ["pre-create allow", "created allow", "started allow"]);
    assert_eq!(rig.told_of("c"), ["pre-create allow"]);
}

#[test]
fn a_hook_that_executes_the_entrypoints_file_is_not_the_init() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, run());
    let namespaces = br#"{"linux":{"namespaces":[{"type":"pid"}]}}"#;
    rig.reply(life, change(namespaces));
    let outcome = Finished { marked: true, config: Some(config(namespaces)), ..Finished::default() };
    rig.finish(life, outcome);
    rig.own_pid = 7;
    let hook = rig.entry(12, &[10, 1]);
    assert_eq!(rig.allowed(hook), Some(true));
    rig.own_pid = 1;
    let entry = rig.entry(11, &[10, 1]);
    assert_eq!(rig.allowed(entry), None);
}

#[test]
fn a_detached_run_and_a_restore_are_told_when_they_run() {
    let table = [
        (Verb::Run { detach: true, keep: false }, &["pre-create allow", "created", "started"][..]),
        (Verb::Restore, &["pre-create allow", "created"][..]),
    ];
    for (verb, told) in table {
        let mut rig = Rig::new();
        let life = rig.command("c", 10, verb);
        rig.allow(life);
        rig.finish_unmarked(life);
        rig.end(10, EXITED);
        rig.init_found(life, Init::Watched(process(11)));
        rig.allow_all();
        assert_eq!(rig.told_of("c"), told);
        assert!(rig.records[1].event.detail().unwrap().contains("it runs already"));
        rig.end(11, EXITED);
        rig.delete("c", 12);
        rig.assert_quiet();
    }
}

#[test]
fn an_init_that_has_ended_before_it_is_found() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    let start = rig.command("c", 12, Verb::Start);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Ended(process(11), FAILED));
    rig.allow_all();
    assert_eq!(rig.allowed(start), Some(true));
    rig.delete("c", 13);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created", "stopped 1", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_created_container_without_a_pid_is_told_and_forgotten() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Unknown("it was given no pid file".into()));
    rig.allow_all();
    rig.command("c", 12, Verb::Start);
    rig.allow_all();
    rig.delete("c", 13);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow", "started", "stopped ?", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn crun_executes_every_verb_twice() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_marked(life);
    assert_eq!(rig.lifecycle.knows(10), Some(process(10)));
    let again = rig.command("c", 10, create());
    assert_eq!(rig.allowed(again), Some(true));
    rig.end(10, EXITED);
    assert_eq!(rig.lifecycle.knows(10), None);
    rig.init_found(life, Init::Watched(process(11)));
    rig.allow(life);
    for _ in 0..2 {
        let start = rig.command("c", 12, Verb::Start);
        assert_eq!(rig.allowed(start), Some(true));
    }
    rig.entry(11, &[1]);
    rig.allow_all();
    let first = rig.command("c", 13, exec());
    rig.allow(life);
    let second = rig.command("c", 13, exec());
    assert_eq!((rig.allowed(first), rig.allowed(second)), (Some(true), Some(true)));
    rig.end(13, EXITED);
    rig.end(11, EXITED);
    for _ in 0..2 {
        rig.command("c", 14, Verb::After(EventKind::Deleted));
    }
    rig.end(14, EXITED);
    rig.allow_all();
    assert_eq!(
        rig.told_of("c"),
        [
            "pre-create allow",
            "created allow",
            "started allow",
            "exec allow",
            "exec-stopped 0",
            "stopped 0",
            "deleted"
        ]
    );
    rig.assert_quiet();
}

#[test]
fn a_wrapper_that_runs_the_real_runtime() {
    // As its child, for the same container; or with a state folder of its own, which the engine does not know.
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    let inner = rig.command_by("c", 20, 10, create(), true);
    assert_eq!(rig.allowed(inner), Some(true));
    assert!(!rig.lifecycle.is_life(inner));
    // One that a hook of it creates is another.
    let other = rig.command_by("d", 21, 10, create(), true);
    assert!(rig.lifecycle.is_life(other));
    assert_eq!(rig.told_of("c"), ["pre-create allow"]);
}

#[test]
fn an_init_that_is_a_runtime_itself() {
    let mut rig = Rig::new();
    let life = rig.running("c", 10);
    // Its first program executes a runtime that is marked: it is not the runtime of `c` again.
    assert_eq!(rig.lifecycle.knows(11), None);
    let inner = rig.command_by("in", 11, 1, run(), true);
    assert!(rig.lifecycle.is_life(inner));
    rig.allow(inner);
    rig.finish_marked(inner);
    rig.end(11, FAILED);
    rig.allow_all();
    assert_eq!(rig.told_of("in"), ["pre-create allow", "deleted"]);
    assert_eq!(rig.told_of("c")[3..], ["stopped 1"]);
    assert_eq!(rig.given(life).len(), 4);
    rig.delete("c", 30);
    rig.assert_quiet();
}

#[test]
fn two_containers_of_one_bundle_beside_each_other() {
    let mut rig = Rig::new();
    let first = rig.command("a", 10, run());
    let second = rig.command("b", 20, run());
    rig.allow_all();
    rig.finish_marked(first);
    rig.finish_marked(second);
    // One file, and two lives that wait for it: each init is its own runtime's child.
    let of_second = rig.entry(21, &[20, 1]);
    assert_eq!(rig.given(second), ["pre-create!", "created!"]);
    assert_eq!(rig.given(first), ["pre-create!"]);
    let of_first = rig.entry(11, &[10, 1]);
    rig.allow_all();
    assert_eq!((rig.allowed(of_first), rig.allowed(of_second)), (Some(true), Some(true)));
    for (init, runtime) in [(11, 10), (21, 20)] {
        rig.end(init, EXITED);
        rig.end(runtime, EXITED);
    }
    rig.allow_all();
    rig.assert_quiet();
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    // Before the end of the first is reported, its pid has been used for another container's create.
    let hold = rig.lifecycle.new_id();
    rig.creations.insert(hold);
    let second = Process { pid: 10, start_time: 2000 };
    let command = Command {
        hold,
        at: rig.now,
        time: rig.time(),
        process: second,
        parent: 1,
        verb: create(),
        key: key("d"),
        container: Container { id: "d".into(), ..Container::default() },
        asked: None,
        detail: None,
        held: false,
    };
    rig.apply(Input::Command(Box::new(command)));
    assert_eq!(rig.lifecycle.knows(10), Some(second));
    rig.end(10, FAILED);
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "deleted"]);
    assert_eq!(rig.lifecycle.counts(), (1, 1));
}
