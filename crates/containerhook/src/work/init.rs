//! Which process a runtime has made.

use std::io;
use std::time::{Duration, Instant};

use super::{Creation, Found};
use crate::bundle::state_file;
use crate::cmdline::{self, Family, StateName};
use crate::exit::Process;
use crate::proc::HostProc;

/// How long the parent of an init may take to reap it; there are some that never do.
const UNTIL_REAPED: Duration = Duration::from_secs(1);

/// How long a parent may take to note what it has reaped.
const UNTIL_NOTED: Duration = Duration::from_millis(100);

/// Waits until the parent of a process that has ended knows of it.
///
/// A process's end is known here before its parent is told. Where `start` fails before containerd's shim has noted the end of
/// the init, `ctr run` asks the shim, hears that the task still is "created", and leaves it there for good. The shim
/// notes it on another thread than the one that reaps, a moment later, and gives no sign of it: on a loaded host one refusal in
/// fifty came too early. So a refusal takes its time.
pub(super) fn until_reaped(proc: &HostProc, process: Process) {
    let end = Instant::now() + UNTIL_REAPED;
    // A pidfd tells of this since Linux 6.9 only (by POLLHUP).
    while proc.stat(process.pid).is_ok_and(|stat| stat.start_time == process.start_time) {
        if Instant::now() >= end {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(UNTIL_NOTED);
}

/// Init's pid, by the pid file that the runtime was told to write, else by the runtime's own state.
pub(super) fn find_init(proc: &HostProc, creation: &Creation) -> Result<Process, String> {
    let caller = creation.caller();
    let pid = match &creation.invocation.pid_file {
        Some(path) => state_file::read_pid_file(&caller, path).map_err(|e| e.to_string()),
        None => Err("it was given no pid file".to_owned()),
    };
    // Its init has ended already, and was reaped: of this name it was, of what time nobody knows.
    if let Ok(pid) = pid
        && is_gone(proc, pid)
    {
        return Ok(Process { pid, start_time: 0 });
    }
    let pid =
        pid.or_else(|first| pid_by_state(proc, creation).map_err(|second| format!("{first}; {second}")))?;
    // It may have ended between the looks.
    identify(proc, creation, pid).or_else(|why| match is_gone(proc, pid) {
        true => Ok(Process { pid, start_time: 0 }),
        false => Err(why),
    })
}

/// Is nobody there of this pid? Where it cannot be looked for (no descriptor is left), somebody may be.
fn is_gone(proc: &HostProc, pid: i32) -> bool {
    let gone = |error: io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
    };
    proc.stat(pid).is_err_and(gone)
}

/// What a detached `exec` has executed, by the pid file that the runtime was told to write.
pub(super) fn find_exec(proc: &HostProc, creation: &Creation) -> Found {
    let Some(path) = &creation.invocation.pid_file else {
        return Found::Unknown("its runtime was not told to write down its pid".into());
    };
    match state_file::read_pid_file(&creation.caller(), path) {
        Err(error) => Found::Unknown(error.to_string()),
        Ok(pid) if is_gone(proc, pid) => Found::Gone(pid),
        Ok(pid) => match identify(proc, creation, pid) {
            Ok(process) => Found::Process(process),
            // Between the looks.
            Err(_) if is_gone(proc, pid) => Found::Gone(pid),
            Err(why) => Found::Unknown(why),
        },
    }
}

/// The process that a runtime's file names, if it can be what the runtime has made.
fn identify(proc: &HostProc, creation: &Creation, pid: i32) -> Result<Process, String> {
    let stat = proc.stat(pid).map_err(|e| format!("process {pid} cannot be read: {e}"))?;
    // A file that was left there by an earlier container, or is a lie, names a process that was there before.
    if stat.start_time < creation.task.start_time {
        return Err(format!("process {pid}, which it names, was there before the container"));
    }
    if !creation.trusted {
        let facts = proc.task_facts(pid).map_err(|e| format!("process {pid} cannot be read: {e}"))?;
        // Whoever has no rights over a process cannot make it a container of its own.
        let own = facts.user_ns == creation.task.user_ns
            || facts.uid == creation.task.uid
            || facts.ppid == creation.task.tgid;
        if !own || (facts.uid == 0 && creation.task.euid != 0) {
            return Err(format!("process {pid}, which it names, is not of uid {}", creation.task.euid));
        }
    }
    Ok(Process { pid, start_time: stat.start_time })
}

/// What the runtime has written, in its own family's file, else in that of any: a wrapper may have the name of one
/// family and execute another, and a runtime's file may be called anything.
fn pid_by_state(proc: &HostProc, creation: &Creation) -> Result<i32, String> {
    let Creation { invocation, task, .. } = creation;
    let id = invocation.id.as_deref().ok_or("it has no id")?;
    let mut families = vec![invocation.family, Family::Runc, Family::Crun, Family::Youki];
    families.dedup();
    let mut first_error = None;
    for family in families {
        let Some(StateName::InDirectory(name)) = family.state_file().map(|file| file.name) else { continue };
        let caller = cmdline::Caller { uid: task.euid, xdg_runtime_dir: None };
        let Some(root) = invocation.root.clone().or_else(|| family.default_state_root(&caller)) else {
            continue;
        };
        let path = root.join(id).join(name);
        let pid = match state_file::read_state(&creation.caller(), &path) {
            Ok(state) => state.pid.ok_or_else(|| format!("{} has no pid", path.display())),
            Err(error) => Err(error.to_string()),
        };
        // In another runtime's folder a container of this id may be an older one.
        let is_news = |pid: i32| proc.stat(pid).is_ok_and(|stat| stat.start_time >= task.start_time);
        match pid {
            Ok(pid) if family == invocation.family || is_news(pid) => return Ok(pid),
            Ok(_) => {}
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| "where this runtime keeps its state is not known".to_owned()))
}
