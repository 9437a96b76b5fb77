//! Random command lines, read by the installed programs and by us.
//!
//! The programs tell in their error messages how they understood a line: runc and crun name the bundle that
//! they cannot enter, all name the container that does not exist. Where a program understood the line, we
//! must have understood the same; where it refused the line, anything goes. No line can start a container: no
//! bundle in the vocabulary has a valid config.json, and the state root is an empty folder.

use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tempfile::TempDir;

use super::*;

/// Few, the same ones each time; `PROPTEST_CASES` asks for more, and for others.
const CASES: u32 = 150;

struct Bench {
    program: PathBuf,
    dir: TempDir,
}

impl Bench {
    fn new(program: &str) -> Option<Bench> {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain(home)
            .chain(["/usr/sbin".into(), "/usr/local/bin".into()])
            .map(|dir| dir.join(program))
            .find(|file| file.is_file());
        let Some(program) = found else {
            eprintln!("SKIPPED: {program} is not installed");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        for name in ["cwd", "root", "B1"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("B1/config.json"), "garbage").unwrap();
        Some(Bench { program, dir })
    }

    /// Gives the container `id` a state that cannot be read but is told apart by its first letter.
    fn broken_state(&self, id: &str) {
        let dir = self.dir.path().join("root").join(id);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("state.json"), id).unwrap();
    }

    fn argv(&self, head: &[&str], tail: &[String]) -> Vec<OsString> {
        let root = self.dir.path().join("root").into_os_string();
        let head = head.iter().map(|word| if *word == "ROOT" { root.clone() } else { OsString::from(word) });
        std::iter::once(self.program.clone().into_os_string())
            .chain(head)
            .chain(tail.iter().map(OsString::from))
            .collect()
    }

    fn output(&self, argv: &[OsString]) -> String {
        let out = Command::new("timeout")
            .arg("20")
            .args(argv)
            .current_dir(self.dir.path().join("cwd"))
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("RUST_BACKTRACE")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    }

    /// Runs random lines of the vocabulary; answers how many the program understood.
    fn run(
        &self,
        heads: &'static [&'static [&'static str]],
        vocabulary: &'static [&'static str],
        check: impl Fn(&[OsString], &str) -> Option<Result<(), String>>,
    ) -> u32 {
        let config = Config { failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
        let mut runner = match std::env::var_os("PROPTEST_CASES") {
            Some(_) => TestRunner::new(config),
            None => {
                let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
                TestRunner::new_with_rng(Config { cases: CASES, ..config }, rng)
            }
        };
        let line = (
            prop::sample::select(heads),
            prop::collection::vec(prop::sample::select(vocabulary).prop_map(String::from), 1..7),
        );
        let understood = std::cell::Cell::new(0);
        let verdict = runner.run(&line, |(head, tail)| {
            let argv = self.argv(head, &tail);
            let output = self.output(&argv);
            match check(&argv, &output) {
                None => Ok(()),
                Some(Ok(())) => {
                    understood.set(understood.get() + 1);
                    Ok(())
                }
                Some(Err(ours)) => {
                    Err(TestCaseError::fail(format!("{:?}\nthe program: {output}\nwe: {ours}", &argv[1..])))
                }
            }
        });
        if let Err(failure) = verdict {
            panic!("{failure}");
        }
        understood.get()
    }
}

/// The text between two others, where both are there.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let from = text.find(before)? + before.len();
    let len = text[from..].find(after)?;
    Some(&text[from..from + len])
}

fn same<T: PartialEq + std::fmt::Debug>(ours: &T, theirs: &T) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{ours:?} instead of {theirs:?}")) }
}

#[test]
fn runc_reads_bundles_as_we_do() {
    let Some(bench) = Bench::new("runc") else { return };
    let vocabulary = &[
        "--bundle",
        "-b",
        "--b",
        "-bundle",
        "--bundle=/n1",
        "--bundle=",
        "-b=/n2",
        "-bundle=/n3",
        "/n4",
        "/n5",
        "c1",
        "c1",
        "c2",
        "--no-pivot",
        "-no-pivot=false",
        "--no-new-keyring=true",
        "--pid-file",
        "--preserve-fds=3",
        "-preserve-fds",
        "3",
        "--",
        "-",
        "--detach",
        "-d",
        "-d=0",
        "--keep",
        "--no-subreaper=x",
        "-db",
        "---b",
        "--bun",
    ];
    let heads: &[&[&str]] = &[
        &["--root", "ROOT", "create"],
        &["--root", "ROOT", "--debug=false", "run"],
        &["-root", "ROOT", "--", "run"],
    ];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        let ours = parse(Family::Runc, argv);
        if let Some(theirs) = between(output, "chdir ", ": no such file") {
            return Some(same(&ours.bundle, &path(theirs)));
        }
        output
            .contains("config.json not found")
            .then(|| same(&ours.bundle, &None).and_then(|()| same(&ours.id.is_some(), &true)))
    });
    assert!(understood > 5, "runc understood {understood} lines only: its messages have changed");
}

