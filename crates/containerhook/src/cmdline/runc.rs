//! runc, and what is built on its command line.
//!
//! runc reads with urfave/cli: version 1.22 up to runc 1.4, version 3 after it. Both are Go's `flag` at heart
//! (`-flag` is `--flag`, `--switch=false`), and both find options behind the id: version 1 moves options to
//! the front and then reads (see [`reorder`]), version 3 reads on. A line that version 1 accepts is read as
//! it does; any other line as version 3 does, which also takes global options behind the verb. `exec` and
//! `ps` leave what follows the id alone.
//!
//! Two lines that both accept are read as version 3 does, since they cannot work with version 1: `kill ID
//! --all 9` (the 9 moves along with `--all` and becomes the id), and `exec ID -- CMD` (version 1 tries to
//! execute `--`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::oci::{self, Grammar, Key, Shape};
use super::scan::{GO, Opt, find_long, flag, long_name, value};
use super::{Family, Invocation, Verb};

const GRAMMAR: Grammar = Grammar {
    family: Family::Runc,
    dialect: GO,
    global: GLOBAL,
    global_after_verb: true,
    reorder: Some(reorder),
    shape,
    verb,
};

pub(super) fn parse(argv: &[&OsStr]) -> Invocation {
    let mut inv = oci::parse(&GRAMMAR, argv.get(1..).unwrap_or_default());
    if let Some(exec) = inv.exec.as_mut()
        && exec.args.first().is_some_and(|word| word == "--")
    {
        exec.args.remove(0);
    }
    inv
}

fn verb(word: &OsStr) -> Verb {
    if word == "h" { Verb::Help } else { Verb::from_word(word) }
}

/// Moves options to the front, as urfave/cli 1.22 does before it reads.
///
/// It does not know which options take a value, so whatever follows an option without `=` moves along with
/// it, unless it is an option itself. That a switch takes along the id, and that the last of `create DIR ID
/// --bundle` takes DIR for its value, is what the program does.
fn reorder<'a>(options: &[Opt<Key>], args: &[&'a OsStr]) -> Vec<&'a OsStr> {
    let is_option = |arg: &OsStr| match arg.as_bytes() {
        b"-" | b"--" => false,
        [b'-', name @ ..] => {
            let dashes = name.iter().take(2).take_while(|&&b| b == b'-').count();
            find_long(GO, &[options], long_name(&name[dashes..])).is_some()
        }
        _ => false,
    };
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let mut may_be_value = false;
    let mut args = args.iter().copied();
    while let Some(arg) = args.next() {
        if may_be_value && !is_option(arg) {
            may_be_value = false;
            front.push(arg);
        } else if arg == "--" {
            back.insert(0, arg);
            back.extend(args.by_ref());
        } else if is_option(arg) {
            may_be_value = !arg.as_bytes().contains(&b'=');
            front.push(arg);
        } else {
            back.push(arg);
        }
    }
    front.append(&mut back);
    front
}

const NEVER: usize = usize::MAX;

fn shape(verb: &Verb) -> Shape {
    let (options, stop_after) = match verb {
        Verb::Create => (CREATE, NEVER),
        Verb::Run => (RUN, NEVER),
        Verb::Restore => (RESTORE, NEVER),
        Verb::Exec => (EXEC, 1),
        Verb::Kill => (KILL, NEVER),
        Verb::Delete => (DELETE, NEVER),
        Verb::Update => (UPDATE, NEVER),
        Verb::Checkpoint => (CHECKPOINT, NEVER),
        Verb::Events => (EVENTS, NEVER),
        Verb::Ps => (LIST, 1),
        Verb::List => (LIST, NEVER),
        _ => (PLAIN, NEVER),
    };
    Shape { options, stop_after }
}

const HELP: Opt<Key> = flag("help", b'h', Key::Help);

const GLOBAL: &[Opt<Key>] = &[
    HELP,
    flag("version", b'v', Key::Help),
    flag("debug", 0, Key::Ignored),
    value("log", 0, Key::Log),
    value("log-format", 0, Key::LogFormat),
    value("root", 0, Key::Root),
    value("criu", 0, Key::Ignored),
    flag("systemd-cgroup", 0, Key::SystemdCgroup),
    value("rootless", 0, Key::Rootless),
];

