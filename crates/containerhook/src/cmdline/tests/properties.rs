//! What holds for every command line.

use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;

const FAMILIES: [Family; 6] =
    [Family::Runc, Family::Crun, Family::Youki, Family::Runsc, Family::Conmon, Family::Generic];

/// Any bytes that execve can pass on.
fn bytes(min: usize) -> impl Strategy<Value = OsString> {
    prop::collection::vec(1u8..=255, min..12).prop_map(OsString::from_vec)
}

/// Words of which command lines are made, and a few that are not.
fn word() -> impl Strategy<Value = OsString> {
    let known = prop::sample::select(vec![
        "create",
        "run",
        "start",
        "exec",
        "kill",
        "delete",
        "init",
        "restore",
        "help",
        "runc",
        "crun",
        "conmon",
        "/x/youki",
        "--",
        "-",
        "",
        "---",
        "-=",
        "--=",
        "=",
        "--bundle",
        "--bundle=",
        "-b",
        "-b=",
        "-bx",
        "-db",
        "--pid-file",
        "--root",
        "-t",
        "-t=",
        "--tty=no",
        "--detach=false",
        "--process",
        "-e",
        "--env=A=B",
        "-c",
        "--cid",
        "-n",
        "--name=x",
        "--help",
        "-h",
        "-?",
        "--version",
        "--preserve-fds=-1",
        "--preserve-fds=99999999999999999999",
        "c1",
        "../c1",
        "--x",
        "--x=y",
        "-xyz",
        "--rootless",
        "--rootless=",
        "--cgroup-manager=",
        "--regex",
    ]);
    prop_oneof![3 => known.prop_map(OsString::from), 1 => bytes(0)]
}

/// Every word that the invocation tells.
fn told(inv: &Invocation) -> Vec<&OsStr> {
    let mut all: Vec<&OsStr> = Vec::new();
    let paths = [
        &inv.bundle,
        &inv.pid_file,
        &inv.root,
        &inv.console_socket,
        &inv.config_file,
        &inv.image_path,
        &inv.work_path,
        &inv.resources_file,
    ];
    all.extend(paths.into_iter().flatten().map(|path| path.as_os_str()));
    all.extend(
        [&inv.id, &inv.log, &inv.log_format, &inv.signal].into_iter().flatten().map(|w| w.as_os_str()),
    );
    all.extend(inv.more_ids.iter().map(|w| w.as_os_str()));
    if let Verb::Other(word) = &inv.verb {
        all.push(word);
    }
    if let Some(exec) = &inv.exec {
        all.extend([&exec.process_file, &exec.cwd].into_iter().flatten().map(|path| path.as_os_str()));
        all.extend(
            exec.user.iter().chain(&exec.args).chain(&exec.env).chain(&exec.caps).map(|w| w.as_os_str()),
        );
    }
    if let Some(facts) = &inv.conmon {
        all.extend([&facts.runtime, &facts.exit_dir].into_iter().flatten().map(|path| path.as_os_str()));
        all.extend(facts.name.iter().chain(&facts.uuid).chain(&facts.runtime_args).map(|w| w.as_os_str()));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_line_is_read_and_every_word_told_was_on_it(
        argv in prop::collection::vec(word(), 0..14),
        family in prop::sample::select(FAMILIES.to_vec()),
    ) {
        let inv = parse(family, &argv);
        for word in told(&inv) {
            prop_assert!(argv.iter().any(|arg| arg.as_bytes().ends_with(word.as_bytes())), "{word:?}");
        }
        prop_assert_eq!(inv.exec.is_some(), inv.verb == Verb::Exec);
        prop_assert_eq!(inv.conmon.is_some(), inv.verb == Verb::Monitor);
        prop_assert!(inv.id.is_none() || inv.verb.names_container() || matches!(inv.verb, Verb::Monitor | Verb::Help | Verb::Init));
        prop_assert!(inv.family == family || family == Family::Generic);
        looks_like_oci(&argv);
        if let Some(first) = argv.first() {
            Family::guess(first);
        }
    }

    #[test]
    fn any_bytes_are_read(
        argv in prop::collection::vec(bytes(0), 0..10),
        family in prop::sample::select(FAMILIES.to_vec()),
    ) {
        let inv = parse(family, &argv);
        prop_assert!(told(&inv).len() <= argv.len());
    }
}

/// The spellings of one option; `V` stands for the value. Written down anew here, so that a slip in a
/// family's table shows.
type Spellings = &'static [&'static str];

struct Spelling {
    family: Family,
    bundle: Spellings,
    pid_file: Spellings,
    console_socket: Spellings,
    preserve_fds: Spellings,
    detach: Spellings,
    no_pivot: Spellings,
    no_new_keyring: Spellings,
    keep: Spellings,
    root: Spellings,
    log: Spellings,
    log_format: Spellings,
    systemd_cgroup: Spellings,
    /// Options are found behind the id, too.
    anywhere: bool,
}

