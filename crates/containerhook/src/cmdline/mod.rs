//! argv of a container runtime → [`Invocation`].
//!
//! Pure: no files, no clock, no environment. Arguments are the caller's words, so paths stay as they were
//! written (relative ones too) and are to be resolved from the caller's own root and working directory.
//!
//! Each family has a file of its own with its options, read from the program's source and tested against the
//! program. Where a program accepts a command line, the reading here is the program's. Where it refuses one,
//! the reading is lenient: the program fails by itself, and a newer one may know an option that the tables do
//! not have.
//!
//! The work is linear in the length of the command line, whatever it contains.

mod conmon;
mod crun;
mod generic;
mod oci;
mod runc;
mod runsc;
mod scan;
mod youki;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(crate) use conmon::ConmonFacts;
pub(crate) use generic::looks_like_oci;

/// Programs that share a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    /// runc and what is built from its sources or takes its options (urfave/cli).
    Runc,
    /// crun, and krun, crun-wasm, crun-vm … which are crun under another name (argp).
    Crun,
    /// youki (clap).
    Youki,
    /// gVisor (Go's flag package).
    Runsc,
    /// conmon: not a runtime, the monitor that executes one for Podman and CRI-O (GLib).
    Conmon,
    /// Anything else with the command line of the OCI runtimes.
    Generic,
}

impl Family {
    /// Guesses the family by the name of the executable file; a path is reduced to its last component.
    ///
    /// A guess only: `oci-runtime` may be any of them, and then [`Family::Generic`] reads what they have in
    /// common.
    pub(crate) fn guess(exe_file_name: &OsStr) -> Family {
        let bytes = exe_file_name.as_bytes();
        let name = bytes.rsplit(|&b| b == b'/').next().unwrap_or_default();
        // Shims and conmon-rs carry a runtime's name but have another command line.
        if name.starts_with(b"containerd-shim") || name.starts_with(b"conmon-rs") {
            return Family::Generic;
        }
        if name.starts_with(b"nvidia-container-runtime") || name.starts_with(b"kata-runtime") {
            return Family::Runc;
        }
        name.split(|b| b"-_.+ ".contains(b))
            .find_map(|word| match word {
                b"runc" | b"urunc" | b"runcvm" => Some(Family::Runc),
                b"crun" | b"krun" => Some(Family::Crun),
                b"youki" => Some(Family::Youki),
                b"runsc" => Some(Family::Runsc),
                b"conmon" => Some(Family::Conmon),
                _ => None,
            })
            .unwrap_or(Family::Generic)
    }

    /// Where and how this family keeps a container's state; `None` where that is not known.
    pub(crate) fn state_file(self) -> Option<StateFile> {
        match self {
            Family::Runc => {
                Some(StateFile { name: StateName::InDirectory("state.json"), pid_key: "init_process_pid" })
            }
            Family::Crun => Some(StateFile { name: StateName::InDirectory("status"), pid_key: "pid" }),
            Family::Youki => Some(StateFile { name: StateName::InDirectory("state.json"), pid_key: "pid" }),
            // runsc: the sandbox's id is not on the command line of its other containers, so only the ends
            // are fixed.
            Family::Runsc => Some(StateFile {
                name: StateName::Beside { after_id: "_sandbox:", end: ".state" },
                pid_key: "pid",
            }),
            Family::Conmon | Family::Generic => None,
        }
    }

    /// The state root that the program uses when none is given on its command line.
    ///
    /// `caller` describes the caller, since runtimes look at its uid and at `XDG_RUNTIME_DIR`.
    pub(crate) fn default_state_root(self, caller: &Caller<'_>) -> Option<PathBuf> {
        let xdg = caller.xdg_runtime_dir.filter(|p| !p.as_os_str().is_empty());
        let (name, system, honours_xdg) = match self {
            // runc and youki honour it for a root only who is someone else outside of his user namespace.
            Family::Runc => ("runc", "/run/runc", caller.uid != 0),
            Family::Youki => ("youki", "/run/youki", caller.uid != 0),
            // crun and runsc honour it whoever calls.
            Family::Crun => ("crun", "/run/crun", true),
            Family::Runsc => ("runsc", "/var/run/runsc", true),
            Family::Conmon | Family::Generic => return None,
        };
        Some(match xdg {
            Some(dir) if honours_xdg => dir.join(name),
            _ if self == Family::Youki && caller.uid != 0 => {
                PathBuf::from(format!("/run/user/{}/youki", caller.uid))
            }
            _ => PathBuf::from(system),
        })
    }
}

