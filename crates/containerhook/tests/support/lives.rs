//! What the records of any test must hold to, whatever happened.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use containerhook::{ContainerEvent, EventKind, Record};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before its first event, for one that was there before the listener or was found by others.
    Unseen,
    PreCreated,
    Created,
    Started,
    Stopped,
    Deleted,
}

struct Life {
    stage: Stage,
    pid: Option<u32>,
}

/// Numbers without a gap; every container's events in the order of a life, each told once, with one pid; what was held
/// was answered; and the handler was called once for each record.
pub(super) fn check(records: &[Record], told: &[ContainerEvent]) -> Result<()> {
    let mut lives: HashMap<(String, Option<PathBuf>), Vec<Life>> = HashMap::new();
    for (i, record) in records.iter().enumerate() {
        let event = &record.event;
        ensure!(record.seq == i as u64 + 1, "record {} has the number {}", i + 1, record.seq);
        ensure!(
            record.answer.is_some() == event.held(),
            "held and unanswered, or the reverse: {}",
            record.to_json()
        );
        if matches!(event.kind(), EventKind::Overflow | EventKind::Lost) {
            continue;
        }
        let key = (event.id().to_owned(), event.state_root().map(PathBuf::from));
        let lives = lives.entry(key).or_default();
        if event.kind() == EventKind::PreCreate {
            lives.push(Life { stage: Stage::Unseen, pid: None });
        }
        // A creation can fail because another container of the id runs: its life is the latest one that fits.
        let fits = lives.iter_mut().rev().find_map(|life| next(life.stage, event).map(|stage| (life, stage)));
        match fits {
            Some((life, stage)) => {
                ensure!(
                    life.pid.is_none() || event.pid() == life.pid,
                    "the pid has changed: {}",
                    record.to_json()
                );
                (life.stage, life.pid) = (stage, event.pid());
            }
            None if event.existing() || event.runtime().is_none() || is_untold(event) => {
                let Some(stage) = next(Stage::Unseen, event) else {
                    bail!("no first event: {}", record.to_json())
                };
                lives.push(Life { stage, pid: event.pid() });
            }
            None => bail!("out of order, or told twice: {}", record.to_json()),
        }
    }
    let mut balance: HashMap<(EventKind, &str, Option<u32>), i64> = HashMap::new();
    let what = |event| -> (EventKind, &str, Option<u32>) { of(event) };
    for record in records {
        *balance.entry(what(&record.event)).or_default() += 1;
    }
    for event in told {
        *balance.entry(what(event)).or_default() -= 1;
    }
    for (what, balance) in balance {
        ensure!(balance == 0, "{what:?}: {balance} more records than calls of the handler");
    }
    Ok(())
}

fn of(event: &ContainerEvent) -> (EventKind, &str, Option<u32>) {
    (event.kind(), event.id(), event.pid())
}

fn next(stage: Stage, event: &ContainerEvent) -> Option<Stage> {
    use EventKind as Kind;
    use Stage::{Created, Deleted, PreCreated, Started, Stopped, Unseen};
    Some(match (event.kind(), stage) {
        (Kind::PreCreate, Unseen) => PreCreated,
        (Kind::Created, PreCreated) => Created,
        (Kind::Created, Unseen) if event.existing() || is_untold(event) => Created,
        (Kind::Started, Created) => Started,
        (Kind::Stopped, Created | Started | Unseen) => Stopped,
        (Kind::Deleted, PreCreated | Stopped) => Deleted,
        (Kind::Exec, Unseen) => Created,
        (Kind::Exec, Created | Started) => stage,
        (Kind::ExecStopped, Created | Started | Stopped) => stage,
        (Kind::Paused | Kind::Resumed | Kind::Updated | Kind::Checkpointed, Created | Started) => stage,
        (Kind::Killed, Created | Started | Stopped) => stage,
        (Kind::Failed, PreCreated | Created | Started | Stopped) => stage,
        _ => return None,
    })
}

/// The first word on a container that no mark held; or on one that was created before the listener, and is executed in.
fn is_untold(event: &ContainerEvent) -> bool {
    (event.kind() == EventKind::Created && !event.held()) || event.kind() == EventKind::Exec
}
