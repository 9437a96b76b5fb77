//! The documents say what the program does.

mod common;

use std::path::Path;

use common::{out, run, verify};
use serde_json::{Value, json};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of the fenced blocks of one language.
fn fenced(text: &str, language: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(tag) => inside = !inside && tag == language,
            None if inside => lines.push(line.to_owned()),
            None => {}
        }
    }
    lines
}

#[test]
fn the_examples_of_events_are_legal_lives_of_every_kind() -> anyhow::Result<()> {
    let mut events: Vec<Value> = Vec::new();
    for line in fenced(&read("docs/events.md"), "json") {
        events.push(serde_json::from_str(&line)?);
    }
    // The first example has every field: the others leave out those that are as empty as they can be.
    let mut blank = events[0].clone();
    for (field, value) in blank.as_object_mut().unwrap() {
        *value = if value.is_boolean() { json!(false) } else { Value::Null };
        if field == "owner_uid" {
            *value = json!(0);
        }
    }
    let whole: Vec<Value> = events
        .iter()
        .map(|event| {
            let mut whole = blank.clone();
            for (field, value) in event.as_object().unwrap() {
                whole[field] = value.clone();
            }
            whole
        })
        .collect();
    assert_eq!(verify(&whole, &[])?, "");
    for kind in containerhook::EventKind::ALL {
        // No checkpoint could be made where the examples were: CRIU was not there.
        let shown = events.iter().any(|event| event["event"] == kind.as_str());
        assert!(shown || kind == containerhook::EventKind::Checkpointed, "{kind} has no example");
    }
    Ok(())
}

#[test]
fn the_documents_name_every_kind_and_every_subcommand() {
    let events = read("docs/events.md");
    for kind in containerhook::EventKind::ALL {
        assert!(events.contains(&format!("`{kind}`")), "{kind}");
    }
    let readme = read("README.md");
    let help = out(&run(&["--help"]));
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for command in commands.lines().filter_map(|line| line.split_whitespace().next()) {
        assert!(
            readme.contains(&format!("`{command}`")) || readme.contains(&format!("containerhook {command}"))
        );
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for name in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/events.md"]
    {
        let text = read(name);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let local = !target.contains("://") && !target.starts_with('#');
            let path = root.join(name).parent().unwrap().join(target);
            assert!(!local || path.exists(), "{name} links to {target}");
        }
    }
}

#[test]
fn both_readmes_show_the_same_program() {
    let program = fenced(&read("README.md"), "rust,no_run");
    assert!(program.len() <= 15, "{} lines", program.len());
    assert_eq!(program, fenced(&read("crates/containerhook/README.md"), "rust,no_run"));
}

#[test]
fn files_that_the_architecture_names_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = ["crates/containerhook/src", "crates/containerhook-cli/src", "crates/fanotify/src", ""];
    for word in read("ARCHITECTURE.md").split('`').skip(1).step_by(2) {
        if word.ends_with(".rs") || (word.ends_with('/') && !word.contains(' ')) {
            assert!(folders.iter().any(|folder| root.join(folder).join(word).exists()), "{word}");
        }
    }
}

#[test]
fn tests_that_the_table_of_runtimes_names_are_there() {
    let mut count = 0;
    for word in read("docs/runtimes.md").split('`').skip(1).step_by(2) {
        let parts: Vec<&str> = word.split("::").collect();
        let [file, modules @ .., test] = parts.as_slice() else { continue };
        if *test == "test" {
            continue;
        }
        let text = read(&format!("crates/containerhook/tests/{file}.rs"));
        assert!(text.contains(&format!("fn {test}(")), "{word}");
        // A module is made by a macro: `Runc runc`.
        assert!(modules.iter().all(|module| text.contains(&format!(" {module}"))), "{word}");
        count += 1;
    }
    assert!(count > 40, "{count} tests are named");
}
