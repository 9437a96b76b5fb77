//! A command line that looks like an OCI runtime's, of a program nobody has told us about; and of wrappers.
//!
//! What such programs have in common is the OCI runtimes' habit `PROGRAM [GLOBAL…] VERB [OPTION…] ID`, nearly
//! always with runc's option names. So the options are read with the union of the names that the known
//! runtimes have, in the loosest spelling (one dash or two, `=` or the next word, `-bDIR`), on both sides of
//! the id. An option that no known runtime has is ambiguous: is the word behind it its value? Before the verb
//! it is, unless it is a verb itself. Behind the verb it is, unless it is the last word, which then is the
//! id.
//!
//! A wrapper (`sudo runc create …`, `nsenter -m runc run …`) names the runtime before the verb. The line is
//! then read from there on, as that runtime's.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::oci::{self, Grammar, Key, Shape};
use super::scan::{Dialect, Opt, Short, Unknown, flag, scan, value};
use super::{Family, Invocation, Verb};

/// Wrappers put few words before the runtime; a line that has more of them is something else.
const WORDS_LOOKED_AT: usize = 32;

const DIALECT: Dialect = Dialect { short: Short::Loose, abbreviations: false, switch_values: true };

const GRAMMAR: Grammar = Grammar {
    family: Family::Generic,
    dialect: DIALECT,
    global: GLOBAL,
    global_after_verb: true,
    reorder: None,
    shape,
    verb: Verb::from_word,
};

pub(super) fn parse(all: &[&OsStr]) -> Invocation {
    let mut args = all.get(1..).unwrap_or_default();
    for _ in 0..WORDS_LOOKED_AT {
        let head = scan(DIALECT, &[GLOBAL], Unknown::ValueUnless(is_anchor), 1, args, &mut |_, _| {});
        let Some(word) = head.positional.first() else { break };
        if Verb::is_word(word) {
            return oci::parse(&GRAMMAR, args);
        }
        let family = Family::guess(word);
        if family != Family::Generic {
            // `rest` begins behind the runtime's name, which stands for argv[0].
            let from = all.len() - head.rest.len() - 1;
            return super::parse_borrowed(family, &all[from..]);
        }
        args = head.rest;
    }
    // No verb and no runtime: at most a help text, or a verb of its own.
    let inv = oci::parse(&GRAMMAR, all.get(1..).unwrap_or_default());
    Invocation { verb: inv.verb, ..Invocation::new(Family::Generic) }
}

/// A word that cannot be the value of an option nobody knows.
fn is_anchor(word: &OsStr) -> bool {
    Verb::is_word(word) || !matches!(Family::guess(word), Family::Generic)
}

/// Whether this is plausibly the command line of an OCI runtime that is asked something about a container.
///
/// For learning runtimes that no list names. Wrappers (`sudo runc …`) are not meant: the verb must be the
/// first word. It is a necessary condition and a weak one (`make run tests` has the same form), so the caller
/// should see other evidence too: that a container did start below this process, or, for a verb that creates,
/// that the bundle (else the working directory) holds a `config.json`.
pub(crate) fn looks_like_oci(argv: &[OsString]) -> bool {
    let argv = oci::borrow(argv);
    let (inv, tail) = oci::parse_with_tail(&GRAMMAR, argv.get(1..).unwrap_or_default());
    if !inv.verb.names_container() || !inv.id.as_deref().is_some_and(is_id) {
        return false;
    }
    // With an option that no runtime has, only an option that nothing else has makes it one's.
    if tail.misfit && inv.bundle.is_none() {
        return false;
    }
    match inv.verb {
        Verb::Kill => tail.words <= 2,
        Verb::Ps => true,
        // One of the two says what to execute.
        Verb::Exec => inv.exec.is_some_and(|exec| exec.process_file.is_some() == exec.args.is_empty()),
        // No OCI runtime takes a second argument here; `docker run IMAGE COMMAND` has one.
        _ => tail.words <= 1,
    }
}

