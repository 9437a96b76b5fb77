//! A held runtime: who executes it, for what, and what is to be told of that.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::describe::describe;
use super::{Creation, Outcome, Worker};
use crate::bundle::host_path::on_host;
use crate::bundle::{self, Caller};
use crate::capture::{CaptureError, ExecRecord};
use crate::cmdline::{self, Family, Invocation, Verb};
use crate::errand;
use crate::event::{Container, EventKind, ExecProcess, Runtime};
use crate::exit::Process;
use crate::lifecycle::{self, HoldId, Key};
use crate::outlet::Level;
use crate::runtime::{Binary, Role};

/// Words of a command line that are told are cut here.
const MOST_ID: usize = 1024;

fn monitor(hold: HoldId, invocation: Invocation) -> Outcome {
    let name = invocation.conmon.as_ref().filter(|facts| !facts.exec).and_then(|facts| facts.name.clone());
    match (invocation.id, name) {
        (Some(id), Some(name)) if unfit(&id).is_none() => {
            let name = name.to_string_lossy().chars().take(MOST_ID).collect();
            Outcome::Monitor { hold, id, name }
        }
        _ => Outcome::Passed { hold, why: None },
    }
}

fn verb_of(invocation: &Invocation, caller: &Caller<'_>) -> Option<lifecycle::Verb> {
    use lifecycle::Verb as Told;
    Some(match &invocation.verb {
        Verb::Create => Told::Create,
        Verb::Run => Told::Run { detach: invocation.detach, keep: invocation.keep },
        Verb::Restore => Told::Restore,
        Verb::Start => Told::Start,
        Verb::Exec => {
            Told::Exec { process: Arc::new(exec_process(invocation, caller)), detach: invocation.detach }
        }
        Verb::Kill => Told::After(EventKind::Killed),
        Verb::Delete => Told::After(EventKind::Deleted),
        Verb::Pause => Told::After(EventKind::Paused),
        Verb::Resume => Told::After(EventKind::Resumed),
        Verb::Update => Told::After(EventKind::Updated),
        Verb::Checkpoint => Told::After(EventKind::Checkpointed),
        _ => return None,
    })
}

/// A process file is read up to this size; the kubelet's have some KiB.
const MOST_PROCESS: u64 = 1 << 20;

/// What is to be executed, by the process file that engines write, else by the command line.
fn exec_process(invocation: &Invocation, caller: &Caller<'_>) -> ExecProcess {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct OciProcess {
        args: Vec<String>,
        cwd: Option<String>,
        terminal: bool,
        user: Option<OciUser>,
        capabilities: Option<OciCapabilities>,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct OciCapabilities {
        effective: Vec<String>,
    }
    #[derive(serde::Deserialize)]
    struct OciUser {
        uid: u32,
        #[serde(default)]
        gid: u32,
    }
    let Some(request) = &invocation.exec else { return ExecProcess::default() };
    if let Some(path) = &request.process_file {
        let read = || -> io::Result<OciProcess> {
            let _rights = caller.rights()?;
            let bytes = bundle::read_bounded(&caller.look_up(path, 0)?, MOST_PROCESS)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let process = read().unwrap_or_default();
        let user = process.user.map(|user| format!("{}:{}", user.uid, user.gid));
        let capabilities = process.capabilities.map(|sets| bounded(sets.effective));
        let OciProcess { args, terminal: tty, cwd, .. } = process;
        return ExecProcess { args, user, tty, cwd, capabilities, pid: None };
    }
    let word = |word: &OsStr| word.to_string_lossy().into_owned();
    ExecProcess {
        args: request.args.iter().map(|arg| word(arg)).collect(),
        user: request.user.as_deref().map(word),
        tty: request.tty,
        cwd: request.cwd.as_ref().map(|cwd| word(cwd.as_os_str())),
        capabilities: (!request.caps.is_empty())
            .then(|| bounded(request.caps.iter().map(|cap| word(cap)).collect())),
        pid: None,
    }
}

/// There are fewer capabilities than this, with shorter names.
fn bounded(mut capabilities: Vec<String>) -> Vec<String> {
    capabilities.retain(|name| name.len() <= 64);
    capabilities.truncate(128);
    capabilities
}

/// Why no runtime takes this id; every runtime refuses these, and such words are not passed on.
fn unfit(id: &OsStr) -> Option<&'static str> {
    let bytes = id.as_bytes();
    if bytes.is_empty() || bytes.len() > MOST_ID {
        Some("no runtime takes an id that is empty or longer than 1,024 bytes")
    } else if bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        Some("no runtime takes an id that is a path")
    } else if bytes.iter().any(u8::is_ascii_control) {
        Some("no runtime takes an id with control characters")
    } else {
        None
    }
}