const CREATE: &[Opt<Key>] = &[
    HELP,
    value("bundle", b'b', Key::Bundle),
    value("console-socket", 0, Key::ConsoleSocket),
    value("pidfd-socket", 0, Key::Ignored),
    value("pid-file", 0, Key::PidFile),
    flag("no-pivot", 0, Key::NoPivot),
    flag("no-new-keyring", 0, Key::NoNewKeyring),
    value("preserve-fds", 0, Key::PreserveFds),
];

const RUN: &[Opt<Key>] = &[
    HELP,
    value("bundle", b'b', Key::Bundle),
    value("console-socket", 0, Key::ConsoleSocket),
    value("pidfd-socket", 0, Key::Ignored),
    flag("detach", b'd', Key::Detach),
    flag("keep", 0, Key::Keep),
    value("pid-file", 0, Key::PidFile),
    flag("no-subreaper", 0, Key::Ignored),
    flag("no-pivot", 0, Key::NoPivot),
    flag("no-new-keyring", 0, Key::NoNewKeyring),
    value("preserve-fds", 0, Key::PreserveFds),
];

const RESTORE: &[Opt<Key>] = &[
    HELP,
    value("bundle", b'b', Key::Bundle),
    value("console-socket", 0, Key::ConsoleSocket),
    flag("detach", b'd', Key::Detach),
    value("pid-file", 0, Key::PidFile),
    flag("no-subreaper", 0, Key::Ignored),
    flag("no-pivot", 0, Key::NoPivot),
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    flag("tcp-established", 0, Key::Ignored),
    flag("ext-unix-sk", 0, Key::Ignored),
    flag("shell-job", 0, Key::Ignored),
    flag("file-locks", 0, Key::Ignored),
    flag("link-remap", 0, Key::Ignored),
    value("manage-cgroups-mode", 0, Key::Ignored),
    value("empty-ns", 0, Key::Ignored),
    flag("auto-dedup", 0, Key::Ignored),
    flag("lazy-pages", 0, Key::Ignored),
    value("lsm-profile", 0, Key::Ignored),
    value("lsm-mount-context", 0, Key::Ignored),
];

const CHECKPOINT: &[Opt<Key>] = &[
    HELP,
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    value("parent-path", 0, Key::Ignored),
    flag("leave-running", 0, Key::LeaveRunning),
    flag("tcp-established", 0, Key::Ignored),
    flag("tcp-skip-in-flight", 0, Key::Ignored),
    flag("ext-unix-sk", 0, Key::Ignored),
    flag("shell-job", 0, Key::Ignored),
    flag("lazy-pages", 0, Key::Ignored),
    flag("link-remap", 0, Key::Ignored),
    value("status-fd", 0, Key::Ignored),
    value("page-server", 0, Key::Ignored),
    flag("file-locks", 0, Key::Ignored),
    flag("pre-dump", 0, Key::LeaveRunning),
    value("manage-cgroups-mode", 0, Key::Ignored),
    value("empty-ns", 0, Key::Ignored),
    flag("auto-dedup", 0, Key::Ignored),
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

const KILL: &[Opt<Key>] = &[HELP, flag("all", b'a', Key::All)];

const DELETE: &[Opt<Key>] = &[HELP, flag("force", b'f', Key::Force)];

const UPDATE: &[Opt<Key>] = &[
    HELP,
    value("resources", b'r', Key::Resources),
    value("blkio-weight", 0, Key::Limit("blkio-weight")),
    value("cpu-period", 0, Key::Limit("cpu-period")),
    value("cpu-quota", 0, Key::Limit("cpu-quota")),
    value("cpu-burst", 0, Key::Limit("cpu-burst")),
    value("cpu-share", 0, Key::Limit("cpu-share")),
    value("cpu-rt-period", 0, Key::Limit("cpu-rt-period")),
    value("cpu-rt-runtime", 0, Key::Limit("cpu-rt-runtime")),
    value("cpuset-cpus", 0, Key::Limit("cpuset-cpus")),
    value("cpuset-mems", 0, Key::Limit("cpuset-mems")),
    value("cpu-idle", 0, Key::Limit("cpu-idle")),
    value("kernel-memory", 0, Key::Limit("kernel-memory")),
    value("kernel-memory-tcp", 0, Key::Limit("kernel-memory-tcp")),
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
