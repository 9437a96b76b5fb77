//! How lives end, which follow each other, and what is never told.

use super::super::ending::MOST_ENDED;
use super::super::*;
use super::rig::*;

#[test]
fn the_same_id_again_at_once() {
    let mut rig = Rig::new();
    for n in 0..3 {
        let pid = 100 * (n + 1);
        rig.running("c", pid);
        rig.end(pid + 1, KILLED);
        rig.delete("c", pid + 3);
    }
    let life =
        ["pre-create allow", "created allow", "started", "stopped signal 9", "deleted"].map(str::to_owned);
    assert_eq!(rig.told_of("c"), [life.clone(), life.clone(), life].concat());
    rig.assert_quiet();
}

#[test]
fn a_second_create_of_an_id_in_use_fails_and_takes_nothing_from_the_first() {
    let mut rig = Rig::new();
    rig.running("c", 10);
    let second = rig.command("c", 20, create());
    // While it is held the first is killed and deleted.
    rig.end(11, KILLED);
    rig.delete("c", 21);
    assert_eq!(rig.told_of("c")[3..], ["stopped signal 9", "deleted"]);
    rig.finish_unmarked(second);
    rig.end(20, FAILED);
    rig.allow_all();
    rig.assert_quiet();

    let mut rig = Rig::new();
    rig.running("c", 10);
    let second = rig.command("c", 20, create());
    rig.allow_all();
    rig.finish_unmarked(second);
    rig.end(20, FAILED);
    rig.allow_all();
    // The first is the only one again.
    rig.end(11, EXITED);
    rig.delete("c", 21);
    let told = rig.told_of("c");
    assert_eq!(told[3..], ["pre-create allow", "deleted", "stopped 0", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_container_whose_deletion_was_not_seen_makes_place() {
    let mut rig = Rig::new();
    rig.running("c", 10);
    rig.end(11, EXITED);
    rig.allow_all();
    rig.running("c", 20);
    rig.end(21, EXITED);
    rig.delete("c", 23);
    assert_eq!(rig.told_of("c").iter().filter(|word| *word == "deleted").count(), 1);
    rig.assert_quiet();
}

#[test]
fn a_delete_that_is_reported_before_the_end() {
    let mut rig = Rig::new();
    rig.running("c", 10);
    rig.delete("c", 20);
    assert_eq!(rig.told_of("c").last().unwrap(), "started");
    rig.pass(Duration::from_millis(100));
    rig.end(11, KILLED);
    rig.allow_all();
    assert_eq!(rig.told_of("c")[3..], ["stopped signal 9", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn an_end_that_is_never_reported() {
    let mut rig = Rig::new();
    rig.running("c", 10);
    rig.delete("c", 20);
    rig.pass(Duration::from_secs(5));
    rig.allow_all();
    assert_eq!(rig.told_of("c")[3..], ["stopped ?", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn a_delete_that_finds_nothing_deletes_nothing() {
    let mut rig = Rig::new();
    let life = rig.command("c", 10, create());
    // `runc delete --force` succeeds for what is not there.
    rig.delete("c", 20);
    rig.finish_marked(life);
    assert_eq!(rig.told_of("c"), ["pre-create allow"]);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    rig.allow_all();
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow"]);
}

#[test]
fn deleted_twice_is_told_once() {
    let mut rig = Rig::new();
    let life = rig.running("c", 10);
    rig.end(11, EXITED);
    // The handler is at `stopped` still.
    rig.command("c", 20, Verb::After(EventKind::Deleted));
    rig.end(20, EXITED);
    rig.command("c", 21, Verb::After(EventKind::Deleted));
    rig.command("c", 22, Verb::After(EventKind::Killed));
    rig.end(21, EXITED);
    rig.end(22, EXITED);
    rig.allow(life);
    rig.allow_all();
    assert_eq!(rig.told_of("c")[3..], ["stopped 0", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn what_a_runtime_failed_to_do_is_not_told() {
    let mut rig = Rig::new();
    rig.running("c", 10);
    let kinds = [EventKind::Paused, EventKind::Killed, EventKind::Deleted];
    for (n, kind) in (20..).zip(kinds) {
        rig.command("c", n, Verb::After(kind));
        rig.end(n, FAILED);
    }
    assert_eq!(rig.told_of("c").len(), 3);
    // It is logged, with what its runtime ended with.
    for kind in kinds {
        let line = format!("{kind} is not told of container \"c\": its runtime failed, exit 1");
        assert!(rig.logs.contains(&line), "{:?}", rig.logs);
    }
}

#[test]
fn what_a_runtime_failed_to_do_is_told_where_it_is_asked_for() {
    let mut rig = Rig::with(EventKind::ALL.to_vec(), OnTimeout::Allow);
    rig.running("c", 10);
    for (n, kind) in (20..).zip([EventKind::Paused, EventKind::Killed, EventKind::Deleted]) {
        rig.command("c", n, Verb::After(kind));
        rig.end(n, FAILED);
        rig.allow_all();
        let event = &rig.records.last().unwrap().event;
        assert_eq!(
            (event.kind(), event.verb(), event.exit()),
            (EventKind::Failed, Some(kind), Some(&FAILED))
        );
    }
    // It did not delete it.
    rig.end(11, KILLED);
    rig.delete("c", 30);
    assert_eq!(rig.told_of("c")[3..], ["failed 1", "failed 1", "failed 1", "stopped signal 9", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn many_that_nobody_deletes_are_forgotten() {
    let mut rig = Rig::new();
    let count = MOST_ENDED as i32 + 50;
    for n in 0..count {
        let pid = 10 + 10 * n;
        rig.running(&format!("c{n}"), pid);
        rig.end(pid + 1, EXITED);
        rig.allow_all();
    }
    assert_eq!(rig.lifecycle.lives.len(), MOST_ENDED);
    assert_eq!(rig.lifecycle.keys.len(), MOST_ENDED);
    rig.delete("c0", 9);
    assert_eq!(rig.told_of("c0").last().unwrap(), "stopped 0");
    let last = format!("c{}", count - 1);
    rig.delete(&last, 9);
    assert_eq!(rig.told_of(&last).last().unwrap(), "deleted");
}

#[test]
fn an_exec_in_a_container_whose_creation_was_not_seen() {
    let mut rig = Rig::new();
    let hold = rig.command("c", 20, exec());
    assert_eq!(rig.allowed(hold), None);
    let life = rig.told[0].0;
    rig.allow(life);
    assert_eq!(rig.allowed(hold), Some(true));
    rig.end(20, FAILED);
    rig.allow_all();
    rig.delete("c", 21);
    assert_eq!(rig.told_of("c"), ["exec allow", "exec-stopped 1", "deleted"]);
    rig.assert_quiet();
    // Nothing else is known of it.
    let start = rig.command("d", 22, Verb::Start);
    assert_eq!(rig.allowed(start), Some(true));
    rig.delete("d", 23);
    rig.assert_quiet();
}

#[test]
fn a_detached_exec_ends_when_its_process_does() {
    let detached = || Verb::Exec { process: Arc::default(), detach: true };
    let mut rig = Rig::new();
    let life = rig.running("c", 10);
    rig.command("c", 20, detached());
    rig.allow_all();
    rig.end(20, EXITED);
    assert_eq!(rig.told_of("c")[3..], ["exec allow"]);
    rig.exec_found(life, process(20), Init::Watched(process(21)));
    rig.end(21, FAILED);
    rig.allow_all();
    assert_eq!(rig.told_of("c")[3..], ["exec allow", "exec-stopped 1"]);
    assert_eq!(rig.records[4].event.exec().unwrap().pid, Some(21));

    // It lives when its container is deleted: nothing waits for it any more.
    rig.command("c", 30, detached());
    rig.allow_all();
    rig.end(30, EXITED);
    rig.exec_found(life, process(30), Init::Watched(process(31)));
    rig.end(11, KILLED);
    rig.command("c", 40, detached());
    rig.allow_all();
    rig.end(40, EXITED);
    rig.delete("c", 41);
    rig.exec_found(life, process(40), Init::Watched(process(42)));
    rig.assert_quiet();
}

#[test]
fn containers_that_were_there_before() {
    let mut rig = Rig::new();
    let existing = |rig: &mut Rig, id: &str, pid: i32| {
        let container = Container { id: id.into(), pid: Some(pid as u32), ..Container::default() };
        let time = rig.time();
        let found = Existing { key: key(id), container, process: process(pid), time };
        rig.apply(Input::Existing(Box::new(found)));
        rig.allow_all();
    };
    existing(&mut rig, "old", 5);
    existing(&mut rig, "old", 5);
    rig.end(5, EXITED);
    rig.allow_all();
    rig.delete("old", 6);
    assert_eq!(rig.told_of("old"), ["created existing", "stopped 0", "deleted"]);
    rig.assert_quiet();

    // Found by the look while it is being created, and after: it is told by its creation.
    let life = rig.command("c", 10, create());
    rig.allow(life);
    rig.finish_unmarked(life);
    existing(&mut rig, "c", 11);
    rig.end(10, EXITED);
    rig.init_found(life, Init::Watched(process(11)));
    existing(&mut rig, "c", 11);
    rig.allow_all();
    rig.end(11, EXITED);
    rig.delete("c", 12);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow", "stopped 0", "deleted"]);
    rig.assert_quiet();

    // What was found was another, whose id somebody tried to use again.
    let life = rig.command("e", 20, create());
    existing(&mut rig, "e", 15);
    rig.allow_all();
    rig.finish(life, Finished::default());
    rig.end(20, FAILED);
    rig.allow_all();
    rig.end(15, EXITED);
    rig.delete("e", 21);
    assert_eq!(rig.told_of("e"), ["pre-create allow", "created existing", "deleted", "stopped 0", "deleted"]);
    rig.assert_quiet();
}

#[test]
fn watch_termination_tells_one_end() {
    let mut rig = Rig::new();
    for _ in 0..2 {
        rig.apply(Input::WatchTermination { id: "w".into(), process: process(5) });
    }
    rig.end(5, KILLED);
    rig.allow_all();
    assert_eq!(rig.told_of("w"), ["stopped signal 9"]);

    // Of a container that is known the end is told once; under another name once more.
    rig.running("c", 10);
    rig.apply(Input::WatchTermination { id: "c".into(), process: process(11) });
    rig.apply(Input::WatchTermination { id: "mine".into(), process: process(11) });
    rig.end(11, EXITED);
    rig.allow_all();
    assert_eq!(rig.told_of("c")[3..], ["stopped 0"]);
    assert_eq!(rig.told_of("mine"), ["stopped 0"]);
}

#[test]
fn watch_termination_of_a_process_that_ends_just_then() {
    let mut rig = Rig::new();
    rig.apply(Input::WatchTermination { id: "w".into(), process: process(5) });
    // The engine finds it gone, and says so.
    rig.end(5, ExitStatus::UNKNOWN);
    rig.allow_all();
    assert_eq!(rig.told_of("w"), ["stopped ?"]);
    assert!(rig.watched.is_empty());
}

#[test]
fn the_kernels_queue_ran_over() {
    let mut rig = Rig::new();
    let time = rig.time();
    for _ in 0..2 {
        rig.apply(Input::Overflow { time });
    }
    assert_eq!(rig.told_of(""), ["overflow", "overflow"]);
    assert_eq!(rig.told.len(), 2, "handlers are told as well");
    rig.allow_all();
    rig.assert_quiet();

    let mut rig = Rig::with(vec![EventKind::Stopped], OnTimeout::Allow);
    rig.apply(Input::Overflow { time });
    assert!(rig.records.is_empty());
}

#[test]
fn what_could_not_be_read_is_said_to_be_lost() {
    let mut rig = Rig::new();
    let time = rig.time();
    rig.apply(Input::Lost { why: "no descriptor was left".into(), time });
    assert_eq!(rig.told_of(""), ["lost"]);
    assert_eq!(rig.records[0].event.detail(), Some("no descriptor was left"));
    rig.allow_all();
    rig.assert_quiet();
}

#[test]
fn strangers_that_the_kernel_shows() {
    let mut rig = Rig::new();
    let untold = |id: &str, pid: i32, existing: bool, time: SystemTime| {
        Input::Untold(Box::new(Untold {
            key: key(id),
            container: Container { id: id.into(), pid: Some(pid as u32), ..Container::default() },
            init: process(pid),
            ancestors: vec![1],
            existing,
            time,
        }))
    };
    let time = rig.time();
    rig.apply(untold("s", 5, false, time));
    rig.apply(untold("s", 5, false, time));
    rig.apply(untold("o", 6, true, time));
    rig.allow_all();
    rig.end(5, EXITED);
    rig.end(6, EXITED);
    rig.allow_all();
    rig.delete("s", 7);
    rig.delete("o", 8);
    assert_eq!(rig.told_of("s"), ["created", "started", "stopped 0", "deleted"]);
    assert_eq!(rig.told_of("o"), ["created existing", "stopped 0", "deleted"]);
    rig.assert_quiet();
}