#[test]
fn runc_reads_ids_as_we_do() {
    let Some(bench) = Bench::new("runc") else { return };
    let vocabulary = &[
        "A",
        "A",
        "B",
        "C",
        "--force",
        "-f",
        "--force=false",
        "-f=1",
        "--",
        "-",
        "--all",
        "-a",
        "-all=false",
        "9",
        "ls",
        "-t",
        "--tty",
        "-e",
        "X=1",
        "-e=Y=1",
        "--cap",
        "CAP_KILL",
        "--format",
        "json",
        "-f=json",
        "--user=0",
        "-u",
    ];
    let heads: &[&[&str]] = &[
        &["--root", "ROOT", "state"],
        &["--root", "ROOT", "start"],
        &["--root", "ROOT", "delete"],
        &["--root", "ROOT", "kill"],
        &["--root", "ROOT", "pause"],
        &["--root", "ROOT", "exec"],
        &["--root", "ROOT", "ps"],
    ];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        for id in ["A", "B", "C"] {
            bench.broken_state(id);
        }
        let output = if output.contains("does not exist") { bench.output(argv) } else { output.to_string() };
        let theirs = between(&output, "invalid character '", "'")?;
        Some(same(&parse(Family::Runc, argv).id, &os(theirs)))
    });
    assert!(understood > 5, "runc understood {understood} lines only: its messages have changed");
}

#[test]
fn crun_reads_bundles_as_we_do() {
    let Some(bench) = Bench::new("crun") else { return };
    let vocabulary = &[
        "--bundle",
        "-b",
        "--b",
        "--bun",
        "--bundle=/n1",
        "-b/n2",
        "--bu=/n3",
        "/n4",
        "/n5",
        "c1",
        "c1",
        "c2",
        "--no-pivot",
        "--no-p",
        "--no-new",
        "--pid-file",
        "--pid",
        "--preserve-fds=3",
        "--pres",
        "3",
        "--",
        "-",
        "-d",
        "-db",
        "-db/n6",
        "-bd",
        "--det",
        "--no-subreaper",
        "--program-name=x",
        "--HANG=0",
        "-bundle",
        "-b=/n7",
        "--detach=1",
    ];
    let heads: &[&[&str]] = &[
        &["--root", "ROOT", "create"],
        &["--root", "ROOT", "run"],
        &["--ro", "ROOT", "--deb", "run"],
        &["--root", "ROOT", "--", "run"],
    ];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        let theirs =
            between(output, "chdir `", "` failed").or_else(|| between(output, "realpath `", "` failed"))?;
        let ours = parse(Family::Crun, argv);
        Some(same(&ours.bundle, &path(theirs)).and_then(|()| same(&ours.id.is_some(), &true)))
    });
    assert!(understood > 5, "crun understood {understood} lines only: its messages have changed");
}

#[test]
fn crun_reads_ids_as_we_do() {
    let Some(bench) = Bench::new("crun") else { return };
    let vocabulary = &[
        "c1", "c1", "c2", "c3", "--force", "-f", "--for", "--", "--all", "-a", "--al", "9", "ls", "-t",
        "--tty", "--tty=no", "-tyes", "-e", "X=1", "-eY=1", "--cap", "CAP_KILL", "-td", "-u0", "--us",
        "--pre=1", "--format", "-fjson",
    ];
    let heads: &[&[&str]] = &[
        &["--root", "ROOT", "state"],
        &["--root", "ROOT", "start"],
        &["--root", "ROOT", "delete"],
        &["--root", "ROOT", "kill"],
        &["--root", "ROOT", "pause"],
        &["--root", "ROOT", "exec"],
        &["--root", "ROOT", "ps"],
    ];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        let before = format!("error opening file `{}/root/", bench.dir.path().display());
        let theirs = between(output, &before, "/status")?;
        Some(same(&parse(Family::Crun, argv).id, &os(theirs)))
    });
    assert!(understood > 5, "crun understood {understood} lines only: its messages have changed");
}

