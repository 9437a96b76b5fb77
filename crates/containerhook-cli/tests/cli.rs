//! The command line: what needs neither root nor a runtime.

mod common;

use std::io::Write as _;
use std::process::Stdio;

use common::{err, out, program, run};
use testkit::{Scratch, need, skip};

#[test]
fn every_subcommand_has_examples_and_exit_codes() {
    for subcommand in ["watch", "list", "doctor", "verify", "ready", "top"] {
        let help = run(&[subcommand, "--help"]);
        assert!(help.status.success(), "{subcommand}");
        let help = out(&help);
        assert!(help.contains("Examples:\n  containerhook "), "{help}");
        assert!(help.contains("Exit codes:\n  0  "), "{help}");
        assert!(help.contains("--log-level <LEVEL>") && help.contains("--color <WHEN>"), "{help}");
    }
}

#[test]
fn the_help_lists_the_subcommands_and_hides_the_machinery() {
    let help = out(&run(&["--help"]));
    for word in ["watch", "list", "doctor", "verify", "ready", "top", "Exit codes:"] {
        assert!(help.contains(word), "{help}");
    }
    assert!(!help.contains("completions"), "{help}");
    assert_eq!(out(&run(&["--version"])), format!("containerhook {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_exits_2_and_says_what_would_be_right() {
    for (args, words) in [
        (&["watch", "--event", "creatd"][..], "a similar value exists: 'created'"),
        (&["watch", "--event", "created,"], "possible values: pre-create, created"),
        (&["watch", "--deadline", "5"], "give a number and a unit, such as 500ms, 3s or 2m"),
        (&["watch", "--deadline=-1s"], "it lies in the past"),
        (&["watch", "--no-discover"], "--runtime <PATH>"),
        (&["watch", "--config"], "--json"),
        (&["watch", "--format", "{idd}"], "there is no field \"idd\"; the fields are event, seq"),
        (&["watch", "--format", "x", "--json"], "cannot be used with"),
        (&["watch", "--filter", "name"], "give FIELD=PATTERN"),
        (&["watch", "--log-level", "a=b=c"], "--log-level"),
        (&["watch", "--exit", "ptrace"], "pidfd-info"),
        (&["watch", "--color", "blue"], "always"),
        (&["verify", "/does/not/exist"], "cannot read /does/not/exist: No such file"),
        (&["top"], "top needs a terminal"),
        (&["wach"], "a similar subcommand exists: 'watch'"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(words), "{args:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{args:?}");
    }
}

#[test]
fn a_deadline_that_the_library_refuses_is_wrong_usage() {
    for deadline in ["0s", "121s"] {
        let output = run(&["watch", "--deadline", deadline]);
        assert_eq!(output.status.code(), Some(2));
        assert!(err(&output).starts_with("containerhook: a deadline of "), "{}", err(&output));
    }
}

#[test]
fn without_privileges_the_error_names_the_remedy() -> anyhow::Result<()> {
    need!(Root);
    if testkit::skip::find_program("setpriv").is_none() {
        skip!("setpriv is not installed; `apt-get install util-linux`");
    }
    // Where anybody can execute it.
    let folder = Scratch::new()?;
    let copy = folder.join("containerhook");
    std::fs::copy(program().get_program(), &copy)?;
    let nobody = |args: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ]);
        command.arg(&copy).args(args).current_dir("/").output()
    };
    let output = nobody(&["watch", "--duration", "1s"])?;
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("CAP_SYS_ADMIN"), "{}", err(&output));
    assert!(err(&output).contains("root"), "{}", err(&output));
    assert_eq!(out(&output), "");

    let output = nobody(&["doctor", "--json"])?;
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["verdict"], "cannot-work");
    assert!(report["error"].as_str().unwrap_or_default().contains("CAP_SYS_ADMIN"), "{report}");
    assert_eq!(report["runtimes"], serde_json::json!([]));
    Ok(())
}

#[test]
fn verify_prints_each_finding_with_its_line() {
    let line = |event: &str, seq: u64, pid: &str| {
        format!(
            r#"{{"event":"{event}","seq":{seq},"time":"2026-11-23T21:31:54.123456789Z","id":"c1","name":null,"pid":{pid},"bundle":"/b","runtime":null,"engine":null,"held":false,"existing":false,"answer":null,"rootless":false,"owner_uid":0,"image":null,"kubernetes":null,"exec":null,"exit":null}}"#
        )
    };
    let verify = |args: &[&str], log: &str| {
        let mut child = program()
            .arg("verify")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let good = [line("pre-create", 1, "null"), line("created", 2, "7"), line("stopped", 3, "7")].join("\n");
    let output = verify(&["--complete"], &good);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), ""));
    assert_eq!(err(&output), "3 events, 1 containers of which 1 ended and 0 are open: nothing is wrong\n");

    let bad = [line("pre-create", 1, "null"), "{".into(), line("created", 3, "7"), line("created", 4, "7")];
    let output = verify(&[], &bad.join("\n"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        out(&output),
        "line 2: it is no JSON: EOF while parsing an object at line 1 column 1\n\
         line 3: seq goes from 1 to 3: 1 missing\n\
         line 4: c1: created was told twice\n"
    );
    let output = verify(&["--event", "stopped"], &line("stopped", 1, "7"));
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
    // An id cannot draw on the terminal.
    let output = verify(&[], &line("stopped", 1, "7").replace("c1", "\\u001b[2J"));
    assert_eq!(out(&output), "line 1: \\u{1b}[2J: stopped without created\n");
}

#[test]
fn completions_and_manual_pages_name_the_options() -> anyhow::Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&run(&["completions", shell])).contains("ready-file"), "{shell}");
    }
    assert!(out(&run(&["man"])).contains(".TH containerhook 1"));
    let folder = Scratch::new()?;
    let output = program().arg("man").arg(folder.path()).output()?;
    assert!(output.status.success(), "{}", err(&output));
    let page = std::fs::read_to_string(folder.join("containerhook-watch.1"))?;
    assert!(page.contains("ready\\-file"), "{page}");
    Ok(())
}

#[test]
fn a_reader_that_leaves_is_no_error() -> anyhow::Result<()> {
    // /dev/full fails otherwise: that is one.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
    let output = program().arg("man").stdout(full).output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("No space left on device"), "{}", err(&output));

    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = program().arg("man").stdout(writer).output()?;
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
    Ok(())
}
