//! Starting processes, and knowing when.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use benches::clock;

/// Microseconds that `command` takes from its start until it is reaped.
pub(crate) fn timed(command: &mut Command) -> Result<f64> {
    let begin = Instant::now();
    let status = command.status().context("starting a command")?;
    let took = begin.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took.as_nanos() as f64 / 1e3)
}

/// A stand-in's command line for a container.
pub(crate) fn create(runtime: &Path, folder: &Path, bundle: &Path, id: &str) -> Command {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(folder.join("state")).arg("create").arg("--bundle").arg(bundle);
    command.arg("--pid-file").arg(folder.join("pid")).arg(id);
    command
}

pub(crate) fn verb(runtime: &Path, folder: &Path, verb: &str, id: &str) -> Command {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(folder.join("state")).args([verb, id]);
    command
}

/// Moments that a process and its descendants stamp.
pub(crate) struct StampPipe(File);

impl StampPipe {
    /// Waits for the next one.
    pub(crate) fn next(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).context("waiting for a stamp")?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// Starts a command that stamps the moment of its execve, and whatever the program itself stamps on descriptor 3.
pub(crate) fn spawn_stamped(command: &mut Command) -> Result<(Child, StampPipe)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors, which are new, and ours.
    let (read, write) = unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error()).context("making a pipe");
        }
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    let write_fd = write.as_raw_fd();
    // SAFETY: between fork and exec it only calls what is safe there: dup2, fcntl, clock_gettime, write.
    unsafe {
        command.pre_exec(move || {
            let fd = if write_fd == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(write_fd, 3) };
            let now = clock::now().to_ne_bytes();
            if fd < 0 || libc::write(3, now.as_ptr().cast(), now.len()) != 8 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn().context("starting a command")?;
    Ok((child, StampPipe(File::from(read))))
}

/// Orphans below this process become its children, and can be waited for.
pub(crate) fn adopt_orphans() {
    // SAFETY: takes integers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Ends a process, and says when the signal was sent.
pub(crate) fn kill(pid: i32) -> u64 {
    let now = clock::now();
    // SAFETY: takes integers only; the process is one of ours that has not been reaped.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    now
}

pub(crate) fn reap(pid: i32) {
    let mut status = 0;
    // SAFETY: the status is writable.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
}

/// A thread in `poll` on the process's pidfd: the moment when it knows of the end.
pub(crate) fn floor_of_end(pid: i32) -> Result<std::thread::JoinHandle<u64>> {
    let fd = pidfd(pid)?;
    let (ready, waits) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        let _ = ready.send(());
        wait_for_end(&fd);
        clock::now()
    });
    waits.recv().context("the thread ended")?;
    Ok(thread)
}

pub(crate) fn pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: takes integers only; a descriptor that is returned is new, and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        ensure!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub(crate) fn wait_for_end(pidfd: &OwnedFd) {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which lives through the call.
    while unsafe { libc::poll(&raw mut poll, 1, -1) } != 1 {}
}

pub(crate) fn read_pid(path: &Path) -> Result<i32> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))
}
