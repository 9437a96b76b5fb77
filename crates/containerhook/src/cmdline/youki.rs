//! youki.
//!
//! youki reads with clap: options on either side of the id, joined letters (`-dbDIR`, `-b=DIR`), no
//! abbreviations. `exec` stops at the command, not at the id: `exec ID -t CMD -x` has a terminal, and `-x` is
//! the command's.

use std::ffi::OsStr;

use super::oci::{self, Grammar, Key, Shape};
use super::scan::{CLAP, Opt, flag, value};
use super::{Family, Invocation, Verb};

const GRAMMAR: Grammar = Grammar {
    family: Family::Youki,
    dialect: CLAP,
    global: GLOBAL,
    global_after_verb: false,
    reorder: None,
    shape,
    verb,
};

pub(super) fn parse(argv: &[&OsStr]) -> Invocation {
    oci::parse(&GRAMMAR, argv.get(1..).unwrap_or_default())
}

fn verb(word: &OsStr) -> Verb {
    match word.as_encoded_bytes() {
        // Spelled so in liboci-cli.
        b"checkpointt" => Verb::Checkpoint,
        b"info" | b"completion" => Verb::Help,
        _ => Verb::from_word(word),
    }
}

fn shape(verb: &Verb) -> Shape {
    const NEVER: usize = usize::MAX;
    let (options, stop_after) = match verb {
        Verb::Create | Verb::Run => (RUN, NEVER),
        Verb::Restore | Verb::Checkpoint => (CHECKPOINT, NEVER),
        Verb::Exec => (EXEC, 2),
        Verb::Kill => (KILL, NEVER),
        Verb::Delete => (DELETE, NEVER),
        Verb::Update => (UPDATE, NEVER),
        Verb::Events => (EVENTS, NEVER),
        Verb::Ps => (LIST, 2),
        Verb::List => (LIST, NEVER),
        _ => (PLAIN, NEVER),
    };
    Shape { options, stop_after }
}

const HELP: Opt<Key> = flag("help", b'h', Key::Help);

const GLOBAL: &[Opt<Key>] = &[
    HELP,
    flag("version", b'v', Key::Help),
    flag("", b'V', Key::Help),
    value("log", b'l', Key::Log),
    flag("debug", 0, Key::Ignored),
    value("log-format", 0, Key::LogFormat),
    value("root", b'r', Key::Root),
    flag("systemd-cgroup", b's', Key::SystemdCgroup),
    flag("systemd-log", 0, Key::Ignored),
    value("log-level", 0, Key::Ignored),
];

const RUN: &[Opt<Key>] = &[
    HELP,
    value("bundle", b'b', Key::Bundle),
    value("console-socket", b'c', Key::ConsoleSocket),
    value("pid-file", b'p', Key::PidFile),
    flag("no-subreaper", 0, Key::Ignored),
    flag("no-pivot", 0, Key::NoPivot),
    flag("no-new-keyring", 0, Key::NoNewKeyring),
    value("preserve-fds", 0, Key::PreserveFds),
    flag("keep", 0, Key::Keep),
    flag("detach", b'd', Key::Detach),
];

const CHECKPOINT: &[Opt<Key>] = &[
    HELP,
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    value("bundle", b'b', Key::Bundle),
    value("console-socket", 0, Key::ConsoleSocket),
    value("pid-file", 0, Key::PidFile),
    flag("detach", b'd', Key::Detach),
    flag("leave-running", 0, Key::LeaveRunning),
    flag("tcp-established", 0, Key::Ignored),
    flag("link-remap", 0, Key::Ignored),
    flag("ext-unix-sk", 0, Key::Ignored),
    flag("shell-job", 0, Key::Ignored),
    flag("file-locks", 0, Key::Ignored),
    value("manage-cgroups-mode", 0, Key::Ignored),
];

const EXEC: &[Opt<Key>] = &[
    HELP,
    value("console-socket", 0, Key::ConsoleSocket),
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
    value("cap", 0, Key::Cap),
    value("preserve-fds", 0, Key::PreserveFds),
    flag("ignore-paused", 0, Key::Ignored),
    value("cgroup", 0, Key::Cgroup),
];

const KILL: &[Opt<Key>] = &[HELP, flag("all", b'a', Key::All)];

const DELETE: &[Opt<Key>] = &[HELP, flag("force", b'f', Key::Force)];

const UPDATE: &[Opt<Key>] = &[
    HELP,
    value("resources", b'r', Key::Resources),
    value("blkio-weight", 0, Key::Limit("blkio-weight")),
    value("cpu-period", 0, Key::Limit("cpu-period")),
    value("cpu-quota", 0, Key::Limit("cpu-quota")),
    value("cpu-rt-period", 0, Key::Limit("cpu-rt-period")),
    value("cpu-rt-runtime", 0, Key::Limit("cpu-rt-runtime")),
    value("cpu-share", 0, Key::Limit("cpu-share")),
    value("cpuset-cpus", 0, Key::Limit("cpuset-cpus")),
    value("cpuset-mems", 0, Key::Limit("cpuset-mems")),
    value("memory", 0, Key::Limit("memory")),
    value("memory-reservation", 0, Key::Limit("memory-reservation")),
    value("memory-swap", 0, Key::Limit("memory-swap")),
    value("pids-limit", 0, Key::Limit("pids-limit")),
    value("l3-cache-schema", 0, Key::Limit("l3-cache-schema")),
    value("mem-bw-schema", 0, Key::Limit("mem-bw-schema")),
];

const EVENTS: &[Opt<Key>] = &[HELP, value("interval", 0, Key::Ignored), flag("stats", 0, Key::Ignored)];

const LIST: &[Opt<Key>] = &[HELP, value("format", b'f', Key::Ignored), flag("quiet", b'q', Key::Ignored)];

const PLAIN: &[Opt<Key>] = &[HELP];