/// What [`Family::default_state_root`] wants to know of the caller.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Caller<'a> {
    /// The caller's effective uid as the host sees it, so that a user namespace's root is not 0.
    pub(crate) uid: u32,
    /// `XDG_RUNTIME_DIR` of the caller's environment, where it is known.
    pub(crate) xdg_runtime_dir: Option<&'a Path>,
}

/// A runtime's state of one container, below its state root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateFile {
    /// How the file is called.
    pub(crate) name: StateName,
    /// The JSON member, at the top, that holds init's pid.
    pub(crate) pid_key: &'static str,
}

/// How a state file is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateName {
    /// `ROOT/ID/NAME`.
    InDirectory(&'static str),
    /// `ROOT/ID` + `after_id` + anything + `end`.
    Beside {
        /// What follows the id.
        after_id: &'static str,
        /// How the name ends.
        end: &'static str,
    },
}

/// What a runtime is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Verb {
    /// Create a container, and leave its init waiting for `start`.
    Create,
    /// Create and start a container in one go.
    Run,
    /// Create a container from a checkpoint.
    Restore,
    /// Let the init of a created container execute its entrypoint.
    Start,
    /// Run another process in a container.
    Exec,
    /// Signal a container's init.
    Kill,
    /// Delete a container's state.
    Delete,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change the resource limits.
    Update,
    /// Print the state.
    State,
    /// Write a checkpoint.
    Checkpoint,
    /// List containers.
    List,
    /// List processes.
    Ps,
    /// Print events or statistics.
    Events,
    /// Write a specimen config.json.
    Spec,
    /// Print the runtime's features.
    Features,
    /// The runtime executes itself (`runc init`, runsc's gofer and boot): nothing new is asked for.
    Init,
    /// conmon watches over a container and executes the runtime.
    Monitor,
    /// Print a help text or the version, whatever else is on the line.
    Help,
    /// No verb at all.
    #[default]
    None,
    /// A verb that is not one of these.
    Other(OsString),
}

impl Verb {
    fn from_word(word: &OsStr) -> Verb {
        match word.as_bytes() {
            b"create" => Verb::Create,
            b"run" => Verb::Run,
            b"restore" => Verb::Restore,
            b"start" => Verb::Start,
            b"exec" => Verb::Exec,
            b"kill" => Verb::Kill,
            b"delete" => Verb::Delete,
            b"pause" => Verb::Pause,
            b"resume" => Verb::Resume,
            b"update" => Verb::Update,
            b"state" => Verb::State,
            b"checkpoint" => Verb::Checkpoint,
            b"list" => Verb::List,
            b"ps" => Verb::Ps,
            b"events" => Verb::Events,
            b"spec" => Verb::Spec,
            b"features" => Verb::Features,
            b"init" => Verb::Init,
            b"help" => Verb::Help,
            _ => Verb::Other(word.to_os_string()),
        }
    }

    fn is_word(word: &OsStr) -> bool {
        !matches!(Verb::from_word(word), Verb::Other(_))
    }

    /// The verb makes a container: `create`, `run` or `restore`.
    pub(crate) fn creates(&self) -> bool {
        matches!(self, Verb::Create | Verb::Run | Verb::Restore)
    }

    /// The verb is about one container, named by its id.
    pub(crate) fn names_container(&self) -> bool {
        !matches!(
            self,
            Verb::List
                | Verb::Spec
                | Verb::Features
                | Verb::Init
                | Verb::Monitor
                | Verb::Help
                | Verb::None
                | Verb::Other(_)
        )
    }
}