const RUNC: Spelling = Spelling {
    family: Family::Runc,
    bundle: &["--bundle V", "--bundle=V", "-bundle V", "-bundle=V", "-b V", "-b=V", "--b V", "--b=V"],
    pid_file: &["--pid-file V", "--pid-file=V", "-pid-file V", "-pid-file=V"],
    console_socket: &["--console-socket V", "--console-socket=V", "-console-socket V", "-console-socket=V"],
    preserve_fds: &["--preserve-fds V", "-preserve-fds=V"],
    detach: &["--detach", "-detach", "-d", "--d", "--detach=true", "-d=1", "-d=T"],
    no_pivot: &["--no-pivot", "-no-pivot", "-no-pivot=TRUE"],
    no_new_keyring: &["--no-new-keyring", "-no-new-keyring", "--no-new-keyring=t"],
    keep: &["--keep", "-keep", "-keep=True"],
    root: &["--root V", "--root=V", "-root V", "-root=V"],
    log: &["--log V", "--log=V", "-log V", "-log=V"],
    log_format: &["--log-format V", "--log-format=V", "-log-format V", "-log-format=V"],
    systemd_cgroup: &["--systemd-cgroup", "-systemd-cgroup", "--systemd-cgroup=true"],
    anywhere: true,
};

const CRUN: Spelling = Spelling {
    family: Family::Crun,
    bundle: &["--bundle V", "--bundle=V", "--bun V", "--b=V", "-b V", "-bV"],
    pid_file: &["--pid-file V", "--pid-file=V", "--pid V", "--pi=V"],
    console_socket: &["--console-socket V", "--console-socket=V", "--cons=V"],
    preserve_fds: &["--preserve-fds V", "--pre=V"],
    detach: &["--detach", "-d", "--det"],
    no_pivot: &["--no-pivot", "--no-p"],
    no_new_keyring: &["--no-new-keyring", "--no-n"],
    keep: &["--keep"],
    root: &["--root V", "--root=V"],
    log: &["--log V", "--log=V"],
    log_format: &["--log-format V", "--log-format=V", "--log-f=V"],
    systemd_cgroup: &["--systemd-cgroup", "--sys", "--cgroup-manager=systemd", "--cgroup-manager systemd"],
    anywhere: false,
};

const YOUKI: Spelling = Spelling {
    family: Family::Youki,
    bundle: &["--bundle V", "--bundle=V", "-b V", "-bV", "-b=V"],
    pid_file: &["--pid-file V", "--pid-file=V", "-p V", "-p=V"],
    console_socket: &["--console-socket V", "--console-socket=V", "-c V", "-c=V"],
    preserve_fds: &["--preserve-fds V", "--preserve-fds=V"],
    detach: &["--detach", "-d"],
    no_pivot: &["--no-pivot"],
    no_new_keyring: &["--no-new-keyring"],
    keep: &["--keep"],
    root: &["--root V", "--root=V", "-r V", "-r=V"],
    log: &["--log V", "--log=V", "-l V", "-l=V"],
    log_format: &["--log-format V", "--log-format=V"],
    systemd_cgroup: &["--systemd-cgroup", "-s"],
    anywhere: true,
};

const RUNSC: Spelling = Spelling {
    family: Family::Runsc,
    bundle: &["--bundle V", "--bundle=V", "-bundle V", "-bundle=V"],
    pid_file: &["--pid-file V", "-pid-file=V"],
    console_socket: &["--console-socket V", "-console-socket=V"],
    preserve_fds: &[],
    detach: &["--detach", "-detach", "-detach=true"],
    no_pivot: &[],
    no_new_keyring: &[],
    keep: &["-keep"],
    root: &["--root V", "-root=V"],
    log: &["--log V", "-log=V"],
    log_format: &["--log-format V", "-log-format=V"],
    systemd_cgroup: &["--systemd-cgroup", "-systemd-cgroup=1"],
    anywhere: false,
};

/// A value in any spelling: no dash in front, since clap takes such a one for an option.
fn plain() -> impl Strategy<Value = OsString> {
    bytes(1).prop_filter("an option, or dropped by clap after -b", |word| {
        !word.as_bytes().starts_with(b"-") && !word.as_bytes().starts_with(b"=")
    })
}

fn spell(spelling: &str, value: &OsStr) -> Vec<OsString> {
    let Some(at) = spelling.find('V') else { return words(spelling) };
    let (before, _) = spelling.split_at(at);
    match before.strip_suffix(' ') {
        Some(option) => vec![option.into(), value.to_os_string()],
        None => {
            let mut joined = OsString::from(before);
            joined.push(value);
            vec![joined]
        }
    }
}

/// An invocation of `run` and how its line is spelled: which spelling of each option, in which order, and
/// where the id stands.
#[derive(Debug, Clone)]
struct Written {
    inv: Invocation,
    argv: Vec<OsString>,
}

