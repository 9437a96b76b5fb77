//! The process that runs hooks, with the rights that the listener has given up.
//!
//! It has one thread, no file of the kernel's but its end of the socket, and a session of its own: a key on the terminal is
//! the listener's. It ends when the other end is closed, and kills the hooks that run then.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process_group, pidfd_open, pidfd_send_signal,
    set_child_subreaper, setsid, wait,
};
use rustix::stdio::{dup2_stdin, dup2_stdout, stderr};

use super::{HookEnd, MOST, Reply, Request, SHELL, is_program};

/// Hooks that run at a time.
const MOST_RUNNING: usize = 16;
/// Hooks that wait for their turn; each has a descriptor.
const MOST_WAITING: usize = 512;
/// Of what a hook has started beyond its process group, so many are killed with it: each takes a descriptor for that.
const MOST_KILLED: usize = 256;

struct Waiting {
    request: Request,
    input: OwnedFd,
    /// By when it has to be done, where its container waits.
    until: Option<Instant>,
}

struct Running {
    no: u64,
    container: String,
    /// The leader of its process group. Its pid is nobody else's until it is reaped here.
    pid: Pid,
    /// Readable when it has ended.
    pidfd: OwnedFd,
    until: Instant,
    /// It was killed, and that was told.
    late: bool,
}

struct Helper<'a> {
    socket: OwnedFd,
    command: &'a str,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
}

/// Runs hooks until nobody asks any more.
pub(crate) fn run(socket: OwnedFd, command: &str) -> anyhow::Result<ExitCode> {
    let _ = setsid();
    // Who reads the listener's output reads nothing else, and sees its end; nor is anything typed for a hook.
    dup2_stdout(stderr()).context("dup2")?;
    dup2_stdin(std::fs::File::open("/dev/null").context("/dev/null")?).context("dup2")?;
    // What a hook leaves behind is reaped here, also where the supervisor is a container's process 1.
    let _ = set_child_subreaper(Some(getpid()));
    let mut helper = Helper { socket, command, waiting: VecDeque::new(), running: Vec::new() };
    let served = helper.serve();
    for hook in &helper.running {
        hook.kill();
    }
    served.context("the process that runs --exec")?;
    Ok(ExitCode::SUCCESS)
}

