//! A test that cannot run says so, and a watchdog ends one that hangs.

use std::process::Command;
use std::time::Duration;

use testkit::{Need, Task, need, skip, watchdog};

/// What the child processes of the tests below run, each picked by its exact name.
mod picked {
    use super::{Duration, need, skip, watchdog};

    #[test]
    fn skips() {
        if std::env::var_os("TESTKIT_PICKED").is_some() {
            skip!("because of {}", "the\nmoon");
        }
    }

    #[test]
    fn needs_youki() {
        if std::env::var_os("TESTKIT_PICKED").is_some() {
            need!(Youki);
            panic!("youki was found");
        }
    }

    #[test]
    fn hangs() {
        if std::env::var_os("TESTKIT_PICKED").is_some() {
            let _dog = watchdog(Duration::from_millis(200));
            let scratch = testkit::Scratch::new().unwrap();
            println!("{}", scratch.path().display());
            std::thread::sleep(Duration::from_secs(1000));
        }
    }
}

fn pick(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env("TESTKIT_PICKED", "1");
    command.env_remove("CONTAINERHOOK_REQUIRE").env_remove("CONTAINERHOOK_SKIPS");
    command
}

#[test]
fn a_skip_is_said_and_written_down() {
    let list = tempfile::NamedTempFile::new().unwrap();
    let task = Task::spawn(pick("picked::skips").env("CONTAINERHOOK_SKIPS", list.path())).unwrap();
    let output = task.wait(Duration::from_secs(60)).unwrap().ok().unwrap();
    let line = "SKIPPED: skip::picked::skips: because of the moon\n";
    assert!(output.stderr.contains(line), "{}", output.stderr);
    assert_eq!(std::fs::read_to_string(list.path()).unwrap(), line);
}

#[test]
fn what_is_missing_skips_or_fails_when_required() {
    // With an empty PATH and home nothing is found.
    let bare = |require: &str| {
        let mut command = pick("picked::needs_youki");
        command.env("PATH", "").env("HOME", "/nonexistent").env("CONTAINERHOOK_REQUIRE", require);
        Task::spawn(&mut command).unwrap().wait(Duration::from_secs(60)).unwrap()
    };
    let output = bare("runc");
    assert!(
        output.status.success() && output.stderr.contains("SKIPPED: skip::picked::needs_youki: youki is not")
    );
    for require in ["1", "runc,youki"] {
        assert!(!bare(require).status.success(), "CONTAINERHOOK_REQUIRE={require}");
    }
}

#[test]
fn a_watchdog_ends_a_test_that_hangs() {
    let output = Task::spawn(&mut pick("picked::hangs")).unwrap().wait(Duration::from_secs(60)).unwrap();
    assert_eq!(output.code(), None, "aborted");
    assert!(output.stderr.contains("runs longer than 200ms"), "{}", output.stderr);
    let folder = output.stdout.lines().find(|l| l.contains("/containerhook-")).unwrap();
    assert!(!std::path::Path::new(folder.split_whitespace().last().unwrap()).exists(), "{folder}");
}

#[test]
fn needs_have_names_of_their_own() {
    assert_eq!(Need::PodmanRootless.name(), "podman-rootless");
}