fn written(table: &'static Spelling) -> impl Strategy<Value = Written> {
    let values = prop::collection::vec(prop::option::of(plain()), 6);
    let switches = prop::collection::vec(any::<bool>(), 5);
    let choices = prop::collection::vec(any::<prop::sample::Index>(), 12);
    let order = Just((0..8usize).collect::<Vec<_>>()).prop_shuffle();
    let global_order = Just((0..4usize).collect::<Vec<_>>()).prop_shuffle();
    let id = plain();
    (
        values,
        switches,
        choices,
        order,
        global_order,
        id,
        any::<prop::sample::Index>(),
        0u32..99,
        any::<bool>(),
    )
        .prop_map(move |(values, switches, choices, order, global_order, id, at, fds, dashes)| {
            let mut inv =
                Invocation { verb: Verb::Run, id: Some(id.clone()), ..Invocation::new(table.family) };
            let mut choice = choices.into_iter();
            let mut pick = |spellings: Spellings, value: &OsStr| -> Option<Vec<OsString>> {
                let choice = choice.next().unwrap();
                (!spellings.is_empty()).then(|| spell(choice.get::<&str>(spellings), value))
            };
            let mut option = |spellings: Spellings, value: &Option<OsString>| -> Option<Vec<OsString>> {
                value.as_ref().and_then(|value| pick(spellings, value))
            };
            let as_path = |value: &Option<OsString>| value.clone().map(PathBuf::from);
            let switch = |on: bool| on.then(OsString::new);

            let options = [
                option(table.bundle, &values[0]).inspect(|_| inv.bundle = as_path(&values[0])),
                option(table.pid_file, &values[1]).inspect(|_| inv.pid_file = as_path(&values[1])),
                option(table.console_socket, &values[2])
                    .inspect(|_| inv.console_socket = as_path(&values[2])),
                option(table.detach, &switch(switches[0])).inspect(|_| inv.detach = true),
                option(table.no_pivot, &switch(switches[1])).inspect(|_| inv.no_pivot = true),
                option(table.no_new_keyring, &switch(switches[2])).inspect(|_| inv.no_new_keyring = true),
                option(table.keep, &switch(switches[3])).inspect(|_| inv.keep = true),
                option(table.preserve_fds, &Some(fds.to_string().into()))
                    .inspect(|_| inv.preserve_fds = Some(fds)),
            ];
            let global = [
                option(table.root, &values[3]).inspect(|_| inv.root = as_path(&values[3])),
                option(table.log, &values[4]).inspect(|_| inv.log = values[4].clone()),
                option(table.log_format, &values[5]).inspect(|_| inv.log_format = values[5].clone()),
                option(table.systemd_cgroup, &switch(switches[4])).inspect(|_| inv.systemd_cgroup = true),
            ];
            let mut argv = vec![OsString::from("program")];
            argv.extend(global_order.iter().filter_map(|&i| global[i].clone()).flatten());
            argv.push("run".into());
            let mut groups: Vec<_> = order.iter().filter_map(|&i| options[i].clone()).collect();
            // Behind a switch, urfave/cli 1 would take the id along with it and refuse the options behind.
            let slots: Vec<_> = (0..=groups.len())
                .filter(|&slot| {
                    slot == groups.len() || (table.anywhere && (slot == 0 || groups[slot - 1].len() == 2))
                })
                .collect();
            let slot = *at.get(&slots);
            let with_dashes = dashes && slot == groups.len();
            groups.insert(slot, if with_dashes { vec!["--".into(), id] } else { vec![id] });
            argv.extend(groups.into_iter().flatten());
            Written { inv, argv }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn runc_reads_back_what_was_written(written in written(&RUNC)) {
        prop_assert_eq!(parse(Family::Runc, &written.argv), written.inv);
    }

    #[test]
    fn crun_reads_back_what_was_written(written in written(&CRUN)) {
        prop_assert_eq!(parse(Family::Crun, &written.argv), written.inv);
    }

    #[test]
    fn youki_reads_back_what_was_written(written in written(&YOUKI)) {
        prop_assert_eq!(parse(Family::Youki, &written.argv), written.inv);
    }

    #[test]
    fn runsc_reads_back_what_was_written(written in written(&RUNSC)) {
        prop_assert_eq!(parse(Family::Runsc, &written.argv), written.inv);
    }

    #[test]
    fn an_unheard_of_program_reads_back_runc_s_line(written in written(&RUNC)) {
        let expected = Invocation { family: Family::Generic, ..written.inv };
        prop_assert_eq!(parse(Family::Generic, &written.argv), expected);
    }
}

#[test]
fn a_line_of_a_hundred_thousand_words_is_read() {
    for filler in ["x", "--x", "-xyz", "--env=A=B", "--", "runc", "-e"] {
        let mut argv = words("program exec");
        argv.extend(std::iter::repeat_n(OsString::from(filler), 100_000));
        for family in FAMILIES {
            let inv = parse(family, &argv);
            assert!(told(&inv).len() <= argv.len(), "{filler} {family:?}");
        }
        argv.remove(1);
        for family in FAMILIES {
            parse(family, &argv);
        }
    }
}
