//! crun, and the names it goes under (krun, crun-wasm, crun-vm).
//!
//! crun reads with argp in order: getopt's spellings (`-dbDIR`, abbreviations such as `--bun`), and the first
//! argument that is no option ends the options, before the verb and behind it. What follows the id is the
//! id's (`exec`) or refused.

use std::ffi::OsStr;

use super::oci::{self, Grammar, Key, Shape};
use super::scan::{GETOPT, Opt, flag, optional, value};
use super::{Family, Invocation, Verb};

const GRAMMAR: Grammar = Grammar {
    family: Family::Crun,
    dialect: GETOPT,
    global: GLOBAL,
    global_after_verb: false,
    reorder: None,
    shape,
    verb: Verb::from_word,
};

pub(super) fn parse(argv: &[&OsStr]) -> Invocation {
    oci::parse(&GRAMMAR, argv.get(1..).unwrap_or_default())
}

fn shape(verb: &Verb) -> Shape {
    let options = match verb {
        Verb::Create => CREATE,
        Verb::Run => RUN,
        Verb::Restore => RESTORE,
        Verb::Checkpoint => CHECKPOINT,
        Verb::Exec => EXEC,
        Verb::Kill => KILL,
        Verb::Delete => DELETE,
        Verb::Update => UPDATE,
        Verb::List | Verb::Ps => LIST,
        _ => PLAIN,
    };
    Shape { options, stop_after: 1 }
}

// argp adds these four to every parser. They stand last, so that an abbreviation means crun's own option.
const HELP: Opt<Key> = flag("help", b'?', Key::Help);
const USAGE: Opt<Key> = flag("usage", 0, Key::Help);
const PROGRAM_NAME: Opt<Key> = value("program-name", 0, Key::Ignored);
const HANG: Opt<Key> = optional("HANG", 0, Key::Ignored);

const GLOBAL: &[Opt<Key>] = &[
    flag("debug", 0, Key::Ignored),
    value("cgroup-manager", 0, Key::CgroupManager),
    flag("systemd-cgroup", 0, Key::SystemdCgroup),
    value("log", 0, Key::Log),
    value("log-format", 0, Key::LogFormat),
    value("log-level", 0, Key::Ignored),
    value("root", 0, Key::Root),
    // crun takes it for runc's sake and ignores it.
    value("rootless", 0, Key::Ignored),
    flag("version", b'v', Key::Help),
    flag("", b'V', Key::Help),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const CREATE: &[Opt<Key>] = &[
    value("bundle", b'b', Key::Bundle),
    value("config", b'f', Key::Config),
    value("console-socket", 0, Key::ConsoleSocket),
    value("preserve-fds", 0, Key::PreserveFds),
    flag("no-subreaper", 0, Key::Ignored),
    flag("no-new-keyring", 0, Key::NoNewKeyring),
    value("pid-file", 0, Key::PidFile),
    flag("no-pivot", 0, Key::NoPivot),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const RUN: &[Opt<Key>] = &[
    value("bundle", b'b', Key::Bundle),
    value("config", b'f', Key::Config),
    flag("detach", b'd', Key::Detach),
    value("console-socket", 0, Key::ConsoleSocket),
    value("preserve-fds", 0, Key::PreserveFds),
    flag("no-subreaper", 0, Key::Ignored),
    flag("no-new-keyring", 0, Key::NoNewKeyring),
    value("pid-file", 0, Key::PidFile),
    flag("no-pivot", 0, Key::NoPivot),
    flag("keep", 0, Key::Keep),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const RESTORE: &[Opt<Key>] = &[
    value("bundle", b'b', Key::Bundle),
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    flag("tcp-established", 0, Key::Ignored),
    flag("ext-unix-sk", 0, Key::Ignored),
    flag("shell-job", 0, Key::Ignored),
    flag("detach", b'd', Key::Detach),
    value("pid-file", 0, Key::PidFile),
    value("console-socket", 0, Key::ConsoleSocket),
    flag("file-locks", 0, Key::Ignored),
    value("manage-cgroups-mode", 0, Key::Ignored),
    value("lsm-profile", 0, Key::Ignored),
    value("lsm-mount-context", 0, Key::Ignored),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const CHECKPOINT: &[Opt<Key>] = &[
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    flag("leave-running", 0, Key::LeaveRunning),
    flag("tcp-established", 0, Key::Ignored),
    flag("ext-unix-sk", 0, Key::Ignored),
    flag("shell-job", 0, Key::Ignored),
    flag("file-locks", 0, Key::Ignored),
    value("parent-path", 0, Key::Ignored),
    flag("pre-dump", 0, Key::LeaveRunning),
    value("manage-cgroups-mode", 0, Key::Ignored),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const EXEC: &[Opt<Key>] = &[
    value("console-socket", 0, Key::ConsoleSocket),
    optional("tty", b't', Key::TtyWord),
    value("process", b'p', Key::Process),
    value("cwd", 0, Key::Cwd),
    flag("detach", b'd', Key::Detach),
    value("user", b'u', Key::User),
    value("env", b'e', Key::Env),
    value("cap", b'c', Key::Cap),
    value("pid-file", 0, Key::PidFile),
    value("preserve-fds", 0, Key::PreserveFds),
    flag("no-new-privs", 0, Key::Ignored),
    value("process-label", 0, Key::Ignored),
    value("apparmor", 0, Key::Ignored),
    value("cgroup", 0, Key::Cgroup),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const KILL: &[Opt<Key>] =
    &[flag("all", b'a', Key::All), flag("regex", b'r', Key::Regex), HELP, USAGE, PROGRAM_NAME, HANG];

const DELETE: &[Opt<Key>] =
    &[flag("force", b'f', Key::Force), flag("regex", b'r', Key::Regex), HELP, USAGE, PROGRAM_NAME, HANG];

const UPDATE: &[Opt<Key>] = &[
    value("resources", b'r', Key::Resources),
    value("blkio-weight", 0, Key::Limit("blkio-weight")),
    value("cpu-period", 0, Key::Limit("cpu-period")),
    value("cpu-quota", 0, Key::Limit("cpu-quota")),
    value("cpu-rt-period", 0, Key::Limit("cpu-rt-period")),
    value("cpu-rt-runtime", 0, Key::Limit("cpu-rt-runtime")),
    value("cpu-share", 0, Key::Limit("cpu-share")),
    value("cpuset-cpus", 0, Key::Limit("cpuset-cpus")),
    value("cpuset-mems", 0, Key::Limit("cpuset-mems")),
    value("kernel-memory", 0, Key::Limit("kernel-memory")),
    value("kernel-memory-tcp", 0, Key::Limit("kernel-memory-tcp")),
    value("memory", 0, Key::Limit("memory")),
    value("memory-reservation", 0, Key::Limit("memory-reservation")),
    value("memory-swap", 0, Key::Limit("memory-swap")),
    value("pids-limit", 0, Key::Limit("pids-limit")),
    value("l3-cache-schema", 0, Key::Limit("l3-cache-schema")),
    value("mem-bw-schema", 0, Key::Limit("mem-bw-schema")),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const LIST: &[Opt<Key>] = &[
    flag("quiet", b'q', Key::Ignored),
    value("format", b'f', Key::Ignored),
    HELP,
    USAGE,
    PROGRAM_NAME,
    HANG,
];

const PLAIN: &[Opt<Key>] = &[HELP, USAGE, PROGRAM_NAME, HANG];
