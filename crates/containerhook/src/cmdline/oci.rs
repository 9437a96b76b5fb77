//! What the OCI runtimes' command lines have in common: the meaning of options, and one way to read a line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::scan::{Dialect, Opt, Unknown, scan};
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
    /// An option of `update`, by its name.
    Limit(&'static str),
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
    /// As `Tty`, for crun, where `no` and `false` alone mean no.
    TtyWord,
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

/// Moves the arguments of a verb that has these options.
pub(super) type Reorder = for<'a> fn(&[Opt<Key>], &[&'a OsStr]) -> Vec<&'a OsStr>;

/// A command line as the scanner wants it.
pub(super) fn borrow(argv: &[OsString]) -> Vec<&OsStr> {
    argv.iter().map(OsString::as_os_str).collect()
}

/// A runtime's command line: `PROGRAM [GLOBAL…] VERB [OPTION…] ID [ARG…]`.
pub(super) struct Grammar {
    pub(super) family: Family,
    pub(super) dialect: Dialect,
    /// Options before the verb.
    pub(super) global: &'static [Opt<Key>],
    /// Whether those are taken behind the verb, too.
    pub(super) global_after_verb: bool,
    /// How the program moves arguments behind the verb before it reads them, if it does.
    pub(super) reorder: Option<Reorder>,
    pub(super) shape: fn(&Verb) -> Shape,
    /// The verb of a word, where a program has words of its own.
    pub(super) verb: fn(&OsStr) -> Verb,
}

/// Reads `args`, the arguments behind `argv[0]`.
pub(super) fn parse(grammar: &Grammar, args: &[&OsStr]) -> Invocation {
    parse_with_tail(grammar, args).0
}

/// What [`parse_with_tail`] says of the arguments behind the verb.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tail {
    /// The number of positional arguments.
    pub(super) words: usize,
    /// See `Scan::misfit`.
    pub(super) misfit: bool,
}

/// As [`parse`], and how well the arguments behind the verb fit.
pub(super) fn parse_with_tail(grammar: &Grammar, args: &[&OsStr]) -> (Invocation, Tail) {
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
    let Some(word) = head.positional.first() else {
        if help {
            inv.verb = Verb::Help;
        }
        return (inv, Tail::default());
    };
    inv.verb = (grammar.verb)(word);
    let tail = read_verb(grammar, &mut inv, &mut help, head.rest);
    if help {
        inv.verb = Verb::Help;
        inv.exec = None;
    }
    (inv, tail)
}

fn read_verb(grammar: &Grammar, inv: &mut Invocation, help: &mut bool, args: &[&OsStr]) -> Tail {
    if inv.verb == Verb::Exec {
        inv.exec = Some(ExecRequest::default());
    }
    let shape = (grammar.shape)(&inv.verb);
    let id_is_all = inv.verb.names_container() && !matches!(inv.verb, Verb::Exec | Verb::Kill | Verb::Ps);
    if let Some(reorder) = grammar.reorder.filter(|_| id_is_all) {
        let moved = reorder(shape.options, args);
        let mut seen = Vec::new();
        let tail = scan(grammar.dialect, &[shape.options], Unknown::Switch, 1, &moved, &mut |key, value| {
            seen.push((key, value));
        });
        if let ([id], [], false) = (&tail.positional[..], tail.rest, tail.misfit) {
            inv.id = Some(id.to_os_string());
            seen.into_iter().for_each(|(key, value)| apply(inv, help, key, value));
            return Tail { words: 1, misfit: false };
        }
    }
    let unknown = if id_is_all { Unknown::ValueUnlessLast } else { Unknown::Switch };
    let global: &[Opt<Key>] = if grammar.global_after_verb { grammar.global } else { &[] };
    let tail = scan(
        grammar.dialect,
        &[shape.options, global],
        unknown,
        shape.stop_after,
        args,
        &mut |key, value| apply(inv, help, key, value),
    );
    let fit = Tail { words: tail.positional.len() + tail.rest.len(), misfit: tail.misfit };
    let mut words = tail.positional.iter().chain(tail.rest).copied();
    if !inv.verb.names_container() {
        return fit;
    }
    inv.id = words.next().or(tail.guessed).map(OsStr::to_os_string);
    match inv.verb {
        Verb::Kill => inv.signal = words.next().map(OsStr::to_os_string),
        Verb::Delete => inv.more_ids = words.map(OsStr::to_os_string).collect(),
        Verb::Exec => {
            if let Some(exec) = inv.exec.as_mut() {
                exec.args = words.map(OsStr::to_os_string).collect();
            }
        }
        _ => {}
    }
    fit
}

/// Records an option.
pub(super) fn apply(inv: &mut Invocation, help: &mut bool, key: Key, value: Option<&OsStr>) {
    let on = || switch(value);
    let word = || value.map(OsStr::to_os_string);
    // Go programs cannot tell an empty value from none.
    let go = matches!(inv.family, Family::Runc | Family::Runsc | Family::Generic);
    let path = || value.filter(|v| !(go && v.is_empty())).map(PathBuf::from);
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
        // One of a name counts, and there are no more than the names.
        Key::Limit(name) => {
            inv.limits.retain(|(known, _)| *known != name);
            inv.limits.extend(word().map(|word| (name, word)));
        }
        Key::Log => inv.log = word(),
        Key::LogFormat => inv.log_format = word(),
        Key::NoNewKeyring => inv.no_new_keyring = on(),
        Key::NoPivot => inv.no_pivot = on(),
        Key::PidFile => inv.pid_file = path(),
        Key::PreserveFds => inv.preserve_fds = value.and_then(OsStr::to_str).and_then(|s| s.parse().ok()),
        Key::Regex => inv.regex = on(),
        Key::Resources => inv.resources_file = path(),
        // An empty state root is the working directory, but runsc's own default.
        Key::Root if inv.family == Family::Runsc => inv.root = path(),
        Key::Root => inv.root = value.map(PathBuf::from),
        Key::Rootless => inv.rootless = tristate(value),
        Key::SystemdCgroup => inv.systemd_cgroup = on(),
        Key::WorkPath => inv.work_path = path(),
        Key::Ignored => {}
        Key::Cap | Key::Cgroup | Key::Cwd | Key::Env | Key::Process | Key::Tty | Key::TtyWord | Key::User => {
            let Some(exec) = inv.exec.as_mut() else { return };
            match key {
                Key::Cap => exec.caps.extend(word()),
                Key::Cgroup => exec.cgroups.extend(word()),
                Key::Cwd => exec.cwd = path(),
                Key::Env => exec.env.extend(word()),
                Key::Process => exec.process_file = path(),
                Key::Tty => exec.tty = on(),
                Key::TtyWord => exec.tty = value.is_none_or(|v| v != "no" && v != "false"),
                _ => exec.user = word(),
            }
        }
    }
}

/// The value of a switch: Go takes `--switch=VALUE` with any of these words for "off", and refuses what is
/// neither.
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