/// Tries for a while to get the descriptors that reading takes: what else is held gives some back.
pub(super) fn with_descriptors<T>(
    mut read: impl FnMut() -> Result<T, CaptureError>,
) -> Result<T, CaptureError> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        match read() {
            Err(CaptureError::Io(_, error))
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            read => return read,
        }
    }
}

/// What a runtime was executed for, and the container's id; or what comes of it where nothing is to be told but that.
pub(super) fn about(
    hold: HoldId,
    binary: &Binary,
    argv: &[OsString],
) -> Result<(Invocation, OsString), Box<Outcome>> {
    let passed = |why| Err(Box::new(Outcome::Passed { hold, why }));
    let family = match binary.role {
        Role::Monitor => Family::Conmon,
        Role::Runtime => Family::guess(OsStr::new(&binary.name)),
    };
    let invocation = cmdline::parse(family, argv);
    if invocation.verb == Verb::Monitor {
        return Err(Box::new(monitor(hold, invocation)));
    }
    if let Verb::Other(word) = &invocation.verb {
        let word: String = word.to_string_lossy().chars().take(MOST_ID).collect();
        let why = format!("command: {} was executed for {word:?}", binary.path.display());
        return passed(Some((Level::Debug, why)));
    }
    let Some(id) = invocation.id.clone().filter(|_| invocation.verb.names_container() && !invocation.regex)
    else {
        return passed(None);
    };
    if let Some(why) = unfit(&id) {
        let why = format!("{} was executed for {id:?}: {why}", binary.path.display());
        return passed(Some((Level::Info, why)));
    }
    Ok((invocation, id))
}

impl Worker {
    pub(super) fn command(
        &self,
        hold: HoldId,
        tid: i32,
        record: Result<ExecRecord, CaptureError>,
        binary: &Binary,
        at: Instant,
        time: SystemTime,
    ) -> Outcome {
        let record = match record {
            Ok(record) => record,
            Err(CaptureError::Gone) => return Outcome::Passed { hold, why: None },
            Err(error) => {
                let path = binary.path.display();
                let why = format!("an execution of {path} by task {tid} could not be read: {error}");
                return Outcome::Lost { hold, why, refused: error.is_refusal(), time };
            }
        };
        let (invocation, id) = match about(hold, binary, &record.argv) {
            Ok(about) => about,
            Err(passed) => return *passed,
        };
        let caller = Caller {
            root: record.root.as_fd(),
            cwd: record.cwd.as_fd(),
            fsuid: record.task.fsuid,
            fsgid: record.task.fsgid,
            groups: &record.task.groups,
            trusted: self.trusts(&record.task),
        };
        let Some(verb) = verb_of(&invocation, &caller) else { return Outcome::Passed { hold, why: None } };
        self.known_command(hold, &id, verb, invocation, record, binary, at, time)
    }