/// The form of an id that runc, crun and youki accept.
fn is_id(id: &OsStr) -> bool {
    let id = id.as_bytes();
    !id.is_empty()
        && id.len() <= 1024
        && id[0] != b'.'
        && id.iter().all(|b| b.is_ascii_alphanumeric() || b"_+.-".contains(b))
}

fn shape(verb: &Verb) -> Shape {
    const NEVER: usize = usize::MAX;
    match verb {
        Verb::Exec => Shape { options: EXEC, stop_after: 1 },
        Verb::Ps => Shape { options: OTHER, stop_after: 1 },
        Verb::Create | Verb::Run | Verb::Restore => Shape { options: CREATE, stop_after: NEVER },
        Verb::Update => Shape { options: UPDATE, stop_after: NEVER },
        _ => Shape { options: OTHER, stop_after: NEVER },
    }
}

const HELP: Opt<Key> = flag("help", b'h', Key::Help);

const GLOBAL: &[Opt<Key>] = &[
    HELP,
    flag("version", b'v', Key::Help),
    flag("debug", 0, Key::Ignored),
    value("log", 0, Key::Log),
    value("log-format", 0, Key::LogFormat),
    value("log-level", 0, Key::Ignored),
    value("root", 0, Key::Root),
    value("criu", 0, Key::Ignored),
    flag("systemd-cgroup", 0, Key::SystemdCgroup),
    value("cgroup-manager", 0, Key::CgroupManager),
    value("rootless", 0, Key::Rootless),
];

const CREATE: &[Opt<Key>] = &[
    HELP,
    value("bundle", b'b', Key::Bundle),
    value("config", b'f', Key::Config),
    value("console-socket", 0, Key::ConsoleSocket),
    value("pidfd-socket", 0, Key::Ignored),
    flag("detach", b'd', Key::Detach),
    flag("keep", 0, Key::Keep),
    value("pid-file", b'p', Key::PidFile),
    flag("no-subreaper", 0, Key::Ignored),
    flag("no-pivot", 0, Key::NoPivot),
    flag("no-new-keyring", 0, Key::NoNewKeyring),
    value("preserve-fds", 0, Key::PreserveFds),
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    flag("tcp-established", 0, Key::Ignored),
    flag("ext-unix-sk", 0, Key::Ignored),
    flag("shell-job", 0, Key::Ignored),
    flag("file-locks", 0, Key::Ignored),
    flag("auto-dedup", 0, Key::Ignored),
    flag("lazy-pages", 0, Key::Ignored),
    value("manage-cgroups-mode", 0, Key::Ignored),
    value("empty-ns", 0, Key::Ignored),
    value("lsm-profile", 0, Key::Ignored),
    value("lsm-mount-context", 0, Key::Ignored),
    value("user-log", 0, Key::Ignored),
];

const EXEC: &[Opt<Key>] = &[
    HELP,
    value("console-socket", 0, Key::ConsoleSocket),
    value("pidfd-socket", 0, Key::Ignored),
    value("cwd", 0, Key::Cwd),
    value("env", b'e', Key::Env),
    flag("tty", b't', Key::Tty),
    value("user", b'u', Key::User),
    value("additional-gids", b'g', Key::Ignored),
    value("process", b'p', Key::Process),
    flag("detach", b'd', Key::Detach),
    value("pid-file", 0, Key::PidFile),
    value("process-label", 0, Key::Ignored),
    value("apparmor", 0, Key::Ignored),
    flag("no-new-privs", 0, Key::Ignored),
    value("cap", b'c', Key::Cap),
    value("preserve-fds", 0, Key::PreserveFds),
    value("cgroup", 0, Key::Cgroup),
    flag("ignore-paused", 0, Key::Ignored),
];

const UPDATE: &[Opt<Key>] = &[HELP, value("resources", b'r', Key::Resources)];

const OTHER: &[Opt<Key>] = &[
    HELP,
    flag("all", b'a', Key::All),
    flag("force", b'f', Key::Force),
    flag("leave-running", 0, Key::LeaveRunning),
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    value("format", 0, Key::Ignored),
    flag("quiet", b'q', Key::Ignored),
    value("interval", 0, Key::Ignored),
    flag("stats", 0, Key::Ignored),
];