impl Helper<'_> {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            self.start_those_whose_turn_it_is();
            let next = self.running.iter().filter(|hook| !hook.late).map(|hook| hook.until);
            let next = next.chain(self.waiting.iter().filter_map(|hook| hook.until)).min();
            let timeout = next.and_then(|next| {
                let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                Timespec::try_from(left).ok()
            });
            let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
            fds.extend(self.running.iter().map(|hook| PollFd::new(&hook.pidfd, PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.reap();
            self.end_the_late();
            while let Some(request) = self.receive()? {
                let Some(request) = request else { return Ok(()) };
                self.take(request);
            }
        }
    }

    /// `None` when there is nothing now, `Some(None)` when there will be nothing more.
    #[allow(clippy::option_option, reason = "each has one meaning, said above")]
    fn receive(&self) -> io::Result<Option<Option<(Request, OwnedFd)>>> {
        let mut buffer = vec![0_u8; MOST];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut with = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let length = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut with, flags) {
                Ok(message) if message.bytes == 0 => return Ok(Some(None)),
                Ok(message) => message.bytes,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Ok(Some(None)),
                Err(error) => return Err(error.into()),
            };
            let files = with.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut files) => files.next(),
                _ => None,
            });
            let input = files.last();
            let request = serde_json::from_slice(buffer.get(..length).unwrap_or_default());
            match (request, input) {
                (Ok(request), Some(input)) => return Ok(Some(Some((request, input)))),
                // No descriptor was left for it.
                (Ok(Request { no, .. }), None) => {
                    self.reply(no, HookEnd::Failed("its standard input did not come".into()));
                }
                (Err(error), _) => tracing::warn!("a request that is not understood: {error}"),
            }
        }
    }

    fn take(&mut self, (request, input): (Request, OwnedFd)) {
        if self.waiting.len() >= MOST_WAITING {
            return self.reply(request.no, HookEnd::Failed("too many hooks wait for their turn".into()));
        }
        let until = request.held.then(|| Instant::now() + Duration::from_millis(request.limit_ms));
        self.waiting.push_back(Waiting { request, input, until });
    }

    /// The oldest first, but of one container one after the other.
    fn start_those_whose_turn_it_is(&mut self) {
        while self.running.len() < MOST_RUNNING {
            let running = &self.running;
            let free =
                |hook: &Waiting| !running.iter().any(|other| other.container == hook.request.container);
            let Some(next) = self.waiting.iter().position(free) else { return };
            let Some(Waiting { request, input, until }) = self.waiting.remove(next) else { return };
            let until = until.unwrap_or_else(|| Instant::now() + Duration::from_millis(request.limit_ms));
            match start(self.command, &request, input) {
                Ok((pid, pidfd)) => {
                    let Request { no, container, .. } = request;
                    self.running.push(Running { no, container, pid, pidfd, until, late: false });
                }
                Err(error) => self.reply(request.no, HookEnd::Failed(error.to_string())),
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(at) = self.running.iter().position(|hook| hook.pid == pid) else { continue };
            let hook = self.running.swap_remove(at);
            let end = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => HookEnd::Exited(code),
                (_, Some(signal)) => HookEnd::Signaled(signal),
                _ => HookEnd::Failed("its end is not known".into()),
            };
            if !hook.late {
                self.reply(hook.no, end);
            }
        }
    }

    fn end_the_late(&mut self) {
        let now = Instant::now();
        let mut late = Vec::new();
        for hook in self.running.iter_mut().filter(|hook| !hook.late && hook.until <= now) {
            hook.kill();
            hook.late = true;
            late.push(hook.no);
        }
        self.waiting.retain(|hook| {
            let is_late = hook.until.is_some_and(|until| until <= now);
            if is_late {
                late.push(hook.request.no);
            }
            !is_late
        });
        for no in late {
            self.reply(no, HookEnd::Late);
        }
    }

    /// To a listener that does not listen nothing is said: it will be killed, or its deadlines pass.
    fn reply(&self, no: u64, end: HookEnd) {
        let Ok(message) = serde_json::to_vec(&Reply { no, end }) else { return };
        if let Err(error) = send(&self.socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            && error != Errno::PIPE
        {
            tracing::warn!("cannot tell how a hook has ended: {error}");
        }
    }
}

impl Running {
    /// With all that it has started, also what is in a session of its own by now.
    fn kill(&self) {
        // Each is stopped before its children are looked for: it has no more of them then.
        let _ = pidfd_send_signal(&self.pidfd, Signal::STOP);
        let (mut parents, mut below) = (vec![self.pid], Vec::new());
        while let Some(parent) = parents.pop() {
            for child in children_of(parent) {
                if below.len() < MOST_KILLED
                    && let Ok(pidfd) = pidfd_open(child, PidfdFlags::empty())
                    // Asked after: until then the pid may have become another's.
                    && children_of(parent).contains(&child)
                {
                    let _ = pidfd_send_signal(&pidfd, Signal::STOP);
                    below.push(pidfd);
                    parents.push(child);
                }
            }
        }
        // It fails only where all of them have ended, or have become somebody whom root may not kill.
        let _ = kill_process_group(self.pid, Signal::KILL);
        for process in below {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }
}

/// The children of all threads of a process. Empty where the kernel does not tell them (`CONFIG_PROC_CHILDREN`).
fn children_of(process: Pid) -> Vec<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split(' ').filter_map(pid_of).collect::<Vec<_>>()).collect()
}

fn pid_of(word: &str) -> Option<Pid> {
    Pid::from_raw(word.parse().ok()?)
}

fn start(command: &str, request: &Request, input: OwnedFd) -> io::Result<(Pid, OwnedFd)> {
    let mut hook = if is_program(command) {
        Command::new(command)
    } else {
        let mut shell = Command::new(SHELL);
        shell.args(["-c", command]);
        shell
    };
    let words = request.env.iter().map(|(name, word)| (name, word));
    let child = hook.envs(words).stdin(input).process_group(0).spawn()?;
    // Waited for by its pid, with all others.
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok((pid, pidfd)),
        Err(error) => {
            let _ = kill_process_group(pid, Signal::KILL);
            Err(error.into())
        }
    }
}