#[test]
fn youki_reads_bundles_as_we_do() {
    let Some(bench) = Bench::new("youki") else { return };
    // youki does not name the bundle, but has another error for the one that has a config.json.
    let vocabulary = &[
        "--bundle",
        "-b",
        "--bundle=../B1",
        "-b../B1",
        "-b=../B1",
        "../B1",
        "../B1",
        "/n1",
        "--bundle=/n2",
        "-b/n3",
        "c1",
        "c1",
        "c2",
        "--no-pivot",
        "--pid-file",
        "-p",
        "-p=x",
        "--preserve-fds=3",
        "--",
        "-d",
        "-db",
        "-db../B1",
        "--keep",
        "-bd",
        "--bun",
    ];
    let heads: &[&[&str]] =
        &[&["--root", "ROOT", "create"], &["-r", "ROOT", "run"], &["-sr", "ROOT", "--debug", "run"]];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        let ours = parse(Family::Youki, argv);
        let is_b1 = ours.bundle == path("../B1");
        if output.contains("expected value at line 1") {
            return Some(same(&is_b1, &true).and_then(|()| same(&ours.id.is_some(), &true)));
        }
        (output.contains("oci spec error") || output.contains("No such file"))
            .then(|| same(&is_b1, &false).and_then(|()| same(&ours.id.is_some(), &true)))
    });
    assert!(understood > 5, "youki understood {understood} lines only: its messages have changed");
}

#[test]
fn youki_reads_ids_as_we_do() {
    let Some(bench) = Bench::new("youki") else { return };
    let vocabulary = &[
        "c1", "c1", "c2", "c3", "--force", "-f", "--", "--all", "-a", "9", "9", "ls", "-t", "--tty", "-e",
        "X=1", "-eY=1", "-e=Z=1", "--cap", "CAP_KILL", "-td", "-u0", "--user=0",
    ];
    let heads: &[&[&str]] = &[
        &["--root", "ROOT", "state"],
        &["--root", "ROOT", "start"],
        &["--root", "ROOT", "kill"],
        &["--root", "ROOT", "pause"],
        &["--root", "ROOT", "exec"],
    ];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        let theirs = between(output, "container_id=\"", "\"")
            .or_else(|| between(output, "error in executing command: container ", " does not exist"))?;
        Some(same(&parse(Family::Youki, argv).id, &os(theirs)))
    });
    assert!(understood > 5, "youki understood {understood} lines only: its messages have changed");
}

#[test]
fn conmon_reads_as_we_do() {
    let Some(bench) = Bench::new("conmon") else { return };
    // conmon ends before it forks where the runtime is no executable, and names the runtime.
    let vocabulary = &[
        "-c",
        "--cid",
        "--cid=c1",
        "c2",
        "-u",
        "--cuuid=u1",
        "-r",
        "--runtime=/n1",
        "--runtime",
        "/n2",
        "/n3",
        "-tr",
        "-ti",
        "-tir",
        "--api-version",
        "1",
        "--",
        "-",
        "-n",
        "web",
        "--name=web",
        "-cu",
        "--runt=/n4",
        "-r/n5",
        "-s",
    ];
    let heads: &[&[&str]] = &[
        &["-c", "c1", "-u", "u1"],
        &["--cid=c1", "--cuuid", "u1", "-r", "/n0"],
        &["--api-version", "1", "-u", "u1", "-r", "/n0"],
    ];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        let ours = parse(Family::Conmon, argv);
        if let Some(theirs) = between(output, "Runtime path ", " is not valid") {
            let runtime = ours.conmon.and_then(|facts| facts.runtime);
            return Some(same(&runtime, &path(theirs)));
        }
        output.contains("Container ID not provided").then(|| same(&ours.id, &None))
    });
    assert!(understood > 5, "conmon understood {understood} lines only: its messages have changed");
}

#[test]
fn runsc_reads_bundles_as_we_do() {
    let Some(bench) = Bench::new("runsc") else { return };
    let vocabulary = &[
        "--bundle",
        "-bundle",
        "--bundle=/n1",
        "--bundle=",
        "-bundle=/n3",
        "/n4",
        "/n5",
        "c1",
        "c1",
        "c2",
        "--pid-file",
        "-detach",
        "-detach=0",
        "--",
        "-",
        "--user-log=x",
        "-b",
        "--bun",
    ];
    let heads: &[&[&str]] =
        &[&["--root", "ROOT", "create"], &["-root", "ROOT", "-network", "none", "-strace", "create"]];
    let understood = bench.run(heads, vocabulary, |argv, output| {
        let ours = parse(Family::Runsc, argv);
        let theirs = between(output, "reading spec: error reading file \"", "/config.json\"")
            .or_else(|| between(output, "reading spec: open ", "/config.json"))
            .or_else(|| between(output, "error opening spec file \"", "/config.json\""))?;
        if theirs.ends_with("/cwd") {
            return Some(same(&ours.bundle, &None));
        }
        Some(same(&ours.bundle, &path(theirs)))
    });
    assert!(understood > 5, "runsc understood {understood} lines only: its messages have changed");
}
