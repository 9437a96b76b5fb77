//! conmon, which executes the runtime for Podman and CRI-O and knows the container's name.
//!
//! conmon reads with GLib: options anywhere, joined letters, a letter's value always in the next argument, no
//! abbreviations. Arguments that are no options mean nothing to it: Podman passes `--api-version 1`, and the
//! `1` is one.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::scan::{GLIB, Opt, Unknown, flag, scan, value};
use super::{Family, Invocation, Verb};

/// What conmon is told besides the container's id, bundle and pid file, which stand in the [`Invocation`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ConmonFacts {
    /// `--cuuid`: the engine's full id of the container (or of the exec session).
    pub(crate) uuid: Option<OsString>,
    /// `--name`: the container's name.
    pub(crate) name: Option<OsString>,
    /// `--runtime`: the runtime that it will execute.
    pub(crate) runtime: Option<PathBuf>,
    /// `--runtime-arg`, each: the runtime's options before its verb.
    pub(crate) runtime_args: Vec<OsString>,
    /// `--runtime-opt`, each: the runtime's options behind its verb, for `restore` and `exec`.
    pub(crate) runtime_opts: Vec<OsString>,
    /// `--conmon-pidfile`.
    pub(crate) conmon_pid_file: Option<PathBuf>,
    /// `--exec`: not a new container but a process in one.
    pub(crate) exec: bool,
    /// `--exec-process-spec`.
    pub(crate) exec_process_spec: Option<PathBuf>,
    /// `--exec-attach`.
    pub(crate) exec_attach: bool,
    /// `--restore`: a container from the checkpoint in this folder.
    pub(crate) restore: Option<PathBuf>,
    /// `--exit-dir`.
    pub(crate) exit_dir: Option<PathBuf>,
    /// `--exit-command`.
    pub(crate) exit_command: Option<PathBuf>,
    /// `--exit-command-arg`, each.
    pub(crate) exit_command_args: Vec<OsString>,
    /// `--persist-dir`.
    pub(crate) persist_dir: Option<PathBuf>,
    /// `--socket-dir-path`.
    pub(crate) socket_dir: Option<PathBuf>,
    /// `--log-path`, each.
    pub(crate) log_paths: Vec<OsString>,
    /// `--log-tag`.
    pub(crate) log_tag: Option<OsString>,
    /// `--terminal`.
    pub(crate) terminal: bool,
    /// `--stdin`.
    pub(crate) stdin: bool,
}

pub(super) fn parse(argv: &[&OsStr]) -> Invocation {
    let mut inv = Invocation::new(Family::Conmon);
    let mut facts = ConmonFacts::default();
    let mut help = false;
    let args = argv.get(1..).unwrap_or_default();
    scan(GLIB, &[OPTIONS], Unknown::Switch, usize::MAX, args, &mut |key, value| match key {
        Key::Help => help = true,
        _ => apply(&mut inv, &mut facts, key, value),
    });
    if help {
        inv.verb = Verb::Help;
    } else if inv.id.is_some() {
        inv.verb = Verb::Monitor;
        inv.conmon = Some(facts);
    }
    inv
}

