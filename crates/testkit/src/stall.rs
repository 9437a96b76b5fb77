//! A thread of another process that does not go on: what a program looks like that is stuck.

use std::fs;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::Process;

/// A thread that is kept from running, as a debugger does it, until its process ends.
///
/// Neither the process nor its parent is told, and the other threads go on. The process can be killed. It ends in any case
/// with the test.
#[derive(Debug)]
pub struct Stalled {
    tracer: Option<thread::JoinHandle<()>>,
}

impl Process {
    /// Stalls the thread of this name.
    ///
    /// # Errors
    /// When there is none, or somebody else traces it.
    pub fn stall(self, name: &str) -> Result<Stalled> {
        let tasks = fs::read_dir(self.path("task"))?.flatten();
        let mut tids = tasks.filter_map(|task| {
            let comm = fs::read_to_string(task.path().join("comm")).ok()?;
            (comm.trim_end() == name).then(|| task.file_name().to_str()?.parse::<i32>().ok())?
        });
        let tid = tids.next().ok_or_else(|| anyhow!("process {} has no thread {name}", self.0))?;
        let (sender, stalled) = mpsc::channel();
        // All that one does with a tracee, one does on the thread that traces it.
        let tracer = thread::Builder::new().name("tracer".into()).spawn(move || {
            let stopped = seize(tid);
            let done = stopped.is_err();
            let _ = sender.send(stopped);
            // Its end is told here first, and to its parent after that.
            while !done && wait(tid).is_ok_and(|ended| !ended) {}
        })?;
        stalled
            .recv_timeout(Duration::from_secs(10))
            .context("waiting for the thread to stop")?
            .with_context(|| format!("stalling {name}, thread {tid}"))?;
        Ok(Stalled { tracer: Some(tracer) })
    }
}

impl Stalled {
    /// Waits until the process has ended.
    pub fn until_its_end(mut self) {
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

fn seize(tid: i32) -> io::Result<()> {
    // SAFETY: these requests take no pointers. A thread that the kernel lets this one trace is stopped, nothing else.
    unsafe {
        let options = libc::PTRACE_O_EXITKILL as usize;
        if libc::ptrace(libc::PTRACE_SEIZE, tid, 0usize, options) != 0
            || libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0usize, 0usize) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    wait(tid).map(drop)
}

/// The next change of the thread: has it ended?
fn wait(tid: i32) -> io::Result<bool> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is writable.
        if unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) } == tid {
            return Ok(libc::WIFEXITED(status) || libc::WIFSIGNALED(status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