    #[allow(clippy::too_many_arguments, reason = "the facts of one execution")]
    fn known_command(
        &self,
        hold: HoldId,
        id: &OsStr,
        verb: lifecycle::Verb,
        invocation: Invocation,
        record: ExecRecord,
        binary: &Binary,
        at: Instant,
        time: SystemTime,
    ) -> Outcome {
        let ExecRecord { task, root, cwd, knows_cwd, .. } = record;
        let trusted = self.trusts(&task);
        let state_root = invocation
            .state_root(&cmdline::Caller { uid: task.euid, xdg_runtime_dir: None })
            .unwrap_or_else(|| PathBuf::from(&binary.name));
        let key = Key::new(state_root.clone(), id.to_owned(), task.euid);
        let mut container = Container {
            id: id.to_string_lossy().into_owned(),
            runtime: Some(Runtime::new(&binary.name, on_host(&self.reader.host_root, &binary.host_path))),
            state_root: Some(state_root),
            rootless: !trusted,
            owner_uid: task.euid,
            ..Container::default()
        };
        let (process, parent) = (Process { pid: task.tgid, start_time: task.start_time }, task.ppid);
        let creates =
            matches!(verb, lifecycle::Verb::Create | lifecycle::Verb::Run { .. } | lifecycle::Verb::Restore);
        let creation;
        let mut asked = None;
        if creates {
            let mut made = Creation { task, root, cwd, trusted, bundle: None, invocation };
            let opened = made.open_bundle();
            // As the caller sees it, for what the engine's habits say; and where the listener finds it.
            let theirs = made.invocation.bundle.clone().filter(|path| path.is_absolute());
            container.bundle = theirs.clone().or_else(|| opened.host_path.clone());
            match opened.config {
                Ok(config) => container.config = Some(config),
                Err(_) if !knows_cwd && theirs.is_none() => {
                    let why = "its runtime's working directory may not be read without CAP_SYS_PTRACE";
                    container.config_error = Some(why.to_owned());
                }
                Err(error) => container.config_error = Some(error.to_string()),
            }
            made.bundle = opened.dir;
            describe(&self.reader.proc, &mut container, parent, Some(&made.caller()));
            let nested = || {
                bundle::host_path::host_path(made.bundle.as_ref()?.as_fd(), &self.reader.proc, made.task.tgid)
            };
            let through = || {
                let inside = theirs.as_ref().filter(|_| made.bundle.is_some())?.strip_prefix("/").ok()?;
                // The shim or conmon outlives the runtime.
                let mounts = |pid| self.reader.proc.namespace(pid, "mnt").ok();
                let lasting = mounts(made.task.tid).is_some_and(|ns| mounts(parent) == Some(ns));
                let pid = if lasting { parent } else { made.task.tgid };
                Some(self.reader.proc.path(pid, "root").join(inside))
            };
            let found = opened.host_path.or_else(nested).or_else(through);
            let found = found.map(|path| on_host(&self.reader.host_root, &path));
            container.bundle = found.or(theirs.clone());
            creation = Some(Arc::new(made));
        } else {
            let made = Creation { task, root, cwd, trusted, bundle: None, invocation };
            asked = errand::asked(&made.invocation, &made.caller()).map(Arc::new);
            let detached = made.invocation.verb == Verb::Exec && made.invocation.detach;
            creation = detached.then(|| Arc::new(made));
        }
        let command = lifecycle::Command {
            hold,
            at,
            time,
            process,
            parent,
            verb,
            key,
            container,
            asked,
            detail: None,
            held: true,
        };
        Outcome::Command { command: Box::new(command), creation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_no_runtime_takes_are_passed_by() {
        for id in ["", ".", "..", "../x", "a/b", "a\nb", "a\x1bb"] {
            assert!(unfit(OsStr::new(id)).is_some(), "{id:?}");
        }
        assert!(unfit(OsStr::from_bytes(&[b'a'; 1025])).is_some());
        for id in ["c1", "a.b-c_d+e", "\u{e9}"] {
            assert_eq!(unfit(OsStr::new(id)), None, "{id:?}");
        }
    }
}
