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
        let tid = self.thread(name)?;
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

impl Process {
    /// Stalls the thread of this name again and again, for so long and with so long between: a host that has no time for it.
    /// Returns when it runs freely again.
    ///
    /// # Errors
    /// As [`stall`](Self::stall), and when the process has ended meanwhile.
    pub fn delay(self, name: &str, times: u32, stalled: Duration, between: Duration) -> Result<()> {
        let tid = self.thread(name)?;
        let delay = || -> io::Result<()> {
            seize(tid)?;
            for _ in 1..times {
                thread::sleep(stalled);
                request(libc::PTRACE_CONT, tid)?;
                thread::sleep(between);
                request(libc::PTRACE_INTERRUPT, tid)?;
                if wait(tid)? {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
            thread::sleep(stalled);
            request(libc::PTRACE_DETACH, tid)
        };
        delay().with_context(|| format!("delaying {name}, thread {tid}"))
    }

    fn thread(self, name: &str) -> Result<i32> {
        let tasks = fs::read_dir(self.path("task"))?.flatten();
        let mut tids = tasks.filter_map(|task| {
            let comm = fs::read_to_string(task.path().join("comm")).ok()?;
            (comm.trim_end() == name).then(|| task.file_name().to_str()?.parse::<i32>().ok())?
        });
        tids.next().ok_or_else(|| anyhow!("process {} has no thread {name}", self.0))
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

/// A request that takes no words, of the thread that traces this one.
fn request(request: libc::c_uint, tid: i32) -> io::Result<()> {
    // SAFETY: these requests take no pointers; the signal that goes with a continuation is none.
    match unsafe { libc::ptrace(request, tid, 0usize, 0usize) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
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
