//! Kinds that are not told, and records in their order.

use super::super::*;
use super::rig::*;

/// A whole life with an exec, in both ways to create one; nothing depends on what is told.
fn live(rig: &mut Rig, verb: &Verb) {
    let life = rig.command("c", 10, verb.clone());
    rig.allow_all();
    let (_, _, mark) = rig.finishing[0];
    rig.finish(life, Finished { marked: mark, ..Finished::default() });
    assert_eq!(rig.allowed(life), Some(true));
    if *verb == Verb::Create {
        rig.end(10, EXITED);
        rig.init_found(life, Init::Watched(process(11)));
        rig.allow_all();
        let start = rig.command("c", 12, Verb::Start);
        assert_eq!(rig.allowed(start), Some(true));
    }
    if mark {
        let entry = rig.entry(11, &[10, 1]);
        rig.allow_all();
        assert_eq!(rig.allowed(entry), Some(true));
    }
    let exec = rig.command("c", 20, exec());
    rig.allow_all();
    assert_eq!(rig.allowed(exec), Some(true));
    rig.end(20, EXITED);
    rig.end(11, EXITED);
    rig.allow_all();
    if *verb == Verb::Create {
        rig.delete("c", 21);
    } else {
        rig.end(10, EXITED);
        rig.allow_all();
    }
}

#[test]
fn every_set_of_kinds() {
    let kinds = [
        EventKind::PreCreate,
        EventKind::Created,
        EventKind::Started,
        EventKind::Exec,
        EventKind::ExecStopped,
        EventKind::Stopped,
        EventKind::Deleted,
    ];
    for verb in [create(), run()] {
        for set in 0..1_u32 << kinds.len() {
            let told: Vec<EventKind> =
                kinds.iter().enumerate().filter(|(n, _)| set & 1 << n != 0).map(|(_, kind)| *kind).collect();
            let mut rig = Rig::with(told.clone(), OnTimeout::Allow);
            live(&mut rig, &verb);
            let said: Vec<EventKind> = rig.records.iter().map(|record| record.event.kind).collect();
            assert_eq!(said, told, "{verb:?}");
            rig.assert_quiet();
        }
    }
}

#[test]
fn the_record_of_an_answer_comes_before_what_it_brings_about() {
    let mut rig = Rig::new();
    let life = rig.created("c", 10, false);
    rig.command("c", 12, Verb::Start);
    // The start goes on with this answer, and is told.
    rig.allow(life);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow", "started"]);
}

#[test]
fn an_end_waits_for_its_turn() {
    let mut rig = Rig::new();
    let life = rig.created("c", 10, false);
    rig.end(11, KILLED);
    rig.command("c", 12, Verb::After(EventKind::Deleted));
    rig.end(12, EXITED);
    assert_eq!(rig.given(life), ["pre-create!", "created!"]);
    rig.allow_all();
    assert_eq!(rig.given(life), ["pre-create!", "created!", "stopped", "deleted"]);
    assert_eq!(rig.told_of("c"), ["pre-create allow", "created allow", "stopped signal 9", "deleted"]);
    rig.assert_quiet();
}