fn apply(inv: &mut Invocation, facts: &mut ConmonFacts, key: Key, value: Option<&OsStr>) {
    let word = || value.map(OsStr::to_os_string);
    let path = || value.map(PathBuf::from);
    match key {
        Key::Help | Key::Ignored => {}
        Key::Bundle => inv.bundle = path(),
        Key::Cid => inv.id = word(),
        Key::ConmonPidFile => facts.conmon_pid_file = path(),
        Key::ContainerPidFile => inv.pid_file = path(),
        Key::Exec => facts.exec = true,
        Key::ExecAttach => facts.exec_attach = true,
        Key::ExecProcessSpec => facts.exec_process_spec = path(),
        Key::ExitCommand => facts.exit_command = path(),
        Key::ExitCommandArg => facts.exit_command_args.extend(word()),
        Key::ExitDir => facts.exit_dir = path(),
        Key::LogPath => facts.log_paths.extend(word()),
        Key::LogTag => facts.log_tag = word(),
        Key::Name => facts.name = word(),
        Key::NoNewKeyring => inv.no_new_keyring = true,
        Key::NoPivot => inv.no_pivot = true,
        Key::PersistDir => facts.persist_dir = path(),
        Key::Restore => facts.restore = path(),
        Key::Runtime => facts.runtime = path(),
        Key::RuntimeArg => facts.runtime_args.extend(word()),
        Key::RuntimeOpt => facts.runtime_opts.extend(word()),
        Key::SocketDir => facts.socket_dir = path(),
        Key::Stdin => facts.stdin = true,
        Key::SystemdCgroup => inv.systemd_cgroup = true,
        Key::Terminal => facts.terminal = true,
        Key::Uuid => facts.uuid = word(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Bundle,
    Cid,
    ConmonPidFile,
    ContainerPidFile,
    Exec,
    ExecAttach,
    ExecProcessSpec,
    ExitCommand,
    ExitCommandArg,
    ExitDir,
    Help,
    LogPath,
    LogTag,
    Name,
    NoNewKeyring,
    NoPivot,
    PersistDir,
    Restore,
    Runtime,
    RuntimeArg,
    RuntimeOpt,
    SocketDir,
    Stdin,
    SystemdCgroup,
    Terminal,
    Uuid,
    Ignored,
}

const OPTIONS: &[Opt<Key>] = &[
    flag("help", b'h', Key::Help),
    flag("version", 0, Key::Help),
    flag("api-version", 0, Key::Ignored),
    value("bundle", b'b', Key::Bundle),
    value("cid", b'c', Key::Cid),
    value("conmon-pidfile", b'P', Key::ConmonPidFile),
    value("container-pidfile", b'p', Key::ContainerPidFile),
    value("pidfile", 0, Key::ContainerPidFile),
    value("cuuid", b'u', Key::Uuid),
    flag("exec", b'e', Key::Exec),
    flag("exec-attach", 0, Key::ExecAttach),
    value("exec-process-spec", 0, Key::ExecProcessSpec),
    value("exit-command", 0, Key::ExitCommand),
    value("exit-command-arg", 0, Key::ExitCommandArg),
    value("exit-delay", 0, Key::Ignored),
    value("exit-dir", 0, Key::ExitDir),
    flag("full-attach", 0, Key::Ignored),
    flag("leave-stdin-open", 0, Key::Ignored),
    value("log-allowlist-dir", 0, Key::Ignored),
    value("log-global-size-max", 0, Key::Ignored),
    value("log-label", 0, Key::Ignored),
    value("log-level", 0, Key::Ignored),
    value("log-max-files", 0, Key::Ignored),
    value("log-path", b'l', Key::LogPath),
    flag("log-rotate", 0, Key::Ignored),
    value("log-size-max", 0, Key::Ignored),
    value("log-tag", 0, Key::LogTag),
    value("name", b'n', Key::Name),
    flag("no-container-partial-message", 0, Key::Ignored),
    flag("no-new-keyring", 0, Key::NoNewKeyring),
    flag("no-pivot", 0, Key::NoPivot),
    flag("no-sync-log", 0, Key::Ignored),
    value("persist-dir", b'0', Key::PersistDir),
    flag("replace-listen-pid", 0, Key::Ignored),
    value("restore", 0, Key::Restore),
    value("restore-arg", 0, Key::RuntimeOpt),
    value("runtime", b'r', Key::Runtime),
    value("runtime-arg", 0, Key::RuntimeArg),
    value("runtime-opt", 0, Key::RuntimeOpt),
    value("sdnotify-socket", 0, Key::Ignored),
    value("seccomp-notify-plugins", 0, Key::Ignored),
    value("seccomp-notify-socket", 0, Key::Ignored),
    value("socket-dir-path", 0, Key::SocketDir),
    flag("stdin", b'i', Key::Stdin),
    flag("sync", 0, Key::Ignored),
    flag("syslog", 0, Key::Ignored),
    flag("systemd-cgroup", b's', Key::SystemdCgroup),
    flag("terminal", b't', Key::Terminal),
    value("timeout", b'T', Key::Ignored),
];