/// One execution of a runtime, as its command line tells it.
///
/// All words are the caller's: nothing here has been checked, and an id may be anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// The family whose options were used. [`parse`] may answer another one than it was given: for a wrapper
    /// whose command line names the runtime.
    pub(crate) family: Family,
    /// What is asked for.
    pub(crate) verb: Verb,
    /// The container: the positional argument (conmon: `--cid`). A regular expression where `regex` is set.
    pub(crate) id: Option<OsString>,
    /// Further containers of `delete`: runsc takes many, the others refuse more than one.
    pub(crate) more_ids: Vec<OsString>,
    /// `--bundle` as written. `None`: the caller's working directory. That of conmon, with `--exec`, is the exec
    /// session's.
    pub(crate) bundle: Option<PathBuf>,
    /// `--pid-file` as written (conmon: `--container-pidfile`).
    pub(crate) pid_file: Option<PathBuf>,
    /// `--root`, the state root, as written. `None`: [`Family::default_state_root`].
    pub(crate) root: Option<PathBuf>,
    /// `--log`.
    pub(crate) log: Option<OsString>,
    /// `--log-format`.
    pub(crate) log_format: Option<OsString>,
    /// `--console-socket`.
    pub(crate) console_socket: Option<PathBuf>,
    /// `--config` of crun, relative to the caller's working directory; `config.json` itself is the bundle's.
    pub(crate) config_file: Option<PathBuf>,
    /// `--detach`, of `run`, `restore` and `exec`.
    pub(crate) detach: bool,
    /// `--systemd-cgroup`, or crun's `--cgroup-manager=systemd`.
    pub(crate) systemd_cgroup: bool,
    /// `--rootless`; `None` where it is not given or `auto`.
    pub(crate) rootless: Option<bool>,
    /// `--preserve-fds`.
    pub(crate) preserve_fds: Option<u32>,
    /// `--no-pivot`.
    pub(crate) no_pivot: bool,
    /// `--no-new-keyring`.
    pub(crate) no_new_keyring: bool,
    /// `--force`, of `delete`.
    pub(crate) force: bool,
    /// `--keep`, of `run`: the state stays after the container has ended.
    pub(crate) keep: bool,
    /// `--all`, of `kill`.
    pub(crate) all: bool,
    /// `--regex`, of crun's `kill` and `delete`.
    pub(crate) regex: bool,
    /// `--leave-running`, of `checkpoint`.
    pub(crate) leave_running: bool,
    /// `--image-path`, of `checkpoint` and `restore`.
    pub(crate) image_path: Option<PathBuf>,
    /// `--work-path`, of `checkpoint` and `restore`.
    pub(crate) work_path: Option<PathBuf>,
    /// The signal of `kill` as written (`9`, `KILL`, `SIGKILL`); `None`: the runtime's default, SIGTERM.
    pub(crate) signal: Option<OsString>,
    /// `--resources`, of `update`; `-` is the standard input.
    pub(crate) resources_file: Option<PathBuf>,
    /// The other options of `update`, by name, as written.
    pub(crate) limits: Vec<(&'static str, OsString)>,
    /// What `exec` is to execute; `Some` for [`Verb::Exec`] alone.
    pub(crate) exec: Option<ExecRequest>,
    /// What only conmon is told; `Some` for [`Verb::Monitor`] alone.
    pub(crate) conmon: Option<ConmonFacts>,
}

impl Invocation {
    fn new(family: Family) -> Invocation {
        Invocation {
            family,
            verb: Verb::None,
            id: None,
            more_ids: Vec::new(),
            bundle: None,
            pid_file: None,
            root: None,
            log: None,
            log_format: None,
            console_socket: None,
            config_file: None,
            detach: false,
            systemd_cgroup: false,
            rootless: None,
            preserve_fds: None,
            no_pivot: false,
            no_new_keyring: false,
            force: false,
            keep: false,
            all: false,
            regex: false,
            leave_running: false,
            image_path: None,
            work_path: None,
            signal: None,
            resources_file: None,
            limits: Vec::new(),
            exec: None,
            conmon: None,
        }
    }

    /// The state root: as given, else the family's own.
    pub(crate) fn state_root(&self, caller: &Caller<'_>) -> Option<PathBuf> {
        self.root.clone().or_else(|| self.family.default_state_root(caller))
    }
}

/// What `exec` is to execute. With a process file, the file says it all and the rest is empty or ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ExecRequest {
    /// `--process`: an OCI process object, as JSON.
    pub(crate) process_file: Option<PathBuf>,
    /// The command and its arguments.
    pub(crate) args: Vec<OsString>,
    /// `--user`, as written.
    pub(crate) user: Option<OsString>,
    /// `--cwd`, inside the container.
    pub(crate) cwd: Option<PathBuf>,
    /// `--tty`.
    pub(crate) tty: bool,
    /// `--env`, each as written.
    pub(crate) env: Vec<OsString>,
    /// `--cap`, each as written.
    pub(crate) caps: Vec<OsString>,
    /// `--cgroup`, each as written.
    pub(crate) cgroups: Vec<OsString>,
}

/// Reads a command line. `argv` is the whole of it, `argv[0]` included; it may be empty and hold anything.
///
/// The family is the caller's knowledge of the *executable*: what `argv[0]` claims is not looked at, save for
/// the names under which runsc executes itself.
pub(crate) fn parse(family: Family, argv: &[OsString]) -> Invocation {
    parse_borrowed(family, &oci::borrow(argv))
}

fn parse_borrowed(family: Family, argv: &[&OsStr]) -> Invocation {
    match family {
        Family::Runc => runc::parse(argv),
        Family::Crun => crun::parse(argv),
        Family::Youki => youki::parse(argv),
        Family::Runsc => runsc::parse(argv),
        Family::Conmon => conmon::parse(argv),
        Family::Generic => generic::parse(argv),
    }
}

#[cfg(test)]
mod tests;
