//! What the OCI runtimes' command lines have in common: the meaning of options, and one way to read a line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::scan::{Dialect, Opt, Scan, Unknown, scan};
use super::{ExecRequest, Family, Invocation, Verb};

/// The meaning of an option of an OCI runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    All,
    Bundle,
    Cap,
    Cgroup,
    CgroupManager,
    Config,
    ConsoleSocket,
    Cwd,
    Detach,
    Env,
    Force,
    Help,
    ImagePath,
    Keep,
    LeaveRunning,
    Log,
    LogFormat,
    NoNewKeyring,
    NoPivot,
    PidFile,
    PreserveFds,
    Process,
    Regex,
    Resources,
    Root,
    Rootless,
    SystemdCgroup,
    Tty,
    User,
    WorkPath,
    /// Known, but nothing that is told.
    Ignored,
}

/// How the arguments of a verb are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// The options.
    pub(super) options: &'static [Opt<Key>],
    /// After so many positional arguments the rest is no longer looked at for options.
    pub(super) stop_after: usize,
}

/// A runtime's command line: `PROGRAM [GLOBAL…] VERB [OPTION…] ID [ARG…]`.
pub(super) struct Grammar {
    pub(super) family: Family,
    pub(super) dialect: Dialect,
    /// Options before the verb.
    pub(super) global: &'static [Opt<Key>],
    /// Whether those are taken behind the verb, too.
    pub(super) global_after_verb: bool,
    pub(super) shape: fn(&Verb) -> Shape,
    /// The verb of a word, where a program has words of its own.
    pub(super) verb: fn(&OsStr) -> Verb,
}

/// Reads `args`, the arguments behind `argv[0]`.
pub(super) fn parse(grammar: &Grammar, args: &[OsString]) -> Invocation {
    let mut inv = Invocation::new(grammar.family);
    let mut help = false;
    let head = scan(
        grammar.dialect,
        &[grammar.global],
        Unknown::ValueUnless(Verb::is_word),
        1,
        args,
        &mut |key, value| apply(&mut inv, &mut help, key, value),
    );
    // A verb that is met only as the value of an option nobody knows is no verb.
    let Some(word) = head.positional.first() else {
        if help {
            inv.verb = Verb::Help;
        }
        return inv;
    };
    inv.verb = (grammar.verb)(word);
    read_verb(grammar, &mut inv, &mut help, head.rest);
    if help {
        inv.verb = Verb::Help;
    }
    inv
}

fn read_verb(grammar: &Grammar, inv: &mut Invocation, help: &mut bool, args: &[OsString]) {
    let verb = inv.verb.clone();
    if verb == Verb::Exec {
        inv.exec = Some(ExecRequest::default());
    }
    let shape = (grammar.shape)(&verb);
    let alone = verb.names_container() && !matches!(verb, Verb::Exec | Verb::Kill | Verb::Ps);
    let unknown = if alone { Unknown::ValueUnlessLast } else { Unknown::Switch };
    let global: &[Opt<Key>] = if grammar.global_after_verb { grammar.global } else { &[] };
    let tail = scan(
        grammar.dialect,
        &[shape.options, global],
        unknown,
        shape.stop_after,
        args,
        &mut |key, value| {
            apply(inv, help, key, value);
        },
    );
    if !verb.names_container() {
        return;
    }
    let words = |tail: &Scan<'_>| -> Vec<OsString> {
        tail.positional.iter().skip(1).map(|w| w.to_os_string()).chain(tail.rest.iter().cloned()).collect()
    };
    inv.id = tail.positional.first().or(tail.guessed.as_ref()).map(|w| w.to_os_string());
    match verb {
        Verb::Exec => {
            if let Some(exec) = inv.exec.as_mut() {
                exec.args = words(&tail);
            }
        }
        Verb::Kill => {
            inv.signal = tail
                .positional
                .get(1)
                .copied()
                .map(OsStr::to_os_string)
                .or_else(|| tail.rest.first().cloned())
        }
        _ => {}
    }
}

/// Records an option.
pub(super) fn apply(inv: &mut Invocation, help: &mut bool, key: Key, value: Option<&OsStr>) {
    let on = || switch(value);
    let word = || value.map(OsStr::to_os_string);
    let path = || value.map(PathBuf::from);
    match key {
        Key::All => inv.all = on(),
        Key::Bundle => inv.bundle = path(),
        Key::CgroupManager => inv.systemd_cgroup = value == Some(OsStr::new("systemd")),
        Key::Config => inv.config_file = path(),
        Key::ConsoleSocket => inv.console_socket = path(),
        Key::Detach => inv.detach = on(),
        Key::Force => inv.force = on(),
        Key::Help => *help |= on(),
        Key::ImagePath => inv.image_path = path(),
        Key::Keep => inv.keep = on(),
        Key::LeaveRunning => inv.leave_running = on(),
        Key::Log => inv.log = word(),
        Key::LogFormat => inv.log_format = word(),
        Key::NoNewKeyring => inv.no_new_keyring = on(),
        Key::NoPivot => inv.no_pivot = on(),
        Key::PidFile => inv.pid_file = path(),
        Key::PreserveFds => inv.preserve_fds = value.and_then(OsStr::to_str).and_then(|s| s.parse().ok()),
        Key::Regex => inv.regex = on(),
        Key::Resources => inv.resources_file = path(),
        Key::Root => inv.root = path(),
        Key::Rootless => inv.rootless = tristate(value),
        Key::SystemdCgroup => inv.systemd_cgroup = on(),
        Key::WorkPath => inv.work_path = path(),
        Key::Ignored => {}
        Key::Cap | Key::Cgroup | Key::Cwd | Key::Env | Key::Process | Key::Tty | Key::User => {
            let Some(exec) = inv.exec.as_mut() else { return };
            match key {
                Key::Cap => exec.caps.extend(word()),
                Key::Cgroup => exec.cgroups.extend(word()),
                Key::Cwd => exec.cwd = path(),
                Key::Env => exec.env.extend(word()),
                Key::Process => exec.process_file = path(),
                Key::Tty => exec.tty = value.is_none_or(|v| v != "no") && on(),
                _ => exec.user = word(),
            }
        }
    }
}

/// The value of a switch: Go takes `--switch=VALUE` with any of these words for "off", and refuses what is neither.
fn switch(value: Option<&OsStr>) -> bool {
    !value.is_some_and(|v| matches!(v.as_bytes(), b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False"))
}

fn tristate(value: Option<&OsStr>) -> Option<bool> {
    match value.map(OsStrExt::as_bytes) {
        None | Some(b"true" | b"1" | b"t" | b"T" | b"TRUE" | b"True") => Some(true),
        Some(b"false" | b"0" | b"f" | b"F" | b"FALSE" | b"False") => Some(false),
        Some(_) => None,
    }
}
